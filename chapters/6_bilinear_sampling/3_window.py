# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: beginner
#     minutes: 40
#     needs:
#     - 6_bilinear_sampling/1_sampling
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Windows: one fraction for a whole neighbourhood
#
# **After this lesson you can** read a square window of values around any point of a map, at every level of a pyramid, with a third of the memory reads that sampling each of its points takes (100 against 324 at radius 4).
#
# *Before this:* [Sampling: reading between pixels](1_sampling.ipynb) (`1_sampling`). *Time:* 40 minutes, and 30 for the blanks.

# %% [markdown]
# ## Words
#
# To match two photographs, a network compares one pixel of the first with every pixel of the second. The result is a **map** $M$ of similarities, one such map for each pixel of the first photograph. Nobody reads a whole map. A guess says where the pixel went, and the network looks at the **window** $V$ around that guess: $2r+1$ points a side, one pixel apart, where $r$ is the **radius**. That reading is the **look-up** (查找) of RAFT, and the guess is its **centre** $c$, which falls between pixels.
#
# The points of a window are one pixel apart, so all of them fall at the same place between their neighbours: they share one **fraction** $d$. It is enough to copy one **patch** $P$ of whole pixels, one pixel larger than the window, and to mix each pixel with the next, first down, which gives the **rows** $Q$, then across. A **pyramid** (金字塔) holds the map at half, a quarter, an eighth of its size; at level $k$ the same window reaches $2^k$ times as far in each direction.

# %% [markdown]
# ## Figure
#
# ### A map of similarities from two photographs
#
# The photographs are a stereo pair: two cameras side by side. To compare places, each place needs a description, its **feature vector**. Here it is the grey values of a 16 × 16 block, minus their mean, divided by their length, so that the product of two vectors is the cosine of the angle between them: 1 for the same pattern, 0 for unrelated ones. Blocks start every 4 pixels.

# %%
import math
import time
from collections.abc import Sequence
from numbers import Integral

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from matplotlib.patches import Rectangle
from torch import Tensor

from fourfold.bilinear_sampling.sampling import _check_floating, sample
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.bilinear_sampling.window import blend_patch, read_patch, sample_pyramid, sample_window
from fourfold.kit.drawing import (
    COLOURS,
    canvas,
    draw_pixels,
    flow_to_image,
    flow_wheel,
    show,
    to_picture,
)
from fourfold.kit.images import credit, stereo_pair


