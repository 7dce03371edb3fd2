# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 60
#     needs:
#     - 2_graph_dit/2_graphs
#     - 2_graph_dit/3_noise
#     - 2_graph_dit/4_denoiser
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Diffusion: from noise to a molecule
#
# **After this lesson you can** train a network that guesses clean graphs, walk from noise to a molecule with it, pull that walk towards a property, and put a number on how well it knows unseen molecules.
#
# *Before this:* [Graphs](2_graphs.ipynb) (`2_graphs`), [Noise](3_noise.ipynb) (`3_noise`), whose forward distribution and posterior are used here as they are, and [Denoiser](4_denoiser.ipynb) (`4_denoiser`), the network. *Time:* 60 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# To forget is easy: replace a few atoms and bonds of a molecule by random ones, and again, and after $T$ such steps nothing of it is left. **Diffusion** (扩散) learns the way back. A network, the **denoiser** (解噪器), sees a graph $G_t$ at time $t$ of the forgetting and guesses the clean graph. One guess from pure noise would be poor. So only one small step back is taken: to what a graph like the guess looks like one step less forgotten. Then the network guesses again, from a graph that is a little better, and so on down to time 0. Each step is a draw of lots, so the same noise can become many molecules.
#
# The network learns this as a classification: what is each atom, what is each bond, given their noisy versions? It is also told properties $y$ of the molecule, and now and then they are withheld, so that it learns both. **Guidance** (引导) compares its two answers, with and without the properties, and goes further in the direction in which they differ.

# %% [markdown]
# ## Figure
#
# ### A small model
#
# The figure needs a model, so one is trained here, on the molecules of QM9 with at most six atoms. It is as small as its data: a hundred molecules and a few. The property is a class: does the molecule have a ring (1) or not (0)? `diffusion_loss` and `sample` are what this lesson builds.

# %%
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fourfold.graph_dit.denoiser import GraphDiT
from fourfold.graph_dit.diffusion import diffusion_loss, draw_graph, sample
from fourfold.graph_dit.graphs import (
    BONDS,
    Codes,
    Graphs,
    Vocabulary,
    decode_graphs,
    encode_smiles,
    graph_tokens,
    one_hot,
    to_codes,
    to_molecule,
    to_smiles,
)
from fourfold.graph_dit.noise import GraphNoise, _pairs, graph_statistics
from fourfold.kit.arguments import whole_number
from fourfold.kit.drawing import COLOURS, canvas, show
from fourfold.kit.molecules import molecule_grid, qm9_table
from fourfold.kit.notebook import progress_bar, shows_error
from fourfold.kit.scale import at_scale, device
from fourfold.kit.training import train

ATOMS = 6


def has_ring(smiles):
    return rdMolDescriptors.CalcNumRings(Chem.MolFromSmiles(smiles)) > 0


def small_molecules(split):
    """The molecules of QM9 with at most six atoms: SMILES, codes, and whether they have a ring."""
    table = qm9_table(split)
    texts = table["smiles"][table["smiles"].str.count("[A-GI-Za-z]") <= ATOMS].tolist()
    codes, _, problems = encode_smiles(texts, vocabulary)
    assert not problems
    return texts, codes, torch.tensor([[float(has_ring(text))] for text in texts])


# %%
vocabulary = Vocabulary(("C", "N", "O", "F"), ATOMS, kekulize=True)
smiles, codes, y = small_molecules("train")
y, clean = y.to(device()), one_hot(codes, vocabulary).to(device())
noise = GraphNoise(graph_statistics(codes, vocabulary), steps=50, kind="independent")
print(f"{len(smiles)} molecules of {vocabulary.atoms}; {y.mean():.0%} have a ring")


def new_model(drop_condition):
    torch.manual_seed(0)
    sizes = {"width": 64, "depth": 3, "heads": 4, "condition_noise": 0.0}
    conditions = [("categorical", 2)]
    return GraphDiT(4, ATOMS, conditions, drop_condition=drop_condition, **sizes)


model = new_model(drop_condition=0.1)
batches = DataLoader(TensorDataset(*clean, y), batch_size=32, shuffle=True, drop_last=True)


def one_batch(model, batch):
    X, E, mask, y = batch
    return diffusion_loss(model, noise, Graphs(X, E, mask), y)


how = {"learning_rate": 3e-3, "progress": False}
records = train(model, one_batch, batches, steps=at_scale(cpu=500, gpu=3000), **how)
losses = [record.loss for record in records]
print(
    f"loss {sum(losses[:20]) / 20:.1f} in the first 20 steps, {sum(losses[-20:]) / 20:.1f} in the last"
)

# %% [markdown]
# ### Down and up
#
# Now let a molecule of the data forget, and let the model walk from noise to a molecule, with what it passes on the way.


# %%
def seeded(seed):
    return torch.Generator(device()).manual_seed(seed)


def smiles_of(graph):
    return [to_smiles(to_molecule(*parts)) for parts in decode_graphs(to_codes(graph), vocabulary)]


seen = {}
walkers = torch.full((16,), ATOMS, device=device())
asked = torch.ones(16, 1, device=device())  # with a ring
final = sample(
    model, noise, walkers, asked, guidance=2.0, generator=seeded(3), watch=seen.__setitem__
)
whole = [text if text and "." not in text else "" for text in smiles_of(final)]
chosen = max(range(len(whole)), key=lambda i: (len(set(whole[i]) & set("CNOF=#1")), len(whole[i])))
print(f"time runs from {max(seen)} to {min(seen)}; walk {chosen} ends at {whole[chosen]}")

# %%
TIMES = (50, 40, 30, 20, 10, 5, 0)
INKS = {"C": "#444444", "N": COLOURS["first"], "O": COLOURS["query"], "F": COLOURS["good"]}
LINES = {1: (0,), 2: (-0.06, 0.06), 3: (-0.1, 0, 0.1), 4: (-0.06, 0.06)}


def places(symbols, bonds):
    """Where RDKit would draw the atoms of a molecule; a graph of the way is drawn at the same."""
    molecule = to_molecule(symbols, bonds)
    Chem.rdDepictor.Compute2DCoords(molecule)
    return torch.tensor(molecule.GetConformer().GetPositions()[:, :2])


def draw_graph_at(axes, graph, index, where):
    atoms, bonds = to_codes(graph)
    for i, j in bonds[index].triu(1).nonzero().tolist():
        (x1, y1), (x2, y2) = where[i].tolist(), where[j].tolist()
        across = torch.tensor([y1 - y2, x2 - x1]) / math.hypot(x2 - x1, y2 - y1)
        for shift in LINES[int(bonds[index, i, j])]:
            dx, dy = (2 * shift * across).tolist()
            axes.plot([x1 + dx, x2 + dx], [y1 + dy, y2 + dy], color="#9a9a9a", lw=1, zorder=1)
    for (x, height), code in zip(where.tolist(), atoms[index].tolist(), strict=False):
        if code >= 0:
            symbol = vocabulary.atoms[code]
            axes.scatter(x, height, s=95, color=INKS[symbol], zorder=2)
            axes.text(x, height - 0.03, symbol, color="white", size=7, ha="center", va="center")
    axes.set_axis_off()
    axes.set_aspect("equal")
    low, high = where.min(0).values - 0.7, where.max(0).values + 0.7
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))


# %% tags=["figure"]
whole_rows = (clean.mask.sum(1) == ATOMS).nonzero()[:, 0].tolist()
real = next(i for i in whole_rows if {"N", "=", "O"} <= set(smiles[i]))
one = Graphs(*(part[real : real + 1] for part in clean))


def forget(t, seed=5):
    return draw_graph(*noise.q(one, torch.tensor([t], device=device())), one.mask, seeded(seed))


