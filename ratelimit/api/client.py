"""The client of the HTTP API, used by the commands."""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ratelimit.exceptions import ApiError
from ratelimit.tls import tls_problem

DEFAULT_URL = "http://127.0.0.1:9191"

_TIMEOUT = 10.0  # seconds
_MAX_ANSWER = 64 << 20  # bytes


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: the API sends none, and a token must not follow one to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Client:
    """Sends requests to one node; raises ApiError for an error or an invalid answer."""

    def __init__(self, url: str = DEFAULT_URL, token: str = "") -> None:
        try:
            parts = urlsplit(url)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if "@" in url:
            raise ApiError("the URL of the API must have no user or password", 422)
        if not good:
            raise ApiError(f"{url}: must be http://HOST:PORT", 422)
        token = token.strip()
        if not re.fullmatch("[!-~]*", token):
            raise ApiError("a token must consist of printable ASCII characters without spaces", 422)
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        # No proxy: an agent on loopback is on this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())

    def get(self, path: str, **query: object) -> Any:
        """Return the answer to a GET."""
        return self._ask("GET", f"{path}?{urlencode(query)}" if query else path)

    def post(self, path: str, body: dict[str, object]) -> Any:
        """Return the answer to a POST."""
        return self._ask("POST", path, json.dumps(body).encode())

    def delete(self, path: str) -> Any:
        """Return the answer to a DELETE; an empty dictionary if it has no body."""
        return self._ask("DELETE", path)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        headers = self._headers | ({"Content-Type": "application/json"} if body else {})
        request = urllib.request.Request(  # noqa: S310 - __init__ has checked the scheme
            self.url + path, body, headers, method=method
        )
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as answer:
                raw = answer.read(_MAX_ANSWER)
            known = json.loads(raw) if raw else {}
        except urllib.error.HTTPError as error:
            with error:
                raise ApiError(self._explain(error), error.code) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ConnectionRefusedError):
                raise ApiError(
                    f"nothing listens on {self.url}; is ratelimit running? "
                    "--url or RATELIMIT_URL sets the address of its API"
                ) from None
            problem = tls_problem(error, "set its CA with SSL_CERT_FILE=FILE")
            raise ApiError(f"{self.url}: {problem or reason}") from None
        if not isinstance(known, dict):
            raise ApiError(f"{self.url}: is this the API of ratelimit?")
        return known

    def _explain(self, error: urllib.error.HTTPError) -> str:
        try:
            problem = json.loads(error.read(_MAX_ANSWER))
            detail = "; ".join(
                f"{one['field']}: {one['message']}" if one["field"] else one["message"]
                for one in problem["errors"]
            )
            detail = detail or problem["detail"]
        except (ValueError, TypeError, KeyError):
            return f"{self.url}: {error.code} {error.reason}; is this the API of ratelimit?"
        if error.code == 401:
            detail += "; set it with --token-file or RATELIMIT_TOKEN"
        return str(detail)


def path_of(folder: str, key: str) -> str:
    """Return the path of a key under ``/v1/blocks`` or ``/v1/clients``."""
    return f"{folder}/{quote(key, safe='')}"


def read_token(path: Path) -> str:
    """Return the token in a file: its first line, or the last part of ``name:role:token``."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ApiError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    for line in lines:
        text = line.strip()
        if text and not text.startswith("#"):
            return re.sub(r"^[A-Za-z0-9_.-]+:(view|blocks|operate):", "", text)
    raise ApiError(f"{path}: contains no token")
