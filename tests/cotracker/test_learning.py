"""Losses, stages and scores: those of the releases, repeatable, resumable, written and read back.

What the clips are is tested in test_clips.py.
"""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from official_cotracker import official_state_dict, reference, texture_video

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.cotracker import learning
from fourfold.cotracker.cotracker import (
    CoTracker,
    Estimate,
    load_cotracker,
    our_name,
    window_starts,
)
from fourfold.cotracker.features import STRIDE
from fourfold.cotracker.learning import (
    ALL,
    FEATURES,
    RECIPES,
    SMALL,
    UPDATE,
    Clip,
    SyntheticClips,
    balanced_loss,
    course_loss,
    enlarged,
    evaluate,
    held_out_clips,
    matching_loss,
    matching_scores,
    mean_where,
    share_found,
    track_loss,
    train_cotracker,
    train_course,
    version2_loss,
    version3_loss,
    window_target,
)
from fourfold.cotracker.predictor import Predictor
from fourfold.cotracker.tracks import Tracks, stay_put, tap_vid_metrics
from fourfold.kit.checkpoints import read_card
from fourfold.raft.learning import load_photographs

PHOTOGRAPHS = load_photographs(("chelsea", "brick", "coins"))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# The losses against the releases'.

UTILS = reference("cotracker_utils")
FROZEN = [
    {name: UTILS[f"loss_{name}{j}"] for name in ("pred", "gt", "vispred", "vis", "valid")}
    for j in (0, 1)
]


def frozen(name):
    """A loss of the release; a sum or mean of some hundred float32 numbers, right to 1e-6."""
    return pytest.approx(UTILS[f"loss_{name}"].item(), rel=2e-6)


def test_version_2_s_losses_of_given_tracks():
    points = sum(
        track_loss(list(w["pred"]), w["gt"], w["valid"]) / w["gt"].shape[2] for w in FROZEN
    )
    seen = sum(balanced_loss(w["vispred"][-1], w["vis"] > 0, w["valid"] > 0) / 5 for w in FROZEN)
    assert points.item() == frozen("v2_seq")
    assert seen.item() == frozen("v2_bce")


def test_version_3_s_losses_of_given_tracks():
    points = [list(w["pred"]) for w in FROZEN]
    huber = sum(
        track_loss(p, w["gt"], w["valid"] * w["vis"], huber=6.0)
        for p, w in zip(points, FROZEN, strict=True)
    )
    hidden = sum(
        track_loss(p, w["gt"], w["valid"] * (1 - w["vis"]))
        for p, w in zip(points, FROZEN, strict=True)
    )
    assert huber.item() / 2 == frozen("v3_seq_vis_huber")
    assert hidden.item() / 2 == frozen("v3_seq_invis_l1")
    # The frozen numbers were made from probabilities; of a logit they say the same.
    windows = [
        (
            8 * j,
            [
                Estimate(p / STRIDE, told, told)
                for p, told in zip(w["pred"], w["vispred"].logit(), strict=True)
            ],
        )
        for j, w in enumerate(FROZEN)
    ]
    clip = Clip(
        torch.zeros(1, 16, 3, 1, 1),
        torch.cat([w["gt"] for w in FROZEN], dim=1),
        torch.cat([w["vis"] for w in FROZEN], dim=1) > 0,
        torch.zeros(1, 5, 3),
    )
    found = version3_loss(windows, clip, near=4.0)
    assert found["visibility"].item() == frozen("v3_bce")
    assert found["confidence"].item() == frozen("v3_prob")


CASES = {
    "v2": ("cotracker2", "offline", 8, version2_loss),
    "v3_offline": ("cotracker3_offline", "offline", 60, partial(version3_loss, before=True)),
    "v3_online": ("cotracker3_online", "online", 8, version3_loss),
}


@pytest.fixture(scope="module", params=CASES)
def trained(request):
    """A released model's size with the frozen parameters: its losses and gradients of a clip."""
    variant, mode, window, loss = CASES[request.param]
    frozen = reference("cotracker_train")
    state = official_state_dict(variant)
    del state["time_emb"]  # its length would tell another window for version 3 online
    model = CoTracker.from_official(state, mode, window=window)
    clip = Clip(
        texture_video(12, 64, 96),
        frozen["gt"][None],
        frozen["vis"][None] > 0,
        frozen["queries"][None],
    )
    parts = loss(model.windows(clip.video, clip.queries, 3), clip)
    sum(parts.values()).backward()
    told = {
        name.removeprefix(f"{request.param}_"): value
        for name, value in frozen.items()
        if name.startswith(request.param)
    }
    return model, parts, told


