"""Schedules, noise, loss, bound, steps, samples: EDM's official numbers, oracles, symmetries."""

import itertools
import math
import re

import official_edm
import pytest
import torch
from torch import nn

from fourfold.graph_dit.graphs import Graphs
from fourfold.syco.autoencoder import Cloud, MoleculeAutoencoder
from fourfold.syco.diffusion import (
    _OFFICIAL_NAMES,
    EDM,
    ForwardProcess,
    LatentDiffusion,
    _rounding_chance,
    clean_surprise,
    cloud_noise,
    cosine_signal,
    gamma_table,
    polynomial_signal,
    prior_divergence,
    reverse_step,
    sizes_to_mask,
)
from fourfold.syco.lifting import center

REFERENCE = official_edm.outputs()
MASK = REFERENCE["node_mask"][..., 0].bool()


def close(ours, theirs, tolerance=1e-5):
    """1e-5 of the larger of 1 and the official number: float32 in another order of operations."""
    assert ours.shape == theirs.shape
    worst = ((ours.detach() - theirs).abs() / theirs.abs().clamp(min=1)).max().item()
    assert worst <= tolerance, f"off by {worst:.1e}"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def model(configuration="base", **options):
    options = {**official_edm.CONFIGURATIONS[configuration], **options}
    return EDM.from_official(official_edm.state_dict(configuration), **options)


def clean_cloud(edm):
    h = torch.cat([REFERENCE["h_cat"], REFERENCE["h_int"]], dim=-1)
    return edm.normalize(REFERENCE["x"], h)


@pytest.fixture(scope="module")
def small():
    """A model on latent clouds with large weights, so that symmetries have something to break."""
    torch.manual_seed(0)
    edm = EDM(latent=3, width=16, depth=2, steps=20)
    with torch.no_grad():
        for name, parameter in edm.named_parameters():
            if "coordinates" in name:
                parameter.mul_(3)
    mask = sizes_to_mask(torch.tensor([5, 3, 1]), 5)
    return edm.eval(), mask


# The official numbers


@pytest.mark.parametrize(
    ("key", "signal"),
    [
        ("polynomial_2_T1000_p1e-05", polynomial_signal(1000)),
        ("polynomial_2_T500_p1e-05", polynomial_signal(500)),
        ("polynomial_2_T50_p0.0001", polynomial_signal(50, precision=1e-4)),
        ("cosine_T50", cosine_signal(50)),
    ],
)
def test_schedules_are_the_official_ones(key, signal):
    close(gamma_table(signal), official_edm.outputs("edm_schedule")[f"gamma_{key}"])


@pytest.mark.parametrize("configuration", official_edm.CONFIGURATIONS)
def test_guesses_are_the_official_ones(configuration):
    guess = model(configuration).predict_noise(
        REFERENCE[f"{configuration}_zt"],
        REFERENCE["t"][:, 0],
        MASK,
        REFERENCE["context"] if configuration == "ctx" else None,
    )
    # The sines of `sin` lose accuracy in float32, in the release as here.
    tolerance = 1e-4 if configuration == "sin" else 1e-5
    close(guess, REFERENCE[f"{configuration}_eps_pred"], tolerance)


def test_the_loss_and_its_gradients_are_the_official_ones():
    edm = model()
    t = REFERENCE["loss_l2_train_tint"][:, 0] / 50
    loss = edm.loss(clean_cloud(edm), MASK, t, REFERENCE["eps"])
    close(loss, REFERENCE["loss_l2_train"])
    loss.mean().backward()
    ours = dict(edm.egnn.named_parameters())
    for name, norm in official_edm.info()["gradnorm_base_l2"].items():
        for pattern, replacement in _OFFICIAL_NAMES:
            name = re.sub(pattern, replacement, name)
        close(ours[name].grad.norm(), torch.tensor(norm))


