"""Autoencoder: pair inputs, noise, loss, the model's symmetries, exact reconstruction."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from fourfold.graph_dit.graphs import (
    BONDS,
    Codes,
    Graphs,
    Vocabulary,
    encode_smiles,
    one_hot,
    permute_atoms,
    to_codes,
)
from fourfold.kit.data import data_path
from fourfold.syco.autoencoder import (
    Cloud,
    Decoder,
    MoleculeAutoencoder,
    blur_cloud,
    exact,
    exact_rate,
    pair_inputs,
    reconstruction_loss,
)
from fourfold.syco.lifting import center, lift, pair_mask

VOCABULARY = Vocabulary(("C", "N", "O", "F"), 7, kekulize=True)
SMILES = ["CC(=O)OC", "c1ccccc1", "C#N", "C", "NC1CC1F"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rotation(seed=0, mirror=False):
    q = torch.linalg.qr(torch.randn(3, 3, generator=seeded(seed), dtype=torch.float64))[0]
    q = q * torch.linalg.det(q).sign()
    return -q if mirror else q


def close(ours, theirs):
    """The chapter's bar, 1e-5, of the largest number there is where that is above 1: float32."""
    scale = theirs.abs().max().clamp(min=1)
    assert (ours - theirs).abs().max() <= 1e-5 * scale


def cut(graphs, rows):
    return Graphs(*(part[rows] for part in graphs))


@pytest.fixture(scope="module")
def molecules():
    """Five molecules of one to seven atoms, as graphs and coordinates, and their codes."""
    lifted = lift(SMILES, VOCABULARY)
    assert not lifted.problems
    return one_hot(lifted.codes, VOCABULARY), lifted.x, lifted.codes


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = MoleculeAutoencoder(4, latent=3, width=16)
    with torch.no_grad():  # a fresh encoder hardly moves a point; this one does
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def as_double(model, graphs, x):
    """The same in float64, where a broken symmetry cannot hide behind rounding."""
    copy = MoleculeAutoencoder(4, latent=3, width=16).double()
    copy.load_state_dict(model.state_dict())
    return copy.eval(), Graphs(graphs.X.double(), graphs.E.double(), graphs.mask), x.double()


# Pairs


def test_pair_inputs_are_the_definition():
    h, x = torch.randn(2, 4, 3, generator=seeded()), torch.randn(2, 4, 3, generator=seeded(1))
    inputs = pair_inputs(h, x)
    assert inputs.shape == (2, 4, 4, 7)
    for b in range(2):
        for i in range(4):
            for j in range(4):
                d = (x[b, i] - x[b, j]).norm().reshape(1)
                own = torch.cat([h[b, i] + h[b, j], (h[b, i] - h[b, j]).abs(), d])
                # 1e-8 below the root: 1e-4 where an atom meets itself, far less elsewhere.
                assert torch.allclose(inputs[b, i, j], own, atol=1e-4 if i == j else 1e-6)


def test_pair_inputs_do_not_know_the_order_to_the_bit():
    h, x = torch.randn(3, 6, 5, generator=seeded()), torch.randn(3, 6, 3, generator=seeded(1))
    inputs = pair_inputs(h, x)
    assert torch.equal(inputs, inputs.transpose(1, 2))


def test_the_distance_of_an_atom_from_itself_has_a_gradient():
    x = torch.zeros(1, 3, 3, requires_grad=True)  # all at one place
    pair_inputs(torch.zeros(1, 3, 2), x).sum().backward()
    assert x.grad.isfinite().all()


def test_decoded_bonds_are_symmetric_whatever_the_cloud():
    torch.manual_seed(0)
    cloud = Cloud(torch.randn(4, 9, 3), torch.randn(4, 9, 2), torch.ones(4, 9, dtype=torch.bool))
    scores = Decoder(2, 4)(cloud)
    # The inputs are equal to the bit; a matrix product may round the two rows in other ways.
    assert torch.allclose(scores.E, scores.E.transpose(1, 2), atol=1e-6)
    codes = to_codes(scores)
    assert torch.equal(codes.bonds, codes.bonds.transpose(1, 2))


def test_the_decoder_is_silent_where_there_is_nothing(molecules, model):
    graphs, x, _ = molecules
    scores = model.decode(model.encode(graphs, x))
    assert scores.X[~graphs.mask].abs().max() == 0
    assert scores.E[~pair_mask(graphs.mask)].abs().max() == 0
    assert torch.equal(scores.mask, graphs.mask)


