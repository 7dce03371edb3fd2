"""The whole model as its users meet it: windows, masks, batches, sizes, weights, errors."""

import json
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from official_cotracker import REFERENCE, reference, texture_video

from fourfold.cotracker import cotracker
from fourfold.cotracker.cotracker import (
    CoTracker,
    Estimate,
    Sizes,
    as_tracks,
    carried,
    from_published_names,
    least_size,
    levels_and_radius,
    load_cotracker,
    our_name,
    overwritten,
    window_masks,
    window_starts,
)
from fourfold.cotracker.features import STRIDE
from fourfold.cotracker.tokens import time_embedding
from fourfold.kit.checkpoints import ModelCard, save_checkpoint, save_tensors

TINY = {
    "width": 24,
    "depth": 1,
    "heads": 3,
    "virtual_tracks": 6,
    "features": 16,
    "widths": (8, 8, 12, 12),
    "levels": 2,
    "radius": 1,
    "resolution": (64, 96),
    "highest": 4.0,
}
# Sums in another order: some 1e-6 of feature pixels after two iterations of a small model.
CLOSE = {"atol": 2e-4, "rtol": 0}


def tiny(version="2", mode="offline", **sizes):
    """A small model whose random heads move points by about a pixel."""
    torch.manual_seed(0)
    window = {} if version == "3" and mode == "offline" else {"window": 8}
    model = CoTracker(version, mode=mode, **window | TINY | sizes).eval()
    for head in (model.update.transformer.flow_head, model.update.transformer.vis_conf_head):
        if head is not None:
            torch.nn.init.normal_(head.weight, std=0.05)
    return model


MODELS = {"2": ("2",), "3 offline": ("3",), "3 online": ("3", "online")}


@pytest.fixture(scope="module", params=MODELS, ids=str)
def model(request):
    return tiny(*MODELS[request.param])


@pytest.fixture(scope="module")
def two():
    return tiny()


@pytest.fixture(scope="module")
def video():
    return texture_video(16, 48, 64)


