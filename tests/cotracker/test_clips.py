"""Made clips: the tracks are those of the pictures, and the same seed gives the same clips."""

import pytest
import torch
from torch.utils.data import DataLoader

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import inside, pixel_grid
from fourfold.cotracker.learning import (
    Clip,
    ClipScene,
    SyntheticClips,
    augment_clip,
    choose_queries,
    draw_tracks,
    erase_frames,
    follow_layers,
    held_out_clips,
    hidden_between,
    paint_clip,
    random_clip_scene,
    render_clip,
    smooth_paths,
)
from fourfold.raft.learning import (
    Scene,
    coverage,
    front_layer,
    load_photographs,
    move,
    paint,
)

PHOTOGRAPHS = load_photographs(("chelsea", "brick", "coins"))
SIZE = (48, 64)
H, W = SIZE


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def made(seed, frames=10):
    return random_clip_scene(PHOTOGRAPHS, SIZE, frames, seeded(seed))


def clip_of(seed, **options):
    return SyntheticClips(PHOTOGRAPHS, SIZE, frames=10, points=16, seed=seed, **options)[0]


def grey_gap(clip):
    """Mean grey levels between the query and each frame at the true track, and at the query."""
    frame, place = clip.queries[:, 0].long(), clip.queries[:, 1:]
    along = sample(clip.video, clip.points)
    still = sample(clip.video, place.expand_as(clip.points))
    asked = along[frame, :, torch.arange(len(frame))].T
    return tuple((seen - asked).abs().mean(dim=1)[clip.visible].mean() for seen in (along, still))


def disc_scene(shifts, radius=10.0):
    """A grey background and a brighter disc around (30, 24), which goes right by the shifts."""
    plain = [torch.full((3, 200, 200), 100.0), torch.full((3, 200, 200), 200.0)]
    outline = torch.diag_embed(torch.tensor([[1e-6, 1e-6, 1.0], [1 / radius, 1 / radius, 1.0]]))
    outline[1, :2, 2] = -torch.tensor([30.0, 24.0]) / radius
    still = torch.eye(3).repeat(2, 1, 1)
    motion = still.repeat(len(shifts), 1, 1, 1)
    motion[:, 1, 0, 2] = torch.tensor(shifts)
    return ClipScene(Scene(plain, still, still, outline, torch.zeros(2, 2, 6)), motion)


