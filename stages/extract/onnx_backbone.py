"""Image networks in ONNX files, run by onnxruntime; ``onnx_files`` says what a folder holds.

Outputs of the file that are no taps are cut off, so nothing behind the last tap is computed. A file that works for one
image at a time alone is run that way.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from ...cache.schema import TapSpec
from ...errors import ModelError, nearest
from .images import FeatureMaps, Pictures, pad_to_multiple
from .model_files import DESCRIPTION, NETWORK
from .models import ModelFolder
from .onnx_files import (
    Description,
    check_input,
    check_map,
    first_line,
    has_fixed_batch,
    open_session,
    read_description,
)
from .precision import resolve_dtype
from .settings import ExtractSettings
from .taps import crop_maps, map_specs, padded_size

__all__ = ["OnnxBackbone", "onnx_specs"]

PROBED = 2  #: images of the trial that finds the shapes of the outputs, and whether images can be run together


class OnnxBackbone:
    """An ONNX network with taps; ``specs`` as in ``Backbone``. It runs in float32, on a GPU if onnxruntime has one.

    Raises:
        ModelError: a file is damaged, its data lie outside of its folder, it lacks a tap, an output is no map, or the
            network cannot take images of this size.
        BackendError: onnxruntime is not installed.
    """

    def __init__(self, *, model: ModelFolder, settings: ExtractSettings, device: torch.device) -> None:
        self.device = device
        self.dtype = getattr(torch, resolve_dtype(settings, model))
        self.description = read_description(model)
        self._names = {tap: self.description.output(tap) for tap in _chosen(self.description, settings, model)}
        self._session = open_session(model, self.description, list(self._names.values()), device)
        self.multiple = self.description.multiple or max(tap.stride for tap in self.description.taps.values())
        self._mean, self._deviation = (
            torch.tensor(part).view(3, 1, 1) for part in (self.description.mean, self.description.std)
        )
        self._together = True
        self.specs = self._probe(model, settings)

    def __call__(self, pictures: Pictures, keys: Sequence[str]) -> FeatureMaps:
        """Computes every tap of a batch of pictures; see ``Backbone``. ``keys`` have no effect."""
        images = (pictures.cpu().to(torch.float32) / 255.0 - self._mean) / self._deviation
        batch = pad_to_multiple(images, self.multiple).numpy()
        parts = [self._run(batch)] if self._together else [self._run(image[None]) for image in batch]
        found = {
            tap: torch.from_numpy(np.concatenate([part[tap] for part in parts])).to(self.device, torch.float32)
            for tap in self._names
        }
        return crop_maps(found, pictures.to(self.device), self.specs)

    def _run(self, images: Float32[np.ndarray, "batch 3 height width"]) -> dict[str, Any]:
        """Returns tap -> an array, unless the output is of another type, which ``check_map`` refuses."""
        values = self._session.run(list(self._names.values()), {self.description.input: images})
        return dict(zip(self._names, values, strict=True))

    def _probe(self, model: ModelFolder, settings: ExtractSettings) -> dict[str, TapSpec]:
        """Runs black images once: finds the shapes of the maps, and whether several images can be run together."""
        size = padded_size(model, settings.image_size, self.multiple)
        check_input(self._session, self.description, size, model)
        self._together = not has_fixed_batch(self._session, self.description)
        found = self._attempt(PROBED, size) if self._together else None
        if found is None or any(np.ndim(values) == 4 and len(values) != PROBED for values in found.values()):
            self._together = False
            try:
                found = self._run(np.zeros((1, 3, *size), np.float32))
            except Exception as error:  # onnxruntime's errors share no base class but this
                raise ModelError(
                    f"{model.path / NETWORK} cannot run an image of {size[0]}x{size[1]} pixels ({first_line(error)}); "
                    "choose another extract.image_size, or export it for images of any size"
                ) from error
        for tap, values in found.items():
            check_map(tap, values, size, self.description, model)
        strides = {tap: self.description.taps[tap].stride for tap in found}
        return map_specs(settings, {tap: values.shape[1:] for tap, values in found.items()}, strides)

    def _attempt(self, count: int, size: tuple[int, int]) -> dict[str, Any] | None:
        try:
            return self._run(np.zeros((count, 3, *size), np.float32))
        except Exception:  # as above; the trial with one image says what is wrong
            return None


def onnx_specs(model: ModelFolder, settings: ExtractSettings) -> dict[str, TapSpec]:
    """Returns tap -> shape and position on the image, in the order of ``settings.taps``.

    Raises:
        ModelError: as ``OnnxBackbone``.
        BackendError: as ``OnnxBackbone``.
    """
    return OnnxBackbone(model=model, settings=settings, device=torch.device("cpu")).specs


def _chosen(description: Description, settings: ExtractSettings, model: ModelFolder) -> tuple[str, ...]:
    for tap in settings.map_taps:
        if tap not in description.taps:
            raise ModelError(
                f"The network of {model.path} has no tap '{tap}' ({nearest(tap, description.taps)}); {DESCRIPTION}"
                f" names {', '.join(description.taps)}"
            )
    return settings.map_taps
