# ---
# jupyter:
#   fourfold:
#     accelerator: helpful
#     level: intermediate
#     minutes: 60
#     needs:
#     - 6_bilinear_sampling/3_window
#     - 4_raft/7_learning
#     - 1_paper_writing/4_experiments
#     promotes: false
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Experiments: what each part of RAFT is for
#
# **After this lesson you can** test a flow network as a paper should: on several data sets beside honest baselines, part by part, with its failures kept and its limits said.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb) (`3_window`), the lessons of this chapter up to [Learning](7_learning.ipynb), and [Experiments](../1_paper_writing/4_experiments.ipynb) of chapter 1, whose instruments are used here.
# *Time:* 60 minutes.

# %% [markdown]
# ## Words
#
# RAFT begins with a flow field of zeros and improves it, iteration by iteration. A paper about such a method owes its reader answers. Does it run, and on more than one **data set** (数据集)? Does the **end-point error** $E_k$, the mean distance in pixels between estimated and true vectors, fall from **iteration** $k$ to the next, and does it stay low when one goes on? Which part does the work: the pyramid of $L$ levels and the window of radius $r$, which together give a look-up its **reach** $\rho$, or the context, or the cut in the gradient? An **ablation** (消融实验) takes one part away, learns again, and reports the **difference** $\delta$. Where does the method fail? And what does it cost: the all-pairs volume holds $N$ numbers, which grow with the square of the number $n$ of feature vectors.
#
# The network on trial is the RAFT-small that comes with this course, not the paper's: its card, printed below, says how long it learned and on what. Where a sentence depends on how well it learned, a cell computes the sentence.

# %% [markdown]
# ## Figure
#
# ### The data
#
# Four data sets, none of which the network has seen. First a stereo pair with measured disparity, the **motorcycle**, at a quarter and at half of its size: one scene, so twice the size means twice the motion.

# %%
import functools
import itertools
import math
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import inside, pixel_grid
from fourfold.kit.checkpoints import file_sha256, read_card
from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, flow_to_image, show, to_picture
from fourfold.kit.images import credit, photograph, stereo_pair
from fourfold.kit.notebook import shows_error
from fourfold.kit.scale import at_scale
from fourfold.raft.fields import (
    classical_flow,
    end_point_error,
    end_point_errors,
    outlier_rate,
    pad,
    unpad,
)
from fourfold.raft.learning import (
    HELD_OUT_PHOTOGRAPHS,
    LONG,
    FlowPair,
    held_out_pairs,
    move,
    similarity,
)
from fourfold.raft.raft import load_raft

torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())  # for the studies of this lesson; yours belong in runs/
WEIGHTS = data_path("checkpoints", "raft_small.safetensors")
checkpoint = load_raft(WEIGHTS)
LEVELS, RADIUS = checkpoint.levels, checkpoint.radius
print(f"{read_card(WEIGHTS).hours:.1f} hours of training on {read_card(WEIGHTS).hardware}")


# %%
def motorcycle(shrink):
    """The stereo pair as a pair with flow; `visible` says where the disparity is known."""
    pair = stereo_pair(shrink)
    flow = torch.cat([-pair.disparity, torch.zeros_like(pair.disparity)], dim=1)
    return FlowPair(pair.left, pair.right, flow, pair.valid[:, 0])


# %% [markdown]
# Then **scenes** made as in lesson 7, layers of photographs that move apart, from the four photographs that were held out of training; here the true flow is exact, and so is what is hidden. And a **film**: one of those photographs under a camera that pans, turns and zooms along a smooth path. The further apart two of its frames, the larger the motion. A seed chooses the photograph and the path.


# %%
def film(seed, gap=1, height=160):
    """Frames 0 and `gap` of a camera's way over a held-out photograph, and the flow between."""
    image = photograph(HELD_OUT_PHOTOGRAPHS[seed % len(HELD_OUT_PHOTOGRAPHS)], height=height)
    H, W = image.shape[2:]
    turn, zoom, right, down = 2 * torch.rand(4, generator=torch.Generator().manual_seed(seed)) - 1
    camera = similarity(
        gap * torch.tensor([0.01 * turn]),
        torch.tensor([1 + 0.01 * gap * zoom]),
        4 * gap * torch.tensor([[right, down]]),
        torch.tensor([[W / 2, H / 2]]),
    )
    points = pixel_grid(H, W)[None]
    moved = sample(image, move(torch.linalg.inv(camera), points), padding="border")
    target = move(camera, points)
    return FlowPair(image, moved, (target - points).permute(0, 3, 1, 2), inside(target, H, W))


# %% [markdown]
# The made scenes come in sets of four, one set for each seed, from the same held-out pairs as in lesson 7.


# %%
@functools.cache
def pair_of(dataset, seed=0):
    """The pairs of a data set as one batch; the motorcycle is the same for every seed."""
    if dataset == "scenes":
        return FlowPair(*(part[-4:] for part in held_out_pairs(4 * seed + 4)))
    if dataset == "film":
        return film(seed)
    return motorcycle({"motorcycle ¼": 4, "motorcycle ½": 2}[dataset])


DATASETS = ("scenes", "film", "motorcycle ¼", "motorcycle ½")


# %% tags=["figure"]
def draw_data(iterations=12):
    """A row for a pair of each data set; half the motorcycle's size would look as a quarter does."""
    figure, rows = canvas(3, 4, 6.0, 4.1)
    for row, dataset in zip(rows, DATASETS[:3], strict=True):
        pair = FlowPair(*(part[-1:] for part in pair_of(dataset)))
        flow = checkpoint.estimate(pair.image1, pair.image2, iterations).full
        longest = pair.flow.norm(dim=1).max().item()
        true, estimated = (flow_to_image(field, longest) for field in (pair.flow, flow))
        true = torch.where(pair.visible[:, None], true, 0)
        for axes, image in zip(row, (pair.image1, pair.image2, true, estimated), strict=True):
            axes.imshow(to_picture(image))
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(dataset, size=8)
        row[2].set_xlabel(f"up to {longest:.0f} px")
        error = end_point_error(flow, pair.flow, pair.visible)
        row[3].set_xlabel(f"error E = {error:.1f} px")
    names = ("image 1", "image 2", "true flow f*", f"estimated flow f,\niteration k = {iterations}")
    for axes, name in zip(rows[0], names, strict=True):
        axes.set_title(name, size=8)
    return figure


show(
    draw_data(),
    alt="Three rows, one each for scenes, film and motorcycle: two images, the true flow in colours,"
    " and the estimated flow, whose edges are softer.",
    photo=True,
)
for name in HELD_OUT_PHOTOGRAPHS:
    print(credit(name))

# %% [markdown]
# The hue is the direction, the saturation the length, on the same scale for the two fields of a row; black is not known or not visible, and does not count in the error $E$. Look at the edges: the estimated flow changes over several pixels there, since RAFT-small estimates it at an eighth of the size and enlarges it smoothly.
#
# ### Iterations
#
# The plainest experiment for an iterative method: go on for much longer than in training, and draw the error after every iteration. Beside it stand methods that learn nothing: **zero flow**, which says that nothing moves, and two classical methods of scikit-image, **TV-L1** and **iLK**. The naive way to get the curve asks the network anew for each number of iterations.


# %%
def errors_by_asking(pair, counts):
    """The error after each count of iterations, each from the start (equation 1)."""
    flows = [checkpoint.estimate(pair.image1, pair.image2, count).full for count in counts]
    return [end_point_error(flow, pair.flow, pair.visible).item() for flow in flows]


# %% [markdown]
# But `forward` returns the flow after every iteration, so one call is enough.


# %%
@torch.no_grad()
def errors_along(pair, iterations, model=checkpoint, initial_flow=None):
    """The error after each iteration, over the pixels that count (equation 1)."""
    image1, padding = pad(pair.image1)
    image2, _ = pad(pair.image2)
    flows = [unpad(flow.full, padding) for flow in model(image1, image2, iterations, initial_flow)]
    return [end_point_error(flow, pair.flow, pair.visible).item() for flow in flows]


