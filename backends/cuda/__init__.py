"""The CUDA backend: CuPy, with kernels that NVRTC compiles."""
