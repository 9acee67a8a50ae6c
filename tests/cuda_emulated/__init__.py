"""Tests of the CUDA path on the emulated device: `pytest --device cuda-emulated tests/cuda_emulated`."""
