"""Settings of stage two; this module has no heavy imports."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...settings import Mark, Settings

__all__ = ["MAX_SCALE", "AugmentSettings", "FusionSettings", "Mix", "ModelSettings", "TrainSettings", "Variant"]

#: Largest voxel grid: the keys of a batch of 64 such grids fit in 64 bits.
MAX_SCALE = 2**19

Variant = Literal["3d-only", "image", "full"]
Mix = Literal["none", "dense", "polar", "laser"]
LoggerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class ModelSettings(Settings):
    """The 3D network: its width, its sparse convolution backend and the voxels it reads."""

    preset: Literal["full", "slim"] = "full"
    """Width of the 3D U-Net: 'full' (published) or 'slim'."""
    backend: Annotated[Literal["auto", "torch", "spconv"], Mark.MACHINE] = "auto"
    """Sparse convolution: 'torch' runs everywhere, 'spconv' is for CUDA GPUs, 'auto' chooses."""
    norm: Annotated[Literal["batch", "layer"], Mark.ADDED] = "batch"
    """Normalisation in the 3D network: BatchNorm, whose running statistics are those of the training domain, or
    LayerNorm over the channels of each voxel, which has none."""
    head: Annotated[Literal["linear", "mlp"], Mark.ADDED] = "linear"
    """The 3D network's heads: one linear layer, or two with a hidden layer."""
    voxel_size: float = Field(default=0.05, gt=0)
    """Edge of a voxel in metres."""
    full_scale: int = Field(default=4096, ge=16, le=MAX_SCALE)
    """Edge of the cube that contains a cloud in training, in voxels."""


class FusionSettings(Settings):
    """Use of image features: the 2D branch, injection into the 3D network, and object agent queries."""

    variant: Variant = "full"
    """Each adds to the previous one: '3d-only', 'image' (2D branch, cross-modal losses), 'full' (as set by inject,
    context and queries)."""
    inject: Literal["none", "pixel", "agents", "both", "softmax", "xyz"] = "pixel"
    """What is added to the finest skip connection of the 3D network, voxel by voxel: the 2D branch's feature at the
    pixel, the agents there, both; as controls the 2D head's softmax, or the voxel's position."""
    camera_dropout: Annotated[float, Mark.TRAINING_ONLY] = Field(default=0.1, ge=0, lt=1)
    """Probability that nothing is injected into a sample in training, as without a camera."""
    lidar_stages: int = Field(default=1, ge=0, le=4)
    """Decoder stages, counted from the finest, that belong to a LiDAR-only head; 0: no such head."""
    context: Literal["none", "agents", "mlp"] = "agents"
    """What the 2D head reads besides the pixel's feature: the agents that the pixel belongs to, or, as a control, the
    feature itself through an MLP of the same size."""
    depth: Annotated[Literal["none", "sparse"], Mark.ADDED] = "none"
    """What the 2D branch reads besides the feature maps: nothing, or the depths of the points that the image shows."""
    depth_dropout: Annotated[float, Mark.TRAINING_ONLY, Mark.ADDED] = Field(default=0.2, ge=0, lt=1)
    """Probability that a sample is trained without depth in the 2D branch."""
    queries: Literal["none", "voxels", "agents"] = "none"
    """Learned object queries that refine the 3D decoder (the paper's interface): none, 'voxels' (3D queries alone), or
    'agents' (3D queries that attend to the image queries)."""
    head: Literal["distil", "refine"] = "refine"
    """Features that the 3D heads read with queries 'agents': refined by the 3D queries alone ('distil': no camera
    needed for prediction), or by 3D queries that have read the image queries ('refine')."""
    keys: Literal["agents", "features"] = "agents"
    """What 2D queries attend to: cached agents, or every cell of the feature maps."""
    taps: tuple[str, ...] | None = None
    """Taps to use, in this order, such as [up1, up2, rgb]; null uses all that the cache has."""
    normalise: bool = True
    """Normalise each channel of each tap over each image."""
    tokens: int = Field(default=100, ge=2, le=4096)
    """Learned tokens per query set (N); token 0 is a sink."""
    query_channels: int = Field(default=256, ge=8, le=4096)
    """Width of tokens and queries; a multiple of 8."""
    decoupling: Literal["none", "truncate", "loss"] = "truncate"
    """How local detail is removed from agents and queries: not at all, by truncating the spectrum of each image's
    matrix of them in the forward pass, or by the paper's loss between two sets of queries."""
    rank: int = Field(default=16, ge=1)
    """Directions that decoupling keeps (k); min(tokens, width) or more keeps all."""
    locate_queries: bool = False
    """Bias each voxel's attention, in the finest decoder stage, to the queries that attend to the agents its pixels
    belong to."""
    interface_scale: Annotated[float, Mark.TRAINING_ONLY] = Field(default=1.0, ge=0)
    """Initial weight s of what 3D queries read from the image's (the paper: 0.001)."""
    image_channels: int = Field(default=64, ge=1, le=4096)
    """Width of the 2D branch (D2)."""
    drop_path: Annotated[float, Mark.TRAINING_ONLY] = Field(default=0.1, ge=0, lt=1)
    """Probability to drop a query block's branch in training."""

    @property
    def image(self) -> bool:
        """Whether images are used."""
        return self.variant != "3d-only"

    @property
    def voxel_queries(self) -> bool:
        """Whether 3D object agent queries refine the decoder."""
        return self.variant == "full" and self.queries != "none"

    @property
    def interface(self) -> bool:
        """Whether the image's agents refine the 3D queries."""
        return self.variant == "full" and self.queries == "agents"

    @property
    def injects(self) -> bool:
        """Whether image features are injected into the 3D network."""
        return self.variant == "full" and self.inject != "none"

    @property
    def lidar_branch(self) -> bool:
        """Whether there is a LiDAR-only head with separate decoder stages; not with refined 3D heads."""
        return self.injects and self.lidar_stages > 0 and not self.needs_images

    @property
    def memberships(self) -> bool:
        """Whether the features must include the memberships of pixels in agents."""
        return self.agent_tokens or (self.interface and self.locate_queries)

    @property
    def reads_depth(self) -> bool:
        """Whether the 2D branch reads the depth of the points."""
        return self.image and self.depth != "none"

    @property
    def agent_tokens(self) -> bool:
        """Whether points read the tokens of the agents that their pixels belong to."""
        return self.variant == "full" and (self.context == "agents" or self.inject in ("agents", "both"))

    @property
    def needs_images(self) -> bool:
        """Whether the 3D prediction itself depends on images."""
        return self.interface and self.head == "refine"

    @model_validator(mode="after")
    def _check(self) -> "FusionSettings":
        if self.query_channels % 8:
            raise ValueError(f"query_channels must be a multiple of the 8 attention heads, found {self.query_channels}")
        if self.locate_queries and (self.queries != "agents" or self.keys != "agents"):
            raise ValueError("locate_queries needs queries=agents and keys=agents: other queries attend to no agents")
        if self.taps is not None and (not self.taps or len(set(self.taps)) < len(self.taps)):
            raise ValueError(f"taps must name at least one tap and none twice, found {list(self.taps)}")
        return self


