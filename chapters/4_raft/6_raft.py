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
# **After this lesson you can** say what happens to two photographs between RAFT's door and its last flow, load the course's weights or published ones into the model you have read, and run it on two photographs of your own.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb) (`3_window`), and of this chapter the [encoders](3_encoders.ipynb), the [correlation](4_correlation.ipynb) and the [update](5_update.ipynb). *Time:* 50 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# RAFT estimates the **flow** (光流): for every pixel of a first image, how far it moved to the right and down until the second. It works on a **coarse grid** (粗网格), an eighth of the image's size, and in two stages.
#
# The first stage looks at the images once. An encoder turns each image into **features** $F$ (特征), a vector for every place of the coarse grid. The products of all vectors of one image with all vectors of the other are the **correlation** $C$ (相关体积), averaged down to a pyramid of $L$ levels. A second encoder sees image 1 alone and gives the **context** $x$ and the first hidden **state** $h$.
#
# The second stage repeats one step. It reads the correlation around the **positions** $p$ where the present **flow** $f$ sends each pixel, and a gated unit turns what it read, the context and the state into a new state and a **change** $\Delta$ of the flow. One flow field of one resolution is kept and improved, from zero; no coarse-to-fine cascade hands its mistakes on. At the end the flow is brought to full size.

# %% [markdown]
# ## Figure
#
# ### Every stage, on a real pair
#
# The pair shows one scene from two cameras side by side. The weights are the course's own RAFT-small. A **hook** is a function that torch calls with the inputs and results of a part each time it runs; three hooks write down what passes, and everything below is drawn from their notes.

# %%
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from matplotlib.patches import ConnectionPatch
from torch import Tensor, nn

from fourfold.bilinear_sampling.sampling import _check_floating, sample
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.kit.arguments import whole_number
from fourfold.kit.checkpoints import check_keys, load_tensors, read_json
from fourfold.kit.data import data_path
from fourfold.kit.downloads import download
from fourfold.kit.drawing import (
    COLOURS,
    canvas,
    film_strip,
    flow_to_image,
    show,
    to_picture,
)
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
def watch(model, image1, image2, iterations=8):
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


# %%
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
    shares = shares / ((inner - middle) @ directions.T).std(dim=0) / 4 + 0.5
    return 255 * shares.T.view(1, 3, *features.shape[2:])


def panels_of(notes, query):
    """The name, shape and picture of each tensor on the way, for one query pixel (x, y)."""
    features = notes["fnet"][0][1]
    state, context = notes["cnet"][0][1].split([course.hidden, course.context], dim=1)
    _, _, windows, flow = notes["update_block"][-1][0]
    (x, y), change = query, notes["update_block"][-1][1][1]
    level = CorrelationVolume(*features.chunk(2)).levels[0]
    side, full = 2 * course.radius + 1, notes["output"].full
    return {
        "image 1": (left.shape, left),
        "image 2": (right.shape, right),
        "features F": (features[:1].shape, in_colours(features[:1])),
        "features F ": (features[1:].shape, in_colours(features[1:])),
        "correlation C": (level.shape, level[y * flow.shape[3] + x]),
        "read at positions p": (windows.shape, windows[0, : side**2, y, x].view(side, side).T),
        "state h": (state.shape, in_colours(state.tanh())),
        "context x": (context.shape, in_colours(context.relu())),
        "change Δ": (change.shape, flow_to_image(change)),
        "flow f": (flow.shape, flow_to_image(flow)),
        "full flow V": (full.shape, flow_to_image(full)),
    }


# %% tags=["figure"]
PLACES = (
    ("image 1", "features F", "correlation C", "read at positions p"),
    ("image 2", "features F ", "flow f", "change Δ"),
    ("", "full flow V", "context x", "state h"),
)
ARROWS = {
    "features F": ["image 1"],
    "features F ": ["image 2"],
    "correlation C": ["features F", "features F "],
    "read at positions p": ["correlation C", "flow f"],
    "change Δ": ["read at positions p", "context x", "state h"],
    "flow f": ["change Δ"],
    "full flow V": ["flow f"],
}


