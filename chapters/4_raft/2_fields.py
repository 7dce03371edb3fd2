# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 55
#     needs:
#     - 6_bilinear_sampling/2_warps
#     - 6_bilinear_sampling/3_window
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fields: motion as data
#
# **After this lesson you can** draw a flow field, keep it in a file, say in numbers how good it is, and see without the truth where it is probably wrong.
#
# *Before this:* [Warps](../6_bilinear_sampling/2_warps.ipynb) (`2_warps`), which reads a picture through a flow, and [Windows](../6_bilinear_sampling/3_window.ipynb) (`3_window`). *Time:* 55 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# A **flow field** (光流场) $f$, or dense displacement field (稠密位移场), holds one arrow for every pixel of image 1: it says where that pixel is seen in image 2. The arrow's parts $u, v$ count pixels to the right and down. So a flow has a direction, from image 1 to image 2, and is drawn on image 1.
#
# How good is a flow? With the true flow at hand, ask how far each arrow's end lies from where it should be. That distance is the **end-point error** (端点误差) $e$; the numbers in papers' tables are means and shares of it. Without the truth there are two other questions. Does image 2, read where the arrows point, look like image 1? Do the flow there and a second flow back lead to where one began? Where they do not, the pixel is hidden in image 2, or a flow is wrong. And to be compared with anyone else's, a field must go through a file and come out as it went in.

# %% [markdown]
# ## Figure
#
# The motorcycle is a stereo pair (立体图像对), two photographs from places side by side. Nothing moved, yet everything is displaced, near things more than far ones. Patterns of light, projected on the scene one after another, gave the true flow, with holes where they could not be seen. The estimated flow comes from a classical method, iterative Lucas–Kanade, described below.

# %%
import io
import math
import struct
import tempfile
import time
from contextlib import chdir
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from matplotlib.patches import Rectangle
from torch import Tensor

# %%
from fourfold.bilinear_sampling.sampling import _check_floating
from fourfold.bilinear_sampling.warps import flow_grid, inside, pixel_grid, warp
from fourfold.kit.arguments import check_tensor, whole_number
from fourfold.kit.checkpoints import write_whole
from fourfold.kit.drawing import (
    COLOURS,
    canvas,
    draw_arrows,
    flow_to_image,
    flow_wheel,
    show,
    to_picture,
)
from fourfold.kit.images import credit, photograph, stereo_pair
from fourfold.kit.notebook import shows_error
from fourfold.raft.fields import (
    classical_flow,
    end_point_error,
    end_point_errors,
    forward_interpolate,
    occluded,
    outlier_rate,
    pad,
    photometric_errors,
    read_kitti_flow,
    round_trip_errors,
    write_kitti_flow,
)


# %%
def motorcycle(shrink):
    """Both images, the true flow (−disparity, 0), and the mask of pixels where it is known."""
    pair = stereo_pair(shrink)
    truth = torch.cat([-pair.disparity, torch.zeros_like(pair.disparity)], dim=1)
    return pair.left, pair.right, truth, pair.valid[:, 0]


image1, image2, truth, valid = motorcycle(shrink=4)
estimate = classical_flow("ilk", image1, image2)
print("image", tuple(image1.shape), "flow", tuple(truth.shape), "valid", tuple(valid.shape))


# %%
grey = {"cmap": "gray", "vmin": 0, "vmax": 255}


def bare(axes):
    """Keep the outer axes' labels of a grid of pictures that share their pixels."""
    for each in axes[:, 0]:
        each.set_ylabel("y (px)")
    for each in axes[-1]:
        each.set_xlabel("x (px)")
    for each in axes.flat:
        each.label_outer()


def judged(errors, target, valid):
    """Three greys: outliers dark, good pixels light, pixels without truth in between."""
    outlier = (errors > 3) & (errors > 0.05 * target.norm(dim=1))
    return torch.where(valid, torch.where(outlier, 0.0, 255.0), 160.0)


# %% tags=["figure"]
def draw_field(flow, q=(88, 74)):
    x, y = q
    u, v = (round(part, 1) + 0.0 for part in flow[0, :, y, x].tolist())  # adding 0 turns −0 into 0
    errors = end_point_errors(flow, truth)
    warped = warp(image2, flow_grid(flow))
    difference = photometric_errors(image1, image2, flow)
    E, F_all = end_point_error(flow, truth, valid), outlier_rate(flow, truth, valid)
    pictures = {
        "image I₁ with pixel q": image1,
        f"image I₂: q moves by\nu, v = {u:.1f}, {v:.1f}".replace("-", "−"): image2,
        "warped J:\nI₂ read at q + f": warped,
        "difference d\n(dark: large)": 255 - 4 * difference,
        "flow f": flow_to_image(flow, max_norm=16),
        "true flow f*": torch.where(valid, flow_to_image(truth, max_norm=16), 255),
        f"error e (black: 8 px)\nmean E = {E:.2f} px": torch.where(valid, 255 - 32 * errors, 160),
        f"outliers of valid V\nrate F = {F_all:.0%}": judged(errors, truth, valid),
    }
    figure, axes = canvas(2, 4, 7.6, 3.4)
    for each, (title, picture) in zip(axes.flat, pictures.items(), strict=True):
        each.imshow(to_picture(picture), **grey)
        each.set_title(title)
    mark = {"color": COLOURS["query"], "markeredgecolor": "white"}
    axes[0, 0].plot(x, y, "o", **mark)
    axes[0, 1].plot([x, x + u], [y, y + v], "o-", color="white", markerfacecolor="none")
    axes[0, 1].plot(x + u, y + v, "o", **mark)
    bare(axes)
    axes[0, 0].set_ylabel("without the truth\ny (px)")
    axes[1, 0].set_ylabel("with the truth\ny (px)")
    return figure


show(
    draw_field(estimate),
    alt="Eight pictures of the motorcycle pair: both images, the second read back through the "
    "estimated flow, the grey difference to the first, the estimated and the true flow in colours, "
    "the error, and the outliers",
    photo=True,
)
print(credit("motorcycle"))

# %% [markdown]
# Above, what can be asked without the truth: image 2, read where the flow points, looks like image 1, but for the dark places of $d$. Below, what the truth says: the error is large along the outline of the motorcycle. (Grey: no truth is known.) Compare the two pictures $d$ and $e$. They share some dark places and not all: where the background is plain, a wrong arrow leads to the same colour.
#
# In the next figure every number is known, also the flow from image 2 back to image 1: a block of 4 × 5 pixels moves four pixels to the right and one down, in front of a background that stays.


# %%
def block_flow(top, left, u, v, size=(12, 18)):
    """A flow field that is (u, v) in a block of 4 × 5 pixels and 0 elsewhere."""
    flow = torch.zeros(1, 2, *size)
    flow[:, :, top : top + 4, left : left + 5] = torch.tensor([u, v]).view(1, 2, 1, 1)
    return flow


toy_forward = block_flow(4, 4, u=4.0, v=1.0)
toy_backward = block_flow(5, 8, u=-4.0, v=-1.0)


# %% tags=["figure"]
def draw_round_trip(forward, backward):
    figure, axes = canvas(2, 2, 5.6, 3.6)
    shades = {"cmap": "gray_r", "vmin": 0, "vmax": 9}
    titles = ("flow f, on image 1", "backward flow b, on image 2")
    for each, flow, title in zip(axes[0], (forward, backward), titles, strict=True):
        each.imshow(flow[0].norm(dim=0), **shades)
        draw_arrows(each, flow, step=2)
        each.set(title=title, yticks=(0, 5, 10))
    axes[1, 0].imshow(round_trip_errors(forward, backward)[0], **shades)
    axes[1, 0].set(title="round trip r (black: 9 px)", yticks=(0, 5, 10))
    axes[1, 1].imshow(9.0 * occluded(forward, backward)[0], **shades)
    axes[1, 1].set_title("occluded o")
    bare(axes)
    return figure


show(
    draw_round_trip(toy_forward, toy_backward),
    alt="A block of arrows to the right and down on image 1, a block of arrows back on image 2, "
    "and the pixels where the way there and back does not return",
)

# %% [markdown]
# Above, the arrow of every second pixel. The dark patch below is background that the block covers in image 2. Its own arrows say "stay", but the arrows found there in $b$ belong to the block and lead away. Its pixels are **occluded** (被遮挡): image 2 does not show them.

