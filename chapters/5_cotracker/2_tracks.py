# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 50
#     needs:
#     - 6_bilinear_sampling/2_warps
#     - 4_raft/2_fields
#     - 4_raft/6_raft
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tracks: points, visibility, and how to score them
#
# **After this lesson you can** store the tracks of points through a video, score them as TAP-Vid does, and say what any tracker has to beat.
#
# *Before this:* [Warps](../6_bilinear_sampling/2_warps.ipynb) (`2_warps`), which paint the clip of this lesson, and of chapter 4 the [fields](../4_raft/2_fields.ipynb) (`2_fields`) and [RAFT](../4_raft/6_raft.ipynb) (`6_raft`), whose flow is chained here. *Time:* 50 minutes, and 35 for the blanks.

# %% [markdown]
# ## Words
#
# A **query** $q$ (查询点) is a point of a video: a frame and a place in it. The answer is a **track** $p$ (轨迹), the place of that same physical point in every frame, and a **visibility** $v$ (可见性), the probability that the point is seen there rather than hidden or out of the picture. Newer trackers add a **confidence** $c$ (置信度), the probability that the place is about right. A hidden point still has a place, behind whatever hides it.
#
# A score needs the **true track** $p^*$ and the true visibility $v^*$. Three questions are asked of the frames $m$ that count. Is the flag right, seen or hidden? That is $\mathrm{OA}$. Of the points that are truly visible, what share $\delta_k$ is nearer to its true place than a threshold of distance, $k$ pixels? And, both together, how does the number of points that are seen and placed right compare with all that were missed or made up? That is the **Jaccard** (雅卡尔指数) $J_k$. Their averages over five thresholds are the columns of every table in this field.
#
# A score means little alone: it needs a **baseline** (基线), a simple method that any tracker has to beat. The first is to say that each point stays put. The second is the flow $f$ of chapter 4, added up from frame to frame until a **round trip** $r$ (往返) fails to return. And where no truth is known, play the video forward and then backward, a **palindrome** (回文): the point must come home.

# %% [markdown]
# ## Figure
#
# ### A clip whose tracks are exact
#
# Two photographs make the clip: a round piece of a cat passes in front of a motorcycle, while the camera pans and turns. A matrix says which point of its photograph each pixel of frame $t$ shows. The inverse matrix says where a point of the photograph is in frame $t$, so every track is known exactly, and so is every frame in which the cat hides a point.

# %%
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from torch import Tensor

from fourfold.bilinear_sampling.sampling import _check_floating, sample
from fourfold.bilinear_sampling.warps import affine_grid, inside, rotation, translation, warp
from fourfold.cotracker.tracks import (
    THRESHOLDS,
    Tracks,
    chained_flow,
    evaluated_frames,
    palindrome_error,
    stay_put,
    tap_vid_metrics,
)
from fourfold.kit.arguments import whole_number
from fourfold.kit.drawing import COLOURS, canvas, image_grid, show, to_picture
from fourfold.kit.images import credit, photograph
from fourfold.kit.notebook import shows_error
from fourfold.raft.fields import classical_flow
from fourfold.raft.raft import load_raft

# %%
H, W, T = 128, 160, 24
scene = photograph("motorcycle", height=190)
cat = photograph("chelsea", height=96)
face = (74.0, 42.0)  # the middle of the piece, in the cat's photograph


def to_scene(t):
    """The matrix from a pixel of frame t to the place in the photograph of the scene."""
    turn = rotation(-6 + 0.5 * t, centre=(W / 2, H / 2))
    return translation(60 + 2.0 * t, 40 - 0.8 * t) @ turn


def to_cat(t):
    """The matrix from a pixel of frame t to the place in the photograph of the cat."""
    x, y = 30 + 100 * t / (T - 1), 70 + 8 * math.sin(math.pi * t / (T - 1))
    return translation(face[0] - x, face[1] - y) @ rotation(0.8 * (t - 12), centre=(x, y))


def on_piece(places):
    """Whether a place in the cat's photograph belongs to the piece that is cut out."""
    return ((places - torch.tensor(face)) / torch.tensor([30.0, 34.0])).square().sum(dim=-1) < 1


def paint(t):
    """Frame t, (1, 3, H, W)."""
    behind, in_front = (affine_grid(matrix(t), H, W) for matrix in (to_scene, to_cat))
    piece = on_piece(in_front)[:, None]
    return torch.where(piece, warp(cat, in_front), warp(scene, behind, padding="border"))


video = torch.stack([paint(t) for t in range(T)], dim=1)
print("video", tuple(video.shape), f"values from {video.min():.0f} to {video.max():.0f}")


# %% [markdown]
# The true track of a query: find its place in the photograph it belongs to, then carry that place through every frame. It is visible if it is inside the frame and either on the cat or not covered by it.


# %%
def through(matrix, points):
    """Send points (..., 2) through a matrix (3, 3) whose last row is (0, 0, 1)."""
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def true_track(frame, x, y):
    """The place (T, 2) and visibility (T,) of the point seen at (x, y) in a frame."""
    point, frame = torch.tensor([x, y]), int(frame)
    on_cat = on_piece(through(to_cat(frame), point))
    layer = to_cat if on_cat else to_scene
    place = through(layer(frame), point)
    path = torch.stack([through(torch.linalg.inv(layer(t)), place) for t in range(T)])
    covered = torch.stack([on_piece(through(to_cat(t), path[t])) for t in range(T)])
    in_frame = inside(path[None, None], H, W)[0, 0]
    return path, (in_frame & (on_cat | ~covered)).float()


def true_tracks(queries):
    paths, seen = zip(*(true_track(*query) for query in queries[0].tolist()), strict=True)
    return Tracks(torch.stack(paths, dim=1)[None], torch.stack(seen, dim=1)[None])


queries = torch.tensor(
    [
        [0, 40, 60],  # on the cat
        [0, 25, 90],  # on the cat
        [0, 90, 40],  # on the tank: hidden for a while
        [0, 100, 90],  # on the engine: hidden for a while
        [0, 80, 65],  # hidden soon, and back
        [0, 140, 100],  # by the wheel: hidden late, and back
        [0, 60, 20],  # never hidden
        [0, 12, 14],  # leaves the frame
    ],
    dtype=torch.float32,
)[None]
truth = true_tracks(queries)


# %% tags=["figure"]
frames = [0, 8, 16, 23]


def draw_trails(tracks, last_title):
    """Four frames, each with the way of every point up to there; a ring is a hidden point."""
    titles = [f"frame {t}" for t in frames]
    titles[0], titles[-1] = "frame 0: queries q", f"frame {frames[-1]}: {last_title}"
    figure = image_grid(list(video[0, frames]), titles, width=7.6)
    for t, axes in zip(frames, figure.axes, strict=True):
        axes.autoscale(False)
        for n, seen in enumerate(tracks.visible()[0, t].tolist()):
            ink = colormaps["viridis"](0.15 + 0.8 * n / 7)
            axes.plot(*tracks.points[0, : t + 1, n].T, color=ink, linewidth=1.2)
            style = {"mfc": ink, "mec": "white"} if seen else {"mfc": "none", "mec": ink}
            axes.plot(*tracks.points[0, t, n], "o", markersize=5, **style)
    return figure


show(
    draw_trails(truth, "true track p*"),
    alt="Four frames of the clip: a cat's face moves to the right in front of a motorcycle; eight "
    "points with their paths, drawn as rings where the face hides them",
    photo=True,
)
print(credit("motorcycle"), "·", credit("chelsea"))

# %% [markdown]
# Rings are hidden points: they keep a place. The lines are the way each point has come in the picture, which is not its way in the world: the camera moves too.

# %%
hidden = (truth.visibility == 0).sum(dim=1)
print("frames in which each of the points is hidden or outside:", hidden[0].tolist())

# %% [markdown]
# ### One point, scored
#
# The tracker here is a chain of classical flow (iterative Lucas–Kanade, lesson 2 of chapter 4). The point lies on the engine and is hidden by the cat in the middle of the clip.


# %%
def remembered(estimate_flow):
    """The same estimate, made once for each pair of images: this lesson asks some pairs again."""
    known = {}

    def estimate(image1, image2):
        key = hash(image1.numpy().tobytes()), hash(image2.numpy().tobytes())
        if key not in known:
            known[key] = estimate_flow(image1, image2)
        return known[key]

    return estimate


classical = remembered(partial(classical_flow, "ilk"))
tracks = chained_flow(video, queries, classical)
score = tap_vid_metrics(tracks, truth, queries, (H, W))
print("tracks", tuple(tracks.points.shape), "visibility", tuple(tracks.visibility.shape))
print(f"AJ {score.average_jaccard:.3f}, δ_avg {score.average_within:.3f}, ", end="")
print(f"OA {score.occlusion_accuracy:.3f}")


