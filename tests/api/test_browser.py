"""The page as a person has it: in a real browser, where one looks, blocks, and lifts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.helpers.browser import browser
from tests.helpers.fake_haproxy import FakeHaproxy
from tests.helpers.running import block, running
from tests.helpers.tokens import ANN, BOB, TOKENS, write

NARROW, WIDE = 360, 1200
"""Pixels: the telephone of somebody who was woken, and a desk."""

EVIL = "<img src=//elsewhere.example/x onerror=alert(1)>"


def state(text: str) -> str:
    return f"document.querySelector('#state').innerText.includes({json.dumps(text)})"


def said(text: str) -> str:
    return f"document.querySelector('#said').innerText.includes({json.dumps(text)})"


def row(key: str) -> str:
    cells = "document.querySelectorAll('#blocks td:first-child')"
    return f"[...{cells}].some((one) => one.innerText === {json.dumps(key)})"


def unblock(key: str) -> str:
    return f'#blocks button[aria-label="Unblock {key}"]'


FITS = "document.documentElement.scrollWidth <= window.innerWidth"
LOGIN = "document.querySelector('#login').checkVisibility()"
IN_SIGHT = """[...document.querySelectorAll('button, input, select, td')].every((one) => {
  const box = one.getBoundingClientRect();
  return !one.checkVisibility() || (box.left >= 0 && box.right <= window.innerWidth);
})"""


@pytest.mark.integration
def test_a_person_looks_blocks_and_lifts(tmp_path: Path) -> None:
    tokens = write(tmp_path, TOKENS)

    async def main() -> None:
        async with (
            running(
                tmp_path, f"[ops]\ntoken_file = '{tokens}'\n[limits.default]\nsecret = false\n"
            ) as api,
            browser(tmp_path) as page,
        ):
            api.control.limiter.apply(block(EVIL, api.seconds() + 600))
            base = f"http://127.0.0.1:{api.port}/"
            await page.look(WIDE)
            await page.open(base)
            await page.shows(LOGIN)
            await page.shows(state("must be a bearer token"))
            text = await page.find("document.body.innerText")
            assert "here" not in text.split()  # the node's id
            assert EVIL not in text
            # The browser itself complains of the answer 401, and of nothing else.
            assert {one.get("text", one)[:47] for one in page.complaints} == {
                "Failed to load resource: the server responded w"
            }
            page.complaints.clear()

            await page.write("#login input", BOB)
            await page.click("#login button")
            await page.shows(state("ready, node here"))
            await page.shows(f"!{LOGIN}")
            await page.shows(row(EVIL))
            await page.write("#block [name=key]", "192.0.2.7")
            await page.click("#block button")
            await page.shows(said("the token of bob has the role view, not blocks"))
            await page.find("sessionStorage.clear()")
            page.complaints.clear()

            for width in (NARROW, WIDE):
                await page.look(width, dark=width == NARROW)
                await page.open(base)
                if width == NARROW:
                    await page.shows(LOGIN)
                    await page.write("#login input", ANN)
                    await page.click("#login button")
                await page.shows(row(EVIL))
                page.complaints.clear()
                assert await page.find(FITS)
                assert await page.find(IN_SIGHT)
                await page.write("#block [name=key]", "192.0.2.9/24")
                await page.write("#block [name=reason]", "too many")
                await page.click("#block button")
                await page.shows(said("host bits; the network is 192.0.2.0/24"))
                await page.shows(row("192.0.2.0/24"))
                (made,) = await api.control.blocks_of("192.0.2.0/24")
                assert (made.by, made.reason) == ("ann", "too many")
                assert await page.find(FITS)
                assert await page.find(IN_SIGHT)
                await page.click(unblock("192.0.2.0/24"))
                await page.shows(said("192.0.2.0/24 is unblocked"))
                await page.shows(f"!({row('192.0.2.0/24')})")
                assert not await api.control.blocks_of("192.0.2.0/24")
                assert not page.complaints

            assert {url for url in page.asked if not url.startswith(base)} <= {"data:,"}
            assert {url.removeprefix(base).partition("?")[0] for url in page.asked} >= {
                "", "v1/status", "v1/blocks", "v1/clients", "v1/nodes", "v1/blocks/192.0.2.0%2F24"
            }  # fmt: skip
            await api.server.close()
            await page.shows(state("no answer"))

    asyncio.run(main())


@pytest.mark.integration
def test_a_haproxy_that_counts_itself_is_shown_and_what_it_does_not_enforce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with running(tmp_path) as api, browser(tmp_path) as page:
            monkeypatch.setattr(type(api.control.runtime), "sockets", [])
            await page.open(f"http://127.0.0.1:{api.port}/")
            await page.shows(figure("HAProxy connections", bad=True))
            hub, now = api.control.peers.hub, api.control.sync.now()
            haproxy = FakeHaproxy(hub, now)
            haproxy.connect(now)
            await page.shows(figure("HAProxies that are peers", bad=False))
            await page.shows(figure("HAProxy connections", bad=False))
            await page.write("#block [name=key]", "192.0.2.0/24")
            await page.click("#block button")
            await page.shows(said("does not enforce this block by itself (limit default)"))

    asyncio.run(main())


def figure(name: str, bad: bool) -> str:
    """Return whether the page has a figure of this name, in the colour of a fault or not."""
    names = "[...document.querySelectorAll('#figures dt')]"
    return (
        f"{names}.some((one) => one.innerText === {json.dumps(name)} && "
        f"one.nextSibling.className === {json.dumps('bad' if bad else '')})"
    )
