"""The form of a lesson: the template has it, and each part is missed when it is taken away."""

import re

import pytest
from small_house import SmallHouse

from fourfold.course import build, execute
from fourfold.course.errors import CourseError
from fourfold.course.form import PARTS, form_findings
from fourfold.course.hygiene import hygiene_findings
from fourfold.course.lesson import Lesson
from fourfold.course.new import TEMPLATE, new_lesson

KEY = "1_small/2_mean"


def findings(text):
    return form_findings(Lesson.parse(text, "1_small", "2_mean"))


def test_the_template_has_the_form():
    assert findings(TEMPLATE) == []


@pytest.mark.parametrize("heading", PARTS)
def test_a_part_taken_away_is_missed(heading):
    found = findings(TEMPLATE.replace(f"# ## {heading}\n", f"# {heading}\n"))
    assert any("level-two headings" in line for line in found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('tags=["figure"]', "", "tagged `figure`"),
        ("show(draw_mean", "repr(draw_mean", "first picture"),
        ("\\tag{1}", "", "numbered"),
        ("| symbol |", "| sign |", "no ledger"),
        ("| `n` | n |", "| `n` | |", "does not fill its five columns"),
        ('["promote", "exercise"]', '["promote"]', "0 cells are tagged `exercise`"),
        ("# | `spread` | 5 |", "# | other | 5 |", "`spread` is left blank but not listed"),
        ("<summary>Hint", "<summary>Clue", "no folded hint"),
        ("shows_error(ValueError)", "open('x')", "shows no error"),
        ("Three lines", "Obviously three lines", "'Obviously'"),
    ],
)
def test_each_lack_is_told(old, new, message):
    assert old in TEMPLATE
    assert any(message in line for line in findings(TEMPLATE.replace(old, new)))


def test_a_new_lesson_builds_runs_and_passes_every_check(tmp_path):
    small = SmallHouse(tmp_path)
    path = new_lesson(small.house, KEY, "The mean of a few numbers")
    assert "# # The mean of a few numbers" in path.read_text()
    small.build()
    lesson = Lesson.read(path)
    assert form_findings(lesson) == []
    notebook, cost = execute.run(small.house, lesson)
    execute.save(small.house, lesson, notebook)
    assert build.check(small.house) == []
    assert hygiene_findings(notebook, path.with_suffix(".ipynb").stat().st_size) == []
    assert 0 < cost.seconds < 120 and 50 < cost.peak_ram_mib < 4096


@pytest.mark.parametrize(
    "key", ["mean", "small/mean", "1_small/mean", "1_Small/2_Mean", "a/b/c", ""]
)
def test_a_badly_named_lesson_is_refused(small, key):
    with pytest.raises(CourseError, match="expected CHAPTER/LESSON"):
        new_lesson(small.house, key, "T")


@pytest.mark.parametrize("title", ["", "  ", "two\n\n# %% lines"])
def test_a_title_is_one_line(small, title):
    with pytest.raises(CourseError, match=r"title: got .*, expected one line"):
        new_lesson(small.house, "1_small/3_x", title)


@pytest.mark.parametrize("title", ['"quoted" \\ and {braces}', "über 双线性", "a | b", "TITLE's"])
def test_any_one_line_is_a_title(small, title):
    new_lesson(small.house, "1_small/3_x", title)
    small.build()
    compile(small.module.with_name("x.py").read_text(), "x", "exec")


def test_an_existing_lesson_is_not_overwritten(small):
    before = small.lesson.read_text()
    with pytest.raises(CourseError, match=re.escape("chapters/1_small/1_double.py exists")):
        new_lesson(small.house, "1_small/1_double", "T")
    assert small.lesson.read_text() == before
