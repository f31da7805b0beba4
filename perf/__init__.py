"""Benchmarks. Each file in this folder is a command: `python -m perf.whole`."""
