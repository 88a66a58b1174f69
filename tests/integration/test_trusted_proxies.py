"""Who the client is behind load balancers and CDNs, and how requests without a name are counted."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ratelimit.haproxy.process import files
from tests.helpers.world import (
    PEERS_FILE,
    SHIPPED,
    SPOE_FILE,
    World,
    closed,
    free_port,
    run,
    until,
)
from tests.integration.certificates import make_certificate

pytestmark = pytest.mark.integration


CDN = "173.245.48.10"
"""An address of the CDN that stands before the load balancer, when there is one."""


in_both_modes = pytest.mark.parametrize("file", [SPOE_FILE, PEERS_FILE])


def behind(balancers: str, cdn: str = "") -> Callable[[Path], object]:
    """Return what writes the lists of trusted proxies into HAProxy's folder."""

    def edit(files: Path) -> None:
        (files / "lb.lst").write_text(balancers)
        (files / "cdn.lst").write_text(cdn)

    return edit


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
        processing=SHIPPED,
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
        assert await w.denied() == {"rl_unknown": 6}
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
        found = await w.denied()
        assert found == {"rl_unknown": len(refused)}
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


IPV4 = "192.0.2.77"
IPV6 = "2001:db8::77"

FORMS = {
    IPV4: [
        *(IPV4, f"{IPV4}:443", f'"{IPV4}"', f'"{IPV4}:443"', f"::ffff:{IPV4}", f"[::ffff:{IPV4}]"),
        *(f"198.51.100.1, {IPV4}", f"198.51.100.1,{IPV4},", f"198.51.100.1, {IPV4}, ,", f",{IPV4}"),
        *(f" , , {IPV4} , ,", f"[2001:db8::1]:443, {IPV4}:443", f"unknown, {IPV4}\t"),
    ],
    IPV6: [
        *(IPV6, f"[{IPV6}]", f"[{IPV6}]:443", f'"{IPV6}"', f'"[{IPV6}]"', f'"[{IPV6}]:443"'),
        *(f"{IPV6}%eth0", f"[{IPV6}%25eth0]:443", "2001:DB8:0:0:0:0:0:77", f"198.51.100.1,{IPV6}"),
        *(f"198.51.100.1, [{IPV6}]:443,", f"[{IPV6}],,"),
    ],
}
"""Ways to write an address into a header that names it."""


@in_both_modes
@pytest.mark.parametrize("header", ["X_Forwarded_For", "CF_Connecting_IP"])
def test_an_address_is_read_however_it_is_written(tmp_path: Path, header: str, file: str) -> None:
    async def test(w: World) -> None:
        proxy = w.client("127.6.0.1" if header == "X_Forwarded_For" else "127.7.0.1")
        for address, forms in FORMS.items():
            for form in forms:
                seen = (await proxy.get(**{header: form})).body.decode().strip()
                assert seen.removeprefix("::ffff:") == address, form
        for form in (
            "",
            ",",
            "unknown",
            "_hidden",
            "256.1.1.1",
            "1.2.3",
            f"{IPV6}:zz",
            ("," * 9000),
        ):
            seen = (await proxy.get(**{header: form})).body.decode().strip()
            assert seen == proxy.source, f"{form} names no client"

        def verdicts() -> Counter[str]:
            lines = [line for line in w.haproxy_log().splitlines() if "GET / " in line]
            return Counter(line.rsplit('"', 1)[1].split()[0] for line in lines)

        named = sum(map(len, FORMS.values()))
        await until(lambda: verdicts() == {"allow": named, "unknown": 8}, "all are logged")

    run(tmp_path, test, edit=behind("127.6.0.0/24\n", "127.7.0.0/24\n"), file=file)


def test_a_client_in_brackets_is_limited(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        proxy = w.client("127.6.0.1")
        headers = [f"[{IPV6}]", f"[{IPV6}]:443", IPV6]
        found = [(await proxy.get(X_Forwarded_For=headers[n % 3])).status for n in range(120)]
        assert found == [200] * 100 + [429] * 20

    limits = "[limits.default]\nwindow = '30s'\n[limits.unknown]\nrate = 1000\n"
    run(tmp_path, test, limits, edit=behind("127.6.0.0/24\n"))


CLAIMS = dict.fromkeys(
    [
        *("CF-Connecting-IP", "CF-Connecting-IPv6", "True-Client-IP", "X-Real-IP", "X-Client-IP"),
        *("X-Cluster-Client-IP", "Fastly-Client-IP", "X-Forwarded", "Forwarded", "Forwarded-For"),
        *(
            "Client-IP",
            "Proxy-Client-IP",
            "WL-Proxy-Client-IP",
            "X-Originating-IP",
            "X-Remote-Addr",
        ),
        *("X-Forwarded-For", "X_Forwarded_For", "X_Real_IP", "CF_Connecting_IP", "True_Client_IP"),
    ],
    "192.0.2.66",
)
"""Header fields by which a client may say that it is another."""


@in_both_modes
@pytest.mark.parametrize("direct", [{}, {"RATELIMIT_DIRECT": "reject"}])
def test_the_application_gets_no_address_that_nobody_vouches_for(
    tmp_path: Path, direct: dict[str, Any], file: str
) -> None:
    async def test(w: World) -> None:
        async def seen(client: str, **more: str) -> dict[str, str]:
            lines = [f"{name}: {value}" for name, value in (CLAIMS | more).items()]
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", w.port, local_addr=(client, 0)
            )
            writer.write("\r\n".join(["GET / HTTP/1.1", "Host: x", *lines, "", ""]).encode())
            await reader.readuntil(b"\r\n\r\n")
            await closed(writer)
            fields = [line.partition(": ") for line in w.head.splitlines()[1:] if line]
            return {name: value for name, _, value in fields if name != "host"}

        told = {"x-forwarded-for": "127.9.0.1", "x-forwarded-proto": "http"}
        assert await seen("127.9.0.1", **{"X-Forwarded-Proto": "https"}) == told
        if direct:
            return
        via = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
        told = {"x-forwarded-for": "192.0.2.7", "x-forwarded-proto": "https"}
        assert await seen("127.6.0.1", **via) == told
        assert await seen("127.6.0.1", **via | {"X-Forwarded-Proto": "ftp"}) == told | {
            "x-forwarded-proto": "http"
        }
        client = {"cf-connecting-ip": "192.0.2.66", "x-forwarded-for": "192.0.2.66"}
        assert await seen("127.7.0.1") == client | {"x-forwarded-proto": "http"}

    run(tmp_path, test, edit=behind("127.6.0.0/24\n", "127.7.0.0/24\n"), file=file, **direct)


