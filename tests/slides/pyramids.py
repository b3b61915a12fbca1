"""Small synthetic pyramids for tests: Aperio-like TIFF files with H&E-like texture that OpenSlide opens."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import tifffile

TILE = 256


def texture(
    height: int, width: int, seed: int = 0, coverage: float = 0.4, glass: int = 243, loose: float = 0.0
) -> np.ndarray:
    """An RGB uint8 image (height, width, 3) of pink tissue with nuclei, lumens and fat on glass of brightness `glass`.

    `coverage` is about the share of the area under tissue: 0 is bare glass, 1 is tissue from edge to edge. `loose`
    from 0 to 1 turns compact tissue into pale stroma and fat.
    """
    rng = np.random.default_rng([seed, height, width])
    image = np.full((height, width, 3), glass, np.float32) + rng.normal(0, 1.5, (height, width, 1)).astype(np.float32)

    def smooth(cell: int) -> np.ndarray:
        """A field of unit variance that varies over about `cell` pixels."""
        grid = rng.normal(size=(height // cell + 3, width // cell + 3)).astype(np.float32)
        return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)

    if coverage > 0:
        outline = smooth(max(height, width) // 5)
        tissue = np.ones((height, width), bool) if coverage >= 1 else outline > np.quantile(outline, 1 - coverage)
        lumen = tissue & (smooth(45) > 1.35 - 1.2 * loose)
        nuclei = tissue & ~lumen & (smooth(7) > 1.0 + 0.5 * loose)
        fibre = smooth(17)[..., None]
        eosin = np.array([226, 158 + 30 * loose, 190 + 15 * loose], np.float32)
        eosin = eosin + np.array([8, 20, 12], np.float32) * fibre
        haematoxylin = np.array([96, 62, 140], np.float32) + 10 * fibre
        image = np.where((tissue & ~lumen)[..., None], eosin, image)
        image = np.where(nuclei[..., None], haematoxylin, image)
        image += rng.normal(0, 4, image.shape).astype(np.float32) * tissue[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean of every whole factor x factor block; what is left over at the right and lower edges is dropped."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    whole = image[: height * factor, : width * factor]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


def describe(width: int, height: int, objective: float | None, mpp: float | None) -> str:
    """The ImageDescription of an Aperio file; a magnification that is None is left out."""
    text = f"Aperio Image Library v12\r\n{width}x{height} [0,0 {width}x{height}] ({TILE}x{TILE}) JPEG/RGB Q=80"
    text += "" if objective is None else f"|AppMag = {objective:g}"
    return text + ("" if mpp is None else f"|MPP = {mpp:g}")


def write_pyramid(
    path,
    image: np.ndarray,
    objective: float | None = 20,
    mpp: float | None = 0.5,
    factors: tuple[int, ...] = (1, 4, 16),
    quality: int = 80,
) -> Path:
    """Write `image` (H, W, 3) as an Aperio-like pyramid with one level for each of `factors`; return the path."""
    path = Path(path)
    text = describe(image.shape[1], image.shape[0], objective, mpp)
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for factor in factors:
            tif.write(
                image if factor == 1 else shrink(image, factor),
                tile=(TILE, TILE),
                compression="jpeg",
                compressionargs={"level": quality},
                photometric="rgb",
                metadata=None,
                description=text,
                subfiletype=int(factor > 1),
            )
    return path


def write_scn(path, image: np.ndarray, offset: tuple[int, int], mpp: float = 0.5, objective: float = 20) -> Path:
    """Write `image` (H, W, 3) as a Leica SCN whose image begins at `offset` (x, y) of a slide three times as large.

    OpenSlide reads the whole slide, clear around the image; QuPath shows the image alone.
    """
    path, nm = Path(path), round(1000 * mpp)
    height, width = image.shape[:2]
    pictures = [np.full((256, 256, 3), 240, np.uint8), image, shrink(image, 4)]

    def one(name: str, levels: dict[int, int], place: tuple[int, int, int, int], power: float) -> str:
        """The XML of an image: its levels {number: page}, its place (x, y, width, height) in pixels of the slide."""
        sizes = {page: 'sizeX="{}" sizeY="{}"'.format(*pictures[page].shape[1::-1]) for page in levels.values()}
        pixels = "".join(f'<dimension {sizes[page]} r="{number}" ifd="{page}"/>' for number, page in levels.items())
        x, y, w, h = (side * nm for side in place)
        return (
            f'<image name="{name}" uuid="urn:uuid:{name}"><creationDate>2020-01-01</creationDate>'
            f'<device model="Leica SCN400" version="1"/><pixels {sizes[levels[0]]}>{pixels}'
            f'</pixels><view sizeX="{w}" sizeY="{h}" offsetX="{x}" offsetY="{y}" spacingZ="0"/><scanSettings>'
            f"<objectiveSettings><objective>{power:g}</objective></objectiveSettings><illuminationSettings>"
            "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )

    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:scn">'
        f'<collection name="c" uuid="urn:uuid:c" sizeX="{3 * width * nm}" sizeY="{3 * height * nm}">'
        + one("macro", {0: 0}, (0, 0, 3 * width, 3 * height), 0.6)
        + one("main", {0: 1, 1: 2}, (*offset, width, height), objective)
        + "</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for page, picture in enumerate(pictures):
            tif.write(
                picture,
                tile=(TILE, TILE),
                compression="jpeg",
                compressionargs={"level": 90},
                photometric="rgb",
                metadata=None,
                description=None if page else text,
            )
    return path


def write_ome(
    path,
    image: np.ndarray,
    factors: tuple[int, ...] = (1, 2, 4, 8),
    compression: str = "jpeg",
    layout: str = "chunky",
    subifds: bool = True,
    bigtiff: bool = True,
    dots: float = 0,
    **said,
) -> Path:
    """Write `image` (H, W, 3) as an OME-TIFF; return the path.

    layout: "chunky" (R, G, B of a pixel beside one another), "planar" (one behind the other in a page) or "pages" (a
    page each). subifds: levels in SubIFDs, as OME wants it, or else as pages behind the first. dots: pixels a
    centimetre by the TIFF tags. said: attributes of Pixels, such as PhysicalSizeX, or Channel.
    """
    path, count = Path(path), len(factors) - 1
    options = {"tile": (TILE, TILE), "compression": compression, "photometric": "rgb"}
    options |= {"planarconfig": "separate"} if layout == "planar" else {}
    options |= {"photometric": "minisblack"} if layout == "pages" else {}

    def pixels(factor: int) -> np.ndarray:
        level = image if factor == 1 else shrink(image, factor)
        return level if layout == "chunky" else np.ascontiguousarray(level.transpose(2, 0, 1))

    with tifffile.TiffWriter(path, bigtiff=bigtiff, ome=True) as tif:
        tif.write(
            pixels(1),
            subifds=count if subifds else 0,
            resolution=(dots, dots) if dots else None,
            resolutionunit="CENTIMETER" if dots else None,
            metadata={"axes": "YXS" if layout == "chunky" else "CYX", **said},
            **options,
        )
        for factor in factors[1:]:
            tif.write(pixels(factor), subfiletype=1, metadata=None, **options)
    return path


def make_slide(
    path,
    width: int = 1536,
    height: int = 1280,
    seed: int = 0,
    coverage: float = 0.4,
    glass: int = 243,
    loose: float = 0.0,
    objective: float | None = 20,
    mpp: float | None = 0.5,
    factors: tuple[int, ...] = (1, 4, 16),
) -> Path:
    """Write one small synthetic slide and return its path."""
    return write_pyramid(path, texture(height, width, seed, coverage, glass, loose), objective, mpp, factors)
