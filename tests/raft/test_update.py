"""The update block: official numbers, slow versions, properties, sentences for bad input."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from official import close, official_state_dict, reference

from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.raft.correlation import CorrelationVolume
from fourfold.raft.raft import RAFT, from_published_names
from fourfold.raft.update import (
    ConvGRU,
    FlowHead,
    MaskHead,
    MotionEncoder,
    SeparableConvGRU,
    UpdateBlock,
    bilinear_upsample,
    convex_upsample,
)

VARIANTS = ("full", "small")
SIZES = {"full": (324, 128, 128), "small": (196, 96, 64)}  # correlations, state, context
MODULE = 1e-5  # times the largest number: what threads and memory formats alone may move


def random(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def new_block(variant, dtype=torch.float32):
    torch.manual_seed(7)
    return UpdateBlock(*SIZES[variant], small=variant == "small").to(dtype)


def block_inputs(variant, B=2, H=5, W=6, dtype=torch.float32):
    """State, context, correlations and flow of the right shapes."""
    C, D, X = SIZES[variant]
    h = random(B, D, H, W, seed=1, dtype=dtype).tanh()
    x, c = (random(B, n, H, W, seed=n, dtype=dtype) for n in (X, C))
    return h, x.relu(), c, random(B, 2, H, W, seed=2, dtype=dtype)


# --- the official numbers


@pytest.fixture(scope="module", params=VARIANTS)
def first_update(request):
    """A model with the official fill, what enters its first update, and the numbers to reach."""
    model = RAFT.from_official(official_state_dict(request.param))
    model.requires_grad_(False)
    official = reference(f"raft_{request.param}")
    images = [2 * (official[f"image{k}"][None].float() / 255) - 1 for k in (1, 2)]
    volume = CorrelationVolume(*map(model.fnet, images), model.levels, model.radius)
    h, context = model.cnet(images[0]).split([model.hidden, model.context], dim=1)
    grid = pixel_grid(*h.shape[2:]).permute(2, 0, 1)[None]
    flow = torch.zeros_like(grid)
    return model.update_block, (h.tanh(), context.relu(), volume(grid), flow), official


def is_official(block, inputs, official):
    """Whether state, change and mask of one update are the official ones."""
    h, context, correlations, flow = inputs
    state, change = block(h, block.gru.share(context), correlations, flow)
    good = close(state[:, ::8], official["net1_every8"], MODULE)
    good &= close(change, official["delta1"], MODULE)
    if block.mask is not None:
        good &= close(block.mask(state)[:, ::9], official["mask1_every9"], MODULE)
    return good


def test_one_update_gives_the_official_numbers(first_update):
    assert is_official(*first_update)


def test_upsampling_gives_the_official_numbers():
    official = reference("raft_utils")
    flow, mask = official["up_flow"], official["up_mask"]
    assert close(convex_upsample(flow, mask), official["convex"], MODULE)
    assert close(bilinear_upsample(flow), official["upflow8"], MODULE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_and_shapes_are_the_published_ones(variant):
    published = from_published_names(official_state_dict(variant))
    begin = "update_block."
    expected = {k.removeprefix(begin): v.shape for k, v in published.items() if k.startswith(begin)}
    found = {name: tensor.shape for name, tensor in new_block(variant).state_dict().items()}
    assert found == expected


# --- the mistakes of raft_mutations.json that concern this module


def swapped_gates(self, h, motion, share):
    z, _, q = self.gates(h, motion, share)
    return torch.lerp(q, h, z)


def columns_first(self, h, motion, share):
    across, down = share.chunk(2, dim=1)
    return self.horizontal(self.vertical(h, motion, down), motion, across)


def without_quarter(self, h):
    return self.conv2(self.conv1(h).relu())


def flow_first(original):
    return lambda self, flow, correlations: original(self, flow, correlations).roll(2, dims=1)


MUTATIONS = {
    "GRU z and 1-z swapped": (ConvGRU, swapped_gates, VARIANTS),
    "SepConvGRU vertical before horizontal": (SeparableConvGRU, columns_first, ("full",)),
    "flow put before the 126/80 motion features": (
        MotionEncoder,
        flow_first(MotionEncoder.forward),
        VARIANTS,
    ),
    "mask without the 0.25": (MaskHead, without_quarter, ("full",)),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_in_one_update_is_caught(first_update, name, monkeypatch):
    block, inputs, official = first_update
    module, forward, variants = MUTATIONS[name]
    variant = "small" if block.mask is None else "full"
    monkeypatch.setattr(module, "forward", forward)
    assert is_official(block, inputs, official) == (variant not in variants)


def test_a_mask_read_in_the_other_order_is_caught():
    official = reference("raft_utils")
    mask = official["up_mask"].unflatten(1, (64, 9)).transpose(1, 2).flatten(1, 2)
    assert not close(convex_upsample(official["up_flow"], mask), official["convex"], 0.1)


def test_edges_on_edges_are_caught():
    official = reference("raft_utils")
    options = {"scale_factor": 8, "mode": "bilinear", "align_corners": False}
    fine = 8 * F.interpolate(official["up_flow"], **options)
    assert not close(fine, official["upflow8"], 0.1)


# --- the gated unit


def textbook(gru, h, x, m):
    """Equations 2 to 5 with the state, the context and the motion features stacked."""
    hxm = torch.cat([h, x, m], dim=1)
    z, r = gru.convz(hxm).sigmoid(), gru.convr(hxm).sigmoid()
    q = gru.convq(torch.cat([r * h, x, m], dim=1)).tanh()
    return (1 - z) * h + z * q


small_sizes = st.integers(1, 5)
kernels = st.sampled_from([(1, 1), (3, 3), (1, 5), (5, 1), (5, 3)])


@given(st.lists(small_sizes, min_size=6, max_size=6), kernels)
@settings(max_examples=60)
def test_the_unit_equals_the_textbook(sizes, kernel):
    B, D, X, E, H, W = sizes
    gru = ConvGRU(D, X, E, kernel).double()
    h, x, m = (random(B, n, H, W, seed=k, dtype=torch.float64) for k, n in enumerate((D, X, E)))
    # float64: sums of at most 225 products of order 1 in another order.
    assert (gru(h, m, gru.share(x)) - textbook(gru, h, x, m)).abs().max() < 1e-12


def test_gradients_of_the_unit_equal_the_textbook():
    gru = ConvGRU(4, 3, 5).double()
    h, x, m = (random(2, n, 6, 5, seed=n, dtype=torch.float64).requires_grad_() for n in (4, 3, 5))
    inputs = (h, x, m, *gru.parameters())
    pull = random(2, 4, 6, 5, seed=9, dtype=torch.float64)
    ours = torch.autograd.grad(gru(h, m, gru.share(x)), inputs, pull)
    theirs = torch.autograd.grad(textbook(gru, h, x, m), inputs, pull)
    for mine, expected in zip(ours, theirs, strict=True):
        # float64: sums over 60 pixels of products of order 1.
        assert (mine - expected).abs().max() < 1e-11


def test_the_separable_unit_is_two_textbook_units():
    gru = SeparableConvGRU(4, 3, 5).double()
    h, x, m = (random(2, n, 6, 5, seed=n, dtype=torch.float64) for n in (4, 3, 5))
    expected = textbook(gru.vertical, textbook(gru.horizontal, h, x, m), x, m)
    assert (gru(h, m, gru.share(x)) - expected).abs().max() < 1e-12  # float64, as above
    assert gru.horizontal.convz.kernel_size == (1, 5)
    assert gru.vertical.convz.kernel_size == (5, 1)


def test_gates_are_open_shares_and_the_state_stays_bounded():
    gru = ConvGRU(6, 4, 5)
    h, x, m = random(2, 6, 7, 8, seed=1).tanh(), random(2, 4, 7, 8, seed=2), random(2, 5, 7, 8)
    for _ in range(20):
        z, r, q = gru.gates(h, 100 * m, gru.share(x))
        assert all(gate.min() >= 0 and gate.max() <= 1 for gate in (z, r))
        h = gru(h, 100 * m, gru.share(x))
        # A blend of two numbers in [−1, 1]; one rounding of float32 may add to it.
        assert h.abs().max() <= 1 + 1e-6 and q.abs().max() <= 1


# --- the motion encoder and the block


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_last_two_motion_channels_are_the_flow(variant):
    encoder = new_block(variant).encoder
    _, _, c, flow = block_inputs(variant)
    motion = encoder(flow, c)
    assert motion.shape[1] == encoder.outputs == {"full": 128, "small": 82}[variant]
    assert torch.equal(motion[:, -2:], flow)
    assert motion[:, :-2].min() == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter_and_input(variant):
    block = new_block(variant)
    inputs = [value.requires_grad_() for value in block_inputs(variant)]
    h, x, c, flow = inputs
    state, change = block(h, block.gru.share(x), c, flow)
    block.upsample(flow + change, state).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all(value.grad.abs().max() > 0 for value in inputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_items_of_a_batch_do_not_meet(variant):
    block = new_block(variant, torch.float64).requires_grad_(False)
    h, x, c, flow = block_inputs(variant, B=3, dtype=torch.float64)
    both = block(h, block.gru.share(x), c, flow)
    one = block(h[1:2], block.gru.share(x[1:2]), c[1:2], flow[1:2])
    for whole, single in zip(both, one, strict=True):
        # float64: a batch may be summed in another order.
        assert (whole[1:2] - single).abs().max() < 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_memory_formats_and_types(variant):
    block = new_block(variant).requires_grad_(False)
    h, x, c, flow = block_inputs(variant)
    state, change = block(h, block.gru.share(x), c, flow)
    last = [value.to(memory_format=torch.channels_last) for value in (h, x, c, flow)]
    other, _ = block(last[0], block.gru.share(last[1]), last[2], last[3])
    assert close(other, state, MODULE)
    fine = block.upsample(change, state)
    turned = block.upsample(change.to(memory_format=torch.channels_last), other)
    assert close(turned, fine, MODULE)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = block(h.bfloat16(), block.gru.share(x), c, flow)
        assert block.upsample(change, half).isfinite().all()
    # bfloat16 has three digits; the state lies in [−1, 1].
    assert (half.float() - state).abs().max() < 0.1


# --- upsampling


def convex_by_loops(flow, mask):
    """Equations 8 and 9 in float64, one sub-pixel at a time."""
    _, H, W = flow.shape
    fine = np.zeros((2, 8 * H, 8 * W))
    for i, j, u, v in np.ndindex(H, W, 8, 8):
        powers = [math.exp(mask[64 * k + 8 * u + v, i, j]) for k in range(9)]
        for k, power in enumerate(powers):
            y, x = i + k // 3 - 1, j + k % 3 - 1
            if 0 <= y < H and 0 <= x < W:
                fine[:, 8 * i + u, 8 * j + v] += power / sum(powers) * 8 * flow[:, y, x]
    return fine


def bilinear_by_loops(flow):
    """Equation 10 in float64, one fine pixel at a time, from its four neighbours."""
    _, H, W = flow.shape
    fine = np.zeros((2, 8 * H, 8 * W))
    for row, column in np.ndindex(8 * H, 8 * W):
        y, x = row * (H - 1) / (8 * H - 1), column * (W - 1) / (8 * W - 1)
        j, i = min(int(y), H - 1), min(int(x), W - 1)
        below, right = min(j + 1, H - 1), min(i + 1, W - 1)
        top = (i + 1 - x) * flow[:, j, i] + (x - i) * flow[:, j, right]
        bottom = (i + 1 - x) * flow[:, below, i] + (x - i) * flow[:, below, right]
        fine[:, row, column] = 8 * ((j + 1 - y) * top + (y - j) * bottom)
    return fine


sizes = st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))


@given(sizes)
@settings(max_examples=25)
def test_upsampling_equals_the_loops(about):
    B, H, W, seed = about
    flow = random(B, 2, H, W, seed=seed, dtype=torch.float64)
    mask = 3 * random(B, 576, H, W, seed=seed + 1, dtype=torch.float64)
    convex, bilinear = convex_upsample(flow, mask), bilinear_upsample(flow)
    for b in range(B):
        # float64: nine, or four, products of order 10.
        assert (
            np.abs(convex[b].numpy() - convex_by_loops(flow[b].numpy(), mask[b].numpy())).max()
            < 1e-12
        )
        assert np.abs(bilinear[b].numpy() - bilinear_by_loops(flow[b].numpy())).max() < 1e-12


@given(sizes)
@settings(max_examples=40)
def test_a_fine_vector_lies_between_its_neighbours(about):
    B, H, W, seed = about
    flow = random(B, 2, H, W, seed=seed, dtype=torch.float64)
    fine = convex_upsample(flow, 5 * random(B, 576, H, W, seed=seed + 1, dtype=torch.float64))
    padded = F.pad(flow, (1, 1, 1, 1))
    for sign in (1, -1):
        limit = 8 * F.max_pool2d(sign * padded, 3, 1)
        limit = limit.repeat_interleave(8, 2).repeat_interleave(8, 3)
        assert (sign * fine <= limit + 1e-12).all()  # rounding of weights that sum to 1


@pytest.mark.parametrize("k", range(9))
def test_a_one_hot_mask_copies_one_neighbour(k):
    flow = random(1, 2, 4, 5)
    mask = torch.full((1, 9, 64, 4, 5), -1000.0)
    mask[:, k] = 0
    row, column = divmod(k, 3)
    moved = 8 * F.pad(flow, (1, 1, 1, 1))[..., row : row + 4, column : column + 5]
    expected = moved.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(convex_upsample(flow, mask.flatten(1, 2)), expected)


def test_every_mask_channel_moves_its_own_sub_pixel():
    flow, where = random(1, 2, 3, 3), (1, 1)
    for k, u, v in ((0, 0, 0), (5, 2, 7), (8, 7, 1), (3, 6, 6)):
        mask = torch.zeros(1, 576, 3, 3)
        mask[0, 64 * k + 8 * u + v, 1, 1] = 10
        moved = convex_upsample(flow, mask) - convex_upsample(flow, torch.zeros(1, 576, 3, 3))
        place = (moved.abs().sum(dim=(0, 1)) > 1e-4).nonzero().tolist()  # above rounding
        assert place == [[8 * where[0] + u, 8 * where[1] + v]]


def test_a_constant_flow_is_kept_inside_and_shrinks_at_the_border():
    flow, even = torch.full((1, 2, 4, 5), 1.0), torch.zeros(1, 576, 4, 5)
    fine = convex_upsample(flow, even)
    # Nine products of 8/9 in float32.
    assert fine[..., 8:-8, 8:-8].sub(8).abs().max() < 1e-5
    assert fine[0, 0, 0, 16].item() == pytest.approx(8 * 6 / 9, rel=1e-5)
    assert fine[0, 0, 0, 0].item() == pytest.approx(8 * 4 / 9, rel=1e-5)
    random_mask = 2 * random(1, 576, 4, 5)
    assert convex_upsample(flow, random_mask).max() <= 8 + 1e-5
    assert bilinear_upsample(flow).sub(8).abs().max() < 1e-5


def test_upsampling_is_differentiable():
    flow = random(1, 2, 2, 3, dtype=torch.float64).requires_grad_()
    mask = random(1, 576, 2, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(convex_upsample, (flow, mask), fast_mode=True)
    assert torch.autograd.gradcheck(bilinear_upsample, (flow,))


def test_a_large_mask_gives_numbers():
    mask = 1e4 * random(1, 576, 3, 3)
    assert convex_upsample(random(1, 2, 3, 3), mask).isfinite().all()


# --- what is said to bad input


@pytest.mark.usefixtures("without_shape_checks")
class TestSentences:
    @pytest.mark.parametrize(
        ("call", "error", "sentence"),
        [
            (
                lambda: convex_upsample(random(1, 3, 4, 5), random(1, 576, 4, 5)),
                ValueError,
                "flow has",
            ),
            (
                lambda: convex_upsample(random(2, 4, 5), random(1, 576, 4, 5)),
                ValueError,
                "flow has",
            ),
            (
                lambda: convex_upsample(random(1, 2, 4, 5), random(1, 64, 4, 5)),
                ValueError,
                r"mask has shape \(1, 64, 4, 5\); expected \(1, 576, 4, 5\)",
            ),
            (
                lambda: convex_upsample(random(1, 2, 4, 5), random(2, 576, 4, 5)),
                ValueError,
                r"expected \(1, 576, 4, 5\)",
            ),
            (
                lambda: bilinear_upsample(torch.zeros(1, 2, 4, 5).long()),
                TypeError,
                "flow has dtype",
            ),
            (lambda: bilinear_upsample([[1.0]]), TypeError, "flow is a list"),
            (lambda: bilinear_upsample(random(1, 4, 5, 2)), ValueError, r"expected \(B, 2, H, W\)"),
            (lambda: ConvGRU(4, 3, 5, kernel=(2, 3)), ValueError, "expected odd sizes"),
            (lambda: ConvGRU(4, 3, 5).share(random(1, 4, 6, 6)), ValueError, "context has shape"),
        ],
    )
    def test_a_call(self, call, error, sentence):
        with pytest.raises(error, match=sentence):
            call()

    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize(
        ("name", "index"), [("h", 0), ("share", 1), ("correlations", 2), ("flow", 3)]
    )
    def test_the_block_names_the_map_of_wrong_channels(self, variant, name, index):
        block = new_block(variant)
        h, x, c, flow = block_inputs(variant)
        maps = [h, block.gru.share(x), c, flow]
        maps[index] = torch.cat([maps[index], maps[index]], dim=1)
        with pytest.raises(ValueError, match=f"^{name} has shape"):
            block(*maps)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_the_block_names_a_map_of_another_size(self, variant):
        block = new_block(variant)
        h, x, c, flow = block_inputs(variant)
        share = block.gru.share(x)
        for name, maps in {
            "correlations": (h, share, c[..., 1:], flow),
            "share": (h, share[:1], c, flow),
        }.items():
            with pytest.raises(ValueError, match=f"^{name} has shape"):
                block(*maps)


def test_heads_have_their_widths():
    assert FlowHead(96, 128)(random(1, 96, 4, 5)).shape == (1, 2, 4, 5)
    assert MaskHead(128)(random(1, 128, 4, 5)).shape == (1, 576, 4, 5)
