# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 55
#     needs:
#     - 6_bilinear_sampling/3_window
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Correlation: every pixel against every pixel
#
# **After this lesson you can** build RAFT's correlation volume and its pyramid, say which pair of pixels and which offset every channel of a look-up stands for, and do the same look-up without ever holding the volume.
#
# *Before this:* [Windows: one fraction for a whole neighbourhood](../6_bilinear_sampling/3_window.ipynb) (`3_window`). *Time:* 55 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# Optical flow asks of every pixel of image 1 where it went in image 2. RAFT prepares the answer to all such questions at once. Every pixel has a feature vector of $D$ numbers; the inner product of two vectors says how alike two pixels are. All products of all pixels of image 1 with all pixels of image 2 are a block of numbers with four axes, H × W × H × W: the **correlation volume** $C$ (相关体积). Its first two axes name a pixel of image 1, its last two a pixel of image 2. It is computed once, and whatever the motion, the right pair is in it. A **pyramid** of it, averaged over image 2 alone, shows the same products coarsely, so that a small window sees large motions too.
#
# At each of its iterations RAFT has a guess where each pixel went, and reads a small square **window** around that guess at every level: the **look-up** (查找). Its numbers are the input of the network that improves the guess. Products and averages are both linear, so the same numbers can also be made at the moment they are read: **on demand**, for images whose volume does not fit into memory.

# %% [markdown]
# ## Figure
#
# ### A volume that can be checked by hand
#
# Image 1 has 2 × 2 pixels, image 2 has 2 × 3, and every pixel has a vector of four numbers. Image 2 shows what image 1 shows, one pixel further right, with a new column on the left.

# %%
import math
import time
import timeit
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fourfold.bilinear_sampling.sampling import _check_floating
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.bilinear_sampling.window import sample_pyramid, sample_window
from fourfold.kit.arguments import whole_number
from fourfold.kit.checkpoints import load_tensors
from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, draw_pixels, show, to_picture
from fourfold.kit.images import credit, stereo_pair
from fourfold.kit.notebook import shows_error
from fourfold.raft.correlation import (
    CorrelationVolume,
    OnDemandCorrelation,
    as_channels,
    correlation,
    cost_volume,
    pyramid,
    rectangles,
)
from fourfold.raft.raft import RAFT

# %%
toy1 = torch.tensor([[[2, 0, 0, 2], [0, 2, 0, 0]], [[2, 2, 0, 0], [0, 0, 2, 2]]])
new = torch.tensor([[[0, 0, 2, 0]], [[2, 0, 2, 0]]])
toy2 = torch.cat([new, toy1], dim=1)
toy1, toy2 = (toy.permute(2, 0, 1)[None].float() for toy in (toy1, toy2))
tuple(toy1.shape), tuple(toy2.shape)


# %%
def draw_vectors(axes, features, title, key):
    """Write the vector of each pixel into its square."""
    _, H, W = features.shape
    draw_pixels(axes, torch.ones(H, W), number=None, limits=(0, 1))
    for n, vector in enumerate(features.flatten(1).T.int().tolist()):
        y, x = divmod(n, W)
        text = "\n".join(map(str, vector))
        axes.text(x, y, text, ha="center", va="center", fontsize=8, linespacing=0.95)
        outline(axes, x - 0.46, y - 0.46, 0.92, 0.92, key)
    axes.set(title=title, xlim=(-0.55, W - 0.45), ylim=(H - 0.45, -0.55))


def outline(axes, left, top, width, height, key):
    axes.add_patch(Rectangle((left, top), width, height, fill=False, ec=COLOURS[key], lw=1.7))


# %% tags=["figure"]
def draw_toy():
    figure, axes = canvas(1, 3, 7.2, 2.5, width_ratios=[2, 3, 6])
    draw_vectors(axes[0], toy1[0], f"features F1\nwidth D = {toy1.shape[1]}", "first")
    draw_vectors(axes[1], toy2[0], "features F2\nthe same, moved right", "second")
    volume = correlation(toy1, toy2)[0]
    draw_pixels(axes[2], volume.flatten(2).flatten(0, 1), limits=(-2.5, 4.5))
    axes[2].set_title(f"volume C {tuple(volume.shape)}\nas a matrix of all pairs")
    names1, names2 = ([f"{x}, {y}" for y in range(2) for x in range(W)] for W in (2, 3))
    axes[2].set(yticklabels=names1, xticklabels=names2)
    axes[2].set(xlabel="pixel x, y of image 2 (px)", ylabel="pixel x, y of image 1 (px)")
    return figure


show(
    draw_toy(),
    alt="Two by two and two by three squares with a vector of four numbers in each, and the matrix "
    "of four rows and six columns of their inner products over two",
)

# %% [markdown]
# Each row belongs to a pixel of image 1, each column to a pixel of image 2. Check one by hand: pixel (0, 0) of image 1 has the vector (2, 0, 0, 2), and so has pixel (1, 0) of image 2. Their inner product is $2 \cdot 2 + 2 \cdot 2 = 8$; divided by $\sqrt{D} = 2$ it is 4, the largest number of the first row.
#
# Now fold each row of the matrix back into the shape of image 2. That is the picture to remember: **one map of image 2 for each pixel of image 1**. Below each map stand the distances of the same vectors, which equation 2 will define.


# %% tags=["figure"]
def draw_maps():
    figure, axes = canvas(2, 4, 7.2, 2.9)
    both = {"volume C": correlation(toy1, toy2)[0], "cost V": cost_volume(toy1, toy2)[0]}
    for row, (name, values) in zip(axes, both.items(), strict=True):
        number = "{:g}" if name == "volume C" else "{:.1f}"
        for n, each in enumerate(row):
            y, x = divmod(n, 2)
            draw_pixels(each, values[y, x], number=number, limits=(-2.5, 4.5), fontsize=8)
            each.set(xlabel="", ylabel="", xticks=[], yticks=[])
            each.plot(x + 1, y + 0.36, "^", color=COLOURS["query"], markersize=5)
            if name == "volume C":
                each.set_title(f"pixel {x}, {y} of image 1")
        row[0].set_ylabel(name)
    return figure


show(
    draw_maps(),
    alt="Four small maps of image 2, one for each pixel of image 1, with inner products above and "
    "distances below; a triangle marks the true match",
)

# %% [markdown]
# The triangle marks where the pixel went. There the product is large and the distance 0. Look at pixel 1, 0: its product with the true match is as large as that with another pixel, because the other vector is longer. Products reward long vectors; distances do not.
#
# ### One pixel's maps, on a photograph
#
# The features come from the encoder of [lesson 3](3_encoders.ipynb), with the weights of RAFT-small that [lesson 7](7_learning.ipynb) trains. One of their pixels is a block of 8 × 8 pixels of the photograph. Choose one, at the motorcycle's front light; the dataset knows where it went.

# %%
pair = stereo_pair()
H, W = 496, 736  # multiples of 8
left, right = pair.left[..., :H, :W], pair.right[..., :H, :W]
model = RAFT.from_official(load_tensors(data_path("checkpoints", "raft_small.safetensors")))
with torch.no_grad():
    features1, features2 = (model.fnet(2 * (image / 255) - 1) for image in (left, right))
disparity = F.avg_pool2d(pair.disparity[..., :H, :W], 8)[0, 0] / 8
known = F.avg_pool2d(pair.valid[..., :H, :W].float(), 8)[0, 0] == 1
query = (66, 20)
match = (query[0] - disparity[query[1], query[0]].item(), query[1])
h, w = features1.shape[2:]
tuple(features1.shape)

# %%
with torch.no_grad():
    volume = correlation(features1, features2)
    levels = pyramid(volume[0].flatten(0, 1)[:, None], levels=4)
print("volume:", tuple(volume.shape), f"{volume.nbytes / 1e6:.0f} MB")
print(*(f"level {k}: {tuple(level.shape)}" for k, level in enumerate(levels)), sep="\n")


