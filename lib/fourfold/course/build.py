"""Build: write all that is generated, or say what is stale.

Generated are the modules and `__init__` files of the chapters' packages, the notebooks' inputs, the
README's map and pictures, and the sizes and hashes in data/README.md. The exercise edition is made
in memory, since its rules can be broken too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from nbformat import NotebookNode

from fourfold.course import data, exercises, pair, promote, readme
from fourfold.course.errors import CourseError
from fourfold.course.files import House, write_whole
from fourfold.course.lesson import Lesson, lessons

__all__ = ["build", "check"]


@dataclass(frozen=True)
class Target:
    """One generated file: its text or bytes (None: it must not exist), and its guard.

    `guard` says why the file as it stands may not be overwritten, or is None.
    """

    path: Path
    text: str | bytes | None
    guard: str | None

    @property
    def current(self) -> str | bytes | None:
        if not self.path.exists():
            return None
        content = self.path.read_bytes()
        return content if isinstance(self.text, bytes) else content.decode(errors="replace")

    @property
    def is_stale(self) -> bool:
        return self.current != self.text


def build(
    house: House, chosen: Sequence[Lesson] | None = None, *, force: bool = False
) -> list[Path]:
    """Write every stale target; return the paths written or removed.

    With `chosen`, the modules and notebooks of other lessons are left as they are.

    Raises:
        CourseError: a target was edited by hand and `force` is false; nothing is written then.
    """
    stale = [target for target in _targets(house, chosen) if target.is_stale]
    for target in stale:
        if target.guard and not force:
            raise CourseError(f"{house.name(target.path)}: {target.guard}")
    for target in stale:
        if target.text is None:
            target.path.unlink()
        else:
            write_whole(target.path, target.text)
    return [target.path for target in stale]


def check(house: House) -> list[str]:
    """What is stale or breaks a rule, as text to print; an empty list when all is well."""
    findings = [_stale(house, target) for target in _targets(house, None) if target.is_stale]
    return findings + list(_old_outputs(house))


def _stale(house: House, target: Target) -> str:
    name = house.name(target.path)
    if target.path.suffix == ".ipynb" and target.current is not None and target.text is not None:
        return "\n".join([f"{name}: stale", *_notebook_differences(target)])
    if isinstance(target.text, bytes):
        return f"{name}: differs from the figure in its lesson's notebook"
    if target.text is None:
        return f"{name}: generated from a lesson that is gone; `fourfold build` removes it"
    before, after = (target.current or "").splitlines(), target.text.splitlines()
    if before == after:
        return f"{name}: only its line endings differ; expected a line feed alone"
    diff = difflib.unified_diff(
        before, after, f"{name} (as it is)", f"{name} (as built)", lineterm=""
    )
    return "\n".join(diff)


def _notebook_differences(target: Target) -> list[str]:
    lesson_text = target.path.with_suffix(".py").read_text(encoding="utf-8")
    try:
        found = pair.differences(lesson_text, pair.from_json(target.current))
    except ValueError as error:
        return [f"  {error}"]
    return [f"  {line}" for line in found or ["its metadata differs from what build writes"]]


def _old_outputs(house: House) -> Iterator[str]:
    for lesson in lessons(house):
        path = house.chapters / f"{lesson.key}.ipynb"
        if not path.exists():
            continue
        notebook = _read_notebook(path)  # one that cannot be read is told as stale already
        if notebook is not None and not pair.outputs_are_current(notebook):
            yield (
                f"{house.name(path)}: its outputs are older than its code; "
                f"run `fourfold run {lesson.key} --save`"
            )


def _targets(house: House, chosen: Sequence[Lesson] | None) -> list[Target]:
    every = lessons(house)
    _check_needs(every)
    keys = {lesson.key for lesson in (every if chosen is None else chosen)}
    some = [lesson for lesson in every if lesson.key in keys]
    for lesson in some:
        exercises.edition(lesson)
    targets = [
        *(target for lesson in some if (target := _module(house, lesson))),
        *_packages(house, every),
        *_leftovers(house, every),
        *(_notebook(house, lesson) for lesson in some),
        *_readme(house, every),
    ]
    return [*targets, *_data_readme(house, targets)]


def _check_needs(every: Sequence[Lesson]) -> None:
    keys = [lesson.key for lesson in every]
    for lesson in every:
        for need in lesson.header.needs:
            if need not in keys:
                raise lesson.error(None, f"needs: no lesson is called {need!r}")


def _module(house: House, lesson: Lesson) -> Target | None:
    text = promote.module_text(lesson)
    if text is None:
        return None
    path = house.library / lesson.package / f"{lesson.module}.py"
    return Target(path, text, _library_guard(path, text, "move the edit into the lesson"))


def _packages(house: House, every: Sequence[Lesson]) -> Iterator[Target]:
    for _, group in groupby(every, key=lambda lesson: lesson.chapter):
        chapter_lessons = list(group)
        path = house.library / chapter_lessons[0].package / "__init__.py"
        text = promote.package_text(chapter_lessons)
        yield Target(path, text, _library_guard(path, text, "it is made from the lessons"))


def _leftovers(house: House, every: Sequence[Lesson]) -> Iterator[Target]:
    """Generated modules and notebooks whose lesson was renamed or removed."""
    expected = {house.library / lesson.package / f"{lesson.module}.py" for lesson in every}
    expected |= {house.library / lesson.package / "__init__.py" for lesson in every}
    for path in sorted(house.library.glob("*/*.py")):
        if path not in expected and promote.is_generated(path.read_text(encoding="utf-8")):
            yield Target(path, None, _library_guard(path, None, "its lesson is gone"))
    for path in sorted(house.chapters.glob("*/*.ipynb")):
        notebook = None if path.with_suffix(".py").exists() else _read_notebook(path)
        if notebook is not None and pair.is_ours(notebook):
            edited = "edited by hand, and its lesson is gone; move it, or build with --force"
            yield Target(path, None, edited if pair.hand_edited(notebook) else None)


def _read_notebook(path: Path) -> NotebookNode | None:
    """The notebook at `path`, or None for a file that is none."""
    try:
        return pair.from_json(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _library_guard(path: Path, text: str | None, remedy: str) -> str | None:
    if not path.exists():
        return None
    current = path.read_text(encoding="utf-8")
    if current == text:
        return None
    if not promote.is_generated(current):
        return (
            "written by hand (no generated header) and in the way of a lesson's module; rename one"
        )
    if promote.edited_by_hand(current):
        return f"edited by hand since it was generated; {remedy}, or build with --force"
    return None


def _notebook(house: House, lesson: Lesson) -> Target:
    source = house.chapters / f"{lesson.key}.py"
    path = source.with_suffix(".ipynb")
    text = source.read_text(encoding="utf-8")
    old, guard = _existing_notebook(path, text)
    return Target(path, pair.to_json(pair.pair(text, old)), guard)


def _existing_notebook(path: Path, text: str) -> tuple[NotebookNode | None, str | None]:
    if not path.exists():
        return None, None
    try:
        old = pair.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, not a notebook, or not UTF-8
        return None, f"{error}; remove it, or build with --force"
    if pair.hand_edited(old) and pair.differences(text, old):
        return old, "edited by hand; move the edit into the .py, or build with --force"
    return old, None


def _readme(house: House, every: Sequence[Lesson]) -> Iterator[Target]:
    """The README's map, and the pictures that it shows from the lessons' notebooks."""
    if not house.readme.exists():
        return
    text = house.readme.read_text(encoding="utf-8")
    yield Target(house.readme, readme.with_map(text, every, house.measured("cpu")), None)
    for lesson in every:
        name = readme.picture_name(lesson)
        notebook = house.chapters / f"{lesson.key}.ipynb"
        if f"({name})" in text and notebook.exists():
            current = _read_notebook(notebook)
            picture = pair.first_figure(current) if current is not None else None
            if picture is not None:
                yield Target(house.root / name, picture, None)


def _data_readme(house: House, targets: Sequence[Target]) -> Iterator[Target]:
    """The account of the data folder, of its files as the other targets will leave them."""
    path = house.root / "data" / "README.md"
    if not path.exists():
        return
    about_to_be = {target.path: target.text for target in targets if target.text is not None}

    def read(name: str) -> bytes | None:
        file = path.parent / name
        content = about_to_be.get(file)
        if content is None:
            return file.read_bytes() if file.exists() else None
        return content.encode() if isinstance(content, str) else content

    yield Target(path, data.with_sizes(path.read_text(encoding="utf-8"), read), None)
