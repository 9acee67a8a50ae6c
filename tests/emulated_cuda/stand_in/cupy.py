"""With this folder and tests/ on PYTHONPATH, `import cupy` gives the emulated CuPy; for processes started by tests."""

__version__ = "EMULATED"  # tells `install` that this is not the real one

from emulated_cuda.modules import install

install()  # takes this module's own place
