"""Benchmarks: questions of published data sets, and the figures of the answers."""
