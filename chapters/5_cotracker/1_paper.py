# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: beginner
#     minutes: 50
#     needs:
#     - 6_bilinear_sampling/3_window
#     - 4_raft/6_raft
#     promotes: false
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The paper: many tracks, refined together
#
# **After this lesson you can** answer the four questions for CoTracker, draw its pipeline with the shape of every array, and show on a real video what a chain of optical flow loses at an occlusion.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb) (`3_window`), which read a neighbourhood of features, and [RAFT](../4_raft/6_raft.ipynb) (`6_raft`), whose flow is chained here. [Reading cards](../1_paper_writing/3_reading_cards.ipynb) explains the four questions; the lesson can be read without it. *Time:* 50 minutes, and 25 for the exercises.

# %% [markdown]
# ## Words
#
# Optical flow (光流) sees **all points** of a picture, and only **two frames**. To follow a point for longer one adds up the flow from frame to frame, and then two things happen. The small error of each step stays in the sum: the chain **drifts** (漂移). And where something passes in front of the point (**occlusion**, 遮挡), the flow at that place is the flow of what passes: the chain rides away on it and never comes back.
#
# Point trackers before CoTracker watch a **long video** instead, and follow **each point on its own**. But points of one object move together. Where one is hidden, its neighbours may still be seen, and they say where it must be.
#
# Here is the **key question** of Karaev and colleagues (2023): can the points of a video be tracked *jointly*, over a long time? Their answer keeps for every point a **track** (轨迹): its place in each frame, and its **visibility** (可见性), whether it is seen there. All tracks start from a poor guess, *the point stays where it was asked for*. A **transformer** (a network whose inputs, called tokens, read one another) improves this initial estimate (改进轨迹的初始估计) several times with the same weights. A token stands for one track in one frame; tokens read each other along time, and across tracks. Long videos are worked through in short overlapping **windows** (窗口), each of which starts from what the one before has found.
#
# The notes ask **four questions** of a paper. The first is answered above; the second, what is new and where the paper introduces it, under *Figure*; the third, which experiments it has, and the fourth, what their form lets a reader see, under *On real input*.

# %% [markdown]
# ## Figure
#
# ### The pipeline, measured
#
# A real run of the paper's model on a clip that this lesson keeps to: a bicycle leans on a wall, someone walks past it, and the camera pans slowly. The clip has every second frame of one shot. The weights are still random; shapes do not depend on them.

# %%
from collections import defaultdict
from functools import partial

import torch
from matplotlib.patches import Rectangle

from fourfold.bilinear_sampling.sampling import sample
from fourfold.cotracker.cotracker import CoTracker, load_cotracker, window_starts
from fourfold.cotracker.predictor import Predictor
from fourfold.cotracker.tokens import place_embedding, time_embedding
from fourfold.cotracker.tracks import chained_flow, palindrome_error, stay_put
from fourfold.cotracker.transformer import Attention
from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, show, to_picture
from fourfold.kit.notebook import shows_error
from fourfold.kit.track_picture import track_picture
from fourfold.kit.video import bundled_clip, clip_credit, read_video
from fourfold.paper_writing.reading_cards import (
    Comparison,
    headline_results,
    open_questions,
    read_card,
)
from fourfold.raft.fields import classical_flow
from fourfold.raft.raft import load_raft

# %% [markdown]
# A **query** (查询点) is a frame and a place in it: *where does the point go that is here in this frame?* There are 24 on the bicycle and six on the bollard in front of it, all asked in frame 0.

# %%
clip = read_video(bundled_clip("bikes"), start=187, step=2, frames=17, height=136)
video = clip[None, ..., 96:304].float()  # the middle of the picture
bicycle = torch.cartesian_prod(torch.linspace(62, 138, 6), torch.linspace(40, 84, 4))
bollard = torch.tensor([[36, 62], [46, 64], [41, 72], [40, 88], [46, 98], [42, 112]])
places = torch.cat([bicycle, bollard.float()])
queries = torch.cat([torch.zeros(len(places), 1), places], dim=1)[None]
on_bicycle = torch.arange(len(places)) < len(bicycle)
print("video", tuple(video.shape), " queries", tuple(queries.shape))

# %% [markdown]
# A **hook** is a function that PyTorch calls whenever a part of a model has run. The ones below keep what some parts take and give, call by call. Twelve frames make two windows of eight, which share four.

# %%
torch.manual_seed(0)
model = CoTracker("2").eval()
taken, given = defaultdict(list), defaultdict(list)
INSIDE = ("input_transform", "time_blocks.0")


def keep(name):
    def hook(part, inputs, output):
        taken[name].append(inputs)
        given[name].append(output)

    return hook


names = ["fnet", "update.transformer", *(f"update.transformer.{x}" for x in INSIDE)]
hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
with torch.no_grad():
    windows = dict(model.windows(video[:, :12], queries, iterations=2))
for hook in hooks:
    hook.remove()
tokens = taken["update.transformer"][0][0]  # of the first iteration
change = given["update.transformer"][0]
maps = torch.cat(given["fnet"])
points, visibility, _ = windows[0][-1]


# %%
def size(array, skip=1):
    """The measured shape, without the batch axis."""
    return " × ".join(map(str, array.shape[skip:]))


def place(axes, x, y, name, shape, colour="muted", picture=None, height=0.55):
    """A part of the pipeline: a box or a picture, with its name and its measured shape."""
    box = axes.inset_axes([x - 0.8, y - height / 2, 1.6, height], transform=axes.transData)
    box.set(xticks=[], yticks=[])
    box.spines[:].set(visible=True, color=COLOURS[colour], linewidth=1.6)
    if picture is not None:
        box.imshow(picture, cmap="gray", aspect="auto")
    middle = y if picture is None else y + height / 2 + 0.14
    axes.text(x, middle, name, ha="center", va="center", fontsize=8, zorder=9)
    axes.text(x, y - height / 2 - 0.06, shape, ha="center", va="top", fontsize=7)
    return box


def arrows(axes, ends, colour="black"):
    for *start, x, y in ends:
        axes.annotate("", (x, y), start, arrowprops={"arrowstyle": "-|>", "color": colour})


