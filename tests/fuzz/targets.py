"""The fuzz targets: what is fed with what, and how it may end.

A case ends well if it succeeds, or if it raises one of the project's errors with a short message. Everything else is a
fault: another exception, a result that is not finite, a crash, a hang, gigabytes of memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from minibert.errors import DataError, InferenceError, PretrainedError, TrainingError
from tests.fuzz.model_files import configs, tensor_files, use_model
from tests.fuzz.python_api import call_model, calls
from tests.fuzz.texts import corpora, labelled_files, read_corpus, read_labelled
from tests.fuzz.tokenizers import tokenizer_files, use_tokenizer, vocabularies

OURS = (DataError, PretrainedError, TrainingError, InferenceError)
LONGEST_MESSAGE = 3000


class Target(NamedTuple):
    """A fuzz target.

    Attributes:
        cases: draws a case.
        check: uses the case; it returns, or raises one of the errors.
        errors: the exceptions that may be raised.
    """

    cases: st.SearchStrategy[Any]
    check: Callable[[Any], object]
    errors: tuple[type[Exception], ...] = OURS


def run_case(target: Target, case: Any) -> bool:
    """Run a case; return True if it succeeded, False if it was refused.

    Raises:
        BaseException: the case is a fault.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            target.check(case)
        except target.errors as error:
            if len(str(error)) > LONGEST_MESSAGE:
                raise AssertionError(f"a message of {len(str(error))} characters: {str(error)[:300]}") from error
            return False
    return True


TARGETS = {
    "config": Target(configs(), use_model),
    "safetensors": Target(tensor_files(), use_model),
    "vocabulary": Target(vocabularies(), use_tokenizer),
    "tokenizer": Target(tokenizer_files(), use_tokenizer),
    "corpus": Target(corpora(), read_corpus),
    "labelled": Target(labelled_files(), read_labelled),
    "python": Target(calls(), call_model, (ValueError, TypeError, OverflowError)),
}
