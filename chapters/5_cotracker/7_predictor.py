# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 55
#     needs:
#     - 5_cotracker/2_tracks
#     - 5_cotracker/6_cotracker
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Predictor: points of your own video
#
# **After this lesson you can** track points, grids or every pixel through a video of your own, from any of its frames forward and backward, all at once or while the video arrives, and say beforehand whether they fit into memory.
#
# *Before this*, of this chapter: the [tracks](2_tracks.ipynb) (`2_tracks`) and the [whole model](6_cotracker.ipynb) (`6_cotracker`). *Time:* 55 minutes, and 35 for the blanks.

# %% [markdown]
# ## Words
#
# The model of lesson 6 takes frames of one size and points of its own pixels, and is at its best from a point's query onward. People have videos of any size and want a point in all frames. The **predictor** (预测器) stands between them.
#
# It **resizes** (缩放) the video, and multiplies every place by the same **factors** $s$. It tracks a few **support points** (辅助点) with the user's **queries** $q$ (查询点), because tracks are found jointly and one point alone is poor company: a grid $g$ of $n$ points a side with a **margin** $m$ around it. It finds the part of a **track** $p$ that lies before its query by playing the video backward, as the track $b$. At a query's own frame nothing has to be found, so the answer there is the question, with **visibility** $v = 1$.
#
# All of that needs the whole video. The **online** (在线) predictor takes frames as they come. Of $k$ frames that were pushed, the first $F$ are **final**: no later window will change them. It forgets what no window needs any more, so its memory does not grow with the video.
#
# How many points fit into memory? Take the free **memory** $M$, subtract $\phi$ bytes for the features of each frame, and divide by the $\mu$ bytes that a point needs.

# %% [markdown]
# ## Figure
#
# ### Who is tracked
#
# A walker passes in front of a bicycle while the camera pans a little. The shot is part of a film that comes with an installed package; the right part of the frame is kept.

# %%
import json
import math
import os
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from matplotlib.patches import Rectangle
from torch import Tensor

from fourfold.bilinear_sampling.sampling import _check_floating
from fourfold.cotracker.cotracker import (
    CoTracker,
    Estimate,
    as_tracks,
    load_cotracker,
    overwritten,
    window_starts,
)
from fourfold.cotracker.features import STRIDE
from fourfold.cotracker.predictor import (
    OnlinePredictor,
    Predictor,
    at_frame,
    bytes_per_frame,
    bytes_per_point,
    dense_points,
    final_frames,
    grid_points,
    released_visible,
    resize_points,
    resize_video,
)
from fourfold.cotracker.tracks import Tracks, _check_queries, _check_video
from fourfold.kit.arguments import check_tensor, whole_number
from fourfold.kit.drawing import COLOURS, canvas, show, to_picture
from fourfold.kit.notebook import progress_bar, shows_error
from fourfold.kit.track_picture import draw_trails, track_picture
from fourfold.kit.video import bundled_clip, clip_credit, read_video
from fourfold.raft.raft import _check_values

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
shot = read_video(bundled_clip("bikes"), start=187, frames=55)[..., 180:543]
clip = shot[::3].float()[None]
T, size = clip.shape[1], tuple(clip.shape[3:])
asked = [(0, 96, 60), (0, 150, 190), (0, 290, 130), (9, 60, 235), (15, 205, 160)]
queries = torch.tensor([asked], dtype=torch.float32)
print("shot", tuple(shot.shape), "clip", tuple(clip.shape), "queries", tuple(queries.shape))
print(clip_credit("bikes"))

# %%
predictor = Predictor(course, iterations=4)
tracks = predictor(clip, queries, backward=True)
print("points", tuple(tracks.points.shape), f"found on frames of {predictor.resolution}")


# %% tags=["figure"]
def draw_company(t=12):
    small = predictor.resolution
    support = resize_points(grid_points(6, small), small, size)
    around = grid_points(8, (50, 50), resize_points(queries[0, 0, 1:], size, small).tolist())
    around = resize_points(around, small, size)
    figure, (left, right) = canvas(1, 2, 7.6, 3.0)
    left.imshow(to_picture(clip[0, 0]))
    left.plot(*support.T, "o", color="white", mec="black", mew=0.5, ms=4, label="grid g, n = 6")
    left.plot(*around.T, ".", color=COLOURS["good"], ms=2, label="local grid g, n = 8")
    left.plot(
        *queries[0, :3, 1:].T, "o", color=COLOURS["query"], mec="white", ms=6, label="query q"
    )
    margin = support[0, 0].item()
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    left.annotate("margin m", (0, 20), (24, 20), size=7.5, va="center", bbox=box)
    left.plot([0, margin], [20, 20], color=COLOURS["bad"], linewidth=3)
    left.legend(loc="lower left", fontsize=7)
    left.set_title(f"frame 0, resized by factors s to {small[1]} × {small[0]}")
    draw_trails(right, clip[0, t], tracks.points[0], tracks.visible()[0], t, tail=t, size=6)
    right.set_title(f"frame {t}: track p of each query")
    for axes in (left, right):
        axes.set_axis_off()
    return figure


show(
    draw_company(),
    alt="Left, the first frame with three queries, a support grid of 6 × 6 points that leaves a "
    "margin, and a small local grid of 8 × 8 points around one query; right, a later frame with "
    "the tracks of five queries",
    photo=True,
)

# %% [markdown]
# White and green points help and are thrown away. Two of the five queries have not come yet in frame 0.
#
# ### When it is tracked
#
# The same run over time. The rows above are the queries, those below the windows of the model, as many frames long as they are drawn.


