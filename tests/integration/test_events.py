"""Events of the program itself, as a receiver and the log have them."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from ratelimit.webhooks import SIGNATURE, sign
from tests import wire
from tests.integration.test_commands import command, line
from tests.integration.world import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

SECRET = b"0123456789abcdef"


def test_a_block_is_told_once_and_its_key_harms_no_log(tmp_path: Path) -> None:
    received: list[tuple[str, bytes]] = []
    arrived = threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.headers[SIGNATURE], body))
            self.send_response(204)
            self.end_headers()
            if json.loads(body)["event"] == "block":
                arrived.set()

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    key = "mallory\n{\x1b[2J\u2028"
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = tmp_path / "r.toml"
        path.write_text(
            f'[agent]\nlisten = ["unix://{tmp_path}/spop.sock"]\nmax_clients = 1000\n'
            "[limits.default]\nrate = 1\n"
            f'[[webhooks]]\nurl = "http://127.0.0.1:{server.server_port}/"\n'
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
                assert arrived.wait(PATIENCE)
            shown = line(process, "mallory").string
        server.shutdown()
    ((signature, body),) = received
    timestamp = int(signature.partition(",")[0].removeprefix("t="))
    assert signature == sign(SECRET, timestamp, body)
    event = json.loads(body)
    assert event["data"]["key"] == json.loads(shown)["key"] == key
    assert event["data"]["node"] == event["node"]
    assert shown[:-1].isprintable()
