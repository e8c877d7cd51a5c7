"""Available host memory, limited by the machine and by control groups."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Hierarchy:
    """File names of a version of control groups."""

    mounted: str
    limit: str
    used: str
    cached: str
    """Entry of `memory.stat`: page cache in bytes, which the kernel reclaims before an allocation fails."""


_V1 = _Hierarchy("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Hierarchy("", "memory.max", "memory.current", "inactive_file")


def free_memory(*, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes available to this process: MemAvailable, or less in a limited control group.

    Args:
        proc, groups: mount points of procfs and of control groups (both versions).
    Raises:
        OSError: procfs is not mounted.
    """
    fields = {name: value for name, _, value in _rows((proc / "meminfo").read_text(), ":")}
    free = int((fields.get("MemAvailable") or fields["MemFree"]).split()[0]) * 1024
    return max(0, min(free, *_cgroup_headroom(proc / "self" / "cgroup", groups)))


def _cgroup_headroom(membership: Path, groups: Path) -> Iterator[int]:
    """Yield the headroom of each control group from the process's own to the root; at least one value."""
    yield 1 << 62
    for line in _text(membership).splitlines() or ["0::/", "1:memory:/"]:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        kind = _V1 if controllers else _V2
        top = groups / kind.mounted
        # In a container the path may be that of the host, with the container's own group at the root.
        own = top / path.lstrip("/")
        for folder in {top, *(parent for parent in (own, *own.parents) if parent.is_relative_to(top))}:
            yield from _hierarchy_headroom(folder, kind)


def _hierarchy_headroom(folder: Path, kind: _Hierarchy) -> Iterator[int]:
    limit, used = _text(folder / kind.limit), _text(folder / kind.used)
    if not limit or not used or limit.strip() == "max":
        return
    statistics = {name: value for name, _, value in _rows(_text(folder / "memory.stat"), " ")}
    yield int(limit) - int(used) + int(statistics.get(kind.cached, 0))


def _text(path: Path) -> str:
    """Return the content of a file; "" if there is none, or a container hides it."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _rows(text: str, separator: str) -> Iterator[tuple[str, str, str]]:
    return (line.partition(separator) for line in text.splitlines())
