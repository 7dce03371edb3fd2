from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.kit import drawing
from fourfold.kit.drawing import (
    canvas,
    draw_arrows,
    draw_pixels,
    film_strip,
    flow_to_image,
    flow_wheel,
    image_grid,
    to_picture,
)

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "flow_colours.npz")
FLOW = torch.from_numpy(REFERENCE["flow"]).permute(2, 0, 1)[None]


def _last(image):
    return image[0].permute(1, 2, 0).numpy()


def test_the_wheel_has_middlebury_s_55_colours():
    assert np.array_equal(drawing._colour_wheel(), REFERENCE["wheel"])


@pytest.mark.parametrize(
    ("flow", "max_norm", "name"),
    [
        (FLOW, None, "rgb"),
        (FLOW.clamp(0, 5), None, "rgb_clipped_0_to_5"),
        (FLOW, 8.0, "rgb_full_at_8_px"),
    ],
)
def test_flow_colours_equal_the_reference(flow, max_norm, name):
    # Equal bytes on the machine that froze them; one level is left for another libm's arctan2.
    difference = _last(flow_to_image(flow, max_norm)).astype(int) - REFERENCE[name]
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 0.001


def test_a_field_at_rest_is_white_and_a_lost_vector_black():
    flow = torch.zeros(1, 2, 2, 2)
    flow[0, :, 1, 1] = torch.tensor([float("nan"), 1])
    image = flow_to_image(flow)
    assert (image[..., 0, :] == 255).all() and (image[..., 1, 1] == 0).all()


@settings(deadline=None, max_examples=50)
@given(st.floats(0.1, 1000), st.integers(0, 1000))
def test_flow_colours_ignore_the_unit_of_length(unit, seed):
    flow = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(seed)).double()
    one = flow_to_image(flow, 3.0).int()
    other = flow_to_image(flow * unit, 3.0 * unit).int()
    # The product rounds once more, which can move a colour across a whole number.
    assert (one - other).abs().max() <= 1


@pytest.mark.parametrize("unit", [1e-25, 1e25, 1e37])
def test_flow_colours_of_huge_and_tiny_vectors(unit):
    flow = FLOW / FLOW.abs().max()  # components up to 1, so that 1e37 px stays in float32
    difference = flow_to_image(flow * unit, 1.5 * unit).int() - flow_to_image(flow, 1.5).int()
    assert difference.abs().max() <= 1  # the product rounds once more
    assert flow_to_image(flow * 1e37).float().std() > 10, "the longest vector is not infinite"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flow_colours_of_short_formats(dtype):
    flow = (100 * FLOW / FLOW.abs().max() + 200).to(dtype)  # squares beyond float16's 65504
    assert torch.equal(flow_to_image(flow), flow_to_image(flow.float()))


def test_one_norm_for_the_whole_batch():
    flow = torch.cat([FLOW, FLOW / 2])
    longest = FLOW.square().sum(1).sqrt().max().item()
    assert torch.equal(flow_to_image(flow)[1:], flow_to_image(FLOW / 2, longest + 1e-5))


def test_the_wheel_image_is_a_key_to_the_colours():
    wheel = flow_wheel(41)
    assert wheel.shape == (1, 3, 41, 41)
    assert (wheel[0, :, 20, 20] == 255).all() and (wheel[0, :, 0, 0] == 255).all()
    assert (wheel[0, :, 0, 40] == 255).all()
    down_half = flow_to_image(torch.tensor([0.0, 0.5]).reshape(1, 2, 1, 1), 1.0)
    assert torch.equal(wheel[..., 30:31, 20:21], down_half)


def test_to_picture_rounds_and_clips():
    image = torch.tensor([-5.0, 0.4, 0.6, 254.6, 300.0, float("nan")]).reshape(1, 1, 6)
    assert to_picture(image).tolist() == [[0, 0, 1, 255, 255, 0]]


