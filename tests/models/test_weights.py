import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from kernels.runtime import flow
from models.network import DetectionModel
from models.pickle_reader import Allowed, Global, PickleError, read_pickle
from models.pytorch_file import PyTorchFile
from models.spec import load_model_spec
from models.weights import load_weights, save_weights, transfer
from tests.models import torch_files as torch

CONFIG: dict[str, Any] = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "C3", [8]]],
    "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
}
HALF = np.array([[1.5, -2.0], [0.25, 4.0]], np.float16)
OTHER = np.array([[8.0, 8.0], [8.0, 8.0]], np.float16)
STRIDE = np.array([8.0], np.float32)
ARRAYS: dict[str, np.ndarray] = {"0": HALF, "1": OTHER, "2": STRIDE}


def _model(seed: int = 0, classes: int = 2) -> DetectionModel:
    return DetectionModel(load_model_spec(CONFIG, num_classes=classes), seed=seed)


def _arrays(model: DetectionModel) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def _network(key: str) -> bytes:
    layer = torch.module(
        "torch.nn.modules.conv.Conv2d", parameters={"weight": torch.tensor(key, HALF), "bias": b"N"}, children={}
    )
    return torch.module(
        "models.yolo.DetectionModel",
        parameters={},
        children={"model": layer},
        names=b"](" + torch.text("cat") + torch.text("dog") + b"e",
        stride=torch.tensor("2", STRIDE),
        yaml=torch.dict_of({"nc": torch.integer(2), "yaml_file": torch.text("x")}),
    )


def _checkpoint() -> bytes:
    return torch.dict_of({"epoch": torch.integer(4), "model": _network("0"), "ema": _network("1")})


# --- .pt -------------------------------------------------------------------------------------------------------------


def test_pickled_network_known_values(tmp_path: Path) -> None:
    path = torch.write(tmp_path / "last.pt", _checkpoint(), ARRAYS)
    weights = load_weights(path)
    assert list(weights.arrays) == ["model.weight"]
    np.testing.assert_array_equal(weights.arrays["model.weight"], HALF.astype(np.float32))
    assert weights.arrays["model.weight"].dtype == np.float32
    assert (weights.part, weights.epoch, weights.class_names) == ("model", 4, ("cat", "dog"))
    assert (weights.stride, weights.stored_dtypes, weights.config) == ((8,), {"model.weight": "float16"}, {"nc": 2})
    averaged = load_weights(path, prefer="ema")
    assert averaged.part == "ema"
    np.testing.assert_array_equal(averaged.arrays["model.weight"], OTHER.astype(np.float32))


def test_network_round_trip(tmp_path: Path) -> None:
    model = _model(seed=3)
    weights = load_weights(torch.write_network(tmp_path / "whole.pt", model))
    assert set(weights.arrays) == set(_arrays(model))
    for name, array in _arrays(model).items():
        np.testing.assert_array_equal(weights.arrays[name], array)
    assert (weights.config, weights.stride) == (CONFIG, (2,))


def test_missing_part_falls_back_to_other(tmp_path: Path) -> None:
    pickle = torch.dict_of({"ema": b"N", "model": _network("0")})
    assert load_weights(torch.write(tmp_path / "a.pt", pickle, ARRAYS), prefer="ema").part == "model"


def test_plain_state_dictionary_and_bfloat16(tmp_path: Path) -> None:
    bits = np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16
    pickle = torch.dict_of({"module.a": torch.tensor("0", bits.astype(np.uint16))})
    weights = load_weights(torch.write(tmp_path / "a.pt", pickle, {"0": bits.astype(np.uint16)}))
    assert (weights.part, weights.stored_dtypes) == ("state_dict", {"a": "bfloat16"})
    np.testing.assert_array_equal(weights.arrays["a"], [1.5, -2.0])


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("torch", "load"),
        ("numpy", "load"),
        ("models.yolo", "sys tem"),
        ("importlib", "import_module"),
        ("graph_train.training.trainer", "train"),
    ],
)
def test_pickle_with_code_is_rejected_by_name_and_not_run(tmp_path: Path, module: str, name: str) -> None:
    trace = tmp_path / "trace"
    name = name.split("\n", maxsplit=1)[0] if module != "models.yolo.os" else "sys tem"
    attack = torch.called(torch.named(module, name), torch.text(f"touch {trace}"))
    path = torch.write(tmp_path / "evil.pt", torch.dict_of({"epoch": attack, "model": _network("0")}), ARRAYS)
    with pytest.raises(ValueError, match=f"evil.pt: refers to {module}.{name}, .* nothing was executed"):
        load_weights(path)
    assert not trace.exists()


