# ---
# jupyter:
#   fourfold:
#     accelerator: helpful
#     level: intermediate
#     minutes: 60
#     needs:
#     - 4_raft/7_learning
#     - 5_cotracker/2_tracks
#     - 5_cotracker/6_cotracker
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learning: tracks from made clips
#
# **After this lesson you can** make clips whose tracks you know exactly, write down what each version of CoTracker is asked to minimise, train a small model in three stages, and score it on clips that it never saw.
#
# *Before this:* [Learning](../4_raft/7_learning.ipynb) of chapter 4 (`7_learning`), whose scenes move on here, and of this chapter [Tracks](2_tracks.ipynb) (`2_tracks`) for the scores and [CoTracker](6_cotracker.ipynb) (`6_cotracker`) for the model. *Time:* 60 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# A tracker learns from clips in which the place of every point is known in every frame, hidden or not. Nobody can mark that by hand. So the clips are **made** (合成数据), as the pairs of chapter 4 were: a scene is a stack of cut-outs of photographs, and each **layer** $l$ follows a **motion** $A$ of its own, which now goes on, smoothly, from frame $t = 0$ to the last **frame** $t$. A point that lies on a layer goes where the layer goes; that is its **track** $p$ (轨迹). It is **visible** $v$ where it is inside the image and no nearer layer covers it. The **query** $q$ says in which frame and at which place the model is asked for it.
#
# The model answers in windows, and in each of them $M$ times, once an iteration. A **loss** $\mathcal{L}$ compares every answer with the truth, earlier iterations with less **weight** $\gamma$, and at the places that are **counted** by $c$, those from the query's frame on. A second part asks whether each point is seen: the model gives a **score** $s$, a logit, and a **cross-entropy** (交叉熵) says how well it fits. The two versions of CoTracker differ in these parts, and this course trains with a third form of them.
#
# On two processor cores, training everything at once from nothing does not get off the ground. So the course trains in three **stages**, which are its own and not the paper's. First the **features** $F$ alone: the **anchor** $a$, the feature at the query, must single out the point among all places of every frame. Then the update, with the features held fixed. Then all of it, on longer clips.

# %% [markdown]
# ## Figure
#
# ### A made clip

# %%
import csv
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import inside, pixel_grid
from fourfold.cotracker.cotracker import CoTracker, Estimate, load_cotracker
from fourfold.cotracker.features import STRIDE
from fourfold.cotracker.learning import hidden_between, random_clip_scene, render_clip
from fourfold.cotracker.predictor import Predictor, resize_points, resize_video
from fourfold.cotracker.tracks import Score, Tracks, chained_flow, stay_put, tap_vid_metrics
from fourfold.kit.arguments import whole_number
from fourfold.kit.checkpoints import ModelCard, save_checkpoint
from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, film_strip, show, to_picture
from fourfold.kit.images import credit
from fourfold.kit.notebook import shows_error
from fourfold.kit.scale import at_scale, hardware, seed_everything
from fourfold.kit.training import StepRecord, Trained, train
from fourfold.raft.fields import classical_flow
from fourfold.raft.learning import (
    HELD_OUT_PHOTOGRAPHS,
    TRAIN_PHOTOGRAPHS,
    Scene,
    _checked_size,
    color_jitter,
    coverage,
    erase,
    front_layer,
    load_photographs,
    move,
    paint,
    random_scene,
    similarity,
    uniform,
)
from fourfold.raft.raft import load_raft

H, W, T = 96, 128, 24


def seeded(seed):
    return torch.Generator().manual_seed(seed)


photographs = load_photographs(TRAIN_PHOTOGRAPHS)
clip_scene = random_clip_scene(photographs, (H, W), T, seeded(27))
clip = render_clip(clip_scene, (H, W), 48, seeded(1))
returning = hidden_between(clip.visible).any(dim=0).nonzero()[:, 0]
print(f"{len(clip_scene.scene.textures)} layers, 48 points; {len(returning)} are hidden and return")


# %% tags=["figure"]
def draw_clip(numbers, frames=(0, 6, 11, 17, 23)):
    """Some frames of the clip with some of its points."""
    figure, axes = canvas(1, len(frames), 7.4, 1.75, sharey=True)
    for each, t in zip(axes, frames, strict=True):
        each.imshow(to_picture(clip.video[t]))
        each.autoscale(False)
        each.set(title=f"frame t = {t}", xlabel="x (px)")
        for n in numbers:
            path, seen = clip.points[: t + 1, n], clip.visible[t, n]
            each.plot(*path.T, color=COLOURS["query"], linewidth=1)
            style = {"markerfacecolor": COLOURS["query"] if seen else "none", "markersize": 5}
            each.plot(*path[-1], "o", color=COLOURS["query"], markeredgewidth=1.2, **style)
    axes[0].set(ylabel="y (px)")
    note = {"size": 7, "bbox": {"facecolor": "white", "pad": 1, "linewidth": 0}}
    axes[0].text(4, 88, "query q", **note)
    axes[1].text(4, 88, "layer l in front", **note)
    axes[2].text(4, 88, "○ visible v = 0", **note)
    axes[3].text(4, 88, "● visible v = 1", **note)
    axes[4].text(4, 88, "track p", **note)
    return figure


show(
    draw_clip(returning[::4].tolist()),
    alt="Five frames of a clip: discs and scraps of photographs slide over a portrait. Points keep to "
    "their layer; where another layer covers one it is drawn as a ring, and as a dot again later",
    photo=True,
)
print(*(credit(name) for name in ("astronaut", "gravel", "hubble", "coins")), sep="\n")

# %% [markdown]
# A line is the way that a point came. A ring is a point that another layer hides: the true track goes on behind it, and this is what no camera can record.


# %% tags=["figure"]
def draw_motion():
    """Where the middle of each layer is in each frame, and which points each frame shows."""
    figure, (left, right) = canvas(1, 2, 7.0, 2.3, width_ratios=(1, 1.25))
    middle = torch.tensor([W / 2, H / 2, 1.0])
    x = (clip_scene.motion @ middle)[..., 0] - W / 2
    for layer, path in enumerate(x.T):
        shade = COLOURS["muted"] if layer == 0 else COLOURS["first"]
        left.plot(path, color=shade, alpha=1 if layer == 0 else 0.35 + 0.1 * layer)
    left.set(title="motion A: each layer's shift in x", xlabel="frame t", ylabel="x (px)")
    left.text(T - 1, x[-1, 0], "background", ha="right", va="bottom", size=7)
    order = clip.queries[:, 0].argsort()
    right.imshow(clip.visible[:, order].T, cmap="gray", aspect="auto", interpolation="nearest")
    right.plot(clip.queries[order, 0], range(len(order)), ".", color=COLOURS["query"])
    right.set(title="visible v: white; query q: dot", xlabel="frame t", ylabel="point n")
    return figure


show(
    draw_motion(),
    alt="Left, one smooth curve for each layer over the frames. Right, a table of points by frames, "
    "white where the frame shows the point, with a dot at each query",
)

# %% [markdown]
# Left, the background moves with the camera, and every other layer by itself on top of that. Right, a row is a point. Most are asked for in the first frame that shows them, some in another one.
#
# ### What is counted
#
# A window sees eight frames. The next figure shows the second window of the same clip, and the third: what the loss of this course counts there, and by how much.


# %% tags=["figure"]
def draw_counted():
    figure, axes = canvas(1, 2, 6.6, 2.2, sharey=True)
    order = clip.queries[:, 0].argsort()
    for each, first in zip(axes, (4, 8), strict=True):
        t = torch.arange(first, first + 8)
        counts = (t[:, None] >= clip.queries[:, 0]) * torch.where(clip.visible[t], 1.0, 0.2)
        picture = each.imshow(
            counts[:, order].T,
            aspect="auto",
            cmap="viridis",
            interpolation="nearest",
            extent=(first - 0.5, first + 7.5, 47.5, -0.5),
        )
        each.set(title=f"counted c, window from {first}", xlabel="frame t")
    axes[0].set(ylabel="point n")
    figure.colorbar(picture, ax=axes, label="counted c", ticks=[0, 0.2, 1])
    return figure


show(
    draw_counted(),
    alt="Two tables of points by frames: 0 before a point's query, 1 where it is visible, 0.2 where "
    "it is hidden",
)

# %% [markdown]
# Frames before a point's query count nothing, so the dark triangle gets smaller from window to window. Hidden points count a fifth.

# %% [markdown]
# ## Formula
#
# A path is a steady part and two sinusoids with random shares $\xi$, frequencies $\omega$ and phases $\phi$. Divided by $\omega$, each has slopes of at most 1; the whole is divided so that no step is longer than 1 and the path never farther from its start than a reach:
#
# $$ \lambda(t) = \tfrac12\, \xi_0\, t + \sum_{k=1}^{2} \xi_k\, \frac{\sin(\omega_k t + \phi_k) - \sin \phi_k}{\omega_k} \tag{1} $$
#
# Four such paths, with a unit each, make a shift in x and in y, a turn and a zoom: a similarity of chapter 4. The camera's $K$ acts on all layers, each layer's own $O$ before it, and in frame 0 nothing has moved:
#
# $$ A_{t,l} = K_t\, O_{t,l}, \qquad A_{0,l} = 1 \tag{2} $$
#
# Each frame is painted as in chapter 4, layer over layer, with the cover $\alpha$ and the photograph $P$ read where the pixel came from in frame 0:
#
# $$ I_t \leftarrow \left(1 - \alpha_l(A_{t,l}^{-1} x)\right) I_t + \alpha_l(A_{t,l}^{-1} x)\, P_l(A_{t,l}^{-1} x), \qquad l = 0, 1, \dots \tag{3} $$
#
# A point of layer $l$ that is at $x_q$ in frame $t_q$ goes back to frame 0 and from there to every frame. It is seen where it is inside and no layer in front covers half of the place or more:
#
# $$ p_t = A_{t,l}\, A_{t_q,l}^{-1}\, x_q, \qquad q = (t_q, x_q) \tag{4} $$
#
# $$ v_t = 1 \ \text{ if } p_t \text{ is inside and } \max\{\, k : \alpha_k(A_{t,k}^{-1}\, p_t) \ge \tfrac12 \,\} \le l, \ \text{ else } 0 \tag{5} $$
#
# The loss of the points, in one window, over all $M$ iterations, with estimates $\hat p_1, \dots, \hat p_M$:
#
# $$ \mathcal{L}_{\text{points}} = \frac1M \sum_{i=1}^{M} \gamma^{\,M-i}\, \operatorname{mean}_c \left|\hat p_i - p\right|, \qquad \operatorname{mean}_c e = \frac{\sum c\, e}{\sum c} \tag{6} $$
#
# The loss of a score, for visible and hidden places apart, so that both weigh the same however rare the hidden ones are:
#
# $$ \mathcal{L}_{\text{seen}}(s) = \operatorname{mean}_{c,\,v=1} \log(1 + e^{-s}) + \operatorname{mean}_{c,\,v=0} \log(1 + e^{s}) \tag{7} $$
#
# Version 2 adds up windows $w$ and divides by the number of points $N$. It hands equation 7 the probability $\sigma(s)$ where a logit belongs:
#
# $$ \mathcal{L}_2 = \sum_w \frac1N \left( \mathcal{L}_{\text{points}} + 10\, \mathcal{L}_{\text{seen}}(\sigma(s)) \right) \tag{8} $$
#
# Version 3 takes the mean over windows. Visible points have a **Huber** error $h$, square when small and linear from 6 pixels on, hidden points an absolute error; at every iteration a binary cross-entropy $b$ judges the visibility, and for visible points the confidence $r$ that the error is at most 12 pixels:
#
# $$ \mathcal{L}_3 = \operatorname{mean}_w \left( \frac{\mathcal{L}^{h,\,v=1}_{\text{points}}}{20} + \frac{\mathcal{L}^{v=0}_{\text{points}}}{100} + \frac1M \sum_i \left[ b(s_i, v) + v\, b\!\left(r_i, |\hat p_i - p| \le 12\right) \right] \right) \tag{9} $$
#
# This course takes absolute errors, hidden points at a fifth, and the score as a logit, once a window:
#
# $$ \mathcal{L} = \operatorname{mean}_w \left( \mathcal{L}_{\text{points}} + \operatorname{mean}_c b(s, v) \right), \qquad c = \text{asked} \cdot (1 \text{ if visible, else } \tfrac15) \tag{10} $$
#
# Before that, the features learn alone. All places $x$ of a frame compete for the anchor $a = F_{t_q}(x_q)$, a vector of $d$ numbers; the true place should win:
#
# $$ \mathcal{L}_{\text{match}} = -\operatorname{mean}_{v=1} \log \operatorname*{softmax}_x\left( \frac{\langle a, F_t(x) \rangle}{\sqrt d} \right)\Bigg|_{x = p_t} \tag{11} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $t$ | frame | 0 … T − 1 | `times` | frame t |
# | $l$ | layer, 0 the background, the last in front | 0 … L − 1 | `layer` | layer l |
# | $A$ | motion of a layer from frame 0 to a frame | (T, L, 3, 3) | `motion` | motion A |
# | $q$ | query: a frame that shows the point, and where | (N, 3), frames and px | `queries` | query q |
# | $p$ | track: the true place in each frame | (T, N, 2), px | `points` | track p |
# | $v$ | visible: whether the frame shows the point | (T, N), 0 or 1 | `visible` | visible v |
# | $c$ | counted: by how much a place counts in a loss | (B, S, N) | `counts` | counted c |
# | $M$ | iterations of one window | whole number | `M` | of M |
# | $\gamma$ | weight of an iteration against the next | 0.8 | `gamma` | weight γ |
# | $s$ | score of being visible, a logit | (B, S, N) | `scores` | score s |
# | $a$ | anchor: the feature at the query | (B, N, C) | `anchors` | anchor a |
# | $F$ | features of the frames | (B·T, h, w, C) | `level` | features F |
# | $\mathcal{L}$ | loss of one batch | px, or none | `loss` | loss L |
#
# Not in the table, since they serve an equation or two: $\lambda$ (`path`), $\xi$ (`share`), $\omega$ (`pace`), $\phi$ (`phase`), $K$ (`camera`), $O$ (`own`), $P$ (`photo`), $\alpha$ (`cover`), $h$ (`huber`), $b$ (`wrong`, `right`), $r$ (`sure`), $w$ (`windows`).
#
# Letters of shapes: $B$ clips of a batch, $T$ frames, $S$ frames of a window, $N$ points, $L$ layers, $C$ numbers of a feature (the $d$ of equation 11), $H$ and $W$ the size of a frame, $h$ and $w$ that of a feature map.