def draw_walks():
    figure, rows = canvas(2, len(TIMES), 7.6, 3.0)
    figure.set_layout_engine("none")
    for (row, column), axes in np.ndenumerate(rows):
        axes.set_position([column / len(TIMES), 0.02 + 0.5 * (1 - row), 0.97 / len(TIMES), 0.31])
    below = places(*next(decode_graphs(to_codes(one), vocabulary)))
    above = places(*list(decode_graphs(to_codes(seen[0]), vocabulary))[chosen])
    for axes, t in zip(rows[0], reversed(TIMES), strict=True):
        draw_graph_at(axes, forget(t) if t else one, 0, below)
        axes.set_title(f"time t = {t}" if t else "clean graph")
    for axes, t in zip(rows[1], TIMES, strict=True):
        draw_graph_at(axes, seen[t], chosen, above)
        axes.set_title(f"T = {t}" if t == noise.steps else f"time t = {t}")
    figure.text(0.01, 0.94, "forward: draw a graph G_t from q", size=9, weight="bold")
    text = f"backward: p_θ, one step of {noise.steps} after the other, asked for a property y"
    figure.text(0.01, 0.44, text, size=9, weight="bold")
    return figure


show(
    draw_walks(),
    alt="Above, a molecule of six atoms whose bonds and atom types turn random as the time grows; "
    "below, random atoms and bonds that settle to a molecule as the time falls to 0",
)

# %% [markdown]
# Above, each picture is drawn on its own from the clean graph: the noise can jump to any time. Below, each picture comes from the one before it. Atoms stay where they are drawn; what changes is their type and their bonds. Early steps change much and mean little, and the skeleton of the molecule stands well before the end.

# %% [markdown]
# ## Formula
#
# **Forward.** Noise of [lesson 3](3_noise.ipynb) turns a clean graph $G$ into $G_t$, with a distribution $q$ for each atom and each bond; at time $T$ only the limit $m$ of the noise is left:
#
# $$ G_t \sim q(G_t \mid G), \qquad q(G_T \mid G) \approx m, \qquad t = 0, \dots, T \tag{1} $$
#
# **Loss.** The network answers with probabilities $\hat p$ for the clean type of each of the $n$ atoms and the clean class of each bond. It is trained to give the truth a high probability, at a random time; a bond weighs $w_E = 10$ times as much as an atom (equation 4 of the paper):
#
# $$ \text{loss} = -\frac{1}{n} \sum_i \log \hat p(x_i) \;-\; \frac{w_E}{n (n - 1)} \sum_{i \ne j} \log \hat p(e_{ij}), \qquad \hat p = \hat p(\,\cdot \mid G_t, t, y) \tag{2} $$
#
# **One step back.** The posterior of lesson 3 says where a graph was at time $r < t$ if it is $G_t$ now and began as a certain clean graph. The network knows the clean graph only with probabilities, so the posteriors of all possibilities are added up with these as weights, for every atom and bond on its own. The result is $p_\theta$, the model's step:
#
# $$ p_\theta(G_r \mid G_t, y) = \sum_{x} \hat p(x)\; q(G_r \mid G_t, x) \tag{3} $$
#
# **Guidance.** Ask twice, with the properties for $p_c$ and without for $p_u$, and walk with
#
# $$ p \;\propto\; p_u \left( \frac{p_c}{p_u} \right)^{g} \tag{4} $$
#
# so that $g = 0$ forgets the properties, $g = 1$ follows them as learned, and more exaggerates (equation 3 of the paper, where $g$ is called s).
#
# **Sampling.** The number of atoms $n$ comes from the data, the first graph from the limit:
#
# $$ n \sim p(n), \qquad G_T \sim m, \qquad G_{t-1} \sim p \;\text{ for }\; t = T, \dots, 1 \tag{5} $$
#
# **The bound.** How probable is a given molecule for this model? Summing over all walks that end in it is out of reach, but an upper bound $U$ of $-\log p(G)$, in nats, is not:
#
# $$ U = -\log p(n) + \mathrm{KL}\big(q(G_T \mid G) \,\|\, m\big) + \sum_{t=1}^{T} \mathrm{KL}\big(q(G_{t-1} \mid G_t, G) \,\|\, p_\theta(G_{t-1} \mid G_t)\big) - \log \hat p(G \mid G_0) \tag{6} $$
#
# KL is the Kullback-Leibler divergence, $\mathrm{KL}(a \| b) = \sum a \log (a / b)$, which is 0 where $a$ and $b$ agree. In words: how surprising its size is, how far the start is from pure noise, how far each step is from the step that knows the answer, and how sure the last guess is. The sum has the expected value of $T$ times one term at a random time.
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $G_t$ | graph at time t, one-hot | (B, N, A), (B, N, N, K) | `graph` | graph G_t |
# | $t$ | time | whole number, 0 … T | `t` | time t |
# | $T$ | steps of the noise | whole number | `steps` | T |
# | $q$ | distribution of the noised graph | (B, N, A), (B, N, N, K) | `q` | q |
# | $y$ | properties; NaN is withheld | (B, P) | `y` | property y |
# | $n$ | atoms of a graph | whole number | `sizes` | n atoms |
# | $\hat p$ | the network's probabilities of the clean graph | (B, N, A), (B, N, N, K) | `softmax` | p̂ |
# | $w_E$ | weight of the bonds in the loss | number | `weights` | w_E |
# | $p_\theta$ | distribution one step back | (B, N, A), (B, N, N, K) | `reverse_step` | p_θ |
# | $p_c$ | the same with the properties | (B, …) | `conditional` | p_c |
# | $p_u$ | the same without | (B, …) | `unconditional` | p_u |
# | $g$ | guidance | number | `guidance` | g |
# | $m$ | limit of the noise | (A), (K) | `limit` | limit m |
# | $U$ | bound of −log p(G) | (B), nats | `likelihood_bound` | bound U |
#
# Letters of shapes: $B$ graphs, $N$ atoms that there is room for, $A$ types of atoms, $K = 5$ classes of bonds, $P$ numbers of the properties.
#
# > **Where the code leaves the paper.** The release adds a third term to the loss, the difference between the weights of the guessed and of the true molecule. It takes the guess by its largest score, so that no gradient passes through it, and it looks weights up by the place of an atom in the vocabulary in place of the atomic number. It changes the number that is printed and nothing that is learned, so it is not built here. The loss is a mean over all atoms of a batch, and over all its ordered pairs, so a large molecule counts more than a small one. For the likelihood that the release reports in validation, see [the bound](#The-bound) below: it differs from equation 6 in three places.

# %% [markdown]
# ## Code
#
# ### Drawing a graph
#
# Noise and network both answer with a distribution for each atom and each slot of $E$. A graph is drawn by lot: one type for each atom, one class for each pair. Naively, for one molecule, with `torch.multinomial`:


# %%
def draw_loop(pX, pE, generator):
    """The atoms and the bonds of one graph without padding, as class numbers."""
    n = len(pX)
    atoms = torch.tensor([int(torch.multinomial(p, 1, generator=generator)) for p in pX])
    bonds = torch.zeros(n, n, dtype=torch.long)
    for i in range(n):
        for j in range(i + 1, n):
            bonds[i, j] = bonds[j, i] = int(torch.multinomial(pE[i, j], 1, generator=generator))
    return atoms, bonds


generator = torch.Generator().manual_seed(0)
pX, pE = torch.tensor([[0.7, 0.2, 0.1]]).expand(4, 3), torch.tensor([0.5, 0.5]).expand(4, 4, 2)
draw_loop(pX, pE, generator)

# %% [markdown]
# A bond has no direction, but its two slots can have two distributions: in kind "graph" row $i$ mixes with atom $i$, row $j$ with atom $j$. The release draws all slots, takes those above the diagonal and mirrors them. So row $i$ decides for every pair $i < j$, and the order of the atoms matters a little.
#
# Many small draws at once: add the probabilities up along the last axis, and see how many of these sums a random number between 0 and 1 has reached.