def test_the_bound_and_the_prior_are_the_official_ones():
    edm = model()
    clean, t = clean_cloud(edm), REFERENCE["nll_eval_tint"][:, 0] / 50
    close(edm.bound(clean, MASK, t, REFERENCE["eps"], REFERENCE["eps0"]), REFERENCE["nll_eval"])
    alpha, sigma = edm.signal(torch.ones(4))
    prior = prior_divergence(alpha[:, None, None] * clean, sigma, MASK)
    close(prior, REFERENCE["kl_prior"])


def test_a_step_is_the_official_one():
    s, t = (torch.full((4,), float(time)) for time in REFERENCE["step_s_t"])
    z = model().step(REFERENCE["base_zt"], s, t, REFERENCE["eps0"], MASK)
    close(z, REFERENCE["step_zs"])


def released_end(edm, z, noise):
    """The release's last draw: the guess of the clean coordinates plus noise, types of z itself."""
    alpha, sigma = (part[:, None, None] for part in edm.signal(torch.zeros(4)))
    x = edm.clean(z, MASK)[..., :3] + sigma / alpha * noise[..., :3]
    _, h = edm.denormalize(z, MASK)
    return x, h[..., :4], h[..., 4:]


def test_the_end_of_a_walk_is_the_official_one():
    x, types, charges = released_end(model(), REFERENCE["base_zt"], REFERENCE["eps0"])
    close(x, REFERENCE["decode_x"])
    assert torch.equal(types, REFERENCE["decode_cat"])
    assert torch.equal(charges, REFERENCE["decode_int"])


@torch.no_grad()
def test_a_seeded_walk_of_all_steps_is_the_official_one():
    def noise():  # as released: coordinates first, then features
        x, h = torch.randn(4, 7, 3), torch.randn(4, 7, 5)
        return torch.cat([center(x, MASK), h * MASK[..., None]], dim=-1)

    edm = model()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = noise()
        for t in range(50, 0, -1):
            times = (torch.full((4,), each / 50) for each in (t - 1, t))
            z = edm.step(z, *times, noise(), MASK)
        x, types, charges = released_end(edm, z, noise())
    # Random weights blow the cloud up to 1e3 and the charges to 1e5, so errors count against that.
    largest = REFERENCE["sample_x"].abs().max()
    assert (x - REFERENCE["sample_x"]).abs().max() < 1e-5 * largest
    assert torch.equal(types, REFERENCE["sample_cat"])
    assert (charges - REFERENCE["sample_int"]).abs().max() < 1e-5 * charges.abs().max()


def test_the_table_and_the_sizes_come_from_the_checkpoint():
    edm = model("inv2")
    assert (edm.steps, edm.kinds) == (50, (4, 1, 0))
    assert torch.equal(edm.table, official_edm.state_dict("inv2")["gamma.gamma"])
    assert len(edm.egnn.blocks[0].messages) == 2 and edm.egnn.blocks[0].messages[0].gate is None


# Schedules


@pytest.mark.parametrize("signal", [polynomial_signal, cosine_signal])
@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_the_signal_falls_from_nearly_1_to_nearly_0(signal, steps):
    left = signal(steps)
    assert left.shape == (steps + 1,) and left.dtype == torch.float64
    assert left.diff().max() < 0 and 0 < left[-1] <= left[0] < 1
    assert left[0] > (0.99 if steps == 1000 else 0.4)  # few steps begin late, as released


def test_alpha_and_sigma_are_parts_of_one(small):
    alpha, sigma = small[0].signal(torch.linspace(0, 1, 21))
    # float32
    assert torch.allclose(alpha.square() + sigma.square(), torch.ones(21), atol=1e-6)
    assert alpha.diff().max() < 0 < sigma.diff().min()


def test_a_time_between_two_steps_is_read_at_the_nearer(small):
    edm = small[0]
    assert torch.equal(edm.gamma(torch.tensor([0.26, 0.24])), edm.table[[5, 5]])


# Noise


