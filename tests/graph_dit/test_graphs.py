"""Molecules as tensors: against loops, RDKit, and what the official release counts."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem

from fourfold.graph_dit.graphs import (
    BONDS,
    Codes,
    Graphs,
    Vocabulary,
    decode_graphs,
    encode_smiles,
    find_vocabulary,
    graph_tokens,
    one_hot,
    parse_smiles,
    permute_atoms,
    to_codes,
    to_molecule,
    to_smiles,
    token_width,
)
from fourfold.kit.molecules import nci_smiles, qm9_table

REFERENCE = Path(__file__).parents[1] / "reference"
OFFICIAL = json.loads((REFERENCE / "graphdit_meta.json").read_text("utf-8"))
QM9 = qm9_table("held_out")["smiles"].tolist()[::4]
SMALL = Vocabulary(("C", "N", "O", "F"), 9)


def encoded(smiles, vocabulary=SMALL):
    codes, rows, problems = encode_smiles(smiles, vocabulary)
    assert problems == [] and rows == list(range(len(smiles)))
    return codes


def decoded(codes, vocabulary=SMALL):
    return [to_smiles(to_molecule(*graph)) for graph in decode_graphs(codes, vocabulary)]


def by_loop(smiles, vocabulary):
    """X and E of one molecule, a pair at a time."""
    molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    A, N, n = len(vocabulary.atoms), vocabulary.max_atoms, molecule.GetNumAtoms()
    X, E = torch.zeros(N, A), torch.zeros(N, N, len(BONDS))
    for i in range(n):
        X[i, vocabulary.index(molecule.GetAtomWithIdx(i).GetSymbol())] = 1
        for j in set(range(n)) - {i}:
            bond = molecule.GetBondBetweenAtoms(i, j)
            E[i, j, BONDS.index(bond.GetBondType().name.lower() if bond else "none")] = 1
    return X, E


# What the official release counts on the same molecules


def test_the_vocabulary_has_the_official_order():
    vocabulary = find_vocabulary(OFFICIAL["smiles"])
    assert list(vocabulary.atoms) == OFFICIAL["active_atoms"]
    # The release's index is the atomic number less 2, and 117 for `*`.
    table = Chem.GetPeriodicTable()
    numbers = [table.GetAtomicNumber(symbol) for symbol in vocabulary.atoms]
    assert [number - 2 if number else 117 for number in numbers] == OFFICIAL["active_index"]


def test_the_vocabulary_does_not_depend_on_the_order_of_the_list():
    assert find_vocabulary(OFFICIAL["smiles"][::-1]) == find_vocabulary(OFFICIAL["smiles"])


def test_the_official_sizes_and_bond_shares_leave_the_star_out():
    """Its statistics follow from our codes and a count without `*`, and from no other count."""
    smiles = OFFICIAL["smiles"]
    vocabulary = find_vocabulary(smiles)
    codes = encoded(smiles, vocabulary)
    sizes = (codes.atoms >= 0).sum(dim=1)
    heavy = sizes - (codes.atoms == vocabulary.index("*")).sum(dim=1)
    assert heavy.max() == OFFICIAL["max_node"] and (sizes != heavy).any()
    histogram = torch.bincount(heavy, minlength=51) / len(smiles)
    assert histogram.tolist() == pytest.approx(OFFICIAL["n_atoms_per_mol_dist"], abs=1e-6)
    with_bond = torch.bincount(codes.bonds.long().flatten(), minlength=5)[1:]
    for counted, equal in ((heavy, True), (sizes, False)):
        pairs = (counted * (counted - 1)).sum()
        shares = [1 - (with_bond.sum() / pairs).item(), *(with_bond / pairs).tolist()]
        # float32 quotients of counts below a thousand
        assert (shares == pytest.approx(OFFICIAL["bond_type_dist"], abs=1e-6)) is equal


# There and back


def test_the_round_trip_of_qm9_as_written():
    back = decoded(encoded(QM9))
    for before, after in zip(QM9, back, strict=True):
        if "+]" in before or "-]" in before or "[nH" in before:
            # The graph has neither, so that the same molecule cannot come back.
            assert after != before
        else:
            assert after == before
    assert 0.9 < sum(map(str.__eq__, QM9, [b or "" for b in back])) / len(QM9) < 0.97


def test_the_round_trip_of_qm9_in_kekule_form():
    vocabulary = Vocabulary(SMALL.atoms, 9, kekulize=True)
    codes = encoded(QM9, vocabulary)
    assert codes.bonds.max() < BONDS.index("aromatic")
    for before, after in zip(QM9, decoded(codes, vocabulary), strict=True):
        assert (after == before) is not ("+]" in before or "-]" in before)


def test_polymers_come_back_with_their_stars():
    smiles = [text for text in OFFICIAL["smiles"] if "*" in text]
    vocabulary = find_vocabulary(smiles)
    before = [Chem.CanonSmiles(text) for text in smiles]
    assert len(smiles) == 5 and decoded(encoded(smiles, vocabulary), vocabulary) == before


def test_the_encoder_equals_the_loop():
    smiles = QM9[:150] + OFFICIAL["smiles"]
    vocabulary = find_vocabulary(smiles)
    graphs = one_hot(encoded(smiles, vocabulary), vocabulary)
    for b, text in enumerate(smiles):
        X, E = by_loop(text, vocabulary)
        assert torch.equal(graphs.X[b], X) and torch.equal(graphs.E[b], E)


@given(row=st.integers(0, len(QM9) - 1), seed=st.integers(0, 10_000))
def test_another_order_of_rows_is_the_same_molecule(row, seed):
    codes = encoded([QM9[row]])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    moved = permute_atoms(codes, order)
    assert decoded(moved) == decoded(codes)
    # The dense tensors move along: X' = X of row π(i), E' of π(i) and π(j).
    one, two = one_hot(codes, SMALL), one_hot(moved, SMALL)
    assert torch.equal(two.X, one.X[:, order]) and torch.equal(two.mask, one.mask[:, order])
    assert torch.equal(two.E, one.E[:, order][:, :, order])
    assert torch.equal(permute_atoms(moved, order.argsort()).bonds, codes.bonds)


@given(row=st.integers(0, len(QM9) - 1), seed=st.integers(1, 10_000), kekulize=st.booleans())
def test_another_text_is_the_same_molecule(row, seed, kekulize):
    vocabulary = Vocabulary(SMALL.atoms, 9, kekulize)
    (text,) = Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(QM9[row]), 1, randomSeed=seed)
    one, two = (decoded(encoded([smiles], vocabulary), vocabulary) for smiles in (QM9[row], text))
    assert one == two


# One-hot tensors and codes

atoms_and_bonds = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(0, 6), min_size=1, max_size=4),
        "seed": st.integers(0, 1000),
        "types": st.integers(1, 5),
    }
)


def random_codes(case, N=6):
    generator = torch.Generator().manual_seed(case["seed"])
    B = len(case["sizes"])
    there = torch.arange(N) < torch.tensor(case["sizes"])[:, None]
    atoms = torch.randint(case["types"], (B, N), generator=generator)
    bonds = torch.randint(len(BONDS), (B, N, N), generator=generator).triu(1)
    bonds = (bonds + bonds.transpose(1, 2)) * there[:, :, None] * there[:, None, :]
    return Codes(torch.where(there, atoms, -1).to(torch.int8), bonds.to(torch.int8))


@given(atoms_and_bonds)
def test_to_codes_is_the_inverse_of_one_hot(case):
    """Also for no atom at all, and for one."""
    codes = random_codes(case)
    vocabulary = Vocabulary(("C", "N", "O", "F", "*")[: case["types"]], 6)
    graphs = one_hot(codes, vocabulary)
    again = to_codes(graphs)
    assert torch.equal(again.atoms, codes.atoms) and torch.equal(again.bonds, codes.bonds)
    assert again.atoms.dtype == again.bonds.dtype == torch.int8
    n = torch.tensor(case["sizes"])
    assert torch.equal(graphs.mask.sum(dim=1), n)
    assert torch.equal(graphs.X.sum(dim=(1, 2)), n.float())
    assert torch.equal(graphs.E.sum(dim=(1, 2, 3)), (n * (n - 1)).float())
    assert torch.equal(graphs.E, graphs.E.transpose(1, 2))


@given(atoms_and_bonds)
def test_scores_noise_on_the_diagonal_and_in_padding_are_read_alike(case):
    codes = random_codes(case)
    graphs = one_hot(codes, Vocabulary(("C", "N", "O", "F", "*")[: case["types"]], 6))
    X = torch.where(graphs.mask[..., None], graphs.X, torch.rand(graphs.X.shape))
    E = graphs.E.clone()
    E.diagonal(dim1=1, dim2=2)[:, 3] = 7
    E[~graphs.mask] = torch.rand(5)
    again = to_codes(Graphs(3 * X - 1, 3 * E - 1, graphs.mask))
    assert torch.equal(again.atoms, codes.atoms) and torch.equal(again.bonds, codes.bonds)


def test_one_atom_and_none():
    graphs = one_hot(encoded(["C", "O"]), SMALL)
    assert graphs.E.count_nonzero() == 0 and graphs.X.sum() == 2
    nothing = Graphs(graphs.X * 0, graphs.E, torch.zeros_like(graphs.mask))
    codes = to_codes(nothing)
    assert (codes.atoms == -1).all() and decoded(codes) == ["", ""]


def test_a_batch_of_no_molecule():
    codes, rows, problems = encode_smiles(["("], SMALL)
    assert rows == [] and len(problems) == 1
    assert codes.atoms.shape == (0, 9) and codes.bonds.shape == (0, 9, 9)
    graphs = one_hot(codes, SMALL)
    assert graphs.X.shape == (0, 9, 4) and graphs.E.shape == (0, 9, 9, 5)
    assert graph_tokens(graphs).shape == (0, 9, 49)
    assert to_codes(graphs).bonds.shape == (0, 9, 9) and decoded(codes) == []


def test_tokens_are_the_rows_of_x_and_e():
    graphs = one_hot(encoded(QM9[:20]), SMALL)
    tokens = graph_tokens(graphs)
    assert tokens.shape == (20, 9, token_width(SMALL)) and token_width(SMALL) == 49
    assert torch.equal(tokens[..., :4], graphs.X)
    assert torch.equal(tokens[..., 4:].unflatten(-1, (9, 5)), graphs.E)
    assert not tokens[~graphs.mask].any()


def test_graphs_move_to_another_device():
    graphs = one_hot(encoded(["CCO"]), SMALL).to("meta")
    assert all(part.device.type == "meta" for part in graphs)


# Texts


def test_problems_keep_rows_texts_and_reasons(without_shape_checks):
    unusable = {
        1: ("aspirin", "it is not a SMILES that RDKit can read"),
        2: ("", "it is not a SMILES that RDKit can read"),
        3: ("C[Si](C)C", "atom 'Si' is not in the vocabulary; expected one of C, N, O, F"),
        4: ("C" * 10, "it has 10 atoms; expected at most 9"),
        5: (math.nan, "it is a float; expected a text"),
        6: (None, "it is a NoneType; expected a text"),
        8: ("C$C", "a bond is QUADRUPLE; expected none, single, double, triple, aromatic"),
        9: ("[H][H]", "it has no atom but hydrogen; expected one or more"),
        10: ("C\ud800", "it is not a SMILES that RDKit can read"),
        11: ("*CC*", "atom '*' is not in the vocabulary; expected one of C, N, O, F"),
    }
    smiles = [unusable[row][0] if row in unusable else "CCO" for row in range(13)]
    codes, rows, problems = encode_smiles(smiles, SMALL)
    assert rows == [0, 7, 12] and len(codes.atoms) == 3
    assert [tuple(p) for p in problems] == [(r, str(t), why) for r, (t, why) in unusable.items()]
    assert decoded(codes) == ["CCO"] * 3


def test_only_kekule_forms_check_chemistry():
    smiles, kekule = ["CC(C)(C)(C)C", "c1cccc1"], Vocabulary(SMALL.atoms, 9, kekulize=True)
    assert encode_smiles(smiles, SMALL)[1] == [0, 1]
    reasons = [problem.reason for problem in encode_smiles(smiles, kekule)[2]]
    assert all(reason.startswith("it is not chemically valid (") for reason in reasons)
    assert len(reasons) == 2 and "valence" in reasons[0] and "kekulize" in reasons[1]


def test_the_whole_list_of_the_nci_is_read():
    smiles = nci_smiles()[::10]
    vocabulary = find_vocabulary(smiles, max_atoms=38)
    _, rows, problems = encode_smiles(smiles, vocabulary)
    assert sorted(rows + [problem.row for problem in problems]) == list(range(len(smiles)))
    assert problems and all("atoms; expected at most 38" in p.reason for p in problems)


def test_ways_of_writing_are_one_graph_in_kekule_form_only():
    smiles = ["Cc1ccccc1C", "CC1=C(C)C=CC=C1", "CC1=CC=CC=C1C"]
    assert len({to_smiles(parse_smiles(text)) for text in smiles}) == 1
    for kekulize, graphs in ((False, 3), (True, 1)):
        assert len({Chem.MolToSmiles(parse_smiles(text, kekulize)) for text in smiles}) == graphs


def test_written_hydrogens_charges_and_names_leave_no_trace():
    plain = encoded(["CCO", "CO", "CN"])
    other = encoded(["[H]OC([2H])C", "C[O-] methoxide", "C[NH3+]"])
    assert torch.equal(plain.atoms[1:], other.atoms[1:])
    assert decoded(other) == decoded(plain)


def test_rdkit_prints_nothing(capfd, without_shape_checks):
    bad = ["(", "aspirin", "c1ccccc", "CC(C)(C)(C)C", "c1cccc1", "", None, "C1CC", "C\ud800"]
    for kekulize in (False, True):
        vocabulary = find_vocabulary([*bad, "CCO"], kekulize=kekulize)
        codes, rows, _ = encode_smiles(bad, vocabulary)
        assert decoded(codes, vocabulary) == [None] * len(rows)
    with pytest.raises(ValueError):
        to_molecule(["Q"], torch.zeros(1, 1, dtype=torch.int8))
    assert capfd.readouterr() == ("", "")


# Molecules


def test_nothing_is_corrected():
    five = to_molecule(["C"] * 6, torch.tensor([[0] + [1] * 5] + [[1] + [0] * 5] * 5))
    assert five.GetNumBonds() == 5 and to_smiles(five) is None
    two = to_molecule(["C", "O"], torch.zeros(2, 2, dtype=torch.int8))
    assert to_smiles(two) == "C.O"
    assert to_smiles(to_molecule([], torch.zeros(0, 0, dtype=torch.int8))) == ""


def test_canonical_smiles_leaves_the_molecule_alone():
    molecule = parse_smiles("C1=CC=CC=C1")
    assert to_smiles(molecule) == "c1ccccc1"
    assert not any(bond.GetIsAromatic() for bond in molecule.GetBonds())


def test_the_cut_of_the_vocabulary():
    smiles = ["CCO", "FC(F)(F)C(F)(F)F", "ClC"]
    assert find_vocabulary(smiles) == Vocabulary(("C", "O", "F", "Cl"), 8)
    assert find_vocabulary(smiles, max_atoms=4) == Vocabulary(("C", "O", "Cl"), 4)
    assert find_vocabulary(iter(smiles), kekulize=True).kekulize


# Sentences

NO_BONDS = torch.zeros(2, 2, dtype=torch.int8)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: find_vocabulary([]), "smiles is empty; expected one or more"),
        (lambda: find_vocabulary("CCO"), "smiles is 'CCO'; expected a list"),
        (lambda: find_vocabulary(["("]), "smiles holds no molecule that can be used"),
        (lambda: find_vocabulary(["CCO"], max_atoms=2), "smiles holds no molecule"),
        (lambda: find_vocabulary(["CCO"], max_atoms=0), "max_atoms is 0; expected a whole number"),
        (lambda: encode_smiles([], SMALL), "smiles is empty; expected one or more"),
        (lambda: encode_smiles("CCO", SMALL), "smiles is 'CCO'; expected a list"),
        (lambda: Vocabulary((), 9), r"atoms is \(\); expected one symbol or more, each once"),
        (lambda: Vocabulary(("C", "C"), 9), "expected one symbol or more, each once"),
        (lambda: Vocabulary(("C",), 0), "max_atoms is 0; expected a whole number, 1 or more"),
        (lambda: SMALL.index("Si"), "atom 'Si' is not in the vocabulary; expected one of C, N, O"),
        (lambda: parse_smiles("("), "it is not a SMILES that RDKit can read"),
        (lambda: parse_smiles(3), "it is a int; expected a text"),
        (
            lambda: one_hot(encoded(["CF"]), Vocabulary(("C", "N"), 9)),
            "codes has atom 3; expected at most 1, of 2 types",
        ),
        (lambda: to_molecule(["C"], NO_BONDS), r"bonds has shape \(2, 2\); expected \(1, 1\)"),
        (
            lambda: to_molecule(["C", "Q"], NO_BONDS),
            "symbols has 'Q'; expected an element or '\\*'",
        ),
        (lambda: to_molecule(["C", "C"], NO_BONDS + 9), "bonds has 9; expected a whole number"),
        (lambda: permute_atoms(encoded(["C"]), torch.zeros(9).long()), "order is .*each of 0 … 8"),
        (lambda: permute_atoms(encoded(["C"]), torch.arange(3)), "order is .*each of 0 … 8 once"),
    ],
)
def test_bad_arguments_are_named(without_shape_checks, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
