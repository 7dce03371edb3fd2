"""Guidance and inpainting: symmetries, oracles, what is kept, and what is refused."""

import functools
import math

import pytest
import torch
from torch import nn

from fourfold.syco.control import (
    NoisyRegressor,
    inpaint,
    merge_known,
    property_guide,
    regressor_loss,
    renoise,
)
from fourfold.syco.diffusion import EDM, cloud_noise, sizes_to_mask

NAN = float("nan")
MASK = sizes_to_mask(torch.tensor([5, 3, 1]), 5)
TURN = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
ORDER = torch.tensor([3, 0, 4, 2, 1])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def turned(z, by=TURN):
    return torch.cat([z[..., :3] @ by, z[..., 3:]], dim=-1)


def cloud(seed=0, mask=MASK, features=3):
    return cloud_noise(mask, features, seeded(seed))


def close(ours, theirs):
    """1e-5 of the larger of 1 and the other number: the course's bar for float32."""
    assert ours.shape == theirs.shape
    assert ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max() <= 1e-5


@pytest.fixture(scope="module")
def regressor():
    torch.manual_seed(0)
    return NoisyRegressor(3, 2, width=16, depth=2).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def edm():
    torch.manual_seed(0)
    return EDM(latent=3, width=16, depth=2, steps=20).eval().requires_grad_(False)


TIMES = torch.tensor([0.2, 0.5, 0.9])

VIEWS = {
    "rotation": lambda z: turned(z, TURN * TURN.det().sign()),
    "reflection": lambda z: turned(z, torch.diag(torch.tensor([1.0, 1, -1]))),
    "both": lambda z: turned(z, -TURN),
}


# The regressor


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_guess_does_not_depend_on_the_view(regressor, view):
    close(regressor(view(cloud()), TIMES, MASK), regressor(cloud(), TIMES, MASK))


def test_a_guess_does_not_depend_on_place_order_or_padding(regressor):
    z, guess = cloud(), regressor(cloud(), TIMES, MASK)
    moved = z + torch.tensor([2.0, -1, 1, 0, 0, 0]) * MASK[..., None]
    close(regressor(moved, TIMES, MASK), guess)
    close(regressor(z[:, ORDER], TIMES, MASK[:, ORDER]), guess)
    noise = torch.randn(z.shape, generator=seeded(3)) * ~MASK[..., None]
    close(regressor(z + noise, TIMES, MASK), guess)
    close(regressor(z[1:2, :3], TIMES[1:2], MASK[1:2, :3]), guess[1:2])


def test_a_guess_reads_time_places_and_features(regressor):
    z, guess = cloud(), regressor(cloud(), TIMES, MASK)
    for other, t in (
        (z, TIMES / 2),
        (z * torch.tensor([2.0, 2, 2, 1, 1, 1]), TIMES),
        (2 * z, TIMES),
    ):
        assert (regressor(other, t, MASK) - guess)[:2].abs().max() > 1e-3


class Constant(nn.Module):
    """A regressor that always guesses the same."""

    def __init__(self, *values):
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, z, t, mask):
        return self.values.expand(len(z), -1)


def test_the_loss_is_the_mean_square_and_leaves_nan_out(edm):
    y = torch.tensor([[1.0, NAN], [0.0, 3.0], [2.0, NAN]])
    loss = regressor_loss(Constant(1.0, 1.0), edm, cloud(), MASK, y)
    assert loss.item() == pytest.approx((0 + 1 + 1 + 4) / 6)


def test_nan_has_no_part_in_the_gradient(edm):
    torch.manual_seed(0)
    learner = NoisyRegressor(3, 2, width=8, depth=1)
    y = torch.tensor([[1.0, NAN], [0.0, NAN], [NAN, NAN]])
    regressor_loss(learner, edm, cloud(), MASK, y).backward()
    last = learner.head[-1]
    assert last.weight.grad[0].abs().max() > 0 and (last.weight.grad[1] == 0).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in learner.parameters())


