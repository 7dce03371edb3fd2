"""The exercise edition: the same lesson with the bodies of some definitions left to the reader."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import linecache
import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode

from fourfold.course import pair
from fourfold.course.lesson import Cell, Lesson
from fourfold.course.names import bound_names, needed

__all__ = ["Exercise", "blank", "edition", "exercises", "judge", "program", "run_program"]

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITION = (*FUNCTION, ast.ClassDef)


@dataclass(frozen=True)
class Exercise:
    """Definitions for the reader to write, and the cell that checks them."""

    names: tuple[str, ...]
    cell: Cell
    check: Cell

    @property
    def title(self) -> str:
        return ", ".join(self.names)


def exercises(lesson: Lesson) -> list[Exercise]:
    """The exercises of a lesson, in order.

    Raises:
        LessonError: an exercise is not promoted, is followed by no check, holds more than
            functions and classes, or a check follows no exercise.
    """
    code = lesson.code
    found = []
    for cell, following in itertools.zip_longest(code, code[1:]):
        if "exercise" in cell.tags:
            if "promote" not in cell.tags:
                raise lesson.error(cell, "an `exercise` must be tagged `promote` too")
            if following is None or "check" not in following.tags:
                raise lesson.error(cell, "the next code cell must be tagged `check`")
            found.append(Exercise(_names(lesson, cell), cell, following))
    return found


def _names(lesson: Lesson, cell: Cell) -> tuple[str, ...]:
    statements = ast.parse(cell.source).body
    if not all(isinstance(statement, DEFINITION) for statement in statements):
        raise lesson.error(cell, "an `exercise` holds functions and classes only")
    blanked = blank(cell.source)
    if blanked == cell.source:
        raise lesson.error(cell, "this `exercise` has no body to leave blank")
    try:
        still = [f.name for f in _functions(ast.parse(blanked)) if not _is_blank(f)]
    except SyntaxError:
        still = [statement.name for statement in statements]
    if still:
        raise lesson.error(
            cell, f"the body of `{still[0]}` cannot be left blank; write it on lines of its own"
        )
    return tuple(statement.name for statement in statements)


def blank(source: str) -> str:
    """The source with each body replaced by a nudge; signatures and docstrings stay.

    In a class the bodies of all methods but `__init__` are replaced.
    """
    lines = source.split("\n")  # as the parser counts them; splitlines() also splits at \x1e
    for function in sorted(_functions(ast.parse(source)), key=lambda f: -f.lineno):
        doc = ast.get_docstring(function)
        body = function.body[1:] if doc is not None else function.body
        if not body:
            continue
        nudge = (doc or f"write {function.name}").split("\n")[0].rstrip(".")
        # JSON's strings are Python's too, and always in double quotes.
        text = json.dumps(f"Your turn: {nudge}.", ensure_ascii=False)
        raises = f"raise NotImplementedError({text})"
        first, last = _first_line(body[0]), body[-1].end_lineno
        # The parser counts columns in bytes. `def f(x): return x` shares its line with the header.
        before = lines[first - 1].encode()[: body[0].col_offset].decode()
        if not before.strip():
            before = lines[first - 1][: len(lines[first - 1]) - len(lines[first - 1].lstrip())]
            first, last = _with_comments(lines, first, last, before)
        lines[first - 1 : last] = [before + raises]
    return "\n".join(lines)


def _first_line(statement: ast.stmt) -> int:
    return min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])


def _with_comments(lines: list[str], first: int, last: int, indent: str) -> tuple[int, int]:
    """The lines of a body with the comments and blank lines around it: they may give it away."""

    def is_remark(line: str) -> bool:
        return not line.strip() or (line.startswith(indent) and line.lstrip().startswith("#"))

    while is_remark(lines[first - 2]):
        first -= 1
    end = last
    while end < len(lines) and is_remark(lines[end]):
        end += 1
        last = end if lines[end - 1].strip() else last
    return first, last


def _functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions and methods of a cell, those under `if` or `try` too, but for `__init__`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTION):
            if child.name != "__init__":
                yield child
        else:
            yield from _functions(child)


def _is_blank(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return len(body) <= 1 and all(isinstance(statement, ast.Raise) for statement in body)


INTRODUCTION = """\
> **Exercise edition.** {count} left blank here: {names}. Write each one, run the check below it,
> and go on. In a terminal, `fourfold check {key}` checks them all. Stuck? Each check is followed
> by a folded cell that brings in the library's version. The complete lesson is
> [next door](../{name}.ipynb)."""

SOLUTION = """\
# Stuck? Write `stuck = True` and run this cell: it shows the library's version and goes on with it.
stuck = False
if stuck:
    import inspect

    from {module} import {names}

    print("\\n\\n".join(inspect.getsource(part) for part in ({names},)))"""


def solution_source(lesson: Lesson, exercise: Exercise) -> str:
    """The folded cell that brings in the library's version of an exercise."""
    return SOLUTION.format(module=lesson.import_path, names=", ".join(exercise.names))


