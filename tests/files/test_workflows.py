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

from ratelimit import __version__
from tests import matrix

ROOT = Path(__file__).parent.parent.parent
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


def test_the_tests_of_the_matrix_exist() -> None:
    paths = (*matrix.WITH_HAPROXY, *matrix.WITH_STORE)
    missing = [path for path in paths if not (ROOT / path.removeprefix("--ignore=")).exists()]
    assert missing == []


def test_a_release_has_no_image_that_was_not_tried_before() -> None:
    tried, released = (
        read(name)["jobs"]["image"]["strategy"]["matrix"] for name in ("ci.yml", "release.yml")
    )
    assert tried == released


def script_of(job: str, name: str) -> str:
    """Return what the step with this name runs, as GitHub gives it to bash."""
    (found,) = (
        step["run"]
        for step in read("release.yml")["jobs"][job]["steps"]
        if step.get("name") == name
    )
    return str(found)


@pytest.mark.parametrize(
    ("tag", "latest"),
    [
        ("v1.2.3", True),
        ("v0.10", True),
        ("v1.2.3.post1", True),
        ("v1.2.3a1", False),
        ("v1.2.3b1", False),
        ("v1.2.3rc1", False),
        ("v1.2.3.dev0", False),
        ("v1.2.3.post1.dev2", False),
        ("v1.2.3-rc1", False),
        ("vlatest", False),
    ],
)
def test_latest_is_no_version_before_a_release(tmp_path: Path, tag: str, latest: bool) -> None:
    outputs = tmp_path / "outputs"
    subprocess.run(
        ["bash", "-e", "-c", script_of("sdist", "The names of the image")],
        env={
            "GITHUB_REF_NAME": tag,
            "GITHUB_REPOSITORY": "Some-Owner/RateLimit",
            "GITHUB_OUTPUT": str(outputs),
        },
        check=True,
    )
    assert outputs.read_text().splitlines() == [
        "image=ghcr.io/some-owner/ratelimit",
        f"tags={tag} latest" if latest else f"tags={tag}",
    ]


@pytest.mark.parametrize(("tag", "right"), [(f"v{__version__}", True), ("v99.0", False)])
def test_a_tag_that_is_not_the_version_releases_nothing(tag: str, right: bool) -> None:
    ran = subprocess.run(
        ["bash", "-e", "-c", script_of("sdist", "The tag is the version")],
        cwd=ROOT,
        env={"GITHUB_REF_NAME": tag},
        check=False,
    )
    assert (ran.returncode == 0) is right
    jobs = read("release.yml")["jobs"]
    for name in jobs.keys() - {"sdist"}:
        assert "sdist" in jobs[name]["needs"], name


def test_an_image_has_its_names_for_every_machine_it_was_built_for(tmp_path: Path) -> None:
    """The last step, with a docker that notes down what it is asked for."""
    jobs = read("release.yml")["jobs"]
    machines = [one["machine"] for one in jobs["image"]["strategy"]["matrix"]["include"]]
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    docker.chmod(0o755)
    subprocess.run(
        ["bash", "-e", "-c", script_of("names", "One image of those of the machines")],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "GITHUB_REF_NAME": "v1.2.3",
            "IMAGE": "ghcr.io/some-owner/ratelimit",
            "TAGS": "v1.2.3 latest",
        },
        check=True,
    )
    image = "ghcr.io/some-owner/ratelimit"
    parts = " ".join(f"{image}:v1.2.3-{machine}" for machine in machines)
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"buildx imagetools create --tag {image}:{tag} {parts}" for tag in ("v1.2.3", "latest")
    ]


def test_wheels_are_built_for_every_python_that_is_supported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest = re.fullmatch(r">= 3\.(\d+)", project["project"]["requires-python"])
    assert oldest is not None
    wheels = project["tool"]["cibuildwheel"]
    assert wheels["build"].split()[0] == f"cp3{oldest[1]}-*"
    assert wheels["environment"] == {"RATELIMIT_REQUIRE_EXTENSIONS": "1"}
