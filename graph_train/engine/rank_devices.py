"""Agreement of all ranks on device, kernels and activation type, which must be equal because they share a graph."""

import json
import logging
from collections.abc import Iterable

from graph_train.engine.precision import ComputeDevice
from graph_train.ranks.exchange import Exchange
from kernels.framework.activation_type import ActivationType

LOG = logging.getLogger("graph_train")


def common_type(kinds: Iterable[ActivationType]) -> ActivationType:
    """Return the type that all ranks support: float32 if one uses it, else float16 if one uses it."""
    found = set(kinds)
    order = (ActivationType.FLOAT32, ActivationType.FLOAT16, ActivationType.BFLOAT16)
    return next(kind for kind in order if kind in found)


def agree_on_type(machine: ComputeDevice, chosen: ActivationType, exchange: Exchange) -> ActivationType:
    """Return the activation type of all ranks, and log it if they have chosen different ones.

    Args:
        machine: this rank's device.
        chosen: the type that suits it.
        exchange: the collectives of this rank.
    Raises:
        ValueError: some ranks use a GPU and some the CPU, or only some have loaded the kernel plugin.
    """
    if exchange.single_rank:
        return chosen
    own = [machine.name, machine.capability is not None, machine.plugin, int(chosen)]
    ranks = [json.loads(text) for text in exchange.all_gather_texts(json.dumps(own))]
    names, on_gpu, plugin, kinds = zip(*ranks, strict=True)
    _require_same("some ranks use a GPU and others the CPU", names, on_gpu, "set --device on all hosts")
    remedy = "use --kernels require to see why it is not loaded, or --kernels off on all hosts"
    _require_same("the kernel plugin is loaded on some ranks only", names, plugin, remedy)
    common = common_type(map(ActivationType, kinds))
    if len(set(kinds)) > 1 and exchange.is_main:
        each = ", ".join(
            f"rank {rank} ({name}) {ActivationType(kind).name.lower()}"
            for rank, (name, kind) in enumerate(zip(names, kinds, strict=True))
        )
        LOG.info("Ranks would use different activation types: %s; using %s on all", each, common.name.lower())
    return common


def _require_same(problem: str, names: Iterable[str], values: Iterable[bool], remedy: str) -> None:
    """Require that a property is the same on all ranks.

    Raises:
        ValueError: it differs; the message has the first rank of either kind.
    """
    first: dict[bool, str] = {}
    for rank, (name, value) in enumerate(zip(names, values, strict=True)):
        first.setdefault(value, f"rank {rank} ({name})")
    if len(first) > 1:
        raise ValueError(f"{problem}: {first[True]}, but not {first[False]}; {remedy}")