@in_both_modes
def test_the_header_of_another_cdn(tmp_path: Path, file: str) -> None:
    async def test(w: World) -> None:
        proxy = w.client("127.7.0.1")
        headers = {"True_Client_IP": "192.0.2.7", "CF_Connecting_IP": "192.0.2.66"}
        assert (await proxy.get(**headers)).body == b"192.0.2.7\n"
        assert "true-client-ip: 192.0.2.7\r\n" in w.head and "192.0.2.66" not in w.head

    edit = behind("", "127.7.0.0/24\n")
    run(tmp_path, test, edit=edit, file=file, RATELIMIT_CDN_HEADER="True-Client-IP")


@pytest.mark.parametrize("direct", [{}, {"RATELIMIT_DIRECT": "reject"}])
def test_no_client_names_itself_by_the_header_of_a_cdn(
    tmp_path: Path, direct: dict[str, Any]
) -> None:
    """Whatever that header is called."""

    async def test(w: World) -> None:
        client = w.client("127.6.1.1")
        assert (await client.get(X_Azure_ClientIP="192.0.2.7")).body == b"127.6.1.1\n"
        assert "192.0.2.7" not in w.head

    run(tmp_path, test, RATELIMIT_CDN_HEADER="X-Azure-ClientIP", **direct)


def test_two_load_balancers_in_a_row(tmp_path: Path) -> None:
    """With the line that the README has for them."""

    def edit(folder: Path) -> None:
        (line,) = re.findall(r"http-request set-src .*-2.*", (folder / "README.md").read_text())
        (folder / "outer.lst").write_text("127.8.0.1\n")
        behind("127.6.0.1\n")(folder)
        path, config = "/etc/haproxy/outer.lst", folder / "haproxy.cfg"
        before = "    http-request set-src var(txn.hop) if hop_named\n"
        more = f"{before}    {line.replace(path, str(folder / 'outer.lst'))}\n"
        assert path in line and before in config.read_text()
        config.write_text(config.read_text().replace(before, more))

    async def test(w: World) -> None:
        inner = w.client("127.6.0.1")
        for chain, client in (
            ("198.51.100.9, [2001:db8::7]:80, 127.8.0.1", "2001:db8::7"),
            ("198.51.100.9, 192.0.2.7", "192.0.2.7"),
            ("none, 127.8.0.1", "127.8.0.1"),
        ):
            assert (await inner.get(X_Forwarded_For=chain)).body.decode().strip() == client

    run(tmp_path, test, edit=edit)


@in_both_modes
def test_a_connection_by_tls_is_told_of(tmp_path: Path, file: str) -> None:
    make_certificate(tmp_path / "site.pem")
    port = free_port()

    async def test(w: World) -> None:
        async with httpx.AsyncClient(verify=False) as client:  # noqa: S501 - a test's own certificate
            for headers in ({}, {"X-Forwarded-Proto": "http"}):
                await client.get(f"https://127.0.0.1:{port}/", headers=headers)
                assert "x-forwarded-proto: https\r\n" in w.head

    listen = f"127.0.0.1:{port} ssl crt {tmp_path}/site.pem"
    run(tmp_path, test, port=port, file=file, RATELIMIT_LISTEN=listen)


@pytest.mark.parametrize("direct", [{}, {"RATELIMIT_DIRECT": "reject"}])
def test_a_load_balancer_that_the_list_lacks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: dict[str, Any]
) -> None:
    port = free_port()
    monkeypatch.setenv("RATELIMIT_OPS__LISTEN", f"127.0.0.1:{port}")

    async def test(w: World) -> None:
        balancer, other = w.client("127.8.0.1"), w.client("127.8.0.2")
        for n in range(60):
            await balancer.get(X_Forwarded_For=f"192.0.2.{n % 20}, 198.51.100.1")
            await other.get(X_Forwarded_For="192.0.2.1")
        listed = w.client("127.6.0.1")
        for n in range(40):
            await listed.get(X_Forwarded_For=f"192.0.2.{n}")

        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as api:

            async def found() -> list[str]:
                status = (await api.get("/v1/status")).json()
                return [one["key"] for one in status["forwarders"]]

            async def is_found() -> bool:
                return bool(await found())

            await until(is_found, "it is found")
            keys = ["127.8.0.1", "127.6.0.1"] if direct else ["127.8.0.1"]
            assert await found() == keys
        assert "sends requests of many clients" in w.agent_log()
        # Whatever it says, it is one client: or an attacker would say so.
        passed = 60
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while (await balancer.get(X_Forwarded_For=f"192.0.2.{passed}")).status == 200:
                passed += 1
        assert passed == 100

    limits = "[limits.default]\nwindow = '1m'\n"
    run(tmp_path, test, limits, edit=behind("127.6.0.0/24\n"), **direct)
