"""Build then check is clean; every later change of a generated file or its source is caught."""

import string

import jupytext
import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_house import BODY, HEADER

from fourfold.course import pair
from fourfold.course.build import build, check
from fourfold.course.errors import CourseError
from fourfold.course.lesson import select


def stale(house):
    """The findings of check that are not about outputs: these small lessons are never run."""
    return [finding for finding in check(house) if "outputs are older" not in finding]


def test_build_then_check_is_clean_and_build_again_writes_nothing(small):
    names = {path.name for path in small.build()}
    assert names == {"double.py", "__init__.py", "1_double.ipynb", "README.md"}
    assert stale(small.house) == []
    assert small.build() == []


def test_check_writes_nothing(small):
    assert stale(small.house)
    assert not small.module.exists() and not small.notebook.exists()


def test_a_stale_module_is_shown_as_a_diff(small):
    small.build()
    small.write(BODY.replace("2 * x", "x + x"))
    text = "\n".join(stale(small.house))
    assert "-    return 2 * x" in text and "+    return x + x" in text
    assert "1_double.ipynb: stale\n  cell 3: its source differs" in text
    small.build()
    assert "return x + x" in small.module.read_text() and stale(small.house) == []


def test_a_hand_edited_module_is_caught_and_not_overwritten(small):
    small.build()
    edited = small.module.read_text().replace("2 * x", "3 * x")
    small.module.write_text(edited)
    assert "-    return 3 * x" in stale(small.house)[0]
    with pytest.raises(CourseError, match=r"lib/fourfold/small/double.py: edited by hand"):
        small.build()
    assert small.module.read_text() == edited
    small.build(force=True)
    assert stale(small.house) == []


def test_a_refused_build_writes_nothing_at_all(small):
    small.build()
    small.module.write_text(small.module.read_text() + "\n")
    small.write(BODY.replace("2 * x", "x + x"))
    before = small.notebook.read_text()
    with pytest.raises(CourseError):
        small.build()
    assert small.notebook.read_text() == before


def test_a_handwritten_module_in_the_way_is_refused(small):
    small.module.parent.mkdir()
    small.module.write_text("A = 1\n")
    with pytest.raises(CourseError, match="written by hand"):
        small.build()
    assert small.module.read_text() == "A = 1\n"


def edit_notebook(small, change):
    notebook = nbformat.read(small.notebook, as_version=4)
    change(notebook)
    small.notebook.write_text(pair.to_json(notebook))


def test_a_hand_edited_notebook_is_caught_and_not_overwritten(small):
    small.build()
    edit_notebook(small, lambda nb: nb.cells[3].update(source="assert True"))
    edited = small.notebook.read_text()
    assert "cell 4: its source differs" in stale(small.house)[0]
    with pytest.raises(CourseError, match=r"1_double.ipynb: edited by hand"):
        small.build()
    assert small.notebook.read_text() == edited


def test_an_edit_saved_to_both_of_the_pair_is_no_conflict(small):
    small.build()
    edit_notebook(small, lambda nb: nb.cells[4].update(source="print(1)"))
    small.write(BODY.replace("print(double(math.pi))", "print(1)"))
    small.build()
    assert stale(small.house) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "\0\0", '{"cells": 3}'])
def test_a_broken_notebook_is_told_in_a_line(small, text):
    small.build()
    small.notebook.write_text(text)
    assert "not a notebook" in "\n".join(stale(small.house))
    with pytest.raises(CourseError, match="not a notebook"):
        small.build()
    small.build(force=True)
    assert stale(small.house) == []


def test_unchanged_cells_keep_their_outputs(small):
    small.build()

    def add_outputs(nb):
        for count, cell in enumerate((c for c in nb.cells if c.cell_type == "code"), start=1):
            cell.execution_count = count
            cell.outputs = [nbformat.v4.new_output("stream", text=f"output {count}\n")]

    edit_notebook(small, add_outputs)
    small.write(BODY.replace("print(double(math.pi))", "print(double(math.e))"))
    small.build()
    outputs = [c.outputs for c in nbformat.read(small.notebook, 4).cells if c.cell_type == "code"]
    assert [bool(o) for o in outputs] == [True, True, True, False]


def test_outputs_older_than_the_code_are_caught(small):
    small.build()
    assert any("fourfold run 1_small/1_double --save" in f for f in check(small.house))


def test_a_module_whose_lesson_is_gone_is_removed(small):
    small.build()
    small.lesson.rename(small.lesson.with_name("1_twice.py"))
    small.notebook.unlink()
    assert any("from a lesson that is gone" in f for f in stale(small.house))
    small.build()
    assert not small.module.exists() and small.module.with_name("twice.py").exists()


def test_a_notebook_whose_lesson_is_gone_is_removed_unless_it_was_edited(small):
    small.build()
    small.lesson.rename(small.lesson.with_name("1_twice.py"))
    assert any(
        "1_double.ipynb: generated from a lesson that is gone" in f for f in stale(small.house)
    )
    edit_notebook(small, lambda nb: nb.cells[4].update(source="mine"))
    with pytest.raises(
        CourseError, match=r"1_double.ipynb: edited by hand, and its lesson is gone"
    ):
        small.build()
    small.build(force=True)
    assert not small.notebook.exists()