# %% tags=["figure"]
def draw_losses():
    figure, (left, middle, right) = canvas(1, 3, 7.2, 2.2)
    scores = torch.linspace(-6, 6, 121)
    for name, given, shade in (
        ("logit", scores, "first"),
        ("probability", scores.sigmoid(), "bad"),
    ):
        left.plot(scores, F.softplus(-given), color=COLOURS[shade], label=f"given as {name}")
    left.set(title="loss L of a visible point", xlabel="score s", ylabel="log(1 + exp(−…))")
    left.set(ylim=(-0.3, 8))
    left.legend(fontsize=7, frameon=False, loc="upper right")
    error = torch.linspace(0, 20, 101)
    middle.plot(error, error, color=COLOURS["first"], label="absolute")
    huber = F.huber_loss(error, 0 * error, reduction="none", delta=6.0)
    middle.plot(error, huber / 6, "--", color=COLOURS["second"], label="Huber / 6")
    middle.axvline(12, color=COLOURS["muted"], linewidth=1)
    middle.text(12.3, 1, "confident\nup to here", size=7)
    middle.set(title="loss L of a point", xlabel="error (px)")
    middle.set(ylim=(-1, 26))
    middle.legend(fontsize=7, frameon=False, loc="upper left")
    right.bar(range(1, 5), [0.8 ** (4 - i) for i in range(1, 5)], color=COLOURS["first"])
    right.set(title="weight γ to the M − i", xlabel="iteration i of M", xticks=range(1, 5))
    return figure


show(
    draw_losses(),
    alt="Left, the loss of a visible point falls to 0 over its logit, and only to 0.31 where the "
    "probability is given instead. Middle, absolute and Huber errors. Right, the rising weights of "
    "four iterations",
)

# %% [markdown]
# Left, the quirk of version 2: given the probability, the curve is flat at both ends and never falls below 0.31.
#
# > **Where the code leaves the paper.** The paper's training clips are rendered (Kubric MOVi-F, 11,000 clips of 24 frames, with 2,048 tracks each); they do not come with this course, and the generator here takes their place. The losses of versions 2 and 3 are the releases', with two differences from the papers: the probability in equation 8, and in version 3 the absolute error of hidden points, where the paper says Huber. An author agreed in public that Huber is what should stand there. Equations 10 and 11 and the three stages are this course's own.

# %% [markdown]
# ## Code
#
# ### A scene that moves on
#
# Chapter 4's `Scene` has photographs, their places, and outlines; its one motion, from image 1 to image 2, is not read here. A stack of motions takes its place, one for each frame and layer.


# %% tags=["promote"]
class ClipScene(NamedTuple):
    """L layers from back to front that move for T frames; layer 0 covers every image.

    scene    the layers as they lie in frame 0; its own `motion` is not read
    motion   (T, L, 3, 3) from frame 0 to frame t; the identity for t = 0

    Convention: (x, y) in pixels, x to the right, y down, the top-left pixel's centre at (0, 0).
    """

    scene: Scene
    motion: Float[Tensor, "T L 3 3"]


# %% [markdown]
# Equation 1, for many paths at once:


# %% tags=["promote"]
def smooth_paths(
    frames: int, count: int, generator: torch.Generator, *, reach: float, waves: int = 2
) -> Float[Tensor, "T K"]:
    """Draw numbers that change smoothly from frame to frame (equation 1 of the lesson).

    frames   T of the clip
    count    K paths, each for itself; all begin at 0
    reach    no path gets farther from 0; those that would are slower
    waves    sinusoids on top of a steady part, with periods of 10 to 40 frames
    returns  (T, K) with steps of at most 1, without unit: the caller gives it one by a factor
    """
    t = torch.arange(frames)[:, None]
    period = torch.exp(uniform(math.log(10), math.log(40), waves, 1, count, generator=generator))
    phase = uniform(-math.pi, math.pi, waves, 1, count, generator=generator)
    share = torch.randn(waves + 1, 1, count, generator=generator)
    pace = 2 * math.pi / period
    # Divided by its pace, each sinusoid has slopes of at most 1.
    swing = ((pace * t + phase).sin() - phase.sin()) / pace
    path = 0.5 * share[0] * t + (share[1:] * swing).sum(dim=0)
    fastest = torch.cat([path[:1], path.diff(dim=0)]).abs().amax(dim=0)
    farthest = path.abs().amax(dim=0) / reach
    return path / torch.maximum(fastest, farthest).clamp(min=1e-6)


# %%
path = smooth_paths(T, 1000, seeded(0), reach=8.0)
assert path[0].eq(0).all() and path.diff(dim=0).abs().max() < 1 + 1e-5  # one division rounds
print(f"steps of at most {path.diff(dim=0).abs().max():.3f}, at most {path.abs().max():.3f} away")

# %% [markdown]
# Four paths and `similarity` make the motions of equation 2. Turns and zooms are small, and each layer draws how much of them it has.


# %% tags=["promote"]
def _random_motions(
    centre: Float[Tensor, "L 2"],
    frames: int,
    generator: torch.Generator,
    *,
    speed: Float[Tensor, "L"],
    turning: float,
    reach: float,
) -> Float[Tensor, "T L 3 3"]:
    """Similarities along smooth paths: shifts in steps of up to `speed` px, turns in radians."""
    L = len(centre)
    x, y, angle, zoom = smooth_paths(frames, 4 * L, generator, reach=reach).chunk(4, dim=1)
    swing = turning * torch.rand(2, L, generator=generator)
    shift = torch.stack([x, y], dim=-1) * speed[:, None] / math.sqrt(2)
    matrices = similarity(
        (swing[0] * angle).flatten(),
        (0.3 * swing[1] * zoom).exp().flatten(),
        shift.flatten(0, 1),
        centre.repeat(frames, 1),
    )
    return matrices.unflatten(0, (frames, L))


# %% tags=["promote"]
def random_clip_scene(
    photographs: Sequence[Tensor],
    size: tuple[int, int],
    frames: int,
    generator: torch.Generator,
    *,
    speed: float = 6.0,
    layers: int = 5,
    grow: float = 1.4,
) -> ClipScene:
    """Draw a background, one to `layers` layers in front, and their motions (equation 2).

    A camera moves all of them alike; each front layer moves by itself on top of that.

    photographs  (3, h, w) each, in [0, 255], to cut the layers from
    size         (H, W) of the frames in pixels
    frames       T of the clip
    generator    of the random numbers: the same state gives the same scene
    speed        the longest step of a layer against the camera, in pixels per frame; the camera's
                 own is about a third of it at most, and turns and zooms add a little
    grow         how much larger the layers are than those of `random_scene`

    Raises ValueError for no photographs and for a size, frames, speed or layers out of range.
    """
    if not speed >= 0:
        raise ValueError(f"speed is {speed}; expected 0 pixels per frame or more")
    T = whole_number("frames", frames, least=1)
    scene = random_scene(photographs, size, generator, reach=0.0, layers=layers)
    scene.outline[1:, :2] /= grow
    L, (H, W) = len(scene.textures), size
    reach = 0.5 * min(H, W) / max(speed, 1e-6)
    # What lies at 0 of the shape's own frame is the layer's middle.
    middle = -torch.linalg.solve(scene.outline[:, :2, :2], scene.outline[:, :2, 2])
    pace = speed * uniform(0.4, 1.0, L, generator=generator)
    pace[0] = 0.0
    own = _random_motions(middle, T, generator, speed=pace, turning=0.03, reach=reach)
    own[:, 0] = torch.eye(3)
    pace = speed * uniform(0.05, 0.35, 1, generator=generator)
    centre = torch.tensor([[W / 2, H / 2]])
    camera = _random_motions(centre, T, generator, speed=pace, turning=0.01, reach=reach)
    return ClipScene(scene, camera @ own)


# %%
again = random_clip_scene(photographs, (H, W), T, seeded(27))
assert torch.equal(again.motion, clip_scene.motion)
assert torch.allclose(again.motion[0], torch.eye(3).expand_as(again.motion[0]), atol=1e-4)
print("motion A", tuple(again.motion.shape))

# %% [markdown]
# ### All frames at once
#
# Equation 3, frame by frame, with chapter 4's `paint`: every layer is evaluated at every pixel.


# %%
def paint_one(clip_scene, t):
    """Frame t, painted as chapter 4 paints image 2."""
    scene, motion = clip_scene
    here = pixel_grid(H, W).expand(len(motion[t]), H, W, 2)
    origin = move(torch.linalg.inv(motion[t]), here)
    cover = coverage(scene, origin)
    return paint(scene, origin, cover), front_layer(cover)


begin = time.perf_counter()
slowly = torch.stack([paint_one(clip_scene, t)[0] for t in range(T)])
slow_seconds = time.perf_counter() - begin

# %% [markdown]
# Most of that is wasted: a small layer covers a few pixels, and its outline and photograph are computed at all of them. The faster way handles all frames together, and each layer only at the pixels within the farthest that its outline can reach.


# %% tags=["promote"]
def _layer(scene: Scene, number: int) -> Scene:
    """A scene of one layer of the scene."""
    chosen = slice(number, number + 1)
    return Scene(scene.textures[chosen], *(part[chosen] for part in scene[1:]))


