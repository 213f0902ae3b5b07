"""A corpus of any size to shards of visual tokens."""
