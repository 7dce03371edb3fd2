"""Every lesson of the course, as it is published: form, outputs, drift, exercises both ways."""

import subprocess
import sys

import matplotlib
import pytest

from fourfold.course import build, pair
from fourfold.course.exercises import blank, exercises, judge
from fourfold.course.files import House
from fourfold.course.form import form_findings
from fourfold.course.hygiene import hygiene_findings
from fourfold.course.lesson import lessons
from fourfold.paper_writing.one_line import check_line

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


def drawn_labels(lesson):
    """The texts on the pictures below the cells tagged `figure`, which `show` stores with them."""
    notebook = pair.from_json((HOUSE.chapters / f"{lesson.key}.ipynb").read_text(encoding="utf-8"))
    figures = [cell for cell in notebook.cells if "figure" in cell.metadata.get("tags", ())]
    outputs = [output.get("metadata", {}) for cell in figures for output in cell.outputs]
    return [x for about in outputs for kind in about.values() for x in kind.get("labels", ())]


@each_lesson
def test_figure_words_formula_and_code_are_one_line(lesson):
    text = (HOUSE.root / lesson.source).read_text(encoding="utf-8")
    assert check_line(text, labels=drawn_labels(lesson)).findings == []


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
