"""Numbers with their nouns in messages."""

_ES_ENDINGS = ("s", "x", "tch")
"""Endings of nouns whose plural ends in "es", such as "class" and "batch"."""


def quantity(number: int, noun: str) -> str:
    """Return for instance "1 column", "3 columns" or "0 classes"."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith(_ES_ENDINGS) else 's'}"
