"""A training step needs few launches, never waits for the device, and computes the same numbers as on the CPU."""

from __future__ import annotations

import runpy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends import Backend, get_backend
from backends.cuda import backend as cupy_backend
from minibert import MiniBERT, MiniBERTConfig
from minibert.gradient_accumulator import GradientAccumulator
from minibert.gradients import MiniBERTGradients
from minibert.kernels import Kernels
from minibert.optimizer import AdamW
from minibert.training.trainer import Trainer
from tests.support.emulated_cuda.device import ACTIVITY, DeviceError
from tests.support.small_batch import V, small_batch

PER_LAYER, OF_THE_PRUNED_LAYER, BEYOND = 33, 40, 57
"""The numbers of launches that docs/cuda.md gives."""

ROOT = Path(__file__).parents[2]


def config(layers: int) -> MiniBERTConfig:
    return MiniBERTConfig.preset("tiny", vocab_size=V, num_hidden_layers=layers)


def trainer(backend: Backend, layers: int = 2, **arguments: object) -> Trainer:
    model = MiniBERT(config(layers), backend=backend, seed=3, **arguments)
    return Trainer(model, AdamW(model))


def count_launches(backend: Backend, monkeypatch: pytest.MonkeyPatch, *, padded: bool) -> tuple[list[int], int]:
    """Count the launches of one training step, after everything is compiled.

    Returns:
        The launches in each of three layers, and those outside the layers.
    """
    in_layers = Counter[int]()

    def counted(layer: Callable[..., object]) -> Callable[..., object]:
        def call(self: object, n: int, *arguments: object) -> object:
            before = ACTIVITY.launches.total()
            result = layer(self, n, *arguments)
            in_layers[n] += ACTIVITY.launches.total() - before
            return result

        return call

    some = trainer(backend, 3)
    some.step(small_batch(0, padded=padded), 1e-3)
    for owner in (MiniBERT, MiniBERTGradients):
        monkeypatch.setattr(owner, "_layer", counted(owner._layer))
    ACTIVITY.reset()
    some.step(small_batch(1, padded=padded), 1e-3)
    return [in_layers[n] for n in range(3)], ACTIVITY.launches.total() - in_layers.total()


@pytest.mark.parametrize("tf32", ["0", "1"])
@pytest.mark.parametrize("padded", [True, False])
def test_a_step_takes_the_launches_that_the_docs_count(
    padded: bool, tf32: str, monkeypatch: pytest.MonkeyPatch, use_tf32: Callable[[str], None]
):
    """Forward and backward together.

    The last layer computes only the predicted positions. It has more launches than the others, since it gathers its
    queries and projects them separately.
    """
    use_tf32(tf32)
    layers, beyond = count_launches(get_backend("cuda"), monkeypatch, padded=padded)
    assert (layers, beyond) == ([PER_LAYER, PER_LAYER, OF_THE_PRUNED_LAYER], BEYOND)


@pytest.mark.parametrize("tf32", ["0", "1"])
def test_tf32_on_request_applies_to_every_product(tf32: str, use_tf32: Callable[[str], None]):
    """CuPy alone would use TF32 only in products of two matrices, not in batched products or in `gemm`."""
    use_tf32(tf32)
    backend = get_backend("cuda")
    almost_one = backend.asarray(np.full((2, 2), 1.0 + 2.0**-12, dtype=np.float32))  # 1.0 in TF32
    zeros = backend.asarray(np.zeros((2, 2), dtype=np.float32))
    results = (
        backend.cupy.matmul(almost_one, almost_one),
        backend.cupy.matmul(almost_one[None, :, :], almost_one[None, :, :])[0, :, :],
        Kernels(backend).linear_backward_input(almost_one, almost_one, zeros),
    )
    for result in results:
        assert (backend.to_numpy(result) == 2.0).all() == (tf32 == "1")


