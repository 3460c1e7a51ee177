"""What an install contains, with a compiler and without one."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def build_wheel(folder: Path, **environment: str) -> tuple[list[str], str]:
    """Build a wheel from a copy of the tracked sources; names in it and what was said."""
    source = folder / "source"
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for name in ("thermoopt", "controllers", "benchmarks"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("_native*", "__pycache__", "results")
        )
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-v"]
    done = subprocess.run(
        [*command, "-w", str(folder), str(source)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    built = any("/_native." in name for name in zipfile.ZipFile(wheel).namelist())
    # one wheel a platform for every Python, and one for all platforms where there is no kernel in it
    assert wheel.stem.endswith("-py3-none-any") != built, wheel
    assert "-py3-none-" in wheel.name
    return zipfile.ZipFile(wheel).namelist(), done.stdout + done.stderr


def test_a_wheel_holds_the_kernel_and_no_foreign_package(tmp_path):
    names, said = build_wheel(tmp_path)
    top = {name.split("/")[0] for name in names}
    assert {part for part in top if "dist-info" not in part} == {"thermoopt"}  # controllers lies inside
    assert "thermoopt/controllers/base.py" in names
    assert "thermoopt/benchmarks/workloads/task.py" in names
    assert not any("results" in name for name in names)
    assert "thermoopt/py.typed" in names
    assert "thermoopt/benchmarks/sweeps/protocol.toml" in names  # `thermoopt bench` reads it
    licences = {name.rsplit("/", 1)[1] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "LICENSE.Apache-2.0.txt"}
    built = [name for name in names if name.startswith("thermoopt/kernels/_native")]
    if shutil.which(sysconfig.get_config_var("CC").split()[0]) is not None:
        assert len(built) == 1, said


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory):
    """Where a wheel lies that was built without a compiler, what is in it, and what was said."""
    folder = tmp_path_factory.mktemp("wheel")
    return folder, *build_wheel(folder, CC="/nonexistent/cc", CXX="/nonexistent/cc")


def test_without_a_compiler_the_install_succeeds_and_says_so_once(without_compiler):
    _, names, said = without_compiler
    assert "thermoopt/adamw/optimizer.py" in names
    assert not [name for name in names if "_native" in name and name.endswith((".so", ".pyd", ".dylib"))]
    assert said.count("the native CPU kernel was not built, the torch backends take its place") == 1


def test_a_process_without_the_library_falls_back_with_one_message(without_compiler, tmp_path):
    """The package as an install without a compiler leaves it: one warning, torch's step, readings."""
    (wheel,) = without_compiler[0].glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import warnings, torch, thermoopt, pathlib\n"
        f"assert pathlib.Path(thermoopt.__file__).is_relative_to({str(tmp_path)!r})\n"
        "p = torch.nn.Parameter(torch.ones(4)); p.grad = torch.ones(4)\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(3):\n"
        "        o = thermoopt.ThermoAdamW([p], measure_every=1); o.step(); o.step()\n"
        "print(o.backend, o.reading.step, len(seen), seen[0].message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    backend, step, count, *message = done.stdout.split()
    assert (backend, step, count) == ("torch", "2", "1"), done.stdout
    assert "native" in message
    assert "Install" in done.stdout or "reinstall" in done.stdout