# %% tags=["figure"]
def draw_levels(radius=3):
    figure, axes = canvas(2, 3, 7.2, 3.7)
    grid = {"xlim": (-0.5, w - 0.5), "ylim": (h - 0.5, -0.5)}  # px of the features, on all axes
    for each, image, title in zip(axes[:, 0], (left, right), ("image 1", "image 2"), strict=True):
        each.imshow(to_picture(image), extent=(*grid["xlim"], *grid["ylim"]))
        each.set(title=title, ylabel="y (px of the features)")
    axes[0, 0].plot(*query, "o", color=COLOURS["query"], markeredgecolor="white", markersize=7)
    for k, each in enumerate(axes[:, 1:].flat):
        one_map, side = levels[k][query[1] * w + query[0], 0], 2**k
        rows, columns = one_map.shape
        each.imshow(
            one_map, cmap="gray", extent=(-0.5, side * columns - 0.5, side * rows - 0.5, -0.5)
        )
        for place in (each, axes[1, 0]):
            corner = [p - side * radius - 0.5 for p in match]
            outline(place, *corner, *2 * [side * (2 * radius + 1)], "second")
        each.set(title=f"level k = {k} of L = {len(levels)}: {rows} × {columns}", **grid)
    note = {"color": "white", "size": 8, "bbox": {"facecolor": "black", "alpha": 0.7, "pad": 1.5}}
    note["arrowprops"] = {"arrowstyle": "-", "color": "white"}
    axes[0, 1].annotate("position p", match, (18, 46), **note)
    axes[0, 1].annotate("radius r", (match[0] - radius - 0.5, match[1]), (10, 8), **note)
    for each in axes.flat:
        each.label_outer(remove_inner_ticks=True)
    for each in axes[1]:
        each.set_xlabel("x (px of the features)")
    return figure


show(
    draw_levels(),
    alt="The two photographs with the chosen pixel and four nested windows around its match, and the "
    "four levels of its map of correlations, each with its window, twice as large at each level",
    photo=True,
)
print(credit("motorcycle"))

# %% [markdown]
# All four maps belong to the red pixel of image 1. They are light where image 2 has similar features, each from its own smallest number (black) to its largest (white). A pixel of level $k$ covers $2^k \times 2^k$ pixels of level 0, so the orange window, 7 pixels a side at every level, grows to twice its size at each next one.
#
# The windows do not quite share a middle: each next one reaches further right and down than left and up. RAFT divides a position by $2^k$ and leaves it at that, although the mean of $2^k$ pixels stands for their middle, $(2^k - 1)/2$ pixels from the first. Its weights are learned with this shift.

# %% [markdown]
# ## Formula
#
# Let $F_1$ and $F_2$ be the features of the two images, with $D$ numbers for each pixel. The correlation volume holds the inner products of all pairs,
#
# $$ C_{y_1 x_1 y_2 x_2} = \frac{1}{\sqrt{D}} \sum_{d=1}^{D} F_1[d, y_1, x_1]\; F_2[d, y_2, x_2] \tag{1} $$
#
# The **cost volume** $V$ (成本体积) of stereo matching and of earlier networks has the same four axes and holds a distance between the same vectors:
#
# $$ V_{y_1 x_1 y_2 x_2} = \bigl\lVert F_1[:, y_1, x_1] - F_2[:, y_2, x_2] \bigr\rVert \tag{2} $$
#
# Same shape, opposite sense: a good match makes $C$ large and $V$ small. Multiply out the square of a distance, $\lVert a - b \rVert^2 = \lVert a \rVert^2 + \lVert b \rVert^2 - 2 \langle a, b \rangle$, and the two meet in one equation:
#
# $$ V^2 = \lVert F_1 \rVert^2 + \lVert F_2 \rVert^2 - 2 \sqrt{D}\; C \tag{3} $$
#
# For one pixel of image 1 the first term is the same everywhere. The second is not: if all vectors of $F_2$ had the same length, the largest product would always stand at the smallest distance.
#
# The pyramid has $L$ levels, and $C^k$ is its level $k$, beginning with $C^0 = C$. The next level averages squares of 2 × 2 pixels **of image 2**; the resolution of image 1 stays, for each of its pixels wants an answer:
#
# $$ C^{k+1}_{y_1 x_1 y_2 x_2} = \frac14 \sum_{i, j \in \{0, 1\}} C^k_{y_1,\, x_1,\, 2 y_2 + i,\, 2 x_2 + j} \tag{4} $$
#
# The look-up at radius $r$ reads level $k$ around the position $p = (p_x, p_y)$ in image 2 where the pixel is thought to be: its own place plus the current flow. Positions fall between pixels, so it reads by bilinear sampling, with 0 outside the map. Column $a$ and row $b$ of the window run from 0 to $2r$, and the middle is the position itself:
#
# $$ Y_{c} = C^k_{y_1 x_1}\!\left(\frac{p_x}{2^k} + a - r,\; \frac{p_y}{2^k} + b - r\right), \qquad 0 \le k < L \tag{5} $$
#
# The looked-up result $Y$ has one channel for each place of each level's window. Which number $c$ a channel has is a convention, and RAFT's published weights were learned with this one, in which the **column is slow and the row is fast**:
#
# $$ c = k\,(2r+1)^2 + a\,(2r+1) + b \tag{6} $$
#
# Averaging and inner product are both linear, so they change places. With $F_2^k$ for features of image 2 averaged $k$ times,
#
# $$ C^k_{y_1 x_1 y_2 x_2} = \frac{1}{\sqrt{D}} \sum_{d} F_1[d, y_1, x_1]\; F_2^k[d, y_2, x_2] \tag{7} $$
#
# No volume is needed to evaluate this at the few places that a look-up reads. Take a tile $T$ of neighbouring pixels of image 1. All their windows lie in the rectangle $R$ of image 2, in $x$ (and likewise in $y$):
#
# $$ R_x = \Bigl\{ \min_{T} \lfloor p_x / 2^k \rfloor - r,\; \dots,\; \max_{T} \lfloor p_x / 2^k \rfloor + r + 1 \Bigr\} \tag{8} $$
#
# cut to the map; the last pixel is there because bilinear sampling reads the next one, too.
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $F_1$ | features of image 1 | (B, D, H1, W1) | `features1` | features F1 |
# | $F_2$ | features of image 2 | (B, D, H2, W2) | `features2` | features F2 |
# | $D$ | width of a feature vector | whole number | `D` | width D = 4 |
# | $C$ | correlation volume, all pairs | (B, H1, W1, H2, W2) | `correlation` | volume C |
# | $V$ | cost volume, a distance for all pairs | (B, H1, W1, H2, W2) | `cost_volume` | cost V |
# | $C^k$ | level of the pyramid | (B·H1·W1, H2 / 2ᵏ, W2 / 2ᵏ) | `pyramid` | level k |
# | $k$ | number of a level, 0 the finest | whole number | `k` | level k = 0 |
# | $L$ | number of levels | whole number | `levels` | L = 4 |
# | $p$ | position in image 2 to look at, (x, y) | (B, 2, H1, W1), px of the features | `positions` | position p |
# | $r$ | radius of the window | whole number, px of each level | `radius` | radius r |
# | $a$ | column of the window, offset a − r in x | whole number, 0 … 2r | `columns` | column a |
# | $b$ | row of the window, offset b − r in y | whole number, 0 … 2r | `windows` | row b |
# | $Y$ | looked-up channels | (B, L·(2r+1)², H1, W1) | `as_channels` | channels Y |
# | $c$ | number of a channel | whole number | `as_channels` | number c |
# | $F_2^k$ | features of image 2 averaged k times | (B, D, H2 / 2ᵏ, W2 / 2ᵏ) | `pyramid` | features of level 0 |
# | $T$ | tile of pixels of image 1 | at most 8·2ᵏ a side | `tile` | tile T |
# | $R$ | rectangle that the windows of a tile need | px of level k | `rectangles` | rectangle R |
#
# Letters of shapes: $B$ pairs of images, $H_1$ and $W_1$ the size of image 1's features, $H_2$ and $W_2$ of image 2's, $S = 2r + 1$ the side of a window.
#
# > **Where the paper needs a second look.** A sentence of its section 3 lets the flow map each pixel of $I_2$ to its place in $I_2$. Read $I_1$ for the first: an author confirms the slip ([princeton-vl/RAFT#189](https://github.com/princeton-vl/RAFT/issues/189)). The flow stands on the pixels of image 1 and points into image 2, which is also why the first two axes of the volume keep their size.

# %% [markdown]
# ## Code
#
# ### Four loops
#
# Equation 1 word by word, for one pair of images: every pixel of image 1, every pixel of image 2.


# %%
def correlation_loop(features1, features2):
    D, H1, W1 = features1.shape
    _, H2, W2 = features2.shape
    volume = torch.zeros(H1, W1, H2, W2)
    for y1 in range(H1):
        for x1 in range(W1):
            for y2 in range(H2):
                for x2 in range(W2):
                    product = features1[:, y1, x1] @ features2[:, y2, x2]
                    volume[y1, x1, y2, x2] = product / D**0.5
    return volume


# %%
by_hand = correlation_loop(toy1[0], toy2[0])
assert by_hand[0, 0].tolist() == [[0, 4, 0], [2, 2, 2]]
by_hand.shape

# %% [markdown]
# ### One matrix product
#
# Flatten each image into a line of pixels. The vectors of image 1 are now the rows of one matrix, those of image 2 the columns of another, and all pairs are one matrix product, which a processor computes at its full speed. Then give the pixels their two axes back.
#
# First, what every function of this lesson asks of its arguments. Vectors in half precision become float32: a sum of many products needs the digits, and the release does the same.