def _near_outline(
    layer: Scene, back: Float[Tensor, "T 3 3"], here: Float[Tensor, "T H W 2"]
) -> tuple[Int[Tensor, "K"], Float[Tensor, "1 1 K 2"]]:
    """The pixels of all frames that the layer may touch, and where they lie in frame 0.

    back     (T, 3, 3) from frame t to frame 0
    here     (T, H, W, 2) the pixels of the frames
    chosen   (K,) their numbers in the order of T × H × W
    origin   (1, 1, K, 2) as (x, y), in pixels
    """
    local = move(layer.outline @ back, here)
    # No radius is longer than 1 and all amplitudes together; the edge is soft over a pixel.
    soft = layer.outline[0, :2, :2].det().abs().sqrt()
    farthest = 1 + layer.waves.norm(dim=1).sum() + soft
    x, y = local.unbind(-1)  # summing over an axis of two takes far longer
    chosen = (x * x + y * y <= farthest**2).flatten().nonzero()[:, 0]
    near = local.flatten(0, 2)[chosen]
    return chosen, move(torch.linalg.inv(layer.outline), near[None, None])


def _read(photo: Float[Tensor, "3 h w"], places: Float[Tensor, "*N 2"]) -> Float[Tensor, "3 K"]:
    return sample(photo[None], places.reshape(1, -1, 2), padding="reflection")[0]


# %% tags=["promote"]
def paint_clip(
    clip_scene: ClipScene, size: tuple[int, int]
) -> tuple[Float[Tensor, "T 3 H W"], Int[Tensor, "T H W"]]:
    """Paint all frames, layer over layer, each layer near its outline alone (equation 3).

    size     (H, W) in pixels
    video    (T, 3, H, W) in [0, 255], as `fourfold.raft.learning.paint` paints each frame
    front    (T, H, W) the number of the layer in front at each pixel, as `front_layer` gives it

    Convention: (x, y) in pixels, x to the right, y down, the top-left pixel's centre at (0, 0).
    """
    scene, motion = clip_scene
    T, (H, W) = len(motion), _checked_size(size)
    here = pixel_grid(H, W).expand(T, H, W, 2)
    back = torch.linalg.inv(motion)
    video = _read(scene.textures[0], move(scene.texture[0] @ back[:, 0], here))
    front = torch.zeros(T * H * W, dtype=torch.long)
    for number, photo in enumerate(scene.textures[1:], start=1):
        layer = _layer(scene, number)
        chosen, origin = _near_outline(layer, back[:, number], here)
        cover = coverage(layer, origin)[0, 0]
        pixels = _read(photo, move(layer.texture, origin))
        video[:, chosen] = torch.lerp(video[:, chosen], pixels, cover)
        front[chosen[cover >= 0.5]] = number
    return video.view(3, T, H, W).transpose(0, 1).contiguous(), front.view(T, H, W)


# %%
begin = time.perf_counter()
video, front = paint_clip(clip_scene, (H, W))
fast_seconds = time.perf_counter() - begin
# Places computed in another order differ by some 1e-4 px, between neighbours up to 255 apart.
assert torch.allclose(video, slowly, atol=0.2)
print(f"one frame after the other {slow_seconds:.2f} s, all at once {fast_seconds:.2f} s")

# %% [markdown]
# ### Where a point goes
#
# Equations 4 and 5 for one point: back to frame 0, on to frame $t$, and a look at what lies in front there.


# %%
def follow_one(clip_scene, start, layer):
    """The place and the visibility of one point in every frame."""
    scene, motion = clip_scene
    frame, *place = start.tolist()
    rest = torch.linalg.inv(motion[int(frame), layer]) @ torch.tensor([*place, 1.0])
    track = []
    for at_t in motion:
        there = (at_t[layer] @ rest)[:2]
        origin = move(torch.linalg.inv(at_t), there.expand(len(at_t), 1, 1, 2))
        seen = inside(there[None, None, None], H, W).item()
        track.append((there, seen and front_layer(coverage(scene, origin)).item() <= layer))
    points, visible = zip(*track, strict=True)
    return torch.stack(points), torch.tensor(visible)


starts = torch.tensor([[0.0, 40, 40], [5, 90, 60], [23, 64, 20]])
layers = front[starts[:, 0].long(), starts[:, 2].long(), starts[:, 1].long()]
one_by_one = [
    follow_one(clip_scene, s, number) for s, number in zip(starts, layers.tolist(), strict=True)
]


# %% tags=["promote"]
def follow_layers(
    clip_scene: ClipScene,
    size: tuple[int, int],
    start: Float[Tensor, "N 3"],
    layer: Int[Tensor, "N"],
) -> tuple[Float[Tensor, "T N 2"], Bool[Tensor, "T N"]]:
    """Move points with their layers, and say which frames show them (equations 4 and 5).

    size     (H, W) in pixels
    start    (N, 3) as (frame, x, y), in pixels
    layer    (N,) the number of the layer that each point lies on
    points   (T, N, 2) as (x, y), in pixels
    visible  (T, N) inside the image, with no nearer layer that covers half of the place or more

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    scene, motion = clip_scene
    (T, L), N, (H, W) = motion.shape[:2], len(layer), size
    back = torch.linalg.inv(motion)
    frame = start[:, 0].long()
    there = start[:, None, None, 1:]
    rest = move(back[frame, layer], there)  # where the points are in frame 0
    matrices = motion[:, layer].flatten(0, 1)
    points = move(matrices, rest.repeat(T, 1, 1, 1)).view(T, N, 2)
    points[frame, torch.arange(N)] = start[:, 1:]  # there and back again rounds
    everywhere = points[:, None, None].expand(T, L, 1, N, 2).flatten(0, 1)
    origin = move(back.flatten(0, 1), everywhere).view(T, L, N, 2).transpose(0, 1)
    nearest = front_layer(coverage(scene, origin))
    return points, inside(points[None], H, W)[0] & (nearest <= layer)


# %%
points, visible = follow_layers(clip_scene, (H, W), starts, layers)
for n, (path, seen) in enumerate(one_by_one):
    # float32 places near 128 and two matrices: right to some 1e-4 px.
    assert torch.allclose(points[:, n], path, atol=1e-3) and torch.equal(visible[:, n], seen)
print("shown in", visible.sum(dim=0).tolist(), f"of {T} frames")

# %% [markdown]
# ### Which points, and where they are asked for
#
# Points at random pixels of random frames are mostly background that nothing covers. A tracker learns more from points that get lost and come back. `hidden_between` finds them: hidden now, seen before, and seen again later. A running sum over the frames that is above 0 says "seen before".


# %% tags=["promote"]
def hidden_between(visible: Bool[Tensor, "T N"]) -> Bool[Tensor, "T N"]:
    """Where a point is hidden that was seen before and will be seen again."""
    before = visible.cumsum(dim=0) > 0
    after = visible.flip(0).cumsum(dim=0).flip(0) > 0
    return ~visible & before & after


# %%
line = torch.tensor([0, 1, 1, 0, 0, 1, 0], dtype=torch.bool)[:, None]
hidden_between(line)[:, 0].long().tolist()

# %% [markdown]
# Half of the points are spread evenly; the other half is drawn from six times as many, those on front layers with three times the weight, and those that are hidden for a while with eight more.


# %% tags=["promote"]
def _at_pixels(masks: Bool[Tensor, "T H W"], points: Float[Tensor, "T N 2"]) -> Bool[Tensor, "T N"]:
    """Read each frame's mask at the pixels nearest to the points."""
    (T, H, W), (x, y) = masks.shape, points.round().long().unbind(-1)
    return masks[torch.arange(T)[:, None], y.clamp(0, H - 1), x.clamp(0, W - 1)]


# %% tags=["promote"]
def draw_tracks(
    clip_scene: ClipScene,
    front: Int[Tensor, "T H W"],
    hidden: Bool[Tensor, "T H W"],
    count: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "T N 2"], Bool[Tensor, "T N"]]:
    """Draw points at pixels of random frames and follow them.

    Half of them are spread evenly over the clip; the other half prefers points on front layers,
    and more so points that are hidden for a while and come back.

    front    (T, H, W) the layer in front, from `paint_clip`
    hidden   (T, H, W) what is painted over after all layers: no point is drawn or visible there
    count    N
    returns  points (T, N, 2) as (x, y) in pixels, and visible (T, N), as `follow_layers`; every
             point is visible in one frame or more

    Raises ValueError where all pixels are hidden.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    H, W = front.shape[1:]
    free = (~hidden).flatten().nonzero()[:, 0]
    if len(free) == 0:
        raise ValueError("hidden is True everywhere; expected pixels to draw points at")
    even = count // 2
    drawn = free[torch.randint(len(free), (even + 6 * count,), generator=generator)]
    layer = front.flatten()[drawn]
    frame, y, x = drawn // (H * W), drawn // W % H, drawn % W
    start = torch.stack([frame, x, y], dim=-1).float()
    points, visible = follow_layers(clip_scene, (H, W), start, layer)
    visible[frame, torch.arange(len(drawn))] = True  # `front` says so; rounding might not
    visible &= ~_at_pixels(hidden, points)
    weight = 1.0 + 2.0 * (layer > 0) + 8.0 * hidden_between(visible).any(dim=0)
    preferred = torch.multinomial(weight[even:], count - even, generator=generator) + even
    chosen = torch.cat([torch.arange(even), preferred])
    return points[:, chosen], visible[:, chosen]


# %%
nothing = torch.zeros(T, H, W, dtype=torch.bool)
drawn, shown = draw_tracks(clip_scene, front, nothing, 200, seeded(0))
share = hidden_between(shown).any(dim=0)
print(
    f"even half {share[:100].float().mean():.0%} hidden and back, chosen half {share[100:].float().mean():.0%}"
)

# %% [markdown]
# The query of a point is its first visible frame; for a random quarter of the points any frame that shows it. Those are the release's shares. A point that is asked for in the middle of a clip teaches the model to wait for it.


# %% tags=["promote", "exercise"]
def choose_queries(
    points: Float[Tensor, "T N 2"],
    visible: Bool[Tensor, "T N"],
    generator: torch.Generator,
    anywhere: float = 0.25,
) -> Float[Tensor, "N 3"]:
    """Ask for each point in the first frame that shows it, or in any that does.

    anywhere  how often the frame is drawn from all that show the point
    returns   (N, 3) as (frame, x, y), in pixels

    Raises ValueError for a point that no frame shows.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    Source: CoTracker, training; the share is that of the released settings.
    """
    if not visible.any(dim=0).all():
        raise ValueError("visible has a point that no frame shows; expected one frame or more")
    first = visible.byte().argmax(dim=0)
    other = torch.multinomial(visible.T.float(), 1, generator=generator)[:, 0]
    frame = torch.where(torch.rand(len(first), generator=generator) < anywhere, other, first)
    places = points[frame, torch.arange(len(frame))]
    return torch.cat([frame[:, None].to(places), places], dim=-1)


# %% tags=["check"]
shows = torch.rand(6, 2000, generator=seeded(0)) < 0.5
shows[5] = True
ways = torch.rand(6, 2000, 2, generator=seeded(1))
always_first = choose_queries(ways, shows, seeded(2), anywhere=0.0)
assert always_first.shape == (2000, 3), "one (frame, x, y) for each point"
first_shown = torch.tensor([column.tolist().index(True) for column in shows.T])
assert torch.equal(always_first[:, 0].long(), first_shown), "anywhere=0 asks in the first frame"
asked_in = choose_queries(ways, shows, seeded(2), anywhere=1.0)
frame = asked_in[:, 0].long()
assert shows[frame, torch.arange(2000)].all(), "the frame of a query shows the point"
assert torch.equal(asked_in[:, 1:], ways[frame, torch.arange(2000)]), "x and y in that frame"
evenly = shows.float() / shows.sum(dim=0)
counted = torch.bincount(frame, minlength=6) / 2000
# Shares of 2,000 draws are right to about 0.01; four times that is a wide margin.
assert (counted - evenly.mean(dim=1)).abs().max() < 0.04, "anywhere=1 draws evenly from all shown"
mixed = choose_queries(ways, shows, seeded(3))[:, 0].long() == first_shown
expected = 0.75 + 0.25 * evenly[first_shown, torch.arange(2000)].mean()
assert abs(mixed.float().mean() - expected) < 0.04, "anywhere=¼ asks there for a quarter"
try:
    choose_queries(ways, shows & (torch.arange(2000) > 0), seeded(2))
except ValueError:
    pass
else:
    raise AssertionError("a point that no frame shows is a ValueError")


# %% [markdown]
# ### What else can hide a point
#
# The **eraser** of chapter 4 covers rectangles with a mean colour. There, the loss still asked for the flow below. Here the truth changes with it: a covered point is not visible, and nothing is drawn on it. The first frame is left alone.


# %% tags=["promote"]
def erase_frames(
    video: Float[Tensor, "T 3 H W"], generator: torch.Generator, sizes: tuple[int, int]
) -> tuple[Float[Tensor, "T 3 H W"], Bool[Tensor, "T H W"]]:
    """Cover rectangles of half of the frames after the first with the frame's mean colour.

    sizes    smallest and largest side in pixels, both inclusive
    returns  the video, and (T, H, W) where it was covered

    Source: CoTracker's augmentation, with `fourfold.raft.learning.erase`'s one or two rectangles.
    """
    first, *later = video.unbind(0)
    erased = torch.stack([first, *(erase(frame, generator, sizes) for frame in later)])
    return erased, (erased != video).any(dim=1)


# %% [markdown]
# A clip is the video, the truth and the queries:


# %% tags=["promote"]
class Clip(NamedTuple):
    """A video, the tracks of N of its points, and where to ask for them; a batch has an axis more.

    video    (T, 3, H, W) in [0, 255]
    points   (T, N, 2) where each point is in each frame as (x, y), in pixels, hidden ones too
    visible  (T, N) whether the frame shows the point
    queries  (N, 3) as (frame, x, y): one frame that shows the point, and where

    Convention: (x, y) in pixels, x to the right, y down, the top-left pixel's centre at (0, 0).
    """

    video: Float[Tensor, "*B T 3 H W"]
    points: Float[Tensor, "*B T N 2"]
    visible: Bool[Tensor, "*B T N"]
    queries: Float[Tensor, "*B N 3"]


# %% tags=["promote"]
def render_clip(
    clip_scene: ClipScene,
    size: tuple[int, int],
    points: int,
    generator: torch.Generator,
    *,
    boxes: tuple[int, int] | None = None,
) -> Clip:
    """Paint a clip and draw points to follow in it, with their exact tracks.

    size     (H, W) in pixels
    points   N
    boxes    smallest and largest side in pixels of what `erase_frames` covers; None for nothing
    returns  a Clip without a batch axis; `visible` is True at every query

    Raises ValueError for a size or points out of range.
    """
    N = whole_number("points", points, least=1)
    video, front = paint_clip(clip_scene, size)
    hidden = torch.zeros_like(front, dtype=torch.bool)
    if boxes is not None:
        video, hidden = erase_frames(video, generator, boxes)
    tracks, visible = draw_tracks(clip_scene, front, hidden, N, generator)
    return Clip(video, tracks, visible, choose_queries(tracks, visible, generator))


# %% [markdown]
# Are the tracks right? The colour at a visible point must be that at its query, up to what two interpolations blur. At a hidden point something else is seen.


# %%
def colour_gap(clip):
    """Mean grey levels between a point's colour at its query and now, where seen and where hidden."""
    now = sample(clip.video, clip.points)
    frame = clip.queries[:, 0].long()
    asked = now[frame, :, torch.arange(len(frame))]
    apart = (now - asked.T).abs().mean(dim=1)
    within = inside(clip.points[None], *clip.video.shape[-2:])[0]
    return [apart[part & within].mean().item() for part in (clip.visible, ~clip.visible)]


