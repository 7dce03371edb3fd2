"""data/README.md names every file of the folder and every photograph on offer."""

from fourfold.course.files import House
from fourfold.kit.images import PHOTOGRAPHS

DATA = House.here().root / "data"
TEXT = (DATA / "README.md").read_text(encoding="utf-8")


def test_every_file_is_named():
    for path in DATA.rglob("*"):
        if path.is_file() and path.name != "README.md":
            assert f"`{path.relative_to(DATA).as_posix()}`" in TEXT, path.name


def test_every_photograph_is_named():
    for name in PHOTOGRAPHS:
        assert f"\n| {name} |" in TEXT, name
