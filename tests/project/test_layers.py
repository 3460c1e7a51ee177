"""The house rules of the import graph: arrows only go down, faces are all that a package shows."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = (
    ("__main__",),
    ("cli",),
    ("benchmarks",),
    ("demo",),
    ("integrations", "inspection", "doctor"),
    ("scheduler", "diagnosis"),
    ("observer", "irreversibility"),
    ("adamw", "plots"),
    ("sinks", "controllers"),
    ("account", "record"),
    ("tensors",),
    ("kernels",),
    ("physics", "landscape", "param_groups", "traits", "uncompiled"),
    ("lazy",),
)
"""Rooms from the top to the ground. A room imports those below it, never a neighbour."""

DATA = {"thermoopt.account.reading", "thermoopt.physics.sums", "thermoopt.physics.travel"}
"""Modules of plain data, which everybody may name beside the faces."""

MAX_NODES, MAX_CHAIN, MAX_MODULES, MAX_LINES = 25, 13, 12, 400

LIMITS = {
    "thermoopt/adamw/optimizer.py": 350,
}
"""Modules with a limit of their own."""


def modules() -> dict[str, Path]:
    """Every module of the product by its full name; ``controllers/`` and ``benchmarks/`` lie beside it."""
    out = {}
    for folder, name in (
        ("thermoopt", "thermoopt"),
        ("controllers", "thermoopt.controllers"),
        ("benchmarks", "thermoopt.benchmarks"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            out[".".join((name, *parts)).removesuffix(".__init__")] = path
    return out


MODULES = modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports(name: str) -> list[tuple[str, str | None]]:
    """What a module imports of ours, anywhere in it: (module, name), each as written."""
    out: list[tuple[str, str | None]] = []
    for node in ast.walk(TREES[name]):
        if (
            isinstance(node, ast.ImportFrom)
            and node.level == 0
            and (node.module or "").startswith("thermoopt")
        ):
            out += [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            out += [(alias.name, None) for alias in node.names if alias.name.startswith("thermoopt")]
    return out


def room(module: str) -> str:
    """What lies directly in ``thermoopt/`` and holds a module; "" for the package's own face."""
    return module.split(".")[1] if "." in module else ""


def target(module: str, name: str | None) -> str:
    """The module that an import loads: ``from package import module`` loads the module."""
    full = f"{module}.{name}"
    return full if full in MODULES else module


def arrows() -> dict[str, set[str]]:
    """Which rooms import which; the package's own face, which loads lazily, is no room."""
    out: dict[str, set[str]] = defaultdict(set)
    for name in MODULES:
        for module, what in imports(name):
            a, b = room(name), room(target(module, what))
            if module == "thermoopt" and b == "":
                b = room(public_home(str(what)))
            if a and b and a != b:
                out[a].add(b)
    return out


def public_home(name: str) -> str:
    """Where the name at the top level comes from."""
    for module, what in imports("thermoopt"):
        if what == name:
            return module
    return ""


def longest_chain(graph: dict[str, set[str]]) -> int:
    """Rooms on the longest chain of imports; a circle raises RecursionError."""

    def depth(node: str) -> int:
        return 1 + max((depth(below) for below in graph.get(node, ())), default=0)

    return max(depth(node) for node in graph)


def test_arrows_only_go_down():
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    graph = arrows()
    unknown = {n for n in graph if n not in level} | {
        n for below in graph.values() for n in below - level.keys()
    }
    assert not unknown
    wrong = [f"{a} imports {b}" for a, below in graph.items() for b in below if level[b] <= level[a]]
    assert not wrong


def test_the_house_is_small(capsys):
    graph = arrows()
    nodes = {room(name) for name in MODULES} - {""}
    chain = longest_chain(graph)
    with capsys.disabled():
        count = sum(map(len, graph.values()))
        print(f"\n{len(nodes)} nodes, longest chain of imports {chain}, {count} arrows, no circle")
    assert len(nodes) <= MAX_NODES
    assert chain <= MAX_CHAIN


def test_no_circle_among_modules():
    """Also none under ``TYPE_CHECKING``: a type that needs one stands in the wrong place."""
    faces = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph = {
        name: {
            t for module, what in imports(name) if (t := target(module, what)) in MODULES and t not in faces
        }
        for name in MODULES
        if name not in faces
    }
    state: dict[str, int] = {}

    def walk(node: str, path: tuple[str, ...]) -> None:
        state[node] = 1
        for below in graph[node]:
            assert state.get(below) != 1, " -> ".join((*path, node, below))
            if below not in state:
                walk(below, (*path, node))
        state[node] = 2

    for node in graph:
        if node not in state:
            walk(node, ())


