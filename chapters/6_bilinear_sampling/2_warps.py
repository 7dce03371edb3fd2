# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: beginner
#     minutes: 55
#     needs:
#     - 6_bilinear_sampling/1_sampling
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Warps: where each output pixel reads
#
# **After this lesson you can** turn, zoom, tilt, bend and align photographs by writing down, for
# each pixel of the picture you want, the position in the picture you have.
#
# *Before this:* [Sampling](1_sampling.ipynb), which reads an image between its pixels.
# *Time:* 55 minutes, and 35 for the blanks.

# %% [markdown]
# ## Words
#
# A **warp** (图像变换) makes a new image out of an old one by moving things. It is a list of
# positions, one for every pixel of the new image: to fill output pixel $q$, go to position $p$ in
# the input image $I$, read the colour there with bilinear sampling (双线性采样), write it down in
# the output $J$. A rotation, a zoom, a photograph laid on a floor and an optical flow (光流) all
# work this way and differ only in the rule that turns $q$ into $p$: a matrix $M$, a matrix and a
# division by $w$, or an added arrow $f$. The rule runs **backward**, from the picture we want to
# the picture we have. That way every output pixel gets exactly one colour.

# %% [markdown]
# ## Figure
#
# One grid of output pixels, three rules, three outputs, all computed by the module that this
# lesson writes.

# %%
import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

import torch
from jaxtyping import Bool, Float
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from fourfold.bilinear_sampling import warps
from fourfold.bilinear_sampling.sampling import _check_floating, sample
from fourfold.kit.drawing import (
    COLOURS,
    canvas,
    flow_to_image,
    flow_wheel,
    image_grid,
    show,
    to_picture,
)
from fourfold.kit.images import credit, photograph, stereo_pair
from fourfold.kit.notebook import shows_error


# %%
def draw_mesh(axes, positions, step=12):
    for line in [*positions[::step], *positions[:, ::step].transpose(0, 1)]:
        for colour, width in (("black", 1.8), ("white", 0.8)):
            axes.plot(*line.T, color=colour, linewidth=width)


def follow(figure, stops):
    for axes, point in stops:
        axes.plot(*point, "o", color=COLOURS["query"], markersize=7, mec="white", zorder=5)
    for (a, tail), (b, head) in pairwise(stops):
        arrow = ConnectionPatch(tail, head, "data", "data", axesA=a, axesB=b, arrowstyle="->")
        arrow.set(color=COLOURS["query"])
        figure.add_artist(arrow)


# %% tags=["figure"]
def draw_pipeline(image, q, grids, chosen):
    bare = {"frame_on": False, "xticks": [], "yticks": []}
    figure, axes = canvas(3, 3, height=5.8, subplot_kw=bare)
    start, (x, y) = axes[1, 0], chosen
    draw_mesh(start, q)
    start.set(aspect="equal", title=f"pixel q\n{tuple(q.shape)}")
    start.invert_yaxis()
    for (_, middle, right), (rule, grid) in zip(axes, grids.items(), strict=True):
        output = warps.warp(image, grid)
        middle.imshow(to_picture(image))
        draw_mesh(middle, grid[0])
        middle.set_title(f"{rule}\nposition p\n{tuple(grid.shape)}")
        right.imshow(to_picture(output))
        right.set_title(f"output J =\ninput I at p\n{tuple(output.shape)}")
        follow(figure, [(start, chosen), (middle, grid[0, y, x].tolist()), (right, chosen)])
    return figure


photo, side = photograph("coffee", height=140), 97
q = warps.pixel_grid(side, side)
corners = [(0, 0), (side - 1, 0), (side - 1, side - 1), (0, side - 1)]
turned = warps.translation(56, 22) @ warps.rotation(30, (48, 48))
tilted = warps.homography_from_points(corners, [(80, 20), (150, 10), (195, 130), (25, 120)])
x, y = (q - 48).unbind(-1)
wavy = torch.stack([56 + 9 * torch.sin(y / 9), 22 + 6 * torch.sin(x / 12)])[None]
rules = {
    "matrix M": warps.affine_grid(turned, side, side),
    "matrix M, divide by w": warps.homography_grid(tilted, side, side),
    "flow f": warps.flow_grid(wavy),
}
alt = """A square grid of output pixels goes through three rules to three meshes of positions over a
photograph of a coffee cup: turned, in perspective, wavy. Beside each is the square it reads."""
show(draw_pipeline(photo, q, rules, chosen=(24, 36)), alt, photo=True)

# %% [markdown]
# The same pixel $q$ (the dot) reads at three different positions $p$: follow its arrows from the
# plain grid to the mesh over the photograph, and on to the colour it brings back.
#
# *Photographs in this lesson come with scikit-image; their credits are printed at the end of "On
# real input".*

# %% [markdown]
# ## Formula
#
# An image warped by any rule $p$ is
#
# $$ J(q) = I\big(p(q)\big) \qquad \text{for every output pixel } q = (x, y). \tag{1} $$
#
# The position $p(q)$ seldom falls on a pixel centre, so $I(p)$ is the bilinear reading of the
# lesson before. The rules differ in what they can do. An **affine** map (仿射变换) is a matrix that
# acts on the pixel with a 1 written below it. It turns, zooms, shears and shifts, and keeps
# parallel lines parallel:
#
# $$ \begin{pmatrix} p \\ 1 \end{pmatrix} = M \begin{pmatrix} x \\ y \\ 1 \end{pmatrix},
# \qquad M = \begin{pmatrix} m_{11} & m_{12} & m_{13} \\ m_{21} & m_{22} & m_{23} \\ 0 & 0 & 1
# \end{pmatrix}. \tag{2} $$
#
# A **homography** (单应变换) frees the last row of $M$. The third number that comes out, $w$, is no
# longer 1: it is large where the pixel sees something near, and falls to 0 at the horizon. Dividing
# by a small $w$ spreads the positions of neighbouring pixels far apart, so far things look small.
# Straight lines stay straight, parallel ones may meet. This is how one plane looks from another:
#
# $$ \begin{pmatrix} X \\ Y \\ w \end{pmatrix} = M \begin{pmatrix} x \\ y \\ 1 \end{pmatrix},
# \qquad p = \left( \frac{X}{w}, \frac{Y}{w} \right) \quad \text{where } w > 0. \tag{3} $$
#
# Multiplying $M$ by a positive number changes nothing, so a homography has eight unknowns, and four
# pairs of points fix it. In coordinates whose origin is the mean of the four points, $m_{33}$ is
# $w$ at that mean. All four points are seen, $w > 0$, so $w > 0$ between them too, and we may scale
# $M$ until $m_{33} = 1$. Each pair $(x, y) \to (x', y')$ then gives two linear equations:
#
# $$ \begin{aligned}
# m_{11} x + m_{12} y + m_{13} - x'\,(m_{31} x + m_{32} y) &= x', \\
# m_{21} x + m_{22} y + m_{23} - y'\,(m_{31} x + m_{32} y) &= y'.
# \end{aligned} \tag{4} $$
#
# A **flow** has no matrix: every pixel carries an arrow of its own, $f(q) = (u, v)$ in pixels,
#
# $$ p = q + f(q). \tag{5} $$

