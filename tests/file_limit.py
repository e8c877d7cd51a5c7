"""A limit on the size of files, as a used-up quota sets it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def file_limit(count: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: what a used-up quota looks like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
