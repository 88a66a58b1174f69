"""``ratelimit trusted-proxies``: download and check lists of trusted proxies."""

from __future__ import annotations

import http.client
import json
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from ratelimit import __version__
from ratelimit.exceptions import RatelimitError
from ratelimit.files import write_whole
from ratelimit.haproxy.trusted_proxies import ProxyList, judge, read, write
from ratelimit.limiter.keys import Network
from ratelimit.notation import printable

CLOUDFLARE = ("https://www.cloudflare.com/ips-v4", "https://www.cloudflare.com/ips-v6")
"""URLs under which Cloudflare publishes its networks."""

_TIMEOUT = 10  # seconds
_LARGEST = 1 << 20  # bytes
_SHOWN = 20  # findings
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.group("trusted-proxies")
def trusted_proxies() -> None:
    """Maintain lists of proxies whose headers HAProxy trusts, such as cdn.lst."""


@trusted_proxies.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--private", is_flag=True, help="Accept private ranges, as in lb.lst.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(file: Path, private: bool, as_json: bool) -> None:
    """Check the list FILE; exit with status 1 if there are findings."""
    now = datetime.now(UTC)
    found = _read(file)
    findings = judge(found, now, private)
    if as_json:
        shown = [{"line": one.line, "problem": one.problem} for one in findings]
        date = found.date.isoformat() if found.date else None
        answer = {"networks": len(found.networks), "date": date, "sources": found.sources}
        click.echo(json.dumps(answer | {"findings": shown}, indent=1))
    else:
        for finding in findings:
            click.echo(f"{file}: {printable(str(finding))}")
        click.echo(f"{file}: {_summary(found, now)}")
    sys.exit(1 if findings else 0)


@trusted_proxies.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="URL",
    default=CLOUDFLARE,
    show_default=True,
    help="URL of a text with one network per line; may be repeated.",
)
@click.option("--force", is_flag=True, help="Write FILE despite findings.")
def update(file: Path, sources: tuple[str, ...], force: bool) -> None:
    """Write the networks that a CDN publishes to the list FILE.

    FILE is not changed if a source does not answer, if a source contains anything but networks, or
    if more than half of the networks in FILE would be removed.
    """
    now = datetime.now(UTC)
    old = _read(file) if file.exists() else ProxyList()
    networks = list(dict.fromkeys(network for url in sources for network in _fetch(url)))
    text = write(networks, now, sources)
    findings = [str(finding) for finding in judge(read(text), now)]
    before = {network for _, network in old.networks}
    lost = before - set(networks)
    if 2 * len(lost) > len(before):
        findings.append(f"{len(lost)} of its {len(before)} networks would be removed")
    if findings and not force:
        shown = "\n  ".join(map(printable, findings[:_SHOWN]))
        raise RatelimitError(f"{file} is not changed; --force writes it:\n  {shown}")
    try:
        # HAProxy's user must be able to read it.
        mode = file.stat().st_mode & 0o777 if file.exists() else 0o644
        write_whole(file, [text.encode()], mode)
    except OSError as error:
        raise RatelimitError(f"{file}: {error.strerror}") from error
    added = set(networks) - before
    click.echo(f"{file}: {_summary(read(text), now)}")
    click.echo(f"{len(added)} added, {len(lost)} removed; reload HAProxy to apply")


def _summary(found: ProxyList, now: datetime) -> str:
    said = f"{found.count(4)} IPv4 and {found.count(6)} IPv6 networks"
    if found.date is None:
        return f"{said}, without a date"
    days = max(0, (now - found.date).days)
    sources = f" from {printable(', '.join(found.sources))}" if found.sources else ""
    return f"{said}, {days} days old{sources}"


def _read(file: Path) -> ProxyList:
    try:
        with file.open("rb") as opened:
            data = opened.read(_LARGEST + 1)
    except OSError as error:
        raise RatelimitError(f"{file}: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise RatelimitError(f"{file}: larger than {_LARGEST >> 20} MiB")
    return read(data.decode("utf-8", "backslashreplace"))


class _SameSite(urllib.request.HTTPRedirectHandler):
    """Follows only redirects within the same origin."""

    def redirect_request(self, req: urllib.request.Request, *args: Any) -> Any:
        old, new = urlsplit(req.full_url), urlsplit(args[-1])
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            return None
        return super().redirect_request(req, *args)


def _fetch(url: str) -> list[Network]:
    """Return the networks of a source; raise RatelimitError if it contains anything else."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise RatelimitError(f"{printable(url)}: must be https://HOST/PATH")
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
        url, headers={"User-Agent": f"ratelimit/{__version__}"}
    )
    try:
        opener = urllib.request.build_opener(_SameSite())
        with opener.open(request, timeout=_TIMEOUT) as answer:
            data = answer.read(_LARGEST + 1)
    except urllib.error.HTTPError as error:
        with error:
            to = error.headers.get("Location")
            why = f"redirects to {printable(to)}" if to else f"answers with status {error.code}"
        raise RatelimitError(f"{url}: {why}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise RatelimitError(f"{url}: {getattr(error, 'reason', error)}") from None
    if len(data) > _LARGEST:
        raise RatelimitError(f"{url}: larger than {_LARGEST >> 20} MiB")
    found = read(data.decode("utf-8", "backslashreplace"))
    if found.findings:
        raise RatelimitError(f"{url}: {printable(str(found.findings[0]))}")
    if not found.networks:
        raise RatelimitError(f"{url}: contains no networks")
    return [network for _, network in found.networks]
