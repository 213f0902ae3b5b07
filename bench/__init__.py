"""Benchmarks: throughput, other implementations, the roofline floor, results with provenance."""
