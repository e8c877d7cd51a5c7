import io
import pickle
import types
from collections import OrderedDict
from typing import Any

import pytest

from models.pickle_reader import Global, Instance
from models.pickle_writer import Call, PersistentId, write_pickle


def reject(value: Any) -> Any:
    raise TypeError(type(value).__name__)


PLAIN = {
    "none": None,
    "truth": [True, False],
    "integers": [0, -1, 2**31 - 1, -(2**31), 2**31, -(2**63), 10**30],
    "numbers": (0.5, -1e300, float("inf")),
    "texts": ["", "naïve ✓", "a\nb"],
    "nested": {"empty": [(), [], {}, set()], 3: {1, 2}},
}


def test_plain_values_round_trip_through_pickle() -> None:
    assert pickle.loads(write_pickle(PLAIN, reject)) == PLAIN  # noqa: S301 - our own bytes


def test_ordered_mappings_keep_type_and_order() -> None:
    read = pickle.loads(write_pickle(OrderedDict(b=1, a=2), reject))  # noqa: S301 - our own bytes
    assert type(read) is OrderedDict
    assert list(read) == ["b", "a"]


def test_instances_calls_and_references_unpickle() -> None:
    value = {
        "instance": Instance(Global("types", "SimpleNamespace"), (), {"side": 3}),
        "call": Call(Global("builtins", "complex"), (1, 2)),
        "reference": PersistentId(("storage", 7)),
    }

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, reference: Any) -> Any:
            return ("found", reference)

    read = Unpickler(io.BytesIO(write_pickle(value, reject))).load()
    assert read["instance"] == types.SimpleNamespace(side=3)
    assert read["call"] == 1 + 2j
    assert read["reference"] == ("found", ("storage", 7))


def test_other_values_are_encoded_or_raise() -> None:
    assert pickle.loads(write_pickle([b"x"], lambda value: value.decode())) == ["x"]  # noqa: S301 - our own bytes
    with pytest.raises(TypeError, match="bytes"):
        write_pickle([b"x"], reject)
