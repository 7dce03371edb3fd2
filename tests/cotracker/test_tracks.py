"""Tracks: measures against loops and the official ones, chains of known flows, palindromes."""

import math
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from fourfold.bilinear_sampling.warps import affine_grid, pixel_grid, rotation, translation, warp
from fourfold.cotracker.tracks import (
    THRESHOLDS,
    Tracks,
    chained_flow,
    evaluated_frames,
    follow,
    jaccard,
    palindrome_error,
    share_within,
    stay_put,
    tap_vid_metrics,
)
from fourfold.kit.images import photograph
from fourfold.raft.fields import classical_flow
from fourfold.raft.raft import Flow

REFERENCE = Path(__file__).parents[1] / "reference" / "cotracker_utils.npz"
SIZE = (256, 256)
EXACT = 1e-4  # px: what float32 sampling of coordinates below 100 may round, over some ten steps


def random_tracks(seed, B=2, T=9, N=5, size=SIZE, miss=6.0):
    """Queries, their true tracks, and predicted ones some pixels off."""
    generator = torch.Generator().manual_seed(seed)
    H, W = size
    places = torch.rand(B, T, N, 2, generator=generator) * torch.tensor([W - 1.0, H - 1.0])
    visible, shown = (torch.rand(2, B, T, N, generator=generator) < 0.7).float()
    visible[:, -1] = 1  # something always counts
    frames = torch.randint(0, T - 1, (B, N, 1), generator=generator)
    queries = torch.cat([frames, places[torch.arange(B)[:, None], frames[..., 0], range(N)]], -1)
    off = miss * torch.randn(places.shape, generator=generator)
    return queries, Tracks(places, visible), Tracks(places + off, shown)


def one(tracks, b):
    return Tracks(*(values[b : b + 1] for values in tracks if values is not None))


# ---- measures


@pytest.fixture
def official():
    with np.load(REFERENCE) as file:
        arrays = {name: file[name] for name in file.files if name.startswith("tv_")}
    return {
        name: array.tolist() if array.dtype.kind == "U" else torch.from_numpy(array)
        for name, array in arrays.items()
    }


def by_official_name(score):
    values = {f"pts_within_{k}": share for k, share in score.within.items()}
    values |= {f"jaccard_{k}": share for k, share in score.jaccard.items()}
    values["average_jaccard"] = score.average_jaccard
    values["average_pts_within_thresh"] = score.average_within
    return values


def official_tracks(official):
    points = {name: official[f"tv_{name}"].transpose(1, 2) for name in ("gt", "pred")}
    hidden = {name: official[f"tv_{name}"].transpose(1, 2) for name in ("occ", "pocc")}
    truth = Tracks(points["gt"], (~hidden["occ"]).double())
    return Tracks(points["pred"], (~hidden["pocc"]).double()), truth, official["tv_q"]


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_the_measures_are_the_official_ones(official, mode):
    names = official[f"tv_{mode}_names"]
    assert len(names) == 13
    theirs = dict(zip(names, official[f"tv_{mode}"], strict=True))
    predicted, truth, queries = official_tracks(official)
    for b in range(2):
        score = tap_vid_metrics(one(predicted, b), one(truth, b), queries[b : b + 1], SIZE, mode)
        for name, value in by_official_name(score).items():
            assert abs(value - theirs[name][b].item()) < 1e-9, name
        # The release divides by the frames that count in the whole batch, here twice those of
        # one video.
        assert abs(score.occlusion_accuracy - 2 * theirs["occlusion_accuracy"][b].item()) < 1e-9
    both = tap_vid_metrics(predicted, truth, queries, SIZE, mode)
    for name, value in by_official_name(both).items():
        assert abs(value - theirs[name].mean().item()) < 1e-9, name
    assert abs(both.occlusion_accuracy - theirs["occlusion_accuracy"].sum().item()) < 1e-9


def test_the_batch_quirk_of_the_release_in_numbers(official):
    predicted, truth, queries = official_tracks(official)
    assert official["tv_first"][0].tolist() == pytest.approx([0.3, 0.3], abs=1e-9)
    score = tap_vid_metrics(predicted, truth, queries, SIZE)
    assert score.occlusion_accuracy == pytest.approx(0.6, abs=1e-9)