def test_noise_has_no_centre_and_the_variance_of_its_dimensions():
    mask = sizes_to_mask(torch.tensor([4, 2, 1]), 5).repeat(4000, 1)
    noise = cloud_noise(mask, 2, seeded())
    assert noise.shape == (12000, 5, 5) and (noise[~mask] == 0).all()
    assert noise[..., :3].sum(dim=1).abs().max() < 1e-5  # sums of float32
    assert (noise[2::3, :, :3] == 0).all()
    for start, n in enumerate((4, 2)):
        square = noise[start::3, :, :3].square().sum(dim=(1, 2))
        # 4000 draws of a chi-square of d: four standard errors of its mean.
        d = 3 * (n - 1)
        assert abs(square.mean() - d) < 4 * math.sqrt(2 * d / 4000)


def test_noise_looks_the_same_from_all_sides():
    x = cloud_noise(torch.ones(50_000, 3, dtype=torch.bool), 0, seeded())[..., :3].flatten(1)
    projector = torch.kron(torch.eye(3) - 1 / 3, torch.eye(3))
    # 50,000 draws: a covariance has a standard error of 0.0063 at most.
    assert (x.T @ x / len(x) - projector).abs().max() < 0.03


def test_a_seed_gives_the_same_noise(small):
    edm, mask = small
    assert torch.equal(edm.noise(mask, seeded(3)), edm.noise(mask, seeded(3)))
    assert not torch.equal(edm.noise(mask, seeded(3)), edm.noise(mask, seeded(4)))


# Clouds of three kinds of features


def test_scales_are_those_of_the_kinds():
    process = ForwardProcess(2, 1, 2, scales=(2.0, 4.0, 10.0))
    assert process.feature_scales().tolist() == [4, 4, 10, 1, 1]
    z = process.normalize(torch.ones(1, 1, 3), torch.tensor([[[0.0, 1.0, 7.0, 0.3, -0.2]]]))
    assert torch.allclose(z, torch.tensor([[[0.5, 0.5, 0.5, 0, 0.25, 0.7, 0.3, -0.2]]]))


def test_types_and_charges_come_back_through_small_noise():
    process = ForwardProcess(3, 1, 1)
    mask = sizes_to_mask(torch.tensor([4, 2]), 4)
    types = nn.functional.one_hot(torch.randint(3, (2, 4), generator=seeded()), 3)
    charge = torch.randint(1, 10, (2, 4, 1), generator=seeded())
    h = torch.cat([types, charge, torch.ones(2, 4, 1)], dim=-1) * mask[..., None]
    x = center(torch.randn(2, 4, 3, generator=seeded()), mask)
    z = process.normalize(x, h) + 0.01 * process.noise(mask, seeded())
    x_back, h_back = process.denormalize(z, mask)
    assert torch.equal(h_back[..., :4], h[..., :4])
    assert (x_back - x).abs().max() < 0.06 and (h_back[..., 4:] - h[..., 4:]).abs().max() < 0.06


def test_a_chance_of_rounding_is_an_area():
    sigma = torch.tensor(0.3)
    chances = torch.stack([_rounding_chance(torch.tensor(0.2 - k), sigma) for k in range(-9, 10)])
    assert torch.allclose(chances.sum(), torch.tensor(1.0), atol=1e-6)  # float32
    left, right = (0.5 * (1 + math.erf(end / 0.3 / math.sqrt(2))) for end in (-0.3, 0.7))
    assert chances[9].item() == pytest.approx(right - left, abs=1e-6)


def test_a_wrong_type_surprises():
    process = ForwardProcess(2, 1)
    mask = torch.ones(1, 1, dtype=torch.bool)
    clean = process.normalize(torch.zeros(1, 1, 3), torch.tensor([[[1.0, 0.0, 6.0]]]))
    other = process.normalize(torch.zeros(1, 1, 3), torch.tensor([[[0.0, 1.0, 7.0]]]))
    nothing = torch.zeros_like(clean)
    assert clean_surprise(process, clean, clean, nothing, mask).item() == pytest.approx(0, abs=1e-6)
    assert clean_surprise(process, clean, other, nothing, mask).item() > 20


# Forward and back


