"""The API against its own description: what schemathesis makes of it, right and wrong."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance

from ratelimit.api.openapi import describe
from ratelimit.api.routes import ROUTES
from tests.helpers.running import running

pytestmark = pytest.mark.integration

SCHEMA = schemathesis.openapi.from_dict(json.loads(describe(ROUTES)))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A node in a thread of its own, for schemathesis waits for each answer."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()
    folder = tmp_path_factory.mktemp("node")

    async def main() -> None:
        stop = asyncio.Event()
        async with running(folder, "[ops]\nlisten = '127.0.0.1:0'\n") as api:
            started.set_result((asyncio.get_running_loop(), stop, api.port))
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            if not started.done():
                started.set_exception(error)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    loop, stop, port = started.result(15)
    yield f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(stop.set)
    thread.join()


# Events never end.
@SCHEMA.exclude(path="/v1/events").parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_described(case: Case[Any], url: str) -> None:
    # That a key is nearly an address, or a cursor made up, no schema can say.
    case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance])
