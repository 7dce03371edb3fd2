"""Real images without a download: photographs and a stereo pair from installed wheels, own files.

Images are float32 in [0, 255], shape (1, 3, H, W). Nothing here reaches a network: only files
inside the scikit-image and scikit-learn packages are offered.
"""

import operator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageOps
from torch import Tensor

from fourfold.kit.arguments import check_tensor, whole_number

__all__ = [
    "PHOTOGRAPHS",
    "StereoPair",
    "area_average",
    "credit",
    "photograph",
    "read_image",
    "stereo_pair",
]

PHOTOGRAPHS = {
    "astronaut": "Astronaut Eileen Collins, NASA, public domain (from scikit-image)",
    "brick": "Brick wall, CC0Textures, CC0 (from scikit-image)",
    "camera": "Man with a camera, Lav Varshney, CC0 (from scikit-image)",
    "chelsea": "Chelsea the cat, Stefan van der Walt, CC0 (from scikit-image)",
    "china": "Temple in China, danielbuechele, CC BY 2.0 (from scikit-learn)",
    "clock": "Clock, camera moving, Stefan van der Walt, public domain (from scikit-image)",
    "coffee": "Coffee cup, Rachel Michetti, CC0 (from scikit-image)",
    "coins": "Coins from Pompeii, Brooklyn Museum, no known restrictions (from scikit-image)",
    "flower": "Flower, vultilion, CC BY 2.0 (from scikit-learn)",
    "grass": "Grass, linolafett, CC0 (from scikit-image)",
    "gravel": "Gravel, CC0Textures, CC0 (from scikit-image)",
    "hubble": "Hubble eXtreme Deep Field, NASA, public domain (from scikit-image)",
    "immunohistochemistry": "Stained tissue, CMMI, no known restrictions (from scikit-image)",
    "motorcycle": "Motorcycle, Scharstein et al., Middlebury stereo 2014 (from scikit-image)",
    "retina": "Human retina, Mikael Häggström, CC0 (from scikit-image)",
    "rocket": "Launch of DSCOVR, SpaceX, public domain (from scikit-image)",
    "text": "Printed text, Wikipedia, public domain (from scikit-image)",
}

