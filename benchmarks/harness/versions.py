"""The HAProxies that are there: the machine's, and those in the cache of ``make test-matrix``."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.programs import Programs, require
from tests.matrix import ENTRIES, command, is_there


def version(program: str) -> str:
    """Return the version of an HAProxy as MAJOR.MINOR."""
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+\.\d+)", said)
    return found[1] if found else sys.exit(f"{program} -v says {said}")


def haproxies(folder: Path) -> dict[str, str]:
    """Return the commands of all HAProxies by their version, in ascending order.

    They are written to ``folder``. Of two with one version, the machine's is taken.
    """
    machine = require("haproxy")
    found = {version(machine): machine}
    for entry in ENTRIES:
        number = entry.version.rstrip(".")
        if entry.is_haproxy and number not in found and is_there(entry):
            place = folder / entry.name
            place.mkdir()
            found[number] = str(command(entry, place))
    return dict(sorted(found.items(), key=lambda one: [int(n) for n in one[0].split(".")]))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses an HAProxy."""
    text = "MAJOR.MINOR of the HAProxy to run, of those in the cache of make test-matrix, too"
    parser.add_argument("--haproxy", default="", metavar="VERSION", help=text)


def choose(programs: Programs, options: argparse.Namespace) -> None:
    """Run the HAProxy that the option names."""
    if options.haproxy:
        found = haproxies(programs.folder)
        if options.haproxy not in found:
            sys.exit(f"there is no HAProxy {options.haproxy}; there are {', '.join(found)}")
        programs.haproxy = found[options.haproxy]
