import sys

import pytest

from fourfold.kit.qm9 import all_qm9

ROWS = {1: ["C[C@H](N)O", "CCO"], 2: ["OCC", "c1cc[nH]c1"], 3: ["C[C@@H](N)O", "C#N"]}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package qm9pack with the layout of the real one and six molecules."""
    data = tmp_path / "qm9pack" / "data"
    data.mkdir(parents=True)
    (tmp_path / "qm9pack" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    for part, smiles in ROWS.items():
        lines = [f"{part}{row},{text},0" for row, text in enumerate(smiles)]
        (data / f"qm9_part{part}.csv").write_text("\n".join(["Index,SMILES,gap", *lines]))
    (data / "qm9_polarizability.csv").write_text("Index,alpha\n1,2")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "qm9pack", raising=False)


def test_each_molecule_comes_once_without_stereochemistry(package):
    table = all_qm9()
    assert list(table["smiles"]) == ["CC(N)O", "CCO", "c1cc[nH]c1", "C#N"]
    assert list(table) == ["smiles", "logP", "TPSA"]
    assert table["TPSA"][1] == pytest.approx(20.23)  # one OH


def test_what_is_held_out_is_left_out(package):
    assert "CCO" not in set(all_qm9({"CCO"})["smiles"])


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setattr("fourfold.kit.qm9.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r'pip install "fourfold\[qm9\]"'):
        all_qm9()
