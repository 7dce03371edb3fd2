# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 50
#     needs:
#     - 6_bilinear_sampling/3_window
#     - 4_raft/3_encoders
#     - 4_raft/4_correlation
#     - 4_raft/5_update
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # RAFT: the whole model
#
# **After this lesson you can** follow two photographs through every stage of RAFT, load the course's weights or published ones into the model you have read, and run it on two photographs of your own.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb) (`3_window`), and of this chapter the [encoders](3_encoders.ipynb), the [correlation](4_correlation.ipynb) and the [update](5_update.ipynb). *Time:* 50 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# RAFT estimates the **flow** (光流): how far each pixel of a first image has moved, to the right and down, in the second. It works on a **coarse grid** (粗网格), an eighth of the image's size, in two stages.
#
# The first stage runs once for a pair. An encoder turns each image into **features** $F$ (特征), a vector for every place of the coarse grid. The inner products of all vectors of image 1 with all vectors of image 2 are the **correlation** $C$ (相关体积), averaged down to a pyramid of $L$ levels. A second encoder sees image 1 alone and gives the **context** $x$ and the first hidden **state** $h$.
#
# The second stage repeats one step. It reads the correlation around the **positions** $p$ where the present **flow** $f$ sends each pixel, and a gated unit turns what it read, the context and the state into a new state and a **change** $\Delta$ of the flow. There is one flow field of one resolution; it starts at zero and is improved at every iteration. At the end the flow is brought to full size.

# %% [markdown]
# ## Figure
#
# ### Every stage, on a real pair
#
# The pair shows one scene from two cameras side by side. The weights are the course's own RAFT-small. A **hook** is a function that torch calls with the inputs and outputs of a part each time it runs; three hooks write down what passes, and the figure is drawn from their notes.

# %%
import re
import timeit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.patches import FancyBboxPatch, Polygon
from torch import Tensor, nn

from fourfold.bilinear_sampling.sampling import _check_floating, sample
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.kit.arguments import whole_number
from fourfold.kit.checkpoints import check_keys, load_tensors, read_json
from fourfold.kit.data import data_path
from fourfold.kit.downloads import download
from fourfold.kit.drawing import COLOURS, canvas, flow_to_image, show, to_picture
from fourfold.kit.flow_picture import flow_picture
from fourfold.kit.images import credit, photograph, read_image, stereo_pair
from fourfold.kit.notebook import shows_error
from fourfold.paper_writing.one_line import Pipeline
from fourfold.raft.correlation import CorrelationVolume, OnDemandCorrelation
from fourfold.raft.encoders import BottleneckBlock, Encoder, ResidualBlock
from fourfold.raft.fields import end_point_error, pad, unpad
from fourfold.raft.raft import RAFT, load_raft
from fourfold.raft.update import UpdateBlock


# %%
def watch(model, image1, image2, iterations=4):
    """Run the model; return what each part took and gave, in the order of its runs."""
    notes = {name: [] for name, _ in model.named_children()}
    hooks = [
        part.register_forward_hook(lambda _, takes, gives, n=name: notes[n].append((takes, gives)))
        for name, part in model.named_children()
    ]
    notes["output"] = model.estimate(image1, image2, iterations)
    for hook in hooks:
        hook.remove()
    return notes


pair = stereo_pair(shrink=4)
left, right = (image[..., :120, :176] for image in (pair.left, pair.right))
course = load_raft()
notes = watch(course, left, right)
print({name: len(runs) for name, runs in notes.items() if name != "output"}, "runs")


# %%
def in_colours(features):
    """The three directions in which the vectors differ most, as red, green and blue."""
    inner = features[0, :, 1:-1, 1:-1].flatten(1).T  # the border differs from all the rest
    middle = inner.mean(dim=0)
    directions = torch.linalg.svd(inner - middle, full_matrices=False).Vh[:3]
    shares = (features[0].flatten(1).T - middle) @ directions.T
    shares = shares / ((inner - middle) @ directions.T).std(dim=0).clamp(min=1e-6) / 4 + 0.5
    return 255 * shares.T.view(1, 3, *features.shape[2:])


def draw_map(axes, name, shape, picture, x, y, width=12, ratio=15 / 22):
    """A picture with its name and the measured shape of its tensor above it."""
    picture = to_picture(picture) if picture.ndim > 2 else picture
    axes.imshow(picture, extent=(x, x + width, y + ratio * width, y), cmap="gray")
    text = f"{name}\n{' × '.join(map(str, shape))}"
    axes.text(x + width / 2, y - 0.5, text, ha="center", va="bottom", size=7.5)


def draw_pictures(axes, query):
    """Each tensor on the way, measured; the correlation and the window of one pixel (x, y)."""
    features1, features2 = (gives for _, gives in notes["fnet"])
    state, context = notes["cnet"][0][1].split([course.hidden, course.context], dim=1)
    (_, _, windows, flow), (_, change) = notes["update_block"][-1]
    (x, y), side = query, 2 * course.radius + 1
    level = CorrelationVolume(features1, features2).levels[0]
    window = windows[0, : side**2, y, x].view(side, side).T  # channels go column by column
    for name, values, picture, *place in (
        ("image 1", left, left, 0, 21),
        ("image 2", right, right, 0, 36),
        ("features F", features1, in_colours(features1), 27, 21),
        ("features F", features2, in_colours(features2), 27, 36),
        ("context x", context, in_colours(context.relu()), 80, 5),
        ("state h", state, in_colours(state.tanh()), 95, 5),
        ("read at positions p", windows, window, 71, 49.5, 8, 1),
        ("change Δ", change, flow_to_image(change), 95, 48),
        ("flow f", flow, flow_to_image(flow), 54, 64),
        ("full flow V", notes["output"].full, flow_to_image(notes["output"].full), 6, 55, 27),
    ):
        draw_map(axes, name, values.shape[1:], picture, *place)
    draw_map(axes, "correlation C", level.shape, level[y * flow.shape[3] + x], 54, 28)
    dot = {"color": COLOURS["query"], "markeredgecolor": "white", "markersize": 5}
    axes.plot((x + 0.5) * 12 / 22, 21 + (y + 0.5) * 12 / 22, "o", **dot)


# %%
def draw_box(axes, name, x, y, width, height):
    style = {"boxstyle": "round,pad=0,rounding_size=1", "facecolor": "0.85", "edgecolor": "0.4"}
    axes.add_patch(FancyBboxPatch((x, y), width, height, **style))
    axes.text(x + width / 2, y + height / 2, name, ha="center", va="center", size=7.5)


def draw_arrow(axes, *path, colour="0.25"):
    """A line through the points of a path, with a head at its end."""
    for a, b in pairwise(path[:-1]):
        axes.plot(*zip(a, b, strict=True), color=colour, linewidth=1)
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", path[-1], path[-2], arrowprops=style)