def test_the_estimate_in_the_docs_is_of_these_launches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    script = runpy.run_path(str(ROOT / "scripts" / "estimate_gpu_step.py"))
    monkeypatch.setattr("sys.argv", ["estimate_gpu_step.py"])
    script["main"]()
    docs = (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out in docs
    names = "LAUNCHES_PER_LAYER", "LAUNCHES_OF_THE_PRUNED_LAYER", "LAUNCHES_BEYOND"
    assert tuple(script[name] for name in names) == (PER_LAYER, OF_THE_PRUNED_LAYER, BEYOND)


def test_a_batch_travels_in_one_transfer_and_its_labels_in_one_each(cuda: Backend):
    some = trainer(cuda)
    for next_sentence, expected in ((True, 3), (False, 2)):
        given = small_batch(0) if next_sentence else replace(small_batch(0), next_sentence_labels=None)
        ACTIVITY.reset()
        some.step(given, 1e-3)
        assert ACTIVITY.uploads == expected


def odd_arrays() -> dict[str, np.ndarray]:
    """Return arrays of such sizes that, packed without gaps, the next array would start at an odd address."""
    return {
        "three bytes": np.array([1, 2, 3], dtype=np.uint8),
        "floats": np.linspace(-1.0, 1.0, 15).reshape(3, 5),
        "none": np.zeros((0, 4), dtype=np.float32),
        "a number": np.array(7, dtype=np.int32),
        "every other": np.arange(10, dtype=np.int32)[::2],
        "flags": np.array([True, False, True]),
        "ids": np.array([2, 0, 1], dtype=np.int32),
    }


def test_arrays_of_one_transfer_arrive_as_they_were(cuda: Backend):
    host = odd_arrays()
    arrived = cuda.upload(host)
    assert (ACTIVITY.uploads, ACTIVITY.waits, ACTIVITY.launches.total()) == (1, 0, 0)
    assert arrived.keys() == host.keys()
    for name, array in host.items():
        found = cuda.to_numpy(arrived[name])
        assert (found.dtype, found.shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found, array, err_msg=name)
    assert cuda.upload({}) == {}


@pytest.mark.parametrize("alignment", [1, 16])
def test_arrays_of_one_transfer_lie_where_kernels_can_read_them(
    alignment: int, cuda: Backend, monkeypatch: pytest.MonkeyPatch
):
    """A GPU reads a number only at an address that is a multiple of its size. The emulated device checks this."""
    monkeypatch.setattr(cupy_backend, "_UPLOAD_ALIGNMENT", alignment)
    ids = cuda.upload(odd_arrays())["ids"]
    table = cuda.asarray(np.eye(3, dtype=np.float32))
    kernels = Kernels(cuda)
    if alignment == 1:
        with pytest.raises(DeviceError, match="misaligned address of an array of int32"):
            kernels.embedding_forward((table,), (ids,))
    else:
        np.testing.assert_array_equal(cuda.to_numpy(kernels.embedding_forward((table,), (ids,))), np.eye(3)[[2, 0, 1]])


def test_a_step_never_waits_for_the_device(cuda: Backend):
    some = trainer(cuda)
    some.step(small_batch(0), 1e-3)
    ACTIVITY.reset()
    for step in range(1, 4):
        some.step(small_batch(step), 1e-3)
    assert (ACTIVITY.waits, ACTIVITY.downloads) == (0, 0)
    some.collect()
    assert ACTIVITY.downloads == 2  # the losses and the norms of all three steps, at once


def test_no_product_copies_an_operand(cuda: Backend):
    some = trainer(cuda)
    ACTIVITY.reset()
    some.step(small_batch(0), 1e-3)
    assert not [name for name in ACTIVITY.launches if "copy of" in name]


def test_twenty_steps_have_the_losses_of_the_cpu(cuda: Backend):
    """With dropout, padding and both losses. If dropout's masks differed, the losses would differ at once."""
    losses = {}
    for name, backend, kernels in (("cpu", get_backend("cpu"), "reference"), ("cuda", cuda, "auto")):
        some = trainer(backend, kernels=kernels)
        for step in range(20):
            some.step(small_batch(step), 2e-3)
        losses[name] = some.collect().losses
    assert losses["cpu"][0] != losses["cpu"][-1]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-5)


def test_two_runs_are_the_same_bit_for_bit_when_asked_for(cuda: Backend, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINIBERT_DETERMINISTIC", "1")
    backend = get_backend("cuda")
    results = []
    for _ in range(2):
        some = trainer(backend)
        for step in range(3):
            some.step(small_batch(step), 2e-3)
        results.append(backend.to_numpy(some.model.parameters.flat))
    np.testing.assert_array_equal(*results)
    assert ACTIVITY.launches["scatter_add_runs"] > 0
    assert "add.at" not in ACTIVITY.launches


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_squared_norm_takes_no_memory(dtype: str, cuda: Backend):
    host = np.arange(3000, dtype=dtype)
    x = cuda.asarray(host)
    pool = cuda.cupy.get_default_memory_pool()
    pool.free_all_blocks()
    ACTIVITY.reset()
    before = pool.total_bytes()
    norm = Kernels(cuda).squared_norm(x)
    assert (pool.total_bytes() - before, ACTIVITY.waits) == (x.itemsize, 0)
    assert float(norm) == pytest.approx(float(host @ host))


def test_the_squared_norm_of_an_array_with_gaps_is_of_its_own_elements(cuda: Backend):
    """cuBLAS is told that there are no gaps: without a copy, it would read the elements between."""
    gaps = cuda.asarray(np.array([1, 50, 2, 60, 3, 70], dtype=np.float32))[::2]
    assert float(Kernels(cuda).squared_norm(gaps)) == 14.0


def test_a_scatter_add_is_one_launch_and_leaves_the_filters_of_warnings_alone(
    cuda: Backend, monkeypatch: pytest.MonkeyPatch
):
    """Entering a filter at every call changes the filters of all threads, not only those of this one."""
    target, rows = (cuda.asarray(np.ones((n, 2), dtype=np.float32)) for n in (4, 3))
    monkeypatch.setattr("warnings.catch_warnings", None)
    ids = cuda.asarray(np.array([0, 3, 0], dtype=np.int32))
    ACTIVITY.reset()
    cuda.scatter_add(target, ids, rows)
    assert ACTIVITY.launches == {"add.at": 1}
    assert cuda.to_numpy(target)[:, 0].tolist() == [3.0, 1.0, 1.0, 2.0]


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_the_gradients_of_a_micro_batch_are_added_in_one_launch_and_no_memory(weight: float, cuda: Backend):
    model = MiniBERT(config(2), backend=cuda)
    gradients, accumulator = MiniBERTGradients(model).gradients, GradientAccumulator(model)
    cuda.cupy.get_default_memory_pool().free_all_blocks()
    ACTIVITY.reset()
    before = cuda.memory()
    accumulator.add(gradients, weight=weight)
    assert ACTIVITY.launches.total() == 1
    assert cuda.memory() == before
