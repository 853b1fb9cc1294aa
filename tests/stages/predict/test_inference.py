from dataclasses import replace

import numpy as np
import pytest
import torch
from xd3d.cache.schema import TapSpec
from xd3d.errors import RunError
from xd3d.stages.datasets.labels import class_prior, class_weights, get_merge
from xd3d.stages.datasets.readers import READERS
from xd3d.stages.datasets.splits import domain_frames
from xd3d.stages.evaluate.official import NO_CLASS
from xd3d.stages.predict.fusion import fused_probabilities
from xd3d.stages.predict.inference import cloud_logits, predict_frames
from xd3d.stages.predict.whole_sweeps import sweep_prediction
from xd3d.stages.synthesize.twins import synthesize_twin
from xd3d.stages.train.batch import cloud_batch
from xd3d.stages.train.domain import Domain
from xd3d.stages.train.loader import evaluation_batch
from xd3d.stages.train.record import build_network, make_record
from xd3d.stages.train.settings import AugmentSettings, ModelSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_point_of_every_frame_is_predicted_in_order(make_domain, make_network):
    domain = make_domain(frames=3, cameras=2)
    network = make_network(domain)
    found = list(predict_frames(network, domain))
    assert network.training, "the mode must be given back"
    assert len(found) == 3
    for position, prediction in enumerate(found):
        assert np.array_equal(prediction.labels, domain.load(position).labels)
        for probabilities in (prediction.probabilities_2d, prediction.probabilities_3d):
            assert probabilities.shape == (len(prediction.labels), 6)
            np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    again = list(predict_frames(network, domain, workers=0))
    assert all(np.array_equal(a.probabilities_3d, b.probabilities_3d) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("rule", ["product-prior", "product", "sum"])
def test_all_that_the_network_says_of_a_point_is_fused_by_the_rule(make_domain, make_network, monkeypatch, rule):
    domain = make_domain(frames=2)
    network = make_network(domain)
    network.prior = np.array([0.3, 0.3, 0.2, 0.1, 0.1, 0.0])
    generator = torch.Generator().manual_seed(1)
    plain, said = type(network).forward, []

    def forward(self, batch):
        output = plain(self, batch)
        points, classes = output.logits_3d.shape
        lidar, weight = torch.randn(points, classes, generator=generator), torch.rand(points, generator=generator)
        said.append((lidar, weight))
        return replace(output, logits_lidar=lidar, image_weight=weight)

    monkeypatch.setattr(type(network), "forward", forward)
    for prediction, (lidar, weight) in zip(list(predict_frames(network, domain, fusion=rule)), said, strict=True):
        expected = fused_probabilities(
            rule,
            prediction.probabilities_3d,
            probabilities_2d=prediction.probabilities_2d,
            probabilities_lidar=lidar.softmax(1).numpy(),
            image_weight=weight.numpy(),
            prior=network.prior,
        )
        np.testing.assert_array_equal(prediction.probabilities_fused, expected)
        np.testing.assert_array_equal(prediction.decided, expected.argmax(1))
        assert (prediction.decided != 5).all() or rule != "product-prior"


def test_the_sum_decides_as_xm_does_and_as_the_3d_head_without_an_image(make_domain, make_network, tiny_domains):
    domain = make_domain(frames=2)
    network = make_network(domain)
    for prediction in predict_frames(network, domain, fusion="sum"):
        both = prediction.probabilities_2d + prediction.probabilities_3d
        np.testing.assert_array_equal(prediction.decided, both.argmax(1))
    blind = tiny_domains.open_domain(domain.index.root, frames=2, lidar_only=True)
    for prediction in predict_frames(network, blind, fusion="sum"):
        assert prediction.probabilities_fused is None
        np.testing.assert_array_equal(prediction.decided, prediction.probabilities_3d.argmax(1))
    for prediction in predict_frames(network, blind):
        assert prediction.probabilities_fused.shape == prediction.probabilities_3d.shape


def test_the_prior_of_a_network_is_that_of_its_record(make_domain, small_fusion, train_settings):
    domain, model, fusion = make_domain(frames=2), ModelSettings(preset="slim", backend="torch"), small_fusion()
    record = make_record(
        model=model,
        fusion=fusion,
        augment=AugmentSettings(),
        settings=train_settings(),
        source=domain,
        target=None,
        validation=None,
        init=None,
        taps=domain.features.taps,
        facts={},
    )
    parts = {"model": model, "fusion": fusion, "taps": domain.features.taps, "device": torch.device("cpu")}
    counts = [500, 0, 20, 3, 100, 9]
    network = build_network({**record, "class_counts": counts}, **parts)
    expected = class_prior(np.array(counts), class_weights(np.array(counts)))
    np.testing.assert_array_equal(network.prior, expected)
    assert build_network(record, **parts).prior is None


def test_distil_needs_no_features_and_refine_says_that_it_does(make_domain, make_network, tiny_domains, paper):
    domain = make_domain(frames=2)
    blind = tiny_domains.open_domain(domain.index.root, frames=2, lidar_only=True)
    network = make_network(domain, head="distil", **paper)
    with_camera, without = list(predict_frames(network, domain)), list(predict_frames(network, blind))
    for one, other in zip(with_camera, without, strict=True):
        assert np.array_equal(one.probabilities_3d, other.probabilities_3d)
        assert other.probabilities_2d is None
    with pytest.raises(RunError, match=r"fusion\.head=refine"):
        next(predict_frames(make_network(domain, head="refine", **paper), blind))


def test_without_features_the_lidar_only_reading_is_the_prediction(make_domain, make_network, make_batch, tiny_domains):
    domain = make_domain(frames=2)
    blind = tiny_domains.open_domain(domain.index.root, frames=2, lidar_only=True)
    network = make_network(domain)
    torch.nn.init.normal_(network.injection.project.weight)
    predictions = list(predict_frames(network, blind))
    network.eval()
    for position, prediction in enumerate(predictions):
        with torch.no_grad():
            output = network(evaluation_batch(domain, network.plan, position))
        assert prediction.probabilities_2d is None
        np.testing.assert_array_equal(prediction.probabilities_3d, output.logits_lidar.softmax(1))
        assert not np.allclose(prediction.probabilities_3d, output.logits_3d.softmax(1))


def test_a_frame_that_no_camera_sees_has_an_empty_prediction(make_domain, make_network):
    domain = make_domain(frames=2)
    domain.index.images.camera_from_lidar[1, 2] *= -1  # the second camera looks backwards
    predictions = list(predict_frames(make_network(domain), domain))
    assert [len(prediction.labels) > 0 for prediction in predictions] == [True, False]
    assert predictions[1].probabilities_2d.shape == predictions[1].probabilities_fused.shape == (0, 6)


def test_features_of_other_taps_or_width_are_refused_by_name(make_domain, make_network):
    domain = make_domain(frames=1)
    network = make_network(domain)
    wide = TapSpec(name="up2", channels=9, height=6, width=10, extent=(5.625, 10.0))
    domain.features.taps = {**domain.features.taps, "up2": wide}
    with pytest.raises(RunError, match=r"up2 with 8 channels.*9 channels"):
        next(predict_frames(network, domain))
    domain.features.taps = {"up1": domain.features.taps["up1"]}
    with pytest.raises(RunError, match=r"only up1"):
        next(predict_frames(network, domain))


def test_more_cameras_than_it_was_trained_with_are_refused_by_queries_that_tell_them_apart(make_domain, make_network):
    one, two = make_domain(frames=1), make_domain(frames=1, cameras=2)
    with pytest.raises(RunError, match=r"with 1 camera.*has 2"):
        next(predict_frames(make_network(one, queries="agents"), two))
    prediction = next(predict_frames(make_network(one), two))
    assert prediction.probabilities_3d.shape == (len(two.load(0).points), 6)


def decided(network, domain, prediction):
    whole = sweep_prediction(network, domain, 0, domain.load(0), prediction)
    return whole.classes(whole.decisive)


@pytest.mark.parametrize("form", ["default", "paper"])
def test_points_that_no_camera_sees_get_the_class_of_the_3d_head_where_it_needs_no_image(
    make_domain, make_network, paper, form
):
    domain = make_domain(frames=1)
    domain.index.images.intrinsics[:, 0, 0] *= 4  # a narrow view: some points lie beside the image
    network = make_network(domain, **({"head": "distil", **paper} if form == "paper" else {})).eval()
    prediction = next(predict_frames(network, domain))
    seen = domain.load(0).source_rows
    classes = decided(network, domain, prediction)
    assert 0 < len(seen) < len(classes) == 300
    np.testing.assert_array_equal(classes[seen], prediction.decided)
    whole = cloud_batch(replace(domain, every_point=True).load(0).points, "", replace(network.plan, taps=()))
    expected = cloud_logits(network, whole).argmax(1).numpy()
    expected[seen] = prediction.decided
    np.testing.assert_array_equal(classes, expected)
    refine = make_network(domain, head="refine", **paper).eval()
    classes = decided(refine, domain, prediction)
    assert (np.delete(classes, seen) == NO_CLASS).all()
    np.testing.assert_array_equal(classes[seen], prediction.decided)


def test_predictions_know_their_weather_and_how_far_their_points_are(make_network, tmp_path):
    root = synthesize_twin(tmp_path / "stf", dataset="semanticstf", frames=8, azimuth_steps=90, workers=1)
    index = READERS["semanticstf"].build_index(root)
    merge, rows = get_merge("semantickitti-19", "semanticstf"), domain_frames(index, "all", "test")
    domain = Domain(index=index, frames=rows, merge=merge, every_point=True)
    found = list(predict_frames(make_network(domain, variant="3d-only"), domain, workers=0))
    assert [each.weather for each in found] == index.frames.description[rows].tolist()
    assert {each.weather for each in found} <= {"dense_fog", "light_fog", "rain", "snow"}
    np.testing.assert_allclose(found[0].distance, np.linalg.norm(domain.load(0).points, axis=1))