class AugmentSettings(Settings):
    """Augmentation of the points; image features are attached to points and need no augmentation.

    What varies the sensor and what mixes frames (``sensor_augment``, ``mixing``) is off by default.
    """

    rotation_noise: float = Field(default=0.1, ge=0)
    """Standard deviation of the noise on each element of the rotation."""
    flip: Literal["x", "y", "none"] = "x"
    """Axis mirrored with probability one half (KITTI: y)."""
    crop: tuple[int, int] | None = None
    """Train on the points in a window of this height and width, in pixels of extract.image_size, at the bottom of each
    image, at a random horizontal position; null uses the whole image."""
    rotate: bool = True
    """Rotate about z by a random angle."""
    translate: bool = True
    """Move the cloud to a random position in the voxel cube (otherwise to its corner)."""
    mix: Annotated[Mix, Mark.ADDED] = "none"
    """Join a sample with another frame of its domain: 'dense' takes all points of both, the other frame scaled by 0.65
    to 1.5 about the sensor and set on the same ground (after Mix3D); 'polar' a sector of azimuth of each (PolarMix);
    'laser' alternate bands of elevation of each (LaserMix)."""
    mix_share: Annotated[float, Mark.ADDED] = Field(default=0.6, ge=0, le=1)
    """Probability that a sample is mixed, with mix other than 'none'."""
    beam_drop: Annotated[float, Mark.ADDED] = Field(default=0.0, ge=0, le=1)
    """Probability that a sample loses whole beams, up to half of them."""
    early_returns: Annotated[float, Mark.ADDED] = Field(default=0.0, ge=0, le=1)
    """Probability that drops of fog, rain or snow return some beams of a sample early."""
    jitter: Annotated[float, Mark.ADDED] = Field(default=0.0, ge=0)
    """Largest standard deviation in metres of the noise on coordinates; each sample draws its own."""
    scale: Annotated[float, Mark.ADDED] = Field(default=0.0, ge=0)
    """A sample is scaled about the sensor by a factor drawn from 1 / (1 + scale) to 1 + scale."""
    mount_height: Annotated[float, Mark.ADDED] = Field(default=0.0, ge=0)
    """The sensor of a sample is raised or lowered by up to this many metres."""

    @property
    def varies_sensor(self) -> bool:
        """Whether beams, ranges or the mounting of the sensor are varied."""
        return any((self.beam_drop, self.early_returns, self.jitter, self.scale, self.mount_height))

    @model_validator(mode="after")
    def _check(self) -> "AugmentSettings":
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"crop (height, width) must be positive, found {list(self.crop)}")
        return self


