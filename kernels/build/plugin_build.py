"""Compilation of the kernel plugin: compiler, headers, flags and cache folder."""

import errno
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kernels.build.cache import (
    PluginUnavailableError,
    in_read_only_cache,
    is_intact,
    locked,
    private_cache_folder,
    store_in_cache,
)

SOURCE_FOLDER = Path(__file__).resolve().parents[1]
"""The package `kernels`: C++ and CUDA sources are in `native/` and next to the Python functions of their ops."""
LIBRARY_NAME = "libgraph_train_kernels.so"
PACKAGED_FOLDER = SOURCE_FOLDER / "prebuilt"
"""Folder of the compiled kernels in a wheel (`kernels/build/wheel_hook.py`)."""
KEY_NAME = "key"
_ONEFLOW = ("oneflow", "oneflow/__init__.py")
_ONEDNN = ("onednn-cpu-gomp", "libdnnl.so.3")
_ONEDNN_HEADERS = ("onednn-devel-cpu-gomp", "include/dnnl.hpp")

# OneFlow's wheel was built with the old string ABI and its own settings of the `half` library. Contraction and the
# absence of errno/trap side effects let loops be vectorised; nothing here reorders floating-point sums.
_COMPILE_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wall",
    "-D_GLIBCXX_USE_CXX11_ABI=0",
    "-DHALF_ENABLE_CPP11_USER_LITERALS=0",
    "-DHALF_ENABLE_F16C_INTRINSICS=0",
)
# GCC warns about its own AVX-512 header and about vector arguments of always-inlined functions.
_VECTOR_FLAGS = ("-Wno-psabi", "-Wno-maybe-uninitialized")
_VECTOR_SUFFIX = ".vec.cpp"
_INSTRUCTION_SETS = {
    "avx512": ("-march=x86-64-v4", "-mprefer-vector-width=512", "-DGT_ISA=avx512", *_VECTOR_FLAGS),
    "avx2": ("-march=x86-64-v3", "-DGT_ISA=avx2", *_VECTOR_FLAGS),
    "base": ("-DGT_ISA=base", *_VECTOR_FLAGS),
}
_LINK_FLAGS = ("-shared", "-fopenmp", "-Wl,--allow-shlib-undefined")
_EMULATION_MACRO = "GT_EMULATED_CUDA"
_EMULATION_FLAGS = (f"-D{_EMULATION_MACRO}", "-Wno-unknown-pragmas")
"""Flags of the test build, in which CUDA kernels run on the CPU; see `native/cuda/emulation.h`."""
_COMMON_HEADER = "native/common.h"
_MIN_GCC_RELEASE = 12
"""The first version that supports `target_clones` for x86-64-v4 and x86-64-v3."""
_BUILD_GB = 1
_COMPILERS = ("g++", "c++", "g++-14", "g++-13", "g++-12")


@dataclass(frozen=True)
class Toolchain:
    """Compiler, libraries and headers of a build; `compiler_version` is the first line of `--version`."""

    compiler: Path
    compiler_version: str
    oneflow_folder: Path
    oneflow_version: str
    onednn_library: Path
    onednn_include: Path
    onednn_version: str

    def link_names(self) -> list[str]:
        """Return linker arguments for OneFlow's and oneDNN's libraries; wheels have hashes in their file names."""
        libs = self.oneflow_folder.parent / "oneflow.libs"
        names = [
            _find_library(libs, pattern) for pattern in ("liboneflow-*.so", "libof_protoobj-*.so", "libprotobuf-*.so*")
        ]
        folders = (libs, self.onednn_library.parent)
        return [f"-L{folder}" for folder in folders] + [f"-l:{name}" for name in (*names, self.onednn_library.name)]

    def include_flags(self) -> list[str]:
        """Return the include flags.

        OneFlow's folder comes last, since it also contains old glibc and oneDNN headers.
        """
        own = [f"-I{SOURCE_FOLDER}", f"-I{SOURCE_FOLDER / 'native' / 'shim'}", f"-I{self.onednn_include}"]
        return [*own, "-idirafter", str(self.oneflow_folder / "include")]


@dataclass(frozen=True)
class BuiltPlugin:
    """A library that is ready to load; `build_seconds` is 0 if it was cached."""

    path: Path
    build_seconds: float