def test_the_loss_is_on_noisy_clouds_at_steps_of_the_table(edm):
    seen = []

    class Note(nn.Module):
        def forward(self, z, t, mask):
            seen.append((z, t))
            return torch.zeros(len(z), 1)

    mask = torch.ones(400, 4, dtype=torch.bool)
    torch.manual_seed(0)
    regressor_loss(Note(), edm, cloud(0, mask), mask, torch.zeros(400, 1))
    z, t = seen[0]
    assert torch.equal((t * 20).round() / 20, t) and t.min() == 0 and t.max() == 1
    assert torch.allclose(z[t == 0], cloud(0, mask)[t == 0], atol=0.05)  # σ_0 is 0.003
    assert not torch.allclose(z[t == 1], cloud(0, mask)[t == 1], atol=1)


def test_a_regressor_learns(edm):
    """The mean of a feature can be read off a cloud, the better the less noise there is."""
    torch.manual_seed(0)
    learner, mask = NoisyRegressor(3, 1, width=8, depth=1), torch.ones(128, 4, dtype=torch.bool)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    clean = cloud(0, mask)
    y = 2 * clean[..., 3:4].mean(dim=1)
    for _ in range(40):
        optimizer.zero_grad()
        regressor_loss(learner, edm, clean, mask, y).backward()
        optimizer.step()
    errors = []
    for t in (0.0, 1.0):
        time = torch.full((128,), t)
        guess = learner(edm.diffuse(clean, time, edm.noise(mask, seeded(1))), time, mask)
        errors.append((guess - y).square().mean().item())
    assert errors[0] < 0.2 < 0.6 < errors[1]  # of a property of variance 1


# Guidance


def pushed(regressor, z, target, scale=1.0, mask=MASK, t=TIMES, sigma=None):
    sigma = torch.tensor([0.3, 0.6, 0.9]) if sigma is None else sigma
    return property_guide(regressor, target, scale)(z, t, sigma, mask)


TARGET = torch.tensor([[1.0, -1.0], [2.0, NAN], [0.5, 0.5]])


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_push_turns_along(regressor, view):
    push = pushed(regressor, cloud(), TARGET)
    close(pushed(regressor, view(cloud()), TARGET), view(push))


def test_a_push_is_centred_and_renumbered_along(regressor):
    z, push = cloud(), pushed(regressor, cloud(), TARGET)
    assert push.abs().max() > 1e-3
    assert push[..., :3].sum(dim=1).abs().max() < 1e-6  # sums of float32 numbers below 1
    assert (push[~MASK] == 0).all()
    close(pushed(regressor, z[:, ORDER], TARGET, mask=MASK[:, ORDER]), push[:, ORDER])
    assert not push.requires_grad


def test_a_push_is_the_slope_of_the_miss_by_differences(regressor):
    exact = NoisyRegressor(3, 2, width=16, depth=2).double()
    exact.load_state_dict(regressor.state_dict())
    z, sigma, w = cloud().double(), torch.tensor([0.3, 0.6, 0.9]).double(), 0.7
    push = pushed(exact, z, TARGET.double(), w, sigma=sigma, t=TIMES.double())
    for b, i, v in ((0, 1, 0), (0, 4, 5), (1, 2, 2), (2, 0, 4)):
        step, miss = torch.zeros_like(z), []
        step[b, i, v] = 1e-5
        for moved in (z + step, z - step):
            off = (exact(moved, TIMES.double(), MASK) - TARGET)[b]
            miss.append(0.5 * off[~off.isnan()].square().sum())
        slope = (miss[0] - miss[1]) / 2e-5
        # Differences of 1e-5 in float64 leave errors of about 1e-10.
        assert push[b, i, v].item() == pytest.approx(w * sigma[b].item() * slope.item(), abs=1e-8)


def test_going_against_the_push_brings_the_guess_nearer(regressor):
    z = cloud()
    push = pushed(regressor, z, TARGET)
    miss = [
        torch.where(TARGET.isnan(), 0, regressor(each, TIMES, MASK) - TARGET).square().sum(dim=1)
        for each in (z, z - 0.01 * push)
    ]
    assert (miss[1] < miss[0]).all()


def test_scale_and_sigma_are_factors_and_nothing_asked_is_no_push(regressor):
    push = pushed(regressor, cloud(), TARGET)
    assert torch.allclose(pushed(regressor, cloud(), TARGET, scale=-0.5), -0.5 * push)
    half = pushed(regressor, cloud(), TARGET, sigma=torch.tensor([0.15, 0.3, 0.45]))
    assert torch.allclose(half, push / 2)
    assert (pushed(regressor, cloud(), torch.full((3, 2), NAN)) == 0).all()


