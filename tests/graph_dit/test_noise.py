"""Noise on graphs against the official numbers, the matrix form, and what noise must satisfy."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from official_graph_dit import (
    clean_graphs,
    information,
    noised_graphs,
    off,
    official_codes,
    official_state_dict,
    official_statistics,
    reference,
    times,
)

from fourfold.graph_dit.graphs import BONDS, Codes, Graphs, Vocabulary, graph_tokens
from fourfold.graph_dit.noise import (
    KINDS,
    GraphNoise,
    GraphStatistics,
    OwnLimit,
    RowLimit,
    _normalised,
    _pairs,
    co_occurrences,
    cosine_schedule,
    graph_statistics,
    limit_matrix,
)

OFFICIAL = 1e-5  # times max(1, |theirs|): a few sums of fifty float32 products, and exp(Σ log)
MATRIX = 1e-6  # probabilities in float32, from sums of up to three hundred products
EXACT = 1e-12  # the same in float64

K = len(BONDS)


# What the tests are about


def generator(seed):
    return torch.Generator().manual_seed(seed)


def some_statistics(A=4, N=6, seed=0, dtype=torch.float32):
    random = generator(seed)
    pairs = torch.rand(A, A, K, generator=random, dtype=torch.float64) + 0.05
    pairs = pairs + pairs.transpose(0, 1)
    bonds = pairs.sum(dim=(0, 1))
    atoms = pairs.sum(dim=(1, 2))
    sizes = torch.full((N + 1,), 1 / (N + 1), dtype=torch.float64)
    given = co_occurrences(pairs)
    parts = (atoms / atoms.sum(), bonds / bonds.sum(), *given, pairs.sum(dim=1), sizes)
    return GraphStatistics(*(part.to(dtype) for part in parts))


def some_graphs(sizes, N, A=4, seed=0, diagonal=False, dtype=torch.float32):
    """Random one-hot graphs of these sizes; a noised one has its diagonal in class 0."""
    random = generator(seed)
    mask = torch.arange(N) < torch.tensor(sizes)[:, None]
    X = F.one_hot(torch.randint(A, mask.shape, generator=random), A).to(dtype) * mask[..., None]
    bonds = torch.randint(K, (len(sizes), N, N), generator=random).triu(1)
    E = F.one_hot(bonds + bonds.transpose(1, 2), K).to(dtype)
    real = (mask[:, :, None] & mask[:, None, :]) if diagonal else _pairs(mask)
    return Graphs(X, E * real[..., None], mask)


def some_guess(graph, seed=0):
    random = generator(seed)
    shapes = (graph.X.shape, graph.E.shape)
    return [torch.randn(s, generator=random).to(graph.X).softmax(-1) for s in shapes]


def at(graph, t):
    return torch.full((len(graph.X),), t)


def transition(kept, u):
    return kept * torch.eye(len(u), dtype=u.dtype) + (1 - kept) * u


def split(rows, mask):
    N = mask.shape[1]
    A = rows.shape[-1] - K * N
    return _normalised(rows[..., :A], rows[..., A:].unflatten(-1, (N, K)), mask)


def q_by_matrix(noise, graph, t):
    u = noise._limit_matrix().to(graph.X)
    rows = [
        x @ transition(noise.alpha_bar[each].to(graph.X), u)
        for x, each in zip(graph_tokens(graph), t, strict=True)
    ]
    return split(torch.stack(rows), graph.mask)


def reverse_by_table(noise, graph, pX0, pE0, s, t):
    """The posterior of each row as a sum over a table of all clean entries (equation 4)."""
    u, alpha_bar, out = noise._limit_matrix().to(graph.X), noise.alpha_bar.to(graph.X), []
    guesses = graph_tokens(Graphs(pX0, pE0, graph.mask))
    for x, guess, at_s, at_t in zip(graph_tokens(graph), guesses, s, t, strict=True):
        kept_s, kept_t = alpha_bar[at_s], alpha_bar[at_t]
        likely = x @ transition(kept_t / kept_s, u).T
        chance = x @ transition(kept_t, u).T
        chance = torch.where(chance == 0, 1, chance)
        table = likely[:, None] * transition(kept_s, u) / chance[..., None]
        out.append((guess[..., None] * table).sum(dim=1))
    return split(torch.stack(out), graph.mask)


def farthest(first, second):
    return max(off(a, b) for a, b in zip(first, second, strict=True))


def normal(p, mask):
    """Distributions everywhere, uniform where there is no atom or the pair is none."""
    for part, real in zip(p, (mask, _pairs(mask)), strict=True):
        assert torch.isfinite(part).all() and (part >= 0).all()
        # Five to eight float32 numbers that sum to 1.
        assert torch.allclose(part.sum(-1), torch.ones_like(part[..., 0]), atol=1e-6)
        uniform = torch.full_like(part[~real], 1 / part.shape[-1])
        assert torch.allclose(part[~real], uniform, atol=1e-6)
    return True


def permuted(graph, order):
    return Graphs(graph.X[:, order], graph.E[:, order][:, :, order], graph.mask[:, order])


# The official numbers


@pytest.fixture(scope="module")
def official():
    return GraphNoise(official_statistics(), 50)


def test_official_statistics():
    codes, vocabulary = official_codes()
    ours = graph_statistics(codes, vocabulary, released=True)
    theirs = official_statistics()
    for name in ("atoms", "bonds", "bond_given_atom", "atom_given_bond"):
        assert off(getattr(ours, name), getattr(theirs, name)) <= OFFICIAL, name
    bonds = torch.tensor(information("meta")["bond_type_dist"])
    assert off(ours.bonds, bonds) <= OFFICIAL
    whole = graph_statistics(codes, vocabulary)
    assert off(whole.bonds, bonds) > 0.05, "the release counts `*` in bonds and not in atoms"
    assert whole.sizes.argmax() != ours.sizes.argmax() or off(whole.sizes, ours.sizes) > 0.01


@pytest.mark.parametrize("steps", [50, 500])
def test_official_schedules(steps):
    beta, alpha_bar = cosine_schedule(steps)
    theirs = reference("noise")
    assert off(beta, theirs[f"betas_T{steps}"]) <= OFFICIAL
    assert off(1 - beta, theirs[f"alphas_T{steps}"]) <= OFFICIAL
    assert off(alpha_bar, theirs[f"alphas_bar_T{steps}"]) <= OFFICIAL


def test_official_matrices(official):
    theirs, t = reference("noise"), int(times()[1])
    four = official_statistics()[:4]
    assert torch.equal(limit_matrix(*four, 9), theirs["u"])
    assert off(official.matrix(t), theirs["Qtb_1"]) <= OFFICIAL
    assert off(official.matrix(t - 1), theirs["Qsb_1"]) <= OFFICIAL
    assert off(official.matrix(t, t - 1), theirs["Qt_1"]) <= OFFICIAL
    assert off(official.alpha_bar[times()], theirs["alpha_t_bar"][:, 0]) <= OFFICIAL
    assert off(official.alpha_bar[times() - 1], theirs["alpha_s_bar"][:, 0]) <= OFFICIAL
    assert off(official.beta[times()], theirs["beta_t"][:, 0]) <= OFFICIAL


def test_official_q(official):
    theirs, clean = reference("noise"), clean_graphs()
    ours = official.q(clean, times())
    assert normal(ours, clean.mask)
    assert off(ours[0], theirs["q_X"]) <= OFFICIAL
    assert off(ours[1], theirs["q_E"]) <= OFFICIAL


def test_official_q_before_it_is_normalised(official):
    theirs, clean = reference("noise"), clean_graphs()
    limit, kept = RowLimit(*official_statistics()[:4]), official.alpha_bar[times()]
    for part, mixed, raw in zip(
        clean[:2],
        limit.times(clean.X, clean.E),
        (theirs["q_unnorm_X"], theirs["q_unnorm_E"]),
        strict=True,
    ):
        share = kept.view(-1, *[1] * (part.ndim - 1))
        real = clean.mask if part.ndim == 3 else _pairs(clean.mask)
        assert off((share * part + (1 - share) * mixed)[real], raw[real]) <= OFFICIAL


def official_reverse(official, given):
    """Reverse probabilities for the logits that the official denoiser gave."""
    theirs = reference("denoiser")
    guess = (theirs[f"reg_{given}_{part}"].softmax(-1) for part in "XE")
    return official.reverse(noised_graphs(), *guess, times() - 1, times())


@pytest.mark.parametrize(("given", "name"), [("cond", "ps_cond"), ("uncond", "ps_unc")])
def test_official_reverse(official, given, name):
    ours, mask = official_reverse(official, given), noised_graphs().mask
    assert normal(ours, mask)
    for part, values, real in zip("XE", ours, (mask, _pairs(mask)), strict=True):
        assert off(values[real], reference("noise")[f"{name}_{part}"][real]) <= OFFICIAL


def test_official_guided_reverse(official):
    from fourfold.graph_dit.diffusion import guide

    mask = noised_graphs().mask
    both = zip(*(official_reverse(official, given) for given in ("cond", "uncond")), strict=True)
    for part, (p, q), real in zip("XE", both, (mask, _pairs(mask)), strict=True):
        guided = reference("noise")[f"ps_guid_{part}"]
        assert off(guide(p, q, 2.0)[real], guided[real]) <= OFFICIAL


def row_posterior(official, clean):
    """p(x_s | x_t, x_0) of whole rows, for atoms: the terms of the release's likelihood bound."""
    now, limit = noised_graphs(), RowLimit(*official_statistics()[:4])
    kept_s, kept_t = (official.alpha_bar[t].view(-1, 1, 1) for t in (times() - 1, times()))
    likely = torch.lerp(limit.back(now.X, now.E)[0], now.X, kept_t / kept_s)
    before = torch.lerp(limit.times(*clean)[0], clean[0], kept_s)
    p = likely * before
    return p / p.sum(-1, keepdim=True)


