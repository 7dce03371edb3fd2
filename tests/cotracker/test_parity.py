"""The whole model against the frozen outputs of the official release, in all four shapes of it."""

from typing import NamedTuple

import pytest
import torch
from official_cotracker import close, official_state_dict, reference, texture_video
from torch import Tensor

from fourfold.cotracker.cotracker import CoTracker, as_tracks, overwritten
from fourfold.cotracker.features import STRIDE

VARIANTS = ("cotracker2", "cotracker2v1", "cotracker3_offline", "cotracker3_online")
# |float32 − float64| of the release: 3e-5 px, 1.4e-6 of a visibility; other orders of sums add.
POINTS, CERTAINTY = 1e-4, 1e-5
MODULE = 1e-5  # times the largest number: a single module


class Case(NamedTuple):
    """A model, its frozen numbers, and one run of 4 iterations that the tests share."""

    name: str
    model: CoTracker
    official: dict
    video: Tensor
    queries: Tensor
    levels: list
    windows: list
    first: dict  # by name of a module: inputs and output of its first call


def frozen_for(*names):
    return pytest.mark.parametrize("case", names, indirect=True)


def build(name):
    return CoTracker.from_official(
        official_state_dict(name), "online" if name.endswith("online") else "offline"
    )


@pytest.fixture(scope="module")
def case(request):
    model, official, first = build(request.param), reference(request.param), {}
    video, queries = texture_video(int(official["T"])), official["queries"][None]

    def note(name):
        def hook(_, inputs, output):  # what a hook returns would replace the output
            first.setdefault(name, (inputs, output))

        return hook

    hooks = [
        module.register_forward_hook(note(name))
        for name, module in model.update.named_modules()
        if name in ("transformer", "corr_mlp")
    ]
    with torch.no_grad():
        levels = model.pyramid(video)
        model.pyramid = lambda video: levels  # the encoder has run once; the rest is the same
        windows = list(model.windows(video, queries, 4))
        del model.pyramid
    for hook in hooks:
        hook.remove()
    return Case(request.param, model, official, video, queries, levels, windows, first)


def whole(case):
    estimate = None
    for first, estimates in case.windows:
        estimate = overwritten(estimate, first, estimates[-1])
    return as_tracks(estimate, case.video.shape[1])


@frozen_for(*VARIANTS)
def test_the_input_is_that_of_the_frozen_numbers(case):
    assert torch.equal(case.video[0, 0], case.official["frame0"].float())
    assert torch.equal(case.video[0, -1], case.official["frame_last"].float())


@frozen_for(*VARIANTS)
def test_features(case):
    with torch.no_grad():
        ours = case.model.fnet(2 * (case.video[0, :2] / 255) - 1)  # before version 3 scales them
    assert close(ours[:, ::8], case.official["fmaps01_every8"], MODULE)


@frozen_for(*VARIANTS)
def test_the_first_run_of_the_transformer(case):
    (tokens, *active), change = case.first["transformer"]
    if "uf_in" in case.official:
        assert close(tokens, case.official["uf_in"], MODULE)
        assert torch.equal(active[0][0], case.official["uf_mask"])
    else:
        assert close(tokens[..., ::3], case.official["uf_in_every3"], MODULE)
        assert not active  # no mask reaches it
    assert close(change, case.official["uf_out"], MODULE)


@frozen_for("cotracker3_offline", "cotracker3_online")
def test_version_3_shortens_the_same_products(case):
    (products,), short = case.first["corr_mlp"]
    assert close(products[:24], case.official["corrmlp_in_first24"], MODULE)
    assert close(short[:24], case.official["corrmlp_out_first24"], MODULE)


@frozen_for(*VARIANTS)
def test_tracks(case):
    """The release's online mode gives what its offline mode does, and so what ours does."""
    tracks, official = whole(case), case.official
    for prefix in ("", "online_") if "online_coords" in official else ("",):
        assert close(tracks.points, official[f"{prefix}coords"], absolute=POINTS)
        assert close(tracks.visibility, official[f"{prefix}vis"], absolute=CERTAINTY)
        if case.model.version == "3":
            assert close(tracks.confidence, official[f"{prefix}conf"], absolute=CERTAINTY)
    assert close(tracks.points.double(), official["coords_f64"], absolute=POINTS)
    assert (tracks.confidence is None) == (case.model.version == "2")


@frozen_for("cotracker2", "cotracker2v1")
def test_every_iteration_of_version_2_as_training_sees_it(case):
    assert len(case.windows) == case.official["train_n_windows"]
    for which, name in ((0, "train_coords_w0"), (-1, "train_coords_wlast")):
        points = torch.stack([STRIDE * estimate.points for estimate in case.windows[which][1]])
        assert close(points, case.official[name], absolute=POINTS)
    told = case.windows[-1][1][-1].visibility.sigmoid()
    assert close(told, case.official["train_vis_wlast"], absolute=CERTAINTY)
    frames = torch.arange(case.video.shape[1])[:, None]
    assert torch.equal(frames >= case.queries[:, None, :, 0], case.official["train_mask"])


