"""A headless browser, controlled over DevTools; it can reach only loopback."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.helpers.world import PATIENCE, until

_FLAGS = (
    "--headless",
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",  # small in containers
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)


class Page:
    """A page in the browser.

    Attributes:
        asked: URLs of all requests that it made.
        complaints: errors and warnings of its console, exceptions included.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.asked: list[str] = []
        self.complaints: list[dict[str, Any]] = []
        self._socket = socket
        self._session: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def listen(self) -> None:
        """Read the browser's messages until the connection ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._waiting.pop(said["id"]).set_result(said)
            else:
                self._hear(said["method"], said["params"])

    def _hear(self, event: str, told: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(told["exceptionDetails"])
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(told)
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"])

    async def tell(self, method: str, **params: object) -> dict[str, Any]:
        """Send a command to the browser; return its answer."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json(
            {"id": number, "method": method, "params": params, **self._session}
        )
        said = await asyncio.wait_for(answer, PATIENCE)
        assert "error" not in said, (method, said["error"])
        result: dict[str, Any] = said["result"]
        return result

    async def begin(self) -> None:
        """Open an empty page; record its requests and console errors from now on."""
        target = await self.tell("Target.createTarget", url="about:blank")
        attached = await self.tell(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Network", "Runtime", "Log", "Page"):
            await self.tell(f"{domain}.enable")

    async def open(self, url: str) -> None:
        """Open a URL, and wait until the page is loaded."""
        await self.tell("Page.navigate", url=url)
        await self.shows("document.readyState === 'complete'")

    async def find(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = await self.tell(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, (expression, answer["exceptionDetails"])
        return answer["result"].get("value")

    async def shows(self, expression: str) -> None:
        """Wait until an expression is true."""

        async def true() -> bool:
            return bool(await self.find(expression))

        await until(true, expression)

    async def click(self, selector: str) -> None:
        """Press the mouse's button in the middle of an element, as a person could.

        Again if the element has moved meanwhile, as it does where something above it appears.
        """
        name = json.dumps(selector)

        async def hit() -> bool:
            x, y, reached = await self.find(
                f"(() => {{ const it = document.querySelector({name}); window.hit = false;"
                "document.addEventListener('click', (event) => {"
                f"window.hit = Boolean(event.target.closest({name})); }},"
                "{once: true, capture: true});"
                "it.scrollIntoView({block: 'center'}); const box = it.getBoundingClientRect();"
                "const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];"
                "return [x, y, it.contains(document.elementFromPoint(x, y))]; })()"
            )
            assert reached, f"something covers {selector}, or it is out of the window"
            for kind in ("mousePressed", "mouseReleased"):
                await self.tell(
                    "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
                )
            return bool(await self.find("window.hit"))

        await until(hit, f"a click on {selector}")

    async def write(self, selector: str, text: str) -> None:
        """Click on a field and replace its text."""
        await self.click(selector)
        await self.find(f"document.querySelector({json.dumps(selector)}).select()")
        await self.tell("Input.insertText", text=text)

    async def look(self, width: int, dark: bool = False) -> None:
        """Set the width of the window in pixels, and the preferred colour scheme."""
        await self.tell(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        taste = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.tell("Emulation.setEmulatedMedia", features=[taste])

    async def picture(self, path: Path) -> None:
        """Write a screenshot of the whole page to a PNG file."""
        answer = await self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))


@contextlib.asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """Yield a page of a new browser, which ends with the test."""
    profile = folder / "browser"
    told = profile / "DevToolsActivePort"
    process = await asyncio.create_subprocess_exec(
        "chromium", *_FLAGS, f"--user-data-dir={profile}", "about:blank",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        await until(lambda: told.exists() and told.read_text().count("\n") == 1, "it starts")
        port, path = told.read_text().split()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
        ):
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            try:
                await page.begin()
                yield page
            finally:
                listening.cancel()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.wait_for(process.wait(), PATIENCE)
