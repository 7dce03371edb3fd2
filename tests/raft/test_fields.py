"""Flow fields: measures against loops, padding, warm start and files against the official ones."""

import io
import math
import struct

import hypothesis.strategies as st
import numpy as np
import png
import pytest
import torch
from hypothesis import given
from official import official_state_dict, reference

from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.kit.drawing import flow_to_image
from fourfold.kit.images import stereo_pair
from fourfold.raft import fields
from fourfold.raft.fields import (
    classical_flow,
    end_point_error,
    end_point_error_per_image,
    end_point_errors,
    forward_interpolate,
    occluded,
    outlier_rate,
    pad,
    photometric_errors,
    read_flo,
    read_kitti_flow,
    round_trip_errors,
    share_within,
    unpad,
    write_flo,
    write_kitti_flow,
)
from fourfold.raft.raft import RAFT

MEASURES = {
    "end_point_error": end_point_error,
    "end_point_error_per_image": end_point_error_per_image,
    "outlier_rate": outlier_rate,
    "share_within": lambda flow, target, valid=None: share_within(flow, target, 3, valid),
}
each_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
SUM = 1e-5  # relative: what the order of some hundred float32 additions may change


def random_flows(seed, size=(2, 2, 5, 7), length=8.0):
    generator = torch.Generator().manual_seed(seed)
    flow, target = (length * torch.randn(size, generator=generator) for _ in range(2))
    valid = torch.rand(size[0], *size[2:], generator=generator) < 0.6
    valid[:, 0, 0] = True
    return flow, target, valid


@pytest.fixture
def official():
    return reference("raft_utils")


# Measures


def by_loop(flow, target, valid):
    """The error and the true length of each valid pixel, image by image, in float64."""
    for k in range(len(flow)):
        pixels = valid[k].nonzero().tolist()
        ends = [(flow[k, :, y, x].tolist(), target[k, :, y, x].tolist()) for y, x in pixels]
        yield [(math.dist(a, b), math.hypot(*b)) for a, b in ends]


@given(st.integers(0, 1000))
def test_measures_are_those_of_a_loop(seed):
    flow, target, valid = random_flows(seed)
    images = list(by_loop(flow, target, valid))
    pooled = [pair for image in images for pair in image]
    assert end_point_error(flow, target, valid).item() == pytest.approx(
        sum(error for error, _ in pooled) / len(pooled), rel=SUM
    )
    per_image = [sum(error for error, _ in image) / len(image) for image in images]
    assert end_point_error_per_image(flow, target, valid).tolist() == pytest.approx(
        per_image, rel=SUM
    )
    outliers = [error > 3 and error > 0.05 * length for error, length in pooled]
    # One float32 division.
    assert outlier_rate(flow, target, valid).item() == pytest.approx(
        sum(outliers) / len(pooled), rel=1e-6
    )
    for n in (1, 3, 5):
        inside = sum(error < n for error, _ in pooled) / len(pooled)
        assert share_within(flow, target, n, valid).item() == pytest.approx(inside, rel=1e-6)


@each_measure
def test_without_a_mask_every_pixel_counts(measure):
    flow, target, valid = random_flows(1)
    assert torch.equal(measure(flow, target), measure(flow, target, torch.ones_like(valid)))


@pytest.mark.parametrize(
    ("error", "length", "outlier"),
    [
        (3.0, 0.0, False),
        (3.5, 0.0, True),
        (3.5, 68.0, True),
        (3.5, 72.0, False),
        (2.9, 1.0, False),
        (8.0, 160.0, False),  # 5 % exactly, as exact as float32 holds 0.05
        (8.5, 160.0, True),
    ],
)
def test_an_outlier_breaks_both_limits(error, length, outlier):
    target = torch.tensor([0.0, length]).view(1, 2, 1, 1)
    flow = target + torch.tensor([error, 0.0]).view(1, 2, 1, 1)
    assert outlier_rate(flow, target).item() == outlier


def test_a_distance_is_a_strict_limit():
    flow = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    assert share_within(flow, 0 * flow, 5).item() == 0
    assert share_within(flow, 0 * flow, 5.01).item() == 1


