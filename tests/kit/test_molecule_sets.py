import sys

import pytest

from fourfold.kit.molecule_sets import all_qm9, b3db_table, polymer_table

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
    monkeypatch.setattr("fourfold.kit.molecule_sets.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r'pip install "fourfold\[qm9\]"'):
        all_qm9()


def test_the_barrier_s_molecules_and_their_holes():
    table = b3db_table()
    assert list(table) == ["smiles", "BBB", "logBB"] and len(table) == 4027
    assert (table["BBB"].isna().sum(), table["logBB"].notna().sum()) == (130, 930)
    assert set(table["BBB"].dropna()) == {"BBB+", "BBB-"}
    assert table["smiles"].is_unique


def test_large_molecules_can_be_left_out():
    small = b3db_table(max_atoms=6)
    assert 0 < len(small) < 4027
    assert "CCO" in set(small["smiles"])


def test_without_the_package_there_are_no_polymers(monkeypatch):
    monkeypatch.setattr("fourfold.kit.molecule_sets.find_spec", lambda name: None)
    assert polymer_table() is None


def test_polymers_are_read_without_importing_the_package(tmp_path, monkeypatch):
    import gzip

    data = tmp_path / "torch_molecule" / "datasets" / "data"
    data.mkdir(parents=True)
    (tmp_path / "torch_molecule" / "__init__.py").write_text("raise RuntimeError('not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_molecule", raising=False)
    assert polymer_table() is None
    text = "SMILES,CH4,CO2\n*CC*,0.5,\n"
    (data / "polymer_gas_permeability.csv.gz").write_bytes(gzip.compress(text.encode()))
    table = polymer_table()
    assert list(table) == ["smiles", "CH4", "CO2"] and table["smiles"][0] == "*CC*"
