"""Loss, draws, guidance, sampling, likelihood bound: official numbers, oracles, properties."""

import itertools
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fourfold.graph_dit.denoiser import GraphDiT
from fourfold.graph_dit.diffusion import (
    Bound,
    _clean_surprise,
    _divergence,
    _limits,
    _step_divergence,
    _visited,
    diffusion_loss,
    draw_graph,
    graph_loss,
    guide,
    likelihood_bound,
    reverse_step,
    sample,
    starting_graph,
)
from fourfold.graph_dit.graphs import Codes, Graphs, Vocabulary, encode_smiles, one_hot, to_codes
from fourfold.graph_dit.noise import KINDS, GraphNoise, GraphStatistics, _pairs, graph_statistics

REFERENCE = Path(__file__).parents[1] / "reference"
VOCABULARY = Vocabulary(("C", "N", "O", "F"), 6)


def close(ours, theirs, tolerance=1e-5):
    """1e-5 of the larger of 1 and the official number: float32 in another order of operations."""
    ours, theirs = (
        torch.as_tensor(np.asarray(x.detach() if hasattr(x, "detach") else x))
        for x in (ours, theirs)
    )
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs() <= tolerance * theirs.abs().clamp(min=1)).all()


def tensor(array):
    return torch.from_numpy(np.asarray(array))


def filled(name, shape):
    """The reference's parameters, a function of name and shape (tests/reference/README.md)."""
    random = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if len(shape) >= 2:
        random = random / np.sqrt(shape[1])
    else:
        random = 1 + 0.1 * random if name.endswith(".weight") else 0.1 * random
    return torch.from_numpy(random.astype(np.float32))


class Official:
    """The frozen inputs and numbers of the release, with our model and noise beside them."""

    def __init__(self):
        self.denoiser = np.load(REFERENCE / "graphdit_denoiser.npz")
        self.noises = np.load(REFERENCE / "graphdit_noise.npz")
        self.nll = np.load(REFERENCE / "graphdit_nll.npz")
        self.meta = json.loads((REFERENCE / "graphdit_meta.json").read_text("utf-8"))
        self.info = json.loads((REFERENCE / "graphdit_info.json").read_text("utf-8"))
        d, n = self.denoiser, self.noises
        self.mask = tensor(d["mask"])
        self.clean = Graphs(tensor(d["X0"]).float(), tensor(d["E0"]).float(), self.mask)
        self.noised = Graphs(tensor(d["X_t"]).float(), tensor(d["E_t"]).float(), self.mask)
        self.time = tensor(d["t"]).view(-1)
        sizes = torch.tensor(self.meta["n_atoms_per_mol_dist"][:10], dtype=torch.float32)
        names = ("x_marginals", "e_marginals", "xe", "ex")
        parts = [tensor(n[name]) for name in names]
        self.noise = GraphNoise(GraphStatistics(*parts, torch.ones(8, 5), sizes), 50)

    def model(self, kind):
        weights = {k: filled(k, shape) for k, shape in self.info[f"keys_{kind}"].items()}
        return GraphDiT.from_official(weights, heads=4, max_atoms=9).eval()


@pytest.fixture(scope="module")
def official():
    return Official()