def edition(lesson: Lesson) -> NotebookNode | None:
    """The exercise edition as a notebook without outputs; None for a lesson without exercises.

    Raises:
        LessonError: see `exercises`.
    """
    found = exercises(lesson)
    if not found:
        return None
    blanks = {exercise.cell.number: exercise for exercise in found}
    checks = {exercise.check.number: exercise for exercise in found}
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    notebook.cells.append(nbformat.v4.new_markdown_cell(_introduction(lesson, found)))
    for cell in lesson.cells:
        source = blank(cell.source) if cell.number in blanks else cell.source
        notebook.cells.append(_new_cell(cell.kind, source, sorted(cell.tags)))
        if cell.number in checks:
            folded = _new_cell("code", solution_source(lesson, checks[cell.number]), ["solution"])
            folded.metadata["jupyter"] = {"source_hidden": True}
            notebook.cells.append(folded)
    pair.set_ids(notebook)
    return notebook


def _introduction(lesson: Lesson, found: Sequence[Exercise]) -> str:
    names = ", ".join(f"`{name}`" for exercise in found for name in exercise.names)
    count = "One definition is" if len(found) == 1 else f"{len(found)} definitions are"
    return INTRODUCTION.format(count=count, names=names, key=lesson.key, name=lesson.name)


def _new_cell(kind: str, source: str, tags: list[str]) -> NotebookNode:
    make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
    return make(source, metadata={"tags": tags} if tags else {})


def judge(lesson: Lesson, exercise: Exercise, cells: Sequence[Cell]) -> str | None:
    """Run the check of one exercise on `cells`; None when it holds, or what is wrong, in words.

    `cells` are the cells of the lesson or of a reader's copy of it.
    """
    sources = program(lesson, exercise, cells)
    if sources is None:
        return (
            f"no cell defines {exercise.title}; copy the blank back from a fresh `fourfold start`"
        )
    return run_program(sources)


def program(lesson: Lesson, exercise: Exercise, cells: Sequence[Cell]) -> list[str] | None:
    """The sources to run, in order, to check one exercise as it stands in `cells`; None if absent.

    Only the cells that the check needs are taken, and other exercises in the lesson's own version,
    so that one unwritten exercise does not fail another. A cell that is not Python is left out,
    unless it is the exercise itself: then it is the program, for its error to be told.
    """
    others = {name: e.cell for e in exercises(lesson) if e != exercise for name in e.names}
    sources, end = [], None
    for cell in cells:
        if not cell.is_code or {"solution", "check"} & cell.tags:
            continue
        source = _without_magics(cell.source)
        defined = _defined(source)
        if defined is None:
            if any(
                re.search(rf"(?m)^\s*(def|class)\s+{name}\b", source) for name in exercise.names
            ):
                return [source]
            continue
        other = next((others[name] for name in others if name in defined), None)
        sources.append(other.source if other else source)
        if defined & set(exercise.names):
            end = len(sources)
    if end is None:
        return None
    sources = sources[:end]
    return [sources[i] for i in needed(sources, exercise.check.source)] + [exercise.check.source]


def _without_magics(source: str) -> str:
    """The source without the lines that only IPython understands, such as `%timeit` and `!ls`.

    Only where it is no Python as it stands: a docstring may well end a line with "?".
    """
    if _defined(source) is not None:
        return source
    lines = source.split("\n")
    kept = ["" if re.match(r"\s*[%!]|.*\?\s*$", line) else line for line in lines]
    return "\n".join(kept)


def _defined(source: str) -> set[str] | None:
    """The functions and classes that a cell defines; None for a cell that is not Python."""
    try:
        bound_names(source)
        return {node.name for node in ast.parse(source).body if isinstance(node, DEFINITION)}
    except (SyntaxError, ValueError):  # ValueError: a NUL or half a surrogate in the text
        return None


def run_program(sources: Sequence[str]) -> str | None:
    """Run the sources as one module; None, or what went wrong, in words."""
    space: dict[str, object] = {"__name__": "__main__"}
    for number, source in enumerate(sources, start=1):
        filename = f"<cell {number} of {len(sources)}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                # A cell has its own annotations: not those of the future, as this module has.
                exec(compile(source, filename, "exec", dont_inherit=True), space)
        except (Exception, SystemExit) as error:
            return " ".join(_in_words(error).split())
    return None


def _in_words(error: BaseException) -> str:
    if isinstance(error, NotImplementedError) and str(error).startswith("Your turn"):
        return f"not written yet. {error}"
    if isinstance(error, SyntaxError):
        return f"line {error.lineno} is not Python: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.line for frame in frames if frame.filename.startswith("<cell ")]
    line = lines[-1] if lines else ""
    if isinstance(error, AssertionError):
        return str(error) or f"this does not hold: {line.removeprefix('assert ')}"
    return f"{type(error).__name__}: {error} (at `{line}`)"