@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 3, 4, 5)])
def test_to_picture_moves_channels_last(shape):
    image = torch.arange(60.0).reshape(shape)
    picture = to_picture(image)
    assert picture.shape == (4, 5, 3) and picture.dtype == np.uint8
    assert picture[2, 3].tolist() == image.reshape(3, 4, 5)[:, 2, 3].tolist()


@pytest.mark.parametrize("came", [np.zeros((3, 4, 5)), [[[0.0]]]])
@pytest.mark.parametrize("name", ["image", "flow"])
def test_what_is_no_tensor_is_named(without_shape_checks, name, came):
    kind = type(came).__name__
    _, axes = canvas()
    functions = {"image": [to_picture], "flow": [flow_to_image, lambda f: draw_arrows(axes, f)]}
    for function in functions[name]:
        with pytest.raises(TypeError, match=f"{name} is a {kind}; expected a tensor .torch.from_n"):
            function(came)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 4, 5), (4, 5)])
def test_to_picture_names_a_wrong_shape(without_shape_checks, shape):
    with pytest.raises(ValueError, match=r"image has shape .* expected \(C, H, W\)"):
        to_picture(torch.zeros(shape))


def test_image_grid_has_a_picture_and_a_title_for_each():
    images = [torch.zeros(1, 3, 8, 16), torch.zeros(1, 8, 8), torch.zeros(3, 8, 12)]
    figure = image_grid(images, ["a", "b", "c"], columns=2)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c", ""]
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 0]
    assert figure.get_size_inches()[0] == 6.5


def test_image_grid_counts():
    with pytest.raises(ValueError, match="images and titles are 1 and 2; expected pairs"):
        image_grid([torch.zeros(3, 4, 4)], ["a", "b"])
    with pytest.raises(ValueError, match="images has length 0; expected one image or more"):
        image_grid([])


@pytest.mark.parametrize("columns", [-1, 0, 1.5])
def test_image_grid_needs_a_column(without_shape_checks, columns):
    with pytest.raises(ValueError, match=f"columns is {columns}; expected a whole number, 1 or"):
        image_grid([torch.zeros(3, 4, 4)], columns=columns)


def test_arrows_start_on_pixels_and_end_where_the_flow_says():
    _, axes = canvas()
    flow = torch.zeros(2, 8, 8)
    flow[0], flow[1] = 2, -1
    flow[:, 1, 5] = float("nan")
    draw_arrows(axes, flow, step=4)
    arrows = axes.collections[0]
    assert arrows.get_offsets().tolist() == [[2, 2], [6, 2], [2, 6], [6, 6]]
    assert set(arrows.U) == {2} and set(arrows.V) == {-1}
    assert (arrows.angles, arrows.scale_units, arrows.scale) == ("xy", "xy", 1)


def test_arrows_leave_out_what_is_not_finite():
    _, axes = canvas()
    flow = torch.ones(1, 2, 2, 2)
    flow[0, 0, 0, 1] = float("inf")
    draw_arrows(axes, flow, step=1)
    assert axes.collections[0].get_offsets().tolist() == [[0, 0], [0, 1], [1, 1]]


def test_wrong_flows_and_norms_are_named(without_shape_checks):
    _, axes = canvas()
    with pytest.raises(ValueError, match=r"flow has shape \(3, 4, 4\); expected \(2, H, W\)"):
        draw_arrows(axes, torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="step is 0; expected"):
        draw_arrows(axes, torch.zeros(2, 4, 4), step=0)
    with pytest.raises(ValueError, match=r"step is 2\.5; expected a whole number, 1 or more"):
        draw_arrows(axes, torch.zeros(2, 4, 4), step=2.5)
    with pytest.raises(ValueError, match=r"flow has shape \(0, 2, 4, 4\); expected .*none of B"):
        flow_to_image(torch.zeros(0, 2, 4, 4))
    with pytest.raises(ValueError, match=r"flow has shape \(2, 4, 4\); expected \(B, 2, H, W\)"):
        flow_to_image(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match=r"max_norm is 0.0; expected a positive length"):
        flow_to_image(torch.zeros(1, 2, 4, 4), 0.0)
    with pytest.raises(ValueError, match="size is 2; expected a whole number, 3 or more"):
        flow_wheel(2)
    with pytest.raises(ValueError, match=r"values have shape \(4,\); expected \(H, W\)"):
        draw_pixels(axes, torch.zeros(4))
    with pytest.raises(ValueError, match=r"values have shape \(0, 4\); expected \(H, W\)"):
        draw_pixels(axes, torch.zeros(0, 4))


