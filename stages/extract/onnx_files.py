"""The files of an ONNX network: ``net.onnx``, and ``net.yaml`` beside it; reading both, and checks of what they hold.

``net.yaml`` names the input, the mean and the deviation of RGB in 0 to 1, and the outputs that are taps, with the
stride of each in pixels::

    input: images
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
    taps:
      deep: {stride: 16}
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, ValidationError, field_validator

from ...errors import BackendError, ModelError, nearest
from ...files import parse_yaml
from ...settings import Settings
from .model_files import DESCRIPTION, NETWORK
from .models import ModelFolder
from .settings import ANY_TAP, RGB

__all__ = [
    "Description",
    "check_input",
    "check_map",
    "described_taps",
    "first_line",
    "open_session",
    "read_description",
    "has_fixed_batch",
]

LARGEST_MESSAGE = 2**31 - 2**26  #: bytes of a network that protobuf can hold; the data of a larger one stay in files
Channel = Annotated[float, Field(ge=0, le=1)]  #: values for 0 to 255 are refused, which would spoil every feature
Mean = Annotated[list[Channel], Field(min_length=3, max_length=3)]
Deviation = Annotated[list[Annotated[Channel, Field(gt=0)]], Field(min_length=3, max_length=3)]


class OutputSettings(Settings):
    """One tap of an ONNX network."""

    stride: int = Field(ge=1, le=1024, description="Pixels that a cell of the map spans.")
    output: str | None = Field(default=None, description="The output's name, where it differs from the tap's.")


class Description(Settings):
    """What ``net.yaml`` holds."""

    input: str = Field(description="Name of the input, float32 [images, 3, height, width].")
    mean: Mean = Field(description="Mean of RGB in 0 to 1, which is subtracted.")
    std: Deviation = Field(description="Deviation of RGB in 0 to 1, which is divided by.")
    taps: dict[str, OutputSettings] = Field(min_length=1, description="The outputs that are maps.")
    multiple: int | None = Field(
        default=None, ge=1, le=1024, description="Sides are padded to a multiple of it; null: the largest stride."
    )

    @field_validator("taps")
    @classmethod
    def _names(cls, taps: dict[str, OutputSettings]) -> dict[str, OutputSettings]:
        for name in taps:
            if not ANY_TAP.fullmatch(name) or name == RGB:
                raise ValueError(f"'{name}' cannot name a tap; choose a plain name and give the output as 'output:'")
        return taps

    def output(self, tap: str) -> str:
        """Returns the name of a tap's output."""
        return self.taps[tap].output or tap


def described_taps(model: ModelFolder) -> tuple[str, ...]:
    """Returns the taps that a network's description names."""
    return tuple(read_description(model).taps)


def read_description(model: ModelFolder) -> Description:
    """Reads ``net.yaml``; raises ``ModelError`` with all that is wrong with it."""
    file = model.path / DESCRIPTION
    try:
        return Description.model_validate(parse_yaml(file.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'all of it'}: {fault['msg']}, found {fault['input']}"
            for fault in error.errors()
        )
        raise ModelError(f"{file} does not describe the network: {faults}") from error
    except ValueError as error:
        raise ModelError(f"{file} is not valid YAML: {error}") from error


