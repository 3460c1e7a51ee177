"""What pyproject.toml cannot say: the native kernel, the wheel's tag, the licence's text, where it was built.

The kernel is a plain shared library that is loaded with ctypes: it has no Python ABI, so that one wheel a
platform serves every Python. It is optional: where it cannot be built, the install succeeds and says so once.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

LIBRARY = "_native.dll" if platform.system() == "Windows" else "_native.so"

# -ffp-contract=off: the update rounds where torch rounds. No -ffast-math: it would move the update.
# Linked without OpenMP on purpose: native.py hands it the runtime that torch has loaded.
PORTABLE = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wno-psabi"]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []
HERE = Path(__file__).parent
SOURCES = sorted(path.relative_to(HERE).as_posix() for path in HERE.glob("thermoopt/kernels/*.[ch]"))


def fingerprint() -> str:
    """Return the hash by which native_library.py tells what the library was built from."""
    return hashlib.sha256(b"".join(HERE.joinpath(source).read_bytes() for source in SOURCES)).hexdigest()


class BuildLibrary(build_ext):
    """A shared library that is no Python module, with OpenMP where the compiler takes it; or none at all."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []  # no PyInit function

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")[:-1], LIBRARY)  # no Python's name in it

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


class TagWheel(bdist_wheel):
    """``py3-none-<platform>`` with the kernel, ``py3-none-any`` without it."""

    def get_tag(self) -> tuple[str, str, str]:
        built = Path(self.bdist_dir, "thermoopt", "kernels", LIBRARY).exists()
        return "py3", "none", super().get_tag()[2] if built else "any"


def write_licence() -> None:
    """Put the text of the Apache License beside LICENSE, for sdists and wheels: recipients get a copy.

    The text is that of ``packaging``, a build requirement under the same licence. Without ``packaging``
    nothing is written.
    """
    try:
        text = metadata.distribution("packaging").read_text("licenses/LICENSE.APACHE")
    except metadata.PackageNotFoundError:
        return
    if text:
        Path(__file__).with_name("LICENSE.Apache-2.0.txt").write_text(text, encoding="utf-8")


def project_urls() -> dict[str, str]:
    """Return links to the repository whose workflow builds this; none on other machines."""
    server, repository = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    if not (server and repository):
        return {}
    source = f"{server}/{repository}"
    return {
        "Source": source,
        "Changelog": f"{source}/blob/main/CHANGELOG.md",
        "Issues": f"{source}/issues",
    }


write_licence()
setup(
    project_urls=project_urls(),
    ext_modules=[
        Extension(
            "thermoopt.kernels._native",
            [source for source in SOURCES if source.endswith(".c")],
            depends=SOURCES,
            define_macros=[("THERMOOPT_SOURCES", f'"{fingerprint()}"')],
            optional=True,
            libraries=[] if platform.system() == "Windows" else ["m"],
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": TagWheel},
)
