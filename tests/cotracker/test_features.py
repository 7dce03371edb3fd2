"""Features against plain sums and the official numbers; windows and products against loops."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from official import REFERENCE
from official_cotracker import close, official_state_dict, reference, texture_video
from torch import nn

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.window import sample_window
from fourfold.cotracker import features as module
from fourfold.cotracker.features import (
    STRIDE,
    FeatureEncoder,
    correlate,
    enlarge_and_convolve,
    feature_pyramid,
    unit_length,
    vector_patches,
    vector_windows,
)

OFFICIAL = 1e-5  # of the largest number: float32 through some twenty layers, another order of sums


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


def places(count, height, width, margin=6.0, seed=1):
    """Points (count, 2) from `margin` before the first pixel to `margin` after the last."""
    span = torch.tensor([width - 1, height - 1]) / 2
    return span + random(count, 2, seed=seed) * (span + margin)


def chosen(count, frames, seed=2):
    return torch.randint(frames, (count,), generator=torch.Generator().manual_seed(seed))


# Oracles


def encode_by_sums(encoder, frames):
    """The encoder with every convolution, norm and resizing spelled out."""
    x = normed(convolve(encoder.conv1, frames)).clamp(min=0)
    size = [side // 4 for side in frames.shape[2:]]
    stages = []
    for layer in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        for block in layer:
            y = normed(convolve(block.conv1, x)).clamp(min=0)
            y = normed(convolve(block.conv2, y)).clamp(min=0)
            if isinstance(block.downsample, nn.Sequential):
                x = normed(convolve(block.downsample[0], x))
            x = (x + y).clamp(min=0)
        stages.append(resized(x, *size))
    y = normed(convolve(encoder.conv2, torch.cat(stages, dim=1))).clamp(min=0)
    return convolve(encoder.conv3, y)


def convolve(layer, x):
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    columns = F.unfold(x, kernel, padding=(kernel - 1) // 2, stride=stride)
    height, width = ((side - 1) // stride + 1 for side in x.shape[2:])
    result = torch.einsum("dk,bkn->bdn", layer.weight.flatten(1), columns)
    return result.unflatten(2, (height, width)) + layer.bias[:, None, None]


def normed(x):
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) / (((x - mean) ** 2).mean((2, 3), keepdim=True) + 1e-5).sqrt()


def resized(x, height, width):
    """Equation 2: corners lie on corners."""
    rows = torch.arange(height).double() * (x.shape[2] - 1) / max(height - 1, 1)
    columns = torch.arange(width).double() * (x.shape[3] - 1) / max(width - 1, 1)
    points = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    return sample(x, points[None].expand(len(x), -1, -1, -1), padding="border")


def window_by_points(level, frames, centres, radius):
    """(K, C, S, S), each place read by itself."""
    steps = range(-radius, radius + 1)
    result = []
    for t, centre in zip(frames.tolist(), centres, strict=True):
        maps = level[t].permute(2, 0, 1)[None]
        points = torch.stack([centre + centre.new_tensor([a, b]) for b in steps for a in steps])
        read = sample(maps, points[None], padding="border")[0]
        result.append(read.unflatten(1, (len(steps), len(steps))))
    return torch.stack(result)


cases = st.fixed_dictionaries(
    {
        "frames": st.integers(1, 3),
        "height": st.integers(1, 7),
        "width": st.integers(1, 7),
        "channels": st.integers(1, 5),
        "count": st.integers(1, 6),
        "radius": st.integers(0, 3),
        "seed": st.integers(0, 10_000),
    }
)


def arguments(frames, height, width, channels, count, radius, seed):
    level = random(frames, height, width, channels, seed=seed)
    return level, chosen(count, frames, seed), places(count, height, width, seed=seed + 1), radius


# The encoder


@pytest.mark.parametrize("size", [(32, 48), (36, 20), (20, 44)])
@torch.no_grad()
def test_the_encoder_equals_its_sums(size):
    torch.manual_seed(0)
    encoder = FeatureEncoder(6, widths=(4, 5, 6, 7)).double().eval()
    frames = random(2, 3, *size)
    # Rounding of float64, enlarged at most 300 times by each division by √(variance + 1e-5).
    assert close(encoder(frames), encode_by_sums(encoder, frames), relative=1e-9)


@pytest.fixture(scope="module")
def official():
    """Our encoder with the parameters of the reference, and its features of two frames."""
    state = official_state_dict("cotracker2")
    state = {name[5:]: value for name, value in state.items() if name.startswith("fnet.")}
    encoder = FeatureEncoder().eval()
    encoder.load_state_dict(state)
    with torch.no_grad():
        return encoder, encoder(2 * (texture_video(2)[0] / 255) - 1)


def test_the_official_features(official):
    # Both versions have this encoder; version 3's numbers are those before `unit_length`.
    assert close(official[1][:, ::8], reference("cotracker2")["fmaps01_every8"], OFFICIAL)


@pytest.mark.parametrize("variant", ["cotracker2", "cotracker3_offline", "cotracker3_online"])
def test_the_official_names_and_shapes(official, variant):
    keys = json.loads((REFERENCE / "cotracker_keys.json").read_text())[variant]
    theirs = {name[5:]: shape for name, shape in keys.items() if name.startswith("fnet.")}
    assert {name: list(value.shape) for name, value in official[0].state_dict().items()} == theirs


def test_other_resizing_would_be_noticed(official, monkeypatch):
    encoder, _ = official
    interpolate = F.interpolate
    monkeypatch.setattr(
        module.F,
        "interpolate",
        lambda x, size, **how: interpolate(x, size, **{**how, "align_corners": False}),
    )
    with torch.no_grad():
        other = encoder(2 * (texture_video(2)[0] / 255) - 1)
    # Far outside the tolerance: a twentieth of the largest number at the least.
    assert not close(other[:, ::8], reference("cotracker2")["fmaps01_every8"], 0.05)


@given(
    sides=st.tuples(*[st.integers(1, 9)] * 4),
    channels=st.tuples(*[st.integers(1, 4)] * 3),
    seed=st.integers(0, 99),
)
def test_a_map_may_be_convolved_before_it_is_enlarged(sides, channels, seed):
    h, w, H, W = sides
    frames, inputs, outputs = channels
    stage = random(frames, inputs, h, w, seed=seed)
    weight = random(outputs, inputs, 3, 3, seed=seed + 1)
    expected = F.conv2d(resized(stage, H, W), weight, padding=1)
    # The same sums of at most 36 products, in another order.
    found = enlarge_and_convolve(stage, weight, (H, W))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (4, 2, 1, 3), (4, 2, 5, 5)])
def test_only_a_kernel_of_three_by_three_fits_the_map(shape, without_shape_checks):
    with pytest.raises(ValueError, match=r"weight has shape .*; expected \(D, 2, 3, 3\)"):
        enlarge_and_convolve(random(1, 2, 4, 4), random(*shape), (8, 8))


def test_it_may_be_enlarged_late_in_half_precision_too():
    stage, weight = random(1, 8, 6, 5).bfloat16(), random(4, 8, 3, 3, seed=1).bfloat16()
    expected = F.conv2d(resized(stage.double(), 12, 10), weight.double(), padding=1)
    found = enlarge_and_convolve(stage, weight, (12, 10))
    assert found.dtype == torch.bfloat16
    # Three roundings to 8 bits in a row, of numbers up to 4.
    assert torch.allclose(found.double(), expected, rtol=0, atol=0.05)


def test_every_norm_is_instance_norm_without_parameters_and_eps_1e_5():
    norms = [
        layer
        for layer in FeatureEncoder(8, (4, 6, 8, 8)).modules()
        if isinstance(layer, nn.GroupNorm)
    ]
    # norm1, norm2, two in each of eight blocks, one in each of three short cuts
    assert len(norms) == 2 + 16 + 3
    for norm in norms:
        assert norm.eps == 1e-5 and not norm.affine
        assert norm.num_groups == norm.num_channels  # statistics of each channel by itself


@torch.no_grad()
def test_frames_do_not_see_each_other_and_contrast_does_not_count():
    torch.manual_seed(0)
    encoder = FeatureEncoder(8, (4, 6, 8, 8)).double().eval()
    frames = random(3, 3, 32, 32)
    assert close(encoder(frames[1:2]), encoder(frames)[1:2], relative=1e-9)
    encoder.norm1.eps = 0  # with its 1e-5 the contrast counts a little
    assert close(encoder(3 * frames), encoder(frames), relative=1e-9)


def test_gradients_reach_frames_and_all_weights():
    torch.manual_seed(0)
    encoder = FeatureEncoder(8, (4, 6, 8, 8))
    frames = random(1, 3, 32, 32, dtype=torch.float32).requires_grad_()
    encoder(frames).square().sum().backward()
    assert frames.grad.any()
    assert all(weight.grad is not None for weight in encoder.parameters())


# Length and pyramid


def test_unit_length():
    features = random(2, 5, 3, 4) * torch.tensor([1e-5, 1.0, 1e5, 3.0]).double()
    unit = unit_length(features)
    # 1e-12: rounding of float64.
    assert torch.allclose(unit.norm(dim=1), torch.ones(2, 3, 4).double(), rtol=0, atol=1e-12)
    assert torch.allclose(unit * features.norm(dim=1, keepdim=True), features, rtol=1e-12)


def test_short_vectors_and_zeros_stay_finite():
    short = torch.tensor([0.0, 1e-8]).view(1, 1, 1, 2).expand(1, 4, 1, 2).clone().requires_grad_()
    unit = unit_length(short)
    # Below a length of 1e-6 the length counts as 1e-6.
    assert torch.allclose(unit, short * 1e6)
    unit.sum().backward()
    assert short.grad.isfinite().all()


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), levels=st.integers(1, 5))
def test_a_level_holds_the_means_of_squares(height, width, levels):
    features = random(2, 3, height, width)
    if min(height, width) >> (levels - 1) == 0:
        with pytest.raises(
            ValueError, match=rf"features have size \({height}, {width}\); expected"
        ):
            feature_pyramid(features, levels)
        return
    pyramid = feature_pyramid(features, levels)
    assert [tuple(level.shape) for level in pyramid] == [
        (2, height >> k, width >> k, 3) for k in range(levels)
    ]
    side = 2 ** (levels - 1)
    last = pyramid[-1]
    assert last.is_contiguous()
    y, x = last.shape[1] - 1, last.shape[2] - 1
    square = features[1, :, side * y : side * (y + 1), side * x : side * (x + 1)]
    # A mean of means of equal counts; 1e-12: rounding of float64.
    assert torch.allclose(last[1, y, x], square.mean((1, 2)), rtol=0, atol=1e-12)


# Windows


@settings(max_examples=60, deadline=None)
@given(cases)
def test_windows_equal_sampling_each_place(case):
    level, frames, centres, radius = arguments(**case)
    expected = window_by_points(level, frames, centres, radius)
    read = vector_windows(level, frames, centres, radius)
    # 1e-12 at values up to 1; the nudge of `sample` in float64 costs as much.
    assert read.shape == expected.shape
    assert torch.allclose(read, expected, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(cases)
def test_windows_equal_those_of_chapter_6(case):
    level, frames, centres, radius = arguments(**case)
    maps = level[frames].permute(0, 3, 1, 2)
    expected = sample_window(maps, centres, radius, padding="border")
    assert torch.allclose(
        vector_windows(level, frames, centres, radius), expected, rtol=0, atol=1e-12
    )


@settings(max_examples=40, deadline=None)
@given(cases)
def test_a_patch_is_a_crop_of_the_repeated_frame(case):
    level, frames, centres, radius = arguments(**case)
    corner, size = centres.floor().long(), radius + 1
    land = F.pad(level.permute(0, 3, 1, 2), (20, 20, 20, 20), mode="replicate")
    patches = vector_patches(level, frames, corner, size)
    for patch, t, (x, y) in zip(patches, frames, corner + 20, strict=True):
        crop = land[t, :, y : y + size, x : x + size]
        assert torch.equal(patch, crop.permute(1, 2, 0))


def test_the_official_samplers():
    """bs_border: points on images; s5_out: points (t, x, y) in a video, here at whole frames."""
    numbers = reference("cotracker_utils")
    image, points = numbers["bs_img"], numbers["bs_coords"]
    level = image.permute(0, 2, 3, 1).contiguous()
    frames = torch.arange(2).repeat_interleave(42)
    read = vector_windows(level, frames, points.flatten(0, 2), 0)[..., 0, 0]
    expected = numbers["bs_border"].permute(0, 2, 3, 1).flatten(0, 2)
    assert close(read, expected, OFFICIAL)

    video, points = numbers["s5_vol"][0], numbers["s5_coords"].flatten(0, 2)
    level, t = video.permute(0, 2, 3, 1).contiguous(), points[:, 0].clamp(0, 4)
    both = [
        vector_windows(level, frame.long(), points[:, 1:], 0)[..., 0, 0]
        for frame in (t.floor(), t.ceil())
    ]
    blended = torch.lerp(*both, (t - t.floor())[:, None])
    assert close(blended, numbers["s5_out"].flatten(0, 2), OFFICIAL)


def test_a_query_at_a_whole_place_is_a_copy():
    level = random(3, 5, 6, 4)
    read = vector_windows(level, torch.tensor([2]), torch.tensor([[4.0, 1.0]]), 0)
    assert torch.equal(read[0, :, 0, 0], level[2, 1, 4])


# Correlations


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(1, 4))
def test_products_first_equal_products_of_the_window(case, vectors):
    level, frames, centres, radius = arguments(**case)
    others = random(len(frames), vectors, level.shape[3], seed=case["seed"] + 5)
    window = window_by_points(level, frames, centres, radius)
    expected = torch.einsum("kpc,kcba->kpba", others, window)
    products = correlate(level, frames, centres, others, radius)
    assert products.shape == expected.shape
    # 1e-11: sums of five products of order 1, and the nudge of `sample`.
    assert torch.allclose(products, expected, rtol=0, atol=1e-11)


def official_correlations(padding):
    """CorrBlock's numbers by our functions: (N, S, L·49), x slow, over √C."""
    numbers = reference("cotracker_utils")
    features, track, points = numbers["cb_f"][0], numbers["cb_t"][0], numbers["cb_c"][0]
    frames = torch.arange(2).repeat_interleave(3)
    vectors, centres = track.flatten(0, 1), points.flatten(0, 1)
    read = []
    for k, level in enumerate(feature_pyramid(features, 3)):
        if padding == "border":
            window = correlate(level, frames, centres / 2**k, vectors[:, None], 3)[:, 0]
        else:
            maps = torch.einsum("kc,khwc->khw", vectors, level[frames])
            window = sample_window(maps, centres / 2**k, 3)
        read.append(window.mT.flatten(1))
    joined = torch.cat(read, dim=1).view(2, 3, -1).transpose(0, 1)
    return joined / math.sqrt(features.shape[1]), numbers


