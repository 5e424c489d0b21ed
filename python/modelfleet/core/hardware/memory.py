"""Main memory, from /proc/meminfo, and the control group's limit on it.

Control groups: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
"""

import posixpath
import re
from typing import Dict, Iterator, List, Optional, Tuple

from .profile import Memory
from .sources import Reader


def parse_meminfo(text: str) -> Dict[str, int]:
    """Return the fields of /proc/meminfo that are sizes, in bytes."""
    fields: Dict[str, int] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"([\w()]+):\s+(\d{1,18}) kB\s*", line, re.ASCII)
        if match is not None:
            fields[match.group(1)] = int(match.group(2)) * 1024
    return fields


def parse_cgroup(text: str) -> List[Tuple[str, str]]:
    """Return (controllers, path) for each line of /proc/self/cgroup; version 2 has no controllers."""
    groups: List[Tuple[str, str]] = []
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and parts[2].startswith("/"):
            groups.append((parts[1], parts[2]))
    return groups


def limit_files(
    groups: List[Tuple[str, str]],
    unified: str = "memory.max",
    controller: str = "memory",
    legacy: str = "memory.limit_in_bytes",
) -> Iterator[str]:
    """Yield the files that may hold a limit: a group's own and those of all groups above it.

    ``unified`` is the file's name in version 2 of control groups, ``legacy`` that in version 1's ``controller``.
    """
    for controllers, path in groups:
        if controllers == "":
            mounts, name = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"], unified
        elif controller in controllers.split(","):
            # Controllers that are mounted together have one folder, by all their names.
            mounts = list(dict.fromkeys([f"/sys/fs/cgroup/{controller}", f"/sys/fs/cgroup/{controllers}"]))
            name = legacy
        else:
            continue
        # normpath: a path that leads out of the hierarchy must not be followed.
        current = posixpath.normpath(path)
        while True:
            for mount in mounts:
                yield posixpath.join(mount, current.lstrip("/"), name)
            if current in ("/", "//"):
                break
            current = posixpath.dirname(current)


def read_limit(reader: Reader) -> Optional[int]:
    """Return the lowest limit in bytes of the control groups that this process is in, None: no limit."""
    limits: List[int] = []
    for path in limit_files(parse_cgroup(reader.read("/proc/self/cgroup") or "")):
        text = reader.read_line(path) or ""
        # "max" is version 2's word for no limit.
        if re.fullmatch(r"\d{1,20}", text, re.ASCII):
            limits.append(int(text))
    return min(limits) if limits else None


def read_memory(reader: Reader, unknown: Dict[str, str]) -> Memory:
    """Return total and available memory, and a limit only where it is below the total."""
    text = reader.read("/proc/meminfo")
    fields = parse_meminfo(text or "")
    reason = "/proc/meminfo cannot be read" if text is None else "/proc/meminfo does not tell"
    memory = Memory(fields.get("MemTotal"), fields.get("MemAvailable"))
    if memory.total_bytes is None:
        unknown["memory.total_bytes"] = reason
    if memory.available_bytes is None:
        unknown["memory.available_bytes"] = reason
    limit = read_limit(reader)
    if limit is not None and (memory.total_bytes is None or limit < memory.total_bytes):
        memory.limit_bytes = limit
    return memory