def test_clouds_of_a_batch_are_pushed_alone(regressor):
    push = pushed(regressor, cloud(), TARGET)
    alone = property_guide(regressor, TARGET[1:2])(
        cloud()[1:2], TIMES[1:2], torch.tensor([0.6]), MASK[1:2]
    )
    close(alone, push[1:2])


def test_a_push_is_no_longer_than_noise_and_keeps_its_direction(regressor):
    push = pushed(regressor, cloud(), TARGET)
    strong = pushed(regressor, cloud(), TARGET, scale=1e6)
    longest = (6 * MASK.sum(dim=1)).sqrt()
    assert torch.allclose(strong.flatten(1).norm(dim=1), longest)
    together = (push * strong).sum(dim=(1, 2)) / longest / push.flatten(1).norm(dim=1)
    assert torch.allclose(together, torch.ones(3), atol=1e-5)  # a cosine in float32


def test_a_cloud_without_a_finite_slope_is_not_pushed():
    def steep(z, t, mask):
        return torch.stack([z[0].sum().repeat(2), (z[1].sum() * 0 - 1).sqrt().repeat(2)])

    mask = torch.ones(2, 5, dtype=torch.bool)
    times = torch.full((2,), 0.5)
    push = property_guide(steep, torch.zeros(2, 2))(cloud(0, mask), times, times, mask)
    assert push.isfinite().all() and (push[1] == 0).all() and push[0].abs().max() > 0


def test_guidance_works_inside_a_walk_without_gradients(edm, regressor):
    free, guided = (
        edm.sample(MASK, generator=seeded(), change=change)
        for change in (None, property_guide(regressor, TARGET, 3.0))
    )
    assert not guided.requires_grad and (guided - free).abs().max() > 1e-3
    assert guided[..., :3].sum(dim=1).abs().max() < 1e-4  # sums of float32 after 20 steps


def test_the_guided_walk_of_normal_clouds_has_the_mean_of_bayes(monkeypatch):
    """Features N(0, 1), a regressor that reads one: the posterior is known."""
    edm, mask = EDM(latent=1, width=4, depth=1, steps=250), torch.ones(4000, 1, dtype=torch.bool)
    # Clouds of deviation 1 stay so at all times, and the best guess of the noise is σ z.
    monkeypatch.setattr(
        edm, "predict_noise", lambda z, t, mask, context=None: edm.signal(t)[1][:, None, None] * z
    )

    y, variance = 1.0, 0.5

    def scaled(z, t, mask):
        """The mean of z_0 given z_t is α z_t, its variance σ²: the miss in the unit of both."""
        alpha, sigma = (part[:, None] for part in edm.signal(t))
        return y + (alpha * z[:, 0, 3:] - y) / (variance + sigma.square()).sqrt()

    change = property_guide(scaled, torch.full((4000, 1), y), 1.0)
    z = edm.sample(mask, generator=seeded(), change=change)[:, 0, 3]
    # 4,000 draws of the posterior's variance 1/3: standard errors of 0.009 and 0.0075.
    assert z.mean().item() == pytest.approx(y / (1 + variance), abs=0.04)
    assert z.var().item() == pytest.approx(variance / (1 + variance), abs=0.03)


def test_a_target_of_another_number_of_properties_is_named(edm, regressor):
    with pytest.raises(ValueError, match="target has 1 properties; expected 2, as the regressor"):
        edm.sample(MASK, steps=2, change=property_guide(regressor, torch.zeros(3, 1)))


# Forward again


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.05), (0.3, 0.7), (0.0, 1.0), (0.95, 1.0), (0.4, 0.4)])
def test_up_from_s_is_as_if_straight_from_the_clean_cloud(edm, s, t):
    """The factor of the signal and the variance of both noises together, exactly."""
    ones, zero = torch.ones(1, 1, 6), torch.zeros(1, 1, 6)
    s, t = torch.tensor([s]), torch.tensor([t])
    (alpha_s, sigma_s), (alpha_t, sigma_t) = edm.signal(s), edm.signal(t)
    signal = renoise(edm, alpha_s * ones, s, t, zero)
    old, new = renoise(edm, sigma_s * ones, s, t, zero), renoise(edm, zero, s, t, ones)
    assert torch.allclose(signal, alpha_t * ones, atol=1e-6)  # float32
    assert torch.allclose(old.square() + new.square(), sigma_t**2 * ones, atol=1e-6)


