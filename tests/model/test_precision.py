"""A BERT in bfloat16 rounds the operands of every product and still learns; in int8 it computes nearly the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backends import Backend, get_backend
from backends.cpu.backend import NumpyBackend
from minibert import AdamW, MiniBERT, MiniBERTConfig, MiniBERTGradients
from minibert.kernels import Kernels
from minibert.model import PrecisionWarning, _warn_of_slow_products
from minibert.ops import quantise_inputs, quantise_weight
from tests.support.checking import assert_close
from tests.support.small_bert import CONFIG, NEXT_SENTENCE_LABELS, batch_arguments, batch_labels, small_bert

pytestmark = pytest.mark.filterwarnings("ignore::minibert.model.PrecisionWarning")  # where there are no instructions


def step(model: MiniBERT) -> tuple[float, dict[str, np.ndarray]]:
    """Return the loss of the small batch, and the gradients (float64, on the host)."""
    gradients = MiniBERTGradients(model)
    _, cache = model.forward(**batch_arguments(pruned=True))
    loss = float(gradients.backward(cache, batch_labels(pruned=True), NEXT_SENTENCE_LABELS))
    to_numpy = model.backend.to_numpy
    return loss, {name: to_numpy(view).astype(np.float64) for name, view in gradients.gradients.items()}


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Return the distance of two gradients of all parameters, relative to the length of the second."""
    distance = sum(float(np.square(found[name] - expected[name]).sum()) for name in expected)
    return float(np.sqrt(distance / sum(float(np.square(gradient).sum()) for gradient in expected.values())))


LINEAR = ("linear_backward", "linear_backward_input", "linear_backward_weight", "linear_forward")


class CheckedKernels(Kernels):
    """Kernels that check every linear layer against float64 arithmetic on the same operands, rounded.

    Attributes:
        checked: for each call, the operation, and the shape of the weight or of its gradient.
    """

    def __init__(self, backend: Backend, choice: str) -> None:
        self.checked: list[tuple[str, tuple[int, ...]]] = []
        super().__init__(backend, choice)

    def bind(self, definition: Callable[..., Any]) -> Callable[..., Any]:
        bound = super().bind(definition)
        name = definition.__name__
        if name not in LINEAR:
            return bound
        exact = get_backend("cpu").with_precision("bfloat16", "float64")

        def on_host(x: Any) -> Any:
            return None if x is None else np.array(self._backend.to_numpy(x), dtype=np.float64)

        def compute_both(*arguments: Any, **named: Any) -> Any:
            copies, named_copies = [on_host(x) for x in arguments], {key: on_host(x) for key, x in named.items()}
            expected = definition(exact, *copies, **named_copies)
            actual = bound(*arguments, **named)
            for wanted, found in [*zip(copies, arguments, strict=True), (expected, actual)]:
                if found is not None:
                    assert_close(self._backend, found, wanted, "float32")
            weight = arguments[1 if name in ("linear_forward", "linear_backward_input") else 2]
            self.checked.append((name, tuple(weight.shape)))
            return actual

        return compute_both


@pytest.mark.parametrize("choice", ["reference", "auto"])
def test_every_linear_layer_of_a_step_is_the_float64_product_of_its_rounded_operands(choice: str, backend: Backend):
    """Rounded operands are exact in float64: this compares the gradient of the rounded pass with its own definition."""
    model = small_bert(backend, "float32", precision="bfloat16", kernels=choice)
    model.kernels = kernels = CheckedKernels(model.backend, choice)
    step(model)
    assert {name for name, _ in kernels.checked} == set(LINEAR)
    assert len(kernels.checked) > 20
    decoder = (CONFIG.vocab_size, CONFIG.hidden_size)
    assert {name for name, weight in kernels.checked if weight == decoder} >= {"linear_forward", "linear_backward"}


def test_a_step_in_bfloat16_is_near_to_the_same_step_in_float64_arithmetic():
    """A float32 error may move an operand across a tie, so the two differ by a small part of what rounding changes."""
    exact_loss, exact = step(small_bert(dtype="float64"))
    rounded_loss, rounded = step(small_bert(dtype="float64", precision="bfloat16"))
    effect = difference(rounded, exact)
    assert 1e-3 < effect < 5e-2
    assert 0.0 < abs(rounded_loss - exact_loss) < 1e-2 * exact_loss
    for choice in ("reference", "auto"):
        loss, gradients = step(small_bert(dtype="float32", precision="bfloat16", kernels=choice))
        assert difference(gradients, rounded) < 0.2 * effect
        assert abs(loss - rounded_loss) < 2e-4 * exact_loss


def test_twins_and_definitions_take_the_same_step():
    """Twenty steps of training, by the twins and by the definitions, and in float32 for comparison."""
    config = MiniBERTConfig.preset("tiny", vocab_size=101)
    ids = np.random.default_rng(1).integers(0, 101, (8, 24))
    positions = np.flatnonzero(np.random.default_rng(2).random(ids.shape) < 0.3)

    def losses(**arguments: str) -> np.ndarray:
        model = MiniBERT(config, seed=4, **arguments)
        gradients, optimizer, found = MiniBERTGradients(model), AdamW(model), []
        for _ in range(20):
            _, cache = model.forward(ids, prediction_positions=positions, next_sentence=False)
            found.append(float(gradients.backward(cache, ids.reshape(-1)[positions])))
            optimizer.step(gradients.gradients, 1e-3)
        return np.array(found)

    in_float32 = losses()
    twins, definitions = losses(precision="bfloat16"), losses(precision="bfloat16", kernels="reference")
    assert in_float32[-1] < 0.7 * in_float32[0]
    assert not np.array_equal(twins, in_float32)
    np.testing.assert_allclose(twins, definitions, rtol=2e-3)
    np.testing.assert_allclose(twins, in_float32, rtol=1e-2)