def measured_in_loops(predicted, truth, queries, size, mode):
    """All measures of one video as the definitions read, in Python's own numbers."""
    right = flags = visible = 0
    near, true_positive, false_positive = ({k: 0 for k in THRESHOLDS} for _ in range(3))
    _, T, N, _ = truth.points.shape
    for n in range(N):
        asked = queries[0, n, 0].item()
        for t in range(T):
            if (mode == "first" and t <= asked) or t == asked:
                continue
            (x, y), (true_x, true_y) = predicted.points[0, t, n], truth.points[0, t, n]
            error = math.hypot(
                (x.item() - true_x.item()) * 256 / size[1],
                (y.item() - true_y.item()) * 256 / size[0],
            )
            is_visible, is_shown = (p.visibility[0, t, n].item() > 0.5 for p in (truth, predicted))
            flags += 1
            right += is_visible == is_shown
            visible += is_visible
            for k in THRESHOLDS:
                close = is_visible and error < k
                near[k] += close
                true_positive[k] += close and is_shown
                false_positive[k] += is_shown and not close
    J = {k: true_positive[k] / (visible + false_positive[k]) for k in THRESHOLDS}
    return right / flags, {k: near[k] / visible for k in THRESHOLDS}, J


@pytest.mark.parametrize("mode", ["first", "strided"])
@pytest.mark.parametrize("size", [SIZE, (96, 128)])
def test_the_measures_are_those_of_loops(mode, size):
    queries, truth, predicted = random_tracks(3, B=1, size=size)
    score = tap_vid_metrics(predicted, truth, queries, size, mode)
    accuracy, within, overlap = measured_in_loops(predicted, truth, queries, size, mode)
    assert score.occlusion_accuracy == pytest.approx(accuracy, abs=1e-12)
    assert score.within == pytest.approx(within, abs=1e-12)
    assert score.jaccard == pytest.approx(overlap, abs=1e-12)
    assert score.average_jaccard == pytest.approx(sum(overlap.values()) / 5, abs=1e-12)
    assert score.average_within == pytest.approx(sum(within.values()) / 5, abs=1e-12)


@given(st.integers(0, 999), st.sampled_from(["first", "strided"]))
def test_what_holds_for_all_tracks(seed, mode):
    queries, truth, predicted = random_tracks(seed)
    score = tap_vid_metrics(predicted, truth, queries, SIZE, mode)
    assert all(0 <= value <= 1 for value in score[:3])
    for values in (score.within, score.jaccard):
        assert list(values) == list(THRESHOLDS)
        assert sorted(values.values()) == list(values.values()), "a wider threshold is no worse"
    assert all(score.jaccard[k] <= score.within[k] for k in THRESHOLDS)
    alone = [
        tap_vid_metrics(one(predicted, b), one(truth, b), queries[b : b + 1], SIZE, mode)
        for b in range(2)
    ]
    for which in range(3):
        assert score[which] == pytest.approx(sum(each[which] for each in alone) / 2, abs=1e-12)
    assert tap_vid_metrics(truth, truth, queries, SIZE, mode)[:3] == (1, 1, 1)


def test_the_order_of_points_does_not_matter():
    queries, truth, predicted = random_tracks(1)
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = [Tracks(p.points[:, :, order], p.visibility[:, :, order]) for p in (predicted, truth)]
    expected = tap_vid_metrics(predicted, truth, queries, SIZE)
    assert tap_vid_metrics(*turned, queries[:, order], SIZE) == expected


@pytest.mark.parametrize(("fx", "fy"), [(2, 2), (0.5, 0.5), (2, 0.5)])
def test_the_size_of_the_video_cancels(fx, fy):
    queries, truth, predicted = random_tracks(2)
    factor = torch.tensor([fx, fy])
    scaled = [Tracks(each.points * factor, each.visibility) for each in (predicted, truth)]
    asked = torch.cat([queries[..., :1], queries[..., 1:] * factor], dim=-1)
    # Powers of two scale float32 exactly.
    expected = tap_vid_metrics(predicted, truth, queries, SIZE)
    assert tap_vid_metrics(*scaled, asked, (int(256 * fy), int(256 * fx))) == expected


def test_a_threshold_is_strict():
    queries = torch.zeros(1, 1, 3)
    truth = Tracks(torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1))
    for k in THRESHOLDS:
        at = Tracks(torch.tensor([float(k), 0]).expand(1, 2, 1, 2), torch.ones(1, 2, 1))
        score = tap_vid_metrics(at, truth, queries, SIZE)
        assert score.within[k] == 0 and score.jaccard[k] == 0
        assert all(score.within[wider] == 1 for wider in THRESHOLDS if wider > k)


