"""Proves the wiring end to end: HAProxy, the agent, the store, the edge tables, the ops API.

``facts`` asks all of them, ``checks`` says what the answers mean. Other people's files are not
read: what counts is what runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp

from ratelimit.doctor.checks import Check, State, judge
from ratelimit.doctor.facts import Api, gather

if TYPE_CHECKING:
    from ratelimit.config import Config

__all__ = ["Check", "State", "diagnose"]


async def diagnose(config: Config, url: str, token: str = "", probe: str = "") -> list[Check]:
    """Return what is well and what is not.

    Args:
        config: what the agent runs with.
        url: of its ops API, without a path.
        token: for it, if it wants one.
        probe: a URL of the application, to which one request is sent through HAProxy.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        facts = await gather(config, Api(session, url.rstrip("/")), probe)
    return judge(facts, config.limits_in_force())
