"""Group texts of about equal length into batches, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the indices of the texts of each batch, the longest texts first.

    The largest batch comes first, so a lack of memory shows at once.

    Args:
        lengths: n numbers of tokens.
        batch_tokens: the most tokens of a batch, padding included; a single text may have more.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