begin = time.perf_counter()
asked = errors_by_asking(pair_of("scenes"), range(1, 9))
middle = time.perf_counter()
along = errors_along(pair_of("scenes"), 8)
end = time.perf_counter()
# The same numbers in another order of sums: float32 errors of a few px differ by some 1e-6.
assert all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(asked, along, strict=True))
print(f"asked anew: {middle - begin:.1f} s, in one go: {end - middle:.1f} s")

# %%
CLASSICAL = {"zero flow": "zero", "TV-L1": "tv-l1", "iLK": "ilk"}
METHODS = [*CLASSICAL, "RAFT"]
spent = {}


@functools.cache
def flow_of(method, dataset, seed=0):
    """The flow that a method estimates for the pairs of a data set; the time goes to `spent`."""
    pair, begin = pair_of(dataset, seed), time.perf_counter()
    if method == "RAFT":
        flow = checkpoint.estimate(pair.image1, pair.image2, 12).full
    else:
        flow = classical_flow(CLASSICAL[method], pair.image1, pair.image2)
    spent[method, dataset] = time.perf_counter() - begin
    return flow


def error_of(method, dataset, seed=0):
    pair = pair_of(dataset, seed)
    return end_point_error(flow_of(method, dataset, seed), pair.flow, pair.visible).item()


baseline = {d: {method: error_of(method, d) for method in CLASSICAL} for d in DATASETS}
curves = {dataset: errors_along(pair_of(dataset), 64) for dataset in DATASETS}


# %% tags=["figure"]
def draw_iterations():
    figure, panels = canvas(2, 2, 5.8, 3.3, sharex=True)
    styles = {"zero flow": ":", "TV-L1": "--", "iLK": "-."}
    for axes, (dataset, errors) in zip(panels.flat, curves.items(), strict=True):
        axes.plot(range(1, 65), errors, color=COLOURS["flow"], label="RAFT-small")
        for name, error in baseline[dataset].items():
            axes.axhline(error, color="black", linewidth=1, linestyle=styles[name], label=name)
        axes.set(xscale="log", title=dataset, ylim=(0, None))
        axes.set_xticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
        axes.minorticks_off()
    for axes in panels[1]:
        axes.set_xlabel("iteration k")
    figure.supylabel("end-point error E (px)", size=9)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    return figure


show(
    draw_iterations(),
    alt="Four panels of error over 1 to 64 iterations. The curve of RAFT-small is nearly level after"
    " the first few; horizontal lines mark zero flow, TV-L1 and iLK.",
)

# %% [markdown]
# Read each panel from left to right for what more iterations do, and from line to line for who is ahead. The same in words, computed:


# %%
def in_order(values):
    """Names with their values, the smallest first."""
    return " < ".join(f"{name} {v:.2f}" for name, v in sorted(values.items(), key=lambda x: x[1]))


trained = LONG.iterations
print(f"trained with {trained} iterations; what comes after is beyond the network's training")
for dataset, errors in curves.items():
    best = min(range(64), key=errors.__getitem__)
    print(f"{dataset:13}", in_order({"RAFT": errors[11], **baseline[dataset]}))
    print(
        f"{'':13} k = 1: {errors[0]:.2f}, k = 4: {errors[3]:.2f}, best {errors[best]:.2f} at k = {best + 1},"
        f" k = 64: {errors[-1]:.2f}, {errors[-1] / errors[best] - 1:+.0%} from the best"
    )
    # Divergence would be a factor, not some per cent.
    assert errors[-1] < 2 * errors[trained - 1], f"it diverges on {dataset}"

# %% [markdown]
# It does not diverge: over five times the iterations of its training the error stays near what it was, though it may creep up a little. (The paper reports more than a hundred iterations without divergence.) The number of iterations in training matters here: before the third stage of [lesson 7](7_learning.ipynb), when it had been five and not twelve, the error after 64 stood 18 to 81 % above the best in these four panels. But most of what the iterations bring comes with the first few. One explanation stands in Equation 3 below: a *single* look-up may already reach further than anything here moves. If so, refinement has to show once the way is longer, or the look-up shorter. Both are tried below.

# %% [markdown]
# ## Formula
#
# **The error.** Over the set $\Omega$ of pixels whose true flow $f^*$ is known and which are visible, with $f_k$ the estimated flow after iteration $k$:
#
# $$ E_k = \frac{1}{|\Omega|} \sum_{p \in \Omega} \left\| f_k(p) - f^*(p) \right\|, \qquad f^*:\ \text{true flow} \tag{1} $$
#
# **The loop.** The update $U$, with the weights $\theta$, reads the correlations at the positions that the flow points to, and returns the new state $h$ and a change. $\mathrm{sg}$ stops the gradient: the value passes, the derivative does not.
#
# $$ (h_{k+1}, \Delta_{k+1}) = U_\theta\big(h_k,\ \mathrm{lookup}(\mathrm{sg}\,[f_k]),\ \mathrm{sg}\,[f_k]\big), \qquad f_{k+1} = \mathrm{sg}\,[f_k] + \Delta_{k+1} \tag{2} $$
#
# **The reach.** A window of radius $r$ on level $L - 1$, the coarsest of $L$, on maps at an eighth of the image's size, sees this far in each direction:
#
# $$ \rho = 8 \cdot 2^{\,L-1} \cdot r \ \text{pixels} \tag{3} $$
#
# **The cost.** An image of $H \times W$ pixels has $n$ feature vectors of width $D$. All pairs with a pyramid hold $N$ numbers; on demand, features stand in the place of the volume:
#
# $$ n = \frac{H\,W}{64}, \qquad N_{\text{all pairs}} \approx \tfrac{4}{3}\, n^2, \qquad N_{\text{on demand}} \approx \left(1 + \tfrac{4}{3}\right) n\,D \tag{4} $$
#
# **What a part does.** On the same seed $s$ the error $E^{+}_s$ with the part and $E^{-}_s$ without it; the mean over seeds comes with Student's interval, as in chapter 1. Below zero, the part helps:
#
# $$ \delta_s = E^{+}_s - E^{-}_s \tag{5} $$
#
# **The gradient.** The norm of the gradient of the loss $\ell$, over all weights of the update:
#
# $$ g = \left\| \nabla_\theta\, \ell \right\| \tag{6} $$
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $E_k$ | end-point error after an iteration | px | `errors_along` | end-point error E (px) |
# | $k$ | iteration, from 1 | whole number | `iterations` | iteration k |
# | $f_k$ | estimated flow | (B, 2, H, W), px | `flows` | estimated flow f |
# | $f^*$ | true flow | (B, 2, H, W), px | `flow` | true flow f* |
# | $L$ | levels of the pyramid | whole number | `levels` | levels L |
# | $r$ | radius of the window | pixels of a level | `radius` | radius r |
# | $\rho$ | reach of a look-up | px | `reach` | reach ρ |
# | $n$ | number of feature vectors of an image | whole number | `vectors` | feature vectors n |
# | $N$ | numbers that the correlation holds | whole number | `numbers_held` | numbers N |
# | $\delta$ | difference that a part makes | px | `difference` | difference δ |
# | $g$ | gradient norm | loss per unit of weight | `gradient_norm` | gradient norm g |
#
# Not in the table, since they serve an equation or two: $\Omega$ (`visible`), $U_\theta$ (`block`), $h$ (`h`), $\Delta$ (`change`), sg (`detach`), $D$ (`width`), $s$ (`seed`), $\ell$ (`loss`).


# %%
def reach(levels, radius):
    """How far a look-up sees, in pixels of the image (equation 3)."""
    return 8 * 2 ** (levels - 1) * radius