# %% [markdown]
# ## Formula
#
# At pixel $q$ the estimated flow is $f(q)$, the true one $f^*(q)$. The end-point error $e$ is the length of their difference:
#
# $$ e(q) = \lVert f(q) - f^*(q) \rVert, \qquad f(q) = (u, v) \tag{1} $$
#
# Let $V$ be the set of valid pixels, those whose truth is known, and $|V|$ their number. The mean error $E$ is what papers call **EPE** or AEPE:
#
# $$ E = \frac{1}{|V|} \sum_{q \in V} e(q) \tag{2} $$
#
# A few very wrong pixels can make up most of a mean, so there are shares too. $S_n$ is the share of pixels within $n$ pixels of the truth; RAFT's training logs give it for 1, 3 and 5. $F$ is the outlier rate of the KITTI benchmark, there called **F1-all**: a pixel is an outlier if its error exceeds 3 pixels *and* 5 % of the true length.
#
# $$ S_n = \frac{\lvert\{q \in V : e(q) < n\}\rvert}{|V|}, \qquad F = \frac{\lvert\{q \in V : e(q) > 3,\; e(q) > 0.05\, \lVert f^*(q) \rVert\}\rvert}{|V|} \tag{3} $$
#
# Without a truth, read image $I_2$ through the flow. If the flow is right and nothing changed its brightness, the warped image $J$ equals image $I_1$; $d$ is the difference of their grey levels, averaged over the three colours $c$:
#
# $$ J(q) = I_2\big(q + f(q)\big), \qquad d(q) = \tfrac{1}{3} \sum_c \lvert J(q)_c - I_1(q)_c \rvert \tag{4} $$
#
# The backward flow $b$ leads from image 2 to image 1. Follow $f$ from $q$ and then $b$ from where you are: the round trip misses its start by $r$.
#
# $$ r(q) = \big\lVert f(q) + b\big(q + f(q)\big) \big\rVert \tag{5} $$
#
# A small miss does not prove anything, and longer arrows miss by more. The pixel counts as occluded, $o(q) = 1$, when
#
# $$ r(q)^2 > 0.01 \left( \lVert f(q) \rVert^2 + \big\lVert b\big(q + f(q)\big) \big\rVert^2 \right) + 0.5 \;\Rightarrow\; o(q) = 1 \tag{6} $$
#
# or when $q + f(q)$ lies outside the picture. The two constants are those of Sundaram, Brox and Keutzer (ECCV 2010).
#
# RAFT halves its images three times, so their sides must be multiples of 8. The padding $p$ of a side of $H$ pixels is what it lacks:
#
# $$ p = (-H) \bmod 8 \tag{7} $$
#
# In a video the flow of one pair of frames is a good guess for the next pair, once each arrow has been carried to where its pixel is now. This start $g$ takes, at every pixel, the arrow whose end is nearest:
#
# $$ g(q) = f(q'), \qquad q' = \arg\min_{q''} \big\lVert q'' + f(q'') - q \big\rVert \tag{8} $$
#
# KITTI keeps a component of an arrow as a whole number $a$ from 0 to $2^{16} - 1$, in steps of 1/64 pixel. Writing cuts the fraction off; reading cannot bring it back:
#
# $$ a = \lfloor 64\,u + 2^{15} \rfloor, \qquad u \approx (a - 2^{15}) / 64 \tag{9} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $q$ | pixel of image 1, (x, y) | px | `pixels` | pixel q |
# | $f$ | flow from image 1 to image 2 | (B, 2, H, W), px | `flow` | flow f |
# | $u, v$ | parts of an arrow, right and down | px | `u`, `v` | u, v |
# | $f^*$ | true flow | (B, 2, H, W), px | `target` | true flow f* |
# | $e$ | end-point error | (B, H, W), px | `end_point_errors` | error e |
# | $V$ | valid pixels, whose truth is known | (B, H, W), bool | `valid` | valid V |
# | $E$ | mean error over valid pixels | px | `end_point_error` | mean E |
# | $S_n$ | share of pixels within n px | 0 … 1 | `share_within` | share S_n |
# | $F$ | rate of outliers, F1-all | 0 … 1 | `outlier_rate` | rate F |
# | $I_1$ | first image | (B, 3, H, W), 0 … 255 | `image1` | image I₁ |
# | $I_2$ | second image | (B, 3, H, W), 0 … 255 | `image2` | image I₂ |
# | $J$ | image 2 warped back by the flow | (B, 3, H, W), 0 … 255 | `warped` | warped J |
# | $d$ | difference of grey levels | (B, H, W), 0 … 255 | `photometric_errors` | difference d |
# | $b$ | backward flow, from image 2 to image 1 | (B, 2, H, W), px | `backward` | backward flow b |
# | $r$ | miss of the round trip | (B, H, W), px | `round_trip_errors` | round trip r |
# | $o$ | occluded: hidden in image 2 | (B, H, W), bool | `occluded` | occluded o |
# | $p$ | padding of a side | px | `padding` | padding p |
# | $g$ | start for the next pair | (B, 2, H, W), px | `start` | start g |
# | $a$ | number stored in a KITTI file | 0 … 65535 | `stored` | stored a |
#
# Letters of shapes: $B$ items of a batch, $H$ and $W$ height and width in pixels. Positions are (x, y), x to the right, y down, the centre of the top-left pixel at (0, 0).

# %% [markdown]
# ## Code
#
# ### What a field looks like: the wheel
#
# Arrows can show a field of a hundred pixels; a field of a million needs a colour for each arrow. The wheel of Baker and colleagues (the Middlebury benchmark) turns the direction into a hue (色相) and the length into a saturation (饱和度): no motion is white, the longest arrow has the full colour.

# %%
compass = {"right": (1, 0), "down": (0, 1), "left": (-1, 0), "up": (0, -1)}


def draw_wheel():
    figure, (key, arrows) = canvas(1, 2, 5.6, 2.7)
    key.imshow(to_picture(flow_wheel(121)))
    for name, (u, v) in compass.items():
        key.annotate(name, (60 + 40 * u, 60 + 40 * v), ha="center", va="center", fontsize=8)
    key.set(title="a colour for each arrow", xlabel="u / longest arrow", ylabel="v / longest arrow")
    key.set(xticks=(0, 60, 120), xticklabels=("−1", "0", "1"))
    key.set(yticks=(0, 60, 120), yticklabels=("−1", "0", "1"))
    arrows.imshow(to_picture(flow_to_image(estimate, max_norm=16)))
    draw_arrows(arrows, estimate, step=14)
    arrows.set(title="one field, both ways", xlabel="x (px)", ylabel="y (px)")
    return figure


show(
    draw_wheel(),
    alt="The wheel of flow colours with right, down, left and up written on it, and the flow of "
    "the motorcycle in colours with arrows on top",
    photo=True,
)

# %% [markdown]
# The wheel is a list of 55 colours that walks from one pure colour to the next, in more steps where the eye tells more hues apart: 15 from red to yellow, 4 from green to cyan. Here is the list, and the colour of one arrow. An arrow longer than 1 gets a darker colour, which no shorter one has.


# %%
PURE = {"red": (255, 0, 0), "yellow": (255, 255, 0), "green": (0, 255, 0)}
PURE |= {"cyan": (0, 255, 255), "blue": (0, 0, 255), "magenta": (255, 0, 255)}


def wheel_list():
    """The 55 colours, each (red, green, blue) from 0 to 255."""
    stops, wheel = [*PURE.values(), PURE["red"]], []
    for here, there, steps in zip(stops[:-1], stops[1:], (15, 6, 4, 11, 13, 6), strict=True):
        for k in range(steps):
            step = math.floor(255 * k / steps)
            wheel.append([a + step * ((b > a) - (b < a)) for a, b in zip(here, there, strict=True)])
    return wheel


# %%
def colour_of(u, v, wheel):
    """The colour of one arrow; length 1 has the full colour."""
    place = (math.atan2(-v, -u) / math.pi + 1) / 2 * (len(wheel) - 1)
    k, part = math.floor(place), place - math.floor(place)
    hue = [(1 - part) * a + part * b for a, b in zip(wheel[k], wheel[(k + 1) % 55], strict=True)]
    length = math.hypot(u, v)
    return [255 - length * (255 - h) if length <= 1 else 0.75 * h for h in hue]


wheel = wheel_list()
print(len(wheel), "colours")
for name, (u, v) in compass.items():
    print(f"{name:>6}", [round(c) for c in colour_of(u, v, wheel)])

# %% [markdown]
# Red means right, yellow down, cyan left, violet up. The course's `flow_to_image` colours a whole field, and rounds down, as the release does. Both agree on every third pixel of the estimate:

# %%
sparse = estimate[..., ::3, ::3].double()
ours = flow_to_image(sparse, max_norm=16)[0]
for y, x in np.ndindex(*sparse.shape[2:]):
    u, v = (sparse[0, :, y, x] / 16).tolist()
    # The two may round a colour that falls on a whole number to either side of it.
    assert (ours[:, y, x] - torch.tensor(colour_of(u, v, wheel))).abs().max() < 1 + 1e-9

# %% [markdown]
# > **Where the code leaves the release.** Its visualisation can clip long arrows, but clips both parts to $[0, \text{limit}]$ where $[-\text{limit}, \text{limit}]$ must be meant: every part to the left and every part up becomes 0. An arrow to the left comes out white, "no motion":

# %%
to_the_left = torch.tensor([-3.0, 0.0]).view(1, 2, 1, 1)
for name, low in {"in the release": 0, "as meant": -5}.items():
    print(name, flow_to_image(to_the_left.clamp(low, 5), max_norm=5).flatten().tolist())

# %% [markdown]
# ### The error of a flow
#
# Equations 1 and 2 in a loop, and two arrows to try it on: (3, 4) where (0, 0) is true, which ends 5 pixels away, and one that is exact.


# %%
def end_point_error_loop(flow, target, valid):
    total, count = 0.0, 0
    for y in range(flow.shape[2]):
        for x in range(flow.shape[3]):
            if valid[0, y, x]:
                du, dv = (flow - target)[0, :, y, x].tolist()
                total, count = total + math.sqrt(du**2 + dv**2), count + 1
    return total / count


two = torch.tensor([[3.0, 1.0], [4.0, 2.0]]).view(1, 2, 1, 2)
true_two = torch.tensor([[0.0, 1.0], [0.0, 2.0]]).view(1, 2, 1, 2)
both_valid = torch.ones(1, 1, 2, dtype=torch.bool)
assert end_point_error_loop(two, true_two, both_valid) == 2.5

# %% [markdown]
# The library first checks what it is given. Four mistakes would give a number that looks like a result, or NaN far from its cause: shapes that broadcast, a mask of whole numbers (PyTorch takes them for indices), a mask with no pixel, and a NaN. These checks serve all functions of the module:


# %% tags=["promote"]
def _check_flow(name: str, flow: Tensor) -> None:
    _check_floating(name, flow)
    if flow.ndim != 4 or flow.shape[1] != 2 or flow.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(flow.shape)}; expected (B, 2, H, W), none of B, H and W 0"
        )


