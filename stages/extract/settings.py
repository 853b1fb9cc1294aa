"""Settings of stage one: which frozen networks look at the images, where they are tapped, and how agents are made."""

import re
from collections.abc import Collection, Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...cache.views import HFLIP, IDENTITY
from ...settings import Mark, Settings
from ..datasets.catalogue import DatasetName
from .catalogue import DIFFUSION_NAMES

__all__ = ["RGB", "AgentSettings", "Decoding", "ExtractSettings", "network_taps"]

Decoding = Literal["full", "scaled"]
RGB = "rgb"  #: the tap that is the image itself
DEFAULT_TAPS = ("up0", "up1", "up2", "up3", RGB)
UNET_TAP = re.compile(r"rgb|(mid|up\d+)(\.\d+)?(:residual)?")
ANY_TAP = re.compile(r"[A-Za-z0-9_][\w.-]*(:residual)?", re.ASCII)
VIEW_PATTERN = re.compile(rf"{IDENTITY}|{HFLIP}|jitter:(0|[1-9]\d{{0,5}})")


def network_taps(taps: Iterable[str], network: str) -> list[str]:
    """Returns the taps of a network among ``taps`` of several, as it names them."""
    return [tap.rpartition("/")[2] for tap in taps if tap.rpartition("/")[0] == network]


class AgentSettings(Settings):
    """How the pixels of an image are grouped into object agent queries (training-free soft k-means)."""

    count: int = Field(default=100, ge=1, le=4096)
    """Agents an image (N)."""
    seeds: Literal["distinct", "grid"] = "distinct"
    """Where agents begin: on a regular grid, or on those points of a finer one that differ most."""
    rounds: int = Field(default=10, ge=1, le=1000)
    """Rounds of soft k-means (T)."""
    temperature: float = Field(default=0.02, gt=0, le=10)
    """Softmax temperature of the assignment; 0.01-0.03 works, 0.3 collapses."""
    assign: Literal["features", "rgb", "features+rgb"] = "features+rgb"
    """What pixels are grouped by: features form better groups, colours draw better borders."""
    grid: str | None = None
    """Tap whose grid the grouping runs on; by default the finest."""
    tap_weights: dict[str, float] = Field(default_factory=dict)
    """Weight of a tap, or of each tap of a network, in the similarity; 1 where neither is named, and 0 leaves it out of
    the grouping."""
    position_weight: float = Field(default=0.2, ge=0, le=10)
    """Weight of the pixel's position, where all features together weigh 1."""
    rgb_weight: float = Field(default=2.0, gt=0, le=10)
    """Weight of the colours in 'features+rgb', where all features weigh 1."""

    def weight_of(self, tap: str) -> float:
        """Returns the weight of a tap in the similarity: its own, else that of its network, else 1."""
        return self.tap_weights.get(tap, self.tap_weights.get(tap.rpartition("/")[0], 1.0))

    def tap_faults(self, taps: Collection[str]) -> list[str]:
        """Returns what is wrong with these settings for an extraction of the maps ``taps``."""
        networks = {tap.rpartition("/")[0] for tap in taps} - {""}
        unknown = [("grid", self.grid)] if self.grid and self.grid not in taps else []
        unknown += [("tap_weights", tap) for tap in self.tap_weights if tap not in taps and tap not in networks]
        faults = [
            f"agents.{name} names '{tap}', which is not among the taps {', '.join(taps)}" for name, tap in unknown
        ]
        if taps and self.assign != "rgb" and not any(map(self.weight_of, taps)):
            faults.append("agents.tap_weights gives every tap weight 0; leave one above 0 or set agents.assign to rgb")
        return faults

    @model_validator(mode="after")
    def _check(self) -> "AgentSettings":
        if self.assign == "rgb" and self.tap_weights:
            raise ValueError("tap_weights have no effect when assign is 'rgb'; remove them or use 'features+rgb'")
        negative = [f"{tap}: {weight}" for tap, weight in self.tap_weights.items() if not 0 <= weight < float("inf")]
        if negative:
            raise ValueError(f"tap_weights must be finite and not negative, found {', '.join(negative)}")
        return self


