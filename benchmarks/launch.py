"""The command ``ratelimit`` from this checkout, in a chosen form.

``python -m benchmarks.launch compiled serve --config FILE`` runs the extensions, ``plain`` the same
modules as plain Python although their extensions stand beside them. ``BENCHMARK_BACKOFF`` is the
seconds between attempts to reach a Redis, in place of what the program says.
"""

from __future__ import annotations

import os
import sys

from tests.forms import PlainFinder


def main() -> None:
    form = sys.argv.pop(1)
    if form == "plain":
        sys.meta_path.insert(0, PlainFinder())

    from ratelimit import cli, engine  # the finder comes first

    if engine.compiled() != (form == "compiled"):
        sys.exit(f"the {form} form is not there; python setup.py build_ext --inplace compiles")
    if backoff := os.environ.get("BENCHMARK_BACKOFF"):
        from ratelimit.store import redis

        redis.BACKOFF = float(backoff), float(backoff)
    cli.main(prog_name="ratelimit")


if __name__ == "__main__":
    main()
