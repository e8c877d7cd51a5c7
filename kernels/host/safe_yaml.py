"""Loading of untrusted YAML: plain data only, limited size, depth and alias expansion; errors have line and column."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kernels.host.paths import printable

MAX_FILE_BYTES = 1 << 18
MAX_DEPTH = 40
MAX_EXPANDED_NODES = 100_000
"""Number of nodes after expanding all aliases, which rejects alias bombs before they are expanded in memory."""
MAX_NUMBER_LENGTH = 100

_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map"))
_FLOAT = "tag:yaml.org,2002:float"
_NUMBER_TAGS = frozenset(("tag:yaml.org,2002:int", _FLOAT))
_TIMESTAMP = "tag:yaml.org,2002:timestamp"

Key = tuple[Any, ...]


@dataclass(frozen=True)
class YamlFile:
    """A yaml file whose top level is a mapping.

    Attributes:
        path: the file.
        data: plain Python data: dict, list, str, int, float, bool, None.
    """

    path: Path
    data: dict[Any, Any]
    _nodes: dict[Key, yaml.Node]

    def where(self, *key: Any) -> str:
        """Return "file:line:column" of the value at a key (indices for lists), or the file if it does not exist."""
        node = self._nodes.get(key)
        return printable(self.path) if node is None else _where(self.path, node.start_mark)

    def line(self, *key: Any) -> str:
        """Return "file:line" of the value at a key, or the file if it does not exist."""
        node = self._nodes.get(key)
        return printable(self.path) if node is None else f"{printable(self.path)}:{node.start_mark.line + 1}"

    def scalar_text(self, *key: Any) -> str | None:
        """Return a scalar as written in the file (`no`, `007`); None if it is not a scalar."""
        node = self._nodes.get(key)
        return node.value if isinstance(node, yaml.ScalarNode) else None


class _NotPlainError(Exception):
    """The YAML is not plain data; the text is the complete message."""


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that limits nesting and reads dates, times (1:30) and numbers with leading zeros (010) as text.

    YAML 1.1 reads the latter two as numbers to base 60 and 8, which is hardly ever intended.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _decimal(tag: str, pattern: re.Pattern[str]) -> re.Pattern[str]:
    """Return a number's pattern without its alternatives for base 60 and base 8; other patterns unchanged."""
    if tag not in _NUMBER_TAGS:
        return pattern
    excluded = "(?!.*:)" if tag == _FLOAT else "(?!.*:|[-+]?0[0-7_])"
    return re.compile(excluded + pattern.pattern, pattern.flags)


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, _decimal(tag, pattern)) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(path: Path | str) -> YamlFile:
    """Read a yaml mapping.

    Raises:
        ValueError: invalid or unsafe yaml; one line with file, line and column.
        OSError: the file cannot be read.
    """
    path = Path(path)
    text = _read_text(path)
    loader = None
    try:
        loader = _PlainLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            found = "nothing" if root is None else f"a {_kind(root)}"
            raise _NotPlainError(f"{printable(path)}: found {found} at the top level; write `key: value` lines")
        _check_nodes(root, path)
        data = loader.construct_document(root)
        return YamlFile(path=path, data=data, _nodes=dict(_walk(root, (), path)))
    except yaml.MarkedYAMLError as error:
        raise ValueError(_describe(path, error)) from None
    except _NotPlainError as error:
        raise ValueError(str(error)) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the scanner passes chr()'s errors on
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "")
        raise ValueError(f"{printable(path)}: invalid yaml: {reason}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _read_text(path: Path) -> str:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{printable(path)}: not a regular file; give the path of a yaml file")
    if status.st_size > MAX_FILE_BYTES:
        raise ValueError(f"{printable(path)}: {status.st_size} bytes; at most {MAX_FILE_BYTES} are supported")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{printable(path)}:{line}: not valid UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from None


def _where(path: Path, mark: Any) -> str:
    return f"{printable(path)}:{mark.line + 1}:{mark.column + 1}"


