import socket

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fourfold.kit.images import (
    PHOTOGRAPHS,
    area_average,
    credit,
    photograph,
    read_image,
    stereo_pair,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an image source opened a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_every_photograph_is_in_the_installed_wheels(name):
    image = photograph(name, height=40)
    assert image.shape[:3] == (1, 3, 40)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 255
    assert credit(name) == PHOTOGRAPHS[name]
    assert "from scikit-" in credit(name)


def test_a_photograph_equals_the_package_own_array():
    from skimage.data import coffee
    from sklearn.datasets import load_sample_image

    def as_array(name):
        return photograph(name)[0].permute(1, 2, 0).numpy()

    assert np.array_equal(as_array("coffee"), coffee())
    assert np.array_equal(as_array("china"), load_sample_image("china.jpg"))


def test_crop_comes_before_height():
    whole = photograph("coffee")
    cut = photograph("coffee", crop=(10, 20, 110, 80))
    assert torch.equal(cut, whole[..., 20:80, 10:110])
    small = photograph("coffee", height=30, crop=(10, 20, 110, 80))
    # A mean of four numbers of at most 255 is exact to a few float32 roundings.
    assert torch.allclose(small, torch.nn.functional.avg_pool2d(cut, 2), atol=1e-4)


@pytest.mark.parametrize("crop", [(0, 0, 601, 10), (5, 5, 5, 10), (-1, 0, 3, 3), (0, 9, 3, 3)])
def test_a_crop_outside_is_refused(crop):
    with pytest.raises(ValueError, match=r"crop is .* which is 600 wide and 400 high"):
        photograph("coffee", crop=crop)


@pytest.mark.parametrize("crop", [(0, 0, 5), (0.0, 0.0, 5.0, 5.0), 5, "0055"])
def test_a_crop_of_another_form_is_refused(without_shape_checks, crop):
    with pytest.raises(ValueError, match=r"crop is .*; expected four whole numbers"):
        photograph("coffee", crop=crop)


@pytest.mark.parametrize("height", [20.0, "20"])
def test_a_height_that_is_no_whole_number_is_refused(without_shape_checks, height):
    with pytest.raises(ValueError, match=f"height is {height!r}; expected a whole number"):
        photograph("coffee", height=height)


@pytest.mark.parametrize("name", [None, 3])
def test_a_name_that_is_no_word_is_refused(without_shape_checks, name):
    for function in (photograph, credit):
        with pytest.raises(TypeError, match=f"name is {name}; expected a str"):
            function(name)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="name is 'cofee'; the nearest photographs are coffee"):
        photograph("cofee")
    with pytest.raises(ValueError, match="nearest photographs are chelsea"):
        credit("chelsae")


def test_camera_is_grey_in_three_channels():
    image = photograph("camera", height=64)
    assert torch.equal(image[:, 0], image[:, 1]) and torch.equal(image[:, 0], image[:, 2])


def test_own_file_is_turned_as_the_camera_notes(tmp_path):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
    exif = Image.Exif()
    exif[0x0112] = 6  # the picture must be turned a quarter clockwise to stand upright
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")[0].permute(1, 2, 0).numpy()
    assert np.array_equal(upright, np.rot90(pixels, -1))


def test_own_file_loses_its_transparency(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "glass.png")
    image = read_image(tmp_path / "glass.png")[0].permute(1, 2, 0).numpy()
    assert np.array_equal(image, pixels[..., :3])


def test_own_16_bit_file_is_scaled(tmp_path):
    Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [[0, 1, 255]] * 3


def test_own_file_that_is_no_image_or_not_there(tmp_path):
    (tmp_path / "words.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"words\.png'; expected an image file"):
        read_image(tmp_path / "words.png")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_image(tmp_path / "none.png")


def _cut(data):
    return data[: len(data) // 2]


def _flipped(data):
    """One byte of the compressed pixels is another: the file's end is 16 bytes after them."""
    return data[:-30] + bytes([data[-30] ^ 0xFF]) + data[-29:]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("cut.jpg", _cut),
        ("cut.png", _cut),
        ("head.png", lambda data: data[:20]),
        ("flipped.png", _flipped),
    ],
)
def test_own_file_that_is_damaged_is_named(tmp_path, name, damage):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / name
    Image.fromarray(pixels).save(path)
    assert read_image(path).shape == (1, 3, 40, 60)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{name}'; expected an image file .* that is whole"):
        read_image(path)


