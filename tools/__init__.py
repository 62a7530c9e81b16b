"""Maintainers' programs: benchmarks, and makers of weights for tests and the demonstration."""
