"""What is built, what is in it, and that it runs where it is installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from redis.asyncio.connection import Connection

import ratelimit
from ratelimit.haproxy import process as haproxy
from tests.helpers.forms import MODULES, PACKAGE

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = PACKAGE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NO_COMPILER = {"CC": "no-such-compiler", "PATH": ""}


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command without the variables of this run; standard error goes where output goes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RATELIMIT_")}
    return subprocess.run(
        command,
        env=kept | variables,
        cwd=Path(sys.prefix),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def build(sdist: Path, to: Path, **variables: str) -> Path:
    """Build a wheel from the sdist with the tools of this environment."""
    ran = run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", to),
        unpack(sdist, to),
        **variables,
    )
    assert ran.returncode == 0, ran.stdout
    (wheel,) = to.glob("*.whl")
    return wheel


def unpack(sdist: Path, to: Path) -> Path:
    # Not by tarfile: Python 3.11.2 has no safe form of extractall(), 3.12 warns of the other one.
    assert run("tar", "-xzf", sdist, "-C", to).returncode == 0
    return to / sdist.name.removesuffix(".tar.gz")


def install(wheel: Path, to: Path) -> Path:
    """Install a wheel, with what it depends on, into a new environment; return its command."""
    venv.create(to, with_pip=True)
    ran = run(to / "bin/python", "-m", "pip", "install", "--quiet", wheel)
    assert ran.returncode == 0, ran.stdout
    return to / "bin/ratelimit"


def extensions(names: Iterable[str]) -> list[str]:
    """Return the modules that are among these files as extensions."""
    suffix = EXTENSION_SUFFIXES[0]
    return sorted(n.removesuffix(suffix).replace("/", ".") for n in names if n.endswith(suffix))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, and the wheel that was built from it, as a release has them."""
    to = tmp_path_factory.mktemp("built")
    source = to / "source"
    # As it lies here, with the extensions of this checkout, but nothing that a build left behind.
    ignore = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignore)
    for name in (".ci", ".github"):
        shutil.copytree(ROOT / name, source / name)
    ran = run(sys.executable, "-m", "build", "--outdir", to, source)
    assert ran.returncode == 0, ran.stdout
    return to


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (found,) = built.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def test_every_typed_module_is_plain_python_too() -> None:
    for module in MODULES:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()


def test_every_package_is_listed() -> None:
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("*.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"ratelimit.haproxy_files"}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        # Neither has a public way to answer with other errors, or to know that reading is paused
        # (api/server.py); nor to take over a connection after its handshake (redis/connection.py).
        ("aiohttp", {"_reading_paused": web.RequestHandler, "handle_error": web.RequestHandler}),
        ("redis", {"parse_error": Connection()._parser, "_writer": Connection()}),
    ],
)
def test_a_library_whose_private_parts_are_used_stays_below_its_next_major_version(
    name: str, parts: dict[str, object]
) -> None:
    for part, owner in parts.items():
        assert hasattr(owner, part), part
    (wanted,) = (one for one in PROJECT["project"]["dependencies"] if re.match(rf"{name}\b", one))
    major = int(importlib.metadata.version(name).partition(".")[0])
    assert wanted.endswith(f", < {major + 1}")


def test_the_compile_group_is_what_a_build_takes() -> None:
    assert PROJECT["dependency-groups"]["compile"] == PROJECT["build-system"]["requires"]


def test_the_haproxy_files_of_a_checkout() -> None:
    assert haproxy.files() == ROOT / "haproxy"


@pytest.mark.packaging
def test_the_sdist_holds_the_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    made = (".c", ".pyc", ".so")
    assert not [name for name in names if name.startswith("ratelimit/") and name.endswith(made)]
    for module in MODULES:
        assert module.replace(".", "/") + ".pxd" in names
    for folder in ("benchmarks", "haproxy", "systemd", "tests"):
        wanted = {
            str(path.relative_to(ROOT))
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert wanted <= names
    assert {"LICENSE", "Makefile", "README.md", "setup.py", ".ci/run"} <= names
    assert ".github/workflows/ci.yml" in names


@pytest.mark.packaging
def test_the_wheel_is_compiled_and_holds_the_haproxy_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert extensions(names) == MODULES
    sources = {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.suffix in (".html", ".lua", ".py", ".typed")
    }
    files = {f"ratelimit/haproxy_files/{path.name}" for path in (ROOT / "haproxy").iterdir()}
    packed = {name for name in names if name.startswith("ratelimit/")}
    assert {name for name in packed if not name.endswith(".so")} == sources | files
    version = f"ratelimit-{ratelimit.__version__}"
    assert {name.partition("/")[0] for name in names} == {
        "ratelimit",
        f"{version}.data",
        f"{version}.dist-info",
    }
    units = f"{version}.data/data/share/ratelimit/systemd"
    assert {name for name in names if name.startswith(f"{version}.data/")} == {
        f"{units}/{path.name}" for path in (ROOT / "systemd").iterdir()
    }


@pytest.mark.packaging
def test_the_wheel_runs_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    command = install(wheel, tmp_path / "venv")
    assert run(command, "version").stdout == f"ratelimit {ratelimit.__version__} (compiled)\n"
    assert run(command, "check").stdout.startswith("defaults: ok\n")
    found = run(
        *(tmp_path / "venv/bin/python", "-c"),
        "from ratelimit.haproxy.process import files; print(files())",
    )
    folder = Path(found.stdout.strip())
    assert folder.is_relative_to(tmp_path / "venv")
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in (ROOT / "haproxy").iterdir()
    }


@pytest.mark.packaging
@pytest.mark.parametrize("variables", [{"RATELIMIT_NO_EXTENSIONS": "1"}, NO_COMPILER])
def test_a_plain_wheel_runs_too(sdist: Path, tmp_path: Path, variables: dict[str, str]) -> None:
    wheel = build(sdist, tmp_path, **variables)
    with zipfile.ZipFile(wheel) as archive:
        assert not extensions(archive.namelist())
        archive.extractall(tmp_path / "installed")
    version = run(
        sys.executable, "-m", "ratelimit", "version", PYTHONPATH=str(tmp_path / "installed")
    )
    assert version.stdout == f"ratelimit {ratelimit.__version__} (pure)\n"


@pytest.mark.packaging
def test_a_build_without_a_compiler_can_be_refused(sdist: Path, tmp_path: Path) -> None:
    ran = run(
        *(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path),
        unpack(sdist, tmp_path),
        RATELIMIT_REQUIRE_EXTENSIONS="1",
        **NO_COMPILER,
    )
    assert ran.returncode != 0
    assert "RATELIMIT_REQUIRE_EXTENSIONS is set" in ran.stdout
    assert "apt-get install gcc" in ran.stdout
    assert not list(tmp_path.glob("*.whl"))
