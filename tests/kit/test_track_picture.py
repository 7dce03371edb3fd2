"""Pictures of tracks: marks stand where the points are, fade, and leave the rest alone."""

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection
from PIL import Image

from fourfold.kit import video
from fourfold.kit.drawing import canvas, figure_texts
from fourfold.kit.track_picture import (
    draw_trails,
    save_track_picture,
    track_colours,
    track_film_frames,
    track_picture,
)
from fourfold.kit.video import read_video

SIZE = (60, 480)  # as long as a film has to be, so that it is not enlarged


def scene(T=10, N=3, size=SIZE):
    """A grey video, and points that move to the right by 10 pixels a frame, one below the other."""
    points = torch.zeros(T, N, 2)
    points[..., 0] = 20 + 10 * torch.arange(T)[:, None]
    points[..., 1] = 10 + 20 * torch.arange(N)
    grey = torch.full((T, 3, *size), 90, dtype=torch.uint8)
    return grey, points, torch.ones(T, N, dtype=torch.bool)


def drawn(points, visible, frame, **options):
    """The pieces of the trails, their colours, and the scatters of rings and dots."""
    _, axes = canvas()
    draw_trails(axes, scene()[0][0], points, visible, frame, **options)
    (trails,) = [one for one in axes.collections if isinstance(one, LineCollection)]
    rings, dots = [one for one in axes.collections if isinstance(one, PathCollection)]
    return trails.get_segments(), trails.get_colors(), rings, dots


def test_neighbours_have_similar_colours_and_the_ends_do_not():
    points = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="xy"), -1)
    colours = track_colours(points.reshape(1, -1, 2), torch.ones(1, 144, dtype=torch.bool))
    grid = colours.reshape(12, 12, 3)
    across, down = grid.diff(dim=1).norm(dim=-1), grid.diff(dim=0).norm(dim=-1)
    assert across.max() < 0.5 and down.max() < 0.1
    assert (grid[:, 0] - grid[:, -1]).norm(dim=-1).min() > 0.5
    assert colours.min() >= 0 and colours.max() <= 1
    light = colours @ torch.tensor([0.3, 0.59, 0.11])
    assert light.min() > 0.29  # each stands out on a dark photograph


def test_a_colour_goes_by_the_first_frame_in_which_a_track_is_visible():
    _, points, visible = scene(T=4, N=2)
    points[0, 0], visible[0, 0] = 500.0, False  # not yet there
    moved = points.clone()
    moved[0, 0] = -500.0
    assert torch.equal(track_colours(points, visible), track_colours(moved, visible))
    points[2:] = 77.0  # later frames play no part
    assert torch.equal(track_colours(points, visible), track_colours(moved, visible))


def test_no_track_and_a_single_one_have_colours():
    _, points, visible = scene(N=1)
    assert track_colours(points, visible).shape == (1, 3)
    assert track_colours(points[:, :0], visible[:, :0]).shape == (0, 3)
    assert track_colours(points * torch.nan, visible).isfinite().all()


def test_a_trail_leads_over_the_last_frames_and_fades():
    _, points, visible = scene(N=1)
    pieces, shades, _, dots = drawn(points, visible, frame=7, tail=4)
    path = points[3:8, 0].numpy()
    np.testing.assert_array_equal(pieces, np.stack([path[:-1], path[1:]], axis=1))
    assert (np.diff(shades[:, 3]) > 0).all() and shades[-1, 3] == pytest.approx(0.9)
    np.testing.assert_array_equal(dots.get_offsets(), points[7].numpy())
    assert len(drawn(points, visible, frame=2, tail=4)[0]) == 2  # the past begins at frame 0
    assert len(drawn(points, visible, frame=0)[0]) == len(drawn(points, visible, 5, tail=0)[0]) == 0


def test_hidden_points_are_rings_with_faint_trails():
    _, points, visible = scene(N=2)
    visible[5, 0] = False
    _, shades, rings, dots = drawn(points, visible, frame=5, tail=1)
    np.testing.assert_array_equal(rings.get_offsets(), points[5, :1].numpy())
    np.testing.assert_array_equal(dots.get_offsets(), points[5, 1:].numpy())
    assert len(rings.get_facecolors()) == 0 and len(dots.get_facecolors()) == 1
    assert shades[0, 3] < 0.6 * shades[1, 3]


def test_points_that_are_not_finite_are_left_out():
    _, points, visible = scene(N=2)
    points[4, 0] = torch.nan
    pieces, _, _, dots = drawn(points, visible, frame=4, tail=2)
    assert len(pieces) == 3 and len(dots.get_offsets()) == 1
    points[4, 0], points[4, 1] = torch.inf, 1e30
    assert track_film_frames(*scene()[:1], points, visible).shape == (10, 3, *SIZE)


def test_a_point_outside_does_not_move_the_picture():
    grey, points, visible = scene(N=1)
    _, axes = canvas()
    draw_trails(axes, grey[0], points - 900, visible, 3)
    assert axes.get_xlim() == (-0.5, 479.5) and axes.get_ylim() == (59.5, -0.5)


@pytest.mark.parametrize(("T", "titles"), [(10, [0, 2, 4, 5, 7, 9]), (3, [0, 1, 2]), (1, [0])])
@pytest.mark.parametrize("size", [(40, 120), (90, 60)])
def test_a_picture_shows_frames_from_the_first_to_the_last(T, titles, size):
    figure = track_picture(*scene(T=T, size=size))
    shown = [axes.get_title() for axes in figure.axes if axes.images]
    assert shown == [f"frame {t}" for t in titles]
    assert set(shown) == set(figure_texts(figure))


