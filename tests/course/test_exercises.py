"""The blank edition: what is left, what is taken away, and how a reader's answer is judged."""

import ast
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_house import BODY, HEADER

from fourfold.course.errors import LessonError
from fourfold.course.exercises import blank, edition, exercises, judge, run_program
from fourfold.course.lesson import Lesson


def lesson(body=BODY):
    return Lesson.parse(HEADER + body, "1_small", "1_double")


def test_a_blank_keeps_signature_and_docstring():
    source = '''\
def f(x: int, *, y=2) -> int:
    """Add them, Equation 1.

    More words.
    """
    # the trick is this
    z = x + y
    return z


def g(): return 3  # not here


class H:
    """A class."""

    def __init__(self, n):
        self.n = n

    def forward(self, x):
        return self.n * x
'''
    assert (
        blank(source)
        == '''\
def f(x: int, *, y=2) -> int:
    """Add them, Equation 1.

    More words.
    """
    raise NotImplementedError("Your turn: Add them, Equation 1.")


def g(): raise NotImplementedError("Your turn: write g.")


class H:
    """A class."""

    def __init__(self, n):
        self.n = n

    def forward(self, x):
        raise NotImplementedError("Your turn: write forward.")
'''
    )


@given(
    st.text(max_size=40).filter(
        lambda t: '"""' not in t and "\\" not in t and not {"\0", "\r"} & set(t)
    )
)
def test_any_docstring_gives_a_blank_that_is_python(doc):
    try:
        source = f'def f():\n    """{doc} """\n    return 1'
        ast.parse(source)
    except (SyntaxError, ValueError):
        return
    tree = ast.parse(blank(source))
    assert isinstance(tree.body[0].body[-1], ast.Raise)


def test_the_edition_has_blanks_folded_solutions_and_no_outputs():
    notebook = edition(lesson())
    sources = [cell.source for cell in notebook.cells]
    assert "fourfold check 1_small/1_double" in sources[0] and "`double`" in sources[0]
    assert not any("return 2 * x" in source for source in sources)
    folded = [c for c in notebook.cells if "solution" in c.metadata.get("tags", [])]
    assert len(folded) == 1 and folded[0].metadata.jupyter.source_hidden
    assert "from fourfold.small.double import double" in folded[0].source
    position = notebook.cells.index(folded[0])
    assert "check" in notebook.cells[position - 1].metadata.tags
    assert all(not cell.get("outputs") for cell in notebook.cells)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_a_lesson_without_exercises_has_no_edition():
    assert edition(lesson('# %% tags=["promote"]\nA = 1\n')) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["promote", "exercise"]', '["exercise"]', "must be tagged `promote` too"),
        ('# %% tags=["check"]\nassert', "# %%\nassert", "must be tagged `check`"),
        ("def double(x)", "HALF = 1\n\n\ndef double(x)", "functions and classes only"),
        ("    return 2 * x\n", "", "no body"),
    ],
)
def test_an_exercise_that_breaks_the_rules_is_refused(old, new, message):
    assert old in BODY
    with pytest.raises(LessonError, match=message):
        exercises(lesson(BODY.replace(old, new)))


def answer_is(source, body=BODY):
    """What the check says when the reader wrote `source`."""
    original = lesson(body)
    exercise = exercises(original)[0]
    cells = original.with_source(exercise.cell.number, source).code
    return judge(original, exercise, cells)


def test_a_right_answer_passes():
    assert answer_is("def double(x):\n    return x + x") is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("def double(x):\n    return 3 * x", "twice two is four"),
        (blank('def double(x):\n    """Twice it."""\n    return 2'), "not written yet"),
        ("def double(x):\n    return y", "NameError: name 'y' is not defined (at `return y`)"),
        ("def other(x):\n    return 2", "no cell defines double"),
        ("def double(x):\n    raise SystemExit", "SystemExit"),
    ],
)
def test_a_wrong_answer_is_told_in_words(answer, words):
    assert words in answer_is(answer)


