# ---
# jupyter:
#   fourfold:
#     accelerator: helpful
#     level: intermediate
#     minutes: 60
#     needs:
#     - 1_paper_writing/4_experiments
#     - 5_cotracker/7_predictor
#     - 5_cotracker/8_learning
#     promotes: false
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Experiments: what each part of CoTracker is for
#
# **After this lesson you can** test a tracker of points as a paper should: on several data sets beside honest baselines, alone and in company, part by part, with its failures kept and its limits said.
#
# *Before this:* [Predictor](7_predictor.ipynb) (`7_predictor`) and [Learning](8_learning.ipynb) (`8_learning`) of this chapter, and [Experiments](../1_paper_writing/4_experiments.ipynb) of chapter 1, whose instruments are used here.
# *Time:* 60 minutes.

# %% [markdown]
# ## Words
#
# CoTracker claims that points are better tracked *together*. So the main experiment asks one thing twice: where is this point, asked for **alone** (单点), and where is it, asked for in **company** (联合跟踪) of others? The error $e$ is a distance in pixels, and $E$ its mean over the places one cares about: above all those where a point is **hidden** (遮挡) or has come back, since there the frame itself says little. Company can be other queries, or a **support grid** (辅助网格) of $g \times g$ points that nobody asked for. The **difference** $\delta$ is taken point by point.
#
# The rest is the duty of every paper. Does it run, and on more than one data set? What do the hyperparameters do: the iterations $M$, the window $S$, the $V$ virtual tracks? What is left when a part is taken away? Where does it fail? And what do $N$ points cost: how many pairs $K$ meet, and how many bytes $\mu$ does one more point take? Where nobody knows the truth, in real video, the **palindrome** (回文) still asks something: a track through a film and back must come home, and the distance $h$ by which it misses is an error.
#
# The network on trial is the small version 2 that comes with this course, not the paper's; its card says how long it learned and on what. Where a sentence depends on how well it learned, a cell computes the sentence.

# %% [markdown]
# ## Figure
#
# ### The data
#
# Three data sets, none of which the network has seen. First **layers**, the made clips of lesson 8 from four held-out photographs: cut-outs that slide over each other, with exact tracks and exact visibility.

# %%
import copy
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import DataLoader, TensorDataset

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import inside, pixel_grid
from fourfold.cotracker.cotracker import Update2, load_cotracker
from fourfold.cotracker.features import STRIDE
from fourfold.cotracker.learning import (
    UPDATE,
    Clip,
    SyntheticClips,
    course_loss,
    enlarged,
    held_out_clips,
    hidden_between,
    smooth_paths,
)
from fourfold.cotracker.predictor import (
    EncodedVideo,
    Predictor,
    at_frame,
    bytes_per_point,
    grid_points,
)
from fourfold.cotracker.tracks import (
    Tracks,
    chained_flow,
    palindrome_error,
    stay_put,
    tap_vid_metrics,
)
from fourfold.kit.checkpoints import file_sha256, read_card
from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, show, to_picture
from fourfold.kit.images import credit, photograph
from fourfold.kit.notebook import shows_error
from fourfold.kit.scale import at_scale, device
from fourfold.kit.track_picture import draw_trails, track_picture
from fourfold.kit.training import train
from fourfold.kit.video import bundled_clip, clip_credit, read_video
from fourfold.paper_writing.experiments import (
    Study,
    ablation_table,
    failure_gallery,
    grid,
    mean_interval,
    measured,
    paired_difference,
    ring_chart,
    role_of,
)
from fourfold.paper_writing.reading_cards import compare, read_cards
from fourfold.raft.fields import classical_flow
from fourfold.raft.learning import HELD_OUT_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, load_photographs
from fourfold.raft.raft import load_raft

torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())  # for the studies of this lesson; yours belong in runs/
WEIGHTS = data_path("checkpoints", "cotracker_small.safetensors")
shipped = load_cotracker(WEIGHTS)
WINDOW, VIRTUAL = shipped.window, shipped.sizes.virtual_tracks
TRAINED = UPDATE.iterations
print(f"{read_card(WEIGHTS).hours:.1f} hours of training on {read_card(WEIGHTS).hardware}")


# %%
def layers_clip(seed, frames=16, points=48):
    """One of the held-out made clips, a batch of one."""
    clips = held_out_clips(seed + 1, (72, 96), frames=frames, points=points, speed=4.5)
    return Clip(*(part[-1:] for part in clips))


video, points, visible, _ = layers_clip(0)
show(
    track_picture(video[0], points[0], visible[0], panels=6),
    alt="Six frames of a made clip in which cut-outs of photographs slide over a photograph; dots are "
    "true places that are seen, rings those that are hidden.",
    photo=True,
)

# %% [markdown]
# This is the truth, not an answer: dots are seen, and rings are hidden by a layer in front, or outside.

# %% [markdown]
# Then **plane**: one held-out photograph, flat as it is, under a camera that shifts, turns, zooms and tilts along smooth paths. The photograph is real, and a plane seen by a moving camera follows a **homography** (单应), a 3 × 3 matrix, exactly; so its tracks are exact too. Nothing hides anything here, and points are lost at the border alone.


# %%
def through(matrices, points):
    """Send points (N, 2) through each homography (T, 3, 3): (T, N, 2)."""
    homogeneous = torch.cat([points, torch.ones_like(points[:, :1])], dim=1)
    moved = homogeneous @ matrices.mT
    return moved[..., :2] / moved[..., 2:]


def camera_path(frames, size, seed):
    """Homographies from frame 0 to each frame: shift, turn, zoom and tilt along smooth paths."""
    H, W = size
    generator = torch.Generator().manual_seed(seed)
    right, down, turn, zoom, *tilt = smooth_paths(frames, 6, generator, reach=20.0).T
    scale, angle = 1 + 0.008 * zoom, 0.015 * turn
    rows = torch.zeros(frames, 3, 3)
    rows[:, 0, 0] = rows[:, 1, 1] = scale * angle.cos()
    rows[:, 1, 0] = scale * angle.sin()
    rows[:, 0, 1] = -rows[:, 1, 0]
    rows[:, 0, 2], rows[:, 1, 2] = 0.02 * W * right, 0.02 * W * down
    rows[:, 2, 0], rows[:, 2, 1] = 1e-4 * tilt[0], 1e-4 * tilt[1]
    rows[:, 2, 2] = 1
    centre = torch.tensor([[1, 0, W / 2], [0, 1, H / 2], [0, 0, 1.0]])
    return centre @ rows @ torch.linalg.inv(centre)


# %%
def plane_clip(seed, size=(72, 96), frames=16, side=7):
    """A held-out photograph under a moving camera, and a grid of its points."""
    (H, W), T = size, frames
    image = photograph(HELD_OUT_PHOTOGRAPHS[seed % 4], height=2 * H)
    path = camera_path(T, size, seed)
    corner = torch.tensor([image.shape[3] - W, image.shape[2] - H]) / 2
    places = through(torch.linalg.inv(path), pixel_grid(H, W).flatten(0, 1)) + corner
    places = places.view(T, H, W, 2)
    video = sample(image.expand(T, -1, -1, -1), places, padding="reflection")
    start = grid_points(side, size)
    points = through(path, start)
    visible = inside(points[:, None], H, W)[:, 0]
    return Clip(video[None], points[None], visible[None], at_frame(0.0, start)[None])


# %% [markdown]
# The check: a point that is read in every frame where its track says should keep its colour, up to what interpolation does to it.

# %%
one = plane_clip(0)
colours = sample(one.video[0], one.points[0][:, :, None])[..., 0].mT  # (T, N, 3)
change = (colours - colours[:1]).abs()[one.visible[0]].mean()
moved = (one.points - one.points[:, :1]).norm(dim=-1)[one.visible].mean()
still = sample(one.video[0], one.points[0, :1].expand(16, -1, -1)[:, :, None])[..., 0].mT
lazy = (still - colours[:1]).abs()[one.visible[0]].mean()
print(
    f"moved by {moved:.1f} px on average; grey levels change by {change:.1f}, if read in place {lazy:.1f}"
)
assert change < lazy / 2

