"""The command line and the settings tree: reference names, defaults, types, errors, and no heavy imports."""

import importlib.util
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_train.settings.export_options import ExportOptions
from graph_train.settings.flag_table import options_of
from graph_train.settings.predict_options import DetectorOptions, PredictOptions
from graph_train.settings.train_options import (
    LOGGERS,
    TrainOptions,
    build_parser,
    flag_fields,
    given_flags,
    options_from_flags,
)
from graph_train.settings.val_options import ValOptions

REFERENCE_FLAGS = """
    --weights --cfg --data --hyp --epochs --batch-size --batch --imgsz --img --img-size --rect --resume --nosave --noval
    --noautoanchor --noplots --evolve --bucket --cache --image-weights --device --multi-scale --single-cls --optimizer
    --sync-bn --workers --project --name --exist-ok --quad --cos-lr --label-smoothing --patience --freeze --save-period
    --seed --local_rank --entity --upload_dataset --bbox_interval --artifact_alias
""".split()
"""The flags of `train.py`, v7.0, and `--batch`, which is from later versions."""


def test_every_yolov5_flag_exists() -> None:
    known = {name for action in build_parser()._actions for name in action.option_strings}
    assert [flag for flag in REFERENCE_FLAGS if flag not in known] == []


def test_defaults_match_yolov5_except_listed() -> None:
    defaults = TrainOptions().as_flat_dict()
    assert {name: defaults[name] for name in ("epochs", "batch_size", "imgsz", "workers", "patience", "seed")} == {
        "epochs": 100,
        "batch_size": 16,
        "imgsz": 640,
        "workers": 8,
        "patience": 100,
        "seed": 0,
    }
    assert defaults["project"] == "runs/train"
    assert defaults["save_period"] == -1
    assert defaults["freeze"] == [0]
    # docs/compatibility.md: without downloads the reference's weights and data cannot be the default.
    assert (defaults["weights"], defaults["data"]) == ("", "shapes")


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--batch 8", "batch_size", 8),
        ("--img-size 320", "imgsz", 320),
        ("--img 320", "imgsz", 320),
        ("--batch_size 8", "batch_size", 8),
        ("--cache", "cache", "ram"),
        ("--cache disk", "cache", "disk"),
        ("--resume", "resume", "last"),
        ("--resume some/run", "resume", "some/run"),
        ("--evolve", "evolve", 300),
        ("--evolve 7", "evolve", 7),
        ("--upload_dataset", "upload_dataset", "all"),
        ("--freeze 10", "freeze", [10]),
        ("--freeze 0 1 2", "freeze", [0, 1, 2]),
        ("--eager", "graph", False),
        ("--graph", "graph", True),
        ("--amp", "amp", True),
        ("--no-amp", "amp", False),
        ("--no-bbox-iou-optim", "bbox_iou_optim", False),
        ("--label-smoothing 0.1", "label_smoothing", 0.1),
    ],
)
def test_command_line_parses(line: str, name: str, value: object) -> None:
    assert given_flags(line.split()) == {name: value}


