"""Warps against permutations, scipy, a null-space solution and what the maps promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from fourfold.bilinear_sampling.warps import (
    affine_grid,
    flow_grid,
    homography_from_points,
    homography_grid,
    inside,
    pixel_grid,
    rotation,
    scaling,
    translation,
    warp,
)
from fourfold.kit.images import stereo_pair

F64 = torch.float64
# Rounding of a position of some tens of pixels in float64, times a slope of about 1 per pixel.
EXACT = {"rtol": 0, "atol": 1e-12}
SCIPY_MODES = {"zeros": "grid-constant", "border": "nearest", "reflection": "mirror"}

sizes = st.integers(1, 9)
degrees = st.floats(-720, 720, allow_nan=False)
coordinates = st.floats(-30, 30, allow_nan=False)
factors = st.floats(0.2, 3, allow_nan=False)


def noise(*shape, seed=0, dtype=F64):
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def plane(h, w):
    """An image that is linear in x and y, which bilinear sampling reads without error inside."""
    x, y = pixel_grid(h, w, dtype=F64).unbind(-1)
    return (3 + 0.5 * x - 0.25 * y)[None, None]


def apply(matrix, points):
    """The points (N, 2) sent through a 3 × 3 matrix, with the division."""
    XYw = torch.cat([points, torch.ones_like(points[:, :1])], dim=1) @ matrix.T
    return XYw[:, :2] / XYw[:, 2:]


def a_homography(h=11, w=13):
    corners = [(0, 0), (w - 1, 0), (w - 1, h - 1), (0, h - 1)]
    return homography_from_points(
        corners, [(2.3, 1.2), (9.6, -1.4), (11.2, 9.1), (-1.3, 7.7)], dtype=F64
    )


# pixel_grid


@given(sizes, sizes)
def test_the_pixel_grid_holds_x_then_y(H, W):
    grid = pixel_grid(H, W)
    assert grid.shape == (H, W, 2)
    for y in range(H):
        for x in range(W):
            assert grid[y, x].tolist() == [x, y]


def test_the_pixel_grid_takes_a_dtype_and_follows_the_default():
    assert pixel_grid(2, 3).dtype == torch.get_default_dtype()
    assert pixel_grid(2, 3, dtype=F64, device="cpu").dtype == F64


# warp


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 6), (5, 1), (7, 9)])
def test_the_identity_and_a_flow_of_zeros_move_nothing(h, w, padding):
    image = noise(2, 3, h, w)
    for grid in (
        pixel_grid(h, w, dtype=F64)[None],
        affine_grid(torch.eye(3, dtype=F64), h, w),
        homography_grid(torch.eye(3, dtype=F64), h, w),
        flow_grid(torch.zeros(2, 2, h, w, dtype=F64)),
    ):
        torch.testing.assert_close(warp(image, grid, padding=padding), image, **EXACT)


@given(st.integers(-12, 12), st.integers(-12, 12))
def test_a_whole_translation_is_a_roll_with_zeros_outside(dx, dy):
    image = noise(1, 2, 8, 10)
    shifted = warp(image, affine_grid(translation(dx, dy, dtype=F64), 8, 10))
    padded = torch.nn.functional.pad(image, (12, 12, 12, 12))
    expected = padded.roll((-dy, -dx), (2, 3))[..., 12:-12, 12:-12]
    torch.testing.assert_close(shifted, expected, **EXACT)


def test_reading_further_right_moves_the_picture_left():
    image = torch.zeros(1, 1, 1, 5)
    image[..., 3] = 1
    moved = warp(image, affine_grid(translation(2, 0), 1, 5))
    assert moved.flatten().argmax() == 1


def test_a_batch_of_one_serves_the_other_batch():
    images, grids = noise(3, 2, 5, 6), 4 * noise(3, 4, 7, 2)
    many_grids = warp(images[:1], grids)
    many_images = warp(images, grids[:1])
    assert many_grids.shape == many_images.shape == (3, 2, 4, 7)
    for b in range(3):
        torch.testing.assert_close(many_grids[b], warp(images[:1], grids[b : b + 1])[0], **EXACT)
        torch.testing.assert_close(many_images[b], warp(images[b : b + 1], grids[:1])[0], **EXACT)


def test_an_empty_batch_gives_an_empty_batch():
    empty = torch.zeros(0, 3, 5, 6)
    assert warp(empty, pixel_grid(4, 7)[None]).shape == (0, 3, 4, 7)
    assert warp(noise(1, 3, 5, 6), torch.zeros(0, 4, 7, 2)).shape == (0, 3, 4, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_the_output_has_the_dtype_of_the_image(dtype):
    assert warp(noise(1, 1, 4, 4).to(dtype), pixel_grid(4, 4)[None]).dtype == dtype


@pytest.mark.parametrize("padding", SCIPY_MODES)
def test_an_affine_warp_equals_scipy(padding):
    image = noise(1, 1, 14, 17)
    matrix = rotation(25, (6, 5), dtype=F64) @ scaling((0.8, 1.3), (2, 3), dtype=F64)
    matrix = translation(-1.3, 2.1, dtype=F64) @ matrix
    ours = warp(image, affine_grid(matrix, 12, 15), padding=padding)[0, 0]
    # scipy counts axes (y, x): rows and columns of the matrix change places.
    flipped = matrix.numpy()[[1, 0, 2]][:, [1, 0, 2]]
    theirs = ndimage.affine_transform(
        image[0, 0].numpy(), flipped, output_shape=(12, 15), order=1, mode=SCIPY_MODES[padding]
    )
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-9)


@pytest.mark.parametrize("padding", SCIPY_MODES)
def test_a_homography_and_a_flow_equal_scipy(padding):
    image, matrix = noise(1, 1, 11, 13), a_homography()
    flow = 5 * noise(1, 2, 9, 10) - 2.5
    y, x = np.mgrid[:9, :10].astype(float)
    X, Y, w = np.einsum("rc,chw->rhw", matrix.numpy(), np.stack([x, y, np.ones_like(x)]))
    positions = {
        homography_grid(matrix, 9, 10): (Y / w, X / w),
        flow_grid(flow): (y + flow[0, 1].numpy(), x + flow[0, 0].numpy()),
    }
    for grid, rows_columns in positions.items():
        theirs = ndimage.map_coordinates(
            image[0, 0].numpy(), rows_columns, order=1, mode=SCIPY_MODES[padding]
        )
        ours = warp(image, grid, padding=padding)[0, 0]
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-9)


@given(degrees, factors, coordinates, coordinates)
def test_two_warps_in_a_row_are_one_warp_by_the_product(angle, factor, dx, dy):
    A = rotation(angle, (20, 20), dtype=F64) @ scaling(factor, (20, 20), dtype=F64)
    B = translation(dx, dy, dtype=F64) @ rotation(-angle / 3, (20, 20), dtype=F64)
    image = plane(41, 41)
    twice = warp(warp(image, affine_grid(A, 41, 41)), affine_grid(B, 41, 41))
    once = warp(image, affine_grid(A @ B, 41, 41))
    # Only where the second reading lies amid pixels that the first could read.
    readable = inside(affine_grid(A, 41, 41), 41, 41).to(F64)[:, None]
    settled = warp(readable, affine_grid(B, 41, 41)) > 1 - 1e-12
    torch.testing.assert_close(twice[settled], once[settled], rtol=0, atol=1e-9)


# affine_grid and its constructors


@pytest.mark.parametrize("quarters", range(-5, 6))
def test_quarter_turns_are_rot90_and_land_on_pixel_centres(quarters):
    image = noise(1, 2, 7, 7)
    grid = affine_grid(rotation(90 * quarters, (3, 3), dtype=F64), 7, 7)
    assert torch.equal(grid, grid.round())
    torch.testing.assert_close(warp(image, grid), image.rot90(quarters, (2, 3)), **EXACT)


def test_a_positive_angle_turns_points_clockwise_on_the_screen():
    turned = apply(rotation(90, dtype=F64), torch.tensor([[1.0, 0]], dtype=F64))
    assert turned.tolist() == [[0, 1]]  # from pointing right to pointing down


@given(degrees, coordinates, coordinates)
def test_a_rotation_keeps_its_centre_and_is_undone_by_minus_the_angle(angle, x, y):
    turn, back = rotation(angle, (x, y), dtype=F64), rotation(-angle, (x, y), dtype=F64)
    centre = torch.tensor([[x, y]], dtype=F64)
    torch.testing.assert_close(apply(turn, centre), centre, rtol=0, atol=1e-9)
    torch.testing.assert_close(turn @ back, torch.eye(3, dtype=F64), rtol=0, atol=1e-9)
    radians = math.radians(angle)
    linear = torch.tensor(
        [[math.cos(radians), -math.sin(radians)], [math.sin(radians), math.cos(radians)]], dtype=F64
    )
    torch.testing.assert_close(turn[:2, :2], linear, rtol=0, atol=1e-12)


@given(factors, factors, coordinates, coordinates)
def test_a_scaling_multiplies_distances_from_its_centre(fx, fy, x, y):
    centre, point = torch.tensor([[x, y]], dtype=F64), torch.tensor([[2.0, -7.0]], dtype=F64)
    moved = apply(scaling((fx, fy), (x, y), dtype=F64), point)
    expected = centre + torch.tensor([fx, fy], dtype=F64) * (point - centre)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-9)
    assert torch.equal(scaling(fx, (x, y)), scaling((fx, fx), (x, y)))


def test_constructors_take_a_dtype_and_follow_the_default():
    for make in (lambda **o: translation(1, 2, **o), lambda **o: rotation(3, **o)):
        assert make().dtype == torch.get_default_dtype()
        assert make(dtype=F64, device="cpu").dtype == F64


def test_one_matrix_is_a_batch_of_one():
    matrices = torch.stack([rotation(10), scaling(2), translation(1, 2)])
    for grid in (affine_grid, homography_grid):
        stacked = grid(matrices, 4, 5)
        assert stacked.shape == (3, 4, 5, 2)
        for b in range(3):
            torch.testing.assert_close(stacked[b : b + 1], grid(matrices[b], 4, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_are_never_in_half_precision(dtype):
    assert affine_grid(torch.eye(3, dtype=dtype), 2, 2000)[0, 1, 1999].tolist() == [1999, 1]
    assert homography_grid(torch.eye(3, dtype=dtype), 2, 2000)[0, 1, 1999].tolist() == [1999, 1]
    assert flow_grid(torch.zeros(1, 2, 2, 2000, dtype=dtype))[0, 1, 1999].tolist() == [1999, 1]


# homography_grid and homography_from_points


@given(degrees, factors, coordinates, coordinates)
def test_a_homography_without_perspective_is_the_affine_map(angle, factor, dx, dy):
    matrix = translation(dx, dy, dtype=F64) @ rotation(angle, (4, 3), dtype=F64)
    matrix = matrix @ scaling(factor, dtype=F64)
    torch.testing.assert_close(homography_grid(matrix, 6, 7), affine_grid(matrix, 6, 7), **EXACT)


@given(st.floats(1e-6, 1e6))
def test_a_positive_factor_changes_no_homography(factor):
    matrix = a_homography()
    torch.testing.assert_close(
        homography_grid(factor * matrix, 11, 13), homography_grid(matrix, 11, 13)
    )


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_at_and_behind_the_horizon_a_homography_reads_outside(dtype):
    # w = y − 4: the plane is seen in the rows below the fourth.
    matrix = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, -4]], dtype=dtype)
    grid = homography_grid(matrix, 9, 6)[0]
    assert (grid[:5] == -1e4).all()
    assert (grid[5:] >= 0).all()
    assert grid.isfinite().all()
    assert (warp(torch.ones(1, 1, 40, 40, dtype=dtype), grid[None])[0, 0, :5] == 0).all()


def test_the_gradient_of_a_homography_is_finite_across_the_horizon():
    matrix = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, -4]], requires_grad=True)
    warp(noise(1, 1, 20, 20, dtype=torch.float32), homography_grid(matrix, 9, 6)).sum().backward()
    assert matrix.grad.isfinite().all()
    assert matrix.grad.abs().sum() > 0


def test_a_matrix_of_nan_reads_outside():
    assert (homography_grid(torch.full((3, 3), torch.nan), 2, 3) == -1e4).all()


quadrilaterals = st.builds(
    # One point in each quadrant, away from the axes: never three on a line, always the same order.
    lambda c, r: [
        (c[0] + sx * r[2 * k], c[1] + sy * r[2 * k + 1])
        for k, (sx, sy) in enumerate([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    ],
    st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
    st.lists(st.floats(20, 38), min_size=8, max_size=8),
)


def null_space_homography(p, q):
    """The direct linear transform: the null vector of 2 equations in 9 unknowns for each pair."""
    rows = []
    for (x, y), (u, v) in zip(p, q, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y, -u], [0, 0, 0, x, y, 1, -v * x, -v * y, -v]]
    return torch.from_numpy(np.linalg.svd(np.array(rows))[2][-1].reshape(3, 3))


@given(quadrilaterals, quadrilaterals)
def test_four_points_land_on_their_partners_in_front_of_the_horizon(p, q):
    matrix = homography_from_points(p, q, dtype=F64)
    start = torch.tensor(p, dtype=F64)
    # A well-conditioned system in float64; the last digits of coordinates near 500 are 1e-13.
    torch.testing.assert_close(apply(matrix, start), torch.tensor(q, dtype=F64), rtol=0, atol=1e-8)
    w = torch.cat([start, torch.ones(4, 1, dtype=F64)], dim=1) @ matrix[2]
    assert (w > 0).all()
    torch.testing.assert_close(w.mean(), torch.tensor(1.0, dtype=F64), rtol=0, atol=1e-9)


def test_the_homography_equals_the_null_space_solution():
    p, q = [(0, 0), (9, 1), (8, 7), (-1, 6)], [(1, 2), (5, 0), (7, 9), (0, 5)]
    ours, theirs = homography_from_points(p, q, dtype=F64), null_space_homography(p, q)
    torch.testing.assert_close(ours / ours[2, 2], theirs / theirs[2, 2], rtol=1e-9, atol=1e-9)


def test_a_mirrored_quadrilateral_is_a_view_too():
    p, q = [(0, 0), (9, 0), (9, 7), (0, 7)], [(9, 0), (0, 0), (0, 7), (9, 7)]
    mirror = torch.tensor([[-1.0, 0, 9], [0, 1, 0], [0, 0, 1]])
    torch.testing.assert_close(homography_from_points(p, q), mirror, rtol=0, atol=1e-5)


def test_homography_from_points_takes_tensors_a_dtype_and_no_other_default():
    p = torch.tensor([[0.0, 0], [9, 0], [9, 7], [0, 7]])
    assert homography_from_points(p, p).dtype == torch.get_default_dtype()
    assert homography_from_points(p, p, dtype=F64, device="cpu").dtype == F64
    torch.testing.assert_close(homography_from_points(p, p), torch.eye(3), rtol=0, atol=1e-6)


# flow_grid and inside


def test_u_goes_to_x_and_v_to_y():
    flow = noise(2, 2, 3, 5)
    grid = flow_grid(flow)
    for y in range(3):
        for x in range(5):
            expected = torch.tensor([x, y], dtype=F64) + flow[:, :, y, x]
            torch.testing.assert_close(grid[:, y, x], expected, **EXACT)


@given(coordinates, coordinates)
def test_a_constant_flow_is_a_translation(u, v):
    flow = torch.tensor([u, v], dtype=F64).view(1, 2, 1, 1).expand(1, 2, 4, 6)
    expected = affine_grid(translation(u, v, dtype=F64), 4, 6)
    torch.testing.assert_close(flow_grid(flow), expected, **EXACT)


def test_inside_counts_the_border_and_not_nan():
    just_out = np.nextafter(np.float32(4), np.float32(5)).item()
    points = [[0, 0], [4, 2], [-1e-6, 0], [just_out, 0], [0, 2.001], [math.nan, 1], [math.inf, 1]]
    grid = torch.tensor(points).view(1, 1, 7, 2)
    assert inside(grid, 3, 5).flatten().tolist() == [True, True] + 5 * [False]


@given(sizes, sizes)
def test_the_pixel_grid_is_inside(h, w):
    assert inside(pixel_grid(h, w)[None], h, w).all()


# gradients


def test_gradients_reach_image_matrix_and_flow():
    image = noise(1, 2, 6, 7).requires_grad_()
    # Positions stay off the pixel centres, where the derivative jumps.
    affine = (rotation(17, (3, 2.5), dtype=F64) @ scaling(0.7, (3.1, 2.2), dtype=F64)).detach()
    rows = affine[:2].clone().requires_grad_()
    last = torch.tensor([[0, 0, 1]], dtype=F64)
    assert torch.autograd.gradcheck(
        lambda i, m: warp(i, affine_grid(torch.cat([m, last]), 4, 5)), (image, rows)
    )
    perspective = a_homography().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda i, m: warp(i, homography_grid(m, 4, 5)), (image, perspective)
    )
    flow = (0.3 + 0.4 * noise(1, 2, 4, 5)).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, f: warp(i, flow_grid(f)), (image, flow))


# a real pair


def test_the_true_disparity_rebuilds_the_left_motorcycle():
    pair = stereo_pair()
    h, w = pair.disparity.shape[-2:]

    def difference(sign):
        flow = torch.cat([sign * pair.disparity, torch.zeros_like(pair.disparity)], dim=1)
        grid = flow_grid(flow)
        compared = pair.valid & inside(grid, h, w)[:, None]
        apart = (warp(pair.right, grid) - pair.left).abs().mean(dim=1, keepdim=True)
        return (apart[compared].mean() / 255).item()

    # Fixed photographs: half a unit of the last digit.
    assert difference(-1) == pytest.approx(0.030, abs=5e-4)
    assert difference(+1) == pytest.approx(0.185, abs=5e-4)


# errors


SQUARE = [(0, 0), (1, 0), (1, 1), (0, 1)]
BAD_CALLS = [
    (lambda: pixel_grid(0, 3), ValueError, "H is 0; expected a whole number of pixels"),
    (lambda: pixel_grid(3, 2.5), ValueError, "W is 2.5; expected a whole number of pixels"),
    (lambda: affine_grid(torch.eye(3), -1, 3), ValueError, "H is -1"),
    (lambda: affine_grid(torch.eye(2), 3, 3), ValueError, r"matrix has shape \(2, 2\)"),
    (lambda: affine_grid(torch.eye(3)[:2], 3, 3), ValueError, r"\(2, 3\); expected \(3, 3\)"),
    (lambda: affine_grid(2 * torch.eye(3), 3, 3), ValueError, "matrix has a last row"),
    (lambda: affine_grid(torch.eye(3).int(), 3, 3), TypeError, "matrix has dtype torch.int32"),
    (lambda: homography_grid(torch.eye(4), 3, 3), ValueError, r"matrix has shape \(4, 4\)"),
    (lambda: homography_grid(torch.eye(3), 3, 0), ValueError, "W is 0"),
    (lambda: homography_grid(torch.eye(3).long(), 3, 3), TypeError, "matrix has dtype torch.int64"),
    (lambda: flow_grid(torch.zeros(1, 3, 4, 4)), ValueError, r"expected \(B, 2, H, W\)"),
    (lambda: flow_grid(torch.zeros(2, 4, 4)), ValueError, r"flow has shape \(2, 4, 4\)"),
    (lambda: flow_grid(torch.zeros(1, 2, 4, 4).int()), TypeError, "flow has dtype torch.int32"),
    (lambda: inside(torch.zeros(4, 4, 2), 3, 3), ValueError, r"expected \(B, H, W, 2\)"),
    (lambda: inside(torch.zeros(1, 4, 4, 2), 3, 0), ValueError, "w is 0"),
    (lambda: homography_from_points(SQUARE[:3], SQUARE), ValueError, "from_points is .* four"),
    (lambda: homography_from_points(SQUARE, [*SQUARE[:3], (0, math.nan)]), ValueError, "finite"),
    (lambda: homography_from_points(SQUARE, [(0, 0), (1,)]), ValueError, "to_points is .* four"),
    (lambda: homography_from_points("corners", SQUARE), ValueError, "from_points is 'corners'"),
    (lambda: rotation(math.nan), ValueError, "degrees is nan; expected a finite angle"),
    (lambda: affine_grid(np.eye(3), 4, 4), TypeError, "matrix is a ndarray; expected a tensor"),
    (
        lambda: homography_from_points(SQUARE, [(0, 0), (1, 0), (2, 0), (0, 1)]),
        ValueError,
        "to_points has three points on a line",
    ),
    (
        lambda: homography_from_points([(1, 1)] * 4, SQUARE),
        ValueError,
        "from_points has three points on a line",
    ),
    (
        lambda: homography_from_points(SQUARE, [SQUARE[0], SQUARE[2], SQUARE[1], SQUARE[3]]),
        ValueError,
        "another order",
    ),
]


@pytest.mark.parametrize(("call", "error", "sentence"), BAD_CALLS)
def test_bad_arguments_get_a_sentence(call, error, sentence, without_shape_checks):
    with pytest.raises(error, match=sentence):
        call()


def test_numbers_of_numpy_and_torch_are_numbers(without_shape_checks):
    assert torch.equal(pixel_grid(np.int64(3), 4), pixel_grid(3, 4))
    for half in (np.float32(0.5), torch.tensor(0.5)):
        assert torch.equal(scaling(half), scaling(0.5))
        assert torch.equal(rotation(half), rotation(0.5))


def test_a_last_row_off_by_its_rounding_is_affine():
    nearly = torch.eye(3)
    nearly[2, 0], nearly[2, 2] = 1e-7, 1 + 2**-23
    torch.testing.assert_close(affine_grid(nearly, 3, 4), affine_grid(torch.eye(3), 3, 4))


GRID = torch.zeros(1, 4, 4, 2)
IMAGE = torch.zeros(1, 3, 5, 5)
BAD_WARPS = [
    (IMAGE, torch.zeros(1, 2, 4, 4), {}, ValueError, r"grid has shape .* expected \(B, H, W, 2\)"),
    (IMAGE, GRID[0], {}, ValueError, "grid has shape"),
    (IMAGE, GRID.long(), {}, TypeError, "grid has dtype torch.int64"),
    (IMAGE[0], GRID, {}, ValueError, r"image has shape \(3, 5, 5\)"),
    (IMAGE.byte(), GRID, {}, TypeError, "image has dtype torch.uint8"),
    (IMAGE.expand(2, -1, -1, -1), GRID.expand(3, -1, -1, -1), {}, ValueError, "batch of 3"),
    (IMAGE, GRID, {"padding": "wrap"}, ValueError, "padding is 'wrap'"),
]


@pytest.mark.parametrize(("image", "grid", "options", "error", "sentence"), BAD_WARPS)
def test_a_bad_warp_gets_a_sentence(image, grid, options, error, sentence, without_shape_checks):
    with pytest.raises(error, match=sentence):
        warp(image, grid, **options)
