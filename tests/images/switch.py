"""Network namespaces on a bridge of their own, and a name server: what compose calls a network.

All are on one network, whichever the compose file names.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
from collections import defaultdict
from pathlib import Path

from tests.images.engine import run, until

_NETWORK = "10.99.0"
SERVER = f"{_NETWORK}.1"
"""Of names; it is on the bridge itself."""

BRIDGE = "02:00:00:00:00:01"


class Switch:
    """A bridge, on which each port is a namespace with an address."""

    def __init__(self, folder: Path) -> None:
        self.name = f"ratelimit-{secrets.token_hex(4)}"
        self.hosts = folder / "hosts"
        self.hosts.touch()
        self._ports: list[str] = []
        self._names: defaultdict[str, list[str]] = defaultdict(list)
        run("ip", "netns", "add", self.name)
        inside = ("ip", "-n", self.name)
        run(*inside, "link", "set", "lo", "up")
        # Without an address of its own, a bridge takes the lowest of its ports. A new port may
        # change it, and what the others send to the one that they know is lost for up to a minute.
        run(*inside, "link", "add", "bridge", "address", BRIDGE, "type", "bridge")
        run(*inside, "address", "add", f"{SERVER}/24", "dev", "bridge")
        run(*inside, "link", "set", "bridge", "up")
        ready = folder / "dnsmasq.pid"
        self._dns = subprocess.Popen(
            [
                *("ip", "netns", "exec", self.name, "dnsmasq", "--keep-in-foreground"),
                *("--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--local=//"),
                *(f"--addn-hosts={self.hosts}", f"--listen-address={SERVER}", "--user=root"),
                *("--bind-interfaces", f"--pid-file={ready}", "--log-facility=-"),
                "--local-ttl=1",
            ],
            stderr=subprocess.DEVNULL,
        )
        # Before that, the signal by which it reads the names again would end it.
        until(ready.exists, "the name server runs")

    def port(self, name: str = "") -> tuple[str, str]:
        """Make a port; return its namespace, a path, and its address, known by ``name``."""
        number = len(self._ports) + 2
        namespace, address = f"{self.name}-{number}", f"{_NETWORK}.{number}"
        run("ip", "netns", "add", namespace)
        self._ports.append(namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        peer = ("peer", "name", f"port{number}", "netns", self.name)
        run("ip", "-n", namespace, "link", "add", "eth0", "type", "veth", *peer)
        run("ip", "-n", self.name, "link", "set", f"port{number}", "master", "bridge", "up")
        run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "up")
        if name:
            self._names[name].append(address)
            self._tell()
        return f"/run/netns/{namespace}", address

    def forget(self, name: str, address: str) -> None:
        """Have the name server answer without an address, as for a container that has stopped."""
        self._names[name].remove(address)
        self._tell()

    def know(self, name: str, address: str) -> None:
        self._names[name].append(address)
        self._tell()

    def _tell(self) -> None:
        lines = [f"{one} {name}\n" for name, known in self._names.items() for one in known]
        self.hosts.write_text("".join(lines))
        self._dns.send_signal(signal.SIGHUP)

    def close(self) -> None:
        self._dns.terminate()
        self._dns.wait(5)
        for namespace in (*self._ports, self.name):
            subprocess.run(["ip", "netns", "del", namespace], check=False)