def test_official_posterior_of_whole_rows(official):
    theirs, clean = reference("noise"), clean_graphs()
    ours = row_posterior(official, clean[:2])
    assert off(ours[clean.mask], theirs["post_true_X"][clean.mask]) <= OFFICIAL


def test_official_state_dict_has_the_release_s_names():
    state = official_state_dict("reg")
    assert tuple(state["x_embedder.weight"].shape) == (64, 8 + 5 * 9)
    assert state["encoders.0.attn.q_norm.weight"].mean().item() == pytest.approx(1, abs=0.1)


# The matrix form


@pytest.mark.parametrize("kind", ["graph", "independent"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("sizes", "N", "A"), [([1], 1, 3), ([2, 3, 3], 3, 2), ([6, 1, 4], 6, 4), ([20, 11], 20, 9)]
)
def test_factored_is_matrix(kind, dtype, sizes, N, A):
    statistics = some_statistics(A, N, dtype=dtype)
    noise = GraphNoise(statistics, 100, kind)
    limit = MATRIX if dtype == torch.float32 else EXACT
    for seed, (s, t) in enumerate([(0, 1), (49, 50), (99, 100), (3, 77)]):
        clean = some_graphs(sizes, N, A, seed, dtype=dtype)
        noisy = some_graphs(sizes, N, A, seed + 9, diagonal=True, dtype=dtype)
        guess = some_guess(clean, seed)
        assert (
            farthest(noise.q(clean, at(clean, t)), q_by_matrix(noise, clean, at(clean, t))) < limit
        )
        ours = noise.reverse(noisy, *guess, at(clean, s), at(clean, t))
        theirs = reverse_by_table(noise, noisy, *guess, at(clean, s), at(clean, t))
        assert ours[0].dtype == dtype and farthest(ours, theirs) < limit, (s, t)


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    kind=st.sampled_from(["graph", "independent"]),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_factored_is_matrix_for_any_times(sizes, kind, seed, data):
    noise = GraphNoise(some_statistics(3, 5, seed), 20, kind)
    t = torch.tensor([data.draw(st.integers(1, 20)) for _ in sizes])
    s = torch.tensor([data.draw(st.integers(0, int(each) - 1)) for each in t])
    noisy = some_graphs(sizes, 5, 3, seed, diagonal=True)
    guess = some_guess(noisy, seed)
    ours = noise.reverse(noisy, *guess, s, t)
    assert normal(ours, noisy.mask)
    assert farthest(ours, reverse_by_table(noise, noisy, *guess, s, t)) < MATRIX


def test_a_product_with_u_is_that_of_its_blocks():
    four = some_statistics(4, 6, dtype=torch.float64)[:4]
    u, rows = limit_matrix(*four, 6), some_guess(some_graphs([6, 6], 6, dtype=torch.float64))
    tokens = graph_tokens(Graphs(*rows, torch.ones(2, 6, dtype=torch.bool)))
    for product, matrix in ((RowLimit(*four).times, u), (RowLimit(*four).back, u.T)):
        X, E = product(*rows)
        assert E.shape == (2, 6, 1, K)
        both = torch.cat([X, E.expand(2, 6, 6, K).flatten(2)], dim=-1)
        assert torch.allclose(both, tokens @ matrix, rtol=1e-12)


def test_own_limit_is_one_m():
    statistics = some_statistics(4, 3, dtype=torch.float64)
    X, E = some_guess(some_graphs([3], 3, dtype=torch.float64))
    limit = OwnLimit(*statistics[:2])
    for part, ours, back, m in zip(
        (X, E), limit.times(X, E), limit.back(X, E), statistics[:2], strict=True
    ):
        one_m = m.expand(len(m), len(m))
        assert torch.allclose(ours, part @ one_m, rtol=1e-12)
        assert torch.allclose(back.expand_as(part), part @ one_m.T, rtol=1e-12)


# What a noise must satisfy


@pytest.mark.parametrize("kind", KINDS)
def test_distributions_are_normal_at_all_times(kind):
    noise = GraphNoise(some_statistics(), 30, kind)
    clean = some_graphs([0, 1, 2, 6], 6)
    for t in range(31):
        assert normal(noise.q(clean, at(clean, t)), clean.mask)
    noisy = some_graphs([0, 1, 2, 6], 6, seed=1, diagonal=True)
    for s, t in itertools.pairwise(range(31)):
        p = noise.reverse(noisy, *some_guess(noisy, t), at(noisy, s), at(noisy, t))
        assert normal(p, noisy.mask)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[1], [0], [0, 1]])
