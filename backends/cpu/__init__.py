"""NumPy on the CPU, with kernels that Numba compiles."""