def test_places_of_hidden_points_are_not_read():
    queries, truth, predicted = random_tracks(4)
    lost = truth.points.masked_fill(truth.visibility[..., None] == 0, math.nan)
    expected = tap_vid_metrics(predicted, truth, queries, SIZE)
    assert tap_vid_metrics(predicted, Tracks(lost, truth.visibility), queries, SIZE) == expected


def test_frames_before_the_query_count_in_strided_mode_only():
    queries, truth, predicted = random_tracks(5)
    t = torch.arange(9).view(1, 9, 1)
    before = (t < queries[:, None, :, 0])[..., None]
    elsewhere = predicted._replace(points=predicted.points + 100 * before)
    scores = {
        mode: [tap_vid_metrics(p, truth, queries, SIZE, mode) for p in (predicted, elsewhere)]
        for mode in ("first", "strided")
    }
    assert scores["first"][0] == scores["first"][1]
    assert scores["strided"][0].average_within > scores["strided"][1].average_within


def test_the_rule_for_what_is_seen_is_the_callers():
    queries, truth, predicted = random_tracks(6)
    soft = Tracks(predicted.points, 0.8 * predicted.visibility, torch.full((2, 9, 5), 0.8))
    expected = tap_vid_metrics(predicted, truth, queries, SIZE)
    assert tap_vid_metrics(soft, truth, queries, SIZE, threshold=0.7) == expected
    seen = tap_vid_metrics(soft, truth, queries, SIZE, threshold=0.6, with_confidence=True)
    assert seen == expected  # 0.8 · 0.8 = 0.64
    none_seen = tap_vid_metrics(soft, truth, queries, SIZE)
    assert none_seen.average_jaccard == 0 and none_seen.average_within == expected.average_within


def test_evaluated_frames():
    queries = torch.tensor([[[0.0, 0, 0], [2.0, 0, 0]], [[3.0, 0, 0], [1.0, 0, 0]]])
    first, strided = (evaluated_frames(queries, 4, mode) for mode in ("first", "strided"))
    assert first.sum(dim=1).tolist() == [[3, 1], [0, 2]]
    assert strided.sum(dim=1).tolist() == [[3, 3], [3, 3]]
    assert (strided | ~first).all(), "what counts in mode first counts in strided"


def test_without_a_visible_point_the_parts_are_nan():
    nothing = torch.zeros(1, 2, 3, dtype=torch.bool)
    errors = torch.ones(1, 2, 3)
    assert share_within(errors, nothing, 4).isnan().all()
    assert jaccard(errors, nothing, nothing, 4).isnan().all()
    assert jaccard(errors, nothing, ~nothing, 4).tolist() == [0]


# ---- tracks


def test_visible_and_at():
    points = torch.rand(2, 3, 4, 2)
    visibility = torch.linspace(0, 1, 24, dtype=torch.float64).view(2, 3, 4)
    tracks = Tracks(points, visibility, visibility)
    assert tracks.visible().sum() == (visibility > 0.9).sum()
    assert tracks.visible(visibility[1, 0, 0].item()).sum() == 11, "strictly over the threshold"
    assert torch.equal(tracks.visible(0.6, True), visibility**2 > 0.6)
    frame = tracks.at(1)
    assert torch.equal(frame.points, points[:, 1:2])
    assert torch.equal(frame.visibility, frame.confidence)
    assert Tracks(points, visibility).at(2).confidence is None


@pytest.mark.parametrize("frame", [-1, 3, 1.0])
def test_at_a_frame_there_is_not(frame, without_shape_checks):
    tracks = Tracks(torch.rand(2, 3, 4, 2), torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match=r"frame is .*expected a whole number from 0 to 2"):
        tracks.at(frame)


def test_visible_refuses():
    tracks = Tracks(torch.rand(2, 3, 4, 2), torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match="confidence is None"):
        tracks.visible(0.6, with_confidence=True)
    for threshold in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="threshold is"):
            tracks.visible(threshold)


# ---- baselines

BLANK = torch.zeros(1, 6, 3, 40, 50)
ASKED = torch.tensor([[[0.0, 10, 20], [3, 20, 15], [5, 30, 30]]])


def moving(step):
    """A video whose frames know their time, and the flow of all its points by `step`(points)."""
    video = BLANK + 10 * torch.arange(BLANK.shape[1]).view(1, -1, 1, 1, 1)

    def estimate(first, second):
        direction = (second - first).mean().item() / 10
        matrix = step if direction > 0 else torch.linalg.inv(step)
        pixels = pixel_grid(40, 50)
        return (affine_grid(matrix, 40, 50)[0] - pixels).permute(2, 0, 1)[None]

    return video, estimate


