"""A lesson as text: its header, its cells, its place; and how lessons are found by name."""

from __future__ import annotations

import difflib
import keyword
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import jupytext
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fourfold.course.errors import CourseError, LessonError
from fourfold.course.files import House, digest

__all__ = ["Cell", "Header", "Lesson", "chapters", "lessons", "matching", "nearest", "select"]

NAME = re.compile(r"[1-9]\d*_[a-z][a-z0-9_]*")
EXPECTED_NAME = "a number, an underscore and small letters, such as 4_splines"
TAGS = {"promote", "exercise", "check", "figure", "solution", "nbval-check-output"}


class Header(BaseModel):
    """What a lesson says of itself, under `jupyter: fourfold:` in its front matter."""

    model_config = ConfigDict(extra="forbid")

    minutes: int = Field(ge=5, le=180)
    level: Literal["beginner", "intermediate", "advanced"]
    needs: list[str]
    accelerator: Literal["none", "helpful", "needed"]
    promotes: bool = True  # false for a lesson that only reads or measures


@dataclass(frozen=True)
class Cell:
    """One cell: `kind` is "code" or "markdown"; `number` counts from 1."""

    kind: str
    source: str
    tags: frozenset[str]
    number: int

    @property
    def is_code(self) -> bool:
        return self.kind == "code"


@dataclass(frozen=True)
class Lesson:
    """The text of one lesson, `chapters/<chapter>/<name>.py`, read and checked for form.

    Raises:
        LessonError: the header is missing or wrong, or a tag is unknown.
    """

    chapter: str
    name: str
    header: Header
    cells: tuple[Cell, ...]

    @classmethod
    def parse(cls, text: str, chapter: str, name: str) -> Lesson:
        key = f"{chapter}/{name}"
        try:
            notebook = jupytext.reads(text, fmt="py:percent")
        except yaml.YAMLError as error:
            what = str(error).split("\n")[0]
            raise LessonError(key, 0, f"the front matter is not YAML: {what}") from None
        return cls(chapter, name, _header(notebook, key), _cells(notebook, key))

    @classmethod
    def read(cls, path: Path) -> Lesson:
        key = f"{path.parent.name}/{path.stem}"
        for name in key.split("/"):
            if not NAME.fullmatch(name) or keyword.iskeyword(_without_number(name)):
                raise LessonError(
                    key, 0, f"{name!r} is no name for a module; expected {EXPECTED_NAME}"
                )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise LessonError(key, 0, f"the file is not UTF-8: {error.reason}") from None
        return cls.parse(text, path.parent.name, path.stem)

    @property
    def key(self) -> str:
        return f"{self.chapter}/{self.name}"

    @property
    def source(self) -> str:
        """The lesson's path from the root of the course."""
        return f"chapters/{self.key}.py"

    @property
    def package(self) -> str:
        return _without_number(self.chapter)

    @property
    def module(self) -> str:
        return _without_number(self.name)

    @property
    def import_path(self) -> str:
        return f"fourfold.{self.package}.{self.module}"

    @cached_property
    def code(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.is_code]

    def tagged(self, tag: str) -> list[Cell]:
        return [cell for cell in self.cells if tag in cell.tags]

    def error(self, cell: Cell | None, message: str) -> LessonError:
        return LessonError(self.key, cell.number if cell else 0, message)

    @property
    def title(self) -> str:
        """The text of the level-one heading that opens the lesson."""
        first = self.cells[0] if self.cells else None
        match = first and not first.is_code and re.match(r"# +(.+)", first.source)
        if not match:
            raise self.error(first, "the first cell must open with `# Title`")
        return match[1].strip()

    @property
    def promise(self) -> str:
        """The sentence that says what the reader can do afterwards, without its emphasis."""
        for paragraph in self.cells[0].source.split("\n\n"):
            plain = " ".join(paragraph.replace("**", "").split())
            if plain.startswith("After this lesson you can"):
                return plain
        raise self.error(
            self.cells[0], "the first cell must hold a sentence `**After this lesson you can** …`"
        )

    def with_source(self, number: int, source: str) -> Lesson:
        """The same lesson with the source of one cell replaced."""
        cells = tuple(replace(c, source=source) if c.number == number else c for c in self.cells)
        return replace(self, cells=cells)


