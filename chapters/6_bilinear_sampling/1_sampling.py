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
# **After this lesson you can** read an image at any point between its pixels, follow the gradient
# of that reading back to the point, and say what happens at the border and beyond it.
#
# *Before this:* nothing but Python and a first acquaintance with `torch` tensors.
# *Time:* 45 minutes, and 33 for the blanks.

# %%
import io

import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F
from IPython.display import display
from jaxtyping import Float, Int
from torch import Tensor

from fourfold.bilinear_sampling.sampling import (
    bilinear_weights,
    floor_and_fraction,
    normalise,
    sample,
)
from fourfold.kit.arguments import check_tensor
from fourfold.kit.drawing import COLOURS, canvas, draw_pixels, image_grid, show, to_picture
from fourfold.kit.images import credit, photograph
from fourfold.kit.notebook import shows_error

# %% [markdown]
# ## Words
#
# An image stores values at whole positions only: one number per **pixel** (and per colour
# channel). Yet almost everything we want to do with it, such as turning it, zooming into it,
# or following a moving point, asks for the value at a position in between. **Bilinear
# sampling** (双线性采样) answers with a weighted average of the four pixels around the point. Two
# steps: take the distances from the point to its neighbours, $dx$ to the right and $dy$ down,
# and make four weights $w_{ab}$ from them; then add up the four values, each times its
# weight. A pixel counts the more, the nearer the point is to it.
#
# The answer changes continuously when the point moves, so it has a slope: we can ask *in
# which direction would the value grow?* and move the point there. Rounding the position to
# the nearest pixel would give a value without a slope, and nothing can be learned through
# that. Three uses of it carry through this course: the transformation of images (图像变换) and
# the mapping of textures onto surfaces (纹理映射) are the next lesson, the look-up of values
# where an optical flow (光流) points is the one after.
#
# Positions are written $(x, y)$: $x$ counts columns to the right, $y$ counts rows down, and the
# centre of the top-left pixel is $(0, 0)$. The image $I$ is $W$ pixels wide and $H$ high, and
# $(i, j)$ is the neighbour at the top left of the point: column $i$, row $j$.
#
# > **x first, row first.** A position names its column first: $(i, j)$ is column $i$, row $j$. An
# > array is indexed by its row first: the value $I(i, j)$ is stored at `image[j, i]`. Both habits
# > are old, neither will go away, and mistaking one for the other raises no error. We do it on
# > purpose under *What breaks*.

# %% [markdown]
# ## Figure
#
# The example of the notes the course grew from: four pixels hold $I(2,3)=10$, $I(3,3)=20$,
# $I(2,4)=30$, $I(3,4)=40$. What is the value at $(2.5, 3.5)$? (The cells of this section use the
# finished functions of the library; the section *Code* builds each of them.)

# %%
image = torch.zeros(1, 1, 6, 5)
image[0, 0, 3:5, 2:4] = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
points = torch.tensor([[[2.5, 3.5], [2.7, 3.2]]])
sample(image, points)


# %% [markdown]
# The right half of the figure is a close-up that we need several times: the square between four
# pixel centres, cut into four rectangles by the point. Each rectangle belongs to the pixel
# *diagonally opposite*, and takes its colour.


