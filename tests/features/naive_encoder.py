"""The encoder as anyone would write it first: eager fp32 PyTorch, pixels normalised on the way in. Oracle and peer."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from dmsmil.features.weights import build, resolve


@dataclass
class Plain:
    """A network and how its pixels are prepared."""

    model: torch.nn.Module
    px: int
    mean: np.ndarray
    std: np.ndarray


def naive_encoder(name: str, weights: str = "", px: int = 0) -> Plain:
    """The same network and weights as dmsmil.features.encoders makes of this name."""
    source = resolve(name, weights)
    mean, std = np.float32(source.config["mean"]), np.float32(source.config["std"])
    return Plain(build(source, px), px or source.config["input_size"][1], mean, std)


@torch.no_grad()
def encode_naive(plain: Plain, tiles: np.ndarray, batch: int = 4) -> np.ndarray:
    """uint8 (N, H, W, 3) -> float32 (N, dim)."""
    images = []
    for tile in tiles:
        if tile.shape[:2] != (plain.px, plain.px):
            tile = cv2.resize(tile, (plain.px, plain.px), interpolation=cv2.INTER_AREA)
        images.append(((tile / np.float32(255) - plain.mean) / plain.std).transpose(2, 0, 1))
    return torch.cat([plain.model(part) for part in torch.from_numpy(np.stack(images)).split(batch)]).numpy()