erased = render_clip(clip_scene, (H, W), 200, seeded(1), boxes=(12, 40))
for name, each in (("plain", clip), ("erased", erased)):
    seen, behind = colour_gap(each)
    print(f"{name:>6}: visible points {seen:4.1f} grey levels off, hidden ones {behind:4.1f}")
    assert seen < 8 and behind > 2 * seen

# %% [markdown]
# The light changes too, for the whole clip by one draw, and a little from frame to frame; and there is noise.


# %% tags=["promote"]
def augment_clip(clip: Clip, generator: torch.Generator, noise: float = 2.0) -> Clip:
    """Change the colours of a clip by one draw, the brightness of each frame a little, add noise.

    noise    the largest standard deviation of the noise, in grey levels; each clip draws its own
    """
    video = color_jitter(clip.video, generator, 0.3, 0.3, 0.3, 0.1)
    light = 1 + 0.03 * torch.randn(len(video), 1, 1, 1, generator=generator)
    amount = noise * torch.rand((), generator=generator)
    grain = torch.randn(video.shape, generator=generator)
    return clip._replace(video=(light * video).add_(amount * grain).clamp_(0, 255))


# %% [markdown]
# ### An endless set
#
# As in chapter 4, nothing is stored: clip number `index` is made when it is asked for, anew at every pass, or always the same with a seed.


