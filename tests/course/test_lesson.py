"""Reading a lesson, and finding one by the name that a reader types."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_house import HEADER

from fourfold.course.errors import CourseError, LessonError
from fourfold.course.lesson import Lesson, matching, nearest, select

KEYS = ["4_raft/1_paper", "4_raft/2_fields", "6_bilinear_sampling/1_sampling"]


def parse(text):
    return Lesson.parse(text, "1_small", "1_double")


def test_title_and_promise():
    lesson = parse(HEADER)
    assert lesson.title == "A small lesson"
    assert lesson.promise == "After this lesson you can double a number."
    assert lesson.import_path == "fourfold.small.double"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#   fourfold:\n", "#   other:\n", "needs `fourfold:`"),
        ("minutes: 10", "minutes: soon", "minutes"),
        ("minutes: 10", "minutes: 900", "minutes"),
        ("level: beginner", "level: easy", "level"),
        ("#     minutes: 10\n", "", "minutes: Field required"),
        ("minutes: 10", "minutes: 10\n#     colour: red", "colour"),
        ("name: python3", "name: julia", "kernelspec"),
    ],
)
def test_a_wrong_header_is_told(old, new, message):
    with pytest.raises(LessonError, match=message) as caught:
        parse(HEADER.replace(old, new))
    assert "1_small/1_double, header" in str(caught.value)


def test_a_missing_header_is_told():
    with pytest.raises(LessonError, match="kernelspec: got None"):
        parse("# %%\nx = 1\n")


def test_an_unknown_tag_is_told_with_the_nearest():
    with pytest.raises(LessonError, match="unknown tag `promot`; did you mean promote"):
        parse(HEADER + '# %% tags=["promot"]\nx = 1\n')


def test_missing_title_and_promise_are_told():
    with pytest.raises(LessonError, match="# Title"):
        _ = parse(HEADER.replace("# # A small", "# ## A small")).title
    with pytest.raises(LessonError, match="After this lesson you can"):
        _ = parse(HEADER.replace("After this", "Before this")).promise


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("4_raft", KEYS[:2]),
        ("raft", KEYS[:2]),
        ("4", KEYS[:2]),
        ("chapters/4_raft/", KEYS[:2]),
        ("fields", KEYS[1:2]),
        ("2_fields", KEYS[1:2]),
        ("4/2", KEYS[1:2]),
        ("4_raft/2_fields", KEYS[1:2]),
        ("chapters/4_raft/2_fields.ipynb", KEYS[1:2]),
        ("chapters/4_raft/2_fields.py", KEYS[1:2]),
    ],
)
def test_a_reader_may_name_a_lesson_in_many_ways(name, found):
    assert matching(name, KEYS) == found


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(CourseError, match="'rafft'; did you mean raft"):
        matching("rafft", KEYS)


@given(st.text(max_size=30))
def test_any_name_is_found_or_told_in_one_line(name):
    try:
        assert matching(name, KEYS)
    except CourseError as error:
        assert repr(name) in str(error) and "\n" not in str(error).replace(repr(name), "")


def test_nearest_lists_what_there_is_when_nothing_is_close():
    assert nearest("zzz", ["b", "a"]) == "; there is a, b"
    assert nearest("zzz", []) == ""


def test_select_keeps_reading_order(small):
    folder = small.house.chapters / "1_small"
    for name in ("10_ten", "2_two"):
        (folder / f"{name}.py").write_text(small.lesson.read_text())
    assert [x.name for x in select(small.house, [])] == ["1_double", "2_two", "10_ten"]
    assert [x.name for x in select(small.house, ["ten", "1_double"])] == ["1_double", "10_ten"]