class ExtractSettings(Settings):
    """Stage one: camera images become features of frozen networks and agent queries."""

    models: Annotated[tuple[str, ...], Mark.ADDED] = ()
    """Several networks in place of 'model', each named as there. Their taps are called NETWORK/TAP, such as
    dinov2-base/block11, and each is kept once in a cache, whichever others are in it."""
    model: str = Field(default="tiny-street", min_length=1)
    """The network: a known name ('xd3d models list'), a folder (diffusers, transformers or ONNX), or a hub id."""
    unet: str | None = Field(default=None, min_length=1)
    """Weights that replace the model's UNet: a known name (cleandift-sd15, cleandift-sd21), a folder, a .safetensors
    file, a hub id, or OWNER/NAME:FILE.safetensors."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """'random' builds the model from its configs with seeded random weights."""
    weights_seed: int = Field(default=0, ge=0)
    """Seed of the random weights."""
    offline: Annotated[bool, Mark.FREE, Mark.MACHINE] = False
    """Never reach for the network: models must be on this machine."""
    taps: tuple[str, ...] = DEFAULT_TAPS
    """What is kept: up0..up3, mid, upI.J (ResNet J of up block I), ':residual' before the skip; blockI, stageI, last;
    an ONNX network's outputs; rgb. Left at the default, other networks than UNets keep their own."""
    timestep: int = Field(default=0, ge=0)
    """Diffusion step; 0 means a clean image and no noise."""
    noise_seed: int = Field(default=0, ge=0)
    """Seed of the noise, beside the image's key; used with timestep > 0."""
    draws: int = Field(default=1, ge=1, le=1024)
    """Draws of the noise that features are averaged over; used with timestep > 0."""
    noise: bool = True
    """Mix the noise of the step into the image; false only for weights trained without it (CleanDIFT: timestep 261)."""
    views: tuple[str, ...] = ("identity",)
    """What is kept of each image, training draws one: identity, hflip, jitter:K (K-th colour jitter)."""
    image_size: tuple[int, int] = (225, 400)
    """Height and width the model sees, in pixels."""
    image_sizes: dict[DatasetName, tuple[int, int]] = Field(default_factory=dict)
    """Height and width for the images of some data sets, where they differ."""
    decoding: Annotated[Decoding, Mark.ADDED] = "full"
    """How JPEGs are decoded: 'full', or 'scaled' by the decoder to 1/2, 1/4 or 1/8 where that is no smaller than
    image_size: about three times faster, slightly other pixels."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the model; auto: bfloat16 for a full-size network where the device has units for it, else float32,
    and an existing cache in the other one is used."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Mark.FREE, Mark.MACHINE] = "auto"
    """Where the model runs."""
    batch_size: Annotated[int | None, Mark.FREE, Mark.MACHINE] = Field(default=None, ge=1, le=1024)
    """Images that pass the model together; null: as many as a GPU has room for, and 1 on the CPU, where an image then
    has the same bits whichever images come before it."""
    compile: Annotated[bool, Mark.FREE, Mark.MACHINE] = False
    """Compile the model's blocks first: minutes at the start, features equal to within rounding."""
    shard_mb: Annotated[int, Mark.FREE] = Field(default=100, ge=1, le=10_000)
    """Size of a cache shard, in 10^6 bytes of float16."""
    profile: Literal["exact", "compact"] = "exact"
    """How the cache keeps values: 'exact' float16, 'compact' 8 bits (half the bytes)."""
    exported_from: str | None = None
    """Fingerprint of the cache that an export with fewer taps was made of; such features are only read."""
    caches: Annotated[str | None, Mark.FREE, Mark.MACHINE] = Field(default=None, min_length=1)
    """Where caches are kept: a folder or s3://bucket/prefix, unless XD3D_CACHES names another; null: cache/ in the
    workspace."""
    agents: AgentSettings = Field(default_factory=AgentSettings)
    """Object agent queries."""
    maps_only: Annotated[bool, Mark.ADDED] = False
    """Maps without agents: a part of a cache of several networks, which 'models' makes."""

    @property
    def networks(self) -> dict[str, str]:
        """Name in taps -> entry of ``models``; the last one if two names are equal."""
        return {name.rstrip("/").rpartition("/")[2]: name for name in self.models}

    @property
    def map_taps(self) -> tuple[str, ...]:
        """The taps that are feature maps of a network: all but ``rgb``."""
        return tuple(tap for tap in self.taps if tap != RGB)

    def for_dataset(self, dataset: str) -> "ExtractSettings":
        """These settings as they hold for the images of ``dataset``: with one ``image_size``."""
        sizes = {str(name): size for name, size in self.image_sizes.items()}
        return self.model_copy(update={"image_size": sizes.get(dataset, self.image_size), "image_sizes": {}})

    @model_validator(mode="after")
    def _check(self) -> "ExtractSettings":
        faults = [*self._tap_faults(), *self._noise_faults(), *self._view_faults()]
        if self.taps != DEFAULT_TAPS or (self.model in DIFFUSION_NAMES and not self.models):
            faults += self.agents.tap_faults(self.map_taps)  # else the taps are known once the network is opened
        sizes = {
            "image_size": self.image_size,
            **{f"image_sizes.{name}": size for name, size in self.image_sizes.items()},
        }
        for name, size in sizes.items():
            if not all(32 <= side <= 8192 for side in size):
                faults.append(f"{name} (height, width) must lie within 32..8192, found {list(size)}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _tap_faults(self) -> list[str]:
        twice = sorted({tap for tap in self.taps if self.taps.count(tap) > 1})
        faults = [f"taps names {', '.join(twice)} more than once"] if twice else []
        return faults + (self._network_faults() if self.models else self._address_faults())

    def _address_faults(self) -> list[str]:
        unet = self.model in DIFFUSION_NAMES
        examples = "up0, up1.0, mid, up2:residual or rgb" if unet else "block8, stage2, last or rgb"
        faults = [
            f"'{tap}' is no tap address; write {examples}"
            for tap in self.taps
            if not (UNET_TAP if unet else ANY_TAP).fullmatch(tap)
        ]
        if not self.map_taps:
            faults.append("taps needs at least one feature map of the network, such as up2")
        return faults

    def _network_faults(self) -> list[str]:
        known = self.networks
        faults = [
            f"'{tap}' is no tap of models; write NETWORK/TAP with one of {', '.join(known)}, or rgb"
            for tap in (() if self.taps == DEFAULT_TAPS else self.taps)
            if tap != RGB and not (tap.rpartition("/")[0] in known and ANY_TAP.fullmatch(tap.rpartition("/")[2]))
        ]
        if len(known) < len(self.models):
            faults.append(f"models names two networks {', '.join(known)}; give each folder a name of its own")
        faults += [
            f"'{name}' cannot name a network; rename its folder" for name in known if not ANY_TAP.fullmatch(name)
        ]
        if self.exported_from:
            faults.append("exported_from belongs to a cache of one network; leave models out")
        return faults

    def _noise_faults(self) -> list[str]:
        faults = []
        if self.draws > 1 and not (self.timestep and self.noise):
            faults.append(f"draws is {self.draws}, but there is no noise to draw; set timestep above 0, or draws to 1")
        if not self.noise and not (self.timestep and self.unet):
            faults.append(
                "noise is false, which is for weights trained that way (unet) at a timestep above 0: stock weights give"
                " worse features for a clean image at any step but 0"
            )
        if self.unet and self.weights == "random":
            faults.append("unet names weights and weights is 'random'; leave one of them out")
        return faults

    def _view_faults(self) -> list[str]:
        faults = [
            f"'{view}' is no view; write identity, hflip or jitter:1"
            for view in self.views
            if not VIEW_PATTERN.fullmatch(view)
        ]
        if len(set(self.views)) < len(self.views):
            faults.append(f"views names one more than once: {', '.join(self.views)}")
        if IDENTITY not in self.views:
            faults.append("views needs identity among them, which evaluation reads")
        return faults