def carried(matrix, point, steps):
    """The point after a number of steps, forward or back."""
    moved = torch.linalg.matrix_power(matrix.double(), steps) @ torch.tensor([*point, 1.0]).double()
    return moved[:2]


@pytest.mark.parametrize(
    "step", [translation(1.25, -0.75), rotation(2.0, centre=(20, 20))], ids=["slide", "turn"]
)
def test_a_chain_of_exact_flows_is_exact(step):
    video, estimate = moving(step)
    tracks = chained_flow(video, ASKED, estimate)
    assert tracks.points.shape == (1, 6, 3, 2) and tracks.visibility.min() == 1
    for n, (frame, *place) in enumerate(ASKED[0].tolist()):
        for t in range(6):
            expected = carried(step, place, t - int(frame))
            # A linear flow is sampled exactly inside the image.
            assert (tracks.points[0, t, n] - expected).norm() < EXACT
    assert torch.equal(tracks.points[0, 3, 1], ASKED[0, 1, 1:]), "exact at the query"


def test_a_point_that_leaves_the_image_is_lost():
    video, estimate = moving(translation(8.0, 0.0))
    seen = chained_flow(video, torch.tensor([[[2.0, 30, 20]]]), estimate).visibility[0, :, 0]
    assert seen.tolist() == [1, 1, 1, 1, 1, 0]
    turned = chained_flow(video, torch.tensor([[[3.0, 10, 20]]]), estimate).visibility[0, :, 0]
    assert turned.tolist() == [0, 0, 1, 1, 1, 1], "and backward in time as well"


def test_a_chain_that_breaks_once_stays_broken():
    calls = []

    def estimate(first, second):
        calls.append((first, second))
        flow = torch.zeros(1, 2, 40, 50)
        if len(calls) == 3:  # from frame 1 to frame 2
            flow[:, 0] = 3
        return flow

    seen = chained_flow(BLANK, torch.tensor([[[0.0, 10, 20]]]), estimate).visibility[0, :, 0]
    assert seen.tolist() == [1, 1, 0, 0, 0, 0]
    assert len(calls) == 2 * 5, "each pair of neighbours there and back, once"


def test_time_may_run_backward():
    generator = torch.Generator().manual_seed(7)
    video = 255 * torch.rand(1, 5, 3, 40, 50, generator=generator)

    def estimate(first, second):
        return (second - first)[:, :2] / 100

    asked = torch.tensor([[[0.0, 10, 20], [2, 20, 15], [4, 30, 30]]])
    turned = torch.cat([4 - asked[..., :1], asked[..., 1:]], dim=-1)
    forward, backward = (
        chained_flow(video, asked, estimate),
        chained_flow(video.flip(1), turned, estimate),
    )
    assert torch.equal(forward.points, backward.points.flip(1))
    assert torch.equal(forward.visibility, backward.visibility.flip(1))
    assert 0 < forward.visibility.mean() < 1


def test_a_batch_is_its_videos():
    generator = torch.Generator().manual_seed(8)
    video = 255 * torch.rand(2, 4, 3, 30, 40, generator=generator)
    asked = torch.tensor([[[0.0, 10, 20], [2, 20, 15]], [[1, 5, 5], [3, 30, 20]]])

    def estimate(first, second):
        return (second - first)[:, :2] / 50

    together = chained_flow(video, asked, estimate)
    for b in range(2):
        alone = chained_flow(video[b : b + 1], asked[b : b + 1], estimate)
        assert torch.equal(together.points[b], alone.points[0])
        assert torch.equal(together.visibility[b], alone.visibility[0])


def test_raft_answers_will_do():
    video, estimate = moving(translation(1.0, 0.0))
    flow = chained_flow(video, ASKED, estimate)
    pair = chained_flow(video, ASKED, lambda a, b: Flow(estimate(a, b), torch.zeros(1, 2, 5, 6)))
    assert torch.equal(flow.points, pair.points)


def test_one_frame_is_a_video():
    video = BLANK[:, :1]
    asked = torch.tensor([[[0.0, 3, 4]]])
    for tracks in (stay_put(video, asked), chained_flow(video, asked, lambda a, b: a[:, :2])):
        assert tracks.points.tolist() == [[[[3, 4]]]] and tracks.visibility.tolist() == [[[1]]]
    assert palindrome_error(stay_put, video, asked).tolist() == [[0]]


