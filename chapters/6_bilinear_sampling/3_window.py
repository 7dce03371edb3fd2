# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: beginner
#     minutes: 40
#     needs: [6_bilinear_sampling/1_sampling]
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Windows: one fraction for a whole neighbourhood
#
# **After this lesson you can** read a square window of values around any point of a map, at every level of a pyramid, with about a third of the memory reads that sampling each of its points takes.

# %% [markdown]
# ## Code

# %%
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


# %% tags=["promote", "exercise"]
def read_patch(
    maps: Float[Tensor, "B C H W"], corner: Int[Tensor, "B K 2"], size: int
) -> Float[Tensor, "B K C {size} {size}"]:
    """Copy a square of whole pixels out of each map (equation 3 of the lesson).

    maps     (B, C, H, W) values in any unit
    corner   (B, K, 2) the top-left pixel (x, y) of each patch, as integers; K patches per map
    size     the side of a patch in pixels
    returns  (B, K, C, size, size) the pixels, 0 for those outside the map

    Convention: first patch axis y, second x; the centre of the top-left pixel at (0, 0).
    """
    B, C, H, W = maps.shape
    step = torch.arange(size, device=corner.device)
    x, y = (first[..., None] + step for first in corner.unbind(-1))
    # A row or a column outside the map makes the sum of the two negative, whatever the other is.
    row = torch.where((y >= 0) & (y < H), y * W, -H * W)
    column = torch.where((x >= 0) & (x < W), x, -H * W)
    index = (row[..., :, None] + column[..., None, :]).flatten(1)[:, None]
    outside = index < 0
    pixels = maps.flatten(2).gather(2, index.clamp_(min=0).expand(-1, C, -1))
    # A choice, not a product with 0: a NaN at the border must not reach the points beyond it.
    pixels = torch.where(outside, 0, pixels)
    return pixels.view(B, C, corner.shape[1], size, size).transpose(1, 2)


# %% tags=["check"]
nine = torch.arange(9.0).view(1, 1, 3, 3)
patch = read_patch(nine, torch.tensor([[[1, -1]]]), 3)
assert patch.tolist() == [[[[[0, 0, 0], [1, 2, 0], [4, 5, 0]]]]], "outside the map a patch is 0"


# %% tags=["promote", "exercise"]
def blend_patch(
    patch: Float[Tensor, "*#N P P"], fraction: Float[Tensor, "*#N 2"]
) -> Float[Tensor, "*#N P-1 P-1"]:
    """Mix each pixel of a patch with the next, down and then across (equations 4 and 5).

    patch     (*N, P, P) whole pixels
    fraction  (*N, 2) how far (x, y) the points lie past them, in pixels, in [0, 1)
    returns   (*N, P − 1, P − 1) the values at the points

    Convention: first patch axis y, second x; fraction in (x, y) order.
    """
    dx, dy = fraction[..., None, None, :].unbind(-1)
    rows = torch.lerp(patch[..., :-1, :], patch[..., 1:, :], dy)
    return torch.lerp(rows[..., :-1], rows[..., 1:], dx)


# %% tags=["check"]
four = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
middle = blend_patch(four, torch.tensor([0.5, 0.5]))
assert middle.tolist() == [[25.0]], "half way between 10, 20, 30 and 40 lies 25"


# %% tags=["promote"]
def _check_arguments(maps: Tensor, centres: Tensor, radius: int) -> None:
    for name, tensor in (("maps", maps), ("centres", centres)):
        if not tensor.is_floating_point():
            raise TypeError(
                f"{name} has dtype {tensor.dtype}; expected floating point (call .float() on it)"
            )
    if maps.ndim not in (3, 4) or 0 in maps.shape[-2:]:
        raise ValueError(
            f"maps has shape {tuple(maps.shape)}; expected (B, H, W) or (B, C, H, W)"
            " with at least one pixel"
        )
    if centres.ndim not in (2, 3) or centres.shape[-1] != 2:
        raise ValueError(
            f"centres has shape {tuple(centres.shape)}; expected (B, 2) or (B, K, 2),"
            " with (x, y) in the last axis"
        )
    if centres.shape[0] != maps.shape[0]:
        raise ValueError(
            f"centres has batch size {centres.shape[0]}; expected {maps.shape[0]}, that of maps"
        )
    if not isinstance(radius, int) or radius < 0:
        raise ValueError(f"radius is {radius!r}; expected a whole number of pixels, 0 or more")