def test_only_faces_are_imported_from_outside():
    wrong = []
    for name in MODULES:
        for module, what in imports(name):
            t = target(module, what)
            inside = room(t) in ("", room(name), "benchmarks", "integrations") or t in DATA
            if not inside and module.count(".") > 1:
                wrong.append(f"{name}: from {module} import {what}")
    assert not wrong


def test_controllers_import_physics_and_readings_only():
    for name in MODULES:
        if room(name) == "controllers":
            for module, _ in imports(name):
                allowed = module.startswith(("thermoopt.controllers", "thermoopt.physics"))
                assert allowed or module == "thermoopt.account.reading", f"{name} imports {module}"


def test_a_diagnosis_sees_no_optimizer():
    pure = ("thermoopt.diagnosis.kinds", "thermoopt.diagnosis.evidence", "thermoopt.diagnosis.finding")
    for name in MODULES:
        if name.startswith(pure):
            for module, what in imports(name):
                assert room(target(module, what)) in ("account", "physics", "diagnosis"), f"{name}: {module}"
                assert not module.endswith(("collapse_detector", "entropy_split", "layer_rates"))


def test_only_cli_and_benchmarks_import_the_demo():
    users = {room(name) for name in MODULES for m, w in imports(name) if room(target(m, w)) == "demo"}
    assert users - {"demo"} <= {"cli", "benchmarks"}


def test_laboratories_see_no_optimizer():
    for name in MODULES:
        if room(name) in ("irreversibility", "landscape"):
            below = {room(target(m, w)) for m, w in imports(name)}
            assert not below & {"adamw", "observer", "account"}, name


def test_no_private_name_crosses_a_package():
    for name in MODULES:
        for module, what in imports(name):
            if what and what.startswith("_") and not what.startswith("__"):
                assert room(module) == room(name), f"{name} imports {module}.{what}"


def test_a_public_class_is_defined_once():
    where: dict[str, list[str]] = defaultdict(list)
    for name, tree in TREES.items():
        if room(name) != "benchmarks":
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    where[node.name].append(name)
    del where["ThermoCallback"], where["Plan"]  # one role each: a trainer's callback, a kernel's plan
    assert {c: places for c, places in where.items() if len(places) > 1} == {}


def test_folders_and_files_stay_small():
    folders: dict[Path, int] = defaultdict(int)
    for path in MODULES.values():
        folders[path.parent] += path.name not in ("__init__.py", "__main__.py")
        lines = len(path.read_text().splitlines())
        allowed = LIMITS.get(str(path.relative_to(ROOT)), MAX_LINES)
        assert lines <= allowed, f"{path} has {lines} lines, allowed are {allowed}"
    for folder, count in folders.items():
        if folder.name not in ("workloads", "kernels"):
            assert count <= MAX_MODULES, f"{folder} holds {count} modules"


def test_no_test_imports_a_test():
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
                assert node.module.startswith("tests.support"), f"{path} imports {node.module}"


def test_lazy_faces_offer_what_they_import_for_type_checkers():
    for name, tree in TREES.items():
        calls = [
            n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "lazy_face"
        ]
        if not calls:
            continue
        offered = ast.literal_eval(calls[0].args[1])
        typed = defaultdict(set)
        guards = [
            n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"
        ]
        for node in (n for guard in guards for n in guard.body if isinstance(n, ast.ImportFrom)):
            typed[node.module].update(alias.name for alias in node.names)
        assert {m: set(names) for m, names in offered.items()} == dict(typed), name


@pytest.mark.parametrize("names", ["thermoopt.controllers", "thermoopt.physics"])
def test_controllers_load_without_optimizer_and_distributed(names, tmp_path):
    """In a copy of the product that has no optimizer at all."""
    package = tmp_path / "thermoopt"
    for folder in ("physics", "account"):
        (package / folder).mkdir(parents=True)
        for path in (ROOT / "thermoopt" / folder).glob("*.py"):
            (package / folder / path.name).write_text(path.read_text())
    for single in ("__init__.py", "lazy.py"):
        (package / single).write_text((ROOT / "thermoopt" / single).read_text())
    shutil.copytree(
        ROOT / "controllers", package / "controllers", ignore=shutil.ignore_patterns("__pycache__")
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.meta_path[:] = [f for f in sys.meta_path if "
        f"'editable' not in str(f).lower()]; import {names}; "
        f"assert {names}.__file__.startswith({str(tmp_path)!r});"
        "print([m for m in sys.modules if m.startswith(('torch.distributed', 'thermoopt.tensors', "
        "'thermoopt.adamw'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
