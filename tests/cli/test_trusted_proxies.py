"""``ratelimit trusted-proxies``, against a server that stands in for a CDN's."""

from __future__ import annotations

import http.server
import json
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ratelimit import __version__
from ratelimit.cli.main import main
from ratelimit.haproxy.trusted_proxies import read

IPV4 = "173.245.48.0/20\n104.16.0.0/13\n"
IPV6 = "2400:cb00::/32"  # without a line break, as it is published


class Cdn:
    """Serves pages by path: a status and a body, or where the page has gone."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, str]] = {"/4": (200, IPV4), "/6": (200, IPV6)}
        self.agents: list[str] = []
        cdn = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                cdn.agents.append(self.headers["User-Agent"])
                status, body = cdn.pages.get(self.path, (404, "not here"))
                self.send_response(status)
                if status == 301:
                    self.send_header("Location", body)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def cdn() -> Iterator[Cdn]:
    made = Cdn()
    yield made
    made.server.shutdown()
    made.server.server_close()


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["trusted-proxies", *words])


def update(cdn: Cdn, file: Path, *words: str, paths: tuple[str, ...] = ("/4", "/6")) -> Result:
    sources = [word for path in paths for word in ("--source", cdn.url + path)]
    return run("update", str(file), *sources, *words)


def test_a_list_is_written_and_is_sound(cdn: Cdn, tmp_path: Path) -> None:
    file = tmp_path / "cdn.lst"
    result = update(cdn, file)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "2 IPv4 and 1 IPv6 networks, 0 days old from " in result.stdout
    assert "3 added, 0 removed" in result.stdout
    found = read(file.read_text())
    assert [str(network) for _, network in found.networks] == (IPV4 + IPV6).split()
    assert found.sources == (f"{cdn.url}/4", f"{cdn.url}/6")
    assert found.date is not None and abs((datetime.now(UTC) - found.date).total_seconds()) < 3600
    assert stat.S_IMODE(file.stat().st_mode) == 0o644, "HAProxy's user may read it"
    assert list(tmp_path.iterdir()) == [file]
    assert set(cdn.agents) == {f"ratelimit/{__version__}"}

    result = run("check", str(file))
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{file}: 2 IPv4 and 1 IPv6 networks, 0 days old")

    file.chmod(0o640)
    cdn.pages["/4"] = (200, IPV4 + "131.0.72.0/22\n")
    assert "1 added, 0 removed" in update(cdn, file).stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (404, "", "answers with status 404"),
        (200, "", "contains no networks"),
        (200, "<html>\n", "line 1: not an address or a network: '<html>'"),
        (200, "0.0.0.0/0\n", "0.0.0.0/0 is too wide"),
        (200, "10.0.0.0/16\n", "10.0.0.0/16 is not a public range"),
        (200, "104.16.0.0/13\n104.16.0.0/14\n", "104.16.0.0/14 is in 104.16.0.0/13"),
        (200, "8.8.8.1/24\n", "8.8.8.1/24 has bits set beyond its prefix"),
        (200, "131.0.72.0/22\n", "2 of its 3 networks would be removed"),
        (200, "# " + "x" * (1 << 20), "larger than 1 MiB"),
        (301, "https://192.0.2.1/4", "redirects to https://192.0.2.1/4"),
    ],
)
def test_a_list_stays_if_a_source_is_not_what_it_was(
    cdn: Cdn, tmp_path: Path, status: int, body: str, problem: str
) -> None:
    file = tmp_path / "cdn.lst"
    update(cdn, file)
    before = file.read_text()
    cdn.pages["/4"] = (status, body)
    result = update(cdn, file)
    assert result.exit_code == 1
    assert problem in result.stderr and "Traceback" not in result.stderr
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_list_is_written_all_the_same_if_that_is_said(cdn: Cdn, tmp_path: Path) -> None:
    file = tmp_path / "cdn.lst"
    update(cdn, file)
    cdn.pages["/4"] = (200, "131.0.72.0/22\n")
    result = update(cdn, file, "--force")
    assert (result.exit_code, "1 added, 2 removed" in result.stdout) == (0, True)


def test_a_page_may_move_on_its_own_site(cdn: Cdn, tmp_path: Path) -> None:
    cdn.pages |= {"/old": (301, "/4")}
    assert update(cdn, tmp_path / "cdn.lst", paths=("/old",)).exit_code == 0


def test_nobody_answers(cdn: Cdn, tmp_path: Path) -> None:
    cdn.server.shutdown()
    cdn.server.server_close()
    result = update(cdn, tmp_path / "cdn.lst")
    assert result.exit_code == 1
    assert "Connection refused" in result.stderr and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["http://cdn.example/4", "file:///etc/passwd", "x"])
def test_only_https_is_asked(tmp_path: Path, url: str) -> None:
    result = run("update", str(tmp_path / "cdn.lst"), "--source", url)
    assert (result.exit_code, "must be https://HOST/PATH" in result.stderr) == (1, True)


def test_a_folder_that_can_not_be_written(cdn: Cdn, tmp_path: Path) -> None:
    result = update(cdn, tmp_path / "none" / "cdn.lst")
    assert (result.exit_code, "No such file or directory" in result.stderr) == (1, True)


def test_check_tells_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "lb.lst"
    file.write_text("10.0.0.1/16\n# date: 2020-01-01T00:00:00Z\n")
    result = run("check", str(file), "--private")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert "days old" in lines[0]
    assert lines[1] == (
        f"{file}: line 1: 10.0.0.1/16 has bits set beyond its prefix: HAProxy reads 10.0.0.0/16"
    )
    assert lines[2].startswith(f"{file}: 1 IPv4 and 0 IPv6 networks, ")
    answer = json.loads(run("check", str(file), "--json").stdout)
    assert (answer["networks"], answer["date"]) == (1, "2020-01-01T00:00:00+00:00")
    assert [one["line"] for one in answer["findings"]] == [0, 1, 1]
    result = run("check", str(tmp_path / "none.lst"))
    assert (result.exit_code, "No such file" in result.stderr) == (1, True)
