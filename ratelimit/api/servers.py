"""HAProxy's servers over the API: change the state or weight of one."""

from __future__ import annotations

from typing import Literal

import structlog
from pydantic import Field, model_validator

from ratelimit.api import models
from ratelimit.api.call import Call, Reply
from ratelimit.api.errors import ProblemError
from ratelimit.haproxy.api import Acted, UnknownServerError
from ratelimit.haproxy.stats import AGENT_BACKEND, MAX_WEIGHT

log = structlog.get_logger()


class ServerChange(models.Asked):
    """One change of a server."""

    state: Literal["drain", "ready"] | None = Field(
        None, description="`drain`: no new requests; `ready`: back to normal."
    )
    weight: int | None = Field(
        None, ge=0, le=MAX_WEIGHT, strict=True, description="Its share of the load."
    )

    @model_validator(mode="after")
    def _is_one(self) -> ServerChange:
        if (self.state is None) == (self.weight is None):
            raise ValueError("must have either state or weight")
        return self


class ChangedServer(models.Answer):
    """The server after the change, for each HAProxy that has it or did not answer."""

    haproxy: list[Acted]


async def change_server(call: Call) -> Reply:
    """Change a server in every HAProxy of this node."""
    change: ServerChange = call.body
    backend, server = call.names["backend"], call.names["server"]
    if backend == AGENT_BACKEND and (change.state == "drain" or change.weight == 0):
        raise ProblemError(403, "this would disable the agents and with them the limits")
    name = f"{backend}/{server}"
    try:
        acted = await call.control.runtime.act(name, change.state or change.weight or 0)
    except UnknownServerError as error:
        raise ProblemError.field(404, "server", str(error)) from None
    problems = [f"{one.socket}: {one.problem}" for one in acted if one.problem]
    if problems:
        log.warning("not every HAProxy changed the server", server=ascii(name), problems=problems)
    if len(problems) == len(acted):
        raise ProblemError(503, f"nothing was changed: {'; '.join(problems)}")
    return Reply(ChangedServer(haproxy=acted))
