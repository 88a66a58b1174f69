"""Network namespaces for tests; requires root."""

from __future__ import annotations

import ipaddress
import os
import re
import subprocess
from pathlib import Path

import pytest

_CAN = (1 << 12) | (1 << 21)  # CAP_NET_ADMIN, CAP_SYS_ADMIN; see capabilities(7)

NOBODY = "02:00:00:00:00:01"

# Addresses for tests of networks (RFC 2544), four for each run of the tests.
_NETWORKS = list(ipaddress.IPv4Network("198.18.0.0/15").subnets(new_prefix=30))


def ip(*command: str) -> None:
    done = subprocess.run(["ip", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"ip {' '.join(command)}: {done.stderr}")


def _is_root() -> bool:
    """Return whether this process can create networks; root in a container often can't."""
    found = re.search(r"(?m)^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text())
    return found is not None and int(found[1], 16) & _CAN == _CAN


IS_ROOT = os.geteuid() == 0 and _is_root()


class Network:
    """A network namespace and its link; ``here`` and ``there`` are the two ends."""

    def __init__(self) -> None:
        self.name = f"rl{os.getpid()}"
        self.here, self.there = map(str, _NETWORKS[os.getpid() % len(_NETWORKS)].hosts())
        neighbour = ("neighbour", "replace")
        self._ends = (
            (*neighbour, self.there, "dev", f"{self.name}a"),
            ("-n", self.name, *neighbour, self.here, "dev", f"{self.name}b"),
        )

    def make(self) -> None:
        near, far, inside = f"{self.name}a", f"{self.name}b", ("-n", self.name)
        ip("netns", "add", self.name)
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", self.name)
        ip("address", "add", f"{self.here}/30", "dev", near)
        ip(*inside, "address", "add", f"{self.there}/30", "dev", far)
        ip("link", "set", near, "up")
        ip(*inside, "link", "set", far, "up")

    def remove(self) -> None:
        # The link is removed with it, but later.
        subprocess.run(["ip", "link", "delete", f"{self.name}a"], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)

    def lose(self, *, requests: bool, answers: bool) -> None:
        """Drop all packets of a direction: send them to a missing network card."""
        for end, lost in zip(self._ends, (requests, answers), strict=True):
            if lost:
                ip(*end, "lladdr", NOBODY, "nud", "permanent")

    def restore(self) -> None:
        """Make both ends resolve the other's address again."""
        for end in self._ends:
            ip(*end, "nud", "failed")
