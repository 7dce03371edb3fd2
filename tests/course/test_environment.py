"""environment.yml, pyproject.toml and constraints.txt tell one story."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from fourfold.course.files import House

HOUSE = House.here()
ENVIRONMENT = (HOUSE.root / "environment.yml").read_text(encoding="utf-8")
PROJECT = tomllib.loads((HOUSE.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMED_BY_ITS_USER = {"jupyterlab", "jupytext", "torch", "rdkit", "matplotlib", "nbval"}
# conda's match specification: a name, then optionally versions joined by commas
MATCH_SPEC = re.compile(
    r"[a-z0-9][a-z0-9_.-]*((>=|<=|==|=|<|>|!=)[\d.]+\*?(,(>=|<=|<|>|!=)[\d.]+)*)?"
)


def conda_lines():
    return yaml.safe_load(ENVIRONMENT)["dependencies"]


def pip_lines():
    return next(line["pip"] for line in conda_lines() if isinstance(line, dict))


def pip_names():
    return [canonicalize_name(line) for line in pip_lines() if not line.startswith("-")]


def project_lines():
    extras = PROJECT["optional-dependencies"]
    return PROJECT["dependencies"] + extras["dev"] + extras["video"] + extras["molecules"]


def project_names():
    return [canonicalize_name(Requirement(line).name) for line in project_lines()]


# Rivals that a benchmark measures beside the course's own code, and large sets of data, where they
# are installed.
OPTIONAL = {"torchvision", "torch_molecule", "qm9pack"}


def imported_packages(paths):
    """The distributions that Python sources import, by canonical name."""
    modules = set()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.split(".")[0])
    known = packages_distributions()
    own = {"fourfold", *(path.stem for path in (HOUSE.root / "tests").rglob("*.py"))}
    outside = modules - sys.stdlib_module_names - own - OPTIONAL
    return {canonicalize_name(known[module][0]) for module in outside}


# Packages that another declared one always brings along, and that are imported by their own name.
BROUGHT_ALONG = {"ipython", "jupyter-client", "packaging", "nbconvert"}


def test_every_conda_line_is_a_match_spec():
    specs = [line for line in conda_lines() if isinstance(line, str)]
    assert "pip" in specs
    for line in specs:
        assert MATCH_SPEC.fullmatch(line), line


def test_the_channel_is_conda_forge_alone():
    assert yaml.safe_load(ENVIRONMENT)["channels"] == ["conda-forge"]


def test_python_satisfies_what_the_project_requires():
    line = next(line for line in conda_lines() if str(line).startswith("python"))
    lowest = re.search(r">=([\d.]+)", line)[1]
    assert SpecifierSet(PROJECT["requires-python"]).contains(lowest)


def test_packages_are_those_of_the_project_each_once():
    assert sorted(pip_names()) == sorted(project_names())


def test_make_installs_every_extra_but_the_large_data():
    makefile = (HOUSE.root / "Makefile").read_text(encoding="utf-8")
    extras = re.search(r"-e '\.\[([\w,]+)\]'", makefile)[1].split(",")
    assert sorted([*extras, "qm9"]) == sorted(PROJECT["optional-dependencies"])


def test_the_packages_named_by_its_user_are_there():
    assert set(pip_names()) >= NAMED_BY_ITS_USER


def test_versions_come_from_the_constraints_and_all_are_in_them():
    assert "-c constraints.txt" in pip_lines()
    text = (HOUSE.root / "constraints.txt").read_text(encoding="utf-8")
    pins = [Requirement(line) for line in text.splitlines() if line and line[0] != "#"]
    versions = {canonicalize_name(pin.name): pin.specifier for pin in pins}
    for line in project_lines():
        wanted = Requirement(line)
        pin = str(versions[canonicalize_name(wanted.name)]).removeprefix("==")
        assert wanted.specifier.contains(pin), line


def test_everything_imported_is_declared():
    paths = [*(HOUSE.root / "lib").rglob("*.py"), *(HOUSE.root / "tests").rglob("*.py")]
    imported = imported_packages(paths)
    assert imported - set(pip_names()) - BROUGHT_ALONG == set()


@pytest.mark.parametrize("chapter", sorted(p for p in HOUSE.chapters.iterdir() if p.is_dir()))
def test_the_comments_name_every_chapter_that_imports_a_package(chapter, tmp_path):
    number, package = chapter.name.split("_", 1)
    scripts = []
    for path in chapter.glob("*.py"):
        script = tmp_path / path.name
        script.write_text(jupytext.writes(jupytext.read(path), fmt="py:light"), encoding="utf-8")
        scripts.append(script)
    imported = imported_packages([*scripts, *(HOUSE.library / package).glob("*.py")])
    for name in imported - BROUGHT_ALONG:
        comment = re.search(rf"^ +- {re.escape(name)} # ([^:\n]+)", ENVIRONMENT, re.MULTILINE)[1]
        assert comment == "all" or number in re.split(r",\s*", comment), f"{name}: {comment}"
