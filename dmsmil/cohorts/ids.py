"""Names that become files: which may, and which two mean the same slide."""

from __future__ import annotations

import re
import unicodedata

from dmsmil.jobs.files import InputError

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm")
FEATURE_SUFFIXES = (".h5", ".pt")
TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
OME = ".ome"  # stands before the suffix of an OME-TIFF
SUFFIX = re.compile("(" + "|".join(map(re.escape, (*SLIDE_SUFFIXES, *FEATURE_SUFFIXES, OME))) + ")+$", re.IGNORECASE)
BARCODE = re.compile(r"TCGA-\w\w-\w{4}-\d\d[A-Z]-\d\d-[A-Z]{2,3}\w*", re.ASCII)  # of a slide, without its UUID
TCGA = re.compile(r"(?P<patient>TCGA-(?P<site>\w\w)-\w{4})")  # how a barcode begins
MINUS = "\u2212"  # which Unicode does not call a dash
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
LONGEST = 240  # bytes of a file's name; most disks take 255, and `.part` and the like come behind it
LONGEST_ID = 200  # bytes of a slide_id: `.<slide_id>_patches.h5.<process>.tmp` is a file's name too


def plain_name(name: str, longest: int = LONGEST) -> str:
    """`name` if any disk takes it as a file's name; InputError if it could lead elsewhere, hide, or be a device.

    Whoever wrote a table, or runs a server, may have put anything there.
    """
    odd = not name or not name.isprintable() or re.search(r'[/\\:*?"<>|]', name)
    hidden = name.startswith((".", "-", "~", " ")) or name.endswith((".", " "))
    if odd or hidden or name.split(".")[0].strip().lower() in DEVICES:
        raise InputError(f"{name[:60]!r} is not a plain file name: no folder, no leading dot or dash, no odd signs")
    if len(name.encode()) > longest:
        raise InputError(f"{name[:60]!r}... is not a plain file name: {longest} bytes at most")
    return name


def bare_name(slide_id: str) -> str:
    """A slide's name as it is compared: without the suffix of its slide or feature file, without the .0 that
    spreadsheets and pandas put behind a number, and with its accents coded in one way (a Mac's disk has another)."""
    return re.sub(r"^(\d+)[.,]0+$", r"\1", SUFFIX.sub("", unicodedata.normalize("NFC", slide_id)))


def alike(name: str) -> str:
    """What two names share that look alike: that differ in case, in spaces, in which dash they have, in signs that are
    not seen, or in how their accents are coded."""
    text, seen = unicodedata.normalize("NFKC", name), []
    for sign in text:
        kind = unicodedata.category(sign)
        if kind != "Cf":  # such as a zero-width space
            seen.append("-" if kind == "Pd" or sign == MINUS else sign)
    return "".join("".join(seen).split()).casefold()


def tcga_patient(name: str) -> str:
    """The patient whom a TCGA barcode names; "" of other names."""
    found = TCGA.match(name)
    return found["patient"] if found else ""