# %% tags=["figure"]
def outcomes(close, visible, seen):
    """What each frame is for the Jaccard: right, missed, made up, both, or nothing at all."""
    both = visible & seen
    names = np.where(both & close, "TP", np.where(both, "FN+FP", ""))
    names = np.where(visible & ~seen, "FN", names)
    return np.where(seen & ~visible, "FP", names)


def draw_one_point(n, k=4):
    counts = evaluated_frames(queries, T, "first")[0, :, n]
    p, p_true = tracks.points[0, :, n], truth.points[0, :, n]
    errors = ((p - p_true) * torch.tensor([256 / W, 256 / H])).norm(dim=-1)
    visible, seen = truth.visible()[0, :, n], tracks.visible()[0, :, n]
    figure, (top, below) = canvas(
        2, 1, 7.2, 4.0, sharex=True, gridspec_kw={"height_ratios": [3, 1.4]}
    )
    for t in (~visible).nonzero()[:, 0].tolist():
        top.axvspan(t - 0.5, t + 0.5, color="0.9", linewidth=0)
    top.plot(errors.clamp(min=0.05), "o-", color=COLOURS["bad"], markersize=3)
    for x in THRESHOLDS:
        top.hlines(x, -0.5, T - 0.5, color=COLOURS["muted"], linewidth=0.8)
        top.text(T - 0.3, x, f"k = {x}", size=7, va="center")
    top.set(yscale="log", ylabel="error e of track p\n(px at 256 × 256)", xlim=(-0.5, T + 0.8))
    top.set_title("below a line: within k px; grey: hidden in truth")
    rows = torch.stack([counts, visible, seen]).float()
    below.imshow(1 - 0.45 * rows, cmap="gray", vmin=0, vmax=1, aspect="auto")
    for t, name in enumerate(outcomes(errors < k, visible & counts, seen & counts).tolist()):
        below.text(t, 3, name.replace("+", "\n+"), size=6, ha="center", va="center")
    below.set(ylim=(3.6, -0.6), xlabel="frame t", yticks=range(4))
    below.set_yticklabels(["counts m", "visible v*", "seen s", f"for Jaccard J_{k}"])
    return figure


show(
    draw_one_point(3),
    alt="The error of one point over 24 frames against five thresholds: small, then rising by an "
    "order of magnitude while the point is hidden; below, the frames that count, the true and the "
    "predicted visibility, and what each frame is for the Jaccard",
)

# %% [markdown]
# Below the chart, dark squares mean yes. The frame of the query does not count, since its answer is given. Hidden frames (grey above) do not count for $\delta_k$, however large the error is. The chain stops trusting itself a little before the point is hidden. After the cat has passed, the point is visible again and the chain has lost it: false negatives (FN) to the end. A frame in which the point is visible and seen is a true positive (TP) where the error is below $k$.

# %% [markdown]
# ## Formula
#
# A point is taken as seen, $s = 1$, where its visibility $v$ exceeds a threshold $\tau$. The released trackers differ: version 2 takes $v$ and $\tau = 0.9$, version 3 is evaluated with $v$ times the confidence $c$ and $\tau = 0.6$:
#
# $$ s = [\,v > \tau\,] \qquad \text{or} \qquad s = [\,v \cdot c > \tau\,] \tag{1} $$
#
# Square brackets are 1 where what they hold is true, and 0 elsewhere. Frame $t$ of a point with query $q = (t_q, x, y)$ counts, $m = 1$, in one of two modes:
#
# $$ m = [\,t > t_q\,] \quad \text{(first)}, \qquad m = [\,t \neq t_q\,] \quad \text{(strided)} \tag{2} $$
#
# The error $e$ is the distance of the track $p$ from the true one $p^*$ after the $H \times W$ frame has been stretched to 256 × 256 pixels:
#
# $$ e = \left\lVert \begin{pmatrix} 256/W & 0 \\ 0 & 256/H \end{pmatrix} (p - p^*) \right\rVert \tag{3} $$
#
# Sums run over the frames and points of one video. With the true visibility $v^*$, the share within $k$ pixels, for $k$ of 1, 2, 4, 8 and 16, is
#
# $$ \delta_k = \frac{\sum m\, v^*\, [e < k]}{\sum m\, v^*} \tag{4} $$
#
# A true positive is visible, seen and near. Whatever is seen without being visible and near is a false positive:
#
# $$ J_k = \frac{\mathrm{TP}}{\sum m\, v^* + \mathrm{FP}}, \quad \mathrm{TP} = \sum m\, v^* s\, [e < k], \quad \mathrm{FP} = \sum m\, s\, \big(1 - v^* [e < k]\big) \tag{5} $$
#
# $\mathrm{AJ}$ and $\delta_{\mathrm{avg}}$ are the means of $J_k$ and $\delta_k$ over the five thresholds. The occlusion accuracy $\mathrm{OA}$ asks about the flag alone:
#
# $$ \mathrm{AJ} = \tfrac{1}{5} \textstyle\sum_k J_k, \qquad \delta_{\mathrm{avg}} = \tfrac{1}{5} \sum_k \delta_k, \qquad \mathrm{OA} = \frac{\sum m\, [\,s = v^*\,]}{\sum m} \tag{6} $$
#
# The chain moves a point by the flow $f$ from its frame to the next, read where the point is:
#
# $$ p_{t+1} = p_t + f(p_t) \tag{7} $$
#
# The flow back, $b$, from frame $t+1$ to frame $t$, should undo the step; $r$ is by how much it misses. The point stays seen as long as it is inside the frame and the rule of lesson 2 of chapter 4 holds at every step:
#
# $$ r = \lVert f(p_t) + b(p_{t+1}) \rVert, \qquad r^2 \le 0.01 \left( \lVert f(p_t) \rVert^2 + \lVert b(p_{t+1}) \rVert^2 \right) + 0.5 \tag{8} $$
#
# In a palindrome of a video of $T$ frames, the last frame is the middle, and frame $2(T-1) - t_q$ shows the same picture as $t_q$. The palindrome error $h$ is how far from home the track is there:
#
# $$ h = \lVert p_{2(T-1) - t_q} - (x, y) \rVert \tag{9} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $q$ | query: frame, x, y | (B, N, 3) | `queries` | queries q |
# | $p$ | track: the place in every frame | (B, T, N, 2), px | `points` | track p |
# | $p^*$ | true track | (B, T, N, 2), px | `truth` | true track p* |
# | $v$ | visibility, a probability | (B, T, N) | `visibility` | visibility v |
# | $c$ | confidence, a probability | (B, T, N) | `confidence` | confidence c |
# | $\tau$ | threshold of visibility | 0 … 1 | `threshold` | threshold τ |
# | $s$ | seen: taken as visible | (B, T, N), bool | `shown` | seen s |
# | $v^*$ | true visibility | (B, T, N), bool | `visible` | visible v* |
# | $m$ | the frames that count | (B, T, N), bool | `counted` | counts m |
# | $e$ | error | (B, T, N), px at 256 × 256 | `errors` | error e |
# | $k$ | threshold of distance | px at 256 × 256 | `pixels` | within k px |
# | $\delta_k$ | share of visible points within k | 0 … 1 | `share_within` | share δ_k |
# | $J_k$ | Jaccard | 0 … 1 | `jaccard` | Jaccard J_k |
# | $\mathrm{AJ}$ | mean Jaccard | 0 … 1 | `average_jaccard` | AJ |
# | $\delta_{\mathrm{avg}}$ | mean share | 0 … 1 | `average_within` | δ_avg |
# | $\mathrm{OA}$ | occlusion accuracy | 0 … 1 | `occlusion_accuracy` | OA |
# | $f$ | flow to the next frame | (B, 2, H, W), px | `there` | flow f |
# | $b$ | flow back from it | (B, 2, H, W), px | `back` | flow back b |
# | $r$ | miss of the round trip | (B, N), px | `miss` | round trip r |
# | $h$ | palindrome error | (B, N), px | `palindrome_error` | palindrome error h |
#
# Letters of shapes: $B$ videos of a batch, $T$ frames, $N$ points, $H$ and $W$ height and width in pixels. Positions are (x, y), x to the right, y down, the centre of the top-left pixel at (0, 0).

# %% [markdown]
# ## Code
#
# ### Tracks are data
#
# Two arrays and perhaps a third, side by side. Time comes before points, so `points[b, t]` is a frame's set of points and `points[b, :, n]` is one path.


