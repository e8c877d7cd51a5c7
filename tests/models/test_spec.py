from dataclasses import FrozenInstanceError
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalogue import BLOCKS, Activation, ArgumentError, parse_activation, scaled_channels, scaled_repeats
from models.spec import load_model_spec, shipped_configs

SMALL = """\
nc: 2
depth_multiple: 1.0
width_multiple: 1.0
anchors: [[10, 13, 16, 30]]
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 2, C3, [16]]
head:
  - [[1], 1, Detect, [nc, anchors]]
"""


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "net.yaml"
    path.write_text(dedent(text))
    return path


def _error(tmp_path: Path, old: str, new: str) -> str:
    assert old in SMALL
    with pytest.raises(ValueError) as caught:
        load_model_spec(_write(tmp_path, SMALL.replace(old, new)))
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    return message


def test_small_network_known_values(tmp_path: Path) -> None:
    spec = load_model_spec(_write(tmp_path, SMALL))
    assert [layer.kind for layer in spec.layers] == ["Conv", "C3", "Detect"]
    assert [layer.inputs for layer in spec.layers] == [(-1,), (0,), (1,)]
    assert [layer.out_channels for layer in spec.layers] == [16, 16, 0]
    assert spec.layers[1].repeats == 2
    assert spec.strides == (2,)
    assert (spec.coarsest_stride, spec.grid_px) == (2, 32)  # YOLOv5's `max(int(model.stride.max()), 32)`
    assert spec.anchors_px == (((10.0, 13.0), (16.0, 30.0)),)
    assert spec.saved == (1,)
    with pytest.raises(FrozenInstanceError):
        spec.num_classes = 3  # type: ignore[misc]


def test_multiples_round_like_reference() -> None:
    # 64 * 0.25 = 16; 100 * 0.33 = 33 -> the next multiple of 8 is 40.
    assert [scaled_channels(64, 0.25), scaled_channels(100, 0.33)] == [16, 40]
    # 9 * 0.33 = 2.97 -> 3; 3 * 0.5 = 1.5 -> 2 and 5 * 0.5 = 2.5 -> 2 (half to even); 2 * 0.1 -> at least 1; 1 stays.
    assert [scaled_repeats(9, 0.33), scaled_repeats(3, 0.5), scaled_repeats(5, 0.5)] == [3, 2, 2]
    assert [scaled_repeats(2, 0.1), scaled_repeats(1, 3.0)] == [1, 1]


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_configuration_loads(name: str) -> None:
    spec = load_model_spec(name)
    assert spec.num_classes == 80
    assert spec.layers[-1].kind == "Detect"
    assert len(spec.anchors_px) == len(spec.strides)
    again = load_model_spec(spec.config)
    assert (again.layers[-1].in_channels, again.strides, again.anchors_px) == (
        spec.layers[-1].in_channels,
        spec.strides,
        spec.anchors_px,
    )


@pytest.mark.parametrize("spelling", ["yolov5n", "yolov5n.yaml", "models/yolov5n.yaml"])
def test_shipped_names_accept_yolov5_spelling(spelling: str) -> None:
    assert Path(load_model_spec(spelling).source).name == "yolov5n.yaml"


def test_unknown_name_lists_available() -> None:
    with pytest.raises(FileNotFoundError, match=r"yolov5q\.yaml: no such model yaml; .*yolov5n"):
        load_model_spec("yolov5q.yaml")
    with pytest.raises(FileNotFoundError):
        load_model_spec("elsewhere/yolov5n.yaml")


def test_overrides_replace_yaml() -> None:
    spec = load_model_spec("yolov5n", num_classes=3)
    assert (spec.num_classes, spec.channels, spec.layers[0].in_channels) == (3, 3, (3,))
    grey = load_model_spec({**spec.config, "ch": 1})
    assert (grey.channels, grey.layers[0].in_channels) == (1, (1,))
    counted = load_model_spec("yolov5n", anchors=4)
    assert counted.anchors_px[0] == ((0, 1), (2, 3), (4, 5), (6, 7))
    given = load_model_spec("yolov5n", anchors=[[8, 8], [16, 16], [32, 32]])
    assert given.anchors_px == (((8, 8),), ((16, 16),), ((32, 32),))


