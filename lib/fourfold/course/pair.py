"""The pair: a lesson's `.py` is the source; its `.ipynb` has the same cells, and outputs."""

from __future__ import annotations

import base64
import json
from collections import Counter, defaultdict, deque

import jupytext
import nbformat
from nbformat import NotebookNode

from fourfold.course.files import digest
from fourfold.course.lesson import code_digest

__all__ = [
    "STAMP",
    "differences",
    "first_figure",
    "from_json",
    "hand_edited",
    "inputs_digest",
    "is_ours",
    "outputs_are_current",
    "pair",
    "set_ids",
    "to_json",
]

HEADER = ("kernelspec", "fourfold")  # the notebook metadata that a lesson's front matter holds
STAMP = "fourfold_stamp"  # notebook metadata: digests of the inputs as written and as executed


def pair(text: str, old: NotebookNode | None = None) -> NotebookNode:
    """The notebook of the lesson `text`; unchanged cells keep the outputs that `old` has for them.

    Cell ids are digests of the sources, so the same lesson gives the same notebook.
    """
    notebook = jupytext.reads(text, fmt="py:percent")
    metadata = {key: notebook.metadata[key] for key in HEADER if key in notebook.metadata}
    stamp = {}
    if old is not None:
        _keep_outputs(notebook, old)
        stamp = _stamp(old)
        if "language_info" in old.metadata:
            metadata["language_info"] = old.metadata["language_info"]
    set_ids(notebook)
    notebook.metadata = NotebookNode(metadata)
    notebook.metadata[STAMP] = stamp | {"inputs": inputs_digest(notebook)}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def _stamp(notebook: NotebookNode) -> dict[str, str]:
    """What build and run noted in the notebook; empty when it carries no note of theirs."""
    stamp = notebook.metadata.get(STAMP)
    return stamp if isinstance(stamp, dict) else {}


def is_ours(notebook: NotebookNode) -> bool:
    """Whether `fourfold build` wrote the notebook."""
    return "inputs" in _stamp(notebook)


def _keep_outputs(notebook: NotebookNode, old: NotebookNode) -> None:
    """Give each code cell the outputs of the same source in `old`, first come first served."""
    waiting = defaultdict(deque)
    for cell in old.cells:
        if cell.cell_type == "code":
            waiting[cell.source].append(cell)
    for cell in notebook.cells:
        if cell.cell_type == "code" and waiting[cell.source]:
            before = waiting[cell.source].popleft()
            cell.outputs, cell.execution_count = before.outputs, before.execution_count


def set_ids(notebook: NotebookNode) -> None:
    """Give each cell an id that depends on its text alone (and on how often it came before)."""
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        base = digest(cell.cell_type + cell.source)[:8]
        cell.id = f"{base}-{seen[base]}" if seen[base] else base
        seen[base] += 1


def _inputs(notebook: NotebookNode) -> list[tuple[str, str, list[str]]]:
    return [
        (cell.cell_type, cell.source, sorted(cell.metadata.get("tags") or []))
        for cell in notebook.cells
    ]


def inputs_digest(notebook: NotebookNode) -> str:
    """A digest of what a person writes in a notebook: types, sources and tags of its cells."""
    header = notebook.metadata.get("fourfold", {})
    return digest(json.dumps([_inputs(notebook), header], sort_keys=True))


def hand_edited(notebook: NotebookNode) -> bool:
    """Whether the inputs were changed since `fourfold build` wrote the notebook."""
    written = _stamp(notebook).get("inputs")
    return written != inputs_digest(notebook)


def outputs_are_current(notebook: NotebookNode) -> bool:
    """Whether the outputs come from one execution of exactly these code cells."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return _stamp(notebook).get("executed") == code_digest(sources)


def differences(text: str, notebook: NotebookNode) -> list[str]:
    """Where the notebook's inputs differ from the lesson's cells, one line each."""
    lesson = jupytext.reads(text, fmt="py:percent")
    found = []
    if lesson.metadata.get("fourfold") != notebook.metadata.get("fourfold"):
        found.append("the header differs")
    ours, theirs = _inputs(lesson), _inputs(notebook)
    if len(ours) != len(theirs):
        found.append(f"{len(theirs)} cells in the notebook, {len(ours)} in the lesson")
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False), start=1):
        for what, x, y in zip(("type", "source", "tags"), a, b, strict=True):
            if x != y:
                found.append(f"cell {number}: its {what} differs")
    return found


def first_figure(notebook: NotebookNode) -> bytes | None:
    """The PNG of the first cell tagged `figure`, or None when it has not been run."""
    for cell in notebook.cells:
        if "figure" in (cell.metadata.get("tags") or []):
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
    return None


def from_json(text: str) -> NotebookNode:
    """A notebook from the text of an `.ipynb` file.

    Raises:
        ValueError: the text is not a notebook.
    """
    try:
        return nbformat.reads(text, as_version=4)
    except Exception as error:
        raise ValueError(f"not a notebook: {error}") from None


def to_json(notebook: NotebookNode) -> str:
    """The text of an `.ipynb` file, keys sorted, one space of indent: stable under git."""
    return nbformat.writes(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