# %% [markdown]
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $I$ | the image we have | (B, C, h, w), any unit | `image` | input I |
# | $J$ | the image we want | (B, C, H, W), unit of the input | `warp` | output J |
# | $q$ | a pixel of the output | (H, W, 2), (x, y) in pixels | `pixel_grid` | pixel q |
# | $p$ | the position it reads at | (B, H, W, 2), (x, y) in pixels | `grid` | position p |
# | $M$ | the matrix from output to input | (B, 3, 3) | `matrix` | matrix M |
# | $w$ | what a homography divides by | (B, H, W), proportional to 1 / distance | `w` | divide by w |
# | $f$ | the arrow of each output pixel | (B, 2, H, W), (u, v) in pixels | `flow` | flow f |
#
# In shapes, $h$ and $w$ are the height and width of the input, $H$ and $W$ those of the output; in
# Equation 3, $w$ is the divisor.

# %% [markdown]
# > **Direction.** In this course, as in most code, a warp is given by the *backward* map: from
# > output pixel to input position. A matrix that moves points to the right therefore moves the
# > picture to the left, and one that turns points clockwise turns the picture counter-clockwise.
# > Positions are (x, y), x to the right, y down, with the centre of the top-left pixel at (0, 0).
# >
# > **Where the code leaves the paper.** Spatial Transformer Networks (Jaderberg et al. 2015,
# > equation 1) writes its affine map in coordinates that run from −1 to 1 across each image, and so
# > does `torch.nn.functional.affine_grid`. There a turn on an image that is not square also shears.
# > Here both sides are pixels, and a turn is a turn.

# %% [markdown]
# ## Code
#
# ### The pixel grid: every $q$ at once
#
# An array indexes row first, `image[y, x]`; a position is written column first, $(x, y)$. The pixel
# grid is where the two meet: the entry at `[y, x]` holds the numbers `(x, y)`.


# %%
def pixel_grid_loop(H, W):
    grid = torch.empty(H, W, 2)
    for y in range(H):
        for x in range(W):
            grid[y, x] = torch.tensor([x, y])
    return grid


pixel_grid_loop(2, 3)

# %% [markdown]
# Before the fast version, three small guards. They turn a wrong argument into a sentence that names
# it, and they keep positions out of half precision, which cannot tell neighbouring pixels of a
# large image apart.


# %% tags=["promote"]
def _check_size(H: int, W: int, names: str = "HW") -> None:
    for name, size in zip(names, (H, W), strict=True):
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name} is {size!r}; expected a whole number of pixels, 1 or more")


def _coordinates(name: str, values: Tensor) -> Tensor:
    _check_floating(name, values)
    # From 512 to 1024 px a float16 moves in steps of half a pixel, a bfloat16 in steps of four.
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _grid(grid: Tensor) -> Tensor:
    grid = _coordinates("grid", grid)
    if grid.dim() != 4 or grid.shape[-1] != 2:
        raise ValueError(f"grid has shape {tuple(grid.shape)}; expected (B, H, W, 2)")
    return grid


# Outside any image, and near enough for float32 to stay exact.
_OUTSIDE = -1e4


def _matrices(matrix: Tensor) -> Tensor:
    matrix = _coordinates("matrix", matrix)
    if matrix.dim() not in (2, 3) or matrix.shape[-2:] != (3, 3):
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; expected (3, 3) or (B, 3, 3)")
    return matrix if matrix.dim() == 3 else matrix[None]


