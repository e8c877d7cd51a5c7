"""References to code in the documentation: `file.py:LINE Name`, where LINE is the definition of Name.

python -m tests.docs.references        # update all line numbers
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.docs.commands import DOCUMENTS, ROOT

_REFERENCE = re.compile(r"`(?P<file>[a-z_/]+\.py):(?P<line>\d+) (?P<name>[A-Za-z0-9_.]+)`")


@dataclass(frozen=True)
class Reference:
    """A reference to code; `defined` is the line of the definition, or None if it is missing."""

    document: Path
    file: str
    line: int
    name: str
    defined: int | None


@cache
def definitions(file: str) -> dict[str, int]:
    """Return the line of each function, class and method (`Class.method`) of a module."""
    found: dict[str, int] = {}
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node.lineno
        if isinstance(node, ast.ClassDef):
            methods = (item for item in node.body if isinstance(item, ast.FunctionDef))
            found.update({f"{node.name}.{method.name}": method.lineno for method in methods})
    return found


def references() -> Iterator[Reference]:
    """Yield all references, document by document."""
    for document in DOCUMENTS:
        for found in _REFERENCE.finditer(document.read_text()):
            file, name = found["file"], found["name"]
            yield Reference(document, file, int(found["line"]), name, definitions(file).get(name))


def _current(found: re.Match[str]) -> str:
    line = definitions(found["file"]).get(found["name"], int(found["line"]))
    return f"`{found['file']}:{line} {found['name']}`"


if __name__ == "__main__":
    for path in DOCUMENTS:
        path.write_text(_REFERENCE.sub(_current, path.read_text()))