# %% tags=["promote"]
def _check_features(features1: Tensor, features2: Tensor) -> None:
    for name, features in (("features1", features1), ("features2", features2)):
        _check_floating(name, features)
        if features.ndim != 4 or 0 in features.shape:
            raise ValueError(
                f"{name} has shape {tuple(features.shape)}; expected (B, D, H, W), none of them 0"
            )
    if features1.shape[:2] != features2.shape[:2]:
        raise ValueError(
            f"features2 has B, D = {tuple(features2.shape[:2])}; "
            f"expected {tuple(features1.shape[:2])}, those of features1"
        )
    for name in ("dtype", "device"):
        first, second = getattr(features1, name), getattr(features2, name)
        if first != second:
            raise ValueError(f"features2 has {name} {second}; expected {first}, that of features1")


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize < 4 else values


def _all_products(first: Float[Tensor, "*B N D"], second: Float[Tensor, "*B M D"]) -> Tensor:
    """The inner product of each of N vectors with each of M."""
    # Under autocast a matrix product would go back to half precision.
    with torch.autocast(first.device.type, enabled=False):
        return first @ second.mT


# %% tags=["promote", "exercise"]
def correlation(
    features1: Float[Tensor, "B D H1 W1"], features2: Float[Tensor, "B D H2 W2"]
) -> Float[Tensor, "B H1 W1 H2 W2"]:
    """Multiply the features of all pairs of pixels (equation 1 of the lesson).

    features1, features2  (B, D, H, W), one vector of width D for each pixel; the two images may
                          differ in size
    returns               (B, H1, W1, H2, W2) inner products over √D, in float32 where the features
                          are in half precision

    Raises TypeError for features of whole numbers, ValueError for features that differ in B, D,
    dtype or device.

    Convention: entry [b, y1, x1, y2, x2] is for pixel (x1, y1) of image 1 and (x2, y2) of image 2.
    Source: Teed and Deng 2020, RAFT (arXiv 2003.12039), equation 1; the √D is the release's.
    """
    _check_features(features1, features2)
    D = features1.shape[1]
    first, second = (_at_least_float32(f).flatten(2).mT for f in (features1, features2))
    # A division of the vectors costs less than one of the products, which are many more.
    products = _all_products(first / math.sqrt(D), second)
    return products.unflatten(1, features1.shape[2:]).unflatten(3, features2.shape[2:])


# %% tags=["check"]
torch.manual_seed(0)
some1, some2 = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 2, 6)
all_pairs = correlation(some1, some2)
assert all_pairs.shape == (2, 3, 4, 2, 6), "the axes are (B, H1, W1, H2, W2)"
for b in range(2):
    expected = correlation_loop(some1[b], some2[b])
    # Sums of five products of order 1: rounding of float32 stays below 1e-5.
    assert torch.allclose(all_pairs[b], expected, atol=1e-5), f"pair {b} differs from equation 1"
assert correlation(some1.half(), some2.half()).dtype == torch.float32, "half precision stays half"
with shows_error(ValueError):  # `_check_features` says what does not fit
    correlation(some1, some2[:1])

# %% [markdown]
# ### Why √D
#
# Let the entries of two vectors be independent, with mean 0 and variance 1. Each of the $D$ products in equation 1 then has variance 1, and their sum variance $D$: the products spread more, the wider the features are. Divided by $\sqrt{D}$ they spread alike at every width, so the layers that read them meet numbers of the same order. Transformers divide for the same reason.

# %%
for D in (16, 64, 256, 1024):
    vectors1, vectors2 = torch.randn(2, 1, D, 20, 20)
    scaled = correlation(vectors1, vectors2)
    print(
        f"D = {D:4d}: spread {scaled.std() * D**0.5:5.1f} of the products, {scaled.std():.2f} of C"
    )

# %% [markdown]
# The paper's equation 1 has no $\sqrt{D}$, the released code has; weights learned with it need it.
#
# ### The cost volume beside it
#
# Equation 2 is one call: `torch.cdist` gives the distances of all pairs of two lists of vectors.


# %% tags=["promote"]
def cost_volume(
    features1: Float[Tensor, "B D H1 W1"], features2: Float[Tensor, "B D H2 W2"]
) -> Float[Tensor, "B H1 W1 H2 W2"]:
    """Measure the distance of the features of all pairs of pixels (equation 2 of the lesson).

    Arguments and axes as in `correlation`, errors too. RAFT does not use it; it is what RAFT's
    volume replaces. Of many vectors, PyTorch computes the distances by equation 3: in float32 that
    of two equal vectors may come out as a thousandth of their length in place of 0.
    """
    _check_features(features1, features2)
    first, second = (_at_least_float32(f).flatten(2).mT for f in (features1, features2))
    distances = torch.cdist(first, second)
    return distances.unflatten(1, features1.shape[2:]).unflatten(3, features2.shape[2:])


# %% tags=["nbval-check-output"]
costs = cost_volume(toy1, toy2)
print("C of pixel 1, 0:", correlation(toy1, toy2)[0, 0, 1].tolist())
print("V of pixel 1, 0:", [[f"{cost:.2f}" for cost in row] for row in costs[0, 0, 1]])
assert costs[0, 0, 1, 0, 2] == 0, "its match has distance 0"

# %% [markdown]
# The tie of the toy again: two products are equal, and only one of the two pixels has distance 0. Equation 3 turns products into distances:


# %%
def squared_costs(features1, features2):
    """Equation 3: distances from products and lengths."""
    length1 = features1.square().sum(dim=1)[:, :, :, None, None]
    length2 = features2.square().sum(dim=1)[:, None, None]
    return length1 + length2 - 2 * features1.shape[1] ** 0.5 * correlation(features1, features2)


# Numbers up to 50, whose squares cancel: float32 leaves errors of 1e-5 and less.
assert torch.allclose(squared_costs(some1, some2), cost_volume(some1, some2) ** 2, atol=1e-4)

# %% [markdown]
# ### The pyramid
#
# Equation 4, naively: each number of the next level is the mean of four. The loops run over image 2 alone.


