"""The sampler against a loop, SciPy and grid_sample; its properties, gradients and sentences."""

import itertools
import math

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from fourfold.bilinear_sampling.sampling import (
    bilinear_weights,
    floor_and_fraction,
    normalise,
    sample,
)

PADDINGS = ("zeros", "border", "reflection")
SCIPY_MODES = {"zeros": "grid-constant", "border": "nearest", "reflection": "mirror"}


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)


def points_around(size, count, *, batch=1, margin=2.5, seed=1, dtype=torch.float64):
    """Points from `margin` before the first pixel to `margin` after the last; size is (W, H, …)."""
    span = torch.tensor(size, dtype=torch.float64) - 1 + 2 * margin
    return (random(batch, count, len(size), seed=seed) * span - margin).to(dtype)


def pixel(k, length, padding):
    """The place along an axis where pixel k is stored, or None for a zero."""
    if 0 <= k < length:
        return k
    if padding == "zeros":
        return None
    if padding == "border" or length == 1:
        return min(max(k, 0), length - 1)
    k %= 2 * length - 2
    return min(k, 2 * length - 2 - k)


def sample_loop(image, points, padding):
    """Every neighbour of every point, one at a time, for any number of axes."""
    values = torch.zeros(*image.shape[:2], points.shape[1], dtype=torch.float64)
    for b, n in itertools.product(range(points.shape[0]), range(points.shape[1])):
        position = points[b, n].tolist()[::-1]  # in the order of the array's axes
        for corner in itertools.product((0, 1), repeat=len(position)):
            weight, place = 1.0, []
            for x, step, length in zip(position, corner, image.shape[2:], strict=True):
                fraction = x - math.floor(x)
                weight *= fraction if step else 1 - fraction
                place.append(pixel(math.floor(x) + step, length, padding))
            if None not in place:
                values[b, :, n] += weight * image[(b, slice(None), *place)].double()
    return values


def ruler(points, shape, align_corners):
    """grid_sample's coordinates, written down independently."""
    size = torch.tensor(shape[::-1], dtype=points.dtype)
    return 2 * points / (size - 1) - 1 if align_corners else (2 * points + 1) / size - 1


# Values


def test_the_example_of_the_notes():
    image = torch.zeros(1, 1, 6, 5)
    image[0, 0, 3, 2], image[0, 0, 3, 3], image[0, 0, 4, 2], image[0, 0, 4, 3] = 10, 20, 30, 40
    # 1e-4: float32 at values up to 40.
    assert sample(image, torch.tensor([[2.5, 3.5]])).item() == pytest.approx(25, abs=1e-4)


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 3),
    size=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    padding=st.sampled_from(PADDINGS),
    seed=st.integers(0, 10_000),
)
def test_equals_the_loop(batch, channels, size, padding, seed):
    image = random(batch, channels, *size, seed=seed)
    points = points_around(size[::-1], 5, batch=batch, margin=8, seed=seed + 1)
    values = sample(image, points, padding=padding)
    # 1e-12: some dozen roundings of float64 at values up to 1.
    assert torch.allclose(values, sample_loop(image, points, padding), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(37, 53), (1, 9), (9, 1), (500, 741), (5, 12, 9)])
def test_equals_scipy(shape, padding):
    image = random(1, 1, *shape)
    points = points_around(shape[::-1], 2000)
    expected = map_coordinates(
        image[0, 0].numpy(), points[0].flip(-1).T.numpy(), order=1, mode=SCIPY_MODES[padding]
    )
    assert np.abs(sample(image, points, padding=padding)[0, 0].numpy() - expected).max() < 1e-9


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(37, 53), (500, 741), (5, 12, 9)])
def test_single_precision_stays_within_a_ten_thousandth_of_the_range(shape, padding):
    image, points = random(1, 2, *shape).float(), points_around(shape[::-1], 5000).float()
    expected = sample(image.double(), points.double(), padding=padding)
    assert (sample(image, points, padding=padding) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(37, 53), (5, 12, 9)])
