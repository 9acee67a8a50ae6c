"""Chooses, for every operation, between its definition and the backend's faster twin."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from backends import Backend
from minibert.ops import DEFINITIONS

CHOICES = ("auto", "reference")


class Kernels:
    """The operations of `minibert.ops`, bound to a backend: `kernels.linear_forward(x, weight)`.

    Args:
        backend: where the arrays live, and whose twins are used.
        choice: "auto" takes a twin wherever the backend has one, "reference" always the definition.

    Raises:
        ValueError: another choice, or a twin of an operation that does not exist.
    """

    def __init__(self, backend: Backend, choice: str = "auto") -> None:
        if choice not in CHOICES:
            raise ValueError(f"kernels must be one of {', '.join(CHOICES)}, not {choice!r}")
        twins = backend.twins if choice == "auto" else {}
        if unknown := set(twins) - set(DEFINITIONS):
            raise ValueError(f"{backend.name} has twins of operations that minibert.ops lacks: {sorted(unknown)}")
        self.choice = choice
        self.twins = tuple(sorted(twins))
        self._functions = {
            name: partial(twins.get(name, definition), backend) for name, definition in DEFINITIONS.items()
        }

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            return self.__dict__["_functions"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"no operation is called {name!r}") from None