def test_up_again_has_the_moments_of_diffuse(edm):
    mask = torch.ones(20_000, 3, dtype=torch.bool)
    clean = cloud(7, mask[:1]).expand(20_000, -1, -1)
    s, t = torch.full((20_000,), 0.3), torch.full((20_000,), 0.7)
    up = renoise(edm, edm.diffuse(clean, s, cloud(1, mask)), s, t, cloud(2, mask))
    straight = edm.diffuse(clean, t, cloud(3, mask))
    # 20,000 draws of deviation below 1: four standard errors of a difference of two means.
    assert (up.mean(dim=0) - straight.mean(dim=0)).abs().max() < 4 * math.sqrt(2 / 20_000)
    assert (up.std(dim=0) - straight.std(dim=0)).abs().max() < 4 / math.sqrt(20_000)
    assert up[..., :3].mean(dim=1).abs().max() < 1e-5  # centred noise keeps clouds centred


def test_up_and_the_step_back_keep_the_distribution(monkeypatch):
    """Normal clouds and their best guess: back and forth changes no mean and no variance."""
    edm, mask = EDM(latent=1, width=4, depth=1, steps=1000), torch.ones(20_000, 2, dtype=torch.bool)
    monkeypatch.setattr(
        edm, "predict_noise", lambda z, t, mask, context=None: edm.signal(t)[1][:, None, None] * z
    )
    s, t = torch.full((20_000,), 0.49), torch.full((20_000,), 0.5)
    z = cloud(1, mask, 1)
    z = renoise(edm, edm.step(z, s, t, cloud(2, mask, 1), mask), s, t, cloud(3, mask, 1))
    # A variance of 40,000 draws has a standard error of 0.007.
    assert z[..., 3].mean().abs() < 0.03 and abs(z[..., 3].var() - 1) < 0.04


def test_a_later_time_is_not_before_the_earlier(edm):
    with pytest.raises(
        ValueError, match=r"s is \[0\.5.* t is \[0\.4.*; expected no t before its s"
    ):
        renoise(edm, cloud(), torch.full((3,), 0.5), torch.full((3,), 0.4), cloud(1))


# Merging

KEEP = MASK & torch.tensor([True, True, True, False, False]) & (MASK.sum(dim=1) > 1)[:, None]


def distances(z):
    return torch.cdist(z[..., :3].double(), z[..., :3].double())


def test_merged_clouds_have_both_shapes_and_no_centre():
    z, known = cloud(1), 3 * cloud(2) + 5
    merged = merge_known(z, known, KEEP, MASK)
    both = KEEP[:, :, None] & KEEP[:, None]
    # Differences of coordinates of up to 20 in float32.
    assert torch.allclose(distances(merged)[both], distances(known)[both], atol=1e-5)
    rest = MASK & ~KEEP
    both = rest[:, :, None] & rest[:, None]
    assert torch.allclose(distances(merged)[both], distances(z)[both], atol=1e-5)
    assert torch.equal(merged[KEEP][:, 3:], known[KEEP][:, 3:])
    assert torch.equal(merged[rest][:, 3:], z[rest][:, 3:])
    assert merged[..., :3].sum(dim=1).abs().max() < 1e-5
    assert (merged[~MASK] == 0).all()


def test_the_kept_part_lies_where_it_lay():
    z, merged = cloud(1), merge_known(cloud(1), cloud(2), KEEP, MASK)
    before, after = ((each[0, :3, :3].mean(dim=0) - each[0, 4, :3]) for each in (z, merged))
    assert torch.allclose(before, after, atol=1e-5)


def test_merging_twice_is_merging_once():
    merged = merge_known(cloud(1), cloud(2), KEEP, MASK)
    close(merge_known(merged, cloud(2), KEEP, MASK), merged)


def test_merging_turns_and_renumbers_along_and_ignores_the_place_of_the_known():
    z, known = cloud(1), cloud(2)
    merged = merge_known(z, known, KEEP, MASK)
    close(merge_known(turned(z), turned(known), KEEP, MASK), turned(merged))
    order = [each[:, ORDER] for each in (z, known, KEEP, MASK)]
    close(merge_known(*order), merged[:, ORDER])
    moved = known + torch.tensor([3.0, 1, -2, 0, 0, 0])
    close(merge_known(z, moved, KEEP, MASK), merged)


