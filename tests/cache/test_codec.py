import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_encoder import encode
from xd3d.cache.codec import E4M3, decode

FINITE = np.flatnonzero(np.isfinite(E4M3))
SMALLEST = 2.0**-24


def brute_force(channel):
    """Offset, scale and values of one float16 channel by the words of the specification, searched in all 254 codes."""
    values = channel.astype(np.float64)
    mean, power = values.mean(), np.square(channel.astype(np.float32)).mean(dtype=np.float64)
    offset = np.float16(mean) if mean**2 > power / 4 else np.float16(0)
    rest = (channel.astype(np.float32) - np.float32(offset)).astype(np.float64)
    scale = SMALLEST if rest.any() else 0.0
    while np.abs(rest).max() > 448 * scale:
        scale *= 2
    decoded = []
    for value in rest / (scale or 1.0):
        distance = np.abs(E4M3[FINITE].astype(np.float64) - value)
        nearest = FINITE[distance == distance.min()]
        decoded.append(E4M3[min(nearest, key=lambda code: code & 1)])
    return np.array(decoded, np.float32) * np.float32(scale) + np.float32(offset)


KINDS = {
    "zeros": lambda rng, n: np.zeros(n),
    "constant": lambda rng, n: np.full(n, rng.choice([7.001, -65504, 2.0**-24, 1e-6])),
    "mild": lambda rng, n: rng.standard_normal(n),
    "tiny": lambda rng, n: 1e-6 * rng.standard_normal(n),
    "huge": lambda rng, n: 1e4 * rng.standard_normal(n),
    "largest": lambda rng, n: rng.choice([-65504, 65504], n),
    "heavy": lambda rng, n: rng.standard_t(1.5, n),
    "far": lambda rng, n: 1e4 + rng.standard_normal(n),
    "outlier": lambda rng, n: np.where(np.arange(n) == n // 2, 1e4, 1e-3 * rng.standard_normal(n)),
    "ties": lambda rng, n: np.append(448, rng.integers(-64, 64, n - 1) / 512),
    "bits": lambda rng, n: np.nan_to_num(rng.integers(0, 2**16, n, np.uint16).view(np.float16), posinf=1, neginf=1),
}


@st.composite
def maps(draw):
    """Images whose channels differ in kind, float16 [images, channels, height, width]."""
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4))
    images, height, width = draw(st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = [[KINDS[kind](rng, height * width) for kind in kinds] for _ in range(images)]
    return np.clip(values, -65504, 65504).astype(np.float16).reshape(images, len(kinds), height, width)


def test_the_table_holds_the_values_of_float8_e4m3fn():
    codes = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(E4M3, codes.view(torch.float8_e4m3fn).float().numpy())


@settings(max_examples=150, deadline=None)
@given(maps())
def test_codes_are_those_of_a_search_through_all_values_and_nan_never_comes_out(values):
    codes, scales = encode(values, 1)
    assert not (codes & 127 == 127).any()
    assert np.isfinite(scales).all()
    decoded = decode(codes, scales, 1)
    expected = [[brute_force(channel.ravel()) for channel in image] for image in values]
    np.testing.assert_array_equal(decoded, np.reshape(expected, values.shape))
    offset, scale = (scales[:, place, :, None, None].astype(np.float64) for place in (1, 0))
    distance = np.abs(values.astype(np.float64) - offset)
    # Half a step of three bits of mantissa, or half a step of the smallest codes.
    assert (np.abs(decoded - values) <= np.maximum(distance / 16, scale / 1024) * (1 + 1e-6)).all()


@settings(max_examples=30, deadline=None)
@given(maps())
def test_the_code_of_an_image_depends_on_it_alone_and_not_on_where_its_channels_lie(values):
    codes, scales = encode(values, 1)
    for row in range(len(values)):
        one, of_one = encode(values[row : row + 1], 1)
        assert one.tobytes() + of_one.tobytes() == codes[row].tobytes() + scales[row].tobytes()
    last = np.moveaxis(values.reshape(*values.shape[:2], -1), 1, 2)
    for memory in (last, np.ascontiguousarray(last), np.asfortranarray(last)):
        moved, of_moved = encode(memory, 2)
        assert moved.flags.c_contiguous
        np.testing.assert_array_equal(np.moveaxis(moved, 2, 1), codes.reshape(*codes.shape[:2], -1))
        np.testing.assert_array_equal(of_moved, scales)
        np.testing.assert_array_equal(
            decode(moved, of_moved, 2), np.moveaxis(decode(codes, scales, 1), 1, -1).reshape(moved.shape)
        )


def test_what_is_left_after_normalisation_keeps_its_precision_in_a_channel_far_from_zero():
    rng = np.random.default_rng(0)
    values = (1e4 * np.sign(rng.standard_normal((1, 64, 1, 1))) + 40 * rng.standard_normal((1, 64, 20, 30))).astype(
        "f2"
    )
    decoded = decode(*encode(values, 1), 1)
    first, second = (v - v.mean((2, 3), keepdims=True) for v in (values.astype(np.float64), decoded.astype(np.float64)))
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    assert cosine.mean() > 0.9995
    assert np.percentile(cosine, 1) > 0.999


def test_a_few_huge_values_take_no_precision_from_the_others():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 200, 4, 7)).astype(np.float16)
    values[0, np.arange(200).repeat(2), rng.integers(0, 4, 400), rng.integers(0, 7, 400)] = 1e4
    ordinary = values < 1e3
    decoded = decode(*encode(values, 1), 1)
    assert (np.abs(decoded - values)[ordinary] <= np.abs(values[ordinary]) / 16 + 32 / 1024).all()
