"""What a published notebook must be: executed once, whole, small, and free of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nbformat import NotebookNode

__all__ = ["hygiene_findings"]

LIMIT = 1_000_000  # bytes; a code host stops showing notebooks not far above
MACHINE = re.compile(
    r"(?:/(?:home|Users|root|work|tmp|usr|opt|var|mnt)/[\w.-]+)|(?:\b[A-Z]:\\\w+)|(?:\b0x[0-9a-f]{6,})"
)
PICTURES = ("image/png", "image/jpeg", "image/gif")
HIDDEN_UNTRUSTED = ("image/svg+xml", "application/javascript", "text/html")


def hygiene_findings(notebook: NotebookNode, size: int) -> list[str]:
    """What keeps a notebook of `size` bytes from being published, one line each."""
    findings = [f"{size} bytes, more than {LIMIT}"] if size > LIMIT else []
    findings += _counts(notebook)
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            findings += [f"cell {number}: {text}" for text in _cell(cell)]
    return findings


def _counts(notebook: NotebookNode) -> Iterator[str]:
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        yield f"not executed once from top to bottom: execution counts are {counts}"


def _cell(cell: NotebookNode) -> Iterator[str]:
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"an error output ({output.ename})"
        if output.get("name") == "stderr":
            yield f"a warning or progress text on stderr ({output.text[:60]!r})"
        data = output.get("data", {})
        yield from _pictures(data, output.get("metadata", {}))
        for text in (output.get("text", ""), data.get("text/plain", "")):
            if match := MACHINE.search(text):
                yield f"an output names this machine ({match[0]!r})"
    if "figure" in cell.get("metadata", {}).get("tags", []) and not _has_picture(cell):
        yield "tagged `figure`, but shows no picture"


def _pictures(data: dict, metadata: dict) -> Iterator[str]:
    for kind in HIDDEN_UNTRUSTED:
        if kind in data and not any(picture in data for picture in PICTURES):
            yield f"{kind} alone; a reader who does not trust the notebook yet sees nothing"
    for kind in PICTURES:
        if kind in data and not metadata.get(kind, metadata).get("alt"):
            yield f"{kind} without alternative text; show it with `show(figure, alt=…)`"


def _has_picture(cell: NotebookNode) -> bool:
    return any(kind in output.get("data", {}) for output in cell.outputs for kind in PICTURES)