@torch.no_grad()
def test_the_training_metrics_of_the_release():
    """Its logs count the pixels whose truth is valid and shorter than 400 px."""
    numbers = reference("raft_small_train")
    model = RAFT.from_official(official_state_dict("small"))
    flow = model(numbers["image1"].float(), numbers["image2"].float(), 3)[-1].full
    target = numbers["flow"].float()
    counted = (numbers["valid"] >= 0.5) & (target.norm(dim=1) < 400)
    error, *shares = numbers["metrics_frozen"].tolist()
    # The flow agrees to 2e-4 px, which may move a pixel or two of 32,768 over a limit.
    assert end_point_error(flow, target, counted).item() == pytest.approx(error, abs=2e-4)
    for distance, share in zip((1, 3, 5), shares, strict=True):
        ours = share_within(flow, target, distance, counted).item()
        assert ours == pytest.approx(share, abs=1e-4)


@each_measure
@pytest.mark.parametrize("hole", [math.nan, math.inf, 1e30])
def test_what_stands_in_a_hole_does_not_matter(measure, hole):
    flow, target, valid = random_flows(2)
    expected = measure(flow, target, valid)
    for values in (flow, target):
        values.masked_fill_(~valid[:, None], hole)
    assert torch.equal(measure(flow, target, valid), expected)


def test_a_nan_in_a_hole_reaches_no_gradient():
    flow, target, valid = random_flows(3)
    target.masked_fill_(~valid[:, None], math.nan)
    flow.requires_grad_()
    end_point_error(flow, target, valid).backward()
    assert flow.grad.isfinite().all()
    assert torch.equal(flow.grad.abs().sum(dim=1) > 0, valid)


@each_measure
@pytest.mark.parametrize("where", ["flow", "target"])
def test_a_nan_that_counts_is_named(measure, where):
    flow, target, valid = random_flows(4)
    {"flow": flow, "target": target}[where][0, 1, 0, 0] = math.nan
    with pytest.raises(ValueError, match=f"^{where} has 1 numbers that are not finite"):
        measure(flow, target, valid)


@each_measure
def test_a_mean_over_nothing_is_refused(measure):
    flow, target, valid = random_flows(5)
    with pytest.raises(ValueError, match=r"^valid is False everywhere"):
        measure(flow, target, torch.zeros_like(valid))


def test_every_image_needs_a_pixel_of_its_own():
    flow, target, valid = random_flows(6)
    valid[1] = False
    with pytest.raises(ValueError, match="everywhere in image 1"):
        end_point_error_per_image(flow, target, valid)
    assert end_point_error(flow, target, valid).isfinite()


@each_measure
@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"flow": torch.zeros(2, 3, 5, 7)}, ValueError, r"^flow has shape \(2, 3, 5, 7\)"),
        ({"flow": torch.zeros(2, 5, 7)}, ValueError, r"^flow has shape \(2, 5, 7\)"),
        ({"flow": torch.zeros(2, 2, 0, 7)}, ValueError, "^flow has shape"),
        ({"target": torch.zeros(1, 2, 5, 7)}, ValueError, "^target has shape.*that of flow"),
        ({"target": torch.zeros(2, 2, 5, 7).long()}, TypeError, "^target has dtype"),
        ({"flow": np.zeros((2, 2, 5, 7))}, TypeError, "^flow is a ndarray"),
        ({"valid": torch.ones(2, 5, 7)}, TypeError, "^valid has dtype torch.float32"),
        ({"valid": torch.ones(2, 1, 5, 7).bool()}, ValueError, "^valid has shape"),
        ({"valid": np.ones((2, 5, 7), bool)}, TypeError, "^valid is a ndarray"),
    ],
)
def test_wrong_arguments_of_a_measure(without_shape_checks, measure, changes, kind, message):
    flow, target, valid = random_flows(7)
    arguments = {"flow": flow, "target": target, "valid": valid} | changes
    with pytest.raises(kind, match=message):
        measure(arguments["flow"], arguments["target"], valid=arguments["valid"])


@pytest.mark.parametrize("distance", [0, -1, math.nan])
def test_a_distance_is_positive(distance):
    flow, target, _ = random_flows(8)
    with pytest.raises(ValueError, match=r"^distance is"):
        share_within(flow, target, distance)


