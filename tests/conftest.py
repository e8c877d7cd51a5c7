"""Shared fixtures: the reference vectors and the real data set; tests are skipped if these are missing."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

_SHARED = Path(os.environ.get("GRAPH_TRAIN_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_addoption(parser: pytest.Parser) -> None:
    choices = ("auto", "off", "require", "emulated-cuda")
    parser.addoption("--kernels", choices=choices, default="auto", help="kernel plugin")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, which programs interrupted by tests would inherit.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    from kernels.host.process_settings import configure_process

    configure_process()
    # Before the first op runs, because OneFlow caches the chosen kernels.
    from kernels.plugin import load_plugin

    load_plugin(config.getoption("--kernels"))
    # No deadlines, since the machine may be busy; pytest-timeout ends hanging tests.
    settings.register_profile("graph-train", deadline=None)
    settings.load_profile("graph-train")


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> None:
    """Skip GPU tests without a GPU; otherwise load our CUDA kernels before the first one."""
    if request.node.get_closest_marker("gpu") is None:
        return
    from kernels.plugin import load_plugin
    from kernels.runtime import flow

    if not flow.cuda.is_available():
        pytest.skip("no CUDA device here")
    load_plugin(request.config.getoption("--kernels"), "cuda:0")


def _require(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path.name}: not on this machine; GRAPH_TRAIN_SHARED can say where it is, see CONTRIBUTING.md")
    return path


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Return the folder with all vectors recorded from the reference implementation."""
    return _require(_SHARED / "goldens")


@pytest.fixture(scope="session")
def small_vectors() -> Path:
    """Return the folder with the vectors in this repository."""
    return Path(__file__).with_name("vectors")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """Return the dataset yaml of the real blood-cell photos."""
    return _require(_SHARED / "data" / "bccd" / "bccd.yaml")