def test_follow_forgives_a_short_miss():
    points = torch.tensor([[[10.0, 10.0]]])
    for miss, good in ((0.70, True), (0.72, False)):  # √0.5 ≈ 0.707, and 1 % of the length
        back = torch.zeros(1, 2, 20, 20)
        back[:, 0] = miss
        assert follow(points, torch.zeros(1, 2, 20, 20), back)[1].item() is good


def test_chained_flow_beats_staying_put_on_a_photograph():
    image = photograph("coffee", height=100)
    step = translation(1.5, 0.5)
    frames = [
        warp(image, affine_grid(translation(20 + 1.5 * t, 10 + 0.5 * t), 64, 80)) for t in range(5)
    ]
    video = torch.stack(frames, dim=1)
    asked = torch.tensor([[[0.0, x, y] for x in (20, 40, 60) for y in (15, 30, 45)]])
    truth = Tracks(
        torch.stack([asked[..., 1:] - t * step[:2, 2] for t in range(5)], dim=1),
        torch.ones(1, 5, 9),
    )
    chain = chained_flow(video, asked, lambda a, b: classical_flow("ilk", a, b))
    still = stay_put(video, asked)
    ours, theirs = (tap_vid_metrics(p, truth, asked, (64, 80)) for p in (chain, still))
    assert ours.average_within > 0.9 > theirs.average_within


# ---- palindrome


def test_a_tracker_that_drifts_misses_by_its_way():
    def drifting(video, queries):
        t = torch.arange(video.shape[1]).view(1, -1, 1, 1)
        points = queries[:, None, :, 1:] + t * torch.tensor([3.0, 4.0])
        return Tracks(points, torch.ones_like(points[..., 0]))

    # The mirror of frame f is frame 10 − f; the drift counts from frame 0.
    assert palindrome_error(drifting, BLANK, ASKED).tolist() == [[50, 35, 25]]


def test_the_tracker_sees_the_video_and_its_reverse():
    video, estimate = moving(translation(1.25, -0.75))
    given = []

    def tracker(video, queries):
        given.append(video)
        return chained_flow(video, queries, estimate)

    assert palindrome_error(tracker, video, ASKED).max() < EXACT
    assert given[0][0, :, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50, 40, 30, 20, 10, 0]


def test_each_point_has_a_mirror_of_its_own():
    def telling(video, queries):
        """Each point is, in frame t, (t, video number) px away from its query."""
        B, T = video.shape[:2]
        t = torch.arange(float(T)).view(1, T, 1).expand(B, T, queries.shape[1])
        b = torch.zeros_like(t)
        points = queries[:, None, :, 1:] + torch.stack([t, b], dim=-1)
        return Tracks(points, torch.ones_like(t))

    asked = torch.stack([ASKED[0], ASKED[0].flip(0)])
    errors = palindrome_error(telling, BLANK.repeat(2, 1, 1, 1, 1), asked)
    assert errors.tolist() == [[10, 7, 5], [5, 7, 10]]


# ---- bad input


def trackers():
    return {
        "stay_put": stay_put,
        "chained_flow": lambda v, q: chained_flow(v, q, lambda a, b: a[:, :2]),
        "palindrome_error": lambda v, q: palindrome_error(stay_put, v, q),
    }


each_tracker = pytest.mark.parametrize("tracker", trackers().values(), ids=trackers())