@pytest.fixture(scope="module")
def small():
    """A few molecules with their noises, and a model that has not learned."""
    codes = encode_smiles(["CCO", "CC=O", "C#N", "C", "OCC(F)CN", "C1CC1"], VOCABULARY)[0]
    noises = {kind: GraphNoise(graph_statistics(codes, VOCABULARY), 12, kind) for kind in KINDS}
    torch.manual_seed(0)
    model = GraphDiT(4, 6, width=16, depth=1, heads=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # AdaLN starts at 0, where no property matters
            parameter.add_(0.2 * torch.randn_like(parameter))
    return one_hot(codes, VOCABULARY), noises, model, torch.linspace(-1, 1, 6)[:, None]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Oracle(nn.Module):
    """Always answers with the graphs it was made for, and is sure of it."""

    def __init__(self, graph):
        super().__init__()
        self.graph, self.max_atoms, self.times = graph, graph.mask.shape[1], []

    def forward(self, X, E, mask, time, y):
        self.times.append(time)
        return 200 * self.graph.X, 200 * self.graph.E


# The official numbers


@pytest.mark.parametrize("kind", ["reg", "cls"])
def test_official_loss(official, kind):
    y = tensor(official.denoiser[f"y_{kind}"])
    scores = official.model(kind)(*official.noised, official.time, y)
    atoms, bonds, total = official.denoiser[f"{kind}_loss"]
    close(graph_loss(scores, official.clean, (1, 0)), torch.tensor(atoms).float())
    close(graph_loss(scores, official.clean, (0, 1)), torch.tensor(bonds).float())
    close(graph_loss(scores, official.clean), torch.tensor(total).float())
    assert total == pytest.approx(atoms + 10 * bonds, rel=1e-6)


def test_official_guided_probabilities(official):
    model, y = official.model("reg"), tensor(official.denoiser["y_reg"])
    atoms, pairs = official.mask, _pairs(official.mask)
    n = official.noises
    for b, t in enumerate((official.time * 50).round().long().tolist()):
        one = Graphs(*(part[b : b + 1] for part in official.noised))
        pX, pE = reverse_step(model, official.noise, one, y[b : b + 1], t - 1, t, 2.0)
        close(pX[0][atoms[b]], tensor(n["ps_guid_X"])[b][atoms[b]])
        close(pE[0][pairs[b]], tensor(n["ps_guid_E"])[b][pairs[b]])
        pX, pE = reverse_step(model, official.noise, one, y[b : b + 1], t - 1, t)
        close(pX[0][atoms[b]], tensor(n["ps_cond_X"])[b][atoms[b]])
        close(pE[0][pairs[b]], tensor(n["ps_cond_E"])[b][pairs[b]])


def test_official_prior_divergence_has_the_other_direction(official):
    clean, noise = official.clean, official.noise
    q = noise.q(clean, torch.full((6,), 50))
    theirs = tensor(official.nll["kl_prior_T50"])
    close(_divergence(_limits(noise, clean), q, clean.mask, ordered=True), theirs)
    assert theirs.min() > 0.6 and theirs.max() < 5.0  # nats: the noise does not end at its limit
    assert (_divergence(q, _limits(noise, clean), clean.mask) - theirs).abs().min() > 0.1


def test_official_step_divergence(official):
    model, y = official.model("reg"), tensor(official.denoiser["y_reg"])
    with torch.no_grad():
        t = tensor(official.nll["t_int"]).view(-1).long()
        noised = Graphs(
            tensor(official.nll["X_t"]).float(), tensor(official.nll["E_t"]).float(), official.mask
        )
        for graph, time, theirs in (
            (noised, t, official.nll["val_kl"]),
            (official.noised, (official.time * 50).round().long(), official.noises["Lt_kl_x_kl_e"]),
        ):
            ours = _step_divergence(
                model, official.noise, official.clean, graph, y, time, released=True
            )
            close(ours.mean(), torch.tensor(theirs.sum()).float())


def test_official_likelihood_from_its_parts(official):
    model, y, noise = official.model("reg"), tensor(official.denoiser["y_reg"]), official.noise
    clean, mask = official.clean, official.mask
    nothing = torch.eye(9)[None, :, :, None] * torch.eye(5)[0] * mask[:, :, None, None]
    at_zero = Graphs(clean.X, clean.E + nothing, mask)  # as drawn there: the diagonal is class 0
    with torch.no_grad():
        last = _clean_surprise(model, clean, at_zero, y, ordered=True)
    close(last.mean(), -torch.tensor(official.nll["logp0"].sum()).float())
    bound = likelihood_bound(model, noise, clean, y, seeded(), released=True)
    close(-bound.size, tensor(official.nll["log_pN"]))
    close(bound.start, tensor(official.nll["kl_prior_T50"]))
    steps = 50 * torch.tensor(official.nll["val_kl"].sum()).float()
    total = (bound.size + bound.start + last).mean() + steps
    close(total, torch.tensor(float(official.nll["nll"])))


# Drawing


def test_draws_follow_their_probabilities():
    p = torch.rand(1, 4, 5, generator=seeded(1)).expand(20_000, 4, 5)
    e = torch.rand(1, 4, 4, 3, generator=seeded(2)).expand(20_000, 4, 4, 3)
    graph = draw_graph(p, e, torch.ones(20_000, 4, dtype=torch.bool), seeded(3))
    # The standard error of a share of 20,000 draws is at most 0.0035; four of them.
    assert (graph.X.mean(0) - p[0] / p[0].sum(-1, keepdim=True)).abs().max() < 0.015
    upper = torch.ones(4, 4).triu(1).bool()
    assert (graph.E.mean(0) - e[0] / e[0].sum(-1, keepdim=True))[upper].abs().max() < 0.015


def test_a_drawn_graph_is_one_hot_symmetric_and_masked():
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 0])[:, None]
    graph = draw_graph(torch.rand(4, 5, 4), torch.rand(4, 5, 5, 5), mask, seeded())
    both = mask[:, :, None] & mask[:, None, :]
    assert torch.equal(graph.X.sum(-1), mask.float())
    assert torch.equal(graph.E.sum(-1), both.float())
    assert torch.equal(graph.E, graph.E.transpose(1, 2))
    diagonal = graph.E.diagonal(dim1=1, dim2=2).transpose(1, 2)
    assert torch.equal(diagonal[..., 0], mask.float())
    assert diagonal[..., 1:].sum() == 0