def test_a_pair_reads_nothing_of_other_atoms(model):
    h, x = torch.randn(1, 5, 3, generator=seeded()), torch.randn(1, 5, 3, generator=seeded(1))
    mask = torch.ones(1, 5, dtype=torch.bool)
    before = model.decode(Cloud(x, h, mask))
    x, h = x.clone(), h.clone()
    x[0, 4], h[0, 4] = 7.0, 3.0
    after = model.decode(Cloud(x, h, mask))
    # One row of a matrix product changed; the others may be rounded in another way.
    assert torch.allclose(before.E[:, :4, :4], after.E[:, :4, :4], atol=1e-5)
    assert torch.allclose(before.X[:, :4], after.X[:, :4], atol=1e-5)


# Symmetries of the whole


@pytest.mark.parametrize("mirror", [False, True])
def test_encoder_turns_along_and_decoder_stays(molecules, model, mirror):
    graphs, x, _ = molecules
    q = rotation(3, mirror).float()
    cloud, moved = model.encode(graphs, x), model.encode(graphs, x @ q + 3.0)
    close(moved.x, cloud.x @ q)
    close(moved.h, cloud.h)
    close(model.decode(moved).X, model.decode(cloud).X)
    close(model.decode(moved).E, model.decode(cloud).E)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_symmetry_is_exact_and_not_nearly(molecules, model, mirror):
    model, graphs, x = as_double(model, *molecules[:2])
    q = rotation(4, mirror)
    cloud, moved = model.encode(graphs, x), model.encode(graphs, x @ q - 5.0)
    # Float64 keeps sixteen digits; a term that is not equivariant would stand far above 1e-10.
    assert torch.allclose(moved.x, cloud.x @ q, atol=1e-10)
    assert torch.allclose(moved.h, cloud.h, atol=1e-10)
    assert torch.allclose(model.decode(moved).E, model.decode(cloud).E, atol=1e-10)


def test_renaming_atoms_renames_points_and_bonds(molecules, model):
    graphs, x, codes = molecules
    order = torch.randperm(7, generator=seeded(2))
    renamed = one_hot(permute_atoms(codes, order), VOCABULARY)
    cloud, moved = model.encode(graphs, x), model.encode(renamed, x[:, order])
    close(moved.x, cloud.x[:, order])
    close(moved.h, cloud.h[:, order])
    close(model.decode(moved).E, model.decode(cloud).E[:, order][:, :, order])


def test_other_molecules_and_padding_do_not_matter(molecules, model):
    graphs, x, _ = molecules
    whole = model.encode(graphs, x)
    for k in range(len(x)):
        n = int(graphs.mask[k].sum())
        alone = Graphs(
            graphs.X[k : k + 1, :n], graphs.E[k : k + 1, :n, :n], graphs.mask[k : k + 1, :n]
        )
        cloud = model.encode(alone, x[k : k + 1, :n])
        # A batch of one without padding: the same sums in another order, float32.
        assert torch.allclose(cloud.x, whole.x[k : k + 1, :n], atol=1e-5)
        assert torch.allclose(cloud.h, whole.h[k : k + 1, :n], atol=1e-5)


def test_the_encoder_reads_bonds(molecules, model):
    graphs, x, _ = molecules
    changed = graphs.E.clone()
    changed[1, 0, 1] = changed[1, 1, 0] = torch.eye(5)[3]
    other = model.encode(Graphs(graphs.X, changed, graphs.mask), x)
    cloud = model.encode(graphs, x)
    assert (other.h[1] - cloud.h[1]).abs().max() > 1e-3
    assert (other.x[1] - cloud.x[1]).abs().max() > 1e-4
    assert torch.allclose(other.h[0], cloud.h[0], atol=1e-6), "the others stay"


def test_clouds_are_centred_and_zero_on_padding(molecules, model):
    graphs, x, _ = molecules
    for each in (model, MoleculeAutoencoder(4, encoder=False)):
        cloud = each.encode(graphs, x + 2)
        # Means of up to seven float32 numbers of size 5.
        assert cloud.x.sum(dim=1).abs().max() < 1e-4
        assert cloud.x[~graphs.mask].abs().max() == 0
        assert cloud.h[~graphs.mask].abs().max() == 0


def test_without_the_encoder_the_cloud_is_the_molecule(molecules):
    graphs, x, _ = molecules
    plain = MoleculeAutoencoder(4, latent=2, encoder=False)
    cloud = plain.encode(graphs, x)
    assert plain.latent == 4 and plain.encoder is None
    assert torch.equal(cloud.h, graphs.X)
    assert torch.equal(cloud.x, center(x, graphs.mask))


# Noise