# %% tags=["promote"]
def pixel_grid(
    H: int,
    W: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "H W 2"]:
    """Give the position of every pixel of an H × W image (q in the lesson's equations).

    H, W     height and width in pixels
    returns  (H, W, 2) in pixels: entry [y, x] holds (x, y)

    Raises ValueError for a size that is not a whole number of 1 or more.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    _check_size(H, W)
    dtype = dtype or torch.get_default_dtype()
    x = torch.arange(W, device=device, dtype=dtype)
    y = torch.arange(H, device=device, dtype=dtype)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


# %% tags=["check"]
assert torch.equal(pixel_grid(4, 6), pixel_grid_loop(4, 6)), "pixel_grid should equal the loop"
assert pixel_grid(4, 6)[3, 5].tolist() == [5, 3], "the entry at [y, x] should hold (x, y)"

# %% [markdown]
# ### The warp: equation 1, word for word
#
# For every output pixel, read the image at the pixel's position. The loop reads one pixel at a
# time.


# %%
def warp_loop(image, grid, padding="zeros"):
    B, H, W, _ = grid.shape
    output = torch.empty(B, image.shape[1], H, W)
    for y in range(H):
        for x in range(W):
            output[:, :, y, x] = sample(image, grid[:, y, x], padding=padding)
    return output


# %% [markdown]
# `sample` takes any number of points at once, so the warp is one call. The rest is courtesy: one
# image may be read through many grids, and one grid may serve many images.


# %% tags=["promote"]
def warp(
    image: Float[Tensor, "Bi C h w"], grid: Float[Tensor, "Bg H W 2"], *, padding: str = "zeros"
) -> Float[Tensor, "B C H W"]:
    """Make an image by reading another one at a grid of positions (equation 1 of the lesson).

    image    (B, C, h, w) the image to read
    grid     (B, H, W, 2) where each output pixel reads, as (x, y) in pixels of image
    padding  what lies outside, as in `sample`: "zeros", "border" or "reflection"
    returns  (B, C, H, W) in the units and the dtype of image; gradients flow to both

    A batch of one, of either, serves the whole batch of the other. Raises TypeError for an image
    or a grid of whole numbers, ValueError for shapes, batches or a padding that do not fit.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0);
    the grid maps backward, from output pixel to input position.
    """
    _check_floating("image", image)
    if image.dim() != 4:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (B, C, h, w)")
    grid = _grid(grid)
    images, grids = image.shape[0], grid.shape[0]
    if images != grids and 1 not in (images, grids):
        raise ValueError(f"grid has a batch of {grids}; expected 1 or the image's {images}")
    B = grids if images == 1 else images
    return sample(image.expand(B, -1, -1, -1), grid.expand(B, -1, -1, -1), padding=padding)


# %% tags=["check"]
random = torch.Generator().manual_seed(0)
noise = torch.rand(2, 3, 8, 9, generator=random)
anywhere = 12 * torch.rand(2, 5, 7, 2, generator=random) - 2
for padding in ("zeros", "border", "reflection"):
    fast, slow = warp(noise, anywhere, padding=padding), warp_loop(noise, anywhere, padding)
    # The same numbers in another order: a few roundings of float32 apart on values below 1.
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-6)
still = warp(noise, pixel_grid(8, 9)[None])
# Positions on pixel centres are hit to about 1e-6 of a pixel in float32.
torch.testing.assert_close(still, noise, rtol=0, atol=1e-5, msg="the pixel grid moves nothing")

# %% [markdown]
# ### Why backward: the holes of a forward warp
#
# The other direction looks more natural: take each pixel of the photograph and *push* it to where
# it goes. Here is that forward warp, for a map that enlarges by a quarter and turns.


# %%
def forward_warp(image, matrix):
    h, w = image.shape[-2:]
    q = pixel_grid(h, w) @ matrix[:2, :2].T + matrix[:2, 2]
    x, y = q.round().long().unbind(-1)
    lands = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    output, hits = torch.zeros_like(image), torch.zeros(h, w)
    output[..., y[lands], x[lands]] = image[..., lands]
    hits.index_put_((y[lands], x[lands]), torch.ones(()), accumulate=True)
    return output, hits


# %%
cat = photograph("chelsea", height=150)
h, w = cat.shape[-2:]
centre = ((w - 1) / 2, (h - 1) / 2)
forward_map = warps.rotation(12, centre) @ warps.scaling(1.25, centre)
pushed, hits = forward_warp(cat, forward_map)
pulled = warp(cat, warps.affine_grid(torch.linalg.inv(forward_map), h, w))

# %% [markdown]
# The backward warp of the same motion reads through the *inverse* of the forward map,
# `torch.linalg.inv`. A pixel is a hole if nothing landed on it although the position that it would
# read at lies in the photograph.

# %%
covered = warps.inside(warps.affine_grid(torch.linalg.inv(forward_map), h, w), h, w)[0]
holes = covered & (hits == 0)
hole_share = holes.sum() / covered.sum()
print(f"{holes.sum()} holes: {hole_share:.0%} of the pixels that should have a colour")
assert 0.3 < hole_share < 0.42, "1 − 1/1.25² = 36 % of the pixels cannot be reached"

# %%
zoomed = (..., slice(45, 105), slice(80, 170))
show(
    image_grid(
        [torch.where(holes, 255.0, pushed)[zoomed], pulled[zoomed]],
        ["forward: push, holes in white", "backward: read"],
        width=5,
    ),
    alt="A detail of a cat's face, enlarged and turned: pushed forward it is covered by a regular "
    "lattice of white holes, read backward it is whole.",
    photo=True,
)

# %% [markdown]
# An enlarged picture has more pixels than the original, so pushing cannot fill it: the holes form a
# lattice. Reading backward asks every output pixel the same question and always gets an answer.

# %% [markdown]
# ### Affine maps: equation 2
#
# The loop multiplies the matrix with one pixel after another.


# %%
def affine_grid_loop(matrix, H, W):
    grid = torch.empty(1, H, W, 2)
    for y in range(H):
        for x in range(W):
            grid[0, y, x] = (matrix @ torch.tensor([x, y, 1.0]))[:2]
    return grid


# %%
shear = torch.tensor([[1.5, 0.25, -3], [0.5, 0.75, 2], [0, 0, 1]])
affine_grid_loop(shear, 2, 2)

# %% [markdown]
# The fast version writes out both rows of equation 2 for all pixels together: two products and two
# sums per coordinate.


# %% tags=["promote", "exercise"]
def affine_grid(matrix: Float[Tensor, "*B 3 3"], H: int, W: int) -> Float[Tensor, "B H W 2"]:
    """Send every pixel of an H × W output through an affine matrix (equation 2 of the lesson).

    matrix   (3, 3) or (B, 3, 3), last row (0, 0, 1); one matrix is a batch of one
    H, W     height and width of the output, in pixels
    returns  (B, H, W, 2) input positions, in pixels

    Raises TypeError for a matrix of whole numbers, ValueError for another shape or last row and
    for a size below 1.

    Convention: matrix maps output pixel to input position, both (x, y, 1), x to the right, y down,
    the centre of the top-left pixel at (0, 0).
    """
    m = _matrices(matrix)[..., None, None]
    # A matrix that was computed, say by a least squares fit, may miss the row by its rounding.
    off = (m[:, 2].flatten(1) - m.new_tensor([0, 0, 1])).abs()
    if (off > 8 * torch.finfo(m.dtype).eps).any():
        raise ValueError(
            "matrix has a last row other than (0, 0, 1); expected an affine map (for perspective, "
            "call homography_grid)"
        )
    x, y = pixel_grid(H, W, device=m.device, dtype=m.dtype).unbind(-1)
    return torch.stack([m[:, r, 0] * x + m[:, r, 1] * y + m[:, r, 2] for r in (0, 1)], dim=-1)


# %% tags=["check"]
positions = affine_grid(shear, 5, 7)
assert positions.shape == (1, 5, 7, 2), "affine_grid should return (B, H, W, 2)"
# Sums of three products in float32 on values below 20.
torch.testing.assert_close(
    positions, affine_grid_loop(shear, 5, 7), rtol=0, atol=1e-5,
    msg="affine_grid should equal the loop",
)  # fmt: skip
assert torch.equal(affine_grid(torch.eye(3), 5, 7)[0], pixel_grid(5, 7)), (
    "the identity matrix should give the pixel grid"
)
with shows_error(ValueError):
    affine_grid(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.1, 1]]), 5, 7)

# %% [markdown]
# Nobody wants to type six numbers. Three constructors make the usual matrices, and the product
# `@` chains them: in `A @ B` the pixel goes through `B` first. To turn or scale about a centre
# $c$, move it to the origin, apply the 2 × 2 matrix $L$, and move it back: $q \mapsto L(q - c) +
# c$, so the last column of $M$ is $c - L c$, plus a shift if there is one.


# %% tags=["promote"]


def _about(linear, centre, shift, device, dtype) -> Tensor:
    """Give the matrix of p = linear (q − centre) + centre + shift."""
    (a, b), (c, d) = linear
    x, y = centre
    dx, dy = shift
    rows = [[a, b, x - (a * x + b * y) + dx], [c, d, y - (c * x + d * y) + dy], [0.0, 0.0, 1.0]]
    return torch.tensor(rows, device=device, dtype=dtype or torch.get_default_dtype())


def translation(
    dx: float,
    dy: float,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "3 3"]:
    """Give the (3, 3) matrix that moves a point by (dx, dy) pixels.

    A picture that is read through it moves the other way, by (−dx, −dy).

    Convention: acts on (x, y, 1), x to the right, y down.
    """
    return _about([[1.0, 0.0], [0.0, 1.0]], (0, 0), (dx, dy), device, dtype)


# %% [markdown]
# With y pointing down, the textbook rotation matrix turns *clockwise* as seen on the screen.


# %% tags=["promote"]
def rotation(
    degrees: float,
    centre: tuple[float, float] = (0.0, 0.0),
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "3 3"]:
    """Give the (3, 3) matrix that turns a point about a centre, clockwise as seen on a screen.

    A picture that is read through it turns the other way, counter-clockwise. Quarter turns are
    exact.

    Convention: acts on (x, y, 1), x to the right, y down; centre is (x, y) in pixels, the centre of
    the top-left pixel at (0, 0).
    """
    if not math.isfinite(degrees):
        raise ValueError(f"degrees is {degrees}; expected a finite angle")
    quarters, rest = divmod(float(degrees), 90)
    cos, sin = math.cos(math.radians(rest)), math.sin(math.radians(rest))
    for _ in range(int(quarters) % 4):
        cos, sin = -sin, cos
    return _about([[cos, -sin], [sin, cos]], centre, (0, 0), device, dtype)


def scaling(
    factor: float | tuple[float, float],
    centre: tuple[float, float] = (0.0, 0.0),
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "3 3"]:
    """Give the (3, 3) matrix that multiplies distances from a centre by factor, or by (fx, fy).

    A picture that is read through it shrinks by that factor: to zoom in twice, read through 1/2.

    Convention: acts on (x, y, 1), x to the right, y down; centre is (x, y) in pixels, the centre of
    the top-left pixel at (0, 0).
    """
    fx, fy = factor if isinstance(factor, tuple | list) else (float(factor), float(factor))
    return _about([[fx, 0.0], [0.0, fy]], centre, (0, 0), device, dtype)


# %% [markdown]
# A quarter turn is a test of every sign and of the centre at once: it must put each pixel on
# another pixel's centre, exactly where `torch.rot90` puts it.

# %% tags=["check"]
square = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1))
quarter = warp(square, affine_grid(rotation(90, (2.5, 2.5)), 6, 6))
# Every position is a pixel centre, hit to about 1e-6 of a pixel in float32.
torch.testing.assert_close(quarter, square.rot90(1, (2, 3)), rtol=0, atol=1e-5)
assert (translation(2, -1) @ torch.tensor([5.0, 5, 1])).tolist() == [7, 4, 1], "dx is to the right"
assert (scaling(2, (3, 3)) @ torch.tensor([3.0, 3, 1])).tolist() == [3, 3, 1], "the centre stays"

# %% [markdown]
# ### Homographies: equation 3
#
# Three rows instead of two, then a division. Where $w$ is zero the pixel looks along the plane,
# at its **horizon** (地平线); where $w$ is negative it looks away from the plane, and dividing
# would show a mirrored copy of what lies behind the camera. The loop sends both outside the
# image.


# %%
def homography_grid_loop(matrix, H, W):
    grid = torch.full((1, H, W, 2), -1e4)
    for y in range(H):
        for x in range(W):
            X, Y, w = matrix @ torch.tensor([x, y, 1.0])
            if w > 0:
                grid[0, y, x] = torch.stack([X / w, Y / w])
    return grid


# %% tags=["promote", "exercise"]
def homography_grid(matrix: Float[Tensor, "*B 3 3"], H: int, W: int) -> Float[Tensor, "B H W 2"]:
    """Send every pixel of an H × W output through a homography (equation 3 of the lesson).

    matrix   (3, 3) or (B, 3, 3); one matrix is a batch of one
    H, W     height and width of the output, in pixels
    returns  (B, H, W, 2) input positions, in pixels, always finite for a finite matrix

    At and behind the horizon, w ≤ 0, the position is (−10⁴, −10⁴), outside any image: black under
    padding "zeros", a border or mirrored pixel under the others. Raises TypeError for a matrix of
    whole numbers, ValueError for another shape and for a size below 1.

    Convention: matrix maps output pixel to input position, x to the right, y down, the centre of
    the top-left pixel at (0, 0); its sign is such that w > 0 where the plane is seen.
    """
    m = _matrices(matrix)[..., None, None]
    x, y = pixel_grid(H, W, device=m.device, dtype=m.dtype).unbind(-1)
    X, Y, w = (m[:, r, 0] * x + m[:, r, 1] * y + m[:, r, 2] for r in (0, 1, 2))
    # A w lost in the rounding of the others counts as 0, so that the quotient stays finite.
    seen = w > torch.finfo(w.dtype).eps * w.abs().amax(dim=(1, 2), keepdim=True)
    # Where nothing is seen, dividing by 1 keeps infinities out of the gradient too.
    p = torch.stack([X, Y], dim=-1) / torch.where(seen, w, 1)[..., None]
    return torch.where(seen[..., None], p, _OUTSIDE)


# %% tags=["check"]
floor = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.25, -0.6]])
# Quotients of float32 sums, relative to their size.
torch.testing.assert_close(
    homography_grid(floor, 8, 5), homography_grid_loop(floor, 8, 5), rtol=1e-5, atol=1e-5,
    msg="homography_grid should equal the loop",
)  # fmt: skip
assert (homography_grid(floor, 8, 5)[0, :3] == -1e4).all(), "w ≤ 0 should read outside"
assert homography_grid(floor, 8, 5).isfinite().all(), "no position should be infinite or NaN"
torch.testing.assert_close(homography_grid(shear, 5, 7), affine_grid(shear, 5, 7))

# %% [markdown]
# ### A homography from four pairs of points: equation 4
#
# Four pairs give eight equations in eight unknowns. Two helpers come first. Coordinates of several
# hundred pixels next to ones make a badly conditioned system, so the points are moved and scaled
# into $[-1, 1]$ and the answer is scaled back. And three points on a line, or partners that go
# round in another order, have no view that produces them: better to say so than to solve.


# %% tags=["promote"]
def _normalised(name: str, points: Tensor | Sequence) -> tuple[Tensor, Tensor]:
    """Move and scale four points into [−1, 1]; give them and the matrix that does it."""
    try:
        points = torch.as_tensor(points, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} is {points!r}; expected four (x, y) positions") from None
    if points.shape != (4, 2) or not points.isfinite().all():
        raise ValueError(f"{name} is {points.tolist()}; expected four finite (x, y) positions")
    x, y = points.mean(dim=0).tolist()
    offsets = points - points.mean(dim=0)
    extent = offsets.abs().max().item() or 1.0
    move = translation(-x, -y, dtype=torch.float64)
    return offsets / extent, scaling(1 / extent, dtype=torch.float64) @ move


def _triangles(points: Float[Tensor, "4 2"]) -> Float[Tensor, "4"]:
    """Give twice the signed areas of the four triangles that leave one of four points out."""
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
    """Find the homography that sends each of four points to its partner (equation 4).

    from_points, to_points  four (x, y) positions each, in pixels
    returns                 (3, 3), scaled so that w = 1 at the mean of from_points

    The system is solved in float64 on points moved and scaled into [−1, 1]. Raises ValueError for
    other than four finite points, for three points on a line, and for partners in another order
    round, which no view of a plane produces.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    For a warp, from_points lie in the output and to_points in the input.
    Source: Hartley and Zisserman 2004, Multiple View Geometry, sections 4.1 and 4.4.
    """
    (p, P), (q, Q) = _normalised("from_points", from_points), _normalised("to_points", to_points)
    _check_order(p, q)
    (x, y), (to_x, to_y) = p.T, q.T
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    x_rows = torch.stack([x, y, one, zero, zero, zero, -to_x * x, -to_x * y], dim=1)
    y_rows = torch.stack([zero, zero, zero, x, y, one, -to_y * x, -to_y * y], dim=1)
    m = torch.linalg.solve(torch.cat([x_rows, y_rows]), torch.cat([to_x, to_y]))
    matrix = torch.linalg.inv(Q) @ torch.cat([m, one[:1]]).reshape(3, 3) @ P
    return matrix.to(device=device, dtype=dtype or torch.get_default_dtype())


# %% tags=["check"]
frame = [(0, 0), (299, 0), (299, 199), (0, 199)]
seen = [(40, 30), (250, 80), (260, 150), (20, 190)]
M = homography_from_points(frame, seen, dtype=torch.float64)
XYw = torch.cat([torch.tensor(frame), torch.ones(4, 1)], dim=1).double() @ M.T
# Float64 with a well-conditioned 8 × 8 system: far below a millionth of a pixel.
torch.testing.assert_close(
    XYw[:, :2] / XYw[:, 2:], torch.tensor(seen).double(), rtol=0, atol=1e-9,
    msg="each of the four points should land on its partner",
)  # fmt: skip
assert (XYw[:, 2] > 0).all(), "w should be positive at the four points"
with shows_error(ValueError):
    homography_from_points(frame, [seen[0], seen[2], seen[1], seen[3]])

# %% [markdown]
# ### Flow: equation 5
#
# The flow stores its two components as channels, like an image: `flow[:, 0]` is $u$, to the right,
# and `flow[:, 1]` is $v$, down. A grid keeps $(x, y)$ in its last axis, so the axes move.


# %% tags=["promote", "exercise"]
def flow_grid(flow: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B H W 2"]:
    """Add a flow to the position of every pixel (equation 5 of the lesson).

    flow     (B, 2, H, W) as (u, v) in pixels, one arrow for each output pixel
    returns  (B, H, W, 2) input positions, in pixels; float32 for a flow in half precision

    Raises TypeError for a flow of whole numbers, ValueError for another shape.

    Convention: u to the right, v down, from the output pixel to the input position; (x, y) order,
    the centre of the top-left pixel at (0, 0).
    """
    f = _coordinates("flow", flow)
    if f.dim() != 4 or f.shape[1] != 2:
        raise ValueError(f"flow has shape {tuple(f.shape)}; expected (B, 2, H, W)")
    f = f.permute(0, 2, 3, 1)
    return pixel_grid(*f.shape[1:3], device=f.device, dtype=f.dtype) + f


# %% tags=["check"]
assert torch.equal(flow_grid(torch.zeros(2, 2, 3, 4))[1], pixel_grid(3, 4)), "no flow, no motion"
right = torch.zeros(1, 2, 3, 4)
right[:, 0] = 10
assert flow_grid(right)[0, 2, 1].tolist() == [11, 2], "u should be added to x and not to y"
with shows_error(TypeError):
    flow_grid(torch.zeros(1, 2, 3, 3, dtype=torch.int64))

# %% [markdown]
# Last, a question that every user of a warp asks: which output pixels read inside the image?


# %% tags=["promote"]
def inside(grid: Float[Tensor, "B H W 2"], h: int, w: int) -> Bool[Tensor, "B H W"]:
    """Tell which positions lie among the pixel centres of an h × w image, border included.

    grid     (B, H, W, 2) positions as (x, y), in pixels
    h, w     height and width of the image, in pixels
    returns  (B, H, W) bool; False for NaN

    Raises TypeError for a grid of whole numbers, ValueError for another shape and a size below 1.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    grid = _grid(grid)
    _check_size(h, w, names="hw")
    x, y = grid.unbind(-1)
    return (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)