def test_stack_global_is_checked(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    attack = torch.called(torch.text("os") + torch.text("system") + b"\x93", torch.text(f"touch {trace}"))
    path = torch.write(tmp_path / "evil.pt", torch.dict_of({"model": attack}), {})
    with pytest.raises(ValueError, match=r"refers to os\.system"):
        load_weights(path)
    assert not trace.exists()


def test_allowed_classes_are_not_instantiated(tmp_path: Path) -> None:
    # A class that exists in our own package, built with arguments that its constructor would choke on.
    network = torch.called(torch.named("models.network", "DetectionModel"), torch.integer(1))
    file = PyTorchFile(torch.write(tmp_path / "a.pt", torch.dict_of({"model": network}), {}))
    assert type(file.content["model"]).__name__ == "Instance"
    assert file.content["model"].arguments == (1,)
    file.close()


@pytest.mark.parametrize(
    ("pickle", "expected"),
    [
        (torch.dict_of({"a": torch.tensor("0", HALF, shape=(3, 3))}), "exceeds its storage"),
        (torch.dict_of({"a": torch.tensor("0", HALF, offset=1)}), "exceeds its storage"),
        (torch.dict_of({"a": torch.tensor("0", HALF, offset=-1)}), "tensor with an invalid size"),
        (torch.dict_of({"a": torch.tensor("9", HALF)}), "archive/data/9"),
        (torch.dict_of({"a": torch.integer(1)}), "contains no weights"),
        (torch.integer(1), "contains a int, but no weights"),
        (b"}" + torch.tuple_of() + b"Ns", "key of type tuple"),
        (b"i" + b"os\nsystem\n", "uses the opcode INST"),
        (b"0", "damaged"),
        (b"r\xff\xff\xff\x7f", "damaged"),
    ],
)
def test_damaged_pickles_raise(tmp_path: Path, pickle: bytes, expected: str) -> None:
    path = torch.write(tmp_path / "a.pt", pickle, ARRAYS)
    with pytest.raises(ValueError, match=expected) as caught:
        load_weights(path)
    assert str(path) in str(caught.value)


def test_huge_memo_index_needs_no_memory() -> None:
    # The interpreter of the standard library's C module would allocate a table of this size.
    allowed = Allowed(lambda _: False, {})
    assert read_pickle(b"\x80\x02K\x07r\xff\xff\xff\xff.", allowed) == 7


def test_recursive_pickles_raise(tmp_path: Path) -> None:
    allowed = Allowed(lambda name: name == Global("a", "B"), {})
    assert read_pickle(b"\x80\x02" + b"(" * 3000 + b"t" * 3000 + b".", allowed) is not None
    state = torch.dict_of({"_modules": b"}" + torch.text("x") + b"h\x00s"})
    loop = torch.named("models.yolo", "Model") + b")\x81q\x00" + state + b"b"
    with pytest.raises(ValueError, match="nested too deeply"):
        load_weights(torch.write(tmp_path / "loop.pt", torch.dict_of({"model": loop}), {}))
    with pytest.raises(PickleError):
        read_pickle(b"\x80\x02(((", allowed)


def test_compressed_archive_raises(tmp_path: Path) -> None:
    zeros = np.zeros(1_000_000, np.float32)
    pickle = torch.dict_of({"a": torch.tensor("0", zeros)})
    path = torch.write(tmp_path / "bomb.pt", pickle, {"0": zeros}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        load_weights(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "before version 1.6"),
        (b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.", "a plain pickle.* executes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html>", "not written by torch.save"),
        (b"", "not written by torch.save"),
        (b"PK\x03\x04 and nothing more", "damaged archive"),
    ],
)
def test_other_file_formats_are_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        load_weights(path)


@pytest.mark.parametrize("name", ["a.onnx", "a.engine", "a.TFLITE"])
def test_exported_model_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x08\x08\x12\x0bgraph-train")
    with pytest.raises(
        ValueError, match=r"an exported model; give the \.pt or \.safetensors file that it was exported"
    ):
        load_weights(tmp_path / name)


def test_torchscript_and_foreign_archives_are_named(tmp_path: Path) -> None:
    for entries, expected in (
        (("a/data.pkl", "a/constants.pkl"), "TorchScript"),
        (("readme.txt",), "not written by torch.save"),
    ):
        path = tmp_path / f"{len(entries)}.pt"
        with zipfile.ZipFile(path, "w") as archive:
            for entry in entries:
                archive.writestr(entry, b"\x80\x02N.")
        with pytest.raises(ValueError, match=expected):
            load_weights(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_load_or_raise_value_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "fuzz.pt"
    if data.draw(st.booleans(), label="inside the pickle"):
        pickle = bytearray(_checkpoint())
        _mutate(pickle, data)
        torch.write(path, bytes(pickle), ARRAYS)
    else:
        raw = bytearray(torch.write(path, _checkpoint(), ARRAYS).read_bytes())
        _mutate(raw, data)
        path.write_bytes(raw)
    try:
        weights = load_weights(path)
    except ValueError as error:
        assert "fuzz.pt" in str(error)
        assert len(str(error)) < 600
    else:
        assert weights.arrays


def _mutate(raw: bytearray, data: st.DataObject) -> None:
    for position in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=4), label="positions"):
        raw[position] ^= data.draw(st.integers(1, 255), label="flip")
    if data.draw(st.booleans(), label="truncate"):
        del raw[data.draw(st.integers(0, len(raw)), label="length") :]