class TrainSettings(Settings):
    """Optimiser, loss weights and the loop; a step is one update of the weights."""

    steps: int = Field(default=60_000, ge=1)
    """Steps of training."""
    batch_size: int = Field(default=8, ge=1)
    """Frames per batch; with several processes (torchrun), per process."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches per step, whose gradients are averaged before the update."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of matrix products in training; sparse convolutions use float32 instead of bfloat16."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of Adam."""
    milestones: tuple[int, ...] = (40_000, 50_000)
    """Steps after which the learning rate is divided by 10."""
    lam_src: float = Field(default=1.0, ge=0)
    """Weight of the cross-modal losses on the source."""
    lam_trg: float = Field(default=0.0, ge=0)
    """Weight of the cross-modal losses on the unlabelled target; 0: without it (DG), above 0: UDA."""
    lam_pl: float = Field(default=0.0, ge=0)
    """Weight of the cross entropy with pseudo labels of the target; 0 uses none."""
    teacher: Annotated[Literal["stored", "ema"], Mark.ADDED] = "stored"
    """Source of the pseudo labels: 'stored', the files of xd3d pseudo-label, or 'ema', an exponential moving average of
    the network that starts from train.init and labels each batch of the target."""
    teacher_decay: Annotated[float, Mark.ADDED] = Field(default=0.99, ge=0, lt=1)
    """Weight of the teacher's previous weights in each step of the average."""
    pl_agree: Annotated[bool, Mark.ADDED] = False
    """Keep a pseudo label only where the 2D and the 3D head both predict it; labels of points that no image shows are
    kept."""
    pl_vote: Annotated[bool, Mark.ADDED] = False
    """Keep a pseudo label only where it is the most frequent one of its object agent; agents of more than a tenth of
    the image do not vote."""
    pl_weigh: Annotated[bool, Mark.ADDED] = False
    """Weigh each pseudo label by exp(-KL(2D || 3D)) of the two heads' predictions, where an image shows the point."""
    source_free: bool = False
    """Adapt to the target alone, from train.init; no source data are read."""
    init: Annotated[str | None, Mark.FREE, Mark.ABLATION] = None
    """Run (name or folder) whose best checkpoint this one starts from: all of its network, or the 3D network alone of a
    run of 'xd3d pretrain'."""
    backbone_rate: Annotated[float, Mark.ADDED] = Field(default=1.0, ge=0)
    """Learning rate of the 3D network below its heads, relative to train.lr; 0 freezes it with its statistics."""
    target_norms: Literal["own", "source"] = "own"
    """BatchNorm statistics for the target's batches: their 'own', which also update the running ones (as published), or
    the running ones of the 'source', as in evaluation."""
    lam_dec: float = Field(default=1.0, ge=0)
    """Weight of the decoupling loss; 0 disables it."""
    standardise: bool = True
    """Give queries and voxel features mean 0 and variance 1 before decoupling and agreement compare them (the paper:
    false)."""
    lam_sup: float = Field(default=1.0, ge=0)
    """Weight of the agreement loss between plain and refined 3D features."""
    lam_teacher: float = Field(default=1.0, ge=0)
    """Weight of the cross entropy of the refined features; only with head 'distil'."""
    seed: Annotated[int, Mark.ABLATION] = Field(default=1, ge=0, lt=2**63)
    """Seed of weights, data order and augmentation."""
    shuffle_block: int | None = Field(default=None, ge=1)
    """Consecutive frames that stay together when shuffling, about as many as in a shard: for slow disks; null shuffles
    all frames."""
    validate_every: int = Field(default=2_000, ge=1)
    """Steps between validations."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    workers: Annotated[int, Mark.FREE] = Field(default=2, ge=0, le=256)
    """Threads that prepare batches; 0 prepares them in the main thread."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Mark.FREE, Mark.MACHINE] = "auto"
    """Device of the network."""
    loggers: Annotated[tuple[LoggerName, ...], Mark.FREE] = ()
    """Experiment loggers that get the log and pictures of validation frames too: tensorboard, wandb, mlflow, trackio;
    each needs the extra of its name (pip install 'xd3d[mlflow]')."""

    @property
    def stored_labels(self) -> bool:
        """Whether stored pseudo labels are trained on."""
        return self.lam_pl > 0 and self.teacher == "stored"

    @property
    def uses_target(self) -> bool:
        """Whether each step also trains on a batch of the target."""
        return self.lam_trg > 0 or self.lam_pl > 0

    @model_validator(mode="after")
    def _check(self) -> "TrainSettings":
        if list(self.milestones) != sorted(set(self.milestones)) or any(step < 1 for step in self.milestones):
            raise ValueError(f"milestones must be positive and rise, found {list(self.milestones)}")
        if self.lam_pl == 0 and (self.teacher != "stored" or self.pl_agree or self.pl_vote or self.pl_weigh):
            raise ValueError("teacher=ema, pl_agree, pl_vote and pl_weigh concern pseudo labels: set lam_pl above 0")
        if self.source_free and not self.uses_target:
            raise ValueError(
                "source_free trains on the target alone: set one of its weights, lam_trg and lam_pl, above 0"
            )
        return self
