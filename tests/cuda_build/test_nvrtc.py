"""NVIDIA's compiler NVRTC compiles every kernel, for every generation of GPU since Volta.

No GPU and no driver is needed. `make test-cuda-build` runs this where CuPy and NVRTC are installed.
"""

from __future__ import annotations

import re

import pytest
from cupy.cuda import compiler
from cupy_backends.cuda.libs import nvrtc

from backends.cuda.launch import STORAGE_BITS, options, source
from tests.support.emulated_cuda.compiler import kernel_names

VOLTA = ("70",) if nvrtc.getVersion()[0] < 13 else ()  # CUDA 13 no longer compiles for Volta
MUST = (*VOLTA, "75", "80", "86", "89", "90")  # Turing, Ampere (A100; 30xx), Ada, Hopper
LARGEST_BLOCK = 1024  # threads in a block of a by-column kernel
MAY = ("100", "120")  # Blackwell: from CUDA 12.8 on


def targets() -> list[str]:
    known = {str(architecture) for architecture in nvrtc.getSupportedArchs()}
    return [*MUST, *(target for target in MAY if target in known)]


def cubin(text: str, dtype: str, target: str) -> bytes:
    """Return the machine code of a source."""
    program = nvrtc.createProgram(text, "kernels.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"-arch=sm_{target}", *options(dtype)))
        return nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


def test_the_compiler_knows_all_generations():
    assert set(MUST) <= {str(architecture) for architecture in nvrtc.getSupportedArchs()}


@pytest.mark.parametrize("dtype", STORAGE_BITS)
@pytest.mark.parametrize("target", targets(), ids=lambda target: f"sm_{target}")
def test_every_kernel_compiles(target: str, dtype: str):
    machine_code = cubin(source(), dtype, target)
    for name in kernel_names(source()):
        assert f".text.{name}\0".encode() in machine_code, name  # the section of its instructions


@pytest.mark.parametrize("dtype", STORAGE_BITS)
def test_cupy_compiles_the_source_as_the_backend_hands_it_over(dtype: str, monkeypatch: pytest.MonkeyPatch):
    """CuPy adds its own options. Only the target is given here, since CuPy would ask the device for it."""
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", lambda arch: ("-arch=sm_80", "cubin"))
    result, *_ = compiler.compile_using_nvrtc(source(), options=options(dtype), arch="80")
    assert result


def test_a_mistake_does_not_compile():
    with pytest.raises(pytest.fail.Exception, match='"warp_sum" is undefined'):
        cubin(source().replace("warp_sum(", "warp_summ(", 1), "float32", "80")


def test_no_float32_kernel_computes_in_float64():
    """A literal without a cast would do so, and consumer GPUs are 64 times slower in float64.

    Conversions of parameters from float64 are fine.
    """
    program = nvrtc.createProgram(source(), "kernels.cu", (), ())
    nvrtc.compileProgram(program, ("-arch=compute_80", *options("float32")))
    text = nvrtc.getPTX(program)
    text = text.decode() if isinstance(text, bytes) else text
    nvrtc.destroyProgram(program)
    lines = [line.strip() for line in text.splitlines() if ".f64" in line]
    arithmetic = [line for line in lines if line.startswith(("mul", "fma", "div", "sqrt"))]
    assert arithmetic == []


@pytest.mark.parametrize("dtype", STORAGE_BITS)
@pytest.mark.parametrize("target", MUST)
def test_the_largest_block_has_enough_registers_and_none_spill(target: str, dtype: str):
    """A block has 65,536 registers. A launch that needs more fails, which only a real GPU would show."""
    program = nvrtc.createProgram(source(), "kernels.cu", (), ())
    nvrtc.compileProgram(program, (f"-arch=sm_{target}", "--ptxas-options=-v", *options(dtype)))
    log = nvrtc.getProgramLog(program)
    nvrtc.destroyProgram(program)
    reports = re.findall(r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", log, re.DOTALL)
    assert {name for name, _, _ in reports} == set(kernel_names(source()))
    for name, spilled, registers in reports:
        assert int(spilled) == 0, name
        assert int(registers) * LARGEST_BLOCK <= 65536, name
