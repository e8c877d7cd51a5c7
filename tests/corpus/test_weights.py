"""Commands on damaged weights and checkpoints: a one-line message that names the file, and no code executed."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from graph_train.engine.state import Counters
from graph_train.runs.results_csv import COLUMNS
from graph_train.runs.saved_header import read_header
from graph_train.settings.hyperparameters import Hyperparameters
from graph_train.settings.train_options import TrainOptions
from models.oneflow_folder import read_oneflow_folder
from models.weights import load_weights
from tests.corpus.commands import USER_ERROR, run_child, run_in_process
from tests.corpus.weights import ARRAYS, checkpoint, resumable, write_weight_cases
from tests.graph_train.tiny import TINY

SECONDS = 30.0
HEADER: dict[str, Any] = {
    "options": TrainOptions().as_flat_dict(),
    "hyp": Hyperparameters().as_dict(),
    "cursor": {
        "epoch": 1,
        "next_batch": 0,
        "loss_sums": [0.0, 0.0, 0.0],
        "losses": 0,
        "maps": [0.5, 0.5, 0.5],
        "best_fitness": 0.1,
        "possible_stop": False,
        "finished": False,
    },
    "counters": asdict(Counters(updates=3)),
    "early_stopping": {"best_fitness": 0.1, "best_epoch": 0},
    "results": [",".join("0" * len(COLUMNS))],
    "class_names": ["a", "b", "c"],
    "data": "0" * 32,
    "config": TINY,
    "anchors_px": [[[10, 13], [16, 30], [33, 23]], [[30, 61], [62, 45], [59, 119]]],
}
META_WORDS = 'shape {|}|dim: 2|dim: -1|dim: 99999999999|data_type: kFloat|data_type: kInt8|\n|"'.split("|")
"""The text file next to each array in a OneFlow folder."""


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Change to an empty working directory, where executed code would leave a file."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert list(folder.iterdir()) == []


def test_export_rejects_each_in_one_line(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = write_weight_cases(empty_folder.parent / "cases")
    assert len(cases) > 60
    for name, file in cases.items():
        start = time.process_time()
        ended = run_in_process("graph-export", "--weights", file, capsys=capsys, may_end=[USER_ERROR])
        assert time.process_time() - start < SECONDS, name
        assert file.name in ended.error and len(ended.error) < 1500 and ended.error.isprintable(), (name, ended.error)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "has no model/"),
        ({"options": None}, "invalid header: no 'options'"),
        ({"options": {}}, "number of epochs missing"),
        ({"options": {"epochs": 3, "imgzs": 3}}, "unknown setting 'imgzs'"),
        ({"options": {"epochs": 3, "imgsz": "large"}}, "imgsz='large'"),
        ({"hyp": {"lr0": -1}}, "lr0=-1 is out of range"),
        ({"hyp": {"script": 1}}, "unknown hyper-parameter 'script'"),
        ({"cursor": {"epoch": -1}}, "cursor epoch=-1"),
        ({"cursor": {"epoch": "x" * 500}}, "cursor epoch='xxx"),
        ({"cursor": {"epoch": True}}, "cursor epoch=True"),
        ({"cursor": {"loss_sums": [1.0]}}, "cursor loss_sums=[1.0]"),
        ({"cursor": {"script": 1}}, "unknown cursor entry 'script'"),
        ({"counters": {"updates": 1e30}}, "counters updates=1e+30"),
        ({"early_stopping": {}}, "no best fitness"),
        ({"early_stopping": {"best_fitness": "x", "best_epoch": 0}}, "not a number"),
        ({"results": ["a,b"]}, "not a row of results.csv"),
        ({"results": 3}, "not rows of results.csv"),
        ({"threads": -1}, "threads=-1"),
        ({"threads": "2"}, "threads='2'"),
        ({"anchors_px": [[["x"]]]}, "anchors_px is not of shape"),
        ({"anchors_px": [[[1e30, 1]]]}, "anchors of shape"),
        ({"config": {"nc": 3}}, "backbone must be a list"),
        ({"config": {**TINY, "head": [[-1, 10**9, "C3", [8]]]}}, "C3 is repeated 1000000000 times"),
    ],
)
def test_rejects_header_that_describes_no_run(
    change: dict[str, Any], reason: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = {**HEADER, **change}
    header["options"] = {**HEADER["options"], **change["options"]} if change.get("options") else header["options"]
    if "options" in change and not change["options"]:
        header["options"] = change["options"]
    folder = resumable(empty_folder.parent / "run", checkpoint(json.loads(json.dumps(header)), ARRAYS))
    ended = run_in_process(
        "graph-train", "--resume", folder, "--data", "shapes", "--device", "cpu", capsys=capsys, may_end=[USER_ERROR]
    )
    assert reason in ended.error


@pytest.mark.slow
def test_every_command_rejects_each_in_subprocess(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(photo)
    for name, file in write_weight_cases(tmp_path / "cases").items():
        # A training transfers matching arrays, here some or none.
        training = name.removesuffix(".safetensors") in {
            "no-network",
            "lacks-most",
            "checkpoint-bare",
            "checkpoint-unsigned",
        }
        commands = ["graph-val", "graph-export", "graph-predict", *([] if training else ["graph-train"])]
        for command in commands:
            source = ["--source", photo] if command == "graph-predict" else []
            ended = run_child(command, "--weights", file, *source, cwd=tmp_path, may_end=[USER_ERROR], seconds=60)
            assert file.name in ended.error, (command, name, ended.error)
    assert not (tmp_path / "trap").exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("0"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(st.data())
def test_any_header_parses_or_raises(data: st.DataObject) -> None:
    header = json.loads(json.dumps(HEADER))
    for key in data.draw(st.lists(st.sampled_from(sorted(HEADER)), max_size=2)):
        part = header[key]
        if isinstance(part, dict) and part and data.draw(st.booleans()):
            part[data.draw(st.sampled_from(sorted(part)))] = data.draw(json_values)
        else:
            header[key] = data.draw(json_values)
    try:
        found = read_header(header)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
    else:
        assert found.cursor.epoch >= 0 and np.isfinite(found.anchors_px).all()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_safetensors_loads_or_raises(tmp_path: Path, data: st.DataObject) -> None:
    entries = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F64", "F16", "BF16", "F8_E5M2", "I64", "BOOL", "U8", "C64", "X"]),
            "shape": st.lists(st.integers(-1, 5) | st.just(2**60), max_size=3),
            "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2),
        }
    )
    header = data.draw(st.dictionaries(st.text(max_size=4), entries | json_values, max_size=3))
    if data.draw(st.booleans()):
        header["__metadata__"] = data.draw(st.dictionaries(st.text(max_size=4) | st.just("graph_train"), json_values))
    text = json.dumps(header).encode()
    length = data.draw(st.just(len(text)) | st.integers(0, 2**64 - 1))
    file = tmp_path / "a.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + text + data.draw(st.binary(max_size=40)))
    try:
        load_weights(file)
    except ValueError as error:
        assert str(file) in str(error) and "\n" not in str(error)


def test_tensor_name_with_newline_prints_on_one_line(tmp_path: Path) -> None:
    text = b'{"\\n": {"dtype": "F32", "shape": [], "data_offsets": [1, 0]}}'
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=r"damaged.*\\n") as rejected:
        load_weights(file)
    assert "\n" not in str(rejected.value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_oneflow_folder_loads_or_raises(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "folder"
    (folder / "w").mkdir(parents=True, exist_ok=True)
    words = st.lists(st.sampled_from(META_WORDS)).map(lambda drawn: " ".join(drawn).encode())
    meta = data.draw(st.binary(max_size=60) | words)
    (folder / "w" / "meta").write_bytes(meta)
    (folder / "w" / "out").write_bytes(data.draw(st.binary(max_size=16)))
    pickled = folder / "pickled_data"
    pickled.unlink(missing_ok=True)
    if data.draw(st.booleans()):
        single = [b"%c" % code for code in b"}]()NRbsua02.\x81\x85\x94"]
        codes = st.sampled_from([*single, b"X\1\0\0\0w", b"coneflow\nTensor\n", b"q\0", b"h\0"])
        pickled.write_bytes(b"\x80\x02" + b"".join(data.draw(st.lists(codes, max_size=20))) + b".")
    try:
        load_weights(folder)
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error)


def test_path_outside_oneflow_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "out").write_bytes(b"\0" * 8)
    (tmp_path / "secret" / "meta").write_bytes(b"shape { dim: 2 } data_type: kFloat")
    folder = tmp_path / "folder"
    folder.mkdir()
    path = b"X\x09\x00\x00\x00../secret"
    tensor = b"coneflow\nTensor\n)\x81}X\x04\x00\x00\x00path" + path + b"sb"
    state = b"}X\x01\x00\x00\x00w" + tensor + b"s"
    (folder / "pickled_data").write_bytes(
        b"\x80\x02}(X\x10\x00\x00\x00protocol_versionK\x01X\x04\x00\x00\x00data" + state + b"u."
    )
    assert list(read_oneflow_folder(folder)) == ["w"]
    with pytest.raises(ValueError, match=r"refers to a missing tensor folder \.\./secret"):
        load_weights(folder)