# %% [markdown]
# Third, **street**: three shots of real film, without any truth. In the first a man walks past a parked bicycle, in the second cars pass behind a fence, in the third there is a bus. The middle of every third frame is used.

# %%
SHOTS = (187, 137, 76)  # first frames


def street_clip(seed, frames=9):
    """A part of a real shot, and a grid of points on its first frame; no truth."""
    film = read_video(bundled_clip("bikes"), start=SHOTS[seed], step=3, frames=frames, height=72)
    left = (film.shape[3] - 96) // 2
    video = film[..., left : left + 96].float()[None]
    return Clip(video, None, None, at_frame(0.0, grid_points(7, (72, 96)))[None])


@functools.cache
def clip_of(dataset, seed=0):
    """The clip of a data set and seed, a batch of one."""
    if dataset == "layers":
        return layers_clip(seed)
    return plane_clip(seed) if dataset == "plane" else street_clip(seed)


DATASETS = ("layers", "plane", "street")
for dataset in DATASETS:
    B, T, _, H, W = clip_of(dataset).video.shape
    print(f"{dataset}: {T} frames of {H} × {W}, {clip_of(dataset).queries.shape[1]} points a clip")

# %% [markdown]
# The features of a clip are made once and asked often. A setting is what can be changed without new weights: the number of iterations, the window's length, how many of the virtual tracks are left, the support grid, and whether points go `together` (`None`) or one by one (`1`).


# %%
@functools.cache
def encoded(dataset, seed=0):
    return Predictor(shipped).encode(clip_of(dataset, seed).video)


@functools.cache
def variant(window=WINDOW, virtual=VIRTUAL):
    """The shipped weights with another window, or the first few of its virtual tracks."""
    if (window, virtual) == (WINDOW, VIRTUAL):
        return shipped
    model = copy.deepcopy(shipped)
    model.window = window
    transformer = model.update.transformer
    transformer.space = virtual > 0
    kept = transformer.virtual_tracks[:, : max(1, virtual)].detach()
    transformer.virtual_tracks = torch.nn.Parameter(kept)
    return model


# %%
@functools.cache
def tracked(
    dataset, seed=0, iterations=TRAINED, window=WINDOW, virtual=VIRTUAL, support=0, together=None
):
    """CoTracker's answer to the clip's queries."""
    predictor = Predictor(variant(window, virtual), iterations=iterations)
    queries = clip_of(dataset, seed).queries
    return predictor(encoded(dataset, seed), queries, support=support, together=together)


begin = time.perf_counter()
answers = {dataset: tracked(dataset) for dataset in DATASETS}
print(f"{time.perf_counter() - begin:.1f} s, features included")


# %% tags=["figure"]
def draw_data():
    """Frames of each data set with CoTracker's tracks; white lines lead from truth to answer."""
    figure, rows = canvas(3, 4, 7.2, 4.6)
    for row, dataset in zip(rows, DATASETS, strict=True):
        clip, answer = clip_of(dataset), answers[dataset]
        T = clip.video.shape[1]
        frames = torch.linspace(0, T - 1, 4).round().long().tolist()
        asked = torch.arange(T)[:, None] >= clip.queries[0, :, 0]
        points = answer.points[0].masked_fill(~asked[..., None], torch.nan)
        shown = answer.visible(0.5)[0]
        for axes, t in zip(row, frames, strict=True):
            draw_trails(axes, clip.video[0, t], points, shown, t, tail=6, size=3.5)
            if clip.points is not None:
                ends = torch.stack([clip.points[0, t], points[t]])
                axes.plot(*ends.permute(2, 0, 1), color="white", linewidth=0.9, zorder=2)
            axes.set_title(f"frame {t}", size=8)
        row[0].text(
            -0.06, 0.5, dataset, transform=row[0].transAxes, rotation=90, va="center", ha="right"
        )
    rows[0][3].text(
        0.97,
        0.04,
        "white: error e",
        transform=rows[0][3].transAxes,
        ha="right",
        size=7,
        bbox={"facecolor": "white", "pad": 1, "linewidth": 0},
    )
    return figure


show(
    draw_data(),
    alt="Three rows of four frames: made layers, a photograph under a moving camera, and a street. "
    "Coloured dots with trails are CoTracker's tracks; white lines lead from true places to them.",
    photo=True,
)
print(*(credit(name) for name in HELD_OUT_PHOTOGRAPHS), clip_credit("bikes"), sep="\n")

# %% [markdown]
# A colour belongs to a point, which is drawn from its query on; a dot is called seen, a ring hidden. A white line is an error: its two ends are the true place and the answer. The street has no white lines, because nobody knows.
#
# ### Beside trackers that learn nothing of tracks
#
# **Stay put** says that nothing moves; **iLK** and **RAFT-small** estimate flow from frame to frame, which lesson 2 chains. Flow between the same two frames is needed again for the palindrome below, so it is remembered.


# %%
def remembered(estimate_flow):
    """The same function; the flow between two images that it has seen costs nothing."""
    known = {}

    def flow(first, second):
        key = first.numpy().tobytes(), second.numpy().tobytes()
        if key not in known:
            known[key] = estimate_flow(first, second)
        return known[key]

    return flow


FLOWS = {
    "iLK, chained": remembered(functools.partial(classical_flow, "ilk")),
    "RAFT-small, chained": remembered(functools.partial(load_raft().estimate, iterations=4)),
}
METHODS = ["stay put", *FLOWS, "CoTracker"]


@functools.cache
def answer_of(method, dataset, seed=0):
    """The tracks that a method finds for the queries of a clip."""
    clip = clip_of(dataset, seed)
    if method == "CoTracker":
        return tracked(dataset, seed)
    if method == "stay put":
        return stay_put(clip.video, clip.queries)
    return chained_flow(clip.video, clip.queries, FLOWS[method])


# %% [markdown]
# Which places count? All after the query, sorted into three kinds: **seen** from the query on without a break, **hidden** now, by a layer or outside the frame, and **back** after having been hidden.


# %%
def kinds_of(clip):
    """Three masks (T, N) of the places after each query: seen throughout, hidden, and back."""
    visible, T = clip.visible[0], clip.visible.shape[1]
    asked = torch.arange(T)[:, None] > clip.queries[0, :, 0]
    lost = (asked & ~visible).cumsum(dim=0) > 0
    return {"seen": asked & ~lost, "hidden": asked & ~visible, "back": asked & visible & lost}


def mean_error(tracks, clip, where):
    """E over the places of a mask (T, N), in pixels; nan where there are none (equation 1)."""
    errors = (tracks.points - clip.points)[0].norm(dim=-1)
    return errors[where].mean().item()


for seed in range(3):
    kinds = kinds_of(clip_of("layers", seed))
    print(f"layers {seed}:", {kind: int(mask.sum()) for kind, mask in kinds.items()})


# %% tags=["figure"]
def draw_over_time():
    """The mean error in each frame after the query, for visible places, by frames since it."""
    figure, panels = canvas(1, 2, 6.4, 2.5, sharey=False)
    styles = {
        "stay put": (COLOURS["muted"], ":"),
        "iLK, chained": (COLOURS["second"], "-."),
        "RAFT-small, chained": (COLOURS["first"], "--"),
        "CoTracker": (COLOURS["flow"], "-"),
    }
    for axes, dataset in zip(panels, ("layers", "plane"), strict=True):
        for method, (colour, line) in styles.items():
            values = [[] for _ in range(16)]
            for seed in range(3):
                clip, answer = clip_of(dataset, seed), answer_of(method, dataset, seed)
                errors = (answer.points - clip.points)[0].norm(dim=-1)
                since = torch.arange(16)[:, None] - clip.queries[0, :, 0]
                for k in range(1, 16):
                    values[k].append(errors[(since == k) & clip.visible[0]])
            means = [torch.cat(parts).mean() for parts in values[1:]]
            axes.plot(range(1, 16), means, line, color=colour, label=method)
        axes.set(title=dataset, xlabel="frames since the query", ylim=(0, None))
    panels[0].set_ylabel("mean error E (px)\nof visible places")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


show(
    draw_over_time(),
    alt="Two panels of mean error over the frames since the query, for stay put, two chains of flow "
    "and CoTracker, on layers and on the plane.",
)