def test_one_atom_or_none(kind, sizes):
    noise = GraphNoise(some_statistics(4, 1), 10, kind)
    graph = some_graphs(sizes, 1)
    assert normal(noise.q(graph, at(graph, 10)), graph.mask)
    p = noise.reverse(graph, *some_guess(graph), at(graph, 0), at(graph, 10))
    assert normal(p, graph.mask)
    lone = noise.q(graph, at(graph, 10))[0][graph.mask]
    assert torch.allclose(lone, noise.limit()[0].expand_as(lone), atol=1e-6), "κ of one atom is ᾱ"


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(kind):
    noise = GraphNoise(some_statistics(), 10, kind)
    none, t = Graphs(*(part[:0] for part in some_graphs([2], 6))), torch.zeros(0, dtype=torch.long)
    assert noise.q(none, t)[0].shape == (0, 6, 4)
    assert noise.reverse(none, none.X, none.E, t, t)[1].shape == (0, 6, 6, K)


@pytest.mark.parametrize("kind", KINDS)
def test_renumbering_the_atoms_renumbers_the_distributions(kind):
    noise = GraphNoise(some_statistics(dtype=torch.float64), 30, kind)
    clean = some_graphs([6, 4], 6, dtype=torch.float64)
    noisy = some_graphs([6, 4], 6, seed=1, diagonal=True, dtype=torch.float64)
    order, guess = torch.randperm(6, generator=generator(0)), some_guess(clean)
    pX, pE = noise.q(clean, at(clean, 15))
    moved = noise.q(permuted(clean, order), at(clean, 15))
    assert farthest(moved, permuted(Graphs(pX, pE, clean.mask), order)[:2]) < EXACT
    s, t = at(clean, 10), at(clean, 15)
    pX, pE = noise.reverse(noisy, *guess, s, t)
    turned = permuted(Graphs(*guess, clean.mask), order)
    moved = noise.reverse(permuted(noisy, order), turned.X, turned.E, s, t)
    assert farthest(moved, permuted(Graphs(pX, pE, clean.mask), order)[:2]) < EXACT


