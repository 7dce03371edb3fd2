"""The volume and its look-ups against loops, each other, and the official numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from official import close, official_state_dict, reference
from torch.utils._python_dispatch import TorchDispatchMode

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.raft.correlation import (
    CorrelationVolume,
    OnDemandCorrelation,
    as_channels,
    correlation,
    cost_volume,
    pyramid,
    rectangles,
)
from fourfold.raft.raft import RAFT

WAYS = (CorrelationVolume, OnDemandCorrelation)
OFFICIAL = 1e-5  # times the largest number: what threads and memory formats alone may move


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def positions_around(batch, height, width, reach, seed=1, dtype=torch.float64):
    grid = pixel_grid(height, width, dtype=dtype).permute(2, 0, 1)
    return grid + reach * random(batch, 2, height, width, seed=seed, dtype=dtype)


def correlation_loops(features1, features2):
    B, D, H1, W1 = features1.shape
    H2, W2 = features2.shape[2:]
    volume = features1.new_zeros(B, H1, W1, H2, W2)
    for y1 in range(H1):
        for x1 in range(W1):
            for y2 in range(H2):
                for x2 in range(W2):
                    product = features1[:, :, y1, x1] * features2[:, :, y2, x2]
                    volume[:, y1, x1, y2, x2] = product.sum(dim=1) / math.sqrt(D)
    return volume


def look_up_loops(features1, features2, levels, radius, positions):
    """The look-up by its definition: loops, means of slices, `sample` at one offset at a time."""
    maps = correlation_loops(features1, features2)
    B, H1, W1 = maps.shape[:3]
    centres = positions.permute(0, 2, 3, 1).reshape(-1, 1, 2)
    channels = []
    for k in range(levels):
        images = maps.reshape(B * H1 * W1, 1, *maps.shape[3:])
        for dx in range(-radius, radius + 1):  # x is slow
            for dy in range(-radius, radius + 1):
                point = centres / 2**k + centres.new_tensor([dx, dy])
                channels.append(sample(images, point).view(B, H1, W1))
        H, W = (size // 2 for size in maps.shape[3:])
        maps = maps[..., : 2 * H, : 2 * W].unflatten(3, (H, 2)).unflatten(5, (W, 2)).mean((4, 6))
    return torch.stack(channels, dim=1)


cases = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "width_of_features": st.integers(1, 5),
        "size1": st.tuples(st.integers(1, 11), st.integers(1, 11)),
        "size2": st.tuples(st.integers(4, 9), st.integers(4, 9)),
        "levels": st.integers(1, 3),
        "radius": st.integers(0, 3),
        "reach": st.sampled_from([0.0, 0.6, 5.0, 40.0, 1e4]),
        "seed": st.integers(0, 10_000),
    }
)


def arguments(batch, width_of_features, size1, size2, levels, radius, reach, seed):
    features1 = random(batch, width_of_features, *size1, seed=seed)
    features2 = random(batch, width_of_features, *size2, seed=seed + 1)
    return features1, features2, levels, radius, positions_around(batch, *size1, reach, seed + 2)


# Against the loops


@settings(max_examples=20, deadline=None)
@given(cases)
def test_the_volume_equals_four_loops(case):
    features1, features2, *_ = arguments(**case)
    volume = correlation(features1, features2)
    # 1e-12: sums of at most five products in float64.
    assert torch.allclose(volume, correlation_loops(features1, features2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", WAYS)
@settings(max_examples=20, deadline=None)
@given(cases)
def test_a_look_up_equals_its_definition(how, case):
    features1, features2, levels, radius, positions = arguments(**case)
    channels = how(features1, features2, levels, radius)(positions)
    expected = look_up_loops(features1, features2, levels, radius, positions)
    assert channels.shape == expected.shape
    # 1e-8: `sample` rescales its coordinates by 1e-16 times positions of up to 1e5, slopes of 10.
    assert (channels - expected).abs().max() < 1e-8


@settings(max_examples=50, deadline=None)
@given(cases)
def test_on_demand_equals_all_pairs(case):
    *features, levels, radius, positions = arguments(**case)
    held, made = (how(*features, levels, radius)(positions) for how in WAYS)
    # 1e-12: the same products of float64, summed and averaged in another order.
    assert (held - made).abs().max() < 1e-12


@settings(max_examples=40, deadline=None)
@given(cases)
def test_gradients_on_demand_equal_those_of_all_pairs(case):
    *features, levels, radius, positions = arguments(**case)
    leaves = [tensor.requires_grad_() for tensor in (*features, positions)]
    results = [how(*leaves[:2], levels, radius)(leaves[2]) for how in WAYS]
    pull = random(*results[0].shape, seed=9)
    held, made = (torch.autograd.grad(result, leaves, pull) for result in results)
    for expected, gradient in zip(held, made, strict=True):
        # 1e-10: sums of up to 10⁴ terms of order 1 in float64.
        assert (expected - gradient).abs().max() < 1e-10


@pytest.mark.parametrize("how", WAYS)
def test_gradcheck(how):
    features1, features2 = random(1, 2, 2, 3), random(1, 2, 4, 3, seed=1)
    whole = positions_around(1, 2, 3, 2).floor()
    # Between pixels, at fractions from 0.1 to 0.4: a slope of bilinear sampling jumps at a pixel.
    positions = whole + 0.25 + 0.15 * random(*whole.shape, seed=3).tanh()
    leaves = [leaf.requires_grad_() for leaf in (features1, features2, positions)]
    assert torch.autograd.gradcheck(lambda f, g, p: how(f, g, 2, 1)(p), leaves)


@pytest.mark.parametrize("reach", [1, 30, 500])
def test_maps_of_many_tiles_in_single_precision(reach):
    features = (
        random(2, 32, 37, 45, dtype=torch.float32),
        random(2, 32, 35, 50, seed=1, dtype=torch.float32),
    )
    positions = positions_around(2, 37, 45, reach, dtype=torch.float32)
    held, made = (how(*features, 4, 4)(positions) for how in WAYS)
    assert close(made, held, 1e-5)  # sums of 32 products of float32 in another order


@pytest.mark.parametrize("side", [1, 3, 8, 100])
def test_the_side_of_a_tile_changes_no_number(side):
    features = random(1, 4, 13, 10), random(1, 4, 9, 12, seed=1)
    positions = positions_around(1, 13, 10, 4)
    made = OnDemandCorrelation(*features, 3, 2)
    expected = made(positions)
    made.tile = side
    # 1e-12: a matrix product of another size may sum in another order.
    assert torch.allclose(made(positions), expected, rtol=0, atol=1e-12)


# The official numbers


@pytest.fixture(scope="module", params=[("full", 4, 2), ("small", 3, 1)], ids=["full", "small"])
def official(request):
    """Numbers, radius and the stride of the stored channels; features 2 are made by our encoder."""
    variant, radius, stride = request.param
    numbers = reference(f"raft_{variant}")
    model = RAFT.from_official(official_state_dict(variant))
    with torch.no_grad():
        image2 = 2 * (numbers["image2"][None].float() / 255) - 1
        return numbers, model.fnet(image2), radius, stride


def test_the_official_pyramid(official):
    numbers, features2, radius, _ = official
    levels = CorrelationVolume(numbers["fmap1"], features2, 4, radius).levels
    for k, (N, _, H, W) in enumerate(numbers["corr_level_shapes"].tolist()):
        assert levels[k].shape == (N, H, W)
        # A sum of N·H·W numbers, each within 1e-5 of the largest.
        largest = levels[k].abs().max().item() * OFFICIAL * N * H * W
        assert abs(levels[k].double().sum() - numbers["corr_level_sums"][k]) <= largest
    assert close(levels[0][0], numbers["corr_level0_row0"], OFFICIAL)
    assert close(levels[3], numbers["corr_level3"][:, 0], OFFICIAL)


@pytest.mark.parametrize("how", WAYS)
def test_the_official_look_ups(official, how):
    numbers, features2, radius, stride = official
    look_up = how(numbers["fmap1"], features2, 4, radius)
    grid = pixel_grid(*numbers["fmap1"].shape[2:]).permute(2, 0, 1)[None]
    assert close(look_up(grid)[:, ::3], numbers["lookup_zero_every3"], OFFICIAL)
    moved = look_up(grid + numbers["lookup_offset"])[:, ::stride]
    assert close(moved, numbers["lookup_offset_out"], OFFICIAL)


def test_windows_read_row_by_row_would_be_noticed(official):
    numbers, features2, radius, stride = official
    side = 2 * radius + 1
    grid = pixel_grid(*numbers["fmap1"].shape[2:]).permute(2, 0, 1)[None]
    channels = CorrelationVolume(numbers["fmap1"], features2, 4, radius)(
        grid + numbers["lookup_offset"]
    )
    row_by_row = channels.unflatten(1, (4, side, side)).transpose(2, 3).flatten(1, 3)
    # Far outside the tolerance: a tenth of the largest number at the least.
    assert not close(row_by_row[:, ::stride], numbers["lookup_offset_out"], 0.1)


# Properties


def test_the_pyramid_averages_the_axes_of_image_2_alone():
    volume = correlation(random(2, 3, 5, 7), random(2, 3, 9, 13, seed=1))
    levels = pyramid(volume.flatten(0, 2)[:, None], 3)
    assert [tuple(level.shape) for level in levels] == [
        (70, 1, 9, 13),
        (70, 1, 4, 6),
        (70, 1, 2, 3),
    ]


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), levels=st.integers(1, 6))
def test_sizes_are_halved_and_rounded_down(height, width, levels):
    maps = random(1, 2, height, width)
    if min(height, width) >> (levels - 1):
        shapes = [tuple(level.shape[2:]) for level in pyramid(maps, levels)]
        assert shapes == [(height >> k, width >> k) for k in range(levels)]
    else:
        with pytest.raises(ValueError, match=f"levels is {levels}; expected at most"):
            pyramid(maps, levels)


@settings(max_examples=40, deadline=None)
@given(cases)
def test_costs_and_products_meet_in_one_equation(case):
    features1, features2, *_ = arguments(**case)
    length1 = features1.square().sum(dim=1)[:, :, :, None, None]
    length2 = features2.square().sum(dim=1)[:, None, None]
    D = features1.shape[1]
    expected = length1 + length2 - 2 * math.sqrt(D) * correlation(features1, features2)
    # 1e-10: squares of up to 100 that cancel, in float64.
    assert (cost_volume(features1, features2) ** 2 - expected).abs().max() < 1e-10


def test_the_distance_of_equal_vectors_is_small():
    features = random(1, 64, 6, 7, dtype=torch.float32)
    costs = cost_volume(features, features).flatten(3).flatten(1, 2)[0]
    # A thousandth of the length: the root of float32's rounding of the squared lengths.
    assert costs.diagonal().max() < 1e-3 * features.norm(dim=1).max()


def test_a_channel_is_column_slow_row_fast():
    windows = [1000.0 * k + torch.arange(9.0).view(1, 1, 1, 3, 3) for k in range(2)]
    expected = [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert as_channels(windows).flatten().tolist() == [*expected, *(1000 + n for n in expected)]


@pytest.mark.parametrize("how", WAYS)
def test_the_largest_channel_says_where_a_pixel_went(how):
    features = torch.nn.functional.normalize(random(1, 64, 20, 24), dim=1)
    look_up = how(features, features.roll((1, 2), dims=(2, 3)), 1, 3)  # 2 to the right, 1 down
    channels = look_up(pixel_grid(20, 24, dtype=torch.float64).permute(2, 0, 1)[None])
    inner = channels[0, :, 4:-4, 4:-4]
    assert (inner.argmax(dim=0) == (2 + 3) * 7 + (1 + 3)).all()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("far", [1e3, 1e9, 1e30])
def test_far_outside_all_is_zero_and_so_are_the_slopes(how, far):
    features = [leaf.requires_grad_() for leaf in (random(1, 3, 9, 10), random(1, 3, 8, 9, seed=1))]
    positions = positions_around(1, 9, 10, 1)
    positions[:, :, 2, 3] = far
    positions[:, 0, 8, 9] = -far
    positions.requires_grad_()
    channels = how(*features, 3, 2)(positions)
    assert not channels[0, :, 2, 3].any() and not channels[0, :, 8, 9].any()
    channels.sum().backward()
    assert not positions.grad[0, :, 2, 3].any() and positions.grad.isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in features)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_position_that_is_not_finite_is_nan_and_leaves_the_others_alone(how, value):
    features = random(1, 3, 9, 10), random(1, 3, 8, 9, seed=1)
    positions = positions_around(1, 9, 10, 1)
    expected = how(*features, 3, 2)(positions)
    positions[0, 0, 4, 5] = value
    channels = how(*features, 3, 2)(positions)
    assert channels[0, :, 4, 5].isnan().all()
    others = torch.ones(9, 10, dtype=torch.bool)
    others[4, 5] = False
    # 1e-12: the rectangle may be another, and its product summed in another order.
    assert torch.allclose(channels[0][:, others], expected[0][:, others], rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", WAYS)
def test_a_flow_of_nan_alone_is_nan(how):
    features = random(1, 3, 9, 10), random(1, 3, 8, 9, seed=1)
    channels = how(*features, 2, 1)(torch.full((1, 2, 9, 10), math.nan))
    assert channels.isnan().all()


def test_pairs_of_a_batch_do_not_mix():
    features = random(3, 4, 9, 10), random(3, 4, 8, 9, seed=1)
    positions = positions_around(3, 9, 10, 3)
    for how in WAYS:
        together = how(*features, 2, 2)(positions)
        for b in range(3):
            alone = how(*(f[b : b + 1] for f in features), 2, 2)(positions[b : b + 1])
            # 1e-12: a product of a batch may be summed in another order.
            assert torch.allclose(together[b], alone[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_computed_in_float32(how, dtype):
    features = [random(1, 64, 12, 13, seed=s).to(dtype) for s in (0, 1)]
    positions = positions_around(1, 12, 13, 2, dtype=torch.float32)
    channels = how(*features, 3, 2)(positions)
    assert channels.dtype == torch.float32
    expected = how(*(f.double() for f in features), 3, 2)(positions.double())
    assert close(channels.double(), expected, 1e-5)  # float32, not the 1e-3 of half precision


@pytest.mark.parametrize("how", WAYS)
def test_autocast_does_not_bring_half_precision_back(how):
    features = [random(1, 64, 12, 13, seed=s, dtype=torch.float32) for s in (0, 1)]
    positions = positions_around(1, 12, 13, 2, dtype=torch.float32)
    expected = how(*features, 3, 2)(positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(how(*features, 3, 2)(positions), expected)


# Rectangles


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    radius=st.integers(0, 4),
    count=st.integers(1, 5),
)
def test_a_rectangle_holds_what_the_windows_read_and_no_more(seed, size, radius, count):
    height, width = size
    centres = 20 * random(3, count, 2, seed=seed) / 2 + 5
    for tile, (left, top, right, bottom) in zip(
        centres, rectangles(centres, height, width, radius), strict=True
    ):
        pixels = [
            (i, j)
            for x, y in tile.floor().long().tolist()
            for i in range(x - radius, x + radius + 2)
            for j in range(y - radius, y + radius + 2)
            if 0 <= i < width and 0 <= j < height
        ]
        if not pixels:
            assert (left, top, right, bottom) == (0, 0, 1, 1)
            continue
        columns, rows = zip(*pixels, strict=True)
        assert (left, top) == (min(columns), min(rows))
        assert (right, bottom) == (max(columns) + 1, max(rows) + 1)


# Memory


class NewTensors(TorchDispatchMode):
    """The numbers in the largest tensor that an operation makes, views of its arguments aside."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            old = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
            if result.untyped_storage().data_ptr() not in old:
                self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("reach", [0.5, 1000], ids=["smooth", "wild"])
