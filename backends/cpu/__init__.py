"""The CPU backend: NumPy, with kernels that Numba compiles."""
