"""EGNN: equation 1, naive forms as oracles, padding, gradients, and what bad input is told."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fourfold.syco.egnn import (
    EGNN,
    CoordinateLayer,
    MessageLayer,
    PairMLP,
    _LeanLinear,
    distance_waves,
    pair_vectors,
)
from fourfold.syco.lifting import pair_mask

KINDS = {
    "base": {},
    "edges": {"edges": 3},
    "inner": {"inner": 2},
    "plain": {"attention": False, "tanh": False, "divisor": 100.0},
    "unit": {"norm_constant": 0.0},
    "waves": {"waves": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def awake(model):
    """A fresh network hardly moves its points; with larger last weights it does."""
    with torch.no_grad():
        for block in model.blocks:
            layer = block.coordinates
            layer.mlp[-1].weight.normal_(std=0.01 if layer.tanh else 0.2 * layer.divisor)
    return model.eval()


def network(kind="base", features=5, **options):
    torch.manual_seed(0)
    return awake(EGNN(features, width=16, depth=3, **KINDS[kind], **options))


def clouds(sizes=(7, 4, 1), room=7, features=5, seed=0):
    """Random clouds of a molecule's size, with rubbish where there is no point."""
    generator = torch.Generator().manual_seed(seed)
    B, mask = len(sizes), torch.arange(room) < torch.tensor(sizes)[:, None]
    h = torch.randn(B, room, features, generator=generator)
    x = 1.5 * torch.randn(B, room, 3, generator=generator)
    edges = torch.randn(B, room, room, 3, generator=generator)
    return h, x, mask, edges + edges.transpose(1, 2)


def ask(model, h, x, mask, edges):
    return model(h, x, mask, edges if model.edges else None)


def turn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    return Q * Q.det()


def largest(difference, mask):
    return difference[mask].abs().max().item()


MOVES = {
    "rotation": (turn(), (0.0, 0.0, 0.0)),
    "reflection": (turn(1) * torch.tensor([-1.0, 1, 1]), (0.0, 0.0, 0.0)),
    "translation": (torch.eye(3), (3.0, -2.0, 1.0)),
}


# Equivariance


@pytest.mark.parametrize("move", MOVES)
@each_kind
def test_turning_mirroring_moving_the_input_does_the_same_to_the_output(kind, move):
    model, (h, x, mask, edges) = network(kind), clouds()
    R, shift = (torch.as_tensor(part, dtype=torch.float32) for part in MOVES[move])
    with torch.no_grad():
        h1, x1 = ask(model, h, x, mask, edges)
        h2, x2 = ask(model, h, x @ R.T + shift, mask, edges)
    # Float32; the sines of waves of a hundredth of an Å lose three digits of it.
    tolerance = 1e-3 if kind == "waves" else 1e-5
    assert largest(h2 - h1, mask) < tolerance * h1.abs().max().clamp(min=1)
    assert largest(x2 - (x1 @ R.T + shift), mask) < tolerance * x1.abs().max().clamp(min=1)
    assert largest(x1 - x, mask) > 0.1, "it moves the points, so there is something to compare"


@each_kind
def test_the_order_of_the_points_does_not_matter(kind):
    model, (h, x, mask, edges) = network(kind), clouds()
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    with torch.no_grad():
        expected = ask(model, h, x, mask, edges)
        found = ask(model, h[:, order], x[:, order], mask[:, order], edges[:, order][:, :, order])
    for ours, theirs in zip(found, expected, strict=True):
        # Sums over seven points in another order, in float32.
        assert (ours - theirs[:, order]).abs().max() < 1e-5 * theirs.abs().max().clamp(min=1)


@each_kind
def test_in_float64_the_symmetry_is_exact_to_its_own_precision(kind):
    model, (h, x, mask, edges) = network(kind).double(), clouds()
    h, x, edges, R = h.double(), x.double(), edges.double(), turn(2)
    h1, x1 = ask(model, h, x, mask, edges)
    h2, x2 = ask(model, h, x @ R.T, mask, edges)
    # 16 digits, a few of which the waves and the blocks lose.
    tolerance = 1e-10 if kind == "waves" else 1e-12
    assert largest(h2 - h1, mask) < tolerance and largest(x2 - x1 @ R.T, mask) < tolerance * 10


# Padding


@each_kind
def test_padding_does_not_matter(kind):
    model, (h, x, mask, edges) = network(kind), clouds()
    with torch.no_grad():
        together = ask(model, h, x, mask, edges)
        for b, n in enumerate(mask.sum(dim=1).tolist()):
            one = h[b : b + 1, :n], x[b : b + 1, :n], mask[b : b + 1, :n], edges[b : b + 1, :n, :n]
            for own, all_of_them in zip(ask(model, *one), together, strict=True):
                # Products of matrices of another size add up in another order.
                assert (own[0] - all_of_them[b, :n]).abs().max() < 1e-5 * own.abs().max().clamp(1)


