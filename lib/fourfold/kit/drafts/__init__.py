"""Paper drafts in LaTeX or Markdown, read into one form with file and line for each item."""

import os
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
from fourfold.kit.drafts.latex import read_latex
from fourfold.kit.drafts.markdown import read_markdown

__all__ = [
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
    "read_draft",
]

_SUFFIXES = {
    **dict.fromkeys((".tex", ".ltx", ".latex"), read_latex),
    **dict.fromkeys((".md", ".markdown", ".qmd", ".rmd"), read_markdown),
}


def read_draft(path: str | os.PathLike) -> Draft:
    """Read a draft from its main file, LaTeX (with all that it includes) or Markdown.

    Anything odd inside is noted in `Draft.faults` with file and line. Raises DraftError, in one
    line, where there is nothing to read: no file, a folder, a binary or empty file, another suffix.
    """
    path = Path(path)
    reader = _SUFFIXES.get(path.suffix.lower())
    if reader is None and not path.is_dir():
        raise DraftError(f"{path.name}: not a draft's name; expected one that ends in .tex or .md")
    return (reader or read_latex)(path)
