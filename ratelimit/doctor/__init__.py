"""Checks a running installation: HAProxy, the agent, the store, the edge tables, the API.

``gather`` collects facts from the running programs, ``judge`` turns them into checks. Configuration
files of other programs are not read.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ratelimit.doctor.findings import Check, State
from ratelimit.doctor.gather import Api, gather
from ratelimit.doctor.judge import judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratelimit.api.client import Client
    from ratelimit.config import Config

__all__ = ["Check", "State", "diagnose"]


async def diagnose(
    config: Config, client: Client, probe: str = "", clock: Callable[[], float] = time.time
) -> list[Check]:
    """Return the checks of an installation.

    Args:
        config: the agent's configuration.
        client: of its API.
        probe: URL of the application for one request through HAProxy, or empty.
        clock: returns the local time in epoch seconds.
    """
    return judge(await gather(config, Api(client), probe, clock), config.limits_in_force())