def draw_raft(query=(14, 9)):
    figure, grid = canvas(3, 4, 7.6, 5.0)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.05)
    axes = {name: grid[row, n] for row in range(3) for n, name in enumerate(PLACES[row])}
    for name, (shape, picture) in panels_of(notes, query).items():
        picture = to_picture(picture) if picture.ndim > 2 else picture
        axes[name].imshow(picture, aspect="auto", cmap="gray")
        origin = ", from image 1" if name in ("state h", "context x") else ""
        axes[name].set_title(f"{name}{origin}\n{tuple(shape)}", fontsize=7.5)
        axes[name].set(xticks=[], yticks=[])
    dot = {"color": COLOURS["query"], "markeredgecolor": "white"}
    axes["image 1"].plot(*(8 * place + 3.5 for place in query), "o", **dot)
    for end, starts in ARROWS.items():
        for start in starts:
            draw_arrow(figure, axes[start], axes[end])
    axes[""].set_axis_off()
    facts = {"levels L": course.levels, "radius r": course.radius}
    facts["iteration k"] = len(notes["update_block"]) - 1
    said = "\n\n".join(f"{name} = {value}" for name, value in facts.items())
    axes[""].text(0.1, 0.5, said, fontsize=8, va="center")
    return figure


def draw_arrow(figure, start, end):
    """From the edge of one picture to the facing edge of another."""
    spans = [axes.get_subplotspec() for axes in (start, end)]
    right, down = (
        (getattr(spans[1], f"{axis}span").start - getattr(spans[0], f"{axis}span").start)
        for axis in ("col", "row")
    )
    out = ((right > 0) - (right < 0), (down < 0) - (down > 0))
    x = 0.5 if right else 0.92  # upright arrows pass beside the titles
    place = [(x + 0.5 * side * out[0], 0.5 + 0.5 * side * out[1]) for side in (1, -1)]
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "lw": 1.4, "color": COLOURS["flow"]}
    ends = {"coordsA": start.transAxes, "coordsB": end.transAxes}
    figure.add_artist(ConnectionPatch(*place, **ends, **style))


show(
    draw_raft(),
    alt="Pictures of every stage of RAFT with arrows between them: two images, their features, the "
    "correlation of one pixel, the window read from it, state and context, the change of the flow, "
    "the flow on the coarse grid and at full size",
)
print(credit("motorcycle"))

# %% [markdown]
# Follow the arrows. The dot on image 1 is one pixel; its correlation with all of image 2 is one small map, and what the model reads of it is the window around the pixel's present position. State and context come from image 1 alone. The change, drawn with a scale of its own, goes into the flow, and the flow says where to read next: this loop is the second stage. The colours of features, state and context are the three directions in which their vectors differ most.
#
# ### The same run, with letters
#
# `Pipeline.trace` of [chapter 1](../1_paper_writing/1_one_line.ipynb) runs a model under hooks of its own, again with each side of the images doubled, and so finds out which size of each tensor answers to which size of the image.


# %% tags=["figure"]
small_pair = (left[..., :64, :96], right[..., :64, :96])
run = Pipeline.trace(
    course, *small_pair, axes=["B C H W"] * 2, sizes={"D": 128}, keywords={"iterations": 3}
)
show(run.draw(), alt=run.describe())

# %% [markdown]
# Every part works on a grid of H/8 × W/8; the encoders ran once, the update block as often as there are iterations, with its own result among its inputs. The two encoders have under a seventh of the parameters:

# %% tags=["nbval-check-output"]
learned = {stage.name: stage.parameters for stage in run.stages if stage.parameters}
print(learned, f"encoders: {1 - learned['update_block'] / sum(learned.values()):.0%}")

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
# Iteration $k$ reads the correlation around the positions $p$. With $p_0$, the coarse grid's own pixels,
#
# $$ p = p_0 + f_k \tag{3} $$
#
# and the update block $U$ of lesson 5 makes of the windows $C_r(p)$, of radius $r$, the next state and the change $\Delta$:
#
# $$ (h_{k+1},\; \Delta) = U\big(h_k,\; x,\; C_r(p),\; f_k\big) \tag{4} $$
#
# $$ f_{k+1} = \mathrm{stop}(f_k) + \Delta, \qquad f_0 = 0 \tag{5} $$
#
# `stop` gives its argument back and lets no gradient through (`detach` in torch); equations 3 and 4 read the stopped $f_k$ as well. The full flow $V$ is the upsampled $f$, eight times as large in size and in length:
#
# $$ V = \mathrm{upsample}_8(f_{k+1},\; h_{k+1}) \tag{6} $$
#
# For the all-pairs volume of an $H \times W$ image, with $L$ levels of four bytes a number, the memory $M$ is
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
# | $C$ | correlation pyramid of all pairs | level l: (B·HW/64, H/8·2ˡ, W/8·2ˡ) | `correlation` | correlation C |
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
# ### The release's way, word by word
#
# The released code keeps two sets of positions: `coords0`, where each pixel of image 1 is, and `coords1`, where it is in image 2. The flow is their difference. Here is that loop, with the parts of lessons 3 to 5.


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
# `share` is the part of the gated unit's sums that comes from the context (lesson 5): it is the same at every iteration, so it is made once.
#
# ### Two fields make one result
#
# A flow is wanted at two sizes: full, for whoever uses it, and coarse, to begin the next pair with. A named tuple keeps them together and says which is which.


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
# Equations 3 to 5. As a **generator**, a function with `yield`, it hands out each flow when it is made: training collects all of them, and whoever wants the last one pays for upsampling once.
#
# Where `coords1` was, there stands `start + flow`. The sum of many small numbers loses less when the large coordinate is added last.


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
    return 2 * h * one, h[:, :2] * one + 0 * windows


seen, zero = [], torch.zeros(1, 2, 2, 3)
refined = refine(step, lambda p: seen.append(p) or p, torch.ones(1, 4, 2, 3), zero, zero + 5, 3)
flows = list(refined)
assert len(flows) == 3, "one flow for each iteration"
assert [f[0, 0, 0, 0].item() for f, _ in flows] == [6, 8, 12], "the change is added each time"
assert flows[-1][1][0, 0, 0, 0] == 8, "the state of one iteration goes into the next"
grid = pixel_grid(2, 3).permute(2, 0, 1)
assert torch.equal(seen[0][0], grid + 5), "equation 3: positions are the grid plus the flow"
assert torch.equal(seen[2][0], grid + 8), "each iteration reads where the last one has led"
# The last change is 4·one³: 3 factors through the states, none through the earlier flows.
(slope,) = torch.autograd.grad(flows[-1][0][0, 0, 0, 0], one)
assert slope.item() == 12, "the gradient must stop at the flow (detach), and pass the state"

# %% [markdown]
# ### Why detach
#
# Without `stop`, a flow depends on all earlier ones twice: as a sum, and through the positions. The derivative with respect to a position is the slope of the correlation between two pixels, which jumps at every pixel. To measure what that does, take the gradient of the last flow alone with respect to the feature encoder's first layer, both ways.


# %%
def attached(update_block, correlation, h, share, flow, iterations):
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
# At one iteration the two agree, since the first flow is a constant. Further down, the detached column holds what reaches the last change alone; the attached one adds what comes through the flows before it, at positions that have moved since. The loss of training ([lesson 7](7_learning.ipynb)) looks at the flow after every iteration, so each change gets a signal of its own, and the detour through the positions is not needed.
#
# ### The sizes of two models
#
# Full and small differ in widths, in the blocks of their encoders, and in the context encoder's normalisation. These are data:


# %% tags=["promote"]
class Variant(NamedTuple):
    """The sizes of one published model."""

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
# The coarsest level of the pyramid needs two pixels each way: the release divides by its width minus one there and gives NaN for smaller images, so users have to trace NaN through its code. With 4 levels that asks for 128 pixels, with 3 for 64, which is how models learn on small crops. What else the door checks, *What breaks* shows.


# %% tags=["promote"]
def least_size(levels: int) -> int:
    """The height and width in pixels that leave the coarsest of `levels` with 2 × 2 pixels."""
    return 2 * 8 * 2 ** (levels - 1)


# %%
print({levels: least_size(levels) for levels in (1, 2, 3, 4)})


