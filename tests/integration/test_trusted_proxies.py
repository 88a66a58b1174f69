"""Who the client is behind load balancers and CDNs, and how requests without a name are counted."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ratelimit.haproxy import files
from tests.integration.world import World, run, until

pytestmark = pytest.mark.integration


CDN = "173.245.48.10"
"""An address of the CDN that stands before the load balancer, when there is one."""


def behind(balancers: str, cdn: str = "") -> Callable[[Path], object]:
    """Return what writes the lists of trusted proxies into HAProxy's folder."""

    def edit(files: Path) -> None:
        (files / "lb.lst").write_text(balancers)
        (files / "cdn.lst").write_text(cdn)

    return edit


async def denied(w: World) -> dict[str, int]:
    """Return how many requests each of HAProxy's reasons has refused."""
    header, *rows = [
        line.split(",") for line in (await w.runtime("show stat")).lstrip("# ").splitlines() if line
    ]
    found = [dict(zip(header, row, strict=False)) for row in rows]
    return {
        row["pxname"]: int(row["dreq"])
        for row in found
        if row["svname"] == "BACKEND" and row["pxname"].startswith("rl_")
    }


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


def test_requests_without_a_name_are_counted_by_the_proxy_they_come_from(tmp_path: Path) -> None:
    limits = (
        "[limits.default]\nwindow = '30s'\n[limits.unknown]\nrate = 5\nwindow = '30s'\n"
        "[limits.api_key]\nrate = 3\nwindow = '30s'\nblock = []\n"
    )

    async def test(w: World) -> None:
        balancer, other, edge = w.client("127.6.0.1"), w.client("127.6.0.2"), w.client("127.7.0.1")
        assert await balancer.statuses(8) == [200] * 5 + [429] * 3
        refused = await balancer.get(X_Forwarded_For="none of them")
        assert refused.status == 429, "nor does an unreadable header escape it"
        assert refused.headers["ratelimit-policy"] == '"unknown";q=5;w=30'
        named = [(await balancer.get(X_Forwarded_For="192.0.2.1")).status for _ in range(9)]
        assert named == [200] * 9, "its clients are others"
        assert await other.statuses(5) == [200] * 5
        assert await edge.statuses(6) == [200] * 5 + [429], "the CDN itself is such a proxy"

        # Behind the balancer, too, the edge of the CDN is known, and its clients have one count.
        behind = [(await other.get(X_Forwarded_For=CDN)).status for _ in range(6)]
        assert behind == [200] * 5 + [429]
        assert await denied(w) == {"rl_edge": 0, "rl_agent": 0, "rl_local": 0, "rl_unknown": 6}
        assert "used:0" in await w.runtime("show table t_block"), "no proxy is blocked"

        # To leave out the name does not help a client that has a key.
        third = w.client("127.6.0.3")
        keyed = [(await third.get(X_API_Key="k")).status for _ in range(4)]
        assert keyed == [200] * 3 + [429]

    edit = behind("127.6.0.0/24\n", f"{CDN}\n127.7.0.0/24\n")
    run(tmp_path, test, limits, edit=edit, RATELIMIT_API_KEYS="1")


def test_requests_without_a_name_are_counted_while_the_agent_is_down(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        balancer, client = w.client("127.6.0.1"), w.client("127.6.1.1")
        answers = [await balancer.get() for _ in range(100)]
        refused = [answer.headers for answer in answers if answer.status == 429]
        # The limit a second, and what a slow machine needs beyond one second.
        seconds = sum(answer.seconds for answer in answers)
        assert 5 <= len(answers) - len(refused) <= 5 * (seconds + 1)
        assert {told["ratelimit-policy"] for told in refused} == {'"unknown";q=5;w=1'}
        assert {told["retry-after"] for told in refused} == {"1"}
        assert (await balancer.get(X_Forwarded_For="192.0.2.1")).status == 200
        assert await client.statuses(50) == [200] * 50
        found = await denied(w)
        assert found == {"rl_edge": 0, "rl_agent": 0, "rl_local": 0, "rl_unknown": len(refused)}
        assert "used:1" in await w.runtime("show table t_unknown")
        assert "used:2" in await w.runtime("show table t_alone")

    edit = behind("127.6.0.0/24\n")
    run(tmp_path, test, agent=False, edit=edit, RATELIMIT_UNKNOWN_RATE="5")


def test_an_address_that_is_named_is_counted_even_if_it_is_a_trusted_proxy(tmp_path: Path) -> None:
    """Such as a program on the load balancer, or one that runs in the CDN."""

    async def test(w: World) -> None:
        balancer = w.client("127.6.0.1")
        for named in ({"X_Forwarded_For": "127.6.0.9"}, {"CF_Connecting_IP": CDN}):
            headers = {"X_Forwarded_For": CDN} | named
            found = Counter([(await balancer.get(**headers)).status for _ in range(120)])
            assert found == {200: 100, 429: 20}
        assert w.requests == {"127.6.0.9": 100, CDN: 100}

    edit = behind("127.6.0.0/24\n", f"{CDN}\n")
    run(tmp_path, test, "[limits.default]\nwindow = '30s'\n", edit=edit)


def test_no_proxy_is_trusted_as_shipped() -> None:
    for name in ("lb.lst", "cdn.lst"):
        lines = (files() / name).read_text().splitlines()
        assert lines and all(line.startswith("#") for line in lines)