def test_a_class_without_probability_is_never_drawn():
    p = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]).expand(50_000, 1, 5)
    graph = draw_graph(p, torch.ones(50_000, 1, 1, 2), torch.ones(50_000, 1, dtype=torch.bool))
    assert graph.X[..., [0, 2, 4]].sum() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_broken_distribution_is_an_error(value):
    with pytest.raises(ValueError, match="adds up to 0 or to no finite number"):
        draw_graph(
            torch.full((1, 2, 3), value), torch.ones(1, 2, 2, 2), torch.ones(1, 2, dtype=torch.bool)
        )


# Loss


def test_padding_and_order_do_not_change_the_loss(small):
    clean, *_ = small
    scores = tuple(torch.randn(part.shape, generator=seeded()) for part in clean[:2])
    loss = graph_loss(scores, clean)
    order = torch.tensor([2, 0, 1, 5, 3, 4])
    moved = Graphs(clean.X[:, order], clean.E[:, order][:, :, order], clean.mask[:, order])
    there = scores[0][:, order], scores[1][:, order][:, :, order]
    close(graph_loss(there, moved), loss, 1e-6)
    noise = 100 * torch.randn(scores[0].shape)
    padded = torch.where(clean.mask[..., None], scores[0], noise), scores[1]
    close(graph_loss(padded, clean), loss, 1e-6)


def test_the_loss_of_a_perfect_and_of_an_ignorant_answer(small):
    clean, *_ = small
    assert graph_loss((100 * clean.X, 100 * clean.E), clean) == 0
    ignorant = graph_loss((0 * clean.X, 0 * clean.E), clean)
    assert ignorant.item() == pytest.approx(math.log(4) + 10 * math.log(5), rel=1e-6)


def test_lone_atoms_have_a_loss(small):
    clean, noises, model, y = small
    lone = Graphs(*(part[3:4] for part in clean))
    assert lone.mask.sum() == 1
    assert diffusion_loss(model, noises["graph"], lone, y[3:4]).isfinite()


def test_training_and_sampling_use_the_same_clock(small):
    clean, noises, _, y = small
    oracle = Oracle(clean)
    for seed in range(40):
        diffusion_loss(oracle, noises["independent"], clean, y, seeded(seed))
    trained = torch.cat(oracle.times)
    assert trained.min() == 0 and trained.max() == 1  # both ends occur in 240 draws of 0 … 12
    oracle.times.clear()
    sample(oracle, noises["independent"], clean.mask.sum(1), y, guidance=1.0)
    sampled = torch.stack(oracle.times)[:, 0]
    assert torch.allclose(sampled, torch.arange(12, 0, -1) / 12)


