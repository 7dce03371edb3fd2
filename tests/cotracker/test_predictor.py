"""Predictor: the official numbers, the model's own tracks, online against offline, bad input."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from official_cotracker import official_state_dict, reference, texture
from torch import nn

from fourfold.cotracker.cotracker import CoTracker
from fourfold.cotracker.predictor import (
    EncodedVideo,
    OnlinePredictor,
    Predictor,
    at_frame,
    bytes_per_frame,
    bytes_per_point,
    deal_out,
    dense_points,
    earlier_from,
    final_frames,
    grid_points,
    join_in_time,
    most_points,
    put_together,
    released_visible,
    resize_points,
    resize_video,
    support_points,
    with_queries,
)
from fourfold.cotracker.tracks import Tracks

CLOSE = 1e-4  # px: float32 and float64 runs of the release differ by 2e-5 px
SIZE = (36, 50)  # of the small videos
SMALL = {
    "width": 16,
    "depth": 1,
    "heads": 2,
    "virtual_tracks": 4,
    "features": 8,
    "widths": (8, 8, 8, 8),
    "levels": 2,
    "resolution": (32, 48),
}


def small(version="2", mode="offline", **sizes):
    """A small model that moves points by about a pixel."""
    torch.manual_seed(0)
    sizes = {"window": 8, "highest": 4.0} | SMALL | sizes
    model = CoTracker(version, mode=mode, **sizes).eval()
    nn.init.normal_(model.update.transformer.flow_head.weight, std=0.01)
    return model


def film(frames, size=SIZE, batch=1):
    """(B, T, 3, H, W): a texture that moves, another way in each video."""
    videos = [[texture(*size, (1 + b) * t, -0.75 * t) for t in range(frames)] for b in range(batch)]
    return torch.stack([torch.stack(video) for video in videos])


def some_queries(frames, count=5, batch=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(batch, count, 2, generator=generator) * torch.tensor([49.0, 35.0])
    when = torch.randint(0, frames, (batch, count, 1), generator=generator)
    when[:, 0] = 0
    return torch.cat([when, places], dim=-1)


def gap(ours, theirs):
    return (ours - theirs).abs().max().item()


# ---- the official numbers


@pytest.fixture(scope="module")
def official():
    return reference("cotracker_predictor")


@pytest.fixture(scope="module", params=["v2", "v3"])
def released(request):
    name = {"v2": "cotracker2", "v3": "cotracker3_offline"}[request.param]
    model = CoTracker.from_official(official_state_dict(name))
    model.requires_grad_(False)
    video = torch.stack([texture(72, 100, 1.25 * t, -0.75 * t) for t in range(10)])[None]
    predictor = Predictor(model, resolution=(96, 128))
    return request.param, model, predictor.encode(video), predictor


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("q", {}),
        ("qb", {"backward": True}),
        ("g", {"grid": 3, "frame": 2}),
        ("seg", {"grid": 5, "mask": True}),
    ],
)
def test_the_predictor_of_the_release(official, released, key, options):
    version, _, video, predictor = released
    if "mask" in options:
        options = options | {"mask": official["segm_mask"][0, 0] > 0}
    queries = None if "grid" in options else official["queries"][None]
    tracks = predictor(video, queries, **options)
    assert gap(tracks.points, official[f"{version}_{key}_tracks"]) < CLOSE
    assert torch.equal(released_visible(tracks), official[f"{version}_{key}_vis"])


def test_the_evaluation_of_the_release(official, released):
    """4 iterations; version 2 jointly, version 3 one by one; nothing is overwritten there."""
    version, model, video, _ = released
    predictor, queries = Predictor(model, resolution=(96, 128), iterations=4), official["queries"]
    if version == "v2":
        tracks = predictor(video, queries[None], support=5)
        told = tracks.visibility
    else:
        queries = queries[:2]
        tracks = predictor(video, queries[None], support=5, local=8, together=1)
        told = tracks.visibility * tracks.confidence
    other = torch.arange(10)[:, None] != queries[:, 0]
    points = (tracks.points - official[f"{version}_eval_tracks"])[0, other]
    assert points.abs().max() < CLOSE
    assert (told - official[f"{version}_eval_vis"])[0, other].abs().max() < 1e-5


def test_the_grids_of_the_release():
    utils = reference("cotracker_utils")
    for count in (5, 6):
        ours = grid_points(count, (384, 512))
        assert gap(ours, utils[f"grid{count}_384x512"][0]) < CLOSE
    assert gap(grid_points(1, (384, 512)), utils["grid1"][0]) < CLOSE
    local = utils["local8_ext50"][0]
    centre = (local.amin(dim=0) + local.amax(dim=0)) / 2
    assert gap(grid_points(8, (50, 50), centre.tolist()), local) < CLOSE


# ---- grids, resizing


@given(st.integers(2, 12), st.integers(8, 400), st.integers(8, 400))
def test_a_grid_is_even_and_keeps_its_margin(count, H, W):
    points = grid_points(count, (H, W)).view(count, count, 2)
    for axis, side, spread in ((0, W, points[0, :, 0]), (1, H, points[:, 0, 1])):
        limits = spread[0].item(), spread[-1].item()
        assert limits == pytest.approx((W / 64, side - W / 64), abs=1e-3)
        assert torch.allclose(spread.diff(), spread.diff()[0], atol=1e-3), axis
    assert torch.equal(points[0, :, 1], points[0, :1, 1].expand(count)), "a row has one y"


@given(st.tuples(*[st.integers(2, 500)] * 2), st.tuples(*[st.integers(2, 500)] * 2))
def test_points_go_there_and_back(old, new):
    corners = torch.tensor([[0.0, 0.0], [old[1] - 1, old[0] - 1], [(old[1] - 1) / 2, 0.25]])
    moved = resize_points(corners, old, new)
    assert torch.allclose(moved[1], torch.tensor([new[1] - 1.0, new[0] - 1.0]), atol=1e-3)
    assert torch.allclose(resize_points(moved, new, old), corners, atol=1e-3)


def test_a_ramp_has_its_own_value_at_the_moved_point():
    """On a ramp bilinear reading is exact: a point takes its value along."""
    ramp = torch.arange(50.0) + 2 * torch.arange(36.0)[:, None]
    resized = resize_video(ramp.expand(1, 1, 3, -1, -1), (71, 99))[0, 0, 0]
    place = resize_points(torch.tensor([[10.0, 20.0]]), (36, 50), (71, 99))
    assert place.tolist() == [[20, 40]] and resized[40, 20] == pytest.approx(50, abs=1e-4)


def test_one_pixel_and_the_same_size():
    assert resize_points(torch.zeros(1, 2), (1, 1), (8, 8)).tolist() == [[0, 0]]
    video = film(2)
    assert resize_video(video, SIZE) is video


def test_dense_points_are_pixels_row_by_row():
    points = dense_points((4, 6), step=2)
    assert points.tolist() == [[x, y] for y in (0, 2) for x in (0, 2, 4)]
    with pytest.raises(ValueError, match="step is 0"):
        dense_points((4, 6), 0)


def test_support_is_around_each_query_of_a_batch_and_over_frame_0():
    queries = torch.tensor([[[3.0, 10, 20]], [[5.0, 30, 8]]])
    extra = support_points(queries, (32, 48), support=2, local=4)
    assert extra.shape == (2, 16 + 4, 3)
    assert torch.allclose(extra[:, :16].mean(dim=1), queries[:, 0], atol=1e-3)
    assert extra[:, 16:, 0].eq(0).all() and torch.equal(extra[0, 16:], extra[1, 16:])
    assert support_points(queries, (32, 48), 0).shape == (2, 0, 3)


# ---- the predictor against the model


@pytest.mark.parametrize(
    "model", [small(), small("3"), small("3", "online")], ids=["2", "3 offline", "3 online"]
)
@pytest.mark.parametrize("backward", [False, True])
def test_it_is_the_model_on_the_resized_video(model, backward):
    T, queries = 11, some_queries(11)
    tracks = Predictor(model, iterations=2)(film(T), queries, support=0, backward=backward)
    video = resize_video(film(T), (32, 48))
    places = resize_points(queries[..., 1:], SIZE, (32, 48))
    with torch.no_grad():
        asked = torch.cat([queries[..., :1], places], dim=-1)
        expected = model(video, asked, 2)
        if backward:
            asked = torch.cat([T - 1 - queries[..., :1], places], dim=-1)
            expected = earlier_from(expected, model(video.flip(1), asked, 2), queries)
    points = resize_points(expected.points, (32, 48), SIZE)
    expected = with_queries(expected._replace(points=points), queries)
    for ours, theirs in zip(tracks, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or gap(ours, theirs) < CLOSE
    n, t = torch.arange(5), queries[0, :, 0].long()
    assert torch.equal(tracks.points[0, t, n], queries[0, :, 1:])
    assert (tracks.visibility[0, t, n] == 1).all()


def test_support_is_tracked_along_and_dropped():
    model, queries = small(), some_queries(9)
    predictor = Predictor(model)
    alone, helped = (predictor(film(9), queries, support=n) for n in (0, 6))
    assert helped.points.shape == alone.points.shape and gap(helped.points, alone.points) > 1e-3
    assert torch.equal(helped.points, predictor(film(9), queries).points), "6 is the default"
    grid = resize_points(grid_points(3, (32, 48)), (32, 48), SIZE)
    asked = predictor(film(9), at_frame(2.0, grid)[None], support=0)
    assert gap(predictor(film(9), grid=3, frame=2).points, asked.points) < CLOSE


def test_parts_are_tracked_by_themselves():
    predictor, queries = Predictor(small()), some_queries(9, count=7)
    video = predictor.encode(film(9))
    parts = predictor(video, queries, together=3)
    for first in range(3):
        part = predictor(video, queries[:, first::3])
        assert gap(parts.points[:, :, first::3], part.points) < CLOSE
    alone = predictor(video, queries, together=1, local=4)
    assert gap(alone.points[:, :, 5:6], predictor(video, queries[:, 5:6], local=4).points) < CLOSE


def test_each_video_of_a_batch_is_its_own():
    predictor, video, queries = Predictor(small()), film(9, batch=2), some_queries(9, batch=2)
    for options in ({"backward": True}, {"together": 1, "local": 3}):
        both = predictor(video, queries, **options)
        for b in range(2):
            one = predictor(video[b : b + 1], queries[b : b + 1], **options)
            assert gap(both.points[b : b + 1], one.points) < CLOSE
    assert predictor(video, grid=2).points.shape == (2, 9, 4, 2)


def test_frames_may_come_one_by_one_as_bytes_and_are_encoded_once(monkeypatch):
    model = small()
    predictor, video, queries = Predictor(model), film(9).byte(), some_queries(9)
    whole = predictor(video.float(), queries)
    assert gap(predictor((frame for frame in video[0]), queries).points, whole.points) < CLOSE
    kept = predictor.encode(video.float())
    assert (kept.batch, kept.frames, kept.size) == (1, 9, SIZE)
    options = {"together": 2, "backward": True}
    parts = predictor(video.float(), queries, **options)
    monkeypatch.setattr(model, "pyramid", None)
    assert gap(predictor(kept, queries, **options).points, parts.points) < CLOSE


@given(st.integers(1, 12), st.integers(1, 15))
def test_cards_come_back_in_order(count, together):
    queries = torch.rand(2, count, 3)
    parts = deal_out(queries, together)
    assert max(part.shape[1] for part in parts) <= together
    pieces = [Tracks(part[:, None, :, 1:], part[:, None, :, 0]) for part in parts]
    assert torch.equal(put_together(pieces).points[:, 0], queries[..., 1:])
    assert put_together(pieces).confidence is None


def test_a_mask_keeps_the_points_inside_it():
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[:, 25:] = True
    tracks = Predictor(small())(film(9), grid=6, mask=mask, frame=4)
    assert tracks.points.shape[2] == 18 and (tracks.points[0, 4, :, 0] >= 25).all()


def test_what_the_release_calls_visible():
    tracks = Tracks(
        torch.zeros(1, 1, 3, 2),
        torch.tensor([[[0.95, 0.95, 0.8]]]),
        torch.tensor([[[0.9, 0.5, 0.9]]]),
    )
    assert released_visible(tracks)[0, 0].tolist() == [True, True, False]
    assert released_visible(tracks, online=True)[0, 0].tolist() == [True, False, True]
    version2 = tracks._replace(confidence=None)
    assert released_visible(version2, online=True)[0, 0].tolist() == [True, True, False]


# ---- memory


@pytest.mark.parametrize("version", ["2", "3"])
def test_memory_is_shared_between_frames_and_points(version):
    model, size = small(version), (32, 48)
    features = sum(level.nbytes for level in model.pyramid(film(5, size)))
    assert 5 * bytes_per_frame(model, size) == features
    memory = features + 10.5 * bytes_per_point(model, 5)
    assert most_points(model, 5, size, memory) == 10
    assert most_points(model, 5, size, features / 2) == 0


def test_more_points_than_memory_says_what_helps():
    model, video = small(), film(9)
    T_and_size = 9, (32, 48)
    memory = 9 * bytes_per_frame(model, (32, 48)) + 40.5 * bytes_per_point(model, 9)
    assert most_points(model, *T_and_size, memory) == 40
    predictor = Predictor(model, memory=memory)
    queries = some_queries(9, count=50)
    with pytest.raises(ValueError, match=r"86 points at once.*at most 40.*together=4 tracks"):
        predictor(video, queries)
    assert predictor(video, queries, together=4).points.shape[2] == 50
    with pytest.raises(ValueError, match="together=5 makes 41 points"):
        predictor(video, queries, together=5)
    with pytest.raises(ValueError, match="a smaller support grid"):
        predictor(video, queries, together=1, support=7)
    with pytest.raises(ValueError, match="OnlinePredictor"):
        Predictor(model, memory=1000)(video, queries)
    with pytest.raises(ValueError, match=r"86 points at once"):
        OnlinePredictor(model, queries[0], memory=memory).push(video[0])
    with pytest.raises(ValueError, match="together=4 "):
        predictor.check(9, SIZE, queries)


# ---- online


def online_tracks(online, frames, sizes):
    told = []
    for part in frames.split(sizes):
        told.append(online.push(part))
    told.append(online.finish())
    return join_in_time([tracks for tracks in told if tracks is not None])


@pytest.mark.parametrize("T", [5, 7, 8, 9, 12, 13, 21])
@pytest.mark.parametrize(
    "model", [small(), small("3", "online")], ids=["version 2", "version 3 online"]
)
def test_online_is_the_model_on_the_whole_video(model, T):
    video, queries = film(T, (32, 48)), some_queries(T)
    queries[..., 2] *= 31 / 35
    queries[..., 1] *= 47 / 49
    asked = torch.cat([queries, support_points(queries, (32, 48), 6)], dim=1)
    with torch.no_grad():
        whole = model(video, asked, 2)
    for step in (1, 3, 4, T):
        online = OnlinePredictor(model, queries[0], iterations=2)
        told = online_tracks(online, video[0], step)
        for ours, theirs in zip(told, whole, strict=True):
            assert ours is None or gap(ours, theirs[:, :, :5]) < CLOSE


def test_online_is_the_offline_predictor_but_for_the_queries():
    model, T, queries = small(), 14, some_queries(14)
    offline = Predictor(model)(film(T), queries)
    online = online_tracks(OnlinePredictor(model, queries[0]), film(T)[0], [2, 9, 3])
    assert gap(with_queries(online, queries).points, offline.points) < CLOSE
    grid = online_tracks(OnlinePredictor(model, grid=3), film(T)[0], 5)
    assert gap(grid.points[:, 1:], Predictor(model)(film(T), grid=3).points[:, 1:]) < CLOSE


@given(st.sampled_from([2, 4, 8, 16]), st.integers(0, 90))
def test_final_frames_are_those_of_the_windows_that_ran(window, seen):
    ran = [w for w in range(0, seen, window // 2) if w + window <= seen]
    assert final_frames(seen, window) == len(ran) * window // 2


def test_frames_are_told_once_and_kept_for_a_window_only():
    online, told = OnlinePredictor(small(), grid=2), 0
    for k, frame in enumerate(film(30)[0], 1):
        tracks = online.push(frame[None])
        told += 0 if tracks is None else tracks.points.shape[1]
        assert told == final_frames(k, 8)
        assert all(len(level) < 8 for level in online.stream.levels)
    assert online.finish().points.shape[1] == 30 - told


def test_reset_begins_anew_from_any_state():
    online, video = OnlinePredictor(small(), some_queries(9)[0]), film(11)
    fresh = online_tracks(online, video[0], 4)
    with pytest.raises(RuntimeError, match="reset"):
        online.push(video[0])
    with pytest.raises(RuntimeError, match="reset"):
        online.finish()
    online.reset()
    online.push(video[0, :9] / 2)
    online.reset()
    other_size = film(11, (40, 60))
    online.push(other_size[0, :9])
    online.reset()
    assert torch.equal(online_tracks(online, video[0], 4).points, fresh.points)


def test_a_mistake_leaves_the_stream_as_it_was():
    video, queries = film(11), some_queries(11)
    queries[0, 1, 0] = 8
    expected = online_tracks(OnlinePredictor(small(), queries[0]), video[0], 4)
    online = OnlinePredictor(small(), queries[0])
    told = [online.push(video[0, :3])]
    for mistake, error in (
        (lambda: online.push(video[0, :3, :, 1:]), "frames has size"),
        (lambda: online.push(video[0, :0]), "frames has shape"),
        (lambda: online.push(video[0, :2] * torch.nan), "frames has values"),
        (online.finish, "video has 3 frames"),
    ):
        with pytest.raises(ValueError, match=error):
            mistake()
    told.append(online.push(video[0, 3:7]))
    with pytest.raises(ValueError, match=r"queries has frame \d+; the video ended with frame 6"):
        online.finish()
    told += [online.push(video[0, 7:]), online.finish()]
    told = join_in_time([tracks for tracks in told if tracks is not None])
    assert gap(told.points, expected.points) < CLOSE


# ---- bad input


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": None}, "queries and grid: neither given"),
        ({"grid": 3}, "queries and grid: both given"),
        ({"queries": torch.zeros(1, 0, 3)}, "queries is empty"),
        ({"queries": torch.zeros(1, 3, 2)}, "queries has shape"),
        ({"queries": torch.tensor([[[0.0, 50, 0]]])}, "has x 50; expected from -0.5 to 49.5"),
        ({"queries": torch.tensor([[[9.0, 0, 0]]])}, "has frame 9; expected a whole number"),
        ({"queries": torch.tensor([[[0.5, 0, 0]]])}, "has frame 0.5; expected a whole number"),
        ({"queries": torch.tensor([[[0.0, torch.nan, 0]]])}, "has x nan"),
        ({"queries": None, "grid": 0}, "count is 0"),
        ({"queries": None, "grid": 3, "frame": 9}, "frame is 9"),
        ({"together": 0}, "together is 0"),
        ({"local": 4}, "local is 4 for points tracked jointly"),
        ({"queries": None, "grid": 3, "mask": torch.ones(36, 49) > 0}, "mask has shape"),
        (
            {"queries": None, "grid": 3, "mask": torch.zeros(36, 50) > 0},
            "mask leaves none of the 9",
        ),
        ({"video": film(4)}, "video has 4 frames; expected more than 4"),
        ({"video": film(9)[0]}, "video has shape"),
        ({"video": iter([])}, "video has no frame"),
        ({"video": iter([film(1)[0, 0], film(1, (8, 8))[0, 0]])}, "frame 1 of video has shape"),
        ({"video": film(9) - 40}, "of video has values"),
    ],
)
def test_what_cannot_be_tracked_is_named(change, message):
    call = {"video": film(9), "queries": some_queries(9)} | change
    with pytest.raises(ValueError, match=message):
        Predictor(small())(**call)


@pytest.mark.usefixtures("without_shape_checks")
def test_wrong_types_are_named():
    predictor, queries = Predictor(small()), some_queries(9)
    with pytest.raises(TypeError, match="video"):
        predictor(film(9).byte(), queries)
    with pytest.raises(TypeError, match="queries"):
        predictor(film(9), queries.long())
    with pytest.raises(TypeError, match="mask holds"):
        predictor(film(9), grid=3, mask=torch.ones(SIZE))


@pytest.mark.usefixtures("without_shape_checks")
def test_a_predictor_that_cannot_be_is_refused():
    for resolution in ((30, 48), (0, 48)):
        with pytest.raises(ValueError, match="multiples of 4"):
            Predictor(small(), resolution=resolution)
    with pytest.raises(ValueError, match="iterations is 0"):
        Predictor(small(), iterations=0)
    with pytest.raises(ValueError, match="takes the whole clip at once"):
        OnlinePredictor(small("3"), grid=3)
    for wrong, message in (
        ({}, "neither given"),
        ({"grid": 2, "queries": torch.zeros(1, 3)}, "both given"),
        ({"queries": torch.zeros(0, 3)}, "queries is empty"),
        ({"queries": torch.tensor([[-1.0, 0, 0]])}, "has frame -1"),
    ):
        with pytest.raises(ValueError, match=message):
            OnlinePredictor(small(), **wrong)
    online = OnlinePredictor(small(), torch.tensor([[0.0, 60, 0]]))
    with pytest.raises(ValueError, match="has x 60"):
        online.push(film(3)[0])
    with pytest.raises(TypeError, match="frames"):
        online.push(film(3)[0].byte())


def test_rows_of_an_encoded_video_run_both_ways():
    video = EncodedVideo([torch.zeros(6, 1, 1, 1)], 2, 3, (4, 4))
    assert video.rows().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert video.rows(reverse=True).tolist() == [[2, 1, 0], [5, 4, 3]]
