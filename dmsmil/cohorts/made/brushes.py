"""What slides are painted with, made once a process: textures that tile, and nuclei to stamp."""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np

DIRECTIONS = 4  # of fibres
RADII = np.arange(5.0, 15.5, 0.5)  # px, of the nuclei of a tumour
VARIANTS = 12  # of each
GRANULAR, SMOOTH = (0.55, 0.34, 0.65), (0.115, 1.0, 2.0)  # how much chromatin varies, and between which sizes in px
SMOOTH_INK = 147.8  # of 150: what varies more lets more light through


def _smooth(rng, n, along, across, angle=0.0):
    """Noise (n, n) that tiles, smoothed by `along` px in direction `angle`, by `across` px athwart it; deviation 1."""
    fx, fy = np.meshgrid(np.fft.rfftfreq(n), np.fft.fftfreq(n))
    u, v = fx * math.cos(angle) + fy * math.sin(angle), fy * math.cos(angle) - fx * math.sin(angle)
    keep = np.exp(-2 * np.pi**2 * ((along * u) ** 2 + (across * v) ** 2))
    keep[0, 0] = 0
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) * keep, (n, n))
    return (noise / noise.std()).astype(np.float32)


@cache
def textures() -> dict[str, np.ndarray]:
    """Tileable uint8 textures of 1024 px: `fibres` (DIRECTIONS of them), `grain` and the camera's `noise`."""
    n, rng = 1024, np.random.default_rng(1)

    def to_uint8(values, mean, scale):
        return np.clip(mean + scale * values / values.std(), 0, 255).astype(np.uint8)

    y, x = np.mgrid[:n, :n].astype(np.float32)
    fibres = []
    for k in range(DIRECTIONS):
        angle = k * np.pi / DIRECTIONS
        bundle = _smooth(rng, n, 30, 1.5, angle) + 0.9 * _smooth(rng, n, 60, 5, angle) + 0.35 * _smooth(rng, n, 1, 1)
        sway = 11 * _smooth(rng, n, 45, 45) + 7 * _smooth(rng, n, 22, 22)
        bundle = cv2.remap(
            bundle,
            x - sway * np.float32(math.sin(angle)),
            y + sway * np.float32(math.cos(angle)),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        )
        fibres.append(to_uint8(bundle, 128, 38))
    return dict(
        fibres=fibres,
        grain=to_uint8(_smooth(rng, n, 1.3, 1.3) + 0.7 * _smooth(rng, n, 5, 5), 128, 32),
        noise=to_uint8(rng.standard_normal((n, n)), 250, 1.6),
    )


def _nucleus(rng, length, width, angle, ink, vesicular, clumps, fine=1.3, coarse=0.0):
    """One nucleus as a uint8 square of haematoxylin; mean ink inside the outline is `ink` whatever the chromatin.

    clumps: how much the chromatin varies; smaller than `fine` px it does not, nor larger than `coarse` px if not 0.
    """
    half = int(math.ceil(1.2 * length)) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    theta = np.arctan2(v / width, u / length)
    rim = 1 + sum(rng.normal(0, 0.05 / k) * np.cos(k * theta + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    rho = np.hypot(u / length, v / width) / rim
    inside = np.clip((1 - rho) * math.sqrt(length * width) / 1.6 + 0.5, 0, 1)
    noise = rng.standard_normal(x.shape, np.float32)
    chromatin = cv2.GaussianBlur(noise, (0, 0), fine)
    if coarse:
        chromatin -= cv2.GaussianBlur(noise, (0, 0), coarse)
    tone = 1 + clumps * chromatin / chromatin.std() + vesicular * (0.5 * np.clip(rho, 0, 1) ** 3 - 0.2)
    if vesicular > 0.3:
        at = rng.normal(0, 0.22, 2) * (length, width)
        tone = tone + 1.6 * vesicular * np.exp(-((u - at[0]) ** 2 + (v - at[1]) ** 2) / (2 * (0.13 * width) ** 2))
    tone = np.clip(tone, 0.25, 2)
    tone *= inside.sum() / (tone * inside).sum()
    return np.clip(ink * tone * inside, 0, 255).astype(np.uint8)


@cache
def nuclei_to_stamp() -> dict[str, list]:
    """The nuclei to stamp: a list of sprites for each kind of nucleus, those of a tumour by radius, then variant."""
    rng = np.random.default_rng(2)

    def oval(radius, ratio, ink, vesicular, clumps):
        q = math.sqrt(rng.uniform(1, ratio))
        ink *= rng.uniform(0.88, 1.12)
        return _nucleus(rng, radius * q, radius / q, rng.uniform(0, np.pi), ink, vesicular, clumps)

    return dict(
        vesicular=[[oval(r, 1.5, 150, 0.75, 0.34) for _ in range(VARIANTS)] for r in RADII],
        even=[[oval(r, 1.5, 150, 0.10, 0.08) for _ in range(VARIANTS)] for r in RADII],
        benign=[oval(7.6, 1.7, 150, 0.15, 0.15) for _ in range(24)],
        lymphocyte=[oval(rng.uniform(5.2, 6.4), 1.15, 205, 0, 0.18) for _ in range(24)],
        # 16 directions, 4 variants of each
        stroma=[
            [_nucleus(rng, rng.uniform(11, 17), rng.uniform(2.6, 3.8), np.pi * k / 16, 150, 0, 0.15) for _ in range(4)]
            for k in range(16)
        ],
    )


@cache
def chromatin_to_stamp() -> dict[str, list]:
    """Nuclei of a tumour that differ in the grain of their chromatin alone: lists by radius, then variant.

    `granular` (open: grains of a pixel or two) and `smooth` (denser, hardly clumped) look alike at 10x: two pixels
    apart, what is left of either varies as much, and the ink is set so that both let the same light through.
    """
    rng = np.random.default_rng(3)

    def oval(radius, ink, clumps, fine, coarse):
        q = math.sqrt(rng.uniform(1, 1.5))
        ink *= rng.uniform(0.88, 1.12)
        return _nucleus(rng, radius * q, radius / q, rng.uniform(0, np.pi), ink, 0.0, clumps, fine, coarse)

    return dict(
        granular=[[oval(r, 150.0, *GRANULAR) for _ in range(VARIANTS)] for r in RADII],
        smooth=[[oval(r, SMOOTH_INK, *SMOOTH) for _ in range(VARIANTS)] for r in RADII],
    )
