"""Benchmarks: what Punctual does on this machine, measured from the stamps of its own runs."""
