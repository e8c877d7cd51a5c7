"""Hyper-parameter files: values, errors and round trips."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graph_train.settings.hyperparameters import (
    AUGMENTATIONS,
    KNOWN_KEYS,
    Hyperparameters,
    load_hyperparameters,
    shipped_names,
)
from pipelines.augmentation.augment_config import AugmentConfig, upper_bound


def _file(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text)
    return path


def test_defaults_match_yolov5_scratch_low(goldens: Path) -> None:
    recorded = json.loads(str(np.load(goldens / "train_sgd_default_hyp.npz")["hyp_raw_json"]))
    assert Hyperparameters().as_dict() == recorded
    assert load_hyperparameters("hyp.scratch-low.yaml") == Hyperparameters()


def test_shipped_hyp_files() -> None:
    assert load_hyperparameters("hyp.scratch-med.yaml") == Hyperparameters(
        lrf=0.1, cls=0.3, obj=0.7, scale=0.9, mixup=0.1
    )
    assert load_hyperparameters("data/hyps/hyp.scratch-high") == Hyperparameters(
        lrf=0.1, cls=0.3, obj=0.7, scale=0.9, mixup=0.1, copy_paste=0.1
    )
    assert load_hyperparameters("hyp.VOC.yaml").anchors_per_level == 3
    for name in shipped_names():
        load_hyperparameters(name)


def test_every_shipped_hyp_file_is_complete(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for name in shipped_names():
            load_hyperparameters(name)
    assert caplog.records == []


def test_missing_keys_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        hyp = load_hyperparameters(_file(tmp_path, "lr0: 0.02\n"))
    assert hyp == Hyperparameters(lr0=0.02)
    assert "copy_paste" in caplog.text
    assert "lr0" not in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr0: 0.1\nmomentm: 0.9\n", r"my\.yaml:2: unknown hyper-parameter 'momentm'; did you mean 'momentum'\?"),
        ("zzz: 1\n", r"my\.yaml:1: unknown hyper-parameter 'zzz'; known keys: lr0, "),
        ("lr0: 1e-2\n", r"my\.yaml:1: lr0='1e-2' is not a number; .*1\.0e-4"),
        ("lr0: [1, 2]\n", r"my\.yaml:1: lr0=\[1, 2\] is not a number"),
        ("mosaic: true\n", r"my\.yaml:1: mosaic=True is not a number"),
        ("\nmosaic: 1.5\n", r"my\.yaml:2: mosaic=1\.5 is out of range; it must be >= 0 and <= 1"),
        ("lr0: 0\n", r"lr0=0 is out of range; it must be > 0"),
        ("lr0: .nan\n", "is not finite"),
        ("lr0: 0.1\nlr0: 0.2\n", r"my\.yaml:2:1: key 'lr0' is already defined in line 1"),
        ("label_smoothing: 0.1\n", "--label-smoothing"),
        ("lr0: [\n", r"my\.yaml:2:1: invalid yaml"),
        ("just text\n", "write `key: value` lines"),
        ("", "found nothing"),
    ],
)
def test_errors_have_file_line_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_hyperparameters(_file(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_missing_file_lists_shipped_files() -> None:
    with pytest.raises(FileNotFoundError, match=r"hyp\.scratch-low\.yaml"):
        load_hyperparameters("nowhere/none.yaml")


def test_binary_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match="UTF-8"):
        load_hyperparameters(path)


def test_anchor_count_rounds_half_to_even() -> None:
    assert Hyperparameters(anchors=2.5).anchors_per_level == 2
    assert Hyperparameters(anchors=0).anchors_per_level is None
    assert Hyperparameters().anchors_per_level is None


def test_impossible_augmentation_raises_with_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"my\.yaml:1: perspective=0\.005 is out of range; .* <= 0\.001"):
        load_hyperparameters(_file(tmp_path, "perspective: 0.005\n"))
    for name in AUGMENTATIONS:
        value = upper_bound(name)
        assert getattr(Hyperparameters(**{name: value}), name) == value
        AugmentConfig(**{name: value})  # type: ignore[arg-type] # all of these are numbers


# Up to the smallest of all limits, that of `perspective`.
@given(values=st.lists(st.floats(0, 0.001), min_size=len(KNOWN_KEYS), max_size=len(KNOWN_KEYS)))
def test_saved_values_round_trip(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    chosen = dict(zip(KNOWN_KEYS, values, strict=True))
    chosen |= {"lr0": chosen["lr0"] + 1e-5, "cls_pw": 1.0, "obj_pw": 1.0, "anchor_t": 4.0}
    path = tmp_path_factory.mktemp("hyp") / "hyp.yaml"
    hyp = Hyperparameters(**chosen)
    hyp.save(path)
    assert load_hyperparameters(path) == hyp


def test_key_without_effect_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = load_hyperparameters("hyp.scratch-low.yaml").as_dict()
    for value, reported in ((0.2, False), (0.5, True)):
        path = _file(tmp_path, "".join(f"{key}: {number}\n" for key, number in {**text, "iou_t": value}.items()))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert load_hyperparameters(path).iou_t == value
        assert ("iou_t=0.5 has no effect" in caplog.text) == reported