# %% [markdown]
# A chain adds its errors up, so its curve rises with time even where nothing hides anything; staying put rises as things move. A tracker that looks back at its query need not rise. Whether this one does, and who is ahead where, is printed under *On real input*.

# %% [markdown]
# ## Formula
#
# **The error.** With $\hat p_{t,n}$ the answer for point $n$ in frame $t$, and the mean over a set $\Omega$ of places:
#
# $$ e_{t,n} = \lVert \hat p_{t,n} - p_{t,n} \rVert, \qquad E = \frac{1}{|\Omega|} \sum_{(t,n) \in \Omega} e_{t,n} \tag{1} $$
#
# **What company does.** For each point its mean error in company and alone, on the same places; the mean of $\delta$ comes with Student's interval, as in chapter 1. Below zero, company helps:
#
# $$ \delta_n = E_n^{\text{company}} - E_n^{\text{alone}} \tag{2} $$
#
# **The palindrome.** In a film of $T$ frames with its reverse behind it, frame $2(T-1) - t_q$ shows what the query's frame $t_q$ shows (equation 9 of lesson 2):
#
# $$ h = \lVert \hat p_{2(T-1) - t_q} - (x, y) \rVert \tag{3} $$
#
# **Pairs.** In one window, $M$ times in each layer, the tokens of a frame meet. With $N$ points and a support grid of $g \times g$, through $V$ virtual tracks:
#
# $$ K = M\,S\,\big(2\,(N + g^2)\,V + V^2\big), \qquad K_{\text{each with each}} = M\,S\,(N + g^2)^2 \tag{4} $$
#
# **Memory.** What is taken beside the points, $m_0$, and $\mu$ for each of them:
#
# $$ m = m_0 + \mu\,N \tag{5} $$
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $e$ | error at a place | (T, N), px | `errors` | error e |
# | $E$ | mean error over places | px | `mean_error` | mean error E (px) |
# | $\delta$ | difference that company makes to a point | px | `differences` | difference δ (px) |
# | $h$ | palindrome error | (N,), px | `palindrome_error` | palindrome error h (px) |
# | $M$ | iterations of the update in a window | whole number | `iterations` | iterations M |
# | $S$ | frames of a window | even number | `window` | window S |
# | $V$ | virtual tracks | whole number | `virtual` | virtual tracks V |
# | $g$ | points a side of the support grid | whole number | `support` | support g |
# | $N$ | points that are asked for | whole number | `count` | points N |
# | $K$ | pairs of tokens that meet | whole number | `pairs` | pairs K |
# | $\mu$ | memory that a point takes | bytes | `slope` | slope μ |
#
# Not in the table, since they serve an equation or two: $\Omega$ (`where`), $\hat p$ (`answer`), $p$ (`points`), $t_q$ and $(x, y)$ (`queries`), $m$ and $m_0$ (`held`), $T$ frames.


# %%
def pairs(count, virtual, window=WINDOW, iterations=1, support=0):
    """Pairs of tokens that meet across tracks, through virtual ones or, for None, each with each."""
    every = count + support**2
    meet = every**2 if virtual is None else 2 * every * virtual + virtual**2
    return iterations * window * meet


for count in (48, 4_096, 265**2):
    direct, via = pairs(count, None), pairs(count, VIRTUAL)
    print(
        f"N = {count:6,}: {via:13,} through {VIRTUAL} virtual tracks, {direct:14,} each with each"
    )

# %% [markdown]
# ## Code
#
# ### Three switches, and a check of each
#
# `variant` above takes parts away from weights that learned with them. Such a **lesion** (损毁) is a probe at test time: it shows what the trained network relies on, and nothing about how good a network can be that never had the part. What it leaves alone must stay as it was, and what it cuts must be gone. First: with everything left, nothing changes.

# %%
same = copy.deepcopy(shipped)
again = Predictor(same, iterations=TRAINED)(encoded("plane"), clip_of("plane").queries, support=0)
assert torch.equal(again.points, tracked("plane").points)

# %% [markdown]
# Without virtual tracks no point may notice another. So the answer for a point must be the same in company and alone, up to the order of sums:

# %%
deaf = Predictor(variant(virtual=0), iterations=TRAINED)
few = clip_of("plane").queries[:, :3]
gaps = {}
for name, predictor in (("whole", Predictor(shipped, iterations=TRAINED)), ("without space", deaf)):
    joint, single = (
        predictor(encoded("plane"), few, support=0, together=together).points
        for together in (None, 1)
    )
    gaps[name] = (joint - single).abs().max().item()
print({name: f"{gap:.1e} px" for name, gap in gaps.items()})
# Sums of the same float32 numbers in parts of other sizes; lesson 4's waves magnify rounding.
assert gaps["without space"] < 0.02 and gaps["whole"] > gaps["without space"]

# %% [markdown]
# And a window may be longer than in training, because the time embedding is a formula and not a table that was learned (lesson 4): the same weights take any even number of frames.

# %%
for window in (4, 8, 16):
    print(f"S = {window:2}: tracks {tuple(tracked('plane', window=window).points.shape)}")

# %% [markdown]
# ### Learning without the part
#
# How good is a network that *never had* the exchange between points? That needs training, and a fair one trains both sides alike. From nothing it would take hours, so the question is cut down as in chapter 4: **the encoder stays as the checkpoint has it, the update learns anew**, from clips of one window whose features are computed once. The update starts either `fresh`, from random weights, or from the `shipped` ones, which then have some steps to get used to the loss of the part (the other side gets the same steps).

# %%
SMALLER = (56, 72)


@torch.no_grad()
def seen_by_update(clips):
    """What the update needs of clips of one window: features, tracks, visibility, queries."""
    rows = []
    for clip in clips:
        clip = enlarged(clip, 2)
        levels = shipped.pyramid(clip.video)
        rows.append((*levels, clip.points[0], clip.visible[0], clip.queries[0]))
    return TensorDataset(*map(torch.stack, zip(*rows, strict=True)))


def layer_clips(names, count, seed):
    photographs = load_photographs(names)
    options = {"frames": 8, "points": 32, "augment": False, "seed": seed}
    made = SyntheticClips(photographs, SMALLER, **options)
    return (Clip(*(part[None] for part in made[i])) for i in range(count))


@functools.cache
def pool(dataset, count):
    if dataset == "training":
        return seen_by_update(layer_clips(TRAIN_PHOTOGRAPHS, count, seed=1))
    if dataset == "layers":
        return seen_by_update(layer_clips(HELD_OUT_PHOTOGRAPHS, count, seed=0))
    return seen_by_update(plane_clip(seed, SMALLER, 8, 6) for seed in range(count))


# %% [markdown]
# One window, its loss (that of lesson 8), and one training:


# %%
def one_window(update, batch, iterations):
    """The estimates of an update for clips that are one window long."""
    *levels, _, visible, queries = batch
    rows = torch.arange(visible[..., 0].numel()).view(visible.shape[:2])
    flat = [level.flatten(0, 1) for level in levels]
    asked = rows.gather(1, queries[..., 0].long())
    anchors = update.anchor(flat, asked, queries[..., 1:] / STRIDE)
    model = copy.copy(shipped)  # shares the encoder; its update is replaced
    model._modules = shipped._modules | {"update": update}
    return model.track_window(flat, rows, 0, queries, anchors, None, iterations)


def window_loss(update, batch):
    *_, points, visible, queries = batch
    estimates = one_window(update, batch, 2)
    return sum(course_loss([(0, estimates)], Clip(points, points, visible, queries)).values())


