"""Free memory, read from folders laid out like /proc and /sys/fs/cgroup."""

from pathlib import Path

from kernels.host.free_memory import free_memory

GIB = 1 << 30


def machine(root: Path, membership: str) -> tuple[Path, Path]:
    """Return the folders of a machine with 8 GiB available and of the process's control groups."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    (root / "proc" / "self" / "cgroup").write_text(membership)
    (root / "groups").mkdir()
    return root / "proc", root / "groups"


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)


def test_machine_memory_without_cgroups(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, "0::/\n")
    assert free_memory(proc=proc, groups=groups) == 8 * GIB
    (proc / "self" / "cgroup").unlink()
    assert free_memory(proc=proc, groups=groups) == 8 * GIB


def test_tightest_parent_cgroup_decides(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, "0::/job/step\n")
    statistics = f"anon 5\ninactive_file {GIB // 2}\n"
    group(groups / "job", {"memory.max": str(3 * GIB), "memory.current": str(2 * GIB), "memory.stat": statistics})
    group(groups / "job" / "step", {"memory.max": "max", "memory.current": str(GIB), "memory.stat": ""})
    # half a GiB of the job's usage is reclaimable cache
    assert free_memory(proc=proc, groups=groups) == 1.5 * GIB


def test_cgroup_v1(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, "9:name=systemd:/x\n4:cpu,memory:/box\n0::/\n")
    files = {"memory.usage_in_bytes": str(5 * GIB), "memory.stat": f"total_inactive_file {GIB}\n"}
    group(groups / "memory" / "box", {"memory.limit_in_bytes": str(6 * GIB), **files})
    group(groups / "memory", {"memory.limit_in_bytes": str((1 << 63) - 4096), **files})
    assert free_memory(proc=proc, groups=groups) == 2 * GIB


def test_container_sees_its_cgroup_at_root(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, "0::/../../host/only/path\n")
    group(groups, {"memory.max": str(GIB), "memory.current": str(2 * GIB), "memory.stat": ""})
    assert free_memory(proc=proc, groups=groups) == 0  # over its limit already


def test_unreadable_cgroups_are_no_limit(tmp_path: Path) -> None:
    """A sandbox may show a file that cannot be read, here a folder."""
    proc, groups = machine(tmp_path, "0::/job\n")
    for name in ("memory.max", "memory.current"):
        (groups / "job" / name).mkdir(parents=True)
    (groups / "memory.max").write_text(str(2 * GIB))
    (groups / "memory.current").write_text(str(GIB))
    (groups / "memory.stat").mkdir()
    assert free_memory(proc=proc, groups=groups) == GIB


def test_kernel_without_available_memory(tmp_path: Path) -> None:
    proc, groups = machine(tmp_path, "0::/\n")
    (proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemFree: {GIB // 1024} kB\n\nnote without a number\n")
    assert free_memory(proc=proc, groups=groups) == GIB


def test_free_memory_of_this_machine() -> None:
    assert free_memory() > 1 << 20