# %% tags=["promote"]
def _draw(p: Tensor, generator: torch.Generator | None) -> Int[Tensor, "..."]:
    """One index from each distribution of the last axis, by inverting its running sum."""
    total = p.cumsum(dim=-1)
    if not ((total[..., -1] > 0) & total[..., -1].isfinite()).all():
        raise ValueError("a distribution adds up to 0 or to no finite number; expected about 1")
    u = torch.rand(p.shape[:-1], generator=generator, device=p.device, dtype=p.dtype)
    return (total <= u[..., None] * total[..., -1:]).sum(dim=-1).clamp(max=p.shape[-1] - 1)


# %%
shares = torch.tensor([0.1, 0.0, 0.6, 0.3])
drawn = _draw(shares.expand(100_000, 4), torch.Generator().manual_seed(0))
print((torch.bincount(drawn, minlength=4) / len(drawn)).tolist(), "of", shares.tolist())
assert (drawn != 1).all(), "what has no probability is never drawn"

# %% [markdown]
# With a mask, for a batch:


# %% tags=["promote", "exercise"]
def draw_graph(
    pX: Float[Tensor, "B N A"],
    pE: Float[Tensor, "B N N K"],
    mask: Bool[Tensor, "B N"],
    generator: torch.Generator | None = None,
) -> Graphs:
    """Draw every atom and bond from its distribution: a noised graph, one-hot.

    Only the slots above E's diagonal are used and then mirrored, as released; the diagonal is
    class 0, and all is zero where there is no atom.

    Raises ValueError where a distribution adds up to 0 or is not finite.
    """
    atoms = _draw(pX, generator)
    bonds = _draw(pE, generator).triu(1)
    bonds = bonds + bonds.transpose(1, 2)
    real = mask[:, :, None] & mask[:, None, :]
    X = F.one_hot(atoms, pX.shape[-1]).to(pX.dtype) * mask[..., None]
    E = F.one_hot(bonds, pE.shape[-1]).to(pE.dtype) * real[..., None]
    return Graphs(X, E, mask)


# %% tags=["check"]
uneven = torch.rand(2, 3, 3, 4, generator=torch.Generator().manual_seed(0))
there = torch.tensor([[True, True, True], [True, True, False]])
atoms_of_two = torch.tensor([0.2, 0.8]).expand(2, 3, 2)
draws = [draw_graph(atoms_of_two, uneven, there) for _ in range(2000)]
assert all(torch.equal(d.E, d.E.transpose(1, 2)) for d in draws), "a bond has no direction"
assert torch.equal(draws[0].X.sum(-1), there.float()), "one type for each atom, none for the others"
assert (draws[0].E[0].diagonal()[0] == 1).all(), "the diagonal is class 0"
assert draws[0].E[1, 2].sum() == 0 and draws[0].E[1, :, 2].sum() == 0, "no bond without an atom"
often = torch.stack([d.E[0, 0, 1] for d in draws]).mean(0)
upper = uneven[0, 0, 1] / uneven[0, 0, 1].sum()
# 2000 draws: a share has a standard error of at most 0.011.
assert (often - upper).abs().max() < 0.06, "the slot above the diagonal decides"

# %% [markdown]
# ### The loss
#
# Equation 2 in loops, on scores that know nothing:


# %%
def loss_loop(scores, graph, w_E=10.0):
    atoms, bonds = [], []
    for X, E, true_X, true_E, mask in zip(*scores, *graph, strict=True):
        n = int(mask.sum())
        for i in range(n):
            atoms.append(-X[i].log_softmax(-1)[true_X[i].argmax()])
            bonds += [-E[i, j].log_softmax(-1)[true_E[i, j].argmax()] for j in range(n) if j != i]
    return sum(atoms) / len(atoms) + w_E * sum(bonds) / len(bonds)


# %%
few = Graphs(*(part[:5].cpu() for part in clean))
nothing = torch.zeros_like(few.X), torch.zeros_like(few.E)
print(loss_loop(nothing, few).item(), "=", math.log(4) + 10 * math.log(5))


# %% tags=["promote", "exercise"]
def graph_loss(
    scores: tuple[Float[Tensor, "B N A"], Float[Tensor, "B N N K"]],
    graph: Graphs,
    weights: tuple[float, float] = (1.0, 10.0),
) -> Float[Tensor, ""]:
    """Cross-entropy of the clean atoms plus ten times that of the clean bonds (equation 2).

    Means over real atoms, and over ordered pairs of different real atoms. `weights` are those of
    atoms and bonds. Source: equation 4 of the paper, without the release's third term.
    """
    X, E = scores
    pairs = _pairs(graph.mask)
    atoms = F.cross_entropy(X[graph.mask], graph.X[graph.mask].argmax(-1))
    if not pairs.any():  # lone atoms only
        return weights[0] * atoms
    bonds = F.cross_entropy(E[pairs], graph.E[pairs].argmax(-1))
    return weights[0] * atoms + weights[1] * bonds


# %% tags=["check"]
toy_vocabulary = Vocabulary(("C", "N", "O", "F"), 6)
toy = one_hot(encode_smiles(["CCO", "C", "N#CC=O"], toy_vocabulary)[0], toy_vocabulary)
any_scores = tuple(
    torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for p in toy[:2]
)
# Sums of some forty numbers in float32.
assert torch.allclose(graph_loss(any_scores, toy), loss_loop(any_scores, toy), atol=1e-5)
assert torch.allclose(graph_loss(any_scores, toy, (1, 0)), loss_loop(any_scores, toy, 0), atol=1e-5)
lone = Graphs(*(part[1:2] for part in toy))
assert graph_loss(tuple(s[1:2] for s in any_scores), lone).isfinite(), "a lone atom has no pairs"

# %% [markdown]
# A training step noises each graph of a batch to a time of its own and asks for the clean one. Times are whole numbers for the noise and shares of $T$ for the network.