# %% tags=["check"]
ten_to_the_right = pixel_grid(3, 4)[None] + torch.tensor([10.0, 0])
assert inside(ten_to_the_right, 3, 12)[0, 0].tolist() == [True, True, False, False]

# %% [markdown]
# ## On real input
#
# ### Zoom, rotate, shift
#
# Three matrices and one photograph. To zoom in twice, read at half the distance from the centre; to
# see the picture shifted to the right, read further to the left.

# %%
coffee = photograph("coffee", height=200)
h, w = coffee.shape[-2:]
centre = ((w - 1) / 2, (h - 1) / 2)
moves = {
    "the photograph": torch.eye(3),
    "zoom ×2:\nscaling(1/2, centre)": scaling(1 / 2, centre),
    "turn 30° ↺:\nrotation(30, centre)": rotation(30, centre),
    "shift 60 px →:\ntranslation(−60, 0)": translation(-60, 0),
}
moved = warp(coffee, affine_grid(torch.stack(list(moves.values())), h, w))
tuple(moved.shape)

# %%
show(
    image_grid(moved, list(moves), columns=2, width=5.0),
    alt="A cup of coffee four times: as photographed, twice as large, turned counter-clockwise, "
    "and shifted to the right with a black margin on the left.",
    photo=True,
)

