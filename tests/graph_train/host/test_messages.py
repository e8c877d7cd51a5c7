"""Messages as one line."""

from graph_train.host.messages import as_line


def test_one_printable_line_of_bounded_words() -> None:
    assert as_line("a\n  b\tc") == "a b c"
    assert as_line("\x1b[1m\x1b[38;2;255;000;000mError\x1b[0m: no\x07") == "Error: no\\x07"
    long = as_line(f"a: {'x' * 5000}/y.txt: no such file")
    assert len(long) < 400 and long.startswith("a: xxx") and long.endswith("xxx/y.txt: no such file") and "…" in long
    assert as_line("y" * 400) == "y" * 400