# %% tags=["promote"]
class SyntheticClips(Dataset):
    """Clips with exact tracks, new ones at every pass; always the same ones with a seed.

    photographs  (3, h, w) each, in [0, 255]
    size         (H, W) of the frames in pixels
    frames       T of each clip
    points       N of each clip
    length       clips in one pass
    speed        the longest step of a layer against the camera, in pixels per frame
    augment      change the colours, cover parts of the frames after the first, add noise
    seed         None draws from torch's own random numbers

    Item `index` is a Clip without a batch axis. Raises what `random_clip_scene` raises.
    """

    def __init__(
        self,
        photographs: Sequence[Tensor],
        size: tuple[int, int] = (96, 128),
        *,
        frames: int = 24,
        points: int = 64,
        length: int = 1200,
        speed: float = 6.0,
        augment: bool = True,
        seed: int | None = None,
    ) -> None:
        self.photographs, self.size = photographs, _checked_size(size)
        self.frames = whole_number("frames", frames, least=1)
        self.points = whole_number("points", points, least=1)
        self.length = whole_number("length", length, least=1)
        self.speed, self.augment, self.seed = speed, augment, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Clip:
        if not 0 <= index < self.length:
            raise IndexError(f"index is {index}; expected 0 to {self.length - 1}")
        draw = int(torch.randint(2**48, ())) if self.seed is None else self.seed << 24
        generator = torch.Generator().manual_seed(draw + index)
        scene = random_clip_scene(
            self.photographs, self.size, self.frames, generator, speed=self.speed
        )
        boxes = (2, max(2, self.size[0] // 4)) if self.augment else None
        clip = render_clip(scene, self.size, self.points, generator, boxes=boxes)
        return augment_clip(clip, generator) if self.augment else clip


# %%
made = SyntheticClips(photographs, frames=T, seed=4)
show(
    film_strip(*(part[::6] for part in made[2][:3]), titles=[f"frame {t}" for t in range(0, T, 6)]),
    alt="Four frames of a clip as the model sees it: changed colours, covered rectangles, and tracks",
    photo=True,
)

# %% [markdown]
# For measuring, the clips are fixed and come from photographs that no training clip shows.


# %% tags=["promote"]
def held_out_clips(
    count: int = 16,
    size: tuple[int, int] = (96, 128),
    frames: int = 24,
    points: int = 64,
    speed: float = 6.0,
) -> Clip:
    """Clips for measuring, one batch, the same in every call, from HELD_OUT_PHOTOGRAPHS.

    count    B of the batch; the first clips do not depend on it
    size     (H, W) in pixels
    frames, points, speed  as in `SyntheticClips`
    """
    clips = SyntheticClips(
        load_photographs(HELD_OUT_PHOTOGRAPHS),
        size,
        frames=frames,
        points=points,
        length=count,
        speed=speed,
        augment=False,
        seed=7,
    )
    return Clip(*map(torch.stack, zip(*(clips[i] for i in range(count)), strict=True)))


# %%
held_out = held_out_clips(at_scale(cpu=4, gpu=16))
steps = held_out.points.diff(dim=1).norm(dim=-1)
print(f"{len(held_out.video)} clips of {T} frames; {held_out.visible.float().mean():.0%} visible; ")
print(f"a step is {steps.median():.1f} px long in the middle, {steps.max():.1f} px at most")

# %% [markdown]
# ### A mean of what counts
#
# All losses are means over the places that count. Where none does, as in the last window of a clip whose points were all asked for elsewhere, the mean is 0 and not NaN.


# %% tags=["promote"]
def mean_where(
    values: Float[Tensor, "B S N"], counts: Shaped[Tensor, "B S N"]
) -> Float[Tensor, ""]:
    """The mean of the values that count; 0 where none does.

    counts   (B, S, N) True, or a weight, where a value counts
    """
    counts = counts.to(values)
    return (values * counts).sum() / (counts.sum() + 1e-6)


# %%
values = torch.tensor([1.0, 2.0, 40.0]).view(1, 3, 1)
two = torch.tensor([True, True, False]).view(1, 3, 1)
mean_where(values, two).item(), mean_where(values, ~two & two).item()

# %% [markdown]
# ### The loss of points
#
# Equation 6, place by place, for one clip:


# %%
def track_loss_loop(points, target, counts, gamma):
    total, M = 0.0, len(points)
    for i, estimate in enumerate(points, start=1):
        above, below = 0.0, 0.0
        places = zip(estimate.view(-1, 2), target.view(-1, 2), counts.flatten(), strict=True)
        for (x, y), (true_x, true_y), c in places:
            above += c.item() * (abs(x - true_x) + abs(y - true_y)).item() / 2
            below += c.item()
        total += gamma ** (M - i) * above / below / M
    return total


truth = torch.zeros(1, 1, 2, 2)
guesses = [truth + 4, truth + torch.tensor([[1.0, 0.0], [30.0, 30.0]])]
counts = torch.tensor([[[True, False]]])
track_loss_loop(guesses, truth, counts, gamma=0.8)

# %% [markdown]
# The second point does not count. The first is wrong by 4 in both coordinates and then by 1 in one of them: $(0.8 \cdot 4 + 0.5) / 2 = 1.85$.


# %% tags=["promote", "exercise"]
def track_loss(
    points: Sequence[Float[Tensor, "B S N 2"]],
    target: Float[Tensor, "B S N 2"],
    counts: Shaped[Tensor, "B S N"],
    *,
    gamma: float = 0.8,
    huber: float | None = None,
) -> Float[Tensor, ""]:
    """Compare every iteration's points with the true ones (equation 6 of the lesson).

    points   M estimates, in pixels
    counts   (B, S, N) True, or a weight, where an error counts
    gamma    weight of an iteration against the next
    huber    length in pixels from which an error counts linearly; absolute errors when left out
    returns  a scalar, the mean over the iterations and over x and y; in pixels for absolute errors

    Source: the losses of CoTracker, section 3.3, and of CoTracker3.
    """
    M, loss = len(points), target.new_zeros(())
    for i, estimate in enumerate(points, start=1):
        if huber is None:
            error = (estimate - target).abs()
        else:
            error = F.huber_loss(estimate, target, reduction="none", delta=huber)
        loss = loss + gamma ** (M - i) * mean_where(error.mean(dim=-1), counts)
    return loss / M


# %% tags=["check"]
loss = track_loss(guesses, truth, counts).item()
assert math.isclose(loss, 1.85, abs_tol=1e-5), f"the worked example gives 1.85, not {loss:.3f}"
estimates = [5 * torch.randn(2, 3, 4, 2, generator=seeded(k)) for k in range(3)]
goal, weights = torch.zeros(2, 3, 4, 2), torch.rand(2, 3, 4, generator=seeded(9))
loss = track_loss(estimates, goal, weights, gamma=0.9).item()
expected = track_loss_loop(estimates, goal, weights, 0.9)
# Means of 24 float32 numbers near 4.
assert math.isclose(loss, expected, rel_tol=1e-5), "counts are weights; x and y are averaged"
loss = track_loss([goal + 1, goal + 10], goal, weights, huber=6.0).item()
# Huber: ½ · 1² for an error of 1, and 6 · (10 − 3) for one of 10.
assert math.isclose(loss, (0.8 * 0.5 + 42) / 2, rel_tol=1e-4), "huber: squares below, lines above"

# %% [markdown]
# ### The loss of visibility
#
# Equation 7 for one score. `F.softplus(x)` is $\log(1 + e^x)$, without overflow.

# %%
for score in (-4.0, 0.0, 4.0):
    visible_loss, hidden_loss = math.log(1 + math.exp(-score)), math.log(1 + math.exp(score))
    print(f"score {score:+.0f}: costs {visible_loss:.3f} if visible, {hidden_loss:.3f} if hidden")


# %% tags=["promote", "exercise"]
def balanced_loss(
    scores: Float[Tensor, "B S N"], visible: Bool[Tensor, "B S N"], counts: Bool[Tensor, "B S N"]
) -> Float[Tensor, ""]:
    """Cross-entropy in which all visible places weigh as much as all hidden ones (equation 7).

    scores   (B, S, N) logits of being visible
    counts   (B, S, N) where the answer counts
    """
    wrong = F.softplus(torch.where(visible, -scores, scores))
    return mean_where(wrong, visible & counts) + mean_where(wrong, ~visible & counts)


# %% tags=["check"]
scores = torch.tensor([4.0, 4.0, 0.0, 4.0, -4.0]).view(1, 5, 1)
shown = torch.tensor([True, True, True, False, False]).view(1, 5, 1)
everywhere = torch.ones_like(shown)
expected = (2 * 0.01815 + 0.69315) / 3 + (4.01815 + 0.01815) / 2
loss = balanced_loss(scores, shown, everywhere).item()
assert math.isclose(loss, expected, abs_tol=1e-4), "a mean over visible plus a mean over hidden"
loss = balanced_loss(scores, shown, shown).item()
assert math.isclose(loss, (2 * 0.01815 + 0.69315) / 3, abs_tol=1e-4), "no hidden place counts: 0"
repeated = (torch.cat([x, x[:, 3:]], dim=1) for x in (scores, shown, everywhere))
assert math.isclose(balanced_loss(*repeated).item(), expected, abs_tol=1e-4), "hidden ones twice"
assert balanced_loss(1e4 * scores, shown, everywhere).isfinite(), "no overflow for large scores"

# %% [markdown]
# ### What a window should find
#
# Windows overlap by half, and the last one may reach past the clip. The part of the truth that one covers, and where the frame is not before the query:


# %% tags=["promote"]
class Target(NamedTuple):
    """The part of a clip that one window covers.

    points   (B, S, N, 2) in pixels
    visible  (B, S, N)
    asked    (B, S, N) the frame is not before the point's query
    """

    points: Float[Tensor, "B S N 2"]
    visible: Bool[Tensor, "B S N"]
    asked: Bool[Tensor, "B S N"]


def window_target(clip: Clip, first: int, frames: int) -> Target:
    """What a window of so many frames from `first` on should find, where the clip has frames."""
    here = slice(first, first + frames)
    times = torch.arange(clip.points.shape[1], device=clip.points.device)[here, None]
    asked = times >= clip.queries[:, None, :, 0]
    return Target(clip.points[:, here], clip.visible[:, here], asked)


def _in_pixels(estimates: Sequence[Estimate], target: Target) -> list[Tensor]:
    """The points of each estimate, in pixels of the video, in the frames that there are."""
    return [STRIDE * estimate.points[:, : target.points.shape[1]] for estimate in estimates]


# %%
one = Clip(*(part[:1] for part in held_out))
for first in (0, 4, 20):
    target = window_target(one, first, 8)
    print(
        f"window from {first:2}: {target.points.shape[1]} frames, {target.asked.float().mean():.0%} asked"
    )

# %% [markdown]
# ### Version 2
#
# Equation 8. `CoTracker.windows` of lesson 6 gives the first frame of each window and its $M$ estimates; the visibility is told once, with the last of them.


# %% tags=["promote"]
Windows = Iterable[tuple[int, list[Estimate]]]


def version2_loss(windows: Windows, clip: Clip) -> dict[str, Tensor]:
    """The loss that version 2 was trained with (equation 8 of the lesson).

    windows  from `CoTracker.windows`
    returns  "points" and "visibility", to be added up

    The release feeds probabilities where the cross-entropy takes logits, so that its loss of
    visibility never comes near 0; these are its numbers.
    """
    losses = {"points": 0.0, "visibility": 0.0}
    N = clip.points.shape[2]
    for first, estimates in windows:
        target = window_target(clip, first, estimates[0].points.shape[1])
        told = estimates[-1].visibility[:, : target.visible.shape[1]].sigmoid()
        points = track_loss(_in_pixels(estimates, target), target.points, target.asked)
        losses["points"] = losses["points"] + points / N
        visibility = balanced_loss(told, target.visible, target.asked)
        losses["visibility"] = losses["visibility"] + 10 * visibility / N
    return losses


# %% [markdown]
# What does a tracker cost that is always right, and certain of it?


# %%
def perfect(clip, window=8, sure=20.0):
    """The estimates of a tracker that makes no mistake."""
    for first in range(0, clip.points.shape[1] - window // 2, window // 2):
        target = window_target(clip, first, window)
        told = torch.where(target.visible, sure, -sure)
        yield first, [Estimate(target.points / STRIDE, told, told.abs())]


N, count = one.points.shape[2], len(list(perfect(one)))
floor = {name: float(loss) for name, loss in version2_loss(perfect(one), one).items()}
least = F.softplus(torch.tensor([-1.0, 0.0])).sum().item()
print(
    floor,
    f"; times N / 10, for each of {count} windows: {floor['visibility'] * N / 10 / count:.4f}",
)
assert math.isclose(floor["visibility"] * N / 10 / count, least, rel_tol=1e-3)

# %% [markdown]
# The points cost nothing, the visibility does: with a probability of 1 for what is visible and 0 for what is hidden, equation 7 still gives $\log(1 + e^{-1}) + \log 2$, the printed number. It is a floor under the loss that no training can go below. A user asked about it, and the authors kept it: the smoother loss had worked better for them.
#
# ### Version 3
#
# Equation 9. All three things are told at every iteration. What the confidence should say depends on the model's own error, which is detached: the points must not move to please the confidence. `before` is for the offline model, which is asked about all frames.


# %% tags=["promote"]
def version3_loss(
    windows: Windows, clip: Clip, *, near: float = 12.0, before: bool = False
) -> dict[str, Tensor]:
    """The loss that version 3 was trained with on made clips (equation 9 of the lesson).

    windows  from `CoTracker.windows`
    near     in pixels: where a point is so near, its confidence should be 1
    before   frames before the query count too, as in the offline model
    returns  "points", "hidden points", "visibility" and "confidence", to be added up

    The paper has Huber errors for hidden points too; these are the release's numbers.
    """
    parts: list[dict[str, Tensor]] = []
    for first, estimates in windows:
        target = window_target(clip, first, estimates[0].points.shape[1])
        asked = torch.ones_like(target.asked) if before else target.asked
        seen, S = target.visible.to(target.points), target.points.shape[1]
        points = _in_pixels(estimates, target)
        told = torch.stack([estimate.visibility[:, :S] for estimate in estimates])
        sure = torch.stack([estimate.confidence[:, :S] for estimate in estimates])
        error = (torch.stack(points).detach() - target.points).norm(dim=-1)
        right = F.binary_cross_entropy_with_logits(sure, (error <= near).to(sure), reduction="none")
        parts.append(
            {
                "points": 0.05
                * track_loss(points, target.points, asked & target.visible, huber=6.0),
                "hidden points": 0.01 * track_loss(points, target.points, asked & ~target.visible),
                "visibility": F.binary_cross_entropy_with_logits(told, seen.expand_as(told)),
                "confidence": (right * seen).mean(),
            }
        )
    return _mean_parts(parts)


def _mean_parts(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each part over the windows."""
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


# %%
print({name: float(loss) for name, loss in version3_loss(perfect(one), one).items()})

# %% [markdown]
# Here the logits go where logits belong, and the perfect tracker costs nothing. After made clips, version 3 goes on with real videos, whose truth nobody knows: it learns from **pseudo-labels** (伪标签), the tracks of teachers drawn at random among older trackers, with the losses of the points alone. This course does not.
#
# ### This course
#
# Equation 10: version 2's parts, with the score as a logit, and without the balance: one place in five or so is hidden, which is common enough. A hidden point has no colour to be found by, and its place is a guess from its neighbours; at full weight such guesses would drown what can be learned from the points that are seen.


# %% tags=["promote"]
def course_loss(windows: Windows, clip: Clip, *, hidden: float = 0.2) -> dict[str, Tensor]:
    """The loss of this course's training (equation 10 of the lesson).

    windows  from `CoTracker.windows`
    hidden   weight of the error of a point that its frame does not show
    returns  "points", in pixels, and "visibility", to be added up
    """
    parts: list[dict[str, Tensor]] = []
    for first, estimates in windows:
        target = window_target(clip, first, estimates[0].points.shape[1])
        weight = target.asked * torch.where(target.visible, 1.0, hidden)
        told = estimates[-1].visibility[:, : target.visible.shape[1]]
        wrong = F.softplus(torch.where(target.visible, -told, told))
        parts.append(
            {
                "points": track_loss(_in_pixels(estimates, target), target.points, weight),
                "visibility": mean_where(wrong, target.asked),
            }
        )
    return _mean_parts(parts)


# %%
print({name: float(loss) for name, loss in course_loss(perfect(one), one).items()})

# %% [markdown]
# ### A small model
#
# The releases have 45 and 25 million weights. The course's own model is version 2, narrow and shallow, with three changes that help a short training. The embedding of motion has a highest frequency of 16 radians for each feature pixel, where the release has about 970 ([lesson 4](4_tokens.ipynb) shows what that does). There are three levels of correlation. And every feature vector is scaled to the length 12, as version 3 scales them to 1: products of vectors of any length mix how well two places fit with how loud each of them is, and what a training has to find out first is where things fit.

# %% tags=["promote"]
SMALL = {
    "window": 8,
    "width": 128,
    "depth": 2,
    "heads": 4,
    "virtual_tracks": 16,
    "features": 64,
    "widths": (24, 32, 48, 64),
    "levels": 3,
    "resolution": (192, 256),
    "highest": 16.0,
    "feature_length": 12.0,
}

# %%
seed_everything(0)
fresh = CoTracker("2", **SMALL)
for name, part in (("fnet", fresh.fnet), ("update", fresh.update)):
    print(f"{name}: {sum(p.numel() for p in part.parameters()):,} weights")

# %% [markdown]
# The model is meant for frames of 192 × 256 pixels, and a predictor enlarges smaller ones, as the release enlarges whatever it is given to 384 × 512 (lesson 7). A feature stands for four pixels of what the model sees, so in frames of half the size it then stands for two. Training has to show clips as the predictor will:


# %% tags=["promote"]
def enlarged(clip: Clip, factor: int) -> Clip:
    """The clip as a predictor shows it to a model: frames so many times larger, points too.

    clip    a batch; `resize_video` and `resize_points` say where a point of a frame goes
    """
    if factor == 1:
        return clip
    old = tuple(clip.video.shape[-2:])
    new = tuple(factor * side for side in old)
    places = resize_points(clip.queries[..., 1:], old, new)
    return clip._replace(
        video=resize_video(clip.video, new),
        points=resize_points(clip.points, old, new),
        queries=torch.cat([clip.queries[..., :1], places], dim=-1),
    )


# %% tags=["check"]
once = held_out_clips(1, frames=2)
coordinates = pixel_grid(H, W).permute(2, 0, 1)
coordinates = torch.cat([coordinates, coordinates[:1]]).expand(1, 2, 3, H, W)
twice = enlarged(once._replace(video=coordinates), 2)
frame, *_ = twice.queries[0].T.long()
asked = frame, torch.arange(len(frame))
# What is read at the query is where it was asked for before; numbers to 127, by three float32 steps.
colours = sample(twice.video[0], twice.points[0, :, None])[frame, :2, 0, asked[1]]
assert torch.allclose(colours, once.queries[0, :, 1:], atol=1e-3)
assert torch.allclose(twice.points[0][asked], twice.queries[0, :, 1:], atol=1e-3)

# %% [markdown]
# The check paints a clip whose colours are its coordinates. Read where a query has moved to, the enlarged clip says where the query was.
#
# ### Where gradient flows
#
# The whole clip is run, window after window, and then one gradient goes back through all of it: training is **unrolled** (展开). Yet every iteration begins with `points.detach()`. What does the loss of the second window tell the first?

# %%
short = held_out_clips(1, frames=12)
_, windows = zip(*fresh.windows(short.video, short.queries, iterations=3), strict=True)
second_loss = sum(course_loss([(4, windows[1])], short).values())
handed_on = windows[0][-1]
to_points, to_scores = torch.autograd.grad(
    second_loss, [handed_on.points, handed_on.visibility], retain_graph=True
)
for name, gradient in (("points", to_points), ("scores", to_scores)):
    sizes = (
        gradient.flatten(2).abs().sum(dim=(0, 2))
        if gradient.ndim > 3
        else gradient.abs().sum(dim=(0, 2))
    )
    print(f"{name} of frames 0 to 7:", " ".join(f"{size:.1e}" for size in sizes))
assert to_points[:, 4].ne(0).any() and to_points[:, [0, 1, 2, 3, 5, 6, 7]].eq(0).all()
assert to_scores[:, :4].eq(0).all() and to_scores[:, 4:].ne(0).any()

# %% [markdown]
# Two ways are open. The scores of the shared half are carried into the tokens of the second window. And the place of each point in the window's first frame, frame 4, is where the embedding of the place is read, once a window and before anything is detached. All other points are handed on as numbers, without gradient. So a track is not punished in window 1 for the trouble it causes in window 2.
#
# Within a window it is the same from one iteration to the next: no gradient through the points, only through the features that are refined.

# %%
last, earlier = windows[1][-1].points, windows[1][0].points
assert torch.autograd.grad(last.sum(), earlier, retain_graph=True, allow_unused=True) == (None,)
first_layer = fresh.fnet.conv1.weight
print(f"at the encoder: {torch.autograd.grad(second_loss, first_layer)[0].norm():.3f}")

# %% [markdown]
# ### Stage one: features that match
#
# With all weights random, the correlations say nothing, so the update cannot learn to follow them; and as long as it does not follow them, the encoder gets no useful gradient. A batch of 32 clips and 50,000 steps get over that. A batch of one clip does not in any time that a reader would wait: in a trial of the course, 400 steps of everything at once left the error of staying put.
#
# So the encoder gets a task of its own. For each query, score all places of all frames by how well their features fit the anchor. `update.anchor` is lesson 6's: it reads the feature at the query.


# %% tags=["promote"]
def matching_scores(model: CoTracker, clip: Clip) -> Float[Tensor, "B T N h w"]:
    """How well each place of each frame fits each query: the logits of equation 11 of the lesson.

    model    version 2, whose anchor is one vector
    """
    B, T = clip.video.shape[:2]
    level = model.pyramid(clip.video)[0]
    _, h, w, C = level.shape
    rows = T * torch.arange(B, device=level.device)[:, None] + clip.queries[..., 0].long()
    anchors = model.update.anchor([level], rows, clip.queries[..., 1:] / STRIDE)
    products = torch.einsum("bnc,btpc->btnp", anchors, level.view(B, T, h * w, C))
    return (products / math.sqrt(C)).unflatten(-1, (h, w))


# %% tags=["promote"]
def _read_maps(
    maps: Float[Tensor, "B T N h w"], points: Float[Tensor, "B T N 2"]
) -> Float[Tensor, "B T N"]:
    """Read each point's own map at its place, between the four places around it."""
    h, w = maps.shape[-2:]
    x, y = points.unbind(-1)
    x, y = x.clamp(0, w - 1), y.clamp(0, h - 1)
    left, top = x.floor().clamp(max=w - 2), y.floor().clamp(max=h - 2)
    value = torch.zeros_like(x)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        share = (1 - (x - left - dx).abs()) * (1 - (y - top - dy).abs())
        place = ((top + dy) * w + left + dx).long()
        value = value + share * maps.flatten(-2).gather(-1, place[..., None])[..., 0]
    return value


# %% [markdown]
# The loss is a cross-entropy over places, as if each place were a class. A true place between four places is shared among them as a bilinear sample would, which `_read_maps` does. (Chapter 6's `sample` reads one map at many points; here every point has a map of its own.) Two checks: a ramp is read exactly, and one map as `sample` reads it.

# %%
ramp = pixel_grid(5, 7).sum(dim=-1).expand(1, 1, 4, 5, 7)
spots = torch.tensor([[[[0.0, 0], [2.5, 1.25], [6, 4], [5.5, 3.5]]]])
print(_read_maps(ramp, spots).flatten().tolist())
random_map = torch.randn(1, 1, 5, 7, generator=seeded(0))
read = sample(random_map, spots)[0, 0]
assert torch.allclose(_read_maps(random_map.expand(1, 1, 4, 5, 7), spots), read, atol=1e-6)


# %% tags=["promote", "exercise"]
def matching_loss(model: CoTracker, clip: Clip) -> Float[Tensor, ""]:
    """Ask the features alone where a point is (equation 11 of the lesson).

    The feature of each query is compared with all places of every frame that shows the point; the
    products, as logits, should single out the true place, whose four neighbours share it.

    returns  a cross-entropy, the mean over visible points and frames
    """
    scores = matching_scores(model, clip)
    h, w = scores.shape[-2:]
    chances = scores.flatten(-2).log_softmax(dim=-1).view_as(scores)
    points = clip.points / STRIDE
    counts = clip.visible & inside(points, h, w)
    return mean_where(-_read_maps(chances, points), counts)


# %% tags=["check"]
with torch.no_grad():
    few = held_out_clips(2, (32, 40), frames=3, points=5)
    maps, loss = matching_scores(fresh, few), matching_loss(fresh, few).item()
losses = []
for b, t, n in few.visible.nonzero().tolist():
    x, y = (few.points[b, t, n] / STRIDE).tolist()
    if x > 9 or y > 7:  # past the last feature, which lies at pixel 36 of 40, and 28 of 32
        continue
    left, top = min(int(x), 8), min(int(y), 6)
    chances = (
        maps[b, t, n].flatten().softmax(dim=0).log().view(8, 10)[top : top + 2, left : left + 2]
    )
    shares = torch.outer(
        torch.tensor([top + 1 - y, y - top]), torch.tensor([left + 1 - x, x - left])
    )
    losses.append(-(shares * chances).sum().item())
expected = sum(losses) / len(losses)
# A mean of some 20 float32 numbers near 5.
assert math.isclose(loss, expected, rel_tol=1e-4), (
    f"{expected:.4f} is the mean over visible points inside the map, not {loss:.4f}"
)

# %% [markdown]
# A loss in logarithms is hard to read. How often does the best place of the whole frame lie within 1.5 feature pixels of the true one? Points that moved less than that are left out: staying put would find them. A place drawn at random finds the area of the circle over that of the map.


# %% tags=["promote"]
@torch.no_grad()
def share_found(model: CoTracker, clip: Clip, within: float = 1.5) -> float:
    """How often the best place of a whole frame is the right one, by the features alone.

    within   largest distance in pixels of the features; points that moved no farther from their
             query are left out, as are hidden ones
    returns  from 0 to 1
    """
    found = counted = 0
    for parts in zip(*(part.split(1) for part in clip), strict=True):
        one = Clip(*parts)
        scores = matching_scores(model, one)
        best, w = scores.flatten(-2).argmax(dim=-1), scores.shape[-1]
        place = torch.stack([best % w, best // w], dim=-1)
        points = one.points / STRIDE
        moved = (points - one.queries[:, None, :, 1:] / STRIDE).norm(dim=-1) > within
        counts = one.visible & moved
        found += int((counts & ((place - points).norm(dim=-1) < within)).sum())
        counted += int(counts.sum())
    return found / max(1, counted)


# %%
unseen = enlarged(held_out_clips(at_scale(cpu=4, gpu=16), frames=8), 2)
map_height, map_width = (side // STRIDE for side in unseen.video.shape[-2:])
chance = math.pi * 1.5**2 / (map_height * map_width)
untrained_share = share_found(fresh, unseen)
print(f"random features find {untrained_share:.1%}, chance {chance:.1%}")

# %% [markdown]
# ### The three stages as data
#
# `FEATURES` trains the encoder by equation 11. `UPDATE` trains all the rest by equation 10, with the encoder fixed; clips of eight frames make one window, and four of them a step. `ALL` goes on with everything, on clips of twelve frames, two windows, so that points are carried from one to the next. In all three the frames are small cut-outs, painted at 56 × 72 pixels and enlarged twofold: what a step costs is above all the encoder's work on pixels, and a patch of a photograph looks the same in a small frame as in a large one.


# %% tags=["promote"]
class Recipe(NamedTuple):
    """The settings of one training of a CoTracker.

    trains         "features": the encoder alone, by `matching_loss`; "update": all but the encoder;
                   "all" of it
    steps, batch   of AdamW, and clips in each
    learning_rate  the highest; see `fourfold.kit.training.one_cycle`
    size, frames, points, speed  of `SyntheticClips`
    enlarge        how many times larger the model sees the frames
    iterations     M, of the model's updates
    clip           norm that gradients are cut to
    weight_decay   of AdamW
    """

    trains: str
    steps: int
    batch: int
    learning_rate: float
    size: tuple[int, int] = (56, 72)
    frames: int = 8
    points: int = 32
    speed: float = 6.0
    enlarge: int = 2
    iterations: int = 3
    clip: float = 1.0
    weight_decay: float = 1e-5


# %% tags=["promote"]
FEATURES = Recipe("features", 1_200, 4, 1e-3)

UPDATE = Recipe("update", 500, 4, 1e-3)

ALL = Recipe("all", 2_000, 3, 5e-4, frames=12)

RECIPES = {"features": FEATURES, "update": UPDATE, "all": ALL}

# %% [markdown]
# Beside them, what the releases did (24 frames of 384 × 512 pixels and 768 points a clip in version 2; 50,000 steps on 32 GPUs with one clip each; 4 iterations in training and 6 after it; the rate 5e-4, weight decay 1e-5, gradients cut to 10):

# %%
released = 50_000 * 32 * 24 * 384 * 512
for name, recipe in RECIPES.items():
    pixels = recipe.steps * recipe.batch * recipe.frames * recipe.size[0] * recipe.size[1]
    print(
        f"{name:>8}: {recipe.steps * recipe.batch:6,} clips, {pixels / released:.1e} of the release's pixels"
    )

# %% [markdown]
# ### One function that trains
#
# `fourfold.kit.training.train` has the loop, with the log and the checkpoints. What is left is to choose the loss and the weights that move.
#
# Most of a step's work is the encoder's, and its convolutions need no seven digits. So it computes in **bfloat16** while it trains: numbers of 16 bits with the range of float32 and eight bits of precision. On processors with instructions for them that is about three times as fast. Points and the update keep float32, since 8 bits are not enough to say where a point is: of a place near 100 they leave steps of half a pixel.


# %% tags=["promote"]
def train_cotracker(
    recipe: Recipe,
    clips: Dataset | None = None,
    *,
    model: CoTracker | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    minutes: float | None = None,
    save_every: int = 250,
    progress: bool = True,
) -> tuple[CoTracker, list[StepRecord]]:
    """Train a CoTracker by a recipe, and return it, in evaluation mode, with the log.

    clips    a data set of Clip without a batch axis; SyntheticClips of the training photographs
             when left out
    model    to go on with; a new one of the course's small size when left out
    seed     of the first weights and of the clips
    folder, minutes, save_every, progress  as in `fourfold.kit.training.train`: a call with the same
             folder and settings goes on where the last one stopped

    Raises ValueError for a recipe that trains something else, and what `train` raises.
    """
    seed_everything(seed)
    model = CoTracker("2", **SMALL) if model is None else model
    model.train()
    if clips is None:
        clips = SyntheticClips(
            load_photographs(TRAIN_PHOTOGRAPHS),
            recipe.size,
            frames=recipe.frames,
            points=recipe.points,
            speed=recipe.speed,
        )
    _only(model, recipe.trains)
    model.bfloat16 = True
    try:
        records = train(
            model,
            partial(_training_loss, recipe),
            DataLoader(clips, batch_size=recipe.batch, drop_last=True),
            steps=recipe.steps,
            folder=folder,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            clip=recipe.clip,
            seed=seed,
            save_every=save_every,
            minutes=minutes,
            progress=progress,
        )
    finally:  # an interrupted model is the caller's as well
        model.bfloat16 = False
        model.requires_grad_(True).eval()
    return model, records


# %% tags=["promote"]
def _only(model: CoTracker, part: str) -> None:
    """Let gradients reach one part of the model alone."""
    parts = {"features": model.fnet, "update": model.update, "all": model}
    if part not in parts:
        raise ValueError(f"recipe.trains is {part!r}; expected one of {', '.join(parts)}")
    model.requires_grad_(False)
    parts[part].requires_grad_(True)


def _training_loss(recipe: Recipe, model: CoTracker, clip: Clip) -> Tensor:
    clip = enlarged(clip, recipe.enlarge)
    if recipe.trains == "features":
        return matching_loss(model, clip)
    windows = model.windows(clip.video, clip.queries, recipe.iterations)
    return sum(course_loss(windows, clip).values())


# %% [markdown]
# ### Measuring
#
# The scores are TAP-Vid's, from lesson 2, for a model or for any function that takes a video and queries: `stay_put` is one. A score of 0 is even odds, so "seen" means a probability above ½ here; the release's threshold of 0.9 belongs to its own losses.


# %% tags=["promote"]
@torch.no_grad()
def evaluate(
    tracker: Callable, clips: Clip, *, iterations: int = 6, threshold: float = 0.5
) -> Score:
    """Score a tracker on clips, such as those of `held_out_clips`, as TAP-Vid does.

    tracker     a model, which `Predictor` shows enlarged frames and a grid of points beside those;
                or a function of a video and queries that returns Tracks
    iterations  M, for a model
    threshold   probability above which a point is taken as seen

    The clips are tracked one by one; each counts the same.
    """
    if isinstance(tracker, nn.Module):
        device = next(tracker.parameters()).device
        tracker = Predictor(tracker, iterations=iterations)
    else:
        device = clips.video.device
    found = [
        tracker(video.to(device), queries.to(device))
        for video, queries in zip(clips.video.split(1), clips.queries.split(1), strict=True)
    ]
    points, visibility = (
        torch.cat([part.to(clips.points) for part in parts])
        for parts in list(zip(*found, strict=True))[:2]
    )
    truth = Tracks(clips.points, clips.visible.to(clips.points))
    H, W = clips.video.shape[-2:]
    return tap_vid_metrics(
        Tracks(points, visibility), truth, clips.queries, (H, W), threshold=threshold
    )


# %%
still = evaluate(stay_put, held_out)
print(
    f"stay put: AJ {still.average_jaccard:.3f}, δ_avg {still.average_within:.3f}, OA {still.occlusion_accuracy:.3f}"
)

# %% [markdown]
# Staying put always says "seen", so its accuracy is the share of places that are, after the query.
#
# ### The command
#
# `fourfold train cotracker` calls the next function for the first stage, and with `--recipe update --start runs/cotracker/cotracker_small.safetensors` for the second, with `--recipe all` and the same file for the third. `--minutes 10` stops after ten minutes, and the same command goes on. The file holds half-precision numbers, and what is measured are the weights as stored.


# %% tags=["promote"]
def train_course(
    folder: str | Path,
    *,
    recipe: str = "features",
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    start: str | Path | None = None,
    progress: bool = True,
) -> Trained:
    """Train one stage of the small model, and write it: what `fourfold train cotracker` calls.

    folder   the weights lie there as cotracker_small.safetensors, with their model card; each
             stage keeps its log and checkpoints in a folder of its own inside
    recipe   one of RECIPES
    start    a file of weights to begin with, that of the stage before

    Raises ValueError for another recipe, and for "update" without a start, whose encoder would stay
    random; and what `train_cotracker` and `load_cotracker` raise.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}; expected one of {', '.join(RECIPES)}")
    if recipe == "update" and start is None:
        raise ValueError(
            "start is None; expected a file of weights, as recipe 'features' writes it, since "
            "recipe 'update' leaves the encoder as it is"
        )
    chosen = RECIPES[recipe]
    if steps is not None:
        chosen = chosen._replace(steps=whole_number("steps", steps, least=1))
    model, records = train_cotracker(
        chosen,
        model=None if start is None else load_cotracker(start),
        seed=seed,
        folder=Path(folder) / recipe,
        minutes=minutes,
        progress=progress,
    )
    metrics = _held_out_metrics(model.half().float(), chosen)
    path = Path(folder) / "cotracker_small.safetensors"
    card = _card(recipe, chosen, seed, start, records, metrics)
    save_checkpoint(path, model, card, float16=True)
    return Trained(path, len(records), chosen.steps, metrics)


# %% tags=["promote"]
def _held_out_metrics(model: CoTracker, recipe: Recipe) -> dict[str, float]:
    model, clips = model.cpu(), held_out_clips()
    found = share_found(model, enlarged(clips, recipe.enlarge))
    metrics = {"held-out points found by features alone (share)": found}
    for name, tracker in (("", model), ("stay-put's ", stay_put)):
        score = evaluate(tracker, clips, iterations=recipe.iterations)
        metrics[f"{name}held-out AJ"] = score.average_jaccard
        metrics[f"{name}held-out δ_avg"] = score.average_within
        metrics[f"{name}held-out OA"] = score.occlusion_accuracy
    return metrics


# %% tags=["promote"]
def _card(
    name: str,
    recipe: Recipe,
    seed: int,
    start: str | Path | None,
    records: Sequence[StepRecord],
    metrics: dict[str, float],
) -> ModelCard:
    command = f"fourfold train cotracker --recipe {name} --steps {recipe.steps} --seed {seed}"
    if start is not None:
        command += f" --start {Path(start).name}"
    if len(records) < recipe.steps:
        command += f"  (stopped after {len(records)} steps)"
    data = (
        f"clips of SyntheticClips from {len(TRAIN_PHOTOGRAPHS)} photographs of scikit-image and "
        f"scikit-learn, {recipe.frames} frames of {recipe.size[0]} × {recipe.size[1]}, steps of up "
        f"to {recipe.speed:g} px; measured with {recipe.iterations} iterations on held_out_clips()"
    )
    hours = records[-1].seconds / 3600
    return ModelCard(command, seed, hardware(), hours, data, metrics)


# %% [markdown]
# ## On real input
#
# ### Features that find, in a minute
#
# A hundred steps of the first stage, on one clip each (the whole stage where there is a GPU). No clip comes twice, and the clips that are measured show other photographs.

# %%
recipe = at_scale(cpu=FEATURES._replace(steps=100, batch=1, points=64), gpu=FEATURES)
learned, records = train_cotracker(recipe, progress=False)
trained_share = share_found(learned, unseen)
shipped = load_cotracker()
shares = {"chance": chance, "random": untrained_share, "trained": trained_share}
shares["shipped"] = share_found(shipped, unseen)
for name, found in shares.items():
    print(f"{name:>8}: {found:6.1%} of moved points found in the whole frame")
print(f"{recipe.steps} steps in {records[-1].seconds:.0f} s on {hardware()}")
assert trained_share > 1.3 * untrained_share


# %% tags=["figure"]
def draw_steps(groups, log_scale=False):
    """The loss over the steps, one panel for each named group of (steps, losses)."""
    figure, axes = canvas(1, len(groups), 2.4 * len(groups) + 1, 1.9, squeeze=False)
    for each, (name, (steps, losses)) in zip(axes[0], groups.items(), strict=True):
        width = max(1, len(losses) // 20)
        smooth = torch.tensor(losses).unfold(0, width, 1).mean(dim=1)
        each.plot(steps, losses, ".", color=COLOURS["muted"], markersize=2)
        each.plot(steps[width - 1 :], smooth, color=COLOURS["first"])
        each.set(title=name, xlabel="step")
    axes[0, 0].set(ylabel="loss L")
    return figure


figure = draw_steps({"matching": ([r.step for r in records], [r.loss for r in records])})
places = math.prod(recipe.enlarge * side // STRIDE for side in recipe.size)
figure.axes[0].axhline(math.log(places), color=COLOURS["bad"], linestyle="--")
figure.axes[0].text(
    records[-1].step,
    math.log(places),
    "every place alike",
    ha="right",
    va="bottom",
    size=7,
)
show(figure, alt="The matching loss over the steps, falling from above the line of an even guess")

# %% [markdown]
# The dashed line is the loss of a map in which every place has the same chance. Random features begin below it: filters that nobody has trained give like answers to like patches.
#
# What does a map look like, before and after? For each of three clips, the point and the frame in which it is farthest from its query.

# %%
with torch.no_grad():
    before, after = (
        matching_scores(m, unseen)
        .flatten(-2)
        .softmax(dim=-1)
        .unflatten(-1, (map_height, map_width))
        for m in (fresh, learned)
    )
distance = (unseen.points - unseen.queries[:, None, :, 1:]).norm(dim=-1) * unseen.visible
picks = [divmod(int(d.argmax()), d.shape[1]) for d in distance[:3]]
print([f"clip {b}: frame {t}, point {n}" for b, (t, n) in enumerate(picks)])


# %% tags=["figure"]
def draw_maps():
    """For some clips: the query, the frame, and the chances of all its places, twice."""
    figure, axes = canvas(len(picks), 4, 7.2, 4.2, sharex=True, sharey=True)
    for b, (row, (t, n)) in enumerate(zip(axes, picks, strict=True)):
        frame, *place = unseen.queries[b, n].tolist()
        row[0].imshow(to_picture(unseen.video[b, int(frame)]))
        row[0].plot(*place, "o", color=COLOURS["query"], markeredgecolor="white")
        row[1].imshow(to_picture(unseen.video[b, t]))
        for each, chances in zip(row[2:], (before, after), strict=True):
            extent = (
                -2,
                2 * W - 2,
                2 * H - 2,
                -2,
            )  # a feature stands for 4 × 4 pixels around 4x, 4y
            each.imshow(chances[b, t, n].sqrt(), cmap="magma", extent=extent)
        for each in row[1:]:
            each.plot(*unseen.points[b, t, n], "+", color="cyan", markersize=9)
        row[0].set(ylabel="y (px)")
    for each, below, name in zip(
        axes[0],
        axes[-1],
        (
            "anchor a at the query",
            "the true place elsewhere",
            "features F: random",
            "features F: trained",
        ),
        strict=True,
    ):
        each.set(title=name)
        below.set(xlabel="x (px)", xlim=(-2, 2 * W - 2), ylim=(2 * H - 2, -2))
    return figure


show(
    draw_maps(),
    alt="Three held-out clips: the query, another frame with the true place, and two maps of chances: "
    "scattered or at a wrong place for random features, around the true place and what looks like it for trained ones",
    photo=True,
)

# %% [markdown]
# Bright is a good match (drawn as the square root of the chance), the cross is the truth. Random features light up wherever the colours fit. Trained ones light up in fewer places: around the cross, and wherever else things look alike: one petal is as good as the next, and one end of a plain cloth as the other. To choose among them takes motion, time, and the other points: the update's part.
#
# ### The long run
#
# The course's weights come from these three stages, one after the other. The log lies in the course's data, as means over 25 steps.

# %%
with open(data_path("results", "cotracker_training.csv"), encoding="utf-8") as file:
    log = list(csv.DictReader(file))
stages = {}
for row in log:
    steps, losses = stages.setdefault(row["stage"], ([], []))
    steps.append(int(row["step"]))
    losses.append(float(row["loss"]))
for name, (steps, losses) in stages.items():
    last = [float(row["seconds"]) for row in log if row["stage"] == name][-1]
    print(
        f"{name:>8}: {steps[-1]:5} steps in {last / 60:5.1f} min; loss {losses[0]:.2f} → {losses[-1]:.2f}"
    )

# %%
show(
    draw_steps(stages),
    alt="The loss of each stage of the long training over its steps",
)

# %% [markdown]
# The losses of the first stage and of the others are different things and have no common unit. That of the third begins where the second ended, and higher than it: its clips are longer, and in their second window a point is farther from its query. From these dots alone nobody could say what the third stage learned; that is why `train_course` scores every stage on the same held-out clips. In the later stages most of the number is the error of the points in pixels of the enlarged frames, a mean over iterations with their weights.
#
# ### Against trackers that learn nothing of tracks
#
# The course's model beside staying put, and beside flow from frame to frame, chained: that of iterative Lucas–Kanade (iLK), and that of chapter 4's RAFT-small, which was trained on pairs of the same photographs.

# %%
estimate_flow = partial(load_raft().estimate, iterations=6)
trackers = {
    "stay put": stay_put,
    "iLK, chained": partial(chained_flow, estimate_flow=partial(classical_flow, "ilk")),
    "RAFT-small, chained": partial(chained_flow, estimate_flow=estimate_flow),
    "CoTracker": shipped,
}
scores = {name: evaluate(tracker, held_out, iterations=3) for name, tracker in trackers.items()}
print(f"{'':>20}    AJ  δ_avg    OA")
for name, score in scores.items():
    print(f"{name:>20} {score[0]:5.3f}  {score[1]:5.3f} {score[2]:5.3f}")

# %% [markdown]
# AJ and δ_avg are shares, so larger is better; OA is to be compared with that of staying put, which is the share of places that are seen. The model is ahead in all three. The chained flow of RAFT-small adds up errors, and on such small frames they are large. That of iLK is exact to a fraction of a pixel as long as nothing gets in the way, so the closer one looks the better it does:

# %%
print("share of seen places within so many pixels, in frames of 256 × 256")
for name, score in scores.items():
    print(f"{name:>20}", "  ".join(f"{d}: {share:.2f}" for d, share in score.within.items()))
assert scores["CoTracker"].average_within > scores["iLK, chained"].average_within

# %% [markdown]
# Within a pixel the two are about level. A chain that slips is lost for good, so it gains less where the bound is wider. And once a round trip fails it says "hidden" for the rest of the clip: hence the low OA.
#
# So look at what gets in the way: the points that a frame shows again after they were hidden.

# %%
asked = torch.arange(T)[:, None] > held_out.queries[:, None, :, 0]
again = held_out.visible & asked & ((~held_out.visible & asked).cumsum(dim=1) > 0)


@torch.no_grad()
def error_again(tracker):
    """The mean error in pixels at the places seen again, and how often "seen" is said of them."""
    answers = [
        tracker(v, q)
        for v, q in zip(held_out.video.split(1), held_out.queries.split(1), strict=True)
    ]
    points = torch.cat([answer.points for answer in answers])
    seen = torch.cat([answer.visibility for answer in answers]) > 0.5
    return (points - held_out.points).norm(dim=-1)[again].mean(), seen[again].float().mean()


del trackers["RAFT-small, chained"]
trackers["CoTracker"] = Predictor(shipped, iterations=3)
for name, tracker in trackers.items():
    far, seen = error_again(tracker)
    print(f"{name:>20}: {far:5.1f} px off, called seen {seen:.0%}")

# %% [markdown]
# The chain has lost these points; the model has kept most of them and says that they are back. That is still many pixels off on average, since a few that are lost count for much. The released model saw more than ten thousand times the pixels, as computed above, and has twenty times the weights.


# %% tags=["figure"]
def draw_answers(index=1, frames=(0, 6, 12, 18, 23)):
    """True places as dots, hidden ones as rings, and the model's answer as lines to them."""
    video, points, visible, queries = (part[index : index + 1] for part in held_out)
    with torch.no_grad():
        answer = Predictor(shipped, iterations=3)(video, queries).points[0]
    figure, axes = canvas(1, len(frames), 7.4, 1.7, sharey=True)
    asked = queries[0, :, 0].eq(0).nonzero()[::3, 0].tolist()
    for each, t in zip(axes, frames, strict=True):
        each.imshow(to_picture(video[0, t]))
        each.autoscale(False)
        each.set(title=f"frame t = {t}", xlabel="x (px)")
        for n in asked:
            true = points[0, t, n]
            fill = COLOURS["query"] if visible[0, t, n] else "none"
            each.plot(*true, "o", markersize=4, color=COLOURS["query"], markerfacecolor=fill)
            each.plot(*torch.stack([true, answer[t, n]]).T, color="white", linewidth=1)
    axes[0].set(ylabel="y (px)")
    return figure


show(
    draw_answers(),
    alt="Five frames of a held-out clip with true places, and white lines from them to the answers",
    photo=True,
)

# %% [markdown]
# A white line is an error. Look at the rings: nothing in the frame says where they are.
#
# ### Stopped and resumed
#
# With a folder, the same call goes on from the last checkpoint. Here `minutes=0` stops after every step, and the end equals that of an uninterrupted run in every bit (on a CPU, with the number of threads unchanged).

# %%
quick = FEATURES._replace(steps=3, batch=1, size=(48, 64), frames=4, points=8)
straight, _ = train_cotracker(quick, progress=False)
with tempfile.TemporaryDirectory() as folder:
    for minutes in (0, 0, None):
        resumed, lines = train_cotracker(quick, folder=folder, minutes=minutes, progress=False)
        print(f"after this call: {len(lines)} steps")
states = zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
assert all(torch.equal(a, b) for a, b in states)

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `choose_queries` | 10 | ●●○ |
# | `track_loss` | 10 | ●●○ |
# | `balanced_loss` | 5 | ●○○ |
# | `matching_loss` | 15 | ●●● |
#
# <details><summary>Hint for <code>choose_queries</code></summary>
#
# `argmax` of a table of bytes gives the first 1 along an axis. `torch.multinomial` draws a column of each row of weights. `points[frame, torch.arange(N)]` picks one frame for each point.
#
# </details>
#
# <details><summary>Hint for <code>track_loss</code></summary>
#
# Average over x and y first, then `mean_where`, then the weight of the iteration. `F.huber_loss` with `reduction="none"` keeps the shape.
#
# </details>
#
# <details><summary>Hint for <code>balanced_loss</code></summary>
#
# Turn the score around where the point is visible, then one `F.softplus` serves both; `mean_where` twice.
#
# </details>
#
# <details><summary>Hint for <code>matching_loss</code></summary>
#
# The softmax runs over all places of one frame, so flatten the last two axes before it and restore them after. Points are in pixels of the video, maps in those of the features. `inside` says which points the map holds.
#
# </details>
#
# **Predict.** A tracker says 0.9 of everything, visible or hidden. What is version 2's loss of visibility, for one point and one window, against its floor?
#
# <details><summary>Hint</summary>
#
# Both means of equation 7 have one value.
#
# </details>


# %%
always = F.softplus(torch.tensor([-0.9, 0.9])).sum().item()
print(f"{10 * always:.2f} against the floor {10 * least:.2f}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# $10\,(\log(1 + e^{-0.9}) + \log(1 + e^{0.9}))$, printed above. The range between knowing nothing and knowing everything is that small: most of the number that a training prints is floor.
#
# </details>
#
# **Find the bug.** This target has the right shapes, and in the first window the right values. What is wrong with it, and what does a model learn from it?


# %%
def window_target_wrong(clip, first, frames):
    here = slice(first, first + frames)
    times = torch.arange(len(clip.points[0, here]))[:, None]
    asked = times >= clip.queries[:, None, :, 0]
    return Target(clip.points[:, here], clip.visible[:, here], asked)


for first in (0, 4, 16):
    right, wrong = (
        make(one, first, 8).asked.float().mean() for make in (window_target, window_target_wrong)
    )
    print(f"window from {first:2}: {right:.0%} asked, by the wrong target {wrong:.0%}")

# %% [markdown]
# <details><summary>Hint</summary>
#
# From which frame on are `times` counted?
#
# </details>
#
# <details><summary>Answer</summary>
#
# `times` begins at 0 in every window, while the queries' frames are those of the clip. Points that are asked for late are then never counted in late windows, as the shares show. The loss goes down as it should; late queries are tracked badly.
#
# </details>
#
# **Measure.** What takes longer in each stage, making a batch or learning from it?
#
# <details><summary>Hint</summary>
#
# `records[i].seconds` of a training of three steps hold both; time the making alone with a `SyntheticClips` of the recipe.
#
# </details>


# %%
for name in ("features", "all"):
    each = RECIPES[name]._replace(steps=3, batch=1)
    endless = SyntheticClips(
        photographs, each.size, frames=each.frames, points=each.points, speed=each.speed
    )
    begin = time.perf_counter()
    _ = [endless[i] for i in range(2)]
    making = (time.perf_counter() - begin) / 2
    _, timed = train_cotracker(each, endless, progress=False)
    print(
        f"{name:>8}: making a clip {making:.2f} s, a step with it {(timed[2].seconds - timed[0].seconds) / 2:.2f} s"
    )

# %% [markdown]
# <details><summary>Answer</summary>
#
# The cell prints it for the machine that ran the lesson. On a CPU the step is the larger part in both stages, and more so in the third, in which the gradient goes through two windows.
#
# </details>
#
# **Vary.** Train `UPDATE` for an hour from the shipped weights, once with `hidden=0` and once with `hidden=1` in `course_loss`. Compare the errors of visible and of hidden points apart.
#
# <details><summary>Hint</summary>
#
# `train_cotracker` takes `course_loss` from the module; in a notebook, write its few lines again with your own loss. The errors are `(tracks.points - clips.points).norm(dim=-1)`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# No number of this lesson says how it ends; that is why it is worth measuring. At 0, nothing ties a point while it is hidden but the smoothness that the model learned where it was seen. Run more than one seed before you believe a difference.
#
# </details>

# %% [markdown]
# ## What breaks
#
# ### A covered point that is called visible
#
# Paint the eraser's boxes and forget the truth:

# %%
boxed, covered = erase_frames(clip.video, seeded(1), (12, 40))
under_box = sample(covered[:, None].float(), clip.points)[:, 0] > 0.5
forgotten = clip._replace(video=boxed)
lies = forgotten._replace(visible=clip.visible & under_box)
print(f"{lies.visible.sum()} of {clip.visible.sum()} visible places are covered;")
print(
    f"colour gap at all visible places {colour_gap(forgotten)[0]:.1f}, at those {colour_gap(lies)[0]:.1f}"
)
assert colour_gap(lies)[0] > 5 * colour_gap(clip)[0]

# %% [markdown]
# The mean over all points hardly tells, and so a training would hardly tell: a few places say "here it is, and seen" of a grey rectangle, and a model that believes them says so of what really hides a point.
#
# ### A probability where a logit belongs
#
# The floor is harmless; what it does to the gradient is not. A hidden point with a score of 8 is a confident mistake:

# %%
for name, as_given in (("logit", lambda s: s), ("probability", torch.sigmoid)):
    score = torch.tensor(8.0, requires_grad=True)
    F.softplus(as_given(score)).backward()
    print(f"given as {name}: gradient {score.grad:.4f}")

# %% [markdown]
# The logit is pulled down with nearly full force, the probability hardly at all: the sigmoid is flat out there.
#
# ### What the code says to bad input

# %%
with shows_error(ValueError):
    choose_queries(ways, shows & False, seeded(0))
with shows_error(ValueError):
    render_clip(clip_scene, (H, W), 0, seeded(0))
with shows_error(ValueError):
    SyntheticClips([], (96, 128))[0]
with shows_error(ValueError):
    train_cotracker(FEATURES._replace(trains="encoder"), progress=False)
with shows_error(ValueError):
    train_course("runs/cotracker", recipe="update")

# %% [markdown]
# The last one is the mistake that the stages invite: the second stage leaves the encoder as it is, and from nothing that is a random one.

# %% [markdown]
# ## Recap
#
# - Layers that move along smooth paths make clips whose tracks and visibility are exact, and a covered point is never called visible.
# - The versions' losses differ in Huber or absolute errors, in where probabilities stand, and in what is divided by what; between windows, gradient flows through the scores and the embedding of the place alone.
# - On a small machine, features that match come first, the update second, and everything together last.
#
# The line goes on in [lesson 9](9_experiments.ipynb), the last of this chapter, which takes the trained model apart: alone or together, windows, iterations, virtual tracks, and failures.
