"""Which process wrote something, told so that a reused process number is not mistaken for the
writer.
"""

import os
import sys
from pathlib import Path


def start_time(pid: int) -> str:
    """Start of a process in clock ticks since boot, "" where the system does not tell or there is
    no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The command name is in parentheses and may itself hold spaces and parentheses.
    return stat.rpartition(")")[2].split()[19]


def is_alive(pid: int, started: str = "") -> bool:
    """Whether the process runs now and, where it can be told, is the one that started then."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        # os.kill(pid, 0) would end the process there; better to keep a leftover than to break a
        # running job.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = start_time(pid)
    return not (started and now and started != now)
