"""The window against sampling each point; its properties, gradients, strange input, sentences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.window import (
    blend_patch,
    read_patch,
    sample_pyramid,
    sample_window,
)


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)


def centres_around(width, height, *shape, margin=3.0, seed=1, dtype=torch.float64):
    """Centres from `margin` before the first pixel to `margin` after the last."""
    span = torch.tensor([width, height], dtype=torch.float64) - 1 + 2 * margin
    return (random(*shape, 2, seed=seed) * span - margin).to(dtype)


def window_by_points(maps, centres, radius, padding="zeros"):
    """Every point of every window through `sample`, one call per offset."""
    images = maps if maps.ndim == 4 else maps[:, None]
    points = centres if centres.ndim == 3 else centres[:, None]
    steps = range(-radius, radius + 1)
    rows = [
        torch.stack(
            [sample(images, points + points.new_tensor([s, t]), padding=padding) for s in steps],
            dim=-1,
        )
        for t in steps
    ]
    window = torch.stack(rows, dim=-2).transpose(1, 2)
    window = window if maps.ndim == 4 else window[:, :, 0]
    return window if centres.ndim == 3 else window[:, 0]


shapes = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 4),
        "channels": st.sampled_from([None, 1, 2, 5]),
        "count": st.sampled_from([None, 1, 3]),
        "height": st.integers(1, 9),
        "width": st.integers(1, 9),
        "radius": st.integers(0, 5),
        "seed": st.integers(0, 10_000),
    }
)


def arguments(batch, channels, count, height, width, seed, dtype=torch.float64):
    middle = () if channels is None else (channels,)
    several = () if count is None else (count,)
    maps = random(batch, *middle, height, width, seed=seed, dtype=dtype)
    centres = centres_around(width, height, batch, *several, margin=8, seed=seed + 1, dtype=dtype)
    return maps, centres


# Values


@settings(max_examples=120, deadline=None)
@given(shapes)
def test_equals_sampling_each_point(case):
    radius = case.pop("radius")
    maps, centres = arguments(**case)
    window, expected = (f(maps, centres, radius) for f in (sample_window, window_by_points))
    assert window.shape == expected.shape and window.dtype == expected.dtype
    assert (window - expected).abs().max() < 1e-9


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_at_the_border_too(case):
    radius = case.pop("radius")
    maps, centres = arguments(**case)
    window = sample_window(maps, centres, radius, padding="border")
    expected = window_by_points(maps, centres, radius, "border")
    assert window.shape == expected.shape and window.dtype == expected.dtype
    # 1e-9: float64 at values up to 1; the coordinates of the two ways differ by a few roundings.
    assert (window - expected).abs().max() < 1e-9


@settings(max_examples=120, deadline=None)
@given(shapes)
def test_is_the_same_with_and_without_a_gradient_to_the_maps(case):
    radius = case.pop("radius")
    maps, centres = arguments(**case)
    with_gradient = sample_window(maps.clone().requires_grad_(), centres, radius)
    assert torch.equal(with_gradient.detach(), sample_window(maps, centres, radius))


@pytest.mark.parametrize("place", [(-3.5, -1.5), (8.5, 4.5), (-3.5, 4.5), (8.5, -1.5), (2.0, 2.0)])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_runs_over_the_ends_of_memory_are_read_right(batch, place):
    maps = torch.rand(batch, 5, 9, dtype=torch.float64)
    centres = torch.tensor(place, dtype=torch.float64).expand(batch, 2)
    assert (sample_window(maps, centres, 3) - window_by_points(maps, centres, 3)).abs().max() < 1e-9


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_single_precision_stays_within_a_ten_thousandth_of_the_range(case):
    radius = case.pop("radius")
    maps, centres = arguments(**case, dtype=torch.float32)
    expected = window_by_points(maps.double(), centres.double(), radius)
    assert (sample_window(maps, centres, radius) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("level", range(4))
def test_equals_sampling_each_point_on_the_look_up_of_raft(level):
    height, width = 55 >> level, 128 >> level
    maps = random(300, 1, height, width, dtype=torch.float32)
    centres = centres_around(width, height, 300, margin=6, dtype=torch.float32)
    difference = sample_window(maps, centres, 4) - window_by_points(maps, centres, 4)
    assert difference.abs().max() < 1e-4


def test_first_axis_is_y_and_second_x():
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    window = sample_window((10 * y + x)[None].double(), torch.tensor([[4.5, 3.25]]).double(), 2)[0]
    offsets = torch.arange(-2.0, 3.0)
    expected = 10 * (3.25 + offsets[:, None]) + 4.5 + offsets
    # 1e-12: a few roundings of float64 at values up to 60.
    assert torch.allclose(window, expected.double(), rtol=0, atol=1e-12)


def test_on_whole_pixels_the_window_is_a_copy():
    maps = random(1, 6, 7, dtype=torch.float32)
    assert torch.equal(sample_window(maps, torch.tensor([[3.0, 2.0]]), 2)[0], maps[0, 0:5, 1:6])


def test_a_constant_map_is_constant_inside():
    maps = torch.full((20, 12, 12), 0.1)
    window = sample_window(maps, 3 + 5 * random(20, 2, dtype=torch.float32), 3)
    assert torch.equal(window, torch.full_like(window, 0.1))


@settings(max_examples=30, deadline=None)
@given(dx=st.integers(-3, 3), dy=st.integers(-3, 3), seed=st.integers(0, 1000))
def test_moves_with_the_map(dx, dy, seed):
    maps = torch.zeros(2, 16, 18).double()
    maps[:, 5:11, 5:13] = random(2, 6, 8, seed=seed)
    centres = 5 + 6 * random(2, 2, seed=seed + 1)
    moved = torch.roll(maps, (dy, dx), dims=(1, 2))
    shifted = sample_window(moved, centres + centres.new_tensor([dx, dy]), 2)
    # 1e-12: the fraction of the moved centre is rounded once more.
    assert torch.allclose(shifted, sample_window(maps, centres, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_windows_are_read_one_by_one(channels):
    maps = random(5, *channels, 7, 8)
    centres = centres_around(8, 7, 5, 6)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(2))
    windows = sample_window(maps, centres, 2)
    assert torch.equal(sample_window(maps[order], centres[order], 2), windows[order])
    assert torch.equal(sample_window(maps, centres[:, [3, 0]], 2), windows[:, [3, 0]])
    assert torch.equal(sample_window(maps, centres[:, 4], 2), windows[:, 4])


def test_one_channel_with_and_without_its_axis():
    maps, centres = random(3, 5, 6), centres_around(6, 5, 3)
    with_axis = sample_window(maps[:, None], centres, 2)
    assert torch.equal(with_axis[:, 0], sample_window(maps, centres, 2))


def test_a_larger_window_contains_the_smaller():
    maps, centres = random(4, 9, 9), centres_around(9, 9, 4)
    assert torch.equal(
        sample_window(maps, centres, 4)[:, 2:7, 2:7], sample_window(maps, centres, 2)
    )


# Shapes, dtypes, memory


@pytest.mark.parametrize("channels", [(), (1,), (4,)])
@pytest.mark.parametrize("count", [(), (0,), (1,), (3,)])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_result_has_the_axes_of_its_arguments(batch, count, channels):
    window = sample_window(torch.zeros(batch, *channels, 5, 6), torch.zeros(batch, *count, 2), 2)
    assert window.shape == (batch, *count, *channels, 5, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [(), (2,)])
def test_dtype_follows_the_maps(dtype, channels):
    maps = random(2, *channels, 5, 6).to(dtype)
    centres = torch.tensor([[1.5, 2.25], [3.75, 0.5]])
    window = sample_window(maps, centres, 1)
    assert window.dtype == dtype
    expected = sample_window(maps.double(), centres.double(), 1)
    # One rounding into the dtype of the maps, at values up to 1, and 1e-5 for float32 inside.
    assert (window - expected).abs().max() <= torch.finfo(dtype).eps + 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("radius", [0, 3])
def test_half_precision_centres_are_not_rounded_again(dtype, radius):
    ramp = torch.arange(1200.0).reshape(1, 1, 1200)
    for x in (1000.0, 700.5, 3.25):
        place = torch.tensor([[x, 0.0]]).to(dtype)
        window = sample_window(ramp, place, radius)[0, radius]
        expected = place[0, 0].float() + torch.arange(-radius, radius + 1)
        assert torch.equal(window, expected)  # a ramp of whole numbers and quarters is exact


def test_strided_inputs_give_the_same_and_stay_as_they_were():
    maps, centres = random(4, 6, 7), centres_around(7, 6, 4, 3)
    strided = maps.transpose(1, 2).contiguous().transpose(1, 2)
    strided_centres = centres.transpose(0, 1).contiguous().transpose(0, 1)
    expanded = maps[:1].expand(4, -1, -1)
    before = strided.clone(), strided_centres.clone()
    assert torch.equal(sample_window(strided, strided_centres, 2), sample_window(maps, centres, 2))
    assert torch.equal(strided, before[0]) and torch.equal(strided_centres, before[1])
    assert torch.equal(
        sample_window(expanded, centres, 2), sample_window(expanded.contiguous(), centres, 2)
    )


def test_the_result_can_be_written_to_without_harm():
    maps, centres = random(2, 6, 7), centres_around(7, 6, 2)
    before, window = maps.clone(), sample_window(maps, centres, 2)
    expected = window.clone() + 1
    window += 1
    assert torch.equal(window, expected) and torch.equal(maps, before)


# Gradients


@pytest.mark.parametrize("channels", [(), (1,), (2,)])
@pytest.mark.parametrize("count", [(), (2,)])
def test_gradcheck_between_pixels(channels, count):
    maps = random(2, *channels, 4, 5).requires_grad_()
    whole = centres_around(5, 4, 2, *count, margin=2).floor()
    centres = (whole + 0.1 + 0.8 * random(2, *count, 2, seed=5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, c: sample_window(m, c, 1), (maps, centres))


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_gradients_equal_those_of_sampling_each_point(case):
    radius = case.pop("radius")
    maps, centres = (tensor.requires_grad_() for tensor in arguments(**case))
    results = [f(maps, centres, radius) for f in (sample_window, window_by_points)]
    pull = random(*results[0].shape, seed=9)
    ours, theirs = (torch.autograd.grad(result, (maps, centres), pull) for result in results)
    for mine, expected in zip(ours, theirs, strict=True):
        assert (mine - expected).abs().max() < 1e-9


def test_on_a_whole_pixel_the_slope_is_the_one_towards_larger_coordinates():
    maps = random(1, 6, 7)
    centres = torch.tensor([[3.0, 2.0]]).double().requires_grad_()
    for window in (sample_window, window_by_points):
        (slope,) = torch.autograd.grad(window(maps, centres, 0).sum(), centres)
        expected = [(maps[0, 2, 4] - maps[0, 2, 3]).item(), (maps[0, 3, 3] - maps[0, 2, 3]).item()]
        # 1e-9: the nudge of `sample`, times slopes up to 1.
        assert slope[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_second_derivatives_exist():
    maps = random(2, 4, 5).requires_grad_()
    centres = torch.tensor([[1.3, 1.6], [2.2, 0.7]]).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda m, c: sample_window(m, c, 1), (maps, centres))


def test_half_precision_gradients_come_back_in_half_precision():
    maps, centres = torch.ones(2, 4, 4).half(), torch.full((2, 2), 1.25).half()
    sample_window(maps.requires_grad_(), centres.requires_grad_(), 1).sum().backward()
    assert maps.grad.dtype == centres.grad.dtype == torch.float16


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_gradients_at_the_border_equal_those_of_sampling_each_point(case):
    radius = case.pop("radius")
    maps, centres = (tensor.requires_grad_() for tensor in arguments(**case))
    results = [
        f(maps, centres, radius, padding="border") for f in (sample_window, window_by_points)
    ]
    pull = random(*results[0].shape, seed=9)
    ours, theirs = (torch.autograd.grad(result, (maps, centres), pull) for result in results)
    for mine, expected in zip(ours, theirs, strict=True):
        assert (mine - expected).abs().max() < 1e-9


# Values and centres that are not finite, and huge centres


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channels", [(), (1,), (2,)])
@pytest.mark.parametrize("place", [(0, 0), (0, 3), (2, 0), (4, 5), (2, 3)])
def test_a_bad_value_reaches_the_points_around_it_only(place, channels, value):
    y, x = place
    maps = random(1, *channels, 5, 6)
    maps[..., y, x] = value
    for centre in ((0.25, 0.5), (2.5, 2.25), (-1.75, -1.5), (6.5, 5.25), (5.25, 3.5)):
        window = sample_window(maps, torch.tensor([centre]).double(), 3)
        points = torch.tensor(centre) + torch.stack(
            torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-3.0, 4), indexing="xy"), dim=-1
        )
        touched = ((points - torch.tensor([x, y])).abs() < 1).all(dim=-1)
        assert torch.equal(window.isfinite(), ~touched.expand(window.shape))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("channels", [(), (2,)])
def test_a_bad_map_leaves_windows_outside_it_and_other_maps_alone(channels, value):
    maps = torch.full((2, *channels, 3, 4), value)
    maps[1] = 1
    window = sample_window(maps, torch.tensor([[-20.0, 1.0], [1.5, 1.0]]), 1)
    assert torch.equal(window[0], torch.zeros_like(window[0]))
    assert torch.equal(window[1], torch.ones_like(window[1]))


@pytest.mark.parametrize("far", [1e3, 1e6, 2.0**24, 1e12, 1e19, 1e30, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [(), (2,)])
def test_huge_centres_are_outside(far, dtype, channels):
    maps = torch.ones(4, *channels, 5, 6, dtype=dtype, requires_grad=True)
    centres = torch.tensor([[far, 1], [-far, 1], [1, far], [-far, -far]], dtype=dtype)
    window = sample_window(maps, centres.requires_grad_(), 2)
    assert torch.equal(window, torch.zeros_like(window))
    window.sum().backward()
    assert not maps.grad.any() and not centres.grad.any()


@pytest.mark.parametrize("channels", [(), (1,), (2,)])
def test_far_centres_read_a_corner_of_the_border(channels):
    maps = random(1, *channels, 5, 6, dtype=torch.float32)
    for x, y, row, column in ((-1e30, -1e9, 0, 0), (1e30, 3e38, -1, -1), (-1e3, 2.0**40, -1, 0)):
        window = sample_window(maps, torch.tensor([[x, y]]), 2, padding="border")
        corner = maps[..., row, column, None, None].expand_as(window)
        # One rounding of float32: the weights of a point need not sum to 1 exactly.
        assert torch.allclose(window, corner, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channels", [(), (1,), (2,)])
def test_centres_that_are_not_finite_give_nan_at_the_border_too(channels, value):
    maps = random(2, *channels, 5, 6)
    centres = torch.tensor([[value, 1.5], [2.5, 1.5]]).double()
    window = sample_window(maps, centres, 1, padding="border")
    assert window[0].isnan().all() and window[1].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channels", [(), (2,)])
def test_centres_that_are_not_finite_give_nan_as_sample_does(channels, value):
    maps = random(3, *channels, 5, 6).requires_grad_()
    centres = torch.tensor([[value, 1.5], [2.5, 1.5], [2.5, value]]).double()
    window = sample_window(maps, centres, 1)
    assert torch.equal(window.isnan(), window_by_points(maps, centres, 1).isnan())
    assert window[0].isnan().all() and window[2].isnan().all()
    assert torch.equal(window[1:2], sample_window(maps[1:2], centres[1:2], 1))
    window[1].sum().backward()
    assert maps.grad[1].isfinite().all()


# The pieces


@settings(max_examples=50, deadline=None)
@given(
    corner=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    size=st.integers(1, 6),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
def test_a_patch_is_a_crop_of_the_map_on_a_sea_of_zeros(corner, size, height, width):
    maps = random(2, height, width)
    sea = torch.zeros(2, height + 32, width + 32).double()
    sea[:, 16 : 16 + height, 16 : 16 + width] = maps
    i, j = corner
    patch = read_patch(maps, torch.tensor([[corner], [corner]]), size)
    assert torch.equal(patch[:, 0], sea[:, 16 + j :, 16 + i :][:, :size, :size])


@settings(max_examples=50, deadline=None)
@given(
    corner=st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    size=st.integers(1, 6),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
def test_a_patch_with_border_is_a_crop_of_the_repeated_map(corner, size, height, width):
    maps = random(2, height, width)
    land = torch.nn.functional.pad(maps, (16, 16, 16, 16), mode="replicate")
    i, j = corner
    patch = read_patch(maps, torch.tensor([[corner], [corner]]), size, padding="border")
    assert torch.equal(patch[:, 0], land[:, 16 + j :, 16 + i :][:, :size, :size])


def test_a_blend_is_the_weighted_sum_of_four_neighbours():
    patch, fraction = random(3, 5, 4, 4), random(3, 5, 2)
    dx, dy = fraction[..., None, None, :].unbind(-1)
    expected = (
        (1 - dx) * (1 - dy) * patch[..., :-1, :-1]
        + dx * (1 - dy) * patch[..., :-1, 1:]
        + (1 - dx) * dy * patch[..., 1:, :-1]
        + dx * dy * patch[..., 1:, 1:]
    )
    # 1e-14: a few roundings of float64 at values up to 1.
    assert torch.allclose(blend_patch(patch, fraction), expected, rtol=0, atol=1e-14)


def test_a_blend_across_patches_of_one_map_and_many_fractions():
    patch, fraction = random(1, 3, 3), random(4, 2)
    expected = torch.stack([blend_patch(patch[0], each) for each in fraction])
    assert torch.equal(blend_patch(patch, fraction), expected)


@pytest.mark.parametrize("channels", [(), (1,), (2,)])
def test_a_pyramid_halves_the_coordinates_at_each_level(channels):
    levels = [random(3, *channels, 16 >> k, 24 >> k, seed=k) for k in range(4)]
    centres = centres_around(24, 16, 3)
    windows = sample_pyramid(levels, centres, 2)
    assert len(windows) == 4
    for k, (level, window) in enumerate(zip(levels, windows, strict=True)):
        expected = window_by_points(level, centres / 2**k, 2)
        assert (window - expected).abs().max() < 1e-9


def test_a_pyramid_hands_the_padding_on():
    levels = [random(3, 16 >> k, 24 >> k, seed=k) for k in range(3)]
    centres = centres_around(24, 16, 3)
    for k, window in enumerate(sample_pyramid(levels, centres, 2, padding="border")):
        assert torch.equal(window, sample_window(levels[k], centres / 2**k, 2, padding="border"))


def test_a_pyramid_without_levels_is_empty():
    assert sample_pyramid([], torch.zeros(3, 2), 2) == []


# Sentences

MAPS, CENTRES = torch.zeros(2, 5, 6), torch.zeros(2, 2)


@pytest.mark.parametrize(
    "maps, centres, radius, error, sentence",
    [
        (MAPS.byte(), CENTRES, 1, TypeError, "maps has dtype torch.uint8; expected floating point"),
        (MAPS, CENTRES.long(), 1, TypeError, "centres has dtype torch.int64; expected floating"),
        (MAPS[0], CENTRES, 1, ValueError, r"maps has shape \(5, 6\); expected \(B, H, W\) or"),
        (MAPS[:, :0], CENTRES, 1, ValueError, r"maps has shape \(2, 0, 6\).* at least one pixel"),
        (MAPS[None, None], CENTRES, 1, ValueError, r"maps has shape \(1, 1, 2, 5, 6\); expected"),
        (MAPS, torch.zeros(2, 3), 1, ValueError, r"centres has shape \(2, 3\); expected \(B, 2\)"),
        (MAPS, torch.zeros(2), 1, ValueError, r"centres has shape \(2,\); expected .*\(x, y\)"),
        (MAPS, torch.zeros(2, 1, 4, 2), 1, ValueError, r"centres has shape \(2, 1, 4, 2\)"),
        (MAPS, torch.zeros(3, 2), 1, ValueError, "centres has batch size 3; expected 2, that of"),
        (MAPS, CENTRES, -1, ValueError, "radius is -1; expected a whole number of pixels, 0 or"),
        (MAPS, CENTRES, 1.5, ValueError, r"radius is 1\.5; expected a whole number of pixels"),
        (MAPS, CENTRES, True, ValueError, "radius is True; expected a whole number of pixels"),
        (MAPS.numpy(), CENTRES, 1, TypeError, "maps is a ndarray; expected a tensor"),
        (MAPS.to("meta"), CENTRES, 1, ValueError, "centres is on cpu; expected meta, that of maps"),
    ],
)
def test_bad_input_is_named(without_shape_checks, maps, centres, radius, error, sentence):
    with pytest.raises(error, match=sentence):
        sample_window(maps, centres, radius)
    with pytest.raises(error, match=sentence):
        sample_pyramid([maps], centres, radius)


def test_whole_numbers_of_numpy_are_whole_numbers(without_shape_checks):
    assert torch.equal(sample_window(MAPS, CENTRES, np.int64(1)), sample_window(MAPS, CENTRES, 1))


@pytest.mark.parametrize("padding", ["reflection", "Border", None])
def test_another_padding_is_named(without_shape_checks, padding):
    for call in (
        lambda: sample_window(MAPS, CENTRES, 1, padding=padding),
        lambda: sample_pyramid([MAPS], CENTRES, 1, padding=padding),
        lambda: read_patch(MAPS, torch.zeros(2, 1, 2).long(), 2, padding=padding),
    ):
        with pytest.raises(ValueError, match=f"padding is {padding!r}; expected zeros or border"):
            call()
