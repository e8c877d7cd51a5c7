import re
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.ops import LIBRARY, NOTHING, OWN, PLUGIN, _computed_by, plugin_kernels
from benchmarks.results import read_result
from kernels.build.plugin_build import SOURCE_FOLDER


def test_registrations_are_found_in_the_sources() -> None:
    cpu = plugin_kernels()["cpu"]
    assert {"conv2d", "silu", "normalization_grad", "graph_train_update_sgd"} <= cpu
    own = {
        name
        for path in SOURCE_FOLDER.glob("*.cpp")
        for name in re.findall(r'REGISTER\w*_USER_OP\("(graph_train_\w+)"', path.read_text(encoding="utf-8"))
    }
    assert own and own <= cpu


def test_registrations_of_every_form(tmp_path: Path) -> None:
    (tmp_path / "one.cpp").write_text('GT_CPU_KERNEL("a", Kernel, x);\nGT_CPU_FACTORY(\n    "b", make, x);\n')
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "two.cu").write_text(
        'GT_CUDA_KERNEL("c", Kernel, x);\n'
        'REGISTER_USER_KERNEL("d").SetCreateFn<K>().SetIsMatchedHob(HobDeviceType() == DeviceType::kCUDA);\n'
    )
    assert plugin_kernels(tmp_path) == {"cpu": {"a", "b"}, "cuda": {"c", "d"}}


def test_who_computes_an_op() -> None:
    covered = frozenset({"silu"})
    assert _computed_by("silu", covered, cuda=True) == PLUGIN
    assert _computed_by("conv2d", covered, cuda=True) == LIBRARY
    assert _computed_by("conv2d", covered, cuda=False) == OWN
    assert _computed_by("reshape", covered, cuda=True) == NOTHING
    assert _computed_by("variable_conf", covered, cuda=True) == NOTHING
    assert _computed_by("graph_train_bbox_iou", covered, cuda=True) == "–"


@pytest.mark.slow
def test_every_op_of_a_step_is_listed(tmp_path: Path) -> None:
    file, picture = tmp_path / "o.json", tmp_path / "o.png"
    assert main(["ops", "--quick", "--json", str(file), "--plot", str(picture)]) == 0
    rows = {row["op"]: row for row in read_result(file)["rows"]}
    # yolov5n has 60 convolutions; the plugin's are channels-last ops of our own.
    assert rows["graph_train_convolution_filter_grad"]["in_step"] == rows["conv_filter_grad"]["in_composed_step"] == 60
    assert rows["graph_train_convolution_filter_grad"]["in_composed_step"] == rows["conv_filter_grad"]["in_step"] == 0
    assert rows["graph_train_update_sgd"] | {"in_step": 1, "cpu": PLUGIN} == rows["graph_train_update_sgd"]
    assert rows["where"]["in_composed_step"] > 0
    assert picture.exists()
