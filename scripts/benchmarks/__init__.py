"""Benchmarks: `python -m scripts.benchmarks.bounds` for speed, `python -m scripts.benchmarks.limits` for limits."""