@each_kind
def test_zero_comes_out_where_there_is_no_point(kind):
    h, x, mask, edges = clouds()
    for out in ask(network(kind), h, x, mask, edges):
        assert (out[~mask] == 0).all()


def test_gradients_of_padding_are_zero():
    h, x, mask, _ = clouds()
    h.requires_grad_(), x.requires_grad_()
    sum(out.square().sum() for out in network()(h, x, mask)).backward()
    for gradient in (h.grad, x.grad):
        assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()


def test_one_point_stays_and_two_stay_on_their_line():
    model = network()
    h, x, mask, _ = clouds((1, 2), room=2)
    with torch.no_grad():
        moved = model(h, x, mask)[1] - x
    assert torch.equal(moved[0, 0], torch.zeros(3))
    line = (x[1, 1] - x[1, 0]) / (x[1, 1] - x[1, 0]).norm()
    # The sine of the angle between, in float32.
    assert torch.linalg.cross(moved[1], line.expand(2, 3)).norm(dim=-1).max() < 1e-5


def test_a_flat_cloud_stays_flat():
    h, x, mask, _ = clouds()
    with torch.no_grad():
        assert (network()(h, x * torch.tensor([1.0, 1, 0]), mask)[1][..., 2] == 0).all()


# Naive against final


def concatenated(mlp, h, a):
    N = h.shape[1]
    ours, theirs = h[:, :, None].expand(-1, -1, N, -1), h[:, None].expand(-1, N, -1, -1)
    return nn.Sequential(*mlp)(torch.cat([ours, theirs, a], dim=-1))


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("attributes", [2, 24])
def test_the_split_network_on_pairs_is_the_one_on_the_long_vector(scalar, attributes):
    torch.manual_seed(0)
    mlp = PairMLP(16, attributes, scalar).double()
    h = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    a = torch.randn(2, 5, 5, attributes, dtype=torch.float64, requires_grad=True)
    found = []
    for out in (mlp(h, a), concatenated(mlp, h, a)):
        found.append([out, *torch.autograd.grad(out.square().sum(), [h, a, *mlp.parameters()])])
    for ours, naive in zip(*found, strict=True):
        # Float64, sums in another order.
        assert torch.allclose(ours, naive, rtol=1e-10, atol=1e-12)


def test_the_lean_layer_has_its_first_derivatives_and_refuses_second_ones():
    torch.manual_seed(0)
    z, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 2, 2, 4), (3, 4), (3,))
    )
    assert torch.autograd.gradcheck(_LeanLinear.apply, (z, weight, bias))
    with pytest.raises(RuntimeError, match="automatic differentiation"):
        torch.autograd.grad(_LeanLinear.apply(z, weight, bias).sum(), z, create_graph=True)


def test_the_network_trains_in_mixed_precision():
    model, (h, x, mask, _) = network(), clouds()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(h, x, mask)
        sum(each.float().square().sum() for each in out).backward()
    last = model.blocks[-1].coordinates.mlp
    for parameter in last.parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()


def test_less_is_remembered_than_by_the_long_vector():
    model, (h, x, mask, _) = network(), clouds((9,) * 8, room=9)
    naive = copy.deepcopy(model)

    class Concatenating(PairMLP):
        def forward(self, h, a):
            return concatenated(self, h, a)

    for module in naive.modules():
        if isinstance(module, PairMLP):
            module.__class__ = Concatenating

    def remembered(model):
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = model(h, x, mask)
        return sum(kept.values()), out

    (less, ours), (more, theirs) = remembered(model), remembered(naive)
    assert less < 0.6 * more
    for one, other in zip(ours, theirs, strict=True):
        # Float32, sums in another order.
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["base", "plain", "inner", "unit"])
def test_edge_lists_with_scattered_sums_give_the_same(kind, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "plain_edm", raising=False)
    from plain_edm import PlainEGNN

    names = {"norm_constant": "norm"}
    options = {names.get(name, name): value for name, value in KINDS[kind].items()}
    model, plain = network(kind), PlainEGNN(5, 16, 3, **options)
    plain.load_state_dict(model.state_dict())
    h, x, mask, _ = clouds()
    real = mask[..., None]
    with torch.no_grad():
        found, expected = (net(h * real, x * real, mask) for net in (model, plain))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max().clamp(min=1)