def test_the_official_correlations():
    ours, numbers = official_correlations("border")
    for name in ("cb_out", "cb_eff_out"):  # with the whole map, and on demand
        assert close(ours, numbers[name], OFFICIAL)


def test_zeros_or_windows_row_by_row_would_be_noticed():
    ours, numbers = official_correlations("zeros")
    assert not close(ours, numbers["cb_out"], 0.1)
    ours, numbers = official_correlations("border")
    rows = ours.unflatten(2, (3, 7, 7)).mT.flatten(2)
    assert not close(rows, numbers["cb_out"], 0.1)


def test_a_window_against_a_window_holds_the_vector_against_it_in_its_middle():
    level = unit_length(random(2, 6, 9, 11)).permute(0, 2, 3, 1).contiguous()
    frames, centres = torch.tensor([1, 1]), torch.tensor([[4.25, 5.5], [-1.0, 20.0]]).double()
    queries = torch.tensor([[3.5, 4.0], [8.0, 2.25]]).double()
    first = torch.zeros(2, dtype=torch.long)
    around = vector_windows(level, first, queries, 2).flatten(2).mT
    four_d = correlate(level, frames, centres, around, 2).unflatten(1, (5, 5))
    middle = vector_windows(level, first, queries, 0)[..., 0].mT
    alone = correlate(level, frames, centres, middle, 2)[:, 0]
    assert torch.allclose(four_d[:, 2, 2], alone, rtol=0, atol=1e-12)