def test_forward_in_two_steps_is_forward_in_one(small):
    edm = small[0]
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (edm.signal(torch.tensor(t)) for t in (0.3, 0.7))
    added = 1 - (alpha_t / alpha_s) ** 2
    assert torch.isclose((alpha_t / alpha_s * sigma_s) ** 2 + added, sigma_t**2, atol=1e-6)


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.05), (0.45, 0.5), (0.0, 1.0), (0.95, 1.0)])
def test_the_step_is_the_posterior_of_bayes(small, s, t):
    edm, mask = small
    clean, noise = edm.noise(mask, seeded(1)), edm.noise(mask, seeded(2))
    z = edm.diffuse(clean, torch.full((3,), t), noise)
    gammas = (edm.gamma(torch.full((3,), time)) for time in (s, t))
    mean, deviation = reverse_step(z, noise, *gammas)
    (a_s, v_s), (a_t, v_t) = (
        ((-g).sigmoid().sqrt(), g.sigmoid())
        for g in (edm.table.double()[round(time * 20)] for time in (s, t))
    )
    kept = a_t / a_s
    added = v_t - kept**2 * v_s
    by_bayes = kept * v_s / v_t * z.double() + a_s * added / v_t * clean.double()
    # The noise enters with a factor of up to 1 / α_1 = 316 before it cancels.
    assert torch.allclose(mean.double(), by_bayes, atol=1e-6 / kept.item())
    assert torch.allclose(deviation.double(), (added * v_s / v_t).sqrt().expand(3), atol=1e-6)


def test_a_walk_with_the_true_noise_ends_at_the_clean_cloud(small, monkeypatch):
    edm, mask = small
    clean = edm.noise(mask, seeded(5))

    def true_noise(z, t, mask, context=None):
        alpha, sigma = (part[:, None, None] for part in edm.signal(t))
        return (z - alpha * clean) / sigma

    monkeypatch.setattr(edm, "predict_noise", true_noise)
    for steps in (1, 7, 20):
        # σ_0 is 0.003, and rounding is divided by it.
        assert torch.allclose(edm.sample(mask, steps=steps, generator=seeded()), clean, atol=1e-4)


def test_the_loss_is_zero_but_for_the_prior_where_the_guess_is_right(small, monkeypatch):
    edm, mask = small
    clean, noise = edm.noise(mask, seeded(1)), edm.noise(mask, seeded(2))
    monkeypatch.setattr(edm, "predict_noise", lambda *_: noise)
    alpha, sigma = edm.signal(torch.ones(3))
    prior = prior_divergence(alpha[:, None, None] * clean, sigma, mask)
    for t in (0.0, 0.5, 1.0):
        assert torch.equal(edm.loss(clean, mask, torch.full((3,), t), noise), prior)


def test_latent_clouds_have_no_term_of_their_own_at_time_0(small):
    edm, mask = small
    clean, noise = edm.noise(mask, seeded(1)), edm.noise(mask, seeded(2))
    zero = torch.zeros(3)
    guess = edm.predict_noise(edm.diffuse(clean, zero, noise), zero, mask)
    alpha, sigma = edm.signal(torch.ones(3))
    mean = 0.5 * (noise - guess).square().sum(dim=(1, 2)) / (6 * 5)
    prior = prior_divergence(alpha[:, None, None] * clean, sigma, mask)
    close(edm.loss(clean, mask, zero, noise), mean + prior)


def test_the_prior_is_the_divergence_of_normal_distributions():
    mask = sizes_to_mask(torch.tensor([3, 1]), 3)
    mean, sigma = cloud_noise(mask, 2, seeded()), torch.tensor([0.7, 0.9])
    ours = prior_divergence(mean, sigma, mask)
    for b, n in enumerate((3, 1)):
        free = 3 * (n - 1) + 2 * n
        one = torch.distributions.Normal(torch.zeros(free), sigma[b])
        other = torch.distributions.Normal(torch.zeros(free), torch.ones(free))
        kl = torch.distributions.kl_divergence(one, other).sum() + 0.5 * mean[b].square().sum()
        assert torch.isclose(ours[b], kl, atol=1e-5)