# Only the names that differ from "<name>.png" inside scikit-image.
_FILES = {
    "china": ("sklearn", "datasets/images/china.jpg"),
    "clock": ("skimage", "data/clock_motion.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "immunohistochemistry": ("skimage", "data/ihc.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
}


def photograph(
    name: str, height: int | None = None, crop: tuple[int, int, int, int] | None = None
) -> Float[Tensor, "1 3 H W"]:
    """A photograph by name, float32 in [0, 255]; `PHOTOGRAPHS` lists the names.

    `crop` is (left, top, right, bottom) in pixels of the full photograph, right and bottom
    exclusive, and is taken first; `height` is then the height in pixels to average down to. A
    greyscale photograph has three equal channels. Raises ValueError for an unknown name, a crop
    that is not four whole numbers inside the photograph, or a height larger than what there is,
    and TypeError for a name that is no str.
    """
    _check_name(name)
    package, file = _FILES.get(name, ("skimage", f"data/{name}.png"))
    return read_image(_inside(package, file), height=height, crop=crop)


def read_image(
    path: str | Path,
    height: int | None = None,
    crop: tuple[int, int, int, int] | None = None,
) -> Float[Tensor, "1 3 H W"]:
    """An image file of your own, float32 in [0, 255]; `height` and `crop` as in `photograph`.

    The orientation that a camera notes in the file (EXIF) is applied, transparency is dropped,
    greyscale becomes three equal channels, 16 bits are scaled to [0, 255]. Raises
    FileNotFoundError for a path without a file and ValueError for a file that is not a whole
    image of 8 or 16 bits a channel.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path is {str(path)!r}; there is no such file")
    picture = _opened(path)
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"path is {str(path)!r}, an image of 32 bits a channel; expected 8 or 16 bits"
        )
    image = torch.from_numpy(_pixels(picture)).permute(2, 0, 1)[None].contiguous()
    if crop is not None:
        image = _cropped(image, crop)
    return image if height is None else area_average(image, height)


def credit(name: str) -> str:
    """One line for a caption: what the photograph shows, by whom, under which licence.

    Raises ValueError for an unknown name and TypeError for one that is no str.
    """
    _check_name(name)
    return PHOTOGRAPHS[name]


@dataclass(frozen=True)
class StereoPair:
    """Two views of one scene from cameras side by side, and how far each pixel moves between them.

    Convention: pixel (x, y) of `left` is seen at (x − disparity, y) of `right`, x to the right,
    y down, in pixels of these images; the flow from left to right is (−disparity, 0).
    `valid` is False where the disparity is not known; the disparity is 0 there.
    """

    left: Float[Tensor, "1 3 H W"]
    right: Float[Tensor, "1 3 H W"]
    disparity: Float[Tensor, "1 1 H W"]
    valid: Bool[Tensor, "1 1 H W"]


def stereo_pair(shrink: int = 1) -> StereoPair:
    """The Middlebury 2014 motorcycle pair, 741 × 500 pixels, averaged over `shrink`² blocks.

    Disparity is in pixels of the shrunk images: the mean of a block's known values, valid where
    more than half of them are known. Columns that fill no whole block are dropped. Raises
    ValueError for a shrink other than 1, 2 or 4. Source: Scharstein et al., GCPR 2014.
    """
    if whole_number("shrink", shrink) not in (1, 2, 4):
        raise ValueError(f"shrink is {shrink}; expected 1, 2 or 4")
    left = read_image(_inside("skimage", "data/motorcycle_left.png"))
    right = read_image(_inside("skimage", "data/motorcycle_right.png"))
    with np.load(_inside("skimage", "data/motorcycle_disp.npz")) as file:
        disparity = torch.from_numpy(file["arr_0"]).float()[None, None]
    known = torch.isfinite(disparity)
    share = _block_means(known.float(), shrink)
    mean = _block_means(torch.where(known, disparity, 0), shrink) / share
    valid = share > 0.5
    return StereoPair(
        left=_block_means(left, shrink),
        right=_block_means(right, shrink),
        disparity=torch.where(valid, mean / shrink, 0),
        valid=valid,
    )


def area_average(
    image: Float[Tensor, "B C H W"], height: int, width: int | None = None
) -> Float[Tensor, "B C h w"]:
    """A smaller image: each new pixel is the mean of the area it covers, in the unit of the input.

    Without `width` the proportions are kept to the nearest pixel. Raises ValueError for a size
    that is no whole number or below 1 or above the image's own, and TypeError for an image that
    is no tensor of floating point.
    """
    check_tensor("image", image)
    if not image.is_floating_point():
        raise TypeError(f"image has dtype {image.dtype}; expected floating point (image.float())")
    height = whole_number("height", height)
    old_height, old_width = image.shape[-2:]
    if width is None:
        width = max(1, round(old_width * height / old_height))
    width = whole_number("width", width)
    for name, new, old in (("height", height, old_height), ("width", width, old_width)):
        if not 1 <= new <= old:
            raise ValueError(f"{name} is {new}; expected 1 to {old}, the image's own {name}")
    rows = _overlaps(old_height, height).to(image)
    columns = _overlaps(old_width, width).to(image)
    return rows @ image @ columns.T


def _overlaps(old: int, new: int) -> Tensor:
    """The (new, old) matrix of shares: how much of each new pixel lies on each old one."""
    size = old / new
    start = torch.arange(new, dtype=torch.float64)[:, None] * size
    pixel = torch.arange(old, dtype=torch.float64)
    overlap = torch.minimum(start + size, pixel + 1) - torch.maximum(start, pixel)
    return overlap.clamp(min=0) / size


def _block_means(image: Tensor, size: int) -> Tensor:
    return torch.nn.functional.avg_pool2d(image, size) if size > 1 else image


def _opened(path: Path) -> Image.Image:
    """The image in the file, upright and decoded."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            picture.load()
            return picture
    except PermissionError:
        raise
    except Exception as error:  # A damaged file brings out errors of any type in Pillow's decoders.
        raise ValueError(
            f"path is {str(path)!r}; expected an image file (JPEG, PNG, …) that is whole, "
            f"but Pillow says: {error}"
        ) from error


def _pixels(image: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image as float32, shape (H, W, 3), in [0, 255]."""
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.float32) / 257
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB")).astype(np.float32)


def _cropped(image: Tensor, crop: tuple[int, int, int, int]) -> Tensor:
    height, width = image.shape[-2:]
    try:
        left, top, right, bottom = (operator.index(side) for side in crop)
    except (TypeError, ValueError):
        raise ValueError(
            f"crop is {crop!r}; expected four whole numbers, (left, top, right, bottom)"
        ) from None
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(
            f"crop is {crop}; expected (left, top, right, bottom) inside "
            f"the image, which is {width} wide and {height} high"
        )
    return image[..., top:bottom, left:right].contiguous()


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; expected a str, one of the names in PHOTOGRAPHS")
    if name not in PHOTOGRAPHS:
        near = get_close_matches(name, PHOTOGRAPHS, n=3, cutoff=0.5) or list(PHOTOGRAPHS)
        raise ValueError(f"name is {name!r}; the nearest photographs are {', '.join(near)}")


def _inside(package: str, file: str) -> Path:
    """The path of a file inside an installed package, found without importing the package."""
    spec = find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise FileNotFoundError(f"the installed {package} package has no file {file}")
    return path
