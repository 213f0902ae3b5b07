"""Benchmarks: throughput sweeps, peers, the physical floor, and results with provenance."""