def test_errors_in_half_precision_do_not_overflow():
    flow = torch.full((1, 2, 8, 8), 300.0, dtype=torch.float16)
    errors = end_point_errors(flow, torch.zeros_like(flow))
    assert errors.dtype == torch.float32
    assert end_point_error(flow, torch.zeros_like(flow)).item() == pytest.approx(
        300 * math.sqrt(2), rel=SUM
    )


# Without a truth


def smooth_flow(seed, size=(24, 32)):
    generator = torch.Generator().manual_seed(seed)
    small = torch.randn(1, 2, 3, 4, generator=generator)
    return torch.nn.functional.interpolate(small, size=size, mode="bilinear", align_corners=True)


def test_the_right_flow_explains_the_images():
    x, y = pixel_grid(20, 24).unbind(-1)
    flow = torch.stack([0.5 + 0.02 * x, 0.25 - 0.01 * y])[None]
    image2 = (3 * x + 5 * y)[None, None]
    image1 = image2 + (3 * flow[:, :1] + 5 * flow[:, 1:])
    errors = photometric_errors(image1, image2, flow)
    # Grey levels up to 170 in float32: a few steps of 1.5e-5.
    assert errors[errors.isfinite()].max() < 2e-4
    assert errors.isfinite().float().mean() > 0.8
    assert photometric_errors(image1, image2, -flow)[0, 10, 12] > 1


@given(st.integers(0, 100))
def test_a_difference_is_nan_exactly_where_the_flow_leaves(seed):
    image = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(seed))
    flow = 3 * smooth_flow(seed, (7, 9))
    x, y = (pixel_grid(7, 9) + flow[0].permute(1, 2, 0)).unbind(-1)
    lands = (x >= 0) & (x <= 8) & (y >= 0) & (y <= 6)
    assert torch.equal(photometric_errors(image, image, flow)[0].isfinite(), lands)


def test_images_of_whole_numbers_are_refused(without_shape_checks):
    image, flow = torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 5)
    with pytest.raises(TypeError, match=r"^image2 has dtype torch.uint8"):
        photometric_errors(image, image.byte(), flow)


