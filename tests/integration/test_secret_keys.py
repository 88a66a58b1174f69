"""An API key that a limit counts is in no place where others than its owner could find it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.helpers.servers import Server
from tests.helpers.world import PATIENCE, World, run, until
from tests.integration.test_events import receiver

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

COUNTED = "sk_live_4f1c9b07a2d8e6counted"
TYPED = "sk_live_77aa01b2c3d4e5f6typed"
FEW = "pin-4711"
"""Too short for a hint."""

OPERATE, VIEW = "o" * 32, "v" * 32
SECRETS = [COUNTED, TYPED, FEW, COUNTED[:5], TYPED[:5], COUNTED[-8:], TYPED[-8:], FEW[:3]]
"""Also the parts of keys: four characters may be seen, and of a short one none."""


@dataclass
class Places:
    """All that others may see, by where it is."""

    seen: dict[str, bytes] = field(default_factory=dict)

    def add(self, place: str, text: str | bytes) -> None:
        text = text.encode() if isinstance(text, str) else text
        self.seen[place] = self.seen.get(place, b"") + text

    def have(self, text: str) -> list[str]:
        return [place for place, seen in self.seen.items() if text.encode() in seen]


async def api(w: World) -> str:
    """Return where the agent's API is; each agent has a port of its own."""
    return f"http://{await w.ops()}"


