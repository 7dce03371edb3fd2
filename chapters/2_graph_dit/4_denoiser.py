# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 55
#     needs:
#     - 2_graph_dit/2_graphs
#     - 2_graph_dit/3_noise
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Denoiser: a Transformer that listens to properties
#
# **After this lesson you can** write Graph DiT's denoiser with its condition encoders and AdaLN, say what it does before it has learned anything, and load weights of the release into it.
#
# *Before this:* [Graphs](2_graphs.ipynb) (`2_graphs`), where molecules become tensors, and [Noise](3_noise.ipynb) (`3_noise`), which spoils them. *Time:* 55 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# A noisy molecule $X_G$ comes in, and the scores $S$ of the clean one come out: for each atom how likely every type is, and for each pair of atoms every bond. This is the **denoiser** (解噪器). It is a Transformer whose tokens are the atoms, each with its bonds to all others. The hidden tokens $H$ of the atoms read each other in attention, as far as the mask $M$ says that both atoms are there.
#
# The time $\tau$ says how noisy the graph is, and the value of a property, $c_i$, says what molecule is wanted. A **condition encoder** (条件编码器) turns each into one vector, its code. The time goes through its waves $\psi$. A number is assigned softly to clusters, and the shares $a$ are mixed to the code $e_i$ (聚类编码, clustering-based encoding); a category is one-hot. The sum of all codes is the condition $c$.
#
# The condition speaks in every layer through **AdaLN**: each layer's output is normalised, which removes its own mean and variance (均值和方差), and gets the condition's in their place, a scale $\gamma$ and a shift $\beta$. A gate $\alpha$ says how much of it is added. At the start of training all three are zero, so every layer passes its input on unchanged.

# %% [markdown]
# ## Figure
#
# ### A small model that has learned a little
#
# The molecules are 3,000 of QM9. The property is logP, a measure of how much a molecule prefers oil to water, brought to mean 0 and standard deviation 1. The noise is the graph-dependent one of [lesson 3](3_noise.ipynb), in 100 steps. The loss is that of [lesson 5](5_diffusion.ipynb): cross-entropy of the clean atoms and bonds.

# %%
import copy
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fourfold.graph_dit.denoiser import GraphDiT, time_waves
from fourfold.graph_dit.diffusion import diffusion_loss, draw_graph, graph_loss, starting_graph
from fourfold.graph_dit.graphs import (
    BONDS,
    Codes,
    Graphs,
    decode_graphs,
    encode_smiles,
    find_vocabulary,
    graph_tokens,
    one_hot,
    to_codes,
    to_molecule,
)
from fourfold.graph_dit.noise import GraphNoise, graph_statistics
from fourfold.kit.arguments import whole_number
from fourfold.kit.checkpoints import check_keys
from fourfold.kit.drawing import COLOURS, canvas, draw_pixels, show
from fourfold.kit.molecules import draw_molecule, qm9_table
from fourfold.kit.notebook import shows_error

# %%
table = qm9_table("train").sample(3000, random_state=0)
vocabulary = find_vocabulary(table.smiles)
codes, rows, problems = encode_smiles(table.smiles, vocabulary)
noise = GraphNoise(graph_statistics(codes, vocabulary), 100)
logP = torch.tensor(table.logP.values[rows]).float()[:, None]
y = (logP - logP.mean()) / logP.std()
print(vocabulary, len(rows), "molecules,", len(problems), "problems")

# %% [markdown]
# One question is asked again and again while the model learns: given pure noise and a logP, how large a share of the atoms does it believe to be carbon?


# %%
asked = torch.linspace(-2, 3, 11)  # logP


def carbon_share(model, graphs=24):
    """The share of carbon that the model predicts from pure noise, for each logP asked."""
    start = starting_graph(noise, torch.full((graphs,), 9), torch.Generator().manual_seed(1))
    many = Graphs(*(part.repeat(len(asked), *[1] * (part.ndim - 1)) for part in start))
    wanted = ((asked - logP.mean()) / logP.std()).repeat_interleave(graphs)[:, None]
    model.eval()
    with torch.no_grad():
        X, _ = model(*many, torch.ones(len(wanted)), wanted)
    return X.softmax(-1)[..., 0].view(len(asked), -1).mean(dim=1)