# %% tags=["figure"]
def draw_pipeline():
    figure, axes = canvas(1, 1, 7.6, 3.7)
    axes.add_patch(Rectangle((3.3, -0.15), 6.05, 4.1, color="0.94"))
    frames = place(
        axes, 0, 2.0, "video", size(video[:, :12]), picture=to_picture(video[0, 0]), height=1.1
    )
    frames.plot(*places.T, "o", color=COLOURS["query"], markersize=2)
    place(axes, 2.1, 3.1, "features φ", size(maps, 0), "first", maps[0, 0], 0.9)
    correlations = tokens[..., 130:326].transpose(1, 2)
    name = "correlations C\nof Q, with φ at P"
    place(axes, 4.3, 3.1, name, size(correlations), "first", height=0.9)
    place(axes, 4.3, 1.7, "places P", size(points), "flow")
    place(axes, 4.3, 0.5, "track features Q", size(tokens[..., 326:454].transpose(1, 2)), "query")
    place(axes, 6.4, 2.5, "tokens G", size(tokens), "query", tokens[0].norm(dim=-1), 0.9)
    place(axes, 8.4, 3.1, "transformer Ψ", size(given["update.transformer.input_transform"][0]))
    place(axes, 8.4, 1.1, "change Δ", size(change), "flow")
    place(axes, 4.3, -0.95, "visibility v", size(visibility), "second", height=0.5)
    axes.text(5.45, 0.0, "iteration m: same weights, round and round", fontsize=8)
    result = "P and v: the result of this window,\nand the start of the next"
    axes.text(5.4, -0.95, result, va="center", fontsize=8)
    arrows(axes, [(0.82, 2.3, 1.28, 2.8), (2.92, 3.1, 3.48, 3.1), (2.5, 2.38, 3.48, 0.6)])
    arrows(axes, [(0.82, 1.8, 3.48, 1.7), (4.3, 2.0, 4.3, 2.38), (4.3, 0.0, 4.3, -0.68)])
    arrows(axes, [(5.12, 3.1, 5.58, 2.8), (5.12, 1.8, 5.58, 2.3), (5.12, 0.7, 5.8, 1.75)])
    arrows(axes, [(7.22, 2.7, 7.58, 3.0)])
    arrows(
        axes,
        [(8.4, 2.58, 8.4, 1.4), (7.58, 1.25, 5.12, 1.6), (7.58, 1.0, 5.12, 0.45)],
        COLOURS["flow"],
    )
    axes.set(xlim=(-0.95, 9.45), ylim=(-1.45, 4.0))
    axes.set_axis_off()
    return figure


show(
    draw_pipeline(),
    alt="CoTracker as boxes: the video becomes feature maps, from which the features of the tracks"
    " are read; a grey loop of correlations, tokens, transformer, change and places runs round, and"
    " the tracks and the visibility leave it below.",
    photo=True,
)
print(clip_credit("bikes"))

# %% [markdown]
# What stands on white runs once: the features for each frame, the visibility for each window. The grey loop runs as often as one likes. (The visibility that a window begins with is a small part of its tokens; that arrow is left out.) Axes are frames S and tracks N, in either order, then numbers; the batch is left out. Each row of the picture of tokens is one track, each column one frame; before the first change all frames hold nearly the same, so the rows look even.
#
# The parts, in the order of the notes:
#
# - A convolutional network gives a feature vector for every place of every frame, at a quarter of the size (卷积网络提取 d 维特征，分辨率降低 4 倍).
# - A track's feature (特征向量) $Q$ is read from these maps at the query. It is a vector for each track and frame, all alike at first, and it is refined with the track.
# - A track's correlation features (相关性向量) $C$ are inner products, stacked (堆叠内积): of $Q$ with the frame's features around the place $P$ where the track is thought to be. They say in which direction the likeness grows.
# - A token $G$ joins motion, correlations, feature and visibility of one track in one frame.
# - A transformer $\Psi$ turns all tokens into changes $\Delta$ of places and features. Then everything is read again at the new places.

# %%
levels, side = model.sizes.levels, 2 * model.sizes.radius + 1
print(f"correlations: {levels} levels × {side} × {side} places = {levels * side**2}")
print("after an iteration, places = places before + change of places:")
before, after = (estimate.points for estimate in windows[0])
moved = given["update.transformer"][1][..., :2].transpose(1, 2)
print(f"off by at most {(after - before - moved).abs().max():.0e} feature pixels")
assert torch.allclose(after, before + moved, atol=1e-4)  # float32 at places up to 52

# %% [markdown]
# ### Tokens are a grid
#
# In a window there is a token for each of $N$ tracks in each of $S$ frames. The transformer alternates two kinds of **attention** (注意力: each token takes a weighted mean of what others hold). *Along time*, a token reads the tokens of its own track, one row. *Across tracks*, it reads the tokens of its own frame, one column. Directly, that would be each track with each; the paper lets $V = 64$ **virtual tracks** stand between. They are learned tokens that belong to no point: they read all tracks, read one another, and are read by all tracks.


# %% tags=["figure"]
def draw_grid(many=256):
    N, S, V = tokens.shape[1], tokens.shape[2], model.sizes.virtual_tracks
    inside = given["update.transformer.time_blocks.0"][:2]
    lengths = [part.norm(dim=-1).expand(-1, S) for part in inside]
    rows = torch.cat([each / each.max() for each in lengths])
    figure, (grid, scale) = canvas(1, 2, 7.4, 3.9, width_ratios=(1.5, 1))
    gap = torch.full((3, S), torch.nan)
    grid.imshow(torch.cat([rows[:N], gap, rows[N:]]), aspect="auto", cmap="gray")
    track, frame, ink = 9, 5, COLOURS["query"]
    grid.add_patch(Rectangle((-0.5, track - 0.5), S, 1, fill=False, color=ink, linewidth=2))
    across = COLOURS["second"]
    grid.add_patch(Rectangle((frame - 0.5, -0.5), 1, N + 3 + V, fill=False, color=across, lw=2))
    grid.text(S - 0.3, track, "attention\nalong time", color=ink, va="center")
    note = "across tracks,\nthrough V virtual tracks"
    grid.text(S - 0.3, N + 14, note, color=across, va="center")
    grid.set_xlabel("S frames of a window", loc="left")
    grid.set(xticks=range(S), yticks=[N / 2, N + 3 + V / 2])
    grid.set_yticklabels([f"N tracks\n(here {N})", f"{V}\nvirtual"])
    grid.set(xlim=(-0.6, S + 4.5), ylim=(N + V + 3, -1))
    grid.spines[:].set_visible(False)
    squares = [(0, 0, many, many, "0.85"), (0, many + 40, V, many, across)]
    squares += [(V + 15, many + 40, V, V, across), (2 * V + 30, many + 40, many, V, across)]
    for x, y, width, height, colour in squares:
        scale.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor="black"))
    scale.text(
        many / 2, many / 2, f"each with each:\npairs K = {many**2:,}", ha="center", va="center"
    )
    through = f"through {V}:\npairs K = {2 * many * V + V * V:,}"
    scale.text(2 * V + 30, many + 150, through, va="top")
    scale.set(xlim=(-5, 425), ylim=(2 * many + 50, -5), aspect="equal")
    scale.set_title(f"one frame of {many} tracks,\nto scale", loc="left")
    scale.set_axis_off()
    return figure


show(
    draw_grid(),
    alt="Left, a grid of tokens: rows are tracks, columns frames; one row is outlined as attention"
    " along time, one column, which goes on through 64 rows of virtual tracks, as attention across"
    " tracks. Right, the pairs of one frame as areas: a large square for each with each, three"
    " smaller rectangles for the way through virtual tracks.",
)

