"""Reading of pickles without executing anything: no class is imported, no callable is called.

`pickle.loads` builds objects by calling whatever the file names, so a weight file can run code. Here the opcodes are
parsed by `pickletools` and interpreted by a small stack machine that supports plain containers only. Class instances
become inert `Instance`s; names outside the allow-list are rejected.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_OPCODES = 5_000_000
"""Limit on opcodes, so that a crafted file cannot take long; YOLOv5x6 has about 250,000."""
MAX_COPIED = 1_000_000
"""Limit on the total items of containers that calls copy; otherwise each opcode could copy the largest one again."""
MAX_KEY_LENGTH = 1000
"""Limit on the length of a key in characters or bits, because the time to hash it is proportional to its length."""


@dataclass(frozen=True)
class Global:
    """A class or function named in the file; never resolved."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Instance:
    """An object of a named class, with its constructor arguments and state."""

    kind: Global
    arguments: tuple[Any, ...]
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Allowed:
    """The names that a pickle may use.

    Attributes:
        is_allowed: returns whether a global is allowed.
        reducers: harmless replacements of functions, by name, called with the arguments. A call of any other allowed
            global becomes an `Instance`.
    """

    is_allowed: Callable[[Global], bool]
    reducers: Mapping[str, Callable[[tuple[Any, ...]], Any]]


class PickleError(ValueError):
    """The bytes are not a pickle, or not plain data."""


_MARK = object()
_SHOWN_CHARACTERS = 200


def escaped(text: object) -> str:
    """Escape and shorten text from a file for a one-line error message."""
    line = str(text).encode("unicode_escape").decode()
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"


def read_pickle(
    data: bytes, allowed: Allowed, resolve_persistent: Callable[[Any], Any] = lambda _: _no_persistent()
) -> Any:
    """Return the value of a pickle: None, numbers, text, bytes, tuples, lists, dicts, sets and `Instance`s.

    Args:
        data: the pickle; protocols 2 to 4 as PyTorch and OneFlow write them.
        allowed: see `Allowed`.
        resolve_persistent: turns a persistent id (PyTorch: a reference to a tensor storage) into a value.

    Raises:
        ValueError: not a pickle, damaged, or with a name that is not allowed.
    """
    machine = _Machine(allowed, resolve_persistent)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_OPCODES:
                raise PickleError("has too many opcodes for a weight file")
            if opcode.name == "STOP":
                return machine.result()
            machine.execute(opcode.name, argument)
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, UnicodeError) as error:
        raise PickleError(f"is damaged: {type(error).__name__}: {escaped(error)}") from None
    raise PickleError("is damaged: unexpected end")


def _no_persistent() -> Any:
    raise PickleError("refers to external data")


def checked_key(value: Any) -> Any:
    """Return the value if it is a valid dictionary key or set member.

    Raises:
        PickleError: not text or a number, or far longer than any name.
    """
    # Only flat keys: hashing a tuple that contains itself many times would never end.
    if not isinstance(value, (str, int, float, bytes, bool, type(None))):
        raise PickleError(f"has a key of type {type(value).__name__}; expected text or a number")
    length = value.bit_length() if isinstance(value, int) else len(value) if isinstance(value, (str, bytes)) else 0
    if length > MAX_KEY_LENGTH:
        raise PickleError(f"has a key of type {type(value).__name__} that is too long")
    return value


class _Machine:
    """A stack machine with a memo and a method for each type of opcode."""

    def __init__(self, allowed: Allowed, resolve_persistent: Callable[[Any], Any]) -> None:
        self._allowed = allowed
        self._resolve_persistent = resolve_persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def result(self) -> Any:
        return self._stack[-1]

    def execute(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _IGNORED:
            raise PickleError(f"uses the opcode {name}, which is not allowed in weight files")

    # --- memo and marks ---

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def drop(self, _: Any) -> None:
        self._stack.pop()

    def mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _since_mark(self) -> list[Any]:
        for depth in range(len(self._stack) - 1, -1, -1):
            if self._stack[depth] is _MARK:
                found = self._stack[depth + 1 :]
                del self._stack[depth:]
                return found
        raise PickleError("is damaged: a mark is missing")

    # --- containers ---

    def tuple_of(self, count: int) -> None:
        found = tuple(self._stack[len(self._stack) - count :])
        if len(found) != count:
            raise PickleError("is damaged: the stack is empty")
        del self._stack[len(self._stack) - count :]
        self._stack.append(found)

    def tuple_since_mark(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def append(self, _: Any) -> None:
        value = self._stack.pop()
        self._target(list).append(value)

    def appends(self, _: Any) -> None:
        values = self._since_mark()
        self._target(list).extend(values)

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._items()[checked_key(key)] = value

    def set_items(self, _: Any) -> None:
        values = self._since_mark()
        target = self._items()
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[checked_key(key)] = value

    def add_items(self, _: Any) -> None:
        values = [checked_key(value) for value in self._since_mark()]
        self._target(set).update(values)

    def set_since_mark(self, _: Any) -> None:
        self._stack.append({checked_key(value) for value in self._since_mark()})

    def _target(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise PickleError(f"is damaged: expected a {kind.__name__}")
        return self._stack[-1]

    def _items(self) -> dict[Any, Any]:
        target = self._stack[-1]
        return target.items if isinstance(target, Instance) else self._target(dict)

    # --- classes and functions ---

    def global_by_line(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self._push_global(module, name)

    def global_by_stack(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push_global(module, name)

    def _push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("is damaged: expected a name")
        found = Global(module, name)
        if not self._allowed.is_allowed(found):
            raise PickleError(f"refers to {escaped(found)}, which is not allowed in weight files; nothing was executed")
        self._stack.append(found)

    def call(self, _: Any) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if not isinstance(kind, Global) or not isinstance(arguments, tuple):
            raise PickleError("is damaged: it calls something that is not a function")
        reducer = self._allowed.reducers.get(str(kind))
        if reducer is None:
            self._stack.append(Instance(kind, arguments))
            return
        self._copied += sum(len(given) for given in arguments if isinstance(given, (list, tuple, dict, set)))
        if self._copied > MAX_COPIED:
            raise PickleError("copies too many items for a weight file")
        self._stack.append(reducer(arguments))

    def call_with_keywords(self, _: Any) -> None:
        self._stack.pop()
        self.call(None)

    def build(self, _: Any) -> None:
        state = self._stack.pop()
        # Extra attributes of containers (`_metadata` of an OrderedDict) are not needed.
        if isinstance(self._stack[-1], Instance):
            self._stack[-1].state = state

    def persistent(self, _: Any) -> None:
        self._stack.append(self._resolve_persistent(self._stack.pop()))


_VALUES = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)
_IGNORED = frozenset({"PROTO", "FRAME"})
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "DUP": _Machine.duplicate,
    "POP": _Machine.drop,
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_since_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.set_since_mark,
    "GLOBAL": _Machine.global_by_line,
    "STACK_GLOBAL": _Machine.global_by_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_keywords,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