# %% tags=["promote"]
class Tracks(NamedTuple):
    """Where N points are in each of T frames, and whether each is seen there.

    points      (B, T, N, 2) as (x, y) in pixels of the video
    visibility  (B, T, N) the probability that the point is seen; 0 or 1 where it is known
    confidence  (B, T, N) the probability that the position is close to the true one, or None

    Convention: x to the right, y down, the centre of the top-left pixel at (0, 0). A hidden point
    has a position too: where it is behind what hides it.
    Source: Karaev et al. 2023, CoTracker (arXiv 2307.07635).
    """

    points: Float[Tensor, "B T N 2"]
    visibility: Float[Tensor, "B T N"]
    confidence: Float[Tensor, "B T N"] | None = None

    def visible(
        self, threshold: float = 0.9, with_confidence: bool = False
    ) -> Bool[Tensor, "B T N"]:
        """Decide which points are seen: visibility over the threshold (equation 1 of the lesson).

        With `with_confidence`, visibility times confidence must exceed it. Raises ValueError for a
        threshold that is no probability below 1, and where there is no confidence.
        """
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold is {threshold}; expected a probability below 1")
        if not with_confidence:
            return self.visibility > threshold
        if self.confidence is None:
            raise ValueError("confidence is None; expected (B, T, N), or with_confidence=False")
        return self.visibility * self.confidence > threshold

    def at(self, frame: int) -> "Tracks":
        """Give the tracks of one frame, with T = 1. Raises ValueError for a frame there is not."""
        t = whole_number("frame", frame, least=0, most=self.points.shape[1] - 1)
        return Tracks(*(None if values is None else values[:, t : t + 1] for values in self))


# %% tags=["check"]
walk = Tracks(
    points=torch.tensor([[[[0.0, 0.0], [5.0, 5.0]], [[1.0, 0.0], [5.0, 6.0]]]]),
    visibility=torch.tensor([[[1.0, 0.95], [0.9, 0.2]]]),
    confidence=torch.tensor([[[0.9, 0.5], [0.8, 0.9]]]),
)
assert walk.visible().tolist() == [[[True, True], [False, False]]], "0.9 does not exceed 0.9"
assert walk.visible(0.6, with_confidence=True).tolist() == [[[True, False], [True, False]]]
assert walk.at(1).points.tolist() == [[[[1, 0], [5, 6]]]], "one frame keeps its time axis"


# %% [markdown]
# The two rules of equation 1 do not agree. Here is each decision over all pairs of visibility and confidence:


# %% tags=["figure"]
def draw_rules():
    line = torch.linspace(0, 1, 101)
    v, c = torch.meshgrid(line, line, indexing="xy")
    every = Tracks(torch.zeros(1, 101, 101, 2), v[None], c[None])
    figure, axes = canvas(1, 2, 5.0, 2.4, sharey=True)
    rules = {"threshold τ = 0.9 on v": (0.9, False), "threshold τ = 0.6 on v · c": (0.6, True)}
    for each, (title, rule) in zip(axes, rules.items(), strict=True):
        seen = every.visible(*rule)[0].float()
        each.imshow(
            1 - 0.45 * seen, cmap="gray", vmin=0, vmax=1, origin="lower", extent=(0, 1, 0, 1)
        )
        each.set(title=title, xlabel="visibility v")
    axes[0].set_ylabel("confidence c")
    return figure


show(
    draw_rules(),
    alt="Two squares of visibility against confidence, dark where a point is taken as seen: right "
    "of a vertical line under the first rule, beyond a curve under the second",
)

# %% [markdown]
# With a visibility of 1 and a confidence of one half, a point is seen by the first rule and hidden by the second. A table that does not say which rule it used cannot be compared.
#
# A file keeps the arrays by their names; None is left out:

# %%
arrays = {name: values.numpy() for name, values in truth._asdict().items() if values is not None}
print({name: (values.shape, str(values.dtype)) for name, values in arrays.items()})

# %% [markdown]
# ### Bad queries
#
# A query outside the video has no answer, and a tracker that is asked anyway gives one that looks fine. So the functions of this chapter refuse. The picture of an image of width $W$ reaches from −0.5, the left edge of the first pixel, to $W - 0.5$.


# %% tags=["promote"]
def _check_video(video: Tensor) -> None:
    _check_floating("video", video)
    if video.ndim != 5 or video.shape[2] != 3 or 0 in video.shape:
        raise ValueError(
            f"video has shape {tuple(video.shape)}; expected (B, T, 3, H, W), none of them 0"
        )


def _check_queries(queries: Tensor, batch: int, frames: int, size: tuple[int, int]) -> None:
    """Raise for queries that are not (batch, N, 3) with N ≥ 1, or outside the video."""
    _check_floating("queries", queries)
    shape = tuple(queries.shape)
    if queries.ndim != 3 or shape[0] != batch or shape[2] != 3:
        raise ValueError(f"queries has shape {shape}; expected ({batch}, N, 3) as (frame, x, y)")
    if shape[1] == 0:
        raise ValueError(f"queries is empty, of shape {shape}; expected one point or more")
    H, W = size
    limits = {"frame": (0, frames - 1), "x": (-0.5, W - 0.5), "y": (-0.5, H - 0.5)}
    for values, (name, (low, high)) in zip(queries.unbind(-1), limits.items(), strict=True):
        good = (values >= low) & (values <= high)  # False for NaN
        if name == "frame":
            good &= values == values.floor()
        if not good.all():
            b, n = (index.item() for index in (~good).nonzero()[0])
            whole = "a whole number " if name == "frame" else ""
            raise ValueError(
                f"queries[{b}, {n}] has {name} {values[b, n]:g}; expected {whole}"
                f"from {low:g} to {high:g}"
            )


# %% [markdown]
# ### Which frames count
#
# TAP-Vid asks in two ways. In mode **first**, each point is queried once, in the first frame that shows it, and only later frames count: nothing is known about earlier ones. In mode **strided**, a query is made in every fifth frame that shows the point, and all other frames count, the earlier ones too. So a tracker that never looks back in time does badly in strided mode.


# %% tags=["promote"]
def evaluated_frames(queries: Float[Tensor, "B N 3"], T: int, mode: str) -> Bool[Tensor, "B T N"]:
    """Mark the frames of each point that count (equation 2 of the lesson).

    queries  (B, N, 3) as (frame, x, y)
    T        the number of frames
    mode     "first": the frames after the query; "strided": all frames but the query's
    returns  (B, T, N)

    Raises ValueError for another mode. Source: Doersch et al. 2022, TAP-Vid (arXiv 2211.03726).
    """
    if mode not in ("first", "strided"):
        raise ValueError(f"mode is {mode!r}; expected first or strided")
    t = torch.arange(T, device=queries.device)[None, :, None]
    start = queries[:, None, :, 0]
    return t > start if mode == "first" else t != start


# %% tags=["check"]
asked = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
first, strided = (evaluated_frames(asked, 4, mode) for mode in ("first", "strided"))
assert first.shape == (1, 4, 2), "(B, T, N): time before points"
assert first[0, :, 0].tolist() == [False, False, False, True], "after frame 2 comes frame 3"
assert strided[0, :, 0].tolist() == [True, True, False, True], "all frames but frame 2"


# %%
def strided_queries(tracks, step=5):
    """A query at each visible point of every fifth frame, and the track each belongs to."""
    visible = tracks.visible()[0]
    picks = [(t, n) for t in range(0, T, step) for n in range(visible.shape[1]) if visible[t, n]]
    t, n = torch.tensor(picks).T
    return torch.cat([t[:, None], tracks.points[0, t, n]], dim=1)[None], n


many, owner = strided_queries(truth)
repeated = Tracks(truth.points[:, :, owner], truth.visibility[:, :, owner])
print(f"{queries.shape[1]} points give {many.shape[1]} strided queries")

# %%
figure, axes = canvas(1, 2, 6.5, 2.2)
for each, (mode, asked) in zip(axes, {"first": queries, "strided": many}.items(), strict=True):
    m = evaluated_frames(asked, T, mode)[0].T.float()
    each.imshow(1 - 0.45 * m, cmap="gray", vmin=0, vmax=1, aspect="auto")
    each.plot(asked[0, :, 0], range(asked.shape[1]), "o", color=COLOURS["query"], markersize=2)
    each.set(title=f"mode {mode}: counts m", xlabel="frame t", ylabel="query")
show(
    figure,
    alt="Two charts of queries against frames, dark where a frame counts: in mode first all frames "
    "after the query's, here frame 0; in mode strided all frames but the query's own",
)

# %% [markdown]
# ### The share within k pixels
#
# First equation 4 as it reads, point by point and frame by frame, tried on random errors and flags:


# %%
def share_within_loop(errors, visible, k):
    near, count = 0, 0
    for t in range(errors.shape[1]):
        for n in range(errors.shape[2]):
            if visible[0, t, n]:
                count += 1
                near += (errors[0, t, n] < k).item()
    return near / count


generator = torch.Generator().manual_seed(5)
some_errors = 20 * torch.rand(1, 9, 4, generator=generator) ** 2
some_visible, some_shown = torch.rand(2, 1, 9, 4, generator=generator) < 0.7
print({k: round(share_within_loop(some_errors, some_visible, k), 3) for k in THRESHOLDS})