# %%
def draw_areas(axes, image, point, labels=("", "", "", "")):
    """Draw the square between four pixel centres, each area in its neighbour's colour."""
    corner, fraction = floor_and_fraction(point)
    (i, j), (x, y) = corner.tolist(), point.tolist()
    weights = bilinear_weights(fraction).tolist()
    for n, name in enumerate(("n00", "n10", "n01", "n11")):
        a, b = n % 2, n // 2
        left, right = (i, x) if a else (x, i + 1)
        top, bottom = (j, y) if b else (y, j + 1)
        ink = {"ha": "center", "va": "center", "size": 8, "color": "black" if a and b else "white"}
        axes.fill_between([left, right], top, bottom, color=COLOURS[name], linewidth=0)
        axes.plot(i + a, j + b, "o", color=COLOURS[name], markersize=19, clip_on=False)
        axes.text(i + a, j + b, f"{image[0, 0, j + b, i + a]:g}", **ink)
        if right - left > 0.25 and bottom - top > 0.1:
            text = f"{labels[n]}{weights[n]:.2f}"
            axes.text((left + right) / 2, (top + bottom) / 2, text, **ink)
    axes.plot(x, y, "o", color=COLOURS["query"], markeredgecolor="white", markersize=8)
    axes.set(xlim=(i, i + 1), ylim=(j + 1, j), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


# %% tags=["figure"]
def draw_sampling(image, points):
    figure, (whole, near) = canvas(1, 2, height=3.5, width_ratios=(1, 1.1))
    values = sample(image, points)[0, 0].tolist()
    H, W = image.shape[-2:]
    draw_pixels(whole, image[0, 0])
    whole.set_title(f"image $I$, H = {H}, W = {W};  I(2.5, 3.5) = {values[0]:g}")
    whole.plot(*points[0, 0], "o", color=COLOURS["query"], markeredgecolor="white")
    whole.plot([1.5, 3.5, 3.5, 1.5, 1.5], [2.5, 2.5, 4.5, 4.5, 2.5], color=COLOURS["query"])
    ruler = whole.secondary_xaxis(-0.22)
    marks = torch.tensor([[-0.5, 0.0], [2.0, 0.0], [W - 0.5, 0.0]])
    ruler.set_xticks(
        marks[:, 0], [f"{g:g}".replace("-", "−") for g in normalise(marks, (H, W))[:, 0].tolist()]
    )
    ruler.set_xlabel("$g_x$, the ruler of grid_sample")

    point = points[0, 1]
    draw_areas(near, image, point, ("$w_{00}$ ", "$w_{10}$ ", "$w_{01}$ ", "$w_{11}$ "))
    (x, y), (i, j) = point.tolist(), floor_and_fraction(point)[0].tolist()
    near.set_title(f"I({x:.1f}, {y:.1f}) = {values[1]:g}", y=-0.14)
    near.annotate("(x, y)", (x, y), (7, -13), textcoords="offset points", color="white")
    near.annotate("(i, j)", (i, j), (-12, 7), textcoords="offset points", ha="right")
    arrow = {"arrowprops": {"arrowstyle": "<->"}, "annotation_clip": False}
    near.annotate("", (i, j - 0.12), (x, j - 0.12), **arrow)
    near.text((i + x) / 2, j - 0.16, f"dx = {x - i:.1f}", ha="center")
    near.annotate("", (i + 1.13, j), (i + 1.13, y), **arrow)
    near.text(i + 1.17, (j + y) / 2, f"dy = {y - j:.1f}", va="center")
    return figure


show(
    draw_sampling(image, points),
    alt="Left: an image of numbered squares with a point in the middle of four of them. Right: the"
    " square between four pixel centres, cut by a point into four coloured rectangles; each"
    " rectangle has the colour of the pixel at the opposite corner and shows its weight.",
)

# %% [markdown]
# Left: the notes' point lies in the middle of its four pixels, so each counts a quarter and the
# value is their mean. Right: a second point, close to the pixel that holds 20 (the dots are the
# pixel centres, with their values); see how the *large* area, at the far corner, is what gives this
# near pixel its weight.
#
# ### Move the point
#
# Four more positions between the same pixels. Follow one colour through the row: its area grows as
# the point comes closer to the pixel of that colour, and fills the square when the point arrives.


# %%
def draw_positions(image, points):
    figure, row = canvas(1, points.shape[1], height=1.9)
    values = sample(image, points)[0, 0].tolist()
    for axes, point, value in zip(row, points[0], values, strict=True):
        draw_areas(axes, image, point)
        x, y = point.tolist()
        axes.set_title(f"I({x:.1f}, {y:.1f}) = {value:.1f}", pad=12)
    return figure


# %%
way = torch.tensor([[[2.1, 3.1], [2.5, 3.2], [2.8, 3.5], [2.9, 3.9]]])
show(
    draw_positions(image, way),
    alt="Four squares with the point moving from the top-left pixel to the bottom-right one. The"
    " area of the bottom-right pixel's colour grows from a hundredth to four fifths.",
)

# %% [markdown]
# In a running notebook you can move the point yourself: the left square follows both sliders, the
# middle one only $x$ and the right one only $y$. (Without a running notebook, the row above says
# the same.)


# %%
slider_x = widgets.FloatSlider(2.7, min=2, max=2.99, step=0.01, description="x (px)")
slider_y = widgets.FloatSlider(3.2, min=3, max=3.99, step=0.01, description="y (px)")
picture = widgets.Image(format="png")


def redraw(_change=None):
    x, y = slider_x.value, slider_y.value
    buffer = io.BytesIO()
    figure = draw_positions(image, torch.tensor([[[x, y], [x, 3.5], [2.5, y]]]))
    figure.savefig(buffer, format="png", dpi=100)
    picture.value = buffer.getvalue()


# %%
slider_x.observe(redraw, names="value")
slider_y.observe(redraw, names="value")
redraw()
display(widgets.VBox([slider_x, slider_y, picture]))

# %% [markdown]
# ## Formula
#
# **Step 1, the weights.** They come from the distances. The top-left neighbour of the point is found
# by rounding down, and what rounding takes away is the distance to it:
#
# $$ (i, j) = (\lfloor x \rfloor, \lfloor y \rfloor), \qquad dx = x - i, \qquad dy = y - j \tag{1} $$
#
# In one dimension the two neighbours of a point would weigh $1-dx$ and
# $dx$. In two dimensions the weights of the columns and of the rows multiply, which is why each
# weight is the area of a rectangle:
#
# $$ w_{00} = (1-dx)(1-dy), \quad w_{10} = dx\,(1-dy), \quad
# w_{01} = (1-dx)\,dy, \quad w_{11} = dx\,dy \tag{2} $$
#
# The four areas fill a square of side 1, so the weights sum to 1. **Step 2, the average**, whose
# two sums run over the left and right columns and the upper and lower rows:
#
# $$ I(x, y) \approx \sum_{a=0}^{1} \sum_{b=0}^{1} w_{ab}\; I(i+a,\; j+b) \tag{3} $$
#
# The sign is ≈ because the scene between the pixels was never measured; what we compute on the
# right is exact. For the notes' point: $0.25 \cdot 10 + 0.25 \cdot 20 + 0.25 \cdot 30 + 0.25 \cdot 40 = 25$.
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $I$ | the image; $I_{ab}$ is short for $I(i+a, j+b)$ | `B C H W`, any unit | `image` | image $I$ |
# | $(x, y)$ | a point, column first | pixels | `points` | (x, y) |
# | $(i, j)$ | its top-left neighbour | pixels, whole | `corner` | (i, j) |
# | $dx$ | distance to that neighbour, to the right | pixels, in [0, 1) | `dx` | dx |
# | $dy$ | distance to that neighbour, down | pixels, in [0, 1) | `dy` | dy |
# | $w_{ab}$ | weight of the neighbour $(i+a, j+b)$; $a$ and $b$ are 0 or 1 | none, in [0, 1] | `bilinear_weights` | $w_{10}$ |
# | $W$ | width of the image | pixels | `size` | W |
# | $H$ | height of the image | pixels | `size` | H |
# | $g_x$ | the point on grid_sample's ruler; $g_y$ down | half widths, from the middle | `grid` | $g_x$ |
#
# ### The surface is not a plane
#
# Put Equation 2 into Equation 3, multiply out and sort by powers:
#
# $$ I(x, y) \approx I_{00} + (I_{10}-I_{00})\,dx + (I_{01}-I_{00})\,dy +
# (I_{00}-I_{10}-I_{01}+I_{11})\,dx\,dy \tag{4} $$
#
# The first three terms are a plane. The last, the **mixed term**, bends it. Hold $y$ fixed and the
# value is linear in $x$; hold $x$ fixed and it is linear in $y$ (hence *bi*-linear); but along a
# diagonal both factors grow and the value is a parabola. Such a surface is a **hyperbolic
# paraboloid**, a saddle made of straight lines. Four values can always be met by it, while a plane
# has only three numbers to choose.


# %%
def draw_surfaces(corners):
    figure, row = canvas(1, len(corners), height=2.6, subplot_kw={"projection": "3d"})
    side = torch.linspace(0, 1, 11)
    y, x = torch.meshgrid(side, side, indexing="ij")
    for axes, (title, four) in zip(row, corners.items(), strict=True):
        square = torch.tensor(four).reshape(1, 1, 2, 2)
        z = sample(square, torch.stack([x, y], dim=-1)[None], padding="border")[0, 0]
        axes.plot_wireframe(x, y, z, color=COLOURS["first"], linewidth=0.6)
        axes.plot(side, side, z.diagonal(), color=COLOURS["query"], linewidth=2.5)
        mixed = four[0] - four[1] - four[2] + four[3]
        axes.set_title(f"{title}: mixed term {mixed:g}".replace("-", "−"), y=0.97)
        axes.set(xlabel="dx (px)", ylabel="dy (px)", zlabel="I", xticks=[0, 1], yticks=[0, 1])
        axes.set_zticks(sorted(set(four)))
        axes.set_box_aspect(None, zoom=0.85)
    return figure


# %%
surfaces = {"the notes' pixels": [10.0, 20.0, 30.0, 40.0], "a chessboard": [0.0, 1.0, 1.0, 0.0]}
show(
    draw_surfaces(surfaces),
    alt="Left: a flat tilted sheet through four values, with a straight diagonal. Right: a saddle"
    " whose edges are straight and whose diagonal is an arch.",
)

# %% [markdown]
# Left: the notes' four values happen to lie on a plane, their mixed term is 0. Right: on a
# chessboard all four edges and all grid lines are straight, and yet the pink diagonal arches; in
# the middle it stands half a unit above its two ends. The same in numbers:

# %%
chessboard = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]])
diagonal = torch.tensor([[[0.0, 0.0], [0.25, 0.25], [0.5, 0.5], [0.75, 0.75], [1.0, 1.0]]])
sample(chessboard, diagonal, padding="border")