def test_the_same_run_gives_the_same_bits():
    first, second = (step(small_bert(dtype="float32", precision="bfloat16")) for _ in range(2))
    assert first[0] == second[0]
    for name, gradient in first[1].items():
        np.testing.assert_array_equal(second[1][name], gradient)


# --- int8 -----------------------------------------------------------------------------------------------------


def random_encodings(**arguments: str) -> tuple[MiniBERT, np.ndarray]:
    """Return a model with two layers of 128, and its hidden states (256, 128) of 8 random sequences."""
    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=101, initializer_range=0.1), seed=4, **arguments)
    ids = np.random.default_rng(1).integers(0, 101, (8, 32))
    return model, np.asarray(model.encode(ids)).reshape(256, -1).astype(np.float64)


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of x and the same row of y."""
    return (x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)


def test_hidden_states_in_int8_point_where_those_in_float32_do():
    _, exact = random_encodings()
    _, twins = random_encodings(precision="int8")
    _, definitions = random_encodings(precision="int8", kernels="reference")
    assert 0.999 < cosines(twins, exact).min() < 1.0 - 1e-5, "the precision changes nothing, or too much"
    assert cosines(definitions, exact).min() > 0.999
    assert cosines(definitions, twins).min() > 0.9995  # attention's last bits differ, and so do a few whole numbers


def test_every_linear_layer_of_a_forward_pass_is_in_int8(backend: Backend):
    """The layers of the encoder and of all heads multiply whole numbers, the decoder included."""
    model = small_bert(backend, "float32", precision="int8", kernels="reference")
    forward, calls = model.kernels.linear_forward, []

    def checked(x: Any, weight: Any, bias: Any = None) -> Any:
        y = forward(x, weight, bias)
        (numbers, scales), (weights, weight_scales) = quantise_inputs(x), quantise_weight(weight)
        host = [
            np.asarray(model.backend.to_numpy(a)).astype(np.float64) for a in (numbers, scales, weights, weight_scales)
        ]
        expected = (host[0] @ host[2].T) * host[1] * host[3].T
        assert_close(model.backend, y, expected + (0 if bias is None else model.backend.to_numpy(bias)), "float32")
        calls.append(tuple(weight.shape))
        return y

    model.kernels.linear_forward = checked  # type: ignore[assignment]
    model.forward(**batch_arguments(pruned=True))
    assert len(calls) == 5 + 4 + 4, "query, key and value together except in the last layer, which is pruned; heads"


def test_a_changed_parameter_is_used_at_once():
    """Nothing keeps quantised weights."""
    model, before = random_encodings(precision="int8")
    model.parameters["layers.1.output.weight"][...] *= -1.0
    ids = np.random.default_rng(1).integers(0, 101, (8, 32))
    assert cosines(np.asarray(model.encode(ids)).reshape(256, -1), before).min() < 0.9


def test_a_model_in_int8_has_no_gradients():
    with pytest.raises(ValueError, match="int8 is a precision for inference, without gradients: train in bfloat16"):
        MiniBERTGradients(small_bert(dtype="float32", precision="int8"))


def test_slow_int8_products_are_warned_of(monkeypatch: pytest.MonkeyPatch):
    _, expected = random_encodings(precision="int8")
    monkeypatch.setattr(NumpyBackend, "has_int8", lambda self: False)
    _warn_of_slow_products.cache_clear()
    with pytest.warns(PrecisionWarning, match="no fast int8 products on cpu for float32 parameters"):
        _, found = random_encodings(precision="int8")
    np.testing.assert_array_equal(found, expected)  # attention keeps its twins, and int8 products are exact


# --- the choice -----------------------------------------------------------------------------------------------


def test_a_model_says_what_it_computes_in(backend: Backend):
    automatic = "bfloat16" if backend.has_bfloat16() else "float32"
    asked = {name: name for name in ("float32", "bfloat16", "int8")}
    for precision, found in {**asked, "auto": automatic}.items():
        model = small_bert(backend, "float32", precision=precision)
        assert (model.precision, model.backend.precision) == (found, found)
        assert model.parameters["token_embeddings"].dtype == backend.dtype("float32")
    assert small_bert(backend, "float32").precision == "float32"


def test_a_model_is_loaded_in_the_precision_that_is_asked_for(tmp_path):
    small_bert(dtype="float32").save_pretrained(tmp_path)
    assert MiniBERT.from_pretrained(tmp_path).precision == "float32"
    model = MiniBERT.from_pretrained(tmp_path, precision="bfloat16")
    assert model.precision == "bfloat16"
    expected = small_bert(dtype="float32", precision="bfloat16").encode([[1, 2, 3]])
    np.testing.assert_array_equal(model.encode([[1, 2, 3]]), expected)


def test_slow_products_are_warned_of_once_and_compute_the_same(monkeypatch: pytest.MonkeyPatch):
    expected, _ = step(small_bert(dtype="float32", precision="bfloat16"))
    monkeypatch.setattr(NumpyBackend, "has_bfloat16", lambda self: False)
    _warn_of_slow_products.cache_clear()
    with pytest.warns(PrecisionWarning, match="no fast bfloat16 products on cpu for float32 parameters"):
        model = small_bert(dtype="float32", precision="bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_bert(dtype="float32", precision="bfloat16")
        small_bert(dtype="float32", precision="auto")
        small_bert(dtype="float32", precision="bfloat16", kernels="reference")
    assert step(model)[0] == pytest.approx(expected, rel=1e-4)
    assert small_bert(dtype="float32", precision="auto").precision == "float32"


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, int8, auto, not 'int4'"):
        small_bert(precision="int4")
