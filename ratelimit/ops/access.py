"""Who is let in: bearer tokens, and no page of another origin in an operator's browser.

A browser on the operator's machine reaches loopback for any page it shows. Three things keep such a
page out: changes need a JSON content type, which a page can't send elsewhere unasked; requests that
the browser marks as cross-site are refused (Fetch Metadata, Origin); and on loopback only local
names are answered to, so that a foreign name pointed at 127.0.0.1 is none of ours (DNS rebinding).
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web

from ratelimit.ops.problems import ProblemError
from ratelimit.ops.tokens import Caller, Role, Tokens

OPERATOR = "operator"
"""Who a caller is where no token is asked for."""

_REALM = {"WWW-Authenticate": 'Bearer realm="ratelimit"'}


class Access:
    """Lets requests in, or not.

    ``tokens`` is None where none is asked for; ``refused`` counts requests that were not let in.
    """

    def __init__(self, tokens: Tokens | None, loopback: bool) -> None:
        self.tokens = tokens
        self.refused = 0
        self._loopback = loopback

    def admit(self, request: web.Request, role: Role) -> Caller:
        """Return who asks; raises ProblemError unless they may."""
        try:
            if self._loopback:
                _check_host(request)
            _check_origin(request)
            return self._caller(request, role)
        except ProblemError:
            self.refused += 1
            raise

    def _caller(self, request: web.Request, role: Role) -> Caller:
        if self.tokens is None:
            return Caller(OPERATOR, Role.OPERATE)
        if role is Role.NOBODY:
            return Caller("", Role.NOBODY)
        given = request.headers.getall("Authorization", [])
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer":
            raise ProblemError(401, "Authorization: a bearer token is needed", headers=_REALM)
        caller = self.tokens.find(token.strip())
        if caller is None:
            header = _REALM["WWW-Authenticate"] + ', error="invalid_token"'
            raise ProblemError(
                401, "Authorization: the token is not known", headers={"WWW-Authenticate": header}
            )
        if caller.role < role:
            raise ProblemError(403, f"the token of {caller.name} may view, not operate")
        return caller


def _check_host(request: web.Request) -> None:
    name = _host_of(request.headers.get("Host", ""))
    if name == "localhost":
        return
    try:
        if ip_address(name).is_loopback:
            return
    except ValueError:
        pass
    raise ProblemError(
        421, "Host: on loopback it must be localhost or a loopback address", headers={}
    )


def _check_origin(request: web.Request) -> None:
    site = request.headers.get("Sec-Fetch-Site", "none")
    # A link to us on another page may be followed: what it opens the other page can't read.
    link = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
    if site not in ("none", "same-origin") and not link:
        raise ProblemError(403, "Sec-Fetch-Site: pages of other sites may ask nothing here")
    origin = request.headers.get("Origin")
    if origin is not None:
        try:
            own = urlsplit(origin).netloc.lower() == request.headers.get("Host", "").lower()
        except ValueError:
            own = False
        if not own:
            raise ProblemError(403, "Origin: pages of other sites may ask nothing here")


def _host_of(header: str) -> str:
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""
