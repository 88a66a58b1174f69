"""Events of the program itself, as a receiver and the log have them."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from ratelimit.api.client import Client
from ratelimit.events.webhooks import SIGNATURE, sign
from tests.helpers import wire
from tests.helpers.command import command, line
from tests.helpers.fleet import fleet, until
from tests.helpers.world import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

SECRET = b"0123456789abcdef"


@contextlib.contextmanager
def receiver() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Yield the URL of a webhook, and the signatures and bodies that it was sent."""
    received: list[tuple[str, bytes]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.headers[SIGNATURE], body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", received
        server.shutdown()


def test_a_block_is_told_once_and_its_key_harms_no_log(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    key = "mallory\n{\x1b[2J\u2028"
    with receiver() as (url, received):
        path = tmp_path / "r.toml"
        path.write_text(
            f'[agent]\nlisten = ["unix://{tmp_path}/spop.sock"]\nmax_clients = 1000\n'
            "[limits.default]\nrate = 1\nsecret = false\n"
            f'[[webhooks]]\nurl = "{url}"\nevents = ["block"]\n'
            f'secret_file = "{tmp_path}/secret"\n'
        )
        with command("serve", "--config", str(path)) as process:
            line(process, "agent started")
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(PATIENCE)
                peer.connect(f"{tmp_path}/spop.sock")
                peer.sendall(wire.hello())
                peer.recv(65536)
                asked = wire.message("default", key=wire.text(key))
                peer.sendall(wire.notify(asked) * 5)
                until(lambda: received, "it is told")
            shown = line(process, "mallory").string
    ((signature, body),) = received
    timestamp = int(signature.partition(",")[0].removeprefix("t="))
    assert signature == sign(SECRET, timestamp, body)
    event = json.loads(body)
    told = event["data"]["key"]
    assert told == json.loads(shown)["key"]
    assert re.fullmatch(re.escape(r"mallory\n{\x1b[2J\u2028") + "~[0-9a-f]{32}", told)
    assert event["data"]["node"] == event["node"]
    assert shown[:-1].isprintable()


def test_each_event_is_told_once_for_the_fleet(tmp_path: Path) -> None:
    """Two nodes, one Redis; what both see and what one does comes to the receiver once."""
    with receiver() as (url, received):
        config = f'[[webhooks]]\nurl = "{url}"\n[load]\nhigh = 5\nlow = 2\nhold = "2s"\n'

        def told() -> list[str]:
            return [json.loads(body)["event"] for _, body in received]

        with fleet(tmp_path, config) as made:
            first, second = made.add(), made.add()
            apis = [Client(f"http://{node.ops()}") for node in (first, second)]
            until(lambda: all(len(api.get("/v1/nodes")["nodes"]) == 2 for api in apis), "a fleet")
            first.ask("192.0.2.1", 200)
            apis[1].post("/v1/blocks", {"key": "192.0.2.2", "ttl": 600})
            until(lambda: len(apis[0].get("/v1/blocks")["blocks"]) == 2, "both blocks are known")
            apis[0].delete("/v1/blocks/192.0.2.2")
            apis[1].delete("/v1/blocks/192.0.2.1")
            until(lambda: len(told()) == 4, "blocks and lifts are told")

            clients = itertools.count()

            def loaded() -> bool:
                for node in (first, second):
                    node.ask(b"client %d" % next(clients))
                return "load.high" in told()

            until(loaded, "the load is high")
            for api in apis:
                heard(api, "load.high")
            # Each node tells in order: by then the store has heard from both that the load is high.
            for number, api in enumerate(apis):
                api.post("/v1/blocks", {"key": f"203.0.113.{number}", "ttl": 600})
            until(lambda: told().count("block") == 4, "both nodes have told")
            made.server.kill()
            until(lambda: "store.lost" in told(), "the store is lost")
            made.server.start()
            until(lambda: all(api.get("/v1/status")["store"]["up"] for api in apis), "it is back")
            until(lambda: "store.back" in told(), "the store is back")
            until(lambda: "load.low" in told(), "the load is low")
            for api in apis:
                heard(api, "load.low")
            # Each node tells in order, so by then it has told all else that it has to tell.
            for number, api in enumerate(apis):
                api.post("/v1/blocks", {"key": f"198.51.100.{number}", "ttl": 600})
            until(lambda: told().count("block") == 6, "the last ones are told")
        assert sorted(told()) == [
            *["block"] * 6, "load.high", "load.low", "store.back", "store.lost",
            "unblock", "unblock",
        ]  # fmt: skip
    high = next(event["data"] for event in events(received) if event["event"] == "load.high")
    assert high["allowed_per_second"] > 5 and high["threshold"] == 5 and high["nodes"] == 2
    assert 0 < high["since"] <= time.time() and high["servers_up"] is None


def heard(api: Client, name: str) -> None:
    """Wait until a node has an event itself, whoever tells of it."""
    headers = {"Last-Event-ID": "0"}
    with httpx.stream(
        "GET", f"{api.url}/v1/events", headers=headers, timeout=PATIENCE, trust_env=False
    ) as response:
        for line in response.iter_lines():
            if line == f"event: {name}":
                return
    raise AssertionError(f"the stream ended before {name}")


def events(received: list[tuple[str, bytes]]) -> list[dict[str, Any]]:
    return [json.loads(body) for _, body in received]
