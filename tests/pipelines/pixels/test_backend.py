import pytest

from pipelines.pixels.backend import Backend


def test_devices_by_name() -> None:
    assert Backend.of("cpu") == Backend()
    assert (Backend().gpu, Backend().decoder) == (None, "cpu")
    second = Backend.of("cuda:1")
    assert (second.gpu, second.decoder) == (1, "mixed")


@pytest.mark.parametrize("device", ["cuda", "cuda:", "cuda:-1", "cuda:1 ", "gpu", "", "CPU"])
def test_invalid_device_raises(device: str) -> None:
    with pytest.raises(ValueError, match="must be 'cpu' or 'cuda:N'"):
        Backend.of(device)