print(
    f"here, with {LEVELS} levels, {reach(LEVELS, RADIUS)} px;"
    f" in the paper's small model {reach(4, 3)}, in its full one {reach(4, 4)}"
)
for dataset in DATASETS:
    lengths = pair_of(dataset).flow.norm(dim=1)[pair_of(dataset).visible]
    print(f"{dataset:13} motion: mean {lengths.mean():4.1f} px, largest {lengths.max():5.1f} px")

# %% [markdown]
# ## Code
#
# An ablation needs variants of the network. Some parts are arguments of `RAFT`: levels, radius, the variant. Others have no switch, and to take them away one has to know where they sit. This part of the lesson builds the variants, in two ways that answer different questions.

# %%
import json

from torch.utils.data import DataLoader, TensorDataset

from fourfold.kit.training import train
from fourfold.paper_writing.experiments import (
    Study,
    ablation_table,
    failure_gallery,
    grid,
    mean_interval,
    measured,
    paired_difference,
    role_of,
)
from fourfold.paper_writing.reading_cards import Comparison, compare, discuss, read_cards
from fourfold.raft.correlation import CorrelationVolume, OnDemandCorrelation, correlation
from fourfold.raft.learning import (
    TRAIN_PHOTOGRAPHS,
    SyntheticPairs,
    load_photographs,
    sequence_loss,
)
from fourfold.raft.raft import RAFT
from fourfold.raft.raft import refine as steps_of_raft
from fourfold.raft.update import MaskHead, UpdateBlock

# %% [markdown]
# ### Taking a part away from a trained network
#
# `RAFT.prepare` makes the function that looks correlations up. A subclass can hand on a poorer one: its answers are 0 beyond some levels, or outside a smaller window. Nothing is learned again. Such a **lesion** (损毁) shows what the trained network *relies on*.


# %%
class Narrowed(RAFT):
    """The shipped network with a look-up that answers 0 beyond `levels` and `radius`."""

    def __init__(self, levels, radius):
        super().__init__("small", levels=checkpoint.levels, radius=checkpoint.radius)
        self.load_state_dict(checkpoint.state_dict())
        near = torch.arange(-self.radius, self.radius + 1).abs() <= radius
        there = torch.arange(self.levels) < levels
        keep = there[:, None, None] & near[:, None] & near
        self.register_buffer("keep", keep.view(1, -1, 1, 1), persistent=False)

    def prepare(self, image1, image2):
        lookup, h, share = super().prepare(image1, image2)
        return lambda positions: lookup(positions) * self.keep, h, share


# %% [markdown]
# The check: with all levels and the whole window nothing changes.

# %%
quarter = pair_of("motorcycle ¼")
LESIONS = ((LEVELS, RADIUS), (1, RADIUS), (LEVELS, 1), (1, 1))
whole = Narrowed(LEVELS, RADIUS).eval()
assert errors_along(quarter, 4, whole) == errors_along(quarter, 4)
print({(L, r): int(Narrowed(L, r).keep.sum()) for L, r in LESIONS})

# %% [markdown]
# The printed numbers count the correlations that remain, out of those that the update reads at each place.
#
# ### Learning without the part
#
# The other question: how good can a network be that *never had* the part? It needs training, and a fair comparison trains every variant alike. From nothing, each variant would take as long as the shipped weights did. We cut the question down: **the two encoders stay as the checkpoint has them; the update is learned anew**, from random weights, in each variant. What the encoders see in a pair is then computed once.


# %%
class Seen(NamedTuple):
    """What the encoders see in a pair: features of both images, first state, context."""

    features1: Tensor
    features2: Tensor
    state: Tensor
    context: Tensor


@torch.no_grad()
def see(image1, image2):
    image1, image2 = (2 * image / 255 - 1 for image in (image1, image2))
    parts = [checkpoint.hidden, checkpoint.context]
    state, context = checkpoint.cnet(image1).split(parts, dim=1)
    return Seen(checkpoint.fnet(image1), checkpoint.fnet(image2), state.tanh(), context.relu())


# %% [markdown]
# A setting says which parts there are. The update block of a setting reads as many correlations as its look-up gives. Convex upsampling is one head more, and the larger update of the full model (two gates, along rows and along columns) is an argument.

# %%
WHOLE = {
    "levels": LEVELS,
    "radius": RADIUS,
    "context": True,
    "detach": True,
    "upsampling": "bilinear",
    "update": "small",
}


def new_block(setting, seed):
    """A fresh update block for the setting; the seed draws its weights."""
    correlations = setting["levels"] * (2 * setting["radius"] + 1) ** 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = UpdateBlock(correlations, 96, 64, small=setting["update"] == "small")
        block.mask = MaskHead(96) if setting["upsampling"] == "convex" else None
    return block


# %% [markdown]
# And the loop, Equation 2. It is `refine` of lesson 6, written once more so that a setting can change it: the context is multiplied by 1 or 0, the gradient is cut or not.


# %%
def refine(block, seen, setting, iterations):
    """The flow after each iteration, with or without the parts (equation 2)."""
    levels, radius = setting["levels"], setting["radius"]
    lookup = CorrelationVolume(seen.features1, seen.features2, levels, radius)
    share = block.gru.share(seen.context * setting["context"])
    start = pixel_grid(*seen.state.shape[2:]).permute(2, 0, 1)
    positions, h = start.expand(len(seen.state), -1, -1, -1), seen.state
    flows = []
    for _ in range(iterations):
        if setting["detach"]:
            positions = positions.detach()
        h, change = block(h, share, lookup(positions), positions - start)
        positions = positions + change
        flows.append(block.upsample(positions - start, h))
    return flows


# %% [markdown]
# With the checkpoint's own update block and all parts there, this must give the checkpoint's flow, up to the order of sums in float32.

# %%
scenes = pair_of("scenes")
seen = see(scenes.image1, scenes.image2)
with torch.no_grad():
    ours = refine(checkpoint.update_block, seen, WHOLE, 4)
    theirs = checkpoint(scenes.image1, scenes.image2, 4)
# The encoder runs on one image at a time here and on both at once there: sums in another order.
for our, their in zip(ours, theirs, strict=True):
    assert (our - their.full).abs().max() < 1e-3 * their.full.abs().max()
print([round(end_point_error(f, scenes.flow, scenes.visible).item(), 2) for f in ours])

# %% [markdown]
# Training is that of lesson 7, the same loss over five iterations, on a pool of made scenes of 128 × 128 pixels from the training photographs. The mean gradient norm is kept too.


# %%
def made_pairs(names, count, size, seed, reach=24.0):
    """Pairs made from the named photographs, one batch, the same in every call."""
    pairs = SyntheticPairs(load_photographs(names), size, reach=reach, augment=False, seed=seed)
    return FlowPair(*map(torch.stack, zip(*(pairs[index] for index in range(count)), strict=True)))


@functools.cache
def training_pool(count):
    """What the encoders see in `count` training pairs, and the flow of each."""
    pool = made_pairs(TRAIN_PHOTOGRAPHS, count, (128, 128), seed=1)
    parts = [see(*both) for both in zip(pool.image1.split(40), pool.image2.split(40), strict=True)]
    return TensorDataset(*map(torch.cat, zip(*parts, strict=True)), pool.flow)


@functools.cache
def learned(text, seed, steps, count):
    """The update block of a setting (as JSON) after training, and its mean gradient norm."""
    setting = json.loads(text)
    block = new_block(setting, seed)

    def loss(block, batch):
        *seen, flow = batch
        return sequence_loss(refine(block, Seen(*seen), setting, 5), flow)

    batches = DataLoader(training_pool(count), batch_size=4, shuffle=True, drop_last=True)
    options = {"steps": steps, "learning_rate": 1e-3, "seed": seed, "progress": False}
    records = train(block, loss, batches, **options)
    return block, sum(record.gradient_norm for record in records) / len(records)


