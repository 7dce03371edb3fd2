"""The molecules that come with the course, and their pictures."""

import hashlib

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from rdkit import Chem, rdBase
from rdkit.Chem import Crippen, rdMolDescriptors

from fourfold.graph_dit.graphs import parse_smiles
from fourfold.kit.canvas import canvas
from fourfold.kit.molecules import (
    ATOM_COLOURS,
    BOND_COLOURS,
    draw_molecule,
    molecule_grid,
    nci_smiles,
    qm9_coordinates,
    qm9_table,
)

matplotlib.use("Agg")


def drawn(molecule, pixels=120):
    """The picture of a molecule, or None where the axes show none."""
    axes = canvas()[1]
    draw_molecule(axes, molecule, pixels)
    assert not axes.axison
    return axes.images[0].get_array() if axes.images else None


def read(smiles):
    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(smiles, sanitize=False)


# Data


def test_qm9_is_what_its_description_says():
    table = qm9_table()
    assert list(table.columns) == ["index", "smiles", "logP", "TPSA", "split"]
    assert len(table) == 20_040 and table["smiles"].is_unique and table.notna().all(axis=None)
    train, held_out = qm9_table("train"), qm9_table("held_out")
    assert (len(train), len(held_out)) == (16_032, 4_008)
    assert set(train["smiles"]).isdisjoint(held_out["smiles"])
    assert list(held_out.index) == list(range(4_008))


def test_qm9_properties_are_rdkit_s():
    for row in qm9_table("held_out")[::200].itertuples():
        molecule = Chem.MolFromSmiles(row.smiles)
        assert molecule.GetNumAtoms() <= 9
        assert {atom.GetSymbol() for atom in molecule.GetAtoms()} <= set("CNOF")
        # The table keeps four decimals.
        assert Crippen.MolLogP(molecule) == pytest.approx(row.logP, abs=1e-3)
        assert rdMolDescriptors.CalcTPSA(molecule) == pytest.approx(row.TPSA, abs=1e-2)


@pytest.mark.parametrize("split", ["test", "", 1, "Train"])
def test_another_split_is_refused(without_shape_checks, split):
    with pytest.raises(ValueError, match=f"split is {split!r}; expected 'train', 'held_out' or N"):
        qm9_table(split)


def test_the_list_of_the_nci():
    smiles = nci_smiles()
    assert len(smiles) == 4_999 and not any(" " in text for text in smiles)
    molecules = [read(text) for text in smiles]
    assert all(molecules), "each is a graph"
    with rdBase.BlockLogs():
        assert sum(Chem.MolFromSmiles(text) is None for text in smiles) == 8
    aromatic = any(bond.GetIsAromatic() for molecule in molecules for bond in molecule.GetBonds())
    assert not aromatic, "they are in Kekulé form"


# Pictures


def test_a_smiles_and_its_molecule_have_one_picture():
    assert np.array_equal(drawn("CCO"), drawn(Chem.MolFromSmiles("CCO")))
    assert not np.array_equal(drawn("CCO"), drawn("CCN"))
    assert drawn("CCO").shape == (90, 120, 3)


@pytest.mark.parametrize("smiles", ["CC(C)(C)(C)C", "c1cccc1", "CN(C)(C)C", "C1=CC=CC=C1", "*CC*"])
def test_a_molecule_is_drawn_as_it_is_and_left_alone(smiles):
    """Also one with too many bonds, and a ring of five that cannot be aromatic."""
    molecule = read(smiles)
    before = molecule.ToBinary()
    assert drawn(molecule).std() > 5, "there are lines on it"
    assert molecule.ToBinary() == before


@pytest.mark.parametrize("nothing", [None, "aspirin", "CC(C)(C)(C)C", "C\ud800", "", Chem.Mol()])
def test_a_cross_where_there_is_no_molecule(nothing):
    axes = canvas()[1]
    draw_molecule(axes, nothing)
    assert [text.get_text() for text in axes.texts] == ["✗"] and not axes.images


def test_rdkit_prints_nothing(capfd):
    for smiles in ("aspirin", "CC(C)(C)(C)C", "c1cccc1"):
        drawn(smiles)
    drawn(read("c1cccc1"))
    assert capfd.readouterr() == ("", "")


def test_the_same_molecule_gives_the_same_bytes():
    one, two = (hashlib.sha256(drawn("c1ccoc1").tobytes()).hexdigest() for _ in range(2))
    assert one == two


def test_a_grid_has_a_place_for_each_and_its_legend_below():
    figure = molecule_grid(["CCO", None, "c1ccccc1"], ["one", "two\nlines", ""], columns=2)
    assert len(figure.axes) == 4 and not any(axes.axison for axes in figure.axes)
    texts = [[text.get_text() for text in axes.texts if text.get_text()] for axes in figure.axes]
    assert texts == [["one"], ["✗", "two\nlines"], [], []]
    assert [len(axes.images) for axes in figure.axes] == [1, 0, 1, 0]


def test_a_grid_is_no_wider_than_its_molecules():
    assert len(molecule_grid(["CCO"], columns=4).axes) == 1
    assert len(molecule_grid(("C" * n for n in range(1, 6)), columns=3).axes) == 6


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: molecule_grid([]), ValueError, "molecules is empty; expected one or more"),
        (lambda: molecule_grid("CCO"), ValueError, "molecules is 'CCO'; expected a list, such as"),
        (lambda: molecule_grid(["C", "N"], ["one"]), ValueError, "legends has 1 texts; expected 2"),
        (lambda: molecule_grid(["C"], columns=0), ValueError, "columns is 0; expected a whole num"),
        (lambda: drawn(3), TypeError, "molecule is a int; expected a molecule of RDKit, a SMILES"),
        (lambda: drawn("C", 0), ValueError, "pixels is 0; expected a whole number, 1 or more"),
    ],
)
def test_bad_arguments_are_named(without_shape_checks, call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


def test_colours_differ_in_lightness_too():
    for colours in (BOND_COLOURS, ATOM_COLOURS):
        grey = sorted(np.dot(to_rgb(ink), (0.3, 0.59, 0.11)) for ink in colours.values())
        assert len(set(colours.values())) == len(colours)
        assert min(np.diff(grey)) > 0.05


def test_coordinates_stand_beside_their_molecules():
    x, smiles = qm9_coordinates("held_out"), qm9_table("held_out").smiles
    made = ~np.isnan(x).any(axis=(1, 2))
    assert x.shape == (len(smiles), 9, 3) and 0.95 < made.mean() < 1
    for row in np.flatnonzero(made)[::200]:
        molecule = parse_smiles(smiles[row])
        n = molecule.GetNumAtoms()
        assert (x[row, n:] == 0).all()
        # Rounded to 0.001 Å on the way to the file, so a mean may be off by half of that.
        assert np.abs(x[row].sum(axis=0)).max() < 0.0005 * n + 1e-6
        for bond in molecule.GetBonds():
            ends = x[row, [bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()]]
            assert 1.1 < np.linalg.norm(ends[0] - ends[1]) < 1.7  # Å, bonds of C, N, O and F


def test_coordinates_of_another_split_are_refused():
    with pytest.raises(ValueError, match=r"split is 'test'; expected 'train', 'held_out' or None"):
        qm9_coordinates("test")
