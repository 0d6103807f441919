"""Benchmarks: each prints its figures beside their targets and saves them with machine and commit."""
