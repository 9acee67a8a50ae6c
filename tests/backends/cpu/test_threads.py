"""Every way into the kernels runs on threads that sleep; the default number of threads heeds cores and CPU quota."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends import get_backend
from backends.cpu import threads

SCRIPTS = Path(__file__).parents[3] / "scripts"

# --- the threading layer --------------------------------------------------------------------------------------


def has_tbb() -> bool:
    """True if this environment has TBB from pip, as `.[fast]` installs it on Linux on x86-64."""
    try:
        return any(file.name == threads._TBB for file in importlib.metadata.files("tbb") or [])
    except importlib.metadata.PackageNotFoundError:
        return False


LAYER = "tbb" if has_tbb() else "workqueue"

_KERNEL = """
import numba
import numpy as np
from backends import get_backend
backend = get_backend("cpu")
assert backend.twins["squared_norm"](backend, np.ones(100_000, dtype=np.float32)) == 100_000
print(numba.threading_layer(), numba.get_num_threads())
"""
_WAYS_IN = {
    "without set_threads": "",
    "set_threads first": "from backends.cpu.threads import set_threads; set_threads(1)",
    "set_threads after the import of the kernels": "import backends.cpu.kernels\n"
    "from backends.cpu.threads import set_threads; set_threads(1)",
    "set_threads twice": "from backends.cpu.threads import set_threads; set_threads(1); set_threads(1)",
    "set_threads after the import of Numba": "import numba\n"
    "from backends.cpu.threads import set_threads; set_threads(1)",
}


def run_python(program: str, *arguments: str, **variables: str) -> str:
    """Return what a program prints in a fresh process, in which no variable chooses Numba's threads but those given."""
    hidden = ("NUMBA_THREADING_LAYER", "NUMBA_NUM_THREADS", *threads._BLAS_VARIABLES)
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    root = str(SCRIPTS.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, str(SCRIPTS), environment.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("way", _WAYS_IN)
def test_kernels_run_on_threads_that_sleep_while_they_wait(way: str):
    layer, number = run_python(_WAYS_IN[way] + _KERNEL).split()
    assert layer == LAYER
    assert number == ("1" if "set_threads" in _WAYS_IN[way] else str(threads.default_threads()))


_COMMAND = """
import atexit, runpy, sys
import numba
atexit.register(lambda: print("layer", numba.threading_layer(), numba.get_num_threads(), file=sys.__stdout__))
sys.argv.pop(0)  # the script becomes the first word, as in a command line of its own
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("\n\n".join(f"the cat {n} sat on the mat {n % 7}. it was warm {n % 5}." for n in range(300)))
    return path


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a trained model, and what its training printed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["--corpus", str(corpus), "--steps", "2", "--seq-length", "16", "--vocab-size", "120", "--output"]
    return folder, run_python(_COMMAND, str(SCRIPTS / "train.py"), *words, str(folder), "--threads", "1")


def test_training_with_threads_runs_on_threads_that_sleep(trained: tuple[Path, str]):
    assert f"layer {LAYER} 1" in trained[1]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("evaluate.py", ["--corpus", "CORPUS"]),
        ("fill_mask.py", ["the cat sat on the [MASK]"]),
        ("embed.py", ["--text", "the cat sat"]),
        (
            "finetune.py",
            [
                "--data",
                "LABELLED",
                "--text-column",
                "text",
                "--label-column",
                "label",
                "--epochs",
                "1",
                "--output",
                "NEW",
            ],
        ),
    ],
)
def test_commands_with_threads_run_on_threads_that_sleep(
    script: str, words: list[str], trained: tuple[Path, str], corpus: Path, tmp_path: Path
):
    labelled = tmp_path / "labelled.csv"
    labelled.write_text("label,text\n" + "good,warm cat\nbad,cold mat\n" * 20)
    names = {"CORPUS": str(corpus), "LABELLED": str(labelled), "NEW": str(tmp_path / "classifier")}
    words = [names.get(word, word) for word in words]
    output = run_python(_COMMAND, str(SCRIPTS / script), "--model", str(trained[0]), *words, "--threads", "1")
    assert f"layer {LAYER} 1" in output
    if script == "finetune.py":
        words = ["--model", names["NEW"], "warm cat", "--threads", "1"]
        assert f"layer {LAYER} 1" in run_python(_COMMAND, str(SCRIPTS / "classify.py"), *words)


_WORKER = """
import sys
import numba
from benchmarks.worker_minibert import main
from benchmarks.work import Work
sys.argv[1:] = [Work(layers=1, hidden=64, vocabulary=64, batch=1, length=8, threads=1, steps=1).to_json()]
main()
print(numba.threading_layer())
"""


def test_benchmark_workers_run_on_threads_that_sleep():
    assert run_python(_WORKER).splitlines()[-1] == LAYER


_WITHOUT_TBB = """
import importlib.metadata
def files(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.files = files
"""


def test_without_tbb_kernels_run_on_threads_that_sleep():
    program = "import ctypes\ntry:\n    print(ctypes.CDLL('libtbb.so.12'))\nexcept OSError:\n    print('missing')"
    if "missing" not in run_python(program):
        pytest.skip("this system has a TBB that Numba finds by itself")
    assert run_python(_WITHOUT_TBB + _KERNEL).split()[0] == "workqueue"


@pytest.mark.skipif(not has_tbb(), reason="TBB is not installed here (pip install '.[fast]' on Linux on x86-64)")
def test_a_tbb_that_cannot_be_loaded_is_not_used(tmp_path: Path):
    (tmp_path / threads._TBB).write_text("not a library")
    program = f"""
import importlib.metadata, pathlib
file = importlib.metadata.PackagePath("{threads._TBB}")
file.dist = type("Distribution", (), {{"locate_file": lambda self, name: pathlib.Path({str(tmp_path)!r}) / name}})()
importlib.metadata.files = lambda name: [file]
"""
    assert run_python(program + _KERNEL).split()[0] == "workqueue"


def test_the_layer_that_the_user_chose_stands():
    program = "from backends.cpu.threads import set_threads; set_threads(1)" + _KERNEL
    omp = "import numba\nnumba.config.THREADING_LAYER = 'omp'\n" + program
    if "omp" not in run_python("from numba.np.ufunc import omppool; print('omp')"):
        pytest.skip("this Numba has no OpenMP layer")
    assert run_python(program, NUMBA_THREADING_LAYER="omp").split()[0] == "omp"
    assert run_python(program, NUMBA_THREADING_LAYER_PRIORITY="omp workqueue tbb").split()[0] == "omp"
    assert run_python(omp).split()[0] == "omp"


# --- bits -----------------------------------------------------------------------------------------------------

_TRAIN = """
import sys
import numba
import numpy as np
import backends.cpu.kernels
from minibert import AdamW, MiniBERT, MiniBERTConfig, MiniBERTGradients

def train(precision, threads, batch, length, dtype="float32"):
    numba.set_num_threads(threads)
    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=1003), precision=precision, dtype=dtype)
    gradients, optimizer, rng = MiniBERTGradients(model), AdamW(model), np.random.default_rng(0)
    for step in range(3):
        ids = rng.integers(5, 1003, (batch, length))
        mask = np.arange(length) < rng.integers(length // 2, length + 1, (batch, 1))
        positions = np.flatnonzero((rng.random(ids.shape) < 0.15) & mask)
        _, cache = model.forward(
            ids, mask.astype(int), prediction_positions=positions, dropout_step=step, unpad=True
        )
        gradients.backward(cache, ids.reshape(-1)[positions], rng.integers(0, 2, batch))
        optimizer.step(gradients.gradients, 1e-3)
    return b"".join(np.ascontiguousarray(view).tobytes() for view in model.parameters.values())
"""
_WITH_ANY_NUMBER = (
    _TRAIN
    + """
for precision in sys.argv[1:]:
    for batch, length in ((3, 20), (8, 64), (1, 17)):
        assert len({train(precision, threads, batch, length) for threads in (1, 2, 3, 4)}) == 1, (precision, batch)
"""
)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_any_number_of_threads_computes_the_same_bits(precision: str):
    """The sizes lie on both sides of what OpenBLAS takes for a small product, and divide unevenly among threads."""
    if not get_backend("cpu").with_precision(precision, "float32").twins_have_precision:
        pytest.skip(f"no twin computes in {precision} on this processor; NumPy divides its products by itself")
    run_python(_WITH_ANY_NUMBER, precision, NUMBA_NUM_THREADS="4")


_DIGESTS = (
    _TRAIN
    + """
import hashlib
for words in sys.argv[1:]:
    precision, dtype = words.split()
    print(words, hashlib.sha256(train(precision, 1, 3, 20, dtype)).hexdigest())
"""
)


def test_kernels_compiled_just_now_compute_the_same_bits_as_kernels_from_the_cache(tmp_path: Path):
    """A function that a kernel calls exists in two versions; see `called` in backends/cpu/kernels/jit.py."""
    kinds = ["float32 float32", "float32 float64"]
    if get_backend("cpu").has_bfloat16():
        kinds.append("bfloat16 float32")
    compiled = run_python(_DIGESTS, *kinds, NUMBA_CACHE_DIR=str(tmp_path))
    assert any(tmp_path.rglob("*.nbc"))
    assert run_python(_DIGESTS, *kinds, NUMBA_CACHE_DIR=str(tmp_path)) == compiled


# --- the number of threads ------------------------------------------------------------------------------------


def plant(root: Path, groups: str, **files: str) -> Path:
    """Write proc/self/cgroup and files of sys/fs/cgroup, whose names have "__" for "/" and "_dot_" for "."."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu_dot_max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu_dot_max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a__cpu_dot_max": "300000 100000\n", "a__b__cpu_dot_max": "max 100000\n"}, 3.0),
        ("0::/a/b\n", {"a__cpu_dot_max": "50000 100000\n", "a__b__cpu_dot_max": "200000 100000\n"}, 0.5),
        ("0::/only/on/the/host\n", {"cpu_dot_max": "200000 100000\n"}, 2.0),
        ("1:name=systemd:/\n0::/\n", {"unified__cpu_dot_max": "200000 100000\n"}, 2.0),
        (V1, {"cpu__cpu_dot_cfs_quota_us": "250000\n", "cpu__cpu_dot_cfs_period_us": "100000\n"}, 2.5),
        (V1, {"cpu__cpu_dot_cfs_quota_us": "-1\n", "cpu__cpu_dot_cfs_period_us": "100000\n"}, None),
        (
            V1,
            {
                "cpu,cpuacct__docker__1f__cpu_dot_cfs_quota_us": "100000\n",
                "cpu,cpuacct__docker__1f__cpu_dot_cfs_period_us": "100000\n",
            },
            1.0,
        ),
        ("4:memory:/\n", {"cpu__cpu_dot_cfs_quota_us": "1\n", "cpu__cpu_dot_cfs_period_us": "1\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_smallest_cpu_quota_of_all_groups_counts(
    groups: str, files: dict[str, str], quota: float | None, tmp_path: Path
):
    assert threads.cpu_quota(plant(tmp_path, groups, **files)) == quota


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path):
    assert threads.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [("50000", 1), ("199999", 1), ("200000", 2), ("900000", 4), ("max", 4)])
