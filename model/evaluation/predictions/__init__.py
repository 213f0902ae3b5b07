"""Predictions of other programs: their file formats, and the samples that they answer."""
