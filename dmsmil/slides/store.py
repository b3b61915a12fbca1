"""Tiles and features on disk: TRIDENT's layout, one file a slide and scale, whole or absent, and what made each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dmsmil.cohorts.ids import LONGEST_ID, plain_name
from dmsmil.jobs.failures import read_failures
from dmsmil.jobs.files import InputError
from dmsmil.jobs.text import many
from dmsmil.slides.hdf5 import New, Written, difference, plain, reading, writing
from dmsmil.slides.magnification import tile_size_level0
from dmsmil.slides.tiles import Tiles

STAGES = ("tiles", "features")  # what is made of a slide; who has features has tiles


class ScaleFeatures(NamedTuple):
    """One scale of one slide: features (N, D) float32 (None when only asked where the tiles are), coords (N, 2) int64
    level-0 px, parent (N,) int64: tiles of all scales with the same number belong together. It is the row of the tile
    of the study's first scale, which itself has none in its file (None where another scale is taken as the first)."""

    features: np.ndarray | None
    coords: np.ndarray
    parent: np.ndarray | None


class MadeBy(NamedTuple):
    """What made the features of a slide: config; dim, their channels; hashes of each scale's data sets."""

    config: dict
    dim: int
    hashes: list[dict[str, str]]


class Store:
    """The features/ folder of a study.

    Each file carries `config`, the JSON of everything that made it (for features its "encoder" is Encoder.identity):
    `has_tiles` and `has_features` are true only for whole files made by exactly that configuration, so that a stage
    makes again what was made otherwise, and reading refuses it. What other programs made is imported (formats.py).
    """

    def __init__(self, home: str | Path, tile_px: int = 512, scales: tuple[int, ...] = (10, 20), encoder: str = ""):
        self.home, self.tile_px, self.scales, self.encoder = Path(home), tile_px, tuple(scales), encoder

    def tiles_path(self, scale: int, slide_id: str) -> Path:
        """Where the tiles of a slide at a scale lie; InputError for an id that would lead elsewhere."""
        return self._folder(scale) / "patches" / f"{plain_name(slide_id, LONGEST_ID)}_patches.h5"

    def features_path(self, scale: int, slide_id: str) -> Path:
        """Where the features of a slide at a scale lie; InputError for an id that would lead elsewhere."""
        return self._folder(scale) / encoder_folder(self.encoder) / f"{plain_name(slide_id, LONGEST_ID)}.h5"

    def write_tiles(self, tiles: Tiles, config: dict, seen: str = "", warnings: str = "") -> None:
        """Keep the chosen tiles of a slide: coords at every scale, with parent, or density and colour at the first.
        seen: what is to be remembered of the slide's file (`stages.seen`); warnings: what was said about it."""
        for scale in self.scales:
            with writing(self.tiles_path(scale, tiles.slide_id), config) as new:
                _coords(new, self._attributes(tiles, scale, "patches"), tiles.coords[scale])
                if scale == self.scales[0]:
                    new.put("density", np.ascontiguousarray(tiles.density, np.float64))
                    new.put("colour", np.ascontiguousarray(tiles.colour, np.float32))
                    new.file.attrs["grid"], new.file.attrs["read"] = tiles.grid, tiles.read
                    if seen:
                        new.file.attrs["seen"] = seen
                    if warnings:
                        new.file.attrs["warnings"] = warnings
                else:
                    new.put("parent", np.ascontiguousarray(tiles.parent, np.int64))

    def read_tiles(self, slide_id: str, config: dict | None = None) -> Tiles:
        """The tiles of a slide. With `config`, every key in it must be as the file's own (else InputError).

        Density and colour are NaN when the first scale here is not the one that they were measured on.
        """
        coords, parent = {}, None
        for scale in self.scales:
            with self._reading(self.tiles_path(scale, slide_id), slide_id, config) as written:
                coords[scale], file = written.data("coords").astype(np.int64), written.file
                if scale == self.scales[0]:
                    count = len(coords[scale])
                    density = written.data("density") if "density" in file else np.full(count, np.nan)
                    colour = written.data("colour") if "colour" in file else np.full((count, 6), np.nan, np.float32)
                    grid, read = (int(file.attrs.get(name, count)) for name in ("grid", "read"))
                    about = {
                        name: value.item() for name, value in file["coords"].attrs.items() if name.startswith("level0_")
                    }
                elif "parent" in file:
                    parent = written.data("parent")
        return Tiles(
            slide_id,
            self.tile_px,
            coords,
            density,
            colour,
            np.arange(count) if parent is None else parent,
            (about.get("level0_width", 0), about.get("level0_height", 0)),
            float(about["level0_magnification"]),
            grid,
            read,
        )

    def write_features(
        self, slide_id: str, features: dict[int, np.ndarray], tiles: Tiles, config: dict, seen: str = ""
    ) -> None:
        """Keep {scale: (N, D)} features of the tiles of a slide, row for row; InputError when one is not finite. seen:
        as `write_tiles`, of the file that they were made of."""
        for scale in self.scales:
            values = np.ascontiguousarray(features[scale], np.float32)
            _check_features(values, tiles.coords[scale], slide_id, scale)
        for scale in self.scales:
            values, path = np.ascontiguousarray(features[scale], np.float32), self.features_path(scale, slide_id)
            with writing(path, config) as new:
                # one uncompressed chunk: read in .6 ms where row chunks take .9 and gzip 16; resizable, as TRIDENT's
                data = new.put(
                    "features", values, chunks=(max(len(values), 1), values.shape[1]), maxshape=(None, values.shape[1])
                )
                attributes = self._attributes(tiles, scale, path.parent.name)
                data.attrs.update({"name": slide_id, "savetodir": attributes["savetodir"], "encoder": self.encoder})
                _coords(new, attributes, tiles.coords[scale])
                if scale != self.scales[0]:
                    new.put("parent", np.ascontiguousarray(tiles.parent, np.int64))
                if seen:
                    new.file.attrs["seen"] = seen

    def read_features(self, slide_id: str, config: dict | None = None, values: bool = True) -> dict[int, ScaleFeatures]:
        """The features of a slide by scale; without `values` only where its tiles are.

        Raises InputError: absent, truncated, not what was written, not finite, made by another encoder than this
        store's, or, with `config`, differing from it in one of its keys.
        """
        found = {}
        for scale in self.scales:
            with self._reading(self.features_path(scale, slide_id), slide_id, config) as written:
                coords = written.data("coords").astype(np.int64)
                features = written.data("features").astype(np.float32, copy=False) if values else None
                if values:
                    _check_features(features, coords, slide_id, scale)
                parent = written.data("parent") if "parent" in written.file else None
                if parent is None and scale == self.scales[0]:
                    parent = np.arange(len(coords))
                found[scale] = ScaleFeatures(features, coords, parent)
        return found

    def features_made_by(self, slide_id: str) -> MadeBy:
        """What made the features of a slide, as its files say it: nothing is read of the features themselves.

        Raises InputError when its scales were not made alike, as a killed process can leave them.
        """
        found = []
        for scale in self.scales:
            with self._reading(self.features_path(scale, slide_id), slide_id) as written:
                found.append(MadeBy(written.config(), written.file["features"].shape[1], [written.hashes]))
        if any(plain(one[:2]) != plain(found[0][:2]) for one in found):
            raise InputError(
                f"slide {slide_id} has features that were made otherwise at one scale than at another: "
                "run the features stage again"
            )
        return found[0]._replace(hashes=[hashes for one in found for hashes in one.hashes])

    def tiling(self, slide_id: str) -> dict:
        """What made the tiles of a slide, as the file of the first scale says it; empty where there is none."""
        try:
            with self._reading(self.tiles_path(self.scales[0], slide_id), slide_id) as written:
                return written.config() or {}
        except InputError:
            return {}

    def seen(self, slide_id: str) -> str:
        """What the tiles of a slide remember of its file; "" of tiles that remember nothing, and where none are."""
        return _attribute(self.tiles_path(self.scales[0], slide_id), "seen")

    def told(self, slide_id: str) -> str:
        """The warnings about a slide with which its tiles were chosen; "" where there are none."""
        return _attribute(self.tiles_path(self.scales[0], slide_id), "warnings")

    def forget(self, slide_id: str) -> None:
        """Delete the tiles of a slide whose file is another one now. Features remember the file that they were made of,
        and are kept for the day it comes back; those that remember none go."""
        for scale in self.scales:
            for folder in sorted(self._folder(scale).glob("features_*")):
                path = folder / self.features_path(scale, slide_id).name
                if path.is_file() and not _attribute(path, "seen"):
                    path.unlink()
        for scale in self.scales:
            self.tiles_path(scale, slide_id).unlink(missing_ok=True)

    def check_file(self, slide_id: str) -> None:
        """InputError where the features of a slide were made of another file than its tiles were chosen on."""
        known = self.seen(slide_id)
        for scale in self.scales:
            if known and _attribute(self.features_path(scale, slide_id), "seen") not in ("", known):
                raise InputError(
                    f"the features of slide {slide_id} are of another file than its tiles: run the features stage again"
                )

    def has_tiles(self, slide_id: str, config: dict) -> bool:
        """Whether the tiles of a slide are there, whole, and made by exactly this configuration."""
        return self._has(self.read_tiles, self.tiles_path, slide_id, config)

    def has_features(self, slide_id: str, config: dict) -> bool:
        """Whether features and tiles of a slide are there, whole, and made by exactly this configuration; for the tiles
        that is all of it but its encoder."""
        tiling = {key: value for key, value in config.items() if key != "encoder"}
        if not self.has_tiles(slide_id, tiling):
            return False

        def read(name: str) -> None:
            self.check_file(name)
            self.read_features(name)

        return self._has(read, self.features_path, slide_id, config)

    def failed(self) -> dict[str, str]:
        """{slide_id: reason} of the slides whose tiles or features could not be made when that was last tried.

        What lies here of such a slide is older, of another file or other settings, and is not to be used.
        """
        rows = read_failures(self.home)
        rows = rows[rows.stage.isin(STAGES)]
        return {row.unit: f"its {row.stage} could not be made: {row.reason}" for row in rows.itertuples()}

    def _folder(self, scale: int) -> Path:
        return self.home / "features" / f"{scale:g}x_{self.tile_px}px_0px_overlap"

    def _attributes(self, tiles: Tiles, scale: int, folder: str) -> dict:
        """TRIDENT's attributes of `coords`; the folder is told relative to the study, for studies move. A size that is
        not known is left out, as TRIDENT did before it wrote sizes."""
        base, (width, height) = float(tiles.magnification), tiles.dimensions
        size = {"level0_width": int(width), "level0_height": int(height)} if width and height else {}
        return {
            "patch_size": self.tile_px,
            "patch_size_level0": tile_size_level0(base, scale, self.tile_px),
            "level0_magnification": int(base) if base.is_integer() else base,
            "target_magnification": scale,
            "overlap": 0,
            "name": tiles.slide_id,
            "savetodir": f"features/{self._folder(scale).name}/{folder}",
            **size,
        }

    @contextmanager
    def _reading(self, path: Path, slide_id: str, config: dict | None = None) -> Iterator[Written]:
        """The open file, after the checks of what made it; whatever is wrong with it is an InputError."""
        where = path.relative_to(self.home).as_posix()
        what = f"features by '{self.encoder}'" if path.parent.name != "patches" else "tiles"
        if not path.exists():
            raise InputError(f"slide {slide_id} has no {what} ({where}): make them, or see failures.csv why not")
        try:
            with reading(path) as written:
                made_by = written.config()
                if made_by is None:
                    raise InputError(
                        f"{where} does not say what made it: name its folder with the key 'features', or "
                        "delete it and start the same command again"
                    )
                wanted = dict(config or {})
                if what != "tiles" and "encoder" not in wanted and isinstance(made_by.get("encoder"), dict):
                    wanted["encoder"] = {**made_by["encoder"], "name": self.encoder}
                if text := difference({k: made_by.get(k) for k in wanted}, wanted):
                    raise InputError(f"{where} was made otherwise: {text}; make it again, or use another study folder")
                yield written
        except InputError:
            raise
        except (OSError, KeyError, ValueError) as error:
            raise InputError(
                f"{where} is damaged or incomplete ({' '.join(str(error).split())[:80]}): start the same "
                "command again, which makes it anew"
            ) from error

    def _has(self, read: Callable, path: Callable[[int, str], Path], slide_id: str, config: dict) -> bool:
        """Whether it was made by this configuration at every scale, and can be read."""
        try:
            for scale in self.scales:
                with self._reading(path(scale, slide_id), slide_id) as written:
                    if plain(written.config()) != plain(config):
                        return False
            read(slide_id)
        except InputError:
            return False
        return True