def _find_library(folder: Path, pattern: str) -> str:
    matches = sorted(folder.glob(pattern))
    if not matches:
        raise PluginUnavailableError(f"{folder}: no {pattern}; reinstall oneflow==0.9.0 from PyPI")
    return matches[0].name


def _distribution_file(name: str, ending: str) -> tuple[Path, str]:
    """Return the path of a distribution's file with this ending, and the distribution's version."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise PluginUnavailableError(
            f"the package {name} is not installed; install it: pip install {name}==2023.2.0"
        ) from None
    for file in _candidate_files(distribution, ending):
        path = Path(str(distribution.locate_file(file))).resolve()
        if path.exists():
            return path, distribution.version
    raise PluginUnavailableError(
        f"the package {name} has no {ending} on disk; reinstall it: pip install --force-reinstall {name}==2023.2.0"
    )


def _candidate_files(distribution: importlib.metadata.Distribution, ending: str) -> Iterator[str]:
    """Yield `ending` itself, then the listed files with this ending: reading OneFlow's list takes 0.1 s."""
    yield ending
    yield from (str(file) for file in distribution.files or () if str(file).endswith(ending))


def onednn_library() -> Path:
    """Return the shared object of the oneDNN wheel, which must be loaded before the plugin."""
    return _distribution_file(*_ONEDNN)[0]


def find_compiler() -> Path:
    """Return the C++ compiler: $CXX, else the first recent g++ on the path."""
    wanted = os.environ.get("CXX")
    names = (wanted,) if wanted else _COMPILERS
    unfit = []
    for name in names:
        found = shutil.which(name)
        if found is None:
            continue
        version = _version_line(Path(found))
        if (_gcc_release(version) or 0) >= _MIN_GCC_RELEASE:
            return Path(found)
        unfit.append(f"{found} is {version!r}")
    release = _MIN_GCC_RELEASE
    remedy = f"install g++ {release} or newer (Debian/Ubuntu: apt-get install g++-{release}) or set CXX to it"
    if unfit:
        raise PluginUnavailableError(f"no C++ compiler that compiles the kernels ({'; '.join(unfit)}); {remedy}")
    raise PluginUnavailableError(f"no C++ compiler (looked for {', '.join(names)}); {remedy}")


def _version_line(compiler: Path) -> str:
    output = subprocess.run([str(compiler), "--version"], capture_output=True, text=True, check=False).stdout
    return (output.splitlines() or ["unknown"])[0]


def _gcc_release(version: str) -> int | None:
    """Return the major version from GCC's line "name (package) 12.2.0 ..."; None for other compilers.

    Clang has its own OpenMP library, which was never tested together with GCC's, used by oneDNN.
    """
    found = re.match(r"[^()]*\(.*?\) (\d+)\.", version)
    return int(found[1]) if found and "clang" not in version else None


def find_toolchain() -> Toolchain:
    """Find compiler and libraries; raise PluginUnavailableError if any is missing."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise PluginUnavailableError(
            f"the plugin is for Linux on x86-64, this is {platform.system()} on {platform.machine()}; use --kernels off"
        )
    compiler = find_compiler()
    oneflow_init, oneflow_version = _distribution_file(*_ONEFLOW)
    library, onednn_version = _distribution_file(*_ONEDNN)
    header, _ = _distribution_file(*_ONEDNN_HEADERS)
    return Toolchain(
        compiler=compiler,
        compiler_version=_version_line(compiler),
        oneflow_folder=oneflow_init.parent,
        oneflow_version=oneflow_version,
        onednn_library=library,
        onednn_include=header.parent,
        onednn_version=onednn_version,
    )


def source_files() -> list[Path]:
    """Return every C++ and CUDA file of the package, in a fixed order."""
    return sorted(path for path in SOURCE_FOLDER.rglob("*") if path.is_file() and path.suffix in (".cpp", ".h", ".cu"))


def plugin_key(toolchain: Toolchain, *, emulated_cuda: bool = False) -> str:
    """Return the cache key of the library: a hash of sources, flags and versions."""
    return _hash_with_sources(*plugin_key_parts(toolchain), *(_EMULATION_FLAGS if emulated_cuda else ()))


def plugin_key_parts(toolchain: Toolchain) -> tuple[str, ...]:
    """Return the versions that compiled code depends on."""
    return toolchain.compiler_version, toolchain.oneflow_version, toolchain.onednn_version


def packaged_key() -> str:
    """Return the key of a wheel's library: as `plugin_key`, but for any compiler."""
    return _hash_with_sources(_distribution_file(*_ONEFLOW)[1], _distribution_file(*_ONEDNN)[1])