async def command(places: Places, url: str, *words: str, stdin: str = "") -> str:
    """Run a command of the operator; return what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ratelimit", *words,
        env={**os.environ, "RATELIMIT_URL": url, "RATELIMIT_TOKEN": OPERATE, "COLUMNS": "200"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    shown, said = await asyncio.wait_for(process.communicate(stdin.encode()), PATIENCE)
    assert process.returncode == 0, said.decode()
    places.add(f"ratelimit {words[0]}", shown + said)
    return shown.decode()


async def look(places: Places, url: str, key: str) -> None:
    """Look at all that a role that may only view is shown."""
    async with httpx.AsyncClient(
        base_url=url, headers={"Authorization": f"Bearer {VIEW}"}, timeout=PATIENCE
    ) as api:
        for path in (
            "/v1/blocks?ended=true", "/v1/clients?n=1000", "/v1/clients?n=1000&sort=blocked",
            f"/v1/clients/{key}", f"/v1/blocks/{key}", "/v1/limits", "/v1/status", "/v1/nodes",
            "/v1/haproxy", "/metrics", "/openapi.json", "/healthz", "/readyz", "/",
        ):  # fmt: skip
            answer = await api.get(path)
            assert answer.status_code == 200, path
            places.add(path.partition("?")[0], answer.content)
        async with api.stream("GET", "/v1/events", headers={"Last-Event-ID": "1"}) as events:
            names = set()
            async for line in events.aiter_lines():
                places.add("/v1/events", line)
                names.add(line)
                if {"event: block", "event: unblock"} <= names:
                    break
        # Who may not, or has no token, tries it with the key itself.
        for method, path in (("DELETE", "blocks"), ("GET", "nothing"), ("PUT", "clients")):
            refused = await api.request(method, f"/v1/{path}/{COUNTED}")
            assert refused.status_code in (403, 404, 405)
            places.add("refusals", refused.content)
            none = await api.request(method, f"/v1/{path}/{COUNTED}", headers={"Authorization": ""})
            assert none.status_code == 401
            places.add("refusals", none.content)


def everything_in(server: Server) -> bytes:
    """Return all that Redis has: keys, values, and the file that it saves."""
    with server.client() as client:
        found = b""
        for name in client.scan_iter():
            assert client.type(name) == b"hash"
            found += name + b"".join(b"".join(pair) for pair in client.hgetall(name).items())
        assert b"limiter" in found or b"default" in found or b"api_key" in found
        client.save()
    return found + (server.folder / f"{server.port}.rdb").read_bytes()


def shown_forms(places: Places, key: str) -> set[str]:
    """Return the forms in which a key was shown, by the hash that they have."""
    digits = key.rpartition("~")[2].encode()
    return {
        form.decode()
        for seen in places.seen.values()
        for form in re.findall(rb"[A-Za-z0-9_.-]{0,4}~" + digits, seen)
    }


@pytest.mark.parametrize("store", ["memory", "redis"])
def test_a_secret_key_is_nowhere_and_every_form_shown_can_be_given_back(
    tmp_path: Path, store: str
) -> None:
    server = None
    if store == "redis":
        (tmp_path / "redis").mkdir()
        server = Server(tmp_path / "redis")
    (tmp_path / "tokens").write_text(f"ann:operate:{OPERATE}\nbob:view:{VIEW}\n")
    places = Places()

    with contextlib.ExitStack() as stack:
        if server is not None:
            stack.callback(server.start().kill)
        hook, received = stack.enter_context(receiver())
        config = (
            f'[ops]\ntoken_file = "{tmp_path}/tokens"\n'
            f'[store]\nurl = "{server.url if server else "memory://"}"\n'
            f'state_dir = "{tmp_path}/state"\n'
            f'[haproxy]\nsockets = ["{tmp_path}/haproxy.sock"]\n'
            f'[[webhooks]]\nurl = "{hook}"\nevents = ["block", "unblock"]\n'
            "[limits.default]\nrate = 10_000\n"
            '[limits.api_key]\nrate = 5\nwindow = "1m"\nblock = ["10m"]\n'
        )

        async def test(w: World) -> None:
            client = w.client("127.8.0.1")

            async def asks(key: str) -> int:
                return (await client.get(X_API_Key=key)).status

            async def ratelimit(*words: str, stdin: str = "") -> str:
                return await command(places, await api(w), *words, stdin=stdin)

            assert [await asks(COUNTED) for _ in range(8)] == [200] * 5 + [429] * 3
            assert [await asks(FEW) for _ in range(6)] == [200] * 5 + [429]
            # An operator blocks one by typing it, and finds what was counted likewise.
            made = json.loads(await ratelimit("blocks", "add", "-", "--json", stdin=f"{TYPED}\n"))
            assert re.fullmatch("sk_l~[0-9a-f]{32}", made["key"])
            assert await asks(TYPED) == 429
            known = json.loads(await ratelimit("explain", COUNTED, "--json"))
            assert re.fullmatch("sk_l~[0-9a-f]{32}", known["key"])
            [counted] = [one for one in known["limits"] if one["limit"] == "api_key"]
            assert counted["block"]["strikes"] == 1
            for words in (("blocks",), ("blocks", "--json"), ("blocks", "--q", COUNTED),
                          ("top", "--once"), ("top", "--json", "--sort", "blocked"),
                          ("explain", COUNTED), ("explain", FEW), ("status",)):  # fmt: skip
                await ratelimit(*words)
            assert "1 entry" in await ratelimit("blocks", "--q", COUNTED)
            await ratelimit("blocks", "remove", TYPED)
            assert await asks(TYPED) == 200

            await look(places, await api(w), known["key"])
            # Each form that is shown can be given back, and the hash alone, also after a restart.
            forms = shown_forms(places, known["key"]) | {known["key"][4:]}
            assert known["key"] in forms
            w.stop_agent()
            await until(lambda: w.agent_is("DOWN"), "HAProxy misses the agent")
            w.start_agent(config)
            await until(lambda: w.agent_is("UP"), "HAProxy sees the agent")
            assert await asks(COUNTED) == 429, "its block outlives the process"
            for form in sorted(forms):
                again = json.loads(await ratelimit("explain", form, "--json"))
                assert (
                    again["limits"]
                    == json.loads(await ratelimit("explain", COUNTED, "--json"))["limits"]
                )
                await ratelimit("blocks", "add", form, "--reason", "by what was shown")
            await ratelimit("blocks", "remove", max(forms))
            assert await asks(COUNTED) == 200

            await ratelimit("blocks", "add", COUNTED)

            await until(lambda: len(received) >= 7, "the webhook is told")
            for _, body in received:
                places.add("webhook", body)
            for table in ("t_block", "t_alone"):
                places.add("HAProxy's table", await w.runtime(f"show table {table}"))
            for _ in range(2):
                places.add("agent's log", w.agent_log())
                places.add("HAProxy's log", w.haproxy_log())
                for file in (tmp_path / "state").iterdir():
                    places.add(f"file {file.suffix}", file.read_bytes())
                if server is not None:
                    places.add("Redis", everything_in(server))
                if w.agent is not None and w.agent.poll() is None:
                    w.stop_agent()

        run(tmp_path, test, config, RATELIMIT_API_KEYS="1")

    assert {secret: places.have(secret) for secret in SECRETS} == {secret: [] for secret in SECRETS}
    # They were looked at where they are.
    for place in ("agent's log", "webhook", "file .sqlite3", "/v1/blocks", "/v1/events",
                  "/v1/clients", "ratelimit blocks", *(["Redis"] if server else [])):  # fmt: skip
        assert re.search(rb"sk_l~[0-9a-f]{32}", places.seen[place]), place
