"""Feature files of a cohort as padded tensors: (slide, scale, tile, channel) with a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dmsmil.features.cache import has_mapped, read_mapped, write_mapped
from dmsmil.features.plan import Plan
from dmsmil.jobs.files import InputError, fingerprint, one_line
from dmsmil.jobs.limits import free_memory
from dmsmil.jobs.text import many
from dmsmil.slides.store import MadeBy, Store

# what made the features of a slide, and is not the study's
OF_ONE_SLIDE = ("bytes", "mpp", "corners", "files", "label", "site")
MEMORY_SHARE = 0.5  # of the available memory that features may take before they are memory-mapped


@dataclass
class Bags:
    """The slides of a cohort that have features, as tensors. N slides, S scales, K tiles, C channels.

    x (N, S, K, C) float32, zero where there is no tile; mask (N, S, K) bool; coords (N, S, K, 2) int64, level-0 px;
    labels (N,) int64, an index into classes (sorted). Tiles in raster order, row j of every scale belongs together.
    colour (N, 6) float32: mean of R, G, B, then of their standard deviations, over the slide's tiles; density (N, K)
    float32 of the first scale's tiles (both NaN when the files do not say). missing: {slide_id: reason} for the slides
    left out. identity: a fingerprint of the features and of what made them, the same at every path.
    file: where x is memory-mapped from, if it is.
    """

    x: Tensor
    mask: Tensor
    coords: Tensor
    labels: Tensor
    classes: list[str]
    slide_ids: list[str]
    patient_ids: list[str]
    scales: tuple[int, ...] = (10, 20)
    colour: Tensor | None = None
    density: Tensor | None = None
    missing: dict[str, str] = field(default_factory=dict)
    identity: str = ""
    store: Store | None = None
    file: Path | None = None

    def __len__(self) -> int:
        return len(self.slide_ids)

    def rows(self, slide_ids) -> Tensor:
        """Row numbers (len(slide_ids),) int64 of these slides; InputError when one is not here."""
        index = {name: row for row, name in enumerate(self.slide_ids)}
        if unknown := [name for name in slide_ids if name not in index]:
            raise InputError(
                f"slide {unknown[0]} has no features here"
                + (f": {self.missing[unknown[0]]}" if unknown[0] in self.missing else "")
            )
        return torch.tensor([index[name] for name in slide_ids], dtype=torch.int64)

    def subset(self, slide_ids) -> Bags:
        """Only these slides, in this order (a copy of their features)."""
        rows, names = self.rows(slide_ids), list(slide_ids)
        return replace(
            self,
            **{name: value[rows] for name, value in self._tensors().items()},
            slide_ids=names,
            patient_ids=[self.patient_ids[row] for row in rows],
            missing={},
            file=None,
            identity=fingerprint([self.identity, names]),
        )

    def view(self, scales) -> Bags:
        """Only these scales; the features stay where they are when the scales are neighbours."""
        if unknown := [s for s in scales if s not in self.scales]:
            raise InputError(f"scale {unknown[0]} is not among the study's {list(self.scales)}")
        if tuple(scales) == self.scales:
            return self
        at = [self.scales.index(s) for s in scales]
        pick = slice(at[0], at[-1] + 1) if at == list(range(at[0], at[-1] + 1)) else at
        return replace(
            self,
            x=self.x[:, pick],
            mask=self.mask[:, pick],
            coords=self.coords[:, pick],
            scales=tuple(scales),
            file=None,
        )

    def to(self, device) -> Bags:
        """All tensors on `device`; itself when they are there."""
        device = torch.device(device)
        if self.x.device.type == device.type and device.index in (None, self.x.device.index):
            return self
        return replace(self, **{name: value.to(device) for name, value in self._tensors().items()}, file=None)

    def share(self, report: Callable[[str], None] = print) -> Bags:
        """The same bags with x memory-mapped from the study's folder, so that worker processes read one copy.

        A file, not shared memory, whose room is 64 MB in many containers. Without a store: itself, copied by workers.
        """
        if self.file or self.store is None or not self.identity:
            return self
        path = _cache_path(self.store, self.identity, self.scales)
        if not has_mapped(path, report):
            _write_cache(path, self.x.shape, (row.numpy() for row in self.x))
        return replace(self, x=read_mapped(path), file=path)

    def batches(
        self, rows, batch_size: int = 1, generator: torch.Generator | None = None, device=None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Yield (x, mask, coords, labels, rows) a batch of the slides `rows`, shuffled by `generator` if given.

        One slide is a view (no copy), more are gathered. With a CUDA `device` features travel through pinned memory.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64)
        if generator is not None:
            rows = rows[torch.randperm(len(rows), generator=generator)]
        for batch in rows.split(batch_size):
            pick = slice(int(batch[0]), int(batch[0]) + 1) if len(batch) == 1 else batch
            # several slides are gathered scale by scale: a layer with its own weights a scale then needs no copy
            x = self.x[pick] if len(batch) == 1 else self.x.transpose(0, 1)[:, batch].transpose(0, 1)
            parts = (x, self.mask[pick], self.coords[pick], self.labels[pick])
            if device is not None and torch.device(device).type == "cuda" and self.x.device.type == "cpu":
                parts = tuple(part.pin_memory().to(device, non_blocking=True) for part in parts)
            yield *parts, batch

    def _tensors(self) -> dict[str, Tensor]:
        named = {name: getattr(self, name) for name in ("x", "mask", "coords", "labels", "colour", "density")}
        return {name: value for name, value in named.items() if value is not None}

    def __getstate__(self) -> dict:
        """Memory-mapped features go to another process as the name of their file."""
        return {**self.__dict__, "x": None} if self.file else self.__dict__

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self.file:
            self.x = read_mapped(self.file)


def toy_bags(
    slides: int = 40,
    k: int = 32,
    channels: int = 16,
    share: float = 0.5,
    signal: float = 1.0,
    seed: int = 0,
    scales: tuple[int, ...] = (10, 20),
) -> Bags:
    """Bags of random numbers whose class is planted: for walkthroughs and tests, seconds instead of slides.

    In class "b", `share` of a slide's tiles, at random places, are shifted by `signal` in the first channel, at every
    scale; in at least one tile, unless share is 0. Every third slide has a quarter fewer tiles. Tiles lie on a grid
    eight wide.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(slides) % 2
    x = rng.normal(size=(slides, len(scales), k, channels)).astype(np.float32)
    mask = np.ones((slides, len(scales), k), bool)
    mask[::3, :, k - k // 4 :] = False
    for row in np.flatnonzero(labels):
        tiles = int(mask[row, 0].sum())
        shifted = max(1, round(share * tiles)) if share else 0
        x[row, :, rng.permutation(tiles)[:shifted], 0] += signal
    x[~mask] = 0
    coords = np.stack([np.arange(k) % 8, np.arange(k) // 8], -1).astype(np.int64) * 1024
    names = [f"{row:03d}" for row in range(slides)]
    return Bags(
        torch.from_numpy(x),
        torch.from_numpy(mask),
        torch.from_numpy(coords).expand(slides, len(scales), k, 2).contiguous(),
        torch.from_numpy(labels),
        ["a", "b"],
        [f"slide{n}" for n in names],
        [f"patient{n}" for n in names],
        scales,
        colour=torch.from_numpy(rng.normal(size=(slides, 6)).astype(np.float32)),
        identity=fingerprint(["toy", slides, k, channels, share, signal, seed, list(scales)]),
    )


def fits_in_memory(size: float) -> bool:
    """Whether features of `size` bytes are held in memory; else they are memory-mapped from the disk."""
    return size < MEMORY_SHARE * free_memory()


def load_bags(
    store: Store,
    cohort: pd.DataFrame,
    k: int,
    scales: tuple[int, ...] = (10, 20),
    in_memory: bool | str = "auto",
    report: Callable[[str], None] = print,
) -> Bags:
    """The bags of a cohort (columns slide_id, patient_id, label), at most `k` tiles a slide and scale.

    A slide with fewer tiles is padded at the end and masked; of more, `choose_rows` takes k. A tile of the first scale
    without one at another scale is masked there. in_memory: True, False (memory-mapped from a cache file in the
    study's folder), or "auto": in memory when the features take less than half of what is free.
    Slides are sorted by name, so that the order of the cohort table never changes a result. A slide whose features are
    absent, damaged, or older than a failure to make them is left out and named in `missing`. Raises InputError when the
    features were made by different encoders, or when no slide is left.
    """
    store = Store(store.home, store.tile_px, scales, store.encoder)
    cohort = cohort.sort_values("slide_id")
    missing = {name: reason for name, reason in store.failed().items() if name in set(cohort.slide_id)}
    while True:
        try:
            return _load(store, cohort, k, in_memory, missing, report)
        except _Damaged as error:  # found only while reading their features: once more without them
            missing |= error.reasons


def _load(
    store: Store,
    cohort: pd.DataFrame,
    k: int,
    in_memory: bool | str,
    missing: dict[str, str],
    report: Callable[[str], None],
) -> Bags:
    plans, made_by = [], {}
    for name in [name for name in cohort.slide_id if name not in missing]:
        try:
            store.check_file(name)
            plan, made_by[name] = Plan.of(store, name, k), store.features_made_by(name)
            plans.append(plan)
        except InputError as error:
            missing[name] = one_line(error)
    if not plans:
        raise InputError(
            f"no slide of the cohort has features by '{store.encoder}'"
            + (f" (the first: {next(iter(missing.values()))})" if missing else "")
        )
    _made_alike(store, made_by)

    names = [plan.slide_id for plan in plans]
    known = cohort.set_index("slide_id").loc[names]
    classes = sorted(known.label.astype(str).unique())
    shape = (len(names), len(store.scales), k, made_by[names[0]].dim)
    identity = fingerprint(
        [k, list(store.scales), [(name, made_by[name].config, made_by[name].hashes) for name in names]]
    )
    if in_memory == "auto":
        in_memory = fits_in_memory(4 * np.prod(shape, dtype=float))
    if in_memory:
        path, x = None, np.zeros(shape, np.float32)
        for row, values in enumerate(_features(store, plans, shape[1:])):
            x[row] = values
        x = torch.from_numpy(x)
    else:
        path = _cache_path(store, identity, store.scales)
        if not has_mapped(path, report):
            _write_cache(path, shape, _features(store, plans, shape[1:]))
        x = read_mapped(path)
    return Bags(
        x=x,
        mask=torch.from_numpy(np.stack([p.mask for p in plans])),
        coords=torch.from_numpy(np.stack([p.coords for p in plans])),
        labels=torch.tensor([classes.index(str(label)) for label in known.label], dtype=torch.int64),
        classes=classes,
        slide_ids=names,
        patient_ids=known.patient_id.astype(str).tolist(),
        scales=store.scales,
        colour=torch.from_numpy(np.stack([p.colour for p in plans])),
        density=torch.from_numpy(np.stack([p.density for p in plans])),
        missing=missing,
        identity=identity,
        store=store,
        file=path,
    )


class _Damaged(Exception):
    """Slides whose features could not be read: {slide_id: reason}."""

    def __init__(self, reasons: dict[str, str]):
        super().__init__(reasons)
        self.reasons = reasons


def _features(store: Store, plans: list[Plan], shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """The features (S, K, C) of each slide, zero where there is no tile; raises _Damaged at the end if some could not
    be read."""
    damaged = {}
    for plan in plans:
        x = np.zeros(shape, np.float32)
        try:
            found = store.read_features(plan.slide_id)
            for s, scale in enumerate(store.scales):
                features, source = found[scale].features, plan.source[s]
                if features.shape[1] != shape[-1]:
                    raise InputError(
                        f"slide {plan.slide_id} has {features.shape[1]} channels at {scale}x and "
                        f"{shape[-1]} at {store.scales[0]}x: make its features again"
                    )
                x[s, source >= 0] = features[source[source >= 0]]
        except InputError as error:
            damaged[plan.slide_id] = one_line(error)
        yield x
    if damaged:
        raise _Damaged(damaged)


def _made_alike(store: Store, made_by: dict[str, MadeBy]) -> None:
    """Features of two encoders, of two sets of weights, or of tiles by other settings must never meet in one study."""
    own, groups = (*OF_ONE_SLIDE, "reader"), {}
    for name, made in made_by.items():
        shared = {key: value for key, value in made.config.items() if key not in own}
        groups.setdefault(fingerprint([shared, made.dim]), []).append(name)
    if len(groups) > 1:
        least = min(groups.values(), key=len)
        most = max(groups.values(), key=len)
        here, there = made_by[least[0]].config, made_by[most[0]].config
        keys = [key for key in {**there, **here} if key not in own and here.get(key) != there.get(key)]
        what = "weights, size or precision" if keys in ([], ["encoder"]) else ", ".join(keys)
        raise InputError(
            f"the features by '{store.encoder}' were not all made alike: {many(len(least), 'slide')} ("
            f"{least[0]}{', ...' * (len(least) > 1)}) with other {what} than the rest; run the features stage again"
        )


def _write_cache(path: Path, shape: Sequence[int], rows: Iterable[np.ndarray]) -> None:
    """`write_mapped`, in place of the files of other bags at just these scales, which are as large as the features. Who
    has one of them open keeps it until they close it."""
    write_mapped(path, tuple(shape), rows)
    for other in path.parent.glob("bags-*.npy"):
        if other != path and _scales_part(other) == _scales_part(path):
            other.unlink(missing_ok=True)


def _scales_part(path: Path) -> str:
    """What `_cache_path` wrote of the scales."""
    return path.name.split("-", 2)[2]


def _cache_path(store: Store, identity: str, scales: tuple[int, ...]) -> Path:
    return store.home / "features" / f"bags-{identity}-{'-'.join(f'{scale:g}x' for scale in scales)}.npy"