def test_equals_grid_sample(shape, padding, align_corners, dtype, tolerance):
    image = random(2, 3, *shape, dtype=dtype)
    points = points_around(shape[::-1], 400, batch=2, dtype=dtype)
    if padding == "reflection" and not align_corners:
        # That mirror stands at the outer edges; up to the border centres nothing is mirrored.
        points = torch.minimum(points.clamp(min=0), torch.tensor(shape[::-1]).to(dtype) - 1)
    grid = ruler(points, shape, align_corners)
    grid = grid.reshape(2, -1, *[1] * (len(shape) - 1), len(shape))
    expected = F.grid_sample(image, grid, padding_mode=padding, align_corners=align_corners)
    values = sample(image, points, padding=padding)
    assert (values - expected.reshape(values.shape)).abs().max() < tolerance


@pytest.mark.parametrize("padding", PADDINGS)
def test_reads_pixels_at_their_centres(padding):
    image = random(1, 2, 6, 5)
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    centres = torch.stack([columns, rows], dim=-1)[None].double()
    # 1e-13: the nudge in normalise, and rounding.
    assert torch.allclose(sample(image, centres, padding=padding), image, rtol=0, atol=1e-13)


@pytest.mark.parametrize("padding", ["border", "reflection"])
def test_a_constant_image_is_constant_everywhere(padding):
    points = points_around((5, 6), 200, margin=20)
    values = sample(torch.full((1, 1, 6, 5), 7.0).double(), points, padding=padding)
    assert torch.allclose(values, torch.full_like(values, 7), rtol=0, atol=1e-12)


def test_zeros_fade_in_over_one_pixel():
    ones = torch.ones(1, 1, 3, 3).double()
    row = torch.tensor([[[x, 1.0] for x in (-1.5, -1, -0.75, -0.5, 0, 2, 2.25, 3, 9)]]).double()
    expected = torch.tensor([0, 0, 0.25, 0.5, 1, 1, 0.75, 0, 0]).double()
    assert torch.allclose(sample(ones, row)[0, 0], expected, rtol=0, atol=1e-12)