def _attribute(path: Path, name: str) -> str:
    """A word that stands in a file of tiles or features; "" where there is none, or no file that can be read."""
    try:
        with reading(path) as written:
            return written.file.attrs.get(name, "")
    except (OSError, KeyError, ValueError):
        return ""


def encoder_folder(encoder: str) -> str:
    """The name of the folder of an encoder's features, as TRIDENT's: hf-hub:a/b -> features_hf-hub-a-b."""
    return "features_" + re.sub(r"[^\w.-]+", "-", encoder)


def _coords(new: New, attributes: dict, coords: np.ndarray) -> None:
    data = new.put(
        "coords",
        np.ascontiguousarray(coords, np.int64).reshape(-1, 2),
        maxshape=(None, 2),
        chunks=(max(len(coords), 1), 2),
    )
    data.attrs.update(attributes)


def _check_features(features: np.ndarray, coords: np.ndarray, slide_id: str, scale: int) -> None:
    if features.ndim != 2 or len(features) != len(coords):
        raise InputError(
            f"slide {slide_id} has features of shape {features.shape} for {len(coords)} tiles at "
            f"{scale}x: delete its feature files and make them again"
        )
    if bad := int((~np.isfinite(features)).any(1).sum()):
        raise InputError(
            f"slide {slide_id} has {many(bad, 'tile')} at {scale}x whose features are NaN or infinite: "
            "look at its tiles and at the encoder's weights, then make its features again"
        )
