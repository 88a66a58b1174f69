"""Proves the wiring end to end: HAProxy, the agent, the store, the edge tables, the ops API.

``facts`` asks all of them, ``checks`` says what the answers mean. Other people's files are not
read: what counts is what runs.
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
    """Return what is well and what is not.

    Args:
        config: what the agent runs with.
        client: of its ops API.
        probe: a URL of the application, to which one request is sent through HAProxy.
        clock: the time here, in epoch seconds.
    """
    return judge(await gather(config, Api(client), probe, clock), config.limits_in_force())