def test_a_notebook_of_the_reader_s_own_is_left_alone(small):
    small.build()
    own = small.notebook.with_name("notes.ipynb")
    own.write_text(pair.to_json(nbformat.v4.new_notebook()))
    assert stale(small.house) == []
    small.build()
    assert own.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1_double.py", b"\xff\xfe", "not UTF-8"),
        ("1_double.py", b"# ---\n# jupyter:\n#   fourfold: {minutes: [\n# ---\n", "not YAML"),
        ("3_class.py", b"", "'3_class' is no name for a module"),
        ("3_a-b.py", b"", "'3_a-b' is no name for a module"),
    ],
)
def test_a_malformed_lesson_is_told_in_one_line(small, name, content, message):
    small.lesson.with_name(name).write_bytes(content)
    with pytest.raises(CourseError, match=message) as caught:
        small.build()
    assert "\n" not in str(caught.value)


def test_a_folder_named_like_a_lesson_is_no_lesson(small):
    small.lesson.with_name("5_folder.py").mkdir()
    small.build()


@pytest.mark.parametrize("stamp", [None, [], "x"])
def test_odd_metadata_is_a_hand_edit_and_no_crash(small, stamp):
    small.build()
    edit_notebook(small, lambda nb: nb.metadata.update({pair.STAMP: stamp}))
    assert stale(small.house)
    small.build()
    assert stale(small.house) == []


def test_line_endings_alone_are_told(small):
    small.build()
    small.module.write_bytes(small.module.read_bytes().replace(b"\n", b"\r\n"))
    assert any("only its line endings differ" in finding for finding in stale(small.house))


def test_an_unknown_need_is_refused(small):
    small.write(header=HEADER.replace("needs: []", "needs: [1_small/0_zero]"))
    with pytest.raises(CourseError, match="no lesson is called '1_small/0_zero'"):
        small.build()


def test_a_chosen_lesson_is_built_alone(small):
    other = small.lesson.with_name("2_other.py")
    other.write_text(HEADER + '# %% tags=["promote"]\nOTHER = 1\n')
    build(small.house, select(small.house, ["other"]))
    assert not small.module.exists()
    assert small.module.with_name("other.py").exists()


# --- any lesson, any one-character change ------------------------------------------------------

names = st.sampled_from(["alpha", "beta", "gamma", "delta_e", "_zeta"])
values = st.sampled_from(["1", "x * 2", "math.pi + x", "[y for y in (x, 3)]", "'text'"])
prose = st.text(string.ascii_letters + " ,.$\\_α双", min_size=1, max_size=40).map(str.strip)


@st.composite
def lessons(draw):
    """The text of a lesson with one to four promoted cells among prose and play."""
    cells = []
    chosen = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    for name in chosen:
        if text := draw(prose):
            cells.append(f"# %% [markdown]\n# {text}\n")
        cells.append(f"# %%\n{draw(st.sampled_from(['a = 1', 'print(2)', '# a note']))}\n")
        body = f'    """Return {name}."""\n' if draw(st.booleans()) else ""
        cells.append(f'# %% tags=["promote"]\ndef {name}(x=0):\n{body}    return {draw(values)}\n')
    return "\n".join(cells)


def changed(text, position, character):
    """`text` with the character at `position` (wrapped around) replaced by a different one."""
    position %= len(text)
    new = character if text[position] != character else "§"
    return text[:position] + new + text[position + 1 :]


anywhere = st.integers(0, 10_000)
characters = st.sampled_from(string.ascii_letters + string.digits + " ()[]#'\":=\n")
many = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def caught(house):
    try:
        return bool(stale(house))
    except CourseError:
        return True


def fresh(small, text):
    small.write(text)
    build(small.house, force=True)
    assert stale(small.house) == []


@many
@given(lessons())
def test_any_lesson_is_clean_after_a_build(small, text):
    fresh(small, text)
    first = small.notebook.read_text()
    small.notebook.unlink()
    build(small.house)
    assert small.notebook.read_text() == first, "the same lesson gives the same notebook"


@many
@given(lessons(), anywhere, anywhere, characters)
def test_a_change_in_a_promoted_cell_is_caught(small, text, which, position, character):
    fresh(small, text)
    sources = [c.source for c in jupytext.reads(text, "py:percent").cells if c.metadata.get("tags")]
    source = sources[which % len(sources)]
    small.write(text.replace(source, changed(source, position, character)))
    assert caught(small.house)


@many
@given(lessons(), anywhere, characters)
def test_a_change_in_a_module_is_caught(small, text, position, character):
    fresh(small, text)
    small.module.write_text(changed(small.module.read_text(), position, character))
    assert caught(small.house)


@many
@given(lessons(), anywhere, anywhere, characters)
def test_a_change_in_a_notebook_input_is_caught(small, text, which, position, character):
    fresh(small, text)

    def change(nb):
        cell = nb.cells[which % len(nb.cells)]
        cell.source = changed(cell.source, position, character)

    edit_notebook(small, change)
    assert caught(small.house)
