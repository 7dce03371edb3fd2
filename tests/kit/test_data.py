import pytest

from fourfold.kit import data
from fourfold.kit.data import data_path


def test_the_folder_and_what_is_in_it():
    assert data_path().is_dir()
    assert data_path("results", "measured_cpu.csv") == data_path() / "results" / "measured_cpu.csv"


def test_a_name_that_is_not_there_gets_the_nearest():
    with pytest.raises(
        FileNotFoundError,
        match=r"^data/results/measured_cpu\.cvs does not exist; "
        r"the nearest there: .*measured_cpu\.csv",
    ):
        data_path("results", "measured_cpu.cvs")
    with pytest.raises(FileNotFoundError, match=r"^data/resluts does not exist; .*results"):
        data_path("resluts", "measured_cpu.csv")


def test_nothing_below_a_file():
    with pytest.raises(FileNotFoundError, match=r"^data/README\.md/x does not exist$"):
        data_path("README.md", "x")


def test_a_package_without_a_clone_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "_DATA", tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="pip install -e"):
        data_path("cards")


@pytest.mark.parametrize("parts", [("/etc/passwd",), ("..", "README.md"), ("cards/../../x",)])
def test_nothing_outside_the_folder(parts):
    with pytest.raises(ValueError, match=r"^parts holds '.*'; expected a name inside"):
        data_path(*parts)
