# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: beginner
#     minutes: 45
#     needs: []
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sampling: reading between pixels
#
# **After this lesson you can** read an image at any point between its pixels, differentiate that reading with respect to the point, and say what happens at and beyond the border.

# %%
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# %% tags=["promote"]
def floor_and_fraction(
    points: Float[Tensor, "*N D"],
) -> tuple[Int[Tensor, "*N D"], Float[Tensor, "*N D"]]:
    """Split each coordinate into the pixel at or before it and the rest (equation 1 of the lesson).

    points    (*N, D) coordinates in pixels
    corner    (*N, D) int64, the largest integers not above them
    fraction  (*N, D) points − corner, in [0, 1)

    Convention: (x, y) order, x to the right, y down, pixel centres on integers. Finite points only.
    """
    corner = points.floor()
    return corner.long(), points - corner

# %% tags=["promote"]
def bilinear_weights(fraction: Float[Tensor, "*N 2"]) -> Float[Tensor, "*N 4"]:
    """Give the weights of the four neighbours of each point (equation 2 of the lesson).

    fraction  (*N, 2) the distances (dx, dy) to the top-left neighbour, in pixels, in [0, 1]
    returns   (*N, 4) the weights of (i, j), (i+1, j), (i, j+1), (i+1, j+1), which sum to 1

    Convention: (x, y) order, so the second weight belongs to the neighbour on the right.
    """
    dx, dy = fraction.unbind(-1)
    return torch.stack([(1 - dx) * (1 - dy), dx * (1 - dy), (1 - dx) * dy, dx * dy], dim=-1)

# %% tags=["promote"]
def normalise(
    points: Float[Tensor, "*N D"], shape: tuple[int, ...], *, align_corners: bool = False
) -> Float[Tensor, "*N D"]:
    """Map pixel coordinates to those of grid_sample, −1 to 1 along an axis (equation 6).

    points         (*N, D) coordinates in pixels
    shape          the D sizes of the image in the order of its array: (H, W) or (T, H, W)
    align_corners  put −1 and 1 on the centres of the border pixels instead of on their outer edges

    The result is larger by the rounding unit of float64. grid_sample rounds on the way back, and
    without this nudge a pixel centre would land on either side of itself by chance. In float32 the
    nudge vanishes: one large enough to settle the side would cost half of the precision.

    Convention: points in (x, y) or (x, y, t) order, the reverse of shape; centres on integers.
    """
    size = points.new_tensor(shape[::-1])
    offset = 0.0 if align_corners else 0.5
    half = (size - 1).clamp(min=1) / 2 if align_corners else size / 2
    start = points.new_tensor(-1 + torch.finfo(torch.float64).eps)
    return torch.addcdiv(start, points + offset, half)

# %% tags=["promote"]
_PADDINGS = ("zeros", "border", "reflection")


def _check_arguments(image: Tensor, points: Tensor, padding: str) -> None:
    if padding not in _PADDINGS:
        raise ValueError(f"padding is {padding!r}; expected one of {', '.join(_PADDINGS)}")
    for name, tensor in (("image", image), ("points", points)):
        if not tensor.is_floating_point():
            raise TypeError(
                f"{name} has dtype {tensor.dtype}; expected floating point (call .float() on it)"
            )
    if image.ndim not in (4, 5) or 0 in image.shape[2:]:
        raise ValueError(
            f"image has shape {tuple(image.shape)}; expected (B, C, H, W) or (B, C, T, H, W)"
            " with at least one pixel"
        )
    axes = "(x, y)" if image.ndim == 4 else "(x, y, t)"
    if points.ndim < 2 or points.shape[-1] != image.ndim - 2:
        raise ValueError(
            f"points has shape {tuple(points.shape)}; expected (B, ..., {image.ndim - 2}),"
            f" with {axes} in the last axis, for an image of shape {tuple(image.shape)}"
        )
    if points.shape[0] != image.shape[0]:
        raise ValueError(
            f"points has batch size {points.shape[0]}; expected {image.shape[0]}, that of image"
        )

# %% tags=["promote"]
def sample(
    image: Float[Tensor, "B C *T H W"], points: Float[Tensor, "B *N D"], *, padding: str = "zeros"
) -> Float[Tensor, "B C *N"]:
    """Read an image between its pixels by linear interpolation (equation 3 of the lesson).

    image    (B, C, H, W), or (B, C, T, H, W) for a video
    points   (B, *N, 2) as (x, y) in pixels, or (B, *N, 3) as (x, y, t) for a video
    padding  what lies outside: "zeros", "border" (the nearest pixel) or "reflection" (a mirror
             through the centres of the border pixels)
    returns  (B, C, *N) values in the units and the dtype of the image

    Gradients flow to both; on a pixel centre, the one to points is the slope towards larger x or y.
    Half-precision points and images are computed in float32, since near 1000 a float16 coordinate
    moves in steps of half a pixel. NaN and infinite points give what grid_sample gives.

    Raises TypeError for an integer image or points, ValueError for a shape or a padding that does
    not fit; the sentence names the argument.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    Source: Jaderberg et al. 2015, Spatial Transformer Networks, equation 5.
    """
    _check_arguments(image, points, padding)
    dtype = image.dtype if image.dtype.itemsize > 2 else torch.float32
    mirror = padding == "reflection"
    grid = normalise(points.to(dtype), image.shape[2:], align_corners=mirror)
    if image.ndim == 4 and padding != "zeros":
        # Here grid_sample reads the first pixel, but its backward pass on the CPU would crash.
        grid = grid.nan_to_num(nan=-1.0, posinf=-1.0 if mirror else 1.0, neginf=-1.0)
    batch, middle, axes = points.shape[0], points.shape[1:-1], points.shape[-1]
    grid = grid.reshape(batch, middle.numel(), *(1,) * (axes - 1), axes)
    values = F.grid_sample(image.to(dtype), grid, padding_mode=padding, align_corners=mirror)
    return values.reshape(*image.shape[:2], *middle).to(image.dtype)
