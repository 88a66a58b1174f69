"""buildah and podman as they run on a machine without a container engine: images from Debian's
packages, containers in network namespaces of our own.

``python -m tests.images.engine`` builds the images and prints how large the agent's is.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.composefile import ROOT

CACHE = ROOT / ".cache" / "images"
SUITE = "trixie"
"""Of Debian; the one of the Dockerfile's BASE."""

BASE, PYTHON, AGENT, SERVERS, DEVELOPMENT = (
    f"localhost/ratelimit-test/{name}"
    for name in ("base", "python", "agent", "servers", "development")
)
MEGABYTE = 1_000_000
LIMIT = 150 * MEGABYTE

# As in Debian's own image, which leaves these out.
_EXCLUDED = ("doc", "groff", "info", "linda", "lintian", "locale", "man")

_STORAGE = (
    *("--root", str(CACHE / "storage"), "--runroot", str(CACHE / "run")),
    *("--storage-driver", "overlay"),
)


PATIENCE = 180.0
"""Seconds that a test waits for a condition, on a machine that does much else."""


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until ``condition`` is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        time.sleep(0.05)


def run(*command: str | Path) -> str:
    """Run a command to its end and return what it printed; fail with what it said."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}"
    return result.stdout


def buildah(action: str, *arguments: str | Path) -> str:
    return run("buildah", *_STORAGE, action, *arguments)


def podman(action: str, *arguments: str | Path) -> str:
    """Run podman with runc, which works where there is no systemd and no delegated cgroup."""
    manager = ("--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=file")
    return run("podman", *_STORAGE, *manager, action, *arguments)


def build() -> None:
    """Build all images; what has not changed is taken from the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    _base()
    for tag, file, target in (
        (PYTHON, ROOT / "Dockerfile", "python"),
        (AGENT, ROOT / "Dockerfile", "runtime"),
        (SERVERS, Path(__file__).parent / "servers.Dockerfile", ""),
    ):
        image(tag, file, target)


def image(tag: str, file: Path, target: str = "", *, cached: bool = True) -> None:
    """Build an image as "docker build" would."""
    print(f"building {tag.rpartition('/')[2]}", flush=True)
    stage = ("--target", target) if target else ()
    options = ("--isolation=chroot", "--format=docker", f"--build-arg=BASE={BASE}")
    layers = "--layers" if cached else "--no-cache"
    buildah("bud", layers, *options, *_pip_secrets(), *stage, "-f", file, "-t", tag, ROOT)


def _base() -> None:
    """Make the image of Debian that the others begin with, as debian:slim is."""
    if BASE in buildah("images", "--format", "{{.Name}}").split():
        return
    print(f"building base: Debian {SUITE}", flush=True)
    folder = CACHE / "debian"
    shutil.rmtree(folder, ignore_errors=True)
    run("debootstrap", "--variant=minbase", SUITE, folder, _mirror())
    (folder / "etc/dpkg/dpkg.cfg.d/docker").write_text(
        "".join(f"path-exclude /usr/share/{name}/*\n" for name in _EXCLUDED)
    )
    for left in (
        *(folder / "usr/share" / name for name in _EXCLUDED),
        *(folder / "var" / name for name in ("cache/apt", "cache/debconf", "lib/apt/lists", "log")),
    ):
        shutil.rmtree(left, ignore_errors=True)
        left.mkdir()
    container = buildah("from", "scratch").strip()
    buildah("add", "-q", container, folder, "/")
    buildah("commit", "-q", container, BASE)
    buildah("rm", container)
    shutil.rmtree(folder)


def _mirror() -> str:
    """Return the mirror of Debian that this machine itself uses."""
    targets = ("Created-By: Packages", "Origin: Debian", "Label: Debian")
    found = run("apt-get", "indextargets", "--format", "$(REPO_URI)", *targets).split()
    assert found, "apt-get knows no mirror of Debian"
    return found[0]


def _pip_secrets() -> list[str]:
    """Let pip inside the build reach what pip here reaches: its configuration and certificates."""
    listed = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    known = {}
    for line in listed:
        name, _, value = line.partition("=")
        # The environment comes last, and wins.
        known[name.rpartition(".")[2]] = value.strip("'\"")
    config = configparser.RawConfigParser()
    config["global"] = {
        name: known[name]
        for name in ("index-url", "proxy", "trusted-host", "default-timeout")
        if name in known
    }
    secrets = []
    if "cert" in known:
        config["global"]["cert"] = "/run/secrets/certificates"
        secrets.append(f"--secret=id=certificates,src={known['cert']}")
    path = CACHE / "pip.conf"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        config.write(file)
    return [*secrets, f"--secret=id=pip,src={path}"]


def files(tag: str) -> dict[str, str]:
    """Return the files of an image: of each, who may do what, and a hash of what is in it."""
    container = buildah("from", tag).strip()
    try:
        root = Path(buildah("mount", container).strip())
        return {str(path.relative_to(root)): _state(path) for path in root.rglob("*")}
    finally:
        buildah("rm", container)


def _state(path: Path) -> str:
    about = path.lstat()
    if path.is_symlink():
        content = os.readlink(path)
    else:
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return f"{about.st_mode:o} {about.st_uid}:{about.st_gid} {content}"


@dataclass(frozen=True)
class Size:
    """Bytes of the agent's image: all of it, and without Debian and its Python."""

    whole: int
    own: int


def size() -> Size:
    whole, python = (
        json.loads(podman("image", "inspect", name))[0]["Size"] for name in (AGENT, PYTHON)
    )
    return Size(whole, whole - python)


def main() -> None:
    build()
    found = size()
    print(
        f"runtime image: {found.whole / MEGABYTE:.1f} MB, "
        f"{found.own / MEGABYTE:.1f} MB of it on top of Debian and Python; "
        f"limit {LIMIT / MEGABYTE:.0f} MB"
    )


if __name__ == "__main__":
    main()