def test_the_default_is_one_thread_a_core_within_the_quota(
    quota: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 3, 5, 7}, raising=False)
    assert threads.default_threads(plant(tmp_path, "0::/\n", cpu_dot_max=f"{quota} 100000\n")) == expected


_WITH_QUOTA = """
from backends import get_backend
from backends.cpu import threads
threads.cpu_quota = lambda root=None: 1.5
threads.os.sched_getaffinity = lambda process: range(threads.os.cpu_count())
"""


_IN_ANOTHER_THREAD = """
import threading
worker = threading.Thread(target=lambda: print(numba.get_num_threads(), "of another Python thread"))
worker.start()
worker.join()
"""


def test_kernels_and_blas_heed_the_quota_in_every_python_thread():
    blas = "print(threads.describe_threads())"
    first, other, described = run_python(_WITH_QUOTA + _KERNEL + _IN_ANOTHER_THREAD + blas).splitlines()
    assert first == f"{LAYER} 1"
    assert other == "1 of another Python thread"
    assert described.endswith(", 1 thread")


needs_two_cores = pytest.mark.skipif(threads.default_threads() < 2, reason="this process may use one core only")


@needs_two_cores
def test_a_number_that_the_user_set_stands_against_the_quota():
    blas = "print(threads.describe_threads())"
    assert run_python(_WITH_QUOTA + _KERNEL, NUMBA_NUM_THREADS="2").split()[1] == "2"
    assert run_python(_WITH_QUOTA + _KERNEL + blas, OPENBLAS_NUM_THREADS="2").endswith(", 2 threads\n")
    asked = run_python(_WITH_QUOTA + "threads.set_threads(2)" + _KERNEL + blas)
    assert asked.split()[1] == "2"
    assert asked.endswith(", 2 threads\n")


@needs_two_cores
def test_a_number_above_the_quota_is_refused_once_the_threads_run():
    late = "try:\n    threads.set_threads(2)\nexcept ValueError as error:\n    print(error)"
    assert "2 threads were asked for, but the kernels have 1" in run_python(_WITH_QUOTA + _KERNEL + late)
