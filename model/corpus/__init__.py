"""Corpora of any size to visual tokens: sources, the work on a shard, and its engines."""