@functools.cache
def learned(start, space, seed, steps, count):
    """An update after training, with or without attention across points."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        update = Update2(shipped.sizes)
    if start == "shipped":
        update.load_state_dict(shipped.update.state_dict())
    update.transformer.space = space
    batches = DataLoader(pool("training", count), batch_size=2, shuffle=True, drop_last=True)
    rate = {"fresh": 1e-3, "shipped": 3e-4}[start]
    options = {"steps": steps, "learning_rate": rate, "seed": seed, "progress": False}
    train(update, window_loss, batches, **options)
    return update


# %%
@torch.no_grad()
def relearn(setting, dataset, seed, steps=150, count=80, clips=16):
    """One run of the ablation: held-out errors of an update that learned for the setting."""
    with torch.enable_grad():
        update = learned(setting["start"], setting["space"], seed, steps, count)
    *_, points, visible, queries = batch = pool(dataset, clips).tensors
    answer = STRIDE * one_window(update, batch, 3)[-1].points
    errors = (answer - points).norm(dim=-1)
    asked = torch.arange(8)[:, None] > queries[:, None, :, 0]
    return {"seen": errors[asked & visible].mean(), "hidden": errors[asked & ~visible].mean()}


def ablation_study(path, run=relearn, seeds=range(3)):
    """The study behind the table below; `.run()` does what its file lacks."""
    settings = grid(start=["fresh", "shipped"], space=[True, False])
    return Study(path, run, settings=settings, datasets=["layers", "plane"], seeds=seeds)


# %% [markdown]
# The check: the shipped update, put into this frame, answers as the shipped model does.

# %%
tiny_batch = pool("layers", 2).tensors
with torch.no_grad():
    ours = STRIDE * one_window(shipped.update, tiny_batch, 3)[-1].points
    first = enlarged(next(layer_clips(HELD_OUT_PHOTOGRAPHS, 1, seed=0)), 2)
    theirs = shipped(first.video, first.queries, 3).points
assert (ours[:1] - theirs).abs().max() < 0.05
print("largest gap", f"{(ours[:1] - theirs).abs().max():.1e} px")

# %% [markdown]
# A small part of the study, live: a few steps, few clips. It shows that it runs, and its numbers mean nothing yet: in so few steps no update learns to track. To repeat the whole, write `ablation_study("runs/cotracker_ablations.jsonl").run()`; how long that took is printed with its table.


# %%
def relearn_briefly(setting, dataset, seed):
    steps, count = at_scale(cpu=2, gpu=150), at_scale(cpu=4, gpu=80)
    return relearn(setting, dataset, seed, steps, count, clips=2)


live = Study(
    folder / "live.jsonl",
    relearn_briefly,
    settings=grid(start=["fresh"], space=[True, False]),
    datasets=["layers"],
    seeds=[0],
).run(progress=False)
print(live[["start", "space", "seen", "hidden", "seconds"]].round(2).to_string(index=False))

# %% [markdown]
# ## On real input
#
# The notes that this course grew from give a paper's experiments an order: it runs; it runs on several data sets; why these hyperparameters; the ugly pictures are kept; ablation; a word on interpretation; and what was not tried. We follow it.
#
# ### It runs on several data sets
#
# The seed chooses the clip. Beside the errors of each kind of place stand the measures of TAP-Vid (lesson 2) and the palindrome error. For CoTracker's palindrome the features of the second half are those of the first in reverse; they need not be computed again.


# %%
@functools.cache
def homing(method, dataset, seed):
    """The palindrome error of every point of a clip (equation 3)."""
    clip = clip_of(dataset, seed)
    if method != "CoTracker":
        there = {"stay put": stay_put}.get(method)
        there = there or functools.partial(chained_flow, estimate_flow=FLOWS[method])
        return palindrome_error(there, clip.video, clip.queries)[0]
    half = encoded(dataset, seed)
    rows = torch.cat([torch.arange(half.frames), torch.arange(half.frames - 1).flip(0)])
    whole = EncodedVideo([level[rows] for level in half.levels], 1, len(rows), half.size)
    predictor = Predictor(shipped, iterations=TRAINED)
    return palindrome_error(lambda _, q: predictor(whole, q, support=0), clip.video, clip.queries)[
        0
    ]


# %%
def score(setting, dataset, seed):
    """One run: a method on a clip."""
    clip, answer = clip_of(dataset, seed), answer_of(setting["method"], dataset, seed)
    found = {kind: mean_error(answer, clip, mask) for kind, mask in kinds_of(clip).items()}
    truth = Tracks(clip.points, clip.visible.float())
    size = tuple(clip.video.shape[3:])
    tap = tap_vid_metrics(answer, truth, clip.queries, size, threshold=0.5)
    found |= {"AJ": tap.average_jaccard, "δ_avg": tap.average_within}
    found |= {"OA": tap.occlusion_accuracy}
    return found | {"palindrome": homing(setting["method"], dataset, seed).mean()}


plan = {"settings": grid(method=METHODS), "datasets": ["layers", "plane"], "seeds": range(3)}
study = Study(folder / "methods.jsonl", score, **plan)
frame = study.run(progress=False)
columns = ["seen", "hidden", "back", "AJ", "δ_avg", "OA", "palindrome"]
print(frame.groupby(["dataset", "method"])[columns].mean().round(2).to_string())
print(measured(frame, "seen"))

# %% [markdown]
# The first three columns and the last are pixels, and small is good; AJ, δ_avg and OA are shares, and large is good. A `NaN` says that the data set has no such place. As a ring, for the layers: a bar's length is relative to the best of its measure.

# %%
means = frame[frame.dataset == "layers"].groupby("method")[columns].mean()
better = {"AJ": "higher", "δ_avg": "higher", "OA": "higher"}
better |= {"seen": "lower", "hidden": "lower", "back": "lower"}
show(
    ring_chart({method: means.loc[method, list(better)].to_dict() for method in METHODS}, better),
    alt="A ring with six sectors, AJ, the mean share within, OA, and the errors of seen, hidden and "
    "returned places; in each a bar for each of four trackers, its number at the rim.",
)

# %% [markdown]
# Three clips are few, and easy clips are easy for all. Paired differences, each within one clip:

# %%
for dataset, kind in (("layers", "seen"), ("layers", "back"), ("plane", "seen")):
    by = frame[frame.dataset == dataset].pivot(index="seed", columns="method", values=kind)
    for other in METHODS[:3]:
        found = paired_difference(by["CoTracker"], by[other])
        ahead = other if found.mean > 0 else "CoTracker"
        order = "no order known" if found.holds(0) else f"{ahead} ahead"
        print(f"{dataset}, {kind}: CoTracker − {other:20} {found.text('+'):16} {order}")

# %% [markdown]
# ### Real film: does it come home?
#
# On the street there is the palindrome alone. Its error for each method and shot, the median over the points, in pixels of frames of 72 × 96:

# %%
home = {m: [homing(m, "street", seed).median().item() for seed in range(3)] for m in METHODS}
print(pd.DataFrame(home, index=["walker", "cars", "bus"]).T.round(2).to_string())

# %% [markdown]
# The row of zeros is the catch: *stay put* always comes home, and has followed nothing. A palindrome error is necessary for a good track and not sufficient. How much does it say? On the layers the truth is known: each dot is a point, its palindrome error against its true mean error on the way there.


# %% tags=["figure"]
def draw_palindrome():
    figure, panels = canvas(1, 3, 7.2, 2.6, sharex=True, sharey=True)
    for axes, method in zip(panels, METHODS[1:], strict=True):
        truth = torch.cat([true_errors(method, "layers", seed) for seed in range(3)])
        told = torch.cat([homing(method, "layers", seed) for seed in range(3)])
        axes.plot(truth.clamp(min=0.02), told.clamp(min=0.02), ".", color=COLOURS["flow"], ms=4)
        axes.plot([0.02, 80], [0.02, 80], color=COLOURS["muted"], linewidth=1)
        axes.set(xscale="log", yscale="log", title=method, xlabel="true mean error (px)")
    panels[0].set_ylabel("palindrome error h (px)")
    return figure


def true_errors(method, dataset, seed):
    """The mean error of each point after its query, hidden places too."""
    clip = clip_of(dataset, seed)
    asked = torch.arange(clip.video.shape[1])[:, None] > clip.queries[0, :, 0]
    errors = (answer_of(method, dataset, seed).points - clip.points)[0].norm(dim=-1)
    return (errors * asked).sum(dim=0) / asked.sum(dim=0).clamp(min=1)


show(
    draw_palindrome(),
    alt="Three scatters on logarithmic axes, one for each tracker: palindrome error over true mean "
    "error of each point, around a diagonal.",
)
for method in METHODS[1:]:
    truth, told = (
        torch.cat([values(method, "layers", seed) for seed in range(3)])
        for values in (true_errors, homing)
    )
    ranks = torch.stack([truth, told]).argsort(dim=1).argsort(dim=1).float()
    fooled = ((told < 1) & (truth > 4)).sum()
    print(
        f"{method:20} rank correlation {torch.corrcoef(ranks)[0, 1]:+.2f};"
        f" home within 1 px, yet over 4 px off: {fooled} of {len(told)}"
    )

# %% [markdown]
# Dots below the diagonal come home better than they tracked: a chain that has slipped off its point follows what it slipped onto, there and back. Rank correlations say how well the palindrome would order points if nothing else were known.
#
# ### Alone or together
#
# The claim of the paper. From each clip of layers some points are taken that a layer covers for a while and that come back, and asked for in four ways: alone; one by one with a support grid of either size; and with all the other queries of the clip. Places outside the frame do not count here.

# %%
PER_CLIP = at_scale(cpu=6, gpu=40)
WAYS = {
    "alone": {"together": 1, "support": 0},
    "support g = 3": {"together": 1, "support": 3},
    "support g = 6": {"together": 1, "support": 6},
    "all queries": {},
}


def in_frame(dataset, seed):
    """The places (T, N) that lie inside the frame, covered or not."""
    clip = clip_of(dataset, seed)
    return inside(clip.points, *clip.video.shape[3:])[0]


@functools.cache
def returning(seed):
    """Points of a clip of layers that are covered after the query and come back, the longest first."""
    kinds = kinds_of(clip_of("layers", seed))
    hidden = hidden_between(clip_of("layers", seed).visible[0]) & kinds["hidden"]
    hidden &= in_frame("layers", seed)
    rank = torch.where(kinds["back"].any(dim=0), hidden.sum(dim=0), -1)
    order = rank.argsort(descending=True, stable=True)[:PER_CLIP]
    return order[rank[order] > 0]


@functools.cache
def ways_of(seed, iterations=TRAINED):
    """The answers for the returning points of a clip, in every way of asking."""
    predictor, chosen = Predictor(shipped, iterations=iterations), returning(seed)
    asked = clip_of("layers", seed).queries[:, chosen]
    found = {
        way: predictor(encoded("layers", seed), asked, **options).points[0]
        for way, options in WAYS.items()
        if options
    }
    return found | {"all queries": tracked("layers", seed).points[0][:, chosen]}


begin = time.perf_counter()
company = []
for seed in range(3):
    clip, chosen = clip_of("layers", seed), returning(seed)
    for way, points in ways_of(seed).items():
        errors = (points - clip.points[0][:, chosen]).norm(dim=-1)
        for kind, mask in kinds_of(clip).items():
            here = (mask & in_frame("layers", seed))[:, chosen]
            for n in range(len(chosen)):
                error = errors[here[:, n], n].mean().item()
                company.append((seed, chosen[n].item(), way, kind, error))
company = pd.DataFrame(company, columns=["seed", "point", "way", "kind", "error"])
print(f"{time.perf_counter() - begin:.0f} s, {company.groupby(['seed', 'point']).ngroups} points")
print(company.groupby(["way", "kind"]).error.mean().unstack().loc[list(WAYS)].round(2))

# %% [markdown]
# Pixels, a mean over points; the rows are ways of asking, the columns kinds of places of the same points. Now point by point, company minus alone:


# %%
def differences(kind, way):
    """Each point's error in company minus its error alone (equation 2), where it has such places."""
    at = company[company.kind == kind].pivot(index=["seed", "point"], columns="way", values="error")
    return (at[way] - at["alone"]).dropna()


