from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from graph_train.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.file_limit import file_limit

ARRAYS: dict[str, np.ndarray] = {
    "model/weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "model/count": np.array(7, np.int64),
    "ema/empty": np.zeros((0, 2), np.float32),
}
HEADER = {"cursor": {"epoch": 3}, "best": 0.1 + 0.2}


def saved(folder: Path) -> Path:
    path = folder / "last.safetensors"
    save_checkpoint(path, Checkpoint(ARRAYS, HEADER))
    return path


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    loaded = load_checkpoint(saved(tmp_path))
    assert loaded.arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        assert loaded.arrays[name].dtype == value.dtype
        assert loaded.arrays[name].shape == value.shape
        np.testing.assert_array_equal(loaded.arrays[name], value)
    assert loaded.header["cursor"] == {"epoch": 3}
    assert loaded.header["best"] == 0.1 + 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]


def test_same_state_gives_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    assert saved(first).read_bytes() == saved(second).read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_detected(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(saved(tmp_path).read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    try:
        loaded = load_checkpoint(path)
    except ValueError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:  # a flipped bit in padding may have no effect
        assert loaded.header["cursor"] == {"epoch": 3}
        for name, value in ARRAYS.items():
            np.testing.assert_array_equal(loaded.arrays[name], value)


def test_non_checkpoint_files_raise(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    weights = tmp_path / "best.safetensors"
    save_file({"model.0.weight": np.zeros(2, np.float32)}, str(weights))
    with pytest.raises(ValueError, match="--weights"):
        load_checkpoint(weights)


def test_failed_write_keeps_old_file(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    with file_limit(100), pytest.raises(OSError, match="File too large"):
        save_checkpoint(path, Checkpoint({"model/weight": np.ones(3, np.float32)}, {}))
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["last.safetensors"]