def _hash_with_sources(*versions: str) -> str:
    digest = hashlib.sha256()
    for path in source_files():
        digest.update(f"{path.relative_to(SOURCE_FOLDER)}\0".encode() + path.read_bytes() + b"\0")
    flags = (*_COMPILE_FLAGS, *_LINK_FLAGS, repr(_INSTRUCTION_SETS))
    digest.update("\0".join((*flags, *versions)).encode())
    return digest.hexdigest()[:24]


def ensure_built(*, emulated_cuda: bool = False) -> BuiltPlugin:
    """Return the library for these sources: from the wheel, from the cache, or compiled now.

    Safe for concurrent processes: one compiles, the others wait.

    Args:
        emulated_cuda: the test build, in which CUDA kernels run on the CPU; never from the wheel.

    Raises:
        PluginUnavailableError: no compiler, missing packages, an unsafe cache folder, or errors in the compilation.
        OSError: the cache folder cannot be written.
    """
    packaged = None if emulated_cuda else packaged_library()
    if packaged is not None:
        return BuiltPlugin(packaged, 0.0)
    toolchain = find_toolchain()
    key = plugin_key(toolchain, emulated_cuda=emulated_cuda)
    ready = in_read_only_cache(key, LIBRARY_NAME)
    if ready is not None:
        return BuiltPlugin(ready, 0.0)
    folder = private_cache_folder(key)
    library = folder / LIBRARY_NAME
    build_seconds = 0.0
    with locked(folder / "lock"):
        if not is_intact(library):
            if library.exists():
                text = "does not match its digest, or the digest is missing; recompiling"
                print(f"graph-train: {library}: {text}", file=sys.stderr, flush=True)
            build_seconds = _build(toolchain, folder, library, emulated_cuda)
    return BuiltPlugin(library, build_seconds)


def packaged_library() -> Path | None:
    """Return the wheel's library if it matches these sources and the installed OneFlow and oneDNN.

    It is trusted like the Python code next to it.
    """
    library, key = PACKAGED_FOLDER / LIBRARY_NAME, PACKAGED_FOLDER / KEY_NAME
    if not (library.is_file() and key.is_file()):
        return None
    return library if key.read_text() == packaged_key() else None