# %% tags=["figure"]
def draw_company():
    figure, panels = canvas(1, 3, 7.2, 2.4, sharey=True, sharex=True)
    for axes, kind in zip(panels, ("seen", "hidden", "back"), strict=True):
        for y, way in enumerate(list(WAYS)[1:]):
            values = differences(kind, way)
            jitter = torch.linspace(-0.2, 0.2, len(values))
            axes.plot(values, y + jitter, ".", color=COLOURS["muted"], markersize=3)
            found = mean_interval(values)
            bar = {"fmt": "o", "color": COLOURS["query"], "capsize": 3, "markersize": 4}
            axes.errorbar(found.mean, y, xerr=found.half, **bar)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(title=f"{kind} places", xlabel="difference δ (px)", ylim=(2.5, -0.5))
        axes.set_xscale("symlog", linthresh=2)
        axes.set_xticks([-20, -2, 0, 2, 20], [-20, -2, 0, 2, 20])
    panels[0].set_yticks(range(3), list(WAYS)[1:])
    return figure


show(
    draw_company(),
    alt="Three panels for seen, hidden and returned places; in each, three rows of dots around zero: "
    "the differences that a support grid of 3 or 6 points a side, or all queries, make.",
)
for kind, way in itertools.product(("seen", "hidden", "back"), list(WAYS)[1:]):
    values = differences(kind, way)
    points = mean_interval(values)
    clips = mean_interval(values.groupby("seed").mean())
    word = "open" if points.holds(0) else "helps" if points.mean < 0 else "harms"
    print(
        f"{kind:6} {way:14} by points {points.text('+'):14} ({word}), by clips {clips.text('+'):14}"
        f" helped {(values < 0).mean():.0%}"
    )

# %% [markdown]
# Left of the line, company helps. A grey dot is a point, the bar the mean with its interval (beyond ±2 the axis is logarithmic). Two intervals are printed, since points of one clip are not independent: they hide behind the same layer and return together. The interval by clips takes that into account and has three values to go by; where the two disagree on whether zero is inside, believe the wider.
#
# What it looks like: the point that company helped most, and the one that it harmed most, in the clips' own pixels.

# %%
gain = differences("back", "all queries")
cases = {"helped most": gain.idxmin(), "harmed most": gain.idxmax()}
print({name: f"{gain[case]:+.1f} px" for name, case in cases.items()})


# %% tags=["figure"]
def draw_cases():
    figure, rows = canvas(2, 4, 7.2, 3.3)
    marks = {"alone": ("second", "s"), "all queries": ("flow", "D")}
    for row, (name, (seed, point)) in zip(rows, cases.items(), strict=True):
        clip = clip_of("layers", seed)
        place = returning(seed).tolist().index(point)
        kinds = {kind: mask[:, point].nonzero()[:, 0] for kind, mask in kinds_of(clip).items()}
        back = int(kinds["back"][-1])
        hidden = kinds["hidden"][kinds["hidden"] < back].tolist()
        start = int(clip.queries[0, point, 0])
        for axes, t in zip(row, (start, hidden[0], hidden[-1], back), strict=True):
            axes.imshow(to_picture(clip.video[0, t]))
            axes.autoscale(False)
            fill = COLOURS["query"] if clip.visible[0, t, point] else "none"
            style = {"markeredgecolor": COLOURS["query"], "markerfacecolor": fill, "markersize": 9}
            axes.plot(*clip.points[0, t, point], "o", markeredgewidth=1.5, **style)
            for way, (colour, mark) in marks.items():
                x, y = ways_of(seed)[way][t, place]
                edge = {"markeredgecolor": "white", "markeredgewidth": 0.7, "markersize": 5}
                axes.plot(x, y, mark, color=COLOURS[colour], label=way, **edge)
            state = "seen" if clip.visible[0, t, point] else "hidden"
            axes.set(xticks=[], yticks=[], title=f"frame {t}, {state}")
        row[0].set_ylabel(name)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


show(
    draw_cases(),
    alt="Two rows of four frames: a point's true place as a circle, filled where it is seen, and two "
    "answers, alone as a square and with all queries as a diamond.",
    photo=True,
)

# %% [markdown]
# The circle is the truth, filled where the frame shows the point. The first frame is the query's, the next two the first and the last in which the point is hidden, the fourth is the last that shows it again. One picture of each sign is what a mean hides.
#
# ### The role of the hyperparameters
#
# Four numbers can be chosen at the time of use. Iterations first; the network learned with the number marked. Everything else is held.