# %% [markdown]
# Left: the lengths of the tokens after the first attention along time, in the run above. With 30 tracks the virtual ones are the majority and cost more than they save; the right side shows 256 tracks, to scale. *Code* counts the pairs.
#
# ### What is new, and in which part of the paper it is introduced
#
# The card of the paper answers the second question (创新点). *Against* says which earlier habit the thing replaces.

# %%
card = read_card(data_path("cards", "cotracker.yaml"))


def as_table(parts, *fields):
    """Chosen fields of the parts of a card, as a table."""
    rows = [[getattr(part, field) for field in fields] for part in parts]
    rows = [tuple(", ".join(v) if isinstance(v, tuple) else v or "" for v in row) for row in rows]
    return Comparison(tuple(field.replace("_", " ") for field in fields), tuple(rows))


print(card.question)
as_table(card.innovations, "name", "where_introduced", "against")

# %% [markdown]
# The first innovation is named in all three parts, and in the title. The last is named in the method alone, though it is most of what the code does: it is RAFT's idea, carried over to whole tracks. What is *not* new, and which gaps the paper closes:

# %%
print(*card.not_new, sep="\n")
as_table(card.overcomes, "paper", "gap")

# %% [markdown]
# A fifth thing has no row, because it is a way of *using* the model: **support points**. A user who asks for a single point gives the model nothing to track it together with. So a grid of further points is tracked along and thrown away afterwards ([lesson 7](7_predictor.ipynb) builds it, [lesson 9](9_experiments.ipynb) measures what it helps).

# %% [markdown]
# ## Formula
#
# ### A chain of flows
#
# Let $f_t$ be the flow from frame $t$ to the next, and $P_t$ the place of a point in frame $t$, $(x, y)$ in pixels. The chain goes on from place to place:
#
# $$ P_{t+1} = P_t + f_t(P_t) \tag{1} $$
#
# An error in $P_t$ stays in all later places, and the flow is then read at a wrong place, too. Nothing in equation 1 looks back at what the point looked like in the beginning.
#
# Compare it with the flow $f_{0 \to t}$ that is estimated *directly* from frame 0 to frame $t$. Where the point is seen in both, this gives a second opinion $P^\star$ on its place, and the **miss** $e$ of any track that claims to know it:
#
# $$ P^\star_t = P_0 + f_{0 \to t}(P_0), \qquad e = \left| P_t - P^\star_t \right| \tag{2} $$
#
# Play a video of $T$ frames forward and then backward (a palindrome, 回文), and every point must come home. The **palindrome error** $h$ is the distance that remains:
#
# $$ h = \left| P_{2(T-1)} - P_0 \right| \tag{3} $$
#
# ### Tracks, refined
#
# CoTracker has a place $P_t^i$ for each track $i$ in each frame $t$ of a window, and improves all of them at once. It starts from *nothing moves*: $P_t^i$ is the query's place in all frames, and $Q_t^i$ the feature $\phi$ found there. Then it repeats three steps. First, compare: the feature of the track with the frame's features, around the place, on coarser and coarser levels $\ell$ of the maps:
#
# $$ C_t^i = \left[ \left\langle Q_t^i,\ \phi_t^{(\ell)}\!\left( P_t^i / 2^\ell + \delta \right) \right\rangle \right]_{\ell,\, \delta} \tag{4} $$
#
# The offset $\delta$ runs over a window of 7 × 7. (The code also divides each product by the root of the number of channels, so that its size does not grow with them.) Second, join what is known to a **token**:
#
# $$ G_t^i = \left[ \mathrm{waves}(P_t^i - P_1^i),\ C_t^i,\ Q_t^i,\ v_t^i \right] + \eta(P_1^i) + \eta'(t) \tag{5} $$
#
# The motion is counted from the place in the first frame of the window, $P_1^i$. Waves are sines and cosines of several frequencies ([lesson 4](4_tokens.ipynb)); the embeddings $\eta$ and $\eta'$ are made of them too and say where the track is and which frame this is. Third, let all tokens read each other, and change places and features:
#
# $$ (\Delta P, \Delta Q) = \Psi(G), \qquad P^{(m+1)} = P^{(m)} + \Delta P, \qquad Q^{(m+1)} = Q^{(m)} + g(\Delta Q) \tag{6} $$
#
# The number $m$ counts iterations; $g$ is a small learned layer. Both parts of $\Delta$ come from one output of the transformer. RAFT's $f_{n+1} = f_n + \Delta$ has the same shape: an estimate, and a correction by a network that sees what the estimate leads to. After the last iteration the visibility $v$ is read from the feature.
#
# ### What it costs
#
# Attention computes one number for each pair of tokens that read each other. Over a window of $S$ frames, with $V$ virtual tracks, a layer has $K$ pairs; compare it with $K_{\text{all}}$, for each track with each:
#
# $$ K = \underbrace{(N + V)\, S^2}_{\text{along time}} + \underbrace{(2 N V + V^2)\, S}_{\text{across tracks}}, \qquad K_{\text{all}} = N S^2 + N^2 S \tag{7} $$
#
# So $O(N^2)$ has become $O(NV)$: linear in the number of tracks.
#
# ### Windows
#
# A window has $S$ frames and begins half a window, $S/2$ frames, after the one before. A video of $T$ frames has $J$ of them:
#
# $$ J = \left\lceil \frac{T - S}{S / 2} \right\rceil + 1 \tag{8} $$
#
# A window starts where the one before ended: it takes over the places and the visibility of the frames that they share, and the last of these places stands in for the frames that are new. So a frame is settled when its window is, without looking further ahead: the tracker can run **online**, half a window late.
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $f$ | flow from one frame to another | (2, H, W), px | `flow` | flow f |
# | $P$ | places of the tracks | (S, N, 2), px | `points` | places P |
# | $P^\star$ | place found by direct flow | (N, 2), px | `direct` | direct P* |
# | $e$ | miss of a track | (N,), px | `miss` | miss e |
# | $h$ | palindrome error | (N,), px | `homes` | palindrome error h |
# | $\phi$ | features of the frames | (T, C, H/4, W/4) | `maps` | features φ |
# | $Q$ | features of the tracks | (S, N, 128) | `track_features` | track features Q |
# | $C$ | correlations | (S, N, 196) | `correlations` | correlations C |
# | $v$ | visibility | (S, N) | `visibility` | visibility v |
# | $G$ | tokens | (N, S, 456) | `tokens` | tokens G |
# | $\Psi$ | transformer | a network | `transformer` | transformer Ψ |
# | $\Delta$ | change of places and features | (N, S, 130) | `change` | change Δ |
# | $m$ | number of the iteration | whole number | `m` | iteration m |
# | $N$ | number of tracks | whole number | `N` | N tracks |
# | $S$ | frames of a window | whole number | `S` | S frames |
# | $V$ | number of virtual tracks | whole number | `V` | V virtual tracks |
# | $K$ | pairs of tokens that read each other | a count | `pairs` | pairs K |
# | $J$ | number of windows | a count | `J` | J windows |
#
# Letters of shapes: $T$ frames of the video, $H$ and $W$ height and width; the batch is left out.