def test_paths_begin_at_zero_and_keep_step_and_reach():
    path = smooth_paths(40, 200, seeded(0), reach=12.0)
    assert path.shape == (40, 200) and (path[0] == 0).all()
    # Each path touches one of its limits, up to the rounding of a division.
    fastest, farthest = path.diff(dim=0).abs().amax(dim=0), path.abs().amax(dim=0) / 12
    assert torch.allclose(torch.maximum(fastest, farthest), torch.ones(200), atol=1e-5)
    # Periods of 10 frames and more: a step changes by at most 2π/10 of the largest slope or so.
    assert path.diff(n=2, dim=0).abs().max() < 1
    assert (smooth_paths(1, 3, seeded(0), reach=12.0) == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_all_frames_are_those_that_paint_gives(seed):
    clip_scene = made(seed, frames=5)
    scene, motion = clip_scene
    video, front = paint_clip(clip_scene, SIZE)
    assert torch.equal(motion[0], torch.eye(3).expand_as(motion[0]))
    for t, picture in enumerate(video):
        origin = move(torch.linalg.inv(motion[t]), pixel_grid(H, W).expand(len(motion[t]), H, W, 2))
        cover = coverage(scene, origin)
        # Matrices multiplied in another order move a place by some 1e-4 px, which costs up to
        # 1e-4 of the 255 grey levels between neighbours, and of a soft edge.
        assert torch.allclose(picture, paint(scene, origin, cover), atol=0.2)
        assert (front[t] == front_layer(cover)).float().mean() > 0.999


@pytest.mark.parametrize("seed", range(4))
def test_the_track_keeps_its_colour(seed):
    along, still = grey_gap(clip_of(seed, augment=False))
    # Bilinear reading blurs, and edges mix two layers; a wrong track costs tens of grey levels.
    assert along < 8 and along < 0.5 * still


def test_on_a_ramp_the_colour_is_exact():
    """Bilinear reading of a ramp is exact, so what is left is rounding."""
    ramp = torch.linspace(20, 230, 600).expand(3, 600, 600).contiguous()
    scene, motion = random_clip_scene([ramp], SIZE, 10, seeded(3))
    alone = Scene(scene.textures[:1], *(part[:1].clone() for part in scene[1:]))
    alone.texture[0, :2, 2] = 300  # away from the border, where the mirror is no ramp
    clip = render_clip(ClipScene(alone, motion[:, :1]), SIZE, 32, seeded(0))
    # float32 at positions near 300 is right to 3e-5 px, on a slope of 0.35 grey levels a pixel.
    assert grey_gap(clip)[0] < 1e-3


def test_points_come_back_when_the_disc_has_passed():
    scene = disc_scene([0.0, 12.0, 24.0, 0.0])
    start = torch.tensor([[0, 45.0, 24], [0, 30, 24], [2, 30, 24], [1, 42, 30]])
    points, visible = follow_layers(scene, SIZE, start, torch.tensor([0, 1, 0, 1]))
    assert visible.T.tolist() == [
        [True, False, False, True],  # the background at 45: the disc is at 42, then at 54
        [True, True, True, True],  # the disc's middle
        [False, True, True, False],  # the background that the disc covers at rest
        [True, True, True, True],
    ]
    assert points[:, 1, 0].tolist() == [30, 42, 54, 30] and (points[:, 0, 0] == 45).all()
    assert points[:, 3].tolist() == [[30, 30], [42, 30], [54, 30], [30, 30]]
    assert hidden_between(visible).T[0].tolist() == [False, True, True, False]


def test_a_point_that_leaves_the_image_is_hidden():
    scene = disc_scene([0.0, 40.0, 0.0])
    points, visible = follow_layers(scene, SIZE, torch.tensor([[0, 30.0, 24]]), torch.tensor([1]))
    assert points[1, 0].tolist() == [70, 24] and visible[:, 0].tolist() == [True, False, True]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_queries_are_visible_and_visible_points_are_inside(seed, augment):
    clip = clip_of(seed, augment=augment)
    frame, number = clip.queries[:, 0].long(), torch.arange(16)
    assert clip.visible[frame, number].all()
    assert torch.equal(clip.points[frame, number], clip.queries[:, 1:])
    assert (inside(clip.points[None], H, W)[0] | ~clip.visible).all()
    assert clip.video.min() >= 0 and clip.video.max() <= 255


def test_three_quarters_of_the_queries_are_in_the_first_visible_frame():
    visible = torch.rand(9, 4000, generator=seeded(0)) < 0.5
    visible[8] = True
    points = torch.rand(9, 4000, 2, generator=seeded(1))
    frame = choose_queries(points, visible, seeded(2))[:, 0].long()
    first = visible.byte().argmax(dim=0)
    assert visible[frame, torch.arange(4000)].all()
    # A drawn frame of m visible ones is the first in 1/m of the cases; 4σ of a share of 4000.
    expected = 0.75 + 0.25 * (1 / visible.sum(dim=0)).mean()
    assert (frame == first).float().mean() == pytest.approx(expected.item(), abs=0.03)
    assert torch.equal(choose_queries(points, visible, seeded(2), 0.0)[:, 0].long(), first)


def test_clips_hide_points_and_bring_them_back():
    clips = held_out_clips(12, points=32)
    hidden = 1 - clips.visible.float().mean().item()
    back = torch.stack([hidden_between(v).any(dim=0) for v in clips.visible])
    steps = clips.points.diff(dim=1).norm(dim=-1)
    # What the training is meant to see; a dozen clips differ from the mean by some hundredths.
    assert 0.1 < hidden < 0.35 and back.float().mean() > 0.1
    assert 0.5 < steps.mean() < 3 and steps.max() < 12


def test_the_eraser_hides_what_it_covers():
    video, front = paint_clip(made(1), SIZE)
    erased, hidden = erase_frames(video, seeded(0), (4, 12))
    assert torch.equal(erased[0], video[0]) and not hidden[0].any() and hidden[1:].any()
    keep = ~hidden[:, None].expand_as(video)
    assert torch.equal(erased[keep], video[keep])
    points, visible = draw_tracks(made(1), front, hidden, 200, seeded(0))
    t, n = visible.nonzero(as_tuple=True)
    x, y = points[t, n].round().long().unbind(-1)
    assert not hidden[t, y, x].any() and visible.any(dim=0).all()


def test_changed_colours_leave_the_tracks():
    clip = clip_of(3, augment=False)
    changed = augment_clip(clip, seeded(0))
    assert all(map(torch.equal, clip[1:], changed[1:]))
    assert not torch.equal(clip.video, changed.video)


def test_the_same_seed_gives_the_same_clips_and_another_gives_others():
    one, again, other = (clip_of(seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, again)) and not torch.equal(one.video, other.video)
    endless = SyntheticClips(PHOTOGRAPHS, SIZE, frames=4, points=3)
    torch.manual_seed(0)
    first, second = endless[0], endless[0]
    torch.manual_seed(0)
    assert all(map(torch.equal, endless[0], first))
    assert not torch.equal(first.video, second.video)


def test_a_loader_batches_clips():
    clips = SyntheticClips(PHOTOGRAPHS, SIZE, frames=4, points=3, length=4)
    batch = next(iter(DataLoader(clips, batch_size=2)))
    assert isinstance(batch, Clip) and batch.video.shape == (2, 4, 3, H, W)
    assert batch.points.shape == (2, 4, 3, 2) and batch.queries.shape == (2, 3, 3)
    assert batch.visible.dtype == torch.bool and batch.visible.shape == (2, 4, 3)


def test_held_out_clips_are_fixed():
    few, more = (held_out_clips(count, SIZE, 4, 5) for count in (2, 3))
    assert all(torch.equal(a, b[:2]) for a, b in zip(few, more, strict=True))


def test_one_frame_and_one_point_are_a_clip():
    clip = SyntheticClips(PHOTOGRAPHS, (8, 9), frames=1, points=1, seed=0)[0]
    assert clip.video.shape == (1, 3, 8, 9) and clip.visible.all()
    still = SyntheticClips(PHOTOGRAPHS, SIZE, frames=3, points=4, speed=0.0, seed=0)[0]
    assert still.points.diff(dim=0).abs().max() < 5  # turns and zooms alone


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_clip_scene([], SIZE, 4, seeded(0)), "photographs is empty"),
        (lambda: random_clip_scene(PHOTOGRAPHS, SIZE, 0, seeded(0)), "frames is 0; expected"),
        (lambda: random_clip_scene(PHOTOGRAPHS, SIZE, 4, seeded(0), speed=-1.0), "speed is -1.0"),
        (lambda: render_clip(made(0), SIZE, 0, seeded(0)), "points is 0; expected"),
        (lambda: SyntheticClips(PHOTOGRAPHS, (8,)), "size is .*expected two whole numbers"),
        (lambda: SyntheticClips(PHOTOGRAPHS, length=0), "length is 0; expected"),
        (
            lambda: choose_queries(
                torch.zeros(2, 1, 2), torch.zeros(2, 1, dtype=torch.bool), seeded(0)
            ),
            "visible has a point that no frame shows",
        ),
        (
            lambda: draw_tracks(
                made(0),
                torch.zeros(10, H, W, dtype=torch.long),
                torch.ones(10, H, W, dtype=torch.bool),
                3,
                seeded(0),
            ),
            "hidden is True everywhere",
        ),
    ],
)
def test_bad_input_is_named(without_shape_checks, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_index_beyond_the_length_is_named():
    with pytest.raises(IndexError, match="index is 4; expected 0 to 3"):
        SyntheticClips(PHOTOGRAPHS, length=4)[4]