# %% [markdown]
# One run of the study: learn (once for all data sets), then measure after 1 and after 12 iterations. Its data sets are the motorcycle at both sizes and 24 held-out scenes of their own, called `synthetic` in its file.


# %%
@functools.cache
def seen_of(dataset):
    if dataset == "synthetic":
        pair = made_pairs(HELD_OUT_PHOTOGRAPHS, 24, (128, 128), seed=0)
    else:
        pair = pair_of(dataset)
    (image1, padding), (image2, _) = pad(pair.image1), pad(pair.image2)
    return see(image1, image2), padding, pair


@torch.no_grad()
def relearn(setting, dataset, seed, steps=150, count=480):
    """One run of the ablation: held-out error of an update that was learned for the setting."""
    with torch.enable_grad():
        block, norm = learned(json.dumps(setting), seed, steps, count)
    seen, padding, pair = seen_of(dataset)
    flows = refine(block, seen, setting, 12)
    first, last = (
        end_point_error(unpad(flow, padding), pair.flow, pair.visible).item()
        for flow in (flows[0], flows[-1])
    )
    return {"epe": last, "first": first, "gradient": norm}


# %% [markdown]
# The whole study has eight settings: everything there, five with one part changed, and two with a second part changed as well. To repeat it, give `ablation_study` a new path and call `run`; `measured` below says how long that took.

# %%
CHANGES = (
    {},
    {"levels": 1},
    {"radius": 1},
    {"levels": 1, "radius": 1},
    {"context": False},
    {"detach": False},
    {"upsampling": "convex"},
    {"upsampling": "convex", "update": "full"},
)


def ablation_study(path, seeds=range(3)):
    """The study behind the tables below; `.run()` does what its file lacks."""
    settings = [WHOLE | change for change in CHANGES]
    datasets = ["synthetic", "motorcycle ¼", "motorcycle ½"]
    return Study(path, relearn, settings=settings, datasets=datasets, seeds=seeds)


# %% [markdown]
# A small part of it, live: few steps, a small pool, two settings. It shows that the study runs, and that an update beats zero flow within a few steps when the features are there. Its other numbers mean little: the training is too short.


# %%
def relearn_briefly(setting, dataset, seed):
    return relearn(
        setting, dataset, seed, steps=at_scale(cpu=12, gpu=150), count=at_scale(cpu=80, gpu=480)
    )


live = Study(
    folder / "live.jsonl",
    relearn_briefly,
    settings=[WHOLE, WHOLE | {"levels": 1, "radius": 1}],
    datasets=["motorcycle ¼"],
    seeds=[0],
)
live_frame = live.run(progress=False)
print(live_frame[["levels", "radius", "epe", "first", "seconds"]].to_string(index=False))
zero = baseline["motorcycle ¼"]["zero flow"]
print(f"zero flow {zero:.2f} px")
assert (live_frame.epe < zero).all()

# %% [markdown]
# ## On real input
#
# The notes that this course grew from give a paper's experiments an order: it runs; it runs on several data sets; why these hyperparameters; the ugly pictures are kept; ablation; a word on interpretation; and what was not tried. We follow it.
#
# ### It runs on several data sets
#
# The figure above had one draw of everything. Now a study over seeds, where there is chance: three sets of made scenes, three films. (The motorcycle is one pair. No seed changes it, so it has no interval, and we do not invent one.)


# %%
def score(setting, dataset, seed):
    """One run: a method on the pairs of a data set, on what is visible and on what is hidden."""
    pair, flow = pair_of(dataset, seed), flow_of(setting["method"], dataset, seed)
    return {
        "epe": end_point_error(flow, pair.flow, pair.visible),
        "outliers": outlier_rate(flow, pair.flow, pair.visible),
        "hidden": end_point_error(flow, pair.flow, ~pair.visible),
    }


plan = {"settings": grid(method=METHODS), "datasets": ["scenes", "film"], "seeds": range(3)}
study = Study(folder / "methods.jsonl", score, **plan)
frame = study.run(progress=False)
print(study.table("epe"))
print(measured(frame, "epe", on="visible pixels"))

# %% [markdown]
# The seeds draw different pictures, so the errors of all methods go up and down together. Paired differences take that into account:

# %%
for dataset in ("scenes", "film"):
    by = frame[frame.dataset == dataset].pivot(index="seed", columns="method", values="epe")
    for other in METHODS[:3]:
        found = paired_difference(by["RAFT"], by[other])
        ahead = other if found.mean > 0 else "RAFT"
        order = "no order known" if found.holds(0) else f"{ahead} ahead"
        print(f"{dataset:7} RAFT − {other:9} {found.text('+'):16} {order}")

# %% [markdown]
# And the motorcycle, with the **outliers** of lesson 2, the share of pixels wrong by over 3 px and over 5 % of the motion. Seconds are wall time, of this machine and this run.

# %%
rows = []
for dataset, method in itertools.product(DATASETS[2:], METHODS):
    pair, flow = pair_of(dataset), flow_of(method, dataset)
    outliers = 100 * outlier_rate(flow, pair.flow, pair.visible).item()
    rows.append((dataset, method, error_of(method, dataset), outliers, spent[method, dataset]))
columns = ["data", "method", "error (px)", "outliers (%)", "seconds"]
table = pd.DataFrame(rows, columns=columns).set_index(["data", "method"])
print(table.round(2))

# %% [markdown]
# The columns need not agree, since outliers and the mean error weigh large mistakes differently; nor need the two sizes. What size does to RAFT returns under *failures*.
#
# ### Refinement, made visible
#
# First, a longer way: `initial_flow` lets RAFT begin with a wrong guess. The start is shifted sideways by 0 to 64 pixels, everywhere. Second, a shorter look-up: the lesions.