def test_the_official_losses(trained):
    _, parts, official = trained
    expected = dict(zip(official["part_names"].tolist(), official["parts"].tolist(), strict=True))
    ours = {
        "flow": "points",
        "flow_invisible": "hidden points",
        "visibility": "visibility",
        "confidence": "confidence",
    }
    # Points are right to 1e-4 px, of losses near 1 px.
    for name, value in expected.items():
        assert parts[ours[name]].item() == pytest.approx(value, rel=1e-4, abs=1e-5), name
    total = sum(parts.values()).item()
    assert total == pytest.approx(official["loss"].item(), rel=1e-4)


def test_the_official_gradient_norms(trained):
    model, _, official = trained
    norms = {
        name: 0.0 if p.grad is None else p.grad.norm().item()
        for name, p in model.named_parameters()
    }
    names = [our_name(name) for name in official["grad_names"].tolist()]
    assert set(names) == set(norms)
    # A bias in front of an instance norm has no gradient but what rounding leaves.
    largest = max(norms.values())
    for name, expected in zip(names, official["grad_norms"].tolist(), strict=True):
        assert norms[name] == pytest.approx(expected, rel=1e-3, abs=1e-6 * largest), name


# The losses by their formulas.


def made_windows(seed, B=2, N=5, T=12, S=8, M=2):
    """Random estimates of two windows, and a clip that they estimate."""
    random = seeded(seed)
    queries = torch.zeros(B, N, 3)
    queries[..., 0] = torch.randint(0, T, (B, N), generator=random)
    clip = Clip(
        torch.zeros(B, T, 3, 1, 1),
        9 * torch.randn(B, T, N, 2, generator=random),
        torch.rand(B, T, N, generator=random) < 0.7,
        queries,
    )

    def estimate():
        logits = torch.randn(2, B, S, N, generator=random)
        return Estimate(3 * torch.randn(B, S, N, 2, generator=random), *logits)

    return [(first, [estimate() for _ in range(M)]) for first in (0, 8)], clip


def expected_course_loss(windows, clip, hidden):
    """Equation 10 by loops over frames and points; the second window has four frames of eight."""
    B, T, N = clip.visible.shape
    points = seen = 0.0
    for first, estimates in windows:
        above = below = wrong = asked = 0.0
        for b in range(B):
            for s in range(min(8, T - first)):
                for n in range(N):
                    t = first + s
                    if t < clip.queries[b, n, 0]:
                        continue
                    c = 1.0 if clip.visible[b, t, n] else hidden
                    errors = [
                        (STRIDE * e.points[b, s, n] - clip.points[b, t, n]).abs().mean().item()
                        for e in estimates
                    ]
                    above += c * (0.8 * errors[0] + errors[1]) / 2
                    below += c
                    score = estimates[-1].visibility[b, s, n].item()
                    sign = -1 if clip.visible[b, t, n] else 1
                    wrong += math.log1p(math.exp(sign * score))
                    asked += 1
        points += above / below / len(windows)
        seen += wrong / asked / len(windows)
    return points, seen


@given(st.integers(0, 99), st.floats(0, 1))
@settings(max_examples=5)
def test_the_course_s_loss_is_the_formula(seed, hidden):
    windows, clip = made_windows(seed)
    points, seen = expected_course_loss(windows, clip, hidden)
    found = course_loss(windows, clip, hidden=hidden)
    # Sums of some hundred float32 numbers in another order, and 1e-6 below the line.
    assert found["points"].item() == pytest.approx(points, rel=1e-5)
    assert found["visibility"].item() == pytest.approx(seen, rel=1e-5)


@given(st.integers(0, 99))
@settings(max_examples=10)
def test_what_is_before_the_query_changes_no_loss(seed):
    windows, clip = made_windows(seed)
    before = torch.arange(12)[:, None] < clip.queries[:, None, :, 0]
    other = clip._replace(
        points=torch.where(before[..., None], 1e3, clip.points), visible=clip.visible ^ before
    )
    for loss in (version2_loss, course_loss):
        for one, two in zip(
            loss(windows, clip).values(), loss(windows, other).values(), strict=True
        ):
            assert torch.equal(one, two)
    one, two = version3_loss(windows, clip), version3_loss(windows, other)
    assert torch.equal(one["points"], two["points"])
    assert torch.equal(one["hidden points"], two["hidden points"])


