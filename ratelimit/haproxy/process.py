"""Runs HAProxy as a child process with a shipped configuration.

Environment variables pass the settings to the configuration; no file is generated.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import re
import shutil
import signal
from pathlib import Path

from ratelimit.exceptions import StartError

MIN_VERSION = (2, 6)

_ACCOUNTS = ("haproxy", "nobody")  # the user of HAProxy's package, or one that always exists
_SBIN = "/usr/local/sbin:/usr/sbin"  # directories that are not on every user's PATH
_INSTALL = "install it with: apt-get install haproxy"
_VERSION_TIMEOUT = 5  # seconds
_STOP_TIMEOUT = 2  # seconds; SIGUSR1 lets HAProxy finish its sessions, SIGTERM ends it


def files() -> Path:
    """Return the directory of the HAProxy files: the wheel's or the checkout's."""
    package = Path(__file__).parent.parent
    installed = package / "haproxy_files"
    return installed if installed.is_dir() else package.parent / "haproxy"


async def find() -> str:
    """Return the path of HAProxy. Raises StartError if it is missing or too old."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path=_SBIN)
    if program is None:
        raise StartError(f"HAProxy is not installed; {_INSTALL}")
    process = await asyncio.create_subprocess_exec(
        program, "-v", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _VERSION_TIMEOUT)
    except TimeoutError:
        process.kill()
        raise StartError(f"{program} -v does not answer") from None
    found = re.search(rb"version (\d+)\.(\d+)", output)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < MIN_VERSION:
        wanted = ".".join(map(str, MIN_VERSION))
        have = ".".join(map(str, version)) if found else "of an unknown version"
        raise StartError(f"{program} is {have}, but {wanted} or later is required; {_INSTALL}")
    return program


def unprivileged() -> pwd.struct_passwd | None:
    """Return the user for HAProxy if this process is root, otherwise None. Raises StartError."""
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise StartError(f"there is no user {' or '.join(_ACCOUNTS)} for HAProxy to run as")


def confine(variable: str, agent: Path, account: pwd.struct_passwd | None) -> dict[str, str]:
    """Return the settings for HAProxy to reach the agent's socket file, which ``variable`` names.

    With an ``account``, HAProxy runs as that user, chrooted to the directory of the socket.
    """
    if account is None:
        return {variable: f"unix@{agent}"}
    os.chown(agent, -1, account.pw_gid)
    return {
        variable: f"unix@/{agent.name}",
        "RATELIMIT_USER": account.pw_name,
        "RATELIMIT_GROUP": grp.getgrgid(account.pw_gid).gr_name,
        "RATELIMIT_CHROOT": str(agent.parent),
    }


class HAProxy:
    """An HAProxy in the foreground; its log goes to standard output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, program: str, file: str, settings: dict[str, str]) -> HAProxy:
        """Start ``program`` with a shipped configuration and ``settings`` as its environment."""
        folder = files()
        process = await asyncio.create_subprocess_exec(
            program,
            "-db",
            "-f",
            str(folder / file),
            cwd=folder,
            env={**os.environ, **settings},
            stdin=asyncio.subprocess.DEVNULL,
            # This process handles Ctrl-C and ends HAProxy in order.
            start_new_session=True,
        )
        return cls(process)

    async def wait(self) -> int:
        """Wait for its end and return the exit status."""
        return await self._process.wait()

    async def stop(self) -> None:
        """Let HAProxy finish its sessions, then end it."""
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is not None:
                return
            self._process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _STOP_TIMEOUT)