# %%
starts = {}
for shift in (0, 16, 32, 64):
    padded = pad(quarter.image1)[0].shape[2:]
    wrong = torch.zeros(1, 2, padded[0] // 8, padded[1] // 8)
    wrong[:, 0] = shift / 8  # coarse pixels
    starts[shift] = errors_along(quarter, 16, initial_flow=wrong)
half = pair_of("motorcycle ½")
lesions = {(L, r): errors_along(half, 16, Narrowed(L, r).eval()) for L, r in LESIONS}


# %% tags=["figure"]
def draw_refinement():
    figure, (left, right) = canvas(1, 2, 6.2, 2.5)
    texts = {cut: "L = {}, r = {}: {} px".format(*cut, reach(*cut)) for cut in lesions}
    shades, markers = ("flow", "first", "n01", "second"), "osD^"
    for axes, curve in ((left, starts), (right, lesions)):
        for (key, errors), colour, marker in zip(curve.items(), shades, markers, strict=True):
            style = {"color": COLOURS[colour], "marker": marker, "markersize": 3}
            axes.plot(range(1, 17), errors, label=texts.get(key, f"{key} px off"), **style)
        axes.set(xlabel="iteration k", xticks=(1, 4, 8, 12, 16))
    left.set(title="motorcycle ¼ from a wrong start", ylabel="end-point error E (px)")
    left.set(yscale="log")
    left.legend(fontsize=7)
    right.set(title="motorcycle ½ with a shorter look-up", ylim=(0, None))
    right.legend(title="levels L, radius r: reach ρ", fontsize=7, title_fontsize=7)
    return figure


show(
    draw_refinement(),
    alt="Left: four curves of error over 16 iterations, from wrong starts of 0 to 64 pixels. Right:"
    " four curves for look-ups of different reach; with radius 1 the error falls over many iterations.",
)

# %% [markdown]
# Left, on a logarithmic scale, a wrong start costs iterations; from far away the curve may never come down, since in training the network began no further off than things moved. Right, the look-up of the trained network is cut, and with the small window, $r = 1$, the error falls over many iterations. That is the refinement which the first figure hid. In numbers:

# %%
for shift, errors in starts.items():
    back = "within" if abs(errors[-1] - starts[0][-1]) < 0.5 else "not within"
    print(
        f"{shift:3} px off: {errors[0]:6.2f} after one, {errors[3]:6.2f} after 4, {errors[-1]:6.2f} after 16"
        f" iterations, {back} half a pixel of the first line's end"
    )
for (levels, radius), errors in lesions.items():
    gain = errors[0] - min(errors)
    print(
        f"L = {levels}, r = {radius}: {errors[0]:.2f} after one, best {min(errors):.2f};"
        f" the iterations are worth {gain:.2f} px"
    )
lowest = min(lesions, key=lambda cut: lesions[cut][-1])
print("lowest at the end: L = {}, r = {}".format(*lowest))

# %% [markdown]
# Where the last line names a cut look-up, the network ends better without a part that it learned to read. The first figure could not have shown that; it is why one takes parts away.
#
# ### A level too many
#
# A lesion found a fault in the first weights of this course. They had three levels and came from crops of 96 pixels. Here is their error after 12 iterations with the whole look-up, $L = 3$, and with only its first two levels or its first one, in pixels; no weight was changed.

# %%
levels_read = pd.read_csv(data_path("results", "raft_levels.csv"))
print(levels_read.pivot(index="levels", columns="dataset", values="epe").to_string())

# %% [markdown]
# On scenes about as large as the crops the upper levels hardly matter. On larger images they do harm, and the more, the larger the image. One explanation: at the third level a crop of 96 pixels is a map of 3 × 3, and a window of 7 × 7 hangs over its border wherever it lies. Outside, the look-up gives 0. Let every similarity be 1 and count how much of the answer is 0, for zero flow, in the crop and at half the motorcycle's size:

# %%
for name, (height, width) in {"crop of 96 px": (12, 12), "motorcycle ½": (32, 47)}.items():
    ones = torch.ones(1, 1, height, width)
    read = CorrelationVolume(ones, ones, 3, 3)(pixel_grid(height, width).permute(2, 0, 1)[None])
    shares = (read == 0).float().unflatten(1, (3, 49)).mean(dim=(0, 2, 3, 4))
    print(f"{name:14}", *(f"level {k}: {share:.0%}" for k, share in enumerate(shares.tolist())))

# %% [markdown]
# In training the third level answered mostly 0, and what the weights of those places do with another number was never tried. A larger photograph tries it. So the later stages of the training read two levels and use crops of twice the side; the weights measured in this lesson are their result. The release trains on crops of 368 × 496 pixels and larger, with four levels.
#
# ### The role of a hyperparameter: how many iterations?
#
# The number of iterations is chosen at the time of use. `role_of` draws what it does, over the seeds of the made scenes and the films.


# %%
def at_iteration(setting, dataset, seed):
    return {"EPE (px)": walk(dataset, seed)[setting["iterations"] - 1]}


@functools.cache
def walk(dataset, seed):
    return errors_along(pair_of(dataset, seed), 32)


counts = grid(iterations=[1, 2, 3, 5, 8, 12, 20, 32])
roles = Study(
    folder / "iterations.jsonl",
    at_iteration,
    settings=counts,
    datasets=["scenes", "film"],
    seeds=range(3),
).run(progress=False)
show(
    role_of(roles, "iterations", "EPE (px)", chosen=12),
    alt="Two panels of end-point error over 1 to 32 iterations, with a dot for each seed, the mean"
    " and a wide band.",
)
print(measured(roles, "EPE (px)"))

# %% [markdown]
# The bands are wide, because three sets of pictures differ more than the iterations do. Paired differences, each within one set of pictures, take that away:

# %%
for dataset in ("scenes", "film"):
    at = roles[roles.dataset == dataset].pivot(
        index="seed", columns="iterations", values="EPE (px)"
    )
    for few, many in ((1, 5), (5, 32)):
        print(
            f"{dataset:7} from {few} to {many:2} iterations:",
            paired_difference(at[many], at[few]).text("+"),
            "px",
        )

# %% [markdown]
# ### Ablation
#
# The long study ships with the course as a file: 150 steps of training for each run, batches of 4, five iterations, learning rate 0.001 on one cycle; held-out error after 12 iterations on 24 made scenes of 128 × 128 pixels and on the motorcycle. The weights that its encoders come from are named by the first digits of their sha256. Reading the file repeats no run:

# %%
STUDIED = "32a0c4be"
same = file_sha256(WEIGHTS).startswith(STUDIED)
print(f"encoders of the study: {STUDIED}, {'as shipped' if same else 'earlier than those shipped'}")
ablations = ablation_study(data_path("results", "raft_ablations.jsonl"))
ablated = ablations.frame()
print(measured(ablated, "epe", on="held out"))

# %% [markdown]
# For each part one comparison, all else equal, on the same seeds with and without. The difference $\delta$ is *with − without*, so below zero the part helps. The seed draws the update's first weights and the order of its training, so the motorcycle has an interval too: it speaks of trainings, not of pictures.


# %%
PARTS = {
    f"pyramid: L = {LEVELS}, not 1": ("levels", LEVELS, 1, {}),
    "pyramid, at radius 1": ("levels", LEVELS, 1, {"radius": 1}),
    f"radius {RADIUS}, not 1": ("radius", RADIUS, 1, {}),
    "context": ("context", True, False, {}),
    "gradient cut": ("detach", True, False, {}),
    "convex upsampling": ("upsampling", "convex", "bilinear", {}),
    "update of the full model": ("update", "full", "small", {"upsampling": "convex"}),
}


def part_table(part, metric="epe"):
    """The ablation table of one part, everything else held."""
    column, with_value, without_value, rest = PARTS[part]
    others = {name: value for name, value in (WHOLE | rest).items() if name != column}
    same = functools.reduce(lambda a, b: a & b, (ablated[n] == v for n, v in others.items()))
    return ablation_table(
        ablated[same], column, metric, with_value=with_value, without_value=without_value
    )


# %% tags=["figure"]
def draw_ablation(metric="epe"):
    figure, panels = canvas(1, 3, 7.0, 2.6, sharey=True)
    tables = [part_table(part, metric) for part in PARTS]
    for axes, rows in zip(panels, zip(*(t.rows for t in tables), strict=True), strict=True):
        for y, row in enumerate(rows):
            difference = row.difference
            bar = {"fmt": "o", "color": COLOURS["query"], "capsize": 3, "markersize": 4}
            axes.errorbar(difference.mean, y, xerr=difference.half, **bar)
        axes.axvline(0, color=COLOURS["muted"], linewidth=1)
        axes.set(title=rows[0].dataset, xlabel="difference δ (px)", ylim=(len(PARTS) - 0.5, -0.5))
    panels[0].set_yticks(range(len(PARTS)), list(PARTS))
    return figure


show(
    draw_ablation(),
    alt="Three panels, one for each data set; seven parts of RAFT with the difference each makes and"
    " its interval, around a line at zero.",
)


# %%
def verdict(difference):
    word = "helps" if difference.high < 0 else "harms" if difference.low > 0 else "open"
    return f"{difference.text('+')} ({word})"


rows = [(part, *(verdict(row.difference) for row in part_table(part).rows)) for part in PARTS]
Comparison(("part", *(row.dataset for row in part_table("context").rows)), tuple(rows))

# %% [markdown]
# Left of the line, the part helps; a bar that crosses the line leaves the question open. With so few seeds the factor $t$ of Student's interval is large and bars are long. *Open* does not mean that a part does nothing; it means that this study cannot tell. Read a lone verdict with care, too: of 21 intervals of 95 %, one is expected to miss the truth by chance. Where the three data sets disagree, look at the motion: a part may cost something where motion is small and pay where it is large.
#
# Does a short window at least need more iterations? The study kept the error after the first one too:

# %%
window = ["levels", "radius"]
rest = [name for name in WHOLE if name not in window]
plain = ablated[functools.reduce(lambda a, b: a & b, (ablated[n] == WHOLE[n] for n in rest))]
gain = plain.assign(gain=plain["first"] - plain["epe"])
print(gain.groupby(["dataset", *window]).gain.mean().unstack(window).round(2))
print("all four:", in_order(gain.groupby("dataset").gain.mean()))

# %% [markdown]
# In pixels: how much the eleven further iterations take off the error of the first, for each pair of levels and radius. Compare the order of the last line with the mean motions printed under Equation 3: do iterations earn most where things move furthest?
#
# **Small against full.** This ablation is too large for a lesson: the full model has to learn as a whole. What it costs can be measured here; what it brings is published.

# %%
first = photograph("coffee", height=128, crop=(0, 0, 400, 400))
for variant in ("small", "full"):
    model = RAFT(variant)
    begin = time.perf_counter()
    model.estimate(first, first, 6)
    seconds = time.perf_counter() - begin
    count = sum(p.numel() for p in model.parameters())
    print(f"{variant:5} {count:9,} parameters, {seconds:.2f} s for 6 iterations at 128 × 128")
published = pd.read_csv(data_path("results", "headline_raft.csv"))
chosen = published[published.method.str.contains("Chairs") & (published.unit == "px")]
errors = chosen.pivot(index="data", columns="method", values="value")
large, small = (errors[f"{name}, trained on Chairs and Things"] for name in ("RAFT", "RAFT small"))
assert (large < small).all()
print(errors.T.to_string())
for method, source in chosen.groupby("method").source.first().items():
    print(f"{method}: {source}")

# %% [markdown]
# The last two lines name the sources: torchvision measured the authors' weights and prints the errors in its documentation. The full model has about five times the parameters, and a lower error on all three data sets.
#
# ### Detach: the gradient with and without the cut
#
# RAFT cuts the gradient at the positions (the `sg` of Equation 2). Without the cut, the gradient also flows from each look-up to where it looked, through all earlier iterations. Here is the gradient norm $g$ of Equation 6 over the number of iterations, for the update of the checkpoint and for a fresh one.


# %%
def gradient_norm(block, setting, iterations):
    """The norm of the gradient of the sequence loss on four made scenes (equation 6)."""
    flows = refine(block, seen, setting, iterations)
    loss = sequence_loss(flows, scenes.flow)
    gradients = torch.autograd.grad(loss, list(block.parameters()))
    return torch.stack([gradient.norm() for gradient in gradients]).norm().item()


UNROLLED = (1, 2, 4, 8, 16)
norms = {
    (name, cut): [gradient_norm(block, WHOLE | {"detach": cut}, k) for k in UNROLLED]
    for name, block in {"trained": checkpoint.update_block, "fresh": new_block(WHOLE, 0)}.items()
    for cut in (True, False)
}


# %% tags=["figure"]
def draw_gradients():
    figure, axes = canvas(1, 1, 5.4, 2.4)
    for (name, cut), values in norms.items():
        colour = COLOURS["first" if name == "trained" else "second"]
        text = f"{name}, {'cut' if cut else 'not cut'}"
        axes.plot(UNROLLED, values, "o-" if cut else "s--", color=colour, label=text, markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="iteration k of the loss", ylabel="gradient norm g")
    axes.set_xticks(UNROLLED, UNROLLED)
    axes.minorticks_off()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


show(
    draw_gradients(),
    alt="Gradient norm over 1, 2, 4, 8 and 16 iterations on logarithmic axes, for a trained and a"
    " fresh update, with the gradient cut and not cut.",
)
for name in ("trained", "fresh"):
    cut, free = norms[name, True], norms[name, False]
    print(
        f"{name:7} not cut / cut:",
        ", ".join(f"{b / a:.2f} at k = {k}" for k, a, b in zip(UNROLLED, cut, free, strict=True)),
    )

# %% [markdown]
# With one iteration there is nothing to cut and the two agree. From there on solid and dashed lines part; the printed ratios say how far. Training clips the norm at 1: of a gradient far longer than that, only the direction is left. Whether the cut also makes a better network is a question for the ablation above, not for this picture.
#
# ### Memory and time against the size of the image
#
# Equation 4 is a law to measure. Random features of RAFT-small's width on grids of growing size, four look-ups each, both ways to correlate.


# %%
def numbers_held(lookup):
    """How many numbers a correlation keeps, its features included (equation 4)."""
    first = getattr(lookup, "features1", torch.empty(0))
    return first.numel() + sum(level.numel() for level in lookup.levels)


@torch.no_grad()
def cost(kind, side, width=128):
    """Numbers held and seconds for four look-ups on a square grid of features."""
    features = torch.randn(2, 1, width, side, side, generator=torch.Generator().manual_seed(0))
    positions = pixel_grid(side, side).permute(2, 0, 1)[None] + 0.3
    begin = time.perf_counter()
    lookup = kind(*features, 4, 3)
    for _ in range(4):
        lookup(positions)
    return numbers_held(lookup), time.perf_counter() - begin


SIDES = (16, 24, 32, 48, 64)
WAYS = {"all pairs": CorrelationVolume, "on demand": OnDemandCorrelation}
costs = {name: [cost(kind, side) for side in SIDES] for name, kind in WAYS.items()}


# %% tags=["figure"]
def draw_costs():
    figure, (left, right) = canvas(1, 2, 6.5, 2.5)
    vectors = [side**2 for side in SIDES]
    for (name, values), colour, marker in zip(
        costs.items(), ("first", "second"), "os", strict=True
    ):
        held, seconds = zip(*values, strict=True)
        style = {"color": COLOURS[colour], "marker": marker, "markersize": 4, "label": name}
        left.plot(vectors, held, linestyle="", **style)
        right.plot(vectors, seconds, **style)
    left.plot(vectors, [4 / 3 * n**2 for n in vectors], color=COLOURS["first"], label="4/3 n²")
    law = [7 / 3 * n * 128 for n in vectors]
    left.plot(vectors, law, "--", color=COLOURS["second"], label="7/3 n D")
    left.set(ylabel="numbers N held", title="memory")
    right.set(ylabel="seconds for four look-ups", title="time, this machine")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="feature vectors n = HW / 64")
        axes.minorticks_off()
        axes.set_xticks(vectors, vectors)
    left.set_ylim(top=1e9)
    left.legend(loc="upper left", ncols=2)
    right.legend(loc="lower right")
    return figure


