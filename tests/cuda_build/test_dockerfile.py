"""Test Dockerfile.cuda without Docker: lint it, and execute its RUN and COPY steps in a folder on this machine."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile.cuda"
SUITE = (
    "tests/ops/test_ops.py",
    "tests/ops/test_twins.py",
    "tests/model/test_model.py",
    "tests/model/test_random_bits.py",
    "tests/backends/test_backends.py",
    "tests/commands/test_doctor.py",
)
"""The tests that must pass in the folder that the image's steps made."""


@dataclass(frozen=True)
class Step:
    """An instruction of the Dockerfile: its name, and the rest of its lines."""

    name: str
    rest: str


def steps() -> list[Step]:
    """Return the instructions, without comments and with continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(name: str) -> list[str]:
    return [step.rest for step in steps() if step.name == name]


def ignored(path: Path) -> bool:
    """True if .dockerignore keeps a path of the project out of the image."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    parts = path.relative_to(ROOT).parts
    return any(
        fnmatch.fnmatch(part, pattern.removeprefix("**/"))
        for pattern in patterns
        for depth, part in enumerate(parts)
        if depth == 0 or pattern.startswith("**/")
    )


def copy_context(target: Path) -> None:
    """Copy the files that `COPY . .` would copy."""

    def skipped(folder: str, names: list[str]) -> set[str]:
        return {name for name in names if ignored(Path(folder) / name)}

    shutil.copytree(ROOT, target, ignore=skipped, dirs_exist_ok=True)


