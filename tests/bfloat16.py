"""Networks in bfloat16 within one test."""

from collections.abc import Iterator
from contextlib import contextmanager

from kernels.plugin import load_plugin, set_cpu_bf16


@contextmanager
def computing_in_bfloat16() -> Iterator[None]:
    """Also on CPUs where it is slower; float32 afterwards."""
    load_plugin("require")
    assert set_cpu_bf16(enabled=True, where_slower_too=True)
    try:
        yield
    finally:
        assert not set_cpu_bf16(enabled=False)
