"""Messages for the terminal, as one line whatever a library or a file has put into them."""

import re

from kernels.host.paths import printable

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST_WORD = 400
_LONG_WORD = re.compile(rf"(\S{{{_LONGEST_WORD // 2}}})\S{{{_LONGEST_WORD // 2},}}(\S{{{_LONGEST_WORD // 4}}})")


def as_line(text: str) -> str:
    """Return the text as one line without colours; control characters are escaped, very long words shortened."""
    return _LONG_WORD.sub(r"\1…\2", printable(" ".join(_COLOURS.sub("", text).split())))
