"""A limit on file size that acts like an exhausted quota."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def file_limit(count: int) -> Iterator[None]:
    """Limit the size of each file written by this process, as an exhausted quota would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
