"""Prediction without augmentation, frame by frame: the points of a domain, clouds without images, or validation."""

from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import CacheError, DataError, MissingDataError, ModelError, RunError, Xd3dError
from ...prefetch import map_ahead, ring_slots
from ...progress import progress
from ..datasets.frames import Frame
from ..evaluate.scores import FramePrediction, score_frames
from ..evaluate.settings import FusionRule
from ..train.batch import Batch, BatchPlan
from ..train.checks import check_memberships, check_taps
from ..train.device_transfer import pin_memory, prefetch, to_device
from ..train.domain import Domain
from ..train.features import feature_readers
from ..train.loader import evaluation_batch
from ..train.located_agents import strongest_agents
from ..train.loop import ValidationScores
from ..train.network import Network
from ..train.parallel import number_of_processes, rank, total
from .adapted_norms import adapted_norms
from .fusion import fused_probabilities

__all__ = [
    "PredictedFrame",
    "cloud_logits",
    "divergence",
    "predict_batch",
    "predict_each",
    "predict_frames",
    "validate",
]

LARGEST_AGENT = 0.1  #: fraction of the image up to which an agent counts as an object
#: What is wrong with one frame alone.
FRAME_FAULTS = (DataError, MissingDataError, CacheError, ModelError)


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedFrame:
    """The frame at ``position`` of a domain and its prediction; or ``fault``, why there is none."""

    position: int
    frame: Frame | None = None
    prediction: FramePrediction | None = None
    fault: Xd3dError | None = None


def predict_frames(
    network: Network,
    domain: Domain,
    *,
    fusion: FusionRule = "product-prior",
    norm_window: int | None = None,
    workers: int = 2,
    description: str = "predict",
) -> Iterator[FramePrediction]:
    """Predicts the frames of ``domain`` in order, with a progress bar; restores the network's mode at the end.

    ``fusion`` is the rule of the fused prediction. Without image features, only the 3D head predicts. With a
    ``norm_window`` the network is adapted to so many frames (``adapted_norms``) until the last one is predicted.

    Raises:
        RunError: the features lack a tap of the network or have other channels, or the network's 3D head needs image
            features and there are none.
        DataError, MissingDataError, CacheError, ModelError: a frame cannot be read, or lacks features.
    """
    with closing(
        predict_each(network, domain, fusion=fusion, norm_window=norm_window, workers=workers, description=description)
    ) as each:
        for found in each:
            if found.prediction is None:
                raise found.fault or RunError(f"There is no prediction of frame {domain.key(found.position)}")
            yield found.prediction


def predict_each(
    network: Network,
    domain: Domain,
    *,
    fusion: FusionRule = "product-prior",
    norm_window: int | None = None,
    workers: int = 2,
    description: str = "predict",
    done: int = 0,
) -> Generator[PredictedFrame, None, None]:
    """Predicts like ``predict_frames``; a frame that cannot be read is yielded with its fault, and the next follows.

    ``done`` frames before these count as finished on the progress bar.

    Raises:
        RunError: as for ``predict_frames``.
    """
    plan = _plan(network, domain)
    was_training = network.training
    network.eval()
    try:
        readers = feature_readers(
            domain.features,
            ring_slots(workers),
            taps=plan.taps,
            pinned=network.device.type == "cuda",
            memberships=plan.memberships,
        )

        def make(position: int, slot: int) -> tuple[PredictedFrame, Batch | None]:
            try:
                frame = domain.load(position)
                batch = evaluation_batch(domain, plan, position, frame, readers[slot])
            except FRAME_FAULTS as error:
                return PredictedFrame(position=position, fault=error), None
            return PredictedFrame(position=position, frame=frame), pin_memory(batch, network.device)

        with (
            adapted_norms(network, norm_window) if norm_window else nullcontext(),
            progress(description, done + len(domain), "frame", done) as bar,
            closing(map_ahead(make, range(len(domain)), workers)) as made,
            closing(prefetch(made, network.device)) as prefetched,
        ):
            for (read, batch), _ in prefetched:
                if read.frame is None:
                    yield read
                else:
                    found = predict_batch(network, batch, fusion=fusion, with_images=bool(plan.taps))
                    distance = np.linalg.norm(read.frame.points, axis=1)
                    weather, dropped = domain.weather(read.position), read.frame.dropped
                    found = replace(found, distance=distance, weather=weather, dropped=dropped)
                    yield replace(read, prediction=found)
                bar.update(1)
    finally:
        network.train(was_training)