# %%
def block_features(image, size=16, step=4):
    """Describe every block of an image by its pattern of grey; returns (C, H, W)."""
    grey = image.mean(dim=1, keepdim=True)
    blocks = F.unfold(grey, size, stride=step, padding=(size - step) // 2)[0]
    blocks = F.normalize(blocks - blocks.mean(dim=0), dim=0)
    return blocks.view(size**2, image.shape[2] // step, image.shape[3] // step)


# %% [markdown]
# The product of all vectors of one image with all vectors of the other is a matrix of all pairs. Row by row it is a stack of maps, one for each place of the left photograph: what RAFT calls the **correlation volume**.
#
# Follow one place, on the motorcycle's front light. `pixel_grid`, from [lesson 2](2_warps.ipynb), holds the position (x, y) of every pixel. The dataset knows by how much each pixel moves, its **disparity** (视差); the guess is a little wrong on purpose.

# %%
pair = stereo_pair(shrink=2)
left, right = block_features(pair.left), block_features(pair.right)
H, W = left.shape[1:]
volume = (left.flatten(1).T @ right.flatten(1)).view(H * W, H, W)
print(f"{len(volume)} maps of {H} × {W}, {volume.nbytes / 2**20:.0f} MiB")

grid = pixel_grid(H, W)
disparity = F.avg_pool2d(pair.disparity, 4)[0, 0] / 4
query = (66, 20)
similarity = volume[query[1] * W + query[0]]
true_match = grid[query[1], query[0]] - torch.tensor([disparity[query[1], query[0]], 0])
guess = true_match.round() + torch.tensor([1.4, 0.35])


# %%
def photo_position(point, step=4):
    """Where a pixel of the map lies in the photograph: the middle of its block."""
    return [float(p) * step + (step - 1) / 2 for p in point]


def outline(axes, centre, reach, colour):
    """Draw the square that lies `reach` around a centre."""
    x, y = centre
    square = Rectangle((x - reach, y - reach), 2 * reach, 2 * reach, fill=False)
    square.set(edgecolor=COLOURS[colour], linewidth=1.8)
    axes.add_patch(square)


# %% tags=["figure"]
def draw_look_up(radius=4):
    figure, (first, second, third) = canvas(1, 3, 7.0, 2.0)
    first.imshow(to_picture(pair.left))
    first.plot(*photo_position(query), "o", color=COLOURS["query"], markeredgecolor="white")
    first.set(title="left photo", ylabel="y (px)")
    second.imshow(to_picture(pair.right))
    outline(second, photo_position(guess), 4 * radius, "second")
    second.set(title="right photo")
    third.imshow(similarity, vmin=-0.6, vmax=1, cmap="gray")
    outline(third, guess.tolist(), radius, "second")
    third.set(title=f"map M {tuple(similarity.shape)}", xlabel="x (map px)", ylabel="y (map px)")
    x, y = guess.tolist()
    line = {"color": "white", "arrowprops": {"arrowstyle": "-", "color": "white"}}
    line["bbox"] = {"facecolor": "black", "alpha": 0.7, "pad": 1.5}
    third.annotate("centre c", (x, y), (30, 52), **line)
    third.annotate("radius r", (x - radius, y), (22, 8), **line)
    for axes in (first, second):
        axes.set(xlabel="x (px)")
    return figure


show(
    draw_look_up(),
    alt="Left photograph with one marked place, right photograph with a square around the guessed "
    "match, and the similarity map with the same square around its centre",
    photo=True,
)
print(credit("motorcycle"))

# %% [markdown]
# The marked place on the left gives the map on the right, light where the right photograph looks alike; many places look alike, and the look-up reads only the square around the guess.
#
# ### From patch to rows to window
#
# Now the same map from close by, at radius 2, with the intermediate results of the library's own functions. The numbers are similarities in hundredths.


# %% tags=["figure"]
def draw_pipeline(radius=2):
    corner, fraction = guess.floor().long() - radius, guess - guess.floor()
    patch = read_patch(similarity[None], corner[None, None], 2 * radius + 2)[0, 0]
    rows = torch.lerp(patch[:-1], patch[1:], fraction[1])
    window = sample_window(similarity[None], guess[None], radius)[0]
    steps = {
        "patch P": (patch, f"corner (i, j) = {tuple(corner.tolist())}"),
        "rows Q": (rows, f"down by fraction d: {fraction[1]:.2f}"),
        "window V": (window, f"across by fraction d: {fraction[0]:.2f}"),
    }
    figure, axes = canvas(1, 3, 7.4, 2.9, width_ratios=[6, 6, 5])
    for each, (name, (values, note)) in zip(axes, steps.items(), strict=True):
        hundredths = (100 * values).round() + 0.0  # adding 0 turns −0 into 0
        draw_pixels(each, hundredths, number="{:.0f}", limits=(-150, 120), fontsize=7)
        each.set(title=f"{name} {tuple(values.shape)}\n{note}")
        each.set(xlabel="p (px of the patch)", ylabel="q (px of the patch)")
    ticks, offsets = range(2 * radius + 1), range(-radius, radius + 1)
    axes[2].set(xlabel="s (px)", ylabel="t (px)")
    axes[2].set(xticks=ticks, xticklabels=offsets, yticks=ticks, yticklabels=offsets)
    points = pixel_grid(2 * radius + 1, 2 * radius + 1) + fraction
    axes[0].scatter(
        *points.flatten(0, 1).T, s=14, color=COLOURS["second"], edgecolor="black", lw=0.4
    )
    return figure


show(
    draw_pipeline(),
    alt="A patch of 6 by 6 whole pixels with 25 points between them, the 5 by 6 rows after mixing "
    "downwards, and the 5 by 5 window after mixing across",
)

# %% [markdown]
# Each dot on the patch is a point to read; all sit at the same place inside their square of four pixels, so one mix downwards and one mix across serve all of them at once. The largest number of the patch marks the true match, left of the middle and a little above it: the guess lies too far right and a little too low.

# %% [markdown]
# ## Formula
#
# The window around the centre $c = (c_x, c_y)$ holds the map's values, read by bilinear sampling (双线性采样), at whole-pixel offsets $s, t$, right and down. The row index is written first, as in an array:
#
# $$ V_{t,s} = M(c_x + s,\; c_y + t), \qquad s, t \in \{-r, \dots, r\} \tag{1} $$
#
# Split the centre into a whole part and a fraction. The **corner** $(i, j)$ is the first pixel that any point of the window needs:
#
# $$ (i, j) = \lfloor c \rfloor - (r, r), \qquad d = (d_x, d_y) = c - \lfloor c \rfloor \tag{2} $$
#
# A point of the window is then at $(i + d_x, j + d_y)$ plus whole numbers: the fraction $d$ is the same for all. Their neighbours are whole pixels of one patch, in its column and row $p, q$, with 0 outside the map:
#
# $$ P_{q,p} = M[j + q,\; i + p], \qquad p, q \in \{0, \dots, 2r+1\} \tag{3} $$
#
# Bilinear weights are products of a weight in y and a weight in x, so the sum over four neighbours comes apart into two sums over two, each a shifted copy mixed with the original:
#
# $$ Q_{q,p} = (1 - d_y)\,P_{q,p} + d_y\,P_{q+1,p} \tag{4} $$
#
# $$ V_{q-r,\,p-r} = (1 - d_x)\,Q_{q,p} + d_x\,Q_{q,p+1} \tag{5} $$
#
# Sampling each point reads four pixels for each of $(2r+1)^2$ points. The patch is read once:
#
# $$ 4\,(2r+1)^2 \quad\text{against}\quad (2r+2)^2 \ \text{reads} \tag{6} $$
#
# Level $k$ of a pyramid, $M^k$, is the map averaged over squares of $2^k \times 2^k$ pixels; $V^k$ is a window on it. Its coordinates are smaller by the same factor:
#
# $$ V^k_{t,s} = M^k\!\left(\frac{c_x}{2^k} + s,\; \frac{c_y}{2^k} + t\right) \tag{7} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $M$ | map of values, one for each of $B$ items | (B, H, W) or (B, C, H, W) | `maps` | map M |
# | $c$ | centre of a window, (x, y) | (B, 2) or (B, K, 2), map px | `centres` | centre c |
# | $r$ | radius of the window | whole number, map px | `radius` | radius r |
# | $(i, j)$ | first pixel of the patch, (x, y) | (B, K, 2), whole map px | `corner` | corner (i, j) |
# | $d$ | how far the points lie past whole pixels | (B, K, 2), in [0, 1) | `fraction` | fraction d |
# | $P$ | patch of whole pixels | (B, K, 2r+2, 2r+2) | `patch` | patch P |
# | $Q$ | rows: the patch mixed downwards | (B, K, 2r+1, 2r+2) | `rows` | rows Q |
# | $V$ | window: the rows mixed across | (B, K, 2r+1, 2r+1) | `window` | window V |
# | $s, t$ | offset of a point from the centre, right and down | whole map px, −r … r | `offsets` | s (px) |
# | $p, q$ | column and row of the patch | whole, 0 … 2r+1 | `step` | p (px of the patch) |
# | $k$ | level of the pyramid, 0 the finest | whole number | `k` | level k = |
#
# Letters of shapes: $B$ maps, $K$ centres on each map, $C$ channels, $H$ and $W$ the size of the map, $E = 2r+2$ the side of the patch.

# %% [markdown]
# ## Code
#
# ### Point by point
#
# Equation 1 word by word, for one map and one centre: two loops, and one reading for each pair of offsets. Slow, and hard to get wrong: what follows is measured against it.


# %%
def sample_window_loop(one_map, centre, radius):
    offsets = range(-radius, radius + 1)
    window = torch.zeros(2 * radius + 1, 2 * radius + 1)
    for t in offsets:
        for s in offsets:
            point = centre + torch.tensor([s, t])
            window[t + radius, s + radius] = sample(one_map[None, None], point[None])[0, 0]
    return window


# %% [markdown]
# A small test image, on which the map's value says where it was read: 10 for each step down, 1 for each step right.

# %%
small = torch.arange(5.0)[:, None] * 10 + torch.arange(6.0)
sample_window_loop(small, torch.tensor([2.5, 1.25]), 1)

# %% [markdown]
# The middle of the window reads $10 \cdot 1.25 + 2.5 = 15$. The first axis goes down (y), the second to the right (x).

# %%
middle = sample_window_loop(small, torch.tensor([2.5, 1.25]), 1)[1, 1]
# float32 at values near 15 has steps of 1e-6; sampling costs a few of them.
assert math.isclose(middle, 10 * 1.25 + 2.5, abs_tol=1e-4)

# %% [markdown]
# The same for all maps at once: write out every point of every window and hand them to `sample`. This version is the yardstick of the lesson, for numbers and for time.


# %%
def sample_window_points(maps, centres, radius):
    """Sample each point of each window: maps (B, H, W), centres (B, 2)."""
    offsets = pixel_grid(2 * radius + 1, 2 * radius + 1).to(centres) - radius
    points = centres[:, None, None] + offsets
    return sample(maps[:, None], points)[:, 0]


# %%
by_points = sample_window_points(small[None], torch.tensor([[2.5, 1.25]]), 2)[0]
assert torch.allclose(by_points, sample_window_loop(small, torch.tensor([2.5, 1.25]), 2), atol=1e-5)
by_points

# %% [markdown]
# The zeros are offsets that leave the map. Now look at the fractions of all 81 points of a window of radius 4:

# %% tags=["nbval-check-output"]
points = torch.tensor([37.25, 20.75]) + pixel_grid(9, 9) - 4
fractions = (points - points.floor()).flatten(0, 1)
print(len(fractions), "points,", len(fractions.unique(dim=0)), "fraction:", fractions[0].tolist())

# %% [markdown]
# Sampling point by point computes this one fraction 81 times, and reads most pixels four times: each is the neighbour of four points. The rest of the lesson removes both repetitions.
#
# ### The patch: whole pixels, read once
#
# Equation 3 as two loops. Pixels outside the map count as 0.


# %%
def read_patch_loop(one_map, corner, size):
    patch = torch.zeros(size, size)
    i, j = corner
    for q in range(size):
        for p in range(size):
            if 0 <= j + q < one_map.shape[0] and 0 <= i + p < one_map.shape[1]:
                patch[q, p] = one_map[j + q, i + p]
    return patch


# %%
read_patch_loop(small, (3, -1), 4)

# %% [markdown]
# To read all patches in one call, lay each map out as one line of $H \cdot W$ numbers: pixel $(x, y)$ is number $y\,W + x$ of the line, and `gather` copies the numbers named by an index. The index of a patch is a sum of a row part and a column part. A trick saves work on the outside: a row or column outside the map (a clamp to the map would change it) gets the part $-H\,W$, so the sum is negative exactly where the pixel lies outside.


# %%
def axis_part(positions, size, stride, far):
    inside = positions == positions.clamp(0, size - 1)
    return torch.where(inside, positions * stride, -far)


# %%
row_part = axis_part(torch.arange(-1, 3), size=5, stride=6, far=30)
column_part = axis_part(torch.arange(3, 7), size=6, stride=1, far=30)
row_part[:, None] + column_part

# %% [markdown]
# The negative numbers stand where the patch of the last picture has its zeros. `gather` accepts no negative index, so those read pixel 0 and are replaced by 0 afterwards.
#
# Zeros are one rule for the outside. CoTracker (chapter 5) takes the other, `padding="border"`: the border goes on for ever, so that a pixel outside is the nearest one inside. In the patch that is a clamp of the whole numbers `x` and `y`. It equals clamping the points themselves, as `sample` does: outside, both neighbours of a point are the same border pixel, and their mix is that pixel, whatever the fraction.


# %% tags=["promote"]
def _check_padding(padding: str) -> None:
    if padding not in ("zeros", "border"):
        raise ValueError(f"padding is {padding!r}; expected zeros or border")


# %% tags=["promote", "exercise"]
def read_patch(
    maps: Float[Tensor, "B H W"], corner: Int[Tensor, "B K 2"], size: int, *, padding: str = "zeros"
) -> Float[Tensor, "B K {size} {size}"]:
    """Copy a square of whole pixels out of each map (equation 3 of the lesson).

    maps     (B, H, W) values in any unit
    corner   (B, K, 2) the top-left pixel (x, y) of each patch, as integers; K patches per map
    size     the side of a patch in pixels
    padding  what lies outside: "zeros" or "border" (the nearest pixel)
    returns  (B, K, size, size) the pixels

    Raises ValueError for another padding.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0);
    first patch axis y, second x.
    """
    _check_padding(padding)
    H, W = maps.shape[1:]
    step = torch.arange(size, device=corner.device)
    x, y = (first[..., None] + step for first in corner.unbind(-1))
    if padding == "border":
        x, y = x.clamp(0, W - 1), y.clamp(0, H - 1)
    # A row or a column outside the map makes the sum of the two negative, whatever the other is.
    row = torch.where(y == y.clamp(0, H - 1), y * W, -H * W)
    column = torch.where(x == x.clamp(0, W - 1), x, -H * W)
    index = row[..., :, None] + column[..., None, :]
    outside = index < 0
    pixels = maps.flatten(1).gather(1, index.clamp_(min=0).flatten(1)).view(index.shape)
    # A choice, not a product with 0: a NaN on the map must not reach the points outside it.
    return torch.where(outside, 0, pixels)


# %% tags=["check"]
numbers = torch.arange(40.0).view(2, 4, 5) + 1
corners = torch.tensor([[[3, -1], [1, 1], [9, 9]], [[-2, 2], [0, 0], [2, 3]]])
patches = read_patch(numbers, corners, 3)
assert patches.shape == (2, 3, 3, 3), "a patch has the shape (B, K, size, size)"
for b in range(2):
    for k in range(3):
        expected = read_patch_loop(numbers[b], corners[b, k].tolist(), 3)
        assert torch.equal(patches[b, k], expected), f"patch {k} of map {b} differs from the loop"
beyond = read_patch(torch.full((1, 2, 2), math.nan), torch.tensor([[[2, 0]]]), 2)
assert torch.equal(beyond, torch.zeros(1, 1, 2, 2)), "outside is 0, also beside a NaN"
padded = F.pad(numbers, (9, 9, 9, 9), mode="replicate")  # the map, its border repeated 9 times
for b, k in ((0, 0), (0, 2), (1, 0), (1, 2)):
    i, j = (corners[b, k] + 9).tolist()
    border = read_patch(numbers, corners, 3, padding="border")[b, k]
    assert torch.equal(border, padded[b, j : j + 3, i : i + 3]), f"the border of patch {k}, map {b}"

# %% [markdown]
# ### The patch in runs
#
# `read_patch` names all $(2r+2)^2$ pixels of a patch. Yet the pixels of one row are neighbours in memory: a row of a patch is a **run** of $2r+2$ numbers, and where it starts says all. `unfold` shows every run of a line as one row of a table, without a copy:

# %%
line = torch.arange(8)
line.unfold(0, 4, 1)

# %% [markdown]
# `F.embedding` copies the rows of a table that we name, one for each row of a patch. A run that reaches over the end of its map's row picks up pixels of the next one, but those lie outside the map and become 0. Which of them do depends on the column where the run starts, so a small table holds the masks of all columns, and they are copied in runs as well. A run that reaches over an end of the whole line, at most on the first and the last map, is read pixel by pixel.


# %% tags=["promote"]
def _copy_patch(maps: Tensor, corner: Tensor, size: int) -> Tensor:
    """Equal `read_patch` by copying runs of `size` pixels; no gradient flows to the maps."""
    B, H, W = maps.shape
    line, step = maps.flatten(), torch.arange(size)
    x, y = corner[..., :1], corner[..., 1:] + step
    start = (torch.arange(B)[:, None, None] * H + y.clamp(0, H - 1)) * W + x
    begin = start.clamp(0, len(line) - size)
    patch = F.embedding(begin, line.unfold(0, size, 1))
    cut = begin != start
    if cut.any():
        places = start[cut][:, None] + step
        patch[cut] = line[places.clamp(0, len(line) - 1)]
    # One row for each column where a run may start, from −size to W; in row 0 all is outside.
    column = torch.arange(-size, W + 1)[:, None] + step
    mask = (column < 0) | (column >= W)
    row = (x.clamp(-size, W) + size).masked_fill(y != y.clamp(0, H - 1), 0)
    return patch.masked_fill_(F.embedding(row, mask), 0)


# %% tags=["check"]
assert torch.equal(_copy_patch(numbers, corners, 3), patches), "runs differ from single pixels"

# %% [markdown]
# The price is the gradient: for it, PyTorch would fill a table of all runs, $2r+2$ times as large as the maps. So the look-up below copies runs where nobody asks for the gradient of the maps, as in every use of a trained network, and calls `read_patch` where somebody does. (It also calls `read_patch` on a GPU, which would have to wait for the answer to `cut.any()`, and for maps smaller than one run.)

# %% [markdown]
# ### Two shifted sums
#
# Equations 4 and 5 take a slice, the slice one further on, and mix them. `torch.lerp(a, b, d)` computes $a + d\,(b - a)$, which is $(1-d)\,a + d\,b$ with one multiplication.


# %%
def blend_patch_slices(patch, fraction):
    dx, dy = fraction[..., None, None, :].unbind(-1)
    rows = torch.lerp(patch[..., :-1, :], patch[..., 1:, :], dy)
    return torch.lerp(rows[..., :-1], rows[..., 1:], dx)


# %% [markdown]
# The worked example of lesson 1: 10, 20, 30, 40 around the point, half way in both directions.

# %%
four = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
assert blend_patch_slices(four, torch.tensor([0.5, 0.5])).item() == 25

# %% [markdown]
# The second mix works on rows of a few numbers each, and a processor prefers long runs. The rows lie one behind another in memory, so mix along that whole line: number $n$ with number $n+1$. At the end of a row this mixes its last pixel with the first of the next row, which no one asked for. `unfold` then cuts out runs of $2r+1$ numbers that start $2r+2$ apart, and leaves those out.


# %% tags=["promote", "exercise"]
def blend_patch(
    patch: Float[Tensor, "*#N E E"], fraction: Float[Tensor, "*#N 2"]
) -> Float[Tensor, "*#N E-1 E-1"]:
    """Mix each pixel of a patch with the next, down and then across (equations 4 and 5).

    patch     (*N, E, E) whole pixels, E at least 2
    fraction  (*N, 2) how far (x, y) the points lie past them, in pixels, in [0, 1)
    returns   (*N, E − 1, E − 1) the values at the points

    Convention: fraction in (x, y) order; first patch axis y, second x.
    """
    size = patch.shape[-1]
    dx, dy = fraction[..., None, :].unbind(-1)
    rows = torch.lerp(patch[..., :-1, :], patch[..., 1:, :], dy[..., None])
    # All rows in one line: the sum across a row's end is computed too, and left out by unfold.
    line = rows.flatten(-2)
    return torch.lerp(line[..., :-1], line[..., 1:], dx).unfold(-1, size - 1, size)


# %% tags=["check"]
four = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
assert blend_patch(four, torch.tensor([0.5, 0.5])).tolist() == [[25]], "half way lies 25"
assert blend_patch(four, torch.tensor([0.25, 0.0])).tolist() == [[12.5]], "a quarter to the right"
assert blend_patch(four, torch.tensor([0.0, 0.25])).tolist() == [[15]], "a quarter down lies 15"
stack, shares = torch.rand(4, 3, 6, 6), torch.rand(4, 3, 2)
expected = blend_patch_slices(stack, shares)
assert blend_patch(stack, shares).shape == expected.shape, "the window is one smaller each way"
# The same sums in the same order: equal up to one rounding of float32.
assert torch.allclose(blend_patch(stack, shares), expected, atol=1e-6), "differs from the slices"

# %% [markdown]
# ### The look-up
#
# Equation 2 and the two functions together. There may be one centre for each map, as in RAFT, or $K$ of them, as in CoTracker, which follows $K$ points through maps of many channels. An axis that is not there is added and taken away again.
#
# Maps of several channels go to `sample`: it computes the weights of a point once and uses them for every channel, which leaves the patch little to save. An exercise below measures it.


# %% tags=["promote"]
def _check_arguments(maps: Tensor, centres: Tensor, radius: int, padding: str) -> None:
    _check_padding(padding)
    _check_floating("maps", maps)
    _check_floating("centres", centres)
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
    if centres.device != maps.device:
        raise ValueError(f"centres is on {centres.device}; expected {maps.device}, that of maps")
    if not isinstance(radius, Integral) or isinstance(radius, bool) or radius < 0:
        raise ValueError(f"radius is {radius!r}; expected a whole number of pixels, 0 or more")


# %% tags=["promote"]
def _window_from_patch(maps: Tensor, centres: Tensor, radius: int, padding: str) -> Tensor:
    size = 2 * radius + 2
    dtype = maps.dtype if maps.dtype.itemsize > 2 else torch.float32
    floor = centres.floor()
    fraction = (centres - floor).to(dtype)
    # The clamp keeps a far centre outside and its corner a number that an integer can hold.
    corner = (floor - radius).clamp(-size, max(maps.shape[1:])).long()
    needs_gradient = maps.requires_grad and torch.is_grad_enabled()
    in_runs = maps.device.type == "cpu" and not needs_gradient and maps.numel() >= size
    in_runs = in_runs and not torch.compiler.is_compiling()  # `if cut.any()` would break the graph
    if in_runs and padding == "zeros":
        patch = _copy_patch(maps, corner, size)
    else:
        patch = read_patch(maps, corner, size, padding=padding)
    return blend_patch(patch.to(dtype), fraction).to(maps.dtype)


def _window_from_points(maps: Tensor, centres: Tensor, radius: int, padding: str) -> Tensor:
    side = 2 * radius + 1
    offsets = pixel_grid(side, side, device=centres.device, dtype=centres.dtype) - radius
    points = centres[:, :, None, None] + offsets
    values = sample(maps, points, padding=padding).transpose(1, 2)
    if padding == "border":  # `sample` reads a pixel there; a patch gives NaN, as zeros do
        finite = centres.isfinite().all(dim=-1)[:, :, None, None, None]
        values = torch.where(finite, values, math.nan)
    return values


# %% tags=["promote"]
def sample_window(
    maps: Float[Tensor, "B *C H W"],
    centres: Float[Tensor, "B *K 2"],
    radius: int,
    *,
    padding: str = "zeros",
) -> Float[Tensor, "B ... {2*radius+1} {2*radius+1}"]:
    """Read the square window around each centre of each map (equation 1 of the lesson).

    maps     (B, H, W), or (B, C, H, W) with channels, in any unit
    centres  (B, 2) one centre per map, or (B, K, 2) for K, in pixels of the map
    radius   r, in pixels of the map: the window has S = 2r + 1 points a side, one pixel apart
    padding  what lies outside: "zeros" or "border" (the nearest pixel)
    returns  (B, [K], [C], S, S) in the unit and the dtype of maps; the K axis is there when centres
             has one, the C axis when maps has one

    The same numbers and gradients as `sample` at each of the S² points, with the same padding.
    A map value that is not finite reaches the points whose four neighbours include it, and no
    others, as NaN where `sample` may give an infinity; a centre that is not finite gives NaN.
    Half-precision centres are computed in float32.

    Raises TypeError for integer maps or centres, ValueError for a shape, a radius or a padding that
    does not fit; the sentence names the argument.

    Convention: centres in (x, y) order, x to the right, y down, the centre of the top-left pixel
    at (0, 0); the first window axis is y, the second x, offsets −r … r.
    Source: Teed and Deng 2020, RAFT (arXiv 2003.12039), section 3.2, the look-up operator.
    """
    _check_arguments(maps, centres, radius, padding)
    points = centres if centres.ndim == 3 else centres[:, None]
    points = points.float() if points.dtype.itemsize < 4 else points
    if maps.ndim == 3:
        window = _window_from_patch(maps, points, radius, padding)
    elif maps.shape[1] == 1:
        # A reshape: the backward pass of an index would copy all maps once more.
        window = _window_from_patch(maps.flatten(0, 1), points, radius, padding)[:, :, None]
    else:
        window = _window_from_points(maps, points, radius, padding)
    return window if centres.ndim == 3 else window.squeeze(1)


# %% tags=["check"]
maps = torch.rand(50, 7, 9, dtype=torch.float64)
centres = torch.rand(50, 2, dtype=torch.float64) * 20 - 5
for radius in range(5):
    difference = sample_window(maps, centres, radius) - sample_window_points(maps, centres, radius)
    # float64 carries 16 digits; the coordinates and weights of the two ways cost a few of them.
    assert difference.abs().max() < 1e-9, f"radius {radius} differs from sampling each point"

# %% [markdown]
# Inside and outside, every radius, every number as before. With the border going on outside, too:

# %%
for radius in (1, 4):
    points = centres[:, None, None] + pixel_grid(2 * radius + 1, 2 * radius + 1) - radius
    expected = sample(maps[:, None], points, padding="border")[:, 0]
    border = sample_window(maps, centres, radius, padding="border")
    assert (border - expected).abs().max() < 1e-9, f"radius {radius} differs at the border"

# %% [markdown]
# Now the shapes: the axes that were given come back, and no others.

# %% tags=["nbval-check-output"]
for maps_shape in ((2, 7, 9), (2, 16, 7, 9)):
    for centres_shape in ((2, 2), (2, 5, 2)):
        result = sample_window(torch.zeros(maps_shape), torch.zeros(centres_shape), 3)
        print(maps_shape, centres_shape, "→", tuple(result.shape))

# %% [markdown]
# ### The cost, counted
#
# Equation 6, and the multiplications: sampling a point forms four weights and four products, 8 for each of $(2r+1)^2$ points; the two mixes use one multiplication for each number of $Q$ and of $V$.

# %% tags=["nbval-check-output"]
print(" r   reads: points   patch     multiplications: points   patch")
for r in range(1, 5):
    S, E = 2 * r + 1, 2 * r + 2
    print(f"{r:2d} {4 * S**2:15d} {E**2:7d} {8 * S**2:25d} {S * E + S**2:7d}")

# %% [markdown]
# RAFT uses $r = 4$: 100 reads in place of 324. The advantage grows with the radius towards a factor of 4, as the one extra row and column weigh less.
#
# ### The cost, measured
#
# Fewer reads are a promise; the clock decides. Both ways read the real volume of this lesson at the true matches. The best of several turns is taken, since another program can only slow a turn down, and the two ways take turns, so that both meet the same conditions.


# %%
def best_seconds(calls, turns=15):
    """The fastest turn of each call, the calls taking turns."""
    best = dict.fromkeys(calls, math.inf)
    for _ in range(turns):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


# %%
matches = grid.flatten(0, 1) - torch.stack([disparity.flatten(), torch.zeros(H * W)], dim=1)
seconds = {
    r: best_seconds(
        {
            "points": lambda r=r: sample_window_points(volume, matches, r),
            "patch": lambda r=r: sample_window(volume, matches, r),
        }
    )
    for r in range(1, 5)
}


# %%
def draw_seconds():
    figure, (times, ratios) = canvas(1, 2, 6.5, 2.4)
    radii = list(seconds)
    for name, key, marker in (("points", "first", "o"), ("patch", "second", "s")):
        values = [1000 * seconds[r][name] for r in radii]
        times.plot(radii, values, color=COLOURS[key], marker=marker, label=name)
    times.set(xlabel="radius r (px)", ylabel="time (ms)", xticks=radii, ylim=(0, None))
    times.legend(frameon=False, fontsize=8)
    counted = [4 * (2 * r + 1) ** 2 / (2 * r + 2) ** 2 for r in radii]
    measured = [seconds[r]["points"] / seconds[r]["patch"] for r in radii]
    ratios.plot(radii, counted, color=COLOURS["muted"], linestyle="--", label="reads, counted")
    ratios.plot(radii, measured, color=COLOURS["second"], marker="s", label="time, measured")
    ratios.set(xlabel="radius r (px)", ylabel="points / patch", xticks=radii, ylim=(0, 4))
    ratios.legend(frameon=False, fontsize=8)
    return figure


show(
    draw_seconds(),
    alt="Time against radius for sampling each point and for reading a patch, and the ratio of the two beside the ratio of reads",
)
print(f"radius 4: the patch is {seconds[4]['points'] / seconds[4]['patch']:.1f} times as fast here")

# %% [markdown]
# The time of sampling grows as the number of points does, the time of the patch more slowly: its work is in runs and rows as much as in pixels. At radius 1 there is little to share; at larger radii the patch is ahead. The gain in time is smaller than the gain in reads. A likely reason: a pixel that is read four times in a row comes from main memory once, and from the processor's cache the other three times, at little cost.
#
# Training is another matter. The backward pass writes a gradient for every number of every map, read or not, which costs more than either way of reading:


# %%
def with_gradient(look_up):
    leaf = volume[:2000].clone().requires_grad_()
    return lambda: torch.autograd.grad(look_up(leaf, matches[:2000], 4).sum(), leaf)


both = best_seconds(
    {"points": with_gradient(sample_window_points), "patch": with_gradient(sample_window)}, turns=5
)
print(f"with the gradient to the maps: {both['points'] / both['patch']:.1f} times as fast here")

# %% [markdown]
# What about memory? Every way writes down where to read before it reads. Bytes for each centre at $r = 4$, from the tensors themselves:

# %% tags=["nbval-check-output"]
one_patch = read_patch(similarity[None], torch.tensor([[[33, 17]]]), 10)
coordinates = torch.zeros(9, 9, 2)
index = torch.zeros(10, 10, dtype=torch.int64)
print("points:", 2 * coordinates.nbytes, "bytes of coordinates, in pixels and rescaled")
print("patch: ", index.nbytes, "bytes of index and", one_patch.nbytes, "of pixels")
print("runs:  ", index[0].nbytes, "bytes of starts and", one_patch.nbytes, "of pixels")

# %% [markdown]
# ### Gradients
#
# A network that looks up must learn through the look-up: the error it makes has to reach the features that the map was made of. It can also reach the guess that placed the window; RAFT and CoTracker cut that second way on purpose (lesson 1 says so), other uses need it. Every step from map to window is a copy or a weighted sum, so PyTorch differentiates all of it; the fraction carries the slope with respect to the centre, the whole part of the centre has none. The slope of the window's sum with respect to each map value shows how much each pixel counts:

# %%
leaf = similarity.clone().requires_grad_()
sample_window(leaf[None], guess[None], 2).sum().backward()
y, x = leaf.grad.nonzero().unbind(1)
footprint = leaf.grad[y.min() : y.max() + 1, x.min() : x.max() + 1]


# %%
def draw_footprint():
    figure, axes = canvas(1, 1, 3.2, 2.9)
    draw_pixels(axes, footprint, number="{:.2f}", limits=(-1, 1.1), fontsize=8)
    axes.set(xlabel="p (px of the patch)", ylabel="q (px of the patch)")
    return figure


show(
    draw_footprint(),
    alt="Six by six squares: 1 inside, the fractions and their complements at the edges",
)

# %% [markdown]
# Inside the patch the weights of the four points that share a pixel add up to 1; at the edges only one of two mixes reaches it, and the fractions show.
#
# The gradients with respect to maps and centres are those of sampling each point:

# %%
maps = torch.rand(6, 7, 9, dtype=torch.float64, requires_grad=True)
centres = (torch.rand(6, 2, dtype=torch.float64) * 8).requires_grad_()
pull = torch.rand(6, 5, 5, dtype=torch.float64)
ours = torch.autograd.grad(sample_window(maps, centres, 2), (maps, centres), pull)
theirs = torch.autograd.grad(sample_window_points(maps, centres, 2), (maps, centres), pull)
for mine, reference in zip(ours, theirs, strict=True):
    # float64: sums of 25 terms of order 1, far below 1e-9 from rounding.
    assert (mine - reference).abs().max() < 1e-9

# %% [markdown]
# ### The pyramid
#
# A window of radius 4 sees four pixels in each direction, and a pixel that moved further is out of sight. A larger radius would find it at a price that grows with $r^2$. A smaller map finds it at no extra price: averaging 2 × 2 squares gives the next level, on which the same motion is half as long, and equation 7 says where to read it. What is lost is detail, so the fine levels are read too.


# %% tags=["promote", "exercise"]
def sample_pyramid(
    levels: Sequence[Tensor],
    centres: Float[Tensor, "B *K 2"],
    radius: int,
    *,
    padding: str = "zeros",
) -> list[Tensor]:
    """Read a window at every level of a pyramid of maps (equation 7 of the lesson).

    levels   level k is (B, H / 2ᵏ, W / 2ᵏ), or (B, C, H / 2ᵏ, W / 2ᵏ) with channels
    centres  (B, 2) or (B, K, 2), in pixels of level 0
    radius   in pixels of each level, so that a window covers twice as much at each next level
    padding  what lies outside a level: "zeros" or "border" (the nearest pixel)
    returns  one result of `sample_window` per level

    Raises what `sample_window` raises.

    Convention: centres in (x, y) order, x to the right, y down; divided by 2ᵏ at level k, as RAFT
    does, which takes the pixel centre (0, 0) of every level as the same point.
    Source: Teed and Deng 2020, RAFT (arXiv 2003.12039), section 3.2.
    """
    _check_floating("centres", centres)
    return [
        sample_window(level, centres / 2**k, radius, padding=padding)
        for k, level in enumerate(levels)
    ]


# %% tags=["check"]
ramps = [torch.arange(8.0).expand(1, 8, 8), torch.arange(4.0).expand(1, 4, 4)]
windows = sample_pyramid(ramps, torch.tensor([[3.0, 4.0]]), 1)
assert len(windows) == 2, "one window for each level"
assert windows[0][0, 1].tolist() == [2, 3, 4], "level 0 is read at the centres as they are"
assert windows[1][0, 1].tolist() == [0.5, 1.5, 2.5], "level 1 is read at half the coordinates"
edge = sample_pyramid(ramps, torch.tensor([[9.0, 4.0]]), 1, padding="border")
assert edge[0][0, 1].tolist() == [7, 7, 7], "the padding holds at every level"

# %% [markdown]
# ## On real input
#
# ### Four levels over the photograph

# %%
levels = [volume]
for _ in range(3):
    levels.append(F.avg_pool2d(levels[-1], 2))
print(*(tuple(level.shape) for level in levels), sep="\n")


# %% tags=["figure"]
def draw_nested(radius=4):
    figure, axes = canvas(1, 1, 6.0, 4.2)
    axes.imshow(to_picture(pair.right))
    x, y = photo_position(guess)
    for k, colour in enumerate(("n11", "second", "query", "n10")):
        reach = 4 * radius * 2**k
        outline(axes, (x, y), reach, colour)
        label = {"facecolor": COLOURS[colour], "edgecolor": "none", "pad": 1}
        axes.text(
            x, y + reach, f"level k = {k}", color="white", ha="center", va="center", bbox=label
        )
    axes.set(
        xlabel="x (px)",
        ylabel="y (px)",
        xlim=(-0.5, pair.right.shape[3] - 0.5),
        ylim=(pair.right.shape[2] - 0.5, -0.5),
    )
    return figure


show(
    draw_nested(),
    alt="Four nested squares around one point of the right photograph, each twice as wide as the last",
    photo=True,
)

# %% [markdown]
# Each square is read as 81 numbers: the inner one tells small motions apart, the outer one finds large ones. Where a square leaves the photograph, its numbers are 0.
#
# ### The peak lies where the pixel went
#
# Look up every map at its true match, and average the windows over all places whose disparity is known. If the volume, the window and the axes are right, the peak stands in the middle. Then look up without any guess, at the place itself.

# %%
known = (F.avg_pool2d(pair.valid.float(), 4) == 1).flatten()
still = grid.flatten(0, 1)
at_match = sample_window(volume, matches, 4)[known].mean(dim=0)
at_rest = sample_pyramid(levels, still, 4)
averages = [at_match, at_rest[0][known].mean(dim=0), at_rest[1][known].mean(dim=0)]


# %%
def draw_averages():
    figure, axes = canvas(1, 3, 7.5, 2.6, sharey=True)
    titles = ("true match, level 0", "no motion, level 0", "no motion, level 1")
    for each, values, title in zip(axes, averages, titles, strict=True):
        each.imshow(values, extent=(-4.5, 4.5, 4.5, -4.5), vmin=0, vmax=0.7, cmap="gray")
        each.plot(0, 0, "+", color=COLOURS["query"])
        each.set(title=title, xlabel="offset x (map px)", xticks=range(-4, 5, 2))
    axes[0].set(ylabel="offset y (map px)", yticks=range(-4, 5, 2))
    axes[2].set(xlabel="offset x (px of level 1)")
    return figure


show(
    draw_averages(),
    alt="Three averaged windows: a bright spot in the middle at the true match, smears to the left without a guess",
)

# %% [markdown]
# Black is a similarity of 0 or less, white 0.7. At the true match the light spot stands on the cross; without a guess it smears to the left, since every pixel moved left by its own disparity, and at level 1 the whole smear fits into the window.

# %%
assert at_match.argmax().item() == 40  # entry 4·9 + 4, the middle of 9 × 9
share_inside = (disparity.flatten()[known] <= 4).float().mean()
print(f"{share_inside:.0%} of the motions fit into the window of level 0, all into level 1")
assert disparity.flatten()[known].max() <= 8

# %% [markdown]
# ### A matcher in one function
#
# The place of the peak is the part of the motion that the guess has missed. So move each centre to the highest point of its window: a flow field, with no training at all.


# %%
def follow_peak(centres, level, radius=4):
    """Move each centre to the highest point of its window."""
    window = sample_window(levels[level], centres / 2**level, radius)
    best = window.flatten(1).argmax(dim=1)
    offset = torch.stack([best % (2 * radius + 1), best // (2 * radius + 1)], dim=1) - radius
    return centres + offset * 2**level


# %%
found = {
    "no motion": still,
    "level 0, radius 4": follow_peak(still, level=0),
    "level 0, radius 8": follow_peak(still, level=0, radius=8),
    "level 1, radius 4": follow_peak(still, level=1),
}
for name, positions in found.items():
    error = (positions - matches).norm(dim=1)[known]
    right_share = (error < 1).float().mean()
    print(f"{name:>18}: median error {error.median():.2f} map px, {right_share:.0%} under 1")


# %%
def draw_flow():
    figure, axes = canvas(1, 3, 7.4, 2.3, width_ratios=[5, 5, 2])
    for each, target, title in zip(
        axes[:2],
        (matches, found["level 0, radius 8"]),
        ("true flow", "peaks, radius 8"),
        strict=True,
    ):
        flow = (target - still) * known[:, None]
        picture = flow_to_image(flow.T.view(1, 2, H, W), max_norm=8)
        each.imshow(to_picture(picture))
        each.set(title=title, xlabel="x (map px)")
    axes[0].set(ylabel="y (map px)")
    axes[2].imshow(to_picture(flow_wheel()))
    axes[2].set(title="the key, rim: 8 map px")
    axes[2].set_axis_off()
    return figure


show(
    draw_flow(),
    alt="The true flow of the motorcycle pair and the flow read off the peaks, which shows the "
    "motorcycle with speckles; beside them the wheel of colours",
    photo=True,
)

# %% [markdown]
# The colour of a pixel is the direction of its motion, the strength of the colour its length. White: no disparity known, or no motion. The motorcycle stands out from the background as in the true flow; the speckles are places where something else looked more alike. RAFT reads the same windows and hands them to a network, which learns when to trust a peak.
#
# Level 1 covers the same distance as radius 8 with less than a third of the numbers, and does badly here: the peaks of these features are about one pixel wide, and averaging four pixels buries them. A pyramid needs features that survive averaging. RAFT learns its features together with their pyramid; these were never asked.
#
# > **Where the code leaves the paper.** The RAFT paper takes offsets of at most $r$ in the L1 norm, a diamond; its released code reads the full square, and so do we. The released code also adds its first offset to x: its windows run down the first axis in x, ours in y. The channels of RAFT's weights follow that order, so chapter 4 (RAFT) swaps the two axes when it reads them.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `read_patch` | 15 | ●●○ |
# | `blend_patch` | 10 | ●●○ |
# | `sample_pyramid` | 5 | ●○○ |
#
# <details><summary>Hint for <code>read_patch</code></summary>
#
# Build the rows' numbers `y` and the columns' numbers `x`, each of shape (B, K, size); add them with two new axes to an index of shape (B, K, size, size); flatten it for `gather`. Make it work inside the map first, then add the outside. With `padding="border"`, clamp `x` and `y` first, and nothing is outside.
#
# </details>
#
# <details><summary>Hint for <code>blend_patch</code></summary>
#
# The version with slices passes the check: start from equations 4 and 5, and give the fractions two more axes so that they broadcast over the patch.
#
# </details>
#
# <details><summary>Hint for <code>sample_pyramid</code></summary>
#
# `enumerate(levels)` gives k and the map of that level; one `sample_window` each.
#
# </details>
#
# **Predict.** A centre lies on a whole pixel, $c = (3, 2)$. Which pixels of the patch does the window not depend on? What is the slope of the window with respect to $c_x$ there?
#
# <details><summary>Hint</summary>
#
# What is $d$, and what do equations 4 and 5 become? For the slope, differentiate equation 5 before you put in $d_x$.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The fraction is $(0, 0)$: the last row and the last column of the patch have weight 0, and the window is a copy of the rest. The slope of $V$ with respect to $c_x$ is $Q_{q,p+1} - Q_{q,p}$, the step to the next pixel on the right, so there the last column does count. On a whole pixel the function has a kink, and this is the slope on the right of it, as in lesson 1.
#
# </details>
#
# **Find the bug.** This version passes a test on a symmetric map. What is wrong, and which test would notice?


# %%
def blend_patch_wrong(patch, fraction):
    dx, dy = fraction[..., None, None, :].unbind(-1)
    rows = torch.lerp(patch[..., :-1, :], patch[..., 1:, :], dx)
    return torch.lerp(rows[..., :-1], rows[..., 1:], dy)


# %%
symmetric = torch.tensor([[1.0, 2.0, 3.0], [2.0, 5.0, 2.0], [3.0, 2.0, 1.0]])
assert torch.equal(symmetric, symmetric.T)
share = torch.tensor([0.25, 0.25])
assert torch.allclose(blend_patch_wrong(symmetric, share), blend_patch(symmetric, share), atol=1e-6)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which axis of the patch is y? Which part of the fraction belongs to it?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The fractions are swapped: rows follow each other in y, so their mix takes $d_y$. With $d_x = d_y$ nothing shows, on any map. A test needs two different fractions on a map whose steps in x and y differ, as 10, 20, 30, 40 do.
#
# </details>
#
# **Measure.** CoTracker reads feature maps with many channels. Does the patch pay there too? Take features of shape (4, 128, 48, 64), one centre in each and radius 3. Give the patch one map per channel, `features.flatten(0, 1)`, with each centre repeated 128 times, and time it against `sample_window(features, …)`, which samples each point.
#
# <details><summary>Hint</summary>
#
# `best_seconds` takes a dictionary of calls. `centres.repeat_interleave(128, dim=0)` puts the copies in the order of the flattened maps.
#
# </details>
#
# <details><summary>Answer</summary>
#
# No, it loses. `grid_sample` computes the four weights of a point once and uses them for all 128 channels, so there is little left to share; the patch copies, masks and mixes 64 pixels for each channel, where 49 values are wanted. The ratio depends on the machine: report it with the shapes and the number of threads.
#
# </details>

# %% [markdown]
# ## What breaks
#
# ### x and y change places
#
# Hand the centre over as (y, x), row first as in an array. Nothing complains: the shape is right.

# %%
swapped = sample_window(volume, matches.flip(1), 4)[known].mean(dim=0)
print(f"similarity in the middle: {at_match[4, 4]:.2f} at (x, y), {swapped[4, 4]:.2f} at (y, x)")
assert swapped[4, 4] < at_match[4, 4] / 2

# %% [markdown]
# ### A pyramid that drifts
#
# Level 1 averages pixels 0 and 1 into its pixel 0, whose middle is at 0.5, while $c / 2$ reads pixel 0 of level 1 for the centre 0. Read a ramp, a map whose value is its x, and the error shows as a number:

# %%
ramp = torch.arange(64.0).expand(1, 1, 64, 64)
ramps = [F.avg_pool2d(ramp, 2**k)[:, 0] for k in range(4)]
drift = [w[0, 0, 0].item() - 24 for w in sample_pyramid(ramps, torch.tensor([[24.0, 24.0]]), 0)]
print("error in pixels of level 0:", drift)
assert drift == [(2**k - 1) / 2 for k in range(4)]

# %% [markdown]
# The reading is $(2^k - 1)/2$ pixels off. The exact coordinate is $(c + \tfrac12)/2^k - \tfrac12$. RAFT divides, and its network has learned with the shift; code that uses its weights must divide too, so `sample_pyramid` does. For measuring, use the exact one:

# %%
exact = [
    sample_window(level, (torch.tensor([[24.0, 24.0]]) + 0.5) / 2**k - 0.5, 0).item()
    for k, level in enumerate(ramps)
]
assert exact == [24, 24, 24, 24]

# %% [markdown]
# ### Zero times NaN
#
# A common way to blank the outside is to clamp the index to the border and multiply by a mask of 0 and 1. One bad pixel at the border then spreads over the outside, since $0 \cdot \mathrm{NaN}$ is NaN.

# %%
spoiled = torch.ones(1, 3, 3)
spoiled[0, 1, 0] = math.nan
clamped = spoiled[0, 1].gather(0, torch.tensor([-2, -1, 0, 1]).clamp(min=0))
row = read_patch(spoiled, torch.tensor([[[-2, 1]]]), 4)[0, 0, 0]
print("product with a mask:", (clamped * torch.tensor([0, 0, 1, 1])).tolist())
print("read_patch:         ", row.tolist())

# %% [markdown]
# ### A centre that is lost
#
# Far outside, every number of the window is 0 and so is every slope: nothing tells the network in which direction to return.

# %%
lost = torch.tensor([[500.0, 20.0]], requires_grad=True)
window = sample_window(similarity[None], lost, 4)
window.sum().backward()
assert window.abs().sum() == 0 and lost.grad.abs().sum() == 0

# %% [markdown]
# ### What the code says to bad input

# %%
from fourfold.kit.notebook import shows_error

with shows_error(TypeError):
    sample_window(torch.zeros(2, 5, 5, dtype=torch.int64), torch.zeros(2, 2), 1)
with shows_error(ValueError):
    sample_window(torch.zeros(2, 5, 5), torch.zeros(2, 4, 3), 1)
with shows_error(ValueError):
    sample_window(torch.zeros(2, 5, 5), torch.zeros(3, 2), 1)
with shows_error(ValueError):
    sample_window(torch.zeros(2, 5, 5), torch.zeros(2, 2), -1)

# %% [markdown]
# ## Recap
#
# - Points one pixel apart share one fraction, so a window is a patch of whole pixels and two shifted sums.
# - The patch is read once: $(2r+2)^2$ reads against $4(2r+1)^2$, the same numbers and the same gradients.
# - A pyramid reaches $2^k$ times as far at level $k$ for the same price; centres are divided by $2^k$, in (x, y) order, and windows are indexed [y, x].
#
# This closes the chapter: [sampling](1_sampling.ipynb) reads one point, [warps](2_warps.ipynb) read a whole picture, windows read a neighbourhood. The line goes on in chapter 4, where RAFT looks up its correlation volume at every iteration, and in chapter 5, where CoTracker reads features around the points it follows.
