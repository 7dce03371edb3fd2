"""Where things stand in the house, and how a file is written: whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fourfold.course.errors import CourseError

__all__ = ["House", "digest", "whole_file", "write_whole"]


@dataclass(frozen=True)
class House:
    """The rooms of one checkout of the course.

    Raises:
        CourseError: `root` holds no `chapters/` folder.
    """

    root: Path

    def __post_init__(self):
        if not self.chapters.is_dir():
            raise CourseError(
                f"root: {self.root} holds no chapters/ folder; run from a clone of the course, "
                "installed with `pip install -e .`"
            )

    @classmethod
    def here(cls) -> House:
        """The checkout that this package is installed from (an editable install)."""
        return cls(Path(__file__).resolve().parents[3])

    @property
    def chapters(self) -> Path:
        return self.root / "chapters"

    @property
    def library(self) -> Path:
        return self.root / "lib" / "fourfold"

    @property
    def readme(self) -> Path:
        return self.root / "README.md"

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    def measured(self, scale: str) -> Path:
        """The table of seconds and memory per lesson at one scale."""
        return self.root / "data" / "results" / f"measured_{scale}.csv"

    def name(self, path: Path) -> str:
        """`path` as a reader of the repository writes it."""
        return path.relative_to(self.root).as_posix()


def digest(text: str) -> str:
    """The first 12 hexadecimal digits of the text's sha256: enough to notice an edit."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` to a temporary file beside `path`, then rename: a reader never sees half."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside `path` to write to, renamed at the end and removed on any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            # Without it a power cut after the renaming can leave the new name on an empty file.
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