@torch.no_grad()
def cloud_logits(network: Network, batch: Batch) -> Float[Tensor, "points classes"]:
    """Returns the logits of the 3D head for every point of a batch without images, on the CPU.

    Raises:
        RunError: the network computed NaN or infinite values: it has diverged.
    """
    logits = network(to_device(batch, network.device)).logits_3d
    if not logits.isfinite().all():
        raise divergence(", ".join(batch.keys))
    return logits.cpu()


def divergence(keys: str) -> RunError:
    """Returns the error of a network that computes NaN or infinite values for the frames ``keys``."""
    return RunError(
        f"The network computes NaN or infinite values for {keys}; it has diverged: lower train.lr and train again"
    )


def validate(network: Network, domain: Domain, *, fusion: FusionRule, workers: int) -> ValidationScores:
    """Scores ``network`` on every frame of ``domain``; each process predicts a part, and all return the same scores.

    ``fusion`` is the rule of the fused prediction.
    """
    shares = number_of_processes() if len(domain) >= number_of_processes() else 1  # otherwise each predicts all of them
    part = replace(domain, frames=domain.frames[rank() % shares :: shares])
    predictions = predict_frames(network, part, fusion=fusion, workers=workers, description="validate")
    metrics = score_frames(predictions, network.classes)
    if shares > 1:
        confusion = {
            modality: total(torch.from_numpy(counts).to(network.device)).cpu().numpy()
            for modality, counts in metrics.confusion.items()
        }
        metrics = replace(metrics, frames=len(domain), confusion=confusion, parts={})
    if not metrics.points:
        return ValidationScores(points=0, miou={}, iou={})
    return ValidationScores(
        points=metrics.points,
        miou={str(modality): value for modality, value in metrics.miou.items()},
        iou={name: {str(modality): v for modality, v in values.items()} for name, values in metrics.iou.items()},
    )


def _plan(network: Network, domain: Domain) -> BatchPlan:
    if domain.features is None:
        if network.needs_images:
            raise RunError(
                "This network needs image features (fusion.head=refine), and the domain has none; extract them first"
            )
        return replace(network.plan, taps=())
    check_taps(network.tap_channels, domain.features)
    check_memberships(network.fusion, domain.features)
    if len(domain.index.cameras) > network.cameras and network.fusion.interface:
        raise RunError(
            f"The network was trained with {network.cameras} camera(s), and this index has {len(domain.index.cameras)};"
            " prepare it with as many"
        )
    return network.plan


@torch.no_grad()
def predict_batch(
    network: Network, batch: Batch | None, *, fusion: FusionRule, with_images: bool = True
) -> FramePrediction:
    """Predicts the points of a batch on the network's device; ``fusion`` is the rule of the fused prediction.

    Labels and agents are int64 [P], the probabilities of the heads float32 [P, C], the fused ones float64 [P, C].
    ``batch`` None is a frame without points; its 2D prediction is empty, or None without ``with_images``. A point of no
    class is predicted as no class: its rows of probabilities are 0, and its agent is -1.
    """
    agents = None
    if batch is None:
        none = np.zeros((0, len(network.classes)), np.float32)
        labels, images, cloud, lidar, weight = np.zeros(0, np.int64), none if with_images else None, none, None, None
    else:
        output = network(batch)
        labels, cloud = batch.labels.cpu().numpy(), output.logits_3d.softmax(1).cpu().numpy()
        images, lidar = _probabilities(output.logits_2d), _probabilities(output.logits_lidar)
        weight = None if output.image_weight is None else output.image_weight.cpu().numpy()
        if images is not None and batch.shown is not None:
            images[~batch.shown.cpu().numpy()] = 0
        found = None if batch.images is None else strongest_agents(batch.images, most=LARGEST_AGENT)
        agents = None if found is None else found.cpu().numpy()
    fused = None
    if fusion != "sum" or images is not None:  # xM needs an image
        fused = fused_probabilities(
            fusion,
            cloud,
            probabilities_2d=images,
            probabilities_lidar=lidar,
            image_weight=weight,
            prior=network.prior,
        )
    if batch is not None and batch.classless is not None:
        rows = batch.classless.cpu().numpy()
        for values, absent in ((images, 0), (cloud, 0), (fused, 0), (agents, -1)):
            if values is not None:
                values[rows] = absent
    return FramePrediction(
        labels=labels, probabilities_2d=images, probabilities_3d=cloud, probabilities_fused=fused, agents=agents
    )


def _probabilities(logits: Float[Tensor, "points classes"] | None) -> Float[np.ndarray, "points classes"] | None:
    return None if logits is None else logits.softmax(1).cpu().numpy()