# %% [markdown]
# One call made all four: four grids, one image. Black is what `padding="zeros"` reads outside the
# photograph; "border" would smear the edge and "reflection" would mirror it.

# %% [markdown]
# ### Texture mapping (纹理映射): a photograph on a plane
#
# A texture is an image that covers a surface; texture mapping finds, for each pixel of the
# screen, the texture's position that shows there. For a plane that rule is a homography. Here a
# photograph of bricks becomes a floor that reaches to the horizon, and a photograph of a cat
# stands on it, seen at an angle.

# %%
H, W, horizon = 240, 400, 90
bricks = photograph("brick", height=512)
poster = photograph("chelsea", height=300)


# %% [markdown]
# The floor: the further a screen pixel lies below the horizon, the nearer is what it sees, at a
# depth proportional to one over that distance. Three rows say so: $X$ follows $x$, $Y$ is
# constant, $w$ is the distance below the horizon in pixels. At and above the horizon the grid holds
# −10⁴, which reads black with zeros and mirrored bricks here, so the sky is cut out by hand.

# %%
floor_matrix = torch.tensor([
    [200.0, 0, -200 * W / 2],
    [0, 0, 45_000],
    [0, 1, -horizon],
])  # fmt: skip
floor_grid = homography_grid(floor_matrix, H, W)
below = floor_grid[..., 1] > -1e4
sky = torch.linspace(110, 330, H).view(1, 1, H, 1).expand(1, 3, H, W)
scene = torch.where(below[:, None], warp(bricks, floor_grid, padding="reflection"), sky)

# %% [markdown]
# The poster: its four corners on the screen, paired with the four corners of the photograph. Inside
# the quadrilateral the poster covers the scene.

# %%
on_screen = [(205, 8), (375, 52), (370, 128), (215, 168)]
ph, pw = poster.shape[-2:]
in_poster = [(0, 0), (pw - 1, 0), (pw - 1, ph - 1), (0, ph - 1)]
poster_grid = homography_grid(homography_from_points(on_screen, in_poster), H, W)
covers = inside(poster_grid, ph, pw)[:, None]
scene = torch.where(covers, warp(poster, poster_grid), scene)

# %% [markdown]
# The same idea in the other direction makes the poster flat again: the four corners of a flat
# output are paired with the four corners on the screen.

# %%
flat = [(0, 0), (239, 0), (239, 159), (0, 159)]
rectified = warp(scene, homography_grid(homography_from_points(flat, on_screen), 160, 240))


# %%
def draw_scene(scene, corners, rectified):
    figure, (left, right) = canvas(1, 2, height=2.5, gridspec_kw={"width_ratios": [1.7, 1.1]})
    left.imshow(to_picture(scene))
    left.plot(*zip(*corners, corners[0], strict=True), color=COLOURS["second"])
    left.set_title("two photographs on two planes")
    right.imshow(to_picture(rectified))
    right.set_title("the poster, read back flat")
    for axes in (left, right):
        axes.set_axis_off()
    return figure


show(
    draw_scene(scene, on_screen, rectified),
    alt="A brick floor runs to the horizon under a grey sky, with a poster of a cat standing on it "
    "at an angle; beside it the poster alone, made rectangular again.",
    photo=True,
)

# %% [markdown]
# The poster is rectangular again. Its far side covered fewer pixels of the screen than its near
# side, and what was not recorded cannot be read back: compare the two ends. Look at the bricks near
# the horizon too; "What breaks" returns to them.

# %% [markdown]
# ### Texture mapping: a photograph on a sphere
#
# A rule for $p$ need not be a matrix. Look at a ball of radius 1 from far away: the screen pixel
# $(a, b)$, measured in radii from its centre, shows the point
# $n = (a, b, \sqrt{1 - a^2 - b^2})$, and nothing where $a^2 + b^2 > 1$. Its longitude and latitude,
# scaled to pixels, are the position in the texture. The same $n$ is the direction in which the
# surface faces, so its product with the direction of a lamp is how bright it is (Lambert's law).


# %%
def sphere(size, radius):
    a, b = ((pixel_grid(size, size) - (size - 1) / 2) / radius).unbind(-1)
    distance = torch.hypot(a, b)
    c = (1 - distance**2).clamp(min=0).sqrt()
    cover = ((1 - distance) * radius + 0.5).clamp(0, 1)
    return torch.stack([a, b, c], dim=-1), cover


def sphere_grid(n, h, w, spin=0.0):
    a, b, c = n.unbind(-1)
    longitude = torch.atan2(a, c) + math.radians(spin)
    latitude = torch.asin(b.clamp(-1, 1))
    x = (longitude / math.pi + 0.5) * (w - 1)
    y = (latitude / math.pi + 0.5) * (h - 1)
    return torch.stack([x, y], dim=-1)[None]


# %% [markdown]
# The silhouette needs care: a pixel that the ball covers in part gets that part of its colour, else
# the edge is a staircase.

# %%
n, cover = sphere(size=210, radius=100)
lamp = torch.nn.functional.normalize(torch.tensor([-0.4, -0.5, 0.8]), dim=0)
light = 0.12 + 0.95 * (n @ lamp).clamp(min=0)


