"""How many cores this process may use."""

import os


def usable_cores() -> int:
    """Those the system lets it use, or fewer where OMP_NUM_THREADS asks for fewer."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(asked)) if asked.isdecimal() and int(asked) else cores
