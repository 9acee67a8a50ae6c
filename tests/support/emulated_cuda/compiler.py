"""Compile CUDA C++ for the CPU, with the emulation of CUDA's execution model in include/, and launch its kernels."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

INCLUDE = Path(__file__).parent / "include"
BUILD = Path(__file__).parents[3] / "build" / "emulated-cuda"

ASCENDING, DESCENDING, MIXED = ORDERS = 0, 1, 2
"""The orders in which threads may run. A kernel must give the same result in each."""

_KERNEL = re.compile(r"__global__\s+void\s+(\w+)\s*\(")
_FLAGS = ("-O2", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE")
_LETTER_OF_TYPE = {
    np.dtype("int32"): "i",
    np.dtype("uint32"): "I",
    np.dtype("int64"): "q",
    np.dtype("float32"): "f",
    np.dtype("float64"): "d",
}


class EmulationError(RuntimeError):
    """A launch that would be an error on a GPU, or whose result would be undefined."""


@cache
def compiler() -> tuple[str, ...]:
    """Return the command of a C++ compiler: $CXX, one on the path, or the one in the ziglang package.

    Raises:
        EmulationError: none of them.
    """
    if os.environ.get("CXX"):
        return tuple(os.environ["CXX"].split())
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return (name,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "c++")
    raise EmulationError("the emulated CUDA device needs a C++ compiler: pip install '.[cuda-build]' brings one")


def _command() -> list[str]:
    return [*compiler(), *_FLAGS, f"-I{INCLUDE}"]


def kernel_names(source: str) -> list[str]:
    """Return the names of the kernels that a source defines, also of those that its macros define."""
    expanded = re.sub(r"//[^\n]*", "", source)
    names = _KERNEL.findall(expanded)
    for macro, body in re.findall(r"#define (\w+)\(name, \w+\)((?:.*\\\n)*.*)", expanded):
        patterns = re.findall(r"__global__\s+void\s+(\w+)##name##(\w+)", body)
        for use in re.findall(rf"^{macro}\((\w+),", expanded, flags=re.MULTILINE):
            names += [before + use + after for before, after in patterns]
    return names


class EmulatedModule:
    """The kernels of one source, compiled once and kept in build/emulated-cuda.

    Args:
        source: CUDA C++.
        options: -D options, as NVRTC takes them; others do not concern the CPU.

    Raises:
        EmulationError: the source does not compile. The message contains the compiler's message.
    """

    def __init__(self, source: str, options: Sequence[str] = ()) -> None:
        names = kernel_names(source)
        table = "\n".join(f"    EMULATED_KERNEL({name})" for name in names)
        text = (
            f'#include "cuda_emulation.h"\n#line 1 "kernels.cu"\n{source}\n'
            f"static const emulation::Kernel emulated_kernels[] = {{\n{table}\n}};\n"
            '#include "cuda_emulation_launch.h"\n'
        )
        defines = [option for option in options if option.startswith("-D")]
        self._library = ctypes.CDLL(str(_built(text, defines)))
        self._library.emulated_parameters.restype = ctypes.c_char_p
        self._library.emulated_launch.restype = ctypes.c_char_p
        self.names = tuple(names)

    def parameters(self, name: str) -> str:
        """Return the types of a kernel's parameters, a letter each: P pointer, i I q integers, f d floating.

        Raises:
            EmulationError: no such kernel.
        """
        letters = self._library.emulated_parameters(name.encode())
        if letters is None:
            raise EmulationError(f"there is no kernel called {name}")
        return bytes(letters).decode()

    def launch(
        self,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[int | np.generic],
        shared_bytes: int = 0,
        order: int = ASCENDING,
    ) -> None:
        """Run a kernel.

        Args:
            name: of the kernel.
            grid: blocks in up to three directions.
            block: threads, likewise.
            arguments: an address (int) or null (NumPy uint64) for a pointer, a NumPy scalar for anything else.
            shared_bytes: of dynamic shared memory.
            order: in which the threads run.

        Raises:
            EmulationError: arguments of other types than the kernel has, or anything undefined in CUDA.
        """
        letters = self.parameters(name)
        given = "".join(
            "P" if isinstance(value, int | np.uint64) else _LETTER_OF_TYPE.get(value.dtype, "?") for value in arguments
        )
        if given != letters:
            raise EmulationError(f"{name} takes arguments of the types {letters}, but was given {given}")
        values = [np.asarray(np.uint64(value) if isinstance(value, int) else value) for value in arguments]
        addresses = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        sizes = [(ctypes.c_uint * 3)(*(*size, 1, 1)[:3]) for size in (grid, block)]
        error = self._library.emulated_launch(name.encode(), *sizes, addresses, ctypes.c_size_t(shared_bytes), order)
        if error is not None:
            raise EmulationError(f"{name}: {error.decode()}")


def _built(text: str, defines: Sequence[str]) -> Path:
    """Return the path of the shared library of a source, compiled unless it exists."""
    headers = "".join(path.read_text(encoding="utf-8") for path in sorted(INCLUDE.iterdir()))
    digest = hashlib.sha256(repr((text, headers, defines, _command())).encode()).hexdigest()[:24]
    library = BUILD / f"{digest}.so"
    if library.exists():
        return library
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        source, made = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        source.write_text(text, encoding="utf-8")
        run = subprocess.run(
            [*_command(), *defines, str(source), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise EmulationError(f"the kernels do not compile:\n{run.stderr[-4000:]}")
        made.replace(library)  # atomic, because another process may build the same library
    return library
