"""The transformer against its definition, permutations, itself in parts, the official numbers."""

import math
import weakref
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from official_cotracker import close, official_state_dict, reference
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fourfold.cotracker import transformer as module
from fourfold.cotracker.transformer import (
    MLP,
    Attention,
    CrossBlock,
    SelfBlock,
    Transformer,
    across_tracks,
    additive_mask,
    along_time,
    attend,
)

OFFICIAL = 1e-5  # times the largest number: what threads and memory formats alone may move
EXACT = 1e-12  # float64 through a few blocks; numbers are of order 1


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def small(inputs=6, outputs=3, width=12, heads=3, depth=2, virtual_tracks=4, **options):
    """A small transformer in float64 whose every parameter is random."""
    torch.manual_seed(1)
    model = Transformer(inputs, outputs, width, heads, depth, virtual_tracks, **options).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


# The definition, in loops and without layers


def norm_by_hand(x, eps):
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()


def gelu_by_hand(a):
    return a / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


def attention_by_hand(attention, x, context, mask=None):
    """x (Q, D), context (K, D), mask (Q, K) or sizes that go with it."""
    q, (k, v) = attention.to_q(x), attention.to_kv(context).chunk(2, dim=-1)
    heads = []
    shares = (t.chunk(attention.heads, dim=-1) for t in (q, k, v))
    for asked, told, worth in zip(*shares, strict=True):
        scores = asked @ told.T / math.sqrt(asked.shape[1])
        weights = (scores if mask is None else scores + mask).softmax(dim=-1)
        heads.append(weights @ worth)
    return attention.to_out(torch.cat(heads, dim=-1))


def block_by_hand(block, x, context=None, mask=None):
    normed = norm_by_hand(x, 1e-6)
    if context is None:
        x = x + attention_by_hand(block.attn, normed, normed)
    else:
        scale = block.norm_context
        read = norm_by_hand(context, 1e-5) * scale.weight + scale.bias
        x = x + attention_by_hand(block.cross_attn, normed, read, mask)
    hidden = gelu_by_hand(block.mlp.fc1(norm_by_hand(x, 1e-6)))
    return x + block.mlp.fc2(hidden)


def transformer_by_hand(model, tokens, active=None):
    """One clip, (N, S, I) and (S, N): every block on one sequence at a time."""
    x, S = model.input_transform(tokens), tokens.shape[1]
    u = model.virtual_tracks[0].expand(-1, S, -1)
    layers = zip(
        model.time_blocks,
        model.space_virtual2point_blocks,
        model.space_virtual_blocks,
        model.space_point2virtual_blocks,
        strict=True,
    )
    for along, to_virtual, among_virtual, to_points in layers:
        x, u = (torch.stack([block_by_hand(along, track) for track in t]) for t in (x, u))
        if not model.space:
            continue
        points, virtual = [], []
        for s in range(S):
            there = torch.ones(len(x), dtype=torch.bool) if active is None else active[s]
            mask = torch.zeros(len(x)).double()
            mask[~there] = torch.finfo(torch.float64).min
            here = block_by_hand(to_virtual, u[:, s], x[:, s], mask[None])
            virtual.append(block_by_hand(among_virtual, here))
            points.append(block_by_hand(to_points, x[:, s], virtual[-1], mask[:, None]))
        x, u = torch.stack(points, dim=1), torch.stack(virtual, dim=1)
    return model.flow_head(x)


