"""Lifting: invariances, an oracle for each step, what fails and what is refused."""

import numpy as np
import pytest
import torch
from rdkit import Chem

from fourfold.graph_dit.graphs import Vocabulary, encode_smiles
from fourfold.kit.molecules import qm9_coordinates, qm9_table
from fourfold.syco.lifting import (
    Lifted,
    align,
    bonds_by_distance,
    center,
    embed_distances,
    lift,
    pair_mask,
    squared_distances,
    synthetic_coordinates,
)

VOCABULARY = Vocabulary(("C", "N", "O", "F"), 9, kekulize=True)
ASPIRIN = "CC(=O)OC1=CC=CC=C1C(=O)O"
CAGE = "C1=C2C3C4C1C1C2C3C41"  # no conformer in any of 40 tries
FLOAT = 1e-5  # coordinates of a few Å in float32, sums of a dozen of them


def random_cloud(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(seed=0, dtype=torch.float32):
    q = torch.linalg.qr(random_cloud(3, seed=seed, dtype=torch.float64))[0]
    return (q * torch.linalg.det(q)).to(dtype)  # in three dimensions −q turns the determinant round


def masks():
    return torch.arange(6) < torch.tensor([[6], [4], [1], [0]])


def lift_one(smiles, seed=0):
    return synthetic_coordinates(Chem.MolFromSmiles(smiles), seed)


def distances(x):
    return squared_distances(x[None])[0].sqrt()


# Centring


def test_centres_are_at_the_origin_and_padding_is_zero():
    x, mask = random_cloud(4, 6) + 3, masks()
    centred = center(x, mask)
    assert (centred[~mask] == 0).all()
    for cloud, real in zip(centred[:3], mask[:3], strict=True):
        assert cloud[real].mean(dim=0).abs().max() < FLOAT
    torch.testing.assert_close(center(centred, mask), centred, atol=FLOAT, rtol=0)
    torch.testing.assert_close(center(x + 7, mask), centred, atol=FLOAT, rtol=0)


def test_centring_does_not_read_the_padding():
    x, mask = random_cloud(4, 6), masks()
    other = torch.where(mask[..., None], x, 99.0)
    assert torch.equal(center(x, mask), center(other, mask))


def test_centring_goes_with_rotations_and_the_order_of_atoms():
    x, mask, turn = random_cloud(2, 6), torch.ones(2, 6, dtype=torch.bool), rotation()
    close = {"atol": FLOAT, "rtol": 0}
    torch.testing.assert_close(center(x @ turn, mask), center(x, mask) @ turn, **close)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(center(x[:, order], mask), center(x, mask)[:, order], **close)


def test_one_atom_lies_at_the_origin():
    one = center(torch.full((1, 1, 3), 5.0), torch.ones(1, 1, dtype=torch.bool))
    assert one.tolist() == [[[0, 0, 0]]]


# Pairs, distances, bonds


def test_pairs_are_of_two_different_atoms():
    mask = masks()
    pairs = pair_mask(mask)
    assert pairs.sum(dim=(1, 2)).tolist() == [30, 12, 0, 0]
    assert torch.equal(pairs, pairs.mT) and not pairs.diagonal(dim1=1, dim2=2).any()


def test_squared_distances_are_those_of_cdist():
    x = random_cloud(3, 6, dtype=torch.float64)
    torch.testing.assert_close(squared_distances(x), torch.cdist(x, x).square())
    assert squared_distances(x[:1, :1]).tolist() == [[[0.0]]]


def test_distances_do_not_see_the_pose():
    x = random_cloud(2, 6)
    for moved in (x @ rotation(), -x, x + 2):
        torch.testing.assert_close(
            squared_distances(moved), squared_distances(x), atol=1e-4, rtol=FLOAT
        )  # squares of up to 30 Å²
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    permuted = squared_distances(x)[:, order][:, :, order]
    assert torch.equal(squared_distances(x[:, order]), permuted)


def test_distances_far_from_the_origin_stay_exact():
    x = (random_cloud(1, 6) * 64).round() / 64  # so that adding 1000 rounds nothing
    assert torch.equal(squared_distances(x + 1000), squared_distances(x))


def test_a_point_on_another_has_a_finite_gradient():
    x = torch.zeros(1, 3, 3, requires_grad=True)
    squared_distances(x).sum().backward()
    assert x.grad.isfinite().all()


def test_bonds_are_pairs_nearer_than_the_threshold():
    x = torch.tensor([[[0.0, 0, 0], [1.5, 0, 0], [3.5, 0, 0], [0, 0, 0]]])
    mask = torch.tensor([[True, True, True, False]])
    near = [bonds_by_distance(x, mask, longest).sum().item() // 2 for longest in (1, 1.5, 1.6, 2.1)]
    assert near == [0, 0, 1, 2]  # 1.5 is not nearer than 1.5
    seen = bonds_by_distance(x, mask, 9.0)
    assert torch.equal(seen, pair_mask(mask))


def test_a_threshold_recovers_the_skeleton_of_nearly_all_molecules():
    table = qm9_table("held_out")[:300]
    codes = encode_smiles(table["smiles"], VOCABULARY)[0]
    x = torch.tensor(qm9_coordinates("held_out")[:300])
    made = ~x.isnan().any(dim=(1, 2))
    bonds, mask = codes.bonds[made] > 0, codes.atoms[made] >= 0
    exact = (bonds_by_distance(x[made], mask, 1.65) == bonds).all(dim=(1, 2))
    assert exact.double().mean() > 0.99


# Embedding


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9])
def test_distances_of_points_give_the_points_back(n):
    x = random_cloud(n, dtype=torch.float64)
    found = embed_distances(torch.cdist(x, x))
    assert found.shape == (n, 3) and found.dtype == x.dtype
    # The roots of eigenvalues that are 0 but for rounding, 1e-16, are 1e-8.
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(x, x), atol=1e-6, rtol=0)
    assert found.mean(dim=0).abs().max() < 1e-7
    middle = x - x.mean(dim=0)
    torch.testing.assert_close(align(found, middle, mirror=True), middle, atol=1e-6, rtol=0)


