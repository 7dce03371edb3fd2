"""A paper draft as a value: sections, paragraphs, marks, citations, each with file and line."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

__all__ = [
    "NO_PROSE",
    "Citation",
    "Draft",
    "DraftError",
    "Finding",
    "Mark",
    "Paragraph",
    "Place",
    "Reference",
    "Section",
    "count_words",
    "counted",
]


class DraftError(ValueError):
    """A draft that cannot be read at all; its text is one line that names the file."""


class Place(NamedTuple):
    """A line of a file of the draft; the file is named from the main file's folder."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Finding:
    """What one rule found: where, what stands there, and what would satisfy the rule.

    severity  "error" for source that could not be read as meant, "warning" for a rule not met
    """

    rule: str
    severity: str
    place: Place
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.place}  {self.rule}: {self.found}; wanted: {self.wanted}"


@dataclass(frozen=True)
class Section:
    r"""A heading; level 1 is \section, or ## under a title. `at` counts the words before it."""

    title: str
    level: int
    place: Place
    at: int
    appendix: bool = False


@dataclass(frozen=True)
class Paragraph:
    """A paragraph as plain text; its section is an index into `Draft.sections`.

    Formulas stand in it as `$…$`, citations as `[@key]`, references as `[#label]`. `words` counts
    its own words, `at` those before it.
    """

    text: str
    place: Place
    section: int
    at: int
    words: int


@dataclass(frozen=True)
class Mark:
    """What is no prose: a figure, table, equation or algorithm, with its caption and its content.

    `number` counts marks of one kind from 1; `text` is the TeX of an equation, the cells of a
    table, the words drawn on a figure.
    """

    kind: str
    number: int
    caption: str
    text: str
    labels: tuple[str, ...]
    place: Place
    section: int
    at: int


@dataclass(frozen=True)
class Citation:
    """One work cited at one place; a command with three keys makes three."""

    key: str
    place: Place
    section: int
    at: int


@dataclass(frozen=True)
class Reference:
    """A mention of a label (`fig:pipeline`) or of a number (`figure 2`)."""

    label: str
    place: Place
    section: int


def counted(count: int, name: str) -> str:
    return f"{count:,} {name if count != 1 else name.removesuffix('s')}"


@dataclass(frozen=True)
class Draft:
    """A paper as a program sees it ($D$ in the lesson), everything in reading order.

    `marks` are the figures, tables, equations and algorithms together; `faults` the errors of
    reading.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
    paragraphs: tuple[Paragraph, ...]
    marks: tuple[Mark, ...]
    citations: tuple[Citation, ...]
    references: tuple[Reference, ...]
    faults: tuple[Finding, ...]

    @cached_property
    def figures(self) -> tuple[Mark, ...]:
        return self._of_kind("figure")

    @cached_property
    def tables(self) -> tuple[Mark, ...]:
        return self._of_kind("table")

    @cached_property
    def equations(self) -> tuple[Mark, ...]:
        return self._of_kind("equation")

    @cached_property
    def algorithms(self) -> tuple[Mark, ...]:
        return self._of_kind("algorithm")

    @property
    def words(self) -> int:
        """Words of prose; those of headings and captions are not among them."""
        return sum(paragraph.words for paragraph in self.paragraphs)

    def _of_kind(self, kind: str) -> tuple[Mark, ...]:
        return tuple(mark for mark in self.marks if mark.kind == kind)

    def __str__(self) -> str:
        names = ("sections", "paragraphs", "figures", "tables", "equations", "citations", "faults")
        counts = ", ".join(counted(len(getattr(self, name)), name) for name in names)
        return f"{self.name}: {counted(self.words, 'words')}, {counts}"


_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


NO_PROSE = re.compile(r"\$[^$]*\$|\[[@#][^\[\]]*\]")


def count_words(text: str) -> int:
    """How many words of prose a text holds (|p| in equation 1): no formulas, citations or numbers.

    >>> count_words("A well-known bound, $x < 1$, holds in 3 cases [@knuth1984].")
    6
    """
    return len(_WORD.findall(NO_PROSE.sub(" ", text)))