def draw_parts(axes):
    draw_box(axes, "context\nencoder", 15, 5.5, 9, 7)
    draw_box(axes, "feature\nencoder", 15, 21, 9, 23)
    draw_box(axes, f"all pairs,\nlevels L = {course.levels}", 41.5, 21, 10.5, 23)
    draw_box(axes, f"look-up,\nradius r = {course.radius}", 54, 48.5, 12, 8)
    draw_box(axes, "update block", 80, 32, 27, 7)
    draw_box(axes, "upsample", 39, 65, 10, 6.5)
    for y in (25, 40):
        for x in (12.2, 24.2, 39.2):
            draw_arrow(axes, (x, y), (x + 2.2, y))
    draw_arrow(axes, (6, 16), (6, 9), (14.8, 9))
    draw_arrow(axes, (24.2, 9), (79.8, 9))
    draw_arrow(axes, (19.5, 5.3), (19.5, -2.5), (101, -2.5), (101, -0.2))
    draw_arrow(axes, (52.2, 32), (53.8, 32))
    for x in (86, 100):
        draw_arrow(axes, (x, 13.4), (x, 31.8))
    draw_arrow(axes, (60, 36.4), (60, 48.3))
    draw_arrow(axes, (66.2, 53.5), (70.8, 53.5))
    draw_arrow(axes, (79.2, 53.5), (84, 53.5), (84, 39.2))
    draw_arrow(axes, (101, 39.2), (101, 43.2))
    draw_arrow(axes, (101, 56.4), (101, 70), (66.2, 70), colour=COLOURS["flow"])
    draw_arrow(axes, (66.2, 66), (89, 66), (89, 39.2), colour=COLOURS["flow"])
    draw_arrow(axes, (60, 59.4), (60, 56.7), colour=COLOURS["flow"])
    draw_arrow(axes, (107.2, 35.5), (110.5, 35.5), (110.5, 9), (107.2, 9))
    draw_arrow(axes, (53.8, 68), (49.2, 68))
    draw_arrow(axes, (38.8, 68), (33.2, 68))


# %% tags=["figure"]
def draw_raft(query=(14, 9)):
    figure, axes = canvas(1, 1, 7.6, 5.4)
    loop = [
        (52.5, 45),
        (78.5, 45),
        (78.5, 29),
        (93.5, 29),
        (93.5, 0),
        (113, 0),
        (113, 74),
        (52.5, 74),
    ]
    axes.add_patch(Polygon(loop, facecolor="0.95", zorder=-1))
    draw_pictures(axes, query)
    draw_parts(axes)
    k = len(notes["update_block"]) - 1
    axes.text(112, 73, f"at every iteration k (here k = {k})", size=8, ha="right", style="italic")
    axes.text(27, 7.5, "once for a pair", size=8, style="italic")
    axes.set(xlim=(-0.5, 113.5), ylim=(75, -3.5))
    axes.set_axis_off()
    return figure


show(
    draw_raft(),
    alt="RAFT as a diagram of small pictures: two images, their features, the correlation of one "
    "pixel; a grey loop of look-up, update block, change and flow; state and context from image 1; "
    "the flow at full size",
    photo=True,
)
print(credit("motorcycle"))

# %% [markdown]
# The grey field is the loop; everything outside it runs once for a pair. The dot on image 1 marks one pixel: its correlation with all of image 2 is one small map of $C$, and the model reads the window around the pixel's present position. Context and first state come from image 1 alone. The purple arrows carry the flow: the change, drawn with a scale of its own, is added to it, and the flow says where to read next. The colours of features, context and state show the three directions in which their vectors differ most.
#
# ### The same run, with letters
#
# `Pipeline.trace` of [chapter 1](../1_paper_writing/1_one_line.ipynb) runs a model under hooks of its own, then again with each side of the images doubled, and so finds which size of each tensor follows which size of the image.


# %% tags=["figure"]
small_pair = (left[..., :64, :96], right[..., :64, :96])
run = Pipeline.trace(
    course, *small_pair, axes=["B C H W"] * 2, sizes={"D": 128}, keywords={"iterations": 3}
)
show(run.draw(), alt=run.describe())

# %% [markdown]
# Every part works on a grid of H/8 × W/8. The feature encoder ran once for each image, the context encoder for the first, and the update block as often as there are iterations, with its own result among its inputs. In RAFT-small, that block holds most of the parameters:

# %% tags=["nbval-check-output"]
learned = {stage.name: stage.parameters for stage in run.stages if stage.parameters}
print(learned, f"update block: {learned['update_block'] / sum(learned.values()):.0%}")

# %% [markdown]
# ## Formula
#
# The letters $g$ and $c$ stand for the feature encoder and the context encoder. Both images $I_1$ and $I_2$ are first scaled from [0, 255] to [−1, 1]. The same $g$ sees both:
#
# $$ F_1 = g(I_1), \quad F_2 = g(I_2), \quad C = \mathrm{pyramid}_L\!\left(\frac{F_1^{\top} F_2}{\sqrt{D}}\right) \tag{1} $$
#
# The channels of $c(I_1)$ are cut in two. The state $h$ passes a tanh, as every later state of the gated unit does, and the context $x$ a ReLU:
#
# $$ [a, b] = c(I_1), \qquad h_0 = \tanh(a), \qquad x = \mathrm{relu}(b) \tag{2} $$
#
# Iteration $k$ reads the correlation around the positions $p$; $p_0$ are the coordinates of the coarse grid's own pixels:
#
# $$ p = p_0 + f_k \tag{3} $$
#
# From the windows $C_r(p)$ of radius $r$, the update block $U$ of lesson 5 makes the next state and the change $\Delta$:
#
# $$ (h_{k+1},\; \Delta) = U\big(h_k,\; x,\; C_r(p),\; f_k\big) \tag{4} $$
#
# $$ f_{k+1} = \mathrm{stop}(f_k) + \Delta, \qquad f_0 = 0 \tag{5} $$
#
# `stop` returns its argument and lets no gradient through (`detach` in torch); equations 3 and 4 read the stopped $f_k$ as well. The full flow $V$ is the upsampled $f$: eight times as many pixels each way, and vectors eight times as long:
#
# $$ V = \mathrm{upsample}_8(f_{k+1},\; h_{k+1}) \tag{6} $$
#
# The all-pairs volume of $B$ pairs of $H \times W$ images, with $L$ levels of four bytes a number, needs the memory $M$:
#
# $$ M = 4\,B\,\frac{H}{8}\,\frac{W}{8} \sum_{l=0}^{L-1} \left\lfloor \frac{H}{8 \cdot 2^l} \right\rfloor \left\lfloor \frac{W}{8 \cdot 2^l} \right\rfloor \ \text{bytes} \tag{7} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $I_1$ | first image | (B, 3, H, W), in [0, 255] | `image1` | image 1 |
# | $I_2$ | second image | (B, 3, H, W), in [0, 255] | `image2` | image 2 |
# | $F$ | features of an image | (B, D, H/8, W/8) | `features1` | features F |
# | $C$ | correlation pyramid of all pairs | level l: (B·HW/64, H/(8·2ˡ), W/(8·2ˡ)) | `correlation` | correlation C |
# | $L$ | levels of the pyramid | whole number | `levels` | levels L |
# | $r$ | radius of the windows read | whole number, coarse px | `radius` | radius r |
# | $h$ | state of the gated unit | (B, 128 or 96, H/8, W/8) | `h` | state h |
# | $x$ | context from image 1 | (B, 128 or 64, H/8, W/8) | `context` | context x |
# | $p$ | positions in image 2 to read around | (B, 2, H/8, W/8), coarse px | `start` | positions p |
# | $f$ | flow on the coarse grid | (B, 2, H/8, W/8), coarse px | `flow` | flow f |
# | $\Delta$ | change of the flow | (B, 2, H/8, W/8), coarse px | `change` | change Δ |
# | $k$ | iteration, from 0 | whole number | `iterations` | iteration k |
# | $V$ | full flow | (B, 2, H, W), px | `full` | full flow V |
# | $M$ | memory of the volume | bytes | `volume_bytes` | memory M |
#
# Letters of shapes: $B$ pairs, $H$ and $W$ the size of the images, $D$ the width of a feature vector.

# %% [markdown]
# ## Code
#
# ### The loop of the release
#
# The released code keeps two sets of positions: `coords0`, where each pixel of image 1 is, and `coords1`, where it is in image 2. The flow is their difference. Here is its loop, with the parts of lessons 3 to 5. `share` is the part of the gated unit's sums that comes from the context (lesson 5).


