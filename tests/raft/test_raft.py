"""The whole model as its users meet it: sizes, batches, modes, warm starts, weights, errors."""

import inspect
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from official import official_state_dict, shapes

from fourfold.kit.images import photograph
from fourfold.raft import raft
from fourfold.raft.correlation import CorrelationVolume
from fourfold.raft.raft import (
    PUBLISHED,
    RAFT,
    VARIANTS,
    from_published_names,
    least_size,
    load_raft,
    our_name,
    published_sizes,
    refine,
    volume_bytes,
)

# Batches, threads and sizes of a matrix product change the last digits of features by 1e-5 (see
# tests/reference/README.md); some iterations make pixels of it.
CLOSE = {"atol": 2e-3, "rtol": 0}


@pytest.fixture(scope="module")
def model():
    return load_raft()


@pytest.fixture(scope="module")
def pair():
    image = photograph("coffee", height=120)
    return image[..., 10:82, 10:106], image[..., 12:84, 13:109]


def test_the_core_is_readable_on_one_page():
    source = inspect.getsource(RAFT)
    core = source[: source.index("    @classmethod")]  # without the loading of weights
    assert len(core.splitlines()) < 120


@pytest.mark.parametrize(("variant", "count"), [("full", 5_257_536), ("small", 990_162)])
def test_parameters_are_as_many_as_published(variant, count):
    assert sum(p.numel() for p in RAFT(variant).parameters()) == count


def test_a_batch_is_its_pairs(model, pair):
    first, second = pair
    batch = model.estimate(torch.cat([first, second]), torch.cat([second, first]), 3)
    for n, (one, two) in enumerate([(first, second), (second, first)]):
        alone = model.estimate(one[0], two[0], 3)
        assert alone.full.ndim == 3
        assert torch.allclose(batch.full[n], alone.full, **CLOSE)
        assert torch.allclose(batch.coarse[n], alone.coarse, **CLOSE)


def test_estimate_is_the_last_of_forward(model, pair):
    with torch.no_grad():
        flows = model(*pair, 4)
    last = model.estimate(*pair, 4)
    assert torch.allclose(last.full, flows[-1].full, **CLOSE) and len(flows) == 4


def test_more_iterations_begin_with_the_same_flows(model, pair):
    with torch.no_grad():
        few, many = model(*pair, 2), model(*pair, 5)
    for short, long in zip(few, many, strict=False):
        assert torch.allclose(short.full, long.full, **CLOSE)


@pytest.mark.parametrize("cut", [(0, 1), (3, 0), (7, 5)])
def test_any_size_is_that_of_repeated_borders_cut_back(model, pair, cut):
    from fourfold.raft.fields import pad, unpad

    first, second = (image[..., : 72 - cut[0], : 96 - cut[1]] for image in pair)
    found = model.estimate(first, second, 2)
    (padded1, padding), (padded2, _) = pad(first), pad(second)
    expected = model.estimate(padded1, padded2, 2)
    assert found.full.shape[2:] == first.shape[2:]
    assert torch.allclose(found.full, unpad(expected.full, padding), **CLOSE)
    assert torch.allclose(found.coarse, expected.coarse, **CLOSE)


def test_shifting_both_images_shifts_the_flow_away_from_borders():
    """By one coarse pixel, without a pyramid, whose squares would not shift with it."""
    torch.manual_seed(0)
    model = RAFT("small", levels=1)
    world = photograph("coffee", height=150)[..., :128, :128].repeat(1, 1, 3, 3)
    first, second = (world[..., k : k + 256, k : k + 256] for k in (0, 2))
    later1, later2 = (world[..., 8 + k : 264 + k, 8 + k : 264 + k] for k in (0, 2))
    before = model.estimate(first, second, 1).coarse
    after = model.estimate(later1, later2, 1).coarse
    apart = (after[..., 15:17, 15:17] - before[..., 16:18, 16:18]).abs().max()
    unshifted = (after[..., 15:17, 15:17] - before[..., 15:17, 15:17]).abs().max()
    # The image repeats itself, so instance norms see the same pixels, but for those near borders.
    assert apart < unshifted / 5


def test_estimate_gives_every_part_its_mode_back(pair):
    model = RAFT("full", levels=3).train()
    model.cnet.norm1.eval()  # as training with a frozen batch norm does
    modes = [part.training for part in model.modules()]
    model.estimate(*pair, 1)
    assert [part.training for part in model.modules()] == modes
    with pytest.raises(ValueError):
        model.estimate(pair[0], pair[1] / 0, 1)
    assert [part.training for part in model.modules()] == modes


def test_estimate_keeps_no_gradients_and_forward_does(model, pair):
    assert not model.estimate(*pair, 1).full.requires_grad
    assert model(*pair, 1)[0].full.requires_grad


