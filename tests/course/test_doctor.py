"""The doctor: what it finds here, and what it says where something is missing."""

import sys
from importlib.metadata import PackageNotFoundError

import pytest

from fourfold.course import doctor
from fourfold.course.doctor import Finding, examine


def finding(need):
    return next(f for f in examine() if f.need == need)


def test_every_declared_package_is_looked_for_once():
    needs = [f.need for f in examine()]
    assert {"torch", "jupyterlab", "nbval", "Python", "memory", "GPU"} <= set(needs)
    assert len(needs) == len(set(needs))


@pytest.mark.parametrize(
    ("installed", "ok"), [("2.4", True), ("2.13.0+cpu", True), ("2.3.9", False)]
)
def test_a_version_below_the_bound_is_missing(monkeypatch, installed, ok):
    monkeypatch.setattr(doctor, "version", lambda name: installed if name == "torch" else "999")
    found = finding("torch")
    assert found.ok is ok and found.found == installed


def test_a_missing_package_is_told_with_the_fix(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    assert str(finding("rdkit")) == (
        "[missing] rdkit: not installed\n          fix: pip install -c constraints.txt rdkit"
    )


def test_an_old_python_is_told(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert str(finding("Python")).startswith("[missing] Python: 3.10.1")


def test_what_is_there_is_one_line():
    assert str(Finding("disk", True, "9 GiB", "free some")) == "[ok]      disk: 9 GiB"
