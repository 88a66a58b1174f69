"""The two forms of the compiled modules: extensions, and the same files as plain Python."""

from __future__ import annotations

import functools
import importlib
import sys
from importlib.abc import MetaPathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

import ratelimit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from ratelimit.engine.check import Engine
    from ratelimit.spop.respond import Responder

PACKAGE = Path(ratelimit.__file__).parent

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.pxd")
)
"""Modules with a .pxd file, as setup.py finds them."""


class PlainFinder(MetaPathFinder):
    """Finds ``ratelimit.x.y`` in y.py, while the default finder prefers an extension."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package.split(".")[0] == "ratelimit":
            for folder in path or ():
                source = Path(folder, f"{name}.py")
                if source.is_file():
                    return spec_from_file_location(fullname, source)
        return None


def stale_extensions() -> list[str]:
    """Return the sources that are newer than their extension."""
    stale = []
    for module in MODULES:
        stem = PACKAGE.parent.joinpath(*module.split("."))
        for extension in stem.parent.glob(f"{stem.name}.*.so"):
            built = extension.stat().st_mtime
            sources = (stem.with_suffix(suffix) for suffix in (".py", ".pxd"))
            stale += [source.name for source in sources if source.stat().st_mtime > built]
    return stale


@functools.cache
def plain_modules() -> dict[str, ModuleType]:
    """Return plain copies of ``MODULES``, which use each other and share all the rest.

    What ``import`` finds stays as it was.
    """
    before = {name: sys.modules.pop(name, None) for name in MODULES}
    finder = PlainFinder()
    sys.meta_path.insert(0, finder)
    try:
        return {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.meta_path.remove(finder)
        for name, module in before.items():
            package, _, attribute = name.rpartition(".")
            if module is None:
                del sys.modules[name]
                delattr(sys.modules[package], attribute)
            else:
                sys.modules[name] = module
                setattr(sys.modules[package], attribute, module)


def plain_engine() -> type[Engine]:
    """Return the plain ``Engine``, for comparison with the compiled one in the same process."""
    engine: type[Engine] = plain_modules()["ratelimit.engine.check"].Engine
    return engine


@functools.lru_cache(64)
def responder(engine: Engine) -> Responder:
    """Return the responder of an engine, in the same form; always the same object."""
    # Imported late, after the form is selected.
    from ratelimit.engine.check import Engine
    from ratelimit.spop import respond

    module = respond if type(engine) is Engine else plain_modules()[respond.__name__]
    made: Responder = module.Responder(engine)
    return made