def _check_finite(name: str, values: Tensor, fix: str) -> None:
    wrong = values.numel() - values.isfinite().sum().item()
    if wrong:
        raise ValueError(f"{name} has {wrong} numbers that are not finite; expected {fix}")


def _check_image(name: str, image: Tensor) -> None:
    _check_floating(name, image)
    if image.ndim != 4 or image.numel() == 0:
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}; expected (B, C, H, W), none of them 0"
        )


def _check_pair(names: tuple[str, str], flow: Tensor, other: Tensor) -> None:
    for name, values in zip(names, (flow, other), strict=True):
        _check_flow(name, values)
    if flow.shape != other.shape:
        raise ValueError(
            f"{names[1]} has shape {tuple(other.shape)}; "
            f"expected {tuple(flow.shape)}, that of {names[0]}"
        )


# %% tags=["promote"]
def end_point_errors(
    flow: Float[Tensor, "B 2 H W"], target: Float[Tensor, "B 2 H W"]
) -> Float[Tensor, "B H W"]:
    """Give the distance between the ends of estimated and true arrows (equation 1 of the lesson).

    flow     (B, 2, H, W) the estimate, in pixels
    target   (B, 2, H, W) the truth, in pixels
    returns  (B, H, W) in pixels, float32 for half precision; NaN where either is NaN

    Raises TypeError for whole numbers, ValueError for shapes that are wrong or differ.

    Convention: (u, v), u to the right, v down, from image 1 to image 2.
    """
    _check_pair(("flow", "target"), flow, target)
    difference = flow - target
    return (difference.float() if difference.dtype.itemsize < 4 else difference).norm(dim=1)


# %% tags=["check"]
assert end_point_errors(two, true_two).tolist() == [[[5, 0]]], "(3, 4) against (0, 0) is 5 px off"

# %% [markdown]
# A measured truth has holes. What stands in a hole differs from file to file: 0, a huge number, NaN. So what is not valid is set to 0 before anything is computed. A NaN there then reaches neither the mean nor, in training, a gradient.


# %% tags=["promote"]
def _check_mask(valid: Tensor, *shapes: tuple[int, ...]) -> None:
    check_tensor("valid", valid)
    if valid.dtype != torch.bool:
        raise TypeError(f"valid has dtype {valid.dtype}; expected torch.bool (valid >= 0.5)")
    if tuple(valid.shape) not in shapes:
        expected = " or ".join(map(str, shapes))
        raise ValueError(f"valid has shape {tuple(valid.shape)}; expected {expected}")


