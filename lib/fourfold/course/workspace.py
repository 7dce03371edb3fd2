"""The reader's workspace: copies of the lessons to read and the exercise edition to write in.

`start` may be run again after the course changed. It knows what it wrote last (`.fourfold.json`)
and so tells a reader's edit from an old copy: it never writes over an edit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

from fourfold.course import exercises, pair
from fourfold.course.errors import CourseError
from fourfold.course.files import House, write_whole
from fourfold.course.lesson import Cell, Lesson

__all__ = ["Written", "reader_cells", "start", "workspace_here"]

MANIFEST = ".fourfold.json"
README = """\
# Your workspace

Every chapter folder holds the lessons, complete and ready to run, and under `exercises/` the same
lessons with parts left for you to write. Change anything: `fourfold start` never writes over your
edits, and git does not see this folder. `fourfold check` looks at your exercises.
"""


@dataclass(frozen=True)
class Written:
    """What became of one file: `outcome` is "new", "renewed", "as it was", "yours" or "beside"."""

    path: Path
    outcome: str


def workspace_here(house: House) -> Path:
    """The folder that the reader stands in, if `start` filled it; else the course's workspace."""
    here = Path.cwd()
    return here if (here / MANIFEST).exists() else house.workspace


def start(house: House, folder: Path, chosen: Sequence[Lesson]) -> list[Written]:
    """Fill `folder` with the lessons and their exercise editions; keep the reader's edits.

    Where both the course and the reader changed a file, the course's new version is written
    beside the reader's, as `NAME.new.ipynb`.

    Raises:
        CourseError: `folder` is a file, or lies inside one of the course's own rooms.
    """
    _check_folder(house, folder)
    manifest = _read_manifest(folder)
    written = [
        _place(folder, name, notebook, manifest) for name, notebook in _copies(house, chosen)
    ]
    if not (folder / "README.md").exists():
        write_whole(folder / "README.md", README)
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return written


def _check_folder(house: House, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise CourseError(f"folder: {folder} is a file; name a folder of your own")
    place = folder.resolve()
    own = any(place.is_relative_to(house.root / room) for room in ("workspace", "runs", "build"))
    if place.is_relative_to(house.root) and not own:
        raise CourseError(
            f"folder: {str(folder)!r} lies among the course's own files; expected workspace/ or a "
            "folder outside"
        )


def _copies(house: House, chosen: Sequence[Lesson]) -> Iterator[tuple[str, NotebookNode]]:
    """Each notebook of the workspace, with its path there."""
    for lesson in chosen:
        source = house.chapters / f"{lesson.key}.ipynb"
        if not source.exists():
            raise CourseError(f"{house.name(source)} is missing; `fourfold build` writes it")
        complete = pair.from_json(source.read_text(encoding="utf-8"))
        # A copy is a notebook alone: without this the reader's Jupyter would pair it with a .py.
        complete.metadata["jupytext"] = {"formats": "ipynb"}
        yield f"{lesson.key}.ipynb", complete
        if (blank := exercises.edition(lesson)) is not None:
            blank.metadata["jupytext"] = {"formats": "ipynb"}
            yield f"{lesson.chapter}/exercises/{lesson.name}.ipynb", blank


def _place(folder: Path, name: str, notebook: NotebookNode, manifest: dict[str, str]) -> Written:
    path, new = folder / name, pair.inputs_digest(notebook)
    current = _digest_of(path)
    before = manifest.get(name)
    if current is None and path.exists():  # the reader's file is no notebook: leave it
        return _beside(path, notebook)
    if current is None:
        outcome = "new"
    elif current == new:
        manifest[name] = new
        return Written(path, "as it was")
    elif current == before:
        outcome = "renewed"
    elif new == before:
        return Written(path, "yours")
    else:
        manifest[name] = new
        return _beside(path, notebook)
    write_whole(path, pair.to_json(notebook))
    manifest[name] = new
    return Written(path, outcome)


def _beside(path: Path, notebook: NotebookNode) -> Written:
    """Write `NAME.new.ipynb`, or the next free number if the reader edited that one too."""
    text, number = pair.to_json(notebook), 1
    beside = path.with_suffix(".new.ipynb")
    while beside.exists() and _digest_of(beside) != pair.inputs_digest(notebook):
        number += 1
        beside = path.with_suffix(f".new{number}.ipynb")
    write_whole(beside, text)
    return Written(beside, "beside")


def _digest_of(path: Path) -> str | None:
    try:
        return pair.inputs_digest(pair.from_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _read_manifest(folder: Path) -> dict[str, str]:
    """What `start` wrote last; without it the worst that follows is a `.new.ipynb` too many."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def reader_cells(folder: Path, lesson: Lesson) -> list[Cell]:
    """The cells of the reader's exercise edition of a lesson.

    Raises:
        CourseError: there is none, or it is no notebook.
    """
    path = folder / lesson.chapter / "exercises" / f"{lesson.name}.ipynb"
    if not path.exists():
        raise CourseError(f"{path} is missing; `fourfold start {folder}` writes it")
    try:
        notebook = pair.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CourseError(f"{path}: {error}") from None
    return [
        Cell(cell.cell_type, cell.source, frozenset(cell.metadata.get("tags") or ()), number)
        for number, cell in enumerate(notebook.cells, start=1)
    ]
