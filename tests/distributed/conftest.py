from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.jobs import JobRunner


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobRunner]:
    made = JobRunner(Path(tmp_path_factory.mktemp("jobs")))
    yield made
    made.close()