def test_noise_has_its_size_and_no_centre(model):
    mask = torch.arange(40) < torch.tensor([40, 25])[:, None]
    cloud = Cloud(torch.zeros(2, 40, 3), torch.zeros(2, 40, 300), mask)
    noised = blur_cloud(cloud, 0.5, seeded())
    assert noised.x.sum(dim=1).abs().max() < 1e-5  # 40 float32 numbers of size 1
    assert noised.x[~mask].abs().max() == 0 and noised.h[~mask].abs().max() == 0
    # 19,500 draws: a standard error of 0.5 / sqrt(2 · 19500), below 0.003.
    assert abs(noised.h[mask].std().item() - 0.5) < 0.012


def test_noise_on_points_is_the_projected_normal():
    n, mask = 4, torch.ones(20000, 4, dtype=torch.bool)
    cloud = Cloud(torch.zeros(20000, n, 3), torch.zeros(20000, n, 1), mask)
    x = blur_cloud(cloud, 1.0, seeded()).x[..., 0]
    expected = torch.eye(n) - 1 / n
    # A covariance of 20,000 draws has a standard error of at most 0.01.
    assert (x.T @ x / len(x) - expected).abs().max() < 0.05


def test_noise_is_repeatable_and_the_models_own_by_default(molecules, model):
    cloud = model.encode(*molecules[:2])
    assert torch.equal(blur_cloud(cloud, 0.3, seeded()).x, model.blur(cloud, 0.3, seeded()).x)
    default = model.blur(cloud, generator=seeded())
    assert torch.equal(default.h, blur_cloud(cloud, model.sigma, seeded()).h)
    assert torch.equal(model.blur(cloud, 0.0).x, cloud.x)
    assert torch.equal(model.blur(cloud, 0.0).h, cloud.h)


# Loss


def loss_loop(scores, graphs):
    atoms, bonds = [], []
    for X, E, true_X, true_E, mask in zip(*scores[:2], *graphs, strict=True):
        n = int(mask.sum())
        for i in range(n):
            atoms.append(-F.log_softmax(X[i], -1)[true_X[i].argmax()])
            bonds += [
                -F.log_softmax(E[i, j], -1)[true_E[i, j].argmax()] for j in range(n) if j != i
            ]
    return sum(atoms) / len(atoms), sum(bonds) / len(bonds)


def test_the_loss_is_its_definition(molecules, model):
    graphs, x, _ = molecules
    scores = model.decode(model.encode(graphs, x))
    # Means of up to a hundred float32 numbers.
    for ours, loop in zip(
        reconstruction_loss(scores, graphs), loss_loop(scores, graphs), strict=True
    ):
        assert torch.allclose(ours, loop, atol=1e-5)


def test_the_prior_is_the_divergence_up_to_a_constant(molecules):
    graphs, x, _ = molecules
    torch.manual_seed(0)
    model = MoleculeAutoencoder(4, latent=3, width=16, prior=0.7, sigma=0.2)
    cloud, loss = model.encode(graphs, x), model.loss(graphs, x)

    def divergence(mean):
        posterior = torch.distributions.Normal(mean, 0.2)
        return torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))

    constant = 0.5 * (0.2**2 - 1 - math.log(0.2**2))
    parts = [divergence(part[graphs.mask]).mean() - constant for part in (cloud.x, cloud.h)]
    assert torch.allclose(loss.prior, 0.7 * sum(parts), atol=1e-5)  # float32
    assert torch.allclose(loss.total, loss.atoms + loss.bonds + loss.prior)


def test_lone_atoms_can_be_learned_from():
    lifted = lift(["C", "N"], VOCABULARY)
    torch.manual_seed(0)
    model = MoleculeAutoencoder(4, width=16)
    loss = model.loss(one_hot(lifted.codes, VOCABULARY), lifted.x)
    loss.total.backward()
    assert loss.total.isfinite() and loss.bonds == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def learned(molecules, **options):
    graphs, x, _ = molecules
    torch.manual_seed(0)
    model = MoleculeAutoencoder(4, width=16, sigma=0.02, **options)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(8):
        for _ in range(25):
            optimiser.zero_grad()
            model.loss(graphs, x).total.backward()
            optimiser.step()
        if exact_rate(model, graphs, x) == 1:
            break
    return model


def test_a_few_molecules_are_learned_by_heart(molecules):
    assert exact_rate(learned(molecules), *molecules[:2]) == 1


def test_without_the_encoder_benzene_cannot_be_learned(molecules):
    """Its six bonds have nearly one length, and its double bonds alternate."""
    graphs, x, codes = molecules
    model = learned(molecules, encoder=False)
    right = exact(to_codes(model.decode(model.encode(graphs, x))), codes)
    assert not right[SMILES.index("c1ccccc1")]
    assert right.sum() >= 2


# Exactness