def _describe(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    parts = [" ".join(part.split()) for part in (error.context, error.problem) if part]
    place = printable(path) if mark is None else _where(path, mark)
    return f"{place}: invalid yaml: {', '.join(parts)}"


def _kind(node: yaml.Node) -> str:
    return {yaml.ScalarNode: "single value", yaml.SequenceNode: "list", yaml.MappingNode: "mapping"}[type(node)]


def _check_nodes(root: yaml.Node, path: Path) -> None:
    """Reject tags, duplicate keys, very long numbers, cycles and alias bombs before constructing objects."""
    expanded: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def visit(node: yaml.Node) -> tuple[int, int]:
        """Return the number of nodes and levels of the expanded node."""
        if id(node) in open_nodes:
            raise _NotPlainError(f"{_where(path, node.start_mark)}: the value contains itself through an alias")
        if id(node) not in expanded:
            open_nodes.add(id(node))
            _check_node(node, path)
            below = [visit(child) for child in _children(node)]
            nodes, levels = 1 + sum(n for n, _ in below), 1 + max((n for _, n in below), default=0)
            open_nodes.remove(id(node))
            place = _where(path, node.start_mark)
            if nodes > MAX_EXPANDED_NODES:
                raise _NotPlainError(f"{place}: more than {MAX_EXPANDED_NODES} values after expanding aliases")
            if levels > MAX_DEPTH:
                raise _NotPlainError(f"{place}: nested deeper than {MAX_DEPTH} levels after expanding aliases")
            expanded[id(node)] = nodes, levels
        return expanded[id(node)]

    visit(root)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _can_name_a_file(text: str) -> bool:
    """Return whether text is valid in a path: no lone surrogates except those for undecodable bytes."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _check_node(node: yaml.Node, path: Path) -> None:
    place = _where(path, node.start_mark)
    if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBER_TAGS and len(node.value) > MAX_NUMBER_LENGTH:
        raise _NotPlainError(f"{place}: number of {len(node.value)} characters; quote it if it is text")
    if isinstance(node, yaml.ScalarNode) and not _can_name_a_file(node.value):
        raise _NotPlainError(f"{place}: {ascii(node.value)[:60]} has invalid escapes")
    if node.tag not in _PLAIN_TAGS:
        raise _NotPlainError(f"{place}: tag {node.tag!r} is not allowed; use only text, numbers, lists and mappings")
    expected = {yaml.ScalarNode: None, yaml.SequenceNode: "seq", yaml.MappingNode: "map"}[type(node)]
    kind = node.tag.rpartition(":")[2]
    if (kind if kind in ("seq", "map") else None) != expected:
        raise _NotPlainError(f"{place}: tag {node.tag!r} does not fit a {_kind(node)}")
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, path)
    elif isinstance(node, yaml.ScalarNode):
        _scalar(node, path)


def _scalar(node: yaml.ScalarNode, path: Path) -> Any:
    """Return the value of a scalar; raise _NotPlainError if it does not match an explicit tag (`!!int abc`)."""
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, KeyError, IndexError, OverflowError, yaml.YAMLError):
        place = _where(path, node.start_mark)
        raise _NotPlainError(f"{place}: {node.value[:40]!r} does not fit its tag {node.tag!r}") from None


def _check_keys(node: yaml.MappingNode, path: Path) -> None:
    """Reject keys with equal values, such as 1, 01 and true, which would overwrite each other."""
    seen: dict[Any, yaml.Node] = {}
    for key, _ in node.value:
        place = _where(path, key.start_mark)
        if not isinstance(key, yaml.ScalarNode) or key.tag not in _PLAIN_TAGS:
            raise _NotPlainError(f"{place}: a key must be text or a number (merge keys << are not supported)")
        _check_node(key, path)
        first = seen.setdefault(_scalar(key, path), key)
        if first is not key:
            line = first.start_mark.line + 1
            raise _NotPlainError(f"{place}: key {key.value!r} is already defined in line {line}; keep one")


def _walk(node: yaml.Node, key: Key, path: Path) -> Iterator[tuple[Key, yaml.Node]]:
    yield key, node
    if isinstance(node, yaml.SequenceNode):
        for position, child in enumerate(node.value):
            yield from _walk(child, (*key, position), path)
    elif isinstance(node, yaml.MappingNode):
        for name, child in node.value:
            yield from _walk(child, (*key, _scalar(name, path)), path)
