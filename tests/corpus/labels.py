"""Damaged label files."""

from collections.abc import Iterator

import numpy as np

from tests.corpus.images import Case, encoded

GOOD = b"0 0.5 0.5 0.25 0.25\n"
COORDINATES = """
nan=nan inf=inf minus-inf=-inf huge=1e30 negative=-0.1 above-one=1.5 overflow=1e999 hex=0x1p-1 comma=0,5
underscore=0_0.5 word=half arabic=٠.٥ pixels=320
"""
CLASSES = f"nan=nan inf=inf negative=-1 float=0.7 name=cat huge=1e30 digits={'9' * 400} complex=1j hex=0x0"


def _named(values: str) -> Iterator[tuple[str, ...]]:
    return (tuple(word.split("=")) for word in values.split())


def _rows() -> Iterator[tuple[str, bytes]]:
    """Yield name and text of each bad row."""
    for name, value in _named(COORDINATES):
        yield f"coordinate-{name}", f"0 {value} 0.5 0.25 0.25".encode()
    for name, value in _named(CLASSES):
        yield f"class-{name}", f"{value} 0.5 0.5 0.25 0.25".encode()
    for columns in (1, 2, 3, 4, 6, 8):
        yield f"columns-{columns}", b" ".join([b"0"] + [b"0.5"] * (columns - 1))
    yield "no-area", b"0 0.5 0.5 0 0"
    yield "csv", b"0,0.5,0.5,0.25,0.25"
    yield "quoted", b'"0" "0.5" "0.5" "0.25" "0.25"'
    yield "noise", bytes(range(128, 256))
    yield "polygon-two-points", b"0 0.1 0.1 0.2 0.2 0.3"
    yield "polygon-flat", b"0 0.1 0.1 0.2 0.1 0.3 0.1"


def _whole() -> Iterator[tuple[str, bytes, str]]:
    yield "empty", b"", "used"
    yield "blank-lines", b"\n\n  \n\t\n", "used"
    yield "bom", b"\xef\xbb\xbf" + GOOD, "used"
    yield "crlf", GOOD.replace(b"\n", b"\r\n"), "used"
    yield "old-mac", GOOD.replace(b"\n", b"\r"), "used"
    yield "no-last-newline", GOOD.strip(), "used"
    yield "tabs", GOOD.replace(b" ", b"\t"), "used"
    yield "class-as-float", b"1.0 0.5 0.5 0.25 0.25\n", "used"
    yield "exponents", b"0 5e-1 5E-1 2.5e-1 .25\n", "used"
    yield "many-digits", b"0 0." + b"5" * 5000 + b" 0.5 0.25 0.25\n", "used"
    yield "polygon", b"0 0.1 0.1 0.4 0.1 0.4 0.4\n", "used"
    yield "polygon-of-100000", b"0 " + b" ".join(b"%.6f" % (n % 1000 / 1000) for n in range(200_000)) + b"\n", "either"
    yield "repeated", GOOD * 50, "reported"
    yield "utf-16", GOOD.decode().encode("utf-16"), "reported"
    yield "binary", bytes(np.random.default_rng(1).integers(0, 256, 4000, np.uint8)), "reported"
    yield "an-image", encoded(), "reported"
    yield "zeros", bytes(1000), "reported"
    yield "one-line-of-megabytes", b"0 0.5 " * 500_000, "reported"
    many = np.random.default_rng(2).uniform(0.2, 0.8, (100_000, 2))
    yield "rows-100000", b"".join(b"0 %.9f %.9f 0.1 0.1\n" % tuple(row) for row in many), "reported"
    yield "rows-100000-equal", GOOD * 100_000, "reported"
    yield "rows-100000-bad", b"x\n" * 100_000, "reported"


def damaged_labels() -> list[Case]:
    """Return files with each bad row alone and next to a valid one, and other bad files; names have no suffix."""
    cases = []
    for name, row in _rows():
        cases.append(Case(f"alone-{name}", row + b"\n", "reported"))
        cases.append(Case(f"beside-{name}", GOOD + row + b"\n" + b"1 0.3 0.3 0.1 0.1\n", "reported"))
    cases += [Case(f"whole-{name}", content, expected) for name, content, expected in _whole()]  # type: ignore[arg-type]
    return cases
