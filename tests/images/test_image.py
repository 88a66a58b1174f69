"""The images by themselves: ``make test-images``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.helpers.composefile import ROOT
from tests.images import engine
from tests.images.engine import AGENT, DEVELOPMENT, LIMIT, podman, until

EPOCH = 1767225600
"""Of all that the Dockerfile dates, in seconds."""


def test_size() -> None:
    found = engine.size()
    assert 0 < found.own < found.whole < LIMIT


def test_runtime_image_has_the_program_compiled_and_no_compiler() -> None:
    """On a file system that can't be written, as nobody in particular, without a network."""
    bare = ("--rm", "--network=none", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all")
    bounds = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000")
    assert "(compiled)" in podman("run", *bare, *bounds, AGENT, "version")
    script = (
        "id -u; command -v gcc cc ld make pip npm; find / -xdev -perm /6000 -user 10001; exit 0"
    )
    shell = ("--entrypoint", "sh", AGENT, "-c", script)
    assert podman("run", *bare, *bounds, *shell).split() == ["10001"]


def test_the_same_sources_make_the_same_files() -> None:
    again = f"{AGENT}-again"
    engine.image(again, ROOT / "Dockerfile", "runtime", cached=False)
    first, second = engine.files(AGENT), engine.files(again)
    engine.buildah("rmi", again)
    assert "opt/ratelimit/bin/ratelimit" in first
    assert {name for name in first | second if first.get(name) != second.get(name)} == set()


def test_the_day_of_the_build_is_in_no_file() -> None:
    """The test above can't see it if it builds on the same day."""
    bounds = ("--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000")
    root = ("--user=0", "--entrypoint=getent", AGENT, "shadow", "ratelimit")
    _, _, changed, *_ = podman("run", *bounds, *root).split(":")
    assert int(changed) * 24 * 3600 == EPOCH


def test_image_says_how_it_is_run() -> None:
    about = json.loads(podman("image", "inspect", AGENT))[0]
    assert about["Config"]["Entrypoint"] == ["ratelimit"]
    assert about["Config"]["Cmd"] == ["serve"]
    assert about["User"] == "ratelimit"
    assert about["Healthcheck"]["Test"][0] == "CMD"
    assert about["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_the_image_alone_is_well_and_ends_at_once(tmp_path: Path) -> None:
    """With its own health check and defaults, and only the folder of the state to write to."""
    health = json.loads(podman("image", "inspect", AGENT))[0]["Healthcheck"]["Test"][1:]
    name = f"ratelimit-alone-{tmp_path.name}"
    bounds = ("--ulimit=nofile=8192:8192", "--ulimit=nproc=1000:1000")
    bare = ("--network=none", "--read-only", "--read-only-tmpfs=false", "--cap-drop=all")
    state = f"--volume={name}:/var/lib/ratelimit"
    podman("run", "--detach", "--no-healthcheck", "--name", name, *bare, *bounds, state, AGENT)

    def well() -> bool:
        try:
            podman("exec", name, *health)
        except AssertionError:
            return False
        return True

    try:
        until(well, "the health check of the image")
        # SIGTERM reaches the agent itself; otherwise podman would kill it after the time.
        podman("stop", "--time=10", name)
        assert podman("inspect", "--format", "{{.State.ExitCode}}", name).strip() == "0"
    finally:
        podman("rm", "--force", name)
        podman("volume", "rm", name)


def test_the_development_image_runs_the_tests() -> None:
    engine.image(DEVELOPMENT, ROOT / "Dockerfile", "development")
    options = ("--rm", "--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000")
    found = podman("run", *options, DEVELOPMENT, "pytest", "-q", "tests/engine")
    assert re.search(r"\d+ passed", found)
    assert "failed" not in found
