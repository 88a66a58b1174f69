"""Who the client is behind load balancers and CDNs, and what becomes of requests that do not say."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.world import World, run, until

pytestmark = pytest.mark.integration


def behind(balancers: str) -> Callable[[Path], object]:
    """Return what writes the list of trusted load balancers into HAProxy's folder."""
    return lambda files: (files / "lb.lst").write_text(balancers)


def test_a_proxy_that_names_no_client_is_not_one_of_the_clients(tmp_path: Path) -> None:
    """Not even where a question about its request has no answer."""

    async def test(w: World) -> None:
        assert w.agent is not None
        proxy, client = w.client("127.6.0.1"), w.client("127.6.1.1")
        w.agent.send_signal(signal.SIGSTOP)
        # With a key there is a question, whoever sent the request.
        assert [(await proxy.get(X_API_Key="k")).status for _ in range(6)] == [200] * 6
        found = [(await client.get(X_API_Key="k")).status for _ in range(20)]
        assert 429 in found, "a client of its own is counted by HAProxy alone"
        await until(lambda: w.agent_is("DOWN"), "HAProxy gives the agent up")
        assert [(await proxy.get(X_API_Key="k")).status for _ in range(6)] == [200] * 6

    run(
        tmp_path,
        test,
        edit=behind("127.6.0.0/24\n"),
        RATELIMIT_API_KEYS="1",
        RATELIMIT_ALONE_RATE="3",
    )
