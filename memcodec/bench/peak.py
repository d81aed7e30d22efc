"""Peak resident memory of this process."""

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def reset() -> None:
    """Reset the peak to what is resident now. Linux only; elsewhere the peak is that of the whole process."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def read() -> int:
    """The peak since `reset` in bytes, including the interpreter and libraries; 0 if it is not known."""
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
