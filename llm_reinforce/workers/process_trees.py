"""Kill a process together with the processes that it has started, on every operating system."""

import os
import signal
from contextlib import suppress


def kill_descendants(pid: int) -> None:
    """Kill all processes that a process has started, directly or indirectly.

    The processes are found with the parent id of each process, because Windows has no process groups. A
    process whose parent has ended is not found; see `kill_group`.

    Args:
        pid: id of the process. If the process does not exist, nothing happens.
    """
    import psutil  # imported here, because most processes never need it

    with suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                process.kill()


def kill_group(leader: int) -> None:
    """Kill all processes of a process group, on systems that have process groups.

    Args:
        leader: id of the process that leads the group; 0 for the group of this process. If the group does
            not exist, nothing happens.
    """
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
