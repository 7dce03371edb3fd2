"""The picture of a flow: what it says, and that it is whole."""

import pytest
import torch
from PIL import Image

from fourfold.kit.drawing import figure_texts
from fourfold.kit.flow_picture import flow_picture, full_colour, save_flow_picture


def moved(height, width, length):
    return length * torch.ones(1, 2, height, width) / 2**0.5


@pytest.mark.parametrize(("height", "width"), [(40, 48), (40, 90), (90, 40)])
def test_it_shows_image_flow_and_key_in_any_shape(height, width):
    texts = figure_texts(flow_picture(torch.zeros(1, 3, height, width), moved(height, width, 20)))
    assert "flow" in texts and "image 1 and its motion" in texts
    assert any("rim: 20 px" in text for text in texts)


def test_small_motions_are_enlarged_and_said_to_be():
    texts = figure_texts(flow_picture(torch.zeros(1, 3, 90, 90), moved(90, 90, 1)))
    assert "image 1 and its motion, arrows × 5" in texts


def test_one_wild_vector_leaves_the_colours_alone():
    flow = moved(50, 50, 4)
    flow[0, :, 3, 3] = 900
    assert full_colour(flow) == pytest.approx(6)  # 1.5 times the length of all others
    flow[0, :, 3, 3] = torch.nan
    assert full_colour(flow) == pytest.approx(4)
    assert full_colour(0 * moved(5, 5, 1)) == 1 and full_colour(flow * torch.nan) == 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG"])
def test_a_file_is_a_whole_picture(tmp_path, name):
    save_flow_picture(tmp_path / name, torch.zeros(1, 3, 40, 48), moved(40, 48, 3))
    with Image.open(tmp_path / name) as picture:
        picture.load()
        assert min(picture.size) > 200
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_bad_input_is_named(without_shape_checks, tmp_path):
    image, flow = torch.zeros(1, 3, 40, 48), moved(40, 48, 3)
    with pytest.raises(ValueError, match=r"ends in .png or .jpg"):
        save_flow_picture(tmp_path / "a.gif", image, flow)
    with pytest.raises(ValueError, match="image1 has size"):
        flow_picture(image[..., 1:], flow)