def learn(condition_noise, steps=400, batch=64):
    """A small model after a few hundred steps, and what it said about carbon on its way."""
    torch.manual_seed(0)
    sizes = {"width": 64, "depth": 1, "heads": 4, "condition_noise": condition_noise}
    model = GraphDiT(len(vocabulary.atoms), vocabulary.max_atoms, **sizes)
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    slower = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.2, steps)
    heard = [carbon_share(model)]
    for step in range(1, steps + 1):
        pick = torch.randint(len(y), (batch,))
        graph = one_hot(Codes(codes.atoms[pick], codes.bonds[pick]), vocabulary)
        loss = diffusion_loss(model.train(), noise, graph, y[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        slower.step()
        if step % 20 == 0:
            heard.append(carbon_share(model))
    return model.eval(), torch.stack(heard)


model, heard = learn(condition_noise=0.0)
for when, said in (("before", heard[0]), ("after", heard[-1])):
    print(f"{when}: {said[0]:.2f} of the atoms are carbon at logP −2, {said[-1]:.2f} at 3")

# %% [markdown]
# ### What goes through it
#
# One molecule, noised to the sixth of 100 steps. A hook, a function that PyTorch calls with a module's inputs and outputs, reads what the middle of the model holds.

# %%
chosen = next(
    i
    for i, row in enumerate(rows)
    if codes.atoms[i].min() >= 0
    and len(set(codes.atoms[i].tolist())) == 3
    and codes.bonds[i].max() == 4
)
smiles = table.smiles.iloc[rows[chosen]]
clean = one_hot(
    Codes(codes.atoms[chosen : chosen + 1], codes.bonds[chosen : chosen + 1]), vocabulary
)
when = torch.tensor([6])
noisy = draw_graph(*noise.q(clean, when), clean.mask, torch.Generator().manual_seed(2))
seen = {}
hook = model.blocks[-1].register_forward_hook(
    lambda block, given, out: seen.update(H=out, c=given[1])
)
with torch.no_grad():
    scores_X, scores_E = model(*noisy, when / noise.steps, y[[chosen]])
    seen["time"] = model.time(when / noise.steps)
    seen["code"] = model.condition(y[[chosen]])
hook.remove()
print(smiles, {name: tuple(value.shape) for name, value in seen.items()})


# %% tags=["figure"]
def shape_of(values):
    return " × ".join(str(side) for side in values.shape)


def draw_model():
    figure, axes = canvas(1, 5, 8, 2.5, width_ratios=[1.7, 2, 2, 2, 2])
    draw_molecule(axes[0], smiles)
    axes[0].set_title(f"clean molecule,\nlogP {logP[chosen].item():.2f}".replace("-", "−"))
    symbols = [vocabulary.atoms[a] for a in noisy.X[0].argmax(-1).tolist()]
    strips = {"time τ": seen["time"], "code e_1": seen["code"], "condition c": seen["c"]}
    panels = {
        f"tokens X_G, noisy\n{shape_of(graph_tokens(noisy)[0])}": graph_tokens(noisy)[0],
        f"condition c, a sum\n3 × {shape_of(seen['c'][0])}": torch.cat(list(strips.values())),
        f"hidden H\n{shape_of(seen['H'][0])}": seen["H"][0],
        f"scores S\n{shape_of(graph_tokens(clean)[0])}": graph_tokens(
            Graphs(scores_X, scores_E, noisy.mask)
        )[0],
    }
    for each, (title, values) in zip(axes[1:], panels.items(), strict=True):
        reach = values.abs().max() if values.min() < 0 else 1
        each.imshow(
            values, cmap="cividis", interpolation="nearest", vmin=-reach, vmax=reach, aspect="auto"
        )
        each.set(title=title)
        each.set_xticks([])
        each.set_yticks(range(len(values)), symbols if len(values) == 9 else list(strips))
        each.tick_params(length=0)
        each.spines[:].set_visible(False)
    for each in (axes[1], axes[4]):
        each.axvline(len(vocabulary.atoms) - 0.5, color=COLOURS["query"], lw=1)
        each.set_xlabel("atom | bonds to each atom")
    for each in (axes[2], axes[3]):
        each.set_xlabel("D numbers")
    return figure


show(
    draw_model(),
    alt="A molecule, then four pictures of numbers: the noisy tokens with one row for each atom, "
    "the codes of time and property and their sum, the hidden tokens, and the scores",
)

# %% [markdown]
# Each row of $X_G$ is an atom: left of the red line its type, right of it its bond to each of the nine places, none, single, double, triple or aromatic. The scores have the same shape. In between every atom has $D$ numbers, and the condition has as many, once for the whole molecule. The code of logP is much quieter than the time, and it was quieter still when training began.

# %% [markdown]
# ## Formula
#
# Time comes as $\tau = t / T$, in [0, 1]. Its waves are cosines, then sines, of $W$ numbers in all:
#
# $$ \psi(\tau) = \big[\, \cos(\omega_0 \tau), \dots, \cos(\omega_{W/2-1} \tau) \;\big|\; \sin(\omega_0 \tau), \dots, \sin(\omega_{W/2-1} \tau) \,\big], \qquad \omega_k = 10000^{-k/(W/2)} \tag{1} $$
#
# A numeric property $c_i$ is assigned to $D$ clusters by a linear layer and a softmax; the shares $a$ are mixed by a second linear layer. For a category, the share of its own class is 1, and a row of a table is its code (paper, Section 3.2):
#
# $$ a = \mathrm{softmax}(W_1 c_i + b_1), \qquad e_i = W_2\, a \quad\text{or}\quad e_i = W_3\, \mathrm{onehot}(c_i) \tag{2} $$
#
# Time is one more condition, and all are added:
#
# $$ c = \mathrm{MLP}(\psi(\tau)) + \sum_i e_i \tag{3} $$
#
# The tokens enter through a linear layer, $H = W_0 X_G$. In attention, every atom $i$ takes a mean of what the others say, $v_j$, weighed by how well its query $q_i$ fits their key $k_j$. Both are normalised, each head by itself; $d$ is the width of a head. The mask $M$ admits pairs of two atoms that are there:
#
# $$ \mathrm{Attn}(H)_i = \sum_j P_{ij} v_j, \qquad P_{ij} = \mathrm{softmax}_{j :\, M_{ij} = 1} \Big( \mathrm{LN}(q_i) \cdot \mathrm{LN}(k_j) / \sqrt{d} \Big) \tag{4} $$
#
# AdaLN takes the mean $\mu$ and the standard deviation $\sigma$ of a token's numbers away and puts the condition's in their place. Scale, shift and gate are what a small network makes of $c$ (paper, equation 8):
#
# $$ [\,\beta, \gamma, \alpha\,] = \mathrm{Linear}(\mathrm{SiLU}(\mathrm{Linear}(c))), \qquad \mathrm{AdaLN}(h, c) = (1 + \gamma) \odot \frac{h - \mu(h)}{\sigma(h)} + \beta \tag{5} $$
#
# A block has two branches, each gated and added (paper, equation 9), with a $\beta$, $\gamma$, $\alpha$ for each:
#
# $$ H \leftarrow H + \alpha \odot \mathrm{AdaLN}(\mathrm{Attn}(H), c), \qquad H \leftarrow H + \alpha \odot \mathrm{AdaLN}(\mathrm{MLP}(H), c) \tag{6} $$
#
# The scores, which a softmax over types turns into probabilities of the clean graph (paper, equation 10, which has no first term):
#
# $$ S = X_G + \mathrm{AdaLN}(\mathrm{MLP}(H), c) \tag{7} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $\tau$ | time, as a share of all steps | (B,), 0 … 1 | `time` | time τ |
# | $\psi$ | waves of the time | (B, W) | `time_waves` | waves ψ |
# | $c_i$ | value of a property | (B, n) | `part` | property c_i |
# | $a$ | shares of soft clusters | (B, D), sum 1 | `clusters` | soft clusters a |
# | $e_i$ | code of a property | (B, D) | `code` | code e_1 |
# | $c$ | condition, the sum of all codes | (B, D) | `c` | condition c |
# | $X_G$ | tokens: noisy atoms with their bonds | (B, N, F), F = A + 5N | `graph_tokens` | tokens X_G |
# | $H$ | hidden tokens of the atoms | (B, N, D) | `H` | hidden H |
# | $M$ | mask of pairs of atoms that are there | (B, 1, N, N) | `pairs` | mask M |
# | $\gamma$ | scale that the condition sets | (B, D) | `scale` | scale γ |
# | $\beta$ | shift that the condition sets | (B, D) | `shift` | shift β |
# | $\alpha$ | gate of a branch | (B, D) | `gate_1`, `gate_2` | gate α |
# | $S$ | scores of the clean graph | (B, N, F) | `scores` | scores S |
#
# Letters of shapes: $B$ graphs, $N$ atoms at most, $A$ types of atoms, $D$ width, $n$ numbers of a property.
#
# > **Where the code leaves the paper.** The norm stands *behind* the branch, as in the paper's equation 9; DiT, whose name the model bears, puts it before. Queries and keys are normalised, which the paper does not mention. In training, noise of standard deviation 1 is added to each property's code, which the paper does not mention either; below it is measured against the size of the code. And the last layer *adds* to the noisy graph, where the paper's equation 10 predicts the clean one outright. This module follows the release in all four. It names errors that the release lets pass, offers to drop one missing property in place of a whole row, and lets the noise on the codes be 0.

# %% [markdown]
# ## Code
#
# ### Time in many numbers
#
# Equation 1 in loops:


# %%
def time_waves_loop(time, width):
    half = width // 2
    angles = [time * 10_000 ** (-k / half) for k in range(half)]
    return torch.tensor([*map(math.cos, angles), *map(math.sin, angles)])


time_waves_loop(0.0, 6), time_waves_loop(0.5, 6)


# %% tags=["promote", "exercise"]
def time_waves(time: Float[Tensor, "B"], width: int = 256) -> Float[Tensor, "B {width}"]:
    """Cosines, then sines, of the time at falling frequencies (equation 1 of the lesson).

    time     (B,) t / T in [0, 1]
    width    W, an even number
    returns  (B, W) float32

    Raises ValueError for a width that is odd or below 2. Source: the release; the order is that of
    DiT, the argument is not, which takes whole numbers of steps.
    """
    if whole_number("width", width, least=2) % 2:
        raise ValueError(f"width is {width}; expected an even number, as each cosine has a sine")
    half = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=time.device) / half)
    angle = time[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


# %% tags=["check"]
some = torch.tensor([0.0, 0.3, 1.0])
by_hand = torch.stack([time_waves_loop(time, 8) for time in some.tolist()])
assert time_waves(some, 8).shape == (3, 8), "one row for each time"
assert torch.allclose(time_waves(some, 8), by_hand, atol=1e-6), "float32 rounds numbers up to 1"
with shows_error(ValueError):
    time_waves(some, 7)

# %% [markdown]
# How much do these numbers say? Over the whole way from $\tau = 0$ to 1, the fastest angle grows by one radian. DiT gives the same waves a whole number of steps, up to 1,000.

# %%
for name, times in (
    ("τ in [0, 1]", torch.linspace(0, 1, 101)),
    ("1000 τ", 1000 * torch.linspace(0, 1, 101)),
):
    spread = time_waves(times).amax(dim=0) - time_waves(times).amin(dim=0)
    print(f"{name:>11}: {(spread > 0.1).sum()} of {len(spread)} numbers move by more than 0.1")


# %% tags=["figure"]
def draw_waves():
    figure, axes = canvas(1, 2, 7.4, 2.4)
    times = torch.linspace(0, 1, 101)
    for each, factor in zip(axes, (1, 1000), strict=True):
        each.imshow(
            time_waves(factor * times) - time_waves(torch.zeros(1)),
            cmap="cividis",
            interpolation="nearest",
            aspect="auto",
            vmin=-1,
            vmax=1,
            extent=(0, 256, 1, 0),
        )
        each.set(xlabel="cosines | sines, fast to slow", ylabel="time τ")
    axes[0].set_title("waves ψ of τ, as released,\nagainst those of 0")
    axes[1].set_title("the same of 1000 τ,\nas in DiT")
    return figure


show(
    draw_waves(),
    alt="Two pictures of waves over the time: on the left smooth changes in the first columns of "
    "cosines and sines alone, on the right fast stripes in half of all columns",
)

# %% [markdown]
# Dark is a fall since time 0, light a rise, grey no change. The left picture is smooth and mostly grey: a network reads the time from some forty columns. That is enough where little depends on the exact time. Weights that have learned from one of the two pictures are lost with the other, so `GraphDiT` refuses a time beyond 1.


# %% tags=["promote"]
class TimeEncoder(nn.Module):
    """The time as a vector, `MLP(ψ(τ))` of equation 3: waves, then two linear layers with SiLU."""

    def __init__(self, width: int, waves: int = 256):
        super().__init__()
        self.waves = waves
        self.mlp = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Float[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.mlp(time_waves(time, self.waves).to(self.mlp[0].weight.dtype))


# %%
assert TimeEncoder(16)(some).shape == (3, 16)

# %% [markdown]
# ### A number, softly assigned
#
# What has a linear layer with a softmax to do with clusters? Take centres $z_k$ on a line and give a value $v$ to them by its squared distance, softly: $\mathrm{softmax}_k(-s (v - z_k)^2)$. Naively, for one number:


# %%
centres = torch.linspace(-2, 2, 5)
sharpness = 2.0


def soft_assignment(value):
    nearness = [math.exp(-sharpness * (value - z) ** 2) for z in centres.tolist()]
    return torch.tensor(nearness) / sum(nearness)


soft_assignment(0.0), soft_assignment(0.5)

# %% [markdown]
# In the square, $-s v^2$ is the same for all clusters, and a softmax does not see what is added to all. What remains, $2 s z_k v - s z_k^2$, is linear in $v$. So equation 2 holds every soft assignment to centres, with weights $2 s z_k$ and biases $-s z_k^2$:

# %%
values = torch.linspace(-3, 3, 200)
linear = torch.softmax(values[:, None] * 2 * sharpness * centres - sharpness * centres**2, dim=-1)
assert torch.allclose(linear, torch.stack([soft_assignment(v) for v in values.tolist()]), atol=1e-6)

# %% [markdown]
# A dropped property has no value to assign. It gets a learned vector of its own, so that the model can also be asked for any molecule at all; [lesson 5](5_diffusion.ipynb) needs that for guidance.


# %% tags=["promote", "exercise"]
class ClusterEncoder(nn.Module):
    """Numbers as a vector: soft assignment to D clusters (equation 2 of the lesson; Section 3.2).

    `Linear(Softmax(Linear(y)))`; where `drop` is true, a learned vector in its place. A NaN must
    be dropped. Values far from 0 end in one cluster: bring them to mean 0 and deviation 1 first.
    """

    def __init__(self, numbers: int, width: int):
        super().__init__()
        self.dropped = nn.Parameter(torch.randn(1, width))
        self.assign = nn.Linear(numbers, width)
        self.represent = nn.Linear(width, width, bias=False)

    def forward(self, y: Float[Tensor, "B n"], drop: Bool[Tensor, "B"]) -> Float[Tensor, "B D"]:
        # A NaN in what is dropped would reach the gradients through the branch not taken.
        clusters = self.assign(torch.nan_to_num(y)).softmax(dim=-1)
        return torch.where(drop[:, None], self.dropped, self.represent(clusters))


# %% tags=["check"]
torch.manual_seed(0)
encoder = ClusterEncoder(1, 5)
with torch.no_grad():
    encoder.assign.weight[:] = 2 * sharpness * centres[:, None]
    encoder.assign.bias[:] = -sharpness * centres**2
    encoder.represent.weight[:] = torch.eye(5)
    coded = encoder(torch.tensor([[0.5], [math.nan]]), torch.tensor([False, True]))
assert coded.shape == (2, 5), "one vector of the width for each graph"
assert torch.allclose(coded[0], soft_assignment(0.5), atol=1e-6), "not the shares of the clusters"
assert torch.equal(coded[1], encoder.dropped[0]), "a dropped value has its own vector"

# %% [markdown]
# The five clusters as curves; fifteen of them as a heat map; and those of a `ClusterEncoder` at its start and after training:


# %%
def shares(encoder, values):
    with torch.no_grad():
        return encoder.assign(values[:, None]).softmax(dim=-1)


many = torch.linspace(-3, 3, 15)
fifteen = torch.softmax(values[:, None] * 2 * 6 * many - 6 * many**2, dim=-1)
fresh = GraphDiT(len(vocabulary.atoms), vocabulary.max_atoms, width=64, depth=1, heads=4)
before = shares(fresh.condition.encoders[0], values)
after = shares(model.condition.encoders[0], values)
order = after[-1].argsort()
print(
    f"largest share at the start {before.max():.3f}, after training {after.max():.3f}, 1/D = {1 / 64:.3f}"
)


# %% tags=["figure"]
def draw_clusters():
    figure, axes = canvas(1, 4, 8, 2.4)
    for k, curve in enumerate(linear.T):
        tone = 0.15 + 0.7 * k / len(centres)
        axes[0].plot(values, curve, color=str(tone))
    axes[0].set(title="soft clusters a,\nfive by hand", ylabel="share of the value", ylim=(0, 1.05))
    pictures = {
        "fifteen by hand": fifteen,
        "64 at the start": before[:, order],
        "64 after training": after[:, order],
    }
    for each, (title, picture) in zip(axes[1:], pictures.items(), strict=True):
        each.imshow(
            picture.T,
            cmap="cividis",
            interpolation="nearest",
            aspect="auto",
            vmin=0,
            vmax=0.2 if "after" in title else picture.max(),
            extent=(-3, 3, picture.shape[1], 0),
        )
        each.set_title(f"soft clusters a,\n{title}")
    axes[1].set_ylabel("cluster")
    axes[1].set_yticks([0, 5, 10, 15])
    for each in axes:
        each.set_xlabel("property c_i")
    return figure


show(
    draw_clusters(),
    alt="Five humps along the value; a diagonal band of fifteen clusters; 64 clusters at the start, "
    "which change little with the value; and after training, where few of them share the value",
)

# %% [markdown]
# Each heat map has its own scale, from 0 to its largest share; the last one ends at 0.2, so that small shares can be seen. At the start all clusters are nearly alike, so every value has nearly the same code. Training has made use of a few clusters at the two ends; it needs no band of fifteen for the smooth dependence that logP has.
#
# ### A category
#
# One-hot times a matrix takes a row of the matrix. `nn.Embedding` is that lookup:

# %%
matrix = torch.arange(8.0).view(4, 2)
picked = torch.tensor([2, 0])
assert torch.equal(F.one_hot(picked, 4).float() @ matrix, F.embedding(picked, matrix))


# %% tags=["promote"]
class CategoryEncoder(nn.Module):
    """A class as a vector: one-hot times a matrix (equation 2 of the lesson; Section 3.2).

    The classes are 0, 1, …; the last row of the table, one more, stands for a dropped class.
    Raises ValueError for another number, unless it is dropped.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, y: Float[Tensor, "B 1"], drop: Bool[Tensor, "B"]) -> Float[Tensor, "B D"]:
        given = torch.where(drop, 0, y[:, 0])
        index = given.nan_to_num(nan=-1).long()
        wrong = (index < 0) | (index >= self.classes) | (index != given)
        if wrong.any():
            raise ValueError(
                f"y holds the class {given[wrong][0].item():g}; "
                f"expected a whole number from 0 to {self.classes - 1}"
            )
        return self.table(torch.where(drop, self.classes, index))


# %%
category = CategoryEncoder(2, 3)
three = category(torch.tensor([[1.0], [0.0], [math.nan]]), torch.tensor([False, False, True]))
assert torch.equal(three, category.table.weight[[1, 0, 2]])
with shows_error(ValueError):
    category(torch.tensor([[2.0]]), torch.tensor([False]))

# %% [markdown]
# ### All conditions as one
#
# `y` holds the columns of all properties side by side. Three things can drop a property. Its value is missing (NaN): the release then drops *every* property of that row, and `missing="property"` drops that one alone. The call asks for no condition. Or, in training, a throw of dice for each property of each graph, so that the model also learns without.


# %% tags=["promote"]
Condition = tuple[str, int]  # ("numeric", how many numbers) or ("categorical", how many classes)


# %% tags=["promote"]
class ConditionEncoder(nn.Module):
    """All properties as one vector, the sum of their codes (equation 3; Section 3.2).

    conditions   groups in the order of y's columns: ("numeric", how many numbers), encoded
                 together, or ("categorical", how many classes), in one column
    drop         in training, the chance that a property of a graph is dropped, each for itself
    noise        in training, the standard deviation of noise added to each code; 1 as released
    missing      what a NaN drops: every property of its "row", as released, or the "property" alone

    Raises ValueError for another kind or size of a condition, a drop outside [0, 1], a negative
    noise; at the call, for another number of columns, an infinite value, or a class there is not.
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        width: int,
        *,
        drop: float = 0.01,
        noise: float = 1.0,
        missing: str = "row",
    ):
        super().__init__()
        if missing not in ("row", "property"):
            raise ValueError(f"missing is {missing!r}; expected 'row' or 'property'")
        if not 0 <= drop <= 1:
            raise ValueError(f"drop is {drop}; expected a chance from 0 to 1")
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise is {noise}; expected a standard deviation, 0 or more")
        self.conditions, self.drop, self.noise, self.missing = (
            list(conditions),
            drop,
            noise,
            missing,
        )
        self.width = width
        self.encoders = nn.ModuleList(_encoder(kind, size, width) for kind, size in conditions)
        self.columns = [size if kind == "numeric" else 1 for kind, size in conditions]

    def forward(self, y: Float[Tensor, "B P"], unconditional: bool = False) -> Float[Tensor, "B D"]:
        if y.shape[-1] != sum(self.columns):
            raise ValueError(
                f"y has {y.shape[-1]} columns; expected {sum(self.columns)}, "
                f"for the conditions {self.conditions}"
            )
        if y.isinf().any():
            raise ValueError(
                "y holds an infinite value; expected numbers, NaN where one is missing"
            )
        absent = y.isnan().any(dim=1)
        total = y.new_zeros(len(y), self.width)
        parts = y.split(self.columns, dim=1)
        for encoder, part in zip(self.encoders, parts, strict=True):
            drop = absent if self.missing == "row" else part.isnan().any(dim=1)
            if unconditional:
                drop = torch.ones_like(drop)
            elif self.training and self.drop > 0:
                drop = drop | (torch.rand(len(y), device=y.device) < self.drop)
            code = encoder(part, drop)
            if self.training and self.noise > 0:
                code = code + self.noise * torch.randn_like(code)
            total = total + code
        return total


# %% tags=["promote"]
def _encoder(kind: str, size: int, width: int) -> nn.Module:
    if kind not in ("numeric", "categorical"):
        raise ValueError(f"conditions holds {kind!r}; expected 'numeric' or 'categorical'")
    least = 1 if kind == "numeric" else 2
    size = whole_number(f"the size of a {kind} condition", size, least=least)
    return ClusterEncoder(size, width) if kind == "numeric" else CategoryEncoder(size, width)


# %% [markdown]
# Two properties, logP and TPSA, the polar surface. The second row lacks TPSA. Which part of its sum comes from a dropped vector?

# %%
two = [("numeric", 1), ("numeric", 1)]
partly = torch.tensor([[0.5, -1.0], [0.5, math.nan]])
for missing in ("row", "property"):
    both = ConditionEncoder(two, 8, missing=missing).eval()
    known = both.encoders[0](partly[:, :1], torch.tensor([False, False]))[1]
    first = both(partly)[1] - both.encoders[1].dropped[0]
    print(f"{missing:>8}: logP is heard: {torch.allclose(first, known, atol=1e-6)}")

# %% [markdown]
# ### How loud is a code?
#
# In training, the release adds noise of standard deviation 1 to each code. Measured at the start, at the width of the release and at ours:

# %%
for numbers in (64, 1152):
    start = GraphDiT(4, 9, width=numbers, depth=0, heads=1).eval()
    with torch.no_grad():
        code = start.condition(y[:500])
        time_code = start.time(torch.rand(500))
    differs = code.std(dim=0).square().mean().sqrt()
    print(
        f"D = {numbers:4d}: a code's numbers are about {code.square().mean().sqrt():.1e}, "
        f"and differ between molecules by {differs:.1e}; the time's are {time_code.square().mean().sqrt():.2f}"
    )

# %% [markdown]
# A code is a mean of $D$ columns of weights, so its numbers are about $1/D$ large. The noise is some 80 times as large at our width, a thousand times at the release's, and what differs between two molecules is smaller still. In the sum the property drowns. Training has to make the codes larger before the network can hear them. The lesson's own model was trained without this noise; *On real input* trains it again with.
#
# ### Atoms read each other
#
# Equation 4 for one graph in two loops, over heads and atoms:


# %%
def attention_loop(layer, H, there):
    """H (N, D) of one graph, there (N,) its mask; rows of atoms that are not there stay 0."""
    q, k, v = layer.qkv(H).chunk(3, dim=-1)
    d = H.shape[1] // layer.heads
    mixed = torch.zeros_like(H)
    for head in range(layer.heads):
        cut = slice(head * d, (head + 1) * d)
        for i in there.nonzero()[:, 0].tolist():
            fit = torch.stack(
                [layer.q_norm(q[i, cut]) @ layer.k_norm(k[j, cut]) for j in range(len(H))]
            )
            weight = torch.softmax(fit[there] / math.sqrt(d), dim=0)
            mixed[i, cut] = weight @ v[there][:, cut]
    return layer.proj(mixed)


# %% [markdown]
# All heads and atoms at once; PyTorch's `scaled_dot_product_attention` computes the softmax and the mean, with the root of $d$. At sizes of a molecule it is as fast as a product written out, since almost all the time goes into the linear layers.


# %% tags=["promote", "exercise"]
class Attention(nn.Module):
    """Attention of every atom to every atom (equation 4), queries and keys normalised per head.

    `pairs` says who may read whom. Each row needs one true entry at least: a softmax over
    nothing is NaN, and where PyTorch's kernel avoids the NaN, its gradient is wrong.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads)
        self.k_norm = nn.LayerNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(
        self, H: Float[Tensor, "B N D"], pairs: Bool[Tensor, "B 1 N N"]
    ) -> Float[Tensor, "B N D"]:
        q, k, v = self.qkv(H).unflatten(-1, (3, self.heads, -1)).unbind(2)  # B N heads d, each
        q, k, v = (x.transpose(1, 2) for x in (self.q_norm(q), self.k_norm(k), v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=pairs)
        return self.proj(mixed.transpose(1, 2).flatten(2))


# %% tags=["check"]
torch.manual_seed(0)
layer, tokens = Attention(12, 3), torch.randn(2, 5, 12)
layer.q_norm.weight.data.uniform_(0.5, 1.5)
there = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
who = (there[:, None, :, None] & there[:, None, None, :]) | ~there[:, None, :, None]
read = layer(tokens, who)
assert read.shape == tokens.shape, "the shape stays"
for one, hand, here in zip(read, tokens, there, strict=True):
    expected = attention_loop(layer, hand, here)
    assert torch.allclose(one[here], expected[here], atol=1e-5), "not the loops' numbers"

# %% [markdown]
# Why normalise $q$ and $k$? Then a score lies between $-\sqrt d$ and $\sqrt d$ as long as the norms' own weights are 1, however large the layer's weights have grown. Without, large weights make a softmax with one winner, whose gradient is near 0. The largest weight of any atom on another, and the same with weights 10 times as large:

# %%
with torch.no_grad():
    wide = Attention(64, 4)
    q, k, _ = wide.qkv(torch.randn(1, 9, 64)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    for times in (1, 10):
        plain = (times * q @ (times * k).transpose(2, 3) / 4).softmax(-1)
        normal = (wide.q_norm(times * q) @ wide.k_norm(times * k).transpose(2, 3) / 4).softmax(-1)
        print(
            f"weights × {times:2d}: plain {plain.amax(-1).mean():.2f}, normalised {normal.amax(-1).mean():.2f}"
        )

# %% [markdown]
# What do the heads of the trained model read in our molecule? And what in a molecule of five atoms, where four places are empty?

# %%
small = next(i for i, row in enumerate(rows) if (codes.atoms[i] >= 0).sum() == 5)
pair = one_hot(Codes(codes.atoms[[chosen, small]], codes.bonds[[chosen, small]]), vocabulary)
pairs = pair.mask[:, None, :, None] & pair.mask[:, None, None, :]
attention = model.blocks[0].attention
with torch.no_grad():
    hidden = model.embed(graph_tokens(pair))
    q, k, _ = attention.qkv(hidden).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    fit = attention.q_norm(q) @ attention.k_norm(k).transpose(2, 3) / math.sqrt(q.shape[-1])
    weights = fit.masked_fill(~pairs, -math.inf).softmax(-1).nan_to_num()


# %% tags=["figure"]
def draw_attention():
    figure, axes = canvas(2, 5, 7.6, 3.2)
    for row, index in enumerate((chosen, small)):
        symbols = [vocabulary.atoms[a] if a >= 0 else "" for a in codes.atoms[index].tolist()]
        panels = {"mask M": pairs[row, 0].float()}
        panels |= {f"head {h + 1}": weights[row, h] for h in range(4)}
        for each, (title, picture) in zip(axes[row], panels.items(), strict=True):
            each.imshow(
                picture,
                cmap="cividis",
                interpolation="nearest",
                vmin=0,
                vmax=max(picture.max(), 0.01),
            )
            each.set_xticks(range(9), symbols)
            each.set_yticks(range(9), symbols)
            each.tick_params(length=0)
            if row == 0:
                each.set_title(title)
        axes[row, 0].set_ylabel("who reads")
    axes[1, 2].set_xlabel("who is read")
    return figure


show(
    draw_attention(),
    alt="For a molecule of nine atoms and one of five: the mask, and the attention weights of four "
    "heads between all atoms; the empty places of the smaller one have none",
)

# %% [markdown]
# Bright means a large weight. In this small model each head reads a few places, and most atoms read the same ones: bright columns. For the places without an atom the model lets every entry be true: what comes out there is never used, and it must not be NaN.
#
# ### Statistics from the condition
#
# Equation 5, number by number:


# %%
def modulate_loop(H, shift, scale):
    out = torch.empty_like(H)
    for b, n, f in torch.cartesian_prod(*map(torch.arange, H.shape)).tolist():
        out[b, n, f] = (1 + scale[b, f]) * H[b, n, f] + shift[b, f]
    return out


# %% [markdown]
# `addcmul` multiplies and adds in one pass over the memory.


# %% tags=["promote"]
def modulate(
    H: Float[Tensor, "B N D"], shift: Float[Tensor, "B D"], scale: Float[Tensor, "B D"]
) -> Float[Tensor, "B N D"]:
    """The condition's statistics for normalised tokens, `(1 + γ) ⊙ H + β` (equation 5).

    One shift β and scale γ for each number, the same for all atoms of a graph. Source: the paper's
    equation 8.
    """
    return torch.addcmul(shift[:, None], H, 1 + scale[:, None])


# %% tags=["promote"]
class AdaLN(nn.Module):
    """What a condition says to a layer, `Linear(SiLU(Linear(c)))` (equation 5): `out` numbers.

    `GraphDiT` sets the first layer to zero at the start of training, and with it all that comes
    out: no shift, no scale, no gate.
    """

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, out)

    def forward(self, c: Float[Tensor, "B D"]) -> Float[Tensor, "B O"]:
        return self.second(F.silu(self.first(c)))


# %%
torch.manual_seed(0)
H = 5 + 3 * torch.randn(2, 4, 16)
shift, scale = torch.randn(2, 2, 16)
assert torch.allclose(modulate(H, shift, scale), modulate_loop(H, shift, scale), atol=1e-5)

# %% [markdown]
# "Replaces mean and variance" is meant literally. Let shift and scale be one number each, −2 and 0.5: then every atom has mean −2 and standard deviation 1.5, whatever it had before.

# %%
normal = nn.LayerNorm(16, elementwise_affine=False)(H)
told = modulate(normal, torch.full((2, 16), -2.0), torch.full((2, 16), 0.5))
for name, numbers in (("before", H), ("normalised", normal), ("AdaLN", told)):
    atom = numbers[0, 0]
    print(f"{name:>10}: mean {atom.mean():5.2f}, standard deviation {atom.std(correction=0):.2f}")

# %% [markdown]
# With a number for each of the $D$ places, the condition says more: which of them matter, and in which direction. What the trained block makes of logP, in its attention branch, at $\tau = 1$:

# %%
wishes = ((torch.linspace(-2, 3, 60) - logP.mean()) / logP.std())[:, None]
with torch.no_grad():
    told = model.time(torch.ones(60)) + model.condition(wishes)
    shifts, scales, gates = model.blocks[0].adaln(told).chunk(6, dim=-1)[:3]


# %% tags=["figure"]
def draw_statistics():
    figure, axes = canvas(1, 3, 7.6, 2.5, sharey=True)
    titles = ("shift β", "scale γ", "gate α")
    for each, title, numbers in zip(axes, titles, (shifts, scales, gates), strict=True):
        order = (numbers[-1] - numbers[0]).argsort()
        size, numbers = numbers.abs().max(), numbers - numbers.mean(dim=0)
        reach = numbers.abs().max()
        each.imshow(
            numbers[:, order],
            cmap="cividis",
            interpolation="nearest",
            aspect="auto",
            vmin=-reach,
            vmax=reach,
            extent=(0, 64, 3, -2),
        )
        each.set(
            title=f"{title}, up to {size:.1f}:\nchange by up to {reach:.1f}",
            xlabel="number, by its change",
        )
    axes[0].set_ylabel("logP")
    return figure


show(
    draw_statistics(),
    alt="Three pictures of 64 numbers over logP, shift, scale and gate: most columns change their "
    "brightness from the lowest logP to the highest",
)

# %% [markdown]
# Each column is one of the 64 numbers, less its mean over all logP; dark is below, light above. Some rise with logP, some fall, and all atoms of the molecule hear the same.
#
# ### A block
#
# The branch first, then its norm, then the condition's statistics, then the gate. DiT's block stands beside it, with the norm before the branch:


# %%
def pre_norm_block(block, H, c, pairs):
    """DiT's order: norm and modulation before the branch."""
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = block.adaln(c).chunk(6, dim=-1)
    H = H + gate_1[:, None] * block.attention(modulate(block.norm(H), shift_1, scale_1), pairs)
    return H + gate_2[:, None] * block.mlp(modulate(block.norm(H), shift_2, scale_2))


# %% tags=["promote", "exercise"]
class Block(nn.Module):
    """A Transformer layer whose two branches end in AdaLN (equation 6; the paper's 8 and 9).

    The norm stands behind the branch, as released, and not before it as in DiT. The condition
    gives shift, scale and gate of the attention branch, then those of the MLP's.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4):
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )
        self.adaln = AdaLN(width, 6 * width)

    def forward(
        self,
        H: Float[Tensor, "B N D"],
        c: Float[Tensor, "B D"],
        pairs: Bool[Tensor, "B 1 N N"],
    ) -> Float[Tensor, "B N D"]:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaln(c).chunk(6, dim=-1)
        branch = modulate(self.norm(self.attention(H, pairs)), shift_1, scale_1)
        H = torch.addcmul(H, gate_1[:, None], branch)
        branch = modulate(self.norm(self.mlp(H)), shift_2, scale_2)
        return torch.addcmul(H, gate_2[:, None], branch)


# %% tags=["check"]
torch.manual_seed(0)
block, H, c = Block(8, 2), torch.randn(2, 5, 8), torch.randn(2, 8)
everyone = torch.ones(2, 1, 5, 5, dtype=torch.bool)
shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = block.adaln(c)[:, None].chunk(6, dim=-1)
H1 = H + gate_1 * (block.norm(block.attention(H, everyone)) * (1 + scale_1) + shift_1)
H2 = H1 + gate_2 * (block.norm(block.mlp(H1)) * (1 + scale_2) + shift_2)
assert torch.allclose(block(H, c, everyone), H2, atol=1e-5), "not equation 6"
block.adaln.second.bias.data.zero_()
block.adaln.second.weight.data.zero_()
assert torch.equal(block(H, c, everyone), H), "closed gates leave the tokens as they are"

# %% [markdown]
# What does the order change? Behind the branch, the norm has the last word on how large the branch is. Open the gates to 1, make the last weights of the branches larger and larger, and look at the size of what six blocks make:

# %%
for gain in (1, 3, 10):
    torch.manual_seed(0)
    blocks = [Block(64, 4) for _ in range(6)]
    after_norm = before_norm = torch.randn(1, 9, 64)
    full, c0 = torch.ones(1, 1, 9, 9, dtype=torch.bool), torch.zeros(1, 64)
    with torch.no_grad():
        for block in blocks:
            block.adaln.second.weight.zero_()
            block.adaln.second.bias[:] = torch.tensor([0.0, 0, 1, 0, 0, 1]).repeat_interleave(64)
            block.attention.proj.weight *= gain
            block.mlp[2].weight *= gain
            after_norm = block(after_norm, c0, full)
            before_norm = pre_norm_block(block, before_norm, c0, full)
    print(
        f"weights × {gain:2d}: norm behind {after_norm.std():5.2f}, norm before {before_norm.std():5.2f}"
    )

# %% [markdown]
# With the norm behind, twelve branches of size 1 add up to the same size whatever their weights are; only the condition's scale and gate can make a branch louder. With the norm before, the weights of the branch decide too. Both are sound; weights learned with one are lost in the other.
#
# ### The last layer
#
# AdaLN once more, without a gate, on scores for each atom and slot (equation 7). What it gives is added to the noisy graph in the model's last lines.


# %% tags=["promote"]
class OutputLayer(nn.Module):
    """`AdaLN(MLP(H), c)` of equation 7, F scores for each atom (the paper's equation 10)."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))
        self.norm = nn.LayerNorm(out, elementwise_affine=False)
        self.adaln = AdaLN(width, 2 * out)

    def forward(self, H: Float[Tensor, "B N D"], c: Float[Tensor, "B D"]) -> Float[Tensor, "B N F"]:
        shift, scale = self.adaln(c).chunk(2, dim=-1)
        return modulate(self.norm(self.mlp(H)), shift, scale)


# %%
assert OutputLayer(8, 13)(torch.randn(2, 5, 8), torch.randn(2, 8)).shape == (2, 5, 13)

# %% [markdown]
# A bond belongs to two atoms, and each of the two rows has scores for it. Their mean is symmetric; there is no bond from an atom to itself, nor to a place without an atom.


# %% tags=["promote"]
def _symmetric(bonds: Float[Tensor, "B N N K"], mask: Bool[Tensor, "B N"]) -> Tensor:
    real = mask[:, :, None] & mask[:, None, :]
    real = real & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return 0.5 * (bonds + bonds.transpose(1, 2)) * real[..., None]


# %% [markdown]
# At the start every linear layer has weights of Xavier's size, such that signals keep their size, and biases 0. The first layers of AdaLN are zero altogether.


# %% tags=["promote"]
def _initialise(module: nn.Module) -> None:
    """Xavier for every linear layer, zero biases; AdaLN says nothing."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, AdaLN):  # `apply` comes here after its two linear layers
        nn.init.zeros_(module.first.weight)


# %% [markdown]
# ### The whole model
#
# The whole of Graph DiT on one page:


# %% tags=["promote"]
class GraphDiT(nn.Module):
    """Graph DiT's denoiser: a noisy graph, its time and properties → scores of the clean graph.

    atom_types       A, the size of the vocabulary
    max_atoms        N
    conditions       groups of properties, ("numeric", numbers) or ("categorical", classes), in the
                     order of y's columns
    width            D; depth and heads of the Transformer; the defaults are the release's
    drop_condition   in training, the chance that a property of a graph is dropped
    condition_noise  in training, the deviation of noise on each property's code; 1 as released
    missing          what a NaN drops: its whole "row", as released, or the "property" alone

    Raises ValueError for sizes that are no whole numbers of 1 or more (depth: 0 or more), a width
    that is no multiple of heads, and what `ConditionEncoder` refuses.
    Source: Liu et al. 2024 (arXiv 2401.13858), Section 3.2, in the form of its release.
    """

    def __init__(
        self,
        atom_types: int,
        max_atoms: int,
        conditions: Sequence[Condition] = (("numeric", 1),),
        *,
        width: int = 1152,
        depth: int = 6,
        heads: int = 16,
        mlp_ratio: int = 4,
        drop_condition: float = 0.01,
        condition_noise: float = 1.0,
        missing: str = "row",
    ):
        super().__init__()
        self.atom_types = whole_number("atom_types", atom_types, least=1)
        self.max_atoms = whole_number("max_atoms", max_atoms, least=1)
        if whole_number("width", width, least=1) % whole_number("heads", heads, least=1):
            raise ValueError(f"width is {width}; expected a multiple of heads, {heads}")
        depth, mlp_ratio = whole_number("depth", depth, 0), whole_number("mlp_ratio", mlp_ratio, 1)
        tokens = self.atom_types + len(BONDS) * self.max_atoms
        self.embed = nn.Linear(tokens, width, bias=False)
        self.time = TimeEncoder(width)
        self.condition = ConditionEncoder(
            conditions, width, drop=drop_condition, noise=condition_noise, missing=missing
        )
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.output = OutputLayer(width, tokens)
        self.apply(_initialise)

    def forward(
        self,
        X: Float[Tensor, "B N A"],
        E: Float[Tensor, "B N N K"],
        mask: Bool[Tensor, "B N"],
        time: Float[Tensor, "B"] | Float[Tensor, "B 1"],
        y: Float[Tensor, "B P"],
        unconditional: bool = False,
    ) -> tuple[Float[Tensor, "B N A"], Float[Tensor, "B N N K"]]:
        """Scores (logits) of the clean atoms and bonds; E's are symmetric with a zero diagonal.

        X, E, mask     noisy graphs, padded to max_atoms
        time           t / T in [0, 1]
        y              (B, P) as the data set holds it, NaN where a property is not known
        unconditional  drop all properties of all graphs

        Raises ValueError for graphs of other sizes, a time outside [0, 1], and what
        `ConditionEncoder` refuses.
        """
        self._check(X, E, time)
        H = self.embed(graph_tokens(Graphs(X, E, mask)))
        c = self.time(time.view(-1)) + self.condition(y, unconditional)
        pairs = mask[:, None, :, None] & mask[:, None, None, :]
        pairs = pairs | ~mask[:, None, :, None]  # a missing atom attends anywhere
        for block in self.blocks:
            H = block(H, c, pairs)
        scores = self.output(H, c)
        atoms = X + scores[..., : self.atom_types]
        bonds = E + scores[..., self.atom_types :].unflatten(-1, E.shape[2:])
        return atoms * mask[..., None], _symmetric(bonds, mask)

    def _check(self, X: Tensor, E: Tensor, time: Tensor) -> None:
        N, A = self.max_atoms, self.atom_types
        for name, found, expected in (("X", X, (N, A)), ("E", E, (N, N, len(BONDS)))):
            if found.shape[1:] != expected:
                wanted = ", ".join(map(str, expected))
                raise ValueError(f"{name} has shape {tuple(found.shape)}; expected (B, {wanted})")
        if not ((time >= 0) & (time <= 1)).all():
            raise ValueError(
                f"time reaches from {time.min():g} to {time.max():g}; expected t / T in [0, 1]"
            )

    @classmethod
    def from_official(
        cls, state_dict: dict[str, Tensor], *, heads: int, max_atoms: int, **options: Any
    ) -> "GraphDiT":
        """A model with the weights of the release; the other sizes follow from the shapes.

        Keys may carry the checkpoint's prefix `model.`; the noise schedule's buffer and the states
        of metrics are left. No shape tells heads, nor A and N apart in a row of A + 5 N numbers.
        `options` go to `GraphDiT`.
        Raises ValueError for keys or shapes that do not fit.
        """
        weights = _renamed(state_dict)
        model = cls(**{**_sizes(weights, max_atoms), **options}, heads=heads)
        check_keys("state_dict", weights, model.state_dict())
        model.load_state_dict(weights)
        return model


# %% [markdown]
# ### The names of the release
#
# The release calls its parts by other names. Regular expressions translate them; what is no part of the denoiser, such as the schedule of a whole checkpoint, stays behind.


# %% tags=["promote"]
_OFFICIAL_NAMES = (
    (r"^x_embedder\.", "embed."),
    (r"^t_embedder\.", "time."),
    (r"^y_embedding_list\.", "condition.encoders."),
    (r"\.embedding_drop\.weight$", ".dropped"),
    (r"\.embedding_table\.", ".table."),
    (r"^(condition\.encoders\.\d+)\.mlp\.0\.", r"\1.assign."),
    (r"^(condition\.encoders\.\d+)\.mlp\.2\.", r"\1.represent."),
    (r"^encoders\.", "blocks."),
    (r"^out_layer\.xedecoder\.", "output.mlp."),
    (r"^out_layer\.", "output."),
    (r"\.attn\.", ".attention."),
    (r"\.fc1\.", ".0."),
    (r"\.fc2\.", ".2."),
    (r"\.adaLN_modulation\.0\.", ".adaln.first."),
    (r"\.adaLN_modulation\.2\.", ".adaln.second."),
)

# %% tags=["promote"]
_OFFICIAL_PARTS = ("x_embedder", "t_embedder", "y_embedding_list", "encoders", "out_layer")


# %% tags=["promote"]
def _renamed(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The release's parameters under this module's names; a missing dropped vector is 0."""
    weights = {}
    for key, value in state_dict.items():
        name = key.removeprefix("model.")
        if name.split(".")[0] not in _OFFICIAL_PARTS:
            continue
        for pattern, new in _OFFICIAL_NAMES:
            name = re.sub(pattern, new, name)
        weights[name] = value
    # Trained without condition dropout, the release has no vector for a dropped number.
    for name in [name for name in weights if name.endswith(".assign.weight")]:
        width = weights[name].shape[0]
        weights.setdefault(name.replace("assign.weight", "dropped"), torch.zeros(1, width))
    return weights


# %% [markdown]
# The shapes tell the sizes of the model, all but two. An embedding of shape $(D, A + 5N)$ gives only the sum of $A$ and $5N$; and heads leave no trace but the width of their norms.


# %% tags=["promote"]
def _sizes(weights: dict[str, Tensor], max_atoms: int) -> dict[str, Any]:
    """The arguments of `GraphDiT` that renamed weights tell."""
    if "embed.weight" not in weights:
        raise ValueError("state_dict has no x_embedder.weight; expected the weights of Graph DiT")
    width, tokens = weights["embed.weight"].shape
    atom_types = tokens - len(BONDS) * whole_number("max_atoms", max_atoms, least=1)
    if atom_types < 1:
        raise ValueError(
            f"max_atoms is {max_atoms}; expected at most {(tokens - 1) // len(BONDS)}, since a row "
            f"of the model has {tokens} numbers"
        )
    hidden = weights.get("blocks.0.mlp.0.weight")
    return {
        "atom_types": atom_types,
        "max_atoms": max_atoms,
        "conditions": _conditions(weights),
        "width": width,
        "depth": 1 + _highest(weights, "blocks."),
        "mlp_ratio": 4 if hidden is None else len(hidden) // width,
    }


def _highest(weights: dict[str, Tensor], prefix: str) -> int:
    """The highest number that follows the prefix in a name, −1 where there is none."""
    names = [name.removeprefix(prefix) for name in weights if name.startswith(prefix)]
    return max((int(name.split(".")[0]) for name in names), default=-1)


def _conditions(weights: dict[str, Tensor]) -> list[Condition]:
    conditions, count = [], 1 + _highest(weights, "condition.encoders.")
    for index in range(count):
        start = f"condition.encoders.{index}."
        if start + "table.weight" in weights:
            conditions.append(("categorical", len(weights[start + "table.weight"]) - 1))
        elif start + "assign.weight" in weights:
            conditions.append(("numeric", weights[start + "assign.weight"].shape[1]))
        else:
            raise ValueError(
                f"state_dict has no y_embedding_list.{index}; expected {count} of them"
            )
    return conditions


# %% [markdown]
# Shapes as the release has them, for a tiny model with one block and two conditions, inside a checkpoint:

# %%
D, A, N = 16, 4, 9
release = {
    "x_embedder.weight": (D, A + 5 * N),
    "t_embedder.mlp.0.weight": (D, 256),
    "t_embedder.mlp.0.bias": (D,),
    "t_embedder.mlp.2.weight": (D, D),
    "t_embedder.mlp.2.bias": (D,),
    "y_embedding_list.0.embedding_drop.weight": (1, D),
    "y_embedding_list.0.mlp.0.weight": (D, 2),
    "y_embedding_list.0.mlp.0.bias": (D,),
    "y_embedding_list.0.mlp.2.weight": (D, D),
    "y_embedding_list.1.embedding_table.weight": (3, D),
    "encoders.0.attn.qkv.weight": (3 * D, D),
    "encoders.0.attn.qkv.bias": (3 * D,),
    **{f"encoders.0.attn.{x}_norm.{y}": (D // 2,) for x in "qk" for y in ("weight", "bias")},
    "encoders.0.attn.proj.weight": (D, D),
    "encoders.0.attn.proj.bias": (D,),
    "encoders.0.mlp.fc1.weight": (4 * D, D),
    "encoders.0.mlp.fc1.bias": (4 * D,),
    "encoders.0.mlp.fc2.weight": (D, 4 * D),
    "encoders.0.mlp.fc2.bias": (D,),
    **{f"encoders.0.adaLN_modulation.{i}.weight": (k * D, D) for i, k in ((0, 1), (2, 6))},
    **{f"encoders.0.adaLN_modulation.{i}.bias": (k * D,) for i, k in ((0, 1), (2, 6))},
    "out_layer.xedecoder.fc1.weight": (D, D),
    "out_layer.xedecoder.fc1.bias": (D,),
    "out_layer.xedecoder.fc2.weight": (A + 5 * N, D),
    "out_layer.xedecoder.fc2.bias": (A + 5 * N,),
    "out_layer.adaLN_modulation.0.weight": (D, D),
    "out_layer.adaLN_modulation.0.bias": (D,),
    "out_layer.adaLN_modulation.2.weight": (2 * (A + 5 * N), D),
    "out_layer.adaLN_modulation.2.bias": (2 * (A + 5 * N),),
}
checkpoint = {f"model.{name}": torch.randn(shape) for name, shape in release.items()}
loaded = GraphDiT.from_official(checkpoint, heads=2, max_atoms=N)
print(loaded.atom_types, loaded.condition.conditions, len(loaded.blocks), "block")
for name in ("y_embedding_list.0.mlp.0.weight", "encoders.0.attn.qkv.bias"):
    print(name, "→", *_renamed({name: checkpoint["model." + name]}))

# %% [markdown]
# ### Before it has learned anything
#
# The first layers of AdaLN are zero, so gates, scales and shifts are. What does the model do then? Measured, for a model of four blocks:

# %%
torch.manual_seed(0)
newborn = GraphDiT(len(vocabulary.atoms), 9, two, width=96, depth=4, heads=8).eval()
batch = one_hot(Codes(codes.atoms[:64], codes.bonds[:64]), vocabulary)
t = torch.randint(0, 101, (64,), generator=torch.Generator().manual_seed(0))
noised = draw_graph(*noise.q(batch, t), batch.mask, torch.Generator().manual_seed(0))
properties = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
changes, said = [], []
hooks = [
    block.register_forward_hook(lambda _, given, out: changes.append((out - given[0]).abs().max()))
    for block in newborn.blocks
]
hooks.append(newborn.output.register_forward_hook(lambda _, given, out: said.append(out)))
with torch.no_grad():
    X, E = newborn(*noised, t / 100, properties)
for hook in hooks:
    hook.remove()
with torch.no_grad():
    other_X, other_E = newborn(*noised, t / 100, properties + 3)
print("each block changes its tokens by", [change.item() for change in changes])
print(
    "other properties change the scores:", not (torch.equal(X, other_X) and torch.equal(E, other_E))
)
print(f"the last layer adds numbers of deviation {said[0].std():.2f} to a graph of zeros and ones")

# %% [markdown]
# The blocks are exactly the identity, and no property is heard. The *output* is not the noisy graph: the last layer has no gate, and $\mathrm{AdaLN}$ with scale 0 is the plain norm, of deviation 1. So the first scores are the noisy graph with random numbers on top, as large as the ones of the graph. A model that began as the identity would need a gate there too.
#
# A gate of zero also stops gradients: whatever a branch says is multiplied by it. Which parameters learn in the first step, which in the second?

# %%
PARTS = {
    "time": "time.",
    "properties": "condition.",
    "embed": "embed.",
    "attention": r"blocks.\d+.attention",
    "MLP": r"blocks.\d+.mlp",
    "AdaLN": r"blocks.\d+.adaln",
    "output": "output.",
}


def by_part(numbers):
    """Sums of one number for each parameter, by part of the model."""
    return {
        part: sum(value for name, value in numbers.items() if re.match(pattern, name))
        for part, pattern in PARTS.items()
    }


sizes = by_part({name: p.numel() for name, p in newborn.named_parameters()})
assert sum(sizes.values()) == sum(p.numel() for p in newborn.parameters())
sizes

# %%
optimiser = torch.optim.AdamW(newborn.parameters(), 1e-3)
learning = []
newborn.train()
for _ in range(3):
    optimiser.zero_grad()
    graph_loss(newborn(*noised, t / 100, properties), batch).backward()
    moved = {
        n: (p.grad != 0).sum().item() for n, p in newborn.named_parameters() if p.grad is not None
    }
    learning.append({part: count / sizes[part] for part, count in by_part(moved).items()})
    optimiser.step()
flow = torch.tensor([list(shares.values()) for shares in learning])


# %% [markdown]
# The sizes of the parts beside it, for this model and for the release's on polymers (11 types, 50 atoms, five numbers in four groups). A model on the device `meta` has shapes and no memory:

# %%
with torch.device("meta"):
    large = GraphDiT(11, 50, [("numeric", 2), *[("numeric", 1)] * 3])
large_sizes = by_part({name: p.numel() for name, p in large.named_parameters()})
print(
    f"{sum(sizes.values()) / 1e6:.2f} million parameters here, {sum(large_sizes.values()) / 1e6:.0f} in the release"
)


# %% tags=["figure"]
def draw_parts():
    figure, axes = canvas(1, 2, 7.4, 2.6, width_ratios=[3, 2])
    for offset, (counts, name, ink) in enumerate(
        ((sizes, "D = 96, depth 4", "second"), (large_sizes, "release, D = 1152, depth 6", "first"))
    ):
        share = [count / sum(counts.values()) for count in counts.values()]
        at = [k + 0.4 * offset - 0.2 for k in range(len(share))]
        axes[0].barh(at, share, 0.38, color=COLOURS[ink], label=name)
    axes[0].set_yticks(range(len(sizes)), list(sizes))
    axes[0].set(title="where the parameters are", xlabel="share of all", ylim=(6.6, -0.6))
    axes[0].legend(loc="upper right", frameon=False)
    draw_pixels(axes[1], flow.T, "{:.2f}", limits=(-0.5, 1), fontsize=8)
    axes[1].set_aspect("auto")
    axes[1].set(title="share with a gradient", xlabel="step", ylabel="")
    axes[1].set_xticks(range(3), ["first", "second", "third"])
    axes[1].set_yticks(range(len(sizes)), list(sizes))
    return figure


show(
    draw_parts(),
    alt="Bars: AdaLN, attention and MLP hold nearly all parameters of both models. A table: in the "
    "first step only the embedding, AdaLN and the output have gradients, from the second on "
    "all parts have",
)

# %% [markdown]
# In the first step AdaLN learns, with the embedding and the output layer, which are connected past the blocks. Time, properties, attention and MLPs wait: no gradient passes a closed gate, nor the zero layer between condition and gate. From the second step on all are at it. Note where the parameters are: AdaLN holds a third of the model, to read one vector. The few gradients of zero that are left among the properties' belong to vectors of dropped values, when no value was dropped.

# %% [markdown]
# ## On real input
#
# ### One molecule, less and more noisy
#
# The small model of the figure has seen 400 batches; it is no good at molecules, and it is good enough to look at. The molecule from above, noised to three times, and what the model takes each atom for:

# %%
times = torch.tensor([4, 20, 60])
three = Graphs(*(part.repeat(3, *[1] * (part.ndim - 1)) for part in clean))
spoiled = draw_graph(*noise.q(three, times), three.mask, torch.Generator().manual_seed(3))
with torch.no_grad():
    X, E = model(*spoiled, times / 100, y[[chosen]].expand(3, 1))
guess = to_codes(Graphs(X, E, spoiled.mask))
right = (guess.atoms == codes.atoms[chosen]).float().mean(dim=1)
pairs_right = (guess.bonds == codes.bonds[chosen]).float().mean(dim=(1, 2))
for t, atoms, bonds in zip(times, right, pairs_right, strict=True):
    print(f"t = {t:2d}: {atoms:.0%} of the atoms right, {bonds:.0%} of the pairs")


# %% tags=["figure"]
def draw_guesses():
    figure, axes = canvas(3, 4, 7.6, 5.2, width_ratios=[2, 2, 1.3, 2])
    symbols = [vocabulary.atoms[a] for a in codes.atoms[chosen].tolist()]
    noisy_graphs = list(decode_graphs(to_codes(spoiled), vocabulary))
    guesses = list(decode_graphs(guess, vocabulary))
    for row, t in enumerate(times.tolist()):
        draw_molecule(axes[row, 0], to_molecule(*noisy_graphs[row]))
        axes[row, 0].set_title(f"noisy, t = {t}")
        scale = max(-X[row].min(), X[row].max())
        pictures = (
            (X[row], "scores S of atoms", -scale, scale),
            (X[row].softmax(-1), "softmax", 0, 1),
        )
        for each, (picture, title, low, high) in zip(axes[row, 1:3], pictures, strict=True):
            each.imshow(
                picture, cmap="cividis", interpolation="nearest", vmin=low, vmax=high, aspect="auto"
            )
            each.set_xticks(range(len(vocabulary.atoms)), vocabulary.atoms)
            each.set_yticks(range(9), symbols)
            each.tick_params(length=0)
            each.set_title(title)
        axes[row, 1].set_ylabel("true atom")
        draw_molecule(axes[row, 3], to_molecule(*guesses[row]))
        axes[row, 3].set_title("largest scores")
    return figure


show(
    draw_guesses(),
    alt="Three rows, at three times: the noisy molecule, the scores of its nine atoms for each type, "
    "their softmax, and the graph of the largest scores, which has few bonds at late times",
)

# %% [markdown]
# While the noise is low, the model repeats what it sees, with corrections. At later times the noisy graph says little, and every atom gets about the same scores, those of the data set at this logP. The graph of the largest scores then has hardly a bond: for every single pair, no bond is the safest guess. Sampling therefore never takes the largest score in one go; it draws, a small step at a time ([lesson 5](5_diffusion.ipynb)).
#
# ### Does the order of the atoms matter?
#
# A molecule has no first atom. A model is **permutation equivariant** (置换等变) when atoms that are numbered in another order get the same scores in that order. Attention, MLP and AdaLN are: they treat all atoms alike.

# %%
torch.manual_seed(0)
order = torch.randperm(9)
full = torch.ones(1, 1, 9, 9, dtype=torch.bool)
with torch.no_grad():
    straight = model.blocks[0](seen["H"], seen["c"], full)[:, order]
    permuted = model.blocks[0](seen["H"][:, order], seen["c"], full)
print(f"a block: off by up to {(straight - permuted).abs().max():.0e}")


# %%
def order_error(model):
    """How far the scores of the renumbered molecule are from the renumbered scores."""
    X, E, mask = (part[:1] for part in spoiled)
    moved = Graphs(X[:, order], E[:, order][:, :, order], mask[:, order])
    with torch.no_grad():
        X, E = model(X, E, mask, times[:1] / 100, y[[chosen]])
        moved_X, moved_E = model(*moved, times[:1] / 100, y[[chosen]])
    off_X, off_E = moved_X - X[:, order], moved_E - E[:, order][:, :, order]
    return off_X.abs().max().item(), off_E.abs().max().item()


print("the whole model: atoms off by up to {:.2f}, bonds by {:.2f}".format(*order_error(model)))

# %% [markdown]
# The whole model is not. A token holds its bonds *by place*: the embedding has a weight of its own for a double bond to place 3, and the output layer a row of its own for the scores of that slot. To see that this is all, give all places the same weights, their mean:


# %%
def tie_places(model):
    """A copy of the model whose embedding and output treat all places alike."""
    tied = copy.deepcopy(model)
    A, layer = model.atom_types, tied.output
    rows = [tied.embed.weight.T, layer.mlp[2].weight, layer.mlp[2].bias]
    rows += [half for x in layer.adaln.second.parameters() for half in x.chunk(2)]
    with torch.no_grad():
        for weight in rows:
            slots = weight[A:].unflatten(0, (model.max_atoms, len(BONDS)))
            slots.copy_(slots.mean(dim=0).expand_as(slots))
    return tied


print("with tied places: atoms {:.0e}, bonds {:.0e}".format(*order_error(tie_places(model))))

# %% [markdown]
# That model is equivariant, up to rounding, and it is a poor one: each atom has the same scores for its bonds to all others, before the noisy graph is added, so nothing new can be said of a single pair. Graph DiT pays with equivariance for tokens that can tell pairs apart. And a model that sees places learns what stands in them. The order of atoms comes from SMILES, which write neighbours side by side:

# %%
full_size = (codes.atoms >= 0).all(dim=1)
bonded = (codes.bonds[full_size] > 0).float().mean(dim=0)
print(f"bonded: {bonded.diagonal(1).mean():.0%} of the pairs of neighbouring places, ", end="")
print(f"{bonded.triu(2).sum() / 28:.0%} of the others")

# %% [markdown]
# Does the trained model use that? The loss on molecules that it has not seen, noised to $t = 10$, as SMILES order their atoms and in random orders:

# %%
unseen = encode_smiles(qm9_table("held_out").smiles[:600], vocabulary)
unseen_y = torch.tensor(qm9_table("held_out").logP.values[unseen[1]]).float()[:, None]
unseen_y = (unseen_y - logP.mean()) / logP.std()


def loss_in_order(model, shuffled):
    torch.manual_seed(0)
    graph = one_hot(unseen[0], vocabulary)
    if shuffled:
        orders = (torch.rand(len(graph.X), 9) + ~graph.mask).argsort(
            dim=1
        )  # empty places stay last
        rows = torch.arange(len(graph.X))[:, None]
        X, E = graph.X[rows, orders], graph.E[rows[..., None], orders[..., None], orders[:, None]]
        graph = Graphs(X, E, graph.mask[rows, orders])
    noised = draw_graph(*noise.q(graph, torch.full((len(graph.X),), 10)), graph.mask)
    with torch.no_grad():
        scores = model(*noised, torch.full((len(graph.X),), 0.1), unseen_y)
    return graph_loss(scores, graph).item()


for name, shuffled in (("order of SMILES", False), ("random order", True)):
    print(f"{name:>15}: loss {loss_in_order(model, shuffled):.2f}")

# %% [markdown]
# The model has learned habits of SMILES along with chemistry. For drawing molecules this does no harm, since it begins and ends in the same order; it even helps. Give the atoms of every training molecule a new random order each time, and only what holds in every order is left to learn.
#
# ### What logP does to a molecule
#
# From pure noise, the graph says nothing and logP is all there is. How large a share of the atoms should be carbon? The data answer: group the molecules by their logP, and count. Beside it stands the trained model, and the same model trained with the release's noise on the codes.

# %%
with_noise, heard_with = learn(condition_noise=1.0)
edges = torch.linspace(-2.25, 3.25, 12)
group = torch.bucketize(logP[:, 0], edges)
there = codes.atoms >= 0
truth = [
    ((codes.atoms == 0) & there)[group == k].sum() / there[group == k].sum() for k in range(1, 12)
]
ways = {"no noise on the code": heard, "noise 1, as released": heard_with}
error = {name: (said[-1] - torch.tensor(truth)).abs().mean() for name, said in ways.items()}
for name, value in error.items():
    said = ways[name][:, -1] - ways[name][:, 0]
    late = (said > 0.1).nonzero()
    since = f"after {20 * late[0].item()} steps" if len(late) else "not yet"
    print(f"{name}: off by {value:.3f} at the end; a difference above 0.1 {since}")


# %% tags=["figure"]
def draw_carbon():
    figure, axes = canvas(1, 2, 7.4, 2.6)
    axes[0].plot(asked, truth, "o", color=COLOURS["query"], label="data")
    for (name, said), ink in zip(ways.items(), ("first", "second"), strict=True):
        axes[0].plot(asked, said[-1], color=COLOURS[ink], label=name)
        axes[1].plot(20 * torch.arange(len(said)), said[:, -1] - said[:, 0], color=COLOURS[ink])
    axes[0].set(
        title="share of carbon, from pure noise", xlabel="property c_i: logP", ylabel="share"
    )
    axes[0].legend(frameon=False)
    axes[1].axhline(truth[-1] - truth[0], color=COLOURS["query"], lw=0.8)
    axes[1].set(title="difference between logP 3 and −2", xlabel="steps of training")
    return figure


show(
    draw_carbon(),
    alt="Left: the share of carbon grows with logP, in the data and in both models. Right: the model "
    "without noise on its codes begins to listen much earlier than the one with it",
)

# %% [markdown]
# Oil-loving molecules are mostly carbon. Without noise on the code, the model hears logP soon; with it, hundreds of steps later, once training has made the code loud. With 400 steps of a small model and one seed this says how training begins, not which is better in the end. Noise may also guard against values that training has never seen.
#
# ## Exercises
#
# The blanks of this lesson:
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `time_waves` | 5 | ●○○ |
# | `ClusterEncoder` | 8 | ●○○ |
# | `Attention` | 15 | ●●○ |
# | `Block` | 12 | ●●○ |
#
# <details><summary>Hint for <code>time_waves</code></summary>
#
# `torch.arange(width // 2)` numbers the frequencies. Give the times a new last axis with `[:, None]` and multiply; cosines come first in the last axis.
#
# </details>
#
# <details><summary>Hint for <code>ClusterEncoder</code></summary>
#
# `self.assign`, a softmax along the last axis, `self.represent`. `torch.where(drop[:, None], …)` chooses for each graph; replace NaN before the first layer.
#
# </details>
#
# <details><summary>Hint for <code>Attention</code></summary>
#
# `self.qkv(H)` holds q, then k, then v, each with all heads side by side: `unflatten(-1, (3, heads, -1))`. The norms act on the last axis. Attention wants (B, heads, N, d).
#
# </details>
#
# <details><summary>Hint for <code>Block</code></summary>
#
# Six vectors from `self.adaln(c)`, by `chunk(6, dim=-1)`. The norm has no weights, so one serves both branches. A gate needs an axis for the atoms.
#
# </details>
#
# **Predict.** The release's model for polymers has room for 50 atoms. Which parts grow when it gets room for 100, and by what share does the whole?
#
# <details><summary>Hint</summary>
#
# Where does $F = A + 5N$ occur?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The embedding of $F$ numbers, and the output layer: the second layer of its MLP, and the scale and shift of its AdaLN. Attention and MLP see one atom or two at a time, and do not know $N$. The whole grows by less than one in a hundred, as the cell below computes. Attention's *time* grows with the square of $N$.
#
# </details>

# %% tags=["nbval-check-output"]
with torch.device("meta"):
    roomy = GraphDiT(11, 100, [("numeric", 2), *[("numeric", 1)] * 3])
roomy_sizes = by_part({name: p.numel() for name, p in roomy.named_parameters()})
for part in PARTS:
    if roomy_sizes[part] != large_sizes[part]:
        print(f"{part}: {large_sizes[part]:,} → {roomy_sizes[part]:,}")
print(f"whole: {sum(roomy_sizes.values()) / sum(large_sizes.values()) - 1:.2%} more")

# %% [markdown]
# **Vary.** Give the model 1, 2, 4 and 8 heads. What happens to the number of parameters, and why? Then train each with `learn`.
#
# <details><summary>Hint</summary>
#
# Look at the shapes in `model.blocks[0].attention.state_dict()`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# More heads means fewer parameters, by a handful: the linear layers stay, and only the norms of q and k, each with a weight and a bias of one head's width, shrink. That is why no file of weights tells its number of heads by anything else.
#
# </details>

# %% tags=["nbval-check-output"]
for heads in (1, 2, 4, 8):
    count = sum(p.numel() for p in Attention(64, heads).parameters())
    print(f"{heads} heads: {count} parameters of attention")

# %% [markdown]
# **Find the bug.** A colleague masks attention in the usual way. On molecules of nine atoms everything is right. On a molecule of five, in a batch padded to nine, all scores are NaN, even though the model multiplies by the mask at its end. Why?


# %%
def colleague(layer, H, mask):
    q, k, v = layer.qkv(H).unflatten(-1, (3, layer.heads, -1)).permute(2, 0, 3, 1, 4)
    fit = layer.q_norm(q) @ layer.k_norm(k).transpose(2, 3) / math.sqrt(q.shape[-1])
    pairs = mask[:, None, :, None] & mask[:, None, None, :]
    weights = fit.masked_fill(~pairs, -math.inf).softmax(-1)
    return layer.proj((weights @ v).transpose(1, 2).flatten(2)) * mask[..., None]


with torch.no_grad():
    whole, padded = colleague(attention, hidden, pair.mask)
print("NaN for nine atoms:", whole.isnan().sum().item(), "for five:", padded.isnan().sum().item())

# %% [markdown]
# <details><summary>Hint</summary>
#
# What is the softmax of nine times minus infinity, and what is it times 0?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The row of a missing atom has no true entry, its softmax is 0 / 0, and NaN times 0 is NaN. In the next layer every atom would read a value of NaN with weight 0, and be NaN too. Either let missing atoms attend somewhere, as `GraphDiT` does, or set their output with `torch.where`. The second still leaves NaN in the gradients.
#
# </details>
#
# ## What breaks
#
# ### Raw values
#
# Permeabilities of gases reach from 0.000001 to 47,000 Barrer. The release gives them to the encoder as they are, although the paper speaks of their logarithm. A softmax of numbers in the thousands has one winner:

# %%
torch.manual_seed(0)
raw = GraphDiT(4, 9, width=64, depth=0, heads=1).condition.eval()
permeability = torch.logspace(-6, 4.67, 200)
asked_log = (permeability.log10() - permeability.log10().mean()) / permeability.log10().std()
with torch.no_grad():
    codes_raw, codes_log = raw(permeability[:, None]), raw(asked_log[:, None])
print("code of 1e4 = code of 4e4:", torch.equal(*raw(torch.tensor([[1e4], [4e4]]))))
small_ones = (codes_raw[permeability < 1e-2] - codes_raw[0]).norm(dim=-1).max()
print(
    f"all values under 0.01 Barrer have the same code, up to {small_ones:.0e}; codes are {codes_raw[0].norm():.0e} long"
)


# %% tags=["figure"]
def draw_saturation():
    figure, axes = canvas(1, 3, 7.6, 2.4)
    pictures = {
        "raw": shares(raw.encoders[0], permeability),
        "log10, standardised": shares(raw.encoders[0], asked_log),
    }
    for each, (name, picture) in zip(axes, pictures.items(), strict=False):
        ordered = picture[:, picture[-1].argsort()]
        each.imshow(
            ordered.T,
            cmap="cividis",
            interpolation="nearest",
            aspect="auto",
            vmin=0,
            extent=(-6, 4.67, 64, 0),
        )
        each.set(
            title=f"soft clusters a: {name},\nup to {picture.max():.2f}", xlabel="log10 of Barrer"
        )
    axes[0].set_ylabel("cluster")
    for name, code, ink in (("raw", codes_raw, "bad"), ("log10", codes_log, "good")):
        away = (code - code[0]).norm(dim=-1)
        axes[2].plot(permeability.log10(), away / away.max(), color=COLOURS[ink], label=name)
    axes[2].set(
        title="distance of the code from\nthe lowest value's, up to 1", xlabel="log10 of Barrer"
    )
    axes[2].legend(frameon=False)
    return figure


show(
    draw_saturation(),
    alt="Shares of clusters over the permeability: raw, all alike up to 1 Barrer and a single cluster "
    "beyond a hundred; of its logarithm, a smooth change; and the distance of the codes",
)

# %% [markdown]
# Raw, ten powers of ten collapse to three cases: "small", a short change, and "large", where one share is 1, all others are 0 and the softmax has no gradient left to learn from. The logarithm, brought to mean 0 and deviation 1, keeps every step apart. The encoder cannot know the unit; the data must come prepared, as [lesson 8](8_learning.ipynb) does it.
#
# ### A mask that is written to
#
# Attention wants a mask for every head, and all heads have the same one. `expand` gives such a tensor without copying: all heads share one memory. The release then writes true into the rows of missing atoms, *in place*:

# %%
mask = torch.tensor([[True, False]])
shared = (mask[:, None, :, None] & mask[:, None, None, :]).expand(1, 3, 2, 2)
empty = ~shared.any(dim=-1)
empty[:, 1:] = False  # say that only the first head's rows should change
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    shared[empty] = True
print(shared[0, 2].tolist(), "in the third head, which nobody wrote to")
print(str(caught[0].message).split(".")[0] if caught else "no warning")

# %% [markdown]
# Here the change to one head is a change to all. In the release all heads are to change alike, so the result is right, and PyTorch warns that this will stop working. `pairs | ~mask…` makes a new tensor and writes to none.
#
# ### What the code says to bad input

# %%
with shows_error(ValueError):
    model(*noisy, when / noise.steps, torch.zeros(1, 2))
with shows_error(ValueError):
    model(*noisy, when.float(), y[[chosen]])
with shows_error(ValueError):
    model(noisy.X[:, :5], noisy.E, noisy.mask, when / noise.steps, y[[chosen]])
with shows_error(ValueError):
    GraphDiT(4, 9, width=100, heads=16)
with shows_error(ValueError):
    GraphDiT(4, 9, [("number", 1)])
with shows_error(ValueError):
    GraphDiT(4, 9, [("categorical", 1)])
with shows_error(ValueError):
    ConditionEncoder(two, 8, missing="column")
with shows_error(ValueError):
    GraphDiT.from_official(checkpoint, heads=2, max_atoms=10)
with shows_error(ValueError):
    GraphDiT.from_official(checkpoint, heads=4, max_atoms=9)

# %% [markdown]
# The last but one is caught because 10 atoms leave no room for a type. A *smaller* wrong number of atoms cannot be caught by shapes: 8 atoms and 9 types make rows of 49 numbers too. The model is then made, and refuses the first graph of the true sizes.
#
# ## Recap
#
# - Time, numbers and categories become vectors of one width and are added: waves, soft clusters, rows of a table. A softmax of linear functions is a soft assignment to clusters, and it saturates on raw values.
# - The condition speaks through AdaLN: it sets the mean, the size and the gate of what every layer says, and all three are zero at first. Then the blocks are the identity; the output layer, without a gate, is not.
# - Attention treats all atoms alike; the embedding of bonds by place and the last layer do not. Graph DiT is not permutation equivariant, and learns the order that SMILES give to atoms.
# - The release normalises behind the branch, and queries and keys; adds noise to codes that are far smaller at first; and adds its scores to the noisy graph. Weights are worth nothing to a model that differs in one of these.
#
# The line goes on in [lesson 5](5_diffusion.ipynb), which asks this model for the clean graph a hundred times in a row.
