"""The lines that haproxy/README.md has for existing configurations, in configurations of all kinds.

They are taken from the README as they are there.
"""

from __future__ import annotations

import asyncio
import functools
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from ratelimit.haproxy.process import files
from tests.helpers.scripted_peer import HTTP_REQ_CNT, ScriptedPeer, scripted_peer
from tests.helpers.world import (
    HAPROXY,
    PEERS_FILE,
    SPOE_FILE,
    Client,
    World,
    closed,
    free_port,
    run,
    until,
    world,
)
from tests.integration.certificates import make_certificate
from tests.integration.test_trusted_proxies import CLAIMS

pytestmark = pytest.mark.integration

CONFIGURATIONS = Path(__file__).parent / "existing"
NAMES = sorted(path.stem for path in CONFIGURATIONS.glob("*.cfg"))
LONG = "[limits.default]\nwindow = '30s'\n"


def pieces() -> dict[str, str]:
    """Return the pieces of the README by their names."""
    text = (files() / "README.md").read_text()
    found = re.findall(r"<!-- lines: (\w+) -->\n((?:    .*\n|\n(?=    ))+)", text)
    return {name: re.sub("(?m)^    ", "", lines) for name, lines in found}


def installed(
    name: str, listen: str, more: Callable[[str], str] = lambda text: text, file: str = SPOE_FILE
) -> Callable[[Path], object]:
    """Return what makes a configuration with the limiter in it of ``file``.

    ``listen`` is where a second address of it is; ``more`` edits the result. In peers mode the
    pieces of that mode are put in.
    """
    peers = "peers_" if file == PEERS_FILE else ""

    def edit(folder: Path) -> None:
        lines = pieces()
        text = (CONFIGURATIONS / f"{name}.cfg").read_text()
        for mark in re.findall("(?m)^ *# limiter: .*\n", text):
            wanted = mark.split(":")[1].split()
            indent = re.match(" *", mark)[0]  # type: ignore[index]
            put = "\n".join(lines.get(f"{peers}{piece}", lines[piece]) for piece in wanted)
            text = text.replace(mark, re.sub("(?m)^(?=.)", indent, put))
        for old, new in {
            "/etc/haproxy/": f"{folder}/",
            "unix@/run/ratelimit/spop.sock": '"${RATELIMIT_SPOP}"',
            '"${STATS}"': '"${RATELIMIT_STATS_SOCKET}"',
            '"${WEB}"': '"${RATELIMIT_LISTEN}"',
            '"${APP}"': '"${RATELIMIT_BACKEND}"',
            '"${OTHER}"': listen,
            '"${CERTIFICATE}"': str(folder / "site.pem"),
        }.items():
            text = text.replace(old, new)
        if peers:
            text = replaced("\nglobal\n", "\nglobal\n    localpeer edge-1\n")(f"\n{text}")
            text = replaced("unix@/run/ratelimit/peers.sock", '"${RATELIMIT_PEERS}"')(text)
            text = replaced("bind 127.0.0.1:9193", 'bind "${RATELIMIT_PEERS_LISTEN}"')(text)
        if name == "tls":
            make_certificate(folder / "site.pem")
        (folder / file).write_text(more(text))

    return edit