# %%
def at_setting(setting, dataset, seed):
    """One run: CoTracker with a changed setting; all visible places after the query count."""
    clip, kinds = clip_of(dataset, seed), kinds_of(clip_of(dataset, seed))
    answer = tracked(dataset, seed, **setting)
    return {
        "E (px)": mean_error(answer, clip, kinds["seen"] | kinds["back"]),
        "hidden (px)": mean_error(answer, clip, kinds["hidden"]),
    }


def study_of(**values):
    """A small study over one setting, on the two data sets with a truth."""
    (name,) = values
    plan = {"settings": grid(**values), "datasets": ["layers", "plane"], "seeds": range(3)}
    return Study(folder / f"{name}.jsonl", at_setting, **plan).run(progress=False)


roles = {"iterations": study_of(iterations=[1, 2, 3, 8])}
show(
    role_of(roles["iterations"], "iterations", "E (px)", chosen=TRAINED),
    alt="Two panels of mean error over 1 to 8 iterations, with a dot for each clip, the mean and a "
    "band, and the number of iterations in training marked.",
)
print(measured(roles["iterations"], "E (px)"))

# %% [markdown]
# Bands are wide because clips differ; paired differences take that away. Numbers above the marked one go beyond what the network was unrolled for in training, where it may drift:


# %%
def against(name, chosen, metric="E (px)"):
    """Each other value against the chosen one, within the same clip."""
    for dataset in ("layers", "plane"):
        rows = roles[name][roles[name].dataset == dataset]
        at = rows.pivot(index="seed", columns=name, values=metric)
        texts = [
            f"{value}: {paired_difference(at[value], at[chosen]).text('+')}"
            for value in at.columns
            if value != chosen
        ]
        print(f"{dataset:7} {name} against {chosen}:", "; ".join(texts))


against("iterations", TRAINED)

# %% [markdown]
# Now the window and the virtual tracks. A window of another length changes two things at once: how far the network looks in time, and over how many windows an error is carried. And a lesion of virtual tracks keeps the first $V$ of those that learned together; $V = 0$ switches the exchange off.