@pytest.mark.parametrize("line", ["--epochs three", "--no-such-flag", "--optimizer Rprop", "--epoch 3"])
def test_invalid_command_line_exits_with_2(line: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        given_flags(line.split())
    assert stopped.value.code == 2


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        given_flags(["--help"])
    printed = capsys.readouterr().out
    for name, item in flag_fields().items():
        assert "--" + name.replace("_", "-") in printed
        assert len(item.metadata["help"]) > 8, name


def test_settings_round_trip_through_opt_yaml() -> None:
    options = options_from_flags(freeze=[1, 2], imgsz=320, amp=True, evolve=True, cache=True)
    assert options_from_flags(**options.as_flat_dict()) == options


@given(st.integers(1, 10**6), st.integers(1, 2**16), st.floats(0, 0.99), st.integers(0, 2**31))
def test_numbers_are_passed_to_settings(epochs: int, batch: int, smoothing: float, seed: int) -> None:
    line = f"--epochs {epochs} --batch-size {batch} --label-smoothing {smoothing!r} --seed {seed}"
    optim = options_from_flags(**given_flags(line.split())).optim
    assert (optim.epochs, optim.batch_size, optim.label_smoothing, optim.seed) == (epochs, batch, smoothing, seed)


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ({"weights": Path("a/b.pt")}, "weights", "a/b.pt"),
        ({"freeze": 10}, "freeze", [10]),
        ({"freeze": [1, 2]}, "freeze", [1, 2]),
        ({"cache": True}, "cache", "ram"),
        ({"cache": None}, "cache", ""),
        ({"resume": True}, "resume", "last"),
        ({"evolve": False}, "evolve", 0),
        ({"amp": None}, "amp", None),
        ({"label_smoothing": 0}, "label_smoothing", 0.0),
    ],
)
def test_python_api_values(flags: dict[str, Any], name: str, value: object) -> None:
    assert options_from_flags(**flags).as_flat_dict()[name] == value


REJECTED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'"),
    ({"zzz": 3}, "unknown setting 'zzz'; known: weights, cfg"),
    ({"epochs": "3"}, "epochs='3': must be an integer"),
    ({"epochs": True}, "epochs=True: must be an integer"),
    ({"label_smoothing": 10**400}, "label_smoothing=1000"),
    ({"epochs": "x" * 1000}, "epochs='xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx: must be"),
    ({"rect": "yes"}, "rect='yes': must be True or False"),
    ({"freeze": ["a"]}, "must be an integer or a list"),
    ({"data": 5}, "data=5: must be a string"),
    ({"data": np.zeros((2, 2))}, "data=array([[0., 0.], [0., 0.]]): must be a string"),
    ({"name": "a\0b"}, "name='a\\x00b': contains characters that are not allowed in a file name"),
    ({"name": "\ud800"}, "name='\\ud800': contains characters that are not allowed in a file name"),
    ({"epochs": 0}, "--epochs 0: must be at least 1"),
    ({"imgsz": 8}, "--imgsz 8"),
    ({"imgsz": 10**400}, "must be at most 16384"),
    ({"workers": -1}, "--workers -1"),
    ({"patience": -1}, "--patience -1"),
    ({"seed": -1}, "--seed -1"),
    ({"evolve": -1}, "--evolve -1"),
    ({"save_steps": -1}, "--save-steps -1: must be at least 0"),
    ({"save_minutes": -0.5}, "--save-minutes -0.5"),
    ({"save_minutes": float("nan")}, "--save-minutes nan: must be a number from 0 to 1000000"),
    ({"data": ""}, "--data '': empty; give a value, or remove the flag to use shapes"),
    ({"hyp": ""}, "--hyp '': empty; give a value, or remove the flag to use hyp.scratch-low.yaml"),
    ({"artifact_alias": ""}, "--artifact-alias '': empty; give a value, or remove the flag to use latest"),
    ({"keep_saves": 0}, "--keep-saves 0: must be at least 1"),
    ({"max_nonfinite": -1}, "--max-nonfinite -1"),
    ({"on_save_error": "ignore"}, "--on-save-error 'ignore': must be one of stop, continue"),
    ({"save_steps": 5, "nosave": True}, "--save-steps cannot be used with --nosave"),
    ({"save_minutes": 5, "evolve": 3}, "--save-minutes cannot be used with --evolve"),
    ({"save_period": 5, "nosave": True}, "--save-period cannot be used with --nosave"),
    ({"batch_size": 0}, "--batch-size 0"),
    ({"batch_size": -2}, "--batch-size -2"),
    ({"label_smoothing": 1.0}, "--label-smoothing 1.0"),
    ({"cache": "gpu"}, "--cache 'gpu': must be ram or disk"),
    ({"optimizer": "Rprop"}, "--optimizer 'Rprop': must be one of SGD, Adam, AdamW"),
    ({"kernels": "maybe"}, "--kernels 'maybe'"),
    ({"freeze": [-1]}, "layers count from 0"),
    ({"freeze": 10**9}, "--freeze 1000000000: must be at most 100000"),
    ({"rect": True, "quad": True}, "--rect cannot be used with --quad"),
    ({"rect": True, "multi_scale": True}, "--rect cannot be used with --multi-scale"),
    ({"rect": True, "image_weights": True}, "--rect cannot be used with --image-weights"),
    ({"quad": True, "batch_size": 6}, "--batch-size 6 must be a multiple of 4"),
    ({"evolve": 3, "resume": True}, "not supported with --evolve"),
    ({"loggers": "csv,clearml"}, "--loggers 'clearml': must be one or more of csv, tensorboard"),
    ({"bucket": "gs://mine"}, "--bucket 'gs://mine': requires --evolve"),
    ({"artifact_alias": "v3"}, "--artifact_alias 'v3'"),
    ({"upload_dataset": "some"}, "--upload_dataset 'some': must be all or val"),
    ({"entity": "me"}, "requires --loggers wandb"),
    ({"upload_dataset": "val"}, "requires --loggers wandb"),
    ({"bbox_interval": 2}, "requires --loggers wandb"),
)