# %% [markdown]
# ## Code
#
# ### A chain
#
# Equation 1 in four lines, for one query in frame 0. [Lesson 2](2_tracks.ipynb) builds `chained_flow`, which also goes backward and says when a chain is broken.


# %%
def chain(flows, x, y):
    """The places (T, 2) of one point, moved by one flow (1, 2, H, W) after another."""
    path = [torch.tensor([x, y])]
    for flow in flows:
        path.append(path[-1] + sample(flow, path[-1][None, None], padding="border")[0, :, 0])
    return torch.stack(path)


# %% [markdown]
# A turntable checks it: every frame turns by 2° about the middle of the picture, and the flow is known exactly.

# %%
turn = torch.tensor(2.0).deg2rad()
matrix = torch.stack([torch.cos(turn), -torch.sin(turn), torch.sin(turn), torch.cos(turn)])
y, x = torch.meshgrid(torch.arange(65.0), torch.arange(65.0), indexing="ij")
grid = torch.stack([x, y], dim=-1) - 32
turning = (grid @ matrix.view(2, 2).T - grid).movedim(-1, 0)[None]
path = chain([turning] * 180, 42.0, 32.0)
print(f"after a full turn the point misses its start by {(path[-1] - path[0]).norm():.4f} px")
assert (path[-1] - path[0]).norm() < 0.01
library = chained_flow(
    torch.zeros(1, 9, 3, 65, 65), torch.tensor([[[0.0, 42.0, 32.0]]]), lambda a, b: turning
)
assert torch.allclose(library.points[0, :, 0], path[:9], atol=1e-4)

# %% [markdown]
# The chain is exact, so what goes wrong below is the flow's fault. Let the flow be wrong by 0.1 pixel, first always to the right, then each time in a random direction:

# %%
torch.manual_seed(0)
for name, error in {
    "always the same": lambda: torch.tensor([0.1, 0.0]),
    "random": lambda: 0.1 * torch.nn.functional.normalize(torch.randn(2), dim=0),
}.items():
    misses = []
    for _ in range(20):
        wrong = chain([turning * 0 + error().view(1, 2, 1, 1) for _ in range(64)], 32.0, 32.0)
        misses.append((wrong[[4, 16, 64]] - wrong[0]).norm(dim=-1))
    print(
        f"{name:>15}: after 4, 16, 64 frames",
        *(f"{m:.2f}" for m in torch.stack(misses).mean(0)),
        "px",
    )

# %% [markdown]
# Errors that point the same way add up as the number of frames, random ones as its square root. Neither stops.
#
# ### A token, taken apart
#
# The hook has kept the tokens of the first iteration. Take the two embeddings off, and the four pieces of equation 5 lie side by side:

# %%
embedded = tokens[0] - place_embedding(places / 4, tokens.shape[-1], (96, 128))[:, None]
embedded = embedded - time_embedding(tokens.shape[2], tokens.shape[-1])
motion, correlations, track_features, seen = embedded.split([130, 196, 128, 2], dim=-1)
print("motion of the first point, frame 7:", motion[0, 7, :6].abs().round(decimals=3).tolist())
print("visibility (frame known, v):", seen[0, 7].round(decimals=3).tolist())

# %% [markdown]
# Nothing has moved yet, so the motion is 0, its sines are 0 and its cosines 1. The visibility $v$ starts at 10, which means *certainly seen* (it is a logit: $1 / (1 + e^{-10})$ is nearly 1).
#
# The naive version of equation 4, for one point in one frame: read, multiply, add.


# %%
def correlation_loop(query_feature, levels, frame, place, radius=3):
    """Equation 4 for one point: a list of products, level by level, x before y."""
    products = []
    for k, level in enumerate(levels):
        picture = level[frame].movedim(-1, 0)[None]
        for dx in range(-radius, radius + 1):
            for dy in range(-radius, radius + 1):
                at = place / 2**k + torch.tensor([dx, dy])
                feature = sample(picture, at[None, None], padding="border")[0, :, 0]
                products.append((query_feature * feature).sum() / len(feature) ** 0.5)
    return torch.stack(products)


# %%
with torch.no_grad():
    pyramid = model.pyramid(video[:, :12])
for n, t in ((0, 0), (20, 5)):
    at = places[n] / 4
    Q = sample(maps[:1], at[None, None], padding="border")[0, :, 0]
    by_loop = correlation_loop(Q, pyramid, t, at)
    gap = (by_loop - correlations[n, t]).abs().max() / by_loop.abs().max()
    print(f"track {n}, frame {t}: {len(by_loop)} products, off by {gap:.0e} of the largest")
    # Embeddings of up to 1 were added and taken off again, each with a rounding of 6e-8 or more.
    assert gap < 1e-4
    assert torch.allclose(track_features[n, t], Q, atol=1e-4 * Q.abs().max().item())

# %% [markdown]
# The largest of these products, level by level, in the query's own frame: the middle of each window is the query itself.

# %%
own = correlations[0, 0].view(levels, side, side)
print("in the middle of level 0:", f"{own[0, 3, 3]:.1f}", " largest there:", f"{own[0].max():.1f}")

# %% [markdown]
# Even random features are most like themselves. (They prove little else: what training makes of them, lesson 8 shows.)
#
# ### Counting pairs
#
# Equation 7 against a count in a real run: a hook on every attention multiplies the number of its readers and of those they read.


# %%
def pairs_through(N, S, V):
    return (N + V) * S**2 + (2 * N * V + V**2) * S


def pairs_of_all(N, S):
    return N * S**2 + N**2 * S


counted = []


def count(part, inputs, output):
    readers, read = inputs[0], inputs[0] if len(inputs) < 2 or inputs[1] is None else inputs[1]
    counted.append(len(readers) * readers.shape[1] * read.shape[1])


transformer = model.update.transformer
hooks = [p.register_forward_hook(count) for p in transformer.modules() if isinstance(p, Attention)]
with torch.no_grad():
    transformer(tokens)
for hook in hooks:
    hook.remove()
N, S, V = tokens.shape[1], tokens.shape[2], model.sizes.virtual_tracks
saved = V * (S**2 - 1)
through = model.sizes.depth * pairs_through(N, S, V)
print(f"{sum(counted):,} pairs counted, {through:,} by equation 7, less {saved:,}")
assert sum(counted) == through - saved

# %% [markdown]
# The difference is a saving of our code: when the first layer begins, a virtual track is the same in all frames, so its attention along time is made for one frame.

