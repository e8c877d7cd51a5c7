from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from graph_train.cli.export import main
from models.weights import load_weights


def test_exported_file_has_the_names_and_values_of_the_reference(goldens: Path, tmp_path: Path) -> None:
    output = tmp_path / "weights.safetensors"
    assert main(["--weights", str(goldens / "yolov5n_nc3.pt"), "--output", str(output)]) == 0
    arrays = load_file(output)
    expected = np.load(goldens / "checkpoint_expected.npz")
    wanted = {name[len("ema/") :]: expected[name] for name in expected.files if name.startswith("ema/")}
    wanted |= {str(name): expected[f"model/{name}"] for name in expected["ema_same_as_model"]}
    assert arrays.keys() == wanted.keys()
    for name, value in wanted.items():
        assert arrays[name].shape == value.shape
        np.testing.assert_array_equal(arrays[name], value)
    assert load_weights(output).config is not None


def test_unknown_weights_are_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--weights", str(tmp_path / "none.pt")]) == 2
    assert "no such weight file" in capsys.readouterr().err