@given(
    heads=st.sampled_from([1, 2, 4]),
    readers=st.integers(1, 6),
    read=st.integers(1, 6),
    seed=st.integers(0, 1000),
    masked=st.booleans(),
)
def test_attention_is_its_definition(heads, readers, read, seed, masked):
    torch.manual_seed(seed)
    attention = Attention(8, heads).double()
    x, context = random(2, readers, 8, seed=seed), random(2, read, 8, seed=seed + 1)
    mask = random(2, 1, readers, read, seed=seed + 2) if masked else None
    found = attention(x, context, mask)
    for b in range(2):
        expected = attention_by_hand(attention, x[b], context[b], mask[b, 0] if masked else None)
        assert torch.allclose(found[b], expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("space", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_the_transformer_is_its_definition(gradients, space, masked):
    model = small()
    model.space = space
    tokens, active = random(2, 7, 5, 6), random(2, 5, 7, seed=1) > -0.3 if masked else None
    with torch.set_grad_enabled(gradients):
        found = model(tokens, active)
        assert found.shape == (2, 7, 5, 3)
        for b in range(2):
            expected = transformer_by_hand(model, tokens[b], active[b] if masked else None)
            # Random blocks of this size multiply numbers, and rounding, by some hundreds.
            assert close(found[b], expected, relative=1e-11)


def test_gradients_are_those_of_the_definition():
    tokens, active = random(1, 5, 3, 6), random(1, 3, 5, seed=1) > 0
    gradients = []
    for way in (
        lambda m: m(tokens, active),
        lambda m: transformer_by_hand(m, tokens[0], active[0]),
    ):
        model = small()
        way(model).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert close(gradient, gradients[1][name], relative=1e-9, absolute=1e-9), name


def test_certainty_adds_two_outputs_from_a_head_of_its_own():
    model, tokens = small(certainty=True), random(1, 4, 3, 6)
    before = model(tokens)
    assert before.shape == (1, 4, 3, 5)
    with torch.no_grad():
        model.vis_conf_head.bias += 1
    assert torch.allclose(model(tokens) - before, torch.tensor([0.0, 0, 0, 1, 1]).double())


# Small numbers that no end-to-end test would see


def test_the_epsilons_are_those_of_the_release():
    norms = {
        name: layer for name, layer in small().named_modules() if isinstance(layer, nn.LayerNorm)
    }
    assert len(norms) == 2 * (2 * 4 + 2)
    for name, layer in norms.items():
        context = name.endswith("norm_context")
        assert layer.eps == (1e-5 if context else 1e-6), name
        assert layer.elementwise_affine == context, name


@pytest.mark.parametrize("spread", [1e-4, 1e-3, 1e-2])
def test_quiet_tokens_are_normed_with_the_right_epsilon(spread):
    block, x = SelfBlock(12, 3).double(), spread * random(1, 4, 12)
    assert torch.allclose(block.norm1(x), norm_by_hand(x, 1e-6), rtol=1e-9)
    context = CrossBlock(12, 3).double().norm_context(x)
    assert torch.allclose(context, norm_by_hand(x, 1e-5), rtol=1e-9)


def test_the_gelu_is_the_tanh_form():
    mlp = MLP(1, ratio=1).double()
    for layer in (mlp.fc1, mlp.fc2):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    a = torch.linspace(-6, 6, 101, dtype=torch.float64)[:, None]
    assert torch.allclose(mlp(a), gelu_by_hand(a), rtol=0, atol=EXACT)
    # The exact form differs by 5e-4 at most.
    assert (mlp(a) - nn.functional.gelu(a)).abs().max() > 4e-4


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 100, module._NUMBERS, module._NUMBERS + 1])
def test_the_gelu_without_gradients_is_the_same(count):
    torch.manual_seed(0)
    a = 4 * torch.randn(count, dtype=torch.float64)
    a[0] = -40
    expected = gelu_by_hand(a)
    assert torch.allclose(module._gelu(a.clone()), expected, rtol=0, atol=EXACT)
    low = a.bfloat16()
    assert torch.equal(module._gelu(low), nn.functional.gelu(low, approximate="tanh"))


# The grid


def test_along_time_keeps_tracks_apart_and_across_tracks_keeps_frames_apart():
    x, block = random(2, 4, 5, 12), SelfBlock(12, 3).double()
    changed = x.clone()
    changed[0, 1, 2] += 1
    moved = (along_time(block, changed) - along_time(block, x)).abs().amax(dim=-1) > 0
    expected = torch.zeros(2, 4, 5, dtype=torch.bool)
    expected[0, :, 2] = True
    assert torch.equal(moved, expected)

    gather, talk, hand_out = (kind(12, 3).double() for kind in (CrossBlock, SelfBlock, CrossBlock))
    u = random(8, 3, 12, seed=1)
    before, after = (
        across_tracks(gather, talk, hand_out, t.flatten(0, 1), u)[0].view_as(x)
        for t in (x, changed)
    )
    expected = torch.zeros(2, 4, 5, dtype=torch.bool)
    expected[0, 1] = True
    assert torch.equal((before - after).abs().amax(dim=-1) > 0, expected)


@pytest.mark.parametrize("gradients", [True, False])
def test_permuting_the_points_permutes_the_output(gradients):
    model, order = small(), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    tokens, active = random(1, 7, 5, 6), random(1, 5, 7, seed=1) > -0.3
    with torch.set_grad_enabled(gradients):
        expected = model(tokens, active)[:, order]
        found = model(tokens[:, order], active[:, :, order])
    assert close(found, expected, relative=1e-11)


def test_without_space_each_track_is_alone():
    model, tokens = small(), random(1, 7, 5, 6)
    changed = tokens.clone()
    changed[:, 3] += 1
    for model.space, alone in ((False, True), (True, False)):
        moved = (model(changed) - model(tokens)).abs().amax(dim=(0, 2, 3)) > 1e-9
        assert moved[3]
        assert moved.sum() == (1 if alone else 7)


