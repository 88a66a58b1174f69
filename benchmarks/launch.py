"""The command ``ratelimit`` from this checkout, in a chosen form.

``python -m benchmarks.launch compiled serve --config FILE`` runs the extensions, ``plain`` the same
modules as plain Python although their extensions stand beside them.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class PlainFinder(MetaPathFinder):
    """Finds ``ratelimit.x.y`` in y.py, where the default finder prefers an extension."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package.split(".")[0] == "ratelimit":
            for folder in path or ():
                source = Path(folder, f"{name}.py")
                if source.is_file():
                    return spec_from_file_location(fullname, source)
        return None


def main() -> None:
    form = sys.argv.pop(1)
    if form == "plain":
        sys.meta_path.insert(0, PlainFinder())

    from ratelimit import cli, engine  # the finder comes first

    if engine.compiled() != (form == "compiled"):
        sys.exit(f"the {form} form is not there; python setup.py build_ext --inplace compiles")
    cli.main(prog_name="ratelimit")


if __name__ == "__main__":
    main()
