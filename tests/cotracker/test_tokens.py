"""Embeddings of time, place and motion against loops, `sample`, and the official numbers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.cotracker.tokens import (
    fourier_features,
    motion_embedding,
    place_embedding,
    sinusoids,
    step_motion,
    time_embedding,
)

REFERENCE = Path(__file__).parents[1] / "reference"
OFFICIAL = 1e-5  # numbers up to 1 and sums of three of them, in float32


@pytest.fixture(scope="module")
def official():
    """The arrays of a frozen file by name, as tensors."""
    files = {}

    def read(name, key):
        if name not in files:
            files[name] = np.load(REFERENCE / f"{name}.npz")
        return torch.from_numpy(files[name][key])

    yield read
    for file in files.values():
        file.close()


def off(ours, theirs):
    assert ours.shape == theirs.shape
    return (ours.double() - theirs.double()).abs().max().item()


def random(*shape, seed=0, reach=1.0):
    generator = torch.Generator().manual_seed(seed)
    return reach * torch.randn(*shape, generator=generator, dtype=torch.float64)


def in_blocks(embedded, width):
    """All sines, then all cosines, of each part of a motion."""
    motion, waves = embedded[..., :2], embedded[..., 2:]
    blocks = waves.unflatten(-1, (2, width // 2, 2)).transpose(-1, -2)
    return torch.cat([motion, blocks.flatten(-3)], dim=-1)


def in_turn(blocks):
    """Sine, cosine, sine, cosine, … of sinusoids."""
    return blocks.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def halves_swapped(vectors):
    return vectors.roll(vectors.shape[-1] // 2, dims=-1)


def value_by_value(features, P=4, octaves=10):
    """Fourier features with all frequencies of a value side by side."""
    waves = features[..., P:].unflatten(-1, (2, octaves, P)).transpose(-1, -2)
    return torch.cat([features[..., :P], waves.flatten(-3)], dim=-1)


# The official numbers, and that they would notice another order


def test_official_sinusoids(official):
    theirs = official("cotracker_utils", "sincos1d_8_T5")[0]
    ours = sinusoids(torch.arange(5.0), 8)
    assert off(ours, theirs) <= OFFICIAL
    assert off(time_embedding(5, 8), theirs) <= OFFICIAL
    assert off(in_turn(ours), theirs) > 0.1


@pytest.mark.parametrize(
    ("name", "length", "width", "every"),
    [("cotracker2", 8, 456, 8), ("cotracker3_offline", 60, 1110, 10)],
)
def test_official_time(official, name, length, width, every):
    theirs = official(name, "time_emb")[0]
    ours = time_embedding(length, width)
    assert off(ours[:, ::every], theirs) <= OFFICIAL
    assert off(in_turn(ours)[:, ::every], theirs) > 0.1


def test_official_map_of_places(official):
    theirs = official("cotracker_utils", "sincos2d_8_3x4")[0].permute(1, 2, 0)
    ours = place_embedding(pixel_grid(3, 4), 8, (3, 4))
    assert off(ours, theirs) <= OFFICIAL
    for wrong in (halves_swapped(ours), in_turn(ours)):
        assert off(wrong, theirs) > 0.1


def test_official_places_of_the_release(official):
    theirs = official("cotracker2", "pos_emb_corner")[0].permute(1, 2, 0)
    ours = place_embedding(pixel_grid(96, 128), 456, (96, 128))
    assert off(ours[:4, :6, ::8], theirs) <= OFFICIAL
    for wrong in (halves_swapped(ours), in_turn(ours)):
        assert off(wrong[:4, :6, ::8], theirs) > 0.1
    total = official("cotracker2", "pos_emb_sum").item()
    # 5.6 million numbers, each rounded to float32: 6e-8 at most, and most of it cancels.
    assert ours.double().sum().item() == pytest.approx(total, abs=0.1)


def test_official_motion(official):
    theirs = official("cotracker_utils", "emb2d_64")
    motion = official("cotracker_utils", "emb_xy")
    ours = motion_embedding(motion)
    # The same float32 angles: what differs is the last digit of the library's sine.
    assert off(ours, theirs) <= OFFICIAL
    for wrong in (in_blocks(ours, 64), motion_embedding(motion.flip(-1))):
        assert off(wrong, theirs) > 0.1


def test_official_fourier_features(official):
    theirs = official("cotracker_utils", "posenc")
    ours = fourier_features(official("cotracker_utils", "posenc_x"))
    # Angles of up to 512 times the values, in float32.
    assert off(ours, theirs) <= OFFICIAL
    sines_swapped = torch.cat([ours[..., :4], halves_swapped(ours[..., 4:])], dim=-1)
    for wrong in (value_by_value(ours), sines_swapped):
        assert off(wrong, theirs) > 0.1


def test_the_token_of_version_2(official):
    """In the first iteration no point has moved: motion, place and time are known exactly."""
    theirs = official("cotracker2", "uf_in")[0]  # (N, S, 456)
    start = official("cotracker2", "queries")[:, 1:] / 4
    place = place_embedding(start, 456, (96, 128))[:, None]
    added = place + time_embedding(8, 456)
    motion = motion_embedding(torch.zeros(12, 8, 2))
    assert off(added[..., :130] + motion, theirs[..., :130]) <= OFFICIAL
    assert off(added[..., 455] + 10, theirs[..., 455]) <= OFFICIAL  # visibility begins at 10
    swapped = halves_swapped(place) + time_embedding(8, 456)
    assert off(swapped[..., :130] + motion, theirs[..., :130]) > 0.1
    assert off(added[..., :130] + in_blocks(motion, 64), theirs[..., :130]) > 0.1


def test_the_token_of_version_3(official):
    theirs = official("cotracker3_offline", "uf_in_every3")[0]  # (N, S, 370)
    motion = fourier_features(step_motion(torch.zeros(1, 16, 12, 2)))[0].transpose(0, 1)
    ours = motion + time_embedding(16, 1110, 60)[:, -84:]
    assert off(ours[..., ::3], theirs[..., -28:]) <= OFFICIAL
    assert off(time_embedding(16, 1110, 60)[:, 0].expand(12, 16), theirs[..., 0]) <= OFFICIAL
    cut = time_embedding(60, 1110)[:16, 0]
    assert off(cut.expand(12, 16), theirs[..., 0]) > 0.1


# Sinusoids and time


@settings(max_examples=50)
@given(
    positions=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5),
    half=st.integers(1, 20),
)
def test_sinusoids_equal_equation_1(positions, half):
    ours = sinusoids(torch.tensor(positions, dtype=torch.float64), 2 * half)
    for a, numbers in zip(positions, ours.tolist(), strict=True):
        angles = [a / 10_000 ** (k / half) for k in range(half)]
        expected = [*map(math.sin, angles), *map(math.cos, angles)]
        assert numbers == pytest.approx(expected, abs=1e-12)  # angles of 1000 in float64


@settings(max_examples=30)
@given(a=st.floats(-100, 100), b=st.floats(-100, 100), by=st.floats(-100, 100))
def test_the_product_of_two_positions_depends_on_their_difference(a, b, by):
    vectors = sinusoids(torch.tensor([a, b, a + by, b + by], dtype=torch.float64), 32)
    # 1e-11: sums of 32 products, and the rounding of a + by.
    assert vectors[0] @ vectors[1] == pytest.approx((vectors[2] @ vectors[3]).item(), abs=1e-11)
    assert vectors.square().sum(dim=-1) == pytest.approx(16, abs=1e-12)


@settings(max_examples=80)
@given(frames=st.integers(1, 40), length=st.integers(1, 40), width=st.integers(1, 9))
def test_time_equals_equation_3(frames, length, width):
    rows = sinusoids(torch.arange(length, dtype=torch.float64), width + width % 2)[:, :width]
    ours = time_embedding(frames, width, length)
    assert ours.shape == (frames, width) and ours.dtype == torch.float32
    for t in range(frames):
        a = min(max((t + 0.5) * length / frames - 0.5, 0), length - 1)
        low = math.floor(a)
        expected = torch.lerp(rows[low], rows[min(low + 1, length - 1)], a - low)
        # float32 holds positions up to 40 to 4e-6, and neighbours differ by up to 1.
        assert off(ours[t], expected) < 2e-5


def test_time_without_a_stretch():
    assert torch.equal(time_embedding(16, 12, 16), time_embedding(16, 12))
    assert torch.equal(time_embedding(6, 7), time_embedding(6, 8)[:, :7])


# Place


def by_map(points, width, size):
    """The naive way: a map of vectors for all pixels, read by `sample`."""
    half = 2 * math.ceil(width / 4)
    x, y = pixel_grid(*size, dtype=torch.float64).unbind(-1)
    full = torch.cat([sinusoids(x, half), sinusoids(y, half)], dim=-1)[..., :width]
    read = sample(full.permute(2, 0, 1)[None], points.reshape(1, -1, 2), padding="border")
    return read[0].T.reshape(*points.shape[:-1], width)


places = st.fixed_dictionaries(
    {
        "size": st.tuples(st.integers(1, 12), st.integers(1, 12)),
        "width": st.integers(1, 26),
        "reach": st.sampled_from([0.5, 5.0, 50.0]),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=80)
@given(places)
def test_place_equals_the_sampled_map(case):
    points = random(3, 4, 2, seed=case["seed"], reach=case["reach"])
    ours = place_embedding(points, case["width"], case["size"])
    # 1e-9: `sample` scales its coordinates and scales them back.
    assert off(ours, by_map(points, case["width"], case["size"])) < 1e-9


@settings(max_examples=30)
@given(places)
def test_slopes_of_the_place_equal_those_of_the_sampled_map(case):
    points = random(6, 2, seed=case["seed"], reach=case["reach"]).requires_grad_()
    pull = random(6, case["width"], seed=case["seed"] + 1)
    slopes = [
        torch.autograd.grad(way(points, case["width"], case["size"]), points, pull)[0]
        for way in (place_embedding, by_map)
    ]
    assert off(*slopes) < 1e-9


def test_each_half_of_the_place_depends_on_one_coordinate():
    x, y = torch.tensor([3.3, 1.0]), torch.tensor([3.3, 6.0])
    one, other = place_embedding(torch.stack([x, y]), 24, (9, 9))
    assert torch.equal(one[:12], other[:12]) and not torch.equal(one[12:], other[12:])


def test_a_place_on_a_pixel_is_its_sinusoids():
    place = place_embedding(torch.tensor([5.0, 2.0]), 40, (8, 8))
    expected = torch.cat([sinusoids(torch.tensor(5.0), 20), sinusoids(torch.tensor(2.0), 20)])
    assert torch.equal(place, expected)


@pytest.mark.parametrize("far", [1e4, 1e30, math.inf])
def test_places_far_outside_are_on_the_border(far):
    points = torch.tensor([[far, 2.0], [-far, far]])
    border = torch.tensor([[7.0, 2.0], [0.0, 5.0]])
    assert torch.equal(place_embedding(points, 12, (6, 8)), place_embedding(border, 12, (6, 8)))


def test_a_place_that_is_no_number_leaves_the_others_alone():
    points = torch.tensor([[1.0, 2.0], [math.nan, 2.0], [3.0, 4.5]])
    place = place_embedding(points, 12, (6, 8))
    assert place[1, :6].isnan().all() and place[[0, 2]].isfinite().all()


def test_low_precision_rounds_the_result_and_not_the_table():
    """bfloat16 has no whole number 257; a table of rounded positions would repeat rows."""
    points = torch.tensor([[300.0, 0.0]], dtype=torch.bfloat16)
    place = place_embedding(points, 8, (2, 400))
    assert place.dtype == torch.bfloat16
    expected = place_embedding(points.double(), 8, (2, 400))
    assert off(place, expected) < 2**-7  # half a step of bfloat16 near 1, twice


# Motion


@settings(max_examples=50)
@given(
    x=st.floats(-50, 50),
    y=st.floats(-50, 50),
    half=st.integers(1, 40),
    highest=st.sampled_from([1.0, 16.0, 1000.0]),
)
def test_motion_equals_equation_5(x, y, half, highest):
    E = 2 * half
    ours = motion_embedding(torch.tensor([x, y], dtype=torch.float64), E, highest)
    expected = [x, y]
    for part in (x, y):
        for j in range(half):
            angle = part * (2 * highest / E) * j
            expected += [math.sin(angle), math.cos(angle)]
    assert ours.tolist() == pytest.approx(expected, abs=1e-9)  # angles of 50,000 in float64


@pytest.mark.parametrize("highest", [16.0, 1000.0])
def test_all_waves_return_after_a_period_of_the_spacing(highest):
    motion = random(100, 2, reach=5)
    period = 2 * math.pi * 64 / (2 * highest)
    waves, later = (motion_embedding(m, 64, highest)[:, 2:] for m in (motion, motion + period))
    assert off(waves, later) < 1e-10


@pytest.mark.parametrize(
    ("embed", "rate"),
    [
        (motion_embedding, 968.75),
        (lambda m: motion_embedding(m, highest=16.0), 15.5),
        (lambda m: fourier_features(m / torch.tensor([128, 96])), 512 / 96),
    ],
    ids=["version 2", "version 2, low", "version 3"],
)
def test_how_much_a_small_change_is_magnified(embed, rate):
    """By the highest frequency and no more: 969 a pixel in version 2, 5 in version 3."""
    motion = random(5000, 2, reach=10)
    change = (embed(motion + 1e-6) - embed(motion))[:, 2:].abs().max().item() / 1e-6
    assert 0.95 * rate < change < 1.001 * rate


def test_float32_is_wrong_by_the_rounding_of_its_angles():
    motion = random(5000, 2, reach=10).float()
    error = (motion_embedding(motion).double() - motion_embedding(motion.double())).abs().max()
    largest = 968.75 * motion.abs().max().item()
    assert 1e-5 < error < 2**-24 * largest + 1e-6  # half a step of the largest angle


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_dtype_stays(dtype):
    pairs = torch.ones(3, 2, dtype=dtype)
    assert sinusoids(pairs, 4).dtype == dtype
    assert place_embedding(pairs, 8, (4, 4)).dtype == dtype
    assert motion_embedding(pairs).dtype == dtype
    assert fourier_features(pairs).dtype == dtype
    assert step_motion(pairs[None, None]).dtype == dtype


def test_slopes_reach_the_points():
    points = random(1, 3, 2, 2).requires_grad_()
    calls = (
        lambda p: motion_embedding(p, 4, 5.0),
        lambda p: fourier_features(step_motion(p), 3),
        lambda p: sinusoids(p, 4),
    )
    for call in calls:
        assert torch.autograd.gradcheck(call, points)


# Fourier features and steps


@settings(max_examples=50)
@given(
    values=st.lists(st.floats(-2, 2), min_size=1, max_size=5),
    octaves=st.integers(0, 12),
)
def test_fourier_features_equal_equation_7(values, octaves):
    ours = fourier_features(torch.tensor(values, dtype=torch.float64), octaves)
    angles = [value * 2**k for k in range(octaves) for value in values]
    expected = [*values, *map(math.sin, angles), *map(math.cos, angles)]
    assert ours.tolist() == pytest.approx(expected, abs=1e-11)  # angles of up to 4096


def test_steps_equal_equation_6():
    points = random(2, 5, 3, 2)
    steps = step_motion(points)
    zero = torch.zeros(2, 3, 2)
    for t in range(5):
        forward = points[:, t] - points[:, t + 1] if t < 4 else zero
        backward = points[:, t] - points[:, t - 1] if t > 0 else zero
        assert torch.equal(steps[:, t], torch.cat([forward, backward], dim=-1))


def test_backward_in_time_the_two_steps_change_places():
    points = random(2, 5, 3, 2)
    assert torch.equal(step_motion(points.flip(1)).flip(1), halves_swapped(step_motion(points)))


def test_a_single_frame_has_no_steps():
    assert torch.equal(step_motion(torch.rand(2, 1, 3, 2)), torch.zeros(2, 1, 3, 4))


# Sentences

PAIRS = torch.zeros(5, 2)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: sinusoids(PAIRS, 7), ValueError, "width is 7; expected an even number"),
        (lambda: sinusoids(PAIRS, 0), ValueError, "width is 0; expected a whole number, 2 or more"),
        (lambda: sinusoids(PAIRS.long(), 8), TypeError, "positions has dtype torch.int64; exp"),
        (lambda: sinusoids([1.0], 8), TypeError, "positions is a list; expected a tensor"),
        (lambda: time_embedding(0, 8), ValueError, "frames is 0; expected a whole number, 1 or"),
        (lambda: time_embedding(4, 0), ValueError, "width is 0; expected a whole number, 1 or"),
        (lambda: time_embedding(4, 8, 0), ValueError, "length is 0; expected a whole number, 1"),
        (lambda: time_embedding(4.5, 8), ValueError, "frames is 4.5; expected a whole number"),
        (lambda: place_embedding(PAIRS, 0, (4, 4)), ValueError, "width is 0; expected a whole"),
        (lambda: place_embedding(PAIRS, 8, (0, 4)), ValueError, "H is 0; expected a whole number"),
        (lambda: place_embedding(PAIRS, 8, (4, 1.5)), ValueError, "W is 1.5; expected a whole"),
        (lambda: place_embedding(PAIRS.T, 8, (4, 4)), ValueError, r"points has shape \(2, 5\)"),
        (lambda: place_embedding(PAIRS.long(), 8, (4, 4)), TypeError, "points has dtype torch.in"),
        (lambda: motion_embedding(PAIRS.T), ValueError, r"motion has shape \(2, 5\); expected \("),
        (lambda: motion_embedding(torch.tensor(1.0)), ValueError, r"motion has shape \(\); exp"),
        (lambda: motion_embedding(PAIRS.int()), TypeError, "motion has dtype torch.int32; expec"),
        (lambda: motion_embedding(PAIRS, 5), ValueError, "width is 5; expected an even number"),
        (lambda: motion_embedding(PAIRS, highest=0), ValueError, "highest is 0; expected a posit"),
        (lambda: motion_embedding(PAIRS, highest=math.nan), ValueError, "highest is nan; expect"),
        (lambda: fourier_features(torch.tensor(1.0)), ValueError, r"values has shape \(\); exp"),
        (lambda: fourier_features(PAIRS, -1), ValueError, "octaves is -1; expected a whole num"),
        (lambda: fourier_features(PAIRS.long()), TypeError, "values has dtype torch.int64; expe"),
        (lambda: step_motion(PAIRS), ValueError, r"points has shape \(5, 2\); expected \(B, S,"),
        (lambda: step_motion(torch.zeros(1, 0, 3, 2)), ValueError, "expected .* one frame or mor"),
        (lambda: step_motion(torch.zeros(1, 4, 3, 3)), ValueError, r"shape \(1, 4, 3, 3\); expec"),
        (lambda: step_motion(torch.zeros(1, 4, 3, 2).long()), TypeError, "points has dtype torch"),
    ],
)
def test_bad_arguments_are_named(without_shape_checks, call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