def ball(texture, spin=0.0):
    grid = sphere_grid(n, *texture.shape[-2:], spin)
    return (light * warp(texture, grid, padding="reflection")).clamp(max=255) * cover + 18 * (
        1 - cover
    )


# %%
planets = {name: photograph(name, height=300) for name in ("gravel", "chelsea", "brick")}
show(
    image_grid([ball(texture) for texture in planets.values()], list(planets)),
    alt="Three lit balls on a dark ground, covered with gravel, with a cat's face and with bricks; "
    "the light comes from the top left and the far side is dark.",
    photo=True,
)

# %% [markdown]
# Each ball is one `warp` times one brightness. Towards the silhouette the texture is squeezed,
# because the surface turns away.

# %% [markdown]
# ### A flow, and the way back
#
# A swirl turns each pixel about the centre, most in the middle and less further out. As a flow it
# is the turned position minus the position itself.


# %%
def swirl(h, w, degrees, reach):
    away = pixel_grid(h, w) - torch.tensor([(w - 1) / 2, (h - 1) / 2])
    turn = math.radians(degrees) * torch.exp(-((away.norm(dim=-1) / reach) ** 2))
    (x, y), cos, sin = away.unbind(-1), turn.cos(), turn.sin()
    return torch.stack([cos * x - sin * y - x, sin * x + cos * y - y])[None]


cat = photograph("chelsea", height=200)
flow = swirl(*cat.shape[-2:], degrees=50, reach=48)
swirled = warp(cat, flow_grid(flow), padding="border")

# %% [markdown]
# What undoes it? Not the same arrows with a minus sign: $-f(q)$ belongs to the pixel where the
# arrow starts, and on the way back we stand where it ends. The inverse $g$ has to satisfy
# $g(q) = -f(q + g(q))$: *look up the flow at the position that $g$ itself points to*. Start
# with $g = -f$ and repeat; this settles when neighbouring arrows differ by less than the distance
# between their pixels (*Folding*, below, shows what happens otherwise). The flow is a two-channel
# image, so its look-up is a warp as well.


# %%
def invert_flow(flow, rounds=30):
    inverse = -flow
    for _ in range(rounds):
        inverse = -warp(flow, flow_grid(inverse), padding="border")
    return inverse


inverse = invert_flow(flow)
known = swirl(*cat.shape[-2:], degrees=-50, reach=48)
print(f"largest distance from the exact inverse: {(inverse - known).abs().max():.3f} px")
assert (inverse - known).abs().max() < 0.1, "a swirl is undone by the swirl of minus the angle"

# %%
minus = warp(swirled, flow_grid(-flow), padding="border")
undone = warp(swirled, flow_grid(inverse), padding="border")
remains = {name: (back - cat).abs().mean().item() for name, back in
           (("−f", minus), ("inverse", undone))}  # fmt: skip
print({name: f"{value:.2f} of 255" for name, value in remains.items()})
assert remains["inverse"] < remains["−f"] / 3, "the inverse should bring the cat back"

# %% [markdown]
# In the picture below, the colour of a pixel is the direction of its arrow and the strength of the
# colour is the arrow's length; the wheel in the corner is the key.


# %%
def in_colours(flow, size=61):
    colours = flow_to_image(flow).float()
    colours[..., -size:, -size:] = flow_wheel(size)
    return colours


# %%
left_over = [255 - 4 * (back - cat).abs().mean(dim=1, keepdim=True) for back in (minus, undone)]
show(
    image_grid(
        [cat, swirled, in_colours(flow), in_colours(inverse), minus, left_over[0], undone, left_over[1]],
        ["photograph", "warped by f", "f as colours", "its inverse g", "back by −f",
         f"off by {remains['−f']:.1f} / 255", "back by g",
         f"off by {remains['inverse']:.1f} / 255"],
        columns=4,
    ),
    alt="A cat's face, the same face twisted by a swirl, the flow and its inverse in colours. "
    "Below, the face untwisted with minus the flow, with a dark drawing of the errors around the "
    "eyes, and untwisted with the inverse, with nearly no errors.",
    photo=True,
)  # fmt: skip

# %% [markdown]
# The white pictures draw the difference from the photograph, darker for more, four times enlarged.
# After the inverse a faint outline of the fur remains: two readings between pixels have blurred it.
# After $-f$ the eyes are in the wrong place.

# %% [markdown]
# ### Two photographs, one flow: aligning a stereo pair
#
# Two cameras side by side photograph a motorcycle. The Middlebury benchmark measured, for nearly
# every pixel of the left image, its **disparity** (视差) $d$: the point at $(x, y)$ on the left is
# at $(x - d, y)$ on the right. So the flow from left to right is $(-d, 0)$, and reading the right
# image through it must rebuild the left one.

# %%
pair = stereo_pair()
d, valid = pair.disparity, pair.valid
truth = torch.cat([-d, torch.zeros_like(d)], dim=1)
rebuilt = warp(pair.right, flow_grid(truth))
mistaken = warp(pair.right, flow_grid(-truth))
print(f"image {tuple(pair.left.shape)}, disparity {d[valid].min():.1f} to {d.max():.1f} px")
print(f"known for {valid.float().mean():.1%} of the pixels")


# %% [markdown]
# The fair comparison leaves out pixels without a known disparity and those that read outside the
# right image: the left camera sees a strip that the right one does not.


# %%
def difference(image, mask):
    apart = (image - pair.left).abs().mean(dim=1, keepdim=True) / 255
    return apart[mask].mean().item()


h, w = d.shape[-2:]
compared = valid & inside(flow_grid(truth), h, w)[:, None]
compared_mistaken = valid & inside(flow_grid(-truth), h, w)[:, None]
errors = {
    "not warped": difference(pair.right, compared),
    "flow (−d, 0)": difference(rebuilt, compared),
    "flow (+d, 0)": difference(mistaken, compared_mistaken),
}

# %% tags=["nbval-check-output"]
for name, value in errors.items():
    print(f"{name:13} {value:.3f} of the full range")
# The photographs are fixed; the margin is half a unit in the last digit printed above.
assert abs(errors["flow (−d, 0)"] - 0.030) < 0.0005
assert abs(errors["flow (+d, 0)"] - 0.185) < 0.0005

# %%
detail = (..., slice(130, 370), slice(400, 660))
show(
    image_grid(
        [pair.left[detail], rebuilt[detail], mistaken[detail]],
        ["left, a detail", f"read at −d: {errors['flow (−d, 0)']:.3f}",
         f"read at +d: {errors['flow (+d, 0)']:.3f}"],
    ),
    alt="A detail of the left photograph of a motorcycle; the right one warped onto it, nearly "
    "equal; and the right one warped with the wrong sign, with torn forks and a shattered wheel.",
    photo=True,
)  # fmt: skip

# %% [markdown]
# The torn picture on the right is what a wrong sign looks like, and its number (of the whole
# picture, as the other one) is worse than doing nothing. The middle one is nearly the left photograph; nearly, because of what "What breaks" says
# about occlusion.

# %% [markdown]
# Try a photograph of your own: `from fourfold.kit.images import read_image`, and then
# `read_image("mine.jpg", height=300)` in place of any `photograph(…)` above. The ones used here:

# %%
for name in ("brick", "chelsea", "coffee", "gravel", "motorcycle"):
    print(credit(name))

