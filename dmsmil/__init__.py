"""DMSMIL."""

__version__ = "0.2.0"  # here alone: pyproject.toml reads it, tests hold CITATION.cff and CHANGELOG.md to it