# %% tags=["promote", "exercise"]
def share_within(
    errors: Float[Tensor, "B T N"], visible: Bool[Tensor, "B T N"], pixels: float
) -> Float[Tensor, "B"]:
    """Give the share of truly visible points within a distance (equation 4 of the lesson).

    errors   (B, T, N) distances from the truth, in pixels
    visible  (B, T, N) the points that are visible in truth, in frames that count
    pixels   the distance k; an error equal to it is too large
    returns  (B,) the share of each video; NaN where no point is visible

    Source: Doersch et al. 2022, TAP-Vid (arXiv 2211.03726).
    """
    near = visible & (errors < pixels)
    return near.sum(dim=(1, 2)).to(errors.dtype) / visible.sum(dim=(1, 2))


# %% tags=["check"]
for k in THRESHOLDS:
    share = share_within(some_errors, some_visible, k)
    assert share.shape == (1,), "one number for each video"
    expected = share_within_loop(some_errors, some_visible, k)
    assert math.isclose(share.item(), expected, rel_tol=1e-6), f"not the loop's at k = {k}"
edge = torch.tensor([[[1.0, 0.5, 0.5]], [[3.0, 3.0, 0.0]]])
flags = torch.tensor([[[True, True, False]], [[True, True, True]]])
assert share_within(edge, flags, 1).sub(torch.tensor([1 / 2, 1 / 3])).abs().max() < 1e-6, (
    "an error of exactly k is too large, hidden points do not count, and videos are kept apart"
)

# %% [markdown]
# ### The Jaccard
#
# $\delta_k$ looks only at points that are truly visible, so a tracker that always says "seen" loses nothing by it. The Jaccard charges for it. Each point of each frame is one of these:
#
# - a **true positive** (TP): visible, seen, and near;
# - a **false negative** (FN): visible, but not a true positive;
# - a **false positive** (FP): seen, but not a true positive.
#
# A point that is visible and seen in the wrong place is both: missed where it is, and made up where it is not. In a loop:


# %%
def jaccard_loop(errors, visible, shown, k):
    right = missed = made_up = 0
    for t in range(errors.shape[1]):
        for n in range(errors.shape[2]):
            near = (errors[0, t, n] < k).item()
            is_visible, is_shown = visible[0, t, n].item(), shown[0, t, n].item()
            right += is_visible and is_shown and near
            missed += is_visible and not (is_shown and near)
            made_up += is_shown and not (is_visible and near)
    return right / (right + missed + made_up)


some = some_errors, some_visible, some_shown
print({k: round(jaccard_loop(*some, k), 3) for k in THRESHOLDS})


# %% tags=["promote", "exercise"]
def jaccard(
    errors: Float[Tensor, "B T N"],
    visible: Bool[Tensor, "B T N"],
    shown: Bool[Tensor, "B T N"],
    pixels: float,
) -> Float[Tensor, "B"]:
    """Give true positives over all that is right, missed or made up (equation 5 of the lesson).

    errors   (B, T, N) distances from the truth, in pixels
    visible  (B, T, N) the points that are visible in truth, in frames that count
    shown    (B, T, N) the points that the tracker takes as visible, in frames that count
    pixels   the distance k; an error equal to it is too large
    returns  (B,) the Jaccard of each video; NaN where nothing is visible and nothing is shown

    A visible point that is shown too far away is missed and made up: it counts twice below the
    line. Source: Doersch et al. 2022, TAP-Vid (arXiv 2211.03726).
    """
    near = visible & (errors < pixels)
    right = (near & shown).sum(dim=(1, 2))
    made_up = (shown & ~near).sum(dim=(1, 2))
    return right.to(errors.dtype) / (visible.sum(dim=(1, 2)) + made_up)


# %% tags=["check"]
for k in THRESHOLDS:
    found, expected = jaccard(*some, k), jaccard_loop(*some, k)
    assert found.shape == (1,), "one number for each video"
    assert math.isclose(found.item(), expected, rel_tol=1e-6), f"not the loop's at k = {k}"
# Four points: right; far away; hidden and shown; visible and not shown.
cases = torch.tensor([[[0.0, 9.0, 0.0, 0.0]]]), torch.tensor([[[1, 1, 0, 1]]]).bool()
says = torch.tensor([[[1, 1, 1, 0]]]).bool()
found = jaccard(*cases, says, 4).item()
assert math.isclose(found, 1 / 5, rel_tol=1e-6), "1 right, 3 visible, 2 made up: 1 / (3 + 2)"
assert jaccard(*cases, says, 10).item() == 2 / 4, "within 10 the far one is right: 2 / (3 + 1)"
twice = [torch.cat([values, values]) for values in (*cases, says)]
assert jaccard(*twice, 4).sub(1 / 5).abs().max() < 1e-6, "videos are kept apart"


# %% [markdown]
# The whole clip as the Jaccard sees it. The errors and flags, from the tracks:

# %%
stretch = torch.tensor([256 / W, 256 / H])
errors = ((tracks.points - truth.points) * stretch).norm(dim=-1)
counted = evaluated_frames(queries, T, "first")
visible, seen = truth.visible() & counted, tracks.visible() & counted
print("chained flow:", {k: round(jaccard_loop(errors, visible, seen, k), 3) for k in THRESHOLDS})

# %% [markdown]
# On the left the chain of classical flow; on the right the answer that every point stays where it was and is always seen:


# %% tags=["figure"]
KINDS = {"TP": COLOURS["good"], "FN": COLOURS["second"], "FP": COLOURS["first"]}
KINDS |= {"FN+FP": COLOURS["query"], "": "0.93"}


def draw_outcomes(chosen):
    figure, axes = canvas(1, 2, 7.6, 2.5, sharey=True)
    for each, (name, (answer, k)) in zip(axes, chosen.items(), strict=True):
        errors = ((answer.points - truth.points) * stretch).norm(dim=-1)
        seen = answer.visible() & counted
        kinds = outcomes(errors[0] < k, visible[0], seen[0])
        picture = np.vectorize(list(KINDS).index)(kinds).T
        each.imshow(picture, cmap=ListedColormap(list(KINDS.values())), vmin=0, vmax=4)
        for kind, mark in {"TP": "+", "FN": "–", "FP": "x", "FN+FP": "*"}.items():
            for t, n in np.argwhere(kinds == kind):
                each.text(t, n, mark, size=6, color="white", ha="center", va="center")
        each.set(aspect="auto", xlabel="frame t", yticks=range(8))
        J = jaccard(errors, visible, seen, k).item()
        each.set_title(f"{name}: Jaccard J_k = {J:.2f} at k = {k}")
    axes[0].set_ylabel("point n")
    patches = [Patch(color=c, label=name or "counts for nothing") for name, c in KINDS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=5)
    return figure


show(
    draw_outcomes({"chained flow": (tracks, 4), "stay put": (stay_put(video, queries), 16)}),
    alt="Two charts of eight points against 24 frames. Chained flow: true positives at the left, "
    "false negatives at the right. Staying put: true positives in the first frames, then both "
    "false at once, and false positives where a point is hidden",
)

# %% [markdown]
# Read the row of point 3 in the left chart: found (TP), given up (FN), hidden (counts for nothing), and back without being noticed (FN). The two trackers fail in opposite ways. The chain says too rarely that a point is seen, and is charged once each time; staying put always says so, in the wrong place, and is charged twice.
#
# ### All measures together
#
# Before anything is counted, the checks. Tracks of another length would broadcast or fail far from the cause, logits in place of probabilities would all pass or fail the threshold, and a video without a visible point has no $\delta_k$.


# %% tags=["promote"]
THRESHOLDS = (1, 2, 4, 8, 16)  # pixels of a frame that is stretched to 256 × 256


class Score(NamedTuple):
    """The measures of TAP-Vid, each from 0 to 1, larger is better.

    average_jaccard     AJ, the mean of `jaccard`
    average_within      δ_avg, the mean of `within`
    occlusion_accuracy  OA, the share of frames in which seen or hidden is right
    within              δ_k for each k of `THRESHOLDS`
    jaccard             J_k for each k of `THRESHOLDS`
    """

    average_jaccard: float
    average_within: float
    occlusion_accuracy: float
    within: dict[int, float]
    jaccard: dict[int, float]


# %% tags=["promote"]
def _check_tracks(name: str, tracks: Tracks) -> None:
    _check_floating(f"{name}.points", tracks.points)
    _check_floating(f"{name}.visibility", tracks.visibility)
    shape = tuple(tracks.points.shape)
    if len(shape) != 4 or shape[3] != 2:
        raise ValueError(f"{name}.points has shape {shape}; expected (B, T, N, 2)")
    if tuple(tracks.visibility.shape) != shape[:3]:
        raise ValueError(
            f"{name}.visibility has shape {tuple(tracks.visibility.shape)}; "
            f"expected {shape[:3]}, as {name}.points"
        )
    if not ((tracks.visibility >= 0) & (tracks.visibility <= 1)).all():
        raise ValueError(
            f"{name}.visibility has values outside [0, 1]; expected probabilities "
            "(call .sigmoid() on logits)"
        )


