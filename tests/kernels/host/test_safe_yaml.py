"""The yaml loader: plain data only, everything else is a one-line error with its position."""

import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kernels.host.safe_yaml import MAX_DEPTH, MAX_FILE_BYTES, load_yaml


def write(folder: Path, content: str | bytes) -> Path:
    file = folder / "a.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_plain_data_with_positions_and_source_text(tmp_path: Path) -> None:
    found = load_yaml(write(tmp_path, "\ufeffpath: x\nnames: {0: no, 1: 2020-01-01}\nlist: [1, 2.5, null]\n"))
    assert found.data == {"path": "x", "names": {0: False, 1: "2020-01-01"}, "list": [1, 2.5, None]}
    assert found.where("names", 1) == f"{found.path}:2:19"
    assert found.where("nothing") == str(found.path)
    assert found.scalar_text("names", 0) == "no"
    assert found.scalar_text("list") is None


@pytest.mark.parametrize("text", ["1:30", "-1:30", "1:30.5", "010", "-07", "0_1"])
def test_numbers_to_other_bases_without_prefix_are_text(tmp_path: Path, text: str) -> None:
    """YAML 1.1 reads 1:30 as 90, and 010 as 8."""
    assert load_yaml(write(tmp_path, f"a: {text}\n{text}: b\n")).data == {"a": text, text: "b"}


@pytest.mark.parametrize("text", ["0", "-0", "10", "1.5", "00.5", "0x10", "0b1", "1_000", ".5", "1.0e-3", "-.inf"])
def test_other_numbers_match_pyyaml(tmp_path: Path, text: str) -> None:
    assert load_yaml(write(tmp_path, f"a: {text}\n")).data == yaml.safe_load(f"a: {text}")


def test_aliases_are_resolved(tmp_path: Path) -> None:
    assert load_yaml(write(tmp_path, "a: &x [1]\nb: *x\n")).data == {"a": [1], "b": [1]}


def billion_laughs(levels: int) -> str:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(rows)


def nested_aliases(steps: int, each: int) -> str:
    """Return lists nested `each` deep that refer to the line above: deep nesting through aliases only."""
    rows = [f"- &a{n} {'[' * each}{f'*a{n - 1}' if n else 'x'}{']' * each}" for n in range(steps)]
    return "a:\n" + "\n".join(rows)


def test_nesting_through_aliases_counts_fully(tmp_path: Path) -> None:
    # The top level, the list under `a`, two steps of as many lists each, the innermost value.
    assert MAX_DEPTH == 2 + 2 * 18 + 2
    innermost = load_yaml(write(tmp_path, nested_aliases(2, 18))).data["a"][1]
    for _ in range(36):
        (innermost,) = innermost
    assert innermost == "x"
    with pytest.raises(ValueError, match="nested deeper than 40 levels after expanding aliases"):
        load_yaml(write(tmp_path, nested_aliases(2, 19)))


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        (billion_laughs(9), ":5:5", "more than 100000 values"),
        (nested_aliases(60, 36), ":3:39", "nested deeper than 40 levels after expanding aliases"),
        ("a: &a [*a]", ":1:4", "contains itself"),
        ("a: 1\nb: 2\na: 3", ":3:1", "key 'a' is already defined in line 1"),
        ("{1: a, 0x1: b}", ":1:8", "is already defined"),
        ("a: !!python/object/apply:os.system [ls]", ":1:4", "is not allowed"),
        ("a: !mine 3", ":1:4", "is not allowed"),
        ("a: !!set {x}", ":1:4", "is not allowed"),
        ("a: !!int abc", ":1:4", "does not fit its tag"),
        ("a: !!str [1]", ":1:4", "does not fit a list"),
        ("x: {<<: {b: 1}}", ":1:5", "merge keys"),
        ("? [a]\n: b", ":1:3", "a key must be text"),
        ("a: [1, 2\nb: 3", ":2:2", "invalid yaml"),
        ("a:\n\t- b", ":2:1", "invalid yaml"),
        ("a: " + "[" * (MAX_DEPTH + 1), ":1:43", "nested deeper"),
        ("a: " + "1" * 201, ":1:4", "number of 201 characters"),
        ('a: "\\uD800"', ":1:4", "has invalid escapes"),
        ("a: *b", ":1:4", "undefined alias"),
        ("a: 1\n---\nb: 2", ":2:1", "another document"),
        ("- a", "", "found a list at the top level"),
        ("", "", "found nothing at the top level"),
        (b"a: \x00", "", "invalid yaml"),
        (b"a: 1\nb: \xe9\n", ":2", "not valid UTF-8"),
        ('a: "\\U00110000"', "", "invalid yaml"),
        (b"#" * (MAX_FILE_BYTES + 1), "", "at most"),
    ],
)
def test_errors_are_one_line_with_position(tmp_path: Path, content: str | bytes, place: str, reason: str) -> None:
    file = write(tmp_path, content)
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        load_yaml(file)
    assert time.process_time() - start < 5
    message = str(caught.value)
    assert message.startswith(f"{file}{place}: ") and reason in message and "\n" not in message


def test_special_file_raises_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("pipe.yaml", "."):
        with pytest.raises(ValueError, match="not a regular file"):
            load_yaml(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_yaml(tmp_path / "none.yaml")


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), plain, max_size=4))
def test_plain_data_matches_pyyaml(tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]) -> None:
    text = yaml.safe_dump(data)
    assert load_yaml(write(tmp_path_factory.getbasetemp(), text)).data == yaml.safe_load(text)


CHARACTERS = "ab\n[]{},|>\"'1~=#%\t@`\ufeff\x85"
TOKENS = (": ", "  ", "- ", "&x ", "*x", "!!int ", "!!map ", "? ", "<<", "1e5", "0x", ".nan", "---", "...", "\\x")
snippets = st.sampled_from([*CHARACTERS, *TOKENS])


@given(st.one_of(st.binary(max_size=60), st.lists(snippets, max_size=25).map(lambda parts: "".join(parts).encode())))
def test_random_text_is_data_or_value_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = write(tmp_path_factory.getbasetemp(), content)
    try:
        data = load_yaml(file).data
    except ValueError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error)
    else:
        assert isinstance(data, dict)