# %% [markdown]
# ### The derivative
#
# Hold $y$ fixed in Equation 4 and differentiate by $x$. What remains is the difference between the
# right and the left neighbours, the upper pair weighted with $1-dy$ and the lower pair with $dy$
# (the derivative by $y$ swaps the roles):
#
# $$ \frac{\partial I}{\partial x} = (1-dy)\,(I_{10}-I_{00}) + dy\,(I_{11}-I_{01}) \tag{5} $$
#
# ### The ruler of grid_sample
#
# PyTorch ships a fast sampler, `grid_sample`. It counts positions not in pixels but in half
# widths from the middle of the image: −1 is the left end, 1 the right end. With its flag
# `align_corners=False` the ends are the outer edges of the border pixels; with
# `align_corners=True` they are the centres of the border pixels:
#
# $$ \begin{aligned}
# g_x &= \frac{x + \frac12}{W/2} - 1, & g_y &= \frac{y + \frac12}{H/2} - 1 & &\text{(edges)} \\
# g_x &= \frac{x}{(W-1)/2} - 1, & g_y &= \frac{y}{(H-1)/2} - 1 & &\text{(centres)}
# \end{aligned} \tag{6} $$

# %% [markdown]
# ## Code
#
# ### One point by hand
#
# Equation 3 at the notes' point, read off the array. Mind the order: `image[0, 0, row, column]`.

# %%
by_hand = (
    0.25 * image[0, 0, 3, 2]
    + 0.25 * image[0, 0, 3, 3]
    + 0.25 * image[0, 0, 4, 2]
    + 0.25 * image[0, 0, 4, 3]
)
assert by_hand == 25
by_hand

# %% [markdown]
# As loops over everything. A pixel outside the image counts as zero, so that a point near the
# border has four neighbours like any other.


# %%
def read_pixel(image, b, c, i, j):
    """The value at column i, row j, or zero outside."""
    H, W = image.shape[-2:]
    return float(image[b, c, j, i]) if 0 <= i < W and 0 <= j < H else 0.0


read_pixel(image, 0, 0, 3, 4), read_pixel(image, 0, 0, 5, 4)


# %%
def sample_loop(image, points):
    """Equations 1 to 3, one point and one channel at a time."""
    B, C = image.shape[:2]
    values = torch.zeros(B, C, points.shape[1], dtype=image.dtype)
    for b in range(B):
        for n, (x, y) in enumerate(points[b].tolist()):
            i, j = int(np.floor(x)), int(np.floor(y))
            dx, dy = x - i, y - j
            for c in range(C):
                values[b, c, n] = (
                    (1 - dx) * (1 - dy) * read_pixel(image, b, c, i, j)
                    + dx * (1 - dy) * read_pixel(image, b, c, i + 1, j)
                    + (1 - dx) * dy * read_pixel(image, b, c, i, j + 1)
                    + dx * dy * read_pixel(image, b, c, i + 1, j + 1)
                )
    return values


# %%
sample_loop(image, points)

# %% [markdown]
# The loop is slow and plain. We keep it as the **oracle**: whatever comes next must give the same
# numbers.

# %%
generator = torch.Generator().manual_seed(0)
noise = torch.rand(2, 3, 6, 5, generator=generator, dtype=torch.float64)
anywhere = torch.rand(2, 40, 2, generator=generator, dtype=torch.float64) * 9 - 2
oracle = sample_loop(noise, anywhere)
assert sample_loop(image, points)[0, 0, 0] == 25

# %% [markdown]
# ### All points at once
#
# The same two steps for many points. Equation 1 needs no loop: rounding down and subtracting work
# on whole tensors.


# %% tags=["promote", "exercise"]
def floor_and_fraction(
    points: Float[Tensor, "*N D"],
) -> tuple[Int[Tensor, "*N D"], Float[Tensor, "*N D"]]:
    """Split each coordinate into the pixel at or before it and the rest (equation 1 of the lesson).

    points    (*N, D) coordinates in pixels
    corner    (*N, D) int64, the largest integers not above them
    fraction  (*N, D) points − corner, in [0, 1); 1 where rounding swallows a tiny negative point

    Convention: (x, y) order, x to the right, y down, pixel centres on integers. Finite points only.
    """
    corner = points.floor()
    return corner.long(), points - corner


# %% tags=["check"]
corner, fraction = floor_and_fraction(torch.tensor([[2.5, 3.75], [-0.25, 4.0]]))
assert corner.dtype == torch.int64, "corner indexes an array, so it holds whole numbers (int64)"
assert corner.tolist() == [[2, 3], [-1, 4]], (
    "rounding goes down, also below zero: −0.25 lies after −1"
)
assert fraction.tolist() == [[0.5, 0.75], [0.75, 0.0]], "fraction is the point minus its corner"

# %% [markdown]
# Equation 2: one row of four weights for each point, in the order $w_{00}, w_{10}, w_{01}, w_{11}$,
# as we read: left before right, upper row before lower.


# %% tags=["promote", "exercise"]
def bilinear_weights(fraction: Float[Tensor, "*N 2"]) -> Float[Tensor, "*N 4"]:
    """Give the weights of the four neighbours of each point (equation 2 of the lesson).

    fraction  (*N, 2) the distances (dx, dy) to the top-left neighbour, in pixels, in [0, 1]
    returns   (*N, 4) the weights of (i, j), (i+1, j), (i, j+1), (i+1, j+1), which sum to 1

    Convention: (x, y) order, so the second weight belongs to the neighbour on the right.
    """
    dx, dy = fraction.unbind(-1)
    return torch.stack([(1 - dx) * (1 - dy), dx * (1 - dy), (1 - dx) * dy, dx * dy], dim=-1)


