"""What is said of every prediction: what it must not be used for, and by what the study knows a slide."""

from __future__ import annotations

NOT_FOR = (
    "For research on slides alone. It is no medical device: no prediction of it may be used for a patient, to "
    "diagnose, to triage, to screen, to grade, or to choose a treatment."
)
MARKS = {"slide": "its name", "patient": "its patient", "content": "what its tiles show"}  # of a slide that is known


def known_by(known: str) -> str:
    """The column `known` of predictions ("slide, content") in words."""
    return ", ".join(MARKS[what] for what in known.split(", "))
