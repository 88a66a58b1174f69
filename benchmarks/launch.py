"""The command ``ratelimit`` from this checkout, in a chosen form.

``python -m benchmarks.launch compiled serve --config FILE`` runs the extensions, ``plain`` the same
modules as plain Python although their extensions stand beside them. ``BENCHMARK_BACKOFF`` is the
seconds between attempts to reach a Redis, in place of what the program says. ``BENCHMARK_TURNS`` is
a file for the times of its event loop's turns.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.helpers.forms import PlainFinder


def main() -> None:
    form = sys.argv.pop(1)
    if form == "plain":
        sys.meta_path.insert(0, PlainFinder())

    from ratelimit import engine  # the finder comes first
    from ratelimit.cli.main import main as command

    if engine.compiled() != (form == "compiled"):
        sys.exit(f"the {form} form is not there; python setup.py build_ext --inplace compiles")
    if backoff := os.environ.get("BENCHMARK_BACKOFF"):
        from ratelimit.store.redis import store as redis

        redis.BACKOFF = float(backoff), float(backoff)
    if turns := os.environ.get("BENCHMARK_TURNS"):
        from benchmarks import probe

        probe.install(Path(turns))
    command(prog_name="ratelimit")


if __name__ == "__main__":
    main()
