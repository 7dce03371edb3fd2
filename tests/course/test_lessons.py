"""Every lesson of the course, as it is published: form, outputs, drift, exercises both ways."""

import re
import subprocess
import sys

import matplotlib
import pytest

from fourfold.course import build, pair
from fourfold.course.exercises import blank, exercises, judge
from fourfold.course.files import House
from fourfold.course.form import LEDGER_COLUMNS, form_findings, part
from fourfold.course.hygiene import hygiene_findings
from fourfold.course.lesson import lessons

HOUSE = House.here()
LESSONS = lessons(HOUSE)
EXERCISES = [(lesson, exercise) for lesson in LESSONS for exercise in exercises(lesson)]

each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
each_exercise = pytest.mark.parametrize(
    ("lesson", "exercise"), EXERCISES, ids=[f"{a.key}:{b.title}" for a, b in EXERCISES]
)


def test_nothing_generated_is_stale():
    assert build.check(HOUSE) == []


@each_lesson
def test_the_lesson_has_the_form(lesson):
    assert form_findings(lesson) == []


@each_lesson
def test_the_notebook_is_fit_to_publish(lesson):
    path = HOUSE.chapters / f"{lesson.key}.ipynb"
    text = path.read_text(encoding="utf-8")
    assert hygiene_findings(pair.from_json(text), path.stat().st_size) == []


@each_lesson
def test_saving_the_pair_in_jupyterlab_would_change_nothing(lesson, tmp_path):
    path, saved = HOUSE.chapters / f"{lesson.key}.ipynb", tmp_path / "saved.py"
    command = [sys.executable, "-m", "jupytext", "--from", "ipynb", "--to", "py:percent"]
    subprocess.run([*command, path, "-o", saved], capture_output=True, check=True)
    assert saved.read_text(encoding="utf-8") == path.with_suffix(".py").read_text(encoding="utf-8")


def ledger(lesson):
    """The rows of the lesson's ledger, as dictionaries."""
    lines = [line for c in part(lesson, "Formula") for line in c.source.splitlines()]
    rows = [[x.strip() for x in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    start = rows.index(list(LEDGER_COLUMNS)) + 2
    return [dict(zip(LEDGER_COLUMNS, row, strict=True)) for row in rows[start:]]


def four_forms(lesson):
    """The lesson's numbered equations, its prose outside them and the ledger, figure and code."""
    text = "\n".join(cell.source for cell in lesson.cells if not cell.is_code)
    equations = "\n".join(e for e in re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL) if "tag" in e)
    without_ledger = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    prose = re.sub(r"\$\$.*?\$\$", "", without_ledger, flags=re.DOTALL)
    figure = "\n".join(cell.source for cell in lesson.tagged("figure"))
    code = "\n".join(cell.source for cell in lesson.tagged("promote"))
    return equations, " ".join(re.findall(r"\$[^$]+\$", prose)), figure, code


@each_lesson
def test_each_symbol_of_the_ledger_stands_in_all_four_forms(lesson):
    equations, prose, figure, code = four_forms(lesson)
    for row in ledger(lesson):
        symbol, name = row["symbol"].strip("$"), row["name in code"].strip("`")
        assert symbol in equations, f"{symbol} is in no numbered equation"
        assert symbol in prose, f"{symbol} is not in the prose"
        assert row["on the figure"] in figure, f"{symbol} is not on the figure"
        assert re.search(rf"\b{re.escape(name)}\b", code), f"{symbol}: no {name} in the code"


@each_exercise
def test_a_blank_fails_its_own_check(lesson, exercise):
    matplotlib.use("Agg")
    empty = lesson.with_source(exercise.cell.number, blank(exercise.cell.source))
    assert "not written yet" in (judge(lesson, exercise, empty.code) or "passes")


@each_exercise
def test_the_solution_passes_its_own_check(lesson, exercise):
    matplotlib.use("Agg")
    assert judge(lesson, exercise, lesson.code) is None


@pytest.mark.parametrize("room", ["lib", "tests", "chapters"])
def test_the_code_is_formatted_and_linted(room):
    for verb in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *verb, "-q", room]
        done = subprocess.run(command, cwd=HOUSE.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
