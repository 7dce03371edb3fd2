"""Features: what a track compares (draft of lesson 3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from fourfold.bilinear_sampling.sampling import _check_floating
from fourfold.bilinear_sampling.window import blend_patch
from fourfold.kit.arguments import whole_number
from fourfold.raft.encoders import ResidualBlock

STRIDE = 4  # pixels of the video for one pixel of the features


class FeatureEncoder(nn.Module):
    """Turn frames into maps of vectors at a quarter of their size (equation 1 of the lesson).

    outputs  C, the width of a vector
    widths   channels of the four stages, at 1/2, 1/4, 1/8 and 1/16 of the size

    Called with frames (F, 3, H, W) in [−1, 1], H and W multiples of 4, it returns (F, C, H/4, W/4).
    The maps of all four stages are brought to a quarter of the size and mixed, so that a vector
    knows its detail and its surroundings. Raises TypeError for frames of whole numbers, ValueError
    for another shape.

    Convention: the vector at (x, y) describes the surroundings of pixel (4x, 4y).
    Source: Karaev et al. 2023, CoTracker (arXiv 2307.07635), section 3.1; the widths are the
    release's.
    """

    def __init__(self, outputs: int = 128, widths: Sequence[int] = (64, 96, 128, 128)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3)
        self.norm1 = nn.InstanceNorm2d(widths[0], eps=1e-5)
        self.layer1 = _stage(widths[0], widths[0], 1)
        self.layer2 = _stage(widths[0], widths[1], 2)
        self.layer3 = _stage(widths[1], widths[2], 2)
        self.layer4 = _stage(widths[2], widths[3], 2)
        self.conv2 = nn.Conv2d(sum(widths), 2 * outputs, 3, padding=1)
        self.norm2 = nn.InstanceNorm2d(2 * outputs, eps=1e-5)
        self.conv3 = nn.Conv2d(2 * outputs, outputs, 1)
        self.apply(_initialise)

    def forward(self, frames: Float[Tensor, "F 3 H W"]) -> Float[Tensor, "F C H/4 W/4"]:
        _check_frames(frames)
        size = [side // STRIDE for side in frames.shape[2:]]
        x = self.norm1(self.conv1(frames)).relu_()
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(F.interpolate(x, size, mode="bilinear", align_corners=True))
        return self.conv3(self.norm2(self.conv2(torch.cat(stages, dim=1))).relu_())


def _initialise(layer: nn.Module) -> None:
    """Draw the weights of a convolution so that gradients keep their size, as RAFT does."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(inputs, outputs, stride)
    return nn.Sequential(first, ResidualBlock(outputs, outputs))


def _check_frames(frames: Tensor) -> None:
    _check_floating("frames", frames)
    shape = tuple(frames.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"frames has shape {shape}; expected (F, 3, H, W)")
    if shape[2] % STRIDE or shape[3] % STRIDE or 0 in shape:
        raise ValueError(f"frames has shape {shape}; expected H and W to be multiples of {STRIDE}")


def unit_length(features: Float[Tensor, "F C H W"]) -> Float[Tensor, "F C H W"]:
    """Scale each vector to length 1, as version 3 does (equation 2 of the lesson)."""
    squares = features.square().sum(dim=1, keepdim=True)
    return features * squares.clamp(min=1e-12).rsqrt()


