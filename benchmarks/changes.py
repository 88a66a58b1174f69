"""The shipped configuration with one thing changed: what ``benchmarks/settings.py`` measures."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.end_to_end import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CFG, SPOE = "haproxy.cfg", "spoe.conf"


@dataclass(frozen=True)
class Edit:
    """A text of a shipped file, which must be there once, and what stands in its place."""

    file: str
    old: str
    new: str

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        text = path.read_text()
        if (count := text.count(self.old)) != 1:
            sys.exit(f"{self.file}: {self.old!r} is there {count} times")
        path.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True)
class Setting:
    """What is changed; ``variables`` are HAProxy's, ``limit`` is a line of the default limit."""

    name: str
    edits: tuple[Edit, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    limit: str = ""
    unix: bool = False
    checks: int = 1
    """Of each request, by the agent."""

    mux: bool | None = None
    """Only for HAProxy 3.1 and later, which multiplexes SPOP, or only for those before."""


def tune(line: str, before: str = "") -> Setting:
    return Setting(line, (Edit(CFG, "\nglobal\n", f"\nglobal\n    {before}{line}\n"),))


def spoe(line: str, mux: bool | None = None) -> Setting:
    old = "    use-backend spoa\n"
    return Setting(line, (Edit(SPOE, old, f"{old}    {line}\n"),), mux=mux)


def asked_above(rate: int) -> tuple[Edit, ...]:
    """Have HAProxy count by itself, and ask only about clients with more requests a second."""
    old = "    http-request send-spoe-group rl check if agent_up known_client\n"
    new = "    http-request track-sc2 var(txn.client) table t_seen if known_client\n"
    new += f"{old.rstrip()} {{ sc2_http_req_rate gt {rate} }}\n"
    table = "\nbackend t_seen\n"
    table += "    stick-table type ipv6 size 1m expire 10s store http_req_rate(1s)\n"
    return Edit(CFG, old, new), Edit(CFG, "\nbackend t_alone\n", f"{table}\nbackend t_alone\n")


FIRST, LAST = Setting("as shipped"), Setting("as shipped, again")
"""The first and the last of a round: what the others are compared with is between the two."""

SETTINGS = (
    FIRST,
    Setting("agent on a unix socket", unix=True),
    Setting("headers = true", limit="headers = true\n"),
    Setting(
        "three limits, three frames",
        variables={"RATELIMIT_LOGIN_PATH": "/", "RATELIMIT_API_KEYS": "1"},
        checks=3,
    ),
    Setting(
        "three limits, one frame",
        (
            Edit(SPOE, "    groups check unknown login api_key\n", "    groups check unknown\n"),
            Edit(SPOE, "    messages default\n", "    messages default login api_key\n"),
            Edit(SPOE, "spoe-group login\n    messages login\n", ""),
            Edit(SPOE, "spoe-group api_key\n    messages api_key\n", ""),
        ),
        checks=3,
    ),
    Setting(
        "option dontlog-normal",
        (Edit(CFG, "\nfrontend web\n", "\nfrontend web\n    option dontlog-normal\n"),),
    ),
    Setting("nbthread 2", variables={"RATELIMIT_THREADS": "2"}),
    spoe("no option pipelining", mux=False),
    spoe("max-waiting-frames 5", mux=False),
    spoe("max-waiting-frames 100", mux=False),
    spoe("max-frame-size 256"),
    Setting(
        "server agent, maxconn 4",
        (Edit(CFG, " check inter 500ms", " maxconn 4 check inter 500ms"),),
    ),
    Setting(
        "http-reuse always",
        (Edit(CFG, "\nbackend spoa\n", "\nbackend spoa\n    http-reuse always\n"),),
        mux=True,
    ),
    tune("busy-polling"),
    tune("tune.bufsize 8192"),
    tune("tune.maxpollevents 20"),
    tune("tune.runqueue-depth 20"),
    tune("tune.sched.low-latency on"),
    tune("tune.fd.edge-triggered on", "expose-experimental-directives\n    "),
    Setting("asks above 10 a second, so of none", asked_above(10), checks=0),
    Setting("asks above 0 a second, so of all", asked_above(0)),
    LAST,
)


def offered(haproxy: str) -> list[Setting]:
    """Return the settings that this HAProxy has."""
    said = subprocess.run([haproxy, "-v"], capture_output=True, text=True, check=True).stdout
    ((major, minor),) = re.findall(r"version (\d+)\.(\d+)", said)
    mux = (int(major), int(minor)) >= (3, 1)
    return [setting for setting in SETTINGS if setting.mux in (None, mux)]


def write(setting: Setting, folder: Path) -> None:
    """Write HAProxy's files as a setting has them, with this machine as a load balancer."""
    shutil.copytree(SHIPPED.parent, folder)
    with (folder / "lb.lst").open("a") as trusted:
        trusted.write("127.0.0.1\n")
    for edit in setting.edits:
        edit.apply(folder)
