"""Puts the compiled kernels into a wheel, where GRAPH_TRAIN_WHEEL_KERNELS=1 asks for it:

    GRAPH_TRAIN_WHEEL_KERNELS=1 uv build --wheel --no-build-isolation

Without isolation, because the kernels are compiled against the OneFlow and oneDNN of the environment. Such a wheel
needs no compiler where it is installed; one without kernels compiles them at the first run. Beside the library it holds
the CUDA kernels for every generation of GPUs, for which none is needed.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "GRAPH_TRAIN_WHEEL_KERNELS"
_SHOWN_OF_LOG = 4000
"""Characters, of the end."""


class KernelBuildHook(BuildHookInterface):
    """Hatchling finds it by being the only hook in the file that `pyproject.toml` names."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile and add the library and the CUDA kernels; leave an editable install alone."""
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
            # The log that the message names is gone with its folder when this process ends.
            raise RuntimeError(f"{error}; its end is:\n{log.read_text()[-_SHOWN_OF_LOG:]}") from error
        (folder / build.KEY_NAME).write_text(build.packaged_key())
        archives = []
        for architecture in (*nvrtc.ARCHITECTURES, nvrtc.PORTABLE):
            archives.append(folder / cuda_build.archive_name(architecture))
            cuda_build.write_archive(architecture, archives[-1])
        for file in (library, folder / build.KEY_NAME, *archives):
            build_data["force_include"][str(file)] = f"kernels/{build.PACKAGED_FOLDER.name}/{file.name}"
        # Any Python 3 as far as this library goes; which one is fit is said by `requires-python`.
        build_data["tag"] = "py3-none-linux_x86_64"
        build_data["pure_python"] = False

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled, once the wheel is written."""
        scratch = getattr(self, "_scratch", None)
        if scratch is not None:
            scratch.cleanup()
