"""Messages for the terminal, as one line regardless of what a library or file has put into them."""

import re

from kernels.host.paths import printable

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_MAX_WORD = 400
_LONG_WORD = re.compile(rf"(\S{{{_MAX_WORD // 2}}})\S{{{_MAX_WORD // 2},}}(\S{{{_MAX_WORD // 4}}})")


def as_line(text: str) -> str:
    """Return the text as one line without colours; control characters are escaped, very long words shortened."""
    return _LONG_WORD.sub(r"\1…\2", printable(" ".join(_COLOURS.sub("", text).split())))