# %% tags=["check"]
quarter = bilinear_weights(torch.tensor([[0.5, 0.5], [0.75, 0.0], [0.0, 0.25]]))
assert quarter[0].tolist() == [0.25] * 4, "in the middle of four pixels each weighs a quarter"
assert quarter[1].tolist() == [0.25, 0.75, 0, 0], (
    "at dx = 0.75, dy = 0 the right neighbour weighs 0.75"
)
assert quarter[2].tolist() == [0.75, 0, 0.25, 0], (
    "at dx = 0, dy = 0.25 the lower neighbour weighs 0.25"
)

# %% [markdown]
# Equation 3 asks for four reads per point. **Gathering** is reading many places of an array in one
# go: we lay the pixels of each image in one long row, where pixel $(i, j)$ has place
# $j \cdot W + i$. Neighbours outside are read somewhere inside and given weight zero.


# %%
def sample_gather(image, points):
    """Equations 1 to 3 for all points at once."""
    B, C, H, W = image.shape
    corner, fraction = floor_and_fraction(points)
    weights = bilinear_weights(fraction)
    values = 0
    for n, (a, b) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        i, j = corner[..., 0] + a, corner[..., 1] + b
        inside = (i >= 0) & (i < W) & (j >= 0) & (j < H)
        place = j.clamp(0, H - 1) * W + i.clamp(0, W - 1)
        read = image.flatten(2).gather(2, place[:, None].expand(B, C, -1))
        values = values + (weights[..., n] * inside)[:, None] * read
    return values


# The same sum in another order: rounding of float64 only.
assert torch.allclose(sample_gather(noise, anywhere), oracle, rtol=0, atol=1e-12)
sample_gather(image, points)

# %% [markdown]
# ### Two rulers over the same pixels
#
# `grid_sample` does all this in one well-kept kernel, on the CPU and on the GPU. To use it we
# translate pixels to its ruler, Equation 6. The figure lays both rulers below a row of five pixels.


# %%
def draw_rulers(W):
    figure, axes = canvas(height=1.8)
    shades, extent = np.arange(W)[None] % 2, (-0.5, W - 0.5, 0, 1)
    axes.imshow(shades, cmap="gray", vmin=-2, vmax=1.3, extent=extent, aspect="auto")
    for x in range(W):
        axes.text(x, 0.5, f"x = {x}", ha="center", va="center")
    for height, name, flag in ((-0.5, "first", False), (-1.5, "second", True)):
        ends = (0, W - 1) if flag else (-0.5, W - 0.5)
        marks = torch.stack([torch.linspace(*ends, 5), torch.zeros(5)], dim=-1)
        axes.plot(ends, (height, height), "|-", color=COLOURS[name], markersize=12)
        for x, g in zip(
            marks[:, 0], normalise(marks, (1, W), align_corners=flag)[:, 0], strict=True
        ):
            axes.plot(x, height, "|", color=COLOURS[name])
            axes.text(x, height - 0.2, f"{g:g}".replace("-", "−"), ha="center", va="top", size=8)
        axes.text(W - 0.2, height, f"align_corners={flag}", va="center", color=COLOURS[name])
    axes.set(xlim=(-0.7, W + 1.1), ylim=(-2.2, 1.1))
    axes.set_axis_off()
    return figure


# %%
show(
    draw_rulers(5),
    alt="A row of five pixels. Below it two rulers from −1 to 1: one spans the outer edges of the"
    " row, the other the centres of the first and last pixel.",
)

# %% [markdown]
# See where −1 and 1 lie: on the outer edges of the row, or on the centres of its first and
# last pixel. Both rulers agree in the middle, and nowhere else. A grid made for one and read
# with the other is off by up to half a pixel at the border, which no error message will tell.
#
# The first ruler exists for every image. The second has no length when $W = 1$: its ends coincide
# and Equation 6 would divide by zero. So we read with the first, except where the second is needed,
# as we shall see.


# %% tags=["promote", "exercise"]
def normalise(
    points: Float[Tensor, "*N D"], shape: tuple[int, ...], *, align_corners: bool = False
) -> Float[Tensor, "*N D"]:
    """Map pixel coordinates to grid_sample's ruler, −1 to 1 (equation 6 of the lesson).

    points         (*N, D) coordinates in pixels
    shape          the D sizes of the image in the order of its array: (H, W) or (T, H, W)
    align_corners  put −1 and 1 on the centres of the border pixels instead of on their outer edges

    The result is larger by the rounding unit of float64. grid_sample rounds on the way back, and
    without this nudge a pixel centre could come out on its left, which decides the derivative. In
    float32 the nudge vanishes: one large enough to matter would cost half of the precision.

    Convention: points in (x, y) or (x, y, t) order, the reverse of shape; centres on integers.
    """
    size = points.new_tensor(shape[::-1])
    offset = 0.0 if align_corners else 0.5
    half = (size - 1).clamp(min=1) / 2 if align_corners else size / 2
    start = points.new_tensor(-1 + torch.finfo(torch.float64).eps)
    return torch.addcdiv(start, points + offset, half)


# %% tags=["check"]
ends = torch.tensor([[-0.5, 0.0], [2.0, 1.0], [4.5, 2.0]])
edges, centres = normalise(ends, (3, 5)), normalise(ends, (3, 5), align_corners=True)
# 1e-6: a few rounding steps of float32 near 1.
assert torch.allclose(edges[:, 0], torch.tensor([-1.0, 0.0, 1.0]), atol=1e-6), (
    "without align_corners the outer edges of a row of 5, −0.5 and 4.5, are at −1 and 1"
)
assert torch.allclose(centres[:, 1], torch.tensor([-1.0, 0.0, 1.0]), atol=1e-6), (
    "with align_corners the centres of the first and last of 3 rows, 0 and 2, are at −1 and 1"
)
assert normalise(ends, (1, 1), align_corners=True).isfinite().all(), (
    "an image one pixel wide has no length between its centres; do not divide by zero"
)

# %% [markdown]
# ### Padding: what lies outside
#
# A point may leave the image. Three rules say what is there. `zeros`: nothing, the pixels outside
# are 0. `border`: the nearest pixel, for ever. `reflection`: the image again, mirrored at the
# centres of its border pixels. Here is one row of five pixels, read from four pixels before it to
# four after it.