def test_distances_that_no_points_have_give_finite_points():
    d = torch.tensor([[0.0, 1, 5], [1, 0, 1], [5, 1, 0]])  # against the triangle inequality
    assert embed_distances(d).isfinite().all()


# Alignment


def test_a_pose_is_undone():
    x = random_cloud(8)
    moved = x @ rotation(seed=3) + 5
    torch.testing.assert_close(align(moved, x), x, atol=FLOAT, rtol=FLOAT)
    torch.testing.assert_close(align(-moved, x, mirror=True), x, atol=FLOAT, rtol=FLOAT)


def test_alignment_keeps_distances_and_hand():
    x, y = random_cloud(8, seed=1), random_cloud(8, seed=2)
    moved = align(x, y)
    torch.testing.assert_close(distances(moved), distances(x), atol=FLOAT, rtol=FLOAT)
    hands = [torch.linalg.det(cloud[1:4] - cloud[0]).sign() for cloud in (x, moved)]
    assert hands[0] == hands[1]
    torch.testing.assert_close(moved.mean(0), y.mean(0), atol=FLOAT, rtol=0)


def test_no_rotation_of_many_is_nearer():
    x, y = random_cloud(8, seed=1), random_cloud(8, seed=2)
    middle = y.mean(0)
    best = (align(x, y) - y).square().sum()
    for seed in range(50):
        turned = (x - x.mean(0)) @ rotation(seed=seed) + middle
        assert (turned - y).square().sum() >= best - 1e-4  # a sum of 24 squares of a few Å²


@pytest.mark.parametrize("x", [random_cloud(1), random_cloud(2), torch.zeros(4, 3)])
def test_points_lines_and_heaps_are_aligned(x):
    torch.testing.assert_close(align(x @ rotation() + 1, x), x, atol=FLOAT, rtol=0)


# Coordinates


def test_one_seed_gives_one_centred_cloud_and_leaves_the_molecule_alone():
    molecule = Chem.MolFromSmiles(ASPIRIN)
    before = molecule.ToBinary()
    x = synthetic_coordinates(molecule)
    assert x.shape == (13, 3) and x.dtype == torch.float32
    assert x.mean(dim=0).abs().max() < FLOAT
    assert torch.equal(x, synthetic_coordinates(molecule)) and molecule.ToBinary() == before
    assert not torch.allclose(distances(x), distances(synthetic_coordinates(molecule, 2)), atol=0.1)


def test_atoms_stand_in_the_order_of_the_molecule():
    molecule = Chem.MolFromSmiles(ASPIRIN)
    for order in (list(range(13)), list(reversed(range(13)))):
        own = Chem.RenumberAtoms(molecule, order)
        x, there = synthetic_coordinates(own), torch.ones(1, 13, dtype=torch.bool)
        near = bonds_by_distance(x[None], there, 1.65)[0]
        assert torch.equal(near, torch.tensor(Chem.GetAdjacencyMatrix(own)) > 0)


def test_bonds_have_the_lengths_of_chemistry():
    for smiles, length in (("CC", 1.53), ("C=C", 1.34), ("C#C", 1.20), ("CO", 1.42), ("C=O", 1.21)):
        # ETKDG spreads by some hundredths of an ångström about the textbook's values
        assert distances(lift_one(smiles))[0, 1].item() == pytest.approx(length, abs=0.06)


def test_mirror_molecules_have_mirror_clouds():
    left, right = lift_one("C[C@H](N)C(=O)O"), lift_one("C[C@@H](N)C(=O)O")
    apart = [(align(left, right, m) - right).norm(dim=1).max().item() for m in (False, True)]
    assert apart[0] > 0.3 > apart[1]


def test_seeds_0_and_1_are_one_to_rdkit():
    assert torch.equal(lift_one(ASPIRIN, 0), lift_one(ASPIRIN, 1))


@pytest.mark.parametrize("smiles", ["C", "N", "F"])
def test_one_heavy_atom_lies_at_the_origin(smiles):
    assert lift_one(smiles).tolist() == [[0, 0, 0]]