@pytest.mark.parametrize(("flags", "message"), REJECTED, ids=[str(flags) for flags, _ in REJECTED])
def test_invalid_values_are_rejected(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as rejected:
        options_from_flags(**flags)
    assert message in str(rejected.value)
    assert "\n" not in str(rejected.value)


ODD_VALUES: tuple[Any, ...] = (
    *(object(), len, b"a", bytearray(b"1"), 5j, float("nan"), float("-inf"), -(10**400), "\ud800", "a\nb", ""),
    *(
        np.zeros(3),
        np.array("a"),
        np.float64("nan"),
        np.timedelta64("NaT"),
        np.timedelta64(1),
        {},
        {"a": 1},
        set(),
        (),
        [[]],
        [None],
    ),
    *([b"a"], ["a", 1], range(3), type, NotImplemented, Ellipsis, Path("x" * 5000)),
)


@pytest.mark.parametrize("kind", [None, ValOptions, PredictOptions, DetectorOptions, ExportOptions])
def test_values_of_any_type_are_accepted_or_one_line(kind: Any) -> None:
    """The Python API has no parser that would reject them."""
    needed = {} if kind is None else {"weights": "a.pt", **({"source": "a.jpg"} if kind is PredictOptions else {})}
    names = flag_fields() if kind is None else [item.name for item in fields(kind)]
    for name in names:
        for value in ODD_VALUES:
            try:
                flags = {**needed, name: value}
                options_from_flags(**flags) if kind is None else options_of(kind, flags)
            except ValueError as error:
                assert str(error).isprintable() and len(str(error)) < 6000, (name, value)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_logger_with_missing_package_is_rejected(name: str) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    with pytest.raises(ValueError, match=rf"not installed; uv sync .*--extra {name}"):
        options_from_flags(loggers=f"csv,{name}")


def test_earlier_flag_spellings(capsys: pytest.CaptureFixture[str]) -> None:
    assert given_flags(["--cache-images", "--notest"]) == {"cache": "ram", "noval": True}
    for flag, today in (("--adam", "replaced by --optimizer Adam"), ("--linear-lr", "the linear schedule is the")):
        with pytest.raises(SystemExit) as ended:
            given_flags([flag])
        assert ended.value.code == 2
        assert f"graph-train: {flag}: {today}" in capsys.readouterr().err


def test_bucket_without_client_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"--bucket 'mine': gsutil \(Google Cloud CLI\) is not installed"):
        options_from_flags(bucket="mine", evolve=2)


def test_duplicate_loggers_are_removed() -> None:
    assert options_from_flags(loggers=" csv, tensorboard,csv,").run.logger_names == ("csv", "tensorboard")
    assert options_from_flags().run.logger_names == LOGGERS[:2]