def perfect(clip, sure):
    for first in (0, 4):
        target = window_target(clip, first, 8)
        told = torch.where(target.visible, sure, -sure)
        yield first, [Estimate(target.points / STRIDE, told, told.abs())]


def test_a_perfect_tracker_pays_nothing_but_version_2_s_floor():
    _, clip = made_windows(0)
    assert all(loss < 1e-6 for loss in course_loss(perfect(clip, 30.0), clip).values())
    assert all(loss < 1e-6 for loss in version3_loss(perfect(clip, 30.0), clip).values())
    found = version2_loss(perfect(clip, 30.0), clip)
    floor = 10 * (math.log1p(math.exp(-1)) + math.log(2)) / 5
    assert found["points"] == 0 and found["visibility"].item() == pytest.approx(2 * floor, rel=1e-5)


def test_a_window_past_the_end_has_the_frames_that_there_are():
    clip = held_out_clips(1, (32, 40), frames=10, points=3)
    target = window_target(clip, 8, 8)
    assert target.points.shape == (1, 2, 3, 2)
    assert torch.equal(
        target.asked, torch.tensor([8.0, 9.0])[:, None] >= clip.queries[:, None, :, 0]
    )


def test_the_mean_of_nothing_is_zero():
    values, nothing = torch.ones(1, 2, 3), torch.zeros(1, 2, 3, dtype=torch.bool)
    assert mean_where(values, nothing) == 0
    assert mean_where(values, ~nothing).item() == pytest.approx(1, abs=1e-6)


# The first stage.

TINY_MODEL = SMALL | {
    "width": 32,
    "depth": 1,
    "heads": 2,
    "virtual_tracks": 4,
    "features": 16,
    "widths": (8, 8, 8, 8),
    "resolution": (32, 40),
}


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return CoTracker("2", **TINY_MODEL)


TINY_CLIPS = {"size": (32, 40), "frames": 8, "points": 6}
TINY = {
    name: recipe._replace(steps=3, batch=1, iterations=2, **TINY_CLIPS)
    for name, recipe in RECIPES.items()
}


def tiny_clips(**options):
    return SyntheticClips(PHOTOGRAPHS, **TINY_CLIPS, **options)


def test_the_matching_loss_is_a_cross_entropy_of_places():
    clip, model = held_out_clips(2, **TINY_CLIPS), tiny_model()
    # On the places of the features themselves one place has the whole share.
    whole = STRIDE * (clip.points / STRIDE).round()
    clip = clip._replace(points=whole)
    with torch.no_grad():
        scores, loss = matching_scores(model, clip), matching_loss(model, clip)
    h, w = scores.shape[-2:]
    x, y = (whole / STRIDE).long().unbind(-1)
    counts = clip.visible & (x >= 0) & (x < w) & (y >= 0) & (y < h)
    classes = (y * w + x)[counts]
    expected = F.cross_entropy(scores[counts].flatten(1), classes)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)  # a mean in another order


def test_the_scores_are_products_with_the_query_s_feature():
    clip, model = held_out_clips(2, **TINY_CLIPS), tiny_model()
    # A query that lies on a feature reads it as it is.
    queries = torch.cat([clip.queries[..., :1], STRIDE * torch.ones(2, 6, 2)], dim=-1)
    with torch.no_grad():
        scores = matching_scores(model, clip._replace(queries=queries))
        level = model.pyramid(clip.video)[0].unflatten(0, (2, 8))
    for b, n, t in ((0, 0, 3), (1, 5, 0), (1, 2, 7)):
        anchor = level[b, int(queries[b, n, 0]), 1, 1]
        expected = (level[b, t] @ anchor) / math.sqrt(16)
        assert torch.allclose(scores[b, t, n], expected, atol=1e-5)


def test_an_encoder_that_knows_the_places_finds_them_all(monkeypatch):
    clips = held_out_clips(2, **TINY_CLIPS, speed=12.0)
    across, down = torch.arange(10.0), torch.arange(8.0)[:, None]
    sign = -1

    def knows(_, clip):
        x, y = (clip.points / STRIDE)[..., None, None, :].unbind(-1)
        return sign * ((across - x) ** 2 + (down - y) ** 2)

    monkeypatch.setattr(learning, "matching_scores", knows)
    assert share_found(tiny_model(), clips) == 1
    sign = 1
    assert share_found(tiny_model(), clips) == 0


