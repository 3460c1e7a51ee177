"""A compiled kernel that does not belong to the sources beside it is not called."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from thermoopt.kernels import native, native_library

FILES = sorted(path.name for path in Path(native_library.__file__).parent.glob("*.[ch]"))
pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernel is not built")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the library and its sources."""
    here = Path(native_library.__file__).parent
    for name in (*FILES, Path(native_library.LIBRARY._name).name):
        shutil.copy(here / name, tmp_path)
    return tmp_path


def test_a_library_of_the_sources_beside_it_loads(home):
    library, reason = native_library._load(home)
    assert library is not None
    assert reason is None


@pytest.mark.parametrize("name", FILES)
def test_a_library_of_other_sources_is_left_alone_with_a_warning(home, name):
    with (home / name).open("a") as file:
        file.write("/* changed since */\n")
    with pytest.warns(RuntimeWarning, match=r"built from other sources.*pip install -e"):
        library, reason = native_library._load(home)
    assert library is None
    assert "reinstall" in reason


def test_a_library_that_does_not_say_what_it_was_built_from_is_stale(home):
    assert native_library._stale(SimpleNamespace(), home)  # a version before the fingerprint
    assert not native_library._stale(native_library.LIBRARY, home)


def test_a_library_without_sources_beside_it_loads(home):
    for name in FILES:  # as wheels have it
        (home / name).unlink()
    library, reason = native_library._load(home)
    assert library is not None
    assert reason is None
