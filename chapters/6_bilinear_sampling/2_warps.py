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
from fourfold.bilinear_sampling.sampling import sample
from jaxtyping import Bool, Float
from torch import Tensor


# %% tags=["promote"]
def _check_size(H: int, W: int, names: str = "HW") -> None:
    for name, size in zip(names, (H, W), strict=True):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} is {size!r}; expected a whole number of pixels, 1 or more")


def _coordinates(name: str, values: Tensor) -> Tensor:
    if not values.is_floating_point():
        raise TypeError(
            f"{name} holds {values.dtype}; expected floating point, as in {name}.float()"
        )
    # Between 512 and 1024 px half precision moves in steps of half a pixel, bfloat16 of four.
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _grid(grid: Tensor) -> Tensor:
    if grid.dim() != 4 or grid.shape[-1] != 2:
        raise ValueError(f"grid has shape {tuple(grid.shape)}; expected (B, H, W, 2)")
    return _coordinates("grid", grid)


# A position outside any image, small enough for half precision.
_OUTSIDE = -1e4


def _matrices(matrix: Tensor) -> Tensor:
    if matrix.dim() not in (2, 3) or matrix.shape[-2:] != (3, 3):
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; expected (3, 3) or (B, 3, 3)")
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
    """The position of every pixel of an H × W image: entry [y, x] holds (x, y), in pixels.

    Raises ValueError for a size that is not a whole number of 1 or more.

    Convention: (x, y) order, x to the right, y down, centre of the top-left pixel at (0, 0).
    """
    _check_size(H, W)
    dtype = dtype or torch.get_default_dtype()
    x = torch.arange(W, device=device, dtype=dtype)
    y = torch.arange(H, device=device, dtype=dtype)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


# %% tags=["promote"]
def warp(
    image: Float[Tensor, "Bi C h w"], grid: Float[Tensor, "Bg H W 2"], *, padding: str = "zeros"
) -> Float[Tensor, "B C H W"]:
    """Make an image by reading another one: output pixel [y, x] is the image read at grid[y, x].

    Equation 1 of the lesson. The output has the size of the grid and the dtype of the image; a
    batch of one, image or grid, serves the whole batch of the other. `padding` is what `sample`
    reads outside the image: "zeros", "border" or "reflection". Raises ValueError for a grid of
    another shape or batch, TypeError for a grid of whole numbers, and what `sample` raises.

    Convention: grid holds (x, y) in pixels of the input image, x to the right, y down, centre of
    the top-left pixel at (0, 0); it maps backward, from output pixel to input position.
    """
    if image.dim() != 4:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (B, C, h, w)")
    grid = _grid(grid)
    images, grids = image.shape[0], grid.shape[0]
    if images != grids and 1 not in (images, grids):
        raise ValueError(f"grid has a batch of {grids}; expected 1 or the image's {images}")
    B = grids if images == 1 else images
    return sample(image.expand(B, -1, -1, -1), grid.expand(B, -1, -1, -1), padding=padding)


# %% tags=["promote", "exercise"]
def affine_grid(matrix: Float[Tensor, "*B 3 3"], H: int, W: int) -> Float[Tensor, "B H W 2"]:
    """Send every pixel of an H × W output through an affine matrix: p = M q.

    Equation 2 of the lesson. One matrix (3, 3) gives a batch of one. Raises ValueError for a
    matrix of another shape or whose last row is not (0, 0, 1), and for a size below 1; TypeError
    for a matrix of whole numbers.

    Convention: matrix maps output pixel to input position, both (x, y, 1) in pixels, x to the
    right, y down, centre of the top-left pixel at (0, 0).
    """
    m = _matrices(matrix)[..., None, None]
    if (m[:, 2].flatten(1) != m.new_tensor([0, 0, 1])).any():
        raise ValueError("matrix has a last row other than (0, 0, 1); expected an affine map")
    x, y = pixel_grid(H, W, device=m.device, dtype=m.dtype).unbind(-1)
    return torch.stack([m[:, r, 0] * x + m[:, r, 1] * y + m[:, r, 2] for r in (0, 1)], dim=-1)


