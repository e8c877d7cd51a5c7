"""Small weight files that would need much time or memory, or that refer to files outside their folder."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import pickle_reader
from models.pickle_reader import Allowed, Instance, PickleError, read_pickle
from models.saved_weights import PLAIN_REDUCERS, plain_config
from models.spec import CONFIG_KEYS, load_model_spec, shipped_configs
from models.weights import load_weights
from tests.models import torch_files as torch

ONES = np.ones(2, np.float32)
LISTS = Allowed(lambda _: True, PLAIN_REDUCERS)


def repeated_list(value: bytes, times: int) -> bytes:
    """Return pickled calls that each copy a list of `value` once more."""
    call = torch.named("builtins", "list") + b"h\x00\x85R"
    return b"\x80\x02](" + value + b"eq\x00" + (call + b"0") * times + b"."


def test_lists_with_shared_items_are_not_plain() -> None:
    shared: Any = ["x"]
    for _ in range(6):
        shared = [shared] * 1000
    start = time.process_time()
    assert plain_config({"inplace": shared}, CONFIG_KEYS) is None
    assert plain_config({"inplace": ["x" * 60_000] * 2}, CONFIG_KEYS) is None
    assert time.process_time() - start < 5


def test_network_configurations_are_plain() -> None:
    for name in shipped_configs():
        config = load_model_spec(name).config
        assert plain_config(config, CONFIG_KEYS) == config
    assert plain_config({"nc": [[[]], {"a": None}, 1.5, True]}, CONFIG_KEYS) is not None
    for value in (Instance(kind=None, arguments=()), (1,), {1: 2}):  # type: ignore[arg-type]
        assert plain_config({"nc": value}, CONFIG_KEYS) is None


def test_copies_of_large_list_count_towards_limit() -> None:
    many = b"K\x07" * 50_000
    assert len(read_pickle(repeated_list(many, 10), LISTS)) == 50_000
    with pytest.raises(PickleError, match="copies too many items for a weight file"):
        read_pickle(repeated_list(many, 30), LISTS)


def test_number_of_opcodes_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the limit, a file of some gigabytes could take hours; a network has far fewer opcodes."""
    assert pickle_reader.MAX_OPCODES == 5_000_000
    monkeypatch.setattr(pickle_reader, "MAX_OPCODES", 1000)
    pairs = b"N0"  # None, and drop it
    assert read_pickle(b"\x80\x02" + pairs * 499 + b"N.", LISTS) is None
    with pytest.raises(PickleError, match="has too many opcodes for a weight file"):
        read_pickle(b"\x80\x02" + pairs * 500 + b"N.", LISTS)


@pytest.mark.parametrize(
    "key", [torch.text("k" * 2000), b"\x8a\xff" + b"\x7f" * 255, b"T" + b"\x88\x13\0\0" + b"k" * 5000]
)
def test_too_long_keys_raise(key: bytes) -> None:
    with pytest.raises(PickleError, match="too long"):
        read_pickle(b"\x80\x02}" + key + b"Ns.", LISTS)
    pairs = torch.named("collections", "OrderedDict") + b"](" + key + b"N\x86e\x85R"
    with pytest.raises(PickleError, match="too long"):
        read_pickle(b"\x80\x02" + pairs + b".", LISTS)


@pytest.mark.parametrize("skipped", [torch.integer(5), torch.text("weight"), b"\x88", b"](K\x01]e"])
def test_damaged_non_persistent_set_excludes_no_buffers(skipped: bytes, tmp_path: Path) -> None:
    buffers = torch.dict_of({"weight": torch.tensor("0", ONES)})
    layer = torch.module(
        "torch.nn.modules.conv.Conv2d",
        parameters={},
        children={},
        _buffers=buffers,
        _non_persistent_buffers_set=skipped,
    )
    path = torch.write(tmp_path / "a.pt", torch.dict_of({"model": layer}), {"0": ONES})
    assert list(load_weights(path).arrays) == ["weight"]


