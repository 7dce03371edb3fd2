"""Encoders against plain sums, the official numbers and names; what they must not see; errors."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from official import REFERENCE, close, official_state_dict, reference
from torch import nn

from fourfold.raft.encoders import (
    BottleneckBlock,
    Encoder,
    ResidualBlock,
    freeze_batch_norm,
    normalisation,
    receptive_field,
)

BLOCKS = [ResidualBlock, BottleneckBlock]
SMALL = {"block": BottleneckBlock, "widths": (32, 64, 96)}
# Published encoders: variant, name in the release, and how ours is made.
PUBLISHED = [
    ("full", "fnet", {"outputs": 256, "norm": "instance"}),
    ("full", "cnet", {"outputs": 256, "norm": "batch"}),
    ("small", "fnet", {"outputs": 128, "norm": "instance", **SMALL}),
    ("small", "cnet", {"outputs": 160, "norm": "none", **SMALL}),
]
each_published = pytest.mark.parametrize(("variant", "name", "how"), PUBLISHED)
each_block = pytest.mark.parametrize("block", BLOCKS)


@pytest.fixture(autouse=True)
def same_start():
    torch.manual_seed(0)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1


def double(module):
    return module.double().eval()


# Oracles: products and sums spelled out, on float64


def convolve(layer, x):
    """Every window as a column, times the weights."""
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    columns = F.unfold(x, kernel, padding=(kernel - 1) // 2, stride=stride)
    height, width = ((size - 1) // stride + 1 for size in x.shape[2:])
    result = torch.einsum("dk,bkn->bdn", layer.weight.flatten(1), columns)
    return result.unflatten(2, (height, width)) + layer.bias[:, None, None]


def normalise(kind, layer, x):
    if kind == "none":
        return x
    if kind == "batch":
        mean, variance = layer.running_mean[:, None, None], layer.running_var[:, None, None]
        scale, offset = layer.weight[:, None, None], layer.bias[:, None, None]
        return (x - mean) / (variance + 1e-5).sqrt() * scale + offset
    mean = x.mean((2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def block_by_sums(block, kind, x):
    y = x
    for k in range(1, 4 if isinstance(block, BottleneckBlock) else 3):
        y = normalise(kind, getattr(block, f"norm{k}"), convolve(getattr(block, f"conv{k}"), y))
        y = y.clamp(min=0)
    if isinstance(block.downsample, nn.Sequential):
        conv, norm = block.downsample
        x = normalise(kind, norm, convolve(conv, x))
    return (x + y).clamp(min=0)


def encode_by_sums(encoder, kind, image):
    x = normalise(kind, encoder.norm1, convolve(encoder.conv1, image)).clamp(min=0)
    for layer in (encoder.layer1, encoder.layer2, encoder.layer3):
        for block in layer:
            x = block_by_sums(block, kind, x)
    return convolve(encoder.conv2, x)


def with_running_values(module):
    """The module with running values and affine parameters that are not those of the start."""
    for number, layer in enumerate(module.modules()):
        if isinstance(layer, nn.BatchNorm2d):
            size = layer.num_features
            layer.running_mean.copy_(random(size, seed=number))
            layer.running_var.copy_(1 + random(size, seed=number + 1) / 2)
            layer.weight.data.copy_(1 + random(size, seed=number + 2) / 4)
            layer.bias.data.copy_(random(size, seed=number + 3))
    return module


@each_block
@settings(max_examples=40)
@given(
    kind=st.sampled_from(["instance", "batch", "none"]),
    inputs=st.sampled_from([3, 4, 8]),
    outputs=st.sampled_from([4, 8]),
    stride=st.sampled_from([1, 2]),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    batch=st.integers(1, 3),
)
@torch.no_grad()
def test_a_block_equals_its_sums(block, kind, inputs, outputs, stride, height, width, batch):
    module = with_running_values(double(block(inputs, outputs, stride, kind)))
    x = random(batch, inputs, height, width, seed=height)
    expected = block_by_sums(module, kind, x)
    assert module(x).shape == expected.shape
    # Rounding of float64, enlarged at most 300 times by each division by √(variance + 1e-5).
    assert (module(x) - expected).abs().max() < 1e-9


@torch.no_grad()
@each_block
@pytest.mark.parametrize("kind", ["instance", "batch", "none"])
def test_an_encoder_equals_its_sums(block, kind):
    encoder = Encoder(10, kind, block, (8, 12, 16))
    encoder = with_running_values(double(encoder))
    image = random(2, 3, 32, 40)
    expected = encode_by_sums(encoder, kind, image)
    # Rounding of float64 through all layers.
    assert close(encoder(image), expected, relative=1e-9)


# The release


def published(variant, name, how):
    """An encoder of ours with the release's tensors, and the release's names of them."""
    state = official_state_dict(variant)
    state = {key.removeprefix(f"{name}."): v for key, v in state.items() if key.startswith(name)}
    # In the full model the norm of a short cut has two names; in the small one norm3 is a norm.
    aliases = [key for key in state if ".norm3." in key] if variant == "full" else []
    encoder = Encoder(**how).eval()
    encoder.load_state_dict({key: v for key, v in state.items() if key not in aliases})
    return encoder, state, aliases


@torch.no_grad()
@each_published
def test_official_numbers(variant, name, how):
    encoder, _, _ = published(variant, name, how)
    official = reference(f"raft_{variant}")
    image = 2 * (official["image1"][None].float() / 255) - 1
    result = encoder(image)
    # Threads and memory formats alone move these numbers by 1e-5 of the largest.
    if name == "fnet":
        assert close(result, official["fmap1"], 1e-5)
    else:
        assert close(result[:, ::4], official["cnet_every4"], 1e-5)


@each_published
def test_layer_names_and_shapes_are_the_releases(variant, name, how):
    keys = json.loads((REFERENCE / "raft_keys.json").read_text())[f"raft_{variant}"]
    official = {
        key.removeprefix(f"{name}."): shape for key, shape in keys.items() if key.startswith(name)
    }
    _, _, aliases = published(variant, name, how)
    ours = {key: list(value.shape) for key, value in Encoder(**how).state_dict().items()}
    assert ours == {key: shape for key, shape in official.items() if key not in aliases}
    assert len(aliases) == (10 if (variant, name) == ("full", "cnet") else 0)


@pytest.mark.parametrize(("variant", "norms"), [("full", 15), ("small", 21)])
def test_settings_of_the_norms(variant, norms):
    # Outputs barely show eps: a hundred times as much moves the flow by a tenth of a pixel.
    how = {} if variant == "full" else SMALL
    found = {}
    for kind, layer in (("instance", nn.GroupNorm), ("batch", nn.BatchNorm2d)):
        found[kind] = [m for m in Encoder(8, kind, **how).modules() if isinstance(m, layer)]
        assert len(found[kind]) == norms
        assert {norm.eps for norm in found[kind]} == {1e-5}
        assert {norm.affine for norm in found[kind]} == {kind == "batch"}
    assert all(norm.num_groups == norm.num_channels for norm in found["instance"])
    assert {(n.momentum, n.track_running_stats) for n in found["batch"]} == {(0.1, True)}
    kinds = [type(m) for m in Encoder(8, "none", **how).modules()]
    assert not {nn.GroupNorm, nn.BatchNorm2d} & set(kinds)


def test_the_extra_relu_lets_a_branch_raise_values_only():
    for block in BLOCKS:
        module = block(8, 8)
        x = random(1, 8, 6, 6).float().relu()
        assert (module(x) >= x).all() and (module(x) > x).any()


@each_block
def test_a_short_cut_is_the_map_itself_where_the_shape_stays(block):
    assert isinstance(block(8, 8).downsample, nn.Identity)
    assert isinstance(block(8, 8, stride=2).downsample, nn.Sequential)
    assert isinstance(block(8, 12).downsample, nn.Sequential)


def test_weights_of_both_blocks():
    count = {
        block: sum(p.numel() for p in block(96, 96).parameters() if p.ndim == 4) for block in BLOCKS
    }
    assert count == {ResidualBlock: 18 * 96**2, BottleneckBlock: 17 * 96**2 // 16}


# What features see


@torch.no_grad()
@each_block
def test_instance_norm_sees_no_contrast_and_no_other_image(block):
    encoder = double(Encoder(8, "instance", block, (8, 12, 16)))
    image = random(2, 3, 48, 64)
    # What is left is eps = 1e-5 beside variances of 0.01 and more.
    assert close(encoder(0.5 * image), encoder(image), relative=0.01)
    apart = torch.cat([encoder(each[None]) for each in image])
    assert close(encoder(image), apart, relative=1e-9)
    none = double(Encoder(8, "none", block, (8, 12, 16)))
    assert not close(none(0.5 * image), none(image), relative=0.1)


@torch.no_grad()
def test_instance_norm_sees_no_bias_of_a_channel():
    encoder = double(Encoder(8, widths=(8, 12, 16)))
    image = random(1, 3, 48, 64)
    before = encoder(image)
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias") and name != "conv2.bias":
            parameter += 5
    assert close(encoder(image), before, relative=1e-9)


@torch.no_grad()
def test_batch_norm_mixes_the_images_of_a_batch_in_training_alone():
    encoder = Encoder(8, "batch", widths=(8, 12, 16)).double()
    image, other = random(1, 3, 48, 64), random(1, 3, 48, 64, seed=1) / 4 + 0.5
    for mode in (True, False):
        encoder.train(mode)
        before = {name: value.clone() for name, value in encoder.named_buffers()}
        beside = encoder(torch.cat([image, other]))[:1]
        changed = any(not torch.equal(v, before[n]) for n, v in encoder.named_buffers())
        assert changed == mode
        assert close(encoder(image), beside, relative=1e-9) != mode


@torch.no_grad()
@each_block
@pytest.mark.parametrize("kind", ["none", "batch"])
def test_eight_pixels_move_the_features_by_one(block, kind):
    encoder = with_running_values(double(Encoder(8, kind, block, (8, 12, 16))))
    wide = random(1, 3, 176, 192)
    margin = 7  # vectors, so that half a receptive field, 53 px at most, stays inside the image

    def inside(features):
        return features[:, :, margin:-margin, margin:-margin]

    before = encoder(wide[..., :176])
    after = encoder(wide[..., 8:184])
    assert close(inside(after)[..., :-1], inside(before)[..., 1:], relative=1e-9)
    after = encoder(wide[..., 3:179])
    assert not close(inside(after)[..., :-1], inside(before)[..., 1:], relative=0.05)
    assert not close(inside(after), inside(before), relative=0.05)


@pytest.mark.parametrize(("block", "side"), [(ResidualBlock, 107), (BottleneckBlock, 51)])
def test_the_receptive_field_is_a_square_around_eight_times_the_position(block, side):
    encoder = double(Encoder(4, "none", block, (8, 12, 16)))
    layers = [
        (layer.kernel_size[0], layer.stride[0])
        for name, layer in encoder.named_modules()
        if isinstance(layer, nn.Conv2d) and "downsample" not in name
    ]
    assert receptive_field(layers) == (side, 8)
    # Positive numbers throughout, so that no ReLU hides a pixel.
    for parameter in encoder.parameters():
        parameter.data.abs_()
    image = random(1, 3, 160, 160).abs().requires_grad_()
    encoder(image)[0, :, 10, 9].sum().backward()
    rows, columns = (image.grad.abs().sum((0, 1, a)).nonzero().flatten() for a in (3, 2))
    half = side // 2
    assert [rows.min().item(), rows.max().item()] == [80 - half, 80 + half]
    assert [columns.min().item(), columns.max().item()] == [72 - half, 72 + half]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), max_size=4))
def test_the_receptive_field_of_any_stack(layers):
    """The gradient of one number of a stack of convolutions with positive weights is the oracle."""
    size, step = receptive_field(layers)
    signal = torch.ones(1, 1, size + step, dtype=torch.float64, requires_grad=True)
    x = signal
    for kernel, stride in layers:
        x = F.conv1d(x, torch.ones(1, 1, kernel, dtype=torch.float64), stride=stride)
    seen = []
    for number in range(2):
        (gradient,) = torch.autograd.grad(x[0, 0, number], signal, retain_graph=True)
        seen.append(gradient[0, 0].nonzero().flatten())
    for places, first in zip(seen, (0, step), strict=True):
        assert places.min() == first
        # A stride wider than the kernel leaves gaps, but never moves the last pixel.
        assert places.max() == first + size - 1


def test_gradients_reach_the_image_and_every_weight():
    encoder = Encoder(8, widths=(8, 12, 16)).double()
    image = random(1, 3, 48, 64).requires_grad_()
    encoder(image).square().sum().backward()
    assert image.grad.abs().max() > 0
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        if parameter.ndim == 4:
            assert parameter.grad.abs().max() > 0, name


# Training


def test_freezing_keeps_running_values_and_lets_weights_train():
    encoder = Encoder(8, "batch", widths=(8, 12, 16))
    encoder.train()
    freeze_batch_norm(encoder)
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder(random(2, 3, 32, 32).float()).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    others = [m for m in encoder.modules() if not isinstance(m, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms) and all(m.training for m in others)
    assert all(norm.weight.grad is not None and norm.bias.grad is not None for norm in norms)
    encoder.train()
    assert all(norm.training for norm in norms)


def test_freezing_a_model_without_batch_norm_changes_nothing():
    encoder = Encoder(8, "instance", widths=(8, 12, 16)).train()
    freeze_batch_norm(encoder)
    assert all(layer.training for layer in encoder.modules())


def test_the_start_of_the_weights():
    torch.manual_seed(0)
    for name, layer in Encoder(256).named_modules():
        if isinstance(layer, nn.Conv2d):
            expected = math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels))
            # The deviation of n normal numbers is known to 1 in √(2n); four times that is rare.
            allowed = 4 / math.sqrt(2 * layer.weight.numel())
            assert layer.weight.std().item() == pytest.approx(expected, rel=allowed), name


# Sentences


@pytest.mark.parametrize(
    ("image", "error", "sentence"),
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), TypeError, "image has dtype torch.uint8"),
        (torch.zeros(1, 1, 16, 16), ValueError, r"image has shape \(1, 1, 16, 16\); expected \(B"),
        (torch.zeros(3, 16, 16), ValueError, r"image has shape \(3, 16, 16\); expected \(B, 3"),
        (torch.zeros(1, 3, 20, 16), ValueError, "expected H and W to be multiples of 8"),
        (torch.zeros(1, 3, 16, 0), ValueError, "expected H and W to be multiples of 8"),
        ([1, 2], TypeError, "image is a list"),
    ],
)
def test_images_that_are_none(image, error, sentence, without_shape_checks):
    with pytest.raises(error, match=sentence):
        Encoder(8, widths=(8, 12, 16))(image)


def test_settings_that_are_none():
    with pytest.raises(ValueError, match="kind is 'layer'; expected one of instance, batch, none"):
        normalisation("layer", 8)
    with pytest.raises(ValueError, match="kind is 'group'"):
        Encoder(8, norm="group")
    with pytest.raises(ValueError, match="outputs is 10; expected a multiple of 4"):
        BottleneckBlock(8, 10)