def _check_pair(predicted: Tracks, truth: Tracks) -> None:
    _check_tracks("predicted", predicted)
    _check_tracks("truth", truth)
    if predicted.points.shape != truth.points.shape:
        raise ValueError(
            f"predicted.points has shape {tuple(predicted.points.shape)}; "
            f"expected {tuple(truth.points.shape)}, as truth.points"
        )
    seen = truth.visible(0.5)
    for name, points in (("predicted", predicted.points), ("truth", truth.points[seen])):
        if not points.isfinite().all():
            raise ValueError(f"{name}.points has numbers that are not finite; expected pixels")


def _check_asked(queries: Tensor, truth: Tracks, size: tuple[int, int]) -> None:
    for name, side in zip("HW", size, strict=True):
        whole_number(name, side, least=1)
    B, T, N, _ = truth.points.shape
    _check_queries(queries, B, T, size)
    if queries.shape[1] != N:
        raise ValueError(f"queries has {queries.shape[1]} points; expected {N}, as truth.points")


def _check_counted(visible: Tensor) -> None:
    for b, count in enumerate(visible.sum(dim=(1, 2)).tolist()):
        if count == 0:
            raise ValueError(f"truth has no visible point that counts in video {b}; expected one")


# %% tags=["promote"]
def tap_vid_metrics(
    predicted: Tracks,
    truth: Tracks,
    queries: Float[Tensor, "B N 3"],
    size: tuple[int, int],
    mode: str = "first",
    threshold: float = 0.9,
    with_confidence: bool = False,
) -> Score:
    """Score tracks as TAP-Vid does (equations 1 to 6 of the lesson).

    predicted        the tracker's answer to queries
    truth            the true tracks, visibility 0 or 1; places of hidden points are not read
    queries          (B, N, 3) as (frame, x, y)
    size             (H, W) of the video whose pixels are the unit of both tracks
    mode             "first": the frames after the query count; "strided": all but the query's
    threshold, with_confidence  which predicted points are seen, as in `Tracks.visible`
    returns          Score, computed for each video and averaged over the batch

    Raises TypeError for tensors of whole numbers, ValueError for tracks whose shapes are wrong or
    differ, numbers that are not finite or no probabilities, queries that are none or outside the
    video, another mode, and a video with no visible point that counts.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    Source: Doersch et al. 2022, TAP-Vid (arXiv 2211.03726).
    """
    _check_pair(predicted, truth)
    _check_asked(queries, truth, size)
    counted = evaluated_frames(queries, truth.points.shape[1], mode)
    visible, shown = truth.visible(0.5), predicted.visible(threshold, with_confidence)
    right = (shown == visible) & counted
    visible, shown = visible & counted, shown & counted
    _check_counted(visible)
    stretch = truth.points.new_tensor([256 / size[1], 256 / size[0]], dtype=torch.float64)
    errors = ((predicted.points.double() - truth.points.double()) * stretch).norm(dim=-1)
    within = {k: share_within(errors, visible, k).mean().item() for k in THRESHOLDS}
    overlap = {k: jaccard(errors, visible, shown, k).mean().item() for k in THRESHOLDS}
    accuracy = (right.sum(dim=(1, 2)).double() / counted.sum(dim=(1, 2))).mean().item()
    averages = (sum(values.values()) / len(THRESHOLDS) for values in (overlap, within))
    return Score(*averages, accuracy, within, overlap)


# %% tags=["check"]
score = tap_vid_metrics(tracks, truth, queries, (H, W))
for k in THRESHOLDS:
    assert math.isclose(score.within[k], share_within_loop(errors, visible, k), rel_tol=1e-6)
    assert math.isclose(score.jaccard[k], jaccard_loop(errors, visible, seen, k), rel_tol=1e-6)
perfect = tap_vid_metrics(truth, truth, queries, (H, W))
assert perfect[:3] == (1, 1, 1), "the truth scores 1 on all three"

# %% [markdown]
# > **Where the code leaves the release.** CoTracker's released evaluation divides the right flags of one video by the number of frames that count in the whole batch, so with two videos in a batch its occlusion accuracy is about half of what it should be. With a batch of one the two agree. Here each video is divided by its own number. *What breaks* below prints both.
#
# ### The first baseline: nothing moves


# %% tags=["promote"]
def stay_put(video: Float[Tensor, "B T 3 H W"], queries: Float[Tensor, "B N 3"]) -> Tracks:
    """Say of every point that it stays where it was asked for, and is always seen.

    video    (B, T, 3, H, W)
    queries  (B, N, 3) as (frame, x, y), in pixels of the video
    returns  Tracks of T frames

    Raises TypeError for tensors of whole numbers, ValueError for a video or queries of another
    shape, no queries, and queries outside the video.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    _check_video(video)
    B, T, _, H, W = video.shape
    _check_queries(queries, B, T, (H, W))
    points = queries[:, None, :, 1:].repeat(1, T, 1, 1)
    return Tracks(points, torch.ones_like(points[..., 0]))


# %% tags=["check"]
still = stay_put(video, queries)
assert still.points.shape == truth.points.shape and still.visibility.min() == 1
assert (still.points == queries[:, None, :, 1:]).all()
score = tap_vid_metrics(still, truth, queries, (H, W))
print(f"stay put: δ_avg {score.average_within:.3f}, OA {score.occlusion_accuracy:.3f}")

# %% [markdown]
# Since most points are visible most of the time, a tracker that never says "hidden" has a high occlusion accuracy: the share of frames in which points are visible. A reported OA has to be read against this number.
#
# ### The second baseline: chained flow
#
# One step: read the flow at the point, go there, read the flow back, see where it leads. A step may end between pixels, so both are sampled.


# %% tags=["promote", "exercise"]
def follow(
    points: Float[Tensor, "B N 2"], there: Float[Tensor, "B 2 H W"], back: Float[Tensor, "B 2 H W"]
) -> tuple[Float[Tensor, "B N 2"], Bool[Tensor, "B N"]]:
    """Move points by a flow, and ask the flow back (equations 7 and 8 of the lesson).

    points   (B, N, 2) as (x, y) in pixels of the first image; outside it the border is read
    there    (B, 2, H, W) flow from the first image to the second, in pixels
    back     (B, 2, H, W) flow from the second image to the first, in pixels
    end      (B, N, 2) the points in the second image
    trusted  (B, N) True where end is inside the image and the way back leads home

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    Source of the rule: Sundaram, Brox and Keutzer, Dense point trajectories by GPU-accelerated
    large displacement optical flow, ECCV 2010.
    """
    step = sample(there, points, padding="border").transpose(1, 2)
    end = points + step
    step_back = sample(back, end, padding="border").transpose(1, 2)
    miss = (step + step_back).square().sum(dim=-1)
    lengths = step.square().sum(dim=-1) + step_back.square().sum(dim=-1)
    in_image = inside(end[:, None], *back.shape[2:])[:, 0]
    return end, in_image & (miss <= 0.01 * lengths + 0.5)


# %% tags=["check"]
slide = torch.tensor([3.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 20, 30)
start = torch.tensor([[[4.0, 9.0], [28.0, 9.0], [6.5, 0.25]]])
end, trusted = follow(start, slide, -slide)
assert end.tolist() == [[[7.0, 8.0], [31.0, 8.0], [9.5, -0.75]]], "points plus flow"
assert trusted.tolist() == [[True, False, False]], "the second and third leave the image"
assert not follow(start, slide, 0 * slide)[1].any(), "the way back must lead home"
ramp = torch.stack([torch.arange(30.0).expand(20, 30) / 10, torch.zeros(20, 30)])[None]
end, trusted = follow(start, ramp, -ramp / 1.1)
assert (end[0, 2, 0] - 7.15).abs() < 1e-4, "the flow is read at x = 6.5, between pixels"
assert trusted[0].tolist() == [True, False, True], "the flow back is read where the point arrives"
assert follow(start, 0 * slide, 0.22 * slide)[1].all(), (
    "a miss of less than 0.7 px is forgiven, however short the step"
)

# %% [markdown]
# A point on the engine and one on the cat, one frame later, on the flow $f$ of the first pair of frames. The miss $r$ is small for both. Then the same for a pixel that the cat is about to cover:


# %%
def draw_flow(axes, image, flow, spots, filled, step=8):
    """A pale picture with arrows twice as long as the flow, and spots, some of them rings."""
    axes.imshow(to_picture(255 - 0.5 * (255 - image)))
    u, v = 2 * flow[0, :, ::step, ::step]
    style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.004}
    axes.quiver(range(0, W, step), range(0, H, step), u, v, color=COLOURS["flow"], **style)
    for spot, good in zip(spots[0], filled[0], strict=True):
        axes.plot(*spot, "o", mfc=COLOURS["query"] if good else "none", mec=COLOURS["query"])
    axes.set(xlabel="x (px)", xlim=(15, 130), ylim=(115, 35))


# %% tags=["figure"]
def draw_step(t=3, places=((101.0, 90.0), (40.0, 60.0), (77.0, 70.0))):
    images = video[:, t], video[:, t + 1]
    there, back = classical(*images), classical(*images[::-1])
    points = torch.tensor(places)[None]
    end, trusted = follow(points, there, back)
    home = end + sample(back, end, padding="border").transpose(1, 2)
    figure, axes = canvas(1, 2, 6.6, 2.6, sharey=True)
    draw_flow(axes[0], images[0], there, points, trusted)
    draw_flow(axes[1], images[1], back, end, trusted)
    axes[0].set(title=f"flow f, on frame {t}", ylabel="y (px)")
    axes[1].set_title(f"flow back b, on frame {t + 1}")
    misses = (home - points)[0].norm(dim=-1).tolist()
    for n, (dx, dy) in enumerate(((0, 12), (-8, -14), (22, -12))):
        label = f"round trip r = {misses[n]:.2f} px"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        place = (end[0, n, 0] + dx, end[0, n, 1] + dy)
        axes[1].annotate(label, end[0, n], place, size=7, ha="center", bbox=box,
                         arrowprops={"arrowstyle": "-", "linewidth": 0.8})  # fmt: skip
    return figure


show(
    draw_step(),
    alt="Two frames with arrows of the flow there and back; three points, two of which return "
    "within a fraction of a pixel and one, ahead of the cat's edge, which does not",
    photo=True,
)

# %% [markdown]
# Arrows are drawn at twice their length. Ahead of the cat, forward and backward flow belong to different things, and the round trip misses (ring).
#
# The chain in a loop, one point after the other, forward from the query's frame:


# %%
def chained_flow_loop(video, queries, estimate_flow):
    points, seen = stay_put(video, queries)[:2]
    for n, (frame, *_) in enumerate(queries[0].tolist()):
        for t in range(int(frame), video.shape[1] - 1):
            there = estimate_flow(video[:, t], video[:, t + 1])
            back = estimate_flow(video[:, t + 1], video[:, t])
            end, trusted = follow(points[:, t, n : n + 1], there, back)
            points[:, t + 1, n] = end[:, 0]
            seen[:, t + 1, n] = seen[:, t, n] * trusted[:, 0]
    return Tracks(points, seen)


by_loop = chained_flow_loop(video, queries, classical)

# %% [markdown]
# Once a round trip has failed, the chain is on something else, so the point stays unseen to the end of the video. Nothing in two neighbouring frames could tell that it has come back.
#
# The final version moves all points of a frame at once, asks for each flow once, and also goes backward in time from the query, for strided mode. Backward in time is forward in the reversed video, where each flow there is a flow back.


# %% tags=["promote"]
def _flows(video: Tensor, estimate_flow: Callable) -> list[tuple[Tensor, Tensor]]:
    """The flow from each frame of (T, 3, H, W) to the next, and back."""
    flows = []
    for first, second in zip(video[:-1, None], video[1:, None], strict=True):
        both = (estimate_flow(first, second), estimate_flow(second, first))
        # RAFT answers with a pair of sizes, of which the full one is meant.
        both = tuple(getattr(flow, "full", flow) for flow in both)
        for flow in both:
            shape = (1, 2, *video.shape[2:])
            if tuple(flow.shape) != shape:
                raise ValueError(f"estimate_flow gave {tuple(flow.shape)}; expected {shape}")
        flows.append(both)
    return flows


def _chain(place: Tensor, frame: Tensor, flows: list) -> tuple[Tensor, Tensor]:
    """Follow the flows from each point's frame on; earlier frames keep its place (N, 2)."""
    ways, flags = [place], [torch.ones_like(frame, dtype=torch.bool)]
    for t, (there, back) in enumerate(flows):
        moving = frame <= t
        end, trusted = follow(ways[-1][None], there, back)
        ways.append(torch.where(moving[:, None], end[0], place))
        flags.append(flags[-1] & (trusted[0] | ~moving))
    return torch.stack(ways), torch.stack(flags)