@pytest.mark.parametrize(
    ("kind", "alike"), [("graph", False), ("independent", True), ("corrected", True)]
)
def test_whether_both_slots_of_a_pair_agree(kind, alike):
    noise, clean = GraphNoise(some_statistics(), 30, kind), some_graphs([6, 5], 6)
    pE = noise.q(clean, at(clean, 15))[1]
    assert torch.allclose(pE, pE.transpose(1, 2), atol=1e-6) == alike


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_graphs_one_by_one(kind):
    noise, clean = GraphNoise(some_statistics(), 30, kind), some_graphs([6, 1, 4], 6)
    t, guess = torch.tensor([3, 30, 17]), some_guess(clean)
    s = torch.tensor([0, 29, 2])
    whole = (*noise.q(clean, t), *noise.reverse(clean, *guess, s, t))
    for b in range(3):
        one = Graphs(*(part[b : b + 1] for part in clean))
        alone = [part[b : b + 1] for part in guess]
        single = (
            *noise.q(one, t[b : b + 1]),
            *noise.reverse(one, *alone, s[b : b + 1], t[b : b + 1]),
        )
        assert farthest(single, [part[b : b + 1] for part in whole]) < MATRIX


@pytest.mark.parametrize("kind", ["independent", "corrected"])
def test_padding_does_not_matter(kind):
    small, large = GraphNoise(some_statistics(), 30, kind), some_graphs([4, 2], 9, diagonal=True)
    cut = Graphs(large.X[:, :4], large.E[:, :4, :4], large.mask[:, :4])
    guess = some_guess(large)
    inner = (guess[0][:, :4], guess[1][:, :4, :4])
    s, t = at(large, 9), at(large, 10)
    pX, pE = small.reverse(large, *guess, s, t)
    assert farthest((pX[:, :4], pE[:, :4, :4]), small.reverse(cut, *inner, s, t)) < MATRIX


