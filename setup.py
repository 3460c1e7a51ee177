"""Build the native CPU kernel as a plain shared library; everything else is in pyproject.toml.

The library is optional: where it cannot be built, the install succeeds and says so once.
"""

from __future__ import annotations

import platform
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

# -ffp-contract=off: the update rounds where torch rounds. No -ffast-math: it would move the update.
# Linked without OpenMP on purpose: native.py hands it the runtime that torch has loaded.
PORTABLE = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wno-psabi"]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []


class BuildLibrary(build_ext):
    """A shared library that is no Python module, with OpenMP where the compiler takes it; or none at all."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []  # no PyInit function

    def build_extension(self, ext: Extension) -> None:
        errors = []
        for flags in ([*PORTABLE, *OPENMP], PORTABLE) if OPENMP else (PORTABLE,):
            ext.extra_compile_args = flags
            try:
                super().build_extension(ext)
                return
            except (CCompilerError, BaseError, OSError) as error:
                errors.append(str(error))
        print(
            "thermoopt: the native CPU kernel was not built, the torch backends take its place. "
            f"Install gcc or clang and reinstall to have it. ({errors[0]})",
            file=sys.stderr,
        )


setup(
    ext_modules=[
        Extension(
            "thermoopt.kernels._native",
            ["thermoopt/kernels/native.c"],
            optional=True,
            libraries=[] if platform.system() == "Windows" else ["m"],
        )
    ],
    cmdclass={"build_ext": BuildLibrary},
)
