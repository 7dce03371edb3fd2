# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 60
#     needs:
#     - 1_paper_writing/3_reading_cards
#     - 2_graph_dit/2_graphs
#     promotes: false
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The paper: graphs as clouds of points
#
# **After this lesson you can** answer the four questions for SyCo, write one molecule as a graph and as a cloud of points, and say from measurements what noise does to each and why the way back from cloud to graph must be learned.
#
# *Before this:* [Reading cards](../1_paper_writing/3_reading_cards.ipynb) (`3_reading_cards`), which asks the four questions of any paper, and [Graphs](../2_graph_dit/2_graphs.ipynb) (`2_graphs`), which writes a molecule as tensors. *Time:* 60 minutes, and 30 for the exercises.

# %% [markdown]
# ## Words
#
# A **molecular graph** (分子图) says which atoms there are and which of them are bonded. It is discrete: a bond is there or not. The models of [chapter 2](../2_graph_dit/1_paper.ipynb) generate such graphs directly. Other models generate molecules in space, as a **Euclidean point cloud** (欧几里得点云): a set of points with real coordinates and no order. Diffusion works well there, since Gaussian noise suits real numbers. But a cloud has no bonds.
#
# The **key question** of Ketata and colleagues (2024) joins the two: *molecular graph generation with 3D generative models*. Can a generator of clouds be used to generate graphs?
#
# Their answer is **SyCo**, Synthetic Coordinate Embedding. A graph has no coordinates, so they are made up. A program of RDKit, **ETKDG**, places the atoms of the graph in space as in a **conformer** (构象, coordinates of one molecule at rest). No one has measured these coordinates: they are **synthetic conformer coordinates** (合成坐标). The way back, the **inverse map** from cloud to graph, is learned (学习逆映射) with an **E(n)-equivariant graph neural network** (EGNN), whose answer turns along when its input is turned. So graph generation becomes point cloud generation (图生成转化为点云生成), followed by a classification of nodes and edges. No vocabulary of fragments is needed, and no order of the atoms. With EDM, a diffusion model for clouds, as the generator, the whole is called **EDM-SyCo**.
#
# The notes ask **four questions** of a paper. The first is answered above; the second, what is new and where the paper introduces it, under *Figure*; the third, which experiments it has, and the fourth, what their form lets a reader see, under *On real input*.

# %% [markdown]
# ## Figure
#
# ### The pipeline, measured
#
# A real run of the code that this chapter builds, on caffeine. The weights are still random; shapes do not depend on them.

# %%
import math
from functools import cache

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from matplotlib.colors import ListedColormap
from rdkit import Chem

from fourfold.graph_dit.graphs import (
    BONDS,
    Codes,
    Vocabulary,
    decode_graphs,
    encode_smiles,
    one_hot,
    permute_atoms,
    to_codes,
    to_molecule,
    to_smiles,
)
from fourfold.graph_dit.noise import cosine_schedule
from fourfold.kit.canvas import COLOURS, canvas, show
from fourfold.kit.data import data_path
from fourfold.kit.molecules import (
    ATOM_COLOURS,
    BOND_COLOURS,
    draw_molecule,
    qm9_coordinates,
    qm9_table,
)
from fourfold.kit.notebook import shows_error
from fourfold.paper_writing.reading_cards import (
    Comparison,
    ReadingCard,
    compare,
    discuss,
    headline_results,
    open_questions,
    overcome_table,
    read_card,
)
from fourfold.syco.autoencoder import MoleculeAutoencoder
from fourfold.syco.diffusion import LatentDiffusion
from fourfold.syco.lifting import pair_mask, squared_distances, synthetic_coordinates

# %% [markdown]
# A molecule as a graph, by chapter 2; and lifted, by this chapter. Rings are written with alternating single and double bonds (`kekulize=True`). Hydrogens are left out of both.

# %%
EXAMPLES = {"caffeine": "Cn1c(=O)c2c(ncn2C)n(C)c1=O", "aspirin": "CC(=O)Oc1ccccc1C(=O)O"}
vocabulary = Vocabulary(("C", "N", "O", "F"), 14, kekulize=True)


def graph_and_cloud(smiles):
    """The codes (1, N) of a molecule without padding, and its synthetic coordinates (1, N, 3)."""
    codes, _, _ = encode_smiles([smiles], vocabulary)
    n = int((codes.atoms >= 0).sum())
    codes = Codes(codes.atoms[:, :n], codes.bonds[:, :n, :n])
    return codes, synthetic_coordinates(Chem.MolFromSmiles(smiles), seed=0)[None]


codes, x = graph_and_cloud(EXAMPLES["caffeine"])
graph = one_hot(codes, vocabulary)
print("atoms", tuple(graph.X.shape), " bonds", tuple(graph.E.shape), " coordinates", tuple(x.shape))

# %% [markdown]
# The run: encode to a latent cloud, add noise, let the diffusion model guess the noise, take it away, decode.

# %%
torch.manual_seed(0)
autoencoder = MoleculeAutoencoder(len(vocabulary.atoms), latent=4).eval()
model = LatentDiffusion(autoencoder, width=32, depth=2).eval()
t, chance = torch.tensor([0.3]), torch.Generator().manual_seed(0)
with torch.no_grad():
    cloud = autoencoder.encode(graph, x)
    model.measure(cloud)
    z = model.to_latent(cloud)
    alpha, sigma_t = model.edm.signal(t)
    noisy = alpha * z + sigma_t * model.edm.noise(cloud.mask, chance)
    guess = model.edm.predict_noise(noisy, t, cloud.mask)
    clean = (noisy - sigma_t * guess) / alpha
    scores = model.decode(clean, cloud.mask)
found = to_codes(scores)
h = cloud.h


# %%
BOND_MAP = ListedColormap([BOND_COLOURS[name] for name in BONDS])
TILT = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5)))[0]


def size(array):
    """The measured shape, without the batch axis."""
    return " × ".join(map(str, array.shape[1:]))


def flat_view(x):
    """A cloud (N, 3) seen along its thinnest direction, then tilted a little."""
    axes_of = torch.linalg.svd(x - x.mean(dim=0), full_matrices=True)[2]
    x, tilt = (x - x.mean(dim=0)) @ axes_of.T, math.radians(35)
    y = x[:, 1] * math.cos(tilt) + x[:, 2] * math.sin(tilt)
    return torch.stack([x[:, 0], y, x[:, 2] * math.cos(tilt) - x[:, 1] * math.sin(tilt)], dim=1)


def draw_cloud(axes, x, symbols=None, lines=(), point=26, view=True):
    """Points of a cloud, nearer ones larger; `lines` are (i, j, colour)."""
    x = flat_view(x) if view else x
    for i, j, colour in lines:
        axes.plot(*x[[i, j], :2].T, color=colour, linewidth=1.6, zorder=1)
    depth = x[:, 2] - x[:, 2].min()
    colours = [ATOM_COLOURS[s] for s in symbols] if symbols else COLOURS["flow"]
    sizes = point * (0.6 + depth / (depth.max() + 1e-6))
    axes.scatter(x[:, 0], x[:, 1], s=sizes, c=colours, edgecolors="white", linewidths=0.6, zorder=2)
    axes.margins(0.12)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[])