def test_messages_are_the_sum_of_the_formula():
    torch.manual_seed(0)
    layer, mask = MessageLayer(8, 2, divisor=3.0), torch.tensor([[True] * 3 + [False] * 2])
    h, a = torch.randn(1, 5, 8), torch.randn(1, 5, 5, 2)
    found, messages = layer(h, a, pair_mask(mask)), layer.edge_mlp(h, a)[0]
    total = torch.zeros(8)
    for j in (0, 2):  # the others of point 1
        total += layer.gate(messages[1, j]).sigmoid() * messages[1, j] / 3
    expected = h[0, 1] + layer.node_mlp(torch.cat([h[0, 1], total]))
    assert torch.allclose(found[0, 1], expected, atol=1e-6)  # float32


def test_tanh_bounds_a_step_by_the_reach():
    torch.manual_seed(0)
    layer = CoordinateLayer(8, 2)
    with torch.no_grad():
        layer.mlp[-1].weight.normal_(std=1e4)
    x = torch.tensor([[[0.0, 0, 0], [1e3, 0, 0]]])
    _, vectors = pair_vectors(x, 0.0)
    h, a, pairs = torch.randn(1, 2, 8), torch.randn(1, 2, 2, 2), pair_mask(torch.ones(1, 2).bool())
    went = (layer(h, x, vectors, a, pairs) - x)[0, :, 0].abs()
    # Coordinates of 1000 Å leave 1e-4 Å of precision.
    assert torch.allclose(went, torch.full((2,), 15.0), atol=1e-3)
    layer.tanh = False
    assert (layer(h, x, vectors, a, pairs) - x).abs().max() > 15


def test_a_fresh_network_hardly_moves_its_points():
    torch.manual_seed(0)
    h, x, mask, _ = clouds()
    assert largest(EGNN(5, width=16, depth=3)(h, x, mask)[1] - x, mask) < 0.5


# Pairs at one place, and waves


@each_kind
def test_gradients_are_finite_where_points_coincide(kind):
    model, (h, _, mask, edges) = network(kind), clouds()
    x = torch.zeros(3, 7, 3, requires_grad=True)
    sum(out.square().sum() for out in ask(model, h, x, mask, edges)).backward()
    gradients = [x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_vectors_point_from_j_to_i():
    x = torch.tensor([[[0.0, 0, 0], [3, 4, 0]]])
    square, vectors = pair_vectors(x, 5.0)
    assert square[0, 0, 1] == 25 and square[0, 0, 0] == 0
    # 1e-8 Å² under the root.
    assert torch.allclose(vectors[0, 1, 0], torch.tensor([0.3, 0.4, 0.0]), atol=1e-6)
    assert torch.equal(vectors, -vectors.transpose(1, 2))


def test_waves_return_after_their_length_and_carry_no_gradient():
    lengths = 15 / 4.0 ** torch.arange(6, dtype=torch.float64)
    square = lengths.square().expand(1, 6, 6).clone().requires_grad_()
    waves = distance_waves(square)
    own = torch.arange(6)
    # 1e-8 Å² under the root is a small part of the shortest wave.
    assert waves[0, 0, own, own].abs().max() < 0.02
    assert (waves[0, 0, own, 6 + own] - 1).abs().max() < 1e-3
    assert not waves.requires_grad
    assert (waves.square()[..., :6] + waves.square()[..., 6:] - 1).abs().max() < 1e-12


# Doors


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"features": 0}, "features is 0; expected a whole number, 1 or more"),
        ({"width": 2.5}, "width is 2.5; expected a whole number, 1 or more"),
        ({"depth": 0}, "depth is 0; expected a whole number, 1 or more"),
        ({"out": 0}, "out is 0; expected a whole number, 1 or more"),
        ({"inner": 0}, "inner is 0; expected a whole number, 1 or more"),
        ({"edges": -1}, "edges is -1; expected a whole number, 0 or more"),
        ({"divisor": 0.0}, "divisor is 0.0; expected a number above 0"),
        ({"norm_constant": -1.0}, "norm_constant is -1.0; expected a length of 0 Å or more"),
        ({"divisor": float("nan")}, "divisor is nan; expected a number above 0"),
    ],
)
def test_sizes_that_make_no_network(options, sentence, without_shape_checks):
    with pytest.raises(ValueError) as caught:
        EGNN(**{"features": 5, **options})
    assert str(caught.value) == sentence


def test_another_number_of_features_or_attributes():
    h, x, mask, edges = clouds()
    with pytest.raises(ValueError, match=r"^h has 4 features; expected 5, as the network$"):
        network()(h[..., :4], x, mask)
    with pytest.raises(ValueError, match=r"^edges has 3 attributes; expected 0, as the network"):
        network()(h, x, mask, edges)
    with pytest.raises(ValueError, match=r"^edges has 0 attributes; expected 3, as the network"):
        network("edges")(h, x, mask)