def test_the_gradient_reaches_every_parameter_that_is_used(small):
    clean, noises, model, y = small
    model.zero_grad()
    diffusion_loss(model, noises["graph"], clean, y, seeded()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert set(without) <= {"condition.encoders.0.dropped"}


# Guidance


def test_guidance_of_0_and_1(small):
    p_c, p_u = torch.rand(7, 5, generator=seeded(1)).softmax(-1), torch.rand(7, 5).softmax(-1)
    close(guide(p_c, p_u, 1), p_c, 1e-6)
    close(guide(p_c, p_u, 0), p_u, 1e-6)
    close(guide(p_c, p_c, 7.5), p_c, 1e-6)
    close(guide(p_c, p_u, 2.5).sum(-1), torch.ones(7), 1e-6)
    close(guide(p_c, p_u, 3), p_u * (p_c / p_u) ** 3 / (p_u * (p_c / p_u) ** 3).sum(-1, True), 1e-5)


def test_strong_guidance_of_extreme_distributions_is_finite():
    p_c, p_u = torch.tensor([1.0, 1e-12, 0.0]), torch.tensor([1e-12, 1.0, 0.0])
    for g in (-8.0, 0.5, 4.0, 50.0):
        p = guide(p_c, p_u, g)
        assert p.isfinite().all() and p.sum().item() == pytest.approx(1, abs=1e-6)


# One step back


def test_the_doubled_batch_is_two_passes(small):
    clean, noises, model, y = small
    for kind, noise in noises.items():
        noised = draw_graph(*noise.q(clean, torch.full((6,), 7)), clean.mask, seeded())
        with_y = reverse_step(model, noise, noised, y, 6, 7)
        without = reverse_step(model, noise, noised, torch.full_like(y, torch.nan), 6, 7)
        both = reverse_step(model, noise, noised, y, 6, 7, guidance=2.0)
        for ours, c, u in zip(both, with_y, without, strict=True):
            # A batch of another size changes the last digits of matrix products.
            close(ours, guide(c, u, 2.0))
            assert (c - u).abs().max() > 1e-3, kind


def test_company_and_padding_do_not_matter(small):
    clean, noises, model, y = small
    for noise in noises.values():
        noised = draw_graph(*noise.q(clean, torch.full((6,), 7)), clean.mask, seeded())
        pX, pE = reverse_step(model, noise, noised, y, 3, 7, guidance=2.0)
        for b in range(6):
            one = Graphs(*(part[b : b + 1] for part in noised))
            alone = reverse_step(model, noise, one, y[b : b + 1], 3, 7, guidance=2.0)
            close(alone[0][0], pX[b])
            close(alone[1][0], pE[b])


def test_no_property_is_one_question(small):
    clean, noises, model, y = small
    noised = draw_graph(*noises["graph"].q(clean, torch.full((6,), 7)), clean.mask, seeded())
    nothing = torch.full_like(y, torch.nan)
    sizes = []
    hook = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    guided = reverse_step(model, noises["graph"], noised, nothing, 6, 7, guidance=2.0)
    reverse_step(model, noises["graph"], noised, y, 6, 7, guidance=2.0)
    hook.remove()
    assert sizes == [6, 12]
    plain = reverse_step(model, noises["graph"], noised, nothing, 6, 7)
    assert all(torch.equal(a, b) for a, b in zip(guided, plain, strict=True))


@pytest.mark.parametrize(("s", "t"), [(7, 7), (8, 7), (-1, 3), (5, 13)])
def test_times_in_the_wrong_order_are_an_error(small, s, t):
    clean, noises, model, y = small
    with pytest.raises(ValueError, match=f"s and t are {s} and {t}; expected 0 ≤ s < t ≤ 12"):
        reverse_step(model, noises["graph"], clean, y, s, t)


# The walk


def test_the_start_follows_the_limit(small):
    _, noises, *_ = small
    for noise in noises.values():
        graph = starting_graph(noise, torch.full((4000,), 6), seeded())
        m_X, m_E = noise.limit()
        pairs = torch.ones(6, 6).triu(1).bool()
        # 24,000 atoms and 60,000 pairs: standard errors below 0.0033.
        assert (graph.X.mean((0, 1)) - m_X).abs().max() < 0.014
        assert (graph.E[:, pairs].mean((0, 1)) - m_E).abs().max() < 0.014
    small_ones = starting_graph(noise, torch.tensor([1, 3]), seeded())
    assert small_ones.mask.tolist() == [[True] + [False] * 5, [True] * 3 + [False] * 3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [None, 1, 5])
def test_a_certain_model_leads_to_its_graph(small, kind, steps):
    clean, noises, _, y = small
    many = Graphs(*(part.repeat(20, *[1] * (part.ndim - 1)) for part in clean))
    noise = GraphNoise(noises[kind].statistics, 80, kind)
    walk = sample(
        Oracle(many),
        noise,
        many.mask.sum(1),
        y.repeat(20, 1),
        guidance=1.0,
        steps=steps,
        generator=seeded(),
    )
    ours, theirs = to_codes(walk), to_codes(many)
    # At t = 0 a share of 0.9991 survives; in kind "graph" up to six slots of a row outvote it.
    same = (ours.atoms == theirs.atoms).all(1) & (ours.bonds == theirs.bonds).all((1, 2))
    assert same.float().mean() > (0.88 if kind == "graph" else 0.94)


def test_the_same_generator_gives_the_same_graphs(small):
    _, noises, model, y = small
    sizes = torch.tensor([6, 5, 1, 3, 2, 6])
    one, two, three = (
        sample(model, noises["graph"], sizes, y, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.X, two.X) and torch.equal(one.E, two.E)
    assert not torch.equal(one.E, three.E)
    assert one.mask.sum(1).tolist() == sizes.tolist()


def test_watching_and_the_models_mode(small):
    _, noises, model, y = small
    seen = []
    model.train()
    final = sample(
        model,
        noises["independent"],
        torch.full((6,), 4),
        y,
        steps=4,
        watch=lambda t, graph: seen.append((t, graph, model.training)),
        generator=seeded(),
    )
    assert model.training and not any(training for *_, training in seen)
    model.eval()
    assert [t for t, *_ in seen] == [12, 9, 6, 3, 0]
    assert torch.equal(seen[-1][1].E, final.E)
    assert not final.E.requires_grad


@pytest.mark.parametrize("T", [1, 7, 50, 500])
def test_the_visited_times_fall_from_T_to_0(T):
    for steps in range(1, T + 1):
        times = _visited(T, steps)
        strides = [a - b for a, b in itertools.pairwise(times)]
        assert times[0] == T and times[-1] == 0 and len(times) == steps + 1
        assert min(strides) >= 1 and max(strides) - min(strides) <= 1
    assert _visited(T, None) == list(range(T, -1, -1))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sizes": torch.tensor([0, 3])}, r"sizes is \[0, 3\]; expected whole numbers from 1 to 6"),
        ({"sizes": torch.tensor([7, 3])}, r"sizes is \[7, 3\]; expected whole numbers from 1 to 6"),
        ({"sizes": torch.tensor([3])}, "sizes and y have 1 and 2 rows; expected as many"),
        ({"steps": 0}, "steps is 0; expected a whole number from 1 to 12"),
        ({"steps": 13}, "steps is 13; expected a whole number from 1 to 12"),
        ({"steps": 2.5}, "steps is 2.5; expected a whole number from 1 to 12"),
        ({"guidance": math.inf}, "guidance is inf; expected a finite number"),
    ],
)
def test_bad_input_of_sample(small, without_shape_checks, change, sentence):
    _, noises, model, y = small
    arguments = {"sizes": torch.tensor([3, 3]), "y": y[:2], **change}
    with pytest.raises(ValueError, match=sentence):
        sample(model, noises["graph"], **arguments)