def draw_bonds(axes, bonds):
    axes.imshow(bonds, cmap=BOND_MAP, vmin=-0.5, vmax=len(BONDS) - 0.5, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def symbols_of(codes):
    return next(decode_graphs(codes, vocabulary))[0]


# %%
def place(axes, x, y, name, shape, colour="muted", height=0.9, width=1.5):
    """A part of the pipeline: an empty box with its name above and its measured shape below."""
    box = axes.inset_axes([x - width / 2, y - height / 2, width, height], transform=axes.transData)
    box.set(xticks=[], yticks=[])
    box.spines[:].set(visible=True, color=COLOURS[colour], linewidth=1.6)
    axes.text(x, y + height / 2 + 0.08, name, ha="center", va="bottom", fontsize=8)
    axes.text(x, y - height / 2 - 0.06, shape, ha="center", va="top", fontsize=7)
    return box


def said(box, text):
    box.text(0.5, 0.5, text, ha="center", va="center", fontsize=7.5, transform=box.transAxes)


def arrows(axes, ends):
    for *start, x, y in ends:
        style = {"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x, y), start, arrowprops=style)


# %% tags=["figure"]
def draw_pipeline():
    figure, axes = canvas(1, 1, 7.6, 3.9)
    symbols = symbols_of(codes)
    top, low = 2.6, 0.4
    atoms = place(axes, 0, top, "atoms X", size(graph.X), "first")
    atoms.imshow(graph.X[0].T, cmap="gray_r", aspect="auto", interpolation="nearest")
    bonds = place(axes, 0, low, "bonds E", size(graph.E), "first", width=0.85)
    draw_bonds(bonds, codes.bonds[0])
    lifted = place(axes, 2.2, top, "coordinates x", size(x), "second")
    draw_cloud(lifted, x[0], symbols, point=18)
    encoder = place(axes, 4.4, top, "encoder", "", "query")
    said(encoder, f"EGNN, {len(autoencoder.encoder.blocks)} blocks")
    features = place(axes, 4.4, low, "features h", size(h), "flow")
    features.imshow(h[0].T, cmap="gray_r", aspect="auto", interpolation="nearest")
    latent = place(axes, 6.6, top, "latent cloud z = [x | h]", size(z), "flow")
    draw_cloud(latent, z[0, :, :3], point=18)
    mixed = place(axes, 8.8, top, f"with noise, t = {t.item():.1f}", size(noisy), "flow")
    draw_cloud(mixed, noisy[0, :, :3], point=18, view=False)
    denoiser = place(axes, 8.8, low, "diffusion (EDM)", size(guess), "query")
    said(denoiser, f"EGNN, {len(model.edm.egnn.blocks)} blocks:\nguess the noise,\ntake it away")
    decoder = place(axes, 6.6, low, "decoder", "", "query")
    said(decoder, "two small networks,\nall atoms and all\npairs at once")
    for k, (name, part) in enumerate({"atoms": found.atoms, "bonds": found.bonds}.items()):
        shape = size(scores.X if k == 0 else scores.E)
        width = 0.7 if k else 1.5
        out = place(axes, 5.5 + 2.2 * k, -1.65, f"{name} found", shape, "first", 0.75, width)
        if k:
            draw_bonds(out, part[0])
        else:
            out.imshow(scores.X[0].T, cmap="gray_r", aspect="auto", interpolation="nearest")
    arrows(axes, [(0.77, top, 1.43, top), (0.45, low + 0.2, 1.8, top - 0.68)])
    axes.text(1.1, top + 0.08, "ETKDG", ha="center", fontsize=7)
    arrows(axes, [(2.97, top, 3.63, top), (0.45, low, 3.63, top - 0.35)])
    arrows(axes, [(4.4, top - 0.5, 4.4, low + 0.78), (5.17, top, 5.83, top)])
    arrows(axes, [(5.17, low + 0.2, 5.95, top - 0.68), (7.37, top, 8.03, top)])
    arrows(axes, [(8.8, top - 0.68, 8.8, low + 0.76), (8.03, low, 7.37, low)])
    arrows(axes, [(6.3, low - 0.5, 5.8, -0.98), (6.9, low - 0.5, 7.4, -0.98)])
    axes.text(
        0.6, -1.65, "random weights: what is\nfound here is nonsense", fontsize=8, va="center"
    )
    axes.set(xlim=(-0.9, 9.7), ylim=(-2.3, 3.5))
    axes.set_axis_off()
    return figure


show(
    draw_pipeline(),
    alt="SyCo as boxes: the atoms and the bonds of caffeine become coordinates by ETKDG; an encoder"
    " turns coordinates and bonds into a latent cloud of points with features; noise is added and a"
    " diffusion model takes it away; a decoder reads the atoms and the bonds off the cloud.",
)

# %% [markdown]
# Shapes are atoms first, then numbers; the batch is left out. Five parts, in the order of the notes:
#
# - **Synthetic coordinates** (合成坐标). ETKDG reads the graph and places the atoms. Nothing is learned. Lesson [2 Lifting](2_lifting.ipynb).
# - **Encoder.** An EGNN reads coordinates and bonds, and gives each point new coordinates $x$ and features $h$. What a point's neighbours are can thus be written into its features. Lesson [3 EGNN](3_egnn.ipynb) builds the layers, and [4 Autoencoder](4_autoencoder.ipynb) the encoder.
# - **Decoder.** Two small networks, one for the atom of a point, one for the bond of a pair of points. Encoder and decoder are trained together as a variational autoencoder. Lesson [4 Autoencoder](4_autoencoder.ipynb).
# - **Diffusion.** EDM learns to make latent clouds $z$ from noise. Lesson [5 Diffusion](5_diffusion.ipynb).
# - **Generating.** EDM makes a cloud; the decoder reads all atoms and all bonds off it, at once.
#
# Training runs from left to right and down; generating starts at the upper right, with noise alone.
#
# ### One molecule, two ways to write it


# %% tags=["figure"]
def draw_both():
    figure, grid = canvas(2, 5, 7.6, 3.2, width_ratios=(1.25, 1, 1, 1, 1))
    chance = torch.Generator().manual_seed(1)
    for row, (name, smiles) in zip(grid, EXAMPLES.items(), strict=True):
        codes, x = graph_and_cloud(smiles)
        n = x.shape[1]
        order = torch.randperm(n, generator=chance)
        draw_molecule(row[0], smiles, pixels=300)
        draw_bonds(row[1], codes.bonds[0])
        draw_bonds(row[2], permute_atoms(codes, order).bonds[0])
        seen = flat_view(x[0])
        draw_cloud(row[3], seen, symbols_of(codes), view=False)
        draw_cloud(row[4], seen @ TILT.T, symbols_of(codes), view=False)
        row[0].set_title(f"{name}, N = {n} atoms")
        row[1].set_title(f"bonds E, K = {len(BONDS)}")
        row[2].set_title("E, relabelled")
        row[3].set_title("coordinates x")
        row[4].set_title("x, turned")
        for axes in row[1:]:
            axes.spines[:].set(visible=True, color="0.8")
    return figure


show(
    draw_both(),
    alt="Caffeine and aspirin, each in five pictures: the drawn graph; a square of coloured cells for"
    " its bonds; the same square with rows and columns in another order, which looks quite different;"
    " its cloud of points; and the cloud turned.",
)

# %% [markdown]
# Blue cells are single bonds, orange cells double bonds, grey cells *no bond*; most cells are grey. Relabelling the atoms scrambles the square, and nothing about the molecule has changed. Turning a cloud changes every coordinate, and again the molecule is the same. Each way of writing has numbers that mean nothing on their own, and each model must be built so that it does not care: chapter 2's for the order of the atoms, this chapter's also for the direction of the axes.
#
# ### What is new, and in which part of the paper it is introduced
#
# The card of the paper answers the second question (创新点). *Against* says which earlier habit the thing replaces.

# %%
card = read_card(data_path("cards", "syco.yaml"))


def as_table(parts, *fields):
    """Chosen fields of the parts of a card, as a table."""
    rows = [[getattr(part, field) for field in fields] for part in parts]
    rows = [tuple(", ".join(v) if isinstance(v, tuple) else v or "" for v in row) for row in rows]
    return Comparison(tuple(field.replace("_", " ") for field in fields), tuple(rows))


print(card.question)
print(card.question_zh)
as_table(card.innovations, "name", "where_introduced", "against", "how")

# %%
print("parts read:", *card.parts_read)
for text in card.sources:
    print("-", text)

# %% [markdown]
# Read the second column with the sources in mind. For this card the abstract was read, and public reviews of the paper; the paper's body was not. All four things are named in the abstract. *Method* stands where the reviews describe how a part is built. The column cannot say whether the introduction or the related work argues for them.
#
# What is *not* new here:

# %%
Markdown("\n".join(f"- {text}" for text in card.not_new))

# %% [markdown]
# ## Formula
#
# ### A graph and a cloud
#
# A graph of $N$ atoms with one of $A$ types each, and one of $K$ bond types for each pair (*none* is one of them), in one-hot rows $X$ and one-hot bonds $E$. A cloud of the same atoms: coordinates $x$ in Å, and $F$ features $h$ for each point.
#
# $$ X \in \{0, 1\}^{N \times A}, \quad E \in \{0, 1\}^{N \times N \times K} \qquad \text{against} \qquad x \in \mathbb R^{N \times 3}, \quad h \in \mathbb R^{N \times F} \tag{1} $$
#
# So the graph has $N A + N^2 K$ numbers, and the cloud $N (3 + F)$. The first grows with the square of $N$.
#
# ### What does not matter
#
# Let $P$ be a matrix that puts the atoms in another order, one of $N!$. Let $R$ be a rotation or a reflection, $R' R = I$, and $b$ a shift. Then these are the same molecule:
#
# $$ (X, E) \sim (P X,\ P E P') \qquad \text{and} \qquad (x, h) \sim (x R' + \mathbf 1 b',\ h) \sim (P x, P h) \tag{2} $$
#
# A cloud has both symmetries: its points have no order, and space has no direction. What stays the same under $R$ and $b$ is the distance $d$ of two points:
#
# $$ d_{ij} = | x_i - x_j | \tag{3} $$
#
# Rotations, reflections and shifts of space are the group E(3). (The *n* of E(n) says that an EGNN would work in any number of dimensions.)
#
# ### There and back
#
# The lift $L$ is ETKDG; encoder and decoder are learned. The latent cloud $z$ holds coordinates and features:
#
# $$ x = L(X, E), \qquad z = [\, x' \mid h \,] = \mathrm{encode}(X, E, x), \qquad (\hat X, \hat E) = \mathrm{decode}(z) \tag{4} $$
#
# ($x'$ are the coordinates that the encoder gives, near those that it got.) A generator of clouds $p(z)$ then becomes a generator of graphs, and the second factor classifies nodes and edges:
#
# $$ p(X, E) = \int p(z) \prod_i p(X_i \mid z) \prod_{i < j} p(E_{ij} \mid z)\, \mathrm d z \tag{5} $$
#
# Given $z$, the bonds do not depend on one another. All that makes them fit together has to be in the cloud.
#
# ### What noise does
#
# On graphs, as in chapter 2: the bond of each pair is drawn anew with probability $p$, from how frequent the types are in the data, $m_E$. On clouds, Gaussian noise with standard deviation $\sigma$, in Å, on each coordinate:
#
# $$ q(E^p_{ij} \mid E_{ij}) = (1 - p)\, E_{ij} + p\, m_E, \qquad x^\sigma = x + \sigma \epsilon, \quad \epsilon \sim \mathcal N(0, I) \tag{6} $$
#
# To see what is left of the bonds in a noisy cloud without learning anything, read them by **nearest distance**: two atoms are bonded if they are nearer than $r$, and the bond is of the type $k$ whose mean length $\ell_k$ for these two elements is the nearest to their distance:
#
# $$ \hat E_{ij} = \begin{cases} \arg\min_k | d_{ij} - \ell_k | & d_{ij} < r \\ \text{none} & \text{otherwise} \end{cases} \tag{7} $$
#
# What survives is the share $S$ of molecules in which *every* pair is as it was. If a pair is wrong with probability $w$, whatever the others are, then for molecules of $N$ atoms
#
# $$ S = \mathrm{mean}\ \mathbf 1 [ \hat E = E ] \approx (1 - w)^{N (N - 1) / 2}, \qquad w = p\, \Big( 1 - \sum_k m_{E,k}^2 \Big) \text{ for the graph} \tag{8} $$
#
# (A bond that is drawn anew may come out as it was; hence the bracket.)
#
# ### Two scores
#
# The **Fréchet ChemNet distance** (FCD, $D$ here) measures how far generated molecules are, as a whole, from real ones; lesson [7 Metrics](../2_graph_dit/7_metrics.ipynb) of chapter 2 builds it. GuacaMol, the benchmark whose measures the paper takes, turns it into a score $v$. And a gain $g$ over another method with score $v_0$ is a ratio of scores:
#
# $$ v = e^{-0.2\, D}, \qquad g = \frac{v}{v_0} - 1 \tag{9} $$
#
# Why the exponential? A distance runs from 0 to infinity, and lower is better. The other measures of the benchmark run from 0 to 1, and higher is better. $e^{-0.2 D}$ does that, and the 0.2 decides what is told apart: distances of about five and less. The KL score is built alike. For each of several properties of a molecule, such as its weight or its logP, the Kullback–Leibler divergence (how far one distribution is from another) of generated from real molecules enters as $e^{-\mathrm{KL}}$, and the score is the mean.
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $N$ | atoms of a molecule | a count | `N` | N = |
# | $K$ | bond types, *none* among them | a count, 5 | `BONDS` | K = |
# | $X$ | atoms of the graph, one-hot | (N, A) | `X` | atoms X |
# | $E$ | bonds of the graph, one-hot | (N, N, K) | `E` | bonds E |
# | $x$ | coordinates of the points | (N, 3), Å | `x` | coordinates x |
# | $h$ | features of the points | (N, F) | `h` | features h |
# | $z$ | latent cloud, coordinates and features | (N, 3 + F) | `z` | latent cloud z |
# | $d$ | distance of two points | Å | `d` | distance d |
# | $p$ | probability that a bond is drawn anew | 0 … 1 | `p` | redrawn with p |
# | $\sigma$ | noise on each coordinate, standard deviation | Å | `sigma` | noise σ |
# | $S$ | share of molecules that survive | 0 … 1 | `survival` | share S |
# | $D$ | Fréchet ChemNet distance | 0 … ∞ | `D` | distance D |
# | $v$ | score made of that distance | 0 … 1 | `v` | score v |
# | $g$ | gain over another score | ratio | `g` | gain g |

# %% [markdown]
# ## Code
#
# ### How many numbers
#
# The sizes of equation 1, counted on the run above:

# %%
A, K, F = len(vocabulary.atoms), len(BONDS), h.shape[-1]


def graph_numbers(N):
    return N * A + N**2 * K


def cloud_numbers(N):
    return N * (3 + F)


assert graph.X.numel() + graph.E.numel() == graph_numbers(x.shape[1])
assert z.numel() == cloud_numbers(x.shape[1])
MANY = {"QM9": 9, "caffeine": 14, "ZINC250K": 38, "GuacaMol": 88}
for name, N in MANY.items():
    ratio = graph_numbers(N) / cloud_numbers(N)
    print(
        f"{name:>8}, {N:2d} atoms: graph {graph_numbers(N):6,}, cloud {cloud_numbers(N):4,}: × {ratio:.0f}"
    )

# %% [markdown]
# (The sizes of the two data sets are those of their largest molecules, as GDSS and DiGress state them.) The comparison has two catches. Most of the $N^2 K$ numbers say *no bond*: a list of the bonds would be short. And both kinds of network look at all pairs of atoms inside, so the smaller cloud does not make a layer cheaper. The reviews of the paper even name memory for larger molecules as a limit.

# %%
bonds, there = codes.bonds[0].triu(1), int((codes.bonds > 0).sum()) // 2
N = len(bonds)
print(
    f"caffeine: {there} bonds in {N * (N - 1) // 2} pairs; {math.factorial(N):,} orders of its atoms"
)

# %% [markdown]
# ### What does not matter, checked
#
# Relabel the atoms: other arrays, the same SMILES. Turn, mirror and shift the cloud: other arrays, the same distances.

# %%
order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
relabelled = permute_atoms(codes, order)
texts = [to_smiles(to_molecule(*next(decode_graphs(c, vocabulary)))) for c in (codes, relabelled)]
print("cells of E that changed:", int((relabelled.bonds != codes.bonds).sum()), "of", N * N)
print("SMILES:", *texts)
assert texts[0] == texts[1]

# %%
turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))[0]
R = -turn  # a rotation and a reflection
assert torch.allclose(R @ R.T, torch.eye(3), atol=1e-6)
moved = x @ R.T + torch.tensor([5.0, -3.0, 1.0])
d, d_moved = squared_distances(x).sqrt(), squared_distances(moved).sqrt()
print(
    f"det R = {torch.linalg.det(R):.0f}; coordinates differ by up to {(moved - x).abs().max():.1f} Å"
)
print(f"distances differ by up to {(d - d_moved).abs().max():.0e} Å")
assert (d - d_moved).abs().max() < 1e-4  # float32: squares near 100, each off by about 1e-5

