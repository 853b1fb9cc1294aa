from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy_encoder import encode
from xd3d.cache import codec
from xd3d.cache.schema import TapSpec
from xd3d.stages.train.images import ImageBatch, coverage, decode
from xd3d.stages.train.ragged import Ragged

SPEC = TapSpec(name="up1", channels=3, height=4, width=5, extent=(3.0, 4.5))


def image_batch(values, agents):
    return ImageBatch(
        specs={"up1": SPEC},
        maps={"up1": values},
        agents={"up1": agents},
        geometry=torch.rand(2, 6, 5),
        sample=torch.tensor([0, 1]),
        camera=torch.tensor([0, 0]),
        projection_point=torch.zeros(0, dtype=torch.int64),
        projection_view=torch.zeros(0, dtype=torch.int64),
        projection_uv=torch.zeros(0, 2),
        view_counts=torch.zeros(0, dtype=torch.int64),
        layout=Ragged.of(torch.tensor([0, 1]), 2),
    )


def test_coverage_counts_the_part_of_each_cell_on_the_image():
    assert coverage(5, 2.25).tolist() == [1.0, 1.0, 0.25, 0.0, 0.0]


def test_normalisation_is_that_of_the_image_without_its_padding():
    torch.manual_seed(0)
    values = (50 + 20 * torch.randn(2, 3, 4, 5)).half()
    values[:, :, 3] = 6e4  # the padding must not count
    agents = (50 + torch.randn(2, 6, 3)).half()
    done = image_batch(values, agents).prepared(normalise=True)
    weights = np.outer([1, 1, 1, 0], [1, 1, 1, 1, 0.5])
    for view in range(2):
        for channel in range(3):
            raw = values[view, channel].double().numpy()
            mean = np.average(raw, weights=weights)
            deviation = np.sqrt(np.average((raw - mean) ** 2, weights=weights))
            np.testing.assert_allclose(
                done.maps["up1"][view, channel, :3], ((raw - mean) / deviation)[:3], rtol=1e-4, atol=1e-5
            )
            np.testing.assert_allclose(
                done.agents["up1"][view, :, channel],
                (agents[view, :, channel].double().numpy() - mean) / deviation,
                rtol=1e-4,
                atol=1e-5,
            )


def test_a_constant_channel_becomes_zero_and_never_nan():
    values = torch.full((2, 3, 4, 5), 7.0).half()
    done = image_batch(values, torch.full((2, 6, 3), 7.0).half()).prepared(normalise=True)
    assert not done.maps["up1"].any()
    assert not done.agents["up1"].any()


def test_without_normalisation_colours_become_0_to_1_and_nothing_else_changes():
    values = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    agents = torch.randn(2, 6, 3).half()
    colours = replace(image_batch(values, agents), specs={"up1": replace(SPEC, dtype="uint8")})
    done = colours.prepared(normalise=False)
    assert done.maps["up1"].dtype == torch.float32
    torch.testing.assert_close(done.maps["up1"], values.float() / 255)
    assert torch.equal(done.agents["up1"], agents.float())
    raw = 1e4 * torch.randn(2, 3, 4, 5).half()
    assert torch.equal(image_batch(raw, agents).prepared(normalise=False).maps["up1"], raw.float())


@pytest.mark.parametrize("scale", [0.01, 1.0, 1000.0])
def test_normalised_features_do_not_depend_on_scale_and_offset(scale):
    torch.manual_seed(0)
    values = torch.randn(2, 3, 4, 5)
    agents = torch.randn(2, 6, 3)
    done = image_batch(values, agents).prepared(normalise=True)
    other = image_batch(values * scale + scale, agents * scale + scale).prepared(normalise=True)
    torch.testing.assert_close(done.maps["up1"], other.maps["up1"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(done.agents["up1"], other.agents["up1"], rtol=1e-3, atol=1e-3)


def test_every_code_is_decoded_bit_for_bit_as_the_cache_does():
    codes = np.delete(np.arange(256, dtype=np.uint8), [127, 255])
    scales = np.float16(2.0) ** np.arange(-24, 10)
    offsets = np.float16([0, -0.0, 7.001, -65504, 2**-24, 1e-3])
    pairs = np.array([[(scale, offset) for scale in scales for offset in offsets]]).astype(np.float16).swapaxes(1, 2)
    maps = np.tile(codes.reshape(1, 1, 2, 127), (1, pairs.shape[2], 1, 1))
    agents = np.ascontiguousarray(maps.reshape(1, -1, 254).swapaxes(1, 2))
    for values, axis in ((maps, 1), (agents, 2)):
        ours = decode(torch.from_numpy(values), torch.from_numpy(pairs), axis).numpy()
        assert ours.dtype == np.float32
        assert ours.tobytes() == codec.decode(values, pairs, axis).tobytes()


def test_codes_are_decoded_where_they_are_normalised():
    torch.manual_seed(0)
    values, agents = ((1000 + 20 * torch.randn(shape)).half().numpy() for shape in ((2, 3, 4, 5), (2, 6, 3)))
    coded = {"features/up1": encode(values, 1), "agents/up1": encode(agents, 2)}
    (maps, _), (queries, _) = coded.values()
    batch = replace(
        image_batch(torch.from_numpy(maps), torch.from_numpy(queries)),
        scales={name: torch.from_numpy(scales) for name, (_, scales) in coded.items()},
    )
    decoded = [codec.decode(*coded[name], axis) for name, axis in (("features/up1", 1), ("agents/up1", 2))]
    for normalise in (False, True):
        done = batch.prepared(normalise=normalise)
        expected = image_batch(*map(torch.from_numpy, decoded)).prepared(normalise=normalise)
        assert torch.equal(done.maps["up1"], expected.maps["up1"])
        assert torch.equal(done.agents["up1"], expected.agents["up1"])