def queries(*frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(len(frames), 2, generator=generator) * torch.tensor([63.0, 47.0])
    return torch.cat([torch.tensor(frames)[:, None].float(), places], dim=1)[None]


def same(one, other, **limits):
    limits = limits or CLOSE
    return all(
        (a is None and b is None) or torch.allclose(a, b, **limits)
        for a, b in zip(one, other, strict=True)
    )


# ---- windows and masks


@given(frames=st.integers(1, 200), half=st.integers(1, 20))
def test_windows_cover_the_clip_and_no_more_than_needed(frames, half):
    window = 2 * half
    if frames <= half:
        with pytest.raises(ValueError, match=f"video has {frames} frames; expected more than"):
            window_starts(frames, window)
        return
    starts = list(window_starts(frames, window))
    assert starts == [half * j for j in range(max(1, math.ceil(frames / half) - 1))]
    assert starts[-1] + window >= frames > starts[-1] + half - (len(starts) == 1) * half


@given(
    queried=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    step=st.integers(0, 5),
    half=st.integers(1, 4),
)
def test_masks_against_a_loop(queried, step, half):
    first, window = step * half, 2 * half
    active, known = window_masks(torch.tensor([queried]).float(), first, window)
    for n, q in enumerate(queried):
        assert active[0, n] == (q < first + window)
        for t in range(window):
            new = first == 0 or t >= half
            assert known[0, t, n] == (q <= first + t and new)


def numbered(frames, start, with_confidence):
    """An estimate whose values say which frame of the clip they belong to."""
    line = (start + torch.arange(float(frames)))[None, :, None].expand(2, -1, 3)
    return Estimate(torch.stack([line, -line], -1), line, 3 * line if with_confidence else None)


@pytest.mark.parametrize("with_confidence", [False, True])
def test_a_window_goes_on_where_the_last_one_ended(with_confidence):
    last, fresh = (numbered(6, start, with_confidence) for start in (3, 100))
    goes_on = torch.tensor([[True, False, True], [False, False, True]])
    begun = carried(last, fresh, goes_on)
    for b in range(2):
        for n in range(3):
            expected = [6, 7, 8, 8, 8, 8] if goes_on[b, n] else [100, 101, 102, 103, 104, 105]
            assert begun.visibility[b, :, n].tolist() == expected
            assert begun.points[b, :, n].tolist() == [[t, -t] for t in expected]
    assert (begun.confidence is None) != with_confidence
    joined = overwritten(last, 3, begun)
    assert joined.visibility[0, :, 0].tolist() == [3, 4, 5, 6, 7, 8, 8, 8, 8]
    assert overwritten(None, 0, last) is last


def test_an_estimate_becomes_tracks_of_the_frames_that_there_are():
    tracks = as_tracks(numbered(6, 0, True), 4)
    assert tracks.points[1, :, 2, 0].tolist() == [0, STRIDE, 2 * STRIDE, 3 * STRIDE]
    assert torch.allclose(tracks.confidence[0, 2, 0], torch.tensor(6.0).sigmoid())
    assert tracks.visibility.shape == (2, 4, 3)


# ---- the model


@torch.no_grad()
def test_a_batch_is_its_videos(model, video):
    one, other = queries(0, 2, 9), queries(1, 0, 12, seed=1)
    reverse = video.flip(1)
    together = model(torch.cat([video, reverse]), torch.cat([one, other]), 2)
    for b, alone in enumerate((model(video, one, 2), model(reverse, other, 2))):
        assert same([x if x is None else x[b : b + 1] for x in together], alone)


@torch.no_grad()
def test_the_order_of_the_points_does_not_matter(model, video):
    asked, order = queries(0, 2, 9, 0, 5), torch.tensor([3, 0, 4, 2, 1])
    tracks, shuffled = model(video, asked, 2), model(video, asked[:, order], 2)
    assert same([x if x is None else x[:, :, order] for x in tracks], shuffled)


@torch.no_grad()
def test_points_are_tracked_jointly(model, video):
    alone, joint = model(video, queries(0, 2), 2), model(video, queries(0, 2, 0, 1, 3), 2)
    assert not torch.allclose(alone.points, joint.points[:, :, :2], atol=1e-3)


@torch.no_grad()
def test_a_window_does_not_know_the_future(video):
    for model in (tiny(), tiny("3", "online")):
        asked = queries(0, 3, 6)
        _, short = next(model.windows(video[:, :8], asked, 2))
        _, long = next(model.windows(video, asked, 2))
        assert same(short[-1], long[-1])


@torch.no_grad()
def test_version_2_leaves_points_of_later_windows_out(two, video):
    asked = queries(0, 3, 9, 13)
    _, few = next(two.windows(video, asked[:, :2], 2))
    _, many = next(two.windows(video, asked, 2))
    assert torch.allclose(few[-1].points, many[-1].points[:, :, :2], **CLOSE)


@torch.no_grad()
def test_masks_confused_by_size_matter_at_that_size_alone(two, video):
    for N in (5, 6, 7):
        answers = []
        for two.update.transformer.by_size in (False, True):
            answers.append(two(video, queries(*[0, 4, 9, 0, 2, 10, 1][:N]), 2).points)
        assert torch.equal(*answers) == (TINY["virtual_tracks"] != N)
    two.update.transformer.by_size = False


@torch.no_grad()
def test_a_clip_that_ends_within_a_window_repeats_its_last_frame(video):
    for model in (tiny(), tiny("3", "online")):
        asked, short = queries(0, 3, 8), video[:, :10]
        padded = torch.cat([short, short[:, -1:].expand(-1, 2, -1, -1, -1)], dim=1)
        longer = model(padded, asked, 2)
        assert same(model(short, asked, 2), [x if x is None else x[:, :10] for x in longer])


@torch.no_grad()
def test_offline_takes_the_whole_clip_and_the_others_windows(video):
    firsts = {
        name: [first for first, _ in tiny(*how).windows(video, queries(0, 1), 1)]
        for name, how in MODELS.items()
    }
    assert firsts == {"2": [0, 4, 8], "3 offline": [0], "3 online": [0, 4, 8]}
    # A single frame is a clip, too, for a model that takes any number.
    assert tiny("3")(video[:, :1], queries(0), 1).points.shape == (1, 1, 1, 2)


@torch.no_grad()
def test_every_frame_is_encoded_once_and_no_window_copies_features(two, video, monkeypatch):
    seen, levels = [], []
    hook = two.fnet.register_forward_hook(lambda _, takes, __: seen.append(len(takes[0])))
    update = two.update.register_forward_hook(lambda _, takes, __: levels.append(takes[0].levels))
    two(video, queries(0, 1), 1)
    hook.remove(), update.remove()
    assert sum(seen) == 16
    assert len({level[0].data_ptr() for level in levels}) == 1 and len(levels) == 3


@torch.no_grad()
def test_the_encoder_may_take_frames_in_parts(model, video, monkeypatch):
    whole = model.pyramid(video)
    monkeypatch.setattr(cotracker, "_PIXELS", 5 * 48 * 64)
    for part, all_at_once in zip(model.pyramid(video), whole, strict=True):
        assert torch.allclose(part, all_at_once, atol=1e-5)


@torch.no_grad()
def test_version_2_tells_visibility_once_and_version_3_refines_it(video):
    asked = queries(0, 1, 2)
    _, estimates = next(tiny().windows(video, asked, 3))
    assert all((estimate.visibility == 10).all() for estimate in estimates[:-1])
    assert estimates[-1].visibility.std() > 0 and estimates[-1].confidence is None
    _, estimates = next(tiny("3").windows(video, asked, 3))
    for before, after in pairwise(estimates):
        assert (after.visibility != before.visibility).all()
        assert (after.confidence != before.confidence).all()


@torch.no_grad()
def test_more_iterations_begin_with_the_same_points(model, video):
    few, many = (next(model.windows(video, queries(0, 3), M))[1] for M in (2, 4))
    for short, long in zip(few, many, strict=False):
        assert torch.allclose(short.points, long.points, **CLOSE)


def test_no_gradient_flows_from_an_iteration_to_the_points_before(model, video):
    _, estimates = next(model.windows(video, queries(0, 3), 2))
    first, last = estimates[0].points, estimates[1].points
    (through_points,) = torch.autograd.grad(last.sum(), first, retain_graph=True, allow_unused=True)
    assert through_points is None
    last.sum().backward()
    assert model.fnet.conv1.weight.grad.abs().sum() > 0
    model.zero_grad()


def test_training_reaches_every_parameter(model, video):
    loss = 0
    for _, estimates in model.windows(video, queries(0, 3, 5), 2):
        loss = loss + sum(e.points.square().mean() + e.visibility.mean() for e in estimates)
        loss = loss + sum(e.confidence.mean() for e in estimates if e.confidence is not None)
    loss.backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    # The last block's answer of the virtual tracks is read by points, so all of it counts.
    assert unused == []
    model.zero_grad()


def test_an_anchor_is_the_feature_at_the_query(two, video):
    levels = two.pyramid(video[:, :2])
    places = torch.tensor([[[3.0, 5.0], [15.0, 11.0]]])
    read = two.update.anchor(levels, torch.tensor([[1, 0]]), places)
    assert torch.equal(read[0, 0], levels[0][1, 5, 3]) and read.shape == (1, 2, 16)
    assert torch.equal(read[0, 1], levels[0][0, 11, 15])


# ---- bad input


BAD_INPUT = [
    (lambda v, q: (v[:, :4], q), ValueError, "video has 4 frames; expected more than 4"),
    (lambda v, q: (v.byte(), q), TypeError, "video has dtype torch.uint8"),
    (lambda v, q: (v.numpy(), q), TypeError, "video is a ndarray; expected a tensor"),
    (lambda v, q: (v[0], q), ValueError, r"expected \(B, T, 3, H, W\)"),
    (lambda v, q: (v[:, :, :1], q), ValueError, r"expected \(B, T, 3, H, W\)"),
    (lambda v, q: (v[:0], q), ValueError, "none of them 0"),
    (lambda v, q: (v[..., :62], q), ValueError, "frames of 48 × 62; expected multiples of 4"),
    (lambda v, q: (v[..., :16, :], q), ValueError, "expected at least 20 × 20 for 2 levels"),
    (lambda v, q: (v / 255, q), ValueError, r"video .* expected \[0, 255\], not \[0, 1\]"),
    (lambda v, q: (2 * v, q), ValueError, "video has values from"),
    (lambda v, q: (v.where(v > 100, torch.nan), q), ValueError, "video has values from nan"),
    (lambda v, q: (v, q.long()), TypeError, "queries has dtype torch.int64"),
    (lambda v, q: (v, q[:, :0]), ValueError, "queries is empty"),
    (lambda v, q: (v, q[0]), ValueError, r"expected \(1, N, 3\) as \(frame, x, y\)"),
    (lambda v, q: (v, q.expand(2, -1, -1)), ValueError, r"expected \(1, N, 3\)"),
    (lambda v, q: (v, q + torch.tensor([16.0, 0, 0])), ValueError, "frame 16; expected"),
    (lambda v, q: (v, q + torch.tensor([0.5, 0, 0])), ValueError, "whole number from 0 to 15"),
    (lambda v, q: (v, q + torch.tensor([0, 64.0, 0])), ValueError, r"queries\[0, 0\] has x"),
    (lambda v, q: (v, q - torch.tensor([0, 0, 50.0])), ValueError, r"queries\[0, 0\] has y"),
    (lambda v, q: (v, q * torch.nan), ValueError, "queries.* nan"),
    (lambda v, q: (v, q, 0), ValueError, "iterations is 0; expected a whole number, 1 or more"),
]


@pytest.mark.parametrize(("change", "error", "words"), BAD_INPUT)
def test_bad_input_is_named(without_shape_checks, two, video, change, error, words):
    with pytest.raises(error, match=words):
        two(*change(video, queries(0, 0)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"version": "1"}, "version is '1'; expected one of 2, 3"),
        ({"version": "3", "mode": "live"}, "mode is 'live'"),
        ({"window": 7}, "window is 7; expected an even number"),
        ({"window": 0}, "window is 0"),
        ({"heads": 5}, "width is 384; expected a multiple of heads, 5"),
        ({"levels": 0}, "levels is 0"),
        ({"radius": -1}, "radius is -1"),
        ({"widths": (8, 8)}, "widths is .8, 8.; expected four"),
        ({"resolution": (50, 60)}, "resolution is .50, 60.; expected .H, W., multiples of 4"),
        ({"highest": 0.0}, "highest is 0.0"),
        ({"feature_length": -1.0}, "feature_length is -1.0; expected 0 or more"),
    ],
)
def test_a_model_that_is_none(wrong, words):
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        CoTracker(**wrong)