def test_padding_matters_in_the_paper_s_noise():
    """The release sums over the slots of missing atoms; parity needs the same."""
    noise, large = GraphNoise(some_statistics(), 30), some_graphs([4, 2], 9, diagonal=True)
    cut = Graphs(large.X[:, :4], large.E[:, :4, :4], large.mask[:, :4])
    guess = some_guess(large)
    s, t = at(large, 9), at(large, 10)
    pX, _ = noise.reverse(large, *guess, s, t)
    inner = noise.reverse(cut, guess[0][:, :4], guess[1][:, :4, :4], s, t)[0]
    assert (pX[:, :4] - inner)[cut.mask].abs().max() > 1e-3


# Steps, products, and Bayes' rule


def own_matrices(noise, clean, t, s=None):
    """The transition matrices of each atom and slot towards the limit of its clean graph."""
    kept = noise.alpha_bar[t].double() / (1 if s is None else noise.alpha_bar[s].double())
    out = []
    for m in noise._limit_for(clean):
        m = m.double()
        eye = torch.eye(m.shape[-1], dtype=torch.float64)
        out.append(kept * eye + (1 - kept) * m[..., None, :].expand(*m.shape, m.shape[-1]))
    return out


@pytest.mark.parametrize("kind", ["independent", "corrected"])
def test_steps_multiply_to_the_whole(kind):
    noise, clean = (
        GraphNoise(some_statistics(dtype=torch.float64), 30, kind),
        some_graphs([6, 3], 6),
    )
    clean = clean._replace(X=clean.X.double(), E=clean.E.double())
    # The independent limit is one for all atoms, which has no place for a missing one.
    real = (clean.mask, _pairs(clean.mask)) if kind == "corrected" else (..., ...)
    for s, t in ((0, 1), (4, 17), (10, 30)):
        first, second, whole = (own_matrices(noise, clean, *each) for each in ((s,), (t, s), (t,)))
        for a, b, both, where in zip(first, second, whole, real, strict=True):
            assert torch.allclose((a @ b)[where], both[where], rtol=0, atol=EXACT)
    X, E = own_matrices(noise, clean, 17)
    pX, pE = noise.q(clean, at(clean, 17))
    mixed = (clean.X[..., None, :] @ X)[..., 0, :], (clean.E[..., None, :] @ E)[..., 0, :]
    # `alpha_bar` is float32, and `q` adds 1e-12 before it divides.
    for ours, theirs, real in zip(mixed, (pX, pE), (clean.mask, _pairs(clean.mask)), strict=True):
        assert torch.allclose(ours[real], theirs[real], rtol=0, atol=1e-10)


