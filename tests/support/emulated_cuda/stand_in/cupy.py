"""Make `import cupy` give the emulated CuPy in processes that tests start, if this folder is on PYTHONPATH."""

__version__ = "EMULATED"  # tells `install` that this is not the real one

from tests.support.emulated_cuda.modules import install

install()  # takes this module's own place