# %% [markdown]
# The network of the figure, though its weights are random, decodes the moved cloud to the same scores. That is what *equivariant* buys: it holds by construction, not by training.

# %%
with torch.no_grad():
    one, other = (autoencoder.decode(autoencoder.encode(graph, place)) for place in (x, moved))
gap = max((one.X - other.X).abs().max(), (one.E - other.E).abs().max()).item()
print(f"scores of atoms and bonds differ by up to {gap:.0e}")
assert gap < 1e-4  # float32, through two blocks

# %% [markdown]
# ### Molecules to measure on
#
# 600 held-out molecules of QM9, and 3,000 others from which frequencies and lengths are taken. The course carries their coordinates, made as above; where ETKDG failed there is none, and the molecule is left out.

# %%
small = Vocabulary(("C", "N", "O", "F"), 9, kekulize=True)


def molecules(split, many):
    """SMILES, codes and coordinates of so many molecules, drawn from those that have coordinates."""
    table, x = qm9_table(split), torch.from_numpy(qm9_coordinates(split))
    rows = np.random.default_rng(0).permutation(len(table))[: many + many // 10]
    rows = rows[~x[rows].isnan().flatten(1).any(dim=1).numpy()][:many]
    smiles = table["smiles"].to_numpy()[rows].tolist()
    codes, kept, _ = encode_smiles(smiles, small)
    assert len(kept) == many
    return smiles, codes, x[rows]


_, known, known_x = molecules("train", 3000)
held_smiles, held, held_x = molecules("held_out", 600)
print(
    held.bonds.shape,
    held_x.shape,
    " atoms of a molecule:",
    (held.atoms >= 0).sum(1).unique().tolist(),
)

# %%
upper = torch.ones(9, 9, dtype=torch.bool).triu(1)


def real_pairs(codes):
    """The pairs i < j of atoms that are there."""
    return pair_mask(codes.atoms >= 0) & upper


m_E = torch.bincount(known.bonds[real_pairs(known)].long(), minlength=K).float()
m_E = m_E / m_E.sum()
print({name: round(share, 3) for name, share in zip(BONDS, m_E.tolist(), strict=True)})

# %% [markdown]
# ### Noise on a graph
#
# Equation 6, left, pair by pair: the naive version. `hit` says which pairs are drawn anew, `new` what comes out.


# %%
def redraw_loop(codes, hit, new):
    bonds = codes.bonds.clone()
    for m, atoms in enumerate(codes.atoms):
        n = int((atoms >= 0).sum())
        for i in range(n):
            for j in range(i + 1, n):
                if hit[m, i, j]:
                    bonds[m, i, j] = bonds[m, j, i] = new[m, i, j]
    return bonds


def redraw(codes, hit, new):
    """The same for all pairs at once."""
    chosen = hit & real_pairs(codes)
    bonds = torch.where(chosen, new, 0)
    return torch.where(chosen | chosen.mT, bonds + bonds.mT, codes.bonds)


def draws(codes, p, seed=0):
    """Which pairs are drawn anew, with probability p, and the types drawn from m_E."""
    chance, shape = torch.Generator().manual_seed(seed), codes.bonds.shape
    hit = torch.rand(shape, generator=chance) < p
    new = torch.multinomial(m_E, math.prod(shape), replacement=True, generator=chance)
    return hit, new.view(shape).to(torch.int8)


first = Codes(held.atoms[:40], held.bonds[:40])
assert torch.equal(redraw_loop(first, *draws(first, 0.3)), redraw(first, *draws(first, 0.3)))
print("by loop and at once: the same")

# %% [markdown]
# Equation 8, and what it predicts. (The molecules differ in size, so the prediction is a mean over them.)


# %%
def survival(found, codes):
    """S: the share of molecules in which every pair is as it was."""
    return (found == codes.bonds).flatten(1).all(dim=1).float().mean().item()


pairs_in = real_pairs(held).sum(dim=(1, 2))
for p in (0.02, 0.1, 0.3):
    w = p * (1 - m_E.square().sum())
    measured = [survival(redraw(held, *draws(held, p, seed)), held) for seed in range(5)]
    print(
        f"p = {p}: S {np.mean(measured):.3f} measured, {((1 - w) ** pairs_in).mean():.3f} by equation 8"
    )

# %% [markdown]
# ### Noise on a cloud, read by nearest distance
#
# First the distances themselves, of bonded and of other pairs:

# %%
known_d = squared_distances(known_x).sqrt()
kinds = [known_d[real_pairs(known) & (known.bonds == k)] for k in range(K)]
for name, lengths in zip(BONDS, kinds, strict=True):
    if len(lengths):
        low, high = np.quantile(lengths, (0.001, 0.999))
        print(f"{name:>8}: {len(lengths):6,} pairs, nearly all from {low:.2f} to {high:.2f} Å")


# %% tags=["figure"]
def draw_lengths():
    figure, (numbers, lengths) = canvas(1, 2, 7.4, 2.6, width_ratios=(1, 1.3))
    atoms = np.arange(2, 100)
    numbers.loglog(atoms, graph_numbers(atoms), color=COLOURS["first"], label="graph, N A + N² K")
    numbers.loglog(atoms, cloud_numbers(atoms), color=COLOURS["flow"], label="cloud, N (3 + F)")
    for name, many in MANY.items():
        numbers.axvline(many, color="0.85", zorder=0)
        numbers.text(many * 0.97, 8.5, name, fontsize=7, rotation=90, ha="right", va="bottom")
    numbers.set(xlabel="N atoms", ylabel="numbers", xlim=(4, 130), ylim=(8, 300_000))
    numbers.legend(loc="upper left", fontsize=7.5)
    edges = np.arange(1.1, 3.0, 0.02)
    for k, name in enumerate(BONDS):
        if len(kinds[k]):
            colour = "0.6" if name == "none" else BOND_COLOURS[name]
            lengths.hist(kinds[k], edges, color=colour, label=name, alpha=0.85)
    lengths.set(xlabel="distance d (Å)", ylabel="pairs", yscale="log", xlim=(1.1, 3.0))
    lengths.legend(ncols=4, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


show(
    draw_lengths(),
    alt="Left, the count of numbers against the atoms on logarithmic axes: the line of the graph is"
    " steeper than that of the cloud and lies above it. Right, histograms of distances: bonds of all"
    " kinds lie below 1.6 ångström and overlap one another, all other pairs lie beyond 1.8, with few between.",
)

# %% [markdown]
# Right: between bonded and other pairs there is nearly a gap.

# %%
between = ((known_d > 1.6) & (known_d < 1.8))[real_pairs(known)]
print(f"between 1.6 and 1.8 Å: {between.sum()} of {len(between):,} pairs")

# %% [markdown]
# *Whether* two atoms are bonded can be read off a clean cloud with a ruler. *Which* bond it is cannot: the lengths of single and double bonds overlap. Even for one pair of elements, such as carbon and nitrogen, they do. In an aromatic ring all bonds are about equally long, so that its alternation of single and double is not in the distances at all.
#
# The reader of equation 7. It gets the elements, which noise on coordinates leaves alone, and the mean lengths $\ell_k$ for each two elements:


# %%
def elements(codes):
    """The two elements of each pair, the smaller code first."""
    atoms = codes.atoms.long().clamp(min=0)
    ours, theirs = atoms[:, :, None], atoms[:, None]
    return torch.minimum(ours, theirs), torch.maximum(ours, theirs)


def mean_lengths(codes, x):
    """ℓ (A, A, K): mean length of each bond type between two elements; infinite if never seen."""
    low, high = elements(codes)
    d, pairs, lengths = (
        squared_distances(x).sqrt(),
        real_pairs(codes),
        torch.full((A, A, K), math.inf),
    )
    for a in range(A):
        for b in range(a, A):
            for k in range(1, K):
                seen = d[pairs & (low == a) & (high == b) & (codes.bonds == k)]
                lengths[a, b, k] = seen.mean() if len(seen) else math.inf
    return lengths


def read_bonds(x, codes, longest):
    """Ê of equation 7, for clouds x of the atoms of `codes`; longest is r in Å."""
    d = squared_distances(x).sqrt()
    nearest = (d[..., None] - lengths[elements(codes)]).abs().argmin(dim=-1)
    near = (d < longest) & pair_mask(codes.atoms >= 0)
    return torch.where(near, nearest, 0).to(torch.int8)


lengths = mean_lengths(known, known_x)
print(
    "C–C:",
    [f"{v:.2f}" for v in lengths[0, 0, 1:4]],
    " C–N:",
    [f"{v:.2f}" for v in lengths[0, 1, 1:4]],
)

# %% [markdown]
# A check on caffeine, and on ethane, ethene and ethyne, whose bonds are as far apart as bonds between carbons get:

# %%
for smiles in ("CC", "C=C", "C#C"):
    own, place = graph_and_cloud(smiles)
    assert torch.equal(read_bonds(place, own, 1.7), own.bonds)
read = read_bonds(x, codes, 1.7)
print("caffeine: bonded pairs all found:", torch.equal(read > 0, codes.bonds > 0))
print(
    "of its bonds, the right type:", f"{(read == codes.bonds)[codes.bonds > 0].float().mean():.0%}"
)

# %% [markdown]
# The radius $r$ may depend on the noise, as a denoiser knows the time it is at. It is chosen on the 3,000 other molecules.


# %%
RADII = torch.arange(1.5, 2.2, 0.05).tolist()


def blurred(codes, x, sigma, seed=0):
    """x + σ ε on every atom that is there (equation 6)."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return x + sigma * noise * (codes.atoms >= 0)[..., None]


@cache
def best_radius(sigma):
    """The r that leaves the most molecules with the bonded pairs they had."""
    d = squared_distances(blurred(known, known_x, sigma, seed=1)).sqrt()
    real, bonded = pair_mask(known.atoms >= 0), known.bonds > 0
    kept = [((d < r) & real == bonded).flatten(1).all(dim=1).float().mean() for r in RADII]
    return RADII[int(torch.stack(kept).argmax())]


def cloud_survival(sigma, seed=0):
    """S of the bonded pairs, S with the bond types, and the share of pairs that are right."""
    found = read_bonds(blurred(held, held_x, sigma, seed), held, best_radius(sigma))
    bonded = Codes(held.atoms, (held.bonds > 0).to(torch.int8))
    right = (found > 0) == (held.bonds > 0)
    return (
        survival((found > 0).to(torch.int8), bonded),
        survival(found, held),
        right[real_pairs(held)].float().mean().item(),
    )


for sigma in (0.0, 0.05, 0.1, 0.2):
    pairs_kept, types_kept, right = cloud_survival(sigma)
    print(
        f"σ = {sigma:.2f} Å, r = {best_radius(sigma):.2f} Å: S {pairs_kept:.2f}, with types {types_kept:.2f}; pairs right {right:.3f}"
    )

# %% [markdown]
# ## On real input
#
# ### Ten percent of the bonds, a tenth of an ångström
#
# Caffeine and aspirin, lifted live, with noise: one bond in ten of all pairs drawn anew, and 0.1 Å on every coordinate.

# %%
NOISE, SEED = {"p": 0.1, "sigma": 0.1}, 0


def torn_bonds(before, seed):
    """The bonds (n, n) of one molecule, each pair redrawn with the p of `NOISE`."""
    chance = torch.Generator().manual_seed(seed)
    hit = (torch.rand(before.shape, generator=chance) < NOISE["p"]).triu(1)
    new = torch.multinomial(m_E, before.numel(), True, generator=chance).view(before.shape)
    new = torch.where(hit, new, 0)
    return torch.where(hit | hit.T, new + new.T, before)


def changes(before, after):
    """The pairs that became bonded, were bonded and are no more, and changed their type."""
    made, lost = (before == 0) & (after > 0), (before > 0) & (after == 0)
    other = (before > 0) & (after > 0) & (before != after)
    return [int(each.triu(1).sum()) for each in (made, lost, other)]


def shaken_cloud(codes, x, seed):
    """The cloud (1, n, 3) with the σ of `NOISE` on it, and its bonds by nearest distance."""
    shaken = blurred(codes, x, NOISE["sigma"], seed)
    return shaken, read_bonds(shaken, codes, best_radius(NOISE["sigma"]))[0]


for name, smiles in EXAMPLES.items():
    codes, x = graph_and_cloud(smiles)
    before = codes.bonds[0]
    torn = [changes(before, torn_bonds(before, seed)) for seed in range(200)]
    read = [changes(before, shaken_cloud(codes, x, seed)[1]) for seed in range(200)]
    for way, counts in (("graph", torn), ("cloud", read)):
        made, lost, other = np.mean(counts, axis=0)
        print(
            f"{name:>8}, {way}: on average {made:.1f} made, {lost:.1f} lost, {other:.1f} of other type"
        )


# %% tags=["figure"]
def bond_lines(before, after):
    """Bonds that are as they were in grey, new ones in orange-red, changed types in yellow."""
    for i, j in ((before > 0) | (after > 0)).triu(1).nonzero().tolist():
        old, new = int(before[i, j]), int(after[i, j])
        if new:
            yield i, j, "0.45" if old == new else COLOURS["n11" if old else "bad"]


def draw_noisy():
    figure, grid = canvas(2, 4, 7.6, 3.7)
    for row, (name, smiles) in zip(grid, EXAMPLES.items(), strict=True):
        codes, x = graph_and_cloud(smiles)
        symbols, before = symbols_of(codes), codes.bonds[0]
        seen = flat_view(x[0])
        torn = torn_bonds(before, seed=SEED)
        shaken, read = shaken_cloud(codes, x, SEED)
        draw_cloud(row[0], seen, symbols, list(bond_lines(before, before)), view=False)
        draw_cloud(row[1], seen, symbols, list(bond_lines(before, torn)), view=False)
        shaken_seen = flat_view(torch.cat([x[0], shaken[0]]))[len(x[0]) :]
        draw_cloud(row[2], shaken_seen, symbols, view=False)
        draw_cloud(row[3], shaken_seen, symbols, list(bond_lines(before, read)), view=False)
        row[0].set_title(name)
        row[1].set_title(f"E redrawn with p = {NOISE['p']}")
        row[2].set_title(f"x with noise σ = {NOISE['sigma']} Å")
        row[3].set_title("its bonds by distance")
        for axes, after in ((row[1], torn), (row[3], read)):
            made, lost, other = changes(before, after)
            axes.set_xlabel(f"{made} made, {lost} lost, {other} of other type", fontsize=7.5)
        for axes in row:
            axes.spines[:].set(visible=True, color="0.85")
    return figure


show(
    draw_noisy(),
    alt="Caffeine and aspirin in four pictures each. With redrawn bonds, long lines cross the"
    " molecule and some bonds are missing. With noisy coordinates, the points are a little off; read"
    " by distance, nearly the same pairs are bonded, and several bonds have another type.",
)

# %% [markdown]
# (Grey: as it was. Red: a bond that was not there. Yellow: a bond of another type.) The graph has bonds right across the molecule, and has lost others, so that it falls to pieces. The cloud looks as before. A ruler finds its bonded pairs, and mistakes many of their types. (Not all of this is the noise's doing, as the next figure shows.) In bonds made and lost, these draws are near the averages above.
#
# ### Over 600 molecules

# %%
P = np.array([0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3])
SIGMAS = np.array([0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3])


def sound(bonds):
    """Whether each graph is a valid molecule in one piece."""
    texts = [
        to_smiles(to_molecule(*each)) for each in decode_graphs(Codes(held.atoms, bonds), small)
    ]
    return np.array([text is not None and "." not in text for text in texts])


torn = [redraw(held, *draws(held, p)) for p in P]
graph_S = [survival(bonds, held) for bonds in torn]
graph_sound = [sound(bonds) for bonds in torn]
cloud_S, typed_S, pairs_S = zip(*(cloud_survival(sigma) for sigma in SIGMAS), strict=True)


# %% tags=["figure"]
def draw_survival():
    figure, (left, right) = canvas(1, 2, 7.4, 2.7, sharey=True)
    left.plot(P, graph_S, "o-", color=COLOURS["first"], label="all bonds as they were, S")
    left.plot(
        P,
        np.mean(graph_sound, axis=1),
        "s--",
        color=COLOURS["muted"],
        label="a valid molecule, in one piece",
    )
    w = np.linspace(0, P[-1], 50)[:, None] * (1 - m_E.square().sum().item())
    left.plot(
        np.linspace(0, P[-1], 50),
        ((1 - w) ** pairs_in.numpy()).mean(axis=1),
        ":",
        color="black",
        label="S by equation 8",
    )
    left.set(xlabel="graph: each pair redrawn with p", ylabel="share S of 600 molecules")
    right.plot(SIGMAS, cloud_S, "o-", color=COLOURS["flow"], label="bonded pairs as they were, S")
    right.plot(SIGMAS, typed_S, "^-", color=COLOURS["query"], label="and all bond types, S")
    right.set(xlabel="cloud: noise σ (Å)", ylim=(-0.03, 1.05))
    for axes in (left, right):
        axes.legend(fontsize=7.5)
    return figure


show(
    draw_survival(),
    alt="Left, the share of graphs with all bonds as they were falls steeply with the probability of"
    " redrawing, along a dotted prediction, while the share of valid molecules falls more slowly."
    " Right, the share of clouds with the same bonded pairs stays at 1 up to 0.05 ångström and then"
    " falls; with bond types it falls at once.",
)

# %%
at = int(np.flatnonzero(P == 0.1)[0]), int(np.flatnonzero(SIGMAS == 0.1)[0])
same = (torn[at[0]] == held.bonds)[real_pairs(held)].float().mean().item()
kept = (torn[at[0]] == held.bonds).flatten(1).all(dim=1).numpy()
others = (graph_sound[at[0]] & ~kept).mean()
print(f"p = 0.1: {same:.0%} of the pairs as they were, {graph_S[at[0]]:.0%} of the molecules")
print(f"         {others:.0%} are other valid molecules in one piece")
print(
    f"σ = 0.1 Å: {pairs_S[at[1]]:.1%} of the pairs, {cloud_S[at[1]]:.0%} of the molecules; with types {typed_S[at[1]]:.0%}"
)
print(
    f"no noise: with types {typed_S[0]:.0%}; σ = 0.05 Å: {cloud_S[2]:.1%}, with types {typed_S[2]:.0%}"
)
assert (
    0.7 < typed_S[0] < 0.8
    and cloud_S[2] > 0.98
    and cloud_S[at[1]] > 2 * graph_S[at[0]]
    and typed_S[at[1]] < 0.1
)

# %% [markdown]
# Three things to read off.
#
# 1. **On a graph, small errors are not small.** Nearly all pairs are right, and most molecules are wrong, since one wrong pair is enough. Many of the wrong ones are valid molecules: nothing in them tells that they are not the one that was meant.
# 2. **On a cloud there is a margin.** Up to 0.05 Å the ruler finds the bonded pairs of practically every molecule. A generator of clouds need not hit the coordinates; it has to come near, and rounding does the rest. The gap in the histogram above is this margin.
# 3. **The bond types have no margin.** Even without noise a quarter of the molecules has a wrong one (the last exercise asks where), and at 0.1 Å hardly any molecule keeps them all. This is why the inverse must be *learned*: the encoder writes into the features $h$ what distances do not say, and the decoder reads it ([lesson 4](4_autoencoder.ipynb) measures how well).
#
# ### Is that a fair comparison?
#
# No: 10 % and 0.1 Å have nothing in common but a digit. The two panels show *how* each falls, and not which is tougher. One common scale is the clock of the two diffusion processes, from 0 (clean) to 1 (noise alone): how late can the bonded pairs still be read? On graphs, $1 - p$ at time $t$ is the kept share of chapter 2's schedule. On clouds, $\sigma$ is the noise of EDM's schedule, in units of the spread of the coordinates.

# %%
TIMES = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3]
_, kept_share = cosine_schedule(1000)
spread = held_x[held.atoms >= 0].square().mean().sqrt().item()
for t_now in TIMES:
    p = 1 - kept_share[round(1000 * t_now)].item()
    a, s = (float(v) for v in model.edm.signal(torch.tensor([t_now])))
    sigma = spread * s / a
    after = redraw(held, *draws(held, p))
    S = ((after > 0) == (held.bonds > 0)).flatten(1).all(dim=1).float().mean()
    print(
        f"t = {t_now:.2f}: graph p {p:.3f}, S {S:.2f}; cloud σ {sigma:.3f} Å, S {cloud_survival(sigma)[0]:.2f}"
    )

# %% [markdown]
# By this clock the two are nearly even at first, and then the *graph* can be read for longer: a cloud that is being generated shows its bonds only in the last tenth of the steps. So it is not toughness that speaks for clouds. What does, in our reading, are three other things. The numbers are continuous, so an almost right answer can be rounded to a right one, and a property's gradient can steer them. The numbers per atom do not grow with the molecule. And strong generators for clouds exist already. The paper's own argument is the last: existing 3D models can be applied as they are, without fragments and without an order of the atoms.
#
# ### Synthetic, and not unique
#
# ETKDG draws at random. Ten seeds give ten clouds of one graph; compare them by their distances, which do not depend on how a cloud is turned:

# %%
for name, smiles in EXAMPLES.items():
    own, _ = graph_and_cloud(smiles)
    clouds = torch.stack(
        [synthetic_coordinates(Chem.MolFromSmiles(smiles), seed) for seed in range(10)]
    )
    d = squared_distances(clouds).sqrt()
    gaps = [(d[i] - d[j]).abs().max().item() for i in range(10) for j in range(i)]
    bonded = [
        bool(((d[i] < 1.7) & pair_mask(own.atoms >= 0)[0] == (own.bonds[0] > 0)).all())
        for i in range(10)
    ]
    print(
        f"{name:>8}: the distance that differs most between two clouds, by {np.median(gaps):.2f} Å"
        f" (median), {max(gaps):.2f} Å (most); bonded pairs right in {sum(bonded)} of 10"
    )

# %% [markdown]
# Caffeine is stiff, aspirin has arms that turn. So the lift is one-to-many, and only the way back is a function: all ten clouds stand for one graph. Which of them the model sees is a choice. The course takes one, with a fixed seed.
#
# ### Which experiments
#
# The third question, from the card:

# %%
as_table(card.experiments, "question", "where", "data", "measures", "setup")

# %% [markdown]
# ZINC250K holds 250 thousand molecules as they are sold for drug discovery, GuacaMol more than a million that were made and tested. Of the abstract's three numbers, the first row carries two (more than 30 % on ZINC250K and 16 % on GuacaMol, over the best method that is not autoregressive), the second row the third (conditional generation better by up to 3.9 times). The last row is the ablation (消融实验): the reviews place it in an appendix.
#
# ### How results are shown
#
# The fourth question, and what each form lets a reader see:

# %%
as_table(card.presentation, "form", "place", "shows", "lets_see")

# %% [markdown]
# The course has the numbers of ZINC250K at second hand: another paper, DualDiff, prints them again *as reported by EDM-SyCo*. As the paper shows them, with a star, which is ours, at the best of a column:

# %%
published = headline_results("syco")
zinc = published[(published["data"] == "ZINC250K") & ~published["measure"].str.startswith("gain")]
MEASURES = ["FCD score", "KL score", "novelty", "uniqueness", "validity"]
printed = zinc.pivot(index="method", columns="measure", values="printed")
printed = printed.loc[zinc["method"].unique(), MEASURES]
wide = printed.astype(float)
starred = [
    tuple(
        "–" if pd.isna(text) else ("★ " if wide[c][m] == wide[c].max() else "") + text
        for c, text in row.items()
    )
    for m, row in printed.iterrows()
]
Comparison(("", *MEASURES), tuple((m, *row) for m, row in zip(printed.index, starred, strict=True)))

# %%
for measure in MEASURES:
    column = wide[measure].dropna()
    print(
        f"{measure:>10}: from {column.min():.2f} to {column.max():.2f}, {column.nunique()} different values"
    )
Comparison(
    ("data", "measure", "value", "unit", "source"),
    tuple(
        published[~published.index.isin(zinc.index)][
            ["data", "measure", "printed", "unit", "source"]
        ].itertuples(index=False, name=None)
    ),
)

# %% [markdown]
# - **What the table lets one see.** In novelty and uniqueness nearly all methods are at the ceiling: these columns decide nothing. Validity splits the methods in two: those that build with fragments or atom by atom have 1.00 by construction, those that make a whole graph at once have less. The FCD score spreads widest. In it EDM-SyCo is ahead of all, though of MoLeR by little.
# - **What it hides.** Validity stands in a column of its own. As GuacaMol defines it, the FCD is measured on *valid* molecules, so the twelve in a hundred graphs that EDM-SyCo throws away do not lower its first column. Only EDM-SyCo's numbers have an interval (± 0.01, of the FCD score and of validity). Time and size of the models are not there. And a score is a curve drawn over a distance, which the next figure undoes.

# %%
v = wide["FCD score"]
D = -np.log(v) / 0.2
g = v["EDM-SyCo"] / v - 1
print(
    pd.DataFrame({"score": v, "distance": D.round(2), "gain in %": (100 * g).round()}).to_string()
)


# %% tags=["figure"]
def draw_scores():
    figure, axes = canvas(1, 1, 6.6, 2.8)
    line = np.linspace(0, 16, 200)
    axes.plot(line, np.exp(-0.2 * line), color=COLOURS["muted"])
    shift = {
        "EDM-SyCo": (6, 7),
        "MoLeR": (8, -5),
        "MAGNet": (8, -5),
        "MiCaM": (7, -11),
        "GDSS": (4, 8),
    }
    for method in v.index:
        ours = method == "EDM-SyCo"
        axes.plot(D[method], v[method], "o", color=COLOURS["flow" if ours else "first"])
        axes.annotate(
            method,
            (D[method], v[method]),
            shift.get(method, (8, 2)),
            textcoords="offset points",
            fontsize=8,
        )
    digress = v["DiGress"]
    axes.hlines([digress, v["EDM-SyCo"]], 3.6, 5.2, color="0.8", linewidth=0.8, zorder=0)
    axes.annotate(
        "",
        (5.0, v["EDM-SyCo"]),
        (5.0, digress),
        arrowprops={"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0},
    )
    axes.text(
        5.2,
        (digress + v["EDM-SyCo"]) / 2,
        f"gain g = {g['DiGress']:.0%}",
        va="center",
        fontsize=8,
    )
    axes.set(xlabel="distance D (FCD)", ylabel="score v", xlim=(0, 17), ylim=(0, 1.02))
    return figure


show(
    draw_scores(),
    alt="A falling curve, the score against the distance, with seven methods on it: EDM-SyCo, MoLeR"
    " and MAGNet at small distances, MiCaM and DiGress near two, GDSS and GraphAF far to the right.",
)

# %% [markdown]
# The same numbers as distances. GDSS and GraphAF look alike in the score (0.10 and 0.05) and are more than three apart in the distance; MoLeR and EDM-SyCo, 0.02 apart in the score, are 0.12 apart in the distance. The scale magnifies the good end of a benchmark.
#
# ### Where "more than 30 %" comes from

# %%
ours, theirs = v["EDM-SyCo"], v["DiGress"]
low, high = (ours - 0.005) / (theirs + 0.005) - 1, (ours + 0.005) / (theirs - 0.005) - 1
print(
    f"{ours} / {theirs} = {1 + g['DiGress']:.3f}: {g['DiGress']:.1%}; before rounding, {low:.1%} to {high:.1%}"
)
print(
    f"the distance falls from {D['DiGress']:.2f} to {D['EDM-SyCo']:.2f}, by {1 - D['EDM-SyCo'] / D['DiGress']:.0%}"
)
print(f"over MAGNet the gain is {g['MAGNet']:.0%}, over MoLeR {g['MoLeR']:.0%}")
assert 0.30 < g["DiGress"] < 0.32 and low < 0.30

# %% [markdown]
# So the abstract's number fits a ratio of FCD *scores*, taken over DiGress, the better of the two in the table that make a whole graph at once. (That is our reading; the abstract names neither the measure nor the method.) Three cautions. With two digits the ratio is known to about four percentage points. A gain in scores is no gain in distance, which here is twice as large in percent. And *best method that is not autoregressive* decides a lot: over the best of all, MoLeR, which builds from fragments, the gain is small. For *16 % on GuacaMol* and *up to 3.9 times* we have no table to compute from.
#
# ### What is confirmed, and what is not
#
# The authors' repository announces code and holds none. So this chapter cannot do what chapter 2 did, read the release line by line. EDM has a release, and lesson 5 is checked against its numbers. For SyCo itself:
#
# | part | confirmed (abstract, reviews) | our choice, as the public sources do not say |
# | --- | --- | --- |
# | coordinates | ETKDG of RDKit, nothing learned | version 3, a fixed seed, one conformer, hydrogens added for it and then dropped, a second try from random coordinates |
# | encoder | an EGNN that updates features and coordinates | 2 blocks, bonds as attributes of pairs, 4 latent features |
# | decoder | two MLPs, for atom types and for bond types of pairs | what a pair's network reads: sum and difference of features, distance |
# | training | encoder and decoder as a variational autoencoder, then EDM on latent clouds | a fixed noise and a weak pull to the prior, as the release of GeoLDM has; the amount of noise is measured in [lesson 4](4_autoencoder.ipynb) |
# | sampling | EDM, then all bonds at once; no search for valid ones is reported | – |
# | control | guidance by a regressor or classifier, scaffold inpainting, and both together with nodes added | scale of the guidance, how inpainting keeps its parts in step |
# | symmetry | E(3), so chirality is not modelled | – |
# | cost | about ten days on one A100 for GuacaMol, where hyperparameters were not tuned | sizes that a CPU trains in minutes |
#
# > **Where the code leaves the paper.** Everything in the last column. It is modelled on GeoLDM, the closest work with public code, and each choice is named again where it is made. The hydrogens are our inference: the decoder of the paper has types of heavy atoms only. A number of this chapter is a number of *our* SyCo, and no verdict on the paper's.
#
# ### Related work
#
# As [Reading cards](../1_paper_writing/3_reading_cards.ipynb) teaches: first the list (罗列) of gaps, then a table by aspects. Three short cards stand beside the two of the course. EDM (arXiv 2203.17003) generates atoms in space by equivariant diffusion. GeoLDM does the same in the latent space of an autoencoder. DiGress diffuses on the graph, with discrete noise.

# %%
overcome_table([card])

# %%
ASPECTS = ("generates in", "noise", "bonds", "a condition enters")
INPUT = "in the input of the network"
PASSING = {
    "EDM": (2022, "the space of atoms", "continuous", "guessed from distances afterwards", INPUT),
    "GeoLDM": (
        2023,
        "a latent point cloud",
        "continuous",
        "guessed from distances afterwards",
        INPUT,
    ),
    "DiGress": (
        2022,
        "the graph",
        "discrete",
        "generated",
        "from outside, by a predictor's guidance",
    ),
}


def short_card(name, year, *values):
    aspects = dict(zip(ASPECTS, values, strict=True)) | {"family": "diffusion"}
    question = "Can molecules be generated by diffusion?"
    return ReadingCard(title=name, short_name=name, year=year, question=question, aspects=aspects)


def seen_here(card, space, bonds):
    """A card of the course under this table's aspects; what it has already is kept."""
    known = card.aspects
    values = (space, known["noise"], bonds, known["condition enters"])
    aspects = dict(zip(ASPECTS, values, strict=True)) | {"family": known["family"]}
    return card.model_copy(update={"aspects": aspects})


neighbours = [short_card(name, *values) for name, values in PASSING.items()]
graph_dit = read_card(data_path("cards", "graph_dit.yaml"))
neighbours.append(seen_here(graph_dit, "the graph", "generated"))
neighbours.append(seen_here(card, "a latent point cloud", "classified by a learned decoder"))
compare(neighbours, ASPECTS)

# %%
discuss(neighbours, ["family", *ASPECTS])

# %% [markdown]
# All use diffusion, so that says nothing. Read the third column of the table: the two models in space get their bonds from distances, which the measurements above show to be enough for bonded pairs and too little for types. (EDM and GeoLDM generate hydrogens as well, which helps to tell types.) The two models on graphs generate bonds and have no space. SyCo takes its generator from the first group and its output from the second. What it adds is the pair of maps between them.
#
# A hedged word on conditions: guidance from outside suits continuous clouds, whose coordinates have gradients; a condition inside the network, as in Graph DiT, needs labels in training. The cards do not settle which is better.
#
# ### Words, limits, open questions

# %%
as_table(card.vocabulary, "term", "chinese", "meaning")

# %%
print(*(f"- {text}" for text in card.limitations), sep="\n")
print("open questions of the card:", open_questions(card) or "none")

# %% [markdown]
# ## Exercises
#
# Nothing of this lesson goes into the library, so there are no blanks to fill. The exercises are to predict, to vary, to find a mistake and to measure. The cell below each one computes its answer.
#
# | exercise | minutes | difficulty |
# | --- | --- | --- |
# | Predict: ninety-nine percent | 5 | ●○○ |
# | Vary: other disturbances of a cloud | 10 | ●●○ |
# | Find the bug: noise that is twice as strong | 5 | ●●○ |
# | Measure: where the types go wrong | 10 | ●●● |
#
# **Predict.** A decoder gets each pair of atoms right with probability 0.99. What share of molecules comes back exactly, for 9 atoms (QM9), 14 (caffeine) and 38 (the largest of ZINC250K)? How good must it be at a pair, to get nine in ten of the last?
#
# <details><summary>Hint</summary>
#
# Equation 8. How many pairs do $N$ atoms have?
#
# </details>
#
# <details><summary>Answer</summary>
#
# About 70 %, 40 %, and less than one in a thousand: the exponent grows with the square of $N$. For nine in ten of the largest a pair may fail once in nearly 7,000 times. That holds where errors are independent, and real errors come together; but it says why *exact reconstruction* is the measure to watch, and not the share of pairs. It also says why a model that is good on QM9 may fail on ZINC250K.
#
# </details>

# %%
for N in (9, 14, 38):
    pairs = N * (N - 1) // 2
    print(f"N = {N:2d}: {pairs:3d} pairs, {0.99**pairs:.4f} of the molecules")
print(f"needed for 0.9 at N = 38: wrong once in {1 / (1 - 0.9 ** (1 / pairs)):,.0f} pairs")

# %% [markdown]
# **Vary.** Instead of noise on each coordinate, (a) turn and shift the whole cloud by 5 Å, (b) mirror it, (c) make it 10 % larger, (d) 10 % smaller, (e) give all atoms of a molecule one common random shift. Which of them change the bonded pairs by distance? Which the types?
#
# <details><summary>Hint</summary>
#
# Equation 7 reads distances and nothing else. Where are the edges of the gap, relative to the longest bond?
#
# </details>
#
# <details><summary>Answer</summary>
#
# (a), (b) and (e) change no distance, so nothing at all. Making the cloud larger or smaller by a tenth moves a bond of 1.5 Å by 0.15 Å: at a fixed $r$ of 1.7 Å the pairs mostly survive. Of the types much is lost: a longer double bond looks like a single one, and a shorter single bond like a double one, of which hardly any molecule is free. A symmetry costs nothing; a change of scale is not one of E(3).
#
# </details>

# %%
atoms_there = (held.atoms >= 0)[..., None]
common = 5 * torch.randn(len(held_x), 1, 3, generator=torch.Generator().manual_seed(0))
disturbed = {
    "as it is": held_x,
    "turned and shifted": held_x @ turn.T + 5,
    "mirrored": held_x * torch.tensor([-1.0, 1.0, 1.0]),
    "10 % larger": 1.1 * held_x,
    "10 % smaller": 0.9 * held_x,
    "one shift for all": held_x + common,
}
for name, place in disturbed.items():
    read = read_bonds(place * atoms_there, held, 1.7)
    kept = ((read > 0) == (held.bonds > 0)).flatten(1).all(dim=1).float().mean()
    print(f"{name:>18}: pairs {kept:.2f}, types {survival(read, held):.2f}")

# %% [markdown]
# **Find the bug.** A colleague's noise on graphs harms more than equation 8 says. What is wrong?


# %%
def redraw_of_a_colleague(codes, hit, new):
    real = pair_mask(codes.atoms >= 0)
    return torch.where(hit & real, new, codes.bonds)


p = 0.1
wrong = redraw_of_a_colleague(held, *draws(held, p))
print(f"S: {survival(wrong, held):.2f}; ours {survival(redraw(held, *draws(held, p)), held):.2f}")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Compare `wrong` with its own transpose.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The two cells of a pair, $(i, j)$ and $(j, i)$, are drawn separately. Then each pair has two chances to be hit, which squares the survival, and the result is no graph: $E$ must be symmetric. Lesson 4's decoder reads a pair in a way that does not change when its atoms are swapped, so this cannot happen to it.
#
# </details>

# %%
lopsided = (wrong != wrong.mT).flatten(1).any(dim=1).float().mean()
right = [survival(redraw(held, *draws(held, q)), held) for q in (p, 1 - (1 - p) ** 2)]
print(
    f"graphs that are not symmetric: {lopsided:.0%}; ours at p = {p}: {right[0]:.2f}, at {1 - (1 - p) ** 2:.2f}: {right[1]:.2f}"
)
assert lopsided > 0.5

# %% [markdown]
# **Measure.** Without any noise some bond types are read wrongly. Between which elements, and what share of the wrong ones lies in aromatic rings?
#
# <details><summary>Hint</summary>
#
# `read_bonds(held_x, held, 1.7)` against `held.bonds`, where both are above 0. RDKit knows which bonds are aromatic: `Chem.MolFromSmiles(to_smiles(…))` and `bond.GetIsAromatic()`, or count the molecules with `atom.GetIsAromatic()`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Mostly between carbon and nitrogen, then between carbons; and far more than half of them are in aromatic rings. There the single and the double bond of the graph are a way of writing, and the cloud does not know which of two alike bonds was written as double. A learned encoder does, since it reads the written bonds.
#
# </details>

# %%
read = read_bonds(held_x, held, 1.7)
wrong = real_pairs(held) & (read > 0) & (held.bonds > 0) & (read != held.bonds)
low, high = elements(held)
names = pd.Series(
    [f"{small.atoms[a]}–{small.atoms[b]}" for a, b in zip(low[wrong], high[wrong], strict=True)]
)
in_ring = [
    Chem.MolFromSmiles(held_smiles[m]).GetBondBetweenAtoms(i, j).GetIsAromatic()
    for m, i, j in wrong.nonzero().tolist()
]
bonds_all = int(((held.bonds > 0) & real_pairs(held)).sum())
print(f"{len(names)} of {bonds_all} bonds wrong:", names.value_counts().to_dict())
print(f"in aromatic rings: {np.mean(in_ring):.0%}")
assert np.mean(in_ring) > 0.7

# %% [markdown]
# ## What breaks
#
# ### Left hand, right hand
#
# Alanine, an amino acid, comes in two forms that are mirror images. This is **chirality** (手性): four different neighbours around one atom, in two arrangements. What do graph and cloud know of it?

# %%
HANDS = {"left": "C[C@H](N)C(=O)O", "right": "C[C@@H](N)C(=O)O"}


def handedness(x):
    """The sign of the volume that three neighbours of atom 1 span."""
    return int(torch.linalg.det(x[[0, 2, 3]] - x[1]).sign())


hands = {name: graph_and_cloud(smiles) for name, smiles in HANDS.items()}
(left, left_x), (right, right_x) = hands.values()
print(
    "the same graph:", torch.equal(left.bonds, right.bonds) and torch.equal(left.atoms, right.atoms)
)
print("sign of the volume:", {name: handedness(place[0]) for name, (_, place) in hands.items()})
mirror = left_x * torch.tensor([-1.0, 1.0, 1.0])
gap = (squared_distances(mirror) - squared_distances(left_x)).abs().max()
print(f"mirrored, sign {handedness(mirror[0])}; squared distances differ by {gap:.0e} Å²")
with torch.no_grad():
    own = one_hot(left, vocabulary)
    told, mirrored = (autoencoder.encode(own, place) for place in (left_x, mirror))
print(f"features h of both: differ by {(told.h - mirrored.h).abs().max():.0e}")
assert handedness(left_x[0]) == -handedness(right_x[0]) and (told.h - mirrored.h).abs().max() < 1e-5

# %% [markdown]
# The tensors of chapter 2's graph never had it: both hands have the same $X$ and $E$. ETKDG reads the SMILES and puts it into the cloud, as the sign of a volume. The network then does not see it, whatever its weights, since all that it computes for the features is the same for a cloud and its mirror image: E(3) includes reflections. For a drug the two hands can differ as much as help and harm. A network that respects rotations and not reflections, SE(3), could keep them apart; this one cannot.
#
# ### A graph that has no cloud
#
# The lift can fail. Of the course's molecules ETKDG places all but a few; those are strained cages, valid as graphs. A generator that learns from clouds never sees them:

# %%
missing = np.isnan(qm9_coordinates()).any(axis=(1, 2))
print(f"{missing.sum()} of {len(missing)} molecules have no conformer: {missing.mean():.1%}")
cage = qm9_table()["smiles"][missing].iloc[0]
print(cage)
with shows_error(ValueError):
    synthetic_coordinates(Chem.MolFromSmiles(cage))

# %% [markdown]
# ### Other bad input
#
# An element that the vocabulary lacks is kept apart, with the reason; a paper without results, an aspect that no card has, and two cards of one paper are refused.

# %%
print(encode_smiles(["CCO", "CCl"], vocabulary)[2])
with shows_error(FileNotFoundError):
    headline_results("sycoo")
with shows_error(ValueError):
    compare(neighbours, ["bond"])
with shows_error(ValueError):
    discuss([card, card])
with shows_error(ValueError):
    synthetic_coordinates(Chem.MolFromSmiles("CCO"), seed=-1)

# %% [markdown]
# ## Recap
#
# - A molecule can be written as a graph, discrete and without space, or as a cloud, continuous and without bonds. SyCo makes up coordinates for the graph, generates clouds, and learns the way back.
# - On a graph one wrong pair is another molecule. A cloud has a margin for *which* atoms are bonded and none for *how*; so the inverse map must be learned.
# - The abstract's *more than 30 %* fits a ratio of scores $e^{-0.2\, D}$, over DiGress; what the score hides, the distance shows. No code was released, so this chapter says of each part whether it is the paper's or ours.
#
# ### What the notes ask
#
# | idea of the notes | lesson |
# | --- | --- |
# | key question: molecular graph generation with 3D generative models | this one |
# | graph → Euclidean point cloud (欧几里得点云) by synthetic conformer coordinates (合成坐标) | [2 Lifting](2_lifting.ipynb) |
# | an E(n)-equivariant network, EGNN | [3 EGNN](3_egnn.ipynb) |
# | learn the inverse map (学习逆映射) | [4 Autoencoder](4_autoencoder.ipynb) |
# | graph generation becomes point cloud generation (图生成转化为点云生成) | [5 Diffusion](5_diffusion.ipynb) |
# | conditions, a scaffold, a molecule to improve | [6 Control](6_control.ipynb) |
# | training in two stages | [7 Learning](7_learning.ipynb) |
# | several data sets, roles of hyperparameters, ablation, limitations | [8 Experiments](8_experiments.ipynb) |
#
# Next: [2 Lifting](2_lifting.ipynb) lifts thousands of molecules, and counts what is lost on the way.
