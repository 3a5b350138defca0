"""Benchmarks: scripts that print ratios from one run, and one door to all of them, `python -m benchmarks`."""
