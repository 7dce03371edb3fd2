"""From graphs to molecules: the official release's results, and what must always hold."""

import json
from pathlib import Path

import pytest
import torch
from rdkit import Chem, rdBase

from fourfold.graph_dit.graphs import (
    BONDS,
    Codes,
    Vocabulary,
    encode_smiles,
    find_vocabulary,
    one_hot,
    to_smiles,
)
from fourfold.graph_dit.molecules import (
    MODES,
    Validity,
    attachment_points,
    build_molecule,
    connect_fragments,
    edit_distance,
    graph_to_molecule,
    graphs_to_smiles,
    is_repeat_unit,
    largest_fragment,
    lower_bond,
    overloaded_atom,
    validity,
)

REFERENCE = json.loads(
    (Path(__file__).parents[1] / "reference" / "mol_metrics.json").read_text("utf-8")
)
CASES = REFERENCE["graph_to_mol"]
VOCABULARY = Vocabulary(tuple(REFERENCE["atom_decoder"]), max(len(c["atoms"]) for c in CASES))
MIXED = ("C", "N", "O", "F", "S", "Cl", "P", "*")


def graph_of(case):
    return [VOCABULARY.atoms[a] for a in case["atoms"]], torch.tensor(case["edges"])


def reference_codes():
    M, N = len(CASES), VOCABULARY.max_atoms
    codes = Codes(torch.full((M, N), -1), torch.zeros(M, N, N, dtype=torch.long))
    for row, case in enumerate(CASES):
        n = len(case["atoms"])
        codes.atoms[row, :n] = torch.tensor(case["atoms"])
        codes.bonds[row, :n, :n] = torch.tensor(case["edges"])
    return codes


