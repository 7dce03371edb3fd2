# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: advanced
#     minutes: 60
#     needs:
#     - 5_cotracker/2_tracks
#     - 5_cotracker/3_features
#     - 5_cotracker/4_tokens
#     - 5_cotracker/5_transformer
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # CoTracker: the whole model, window by window
#
# **After this lesson you can** follow a clip through every stage of CoTracker, say what versions 2 and 3 do differently, and load published weights or the course's own into the model you have read.
#
# *Before this*, of this chapter: the [tracks](2_tracks.ipynb) (`2_tracks`), the [features](3_features.ipynb) (`3_features`), the [tokens](4_tokens.ipynb) (`4_tokens`) and the [transformer](5_transformer.ipynb) (`5_transformer`). *Time:* 60 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# A clip is cut into **windows** (窗口) of $S$ frames. Each begins at a first frame $w$, half a window after the one before it, so every two neighbours share half their frames. Within a window all tracks are refined jointly. The **points** $p$ begin where their queries are, or where the last window left them. An **iteration** (迭代) then improves them, and is repeated $M$ times. It reads the correlations $C$ around every point in every frame, and joins them with the motion, the track's **features** $Q$ and what is known to **tokens** $G$ (令牌), one for each point in each frame. The **transformer** $\Psi$ reads all tokens and answers with a **change** $\Delta$, which is added: a point moves, and its features change with it.
#
# Two masks say what a token may be trusted with. A point is **active**, $a$, once the window reaches the frame $q$ of its query. A frame is **known**, $k$, if it does not lie before the query and no earlier window has settled it.
#
# What a window finds is **carried over** (传递): its second half starts the next window, and the next window's answer overwrites it. So a track of any length is found in order of time, and the refinement needs memory for one window. That is version 2, the paper's. Version 3 keeps the windows and the transformer, drops the changing features, and refines the **visibility** $v$ and a **confidence** $c$ with the points.

# %% [markdown]
# ## Figure
#
# ### Every stage, on a real clip
#
# A man speaks in a moving car. Hooks, functions that torch calls with what goes into a part and what comes out, write down what passes through the model, and the figure is drawn from their notes.

# %%
import re
import timeit
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle
from torch import Tensor, nn

from fourfold.bilinear_sampling.sampling import _check_floating, sample
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.cotracker.cotracker import CoTracker, load_cotracker
from fourfold.cotracker.features import (
    STRIDE,
    FeatureEncoder,
    correlate,
    feature_pyramid,
    unit_length,
    vector_windows,
)
from fourfold.cotracker.tokens import (
    fourier_features,
    motion_embedding,
    place_embedding,
    step_motion,
    time_embedding,
)
from fourfold.cotracker.tracks import Tracks, _check_queries
from fourfold.cotracker.transformer import Transformer
from fourfold.kit.arguments import whole_number
from fourfold.kit.checkpoints import check_keys
from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, show, to_picture
from fourfold.kit.notebook import shows_error
from fourfold.kit.track_picture import draw_trails
from fourfold.kit.video import bundled_clip, clip_credit, read_video
from fourfold.raft.raft import _check_values, _read_weights

# %%
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
course = load_cotracker()

# %% [markdown]
# The weights are those that [lesson 8](8_learning.ipynb) trains: a small model, and far from the paper's.

# %%
clip = read_video(bundled_clip("carphone_pristine"), frames=16, step=2).float()[None]
T, H, W = clip.shape[1], *clip.shape[3:]
asked = [(0, 77, 61), (0, 97, 57), (0, 84, 82), (0, 107, 113), (4, 60, 112), (9, 90, 66)]
queries = torch.tensor([asked], dtype=torch.float32)
print("video", tuple(clip.shape), "queries", tuple(queries.shape))
print(clip_credit("carphone_pristine"))


# %%
def watch(model, video, queries, iterations=4):
    """Run the model; return what its parts took and gave, in the order of their runs."""
    parts = {
        "encoder": model.fnet,
        "update": model.update,
        "transformer": model.update.transformer,
    }
    notes = {name: [] for name in parts}
    hooks = [
        part.register_forward_hook(lambda _, takes, gives, n=name: notes[n].append((takes, gives)))
        for name, part in parts.items()
    ]
    with torch.no_grad():
        notes["tracks"] = model(video, queries, iterations)
    for hook in hooks:
        hook.remove()
    return notes


notes = watch(course, clip, queries)
print({name: len(runs) for name, runs in notes.items() if name != "tracks"}, "runs")


# %%
def in_colours(features):
    """The three directions in which the vectors (h, w, C) differ most, as red, green and blue."""
    vectors = features.flatten(0, 1)
    vectors = vectors - vectors.mean(dim=0)
    shares = vectors @ torch.linalg.svd(vectors, full_matrices=False).Vh[:3].T
    shares = shares / shares.std(dim=0).clamp(min=1e-6) / 4 + 0.5
    return to_picture(255 * shares.T.view(1, 3, *features.shape[:2]))


def draw_map(axes, name, shape, picture, x, y, width, height):
    axes.imshow(picture, extent=(x, x + width, y + height, y), cmap="gray", aspect="auto")
    text = f"{name}\n{' × '.join(map(str, shape))}"
    axes.text(x + width / 2, y - 0.6, text, ha="center", va="bottom", size=7.5)


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


# %%
def draw_once(axes, point):
    """What is made once: features of all frames, and the feature of each query."""
    window, anchors, *_ = notes["update"][0][0]
    for k in (2, 1, 0):
        x, y = 1 + 1.5 * k, 7 - 1.5 * k
        axes.imshow(to_picture(clip[0, 2 * k]), extent=(x, x + 17, y + 14, y), aspect="auto")
    axes.text(12, 3.2, f"video\n{' × '.join(map(str, clip.shape[1:]))}", ha="center", size=7.5)
    draw_box(axes, "feature\nencoder", 25, 8, 9, 11)
    for k, level in enumerate(window.levels):
        width, height = 15 / 2**k, 13 / 2**k
        x, y = 45.5 + 17 * k - width / 2, 13.5 - height / 2
        draw_map(axes, f"level {k}", level.shape, in_colours(level[0]), x, y, width, height)
    draw_box(axes, "read at\nthe query", 88, 8, 9, 11)
    feature = anchors[0, point]
    draw_map(axes, "features Q", anchors.shape[1:], feature.view(8, -1), 101, 8.5, 10, 10)
    for x in (21.4, 34.4, 84.4, 97.3):
        draw_arrow(axes, (x, 13.5), (x + 3.2, 13.5))


def draw_loop(axes, point, frame):
    """What one iteration reads and writes, for one point of the first window."""
    (tokens, _), change = notes["transformer"][3]
    _, estimates = notes["update"][0]
    motion, side = 130, 2 * course.sizes.radius + 1
    products = tokens[0, point, frame, motion : motion + course.sizes.levels * side**2]
    window = products.view(-1, side, side)[0].T  # offsets in x come first in a token
    draw_map(axes, "correlations C", products.shape, window, 3, 38, 13, 13)
    draw_map(axes, "tokens G", tokens.shape[1:], tokens[0, point], 24, 38, 32, 13)
    draw_box(axes, "transformer Ψ", 61, 40, 17, 9)
    draw_map(axes, "change Δ", change.shape[1:], change[0, point], 84, 38, 22, 13)
    picture = clip[0, frame, :, 20:130, 30:140]
    axes.imshow(to_picture(picture), extent=(61, 81, 78, 62), aspect="auto")
    path = STRIDE * estimates[-1].points[0, :, point]
    x, y = 61 + (path[:, 0] - 30) * 20 / 110, 62 + (path[:, 1] - 20) * 16 / 110
    axes.plot(x, y, "-", color="white", linewidth=2.5)
    axes.plot(x, y, "-", color=COLOURS["query"], linewidth=1.2)
    text = f"points p\n{' × '.join(map(str, estimates[-1].points.shape[1:]))}"
    axes.text(71, 61.4, text, ha="center", size=7.5)
    told = estimates[-1].visibility[0, :, point : point + 1].T
    axes.imshow(told, extent=(88, 106, 76, 70), aspect="auto", cmap="gray")
    text = f"visibility v\n{' × '.join(map(str, estimates[-1].visibility.shape[1:]))}"
    axes.text(97, 69.4, text, ha="center", size=7.5)


# %% tags=["figure"]
def draw_cotracker(point=1, frame=3):
    figure, axes = canvas(1, 1, 7.6, 5.4)
    axes.add_patch(Rectangle((0, 28), 112, 52, facecolor="0.95", zorder=-1))
    draw_once(axes, point)
    draw_loop(axes, point, frame)
    for a, b in ((16.4, 23.6), (56.4, 60.6), (78.4, 83.6)):
        draw_arrow(axes, (a, 44.5), (b, 44.5))
    draw_arrow(axes, (45.5, 20.5), (45.5, 27), (9.5, 27), (9.5, 31.5))
    draw_arrow(axes, (106, 19.5), (106, 25), (40, 25), (40, 31.5))
    draw_arrow(axes, (95, 51.4), (95, 56), (71, 56), (71, 57.3), colour=COLOURS["query"])
    draw_arrow(axes, (60.6, 70), (9.5, 70), (9.5, 51.4), colour=COLOURS["query"])
    draw_arrow(axes, (40, 70), (40, 51.4), colour=COLOURS["query"])
    draw_arrow(axes, (102, 51.4), (102, 65.2))
    axes.text(1, 79, f"in every window of S = {course.window} frames; iteration 4 of M = 4", size=8)
    axes.text(1, 25.5, "once for a clip", size=8, style="italic")
    axes.set(xlim=(-0.5, 112.5), ylim=(81, -1))
    axes.set_axis_off()
    return figure


show(
    draw_cotracker(),
    alt="CoTracker as a diagram of small pictures: frames, features at several levels and the "
    "features of the queries; a grey loop of correlations, tokens, transformer, change and points; the "
    "visibility at its end",
    photo=True,
)

