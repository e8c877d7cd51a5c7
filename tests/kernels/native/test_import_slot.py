"""Redirection of calls across a library boundary and of virtual functions, for every type of slot."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kernels.build.plugin_build import SOURCE_FOLDER

_CALLED = """
extern "C" int number() { return 1; }
struct Counter {
  virtual ~Counter() = default;
  virtual int count();
};
int Counter::count() { return 1; }
extern "C" Counter* counter() { return new Counter; }
"""
_CALLS = 'extern "C" int number();\nextern "C" int ask() { return number(); }'
_PROGRAM = r"""
#include "native/import_slot.h"
#include <cstdio>
#include <cstring>
extern "C" int ask();
struct Counter {
  virtual ~Counter() = default;
  virtual int count();
};
extern "C" Counter* counter();
static int ours() { return 2; }
static int our_count(Counter*) { return 3; }
// Pages of the libraries that may be written: they must be as many afterwards.
static int writable() {
  int count = 0;
  char line[512];
  std::FILE* maps = std::fopen("/proc/self/maps", "r");
  while (std::fgets(line, sizeof(line), maps)) count += std::strstr(line, "libcall") && std::strstr(line, " rw");
  std::fclose(maps);
  return count;
}
int main() {
  Counter* const counts = counter();
  const int before = writable(), asked = ask(), counted = counts->count();
  const int absent = graph_train::replace_import("libcalls", "no_such_function", reinterpret_cast<void*>(&ours));
  const int elsewhere = graph_train::replace_import("libnowhere", "number", reinterpret_cast<void*>(&ours));
  const int replaced = graph_train::replace_import("libcalls", "number", reinterpret_cast<void*>(&ours));
  const int in_table =
      graph_train::replace_import("libcalled", "_ZN7Counter5countEv", reinterpret_cast<void*>(&our_count));
  std::printf("%d %d %d %d %d\n", asked, absent, elsewhere, replaced, ask());
  std::printf("%d %d %d %d\n", counted, in_table, counts->count(), writable() - before);
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
    compiled("-shared", "-fPIC", *flags, "called.cpp", "-o", "libcalled.so")
    compiled("-shared", "-fPIC", *flags, "calls.cpp", "-o", "libcalls.so", "-L.", "-lcalled", "-Wl,-rpath,$ORIGIN")
    slot = str(SOURCE_FOLDER / "native" / "import_slot.cpp")
    libraries = ["-L.", "-lcalls", "-lcalled", "-Wl,-rpath,$ORIGIN"]
    compiled(f"-I{SOURCE_FOLDER}", "program.cpp", slot, "-o", "program", *libraries)
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["1 0 0 1 2", "1 1 3 0"]
