"""The account of the data folder: sizes and hashes in data/README.md, kept by the build."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from fourfold.course.errors import CourseError

__all__ = ["with_sizes"]

# | `path` | what | where from | licence | size | sha256 |
ROW = re.compile(r"^(\| `([^`]+)` \|(?:[^|\n]*\|){3}) [^|\n]* \| [^|\n]* \|$", re.MULTILINE)


def with_sizes(text: str, read: Callable[[str], bytes | None]) -> str:
    """The text of data/README.md with the last two columns of its files renewed.

    Args:
        text: rows that open with a path in backticks have six columns, of which the last two are
            the size and the sha256.
        read: gives the bytes of a file from its path in data/, or None when it is missing.

    Raises:
        CourseError: a row names a file that is missing.
    """

    def renewed(match: re.Match) -> str:
        content = read(match[2])
        if content is None:
            raise CourseError(f"data/README.md: {match[2]} is missing; remove its row")
        return f"{match[1]} {_size(len(content))} | `{hashlib.sha256(content).hexdigest()}` |"

    return ROW.sub(renewed, text)


def _size(count: int) -> str:
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1e6:.2f} MB"