# %%
def draw_paddings(row):
    figure, columns = canvas(1, 3, height=2.1, sharey=True)
    W = row.shape[-1]
    x = torch.linspace(-4, W + 3, 401)
    line = torch.stack([x, torch.zeros_like(x)], dim=-1)[None]
    for axes, padding in zip(columns, ("zeros", "border", "reflection"), strict=True):
        axes.axvspan(-0.5, W - 0.5, color=COLOURS["muted"], alpha=0.25, linewidth=0)
        axes.plot(x, sample(row, line, padding=padding)[0, 0], color=COLOURS["first"])
        axes.plot(range(W), row[0, 0, 0], "o", color=COLOURS["second"])
        axes.set(title=f"padding={padding!r}", xlabel="x (px)")
    columns[0].set_ylabel("I(x, 0)")
    return figure


# %%
row = torch.tensor([[[[30.0, 10.0, 20.0, 50.0, 40.0]]]])
show(
    draw_paddings(row),
    alt="Three curves through the same five dots. Outside the grey band the first falls to zero"
    " within one pixel, the second stays level, the third repeats the dots mirrored.",
)

# %% [markdown]
# See the edges of the grey band, which is where the image is: zeros fade in over one pixel, the
# border stays level, the mirror turns back at the outermost *centre*. That last rule is
# `grid_sample`'s with `align_corners=True`; with the other ruler it would mirror at the outer edge
# and show the border pixel twice.
#
# ### The final version
#
# What can go wrong is said first, in a sentence that names the argument, what came and what was
# expected.


# %% tags=["promote"]
_PADDINGS = ("zeros", "border", "reflection")


def _check_floating(name: str, values: Tensor) -> None:
    check_tensor(name, values)
    if not values.is_floating_point():
        raise TypeError(
            f"{name} has dtype {values.dtype}; expected floating point (call .float() on it)"
        )


def _check_arguments(image: Tensor, points: Tensor, padding: str) -> None:
    if padding not in _PADDINGS:
        raise ValueError(f"padding is {padding!r}; expected one of {', '.join(_PADDINGS)}")
    _check_floating("image", image)
    _check_floating("points", points)
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
    if points.device != image.device:
        raise ValueError(f"points is on {points.device}; expected {image.device}, that of image")


# %% [markdown]
# Then the reading itself: translate (Equation 6), hand over, restore the shape. The points may
# stand in any arrangement: a list, a grid, one per image. A video is read the same way with a third
# coordinate $t$ for the frame, and eight neighbours instead of four.


# %% tags=["promote", "exercise"]
def sample(
    image: Float[Tensor, "B C *T H W"], points: Float[Tensor, "B *N D"], *, padding: str = "zeros"
) -> Float[Tensor, "B C *N"]:
    """Read an image between its pixels by linear interpolation (equation 3 of the lesson).

    image    (B, C, H, W), or (B, C, T, H, W) for a video
    points   (B, *N, 2) as (x, y) in pixels, or (B, *N, 3) as (x, y, t) for a video
    padding  what lies outside: "zeros", "border" (the nearest pixel) or "reflection" (a mirror
             through the centres of the border pixels)
    returns  (B, C, *N) values in the units and the dtype of the image

    Gradients flow to both. At a pixel centre the slope has a kink, and the gradient to points is
    that of one side: in float64 the side of larger coordinates, in float32 as rounding has it (and
    under reflection 0 at some of the mirrors, either side beyond them).
    Half-precision points and images are computed in float32, since near 1000 a float16 coordinate
    moves in steps of half a pixel. NaN and infinite points give what grid_sample gives.

    Raises TypeError for an integer image or points, ValueError for a shape or a padding that does
    not fit; the sentence names the argument.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    Source: Jaderberg et al. 2015, Spatial Transformer Networks, equation 5.

    >>> image = torch.tensor([[[[10.0, 20.0], [30.0, 40.0]]]])
    >>> sample(image, torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]))
    tensor([[[25., 20.]]])
    """
    _check_arguments(image, points, padding)
    dtype = image.dtype if image.dtype.itemsize > 2 else torch.float32
    mirror = padding == "reflection"
    grid = normalise(points.to(dtype), image.shape[2:], align_corners=mirror)
    if image.ndim == 4 and padding != "zeros":
        # The pixels that grid_sample itself reads there; its backward pass on the CPU would crash.
        grid = grid.nan_to_num(nan=-1.0, posinf=-1.0 if mirror else 1.0, neginf=-1.0)
    batch, middle, axes = points.shape[0], points.shape[1:-1], points.shape[-1]
    grid = grid.reshape(batch, middle.numel(), *(1,) * (axes - 1), axes)
    values = F.grid_sample(image.to(dtype), grid, padding_mode=padding, align_corners=mirror)
    return values.reshape(*image.shape[:2], *middle).to(image.dtype)


# %% tags=["check"]
# 1e-12: rounding of float64, for values in [0, 1].
assert torch.allclose(sample(noise, anywhere), oracle, rtol=0, atol=1e-12), (
    "sample gives other values than the loop"
)
assert sample(noise, anywhere.reshape(2, 8, 5, 2)).shape == (2, 3, 8, 5), (
    "points of shape (B, 8, 5, 2) give values of shape (B, C, 8, 5)"
)
assert sample(noise, anywhere[:, 0]).shape == (2, 3), "one point per image gives shape (B, C)"
assert sample(image.half(), points).dtype == torch.float16, "the values have the image's dtype"
far = torch.full((1, 1, 2), 99.0)
assert sample(image + 1, far, padding="border").item() == 1, "border repeats the nearest pixel"
mirrored = sample(
    torch.arange(4.0).reshape(1, 1, 1, 4), torch.tensor([[-1.0, 0.0]]), padding="reflection"
)
assert abs(mirrored.item() - 1) < 1e-5, "reflection puts −1 on the value at 1"
assert sample(noise[:, :, None], F.pad(anywhere, (0, 1))).shape == (2, 3, 40), (
    "a video (B, C, T, H, W) is read at points (x, y, t)"
)

# %% [markdown]
# Two judges from outside. First `grid_sample` itself, with a grid for the other ruler: where
# nothing is mirrored, both rulers must lead to the same values.

# %%
other_ruler = (2 * anywhere / torch.tensor([4.0, 5.0]) - 1)[:, None]
by_torch = F.grid_sample(noise, other_ruler, align_corners=True)[:, :, 0]
assert torch.allclose(sample(noise, anywhere), by_torch, rtol=0, atol=1e-9)
print(f"largest difference: {(sample(noise, anywhere) - by_torch).abs().max():.1e}")

# %% [markdown]
# Second SciPy, which calls the same thing spline interpolation of order 1, takes the row first, and
# has its own names for the paddings.

# %%
from scipy.ndimage import map_coordinates