show(
    draw_costs(),
    alt="Left: numbers held over the number of feature vectors on logarithmic axes; all pairs lie on"
    " a line of slope two, on demand on a line of slope one. Right: seconds.",
)
(held_all, _), (held_demand, _) = costs["all pairs"][-1], costs["on demand"][-1]
# The law leaves out what odd sizes drop, and stops after four levels: 1 + 1/4 + 1/16 + 1/64.
assert abs(held_all / (4 / 3 * SIDES[-1] ** 4) - 1) < 0.01
assert abs(held_demand / (7 / 3 * SIDES[-1] ** 2 * 128) - 1) < 0.01
for height, width in ((436, 1024), (1080, 1920)):
    n = math.ceil(height / 8) * math.ceil(width / 8)
    print(
        f"{height} × {width}: all pairs {4 / 3 * n**2 * 4 / 2**30:.2f} GiB, on demand {7 / 3 * n * 128 * 4 / 2**30:.3f} GiB"
    )

# %% [markdown]
# On the left, points are measured and lines are Equation 4: slope two against slope one. On the right stands the time, on this machine, for the same look-ups; both ways give the same numbers, as lesson 4 shows.
#
# ### Failures are kept
#
# The worst and the best of the held-out scenes, by the error of RAFT; each caption names what TV-L1 does on the same pair, and the mean motion.

# %%
everything = FlowPair(*map(torch.cat, zip(*(pair_of("scenes", s) for s in range(3)), strict=True)))
per_pair = {}
for method in METHODS:
    flow = torch.cat([flow_of(method, "scenes", seed) for seed in range(3)])
    errors, seen_pixels = end_point_errors(flow, everything.flow), everything.visible
    per_pair[method] = [e[v].mean().item() for e, v in zip(errors, seen_pixels, strict=True)]