# %% tags=["promote"]
def sample_window(
    maps: Float[Tensor, "B *C H W"], centres: Float[Tensor, "B *K 2"], radius: int
) -> Float[Tensor, "B ... {2*radius+1} {2*radius+1}"]:
    """Read the square window around each centre of each map (equation 1 of the lesson).

    maps     (B, H, W), or (B, C, H, W) with channels, in any unit
    centres  (B, 2) one centre per map, or (B, K, 2) for K, in pixels of the map
    radius   r, in pixels of the map: the window has S = 2r + 1 points a side, one pixel apart
    returns  (B, [K], [C], S, S) in the unit and the dtype of maps; the K axis is there when centres
             has one, the C axis when maps has one

    The same numbers and gradients as `sample` at each of the S² points, with zeros outside the map.
    A map value that is not finite reaches the points whose four neighbours include it, and no
    others; a centre that is not finite gives NaN. Half-precision centres are computed in float32.

    Raises TypeError for integer maps or centres, ValueError for a shape or a radius that does not
    fit; the sentence names the argument.

    Convention: centres in (x, y) order, x to the right, y down, the centre of the top-left pixel
    at (0, 0); the first window axis is y, the second x, offsets −r … r.
    Source: Teed and Deng 2020, RAFT (2003.12039), section 3.2, the look-up operator.
    """
    _check_arguments(maps, centres, radius)
    H, W = maps.shape[-2:]
    size = 2 * radius + 2
    stack = maps if maps.ndim == 4 else maps[:, None]
    points = centres if centres.ndim == 3 else centres[:, None]
    points = points.float() if points.dtype.itemsize < 4 else points
    dtype = maps.dtype if maps.dtype.itemsize > 2 else torch.float32
    floor = points.floor()
    fraction = (points - floor)[:, :, None].to(dtype)
    # The clamp keeps a far centre outside and its corner a number that an integer can hold.
    corner = (floor - radius).clamp(-size, max(H, W)).long()
    window = blend_patch(read_patch(stack, corner, size).to(dtype), fraction).to(maps.dtype)
    window = window if maps.ndim == 4 else window.squeeze(2)
    return window if centres.ndim == 3 else window.squeeze(1)


# %% tags=["promote", "exercise"]
def sample_pyramid(
    levels: Sequence[Tensor], centres: Float[Tensor, "B *K 2"], radius: int
) -> list[Tensor]:
    """Read a window at every level of a pyramid of maps (equation 7 of the lesson).

    levels   level k is (B, H / 2ᵏ, W / 2ᵏ), or (B, C, H / 2ᵏ, W / 2ᵏ) with channels
    centres  (B, 2) or (B, K, 2), in pixels of level 0
    radius   in pixels of each level, so that a window covers twice as much at each next level
    returns  one result of `sample_window` per level

    Raises what `sample_window` raises.

    Convention: centres in (x, y) order, x to the right, y down; divided by 2ᵏ at level k, as RAFT
    does, which takes the pixel centre (0, 0) of every level as the same point.
    Source: Teed and Deng 2020, RAFT (2003.12039), section 3.2.
    """
    return [sample_window(level, centres / 2**k, radius) for k, level in enumerate(levels)]


# %% tags=["check"]
levels = [torch.rand(1, 8, 8), torch.rand(1, 4, 4)]
coarse = sample_pyramid(levels, torch.tensor([[3.0, 5.0]]), 1)[1]
expected = sample_window(levels[1], torch.tensor([[1.5, 2.5]]), 1)
assert torch.equal(coarse, expected), "level 1 is read at half the coordinates"