# %%
def next_level_loop(maps):
    N, H, W = maps.shape
    level = torch.zeros(N, H // 2, W // 2)
    for y in range(H // 2):
        for x in range(W // 2):
            level[:, y, x] = maps[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean(dim=(1, 2))
    return level


# %% [markdown]
# An odd last row or column has no partner and is dropped: the size is halved and rounded down (取整). PyTorch's `avg_pool2d` averages the last two axes, so the volume goes in with its first axes flattened into one.


# %% tags=["promote"]
def _check_levels(maps: Tensor, levels: int) -> None:
    _check_floating("maps", maps)
    if maps.ndim != 4:
        raise ValueError(f"maps has shape {tuple(maps.shape)}; expected (N, C, H, W)")
    H, W = maps.shape[2:]
    most = min(H, W).bit_length()  # the last halving leaves one pixel
    if whole_number("levels", levels, least=1) > most:
        raise ValueError(
            f"levels is {levels}; expected at most {most} for {H} × {W}, which each level halves"
        )


# %% tags=["promote", "exercise"]
def pyramid(maps: Float[Tensor, "N C H W"], levels: int) -> list[Tensor]:
    """Average maps over 2 × 2 squares, again and again (equation 4 of the lesson).

    maps     (N, C, H, W): for RAFT one map of image 2 for each pixel of image 1, with C = 1, or the
             features of image 2, with C = D
    levels   L, level 0 included
    returns  L maps; level k is (N, C, H // 2ᵏ, W // 2ᵏ), a last odd row or column is dropped

    Raises ValueError for maps of another number of axes, no level, or more than the size allows.
    Source: RAFT, section 3.2, correlation pyramid.
    """
    _check_levels(maps, levels)
    result = [maps]
    while len(result) < levels:
        result.append(F.avg_pool2d(result[-1], 2))
    return result


# %% tags=["check"]
odd = torch.randn(3, 1, 17, 23)
halves = pyramid(odd, 4)
sizes = [tuple(level.shape[2:]) for level in halves]
assert len(sizes) == 4, "there are L levels, the maps themselves included"
assert sizes == [(17, 23), (8, 11), (4, 5), (2, 2)], "sizes are halved and rounded down"
assert halves[0] is odd or torch.equal(halves[0], odd), "level 0 is the maps themselves"
for fine, coarse in pairwise(halves):
    # Means of four numbers of order 1, to a few roundings of float32.
    assert torch.allclose(coarse[:, 0], next_level_loop(fine[:, 0]), atol=1e-6), "not the mean"
with shows_error(ValueError):  # `_check_levels` says how many there can be
    pyramid(odd, 6)

# %% [markdown]
# On the volume of the motorcycle the axes of image 1 stay whole:

# %% tags=["nbval-check-output"]
one_row = volume[:, :1]
for k, level in enumerate(pyramid(one_row.flatten(0, 2)[:, None], 4)):
    print(f"level {k}:", tuple(level.unflatten(0, one_row.shape[:3])[:, :, :, 0].shape))

# %% [markdown]
# The coarsest level must keep two pixels a side for the released code, which divides by its width minus one; [lesson 6](6_raft.ipynb) meets that limit. This function stops at one.
#
# ### What one look-up spans
#
# A window has $2r+1$ pixels a side at each level, and a pixel of level $k$ covers $8 \cdot 2^k$ pixels of the photograph:

# %% tags=["nbval-check-output"]
for name, r in (("RAFT", 4), ("RAFT-small", 3)):
    reach = [8 * 2**k * r for k in range(4)]
    print(
        f"{name:>10}: r = {r}, {4 * (2 * r + 1) ** 2} channels, reaches ± {reach} px of the photo"
    )

# %% [markdown]
# The finest level tells motions of a few pixels apart; the coarsest still sees a pixel that moved as far as the last number says. All of it costs a few hundred numbers for each pixel, wherever the pixel went.
#
# ### From windows to channels
#
# The naive look-up follows equations 5 and 6 for one pixel: at every level, column after column, it reads the points of a column from top to bottom.


# %%
def look_up_loop(levels, position, radius):
    """The channels of one pixel, from its maps of all levels, each (H2, W2)."""
    channels = []
    for k, one_map in enumerate(levels):
        for a in range(2 * radius + 1):
            for b in range(2 * radius + 1):
                point = position / 2**k + torch.tensor([a - radius, b - radius])
                channels.append(sample_window(one_map[None], point[None], 0).item())
    return torch.tensor(channels)


# %% [markdown]
# `sample_pyramid` of chapter 6 reads all windows of all levels at once, a window as an array [row, column]. What is left is to lay each window out as a line of channels, columns first.


# %% tags=["promote", "exercise"]
def as_channels(windows: list[Float[Tensor, "B H W _ _"]]) -> Float[Tensor, "B C H W"]:
    """Lay the windows of every level out as channels (equation 6 of the lesson).

    windows  one (B, H, W, S, S) for each level, indexed [row, column]
    returns  (B, L·S², H, W): channel k·S² + a·S + b is column a and row b of level k

    Convention: columns are slow and rows are fast, the order that RAFT's weights were learned with.
    """
    columns = [window.transpose(3, 4).flatten(3) for window in windows]
    return torch.cat(columns, dim=3).permute(0, 3, 1, 2).contiguous()


# %% tags=["check"]
numbered = torch.arange(2 * 3 * 4 * 25.0).view(2, 3, 4, 5, 5)
channels = as_channels([numbered, -numbered])
assert channels.shape == (2, 50, 3, 4), "the shape is (B, L·S², H, W)"
assert torch.equal(channels[:, 25:], -channels[:, :25]), "level 1 follows after all of level 0"
for a, b in ((0, 0), (0, 4), (4, 0), (1, 3)):
    at = channels[:, a * 5 + b]
    assert torch.equal(at, numbered[..., b, a]), f"channel {a * 5 + b} is column {a}, row {b}"

# %% [markdown]
# > **The well-known transposition.** A picture in memory runs along its rows, so most people number a window row by row: x fast, y slow. RAFT's release builds its offsets with `meshgrid(dy, dx)` and adds them to positions in the order (x, y), so the offset that runs slowly lands on x. Readers take it for a mistake, and one that does not matter ([princeton-vl/RAFT#192](https://github.com/princeton-vl/RAFT/issues/192)). That is half true. A network that is **trained** with either order learns that order. Published **weights** know one order, and given the other they see every window mirrored along its diagonal: a pixel that went right looks like one that went down. All shapes agree, no error is raised, and the flow is wrong. The released CUDA code and torchvision keep the order of the weights, and so do we.
#
# To see the number of each place, give the function a window of places and find the channel that each lands in. The release's offsets, x first, visit them in the same order.

# %%
S = 5
places = torch.arange(S * S).float()  # row by row
raft_order = as_channels([places.view(1, 1, 1, S, S)]).flatten().argsort().view(S, S)
row_order = places.view(S, S)
offsets = torch.stack(torch.meshgrid(*2 * [torch.arange(S) - S // 2], indexing="ij"), dim=-1)
dx, dy = offsets.flatten(0, 1).unbind(dim=1)
assert raft_order[dy + S // 2, dx + S // 2].tolist() == list(range(S * S))


# %% tags=["figure"]
def draw_orders():
    figure, axes = canvas(1, 3, 6.9, 2.7)
    radius = S // 2
    diamond = pixel_grid(S, S).sub(radius).abs().sum(dim=-1) <= radius
    paper = f"the paper's words: a diamond\n{diamond.sum()} of {S * S} places"
    panels = (
        ("channels Y: number c of each\nRAFT: columns slow, rows fast", raft_order, "{:.0f}"),
        ("row by row\nwrong for RAFT's weights", row_order, "{:.0f}"),
        (paper, diamond.float() * 24, None),
    )
    for each, (title, values, number) in zip(axes, panels, strict=True):
        draw_pixels(each, values, number=number, limits=(-16, 30), fontsize=8)
        ticks = range(-radius, radius + 1)
        each.set(title=title, xticklabels=ticks, yticklabels=ticks, ylabel="")
        each.set_xlabel("column a, as offset a − r (px)")
    axes[0].set_ylabel("row b, as offset b − r (px)")
    for n in range(S):
        down, right = (
            ((n + 0.36, -0.35), (n + 0.36, S - 0.65)),
            ((-0.35, n + 0.34), (S - 0.65, n + 0.34)),
        )
        for each, (start, end), key in ((axes[0], down, "good"), (axes[1], right, "bad")):
            style = {"arrowstyle": "->", "color": COLOURS[key], "lw": 1.3}
            each.annotate("", end, start, arrowprops=style)
    return figure


show(
    draw_orders(),
    alt="A window of five by five places with its channel numbers running down the columns, the same "
    "numbered along the rows, and the places of the window that lie in a diamond",
)

# %% [markdown]
# Follow the arrows: RAFT's channels run down the columns, the natural order runs along the rows. The two agree on the diagonal alone.
#
# How wrong is the flow, then? The channels enter one layer, the first convolution of the motion encoder ([lesson 5](5_update.ipynb)). To read windows row by row is to shuffle the inputs of that layer. So shuffle its trained weights, and estimate the flow of the motorcycle at a quarter of its size:

# %%
small_pair = stereo_pair(shrink=4)
true_flow = torch.cat([-small_pair.disparity, torch.zeros_like(small_pair.disparity)], dim=1)


def mean_error(flow):
    """The mean length of the error, over the pixels whose disparity is known (px)."""
    return (flow - true_flow).norm(dim=1, keepdim=True)[small_pair.valid].mean().item()


# %%
trained = model.update_block.encoder.convc1.weight
side = 2 * model.radius + 1
row_by_row = torch.arange(trained.shape[1]).view(-1, side, side).transpose(1, 2).flatten()
right_flow = model.estimate(small_pair.left, small_pair.right, 12).full
with torch.no_grad():
    kept = trained.clone()
    trained.copy_(kept[:, row_by_row])
    wrong_flow = model.estimate(small_pair.left, small_pair.right, 12).full
    trained.copy_(kept)
errors = {"no flow at all": 0 * true_flow, "RAFT's order": right_flow, "row by row": wrong_flow}
errors = {name: mean_error(flow) for name, flow in errors.items()}
for name, error in errors.items():
    print(f"{name:>14}: mean error {error:5.1f} px")
assert errors["row by row"] > 2 * errors["RAFT's order"]

# %% [markdown]
# > **Where the code leaves the paper.** The paper takes the offsets of a window from an L1 ball, $\lVert \Delta \rVert_1 \le r$, a diamond; so do the notes from which this course grew. The released code reads the full square, $\lVert \Delta \rVert_\infty \le r$. An author calls the paper's norm a typing error and the code right ([princeton-vl/RAFT#122](https://github.com/princeton-vl/RAFT/issues/122)). The published weights agree: they take $L\,(2r+1)^2$ channels, a count of squares.

# %% [markdown]
# ### Averaging changes places with the product
#
# Equation 7 says that a coarse correlation is the product with coarse features. In a line: the mean of four products with the same vector is the product with the mean, $\tfrac14 \sum_i \langle f, g_i \rangle = \langle f, \tfrac14 \sum_i g_i \rangle$, and averaging again changes nothing of that. Check it on the real volume:

# %%
with torch.no_grad():
    pooled = pyramid(features2, 4)
    for k in range(4):
        late = levels[k][:500, 0]
        early = correlation(features1, pooled[k])[0].flatten(0, 1)[:500]
        difference = (late - early).abs().max() / late.abs().max()
        print(
            f"level {k}: {tuple(early.shape)}, largest difference {difference:.0e} of the largest"
        )
        assert difference < 1e-5  # float32, sums of 128 products in another order

# %% [markdown]
# ### All pairs, held
#
# Now the class that RAFT uses: it averages the features and multiplies once for each level, and each call reads windows. The release multiplies once and averages the volume, which is the same by equation 7; but to average, it reads the largest thing there is. On the features of a photograph of 440 × 1024 pixels:

# %%
some1, some2 = torch.randn(1, 128, 55, 128), torch.randn(1, 128, 55, 128)
ways = {
    "average the volume": lambda: pyramid(correlation(some1, some2)[0].flatten(0, 1)[:, None], 4),
    "average the features": lambda: [correlation(some1, level) for level in pyramid(some2, 4)],
}
for name, way in ways.items():
    print(f"{name:>20}: {1000 * min(timeit.repeat(way, number=1, repeat=3)):4.0f} ms here")

# %% [markdown]
# Earlier networks warp image 2's features by the current flow at each step and compare each pixel with its near neighbours, in a small cost volume that each step builds anew. Where the flow is wrong, the warp brings the wrong features near. RAFT warps nothing, and that is new: the volume stays as it is, and only the place where it is read moves.


# %% tags=["promote"]
def _check_positions(positions: Tensor, shape: tuple[int, ...]) -> None:
    _check_floating("positions", positions)
    if tuple(positions.shape) != shape:
        raise ValueError(
            f"positions has shape {tuple(positions.shape)}; expected {shape}, "
            "(x, y) for each pixel of image 1"
        )


# %% tags=["promote"]
class CorrelationVolume:
    """All pairs, computed once and averaged; a call looks up windows (equations 1 and 4 to 7).

    features1, features2  (B, D, H, W) of the two images
    levels                L, of the pyramid
    radius                r, of the window

    It holds B · H1·W1 · H2·W2 · 4/3 numbers. Raises what `correlation` and `pyramid` raise, and
    ValueError for a radius that is no whole number of 0 or more. Source: RAFT, section 3.2.
    """

    def __init__(
        self,
        features1: Float[Tensor, "B D H1 W1"],
        features2: Float[Tensor, "B D H2 W2"],
        levels: int = 4,
        radius: int = 4,
    ) -> None:
        self.radius = whole_number("radius", radius, least=0)
        _check_features(features1, features2)
        features1, features2 = _at_least_float32(features1), _at_least_float32(features2)
        volumes = [correlation(features1, averaged) for averaged in pyramid(features2, levels)]
        self.image1 = volumes[0].shape[:3]  # B, H1, W1
        self.levels = [volume.flatten(0, 2) for volume in volumes]

    def __call__(self, positions: Float[Tensor, "B 2 H1 W1"]) -> Float[Tensor, "B C H1 W1"]:
        """Read the windows around positions in image 2, one for each pixel of image 1.

        positions  (B, 2, H1, W1) as (x, y), in pixels of the features
        returns    (B, L·(2r+1)², H1, W1): channel k·(2r+1)² + a·(2r+1) + b is level k, offset
                   a − r in x and b − r in y; 0 outside image 2

        Raises TypeError for positions of whole numbers, ValueError for another shape.

        Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at
        (0, 0); divided by 2ᵏ at level k, as the release does.
        """
        B, H1, W1 = self.image1
        _check_positions(positions, (B, 2, H1, W1))
        centres = positions.permute(0, 2, 3, 1).flatten(0, 2)
        windows = sample_pyramid(self.levels, centres, self.radius)
        return as_channels([window.unflatten(0, self.image1) for window in windows])


# %% tags=["check"]
some1, some2 = torch.randn(1, 6, 4, 5), torch.randn(1, 6, 9, 8)
places = torch.rand(1, 2, 4, 5) * 14 - 3  # some of them outside
looked_up = CorrelationVolume(some1, some2, levels=3, radius=2)(places)
assert looked_up.shape == (1, 3 * 25, 4, 5)
maps = pyramid(correlation(some1, some2)[0].flatten(0, 1)[:, None], 3)
for y in range(4):
    for x in range(5):
        expected = look_up_loop([level[5 * y + x, 0] for level in maps], places[0, :, y, x], 2)
        # The points of one window share their fraction here and are rounded apart in the loop.
        assert torch.allclose(looked_up[0, :, y, x], expected, atol=1e-5), f"pixel {x}, {y} differs"

# %% [markdown]
# Back to the red pixel. A look-up at its true match fills its channels with the four orange windows of the main figure:

# %%
look_up = CorrelationVolume(features1, features2, levels=4, radius=3)
guess = pixel_grid(h, w).permute(2, 0, 1)[None].clone()
guess[0, :, query[1], query[0]] = torch.tensor(match)
pixel_channels = look_up(guess)[0, :, query[1], query[0]]


# %% tags=["figure"]
def draw_windows(side=7):
    figure, axes = canvas(1, 4, 6.8, 2.15)
    for k, (each, window) in enumerate(zip(axes, pixel_channels.view(4, side, side), strict=True)):
        darkest, lightest = window.min().item(), window.max().item()
        draw_pixels(each, window.T, number=None, limits=(2 * darkest - lightest, lightest))
        for c in range(side**2):
            each.text(*divmod(c, side), k * side**2 + c, ha="center", va="center", size=6.8)
        ticks = range(-(side // 2), side // 2 + 1)
        each.set(title=f"level k = {k}", xticklabels=ticks, yticklabels=ticks)
        each.set(xlabel="offset a − r (px)", ylabel="")
    axes[0].set_ylabel("offset b − r (px)")
    return figure


show(
    draw_windows(),
    alt="Four windows of seven by seven squares of grey, one for each level, with the numbers of "
    f"their channels, 0 to {len(pixel_channels) - 1}, running down the columns",
)

# %% [markdown]
# These are all channels of one pixel: the lighter a place, the larger its correlation, and the number in it is the channel $c$ of equation 6. Channel 24 is the middle of level 0, channel 25 the place one pixel below it, and channel 31 the place one pixel to its right.

# %% [markdown]
# ### How much memory
#
# The features of a photograph of 440 × 1024 pixels have 55 × 128 vectors. All pairs of them, in float32, and the levels above:


# %%
def volume_bytes(height, width, levels=4):
    """Bytes of each level of the pyramid, for photographs of height × width pixels."""
    H, W = height // 8, width // 8
    return [4 * H * W * (H >> k) * (W >> k) for k in range(levels)]


# %% tags=["nbval-check-output"]
for height, width in ((220, 512), (440, 1024), (1080, 1920), (2160, 3840)):
    finest, *rest = volume_bytes(height, width)
    total = (finest + sum(rest)) / 1e6
    print(f"{height:4d} × {width:4d} px: level 0 {finest / 1e6:8.0f} MB, pyramid {total:8.0f} MB")

# %% [markdown]
# Twice the side is four times the pixels and sixteen times the pairs: memory grows with the **square** of the number of pixels. The pyramid adds a third at most, since each level has a quarter of the last ($1 + \tfrac14 + \tfrac1{16} + \dots = \tfrac43$). The last photograph of the table is beyond most graphics cards, and the features, the network and, in training, the gradients want their share too. Asked about memory at 1080 × 1920, the author advises to halve the photographs, or to make the correlations when they are read ([princeton-vl/RAFT#39](https://github.com/princeton-vl/RAFT/issues/39)).

# %% [markdown]
# ### On demand
#
# A look-up reads $L\,(2r+1)^2$ numbers for each pixel, a few hundred, and the volume holds thousands for each. Why make them all? Keep the features, $D$ numbers for each pixel and level, and make products where a window is read. Pixel by pixel that would be slow: each window would copy its own piece of features, and neighbours, which mostly move alike, would copy nearly the same piece again. Instead cut image 1 into **tiles** of neighbours. The windows of a tile overlap; one rectangle of image 2 holds them all, and one small matrix product makes its correlations with every pixel of the tile. Then the windows are read as always.
#
# The rectangle (equation 8) must hold every pixel of the map that some window reads; what lies outside the map counts as 0 and needs no pixel. A window that does not touch the map needs nothing and must not stretch the rectangle, however far away it is. The same holds for a position that is not a number (NaN). If no window of a tile touches the map, any one pixel will do as its rectangle.


# %% tags=["promote", "exercise"]
@torch.no_grad()
def rectangles(
    centres: Float[Tensor, "N P 2"], height: int, width: int, radius: int
) -> list[list[int]]:
    """Find the part of a map that the windows of each tile need (equation 8 of the lesson).

    centres        (N, P, 2) as (x, y): P windows for each of N tiles, in pixels of the map
    height, width  of the map
    radius         r, of the windows
    returns        [left, top, right, bottom] for each tile, right and bottom exclusive, inside the
                   map and never empty: a tile whose windows all lie outside gets one pixel

    Centres that are NaN, or whose windows do not touch the map, need nothing.
    """
    size = centres.new_tensor([width, height])
    touches = ((centres > -radius - 1) & (centres < size + radius)).all(dim=2, keepdim=True)
    first = torch.where(touches, centres, math.inf).amin(dim=1).floor() - radius
    end = torch.where(touches, centres, -math.inf).amax(dim=1).floor() + radius + 2
    needed = touches.any(dim=1)
    first = torch.where(needed, first.clamp(min=0), 0)
    end = torch.where(needed, torch.minimum(end, size), 1)
    return torch.cat([first, end], dim=1).long().tolist()


# %% tags=["check"]
tiles = torch.tensor([[[4.0, 3.0], [6.5, 3.25]], [[-1.5, 7.5], [0.0, 9.0]], [[-9.0, 3.0], [5, 99]]])
inside, corner, outside = rectangles(tiles, height=8, width=12, radius=1)
assert inside == [3, 2, 9, 6], "from floor(min) − r to floor(max) + r + 1, and one more as the end"
assert corner == [0, 6, 1, 8], "cut to the map; (0, 9) lies too far below to count"
assert outside == [0, 0, 1, 1], "a tile whose windows all lie outside gets one pixel"
far = torch.tensor([[[4.0, 3.0], [6.5, 3.25], [math.nan, 3.0], [1e30, 3.0]]])
assert rectangles(far, 8, 12, 1) == [[3, 2, 9, 6]], "NaN and far-off centres must not stretch it"

# %% [markdown]
# One tile, then: products of its vectors with the rectangle's, and the windows read on those small maps, in the rectangle's own coordinates. Vectors stand in the last axis here, so that a row of the rectangle is one run of memory.


# %% tags=["promote"]
def _vectors_last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1).contiguous()


def _cut(values: Float[Tensor, "H W _"], side: int) -> list[Tensor]:
    """The tiles of at most side × side pixels, row by row."""
    return [tile for strip in values.split(side) for tile in strip.split(side, dim=1)]


def _join(tiles: list[Tensor], across: int) -> Tensor:
    """Put tiles together again, `across` of them in a row."""
    strips = [torch.cat(tiles[n : n + across], dim=1) for n in range(0, len(tiles), across)]
    return torch.cat(strips)


# %% tags=["promote"]
def _read_tile(
    vectors1: Float[Tensor, "h w D"],
    vectors2: Float[Tensor, "H2 W2 D"],
    centres: Float[Tensor, "h w 2"],
    rectangle: list[int],
    radius: int,
) -> Float[Tensor, "h w S S"]:
    """The windows of one tile, from its products with one rectangle of image 2."""
    left, top, right, bottom = rectangle
    part = vectors2[top:bottom, left:right]
    products = _all_products(vectors1.flatten(0, 1), part.flatten(0, 1))
    maps = products.unflatten(1, part.shape[:2])
    points = centres.flatten(0, 1) - centres.new_tensor([left, top])
    return sample_window(maps, points, radius).unflatten(0, centres.shape[:2])


# %% [markdown]
# The class has the same face as `CorrelationVolume`: it is made from features and called with positions. A tile has 8 × 8 pixels at level 0 and twice as many a side at each next level, where the same motion spans half as many pixels.


# %% tags=["promote"]
class OnDemandCorrelation:
    """The same numbers without the volume: products are made where they are read (equation 7).

    Arguments, call and errors as in `CorrelationVolume`, gradients too.

    It holds B · D · (H1·W1 + H2·W2 · 4/3) numbers. A call makes the products of one tile at a
    time with the rectangle that its windows need: small where neighbours move alike, at the worst
    the whole level, so that a call takes as long as building the volume. No tile makes more than
    64 · H2·W2 products (8 × 8 pixels at level 0 with the whole map, and as many further up).
    Source: RAFT, section 3.2, efficient computation for high resolution images.
    """

    tile = 8  # pixels a side at level 0

    def __init__(
        self,
        features1: Float[Tensor, "B D H1 W1"],
        features2: Float[Tensor, "B D H2 W2"],
        levels: int = 4,
        radius: int = 4,
    ) -> None:
        self.radius = whole_number("radius", radius, least=0)
        _check_features(features1, features2)
        D = features1.shape[1]
        self.features1 = _vectors_last(_at_least_float32(features1) / math.sqrt(D))
        maps = pyramid(_at_least_float32(features2), levels)
        self.levels = [_vectors_last(level) for level in maps]

    def __call__(self, positions: Float[Tensor, "B 2 H1 W1"]) -> Float[Tensor, "B C H1 W1"]:
        """Read the windows around positions in image 2, as the call of `CorrelationVolume` does."""
        B, H1, W1, _ = self.features1.shape
        _check_positions(positions, (B, 2, H1, W1))
        centres = _at_least_float32(positions).permute(0, 2, 3, 1)
        windows = []
        for k, features2 in enumerate(self.levels):
            pairs = zip(self.features1, features2, centres / 2**k, strict=True)
            windows.append(torch.stack([self._read(*pair, self.tile * 2**k) for pair in pairs]))
        return as_channels(windows)

    def _read(self, vectors1: Tensor, vectors2: Tensor, centres: Tensor, side: int) -> Tensor:
        """The windows (H1, W1, S, S) of one level of one pair of images."""
        H2, W2, _ = vectors2.shape
        tiles = _cut(centres, side)
        # Tiles at the border may be smaller; NaN fills them up and needs nothing.
        padded = pad_sequence([tile.flatten(0, 1) for tile in tiles], True, math.nan)
        needed = rectangles(padded, H2, W2, self.radius)
        windows = [
            _read_tile(first, vectors2, tile, rectangle, self.radius)
            for first, tile, rectangle in zip(_cut(vectors1, side), tiles, needed, strict=True)
        ]
        return _join(windows, across=math.ceil(centres.shape[1] / side))


# %% tags=["check"]
torch.manual_seed(0)
some1, some2 = torch.randn(2, 16, 19, 21), torch.randn(2, 16, 17, 26)
grid = pixel_grid(19, 21).permute(2, 0, 1)
for reach in (1, 10, 100):  # smooth, wild, mostly outside
    places = grid + reach * torch.randn(2, 2, 19, 21)
    held, made = (
        how(some1, some2, levels=3, radius=3)(places)
        for how in (CorrelationVolume, OnDemandCorrelation)
    )
    # 1e-5 of the largest: the same products, summed and averaged in another order.
    assert (held - made).abs().max() <= 1e-5 * held.abs().max(), f"differs at a reach of {reach}"

# %% [markdown]
# ### Gradients
#
# Both ways are made of products, means and windows, all of which PyTorch differentiates; the rectangles are whole numbers and carry no gradient. So both pass the same gradient to the features and to the positions, wild flow or not.


# %%
def gradients(how, reach):
    torch.manual_seed(1)
    leaves = [torch.randn(2, 8, 12, 13, dtype=torch.float64) for _ in range(2)]
    flow = reach * torch.randn(2, 2, 12, 13, dtype=torch.float64)
    leaves.append(pixel_grid(12, 13, dtype=torch.float64).permute(2, 0, 1) + flow)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    result = how(leaves[0], leaves[1], levels=3, radius=2)(leaves[2])
    return torch.autograd.grad(result.square().sum(), leaves)


# %%
for reach in (1, 30):
    both = zip(
        gradients(CorrelationVolume, reach), gradients(OnDemandCorrelation, reach), strict=True
    )
    for name, (held, made) in zip(("features 1", "features 2", "positions"), both, strict=True):
        # float64: far below 1e-9 from rounding.
        assert (held - made).abs().max() <= 1e-9 * held.abs().max(), f"the gradient to {name}"

# %% [markdown]
# Gradients cannot be taken for granted here: the released on-demand code is a CUDA extension that for years had no working backward pass. A reader trained with it and got blurred flow; an author answered that it serves inference only ([princeton-vl/RAFT#92](https://github.com/princeton-vl/RAFT/issues/92)). A backward pass came in 2024 ([#186](https://github.com/princeton-vl/RAFT/pull/186)). In training it would save little anyway, says the author: most of the memory goes to what the recurrent network of lesson 5 keeps for its gradient ([princeton-vl/RAFT#26](https://github.com/princeton-vl/RAFT/issues/26)).

# %% [markdown]
# ## On real input
#
# ### Product or distance?
#
# The chosen pixel again, with two kinds of features: the trained ones, and the blocks of grey values of the [lesson on windows](../6_bilinear_sampling/3_window.ipynb), whose vectors all have length 1. Both stand on the same grid.


# %%
def block_features(image, size=16, step=4):
    """Describe every block of an image by its pattern of grey; returns (1, C, H, W)."""
    grey = image.mean(dim=1, keepdim=True)
    blocks = F.unfold(grey, size, stride=step, padding=(size - step) // 2)[0]
    blocks = F.normalize(blocks - blocks.mean(dim=0), dim=0)
    return blocks.view(1, size**2, image.shape[2] // step, image.shape[3] // step)


# %%
half = stereo_pair(shrink=2)
blocks1, blocks2 = (block_features(i[..., : H // 2, : W // 2]) for i in (half.left, half.right))
volumes = {
    "trained features": (volume, cost_volume(features1, features2)),
    "blocks of grey": (correlation(blocks1, blocks2), cost_volume(blocks1, blocks2)),
}
for name, features in (("trained features", features2), ("blocks of grey", blocks2)):
    lengths = features.norm(dim=1)
    print(f"{name:>16}: lengths of F2 {lengths.min():.2f} to {lengths.max():.2f}")


# %% tags=["figure"]
def draw_both():
    figure, axes = canvas(2, 2, 5.4, 3.4, sharex=True, sharey=True)
    for row, (name, both) in zip(axes, volumes.items(), strict=True):
        for each, values, title in zip(row, both, ("volume C", "cost V"), strict=True):
            picture = each.imshow(values[0, query[1], query[0]], cmap="gray")
            each.plot(*match, "+", color=COLOURS["second"], markersize=10)
            each.set(title=f"{title}, {name}")
            figure.colorbar(picture, ax=each, shrink=0.8).ax.tick_params(labelsize=8)
        row[0].set_ylabel("y (px of the features)")
    for each in axes[1]:
        each.set_xlabel("x (px of the features)")
    return figure


show(
    draw_both(),
    alt="Maps of products and of distances of one pixel, for trained features and for blocks of "
    "grey; of the blocks, what is light in one is dark in the other",
    photo=True,
)

# %% [markdown]
# The bar beside each map gives its scale, and the cross marks the true match. For blocks of grey, what is lightest on the left is darkest on the right: their vectors have one length, and equation 3 makes the distance fall where the product rises. The trained features have many lengths, and the two maps rank the pixels differently. How often does the best pixel of each map lie at the true match?

# %%
y1, x1 = known.nonzero().unbind(1)
true_x = x1 - disparity[y1, x1]


def share_found(maps):
    """How many best pixels lie within 1.5 px of the true match."""
    best = maps[y1, x1].flatten(1).argmax(dim=1)
    y, x = best // maps.shape[3], best % maps.shape[3]
    return (torch.hypot(x - true_x, (y - y1).float()) < 1.5).float().mean().item()


for name, (products, distances) in volumes.items():
    found = share_found(products[0]), share_found(-distances[0])
    print(f"{name:>16}: largest product {found[0]:.0%} right, smallest distance {found[1]:.0%}")

# %% [markdown]
# RAFT does not take the largest product. It hands the whole window to a network, trained together with the features, and that network reads each correlation as one piece of evidence among a few hundred. So features that do badly in this test can do well in RAFT: the test says what one number of the volume knows by itself.
#
# ### Tiles and rectangles
#
# The trained model estimates the flow of the motorcycle; the positions are where its last look-ups point. Of all tiles at level 0, take those with the middle and with the largest rectangle:

# %%
flow = model.estimate(left, right, 12).coarse[0]
positions = pixel_grid(h, w).permute(2, 0, 1) + flow


def rectangle_of(corner, side=8):
    """The positions of one tile at level 0, and their rectangle."""
    x, y = corner
    centres = positions[:, y : y + side, x : x + side].flatten(1).T
    return centres, rectangles(centres[None], h, w, radius=3)[0]


def area(corner):
    left, top, right, bottom = rectangle_of(corner)[1]
    return (right - left) * (bottom - top)


corners = sorted(((x, y) for y in range(8, h - 15, 8) for x in range(8, w - 23, 8)), key=area)
tile_corners = corners[len(corners) // 2], corners[-1]


# %% tags=["figure"]
def draw_tiles(side=8):
    figure, axes = canvas(1, 2, 6.8, 2.6, sharey=True)
    note = {"color": "white", "size": 8, "bbox": {"facecolor": "black", "alpha": 0.7, "pad": 1.5}}
    for each, image, title in zip(axes, (left, right), ("image 1", "image 2"), strict=True):
        each.imshow(to_picture(image), alpha=0.75)
        each.set(title=title, xlabel="x (px)")
    axes[0].set_ylabel("y (px)")
    for (x, y), gap in zip(tile_corners, (-8, 30), strict=True):
        centres, (x0, y0, x1, y1) = rectangle_of((x, y))
        outline(axes[0], 8 * x, 8 * y, 8 * side, 8 * side, "first")
        outline(axes[1], 8 * x0, 8 * y0, 8 * (x1 - x0), 8 * (y1 - y0), "second")
        axes[1].plot(*(8 * centres.T + 3.5), ".", color=COLOURS["query"], markersize=1.5)
        top, bottom = (8 * y, 8 * y0) if gap < 0 else (8 * (y + side), 8 * y1)
        axes[0].text(8 * x, top + gap, f"tile T {side} × {side}", **note)
        axes[1].text(8 * x0, bottom + gap, f"rectangle R {x1 - x0} × {y1 - y0}", **note)
    axes[1].text(0.02, 0.03, "features of level 0", transform=axes[1].transAxes, **note)
    return figure


show(
    draw_tiles(),
    alt="Two squares of 64 pixels on the left photograph, and on the right photograph the "
    "rectangle around the positions of each, one of them larger than the other",
    photo=True,
)

# %% [markdown]
# Each dot is the position of one pixel of the tile, in pixels of the photograph; rectangles are counted in pixels of the features. Where the flow is smooth, the rectangle is the tile with a margin of a radius and a pixel. Where the flow jumps, at the edge of a thing, the dots fly apart and the rectangle grows.

# %%
held, made = (how(features1, features2, 4, 3) for how in (CorrelationVolume, OnDemandCorrelation))
with torch.no_grad():
    channels, channels_made = held(positions[None]), made(positions[None])
difference = (channels - channels_made).abs().max() / channels.abs().max()
print(f"channels Y {tuple(channels.shape)}, largest difference {difference:.0e} of the largest")
assert difference < 1e-5  # float32, sums of 128 products in another order

# %% [markdown]
# ### Memory, measured
#
# What each way holds between look-ups is the size of its tensors; on demand, a call adds the products of one tile at a time. Time is the fastest of a few turns, since another program can only slow a turn down.


# %%
def example(height, width):
    """Features of width 128 and smooth positions, for photographs of height × width pixels."""
    torch.manual_seed(0)
    h, w = height // 8, width // 8
    flow = F.interpolate(4 * torch.randn(1, 2, 5, 9), (h, w), mode="bilinear", align_corners=True)
    return *torch.randn(2, 1, 128, h, w), pixel_grid(h, w).permute(2, 0, 1) + flow


def seconds_of(call, turns=2):
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


# %%
@torch.no_grad()
def cost_of(how, height, width):
    """Megabytes held, seconds to build, seconds of one look-up."""
    *features, places = example(height, width)
    building = seconds_of(lambda: how(*features, radius=3))
    look_up = how(*features, radius=3)
    kept = look_up.levels + ([look_up.features1] if how is OnDemandCorrelation else [])
    megabytes = sum(level.nbytes for level in kept) / 1e6
    return megabytes, building, seconds_of(lambda: look_up(places))


# %%
sizes = ((128, 256), (256, 512), (440, 1024), (1080, 1920))
measured = {
    # The volume of the last size is what we want to do without.
    "all pairs": [cost_of(CorrelationVolume, *size) for size in sizes[:3]],
    "on demand": [cost_of(OnDemandCorrelation, *size) for size in sizes],
}
for name, rows in measured.items():
    for (height, width), (held_mb, build, call) in zip(sizes, rows, strict=False):
        size = f"{name}, {height:4d} × {width:4d} px"
        print(f"{size}: {held_mb:6.1f} MB, built in {build:.3f} s, one look-up {call:.3f} s")


# %% [markdown]
# The second size has four times the pixels of the first. With all pairs, memory grows by the square of that; on demand, it grows by four. On demand pays with time, since each look-up makes its products anew. But the time to build the volume also grows with the square of the pixels, so the two ways come closer for large photographs; and the convolutions of the update, the same for both, come on top. Of the released CUDA version its author says that it takes two to three times as long as all pairs, and that more optimization should make it much faster ([#39](https://github.com/princeton-vl/RAFT/issues/39)).

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `correlation` | 10 | ●●○ |
# | `pyramid` | 5 | ●○○ |
# | `as_channels` | 10 | ●●○ |
# | `rectangles` | 15 | ●●● |
#
# <details><summary>Hint for <code>correlation</code></summary>
#
# `flatten(2)` turns (B, D, H, W) into (B, D, H·W), `.mT` exchanges the last two axes, `@` multiplies batches of matrices. `unflatten(1, (H1, W1))` gives an axis its two sizes back. Or write it as one `torch.einsum`. The helpers in the cell above see to bad arguments and half precision.
#
# </details>
#
# <details><summary>Hint for <code>pyramid</code></summary>
#
# Keep a list that begins with the maps, and append `F.avg_pool2d(last, 2)` until it has `levels` entries. `_check_levels`, in the cell above, sees to bad arguments.
#
# </details>
#
# <details><summary>Hint for <code>as_channels</code></summary>
#
# A window is indexed [row, column], and `flatten` makes the last axis the fast one. Which of the two should be last? Do it for each level, join the levels with `torch.cat`, and move the channels to axis 1 with `permute`.
#
# </details>
#
# <details><summary>Hint for <code>rectangles</code></summary>
#
# First without NaN and without the outside: `amin` and `amax` over the windows, `floor`, minus $r$, plus $r + 2$, clamped to the map. Then mark the windows that touch the map: a centre must lie more than $-(r+1)$ and less than size $+\, r$ in both axes. Put `math.inf` (for the smallest) or `-math.inf` (for the largest) in place of the others.
#
# </details>
#
# **Predict.** A pixel moves 100 pixels to the right and the first guess is no motion. On which levels of RAFT-small ($r = 3$) is the match at most $r$ pixels of the level away from the middle of the window? And after an iteration that found 60 of the 100?
#
# <details><summary>Hint</summary>
#
# On level $k$ the motion is $100 / (8 \cdot 2^k)$ pixels long.
#
# </details>
#
# <details><summary>Answer</summary>
#
# At first the coarsest level alone, since $12.5$, $6.25$ and $3.125$ are more than 3. With 40 pixels left, all levels but the finest. So RAFT refines: the coarse levels bring the position near, and then the fine ones see the match. The cell below computes it.
#
# </details>


# %% tags=["nbval-check-output"]
for motion in (100, 40):
    lengths = [motion / (8 * 2**k) for k in range(4)]
    seen = [k for k, length in enumerate(lengths) if length <= 3]
    print(f"{motion:3d} px are {lengths} px at the levels; within the radius at levels {seen}")

# %% [markdown]
# **Find the bug.** A colleague writes the look-up from scratch. It gives the right shape, equals the library on the first test, and even trains. With published weights it fails. What is wrong, and which input shows it?


# %%
def look_up_colleague(volume, positions, radius):
    """One level, one pair of images: maps (N, H, W), positions (N, 2)."""
    offsets = torch.arange(-radius, radius + 1).float()
    dx, dy = torch.meshgrid(offsets, offsets, indexing="xy")
    points = positions[:, None, None] + torch.stack([dx, dy], dim=-1)
    values = [sample_window(volume, point, 0).flatten() for point in points.flatten(1, 2).unbind(1)]
    return torch.stack(values, dim=1)


def look_up_library(volume, positions, radius):
    return as_channels([sample_window(volume, positions, radius)[:, None, None]])[:, :, 0, 0]


# %%
y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
at = torch.tensor([[4.0, 4.0]])
first_test = torch.exp(-((x - 4) ** 2 + (y - 4) ** 2))[None]  # a peak in the middle
# Two readings of the same points: equal up to a few roundings of float32.
assert torch.allclose(
    look_up_colleague(first_test, at, 2), look_up_library(first_test, at, 2), atol=1e-6
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# With `indexing="xy"`, along which axis of `dx` does the offset change? What does the first test have in common with its mirror image along the diagonal?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The channels run row by row: `dx` changes along the last axis, which is the fast one. It is the transposition of the box above, and a peak that is round is its own mirror image, so the first test cannot notice. A ramp in x does: the library's channels repeat each value, since the row is fast, and the colleague's count up. Test an order with input that has a different value at every place.
#
# </details>

# %% tags=["nbval-check-output"]
print("colleague:", look_up_colleague(x[None], at, 1)[0].tolist())
print("library:  ", look_up_library(x[None], at, 1)[0].tolist())

# %% [markdown]
# **Measure.** How does the side of a tile change the time of `OnDemandCorrelation`? Set the attribute `tile` of `made` to 2, 4, 8, 16 and 32, and look up `positions`.
#
# <details><summary>Hint</summary>
#
# `made.tile = 4`, then `seconds_of` a call. Count the products as well: the area of each rectangle times the pixels of its tile.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Small tiles are many, and each costs a few dozen calls into PyTorch whatever its size; large tiles have large rectangles, and most of their products are read by no window. The best side lies between, and depends on the machine, the radius and how smooth the flow is.
#
# </details>


# %%
def time_with(side):
    made.tile = side
    try:
        return seconds_of(lambda: made(positions[None]), turns=2)
    finally:
        made.tile = OnDemandCorrelation.tile


with torch.no_grad():
    for side in (2, 4, 8, 16, 32):
        print(f"tiles of {side:2d} × {side:2d}: {1000 * time_with(side):5.0f} ms")

# %% [markdown]
# ## What breaks
#
# ### The wrong axes are averaged
#
# To average image 1's axes as well seems natural, as it is how image pyramids are made. Then level $k$ has one window for each $2^k \times 2^k$ pixels of image 1, and small things that move by themselves share the answer of what surrounds them. Readers of the released on-demand code have asked whether image 1's features should be averaged too; an author answers that the paper averages image 2's alone ([princeton-vl/RAFT#42](https://github.com/princeton-vl/RAFT/issues/42)). The shapes show the difference:

# %% tags=["nbval-check-output"]
small_volume = volume[:, :8, :8]
right_axes = pyramid(small_volume.flatten(0, 2)[:, None], 2)[1].unflatten(0, (1, 8, 8))[:, :, :, 0]
wrong_axes = correlation(*(F.avg_pool2d(f, 2) for f in (features1[..., :8, :8], features2)))
print("image 2 averaged:    ", tuple(right_axes.shape))
print("both images averaged:", tuple(wrong_axes.shape))

# %% [markdown]
# ### A pixel that is lost
#
# Outside image 2 everything is 0. A position that left the image by more than the radius reads a window of zeros at level 0, and nothing in it says which way leads back. The coarser levels still see the image; further out they are 0, too.

# %%
lost = positions[None].clone()
for step in (0, 10, 100, 1000):
    lost[0, :, 0, 0] = torch.tensor([w + step, 10.0])
    with torch.no_grad():
        per_level = held(lost)[0, :, 0, 0].view(4, -1)
    alive = [k for k in range(4) if per_level[k].any()]
    print(f"{step:4d} px outside: levels with something to see {alive}")

# %% [markdown]
# ### A bad number in the features
#
# One vector of image 2 with a NaN spoils its whole column of the volume, for every pixel of image 1, and averaging spreads it further. Nothing in this lesson hides it: windows that read it are NaN, others are not.

# %%
spoiled = features2.clone()
spoiled[0, 0, 30, 40] = math.nan
with torch.no_grad():
    for how in (CorrelationVolume, OnDemandCorrelation):
        bad = how(features1, spoiled, levels=4, radius=3)(positions[None]).isnan().any(dim=1)
        print(f"{how.__name__}: {bad.float().mean():.1%} of the pixels read a NaN")

# %% [markdown]
# ### What the code says to bad input

# %%
with shows_error(ValueError):
    correlation(torch.zeros(1, 128, 8, 8), torch.zeros(1, 256, 8, 8))
with shows_error(ValueError):
    correlation(torch.zeros(1, 128, 8, 8), torch.zeros(2, 128, 8, 8))
with shows_error(ValueError):
    CorrelationVolume(some1, some2, levels=6)
with shows_error(ValueError):
    held(positions)
with shows_error(TypeError):
    made(positions[None].long())

# %% [markdown]
# ## Recap
#
# - The volume $C$ holds the inner products of all pairs over $\sqrt{D}$, one map of image 2 for each pixel of image 1; a pyramid averages image 2's axes alone. The cost volume $V$ has the same shape and the opposite sense.
# - A look-up reads $(2r+1)^2$ places at each of $L$ levels, 0 outside; in the channels the column is slow and the row is fast, and weights depend on it.
# - Averaging and product change places: features in place of the volume give the same numbers and gradients, in memory that grows with the pixels in place of their square.
#
# The line goes on in [lesson 5](5_update.ipynb), where a recurrent network reads these channels and says how the flow should change.