@torch.no_grad()
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_the_least_size_is_enough_and_one_step_less_is_not(levels):
    side, small = least_size(levels), tiny(levels=levels)
    clip, asked = texture_video(8, side, side), torch.tensor([[[0.0, 3.0, 4.0]]])
    assert small(clip, asked, 1).points.isfinite().all()
    with pytest.raises(ValueError, match=f"expected at least {side} × {side}"):
        small(clip[..., 4:], asked, 1)


# ---- weights


def released(model):
    """The tensors of a model under the names of the release, `settings` left out."""
    names = {name: name for name in model.state_dict() if name != "settings"}
    for ours, theirs in (
        ("update.transformer.virtual_tracks", "updateformer.virual_tracks"),
        ("update.transformer.", "updateformer."),
        ("update.track_feat_updater.", "track_feat_updater.0."),
        ("update.vis_predictor.", "vis_predictor.0."),
        ("update.", ""),
    ):
        names = {name: theirs_so_far.replace(ours, theirs) for name, theirs_so_far in names.items()}
    state = model.state_dict()
    return {theirs: state[name] for name, theirs in names.items()}


def equal(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("name", ["cotracker2", "cotracker2v1", "cotracker3_offline"])
def test_every_name_and_shape_of_the_release_is_ours(name):
    shapes = json.loads((REFERENCE / "cotracker_keys.json").read_text())[name]
    with torch.device("meta"):
        model = CoTracker(name[9], window=shapes["time_emb"][1])
    ours = {n: list(value.shape) for n, value in model.state_dict().items() if n != "settings"}
    assert ours == {our_name(n): s for n, s in shapes.items() if n not in ("time_emb", "pos_emb")}
    assert shapes["time_emb"] == [1, model.window, model.update.inputs]


def test_a_model_of_ours_is_restored_with_all_its_sizes(model):
    twin = CoTracker.from_official(model.state_dict(), model.mode)
    assert (twin.version, twin.mode, twin.window) == (model.version, model.mode, model.window)
    assert twin.sizes == model.sizes and equal(twin, model) and not twin.training


@pytest.mark.parametrize("spelling", ["plain", "module.", "model", "model and module."])
def test_spellings_of_the_release(model, spelling):
    state = released(model)
    if "module." in spelling:
        state = {f"module.{name}": value for name, value in state.items()}
    state = {"model": state, "epoch": 3} if "model" in spelling.split() else state
    told = {"heads": 3, "resolution": (64, 96), "highest": 4.0, "window": model.window}
    twin = CoTracker.from_official(state, model.mode, **told)
    assert twin.sizes == model.sizes and equal(twin, model)


def test_tables_tell_the_window_and_the_resolution(two):
    state, told = released(two), {"heads": 3, "highest": 4.0}
    D, (h, w) = two.update.inputs, (16, 24)
    state["time_emb"] = time_embedding(8, D)[None]
    state["pos_emb"] = place_table(D, h, w)
    twin = CoTracker.from_official(state, **told)
    assert twin.window == 8 and twin.sizes == two.sizes
    for name in ("time_emb", "pos_emb"):
        with pytest.raises(ValueError, match=f"{name} differs by"):
            CoTracker.from_official(state | {name: state[name].flip(1)}, **told)
    with pytest.raises(ValueError, match=r"time_emb has shape \(1, 8, .*expected \(1, 16"):
        CoTracker.from_official(state, window=16, **told)
    assert CoTracker.from_official(released(two), window=16, **told).window == 16
    assert CoTracker.from_official(released(two), **told).window == 8  # the release's, unless told


def place_table(width, height, breadth):
    """The release's table of places, (1, D, h, w): half the numbers for x, half for y."""
    half = 2 * math.ceil(width / 4)
    omega = 10_000.0 ** (-torch.arange(half // 2, dtype=torch.float64) / (half / 2))
    parts = []
    for length, axis in ((breadth, 1), (height, 0)):
        angles = torch.arange(length, dtype=torch.float64)[:, None] * omega
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        other = height if axis else breadth
        parts.append(waves.expand(other, -1, -1) if axis else waves[:, None].expand(-1, other, -1))
    return torch.cat(parts, dim=-1)[..., :width].permute(2, 0, 1)[None].float()


def test_the_table_of_places_is_the_frozen_one():
    official, ours = reference("cotracker2"), place_table(456, 96, 128)
    assert torch.allclose(ours[:, ::8, :4, :6], official["pos_emb_corner"], atol=1e-6)
    assert ours.double().sum().item() == pytest.approx(official["pos_emb_sum"].item(), rel=1e-7)


def test_every_key_that_does_not_fit_is_named(two):
    state = released(two)
    del state["fnet.conv1.bias"]
    state |= {"vis_predictor.0.bias": torch.zeros(5), "odd": torch.zeros(1)}
    with pytest.raises(ValueError) as error:
        CoTracker.from_official(state, heads=3)
    for words in (
        "missing fnet.conv1.bias",
        "unexpected odd",
        "update.vis_predictor.bias has shape (5,); expected (1,)",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize("wrong", [[1], {"a": 1}, {1: torch.zeros(1)}, {}, {"a": torch.zeros(1)}])
def test_what_is_no_weights(without_shape_checks, wrong):
    with pytest.raises(ValueError, match="state_dict"):
        CoTracker.from_official(wrong)


def test_settings_of_another_shape(two):
    state = two.state_dict() | {"settings": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"settings has shape \(3,\); expected \(6,\)"):
        CoTracker.from_official(state)


def test_a_name_of_ours_stays(model):
    ours = model.state_dict()
    assert list(from_published_names(ours)) == list(ours)


@given(levels=st.integers(1, 8), radius=st.integers(0, 8), features=st.integers(1, 300))
def test_levels_and_radius_are_read_from_a_token(levels, radius, features):
    side = 2 * radius + 1
    inputs = 130 + levels * side**2 + features + 2
    assert levels_and_radius(inputs, features, None) == (levels, radius)
    assert levels_and_radius(2 + 256 * levels + 84, features, side**4) == (levels, radius)


# ---- files


@pytest.fixture
def card():
    return ModelCard("fourfold train cotracker", 0, "a CPU", 1.0, "clips")


@pytest.mark.parametrize("float16", [False, True])
def test_a_course_checkpoint_restores_the_model(model, card, tmp_path, float16):
    path = tmp_path / "cotracker.safetensors"
    save_checkpoint(path, model, card, float16=float16)
    found = load_cotracker(path, model.mode)
    assert found.sizes == model.sizes and found.window == model.window and not found.training
    for name, value in model.state_dict().items():
        expected = value.half().float() if float16 else value
        assert torch.equal(found.state_dict()[name], expected)
    about = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(about | {"sha256": "0" * 64}))
    with pytest.raises(ValueError, match="expected 0000"):
        load_cotracker(str(path), model.mode)


def test_the_sizes_of_the_release_survive_half_precision():
    sizes = Sizes()
    numbers = torch.tensor([60, sizes.heads, *sizes.resolution, *sizes[-2:]])
    assert torch.equal(numbers.half().float(), numbers)


@torch.no_grad()
def test_feature_vectors_have_the_asked_length():
    clip = texture_video(3, 64, 64)
    plain, scaled = (tiny(feature_length=length) for length in (0.0, 12.0))
    scaled.load_state_dict(plain.state_dict() | {"settings": scaled.settings})
    long, short = scaled.pyramid(clip)[0], plain.pyramid(clip)[0]
    assert torch.allclose(long.norm(dim=-1), torch.tensor(12.0), rtol=1e-5)
    # The direction of a vector stays.
    assert torch.allclose(long, 12 * F.normalize(short, dim=-1), atol=1e-5)
    twin = CoTracker.from_official(scaled.state_dict())
    assert twin.sizes == scaled.sizes and torch.equal(twin.pyramid(clip)[0], long)


@torch.no_grad()
def test_bfloat16_is_near_and_leaves_points_in_float32(model):
    clip, asked = texture_video(8, 64, 64), torch.tensor([[[0.0, 30.0, 31.0]]])
    exact = model.pyramid(clip)[0]
    model.bfloat16 = True
    try:
        near, tracks = model.pyramid(clip)[0], model(clip, asked, 1)
    finally:
        model.bfloat16 = False
    assert near.dtype == tracks.points.dtype == torch.float32
    # bfloat16 has eight bits; errors of a few layers add up to some hundredths of the whole.
    gap = (near - exact).norm() / exact.norm()
    assert 0 < gap < 0.05


def test_course_is_the_shipped_file(two, card, tmp_path, monkeypatch):
    asked = []
    save_checkpoint(tmp_path / "cotracker_small.safetensors", two, card)
    monkeypatch.setattr(
        cotracker, "data_path", lambda *parts: asked.append(parts) or tmp_path / parts[-1]
    )
    assert equal(load_cotracker(), two)
    assert asked == [("checkpoints", "cotracker_small.safetensors")]


def test_a_file_of_torch_loads_and_one_with_code_does_not(two, tmp_path):
    state = {f"module.{name}": value for name, value in two.state_dict().items()}
    torch.save({"model": state}, tmp_path / "tracker.pth")
    assert equal(load_cotracker(tmp_path / "tracker.pth"), two)
    torch.save({"a": print}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match=r"code\.pt is not a whole file of tensors"):
        load_cotracker(tmp_path / "code.pt")


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="weights is 'cotracker2'; expected 'course', or a file"):
        load_cotracker("cotracker2")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_cotracker(tmp_path / "none.pth")
    save_tensors(tmp_path / "odd.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="expected a CoTracker's"):
        load_cotracker(tmp_path / "odd.safetensors")