def test_exact_counts_atoms_and_bonds():
    codes = encode_smiles(SMILES, VOCABULARY)[0]
    assert exact(codes, codes).tolist() == [True] * 5
    for k in range(5):
        atoms, bonds = codes.atoms.clone(), codes.bonds.clone()
        atoms[k, 0] = 3
        assert exact(Codes(atoms, bonds), codes).tolist() == [i != k for i in range(5)]
        bonds[k, 0, -1] = 2
        assert exact(Codes(codes.atoms, bonds), codes).tolist() == [i != k for i in range(5)]


def test_exact_of_a_molecule_that_lost_an_atom():
    codes = encode_smiles(["CC", "C"], VOCABULARY)[0]
    assert not exact(
        Codes(codes.atoms[1:], codes.bonds[1:]), Codes(codes.atoms[:1], codes.bonds[:1])
    )


class Oracle(MoleculeAutoencoder):
    """Answers with the graphs it was made for, whatever the cloud, and misses some."""

    def __init__(self, graphs, wrong):
        super().__init__(4, encoder=False)
        self.graphs, self.wrong, self.at = graphs, wrong, 0

    def decode(self, cloud):
        rows = slice(self.at, self.at + len(cloud.x))
        self.at += len(cloud.x)
        X = self.graphs.X[rows].clone()
        X[self.wrong[rows], 0] = -X[self.wrong[rows], 0]
        return Graphs(X, self.graphs.E[rows], self.graphs.mask[rows])


def test_the_rate_is_a_share_of_all_molecules(molecules):
    graphs, x, _ = molecules
    graphs, x = cut(graphs, torch.arange(5).repeat(160)), x.repeat(160, 1, 1)
    wrong = torch.arange(800) % 10 == 0
    assert exact_rate(Oracle(graphs, wrong), graphs, x) == 0.9  # in pieces of a few hundred


def test_the_rate_is_repeatable_with_noise(molecules, model):
    graphs, x, _ = molecules
    rates = [exact_rate(model, graphs, x, 0.5, seed=1) for _ in range(2)]
    assert rates[0] == rates[1] and 0 <= rates[0] <= 1


# Bad input


def test_bad_settings_are_named():
    for settings, name in (
        ({"sigma": -0.1}, "sigma is -0.1"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"prior": math.inf}, "prior is inf"),
        ({"latent": 0}, "latent"),
    ):
        with pytest.raises(ValueError, match=name):
            MoleculeAutoencoder(4, **settings)


def test_bad_input_is_named(molecules, model):
    graphs, x, _ = molecules
    with pytest.raises(ValueError, match=r"x has shape \(5, 6, 3\); expected \(5, 7, 3\)"):
        model.encode(graphs, x[:, :6])
    with pytest.raises(ValueError, match=r"x has shape \(3, 7, 3\); expected \(5, 7, 3\)"):
        model.encode(graphs, x[:3])
    with pytest.raises(ValueError, match="graphs has 3 atom types; expected 4"):
        model.encode(Graphs(graphs.X[..., :3], graphs.E, graphs.mask), x)
    broken = x.clone()
    broken[2, 1, 0] = math.nan
    with pytest.raises(ValueError, match="x of molecule 2 is not finite"):
        model.encode(graphs, broken)
    cloud = model.encode(graphs, x)
    with pytest.raises(ValueError, match="cloud has 2 features; expected 3"):
        model.decode(Cloud(cloud.x, cloud.h[..., :2], cloud.mask))
    with pytest.raises(ValueError, match="sigma is -1"):
        model.blur(cloud, -1.0)
    with pytest.raises(ValueError, match="graphs has no molecules"):
        exact_rate(model, cut(graphs, slice(0, 0)), x[:0])


def test_what_stands_in_padding_is_not_read(molecules, model):
    graphs, x, _ = molecules
    odd = torch.where(graphs.mask[..., None], x, math.nan)
    assert torch.equal(model.encode(graphs, odd).x, model.encode(graphs, x).x)


# The table of the study


def test_the_table_holds_what_the_lesson_reads():
    table = pd.read_csv(data_path("results", "syco_autoencoder.csv"))
    assert list(table) == ["encoder", "latent", "sigma", "steps", "seed", "noise", "exact"]
    assert set(table.encoder) == {"yes", "no"} and table.exact.between(0, 1).all()
    assert not table.duplicated(["encoder", "latent", "sigma", "steps", "seed", "noise"]).any()
    whole = table[(table.encoder == "yes") & (table.latent == 4) & (table.sigma == 0.1)]
    assert (whole[whole.noise == 0].exact >= 0.99).all(), "the bar of the chapter"
    for _, run in table.groupby(["encoder", "latent", "sigma", "steps", "seed"]):
        assert np.allclose(run.noise, [0, 0.05, 0.1, 0.2])


def test_bonds_have_five_classes():
    assert Decoder(4, 4).bonds[-1].out_features == len(BONDS)