def test_the_bound_of_the_best_guess_is_the_likelihood(monkeypatch):
    """Normal clouds of deviation c: the best guess is known, and so is −log p."""
    c, edm = 0.5, EDM(latent=2, width=4, depth=1, steps=1000)
    mask = torch.ones(20_000, 3, dtype=torch.bool)

    def best(z, t, mask, context=None):
        alpha, sigma = (part[:, None, None] for part in edm.signal(t))
        return sigma * z / (alpha**2 * c**2 + sigma**2)

    monkeypatch.setattr(edm, "predict_noise", best)
    clean = c * edm.noise(mask, seeded())
    t = torch.randint(1, 1001, (20_000,), generator=seeded(1)) / 1000
    bounds = edm.bound(clean, mask, t, edm.noise(mask, seeded(2)), edm.noise(mask, seeded(3)))
    free = 3 * 2 + 2 * 3
    entropy = 0.5 * free * math.log(2 * math.pi * math.e * c**2)
    error = bounds.std().item() / math.sqrt(len(bounds))
    # A thousand steps leave a gap of about 0.1 nats.
    assert -4 * error < bounds.mean().item() - entropy < 0.2 + 4 * error


# Symmetries


class Scripted(EDM):
    """A walk whose draws of noise are given."""

    def noise(self, mask, generator=None):
        return next(self.script)


def walk(edm, script, mask, steps=20):
    edm.script = iter(script)
    return edm.sample(mask, steps=steps)


@pytest.fixture(scope="module")
def scripted(small):
    edm, mask = small
    torch.manual_seed(0)
    copy = Scripted(latent=3, width=16, depth=2, steps=20).eval()
    copy.load_state_dict(edm.state_dict())
    return copy, mask, [cloud_noise(mask, 3, seeded(k)) for k in range(21)]


def turn(z, by):
    return torch.cat([z[..., :3] @ by, z[..., 3:]], dim=-1)


ORTHOGONAL = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]


@pytest.mark.parametrize("by", [ORTHOGONAL, -ORTHOGONAL, torch.diag(torch.tensor([1.0, 1, -1]))])
def test_a_step_and_a_walk_turn_and_mirror_along(scripted, by):
    edm, mask, script = scripted
    times = torch.full((3,), 0.5), torch.full((3,), 0.55)
    z = edm.step(script[0], *times, script[1], mask)
    turned = edm.step(turn(script[0], by), *times, turn(script[1], by), mask)
    assert torch.allclose(turned, turn(z, by), atol=1e-5)  # the bar of the course
    sample = walk(edm, script, mask)
    other = walk(edm, [turn(noise, by) for noise in script], mask)
    # 21 passes in float32, each of which reads the rounding of the one before.
    assert (other - turn(sample, by)).abs().max() < 1e-5 * sample.abs().max()
    exact = Scripted(latent=3, width=16, depth=2, steps=20).double()
    exact.load_state_dict(edm.state_dict())
    exact_script, by = [noise.double() for noise in script], torch.linalg.qr(by.double())[0]
    sample = walk(exact, exact_script, mask)
    other = walk(exact, [turn(noise, by) for noise in exact_script], mask)
    assert (other - turn(sample, by)).abs().max() < 1e-10 * sample.abs().max()  # float64


def test_a_walk_is_renumbered_along(scripted):
    edm, mask, script = scripted
    order = torch.tensor([3, 0, 4, 2, 1])
    sample = walk(edm, script, mask)
    close(walk(edm, [noise[:, order] for noise in script], mask[:, order]), sample[:, order])


def test_a_shift_of_the_start_changes_nothing(scripted):
    edm, mask, script = scripted
    shift = torch.tensor([2.0, -1, 1, 0, 0, 0]) * mask[..., None]
    close(walk(edm, [script[0] + shift, *script[1:]], mask), walk(edm, script, mask))


def test_guesses_are_centred_and_empty_places_stay_empty(small):
    edm, mask = small
    guess = edm.predict_noise(edm.noise(mask, seeded()), torch.full((3,), 0.4), mask)
    assert guess[..., :3].sum(dim=1).abs().max() < 1e-5  # sums of float32
    assert (guess[~mask] == 0).all() and (guess[2, 0, :3] == 0).all()


