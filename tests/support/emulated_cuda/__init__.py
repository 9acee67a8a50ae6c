"""An emulated CUDA device: it runs the kernels' own source on the CPU, behind names of CuPy.

Nothing here is fast, and nothing here is a GPU. All results that come from it say "emulated". See docs/cuda.md.

- `include/`: CUDA's execution model (blocks, warps, barriers, shuffles, shared memory) for the C++ compiler;
- `compiler.py`: from kernel source to functions;
- `device.py`, `array.py`, `functions.py`, `cublas.py`, `modules.py`: the emulated CuPy, whose names and signatures
  tests/cuda_build compares with the real one;
- `run.py`: runs a script on it.
"""