# %% tags=["promote"]
def translation(
    dx: float,
    dy: float,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "3 3"]:
    """The matrix that moves a point by (dx, dy) pixels.

    Convention: acts on (x, y, 1), x to the right, y down.
    """
    return _about([[1.0, 0.0], [0.0, 1.0]], (0.0, 0.0), (dx, dy), device, dtype)


def rotation(
    degrees: float,
    centre: tuple[float, float] = (0.0, 0.0),
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "3 3"]:
    """The matrix that turns a point about a centre, clockwise as seen on the screen.

    Quarter turns are exact. A picture read through it turns the other way, counter-clockwise.

    Convention: acts on (x, y, 1), x to the right, y down; centre (x, y) in pixels.
    """
    quarters, rest = divmod(degrees, 90)
    cos, sin = math.cos(math.radians(rest)), math.sin(math.radians(rest))
    for _ in range(int(quarters) % 4):
        cos, sin = -sin, cos
    return _about([[cos, -sin], [sin, cos]], centre, (0.0, 0.0), device, dtype)


def scaling(
    factor: float | tuple[float, float],
    centre: tuple[float, float] = (0.0, 0.0),
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "3 3"]:
    """The matrix that multiplies a point's distance from a centre by a factor, or by (fx, fy).

    A picture read through it shrinks by that factor: to zoom in twice, read through 1/2.

    Convention: acts on (x, y, 1), x to the right, y down; centre (x, y) in pixels.
    """
    fx, fy = factor if isinstance(factor, tuple) else (factor, factor)
    return _about([[fx, 0.0], [0.0, fy]], centre, (0.0, 0.0), device, dtype)


def _about(linear, centre, shift, device, dtype) -> Tensor:
    """The 3 × 3 matrix of p = linear (q − centre) + centre + shift."""
    (a, b), (c, d) = linear
    x, y = centre
    dx, dy = shift
    rows = [[a, b, x - (a * x + b * y) + dx], [c, d, y - (c * x + d * y) + dy], [0.0, 0.0, 1.0]]
    return torch.tensor(rows, device=device, dtype=dtype or torch.get_default_dtype())


# %% tags=["promote", "exercise"]
def homography_grid(matrix: Float[Tensor, "*B 3 3"], H: int, W: int) -> Float[Tensor, "B H W 2"]:
    """Send every pixel of an H × W output through a homography: (X, Y, w) = M q, p = (X, Y) / w.

    Equation 3 of the lesson. A pixel at or behind the horizon, w ≤ 0, sees no point of the plane
    and gets the position (−10⁴, −10⁴), outside any image. Raises ValueError for a matrix of
    another shape and a size below 1, TypeError for a matrix of whole numbers.

    Convention: matrix maps output pixel to input position, both in pixels, x to the right, y down,
    centre of the top-left pixel at (0, 0); its sign is such that w > 0 where the plane is seen.
    """
    m = _matrices(matrix)[..., None, None]
    x, y = pixel_grid(H, W, device=m.device, dtype=m.dtype).unbind(-1)
    X, Y, w = (m[:, r, 0] * x + m[:, r, 1] * y + m[:, r, 2] for r in (0, 1, 2))
    # A w lost in the rounding of the others counts as 0, so that the quotient stays finite.
    seen = w > torch.finfo(w.dtype).eps * w.abs().amax(dim=(1, 2), keepdim=True)
    # Where nothing is seen, dividing by 1 keeps infinities out of the gradient too.
    p = torch.stack([X, Y], dim=-1) / torch.where(seen, w, 1)[..., None]
    return torch.where(seen[..., None], p, _OUTSIDE)