def test_the_trails_of_a_picture_reach_back_to_the_frame_before():
    figure = track_picture(*scene(T=11, N=1), panels=3)
    trails = [axes.collections[0].get_segments() for axes in figure.axes[:3]]
    assert [len(pieces) for pieces in trails] == [0, 5, 5]


def test_a_film_has_its_marks_at_the_points_and_the_video_elsewhere():
    grey, points, visible = scene(N=3)
    visible[6, 1] = False
    film = track_film_frames(grey, points, visible, tail=2)
    assert film.shape == grey.shape and film.dtype == torch.uint8
    colours = 255 * track_colours(points, visible)
    (x, y), (ring_x, ring_y) = points[6, 0].int().tolist(), points[6, 1].int().tolist()
    assert (film[6, :, y, x] - colours[0]).abs().max() <= 2
    trail = film[6, :, y, x - 15].float()
    assert (trail - 90).norm() > 20 and (trail - colours[0]).norm() > 20  # blended
    without_trails = track_film_frames(grey, points, visible, tail=0)[6]
    assert (without_trails[:, ring_y, ring_x] == 90).all()  # a ring is open
    assert (without_trails[:, ring_y, ring_x : ring_x + 9] != 90).any()
    assert (film[6, :, :, 140:] == 90).all() and (film[6, :, :, :50] == 90).all()


def test_the_marks_of_a_film_are_centred_on_their_pixels():
    grey, points, visible = scene(T=1, N=1)
    points[:] = torch.tensor([200.0, 31.0])
    changed = (track_film_frames(grey, points, visible)[0].float() - 90).abs().sum(dim=0)
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(480.0), indexing="ij")
    centre = torch.stack([(x * changed).sum(), (y * changed).sum()]) / changed.sum()
    torch.testing.assert_close(centre, points[0, 0], atol=0.1, rtol=0)


def test_a_small_video_is_enlarged_and_a_large_one_is_not():
    shapes = [
        track_film_frames(*scene(T=2, size=size)).shape for size in [(60, 80), (150, 200), (9, 500)]
    ]
    assert shapes == [(2, 3, 360, 480), (2, 3, 300, 400), (2, 3, 9, 500)]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG"])
def test_a_file_is_a_whole_picture(tmp_path, name):
    save_track_picture(tmp_path / name, *scene())
    with Image.open(tmp_path / name) as picture:
        picture.load()
        assert picture.size[0] > 1200
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("ending", "loss"), [("gif", 2), ("mp4", 3)])
def test_a_file_is_a_whole_film(tmp_path, ending, loss):
    grey, points, visible = scene()
    save_track_picture(tmp_path / f"a.{ending}", grey, points, visible, fps=5, tail=3)
    read = read_video(tmp_path / f"a.{ending}").float()
    film = track_film_frames(grey, points, visible, tail=3).float()
    assert read.shape == film.shape and (read - film).abs().mean() < loss
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{ending}"]


def test_a_film_holds_one_frame_at_a_time(tmp_path, monkeypatch):
    grey, points, visible = scene()
    taken, written, before = [], [], video._in_256_colours

    def frames():
        for t, frame in enumerate(grey):
            taken.append(t)
            yield frame

    def write(image):
        written.append(len(taken))
        return before(image)

    monkeypatch.setattr(video, "_in_256_colours", write)
    save_track_picture(tmp_path / "a.gif", frames(), points, visible)
    assert written == list(range(1, 11))


def test_frames_may_be_yielded_and_float():
    grey, points, visible = scene()
    film = track_film_frames(grey, points, visible)
    assert torch.equal(track_film_frames(iter(grey.float() + 0.2), points, visible), film)
    assert len(track_picture(iter(grey), points, visible).axes) == 6


@pytest.mark.parametrize("ending", ["png", "gif", "mp4"])
def test_bad_input_is_named_and_writes_nothing(without_shape_checks, tmp_path, ending):
    grey, points, visible = scene()
    cases = [
        (ValueError, r"video has 9 frames; expected 10", grey[1:], points, visible),
        (ValueError, r"video has 9 frames; expected 10", iter(grey[1:]), points, visible),
        (ValueError, r"video has more than 9 frames", iter(grey), points[1:], visible[1:]),
        (ValueError, r"video has shape", grey[None], points, visible),
        (ValueError, r"points has shape .*expected \(T, N, 2\)", grey, points[None], visible),
        (ValueError, r"points has shape .*one frame or more", grey[:0], points[:0], visible[:0]),
        (ValueError, r"visible has shape \(10, 2\)", grey, points, visible[:, 1:]),
        (TypeError, r"visible holds torch.float32", grey, points, visible.float()),
        (TypeError, r"points is a ndarray", grey, points.numpy(), visible),
        (TypeError, r"visible is a list", grey, points, visible.tolist()),
    ]
    for error, words, *arguments in cases:
        with pytest.raises(error, match=words):
            save_track_picture(tmp_path / f"a.{ending}", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_numbers_and_endings_that_do_not_fit_are_named(without_shape_checks, tmp_path):
    grey, points, visible = scene()
    _, axes = canvas()
    with pytest.raises(ValueError, match=r"ends in .png, .jpg, .gif or .mp4"):
        save_track_picture(tmp_path / "a.avi", grey, points, visible)
    with pytest.raises(ValueError, match="panels is 0"):
        track_picture(grey, points, visible, panels=0)
    with pytest.raises(ValueError, match="tail is -1"):
        track_film_frames(grey, points, visible, tail=-1)
    with pytest.raises(ValueError, match="frame is 10; expected a whole number from 0 to 9"):
        draw_trails(axes, grey[0], points, visible, 10)
    with pytest.raises(ValueError, match=r"colours has shape \(2, 3\); expected \(3, 3\)"):
        draw_trails(axes, grey[0], points, visible, 1, colours=torch.zeros(2, 3))