# %% [markdown]
# ## Exercises
#
# Blanks of this lesson, in the exercise edition; the check cell below each says whether it is
# right.
#
# | blank | minutes | difficulty |
# | --- | --- | --- |
# | `affine_grid` | 5 | ●○○ |
# | `flow_grid` | 5 | ●○○ |
# | `homography_grid` | 10 | ●●○ |
# | `homography_from_points` | 15 | ●●● |
#
# <details><summary>Hint for <code>affine_grid</code></summary>
#
# Take x and y out of the pixel grid with `unbind(-1)`. Give the matrix two axes of size 1 at its
# end, so that each of its entries multiplies a whole (H, W) array. Begin with `_matrices(matrix)`,
# and refuse another last row with a ValueError.
#
# </details>
#
# <details><summary>Hint for <code>flow_grid</code></summary>
#
# Pass the flow through `_coordinates("flow", flow)` first. `permute(0, 2, 3, 1)` moves the two channels to the end. The pixel grid has no batch axis, and
# adding broadcasts it.
#
# </details>
#
# <details><summary>Hint for <code>homography_grid</code></summary>
#
# `torch.where` computes both of its branches, so divide by something harmless where w ≤ 0.
#
# </details>
#
# <details><summary>Hint for <code>homography_from_points</code></summary>
#
# Begin with `_normalised` for both and `_check_order`. Equation 4 for all four pairs is an 8 × 8 system: `torch.linalg.solve`. If P scales the first
# points, Q the second, and N solves the scaled problem, the answer goes through P, then N, then
# back through Q.
#
# </details>

# %% [markdown]
# **Predict.** `A = translation(40, 0)` and `B = rotation(90)`. The picture is read through `A @ B`
# and through `B @ A`. Are the two the same? Where does output pixel (0, 0) read in each?
#
# <details><summary>Hint</summary>
#
# In A @ B, the pixel goes through B first.
#
# </details>
#
# <details><summary>Answer</summary>
#
# They differ. Through A @ B, (0, 0) stays at (0, 0) under the turn and then moves to (40, 0).
# Through B @ A it moves to (40, 0) first, and the turn, clockwise with y down, takes it to (0, 40).
# The cell below says so.
#
# </details>

# %%
A, B, origin = translation(40, 0), rotation(90), torch.tensor([0.0, 0, 1])
assert (A @ B @ origin)[:2].tolist() == [40, 0] and (B @ A @ origin)[:2].tolist() == [0, 40]

# %% [markdown]
# **Vary.** In the sphere, replace `padding="reflection"` by `"zeros"` and give `ball` a spin of 120
# degrees. What do you see, and which output pixels are they?
#
# <details><summary>Hint</summary>
#
# Ask `inside` about the grid.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The texture covers only half of the ball, longitudes from −90° to 90°. After a turn of 120° most
# of what we see lies beyond the texture's edge: with "zeros" it is black, with "reflection" it is
# the texture mirrored. Those are the pixels for which `inside(grid, h, w)` is False.
#
# </details>
#
# **Find the bug.** A friend's `flow_grid` runs on every square image and fails on every other one:
#
# ```python
# B, _, H, W = flow.shape
# return pixel_grid(W, H).transpose(0, 1) + flow.permute(0, 3, 2, 1)
# ```
#
# <details><summary>Hint</summary>
#
# Write the shape of each of the two terms next to it. Then ask what the grid holds at `[y, x]`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# `permute(0, 3, 2, 1)` gives (B, W, H, 2) and not (B, H, W, 2); `pixel_grid(W, H)` has shape (W, H,
# 2), and transposing it gives (H, W, 2), so for H ≠ W the sum fails. On a square image it runs and
# is wrong in two ways: the entry at `[y, x]` holds (y, x), and it adds the flow of pixel (y, x). It
# passes only tests that check no more than the shape. The cure is the code of this lesson. Test on
# images that are not square.
#
# </details>

# %% [markdown]
# ## What breaks
#
# ### Many small warps: the picture dissolves
#
# Each reading between pixels is an average of four values, and an average blurs. Turn a photograph
# 36 times by 10° and it is back where it was, minus everything fine. The measure is PSNR (peak
# signal-to-noise ratio, 峰值信噪比): ten times the decimal logarithm of 255² over the mean squared
# difference, in decibels; more is better, and +10 dB is a ten times smaller squared difference.

# %%
face = photograph("chelsea", crop=(110, 30, 350, 270))
side = face.shape[-1]
centre = ((side - 1) / 2, (side - 1) / 2)
disc = (pixel_grid(side, side) - centre[0]).norm(dim=-1) < centre[0] - 2


def psnr(image):
    return (10 * torch.log10(255**2 / (image - face)[..., disc].square().mean())).item()


def turn_often(times, degrees):
    image = face
    for _ in range(times):
        image = warp(image, affine_grid(rotation(degrees, centre), side, side))
    return image


# %% [markdown]
# The cure is to multiply the 36 matrices, whose product is one turn of 360°, and to read once:
# products lose next to nothing, readings lose.

# %%
often = turn_often(36, 10)
product = torch.linalg.matrix_power(rotation(10, centre), 36)
once = warp(face, affine_grid(product, side, side))
print(f"36 readings {psnr(often):.1f} dB, one reading {psnr(once):.1f} dB")
print(f"12 turns of 30°: {psnr(turn_often(12, 30)):.1f} dB")
assert 24 < psnr(often) < 28 and psnr(once) > 80
assert psnr(turn_often(4, 90)) > 80, "quarter turns read on pixel centres and lose nothing"

# %%
show(
    image_grid(
        [face, once, often],
        ["the photograph", f"36 matrices, one reading:\n{psnr(once):.0f} dB",
         f"36 readings:\n{psnr(often):.1f} dB"],
    ),
    alt="A cat's face three times: the photograph, the same after one turn by the product of 36 "
    "matrices, and after 36 separate turns, where fur and whiskers are gone and the corners black.",
    photo=True,
)  # fmt: skip

# %% [markdown]
# Fur and whiskers are gone on the right, and the corners were turned out of the frame. Keep this
# picture in mind when a method warps features again and again.

# %% [markdown]
# ### Making things small: aliasing (混叠)
#
# Bilinear sampling looks at four pixels, however far apart the positions are. Where the map steps
# over eight pixels of the input at a time, most of them are never read, and a fine pattern turns
# into a coarse one that is not there. On the brick floor this happens near the horizon. The cure is
# to average first: a **pyramid** (金字塔) of images, each half the size of the one before, and each
# output pixel reads at the level where its step is about one pixel.


# %%
def step_length(grid):
    right = (grid[:, :, 1:] - grid[:, :, :-1]).norm(dim=-1)
    down = (grid[:, 1:] - grid[:, :-1]).norm(dim=-1)
    return torch.maximum(
        torch.cat([right, right[:, :, -1:]], dim=2), torch.cat([down, down[:, -1:]], dim=1)
    )


# %% [markdown]
# A level between two levels is a blend of both. At level $k$ a pixel is $2^k$ input pixels wide;
# with the corner of the image fixed, position $p$ is at $(p + \tfrac12)/2^k - \tfrac12$ there.


# %%
def warp_pyramid(image, grid, levels=7, padding="reflection"):
    level = torch.log2(step_length(grid)).clamp(0, levels - 1)
    output = 0
    for k in range(levels):
        share = (1 - (level - k).abs()).clamp(min=0)[:, None]
        output = output + share * warp(image, (grid + 0.5) / 2**k - 0.5, padding=padding)
        image = torch.nn.functional.avg_pool2d(image, 2)
    return output


direct = warp(bricks, floor_grid, padding="reflection")
smooth = warp_pyramid(bricks, floor_grid)

