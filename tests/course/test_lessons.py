"""Every lesson of the course, as it is published: form, outputs, drift, exercises both ways."""

import subprocess
import sys

import matplotlib
import pytest

from fourfold.course import build, pair
from fourfold.course.exercises import blank, exercises, program, run_program
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


def ledger(lesson):
    """The rows of the lesson's ledger, as dictionaries."""
    lines = [line for c in part(lesson, "Formula") for line in c.source.splitlines()]
    rows = [[x.strip() for x in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    start = rows.index(list(LEDGER_COLUMNS)) + 2
    return [dict(zip(LEDGER_COLUMNS, row, strict=True)) for row in rows[start:]]


@each_lesson
def test_names_in_the_ledger_are_names_in_the_promoted_code(lesson):
    code = "\n".join(cell.source for cell in lesson.tagged("promote"))
    for row in ledger(lesson):
        name = row["name in code"].strip("`")
        assert name in code, f"{row['symbol']}: `{name}` is not in the promoted code"


@each_exercise
def test_a_blank_fails_its_own_check(lesson, exercise):
    matplotlib.use("Agg")
    empty = lesson.with_source(exercise.cell.number, blank(exercise.cell.source))
    assert "not written yet" in (run_program(program(lesson, exercise, empty.code)) or "passes")


@each_exercise
def test_the_solution_passes_its_own_check(lesson, exercise):
    matplotlib.use("Agg")
    assert run_program(program(lesson, exercise, lesson.code)) is None


@pytest.mark.parametrize("room", ["lib", "tests", "chapters"])
def test_the_code_is_formatted_and_linted(room):
    for verb in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *verb, "-q", room]
        done = subprocess.run(command, cwd=HOUSE.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
