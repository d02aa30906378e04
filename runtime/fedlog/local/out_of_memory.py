"""How often the kernel ended a process for want of memory: what a SIGKILL alone does not say."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/")


def kernel_kills(root: Path = _ROOT) -> int | None:
    """The kernel's count for our cgroup, else for the machine; None where it cannot be read."""
    for path in (*_of_cgroup(root), root / "proc/vmstat"):
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.strip().isdecimal():
                return int(value)
    return None


def _of_cgroup(root: Path) -> list[Path]:
    """Where version 2, or the memory controller of version 1, counts for our group."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        below = group.lstrip("/")
        if number == "0" and not controllers:
            found.append(root / "sys/fs/cgroup" / below / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(root / "sys/fs/cgroup/memory" / below / "memory.oom_control")
    return found
