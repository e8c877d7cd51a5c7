"""Real loggers: TensorBoard event files read back, W&B offline, MLflow in a folder."""

import contextlib
import importlib
import importlib.util
import json
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graph_train.hooks.callbacks import Callbacks
from graph_train.hooks.loggers import RunDescription, add_loggers
from graph_train.hooks.tensorboard_events import EventFile
from graph_train.runs.results_csv import RESULT_KEYS
from kernels.host.extras import install_command
from tests.file_limit import file_limit

_VALUES = [0.5 + 0.25 * i for i in range(13)]  # exact in float32


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def _run(folder: Path, callbacks: Callbacks, epochs: range) -> None:
    weights = folder / "best.safetensors"
    weights.write_bytes(b"weights")
    Image.new("RGB", (6, 4), "red").save(folder / "results.png")
    callbacks.run("on_pretrain_routine_end", np.zeros((0, 5)), ["a", "b"])
    for epoch in epochs:
        callbacks.run("on_train_epoch_end", epoch)
        detections = np.array([[1.0, 1.0, 3.0, 3.0, 0.9, 1.0]])
        callbacks.run("on_val_image_end", detections, detections, str(folder / "results.png"), ["a", "b"], None)
        callbacks.run("on_fit_epoch_end", _VALUES, epoch, 0.4, 0.4)
    callbacks.run("on_train_end", folder / "last.safetensors", weights, epochs[-1], _VALUES[3:10])
    callbacks.run("teardown")
    assert callbacks.failed == []


# --- TensorBoard ---------------------------------------------------------------------------------------------------


def _records(path: Path) -> Iterator[bytes]:
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12 : at + 12 + length]
        at += 16 + length
    assert at == len(data)