def test_the_linter_has_nothing_to_say():
    linter = Path(sys.executable).parent / "hadolint"
    run = subprocess.run(
        [linter, "--config", ROOT / ".hadolint.yaml", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_linter_finds_a_fault(tmp_path: Path):
    faulty = tmp_path / "Dockerfile"
    faulty.write_text(DOCKERFILE.read_text(encoding="utf-8").replace("${PYTHON_VERSION}-slim-bookworm", "latest"))
    linter = Path(sys.executable).parent / "hadolint"
    run = subprocess.run([linter, "--config", ROOT / ".hadolint.yaml", faulty], capture_output=True, check=False)
    assert run.returncode != 0


def test_nothing_runs_as_root():
    assert of("USER") == ["1000"]


def test_the_versions_of_python_cuda_and_cupy_are_named():
    """The versions of other packages are not: pip takes the newest that pyproject.toml allows, as `make setup` does."""
    assert dict(argument.split("=") for argument in of("ARG")).keys() == {
        "PYTHON_VERSION",
        "CUDA_MAJOR",
        "CUPY_VERSION",
        "CUDA_TOOLKIT_12",
        "CUDA_TOOLKIT_13",
    }
    assert all(re.fullmatch(r"[\w.]+", argument.partition("=")[2]) for argument in of("ARG"))
    (cupy,) = re.findall(r"cupy-\S+", " ".join(of("RUN")).replace('"', " "))
    assert cupy == "cupy-cuda${CUDA_MAJOR}x[ctk]==${CUPY_VERSION}"
    assert '"cuda-toolkit==${toolkit}"' in " ".join(of("RUN"))
    for major in (12, 13):
        assert f"CUDA_TOOLKIT_{major}={major}." in " ".join(of("ARG"))
    assert {image.split()[0] for image in of("FROM")} == {"python:${PYTHON_VERSION}-slim-bookworm"}


def test_the_image_asks_the_container_runtime_for_all_gpus_and_for_what_it_needs_of_the_driver():
    """CUDA needs "compute", nvidia-smi "utility". NVIDIA's images set both variables, but this one is Python's."""
    (environment,) = (rest for rest in of("ENV") if "CUPY_CACHE_DIR" in rest)
    variables = dict(assignment.split("=", 1) for assignment in environment.split())
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"


def test_the_programs_that_the_image_starts_exist():
    for command in (of("CMD")[-1], of("HEALTHCHECK")[-1].split("CMD ", 1)[1]):
        program, script, *_ = json.loads(command)
        assert program == "python"
        assert (ROOT / script).is_file()
        assert not ignored(ROOT / script)


def test_the_check_of_its_health_takes_nothing_from_the_training():
    """The whole doctor trains and needs free memory, which a healthy training may have taken."""
    command = json.loads(of("HEALTHCHECK")[-1].split("CMD ", 1)[1])
    assert command[1:] == ["scripts/doctor.py", "--device", "cuda", "--alive"]


def test_history_environments_and_results_stay_out():
    for name in (".git", ".venv", ".venv-cuda", "runs", "minibert.egg-info", "build", "tests/__pycache__"):
        assert ignored(ROOT / name), name
    for name in ("backends/cuda/kernels.cu", "minibert/model.py", "tests/conftest.py", "pyproject.toml", "README.md"):
        assert not ignored(ROOT / name), name


def interpreters() -> dict[str, str]:
    """Return the Pythons of this machine that the image may have: version -> program.

    A name on the path may be a script that runs no Python.
    """
    found: dict[str, str] = {}
    for name in ("python3.11", "python3.12", sys.executable):
        if not (program := shutil.which(name)):
            continue
        ask = "import sys; print('%d.%d' % sys.version_info[:2], sys._base_executable)"
        run = subprocess.run([program, "-c", ask], capture_output=True, text=True, check=False)
        if run.returncode == 0:
            version, plain = run.stdout.strip().split(maxsplit=1)
            found.setdefault(version, plain)
    return {version: plain for version, plain in found.items() if version in ("3.11", "3.12")}


INTERPRETERS = interpreters()


def test_there_is_a_python_that_the_image_may_have():
    """Without one, the tests below would not run, and so could not fail."""
    assert INTERPRETERS


@pytest.mark.parametrize(
    ("version", "cuda_major"), [*((version, 12) for version in INTERPRETERS), *((v, 13) for v in [*INTERPRETERS][-1:])]
)
def test_the_steps_run_and_the_result_passes_the_cpu_suite(version: str, cuda_major: int, tmp_path: Path):
    """The wheels resolve and import, the project installs, and the commands work.

    A folder of this machine stands for the container's root.
    """
    opt, work, kernels = tmp_path / "opt", tmp_path / "work", tmp_path / "kernels"
    work.mkdir()
    inside = {"/opt/minibert": str(opt / "minibert"), "/minibert": str(work), "/kernels": str(kernels)}
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= dict(argument.split("=") for argument in of("ARG")) | {"CUDA_MAJOR": str(cuda_major)}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "CUPY_CACHE_DIR": str(kernels)}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(INTERPRETERS[version])
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}"

    def run(command: str) -> str:
        for path, here in inside.items():
            command = re.sub(rf"(?<![\w/]){path}(?=/|\s|$)", here, command)
        done = subprocess.run(
            ["sh", "-c", command], cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    left_out = []
    for step in steps():
        if step.name == "RUN" and step.rest.startswith("useradd"):
            left_out.append(step.rest)  # this machine gets no user
        elif step.name == "RUN":
            run(step.rest)
        elif step.name == "COPY" and "--from=build" not in step.rest:
            assert shlex.split(step.rest)[-2:] == [".", "."]
            copy_context(work)
    assert len(left_out) == 1
    interpreter = "/opt/minibert/bin/python"
    ask = "import cupy; from cupy_backends.cuda.libs import nvrtc; print(nvrtc.getVersion()[0])"
    assert run(f'{interpreter} -c "{ask}"').strip() == str(cuda_major)
    if cuda_major != 12:  # the environment that runs this test compiles with CUDA 12 already
        assert "passed" in run(f"{interpreter} -m pytest -q tests/cuda_build/test_nvrtc.py")
        return  # the steps that follow do not depend on the version of CUDA
    run(f"{interpreter} scripts/doctor.py --device cpu --quick")
    run(f"{interpreter} scripts/train.py --help")
    assert "passed" in run(f"{interpreter} -m pytest -q {' '.join(SUITE)}")