def random_graphs(count, seed, aromatic=0.2):
    """Graphs that are wrong in all ways, up to nine atoms."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        n = int(torch.randint(1, 10, (), generator=generator))
        kinds = torch.randint(len(MIXED), (n,), generator=generator)
        shares = torch.tensor([6.0, 1.5, 0.5, 0.2, aromatic])
        bonds = torch.multinomial(shares, n * n, True, generator=generator).view(n, n).triu(1)
        yield [MIXED[k] for k in kinds.tolist()], bonds + bonds.T


def bond_tensor(n, *bonds):
    matrix = torch.zeros(n, n, dtype=torch.int8)
    for i, j, code in bonds:
        matrix[i, j] = matrix[j, i] = code
    return matrix


def is_molecule(smiles):
    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(smiles) is not None


# The official release


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_a_graph_becomes_the_molecule_of_the_release(case):
    built = build_molecule(*graph_of(case))
    assert [atom.GetFormalCharge() for atom in built.GetAtoms()] == case["charges"]
    with rdBase.BlockLogs():
        # The reference's "direct" reads the text again, which is not to sanitise the molecule.
        assert is_molecule(Chem.MolToSmiles(built)) == case["direct_valid"]
    assert graph_to_molecule(*graph_of(case), connect=False).smiles == case["lcc"]
    assert graph_to_molecule(*graph_of(case), connect=True).smiles == case["connected"]


@pytest.mark.parametrize(("mode", "connected"), [("largest", False), ("connect", True)])
def test_validity_is_that_of_the_release(mode, connected):
    expected = REFERENCE[f"relaxed_validity_connected={connected}"]
    assert graphs_to_smiles(reference_codes(), VOCABULARY, mode=mode) == expected["smiles"]
    found = validity(reference_codes(), VOCABULARY)
    assert getattr(found, f"corrected_{mode}") == expected["validity"]
    assert found.released == expected["validity_nc"]


@pytest.mark.parametrize("connected", [False, True])
def test_components_are_counted_as_in_the_release(connected):
    counts = []
    for case in CASES:
        result = graph_to_molecule(*graph_of(case))
        if result.molecule is None and not connected:
            result = graph_to_molecule(*graph_of(case), connect=False)
        if result.molecule is not None:
            counts.append(len(Chem.GetMolFrags(result.molecule)))
    expected = REFERENCE[f"relaxed_validity_connected={connected}"]["mean_components"]
    assert sum(counts) / len(counts) == expected


# What must always hold


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_atoms_does_not_change_what_is_valid_as_it_is(seed):
    generator = torch.Generator().manual_seed(seed)
    for symbols, bonds in random_graphs(100, seed):
        order = torch.randperm(len(symbols), generator=generator)
        other = [symbols[i] for i in order.tolist()], bonds[order][:, order]
        assert to_smiles(build_molecule(symbols, bonds)) == to_smiles(build_molecule(*other))


@pytest.mark.parametrize("connect", [True, False])
@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(0)])
def test_what_is_repaired_is_a_molecule_or_none(connect, generator):
    for symbols, bonds in random_graphs(200, seed=7):
        result = graph_to_molecule(symbols, bonds, connect=connect, generator=generator)
        assert len({part is None for part in result}) == 1
        if result.smiles is None:
            continue
        assert is_molecule(result.smiles)
        assert overloaded_atom(Chem.RWMol(result.molecule)) is None
        assert [atom.GetSymbol() for atom in result.molecule.GetAtoms()] == symbols
        assert not (connect and "." in result.smiles)
        assert torch.equal(result.bonds, result.bonds.T)


def test_a_valid_graph_in_one_piece_stays_as_it_is():
    for symbols, bonds in random_graphs(300, seed=1, aromatic=0):
        built = build_molecule(symbols, bonds)
        smiles = to_smiles(built)
        if smiles is not None and "." not in smiles:
            result = graph_to_molecule(symbols, bonds)
            assert result.smiles == smiles
            assert torch.equal(result.bonds.long(), bonds)


def test_connecting_costs_one_bond_for_each_further_piece_and_never_more_than_cutting():
    applies = 0
    for symbols, bonds in random_graphs(400, seed=2, aromatic=0):
        built = build_molecule(symbols, bonds)
        pieces = Chem.GetMolFrags(built)
        result = graph_to_molecule(symbols, bonds)
        if overloaded_atom(built) is None and result.smiles:
            connecting = edit_distance(bonds.to(torch.int8), result.bonds)
            cutting = edit_distance(bonds, bonds, kept=max(pieces, key=len))
            assert connecting == len(pieces) - 1 <= cutting
            applies += len(pieces) > 1
    assert applies > 20


def test_without_aromatic_bonds_there_is_always_a_largest_piece():
    graphs = list(random_graphs(200, seed=3, aromatic=0))
    assert all(graph_to_molecule(*graph, connect=False).smiles for graph in graphs)


def test_the_five_numbers_keep_their_order():
    codes = reference_codes()
    found = validity(codes, VOCABULARY)
    assert found.connected <= found.direct
    assert found.corrected_connect <= found.corrected_largest
    assert found.graphs == len(CASES)
    direct = graphs_to_smiles(codes, VOCABULARY, mode="none")
    assert found.counts["direct"] == sum(smiles is not None for smiles in direct)
    single = sum(smiles is not None and "." not in smiles for smiles in direct)
    assert found.counts["connected"] == single


@pytest.mark.parametrize("kekulize", [False, True])
def test_graphs_and_codes_are_the_same_and_clean_molecules_come_back(kekulize):
    smiles = ["CCO", "c1ccccc1", "CC(=O)N", "C#N", "C[N+](C)(C)C"]
    vocabulary = find_vocabulary(smiles, kekulize=kekulize)
    codes, _, _ = encode_smiles(smiles, vocabulary)
    expected = [Chem.CanonSmiles(text) for text in smiles]
    for mode in MODES:
        assert graphs_to_smiles(codes, vocabulary, mode=mode) == expected
        assert graphs_to_smiles(one_hot(codes, vocabulary), vocabulary, mode=mode) == expected
    assert validity(codes, vocabulary) == Validity(1, 1, 1, 1, 1, len(smiles))
    assert validity(one_hot(codes, vocabulary), vocabulary) == validity(codes, vocabulary)


def test_nothing_is_printed(capfd):
    graphs = list(random_graphs(100, seed=4))
    for graph in graphs:
        graph_to_molecule(*graph)
        graph_to_molecule(*graph, connect=False)
    validity(reference_codes(), VOCABULARY)
    largest_fragment("C(.C")
    assert not is_repeat_unit("C(")
    with pytest.raises(ValueError):
        build_molecule(["Xx"], torch.zeros(1, 1, dtype=torch.int8))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


# The parts


@pytest.mark.parametrize(
    ("symbols", "bonds", "charges"),
    [
        ("NCCCC", [(0, j, 1) for j in range(1, 5)], [1, 0, 0, 0, 0]),
        ("OCCC", [(0, j, 1) for j in range(1, 4)], [1, 0, 0, 0]),
        ("OCC", [(0, 1, 2), (0, 2, 2)], [0, 0, 0]),  # two bonds too many
        ("NNO", [(0, 1, 2), (0, 2, 2)], [1, 0, 0]),
        ("SCCC", [(0, j, 1) for j in range(1, 4)], [0] * 4),  # sulphur may have four
        ("FCC", [(0, 1, 1), (0, 2, 1)], [0, 0, 0]),
    ],
)
def test_the_charge_rule(symbols, bonds, charges):
    built = build_molecule(list(symbols), bond_tensor(len(symbols), *bonds))
    assert [atom.GetFormalCharge() for atom in built.GetAtoms()] == charges


def test_the_strongest_bond_is_lowered_and_a_single_one_goes():
    built = build_molecule(["C", "C", "O", "N"], bond_tensor(4, (0, 1, 1), (0, 2, 2), (0, 3, 3)))
    assert overloaded_atom(built) == 0
    seen = []
    while (atom := overloaded_atom(built)) is not None:
        seen.append(sorted(lower_bond(built, atom)))
    assert seen == [[0, 3], [0, 2]]
    assert overloaded_atom(built) is None


def test_aromatic_bonds_are_passed_over():
    built = build_molecule(["F", "C", "C"], bond_tensor(3, (0, 1, 4), (0, 2, 4)))
    assert overloaded_atom(built) == 0
    assert lower_bond(built, 0) is None
    assert graph_to_molecule(["F", "C"], bond_tensor(2, (0, 1, 4))).smiles is None


def test_pyrrole_has_no_repair():
    vocabulary = find_vocabulary(["c1cc[nH]c1"])
    codes, _, _ = encode_smiles(["c1cc[nH]c1"], vocabulary)
    assert validity(codes, vocabulary)[:5] == (0,) * 5


def test_the_first_pair_that_fits_is_joined():
    # Fluorine has a hydrogen, four of them around carbon have none.
    result = graph_to_molecule(["F", "C", "O"], bond_tensor(3, (1, 2, 1)))
    assert torch.equal(result.bonds, bond_tensor(3, (1, 2, 1), (0, 1, 1)))
    full = bond_tensor(6, *[(0, j, 1) for j in range(1, 5)])
    assert graph_to_molecule(["C", "F", "F", "F", "F", "C"], full).smiles is None


def test_drawn_pairs_repeat_with_the_seed_and_differ_between_seeds():
    symbols, bonds = ["C"] * 6, bond_tensor(6, (0, 1, 1), (1, 2, 1), (3, 4, 1))

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return graph_to_molecule(symbols, bonds, generator=generator).smiles

    assert [drawn(seed) for seed in range(10)] == [drawn(seed) for seed in range(10)]
    assert len({drawn(seed) for seed in range(20)}) > 1
    assert graph_to_molecule(["C"] * 3, bond_tensor(3)).smiles is None
    generator = torch.Generator().manual_seed(0)
    assert graph_to_molecule(["C"] * 3, bond_tensor(3), generator=generator).smiles == "CCC"


def test_one_piece_is_returned_as_it_is():
    built = build_molecule(["C", "O"], bond_tensor(2, (0, 1, 1)))
    assert connect_fragments(built) is built


def test_lone_atoms():
    vocabulary = Vocabulary(("C", "Cl"), 1)
    codes = Codes(torch.tensor([[0], [1]]), torch.zeros(2, 1, 1, dtype=torch.long))
    assert graphs_to_smiles(codes, vocabulary, mode="none") == ["C", "Cl"]
    assert graphs_to_smiles(codes, vocabulary) == [None, "Cl"]  # longer than one letter


def test_a_graph_without_atoms_is_no_molecule():
    vocabulary = Vocabulary(("C",), 3)
    codes = Codes(torch.full((1, 3), -1), torch.zeros(1, 3, 3, dtype=torch.long))
    for mode in MODES:
        assert graphs_to_smiles(codes, vocabulary, mode=mode) == [None]
    assert validity(codes, vocabulary)[:5] == (0,) * 5


def test_no_graphs():
    vocabulary = Vocabulary(("C",), 3)
    codes = Codes(torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3, 3, dtype=torch.long))
    assert graphs_to_smiles(codes, vocabulary) == []
    with pytest.raises(ValueError, match="graphs holds no graph; expected one or more"):
        validity(codes, vocabulary)


@pytest.mark.parametrize(
    ("smiles", "largest"),
    [("C.CCO.N", "CCO"), ("OCC", "OCC"), ("CSO.FC=S", "CSO"), ("CC.C(C", None)],
)
def test_the_largest_fragment(smiles, largest):
    assert largest_fragment(smiles) == largest


def test_edit_distance_counts_atoms_and_bonds():
    before = bond_tensor(4, (0, 1, 1), (1, 2, 2))
    assert edit_distance(before, before) == 0
    assert edit_distance(before, bond_tensor(4, (0, 1, 1), (1, 2, 3), (2, 3, 1))) == 2
    assert edit_distance(before, before, kept=[0, 1, 2]) == 1
    assert edit_distance(before, before, kept=[0, 1]) == 3
    assert edit_distance(before, before, kept=[]) == 6
    assert edit_distance(before + torch.eye(4, dtype=torch.int8), before) == 0  # no diagonal


def test_edit_distance_refuses_graphs_of_two_sizes(without_shape_checks):
    with pytest.raises(ValueError, match=r"after has shape \(2, 2\); expected \(4, 4\)"):
        edit_distance(bond_tensor(4), bond_tensor(2))


@pytest.mark.parametrize(
    ("smiles", "degrees", "unit"),
    [
        ("*CC*", [1, 1], True),
        ("*CC(*)c1ccccc1", [1, 1], True),
        ("[*:1]CC[*:2]", [1, 1], True),
        ("*C", [1], False),
        ("*CC(*)*", [1, 1, 1], False),
        ("C*C*", [2, 1], False),
        ("*C.*C", [1, 1], False),
        ("*", [0], False),
        ("CC", [], False),
    ],
)
def test_attachment_points(smiles, degrees, unit):
    assert attachment_points(smiles) == degrees
    assert is_repeat_unit(smiles) is unit


def test_what_is_no_molecule_is_no_repeat_unit():
    assert not is_repeat_unit(None)
    assert not is_repeat_unit("*C(*")
    with pytest.raises(ValueError, match=r"smiles is '\*C\(\*'; expected the SMILES of a molecule"):
        attachment_points("*C(*")


@pytest.mark.parametrize(
    ("symbols", "bonds", "message"),
    [
        (["C", "Xx"], bond_tensor(2), "symbols holds 'Xx'; expected elements, such as 'C'"),
        (["C"], bond_tensor(2), r"bonds has shape \(2, 2\); expected \(1, 1\)"),
        (["C", "O"], torch.tensor([[0, 1], [0, 0]]), r"bonds\[0, 1\] is 1 and bonds\[1, 0\] is 0"),
        (["C", "O"], bond_tensor(2, (0, 1, 5)), f"is 5; expected 0 to {len(BONDS) - 1}"),
        (["C", "O"], bond_tensor(2, (0, 1, -1)), "is -1; expected 0 to 4"),
    ],
)
def test_what_is_no_graph_is_refused(symbols, bonds, message):
    for call in (build_molecule, graph_to_molecule):
        with pytest.raises(ValueError, match=message):
            call(symbols, bonds)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode is 'lcc'; expected one of connect, largest, none"):
        graphs_to_smiles(reference_codes(), VOCABULARY, mode="lcc")
