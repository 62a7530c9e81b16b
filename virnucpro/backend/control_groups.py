"""Finds the control groups of this process, by which Linux limits containers and jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

MEMBERSHIP = Path("/proc/self/cgroup")
"""Where Linux lists the groups of this process."""

MOUNTED = Path("/sys/fs/cgroup")
"""Where the file system of control groups is mounted."""


def list_groups(controller: str, membership: Path, mounted: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the directories of this process's groups, and whether each is of version 1.

    A limit of a parent counts, too, so each group is followed by its parents. Not all of the
    directories exist.

    Args:
        controller: What the groups limit, such as `cpu`.
        membership: The groups of this process, as `MEMBERSHIP` lists them.
        mounted: As `MOUNTED`.
    """
    with suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            # Version 2 has one tree for all controllers, and names none.
            is_v1 = controller in controllers.split(",")
            if controllers and not is_v1:
                continue
            group = PurePosixPath(name.lstrip("/"))
            # A container may see itself as the root, and yet be told the name that it has outside:
            # then only the last of these exists.
            for one in (group, *group.parents):
                yield mounted / (controller if is_v1 else "") / one, is_v1
