"""Cohorts that are made here, to try a study on: painted slides, mosaics of real tissue."""