def test_a_start_of_zero_is_no_start_and_another_counts(model, pair):
    zero = torch.zeros(1, 2, 9, 12)
    cold = model.estimate(*pair, 2)
    assert torch.equal(model.estimate(*pair, 2, zero).full, cold.full)
    assert torch.equal(model.estimate(pair[0][0], pair[1][0], 2, zero[0]).full, cold.full[0])
    assert not torch.allclose(model.estimate(*pair, 2, zero + 2).full, cold.full, **CLOSE)


def test_changes_are_added_to_the_start():
    """The loop alone, with an update that always says 1."""

    def update(h, share, windows, flow):
        return h, torch.ones_like(flow)

    h = torch.zeros(1, 1, 2, 3)
    flows = [f for f, _ in refine(update, lambda p: p, h, h, torch.full((1, 2, 2, 3), 7.0), 3)]
    assert [f.unique().item() for f in flows] == [8, 9, 10]


def test_gradients_stop_at_the_flow_and_pass_the_state():
    weight = torch.ones((), requires_grad=True)

    def update(h, share, windows, flow):
        return h * weight, weight * (h[:, :2] + windows + flow)

    h, flow = torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    seen = []
    *_, (last, _) = refine(update, lambda p: seen.append(p) or p, h, h, flow, 4)
    # The last change is weight · (weight³ + position + flow), its position and flow constants.
    expected = 4 + (seen[-1] + seen[-1] - seen[0])[0, 0, 1, 1]
    assert torch.autograd.grad(last[0, 0, 1, 1], weight)[0] == expected


def test_on_demand_gives_the_flow_of_all_pairs(model, pair):
    other = load_raft(correlation="on-demand")
    assert torch.allclose(other.estimate(*pair, 3).full, model.estimate(*pair, 3).full, **CLOSE)


@settings(max_examples=20)  # each draws the pyramid
@given(
    levels=st.integers(1, 4),
    height=st.integers(64, 300),
    width=st.integers(64, 300),
)
def test_memory_is_that_of_the_volume(levels, height, width):
    H, W = -(-height // 8), -(-width // 8)
    features = torch.zeros(1, 1, H, W)
    volume = CorrelationVolume(features, features, levels).levels
    assert volume_bytes(height, width, levels) == sum(level.nbytes for level in volume)


# --- bad input -------------------------------------------------------------------------------


def with_nan(image):
    return image.masked_fill(image > 100, torch.nan)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda a, b: (a[..., :20, :], b[..., :20, :]), ValueError, "expected at least 32 × 32"),
        (lambda a, b: (a[..., :20, :], b[..., :20, :]), ValueError, "levels=1"),
        (lambda a, b: (a, b[..., 1:]), ValueError, "image2 has shape"),
        (lambda a, b: (a.byte(), b.byte()), TypeError, "image1 has dtype torch.uint8"),
        (lambda a, b: (a / 255, b / 255), ValueError, r"expected \[0, 255\], not \[0, 1\]"),
        (lambda a, b: (a / 127.5 - 1, b / 127.5 - 1), ValueError, "image1 has no value over 1"),
        (lambda a, b: (a, 2 * b), ValueError, "image2 has values from"),
        (lambda a, b: (with_nan(a), b), ValueError, "image1 has values from nan"),
        (lambda a, b: (a[:, :1], b[:, :1]), ValueError, "expected \\(B, 3, H, W\\)"),
        (lambda a, b: (a[..., :0], b[..., :0]), ValueError, "expected \\(B, 3, H, W\\)"),
        (lambda a, b: (a, b[0]), ValueError, "image2 has shape \\(3,"),
        (lambda a, b: (a.numpy(), b), TypeError, "image1 is a ndarray; expected a tensor"),
    ],
)
def test_bad_images_are_named(without_shape_checks, model, pair, change, error, words):
    with pytest.raises(error, match=words):
        model.estimate(*change(*pair))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"iterations": 0}, ValueError, "iterations is 0; expected a whole number, 1 or more"),
        ({"initial_flow": torch.zeros(1, 2, 9, 11)}, ValueError, "expected \\(1, 2, 9, 12\\)"),
        ({"initial_flow": torch.zeros(1, 2, 9, 12).long()}, TypeError, "initial_flow has dtype"),
        ({"initial_flow": torch.full((1, 2, 9, 12), torch.inf)}, ValueError, "not finite"),
    ],
)
def test_bad_options_are_named(without_shape_checks, model, pair, options, error, words):
    with pytest.raises(error, match=words):
        model.estimate(*pair, **options)


def test_forward_says_which_function_pads(model, pair):
    with pytest.raises(ValueError, match="expected multiples of 8"):
        model(pair[0][..., :71, :], pair[1][..., :71, :])


