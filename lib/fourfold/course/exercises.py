"""The exercise edition: the same lesson with the bodies of some definitions left to the reader."""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode

from fourfold.course import pair
from fourfold.course.lesson import Cell, Lesson
from fourfold.course.names import bound_names, needed

__all__ = ["Exercise", "blank", "edition", "exercises", "program", "run_program", "solution_source"]


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
    for cell, following in zip(code, [*code[1:], None], strict=True):
        if "exercise" in cell.tags:
            if "promote" not in cell.tags:
                raise lesson.error(cell, "an `exercise` must be tagged `promote` too")
            if following is None or "check" not in following.tags:
                raise lesson.error(cell, "the next code cell must be tagged `check`")
            found.append(Exercise(_names(lesson, cell), cell, following))
    return found


def _names(lesson: Lesson, cell: Cell) -> tuple[str, ...]:
    statements = ast.parse(cell.source).body
    for statement in statements:
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef):
            raise lesson.error(cell, "an `exercise` holds functions and classes only")
    if blank(cell.source) == cell.source:
        raise lesson.error(cell, "this `exercise` has no body to leave blank")
    return tuple(statement.name for statement in statements)


def blank(source: str) -> str:
    """The source with each body replaced by a nudge; signatures and docstrings stay.

    In a class the bodies of all methods but `__init__` are replaced.
    """
    lines = source.split("\n")  # as the parser counts them; splitlines() also splits at \x1e
    for function in sorted(_functions(ast.parse(source)), key=lambda f: -f.lineno):
        doc = ast.get_docstring(function)
        body = function.body[1:] if doc else function.body
        if not body:
            continue
        indent = " " * (function.col_offset + 4)
        nudge = (doc or f"write {function.name}").split("\n")[0].rstrip(".").replace('"', "'")
        raises = f'raise NotImplementedError("Your turn: {nudge}.")'
        # Comments above the first statement go too: they would give the answer away.
        first = function.body[0].end_lineno if doc else body[0].lineno - 1
        last = body[-1].end_lineno
        shares_line = first < _header_end(function)  # `def f(x): return x`
        head = [lines[first][: body[0].col_offset].rstrip()] if shares_line else []
        lines[first:last] = [*head, indent + raises]
    return "\n".join(lines)


def _functions(tree: ast.AST) -> list[ast.FunctionDef]:
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.append(node)
        elif isinstance(node, ast.ClassDef):
            found += [f for f in _functions(node) if f.name != "__init__"]
    return found


def _header_end(function: ast.FunctionDef) -> int:
    """The line number at which the body may begin on a line of its own."""
    parts = [function.lineno, *(a.end_lineno for a in function.args.args)]
    if function.returns:
        parts.append(function.returns.end_lineno)
    return max(parts)


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


def program(lesson: Lesson, exercise: Exercise, cells: Sequence[Cell]) -> list[str]:
    """The sources to run, in order, to check one exercise as it stands in `cells`.

    `cells` are the code cells of the lesson or of a reader's copy of it. Only the cells that the
    check needs are taken, other exercises in the lesson's own version, so that one unwritten
    exercise does not fail another.
    """
    others = {name: e.cell for e in exercises(lesson) if e != exercise for name in e.names}
    sources = []
    for cell in cells:
        if not cell.is_code or "solution" in cell.tags or "check" in cell.tags:
            continue
        bound = bound_names(cell.source)
        other = next((others[name] for name in others if name in bound), None)
        sources.append(other.source if other and "exercise" in cell.tags else cell.source)
        if "exercise" in cell.tags and bound & set(exercise.names):
            break
    return [sources[i] for i in needed(sources, exercise.check.source)] + [exercise.check.source]


def run_program(sources: Sequence[str]) -> str | None:
    """Run the sources as one module; None, or what went wrong, in words."""
    space: dict[str, object] = {"__name__": "__main__"}
    for number, source in enumerate(sources, start=1):
        filename = f"<cell {number} of {len(sources)}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(source, filename, "exec"), space)
        except (Exception, SystemExit) as error:
            return _in_words(error)
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