def test_a_model_that_gives_nan_is_an_error_and_not_carbon(small):
    clean, noises, _, y = small
    spoiled = Oracle(Graphs(clean.X * torch.nan, clean.E, clean.mask))
    with pytest.raises(ValueError, match="no finite number"):
        sample(spoiled, noises["graph"], clean.mask.sum(1), y, guidance=1.0)


# The bound


class Bayes(nn.Module):
    """The exact probabilities of a lone atom's clean type, given the noisy one."""

    max_atoms = 1

    def __init__(self, noise, trust=1.0):
        super().__init__()
        self.noise, self.trust = noise, trust
        A = len(noise.statistics.atoms)
        each = Graphs(
            torch.eye(A)[:, None], torch.zeros(A, 1, 1, 5), torch.ones(A, 1, dtype=torch.bool)
        )
        times = range(noise.steps + 1)
        self.table = torch.stack([noise.q(each, torch.full((A,), t))[0][:, 0] for t in times])

    def forward(self, X, E, mask, time, y):
        t = (time * self.noise.steps).round().long()
        likely = (self.table[t] * X).sum(-1)
        return (self.noise.statistics.atoms * likely**self.trust).log()[:, None], torch.zeros_like(
            E
        )


@pytest.mark.parametrize("kind", ["independent", "corrected"])
def test_the_bound_is_tight_for_the_best_model_and_above_it_for_a_worse_one(kind):
    types = torch.arange(4).repeat_interleave(torch.tensor([1000, 500, 250, 250]))[:, None]
    vocabulary = Vocabulary(("C", "N", "O", "F"), 1)
    codes = Codes(types, torch.zeros(2000, 1, 1, dtype=torch.long))
    noise = GraphNoise(graph_statistics(codes, vocabulary), 12, kind)
    graph, nobody = one_hot(codes, vocabulary), torch.full((2000, 1), torch.nan)
    shares = noise.statistics.atoms
    entropy = -(shares * shares.log()).sum()

    def total(trust):
        model = Bayes(noise, trust)
        return likelihood_bound(model, noise, graph, nobody, seeded(), every_step=True).total

    U = total(1.0)
    error = (U.std() / len(U) ** 0.5).item()
    assert abs(U.mean() - entropy) < 3 * error
    for trust in (0.5, 0.0):
        assert total(trust).mean() > entropy + 5 * error


