"""The one error of the inference package."""

from __future__ import annotations


class InferenceError(ValueError):
    """A folder or a text cannot be used as asked; the message says which, why and what to do."""