def test_nothing_kept_changes_nothing_and_all_kept_is_the_known():
    z, known, none = cloud(1), cloud(2), torch.zeros_like(MASK)
    close(merge_known(z, known, none, MASK), z)
    close(merge_known(z, known, MASK, MASK), known)


# Inpainting


def made(edm, known, keep, **options):
    return inpaint(edm, known, keep, MASK, generator=seeded(), **{"steps": 5, **options})


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("start", [1.0, 0.4])
def test_kept_points_are_the_known_ones_up_to_their_place(edm, start, repeats):
    known = cloud(2)
    z = made(edm, known, KEEP, start=start, repeats=repeats)
    both = KEEP[:, :, None] & KEEP[:, None]
    # Each coordinate is moved twice in float32; clouds of a network without training reach 100.
    scale = 1e-6 * z.abs().max().clamp(min=1)
    assert (distances(z) - distances(known))[both].abs().max() < 4 * scale
    assert torch.equal(z[KEEP][:, 3:], known[KEEP][:, 3:])
    assert z[..., :3].sum(dim=1).abs().max() < 10 * scale
    assert (z[~MASK] == 0).all()


def test_all_kept_is_the_known_cloud_and_none_kept_is_a_sample(edm):
    close(made(edm, cloud(2), MASK), cloud(2))
    none = torch.zeros_like(MASK)
    zero = torch.zeros_like(cloud())
    mine = inpaint(edm, zero, none, MASK, steps=5, generator=seeded())
    assert mine.isfinite().all() and mine.shape == zero.shape
    other = inpaint(edm, zero, none, MASK, steps=5, generator=seeded(1))
    assert not torch.allclose(mine, other)


def test_a_seed_gives_the_same_clouds(edm):
    first, second = (made(edm, cloud(2), KEEP, repeats=2) for _ in range(2))
    assert torch.equal(first, second)


class Scripted(EDM):
    """A walk whose draws of noise are given."""

    def noise(self, mask, generator=None):
        return self.view(cloud_noise(mask, self.features, self.draws))


def scripted(edm, view, known, **options):
    copy = Scripted(latent=3, width=16, depth=2, steps=20).double().eval()
    copy.load_state_dict(edm.state_dict())
    copy.draws, copy.view = seeded(), lambda z: view(z.double())
    return inpaint(copy, view(known.double()), KEEP, MASK, steps=4, repeats=2, **options)


def test_a_walk_turns_along_with_the_known_points(edm):
    turn = torch.linalg.qr(TURN.double())[0]
    straight = scripted(edm, lambda z: z, cloud(2))
    other = scripted(edm, functools.partial(turned, by=turn), cloud(2))
    # float64, over eight steps of a network that reads its own rounding.
    assert (other - turned(straight, turn)).abs().max() < 1e-8 * straight.abs().max()


def test_a_small_start_stays_near(edm, monkeypatch):
    known, none = cloud(2), torch.zeros_like(MASK)

    def true_noise(z, t, mask, context=None):
        alpha, sigma = (part[:, None, None] for part in edm.signal(t))
        return (z - alpha * known) / sigma

    monkeypatch.setattr(edm, "predict_noise", true_noise)
    for start in (0.05, 0.5, 1.0):
        z = inpaint(edm, known, none, MASK, start=start, steps=20, generator=seeded())
        assert torch.allclose(z, known, atol=1e-4)  # rounding is divided by σ_0 = 0.003


def test_new_points_begin_as_noise(edm):
    """Where nothing is known, the walk begins at σ ε."""
    starts = []

    def note(z, t, sigma, mask):
        starts.append(z)
        return torch.zeros_like(z)

    mask = torch.ones(4000, 4, dtype=torch.bool)
    known = torch.zeros(4000, 4, 6)
    inpaint(edm, known, mask & False, mask, start=0.5, steps=2, change=note, generator=seeded())
    sigma = edm.signal(torch.tensor(0.5))[1]
    # 48,000 normal numbers: a deviation with a standard error of 0.3 %.
    assert abs(starts[0][..., 3:].std() / sigma - 1) < 0.015