def test_clouds_of_a_batch_do_not_hear_of_each_other(scripted):
    edm, mask, script = scripted
    sample = walk(edm, script, mask)
    for b in range(3):
        alone = walk(edm, [noise[b : b + 1] for noise in script], mask[b : b + 1])
        close(alone, sample[b : b + 1])


def test_loss_and_bound_do_not_depend_on_the_view(small):
    edm, mask = small
    clean, noise = edm.noise(mask, seeded(1)), edm.noise(mask, seeded(2))
    t = torch.tensor([0.3, 0.0, 1.0])
    turned = turn(clean, ORTHOGONAL), turn(noise, ORTHOGONAL)
    close(edm.loss(turned[0], mask, t, turned[1]), edm.loss(clean, mask, t, noise))
    t = torch.tensor([0.3, 0.05, 1.0])
    ours = edm.bound(turned[0], mask, t, turned[1], turned[1])
    close(ours, edm.bound(clean, mask, t, noise, noise))


# Walks


def test_a_walk_is_watched_at_every_stride(small):
    edm, mask = small
    seen = {}
    edm.sample(mask, steps=4, generator=seeded(), watch=seen.__setitem__)
    assert list(seen) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert all(z.shape == (3, 5, 6) and (z[~mask] == 0).all() for z in seen.values())


def test_a_change_of_the_guess_reaches_the_step(small):
    edm, mask = small
    z, noise = edm.noise(mask, seeded(1)), edm.noise(mask, seeded(2))
    s, t = torch.full((3,), 0.5), torch.full((3,), 0.6)
    push, asked = edm.noise(mask, seeded(3)), []

    def change(z, t, sigma, mask):
        asked.append(sigma)
        return push

    plain, pushed = (edm.step(z, s, t, noise, mask, change=each) for each in (None, change))
    gammas = edm.gamma(s), edm.gamma(t)
    factor = (reverse_step(z, push, *gammas)[0] - reverse_step(z, 0 * push, *gammas)[0]) * 1
    assert torch.allclose(pushed - plain, factor, atol=1e-5)
    assert torch.equal(asked[0], edm.signal(t)[1])


def test_context_changes_the_guess():
    edm = model("ctx")
    z, t = REFERENCE["ctx_zt"], REFERENCE["t"][:, 0]
    guesses = [edm.predict_noise(z, t, MASK, k * REFERENCE["context"]) for k in (0.0, 1.0)]
    assert not torch.allclose(*guesses, atol=1e-3)


# Latent diffusion


@pytest.fixture(scope="module")
def latent():
    torch.manual_seed(0)
    diffusion = LatentDiffusion(MoleculeAutoencoder(4, 3, width=8), width=8, depth=1, steps=10)
    mask = sizes_to_mask(torch.tensor([5, 3, 4, 1]), 5)
    x = 3 * cloud_noise(mask, 0, seeded())[..., :3]
    h = (2 + 5 * torch.randn(4, 5, 3, generator=seeded())) * mask[..., None]
    cloud = Cloud(x, h, mask)
    diffusion.measure(cloud)
    return diffusion, cloud


def test_latents_have_deviation_1_and_go_back(latent):
    diffusion, cloud = latent
    z = diffusion.to_latent(cloud)
    inside = z[cloud.mask]
    assert inside[:, :3].square().mean().item() == pytest.approx(1, abs=1e-5)
    assert inside[:, 3:].mean(dim=0).abs().max() < 1e-5
    assert (inside[:, 3:].square().mean(dim=0) - 1).abs().max() < 1e-5
    assert (z[~cloud.mask] == 0).all()
    for ours, theirs in zip(diffusion.to_cloud(z, cloud.mask), cloud, strict=True):
        assert torch.allclose(ours.float(), theirs.float(), atol=1e-5)


def test_one_lone_point_has_scales_too():
    diffusion = LatentDiffusion(MoleculeAutoencoder(4, 3, width=8), width=8, depth=1, steps=10)
    mask = torch.ones(1, 1, dtype=torch.bool)
    cloud = Cloud(torch.zeros(1, 1, 3), torch.ones(1, 1, 3), mask)
    diffusion.measure(cloud)
    assert (diffusion.to_latent(cloud) == 0).all()