def _build(toolchain: Toolchain, folder: Path, library: Path, emulated_cuda: bool) -> float:
    start = time.monotonic()
    print("graph-train: compiling the CPU kernels (once, up to 3 minutes) ...", end="", file=sys.stderr, flush=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch:
            finished = compile_sources(toolchain, Path(scratch), folder / "build.log", emulated_cuda=emulated_cuda)
            store_in_cache(finished, library)
    except BaseException:
        print(" failed", file=sys.stderr, flush=True)
        raise
    seconds = time.monotonic() - start
    print(f" done in {seconds:.0f} s", file=sys.stderr, flush=True)
    return seconds


def compile_sources(toolchain: Toolchain, scratch: Path, log: Path, *, emulated_cuda: bool = False) -> Path:
    """Compile all C++ files in parallel and link them; return the library inside `scratch`.

    Failed commands are written to `log` with the compiler's output.
    """
    log.unlink(missing_ok=True)
    flags = [str(toolchain.compiler), *_COMPILE_FLAGS, *toolchain.include_flags()]
    jobs = _compile_jobs(emulated_cuda)
    cached = {job: _cached_object(job, flags, plugin_key_parts(toolchain)) for job in jobs}
    missing = [job for job in jobs if not is_intact(cached[job])]
    dependent = [job for job in missing if job.needs_oneflow]
    (scratch / _COMMON_HEADER).parent.mkdir()

    def compile_and_keep(job: _CompileJob) -> None:
        _run(job.command(flags), scratch, log)
        store_in_cache(scratch / job.target, cached[job])

    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        independent = [pool.submit(compile_and_keep, job) for job in missing if not job.needs_oneflow]
        if dependent:
            # OneFlow's headers dominate compile time: precompile them in the scratch folder, in parallel with files
            # that do not include them.
            source, target = str(SOURCE_FOLDER / _COMMON_HEADER), f"{_COMMON_HEADER}.gch"
            _run([*flags, "-x", "c++-header", source, "-o", target], scratch, log)
        for done in [*independent, *(pool.submit(compile_and_keep, job) for job in dependent)]:
            done.result()
    link = [str(toolchain.compiler), *(str(cached[job]) for job in jobs), "-o", LIBRARY_NAME]
    _run([*link, *toolchain.link_names(), *_LINK_FLAGS], scratch, log)
    return scratch / LIBRARY_NAME


def _cached_object(job: "_CompileJob", flags: Sequence[str], versions: Sequence[str]) -> Path:
    """Return the cache file of an object, whose name is a hash of everything it depends on."""
    digest = hashlib.sha256("\0".join((*job.command(flags), *versions)).encode())
    for path in included_files(job.source):
        digest.update(path.read_bytes() + b"\0")
    return private_cache_folder("objects") / f"{digest.hexdigest()[:32]}.o"


def included_files(source: Path) -> list[Path]:
    """Return the file and all of our files that it includes, directly, indirectly or by compiler flags."""
    found: dict[Path, None] = {}
    waiting = [source, *([SOURCE_FOLDER / _COMMON_HEADER] if source.suffix == ".cpp" else ())]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found[path] = None
        waiting += [
            SOURCE_FOLDER / name for name in re.findall(r'#include "([^"]+)"', path.read_text(encoding="utf-8"))
        ]
    return sorted(found)


@dataclass(frozen=True)
class _CompileJob:
    """A compiler invocation."""

    source: Path
    flags: tuple[str, ...]
    target: str
    needs_oneflow: bool

    def command(self, flags: Sequence[str]) -> list[str]:
        return [*flags, *self.flags, "-c", str(self.source), "-o", self.target]


def _compile_jobs(emulated_cuda: bool) -> list[_CompileJob]:
    """Return the compiler invocations: `*.vec.cpp` once per instruction set, `*.cu` if CUDA is emulated.

    Sources that do not depend on the emulation are compiled as for the plugin, so that both builds share their objects.
    """
    jobs: list[_CompileJob] = []
    for path in source_files():
        emulation = _EMULATION_FLAGS if emulated_cuda and _depends_on_emulation(path) else ()
        name = ".".join(path.relative_to(SOURCE_FOLDER).parts)
        if path.name.endswith(_VECTOR_SUFFIX):
            sets = _INSTRUCTION_SETS.items()
            jobs += [_CompileJob(path, (*emulation, *flags), f"{name}.{of}.o", False) for of, flags in sets]
        elif path.suffix == ".cpp":
            jobs.append(_CompileJob(path, (*emulation, "-include", _COMMON_HEADER), f"{name}.o", True))
        elif path.suffix == ".cu" and emulated_cuda:
            jobs.append(_CompileJob(path, (*_EMULATION_FLAGS, "-x", "c++"), f"{name}.o", False))
    return jobs


def _depends_on_emulation(source: Path) -> bool:
    return any(_EMULATION_MACRO in path.read_text(encoding="utf-8") for path in included_files(source))


def _run(command: Sequence[str], scratch: Path, log: Path) -> None:
    result = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        first = next((line for line in result.stderr.splitlines() if "error" in line), f"exit code {result.returncode}")
        text = f"compiling the CPU kernels failed ({first.strip()})"
        if os.strerror(errno.ENOSPC) in result.stderr:
            raise PluginUnavailableError(
                f"{text}; free {_BUILD_GB} GB for {log.parent}, or set XDG_CACHE_HOME to a folder on another disk"
            )
        # A single write, since several parallel commands may fail.
        with log.open("a") as handle:
            handle.write(" ".join(command) + "\n" + result.stdout + result.stderr + "\n")
        raise PluginUnavailableError(f"{text}; the compiler's output is in {log}")