def test_points_that_are_not_there_are_not_read():
    model, tokens = small(), random(1, 7, 5, 6)
    active = torch.ones(1, 5, 7, dtype=torch.bool)
    active[:, :, 2] = False
    changed = tokens.clone()
    changed[:, 2] += 1
    moved = (model(changed, active) - model(tokens, active)).abs().amax(dim=(0, 2, 3)) > 1e-9
    assert moved.tolist() == [n == 2 for n in range(7)]


def test_clips_of_a_batch_do_not_meet():
    model, tokens, active = small(), random(2, 7, 5, 6), random(2, 5, 7, seed=1) > -0.3
    with torch.no_grad():
        both = model(tokens, active)
        for b in range(2):
            assert close(model(tokens[b : b + 1], active[b : b + 1]), both[b : b + 1], 1e-11)


# Masks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_row_fully_masked_becomes_uniform(dtype):
    scores = random(3, 5, dtype=dtype)
    mask = additive_mask(torch.tensor([True, False, False, True, False]), dtype)
    assert mask.dtype == dtype and mask.isfinite().all()
    assert ((scores + mask).softmax(dim=-1)[:, [1, 2, 4]] == 0).all()
    none = additive_mask(torch.zeros(5, dtype=torch.bool), dtype)
    uniform = torch.full((3, 5), 0.2, dtype=dtype)
    assert torch.allclose((scores + none).softmax(dim=-1), uniform)
    infinite = torch.full((5,), -math.inf, dtype=dtype)
    assert (scores + infinite).softmax(dim=-1).isnan().all()


def test_where_nobody_is_there_means_are_read_and_nothing_is_nan():
    q, k, v = random(1, 2, 8), random(1, 5, 8, seed=1), random(1, 5, 8, seed=2)
    mask = additive_mask(torch.zeros(1, 1, 1, 5, dtype=torch.bool), torch.float64)
    expected = v.mean(dim=1, keepdim=True).expand_as(q)
    assert torch.allclose(attend(q, k, v, 2, mask), expected, rtol=0, atol=EXACT)
    model = small()
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            found = model(random(1, 7, 5, 6), torch.zeros(1, 5, 7, dtype=torch.bool))
        assert found.isfinite().all()


@pytest.mark.parametrize("N", [3, 4, 5])
def test_reading_the_mask_by_size_matters_for_as_many_points_as_virtual_tracks(N):
    model = small(virtual_tracks=4)
    tokens, active = random(1, N, 5, 6), random(1, 5, N, seed=1) > 0
    with torch.no_grad():
        ours = model(tokens, active)
        model.by_size = True
        theirs = model(tokens, active)
        all_there = model(tokens, torch.ones_like(active))
        model.by_size = False
        assert torch.equal(model(tokens, torch.ones_like(active)), all_there)
    assert torch.equal(ours, theirs) == (N != 4)


@pytest.mark.parametrize("masked", ["no row", "a row", "all rows"])
def test_the_gradient_of_a_row_fully_masked_is_that_of_its_mean(masked):
    """PyTorch's fused kernel has it K times too large, K the number of keys."""
    there = {"no row": [True, True], "a row": [True, False], "all rows": [False, False]}[masked]
    mask = additive_mask(torch.tensor(there), torch.float64)[None, None, :, None]
    leaves = [random(1, n, 8, seed=n + i).requires_grad_() for i, n in enumerate((2, 5, 5))]
    found = attend(*leaves, heads=2, mask=mask)
    shares = (t[0].unflatten(-1, (2, 4)).transpose(0, 1) for t in leaves)
    q, k, v = shares
    weights = (q @ k.mT / 2 + mask[0]).softmax(dim=-1)
    expected = (weights @ v).transpose(0, 1).flatten(1)[None]
    upstream = random(1, 2, 8, seed=9)
    for ours, theirs in zip(
        *(torch.autograd.grad(y, leaves, upstream, allow_unused=True) for y in (found, expected)),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=0, atol=EXACT)


# In parts


@pytest.mark.parametrize("together", [1, 7, 16, 1000])
@pytest.mark.parametrize("masked", [True, False])
def test_parts_give_what_the_whole_gives(together, masked, monkeypatch):
    model, tokens = small(certainty=True), random(2, 11, 5, 6)
    active = random(2, 5, 11, seed=1) > -0.3 if masked else None
    whole = model(tokens, active)
    monkeypatch.setitem(module._TOKENS, "cpu", together)
    kept, learned = tokens.clone(), model.virtual_tracks.detach().clone()
    with torch.no_grad():
        assert close(model(tokens, active), whole.detach(), relative=1e-11)
        assert close(model(tokens, active), whole.detach(), relative=1e-11)
    assert torch.equal(tokens, kept), "the input changed"
    assert torch.equal(model.virtual_tracks, learned), "the virtual tracks changed"


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside a `with`, while they live."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.note(value.untyped_storage())
        return result

    def note(self, storage):
        address, size = storage.data_ptr(), storage.nbytes()
        if address and address not in self.known:
            self.known.add(address)
            self.now, self.peak = self.now + size, max(self.peak, self.now + size)
            weakref.finalize(storage, self.free, address, size)

    def free(self, address, size):
        self.known.discard(address)
        self.now -= size


