"""A file size limit that acts like an exhausted quota."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def file_limit(count: int) -> Iterator[None]:
    """Limit the size of files that this process writes, like an exhausted quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