# %% tags=["promote"]
def _chosen(name: str, value: str, among: Mapping[str, object]) -> object:
    if value not in among:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(among)}")
    return among[value]


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
# On one page: what it is made of, what it makes once for a pair, the loop, and a door for people. `forward` is for training: it returns the flow of every iteration. `estimate` is for use: one pair or a batch, of any size, last flow only. It repeats the border until the sides are multiples of 8 and cuts the result back.


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
        sizes = _chosen("variant", variant, VARIANTS)
        _chosen("correlation", correlation, _CORRELATIONS)
        self.variant, self.correlation = variant, correlation
        self.levels = whole_number("levels", levels, least=1)
        self.radius = whole_number("radius", sizes.radius if radius is None else radius, least=0)
        self.hidden, self.context = sizes.hidden, sizes.context
        layers = {"block": sizes.block, "widths": sizes.widths}
        self.fnet = Encoder(sizes.features, "instance", **layers)
        self.cnet = Encoder(self.hidden + self.context, sizes.context_norm, **layers)
        channels = self.levels * (2 * self.radius + 1) ** 2
        self.update_block = UpdateBlock(channels, self.hidden, self.context, variant == "small")

    def prepare(self, image1: Tensor, image2: Tensor):
        """What a pair needs once: correlation, first state, context's share (equations 1 and 2)."""
        image1, image2 = (2 * (image / 255) - 1 for image in (image1, image2))
        features1, features2 = self.fnet(torch.cat([image1, image2])).chunk(2)
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
# `from_official` calls two functions that come further down, `from_published_names` and `published_sizes`; Python looks for them when it is called.
#
# The page agrees with the release's loop at every iteration, and needs no more than one upsampling for `estimate`:

# %%
torch.manual_seed(0)
model = RAFT("small", levels=3)
with torch.no_grad():
    model.load_state_dict(course.state_dict())
    by_the_page = model(left, right, 4)
for ours, theirs in zip(by_the_page, by_the_loop, strict=True):
    # One pair or two images in a batch, grid plus flow or coords1: float32 rounds differently.
    assert torch.allclose(ours.full, theirs, atol=1e-3), "the page differs from the loop"
last = model.estimate(left, right, 4)
assert torch.allclose(last.full, by_the_page[-1].full, atol=1e-3), "estimate is the last of forward"

# %% [markdown]
# Both models have as many parameters as published (the table of torchvision's weights says how many):

# %% tags=["nbval-check-output"]
for variant in VARIANTS:
    count = sum(p.numel() for p in RAFT(variant).parameters())
    print(f"{variant:>5}: {count:,} parameters")
    assert count == {"full": 5_257_536, "small": 990_162}[variant]

# %% [markdown]
# ### Any size
#
# 125 × 185 pixels are no multiples of 8. `estimate` adds a border of repeated pixels, and cuts the flow back; the coarse flow covers the padded size.

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
# ### Names of other houses
#
# Weights are a dictionary from names to tensors, and three houses name the same tensors differently: the release, torchvision and this course. The release saved its model while it ran on several GPUs, which puts `module.` before every name. The differences are a table of patterns, tried from top to bottom:


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
# Two matters no single name can settle. The small model has one gated unit, so `horizontal` goes away where no `vertical` is. And the release keeps one normalisation of the full context encoder twice, as `norm3` and as `downsample.1`; both become one, if they agree.


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
# To see both formats give one model without a download, write a full model's tensors under the others' names, by rules that run the other way, and load them back.


# %%
def release_names(tensors):
    rules = (
        ("gru.horizontal.conv(.)", r"gru.conv\g<1>1"),
        ("gru.vertical.conv(.)", r"gru.conv\g<1>2"),
    )
    rules += (("mask.conv1", "mask.0"), ("mask.conv2", "mask.2"))
    named = {rewritten(name, rules): value for name, value in tensors.items()}
    again = {re.sub(r"^(cnet.*)downsample\.1\.", r"\1norm3.", name): named[name] for name in named}
    return {f"module.{name}": value for name, value in (named | again).items()}


def torchvision_names(tensors):
    rules = (("update_block.mask.conv1", "mask_predictor.convrelu.0"),)
    rules += (("update_block.mask.conv2", "mask_predictor.conv"),)
    rules += ((r"(layer.*)\.conv(\d)", r"\1.convnormrelu\2.0"),)
    rules += ((r"(layer.*)\.norm(\d)", r"\1.convnormrelu\2.1"), ("net.conv1", "net.convnormrelu.0"))
    rules += (("net.norm1", "net.convnormrelu.1"), ("net.conv2", "net.conv"))
    rules += (
        ("encoder.convc(.)", r"motion_encoder.convcorr\1.0"),
        ("encoder.conv[.]", "motion_encoder.conv.0."),
    )
    rules += (("encoder.convf(.)", r"motion_encoder.convflow\1.0"),)
    rules += (
        ("gru.horizontal", "recurrent_block.convgru1"),
        ("gru.vertical", "recurrent_block.convgru2"),
    )
    rules += (("fnet", "feature_encoder"), ("cnet", "context_encoder"))
    return {rewritten(name, rules): value for name, value in tensors.items()}