@frozen_for("cotracker3_offline", "cotracker3_online")
def test_every_iteration_of_version_3_as_training_sees_it(case):
    estimates = case.windows[-1][1]
    points, told, sure = (torch.stack(values) for values in zip(*estimates, strict=True))
    assert close(STRIDE * points, case.official["train_coords"], absolute=POINTS)
    assert close(told.sigmoid(), case.official["train_vis"], absolute=CERTAINTY)
    assert close(sure.sigmoid(), case.official["train_conf"], absolute=CERTAINTY)


@frozen_for("cotracker3_online")
@torch.no_grad()
def test_frames_that_arrive_one_half_window_at_a_time(case):
    model, step, levels, anchors = case.model, case.model.window // 2, None, None
    last = estimate = None
    for seen in range(0, case.video.shape[1], step):
        new = model.pyramid(case.video[:, seen : seen + step])
        levels = (
            new if levels is None else [torch.cat(pair) for pair in zip(levels, new, strict=True)]
        )
        inside = case.queries[..., 0] - seen
        rows = inside.clamp(0, step - 1).long()
        read = model.update.anchor(new, rows, case.queries[..., 1:] / STRIDE)
        here = (inside >= 0) & (inside < step)
        anchors = torch.zeros_like(read) if anchors is None else anchors
        anchors = torch.where(here[:, :, None, None, None], read, anchors)
        first = seen - step
        if first < 0:
            continue
        rows = first + torch.arange(model.window)[None]
        args = levels, rows, first, case.queries, anchors, last, 4
        last = model.track_window(*args)[-1]
        estimate = overwritten(estimate, first, last)
    tracks = as_tracks(estimate, case.video.shape[1])
    assert close(tracks.points, case.official["online_coords"], absolute=POINTS)
    assert close(tracks.visibility, case.official["online_vis"], absolute=CERTAINTY)
    assert close(tracks.confidence, case.official["online_conf"], absolute=CERTAINTY)


@frozen_for("cotracker2", "cotracker2v1")
@torch.no_grad()
def test_a_clip_that_ends_within_a_window(case):
    tracks = case.model(texture_video(13), case.official["q13"][None], 2)
    assert close(tracks.points, case.official["coords13"], absolute=POINTS)
    assert close(tracks.visibility, case.official["vis13"], absolute=CERTAINTY)


@frozen_for("cotracker2")
@torch.no_grad()
def test_as_many_points_as_virtual_tracks(case):
    """`by_size` repeats the release's confusion of masks, and without it the tracks are others."""
    transformer, queries = case.model.update.transformer, case.official["q64"][None]
    case.model.pyramid = lambda video: case.levels
    transformer.by_size = True
    tracks = case.model(case.video, queries, 2)
    transformer.by_size = False
    _, right = next(case.model.windows(case.video, queries, 2))
    del case.model.pyramid
    assert close(tracks.points[:, ::4], case.official["coords64_every4"], absolute=POINTS)
    assert close(tracks.visibility[:, ::4], case.official["vis64_every4"], absolute=CERTAINTY)
    # Frames 0 to 3 of the answer come from the first window alone.
    apart = (STRIDE * right[-1].points[:, 0] - case.official["coords64_every4"][:, 0]).abs().max()
    assert apart > 100 * POINTS


@frozen_for("cotracker3_offline", "cotracker3_online")
@torch.no_grad()
def test_without_attention_across_tracks(case):
    case.model.pyramid = lambda video: case.levels
    case.model.update.transformer.space = False
    tracks = case.model(case.video, case.queries, 2)
    case.model.update.transformer.space = True
    del case.model.pyramid
    assert close(tracks.points, case.official["nospace_coords"], absolute=POINTS)
    assert close(tracks.visibility, case.official["nospace_vis"], absolute=CERTAINTY)


@frozen_for("cotracker2")
@torch.no_grad()
def test_in_float64_nothing_but_rounding_is_left(case):
    """A hundred times nearer than in float32, so that the ε of each norm counts, too."""
    model = build(case.name).double()
    model.pyramid = lambda video: CoTracker.pyramid(model, video[:, : model.window])
    early = case.queries[0, :, 0] < model.window  # the others take no part in the first window
    queries = case.queries[:, early].double()
    _, estimates = next(model.windows(case.video.double(), queries, 4))
    settled = model.window // 2
    gap = STRIDE * estimates[-1].points - case.official["coords_f64"][:, : model.window, early]
    assert gap[:, :settled].abs().max() < 1e-6
