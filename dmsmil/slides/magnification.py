"""The magnification of a slide, from what its file, the cohort table and the study say of it."""

from __future__ import annotations

from dmsmil.jobs.files import InputError

SNAPS = (5, 10, 20, 40, 60, 80)  # the magnifications scanners have
AGREE = 1.15  # two magnifications within this ratio are the same one
SANE_MPP = (0.05, 4.0)  # micrometres a pixel


def base_magnification(
    name: str, objective: float, file_mpp: float, table_mpp: float = 0.0, fallback_mpp: float = 0.0
) -> tuple[float, float, list[str]]:
    """Magnification and micrometres a pixel of level 0, and warnings, from what is known (0 where nothing is).

    The size of a pixel counts: the cohort table's word for this slide, else the file's. Its magnification is 10 / mpp,
    snapped to 5, 10, 20, 40, 60 or 80 within 15 %. The objective's name is taken where it agrees, and where no size is
    known; where it contradicts, it is only a name (a 20x objective behind a magnification changer scans at 40x). The
    study's `fallback_mpp` is for slides of which neither is known. An absurd value in the file counts as absent.
    Raises InputError when nothing usable is left, and for a size in the table or the study that no slide has.
    """
    for mpp, place in ((table_mpp, "`mpp` column of the cohort table"), (fallback_mpp, "`mpp` key of the study")):
        if mpp and not SANE_MPP[0] <= mpp <= SANE_MPP[1]:
            raise InputError(
                f"slide {name}: mpp {mpp:g} is not between {SANE_MPP[0]:g} and {SANE_MPP[1]:g} "
                f"micrometres a pixel: correct the {place}"
            )
    warnings = []
    if file_mpp and not SANE_MPP[0] <= file_mpp <= SANE_MPP[1]:
        warnings.append(f"slide {name}: its mpp {file_mpp:g} is absurd and was ignored")
        file_mpp = 0.0
    if objective and not 1 <= objective <= 100:
        warnings.append(f"slide {name}: its objective power {objective:g} is absurd and was ignored")
        objective = 0.0
    if table_mpp and file_mpp and not _agree(table_mpp, file_mpp):
        warnings.append(
            f"slide {name}: mpp {table_mpp:g} in the cohort table, {file_mpp:g} in the file; the table's is used"
        )
    mpp = table_mpp or file_mpp
    if not mpp and not objective:
        mpp = fallback_mpp
    if not mpp and not objective:
        reason = f" ({warnings[-1].split(': ', 1)[1]})" if warnings else ""
        raise InputError(
            f"slide {name} states no magnification{reason}: add its micrometres a pixel as an `mpp` "
            "column of the cohort table or an `mpp` key of the study"
        )
    if not mpp:
        return objective, 10 / objective, warnings
    if objective and _agree(objective, 10 / mpp):
        return objective, mpp, warnings
    magnification = _snapped(mpp)
    if objective:
        warnings.append(
            f"slide {name}: its objective power {objective:g} contradicts mpp {mpp:g}; the mpp counts: "
            f"it is read as {magnification:g}x"
        )
    return magnification, mpp, warnings


def tile_size_level0(slide_magnification: float, magnification: float, tile_px: int) -> int:
    """Side in level-0 pixels of a tile of `tile_px` pixels at `magnification`."""
    return round(tile_px * slide_magnification / magnification)


def _snapped(mpp: float) -> float:
    """10 / mpp, or the magnification of scanners that it agrees with."""
    nearest = min(SNAPS, key=lambda snap: max(snap * mpp / 10, 10 / (snap * mpp)))
    return float(nearest) if _agree(nearest, 10 / mpp) else 10 / mpp


def _agree(a: float, b: float) -> bool:
    return max(a / b, b / a) <= AGREE
