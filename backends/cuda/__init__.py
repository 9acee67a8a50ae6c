"""CuPy on a CUDA GPU, with kernels that NVRTC compiles."""