# %% tags=["promote"]
def chained_flow(
    video: Float[Tensor, "B T 3 H W"],
    queries: Float[Tensor, "B N 3"],
    estimate_flow: Callable[[Tensor, Tensor], Tensor],
) -> Tracks:
    """Track points by adding up the flow from frame to frame (equations 7 and 8 of the lesson).

    video          (B, T, 3, H, W) in [0, 255]
    queries        (B, N, 3) as (frame, x, y), in pixels of the video
    estimate_flow  takes two images (1, 3, H, W), returns the flow from the first to the second,
                   (1, 2, H, W) in pixels; `RAFT.estimate` will do
    returns        Tracks of T frames, forward from each query's frame and backward before it

    The visibility is 1 until a round trip fails or the point leaves the image, and 0 from then on:
    a broken chain has lost its point. estimate_flow is called 2 (T − 1) times for each video.
    Raises TypeError for tensors of whole numbers, ValueError for a video, queries or a flow of
    another shape, no queries, and queries outside the video.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    Source of the rule: Sundaram, Brox and Keutzer, Dense point trajectories by GPU-accelerated
    large displacement optical flow, ECCV 2010.
    """
    stay_put(video, queries)  # raises for a bad video or bad queries
    last = video.shape[1] - 1
    ways, flags = [], []
    for frames, (frame, *place) in zip(video, queries.movedim(-1, 1), strict=True):
        place, flows = torch.stack(place, dim=-1), _flows(frames, estimate_flow)
        way, seen = _chain(place, frame, flows)
        # Backward in time is forward in the reversed video, with the two flows exchanged.
        turned = [(back, there) for there, back in reversed(flows)]
        earlier_way, earlier_seen = (v.flip(0) for v in _chain(place, last - frame, turned))
        before = torch.arange(last + 1, device=frame.device)[:, None] < frame
        ways.append(torch.where(before[..., None], earlier_way, way))
        flags.append(torch.where(before, earlier_seen, seen))
    points = torch.stack(ways).to(queries)
    return Tracks(points, torch.stack(flags).to(points))


# %% tags=["check"]
tracks = chained_flow(video, queries, classical)
# The same additions in the same order, up to the rounding of a batch's sampling.
assert (tracks.points - by_loop.points).abs().max() < 1e-3, "differs from the loop"
assert torch.equal(tracks.visibility, by_loop.visibility)
turned = torch.cat([T - 1 - queries[..., :1], queries[..., 1:]], dim=-1)
backward = chained_flow(video.flip(1), turned, classical)
assert (backward.points.flip(1) - tracks.points).abs().max() < 1e-3, "time may run backward"

# %% [markdown]
# ### A measure without the truth: the palindrome
#
# Play the video and then its reverse. Wherever a point has been in between, at the mirror of its query's frame the picture is that of the query, and the right answer is the query itself.

# %%
there_and_back = torch.cat([video, video[:, :-1].flip(1)], dim=1)
print(there_and_back.shape[1], "frames, the first and the last are the same:", end=" ")
print(torch.equal(there_and_back[:, 0], there_and_back[:, -1]))


