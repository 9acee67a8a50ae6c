"""Helpers that several tests share: backends, comparisons, small models and runs, an emulated CUDA device."""