def test_pixel_squares_carry_their_numbers_at_whole_coordinates():
    _, axes = canvas()
    draw_pixels(axes, torch.tensor([[10.0, 20.5], [30.0, 40.0]]))
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "10", (1, 0): "20.5", (0, 1): "30", (1, 1): "40"}
    bottom, top = axes.get_ylim()
    assert bottom > top, "y points down"
    assert axes.get_xlabel() == "x (px)" and axes.get_ylabel() == "y (px)"


def test_film_strip_draws_paths_up_to_each_frame():
    tracks = torch.tensor([[[1.0, 2.0]], [[3.0, 2.0]], [[5.0, 4.0]]])
    visible = torch.tensor([[True], [True], [False]])
    figure = film_strip(torch.zeros(3, 3, 8, 8), tracks, visible)
    assert [axes.get_title() for axes in figure.axes] == ["frame 0", "frame 1", "frame 2"]
    path, dot = figure.axes[2].lines
    assert path.get_xydata().tolist() == tracks[:, 0].tolist()
    assert dot.get_xydata().tolist() == [[5, 4]]
    assert dot.get_markerfacecolor() == "none"
    assert figure.axes[1].lines[1].get_markerfacecolor() != "none"


@pytest.mark.parametrize("name", ["tracks", "visible", "titles"])
def test_film_strip_needs_one_entry_per_frame(without_shape_checks, name):
    values = {"tracks": torch.zeros(2, 1, 2), "visible": torch.ones(2, 1).bool(), "titles": ["a"]}
    with pytest.raises(ValueError, match=f"{name} has length .; expected 3, one per frame"):
        film_strip(torch.zeros(3, 3, 8, 8), **{name: values[name]})


@pytest.mark.parametrize(
    ("tracks", "visible", "message"),
    [
        ((3, 2), None, r"tracks has shape \(3, 2\); expected \(T, N, 2\)"),
        ((3, 5, 3), None, r"tracks has shape \(3, 5, 3\); expected \(T, N, 2\)"),
        ((3, 5, 2), (3, 4), r"visible has shape \(3, 4\); expected \(T, N\), \(3, 5\)"),
        ((3, 5, 2), (3,), r"visible has shape \(3,\); expected \(T, N\), \(3, 5\)"),
        (None, (3,), r"visible has shape \(3,\); expected \(T, N\), \(3, N\)"),
    ],
)
def test_film_strip_names_a_wrong_shape(without_shape_checks, tracks, visible, message):
    tracks = None if tracks is None else torch.zeros(tracks)
    visible = None if visible is None else torch.ones(visible).bool()
    with pytest.raises(ValueError, match=message):
        film_strip(torch.zeros(3, 3, 8, 8), tracks, visible)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_formats_are_drawn_as_they_are(dtype):
    _, axes = canvas()
    draw_pixels(axes, torch.tensor([[0.5, 2.0]], dtype=dtype))
    assert [text.get_text() for text in axes.texts] == ["0.5", "2"]
    draw_arrows(axes, torch.full((2, 1, 1), 1.5, dtype=dtype), step=1)
    assert axes.collections[0].U.tolist() == [1.5]
    tracks = torch.tensor([[[1.5, 2.0]]], dtype=dtype)
    dot = film_strip(torch.zeros(1, 3, 8, 8, dtype=dtype), tracks).axes[0].lines[1]
    assert dot.get_xydata().tolist() == [[1.5, 2]]
