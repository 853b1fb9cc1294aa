"""Prediction without augmentation, frame by frame: the points of a domain, all points of a sweep, or validation."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ...errors import RunError
from ...prefetch import map_ahead, ring_slots
from ...progress import progress
from ..datasets.frames import Frame
from ..evaluate.official import NO_CLASS
from ..evaluate.scores import FramePrediction, score_frames
from ..evaluate.settings import FusionRule
from ..train.batch import Batch, BatchPlan, cloud_batch
from ..train.checks import check_memberships, check_taps
from ..train.domain import Domain
from ..train.features import feature_readers
from ..train.loader import evaluation_batch
from ..train.loop import ValidationScores
from ..train.network import Network
from ..train.parallel import number_of_processes, rank, total
from ..train.transfer import pin_memory, prefetch, to_device
from .fusion import fused_probabilities

__all__ = ["cloud_classes", "predict_frames", "sweep_classes", "validate"]


def predict_frames(
    network: Network,
    domain: Domain,
    *,
    fusion: FusionRule = "product-prior",
    workers: int = 2,
    description: str = "predict",
) -> Iterator[FramePrediction]:
    """Predict the frames of ``domain`` in order, with a progress bar; restores the network's mode at the end.

    ``fusion`` is the rule of the fused prediction. Without image features, only the 3D head predicts.

    Raises:
        RunError: the features lack a tap of the network or have other channels, or the network's 3D head needs image
            features and there are none.
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

        def make(position: int, slot: int) -> tuple[int, Frame, Batch | None]:
            frame = domain.load(position)
            batch = evaluation_batch(domain, plan, position, frame, readers[slot])
            return position, frame, pin_memory(batch, network.device)

        with (
            progress(description, len(domain), "frame") as bar,
            closing(map_ahead(make, range(len(domain)), workers)) as made,
            closing(prefetch(made, network.device)) as prefetched,
        ):
            for (position, frame, batch), _ in prefetched:
                found = _predict(network, batch, fusion=fusion, with_images=bool(plan.taps))
                distance = np.linalg.norm(frame.points, axis=1)
                yield replace(found, distance=distance, weather=domain.weather(position))
                bar.update(1)
    finally:
        network.train(was_training)


def sweep_classes(
    network: Network, domain: Domain, position: int, prediction: FramePrediction
) -> Int64[np.ndarray, "sweep"]:
    """Returns the class of every point of a whole sweep; ``prediction`` has those of the points the domain uses.

    The other points, which no camera sees, are classified by the 3D head from the whole sweep, or get ``NO_CLASS`` if
    the 3D head needs images; as do points without usable coordinates. The network must be in evaluation mode.
    """
    whole = replace(domain, labelled=False, every_point=True).load(position)
    kept = np.full(len(whole.points), domain.every_point or not domain.index.cameras)
    kept[whole.projection_point] = True
    found = np.full(len(kept), NO_CLASS, np.int64)
    if not (kept.all() or network.needs_images):
        plan = replace(network.plan, taps=())
        found = cloud_classes(network, cloud_batch(whole.points, domain.key(position), plan))
    found[kept] = prediction.decided
    classes = np.full(len(kept) + whole.dropped, NO_CLASS, np.int64)
    classes[whole.source_rows] = found
    return classes


@torch.no_grad()
def cloud_classes(network: Network, batch: Batch) -> Int64[np.ndarray, "points"]:
    """Returns the class of every point of a batch without images, from the 3D head.

    Raises:
        RunError: the network computed NaN or infinite values: it has diverged.
    """
    logits = network(to_device(batch, network.device)).logits_3d
    if not logits.isfinite().all():
        raise RunError(
            f"The network computes NaN or infinite values for {', '.join(batch.keys)}; it has diverged: lower train.lr"
            " and train again"
        )
    return logits.argmax(1).cpu().numpy()


def validate(network: Network, domain: Domain, *, fusion: FusionRule, workers: int) -> ValidationScores:
    """Score ``network`` on every frame of ``domain``; each process predicts a part, and all return the same scores.

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
def _predict(network: Network, batch: Batch | None, *, fusion: FusionRule, with_images: bool) -> FramePrediction:
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
    return FramePrediction(labels=labels, probabilities_2d=images, probabilities_3d=cloud, probabilities_fused=fused)


def _probabilities(logits: Float[Tensor, "points classes"] | None) -> Float[np.ndarray, "points classes"] | None:
    return None if logits is None else logits.softmax(1).cpu().numpy()
