"""The denoiser against the official numbers, its invariances, its sentences."""

import functools
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fourfold.graph_dit import denoiser
from fourfold.graph_dit.denoiser import (
    Attention,
    Block,
    CategoryEncoder,
    ClusterEncoder,
    ConditionEncoder,
    GraphDiT,
    OutputLayer,
    TimeEncoder,
    modulate,
    time_waves,
)

REFERENCE = Path(__file__).parents[1] / "reference"
OFFICIAL = 1e-5  # of numbers up to 1, and relative beyond: float32 sums in another order
CONFIG = {"width": 64, "depth": 3, "heads": 4}
CONDITIONS = {
    "reg": [("numeric", 2), *[("numeric", 1)] * 3],
    "cls": [("numeric", 2), ("categorical", 2)],
}


@functools.cache
def info():
    return json.loads((REFERENCE / "graphdit_info.json").read_text())


@functools.cache
def official():
    with np.load(REFERENCE / "graphdit_denoiser.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def official_parameter(name, shape):
    """The value that the frozen numbers were made with: a pure function of name and shape."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if len(shape) >= 2:
        values = values / math.sqrt(shape[1])
    elif name.endswith(".weight"):
        values = 1 + 0.1 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(values.astype(np.float32))


def official_weights(kind):
    return {name: official_parameter(name, s) for name, s in info()[f"keys_{kind}"].items()}


def official_model(kind, **options):
    weights = official_weights(kind)
    return GraphDiT.from_official(weights, heads=4, max_atoms=9, **options).eval()


def our_name(name):
    shape = info()["keys_reg"].get(name) or info()["keys_cls"][name]
    return next(iter(denoiser._renamed({name: torch.zeros(shape)})))


def noisy_graph():
    of = official()
    return of["X_t"].float(), of["E_t"].float(), of["mask"]


def scores(model, kind="reg", y=None, **options):
    y = official()[f"y_{kind}"] if y is None else y
    with torch.no_grad():
        return model(*noisy_graph(), official()["t"].view(-1), y, **options)


def off(ours, theirs):
    """The largest difference, relative where the official number is larger than 1."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max().item()


def losses(outputs):
    """Cross-entropies of real atoms and of ordered pairs of different real atoms."""
    X0, E0, mask = official()["X0"], official()["E0"], official()["mask"]
    pairs = E0.sum(dim=-1) > 0
    atoms = F.cross_entropy(outputs[0][mask], X0[mask].long().argmax(-1))
    bonds = F.cross_entropy(outputs[1][pairs], E0[pairs].long().argmax(-1))
    return atoms, bonds, atoms + 10 * bonds


# The official numbers


def test_the_parameters_are_those_of_the_frozen_numbers():
    weights = official_weights("reg")
    for name, (total, absolute) in info()["weight_checksums_reg"].items():
        values = weights[name].double()
        assert values.sum().item() == pytest.approx(total, abs=1e-9 * max(1, absolute))
        assert values.abs().sum().item() == pytest.approx(absolute, rel=1e-9)


@pytest.mark.parametrize("kind", ["reg", "cls"])
@pytest.mark.parametrize("way", ["cond", "uncond"])
def test_official_scores(kind, way):
    ours = scores(official_model(kind), kind, unconditional=way == "uncond")
    for part, name in zip(ours, "XE", strict=True):
        assert off(part, official()[f"{kind}_{way}_{name}"]) <= OFFICIAL


def test_official_scores_of_a_row_with_a_missing_property():
    ours = scores(official_model("reg"), y=official()["y_nan"])
    for part, name in zip(ours, "XE", strict=True):
        assert off(part, official()[f"reg_nan_{name}"]) <= OFFICIAL


@pytest.mark.parametrize("kind", ["reg", "cls"])
def test_official_middle(kind):
    model, seen = official_model(kind), {}
    model.embed.register_forward_hook(lambda _, given, out: seen.update(h0=out))
    model.blocks[0].register_forward_hook(lambda _, given, out: seen.update(c=given[1], block0=out))
    scores(model, kind)
    for name in ("h0", "c", "block0"):
        assert off(seen[name], official()[f"{kind}_{name}"]) <= OFFICIAL, name


@pytest.mark.parametrize("kind", ["reg", "cls"])
def test_official_losses_and_gradients(kind):
    model = official_model(kind)
    outputs = model(*noisy_graph(), official()["t"].view(-1), official()[f"y_{kind}"])
    ours = losses(outputs)
    for loss, theirs in zip(ours, official()[f"{kind}_loss"], strict=True):
        assert loss.item() == pytest.approx(theirs.item(), rel=OFFICIAL)
    ours[2].backward()
    named = dict(model.named_parameters())
    theirs = {our_name(name): norm for name, norm in info()[f"gradnorm_{kind}"].items()}
    assert theirs.keys() == named.keys()
    for name, norm in theirs.items():
        gradient = named[name].grad
        found = 0.0 if gradient is None else gradient.norm().item()
        assert found == pytest.approx(norm, abs=OFFICIAL * max(1, norm)), name


@pytest.mark.parametrize("kind", ["reg", "cls"])
def test_what_is_zero_at_the_start(kind):
    model = GraphDiT(8, 9, CONDITIONS[kind], **CONFIG)
    zero = {name for name, p in model.named_parameters() if (p == 0).all()}
    assert zero == {our_name(name) for name in info()[f"default_init_zero_{kind}"]}


@pytest.mark.parametrize("kind", ["reg", "cls"])
def test_names_and_shapes(kind):
    model = official_model(kind)
    assert model.condition.conditions == CONDITIONS[kind]
    ours = {name: list(p.shape) for name, p in model.named_parameters()}
    assert ours == {our_name(name): shape for name, shape in info()[f"keys_{kind}"].items()}


# What the official numbers would notice


def pre_norm(self, H, c, pairs):
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaln(c).chunk(6, dim=-1)
    H = H + gate_1[:, None] * self.attention(modulate(self.norm(H), shift_1, scale_1), pairs)
    return H + gate_2[:, None] * self.mlp(modulate(self.norm(H), shift_2, scale_2))


def gate_first(self, H, c, pairs):
    gate_1, shift_1, scale_1, gate_2, shift_2, scale_2 = self.adaln(c).chunk(6, dim=-1)
    H = H + gate_1[:, None] * modulate(self.norm(self.attention(H, pairs)), shift_1, scale_1)
    return H + gate_2[:, None] * modulate(self.norm(self.mlp(H)), shift_2, scale_2)


def without_mask(self, H, pairs):
    return attend(self, H, torch.ones_like(pairs))


attend = Attention.forward
MUTATIONS = {
    "norm before the branch": lambda patch: patch.setattr(Block, "forward", pre_norm),
    "gates first": lambda patch: patch.setattr(Block, "forward", gate_first),
    "no mask": lambda patch: patch.setattr(Attention, "forward", without_mask),
    "sines first": lambda patch: patch.setattr(
        denoiser, "time_waves", lambda t, w: time_waves(t, w).roll(w // 2, dims=-1)
    ),
    "time times 1000": lambda patch: patch.setattr(
        denoiser, "time_waves", lambda t, w: time_waves(1000 * t, w)
    ),
    "scale without 1": lambda patch: patch.setattr(
        denoiser, "modulate", lambda H, shift, scale: H * scale[:, None] + shift[:, None]
    ),
    "bonds of one end": lambda patch: patch.setattr(
        denoiser, "_symmetric", lambda bonds, mask: bonds
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_official_numbers_notice(name, monkeypatch):
    MUTATIONS[name](monkeypatch)
    X, E = scores(official_model("reg"))
    assert max(off(X, official()["reg_cond_X"]), off(E, official()["reg_cond_E"])) > 100 * OFFICIAL


@pytest.mark.parametrize("part", ["q_norm", "k_norm", "gelu", "time's code", "noisy graph"])
def test_the_official_numbers_notice_a_part(part):
    model = official_model("reg")
    for block in model.blocks:
        if part.endswith("norm"):
            setattr(block.attention, part, nn.Identity())
        elif part == "gelu":
            block.mlp[1] = nn.GELU(approximate="tanh")
    if part == "time's code":
        model.time.mlp[2].bias.data.zero_()
    X, _ = scores(model)
    if part == "noisy graph":
        X = X - official()["X_t"]
    # GELU by tanh is the smallest of these changes: some 1e-4 in the scores.
    assert off(X, official()["reg_cond_X"]) > 3 * OFFICIAL


def test_the_official_numbers_notice_what_a_missing_property_drops():
    X, _ = scores(official_model("reg", missing="property"), y=official()["y_nan"])
    assert off(X, official()["reg_nan_X"]) > 100 * OFFICIAL


# Weights of the release


def test_a_checkpoint_of_lightning():
    weights = {f"model.{name}": value for name, value in official_weights("reg").items()}
    extra = {"noise_schedule.betas": torch.zeros(51), "train_loss.total": torch.zeros(())}
    model = GraphDiT.from_official({**weights, **extra}, heads=4, max_atoms=9).eval()
    assert torch.equal(scores(model)[0], scores(official_model("reg"))[0])


def test_weights_trained_without_dropping():
    weights = {n: v for n, v in official_weights("reg").items() if "embedding_drop" not in n}
    model = GraphDiT.from_official(weights, heads=4, max_atoms=9).eval()
    assert all((encoder.dropped == 0).all() for encoder in model.condition.encoders)
    assert torch.equal(scores(model)[0], scores(official_model("reg"))[0])


def test_options_go_to_the_model():
    model = official_model("reg", condition_noise=0.0, drop_condition=0.2, missing="property")
    about = model.condition
    assert (about.noise, about.drop, about.missing) == (0.0, 0.2, "property")


def test_a_block_of_another_width_is_read_from_the_shapes():
    theirs = GraphDiT(8, 9, width=16, depth=2, heads=2, mlp_ratio=3)
    assert denoiser._sizes(theirs.state_dict(), 9)["mlp_ratio"] == 3


def without(*names):
    return {k: v for k, v in official_weights("reg").items() if not k.startswith(names)}


@pytest.mark.parametrize(
    ("weights", "options", "sentence"),
    [
        ({}, {}, "state_dict has no x_embedder.weight; expected the weights of Graph DiT"),
        ({"weight": torch.zeros(3)}, {}, "state_dict has no x_embedder.weight"),
        (None, {"max_atoms": 11}, "max_atoms is 11; expected at most 10, since a row of .* 53"),
        (None, {"max_atoms": 0}, "max_atoms is 0; expected a whole number, 1 or more"),
        (None, {"heads": 8}, r"q_norm.weight has shape \(16,\); expected \(8,\)"),
        (None, {"heads": 5}, "width is 64; expected a multiple of heads, 5"),
        (("encoders.1.mlp",), {}, "does not fit the model: missing blocks.1.mlp.0.bias"),
        (("y_embedding_list.1",), {}, "state_dict has no y_embedding_list.1; expected 4 of them"),
        (("out_layer",), {}, "missing output.adaln.first.bias"),
    ],
)
def test_weights_that_do_not_fit(weights, options, sentence):
    if not isinstance(weights, dict):
        weights = without(*weights) if weights else official_weights("reg")
    with pytest.raises(ValueError, match=sentence):
        GraphDiT.from_official(weights, **{"heads": 4, "max_atoms": 9, **options})


def test_a_smaller_number_of_atoms_is_noticed_by_the_graphs():
    model = GraphDiT.from_official(official_weights("reg"), heads=4, max_atoms=8)
    assert model.atom_types == 13
    with pytest.raises(ValueError, match=r"X has shape \(6, 9, 8\); expected \(B, 8, 13\)"):
        scores(model)


# Invariances


def opened(atom_types=4, max_atoms=6, conditions=(("numeric", 1),), seed=0, **options):
    """A small model in eval mode with all weights random, AdaLN's too."""
    torch.manual_seed(seed)
    sizes = {"width": 16, "depth": 2, "heads": 2, **options}
    model = GraphDiT(atom_types, max_atoms, conditions, **sizes).eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model


def graphs(sizes, A=4, N=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(N) < torch.tensor(sizes)[:, None]
    atoms = torch.randint(A, mask.shape, generator=generator)
    bonds = torch.randint(5, (*mask.shape, N), generator=generator).triu(1)
    X = F.one_hot(atoms, A).float() * mask[..., None]
    E = F.one_hot(bonds + bonds.mT, 5).float() * (mask[:, :, None] & mask[:, None])[..., None]
    return X, E, mask


def reordered(X, E, mask, order):
    return X[:, order], E[:, order][:, :, order], mask[:, order]


def tie_places(model):
    """Give all places the same weights in the embedding and in the output layer."""
    rows = [model.embed.weight.T, model.output.mlp[2].weight, model.output.mlp[2].bias]
    rows += [half for p in model.output.adaln.second.parameters() for half in p.chunk(2)]
    with torch.no_grad():
        for weight in rows:
            slots = weight[model.atom_types :].unflatten(0, (model.max_atoms, 5))
            slots.copy_(slots.mean(dim=0).expand_as(slots))
    return model


orders = st.permutations(range(6)).map(list)
TIME, Y = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([[0.3], [-1.0], [math.nan]])


@settings(max_examples=20)
@given(order=orders)
def test_a_block_is_equivariant(order):
    block = opened().blocks[0].double()
    H, c = torch.randn(3, 6, 16).double(), torch.randn(3, 16).double()
    mask = graphs([6, 4, 1])[2]
    pairs = (mask[:, None, :, None] & mask[:, None, None]) | ~mask[:, None, :, None]
    ours = block(H[:, order], c, pairs[:, :, order][..., order])
    assert torch.allclose(ours, block(H, c, pairs)[:, order], atol=1e-12)


@settings(max_examples=20)
@given(order=orders)
def test_a_model_with_tied_places_is_equivariant(order):
    model, graph = tie_places(opened()), graphs([6, 4, 1])
    X, E = model(*graph, TIME, Y)
    moved = model(*reordered(*graph, order), TIME, Y)
    # float32 sums in another order, of scores up to 10
    assert torch.allclose(moved[0], X[:, order], atol=1e-4)
    assert torch.allclose(moved[1], E[:, order][:, :, order], atol=1e-4)


def test_places_with_weights_of_their_own_are_not_equivariant():
    """A fact of the release: a token holds its bonds by place."""
    model, graph = opened(), graphs([6, 6, 6])
    order = [3, 1, 0, 5, 4, 2]
    X, _ = model(*graph, TIME, Y)
    moved, _ = model(*reordered(*graph, order), TIME, Y)
    assert (moved - X[:, order]).abs().max() > 0.1


def test_scores_of_bonds_are_symmetric_and_zero_where_there_is_no_pair():
    graph = graphs([6, 4, 1])
    X, E = opened()(*graph, TIME, Y)
    assert torch.equal(E, E.transpose(1, 2))
    assert (E.diagonal(dim1=1, dim2=2) == 0).all()
    assert (X[~graph[2]] == 0).all() and (E[1, 4:] == 0).all() and (E[2] == 0).all()


def test_graphs_of_a_batch_do_not_meet():
    model, graph = opened(), graphs([6, 4, 1])
    together = model(*graph, TIME, Y)
    for b in range(3):
        alone = model(*(part[b : b + 1] for part in graph), TIME[b : b + 1], Y[b : b + 1])
        for one, many in zip(alone, together, strict=True):
            assert torch.allclose(one[0], many[b], atol=1e-5)


def test_what_stands_in_a_missing_place_does_not_matter():
    model, (X, E, mask) = opened(), graphs([6, 4, 1])
    real = mask[:, :, None] & mask[:, None]
    before = model(X, E, mask, TIME, Y)
    other = (X + 3 * ~mask[..., None], E + 3 * ~mask[:, :, None, None], mask)
    for one, two in zip(before, model(*other, TIME, Y), strict=True):
        kept = mask if one.ndim == 3 else real
        assert torch.allclose(one[kept], two[kept], atol=1e-5)


@pytest.mark.parametrize("sizes", [[1], [0], [1, 0, 6]])
def test_no_nan_for_a_lone_atom_or_none(sizes):
    model, graph = opened().train(), graphs(sizes)
    X, E = model(*graph, torch.full((len(sizes),), 0.5), torch.zeros(len(sizes), 1))
    (X.square().sum() + E.square().sum()).backward()
    assert X.isfinite().all() and E.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_largest_graph_has_one_atom():
    model = opened(max_atoms=1)
    X, E = model(*graphs([1], N=1), torch.tensor([0.5]), torch.zeros(1, 1))
    assert X.shape == (1, 1, 4) and (E == 0).all()


def test_time_may_be_a_column():
    model, graph = opened(), graphs([6, 4, 1])
    for one, two in zip(model(*graph, TIME, Y), model(*graph, TIME[:, None], Y), strict=True):
        assert torch.equal(one, two)


def test_a_double_model():
    model, (X, E, mask) = opened().double(), graphs([6, 4, 1])
    ours = model(X.double(), E.double(), mask, TIME, Y.double())[0]
    assert ours.dtype == torch.float64
    # The waves are float32 in both.
    assert torch.allclose(ours.float(), opened()(X, E, mask, TIME, Y)[0], atol=1e-4)


def test_half_precision_by_autocast():
    model, graph = opened(), graphs([6, 4, 1])
    full = model(*graph, TIME, Y)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = model(*graph, TIME, Y)[0]
    assert (half.float() - full).abs().max() < 0.05 * full.abs().max()  # 8 binary digits


# The start of a training


def newborn(depth=3):
    torch.manual_seed(0)
    return GraphDiT(4, 6, [("numeric", 1)], width=16, depth=depth, heads=2, condition_noise=0.0)


def test_at_the_start_a_block_changes_nothing():
    model, changes = newborn().eval(), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, out: changes.append((given[0], out)))
    graph = graphs([6, 4, 1])
    first = model(*graph, TIME, Y)
    assert len(changes) == 3 and all(torch.equal(H, out) for H, out in changes)
    for one, two in zip(first, model(*graph, 1 - TIME, Y + 2), strict=True):
        assert torch.equal(one, two), "neither time nor properties are heard"


def test_at_the_start_the_output_is_the_norm_and_the_noisy_graph():
    model, (X, E, mask) = newborn().eval(), graphs([6, 4, 1])
    rows = torch.cat([X, E.flatten(2)], dim=-1)
    plain = F.layer_norm(model.output.mlp(model.embed(rows)), (34,))
    ours = model(X, E, mask, TIME, Y)[0]
    assert torch.allclose(ours, (X + plain[..., :4]) * mask[..., None], atol=1e-6)
    assert (ours - X)[mask].std() > 0.3, "it is not the identity"


def test_what_learns_in_the_first_step_and_in_the_second():
    model, graph = newborn(), graphs([6, 4, 3])
    learns = []
    for _ in range(2):
        model.zero_grad()
        sum(part.square().mean() for part in model(*graph, TIME, Y[[0, 1, 1]])).backward()
        grads = {n: p.grad is not None and p.grad.any() for n, p in model.named_parameters()}
        learns.append({name for name, moved in grads.items() if moved})
        for p in model.parameters():
            p.data -= 0.1 * (0 if p.grad is None else p.grad)
    waiting = ("time.", "condition.", "attention.", ".mlp.")
    assert not [n for n in learns[0] if any(w in n for w in waiting) and "output" not in n]
    assert "blocks.0.adaln.first.weight" in learns[0] and "embed.weight" in learns[0]
    assert {"time.mlp.0.weight", "condition.encoders.0.assign.weight"} <= learns[1]
    assert {"blocks.0.attention.qkv.weight", "blocks.0.mlp.0.weight"} <= learns[1]


# Conditions


def clusters(y, drop, seed=0):
    torch.manual_seed(seed)
    encoder = ClusterEncoder(1, 5)
    return encoder, encoder(torch.tensor(y)[:, None], torch.tensor(drop))


def test_a_soft_assignment_by_distance():
    encoder, _ = clusters([0.0], [False])
    centres = torch.linspace(-1, 1, 5)
    encoder.assign.weight.data, encoder.assign.bias.data = 6 * centres[:, None], -3 * centres**2
    encoder.represent.weight.data = torch.eye(5)
    ours = encoder(torch.tensor([[0.3]]), torch.tensor([False]))
    assert torch.allclose(ours[0], torch.softmax(-3 * (0.3 - centres) ** 2, dim=0), atol=1e-6)


def test_a_missing_number_leaves_no_nan_in_the_gradients():
    encoder, code = clusters([math.nan, 0.5], [True, False])
    assert torch.equal(code[0], encoder.dropped[0])
    code.sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_large_values_end_in_one_cluster():
    _, code = clusters([1e4, 5e4, 1e30], [False] * 3)
    assert torch.equal(code[0], code[1]) and torch.equal(code[1], code[2])


def test_a_category_is_a_row():
    encoder = CategoryEncoder(3, 4)
    y = torch.tensor([[2.0], [0.0], [math.nan], [9.0]])
    ours = encoder(y, torch.tensor([False, False, True, True]))
    assert torch.equal(ours, encoder.table.weight[[2, 0, 3, 3]])


MIXED = [("numeric", 2), ("categorical", 3), ("numeric", 1)]
ROWS = torch.tensor([[0.1, 0.2, 1.0, 0.3], [0.1, math.nan, 1.0, 0.3], [0.1, 0.2, math.nan, 0.3]])


def of_parts(encoder, drops):
    """The sum of codes when these properties of each row are dropped."""
    parts = [ROWS[:, :2], ROWS[:, 2:3], ROWS[:, 3:]]
    drops = torch.tensor(drops)
    return sum(
        e(p, drops[:, i]) for i, (e, p) in enumerate(zip(encoder.encoders, parts, strict=True))
    )


@pytest.mark.parametrize(
    ("missing", "drops"),
    [
        ("row", [[False] * 3, [True] * 3, [True] * 3]),
        ("property", [[False] * 3, [True, False, False], [False, True, False]]),
    ],
)
def test_what_a_missing_value_drops(missing, drops):
    torch.manual_seed(0)
    encoder = ConditionEncoder(MIXED, 8, missing=missing).eval()
    assert torch.allclose(encoder(ROWS), of_parts(encoder, drops), atol=1e-6)
    assert torch.allclose(
        encoder(ROWS, unconditional=True), of_parts(encoder, [[True] * 3] * 3), atol=1e-6
    )


def test_a_row_without_any_property_is_unconditional():
    encoder = ConditionEncoder(MIXED, 8).eval()
    nothing = torch.full((2, 4), math.nan)
    assert torch.equal(encoder(nothing), encoder(ROWS[:2], unconditional=True))


@pytest.mark.parametrize("drop", [0.0, 0.1, 0.5, 1.0])
def test_how_often_training_drops(drop):
    """Each property of each graph for itself; three deviations of a count of 20,000."""
    torch.manual_seed(0)
    encoder = ConditionEncoder([("numeric", 1)] * 2, 2, drop=drop, noise=0.0)
    with torch.no_grad():
        for k, each in enumerate(encoder.encoders):  # a dropped property adds 1 to number k
            each.dropped[:] = torch.eye(2)[k]
            each.represent.weight.zero_()
        said = encoder(torch.zeros(20_000, 2))
        assert (encoder.eval()(torch.zeros(9, 2)) == 0).all()
    margin = 3 * math.sqrt(drop * (1 - drop) / 20_000)
    assert said.mean(dim=0).tolist() == pytest.approx([drop, drop], abs=margin + 1e-9)
    both = said.prod(dim=1).mean().item()
    assert both == pytest.approx(drop**2, abs=3 * math.sqrt(drop**2 / 20_000) + 1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_noise_on_each_code_in_training(noise):
    torch.manual_seed(0)
    encoder = ConditionEncoder([("numeric", 1)] * 4, 16, drop=0.0, noise=noise)
    y = torch.zeros(2000, 4)
    difference = encoder(y) - encoder.eval()(y)
    # Four codes with noise of their own; 32,000 numbers give the deviation to half a percent.
    assert difference.std().item() == pytest.approx(2 * noise, rel=0.02, abs=1e-5)


def test_a_code_at_the_start_is_about_one_over_its_width():
    for width in (64, 256):
        torch.manual_seed(0)
        code = GraphDiT(4, 6, width=width, depth=0, heads=1).eval().condition(torch.randn(200, 1))
        assert 0.5 < code.square().mean().sqrt().item() * width < 2


def test_a_model_without_conditions():
    model, graph = opened(conditions=()), graphs([6, 4, 1])
    X, _ = model(*graph, TIME, torch.zeros(3, 0))
    assert X.isfinite().all()


# Layers against plain forms


@settings(max_examples=30)
@given(times=st.lists(st.floats(0, 1), min_size=1, max_size=5), half=st.integers(1, 130))
def test_waves_equal_equation_1(times, half):
    ours = time_waves(torch.tensor(times), 2 * half)
    for time, row in zip(times, ours.tolist(), strict=True):
        angles = [time * 10_000 ** (-k / half) for k in range(half)]
        expected = [*map(math.cos, angles), *map(math.sin, angles)]
        assert row == pytest.approx(expected, abs=1e-6)  # angles up to 1 in float32


def test_attention_equals_loops():
    torch.manual_seed(0)
    layer, H = Attention(12, 3).double(), torch.randn(2, 5, 12).double()
    layer.k_norm.weight.data.uniform_(0.5, 2)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    pairs = (mask[:, None, :, None] & mask[:, None, None]) | ~mask[:, None, :, None]
    ours = layer(H, pairs)
    q, k, v = layer.qkv(H).chunk(3, dim=-1)
    for b in range(2):
        for i in mask[b].nonzero()[:, 0].tolist():
            mixed = []
            for cut in (slice(0, 4), slice(4, 8), slice(8, 12)):
                fit = layer.q_norm(q[b, i, cut]) @ layer.k_norm(k[b][mask[b]][:, cut]).T / 2
                mixed.append(fit.softmax(dim=-1) @ v[b][mask[b]][:, cut])
            assert torch.allclose(layer.proj(torch.cat(mixed)), ours[b, i], atol=1e-12)


def test_modulate_sets_mean_and_deviation():
    H = F.layer_norm(7 + 3 * torch.randn(2, 4, 32).double(), (32,))
    told = modulate(H, torch.full((2, 32), -2.0).double(), torch.full((2, 32), 0.5).double())
    assert told.mean(dim=-1).flatten().tolist() == pytest.approx([-2] * 8)
    # LayerNorm adds 1e-5 to the variance.
    assert told.std(dim=-1, correction=0).flatten().tolist() == pytest.approx([1.5] * 8, rel=1e-4)


def test_gradients_of_a_block():
    torch.manual_seed(0)
    block = Block(4, 2).double()
    H, c = torch.randn(1, 3, 4).double().requires_grad_(), torch.randn(1, 4).double()
    pairs = torch.tensor([[True, True, False], [True, True, False], [True, True, True]])[None, None]
    assert torch.autograd.gradcheck(lambda H, c: block(H, c, pairs), (H, c.requires_grad_()))


def test_shapes_of_the_layers():
    assert TimeEncoder(8)(torch.zeros(3)).shape == (3, 8)
    assert OutputLayer(8, 13)(torch.zeros(2, 5, 8), torch.zeros(2, 8)).shape == (2, 5, 13)


# Sentences

GRAPH = graphs([6, 4, 1])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: GraphDiT(4, 6, width=100, heads=16), "width is 100; expected a multiple of head"),
        (lambda: GraphDiT(0, 6), "atom_types is 0; expected a whole number, 1 or more"),
        (lambda: GraphDiT(4, 0), "max_atoms is 0; expected a whole number, 1 or more"),
        (lambda: GraphDiT(4, 6, depth=-1), "depth is -1; expected a whole number, 0 or more"),
        (lambda: GraphDiT(4, 6, width=0), "width is 0; expected a whole number, 1 or more"),
        (lambda: GraphDiT(4, 6, heads=0), "heads is 0; expected a whole number, 1 or more"),
        (lambda: GraphDiT(4, 6, mlp_ratio=0), "mlp_ratio is 0; expected a whole number, 1 or m"),
        (lambda: GraphDiT(4, 6, missing="all"), "missing is 'all'; expected 'row' or 'property'"),
        (lambda: GraphDiT(4, 6, drop_condition=1.5), "drop is 1.5; expected a chance from 0 to 1"),
        (lambda: GraphDiT(4, 6, condition_noise=-1), "noise is -1; expected a standard deviation"),
        (lambda: GraphDiT(4, 6, [("number", 1)]), "conditions holds 'number'; expected 'numeric'"),
        (lambda: GraphDiT(4, 6, [("numeric", 0)]), "size of a numeric condition is 0; expected a"),
        (lambda: GraphDiT(4, 6, [("categorical", 1)]), "size of a categorical condition is 1; ex"),
        (lambda: opened()(*GRAPH, TIME, torch.zeros(3, 2)), r"y has 2 columns; expected 1, for t"),
        (lambda: opened()(*GRAPH, TIME, Y / 0), "y holds an infinite value; expected numbers"),
        (lambda: opened()(*GRAPH, 50 * TIME, Y), r"time reaches from 5 to 45; expected t / T in"),
        (lambda: opened()(*GRAPH, TIME * math.nan, Y), "time reaches from nan to nan; expected"),
        (lambda: opened(max_atoms=7)(*GRAPH, TIME, Y), r"X has shape \(3, 6, 4\); expected \(B, 7"),
        (
            lambda: opened()(GRAPH[0], GRAPH[1][..., :4], GRAPH[2], TIME, Y),
            r"E has shape \(3, 6, 6, 4\); expected \(B, 6, 6, 5\)",
        ),
        (lambda: time_waves(TIME, 7), "width is 7; expected an even number"),
        (lambda: time_waves(TIME, 0), "width is 0; expected a whole number, 2 or more"),
        *[
            (
                lambda y=y: CategoryEncoder(2, 4)(torch.tensor([[y]]), torch.tensor([False])),
                sentence,
            )
            for y, sentence in (
                (2.0, "y holds the class 2; expected a whole number from 0 to 1"),
                (-1.0, "y holds the class -1; expected a whole number from 0 to 1"),
                (0.5, "y holds the class 0.5; expected a whole number from 0 to 1"),
                (math.nan, "y holds the class nan; expected a whole number from 0 to 1"),
            )
        ],
    ],
)
def test_bad_input_is_named(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