def feature_pyramid(
    features: Float[Tensor, "F C H W"], levels: int = 4
) -> list[Float[Tensor, "F h w C"]]:
    """Average the maps again and again, and put the vectors last (equation 3 of the lesson).

    levels   L; level k has H // 2ᵏ × W // 2ᵏ vectors

    Raises ValueError for a map too small for so many levels.
    """
    whole_number("levels", levels, least=1)
    if min(features.shape[2:]) < 2 ** (levels - 1):
        raise ValueError(
            f"features have size {tuple(features.shape[2:])}; expected at least "
            f"{2 ** (levels - 1)} × {2 ** (levels - 1)} for {levels} levels"
        )
    pyramid = [features]
    for _ in range(levels - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return [level.permute(0, 2, 3, 1).contiguous() for level in pyramid]


def vector_patches(
    level: Float[Tensor, "F h w C"], frames: Int[Tensor, "K"], corner: Int[Tensor, "K 2"], size: int
) -> Float[Tensor, "K {size} {size} C"]:
    """Copy squares of whole vectors out of frames (equation 4 of the lesson).

    level    (F, h, w, C) vectors last, so that each copy is one run of memory
    frames   (K,) the frame of each patch
    corner   (K, 2) its top-left place (x, y), which may lie outside: the border goes on there
    returns  (K, size, size, C)

    Convention: (x, y) order; first patch axis y, second x.
    """
    _, h, w, _ = level.shape
    step = torch.arange(size, device=corner.device)
    x, y = (first[:, None] + step for first in corner.unbind(-1))
    row = frames[:, None] * h + y.clamp(0, h - 1)
    index = row[:, :, None] * w + x.clamp(0, w - 1)[:, None, :]
    return F.embedding(index, level.flatten(0, 2))


def _corners(centres: Tensor, radius: int, level: Tensor) -> tuple[Tensor, Tensor]:
    """The top-left whole pixels of windows (K, 2), and how far the points lie past them."""
    floor = centres.floor()
    # Beyond its border a map goes on for ever, so a far centre may as well be a near one.
    size = floor.new_tensor([level.shape[2], level.shape[1]])
    near = torch.minimum(floor.clamp(min=-2 * radius - 2), size + radius + 1)
    return (near - radius).long(), centres - floor


def vector_windows(
    level: Float[Tensor, "F h w C"],
    frames: Int[Tensor, "K"],
    centres: Float[Tensor, "K 2"],
    radius: int,
) -> Float[Tensor, "K C S S"]:
    """Read windows of vectors between the pixels, as `sample_window` with padding "border".

    centres  (K, 2) as (x, y), in pixels of the level
    returns  (K, C, S, S), S = 2 · radius + 1; radius 0 reads one vector

    Convention: first window axis y, second x.
    """
    corner, fraction = _corners(centres, radius, level)
    patches = vector_patches(level, frames, corner, 2 * radius + 2)
    return blend_patch(patches.permute(0, 3, 1, 2), fraction[:, None])


def correlate(
    level: Float[Tensor, "F h w C"],
    frames: Int[Tensor, "K"],
    centres: Float[Tensor, "K 2"],
    vectors: Float[Tensor, "K P C"],
    radius: int,
) -> Float[Tensor, "K P S S"]:
    """Compare vectors with the window around a centre (equation 5 of the lesson).

    frames   (K,) the frame of each window
    centres  (K, 2) as (x, y), in pixels of the level
    vectors  (K, P, C) what is compared with each window
    returns  (K, P, S, S) inner products, S = 2 · radius + 1

    Products come first and the blend of neighbours after: both are linear, so that the order does
    not matter, and there are fewer products than numbers in the vectors.

    Convention: first window axis y, second x; the border goes on outside the map.
    Source: CoTracker, section 3.1, correlation features.
    """
    corner, fraction = _corners(centres, radius, level)
    size = 2 * radius + 2
    windows = [
        vectors[part] @ vector_patches(level, frames[part], corner[part], size).flatten(1, 2).mT
        for part in _parts(len(frames), size * size * level.shape[3])
    ]
    products = torch.cat(windows) if len(windows) > 1 else windows[0]
    return blend_patch(products.unflatten(2, (size, size)), fraction[:, None])


_MOST = 1 << 22  # numbers gathered at once; more take longer, since their memory is new every time


def _parts(count: int, each: int) -> list[slice]:
    step = max(1, _MOST // each)
    return [slice(first, first + step) for first in range(0, count, step)]
