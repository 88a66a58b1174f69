"""The pipeline: every action pinned, no permission too many, and nothing that is not there."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import matrix

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows" / name).read_text())
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_a_commit_and_its_version_is_told(path: Path) -> None:
    used = re.findall(r"(?m)^ *(?:- )?uses: (.*)$", path.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_job_has_no_permission_that_it_does_not_name(path: Path) -> None:
    workflow = read(path.name)
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        assert job["permissions"], name
        assert job["timeout-minutes"] <= 60, name


def test_no_known_fault() -> None:
    program = Path(sys.executable).parent / "zizmor"
    ran = subprocess.run(
        [program, "--offline", "--persona=pedantic", "--no-progress", ROOT / ".github/workflows"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_matrix_is_the_one_of_the_makefile() -> None:
    job = read("ci.yml")["jobs"]["matrix"]
    assert job["strategy"]["matrix"]["server"] == [entry.name for entry in matrix.ENTRIES]


def test_wheels_are_built_for_every_python_that_is_supported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest = re.fullmatch(r">= 3\.(\d+)", project["project"]["requires-python"])
    assert oldest is not None
    wheels = project["tool"]["cibuildwheel"]
    assert wheels["build"].split()[0] == f"cp3{oldest[1]}-*"
    assert wheels["environment"] == {"RATELIMIT_REQUIRE_EXTENSIONS": "1"}
