"""Stored visual tokens: their files, manifest, and the data set that reads them."""