def test_samples_are_graphs_and_the_autoencoder_stays_as_it_is(latent):
    diffusion, cloud = latent
    graphs = diffusion.sample(cloud.mask, steps=3, generator=seeded())
    assert isinstance(graphs, Graphs) and graphs.X.shape == (4, 5, 4)
    assert torch.equal(graphs.E, graphs.E.transpose(1, 2))
    diffusion.loss(diffusion.to_latent(cloud), cloud.mask).backward()
    assert all(p.grad is None for p in diffusion.autoencoder.parameters())
    assert any(p.grad is not None for p in diffusion.edm.parameters())


def test_a_saved_model_keeps_its_scales(latent):
    diffusion, _ = latent
    other = LatentDiffusion(MoleculeAutoencoder(4, 3, width=8), width=8, depth=1, steps=10)
    other.load_state_dict(diffusion.state_dict())
    assert torch.equal(other.length, diffusion.length)
    assert torch.equal(other.deviation, diffusion.deviation)


def test_masks_of_sizes():
    assert sizes_to_mask(torch.tensor([2, 3]), 3).tolist() == [[True, True, False], [True] * 3]
    assert sizes_to_mask(torch.tensor([], dtype=torch.long), 3).shape == (0, 3)


# Bad input


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_a_time_outside_is_named(small, t):
    with pytest.raises(ValueError, match=f"times go from {t:g} to {t:g}; expected 0, clean, to 1"):
        small[0].gamma(torch.tensor([t]))


@pytest.mark.parametrize("steps", [0, 21])
def test_strides_are_from_1_to_all(small, steps):
    edm, mask = small
    with pytest.raises(ValueError, match="expected a whole number from 1 to 20"):
        edm.sample(mask, steps=steps)


def test_a_step_goes_back_in_time(small):
    edm, mask = small
    z, half = edm.noise(mask), torch.full((3,), 0.5)
    with pytest.raises(ValueError, match="expected each s before its t"):
        edm.step(z, half, half, z, mask)


def test_settings_out_of_range_are_named():
    for arguments, sentence in (
        ({}, "classes, integers and latent are 0; expected one feature or more"),
        ({"classes": -1, "latent": 3}, "classes is -1; expected a whole number, 0 or more"),
        ({"latent": 2, "schedule": "linear"}, "schedule is 'linear'; expected 'polynomial' or"),
        ({"latent": 2, "steps": 0}, "steps is 0; expected a whole number, 1 or more"),
        ({"latent": 2, "precision": 0.5}, "precision is 0.5; expected a number above 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            EDM(**arguments)


def test_what_is_no_checkpoint_is_refused():
    with pytest.raises(ValueError, match="state_dict has 1 keys, not those of EDM; expected gamma"):
        EDM.from_official({"weight": torch.ones(1)})
    weights = official_edm.state_dict("base")
    lacking = {k: v for k, v in weights.items() if "e_block_1.gcl_equiv.coord_mlp.4" not in k}
    with pytest.raises(ValueError, match=r"missing blocks\.1\.coordinates\.mlp\.4\.weight"):
        EDM.from_official(lacking)
    with pytest.raises(ValueError, match="classes is -2; expected a whole number, 0 or more"):
        EDM.from_official(weights, integers=7)


@pytest.mark.parametrize("sizes", [[0, 2], [2, 4]])
def test_sizes_that_do_not_fit_are_named(sizes):
    sentence = f"sizes has {min(sizes)} to {max(sizes)} atoms; expected 1 to 3"
    with pytest.raises(ValueError, match=sentence):
        sizes_to_mask(torch.tensor(sizes), 3)


def test_strides_need_not_be_equal(small):
    edm, mask = small
    z = edm.noise(mask, seeded())
    for t, s in itertools.pairwise((1.0, 0.6, 0.5, 0.05, 0.0)):
        z = edm.step(z, torch.full((3,), s), torch.full((3,), t), edm.noise(mask, seeded(1)), mask)
    assert z.isfinite().all()