def test_a_certain_model_pays_nothing_but_start_and_size(small):
    clean, noises, _, y = small
    for kind in ("independent", "corrected"):
        bound = likelihood_bound(Oracle(clean), noises[kind], clean, y, seeded(), every_step=True)
        assert bound.steps.abs().max() < 1e-3  # 12 sums of some forty float32 terms near 0
        assert bound.clean.abs().max() < 1e-3
        close(bound.size, -noises[kind].statistics.sizes[clean.mask.sum(1)].log(), 1e-6)
    assert isinstance(bound, Bound)
    close(bound.total, bound.size + bound.start + bound.steps + bound.clean, 1e-6)


def test_only_independent_noise_ends_at_the_limit(small):
    clean, noises, model, y = small
    start = {kind: likelihood_bound(model, noise, clean, y).start for kind, noise in noises.items()}
    assert start["independent"].abs().max() < 1e-5
    real = clean.mask.sum(1) > 1
    assert start["graph"][real].min() > 0.05


def test_one_random_time_has_the_mean_of_all(small):
    clean, noises, model, y = small
    noise = noises["independent"]
    whole = [likelihood_bound(model, noise, clean, y, seeded(k), every_step=True) for k in range(8)]
    one = [likelihood_bound(model, noise, clean, y, seeded(k)) for k in range(120)]
    a = torch.stack([bound.steps for bound in whole]).mean(0)
    all_of_one = torch.stack([bound.steps for bound in one])
    error = all_of_one.std(0) / len(one) ** 0.5
    # Five standard errors of the estimate from single times; that of the sums is smaller.
    assert ((all_of_one.mean(0) - a).abs() < 5 * error + 1e-3).all()


def test_the_bound_of_a_size_that_never_occurs_is_infinite(small):
    clean, noises, model, y = small
    four = Graphs(clean.X[4:5], clean.E[4:5], torch.arange(6)[None] < 4)
    real = four.mask[:, :, None] & four.mask[:, None]
    four = Graphs(four.X * four.mask[..., None], four.E * real[..., None], four.mask)
    assert likelihood_bound(model, noises["independent"], four, y[:1]).size.isinf().all()


def test_bad_input_of_the_bound(small, without_shape_checks):
    clean, noises, model, y = small
    with pytest.raises(ValueError, match="graph and y have 6 and 2 rows; expected as many"):
        likelihood_bound(model, noises["graph"], clean, y[:2])