def test_memory_without_gradients_is_linear_and_little_more_than_the_tokens(monkeypatch):
    monkeypatch.setitem(module._TOKENS, "cpu", 128)
    S, D, inputs = 4, 16, 5
    model = Transformer(inputs, 4, D, heads=2, depth=2, virtual_tracks=4)
    peaks = []
    for N in (500, 1000, 2000):
        tokens = torch.randn(1, N, S, inputs)
        with torch.no_grad(), PeakMemory() as memory:
            model(tokens)
        peaks.append(memory.peak)
    first, second = (peaks[1] - peaks[0]) / 500, (peaks[2] - peaks[1]) / 1000
    assert second == pytest.approx(first, rel=0.02)
    # Of a point: its input, its tokens, and of one frame at a time keys, values, normed tokens.
    assert second < 4 * (inputs * S + D * S + 4 * D)


# The official numbers


@cache
def official_weights():
    return {
        name.removeprefix("updateformer.").replace("virual", "virtual"): value
        for name, value in official_state_dict("cotracker2").items()
        if name.startswith("updateformer.")
    }


def official_transformer():
    with torch.device("meta"):  # without the time to initialise what is overwritten
        model = Transformer(456, 130)
    model.load_state_dict({k: v.clone() for k, v in official_weights().items()}, assign=True)
    return model


@pytest.fixture(scope="module")
def official():
    numbers = reference("cotracker2")
    return numbers["uf_in"], numbers["uf_mask"][None], numbers["uf_out"]


@pytest.mark.parametrize("gradients", [True, False])
def test_the_output_is_the_official_one(official, gradients):
    tokens, active, expected = official
    with torch.set_grad_enabled(gradients):
        found = official_transformer()(tokens, active).detach()
    assert close(found, expected, relative=OFFICIAL)


def exact_gelu(model, monkeypatch):
    monkeypatch.setattr(MLP, "forward", lambda self, x: self.fc2(nn.functional.gelu(self.fc1(x))))


def no_mask(model, monkeypatch):
    monkeypatch.setattr(module, "additive_mask", lambda active, dtype: torch.zeros(active.shape))


def keys_and_values_exchanged(model, monkeypatch):
    for name, values in model.named_parameters():
        if ".to_kv." in name:
            values.data = values.data.roll(len(values) // 2, dims=0)


def cross_blocks_exchanged(model, monkeypatch):
    both = model.space_virtual2point_blocks, model.space_point2virtual_blocks
    model.space_point2virtual_blocks, model.space_virtual2point_blocks = both


def scale_of_the_whole_width(model, monkeypatch):
    for name, values in model.named_parameters():
        if ".to_q." in name:
            values.data /= 8**0.5


@pytest.mark.parametrize(
    "mistake",
    [
        exact_gelu,
        no_mask,
        keys_and_values_exchanged,
        cross_blocks_exchanged,
        scale_of_the_whole_width,
    ],
)
def test_a_mistake_is_caught(official, mistake, monkeypatch):
    tokens, active, expected = official
    model = official_transformer()
    mistake(model, monkeypatch)
    with torch.no_grad():
        assert not close(model(tokens, active), expected, relative=3 * OFFICIAL)


# Bad input


def test_errors_name_the_argument(without_shape_checks):
    with pytest.raises(ValueError, match="width is 10; expected a multiple of heads, 4"):
        Attention(10, 4)
    for name in ("heads", "depth", "virtual_tracks"):
        with pytest.raises(ValueError, match=f"{name} is 0; expected a whole number, 1 or more"):
            small(**{name: 0})
    model, tokens = small(), random(1, 4, 3, 6)
    for wrong in (tokens[0], tokens[..., :5], tokens[:, :0]):
        with pytest.raises(ValueError, match=r"tokens has shape .*expected \(B, N, S, 6\)"):
            model(wrong)
    with pytest.raises(TypeError, match="tokens"):
        model(tokens.long())
    with pytest.raises(TypeError, match=r"active is of torch\.float64; expected torch\.bool"):
        model(tokens, torch.ones(1, 3, 4).double())
    with pytest.raises(ValueError, match=r"active has shape \(1, 4, 3\).*\(1, 3, 4\)"):
        model(tokens, torch.ones(1, 4, 3, dtype=torch.bool))
