"""Frozen image networks: the interface that stage one computes features through, and the kinds behind it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch

from ...cache.schema import TapSpec
from ...errors import ConfigError
from .images import FeatureMaps, Pictures
from .models import ModelFolder, resolve_model, settings_model
from .settings import DEFAULT_TAPS, RGB, AgentSettings, ExtractSettings, network_taps
from .taps import crop_maps, map_specs

__all__ = ["Backbone", "JointBackbone", "network_settings", "open_backbone", "tap_specs", "with_default_taps"]


@runtime_checkable
class Backbone(Protocol):
    """A frozen network with taps, which turns pictures into feature maps.

    ``specs``: tap -> shape of its map and its position on the image, in the order of ``settings.taps``; ``device``:
    where it runs; ``dtype``: its arithmetic. The files it depends on have the digest ``ModelFolder.digest``.
    """

    device: torch.device
    dtype: torch.dtype
    specs: dict[str, TapSpec]

    def __call__(self, pictures: Pictures, keys: Sequence[str]) -> FeatureMaps:
        """Computes every tap of a batch of pictures of ``settings.image_size``; ``keys`` name the images.

        Sides are padded to what the network needs, and the maps are cropped to the cells that lie on the image. Nothing
        behind the last tap is computed. Returns the network's maps in float32 and ``rgb`` in uint8, on the device.
        """


def open_backbone(model: ModelFolder, settings: ExtractSettings, device: torch.device) -> Backbone:
    """Loads the network of ``settings`` on ``device``.

    Raises:
        ModelError: the model is damaged, is of an unsupported architecture, or lacks a tap.
        ConfigError: a setting has no meaning for this kind of network.
        BackendError: it is an ONNX file, and onnxruntime is not installed.
    """
    settings = with_default_taps(model, settings)
    if model.kind == "diffusers":
        from .diffusion_backbone import DiffusionBackbone

        return DiffusionBackbone(model=model, settings=settings, device=device)
    _check_settings(settings, model)
    if model.kind == "onnx":
        from .onnx_backbone import OnnxBackbone

        return OnnxBackbone(model=model, settings=settings, device=device)
    from .vision_backbone import VisionBackbone

    return VisionBackbone(model=model, settings=settings, device=device)


def tap_specs(model: ModelFolder, settings: ExtractSettings) -> dict[str, TapSpec]:
    """Returns tap -> shape and position on the image, in the order of ``settings.taps``; no weights are loaded.

    Raises:
        ModelError: the network lacks a tap, or cannot take images of this size.
    """
    settings = with_default_taps(model, settings)
    if model.kind == "diffusers":
        from .taps import tap_specs as unet_specs

        return unet_specs(model, settings)
    _check_settings(settings, model)
    if model.kind == "onnx":
        from .onnx_backbone import onnx_specs

        return onnx_specs(model, settings)
    from .vision_backbone import vision_specs

    return vision_specs(model, settings)


def with_default_taps(model: ModelFolder, settings: ExtractSettings) -> ExtractSettings:
    """Returns ``settings`` with the network's own taps where ``extract.taps`` is left at its default.

    These are the up blocks of a UNet, every stage of a network with stages, the last block of another one, or the
    outputs that an ONNX network's description names; and ``rgb``.
    """
    if settings.taps != DEFAULT_TAPS or model.kind == "diffusers":
        return settings
    if model.kind == "onnx":
        from .onnx_files import described_taps as own
    else:
        from .vision_backbone import default_addresses as own
    return settings.model_copy(update={"taps": (*own(model), RGB)})


def network_settings(settings: ExtractSettings, name: str) -> ExtractSettings:
    """Returns the settings of one network of ``settings.models``, with its own taps, for its maps alone.

    Settings of diffusion models are left at their defaults for a network of another kind.

    Raises:
        ModelError: the network cannot be found or is incomplete.
    """
    given = settings.networks[name]
    chosen = tuple(network_taps(settings.taps, name)) or DEFAULT_TAPS
    changes: dict[str, Any] = {"model": given, "models": (), "taps": chosen, "maps_only": True}
    model = resolve_model(given, weights=settings.weights, seed=settings.weights_seed, offline=settings.offline)
    if model.kind != "diffusers":
        changes |= {"unet": None, "timestep": 0, "noise": True, "draws": 1, "compile": False}
    if model.kind == "onnx":
        changes |= {"dtype": "auto"}
    own = with_default_taps(model, settings.model_copy(update={**changes, "agents": AgentSettings()}))
    return own.model_copy(update={"taps": own.map_taps})


class JointBackbone:
    """Several networks as one: a ``Backbone`` whose taps are called ``<network>/<tap>``, and ``rgb``.

    Raises:
        ModelError, ConfigError, BackendError: as ``open_backbone``, for any of them.
    """

    def __init__(self, *, settings: ExtractSettings, device: torch.device) -> None:
        self.device = device
        self._networks = {}
        for name in settings.networks:
            own = network_settings(settings, name)
            self._networks[name] = open_backbone(settings_model(own), own, device)
        self.dtype = next(iter(self._networks.values())).dtype
        specs = {
            f"{name}/{tap}": replace(spec, name=f"{name}/{tap}")
            for name, network in self._networks.items()
            for tap, spec in network.specs.items()
        }
        specs |= map_specs(settings.model_copy(update={"taps": (RGB,)}), {}, {})
        self.specs = specs if settings.taps == DEFAULT_TAPS else {tap: specs[tap] for tap in settings.taps}

    def __call__(self, pictures: Pictures, keys: Sequence[str]) -> FeatureMaps:
        """Computes every tap of every network; see ``Backbone``."""
        pictures = pictures.to(self.device)
        maps = {
            f"{name}/{tap}": values
            for name, network in self._networks.items()
            for tap, values in network(pictures, keys).items()
        }
        return crop_maps(maps, pictures, self.specs)


def _check_settings(settings: ExtractSettings, model: ModelFolder) -> None:
    """Raises for settings of diffusion models and of UNets."""
    wrong = [name for name, given in (("timestep", settings.timestep), ("compile", settings.compile)) if given]
    if wrong:
        raise ConfigError(
            f"extract.{wrong[0]} has no meaning for {model.path}, a network of kind {model.kind}; leave it at its"
            " default"
        )
