"""Figures of the walkthroughs, one file a topic; they are shown, not saved. They look as the study's figures do."""

from dmsmil.figures import base  # noqa: F401, sets the style