def test_an_assert_without_words_shows_itself():
    body = BODY.replace(', "twice two is four"', "")
    assert answer_is("def double(x):\n    return 0", body) == "this does not hold: double(2) == 4"


TWO = (
    BODY
    + '''
# %% tags=["promote", "exercise"]
def quadruple(x):
    """Four times the number."""
    return double(double(x))


# %% tags=["check"]
assert quadruple(1) == 4, "four"

# %% tags=["solution"]
from nowhere import quadruple
'''
)


def test_an_unwritten_exercise_does_not_fail_another():
    original = lesson(TWO)
    first, second = exercises(original)
    cells = original.with_source(first.cell.number, blank(first.cell.source)).code
    assert judge(original, second, cells) is None
    assert "not written" in judge(original, first, cells)


def test_a_reader_may_add_helpers_and_lose_the_check():
    original = lesson(TWO)
    first = exercises(original)[0]
    helper = replace(first.cell, source="def twice(x):\n    return 2 * x", tags=frozenset())
    own = replace(first.cell, source="def double(x):\n    return twice(x)")
    assert judge(original, first, [helper, own]) is None


def test_only_what_the_check_needs_is_run():
    body = "# %%\nraise RuntimeError\n\n" + BODY
    assert answer_is("def double(x):\n    return 2 * x", body) is None


@pytest.mark.parametrize(
    "source",
    [
        "def f(x, *,\n  z: int = 3): return 2 * x",
        "def f(\n    *args,\n    **kw,\n):\n    return 2",
        'def f(x, ä="äöü"): return 2 * x',
        "def f(x):\n\treturn 2 * x",
        "def f(x):\n  return 2 * x",
        'def f(x):\n    r"""Multiply by $\\alpha$ and \\N{x}."""\n    return 2 * x',
        "class A:\n    async def f(self):\n        return 1",
        "class A:\n    if True:\n        def f(self):\n            return 1",
        "@deco(1)\ndef f(x):\n    @inner\n    def g():\n        return 1\n    return g",
        "async def f(x):\n    return 1",
        'def f(x):\n    "Twice."; return 2 * x',
        "def f(x):\n    # the trick: return 1\n    return 1\n    # or return 1 too",
    ],
)
def test_every_way_to_write_a_body_is_left_blank(source):
    blanked = blank(source)
    ast.parse(blanked)
    assert "return" not in blanked and blanked.count("NotImplementedError") == 1
    assert blank(blanked) == blanked


@pytest.mark.parametrize("cell", ["%timeit 1 + 1", "!pip install x", "len?", "x ==== 3", "a\0b"])
def test_cells_that_are_no_python_do_not_stop_the_check(cell):
    original = lesson()
    first = exercises(original)[0]
    odd = replace(first.cell, source=cell, tags=frozenset())
    assert judge(original, first, [odd, *original.code]) is None


def test_a_docstring_may_ask_a_question():
    asking = (
        'def double(x):\n    """What is twice x?\n\n    Is it x + x?\n    """\n    return 2 * x'
    )
    assert answer_is(asking) is None
    assert answer_is(asking.replace("2 * x", "3 * x")) == "twice two is four"


def test_imports_below_a_magic_are_kept():
    body = BODY.replace("def double(x)", "def double(x, y=math.pi)")
    original = lesson(body)
    first = exercises(original)[0]
    cells = [
        replace(c, source="%matplotlib inline\n" + c.source) if c.number == 2 else c
        for c in original.code
    ]
    assert judge(original, first, cells) is None


def test_a_helper_named_like_a_builtin_is_used():
    original = lesson()
    first = exercises(original)[0]
    helper = replace(first.cell, source="def sum(x):\n    return 2 * x", tags=frozenset())
    own = replace(first.cell, source="def double(x):\n    return sum(x)")
    assert judge(original, first, [helper, own]) is None


def test_annotations_are_the_cells_own():
    assert run_program(["def f(x: 1 + 1): ...", "assert f.__annotations__['x'] == 2"]) is None


def test_a_lesson_without_code_has_no_exercises():
    assert exercises(lesson("# %% [markdown]\n# # A title\n")) == []