def code_digest(sources: Iterable[str]) -> str:
    """One digest for the code of a lesson, cell borders included."""
    return digest("\n# %%\n".join(sources))


def _header(notebook, key: str) -> Header:
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        raise LessonError(key, 0, f"kernelspec: got {kernel!r}, expected 'python3'")
    fields = notebook.metadata.get("fourfold")
    if not isinstance(fields, dict):
        raise LessonError(key, 0, "the front matter needs `fourfold:` under `jupyter:`")
    try:
        return Header(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise LessonError(key, 0, f"{field}: {first['msg']} (got {first['input']!r})") from None


def _cells(notebook, key: str) -> tuple[Cell, ...]:
    cells = []
    for number, cell in enumerate(notebook.cells, start=1):
        tags = frozenset(cell.metadata.get("tags", ()))
        if unknown := sorted(tags - TAGS):
            hint = nearest(unknown[0], TAGS)
            raise LessonError(key, number, f"unknown tag `{unknown[0]}`{hint}")
        if cell.cell_type not in ("code", "markdown"):
            raise LessonError(key, number, f"a {cell.cell_type} cell; expected code or markdown")
        cells.append(Cell(cell.cell_type, cell.source, tags, number))
    return tuple(cells)


def _without_number(name: str) -> str:
    return name.split("_", 1)[1]


def chapters(house: House) -> list[str]:
    """The chapters that hold a lesson, in order of their numbers."""
    return sorted({path.parent.name for path in _lesson_paths(house)}, key=_order)


def lessons(house: House) -> list[Lesson]:
    """Every lesson of the course, in reading order."""
    return [Lesson.read(path) for path in _lesson_paths(house)]


def _lesson_paths(house: House) -> list[Path]:
    paths = house.chapters.glob("[0-9]*_*/[0-9]*_*.py")
    files = (path for path in paths if path.is_file())
    return sorted(files, key=lambda path: (_order(path.parent.name), _order(path.stem)))


def _order(name: str) -> tuple[int, str]:
    number, rest = name.split("_", 1)
    return int(number), rest


def select(house: House, names: Sequence[str]) -> list[Lesson]:
    """The lessons that `names` stand for; all of them for no names.

    A name is a chapter (`6_bilinear_sampling`, `bilinear_sampling`, `6`), a lesson
    (`6_bilinear_sampling/1_sampling`, `1_sampling`, `sampling`) or a path to either.

    Raises:
        CourseError: a name stands for nothing; the nearest names are offered.
    """
    keys = [f"{path.parent.name}/{path.stem}" for path in _lesson_paths(house)]
    wanted = {key for name in names for key in matching(name, keys)} if names else set(keys)
    return [Lesson.read(house.chapters / f"{key}.py") for key in keys if key in wanted]


def matching(name: str, keys: Sequence[str]) -> list[str]:
    """The lesson keys that a reader means by `name`."""
    wanted = re.sub(r"\.(py|ipynb)$", "", name.strip("/").removeprefix("chapters/"))
    spellings = {key: _spellings(key) for key in keys}
    found = [key for key in keys if wanted in spellings[key]]
    if not found:
        known = {spelling for group in spellings.values() for spelling in group}
        hint = nearest(wanted, known, listed=keys)
        raise CourseError(f"no chapter or lesson is called {name!r}{hint}")
    return found


def _spellings(key: str) -> set[str]:
    chapter, name = key.split("/")
    number = chapter.split("_", 1)[0]
    short = f"{number}/{name.split('_', 1)[0]}"
    return {number, chapter, _without_number(chapter), key, name, _without_number(name), short}


def nearest(name: str, known: Iterable[str], listed: Iterable[str] | None = None) -> str:
    """A clause that offers the names closest to `name`, or lists what there is if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    names = known if listed is None else sorted(listed)
    return f"; there is {', '.join(names)}" if names else ""
