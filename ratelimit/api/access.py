"""Access control: bearer tokens, and protection against other sites open in an operator's browser.

A page of any site can make a browser on the operator's machine send requests to loopback. Three
checks stop such requests: changes need a JSON content type, which a page can't send to another
origin without permission; requests that the browser marks as cross-site are refused (Fetch
Metadata, Origin); and on loopback only local names are accepted in Host, which prevents DNS
rebinding.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

from ratelimit.agent.trust import Trusted
from ratelimit.api.audit import Attempt
from ratelimit.api.errors import ProblemError
from ratelimit.api.guesses import Guesses
from ratelimit.api.tokens import STRANGER, Caller, Role, Tokens
from ratelimit.config.sections import OpsSection

OPERATOR = "operator"
"""Name of the caller if the API has no tokens."""

_REALM = {"WWW-Authenticate": 'Bearer realm="ratelimit"'}


class Access:
    """Decides which requests are accepted.

    ``tokens`` is None if the API has none; ``refused`` counts refused requests.

    Args:
        config: ``[ops]``; ``hosts`` and ``origins`` are those of a proxy in front.
        proxies: peers whose ``X-Forwarded-For`` is trusted.
        pause: delays a request by a number of seconds.
    """

    def __init__(
        self,
        tokens: Tokens | None,
        config: OpsSection,
        proxies: Trusted,
        pause: Callable[[web.Request, float], Awaitable[None]],
    ) -> None:
        self.tokens = tokens
        self.refused = 0
        self._hosts = frozenset(config.hosts) if config.listen.is_loopback else None
        self._origins = frozenset(config.origins)
        self._proxies = proxies
        self._pause = pause
        self._guesses = Guesses()

    def attempt(self, request: web.Request, path: str) -> Attempt:
        """Return what is known of a request before it is checked.

        ``path`` must be in the form for the log.
        """
        peer = request.remote or ""
        forwarded = request.headers.getall("X-Forwarded-For", [])
        client = client_of(",".join(forwarded), self._proxies) if peer in self._proxies else ""
        return Attempt(request.method, path, peer, client)

    async def admit(self, request: web.Request, role: Role, attempt: Attempt) -> Caller:
        """Return the caller and store it in the attempt. Raises ProblemError without access."""
        try:
            if self._hosts is not None:
                _check_host(request, self._hosts)
            _check_origin(request, self._origins)
            attempt.caller = await self._caller(request, role, attempt)
            _check_role(attempt.caller, role)
        except ProblemError:
            self.refused += 1
            raise
        return attempt.caller

    async def _caller(self, request: web.Request, role: Role, attempt: Attempt) -> Caller:
        if self.tokens is None:
            return Caller(OPERATOR, Role.OPERATE)
        if role is Role.NOBODY:
            return STRANGER
        given = request.headers.getall("Authorization", [])
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer":
            raise ProblemError(401, "Authorization: must be a bearer token", headers=_REALM)
        peer = attempt.forwarded or attempt.peer
        if wait := self._guesses.wait(peer, time.monotonic()):
            await self._pause(request, wait)
        caller = self.tokens.find(token.strip())
        if caller is None:
            self._guesses.note(peer, time.monotonic())
            header = _REALM["WWW-Authenticate"] + ', error="invalid_token"'
            raise ProblemError(
                401, "Authorization: unknown token", headers={"WWW-Authenticate": header}
            )
        return caller


def client_of(forwarded: str, proxies: Trusted) -> str:
    """Return the client that ``X-Forwarded-For`` names: the last address that is no trusted proxy.

    Returns an empty string if the header has an invalid address or none but trusted proxies.
    """
    for text in reversed(forwarded.split(",")):
        try:
            address = str(ip_address(text.strip()))
        except ValueError:
            return ""
        if address not in proxies:
            return address
    return ""


def _check_role(caller: Caller, role: Role) -> None:
    if caller.role < role:
        own, needed = caller.role.name.lower(), role.name.lower()
        raise ProblemError(403, f"the token of {caller.name} has the role {own}, not {needed}")


def _check_host(request: web.Request, hosts: Collection[str]) -> None:
    name = _host_of(request.headers.get("Host", ""))
    if name == "localhost" or name in hosts:
        return
    try:
        if ip_address(name).is_loopback:
            return
    except ValueError:
        pass
    raise ProblemError(
        421, "Host: on loopback it must be localhost, a loopback address or one of ops.hosts"
    )


def _check_origin(request: web.Request, origins: Collection[str]) -> None:
    site = request.headers.get("Sec-Fetch-Site", "none")
    # A link from another site may open the page: that site can't read the answer.
    link = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    if site not in ("none", "same-origin") and not link:
        raise ProblemError(403, "Sec-Fetch-Site: requests from other sites are refused")
    origin = request.headers.get("Origin")
    if origin is not None and origin.lower() not in origins:
        try:
            own = urlsplit(origin).netloc.lower() == request.headers.get("Host", "").lower()
        except ValueError:
            own = False
        if not own:
            raise ProblemError(403, "Origin: must match Host or be one of ops.origins")


def _host_of(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""