@pytest.mark.parametrize(
    "wrong", [{"variant": "tiny"}, {"correlation": "none"}, {"levels": 0}, {"radius": -1}]
)
def test_a_model_that_is_none(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RAFT(**wrong)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_least_size_is_enough_and_one_step_less_is_not(levels):
    torch.manual_seed(0)
    side, model = least_size(levels), RAFT("small", levels=levels)
    image = 255 * torch.rand(1, 3, side, side)
    assert model.estimate(image, image, 2).full.isfinite().all()
    with pytest.raises(ValueError, match=f"expected at least {side} × {side}"):
        model.estimate(image[..., 8:], image[..., 8:])


# --- weights ---------------------------------------------------------------------------------


def test_every_key_that_does_not_fit_is_named():
    state = official_state_dict("small")
    del state["fnet.conv1.bias"], state["cnet.layer2.0.conv1.weight"]
    state["update_block.odd"] = torch.zeros(1)
    state["fnet.conv2.bias"] = torch.zeros(5)
    with pytest.raises(ValueError) as error:
        RAFT.from_official(state)
    for words in (
        "missing fnet.conv1.bias",
        "missing cnet.layer2.0.conv1",
        "unexpected update_block",
    ):
        assert words in str(error.value)
    assert "fnet.conv2.bias has shape (5,); expected (128,)" in str(error.value)


def test_weights_of_the_other_variant():
    with pytest.raises(ValueError, match="weights of the full RAFT; expected small"):
        RAFT.from_official(official_state_dict("full"), variant="small")
    assert RAFT.from_official(official_state_dict("full"), variant="full").variant == "full"


@pytest.mark.parametrize("wrong", [[1], {"a": 1}, {1: torch.zeros(1)}, {}, {"a": torch.zeros(1)}])
def test_what_is_no_weights(without_shape_checks, wrong):
    with pytest.raises(ValueError, match="state_dict"):
        RAFT.from_official(wrong)


def test_a_norm_with_two_values():
    state = official_state_dict("full")
    state["cnet.layer2.0.norm3.weight"] = state["cnet.layer2.0.norm3.weight"] + 1
    with pytest.raises(ValueError, match=r"two values for cnet\.layer2\.0\.downsample\.1"):
        from_published_names(state)


def test_a_name_of_ours_stays():
    for variant in VARIANTS:
        ours = RAFT(variant).state_dict()
        assert list(from_published_names(ours)) == list(ours)
        assert all(our_name(name) == name for name in ours)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("levels", [1, 3, 4])
@pytest.mark.parametrize("change", [0, -1, 1])
def test_sizes_are_read_from_shapes(variant, levels, change):
    radius = VARIANTS[variant].radius + change
    tensors = RAFT(variant, levels=levels, radius=radius).state_dict()
    assert published_sizes(tensors) == (variant, levels, radius)


def test_no_two_pairs_of_levels_and_radius_read_the_same_number():
    numbers = [L * (2 * r + 1) ** 2 for L in range(1, 9) for r in range(9)]
    assert len(set(numbers)) == len(numbers)


def test_the_course_weights_match_their_card(tmp_path, monkeypatch):
    home = raft.data_path("checkpoints")
    for ending in ("safetensors", "json"):
        shutil.copy(home / f"raft_small.{ending}", tmp_path)
    path = tmp_path / "raft_small.safetensors"
    assert load_raft(path).levels == load_raft(str(path)).levels == load_raft().levels
    card = json.loads((tmp_path / "raft_small.json").read_text())
    (tmp_path / "raft_small.json").write_text(json.dumps(card | {"sha256": "0" * 64}))
    with pytest.raises(ValueError, match="expected 0000"):
        load_raft(path)


def test_a_file_of_torch_loads_and_one_with_code_does_not(tmp_path):
    state = {f"module.{name}": value for name, value in official_state_dict("small").items()}
    torch.save(state, tmp_path / "raft-small.pth")
    assert load_raft(tmp_path / "raft-small.pth").variant == "small"
    torch.save({"a": print}, tmp_path / "code.pt")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "raft-small.pth").read_bytes()[:1000])
    for name in ("code.pt", "cut.pth"):
        with pytest.raises(ValueError, match=f"{name} is not a whole file of tensors"):
            load_raft(tmp_path / name)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="raft_small_C_T_V2"):
        load_raft("raft_medium")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_raft(tmp_path / "none.pth")


def test_a_published_name_is_downloaded_with_its_digits(tmp_path, monkeypatch):
    torch.save(official_state_dict("small"), tmp_path / "small.pth")
    asked = []
    monkeypatch.setattr(
        raft, "download", lambda *said: asked.append(said) or tmp_path / "small.pth"
    )
    assert load_raft("raft_small_C_T_V2").variant == "small"
    url = "https://download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth"
    assert asked == [(url, "01064c6d")]
    assert len(PUBLISHED) == 8 and all(len(digits) == 8 for digits in PUBLISHED.values())


def test_the_reference_lists_every_shape_of_the_models():
    keys = json.loads((raft.data_path().parent / "tests/reference/raft_keys.json").read_text())
    for variant in VARIANTS:
        ours = {n: list(t.shape) for n, t in RAFT(variant).state_dict().items()}
        theirs = from_published_names(
            {n: torch.zeros(shape) for n, shape in shapes(keys[f"raft_{variant}"]).items()}
        )
        assert ours == {n: list(t.shape) for n, t in theirs.items()}