def replaced(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return edit


def test_the_readme_has_all_pieces() -> None:
    of_peers = {"peers_limiter", "peers_backends"}
    assert set(pieces()) == of_peers | {
        *("address", "limiter", "refusal", "backends", "login", "headers")
    }
    assert all(lines.count("\n") > 0 for lines in pieces().values())


@pytest.mark.parametrize("file", [SPOE_FILE, PEERS_FILE])
@pytest.mark.parametrize("name", NAMES)
def test_no_warning(tmp_path: Path, name: str, file: str) -> None:
    folder = tmp_path / "haproxy"
    folder.mkdir()
    for shipped in files().glob("*.[lcm]*"):
        (folder / shipped.name).write_bytes(shipped.read_bytes())
    installed(name, f"127.0.0.1:{free_port()}", file=file)(folder)
    variables = {
        "RATELIMIT_PEERS": "127.0.0.1:9192",
        "RATELIMIT_PEERS_LISTEN": f"127.0.0.1:{free_port()}",
        "RATELIMIT_SPOP": "127.0.0.1:9190",
        "RATELIMIT_STATS_SOCKET": str(tmp_path / "s"),
        "RATELIMIT_LISTEN": f"127.0.0.1:{free_port()}",
        "RATELIMIT_BACKEND": "127.0.0.1:8000",
    }
    ran = subprocess.run(
        [*HAPROXY, "-c", "-f", str(folder / file)],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    # From 3.4 on it warns root of being root.
    warned = [line for line in ran.stderr.splitlines() if "WARNING" in line]
    assert [line for line in warned if "HAProxy was started as" not in line] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_client_is_limited_and_the_edge_remembers_it(tmp_path: Path, name: str) -> None:
    async def test(w: World) -> None:
        client, neighbour = w.client("127.2.0.1"), w.client("127.2.0.2")
        assert await client.statuses(300) == [200] * 100 + [429] * 200
        assert await neighbour.statuses(20) == [200] * 20
        refused = await client.get()
        assert 1 <= int(refused.headers["retry-after"]) <= 11
        assert "key=::ffff:127.2.0.1 " in await w.runtime("show table t_block")
        # One refusal was the agent's, the others needed no question.
        assert await w.denied() == {"rl_agent": 1, "rl_edge": 200}
        assert w.checks() == 121
        assert w.requests.total() in (0, 120), "the application has no such header in all of them"

    run(tmp_path, test, LONG, edit=installed(name, f"127.0.0.1:{free_port()}"))


@pytest.mark.parametrize(("name", "hung"), [*((name, False) for name in NAMES), ("routing", True)])
def test_haproxy_counts_alone(tmp_path: Path, name: str, hung: bool) -> None:
    async def test(w: World) -> None:
        assert w.agent is not None
        if hung:
            w.agent.send_signal(signal.SIGSTOP)
        else:
            w.stop_agent(signal.SIGKILL)
        await until(lambda: w.agent_is("DOWN"), "HAProxy misses the agent")
        client, neighbour = w.client("127.2.0.1"), w.client("127.2.0.2")
        answers = [await client.get() for _ in range(100)]
        found = Counter(answer.status for answer in answers)
        seconds = sum(answer.seconds for answer in answers)
        assert 20 <= found[200] <= 20 * (seconds + 1)
        assert {a.headers["retry-after"] for a in answers if a.status == 429} == {"1"}
        assert (await neighbour.get()).status == 200
        assert await w.denied() == {"rl_local": found[429]}

    other = f"127.0.0.1:{free_port()}"
    edit = installed(name, other, replaced("req_rate gt 100 }", "req_rate gt 20 }"))
    run(tmp_path, test, edit=edit)


@pytest.mark.parametrize("name", NAMES)
def test_in_peers_mode_the_agents_verdicts_and_the_cap_hold(tmp_path: Path, name: str) -> None:
    async def test(w: World, agent: ScriptedPeer) -> None:
        taught = int(time.time())
        agent.tell("rlc_limits", "default", (10, 1, taught, 60))
        for number, kind in ((1, 1), (2, 2), (3, 3), (4, 4)):
            agent.tell("rlv_default", f"127.2.0.{number}", (taught + 60, 0, kind))

        async def told() -> bool:
            return "used:4" in await w.runtime("show table ratelimit/rlv_default")

        await until(told, "HAProxy has the verdicts")
        for number in (1, 2, 3):
            refused = await w.client(f"127.2.0.{number}").get()
            assert refused.status == 429 and 50 <= int(refused.headers["retry-after"]) <= 60
        assert await w.client("127.2.0.4").statuses(5) == [200] * 5
        assert await w.client("127.2.0.5").statuses(25) == [200] * 20 + [429] * 5
        assert await w.denied() == {"rl_agent": 3, "rl_local": 5}

        def counted(client: str, requests: int) -> bool:
            return agent.count("rl_default", client, HTTP_REQ_CNT) == requests

        for client, requests in {"127.2.0.1": 1, "127.2.0.2": -1, "127.2.0.5": 25}.items():
            await until(functools.partial(counted, client, requests), client)

    async def main() -> None:
        window = replaced("http_req_rate(1s)", "http_req_rate(60s)")
        edit = installed(name, f"127.0.0.1:{free_port()}", window, PEERS_FILE)
        made = world(tmp_path, agent=False, edit=edit, file=PEERS_FILE)
        async with scripted_peer(tmp_path / "peers.sock") as agent, made as w:
            await agent.connected()
            await test(w, agent)

    asyncio.run(main())


def test_denials_of_the_user_are_counted_apart(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        client = w.client("127.2.0.1")
        assert (await client.get("/admin")).status == 403
        assert (await client.statuses(101))[-1] == 429
        assert await w.denied() == {"rl_agent": 1}
        table = await w.runtime("show table per_ip")
        assert "127.2.0.1" in table and "gpc0=0" in table, "theirs has no block written into it"

    run(tmp_path, test, LONG, edit=installed("own_tables", f"127.0.0.1:{free_port()}"))


def test_who_may_not_log_in_may_still_read(tmp_path: Path) -> None:
    """With the lines for logins that the README has."""
    before = "http-request send-spoe-group rl unknown if rl_up rl_unknown\n"
    more = replaced(before, before + pieces()["login"])

    async def test(w: World) -> None:
        client = w.client("127.2.0.1")
        posted = [(await client.send("POST", "/x/..//%6cogin/")).status for _ in range(8)]
        assert posted == [200] * 5 + [429] * 3
        assert await client.statuses(20) == [200] * 20
        assert "used:0" in await w.runtime("show table t_block")

    limits = f"{LONG}[limits.login]\nrate = 5\nwindow = '30s'\n"
    run(tmp_path, test, limits, edit=installed("routing", f"127.0.0.1:{free_port()}", more))


def test_who_is_denied_by_a_list_may_come_back_in_an_hour(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        refused = await w.client("127.2.0.1").get()
        assert (refused.status, refused.headers["retry-after"]) == (429, "3600")
        assert await w.denied() == {"rl_edge": 1}

    def edit(folder: Path) -> None:
        (folder / "rl_lists.map").write_text("127.2.0.0/24 4294967295\n")
        installed("routing", f"127.0.0.1:{free_port()}")(folder)

    run(tmp_path, test, LONG, edit=edit)


def test_what_is_exempt(tmp_path: Path) -> None:
    (line,) = re.findall("`(acl rl_exempt path .*?)` \\(", (files() / "README.md").read_text())
    more = replaced("acl rl_exempt always_false\n", f"acl rl_exempt always_false\n    {line}\n")

    async def test(w: World) -> None:
        client = w.client("127.2.0.1")
        assert (await client.statuses(101))[-1] == 429
        assert {(await client.get("/robots.txt")).status for _ in range(200)} == {200}
        assert (await client.get()).status == 429

    run(tmp_path, test, LONG, edit=installed("routing", f"127.0.0.1:{free_port()}", more))


def test_clients_behind_a_load_balancer_and_a_cdn_are_told_apart(tmp_path: Path) -> None:
    def lists(folder: Path) -> None:
        (folder / "lb.lst").write_text("127.6.0.0/24\n")
        (folder / "cdn.lst").write_text("198.51.100.0/24\n")
        installed("behind_cdn", f"127.0.0.1:{other}")(folder)

    async def through(client: Client, count: int, **headers: str) -> Counter[int]:
        return Counter([(await client.get(**headers)).status for _ in range(count)])

    async def test(w: World) -> None:
        balancer, direct = w.client("127.6.0.1"), w.client("127.2.0.1")
        for forwarded in ("192.0.2.1", "[2001:db8::1]:443", "9.9.9.9, 192.0.2.2,"):
            found = await through(balancer, 120, X_Forwarded_For=forwarded)
            assert found == {200: 100, 429: 20}, forwarded
        edge = {"X_Forwarded_For": "198.51.100.7"}
        for named in ("192.0.2.3", "[2001:db8:4::1]:443", '"192.0.2.5:80",'):
            found = await through(balancer, 120, **edge, CF_Connecting_IP=named)
            assert found == {200: 100, 429: 20}, named
        assert await through(direct, 20, X_Forwarded_For="192.0.2.1") == {200: 20}, "not believed"
        before = await w.denied()
        assert await through(balancer, 9) == {200: 5, 429: 4}, "a limit of their own"
        assert await through(balancer, 9, **edge) == {200: 5, 429: 4}
        assert await w.denied() == before | {"rl_unknown": 8}

        w.stop_agent()
        await until(lambda: w.agent_is("DOWN"), "HAProxy misses the agent")
        assert await through(balancer, 60, X_Forwarded_For="192.0.2.8") == {200: 60}
        assert await through(balancer, 60, X_Forwarded_For="192.0.2.9") == {200: 60}
        assert await through(balancer, 60) == {200: 60}
        assert "used:1" in await w.runtime("show table t_unknown")

    other = free_port()
    limits = f"{LONG}[limits.unknown]\nrate = 5\nwindow = '30s'\n"
    run(tmp_path, test, limits, edit=lists)


def test_the_application_gets_no_address_that_nobody_vouches_for(tmp_path: Path) -> None:
    """With the lines for headers that the README has."""
    last = "set-var(txn.rl_wait) int(1) if rl_refused\n    http-request allow if rl_refused\n"

    def more(text: str) -> str:
        text = replaced("    option forwardfor\n", "")(text)
        return replaced(last, last + re.sub("(?m)^(?=.)", "    ", pieces()["headers"]))(text)

    def lists(folder: Path) -> None:
        (folder / "lb.lst").write_text("127.6.0.0/24\n")
        (folder / "cdn.lst").write_text("198.51.100.0/24\n")
        installed("behind_cdn", f"127.0.0.1:{free_port()}", more)(folder)

    async def test(w: World) -> None:
        async def seen(source: str, forwarded: str) -> dict[str, str]:
            claims = dict.fromkeys(CLAIMS, "192.0.2.66") | {"X-Forwarded-For": forwarded}
            claims |= {"X-Forwarded-Proto": "https", "X_Forwarded_Proto": "https"}
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", w.port, local_addr=(source, 0)
            )
            lines = [f"{name}: {value}" for name, value in claims.items()]
            writer.write("\r\n".join(["GET / HTTP/1.1", "Host: x", *lines, "", ""]).encode())
            await reader.readuntil(b"\r\n\r\n")
            await closed(writer)
            fields = [line.partition(": ") for line in w.head.splitlines()[1:] if line]
            return {name: value for name, _, value in fields if name != "host"}

        for source, forwarded, client, proto in (
            ("127.2.0.1", "192.0.2.66", "127.2.0.1", "http"),
            ("127.6.0.1", "192.0.2.7", "192.0.2.7", "https"),
            ("127.6.0.1", "198.51.100.7", "192.0.2.66", "https"),
        ):
            told = {"x-forwarded-for": client, "x-forwarded-proto": proto}
            assert await seen(source, forwarded) == told

    run(tmp_path, test, LONG, edit=lists)


def test_clients_behind_the_proxy_protocol_are_told_apart(tmp_path: Path) -> None:
    async def ask(client: str, count: int) -> Counter[int]:
        found: Counter[int] = Counter()
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", other)
            head = f"PROXY TCP4 {client} 192.0.2.254 1 443\r\n"
            writer.write(f"{head}GET / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            found[int((await reader.readline()).split()[1])] += 1
            await closed(writer)
        return found

    async def test(w: World) -> None:
        assert await ask("192.0.2.1", 120) == {200: 100, 429: 20}
        assert await ask("192.0.2.2", 20) == {200: 20}
        assert "key=::ffff:192.0.2.1 " in await w.runtime("show table t_block")

    other = free_port()
    run(tmp_path, test, LONG, edit=installed("behind_cdn", f"127.0.0.1:{other}"))


def test_the_limiter_works_by_tls_and_http2(tmp_path: Path) -> None:
    async def test(w: World) -> None:
        async with httpx.AsyncClient(verify=False, http2=True) as client:  # noqa: S501 - our own
            url = f"https://127.0.0.1:{other}/"
            found = Counter([(await client.get(url)).status_code for _ in range(120)])
            answer = await client.get(url)
        assert found == {200: 100, 429: 20}
        assert (answer.http_version, answer.text) == ("HTTP/2", "Too many requests")

    other = free_port()
    run(tmp_path, test, LONG, edit=installed("tls", f"127.0.0.1:{other}"))


@pytest.mark.parametrize("line", ["filter cache pages", "filter compression"])
def test_compression_and_cache_need_the_lines_that_the_readme_names(
    tmp_path: Path, line: str
) -> None:
    """If this fails, HAProxy needs them no more."""
    assert line.replace("pages", "NAME") in (files() / "README.md").read_text()
    folder = tmp_path / "haproxy"
    folder.mkdir()
    for file in files().glob("*.[lcm]*"):
        (folder / file.name).write_bytes(file.read_bytes())
    installed("filters", "", replaced(f"    {line}\n", ""))(folder)
    ran = subprocess.run(
        [*HAPROXY, "-c", "-f", str(folder / "haproxy.cfg")],
        env={
            **dict.fromkeys(("RATELIMIT_LISTEN", "RATELIMIT_SPOP", "RATELIMIT_BACKEND"), "[::1]:9"),
            "RATELIMIT_STATS_SOCKET": str(tmp_path / "s"),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0 and "filter" in ran.stderr
