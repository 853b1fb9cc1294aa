"""From light to picture: rain before the lens, glare, blur, white balance, tone and sensor noise."""

import cv2
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from .knobs import Style

__all__ = ["develop", "soften_edges"]


def develop(
    style: Style, radiance: Float32[np.ndarray, "H W 3"], glow: Float32[np.ndarray, "H W 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Turn radiance (with the part given off by lamps, ``glow``, that spreads as glare) into an 8-bit RGB picture."""
    imaging = style.imaging
    width = radiance.shape[1]
    image = radiance
    if glow.max() > 0:
        height = radiance.shape[0]
        small = cv2.resize(glow, (max(width // 4, 1), max(height // 4, 1)), interpolation=cv2.INTER_AREA)
        spread = cv2.GaussianBlur(small, (0, 0), width / 440) + 0.6 * cv2.GaussianBlur(small, (0, 0), width / 140)
        image = image + 0.45 * cv2.resize(spread, (width, height), interpolation=cv2.INTER_LINEAR)
    if style.light.weather == "rain":
        image = _rain(image, np.array(style.light.air, np.float32), rng)
    image = np.clip(image, 0, 1)
    blur = imaging.blur * width / 400
    if blur > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    image = np.clip(image * np.array(imaging.white_balance, np.float32), 0, 1) ** np.float32(imaging.gamma)
    image = image + np.float32(imaging.noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def soften_edges(radiance: Float32[np.ndarray, "H W 3"], surface: Int32[np.ndarray, "H W"]) -> None:
    """Blend, in place, the pixels where one ``surface`` ends and another begins, as a real pixel's area would."""
    edge = np.zeros(surface.shape, bool)
    across, down = surface[:, 1:] != surface[:, :-1], surface[1:] != surface[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    blended = cv2.GaussianBlur(np.minimum(radiance, 1.0), (3, 3), 0.6)
    radiance[edge] = blended[edge]


def _rain(image: np.ndarray, air: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    streaks = np.zeros((height, width), np.float32)
    lean, scale = rng.uniform(-0.2, 0.2), width / 400
    for _ in range(int(rng.integers(80, 260))):
        x, y = rng.uniform(0, width), rng.uniform(-10, height)
        long, strength = rng.uniform(6, 22) * scale, rng.uniform(0.08, 0.4)
        cv2.line(streaks, (int(x), int(y)), (int(x + lean * long), int(y + long)), strength, 1)
    part = 0.5 * cv2.GaussianBlur(streaks, (0, 0), 0.6)[..., None]
    return image * (1 - part) + part * np.clip(air * np.float32(1.25) + np.float32(0.03), 0, 1)