def test_truncated_checkpoint_raises(goldens: Path, tmp_path: Path) -> None:
    raw = (goldens / "yolov5n_nc3.pt").read_bytes()
    for part in (0.1, 0.5, 0.99, 0.9999):
        path = tmp_path / "cut.pt"
        path.write_bytes(raw[: int(len(raw) * part)])
        with pytest.raises(ValueError, match=r"cut\.pt"):
            load_weights(path)


# --- safetensors -----------------------------------------------------------------------------------------------------


def test_saved_weights_round_trip(tmp_path: Path) -> None:
    model = _model(seed=4)
    model.names = ["cat", "dog"]
    model.count_batch()
    save_weights(model, tmp_path / "best.safetensors")
    weights = load_weights(tmp_path / "best.safetensors")
    assert (weights.class_names, weights.stride) == (("cat", "dog"), (2,))
    assert weights.config is not None
    rebuilt = DetectionModel(load_model_spec(weights.config), seed=9)
    report = transfer(rebuilt, weights)
    assert str(report) == f"Transferred {report.total}/{report.total} items from {tmp_path / 'best.safetensors'}"
    for name, value in _arrays(model).items():
        np.testing.assert_array_equal(value, _arrays(rebuilt)[name], err_msg=name)
        assert value.dtype == _arrays(rebuilt)[name].dtype
    assert os.listdir(tmp_path) == ["best.safetensors"]
    assert weights.anchors_px is not None
    np.testing.assert_allclose(weights.anchors_px, [[[10, 13], [16, 30]]])


def test_class_names_of_files_are_printable(tmp_path: Path) -> None:
    """Class names are printed on terminals and in tables, and become names of folders."""
    names = ["\x1b[31mred", "a\nb", "\ud800", "rot", "红"]
    expected = ("\\x1b[31mred", "a\\nb", "\\ud800", "rot", "红")
    path, model = tmp_path / "best.safetensors", _model()
    model.names = names
    save_weights(model, path)
    assert load_weights(path).class_names == expected
    network = torch.module(
        "models.yolo.DetectionModel",
        parameters={"w": torch.tensor("0", HALF)},
        children={},
        names=b"](" + torch.text("a\nb") + b"e",
    )
    torch.write(tmp_path / "last.pt", torch.dict_of({"model": network}), ARRAYS)
    assert load_weights(tmp_path / "last.pt").class_names == ("a\\nb",)