# %% tags=["promote"]
def _normalised(name: str, points: Tensor | Sequence) -> tuple[Tensor, Tensor]:
    """Four points moved and scaled into [−1, 1], and the matrix that does it."""
    points = torch.as_tensor(points, dtype=torch.float64, device="cpu")
    if points.shape != (4, 2) or not points.isfinite().all():
        raise ValueError(f"{name} is {points.tolist()}; expected four finite (x, y) positions")
    x, y = points.mean(dim=0).tolist()
    offsets = points - points.mean(dim=0)
    extent = offsets.abs().max().item() or 1.0
    move = translation(-x, -y, dtype=torch.float64)
    return offsets / extent, scaling(1 / extent, dtype=torch.float64) @ move


def _triangles(points: Float[Tensor, "4 2"]) -> Float[Tensor, "4"]:
    """Twice the signed areas of the four triangles that leave one of four points out."""
    a, b, c = points[[1, 0, 0, 0]], points[[2, 2, 1, 1]], points[[3, 3, 3, 2]]
    (x1, y1), (x2, y2) = (b - a).T, (c - a).T
    return x1 * y2 - x2 * y1


def _check_order(p: Float[Tensor, "4 2"], q: Float[Tensor, "4 2"]) -> None:
    for name, areas in (("from_points", _triangles(p)), ("to_points", _triangles(q))):
        if areas.abs().min() < 1e-9:
            raise ValueError(f"{name} has three points on a line; expected a quadrilateral")
    if (_triangles(p) * _triangles(q)).sign().unique().numel() > 1:
        raise ValueError(
            "to_points goes round its quadrilateral in another order than from_points; "
            "expected partners in the order that a view of one plane from another gives"
        )


# %% tags=["promote", "exercise"]
def homography_from_points(
    from_points: Float[Tensor, "4 2"] | Sequence[tuple[float, float]],
    to_points: Float[Tensor, "4 2"] | Sequence[tuple[float, float]],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "3 3"]:
    """The homography that sends each of four points to its partner.

    Equation 4 of the lesson (Hartley and Zisserman, Multiple View Geometry, section 4.1), solved
    in float64 on points moved and scaled to [−1, 1] (section 4.4). Its scale makes w = 1 at the
    mean of from_points. Raises ValueError for other than four points, for three points on a line,
    and for partners in another order round, which no view of a plane can produce.

    Convention: points are (x, y) in pixels, x to the right, y down.
    """
    (p, P), (q, Q) = _normalised("from_points", from_points), _normalised("to_points", to_points)
    _check_order(p, q)
    (x, y), (u, v), one, zero = p.T, q.T, torch.ones_like(p[:, 0]), torch.zeros_like(p[:, 0])
    u_rows = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=1)
    v_rows = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=1)
    m = torch.linalg.solve(torch.cat([u_rows, v_rows]), torch.cat([u, v]))
    matrix = torch.linalg.inv(Q) @ torch.cat([m, one[:1]]).reshape(3, 3) @ P
    return matrix.to(device=device, dtype=dtype or torch.get_default_dtype())


# %% tags=["promote", "exercise"]
def flow_grid(flow: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B H W 2"]:
    """Add a flow to the position of every pixel: p = q + f(q).

    Equation 5 of the lesson. Raises ValueError for a flow of another shape, TypeError for a flow
    of whole numbers. A flow in half precision gives a grid in float32.

    Convention: flow holds (u, v) in pixels, u to the right, v down, on the pixels of the output;
    its end point is the position read in the input.
    """
    if flow.dim() != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow has shape {tuple(flow.shape)}; expected (B, 2, H, W)")
    f = _coordinates("flow", flow).permute(0, 2, 3, 1)
    return pixel_grid(*f.shape[1:3], device=f.device, dtype=f.dtype) + f


# %% tags=["promote"]
def inside(grid: Float[Tensor, "B H W 2"], h: int, w: int) -> Bool[Tensor, "B H W"]:
    """Whether each position lies among the pixel centres of an h × w image, border included.

    Raises ValueError for a grid of another shape and a size below 1. False for NaN.

    Convention: grid holds (x, y) in pixels, x to the right, y down, centre of the top-left pixel
    at (0, 0).
    """
    grid = _grid(grid)
    _check_size(h, w, names="hw")
    x, y = grid.unbind(-1)
    return (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)