def test_channels_are_averaged():
    image = torch.zeros(1, 3, 2, 2)
    other = torch.tensor([3.0, 0.0, -9.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert photometric_errors(image, other, torch.zeros(1, 2, 2, 2)).tolist() == [[[4, 4], [4, 4]]]


@pytest.mark.parametrize(
    ("image1", "image2", "flow", "message"),
    [
        ((1, 3, 4, 5), (1, 3, 4, 6), (1, 2, 4, 5), "^image2 has shape"),
        ((1, 3, 4, 5), (1, 1, 4, 5), (1, 2, 4, 5), "^image2 has shape"),
        ((3, 4, 5), (3, 4, 5), (1, 2, 4, 5), "^image1 has shape"),
        ((1, 3, 4, 5), (1, 3, 4, 5), (1, 2, 4, 6), "^image1 has shape"),
        ((1, 3, 4, 5), (1, 3, 4, 5), (1, 3, 4, 5), "^flow has shape"),
    ],
)
def test_wrong_shapes_of_images(without_shape_checks, image1, image2, flow, message):
    with pytest.raises(ValueError, match=message):
        photometric_errors(*(torch.zeros(shape) for shape in (image1, image2, flow)))


@given(st.integers(0, 100))
def test_a_slide_returns_from_its_round_trip(seed):
    u, v = (4 * torch.rand(2, generator=torch.Generator().manual_seed(seed)) - 2).tolist()
    slide = torch.tensor([u, v]).view(1, 2, 1, 1).expand(1, 2, 9, 11)
    misses = round_trip_errors(slide, -slide)
    kept = misses.isfinite()
    # The sum of four bilinear weights is 1 to a few roundings of float32.
    assert misses[kept].max() < 1e-5
    x, y = pixel_grid(9, 11).unbind(-1)
    lands = (x + u >= 0) & (x + u <= 10) & (y + v >= 0) & (y + v <= 8)
    assert torch.equal(kept[0], lands)
    assert torch.equal(occluded(slide, -slide)[0], ~lands)


def test_the_rule_of_occlusion_in_numbers():
    forward = torch.tensor([30.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 3, 64).contiguous()
    for miss, marked in ((4.0, False), (4.4, True)):
        backward = -forward.clone()
        backward[:, 0] += miss
        limit = 0.01 * (30**2 + (30 - miss) ** 2) + 0.5
        assert (miss**2 > limit) == marked
        assert occluded(forward, backward)[0, 1, 5].item() == marked


def test_a_nan_counts_as_occluded():
    flow = torch.zeros(1, 2, 4, 4)
    flow[0, 0, 1, 2] = math.nan
    assert occluded(flow, torch.zeros_like(flow)).nonzero().tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("function", [round_trip_errors, occluded])
def test_wrong_shapes_of_a_round_trip(without_shape_checks, function):
    with pytest.raises(ValueError, match=r"^backward has shape.*that of forward"):
        function(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 5))
    with pytest.raises(TypeError, match=r"^forward has dtype"):
        function(torch.zeros(1, 2, 4, 4).int(), torch.zeros(1, 2, 4, 4))


# Padding


def test_paddings_of_the_release(official):
    for H, W, mode, *expected in official["padder_table"].tolist():
        _, padding = pad(torch.zeros(1, 1, H, W), ("sintel", "kitti")[mode])
        assert list(padding) == expected, (H, W, mode)


@pytest.mark.parametrize("mode", ["sintel", "kitti"])
def test_padded_pixels_of_the_release(official, mode):
    padded, padding = pad(official["pad_x"], mode)
    assert torch.equal(padded, official[f"pad_{mode}"])
    assert torch.equal(unpad(padded, padding), official["pad_x"])


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.sampled_from(["sintel", "kitti"])
)
def test_unpad_undoes_pad(H, W, multiple, mode):
    image = torch.rand(2, 1, H, W)
    padded, padding = pad(image, mode, multiple)
    assert [size % multiple for size in padded.shape[2:]] == [0, 0]
    assert padded.shape[2] - H < multiple and padded.shape[3] - W < multiple
    assert torch.equal(unpad(padded, padding), image)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((torch.zeros(1, 3, 5, 5), "chairs"), ValueError, "^mode is 'chairs'"),
        ((torch.zeros(1, 3, 5, 5), "sintel", 0), ValueError, "^multiple is 0"),
        ((torch.zeros(1, 3, 5, 5), "sintel", 8.0), ValueError, "^multiple is 8.0"),
        ((torch.zeros(3, 5, 5),), ValueError, r"^image has shape \(3, 5, 5\)"),
        ((torch.zeros(1, 3, 0, 5),), ValueError, "^image has shape"),
        ((torch.zeros(1, 3, 5, 5).byte(),), TypeError, "^image has dtype torch.uint8"),
        ((np.zeros((1, 3, 5, 5)),), TypeError, "^image is a ndarray"),
    ],
)
def test_wrong_arguments_of_pad(without_shape_checks, arguments, kind, message):
    with pytest.raises(kind, match=message):
        pad(*arguments)


@pytest.mark.parametrize(
    "padding", [(3, 2, 0, 0), (0, 0, 4, 0), (-1, 0, 0, 0), (0.5, 0, 0, 0), (1, 1)]
)
def test_wrong_padding(without_shape_checks, padding):
    with pytest.raises(ValueError, match=r"^padding is"):
        unpad(torch.zeros(1, 1, 4, 5), padding)


# Warm start


def test_the_warm_start_of_the_release(official):
    """Bit equality: every number is one of the given ones."""
    assert torch.equal(forward_interpolate(official["fi_flow"][None])[0], official["fi_out"])


def test_a_slide_is_carried_to_itself():
    slide = torch.tensor([1.5, -0.5]).view(1, 2, 1, 1).expand(1, 2, 6, 8)
    assert torch.equal(forward_interpolate(slide), slide)


def test_arrows_on_the_first_row_and_column_are_dropped():
    flow = torch.zeros(1, 2, 4, 4)
    flow[0, 0, 0, 1:], flow[0, 1, 1:, 0] = 0.25, 0.125  # they stay on row 0 and on column 0
    flow[0, :, 1:, 1:] = 0.0625
    assert forward_interpolate(flow).unique().tolist() == [0.0625]