def test_descending_anchors_are_reversed() -> None:
    given = load_model_spec("yolov5n", anchors=[[32, 32], [16, 16], [8, 8]])
    assert given.anchors_px == (((8, 8),), ((16, 16),), ((32, 32),))


def test_row_with_head_width_is_not_scaled() -> None:
    # 3 anchors * (1 class + 5) = 18 channels: kept; any other number is multiplied by 0.25 and rounded up to 8.
    config = {
        "nc": 1,
        "width_multiple": 0.25,
        "anchors": 3,
        "backbone": [[-1, 1, "Conv", [18]], [-1, 1, "Conv", [64]]],
        "head": [[[1], 1, "Detect", ["nc", "anchors"]]],
    }
    assert [layer.out_channels for layer in load_model_spec(config).layers[:2]] == [18, 16]


def test_unknown_block_error_has_line_and_known_blocks(tmp_path: Path) -> None:
    message = _error(tmp_path, "C3, [16]", "C4, [16]")
    assert "net.yaml:7: layer 1: unknown block 'C4'; known blocks: " in message
    assert all(name in message for name in BLOCKS)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[16, 3, 2]", "['x', 3, 2]", "net.yaml:6: Conv has out_channels='x': must be an integer >= 1"),
        ("[16, 3, 2]", "[]", "net.yaml:6: Conv needs argument 1, out_channels"),
        ("[16, 3, 2]", "[16, 3, 2, 1, 1, 1, True, 9]", "net.yaml:6: Conv has 8 arguments; it takes at most 7"),
        ("[16, 3, 2]", "[16, 3, 2, None, 5]", "net.yaml:6: Conv has groups=5, which does not divide its 3 channels"),
        ("C3, [16]", "C3, [16, 1]", "net.yaml:7: C3 has shortcut=1: must be True or False"),
        ("[-1, 2, C3", "[-1, 0, C3", "net.yaml:7: C3 is repeated 0 times"),
        ("[-1, 2, C3", "[5, 2, C3", "net.yaml:7: C3 has input 5: layer 1 can use 0 to 0, or -1 to -1"),
        ("[-1, 1, Conv", "[5, 1, Conv", "net.yaml:6: Conv has input 5: the input of layer 0 is the image: write -1"),
        ("[-1, 2, C3", "[[-1, 0], 2, C3", "net.yaml:7: C3 takes one input"),
        ("- [-1, 2, C3, [16]]", "- [-1, 2, C3]", "net.yaml:7: row"),
        ("[nc, anchors]", "[3, anchors]", "net.yaml:9: Detect has 3 classes, but nc is 2"),
        ("Detect, [nc, anchors]", "Conv, [8]", "the last row, and no other, must be Detect"),
        ("[[1], 1, Detect", "[[1, 0], 1, Detect", "net.yaml:9: 1 row of anchors for 2 levels"),
        ("nc: 2", "nc: 0", "nc=0: must be an integer >= 1"),
        ("nc: 2", "nc: 2\nnumber: 3", "unknown key 'number'; known keys: nc,"),
        ("depth_multiple: 1.0", "depth_multiple: x", "depth_multiple='x': must be a number"),
        ("[[10, 13, 16, 30]]", "[[10, 13, 16]]", "row of anchors [10, 13, 16]"),
        ("[[10, 13, 16, 30]]", "nothing", "anchors='nothing'"),
        ("nc: 2", "activation: os.system('x')\nnc: 2", "is not an activation"),
        ("backbone:", "backbone: 7\nother:", "unknown key 'other'"),
        ("nc: 2", "nc: [2", "invalid yaml"),
        (
            "[[1], 1, Detect, [nc, anchors]]",
            "[[0], 1, Detect, [nc, anchors]]",
            "net.yaml:7: the output of layer 1 is unused",
        ),
    ],
)
def test_errors_have_file_line_and_remedy(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in _error(tmp_path, old, new)


def test_concat_of_different_strides_raises() -> None:
    config = {
        "nc": 1,
        "anchors": 1,
        "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]], [[-1, 0], 1, "Concat", [1]]],
        "head": [[[2], 1, "Detect", ["nc", "anchors"]]],
    }
    with pytest.raises(ValueError, match=r"backbone row 2: Concat has inputs \[1, 0\] with different strides: 4, 2"):
        load_model_spec(config)


def test_activations_are_parsed_not_executed() -> None:
    assert parse_activation("nn.LeakyReLU(0.1)") == Activation("LeakyReLU", (0.1,))
    assert parse_activation("torch.nn.SiLU()") == Activation("SiLU")
    assert parse_activation("nn.ReLU(inplace=True)") == Activation("ReLU")
    for text in ("__import__('os').system('x')", "nn.LeakyReLU(open('x'))", "nn.SiLU(1)", "nn.Nope()", "1", "(((("):
        with pytest.raises(ArgumentError):
            parse_activation(text)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[16, 3, 2]", "[99999999999, 3, 2]", "net.yaml:6: Conv has out_channels=99999999999: must be at most 1048576"),
        (
            "Conv, [16, 3, 2]]",
            "Conv, [9000]]\n  - [-1, 1, Conv, [900000]]",
            "net.yaml:7: Conv makes the network larger",
        ),
        ("[16, 3, 2]", "[16, 1048575, 2]", "net.yaml:6: Conv makes the network larger than 2.1e+09 weights"),
        ("[-1, 2, C3", "[-1, 999999999, C3", "net.yaml:7: C3 is repeated 999999999 times: at most 1000"),
        ("depth_multiple: 1.0", "depth_multiple: .nan", "depth_multiple=nan: must be a number above 0"),
        ("nc: 2", "nc: 99999999", "nc=99999999: must be at most 1048576"),
        (
            "nc: 2\ndepth_multiple: 1.0\nwidth_multiple: 1.0",
            "nc: 1048576\nwidth_multiple: 64",
            "net.yaml:8: Detect makes the network larger than",
        ),
        ("[[10, 13, 16, 30]]", "999999999", "anchors=999999999: must be"),
        ("[[10, 13, 16, 30]]", "[[10, .nan, 16, 30]]", "row of anchors [10, nan, 16, 30]"),
        ("[[10, 13, 16, 30]]", "[[10, -3, 16, 30]]", "row of anchors [10, -3, 16, 30]"),
        ("[[10, 13, 16, 30]]", "[[10, 1.0e+30, 16, 30]]", "row of anchors [10, 1e+30, 16, 30]"),
        ("- [-1, 2, C3, [16]]", "- [-1, 1, nn.Upsample, [None, .inf]]", "scale_factor=inf: must be an integer"),
        ("- [-1, 2, C3, [16]]", "- [-1, 1, nn.Upsample, [None, 9999]]", "enlarges a side of 1024 px to 5119488 cells"),
        ("nc: 2", f"activation: {'-' * 3000}1\nnc: 2", "is not an activation"),
        ("nc: 2", "activation: nn.LeakyReLU(1e999)\nnc: 2", "finite numbers"),
    ],
)
def test_too_large_networks_raise(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in _error(tmp_path, old, new)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70)
    | st.integers()
    | st.floats()
    | st.sampled_from(["nc", "x", "None"]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    row=st.tuples(
        st.integers(-3, 4) | st.lists(st.integers(-3, 4), max_size=3),
        st.integers(-1, 3),
        st.sampled_from([*BLOCKS, "nn.Upsample", "nn.Nope"]),
        st.lists(_VALUES, max_size=6),
    ),
    anchors=_VALUES,
)
def test_any_row_builds_or_raises_value_error(row: tuple[object, ...], anchors: object) -> None:
    config = {
        "nc": 2,
        "anchors": anchors,
        "backbone": [[-1, 1, "Conv", [16, 3, 2]], list(row)],
        "head": [[[-1], 1, "Detect", ["nc", "anchors"]]],
    }
    try:
        spec = load_model_spec(config)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert len(spec.layers) == 3