for padding, mode in (("zeros", "grid-constant"), ("border", "nearest"), ("reflection", "mirror")):
    by_scipy = map_coordinates(
        noise[1, 2].numpy(), anywhere[1].flip(-1).T.numpy(), order=1, mode=mode
    )
    difference = np.abs(sample(noise, anywhere, padding=padding)[1, 2].numpy() - by_scipy).max()
    assert difference < 1e-9
    print(f"{padding:10} {mode:14} largest difference {difference:.1e}")

# %% [markdown]
# And a stopwatch. Each version reads the same points of the same image; the times are shares of the
# gathering one.

# %%
from time import perf_counter


def seconds(function, *arguments):
    start = perf_counter()
    function(*arguments)
    return perf_counter() - start


# %%
many = torch.rand(1, 100_000, 2, generator=generator) * 200
big = torch.rand(1, 3, 200, 200, generator=generator)
gather = min(seconds(sample_gather, big, many) for _ in range(5))
kernel = min(seconds(sample, big, many) for _ in range(5))
loop = seconds(sample_loop, big, many[:, :500]) * 100_000 / 500
print(
    f"sample: {kernel / gather:.2f} of the time of gathering; loop: {loop / gather:,.0f} times it"
)

# %% [markdown]
# ### The gradient, and its kinks
#
# Equation 5 by hand first, from the four neighbours. PyTorch's automatic differentiation must find
# the same slope.

# %%
point = torch.tensor([[[2.7, 3.2]]], requires_grad=True)
(slope,) = torch.autograd.grad(sample(image, point).sum(), point)
by_hand_x = (1 - 0.2) * (20 - 10) + 0.2 * (40 - 30)
by_hand_y = (1 - 0.7) * (30 - 10) + 0.7 * (40 - 20)
assert torch.allclose(
    slope, torch.tensor([[[by_hand_x, by_hand_y]]]), atol=1e-4
)  # float32, 0 to 40
slope

# %% [markdown]
# `gradcheck` compares with finite differences: it moves every input by a millionth and looks how
# the output changes. It passes for the image and for points *between* pixels.

# %%
between = anywhere[:, :6].floor() + 0.37
inputs = (noise.clone().requires_grad_(), between.requires_grad_())
assert torch.autograd.gradcheck(sample, inputs)

# %% [markdown]
# On a pixel centre there is no derivative: the curve has a **kink** (a corner) there, since the
# slope on the left uses other pixels than the slope on the right. Along one row of an image:


# %%
def draw_kinks(row):
    figure, (above, below) = canvas(2, 1, height=3.2, sharex=True)
    W = row.shape[-1]
    x = torch.linspace(0, W - 1.001, 801, dtype=row.dtype)
    line = torch.stack([x, torch.zeros_like(x)], dim=-1)[None].requires_grad_()
    values = sample(row, line)
    slopes = torch.autograd.grad(values.sum(), line)[0][0, :, 0]
    above.plot(x, values[0, 0].detach(), color=COLOURS["first"])
    above.plot(range(W), row[0, 0, 0], "o", color=COLOURS["second"])
    above.set(ylabel="I(x, 0)", xticks=range(W))
    below.plot(x, slopes, ".", color=COLOURS["first"], markersize=2)
    centres = torch.stack([torch.arange(W - 1.0), torch.zeros(W - 1)], -1)[None].to(row)
    (at_centres,) = torch.autograd.grad(sample(row, centres.requires_grad_()).sum(), centres)
    below.plot(range(W - 1), at_centres[0, :, 0], "o", color=COLOURS["query"])
    below.set(xlabel="x (px)", ylabel="∂I/∂x (1/px)")
    return figure


# %%
show(
    draw_kinks(row.double()),
    alt="Above: a broken line through five dots. Below: its slope, a staircase that jumps at whole"
    " positions; at each jump a dot marks the value on the right.",
)

# %% [markdown]
# See the pink dots: asked *on* a centre, `sample` answers with the slope to the right (and, along
# $y$, downwards). That is what Equation 1 says, since rounding down puts a point on a centre at the
# left end of its square. But it is not what a computer does by itself. `grid_sample` computes $x$
# back from $g_x$, and rounding may bring it out a hair to the left of the centre. How often? Count
# over images of many widths, with the slope to the right known.


# %%
def share_of_left_slopes(dtype):
    """How many of all pixel centres get the slope to their left."""
    wrong = total = 0
    for W in range(2, 130):
        squares = torch.arange(W, dtype=dtype).square().reshape(1, 1, 1, W)
        x = torch.arange(W - 1, dtype=dtype)
        centres = torch.stack([x, torch.zeros_like(x)], dim=-1)[None].requires_grad_()
        (slope,) = torch.autograd.grad(sample(squares, centres).sum(), centres)
        wrong += (slope[0, :, 0] < 2 * x).sum().item()  # from x² the slope to the right is 2x + 1
        total += W - 1
    return wrong / total


# %%
for dtype in (torch.float64, torch.float32):
    nudge = torch.finfo(dtype).eps * 1920 / 2
    print(f"{dtype}: {share_of_left_slopes(dtype):.1%} left; a nudge at W = 1920: {nudge:.0e} px")

# %% [markdown]
# In float64 never, thanks to the nudge in `normalise`: it moves every point right and down, far
# less than anyone could notice and yet enough to outweigh the rounding. In float32 the nudge would
# have to be as large as the last digit of a coordinate near 1920, and every reading would pay for
# it with half of its precision; so there it is left out, and some centres get the slope to their
# left. At a kink both are right, each is the slope of one side. Do not build on which of the two it
# is.
#
# > **Where the code leaves the paper.** The paper that made this sampler differentiable (Jaderberg
# > et al. 2015, *Spatial Transformer Networks*, equation 5) sums over *all* pixels, each weighted
# > with $\max(0, 1-|x-m|)\,\max(0, 1-|y-n|)$ for column $m$ and row $n$. Only four of these weights
# > are not zero, and they are ours. On a centre the paper's derivative (its equation 7) counts the
# > pixel itself with $+1$ and no other pixel of the row: it returns the *value* there, the slope of
# > neither side. The cell below shows it.


# %%
def paper_slope(row, x):
    """Equation 7 of the paper for a single row: −1 for the pixel before x, 1 at x or after it."""
    m = torch.arange(len(row))
    return (row * torch.where((m - x).abs() >= 1, 0, torch.where(m >= x, 1, -1))).sum().item()


values = row[0, 0, 0]
assert paper_slope(values, 2.5) == values[3] - values[2]
print("between:", paper_slope(values, 2.5), " on a centre:", paper_slope(values, 2.0))

# %% [markdown]
# > **Which gradient do the papers use?** A sampler hands gradients back in two ways: to the pixel
# > values, through the weights $w_{ab}$, and to the position, through Equation 5. Spatial
# > transformers, where this sampler was made differentiable, learn through both. RAFT looks up its
# > correlation values with it and learns its features by the first way; the position comes from the
# > estimate before, and RAFT cuts the second way on purpose at each step of its iteration. The
# > chapter on RAFT returns to this.

