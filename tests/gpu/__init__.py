"""Tests that need a GPU, and `python -m tests.gpu`, which runs them, the tools and the benchmark: `make test-gpu`."""
