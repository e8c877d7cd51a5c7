import pytest

from kernels.host.quantity import quantity


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "byte", "1 byte"),
        (0, "class", "0 classes"),
        (2, "box", "2 boxes"),
        (3, "batch", "3 batches"),
        (4, "epoch", "4 epochs"),
    ],
)
def test_plural_follows_number(number: int, noun: str, text: str) -> None:
    assert quantity(number, noun) == text
