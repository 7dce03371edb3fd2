# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: beginner
#     minutes: 50
#     needs: [6_bilinear_sampling/1_sampling]
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Warps: where each output pixel reads
#
# **After this lesson you can** turn, zoom, shift, tilt and bend a photograph by writing down, for every pixel of the picture you want, the position in the picture you have.

# %% [markdown]
# ## Code

# %%
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fourfold.bilinear_sampling.sampling import sample

# %% tags=["promote"]
def _check_size(H: int, W: int) -> None:
    for name, size in (("H", H), ("W", W)):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number of pixels, 1 or more; got {size!r}")


def _coordinates(name: str, values: Tensor) -> Tensor:
    if not values.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers; got {values.dtype}")
    # From 1024 px on, half precision steps by a whole pixel or nearly so.
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _matrices(matrix: Tensor) -> Tensor:
    if matrix.dim() not in (2, 3) or matrix.shape[-2:] != (3, 3):
        raise ValueError(f"matrix must have shape (3, 3) or (B, 3, 3); got {tuple(matrix.shape)}")
    matrix = _coordinates("matrix", matrix)
    return matrix if matrix.dim() == 3 else matrix[None]


# %% tags=["promote"]
def pixel_grid(
    H: int,
    W: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "H W 2"]:
    """The position of every pixel of an H × W image: entry [y, x] holds (x, y).

    Raises ValueError when a size is not a whole number of 1 or more.

    Convention: pixels, (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    _check_size(H, W)
    x = torch.arange(W, device=device, dtype=dtype or torch.get_default_dtype())
    y = torch.arange(H, device=device, dtype=dtype or torch.get_default_dtype())
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


# %% tags=["promote"]
def warp(
    image: Float[Tensor, "B C h w"], grid: Float[Tensor, "G H W 2"], *, padding: str = "zeros"
) -> Float[Tensor, "N C H W"]:
    """Read a new image out of an old one: output pixel [y, x] is the image at grid[y, x].

    Equation 1 of the lesson.
    """
    if grid.dim() != 4 or grid.shape[-1] != 2:
        raise ValueError(f"grid must have shape (B, H, W, 2); got {tuple(grid.shape)}")
    grid = _coordinates("grid", grid)
    B, G = image.shape[0], grid.shape[0]
    if B != G and 1 not in (B, G):
        raise ValueError(f"grid must have as many maps as image has images, or one; got {G} and {B}")
    N = G if B == 1 else B
    return sample(
        image.expand(N, *image.shape[1:]), grid.expand(N, *grid.shape[1:]), padding=padding
    )