# %%
far = slice(horizon + 2, horizon + 16)
contrast = [image[:, :, far].std().item() for image in (direct, smooth)]
print(f"contrast of the far rows, standard deviation: {contrast[0]:.1f} direct, {contrast[1]:.1f}")
assert contrast[1] < contrast[0] / 3, "far bricks are smaller than a pixel and should be grey"

# %%
show(
    image_grid(
        [torch.where(below[:, None], image, sky)[:, :, 60:] for image in (direct, smooth)],
        ["read directly", "read in a pyramid"],
    ),
    alt="The brick floor twice. Read directly, its far rows sparkle with false patterns; read in a "
    "pyramid, the bricks fade into an even grey towards the horizon.",
    photo=True,
)

# %% [markdown]
# On the left the far rows sparkle; on the right they fade to the mean colour of the bricks, as they
# do in life. The pyramid blurs a little too much along the rows, because it averages squares where
# the floor is squeezed in one direction only.

# %% [markdown]
# ### Folding: no way back
#
# A map that runs backward somewhere reads the same input more than once. Take the flow
# $u = A \sin(2\pi x / \lambda)$, $v = 0$: position $x + u$ has the slope $1 + (2\pi A / \lambda)
# \cos(2\pi x / \lambda)$, negative somewhere as soon as $A > \lambda / 2\pi$.


# %%
def ripple(h, w, amplitude, wavelength):
    x = pixel_grid(h, w)[..., 0]
    u = amplitude * torch.sin(2 * math.pi * x / wavelength)
    return torch.stack([u, torch.zeros_like(u)])[None]


h, w = coffee.shape[-2:]
ripples = {amplitude: ripple(h, w, amplitude, wavelength=150) for amplitude in (15, 45)}
folds_from = 150 / (2 * math.pi)
slopes = {a: flow_grid(f)[0, 0, :, 0].diff() for a, f in ripples.items()}
print(f"folds from A = {folds_from:.1f} px on")
for amplitude, slope in slopes.items():
    backward = (slope < 0).float().mean()
    print(f"A = {amplitude} px: smallest slope {slope.min():.2f}, {backward:.0%} runs backward")
assert slopes[15].min() > 0 > slopes[45].min()


# %%
def draw_folding(ripples, image):
    figure, (curve, *pictures) = canvas(1, 3, height=2.0)
    for (amplitude, flow), axes, colour in zip(
        ripples.items(), pictures, ("good", "bad"), strict=True
    ):
        line = "--" if amplitude == 15 else "-"
        reads = flow_grid(flow)[0, 0, :, 0]
        curve.plot(reads, line, color=COLOURS[colour], label=f"A = {amplitude} px")
        axes.imshow(to_picture(warp(image, flow_grid(flow), padding="border")))
        axes.set_title(f"A = {amplitude} px")
        axes.set_axis_off()
    curve.set(xlabel="output x (px)", ylabel="reads at x (px)")
    curve.legend(loc="upper left", fontsize=8, handlelength=1.2, frameon=False)
    return figure


show(
    draw_folding(ripples, coffee),
    alt="Two curves of input position against output position: one always rises, the other rises "
    "and falls. Beside them a cup of coffee stretched by the first and seen several times by the "
    "second.",
    photo=True,
)

# %% [markdown]
# Where the curve falls, the picture is mirrored, and parts of the saucer appear three times. A
# folded map has no inverse, and the repetition that undid the swirl has nothing to converge to.

# %%
lost = {}
for amplitude, flow in ripples.items():
    g = invert_flow(flow)
    round_trip = g + warp(flow, flow_grid(g), padding="border")
    lost[amplitude] = round_trip[..., 60:-60].abs().mean().item()
print({f"A = {amplitude} px": f"{value:.2f} px from closing" for amplitude, value in lost.items()})
assert lost[15] < 0.1 and lost[45] > 5

# %% [markdown]
# ### Occlusion (遮挡): the colour is not there
#
# A true flow does not always lead to a true colour. Some pixels of the left photograph show what
# the right camera cannot see, because something nearer stands in front. To find them, let every
# left pixel land in the right image and keep the largest disparity, the nearest thing, at each
# place. A pixel that lands behind something is occluded.


# %%
def occluded(d, valid):
    h, w = d.shape[-2:]
    column = (pixel_grid(h, w)[..., 0] - d).round().long()
    column = torch.where((column >= 0) & valid, column, w)
    nearest = torch.zeros(1, 1, h, w + 1).scatter_reduce_(3, column, d, reduce="amax")
    return valid & (nearest.gather(3, column) > d + 1)


hidden = occluded(d, valid) & compared
seen_error, hidden_error = difference(rebuilt, compared & ~hidden), difference(rebuilt, hidden)
print(f"{hidden.float().mean():.1%} of the pixels are occluded")
print(f"difference {seen_error:.3f} where both cameras see, {hidden_error:.3f} where one does")
share = hidden_error * hidden.sum() / (errors["flow (−d, 0)"] * compared.sum())
print(f"the occluded pixels hold {share:.0%} of the difference")
assert hidden_error > 8 * seen_error and 0.35 < share < 0.45

# %%
crop = (..., slice(150, 330), slice(420, 660))
orange = torch.tensor([255.0, 140, 0]).view(1, 3, 1, 1)
stripes = pixel_grid(*d.shape[-2:]).sum(dim=-1) // 4 % 2
marked = torch.where(hidden, orange * stripes, pair.left)
show(
    image_grid(
        [pair.left[crop], rebuilt[crop], marked[crop]],
        ["left", "right, read at −d", "occluded, in stripes"],
    ),
    alt="A detail of the motorcycle. The warped right photograph repeats the edge of the handlebar "
    "and the wheel beside themselves; the third picture fills those strips with orange and black stripes.",
    photo=True,
)

# %% [markdown]
# Beside each near edge the warped picture shows the near thing a second time, a ghost, in the
# strip where the background should be; dark specks are pixels of unknown disparity. No flow can
# repair that: one pixel in twenty holds two fifths of the difference that was left over above,
# and a method has to know which pixels to distrust.

# %% [markdown]
# ### What the code says to bad input
#
# A flow is not a grid: its channels come first, and it holds arrows and not positions.

# %%
with shows_error(ValueError):
    warp(pair.right, truth)

# %% [markdown]
# A matrix with perspective in it belongs to `homography_grid`.

# %%
with shows_error(ValueError):
    affine_grid(floor_matrix, H, W)

# %% [markdown]
# Whole numbers are refused: a grid of them is most likely an index, and an image of them would
# round every reading.

# %%
with shows_error(TypeError):
    flow_grid(torch.zeros(1, 2, 4, 4, dtype=torch.int64))

# %%
with shows_error(TypeError):
    warp(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), pixel_grid(4, 4)[None])

# %% [markdown]
# Corners that are listed in another order round make a bow-tie, which no camera sees.

# %%
with shows_error(ValueError):
    homography_from_points(frame, [seen[0], seen[2], seen[1], seen[3]])

# %% [markdown]
# ## Recap
#
# - A warp asks, for each output pixel $q$, at which position $p$ to read: $J(q) = I(p(q))$.
# - A matrix gives affine maps, a matrix and a division by $w$ give perspective, and a flow gives
#   each pixel its own arrow; multiply matrices as often as you like, but read once.
# - Reading cannot invent: it blurs, it aliases where the map shrinks, and what is hidden stays
#   hidden.
#
# Next: [the window](3_window.ipynb), where RAFT and CoTracker read not one position but a whole
# neighbourhood around it, thousands of times.