@each_tracker
@pytest.mark.parametrize(
    ("video", "queries", "kind", "message"),
    [
        (BLANK, ASKED.long(), TypeError, "queries has dtype torch.int64; expected floating"),
        (BLANK.byte(), ASKED, TypeError, "video has dtype torch.uint8; expected floating"),
        (BLANK.numpy(), ASKED, TypeError, "video is a ndarray; expected a tensor"),
        (BLANK[0], ASKED, ValueError, r"video has shape .*expected \(B, T, 3, H, W\)"),
        (BLANK[:, :0], ASKED, ValueError, "none of them 0"),
        (BLANK.transpose(1, 2), ASKED, ValueError, r"expected \(B, T, 3, H, W\)"),
        (BLANK, ASKED[:, :0], ValueError, "queries is empty"),
        (BLANK, ASKED[0], ValueError, r"queries has shape \(3, 3\); expected \(1, N, 3\)"),
        (BLANK, ASKED[..., :2], ValueError, r"queries has shape .*expected \(1, N, 3\)"),
        (BLANK, ASKED.repeat(2, 1, 1), ValueError, r"expected \(1, N, 3\)"),
        (BLANK, ASKED + torch.tensor([1.0, 0, 0]), ValueError,
         r"queries\[0, 2\] has frame 6; expected a whole number from 0 to 5"),
        (BLANK, ASKED + torch.tensor([0.5, 0, 0]), ValueError, r"queries\[0, 0\] has frame 0.5"),
        (BLANK, ASKED - torch.tensor([1.0, 0, 0]), ValueError, r"queries\[0, 0\] has frame -1"),
        (BLANK, ASKED + torch.tensor([0, 30.0, 0]), ValueError,
         r"queries\[0, 1\] has x 50; expected from -0.5 to 49.5"),
        (BLANK, ASKED - torch.tensor([0, 0, 16.0]), ValueError,
         r"queries\[0, 1\] has y -1; expected from -0.5 to 39.5"),
        (BLANK, ASKED * math.nan, ValueError, r"queries\[0, 0\] has frame nan"),
    ],
)  # fmt: skip
def test_bad_questions_are_refused(tracker, video, queries, kind, message, without_shape_checks):
    with pytest.raises(kind, match=message):
        tracker(video, queries)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"mode": "last"}, ValueError, "mode is 'last'; expected first or strided"),
        ({"size": (0, 256)}, ValueError, "H is 0; expected a whole number, 1 or more"),
        ({"size": (256, 8)}, ValueError, r"queries\[0, 0\] has x"),
        ({"threshold": 2.0}, ValueError, "threshold is 2.0"),
        ({"with_confidence": True}, ValueError, "confidence is None"),
    ],
)
def test_bad_arguments_of_the_measures(change, kind, message):
    queries, truth, predicted = random_tracks(9)
    arguments = {"queries": queries, "size": SIZE} | change
    with pytest.raises(kind, match=message):
        tap_vid_metrics(predicted, truth, **arguments)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda p: p._replace(points=p.points.long()), TypeError, "points has dtype torch.int64"),
        (lambda p: p._replace(visibility=p.visibility > 0.5), TypeError, "visibility has dtype"),
        (lambda p: p._replace(points=p.points[..., 0]), ValueError, r"expected \(B, T, N, 2\)"),
        (lambda p: Tracks(*(v.transpose(1, 2) for v in p[:2])), ValueError, "has shape"),
        (lambda p: p._replace(visibility=p.visibility[:, 1:]), ValueError, "visibility has shape"),
        (lambda p: p._replace(visibility=9 * p.visibility), ValueError, "expected probabilities"),
        (lambda p: p._replace(visibility=p.visibility * math.nan), ValueError, "probabilities"),
        (lambda p: p._replace(points=p.points / 0), ValueError, "points has numbers that are not"),
    ],
)
@pytest.mark.parametrize("which", ["predicted", "truth"])
def test_bad_tracks_are_refused(which, change, kind, message, without_shape_checks):
    queries, truth, predicted = random_tracks(9)
    tracks = {"predicted": predicted, "truth": truth}
    tracks[which] = change(tracks[which])
    with pytest.raises(kind, match=message):
        tap_vid_metrics(**tracks, queries=queries, size=SIZE)


def test_as_many_queries_as_tracks():
    queries, truth, predicted = random_tracks(9)
    with pytest.raises(ValueError, match="queries has 4 points; expected 5"):
        tap_vid_metrics(predicted, truth, queries[:, :4], SIZE)
    with pytest.raises(ValueError, match="queries is empty"):
        tap_vid_metrics(predicted, truth, queries[:, :0], SIZE)


def test_a_video_with_nothing_to_see_is_named():
    queries, truth, predicted = random_tracks(9)
    visibility = truth.visibility.clone()
    visibility[1] = 0
    with pytest.raises(ValueError, match="no visible point that counts in video 1"):
        tap_vid_metrics(predicted, truth._replace(visibility=visibility), queries, SIZE)


def test_bad_answers_of_others_are_refused(without_shape_checks):
    with pytest.raises(ValueError, match=r"estimate_flow gave \(1, 3, 40, 50\); expected \(1, 2"):
        chained_flow(BLANK, ASKED, lambda a, b: a)
    with pytest.raises(ValueError, match=r"tracker gave points of shape .*expected \(1, 11, 3, 2"):
        palindrome_error(lambda v, q: stay_put(v[:, :6], q), BLANK, ASKED)
