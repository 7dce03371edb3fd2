"""The workspace: nothing that a reader wrote is ever lost."""

import json

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_house import BODY

from fourfold.course.errors import CourseError
from fourfold.course.lesson import lessons
from fourfold.course.workspace import MANIFEST, reader_cells, start

NAME = "1_small/exercises/1_double.ipynb"


def fill(small, folder):
    return {w.path.relative_to(folder).as_posix(): w.outcome for w in _start(small, folder)}


def _start(small, folder):
    return start(small.house, folder, lessons(small.house))


@pytest.fixture
def folder(small):
    small.build()
    return small.house.workspace


def edit(path, source):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].source = source
    nbformat.write(notebook, path)


def renew_course(small, word):
    small.write(BODY.replace("print(double(math.pi))", f"print({word!r})"))
    small.build()


def test_first_time_all_is_new_then_all_is_as_it_was(small, folder):
    assert fill(small, folder) == {"1_small/1_double.ipynb": "new", NAME: "new"}
    assert set(fill(small, folder).values()) == {"as it was"}
    assert (folder / "README.md").exists()


def test_the_complete_copy_is_the_lesson_and_is_not_paired(small, folder):
    fill(small, folder)
    copy = nbformat.read(folder / "1_small/1_double.ipynb", as_version=4)
    original = nbformat.read(small.notebook, as_version=4)
    assert [c.source for c in copy.cells] == [c.source for c in original.cells]
    assert copy.metadata.jupytext.formats == "ipynb"


def test_an_untouched_copy_is_renewed(small, folder):
    fill(small, folder)
    renew_course(small, "new")
    assert set(fill(small, folder).values()) == {"renewed"}
    assert "print('new')" in (folder / NAME).read_text()


def test_running_a_notebook_is_not_an_edit(small, folder):
    fill(small, folder)
    notebook = nbformat.read(folder / NAME, as_version=4)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="6.28\n")]
    nbformat.write(notebook, folder / NAME)
    assert fill(small, folder)[NAME] == "as it was"


def test_an_edit_stands_while_the_course_stands(small, folder):
    fill(small, folder)
    edit(folder / NAME, "mine")
    before = (folder / NAME).read_bytes()
    assert fill(small, folder)[NAME] == "yours"
    assert (folder / NAME).read_bytes() == before


def test_changed_on_both_sides_the_new_one_goes_beside(small, folder):
    fill(small, folder)
    edit(folder / NAME, "mine")
    before = (folder / NAME).read_bytes()
    renew_course(small, "new")
    beside = NAME.replace(".ipynb", ".new.ipynb")
    assert fill(small, folder)[beside] == "beside"
    assert (folder / NAME).read_bytes() == before
    assert "print('new')" in (folder / beside).read_text()
    assert fill(small, folder)[NAME] == "yours"


def test_an_edited_new_one_is_kept_too(small, folder):
    fill(small, folder)
    edit(folder / NAME, "mine")
    renew_course(small, "two")
    fill(small, folder)
    beside = folder / NAME.replace(".ipynb", ".new.ipynb")
    edit(beside, "mine as well")
    renew_course(small, "three")
    fill(small, folder)
    assert "mine as well" in beside.read_text()
    assert "print('three')" in beside.with_name("1_double.new2.ipynb").read_text()


@pytest.mark.parametrize("manifest", ["", "{", "[]", None])
def test_without_its_records_an_edit_is_still_kept(small, folder, manifest):
    fill(small, folder)
    edit(folder / NAME, "mine")
    if manifest is None:
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text(manifest)
    fill(small, folder)
    assert "mine" in (folder / NAME).read_text()


def test_a_file_that_is_no_notebook_is_left_alone(small, folder):
    (folder / NAME).parent.mkdir(parents=True)
    (folder / NAME).write_text("my notes")
    assert "beside" in fill(small, folder).values()
    assert (folder / NAME).read_text() == "my notes"


def test_places_that_are_no_workspace_are_refused(small, tmp_path):
    small.build()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path, tmp_path / "lib" / "new", tmp_path / "foo"):
        with pytest.raises(CourseError, match="folder"):
            _start(small, place)


def test_a_missing_or_broken_exercise_notebook_is_told(small, folder):
    lesson = lessons(small.house)[0]
    with pytest.raises(CourseError, match="fourfold start"):
        reader_cells(folder, lesson)
    fill(small, folder)
    (folder / NAME).write_text("{")
    with pytest.raises(CourseError, match="not a notebook"):
        reader_cells(folder, lesson)


steps = st.lists(st.sampled_from(["start", "edit", "course", "forget"]), max_size=8)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps)
def test_no_order_of_events_loses_an_edit(small, tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("workspace")
    small.write()
    small.build(force=True)
    fill(small, folder)
    written = []
    for number, step in enumerate(steps):
        if step == "start":
            fill(small, folder)
        elif step == "edit":
            edit(folder / NAME, f"mine {number}")
            written = [f"mine {number}"]  # the reader replaced their own earlier words
        elif step == "course":
            renew_course(small, number)
        else:
            (folder / MANIFEST).write_text(json.dumps({}))
    fill(small, folder)
    everything = "".join(p.read_text() for p in folder.rglob("*.ipynb"))
    assert all(words in everything for words in written)