def test_steps_multiply_for_the_matrix_of_independent_noise_and_not_for_the_paper_s():
    for kind, same in (("independent", True), ("graph", False)):
        noise = GraphNoise(some_statistics(), 30, kind)
        product = noise.matrix(10) @ noise.matrix(20, 10)
        assert torch.allclose(product, noise.matrix(20), atol=1e-6) == same
        assert (
            torch.allclose(noise.matrix(0) @ noise.matrix(20, 0), noise.matrix(20), atol=1e-6)
            == same
        )


def test_rows_of_u_sum_to_one_more_than_the_slots():
    u = limit_matrix(*some_statistics(4, 6)[:4], 6)
    assert torch.allclose(u.sum(dim=1), torch.full((len(u),), 7.0), atol=1e-5)


@pytest.mark.parametrize("kind", ["independent", "corrected"])
@pytest.mark.parametrize(("s", "t"), [(14, 15), (3, 15), (0, 30)])
def test_reverse_is_the_posterior(kind, s, t):
    """Summed over all states that an atom or bond may have at t, it gives q at s again."""
    noise, clean = GraphNoise(some_statistics(dtype=torch.float64), 30, kind), some_graphs([5], 5)
    clean = clean._replace(X=clean.X.double(), E=clean.E.double())
    pX, pE = noise.q(clean, at(clean, t))
    total_X, total_E = torch.zeros_like(pX), torch.zeros_like(pE)
    for state in range(K):
        atom = min(state, 3)
        X, E = torch.zeros_like(clean.X), torch.zeros_like(clean.E)
        X[..., atom], E[..., state] = 1, 1
        back = noise.reverse(Graphs(X, E, clean.mask), clean.X, clean.E, at(clean, s), at(clean, t))
        total_E += pE[..., state, None] * back[1]
        if state < 4:
            total_X += pX[..., atom, None] * back[0]
    before = noise.q(clean, at(clean, s))
    pair = _pairs(clean.mask)
    # 1e-12 is added to each probability before it is divided by their sum.
    assert torch.allclose(total_X, before[0], atol=1e-9)
    assert torch.allclose(total_E[pair], before[1][pair], atol=1e-9)


@given(n=st.integers(1, 9), t=st.integers(0, 30), seed=st.integers(0, 99))
def test_kept_share(n, t, seed):
    """What equation 9 says of a clean graph of n atoms is what `q` does."""
    statistics = some_statistics(4, 9, seed, torch.float64)
    noise = GraphNoise(statistics, 30)
    clean = some_graphs([n], 9, seed=seed, dtype=torch.float64)
    kept = noise.kept_share(at(clean, t), torch.tensor([n])).item()
    drawn = (statistics.atoms + clean.E.sum(dim=2) @ statistics.atom_given_bond) / n
    expected = kept * clean.X + (1 - kept) * drawn
    # κ is computed in float32.
    assert torch.allclose(
        noise.q(clean, at(clean, t))[0][clean.mask], expected[clean.mask], atol=1e-6
    )
    for kind in ("independent", "corrected"):
        other = GraphNoise(statistics, 30, kind)
        assert torch.equal(
            other.kept_share(at(clean, t), torch.tensor([n])), other.alpha_bar[t : t + 1]
        )


def test_no_share_is_independent_noise():
    statistics, clean = some_statistics(), some_graphs([6, 1, 3], 6)
    none = GraphNoise(statistics, 30, "corrected", share=0)
    apart = GraphNoise(statistics, 30, "independent")
    guess, s, t = some_guess(clean), at(clean, 9), at(clean, 15)
    assert farthest(none.q(clean, t), apart.q(clean, t)) < MATRIX
    both = (each.reverse(clean, *guess, s, t) for each in (none, apart))
    assert farthest(*both) < MATRIX