# %% tags=["figure"]
def draw_times():
    S, starts = course.window, list(window_starts(T, course.window))
    figure, axes = canvas(1, 1, 7.2, 3.2)
    for row, (frame, *_) in enumerate(asked):
        first = row == 4
        axes.plot([frame, T - 1], [row, row], color=COLOURS["flow"], label="track p" * first)
        if frame:
            axes.plot(
                [0, frame - 1], [row, row], ":", color=COLOURS["bad"], label="track b" * first
            )
        said = "query q, visibility v = 1" * first
        axes.plot(frame, row, "o", color=COLOURS["query"], label=said)
    for k, w in enumerate(starts):
        box = Rectangle((w - 0.4, 5.4 + 0.7 * k), S - 0.2, 0.5, facecolor="0.85", edgecolor="0.4")
        axes.add_patch(box)
        final = Rectangle((w - 0.4, 5.4 + 0.7 * k), S // 2 - 0.2, 0.5, facecolor="0.6")
        axes.add_patch(final)
    axes.text(0, 5.65, f"window S = {S}", size=7.5, va="center")
    axes.text(8, 5.65, "a window's dark half is final when it is done", size=7.5, va="center")
    axes.set(xlim=(-0.8, T + 0.5), ylim=(5.9 + 0.7 * len(starts), -0.8), xlabel="frame t")
    axes.set(
        xticks=range(0, T, 3), yticks=range(5), yticklabels=[f"query {row}" for row in range(5)]
    )
    axes.axvline(T - 0.5, color="0.4", linewidth=0.8)
    axes.legend(loc="lower left", fontsize=7)
    return figure


show(
    draw_times(),
    alt="A chart over the frames: each query is a dot with a line to the last frame and, where it "
    "is not in frame 0, a dotted line back to frame 0; below, windows of 8 frames, one every "
    "4 frames, their first halves dark",
)

# %% [markdown]
# Solid lines are found in the video, dotted ones in the reversed video. The windows run to the right in the first case and to the left in the second. The last window reaches beyond the clip, whose last frame stands in for the frames that are missing.
#
# ## Formula
#
# A grid has $n \times n$ points around a centre $c$. It covers $H \times W$ pixels, with a margin of $m$ pixels on all four sides; row $i$ and column $j$ of it is
#
# $$ g_{ij} = c + \left( \Big(\tfrac{j}{n-1} - \tfrac12\Big)(W - 2m),\; \Big(\tfrac{i}{n-1} - \tfrac12\Big)(H - 2m) \right), \qquad m = \tfrac{W}{64} \tag{1} $$
#
# Resizing a frame from $H \times W$ to $H' \times W'$ keeps the centres of the corner pixels in the corners, so a place is multiplied, coordinate by coordinate, by
#
# $$ s = \left( \frac{W' - 1}{W - 1},\; \frac{H' - 1}{H - 1} \right) \tag{2} $$
#
# Let $b$ be the track that the model finds in the reversed video, for the query $q = (T - 1 - t_q,\, x,\, y)$. It is put in front of the track that was found forward:
#
# $$ p_t \leftarrow b_{T-1-t} \quad \text{where } t < t_q \tag{3} $$
#
# and the query's own frame is what was asked:
#
# $$ p_{t_q} = (x, y), \qquad v_{t_q} = 1 \tag{4} $$
#
# $N$ points that are tracked jointly through $T$ frames take at most
#
# $$ M = \phi\, T + \mu\, N \ \text{bytes} \tag{5} $$
#
# Online, a window of $S$ frames begins every $S/2$ frames. When $k \ge S$ frames have come, $\lfloor (k - S) / (S/2) \rfloor + 1$ windows have run, and each of them settles half a window:
#
# $$ F = \frac{S}{2} \left( \left\lfloor \frac{k - S}{S/2} \right\rfloor + 1 \right) \tag{6} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $q$ | query: frame, x, y | (B, N, 3), px of the video | `queries` | query q |
# | $g$ | grid of support points | (n², 2), px | `grid_points` | grid g |
# | $n$ | points a side | whole number | `count` | n = 6 |
# | $m$ | margin around a grid | px | `margin` | margin m |
# | $s$ | factors of resizing, in x and y | (2,) | `factors` | factors s |
# | $p$ | track: the place in every frame | (B, T, N, 2), px of the video | `points` | track p |
# | $b$ | track in the reversed video | (B, T, N, 2), px | `reverse` | track b |
# | $v$ | visibility, a probability | (B, T, N) | `visibility` | visibility v |
# | $M$ | memory | bytes | `memory` | memory M |
# | $\phi$ | memory for the features of a frame | bytes | `bytes_per_frame` | bytes φ of a frame |
# | $\mu$ | memory for a point | bytes | `bytes_per_point` | bytes μ of a point |
# | $S$ | frames of a window | whole number | `window` | window S |
# | $k$ | frames that were pushed | whole number | `seen` | pushed frames k |
# | $F$ | frames that are final | whole number | `final_frames` | final frames F |
#
# Letters of shapes: $B$ videos, $T$ frames, $N$ points, $H$ and $W$ the size of a frame; $t_q$ is the frame of a query, $c$ the centre of a grid.

# %% [markdown]
# ## Code
#
# ### Grids
#
# Equation 1 as it reads, point by point:


# %%
def grid_loop(n, size, centre):
    H, W = size
    m = W / 64
    rows, columns = range(n), range(n)
    return torch.tensor(
        [
            (
                centre[0] + (j / (n - 1) - 0.5) * (W - 2 * m),
                centre[1] + (i / (n - 1) - 0.5) * (H - 2 * m),
            )
            for i in rows
            for j in columns
        ]
    )


print(grid_loop(3, (96, 128), (64, 48)).tolist())


# %% tags=["promote", "exercise"]
def grid_points(
    count: int, size: tuple[int, int], centre: Sequence[float] | None = None
) -> Float[Tensor, "N 2"]:
    """A square number of points, spread evenly over an image (equation 1 of the lesson).

    count    n, points a side; a single one is put in the middle
    size     (H, W) in pixels of what they cover; W / 64 of them stay free on every side
    centre   (x, y) of what they cover; that of the image, (W / 2, H / 2), when left out
    returns  (n², 2) as (x, y), row by row

    Raises ValueError for a count that is no whole number of 1 or more.

    Convention: x to the right, y down, the centre of the top-left pixel at (0, 0).
    Source: the CoTracker release.
    """
    whole_number("count", count, least=1)
    H, W = size
    x, y = (W / 2, H / 2) if centre is None else centre
    if count == 1:
        return torch.tensor([[x, y]], dtype=torch.float32)
    margin = W / 64
    across = torch.linspace(margin - W / 2 + x, W / 2 - margin + x, count)
    down = torch.linspace(margin - H / 2 + y, H / 2 - margin + y, count)
    rows, columns = torch.meshgrid(down, across, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)


# %% tags=["check"]
for n, extent, centre in ((3, (96, 128), (64, 48)), (8, (50, 50), (300.5, 120))):
    expected = grid_loop(n, extent, centre)
    assert grid_points(n, extent, centre).shape == (n * n, 2), "n² points of (x, y)"
    assert (grid_points(n, extent, centre) - expected).abs().max() < 1e-4, "not equation 1"
assert torch.equal(grid_points(3, (96, 128)), grid_points(3, (96, 128), (64, 48))), (
    "without a centre: (W / 2, H / 2)"
)
assert grid_points(1, (96, 128)).tolist() == [[64, 48]], "one point stands in the middle"

# %% [markdown]
# A blemish of the release is kept, so that its numbers come out: the centre of an image of $W$ pixels is $(W-1)/2$, not $W/2$, if pixel centres are whole numbers. So the grid lies half a pixel to the right and low. The margin is $W/64$ above and below too.
#
# Support points come in two kinds. A **global** grid covers the frame in frame 0. A **local** grid of 50 pixels surrounds the query in the query's frame, for queries that are tracked one by one.


# %% tags=["promote"]
def at_frame(frame: float, points: Float[Tensor, "*N 2"]) -> Float[Tensor, "*N 3"]:
    """Queries (frame, x, y) for points (x, y) of one frame.

    >>> at_frame(3, torch.tensor([[10.0, 20.0]])).tolist()
    [[3.0, 10.0, 20.0]]
    """
    return torch.cat([torch.full_like(points[..., :1], frame), points], dim=-1)


_LOCAL = (50, 50)  # pixels of the resized frame that a local grid covers


def support_points(
    queries: Float[Tensor, "B N 3"], size: tuple[int, int], support: int, local: int = 0
) -> Float[Tensor, "B K 3"]:
    """Queries to track along with others (equation 1 of the lesson).

    queries  (B, N, 3) in pixels of the resized frames, N = 1 where `local` is not 0
    size     (H, W) of the resized frames
    support  points a side of a grid over frame 0; 0 for none
    local    points a side of a grid of 50 pixels around the query, in its frame; 0 for none
    returns  (B, local² + support², 3)

    A local grid may reach beyond the frame, whose border is repeated there, as in the release.
    """
    added = [queries[:, :0]]
    if local:
        around = [
            at_frame(frame, grid_points(local, _LOCAL, centre))
            for frame, *centre in queries[:, 0].tolist()
        ]
        added.append(torch.stack(around).to(queries))
    if support:
        over = at_frame(0.0, grid_points(support, size)).to(queries)
        added.append(over.expand(len(queries), -1, -1))
    return torch.cat(added, dim=1)


# %% tags=["check"]
helpers = support_points(queries[:, :1], (192, 256), support=6, local=8)
assert helpers.shape == (1, 64 + 36, 3)
assert (helpers[:, :64].mean(dim=1) - queries[:, 0]).abs().max() < 1e-3, "local: around the query"
assert torch.equal(helpers[0, 64:], at_frame(0.0, grid_points(6, (192, 256)))), "global: frame 0"

# %% [markdown]
# **Dense** (稠密) means a query for every pixel of a frame, or for every few.


# %% tags=["promote"]
def dense_points(size: tuple[int, int], step: int = 1) -> Float[Tensor, "N 2"]:
    """Every step-th pixel of a frame of `size` (H, W), row by row, as (x, y).

    >>> dense_points((2, 3)).tolist()
    [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]

    Raises ValueError for a step that is no whole number of 1 or more.
    """
    step = whole_number("step", step, least=1)
    rows, columns = (torch.arange(0, side, step, dtype=torch.float32) for side in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)


# %%
for step in (1, 4):
    print(f"every {step}. pixel of {size}: {len(dense_points(size, step)):,} points")

# %% [markdown]
# ### Resizing, and where the points go
#
# Two rules for resizing are common. One keeps the outer *edges* of the picture in place, the other, used here and named `align_corners=True` in torch, the *centres* of the corner pixels. Each has its own rule for points. A bright dot shows which: draw it, resize the frame, and find its centre again.


# %%
def dot(x, y, size):
    """A frame (1, 1, 3, H, W) with a soft dot whose centre is at (x, y)."""
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in size)
    squares = (columns - x) ** 2 + (rows[:, None] - y) ** 2
    return (255 * torch.exp(-squares / 50)).expand(1, 1, 3, -1, -1)


def centre_of(frame):
    """The centre of what is bright in a frame, as (x, y)."""
    weight = frame[0, 0, 0]
    y, x = (torch.arange(side, dtype=torch.float32) for side in weight.shape)
    return torch.stack([(weight.sum(0) * x).sum(), (weight.sum(1) * y).sum()]) / weight.sum()


print("the dot is at", [round(value, 3) for value in centre_of(dot(40, 50, (96, 128))).tolist()])


# %% tags=["promote"]
def resize_video(
    video: Float[Tensor, "B T 3 H W"], size: tuple[int, int]
) -> Float[Tensor, "B T 3 h w"]:
    """Frames of another size (H, W); the centres of the corner pixels stay in the corners.

    Values are interpolated between the four nearest pixels. Frames that become much smaller lose
    what lies between those: average them down first (`kit.images.area_average`).
    """
    if tuple(video.shape[3:]) == tuple(size):
        return video
    frames = video.flatten(0, 1)
    resized = F.interpolate(frames, tuple(size), mode="bilinear", align_corners=True)
    return resized.unflatten(0, video.shape[:2])