# %% tags=["promote"]
def diffusion_loss(
    model: nn.Module,
    noise: GraphNoise,
    graph: Graphs,
    y: Float[Tensor, "B P"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """The loss of one batch: noise each graph to a random time, and ask for the clean one.

    model  GraphDiT, or what is called as it is; it drops properties at random by itself
    times  are drawn from 0 … T, each with the same chance
    """
    t = torch.randint(0, noise.steps + 1, (len(y),), generator=generator, device=y.device)
    noised = draw_graph(*noise.q(graph, t), graph.mask, generator)
    return graph_loss(model(*noised, t / noise.steps, y), graph)


# %% [markdown]
# Where does the loss come from? The trained model, asked at each time about all molecules of its data:


# %%
@torch.no_grad()
def loss_at(t):
    """The two parts of the loss at time t, without weights."""
    t = torch.full((len(y),), t, device=device())
    noised = draw_graph(*noise.q(clean, t), clean.mask, seeded(0))
    scores = model(*noised, t / noise.steps, y)
    return [graph_loss(scores, clean, weights).item() for weights in ((1, 0), (0, 1))]


model.eval()
parts = torch.tensor([loss_at(t) for t in range(noise.steps + 1)])
for t in (0, 10, 25, 50):
    print(f"t = {t:2d}: atoms {parts[t, 0]:.2f}, bonds {parts[t, 1]:.2f} nats")


# %% tags=["figure"]
def draw_losses():
    figure, axes = canvas(1, 2, 7.4, 2.4)
    m_X, m_E = noise.limit()
    for k, (name, ink, limit) in enumerate((("atoms", "first", m_X), ("bonds", "second", m_E))):
        axes[0].plot(parts[:, k], color=COLOURS[ink], label=f"{name}: −log p̂")
        entropy = -(limit * limit.clamp(min=1e-12).log()).sum()
        axes[0].axhline(entropy, color=COLOURS[ink], lw=0.8, ls=":")
    axes[0].text(50, entropy + 0.01, "entropy of the limit m", size=8, ha="right", va="bottom")
    axes[1].plot(parts[:, 0], color=COLOURS["first"], label="atoms, weight 1")
    axes[1].plot(10 * parts[:, 1], color=COLOURS["second"], label="bonds, weight w_E = 10")
    for each, title in zip(
        axes, ("what the network does not know", "what it is trained on"), strict=True
    ):
        each.set(title=title, xlabel="time t", ylabel="nats")
        each.set_ylim(0, 1.6 * each.get_ylim()[1])
        each.legend(loc="upper left", fontsize=7)
    return figure


show(
    draw_losses(),
    alt="The cross-entropy of atoms and of bonds rises from near 0 at time 0 to the entropy of the "
    "data set's shares at time T; with the weights, the bonds make up most of the loss",
)

# %% [markdown]
# At time 0 nearly nothing is forgotten, and the network copies. At time $T$ nothing is left to see, and the best answer is the shares of the data set, which cost their entropy (dotted). For bonds the network does better: the mask tells it how many atoms there are, and the fewer they are, the more of their pairs have a bond. With the weights, the network is trained on the bonds nearly alone; in larger molecules, where most pairs have no bond, a bond costs less and the two come nearer.
#
# ### With and without the property
#
# The network drops properties at random in training (`drop_condition`), and stands ready to answer without them: a NaN in $y$ asks for that. Equation 4 in a loop, for one atom or bond:


# %%
def guide_loop(p_c, p_u, g):
    p = [u * (c / u) ** g for c, u in zip(p_c, p_u, strict=True)]
    return [round(each / sum(p), 3) for each in p]


for g in (0, 1, 2, 4):
    print(f"g = {g}:", guide_loop([0.5, 0.4, 0.1], [0.6, 0.2, 0.2], g))

# %% [markdown]
# The first class is the most probable one with and without the property, and guidance still gives it up: what counts is by which factor the property changes a class. The second becomes twice as probable with it, and guidance $g$ counts this factor $g$ times.
#
# Powers of ratios leave the range of float32 soon, so the promoted version adds logarithms. A clamp as in the release keeps every class possible, and keeps the division apart from 0.


# %% tags=["promote", "exercise"]
def guide(
    conditional: Float[Tensor, "*N K"], unconditional: Float[Tensor, "*N K"], guidance: float
) -> Float[Tensor, "*N K"]:
    """Guidance without a predictor: `p ∝ p_u (p_c / p_u)^g`, normalised (equation 4).

    1 gives the conditional distribution, 0 the unconditional one. p_u counts as at least 1e-10 in
    the ratio, and p as at least 1e-10 of its largest entry. Source: equation 3 of the paper.
    """
    ratio = conditional.clamp(min=1e-38).log() - unconditional.clamp(min=1e-10).log()
    p = unconditional.log() + guidance * ratio
    p = (p - p.amax(dim=-1, keepdim=True)).exp().clamp(min=1e-10)
    return p / p.sum(dim=-1, keepdim=True)


# %% tags=["check"]
p_c, p_u = torch.tensor([0.5, 0.4, 0.1]), torch.tensor([0.6, 0.2, 0.2])
# The loop rounds to three digits; the others are float32.
for g in (0, 1, 2, 4):
    assert torch.allclose(
        guide(p_c, p_u, g), torch.tensor(guide_loop([0.5, 0.4, 0.1], [0.6, 0.2, 0.2], g)), atol=1e-3
    ), f"g = {g}"
assert torch.allclose(guide(p_c, p_u, 1), p_c, atol=1e-6), "guidance 1 is the conditional one"
assert torch.allclose(guide(p_c, p_u, 0), p_u, atol=1e-6), "guidance 0 is the unconditional one"
extreme = guide(torch.tensor([1.0, 1e-9]), torch.tensor([1e-9, 1.0]), 8.0)
assert extreme.isfinite().all(), "a ratio of 1e9 to the power of 8 is no float32"
assert torch.allclose(extreme.sum(), torch.tensor(1.0))

# %% [markdown]
# ### One step back
#
# Equations 3 and 4 together. Both questions go to the network as one batch of twice the size: one pass of two halves is faster than two passes on small graphs, and the halves cannot get different settings. Where no graph has a property, there is one question.


# %% tags=["promote"]
def _step(model, noise, graph, y, s, t) -> tuple[Tensor, Tensor]:
    """Equation 3: the network's guess, and the posterior's step back from t to s."""
    times = torch.full((len(y),), t, device=y.device)
    X, E = model(*graph, times / noise.steps, y)
    return noise.reverse(graph, X.softmax(-1), E.softmax(-1), torch.full_like(times, s), times)


# %% tags=["promote", "exercise"]
def reverse_step(
    model: nn.Module,
    noise: GraphNoise,
    graph: Graphs,
    y: Float[Tensor, "B P"],
    s: int,
    t: int,
    guidance: float = 1.0,
) -> tuple[Float[Tensor, "B N A"], Float[Tensor, "B N N K"]]:
    """The distribution of the graph at time s, given the one at t > s and the properties.

    Equation 3, and with a guidance other than 1 equation 4, for which conditional and
    unconditional halves go through the model as one batch.

    Raises ValueError for times that are not 0 ≤ s < t ≤ T.
    """
    if not 0 <= s < t <= noise.steps:
        raise ValueError(f"s and t are {s} and {t}; expected 0 ≤ s < t ≤ {noise.steps}")
    if guidance == 1 or y.isnan().all():
        return _step(model, noise, graph, y, s, t)
    # A row without a property is the unconditional model's.
    twice = Graphs(*(torch.cat([part, part]) for part in graph))
    both = _step(model, noise, twice, torch.cat([y, torch.full_like(y, torch.nan)]), s, t)
    B = len(y)
    return tuple(guide(p[:B], p[B:], guidance) for p in both)


# %% tags=["check"]
class Answering(nn.Module):
    """Not a network: its scores are the graph it is given, times a number for the property."""

    max_atoms = 6

    def forward(self, X, E, mask, time, y):
        weight = 3 * time * (1 + y[:, 0].nan_to_num(nan=-0.5))
        return X * weight.view(-1, 1, 1), E * weight.view(-1, 1, 1, 1)


toy_vocabulary = Vocabulary(("C", "N", "O", "F"), 6)
toy_codes = encode_smiles(["CCO", "CC=O", "C#N"], toy_vocabulary)[0]
toy_noise = GraphNoise(graph_statistics(toy_codes, toy_vocabulary), 10, "independent")
toy_graph = one_hot(toy_codes, toy_vocabulary)
toy_y = torch.tensor([[0.2], [1.0], [3.0]])
with_y = reverse_step(Answering(), toy_noise, toy_graph, toy_y, 6, 7)
without = reverse_step(Answering(), toy_noise, toy_graph, torch.full_like(toy_y, torch.nan), 6, 7)
guided = reverse_step(Answering(), toy_noise, toy_graph, toy_y, 6, 7, guidance=2.0)
for ours, c, u in zip(guided, with_y, without, strict=True):
    # Twice the same float32 arithmetic, in batches of other sizes.
    assert torch.allclose(ours, guide(c, u, 2.0), atol=1e-6), "the doubled batch is two passes"
with shows_error(ValueError):
    reverse_step(Answering(), toy_noise, toy_graph, toy_y, 7, 7)

# %% [markdown]
# Guidance on a real step. Among all walks of the figure, at all times, take the pair of atoms on which the two answers of the trained model differ most:


# %%
@torch.no_grad()
def two_answers(t):
    """The classes of all pairs at t − 1, with and without the property."""
    halves = (reverse_step(model, noise, seen[t], a, t - 1, t) for a in (asked, asked * torch.nan))
    return [pE.cpu() for _, pE in halves]


gaps = {}
for t in range(2, noise.steps):
    p_c, p_u = two_answers(t)
    gaps[t] = ((p_c - p_u).abs().sum(-1) * _pairs(seen[t].mask.cpu())).triu(1)
t = max(gaps, key=lambda t: gaps[t].max())
walk, i, j = torch.unravel_index(gaps[t].argmax(), gaps[t].shape)
p_c, p_u = (p[walk, i, j] for p in two_answers(t))
print(f"t = {t}, walk {walk}, atoms {i} and {j}")
print("with   ", [round(p, 3) for p in p_c.tolist()])
print("without", [round(p, 3) for p in p_u.tolist()])


# %% tags=["figure"]
def draw_guidance():
    figure, axes = canvas(1, 4, 7.4, 2.3, sharey=True)
    names = BONDS[:4]
    for each, g in zip(axes, (0, 1, 2, 4), strict=True):
        each.bar(range(4), guide(p_c, p_u, g)[:4], color=COLOURS["first"], width=0.7)
        each.plot(range(4), p_u[:4], "_", ms=16, mew=2, color=COLOURS["second"], label="p_u")
        each.plot(range(4), p_c[:4], "_", ms=16, mew=2, color=COLOURS["query"], label="p_c")
        each.set(title=f"g = {g}", ylim=(0, 1))
        each.set_xticks(range(4), names, rotation=30)
    axes[0].set_ylabel("probability")
    axes[-1].legend(loc="upper right")
    return figure


show(
    draw_guidance(),
    alt="Bars of the classes none, single, double, triple for guidance 0, 1, 2 and 4: the bars move "
    "from the unconditional marks to the conditional ones and beyond them",
)

# %% [markdown]
# The bars start at $p_u$ with $g = 0$, meet $p_c$ with $g = 1$ and go past it. Guidance knows one pair at a time: each pair exaggerates on its own, and nobody asks whether the exaggerated pairs fit together. That is why much guidance costs validity.
#
# ### The start, and the whole walk


# %% tags=["promote"]
def starting_graph(
    noise: GraphNoise,
    sizes: Int[Tensor, "B"],
    generator: torch.Generator | None = None,
    max_atoms: int | None = None,
) -> Graphs:
    """Graphs of pure noise with so many atoms, from the noise's limit (equation 5).

    max_atoms  N, the most atoms of the data where it is not given

    Raises ValueError for sizes that are not from 1 to N.
    """
    N = max_atoms or len(noise.statistics.sizes) - 1
    if not ((sizes >= 1) & (sizes <= N)).all():
        raise ValueError(f"sizes is {sizes.tolist()}; expected whole numbers from 1 to {N}")
    mask = torch.arange(N, device=sizes.device) < sizes[:, None]
    m_X, m_E = (m.to(sizes.device) for m in noise.limit())
    B = len(sizes)
    return draw_graph(m_X.expand(B, N, -1), m_E.expand(B, N, N, -1), mask, generator)


# %%
start = starting_graph(noise, torch.full((2000,), ATOMS), torch.Generator().manual_seed(0))
for name, share, limit in zip(
    vocabulary.atoms, start.X.mean((0, 1)), noise.limit()[0], strict=True
):
    print(f"{name}: {share:.3f} of the atoms, the limit says {limit:.3f}")

# %% [markdown]
# The walk goes through all times from $T$ to 0. It can also take larger strides: the posterior of lesson 3 holds for any earlier time. Which times does a walk of a few steps visit?


# %% tags=["promote"]
def _visited(T: int, steps: int | None) -> list[int]:
    """The times of a walk from T to 0 in so many strides, as even as whole numbers can be."""
    steps = T if steps is None else whole_number("steps", steps, least=1, most=T)
    return [T - T * k // steps for k in range(steps + 1)]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in its evaluation mode, and back in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


# %%
for steps in (50, 12, 4, 1):
    visited = _visited(50, steps)
    print(f"{steps:2d} steps: {visited[:6]} …" if steps > 6 else f"{steps:2d} steps: {visited}")


# %% tags=["promote"]
@torch.no_grad()
def sample(
    model: nn.Module,
    noise: GraphNoise,
    sizes: Int[Tensor, "B"],
    y: Float[Tensor, "B P"],
    *,
    guidance: float = 2.0,
    steps: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    watch: Callable[[int, Graphs], None] | None = None,
) -> Graphs:
    """Generate graphs from noise, one step of time after the other (equation 5).

    sizes     numbers of atoms
    y         the properties asked for; NaN for one that does not matter
    guidance  1 follows the properties as learned, more follows them more closely
    steps     fewer strides than the noise has steps, each over several times; all when left out
    watch     is called with t and the graph, at T and after each step

    This is ancestral sampling: every step is a draw of the whole graph. The same generator gives
    the same graphs. The model is in its evaluation mode meanwhile.

    Raises ValueError for sizes the model has no room for, as many of them as y has not, a guidance
    that is not finite, and steps that are not from 1 to T.
    """
    if len(sizes) != len(y):
        raise ValueError(f"sizes and y have {len(sizes)} and {len(y)} rows; expected as many")
    if not math.isfinite(guidance):
        raise ValueError(f"guidance is {guidance}; expected a finite number")
    times = _visited(noise.steps, steps)
    graph = starting_graph(noise, sizes, generator, model.max_atoms)
    with _evaluating(model), progress_bar(len(times) - 1, 0, unit="step", shown=progress) as bar:
        if watch:
            watch(noise.steps, graph)
        for t, s in itertools.pairwise(times):
            pX, pE = reverse_step(model, noise, graph, y, s, t, guidance)
            graph = draw_graph(pX, pE, graph.mask, generator)
            if watch:
                watch(s, graph)
            bar.update()
    return graph


# %% [markdown]
# An **oracle** (神谕) tests the walk without any training: a network that always answers the clean graph, with certainty. Whatever the noise and the strides, the walk must end at that graph, since the posterior from a certain answer leads there. "Nearly always" is right, because time 0 still holds a little noise: the share of an atom that survives is below 1.


# %%
class Oracle(nn.Module):
    """Answers with the graphs it was made for."""

    def __init__(self, graph):
        super().__init__()
        self.graph, self.max_atoms = graph, graph.mask.shape[1]

    def forward(self, X, E, mask, time, y):
        return 100 * self.graph.X, 100 * self.graph.E


print(f"at t = 0 a share of {noise.alpha_bar[0]:.4f} survives")
answer = Graphs(*(part.cpu() for part in clean))
statistics = noise.statistics
for kind, steps in itertools.product(("graph", "independent", "corrected"), (None, 5)):
    walk_noise = GraphNoise(statistics, 50, kind)
    end = sample(Oracle(answer), walk_noise, answer.mask.sum(1), y.cpu(), guidance=1.0, steps=steps)
    same = (to_codes(end).atoms == codes.atoms).all(1) & (to_codes(end).bonds == codes.bonds).all(
        (1, 2)
    )
    print(f"{kind:>11}, {steps or 50:2d} steps: {same.float().mean():.0%} of the molecules")

# %% [markdown]
# ### The bound
#
# A loss on single atoms and bonds says little about whole molecules. Equation 6 does: it measures in nats how surprised the model is by a molecule it has not seen. Its parts are sums over the atoms, and over each pair once, since a pair is drawn once.


# %% tags=["promote"]
class Bound(NamedTuple):
    """The parts of the bound of −log p(G), in nats, a number for each graph (equation 6).

    size   of its number of atoms; infinite for one that the data set does not have
    start  how far the noised graph at T is from the limit that sampling starts from
    steps  of all steps back, as estimated
    clean  of the clean graph, given the one at time 0
    """

    size: Float[Tensor, "B"]
    start: Float[Tensor, "B"]
    steps: Float[Tensor, "B"]
    clean: Float[Tensor, "B"]

    @property
    def total(self) -> Float[Tensor, "B"]:
        """The bound U."""
        return self.size + self.start + self.steps + self.clean


# %% tags=["promote"]
def _graph_sum(
    atoms: Float[Tensor, "B N"],
    pairs: Float[Tensor, "B N N"],
    mask: Bool[Tensor, "B N"],
    ordered: bool = False,
) -> Float[Tensor, "B"]:
    """The sum over the atoms and over the pairs of a graph, each pair once or, ordered, twice."""
    real = _pairs(mask)
    real = real if ordered else real.triu(1)
    return torch.where(mask, atoms, 0).sum(dim=1) + torch.where(real, pairs, 0).sum(dim=(1, 2))


def _divergence(p: tuple, other: tuple, mask: Tensor, ordered: bool = False) -> Float[Tensor, "B"]:
    """KL(p ‖ other) of distributions of atoms and pairs, for each graph."""
    parts = ((a.clamp(min=1e-12), b.clamp(min=1e-12)) for a, b in zip(p, other, strict=True))
    return _graph_sum(*((a * (a.log() - b.log())).sum(dim=-1) for a, b in parts), mask, ordered)


# %%
two = torch.tensor([[[0.5, 0.5]]]), torch.zeros(1, 1, 1, 2) + 0.5
other = torch.tensor([[[0.25, 0.75]]]), torch.zeros(1, 1, 1, 2) + 0.5
by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
print(_divergence(two, other, torch.tensor([[True]])).item(), "=", by_hand)
assert _divergence(two, two, torch.tensor([[True]])).item() == 0

# %% [markdown]
# The release reports a validation likelihood that looks like equation 6 and differs from it in three places. It counts each pair twice, once for either slot. It takes the divergence at $T$ the other way round, $\mathrm{KL}(m \| q)$. And it compares each step with a posterior of the *averaged* clean graph, $q(G_{t-1} \mid G_t, \hat p)$, where sampling uses the average of the posteriors, equation 3; both agree where the network is certain. `released=True` computes its numbers, in order to compare with it; they bound nothing.


# %% tags=["promote"]
def _released_posterior(
    noise: GraphNoise, graph: Graphs, guess: Graphs, s: Int[Tensor, "B"], t: Int[Tensor, "B"]
) -> tuple[Tensor, Tensor]:
    """The posterior of averaged clean rows, with the full matrix of the noise's limit."""
    u = noise.matrix(noise.steps).to(graph.X)  # at T nothing survives
    kept_s, kept_t = (noise.alpha_bar.to(graph.X)[each.cpu()].view(-1, 1, 1) for each in (s, t))
    now, clean, step = graph_tokens(graph), graph_tokens(guess), kept_t / kept_s
    back = step * now + (1 - step) * now @ u.T
    rows = back * (kept_s * clean + (1 - kept_s) * clean @ u)
    X, E = rows[..., : graph.X.shape[-1]], rows[..., graph.X.shape[-1] :]
    parts = X + 1e-12, E.unflatten(-1, graph.E.shape[2:]) + 1e-12
    return tuple(p / p.sum(dim=-1, keepdim=True) for p in parts)


# %% tags=["promote"]
def _step_divergence(
    model: nn.Module,
    noise: GraphNoise,
    graph: Graphs,
    noised: Graphs,
    y: Float[Tensor, "B P"],
    t: Int[Tensor, "B"],
    released: bool = False,
) -> Float[Tensor, "B"]:
    """KL between the step back from t that knows the clean graph and the model's."""
    pX, pE = (score.softmax(dim=-1) for score in model(*noised, t / noise.steps, y))
    if released:
        guess = Graphs(pX, pE, graph.mask)
        true, ours = (_released_posterior(noise, noised, g, t - 1, t) for g in (graph, guess))
    else:
        true = noise.reverse(noised, graph.X, graph.E, t - 1, t)
        ours = noise.reverse(noised, pX, pE, t - 1, t)
    return _divergence(true, ours, graph.mask, released)


def _clean_surprise(
    model: nn.Module, graph: Graphs, noised: Graphs, y: Float[Tensor, "B P"], ordered: bool = False
) -> Float[Tensor, "B"]:
    """−log p̂ of the clean graph, given the one at time 0."""
    scores = model(*noised, torch.zeros(len(y), device=y.device), y)
    clean = zip(graph[:2], scores, strict=True)
    return _graph_sum(
        *(-(true * score.log_softmax(-1)).sum(-1) for true, score in clean), graph.mask, ordered
    )


# %% tags=["promote"]
@torch.no_grad()
def likelihood_bound(
    model: nn.Module,
    noise: GraphNoise,
    graph: Graphs,
    y: Float[Tensor, "B P"],
    generator: torch.Generator | None = None,
    *,
    every_step: bool = False,
    released: bool = False,
) -> Bound:
    """An upper bound of −log p(G) for each graph, in nats and in its parts (equation 6).

    every_step  sum over all times, a pass of the model for each; else T times one random time,
                which has the same expected value and scatters widely
    released    as the release's validation reports it: each pair twice, the divergence at T the
                other way round, steps compared with the posterior of the averaged clean graph

    The noised graphs are drawn. It is a bound for kinds "independent" and "corrected", whose
    posterior is exact; for kind "graph" it is the same sum and bounds nothing.

    Raises ValueError where graph and y have not as many rows.
    """
    if len(graph.mask) != len(y):
        raise ValueError(f"graph and y have {len(graph.mask)} and {len(y)} rows; expected as many")
    T, B, mask = noise.steps, len(y), graph.mask
    last = torch.full((B,), T, device=y.device)
    ends = noise.q(graph, last), _limits(noise, graph)
    start = _divergence(*(reversed(ends) if released else ends), mask, released)
    if every_step:
        times = torch.arange(1, T + 1, device=y.device)[:, None].expand(T, B)
    else:
        times = torch.randint(1, T + 1, (1, B), generator=generator, device=y.device)
    steps = torch.zeros(B, device=y.device)
    with _evaluating(model):
        for t in times:
            noised = draw_graph(*noise.q(graph, t), mask, generator)
            found = _step_divergence(model, noise, graph, noised, y, t, released)
            steps += T / len(times) * found
        noised = draw_graph(*noise.q(graph, torch.zeros_like(last)), mask, generator)
        clean = _clean_surprise(model, graph, noised, y, released)
    sizes = noise.statistics.sizes.to(y.device)
    return Bound(-sizes[mask.sum(dim=1)].log(), start, steps, clean)


def _limits(noise: GraphNoise, graph: Graphs) -> tuple[Tensor, Tensor]:
    """The limit m for every atom and slot."""
    m_X, m_E = (m.to(graph.X) for m in noise.limit())
    return m_X.expand_as(graph.X), m_E.expand_as(graph.E)


# %% [markdown]
# Is it a bound, and how tight? Lone atoms can be calculated by hand. The best network for them is Bayes' rule, the probability of each clean type given the noisy one. Then each step back is right on average, and the mean of $U$ over the data must be the entropy of the types. A network that knows less must have a larger one.


# %%
class Bayes(nn.Module):
    """The best answer for lone atoms: shares of the data times the likelihood of what is seen."""

    max_atoms = 1

    def __init__(self, noise, trust=1.0):
        super().__init__()
        self.noise, self.trust = noise, trust

    def forward(self, X, E, mask, time, y):
        t = (time * self.noise.steps).round().long()
        types = torch.eye(X.shape[-1])
        each = Graphs(
            types[:, None],
            torch.zeros(len(types), 1, 1, 5),
            torch.ones(len(types), 1, dtype=torch.bool),
        )
        table = torch.stack(
            [
                self.noise.q(each, torch.full((len(types),), s))[0][:, 0]
                for s in range(self.noise.steps + 1)
            ]
        )
        seen_as = (table[t] * X).sum(-1)  # (B, A), the chance of what is seen for each clean type
        return (self.noise.statistics.atoms * seen_as**self.trust).log()[:, None], torch.zeros_like(
            E
        )


lone_vocabulary = Vocabulary(vocabulary.atoms, 1)
counts = [4000, 2000, 1000, 1000]
types = torch.arange(4).repeat_interleave(torch.tensor(counts))[:, None]
lone_codes = Codes(types, torch.zeros(len(types), 1, 1, dtype=torch.long))
lone_noise = GraphNoise(graph_statistics(lone_codes, lone_vocabulary), 20, "independent")
lone = one_hot(lone_codes, lone_vocabulary)
shares = torch.tensor(counts) / sum(counts)
print(f"entropy of the types: {-(shares * shares.log()).sum():.3f} nats")

# %%
nobody = torch.full((len(types), 1), torch.nan)
for trust in (1.0, 0.9, 0.5, 0.0):
    parts = (Bayes(lone_noise, trust), lone_noise, lone, nobody)
    bound = likelihood_bound(*parts, torch.Generator().manual_seed(0), every_step=True)
    U = bound.total
    scatter = U.std() / len(U) ** 0.5
    print(f"trust in what it sees {trust:.1f}: mean bound {U.mean():.3f} ± {scatter:.3f} nats")

# %% [markdown]
# With Bayes' rule the bound is tight. A network that believes its eyes too little pays for it, up to one that looks at nothing.
#
# Now the small model, on molecules with at most six atoms that it was not trained on. One random time for each molecule, or all of them?

# %%
_, held_codes, held_y = small_molecules("held_out")
held, held_y = one_hot(held_codes, vocabulary).to(device()), held_y.to(device())
print(f"{len(held_y)} molecules")
for every_step in (False, True):
    totals = [
        likelihood_bound(model, noise, held, held_y, seeded(k), every_step=every_step).total.mean()
        for k in range(3)
    ]
    name = "all times" if every_step else "one time"
    print(f"{name:>9}: mean bound of three runs", [round(total.item(), 1) for total in totals])

# %% [markdown]
# A validation that reports one random time jumps by nats from epoch to epoch for no reason. Who compares models sums over all times, or averages over many molecules.
#
# The parts, for two kinds of noise. The second has no model of its own here; its start needs none, since the first divergence compares the noise with itself.


# %%
known = likelihood_bound(model, noise, clean, y, seeded(0), every_step=True)
unseen = likelihood_bound(model, noise, held, held_y, seeded(0), every_step=True)
for name, bound in (("trained on", known), ("held out", unseen)):
    shown = ", ".join(f"{part} {getattr(bound, part).mean():.2f}" for part in Bound._fields)
    print(f"{name:>10}: {bound.total.mean():.2f} nats = {shown}")

# %%
starts = {}
for kind in ("graph", "independent", "corrected"):
    other = GraphNoise(noise.statistics, 50, kind)
    last = torch.full((len(y),), 50, device=device())
    starts[kind] = _divergence(other.q(clean, last), _limits(other, clean), clean.mask)
    low, high = starts[kind].min().item(), starts[kind].max().item()
    print(f"{kind:>11}: start {abs(low):.2f} to {abs(high):.2f} nats")


# %% tags=["figure"]
@torch.no_grad()
def along_the_way():
    """The mean term of each time of the bound."""
    rows = []
    for t in range(1, noise.steps + 1):
        t = torch.full((len(y),), t, device=device())
        noised = draw_graph(*noise.q(clean, t), clean.mask, seeded(1))
        rows.append(_step_divergence(model, noise, clean, noised, y, t).mean().item())
    return rows


def draw_bound():
    figure, axes = canvas(1, 2, 7.4, 2.5, width_ratios=[3, 2])
    way = along_the_way()
    axes[0].bar(range(1, len(way) + 1), way, color=COLOURS["first"], width=0.8)
    axes[0].set(xlabel="time t", ylabel="nats", title="the terms of the bound U, step by step")
    n = clean.mask.sum(1).cpu()
    for kind, ink, mark in (
        ("graph", "query", "o"),
        ("corrected", "second", "s"),
        ("independent", "good", "^"),
    ):
        means = [starts[kind].cpu()[n == k].mean() for k in range(2, ATOMS + 1)]
        axes[1].plot(range(2, ATOMS + 1), means, mark + "-", ms=4, color=COLOURS[ink], label=kind)
    axes[1].set(xlabel="n atoms", ylabel="nats", title="start: KL(q ‖ m)")
    axes[1].legend()
    return figure


show(
    draw_bound(),
    alt="Bars of the bound's terms over time, highest before the middle; and the divergence of "
    "the noised graph from the limit against the number of atoms, growing for kind graph and 0 "
    "for kind independent",
)

# %% [markdown]
# The steps before the middle of the way decide: there the molecule is half known. Independent noise forgets all: its start costs nothing. Kind "graph" does not go to where sampling starts. Its limit mixes the atoms and bonds of a row, depends on the graph, and is far from the shares $m$ of the data. The bound pays for that. Samples do not: at $T$ the posterior forgets what it stands on, since nothing of the step survives.
#
# ## On real input
#
# ### Asked for a property
#
# How many molecules are valid, and how many have a ring or none as they were asked to? A molecule counts as valid if RDKit accepts it, which it also does for a graph in two pieces; for the property it has to be in one piece. What is asked for comes from the data, ring or no ring.


# %%
def generate(count, guidance, seed=0, model=model, noise=noise, targets=None, **options):
    """Molecules of the sizes and properties of the data: their SMILES or None, and the targets."""
    generator = seeded(seed)
    sizes = torch.multinomial(noise.statistics.sizes.to(device()), count, True, generator=generator)
    if targets is None:
        targets = y[torch.randint(len(y), (count,), generator=generator, device=device())]
    graph = sample(model, noise, sizes, targets, guidance=guidance, generator=generator, **options)
    return smiles_of(graph), targets


def judged(texts, targets):
    """Shares: valid, valid in one piece, and of these, with the property that was asked for."""
    wanted = targets[:, 0].cpu().tolist()
    right = [r == want for r, want in zip(rings_of(texts), wanted, strict=True) if r is not None]
    valid = sum(text is not None for text in texts)
    return valid / len(texts), len(right) / len(texts), sum(right) / max(1, len(right))


def rings_of(texts):
    """Whether each molecule has a ring, None for one that is not valid or not in one piece."""
    return [has_ring(text) if text and "." not in text else None for text in texts]


def told(result):
    return "valid {:.0%}, in one piece {:.0%}; as asked {:.0%} of these".format(*result)


COUNT = at_scale(cpu=100, gpu=1024)
results = {}
for g in (0.0, 1.0, 2.0, 4.0):
    results[g] = judged(*generate(COUNT, g))
    print(f"guidance {g:.0f}:", told(results[g]))

# %% [markdown]
# Without the property ($g = 0$) half of the molecules are as asked, by chance. With it most are, with guidance 2 nearly all, and guidance 4 pays in validity for what it can hardly gain any more. A model trained for hours does better in both; the trade between them stays.

# %%
wishes = torch.tensor([1.0, 0.0]).repeat_interleave(5)[:, None]
texts, _ = generate(10, 2.0, seed=4, targets=wishes.to(device()))
names = {True: "a ring", False: "no ring", None: "not one molecule"}
legends = [
    f"asked: {names[want == 1]}\ngot: {names[got]}"
    for want, got in zip(wishes[:, 0].tolist(), rings_of(texts), strict=True)
]
show(
    molecule_grid(texts, legends, columns=5, width=6.8),
    alt="Ten generated molecules in two rows, asked for a ring and for none, each with what it has; "
    "a cross where the graph is not valid",
)

# %% [markdown]
# How many of them does the model know from its training?

# %%
known_texts = {Chem.CanonSmiles(text) for text in smiles}
new = {text for text in texts if text} - known_texts
print(f"{sum(text in known_texts for text in texts)} of {len(texts)} are in the data; new: {new}")

# %% [markdown]
# ### Fewer steps
#
# Each step costs two passes of the network, with 50 steps or with 500. Larger strides cost less. What do they lose?

# %%
by_steps = {}
for steps in (1, 2, 5, 10, 25, 50):
    by_steps[steps] = judged(*generate(COUNT, 1.0, steps=steps))
    print(f"{steps:2d} steps:", told(by_steps[steps]))

# %% [markdown]
# One step draws all atoms and bonds at once, each for itself, from the network's guess at pure noise. RDKit accepts many of these graphs, since atoms without bonds are molecules to it (methane, ammonia, water); fewer are one molecule. Every further step lets the atoms and bonds hear of each other.
#
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `draw_graph` | 10 | ●●○ |
# | `graph_loss` | 8 | ●○○ |
# | `guide` | 8 | ●●○ |
# | `reverse_step` | 14 | ●●● |
#
# <details><summary>Hint for <code>draw_graph</code></summary>
#
# `.triu(1)` keeps what is above the diagonal of the drawn class numbers; the transpose adds the other half. The diagonal is 0 then, which is class 0. Multiply the one-hot tensors by the mask of atoms and of pairs.
#
# </details>
#
# <details><summary>Hint for <code>graph_loss</code></summary>
#
# Index with the mask: `X[graph.mask]` has a row for each real atom. `_pairs(graph.mask)` is the mask of ordered pairs of different atoms. `F.cross_entropy` takes class numbers.
#
# </details>
#
# <details><summary>Hint for <code>guide</code></summary>
#
# $\log p = \log p_u + g (\log p_c - \log p_u)$. Take the largest entry away before `exp`, so that none overflows.
#
# </details>
#
# <details><summary>Hint for <code>reverse_step</code></summary>
#
# `Graphs(*(torch.cat([part, part]) for part in graph))` is the doubled batch; its `y` is the given one above one of NaN. `_step`, in the cell above, does the rest; then cut both results in half.
#
# </details>
#
# **Predict.** A model answers with the same probabilities with and without the property. What does guidance 4 do to its samples?
#
# <details><summary>Hint</summary>
#
# Put $p_c = p_u$ into equation 4.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Nothing. The ratio is 1 and so is each of its powers. The walk costs twice as much as without guidance.
#
# </details>

# %%
assert torch.allclose(guide(p_u, p_u, 4.0), p_u, atol=1e-6)

# %% [markdown]
# **Measure.** What does guidance cost in variety? Ask a hundred times for a ring, and count how many different molecules come, for $g$ of 0, 2 and 6.
#
# <details><summary>Hint</summary>
#
# `generate(COUNT, g, targets=…)`, with a column of ones; `len(set(…))`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The cell below: guidance 2 brings the rings, guidance 6 brings no more of them and fewer molecules in one piece. The share of different ones among these falls a little: guidance sharpens a distribution, and what is sharper has less variety.
#
# </details>

# %%
ring_please = torch.ones(COUNT, 1, device=device())
for g in (0.0, 2.0, 6.0):
    texts, _ = generate(COUNT, g, targets=ring_please)
    whole = [text for text in texts if text and "." not in text]
    share = sum(map(has_ring, whole)) / len(whole)
    print(
        f"g = {g:.0f}: {len(whole)} in one piece, {share:.0%} with a ring, {len(set(whole))} different"
    )

# %% [markdown]
# **Find the bug.** A colleague draws both slots of a pair and averages the two one-hot vectors, "for symmetry". Every shape is right, and `to_codes` turns the result into a molecule. What is wrong?


# %%
def draw_colleague(pX, pE, mask, generator=None):
    E = F.one_hot(_draw(pE, generator), pE.shape[-1]).float()
    return Graphs(
        F.one_hot(_draw(pX, generator), pX.shape[-1]).float(), (E + E.transpose(1, 2)) / 2, mask
    )


pE = torch.tensor([0.5, 0.5]).expand(2000, 3, 3, 2)
pX, mask = torch.full((2000, 3, 2), 0.5), torch.ones(2000, 3, dtype=torch.bool)
for draw in (draw_graph, draw_colleague):
    bonds = to_codes(draw(pX, pE, mask, torch.Generator().manual_seed(0))).bonds
    print(
        f"{draw.__name__:>14}: a share of {(bonds[:, 0, 1] == 1).float().mean():.2f} has the bond"
    )

# %% [markdown]
# <details><summary>Hint</summary>
#
# What does `argmax` answer where two entries are equal?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Where the two draws differ the vector is one half for both classes, and `argmax` takes the first, which is "none". Half of the draws differ, so the share of bonds falls from 0.5 to 0.25. And in between, $E$ is not one-hot, which neither the posterior nor the network expects.
#
# </details>
#
# ## What breaks
#
# ### Two clocks
#
# DiGress, and torch-molecule after it, train with the time as $t = 0, \dots, T$ and sample with $t / T$. Each half works by itself, so no error is raised. The network below is trained in this way, for fewer steps than ours, and sampled with each of the two clocks. `GraphDiT` refuses a time outside of 0 … 1, so the wrong clock stands behind its door, in the time encoder. The network is also trained without dropping properties, for the next section.


# %%
class Clock(nn.Module):
    """A time encoder that reads the time `factor` times as large."""

    def __init__(self, encoder, factor):
        super().__init__()
        self.encoder, self.factor = encoder, factor

    def forward(self, time):
        return self.encoder(time * self.factor)


hurried = new_model(drop_condition=0.0)
unasked = hurried.condition.encoders[0].table.weight[-1].detach().clone()
right, wrong = hurried.time, Clock(hurried.time, noise.steps)
hurried.time = wrong
train(hurried, one_batch, batches, steps=at_scale(cpu=200, gpu=3000), **how)
for name, clock in (("t / T", right), ("t = 0 … T, as in training", wrong)):
    hurried.time = clock
    print(f"sampled with {name}:", told(judged(*generate(COUNT, 1.0, model=hurried))))

# %% [markdown]
# To a network that knows times up to 50, a time below 1 says that almost nothing is noise. It believes what it sees, and noise stays. The time is an input like any other: what it means has to be the same on both sides. Here both sides divide by $T$ in one place each, `diffusion_loss` and `_step`, and a test compares them.
#
# ### Guidance that was never taught
#
# Guidance needs a network that has learned to answer without the property. torch-molecule's defaults are no dropping in training and guidance 2 in sampling: there both halves are the same network with the same property, so guidance does nothing, at twice the cost. That is the exercise above. Here a dropped property has a vector of its own, which such a training has never seen:

# %%
trained = hurried.condition.encoders[0].table.weight[-1].detach().cpu()
print(
    f"the vector of a dropped property changed by {(trained / unasked.cpu() - 1).abs().max():.1%}"
)
for g in (1.0, 2.0, 4.0):
    result = judged(*generate(COUNT, g, model=hurried))
    print(f"guidance {g:.0f}:", told(result))

# %% [markdown]
# At most weight decay moves this vector. The unconditional half is a network with a random condition, and guidance walks away from what that says. Validity falls with it, and the property is not served better than with guidance in the model that was taught. Set `drop_condition` to some hundredths or a tenth before training, or leave guidance at 1.
#
# ### What the unconditional half rules out
#
# Guidance multiplies $p_u$. What $p_u$ gives less than $10^{-10}$ stays away, however sure the conditional half is:

# %%
print(guide(torch.tensor([0.99, 0.01]), torch.tensor([1e-13, 1 - 1e-13]), 1.0).tolist())

# %% [markdown]
# ### What the code says to bad input

# %%
some = torch.tensor([3, 7], device=device())
with shows_error(ValueError):
    sample(model, noise, some, y[:2])
with shows_error(ValueError):
    sample(model, noise, some.clamp(max=6), y[:3])
with shows_error(ValueError):
    sample(model, noise, some.clamp(max=6), y[:2], steps=51)
with shows_error(ValueError):
    sample(model, noise, some.clamp(max=6), y[:2], guidance=math.nan)
with shows_error(ValueError):
    draw_graph(pX * torch.nan, pE, mask)
with shows_error(ValueError):
    likelihood_bound(model, noise, clean, y[:2])

# %% [markdown]
# ## Recap
#
# - Training is classification at a random time: which atoms and bonds was this noisy graph? Bonds weigh ten times as much.
# - Sampling walks from the limit of the noise to time 0. Each step averages the posteriors of all clean graphs with the network's guess as weights, then draws. Guidance compares two guesses and exaggerates their difference; it needs a network that has learned to do without the property.
# - The bound is a likelihood for whole molecules. It has to count pairs once, keep the direction of each divergence, and use the step that sampling takes.
#
# The line goes on in [lesson 6](6_molecules.ipynb), where graphs that are not molecules are made into some.
