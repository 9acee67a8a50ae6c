"""Let writes fail as they do on a full disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_disk(largest_file: int) -> Iterator[None]:
    """Let the system refuse every write that would make a file longer than so many bytes.

    The error is "File too large" instead of "No space left on device". Everything else is as on a full disk: the last
    write may be cut short, and the libraries that write files report it in their own ways.
    """
    import resource  # absent on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