def test_exported_names_and_shapes_match_reference(goldens: Path, tmp_path: Path) -> None:
    counts = np.load(goldens / "model_counts.npz")
    path = tmp_path / "n.safetensors"
    save_weights(DetectionModel(load_model_spec("yolov5n")), path)
    with safe_open(str(path), framework="numpy") as file:
        shapes = {name: "x".join(map(str, file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
        assert file.metadata()["format"] == "pt"
    expected = zip(counts["state_keys/yolov5n"].tolist(), counts["state_shapes/yolov5n"].tolist(), strict=True)
    assert shapes == dict(expected)


def test_training_checkpoint_has_model_and_ema(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "last.safetensors"
    header = {"graph_train": json.dumps({"class_names": ["a"], "cursor": {"epoch": 3}, "epoch": 2})}
    arrays = {
        "model/x": np.ones(2, np.float32),
        "ema/x": np.zeros(2, np.float32),
        "gradient_sum/x": np.ones(2, np.float32),
    }
    save_file(arrays, path, metadata=header)
    for prefer, value in (("model", 1), ("ema", 0)):
        weights = load_weights(path, prefer=prefer)  # type: ignore[arg-type]
        assert (weights.part, weights.class_names, list(weights.arrays)) == (prefer, ("a",), ["x"])
        assert weights.epoch == 2
        np.testing.assert_array_equal(weights.arrays["x"], [value, value])


def test_damaged_safetensors_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(_model(), path)
    raw = path.read_bytes()
    path.write_bytes(raw[:-10])
    with pytest.raises(ValueError, match=r"a\.safetensors: damaged"):
        load_weights(path)
    path.write_bytes(struct.pack("<Q", 4) + b"{ab}")
    with pytest.raises(ValueError, match=r"a\.safetensors"):
        load_weights(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (key, value)
        for key in ("graph_train_checksum", "graph_train")
        for value in ("", "{", "null", '{"checksum": null}')
    ],
)
def test_damaged_checksum_is_not_taken_for_an_absent_one(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(_model(), path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"].pop("graph_train_checksum")
    header["__metadata__"][key] = value
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    with pytest.raises(ValueError, match=r"a\.safetensors: damaged"):
        load_weights(path)


def test_failed_save_keeps_old_file(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"old")
    model = _model()
    model.names = [object()]  # type: ignore[list-item]
    with pytest.raises(TypeError):
        save_weights(model, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["best.safetensors"]
    with pytest.raises(OSError):
        save_weights(_model(), tmp_path / "nowhere" / "x.safetensors")


# --- OneFlow folders -------------------------------------------------------------------------------------------------


def test_oneflow_folder_with_state_dict(tmp_path: Path) -> None:
    model = _model(seed=2)
    flow.save(model.state_dict(), str(tmp_path / "saved"))
    weights = load_weights(tmp_path / "saved")
    assert (weights.format, weights.part) == ("oneflow", "state_dict")
    for name, value in _arrays(model).items():
        np.testing.assert_array_equal(weights.arrays[name], value, err_msg=name)


def test_oneflow_folder_with_training_checkpoint(tmp_path: Path) -> None:
    model, averaged = _model(seed=2), _model(seed=3)
    averaged.names = ["cat", "dog"]
    flow.save({"epoch": 4, "model": model, "ema": averaged}, str(tmp_path / "saved"))
    weights = load_weights(tmp_path / "saved", prefer="ema")
    assert (weights.part, weights.epoch, weights.class_names) == ("ema", 4, ("cat", "dog"))
    for name, value in _arrays(averaged).items():
        np.testing.assert_array_equal(weights.arrays[name], value, err_msg=name)


def test_oneflow_folder_without_pickle(tmp_path: Path) -> None:
    folder = tmp_path / "saved" / "model.0.conv.weight"
    folder.mkdir(parents=True)
    (folder / "out").write_bytes(np.arange(6, dtype=np.float32).tobytes())
    (folder / "meta").write_text("shape {\n  dim: 2\n  dim: 3\n}\ndata_type: kFloat\n")
    weights = load_weights(tmp_path / "saved")
    np.testing.assert_array_equal(weights.arrays["model.0.conv.weight"], [[0, 1, 2], [3, 4, 5]])


def test_damaged_oneflow_folders_raise(tmp_path: Path) -> None:
    flow.save(_model().state_dict(), str(tmp_path / "saved"))
    pickle = tmp_path / "saved" / "pickled_data"
    good = pickle.read_bytes()
    some = next(entry for entry in sorted((tmp_path / "saved").iterdir()) if entry.is_dir())
    out = (some / "out").read_bytes()
    (some / "out").write_bytes(out + b"1234")
    with pytest.raises(ValueError, match="damaged"):
        load_weights(tmp_path / "saved")
    (some / "out").write_bytes(out)
    pickle.write_bytes(good.replace(some.name.encode(), b"../" + b"x" * (len(some.name) - 3)))
    with pytest.raises(ValueError, match="refers to a missing tensor folder"):
        load_weights(tmp_path / "saved")
    pickle.write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(ValueError, match=r"refers to os\.system"):
        load_weights(tmp_path / "saved")
    pickle.unlink()
    for entry in (tmp_path / "saved").iterdir():
        (entry / "out").unlink()
    with pytest.raises(ValueError, match=r"not written by oneflow\.save"):
        load_weights(tmp_path / "saved")


# --- transfer --------------------------------------------------------------------------------------------------------


def test_transfer_by_name_and_shape_reports_skipped(tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    save_weights(_model(seed=1, classes=2), path)
    other = _model(seed=5, classes=3)
    before = _arrays(other)
    report = transfer(other, load_weights(path), exclude=("anchor",))
    assert len(report.transferred) == report.total - 3
    assert report.mismatched == (
        "model.2.m.0.weight (14x8x1x1 in the file, 16x8x1x1 here)",
        "model.2.m.0.bias (14 in the file, 16 here)",
    )
    assert report.excluded == ("model.2.anchors",)
    assert str(report).startswith(f"Transferred {report.total - 3}/{report.total} items from {path}\n")
    after = _arrays(other)
    np.testing.assert_array_equal(after["model.2.m.0.weight"], before["model.2.m.0.weight"])
    np.testing.assert_array_equal(after["model.0.conv.weight"], _arrays(_model(seed=1))["model.0.conv.weight"])


def test_weights_of_other_network_raise(tmp_path: Path) -> None:
    path = torch.write(tmp_path / "a.pt", torch.dict_of({"x": torch.tensor("0", HALF)}), ARRAYS)
    with pytest.raises(ValueError, match="none of its 1 items fits"):
        transfer(_model(), load_weights(path))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such weight file"):
        load_weights(tmp_path / "a.pt")
