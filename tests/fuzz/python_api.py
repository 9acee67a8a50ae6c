"""Cases of calls from Python: odd ids, masks, labels, totals, steps, rates and seeds."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from minibert import AdamW, MiniBERT, MiniBERTConfig, MiniBERTGradients
from tests.fuzz.strategies import ODD_FLOATS, ODD_NUMBERS


@cache
def small_model() -> MiniBERT:
    config = MiniBERTConfig(
        vocab_size=23, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
        max_position_embeddings=9, labels=("a", "b"),
    )  # fmt: skip
    return MiniBERT(config, heads=("mlm", "pooler", "next_sentence", "classifier"))


_odd = st.sampled_from([*ODD_NUMBERS, *ODD_FLOATS, None, True, "a"])
_numbers = st.integers(-2, 25) | _odd
_matrices = st.one_of(
    st.lists(st.lists(st.integers(0, 22), min_size=4, max_size=4), min_size=2, max_size=2),
    st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=2, max_size=2),
    st.lists(st.lists(_numbers, max_size=10), max_size=3),
    st.builds(
        lambda shape, kind, fill: np.full(shape, fill).astype(kind),
        st.sampled_from([(2, 4), (4, 2), (0, 4), (2, 0), (8,), (), (1, 9), (1, 10), (2, 4, 1)]),
        st.sampled_from(["int8", "uint8", "int32", "uint64", "int64", "float32", "bool", "complex64"]),
        st.integers(0, 30) | st.just(255),
    ),
    _numbers,
)
_arguments = st.fixed_dictionaries(
    {"input_ids": _matrices},
    optional={
        "attention_mask": _matrices,
        "token_type_ids": _matrices,
        "dropout_step": _numbers,
        "first_sequence": _numbers,
        "unpad": st.booleans(),
        "prediction_positions": st.lists(st.integers(0, 8), max_size=4).map(sorted) | _matrices,
        "next_sentence": st.booleans(),
    },
)
_backward = st.fixed_dictionaries(
    {"labels": _matrices | st.lists(_numbers, max_size=5)},
    optional={
        "next_sentence_labels": st.lists(st.integers(-1, 2), min_size=2, max_size=2) | _matrices,
        "total_predictions": _numbers,
        "total_sequences": _numbers,
    },
)


def call_model(case: tuple[dict[str, Any], dict[str, Any], Any, Any]) -> None:
    """Forward, backward and a step of the optimizer; what comes out is finite."""
    forward, backward, rate, seed = case
    model = small_model()
    logits, cache = model.forward(**forward)
    assert np.isfinite(logits).all()
    differentiate = MiniBERTGradients(model)
    assert np.isfinite(differentiate.backward(cache, **backward))
    assert np.isfinite(differentiate.gradients.flat).all()
    classified, _ = model.classify(
        **{name: forward[name] for name in forward if name not in ("prediction_positions", "next_sentence")}
    )
    assert np.isfinite(classified).all()
    fresh = MiniBERT(model.config, seed=seed)
    AdamW(fresh).step(MiniBERTGradients(fresh).gradients, rate)
    if rate <= 1.0:  # a larger one is the caller's own way to infinity
        assert np.isfinite(fresh.parameters.flat).all()


def calls() -> st.SearchStrategy[Any]:
    """Arguments of `forward` and `backward`, a learning rate and a seed."""
    return st.tuples(_arguments, _backward, st.floats(0, 0.01) | _odd, st.integers(0, 9) | _odd)
