"""What both readers share: a file's text, and the page on which they note what they see."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fourfold.kit.drafts.draft import (
    Citation,
    Draft,
    DraftError,
    Finding,
    Mark,
    Paragraph,
    Place,
    Reference,
    Section,
    count_words,
)

__all__ = ["KINDS", "Page", "read_source"]

_MOST_BYTES = 5_000_000  # a thesis with all its chapters is below 2 MB


def _decoded(data: bytes, name: str) -> tuple[str, Finding | None]:
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError as error:
        place = Place(name, data[: error.start].count(b"\n") + 1)
        found = f"byte 0x{data[error.start]:02x} is not UTF-8; the file was read as Latin-1"
        return data.decode("latin-1"), Finding("reading", "error", place, found, "UTF-8")


def read_source(path: Path, name: str) -> tuple[str, Finding | None]:
    """A file's text with plain line ends, and a finding where it is not UTF-8.

    Raises DraftError, in one line that begins with `name`, for what is no text.
    """
    try:
        if path.is_dir():
            inside = ", ".join(sorted(p.name for p in path.glob("*.tex"))[:3])
            hint = f" such as {inside}" if inside else ""
            raise DraftError(f"{name}: is a folder; expected a file{hint}")
        if not path.is_file():
            raise DraftError(f"{name}: no such file")
        if path.stat().st_size > _MOST_BYTES:
            raise DraftError(
                f"{name}: more than {_MOST_BYTES // 10**6} MB; expected a draft's text"
            )
        data = path.read_bytes()
    except OSError as error:
        raise DraftError(f"{name}: {error.strerror or 'cannot be read'}") from None
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise DraftError(
            f"{name}:{line}: a NUL byte; expected text, this is a binary file or UTF-16"
        )
    if not data.strip():
        raise DraftError(f"{name}: is empty; expected a draft")
    text, fault = _decoded(data.removeprefix(b"\xef\xbb\xbf"), name)
    return text.replace("\r\n", "\n").replace("\r", "\n"), fault


_NUMBERED = re.compile(r"\b(Fig(?:ure|\.)?|Table|Tab\.|Eq(?:uation|\.)?|Algorithm)\s*\(?(\d+)\)?")


def _numbered(text: str) -> list[str]:
    """Figures and the like named by number, such as `figure 2`."""
    kinds = {"f": "figure", "t": "table", "e": "equation", "a": "algorithm"}
    return [f"{kinds[word[0].lower()]} {number}" for word, number in _NUMBERED.findall(text)]


class Page:
    """What has been read so far; the readers of both formats write into one."""

    def __init__(self):
        self.title, self.title_level, self.appendix = "", 0, False
        self.sections, self.paragraphs, self.marks = [], [], []
        self.citations, self.references, self.faults = [], [], []
        self.kinds, self.alike = Counter(), {}  # marks by kind, indices of faults that are alike
        self.at = self.running = self.last = 0  # words before, and in, the present paragraph

    def heading(self, level: int, title: str, place: Place) -> None:
        title = " ".join(title.split())
        self.sections.append(Section(title, level, place, self.at, self.appendix))

    def here(self, place: Place) -> int:
        """The index of the present section; text before any heading opens one without a title."""
        if not self.sections:
            self.heading(1, "", place)
        return len(self.sections) - 1

    def paragraph(self, text: str, place: Place) -> None:
        text, self.running = " ".join(text.split()), 0
        if re.search(r"\w", text):
            words = count_words(text)
            self.paragraphs.append(Paragraph(text, place, self.here(place), self.at, words))
            self.at += words
            self.refer(_numbered(text), place)

    def position(self) -> int:
        self.last = max(self.last, self.at + self.running)
        return self.last

    def mark(self, kind: str, caption: str, text: str, labels: Iterable[str], place: Place) -> None:
        self.kinds[kind] += 1
        words = (" ".join(caption.split()), " ".join(text.split()))
        where = (tuple(labels), place, self.here(place), self.position())
        self.marks.append(Mark(kind, self.kinds[kind], *words, *where))

    def cite(self, keys: Iterable[str], place: Place) -> None:
        at = self.position()
        self.citations += [Citation(key, place, self.here(place), at) for key in keys]

    def refer(self, labels: Iterable[str], place: Place) -> None:
        self.references += [Reference(label, place, self.here(place)) for label in labels]

    def fault(self, found: str, wanted: str, place: Place, kind: str = "") -> None:
        """Note an error of reading; of many alike in one file the first three are kept.

        Alike are those of one `kind`, or, without it, those that found the same.
        """
        alike = self.alike.setdefault((kind or found, place.file), [])
        alike.append(len(self.faults))
        if len(alike) <= 3:
            self.faults.append(Finding("reading", "error", place, found, wanted))

    def draft(self, name: str) -> Draft:
        for alike in self.alike.values():
            if len(alike) > 3:
                third = self.faults[alike[2]]
                more = f"{third.found} ({len(alike) - 3} times more)"
                self.faults[alike[2]] = replace(third, found=more)
        lists = (self.sections, self.paragraphs, self.marks, self.citations, self.references)
        return Draft(name, self.title, *map(tuple, lists), tuple(self.faults))


KINDS = ("figure", "table", "equation", "algorithm")