def test_own_file_of_too_many_pixels_is_named(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png'; expected .* exceeds limit"):
        read_image(tmp_path / "bomb.png")


def test_own_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(f"Permission denied: {path}")

    Image.new("L", (4, 4)).save(tmp_path / "locked.png")
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(PermissionError, match=r"locked\.png"):
        read_image(tmp_path / "locked.png")


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_own_file_of_32_bits_is_refused(tmp_path, dtype):
    Image.fromarray(np.ones((4, 5), dtype=dtype)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=r"deep\.tif', an image of 32 bits .*; expected 8 or 16"):
        read_image(tmp_path / "deep.tif")


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_area_average_keeps_the_mean_and_the_range(data):
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    new_height, new_width = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    image = torch.rand(1, 2, height, width, dtype=torch.float64) * 255
    small = area_average(image, new_height, new_width)
    assert small.shape == (1, 2, new_height, new_width)
    # Every old pixel counts by its area, so the mean is kept to float64 rounding.
    assert torch.allclose(small.mean((2, 3)), image.mean((2, 3)), atol=1e-10)
    assert small.min() >= image.min() - 1e-10 and small.max() <= image.max() + 1e-10


def test_area_average_weighs_a_split_pixel_by_its_parts():
    image = torch.tensor([[[[0.0, 30.0, 90.0]]]], dtype=torch.float64)
    # Each new pixel is 1.5 old ones wide: (0 + 30/2) / 1.5 and (30/2 + 90) / 1.5.
    assert area_average(image, 1, 2).flatten().tolist() == pytest.approx([10, 70], abs=1e-12)


@pytest.mark.parametrize(("height", "width", "named"), [(0, 1, "height"), (2, 9, "width")])
def test_area_average_does_not_enlarge(height, width, named):
    with pytest.raises(ValueError, match=f"{named} is .*; expected 1 to"):
        area_average(torch.zeros(1, 3, 4, 8), height, width)


def test_area_average_needs_floating_point(without_shape_checks):
    with pytest.raises(TypeError, match=r"image has dtype torch\.uint8; expected floating point"):
        area_average(torch.ones(1, 3, 4, 4, dtype=torch.uint8), 2)
    with pytest.raises(TypeError, match="image is a ndarray; expected a tensor"):
        area_average(np.ones((1, 3, 4, 4)), 2)


@pytest.mark.parametrize(("shrink", "size"), [(1, (500, 741)), (2, (250, 370)), (4, (125, 185))])
def test_stereo_pair_sizes_and_known_share(shrink, size):
    pair = stereo_pair(shrink)
    assert pair.left.shape == pair.right.shape == (1, 3, *size)
    assert pair.disparity.shape == pair.valid.shape == (1, 1, *size)
    assert pair.valid.dtype == torch.bool and pair.valid.float().mean() > 0.9
    known = pair.disparity[pair.valid] * shrink
    assert known.min() > 7 and known.max() < 60
    assert (pair.disparity[~pair.valid] == 0).all()


def test_disparity_points_left():
    pair = stereo_pair(4)
    y, x = torch.nonzero(pair.valid[0, 0], as_tuple=True)
    errors = {}
    for sign in (-1, 1):
        seen = (x + sign * pair.disparity[0, 0, y, x]).round().long()
        inside = (seen >= 0) & (seen < pair.left.shape[3])
        difference = pair.left[0, :, y, x] - pair.right[0, :, y, seen.clamp(0, 184)]
        errors[sign] = difference[:, inside].abs().mean().item()
    # Occlusions and rounding remain; the wrong sign lands on unrelated pixels.
    assert errors[-1] < 0.5 * errors[1]


def test_stereo_pair_refuses_another_shrink():
    with pytest.raises(ValueError, match="shrink is 3; expected 1, 2 or 4"):
        stereo_pair(3)


def test_stereo_pair_refuses_a_fraction(without_shape_checks):
    with pytest.raises(ValueError, match=r"shrink is 2\.0; expected a whole number"):
        stereo_pair(2.0)
