"""A limit on the size of files, as a used-up quota sets it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def file_limit(count: int) -> Iterator[None]:
    """Limit every file of this process to so many bytes, as a used-up quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