def _valid_errors(flow: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The errors, 0 at pixels that are not valid, and the mask of the valid ones."""
    _check_pair(("flow", "target"), flow, target)
    shape = (flow.shape[0], *flow.shape[2:])
    if valid is None:
        valid = torch.ones(shape, dtype=torch.bool, device=flow.device)
    _check_mask(valid, shape)
    if not valid.any():
        raise ValueError("valid is False everywhere; expected a pixel to count, or no mean exists")
    pixels = valid[:, None]
    flow, target = torch.where(pixels, flow, 0), torch.where(pixels, target, 0)
    for name, values in (("flow", flow), ("target", target)):
        _check_finite(name, values, "finite numbers wherever valid is True")
    return end_point_errors(flow, target), valid


# %% tags=["promote"]
def end_point_error(
    flow: Float[Tensor, "B 2 H W"],
    target: Float[Tensor, "B 2 H W"],
    valid: Bool[Tensor, "B H W"] | None = None,
) -> Float[Tensor, ""]:
    """Average the end-point errors over all valid pixels of a batch (equation 2 of the lesson).

    flow, target  (B, 2, H, W) the estimate and the truth, in pixels
    valid         (B, H, W) True where the truth is known; everywhere, when left out
    returns       the mean in pixels, pooled over the pixels of all images, as for Sintel

    Raises TypeError for a flow of whole numbers or a mask that is not bool, ValueError for other
    shapes, for a mask that is False everywhere, and for a valid number that is not finite.

    >>> flow = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    >>> end_point_error(flow, torch.zeros_like(flow)).item()
    5.0
    """
    errors, valid = _valid_errors(flow, target, valid)
    return errors.sum() / valid.sum()


# %% tags=["check"]
assert end_point_error(two, true_two).item() == 2.5, "the mean of 5 and 0"
only_first = torch.tensor([[[True, False]]])
assert end_point_error(two, true_two, only_first).item() == 5, "only valid pixels count"
holed = true_two.clone()
holed[..., 1] = math.nan
assert end_point_error(two, holed, only_first).item() == 5, "a NaN in a hole does not matter"

# %% [markdown]
# The loop agrees on the motorcycle:

# %%
slow = end_point_error_loop(estimate[..., ::4, ::4], truth[..., ::4, ::4], valid[..., ::4, ::4])
fast = end_point_error(estimate[..., ::4, ::4], truth[..., ::4, ::4], valid[..., ::4, ::4])
# Both sum over a thousand numbers, one in float32 and one in float64.
assert math.isclose(slow, fast, rel_tol=1e-5)
print(f"{fast:.3f} px")

# %% [markdown]
# ### Which mean?
#
# Over several images there are two means. For Sintel and FlyingChairs all pixels are pooled; for KITTI the means of the images are averaged. The two differ as soon as images have different numbers of valid pixels, as KITTI's do.


# %% tags=["promote"]
def end_point_error_per_image(
    flow: Float[Tensor, "B 2 H W"],
    target: Float[Tensor, "B 2 H W"],
    valid: Bool[Tensor, "B H W"] | None = None,
) -> Float[Tensor, " B"]:
    """Average the end-point errors over the valid pixels of each image; their mean is KITTI's EPE.

    Arguments and errors as for `end_point_error`; every image needs a valid pixel. The images of
    a data set may differ in size: collect the numbers of all, then take their mean.
    """
    errors, valid = _valid_errors(flow, target, valid)
    count = valid.flatten(1).sum(dim=1)
    if (count == 0).any():
        empty = count.argmin().item()
        raise ValueError(f"valid is False everywhere in image {empty}; expected a pixel to count")
    return errors.flatten(1).sum(dim=1) / count


# %% tags=["check"]
ends = torch.zeros(2, 2, 1, 4)
ends[0, 0], ends[1, 0] = 1.0, 9.0  # one image 1 px off everywhere, one 9 px off
seen = torch.tensor([[[True, True, True, True]], [[True, False, False, False]]])
still = torch.zeros(2, 2, 1, 4)
per_image = end_point_error_per_image(ends, still, seen)
assert per_image.tolist() == [1, 9], "one mean for each image"
print("pooled:", end_point_error(ends, still, seen).item(), " per image:", per_image.mean().item())

# %% [markdown]
# ### Shares: how many pixels are right?
#
# $S_n$ answers for a fixed distance. Higher is better, though RAFT's logs call it "1px", which reads like an error.


# %% tags=["promote"]
def share_within(
    flow: Float[Tensor, "B 2 H W"],
    target: Float[Tensor, "B 2 H W"],
    distance: float,
    valid: Bool[Tensor, "B H W"] | None = None,
) -> Float[Tensor, ""]:
    """Give the share of valid pixels with an error under a distance (equation 3 of the lesson).

    distance  in pixels; RAFT's logs give 1, 3 and 5
    returns   from 0 to 1, higher is better; pooled over the batch

    The other arguments and errors as for `end_point_error`; ValueError for a distance that is not
    positive.
    """
    if not distance > 0:
        raise ValueError(f"distance is {distance}; expected a positive number of pixels")
    errors, valid = _valid_errors(flow, target, valid)
    return ((errors < distance) & valid).sum() / valid.sum()


# %% tags=["check"]
assert share_within(two, true_two, 3).item() == 0.5, "one of two arrows ends within 3 px"
assert share_within(two, true_two, 5).item() == 0.5, "5 px off is not under 5"
assert share_within(two, true_two, 3, only_first).item() == 0, "only valid pixels count"

# %% [markdown]
# On the motorcycle, as a curve over all distances, with a dot at each of the three that RAFT's logs give:


# %% tags=["figure"]
def draw_shares():
    figure, axes = canvas(1, 1, 4.2, 2.2)
    distances = [n / 10 for n in range(1, 81)]
    shares = {n: share_within(estimate, truth, n, valid).item() for n in distances}
    axes.plot(shares.keys(), shares.values(), color=COLOURS["flow"])
    for n in (1, 3, 5):
        axes.plot(n, shares[n], "o", color=COLOURS["flow"])
        axes.annotate(
            f"{shares[n]:.0%}", (n, shares[n]), (4, -12), textcoords="offset points", fontsize=8
        )
    axes.set(xlabel="distance n (px)", xlim=(0, 8))
    axes.set(ylabel="share S_n of valid pixels", ylim=(0, 1.03))
    return figure


show(
    draw_shares(),
    alt="The share of pixels within n pixels of the truth rises steeply up to one pixel and then "
    "slowly, with dots at 1, 3 and 5 pixels",
)

# %% [markdown]
# The curve rises steeply up to a pixel, then slowly: most arrows are right to a pixel, and of the rest many are far off. The mean $E$ is made by the second kind, $S_1$ counts the first.
#
# $F$ forgives long arrows: where the truth is 100 pixels long, an error of 4 is within 5 % and no outlier. One pixel at a time:


# %%
def is_outlier(u, v, true_u, true_v):
    error = math.hypot(u - true_u, v - true_v)
    return error > 3 and error > 0.05 * math.hypot(true_u, true_v)


cases = [(4, 0, 0, 0), (3, 0, 0, 0), (104, 0, 100, 0), (106, 0, 100, 0), (0, 66.2, 0, 63)]
for u, v, true_u, true_v in cases:
    print(f"({u}, {v}) for ({true_u}, {true_v}):", is_outlier(u, v, true_u, true_v))


# %% tags=["promote", "exercise"]
def outlier_rate(
    flow: Float[Tensor, "B 2 H W"],
    target: Float[Tensor, "B 2 H W"],
    valid: Bool[Tensor, "B H W"] | None = None,
) -> Float[Tensor, ""]:
    """Give the share of valid pixels off by over 3 px and over 5 % (equation 3 of the lesson).

    returns  from 0 to 1, lower is better; 100 times it is KITTI's F1-all, in percent. Pooled over
             the valid pixels of the whole batch.

    Arguments and errors as for `end_point_error`. Source: Menze and Geiger, Object Scene Flow for
    Autonomous Vehicles, CVPR 2015.
    """
    errors, valid = _valid_errors(flow, target, valid)
    outlier = (errors > 3) & (errors > 0.05 * target.norm(dim=1))
    return (outlier & valid).sum() / valid.sum()


# %% tags=["check"]
found, true = torch.tensor(cases, dtype=torch.float32).T.reshape(2, 1, 2, 1, 5)
for k, case in enumerate(cases):
    alone = torch.arange(5).view(1, 1, 5) == k
    one, expected = outlier_rate(found, true, alone).item(), float(is_outlier(*case))
    assert one == expected, f"{case[:2]} for {case[2:]} alone: the rate is {expected}, not {one}"
rate = outlier_rate(found, true).item()
assert math.isclose(rate, 3 / 5, rel_tol=1e-6), f"3 of 5 cases are outliers: 0.6, not {rate:.2f}"
true[..., 4] = math.nan
rate = outlier_rate(found, true, torch.arange(5).view(1, 1, 5) < 4).item()
assert rate == 0.5, "a NaN in a hole does not matter: valid decides which pixels count"
# All of image 1 is wrong, and one of its four pixels is valid.
images = torch.stack([torch.zeros(2, 1, 4), torch.full((2, 1, 4), 9.0)])
seen = torch.tensor([[[True, True, True, True]], [[True, False, False, False]]])
pooled = outlier_rate(images, torch.zeros_like(images), seen).item()
assert math.isclose(pooled, 1 / 5, rel_tol=1e-6), "pooled over the valid pixels of all images"

# %% [markdown]
# ### Without a truth: read image 2 back
#
# A [warp](../6_bilinear_sampling/2_warps.ipynb) reads: each pixel of the output says where. A flow from image 1 to image 2 says it for the pixels of image 1. So the image to warp with it is image 2, and the result lies on image 1 (equation 4). Users of RAFT ask which image to warp, and which way its flow points (issue 158 of its repository).


# %% tags=["promote"]
def photometric_errors(
    image1: Float[Tensor, "B C H W"],
    image2: Float[Tensor, "B C H W"],
    flow: Float[Tensor, "B 2 H W"],
) -> Float[Tensor, "B H W"]:
    """Compare image 1 with image 2 read through the flow (equation 4 of the lesson).

    image1, image2  (B, C, H, W) in any unit
    flow            (B, 2, H, W) from image 1 to image 2, in pixels
    returns         (B, H, W) the absolute difference, averaged over channels, in the images' unit;
                    NaN where the flow leaves the image

    Raises TypeError for whole numbers, ValueError for shapes that are wrong or differ.

    Convention: (u, v), u to the right, v down, the centre of the top-left pixel at (0, 0).
    """
    _check_flow("flow", flow)
    for name, image in (("image1", image1), ("image2", image2)):
        _check_floating(name, image)
        if image.ndim != 4 or image.shape != (len(flow), image1.shape[1], *flow.shape[2:]):
            raise ValueError(
                f"{name} has shape {tuple(image.shape)}; expected (B, C, H, W), the same for both, "
                f"with B, H and W as in flow, {tuple(flow.shape)}"
            )
    pixels = flow_grid(flow)
    warped = warp(image2, pixels)
    difference = (warped - image1).abs().mean(dim=1)
    return difference.masked_fill(~inside(pixels, *flow.shape[2:]), math.nan)


# %% tags=["check"]
ramp = torch.arange(10.0).expand(1, 1, 4, 10)
right = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 10)
# The ramp that moved right by 2 is smaller by 2 at every pixel.
assert photometric_errors(ramp, ramp - 2, right)[..., :8].abs().max() < 1e-5, "the flow is right"
assert photometric_errors(ramp, ramp - 2, -right)[..., 2:].sub(4).abs().max() < 1e-5, "it is not"
assert photometric_errors(ramp, ramp - 2, right)[..., 8:].isnan().all(), "out of the image: NaN"

# %% [markdown]
# Three flows for the motorcycle: none, the true one, and the true one with its sign turned. The difference tells the right direction from the wrong one:

# %%
for name, flow in {"no motion": 0 * truth, "the truth": truth, "turned": -truth}.items():
    difference = photometric_errors(image1, image2, flow)[valid]
    print(f"{name:>9}: {difference.nanmean():5.1f} grey levels of 255")

# %% [markdown]
# ### There and back
#
# Equation 5 for arrows of whole pixels, as in the second figure: go from $q$ along the forward flow, take the backward flow found there, add.


# %%
def round_trip_loop(forward, backward):
    H, W = forward.shape[2:]
    misses = torch.full((1, H, W), math.nan)
    for y in range(H):
        for x in range(W):
            u, v = (int(part) for part in forward[0, :, y, x])
            if 0 <= x + u < W and 0 <= y + v < H:
                back_u, back_v = backward[0, :, y + v, x + u].tolist()
                misses[0, y, x] = math.hypot(u + back_u, v + back_v)
    return misses


print(f"{(round_trip_loop(toy_forward, toy_backward) > 0).sum()} pixels do not return")

# %% [markdown]
# Real arrows end between pixels, so the backward flow is sampled there: the forward flow warps it like an image of two channels.


# %% tags=["promote", "exercise"]
def round_trip_errors(
    forward: Float[Tensor, "B 2 H W"], backward: Float[Tensor, "B 2 H W"]
) -> Float[Tensor, "B H W"]:
    """Measure by how much the way there and back misses its start (equation 5 of the lesson).

    forward   (B, 2, H, W) from image 1 to image 2, in pixels
    backward  (B, 2, H, W) from image 2 to image 1, in pixels
    returns   (B, H, W) on image 1, in pixels; NaN where the forward flow leaves image 2

    Raises TypeError for whole numbers, ValueError for shapes that are wrong or differ.

    Convention: (u, v), u to the right, v down, the centre of the top-left pixel at (0, 0).
    """
    _check_pair(("forward", "backward"), forward, backward)
    pixels = flow_grid(forward)
    misses = (forward + warp(backward, pixels)).norm(dim=1)
    return misses.masked_fill(~inside(pixels, *forward.shape[2:]), math.nan)


# %% tags=["check"]
slide = torch.tensor([1.5, -0.25]).view(1, 2, 1, 1).expand(1, 2, 6, 7)
there_and_back = round_trip_errors(slide, -slide)
assert there_and_back.shape == (1, 6, 7), "one number for each pixel of image 1"
assert there_and_back[:, 1:, :5].abs().max() < 1e-5, "a slide and its opposite add up to 0"
assert there_and_back[:, :, 6].isnan().all(), "the last column leaves image 2: NaN"
away = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 6, 7)
assert round_trip_errors(0 * away, away).sub(5).abs().max() < 1e-5, "(3, 4) misses by 5, its length"
grow = 0.5 * pixel_grid(6, 7).permute(2, 0, 1)[None]  # from q to 1.5 q, and back by a third
assert round_trip_errors(grow, -grow / 1.5)[:, :4, :4].abs().max() < 1e-5, "b is read at q + f(q)"
misses, by_loop = (f(toy_forward, toy_backward) for f in (round_trip_errors, round_trip_loop))
assert torch.equal(misses.isnan(), by_loop.isnan()), "NaN where an arrow leaves image 2, only there"
# Positions on pixel centres are hit to about 1e-6 px, on arrows 4 px long.
assert (misses - by_loop).nan_to_num().abs().max() < 1e-4, "differs from the loop on the block"

# %% [markdown]
# Equation 6 draws the line above which a miss counts:


# %% tags=["promote"]
def occluded(
    forward: Float[Tensor, "B 2 H W"], backward: Float[Tensor, "B 2 H W"]
) -> Bool[Tensor, "B H W"]:
    """Mark the pixels of image 1 that image 2 does not show (equation 6 of the lesson).

    forward, backward  (B, 2, H, W) as for `round_trip_errors`, which names the errors raised
    returns            (B, H, W) True where forward and backward flow disagree by more than their
                       length explains, where the forward flow leaves image 2, and at NaN

    A wrong flow is marked as well: the two cannot be told apart. Source of the rule: Sundaram,
    Brox and Keutzer, Dense point trajectories by GPU-accelerated large displacement optical flow,
    ECCV 2010.
    """
    misses = round_trip_errors(forward, backward)
    back = warp(backward, flow_grid(forward))
    lengths = forward.square().sum(dim=1) + back.square().sum(dim=1)
    # Written as "not small", so that a NaN counts as occluded.
    return ~(misses.square() <= 0.01 * lengths + 0.5)


# %% tags=["check"]
hidden = occluded(toy_forward, toy_backward)
behind = (toy_backward[:, 0] != 0) & (toy_forward[:, 0] == 0)  # under the block's new place
assert torch.equal(hidden, behind), "exactly the background that the block covers"

# %% [markdown]
# ### Padding to a multiple of 8
#
# The motorcycle at 1/4 is 125 × 185 pixels. The border is repeated until both sides fit, and the flow is cut afterwards. The release puts half of the new rows above and half below for Sintel, and all of them below for KITTI. A loop first; from the four pixels below it makes three columns and one row more:


# %%
def pad_loop(image, left, right, top, bottom):
    """Each new pixel is the nearest old one."""
    H, W = image.shape[-2:]
    rows = [min(max(y, 0), H - 1) for y in range(-top, H + bottom)]
    columns = [min(max(x, 0), W - 1) for x in range(-left, W + right)]
    return image[..., rows, :][..., columns]


pad_loop(torch.tensor([[1, 2], [3, 4]]), left=1, right=2, top=0, bottom=1)


# %% tags=["promote", "exercise"]
def pad(
    image: Float[Tensor, "B C H W"], mode: str = "sintel", multiple: int = 8
) -> tuple[Float[Tensor, "B C h w"], tuple[int, int, int, int]]:
    """Repeat the border until height and width are multiples of 8 (equation 7 of the lesson).

    image     (B, C, H, W) in any unit
    mode      "sintel" splits the padding between both sides, left and top getting the smaller
              half; "kitti" splits the width alike and puts all of the height at the bottom
    multiple  of what; RAFT needs 8
    returns   the larger image, and (left, right, top, bottom) in pixels, for `unpad`

    Raises TypeError for whole numbers, ValueError for another shape, mode or multiple.

    >>> padded, padding = pad(torch.zeros(1, 3, 436, 1024))
    >>> tuple(padded.shape), padding
    ((1, 3, 440, 1024), (0, 0, 2, 2))
    """
    _check_image("image", image)
    if mode not in ("sintel", "kitti"):
        raise ValueError(f"mode is {mode!r}; expected 'sintel' or 'kitti'")
    multiple = whole_number("multiple", multiple, least=1)
    H, W = image.shape[-2:]
    rows, columns = -H % multiple, -W % multiple
    left, top = columns // 2, rows // 2 if mode == "sintel" else 0
    padding = (left, columns - left, top, rows - top)
    return F.pad(image, padding, mode="replicate"), padding


# %% tags=["check"]
odd = torch.rand(1, 3, 13, 21)
for mode, expected in {"sintel": (1, 2, 1, 2), "kitti": (1, 2, 0, 3)}.items():
    padded, padding = pad(odd, mode)
    assert tuple(padding) == expected, f"{mode}: left, right, top, bottom are {expected}"
    assert padded.shape == (1, 3, 16, 24), "both sides become multiples of 8"
    assert torch.equal(padded, pad_loop(odd, *expected)), "the border is repeated"
assert tuple(pad(torch.rand(1, 1, 16, 8))[1]) == (0, 0, 0, 0), "what fits is left as it is"
assert pad(odd, multiple=5)[0].shape == (1, 3, 15, 25), "multiples of 5"
with shows_error(ValueError):
    pad(odd, "chairs")


# %% tags=["promote"]
def unpad(
    image: Float[Tensor, "B C h w"], padding: tuple[int, int, int, int]
) -> Float[Tensor, "B C H W"]:
    """Cut off what `pad` has added, from an image or from a flow of that size.

    padding  (left, right, top, bottom) in pixels, as `pad` returns it

    Raises ValueError for padding that is not four whole numbers or leaves no pixel.
    """
    _check_image("image", image)
    if len(padding) != 4:
        raise ValueError(f"padding is {padding}; expected (left, right, top, bottom)")
    left, right, top, bottom = (whole_number("padding", each, least=0) for each in padding)
    H, W = image.shape[-2:]
    if left + right >= W or top + bottom >= H:
        raise ValueError(f"padding is {tuple(padding)}; expected less than the image, {H} × {W}")
    return image[..., top : H - bottom, left : W - right]


# %% tags=["check"]
for mode in ("sintel", "kitti"):
    assert torch.equal(unpad(*pad(odd, mode)), odd), "unpad undoes pad"


# %% tags=["figure"]
def draw_padding(image):
    figure, axes = canvas(1, 2, 6.0, 2.3)
    H, W = image.shape[-2:]
    for each, mode in zip(axes, ("sintel", "kitti"), strict=True):
        padded, (left, right, top, bottom) = pad(image, mode)
        each.imshow(to_picture(padded))
        corner = (left - 0.5, top - 0.5)
        each.add_patch(Rectangle(corner, W, H, fill=False, edgecolor="white", linewidth=2))
        sides = f"left {left}, right {right}, top {top}, bottom {bottom}"
        each.set(title=f"{mode}: {H} × {W} pixels, padding p:\n{sides}")
        each.set(xlabel="x (px)", ylabel="y (px)", yticks=(0, 5, 10, 15))
    return figure


show(
    draw_padding(image1[..., 60:73, 56:77]),
    alt="A detail of the motorcycle with a frame around the original pixels: the new rows lie above "
    "and below it in one picture, all below it in the other",
    photo=True,
)

# %% [markdown]
# Inside the white frame are the pixels that were there; outside it the colours of the border go on.
#
# > **Where the code leaves the release.** There any mode but "sintel" means "kitti", so a typing error pads in another way without a word; here it is refused. The numbers of the Sintel leaderboard also need the split padding (issue 21 of the repository).

# %% [markdown]
# ### A warm start for the next pair
#
# In a video the motion of one moment resembles that of the next, so RAFT can begin with the flow of the pair before instead of with 0. But that flow is written on the pixels of the old image 1, and things have moved. So each arrow is carried to its own end, where its pixel is now, and each pixel takes the arrow nearest to it. Equation 8, pixel by pixel; an arrow that lands outside, or on row 0 or column 0, is dropped as in the release.


# %%
def forward_interpolate_loop(flow):
    H, W = flow.shape[2:]
    landed = []
    for y in range(H):
        for x in range(W):
            u, v = flow[0, :, y, x].tolist()
            if 0 < x + u < W and 0 < y + v < H:
                landed.append((x + u, y + v, u, v))
    start = torch.zeros_like(flow)
    for y in range(H):
        for x in range(W):
            nearest = min(landed, key=lambda arrow: math.hypot(arrow[0] - x, arrow[1] - y))
            start[0, :, y, x] = torch.tensor(nearest[2:])
    return start


# %% [markdown]
# Here each pixel looks through all arrows: $(HW)^2$ distances. A **k-d tree**, which cuts the plane into boxes, finds the nearest after a few comparisons; SciPy's `NearestNDInterpolator` uses one.


# %% tags=["promote", "exercise"]
def forward_interpolate(flow: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B 2 H W"]:
    """Carry a flow along itself, as a start for the next pair (equation 8 of the lesson).

    flow     (B, 2, H, W) between the frames before, in pixels; RAFT passes its coarse flow
    returns  (B, 2, H, W) on the pixels of the frame in between: at each the arrow that lands
             nearest, of those with 0 < x < W and 0 < y < H; 0 where none does

    No gradient flows through. Raises TypeError for whole numbers, ValueError for another shape and
    for a number that is not finite.

    Convention: (u, v), u to the right, v down, the centre of the top-left pixel at (0, 0).
    """
    from scipy.interpolate import NearestNDInterpolator

    _check_flow("flow", flow)
    _check_finite("flow", flow, "a start for every pixel")
    H, W = flow.shape[2:]
    arrows = flow.detach().permute(0, 2, 3, 1).cpu().double()
    pixels = pixel_grid(H, W, dtype=torch.float64)
    start = torch.zeros_like(arrows)
    for k, landed in enumerate(pixels + arrows):
        x, y = landed.unbind(-1)
        kept = (x > 0) & (x < W) & (y > 0) & (y < H)
        if kept.any():
            nearest = NearestNDInterpolator(landed[kept].numpy(), arrows[k][kept].numpy())
            start[k] = torch.from_numpy(nearest(pixels.numpy()))
    return start.permute(0, 3, 1, 2).to(flow)


# %% tags=["check"]
labels = 2 + 0.01 * torch.arange(8.0).expand(1, 1, 5, 8)  # u of each column, all about 2 px
shifted = forward_interpolate(torch.cat([labels, 0 * labels], dim=1))
assert shifted.shape == (1, 2, 5, 8), "a flow of the same size"
assert torch.equal(shifted[0, 0, :, 3:], labels[0, 0, :, 1:6]), "an arrow is found where it ends"
winds = 3 * torch.randn(1, 2, 9, 12, generator=torch.Generator().manual_seed(0))
assert torch.equal(forward_interpolate(winds), forward_interpolate_loop(winds)), (
    "differs from the loop: which arrows are kept, and which of them ends nearest?"
)
batch = torch.cat([winds, 0.5 * winds])
for flow, start in zip(batch, forward_interpolate(batch), strict=True):
    assert torch.equal(start[None], forward_interpolate_loop(flow[None])), "each flow by itself"
edge = torch.zeros(1, 2, 3, 4)
edge[0, 0] = torch.tensor([0.75, 0.75, 0.75, 0.2])
edge[0, 0, 0], edge[0, :, 1:, 0] = 0.5, torch.tensor([0.0, 0.25])[:, None]
u, v = forward_interpolate(edge)[0]
assert (u != 0.5).all(), "an arrow that lands on row 0 is dropped: 0 < y"
assert (v != 0.25).all(), "an arrow that lands on column 0 is dropped: 0 < x"
assert math.isclose(u[1, 3], 0.2, rel_tol=1e-6), "one that lands at x = 3.2 of 4 is kept"
away = torch.full((1, 2, 4, 4), 100.0)
assert forward_interpolate(away).abs().sum() == 0, "0 where no arrow stays in the picture"


# %% tags=["figure"]
def draw_start(flow):
    figure, axes = canvas(1, 2, 6.0, 2.2, sharey=True)
    pictures = {"flow f of the last pair": flow, "start g for the next": forward_interpolate(flow)}
    for each, (title, arrows) in zip(axes, pictures.items(), strict=True):
        each.imshow(arrows[0].norm(dim=0), cmap="gray_r", vmin=0, vmax=9)
        draw_arrows(each, arrows, step=2)
        each.set(title=title, xlabel="x (px)")
    axes[0].set_ylabel("y (px)")
    return figure


x, y = pixel_grid(12, 18).unbind(-1)
hill = 4.7 * torch.exp(-((x - 5) ** 2 + (y - 5) ** 2) / 12)
show(
    draw_start(torch.stack([hill, 0.3 * hill])[None]),
    alt="A round hill of arrows to the right, and the same hill further to the right, with a steep "
    "front and a long tail",
    photo=True,
)

# %% [markdown]
# The dark hill is a group of fast pixels. In the start it stands where the group has gone, steeper in front, where fast arrows have caught up with slow ones. Behind it the nearest arrows fill the gap.
#
# Where two arrows land on one pixel, the nearer end decides, and not which of the two things is in front. So the block of the second figure, which keeps its shape, loses some of its 20 arrows to the background. A start may be wrong in places, since RAFT goes on from there. The release uses this **warm start** on Sintel only; it helps on the test films, and not clearly on the training films (issue 62).

# %%
carried = forward_interpolate(toy_forward)[0, 0]
print(f"arrows of the block: {(toy_forward[0, 0] > 0).sum()} before, {(carried > 0).sum()} after")

# %% [markdown]
# ### A file for a field: `.flo`
#
# A flow is two numbers a pixel, and an image file with 256 levels cannot hold them. The Middlebury benchmark's format can. First come four bytes, `PIEH`; read as a number they are 202021.25, and a program that takes bytes in the wrong order sees another number. Then come width and height, then $u$ and $v$ of each pixel in turn, row by row. Written by hand for one arrow:

# %%
by_hand = b"PIEH" + struct.pack("<2i", 1, 1) + struct.pack("<2f", 3.0, -0.5)
print(by_hand)
assert struct.unpack("<f", by_hand[:4]) == (202021.25,)

# %% [markdown]
# For the library: a reader that checks what the file announces, and a writer that leaves a whole file or none. `write_whole` writes to a temporary file beside the target, which then takes its name, so a full disk or a stopped program leaves the old file as it was.


# %% tags=["promote"]
_FLO_MARK = b"PIEH"  # 202021.25 as a float32


def _one_flow(flow: Tensor) -> Tensor:
    _check_floating("flow", flow)
    if flow.ndim == 4 and len(flow) == 1:
        flow = flow[0]
    if flow.ndim != 3 or flow.shape[0] != 2 or flow.numel() == 0:
        raise ValueError(
            f"flow has shape {tuple(flow.shape)}; expected (2, H, W) or (1, 2, H, W), H and W not 0"
        )
    return flow.detach().cpu().float()


def write_flo(path: str | Path, flow: Float[Tensor, "2 H W"] | Float[Tensor, "1 2 H W"]) -> None:
    """Write a flow in pixels as a .flo file, whole or not at all.

    The numbers are kept as float32, all of them: also a NaN, and numbers over 10⁹, which mean
    "unknown" in Middlebury's own files. Missing folders are made. Raises TypeError for whole
    numbers, ValueError for another shape, OSError where no file can be written.

    Convention: (u, v), u to the right, v down. Source: Baker et al., A Database and Evaluation
    Methodology for Optical Flow, IJCV 2011.
    """
    vectors = _one_flow(flow).permute(1, 2, 0).numpy().astype("<f4")
    height, width = vectors.shape[:2]
    write_whole(Path(path), _FLO_MARK + struct.pack("<2i", width, height) + vectors.tobytes())


# %% tags=["promote"]
def read_flo(path: str | Path) -> Float[Tensor, "1 2 H W"]:
    """Read a .flo file: (1, 2, H, W), float32, in pixels, every number as it was written.

    Raises FileNotFoundError for a path without a file, ValueError for a file that is no .flo file
    or is cut off.

    Convention: (u, v), u to the right, v down.
    """
    data = Path(path).read_bytes()
    if len(data) < 12 or data[:4] != _FLO_MARK:
        raise ValueError(
            f"path is {str(path)!r}, a file of {len(data)} bytes that begins with {data[:4]!r}; "
            f"expected a .flo file, which begins with {_FLO_MARK!r}"
        )
    width, height = struct.unpack("<2i", data[4:12])
    expected = 12 + 8 * width * height
    if min(width, height) < 1 or len(data) != expected:
        raise ValueError(
            f"path is {str(path)!r}, a file of {len(data)} bytes; expected {expected} "
            f"for the {width} × {height} arrows that it announces"
        )
    vectors = np.frombuffer(data, "<f4", offset=12).reshape(1, height, width, 2)
    return torch.from_numpy(vectors.astype(np.float32)).permute(0, 3, 1, 2).contiguous()


# %% tags=["check"]
folder = Path(tempfile.mkdtemp())
write_flo(folder / "one.flo", torch.tensor([3.0, -0.5]).view(2, 1, 1))
assert (folder / "one.flo").read_bytes() == by_hand, "the same bytes as by hand"
write_flo(folder / "motorcycle.flo", estimate)
assert torch.equal(read_flo(folder / "motorcycle.flo"), estimate), "reading gives back every number"

# %% [markdown]
# > **Where the code leaves the release.** Its reader turns an array of one number into an `int`. NumPy had deprecated that and refuses it from version 2.4 on, so the released evaluation stops with a TypeError on a new installation. The reader also returns `None` after a wrong mark, and does not notice a file that is cut off.

# %% [markdown]
# ### A flow inside a PNG: KITTI
#
# KITTI packs a flow into a picture of 16 bits a channel: red holds $u$ and green $v$, each as the number $a$ of equation 9, and blue says whether the pixel is valid. The steps are 1/64 pixel, the range is −512 to 512. A few values of $u$, there and back:


# %%
def kitti_number(u):
    return math.floor(64 * u + 2**15)


for u in (0.0, 1.0, 0.99, -0.99, 100.4, -512.0):
    a = kitti_number(u)
    print(f"u = {u:7.2f}   a = {a:5d}   read back {(a - 2**15) / 64:10.4f}")


# %% tags=["promote"]
def write_kitti_flow(
    path: str | Path,
    flow: Float[Tensor, "2 H W"] | Float[Tensor, "1 2 H W"],
    valid: Bool[Tensor, "1 H W"] | Bool[Tensor, "H W"] | None = None,
) -> None:
    """Write a flow in pixels as KITTI's PNG of 16 bits, whole or not at all (equation 9).

    valid  (1, H, W) or (H, W) which pixels count; all, when left out. The others are stored as 0.

    Steps of 1/64 px: the fraction is cut off, so that what is read is smaller by less than a step.
    Raises TypeError for whole numbers or a mask that is not bool, ValueError for another shape and
    for a valid number outside [−512, 512), OSError where no file can be written.

    Convention: (u, v), u to the right, v down. Source: Menze and Geiger, CVPR 2015.
    """
    import png

    u, v = _one_flow(flow)
    valid = torch.ones_like(u, dtype=torch.bool) if valid is None else valid
    _check_mask(valid, tuple(u.shape), (1, *u.shape))
    valid = valid.reshape(u.shape).cpu()
    vectors = torch.stack([u, v]).where(valid, 0)
    if not ((vectors >= -512) & (vectors < 512)).all():
        raise ValueError("flow has a valid number outside [−512, 512); KITTI's files hold no other")
    # In float32 a number that lies right below a step may round up to it.
    stored = (64 * vectors + 2**15).clamp(max=2**16 - 1).where(valid, 0)
    channels = torch.cat([stored, valid[None].float()]).numpy().astype(np.uint16)
    height, width = u.shape
    rows = channels.transpose(1, 2, 0).reshape(height, 3 * width)
    buffer = io.BytesIO()
    png.Writer(width, height, greyscale=False, bitdepth=16).write(buffer, rows)
    write_whole(Path(path), buffer.getvalue())


# %% tags=["promote"]
def read_kitti_flow(path: str | Path) -> tuple[Float[Tensor, "1 2 H W"], Bool[Tensor, "1 H W"]]:
    """Read KITTI's PNG of 16 bits: the flow in pixels, and where it is valid (equation 9).

    returns  flow (1, 2, H, W), float32, 0 where it is not valid; valid (1, H, W), bool

    Raises FileNotFoundError for a path without a file, ValueError for a file that is not a whole
    PNG of three channels with 16 bits each.

    Convention: (u, v), u to the right, v down.
    """
    import png

    data = Path(path).read_bytes()
    try:
        width, height, rows, about = png.Reader(bytes=data).read()
        values = np.vstack([np.asarray(row) for row in rows])
    except Exception as error:  # A damaged file brings out errors of many types.
        raise ValueError(f"path is {str(path)!r}; expected a whole PNG, but: {error}") from error
    if (about["bitdepth"], about["planes"]) != (16, 3):
        raise ValueError(
            f"path is {str(path)!r}, a PNG of {about['planes']} channels with {about['bitdepth']} "
            "bits each; expected 3 channels with 16"
        )
    stored = torch.from_numpy(values.astype(np.float32)).view(1, height, width, 3)
    stored = stored.permute(0, 3, 1, 2)
    valid = stored[:, 2] > 0
    return ((stored[:, :2] - 2**15) / 64).where(valid[:, None], 0).contiguous(), valid


# %% tags=["check"]
write_kitti_flow(folder / "motorcycle.png", truth, valid)
again, again_valid = read_kitti_flow(folder / "motorcycle.png")
assert torch.equal(again_valid, valid), "the mask survives"
lost = (truth - again)[valid[:, None].expand_as(truth)]
# 64 u + 2¹⁵ is rounded to 1/256 in float32, half of which may lift a number over the next step.
assert lost.min() >= -1 / 2**15 and lost.max() < 1 / 64, "a number is cut by less than 1/64 px"
write_kitti_flow(folder / "again.png", again, again_valid)
assert torch.equal(read_kitti_flow(folder / "again.png")[0], again), "a second turn cuts nothing"
for name in ("motorcycle.flo", "motorcycle.png"):
    print(f"{name}: {(folder / name).stat().st_size / 1000:.0f} kB")


# %% tags=["figure"]
def draw_cut():
    u = torch.linspace(-2 / 64, 2 / 64, 201)
    write_kitti_flow(folder / "steps.png", torch.stack([u, u])[:, None])
    back = read_kitti_flow(folder / "steps.png")[0][0, 0, 0]
    figure, axes = canvas(1, 1, 3.6, 2.3)
    axes.plot(u, 64 * u, ":", color="black", label="64 u")
    axes.plot(u, 64 * back, drawstyle="steps-mid", color=COLOURS["flow"], label="stored a − 2¹⁵")
    axes.set(xlabel="u (px)", ylabel="steps of 1/64 px", yticks=range(-2, 3))
    axes.legend()
    return figure


show(
    draw_cut(),
    alt="A dotted line of 64 u against u, and the staircase of stored numbers, nowhere above it",
)

# %% [markdown]
# The staircase does not rise above the line: writing cuts off instead of rounding. So what is read is on average half a step, 1/128 pixel, further to the left and up than what was written. That does not matter for an error measured in whole pixels; it does for the mean of many files.
#
# Two habits of the release are worth knowing. Its writer marks every pixel as valid. And it writes through OpenCV, which keeps channels in the order blue, green, red. Its code therefore turns the array round: red is the first channel in the file, and the last in the program.

# %% [markdown]
# ### Estimates without learning
#
# What must a learned method beat? Three baselines:
#
# - **zero**: nothing moves. Its end-point error is the mean length of the true flow, so it says how hard a data set is.
# - **TV-L1** (Zach, Pock and Bischof 2007) looks for the flow of least energy, as in [lesson 1](1_paper.ipynb), with sums of lengths in place of sums of squares: of the differences of brightness, and of the jumps between neighbouring arrows, the **total variation** of the flow. A large jump then costs no more than small ones that add up to it, so the field may have sharp borders.
# - **iLK**, iterative Lucas–Kanade (Le Besnerais and Champagnat 2005): all pixels of a small window share one arrow, the one that makes the windows most alike. It is found by least squares, then again after warping.
#
# Both work from coarse images to fine ones, on grey values, and come with scikit-image, which returns the part along rows first: $(v, u)$.


# %% tags=["promote"]
_CLASSICAL = ("zero", "tv-l1", "ilk")


def _grey(image: Tensor) -> np.ndarray:
    """The brightness of one image (3, H, W), as scikit-image weighs it, from 0 to 1."""
    weights = image.new_tensor([0.2125, 0.7154, 0.0721])[:, None, None]
    return (image * weights).sum(dim=0).div(255).cpu().numpy()


# %% tags=["promote"]
def classical_flow(
    method: str, image1: Float[Tensor, "B 3 H W"], image2: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, "B 2 H W"]:
    """Estimate the flow from image 1 to image 2 without learning, at scikit-image's defaults.

    method          "zero" (nothing moves), "tv-l1" or "ilk"
    image1, image2  (B, 3, H, W) in [0, 255]
    returns         (B, 2, H, W) in pixels, on the device and in the dtype of image 1

    Raises ValueError for another method, for images of wrong or different shapes and for a number
    that is not finite, TypeError for images of whole numbers.

    Convention: (u, v), u to the right, v down, from image 1 to image 2.
    Source: scikit-image's `registration.optical_flow_tvl1` and `registration.optical_flow_ilk`.
    """
    if method not in _CLASSICAL:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(_CLASSICAL)}")
    for name, image in (("image1", image1), ("image2", image2)):
        _check_image(name, image)
        _check_finite(name, image, "values in [0, 255]")
    if image1.shape != image2.shape or image1.shape[1] != 3:
        shapes = f"{tuple(image1.shape)} and {tuple(image2.shape)}"
        raise ValueError(f"image1 and image2 have shapes {shapes}; expected (B, 3, H, W) for both")
    if method == "zero":
        return torch.zeros_like(image1[:, :2])

    from skimage.registration import optical_flow_ilk, optical_flow_tvl1

    estimate = {"tv-l1": optical_flow_tvl1, "ilk": optical_flow_ilk}[method]
    flows = []
    for first, second in zip(image1.detach(), image2.detach(), strict=True):
        v, u = estimate(_grey(first), _grey(second))
        flows.append(torch.from_numpy(np.stack([u, v])).to(image1))
    return torch.stack(flows)


# %% tags=["check"]
texture = photograph("gravel", height=96)
shifted = torch.roll(texture, (1, 2), dims=(2, 3))  # down by 1, to the right by 2
for method in ("zero", "tv-l1", "ilk"):
    flow = classical_flow(method, texture, shifted)
    middle = flow[..., 24:72, 24:72].mean(dim=(0, 2, 3))
    print(f"{method:>5}: u, v = {middle[0]:.2f}, {middle[1]:.2f}")
    # A tenth of a pixel: both methods stop before they have converged fully.
    if method != "zero":
        assert torch.allclose(middle, torch.tensor([2.0, 1.0]), atol=0.1)

# %% [markdown]
# ## On real input
#
# ### Three baselines on the motorcycle
#
# At a quarter and at half of its size. Half has twice as many pixels a side as a quarter, so every arrow is twice as long.

# %%
METHODS = ("zero", "tv-l1", "ilk")
scenes = {"1/4": motorcycle(4), "1/2": motorcycle(2)}
flows, seconds = {}, {}
for size, (first, second, *_) in scenes.items():
    for method in METHODS:
        begin = time.perf_counter()
        flows[size, method] = classical_flow(method, first, second)
        seconds[size, method] = time.perf_counter() - begin

# %%
print("size method    E (px)   1 px   3 px   5 px      F  seconds here")
for (size, method), flow in flows.items():
    _, _, target, known = scenes[size]
    E = end_point_error(flow, target, known)
    shares_135 = [share_within(flow, target, n, known) for n in (1, 3, 5)]
    print(f"{size:4} {method:6} {E:9.2f}", *(f"{s:6.0%}" for s in shares_135), end=" ")
    print(f"{outlier_rate(flow, target, known):6.0%} {seconds[size, method]:8.1f}")

# %%
E = {key: end_point_error(flow, *scenes[key[0]][2:]).item() for key, flow in flows.items()}
assert all(E[size, "ilk"] < E[size, "tv-l1"] < E[size, "zero"] / 3 for size in scenes)
for method in METHODS:
    print(f"{method:>5}: E grows by {E['1/2', method] / E['1/4', method]:.2f} at twice the size")

# %% [markdown]
# Every measure gives the same order. At twice the size the error of all three is about twice as large: an end-point error means nothing without the size of the image. Compare it only on the same images at the same size.


# %% tags=["figure"]
def draw_baselines(size):
    first, _, target, known = scenes[size]
    figure, axes = canvas(2, 4, 7.6, 3.2)
    longest = target.norm(dim=1).max().item()
    axes[0, 0].imshow(to_picture(torch.where(known, flow_to_image(target, longest), 255)))
    axes[0, 0].set_title("true flow f*")
    axes[0, 0].set(xlabel=f"x ({first.shape[3]} px)", ylabel=f"y ({first.shape[2]} px)")
    axes[1, 0].imshow(to_picture(flow_wheel()))
    axes[1, 0].set_title(f"key, rim: {longest:.0f} px")
    for (above, below), method in zip(axes.T[1:], METHODS, strict=True):
        flow = flows[size, method]
        above.imshow(to_picture(flow_to_image(flow, longest)))
        above.set_title(f"flow f: {method}")
        below.imshow(to_picture(judged(end_point_errors(flow, target), target, known)), **grey)
        rate = outlier_rate(flow, target, known)
        below.set_title(f"mean E = {E[size, method]:.1f} px\nrate F = {rate:.0%}")
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
        each.spines[:].set_visible(True)
    axes[1, 0].set_axis_off()
    return figure


show(
    draw_baselines("1/2"),
    alt="True flow, wheel, and for zero flow, TV-L1 and iLK the flow in colours and the outliers in black",
    photo=True,
)

# %% [markdown]
# Below, outliers are black, and grey has no truth. Zero flow is an outlier nearly everywhere. TV-L1 misses the front wheel and much of the floor. iLK finds them, and is wrong in a band around the motorcycle: a window across a border holds two motions and has one arrow. Both are wrong at the left border, where things lie that the right photograph does not show.
#
# ### Where is it wrong? Asked without the truth
#
# Estimate the flow back, from image 2 to image 1, with the same method, and mark where the round trip fails. Are the errors where the marks are?

# %%
first, second, target, known = scenes["1/2"]
forward = flows["1/2", "ilk"]
backward = classical_flow("ilk", second, first)
marked = occluded(forward, backward)
errors = end_point_errors(forward, target)
for name, mask in {"marked as occluded": marked, "not marked": ~marked}.items():
    here = mask & known
    print(f"{name:>18}: {here.sum() / known.sum():4.0%} of pixels, ", end="")
    print(f"E = {end_point_error(forward, target, here):5.2f} px")

bad = (errors > 3) & known
print(f"of all pixels wrong by over 3 px, {(bad & marked).sum() / bad.sum():.0%} are marked")
in_marks, elsewhere = (end_point_error(forward, target, known & m) for m in (marked, ~marked))
assert in_marks > 3 * elsewhere


# %%
def draw_marks():
    figure, axes = canvas(1, 2, 5.4, 2.1)
    wrong = torch.where(known, torch.where(errors > 3, 0.0, 255.0), 160.0)
    axes[0].imshow(to_picture(torch.where(marked, 0.0, 255.0)), **grey)
    axes[0].set_title("marked by the round trip")
    axes[1].imshow(to_picture(wrong), **grey)
    axes[1].set_title("error over 3 px (grey: unknown)")
    bare(axes[None])
    return figure


show(
    draw_marks(),
    alt="The pixels that the round trip marks, and the pixels that are wrong by over 3 pixels: both "
    "lie along the motorcycle and at the left border, the marks cover about half",
    photo=True,
)

# %% [markdown]
# Marked pixels are several times as wrong as the others, so the round trip is a usable warning where no truth exists. It is no more: it misses pixels where both flows are wrong in the same way, and it marks right ones whose partners were estimated badly.
#
# ### Your own flow, in a file and as a picture
#
# The command `fourfold flow` ([lesson 6](6_raft.ipynb)) leaves a `.flo` file for programs and colours for people. The file gives the same numbers back:

# %%
write_flo(folder / "half.flo", forward)
assert torch.equal(read_flo(folder / "half.flo"), forward)
picture = to_picture(flow_to_image(forward))
print((folder / "half.flo").stat().st_size, "bytes; the picture has shape", picture.shape)

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `outlier_rate` | 5 | ●○○ |
# | `round_trip_errors` | 10 | ●●○ |
# | `pad` | 10 | ●●○ |
# | `forward_interpolate` | 15 | ●●● |
#
# <details><summary>Hint for <code>outlier_rate</code></summary>
#
# `_valid_errors` gives the errors and a mask. Both conditions are comparisons of (B, H, W) tensors; `&` joins them. An error that does not exceed the limit is no outlier: `>`, not `>=`.
#
# </details>
#
# <details><summary>Hint for <code>round_trip_errors</code></summary>
#
# `flow_grid(forward)` holds $q + f(q)$. `warp` reads any tensor of shape (B, C, H, W) there, and a flow is one with two channels. `inside` says which positions lie in the picture.
#
# </details>
#
# <details><summary>Hint for <code>pad</code></summary>
#
# In Python `-13 % 8` is 3. Halve with `//` and give the rest to the other side. `F.pad` wants (left, right, top, bottom), the last axis first, and `mode="replicate"`.
#
# </details>
#
# <details><summary>Hint for <code>forward_interpolate</code></summary>
#
# For one flow of the batch: where do its arrows land, and which of them are kept? `NearestNDInterpolator(points, values)` takes points (N, 2) and values (N, 2), and is then called with the positions to fill. Compute in float64, so that a tie is a tie.
#
# </details>
#
# **Find the bug.** A flow was estimated on images of half the size and brought to full size by interpolation. It looks right in colours, and its error is large. What is missing?

# %%
half = flows["1/4", "ilk"]
large = F.interpolate(half, size=forward.shape[2:], mode="bilinear", align_corners=False)
print(f"E = {end_point_error(large, target, known):.2f} px, zero flow has {E['1/2', 'zero']:.2f}")

# %% [markdown]
# <details><summary>Hint</summary>
#
# In what unit are the numbers of `half`? Why do the colours not show it?
#
# </details>
#
# <details><summary>Answer</summary>
#
# A flow is measured in pixels of its own image. On the larger image every arrow is twice as long: the numbers must be multiplied by 2, as the next cell does. `flow_to_image` divides by the longest arrow, so a factor leaves the colours as they are.
#
# </details>

# %%
print(f"multiplied by 2: E = {end_point_error(2 * large, target, known):.2f} px")
assert torch.equal(flow_to_image(2 * large, 66), flow_to_image(large, 33))

# %% [markdown]
# **Predict.** Nothing moves. One method returns (0.5, 0.5) everywhere; another returns (3, 4) on one pixel in a hundred and is exact elsewhere. What are $E$, $S_1$ and $F$ of each?
#
# <details><summary>Hint</summary>
#
# The length of (0.5, 0.5) is $\sqrt{0.5}$. The length of (3, 4) is a whole number.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The cell below computes them. The first method has the larger $E$, and $S_1$ and $F$ cannot be better; the second has a small $E$, and outliers. Which one is better depends on what the flow is for.
#
# </details>

# %%
still = torch.zeros(1, 2, 10, 10)
slightly, rarely = still + 0.5, still.clone()
rarely[0, :, 3, 3] = torch.tensor([3.0, 4.0])
for name, flow in {"slightly, everywhere": slightly, "very, at one pixel": rarely}.items():
    E_flow, S_1 = end_point_error(flow, still), share_within(flow, still, 1)
    print(f"{name}: E = {E_flow:.3f} px, S_1 = {S_1:.0%}, F = {outlier_rate(flow, still):.0%}")

# %% [markdown]
# **Vary.** In a copy of `occluded`, raise the 0.5 of equation 6 to 8 and lower it to 0.05. What share of the errors over 3 pixels is marked, and what share of the good pixels?
#
# <details><summary>Hint</summary>
#
# `round_trip_errors` does the work; compare its square with the right side of equation 6. Count with `marked`, `bad` and `known` as above.
#
# </details>
#
# <details><summary>Answer</summary>
#
# A strict rule (a small constant) finds more of the errors, at the price of marking more good pixels. No constant finds all errors and nothing else, since both flows can be wrong in the same way.
#
# </details>

# %%
back = warp(backward, flow_grid(forward))
lengths = forward.square().sum(dim=1) + back.square().sum(dim=1)
for slack in (0.05, 0.5, 8):
    mark = ~(round_trip_errors(forward, backward).square() <= 0.01 * lengths + slack)
    found_share = (bad & mark).sum() / bad.sum()
    good_share = (mark & known & ~bad).sum() / (known & ~bad).sum()
    print(f"{slack:4}: marks {found_share:.0%} of the errors, {good_share:.0%} of the good pixels")

# %% [markdown]
# ## What breaks
#
# ### A good-looking warp of a wrong flow
#
# How far can the difference $d$ of equation 4 be trusted? Of the pixels that are wrong by over 3 pixels, this share has a colour after warping that differs by less than 5 grey levels:

# %%
difference = photometric_errors(first, second, forward)
fooled = bad & (difference < 5)
print(f"{fooled.sum() / bad.sum():.0%} of the wrong pixels look right")

# %% [markdown]
# On a plain wall every arrow leads to the same grey. A right flow has a small difference, and many wrong ones have one too. This is the problem of surfaces without texture (无纹理表面); it is why both classical methods make neighbouring arrows agree.
#
# ### Two parts that change places
#
# scikit-image returns $(v, u)$, an array is indexed [y, x], OpenCV's sizes are (width, height). Swap the two parts once, and nothing complains:

# %%
print(f"E = {end_point_error(forward.flip(1), target, known):.1f} px, ", end="")
print(f"worse than no motion at all: {E['1/2', 'zero']:.1f} px")
assert end_point_error(forward.flip(1), target, known) > E["1/2", "zero"]

# %% [markdown]
# ### The mean over nothing
#
# PyTorch's mean of no numbers is NaN, without an error. One image with an empty mask then makes the mean over a whole data set NaN. Users of the release report NaN metrics on data of their own (issues 100 and 114 of its repository), and an empty mask is one way to get there.

# %%
nothing = torch.zeros_like(valid)
print("mean of nothing:", end_point_errors(estimate, truth)[nothing].mean().item())
with shows_error(ValueError):
    end_point_error(estimate, truth, nothing)

# %% [markdown]
# ### Out of KITTI's range
#
# A cast to 16 bits usually wraps around without a word. This is what becomes of an arrow of 600 pixels then, and what our writer says:

# %%
wrapped = np.array([64 * 600.0 + 2**15]).astype(np.int64).astype(np.uint16).item()
print("600 px come back as", (wrapped - 2**15) / 64, "px")
with chdir(folder), shows_error(ValueError):
    write_kitti_flow("far.png", torch.full((2, 4, 4), 600.0))
assert not (folder / "far.png").exists()

# %% [markdown]
# ### What the code says to bad input

# %%
with chdir(folder):
    Path("cut.flo").write_bytes(Path("motorcycle.flo").read_bytes()[:-100])
    with shows_error(ValueError):
        read_flo("cut.flo")
    with shows_error(ValueError):
        read_flo("motorcycle.png")
    with shows_error(ValueError):
        read_kitti_flow("motorcycle.flo")

with shows_error(ValueError):
    end_point_error(estimate, truth[..., :-1], valid)
with shows_error(TypeError):
    end_point_error(estimate, truth, valid.float())
with shows_error(ValueError):
    end_point_error(estimate + math.nan, truth, valid)
with shows_error(ValueError):
    classical_flow("farneback", image1, image2)
with shows_error(ValueError):
    unpad(image1, (100, 100, 0, 0))

# %% [markdown]
# ## Recap
#
# - A flow is two numbers a pixel, right and down, from image 1 to image 2. If it is right, image 2 read where it points looks like image 1.
# - Its quality is measured by distances between arrows' ends: a mean $E$, shares $S_n$ and an outlier rate $F$, over valid pixels only, at a stated size.
# - Without a truth, the way there and back marks much of what is hidden or wrong. A `.flo` file keeps every number, KITTI's PNG keeps steps of 1/64.
#
# The line goes on in [Encoders](3_encoders.ipynb), where RAFT describes each pixel so that it can be found again, and in [Experiments](8_experiments.ipynb), where these baselines and these numbers meet the trained model.
