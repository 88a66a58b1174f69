"""Build of the compiled modules; everything else is in pyproject.toml.

Each module of ``MODULES`` is plain Python with C types in a .pxd file beside it. With a C compiler
it becomes an extension; without one the same file runs as it is. Two variables decide otherwise:
``RATELIMIT_NO_EXTENSIONS=1`` compiles nothing, ``RATELIMIT_REQUIRE_EXTENSIONS=1`` makes a failed
compilation an error.
"""

import os

from setuptools import Extension, setup

MODULES = [
    "ratelimit.spop.codec",
    "ratelimit.engine.key",
    "ratelimit.engine.rule",
    "ratelimit.engine.table",
    "ratelimit.engine.answer",
]


def switched_on(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def extensions() -> list[Extension]:
    if switched_on("RATELIMIT_NO_EXTENSIONS"):
        return []
    from Cython.Build import cythonize

    required = switched_on("RATELIMIT_REQUIRE_EXTENSIONS")
    return cythonize(
        [
            Extension(
                module,
                [module.replace(".", "/") + ".py"],
                optional=not required,
                extra_compile_args=["-O3"],
            )
            for module in MODULES
        ],
        build_dir="build/cython",
        compiler_directives={
            "language_level": "3",
            # Types come from the .pxd files alone: `x: int` in the source means any integer.
            "annotation_typing": False,
            # Places in the table come from the hash, places in a frame are tested by the Reader.
            "boundscheck": False,
            "wraparound": False,
            "initializedcheck": False,
            # Divisors are never 0 or negative.
            "cdivision": True,
        },
    )


setup(ext_modules=extensions())