# %% [markdown]
# ## On real input
#
# ### Zoom until the pixels show
#
# A crop of a real photograph, 42 pixels wide, read at steps of an eighth of a pixel. Rounding each
# point to the **nearest** pixel repeats pixels as squares; bilinear sampling shades between them.


# %%
def lattice(left, top, width, height, step):
    """Points (x, y) at equal steps over a rectangle, shape (1, rows, columns, 2)."""
    x = torch.arange(left, left + width, step)
    y = torch.arange(top, top + height, step)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]


# %%
cat = photograph("chelsea", height=150)
eye = lattice(64.0, 41.0, 42.0, 32.0, step=0.125)
nearest, bilinear = sample(cat, eye.round()), sample(cat, eye)
show(
    image_grid([nearest, bilinear], ["nearest pixel", "bilinear"]),
    alt="The same enlarged eye of a cat twice: in squares on the left, smooth on the right.",
    photo=True,
)
print(credit("chelsea"))

# %% [markdown]
# See the rim of the eye: stairs on the left, a smooth slope on the right. Look again along
# slanted edges on the right and you find beads and small crosses: that is the saddle of
# Equation 4, not the cat. Sampling shades between what was measured, it does not know more.
# For a photograph of your own, `read_image("your.jpg", height=150)` from
# `fourfold.kit.images` takes the place of `photograph(…)`.
#
# ### Find a patch by going downhill
#
# Now the derivative at work. We cut a patch out of a photograph at a position between pixels,
# forget the position, and start elsewhere. The **loss** is the mean squared difference between the
# patch and what we read at the present position; its gradient comes through Equation 5, and we walk
# against it.

# %%
coffee = photograph("coffee", height=150).mean(dim=1, keepdim=True) / 255
around = lattice(-12.0, -12.0, 25.0, 25.0, step=1.0)
target = torch.tensor([95.4, 70.3])
sample(coffee, target + around).shape

# %% [markdown]
# Reading 25 by 25 places around a position needs no code of its own: the places are points like any
# others, and adding the position to `around` moves them all.


# %%
def loss_at(position, image=coffee):
    """Mean squared difference between the patch and what is read around a position."""
    patch = sample(image, target + around)
    return (sample(image, position + around) - patch).square().mean()


start = torch.tensor([100.4, 66.3])
print(f"loss at the start {loss_at(start):.4f}, at the target {loss_at(target):.4f}")


# %%
def descend(position, steps, rate, image=coffee):
    """Walk against the gradient; returns all positions on the way, shape (steps + 1, 2)."""
    path = [position]
    for _ in range(steps):
        position = path[-1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss_at(position, image), position)
        path.append(path[-1] - rate * slope)
    return torch.stack(path)


# %%
path = descend(start, steps=100, rate=60.0)
miss = (path - target).norm(dim=-1)
assert miss[-1] < 0.1, "the walk ends within a tenth of a pixel of where the patch was cut"
print(f"start {miss[0]:.1f} px away, after {len(path) - 1} steps {miss[-1]:.3f} px away")


# %%
def draw_descent(photo, path):
    figure, (left, right) = canvas(1, 2, height=2.9)
    left.imshow(to_picture(photo * 255), cmap="gray", vmin=0, vmax=255)
    right.set_title("loss (dark: small), and the path down")
    shift = torch.linspace(-9, 9, 73)
    x, y = (target[0] + shift).tolist(), (target[1] + shift).tolist()
    losses = [[loss_at(torch.tensor([a, b])).item() for a in x] for b in y]
    right.contourf(x, y, losses, levels=20, cmap="gray")
    right.plot(*path.T, ".-", color=COLOURS["query"], markersize=4, linewidth=1)
    right.plot(*target, "x", color=COLOURS["n11"], markersize=9, markeredgewidth=2)
    for axes in (left, right):
        axes.set(xlabel="x (px)", ylabel="y (px)", aspect="equal")
    right.invert_yaxis()
    box = torch.tensor([[-12, -12], [12, -12], [12, 12], [-12, 12], [-12, -12]])
    left.plot(*(target + box).T, color=COLOURS["n11"])
    left.plot(*(path[0] + box).T, "--", color=COLOURS["query"])
    left.set_title("patch (solid), where we start (dashed)")
    return figure


# %%
show(
    draw_descent(coffee, path),
    alt="Left: a photograph of a coffee cup with two overlapping squares. Right: the loss as a dark"
    " valley and a path of dots that leads from the start to the cross at its bottom.",
    photo=True,
)
print(credit("coffee"))

# %% [markdown]
# See the path on the right: it runs down the walls of the valley to the cross, to a position
# *between* pixels. No search over whole pixels could land there.

# %% [markdown]
# ## Exercises
#
# In the exercise edition (`fourfold start`) these bodies are blank; each has its check directly
# below.
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `floor_and_fraction` | 3 | ●○○ |
# | `bilinear_weights` | 5 | ●○○ |
# | `normalise` | 10 | ●●○ |
# | `sample` | 15 | ●●● |
#
# <details><summary>Hint for <code>floor_and_fraction</code></summary>
#
# `floor` rounds down below zero too; `.long()` alone rounds towards zero.
#
# </details>
#
# <details><summary>Hint for <code>bilinear_weights</code></summary>
#
# `unbind(-1)` gives dx and dy; `torch.stack(…, dim=-1)` makes a last axis of four.
#
# </details>
#
# <details><summary>Hint for <code>normalise</code></summary>
#
# The sizes come as (H, W), the coordinates as (x, y): one of them must be turned round. The nudge
# is a refinement: the check passes without it, and a later cell then counts some left slopes in
# float64 too.
#
# </details>
#
# <details><summary>Hint for <code>sample</code></summary>
#
# `grid_sample` wants as many middle axes in its grid as the image has spatial axes. Put all points
# on one of them, give the others size 1, and reshape at the end. Begin with `_check_arguments`.
#
# </details>
#
# **Predict.** We zoomed with `eye.round()`. What gradient would `loss_at` have if it read the
# nearest pixel instead? Could `descend` move?
#
# <details><summary>Hint</summary>
#
# Move a point by a hundredth of a pixel. Does the nearest pixel change?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The value stays the same until the point crosses the middle between two pixels, so the gradient is
# zero almost everywhere and the walk never leaves its start. Try it: read at
# `(position + around).round()` in `loss_at`; PyTorch gives `round` a gradient of zero.
#
# </details>
#
# **Vary.** Start 10 pixels above the target, at (95.4, 60.3). Does the walk arrive? Then blur the
# photograph with `F.avg_pool2d(coffee, 9, stride=1, padding=4)`, hand it to `descend` and try
# again.
#
# <details><summary>Hint</summary>
#
# Look at the contours: where does the valley end? Blurring makes the gradient smaller, so the rate
# may grow to 150.
#
# </details>
#
# <details><summary>Answer</summary>
#
# It does not: the gradient sees one pixel in each direction, and beyond the valley it leads into
# another hollow, farther away than the start. In the blurred photograph the valley is wider and the
# walk arrives. This is why methods of optical flow work from coarse to fine, and why RAFT looks at
# a whole window of positions, on several scales. The numbers are in the cell below.
#
# </details>
#
# **Find the bug.** A colleague enlarges images to `n` by `n` pixels with
# `g = torch.linspace(-1, 1, n)` for both coordinates and calls
# `F.grid_sample(image, grid, align_corners=False)`. The result looks almost right, but has a dark
# frame. Why?
#
# <details><summary>Hint</summary>
#
# Find −1 on both rulers of the figure.
#
# </details>
#
# <details><summary>Answer</summary>
#
# With `align_corners=False`, −1 is the outer edge of the image, half a pixel beyond the first
# centre. There half of the weight lies on pixels outside, which are zero (in a corner three
# quarters). The linspace belongs to `align_corners=True`.
#
# </details>