def test_a_start_has_no_gradient_and_the_dtype_of_the_flow():
    flow = smooth_flow(0, (6, 8)).double().requires_grad_()
    start = forward_interpolate(flow)
    assert start.dtype == torch.float64 and not start.requires_grad


@pytest.mark.parametrize(
    ("flow", "kind", "message"),
    [
        (
            torch.full((1, 2, 3, 3), math.nan),
            ValueError,
            "^flow has 18 numbers that are not finite",
        ),
        (torch.zeros(2, 3, 3), ValueError, "^flow has shape"),
        (torch.zeros(1, 2, 3, 3).int(), TypeError, "^flow has dtype"),
    ],
)
def test_wrong_flows_of_a_warm_start(without_shape_checks, flow, kind, message):
    with pytest.raises(kind, match=message):
        forward_interpolate(flow)


# Files


def test_flo_bytes_of_the_release(official, tmp_path):
    path, flow = tmp_path / "deep" / "a.flo", official["flo_flow"].permute(2, 0, 1)
    write_flo(path, flow)
    assert path.read_bytes() == official["flo_bytes"].numpy().tobytes()
    assert torch.equal(read_flo(path)[0], flow)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 100))
def test_reading_gives_what_was_written(tmp_path_factory, H, W, seed):
    path = tmp_path_factory.getbasetemp() / "b.flo"
    flow = 1e3 * torch.randn(1, 2, H, W, generator=torch.Generator().manual_seed(seed))
    write_flo(str(path), flow)
    assert torch.equal(read_flo(str(path)), flow)


def test_unknown_motion_is_kept(tmp_path):
    flow = torch.tensor([math.nan, 1.6e9, -math.inf, -0.0]).view(1, 2, 1, 2)
    write_flo(tmp_path / "c.flo", flow)
    assert torch.equal(read_flo(tmp_path / "c.flo").view(torch.int32), flow.view(torch.int32))


def test_the_marks_bytes_are_the_number_of_the_format():
    assert struct.unpack("<f", fields._FLO_MARK) == (202021.25,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a file of 0 bytes"),
        (b"PIEH\x01\x00", "a file of 6 bytes"),
        (b"HEIP" + bytes(16), "begins with b'HEIP'"),
        (b"PIEH" + struct.pack("<2i", 1, 1) + bytes(7), "expected 20 for the 1 × 1"),
        (b"PIEH" + struct.pack("<2i", 1, 1) + bytes(9), "expected 20 for the 1 × 1"),
        (b"PIEH" + struct.pack("<2i", -1, -1) + bytes(8), "-1 × -1"),
        (b"PIEH" + struct.pack("<2i", 0, 5), "0 × 5"),
        (b"PIEH" + struct.pack("<2i", 2**31 - 1, 2**31 - 1), "2147483647 × 2147483647"),
    ],
)
def test_a_file_that_is_no_flo_file(tmp_path, data, message):
    path = tmp_path / "d.flo"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_flo(path)
    assert str(path) in str(caught.value)


WRITERS = {"flo": write_flo, "png": write_kitti_flow}
READERS = {"flo": read_flo, "png": read_kitti_flow}


@pytest.mark.parametrize("ending", WRITERS)
def test_a_path_without_a_file(tmp_path, ending):
    with pytest.raises(FileNotFoundError):
        READERS[ending](tmp_path / f"none.{ending}")


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("shape", [(2, 2, 3, 3), (3, 3), (1, 3, 3, 3), (2, 0, 3)])
def test_one_flow_a_file(without_shape_checks, tmp_path, ending, shape):
    with pytest.raises(ValueError, match=r"^flow has shape"):
        WRITERS[ending](tmp_path / "e", torch.zeros(shape))
    with pytest.raises(TypeError, match=r"^flow has dtype"):
        WRITERS[ending](tmp_path / "e", torch.zeros(2, 3, 3).long())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", WRITERS)
