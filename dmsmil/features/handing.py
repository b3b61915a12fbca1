"""A study's features for those who train elsewhere: a folder that torchmil, CLAM or STAMP loads as it is.

Each gets the slides that have features, of all scales, a folder a scale; their labels and, where the program reads
them, the folds; and README.txt with the lines that load it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from dmsmil.cohorts.splits import export_clam
from dmsmil.features.formats import export_clam_features
from dmsmil.jobs.files import InputError, write_csv, write_text
from dmsmil.slides.hdf5 import writing
from dmsmil.slides.magnification import tile_size_level0
from dmsmil.slides.store import Store, encoder_folder

CLAM = """CLAM (a folder a scale):
    Generic_MIL_Dataset(csv_path="{here}/tables/dataset.csv", data_dir="{here}/{scale}x", label_col="label",
                        label_dict={labels}, patient_strat=True)
    python main.py --split_dir {here}/tables ...   (its names are relative to CLAM's folder splits)
"""
STAMP = """STAMP (a folder a scale), in the section training or crossval of its config.yaml:
    clini_table: {here}/clini.csv
    slide_table: {here}/slide.csv
    feature_dir: {here}/{scale}x
    ground_truth_label: label
Its micrometres are those of the nominal magnification: 10 / magnification a level-0 px.
"""
TORCHMIL = """torchmil (a folder a scale):
    from torchmil.datasets import TridentWSIDataset
    dataset = TridentWSIDataset("{here}/{folder}/", "{here}/labels.csv", "{encoder}", patch_size={tile_px},
                                wsi_name_col="file", wsi_label_col="label", bag_keys=["X", "Y", "coords", "adj"])
The slash behind the folder is needed. Labels are {labels}. Places are in px of the scale, for torchmil divides
those of all slides by one patch_size, and level-0 px of a tile differ from slide to slide.
"""


def hand_out(kind: str, store: Store, cohort: pd.DataFrame, folds: pd.DataFrame, folder: str | Path) -> list[str]:
    """Write the bags of a study for `kind`, one of KINDS, into a new folder.

    Returns the slides written. Raises InputError for another kind, for a folder that holds something, or when no slide
    has features at every scale.
    """
    folder = Path(folder).expanduser()
    if kind not in KINDS:
        raise InputError(f"'{kind}' is not one of {', '.join(KINDS)}: bags are written for these")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder.name} is there and holds something: name a new folder")
    failed = store.failed()
    names = [
        name
        for name in cohort.slide_id
        if name not in failed and all(store.features_path(scale, name).exists() for scale in store.scales)
    ]
    if not names:
        raise InputError(f"no slide of the study has features by '{store.encoder}': run 02_features first")
    cohort, folds = (table[table.slide_id.isin(names)].reset_index(drop=True) for table in (cohort, folds))
    classes = {label: number for number, label in enumerate(sorted(cohort.label.unique()))}
    write, text = KINDS[kind]
    write(store, cohort.assign(number=cohort.label.map(classes)), folds, folder)
    first = store.scales[0]
    write_text(
        text.format(
            here="HERE",
            scale=first,
            folder=f"{first}x_{store.tile_px}px_0px_overlap",
            encoder=encoder_folder(store.encoder).removeprefix("features_"),
            tile_px=store.tile_px,
            labels=classes,
        )
        + "HERE is this folder.\n",
        folder / "README.txt",
    )
    return names


def _torchmil(store: Store, cohort: pd.DataFrame, folds: pd.DataFrame, folder: Path) -> None:
    """TRIDENT's layout, places in px of each scale. `file` ends in .h5, for torchmil cuts a name at its last dot."""
    parts = folds[["slide_id", *(name for name in folds if name.startswith("fold_"))]]
    labels = cohort[["slide_id", "patient_id", "number", "label"]].merge(parts, on="slide_id", validate="one_to_one")
    labels.insert(0, "file", labels.slide_id + ".h5")
    write_csv(labels.rename(columns={"label": "class", "number": "label"}), folder / "labels.csv")
    for name in cohort.slide_id:
        tiles, found = store.read_tiles(name), store.read_features(name)
        for scale in store.scales:
            side = tile_size_level0(tiles.magnification, scale, store.tile_px)
            coords = np.rint(found[scale].coords * store.tile_px / side).astype(np.int64)
            place = folder / f"{scale}x_{store.tile_px}px_0px_overlap"
            for path in (place / f"patches/{name}_patches.h5", place / encoder_folder(store.encoder) / f"{name}.h5"):
                with writing(path) as new:
                    new.put("coords", coords).attrs.update({"patch_size": store.tile_px, "target_magnification": scale})
                    if path.parent.name != "patches":
                        new.put("features", found[scale].features)


def _clam(store: Store, cohort: pd.DataFrame, folds: pd.DataFrame, folder: Path) -> None:
    """CLAM's folders of each scale, and its tables."""
    for scale in store.scales:
        export_clam_features(store, cohort, folder / f"{scale}x", scale)
    export_clam(cohort, folds, folder / "tables")


def _stamp(store: Store, cohort: pd.DataFrame, folds: pd.DataFrame, folder: Path) -> None:
    """STAMP's files of each scale, places in micrometres, and its tables of patients and of slides."""
    patients = cohort[["patient_id", "label"]].drop_duplicates().rename(columns={"patient_id": "PATIENT"})
    write_csv(patients, folder / "clini.csv")
    write_csv(pd.DataFrame({"PATIENT": cohort.patient_id, "FILENAME": cohort.slide_id + ".h5"}), folder / "slide.csv")
    for name in cohort.slide_id:
        tiles, found = store.read_tiles(name), store.read_features(name)
        mpp = 10 / tiles.magnification
        for scale in store.scales:
            side = tile_size_level0(tiles.magnification, scale, store.tile_px)
            with writing(folder / f"{scale}x/{name}.h5") as new:
                new.put("feats", found[scale].features)
                new.put("coords", (found[scale].coords * mpp).astype(np.float32))
                new.file.attrs.update(
                    {
                        "stamp_version": "2.4.0",
                        "extractor": store.encoder,
                        "unit": "um",
                        "tile_size_um": side * mpp,
                        "tile_size_px": store.tile_px,
                        "feat_type": "tile",
                        "code_hash": "dmsmil",
                    }
                )


Writer = Callable[[Store, pd.DataFrame, pd.DataFrame, Path], None]
KINDS: dict[str, tuple[Writer, str]] = {
    "torchmil": (_torchmil, TORCHMIL),
    "clam": (_clam, CLAM),
    "stamp": (_stamp, STAMP),
}