def test_the_corrected_limit_stays_at_the_marginal_on_average():
    codes, vocabulary = official_codes()
    from fourfold.graph_dit.graphs import one_hot

    graphs, statistics = one_hot(codes, vocabulary), graph_statistics(codes, vocabulary)
    distance = {}
    for kind in KINDS:
        noise = GraphNoise(statistics, 50, kind, share=1.0)
        ends = noise.q(graphs, at(graphs, 50))[0][graphs.mask].mean(dim=0)
        distance[kind] = (ends - statistics.atoms).abs().sum().item() / 2
    assert distance["independent"] < 1e-6
    # Sizes differ, so that the mean over atoms is not the mean over pairs.
    assert distance["corrected"] < 0.1 < 0.3 < distance["graph"]


def test_corrected_asks_the_neighbours():
    statistics, noise = some_statistics(2, 3), None
    counts = torch.zeros(2, K)
    counts[0, 0], counts[1, 1] = 10, 10  # atom 0 goes with no bond, atom 1 with a single one
    statistics = statistics._replace(counts=counts)
    noise = GraphNoise(statistics, 10, "corrected", share=1.0)
    graph = some_graphs([3], 3, 2)
    X = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    E = F.one_hot(torch.tensor([[[0, 0, 1], [0, 0, 1], [1, 1, 0]]]), K).float()
    graph = Graphs(X, E * _pairs(graph.mask)[..., None], graph.mask)
    pX, pE = noise.q(graph, at(graph, 10))
    assert torch.allclose(pX[0], torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]]), atol=1e-6)
    assert pE[0, 1, 2].tolist() == pytest.approx([0, 1, 0, 0, 0], abs=1e-6)
    assert pE[0, 0, 1].tolist() == pytest.approx([0.5, 0.5, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_guess(kind):
    noise, graph = GraphNoise(some_statistics(), 30, kind), some_graphs([6, 2], 6, diagonal=True)
    guess = [part.requires_grad_() for part in some_guess(graph)]
    pX, pE = noise.reverse(graph, *guess, at(graph, 9), at(graph, 10))
    (pX[..., 0].sum() + pE[..., 0].sum()).backward()
    assert all(torch.isfinite(part.grad).all() and part.grad.abs().sum() > 0 for part in guess)


def test_nothing_is_changed_in_place():
    noise, graph = GraphNoise(some_statistics(), 30), some_graphs([6, 2], 6, diagonal=True)
    guess = some_guess(graph)
    before = [part.clone() for part in (*graph, *guess)]
    noise.q(graph, at(graph, 9))
    noise.reverse(graph, *guess, at(graph, 9), at(graph, 10))
    assert all(torch.equal(a, b) for a, b in zip(before, (*graph, *guess), strict=True))


# Statistics and schedule


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    A=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_statistics_are_those_of_a_loop(sizes, A, seed):
    graph = some_graphs(sizes, 5, A, seed)
    atoms = torch.where(graph.mask, graph.X.argmax(-1), -1)
    bonds = graph.E.argmax(-1)
    pairs = torch.zeros(A, A, K, dtype=torch.float64)
    for b, n in enumerate(sizes):
        for i, j in itertools.permutations(range(n), 2):
            pairs[atoms[b, i], atoms[b, j], bonds[b, i, j]] += 1
    codes = Codes(atoms.to(torch.int8), bonds.to(torch.int8))
    ours = graph_statistics(codes, Vocabulary(tuple("CNOF"[:A]), 5))
    assert torch.equal(ours.counts, pairs.sum(dim=1).float())
    assert off(ours.bonds, (pairs.sum(dim=(0, 1)) / pairs.sum().clamp(min=1)).float()) < 1e-6
    assert off(ours.atoms, graph.X.sum(dim=(0, 1)) / sum(sizes)) < 1e-6
    assert off(ours.sizes, torch.bincount(torch.tensor(sizes), minlength=6) / len(sizes)) < 1e-6


def test_many_molecules_are_counted_in_parts():
    codes, vocabulary = official_codes()
    many = Codes(codes.atoms.repeat(50, 1), codes.bonds.repeat(50, 1, 1))
    once, often = graph_statistics(codes, vocabulary), graph_statistics(many, vocabulary)
    assert torch.equal(often.counts, 50 * once.counts)
    assert all(off(a, b) < 1e-6 for a, b in zip(once[:4], often[:4], strict=True))


def test_conditionals_are_distributions():
    statistics = graph_statistics(*official_codes())
    for table in (statistics.bond_given_atom, statistics.atom_given_bond):
        assert torch.allclose(table.sum(dim=1), torch.ones(len(table)), atol=1e-6)


@given(steps=st.integers(1, 1000))
def test_schedule(steps):
    beta, alpha_bar = cosine_schedule(steps)
    assert beta.shape == alpha_bar.shape == (steps + 1,)
    assert (beta > 0).all() and beta[-1] == 1 and alpha_bar[-1] == 0
    assert (alpha_bar.diff() < 0).all() and (beta.diff() > 0).all()
    f = [math.cos(math.pi / 2 * (t / (steps + 1) + 0.008) / 1.008) ** 2 for t in (0, steps)]
    # A quotient of cosines and a product of up to a thousand factors, rounded to float32.
    assert alpha_bar[steps - 1].item() == pytest.approx(f[1] / f[0], rel=1e-5)


# What it says to bad input


def test_errors(without_shape_checks):
    statistics, graph = some_statistics(), some_graphs([6, 2], 6)
    noise = GraphNoise(statistics, 30)
    with pytest.raises(ValueError, match=r"kind is 'other'; expected one of graph, independent"):
        GraphNoise(statistics, kind="other")
    with pytest.raises(ValueError, match=r"share is 2; expected a number from 0 to 1"):
        GraphNoise(statistics, kind="corrected", share=2)
    with pytest.raises(ValueError, match=r"steps is 0; expected a whole number, 1 or more"):
        GraphNoise(statistics, steps=0)
    for bad in ([0.5, 0.1], [-1, 3], [3, 31], [3], [[1], [2]]):
        with pytest.raises(ValueError, match=r"t is .*; expected 2 whole numbers from 0 to 30"):
            noise.q(graph, torch.tensor(bad))
    for s, t in ((3, 3), (4, 3)):
        with pytest.raises(ValueError, match=r"s is \[.*\] and t is .*; expected each s below"):
            noise.reverse(graph, graph.X, graph.E, at(graph, s), at(graph, t))
    with pytest.raises(ValueError, match=r"s is .*; expected 2 whole numbers"):
        noise.reverse(graph, graph.X, graph.E, at(graph, -1), at(graph, 1))
    other = some_graphs([6, 2], 6, A=3)
    with pytest.raises(ValueError, match=r"graph has X \(2, 6, 3\).*expected floats of 4 atom"):
        noise.q(other, at(other, 1))
    with pytest.raises(ValueError, match=r"of torch.int64 .*expected floats"):
        noise.q(graph._replace(X=graph.X.long()), at(graph, 1))
    with pytest.raises(ValueError, match=r"kind is 'corrected'; expected 'graph' or 'independent'"):
        GraphNoise(statistics, 30, "corrected").matrix(3)
    with pytest.raises(ValueError, match=r"t is 31; expected a whole number from 0 to 30"):
        noise.matrix(31)
    with pytest.raises(ValueError, match=r"s is 5; expected a whole number from 0 to 4"):
        noise.matrix(5, 5)


def test_errors_of_statistics():
    codes, vocabulary = official_codes()
    with pytest.raises(ValueError, match=r"codes holds no molecule; expected one or more"):
        graph_statistics(Codes(codes.atoms[:0], codes.bonds[:0]), vocabulary)
    with pytest.raises(ValueError, match=r"codes has molecules of up to 12 atoms of 8 types"):
        graph_statistics(codes, Vocabulary(("C", "N"), 12))
    with pytest.raises(ValueError, match=r"expected those of its vocabulary, 9 atoms of 8 types"):
        graph_statistics(codes, Vocabulary(vocabulary.atoms, 9))