def test_large_calls_are_made_in_parts_with_the_same_numbers(monkeypatch):
    level, frames, centres = random(3, 6, 7, 4), chosen(50, 3), places(50, 6, 7)
    vectors = random(50, 2, 4, seed=4)
    whole = correlate(level, frames, centres, vectors, 2)
    monkeypatch.setattr(module, "_MOST", 7 * 36 * 4)
    # 1e-14: a matrix product of another size may sum in another order.
    assert torch.allclose(correlate(level, frames, centres, vectors, 2), whole, rtol=0, atol=1e-14)


def test_no_windows_give_no_numbers():
    level, none = random(2, 4, 5, 3), torch.zeros(0, dtype=torch.long)
    centres = torch.zeros(0, 2).double()
    assert vector_windows(level, none, centres, 1).shape == (0, 3, 3, 3)
    assert correlate(level, none, centres, torch.zeros(0, 2, 3).double(), 1).shape == (0, 2, 3, 3)


@settings(max_examples=20, deadline=None)
@given(cases)
def test_gradients_equal_those_of_sampling_each_place(case):
    level, frames, centres, radius = arguments(**case)
    vectors = random(len(frames), 2, level.shape[3], seed=9)
    leaves = [leaf.requires_grad_() for leaf in (level, centres, vectors)]
    ours = correlate(level, frames, centres, vectors, radius)
    window = window_by_points(level, frames, centres, radius)
    theirs = torch.einsum("kpc,kcba->kpba", vectors, window)
    pull = random(*ours.shape, seed=11)
    for mine, expected in zip(
        torch.autograd.grad(ours, leaves, pull),
        torch.autograd.grad(theirs, leaves, pull),
        strict=True,
    ):
        # 1e-10: sums of up to 49 · 5 products of order 1 in float64.
        assert torch.allclose(mine, expected, rtol=0, atol=1e-10)


