"""Python threads and forked processes: several may compute at once, or are refused by name."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from minibert import MiniBERT, MiniBERTConfig, MiniBERTGradients

CONFIG = MiniBERTConfig.preset("tiny", vocab_size=500, num_hidden_layers=1)
BATCHES = [[[(7 * position + number) % 500 for position in range(48)]] * 4 for number in range(4)]


def gradients_of(differentiate: MiniBERTGradients, batch: list[list[int]]) -> tuple[float, np.ndarray]:
    loss = differentiate.backward(differentiate.model.forward(batch)[1], batch)
    return float(loss), np.array(differentiate.gradients.flat)


@pytest.mark.parametrize("one_model", [True, False])
def test_threads_with_gradients_of_their_own_compute_what_one_thread_computes(one_model: bool):
    model = MiniBERT(CONFIG)
    expected = [gradients_of(MiniBERTGradients(model), batch) for batch in BATCHES]
    wrong: list[int] = []

    def compute(number: int) -> None:
        differentiate = MiniBERTGradients(model if one_model else MiniBERT(CONFIG))
        for _ in range(8):
            loss, found = gradients_of(differentiate, BATCHES[number])
            if loss != expected[number][0] or not np.array_equal(found, expected[number][1]):
                wrong.append(number)

    threads = [threading.Thread(target=compute, args=(number,)) for number in range(len(BATCHES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_gradients_object_in_two_threads_is_refused(monkeypatch):
    model = MiniBERT(CONFIG)
    differentiate, cache = MiniBERTGradients(model), model.forward(BATCHES[0])[1]
    inside, go_on, losses = threading.Event(), threading.Event(), []
    original = differentiate._check_cache

    def wait(cache) -> None:
        inside.set()
        go_on.wait()
        original(cache)

    monkeypatch.setattr(differentiate, "_check_cache", wait)
    thread = threading.Thread(target=lambda: losses.append(differentiate.backward(cache, BATCHES[0])))
    thread.start()
    inside.wait()
    for call in (differentiate.backward, differentiate.backward_classification):
        with pytest.raises(RuntimeError, match=r"another thread .* make one for each thread"):
            call(cache, BATCHES[0])
    go_on.set()
    thread.join()
    assert len(losses) == 1
    differentiate.backward(cache, BATCHES[0])  # and afterwards it is free again


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.parametrize("busy", [False, True])
def test_a_forked_process_computes_the_same(busy: bool):
    code = f"""
import os, signal, threading, time, warnings
warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
from backends.cpu.threads import set_threads
from tests.model.test_threads_and_forks import BATCHES, CONFIG, MiniBERT, MiniBERTGradients, gradients_of
set_threads(2)
model = MiniBERT(CONFIG)
expected = gradients_of(MiniBERTGradients(model), BATCHES[0])[0]
def compute():
    differentiate = MiniBERTGradients(model)
    while True:
        gradients_of(differentiate, BATCHES[1])
if {busy}:
    threading.Thread(target=compute, daemon=True).start()
    time.sleep(0.2)
for _ in range(5):
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # a child that hangs is killed
        os._exit(int(gradients_of(MiniBERTGradients(model), BATCHES[0])[0] != expected))
    assert os.waitpid(child, 0)[1] == 0
print("equal", flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    # where two Python threads have used the kernels, Numba's TBB layer says that it cannot end its threads before a
    # fork; the child then computes with its own thread
    assert done.stdout.splitlines()[-1:] == ["equal"], done.stderr


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
def test_a_process_forked_from_threads_of_openmp_is_refused_by_name():
    pytest.importorskip("numba.np.ufunc.omppool")
    code = """
import os, warnings
warnings.simplefilter("ignore")
from backends import BackendError
from tests.model.test_threads_and_forks import BATCHES, CONFIG, MiniBERT
model = MiniBERT(CONFIG)
model.forward(BATCHES[0])
if os.fork() == 0:
    try:
        model.forward(BATCHES[0])
    except BackendError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "omp"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "Numba's threads run on OpenMP" in done.stdout