def rewritten(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# %%
tensors = RAFT("full").state_dict()
spellings = {"release": release_names(tensors), "torchvision": torchvision_names(tensors)}
for house, named in spellings.items():
    print(f"{house:>11}: {len(named)} names, such as {list(named)[150]}")


# %% [markdown]
# ### What the shapes say
#
# A dictionary of tensors does not say which model it belongs to; the shapes do. The first convolution of an encoder has as many outputs as the variant's first width. The first convolution of the motion encoder reads $L\,(2r+1)^2$ correlations: with 147 of them, a radius of 3 leaves 3 levels. Several pairs can fit one number, so the radius nearest to the published one is tried first.


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
    # The radius nearest to the published one that leaves a plausible number of levels.
    for radius in sorted(range(9), key=lambda r: abs(r - VARIANTS[variant].radius)):
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

# %%
for house, named in spellings.items():
    found = RAFT.from_official(named).state_dict()
    assert found.keys() == tensors.keys() and all(
        torch.equal(found[n], tensors[n]) for n in tensors
    )
    print(f"{house:>11}: the same {len(found)} tensors")

# %% [markdown]
# ### Published weights, on request
#
# torchvision publishes eight sets of weights, some ported from the release and some trained anew: C is for the data set FlyingChairs, T for FlyingThings3D, S Sintel, K KITTI, H HD1K. Each file's name ends in the first 8 digits of its sha256, so a download can be checked against its own name. Nothing is fetched until a name is asked for; then the file stays in your cache folder.


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
# `load_raft()` has drawn the figures above. Reading `.pth` files is a matter of trust: they are pickles, and a pickle can run code. `weights_only=True` refuses everything but tensors and plain containers.

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
    for height, name in ((436, "Sintel"), (1080, "full HD"), (2160, "4K")):
        size = volume_bytes(height, height * 16 // 9) / 2**30
        axes.plot(height, size, "o", color=COLOURS["query"])
        axes.annotate(
            f"{name}: {size:.2g} GiB",
            (height, size),
            (-6, 2),
            ha="right",
            textcoords="offset points",
        )
    axes.set(xlabel="height of a 16:9 image (px)", ylabel="memory M (GiB)")
    axes.set(xticks=[128, 256, 512, 1024, 2048], xticklabels=[128, 256, 512, 1024, 2048])
    axes.minorticks_off()
    return figure


show(
    draw_memory(),
    alt="Memory of the correlation volume against the height of an image: a straight "
    "line on two logarithmic axes, past 20 GiB for full HD",
)

# %% [markdown]
# Doubling the height multiplies the memory by 16. `correlation="on-demand"` ([lesson 4](4_correlation.ipynb)) keeps features instead and makes the products where they are read: the same flow, slower, in memory that grows with the number of pixels.

# %%
on_demand = load_raft(correlation="on-demand")
for model in (course, on_demand):
    began = time.perf_counter()
    flow = model.estimate(left, right, iterations=4).full
    print(f"{model.correlation}: {time.perf_counter() - began:.2f} s")
# The same products in another order, which float32 rounds differently.
assert torch.allclose(flow, course.estimate(left, right, iterations=4).full, atol=1e-2)

# %% [markdown]
# ## On real input
#
# ### The flow, iteration by iteration
#
# The stereo pair has a true flow: each pixel moves left by its disparity. `forward` gives the flow of every iteration, so one run shows the whole way.

# %%
truth = torch.cat([-pair.disparity, torch.zeros_like(pair.disparity)], dim=1)
known = pair.valid[:, 0]
image1, padding = pad(pair.left)
with torch.no_grad():
    way = [unpad(flow.full, padding) for flow in course(image1, pad(pair.right)[0], 16)]
errors = [end_point_error(flow, truth, known).item() for flow in way]
still = end_point_error(torch.zeros_like(truth), truth, known).item()
print("mean error in px: no motion", f"{still:.2f};", " ".join(f"{error:.2f}" for error in errors))


# %%
longest = truth.norm(dim=1).max().item()
shown = {f"after {n}": way[n - 1] for n in (1, 2, 4, 16)} | {"true flow": truth * known}
show(
    film_strip(
        [flow_to_image(flow, longest) for flow in shown.values()], titles=list(shown), width=7.5
    ),
    alt="The flow after 1, 2, 4 and 16 iterations, and the true flow, in which the motorcycle "
    "stands out from the background",
)


# %%
def draw_errors():
    changes = [(b - a).norm(dim=1).mean().item() for a, b in pairwise(way)]
    figure, (first, second) = canvas(1, 2, 7.0, 2.2)
    first.plot(range(len(errors) + 1), [still, *errors], "o-", color=COLOURS["flow"], ms=3)
    first.set(xlabel="iterations", ylabel="mean error (px)", ylim=(0, None), xticks=range(0, 17, 4))
    second.plot(range(2, len(way) + 1), changes, "o-", color=COLOURS["muted"], ms=3)
    second.set(
        xlabel="iteration", ylabel="mean change (px)", ylim=(0, None), xticks=range(0, 17, 4)
    )
    return figure


show(draw_errors(), alt="Mean error and mean change of the flow against the number of iterations")

# %% [markdown]
# Most of the way is made in the first iterations; then the changes become small, and the flow stays. Where the error rises again while the flow still changes, the weights have not learned to stand still: training asks for a good flow after a fixed number of iterations, and nothing beyond. Compare with published weights, if you are online: `load_raft("raft_small_C_T_V2")`.
#
# ### Three frames, and a warm start
#
# In a video the next pair moves much like the last. So begin there: `initial_flow` takes the coarse flow of the pair before, a **warm start** (热启动). Three frames come from one photograph, by a camera that turns, sways and comes closer a little, as one held by hand. The sampling points of frame $t$ are those of the first, turned and scaled about a point; so the true flow is known too. (The weights have seen this cat in training, in other motions.)


# %%
def points_of_frame(t, height=160, width=224):
    """Where in the photograph each pixel of frame t lies: turned, scaled and shifted with t."""
    angle, zoom = torch.tensor(0.014 * t), 1 + 0.012 * t
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2) / zoom
    middle = torch.tensor([width - 1, height - 1]) / 2
    place = torch.tensor([212.0, 150.0]) + t * torch.tensor([3.5, -2.0])
    return (pixel_grid(height, width) - middle) @ turn.T + place


def flow_of_frames(t):
    """The exact flow from frame t to frame t + 1: solve for the pixel that sees the same point."""
    here, origin = points_of_frame(t), points_of_frame(t + 1)[0, 0]
    steps = points_of_frame(t + 1)[0, 1] - origin, points_of_frame(t + 1)[1, 0] - origin
    inverse = torch.linalg.inv(torch.stack(steps, dim=1))
    target = (here - origin) @ inverse.T
    return (target - pixel_grid(*here.shape[:2])).permute(2, 0, 1)[None]


# %%
cat = photograph("chelsea", height=300)
frames = [sample(cat, points_of_frame(t)[None]) for t in range(3)]
motions = [flow_of_frames(t) for t in range(2)]
lengths = motions[0].norm(dim=1)
print(f"true motion: {lengths.min():.1f} to {lengths.max():.1f} px")
print(credit("chelsea"))

# %%
before = course.estimate(frames[0], frames[1])
for n in (1, 2, 4, 8):
    cold = course.estimate(frames[1], frames[2], n).full
    warm = course.estimate(frames[1], frames[2], n, initial_flow=before.coarse).full
    scores = [end_point_error(flow, motions[1]).item() for flow in (cold, warm)]
    print(f"{n} iterations: cold start {scores[0]:.2f} px, warm start {scores[1]:.2f} px")

# %% [markdown]
# Compare the two columns. At one iteration the warm start has the work of the last pair behind it; the more iterations there are, the less the start matters. Here the coarse flow is handed on as it is. The release first moves each vector along itself, since the pixel it belongs to has moved: `forward_interpolate` of [lesson 2](2_fields.ipynb) does that, and matters where the motion is longer than a coarse pixel.
#
# ### Two photographs of your own
#
# Write two paths, of two photographs of one size, taken one after the other or a step apart; `None` takes the frames above. Large photographs take long: `height` averages them down.

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
# Read the colours with the wheel: a camera that comes closer pushes everything outwards from one point, where the flow is white. In a terminal, `fourfold flow first.jpg second.jpg` does the same without a notebook, and writes the numbers as a `.flo` file and this picture beside them.
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
# Dark is a difference. Reading image 2 along the flow takes most of it away; what stays lies at edges, or outside, or where the estimate is wrong.

# %% [markdown]
# > **Where the code leaves the paper.** The paper sums up its update as one unit; the released code adds details that its weights need: the correlation is divided by $\sqrt{D}$, the mask of the upsampling is multiplied by ¼, and RAFT-small upsamples by bilinear sampling. The release upsamples at every iteration, also in use, and puts the context through the gated unit's convolutions each time; here both are done once, with the same numbers.

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
# `VARIANTS[variant].widths[0]` is the number of outputs of the first convolution. For the rest, `divmod(channels, (2 * radius + 1) ** 2)` gives levels and remainder; begin with the published radius, and accept 1 to 8 levels.
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
# **Find the bug.** A user runs this on two uint8 photographs from a file, scaled as another library wants them. It returns a flow. What is wrong with it, and what would the door have said?


# %%
def flow_without_door(model, image1, image2):
    correlation, h, share = model.prepare(image1 / 255, image2 / 255)
    *_, (flow, _) = refine(model.update_block, correlation, h, share, h.new_zeros(1, 2, 15, 22), 8)
    return flow


with torch.no_grad():
    dim = flow_without_door(course, left, right)
print(
    f"mean motion {dim.norm(dim=1).mean():.2f} coarse px; estimated from [0, 255]: "
    f"{first.coarse.norm(dim=1).mean():.2f}"
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which numbers reach the encoders, after the model's own scaling?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The images are divided by 255 twice, so all that the encoders see lies within 0.008 of −1: two nearly black photographs. The feature encoder's instance norm stretches the contrast again, the context encoder of the small model has none, so the result is wrong without being senseless. `model(image1 / 255, image2 / 255)` refuses: no value over 1, expected [0, 255].
#
# </details>
#
# **Measure.** How do seconds grow with the iterations, and what does the first one cost? Time `course.estimate` at 1, 5, 9 and 13 iterations, and fit a line.
#
# <details><summary>Hint</summary>
#
# `time.perf_counter()` before and after; take the smallest of three runs each. `numpy.polyfit(x, y, 1)` gives slope and intercept.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The intercept is the first stage, encoders and correlation, and one upsampling; the slope is one look-up and one update. Report both with the size of the images and the number of threads. The ratio says how many iterations cost as much as the whole first stage.
#
# </details>

# %% [markdown]
# ## What breaks
#
# ### Looking up at the flow
#
# The correlation is read at the positions $p = p_0 + f$. Reading at $f$ is a mistake that runs (users of the release ask why it is `coords1`): with no motion, every pixel would look at the top-left corner of image 2.

# %%
with torch.no_grad():
    correlation, *_ = course.prepare(left, right)
    at_rest = torch.zeros(1, 2, 15, 22)
    grid = pixel_grid(15, 22).permute(2, 0, 1)[None]
    side = 2 * course.radius + 1
    for name, where in {"grid plus flow": grid + at_rest, "flow alone": at_rest}.items():
        windows = correlation(where)[:, : side**2]
        print(f"{name:>14}: highest correlation in a window, mean {windows.amax(1).mean():.2f}")

# %% [markdown]
# ### Images that are too small
#
# The message names the size that is needed, and the other way out: fewer levels, which needs weights trained with fewer.

# %%
with shows_error(ValueError):
    course.estimate(left[..., :48, :60], right[..., :48, :60])
with shows_error(ValueError):
    RAFT("small")(left, right)

# %% [markdown]
# ### What the door says to other bad input

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
# Every key that is missing, unexpected or of another shape is named at once, by our name, so that one look is enough:

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
# - Once for a pair: features, correlation pyramid, state and context. Again and again: read at $p_0 + f$, update, add the change.
# - The gradient passes through the state and stops at the flow; the last flow alone is upsampled in use.
# - Names, variant, levels and radius are data that a dictionary of tensors gives away, so one door takes the release's weights, torchvision's and the course's.
#
# The line goes on in [lesson 7](7_learning.ipynb), where these weights are learned from photographs, and in [lesson 8](8_experiments.ipynb), which asks what each part is worth.