def test_strides_and_repeats_are_counted_and_watched(edm):
    calls, seen = [], []

    def note(z, t, sigma, mask):
        calls.append(t[0].item())
        return torch.zeros_like(z)

    made(
        edm,
        cloud(2),
        KEEP,
        start=0.6,
        repeats=3,
        change=note,
        watch=lambda t, z: seen.append((t, z)),
    )
    assert calls == pytest.approx([0.6] * 3 + [0.4] * 3 + [0.2] * 3)
    assert [t for t, _ in seen] == pytest.approx([0.4, 0.2, 0.0])
    assert all(z.shape == (3, 5, 6) and z[..., :3].sum(dim=1).abs().max() < 1e-3 for _, z in seen)


def test_guidance_reaches_the_new_points(edm, regressor):
    free, guided = (
        made(edm, cloud(2), KEEP, change=change)
        for change in (None, property_guide(regressor, TARGET, 3.0))
    )
    new = MASK & ~KEEP
    assert (guided - free)[new].abs().max() > 1e-3
    assert torch.equal(guided[KEEP][:, 3:], free[KEEP][:, 3:])


def test_one_point_and_a_batch_of_one(edm):
    one = torch.ones(1, 1, dtype=torch.bool)
    known = cloud(2, one)
    close(inpaint(edm, known, one, one, steps=3, generator=seeded()), known)
    z = inpaint(edm, known, ~one, one, steps=3, repeats=2, generator=seeded())
    assert z.isfinite().all() and (z[..., :3] == 0).all()


def test_progress_is_shown_when_asked(edm, capsys):
    made(edm, cloud(2), KEEP, progress=True)
    assert "5/5" in capsys.readouterr().err
    made(edm, cloud(2), KEEP)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"start": 0.0}, r"start is 0\.0; expected more than 0 and at most 1"),
        ({"start": 1.5}, r"start is 1\.5; expected more than 0 and at most 1"),
        ({"start": NAN}, "start is nan; expected more than 0 and at most 1"),
        ({"steps": 0}, "steps is 0; expected a whole number from 1 to 20"),
        ({"steps": 21}, "steps is 21; expected a whole number from 1 to 20"),
        ({"repeats": 0}, "repeats is 0; expected a whole number, 1 or more"),
    ],
)
def test_settings_out_of_range_are_named(edm, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        made(edm, cloud(2), KEEP, **options)


def test_a_kept_point_has_to_be_there(edm):
    with pytest.raises(ValueError, match="keep holds points that mask has not; expected a part of"):
        made(edm, cloud(2), torch.ones_like(MASK))


# The course's weights


def test_guidance_and_inpainting_hold_their_bars_on_the_course_s_model():
    from fourfold.graph_dit.graphs import one_hot, to_codes
    from fourfold.graph_dit.metrics import logp
    from fourfold.graph_dit.molecules import graphs_to_smiles
    from fourfold.paper_writing.experiments import mean_interval
    from fourfold.syco.learning import load_syco
    from fourfold.syco.lifting import lift

    maker = load_syco("qm9")
    diffusion, guide = maker.parts["diffusion"].cpu(), maker.parts["guide"].cpu()
    mask = torch.ones(16, 9, dtype=torch.bool)

    def towards(value):
        pull = property_guide(guide, maker.properties.targets({"logP": value}, 16), 2.0)
        z = diffusion.edm.sample(mask, steps=20, change=pull, generator=seeded())
        with torch.no_grad():
            made = graphs_to_smiles(diffusion.decode(z, mask), maker.vocabulary)
        return mean_interval(logp([text for text in made if text]))

    assert towards(-1.0).high < towards(2.0).low

    lifted = lift(["OC1CCC1"], maker.vocabulary)
    with torch.no_grad():
        cloud = diffusion.autoencoder.encode(one_hot(lifted.codes, maker.vocabulary), lifted.x)
        known, keep = diffusion.to_latent(cloud).expand(16, -1, -1), cloud.mask.expand(16, -1)
        z = inpaint(diffusion.edm, known, keep, mask, steps=10, generator=seeded())
        codes = to_codes(diffusion.decode(z, mask))
    assert (codes.bonds[:, :5, :5] == lifted.codes.bonds[0, :5, :5]).all()
    assert (codes.atoms[:, :5] == lifted.codes.atoms[0, :5]).all()
