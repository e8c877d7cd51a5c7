"""Number of threads of the data pipelines."""

import os

import pytest

from pipelines.settings import worker_threads


@pytest.mark.parametrize(("workers", "threads"), [(-1, 1), (0, 1), (1, 1), (10**6, os.cpu_count())])
def test_worker_threads_at_most_one_per_core(workers: int, threads: int) -> None:
    assert worker_threads(workers) == threads
