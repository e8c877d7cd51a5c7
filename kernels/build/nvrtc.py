"""Compilation of the CUDA kernels with NVRTC, without nvcc or a GPU."""

import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from kernels.build.cache import PluginUnavailableError
from kernels.build.plugin_build import SOURCE_FOLDER, included_files, source_files

ARCHITECTURES = ("sm_60", "sm_61", "sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90")
"""Architectures with machine code in wheels; code for sm_80 also runs on 8.7, and so on."""
PORTABLE = "compute_90"
"""PTX, which the driver compiles for GPUs newer than NVRTC 11.8."""
OLDEST = (6, 0)
_LIBRARY = "libnvrtc.so.11.2"
_PACKAGE = "nvidia.cuda_nvrtc"
_FLAGS = ("-std=c++17", f"-I{SOURCE_FOLDER}")
_EXACT_ROUNDING = SOURCE_FOLDER / "native" / "exact_rounding.h"


def architecture_for(capability: tuple[int, int]) -> str:
    """Return the architecture for a compute capability: the newest machine code that it runs, or PTX.

    Raises:
        PluginUnavailableError: the GPU is too old.
    """
    major, minor = capability
    if capability < OLDEST:
        raise PluginUnavailableError(
            f"the GPU has compute capability {major}.{minor}; the CUDA kernels need 6.0 or newer; use --device cpu"
        )
    fitting = [name for name in ARCHITECTURES if name[3] == str(major) and int(name[4]) <= minor]
    return fitting[-1] if major < 10 and fitting else PORTABLE


def cuda_sources() -> list[Path]:
    """Return every file with CUDA kernels."""
    return [path for path in source_files() if path.suffix == ".cu"]


def flags_of(source: Path, architecture: str) -> list[str]:
    """Return NVRTC's options for a source.

    Files that include `native/exact_rounding.h` are compiled without fused multiply-add.
    """
    exact = ["--fmad=false"] if _EXACT_ROUNDING in included_files(source) else []
    return [f"--gpu-architecture={architecture}", *_FLAGS, *exact]


def version() -> str:
    """Return NVRTC's version, which is part of the cache key."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return f"{major.value}.{minor.value} {_library_path().resolve().stat().st_size}"


def compile_source(source: Path, architecture: str) -> bytes:
    """Compile a source to machine code for "sm_XX", or to null-terminated PTX for "compute_XX".

    Raises:
        PluginUnavailableError: errors or warnings, with the compiler's output.
    """
    library = _library()
    program = ctypes.c_void_p()
    result = library.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), str(source).encode(), 0, None, None)
    _check(result, "nvrtcCreateProgram")
    try:
        options = [flag.encode() for flag in flags_of(source, architecture)]
        with _locale_of_thread():
            result = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        output = _text(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
        if result != 0 or output:
            raise PluginUnavailableError(f"{source}: NVRTC cannot compile it for {architecture}:\n{output}")
        return _text(program, "CUBIN" if architecture.startswith("sm_") else "PTX")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


@contextmanager
def _locale_of_thread() -> Iterator[None]:
    """Restore the locale of this thread: NVRTC leaves it at "C", and Python then opens text files as ASCII."""
    use = ctypes.CDLL(None).uselocale
    use.argtypes, use.restype = [ctypes.c_void_p], ctypes.c_void_p
    before = use(None)
    try:
        yield
    finally:
        use(before)


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(_library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(_library(), f"nvrtcGet{what}")(program, buffer), what)
    return buffer.raw


def _check(result: int, call: str) -> None:
    if result != 0:
        raise PluginUnavailableError(f"NVRTC: {call} failed with error {result}")


def _library_path() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in folders:
        path = Path(folder) / "lib" / _LIBRARY
        if path.exists():
            return path
    raise PluginUnavailableError("NVRTC is not installed; install it: pip install nvidia-cuda-nvrtc-cu11==11.8.89")


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_library_path()))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    library.nvrtcCreateProgram.argtypes = [ctypes.POINTER(pointer), text, text, number, pointer, pointer]
    library.nvrtcCompileProgram.argtypes = [pointer, number, ctypes.POINTER(text)]
    return library