def test_a_linear_image_is_met_exactly_inside():
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij")
    image = (3 * x - 2 * y + 5)[None, None].double()
    points = points_around((9, 7), 300, margin=0)
    expected = 3 * points[..., 0] - 2 * points[..., 1] + 5
    assert torch.allclose(sample(image, points)[0], expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("padding", PADDINGS)
def test_moves_with_the_image(padding):
    image = random(1, 2, 12, 14)
    points = points_around((6, 5), 100, margin=0) + torch.tensor([2.0, 3.0])
    moved = torch.roll(image, (3, 4), dims=(2, 3))
    assert torch.allclose(
        sample(image, points, padding=padding),
        sample(moved, points + torch.tensor([4.0, 3.0]), padding=padding),
        rtol=0,
        atol=1e-12,
    )


def test_points_are_read_one_by_one():
    image, points = random(2, 3, 8, 9), points_around((9, 8), 50, batch=2)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    values = sample(image, points)
    assert torch.equal(sample(image, points[:, order]), values[..., order])
    assert torch.equal(sample(image[1:], points[1:]), values[1:])


# Shapes, dtypes, memory


@pytest.mark.parametrize("middle", [(), (6,), (2, 3), (1, 2, 3), (0,), (2, 0), (0, 4)])
@pytest.mark.parametrize("axes", [2, 3])
def test_any_middle_axes(middle, axes):
    image = random(2, 3, *(4, 5, 6)[:axes])
    points = random(2, *middle, axes, seed=2) * 3
    values = sample(image, points)
    assert values.shape == (2, 3, *middle)
    count = math.prod(middle)
    one_list = sample(image, points.reshape(2, count, axes))
    assert torch.equal(values.reshape(2, 3, count), one_list)


def test_an_empty_batch_and_no_channels():
    assert sample(torch.zeros(0, 3, 4, 5), torch.zeros(0, 7, 2)).shape == (0, 3, 7)
    assert sample(torch.zeros(2, 0, 4, 5), torch.zeros(2, 7, 2)).shape == (2, 0, 7)


def test_strided_inputs_give_the_same_and_stay_as_they_were():
    image, points = random(1, 3, 8, 9), points_around((9, 8), 24).reshape(1, 4, 6, 2)
    strided_image = image.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    strided_points = points.transpose(1, 2).contiguous().transpose(1, 2)
    before = strided_image.clone(), strided_points.clone()
    assert torch.equal(sample(strided_image, strided_points), sample(image, points))
    assert torch.equal(strided_image, before[0]) and torch.equal(strided_points, before[1])


@pytest.mark.parametrize(
    "image_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize(
    "point_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_dtype_follows_the_image(image_dtype, point_dtype):
    image, points = (
        random(1, 1, 4, 5).to(image_dtype),
        torch.tensor([[[1.5, 2.25]]]).to(point_dtype),
    )
    values = sample(image, points)
    assert values.dtype == image_dtype
    expected = sample(image.double(), points.double())
    # One rounding into the image's dtype, at a value up to 1, and 1e-5 for float32 inside.
    assert (values - expected).abs().max() <= torch.finfo(image_dtype).eps + 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_points_are_not_rounded_again(dtype):
    ramp = torch.arange(1024.0).reshape(1, 1, 1, 1024)
    for x in (1000.0, 700.5, 3.25):
        place = torch.tensor([[x, 0.0]]).to(dtype)
        # 1e-3: float32 near 1000 has steps of 6e-5, and normalising costs a few of them.
        assert sample(ramp, place).item() == pytest.approx(place[0, 0].item(), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_read_at_exact_points(dtype):
    stripes = (torch.arange(1024) % 2).to(dtype).reshape(1, 1, 1, 1024)
    # 1e-2: one rounding of the value to bfloat16; the place itself is exact.
    assert sample(stripes, torch.tensor([[1000.25, 0.0]])).item() == pytest.approx(0.25, abs=1e-2)


@pytest.mark.parametrize("padding", PADDINGS)
def test_one_pixel(padding):
    image = torch.full((1, 1, 1, 1), 3.0).double()
    values = sample(
        image, torch.tensor([[[0.0, 0.0], [0.5, 0.0], [-4.0, 9.0]]]).double(), padding=padding
    )
    expected = [3, 1.5, 0] if padding == "zeros" else [3, 3, 3]
    assert values[0, 0].tolist() == pytest.approx(expected, abs=1e-12)


# Gradients


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4)])
def test_gradcheck_between_pixels(shape, padding):
    image = random(2, 2, *shape).requires_grad_()
    points = points_around(shape[::-1], 12, batch=2, margin=3).floor() + 0.1
    points = points + 0.8 * random(*points.shape, seed=7)
    inputs = (image, points.requires_grad_())
    assert torch.autograd.gradcheck(lambda i, p: sample(i, p, padding=padding), inputs)


def slopes_at(image, points, padding="zeros"):
    points = points.clone().requires_grad_()
    (slope,) = torch.autograd.grad(sample(image, points, padding=padding).sum(), points)
    return slope


def test_slope_is_equation_5():
    image, point = random(1, 1, 5, 6), torch.tensor([[[2.3, 1.6]]]).double()
    I00, I10, I01, I11 = (image[0, 0, 1 + b, 2 + a].item() for b in (0, 1) for a in (0, 1))
    expected = [0.4 * (I10 - I00) + 0.6 * (I11 - I01), 0.7 * (I01 - I00) + 0.3 * (I11 - I10)]
    # 1e-6: the point is a float32 number, off by up to 1e-7.
    assert slopes_at(image, point)[0, 0].tolist() == pytest.approx(expected, abs=1e-6)


