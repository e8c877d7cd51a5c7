"""Loads the kernel plugin: a shared library with CPU kernels that replace OneFlow's own, and with ops of ours.

Loading registers the kernels with OneFlow: ops of the same names then run through them, in eager mode and in graphs,
with no change to any Python code. Ops that have run before choose anew (`csrc/registry.cpp`); a graph that is compiled
keeps the kernels it has. New ops are reached through `flow.stateful_op(name)` and one of OneFlow's generic dispatchers,
e.g.

    op = flow.stateful_op("graph_train_double").Input("in").Output("out").Build()
    doubled = flow._C.dispatch_ofrecord_bytes_decoder(op, tensor, name="")
"""

import ctypes
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kernels import plugin_build, self_check
from kernels.runtime import flow, known_notes_hidden

PluginMode = Literal["auto", "off", "require"]
_log = logging.getLogger("graph_train.kernels")


@dataclass(frozen=True)
class PluginStatus:
    """What `load_plugin` did.

    `reason` says why nothing is loaded ("" when it is); `build_seconds` is 0 when the library came from the cache.
    """

    loaded: bool
    path: Path | None
    reason: str
    build_seconds: float


@dataclass
class _Process:
    """State of this process; a library that registered kernels cannot be unloaded."""

    status: PluginStatus | None = None
    failure: ValueError | OSError | None = None
    library: ctypes.CDLL | None = None
    bf16: bool = False


_process = _Process()


def load_plugin(mode: PluginMode) -> PluginStatus:
    """Builds (once, then cached) and loads the plugin; a second call returns the first one's result.

    Args:
        mode: "auto" goes on with OneFlow's own kernels, after one warning, where the plugin cannot be had;
            "require" makes that an error; "off" loads nothing. What failed once is not tried again in this process.

    Raises:
        ValueError: an unknown mode; "require" without success; "off" after the plugin has been loaded.
    """
    if mode not in get_args(PluginMode):
        raise ValueError(f"kernels mode {mode!r}: must be one of {', '.join(get_args(PluginMode))}")
    if mode == "off":
        if is_loaded():
            raise ValueError("kernels mode 'off': the plugin is loaded already; choose 'off' before anything loads it")
        _start_session()
        return PluginStatus(loaded=False, path=None, reason="switched off", build_seconds=0.0)
    if _process.status is None and _process.failure is None:
        try:
            built = plugin_build.ensure_built()
            found = self_check.finding(built.path)
            if found not in (self_check.GOOD, self_check.SHARES_NOTHING):
                raise plugin_build.PluginUnavailableError(f"{built.path}: does not work with this OneFlow: {found}")
            _process.library = _load(built.path)
        except (ValueError, OSError) as error:
            _process.failure = error
        else:
            _run_graphs_on_one_thread()
            _process.status = PluginStatus(loaded=True, path=built.path, reason="", build_seconds=built.build_seconds)
    if _process.failure is not None and mode == "require":
        raise ValueError(f"kernels mode 'require': {_process.failure}") from _process.failure
    if _process.status is None:
        _log.warning("running on OneFlow's own, slower CPU kernels: %s", _process.failure)
        _start_session()
        _process.status = PluginStatus(loaded=False, path=None, reason=str(_process.failure), build_seconds=0.0)
    return _process.status


def is_loaded() -> bool:
    """True when the plugin's kernels are registered in this process."""
    return _process.library is not None


def plugin_library() -> ctypes.CDLL:
    """The loaded library, for its `extern "C"` functions; the caller sets `argtypes` and `restype`.

    Raises:
        ValueError: nothing is loaded.
    """
    if _process.library is None:
        raise ValueError("the kernel plugin is not loaded; call load_plugin('require') first")
    return _process.library


def set_cpu_bf16(*, enabled: bool, where_slower_too: bool = False) -> bool:
    """Whether networks on the CPU may compute in bfloat16 (sums stay float32), for the whole process.

    Channels-last activations are then bfloat16 (`models.layout`); convolutions of float32 activations round their
    factors. Kernels read the switch at every call, a compiled graph keeps its activations: change it between runs only.

    Args:
        enabled: False goes back to float32 throughout.
        where_slower_too: also on CPUs that multiply bfloat16 no faster than float32, which is all but those with AMX
            tiles and AMD's with AVX512_BF16; for tests.
    Returns:
        Whether bfloat16 is used from now on: False with `enabled` means that float32 is at least as fast here.

    Raises:
        ValueError: the plugin is not loaded.
    """
    switch = plugin_library().graph_train_set_bf16
    switch.argtypes, switch.restype = [ctypes.c_int], ctypes.c_int
    mode = 0 if not enabled else 2 if where_slower_too else 1
    _process.bf16 = bool(switch(mode))
    return _process.bf16


def cpu_bf16() -> bool:
    """What the last call of `set_cpu_bf16` gave."""
    return _process.bf16


def _run_graphs_on_one_thread() -> None:
    """Lets one thread execute the CPU ops of a graph, one after another.

    OneFlow deals them out to as many threads as there are cores, which suits kernels that use one core each. Ours use
    all cores, and two of them at a time only get in each other's way (docs/kernels.md says what is known of the gain).
    The number cannot change any more once a graph has been compiled, so it is left alone then.
    """
    if flow.nn.Graph._child_init_cnt:
        return
    session = _start_session()
    resource = session.resource
    # OneFlow's pool for its own kernels takes its size from the number of cores unless it is given one.
    resource.compute_thread_pool_size = resource.compute_thread_pool_size or resource.cpu_device_num
    resource.cpu_device_num = 1
    session.update_resource_eagerly(resource)


def _start_session() -> Any:
    """The session that runs graphs; it would start by itself with the first graph, but print its notes in between."""
    session = flow.framework.session_context.GetDefaultSession()
    with known_notes_hidden():
        session.TryInit()
    return session


def _load(path: Path) -> ctypes.CDLL:
    flow._oneflow_internal.eager.Sync()  # no op may be choosing its kernel meanwhile
    # By its soname the plugin finds this very library, wherever the wheel lies.
    ctypes.CDLL(str(plugin_build.onednn_library()))
    try:
        flow.utils.load_library(str(path))
    except flow._oneflow_internal.exception.Exception as error:  # no RuntimeError
        reason = (str(error).split("Error is: ")[-1].splitlines() or ["no reason given"])[0]
        raise plugin_build.PluginUnavailableError(f"{path}: cannot be loaded: {reason}; remove the file") from error
    library = ctypes.CDLL(str(path))
    if not library.graph_train_share_graph_memory(1):
        _log.warning("%s", self_check.SHARES_NOTHING)
    return library