# %%
roles["window"] = study_of(window=[4, 8, 16])
roles["virtual"] = study_of(virtual=sorted({0, 1, VIRTUAL // 4, VIRTUAL}))


# %% tags=["figure"]
def draw_roles():
    figure, rows = canvas(2, 3, 7.2, 4.0, sharey="row")
    names = {"iterations": "iterations M", "window": "window S", "virtual": "virtual tracks V"}
    chosen = {"iterations": TRAINED, "window": WINDOW, "virtual": VIRTUAL}
    for row, dataset in zip(rows, ("layers", "plane"), strict=True):
        for axes, (name, label) in zip(row, names.items(), strict=True):
            found = roles[name][roles[name].dataset == dataset]
            values = sorted(found[name].unique())
            for _, one in found.groupby("seed"):
                heights = one.set_index(name).loc[values, "E (px)"]
                axes.plot(range(len(values)), heights, color=COLOURS["muted"], linewidth=0.8)
            means = found.groupby(name)["E (px)"].mean().loc[values]
            axes.plot(range(len(values)), means, "o-", color=COLOURS["flow"], ms=4)
            at = values.index(chosen[name])
            axes.plot(at, means.iloc[at], "o", ms=9, color=COLOURS["query"], fillstyle="none")
            axes.set_xticks(range(len(values)), values)
            axes.set_xlabel(label)
        row[0].set_ylim(bottom=0)
        row[0].set_ylabel(f"{dataset}\nmean error E (px)")
    return figure


show(
    draw_roles(),
    alt="Six panels: mean error over iterations, window length and virtual tracks, on layers and on "
    "the plane; thin lines for clips, a thick one for their mean, a ring at the value of training.",
)
against("window", WINDOW)
against("virtual", VIRTUAL)
against("virtual", VIRTUAL, "hidden (px)")

# %% [markdown]
# A thin line is a clip, the thick one their mean, the ring marks the setting of training. Settings are as far apart as they stand in the list, not to scale. Whether a line falls to the left of the ring or to the right is not to be read as a recipe: these clips are held out, and a setting chosen on them is no longer tested by them.
#
# ### Ablation
#
# The long study ships with the course as a file: 150 steps of training for each run, batches of two clips of 8 frames, two iterations, from 80 clips; errors on 16 held-out clips of layers and 16 of the plane, in pixels of frames of 112 × 144. The weights that its encoder comes from are named by the first digits of their sha256. Reading the file repeats no run:

# %%
STUDIED = "ead2aafa"
same = file_sha256(WEIGHTS).startswith(STUDIED)
print(f"encoder of the study: {STUDIED}, {'as shipped' if same else 'earlier than that shipped'}")
ablated = ablation_study(data_path("results", "cotracker_ablations.jsonl")).frame()
print(ablated.groupby(["dataset", "start", "space"])[["seen", "hidden"]].mean().round(2))
print(measured(ablated, "seen", on="held out"))

# %%
for start, metric in itertools.product(("fresh", "shipped"), ("seen", "hidden")):
    table = ablation_table(ablated[ablated.start == start], "space", metric)
    for row in table.rows:
        difference = row.difference
        word = "open" if difference.holds(0) else "helps" if difference.mean < 0 else "harms"
        print(
            f"{start:8} {metric:6} {row.dataset:7} with − without {difference.text('+'):16} {word}"
        )

# %% [markdown]
# *With − without*, so below zero the exchange between points helps. *Open* does not mean that it does nothing; it means that three seeds of a short training cannot tell. From fresh weights both sides are near their beginning, and a part that pays late is treated unfairly. From the shipped weights the other side is favoured: they learned with the part, and 150 steps may be too few to get over its loss. There the seed only orders the training, since all runs begin with the same weights; so its intervals are narrow, and they speak of that order alone, not of other weights.
#
# ### 70 thousand points
#
# Virtual tracks are what makes tracking *jointly* affordable: the paper speaks of 70 thousand points at once. Here one window of 8 frames, one iteration, one joint pass, in a process of its own that says its peak of memory after each number of points (the numbers grow, since a peak cannot fall).

# %%
PASS = """
import json, time, torch
from fourfold.cotracker.cotracker import load_cotracker
from fourfold.cotracker.predictor import EncodedVideo, Predictor

torch.set_num_threads(1)
model = load_cotracker()
H, W = model.sizes.resolution
predictor = Predictor(model, iterations=1)
video = predictor.encode(255 * torch.rand(1, 8, 3, H, W, generator=torch.Generator().manual_seed(0)))
for count in counts:
    queries = torch.rand(1, count, 3) * torch.tensor([0.0, W - 1, H - 1])
    begin = time.perf_counter()
    predictor(video, queries, support=0)
    seconds = time.perf_counter() - begin
    try:
        peak = 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
    except OSError:
        import psutil
        peak = psutil.Process().memory_info().rss
    print(json.dumps([count, peak, seconds]))
"""


def joint_passes(counts):
    """Points, peak bytes and seconds of joint passes, in a process of their own."""
    # Freed memory goes back to the system at once, so that a peak is one of tensors (GNU's malloc).
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    code = f"counts = {counts}\n{PASS}"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=settings
    )
    return torch.tensor([json.loads(line) for line in run.stdout.splitlines()]).double()


counts, held, seconds = joint_passes([256, 1024, 1792]).T
ones = torch.ones_like(counts)
fits = [
    torch.linalg.lstsq(torch.stack([counts, ones], dim=1), values[:, None]).solution[:, 0]
    for values in (held, seconds)
]
(slope, base), (pace, _) = (fit.tolist() for fit in fits)
bound = bytes_per_point(shipped, 8)
most = int((8e9 - base) / slope)
print(
    f"a point takes {slope / 1e3:.1f} kB (lesson 7's bound {bound / 1e3:.1f}) and {pace * 1e3:.2f} ms"
)
print(
    f"in 8 GB: {most:,} points at once; 265² = {265**2:,} need {(base + 265**2 * slope) / 1e9:.1f} GB"
)
print(f"and {265**2 * pace:.0f} s for one iteration of one window, on this machine")


# %% tags=["figure"]
def draw_scale():
    figure, (left, right) = canvas(1, 2, 6.8, 2.6)
    left.plot(counts, held / 1e6, "o", color=COLOURS["flow"], label="measured")
    line = (base + slope * counts) / 1e6
    left.plot(counts, line, color=COLOURS["flow"], lw=1, label=f"slope μ = {slope / 1e3:.0f} kB")
    left.set(xlabel="points N", ylabel="peak memory (MB)", ylim=(0, 1.15 * held.max() / 1e6))
    left.legend(loc="lower right", fontsize=8, frameon=False)
    N = torch.logspace(1.5, 5, 50)
    right.loglog(N, pairs(N, None), "--", color="black", label="each with each")
    right.loglog(N, pairs(N, VIRTUAL), color=COLOURS["second"], label=f"V = {VIRTUAL}")
    right.axvline(265**2, color=COLOURS["muted"], linewidth=0.8)
    right.text(265**2, 3e4, "70k ", ha="right", size=8)
    right.set(xlabel="points N", ylabel="pairs K")
    right.legend(loc="upper left", fontsize=8, frameon=False)
    return figure


show(
    draw_scale(),
    alt="Left, peak memory over the number of points with a fitted straight line. Right, on "
    "logarithmic axes, the pairs of tokens that meet: slope two each with each, slope one through "
    "virtual tracks.",
)
ratio = pairs(265**2, None) / pairs(265**2, VIRTUAL)
scores = 4 * shipped.sizes.heads * 265**4 / 1e9
print(
    f"at 70k: {ratio:,.0f} times the pairs; the scores of one frame alone would be {scores:,.0f} GB"
)

# %% [markdown]
# Left, dots are measured and the line is Equation 5 fitted to them. Right is Equation 4, computed and not measured: with each point reading each other, a table of scores for one frame would not fit into any one machine (unless it is worked on in tiles and never kept, which saves the memory and not the time).
#
# And the pass itself: on a GPU all 70,225 points, on a CPU as many as are done in a moment. The features of the plane are used again.

# %%
SIDE = at_scale(cpu=32, gpu=265)
big = copy.deepcopy(shipped).to(device())
levels = [level[:WINDOW].to(device()) for level in encoded("plane").levels]
window = EncodedVideo(levels, 1, WINDOW, encoded("plane").size)
begin = time.perf_counter()
dense = Predictor(big, iterations=TRAINED)(window, grid=SIDE)
last = dense.points[0, -1].cpu()
print(
    f"{dense.points.shape[2]:,} points jointly: {time.perf_counter() - begin:.1f} s on {device()}"
)
path = camera_path(16, (72, 96), 0)[WINDOW - 1 : WINDOW]
true = through(path, dense.points[0, 0].cpu())[0]
far = (last - true).norm(dim=-1)
usual = kinds_of(clip_of("plane"))["seen"][WINDOW - 1]
few = (tracked("plane").points - clip_of("plane").points)[0, WINDOW - 1, usual].norm(dim=-1)
print(
    f"median error in frame {WINDOW - 1}: {far.median():.2f} px; with 49 points {few.median():.2f} px"
)

# %% [markdown]
# Does a crowd change the answer? The last line compares medians, of a dense grid and of the 49 points that the plane had. In training a window never held more than some dozens.
#
# ### Failures are kept
#
# The points of the layers with the largest error at a place that the frame *shows*, and those with the smallest. Each picture is cut out around the true place in that frame: the circle is the truth, the cross the answer, if it is in the cut-out at all.


# %%
def cut_out(image, centre, other, half=24, times=3):
    """The pixels around a place, enlarged, with a circle there and a cross at the other place."""
    x, y = (int(v) for v in centre.round())
    padded = torch.nn.functional.pad(image[None], (half,) * 4, mode="replicate")[0]
    part = padded[:, y : y + 2 * half + 1, x : x + 2 * half + 1]
    part = part.repeat_interleave(times, 1).repeat_interleave(times, 2).clone()
    here = pixel_grid(*part.shape[1:])
    middle, cross = ((p - centre.round() + half + 0.5) * times for p in (centre, other))
    ring = ((here - middle).norm(dim=-1) - 2.5 * times).abs() < 0.4 * times
    offset = (here - cross).abs()
    arms = (offset.amin(dim=-1) < 0.3 * times) & (offset.amax(dim=-1) < 2 * times)
    part[:, ring] = torch.tensor([255.0, 255, 255])[:, None]
    part[:, arms] = torch.tensor([255.0, 60, 60])[:, None]
    return part


def worst_places(seed):
    """For each point of a clip of layers: its largest visible error, the frame, and a reason."""
    clip, kinds = clip_of("layers", seed), kinds_of(clip_of("layers", seed))
    answer = tracked("layers", seed).points[0]
    errors = (answer - clip.points[0]).norm(dim=-1)
    errors = torch.where(kinds["seen"] | kinds["back"], errors, -1.0)
    steps = clip.points[0].diff(dim=0).norm(dim=-1)
    grey = clip.video[0].mean(dim=1)
    for n in range(errors.shape[1]):
        worst, t = errors[:, n].max(dim=0)
        if worst < 0:
            continue
        frame, x, y = (int(v) for v in clip.queries[0, n].round())
        patch = grey[frame, max(0, y - 4) : y + 5, max(0, x - 4) : x + 5]
        yield {
            "picture": cut_out(clip.video[0, t], clip.points[0, t, n], answer[t, n]),
            "error": worst.item(),
            "back": bool(kinds["back"][t, n]),
            "fastest": steps[:, n].max().item(),
            "contrast": patch.std().item(),
            "away": float((clip.points[0, t, n] - clip.queries[0, n, 1:]).norm()),
        }


# %%
places = [place for seed in range(3) for place in worst_places(seed)]
table = pd.DataFrame(places).drop(columns="picture")
flat, quick = table.contrast.quantile(0.25), table.fastest.quantile(0.75)
table["why"] = "none of these"
table.loc[table.fastest > quick, "why"] = "quick"
table.loc[table.contrast < flat, "why"] = "flat"
table.loc[table.back, "why"] = "was hidden"
show(
    failure_gallery([p["picture"] for p in places], table.error, captions=table.why, k=5),
    alt="Ten cut-outs in two rows, the five points with the largest error above the five with the "
    "smallest, each with a circle at the true place and a red cross at the answer, and a reason.",
    photo=True,
)
print(table.groupby("why").error.agg(["count", "median", "max"]).round(1).to_string())

# %% [markdown]
# A reason is a guess by rule, the first that fits: the point *was hidden* before, its surroundings at the query are *flat* (contrast in the lowest quarter), or it is *quick* (its fastest step in the highest quarter). The table says whether the guess separates anything: compare the medians with that of *none of these*. Pictures that look alike are of points on one layer, which were lost together. And the rank correlations:

# %%
ranks = table[["error", "fastest", "contrast", "away"]].rank()
print("with the largest error:", ranks.corr().error.drop("error").round(2).to_dict())

# %% [markdown]
# `away` is how far the point is then from where it was asked for: the update begins each window where the last one ended, so distance in itself should not matter much, while what it brings along, other surroundings and another angle, may.
#
# ### Could, might: a word on interpretation
#
# Why should company help a hidden point? It *could* be carried along: the others move, and a point that the frame does not show moves as they do. If so, the steps that CoTracker lets a hidden point make should go with the mean step of the other answers, and less so for a point that was asked for alone.

# %%
steps_of = {"alone": [], "all queries": [], "truth": [], "others": []}
for seed in range(3):
    clip, chosen = clip_of("layers", seed), returning(seed)
    hidden = kinds_of(clip)["hidden"][1:, chosen]
    crowd = tracked("layers", seed).points[0].diff(dim=0).median(dim=1, keepdim=True).values
    sources = ways_of(seed) | {"truth": clip.points[0][:, chosen]}
    for name in ("alone", "all queries", "truth"):
        steps_of[name].append(sources[name].diff(dim=0)[hidden].flatten())
    steps_of["others"].append(crowd.expand(-1, len(chosen), -1)[hidden].flatten())
flat_steps = {name: torch.cat(parts) for name, parts in steps_of.items()}
for name in ("alone", "all queries", "truth"):
    both = torch.stack([flat_steps[name], flat_steps["others"]])
    print(
        f"{name:12} steps while hidden, correlation with the others' median: {torch.corrcoef(both)[0, 1]:+.2f}"
    )

# %% [markdown]
# The last line is the yardstick: hidden points *truly* move with the others only so far, because a camera moves all layers and each layer moves by itself. An answer whose number is above it follows the crowd more than it should; one below it less. This is a reading of a correlation, on a few clips. It does not show that attention across points is the way by which it happens.
#
# ### Beside the other papers
#
# The cards of chapter 1 say what the four papers of this course share, and where CoTracker stands.

# %%
cards = read_cards(data_path("cards"))
compare(cards, ["output", "representation", "backbone", "elements interact"])

# %% [markdown]
# ### What this cannot show
#
# - **Limitation.** One small network, trained for a short time on made clips by one seed. What holds for it need not hold for the published weights, which learned from far more, for far longer.
# - **Limitation of the data.** Three clips of 16 small frames for each data set; layers move as their maker imagined, and a photograph under a camera has neither depth nor anything that hides. The street has no truth, and the palindrome can be fooled.
# - **Limitation of the lesions.** Fewer virtual tracks, another window, more iterations than in training: the network never learned with them. They probe what it relies on.
# - **Limitation of the ablation.** The encoder learned in the service of the whole and stayed; the update learned for 150 steps on clips of one window, where a point is hidden for a few frames at most.
# - **No time to try.** Training with other windows or numbers of virtual tracks; version 3; local support grids; long films, where windows hand on errors many times; TAP-Vid's own videos; the published weights (`fourfold track --weights`), which lesson 6 loads.

# %% [markdown]
# ## Exercises
#
# Nothing is left blank in this lesson: its exercises are experiments.
#
# **Predict.** Twice as many points: by what factor grow the pairs each with each, and those through virtual tracks? And what does a support grid of 6 × 6 add to the pairs of a single point, through virtual tracks?
#
# <details><summary>Hint</summary>
#
# Equation 4: which terms hold $N$? For a single point, $V^2$ is not small.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Each with each, fourfold; through virtual tracks twice, as long as $N$ is far above $V$. The support grid makes 37 points of one, but part of the cost, $V^2$, is there in any case. The cell at the end has the numbers.
#
# </details>
#
# **Find the bug.** A colleague writes: "we compare company with alone at 200 hidden places, so the interval of the difference is narrow". They put every *place* into `paired_difference`. What is wrong, and how much narrower does it get?
#
# <details><summary>Hint</summary>
#
# The same point in frame 7 and in frame 8: are these two samples?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Student's interval is for independent values. A point that is lost in one frame is lost in the next, and a layer's points are lost together. Places count as many what happened once. Below stand the half widths by place, by point and by clip, of the same difference: the truth is nearer to the last, which has too few values to say it well. The cure is more clips.
#
# </details>
#
# **Measure.** For each clip, which number of iterations has the lowest error? How much better is the best of them than the number of training, and may you report it?
#
# <details><summary>Hint</summary>
#
# `roles["iterations"]` holds the errors; `groupby(["dataset", "seed"])`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The gain is printed below. It is chapter 1's *best of many*: chosen on held-out data, clip by clip, so it flatters. Fix the number beforehand, or choose it on clips that are not tested.
#
# </details>
#
# **Vary.** The support grid lies over the whole frame, in frame 0. Ask for the returning points with a support grid over the *left half* alone (build the queries yourself and cut the answer). Does it matter where the company is?
#
# <details><summary>Hint</summary>
#
# `grid_points(6, (H, W / 2), (W / 4, H / 2))` makes the points, `at_frame(0.0, …)` the queries; append them to one point's query, track with `support=0`, and keep `points[:, :, :1]`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# No number of this lesson says how it ends. If company works by carrying a point along, neighbours on the same layer should matter most, and a grid on the other side of the frame little. Compare point by point, and say how many points there were.
#
# </details>

# %% [markdown]
# The numbers behind the answers:

# %%
for name, virtual in (("each with each", None), ("through virtual tracks", VIRTUAL)):
    print(f"{name}: {pairs(8_000, virtual) / pairs(4_000, virtual):.2f} times the pairs")
print(
    f"one point with a grid of 6 × 6: {pairs(1, VIRTUAL, support=6) / pairs(1, VIRTUAL):.1f} times"
)

# %%
by_place = []
for seed in range(3):
    clip, chosen = clip_of("layers", seed), returning(seed)
    hidden, answers = kinds_of(clip)["hidden"][:, chosen], ways_of(seed)
    errors = {
        way: (answers[way] - clip.points[0][:, chosen]).norm(dim=-1)[hidden]
        for way in ("all queries", "alone")
    }
    by_place.append(errors["all queries"] - errors["alone"])
by_point = differences("hidden", "all queries")
for name, values in (
    ("place", torch.cat(by_place).tolist()),
    ("point", by_point),
    ("clip", by_point.groupby("seed").mean()),
):
    found = mean_interval(values)
    print(f"by {name}: {found.n:4} values, {found.text('+')} px")

# %%
at = roles["iterations"].pivot(index=["dataset", "seed"], columns="iterations", values="E (px)")
best = at.idxmin(axis=1)
print("best number of iterations, clip by clip:", best.tolist())
print(f"gain over {TRAINED}: {(at[TRAINED] - at.min(axis=1)).mean():.2f} px on average")

# %% [markdown]
# ## What breaks
#
# ### The perfect score of a tracker that tracks nothing
#
# Whoever tunes a tracker on real film by its palindrome error alone has a better one at hand:

# %%
for method in METHODS:
    print(
        f"{method:20} {torch.cat([homing(method, 'street', s) for s in range(3)]).mean():6.2f} px"
    )
assert all(homing("stay put", "street", seed).max() == 0 for seed in range(3))

# %% [markdown]
# The mean here, the median above; the two may order the methods differently, since a few points that are lost far away rule a mean. Beside a palindrome error belongs how far the points went.
#
# ### A lesion is no ablation
#
# What the trained network loses without its virtual tracks, and what a network loses that learned to do without:

# %%
at = roles["virtual"].pivot(index=["dataset", "seed"], columns="virtual", values="hidden (px)")
lesion = at[0].groupby("dataset").mean() / at[VIRTUAL].groupby("dataset").mean() - 1
relearned = (
    ablated[ablated.start == "shipped"].groupby(["dataset", "space"]).hidden.mean().unstack()
)
for dataset in ("layers", "plane"):
    never = relearned.loc[dataset, False] / relearned.loc[dataset, True] - 1
    print(f"{dataset}: hidden places, cut off {lesion[dataset]:+.0%}, learned without {never:+.0%}")

# %% [markdown]
# The first number says what the trained network relies on, the second what the part is for, as far as a short training tells. They answer different questions (and here on clips of different lengths; and with different weights, if the study's encoder is an earlier one), and need not agree even in sign.
#
# ### What the code says to bad input
#
# A clip too short for the window, no iterations, the file of another study, and an ablation over several settings at once:

# %%
short = clip_of("plane").video[:, :8]
with shows_error(ValueError):
    Predictor(variant(window=16))(short, clip_of("plane").queries)
with shows_error(ValueError):
    Predictor(shipped, iterations=0)
with shows_error(ValueError):
    Study(folder / "window.jsonl", at_setting, **plan).frame()
with shows_error(ValueError):
    ablation_table(ablated, "space", "seen")

# %% [markdown]
# ## Recap
#
# - A tracker is tested where the truth is exact (layers, plane) and where there is none (street): beside staying put and chained flow, on seen, hidden and returned places apart, and with the palindrome, which a good track passes and a lazy one too.
# - Company is judged point by point against asking alone, with an interval that takes clips as its unit; windows, iterations and virtual tracks of the same weights are probes, learning without a part is an ablation.
# - Through virtual tracks pairs and memory grow in proportion to $N$; each with each, 70 thousand points would meet in billions of pairs a frame.
#
# Here the line of CoTracker ends, and with it that of the four papers. [Chapter 6](../6_bilinear_sampling/1_sampling.ipynb) holds what both RAFT and CoTracker read their features with.