def test_training_makes_features_match(monkeypatch):
    monkeypatch.setenv("FOURFOLD_SCALE", "cpu")
    recipe = TINY["features"]._replace(steps=40, learning_rate=3e-3)
    _, records = train_cotracker(recipe, tiny_clips(), model=tiny_model(), progress=False)
    first, last = (sum(r.loss for r in part) / 10 for part in (records[:10], records[-10:]))
    # Frames of 32 × 40 pixels, enlarged twofold, have 16 × 20 places: better than an even guess.
    assert last < 0.9 * first and last < math.log(16 * 20)


@torch.no_grad()
def test_an_enlarged_clip_shows_the_same_scene():
    clip = held_out_clips(2, **TINY_CLIPS)
    x_and_y = pixel_grid(32, 40).permute(2, 0, 1)
    coordinates = torch.cat([x_and_y, x_and_y[:1]]).expand(2, 8, 3, 32, 40)
    large = enlarged(clip._replace(video=coordinates), 3)
    assert large.video.shape == (2, 8, 3, 96, 120) and large.visible.equal(clip.visible)
    read = sample(large.video.flatten(0, 1), large.points.flatten(0, 1)[:, :, None])
    read = read[:, :2, :, 0].mT.unflatten(0, (2, 8))
    # Colours are coordinates of up to 40, and ramps are exact between pixels.
    assert torch.allclose(read[clip.visible], clip.points[clip.visible], atol=1e-4)
    frame, n = large.queries[..., 0].long(), torch.arange(6)
    for b in range(2):
        assert torch.allclose(large.points[b, frame[b], n], large.queries[b, :, 1:], atol=1e-4)
    assert enlarged(clip, 1) is clip


# The stages.


def same(one, two):
    return [torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True)]


@pytest.mark.parametrize("name", RECIPES)
def test_each_stage_moves_its_part_alone(name, monkeypatch):
    monkeypatch.setenv("FOURFOLD_SCALE", "cpu")
    model = tiny_model()
    before = {
        part: [p.clone() for p in getattr(model, part).parameters()] for part in ("fnet", "update")
    }
    train_cotracker(TINY[name], tiny_clips(), model=model, progress=False)
    moved = {
        part: any(
            not torch.equal(a, b)
            for a, b in zip(was, getattr(model, part).parameters(), strict=True)
        )
        for part, was in before.items()
    }
    assert moved == {"fnet": name != "update", "update": name != "features"}
    assert not model.training and all(p.requires_grad for p in model.parameters())