motion, classical = per_pair["zero flow"], per_pair["TV-L1"]
captions = [f"TV-L1 {tv:.1f}\nmotion {m:.1f}" for tv, m in zip(classical, motion, strict=True)]
show(
    failure_gallery(everything.image1, per_pair["RAFT"], captions=captions, k=4),
    alt="Eight made scenes in two rows, the four with the largest error of RAFT above the four with"
    " the smallest, with the errors of TV-L1 and the mean motion below each.",
    photo=True,
)
together = torch.corrcoef(torch.tensor([per_pair["RAFT"], motion]))[0, 1]
wins = sum(a < b for a, b in zip(per_pair["RAFT"], classical, strict=True))
print(f"correlation of RAFT's error with the motion: {together:+.2f}")
print(f"RAFT is ahead of TV-L1 on {wins} of {len(motion)} scenes")

# %% [markdown]
# The last number below each picture is RAFT's error in pixels; the correlation says how far error and motion go together over these scenes.
#
# **What is hidden** (遮挡) in image 2 cannot be matched; a method can only guess it from what lies around. The study over methods kept the error there too.

# %%
both = frame[frame.dataset == "scenes"].groupby("method")[["epe", "hidden"]].mean().loc[METHODS]
print(both.rename(columns={"epe": "visible (px)", "hidden": "hidden (px)"}).round(2))
print("\nhidden / visible:", in_order((both.hidden / both.epe).to_dict()))

# %% [markdown]
# **Without texture** (无纹理) every place looks alike. The motorcycle at half size, its pixels sorted into four groups by the contrast around them (the deviation of the grey values in a square of 9 × 9):


