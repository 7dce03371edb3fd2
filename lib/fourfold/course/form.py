"""The form of a lesson: the nine parts in order, a ledger, a figure early, exercises listed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fourfold.course.exercises import exercises
from fourfold.course.lesson import Cell, Lesson

__all__ = ["LEDGER_COLUMNS", "PARTS", "form_findings", "part"]

PARTS = (
    "Words",
    "Figure",
    "Formula",
    "Code",
    "On real input",
    "Exercises",
    "What breaks",
    "Recap",
)
LEDGER_COLUMNS = ("symbol", "meaning", "shape or unit", "name in code", "on the figure")
HURRIED = re.compile(r"\b(simply|obviously|just|trivially|of course)\b", re.IGNORECASE)
HEADING = re.compile(r"^## +(.+?) *$", re.MULTILINE)


def form_findings(lesson: Lesson) -> list[str]:
    """What the lesson lacks of a lesson's form, one line each."""
    return [
        *_headings(lesson),
        *_title(lesson),
        *_figure(lesson),
        *_formula(lesson),
        *_code(lesson),
        *_folds(lesson),
        *_prose(lesson),
    ]


def part(lesson: Lesson, heading: str) -> list[Cell]:
    """The cells from the level-two heading `heading` up to the next one."""
    inside, found = False, []
    for cell in lesson.cells:
        if not cell.is_code and (match := HEADING.search(cell.source)):
            inside = match[1] == heading
        if inside:
            found.append(cell)
    return found


def _headings(lesson: Lesson) -> Iterator[str]:
    found = [h for cell in lesson.cells if not cell.is_code for h in HEADING.findall(cell.source)]
    if tuple(found) != PARTS:
        yield f"its level-two headings are {', '.join(found)}; expected {', '.join(PARTS)}"


def _title(lesson: Lesson) -> Iterator[str]:
    if not (lesson.title and lesson.promise):  # each raises where it is missing
        yield "it has no title or no promise"
    for need in lesson.header.needs:
        if need.split("/")[1] not in lesson.cells[0].source:
            yield f"its first cell does not link to {need}, which the header says it needs"


def _figure(lesson: Lesson) -> Iterator[str]:
    if not any("figure" in cell.tags for cell in part(lesson, "Figure")):
        yield "no cell under Figure is tagged `figure`"
    first = next((i for i, cell in enumerate(lesson.code, 1) if "show(" in cell.source), None)
    if first is None or first > 5:
        yield "the first picture comes later than the fifth code cell"


def _formula(lesson: Lesson) -> Iterator[str]:
    text = "\n".join(cell.source for cell in part(lesson, "Formula"))
    if r"\tag{1}" not in text:
        yield r"no equation under Formula is numbered (`\tag{1}`)"
    rows = [_split(line) for line in text.splitlines() if line.startswith("|")]
    if list(LEDGER_COLUMNS) not in rows:
        yield f"no ledger under Formula: a table headed {' | '.join(LEDGER_COLUMNS)}"
        return
    body = rows[rows.index(list(LEDGER_COLUMNS)) + 2 :]
    if not body:
        yield "the ledger has no rows"
    for row in body:
        if len(row) != len(LEDGER_COLUMNS) or not all(row):
            yield f"the ledger's row {row[0]!r} does not fill its five columns"


def _split(row: str) -> list[str]:
    r"""The cells of a Markdown table's row; `\|` is a bar inside a cell."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))]


def _code(lesson: Lesson) -> Iterator[str]:
    if not lesson.header.promotes:
        return
    code = {cell.number for cell in part(lesson, "Code")}
    if not any(cell.number in code for cell in lesson.tagged("promote")):
        yield "nothing under Code is tagged `promote`"
    found = exercises(lesson)
    if not 2 <= len(found) <= 4:
        yield f"{len(found)} cells are tagged `exercise`; expected two to four"
    listed = "\n".join(cell.source for cell in part(lesson, "Exercises"))
    for exercise in found:
        for name in exercise.names:
            if f"`{name}`" not in listed:
                yield f"`{name}` is left blank but not listed under Exercises"


def _folds(lesson: Lesson) -> Iterator[str]:
    text = "\n".join(cell.source for cell in part(lesson, "Exercises"))
    for fold in ("Hint", "Answer"):
        if f"<summary>{fold}" not in text:
            yield f"no folded {fold.lower()} under Exercises"
    if not any("shows_error(" in cell.source for cell in part(lesson, "What breaks")):
        yield "What breaks shows no error (`with shows_error(…)`)"


def _prose(lesson: Lesson) -> Iterator[str]:
    """Words that tell a reader who is stuck that they should not be."""
    for cell in lesson.cells:
        if not cell.is_code and (match := HURRIED.search(cell.source)):
            yield f"cell {cell.number} says {match[0]!r}; leave the word out"
