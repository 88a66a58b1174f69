"""The main job, with real HAProxy and real clients on addresses of their own."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from http_sfv.list import List

from tests.helpers.world import LONGEST, Answer, World, free_port, run, until, world

pytestmark = pytest.mark.integration


def policy(answer: Answer) -> tuple[str, dict[str, int]]:
    return single(answer.headers["ratelimit-policy"])


def quota(answer: Answer) -> tuple[str, dict[str, int]]:
    return single(answer.headers["ratelimit"])


def single(field: str) -> tuple[str, dict[str, int]]:
    """Return the item of a structured field that is a list of one (RFC 9651)."""
    parsed = List()
    parsed.parse(field.encode())
    (item,) = parsed
    return item.value, dict(item.params)


LONG = "[limits.default]\nwindow = '30s'\n"
"""The default limit in a window in which a machine that does much else can exceed it, too."""

SHORT = "[limits.default]\nrate = 20\nwindow = '2s'\nblock = ['3s', '5s']\n"
"""Blocks that a test can wait for; longer than the window, so that no hit before them counts."""


def test_a_client_under_the_limit_is_never_refused(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        async def steady(source: str) -> list[int]:
            client = w.client(source)
            found = []
            due = time.monotonic()
            for _ in range(180):
                # 90 a second. What is late delays the others, or there would be more in a second.
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due = max(due, time.monotonic()) + 1 / 90
                found.append((await client.get()).status)
            return found

        for statuses in await asyncio.gather(*(steady(f"127.1.0.{n}") for n in range(1, 6))):
            assert Counter(statuses) == {200: 180}

    run(tmp_path, test)


def test_haproxy_asks_the_agent_with_small_buffers_too(tmp_path: Path) -> None:
    def edit(files: Path) -> None:
        config = files / "haproxy.cfg"
        text = config.read_text()
        assert text.count("\nglobal\n") == 1
        config.write_text(text.replace("\nglobal\n", "\nglobal\n    tune.bufsize 8192\n"))

    async def main() -> None:
        async with asyncio.timeout(LONGEST), world(tmp_path, edit=edit) as w:
            assert (await w.client("127.0.0.7").get()).status == 200
            assert w.checks() == 1

    asyncio.run(main())


def test_above_the_limit_a_client_is_refused_and_others_are_not(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        attacker, visitor = w.client("127.2.0.1"), w.client("127.2.0.2")
        statuses = await attacker.statuses(300)
        assert statuses == [200] * 100 + [429] * 200
        assert await visitor.statuses(20) == [200] * 20
        assert w.requests == {"127.2.0.1": 100, "127.2.0.2": 20}

        refused = await attacker.get()
        assert 1 <= int(refused.headers["retry-after"]) <= 11
        assert quota(refused) == ("default", {"r": 0, "t": int(refused.headers["retry-after"])})
        assert refused.headers["content-type"] == "application/problem+json"
        assert json.loads(refused.body)["status"] == 429

    run(tmp_path, test, LONG)


def test_the_edge_denies_without_asking_until_the_block_ends(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        client = w.client("127.3.0.1")
        assert await client.statuses(60) == [200] * 20 + [429] * 40
        table = await w.runtime("show table t_block")
        found = re.search(r"key=::ffff:127\.3\.0\.1 .*gpt0=(\d+)", table)
        assert found, table
        end = int(found[1])
        assert 0 < end - time.time() <= 4

        async def passes() -> bool:
            return (await client.get()).status == 200

        await until(passes, "the block ends")
        assert time.time() >= end
        # 20 and the one that was refused were asked before the block, one after it.
        assert w.checks() == 22

    run(tmp_path, test, SHORT)


def test_the_second_block_is_longer(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        client = w.client("127.3.0.2")

        async def passes() -> bool:
            return (await client.get()).status == 200

        waits = []
        for _ in range(2):
            while (answer := await client.get()).status == 200:
                pass
            waits.append(int(answer.headers["retry-after"]))
            await until(passes, "the block ends")
        assert waits[0] in (3, 4)
        assert waits[1] in (5, 6)

    run(tmp_path, test, SHORT)


def test_a_throttled_client_is_asked_about_each_time_and_told_its_quota(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        client = w.client("127.3.0.3")
        await client.statuses(100)
        refused = await client.get()
        assert refused.status == 429
        assert refused.headers["ratelimit"].startswith('"default";r=0;t=')
        assert refused.headers["ratelimit-policy"].startswith('"default";q=100')
        assert "127.3.0.3" not in await w.runtime("show table t_block")
        assert w.checks() == 101

    run(tmp_path, test, f"{LONG}block = []\n")


def test_http2_with_a_hundred_streams_at_once(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        transport = httpx.AsyncHTTPTransport(
            http1=False,
            http2=True,
            local_address="127.4.0.1",
            limits=httpx.Limits(max_connections=1),
        )
        async with httpx.AsyncClient(transport=transport, timeout=10) as client:
            url = f"http://127.0.0.1:{w.port}/"
            answers = await asyncio.gather(*(client.get(url) for _ in range(100)))
            assert {a.http_version for a in answers} == {"HTTP/2"}
            assert Counter(a.status_code for a in answers) == {200: 100}
            answers = await asyncio.gather(*(client.get(url) for _ in range(100)))
            assert Counter(a.status_code for a in answers) == {429: 100}
        assert w.requests == {"127.4.0.1": 100}

    run(tmp_path, test, LONG)


def test_ipv6(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        client = w.client("::1")
        assert await client.statuses(200) == [200] * 100 + [429] * 100
        assert w.requests == {"::1": 100}
        # From 3.0 on, ipmask() takes ::1 for the IPv4 address that it was compatible with.
        table = await w.runtime("show table t_block")
        assert "key=:: " in table or "key=::ffff:0.0.0.1 " in table, "as its /64"
        assert (await w.client("127.0.0.1").get()).status == 200

    run(tmp_path, test, LONG)


@pytest.mark.parametrize("direct", [{}, {"RATELIMIT_DIRECT": "reject"}])
def test_ipv4_clients_of_a_socket_of_both_kinds(tmp_path: Path, direct: dict[str, Any]) -> None:
    async def test(w: World) -> None:
        one, other = w.client("127.4.1.1"), w.client("127.4.1.2")
        assert await one.statuses(101) == [200] * 100 + [429]
        assert "key=::ffff:127.4.1.1 " in await w.runtime("show table t_block")
        assert (await other.get()).status == 200, "all of them are not one /64"

        w.stop_agent()
        await until(lambda: w.agent_is("DOWN"), "HAProxy misses the agent")
        others = [w.client(f"127.4.2.{n}") for n in range(1, 5)]
        for client in others:
            assert await client.statuses(60) == [200] * 60, "nor while HAProxy counts alone"

    port = free_port()
    run(tmp_path, test, LONG, port=port, RATELIMIT_LISTEN=f"[::]:{port}", **direct)


def test_ipv4_clients_behind_nat64(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        (w.folder / "haproxy" / "lb.lst").write_text("127.6.0.0/24\n")
        await w.reload()
        balancer = w.client("127.6.0.1")

        async def statuses(client: str, count: int) -> set[int]:
            return {(await balancer.get(X_Forwarded_For=client)).status for _ in range(count)}

        assert await statuses("64:ff9b::c000:207", 60) == {200}
        assert await statuses("192.0.2.7", 40) == {200}
        assert await statuses("64:ff9b::c000:207", 1) == {429}, "one client by either way"
        assert "key=64:ff9b::c000:207 " in await w.runtime("show table t_block")
        assert await statuses("64:ff9b::c000:208", 1) == {200}, "all of them are not one /64"

        w.stop_agent()
        await until(lambda: w.agent_is("DOWN"), "HAProxy misses the agent")
        for n in range(1, 5):
            assert await statuses(f"64:ff9b::c000:30{n}", 60) == {200}

    run(tmp_path, test, LONG)


def test_a_header_of_an_untrusted_peer_is_not_believed(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        client = w.client("127.5.0.1")
        for n in range(150):
            last = await client.get(
                X_Forwarded_For=f"198.51.100.{n}", CF_Connecting_IP=f"192.0.2.{n}"
            )
        assert last.status == 429
        assert w.requests == {"127.5.0.1": 100}

    run(tmp_path, test, LONG)


def test_behind_a_trusted_load_balancer_and_cdn_the_client_counts(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        edge = "173.245.48.10"  # an address of a CDN
        (w.folder / "haproxy" / "lb.lst").write_text("127.6.0.0/24\n")
        (w.folder / "haproxy" / "cdn.lst").write_text(f"{edge}\n")
        await w.reload()
        balancer = w.client("127.6.0.1")

        for n in range(150):
            alone = await balancer.get(X_Forwarded_For=f"192.0.2.77, 198.51.100.{n % 2}")
        assert alone.status == 200, "the last hop is the client, and there are two of 75 each"

        for _ in range(150):
            behind = await balancer.get(X_Forwarded_For=edge, CF_Connecting_IP="203.0.113.5")
        assert behind.status == 429
        assert w.requests["203.0.113.5"] == 100
        other = await balancer.get(X_Forwarded_For=edge, CF_Connecting_IP="203.0.113.6")
        assert other.status == 200
        spoofed = await balancer.get(X_Forwarded_For="198.51.100.9", CF_Connecting_IP="203.0.113.5")
        assert spoofed.status == 200, "only the CDN may name the client by its header"

    run(tmp_path, test, LONG)


def test_the_log_tells_verdict_limit_and_cost(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        def lines() -> list[str]:
            return [line for line in w.haproxy_log().splitlines() if "127.7.0.1:" in line]

        await w.client("127.7.0.1").statuses(103)
        await until(lambda: len(lines()) == 103, "a line for each request")
        tails = [line.rsplit('"', 1)[1].split() for line in lines()]
        assert [tail[0] for tail in tails] == ["allow"] * 100 + ["block"] + ["edge"] * 2
        assert tails[100][1] == "default"
        assert all(tail[2].isdecimal() for tail in tails[:101]), "milliseconds of the question"

    run(tmp_path, test, LONG)


def test_the_direct_variant_refuses_at_the_connection(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        client = w.client("127.8.0.1")
        statuses = []
        refused = 0
        for _ in range(150):
            try:
                statuses.append((await client.get()).status)
            except (ConnectionError, asyncio.IncompleteReadError):
                refused += 1
                await client.close()
        assert statuses == [200] * 100 + [429]
        assert refused == 49
        assert (await w.client("127.8.0.2").get()).status == 200
        assert w.requests["127.8.0.1"] == 100

    run(tmp_path, test, LONG, RATELIMIT_DIRECT="reject")


def test_limits_of_their_own_for_logins_and_api_keys(tmp_path: Path) -> None:
    limits = (
        "[limits.default]\nrate = 50\nheaders = true\n[limits.login]\nrate = 5\nwindow = '10s'\n"
        "[limits.api_key]\nrate = 20\nwindow = '10500ms'\n"
    )

    async def test(w: World) -> None:
        client = w.client("127.9.0.1")
        posted = [(await client.send("POST", "/login")).status for _ in range(8)]
        assert posted == [200] * 5 + [429] * 3
        assert (await client.get("/login")).status == 200, "who can't log in may still read"
        assert "127.9.0.1" not in await w.runtime("show table t_block")

        keyed = [(await client.get(X_API_Key="k1")).status for _ in range(22)]
        assert keyed == [200] * 20 + [429] * 2
        other = w.client("127.9.0.2")
        assert (await other.get(X_API_Key="k1")).status == 429, "the key is blocked, wherever from"
        assert (await other.get(X_API_Key="k2")).status == 200
        refused = await other.get(X_API_Key="k1")
        assert refused.headers["ratelimit-policy"] == '"api_key";q=20'

    run(tmp_path, test, limits, RATELIMIT_LOGIN_PATH="/login", RATELIMIT_API_KEYS="1")


def test_the_header_fields_are_structured_fields(tmp_path: Path) -> None:
    limits = "[limits.default]\nrate = 3\nwindow = '10s'\nheaders = true\nblock = []\n"

    async def test(w: World) -> None:
        client = w.client("127.9.0.3")
        left = []
        for _ in range(5):
            answer = await client.get()
            assert policy(answer) == ("default", {"q": 3, "w": 10})
            limit, told = quota(answer)
            assert limit == "default"
            assert told["t"] >= 1
            left.append((answer.status, told["r"]))
        assert left == [(200, 2), (200, 1), (200, 0), (429, 0), (429, 0)]

    run(tmp_path, test, limits)


def test_of_several_limits_the_one_with_the_fewest_hits_left_is_told(tmp_path: Path) -> None:
    limits = (
        "[limits.default]\nrate = 50\nwindow = '10s'\nheaders = true\n"
        "[limits.login]\nrate = 5\nwindow = '10500ms'\nheaders = true\n"
        "[limits.api_key]\nrate = 1000\nheaders = true\n"
    )

    async def test(w: World) -> None:
        client = w.client("127.9.0.5")
        for left in (49, 48):
            answer = await client.get(X_API_Key="k1")
            assert quota(answer)[0] == "default"
            assert quota(answer)[1]["r"] == left
            assert policy(answer) == ("default", {"q": 50, "w": 10})
        for left in (4, 3, 2, 1, 0):
            answer = await client.send("POST", "/login", X_API_Key="k1")
            assert answer.status == 200
            assert quota(answer)[0] == "login"
            assert quota(answer)[1]["r"] == left
            assert policy(answer) == ("login", {"q": 5})
        answer = await client.send("POST", "/login", X_API_Key="k1")
        assert (answer.status, quota(answer)[0]) == (429, "login")

    run(tmp_path, test, limits, RATELIMIT_LOGIN_PATH="/login", RATELIMIT_API_KEYS="1")


def test_shadow_lets_all_pass_and_the_edge_remembers_nothing(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        client = w.client("127.9.0.4")
        assert await client.statuses(300) == [200] * 300
        assert "127.9.0.4" not in await w.runtime("show table t_block")

        def tails() -> list[list[str]]:
            lines = [line for line in w.haproxy_log().splitlines() if "127.9.0.4:" in line]
            return [line.rsplit('"', 1)[1].split() for line in lines]

        await until(lambda: len(tails()) == 300, "a line for each request")
        found = Counter((tail[0], tail[1], tail[4]) for tail in tails())
        assert found == {("allow", "-", "-"): 100, ("allow", "-", "block:default"): 200}
        assert w.checks() == 300

    run(tmp_path, test, f"{LONG}shadow = true\n")


def test_a_network_is_blocked_at_the_edge_as_it_is_counted(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        assert Counter(await w.client("127.10.0.1").statuses(150)) == {200: 100, 429: 50}
        assert (await w.client("127.10.0.200").get()).status == 429
        assert "key=::ffff:127.10.0.0 " in await w.runtime("show table t_block")
        assert (await w.client("127.10.1.1").get()).status == 200
        assert w.checks() == 102, "of the network, 101 were asked about"

    limits = f"{LONG}ipv4_prefix = 24\n"
    run(tmp_path, test, limits, RATELIMIT_IPV4_PREFIX="24")


@pytest.mark.parametrize(
    ("prefix", "network", "same", "other"),
    [
        (64, "2001:db8:1:ff01::", "2001:db8:1:ff01:8::2", "2001:db8:1:ff02::1"),
        (56, "2001:db8:1:ff00::", "2001:db8:1:ff02::2", "2001:db8:1:fe01::1"),
        (48, "2001:db8:1::", "2001:db8:1:1::2", "2001:db8:2:ff01::1"),
    ],
)
def test_an_ipv6_customer_is_one_client(
    tmp_path: Path, prefix: int, network: str, same: str, other: str
) -> None:
    async def test(w: World) -> None:
        (w.folder / "haproxy" / "lb.lst").write_text("127.10.2.1\n")
        await w.reload()
        balancer = w.client("127.10.2.1")

        async def ask(client: str) -> int:
            return (await balancer.get(X_Forwarded_For=client)).status

        found = [await ask("2001:db8:1:ff01::1") for _ in range(30)]
        assert found == [200] * 20 + [429] * 10
        assert await ask(same) == 429
        assert f"key={network} " in await w.runtime("show table t_block")
        assert await ask(other) == 200
        assert w.checks() == 22, "of the customer, 21 were asked about"

    limits = f"[limits.default]\nrate = 20\nwindow = '10s'\nipv6_prefix = {prefix}\n"
    run(tmp_path, test, limits, RATELIMIT_IPV6_PREFIX=str(prefix))


def test_a_reload_changes_limits_and_lists_under_load(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        listed, other = w.client("127.11.0.1"), w.client("127.11.0.2")
        assert await listed.statuses(150) == [200] * 150, "on the allow list"
        assert await other.statuses(60) == [200] * 60

        w.configure("[limits.default]\nrate = 80\nwindow = '1m'\nblock = []\n" + deny)
        await until(lambda: w.agent_log().count("configuration reloaded") == 1, "a reload")
        assert (await listed.get()).status == 429
        assert Counter(await other.statuses(60)) == {200: 20, 429: 40}, "60 were counted before"

        w.configure("[limits.default]\nrate = 0\n")
        await until(lambda: "limits.default.rate" in w.agent_log(), "what is wrong")
        assert (await listed.get()).status == 429
        w.configure("[lists]\ndeny_files = ['no such']\n")
        await until(lambda: "no such: No such file" in w.agent_log(), "what is wrong")
        assert (await listed.get()).status == 429, "a bad file changes nothing"

    deny = "[lists]\ndeny = ['127.11.0.1']\n"
    start = "[limits.default]\nrate = 100\nwindow = '1m'\n[lists]\nallow = ['127.11.0.1']\n"
    run(tmp_path, test, start)