# Strange centres


@pytest.mark.parametrize("far", [1e3, 2.0**24, 1e12, 1e30, 3e38])
def test_far_centres_read_a_corner(far):
    level = random(1, 4, 5, 2, dtype=torch.float32)
    corners = torch.tensor([[-far, -far], [far, far], [-far, far]])
    read = vector_windows(level, torch.zeros(3, dtype=torch.long), corners, 2)
    for window, (y, x) in zip(read, ((0, 0), (-1, -1), (-1, 0)), strict=True):
        assert torch.equal(window, level[0, y, x][:, None, None].expand_as(window))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_centre_that_is_not_finite_gives_nan_and_leaves_the_others_alone(value):
    level, frames = random(1, 4, 5, 2), torch.zeros(2, dtype=torch.long)
    centres = torch.tensor([[value, 1.5], [2.5, 1.5]]).double()
    products = correlate(level, frames, centres, random(2, 1, 2), 1)
    assert products[0].isnan().all() and products[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_type_and_the_place(dtype):
    ramp = torch.arange(64.0).view(1, 1, 64, 1).to(dtype)
    read = vector_windows(ramp, torch.tensor([0]), torch.tensor([[40.5, 0.0]]), 1)
    assert read.dtype == dtype
    assert read[0, 0, 1].tolist() == [39.5, 40.5, 41.5]  # exact in both types


# Sentences

LEVEL, FRAMES, CENTRES = torch.zeros(2, 4, 5, 3), torch.tensor([0, 1]), torch.zeros(2, 2)


@pytest.mark.parametrize(
    "level, frames, centres, radius, error, sentence",
    [
        (
            LEVEL.byte(),
            FRAMES,
            CENTRES,
            1,
            TypeError,
            "level has dtype torch.uint8; expected float",
        ),
        (LEVEL, FRAMES, CENTRES.long(), 1, TypeError, "centres has dtype torch.int64; expected"),
        (LEVEL[0], FRAMES, CENTRES, 1, ValueError, r"level has shape \(4, 5, 3\); expected \(F, h"),
        (LEVEL[:, :0], FRAMES, CENTRES, 1, ValueError, r"level has shape \(2, 0, 5, 3\); expected"),
        (LEVEL, FRAMES, CENTRES[:, :1], 1, ValueError, r"centres has shape \(2, 1\); expected \(K"),
        (LEVEL, FRAMES[:1], CENTRES, 1, ValueError, r"frames has shape \(1,\).*expected \(2,\)"),
        (
            LEVEL,
            CENTRES[:, 0],
            CENTRES,
            1,
            ValueError,
            "frames has .* dtype torch.float32; expected",
        ),
        (LEVEL, FRAMES + 1, CENTRES, 1, ValueError, "frames has a number of 2; expected 0 to 1"),
        (LEVEL, FRAMES - 1, CENTRES, 1, ValueError, "frames has a number of -1; expected 0 to 1"),
        (
            LEVEL,
            FRAMES,
            CENTRES,
            -1,
            ValueError,
            "radius is -1; expected a whole number, 0 or more",
        ),
        (LEVEL, FRAMES, CENTRES, 1.5, ValueError, r"radius is 1\.5; expected a whole number"),
        (LEVEL.numpy(), FRAMES, CENTRES, 1, TypeError, "level is a ndarray; expected a tensor"),
    ],
)
def test_bad_windows_are_named(
    without_shape_checks, level, frames, centres, radius, error, sentence
):
    with pytest.raises(error, match=sentence):
        vector_windows(level, frames, centres, radius)
    with pytest.raises(error, match=sentence):
        correlate(level, frames, centres, torch.zeros(2, 1, 3), radius)


@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 4), (3, 1, 3), (2, 1, 1, 3)])
def test_bad_vectors_are_named(without_shape_checks, shape):
    with pytest.raises(ValueError, match=r"vectors has shape .* expected \(2, P, 3\)"):
        correlate(LEVEL, FRAMES, CENTRES, torch.zeros(shape), 1)


