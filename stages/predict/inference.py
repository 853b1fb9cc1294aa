"""Prediction without augmentation, a frame at a time: the kept points of a domain, or every point of a sweep."""

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
from ..evaluate.scores import FramePrediction
from ..evaluate.settings import FusionRule
from ..train.batch import Batch, BatchPlan, cloud_batch
from ..train.buffers import domain_of_each_slot
from ..train.checks import check_memberships, check_taps
from ..train.domain import Domain
from ..train.loader import evaluation_batch
from ..train.network import Network
from ..train.transfer import pin_memory, prefetch, to_device
from .fusion import fused_probabilities

__all__ = ["cloud_classes", "predict_frames", "sweep_classes"]


def predict_frames(
    network: Network,
    domain: Domain,
    *,
    fusion: FusionRule = "product-prior",
    workers: int = 2,
    description: str = "predict",
) -> Iterator[FramePrediction]:
    """Predict the frames of ``domain`` in order, with a progress bar; the network's mode is restored at the end.

    ``fusion`` is the rule of the fused prediction. Without image features only the 3D head predicts, which a network
    whose 3D head needs them refuses.

    Raises:
        RunError: the features lack a tap of the network, or have other channels; or there are none and it needs them.
    """
    plan = _plan(network, domain)
    was_training = network.training
    network.eval()
    try:
        slots = domain_of_each_slot(
            domain, ring_slots(workers), taps=plan.taps, device=network.device, memberships=plan.memberships
        )

        def make(place: int, slot: int) -> tuple[int, Frame, Batch | None]:
            frame = slots[slot].load(place)
            batch = evaluation_batch(slots[slot], plan, place, frame)
            return place, frame, pin_memory(batch, network.device)

        with (
            progress(description, len(domain), "frame") as bar,
            closing(map_ahead(make, range(len(domain)), workers)) as made,
            closing(prefetch(made, network.device)) as prefetched,
        ):
            for (place, frame, batch), _ in prefetched:
                found = _predict(network, batch, fusion=fusion, with_images=bool(plan.taps))
                distance = np.linalg.norm(frame.points, axis=1)
                yield replace(found, distance=distance, weather=domain.weather(place))
                bar.update(1)
    finally:
        network.train(was_training)


def sweep_classes(
    network: Network, domain: Domain, position: int, prediction: FramePrediction
) -> Int64[np.ndarray, "sweep"]:
    """The class of every point of a whole sweep, of which ``prediction`` knows those that the domain keeps.

    The others, which no camera sees, get theirs from the 3D head, which is given the whole sweep; from a network whose
    3D head needs images they get ``NO_CLASS``. The network must be in evaluation mode.
    """
    whole = replace(domain, labelled=False, every_point=True).load(position)
    kept = np.full(len(whole.points), domain.every_point or not domain.index.cameras)
    kept[whole.projection_point] = True
    classes = np.full(len(kept), NO_CLASS, np.int64)
    if not (kept.all() or network.needs_images):
        plan = replace(network.plan, taps=())
        classes = cloud_classes(network, cloud_batch(whole.points, domain.key(position), plan))
    classes[kept] = prediction.decided
    return classes


@torch.no_grad()
def cloud_classes(network: Network, batch: Batch) -> Int64[np.ndarray, "points"]:
    """The class of every point of a batch without images, by the 3D head.

    Raises:
        RunError: the network computed NaN: it has diverged.
    """
    logits = network(to_device(batch, network.device)).logits_3d
    if not logits.isfinite().all():
        raise RunError(
            f"The network computes NaN or infinite values for {', '.join(batch.keys)}; it has diverged: lower train.lr"
            " and train again"
        )
    return logits.argmax(1).cpu().numpy()


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
    if fusion != "sum" or images is not None:  # there is no xM without an image
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