def test_on_demand_makes_nothing_that_grows_with_the_square_of_the_pixels(reach):
    D, levels, radius, (H, W) = 8, 3, 2, (32, 48)
    features = [random(1, D, H, W, seed=s, dtype=torch.float32) for s in (0, 1)]
    positions = positions_around(1, H, W, reach, dtype=torch.float32)
    with NewTensors() as new, torch.no_grad():
        OnDemandCorrelation(*features, levels, radius)(positions)
    channels = H * W * levels * (2 * radius + 1) ** 2
    # The channels themselves, or the products of 64 pixels with a whole map at the worst.
    assert new.largest <= max(channels, 64 * H * W)
    with NewTensors() as new, torch.no_grad():
        CorrelationVolume(*features, levels, radius)(positions)
    assert new.largest == (H * W) ** 2


def test_what_each_way_holds():
    D, (H, W) = 8, (16, 24)
    features = [random(2, D, H, W, seed=s, dtype=torch.float32) for s in (0, 1)]
    held, made = (how(*features, 3, 2) for how in WAYS)
    sizes = [(H >> k) * (W >> k) for k in range(3)]
    assert sum(level.numel() for level in held.levels) == 2 * H * W * sum(sizes)
    assert sum(level.numel() for level in made.levels) == 2 * D * sum(sizes)
    assert made.features1.numel() == 2 * D * H * W


