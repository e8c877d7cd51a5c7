"""Loading of the kernel plugin, a shared library with replacements for OneFlow's kernels and with our own ops.

Loading registers the kernels with OneFlow: ops of the same names then run through them, in eager mode and in graphs,
with no change to any Python code. Ops that have already run switch to the new kernels (`native/registry.cpp`); compiled
graphs keep theirs. New ops are called through `kernels.framework.dispatch`.
"""

import ctypes
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from kernels.build import cuda_build, nvrtc, plugin_build, self_check
from kernels.host.cuda_devices import MAX_CUDNN_8_CAPABILITY, compute_capabilities
from kernels.host.paths import error_text
from kernels.runtime import StderrFilter, Tensor, flow, newer_cudnn

PluginMode = Literal["auto", "off", "require", "emulated-cuda"]
"""Value of `--kernels`; "emulated-cuda" runs the CUDA kernels on the CPU, for tests."""
SWITCHED_OFF = "switched off"
"""`PluginStatus.reason` in the mode "off"."""
_log = logging.getLogger("graph_train.kernels")


@dataclass(frozen=True)
class PluginStatus:
    """The outcome of `load_plugin`.

    `reason` is the reason if nothing is loaded, else ""; `build_seconds` is 0 if the library was cached.
    """

    loaded: bool
    path: Path | None
    reason: str
    build_seconds: float


@dataclass
class _Process:
    """Plugin state of this process; a library with registered kernels cannot be unloaded."""

    status: PluginStatus | None = None
    failure: ValueError | OSError | None = None
    library: ctypes.CDLL | None = None
    emulates_cuda: bool = False
    prepared_gpus: set[int] = field(default_factory=set)


_process = _Process()


def load_plugin(mode: PluginMode, device: str = "cpu") -> PluginStatus:
    """Build (once, then cached) and load the plugin; later calls return the first result.

    CUDA kernels are prepared only for the requested GPU.

    Args:
        mode: "auto" falls back to OneFlow's kernels with a warning if the plugin is unavailable; "require" and
            "emulated-cuda" raise; "off" loads nothing. A failed load is not retried in this process.
        device: device to compute on, such as "cuda:0"; later calls may name further GPUs.

    Raises:
        ValueError: an unknown mode; "require" without success; "off" after the plugin has been loaded; a GPU for which
            the CUDA kernels cannot be compiled, in each mode but "off".
    """
    if mode not in get_args(PluginMode):
        raise ValueError(f"kernels mode {mode!r}: must be one of {', '.join(get_args(PluginMode))}")
    if mode == "off":
        if is_loaded():
            raise ValueError("kernels mode 'off': the plugin is loaded already; choose 'off' before anything loads it")
        _start_session()
        return PluginStatus(loaded=False, path=None, reason=SWITCHED_OFF, build_seconds=0.0)
    if _process.status is None and _process.failure is None:
        try:
            built = plugin_build.ensure_built(emulated_cuda=mode == "emulated-cuda")
            found = self_check.check(built.path)
            if found not in (self_check.GOOD, self_check.SHARES_NOTHING):
                raise plugin_build.PluginUnavailableError(f"{built.path}: does not work with this OneFlow: {found}")
            _process.library = _load(built.path)
        except (ValueError, OSError) as error:
            _process.failure = error
        else:
            _configure_graphs()
            _process.emulates_cuda = mode == "emulated-cuda"
            _process.status = PluginStatus(loaded=True, path=built.path, reason="", build_seconds=built.build_seconds)
    if _process.failure is not None and mode in ("require", "emulated-cuda"):
        raise ValueError(f"kernels mode '{mode}': {error_text(_process.failure)}") from _process.failure
    if _process.status is None:
        reason = error_text(_process.failure) if _process.failure is not None else ""
        _log.warning("running on OneFlow's own, slower CPU kernels: %s", reason)
        _start_session()
        _process.status = PluginStatus(loaded=False, path=None, reason=reason, build_seconds=0.0)
    if is_loaded() and device.startswith("cuda") and not _process.emulates_cuda:
        _prepare_gpu(int(device.partition(":")[2] or 0))
    return _process.status


def missing_for(mode: PluginMode) -> str:
    """Return why `load_plugin` would use OneFlow's kernels, without compiling; "" if nothing is known to be missing."""
    if is_loaded():
        return ""
    if mode == "off":
        return SWITCHED_OFF
    if _process.failure is not None:
        return error_text(_process.failure)
    try:
        if mode == "emulated-cuda" or plugin_build.packaged_library() is None:
            plugin_build.find_toolchain()
    except ValueError as error:
        return error_text(error)
    return ""