# %% tags=["promote", "exercise"]
def palindrome_error(
    tracker: Callable[[Tensor, Tensor], Tracks],
    video: Float[Tensor, "B T 3 H W"],
    queries: Float[Tensor, "B N 3"],
) -> Float[Tensor, "B N"]:
    """Track through a video and back, and measure by how much each point misses its start.

    tracker  takes a video and queries, returns Tracks
    video    (B, T, 3, H, W); the tracker gets it with its reverse behind it, 2 T − 1 frames
    queries  (B, N, 3) as (frame, x, y), in pixels of the video
    returns  (B, N) distances in pixels, in the frame that mirrors the query's (equation 9 of the
             lesson); a query in the last frame is its own mirror

    No truth is needed. A small error is necessary and not sufficient: `stay_put` has none. Raises
    TypeError for tensors of whole numbers, ValueError for a video, queries or tracks of another
    shape, no queries, and queries outside the video.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    _check_video(video)
    B, T, _, H, W = video.shape
    _check_queries(queries, B, T, (H, W))
    points = tracker(torch.cat([video, video[:, :-1].flip(1)], dim=1), queries).points
    expected = (B, 2 * T - 1, queries.shape[1], 2)
    if tuple(points.shape) != expected:
        raise ValueError(f"tracker gave points of shape {tuple(points.shape)}; expected {expected}")
    mirror = (2 * (T - 1) - queries[..., 0]).long()
    home = points.gather(1, mirror[:, None, :, None].expand(-1, -1, -1, 2))[:, 0]
    return (home - queries[..., 1:]).norm(dim=-1)


# %% tags=["check"]
def drifting(video, queries):
    """Every point moves by (3, 4) px a frame, from frame 0 on, whatever the video shows."""
    t = torch.arange(video.shape[1]).view(1, -1, 1, 1)
    points = queries[:, None, :, 1:] + t * torch.tensor([3.0, 4.0])
    return Tracks(points, torch.ones_like(points[..., 0]))


three = torch.tensor([[[0.0, 5.0, 5.0], [1.0, 9.0, 5.0], [2.0, 5.0, 9.0]]])
blank = torch.zeros(1, 3, 3, 16, 16)
h = palindrome_error(drifting, blank, three)
assert h.tolist() == [[20.0, 15.0, 10.0]], "frames 4, 3 and 2 mirror frames 0, 1 and 2"
given = []
numbered = blank + torch.arange(3.0).view(1, 3, 1, 1, 1)
palindrome_error(lambda v, q: given.append(v[0, :, 0, 0, 0]) or stay_put(v, q), numbered, three)
assert given[0].tolist() == [0, 1, 2, 1, 0], "the video, then its reverse, the middle frame once"
assert palindrome_error(stay_put, blank, three).max() == 0, "who stays is at home"

# %% [markdown]
# ## On real input
#
# ### The baselines on the clip
#
# Three answers to the same queries: stay put, a chain of classical flow, and a chain of the course's RAFT-small.

# %%
raft = load_raft()
learned = remembered(lambda image1, image2: raft.estimate(image1, image2, 12).full)
trackers = {
    "stay put": stay_put,
    "chained iLK": partial(chained_flow, estimate_flow=classical),
    "chained RAFT": partial(chained_flow, estimate_flow=learned),
}
answers = {name: tracker(video, queries) for name, tracker in trackers.items()}
scores = {name: tap_vid_metrics(p, truth, queries, (H, W)) for name, p in answers.items()}
print(f"{'mode first':>14}    AJ  δ_avg    OA")
for name, score in scores.items():
    print(f"{name:>14}", *(f"{value:.3f}" for value in score[:3]))

# %% tags=["figure"]
INK = dict(zip(trackers, (COLOURS["muted"], COLOURS["first"], COLOURS["second"]), strict=True))


def draw_scores():
    figure, axes = canvas(1, 3, 7.6, 2.6, sharey=True)
    names = ("share δ_k", "Jaccard J_k")
    for each, name, values in zip(axes, names, ("within", "jaccard"), strict=False):
        for (tracker, score), mark in zip(scores.items(), "^os", strict=True):
            shares = getattr(score, values)
            each.plot(range(5), shares.values(), mark + "-", color=INK[tracker], label=tracker)
        each.set(title=name, xlabel="k (px at 256 × 256)", xticks=range(5), ylim=(0, 1))
        each.set_xticklabels(THRESHOLDS)
    for place, (tracker, score) in enumerate(scores.items()):
        axes[2].bar(np.arange(3) + 0.25 * place, score[:3], 0.22, color=INK[tracker])
    axes[2].set(title="averages", xticks=np.arange(3) + 0.25)
    axes[2].set_xticklabels(["AJ", "δ_avg", "OA"])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


show(
    draw_scores(),
    alt="The share within k pixels and the Jaccard of the three baselines against k, and their "
    "averages: the chains are far above staying put in place, and below it in occlusion accuracy",
)

# %% [markdown]
# Classical flow wins on this clip, whose motion is small. In occlusion accuracy both chains lose to never saying "hidden". How wrong is one step? Read each flow at the true places, where the point is visible before and after, and compare it with the true step:

# %%
both = (truth.visible()[:, 1:] & truth.visible()[:, :-1])[0]
steps = truth.points[0].diff(dim=0)
print(f"a true step is {steps[both].norm(dim=-1).median():.2f} px long (median)")
for name, estimate_flow in {"iLK": classical, "RAFT": learned}.items():
    moved = []
    for t in range(T - 1):
        flow = estimate_flow(video[:, t], video[:, t + 1])
        moved.append(sample(flow, truth.points[:, t])[0].T)
    misses = (torch.stack(moved) - steps)[both]
    print(f"{name:>5}: off by {misses.norm(dim=-1).median():.3f} px (median)")

# %% [markdown]
# On one pair of frames nobody would see either error. 23 steps add them up.
#
# ### Drift, and death
#
# The error of each point over time; a line turns dotted when its chain is broken.


# %% tags=["figure"]
def draw_drift():
    figure, axes = canvas(1, 2, 6.6, 2.6, sharey=True)
    for each, name in zip(axes, ("chained iLK", "chained RAFT"), strict=True):
        misses = (answers[name].points - truth.points)[0].norm(dim=-1)
        seen = answers[name].visible()[0]
        for n in range(misses.shape[1]):
            ink = COLOURS["query"] if hidden[0, n] else COLOURS["muted"]
            each.semilogy(misses[:, n].clamp(min=0.02), ":", color=ink, linewidth=1)
            alive = int(seen[:, n].sum())
            each.semilogy(misses[:alive, n].clamp(min=0.02), color=ink)
            each.plot(alive - 1, misses[alive - 1, n].clamp(min=0.02), "o", color=ink, ms=3)
        each.set(title=f"{name}: {int(seen[-1].sum())} of 8 alive at the end", xlabel="frame t")
    axes[0].set_ylabel("distance from truth (px)")
    axes[1].plot([], [], color=COLOURS["query"], label="hidden or outside for a while")
    axes[1].plot([], [], color=COLOURS["muted"], label="never hidden")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


show(
    draw_drift(),
    alt="The distance of each point from the truth against time, on a logarithmic axis, for both "
    "chains: a slow rise, faster for RAFT, and a jump of the points that the cat hides",
)

# %% [markdown]
# Two failures of different kinds. **Drift** (漂移): each step adds its own small error, and nothing corrects the sum, since the chain never looks at the query again. **Death**: when the cat covers a point, the flow at that place becomes the cat's, and the chain rides away on it. The dot is where the round trip noticed. Some chains break with nothing in the way: there a flow was wrong.

# %% tags=["figure"]
chain = answers["chained iLK"]
show(
    draw_trails(chain, "chained flow"),
    alt="The four frames with the tracks of chained flow: points that the cat has covered move "
    "along with it, as rings, to the right",
    photo=True,
)

# %% [markdown]
# Compare with the first figure. Every ring that moves along with the cat belongs to the motorcycle. A tracker does better by two means, which the next lessons build: it compares each frame with the *query*, and not with the frame before, and it looks at many frames, and many points, together.
#
# ### Strided
#
# The same tracks, asked again in every fifth frame, with the frames before the query:

# %%
print(f"{'mode strided':>14}    AJ  δ_avg    OA")
for name, tracker in trackers.items():
    score = tap_vid_metrics(tracker(video, many), repeated, many, (H, W), mode="strided")
    print(f"{name:>14}", *(f"{value:.3f}" for value in score[:3]))

# %% [markdown]
# Two things have changed. A query is now nearer in time to many of the frames that count, and a point that was lost at the cat is asked for again after it. That helps. But such a query also has to answer for the frames before the cat, which a chain that runs backward into the cat does not reach; that hurts. Here RAFT's chain gains and the classical one loses. So strided numbers cannot be compared with those of mode first.
#
# ### The palindrome
#
# The pairs of frames in the second half are those of the first half, seen backward: no new flow is needed.

# %%
homes = {name: palindrome_error(tracker, video, queries) for name, tracker in trackers.items()}
for name, h in homes.items():
    print(f"{name:>14}: palindrome error, median of the points {h.median():.2f} px")


# %% tags=["figure"]
def draw_palindrome(name="chained iLK"):
    way = trackers[name](there_and_back, queries).points[0]
    figure, (picture, chart) = canvas(1, 2, 7.0, 2.6)
    picture.imshow(to_picture(video[:, 0].squeeze(0)))
    for n in range(way.shape[1]):
        ink = COLOURS["query"] if hidden[0, n] else "white"
        picture.plot(*way[:T, n].T, color=ink, linewidth=0.8)
        picture.plot(*way[T - 1 :, n].T, ":", color=ink, linewidth=1)
        picture.plot(*way[0, n], "o", color=ink, ms=4, mec="black", mew=0.5)
        picture.plot(*way[-1, n], "x", color=ink, ms=5)
    picture.set(xlim=(-0.5, W - 0.5), ylim=(H - 0.5, -0.5), xlabel="x (px)", ylabel="y (px)")
    picture.set_title("there (line), back (dots), home (cross)")
    for tracker, mark in zip(("chained iLK", "chained RAFT"), "os", strict=True):
        far = (answers[tracker].points - truth.points)[0, T - 1].norm(dim=-1)
        chart.loglog(far, homes[tracker][0], mark, color=INK[tracker], label=tracker)
    chart.plot([0.3, 200], [0.3, 200], color=COLOURS["muted"], linewidth=0.8)
    chart.set(xlabel="distance from truth in the middle (px)", ylabel="palindrome error h (px)")
    chart.legend()
    return figure


show(
    draw_palindrome(),
    alt="Left, the ways of eight points there and back on the first frame, with the ends of those "
    "the cat covered far from their starts; right, the palindrome error against the distance from "
    "the truth in the middle frame, larger together",
    photo=True,
)

# %% [markdown]
# Points that are far from home were, most of them, far from the truth. The reverse does not hold: a point can be lost and come home (right chart, below the line), and staying put comes home always. By the median above, RAFT's chain looks better than the classical one, and the truth says otherwise: an error that is the same there and back, such as a flow that is always a little short, undoes itself on the way home. So the palindrome finds failures where nobody has labelled anything, and proves no success.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `share_within` | 5 | ●○○ |
# | `jaccard` | 10 | ●●○ |
# | `follow` | 10 | ●●○ |
# | `palindrome_error` | 10 | ●●○ |
#
# <details><summary>Hint for <code>share_within</code></summary>
#
# Comparisons of tensors give bool tensors, `&` joins them, and `sum(dim=(1, 2))` counts over frames and points and keeps the videos apart.
#
# </details>
#
# <details><summary>Hint for <code>jaccard</code></summary>
#
# Let `near` be visible and close at once. True positives are `near & shown`. Everything shown that is not near is a false positive. You need no false negatives: with the true positives they are all that is visible.
#
# </details>
#
# <details><summary>Hint for <code>follow</code></summary>
#
# `sample` takes (B, 2, H, W) and (B, N, 2) and gives (B, 2, N). The flow back is read at `end`. `inside` wants a grid (B, H, W, 2): `end[:, None]` is one of height 1.
#
# </details>
#
# <details><summary>Hint for <code>palindrome_error</code></summary>
#
# `video[:, :-1].flip(1)` leaves out the middle frame, which would come twice. `points[b, mirror[b, n], n]` is what you want for all b and n: `gather`, or indexing with three index tensors.
#
# </details>
#
# **Predict.** A tracker places all points exactly and says "seen" always. In a clip where a quarter of the flags that count are "hidden", what are its $\delta_{\mathrm{avg}}$, $\mathrm{OA}$ and $\mathrm{AJ}$?
#
# <details><summary>Hint</summary>
#
# Let there be 100 pairs of frame and point that count. How many are true positives, how many false positives?
#
# </details>
#
# <details><summary>Answer</summary>
#
# $\delta_{\mathrm{avg}} = 1$, since only visible points are asked. $\mathrm{OA} = 0.75$. There are 75 true positives and 25 false ones, so $J_k = 75 / (75 + 25) = 0.75$ for every $k$, and so is $\mathrm{AJ}$. The next cell asks the same of this clip.
#
# </details>

# %%
always = Tracks(truth.points, torch.ones_like(truth.visibility))
score = tap_vid_metrics(always, truth, queries, (H, W))
share = truth.visible()[:, 1:].float().mean().item()
print(f"truly visible: {share:.3f};", *(f"{value:.3f}" for value in score[:3]))
assert math.isclose(score.average_jaccard, share, rel_tol=1e-6)

# %% [markdown]
# **Vary.** The chain never takes a point back. Let the flag of each step stand alone, and see what happens to the occlusion accuracy and to AJ.
#
# <details><summary>Hint</summary>
#
# In `chained_flow_loop`, drop the factor `seen[:, t, n]`.
#
# </details>


# %%
def forgiving(video, queries, estimate_flow):
    """As chained_flow_loop, with the flag of the last step alone."""
    tracks = chained_flow(video, queries, estimate_flow)
    seen = tracks.visibility.clone()
    for t in range(T - 1):
        images = video[:, t], video[:, t + 1]
        flows = estimate_flow(*images), estimate_flow(*images[::-1])
        seen[:, t + 1] = follow(tracks.points[:, t], *flows)[1].float()
    return tracks._replace(visibility=seen)


for name, answer in {"final": chain, "forgiving": forgiving(video, queries, classical)}.items():
    score = tap_vid_metrics(answer, truth, queries, (H, W))
    print(f"{name:>10}: AJ {score.average_jaccard:.3f}, OA {score.occlusion_accuracy:.3f}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# The cell above prints both. The flags alone look better: a lost point is called visible, and mostly it is, somewhere. The Jaccard asks where. A lost point that is shown is a false positive on top of the false negative.
#
# </details>
#
# **Find the bug.** Someone wants one number in pixels and writes this. It makes every tracker look better than it is, and one part of the answer decides it almost alone. What are the two faults?


# %%
def mean_error(predicted, truth):
    visible = truth.visible()[..., None]
    return (predicted.points * visible - truth.points * visible).norm(dim=-1).mean()


for name, answer in answers.items():
    print(f"{name:>14}: {mean_error(answer, truth):.1f} px")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which entries does `mean()` average over? And which points make up most of the sum?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Hidden entries are set to zero and then counted, which lowers the number by the share of hidden points. And a mean of distances is ruled by the few points that are lost: one that rides away by 90 px weighs as much as hundreds that are half a pixel off. Shares within thresholds are not ruled by them; that is why the field counts shares.
#
# </details>

# %% [markdown]
# ## What breaks
#
# ### Time and points confused
#
# Some files keep tracks as (B, N, T, 2), points before time. Where the numbers differ, the shapes give it away. With as many points as frames nothing does, and the score is of something else:

# %%
wrong = Tracks(chain.points.transpose(1, 2), chain.visibility.transpose(1, 2))
with shows_error(ValueError):
    tap_vid_metrics(wrong, truth, queries, (H, W))
square = Tracks(truth.points[:, :8], truth.visibility[:, :8])
swapped = Tracks(square.points.transpose(1, 2), square.visibility.transpose(1, 2))
score = tap_vid_metrics(swapped, square, queries, (H, W))
print(f"the truth with its axes swapped: δ_avg {score.average_within:.3f}")

# %% [markdown]
# ### Pixels of the wrong frame
#
# The thresholds are pixels of a 256 × 256 frame. The function scales, so it must know whose pixels it gets. The same tracks, if their size is said wrongly:

# %%
for size in ((H, W), (256, 256), (2 * H, 2 * W)):
    score = tap_vid_metrics(chain, truth, queries, size)
    print(f"size {size}: δ_avg {score.average_within:.3f}, AJ {score.average_jaccard:.3f}")

# %% [markdown]
# So a user who counts the thresholds in pixels of large frames gets worse numbers than the paper, and one who counts them in pixels of small frames gets better ones.
#
# ### A batch of two
#
# The released evaluation divides by the frames that count in the whole batch. For two copies of this clip:


# %%
def twice(tracks):
    return Tracks(*(torch.cat([values, values]) for values in tracks[:2]))


right = ((chain.visible() == truth.visible()) & counted).sum().item()
score = tap_vid_metrics(twice(chain), twice(truth), torch.cat([queries, queries]), (H, W))
print(f"divided by the whole batch: {right / (2 * counted.sum().item()):.3f}")
print(f"divided by each video: {score.occlusion_accuracy:.3f}")

# %% [markdown]
# ### Whole numbers
#
# Query points often come from a mouse or an annotation as whole numbers, and a tensor of whole numbers would round every place that is computed from it. Users of the release have met this as a wrong y in the query's own frame (issue 103 of its repository). Here it is refused:

# %%
with shows_error(TypeError):
    stay_put(video, queries.long())
with shows_error(TypeError):
    stay_put(video.byte(), queries)

# %% [markdown]
# ### Other bad input

# %%
with shows_error(ValueError):
    stay_put(video, queries[:, :0])
with shows_error(ValueError):
    stay_put(video, queries + torch.tensor([T, 0.0, 0.0]))
with shows_error(ValueError):
    stay_put(video, queries[..., [0, 2, 1]] + torch.tensor([0.0, 0.0, 20.0]))
with shows_error(ValueError):
    tap_vid_metrics(chain, truth, queries, (H, W), mode="last")
with shows_error(ValueError):
    tap_vid_metrics(chain._replace(visibility=10 * chain.visibility - 5), truth, queries, (H, W))
with shows_error(ValueError):
    chain.visible(0.6, with_confidence=True)
with shows_error(ValueError):
    chained_flow(video[:, :2], queries, lambda image1, image2: image1)

# %% [markdown]
# ## Recap
#
# - A track is a place and a visibility in every frame; a query is (frame, x, y), and the tensors are (B, T, N, …).
# - $\delta_k$ asks where, $\mathrm{OA}$ asks whether, the Jaccard asks both at once; all in pixels of 256 × 256, after the query (first) or all but its frame (strided).
# - Staying put, and chained flow, which drifts and dies at occlusions, are what a tracker has to beat; the palindrome finds failures without a label.
#
# The line goes on in [lesson 3](3_features.ipynb), which reads the features of the query's own frame, so that every frame can be compared with it.
