"""Who may import whom, and what an import may not do."""

import ast
import graphlib
import subprocess
import sys

import pytest

from fourfold.course.files import House
from fourfold.course.lesson import chapters

HOUSE = House.here()
CHAPTERS = {name.split("_", 1)[1] for name in chapters(HOUSE)}
MODULES = {
    "fourfold." + ".".join(p.relative_to(HOUSE.library).with_suffix("").parts): p
    for p in sorted(HOUSE.library.rglob("*.py"))
}
# What each package may import of the others, beside itself; `cli` may import all of them.
ALLOWED = {
    "kit": {"course"},  # for the one function that writes files
    "course": set(),
    "bilinear_sampling": {"kit"},
    "paper_writing": {"kit"},
    "raft": {"kit", "bilinear_sampling", "paper_writing"},
    "cotracker": {"kit", "bilinear_sampling", "raft", "paper_writing"},
    "graph_dit": {"kit", "paper_writing"},
    "syco": {"kit", "graph_dit", "paper_writing"},
}
NETWORKED = {"requests", "urllib", "http", "httpx", "socket", "pooch", "huggingface_hub", "aiohttp"}
HEAVY = {"accelerate", "skimage", "sklearn", "rdkit", "IPython", "jupyterlab"}
# Where molecules are the subject, nothing can be said without RDKit.
OF_MOLECULES = ("fourfold.graph_dit.", "fourfold.syco.", "fourfold.kit.molecule")


def imports(path, top_level_only=False):
    """The full names of the modules that a source file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _at_import_time(tree) if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _at_import_time(tree):
    """The nodes that run when the module is imported: not those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from _at_import_time(node)


def package(name):
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("name", [m for m in MODULES if package(m) not in ("cli", "__init__")])
def test_a_package_imports_only_those_below_it(name):
    used = {package(m) for m in imports(MODULES[name]) if m.startswith("fourfold.")}
    assert used - {package(name)} <= ALLOWED[package(name)]


def test_every_chapter_has_its_place_in_the_rules():
    assert set(ALLOWED) >= CHAPTERS


def test_there_are_no_circles_among_modules():
    graph = {
        name: {m for m in imports(path) if m in MODULES and m != name}
        for name, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("name", MODULES)
def test_nothing_networked_or_heavy_is_imported_at_import_time(name):
    roots = {m.split(".")[0] for m in imports(MODULES[name], top_level_only=True)}
    allowed = {"rdkit"} if name.startswith(OF_MOLECULES) else set()
    assert (roots - allowed) & (NETWORKED | HEAVY) == set()


def test_every_module_imports_with_the_network_shut():
    shut = """
import importlib, socket, sys
def refuse(*args, **options):
    raise AssertionError("the network is used at import time")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
for name in sys.argv[1:]:
    importlib.import_module(name.removesuffix(".__init__"))
"""
    done = subprocess.run(
        [sys.executable, "-c", shut, *MODULES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_command_starts_without_loading_torch():
    code = "import sys, fourfold.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