def test_a_failed_write_leaves_the_old_file(tmp_path, ending, monkeypatch):
    path, flow = tmp_path / f"f.{ending}", torch.ones(1, 2, 3, 3)
    WRITERS[ending](path, flow)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        WRITERS[ending](path, 2 * flow)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_kitti_file_of_the_release(official, tmp_path):
    path = tmp_path / "g.png"
    path.write_bytes(official["kitti_png"].numpy().tobytes())
    flow, valid = read_kitti_flow(path)
    assert torch.equal(flow[0], official["kitti_back"].permute(2, 0, 1))
    assert torch.equal(valid[0].float(), official["kitti_valid"])


def samples(path):
    """The numbers in a PNG of 16 bits, (H, W, 3)."""
    width, height, rows, about = png.Reader(filename=str(path)).read()
    assert (about["planes"], about["bitdepth"]) == (3, 16)
    return np.array([list(row) for row in rows]).reshape(height, width, 3)


def test_kitti_numbers_of_the_release(official, tmp_path):
    """The same flow written by both holds the same numbers; only the compression may differ."""
    (tmp_path / "theirs.png").write_bytes(official["kitti_png"].numpy().tobytes())
    write_kitti_flow(tmp_path / "ours.png", official["kitti_in"].permute(2, 0, 1))
    assert np.array_equal(samples(tmp_path / "ours.png"), samples(tmp_path / "theirs.png"))


@given(st.integers(0, 1000))
def test_a_turn_through_kitti_cuts_less_than_a_step_and_a_second_nothing(tmp_path_factory, seed):
    path = tmp_path_factory.getbasetemp() / "h.png"
    generator = torch.Generator().manual_seed(seed)
    flow = 1020 * torch.rand(1, 2, 4, 5, generator=generator) - 510
    valid = torch.rand(1, 4, 5, generator=generator) < 0.7
    write_kitti_flow(path, flow, valid)
    once, once_valid = read_kitti_flow(path)
    assert torch.equal(once_valid, valid)
    assert (once * ~valid[:, None] == 0).all()
    lost = (flow - once)[valid[:, None].expand_as(flow)]
    # float32 rounds 64 u + 2¹⁵ to 1/256, so a number may rise by half of that, in steps of 1/64.
    assert (lost >= -(2.0**-15)).all() and (lost < 1 / 64).all()
    write_kitti_flow(path, once, once_valid)
    assert torch.equal(read_kitti_flow(path)[0], once)


def test_what_is_not_valid_is_stored_as_zeros(tmp_path):
    flow = torch.full((2, 1, 2), 3.0)
    flow[:, 0, 1] = math.nan
    write_kitti_flow(tmp_path / "i.png", flow, torch.tensor([[True, False]]))
    assert samples(tmp_path / "i.png").tolist() == [[[32960, 32960, 1], [0, 0, 0]]]


@pytest.mark.parametrize("value", [512.0, -512.0001, math.nan, math.inf])
def test_a_number_out_of_range_writes_no_file(tmp_path, value):
    with pytest.raises(ValueError, match=r"^flow has a valid number outside"):
        write_kitti_flow(tmp_path / "j.png", torch.full((2, 2, 2), value))
    assert list(tmp_path.iterdir()) == []


def test_the_ends_of_the_range(tmp_path):
    ends = torch.tensor([-512.0, 511.984375]).view(1, 2, 1, 1)
    for flow in (ends, torch.tensor([-512.0, 511.99997]).view(1, 2, 1, 1)):
        write_kitti_flow(tmp_path / "k.png", flow)
        assert torch.equal(read_kitti_flow(tmp_path / "k.png")[0], ends)


@pytest.mark.parametrize(
    ("valid", "kind"),
    [
        (torch.ones(2, 2), TypeError),
        (torch.ones(2, 3).bool(), ValueError),
        (np.ones((2, 2), bool), TypeError),
    ],
)
def test_wrong_masks_for_kitti(without_shape_checks, tmp_path, valid, kind):
    with pytest.raises(kind, match=r"^valid "):
        write_kitti_flow(tmp_path / "l.png", torch.zeros(2, 2, 2), valid)


