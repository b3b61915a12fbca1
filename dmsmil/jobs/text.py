"""Names that somebody else chose, in text that is Markdown; numbers and names in a sentence."""

from __future__ import annotations

import re

MARKUP = re.compile(
    r"[\\`*|$~#]"  # emphasis, code, tables, maths, headings
    r"|<(?=[\w/!?])|&(?=[\w#])"  # tags and entities of HTML; `p < 0.05` is none
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis again; `in_a_word` is none
    r"|\](?=[(\[:])"
)  # links
START = re.compile(r"[-+>%]")  # a list, a quotation, a comment
NUMBER = re.compile(r"\d+(?=[.)](?:\s|$))")  # of a list


def as_written(said: object) -> str:
    """A name (of a class, slide, site, study, file, method), or a sentence with names, as Markdown that reads as it was
    written: no mark of it is markup, no tag of it is HTML. Line breaks become spaces.

    Names of letters, digits and the usual signs stay as they are. Not for what is Markdown already.
    """
    text = MARKUP.sub(r"\\\g<0>", " ".join(str(said).split()))
    if START.match(text):
        return f"\\{text}"
    return NUMBER.sub(r"\g<0>\\", text, count=1) if NUMBER.match(text) else text


def many(count: int, noun: str) -> str:
    """A number of things: 1 slide, 2 slides, 1,000 slides."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(names: list[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