# %% [markdown]
# The numbers behind the last two answers:

# %%
above = torch.tensor([95.4, 60.3])
blurred = F.avg_pool2d(coffee, 9, stride=1, padding=4)
sharp_end, blurred_end = descend(above, 100, 60.0)[-1], descend(above, 100, 150.0, blurred)[-1]
assert (sharp_end - target).norm() > 10 and (blurred_end - target).norm() < 1
print(f"sharp: ends {(sharp_end - target).norm():.1f} px away", end=", ")
print(f"blurred: {(blurred_end - target).norm():.1f} px")

# %%
edge = torch.linspace(-1, 1, 5)
grid = torch.stack(torch.meshgrid(edge, edge, indexing="xy"), dim=-1)[None]
F.grid_sample(torch.ones(1, 1, 4, 4), grid, align_corners=False)[0, 0]

# %% [markdown]
# ## What breaks
#
# ### Row first
#
# Hand the points over as (row, column), as an array is indexed, and nothing complains: the last
# axis still has two numbers.

# %%
whole = lattice(0.0, 0.0, 225.0, 150.0, step=1.0)
cup = photograph("coffee", height=150)
show(
    image_grid([sample(cup, whole), sample(cup, whole.flip(-1))], ["(x, y)", "(y, x): wrong"]),
    alt="A coffee cup; beside it the same picture mirrored along its diagonal, with a black part.",
    photo=True,
)

# %% [markdown]
# The picture is mirrored along its diagonal (the cup has moved from the top to the left), and its
# right part is black, since the swapped points leave the image there. In a square image without a
# clear up and down this can go unseen for weeks. Test with an image that is wider than high.
#
# ### What the code says to bad input
#
# Whole-number images (`uint8`, as files store them) have nothing between their values; the sentence
# says what to do. The others name what came and what was expected.

# %% tags=["nbval-check-output"]
with shows_error(TypeError):
    sample(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1, 5, 2))

# %% tags=["nbval-check-output"]
with shows_error(ValueError):
    sample(torch.zeros(1, 3, 4, 4), torch.zeros(1, 5, 3))

# %% tags=["nbval-check-output"]
with shows_error(ValueError):
    sample(torch.zeros(2, 3, 4, 4), torch.zeros(1, 5, 2))

# %% tags=["nbval-check-output"]
with shows_error(ValueError):
    sample(torch.zeros(1, 3, 4, 4), torch.zeros(1, 5, 2), padding="mirror")

# %% [markdown]
# ### Not a number
#
# A diverging network hands over NaN (not a number) or infinite positions. They do not stop the
# program: `sample` gives what `grid_sample` gives. For an image on the CPU, `zeros` gives NaN and
# the other two give a pixel of the border; for a video, `zeros` gives 0. The gradient to such a point says nothing. On its own, the CPU version of `grid_sample`
# can even crash in the backward pass of a border or a mirror, so `sample` puts the border pixel in
# its place first.

# %%
lost = torch.tensor([[[float("nan"), 1.0], [float("inf"), 1.0], [1e30, 1.0]]])
for padding in ("zeros", "border", "reflection"):
    print(f"{padding:10}", sample(row.expand(1, 1, 3, 5), lost, padding=padding)[0, 0].tolist())

# %% [markdown]
# A merely huge position, the last column, is outside like any other. Under `zeros` its gradient is
# zero too: a point that has left the image has nothing to pull it back.
#
# ### Half precision
#
# Networks on GPUs often compute in 16-bit numbers. They keep only two or three digits, so the
# larger the coordinate, the coarser its steps.

# %%
x = torch.tensor([10.3, 100.3, 1000.3])
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    step = 512 * torch.finfo(dtype).eps  # numbers from 512 to 1024 are this far apart
    values = ", ".join(f"{value:.6g}" for value in x.to(dtype).tolist())
    print(f"{dtype!s:15} {values:26} steps near 1000: {step:.1g}")

# %% [markdown]
# Near 1000 pixels a float16 moves in steps of half a pixel, a bfloat16 in steps of four. What the
# caller has rounded is lost, but `sample` adds nothing to it: it computes half-precision points and
# images in float32, and returns the dtype of the image. Keep coordinates in float32, whatever the
# dtype of the features.

# %%
ramp = torch.arange(1024.0).reshape(1, 1, 1, 1024)
place = torch.tensor([[[1000.3, 0.0]]])
kept, halved = sample(ramp, place).item(), sample(ramp, place.half()).item()
assert abs(kept - 1000.3) < 0.01 and abs(halved - 1000.5) < 0.01  # float32 at 1000: steps of 6e-5
print(f"float32 points read {kept:.2f}, float16 points read {halved:.2f}")

# %% [markdown]
# ## Recap
#
# - The value between pixels is the average of four neighbours; each weighs as much as the area
#   opposite to it.
# - Positions are $(x, y)$ in pixels with centres on whole numbers; rulers and paddings are
#   conventions, and mixing them is silent.
# - The value has a slope in the position, with kinks on the centres: positions can be learned.
#
# Next: [2 Warps](2_warps.ipynb) moves whole images by sampling at every pixel, and
# [3 Window](3_window.ipynb) reads a neighbourhood around each point at once, as RAFT does.