def is_loaded() -> bool:
    """Return whether the plugin's kernels are registered in this process."""
    return _process.library is not None


def plugin_library() -> ctypes.CDLL:
    """Return the loaded library, for its `extern "C"` functions; the caller sets `argtypes` and `restype`.

    Raises:
        ValueError: nothing is loaded.
    """
    if _process.library is None:
        raise ValueError("the kernel plugin is not loaded; call load_plugin('require') first")
    return _process.library


def multiplies_bfloat16_faster() -> bool:
    """Return whether this CPU multiplies bfloat16 faster than float32: with AMX, or on AMD with AVX512_BF16.

    Raises:
        ValueError: the plugin is not loaded.
    """
    return bool(plugin_library().graph_train_bfloat16_is_faster())


def emulates_cuda() -> bool:
    """Return whether CUDA kernels are emulated on the CPU in this process, for tests."""
    return _process.emulates_cuda


def runs_cuda_kernels(tensor: Tensor) -> bool:
    """Return whether our ops run their CUDA kernels on this tensor."""
    return bool(tensor.is_cuda) or _process.emulates_cuda


def _configure_graphs() -> None:
    """Execute the CPU ops of graphs sequentially on one thread, and skip what compiling for one rank does not need.

    OneFlow distributes them over one thread per core, which suits single-threaded kernels. Ours use all cores and would
    compete (docs/kernels.md has measurements). The number cannot be changed once a graph has been compiled.
    """
    if flow.nn.Graph._child_init_cnt:
        return
    session = _start_session()
    resource = session.resource
    # Keep OneFlow's thread pool at its default size, the number of cores.
    resource.compute_thread_pool_size = resource.compute_thread_pool_size or resource.cpu_device_num
    resource.cpu_device_num = 1
    one_rank = flow.env.get_world_size() == 1
    resource.disable_group_boxing_by_dst_parallel = one_rank
    session.update_resource_eagerly(resource)
    plugin_library().graph_train_skip_unread_shapes(1, int(one_rank))


def _start_session() -> Any:
    """Start the session that runs graphs, without the messages that the first graph would print, and return it."""
    session = flow.framework.session_context.GetDefaultSession()
    with StderrFilter():
        session.TryInit()
    return session


def _prepare_gpu(number: int) -> None:
    """Pass the compiled CUDA kernels of a GPU to the library, and a newer cuDNN if the GPU needs it, once."""
    if number in _process.prepared_gpus:
        return
    capabilities = compute_capabilities()
    if number >= len(capabilities):
        raise ValueError(f"cuda:{number}: NVIDIA's driver reports {len(capabilities)} GPUs; use --device cpu")
    major, minor = capabilities[number]
    if 10 * major + minor > MAX_CUDNN_8_CAPABILITY and (cudnn := newer_cudnn()):
        plugin_library().graph_train_cudnn_use(os.fsencode(cudnn))
    architecture = nvrtc.architecture_for(capabilities[number])
    try:
        images = cuda_build.ensure_compiled(architecture)
    except (ValueError, OSError) as error:
        remedy = (
            "--kernels off computes with OneFlow's own kernels (compute capability 6.0 to 8.9), --device cpu on the CPU"
        )
        raise ValueError(f"cuda:{number}: no CUDA kernels for {architecture}: {error_text(error)}; {remedy}") from error
    add_image = plugin_library().graph_train_cuda_add_image
    add_image.argtypes, add_image.restype = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int64], None
    for image in images:
        add_image(number, image, len(image))
    _process.prepared_gpus.add(number)


def _load(path: Path) -> ctypes.CDLL:
    flow._oneflow_internal.eager.Sync()  # no op may be selecting its kernel concurrently
    # The plugin finds this library by its soname.
    ctypes.CDLL(str(plugin_build.onednn_library()))
    try:
        flow.utils.load_library(str(path))
    except flow._oneflow_internal.exception.Exception as error:  # ctypes raises OSError, not RuntimeError
        reason = (str(error).split("Error is: ")[-1].splitlines() or ["no reason given"])[0]
        raise plugin_build.PluginUnavailableError(f"{path}: cannot be loaded: {reason}; remove the file") from error
    library = ctypes.CDLL(str(path))
    if not library.graph_train_order_job_queue():  # after `Sync`, no graph is running
        _log.warning("this build of OneFlow may crash if a small graph ends before its start is recorded")
    if not (library.graph_train_skip_unread_shapes(1, 0) and library.graph_train_map_large_blocks(1)):
        _log.warning("compiling a graph takes longer than necessary with this build of OneFlow")
    if not library.graph_train_share_graph_memory(1):
        _log.warning("%s", self_check.SHARES_NOTHING)
    return library