def test_a_graph_as_the_vocabulary_reads_it_can_be_lifted():
    """Not sanitised, aromatic bonds kept or Kekulé form: the same cloud."""
    unread = Chem.MolFromSmiles("c1ccoc1", sanitize=False)
    assert torch.equal(synthetic_coordinates(unread), lift_one("c1ccoc1"))


def test_what_cannot_be_lifted_says_why():
    with pytest.raises(ValueError, match=rf"ETKDG finds no conformer for {CAGE}"):
        lift_one(CAGE)
    for smiles, pieces in (("CC.O", 2), ("C.C.C", 3)):
        with pytest.raises(ValueError, match=f"{pieces} pieces; expected a molecule in one piece"):
            lift_one(smiles)
    with pytest.raises(ValueError, match="it has 0 pieces"):
        synthetic_coordinates(Chem.Mol())
    with pytest.raises(ValueError, match="valence"):
        synthetic_coordinates(Chem.MolFromSmiles("CC(C)(C)(C)C", sanitize=False))


@pytest.mark.parametrize("seed", [-1, 2**31, 1.5, None, "0"])
def test_a_seed_outside_of_31_bits_is_refused(seed, without_shape_checks):
    with pytest.raises(ValueError, match=r"seed is .*; expected a whole number from 0 to 21474836"):
        lift_one("CC", seed)
    with pytest.raises(ValueError, match="seed is"):
        lift(["CC"], VOCABULARY, seed)


def test_the_largest_seed_is_taken():
    assert lift_one("CCO", 2**31 - 1).shape == (3, 3)


@pytest.mark.parametrize("molecule", ["CCO", None, b"CCO"])
def test_what_is_no_molecule_is_named(molecule, without_shape_checks):
    with pytest.raises(TypeError, match=r"molecule is a .*; expected a molecule of RDKit"):
        synthetic_coordinates(molecule)


# Lists


def test_a_list_keeps_codes_clouds_and_problems_apart():
    smiles = ["CCO", CAGE, "not a SMILES", "[H][H]", "CCS", "C.C", "c1ccoc1", "C" * 10]
    lifted = lift(smiles, VOCABULARY)
    assert isinstance(lifted, Lifted) and lifted.rows == [0, 6]
    assert [problem.row for problem in lifted.problems] == [1, 2, 3, 4, 5, 7]
    assert {p.row: p.smiles for p in lifted.problems} == {
        row: smiles[row] for row in (1, 2, 3, 4, 5, 7)
    }
    reasons = {problem.row: problem.reason for problem in lifted.problems}
    assert "no conformer" in reasons[1] and "hydrogen" in reasons[3] and "pieces" in reasons[5]
    codes = encode_smiles([smiles[row] for row in lifted.rows], VOCABULARY)[0]
    assert torch.equal(codes.atoms, lifted.codes.atoms)
    assert torch.equal(codes.bonds, lifted.codes.bonds)
    mask = lifted.codes.atoms >= 0
    assert lifted.x.shape == (2, 9, 3) and (lifted.x[~mask] == 0).all()
    torch.testing.assert_close(center(lifted.x, mask), lifted.x, atol=FLOAT, rtol=0)


def test_each_row_is_the_cloud_of_its_own_molecule():
    smiles = ["CC(C)C=O", "OCC#N", "C1CC1F"]
    lifted = lift(smiles, VOCABULARY, seed=5)
    for text, x, atoms in zip(smiles, lifted.x, lifted.codes.atoms, strict=True):
        assert torch.equal(x[: int((atoms >= 0).sum())], lift_one(text, 5))


def test_a_list_of_which_nothing_is_left_is_empty_and_not_an_error():
    lifted = lift([CAGE], VOCABULARY)
    assert lifted.x.shape == (0, 9, 3) and lifted.codes.bonds.shape == (0, 9, 9)
    assert lifted.rows == [] and len(lifted.problems) == 1


def test_any_iterable_is_a_list_and_a_text_is_none():
    assert lift((text for text in ["C", "CC"]), VOCABULARY).rows == [0, 1]
    with pytest.raises(ValueError, match="smiles is 'CCO'; expected a list"):
        lift("CCO", VOCABULARY)
    with pytest.raises(ValueError, match="smiles is empty"):
        lift([], VOCABULARY)


def test_shipped_coordinates_are_those_of_lift():
    """Bond lengths in any version of RDKit; whole clouds where its random numbers agree."""
    smiles, shipped = qm9_table()["smiles"][:30].tolist(), qm9_coordinates()[:30]
    lifted = lift(smiles, VOCABULARY)
    made = np.flatnonzero(~np.isnan(shipped).any(axis=(1, 2)))
    assert lifted.rows == made.tolist()
    bonds = lifted.codes.bonds > 0
    ours, theirs = (squared_distances(x).sqrt() for x in (lifted.x, torch.tensor(shipped[made])))
    assert (ours - theirs)[bonds].abs().max() < 0.1