# %%
def contrast(image, size=9):
    grey = image.mean(dim=1, keepdim=True)
    mean, square = (F.avg_pool2d(x, size, 1, size // 2) for x in (grey, grey**2))
    return (square - mean**2).clamp(min=0).sqrt()[:, 0]


known = half.visible
groups = contrast(half.image1)[known]
groups = torch.bucketize(groups, torch.quantile(groups, torch.tensor([0.25, 0.5, 0.75])))
print("contrast   little            much")
for method in METHODS:
    errors = end_point_errors(flow_of(method, "motorcycle ½"), half.flow)[known]
    print(f"{method:9}", "  ".join(f"{errors[groups == g].mean():5.1f}" for g in range(4)), "px")

# %% [markdown]
# Mind the first row before reading the others: zero flow says how far the groups move. A group can be hard because it is smooth, or because it moves far.
#
# **Motion beyond the training's.** The same scene at a quarter, a half and the whole of its size, and the median error by true motion. The grey line is zero flow, whose error *is* the motion; the dashed line marks the motion that 95 % of the training pixels stay below.

# %%
training_motion = (
    made_pairs(TRAIN_PHOTOGRAPHS, 80, LONG.crop, seed=1, reach=LONG.reach)
    .flow.norm(dim=1)
    .flatten()
)
limit = training_motion.sort().values[int(0.95 * len(training_motion))].item()
by_motion = {}
for shrink, text in ((4, "¼"), (2, "½"), (1, "whole")):
    pair = motorcycle(shrink)
    flow = checkpoint.estimate(pair.image1, pair.image2, 12).full
    error = end_point_errors(flow, pair.flow)[pair.visible]
    length = pair.flow.norm(dim=1)[pair.visible]
    bins = (length / 4).long()
    full = [b for b in bins.unique().tolist() if (bins == b).sum() >= 50]
    by_motion[text] = [(4 * b + 2, error[bins == b].median().item()) for b in full]
    points = by_motion[text]
    lost = [x for x, _ in points if all(e > y / 2 for y, e in points if y >= x)]
    where = f"over half of the motion from {lost[0]} px on" if lost else "under half at the far end"
    print(f"{text:6} motion {length.mean():5.1f} px, error {error.mean():5.1f} px, {where}")
print(f"95 % of the training pixels move by less than {limit:.0f} px")


# %% tags=["figure"]
def draw_motion_range():
    figure, axes = canvas(1, 1, 5.2, 2.6)
    for (text, points), colour, marker in zip(
        by_motion.items(), ("first", "n01", "second"), "os^", strict=True
    ):
        style = {"color": COLOURS[colour], "marker": marker, "markersize": 3}
        axes.plot(*zip(*points, strict=True), label=f"motorcycle {text}", **style)
    longest = max(x for points in by_motion.values() for x, _ in points)
    axes.plot([0, longest], [0, longest], color=COLOURS["muted"], label="zero flow")
    axes.axvline(limit, color="black", linestyle="--", linewidth=1, label="95 % of training")
    axes.axvline(reach(LEVELS, RADIUS), color="black", linestyle=":", linewidth=1, label="reach ρ")
    axes.set(xlabel="true motion (px)", ylabel="median error (px)", xlim=(0, None), ylim=(0, None))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


show(
    draw_motion_range(),
    alt="Median error over true motion for the motorcycle at three sizes, with the line of zero"
    " flow and a dashed line at the largest usual training motion.",
)

# %% [markdown]
# Does a curve leave the bottom and go towards the grey line, and where? Near the dotted line, the look-up would be what fails; near the dashed one, the training. The printed lines answer for each size. A curve that stays low past the dotted line shows the iterations at work: each look-up starts where the last one ended. The film asks the same with nothing else changed: the same photograph, frames further and further apart.

# %%
for gap in (1, 2, 4, 8, 16):
    pair = film(0, gap)
    length = end_point_error(0 * pair.flow, pair.flow, pair.visible).item()
    error = errors_along(pair, 12)[-1]
    print(f"gap {gap:2}: motion {length:5.1f} px, error {error:5.2f} px, {error / length:.0%}")

# %% [markdown]
# ### Could, might: a word on interpretation
#
# One may show something and say how one sees it. Here is one place of the motorcycle and its similarity to all places of the other image, level 0 of the volume. If matching were all, the flow would point to the peak.

# %%
seen_quarter, _, _ = seen_of("motorcycle ¼")
volume = correlation(seen_quarter.features1, seen_quarter.features2)[0]
H, W = volume.shape[:2]
peak = volume.flatten(2).argmax(dim=2)
peak_flow = torch.stack([peak % W, peak // W])[None] - pixel_grid(H, W).permute(2, 0, 1)
coarse_true = F.avg_pool2d(pad(quarter.flow)[0], 8) / 8
query = (11, 7)  # x, y of a place on the coarse grid
estimated = checkpoint.estimate(quarter.image1, quarter.image2, 12)


# %%
def draw_peak():
    figure, (left, right) = canvas(1, 2, 6.2, 2.0)
    x, y = query
    left.imshow(to_picture(quarter.image1))
    left.plot(8 * x + 3.5, 8 * y + 3.5, "o", color=COLOURS["query"], markeredgecolor="white")
    left.set(xlabel="x (px)", ylabel="y (px)", title="image 1 and one place")
    right.imshow(volume[y, x], cmap="gray")
    ends = {
        "true": (coarse_true, "o", "good"),
        "peak": (peak_flow, "x", "second"),
        "RAFT": (estimated.coarse, "+", "flow"),
    }
    for name, (flow, marker, colour) in ends.items():
        u, v = flow[0, :, y, x].tolist()
        style = {"markersize": 9, "fillstyle": "none", "markeredgewidth": 2, "linestyle": ""}
        right.plot(x + u, y + v, marker, color=COLOURS[colour], label=name, **style)
    right.set(xlabel="x (coarse px)", ylabel="y (coarse px)", title="its correlation with image 2")
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


show(
    draw_peak(),
    alt="Left the motorcycle with one marked place; right a small grey map of its correlations with"
    " every place of the other image, with the true match, the peak and RAFT's answer marked.",
    photo=True,
)
peaks = unpad(F.interpolate(8.0 * peak_flow, scale_factor=8), pad(quarter.image1)[1])
for name, flow in {"peaks": peaks, "RAFT": estimated.full}.items():
    print(f"{name:5} {end_point_error(flow, quarter.flow, quarter.visible):6.2f} px of error")

# %% [markdown]
# The map is bright in more places than one. Following the peak alone, place by place, gives the first of the two errors. The update *might* act as a judge between the peaks, by what its neighbours say and what the context shows; and the state might hold which of them was chosen. How much does the state still change, from one iteration to the next?

# %%
with torch.no_grad():
    padded = [pad(image)[0] for image in (quarter.image1, quarter.image2)]
    lookup, h, share = checkpoint.prepare(*padded)
    start = torch.zeros(1, 2, *h.shape[2:])
    steps = list(steps_of_raft(checkpoint.update_block, lookup, h, share, start, 32))
moves = [((b - a).norm() / a.norm()).item() for (_, a), (_, b) in itertools.pairwise(steps)]
print("relative change of the state:", {k + 2: round(moves[k], 3) for k in (0, 2, 6, 14, 30)})
print("it settles" if moves[30] < 0.01 else "it slows down, and does not settle")
assert moves[30] < moves[0]

# %% [markdown]
# At first the change shrinks: the update *could* be drawn towards a **fixed point** (不动点), a state that it returns as it is. If it arrived there, 64 iterations could do no harm; the second line says whether it does. This is a reading, not a result.
#
# ### Beside the other papers
#
# The cards of chapter 1 say what the four papers of this course share, and where RAFT stands alone.

# %%
cards = read_cards(data_path("cards"))
compare(cards, ["output", "representation", "backbone", "elements interact"])

# %%
discuss(cards, ["task", "family", "elements interact"])

# %% [markdown]
# ### What this cannot show
#
# - **Limitation.** One network, trained on small made scenes by one seed. What holds for it need not hold for the published weights.
# - **Limitation of the ablation.** The encoders were learned *with* all parts and stayed; only the update was learned anew, for 150 steps. A part that needs long training to pay is treated unfairly (convex upsampling, with its extra head, may be one), and three seeds leave many questions open.
# - **One pair is no data set.** The motorcycle has a measured flow and no seed. Two sizes of it are two tests, not two samples.
# - **Limits of the field.** True motion is easy to make and hard to measure: exact flow is mostly synthetic, and made scenes move as their maker imagined.
# - **No time to try.** The full model; retraining the encoders of each variant; fewer or wider levels with the same number of correlations; the weights of the loss ($\gamma$); a real film with measured flow; the published weights (`fourfold flow --weights`), which lesson 6 loads.

# %% [markdown]
# ## Exercises
#
# Nothing is left blank in this lesson: its exercises are experiments.
#
# **Predict.** An image twice as high and twice as wide: by what factor do the all-pairs volume and the on-demand features grow? And how many levels more give the look-up twice the reach?
#
# <details><summary>Hint</summary>
#
# Equation 4: what happens to $n$? Equation 3: where does $L$ stand?
#
# </details>
#
# <details><summary>Answer</summary>
#
# $n$ becomes four times as large, so the volume sixteen times and the features four times. One level more doubles the reach. The cell at the end measures all three.
#
# </details>
#
# **Measure.** For each data set: after how many iterations is the error within 2 % of the best of 64? Would you choose the number of iterations by this, for your own pictures?
#
# <details><summary>Hint</summary>
#
# `curves` holds the errors; `next(k for k, e in enumerate(errors, 1) if …)`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The numbers are printed below. They are chosen on held-out data, so they may not be reported as RAFT's result; and on your own pictures nobody knows the error. A rule that needs no truth: stop when the change of the flow is small.
#
# </details>
#
# **Find the bug.** A colleague reports, for each data set, the lowest error over 64 iterations, "since everybody may choose their iterations". TV-L1 gets its default. How much does RAFT's number gain by that, without RAFT being better?
#
# <details><summary>Hint</summary>
#
# The choice was made by looking at the held-out error. Compare with the error at a number that was fixed before.
#
# </details>
#
# <details><summary>Answer</summary>
#
# It is chapter 1's *best of many*: a choice on held-out data. The gain over a fixed 12 is printed below; it is given to one side of the comparison only.
#
# </details>

# %% [markdown]
# The numbers behind the answers:

# %%
for name, kind in WAYS.items():
    once, twice = cost(kind, 16)[0], cost(kind, 32)[0]
    print(f"{name}: {twice / once:.2f} times the numbers")
print(f"one level more: {reach(4, 3) / reach(3, 3):.0f} times the reach")
for dataset, errors in curves.items():
    near = next(k for k, error in enumerate(errors, 1) if error <= 1.02 * min(errors))
    print(
        f"{dataset:13} near the best after {near:2}; the best of 64 is {errors[11] - min(errors):.3f} px below k = 12"
    )

# %% [markdown]
# ## What breaks
#
# ### A lesion is no ablation
#
# It is tempting to set a part's input to zero, watch the error, and call its change *what the part is worth*. Here are both, for the same cut of the look-up on the same motorcycle, in per cent of the error with everything there:

# %%
relearned = plain[plain.dataset == "motorcycle ¼"].groupby(["levels", "radius"]).epe.mean()
intact = errors_along(quarter, 12)[-1]
for levels, radius in LESIONS[1:]:
    cut = errors_along(quarter, 12, Narrowed(levels, radius).eval())[-1]
    print(
        f"L = {levels}, r = {radius}: cut off {cut / intact - 1:+.0%},"
        f" never there {relearned[levels, radius] / relearned[LESIONS[0]] - 1:+.0%}"
    )

# %% [markdown]
# A network that has learned with a part may lean on it, and take harm when the rest meets inputs it never saw; or the part may feed it noise, and it does better without. A network that never had the part has learned to do without. The first number says what the trained network relies on, the second what the part is for: different questions, with answers that need not agree even in sign.
#
# ### One pair, many seeds
#
# The motorcycle is the same for every seed. Whoever runs it over seeds gets an interval of width zero, which looks like certainty:

# %%
same = [errors_along(pair_of("motorcycle ¼", seed), 2)[-1] for seed in range(3)]
print(mean_interval(same))
assert mean_interval(same).half < 1e-6

# %% [markdown]
# The interval speaks of other seeds, and for other *pictures* it says nothing.
#
# ### What the code says to bad input
#
# An image too small for its levels, a start on the wrong grid, the file of another study, and an ablation over several settings at once:

# %%
tiny = torch.rand(1, 3, 24, 24) * 255
with shows_error(ValueError):
    checkpoint(tiny, tiny)
with shows_error(ValueError):
    errors_along(quarter, 2, initial_flow=torch.zeros(1, 2, 4, 4))
with shows_error(ValueError):
    Study(
        data_path("results", "raft_ablations.jsonl"),
        relearn,
        settings=counts,
        datasets=["film"],
        seeds=[0],
    )
with shows_error(ValueError):
    ablation_table(ablated, "levels", "epe", with_value=LEVELS, without_value=1)

# %% [markdown]
# ## Recap
#
# - The update does not diverge over several times the iterations it was trained with. Most of the work is done in the first few, perhaps because a look-up reaches far; with a longer way or a shorter look-up, refinement shows.
# - A part is judged by learning without it, on the same seeds, with an interval; a lesion answers another question, and *open* is an answer too.
# - Failures are sorted by cause: hidden pixels, little texture, motion beyond the training's. The all-pairs volume costs the square of the image's size, and features on demand do not.
#
# Here the line of RAFT ends. [Chapter 6](../6_bilinear_sampling/3_window.ipynb) holds the window that every look-up reads; chapter 5 follows points through many frames, with RAFT's encoder and a look-up like this one.