def png_of(**options):
    buffer = io.BytesIO()
    planes = 1 if options.get("greyscale") else 3
    png.Writer(2, 2, **options).write(buffer, [[0] * 2 * planes] * 2)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PIEH" + bytes(20),
        png_of(greyscale=False, bitdepth=8),
        png_of(greyscale=True, bitdepth=16),
        png_of(greyscale=False, bitdepth=16)[:-30],
        png_of(greyscale=False, bitdepth=16)[:20],
    ],
    ids=["empty", "flo", "8 bits", "grey", "cut in the pixels", "cut in the header"],
)
def test_a_file_that_is_no_kitti_flow(tmp_path, data):
    path = tmp_path / "m.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"^path is ") as caught:
        read_kitti_flow(path)
    assert str(path) in str(caught.value)


def test_a_kitti_file_with_one_wrong_byte(tmp_path):
    write_kitti_flow(tmp_path / "n.png", 5 * torch.randn(2, 6, 7))
    data = bytearray((tmp_path / "n.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "n.png").write_bytes(data)
    with pytest.raises(ValueError, match="expected a whole PNG"):
        read_kitti_flow(tmp_path / "n.png")


# Colours


def test_the_clip_of_the_release_drops_what_is_negative(official):
    flow = official["viz_flow"].permute(2, 0, 1)[None]
    theirs = official["viz_clip5"].permute(2, 0, 1)[None]
    assert torch.equal(flow_to_image(flow.clamp(0, 5)), theirs)
    assert not torch.equal(flow_to_image(flow.clamp(-5, 5)), theirs)


# Classical methods


@pytest.fixture(scope="module")
def motorcycle():
    pair = stereo_pair(4)
    truth = torch.cat([-pair.disparity, torch.zeros_like(pair.disparity)], dim=1)
    return pair.left, pair.right, truth, pair.valid[:, 0]


@pytest.mark.parametrize(("method", "error"), [("zero", 8.6), ("tv-l1", 1.9), ("ilk", 1.5)])
def test_baselines_on_the_motorcycle(motorcycle, method, error):
    image1, image2, truth, valid = motorcycle
    flow = classical_flow(method, image1, image2)
    # The figures are known to a tenth; versions of scikit-image may differ in the last of them.
    assert end_point_error(flow, truth, valid).item() == pytest.approx(error, abs=0.1)


@pytest.mark.parametrize("method", ["tv-l1", "ilk"])
def test_the_direction_of_an_estimate(motorcycle, method):
    image1 = motorcycle[0]
    columns = torch.roll(image1, (3, -2), dims=(2, 3))  # down by 3, to the left by 2
    flow = classical_flow(method, image1, columns)[..., 30:90, 40:140]
    # A quarter of a pixel: neither method is exact where there is no texture.
    assert flow.median(dim=-1).values.median(dim=-1).values[0].tolist() == pytest.approx(
        [-2, 3], abs=0.25
    )


def test_a_batch_is_its_items(motorcycle):
    image1, image2 = (image[..., 40:88, 50:114] for image in motorcycle[:2])
    both = classical_flow("ilk", torch.cat([image1, image2]), torch.cat([image2, image1]))
    assert torch.equal(both[:1], classical_flow("ilk", image1, image2))
    assert torch.equal(both[1:], classical_flow("ilk", image2, image1))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("farneback", (1, 3, 8, 8), (1, 3, 8, 8)), ValueError, "^method is 'farneback'; expected"),
        (("ilk", (1, 3, 8, 8), (1, 3, 8, 9)), ValueError, "^image1 and image2 have shapes"),
        (("zero", (1, 1, 8, 8), (1, 1, 8, 8)), ValueError, "^image1 and image2 have shapes"),
        (("zero", (3, 8, 8), (3, 8, 8)), ValueError, "^image1 has shape"),
    ],
)
def test_wrong_arguments_of_a_classical_flow(without_shape_checks, arguments, kind, message):
    method, first, second = arguments
    with pytest.raises(kind, match=message):
        classical_flow(method, torch.zeros(first), torch.zeros(second))


def test_images_that_are_not_numbers(without_shape_checks):
    image = torch.zeros(1, 3, 8, 8)
    with pytest.raises(TypeError, match=r"^image2 has dtype torch.uint8"):
        classical_flow("ilk", image, image.byte())
    with pytest.raises(ValueError, match=r"^image1 has 192 numbers that are not finite"):
        classical_flow("zero", image + math.nan, image)
