"""Build hook that adds the compiled kernels to a wheel if GRAPH_TRAIN_WHEEL_KERNELS=1:

    GRAPH_TRAIN_WHEEL_KERNELS=1 uv build --wheel --no-build-isolation

Without isolation, because the kernels are compiled against the OneFlow and oneDNN of the environment. Such a wheel
needs no compiler where it is installed; other wheels compile the kernels in the first run. It also contains the CUDA
kernels for all GPU architectures, which are compiled without a GPU.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "GRAPH_TRAIN_WHEEL_KERNELS"
_SHOWN_OF_LOG = 4000
"""Number of characters at the end of the log that are shown."""


class KernelBuildHook(BuildHookInterface):
    """Build hook found by Hatchling as the only one in the file named in `pyproject.toml`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library and the CUDA kernels and add them to the wheel, except for editable installs."""
        if os.environ.get(SWITCH, "0") != "1" or version == "editable":
            return
        sys.path.insert(0, self.root)
        from kernels.build import cuda_build, nvrtc
        from kernels.build import plugin_build as build

        self._scratch = tempfile.TemporaryDirectory()
        folder = Path(self._scratch.name)
        log = folder / "build.log"
        try:
            library = build.compile_sources(build.find_toolchain(), folder, log)
        except build.PluginUnavailableError as error:
            if not log.exists():
                raise
            # The log is deleted with its temporary folder.
            raise RuntimeError(f"{error}; its end is:\n{log.read_text()[-_SHOWN_OF_LOG:]}") from error
        (folder / build.KEY_NAME).write_text(build.packaged_key())
        archives = []
        for architecture in (*nvrtc.ARCHITECTURES, nvrtc.PORTABLE):
            archives.append(folder / cuda_build.archive_name(architecture))
            cuda_build.write_archive(architecture, archives[-1])
        for file in (library, folder / build.KEY_NAME, *archives):
            build_data["force_include"][str(file)] = f"kernels/{build.PACKAGED_FOLDER.name}/{file.name}"
        # The library works with any Python 3; `requires-python` limits the version.
        build_data["tag"] = "py3-none-linux_x86_64"
        build_data["pure_python"] = False

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the compiled files after the wheel is written."""
        scratch = getattr(self, "_scratch", None)
        if scratch is not None:
            scratch.cleanup()
