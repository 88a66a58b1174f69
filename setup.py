"""Builds the compiled modules; everything else is in pyproject.toml.

A module with a .pxd file next to it is plain Python with C types in that file. With a C compiler it
becomes an extension; without one, the plain file is used. ``RATELIMIT_NO_EXTENSIONS=1`` compiles
nothing, ``RATELIMIT_REQUIRE_EXTENSIONS=1`` makes a failed compilation an error.
"""

import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError, PlatformError

MODULES = sorted(".".join(path.with_suffix("").parts) for path in Path("ratelimit").rglob("*.pxd"))

DIRECTIVES = {
    "language_level": "3",
    # Types come only from the .pxd files: `x: int` in the source means any integer.
    "annotation_typing": False,
    # Indices in the table come from the hash; positions in a frame are checked by the Reader.
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    # Divisors are never 0 or negative.
    "cdivision": True,
}


def switched_on(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


class BuildExtensions(build_ext):
    """Compiles all modules or none: compiled modules share C types and can't use plain ones.

    The C files are made here instead of before ``setup()``, so that an sdist has none of them.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self) -> None:
        from Cython.Build import cythonize

        made = cythonize(
            self.extensions,
            nthreads=self.parallel,
            build_dir="build/cython",
            compiler_directives=DIRECTIVES,
        )
        sources = {extension.name: extension.sources for extension in made}
        for extension in self.extensions:
            extension.sources = sources[extension.name]
        try:
            super().build_extensions()
        except (CompileError, LinkError, PlatformError) as error:
            if switched_on("RATELIMIT_REQUIRE_EXTENSIONS"):
                raise CompileError(
                    f"RATELIMIT_REQUIRE_EXTENSIONS is set, and the compiled modules can't be built:"
                    f" {error}. A C compiler and Python's headers are needed"
                    f" (Debian: apt-get install gcc libc6-dev python3-dev)."
                ) from error
            self.warn(f"ratelimit is not compiled and will run as plain Python: {error}")
            for extension in self.extensions:
                built = self.get_ext_fullpath(extension.name)
                if os.path.exists(built):
                    os.unlink(built)
            self.extensions = []


if __name__ == "__main__":  # not in the processes that cythonize() starts
    setup(
        cmdclass={"build_ext": BuildExtensions},
        ext_modules=[]
        if switched_on("RATELIMIT_NO_EXTENSIONS")
        else [
            Extension(module, [module.replace(".", "/") + ".py"], extra_compile_args=["-O3", "-g0"])
            for module in MODULES
        ],
    )
