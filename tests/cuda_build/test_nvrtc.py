"""NVIDIA's compiler NVRTC compiles every kernel, for every generation of GPU since Volta.

No GPU and no driver is needed. `make test-cuda-build` runs this where CuPy and NVRTC are installed.
"""

from __future__ import annotations

import re
from functools import cache
from unittest import mock

import pytest
from cupy._core import core
from cupy.cuda import compiler
from cupy_backends.cuda.libs import nvrtc

from backends.cuda import launch
from backends.cuda.launch import STORAGE_BITS, source
from tests.support.emulated_cuda.compiler import kernel_names

VOLTA = ("70",) if nvrtc.getVersion()[0] < 13 else ()  # CUDA 13 no longer compiles for Volta
MUST = (*VOLTA, "75", "80", "86", "89", "90")  # Turing, Ampere (A100; 30xx), Ada, Hopper
LARGEST_BLOCK = 1024  # threads in a block of a by-column kernel
MAY = ("100", "120")  # Blackwell: from CUDA 12.8 on


def targets() -> list[str]:
    known = {str(architecture) for architecture in nvrtc.getSupportedArchs()}
    return [*MUST, *(target for target in MAY if target in known)]


class HandedOverError(Exception):
    """Carries what CuPy hands to NVRTC."""

    def __init__(self, text: str, options: tuple[str, ...], *_: object) -> None:
        super().__init__()
        self.text, self.options = text, options


@cache
def handed_over(dtype: str) -> HandedOverError:
    """Let CuPy compile the source as a `RawModule` does; return the source and the options that it hands to NVRTC.

    The target alone is missing. CuPy would ask the device for it.
    """

    def stop(*arguments: object) -> None:
        raise HandedOverError(*arguments)  # type: ignore[arg-type]

    with (
        mock.patch.object(compiler, "_get_arch", return_value="80"),
        mock.patch.object(compiler, "_get_arch_for_options_for_nvrtc", return_value=("-arch=sm_80", "cubin")),
        mock.patch.object(compiler, "_preprocess", return_value=""),
        mock.patch.object(compiler._kernel_cache_backend, "load", return_value=None),
        mock.patch.object(compiler, "_compile_using_nvrtc_no_warning", stop),
        pytest.raises(HandedOverError) as found,
    ):
        core.compile_with_cache(source(), launch.options(dtype), prepend_cupy_headers=False)
    return found.value


def options(dtype: str) -> tuple[str, ...]:
    """Return the options with which CuPy compiles the kernels."""
    return *handed_over(dtype).options, "--device-as-default-execution-space"  # which CuPy adds at the last moment


def cubin(text: str, dtype: str, target: str) -> bytes:
    """Return the machine code of a source, compiled with CuPy's options."""
    program = nvrtc.createProgram(text, "kernels.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*options(dtype), f"-arch=sm_{target}"))
        return nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


def compiled_to_ptx(dtype: str) -> str:
    """Return the source as NVIDIA's intermediate code, which shows each operation."""
    program = nvrtc.createProgram(source(), "kernels.cu", (), ())
    nvrtc.compileProgram(program, (*options(dtype), "-arch=compute_80"))
    text = nvrtc.getPTX(program)
    nvrtc.destroyProgram(program)
    return text.decode() if isinstance(text, bytes) else text


def test_the_compiler_knows_all_generations():
    assert set(MUST) <= {str(architecture) for architecture in nvrtc.getSupportedArchs()}


@pytest.mark.parametrize("dtype", STORAGE_BITS)
@pytest.mark.parametrize("target", targets(), ids=lambda target: f"sm_{target}")
def test_every_kernel_compiles(target: str, dtype: str):
    machine_code = cubin(source(), dtype, target)
    for name in kernel_names(source()):
        assert f".text.{name}\0".encode() in machine_code, name  # the section of its instructions


@pytest.mark.parametrize("dtype", STORAGE_BITS)
def test_cupy_adds_the_options_that_the_docs_name(dtype: str):
    """It compiles every source in C++17, and float32 kernels treat subnormal numbers as zero."""
    given = options(dtype)
    assert f"-DSTORAGE_BITS={STORAGE_BITS[dtype]}" in given
    assert "-ftz=true" in given
    assert [option.lstrip("-") for option in given if "std=" in option] == ["std=c++17"]
    assert handed_over(dtype).text == source()


def test_subnormal_float32_numbers_become_zero_as_the_docs_say():
    ptx = compiled_to_ptx("float32")
    assert "mul.ftz.f32" in ptx
    assert not re.search(r"\b(mul|add|sub)(\.rn)?\.f32", ptx)


def test_a_mistake_does_not_compile():
    with pytest.raises(pytest.fail.Exception, match='"warp_sum" is undefined'):
        cubin(source().replace("warp_sum(", "warp_summ(", 1), "float32", "80")


def test_no_float32_kernel_computes_in_float64():
    """A literal without a cast would do so, and consumer GPUs are 64 times slower in float64.

    Conversions of parameters from float64 are fine.
    """
    lines = [line.strip() for line in compiled_to_ptx("float32").splitlines() if ".f64" in line]
    arithmetic = [line for line in lines if line.startswith(("mul", "fma", "div", "sqrt"))]
    assert arithmetic == []


@pytest.mark.parametrize("dtype", STORAGE_BITS)
@pytest.mark.parametrize("target", MUST)
def test_the_largest_block_has_enough_registers_and_none_spill(target: str, dtype: str):
    """A block has 65,536 registers. A launch that needs more fails, which only a real GPU would show."""
    program = nvrtc.createProgram(source(), "kernels.cu", (), ())
    nvrtc.compileProgram(program, (*options(dtype), f"-arch=sm_{target}", "--ptxas-options=-v"))
    log = nvrtc.getProgramLog(program)
    nvrtc.destroyProgram(program)
    reports = re.findall(r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", log, re.DOTALL)
    assert {name for name, _, _ in reports} == set(kernel_names(source()))
    for name, spilled, registers in reports:
        assert int(spilled) == 0, name
        assert int(registers) * LARGEST_BLOCK <= 65536, name
