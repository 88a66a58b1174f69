"""Webhooks against a real receiver on loopback: signed, in order, tried again, never in the way."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web
from structlog.testing import capture_logs

from ratelimit.events import webhooks as module
from ratelimit.events.webhooks import (
    EVENTS,
    QUEUE,
    SIGNATURE,
    TRIES,
    Receiver,
    WebhookEvent,
    Webhooks,
    sign,
)
from tests.helpers.servers import until
from tests.helpers.world import free_port

SECRET = b"0123456789abcdef"
Answer = Callable[[int], Awaitable[web.Response]]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become hundredths; the proportions stay."""
    monkeypatch.setattr(module, "BACKOFF", (0.01, 0.3))


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


class Inbox:
    """A receiver; ``answer`` says what to answer to which request, counted from 0."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.paths: list[str] = []
        self.url = ""
        self.answer: Answer = taken

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]

    def numbers(self) -> list[int]:
        return [event["data"]["n"] for event in self.events]

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append((dict(request.headers), await request.read()))
        self.paths.append(request.path)
        return await self.answer(len(self.requests) - 1)


async def taken(_: int) -> web.Response:
    return web.Response()


async def hang(_: int) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


def then_taken(*statuses: int) -> Answer:
    async def answer(number: int) -> web.Response:
        return web.Response(status=statuses[number] if number < len(statuses) else 204)

    return answer


@contextlib.asynccontextmanager
async def inbox() -> AsyncIterator[Inbox]:
    box = Inbox()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", box.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    box.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield box
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def sending(*receivers: Receiver) -> AsyncIterator[Webhooks]:
    webhooks = Webhooks(receivers, "n1")
    task = asyncio.create_task(webhooks.run())
    try:
        yield webhooks
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        webhooks.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await test()

    uvloop.run(main())


def test_an_event_arrives_signed() -> None:
    async def test() -> None:
        async with inbox() as box, sending(Receiver(box.url, secret=SECRET)) as webhooks:
            webhooks.send("block", {"key": "192.0.2.1\u2028\ud800\n", "until": 12})
            await until(lambda: webhooks.hooks[0].sent == 1)
        ((headers, body),) = box.requests
        assert headers["Content-Type"] == "application/json"
        assert headers["User-Agent"].startswith("ratelimit/")
        timestamp, signature = re.fullmatch(
            r"t=(\d+),v1=([0-9a-f]{64})", headers[SIGNATURE]
        ).groups()  # type: ignore[union-attr]
        assert abs(int(timestamp) - time.time()) < 30
        signed = timestamp.encode() + b"." + body
        assert signature == hmac.new(SECRET, signed, hashlib.sha256).hexdigest()
        assert body.isascii()
        event = json.loads(body)
        assert list(event) == ["id", "event", "at", "node", "data"]
        assert re.fullmatch("[0-9a-f]{32}", event["id"])
        assert (event["event"], event["node"]) == ("block", "n1")
        assert event["data"] == {"key": "192.0.2.1\u2028\ud800\n", "until": 12}
        assert event["at"].endswith("Z")
        assert abs(datetime.fromisoformat(event["at"]).timestamp() - time.time()) < 30

    run(test)


def test_the_documented_check_accepts_ours_and_nothing_else() -> None:
    page = (Path(__file__).parent.parents[1] / "docs" / "webhooks.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own page
    is_genuine = names["is_genuine"]
    now = int(time.time())
    body = WebhookEvent("fuse", {}, "n1").body()
    header = sign(SECRET, now, body)
    assert is_genuine(SECRET, header, body)
    assert not is_genuine(SECRET, header, body + b" ")
    assert not is_genuine(b"x" * 16, header, body)
    assert not is_genuine(SECRET, header.replace(f"t={now}", f"t={now + 1}"), body)
    assert not is_genuine(SECRET, sign(SECRET, now - 301, body), body)
    for broken in ("", "t=,v1=", "v1=x", "t=1", "t=x,v1=y", ",,,", f"t={now}"):
        assert not is_genuine(SECRET, broken, body)


def test_the_documentation_has_every_event() -> None:
    page = (Path(__file__).parent.parents[1] / "docs" / "webhooks.md").read_text()
    assert re.findall(r"^\| `([a-z.]+)` \|", page, re.MULTILINE) == list(EVENTS)


def test_without_a_secret_nothing_is_signed_and_only_what_is_asked_for_is_sent() -> None:
    async def test() -> None:
        async with inbox() as box, sending(Receiver(box.url, ("fuse",))) as webhooks:
            webhooks.send("block", {})
            webhooks.send("fuse", {"limit": "default"})
            await until(lambda: webhooks.hooks[0].sent == 1)
        assert [event["event"] for event in box.events] == ["fuse"]
        assert SIGNATURE not in box.requests[0][0]

    run(test)


def test_events_keep_their_order_and_are_tried_again_with_their_id(logs: list[Any]) -> None:
    async def test() -> None:
        async with inbox() as box, sending(Receiver(box.url)) as webhooks:
            box.answer = then_taken(500, 503, 429)
            for number in range(20):
                webhooks.send("block", {"n": number})
            await until(lambda: webhooks.hooks[0].sent == 20)
            assert webhooks.hooks[0].failed == webhooks.hooks[0].waiting == 0
        assert box.numbers() == [0, 0, 0, *range(20)]
        assert len({event["id"] for event in box.events}) == 20
        assert len({event["id"] for event in box.events[:4]}) == 1

    run(test)
    assert not logs


def test_a_receiver_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.5)

    async def test() -> None:
        async with inbox() as box, sending(Receiver(box.url)) as webhooks:
            hook = webhooks.hooks[0]
            box.answer = hang
            webhooks.send("fuse", {"n": 0})
            await until(lambda: len(box.requests) == 2)
            box.answer = taken
            await until(lambda: hook.sent == 1)
            box.answer = hang
            webhooks.send("fuse", {"n": 1})
            await until(lambda: hook.failed == 1)
            assert box.numbers().count(1) == TRIES

    run(test)


def test_one_line_when_it_fails_and_one_when_it_works_again(logs: list[Any]) -> None:
    async def test() -> None:
        receiver = Receiver(f"http://127.0.0.1:{free_port()}/hunter2?token=hunter2", secret=SECRET)
        async with inbox() as box, sending(receiver) as webhooks:
            hook = webhooks.hooks[0]
            for number in range(3):
                webhooks.send("block", {"n": number})
            await until(lambda: hook.failed == 3)
            webhooks.renew([Receiver(box.url)])
            webhooks.send("block", {"n": 3})
            webhooks.send("block", {"n": 4})
            await until(lambda: hook.sent == 2)

    run(test)
    assert [(line["log_level"], line["event"]) for line in logs] == [
        ("error", "webhook fails"),
        ("info", "webhook works again"),
    ]
    assert {line["webhook"] for line in logs} == {"1:127.0.0.1"}
    assert "hunter2" not in repr(logs) and SECRET.decode() not in repr(logs)
    assert "hunter2" not in repr(Receiver("https://h/hunter2", secret=b"hunter2"))


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 404, 410])
def test_what_can_not_get_better_is_given_up_at_once(status: int) -> None:
    async def test() -> None:
        async with inbox() as box, sending(Receiver(box.url)) as webhooks:

            async def elsewhere(_: int) -> web.Response:
                return web.Response(status=status, headers={"Location": "/elsewhere"})

            box.answer = elsewhere
            webhooks.send("fuse", {"n": 0})
            await until(lambda: webhooks.hooks[0].failed == 1)
        assert box.paths == ["/hook"]

    run(test)


def test_a_full_queue_drops_blocks_and_keeps_what_happens_once() -> None:
    async def test() -> None:
        webhooks = Webhooks([Receiver("http://127.0.0.1:1/")], "n1")
        hook = webhooks.hooks[0]
        webhooks.send("store.lost", {})
        for number in range(QUEUE + 500):
            webhooks.send("block", {"n": number})
        assert hook.waiting == QUEUE
        assert hook.dropped == 501
        names = [event.name for event in hook._queue]
        assert names == ["store.lost"] + ["block"] * (QUEUE - 1)
        assert hook._queue[-1].data == {"n": QUEUE + 499}
        for _ in range(3 * QUEUE):  # nothing but these: the oldest goes
            webhooks.send("fuse", {})
        assert hook.waiting == QUEUE

    run(test)


def test_a_dead_receiver_does_not_disturb_another(logs: list[Any]) -> None:
    async def test() -> None:
        async with inbox() as dead, inbox() as box:
            dead.answer = hang
            async with sending(Receiver(dead.url), Receiver(box.url)) as webhooks:
                for number in range(50):
                    webhooks.send("block", {"n": number})
                await until(lambda: webhooks.hooks[1].sent == 50)
                assert webhooks.hooks[0].sent == 0
                assert webhooks.hooks[0].waiting == 50
        assert box.numbers() == list(range(50))

    run(test)
    (line,) = logs
    assert (line["event"], line["count"]) == ("events were lost because the agent stopped", 50)


def test_a_new_secret_holds_from_the_next_try_on() -> None:
    async def test() -> None:
        async with inbox() as box, sending(Receiver(box.url, secret=SECRET)) as webhooks:
            renewed = Receiver(box.url, secret=b"fedcba9876543210")

            async def answer(number: int) -> web.Response:
                webhooks.renew([renewed])
                return web.Response(status=503 if number == 0 else 200)

            box.answer = answer
            webhooks.send("fuse", {})
            await until(lambda: webhooks.hooks[0].sent == 1)
        secrets = (SECRET, b"fedcba9876543210")
        for secret, (headers, body) in zip(secrets, box.requests, strict=True):
            timestamp = int(headers[SIGNATURE].split(",")[0][2:])
            assert headers[SIGNATURE] == sign(secret, timestamp, body)

    run(test)


def test_what_waits_goes_on_waiting_for_a_receiver_that_stays() -> None:
    def waiting(webhooks: Webhooks) -> list[tuple[str, list[object]]]:
        return [(hook.name, [event.data["n"] for event in hook._queue]) for hook in webhooks.hooks]

    first, second, third = (Receiver(f"http://{name}/") for name in ("one", "two", "three"))
    webhooks = Webhooks([first, second], "n1")
    webhooks.send("fuse", {"n": 0})
    webhooks.renew([second])
    webhooks.send("fuse", {"n": 1})
    assert waiting(webhooks) == [("1:two", [0, 1])], "at another place"
    webhooks.renew([third, second])
    webhooks.send("fuse", {"n": 2})
    assert waiting(webhooks) == [("1:three", [2]), ("2:two", [0, 1, 2])]
    webhooks.renew([third, Receiver("http://four/", ("block",))])
    assert waiting(webhooks) == [("1:three", [2]), ("2:four", [0, 1, 2])], "another URL"
    webhooks.renew([])
    assert waiting(webhooks) == []
    webhooks.renew([first, first])
    webhooks.send("fuse", {"n": 3})
    assert waiting(webhooks) == [("1:one", [3]), ("2:one", [3])]


def test_what_a_receiver_does_not_ask_for_any_more_is_not_sent() -> None:
    async def test() -> None:
        async with inbox() as box, sending(Receiver("http://127.0.0.1:1/")) as webhooks:
            webhooks.send("block", {"n": 0})
            webhooks.send("fuse", {"n": 1})
            webhooks.renew([Receiver(box.url, ("fuse",))])
            await until(lambda: webhooks.hooks[0].sent == 2)
        assert box.numbers() == [1]

    run(test)


def test_an_event_that_can_not_be_written_is_one_failure(logs: list[Any]) -> None:
    async def test() -> None:
        async with inbox() as box, sending(Receiver(box.url)) as webhooks:
            webhooks.send("fuse", {"n": object()})
            webhooks.send("fuse", {"n": 1})
            await until(lambda: webhooks.hooks[0].sent == 1)
            assert (webhooks.hooks[0].failed, webhooks.hooks[0].waiting) == (1, 0)
        assert box.numbers() == [1]

    run(test)
    assert logs[0]["event"] == "internal error while sending an event"


def test_an_endless_answer_is_not_read() -> None:
    async def test() -> None:
        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
                    await writer.drain()
            writer.close()

        server = await asyncio.start_server(endless, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, sending(Receiver(f"http://127.0.0.1:{port}/")) as webhooks:
            webhooks.send("fuse", {})
            webhooks.send("fuse", {})
            await until(lambda: webhooks.hooks[0].sent == 2)

    run(test)


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    import ssl
    import subprocess

    files = [str(tmp_path / name) for name in ("key.pem", "cert.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", files[0], "-out", files[1]],
        check=True, capture_output=True,
    )  # fmt: skip

    async def test() -> None:
        box = Inbox()
        application = web.Application()
        application.router.add_route("*", "/", box.handle)
        runner = web.AppRunner(application)
        await runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files[1], files[0])
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the failed handshakes
        port = runner.addresses[0][1]
        try:
            async with sending(Receiver(f"https://127.0.0.1:{port}/")) as webhooks:
                webhooks.send("fuse", {})
                await until(lambda: webhooks.hooks[0].failed == 1)
        finally:
            await runner.cleanup()
        assert not box.requests

    run(test)
