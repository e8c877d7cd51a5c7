"""Compiled CUDA kernels of a GPU architecture: from the wheel, from the cache, or compiled now.

Each architecture has a zip archive with the machine code of each source by name.
"""

import hashlib
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from kernels.build import nvrtc
from kernels.build.cache import in_read_only_cache, is_intact, locked, private_cache_folder, store_in_cache
from kernels.build.plugin_build import PACKAGED_FOLDER, SOURCE_FOLDER, included_files

_DATE = (1980, 1, 1, 0, 0, 0)


def ensure_compiled(architecture: str) -> list[bytes]:
    """Return images for the driver, one per source file; arguments and errors as for `compiled_archive`."""
    return read_archive(compiled_archive(architecture))


def compiled_archive(architecture: str) -> Path:
    """Return the archive of the compiled kernels; safe for concurrent processes.

    Args:
        architecture: from `nvrtc.architecture_for`.

    Raises:
        PluginUnavailableError: NVRTC is not installed or cannot compile a source; an unsafe cache folder.
        OSError: the cache folder cannot be written.
    """
    name = archive_name(architecture)
    if (PACKAGED_FOLDER / name).is_file():
        return PACKAGED_FOLDER / name
    ready = in_read_only_cache("cuda", name)
    if ready is not None:
        return ready
    archive = private_cache_folder("cuda") / name
    with locked(archive.with_name(f"{name}.lock")):
        if not is_intact(archive):
            _build(architecture, archive)
    return archive


def archive_name(architecture: str) -> str:
    """Return the archive's name, which contains a hash of the sources, flags and compiler version."""
    digest = hashlib.sha256(nvrtc.version().encode())
    for source in nvrtc.cuda_sources():
        # Without the installation folder, so that wheels work anywhere.
        flags = "\0".join(nvrtc.flags_of(source, architecture)).replace(str(SOURCE_FOLDER), "")
        digest.update(f"{source.relative_to(SOURCE_FOLDER)}\0{flags}\0".encode())
        for path in included_files(source):
            digest.update(path.read_bytes() + b"\0")
    return f"{architecture}-{digest.hexdigest()[:24]}.zip"


def write_archive(architecture: str, archive: Path) -> None:
    """Compile all sources.

    Raises:
        PluginUnavailableError: from `nvrtc.compile_source`.
    """
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for source in nvrtc.cuda_sources():
            name = str(source.relative_to(SOURCE_FOLDER))
            file.writestr(
                zipfile.ZipInfo(name, _DATE), nvrtc.compile_source(source, architecture), zipfile.ZIP_DEFLATED
            )


def read_archive(archive: Path) -> list[bytes]:
    """Return the images in an archive."""
    with zipfile.ZipFile(archive) as file:
        return [file.read(name) for name in file.namelist()]


def _build(architecture: str, archive: Path) -> None:
    start = time.monotonic()
    text = f"graph-train: compiling the CUDA kernels for {architecture} (once, up to a minute) ..."
    print(text, end="", file=sys.stderr, flush=True)
    try:
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix="build-") as scratch:
            finished = Path(scratch) / archive.name
            write_archive(architecture, finished)
            store_in_cache(finished, archive)
    except BaseException:
        print(" failed", file=sys.stderr, flush=True)
        raise
    print(f" done in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
