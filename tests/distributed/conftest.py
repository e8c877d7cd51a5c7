from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.jobs import JobLab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobLab]:
    made = JobLab(Path(tmp_path_factory.mktemp("jobs")))
    yield made
    made.close()