WIDTHS = [*range(1, 80), 127, 128, 129, 641, 1023, 1024, 1025, 1279, 1920, 1921, 3840, 4099]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("axis, axes", [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)])
def test_on_centres_float64_takes_the_side_of_larger_coordinates(axis, axes, padding):
    for length in WIDTHS:
        line = torch.arange(length, dtype=torch.float64) * 7 % 11 + 1
        # At the last centre the mirror turns back: there the gradient is 0, as at a summit.
        count = length - 1 if padding == "reflection" else length
        following = [pixel(k + 1, length, padding) for k in range(count)]
        after = torch.tensor([0.0 if k is None else line[k].item() for k in following]).double()
        points = torch.zeros(1, count, axes).double()
        points[0, :, axis] = torch.arange(count)
        shape = [1] * axes
        shape[axes - 1 - axis] = length
        slope = slopes_at(line.reshape(1, 1, *shape), points, padding)[0, :, axis]
        # 1e-6: neighbouring slopes differ by whole numbers.
        assert torch.allclose(slope, after - line[:count], rtol=0, atol=1e-6), length


def test_on_centres_float32_takes_the_slope_of_one_side():
    for length in WIDTHS[2:]:
        line = torch.arange(length, dtype=torch.float32) * 7 % 11 + 1
        points = torch.zeros(1, length, 2)
        points[0, :, 0] = torch.arange(length)
        slope = slopes_at(line.reshape(1, 1, 1, -1), points)[0, 1:-1, 0]
        left, right = line[1:-1] - line[:-2], line[2:] - line[1:-1]
        # 0.01: float32 weights times W/2, while the slopes of the two sides are whole numbers.
        assert torch.minimum((slope - left).abs(), (slope - right).abs()).max() < 0.01, length


def test_gradient_to_the_image_is_the_weights():
    image = random(1, 1, 4, 4).requires_grad_()
    point = torch.tensor([[[1.25, 2.5]]]).double()
    (weights,) = torch.autograd.grad(sample(image, point).sum(), image)
    square = bilinear_weights(floor_and_fraction(point)[1])[0, 0].reshape(2, 2)
    expected = torch.zeros(4, 4).double()
    expected[2:4, 1:3] = square
    assert torch.allclose(weights[0, 0], expected, rtol=0, atol=1e-12)


def test_half_precision_gradients_come_back_in_half_precision():
    image, points = torch.ones(1, 1, 4, 4).half(), torch.tensor([[[1.25, 2.5]]]).half()
    sample(image.requires_grad_(), points.requires_grad_()).sum().backward()
    assert image.grad.dtype == points.grad.dtype == torch.float16


# Points that are not finite, and huge ones

STRANGE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", STRANGE)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("count", [1, 20])
def test_points_that_are_not_finite_read_what_grid_sample_reads(shape, padding, value, count):
    image = random(1, 2, *shape)
    points = torch.ones(1, count, len(shape)).double()
    points[..., 0] = value
    align_corners = padding == "reflection"
    grid = ruler(points, shape, align_corners).reshape(1, count, *[1] * (len(shape) - 1), -1)
    expected = F.grid_sample(image, grid, padding_mode=padding, align_corners=align_corners)
    values = sample(image, points, padding=padding)
    assert torch.allclose(values, expected.reshape(values.shape), atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("value", [*STRANGE, 1e30, -1e30])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strange_points_have_a_backward_pass_and_leave_the_others_alone(
    shape, padding, value, dtype
):
    image = random(1, 2, *shape, dtype=dtype).requires_grad_()
    points = torch.full((1, 20, len(shape)), 1.25, dtype=dtype)
    points[:, ::2, 0] = value
    values = sample(image, points.requires_grad_(), padding=padding)
    values.sum().backward()
    usual = points.detach()[:, 1::2].clone().requires_grad_()
    expected = sample(image, usual, padding=padding)
    expected.sum().backward()
    assert torch.equal(values[..., 1::2], expected)
    assert torch.equal(points.grad[:, 1::2], usual.grad)
    if padding != "zeros":
        assert image.grad.isfinite().all() and points.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [1e3, 1e6, 1e12, 1e30])