def test_modules_with_many_shared_entries_raise(tmp_path: Path) -> None:
    """Entries of 300 modules that share 1000 entries are counted once per module."""
    entries = b"}(" + b"".join(torch.text(f"p{n}") + b"N" for n in range(1000)) + b"uq\x00"
    state = b"}(" + torch.text("_parameters") + entries + b"uq\x01"
    part = torch.named("models.common", "Conv") + b")\x81" + state + b"bq\x02"
    others = b"".join(torch.text(f"m{n}") + b"h\x02" for n in range(300))
    children = b"}(" + torch.text("m") + part + others + b"u"
    network = torch.module("models.yolo.Model", parameters={}, children={}, _modules=children)
    with pytest.raises(ValueError, match="nested too deeply"):
        load_weights(torch.write(tmp_path / "a.pt", torch.dict_of({"model": network}), {}))


@pytest.mark.parametrize(
    "stride", ["[1e400]", f"[{10**400}]", "[8, NaN]", "[true, 8]", "[-8]", "[1e300]", "[[8]]", "8"]
)
def test_invalid_strides_are_ignored(stride: str, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": ONES}, tmp_path / "a.safetensors", metadata={"stride": stride})
    weights = load_weights(tmp_path / "a.safetensors")
    assert weights.stride == ((1, 8) if stride == "[true, 8]" else None)
    assert weights.anchors_px is None


def test_truncated_safetensors_is_reported(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": ONES}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "a.safetensors"
    for length in (0, 5, 9, 20):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.safetensors: empty, truncated or not a safetensors file"):
            load_weights(path)
    # The format is still detected from the content.
    torch.write(path, torch.dict_of({"w": torch.tensor("0", ONES)}), {"0": ONES})
    assert load_weights(path).format == "pytorch"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        load_weights(path)


# --- OneFlow folders -------------------------------------------------------------------------------------------------


def oneflow_folder(folder: Path, names: int = 1) -> Path:
    """Return a checkpoint with `names` names for one tensor of 1000 elements."""
    tensor = torch.named("oneflow", "Tensor") + b")\x81" + torch.dict_of({"path": torch.text("w")}) + b"b"
    state = torch.dict_of({f"name{n}": tensor for n in range(names)})
    content = torch.dict_of({"protocol_version": torch.integer(1), "data": state})
    (folder / "w").mkdir(parents=True)
    (folder / "pickled_data").write_bytes(b"\x80\x02" + content + b".")
    (folder / "w" / "out").write_bytes(np.arange(1000, dtype=np.float32).tobytes())
    (folder / "w" / "meta").write_text("shape { dim: 1000 }\ndata_type: kFloat\n")
    return folder


def test_shared_tensors_are_limited(tmp_path: Path) -> None:
    few = load_weights(oneflow_folder(tmp_path / "few", names=4))
    assert all(np.array_equal(array, np.arange(1000)) for array in few.arrays.values())
    with pytest.raises(ValueError, match="many: damaged: its tensors have more elements than its files"):
        load_weights(oneflow_folder(tmp_path / "many", names=5))


@pytest.mark.parametrize("linked", ["w", "w/out", "w/meta", "pickled_data"])
@pytest.mark.parametrize("pickled", [True, False])
def test_links_in_oneflow_folder_raise(linked: str, pickled: bool, tmp_path: Path) -> None:
    folder = oneflow_folder(tmp_path / "saved")
    if not pickled:
        if linked == "pickled_data":
            pytest.skip("there is none")
        (folder / "pickled_data").unlink()
    os.rename(folder / linked, tmp_path / "elsewhere")
    (folder / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match=rf"saved/{linked}: (a link|not a regular file); copy the folder with its files"
    ):
        load_weights(folder)


def test_pipe_in_oneflow_folder_does_not_block(tmp_path: Path) -> None:
    folder = oneflow_folder(tmp_path / "saved")
    (folder / "w" / "meta").unlink()
    os.mkfifo(folder / "w" / "meta")
    with pytest.raises(ValueError, match="w/meta: not a regular file"):
        load_weights(folder)