# %% [markdown]
# All shapes are measured. A row of the tokens $G$ is one frame of the window, for one of the six points; the red arrows carry the points: where they are says where the correlations are read. The first two numbers of the change move the point, and the others change its features. The visibility is told once, after the last iteration.
#
# ### Which frame belongs to which window
#
# From the same run: what each window's frames began with, and what became of them. The second panel shows the masks of the point whose query lies in frame 9.


# %%
def beginnings():
    """For each window and frame: 1 begins at the query, 2 carried over, 3 a copy of the last."""
    rows, last = [], None
    for (_, _, start, _), estimates in notes["update"]:
        step, row = course.window // 2, torch.ones(course.window)
        if last is not None:
            half, points = last.points[0, step:, 0], start.points[0, :, 0]
            row[:step] = torch.where((points[:step] == half).all(dim=-1), 2, row[:step])
            row[step:] = torch.where((points[step:] == half[-1]).all(dim=-1), 3, row[step:])
        rows.append(row)
        last = estimates[-1]
    return rows


def draw_windows(axes):
    step, rows = course.window // 2, beginnings()
    shades = {1: "#cfd8e6", 2: COLOURS["first"], 3: "#7f9cc4"}
    for j, row in enumerate(rows):
        for t, kind in enumerate(row.tolist()):
            overwritten = t >= step and j + 1 < len(rows)
            style = {"hatch": "////" if overwritten else None, "edgecolor": "white"}
            place = (j * step + t - 0.5, j - 0.4)
            axes.add_patch(Rectangle(place, 1, 0.8, facecolor=shades[int(kind)], **style))
        axes.text(j * step - 0.7, j, f"first frame w = {j * step}", ha="right", va="center", size=7)
    names = {1: "begins at the query", 2: "carried over", 3: "copy of the last frame"}
    legend = [Patch(facecolor=shades[kind], label=name) for kind, name in names.items()]
    legend.append(Patch(facecolor="0.8", hatch="////", edgecolor="white", label="overwritten"))
    axes.legend(handles=legend, loc="upper right", bbox_to_anchor=(1.0, 1.02), fontsize=7)
    axes.set(ylim=(len(rows) - 0.4, -0.6), yticks=[], title=f"window of S = {course.window}")


# %% tags=["figure"]
def draw_masks(axes, point):
    for j, ((window, *_), _) in enumerate(notes["update"]):
        step, known = course.window // 2, window.known[0, :, point]
        for t, value in enumerate(known.tolist()):
            shade = COLOURS["good"] if value else "0.9"
            place = (j * step + t - 0.5, j - 0.4)
            axes.add_patch(Rectangle(place, 1, 0.8, facecolor=shade, edgecolor="white"))
        active = "yes" if window.active[0, point] else "no"
        axes.text(j * step - 0.7, j, f"active a: {active}", ha="right", va="center", size=7)
    q = int(queries[0, point, 0])
    axes.axvline(q, color=COLOURS["query"], linewidth=1)
    axes.text(q + 0.2, -0.5, f"query frame q = {q}", color=COLOURS["query"], size=7, va="top")
    axes.set(ylim=(len(notes["update"]) - 0.4, -0.6), yticks=[], xlabel="frame of the clip")
    axes.set_title("green: known k", size=9)


def draw_strip(point=5):
    figure, (top, below) = canvas(2, 1, 7.2, 3.6, sharex=True)
    draw_windows(top)
    draw_masks(below, point)
    below.set(xlim=(-6, T + 5.5), xticks=range(0, T, 2))
    return figure


show(
    draw_strip(),
    alt="Three windows of 8 frames over a clip of 16, each half a window after the last: what each "
    "frame began with, and which frames are known for a point whose query lies in frame 9",
)

# %% [markdown]
# Read down a column: frames 4 to 7 are refined by two windows, and the second one's answer stays. In the first window the point of frame 9 does not take part. In the second it does, and the frames from its query on are known. In the third only the new half is known; the other half tells what the second window found.

# %% [markdown]
# ## Formula
#
# A window of $S$ frames begins at every half window as long as there are frames that no window has settled. With $T$ frames in the clip, where a window reaches past its end, the last frame stands in:
#
# $$ w = j\,\frac{S}{2}, \qquad j = 0, 1, \dots \quad \text{while} \quad w < T - \frac{S}{2} \tag{1} $$
#
# Let $x$ be the place of a query in feature pixels, $p'$ the points of the window before, and $t$ a frame of the clip. A point whose query lies before the new half goes on from the window before, whose last frame stands in for the frames that are new; another begins at its query, in all frames:
#
# $$ p_t = \begin{cases} p'_{\min(t,\; w + S/2 - 1)} & q < w + S/2 \ \text{and}\ w > 0 \\ x & \text{else} \end{cases} \tag{2} $$
#
# The visibility begins in the same way, with the logit 10 in place of $x$. A **logit** $z$ stands for the probability $1 / (1 + e^{-z})$. The masks are 1 where what the brackets hold is true:
#
# $$ a = [\,q < w + S\,], \qquad k_t = [\,q \le t\,] \cdot [\,w = 0 \ \text{or}\ t \ge w + S/2\,] \tag{3} $$
#
# The features of all frames begin as that of the query, $a \cdot F(q, x)$, read from the encoder's map $F$. The token of a point in a frame joins its motion since the first frame, embedded by $\eta$ of lesson 4, its correlations, its features, the mask and the visibility; place and time are added to all of it:
#
# $$ G_t = \big[\eta(p_t - p_w),\; C_t(p_t, Q_t),\; Q_t,\; k_t,\; v_t\big] + \eta_{\text{place}}(p_w) + \eta_{\text{time}}(t - w) \tag{4} $$
#
# The transformer reads all tokens, with the mask of active points. The change has a part for the point and one for the features; `stop` lets no gradient through:
#
# $$ [\Delta^p, \Delta^Q] = \Psi(G, a), \qquad p \leftarrow \mathrm{stop}(p) + \Delta^p \tag{5} $$
#
# $$ Q \leftarrow Q + \mathrm{GELU}\big(U\,\mathrm{norm}(\Delta^Q)\big) \tag{6} $$
#
# Here norm brings the numbers of each $\Delta^Q$ to mean 0 and variance 1 and then applies a learned scale and shift, and $U$ is a linear layer. Equations 4 to 6 are repeated for $i = 1, \dots, M$. Then a linear layer $u$ tells the visibility from the refined features:
#
# $$ v = u(Q) \quad \text{after} \quad i = M \tag{7} $$
#
# **Version 3.** The features do not change. In their place stands the window of features $F_r$ around the query, compared with the window around the point, all vectors with all, and shortened by an MLP (multi-layer perceptron, 多层感知机):
#
# $$ C_t = \mathrm{MLP}\big(\langle F_r(t, p_t),\; F_r(q, x) \rangle\big) \tag{8} $$
#
# Tokens hold visibility and confidence, correlations, and the motion to the neighbouring frames, embedded by $\varphi$ of lesson 4; time is added, place is not:
#
# $$ G_t = \big[v_t,\; c_t,\; C_t,\; \varphi(p_t - p_{t+1},\, p_t - p_{t-1})\big] + \eta_{\text{time}}(t - w) \tag{9} $$
#
# All three estimates are refined. They begin with $v = c = 0$, and no mask reaches the transformer:
#
# $$ [\Delta^p, \Delta^v, \Delta^c] = \Psi(G), \qquad p \leftarrow \mathrm{stop}(p) + \Delta^p, \quad v \leftarrow v + \Delta^v, \quad c \leftarrow c + \Delta^c \tag{10} $$
#
# In both versions the model answers in pixels and probabilities: $4\,p$ and the sigmoid of $v$ and $c$.
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $S$ | frames in a window | whole number | `window` | window of S |
# | $w$ | first frame of a window | frame of the clip | `first` | first frame w |
# | $q$ | frame of a point's query | (B, N) | `queried` | query frame q |
# | $a$ | active points | (B, N), bool | `active` | active a |
# | $k$ | known frames | (B, S, N), bool | `known` | known k |
# | $p$ | points | (B, S, N, 2), feature px | `points` | points p |
# | $C$ | correlations | (B, S, N, ·) | `correlations` | correlations C |
# | $Q$ | features of the tracks | (B, S, N, d) | `features` | features Q |
# | $G$ | tokens | (B, S, N, ·) | `tokens` | tokens G |
# | $\Psi$ | transformer | (B, N, S, ·) in and out | `transformer` | transformer Ψ |
# | $\Delta$ | change of the estimate | (B, S, N, ·) | `change` | change Δ |
# | $M$ | number of iterations | whole number | `iterations` | of M |
# | $v$ | visibility | (B, S, N), logit | `visibility` | visibility v |
# | $c$ | confidence, version 3 | (B, S, N), logit | `confidence` | confidence c |
#
# Letters of shapes: $B$ videos of a batch, $T$ frames, $N$ points, $d$ channels of a feature (`C` in the annotations of the code), $h$ and $w$ a feature map's size. Positions are (x, y), x to the right, y down; a feature pixel is four pixels of the video.

# %% [markdown]
# ## Code
#
# ### Version 2 as the formulas say it
#
# First the whole of version 2 in the plainest form: arrays for the whole clip, windows cut out of copied features, the query's feature compared with every vector of a frame before the window is read. One video, and no gradient.


# %%
def all_correlations(model, maps, p, Q):
    """Equation 4's C: vectors (S, N, d) against whole frames (S, d, h, w), then read at p."""
    r, read = model.sizes.radius, []
    dx, dy = torch.meshgrid(*[torch.arange(-r, r + 1.0)] * 2, indexing="ij")
    offsets = torch.stack([dx, dy], dim=-1).flatten(0, 1)  # x is the slow one
    for k in range(model.sizes.levels):
        products = torch.einsum("snc,schw->snhw", Q, maps) / Q.shape[-1] ** 0.5
        points = p[:, :, None] / 2**k + offsets
        one = sample(products.flatten(0, 1)[:, None], points.flatten(0, 1), padding="border")
        read.append(one.view(*p.shape[:2], -1))
        maps = F.avg_pool2d(maps, 2)
    return torch.cat(read, dim=-1)


