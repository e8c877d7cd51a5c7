"""Redirection of calls across a library boundary, for every type of import slot."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kernels.build.plugin_build import SOURCE_FOLDER

_CALLED = 'extern "C" int number() { return 1; }'
_CALLS = 'extern "C" int number();\nextern "C" int ask() { return number(); }'
_PROGRAM = r"""
#include "native/import_slot.h"
#include <cstdio>
#include <cstring>
extern "C" int ask();
static int ours() { return 2; }
// Pages of libcalls.so that may be written: they must be as many afterwards.
static int writable() {
  int count = 0;
  char line[512];
  std::FILE* maps = std::fopen("/proc/self/maps", "r");
  while (std::fgets(line, sizeof(line), maps)) count += std::strstr(line, "libcalls") && std::strstr(line, " rw");
  std::fclose(maps);
  return count;
}
int main() {
  const int before = writable(), asked = ask();
  const int absent = graph_train::replace_import("libcalls", "no_such_function", reinterpret_cast<void*>(&ours));
  const int elsewhere = graph_train::replace_import("libnowhere", "number", reinterpret_cast<void*>(&ours));
  const int replaced = graph_train::replace_import("libcalls", "number", reinterpret_cast<void*>(&ours));
  std::printf("%d %d %d %d %d %d\n", asked, absent, elsewhere, replaced, ask(), writable() - before);
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "flags",
    [["-Wl,-z,lazy"], ["-Wl,-z,now,-z,relro"], ["-fno-plt", "-Wl,-z,now,-z,relro"]],
    ids=["lazy", "now", "no-plt"],
)
def test_calls_are_redirected_and_pages_stay_protected(tmp_path: Path, flags: list[str]) -> None:
    def compiled(*arguments: str) -> None:
        subprocess.run(["g++", "-O1", *arguments], check=True, cwd=tmp_path)

    for name, text in (("called", _CALLED), ("calls", _CALLS), ("program", _PROGRAM)):
        (tmp_path / f"{name}.cpp").write_text(text)
    compiled("-shared", "-fPIC", "called.cpp", "-o", "libcalled.so")
    compiled("-shared", "-fPIC", *flags, "calls.cpp", "-o", "libcalls.so", "-L.", "-lcalled", "-Wl,-rpath,$ORIGIN")
    slot = str(SOURCE_FOLDER / "native" / "import_slot.cpp")
    libraries = ["-L.", "-lcalls", "-lcalled", "-Wl,-rpath,$ORIGIN"]
    compiled(f"-I{SOURCE_FOLDER}", "program.cpp", slot, "-o", "program", *libraries)
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0", "0", "1", "2", "0"]
