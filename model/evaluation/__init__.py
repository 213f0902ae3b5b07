"""Evaluation: benchmarks on published data sets, and their metrics."""
