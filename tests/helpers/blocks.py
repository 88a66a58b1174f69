"""What ``/v1/blocks`` answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from httpx import Response

    from tests.helpers.running import Running


LATER = 1 << 31


def fields(answer: Response) -> list[str]:
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["detail"]
    return [error["field"] for error in problem["errors"]]


async def pages(api: Running, **query: str | int) -> list[list[str]]:
    """Return the keys of all pages."""
    found = []
    cursor = ""
    while True:
        answer = (await api.client.get("/v1/blocks", params={**query, "cursor": cursor})).json()
        found.append([entry["key"] for entry in answer["blocks"]])
        cursor = answer["next"]
        if not cursor:
            return found