# %%
def raft_loop(model, image1, image2, iterations):
    image1, image2 = 2 * (image1 / 255) - 1, 2 * (image2 / 255) - 1
    volume = CorrelationVolume(model.fnet(image1), model.fnet(image2), model.levels, model.radius)
    net, inp = model.cnet(image1).split([model.hidden, model.context], dim=1)
    net, share = net.tanh(), model.update_block.gru.share(inp.relu())
    coords0 = pixel_grid(image1.shape[2] // 8, image1.shape[3] // 8).permute(2, 0, 1)[None]
    coords1, predictions = coords0.clone(), []
    for _ in range(iterations):
        coords1 = coords1.detach()
        net, delta = model.update_block(net, share, volume(coords1), coords1 - coords0)
        coords1 = coords1 + delta
        predictions.append(model.update_block.upsample(coords1 - coords0, net))
    return predictions


# %%
with torch.no_grad():
    by_the_loop = raft_loop(course, left, right, 4)
print(len(by_the_loop), tuple(by_the_loop[-1].shape))

# %% [markdown]
# ### Two sizes of one flow
#
# The flow is wanted full, for use, and coarse, to begin the next pair with. A named tuple keeps the two together.


# %% tags=["promote"]
class Flow(NamedTuple):
    """A flow field at two sizes, each in pixels of its own grid.

    Convention: (u, v), u to the right, v down, from image 1 to image 2.
    """

    full: Float[Tensor, "B 2 H W"]
    coarse: Float[Tensor, "B 2 H/8 W/8"]


# %% [markdown]
# ### The loop
#
# Equations 3 to 5. As a **generator**, a function with `yield`, it hands out each flow when it is made: training upsamples all of them, and a user the last one only.
#
# Where the release has `coords1`, here stands `start + flow`: the flow is summed by itself, without rounding to the digits of a large coordinate.


# %% tags=["promote", "exercise"]
def refine(
    update_block: Callable[..., tuple[Tensor, Tensor]],
    correlation: Callable[[Tensor], Tensor],
    h: Float[Tensor, "B D H W"],
    share: Float[Tensor, "B S H W"],
    flow: Float[Tensor, "B 2 H W"],
    iterations: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the coarse flow and the state after each iteration (equations 3 to 5 of the lesson).

    update_block  called with (h, share, windows, flow); gives the next h and the change of the flow
    correlation   called with positions (B, 2, H, W); gives the windows around them
    flow          (B, 2, H, W) where to begin, in pixels of the coarse grid

    The gradient flows through the state alone, not through where the correlation is read.

    Convention: (x, y) order, x to the right, y down.
    """
    H, W = flow.shape[2:]
    start = pixel_grid(H, W, device=flow.device, dtype=flow.dtype).permute(2, 0, 1)
    for _ in range(iterations):
        flow = flow.detach()
        h, change = update_block(h, share, correlation(start + flow), flow)
        flow = flow + change
        yield flow, h


# %% tags=["check"]
one = torch.ones(1, requires_grad=True)


def step(h, share, windows, flow):
    """A stand-in for the update block: the state doubles, the flow moves by it."""
    nothing = windows + flow - (windows + flow).detach()  # 0, but a gradient passes through
    return 2 * h * one, h[:, :2] * one + nothing


seen, zero = [], torch.zeros(1, 2, 2, 3)
refined = refine(step, lambda p: seen.append(p) or p, torch.ones(1, 4, 2, 3), zero, zero + 5, 3)
flows = list(refined)
assert len(flows) == 3, "one flow for each iteration"
assert [f[0, 0, 0, 0].item() for f, _ in flows] == [6, 8, 12], "the change is added each time"
assert flows[-1][1][0, 0, 0, 0] == 8, "the state of one iteration goes into the next"
grid = pixel_grid(2, 3).permute(2, 0, 1)
assert torch.equal(seen[0][0], grid + 5), "equation 3: positions are the grid plus the flow"
assert torch.equal(seen[2][0], grid + 8), "each iteration reads where the last one has led"
assert flows[-1][0].requires_grad, "training needs the gradient of the flow that is handed out"
# The last change is 4·one³: three factors through the states, none through the earlier flows.
(slope,) = torch.autograd.grad(flows[-1][0][0, 0, 0, 0], one)
assert slope.item() <= 12, "a gradient passes through the flow; equations 3 to 5 stop it in each"
assert slope.item() == 12, "the gradient must pass through the state"

# %% [markdown]
# ### Why detach
#
# Without `stop`, a flow depends on all earlier ones: as their sum, and through what was read at their positions. The derivative with respect to a position is the slope of the correlation between two pixels, which jumps at every pixel. To measure what that does, take the gradient of the last flow with respect to the feature encoder's first layer, both ways.


# %%
def attached(update_block, correlation, h, share, flow, iterations):
    """`refine` without `detach`."""
    start = pixel_grid(*flow.shape[2:]).permute(2, 0, 1)
    for _ in range(iterations):
        h, change = update_block(h, share, correlation(start + flow), flow)
        flow = flow + change
        yield flow, h


def gradient_norm(how, iterations):
    """The length of the gradient of the mean flow with respect to the first layer of `fnet`."""
    correlation, h, share = course.prepare(*small_pair)
    *_, (flow, _) = how(
        course.update_block, correlation, h, share, h.new_zeros(1, 2, 8, 12), iterations
    )
    weight = course.fnet.conv1.weight
    return torch.autograd.grad(flow.abs().mean(), weight)[0].norm().item()


# %%
for iterations in (1, 2, 4, 8):
    norms = [gradient_norm(how, iterations) for how in (refine, attached)]
    print(f"{iterations} iterations: detached {norms[0]:.4f}, attached {norms[1]:.4f}")

# %% [markdown]
# At one iteration the two agree, since the first flow is a constant. From then on, the detached gradient comes through the last change and the states behind it; the attached one comes through all earlier changes and positions as well. The loss of training ([lesson 7](7_learning.ipynb)) looks at the flow after every iteration, so each change gets a gradient of its own; [lesson 8](8_experiments.ipynb) also trains without the cut.
#
# ### The sizes of two models
#
# Full and small differ in widths, in the blocks of their encoders, in the context encoder's normalisation and in the radius. These are data:


# %% tags=["promote"]
class Variant(NamedTuple):
    """The sizes of one published model: channels, the radius, the encoders' widths and blocks."""

    features: int
    hidden: int
    context: int
    radius: int
    widths: tuple[int, int, int]
    block: type[nn.Module]
    context_norm: str


# %% tags=["promote"]
VARIANTS = {
    "full": Variant(256, 128, 128, 4, (64, 96, 128), ResidualBlock, "batch"),
    "small": Variant(128, 96, 64, 3, (32, 64, 96), BottleneckBlock, "none"),
}

_CORRELATIONS = {"all-pairs": CorrelationVolume, "on-demand": OnDemandCorrelation}

# %% [markdown]
# ### How small an image may be
#
# The coarsest level of the pyramid needs two pixels each way: the release divides by its width minus one, and gives NaN for smaller images. With 4 levels that asks for 128 pixels, with 3 for 64, so that the course can train on small crops.


# %% tags=["promote"]
def least_size(levels: int) -> int:
    """The height and width in pixels that leave the coarsest of `levels` with 2 × 2 pixels."""
    return 2 * 8 * 2 ** (levels - 1)


# %%
print({levels: least_size(levels) for levels in (1, 2, 3, 4)})

# %% [markdown]
# What enters is checked, each input by a function of its own; *What breaks* shows their sentences.


# %% tags=["promote"]
def _check_choice(name: str, value: str, among: Mapping[str, object]) -> None:
    if value not in among:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(among)}")


def _check_images(image1: Tensor, image2: Tensor) -> None:
    for name, image in (("image1", image1), ("image2", image2)):
        _check_floating(name, image)
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(f"{name} has shape {tuple(image.shape)}; expected (B, 3, H, W)")
        _check_values(name, image)
    if image1.shape != image2.shape:
        raise ValueError(
            f"image2 has shape {tuple(image2.shape)}; expected {tuple(image1.shape)}, as image1"
        )


def _check_values(name: str, image: Tensor) -> None:
    low, high = (value.item() for value in image.detach().aminmax())
    # Interpolation may overshoot a little; a NaN fails both comparisons.
    if not (low >= -1 and high <= 256):
        raise ValueError(f"{name} has values from {low:g} to {high:g}; expected [0, 255]")
    if 0 < high <= 1:
        raise ValueError(f"{name} has no value over {high:g}; expected [0, 255], not [0, 1]")


# %% tags=["promote"]
def _check_size(image: Tensor, levels: int) -> None:
    H, W = image.shape[2:]
    if H % 8 or W % 8:
        raise ValueError(
            f"image1 has size {H} × {W}; expected multiples of 8 (`estimate` and `pad` see to that)"
        )
    least = least_size(levels)
    if min(H, W) < least:
        fitting = (min(H, W) // 16).bit_length()
        other = f", or levels={fitting}" if fitting else ""
        raise ValueError(
            f"image1 has size {H} × {W}; expected at least {least} × {least} for {levels} levels, "
            f"the coarsest of which has 2 × 2 pixels then{other}"
        )


def _check_initial_flow(flow: Tensor | None, shape: tuple[int, ...]) -> None:
    if flow is None:
        return
    _check_floating("initial_flow", flow)
    if tuple(flow.shape) != shape:
        raise ValueError(f"initial_flow has shape {tuple(flow.shape)}; expected {shape}")
    if not flow.isfinite().all():
        raise ValueError("initial_flow has values that are not finite; expected pixels")


# %% tags=["promote"]
@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each part gets its own mode back, a frozen BatchNorm too."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


# %% [markdown]
# ### The model
#
# The parts, what is made once for a pair (`prepare`), and the loop, called in two ways. `forward` is for training: it returns the flow of every iteration. `estimate` is for use: one pair or a batch, of any size, last flow only. It repeats the border until the sides are multiples of 8 and cuts the result back. `from_official` makes a model from published weights; the two functions that it calls come further down.


# %% tags=["promote"]
class RAFT(nn.Module):
    """Recurrent all-pairs field transforms (Teed and Deng 2020, arXiv 2003.12039).

    variant      "full" (5.3 million parameters) or "small" (1.0 million)
    levels       L, of the correlation pyramid
    radius       r, of the look-up; the published 4 (full) or 3 (small) when left out
    correlation  "all-pairs" holds the volume, "on-demand" makes what it reads, for large images

    Raises ValueError for another variant, correlation, levels or radius.
    """

    def __init__(
        self,
        variant: str = "full",
        *,
        levels: int = 4,
        radius: int | None = None,
        correlation: str = "all-pairs",
    ) -> None:
        super().__init__()
        _check_choice("variant", variant, VARIANTS)
        _check_choice("correlation", correlation, _CORRELATIONS)
        sizes = VARIANTS[variant]
        self.variant, self.correlation = variant, correlation
        self.levels = whole_number("levels", levels, least=1)
        self.radius = whole_number("radius", sizes.radius if radius is None else radius, least=0)
        self.hidden, self.context = sizes.hidden, sizes.context
        layers = {"block": sizes.block, "widths": sizes.widths}
        self.fnet = Encoder(sizes.features, "instance", **layers)
        self.cnet = Encoder(self.hidden + self.context, sizes.context_norm, **layers)
        channels = self.levels * (2 * self.radius + 1) ** 2
        self.update_block = UpdateBlock(channels, self.hidden, self.context, variant == "small")

    def prepare(self, image1: Tensor, image2: Tensor) -> tuple[Callable, Tensor, Tensor]:
        """What a pair needs once: correlation, first state, context's share (equations 1 and 2)."""
        image1, image2 = (2 * (image / 255) - 1 for image in (image1, image2))
        # One after the other: together they would hold twice as much memory, and take longer.
        features1, features2 = self.fnet(image1), self.fnet(image2)
        make = _CORRELATIONS[self.correlation]
        correlation = make(features1, features2, self.levels, self.radius)
        h, context = self.cnet(image1).split([self.hidden, self.context], dim=1)
        return correlation, h.tanh(), self.update_block.gru.share(context.relu())

    def _steps(self, image1, image2, iterations, initial_flow) -> Iterator[tuple[Tensor, Tensor]]:
        _check_images(image1, image2)
        _check_size(image1, self.levels)
        whole_number("iterations", iterations, least=1)
        B, _, H, W = image1.shape
        _check_initial_flow(initial_flow, (B, 2, H // 8, W // 8))
        correlation, h, share = self.prepare(image1, image2)
        flow = h.new_zeros(B, 2, H // 8, W // 8) if initial_flow is None else initial_flow
        return refine(self.update_block, correlation, h, share, flow, iterations)

    def forward(
        self,
        image1: Float[Tensor, "B 3 H W"],
        image2: Float[Tensor, "B 3 H W"],
        iterations: int = 12,
        initial_flow: Float[Tensor, "B 2 H/8 W/8"] | None = None,
    ) -> list[Flow]:
        """Estimate the flow from image 1 to image 2, again at every iteration.

        image1, image2  (B, 3, H, W) in [0, 255], H and W multiples of 8
        initial_flow    where to begin, in pixels of the coarse grid; 0 when left out
        returns         one Flow for each iteration, as the loss of training wants them

        Raises TypeError for images of whole numbers, ValueError for images of different, too small
        or odd sizes, with a value that is not finite or outside [0, 255], or seemingly in [0, 1].

        Convention: (x, y) order, x to the right, y down; the flow maps image 1 to image 2.
        """
        steps = self._steps(image1, image2, iterations, initial_flow)
        return [Flow(self.update_block.upsample(flow, h), flow) for flow, h in steps]

    @torch.no_grad()
    def estimate(
        self,
        image1: Float[Tensor, "*B 3 H W"],
        image2: Float[Tensor, "*B 3 H W"],
        iterations: int = 20,
        initial_flow: Float[Tensor, "*B 2 h w"] | None = None,
    ) -> Flow:
        """The last flow between images of any size, without gradients, in evaluation mode.

        One pair or a batch, (3, H, W) or (B, 3, H, W); the flow has a batch axis where they do.
        `coarse` and `initial_flow` cover the size padded to multiples of 8. Raises as `forward`.
        """
        if image1.ndim == image2.ndim == 3:
            start = None if initial_flow is None else initial_flow[None]
            full, coarse = self.estimate(image1[None], image2[None], iterations, start)
            return Flow(full[0], coarse[0])
        _check_images(image1, image2)
        (image1, padding), (image2, _) = pad(image1), pad(image2)
        with _evaluating(self):
            *_, (flow, h) = self._steps(image1, image2, iterations, initial_flow)
            return Flow(unpad(self.update_block.upsample(flow, h), padding), flow)

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        variant: str | None = None,
        correlation: str = "all-pairs",
    ) -> "RAFT":
        """The model with published weights, in evaluation mode; its sizes are read from the shapes.

        state_dict  with the names of the RAFT release, with or without "module.", of torchvision,
                    or of this model
        variant     which one is expected, where only one will do

        Raises ValueError for tensors that make no RAFT or another variant, naming every key that is
        missing, unexpected, or of another shape.
        """
        tensors = from_published_names(state_dict)
        found, levels, radius = published_sizes(tensors)
        if variant not in (None, found):
            raise ValueError(
                f"state_dict holds the weights of the {found} RAFT; expected {variant}"
            )
        model = cls(found, levels=levels, radius=radius, correlation=correlation)
        check_keys("state_dict", tensors, model.state_dict())
        model.load_state_dict(tensors)
        return model.eval()


# %% [markdown]
# > **Where the code leaves the paper.** The paper's inner product is not scaled; the released code divides it by $\sqrt{D}$. The mask of the upsampling is multiplied by ¼ there, and RAFT-small upsamples by bilinear sampling. The release upsamples at every iteration, also in use, and puts the context through the gated unit's convolutions each time; here both are done once, with the same numbers.
#
# The model agrees with the release's loop at every iteration:

# %%
torch.manual_seed(0)
model = RAFT("small", levels=course.levels)
with torch.no_grad():
    model.load_state_dict(course.state_dict())
    by_the_page = model(left, right, 4)
for ours, theirs in zip(by_the_page, by_the_loop, strict=True):
    # Two images in one batch, grid plus flow for coords1: float32 rounds differently.
    assert torch.allclose(ours.full, theirs, atol=1e-3), "the model differs from the loop"
last = model.estimate(left, right, 4)
assert torch.allclose(last.full, by_the_page[-1].full, atol=1e-3), "estimate is the last of forward"

# %% [markdown]
# Both models have as many parameters as published (torchvision lists them with its weights):

# %% tags=["nbval-check-output"]
for variant in VARIANTS:
    count = sum(p.numel() for p in RAFT(variant).parameters())
    print(f"{variant:>5}: {count:,} parameters")
    assert count == {"full": 5_257_536, "small": 990_162}[variant]

# %% [markdown]
# ### Any size
#
# The sides of this pair are no multiples of 8. `estimate` adds a border of repeated pixels and cuts the flow back; the coarse flow covers the padded size.

# %%
whole = course.estimate(pair.left, pair.right)
print(*(tuple(part.shape) for part in (pair.left, whole.full, whole.coarse)), sep="\n")

# %% [markdown]
# A photograph without its batch axis gives a flow without one, and several pairs go through together:

# %%
batch = course.estimate(torch.cat([left, right]), torch.cat([right, left]), iterations=4)
alone = course.estimate(left[0], right[0], iterations=4)
print(tuple(batch.full.shape), tuple(alone.full.shape))
assert torch.allclose(batch.full[0], alone.full, atol=1e-3)  # float32, other memory order
assert not course.training

# %% [markdown]
# ### Names of published weights
#
# Weights are a dictionary from names to tensors. The release, torchvision and this course name the same tensors differently; the release also has `module.` before every name, which the wrapper for several GPUs put there. The differences are a table of patterns, tried from top to bottom:


# %% tags=["promote"]
# Published names (pattern) and ours: the release's first, then torchvision's.
RENAMES = (
    (r"^module\.", ""),
    (r"gru\.conv([zrq])1\.", r"gru.horizontal.conv\1."),
    (r"gru\.conv([zrq])2\.", r"gru.vertical.conv\1."),
    (r"^update_block\.mask\.0\.", "update_block.mask.conv1."),
    (r"^update_block\.mask\.2\.", "update_block.mask.conv2."),
    (r"^feature_encoder\.", "fnet."),
    (r"^context_encoder\.", "cnet."),
    (r"net\.convnormrelu\.0\.", "net.conv1."),
    (r"net\.convnormrelu\.1\.", "net.norm1."),
    (r"net\.conv\.", "net.conv2."),
    (r"\.convnormrelu(\d)\.0\.", r".conv\1."),
    (r"\.convnormrelu(\d)\.1\.", r".norm\1."),
    (r"\.motion_encoder\.conv\.0\.", ".encoder.conv."),
    (r"\.motion_encoder\.convcorr(\d)\.0\.", r".encoder.convc\1."),
    (r"\.motion_encoder\.convflow(\d)\.0\.", r".encoder.convf\1."),
    (r"\.recurrent_block\.convgru1\.", ".gru.horizontal."),
    (r"\.recurrent_block\.convgru2\.", ".gru.vertical."),
    (r"^mask_predictor\.convrelu\.0\.", "update_block.mask.conv1."),
    (r"^mask_predictor\.conv\.", "update_block.mask.conv2."),
)


# %% tags=["promote", "exercise"]
def our_name(name: str) -> str:
    """The name of a published tensor in this course: every row of `RENAMES`, one after the other.

    >>> our_name("module.update_block.gru.convz1.weight")
    'update_block.gru.horizontal.convz.weight'
    """
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


# %% tags=["check"]
assert our_name("fnet.conv1.weight") == "fnet.conv1.weight", "a name of ours stays as it is"
assert our_name("module.cnet.conv2.bias") == "cnet.conv2.bias", "no row for module. was used"
theirs = "context_encoder.layer2.0.convnormrelu1.1.bias"
assert our_name(theirs) == "cnet.layer2.0.norm1.bias", "two rows apply, the second to the first's"
theirs = "module.update_block.gru.convq2.weight"
assert our_name(theirs) == "update_block.gru.vertical.convq.weight", "the digit picks the direction"

# %% [markdown]
# Two cases need all names at once. The small model has one gated unit, so `horizontal` goes away where no `vertical` is. And the release holds a normalisation of the full context encoder twice, as `norm3` and as `downsample.1`; both become one, if they agree.


# %% tags=["promote"]
def from_published_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the RAFT release or of torchvision to the names of this model.

    Names that are known to neither stay as they are. The release registers the norm of a context
    encoder's short cut twice, as norm3 and downsample.1; both become one. Raises ValueError where
    two such names hold different values, and for what is no mapping of names to tensors.
    """
    if not isinstance(state_dict, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state_dict.items()
    ):
        raise ValueError("state_dict is no mapping of names to tensors; expected a state_dict")
    names = {name: our_name(name) for name in state_dict}
    if not any(".gru.vertical." in name for name in names.values()):
        names = {old: new.replace(".gru.horizontal.", ".gru.") for old, new in names.items()}
    else:  # In RAFT-small norm3 is a norm of its own.
        twice = re.compile(r"^(cnet\.layer\d\.0\.)norm3\.")
        names = {old: twice.sub(r"\1downsample.1.", new) for old, new in names.items()}
    result: dict[str, Tensor] = {}
    for old, new in names.items():
        if new in result and not torch.equal(result[new], state_dict[old]):
            raise ValueError(f"state_dict has two values for {new}, one of them {old}")
        result[new] = state_dict[old]
    return result


# %% [markdown]
# Give a full model's tensors the release's names, second names included, and bring them back. (The tests do the same with the recorded list of the release's names and with torchvision's.)


# %%
def release_name(name):
    name = re.sub(r"gru\.horizontal\.conv(.)", r"gru.conv\g<1>1", name)
    name = re.sub(r"gru\.vertical\.conv(.)", r"gru.conv\g<1>2", name)
    return "module." + name.replace("mask.conv1", "mask.0").replace("mask.conv2", "mask.2")


tensors = RAFT("full").state_dict()
released = {release_name(name): value for name, value in tensors.items()}
for name in list(released):
    if ".cnet." in name and ".downsample.1." in name:
        released[name.replace("downsample.1", "norm3")] = released[name]
back = from_published_names(released)
print(f"{len(released)} names of the release, {len(back)} of ours")
assert back.keys() == tensors.keys() and all(torch.equal(back[n], tensors[n]) for n in tensors)

# %% [markdown]
# ### What the shapes say
#
# A dictionary of tensors does not say which model it belongs to; the shapes do. The first convolution of an encoder has as many outputs as the variant's first width. The first convolution of the motion encoder reads $L\,(2r+1)^2$ correlations: 147 of them are 3 levels of radius 3. Can another pair give the same number? Count up to 8 levels and radius 8:

# %%
channels = {(L, r): L * (2 * r + 1) ** 2 for L in range(1, 9) for r in range(9)}
print(f"{len(channels)} pairs, {len(set(channels.values()))} different numbers")


# %% tags=["promote", "exercise"]
def published_sizes(tensors: Mapping[str, Tensor]) -> tuple[str, int, int]:
    """Variant, levels and radius of the model that the tensors, under our names, were made for.

    Raises ValueError for shapes of no RAFT.
    """
    for name in ("fnet.conv1.weight", "update_block.encoder.convc1.weight"):
        if name not in tensors or tensors[name].ndim != 4:
            raise ValueError(
                f"state_dict has no {name} of four axes; expected the tensors of a RAFT"
            )
    width = len(tensors["fnet.conv1.weight"])
    variant = next((v for v, sizes in VARIANTS.items() if sizes.widths[0] == width), None)
    if variant is None:
        raise ValueError(
            f"fnet.conv1.weight has {width} output channels; expected 64 (full) or 32 (small)"
        )
    channels = tensors["update_block.encoder.convc1.weight"].shape[1]
    for radius in range(9):  # No other radius fits with 1 to 8 levels.
        levels, rest = divmod(channels, (2 * radius + 1) ** 2)
        if rest == 0 and 1 <= levels <= 8:
            return variant, levels, radius
    raise ValueError(
        f"update_block.encoder.convc1.weight reads {channels} correlations; "
        "expected a number of levels times (2 · radius + 1)²"
    )


# %% tags=["check"]
def two_tensors(width, channels):
    first, second = torch.zeros(width, 3, 7, 7), torch.zeros(96, channels, 1, 1)
    return {"fnet.conv1.weight": first, "update_block.encoder.convc1.weight": second}


assert published_sizes(two_tensors(64, 324)) == ("full", 4, 4), "4 levels of 81 are the full RAFT"
assert published_sizes(two_tensors(32, 147)) == ("small", 3, 3), "3 levels of 49 are 147"
assert published_sizes(two_tensors(32, 75)) == ("small", 3, 2), "3 levels of 25 are 75"
for wrong in (two_tensors(48, 324), two_tensors(64, 5000), {}):
    try:
        found = published_sizes(wrong)
    except ValueError:
        continue
    raise AssertionError(f"shapes of no RAFT were taken for {found}")

# %% [markdown]
# Now `from_official` has all it needs:

# %%
twin = RAFT.from_official(released)
print(twin.variant, twin.levels, twin.radius)
assert all(torch.equal(value, tensors[name]) for name, value in twin.state_dict().items())

# %% [markdown]
# ### Published weights, on request
#
# torchvision publishes eight sets of weights, some ported from the release and some trained anew. The letters name the data sets of the training: C FlyingChairs, T FlyingThings3D, S Sintel, K KITTI, H HD1K. Each file's name ends in the first 8 digits of its sha256, so a download can be checked against its own name. Nothing is fetched until a name is asked for; then the file stays in your cache folder.


# %% tags=["promote"]
# torchvision's name of a set, and the first digits of its file's sha256. Source: its
# models/optical_flow/raft.py.
PUBLISHED = {
    "raft_large_C_T_V1": "22a6c225",
    "raft_large_C_T_V2": "1bb1363a",
    "raft_large_C_T_SKHT_V1": "0b8c9e55",
    "raft_large_C_T_SKHT_V2": "ff5fadd5",
    "raft_large_C_T_SKHT_K_V1": "4a6a5039",
    "raft_large_C_T_SKHT_K_V2": "b5c70766",
    "raft_small_C_T_V1": "ad48884c",
    "raft_small_C_T_V2": "01064c6d",
}

_URL = "https://download.pytorch.org/models/{name}-{digits}.pth"


# %% tags=["promote"]
def load_raft(weights: str | Path = "course", *, correlation: str = "all-pairs") -> RAFT:
    """The model with weights, ready to estimate.

    weights      "course" for the course's own RAFT-small; a file that ends in .safetensors, .pth
                 or .pt, from the release, torchvision or this course; or a name in `PUBLISHED`,
                 downloaded the first time it is asked for
    correlation  as in `RAFT`

    A file with a model card beside it must match the card's hash. Raises FileNotFoundError for a
    file that is not there, ValueError for one that holds no RAFT, is damaged or has another hash,
    ConnectionError where a download fails.

    >>> load_raft().variant
    'small'
    """
    if weights == "course":
        path = data_path("checkpoints", "raft_small.safetensors")
    elif weights in PUBLISHED:
        digits = PUBLISHED[str(weights)]
        path = download(_URL.format(name=weights, digits=digits), digits)
    else:
        path = Path(weights)
    return RAFT.from_official(_read_weights(path), correlation=correlation)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(
            f"weights is {str(path)!r}; expected 'course', a file that ends in .safetensors, .pth "
            f"or .pt, or one of {', '.join(PUBLISHED)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"weights is {str(path)!r}; there is no such file")
    if path.suffix == ".safetensors":
        card = path.with_suffix(".json")
        digest = str(read_json(card, ("sha256",))["sha256"]) if card.is_file() else None
        return load_tensors(path, digest)
    try:
        # With weights_only, a file can hold tensors, and no code that would run when it is read.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged file brings out errors of many types.
        raise ValueError(
            f"{path.name} is not a whole file of tensors ({str(error).splitlines()[0]})"
        ) from error


# %% [markdown]
# `load_raft()` gave the model of the figures above. A `.pth` file is a pickle, and a pickle can run code when it is read; `weights_only=True` refuses everything but tensors and plain containers.

# %%
with shows_error(ValueError):
    load_raft("raft_huge")

# %% [markdown]
# ### What a large image costs
#
# Equation 7 in code. The number of pairs grows with the fourth power of an image's side.


# %% tags=["promote", "exercise"]
def volume_bytes(height: int, width: int, levels: int = 4) -> int:
    """Memory of one pair's all-pairs correlation, for images of this size (equation 7).

    height, width  of the images in pixels; padded up to multiples of 8
    returns        bytes, four for each number of every level
    """
    H, W = -(-height // 8), -(-width // 8)
    return 4 * H * W * sum((H // 2**level) * (W // 2**level) for level in range(levels))


# %% tags=["check"]
assert volume_bytes(128, 160, levels=1) == 4 * (16 * 20) ** 2, "all pairs of 16 × 20 pixels"
measured = CorrelationVolume(*torch.zeros(2, 1, 8, 17, 23), levels=3).levels
expected = sum(level.nbytes for level in measured)
assert volume_bytes(8 * 17, 8 * 23, levels=3) == expected, (
    "odd levels lose their last row or column"
)
assert volume_bytes(129, 160) == volume_bytes(136, 160), "sizes are padded up to multiples of 8"


# %% tags=["figure"]
def draw_memory():
    figure, axes = canvas(1, 1, 5.0, 2.4)
    heights = range(128, 2200, 8)
    sizes = [volume_bytes(h, h * 16 // 9) / 2**30 for h in heights]
    axes.loglog(heights, sizes, color=COLOURS["flow"])
    for name, (height, width) in {
        "Sintel": (436, 1024),
        "full HD": (1080, 1920),
        "4K": (2160, 3840),
    }.items():
        size = volume_bytes(height, width) / 2**30
        axes.plot(height, size, "o", color=COLOURS["query"])
        axes.text(0.94 * height, size, f"{name}: {size:.2g} GiB", ha="right", va="bottom")
    ticks = [128, 256, 512, 1024, 2048]
    axes.set(xlabel="height of a 16:9 image (px)", ylabel="memory M (GiB)", ylim=(None, 400))
    axes.set(xticks=ticks, xticklabels=ticks)
    axes.minorticks_off()
    return figure


show(
    draw_memory(),
    alt="Memory of the correlation volume against the height of an image: a straight "
    "line on two logarithmic axes, with Sintel, full HD and 4K marked",
)

# %% [markdown]
# Sintel's frames are wider than 16:9, so their dot lies above the line. A straight line on these axes is a power law: doubling the height multiplies the memory by 16. `correlation="on-demand"` ([lesson 4](4_correlation.ipynb)) keeps features instead and makes the products where they are read: the same flow, in memory that grows with the number of pixels.

# %%
on_demand = load_raft(correlation="on-demand")
gap = on_demand.estimate(left, right, 4).full - course.estimate(left, right, 4).full
print(f"largest difference: {gap.abs().max():.1e} px")
assert gap.abs().max() < 1e-2  # the same products in another order, rounded in float32

# %% [markdown]
# ## On real input
#
# ### The flow, iteration by iteration
#
# The stereo pair has a true flow: each pixel moves left by its disparity. `forward` gives the flow of every iteration, so one run shows all of them.

# %%
truth = torch.cat([-pair.disparity, torch.zeros_like(pair.disparity)], dim=1)
known = pair.valid[:, 0]
image1, padding = pad(pair.left)
with torch.no_grad():
    way = [unpad(flow.full, padding) for flow in course(image1, pad(pair.right)[0], 16)]
errors = [end_point_error(flow, truth, known).item() for flow in way]
still = end_point_error(torch.zeros_like(truth), truth, known).item()
print("mean error in px: no motion", f"{still:.2f};", " ".join(f"{error:.2f}" for error in errors))


# %% tags=["figure"]
def draw_sharpening(shown=(1, 2, 4, 12)):
    figure, grid = canvas(2, 5, 7.6, 2.9)
    longest = truth.norm(dim=1).max().item()
    for (top, below), n in zip(grid.T, shown, strict=False):
        top.imshow(to_picture(flow_to_image(way[n - 1], longest)))
        top.set_title(f"flow V after {n}")
        wrong = (way[n - 1] - truth).norm(dim=1)[0].where(known[0], 0)
        below.imshow(wrong, vmin=0, vmax=6, cmap="gray_r")
        below.set_title(f"error: {errors[n - 1]:.2f} px")
    grid[0, 4].imshow(to_picture(flow_to_image(truth.where(known, 0), longest)))
    grid[0, 4].set_title("true flow")
    grid[1, 4].plot(range(17), [still, *errors], "o-", color=COLOURS["flow"], ms=2)
    grid[1, 4].set(ylim=(0, None), xticks=[0, 8, 16], xlabel="iterations", title="error (px)")
    for each in grid.flat[:-1]:
        each.set(xticks=[], yticks=[])
    return figure


show(
    draw_sharpening(),
    alt="The flow after 1, 2, 4 and 12 iterations beside the true flow, in which the motorcycle stands "
    "out; below, where each is wrong, and the mean error falling with the iterations",
    photo=True,
)

# %% [markdown]
# Below each flow, dark is where it is wrong (black: 6 px or more; white also where no truth is known). The first iteration finds most of the motion, blurred; the next ones sharpen the motorcycle's outline. Then the flow changes little; look where the error remains, at edges of motion and at the border of the picture. Whether the error stays there or creeps up again is up to the weights: training asks for a good flow after some number of iterations, and nothing beyond. Compare with published weights, if you are online: `load_raft("raft_small_C_T_V2")`.
#
# ### Three frames, and a warm start
#
# In a video the next pair often moves like the last. So begin there: `initial_flow` takes the coarse flow of the pair before, a **warm start** (热启动). Three frames come from one photograph, seen by a camera that turns, sways and comes closer a little, as if held by hand. A matrix and a place say which point of the photograph each pixel of frame $t$ shows, so the true flow is known too. (The weights have seen this cat in training, in other motions.)

# %%
grid = pixel_grid(160, 224)
middle = torch.tensor([223.0, 159.0]) / 2


def camera(t):
    """The matrix (2, 2) and the place (2,) of frame t in the photograph."""
    angle, zoom = torch.tensor(0.014 * t), 1 + 0.012 * t
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    return turn / zoom, torch.tensor([212.0 + 3.5 * t, 150.0 - 2.0 * t])


def points(t):
    """The point of the photograph that each pixel of frame t shows, (160, 224, 2)."""
    turn, place = camera(t)
    return (grid - middle) @ turn.T + place


# %%
cat = photograph("chelsea", height=300)
frames = [sample(cat, points(t)[None]) for t in range(3)]
turn, place = camera(2)
# Equal points in frames 1 and 2: solve the second frame's equation for its pixel.
pixels = (points(1) - place) @ torch.linalg.inv(turn).T + middle
motion = (pixels - grid).permute(2, 0, 1)[None]
lengths = motion.norm(dim=1)
print(f"true motion from frame 1 to 2: {lengths.min():.1f} to {lengths.max():.1f} px")
print(credit("chelsea"))

# %%
before = course.estimate(frames[0], frames[1])
for n in (1, 2, 4, 8):
    cold = course.estimate(frames[1], frames[2], n).full
    warm = course.estimate(frames[1], frames[2], n, initial_flow=before.coarse).full
    scores = [end_point_error(flow, motion).item() for flow in (cold, warm)]
    print(f"{n} iterations: cold start {scores[0]:.2f} px, warm start {scores[1]:.2f} px")

# %% [markdown]
# Compare the columns: the first row shows what the work of the last pair is worth, the last one how much of that is left after more iterations. Only the flow is handed on; the state starts anew. The release also moves each vector along itself first, since the pixel that it belongs to has moved: that is `forward_interpolate` of [lesson 2](2_fields.ipynb).
#
# ### Two photographs of your own
#
# Write the paths of two photographs of one size, taken one after the other or a small step apart; `None` takes the frames above. `height` averages large photographs down: a model that learned from short motions misses long ones, and memory grows fast.

# %%
path1 = None  # such as "photos/first.jpg"
path2 = None  # such as "photos/second.jpg"

mine = (
    frames[:2]
    if path1 is None or path2 is None
    else [read_image(path, height=240) for path in (path1, path2)]
)

# %%
estimated = course.estimate(*mine)
lengths = estimated.full.norm(dim=1)
print(f"motion: mean {lengths.mean():.1f} px, largest {lengths.max():.1f} px")
show(
    flow_picture(mine[0], estimated.full),
    alt="The first photograph with arrows that show where its pixels go, the flow in colours, and "
    "the wheel that says which colour is which direction",
    photo=True,
)

# %% [markdown]
# Read the colours with the wheel: the hue says where a pixel goes, and white stays in place. In a terminal, `fourfold flow first.jpg second.jpg` does the same without a notebook, and writes the numbers as a `.flo` file and this picture beside them.
#
# The flow leads from image 1 to image 2, so a pixel of image 1 finds its partner at $p$ in image 2. To undo the motion, read image 2 at those places:


# %%
def draw_undone():
    H, W = mine[0].shape[2:]
    points = pixel_grid(H, W) + estimated.full[0].permute(1, 2, 0)
    back = sample(mine[1], points[None])
    inside = sample(torch.ones_like(mine[1]), points[None]) > 0.99
    figure, axes = canvas(1, 2, 7.0, 2.6)
    for each, image, title in zip(
        axes, (mine[1], back), ("as it is", "read along the flow"), strict=True
    ):
        difference = ((image - mine[0]).abs() * inside).mean(dim=1, keepdim=True)
        each.imshow(to_picture(255 - 3 * difference), cmap="gray", vmin=0, vmax=255)
        each.set(title=f"image 2 {title}: {difference[inside[:, :1]].mean():.1f} grey levels off")
        each.set(xlabel="x (px)", ylabel="y (px)")
    return figure


show(
    draw_undone(),
    alt="How far image 2 differs from image 1, as it is and read along the flow",
    photo=True,
)

# %% [markdown]
# Dark is a difference. Where the estimate is right and the pixel is seen in both images, reading image 2 along the flow takes it away; look at what stays to see where the flow is wrong.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `refine` | 15 | ●●○ |
# | `our_name` | 5 | ●○○ |
# | `published_sizes` | 15 | ●●○ |
# | `volume_bytes` | 5 | ●○○ |
#
# <details><summary>Hint for <code>refine</code></summary>
#
# `pixel_grid(H, W)` is (H, W, 2), and positions are (2, H, W). One `detach` at the top of the loop stops what equations 3, 4 and 5 need stopped. `yield flow, h` at its end.
#
# </details>
#
# <details><summary>Hint for <code>our_name</code></summary>
#
# `re.sub(pattern, replacement, name)` gives the name back unchanged where the pattern does not occur. The result of one row goes into the next.
#
# </details>
#
# <details><summary>Hint for <code>published_sizes</code></summary>
#
# `VARIANTS[variant].widths[0]` is the number of outputs of the first convolution. For the rest, `divmod(channels, (2 * radius + 1) ** 2)` gives levels and remainder; try radii from 0 to 8, and accept 1 to 8 levels.
#
# </details>
#
# <details><summary>Hint for <code>volume_bytes</code></summary>
#
# `-(-n // 8)` divides and rounds up. Levels halve and round down, as pooling does.
#
# </details>
#
# **Predict.** You estimate 8 iterations, take the coarse flow, and estimate 8 more with it as `initial_flow`. Is the result that of 16 iterations?
#
# <details><summary>Hint</summary>
#
# What goes from one iteration to the next, besides the flow? See equation 4.
#
# </details>

# %%
first = course.estimate(left, right, iterations=8)
continued = course.estimate(left, right, iterations=8, initial_flow=first.coarse)
at_once = course.estimate(left, right, iterations=16)
apart = (continued.full - at_once.full).norm(dim=1).mean().item()
print(f"mean distance of the two: {apart:.3f} px")

# %% [markdown]
# <details><summary>Answer</summary>
#
# No. The flow is the same at the joint, but the state $h$ starts again from the context, where 16 iterations hand on $h_8$. The cell above prints how far the results lie apart.
#
# </details>
#
# **Find the bug.** A user calls the parts of the model directly, with images scaled as another library wants them. A flow comes out. What is wrong with it, and what would `model(…)` have said?


# %%
def flow_of_parts(model, image1, image2):
    correlation, h, share = model.prepare(image1 / 255, image2 / 255)
    *_, (flow, _) = refine(model.update_block, correlation, h, share, torch.zeros(1, 2, 15, 22), 8)
    return flow


with torch.no_grad():
    apart = (flow_of_parts(course, left, right) - first.coarse).norm(dim=1).mean()
print(f"mean distance from the flow of the same images in [0, 255]: {apart:.2f} coarse px")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which numbers reach the encoders, after the model's own scaling?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The images are divided by 255 twice: 255 becomes $2/255 - 1$, so all that the encoders see lies within 0.008 of −1, two nearly black photographs. The feature encoder's instance norm stretches the contrast again; the context encoder of the small model has no norm. So the flow is wrong and does not look it. `model(image1 / 255, image2 / 255)` refuses: no value over 1, expected [0, 255].
#
# </details>
#
# **Measure.** How do seconds grow with the iterations, and what does the first one cost? Time `course.estimate` at 1, 5, 9 and 13 iterations, and fit a line.
#
# <details><summary>Hint</summary>
#
# `min(timeit.repeat(call, number=1, repeat=3))` is the fastest of three runs. `numpy.polyfit(x, y, 1)` gives slope and intercept.
#
# </details>

# %%
counts, seconds = (1, 5, 9, 13), []
for n in counts:
    runs = timeit.repeat(lambda n=n: course.estimate(left, right, n), number=1, repeat=3)
    seconds.append(min(runs))
slope, intercept = np.polyfit(counts, seconds, 1)

# %% [markdown]
# <details><summary>Answer</summary>
#
# `print(slope, intercept, intercept / slope)`. The intercept is the first stage, encoders and correlation, and one upsampling; the slope is one look-up and one update; the ratio says how many iterations cost as much as the first stage. Report all three with the size of the images and the number of threads.
#
# </details>

# %% [markdown]
# ## What breaks
#
# ### Looking up at the flow
#
# The correlation is read at the positions $p = p_0 + f$. Reading at $f$ is a mistake that runs: with no motion, every pixel would look at the top-left corner of image 2. How high is the best correlation in a window, on average?

# %%
with torch.no_grad():
    correlation, *_ = course.prepare(left, right)
    at_rest = torch.zeros(1, 2, 15, 22)
    grid = pixel_grid(15, 22).permute(2, 0, 1)[None]
    side = 2 * course.radius + 1
    for name, where in {"grid plus flow": grid + at_rest, "flow alone": at_rest}.items():
        print(f"{name:>14}: {correlation(where)[:, : side**2].amax(1).mean():.2f}")

# %% [markdown]
# ### Images that are too small
#
# The message names the size that is needed, and the other way out: fewer levels, which needs weights trained with fewer.

# %%
with shows_error(ValueError):
    course.estimate(left[..., :20, :28], right[..., :20, :28])
with shows_error(ValueError):
    RAFT("small")(left, right)

# %% [markdown]
# ### Other bad input

# %%
with shows_error(ValueError):
    course.estimate(left, right[..., :-1])
with shows_error(TypeError):
    course.estimate(left.byte(), right.byte())
with shows_error(ValueError):
    course.estimate(left / 255, right / 255)
with shows_error(ValueError):
    course.estimate(left, right.where(right < 200, torch.nan))
with shows_error(ValueError):
    course(pair.left, pair.right)
with shows_error(ValueError):
    course.estimate(left, right, initial_flow=at_rest[..., 1:])

# %% [markdown]
# ### Weights that do not fit
#
# Every key that is missing, unexpected or of another shape is named at once, by its name in this course:

# %%
damaged = dict(tensors)
del damaged["fnet.conv1.bias"]
damaged["update_block.extra"] = torch.zeros(1)
damaged["cnet.conv2.bias"] = torch.zeros(3)
with shows_error(ValueError):
    RAFT.from_official(damaged)
with shows_error(ValueError):
    RAFT.from_official(tensors, variant="small")

# %% [markdown]
# ## Recap
#
# - Once for a pair: features, correlation pyramid, state and context. At every iteration: read at $p_0 + f$, update, add the change.
# - The gradient passes through the state and stops at the flow. In use, only the last flow is upsampled.
# - Variant, levels and radius can be read from a dictionary of tensors, so `from_official` takes the weights of the release, of torchvision and of the course.
#
# The line goes on in [lesson 7](7_learning.ipynb), where these weights are learned from photographs, and in [lesson 8](8_experiments.ipynb), which asks what each part is worth.
