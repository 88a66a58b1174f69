"""The signals of a process, as the kernel shows them."""

from __future__ import annotations

import re
from pathlib import Path


def signals(pid: int, field: str) -> set[int]:
    """Return a set of signals out of the status of a process; see proc(5)."""
    (mask,) = re.findall(rf"(?m)^{field}:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text())
    return {number for number in range(1, 65) if int(mask, 16) >> number - 1 & 1}
