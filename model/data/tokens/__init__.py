"""Stored visual tokens: their records, files, manifest, and the data set that reads them."""