def test_an_interrupted_model_is_left_as_it_was(monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(learning, "train", interrupted)
    model = tiny_model()
    with pytest.raises(KeyboardInterrupt):
        train_cotracker(TINY["features"], tiny_clips(), model=model, progress=False)
    assert not model.bfloat16 and not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", RECIPES)
def test_training_is_repeatable_and_resumable(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FOURFOLD_SCALE", "cpu")
    options = {"progress": False, "seed": 5}
    straight, records = train_cotracker(TINY[name], tiny_clips(), model=tiny_model(), **options)
    for minutes, steps in ((0, 1), (0, 2), (None, 3)):
        resumed, log = train_cotracker(
            TINY[name],
            tiny_clips(),
            model=tiny_model(),
            folder=tmp_path,
            minutes=minutes,
            **options,
        )
        assert len(log) == steps
    assert [r.loss for r in log] == [r.loss for r in records]
    assert all(same(straight.state_dict(), resumed.state_dict()))
    other, _ = train_cotracker(TINY[name], tiny_clips(), model=tiny_model(), progress=False, seed=6)
    assert not all(same(straight.state_dict(), other.state_dict()))


def test_the_default_model_and_clips_are_the_course_s(monkeypatch):
    monkeypatch.setenv("FOURFOLD_SCALE", "cpu")
    monkeypatch.setattr(learning, "SMALL", TINY_MODEL)
    recipe = TINY["features"]._replace(steps=1)
    one, two = (train_cotracker(recipe, progress=False, seed=3)[0] for _ in range(2))
    assert one.sizes == tiny_model().sizes and all(same(one.state_dict(), two.state_dict()))


def test_gradient_between_windows_has_two_ways():
    model, clip = tiny_model(), held_out_clips(1, (32, 40), frames=12, points=6)
    windows = dict(model.windows(clip.video, clip.queries, 2))
    loss = sum(course_loss([(4, windows[4])], clip).values())
    carried = windows[0][-1]
    points, scores = torch.autograd.grad(loss, [carried.points, carried.visibility])
    # The first frame of the next window is where the embedding of places is read.
    others = [0, 1, 2, 3, 5, 6, 7]
    assert points[:, 4].abs().sum() > 0 and points[:, others].abs().sum() == 0
    assert (scores[:, 4:].abs().sum(dim=(0, 2)) > 0).all() and scores[:, :4].abs().sum() == 0


def test_a_step_of_the_last_stage_carries_points_into_a_second_window():
    assert len(window_starts(ALL.frames, SMALL["window"])) > 1
    assert len(window_starts(UPDATE.frames, SMALL["window"])) == 1
    assert (FEATURES.trains, UPDATE.trains, ALL.trains) == tuple(RECIPES)
    assert all(recipe.batch <= 4 for recipe in RECIPES.values())


# Scores.


def test_a_score_is_that_of_tap_vid():
    clips, model = held_out_clips(3, (32, 40), frames=6, points=5), tiny_model().eval()
    truth = Tracks(clips.points, clips.visible.float())
    together = Predictor(model, iterations=2)(clips.video, clips.queries)
    expected = tap_vid_metrics(together, truth, clips.queries, (32, 40), threshold=0.5)
    found = evaluate(model, clips, iterations=2)
    # One by one or together differ by rounding, which a threshold may turn for a point of 75.
    assert found[:3] == pytest.approx(expected[:3], abs=0.02)
    still = stay_put(clips.video, clips.queries)
    assert evaluate(stay_put, clips) == tap_vid_metrics(still, truth, clips.queries, (32, 40))


def test_the_truth_scores_one():
    clips = held_out_clips(2, (32, 40), frames=6, points=5)
    answers = iter(zip(clips.points, clips.visible.float(), strict=True))

    def knows(video, queries):
        return Tracks(*(part[None] for part in next(answers)))

    assert evaluate(knows, clips)[:3] == (1.0, 1.0, 1.0)


# The command.


@pytest.fixture
def small_course(monkeypatch):
    """Every stage in a second: tiny models, three steps, two small held-out clips."""
    monkeypatch.setenv("FOURFOLD_SCALE", "cpu")
    monkeypatch.setattr(learning, "SMALL", TINY_MODEL)
    monkeypatch.setattr(learning, "RECIPES", TINY)
    few = held_out_clips(2, **TINY_CLIPS)
    monkeypatch.setattr(learning, "held_out_clips", lambda: few)


def test_the_stages_hand_on_one_file(small_course, tmp_path):
    weights = tmp_path / "cotracker_small.safetensors"
    for recipe in RECIPES:
        start = None if recipe == "features" else weights
        done = train_course(tmp_path, recipe=recipe, start=start, progress=False)
        assert (done.weights, done.done, done.steps) == (weights, 3, 3)
        assert (tmp_path / recipe / "log.csv").is_file()
        assert {"held-out AJ", "held-out δ_avg", "held-out OA", "stay-put's held-out AJ"} < set(
            done.metrics
        )
    card = read_card(weights)
    assert card.command.startswith(
        "fourfold train cotracker --recipe all --steps 3 --seed 0 --start"
    )
    assert "8 frames of 32 × 40" in card.data
    model = load_cotracker(weights)
    assert model.sizes == tiny_model().sizes and model.window == 8
    score = evaluate(model, learning.held_out_clips(), iterations=2)
    # The measured weights are the stored ones.
    assert score.average_within == pytest.approx(done.metrics["held-out δ_avg"], abs=1e-6)


def test_a_stopped_stage_goes_on(small_course, tmp_path):
    stopped = train_course(tmp_path, minutes=0, progress=False)
    assert stopped.done == 1
    assert read_card(stopped.weights).command.endswith("(stopped after 1 steps)")
    assert train_course(tmp_path, progress=False).done == 3


def test_other_steps_are_those_of_the_run(small_course, tmp_path):
    assert train_course(tmp_path, steps=2, progress=False).steps == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda f: train_course(f, recipe="slow"),
            ValueError,
            "recipe is 'slow'; expected one of f",
        ),
        (lambda f: train_course(f, recipe="update"), ValueError, "start is None; expected a file"),
        (lambda f: train_course(f, steps=0), ValueError, "steps is 0; expected"),
        (
            lambda f: train_course(f, recipe="all", start=f / "x.safetensors"),
            FileNotFoundError,
            "there is no such file",
        ),
        (
            lambda f: train_cotracker(
                TINY["all"]._replace(trains="x"), tiny_clips(), model=tiny_model()
            ),
            ValueError,
            "recipe.trains is 'x'; expected one of features, update, all",
        ),
    ],
)
def test_bad_input_is_named(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(tmp_path)