# %% tags=["promote", "exercise"]
def resize_points(
    points: Float[Tensor, "*N 2"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "*N 2"]:
    """Where points of a frame are when it has been resized by `resize_video` (equation 2).

    points    (*N, 2) as (x, y), in pixels of the old size
    old, new  (H, W) in pixels; a side of one pixel keeps its place, 0

    >>> resize_points(torch.tensor([[127.0, 95.0]]), (96, 128), (192, 256)).round().tolist()
    [[255.0, 191.0]]

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    (H, W), (new_H, new_W) = old, new
    factors = [(new_W - 1) / max(W - 1, 1), (new_H - 1) / max(H - 1, 1)]
    return points * points.new_tensor(factors)


# %% tags=["check"]
corners = torch.tensor([[0.0, 0.0], [127.0, 95.0]])
moved = resize_points(corners, (96, 128), (72, 100))
assert torch.allclose(moved, torch.tensor([[0.0, 0.0], [99.0, 71.0]])), "corners stay corners"
assert torch.allclose(resize_points(moved, (72, 100), (96, 128)), corners), "and back again"
place = torch.tensor([90.0, 30.0])
found = centre_of(resize_video(dot(*place, (96, 128)), (192, 256)))
assert (found - resize_points(place, (96, 128), (192, 256))).abs().max() < 0.05, "the dot's place"
assert resize_points(torch.zeros(1, 2), (1, 1), (4, 4)).tolist() == [[0, 0]], "one pixel: 0"

# %% [markdown]
# What if the points are multiplied by $W'/W$ instead? It looks right, and is what most people write first:


# %%
def draw_resizing(old=(96, 128), new=(192, 256)):
    figure, axes = canvas(1, 1, 5.6, 2.4)
    places = torch.arange(24.0, old[1] - 23, 8)
    ratio = new[1] / old[1]
    found = [centre_of(resize_video(dot(x, 48, old), new))[0] for x in places.tolist()]
    found = torch.stack(found)
    right = resize_points(torch.stack([places, places], dim=-1), old, new)[:, 0]
    for mark, name, values in (
        ("o-", "times (W'−1)/(W−1)", right),
        ("s--", "times W'/W", places * ratio),
    ):
        axes.plot(places, values - found, mark, ms=3, label=name)
    axes.set(xlabel="x in a frame of 128 px", ylabel="off in a frame of 256 px (px)")
    axes.legend()
    return figure


show(
    draw_resizing(),
    alt="How far the two rules put a point from where the resized dot is: zero for the first, a "
    "straight rise to one pixel at the right border for the second",
)

# %% [markdown]
# The error grows from nothing at the left border to $|1 - W'/W|$ pixels at the right. It comes back reversed when tracks are scaled to the user's size by $W/W'$, so a point that stays put ends where it was asked for, and nobody notices. In between, the model looks at the wrong place: the feature of a query near the right border is another pixel's.
#
# ### One encoding, many runs
#
# Backward tracking and points in several parts need the model more than once on the same frames. The features of a frame depend on that frame alone, so a video is encoded once; the reversed video has the same features in reverse order. How much is that worth?

# %%
small = resize_video(clip, (192, 256))
inside = torch.cat([queries[..., :1], resize_points(queries[..., 1:], size, (192, 256))], dim=-1)
with torch.no_grad():
    levels, alone = course.pyramid(small), course(small, inside, 4)
    encoding, whole = (
        min(timeit.repeat(call, number=1, repeat=2))
        for call in (lambda: course.pyramid(small), lambda: course(small, inside, 4))
    )
print(f"{T} frames: encoding {encoding / whole:.0%} of the time of a run with 5 points")


# %% tags=["promote"]
class EncodedVideo(NamedTuple):
    """What a predictor keeps of a video: it can be asked for points again and again.

    levels  L levels (B·T, h, w, C) of features
    batch   B videos
    frames  T of each
    size    (H, W) in pixels, before it was resized
    """

    levels: list[Float[Tensor, "F h w C"]]
    batch: int
    frames: int
    size: tuple[int, int]

    def rows(self, reverse: bool = False) -> Int[Tensor, "B T"]:
        """The row of the levels for each frame in turn; from the last to the first in reverse."""
        rows = torch.arange(self.batch * self.frames, device=self.levels[0].device)
        rows = rows.view(self.batch, self.frames)
        return rows.flip(1) if reverse else rows


# %% tags=["promote"]
def encode_video(
    model: CoTracker,
    frames: Iterable[Float[Tensor, "B 3 H W"]],
    resolution: tuple[int, int],
    tick: Callable[[int], object] | None = None,
) -> EncodedVideo:
    """Resize frames and keep their features; one frame is held at a time.

    frames      in [0, 255], all of one size
    resolution  (H, W) to which they are resized, multiples of 4
    tick        called with 1 after each frame

    Raises ValueError for no frame, frames that differ in size, and values outside [0, 255].
    """
    kept: list[list[Tensor]] = [[] for _ in range(model.sizes.levels)]
    shape = None
    for t, frame in enumerate(frames):
        shape = frame.shape if shape is None else shape
        if len(shape) != 4 or shape[1] != 3 or frame.shape != shape or 0 in shape:
            expected = "(3, H, W)" if t == 0 else f"{tuple(shape[1:])}, as frame 0"
            raise ValueError(
                f"frame {t} of video has shape {tuple(frame.shape[1:])}; expected {expected}"
            )
        _check_values(f"frame {t} of video", frame)
        new = model.pyramid(resize_video(frame[:, None], resolution))
        for level, features in zip(kept, new, strict=True):
            level.append(features)
        if tick is not None:
            tick(1)
    if shape is None:
        raise ValueError("video has no frame; expected one or more")
    levels = [torch.stack(kept.pop(0), dim=1).flatten(0, 1) for _ in range(len(kept))]
    return EncodedVideo(levels, shape[0], t + 1, tuple(shape[2:]))


# %% tags=["check"]
with torch.no_grad():
    streamed = encode_video(course, iter(clip.unbind(1)), (192, 256))
assert streamed[1:] == (1, T, size)
assert all((a - b).abs().max() < 1e-3 for a, b in zip(streamed.levels, levels, strict=True))

# %% [markdown]
# The loop of lesson 6 over the windows then needs no video:


# %% tags=["promote"]
def track_encoded(
    model: CoTracker,
    video: EncodedVideo,
    queries: Float[Tensor, "B N 3"],
    iterations: int = 6,
    *,
    reverse: bool = False,
    tick: Callable[[int], object] | None = None,
) -> Tracks:
    """What `model` finds in a video that has been encoded, all queries jointly.

    queries  (B, N, 3) as (frame, x, y), in pixels of the resized frames
    reverse  play the video backward; frames of queries and tracks are counted from its end
    tick     called after each window with the number of frames that it was first to reach

    Raises ValueError for a video of half a window or less.
    """
    T, rows = video.frames, video.rows(reverse)
    batch = torch.arange(video.batch, device=rows.device)[:, None]
    asked = rows[batch, queries[..., 0].long()]
    anchors = model.update.anchor(video.levels, asked, queries[..., 1:] / STRIDE)
    S, starts = (T, [0]) if model.whole_clip else (model.window, window_starts(T, model.window))
    whole = last = None
    for first in starts:
        here = (first + torch.arange(S, device=rows.device)).clamp(max=T - 1)
        last = model.track_window(
            video.levels, rows[:, here], first, queries, anchors, last, iterations
        )[-1]
        whole = overwritten(whole, first, last)
        if tick is not None:
            tick(min(first + S, T) - (first + S // 2 if first else 0))
    return as_tracks(whole, T)


# %% tags=["check"]
encoded = EncodedVideo(levels, 1, T, size)
with torch.no_grad():
    forward = track_encoded(course, encoded, inside, 4)
    flipped = torch.cat([T - 1 - inside[..., :1], inside[..., 1:]], dim=-1)
    reverse = track_encoded(course, encoded, flipped, 4, reverse=True)
    expected = course(small.flip(1), flipped, 4)
assert (forward.points - alone.points).abs().max() < 1e-3, "the model's own tracks"
assert (reverse.points - expected.points).abs().max() < 1e-3, "those of the reversed video"

# %% [markdown]
# ### Before the query
#
# The model answers for frames before a query too. In version 2 its training never asked about those frames, so the answer is a guess. Played backward, the video has them after the query. How far apart are the two answers?

# %%
before = torch.arange(T)[:, None] < queries[0, :, 0]
gap = (forward.points - reverse.points.flip(1))[0].norm(dim=-1)
print(
    f"before the query: {gap[before].mean():.1f} px apart (mean), after it: {gap[~before].mean():.1f} px"
)


# %% [markdown]
# Before the query it is the forward run that guesses, after it the backward run. So in either half one of the two answers is a guess, and each half should come from the run that was trained for it.


# %% tags=["promote", "exercise"]
def earlier_from(forward: Tracks, reverse: Tracks, queries: Float[Tensor, "B N 3"]) -> Tracks:
    """Take the frames before each query from the reversed video (equation 3 of the lesson).

    forward  tracks of T frames
    reverse  tracks of the same points, its frames counted from the video's last
    queries  (B, N, 3) as (frame, x, y)
    returns  Tracks; confidence is None where it was
    """
    T = forward.points.shape[1]
    t = torch.arange(T, device=queries.device)[:, None]
    earlier = t < queries[:, None, :, 0]
    points = torch.where(earlier[..., None], reverse.points.flip(1), forward.points)
    certainty = [
        None if now is None else torch.where(earlier, then.flip(1), now)
        for now, then in zip(forward[1:], reverse[1:], strict=True)
    ]
    return Tracks(points, *certainty)


# %% tags=["check"]
frame_numbers = torch.arange(5.0)[None, :, None].expand(1, 5, 2)
counting = Tracks(frame_numbers[..., None].expand(-1, -1, -1, 2), frame_numbers / 5)
backward_in_time = Tracks(100 + counting.points, 0.05 + counting.visibility)
asked_at = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
both = earlier_from(counting, backward_in_time, asked_at)
assert both.points[0, :, 0, 0].tolist() == [104, 103, 2, 3, 4], "b_{T−1−t} before frame 2, p after"
assert both.points[0, :, 1, 0].tolist() == [0, 1, 2, 3, 4], "nothing lies before frame 0"
assert torch.isclose(both.visibility[0, 0, 0], torch.tensor(0.85)), "visibility goes along"
assert both.confidence is None, "no confidence, none added"
sure = earlier_from(
    *(each._replace(confidence=each.visibility) for each in (counting, backward_in_time)), asked_at
)
assert torch.equal(sure.confidence, sure.visibility), "confidence goes along"


# %% tags=["promote"]
def track_both_ways(
    model: CoTracker,
    video: EncodedVideo,
    queries: Float[Tensor, "B N 3"],
    iterations: int = 6,
    tick: Callable[[int], object] | None = None,
) -> Tracks:
    """Track queries forward, and in the reversed video what lies before them (equation 3).

    Arguments, convention and errors are those of `track_encoded`.
    """
    flipped = torch.cat([video.frames - 1 - queries[..., :1], queries[..., 1:]], dim=-1)
    forward = track_encoded(model, video, queries, iterations, tick=tick)
    reverse = track_encoded(model, video, flipped, iterations, reverse=True, tick=tick)
    return earlier_from(forward, reverse, queries)


# %% [markdown]
# ### At the query
#
# The model also moves a point in its query's own frame. A user who clicked on a place finds the track some pixels off, so the release overwrites it (equation 4).


# %% tags=["promote", "exercise"]
def with_queries(tracks: Tracks, queries: Float[Tensor, "B N 3"]) -> Tracks:
    """At its own frame a point is where it was asked for, and certain (equation 4 of the lesson).

    tracks   in pixels of the frames that the queries are given in; left as they are
    queries  (B, N, 3) as (frame, x, y)
    returns  new Tracks; visibility, and confidence where there is one, are 1 there
    """
    batch = torch.arange(len(queries), device=queries.device)[:, None]
    point = torch.arange(queries.shape[1], device=queries.device)
    frame = queries[..., 0].long()
    points, visibility, confidence = (None if x is None else x.clone() for x in tracks)
    points[batch, frame, point] = queries[..., 1:]
    visibility[batch, frame, point] = 1.0
    if confidence is not None:
        confidence[batch, frame, point] = 1.0
    return Tracks(points, visibility, confidence)


# %% tags=["check"]
own = torch.tensor([[[2.0, 7.0, 8.0], [0.0, 9.0, 6.0]], [[4.0, 5.0, 4.0], [1.0, 3.0, 2.0]]])
zeros = Tracks(torch.zeros(2, 5, 2, 2), torch.zeros(2, 5, 2), torch.zeros(2, 5, 2))
placed = with_queries(zeros, own)
assert placed.points[0, 2, 0].tolist() == [7, 8] and placed.points[1, 1, 1].tolist() == [3, 2]
assert placed.points.count_nonzero() == 8, "one place for each query, nothing else"
assert placed.visibility.sum() == 4 and placed.visibility[1, 4, 0] == 1, "visible there"
assert torch.equal(placed.confidence, placed.visibility), "and confident"
assert zeros.points.count_nonzero() == 0, "the tracks that came in stay as they were"

# %%
moved_by = (forward.points[0, queries[0, :, 0].long(), range(5)] - inside[0, :, 1:]).norm(dim=-1)
print("in its own frame the model moves a point by", [round(d, 2) for d in moved_by.tolist()], "px")

# %% [markdown]
# ### Jointly, in parts, one by one
#
# Points that do not fit into memory together are tracked in parts. Consecutive queries of a grid are neighbours, and a part made of neighbours would see one corner of the frame only. So the queries are dealt out like cards, and each part is spread over the whole frame.


# %% tags=["promote"]
def deal_out(queries: Float[Tensor, "B N 3"], together: int | None) -> list[Float[Tensor, "B P 3"]]:
    """Queries in parts of at most `together`, each spread like the whole; one part for None.

    >>> [part[0, :, 1].tolist() for part in deal_out(torch.arange(15.0).view(1, 5, 3), 2)]
    [[1.0, 10.0], [4.0, 13.0], [7.0]]

    Raises ValueError for a number that is not whole or below 1.
    """
    if together is None:
        return [queries]
    count = math.ceil(queries.shape[1] / whole_number("together", together, least=1))
    return [queries[:, first::count] for first in range(count)]


def put_together(parts: list[Tracks]) -> Tracks:
    """The tracks of parts that were dealt out, in the order of their queries again."""
    whole = []
    for pieces in zip(*parts, strict=True):
        if pieces[0] is None:
            whole.append(None)
            continue
        shape = list(pieces[0].shape)
        shape[2] = sum(piece.shape[2] for piece in pieces)
        values = pieces[0].new_empty(shape)
        for first, piece in enumerate(pieces):
            values[:, :, first :: len(parts)] = piece
        whole.append(values)
    return Tracks(*whole)


# %% tags=["check"]
numbered = torch.arange(33.0).view(1, 11, 3)
for most in (1, 2, 4, 11, 50):
    parts = deal_out(numbered, most)
    assert max(part.shape[1] for part in parts) <= most
    pieces = [Tracks(part[:, None, :, 1:], part[:, None, :, 0]) for part in parts]
    assert torch.equal(put_together(pieces).visibility[:, 0], numbered[..., 0])

# %% [markdown]
# ### What fits
#
# Equation 5 needs two numbers. $\phi$ can be counted: the features of a frame at all levels. $\mu$ is what is alive at the worst moment of an update, for each of the $S$ frames of a window: three arrays as wide as a token (its parts, their sum, and the copy that is turned so that time comes last but one), and one as wide as the transformer. What was read at the query, and the track itself, come on top.


# %% tags=["promote"]
def bytes_per_frame(model: CoTracker, size: tuple[int, int]) -> int:
    """Memory that the features of a frame of `size` (H, W), in pixels, take (φ of equation 5)."""
    h, w = (side // STRIDE for side in size)
    places = sum((h >> level) * (w >> level) for level in range(model.sizes.levels))
    return 4 * model.sizes.features * places


def bytes_per_point(model: CoTracker, frames: int) -> int:
    """Memory that a point takes at most while it is tracked (μ of equation 5).

    frames  T of the video

    Measured on a CPU for both versions, it is 6 to 22 % too high, and some 30 MB that do not depend
    on the number of points come on top.
    """
    S = frames if model.whole_clip else model.window
    patch = (2 * model.sizes.radius + 1) ** 2 * model.sizes.features * model.sizes.levels
    anchor = patch if model.version == "3" else model.sizes.features
    return 4 * (S * (3 * model.update.inputs + model.sizes.width) + anchor + 12 * frames)


def free_memory(device: torch.device) -> int:
    """Bytes that are free where tensors on `device` live."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def most_points(model: CoTracker, frames: int, size: tuple[int, int], memory: float) -> int:
    """How many points fit, by equation 5; 0 where the features of the frames alone do not.

    frames, size  T, and (H, W) in pixels, of the resized video
    memory        bytes that may be taken
    """
    left = memory - frames * bytes_per_frame(model, size)
    return max(0, int(left // bytes_per_point(model, frames)))


# %%
released = CoTracker("2")  # the sizes of the release
for name, model, resolution in (("course", course, (192, 256)), ("release", released, (384, 512))):
    print(
        f"{name:>8}: a frame {bytes_per_frame(model, resolution) / 1e6:.1f} MB, a point "
        f"{bytes_per_point(model, 24) / 1e3:.0f} kB; in 8 GB, 24 frames and "
        f"{most_points(model, 24, resolution, 8e9):,} points"
    )

# %% [markdown]
# Is the bound a bound, and not far too high? A process of its own tracks more and more points and says its peak of memory each time. (A peak cannot fall, so one process can measure sizes that grow.)

# %%
MEASURE = """
import json, sys, torch
from fourfold.cotracker.cotracker import CoTracker
from fourfold.cotracker.predictor import OnlinePredictor, Predictor
torch.set_num_threads(1)
torch.manual_seed(0)

def peak():
    "The peak in bytes; where the system does not tell it, what is held now."
    try:
        return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
    except OSError:
        import psutil
        return psutil.Process().memory_info().rss

def say(*numbers):
    print(json.dumps(numbers))
"""


def measured(program, **values):
    """The rows that a program says, run in a process of its own."""
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    code = "\n".join([MEASURE, *lines, program])
    # Freed memory goes back to the system at once, so that a peak is one of tensors (GNU's malloc).
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=settings
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


# %%
POINTS = """
model = CoTracker("2", **sizes).eval()
predictor = Predictor(model, iterations=1)
video = 255 * torch.rand(1, frames, 3, 96, 128)
video = predictor.encode(video)
for count in counts:
    queries = torch.rand(1, count, 3) * torch.tensor([0.0, 127.0, 95.0])
    predictor(video, queries, support=0)
    say(count, peak())
"""
sizes = SMALL | {"depth": 1, "resolution": (96, 128)}
counts, frames = (500, 1200, 1900, 2600), 8
rows = measured(POINTS, sizes=sizes, counts=counts, frames=frames)
used = np.array([bytes_held for _, bytes_held in rows]) - rows[0][1]
mu = bytes_per_point(CoTracker("2", **sizes), frames)
slope = used[-1] / (counts[-1] - counts[0])
print(f"a point takes {slope / 1e3:.1f} kB; the bound μ is {mu / 1e3:.1f} kB")


# %% tags=["figure"]
def draw_memory():
    figure, axes = canvas(1, 1, 5.2, 2.4)
    line = mu * (np.array(counts) - counts[0]) / 1e6
    axes.plot(
        counts, line, "--", color=COLOURS["bad"], label=f"bytes μ of a point: {mu / 1e3:.0f} kB"
    )
    axes.plot(counts, used / 1e6, "o-", color=COLOURS["flow"], label="measured")
    phi = bytes_per_frame(course, (96, 128))
    axes.text(counts[-1], 0, f"bytes φ of a frame: {phi / 1e3:.0f} kB", ha="right", size=8)
    axes.set(xlabel="points N", ylabel="memory M\nbeyond the first dot (MB)")
    axes.legend()
    return figure


show(
    draw_memory(),
    alt="Measured memory against the number of points: a straight line a little below the dashed "
    "line of the bound",
)

# %% [markdown]
# Memory grows in proportion to $N$, and not to $N^2$, because points read each other through virtual tracks ([lesson 5](5_transformer.ipynb)) and because the transformer works on a part of its rows at a time. The depth of the model does not matter where no gradient is asked for.
#
# ### What counts as visible
#
# A predictor returns probabilities. To draw a picture someone has to say "seen" or "hidden", and the released predictors say it in two ways (equation 1 of lesson 2): offline, in both versions, visibility above 0.9, and the confidence of version 3 is ignored; online, version 3 takes visibility times confidence above 0.6.


# %% tags=["promote"]
def released_visible(tracks: Tracks, *, online: bool = False) -> Bool[Tensor, "B T N"]:
    """Which points the predictors of the release call visible.

    online  the online predictor's rule, which differs where there is a confidence

    Source: the CoTracker release.
    """
    if online and tracks.confidence is not None:
        return tracks.visible(0.6, with_confidence=True)
    return tracks.visible(0.9)


# %%
unsure = Tracks(
    torch.zeros(1, 1, 3, 2), torch.tensor([[[0.95, 0.95, 0.8]]]), torch.tensor([[[0.9, 0.5, 0.9]]])
)
for online in (False, True):
    print(f"online={online}:", released_visible(unsure, online=online)[0, 0].tolist())

# %% [markdown]
# The rules agree on the first point, and disagree on the others: one is surely seen in an uncertain place, the other perhaps seen in a place that is certain. The course's own weights are trained so that 0.5 is even odds (lesson 8); their pictures below use that.
#
# ### The predictor
#
# All of it in one class. First its checks: everything that can be wrong with the arguments is found before the video is encoded.


# %% tags=["promote"]
def _checked_resolution(model: CoTracker, resolution: tuple[int, int] | None) -> tuple[int, int]:
    H, W = model.sizes.resolution if resolution is None else resolution
    if min(H, W) < STRIDE or H % STRIDE or W % STRIDE:
        raise ValueError(f"resolution is {(H, W)}; expected (H, W), multiples of {STRIDE}")
    return int(H), int(W)


def _check_either(queries: Tensor | None, grid: int | None) -> None:
    if (queries is None) == (grid is None):
        given = "neither" if queries is None else "both"
        raise ValueError(f"queries and grid: {given} given; expected one of them")


def _check_fits(most: int, points: int, extra: int, together: int | None) -> None:
    """Raise for more points than memory holds, `extra` of them for support; say what helps."""
    if points <= most:
        return
    if most < 1:
        raise ValueError(
            "video does not fit into memory, even with a single point; expected fewer frames, a "
            "smaller resolution, or OnlinePredictor"
        )
    named = "queries (or grid)" if together is None else f"together={together}"
    helps = "a smaller support grid"
    if most > extra:
        helps = f"together={most - extra} tracks them in parts"
    raise ValueError(
        f"{named} makes {points:,} points at once, {extra:,} of them for support; expected at most "
        f"{most:,}, as many as fit into memory ({helps})"
    )


def masked_grid(
    count: int, resolution: tuple[int, int], size: tuple[int, int], mask: Tensor | None
) -> Float[Tensor, "N 2"]:
    """A grid over resized frames, in pixels of the video; of a mask's points, where there is one.

    mask  (H, W) bool, as large as the video's frames

    Raises TypeError and ValueError for another mask and for one that leaves no point.
    """
    points = grid_points(count, resolution)
    if mask is not None:
        check_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask holds {mask.dtype}; expected torch.bool (mask > 0)")
        if tuple(mask.shape) != tuple(size):
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}; expected {tuple(size)}, that of a frame"
            )
        resized = F.interpolate(mask[None, None].float().cpu(), resolution, mode="nearest")[0, 0]
        x, y = points.round().long().unbind(-1)
        points = points[resized[y, x] > 0]
        if len(points) == 0:
            raise ValueError(
                f"mask leaves none of the {count**2} points of the grid; expected a finer grid or "
                "a larger mask"
            )
    return resize_points(points, resolution, size)


# %% tags=["promote"]
def _about(video: Tensor | EncodedVideo) -> tuple[int, int, tuple[int, int], torch.device]:
    """Videos, frames of each, (H, W) of a frame, and where they are."""
    if isinstance(video, EncodedVideo):
        return video.batch, video.frames, video.size, video.levels[0].device
    _check_video(video)
    return len(video), video.shape[1], tuple(video.shape[3:]), video.device


def _check_memory(
    model: CoTracker,
    video: tuple[int, int, tuple[int, int], torch.device],
    points: int,
    extra: int,
    memory: float | None,
    *,
    encoded: bool = False,
    together: int | None = None,
) -> None:
    """Raise for more points of each video than fit into memory (equation 5 of the lesson).

    points   tracked at once, `extra` of them for support
    video    what `_about` says, but the size that of the resized frames
    encoded  the features lie in memory already
    """
    batch, frames, size, device = video
    free = free_memory(device) if memory is None else memory
    if memory is None and encoded:
        free += batch * frames * bytes_per_frame(model, size)
    rest = free - (batch - 1) * frames * bytes_per_frame(model, size)
    _check_fits(most_points(model, frames, size, rest) // batch, points, extra, together)


def _with_support(
    queries: Tensor, size: tuple[int, int], support: int, local: int
) -> Float[Tensor, "B N 3"]:
    """Queries, and those of the support grids behind them."""
    if local and queries.shape[1] > 1:
        raise ValueError(f"local is {local} for points tracked jointly; expected together=1")
    return torch.cat([queries, support_points(queries, size, support, local)], dim=1)


def _cut(values: Iterable[Tensor | None], count: int) -> list[Tensor | None]:
    """The first `count` points of tracks or estimates (B, T, N, …)."""
    return [None if x is None else x[:, :, :count] for x in values]


# %% tags=["promote"]
class Predictor:
    """Track points of a video of any size (section 4 of the paper).

    model       a CoTracker
    resolution  (H, W) to which videos are resized, multiples of 4; the model's when left out
    iterations  M, of the model's updates
    memory      bytes that a run may take; those that are free when left out

    Called with a video it returns Tracks in pixels of that video; a point at its query's frame is
    where it was asked for, and visible. In place of a tensor (B, T, 3, H, W) it takes frames
    (3, H, W) one after the other, uint8 too, so that a long film is never in memory as a whole;
    and what `encode` gave for either, so that a video can be asked for points again and again.

    Convention: (x, y), x to the right, y down, the centre of the top-left pixel at (0, 0).
    Source: Karaev et al. 2023, CoTracker (arXiv 2307.07635), section 4, and its release.
    """

    def __init__(
        self,
        model: CoTracker,
        *,
        resolution: tuple[int, int] | None = None,
        iterations: int = 6,
        memory: float | None = None,
    ) -> None:
        self.model, self.memory = model, memory
        self.resolution = _checked_resolution(model, resolution)
        self.iterations = whole_number("iterations", iterations, least=1)

    @torch.no_grad()
    def encode(self, video: Tensor | Iterable[Tensor], tick=None) -> EncodedVideo:
        """The features of a video; `tick` is called with 1 after each frame."""
        if isinstance(video, Tensor):
            _check_video(video)
            return encode_video(self.model, video.unbind(1), self.resolution, tick)
        frames = (frame[None].float() for frame in video)
        return encode_video(self.model, frames, self.resolution, tick)

    @torch.no_grad()
    def __call__(
        self,
        video: Tensor | EncodedVideo | Iterable[Tensor],
        queries: Float[Tensor, "B N 3"] | None = None,
        grid: int | None = None,
        *,
        frame: int = 0,
        mask: Bool[Tensor, "H W"] | None = None,
        backward: bool = False,
        support: int | None = None,
        local: int = 0,
        together: int | None = None,
        progress: bool = False,
    ) -> Tracks:
        """Track queries, or a grid of points on a frame, where a mask is given those in it.

        queries   (B, N, 3) as (frame, x, y) in pixels of the video
        grid      points a side, instead of queries, on `frame`
        backward  find what comes before a query in the reversed video
        support   points a side of a grid that is tracked along; 6 when left out, 0 for a whole grid
        local     points a side of a grid around the query, with together=1
        together  most points tracked jointly, support aside; all when left out
        progress  show a bar

        Raises TypeError or ValueError, before it computes, for arguments that are wrong and for
        more points than fit into memory.
        """
        if not isinstance(video, Tensor | EncodedVideo):
            video = self.encode(video)
        about = batch, T, size, device = _about(video)
        _check_either(queries, grid)
        if queries is None:
            whole_number("frame", frame, least=0, most=T - 1)
            points = masked_grid(grid, self.resolution, size, mask).to(device)
            queries = at_frame(float(frame), points).expand(batch, -1, -1)
            support = (0 if mask is None else 6) if support is None else support
        encoded = isinstance(video, EncodedVideo)
        parts, helped = self._dealt(about, queries, support, local, together, encoded)
        track = track_both_ways if backward else track_encoded
        work = (not encoded) + len(parts) * (1 + backward)
        with progress_bar(work * T, 0, unit="frame", shown=progress) as bar:
            video = video if encoded else self.encode(video, bar.update)
            found = [
                Tracks(*_cut(track(self.model, video, asked, self.iterations, tick=bar.update), n))
                for asked, n in zip(helped, (part.shape[1] for part in parts), strict=True)
            ]
        tracks = put_together(found)
        points = resize_points(tracks.points, self.resolution, size)
        return with_queries(tracks._replace(points=points), queries)

    def check(
        self,
        frames: int,
        size: tuple[int, int],
        queries: Float[Tensor, "B N 3"],
        *,
        support: int | None = None,
        local: int = 0,
        together: int | None = None,
    ) -> None:
        """Raise what a call would, for a video of so many frames of a size (H, W), not yet read."""
        about = len(queries), frames, size, queries.device
        self._dealt(about, queries, support, local, together, encoded=False)

    def _dealt(self, about, queries, support, local, together, encoded) -> tuple[list, list]:
        """The parts to track jointly, in pixels of the resized frames; and with support."""
        batch, T, size, device = about
        if not self.model.whole_clip:
            window_starts(T, self.model.window)  # raises for a video that is too short
        _check_queries(queries, batch, T, size)
        if queries.device != device:
            raise ValueError(f"queries is on {queries.device}; expected {device}, as the video")
        places = resize_points(queries[..., 1:], size, self.resolution)
        parts = deal_out(torch.cat([queries[..., :1], places], dim=-1), together)
        support = 6 if support is None else support
        helped = [_with_support(part, self.resolution, support, local) for part in parts]
        points = helped[0].shape[1]
        extra, resized = points - parts[0].shape[1], (batch, T, self.resolution, device)
        _check_memory(
            self.model, resized, points, extra, self.memory, encoded=encoded, together=together
        )
        return parts, helped


# %% tags=["check"]
again = predictor(clip, queries, backward=True)
assert torch.equal(again.points, tracks.points)
in_time = torch.arange(T)[:, None] >= queries[0, :, 0]
support_too = torch.cat([inside, support_points(inside, (192, 256), 6)], dim=1)
with torch.no_grad():
    expected = resize_points(course(small, support_too, 4).points[:, :, :5], (192, 256), size)
gap = (again.points - expected)[0].norm(dim=-1)
gap[queries[0, :, 0].long(), range(5)] = 0  # there it is the query
assert gap[in_time].max() < 1e-2, "from the query on: the model's, support points tracked along"
kept = predictor.encode(clip)
assert (predictor(kept, queries, backward=True).points - tracks.points).abs().max() < 1e-2
assert predictor(kept, grid=4, frame=3).points.shape == (1, T, 16, 2)

# %% [markdown]
# Numbers agree to a hundredth of a pixel rather than exactly where frames are encoded in other groups: the motion embedding magnifies rounding (lesson 4).
#
# ### What company is worth
#
# A point with others, with a grid, or alone. How far do the answers differ?

# %%
ways = {
    "jointly, with support": {},
    "jointly, no support": {"support": 0},
    "one by one, with support": {"together": 1},
    "one by one, local grid too": {"together": 1, "local": 8},
    "one by one, alone": {"together": 1, "support": 0},
}
for name, options in ways.items():
    begin = time.perf_counter()
    way = predictor(kept, queries, **options)
    seconds = time.perf_counter() - begin
    first = way if not options else first
    apart = (way.points - first.points)[0, in_time].norm(dim=-1).mean()
    print(f"{name:>28}: {seconds:4.1f} s, {apart:.2f} px from the first (mean)")

# %% [markdown]
# One by one is how the paper evaluates. A benchmark's queries lie on the same few objects, so tracked jointly they would help each other more than a user's queries do. The evaluation of version 2 in the release adds a global grid of 5 × 5 and a local one of 8 × 8 points.
#
# ### While the video arrives
#
# Online, the features of a frame are made when it comes, the features of a query when its frame comes, and both are forgotten when no window needs them any more. What has to be right first is the count of equation 6.


# %% tags=["promote"]
def final_frames(seen: int, window: int) -> int:
    """How many frames no later window changes (equation 6 of the lesson).

    seen    k, the frames that have come
    window  S, an even number

    >>> final_frames(8, 8), final_frames(11, 8), final_frames(12, 8)
    (4, 4, 8)
    """
    if seen < window:
        return 0
    step = window // 2
    return ((seen - window) // step + 1) * step


# %% tags=["check"]
for S in (2, 8, 16):
    assert final_frames(S - 1, S) == 0, "without a whole window nothing is final"
    assert final_frames(S, S) == S // 2, "the first window settles its first half"
    for seen in range(S, 5 * S):
        now, then = final_frames(seen, S), final_frames(seen + S // 2, S)
        assert then - now == S // 2, "half a window later there is half a window more"
        assert S // 2 <= seen - now < S, "half a window waits, and less than a whole one"


# %% tags=["promote"]
class _Stream:
    """A video that arrives: the features that are still needed, and where the tracks stand.

    queries     (1, N, 3) as (frame, x, y), in pixels of the resized frames
    seen        k, frames taken in
    first       the frame where the next window begins
    """

    def __init__(self, model: CoTracker, queries: Tensor, iterations: int) -> None:
        self.model, self.queries, self.iterations = model, queries, iterations
        self.seen = self.first = 0
        self.levels: list[Tensor] = []  # of the frames from `first` on
        self.anchors: Tensor | None = None  # what was read at the queries
        self.last: Estimate | None = None  # of the window before

    def take(self, frames: Float[Tensor, "1 n 3 h w"]) -> None:
        """Encode new frames, and read the features of the queries in them."""
        new, count = self.model.pyramid(frames), frames.shape[1]
        inside = self.queries[..., 0] - self.seen
        rows = inside.long().clamp(0, count - 1)
        read = self.model.update.anchor(new, rows, self.queries[..., 1:] / STRIDE)
        if self.anchors is None:
            self.anchors = torch.zeros_like(read)
        here = (inside >= 0) & (inside < count)
        self.anchors[here] = read[here]
        kept = self.levels or [level[:0] for level in new]
        self.levels = [torch.cat(pair) for pair in zip(kept, new, strict=True)]
        self.seen += count

    def window(self) -> Estimate:
        """Refine the next window, and forget the frames that only it needed."""
        S = self.model.window
        # The last frame stands in for those that have not come.
        rows = torch.arange(S, device=self.queries.device).clamp(max=self.seen - self.first - 1)
        self.last = self.model.track_window(
            self.levels,
            rows[None],
            self.first,
            self.queries,
            self.anchors,
            self.last,
            self.iterations,
        )[-1]
        self.first += S // 2
        self.levels = [level[S // 2 :] for level in self.levels]
        return self.last


# %% [markdown]
# The predictor around it does for frames that come what the other one does for a whole video. `push` takes any number of frames, so that nobody has to cut a video into pieces of half a window.


# %% tags=["promote"]
_EVER = 1 << 24  # frames, or pixels of a side, that float32 can count


def _check_frames(frames: Tensor, size: tuple[int, int] | None) -> None:
    """Raise for frames that are none, or not of the size (H, W) of those before."""
    _check_floating("frames", frames)
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames has shape {tuple(frames.shape)}; expected (n, 3, H, W)")
    _check_values("frames", frames)
    found = tuple(frames.shape[2:])
    if size not in (None, found):
        raise ValueError(f"frames has size {found}; expected {size}, that of frame 0")


def _online_queries(
    queries: Tensor | None, grid: int | None, resolution: tuple[int, int], frames: Tensor
) -> Float[Tensor, "1 N 3"]:
    """Queries, or a grid on frame 0, in pixels of the resized frames."""
    if queries is None:
        return at_frame(0.0, grid_points(grid, resolution)).to(frames)[None]
    queries, size = queries.to(frames)[None], tuple(frames.shape[2:])
    _check_queries(queries, 1, _EVER, size)
    places = resize_points(queries[..., 1:], size, resolution)
    return torch.cat([queries[..., :1], places], dim=-1)


def join_in_time(parts: list[Tracks]) -> Tracks | None:
    """Tracks of frames that follow one another as one; None where there are none."""
    if not parts:
        return None
    joined = (None if x[0] is None else torch.cat(x, dim=1) for x in zip(*parts, strict=True))
    return Tracks(*joined)


# %% tags=["promote"]


class OnlinePredictor:
    """Track points while a video arrives, in memory that does not grow with its length.

    model       a CoTracker that works in windows: version 2, or version 3 in mode "online"
    queries     (N, 3) as (frame, x, y), frames counted from the first that is pushed, in pixels of
                the video; or
    grid        points a side of a grid on frame 0
    support     points a side of a grid over frame 0 that is tracked along; 6 when left out, none
                for a grid
    resolution, iterations, memory  as in `Predictor`

    `push` takes any number of frames and gives the tracks of those that have become final, which
    lag by half a window or more (equation 6 of the lesson); `finish` gives the rest. The tracks are
    those of the model on the whole video, at the queries' frames too. Before a query they mean
    nothing. `reset` begins a new video, with the same queries, whatever happened before.

    Raises ValueError for a model that takes the whole clip, and for wrong queries.

    Convention: (x, y), x to the right, y down, the centre of the top-left pixel at (0, 0).
    """

    def __init__(
        self,
        model: CoTracker,
        queries: Float[Tensor, "N 3"] | None = None,
        grid: int | None = None,
        *,
        support: int | None = None,
        resolution: tuple[int, int] | None = None,
        iterations: int = 6,
        memory: float | None = None,
    ) -> None:
        if model.whole_clip:
            raise ValueError(
                "model is version 3 in mode 'offline', which takes the whole clip at once; "
                "expected mode='online', or version 2"
            )
        _check_either(queries, grid)
        if queries is not None:
            check_tensor("queries", queries)
            _check_queries(queries[None], 1, _EVER, (_EVER, _EVER))
        self.model, self.memory = model, memory
        self.iterations = whole_number("iterations", iterations, least=1)
        self.resolution = _checked_resolution(model, resolution)
        self.queries, self.grid = queries, grid
        self.support = (6 if grid is None else 0) if support is None else support
        self.reset()

    def reset(self) -> None:
        """Forget the video: the next frame that is pushed is frame 0 of a new one."""
        self.stream: _Stream | None = None
        self.size: tuple[int, int] | None = None
        self.count = self.told = 0
        self.ended = False

    @torch.no_grad()
    def push(self, frames: Float[Tensor, "n 3 H W"]) -> Tracks | None:
        """Take frames in [0, 255]; return the tracks of those that have become final, if any did.

        Raises TypeError or ValueError for wrong frames, and with the first ones for queries outside
        them and for more points than fit into memory; RuntimeError after `finish`.
        """
        self._check_open()
        _check_frames(frames, self.size)
        if self.stream is None:
            self._begin(frames)
        done, S = [], self.model.window
        for part in frames.split(S // 2):
            self.stream.take(resize_video(part[None], self.resolution))
            if self.told < final_frames(self.stream.seen, S):
                done.append(self._tracks(self.stream.window(), S // 2))
        return join_in_time(done)

    @torch.no_grad()
    def finish(self) -> Tracks:
        """The tracks of the frames that waited for more, when the video has ended.

        Raises ValueError for a video of half a window or less and for a query that it ended before;
        frames may still be pushed then. Afterwards only `reset` may be called.
        """
        self._check_open()
        seen = 0 if self.stream is None else self.stream.seen
        window_starts(seen, self.model.window)
        if self.queries is not None and (self.queries[:, 0] >= seen).any():
            late = int(self.queries[:, 0].max())
            raise ValueError(f"queries has frame {late}; the video ended with frame {seen - 1}")
        step, waiting = self.model.window // 2, seen - self.told
        self.ended = True
        if self.stream.last is not None and waiting <= step:
            half = [None if x is None else x[:, step:] for x in self.stream.last]
            return self._tracks(Estimate(*half), waiting)
        return self._tracks(self.stream.window(), waiting)

    def _check_open(self) -> None:
        if self.ended:
            raise RuntimeError("the video has been finished; call reset() to begin another")

    def _begin(self, frames: Tensor) -> None:
        """Set the queries up for a video with such frames."""
        size, window = tuple(frames.shape[2:]), self.model.window
        points = _online_queries(self.queries, self.grid, self.resolution, frames)
        asked = _with_support(points, self.resolution, self.support, 0)
        about = 1, 2 * window, self.resolution, frames.device
        extra = asked.shape[1] - points.shape[1]
        _check_memory(self.model, about, asked.shape[1], extra, self.memory)
        self.size, self.count = size, points.shape[1]
        self.stream = _Stream(self.model, asked, self.iterations)

    def _tracks(self, estimate: Estimate, frames: int) -> Tracks:
        self.told += frames
        tracks = Tracks(*_cut(as_tracks(estimate, frames), self.count))
        return tracks._replace(points=resize_points(tracks.points, self.resolution, self.size))


# %% [markdown]
# The same frames in pieces of one, three, and all at once give the same tracks, and those are what the model finds in the whole video. To compare, the offline predictor's tracks must not be overwritten at the queries:

# %%
whole_video = _with_support(inside, (192, 256), 6, 0)
with torch.no_grad():
    offline = track_encoded(course, kept, whole_video, 4).points[:, :, :5]
offline = resize_points(offline, (192, 256), size)


# %% tags=["check"]
online = OnlinePredictor(course, queries[0], iterations=4)
for n in (1, 3, T):
    pieces = [online.push(part) for part in clip[0].split(n)]
    pieces = [piece for piece in pieces if piece is not None] + [online.finish()]
    joined = torch.cat([piece.points for piece in pieces], dim=1)
    assert joined.shape == (1, T, 5, 2), "every frame is told once"
    assert (joined - offline).abs().max() < 1e-2, f"pieces of {n} differ from the whole video"
    online.reset()

# %% [markdown]
# ### The lag
#
# Online does not mean at once: the track of a frame comes some frames later. Push one frame at a time and note when each frame is told:

# %%
told = []
for frame in clip[0]:
    now = online.push(frame[None])
    told.append(0 if now is None else now.points.shape[1])
rest = online.finish().points.shape[1]
online.reset()
print("frames told after each push:", told, "and at the end:", rest)


# %% tags=["figure"]
def draw_lag():
    pushed, final = np.arange(1, T + 1), np.cumsum(told)
    figure, (left, right) = canvas(1, 2, 7.2, 2.5)
    left.plot([0, T], [0, T], color=COLOURS["muted"], linewidth=0.8)
    left.text(2, 3.4, "no lag", size=7.5, color="0.4", rotation=35)
    left.step([0, *pushed], [0, *final], where="post", color=COLOURS["flow"])
    left.plot([T, T], [final[-1], T], ":", color=COLOURS["bad"])
    left.text(T - 0.5, T - 1, "finish", size=8, ha="right")
    left.set(xlabel="pushed frames k", ylabel="final frames F")
    waits = [next((k for k in pushed if final[k - 1] > t), T) - 1 - t for t in range(T)]
    colours = [COLOURS["flow"] if t < final[-1] else COLOURS["bad"] for t in range(T)]
    right.bar(range(T), waits, color=colours)
    right.axhline(course.window // 2, color="0.4", linewidth=0.8)
    right.set(xlabel="frame t", ylabel="lag (frames)", ylim=(0, course.window))
    left.set_xticks(range(0, T + 1, 4))
    right.set_xticks(range(0, T, 4))
    right.set_title(f"line: half a window, S / 2 = {course.window // 2}")
    return figure


show(
    draw_lag(),
    alt="Left, the number of final frames against the frames pushed: a staircase some frames below "
    "the diagonal, which it reaches at the end; right, the lag of each frame, between half a "
    "window and a window less one frame, and less only at the end",
)

# %% [markdown]
# A frame waits for half a window at least, and for a window less one frame at most. Only at the end of a video may it come sooner, with `finish` (orange). At 25 frames a second and $S = 8$ that is 0.16 to 0.28 seconds, on top of the time for computing. No frame is ever told twice.
#
# ### Memory that does not grow
#
# A process of its own pushes frame after frame, and says its peak now and then. The same process then tracks longer and longer clips as a whole. The model is tiny here, so that the features do not take long.

# %%
ARRIVING = """
model = CoTracker("2", **sizes).eval()
frames = 255 * torch.rand(8, 3, *model.sizes.resolution)
online = OnlinePredictor(model, grid=4, iterations=1)
for count in range(0, most, 8):
    if count % (most // 8) == 0:
        say("online", count, peak())
    online.push(frames)
say("online", most, peak())
predictor = Predictor(model, iterations=1)
for count in range(most // 4, most + 1, most // 4):
    predictor((frames[t % 8] for t in range(count)), grid=4)
    say("offline", count, peak())
"""
tiny = SMALL | {"width": 16, "depth": 1, "features": 32, "widths": (8, 8, 8, 8)}
rows = measured(ARRIVING, sizes=tiny | {"resolution": (96, 128)}, most=320)
start = rows[0][2]
held = {
    kind: [(count, (used - start) / 1e6) for name, count, used in rows if name == kind]
    for kind in ("online", "offline")
}
print({kind: f"{values[-1][1]:.0f} MB" for kind, values in held.items()}, "after 320 frames")


# %% tags=["figure"]
def draw_growth():
    figure, axes = canvas(1, 1, 5.2, 2.4)
    for kind, mark in (("offline", "s--"), ("online", "o-")):
        axes.plot(*zip(*held[kind], strict=True), mark, ms=3, label=kind)
    axes.set(xlabel="frames of the video", ylabel="memory M, more than\nat the start (MB)")
    axes.legend()
    return figure


show(
    draw_growth(),
    alt="Peak memory against the length of the video: a line that stays level for the online "
    "predictor, and one that rises with the frames for the offline one",
)

# %% [markdown]
# The level line is one window's features and the work on it. The rising one is $\phi\,T$ of equation 5. `tests/benchmarks/bench_cotracker.py --online` measures the same at 200 and 1,000 frames with the course's sizes.
#
# > **Where the code leaves the release.** The released online predictor takes overlapping chunks of a window every half window, and its first call only takes the queries. Here `push` takes any number of frames. The released predictors encode the video again for the backward pass and for every part; here it is encoded once. The released offline predictor of version 2 answers a clip of half a window or less with zeros; here it is refused. And `earlier_from` takes only frames before the query from the reversed video, as the release does.

# %% [markdown]
# ## On real input
#
# ### Behind the walker
#
# Every second frame of the shot, and a grid of 15 × 15 points on the *last* frame, where nobody stands in the way. The backward track has to find the bicycle's points through the walker.

# %%
moving = shot[::2].float()[None]
last = moving.shape[1] - 1
begin = time.perf_counter()
many = predictor(moving, grid=15, frame=last, backward=True)
shown = many.visible(0.5)
print(f"{shown.shape[2]} points, {shown.shape[1]} frames: {time.perf_counter() - begin:.0f} s")
gone = ~shown[0].all(dim=0)
back = gone & shown[0, 0]
print(
    f"{int(gone.sum())} points are called hidden somewhere, {int(back.sum())} of them seen in frame 0"
)

# %%
show(
    track_picture(moving[0], many.points[0], shown[0], panels=6),
    alt="Six frames of the shot with more than two hundred tracked points: dots where they are called "
    "visible, rings where they are called hidden",
    photo=True,
)
print(clip_credit("bikes"))

# %% [markdown]
# Dots are called visible, rings hidden; the colour tells which point is which. Look at the panels with the walker. Where the model does well, rings lie on the walker, stay where the bicycle is, and become dots again when he has passed. Where a trail runs along with him, he has dragged a point away: the model is small.
#
# The threshold decides how many rings there are. For the same tracks, count the points that are called visible in each frame:


# %%
def draw_thresholds():
    figure, axes = canvas(1, 1, 5.6, 2.3)
    for threshold, ink in ((0.5, "good"), (0.9, "flow"), (0.99, "bad")):
        counts = many.visible(threshold)[0].sum(dim=1)
        axes.plot(counts, color=COLOURS[ink], label=f"above {threshold}")
    axes.set(xlabel="frame", ylabel="points called visible", ylim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


show(
    draw_thresholds(),
    alt="The number of points called visible in each frame, for thresholds of 0.5, 0.9 and 0.99: "
    "the higher the threshold, the fewer",
)

# %% [markdown]
# ### Every pixel
#
# Dense tracks say where each pixel of frame 0 has gone, so frame 0 can be painted anew where its pixels are now. Every eighth pixel in each direction keeps the lesson short; `together` keeps memory low.

# %%
dense = at_frame(0.0, dense_points(size, 8))[None]
everywhere = predictor(kept, dense, together=800)
print(f"{dense.shape[1]:,} points in {len(deal_out(dense, 800))} parts")


# %%
def draw_dense(t=12):
    figure, axes = canvas(1, 3, 7.6, 2.2)
    axes[0].imshow(to_picture(clip[0, 0]))
    axes[1].imshow(to_picture(clip[0, t]))
    rows, columns = dense[0, :, 2].long(), dense[0, :, 1].long()
    colours = clip[0, 0][:, rows, columns].T / 255
    seen = everywhere.visible(0.5)[0, t]
    places = everywhere.points[0, t, seen]
    axes[2].scatter(*places.T, c=colours[seen].numpy(), s=9, marker="s", linewidths=0)
    axes[2].set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5), aspect="equal")
    titles = ("frame 0", f"frame {t}", f"pixels of frame 0, in frame {t}")
    for each, title in zip(axes, titles, strict=True):
        each.set_title(title)
        each.set_axis_off()
    return figure


show(
    draw_dense(),
    alt="Frame 0, a later frame, and the pixels of frame 0 painted where they are found in the "
    "later frame; pixels called hidden are left white",
    photo=True,
)

# %% [markdown]
# Large white patches are what frame 0 did not show, or what is called hidden now. (The narrow gaps are pixels that were not asked for.)
#
# ### A video of your own
#
# Write the path of a video file, a .gif or a folder of frames; `None` takes the clip above. `video_frames` yields one frame at a time, and `height` averages large frames down.

# %%
path = None  # such as "films/street.mp4"
weights = None  # such as "cotracker2.pth"; the weights of this lesson for None

mine = clip[0].byte() if path is None else read_video(path, frames=60, height=240)
tracker = predictor if weights is None else Predictor(load_cotracker(weights))
followed = tracker(iter(mine), grid=8)
print(f"{followed.points.shape[1]} frames, {followed.points.shape[2]} points")
show(
    track_picture(mine, followed.points[0], followed.visible(0.5)[0], panels=3),
    alt="Three frames of the video with a grid of 8 × 8 tracked points and their trails",
    photo=True,
)

# %% [markdown]
# In a terminal, `fourfold track film.mp4 --grid 20 --picture tracks.gif` does the same without a notebook, and writes the numbers to `tracks.npz`.
#
# No one has labelled your video. `fourfold track film.mp4 --palindrome` plays it to its end and back ([lesson 2](2_tracks.ipynb)) and prints how far from their start the points end, median and 90th percentile, beside how far away they have been: a point that is said to stay put comes home too, so that a small error after a short way tells little.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `grid_points` | 10 | ●●○ |
# | `resize_points` | 5 | ●○○ |
# | `earlier_from` | 10 | ●●○ |
# | `with_queries` | 10 | ●●○ |
#
# <details><summary>Hint for <code>grid_points</code></summary>
#
# `torch.linspace(first, last, count)` gives one axis. `torch.meshgrid(down, across, indexing="ij")` gives rows and columns; the points are (column, row), because x comes first.
#
# </details>
#
# <details><summary>Hint for <code>resize_points</code></summary>
#
# Sizes are (H, W) and points are (x, y). `points.new_tensor([...])` makes two factors of the points' own kind, and the product reaches all of them.
#
# </details>
#
# <details><summary>Hint for <code>earlier_from</code></summary>
#
# A mask (B, T, N): `t` as a column of T frames against `queries[:, None, :, 0]`. For points it needs one more axis at the end. `reverse.points.flip(1)` is $b_{T-1-t}$.
#
# </details>
#
# <details><summary>Hint for <code>with_queries</code></summary>
#
# `points[batch, frame, point]` with three index tensors of shapes (B, 1), (B, N) and (N,) is (B, N, 2). Clone before you write.
#
# </details>
#
# **Predict.** You push 30 frames into the online predictor with $S = 8$, one at a time. How many have been told before `finish`, and how many does `finish` tell? Does the answer change if you push them in pieces of 7?
#
# <details><summary>Hint</summary>
#
# Equation 6 with $k = 30$.
#
# </details>

# %%
print("told:", final_frames(30, 8), "left for finish:", 30 - final_frames(30, 8))

# %% [markdown]
# <details><summary>Answer</summary>
#
# $F = 4 \cdot (\lfloor 22 / 4 \rfloor + 1) = 24$, so `finish` tells 6. Pieces change when the frames are told, not which ones.
#
# </details>
#
# **Find the bug.** A user wants to follow two points backward only, and reverses the video by hand. Tracks come out, but at the query's frame one of them is not where it was asked. The other one is right by luck. What is wrong, and where does the luck come from?


# %%
def backward_only(predictor, video, queries):
    tracks = predictor(video.flip(1), queries)
    return tracks._replace(points=tracks.points.flip(1))


wrong = backward_only(predictor, clip, queries[:, 3:])
right = predictor(kept, queries[:, 3:], backward=True)
frames_asked = queries[0, 3:, 0].long()
off = (wrong.points - right.points)[0, frames_asked, range(2)].norm(dim=-1)
print("off at the query's frame:", [round(value, 1) for value in off.tolist()], "px")

# %% [markdown]
# <details><summary>Hint</summary>
#
# In which frame of the reversed video is frame $t_q$?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The queries' frames have to be reversed as well, $T - 1 - t_q$ (equation 3). As it stands, the point is looked up in another frame, where something else may lie. The lucky query is asked in frame 9 of 19, the middle one, which is its own mirror image. And `visibility` was not flipped, so it belongs to other frames than the points.
#
# </details>
#
# **Measure.** At which number of points do encoding and tracking take the same time? Time `predictor.encode(clip)` and `predictor(kept, grid=n)` for a few n.
#
# <details><summary>Hint</summary>
#
# Seconds against $n^2$ are close to a line; where does it cross the time of encoding?
#
# </details>

# %%
for n in (2, 8, 14):
    begin = time.perf_counter()
    predictor(kept, grid=n)
    print(f"{n * n:>4} points: {(time.perf_counter() - begin) / encoding:.2f} of encoding's time")

# %% [markdown]
# <details><summary>Answer</summary>
#
# Look where the printed ratio passes 1. Small numbers of points cost less than in proportion, since the virtual tracks are worked on in any case. Below the crossing it pays most to encode once and ask often.
#
# </details>

# %% [markdown]
# ## What breaks
#
# ### More points than memory
#
# What fits is known before anything is computed. With 100 MB:

# %%
poor = Predictor(course, memory=100e6)
with shows_error(ValueError):
    poor(clip, at_frame(0.0, dense_points(size))[None])
with shows_error(ValueError):
    poor(clip, queries, together=5, support=60)
with shows_error(ValueError):
    Predictor(course, memory=1e6)(clip, queries)

# %% [markdown]
# ### Queries and grids

# %%
for wrong in ({}, {"queries": queries, "grid": 5}, {"queries": queries[:, :0]}, {"grid": 0}):
    with shows_error(ValueError):
        predictor(clip, **wrong)
with shows_error(ValueError):
    predictor(clip, queries + torch.tensor([0.0, 300.0, 0.0]))
with shows_error(ValueError):
    predictor(clip, queries + torch.tensor([10.0, 0.0, 0.0]))
with shows_error(ValueError):
    predictor(clip, queries, local=8)

# %% [markdown]
# ### Masks

# %%
nothing = torch.zeros(size, dtype=torch.bool)
with shows_error(ValueError):
    predictor(clip, grid=5, mask=nothing)
with shows_error(ValueError):
    predictor(clip, grid=5, mask=nothing[1:])
with shows_error(TypeError):
    predictor(clip, grid=5, mask=nothing.float())

# %% [markdown]
# ### A video that arrives wrongly

# %%
with shows_error(ValueError):
    OnlinePredictor(CoTracker("3", **SMALL | {"window": 60}), grid=3)
with shows_error(ValueError):
    online.push(clip[0, :3])
    online.finish()
with shows_error(ValueError):
    online.push(clip[0, :2, :, 1:])
with shows_error(ValueError):
    online.push(clip[0, 3:9])
    online.finish()
online.push(clip[0, 9:])
online.finish()
with shows_error(RuntimeError):
    online.push(clip[0, :2])
online.reset()

# %% [markdown]
# A mistake leaves the online predictor as it was, so the right frames can still be pushed. The fourth error is a query for a frame that never came. After `finish` only `reset` goes on: frames of another video would be taken for the next ones of this.
#
# ### Points outside pixels
#
# A place half a pixel beyond the outermost pixel centres is still in the picture, and further out nothing is:

# %%
edge = torch.tensor([[[0.0, -0.5, size[0] - 0.5]]])
print(predictor(kept, edge).points[0, 0, 0].tolist())
with shows_error(ValueError):
    predictor(kept, edge - torch.tensor([0.0, 0.1, 0.0]))

# %% [markdown]
# ## Recap
#
# - Places are resized by $(W'-1)/(W-1)$ along with the video; support points are tracked along and thrown away; the query's own frame is the query.
# - What lies before a query is found in the reversed video, with the same features: a video is encoded once.
# - Memory is $\phi\,T + \mu\,N$: parts shrink $N$, and the online predictor, at the cost of half a window of delay, shrinks $T$ to about a window.
#
# The line goes on in [lesson 8](8_learning.ipynb), where the weights come from.
