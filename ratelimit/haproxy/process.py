"""HAProxy as a child process, run with the configuration that we ship.

Its settings travel in environment variables, which haproxy.cfg reads; nothing is generated.
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

_ACCOUNTS = ("haproxy", "nobody")  # that of HAProxy's package, else one that is everywhere
_SBIN = "/usr/local/sbin:/usr/sbin"  # where it is, and not on the path of everybody
_INSTALL = "install it with: apt-get install haproxy"
_VERSION_TIMEOUT = 5  # seconds
_STOP_TIMEOUT = 2  # seconds; HAProxy ends its sessions at SIGUSR1, and is ended at SIGTERM


def files() -> Path:
    """Return the folder of the HAProxy files: the wheel's, or the checkout's."""
    package = Path(__file__).parent.parent
    installed = package / "haproxy_files"
    return installed if installed.is_dir() else package.parent / "haproxy"


async def find() -> str:
    """Return the path of a HAProxy that is recent enough, or raise StartError."""
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
        raise StartError(f"{program} is {have}, but {wanted} or later is needed; {_INSTALL}")
    return program


def unprivileged() -> pwd.struct_passwd | None:
    """Return the account that HAProxy is to run as in root's place; None if we are not root."""
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise StartError(f"there is no user {' or '.join(_ACCOUNTS)} for HAProxy to run as")


def confine(agent: Path, account: pwd.struct_passwd | None) -> dict[str, str]:
    """Return the settings by which HAProxy reaches the agent's socket file.

    With an ``account`` it becomes that, and sees nothing but the folder of the socket.
    """
    if account is None:
        return {"RATELIMIT_SPOP": f"unix@{agent}"}
    os.chown(agent, -1, account.pw_gid)
    return {
        "RATELIMIT_SPOP": f"unix@/{agent.name}",
        "RATELIMIT_USER": account.pw_name,
        "RATELIMIT_GROUP": grp.getgrgid(account.pw_gid).gr_name,
        "RATELIMIT_CHROOT": str(agent.parent),
    }


class HAProxy:
    """A HAProxy in the foreground; its log goes to our standard output."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, program: str, settings: dict[str, str]) -> HAProxy:
        """Start ``program`` with the shipped configuration; ``settings`` are its variables."""
        folder = files()
        process = await asyncio.create_subprocess_exec(
            program,
            "-db",
            "-f",
            str(folder / "haproxy.cfg"),
            cwd=folder,
            env={**os.environ, **settings},
            stdin=asyncio.subprocess.DEVNULL,
            # A Ctrl-C at the terminal is ours to pass on, in order.
            start_new_session=True,
        )
        return cls(process)

    async def wait(self) -> int:
        """Wait for its end and return the exit code."""
        return await self._process.wait()

    async def stop(self) -> None:
        """Let it finish what it is doing, then end it."""
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is not None:
                return
            self._process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _STOP_TIMEOUT)