@pytest.mark.parametrize(
    "frames, error, sentence",
    [
        (torch.zeros(1, 3, 32, 32).byte(), TypeError, "frames has dtype torch.uint8; expected"),
        (torch.zeros(3, 32, 32), ValueError, r"frames has shape \(3, 32, 32\); expected \(F, 3, H"),
        (torch.zeros(1, 1, 32, 32), ValueError, r"frames has shape \(1, 1, 32, 32\); expected \(F"),
        (torch.zeros(1, 3, 30, 32), ValueError, "expected H and W to be multiples of 4"),
        (torch.zeros(1, 3, 0, 32), ValueError, "expected H and W to be multiples of 4"),
    ],
)
def test_bad_frames_are_named(without_shape_checks, frames, error, sentence):
    with pytest.raises(error, match=sentence):
        FeatureEncoder(8, (4, 6, 8, 8))(frames)


def test_bad_widths_and_levels_are_named():
    with pytest.raises(ValueError, match=r"widths is \(4, 6, 8\); expected four numbers"):
        FeatureEncoder(8, (4, 6, 8))
    with pytest.raises(ValueError, match="levels is 0; expected a whole number, 1 or more"):
        feature_pyramid(torch.zeros(1, 3, 8, 8), 0)


def test_the_stride_is_that_of_the_encoder():
    assert FeatureEncoder(8, (4, 6, 8, 8))(torch.zeros(1, 3, 32, 48)).shape[2:] == (
        32 // STRIDE,
        48 // STRIDE,
    )
