"""The course's own data folder: reading cards, result tables, checkpoints."""

from difflib import get_close_matches
from pathlib import Path

__all__ = ["data_path"]

_DATA = Path(__file__).resolve().parents[3] / "data"


def data_path(*parts: str) -> Path:
    """The path of a file or folder in `data/`, such as `data_path("cards", "raft.yaml")`.

    Without parts it is the folder itself. Raises ValueError for a part that leads out of the
    folder, and FileNotFoundError where there is nothing at that path (naming the nearest names
    beside it), or where the package was not installed from a clone of the course, whose folder of
    data no wheel carries.
    """
    for part in parts:
        if Path(part).anchor or ".." in Path(part).parts:
            raise ValueError(
                f"parts holds {part!r}; expected a name inside the course's data folder"
            )
    if not _DATA.is_dir():
        raise FileNotFoundError(
            "the course's data folder is not beside the package; expected a clone of the course, "
            "installed with `pip install -e .`"
        )
    path = _DATA
    for part in parts:
        path = path / part
        if not path.exists():
            raise FileNotFoundError(_absent(path))
    return path


def _absent(path: Path) -> str:
    there = sorted(beside.name for beside in path.parent.iterdir()) if path.parent.is_dir() else []
    nearest = get_close_matches(path.name, there, n=3, cutoff=0.4) or there[:6]
    names = f"; the nearest there: {', '.join(nearest)}" if nearest else ""
    return f"{path.relative_to(_DATA.parent).as_posix()} does not exist{names}"