# %% [markdown]
# From how many tracks on do virtual tracks pay, and what do they save for the paper's 70 thousand (265 × 265)?

# %%
pays = next(N for N in range(1, 1000) if pairs_through(N, S, V) < pairs_of_all(N, S))
print(f"fewer pairs from {pays} tracks on")
for N in (30, 256, 265**2):
    pairs, every = pairs_through(N, S, V), pairs_of_all(N, S)
    print(f"N = {N:6,}: {pairs:15,} through virtual tracks, {every:15,} each with each")
print(f"the last: {every / pairs:.0f} times fewer")


# %% tags=["figure"]
def draw_costs():
    figure, (cost, strip) = canvas(1, 2, 7.4, 2.5, width_ratios=(1, 1.3))
    N = torch.logspace(1, 5, 60)
    cost.loglog(N, pairs_of_all(N, S), "--", color="black", label="each with each")
    cost.loglog(N, pairs_through(N, S, V), color=COLOURS["second"], label="through 64")
    cost.axvline(265**2, color=COLOURS["muted"], linewidth=0.8)
    cost.text(265**2, 2e4, "70k ", ha="right", fontsize=8)
    cost.set(xlabel="N tracks", ylabel="pairs K of a layer")
    cost.legend(loc="upper left")
    T, starts = video.shape[1], window_starts(video.shape[1], S)
    for j, first in enumerate(starts):
        shown = min(S, T - first)
        for width, shade in ((S, "white"), (shown, "0.75")):
            bar = {"facecolor": shade, "edgecolor": "0.5"}
            strip.add_patch(Rectangle((first - 0.45, j - 0.3), width - 0.1, 0.6, **bar))
        if j:
            arrows(strip, [(first + 1.5, j - 0.72, first + 1.5, j - 0.28)])
    strip.set(xlim=(-0.7, first + S), ylim=(len(starts) - 0.4, -0.7), yticks=range(len(starts)))
    strip.set_xticks(range(0, first + S, S // 2))
    strip.set(xlabel="frame t", title=f"J windows: {len(starts)} for {T} frames, S = {S}")
    strip.set_yticklabels([f"window {j + 1}" for j in range(len(starts))])
    return figure


show(
    draw_costs(),
    alt="Left, the pairs of a layer against the number of tracks on logarithmic axes: a steep line"
    " for each with each crosses a flatter one for the way through 64 virtual tracks between a"
    " hundred and two hundred tracks. Right, four bars of eight frames, each four frames after the one before, with arrows"
    " from the second half of each to the first half of the next.",
)

# %%
J = -(-(video.shape[1] - S) // (S // 2)) + 1  # rounded up
assert list(window_starts(video.shape[1], S)) == [j * S // 2 for j in range(J)]
print(f"{video.shape[1]} frames: {J} windows, which begin at {[j * S // 2 for j in range(J)]}")

# %% [markdown]
# Right: an arrow carries places and visibility over to the frames that two windows share. White frames do not exist; copies of the last one stand in for them.
#
# ### Three architectures, one name
#
# A search for CoTracker finds three models. The paper's first text (July 2023) is version 1; its second text (December 2023, and ECCV 2024) is version 2, of which 2.1 is the same with longer windows and new weights; a second paper (CoTracker3, arXiv 2410.11831) is version 3, which works online, in windows, or offline, on the whole clip at once. The counts of version 1 are those of its release; those of 2 and 3 the code counts.

# %%
later = CoTracker("3", mode="online")


def parameters(network):
    return f"{sum(p.numel() for p in network.parameters()):,}"


rows = [
    ("across tracks", "full attention", "64 virtual tracks", "64 virtual tracks"),
    ("layers time / space", "6 / 6", "6 / 6 × 3", "3 / 3 × 3"),
    ("correlation", "track's feature · map", "the same", "patch · patch, then an MLP"),
    ("outside the frame", "zeros", "the border goes on", "the border goes on"),
    ("track's feature refined", "yes", "yes", "no"),
    ("visibility", "after the loop", "after the loop", "refined in the loop"),
    ("confidence", "no", "no", "yes"),
    ("frames of a window", "8 (also 12, 16)", "8; 16 in 2.1", "16 online; the clip offline"),
    ("width of a token", "456", f"{model.update.inputs}", f"{later.update.inputs:,}"),
    ("parameters", "24,149,859", parameters(model), parameters(later)),
    ("support points in its tests", "6 × 6 and 6 × 6 near it", "5 × 5 and 8 × 8 near it", "5 × 5"),
]
Comparison(("", "version 1", "versions 2, 2.1", "version 3"), tuple(rows))

# %% [markdown]
# Read it column by column. Version 2 *added* virtual tracks. That nearly doubled the parameters, since each space layer became three. Version 3 *dropped* half of the layers and the refined features, and *added* richer correlations (a window of features around the query against one around the place), a confidence, and a second stage of training: on videos without labels, where older trackers are its teachers. Its paper calls it simpler and better; in parameters it is smaller than version 2, and not than version 1. [Lesson 6](6_cotracker.ipynb) builds version 2 in full, because it is the paper's, and version 3 as what it changes.

# %% [markdown]
# ## On real input
#
# ### Flow, chained
#
# Two estimates of flow: RAFT with the weights that chapter 4 has trained, and a classical one, iterative Lucas–Kanade (iLK) from scikit-image. Forward and backward flow of each pair of frames is kept, since the palindrome asks for the same pairs again.


# %%
def remembered(estimate_flow):
    """The same estimate, made once for each pair of images."""
    known = {}

    def estimate(image1, image2):
        key = image1.numpy().tobytes(), image2.numpy().tobytes()
        if key not in known:
            known[key] = estimate_flow(image1, image2)
        return known[key]

    return estimate


raft = load_raft()
estimates = {
    "iLK": remembered(partial(classical_flow, "ilk")),
    "RAFT": remembered(lambda image1, image2: raft.estimate(image1, image2, 6).full),
}

# %%
trackers = {
    "stay put": stay_put,
    **{f"chained {k}": partial(chained_flow, estimate_flow=f) for k, f in estimates.items()},
}
answers = {name: tracker(video, queries) for name, tracker in trackers.items()}


# %% tags=["figure"]
def show_tracks(tracks):
    return track_picture(video[0], tracks.points[0], tracks.visible()[0], panels=6)


show(
    show_tracks(answers["chained RAFT"]),
    alt="Six frames of the clip with the points of the RAFT chain: on the bicycle at first, then"
    " swept to the right along with the legs of the walker, and scattered over the wall and the"
    " cellar window when he has left; the points on the bollard stay.",
    photo=True,
)

# %% [markdown]
# Rings are points whose chain is known to be broken: the flow there and back did not return, or the point left the picture. All points of the bicycle are swept away by the walker. When he has left, the bicycle stands there whole, and not one chain comes back: nothing in equation 1 could bring it back.

# %%
for name in ("chained iLK", "chained RAFT"):
    alive = answers[name].visible()[0].sum(dim=1).tolist()
    print(f"{name}: unbroken chains, frame by frame: {alive}")

# %% [markdown]
# Why? Look at one step, from frame 5 to frame 6. The flow of a pixel on the walker is the walker's, and by now many of the points are on him.


# %% tags=["figure"]
def draw_step(t=5):
    flow = estimates["RAFT"](video[:, t], video[:, t + 1])
    figure, (left, right) = canvas(1, 2, 7.4, 2.6)
    left.imshow(to_picture(video[0, t]))
    points = answers["chained RAFT"].points[0, t]
    step = sample(flow, points[None], padding="border")[0]
    style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006}
    left.quiver(*points.T, *step, color=COLOURS["flow"], **style)
    left.plot(*points.T, "o", color=COLOURS["query"], markersize=3)
    left.set(title=f"frame {t}: places P, flow f at each", xlabel="x (px)", ylabel="y (px)")
    left.set(xlim=(-0.5, video.shape[4] - 0.5), ylim=(video.shape[3] - 0.5, -0.5))
    picture = right.imshow(flow[0, 0], cmap="PuOr", vmin=-15, vmax=15)
    right.set(title="flow f, its part to the right (px)", xlabel="x (px)", yticks=[])
    figure.colorbar(picture, ax=right, shrink=0.8)
    return figure


show(
    draw_step(),
    alt="Frame 5 with a point and an arrow for each track: long arrows to the right on the legs of"
    " the walker, none elsewhere. Beside it the flow to the right as a map: large where the walker"
    " is, about zero elsewhere.",
    photo=True,
)

# %% [markdown]
# ### A second opinion
#
# Where should the points be at the end? The first and the last frame both show the bicycle whole, so the flow can be estimated directly between them (equation 2), by both methods, and compared:

# %%
last = video.shape[1] - 1
found = {}
for name, estimate in estimates.items():
    flow = estimate(video[:, 0], video[:, last])
    found[name] = places + sample(flow, places[None], padding="border")[0].T
direct = found["RAFT"]
differ = (found["iLK"] - direct).norm(dim=-1)
for group, where in (("bicycle", on_bicycle), ("bollard", ~on_bicycle)):
    shift = (direct - places)[where].median(dim=0).values.tolist()
    print(f"{group}: moved by ({shift[0]:.1f}, {shift[1]:.1f}) px; ", end="")
    print(f"the two methods differ by {differ[where].median():.2f} px (medians)")
assert differ[on_bicycle].median() < 1

# %% [markdown]
# On the bicycle, two methods that share nothing agree. On the smooth bollard they do not. A third opinion for both: cut the thing out of the first frame, slide it over the last one, and keep the shift where the two are most alike (correlation 1 would be equal).


# %%
def slide(left, right, top, bottom, reach=26):
    """The shift (dx, dy) of a box from the first frame to the last, and how alike they are."""
    first, final = (video[0, t].mean(dim=0) for t in (0, last))
    best = (-1.0, 0, 0)
    for dy in range(-4, 5):
        for dx in range(-reach, reach + 1):
            pair = (
                first[top:bottom, left:right],
                final[top + dy : bottom + dy, left + dx : right + dx],
            )
            alike = torch.corrcoef(torch.stack([each.flatten() for each in pair]))[0, 1].item()
            best = max(best, (alike, dx, dy))
    return best[1:], best[0]


for group, box, where in (
    ("bicycle", (60, 140, 36, 90), on_bicycle),
    ("bollard", (26, 60, 50, 130), ~on_bicycle),
):
    shift, alike = slide(*box)
    print(f"{group}: moved by {shift} px, correlation {alike:.2f}")
    assert ((direct - places)[where].median(dim=0).values - torch.tensor(shift)).norm() < 2

# %% [markdown]
# The camera turns to the right, so what it sees moves to the left, the near bollard more than the bicycle. RAFT's direct flow is confirmed on both, so the place $P^\star$ that it finds can judge the rest. (It is an estimate too: a miss $e$ below a pixel says nothing.)
#
# Notice that **the same network** that lost all points step by step finds them in one step. In one step it compares the last frame with the *query's own frame*, and no step in between can spoil that. A tracker keeps this idea and gives up the single step: the feature $Q$ of the query is compared with every frame, and what lies between is a help and no longer a risk.
#
# ### A tracker
#
# [Lesson 8](8_learning.ipynb) trains a small CoTracker for this course on made clips, on one processor. The paper's model has seen more data and is many times larger, so read its answer as a demonstration of the idea and not of the paper's quality.

# %%
course = load_cotracker()
trackers["tracker"] = Predictor(course)
answers["tracker"] = trackers["tracker"](video, queries)
print(f"parameters: {parameters(course)}, the paper's model {parameters(model)}")

# %% tags=["figure"]
show(
    show_tracks(answers["tracker"]),
    alt="The same six frames with the points of the tracker: some are dragged while the walker covers"
    " them, and most are back on the bicycle in the last frame.",
    photo=True,
)

# %% [markdown]
# Under the walker some points are dragged along, and some are rings. When he has gone, most are back where they belong: the tracker has compared each frame with the query's. Those that are not back are lost for good: the model is small.
#
# Now the numbers: how many points are said to be seen at the end, how far they are from where they should be, and how far from home the palindrome leaves them. (In truth 30 are seen.)

# %%
homes, miss, rows = {}, {}, []
for name, tracker in trackers.items():
    homes[name] = palindrome_error(tracker, video, queries)[0]
    miss[name] = (answers[name].points[0, last] - direct).norm(dim=-1)
    cells = [str(answers[name].visible()[0, last].sum().item())]
    for values in (miss[name], homes[name]):
        cells += [f"{values[where].median():.1f}" for where in (on_bicycle, ~on_bicycle)]
    rows.append((name, *cells))
header = ("", "seen at the end", "miss, bicycle", "miss, bollard", "home, bicycle", "home, bollard")
Comparison(header, tuple(rows))

# %% [markdown]
# (Medians, in pixels.)
#
# - *Staying put* is wrong by as much as the camera has moved, and its palindrome error is zero, as it always comes home. So a palindrome finds failures, and proves no success.
# - On the bicycle both *chains* miss by far more than staying put does: the occlusion.
# - Nothing covers the bollard. There the RAFT chain keeps its points and falls short of the true motion, little by little: drift. (Its round trips fail all the same, since the walker passes close behind.) The iLK chain cannot hold the smooth bollard at all.
# - The *tracker* has passed through the occlusion too, and is nearer on the bicycle than staying put.

# %%
for name in ("chained iLK", "chained RAFT"):
    assert miss[name][on_bicycle].median() > 3 * miss["stay put"][on_bicycle].median()
assert 1 < miss["chained RAFT"][~on_bicycle].median() < 0.5 * miss["stay put"][~on_bicycle].median()
assert miss["tracker"][on_bicycle].median() < miss["stay put"][on_bicycle].median()
assert homes["stay put"].max() == 0


# %% tags=["figure"]
def draw_misses():
    figure, (left, right) = canvas(1, 2, 7.4, 2.7)
    inks = dict(zip(trackers, ("muted", "first", "second", "query"), strict=True))
    for k, name in enumerate(trackers):
        for where, mark, shift in ((on_bicycle, "o", -0.15), (~on_bicycle, "^", 0.15)):
            height = miss[name][where].clamp(min=0.1)
            spread = torch.linspace(-0.1, 0.1, len(height)) + k + shift
            style = {"color": COLOURS[inks[name]], "markersize": 4}
            left.semilogy(spread, height, mark, **style)
            right.loglog(height, homes[name][where].clamp(min=0.1), mark, **style)
    left.set(ylabel="miss e (px)", xticks=range(len(trackers)), title="at the end, from direct P*")
    left.set_xticklabels([name.replace(" ", "\n") for name in trackers])
    left.plot([], [], "o", color="black", markersize=4, label="bicycle")
    left.plot([], [], "^", color="black", markersize=4, label="bollard")
    left.legend(fontsize=7)
    right.set(xlabel="miss e (px)", ylabel="palindrome error h (px)")
    return figure


show(
    draw_misses(),
    alt="Left, the miss of each point for four trackers, on a logarithmic axis, bicycle and bollard"
    " apart: the RAFT chain is fair on the bollard, and both chains are far off on the bicycle. Right, the palindrome"
    " error against the miss.",
)

# %% [markdown]
# The same result in three forms. The film strip shows *what happened*: who took the points away, and when. The table gives one number for each group, to be compared and quoted; it hides that some points are right while others are far. The dots show *how many*, and that the miss spans two orders of magnitude. Right: points far down to the right are the danger, lost in the middle and home at the end.
#
# ### Which experiments, and in which form the results are shown
#
# The third question, from the card. [Lesson 2](2_tracks.ipynb) builds the measures. The share $\delta_{\text{avg}}$ of visible points that are within 1, 2, 4, 8 and 16 pixels, averaged, asks *where*; the occlusion accuracy (OA) asks *seen or hidden*; the average Jaccard (AJ) asks both at once.

# %%
as_table(card.experiments, "question", "data", "measures", "setup")

# %% [markdown]
# The second row fits the paper's claim best: who tracks jointly should know where a *hidden* point is. Only made videos know that, so it needs a data set of its own. And the fourth question, with what each form lets a reader see:

# %%
as_table(card.presentation, "form", "shows", "lets_see")

# %% [markdown]
# ### The headline table
#
# Numbers that others have published, each with its source. *Strided* and *first* say which frames are asked: a query every five frames, or one where the point is first seen.

# %%
results = headline_results("cotracker")
scores = results[results["data"].str.contains("TAP-Vid|Replica")]
columns = ["data", "method", "measure", "printed", "unit", "source"]
Comparison(tuple(columns), tuple(scores[columns].itertuples(index=False, name=None)))

# %% [markdown]
# And the four current networks on four data sets, from one source, all points of a video at once:

# %%
joint = results[results["source"].str.contains("2025")]
wide = joint.pivot(index="method", columns="data", values="printed")
print("δ_avg of visible points, in %")
Comparison(("method", *wide.columns), tuple(wide.itertuples(name=None)))


# %%
def published(data, method, measure):
    chosen = "data == @data and method == @method and measure == @measure"
    return results.query(chosen)["value"].item()


DAVIS, V2 = "TAP-Vid DAVIS, strided", "CoTracker (version 2)"
ours, apart = (published(DAVIS, m, "AJ") for m in ("CoTracker (version 1)", "TAPIR"))
print(f"strided, AJ: version 1 is {ours - apart:.1f} points above TAPIR, which tracks points apart")
asked = [published(f"TAP-Vid DAVIS, {mode}", V2, "AJ") for mode in ("strided", "first")]
print(
    f"version 2, AJ: strided {asked[0]}, first {asked[1]}: {asked[0] - asked[1]:.1f} points between"
)
seen, covered = (published("Dynamic Replica", V2, f"δ_avg, {w}") for w in ("visible", "occluded"))
print(f"version 2, δ_avg: {seen} % of visible points, {covered} % of hidden ones")

# %% [markdown]
# Four readings need care. The two ways of asking differ by more than version 1 and TAPIR do, so a number without its mode cannot be compared. TAPIR's occlusion accuracy is a little above that of version 1: *more accurate* is said of places. Hidden points are followed far less well than visible ones, though a chain could not follow them at all. And version 3 owes part of its lead to real videos without labels that it was trained on, not to its architecture alone.

# %%
gap = published(DAVIS, "TAPIR", "OA") - published(DAVIS, "CoTracker (version 1)", "OA")
assert 0 < gap < 0.5 and asked[0] - asked[1] > ours - apart
for network, name in ((model, V2), (later, "CoTracker (version 3, online)")):
    assert sum(p.numel() for p in network.parameters()) == published("", name, "parameters")

# %% [markdown]
# The assertion counts the parameters of our models: as many as the official releases have.
#
# > **Where the code leaves the paper.** The course builds version 2, the paper's second text. The motion of a token is relative to the first frame *of its window* (equation 5), and refined features are not carried from window to window: each window starts again from the query's feature. Both are the release's ways, and the model is checked against the release's numbers. The visibility loss of the release is fed with probabilities where it expects logits; [lesson 8](8_learning.ipynb) says what we do. The abstract of the version of ECCV 2024 says *token proxies* where version 2 of the text says *virtual tracks*; they are the same.

# %% [markdown]
# ## Exercises
#
# Nothing of this lesson goes into the library, so there are no blanks to fill. The exercises are to think, to vary, to find a mistake and to measure. The cell below each one computes its answer.
#
# | exercise | minutes | difficulty |
# | --- | --- | --- |
# | Predict: twice the window | 5 | ●○○ |
# | Vary: ask on the other side | 5 | ●○○ |
# | Find the bug: a chain that stands still | 10 | ●●○ |
# | Measure: how long until it breaks | 5 | ●●○ |
#
# **Predict.** Version 2.1 has windows of 16 frames instead of 8. For 1,000 tracks, by which factor do the pairs of *one layer of one window* grow? And the pairs of the whole video, roughly?
#
# <details><summary>Hint</summary>
#
# In equation 7 one term grows with $S^2$ and one with $S$. How many windows does equation 8 give?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The pairs along time grow fourfold, those across tracks twofold, and these are the majority: a little over twofold together. A window twice as long needs half as many windows, so the video costs nearly the same. What longer windows buy is memory: a point may be hidden for longer before no frame of the window shows it.
#
# </details>

# %%
short, long = (pairs_through(1000, S, V) for S in (8, 16))
windows_of = {S: len(window_starts(240, S)) for S in (8, 16)}
print(f"one window: × {long / short:.2f}; windows of 240 frames: {windows_of}")
print(f"the whole video: × {long * windows_of[16] / (short * windows_of[8]):.2f}")

# %% [markdown]
# **Vary.** Ask for the same places in the *last* frame instead of the first, and let the chain run backward. Does it get past the walker?
#
# <details><summary>Hint</summary>
#
# A query is (frame, x, y). Backward in time the walker walks backward, and he covers the same places.
#
# </details>
#
# <details><summary>Answer</summary>
#
# No: the chains now hold up to the frame in which the walker's other side reaches the point, and break there. Asked from both ends, each frame before and after the walker has an answer, and the frames between have none. The cell counts the unbroken chains frame by frame; no new flow is needed.
#
# </details>

# %%
other_end = queries + torch.tensor([float(last), 0.0, 0.0])
backward = trackers["chained RAFT"](video, other_end)
print("unbroken, asked in the last frame: ", backward.visible()[0, :, on_bicycle].sum(1).tolist())
forward = answers["chained RAFT"]
print("unbroken, asked in the first frame:", forward.visible()[0, :, on_bicycle].sum(1).tolist())

# %% [markdown]
# **Find the bug.** A colleague's chain is checked with a picture that moves evenly, and passes. On the turntable it is far off, and does not come home after a full turn. Where is the mistake?


# %%
def chain_of_a_colleague(flows, x, y):
    path = [torch.tensor([x, y])]
    for flow in flows:
        path.append(path[-1] + sample(flow, path[0][None, None], padding="border")[0, :, 0])
    return torch.stack(path)


# %% [markdown]
# <details><summary>Hint</summary>
#
# Where does equation 1 read the flow, and where does this line?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The flow is read at `path[0]`, the place of the query, in every frame; it must be read where the point is now, `path[-1]`. With the same flow everywhere the two agree, so a test must use a motion that differs from place to place.
#
# </details>

# %%
even = torch.tensor([0.5, -0.25]).view(1, 2, 1, 1).expand(1, 2, 65, 65)
for name, motion in {"even motion": even, "turntable": turning}.items():
    wrong, right = (way([motion] * 20, 42.0, 32.0)[-1] for way in (chain_of_a_colleague, chain))
    print(f"{name}: the two chains differ by {(wrong - right).norm():.2f} px after 20 frames")

# %% [markdown]
# **Measure.** How many frames after its query does a chain on the bicycle break? What does the order of the columns, from left to right, tell?
#
# <details><summary>Hint</summary>
#
# The points of the bicycle come column by column, four in each, the leftmost first. The visibility of a chain is 1 until it breaks.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Columns further to the right break later: the walker comes from the left, and a chain lives until he reaches it. It is the occlusion that kills the chain, not its age.
#
# </details>

# %%
for name in ("chained iLK", "chained RAFT"):
    lives = answers[name].visible()[0, :, on_bicycle].sum(dim=0).view(6, 4).float().mean(dim=1)
    print(f"{name}: mean number of frames, column by column:", lives.tolist())

# %% [markdown]
# ## What breaks
#
# ### Broken, and nothing to put it together
#
# The round trip notices that a chain breaks. In frame 5 the points that still claim to be seen are where the direct flow from frame 0 puts them:

# %%
t = 5
flow = estimates["RAFT"](video[:, 0], video[:, t])
there = places + sample(flow, places[None], padding="border")[0].T
claims = answers["chained RAFT"].visible()[0, t] & on_bicycle
apart = (answers["chained RAFT"].points[0, t] - there)[claims].norm(dim=-1)
print(f"{claims.sum()} of 24 claim to be seen; apart by at most {apart.max():.1f} px")
assert apart.max() < 3

# %% [markdown]
# So the report is honest, and of no help: *broken* is not a place. For the remaining frames the chain has nothing to say, whatever comes into view.
#
# ### A clip shorter than half a window
#
# The number of windows in equation 8 is zero or less for $T \le S / 2$. The released code then returns zeros for all places, without a word. Ours says what is needed:

# %%
with shows_error(ValueError):
    model(video[:, :4], queries)

# %% [markdown]
# ### Other bad input
#
# A query is (frame, x, y), not (x, y, frame); it lies inside the picture; it is not of whole numbers, which would round every place that is computed from them; and a frame must divide into feature pixels.

# %%
with shows_error(ValueError):
    model(video, queries[..., [1, 2, 0]])
with shows_error(TypeError):
    model(video, queries.long())
with shows_error(ValueError):
    model(video[..., :-1], queries)
with shows_error(ValueError):
    model(video, queries[:, :0])
with shows_error(FileNotFoundError):
    headline_results("cotraker")

# %% [markdown]
# ### What the card does not know
#
# The card says where its answers come from. The related work and the experiments of the paper were not read for it: a thing that is introduced there alone is missing from the table of innovations.

# %%
print(*card.sources, sep="\n")
print("open questions:", open_questions(card) or "none")
print("parts read:", *card.parts_read)

# %% [markdown]
# ## Recap
#
# - A chain of optical flow drifts and dies at the first occlusion, because it never looks back at its query; the same flow, asked directly from the query's frame, finds the point again.
# - CoTracker keeps places, visibility and features of many tracks over a window, compares each with every frame, and lets a transformer change all of them at once, several times with the same weights.
# - Virtual tracks make the cost linear in the number of tracks; overlapping windows carry tracks through a long video.
#
# ### What the notes ask
#
# | idea of the notes | lesson |
# | --- | --- |
# | from optical flow to tracks (key question) | this one; [2 Tracks](2_tracks.ipynb) stores and scores them |
# | a CNN for features of dimension d, at a quarter of the size (分辨率降低 4 倍) | [3 Features](3_features.ipynb) |
# | track features $Q_t^i$ (特征向量) | [3 Features](3_features.ipynb) |
# | correlation features $C_t^i$, stacked inner products (堆叠内积) | [3 Features](3_features.ipynb) |
# | tokens | [4 Tokens](4_tokens.ipynb) |
# | virtual tracks, 70k points jointly | [5 Transformer](5_transformer.ipynb); how many fit into memory: [7 Predictor](7_predictor.ipynb), [9 Experiments](9_experiments.ipynb) |
# | the transformer improves the initial estimate (改进 initial estimate) | [6 CoTracker](6_cotracker.ipynb) |
# | causal on short windows, online | [6 CoTracker](6_cotracker.ipynb); frame by frame: [7 Predictor](7_predictor.ipynb) |
# | trained by unrolling the windows | [8 Learning](8_learning.ipynb) |
# | experiments, ablations, failures, limitations | the paper's are under *On real input* above; ours are in [9 Experiments](9_experiments.ipynb) |
#
# Next: [2 Tracks](2_tracks.ipynb) makes tracks an object one can store, score and draw.