@pytest.mark.parametrize("size", [1, 2, 5, 641])
def test_huge_coordinates_are_outside(far, size, dtype):
    row = torch.arange(1, size + 1).to(dtype).reshape(1, 1, 1, size)
    points = torch.tensor([[[far, 0.0], [-far, 0.0]]], dtype=dtype)
    assert sample(row, points)[0, 0].tolist() == [0, 0]
    assert sample(row, points, padding="border")[0, 0].tolist() == [size, 1]
    mirrored = sample(row, points, padding="reflection")
    assert mirrored.min() >= 1 and mirrored.max() <= size


# Sentences

IMAGE, POINTS = torch.zeros(2, 3, 4, 5), torch.zeros(2, 7, 2)


@pytest.mark.parametrize(
    "image, points, padding, error, sentence",
    [
        (IMAGE.byte(), POINTS, "zeros", TypeError, "image has dtype torch.uint8; expected float"),
        (IMAGE, POINTS.long(), "zeros", TypeError, "points has dtype torch.int64; expected float"),
        (IMAGE, POINTS, "mirror", ValueError, "padding is 'mirror'; expected one of zeros, border"),
        (IMAGE[0], POINTS, "zeros", ValueError, r"image has shape \(3, 4, 5\); expected \(B, C, H"),
        (IMAGE[:, :, :0], POINTS, "zeros", ValueError, r"image has shape \(2, 3, 0, 5\)"),
        (
            IMAGE,
            torch.zeros(2, 7, 3),
            "zeros",
            ValueError,
            r"points has shape \(2, 7, 3\); .*x, y\)",
        ),
        (IMAGE[:, :, None], POINTS, "zeros", ValueError, r"points has shape .* \(x, y, t\)"),
        (IMAGE, torch.zeros(2), "zeros", ValueError, r"points has shape \(2,\); expected"),
        (IMAGE, POINTS[:1], "zeros", ValueError, "points has batch size 1; expected 2"),
        (IMAGE.numpy(), POINTS, "zeros", TypeError, "image is a ndarray; expected a tensor"),
        (IMAGE, POINTS.tolist(), "zeros", TypeError, "points is a list; expected a tensor"),
        (IMAGE.to("meta"), POINTS, "zeros", ValueError, "points is on cpu; expected meta"),
    ],
)
def test_bad_input_is_named(without_shape_checks, image, points, padding, error, sentence):
    with pytest.raises(error, match=sentence):
        sample(image, points, padding=padding)


def test_shapes_are_checked_by_their_annotations():
    with pytest.raises(jaxtyping.TypeCheckError):
        sample(IMAGE, POINTS[:1])


# The pieces


def test_floor_and_fraction():
    corner, fraction = floor_and_fraction(torch.tensor([[-0.25, 3.0], [2.5, -2.0]]))
    assert corner.dtype == torch.int64
    assert corner.tolist() == [[-1, 3], [2, -2]]
    assert fraction.tolist() == [[0.75, 0.0], [0.5, 0.0]]


def test_weights_are_areas_of_a_unit_square():
    fraction = random(200, 2)
    weights = bilinear_weights(fraction)
    assert torch.allclose(weights.sum(-1), torch.ones(200).double(), rtol=0, atol=1e-15)
    assert (weights >= 0).all()
    turned = bilinear_weights(1 - fraction)
    assert torch.allclose(weights.flip(-1), turned, rtol=0, atol=1e-15)
    assert bilinear_weights(torch.tensor([1.0, 0.0])).tolist() == [0, 1, 0, 0]
    assert bilinear_weights(torch.tensor([0.0, 1.0])).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("align_corners", [False, True])
def test_normalise_is_the_ruler_of_grid_sample(align_corners):
    points = points_around((9, 7, 5), 100)[0]
    expected = ruler(points, (5, 7, 9), align_corners)
    # 1e-15: the nudge, 2e-16, and rounding near 1.
    difference = normalise(points, (5, 7, 9), align_corners=align_corners) - expected
    assert difference.abs().max() < 2e-15


def test_normalise_of_an_axis_with_one_pixel():
    points = torch.tensor([[0.0, 0.0]])
    assert normalise(points, (1, 1)).tolist() == [[0, 0]]
    assert normalise(points, (1, 1), align_corners=True).isfinite().all()
