"""DMSMIL."""