def open_session(model: ModelFolder, description: Description, outputs: list[str], device: torch.device) -> Any:
    """Opens the part of the network that leads to ``outputs``."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"{model.path} is an ONNX network, and {error.name} is not installed; install it with: "
            "pip install 'xd3d[onnx]'"
        ) from error
    file = model.path / NETWORK
    try:
        network = onnx.load(str(file), load_external_data=False)
        external = _external_files(network, model)
        if sum(data.stat().st_size for data in external) + file.stat().st_size < LARGEST_MESSAGE:
            onnx.load_external_data_for_model(network, str(model.path))
    except ModelError:
        raise
    except Exception as error:  # protobuf's errors share no base class but this
        raise ModelError(f"{file} is no ONNX file ({first_line(error)}); export it again") from error
    _check_names("input", description.input, [value.name for value in network.graph.input], model)
    there = {value.name: value for value in network.graph.output}
    for output in outputs:
        _check_names("output", output, list(there), model)
    del network.graph.output[:]
    network.graph.output.extend([there[output] for output in dict.fromkeys(outputs)])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.path))
    gpu = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    providers = [name for name in (*gpu, "CPUExecutionProvider") if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(network.SerializeToString(), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class but this
        raise ModelError(f"{file} cannot be loaded ({first_line(error)}); export it again") from error


def _check_names(what: str, name: str, there: list[str], model: ModelFolder) -> None:
    if name not in there:
        raise ModelError(
            f"{DESCRIPTION} names the {what} '{name}', which {model.path / NETWORK} does not have; "
            f"{nearest(name, there)}"
        )


def _external_files(network: Any, model: ModelFolder) -> set[Path]:
    """Returns the files that hold tensors of the network; raises if one does not lie beside it."""
    files = set()
    for tensor in _tensors(network.graph):
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
        if location is None:
            continue
        file = model.path / location
        if PurePosixPath(location).name != location or file.resolve().parent != model.path.resolve():
            raise ModelError(
                f"{model.path / NETWORK} keeps tensor '{tensor.name}' in '{location}', outside of its folder; save it "
                "with its data beside it, under a plain file name"
            )
        if not file.is_file():
            raise ModelError(
                f"{model.path / NETWORK} keeps its data in '{location}', which is missing; copy it there too"
            )
        files.add(file)
    return files


def _tensors(graph: Any) -> Iterator[Any]:
    """Yields every stored tensor of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)


def has_fixed_batch(session: Any, description: Description) -> bool:
    """Returns whether the network is made for one image at a time."""
    return isinstance(_input(session, description).shape[0], int)


def _input(session: Any, description: Description) -> Any:
    return next(value for value in session.get_inputs() if value.name == description.input)


def check_input(session: Any, description: Description, size: tuple[int, int], model: ModelFolder) -> None:
    """Raises if the network does not take float32 pictures of ``size``, or needs other inputs too."""
    file, found = model.path / NETWORK, _input(session, description)
    if others := [value.name for value in session.get_inputs() if value is not found]:
        raise ModelError(f"{file} needs the inputs {', '.join(others)} beside '{description.input}'; export it without")
    dimensions = found.shape
    fits = len(dimensions) == 4 and dimensions[1] in (3, None, str(dimensions[1]))
    if found.type != "tensor(float)" or not fits or (dimensions[3] == 3 != dimensions[1]):
        raise ModelError(
            f"The input '{found.name}' of {file} is {found.type} {found.shape}; it must be float32"
            " [images, 3, height, width]"
        )
    if isinstance(found.shape[0], int) and found.shape[0] != 1:
        raise ModelError(
            f"{file} takes {found.shape[0]} images at a time, no more and no less; export it with a"
            " dynamic batch, or of 1"
        )
    fixed = [side if isinstance(side, int) else own for side, own in zip(found.shape[2:], size, strict=True)]
    if tuple(fixed) != size:
        raise ModelError(
            f"{file} takes images of {fixed[0]}x{fixed[1]} pixels alone, these are {size[0]}x{size[1]} with their"
            f" padding; set extract.image_size to [{fixed[0]}, {fixed[1]}], or export it with dynamic sides"
        )


def check_map(tap: str, values: Any, size: tuple[int, int], description: Description, model: ModelFolder) -> None:
    """Raises if an output is no float map whose cells have the stride of its description."""
    shape = list(np.shape(values)) if isinstance(values, np.ndarray) else []
    if len(shape) != 4 or not shape[1] or not np.issubdtype(values.dtype, np.floating):
        kind = getattr(values, "dtype", type(values).__name__)
        raise ModelError(
            f"The output '{description.output(tap)}' of {model.path / NETWORK} is {kind} {shape}, no map: a tap"
            " is float [images, channels, height, width]; take it out of the taps, or export the layer before it"
        )
    stride = description.taps[tap].stride
    expected = [-(-side // stride) for side in size]
    if shape[1:3] == expected != shape[2:]:
        raise ModelError(
            f"The output '{description.output(tap)}' of {model.path / NETWORK} is {shape}, with channels last;"
            " export it as [images, channels, height, width]"
        )
    if shape[2:] != expected:
        raise ModelError(
            f"The tap '{tap}' of {model.path} has {shape[2]}x{shape[3]} cells for {size[0]}x{size[1]} pixels, and with"
            f" its stride of {stride} there would be {expected[0]}x{expected[1]}; correct the stride in {DESCRIPTION}"
        )


def first_line(error: Exception) -> str:
    """Returns the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
