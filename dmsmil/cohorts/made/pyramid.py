"""A made slide as a scanner would have written it: an Aperio-like pyramid at 20x."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import tifffile

MPP, MAGNIFICATION = 0.5, 20


def write_svs(rgb: np.ndarray, path: str | Path) -> None:
    """Write RGB uint8 (side, side, 3) to `path`: tiled JPEG, levels 1, 4 and 16."""
    side = rgb.shape[0]
    text = (
        f"Aperio Image Library v12.0.15\r\n{side}x{side} [0,0 {side}x{side}] (256x256) JPEG/RGB Q=82"
        f"|AppMag = {MAGNIFICATION}|MPP = {MPP}"
    )
    with tifffile.TiffWriter(path) as tif:
        for step in (1, 4, 16):
            image = rgb if step == 1 else cv2.resize(rgb, (side // step, side // step), interpolation=cv2.INTER_AREA)
            tif.write(
                image,
                tile=(256, 256),
                compression="jpeg",
                compressionargs={"level": 82},
                photometric="rgb",
                description=text,
                metadata=None,
                subfiletype=1 if step > 1 else 0,
                software=False,
                maxworkers=1,
            )