# Sentences

FEATURES = torch.zeros(1, 4, 8, 9)


@pytest.mark.parametrize(
    "features1, features2, error, sentence",
    [
        (FEATURES, FEATURES.repeat(2, 1, 1, 1), ValueError, r"features2 has B, D = \(2, 4\); exp"),
        (
            FEATURES,
            FEATURES[:, :3],
            ValueError,
            r"features2 has B, D = \(1, 3\); expected \(1, 4\)",
        ),
        (FEATURES[0], FEATURES, ValueError, r"features1 has shape \(4, 8, 9\); expected \(B, D, H"),
        (FEATURES, FEATURES[..., :0], ValueError, "features2 has shape .* none of them 0"),
        (
            FEATURES.long(),
            FEATURES,
            TypeError,
            "features1 has dtype torch.int64; expected floating",
        ),
        (FEATURES, FEATURES.double(), ValueError, "features2 has dtype torch.float64; expected"),
        (FEATURES, FEATURES.to("meta"), ValueError, "features2 has device meta; expected cpu"),
        (FEATURES.numpy(), FEATURES, TypeError, "features1 is a ndarray; expected a tensor"),
    ],
)
def test_bad_features_are_named(without_shape_checks, features1, features2, error, sentence):
    for call in (correlation, cost_volume, CorrelationVolume, OnDemandCorrelation):
        with pytest.raises(error, match=sentence):
            call(features1, features2)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"levels": 5}, "levels is 5; expected at most 4 for 8 × 9, which each level halves"),
        ({"levels": 0}, "levels is 0; expected a whole number, 1 or more"),
        ({"levels": 1.5}, "levels is 1.5; expected a whole number"),
        ({"radius": -1}, "radius is -1; expected a whole number, 0 or more"),
    ],
)
def test_bad_options_are_named(without_shape_checks, how, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        how(FEATURES, FEATURES, **options)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    "positions, error, sentence",
    [
        (
            torch.zeros(1, 2, 9, 8),
            ValueError,
            r"positions has shape \(1, 2, 9, 8\); expected \(1, 2",
        ),
        (torch.zeros(1, 8, 9, 2), ValueError, r"expected \(1, 2, 8, 9\), \(x, y\) for each pixel"),
        (torch.zeros(2, 8, 9), ValueError, r"positions has shape \(2, 8, 9\)"),
        (torch.zeros(1, 2, 8, 9).long(), TypeError, "positions has dtype torch.int64"),
    ],
)
def test_bad_positions_are_named(without_shape_checks, how, positions, error, sentence):
    with pytest.raises(error, match=sentence):
        how(FEATURES, FEATURES)(positions)
