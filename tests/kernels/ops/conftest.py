"""Fixtures of the op tests, for whichever kernels `--kernels` has loaded."""

import pytest

from kernels.framework.activation_type import ActivationType
from kernels.plugin import load_plugin


@pytest.fixture(autouse=True, scope="session")
def _plugin(pytestconfig: pytest.Config) -> None:
    emulated = pytestconfig.getoption("--kernels") == "emulated-cuda"
    load_plugin("emulated-cuda" if emulated else "require")


@pytest.fixture(params=ActivationType, ids=lambda kind: kind.name.lower())
def activation_type(request: pytest.FixtureRequest) -> ActivationType:
    """Return each activation type that the loaded kernels support."""
    kind: ActivationType = request.param
    if kind is ActivationType.FLOAT16 and request.config.getoption("--kernels") != "emulated-cuda":
        pytest.skip("float16 is for CUDA kernels")
    return kind