def test_tensorboard_event_known_bytes(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.scalar("a", 1.0, 300)
    file.close()
    (path,) = tmp_path.iterdir()
    version, point = _records(path)
    assert version.endswith(b"\x1a\x0dbrain.Event:2")
    # wall time (9 bytes), step 300 as a varint, summary { value { tag: "a", simple_value: 1.0 } }
    assert point[0] == 0x09
    assert point[9:] == b"\x10\xac\x02" + b"\x2a\x0a" + b"\x0a\x08" + b"\x0a\x01a" + b"\x15" + struct.pack("<f", 1.0)


def test_non_png_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a PNG"):
        EventFile(tmp_path).png("x", b"\xff\xd8\xff", 0)


def test_event_files_created_in_same_second(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.close()
    EventFile(tmp_path).close()
    file.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_unwritable_event_file_raises_immediately(tmp_path: Path) -> None:
    with file_limit(4096):
        file = EventFile(tmp_path)
        with pytest.raises(OSError, match="File too large"):
            for step in range(1000):
                file.scalar("a", 1.0, step)
                file.flush()


def test_tensorboard_writes_every_value_and_plot(tmp_path: Path) -> None:
    callbacks = Callbacks()
    add_loggers(callbacks, ["tensorboard"], RunDescription(tmp_path, {}))
    _run(tmp_path, callbacks, range(2))
    (path,) = tmp_path.glob("events.out.tfevents.*")
    content = b"".join(_records(path))
    for key in RESULT_KEYS:
        # the tag is followed by the value's tag byte, so the longer of two names cannot stand in for the shorter
        assert content.count(key.encode() + b"\x15") == 2
    assert (tmp_path / "results.png").read_bytes() in content


def test_tensorboard_reads_event_file(tmp_path: Path) -> None:
    _needs("tensorboard")
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")

    # The second run resumes within epoch 0, the third one within epoch 2.
    for first, epochs in ((None, range(1)), (0, range(4)), (2, range(2, 5))):
        callbacks = Callbacks()
        add_loggers(callbacks, ["tensorboard"], RunDescription(tmp_path, {}, first_epoch=first))
        _run(tmp_path, callbacks, epochs)
    reader = accumulator.EventAccumulator(str(tmp_path))
    reader.Reload()
    points = reader.Scalars("metrics/mAP_0.5")
    assert [(p.step, p.value) for p in points] == [(epoch, _VALUES[5]) for epoch in range(5)]
    assert reader.Images("results")[0].width == 6


# --- extras --------------------------------------------------------------------------------------------------------


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    callbacks = Callbacks()
    add_loggers(callbacks, ["wandb"], RunDescription(tmp_path, {"batch_size": 8}, bbox_interval=2))
    _run(tmp_path, callbacks, range(2))
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    run_id = (tmp_path / "wandb_id.txt").read_text().strip()
    _wandb_records(log)
    content = log.read_bytes()
    for text in (
        run_id,
        "best/mAP_0.5:0.95",
        "batch_size",
        "x/lr2",
        "Bounding Box Debugger/Images",
        f"run_{run_id}_model",
    ):
        assert text.encode() in content, text


def _wandb_records(log: Path) -> list[Any]:
    """Return the records of an offline W&B log, waiting until its process has written the last one."""
    records = importlib.import_module("wandb.proto.wandb_internal_pb2")
    end = time.monotonic() + 60
    while True:
        store = importlib.import_module("wandb.sdk.internal.datastore").DataStore()
        with contextlib.suppress(AssertionError):  # an incompletely written block
            store.open_for_scan(str(log))
            found = [records.Record.FromString(data) for data in iter(store.scan_data, None)]
            if found and found[-1].HasField("exit"):
                return found
        assert time.monotonic() < end, f"{log} has no last record"
        time.sleep(0.1)


def _wandb_rows(log: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return the run id and the rows of values of an offline W&B log."""
    run_id, rows = "", []
    for record in _wandb_records(log):
        run_id = record.run.run_id or run_id
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return run_id, rows


def test_wandb_continues_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    found: dict[Path, tuple[str, list[dict[str, Any]]]] = {}
    # The second run resumes before epoch 1, which the first one has already logged; the third is new.
    for first, epochs in ((None, range(2)), (1, range(1, 3)), (None, range(1))):
        callbacks = Callbacks()
        add_loggers(callbacks, ["wandb"], RunDescription(tmp_path, {}, first_epoch=first))
        _run(tmp_path, callbacks, epochs)
        (log,) = {*tmp_path.glob("wandb/offline-run-*/run-*.wandb")} - found.keys()
        found[log] = _wandb_rows(log)
        time.sleep(1.1)  # its folders are named by seconds
    ids, rows = zip(*found.values(), strict=True)
    assert ids[0] == ids[1] != ids[2]
    assert (tmp_path / "wandb_id.txt").read_text() == f"{ids[2]}\n"
    # Every epoch, and the results at the end.
    assert [[row["epoch"] for row in of_run] for of_run in rows] == [[0, 1, 1], [1, 2, 2], [0, 0]]
    assert [row["metrics/mAP_0.5"] for row in rows[1]] == [_VALUES[5]] * 3


def test_mlflow_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _needs("mlflow")
    mlflow = importlib.import_module("mlflow")

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "train" / "exp"
    folder.mkdir(parents=True)
    # The second run resumes before epoch 1, which the first one has already logged.
    for first, epochs in ((None, range(2)), (1, range(1, 3))):
        callbacks = Callbacks()
        add_loggers(callbacks, ["mlflow"], RunDescription(folder, {"lr0": 0.01}, first_epoch=first))
        _run(folder, callbacks, epochs)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "train" / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("train").experiment_id])
    assert run.data.params == {"lr0": "0.01"}
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "metrics/mAP_0.5-0.95")
    assert [(point.step, point.value) for point in history] == [(epoch, _VALUES[6]) for epoch in range(3)]
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert names == {"results.png", "best.safetensors"}


def test_mlflow_marks_stopped_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _needs("mlflow")
    mlflow = importlib.import_module("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "train" / "exp"
    folder.mkdir(parents=True)
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "train" / "mlruns").as_uri())
    for first, status in ((None, "KILLED"), (1, "FINISHED")):
        callbacks = Callbacks()
        add_loggers(callbacks, ["mlflow"], RunDescription(folder, {}, first_epoch=first))
        if status == "FINISHED":
            _run(folder, callbacks, range(1, 2))
        callbacks.run("teardown")
        assert client.get_run((folder / "mlflow_id.txt").read_text().strip()).info.status == status


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_names_its_extra(tmp_path: Path, name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(ValueError, match=re.escape(install_command(name))):
        add_loggers(Callbacks(), [name], RunDescription(tmp_path, {}))


def test_unknown_logger_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown logger 'clearml'; known loggers: tensorboard, wandb, mlflow"):
        add_loggers(Callbacks(), ["clearml"], RunDescription(tmp_path, {}))


def test_logger_that_cannot_start_raises(tmp_path: Path) -> None:
    (tmp_path / "nowhere").write_text("a file")
    with pytest.raises(ValueError, match=r"'tensorboard' cannot start: .*nowhere"):
        add_loggers(Callbacks(), ["tensorboard"], RunDescription(tmp_path / "nowhere", {}))
