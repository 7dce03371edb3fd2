"""Made pairs, their augmentation, the loss and the training: exact, repeatable, resumable."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from official import reference
from skimage.color import hsv2rgb, rgb2hsv

from fourfold.bilinear_sampling.warps import flow_grid, inside, warp
from fourfold.raft.correlation import CorrelationVolume
from fourfold.raft.encoders import freeze_batch_norm
from fourfold.raft.learning import (
    COURSE,
    HELD_OUT_PHOTOGRAPHS,
    LONG,
    MIXED,
    QUICK,
    STANDARD,
    TRAIN_PHOTOGRAPHS,
    FlowPair,
    SyntheticPairs,
    augment,
    augment_colours,
    crop_pair,
    erase,
    evaluate,
    flip_pair,
    held_out_pairs,
    load_photographs,
    random_scene,
    render,
    sequence_loss,
    shift_hue,
    similarity,
    stretch_pair,
    stretch_sparse,
    train_raft,
)
from fourfold.raft.raft import RAFT, Flow, load_raft

PHOTOGRAPHS = load_photographs(("chelsea", "brick", "coins"))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def residual(pair):
    """Mean grey levels between image 1 and image 2 read along the flow, on visible pixels."""
    grid = flow_grid(pair.flow[None])
    kept = pair.visible & inside(grid, *pair.flow.shape[1:])[0]
    gap = (warp(pair.image2[None], grid)[0] - pair.image1).abs().mean(dim=0)
    return gap[kept].mean().item()


@pytest.mark.parametrize("seed", range(6))
def test_image_2_read_along_the_flow_is_image_1(seed):
    pair = render(random_scene(PHOTOGRAPHS, (64, 80), seeded(seed), reach=12), (64, 80))
    unmoved = (pair.image2 - pair.image1).abs().mean(dim=0)[pair.visible].mean().item()
    # Two bilinear readings blur a photograph by a few grey levels; a wrong flow costs tens.
    assert residual(pair) < 7 and residual(pair) < 0.6 * unmoved + 1
    assert pair.image1.min() >= 0 and pair.image1.max() <= 255


def test_a_smooth_scene_leaves_no_residual():
    """On a ramp bilinear reading is exact, so what is left is rounding."""
    ramp = torch.linspace(20, 230, 600).expand(3, 600, 600).contiguous()
    scene = random_scene([ramp], (48, 56), seeded(2), reach=6)
    # The background alone: edges of layers mix two motions in one pixel.
    alone = scene._replace(
        textures=scene.textures[:1], **{n: getattr(scene, n)[:1] for n in scene._fields[1:]}
    )
    centred = alone.texture.clone()
    centred[0, :2, 2] = 300  # away from the border, where the mirror is no ramp
    pair = render(alone._replace(texture=centred), (48, 56))
    # float32 at positions near 300 is right to 3e-5 px, on a slope of 0.35 grey levels a pixel.
    assert residual(pair) < 1e-3


def test_what_is_hidden_is_covered_or_outside():
    H, W = 64, 80
    plain = torch.full((3, 200, 200), 100.0), torch.full((3, 200, 200), 200.0)
    scene = random_scene(plain, (H, W), seeded(0), layers=1)
    disc = similarity(
        torch.zeros(2), torch.tensor([1e-6, 0.1]), torch.zeros(2, 2), torch.zeros(2, 2)
    )
    disc[1, :2, 2] = torch.tensor([-3.0, -3.0])  # radius 10 around (30, 30)
    shift = torch.eye(3).repeat(2, 1, 1)
    shift[1, 0, 2] = 12
    scene = scene._replace(
        textures=list(plain), motion=shift, outline=disc, waves=torch.zeros_like(scene.waves)
    )
    pair = render(scene, (H, W))
    assert pair.flow[:, 30, 30].tolist() == [12, 0] and pair.flow[:, 30, 45].tolist() == [0, 0]
    assert pair.visible[30, 30]  # the disc itself stays in sight
    assert not pair.visible[30, 45]  # the background that it slides over does not
    assert pair.visible[30, 60] and pair.image2[0, 30, 42] == 200


def test_the_same_seed_gives_the_same_pairs_and_another_gives_others():
    one, again, other = (SyntheticPairs(PHOTOGRAPHS, (48, 48), seed=s)[3] for s in (1, 1, 2))
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one.image1, other.image1)
    endless = SyntheticPairs(PHOTOGRAPHS, (48, 48))
    torch.manual_seed(0)
    first, second = endless[0], endless[0]
    torch.manual_seed(0)
    assert torch.equal(endless[0].image1, first.image1)
    assert not torch.equal(first.image1, second.image1)


def test_the_sum_of_frozen_pairs_stays():
    """The shipped weights were trained on these pairs; a change would make their card untrue."""
    pair = SyntheticPairs(load_photographs(TRAIN_PHOTOGRAPHS), seed=3)[0]
    sums = [pair.image1.mean().item(), pair.image2.mean().item(), pair.flow.abs().mean().item()]
    # Other processors sum and interpolate in another order; the mean of 27,648 values hides it.
    assert sums == pytest.approx(FROZEN, rel=1e-4)
    assert pair.visible.float().mean().item() == pytest.approx(FROZEN_VISIBLE, abs=2e-3)


FROZEN = [43.8589, 38.789, 7.5639]
FROZEN_VISIBLE = 0.8115


def test_held_out_pairs_are_fixed_and_from_other_photographs():
    assert not set(HELD_OUT_PHOTOGRAPHS) & set(TRAIN_PHOTOGRAPHS)
    few, more = held_out_pairs(2, (64, 64)), held_out_pairs(3, (64, 64))
    assert few.flow.shape == (2, 2, 64, 64)
    assert all(torch.equal(a, b[:2]) for a, b in zip(few, more, strict=True))


@given(turns=st.floats(-1, 1), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_hue_is_that_of_scikit_image(turns, seed):
    image = torch.rand(3, 5, 7, generator=seeded(seed)) * 255
    hsv = rgb2hsv(image.permute(1, 2, 0).double().numpy() / 255)
    hsv[..., 0] = np.mod(hsv[..., 0] + turns, 1)
    theirs = torch.from_numpy(255 * hsv2rgb(hsv)).permute(2, 0, 1).float()
    # float32 at 255 has steps of 2e-5; the hue divides by the chroma, which may be small.
    assert torch.allclose(shift_hue(image, turns), theirs, atol=1e-2)


def test_grey_has_no_hue_and_a_full_turn_changes_nothing():
    grey = torch.full((3, 2, 2), 77.0)
    assert torch.equal(shift_hue(grey, 0.3), grey)
    image = torch.rand(3, 4, 4, generator=seeded(0)) * 255
    assert torch.allclose(shift_hue(image, 1.0), image, atol=1e-2)  # as above


def test_symmetric_jitter_is_one_draw_and_asymmetric_two():
    image = torch.rand(3, 16, 16, generator=seeded(0)) * 255
    options = {"noise": 0.0, "sizes": (0, 0)}  # nothing erased, no noise
    same = augment_colours(image, image, seeded(1), asymmetric=0.0, **options)
    assert torch.equal(*same) and not torch.equal(same[0], image)
    other = augment_colours(image, image, seeded(1), asymmetric=1.0, **options)
    assert not torch.equal(*other)


def test_the_eraser_paints_the_mean_on_one_or_two_rectangles():
    image = torch.rand(3, 40, 40, generator=seeded(0)) * 255
    erased = erase(image, seeded(2), (5, 9), probability=1.0)
    changed = (erased != image).all(dim=0)
    assert 1 <= changed.sum() <= 2 * 81
    assert torch.equal(erased[:, changed][:, 0], image.mean((1, 2)))
    assert erase(image, seeded(2), probability=0.0) is image


def constant(u, v, H=40, W=60):
    image = torch.rand(3, H, W, generator=seeded(0)) * 255
    flow = torch.tensor([u, v])[:, None, None].expand(2, H, W).clone()
    return FlowPair(image, image, flow, torch.ones(H, W, dtype=torch.bool))


def all_vectors(pair):
    return pair.flow.flatten(1).unique(dim=1).T.tolist()


def test_a_constant_motion_stays_right():
    pair = constant(3.0, -2.0)
    assert all_vectors(stretch_pair(pair, 80, 90)) == [[4.5, -4.0]]
    assert all_vectors(flip_pair(pair, "x")) == [[-3.0, -2.0]]
    assert all_vectors(flip_pair(pair, "y")) == [[3.0, 2.0]]
    assert all_vectors(crop_pair(pair, 5, 6, (20, 24))) == [[3.0, -2.0]]
    assert torch.equal(crop_pair(pair, 5, 6, (20, 24)).image1, pair.image1[:, 6:26, 5:29])


def test_a_stretch_lays_areas_on_areas():
    ramp = torch.arange(6.0).expand(3, 4, 6)
    pair = FlowPair(ramp, 2 * ramp, ramp[:2], ramp[0] < 3)
    where = (torch.arange(12) + 0.5) / 2 - 0.5  # the convention, for twice the width
    wider = stretch_pair(pair, 4, 12)
    for found, factor in ((wider.image1, 1), (wider.image2, 2), (wider.flow[:1], 2)):
        assert torch.allclose(found[0, 0], factor * where.clamp(0, 5), atol=1e-5)
    assert torch.equal(wider.visible[0], where < 2.5)


def test_a_pair_outside_the_set_is_an_index_error():
    with pytest.raises(IndexError, match="index is 4; expected 0 to 3"):
        SyntheticPairs(PHOTOGRAPHS, (16, 16), length=4)[4]


@pytest.mark.parametrize("change", ["stretch", "flip x", "flip y", "crop"])
def test_augmentation_commutes_with_the_flow(change):
    pair = render(random_scene(PHOTOGRAPHS, (64, 80), seeded(1), reach=8), (64, 80))
    changed = {
        "stretch": lambda: stretch_pair(pair, 96, 104),
        "flip x": lambda: flip_pair(pair, "x"),
        "flip y": lambda: flip_pair(pair, "y"),
        "crop": lambda: crop_pair(pair, 10, 8, (48, 56)),
    }[change]()
    # Enlarging blurs and a crop moves the share of edges, so a little more than before is right.
    assert residual(changed) < 1.3 * residual(pair) + 1


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_whole_augmentation_gives_the_crop(seed, sparse):
    pair = constant(4.0, 2.0)
    out = augment(pair, seeded(seed), (32, 40), scales=(-1.0, 0.5), sparse=sparse)
    assert out.image1.shape == (3, 32, 40) and out.visible.shape == (32, 40)
    u, v = out.flow[:, out.visible].unbind(0)
    # One zoom for the whole pair, so one vector, up to the sums of bilinear weights.
    assert u.max() - u.min() < 1e-4 and v.max() - v.min() < 1e-4
    # The zoom stops at a margin around the crop: at 33 of 40 rows if sparse, at all if dense.
    least = 33 / 40 if sparse else 1
    assert u.abs().min() >= 4 * least - 0.1 and v.abs().min() >= 2 * least - 1e-4
    assert not sparse or (v > 0).all()  # sparse pairs are not flipped from top to bottom


def test_sparse_vectors_move_one_by_one():
    pair = constant(3.0, 2.0, 20, 20)
    dots = torch.zeros(20, 20, dtype=torch.bool)
    dots[4, 6] = dots[10, 3] = dots[19, 19] = True
    flow = torch.where(dots, pair.flow, float("nan"))  # what is unknown must not spread
    larger = stretch_sparse(pair._replace(flow=flow, visible=dots), 30, 40)
    assert larger.visible.nonzero().tolist() == [[6, 12], [15, 6], [28, 38]]
    assert larger.flow[:, 6, 12].tolist() == [6, 3] and larger.flow.isfinite().all()
    smaller = stretch_sparse(pair._replace(flow=flow, visible=dots), 10, 10)
    assert smaller.visible.nonzero().tolist() == [[2, 3], [5, 2]]  # 9.5 rounds to 10, outside


def plain_loss(flows, target, valid, gamma):
    n = len(flows)
    ok = (valid >= 0.5) & (target.norm(dim=1) < 400)
    parts = [ok[:, None] * (flow - target).abs() for flow in flows]
    return sum(gamma ** (n - 1 - i) * part.mean() for i, part in enumerate(parts))


@given(st.integers(1, 5), st.floats(0.5, 1.0), st.integers(0, 99))
@settings(max_examples=20)
def test_the_loss_is_the_formula(n, gamma, seed):
    random = seeded(seed)
    flows = [torch.randn(2, 2, 4, 5, generator=random) * 9 for _ in range(n)]
    target = torch.randn(2, 2, 4, 5, generator=random) * 300
    valid = torch.rand(2, 4, 5, generator=random)
    expected = plain_loss(flows, target, valid, gamma)
    # Sums of 80 float32 numbers in another order.
    assert torch.allclose(sequence_loss(flows, target, valid, gamma), expected, rtol=1e-5)
    wrapped = [Flow(flow, flow[..., ::8, ::8]) for flow in flows]
    assert torch.equal(
        sequence_loss(wrapped, target, valid, gamma), sequence_loss(flows, target, valid, gamma)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valid": torch.zeros(1, 4, 5)}, "valid has no pixel of 20 that counts"),
        ({"target": torch.full((1, 2, 4, 5), 500.0)}, "valid has no pixel"),
        ({"target": torch.full((1, 2, 4, 5), math.nan)}, "valid has no pixel"),
        ({"flows": []}, "flows is empty; expected one estimate"),
        (
            {"flows": [torch.zeros(1, 2, 4, 4)]},
            r"flows holds one of shape \(1, 2, 4, 4\); expected",
        ),
    ],
)
def test_a_loss_of_nothing_is_an_error(without_shape_checks, change, message):
    arguments = {"flows": [torch.zeros(1, 2, 4, 5)], "target": torch.zeros(1, 2, 4, 5)} | change
    with pytest.raises(ValueError, match=message):
        sequence_loss(**arguments)


def test_an_unknown_target_does_not_spoil_the_gradient():
    flow = torch.zeros(1, 2, 1, 2, requires_grad=True)
    target = torch.tensor([math.nan, 1.0]).expand(1, 2, 1, 2)
    loss = sequence_loss([flow], target, torch.tensor([[[False, True]]]))
    loss.backward()
    assert loss.item() == 0.5 and flow.grad.isfinite().all()


def test_gradient_flows_through_the_hidden_state_alone(monkeypatch):
    asked = []
    look_up = CorrelationVolume.__call__

    def watched(self, positions):
        asked.append(positions.requires_grad)
        return look_up(self, positions)

    monkeypatch.setattr(CorrelationVolume, "__call__", watched)
    model = RAFT("small", levels=1)
    images = [torch.rand(1, 3, 32, 32, generator=seeded(k)) * 255 for k in (1, 2)]
    flows = model(*images, 3)
    assert asked == [False] * 3
    first, last = flows[0].coarse, flows[-1].coarse
    # The last estimate depends on the first by its value, not by its gradient …
    assert torch.autograd.grad(last.sum(), first, retain_graph=True, allow_unused=True) == (None,)
    # … and still on the encoder, through the state and the looked-up values.
    assert torch.autograd.grad(last.sum(), model.cnet.conv1.weight)[0].abs().sum() > 0


def test_recipes_hold_the_numbers_of_the_release():
    table = {
        "chairs": (100_000, 120_000, 10, 8, 4e-4, 2.5e-4, (368, 496), 1e-4, 0.8),
        "things": (100_000, 120_000, 6, 5, 1.25e-4, 1e-4, (400, 720), 1e-4, 0.8),
        "sintel": (100_000, 120_000, 6, 5, 1.25e-4, 1e-4, (368, 768), 1e-5, 0.85),
        "kitti": (50_000, 50_000, 6, 5, 1e-4, 1e-4, (288, 960), 1e-5, 0.85),
    }
    assert list(STANDARD) == list(MIXED) == list(table)
    for stage, row in table.items():
        one, two = STANDARD[stage], MIXED[stage]
        found = (one.steps, two.steps, one.batch, two.batch, one.learning_rate, two.learning_rate)
        assert (*found, one.crop, one.weight_decay, one.gamma) == row
        assert two.crop == one.crop and two.gamma == one.gamma and one.overrun == 100
        assert one.freeze == (stage != "chairs") and one.iterations == 12
    assert "200 × KITTI" in STANDARD["sintel"].data


def test_the_course_s_recipe_is_that_of_its_weights():
    # Two levels: on a third, of 3 × 3, a window of 7 × 7 always hangs over the border.
    assert (COURSE.variant, COURSE.levels, COURSE.crop) == ("small", 2, (96, 96))
    assert load_raft().levels == COURSE.levels
    assert (COURSE.batch, COURSE.iterations, COURSE.learning_rate) == (6, 5, 8e-4)
    assert (COURSE.weight_decay, COURSE.gamma, COURSE.overrun) == (1e-5, 0.8, 0)
    assert not COURSE.masked and not COURSE.freeze and COURSE.augment
    assert (LONG.crop, LONG.batch, LONG.reach) == ((192, 192), 2, 36.0)
    # What a stage takes over must fit: the model, not the pairs.
    assert (LONG.variant, LONG.levels) == (COURSE.variant, COURSE.levels)


TINY = QUICK._replace(crop=(32, 32), levels=2, batch=1, iterations=1, steps=3)


def tiny_pairs():
    return SyntheticPairs(PHOTOGRAPHS, TINY.crop, augment=False)


def test_training_is_repeatable_and_resumable(tmp_path, monkeypatch):
    monkeypatch.setenv("FOURFOLD_SCALE", "cpu")
    options = {"progress": False, "seed": 5}
    straight, records = train_raft(TINY, tiny_pairs(), **options)
    assert not straight.training and len(records) == 3
    for minutes, steps in ((0, 1), (0, 2), (None, 3)):
        resumed, log = train_raft(TINY, tiny_pairs(), folder=tmp_path, minutes=minutes, **options)
        assert len(log) == steps
    assert [r.loss for r in log] == [r.loss for r in records]
    states = zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


def test_a_recipe_s_overrun_lengthens_the_schedule(monkeypatch):
    monkeypatch.setenv("FOURFOLD_SCALE", "cpu")
    _, short = train_raft(TINY, tiny_pairs(), progress=False, steps=2)
    _, long = train_raft(TINY._replace(overrun=100), tiny_pairs(), progress=False, steps=2)
    # The second step is past the warm-up of a schedule of two and within that of 102.
    rate = TINY.learning_rate
    assert [r.learning_rate for r in short] == pytest.approx([0.04 * rate, rate / 1.9])
    assert long[1].learning_rate < 0.5 * short[1].learning_rate


def test_a_frozen_batch_norm_keeps_its_mean_and_trains_its_scale():
    model = RAFT("full", levels=1).train()
    freeze_batch_norm(model)
    before = model.cnet.norm1.running_mean.clone()
    images = [torch.rand(1, 3, 32, 32, generator=seeded(k)) * 255 for k in (1, 2)]
    sequence_loss(model(*images, 1), torch.ones(1, 2, 32, 32)).backward()
    assert torch.equal(model.cnet.norm1.running_mean, before)
    assert model.cnet.norm1.weight.grad.abs().sum() > 0 and model.fnet.training


def test_errors_are_means_over_all_and_over_visible_pixels():
    pairs = held_out_pairs(3, (32, 32))
    model = RAFT("small", levels=1)
    flow = model.estimate(pairs.image1, pairs.image2, 2).full
    wrong = (flow - pairs.flow).norm(dim=1)
    found = evaluate(model, pairs, 2, batch=2)
    # A batch of another size may sum in another order.
    assert found.everywhere == pytest.approx(wrong.mean().item(), rel=1e-4)
    assert found.visible == pytest.approx(wrong[pairs.visible].mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_scene([], (8, 8), seeded(0)), "photographs is empty"),
        (
            lambda: random_scene(PHOTOGRAPHS, (8,), seeded(0)),
            "size is .*expected two whole numbers",
        ),
        (lambda: random_scene(PHOTOGRAPHS, (0, 8), seeded(0)), "H is 0; expected a whole number"),
        (
            lambda: random_scene(PHOTOGRAPHS, (8, 8), seeded(0), reach=-1.0),
            "reach is -1.0; expected",
        ),
        (lambda: random_scene(PHOTOGRAPHS, (8, 8), seeded(0), layers=0), "layers is 0; expected"),
        (lambda: SyntheticPairs(PHOTOGRAPHS, length=0), "length is 0; expected"),
        (lambda: flip_pair(constant(1.0, 1.0), "z"), "axis is 'z'; expected 'x' or 'y'"),
        (lambda: crop_pair(constant(1.0, 1.0), 30, 0, (20, 40)), "not inside 40 × 60 pixels"),
        (lambda: augment(constant(1.0, 1.0), seeded(0), (64, 64)), "pair has 40 × 60 pixels"),
    ],
)
def test_bad_input_is_named(without_shape_checks, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_official_loss():
    """Their truth holds masked and over-long vectors; test_parity.py has the model's loss."""
    official = reference("raft_small_train")
    target, valid = official["flow"].float(), official["valid"].float()
    assert (target.norm(dim=1) >= 400).any() and (valid < 0.5).any()
    flows = [torch.zeros_like(target)] * 2
    expected = plain_loss(flows, target, valid, 0.8)
    assert torch.allclose(sequence_loss(flows, target, valid), expected, rtol=1e-5)  # as above