# %%
def refine_loop(model, maps, features, start, active, known, iterations):
    """Equations 4 to 7 for one window: maps (S, d, h, w), start of (S, N, 2) and (S, N)."""
    update, (p, v) = model.update, start
    Q = features.expand(len(p), -1, -1)
    size = tuple(side // 4 for side in model.sizes.resolution)
    place = place_embedding(p[0], update.inputs, size)
    time = time_embedding(len(p), update.inputs)[:, None]
    for _ in range(iterations):
        motion = motion_embedding(p - p[0], highest=model.sizes.highest)
        C = all_correlations(model, maps, p, Q)
        G = torch.cat([motion, C, Q, known[..., None], v[..., None]], dim=-1) + place + time
        present = active.expand(1, len(p), -1)
        change = update.transformer(G.transpose(0, 1)[None], present)[0].transpose(0, 1)
        p = p + change[..., :2]
        normed = update.norm(change[..., 2:].flatten(0, 1)).view_as(Q)
        Q = Q + F.gelu(update.track_feat_updater(normed))
    return p, update.vis_predictor(Q)[..., 0]


# %%
@torch.no_grad()
def track_loop(model, video, queries, iterations):
    """Version 2 on one video (T, 3, H, W) with queries (N, 3), by the equations."""
    S, T, q = model.window, len(video), queries[:, 0]
    maps = model.sizes.feature_length * F.normalize(model.fnet(2 * (video / 255) - 1), dim=1)
    x = queries[:, 1:] / 4
    p = x.expand(T + S, -1, -1).clone()
    v = torch.full(p.shape[:2], 10.0)
    found = sample(maps[q.long()], x[:, None, None], padding="border")[..., 0, 0]
    for w in range(0, T - S // 2, S // 2):
        on = (q < w + S // 2) & (w > 0)
        for array in (p, v):  # equation 2: the last settled frame stands in for the new ones
            array[w + S // 2 : w + S, on] = array[w + S // 2 - 1, on]
        active = q < w + S
        t = torch.arange(w, w + S)[:, None]
        known = ((q <= t) & ((w == 0) | (t >= w + S // 2))).float()
        here = maps[t[:, 0].clamp(max=T - 1)]
        start = p[w : w + S].clone(), v[w : w + S].clone()
        start[0][:, ~on], start[1][:, ~on] = x[~on], 10.0
        answer = refine_loop(model, here, found * active[:, None], start, active, known, iterations)
        p[w : w + S], v[w : w + S] = answer
    return 4 * p[:T], v[:T].sigmoid()


by_loop = track_loop(course, clip[0], queries[0], 2)
print(*(tuple(values.shape) for values in by_loop))

# %% [markdown]
# The rest of this part rebuilds it for batches, for training, for speed and for two versions, and ends by comparing with these numbers.
#
# ### Nouns
#
# An estimate is all that is known of the tracks in one window; the refinement turns one into the next.


# %% tags=["promote"]
class Estimate(NamedTuple):
    """What is known of the tracks in one window.

    points      (B, S, N, 2) as (x, y), in pixels of the features
    visibility  (B, S, N) logits
    confidence  (B, S, N) logits; None in version 2

    Convention: x to the right, y down, the centre of the top-left feature pixel at (0, 0).
    """

    points: Float[Tensor, "B S N 2"]
    visibility: Float[Tensor, "B S N"]
    confidence: Float[Tensor, "B S N"] | None = None


# %% [markdown]
# A window does not copy the features of its frames. It holds those of all frames, and which rows are its own; lesson 3's functions read where the rows say.


# %% tags=["promote"]
class Window(NamedTuple):
    """A part of the video, for one call of an update.

    levels   L levels (F, h, w, C) of features, of the frames of all videos
    frames   (B, S) rows of the levels, one for each frame of the window
    active   (B, N) the query lies in this window or before it (equation 3 of the lesson)
    known    (B, S, N) the frame is not before the query, and no earlier window settled it
    """

    levels: list[Float[Tensor, "F _ _ C"]]
    frames: Int[Tensor, "B S"]
    active: Bool[Tensor, "B N"]
    known: Bool[Tensor, "B S N"]


# %% [markdown]
# The sizes of a model are data. Those of the release are the defaults; the course's model is smaller in nearly all of them. One has no counterpart in the release: with a `feature_length`, version 2 scales all feature vectors to one length, as version 3 does, so that a product says how alike two vectors are, and not how long.


# %% tags=["promote"]
class Sizes(NamedTuple):
    """What a CoTracker is made of; the defaults are those of the releases.

    width, heads, virtual_tracks  of the transformer; depth too: 6 in version 2, 3 in version 3
    features, widths              of the encoder
    levels, radius                of the correlation
    resolution                    (H, W) in pixels of the videos that the model is meant for
    highest                       frequency of version 2's motion embedding, in radians a feature
                                  pixel; see `motion_embedding`
    feature_length                of every vector of a feature map in version 2; 0 for those of the
                                  release, which are as long as they come; in version 3 it is 1
    """

    width: int = 384
    depth: int = 6
    heads: int = 8
    virtual_tracks: int = 64
    features: int = 128
    widths: tuple[int, ...] = (64, 96, 128, 128)
    levels: int = 4
    radius: int = 3
    resolution: tuple[int, int] = (384, 512)
    highest: float = 1000.0
    feature_length: float = 0.0


# %% [markdown]
# ### Where windows begin
#
# Equation 1. With half a window or less there is none: the release then returns zeros for all tracks without a word. Here that is an error.


# %% tags=["promote", "exercise"]
def window_starts(frames: int, window: int) -> range:
    """First frames of the windows of a clip, one every half window (equation 1 of the lesson).

    frames  T of the clip
    window  S, an even number

    Raises ValueError for a clip of half a window or less, for which there is no window.
    """
    step = window // 2
    if frames <= step:
        raise ValueError(
            f"video has {frames} frames; expected more than {step}, half a window of {window}"
        )
    return range(0, frames - step, step)


# %% tags=["check"]
assert list(window_starts(16, 8)) == [0, 4, 8], "the last window ends with the clip"
assert list(window_starts(17, 8)) == [0, 4, 8, 12], "one frame more needs one window more"
assert list(window_starts(5, 8)) == [0], "five frames are more than half of eight"
for T_, S in ((24, 16), (13, 16), (40, 8), (3, 4)):
    covered = {w + t for w in window_starts(T_, S) for t in range(S)}
    assert covered >= set(range(T_)), "every frame lies in a window"
try:
    window_starts(4, 8)
except ValueError:
    pass
else:
    raise AssertionError("half a window gives no window; say so")

# %% [markdown]
# ### What a window may trust
#
# Equation 3. Both masks depend on the frame of each query and on where the window begins.


# %% tags=["promote", "exercise"]
def window_masks(
    queried: Float[Tensor, "B N"], first: int, window: int
) -> tuple[Bool[Tensor, "B N"], Bool[Tensor, "B S N"]]:
    """Which points take part in a window, and what is known (equation 3 of the lesson).

    queried  (B, N) q, the frame of each point's query
    first    w, the window's first frame
    window   S
    returns  active (B, N), known (B, S, N)
    """
    t = torch.arange(window, device=queried.device)[:, None]
    active = queried < first + window
    known = queried[:, None] <= first + t
    if first > 0:
        known = known & (t >= window // 2)
    return active, known


# %% tags=["check"]
active, known = window_masks(torch.tensor([[0.0, 9.0, 12.0]]), first=4, window=8)
assert active.tolist() == [[True, True, False]], "a query in frame 12 lies behind frames 4 to 11"
assert known.shape == (1, 8, 3), "a mask for each frame and point"
assert known[0, :, 0].tolist() == 4 * [False] + 4 * [True], "the window before settled its half"
assert known[0, :, 1].tolist() == 5 * [False] + 3 * [True], "frames 9 to 11 do not lie before 9"
active, known = window_masks(torch.tensor([[2.0, 7.0]]), first=0, window=8)
assert known[0].sum(dim=0).tolist() == [6, 1], "in the first window only the query decides"
assert active.all() and active.dtype == known.dtype == torch.bool

# %% [markdown]
# ### Carry over, and overwrite
#
# Equation 2: the second half of the last window, then its last frame again for the frames that nobody has seen. A point that was not there yet begins at its query.


# %% tags=["promote"]
def _second_half(values: Float[Tensor, "B S *N"]) -> Float[Tensor, "B S *N"]:
    """The second half, then its last frame as often as needed to fill a window."""
    half = values[:, values.shape[1] // 2 :]
    return torch.cat([half, half[:, -1:].expand_as(half)], dim=1)


# %% tags=["promote", "exercise"]
def carried(last: Estimate | None, first: Estimate, goes_on: Bool[Tensor, "B N"]) -> Estimate:
    """Begin a window where the last one ended (equation 2 of the lesson).

    last     the estimate of the window before; None for the first window
    first    what a point begins with that was not there yet
    goes_on  (B, N) points whose query lies before the frames that only this window has
    """
    if last is None:
        return first
    begun = []
    for old, new in zip(last, first, strict=True):
        if new is None:
            begun.append(None)
            continue
        mask = goes_on[:, None] if new.ndim == 3 else goes_on[:, None, :, None]
        begun.append(torch.where(mask, _second_half(old), new))
    return Estimate(*begun)


# %% tags=["check"]
line = torch.arange(8.0)[None, :, None].expand(1, 8, 2)
last_one = Estimate(torch.stack([line, -line], dim=-1), line)
fresh = Estimate(torch.full((1, 8, 2, 2), 50.0), torch.full((1, 8, 2), 10.0))
went_on = carried(last_one, fresh, torch.tensor([[True, False]]))
assert went_on.visibility[0, :, 0].tolist() == [4, 5, 6, 7, 7, 7, 7, 7], "second half, last frame"
assert went_on.points[0, :, 0, 1].tolist() == [-4, -5, -6, -7, -7, -7, -7, -7], "both coordinates"
assert (went_on.points[:, :, 1] == 50).all() and (went_on.visibility[:, :, 1] == 10).all()
assert carried(None, fresh, torch.tensor([[True, True]])) is fresh, "nothing comes before the first"
assert went_on.confidence is None, "version 2 has no confidence"

# %% [markdown]
# A later window has seen more of the future than the one before it, so its answer replaces what they share.


# %% tags=["promote"]
def overwritten(before: Estimate | None, first: int, window: Estimate) -> Estimate:
    """Put a window behind the frames before it; it replaces what it shares with them.

    before  the estimate of frames 0 to `first` and beyond; None in front of the first window
    first   w, the window's first frame
    """
    if before is None:
        return window
    return Estimate(
        *(
            None if new is None else torch.cat([old[:, :first], new], dim=1)
            for old, new in zip(before, window, strict=True)
        )
    )


def as_tracks(estimate: Estimate, frames: int) -> Tracks:
    """An estimate in pixels of the video and probabilities, cut to the frames that there are."""
    points, *logits = (None if x is None else x[:, :frames] for x in estimate)
    return Tracks(STRIDE * points, *(None if x is None else x.sigmoid() for x in logits))


# %%
whole = overwritten(last_one, 4, went_on)
print("frames:", whole.visibility.shape[1], "track of point 0:", whole.visibility[0, :, 0].tolist())
assert as_tracks(whole, 9).points.shape == (1, 9, 2, 2)

# %% [markdown]
# ### Version 2's update
#
# Equations 4 to 7 as a module. Two small functions first: the row of every point's frame in one line, and the order in which a window's products enter a token, offset in x slow, as in RAFT.


# %% tags=["promote"]
def _each(frames: Int[Tensor, "B S"], count: int) -> Int[Tensor, "K"]:
    """The row of the frame of every point of a window, in one line."""
    return frames[:, :, None].expand(-1, -1, count).flatten()


def _x_slow(windows: Float[Tensor, "*N S S"]) -> Float[Tensor, "*N P"]:
    """Windows in one line as in RAFT: offset in x first, offset in y for each of them."""
    return windows.mT.flatten(-2)


# %% [markdown]
# `anchor` reads what a query is recognised by; it is made once for a clip. `forward` refines one window and returns the estimate of every iteration, since the loss of training looks at all of them. The iteration of the naive version is in there, line by line. New are the batch, `detach`, and correlations that take products with only the few vectors they need.


# %% tags=["promote"]
_WAVES = 64  # sinusoids of one coordinate of the motion


class Update2(nn.Module):
    """Version 2's update: move the points, change their features (equations 4 to 7).

    sizes  of the model; with d features and radius r, a token has
           2 + 2 · 64 + L · (2r + 1)² + d + 2 numbers

    Called with a Window, what `anchor` read (B, N, C), an Estimate to begin with and a number of
    iterations, it returns the Estimate after each. Visibility is told once, with the last one; the
    others hand on what they began with. No gradient flows through the points from one iteration to
    the one before.
    """

    depth = 6
    first_visibility = 10.0  # a logit: as good as certain

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, C = sizes, sizes.features
        self.inputs = 2 + 2 * _WAVES + sizes.levels * (2 * sizes.radius + 1) ** 2 + C + 2
        self.transformer = Transformer(
            self.inputs, 2 + C, sizes.width, sizes.heads, sizes.depth, sizes.virtual_tracks
        )
        with torch.no_grad():
            # A new model hears the correlations first: the waves of the motion would drown them.
            self.transformer.input_transform.weight[:, : 2 + 2 * _WAVES] *= 0.1
        self.norm = nn.GroupNorm(1, C)
        self.track_feat_updater = nn.Linear(C, C)
        self.vis_predictor = nn.Linear(C, 1)

    def anchor(
        self, levels: list[Tensor], frames: Int[Tensor, "B N"], points: Float[Tensor, "B N 2"]
    ) -> Float[Tensor, "B N C"]:
        """The feature of each query, read at the row of its frame and at its place."""
        read = vector_windows(levels[0], frames.flatten(), points.flatten(0, 1), radius=0)
        return read.view(*points.shape[:2], -1)

    def correlations(self, window: Window, points: Tensor, features: Tensor) -> Tensor:
        """Products of each feature with the windows around its point, (B, S, N, L·(2r+1)²)."""
        frames, centres = _each(window.frames, points.shape[2]), points.flatten(0, 2)
        vectors, r = features.flatten(0, 2)[:, None], self.sizes.radius
        read = [
            _x_slow(correlate(level, frames, centres / 2**k, vectors, r)[:, 0])
            for k, level in enumerate(window.levels)
        ]
        scaled = torch.cat(read, dim=1).mul_(self.sizes.features**-0.5)
        return scaled.view(*points.shape[:3], -1)

    def forward(
        self, window: Window, anchors: Tensor, start: Estimate, iterations: int
    ) -> list[Estimate]:
        points, visibility, _ = start
        B, S, N, _ = points.shape
        grid = tuple(side // STRIDE for side in self.sizes.resolution)
        place = place_embedding(points[:, 0], self.inputs, grid)[:, None]
        time = time_embedding(S, self.inputs).to(points)[:, None]
        features = (anchors * window.active[..., None])[:, None].expand(B, S, N, -1)
        active = window.active[:, None].expand(B, S, N)
        told = torch.stack([window.known.to(points), visibility], dim=-1)
        estimates = []
        for _ in range(iterations):
            points = points.detach()
            motion = motion_embedding(points - points[:, :1], _WAVES, self.sizes.highest)
            correlations = self.correlations(window, points, features)
            tokens = torch.cat([motion, correlations, features, told], dim=-1) + place + time
            change = self.transformer(tokens.transpose(1, 2), active).transpose(1, 2)
            points = points + change[..., :2]
            normed = self.norm(change[..., 2:].flatten(0, 2)).view_as(features)
            features = features + F.gelu(self.track_feat_updater(normed))
            estimates.append(Estimate(points, visibility))
        visibility = self.vis_predictor(features)[..., 0]
        return [*estimates[:-1], Estimate(points, visibility)]


# %% [markdown]
# > **Where the code leaves the paper.** The paper describes full attention among tracks in its first edition and virtual tracks in its second, which is version 2. The released code divides the correlations by $\sqrt{d}$, multiplies the features of points that are not active by 0, embeds the motion at frequencies up to 969 radians per feature pixel, and samples the embedding of the place once per window, at the points that the window begins with. The refined features are not carried over: every window starts again from the feature of the query. And the released masks go wrong where there are exactly as many points as virtual tracks; *What breaks* shows that.
#
# ### The door
#
# What enters is checked before anything is computed. The smallest frame is one whose deepest map still has more than one place, since the encoder's norms need a spread, and whose coarsest level is not empty.


# %% tags=["promote"]
def least_size(levels: int) -> int:
    """The height and width in pixels that the encoder and so many levels need."""
    return STRIDE * max(5, 2 ** (levels - 1))


def check_video(video: Float[Tensor, "B T 3 H W"], levels: int) -> None:
    """Raise TypeError or ValueError, naming `video`, for what `CoTracker` cannot take."""
    _check_floating("video", video)
    shape = tuple(video.shape)
    if len(shape) != 5 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"video has shape {shape}; expected (B, T, 3, H, W), none of them 0")
    H, W = shape[3:]
    if H % STRIDE or W % STRIDE:
        raise ValueError(f"video has frames of {H} × {W}; expected multiples of {STRIDE}")
    least = least_size(levels)
    if min(H, W) < least:
        raise ValueError(
            f"video has frames of {H} × {W}; expected at least {least} × {least} for {levels} "
            "levels"
        )
    _check_values("video", video)


def check_queries(queries: Float[Tensor, "B N 3"], video: Float[Tensor, "B T 3 H W"]) -> None:
    """Raise TypeError or ValueError, naming `queries`, for points that are not in the video."""
    _check_queries(queries, len(video), video.shape[1], tuple(video.shape[3:]))
    if queries.device != video.device:
        raise ValueError(f"queries is on {queries.device}; expected {video.device}, that of video")


# %%
print({levels: least_size(levels) for levels in (1, 2, 3, 4, 5)})

# %% [markdown]
# ### The model
#
# The encoder, an update, and the windows around them. `windows` is a generator: training takes every estimate of every window, `forward` the last ones, and the predictor of [lesson 7](7_predictor.ipynb) calls `track_window` itself, while frames still arrive. `settings` holds the numbers that no weight's shape tells; it travels with the weights.


# %% tags=["promote"]
_PIXELS = 1 << 17  # of the frames that are encoded at once: larger maps leave the caches


class CoTracker(nn.Module):
    """Track points jointly, window by window (Karaev et al. 2023, arXiv 2307.07635).

    version  "2", the paper's, or "3" (Karaev et al. 2024, arXiv 2410.11831)
    mode     of version 3: "online" works in windows as version 2 does, "offline" takes the whole
             clip as one
    window   S, an even number: 8 (or 16) in version 2, 16 online; offline the number of frames
             that the time embedding is made for, 60
    sizes    any of `Sizes` by name, for models of other sizes than the released ones

    The attribute `bfloat16`, False, lets the encoder compute in bfloat16, which is enough for a
    training and several times as fast on processors made for it. Points stay in float32.

    Raises ValueError for another version, mode or window.
    """

    def __init__(
        self, version: str = "2", *, mode: str = "offline", window: int | None = None, **sizes
    ) -> None:
        super().__init__()
        self.bfloat16 = False
        self.version, self.mode = _choice("version", version, "23"), mode
        _choice("mode", mode, ("offline", "online"))
        default = 8 if version == "2" else 16 if mode == "online" else 60
        self.window = whole_number("window", default if window is None else window, least=2)
        if self.window % 2 and not self.whole_clip:
            raise ValueError(f"window is {window}; expected an even number of frames")
        rule = Update2 if version == "2" else Update3
        self.sizes = checked_sizes(rule.depth, sizes)
        self.fnet = FeatureEncoder(self.sizes.features, self.sizes.widths)
        self.update = rule(self.sizes) if version == "2" else rule(self.sizes, self.window)
        told = [self.window, self.sizes.heads, *self.sizes.resolution, *self.sizes[-2:]]
        self.register_buffer("settings", torch.tensor(told, dtype=torch.float32))

    @property
    def whole_clip(self) -> bool:
        """All frames make one window: version 3, offline."""
        return self.version == "3" and self.mode == "offline"

    def pyramid(self, video: Float[Tensor, "B T 3 H W"]) -> list[Float[Tensor, "F _ _ C"]]:
        """Features of all frames, F = B · T of them, at each level."""
        frames = video.flatten(0, 1)
        together = max(1, _PIXELS // frames[0, 0].numel())
        maps = (self._features(part) for part in frames.split(together))
        levels = [feature_pyramid(features, self.sizes.levels) for features in maps]
        return [torch.cat(level) for level in zip(*levels, strict=True)]

    def _features(self, frames: Tensor) -> Tensor:
        with torch.autocast(frames.device.type, torch.bfloat16) if self.bfloat16 else nullcontext():
            features = self.fnet(2 * (frames / 255) - 1).to(frames.dtype)
        length = 1.0 if self.version == "3" else self.sizes.feature_length
        return length * unit_length(features) if length else features

    def track_window(
        self,
        levels: list[Float[Tensor, "F _ _ C"]],
        frames: Int[Tensor, "B S"],
        first: int,
        queries: Float[Tensor, "B N 3"],
        anchors: Tensor,
        last: Estimate | None,
        iterations: int,
    ) -> list[Estimate]:
        """Refine one window, from frame `first` of the video on, where `last` ended.

        levels, frames  features, and the rows of them that are the window's
        queries         (B, N, 3) as (frame, x, y), frames counted as `first` is
        anchors         what `update.anchor` read at the queries
        last            the last estimate of the window before, None for the first window
        """
        S, queried = frames.shape[1], queries[..., 0]
        points = (queries[:, None, :, 1:] / STRIDE).expand(-1, S, -1, -1)
        told = torch.full_like(points[..., 0], self.update.first_visibility)
        begin = Estimate(points, told, told if self.version == "3" else None)
        begin = carried(last, begin, queried < first + S // 2)
        window = Window(levels, frames, *window_masks(queried, first, S))
        return self.update(window, anchors, begin, iterations)

    def windows(
        self, video: Float[Tensor, "B T 3 H W"], queries: Float[Tensor, "B N 3"], iterations: int
    ) -> Iterator[tuple[int, list[Estimate]]]:
        """Each window's first frame and its estimates, one for every iteration.

        A window that reaches past the clip's end has estimates for frames that there are not.
        Takes and raises what `forward` does.
        """
        check_video(video, self.sizes.levels)
        check_queries(queries, video)
        whole_number("iterations", iterations, least=1)
        B, T = video.shape[:2]
        S, starts = (T, [0]) if self.whole_clip else (self.window, window_starts(T, self.window))
        levels = self.pyramid(video)
        rows = T * torch.arange(B, device=video.device)[:, None]
        frames, places = queries[..., 0].long(), queries[..., 1:] / STRIDE
        anchors, last = self.update.anchor(levels, rows + frames, places), None
        for first in starts:
            # The last frame stands in for those that the clip does not have.
            here = rows + (first + torch.arange(S, device=video.device)).clamp(max=T - 1)
            estimates = self.track_window(levels, here, first, queries, anchors, last, iterations)
            last = estimates[-1]
            yield first, estimates

    def forward(
        self,
        video: Float[Tensor, "B T 3 H W"],
        queries: Float[Tensor, "B N 3"],
        iterations: int = 6,
    ) -> Tracks:
        """Track all queries through the whole video.

        video       (B, T, 3, H, W) in [0, 255], H and W multiples of 4, T over half a window
        queries     (B, N, 3) as (frame, x, y), in pixels of the video
        iterations  M
        returns     Tracks in pixels of the video; in frames before a query too, where version 2
                    has had no feedback in training

        Raises TypeError for tensors of whole numbers, ValueError for other shapes, too few frames,
        too small ones, values outside [0, 255] or seemingly in [0, 1] or not finite, no queries,
        and queries outside the video.

        Convention: (x, y), x to the right, y down, the top-left pixel's centre at (0, 0).
        """
        whole = None
        for first, estimates in self.windows(video, queries, iterations):
            whole = overwritten(whole, first, estimates[-1])
        return as_tracks(whole, video.shape[1])

    @classmethod
    def from_official(
        cls,
        state_dict: Mapping,
        mode: str = "offline",
        *,
        window: int | None = None,
        **sizes,
    ) -> "CoTracker":
        """The model with published weights, in evaluation mode.

        state_dict  with the names of the release, with or without "module.", or of this model; or a
                    mapping that holds one as "model"
        mode        of version 3; the release's files of the two modes have the same shapes
        window      S, where the file does not tell (without `time_emb` or `settings`)
        sizes       those that no shape tells, where they are not the release's and the
                    file has no `settings`; the others are read from shapes

        Raises ValueError for tensors that make no CoTracker, naming every key that is missing,
        unexpected or of another shape, and for a `time_emb` or `pos_emb` that is not lesson 4's.
        """
        tensors = from_published_names(state_dict)
        tables = {name: tensors.pop(name, None) for name in ("time_emb", "pos_emb")}
        version, found = published_sizes(tensors)
        found |= told_settings(tensors.pop("settings", None), **tables) | sizes
        found |= {} if window is None else {"window": window}
        model = cls(version, mode=mode, **found)
        check_tables(model, **tables)
        tensors["settings"] = model.settings
        check_keys("state_dict", tensors, model.state_dict())
        model.load_state_dict(tensors)
        return model.eval()


# %% [markdown]
# Two helpers check the arguments:


# %% tags=["promote"]
def _choice(name: str, value: str, among: str | tuple[str, ...]) -> str:
    if value not in tuple(among):
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(among)}")
    return value


def checked_sizes(depth: int, sizes: Mapping) -> Sizes:
    """`Sizes` with a version's own depth where none is given. Raises ValueError for wrong ones."""
    sizes = Sizes(**{"depth": depth, **sizes})
    sizes = sizes._replace(widths=tuple(sizes.widths), resolution=tuple(sizes.resolution))
    for name in ("width", "depth", "heads", "virtual_tracks", "features", "levels"):
        whole_number(name, getattr(sizes, name), least=1)
    whole_number("radius", sizes.radius, least=0)
    if len(sizes.widths) != 4:
        raise ValueError(f"widths is {sizes.widths}; expected four, one for each stage")
    if len(sizes.resolution) != 2 or any(side < 1 or side % STRIDE for side in sizes.resolution):
        raise ValueError(
            f"resolution is {sizes.resolution}; expected (H, W), multiples of {STRIDE}"
        )
    if not sizes.feature_length >= 0:
        raise ValueError(f"feature_length is {sizes.feature_length}; expected 0 or more")
    if not sizes.highest > 0:
        raise ValueError(f"highest is {sizes.highest}; expected radians a feature pixel, above 0")
    return sizes


# %% [markdown]
# The promoted model against the equations as first written, with the same weights:

# %%
model = CoTracker("2", **SMALL).eval()
model.load_state_dict(course.state_dict())
with torch.no_grad():
    tracks = model(clip, queries, 2)
gaps = [(ours[0] - theirs).abs().max() for ours, theirs in zip(tracks, by_loop, strict=False)]
print(f"largest difference: points {gaps[0]:.1e} px, visibility {gaps[1]:.1e}")
assert gaps[0] < 1e-2 and gaps[1] < 1e-3  # the same sums in another order, in float32

# %%
seconds = []
for call in (lambda: track_loop(model, clip[0], queries[0], 2), lambda: model(clip, queries, 2)):
    with torch.no_grad():
        seconds.append(min(timeit.repeat(call, number=1, repeat=2)))
print(f"as written first {seconds[0]:.2f} s, promoted {seconds[1]:.2f} s")

# %% [markdown]
# ### Each window's iterations
#
# `windows` gives all of them. How far do the points move in each?

# %%
with torch.no_grad():
    for first, estimates in model.windows(clip, queries, 4):
        places = torch.stack([4 * estimate.points for estimate in estimates])
        steps = places.diff(dim=0).norm(dim=-1).mean(dim=(1, 2, 3))
        print(f"window from frame {first}:", " ".join(f"{step:.2f} px" for step in steps))

# %% [markdown]
# ### In order of time
#
# A window never reads a frame that comes after its last one. So the answers of the first window do not depend on the rest of the clip, and the model can run while a video arrives, half a window behind it.

# %%
with torch.no_grad():
    (_, early), *_ = model.windows(clip[:, :8], queries[:, :5], 3)
    (_, same), *_ = model.windows(clip, queries[:, :5], 3)
assert torch.allclose(early[-1].points, same[-1].points, atol=1e-3)

# %% [markdown]
# ### Version 3: what was dropped, what was added
#
# CoTracker 3 (Karaev et al. 2024) is smaller, and better on the benchmarks ([lesson 1](1_paper.ipynb) has the table). The change of features goes, and with it equation 6; so do the embedding of the place and the masks of the transformer. In return a point is no longer recognised by one vector: the whole window around the query is compared with the whole window around the point, each vector with each. An MLP of two layers makes 256 numbers of the products of a level.


# %% tags=["promote"]
class CorrelationMLP(nn.Module):
    """Two linear layers that shorten the products of two windows (equation 8 of the lesson).

    inputs   products of one level, (2r + 1)⁴
    outputs  numbers of one level in a token

    Between the layers stands a GELU in its exact form, while the transformer's is the tanh form.
    """

    def __init__(self, inputs: int, hidden: int = 384, outputs: int = 256) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Float[Tensor, "*N P"]) -> Float[Tensor, "*N E"]:
        return self.fc2(F.gelu(self.fc1(x)))


# %% [markdown]
# With radius 3 a level has $7^4 = 2401$ products for every point, frame and iteration. They are made and shortened a part at a time, so that they never all exist at once.


# %% tags=["promote"]
_SHORT = 256  # numbers that a level's products are shortened to
_OCTAVES = 10  # of the motion's sinusoids
_TOGETHER = 512  # pairs of windows that are compared at once


class Update3(nn.Module):
    """Version 3's update: compare windows; refine points and certainty (equations 8 to 10).

    sizes   of the model; a token has 2 + 256 · L + 84 numbers
    length  frames that the time embedding is made for; others stretch it

    Called as `Update2`. Visibility and confidence are refined with the points, at every iteration.
    Source: Karaev et al. 2024, CoTracker3 (arXiv 2410.11831).
    """

    depth = 3
    first_visibility = 0.0  # a logit, and the first confidence too: even odds

    def __init__(self, sizes: Sizes, length: int = 60) -> None:
        super().__init__()
        self.sizes, self.length = sizes, length
        self.corr_mlp = CorrelationMLP((2 * sizes.radius + 1) ** 4, outputs=_SHORT)
        self.inputs = 2 + _SHORT * sizes.levels + 4 * (1 + 2 * _OCTAVES)
        self.transformer = Transformer(
            self.inputs, 2, sizes.width, sizes.heads, sizes.depth, sizes.virtual_tracks, True
        )

    def anchor(
        self, levels: list[Tensor], frames: Int[Tensor, "B N"], points: Float[Tensor, "B N 2"]
    ) -> Float[Tensor, "B N L P C"]:
        """The window around each query at every level, P = (2r + 1)² vectors."""
        places = points.flatten(0, 1)
        read = [
            _x_slow(vector_windows(level, frames.flatten(), places / 2**k, self.sizes.radius))
            for k, level in enumerate(levels)
        ]
        return torch.stack(read, dim=1).mT.unflatten(0, points.shape[:2])

    def correlations(self, window: Window, points: Tensor, anchors: Tensor) -> Tensor:
        """All products of two windows, shortened by the MLP, (B, S, N, L · 256)."""
        B, S, N, _ = points.shape
        frames, centres = _each(window.frames, N), points.flatten(0, 2)
        row = torch.arange(B * N, device=points.device).view(B, 1, N).expand(B, S, N).flatten()
        present = (anchors * window.active[:, :, None, None, None]).flatten(0, 1)
        read = [
            torch.cat(
                [
                    self._shortened(
                        level, frames[part], centres[part] / 2**k, present[row[part], k]
                    )
                    for part in torch.arange(len(row), device=row.device).split(_TOGETHER)
                ]
            )
            for k, level in enumerate(window.levels)
        ]
        return torch.cat(read, dim=1).view(B, S, N, -1)

    def _shortened(self, level, frames, centres, vectors) -> Float[Tensor, "K E"]:
        products = correlate(level, frames, centres, vectors, self.sizes.radius)
        # From (query's vector, y, x) to (x, y, query's vector): the frame's window comes first.
        return self.corr_mlp(products.permute(0, 3, 2, 1).flatten(1))

    def forward(
        self, window: Window, anchors: Tensor, start: Estimate, iterations: int
    ) -> list[Estimate]:
        estimate, S = start, start.points.shape[1]
        time = time_embedding(S, self.inputs, self.length).to(start.points)[:, None]
        W_H = start.points.new_tensor([side / STRIDE for side in self.sizes.resolution[::-1]])
        estimates = []
        for _ in range(iterations):
            points, visibility, confidence = estimate
            points = points.detach()
            motion = fourier_features(step_motion(points) / W_H.repeat(2), _OCTAVES)
            correlations = self.correlations(window, points, anchors)
            certainty = torch.stack([visibility, confidence], dim=-1)
            tokens = torch.cat([certainty, correlations, motion], dim=-1) + time
            change = self.transformer(tokens.transpose(1, 2)).transpose(1, 2)
            estimate = Estimate(
                points + change[..., :2], visibility + change[..., 2], confidence + change[..., 3]
            )
            estimates.append(estimate)
        return estimates


# %% [markdown]
# The products, once more in the plainest form: cut both windows out and multiply all pairs of vectors. (Radius 2 here, so that $5^4 = 625$ products are fewer to make.)

# %%
torch.manual_seed(1)
wide = CoTracker("3", **SMALL | {"window": None, "radius": 2}).eval()
offsets = pixel_grid(5, 5).transpose(0, 1).flatten(0, 1) - 2.0  # x is the slow one
with torch.no_grad():
    levels = wide.pyramid(clip[:, :2])
    place, moved = torch.tensor([[20.5, 17.25]]), torch.tensor([[22.0, 16.5]])
    windows = [
        sample(levels[0][t : t + 1].permute(0, 3, 1, 2), (x + offsets)[None], padding="border")[0]
        for t, x in ((0, place), (1, moved))
    ]
    by_hand = wide.update.corr_mlp(torch.einsum("ci,cj->ij", windows[1], windows[0]).flatten())
    anchors = wide.update.anchor(levels, torch.zeros(1, 1).long(), place[None])
    here = Window(levels, torch.ones(1, 1).long(), torch.ones(1, 1).bool(), None)
    ours = wide.update.correlations(here, moved[None, None], anchors)[0, 0, 0, :256]
print(f"largest difference: {(ours - by_hand).abs().max():.1e}")
assert torch.allclose(ours, by_hand, atol=1e-5)

# %% [markdown]
# What a token holds at the released sizes:


# %% tags=["figure"]
def token_parts():
    """The pieces of a token in both versions with their widths, measured."""
    four, sizes = torch.zeros(1, 4), Sizes()
    side = 2 * sizes.radius + 1
    two = {
        "motion": motion_embedding(four[:, :2]).shape[-1],
        "correlations C": sizes.levels * side**2,
        "features Q": sizes.features,
        "known k, visibility v": 2,
    }
    short = CorrelationMLP(side**4)(torch.zeros(1, side**4)).shape[-1]
    three = {
        "visibility v, confidence c": 2,
        "correlations C": sizes.levels * short,
        "motion": fourier_features(four).shape[-1],
    }
    return two, three


def draw_tokens():
    figure, axes = canvas(1, 1, 7.4, 1.9)
    shades = {"motion": "#a9bcd6", "correlations C": COLOURS["first"]}
    shades |= {"features Q": COLOURS["second"]}
    for y, parts in zip((0, 1), token_parts(), strict=True):
        start = 0
        for name, width in parts.items():
            axes.barh(y, width, left=start, color=shades.get(name, COLOURS["query"]), height=0.4)
            narrow = width < 60  # its name goes below the bar
            place = (start + 4, y + 0.4) if narrow else (start + width / 2, y - 0.24)
            axes.text(*place, f"{name}: {width}", ha="left" if narrow else "center", size=6)
            start += width
        axes.text(start + 8, y, f"{start} numbers", va="center", size=8)
    axes.set(yticks=[0, 1], yticklabels=["version 2", "version 3"], ylim=(1.6, -0.6))
    axes.set(xlim=(0, 1230), xlabel="numbers of a token")
    return figure


show(
    draw_tokens(),
    alt="Two bars: a token of version 2 holds motion, correlations, features, and two numbers for "
    "known and visible; one of version 3 holds visibility, confidence, many more correlations, and "
    "the motion",
)
for version, parts in zip("23", token_parts(), strict=True):
    with torch.device("meta"):  # shapes alone, no memory
        assert CoTracker(version).update.inputs == sum(parts.values())

# %% [markdown]
# Nearly all of a token of version 3 is correlation. With half the transformer blocks the model is smaller all the same:

# %% tags=["nbval-check-output"]
for version, published in {"2": 45_458_787, "3": 25_385_700}.items():
    with torch.device("meta"):
        whole = CoTracker(version)
    count = sum(p.numel() for p in whole.parameters())
    print(f"version {version}: {count:,} parameters")
    assert count == published

# %% [markdown]
# ### Offline and online
#
# Version 3 comes in two modes with weights of their own. **Online** (在线) works in windows, as version 2 does. **Offline** (离线) takes the whole clip as one window, so it may use the future for every frame, and pays with memory that grows with the clip. The embedding of time, made for 60 frames, is stretched to the clip's length.

# %%
clock = time_embedding(T, wide.update.inputs, wide.update.length)
stretched = F.interpolate(time_embedding(60, 4).T[None], size=T, mode="linear")[0].T
print(tuple(clock.shape), "row 0 differs from an embedding of 16 frames by", end=" ")
print(f"{(clock[0] - time_embedding(T, wide.update.inputs)[0]).abs().max():.2f}")
assert stretched.shape == (T, 4)

# %%
online = CoTracker("3", mode="online", **SMALL | {"radius": 2}).eval()
online.load_state_dict(wide.state_dict() | {"settings": online.settings})
with torch.no_grad():
    for name, each in {"offline": wide, "online": online}.items():
        firsts = [first for first, _ in each.windows(clip, queries, 1)]
        answer = each(clip, queries, 2)
        print(f"{name}: windows from {firsts}, confidence {tuple(answer.confidence.shape)}")

# %% [markdown]
# ### Names of published weights
#
# The release's names and ours differ where a module stands elsewhere, and in one word: its `virual_tracks` are misspelled. A table of patterns, tried from top to bottom:


# %% tags=["promote"]
RENAMES = (
    (r"^module\.", ""),
    (r"^updateformer\.virual_tracks$", "update.transformer.virtual_tracks"),
    (r"^updateformer\.", "update.transformer."),
    (r"^track_feat_updater\.0\.", "update.track_feat_updater."),
    (r"^vis_predictor\.0\.", "update.vis_predictor."),
    (r"^(norm|corr_mlp)\.", r"update.\1."),
)


def our_name(name: str) -> str:
    """The name of a published tensor in this course: every row of `RENAMES`, one after the other.

    >>> our_name("module.updateformer.virual_tracks")
    'update.transformer.virtual_tracks'
    """
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def from_published_names(state_dict: Mapping) -> dict[str, Tensor]:
    """The tensors of a CoTracker release under the names of this model.

    Raises ValueError for what is no mapping of names to tensors, nor one that holds such a mapping
    as "model".
    """
    if isinstance(state_dict, Mapping) and isinstance(state_dict.get("model"), Mapping):
        state_dict = state_dict["model"]
    if not isinstance(state_dict, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state_dict.items()
    ):
        raise ValueError("state_dict is no mapping of names to tensors; expected a state_dict")
    return {our_name(name): value for name, value in state_dict.items()}


# %% [markdown]
# ### What the shapes say
#
# How many levels and which radius? In version 3 the MLP reads $(2r+1)^4$ products, and a token holds 256 numbers a level. In version 2 what a token has besides $2 + 2 \cdot 64$ numbers of motion, $d$ features and 2 more are $L\,(2r+1)^2$ correlations; of up to 8 levels and radius 8, no two pairs give the same number (lesson 6 of chapter 4 counts them).


# %% tags=["promote", "exercise"]
def levels_and_radius(inputs: int, features: int, products: int | None) -> tuple[int, int]:
    """L and r of the model whose tokens have so many numbers.

    inputs    numbers of a token
    features  d, channels of a feature
    products  numbers that version 3's MLP reads for a level; None in version 2

    Raises ValueError where no levels and radius fit.
    """
    if products is not None:
        radius = (round(products**0.25) - 1) // 2
        levels, rest = divmod(inputs - 2 - 4 * (1 + 2 * _OCTAVES), _SHORT)
        if rest == 0 and levels >= 1 and (2 * radius + 1) ** 4 == products:
            return levels, radius
    else:
        for radius in range(9):
            levels, rest = divmod(inputs - 2 - 2 * _WAVES - features - 2, (2 * radius + 1) ** 2)
            if rest == 0 and 1 <= levels <= 8:
                return levels, radius
    raise ValueError(f"state_dict has tokens of {inputs} numbers; no levels and radius fit them")


# %% tags=["check"]
assert levels_and_radius(456, 128, None) == (4, 3), "the released version 2"
assert levels_and_radius(1110, 128, 7**4) == (4, 3), "the released version 3"
assert levels_and_radius(343, 64, None) == (3, 3), "the course's model: 147 correlations"
assert levels_and_radius(598, 64, 5**4) == (2, 2), "two levels of a smaller version 3"
assert levels_and_radius(130 + 75 + 32 + 2, 32, None) == (3, 2), "3 levels of 25 are 75"
for wrong in ((455, 128, None), (1110, 128, 2400), (1111, 128, 2401)):
    try:
        found = levels_and_radius(*wrong)
    except ValueError:
        continue
    raise AssertionError(f"{wrong} belong to no model, and gave {found}")


# %% [markdown]
# The other sizes can be read off one tensor each:


# %% tags=["promote"]
def published_sizes(tensors: Mapping[str, Tensor]) -> tuple[str, dict]:
    """The version, and the sizes that the shapes of tensors tell, under our names.

    Heads, resolution, highest frequency and length of features are in no shape. Raises ValueError
    for shapes of no CoTracker.
    """
    form = {name: tuple(value.shape) for name, value in tensors.items()}
    stages = [f"fnet.layer{k}.0.conv1.weight" for k in (1, 2, 3, 4)]
    for name in ("update.transformer.input_transform.weight", "fnet.conv3.weight", *stages):
        if len(form.get(name, ())) < 2:
            raise ValueError(f"state_dict has no {name} of two axes; expected a CoTracker's")
    width, inputs = form["update.transformer.input_transform.weight"]
    features, products = form["fnet.conv3.weight"][0], None
    if "update.corr_mlp.fc1.weight" in form:
        products = form["update.corr_mlp.fc1.weight"][-1]
    levels, radius = levels_and_radius(inputs, features, products)
    block = re.compile(r"update\.transformer\.time_blocks\.(\d+)\.")
    blocks = {match[1] for name in form if (match := block.match(name))}
    virtual = form.get("update.transformer.virtual_tracks", (1, 1))[1]
    sizes = {"width": width, "depth": max(1, len(blocks)), "virtual_tracks": virtual}
    sizes |= {"features": features, "widths": tuple(form[name][0] for name in stages)}
    sizes |= {"levels": levels, "radius": radius}
    return "2" if products is None else "3", sizes


# %% [markdown]
# Five things are in no shape: the window, the heads, the resolution, the highest frequency and the length of features. The release's files tell the first and the third by two tables that a formula could give as well, `time_emb` and `pos_emb`; ours tell all of them as `settings`. A table that is not the formula's belongs to another model, so it is refused.


# %% tags=["promote"]
def told_settings(settings: Tensor | None, time_emb: Tensor | None, pos_emb: Tensor | None) -> dict:
    """What no shape tells, as far as a file does: window, heads, resolution and others."""
    told = {}
    if time_emb is not None and time_emb.ndim == 3:
        told["window"] = time_emb.shape[1]
    if pos_emb is not None and pos_emb.ndim == 4:
        told["resolution"] = tuple(STRIDE * side for side in pos_emb.shape[2:])
    if settings is not None:
        if tuple(settings.shape) != (6,):
            raise ValueError(f"settings has shape {tuple(settings.shape)}; expected (6,)")
        window, heads, H, W = (int(value) for value in settings[:4])
        told |= {"window": window, "heads": heads, "resolution": (H, W)}
        told["highest"], told["feature_length"] = settings[4:].tolist()
    return told


def check_tables(model: "CoTracker", time_emb: Tensor | None, pos_emb: Tensor | None) -> None:
    """Raise ValueError for tables of a file that are not those that the model computes."""
    D, (H, W) = model.update.inputs, (side // STRIDE for side in model.sizes.resolution)
    tables = {}
    if time_emb is not None:
        tables["time_emb"] = time_emb, time_embedding(model.window, D)[None]
    if pos_emb is not None:
        places = place_embedding(pixel_grid(H, W), D, (H, W))
        tables["pos_emb"] = pos_emb, places.permute(2, 0, 1)[None]
    for name, (found, computed) in tables.items():
        if found.shape != computed.shape:
            raise ValueError(
                f"{name} has shape {tuple(found.shape)}; expected {tuple(computed.shape)}"
            )
        gap = (found.to(computed) - computed).abs().max().item()
        if not gap < 1e-3:  # files in half precision are as near
            raise ValueError(f"{name} differs by {gap:.2g} from the embedding that lesson 4 gives")


# %% [markdown]
# Weights go out under the release's names, and come back:


# %%
def release_name(name):
    name = name.replace("update.transformer.virtual_tracks", "updateformer.virual_tracks")
    name = name.replace("update.transformer.", "updateformer.")
    name = re.sub(r"^update\.(track_feat_updater|vis_predictor)\.", r"\1.0.", name)
    return "module." + re.sub(r"^update\.", "", name)


released = {release_name(n): value for n, value in course.state_dict().items() if n != "settings"}
released["time_emb"] = time_embedding(8, course.update.inputs)[None]
twin = CoTracker.from_official(
    {"model": released}, heads=4, resolution=(192, 256), highest=16.0, feature_length=12.0
)
print(f"{len(released)} tensors, window {twin.window}, {twin.sizes}")
assert twin.sizes == course.sizes
again = CoTracker.from_official(course.state_dict())
assert again.sizes == course.sizes and again.window == course.window, "settings tell the rest"

# %% [markdown]
# ### Weights from a file


# %% tags=["promote"]
def load_cotracker(weights: str | Path = "course", mode: str = "offline") -> CoTracker:
    """The model with weights, ready to track.

    weights  "course" for the course's own small model; or a file that ends in .safetensors, .pth or
             .pt, from the release or this course
    mode     of version 3, "offline" or "online": the one that the weights were trained for

    A file with a model card beside it must match the card's hash. Raises FileNotFoundError for a
    file that is not there, ValueError for one that holds no CoTracker, is damaged or has another
    hash. Nothing is downloaded: the release's files are for non-commercial use, and you fetch them
    yourself.
    """
    if weights == "course":
        path = data_path("checkpoints", "cotracker_small.safetensors")
    else:
        path = Path(weights)
    return CoTracker.from_official(_state_at(path), mode)


def _state_at(path: Path) -> Mapping:
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(
            f"weights is {str(path)!r}; expected 'course', or a file that ends in .safetensors, "
            ".pth or .pt"
        )
    if path.suffix == ".safetensors" or not path.is_file():
        return _read_weights(path)
    try:  # Other than RAFT's files, a tracker's may hold more than tensors beside them.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged file brings out errors of many types.
        raise ValueError(
            f"{path.name} is not a whole file of tensors ({str(error).splitlines()[0]})"
        ) from error


# %% [markdown]
# `load_cotracker("cotracker2.pth")` runs the published model from a file that you have downloaded. A `.pth` file is read with `weights_only=True`, which refuses everything but tensors and plain containers.

# %%
with shows_error(ValueError):
    load_cotracker("cotracker_huge")

# %% [markdown]
# ## On real input
#
# ### One track, refined
#
# The same clip. The query lies at the corner of the man's mouth; here is its track in the first window after each of six iterations, the earliest palest.

# %%
with torch.no_grad():
    (_, refined), *_ = course.windows(clip, queries, 6)
way = STRIDE * torch.stack([estimate.points[0] for estimate in refined])  # (M, S, N, 2)
print("mean step of the points, in px, from iteration to iteration:", end=" ")
print(*(f"{step:.2f}" for step in way.diff(dim=0).norm(dim=-1).mean(dim=(1, 2))))


# %% tags=["figure"]
def draw_refined(point=2, margin=24):
    figure, (left, right) = canvas(1, 2, 7.4, 3.0, gridspec_kw={"width_ratios": [1, 1.25]})
    left.imshow(to_picture(clip[0, 7]))
    x, y = queries[0, point, 1:].tolist()
    shades = [str(0.85 - 0.85 * i / (len(way) - 1)) for i in range(len(way))]
    for i, path in enumerate(way[:, :, point]):
        left.plot(*path.T, color="white", linewidth=2.6, zorder=2)
        left.plot(*path.T, color=COLOURS["query"], alpha=(i + 1) / len(way), zorder=2)
    left.plot(x, y, "o", color=COLOURS["query"], markeredgecolor="white", zorder=3)
    left.set(xlim=(x - margin, x + margin), ylim=(y + margin, y - margin))
    left.set(title="points p on frame 7", xlabel="x (px)", ylabel="y (px)")
    for i, path in enumerate(way[:, :, point]):
        right.plot(path[:, 0], color=shades[i], marker="o", markersize=2.5)
        if i in (0, len(way) - 1):  # the lines between lie too close for names
            right.annotate(f"{i + 1}", (7, path[7, 0]), (7.15, path[7, 0]), size=8, va="center")
    right.axhline(x, color=COLOURS["query"], linewidth=0.8, linestyle="--")
    right.set(xlabel="frame of the window", ylabel="x of the point (px)")
    right.set_title(f"change Δ by change, M = {len(way)}")
    return figure


show(
    draw_refined(),
    alt="The track of one point after each of six iterations, on the frame and as its x over the "
    "frames of the window; it starts as a straight line at the query's x",
    photo=True,
)

# %% [markdown]
# The dashed line is what the first iteration begins with: the point stays where its query is, in all frames. Then $\Delta^p$ is added six times; 1 and 6 mark the tracks after the first and the last change.
#
# ### The whole clip
#
# A ring is a point that the model takes for hidden; a trail shows the last frames.


# %% tags=["figure"]
def draw_clip(shown=(0, 5, 10, 15)):
    with torch.no_grad():
        tracks = course(clip, queries)
    figure, axes = canvas(1, len(shown), 7.6, 1.8)
    for each, t in zip(axes, shown, strict=True):
        visible = tracks.visible(0.5)[0]
        draw_trails(each, clip[0, t], tracks.points[0], visible, t, tail=5, size=5)
        each.set_title(f"frame {t}")
    return figure


show(
    draw_clip(),
    alt="Four frames of the clip, each with six points and the way they came",
    photo=True,
)

# %% [markdown]
# The clip is every second frame of the original, 16 of them. [Lesson 7](7_predictor.ipynb) turns this into a tool: grids of points, videos of any size, points before their query, and video that arrives while it is tracked.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `window_starts` | 5 | ●○○ |
# | `window_masks` | 10 | ●●○ |
# | `carried` | 15 | ●●○ |
# | `levels_and_radius` | 10 | ●●○ |
#
# <details><summary>Hint for <code>window_starts</code></summary>
#
# `range(0, stop, step)` leaves out its end. The last window that is needed begins before frame $T - S/2$.
#
# </details>
#
# <details><summary>Hint for <code>window_masks</code></summary>
#
# Frames $t$ as a column, (S, 1), and queries as (B, 1, N) give (B, S, N) when compared. The mask of the old half depends on no query.
#
# </details>
#
# <details><summary>Hint for <code>carried</code></summary>
#
# `torch.where(mask, a, b)` takes from `a` where the mask is true. `points` has one axis more than the others, so the mask needs one more there. `confidence` may be None.
#
# </details>
#
# <details><summary>Hint for <code>levels_and_radius</code></summary>
#
# In version 3 the fourth root of the products is $2r + 1$; multiply back to see whether it was a whole number. In version 2 try the radii from 0 on, and take the first that leaves no remainder with 1 to 8 levels.
#
# </details>
#
# **Predict.** The second window begins with points that the first one has refined. Does it begin with refined features $Q$, too? What if a point looks different in frame 40 than in its query?
#
# <details><summary>Hint</summary>
#
# What does `carried` carry? What does `Update2.forward` make of `anchors`?
#
# </details>
#
# <details><summary>Answer</summary>
#
# No. An `Estimate` has no features, so every window starts from the feature of the query and changes it anew. The model must recognise the point of frame 40 by how it looked in its query's frame. That keeps a long track from drifting to whatever it was on for a while, and makes slow changes of appearance hard.
#
# </details>
#
# **Measure.** How do seconds grow with the number of frames, and with the window? Time `model.track_window`'s part against the encoder's.
#
# <details><summary>Hint</summary>
#
# `model.pyramid(video)` is the encoder and all that comes once for a clip. Take clips of 8, 12 and 16 frames.
#
# </details>

# %%
for frames in (8, 12, 16):
    part, asked_early = clip[:, :frames], queries[:, :4]
    with torch.no_grad():
        encode = min(timeit.repeat(lambda p=part: model.pyramid(p), number=1, repeat=2))
        whole_time = min(
            timeit.repeat(lambda p=part, q=asked_early: model(p, q, 4), number=1, repeat=2)
        )
    print(f"{frames} frames: {whole_time:.2f} s, of which the encoder {encode:.2f} s")

# %% [markdown]
# <details><summary>Answer</summary>
#
# The encoder's time is proportional to the frames. The rest is proportional to the number of windows, $2T/S - 1$ of them, and each has $S$ frames: every frame but those of the first and last half window is refined twice. A longer window halves the count and doubles the work of each, so time stays about the same, as long as attention along time, whose scores grow with $S^2$, is a small part.
#
# </details>
#
# **Find the bug.** A version of `carried` takes the first half of the last window instead of the second. Nothing fails, and the first window's tracks are right. What happens to a point that moves steadily to the right?


# %%
def carried_wrong(last, goes_on):
    """The first half, then its last frame, in place of the second."""
    half = last.points[:, : last.points.shape[1] // 2]
    return torch.cat([half, half[:, -1:].expand_as(half)], dim=1)


steady = Estimate(torch.stack([line, 0 * line], dim=-1), line)
print("should begin at", carried(steady, fresh, torch.tensor([[True, True]])).points[0, :, 0, 0])
print("begins at      ", carried_wrong(steady, None)[0, :, 0, 0])

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which frames of the clip are rows 0 to 3 of the second window?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Row $t$ of the second window is frame $w + t$, and so row $t + S/2$ of the first. With the wrong half every start lags behind by half a window's motion, four pixels at one pixel a frame. The iterations can repair a lag that stays within the correlation windows, so slow points look right and fast ones are lost at the seam: a mistake that shows as "worse on fast motion".
#
# </details>

# %% [markdown]
# ## What breaks
#
# ### As many points as virtual tracks
#
# The released transformer decides by size whether a mask belongs to points or to virtual tracks. When there are exactly as many of one as of the other, it takes the mask of the points for one of the virtual tracks. `by_size` repeats that. The course's model has 16 virtual tracks, and some queries lie after the first window:

# %%
torch.manual_seed(2)
frames_of = torch.arange(17) % 3 * 4.0
many = torch.cat([frames_of[:, None], 20 + 100 * torch.rand(17, 2)], dim=1)[None]
for N in (15, 16, 17):
    answers = []
    for model.update.transformer.by_size in (False, True):
        with torch.no_grad():
            answers.append(model(clip[:, :12], many[:, :N], 2).points)
    print(f"{N} points: {(answers[0] - answers[1]).abs().max():.3f} px apart")
model.update.transformer.by_size = False

# %% [markdown]
# So with the release's rule a point may get another track because one more point was asked for. With the release that happens at 64, which 28 points and a support grid of 36 reach. Here the mask has one meaning at all sizes, and the flag is there for comparison alone.
#
# ### Frames before the query
#
# A point has an answer for every frame, also for those before its query. In windows before its query it is moved as well, by tokens whose features are 0. Training counts neither.

# %%
with torch.no_grad():
    late = model(clip, queries, 4).points[0, :, 5]
print("x of the query in frame 9:", queries[0, 5, 1].item())
print("x from frame 0 on:", " ".join(f"{x:.1f}" for x in late[:10, 0]))

# %% [markdown]
# The first four frames come from a window in which the point was not active. To track backward in time, lesson 7 plays the video in reverse.
#
# ### Clips that are too short
#
# With half a window or less there is no window. The release then returns zeros, and here an error is raised:

# %%
with shows_error(ValueError):
    course(clip[:, :4], queries[:, :3])

# %% [markdown]
# ### Other bad input

# %%
with shows_error(ValueError):
    course(clip, queries[..., [1, 2, 0]])
with shows_error(ValueError):
    course(clip, queries[:, :0])
with shows_error(TypeError):
    course(clip.byte(), queries)
with shows_error(TypeError):
    course(clip, queries.long())
with shows_error(ValueError):
    course(clip[..., :-2], queries)
with shows_error(ValueError):
    course(clip[..., 60:76, 60:76], queries)

# %%
with shows_error(ValueError):
    course(clip / 255, queries)
with shows_error(ValueError):
    course(clip.where(clip < 200, torch.nan), queries)
with shows_error(ValueError):
    course(clip, queries.expand(2, -1, -1))

# %% [markdown]
# ### Weights that do not fit
#
# Every key that is missing, unexpected or of another shape is named, and a table that is not the formula's too:

# %%
damaged = dict(released)
del damaged["module.fnet.conv1.bias"]
damaged["vis_predictor.0.bias"] = torch.zeros(3)
with shows_error(ValueError):
    CoTracker.from_official(damaged)
with shows_error(ValueError):
    CoTracker.from_official(released | {"time_emb": released["time_emb"].flip(1)})

# %% [markdown]
# ## Recap
#
# - A window every half window; within it, $M$ times: read correlations at the points, make tokens, let the transformer read them, add the change. The gradient stops at the points.
# - The second half of a window starts the next, whose answer overwrites it; features start anew from the query. So memory and delay are those of one window.
# - Version 3 trades the changing feature, the place and the masks for windows compared with windows, and refines visibility and confidence with the points; offline it takes the whole clip at once.
#
# The line goes on in [lesson 7](7_predictor.ipynb), which makes a tool of it, and in [lesson 8](8_learning.ipynb), where its weights are learned.
