# ---
# jupyter:
#   fourfold:
#     accelerator: helpful
#     level: advanced
#     minutes: 60
#     needs:
#     - 2_graph_dit/8_learning
#     - 3_syco/4_autoencoder
#     - 3_syco/5_diffusion
#     - 3_syco/6_control
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learning: two stages and a guide
#
# **After this lesson you can** train the autoencoder, the diffusion on its clouds and the guide, one after the other, on any list of SMILES, and ask what comes out for new molecules, for molecules around a scaffold, and for a better version of one that you have.
#
# *Before this:* [Autoencoder](4_autoencoder.ipynb) (`4_autoencoder`), [Diffusion](5_diffusion.ipynb) (`5_diffusion`) and [Control](6_control.ipynb) (`6_control`), the three parts that learn here. The chapter before has the same lesson for its model, [learning](../2_graph_dit/8_learning.ipynb) (`8_learning`); the scales of properties and hidden values are explained there. *Time:* 60 minutes, and 25 for the blanks.

# %% [markdown]
# ## Words
#
# Three networks stand, and nobody has trained them on all of the data yet. They learn in **stages** (阶段), one after the other. First the autoencoder learns to write a molecule into a cloud and to read it back. Then it is **frozen** (冻结): its weights stay as they are from there on. The diffusion learns to make clouds like those that the frozen encoder writes. Last, the guide learns to read properties off noisy clouds.
#
# The order is not free. A diffusion that learns on clouds needs clouds that stay where they are: were the encoder still learning, the target would move under it. And an encoder that is allowed to please the diffusion has an easy way out. It writes every molecule into the same cloud, which is easy to make and worth nothing.
#
# Frozen has a second use. What a frozen encoder writes for a molecule is the same in every step, so the **latent points** (隐点) $z_0$ of all molecules are computed once and kept. The second and third stage never see a graph.
#
# What comes out is judged by five scores, those of **GuacaMol**, a benchmark of generators of molecules (Brown et al. 2019): are the molecules valid, different, new, and spread like the data? The last question is asked twice, once about ten descriptors that chemists can name, and once about what a network sees.
#
# One object holds all of it, with three verbs: `fit` for the stages, `generate` for new molecules, freely, towards a property or around a scaffold, and `optimise` for a better version of one molecule.

# %% [markdown]
# ## Figure
#
# ### Three stages
#
# The figure shows a training that happens here: a small generator learns the molecules of QM9 with at most seven heavy atoms, in a quarter of a minute. `SyCo` is what this lesson builds.

# %%
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from rdkit import Chem, rdBase
from rdkit.Chem import QED, Descriptors, rdMolDescriptors
from rdkit.Chem.Draw import rdMolDraw2D
from scipy.stats import entropy, gaussian_kde
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fourfold.graph_dit.graphs import (
    Codes,
    Graphs,
    Problem,
    Vocabulary,
    encode_smiles,
    find_vocabulary,
    one_hot,
    parse_smiles,
    to_codes,
    to_smiles,
)
from fourfold.graph_dit.learning import Numeric, PropertySet, draw_sizes
from fourfold.graph_dit.metrics import (
    chemnet_distance,
    logp,
    novelty,
    property_error,
    tanimoto_matrix,
    tpsa,
    uniqueness,
)
from fourfold.graph_dit.molecules import graphs_to_smiles, validity
from fourfold.graph_dit.noise import graph_statistics
from fourfold.kit.arguments import listed, whole_number
from fourfold.kit.canvas import COLOURS, canvas, show
from fourfold.kit.checkpoints import (
    ModelCard,
    load_checkpoint,
    read_card,
    read_settings,
    save_checkpoint,
)
from fourfold.kit.cloud_picture import draw_cloud
from fourfold.kit.data import data_path
from fourfold.kit.molecules import (
    draw_molecule,
    molecule_grid,
    nci_smiles,
    qm9_coordinates,
    qm9_table,
)
from fourfold.kit.notebook import shows_error
from fourfold.kit.scale import at_scale, device, hardware, seed_everything
from fourfold.kit.training import StepRecord, Trained, train
from fourfold.syco.autoencoder import Cloud, MoleculeAutoencoder, exact_rate
from fourfold.syco.control import NoisyRegressor, inpaint, property_guide, regressor_loss
from fourfold.syco.diffusion import LatentDiffusion, sizes_to_mask
from fourfold.syco.learning import SyCo, load_syco
from fourfold.syco.lifting import Lifted, lift

table, x = qm9_table("train"), torch.from_numpy(qm9_coordinates("train"))
few = (table["smiles"].str.count("[A-GI-Za-z]") <= 7).to_numpy()
few = few & x.isfinite().flatten(1).all(dim=1).numpy()  # ETKDG found a conformer
smiles, x = table["smiles"][few].tolist(), x[few, :7]
print(f"{len(smiles)} molecules, such as {', '.join(smiles[200:204])}")

# %%
SMALL = {"encoder_width": 32, "width": 48, "depth": 3, "guide_width": 32, "guide_depth": 2}
LITTLE = {"batch": 32, "learning_rate": 3e-3, "progress": False}
student = SyCo(["logP", "TPSA"], **SMALL, steps_of_noise=500)
student.fit(
    smiles,
    coordinates=x,
    autoencoder_steps=at_scale(cpu=120, gpu=1000),
    diffusion_steps=at_scale(cpu=280, gpu=3000),
    guide_steps=at_scale(cpu=80, gpu=1000),
    **LITTLE,
)
for name, records in student.records.items():
    print(f"{name:>11}: {len(records)} steps, {records[-1].seconds:.1f} s")


# %%
def size(module):
    """How many numbers a part has."""
    return f"{sum(p.numel() for p in module.parameters()):,} numbers"


def shaped(tensor):
    return "×".join(map(str, tensor.shape))


latent = student.parts["diffusion"]
coder, guide = latent.autoencoder, student.parts["guide"]
graphs = one_hot(encode_smiles(smiles, student.vocabulary)[0], student.vocabulary)
graphs = Graphs(*(part.to(device()) for part in graphs))
with torch.no_grad():
    clouds = coder.encode(graphs, x.to(device()))
    z_0, half = latent.to_latent(clouds), torch.full((len(smiles),), 0.5, device=device())
    z_t = latent.edm.diffuse(z_0, half, latent.edm.noise(clouds.mask))
    said = guide(z_t, half, clouds.mask)
graph_shape = f"X {shaped(graphs.X)}, E {shaped(graphs.E)}\nx {shaped(x)}"

# %% tags=["figure"]
INKS = {"learns": COLOURS["first"], "frozen": "#c9c9c9", "data": "none"}
STAGES = {
    "1 autoencoder": [
        (f"molecules: {graph_shape}", "data"),
        (f"encoder: {size(coder.encoder)}", "learns"),
        (f"cloud and its noise: {shaped(torch.cat([clouds.x, clouds.h], -1))}", "data"),
        (f"decoder: {size(coder.decoder)}", "learns"),
        ("atoms and bonds", "data"),
    ],
    "2 diffusion": [
        (f"molecules: {graph_shape}", "data"),
        ("encoder, once", "frozen"),
        (f"latent points z_0: {shaped(z_0)}", "data"),
        (f"EDM: {size(latent.edm)}", "learns"),
        (f"guessed noise: {shaped(z_t)}", "data"),
    ],
    "3 guide": [
        (f"molecules: {graph_shape}", "data"),
        ("encoder, once", "frozen"),
        (f"noisy z_0: {shaped(z_t)}", "data"),
        (f"guide: {size(guide)}", "learns"),
        (f"properties y: {shaped(said)}", "data"),
    ],
}
LOSSES = {"autoencoder": "loss L_φ", "diffusion": "loss L_θ", "guide": "loss L_ψ"}


def draw_stage(axes, title, nodes):
    """A column of what goes in and out, with a box for each network."""
    for row, (text, kind) in enumerate(nodes):
        y = len(nodes) - 1 - row
        if kind != "data":
            style = {"facecolor": INKS[kind], "edgecolor": "none", "boxstyle": "round,pad=0.02"}
            axes.add_patch(FancyBboxPatch((0.06, y - 0.26), 0.88, 0.52, **style))
        ink = "white" if kind == "learns" else "black"
        axes.text(0.5, y, text, ha="center", va="center", size=7.5, color=ink)
        if row < len(nodes) - 1:
            arrow = {"arrowstyle": "-|>", "color": "0.4", "linewidth": 0.8}
            axes.annotate("", (0.5, y - 0.7), (0.5, y - 0.32), arrowprops=arrow)
    axes.set(xlim=(0, 1), ylim=(-0.5, len(nodes) - 0.4), title=f"stage {title}")
    axes.set_axis_off()


def draw_stages():
    figure, rows = canvas(2, 3, 7.6, 4.6, height_ratios=(1.9, 1))
    for axes, (title, nodes) in zip(rows[0], STAGES.items(), strict=True):
        draw_stage(axes, title, nodes)
    for axes, (name, records) in zip(rows[1], student.records.items(), strict=True):
        losses = np.array([record.loss for record in records])
        smooth = np.convolve(losses, np.ones(10) / 10, "valid")
        axes.plot(losses, color=COLOURS["muted"], linewidth=0.5)
        axes.plot(np.arange(len(smooth)) + 9, smooth, color=COLOURS["first"])
        axes.set(xlabel="step", ylabel=LOSSES[name], ylim=(0, np.quantile(losses, 0.98)))
    return figure


show(
    draw_stages(),
    alt="Three columns. Stage 1 trains encoder and decoder; in stages 2 and 3 the encoder is grey "
    "and runs once, and the diffusion, then the guide, learn from its points. Below each, its loss "
    "falls",
)

# %% [markdown]
# Blue learns, grey is frozen. The shapes are of all molecules at once, measured in this run. The autoencoder is done within a hundred steps, since a cloud holds its graph nearly as it is. The diffusion has the hard task, and most of the steps. The guide's loss ends well above 0: it is asked about clouds of every time, and late ones have lost what they were.

# %% [markdown]
# ## Formula
#
# **One descriptor.** A descriptor, such as the number of rings, has a distribution in the data, the reference, and another in what was made. Let $p_b$ be the share of the reference in bin $b$, and $q_b$ the share of what was made. The **Kullback-Leibler divergence** (KL 散度) $\mathrm{KL}_k$ of descriptor $k$ counts the nats that are lost when $q$ is taken for $p$:
#
# $$ \mathrm{KL}_k = \sum_b p_b \log \frac{p_b}{q_b} \tag{1} $$
#
# Descriptors that count, five of them, have ten bins. Those that measure, four, have a density from Gaussian kernels, read at 1,000 places. The tenth is the similarity of each molecule to the nearest one in its own list.
#
# **All ten.** The KL score $S_{\mathrm{KL}}$ is a mean over the $K = 10$ descriptors, each brought between 0 and 1:
#
# $$ S_{\mathrm{KL}} = \frac{1}{K} \sum_{k=1}^{K} e^{-\mathrm{KL}_k} \tag{2} $$
#
# **What a network sees.** The Fréchet ChemNet distance $D$ of [chapter 2](../2_graph_dit/7_metrics.ipynb) becomes a score $S_{\mathrm{FCD}}$ in the same way:
#
# $$ S_{\mathrm{FCD}} = e^{-0.2\, D} \tag{3} $$
#
# **Valid, different, new.** Of $M$ molecules that were asked for, $m$ are valid, $u$ of these are different, and $v$ of the different ones are not in the training data:
#
# $$ \text{validity} = \frac{m}{M}, \qquad \text{uniqueness} = \frac{u}{m}, \qquad \text{novelty} = \frac{v}{u} \tag{4} $$
#
# **The stages.** With the weights $\phi$ of the autoencoder, $\theta$ of the diffusion and $\psi$ of the guide, each stage minimises a loss of its own and takes what came before as given. The losses are those of the lessons before: $L_\phi$ the loss of [graphs that come back](4_autoencoder.ipynb), $L_\theta$ the loss of [guessed noise](5_diffusion.ipynb), $L_\psi$ the loss of [guessed properties](6_control.ipynb). The latent points $z_0$ are means, not draws, of the encoder, brought to deviation 1; $y$ are the standardised properties.
#
# $$ \hat\phi = \arg\min_\phi L_\phi(\text{graph}, x), \quad z_0 = \text{scaled encoder}_{\hat\phi}(\text{graph}, x), \quad \hat\theta = \arg\min_\theta L_\theta(z_0), \quad \hat\psi = \arg\min_\psi L_\psi(z_0, y) \tag{5} $$
#
# **Better and similar.** Of what the walk from a molecule $a$ makes, `optimise` returns the molecules $a'$ whose property $c$ is larger, and whose Tanimoto similarity $\tau$ to $a$ is at least the asked one, $\delta$:
#
# $$ \{\, a' :\; c(a') > c(a), \;\; \tau(a', a) \ge \delta \,\} \tag{6} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $z_0$ | latent points, of all molecules | (M, N, 3 + F) | `_latents` | latent points z_0 |
# | $L_\phi$ | loss of the autoencoder | none | `_autoencoder_loss` | loss L_φ |
# | $L_\theta$ | loss of the diffusion | none | `_diffusion_loss` | loss L_θ |
# | $L_\psi$ | loss of the guide | none | `_guide_loss` | loss L_ψ |
# | $y$ | standardised properties | (M, P) | `y` | properties y |
# | $p_b$ | share of the reference in a bin | none | `p` | reference p_b |
# | $q_b$ | share of what was made in a bin | none | `q` | made q_b |
# | $\mathrm{KL}_k$ | divergence of one descriptor | nats | `count_divergence` | KL_k |
# | $S_{\mathrm{KL}}$ | KL score | 0 to 1 | `kl_score` | S_KL |
# | $D$ | Fréchet ChemNet distance | none | `distance` | D |
# | $S_{\mathrm{FCD}}$ | its score | 0 to 1 | `fcd_score` | S_FCD |
# | $\delta$ | the least similarity | 0 to 1 | `similarity` | δ |
#
# Letters of shapes: $M$ molecules, $N$ the most atoms, $F$ features of a point, $P$ properties.
#
# > **Where the code leaves the paper.** The paper trains in two stages, autoencoder first, and controls the second by a regressor's guidance, by keeping a scaffold, and by both with nodes added. It reports GuacaMol's five scores. That much its abstract and its public reviews say; its authors have released no code. Ours are: all sizes and numbers of steps, the guide as a third stage on the frozen clouds, means of the encoder in place of draws as data of the diffusion, and that `optimise` blurs the whole molecule and keeps a random part of its atoms in each try. GuacaMol's own scores take 10,000 molecules of each side; the lesson takes fewer, which makes the last two scores smaller.

# %% [markdown]
# ## Code
#
# ### One descriptor's divergence
#
# The naive version: count, divide, and sum over the bins of the reference. A bin where nothing was made would cost infinitely much, so each bin has at least $10^{-10}$.


# %%
def divergence_loop(reference, made, bins=10):
    """Equation 1 for a descriptor that counts."""
    low, high = min(reference), max(reference)
    total = 0.0
    for b in range(bins):
        start, end = low + b * (high - low) / bins, low + (b + 1) * (high - low) / bins
        last = b == bins - 1
        inside = [
            sum(start <= v < end or (last and v == end) for v in each) for each in (reference, made)
        ]
        p, q = inside[0] / len(reference) + 1e-10, inside[1] / len(made) + 1e-10
        total += p * np.log(p / q)
    return total


rings, more_rings = [0, 0, 1, 1, 1, 2], [0, 1, 1, 2, 2, 2]
divergence_loop(rings, rings), divergence_loop(rings, more_rings)

# %% [markdown]
# NumPy has the histogram and SciPy the sum. `entropy(p, q)` divides each by its own sum and returns equation 1. What lies outside of the reference's bins is in none, as in GuacaMol's release: it is not punished by itself, unless nothing is left.


# %% tags=["promote", "exercise"]
def count_divergence(reference: np.ndarray, made: np.ndarray) -> float:
    """KL of counted descriptors, in nats: histograms of ten bins over the reference (equation 1).

    What lies outside of the reference's range is in no bin; infinity where all of it does.
    """
    p, edges = np.histogram(reference, bins=10, density=True)
    counts, _ = np.histogram(made, bins=edges)
    if counts.sum() == 0:
        return float("inf")
    q = counts / counts.sum() / np.diff(edges)
    return float(entropy(p + 1e-10, q + 1e-10))


# %% tags=["check"]
same = count_divergence(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
assert abs(same) < 1e-12, "the same counts, in any order, lose nothing"
lost = count_divergence(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1]))
assert abs(lost - 0.5 * np.log(3)) < 1e-6, "3/4 log 3 − 1/4 log 3, to the 1e-10 in empty bins"
assert count_divergence(np.array([0, 1]), np.array([7, 8])) == np.inf, "nothing in any bin"

# %%
assert abs(count_divergence(rings, more_rings) - divergence_loop(rings, more_rings)) < 1e-7

# %% [markdown]
# For a descriptor that measures, bins would be arbitrary. Each list becomes a smooth density, a sum of small Gaussians, and the sum of equation 1 runs over 1,000 places.


# %% tags=["promote"]
def density_divergence(reference: np.ndarray, made: np.ndarray) -> float:
    """KL of measured descriptors, in nats: Gaussian kernel densities on 1,000 points (equation 1).

    Infinity where a list has no spread, and so no density.
    """
    if np.ptp(reference) == 0 or np.ptp(made) == 0:
        return float("inf")
    both = np.concatenate([reference, made])
    places = np.linspace(both.min(), both.max(), 1000)
    p, q = (gaussian_kde(values)(places) + 1e-10 for values in (reference, made))
    return float(entropy(p, q))


# %% [markdown]
# Two normal distributions with deviation 1 and means 0 and $d$ have the divergence $d^2 / 2$, which a thousand draws give back roughly:

# %%
draws = np.random.default_rng(0).normal(size=(2, 1000))
for d in (0.0, 0.5, 1.0):
    found = density_divergence(draws[0], draws[1] + d)
    print(f"d = {d:.1f}: {found:.3f} nats, of {d**2 / 2:.3f}")

# %% [markdown]
# ### Ten descriptors
#
# Nine come from RDKit. BertzCT is a number for how complicated a molecule's graph is; the others say what they are.


# %% tags=["promote"]
COUNTED = {
    "hydrogen-bond acceptors": rdMolDescriptors.CalcNumHBA,
    "hydrogen-bond donors": rdMolDescriptors.CalcNumHBD,
    "rotatable bonds": rdMolDescriptors.CalcNumRotatableBonds,
    "aliphatic rings": rdMolDescriptors.CalcNumAliphaticRings,
    "aromatic rings": rdMolDescriptors.CalcNumAromaticRings,
}


MEASURED = {
    "BertzCT": Descriptors.BertzCT,
    "logP": Descriptors.MolLogP,
    "weight": Descriptors.MolWt,
    "TPSA": Descriptors.TPSA,
}


# %%
probe = Chem.MolFromSmiles("CC1OC1CO")
{name: round(float(measure(probe)), 1) for name, measure in (COUNTED | MEASURED).items()}


# %% tags=["promote"]
def _nearest_inside(smiles: list[str]) -> np.ndarray:
    """How similar each molecule is to the one most like it in its own list."""
    like = tanimoto_matrix(smiles, smiles)
    np.fill_diagonal(like, 0)
    return like.max(axis=1)


def _molecules(name: str, smiles: list[str]) -> list[Chem.Mol]:
    """The molecules of two texts or more."""
    if len(smiles) < 2:
        raise ValueError(f"{name} has {len(smiles)} molecules; expected two or more")
    with rdBase.BlockLogs():
        molecules = [Chem.MolFromSmiles(text) for text in smiles]
    if None in molecules:
        text = smiles[molecules.index(None)]
        raise ValueError(f"{name} holds {text!r}, which is no molecule; expected SMILES")
    return molecules


def kl_score(smiles: Iterable[str], reference: Iterable[str]) -> float:
    """GuacaMol's KL score of molecules against a reference, 0 to 1, higher is better (equation 2).

    Nine descriptors, five counted and four measured, and how alike molecules are within a list.
    Raises ValueError for fewer than two molecules, and for texts that are no molecule.
    Source: Brown et al. 2019 (arXiv 1811.09621).
    """
    lists = {"smiles": list(smiles), "reference": list(reference)}
    made, known = (_molecules(name, texts) for name, texts in lists.items())
    parts = []
    for measures, divergence in ((COUNTED, count_divergence), (MEASURED, density_divergence)):
        for measure in measures.values():
            ours, theirs = (np.array([measure(m) for m in each]) for each in (made, known))
            parts.append(divergence(theirs, ours))
    inside = (_nearest_inside(lists[name]) for name in ("reference", "smiles"))
    parts.append(density_divergence(*inside))
    return float(np.exp(-np.array(parts)).mean())


# %%
held_out = qm9_table("held_out").sample(frac=1, random_state=0)["smiles"].tolist()
one_half, other_half = held_out[:400], held_out[400:800]


def in_one_piece(texts):
    """None in place of what is in pieces."""
    return [text if text and "." not in text else None for text in texts]


tried = in_one_piece(student.generate(400, steps=50, mode="none", seed=1, progress=False))
made = [text for text in tried if text]  # as read off the clouds, without repair
print(f"held-out molecules against others: {kl_score(one_half, other_half):.3f}")
print(f"{len(made)} molecules of the student: {kl_score(made, other_half):.3f}")

# %% [markdown]
# Two halves of the same data do not reach 1, as they are samples. That is the mark to hold others against. The student has seen molecules of up to seven atoms alone, and is compared with those of up to nine. Two of the descriptors show it:


# %% tags=["figure"]
def draw_divergence():
    """One descriptor that counts and one that measures, of the data and of the student."""
    figure, (left, right) = canvas(1, 2, 7.2, 2.5)
    lists = {"reference p_b": other_half, "made q_b": made}
    inks = {"reference p_b": COLOURS["muted"], "made q_b": COLOURS["first"]}
    values = {
        name: [[float(measure(Chem.MolFromSmiles(t))) for t in texts] for texts in lists.values()]
        for name, measure in (
            ("rotatable bonds", COUNTED["rotatable bonds"]),
            ("weight", MEASURED["weight"]),
        )
    }
    counts, weights = (list(map(np.array, each)) for each in values.values())
    edges = np.histogram(counts[0], bins=10)[1]
    for shift, (name, ink), each in zip((-0.2, 0.2), inks.items(), counts, strict=True):
        share = np.histogram(each, bins=edges)[0] / len(each)
        left.bar(np.arange(10) + shift, share, width=0.4, color=ink, label=name)
    left.set(
        xlabel="bin b of the rotatable bonds", ylabel="share of the molecules", xticks=range(10)
    )
    places = np.linspace(min(map(min, weights)), max(map(max, weights)), 200)
    for (name, ink), each in zip(inks.items(), weights, strict=True):
        right.plot(places, gaussian_kde(each)(places), color=ink, label=name)
    right.set(xlabel="weight (g/mol)", ylabel="density", yticks=[])
    for axes, k in ((left, count_divergence(*counts)), (right, density_divergence(*weights))):
        axes.set_title(f"KL_k = {k:.2f}, exp(−KL_k) = {np.exp(-k):.2f}")
    left.legend(fontsize=8, frameon=False)
    return figure


show(
    draw_divergence(),
    alt="Left, bars of rotatable bonds for the data and the student; right, two curves of the "
    "weight, the student's well to the left of the data's",
)

# %% [markdown]
# Left, the bars are alike, and the divergence is small. Right, the weights hardly overlap: this descriptor alone costs the student nearly a tenth of its score.
#
# ### Five scores
#
# The score of the distance is one line.


# %% tags=["promote", "exercise"]
def fcd_score(distance: float) -> float:
    """GuacaMol's score of a Fréchet ChemNet distance: exp(−0.2 D), 0 to 1 (equation 3)."""
    return float(np.exp(-0.2 * distance))


# %% tags=["check"]
assert fcd_score(0.0) == 1.0, "no distance, the best score"
assert abs(fcd_score(5.0) - np.exp(-1)) < 1e-12, "a distance of 5 is one over e"
assert fcd_score(100.0) < 1e-8, "and a large one is nothing"


# %% tags=["promote"]
def guacamol_scores(
    smiles: Iterable[str | None],
    training: Iterable[str],
    reference: Iterable[str],
    distance: bool = True,
) -> dict[str, float]:
    """The five scores of GuacaMol's distribution learning, each 0 to 1, higher is better.

    smiles     what a generator made; None for what is no molecule
    training   what it learned from, for novelty
    reference  what KL and ChemNet compare with: as many as were made, from the same source
    distance   whether to run ChemNet, which takes most of the time

    Validity is over all; the rest over the valid ones, NaN where there are fewer than two.
    Raises ValueError for an empty list, and for texts that are no molecule.
    Source: Brown et al. 2019 (arXiv 1811.09621).
    """
    smiles = listed("smiles", smiles, "['CCO', None]")
    made, reference = [text for text in smiles if text], list(reference)
    scores = {"validity": len(made) / len(smiles)}
    nothing = len(made) < 2
    scores["uniqueness"] = float("nan") if nothing else uniqueness(made)
    scores["novelty"] = float("nan") if nothing else novelty(made, training)
    scores["KL"] = float("nan") if nothing else kl_score(made, reference)
    if distance:
        scores["FCD"] = float("nan") if nothing else fcd_score(chemnet_distance(made, reference))
    return scores


# %% [markdown]
# An ideal generator of 200 molecules, which returns held-out ones, and one that returns the same molecule 200 times:

# %%
lists = {"held-out molecules": one_half[:200], "one molecule, 200 times": ["CC1OC1CO"] * 200}
table_of = {
    n: guacamol_scores(made_, table["smiles"], other_half[:200], False)
    for n, made_ in lists.items()
}
print(pd.DataFrame(table_of).round(2).to_string())

# %% [markdown]
# Each score alone can be had cheaply. One valid molecule again and again is fully valid, and new. The KL score is the one that notices.
#
# ### Properties
#
# The guide learns properties that can be computed for every molecule. **QED** says how like a drug a molecule looks: a mean of eight curves, over weight, logP, surface and others.


# %% tags=["promote"]
def qed(smiles: Sequence[str | None]) -> Float[np.ndarray, "n"]:
    """How like a drug each molecule looks, 0 to 1 (Bickerton et al. 2012); NaN for None."""
    return np.array(
        [np.nan if text is None else QED.qed(Chem.MolFromSmiles(text)) for text in smiles]
    )


PROPERTIES: dict[str, Callable[..., np.ndarray]] = {"logP": logp, "TPSA": tpsa, "QED": qed}


# %%
for text in ("CC(C)CCO", "CC(=O)Oc1ccccc1C(=O)O", None):
    print(f"{qed([text])[0]:.2f}", text)

# %% [markdown]
# ### Why the latent points are computed once
#
# The naive second stage encodes every batch anew. What that costs, beside a step of the diffusion as it is:


# %%
def seconds(run, times=5):
    """The least of a few tries."""
    tries = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        tries.append(time.perf_counter() - began)
    return min(tries)


batch = torch.arange(64, device=device())
some, some_x = Graphs(*(part[batch] for part in graphs)), x.to(device())[batch]
with torch.no_grad():
    encoding = seconds(lambda: latent.to_latent(coder.encode(some, some_x)))
stepping = seconds(lambda: latent.loss(z_0[batch], clouds.mask[batch]))
print(
    f"encoding 64 molecules: {encoding * 1e3:.1f} ms; guessing their noise: {stepping * 1e3:.1f} ms"
)

# %% [markdown]
# Computed once, they are rows of tensors, and the graphs are no longer needed. A data set that hands out a batch at once is short:


# %% tags=["promote", "exercise"]
class TensorRows(Dataset):
    """Rows of some tensors; a list of indices comes as one batch."""

    def __init__(self, *tensors: Tensor):
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int | Int[Tensor, "B"]) -> tuple[Tensor, ...]:
        return tuple(each[index] for each in self.tensors)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return self[torch.tensor(indices)]


# %% tags=["check"]
rows = TensorRows(torch.arange(6.0).view(3, 2), torch.tensor([True, False, True]))
assert len(rows) == 3, "as many as there are rows"
first, second = rows.__getitems__([2, 0])
assert first.tolist() == [[4.0, 5.0], [0.0, 1.0]], "the rows that were asked for, in their order"
assert second.tolist() == [True, True], "and the same rows of each tensor"
assert rows[1][0].tolist() == [2.0, 3.0], "one row by its number"


# %% tags=["promote"]
def _whole(batch: Any) -> Any:
    return batch


# %% [markdown]
# ### Molecules that a user names
#
# A scaffold comes as a SMILES or as a molecule. It is read in the vocabulary's own way, and what cannot be is said with its reason.


# %% tags=["promote"]
def read_molecule(name: str, molecule: str | Chem.Mol, vocabulary: Vocabulary) -> Chem.Mol:
    """A molecule that a user named, as a vocabulary writes it.

    name  of the argument, for the error

    Raises ValueError for a text that is no molecule, for several pieces, an atom that is not in
    the vocabulary, a charge, and too many atoms.
    """
    text = Chem.MolToSmiles(molecule) if isinstance(molecule, Chem.Mol) else molecule
    codes, _, problems = encode_smiles([text], vocabulary)
    if problems or len(codes.atoms) == 0:
        raise ValueError(f"{name} is {text!r}: {problems[0].reason}")
    found = parse_smiles(text, vocabulary.kekulize)
    if len(Chem.GetMolFrags(found)) > 1:
        raise ValueError(f"{name} is {text!r}: it has several pieces; expected one")
    return found


# %% [markdown]
# Whether a molecule holds a scaffold is a question of parts of graphs, which RDKit answers. One trap is in the way: the vocabulary writes rings with alternating bonds, and RDKit looks for aromatic ones. A trip over a SMILES brings both to one form.


# %% tags=["promote", "exercise"]
def holds(smiles: str, part: Chem.Mol) -> bool:
    """Whether a molecule has another as a part, with its bonds; a ring may be aromatic or not."""
    plain = Chem.MolFromSmiles(Chem.MolToSmiles(part))
    return Chem.MolFromSmiles(smiles).HasSubstructMatch(plain)


# %% tags=["check"]
furan = parse_smiles("c1ccoc1", kekulize=True)
assert holds("Cc1ccoc1", furan), "a furan with a methyl group holds furan"
assert not holds("CC1CCOC1", furan), "without its double bonds it does not"
assert holds("c1ccoc1", furan), "a molecule holds itself"
assert holds("CC1CCCC1=O", Chem.MolFromSmiles("O=C1CCCC1")), "and a scaffold may be no aromatic"

# %%
for text in ("CS", "C.C", "c1ccc2ccccc2c1"):
    with shows_error(ValueError):
        read_molecule("scaffold", text, student.vocabulary)

# %% [markdown]
# ### The generator
#
# `_stages` is equation 5, and each `_…_loss` one of its losses. `optimise` ends in equation 6. The rest is what a user may ask for, and what may be wrong about it.


# %% tags=["promote"]
class Improved(NamedTuple):
    """What `SyCo.optimise` found: molecules, best first.

    smiles      canonical
    value       of the property
    similarity  Tanimoto, of ECFP4 fingerprints, to the molecule that was given
    start       the value of the molecule that was given
    """

    smiles: list[str]
    value: list[float]
    similarity: list[float]
    start: float


# %% tags=["promote"]
class SyCo:
    """Graphs through clouds, with the face of scikit-learn: `fit`, then `generate` and `optimise`.

    properties   names out of `PROPERTIES` that the guide learns; without any there is no guide
    latent, encoder_width, encoder_depth, sigma   of the autoencoder
    width, depth, steps_of_noise                  of the diffusion
    guide_width, guide_depth                      of the guide
    kekulize     write aromatic rings as alternating bonds
    max_atoms    leave larger molecules out
    bfloat16     compute the diffusion in bfloat16: faster where the processor has it (AMX)

    Raises ValueError for a property that there is not.

    >>> maker = SyCo(["logP"], encoder_width=8, width=8, depth=1, guide_width=8, steps_of_noise=10)
    >>> maker = maker.fit(["CCO", "CCC", "CCN"] * 5, autoencoder_steps=2, diffusion_steps=2,
    ...                   guide_steps=2, batch=8, progress=False)
    >>> len(maker.generate(4, target={"logP": 0.5}, steps=5, progress=False))
    4
    """

    def __init__(
        self,
        properties: Sequence[str] = ("logP", "TPSA", "QED"),
        *,
        latent: int = 4,
        encoder_width: int = 64,
        encoder_depth: int = 2,
        sigma: float = 0.1,
        width: int = 128,
        depth: int = 5,
        steps_of_noise: int = 1000,
        guide_width: int = 64,
        guide_depth: int = 3,
        kekulize: bool = True,
        max_atoms: int | None = None,
        bfloat16: bool = False,
        seed: int = 0,
    ):
        for name in properties:
            if name not in PROPERTIES:
                raise ValueError(f"properties holds {name!r}; expected of {', '.join(PROPERTIES)}")
        self.properties = PropertySet([Numeric(name) for name in properties])
        self.options = {
            "latent": latent,
            "encoder_width": encoder_width,
            "encoder_depth": encoder_depth,
            "sigma": sigma,
            "width": width,
            "depth": depth,
            "steps_of_noise": steps_of_noise,
            "guide_width": guide_width,
            "guide_depth": guide_depth,
            "kekulize": kekulize,
            "max_atoms": max_atoms,
            "seed": seed,
        }
        self.seed, self.bfloat16 = seed, bfloat16
        self.vocabulary: Vocabulary | None = None
        self.parts: nn.ModuleDict | None = None
        self.problems: list[Problem] = []
        self.records: dict[str, list[StepRecord]] = {}

    def fit(
        self,
        smiles: Iterable[str],
        *,
        coordinates: Float[Tensor, "M N 3"] | None = None,
        autoencoder_steps: int = 1500,
        diffusion_steps: int = 14_000,
        guide_steps: int = 3000,
        batch: int = 128,
        learning_rate: float = 1e-3,
        minutes: float | None = None,
        folder: str | Path | None = None,
        start: str | Path | None = None,
        progress: bool = True,
    ) -> "SyCo":
        """Learn molecules in three stages: autoencoder, diffusion on its clouds, guide.

        smiles       the molecules; those that cannot be used are in `problems`, with their rows
        coordinates  where they were made before, a row for each of `smiles`, NaN where none were
                     found; when left out, each molecule is lifted with the seed of this generator
        autoencoder_steps, diffusion_steps, guide_steps
                     of the stages; 0 leaves a stage as `start` has it
        minutes      of all stages together, at most; what there is then can be used
        folder       with one, the same call goes on where the last one stopped
        start        begin with the weights of a saved generator of the same sizes

        Raises ValueError where no molecule can be used, for coordinates of another number of
        molecules, and for a stage of 0 steps without a start.
        """
        smiles = listed("smiles", smiles, "['CCO', 'c1ccccc1']")
        plan = {"autoencoder": autoencoder_steps, "diffusion": diffusion_steps}
        plan["guide"] = guide_steps
        for name, steps in plan.items():
            whole_number(f"{name}_steps", steps, least=0 if start else 1)
        if not self.properties.names:
            plan["guide"] = 0
        lifted = self._lift(smiles, coordinates)
        texts = [smiles[row] for row in lifted.rows]
        values = [PROPERTIES[name](texts).tolist() for name in self.properties.names]
        self.sizes = graph_statistics(lifted.codes, self.vocabulary).sizes
        self.properties = self.properties.fitted(values)
        seed_everything(self.seed)
        self._build()
        self.records = {}
        if start is not None:
            load_checkpoint(start, self.parts)
        y = self.properties.encode(values, len(texts))
        learn = {"batch": batch, "folder": folder, "progress": progress}
        self._stages(plan, lifted, y, learning_rate, minutes, learn)
        self.parts.eval().requires_grad_(False)
        return self

    def _stages(self, plan, lifted, y, learning_rate, minutes, learn) -> None:
        """The three stages, one after the other, as far as the minutes reach."""
        began = time.perf_counter()
        for name, steps in plan.items():
            if name == "autoencoder":
                tensors, rate = (*lifted.codes, lifted.x), 2 * learning_rate
            elif name == "diffusion":
                tensors, rate = self._latents(lifted), learning_rate
            else:
                tensors, rate = (*self._latents(lifted), y), learning_rate
            if steps == 0:
                continue
            left = None if minutes is None else minutes - (time.perf_counter() - began) / 60
            self._train(name, steps, tensors, rate, minutes=left and max(left, 0.0), **learn)
            if len(self.records[name]) < steps:
                self._latents(lifted)  # for the scales of the clouds, should there be none yet
                return

    def generate(
        self,
        count: int | None = None,
        *,
        target: Mapping[str, Any] | None = None,
        scaffold: str | Chem.Mol | None = None,
        guidance: float = 1.0,
        atoms: int | Sequence[int] | None = None,
        steps: int | None = None,
        repeats: int = 2,
        mode: str = "connect",
        batch: int = 256,
        seed: int | None = None,
        progress: bool = True,
        watch: Callable[[float, Cloud, Codes], None] | None = None,
    ) -> list[str | None]:
        """Generate `count` molecules, one when left out.

        target    values of properties to be near, such as {"logP": 2.5}; or a column of values
        scaffold  a molecule, or its SMILES, that each new one holds
        guidance  how strongly the guide pulls towards the target
        atoms     the number of atoms, one for all or one each; drawn as in the data when left out
        steps     strides from noise to cloud; 100, or all of `steps_of_noise` where those are fewer
        repeats   how often each stride is walked where there is a scaffold
        mode      how a graph becomes a molecule, see chapter 2's `graphs_to_smiles`
        watch     is called after each stride, for each batch, with the time, the clouds as they
                  are, and the graphs that are read off them
        returns   SMILES; None where the graph is no molecule, or where it has lost its scaffold

        Warns of a target outside the data's range. Raises ValueError for a property without a
        guide, a scaffold that is no molecule, is too large or has an atom that is not in the
        vocabulary, and atoms that leave no room for it; RuntimeError before `fit` or `load`.
        """
        codes = self.sample(
            count,
            target=target,
            scaffold=scaffold,
            guidance=guidance,
            atoms=atoms,
            steps=steps,
            repeats=repeats,
            batch=batch,
            seed=seed,
            progress=progress,
            watch=watch,
        )
        made = graphs_to_smiles(codes, self.vocabulary, mode=mode)
        if scaffold is None:
            return made
        part = read_molecule("scaffold", scaffold, self.vocabulary)
        return [text if text and holds(text, part) else None for text in made]

    def sample(
        self,
        count: int | None = None,
        *,
        target: Mapping[str, Any] | None = None,
        scaffold: str | Chem.Mol | None = None,
        guidance: float = 1.0,
        atoms: int | Sequence[int] | None = None,
        steps: int | None = None,
        repeats: int = 2,
        batch: int = 256,
        seed: int | None = None,
        progress: bool = True,
        watch: Callable[[float, Cloud, Codes], None] | None = None,
    ) -> Codes:
        """The graphs of `generate`, before they become molecules, as codes."""
        self._check_fitted()
        y = self._targets(target, count)
        generator = self._generator(seed)
        known = keep = None
        least = 1
        if scaffold is not None:
            part = read_molecule("scaffold", scaffold, self.vocabulary)
            known, keep, least = *self._known(part, "scaffold"), part.GetNumAtoms() + 1
        sizes = self._atoms(atoms, len(y), generator, least)
        parts = []
        for rows in torch.arange(len(y)).split(whole_number("batch", batch, least=1)):
            mask = sizes_to_mask(sizes[rows], self.vocabulary.max_atoms).to(self._where)
            walk = {
                "steps": self._strides(steps),
                "change": self._change(y[rows].to(self._where), guidance),
                "generator": generator,
                "progress": progress,
                "watch": self._watch(watch, mask),
            }
            with self._precision():
                if known is None:
                    z = self._edm.sample(mask, **walk)
                else:
                    size = (len(rows), -1, -1)
                    z = inpaint(
                        self._edm,
                        known.expand(size),
                        keep.expand(size[:2]),
                        mask,
                        repeats=repeats,
                        **walk,
                    )
            parts.append(self._codes(z, mask))
        return Codes(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def optimise(
        self,
        molecule: str | Chem.Mol,
        *,
        improve: str = "QED",
        similarity: float = 0.6,
        tries: int = 64,
        start: float = 0.4,
        guidance: float = 4.0,
        added: int = 2,
        steps: int | None = None,
        seed: int | None = None,
        progress: bool = True,
        watch: Callable[[float, Cloud, Codes], None] | None = None,
    ) -> Improved:
        """Change a molecule so that a property grows, and it stays similar.

        The molecule's cloud is blurred to time `start`, in each try with some of its atoms kept
        as they are, and up to `added` new ones beside them, and walked back under guidance. Only
        what is better and similar enough is returned, best first; that may be nothing.

        improve     a property that the guide knows
        similarity  the least Tanimoto similarity to the molecule, 0 to 1
        tries       how many are walked at once
        start       the time from which they walk: later is bolder, and less similar
        guidance    how strongly the guide pulls towards more of the property
        watch       see `generate`

        Raises ValueError for a property without a guide, a similarity out of [0, 1], and a
        molecule that does not fit the vocabulary; RuntimeError before `fit` or `load`.
        """
        self._check_fitted()
        if not 0 <= similarity <= 1:
            raise ValueError(f"similarity is {similarity}; expected 0 to 1")
        if improve not in self.properties.names:
            names = ", ".join(self.properties.names)
            raise ValueError(f"improve is {improve!r}; expected one of {names}")
        tries = whole_number("tries", tries, least=1)
        own = read_molecule("molecule", molecule, self.vocabulary)
        known, there = self._known(own, "molecule")
        generator = self._generator(seed)
        mask, keep = self._room(there, tries, whole_number("added", added, least=0), generator)
        far = torch.full((tries, len(self.properties.names)), float("nan"), device=self._where)
        far[:, self.properties.names.index(improve)] = 3.0  # more than nearly all of the data has
        with self._precision():
            z = inpaint(
                self._edm,
                known.expand(tries, -1, -1),
                keep,
                mask,
                start=start,
                steps=self._strides(steps),
                change=self._change(far, guidance),
                generator=generator,
                progress=progress,
                watch=self._watch(watch, mask),
            )
        made = graphs_to_smiles(self._codes(z, mask), self.vocabulary)
        return _improved(to_smiles(own), made, PROPERTIES[improve], similarity)

    def reconstruct(
        self, smiles: Iterable[str], coordinates: Float[Tensor, "M N 3"] | None = None
    ) -> float:
        """The share of molecules that the autoencoder gives back exactly, atoms and bonds.

        Those that the vocabulary or ETKDG cannot take are left out. Raises ValueError where none
        is left, and RuntimeError before `fit` or `load`.
        """
        self._check_fitted()
        lifted = _lifted(listed("smiles", smiles, "['CCO']"), self.vocabulary, coordinates, 0)
        graphs = Graphs(*(part.to(self._where) for part in one_hot(lifted.codes, self.vocabulary)))
        return exact_rate(self.parts["diffusion"].autoencoder, graphs, lifted.x.to(self._where))

    def save(
        self, path: str | Path, card: ModelCard | None = None, *, float16: bool = False
    ) -> str:
        """Write all that `load` needs to one safetensors file, and its card beside it.

        Returns the file's sha256. Raises RuntimeError before `fit`.
        """
        self._check_fitted()
        seconds = sum(records[-1].seconds for records in self.records.values() if records)
        card = card or ModelCard(
            command="SyCo.fit",
            seed=self.seed,
            hardware=hardware(),
            hours=round(seconds / 3600, 3),
            data=f"molecules with the atoms {', '.join(self.vocabulary.atoms)}",
        )
        vocabulary = self.vocabulary
        settings = {
            "options": self.options,
            "vocabulary": [list(vocabulary.atoms), vocabulary.max_atoms, vocabulary.kekulize],
            "properties": [asdict(each) for each in self.properties.properties],
            "sizes": self.sizes.tolist(),
        }
        return save_checkpoint(path, self.parts, card, float16=float16, settings=settings)

    @classmethod
    def load(cls, path: str | Path) -> "SyCo":
        """A generator as `save` wrote it. Raises ValueError for a file that is none."""
        settings = read_settings(path)
        try:
            properties = PropertySet([Numeric(**each) for each in settings["properties"]])
            maker = cls(properties.names, **settings["options"])
            maker.properties = properties
            atoms, max_atoms, kekulize = settings["vocabulary"]
            maker.vocabulary = Vocabulary(tuple(atoms), max_atoms, kekulize)
            maker.sizes = torch.tensor(settings["sizes"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a saved SyCo: {error!r}") from None
        maker._build()
        load_checkpoint(path, maker.parts)
        maker.parts.eval().requires_grad_(False)
        return maker

    @property
    def _edm(self):
        return self.parts["diffusion"].edm

    @property
    def _where(self) -> torch.device:
        return self.parts["diffusion"].length.device

    def _strides(self, steps: int | None) -> int:
        return min(100, self._edm.steps) if steps is None else steps

    def _generator(self, seed: int | None) -> torch.Generator:
        return torch.Generator(self._where).manual_seed(self.seed if seed is None else seed)

    def _precision(self):
        return torch.autocast(self._where.type, torch.bfloat16, enabled=self.bfloat16)

    def _lift(self, smiles: list[str], coordinates: Tensor | None) -> Lifted:
        self.vocabulary = find_vocabulary(
            smiles, max_atoms=self.options["max_atoms"], kekulize=self.options["kekulize"]
        )
        lifted = _lifted(smiles, self.vocabulary, coordinates, self.seed)
        self.problems = lifted.problems
        if self.problems:
            first = self.problems[0]
            warnings.warn(
                f"{len(self.problems)} of {len(smiles)} molecules are left out, such as row "
                f"{first.row}, {first.smiles!r}: {first.reason}; all are in `problems`",
                stacklevel=3,
            )
        return lifted

    def _build(self) -> None:
        options = self.options
        autoencoder = MoleculeAutoencoder(
            len(self.vocabulary.atoms),
            options["latent"],
            width=options["encoder_width"],
            depth=options["encoder_depth"],
            sigma=options["sigma"],
        )
        sizes = {"width": options["width"], "depth": options["depth"]}
        diffusion = LatentDiffusion(autoencoder, **sizes, steps=options["steps_of_noise"])
        guide = NoisyRegressor(
            options["latent"],
            max(1, len(self.properties.names)),
            options["guide_width"],
            options["guide_depth"],
        )
        self.parts = nn.ModuleDict({"diffusion": diffusion, "guide": guide}).to(device())

    def _train(self, name, steps, tensors, rate, *, minutes, batch, folder, progress) -> None:
        """One of the three stages, as `fourfold.kit.training.train` does it."""
        diffusion, guide = self.parts["diffusion"], self.parts["guide"]
        model, loss = {
            "autoencoder": (diffusion.autoencoder, self._autoencoder_loss),
            "diffusion": (diffusion.edm, self._diffusion_loss),
            "guide": (guide, self._guide_loss),
        }[name]
        data = TensorRows(*(each.cpu() for each in tensors))
        loader = DataLoader(
            data, min(batch, len(data)), shuffle=True, drop_last=True, collate_fn=_whole
        )
        self.parts.eval().requires_grad_(False)
        self.records[name] = train(
            model.train().requires_grad_(),
            loss,
            loader,
            steps=steps,
            folder=None if folder is None else Path(folder) / name,
            learning_rate=rate,
            minutes=minutes,
            seed=self.seed,
            progress=progress,
        )

    def _autoencoder_loss(self, model: nn.Module, batch: tuple) -> Float[Tensor, ""]:
        atoms, bonds, x = batch
        return model.loss(one_hot(Codes(atoms, bonds), self.vocabulary), x).total

    def _diffusion_loss(self, model: nn.Module, batch: tuple) -> Float[Tensor, ""]:
        clean, mask = batch
        t = torch.randint(0, model.steps + 1, (len(clean),), device=clean.device) / model.steps
        with self._precision():
            return model.loss(clean, mask, t, model.noise(mask)).mean()

    def _guide_loss(self, model: nn.Module, batch: tuple) -> Float[Tensor, ""]:
        return regressor_loss(model, self._edm, *batch)

    @torch.no_grad()
    def _latents(self, lifted: Lifted) -> tuple[Tensor, Tensor]:
        """The clean latent points of all molecules, at deviation 1, and where there are some."""
        diffusion, clouds = self.parts["diffusion"].eval(), []
        for rows in torch.arange(len(lifted.x)).split(1024):
            graphs = one_hot(Codes(*(part[rows] for part in lifted.codes)), self.vocabulary)
            graphs = Graphs(*(part.to(self._where) for part in graphs))
            clouds.append(diffusion.autoencoder.encode(graphs, lifted.x[rows].to(self._where)))
        cloud = Cloud(*(torch.cat(part) for part in zip(*clouds, strict=True)))
        diffusion.measure(cloud)
        return diffusion.to_latent(cloud), cloud.mask

    @torch.no_grad()
    def _known(self, molecule: Chem.Mol, name: str) -> tuple[Tensor, Tensor]:
        """The clean latent points of one molecule, and where they are."""
        lifted = lift([Chem.MolToSmiles(molecule)], self.vocabulary, self.seed)
        if lifted.problems:
            raise ValueError(
                f"{name} is {lifted.problems[0].smiles!r}: {lifted.problems[0].reason}"
            )
        graphs = Graphs(*(part.to(self._where) for part in one_hot(lifted.codes, self.vocabulary)))
        diffusion = self.parts["diffusion"]
        cloud = diffusion.autoencoder.encode(graphs, lifted.x.to(self._where))
        return diffusion.to_latent(cloud), cloud.mask

    @torch.no_grad()
    def _codes(self, z: Tensor, mask: Tensor) -> Codes:
        """The graphs that are read off latent points."""
        return Codes(*(part.cpu() for part in to_codes(self._decode(z.float(), mask))))

    def _decode(self, z: Tensor, mask: Tensor) -> Graphs:
        return self.parts["diffusion"].decode(z, mask)

    def _watch(self, watch: Callable | None, mask: Tensor) -> Callable[[float, Tensor], None]:
        def look(t: float, z: Tensor) -> None:
            if watch is not None:
                cloud = self.parts["diffusion"].to_cloud(z.float(), mask)
                watch(t, cloud, self._codes(z, mask))

        return look

    def _targets(self, target: Mapping[str, Any] | None, count: int | None) -> Tensor:
        for name in target or {}:
            if name not in self.properties.names:
                names = ", ".join(self.properties.names)
                raise ValueError(f"target holds {name!r}; expected of {names}")
        return self.properties.targets(target, count)

    def _change(self, y: Float[Tensor, "B P"], guidance: float) -> Callable | None:
        """Guidance towards standardised targets; none where nothing is asked."""
        if y.isnan().all() or guidance == 0:
            return None
        return property_guide(self.parts["guide"], y, guidance)

    def _room(self, there, tries, added, generator) -> tuple[Tensor, Tensor]:
        """Which points each try has, and which of the molecule's it keeps: some, most, or none."""
        n, most = int(there.sum()), self.vocabulary.max_atoms
        draw = {"generator": generator, "device": self._where}
        extra = torch.randint(0, min(added, most - n) + 1, (tries,), **draw)
        share = torch.rand(tries, 1, **draw)
        keep = there & (torch.rand(tries, most, **draw) < share)
        return sizes_to_mask(n + extra, most), keep

    def _check_fitted(self) -> None:
        if self.parts is None:
            raise RuntimeError("the generator has learned nothing; call `fit` or `load` first")

    def _atoms(self, atoms, count, generator, least=1) -> Int[Tensor, "B"]:
        most = self.vocabulary.max_atoms
        if least > most:
            raise ValueError(f"scaffold has {least - 1} atoms; expected fewer than {most}")
        if atoms is None:
            shares = self.sizes.clone()
            shares[:least] = 0
            shares = shares if shares.sum() > 0 else self.sizes.new_tensor([0] * most + [1])
            return draw_sizes(shares.to(self._where), count, generator)
        values = [atoms] * count if isinstance(atoms, int) else list(atoms)
        if len(values) != count:
            raise ValueError(f"atoms has {len(values)} numbers; expected {count}, one a molecule")
        values = [whole_number("atoms", value, least=least, most=most) for value in values]
        return torch.tensor(values, device=self._where)


# %% tags=["promote"]
def _lifted(
    smiles: list[str], vocabulary: Vocabulary, coordinates: Tensor | None, seed: int
) -> Lifted:
    """Molecules with the coordinates that are given, or with new ones."""
    if coordinates is None:
        return lift(smiles, vocabulary, seed)
    if len(coordinates) != len(smiles):
        raise ValueError(
            f"coordinates has {len(coordinates)} rows; expected {len(smiles)}, one for each SMILES"
        )
    codes, rows, problems = encode_smiles(smiles, vocabulary)
    x = coordinates[rows][:, : vocabulary.max_atoms]
    there = ~x.isnan().flatten(1).any(dim=1)
    lost = [row for row, is_there in zip(rows, there.tolist(), strict=True) if not is_there]
    problems += [Problem(row, smiles[row], "coordinates has none for it") for row in lost]
    rows = [row for row in rows if row not in set(lost)]
    return Lifted(Codes(*(part[there] for part in codes)), x[there], rows, sorted(problems))


def _improved(
    own: str, made: Sequence[str | None], measure: Callable, similarity: float
) -> Improved:
    """What is better than `own` and similar enough, each once, best first."""
    start = float(measure([own])[0])
    different = sorted({text for text in made if text} - {own})
    if not different:
        return Improved([], [], [], start)
    like, values = tanimoto_matrix(different, [own])[:, 0], measure(different)
    good = [k for k in np.argsort(-values) if like[k] >= similarity and values[k] > start]
    return Improved(
        [different[k] for k in good],
        [float(values[k]) for k in good],
        [float(like[k]) for k in good],
        start,
    )


# %% [markdown]
# ### What the student has learned
#
# The autoencoder gives nearly every molecule back. The diffusion has had a few seconds, and it shows.

# %%
print(f"{student.reconstruct(smiles, x):.3f} of the molecules come back exactly")
first_tries = student.generate(6, steps=100, seed=3, progress=False)
show(
    molecule_grid(first_tries, [text or "" for text in first_tries], columns=6, width=7.4),
    alt="Six molecules of the student, small, after correction",
)

# %% [markdown]
# ### Stopped and gone on
#
# With a folder, `fit` writes checkpoints of each stage, and `minutes` ends it in any of them. The same call goes on: here it stops in the first stage, at once, and ends with the weights of a training that never stopped.

# %%
tiny = {"encoder_width": 8, "width": 8, "depth": 1, "guide_width": 8, "steps_of_noise": 20}
plan = {"autoencoder_steps": 3, "diffusion_steps": 4, "guide_steps": 2, **LITTLE}


def fitted(**options):
    return SyCo(["logP"], **tiny).fit(smiles[:64], coordinates=x[:64], **plan, **options)


def done(maker):
    return {name: len(records) for name, records in maker.records.items()}


with tempfile.TemporaryDirectory() as folder:
    print("stopped:", done(fitted(folder=folder, minutes=0.0)))
    again = fitted(folder=folder)
    print("gone on:", done(again))
whole = fitted()
pairs = zip(whole.parts.parameters(), again.parts.parameters(), strict=True)
assert all(torch.equal(one, other) for one, other in pairs) or device().type != "cpu"

# %% [markdown]
# ### Saved and loaded
#
# One file holds the three networks, the scales, the vocabulary, and how often each number of atoms occurs.

# %%
with tempfile.TemporaryDirectory() as folder:
    student.save(Path(folder) / "student.safetensors", float16=True)
    megabytes = (Path(folder) / "student.safetensors").stat().st_size / 1e6
    again = SyCo.load(Path(folder) / "student.safetensors")
print(f"{megabytes:.2f} MB; knows {', '.join(again.properties.names)}")

# %% [markdown]
# ### Measured
#
# `evaluate_syco` asks for a number of molecules, and for each property once more, with targets from held-out molecules. Its numbers go to the card. GuacaMol's scores are those of what is valid and in one piece without correction: a corrected molecule is partly the corrector's.


# %% tags=["promote"]
def evaluate_syco(
    maker: SyCo,
    table: Any,
    count: int = 1000,
    *,
    training: Sequence[str] | None = None,
    distance: bool = False,
    steps: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """What a generator of QM9-like molecules makes, and how far its guide moves it.

    table     held-out molecules, with a column `smiles`; targets are properties of some of them
    training  SMILES that do not count as novel; those of the course's QM9 when left out
    distance  also the Fréchet ChemNet score, which takes its time
    returns   shares of valid molecules as chapter 2 counts them, GuacaMol's scores of those that
              are valid and in one piece without correction, and for each property the mean error
              with guidance and without, in the property's unit
    """
    training = qm9_table("train")["smiles"] if training is None else training
    options = {"steps": steps, "seed": seed, "progress": progress}
    codes = maker.sample(count, **options)
    found = validity(codes, maker.vocabulary)
    rows = table.sample(count, replace=count > len(table), random_state=seed)
    free = _in_one_piece(codes, maker.vocabulary)
    scores = guacamol_scores(free, list(training), list(rows["smiles"]), distance)
    results = {
        "valid": found.direct,
        "valid and in one piece": found.connected,
        "valid after correction, largest piece": found.corrected_largest,
        "valid after correction, pieces joined": found.corrected_connect,
        **{name: value for name, value in scores.items() if name != "validity"},
    }
    for name in maker.properties.names:
        asked = PROPERTIES[name](list(rows["smiles"]))
        with warnings.catch_warnings():  # a held-out value may be beyond those that were learned
            warnings.filterwarnings("ignore", message=".* the model has seen")
            codes = maker.sample(target={name: asked}, **options)
        guided = _in_one_piece(codes, maker.vocabulary)
        for said, texts in (("guided", guided), ("no guidance", free)):
            error = property_error(asked, PROPERTIES[name](texts)).value
            results[f"{said}: error of {name}"] = error
    return results


def _in_one_piece(codes: Codes, vocabulary: Vocabulary) -> list[str | None]:
    made = graphs_to_smiles(codes, vocabulary, mode="none")
    return [text if text and "." not in text else None for text in made]


# %% [markdown]
# ### Learning for longer
#
# Two sets of data come with the course: QM9, and the open collection of the National Cancer Institute, whose molecules are larger and have sulfur and halogens too.


# %% tags=["promote"]
def small_nci(most: int = 16) -> list[str]:
    """Molecules of `nci_smiles` with at most so many heavy atoms: uncharged, in one piece, of
    C, N, O, F, S, Cl and Br."""
    kept = []
    with rdBase.BlockLogs():
        for text in nci_smiles():
            molecule = Chem.MolFromSmiles(text)
            if molecule is None or "." in text or not 1 <= molecule.GetNumAtoms() <= most:
                continue
            atoms = list(molecule.GetAtoms())
            if all(a.GetSymbol() in _ORGANIC and a.GetFormalCharge() == 0 for a in atoms):
                kept.append(text)
    return kept


_ORGANIC = ("C", "N", "O", "F", "S", "Cl", "Br")


# %%
print(
    f"{len(small_nci()):,} molecules of up to 16 atoms, such as {', '.join(small_nci()[500:503])}"
)


# %% tags=["promote"]
class Recipe(NamedTuple):
    """How the course trains SyCo.

    data                           "qm9", the 15,776 molecules with coordinates, or "nci"
    autoencoder, diffusion, guide  steps of the stages; 0 keeps what is at `start`
    learning_rate                  its largest value
    batch                          molecules of a step
    """

    data: str
    autoencoder: int
    diffusion: int
    guide: int
    learning_rate: float = 1e-3
    batch: int = 128


RECIPES = {
    "short": Recipe("qm9", 1_000, 2_500, 1_000),
    "long": Recipe("qm9", 1_500, 14_000, 3_000),
    "finish": Recipe("qm9", 0, 12_000, 0, learning_rate=6e-4),
    "nci": Recipe("nci", 1_000, 1_200, 600, batch=64),
}


COURSE_OPTIONS = {"bfloat16": True}


# %% tags=["promote"]
class _Known(NamedTuple):
    """Molecules that ETKDG can lift, with their coordinates."""

    smiles: list[str]
    x: Tensor


def _course_data(data: str, seed: int) -> tuple[_Known, _Known]:
    """What a recipe learns from, and what it is measured on."""
    if data == "qm9":
        return _qm9("train"), _qm9("held_out")
    smiles = small_nci()
    lifted = lift(smiles, find_vocabulary(smiles, kekulize=True), seed)
    rows = np.array(lifted.rows)
    parts = [np.flatnonzero((rows % 10 == 0) == held) for held in (False, True)]
    learned, held_out = (_Known([smiles[rows[m]] for m in part], lifted.x[part]) for part in parts)
    return learned, held_out


def _qm9(split: str) -> _Known:
    x = torch.from_numpy(qm9_coordinates(split))
    there = x.isfinite().flatten(1).all(dim=1)
    return _Known(list(qm9_table(split)["smiles"][there.numpy()]), x[there])


# %% [markdown]
# `fourfold train syco --recipe short --minutes 5` calls this function. It goes through the three stages, measures what came out, and writes weights and card. The same command goes on.


# %% tags=["promote"]
def train_course(
    folder: str | Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    recipe: str = "short",
    start: str | Path | None = None,
    samples: int = 256,
) -> Trained:
    """Train SyCo's three stages; the same call goes on where the last one stopped.

    The recipe "short" takes about ten minutes, "long" an hour, on the QM9 of the course; "finish"
    is three quarters of an hour more for the diffusion, from the weights at `start`. "nci" learns
    molecules of up to 16 atoms, every tenth of them held out; it lifts them first, at about 13 ms
    a molecule, which takes half a minute in each call. `steps` takes the place of the recipe's
    steps of the diffusion. `minutes` are those of the three stages together; the call returns
    later, by what it takes to measure `samples` molecules, once the diffusion has begun to learn.

    Weights, syco_qm9.safetensors or syco_nci.safetensors, and a card go to `folder`.
    Raises ValueError for a recipe that there is not, and for "finish" without a start.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}; expected one of {', '.join(RECIPES)}")
    plan, folder = RECIPES[recipe], Path(folder)
    if steps is not None:
        plan = plan._replace(diffusion=whole_number("steps", steps, least=1))
    stages = {name: getattr(plan, name) for name in ("autoencoder", "diffusion", "guide")}
    if start is None and 0 in stages.values():
        raise ValueError(f"start is None; the recipe {recipe!r} expects weights to begin with")
    learned, held_out = _course_data(plan.data, seed)
    maker = SyCo(seed=seed, **COURSE_OPTIONS)
    maker.fit(
        learned.smiles,
        coordinates=learned.x,
        **{f"{name}_steps": count for name, count in stages.items()},
        batch=plan.batch,
        learning_rate=plan.learning_rate,
        minutes=minutes,
        folder=folder,
        start=start,
    )
    metrics = {"exact reconstruction": maker.reconstruct(*held_out)}
    if start is not None or "diffusion" in maker.records:  # else there is no generator to measure
        table = pd.DataFrame({"smiles": held_out.smiles})
        metrics |= evaluate_syco(maker, table, samples, training=learned.smiles, seed=seed)
    done = {name: len(maker.records.get(name, ())) for name in stages}
    command = f"fourfold train syco --recipe {recipe} --steps {plan.diffusion} --seed {seed}"
    if start is not None:
        command += f" --start {Path(start).name}"
    if done != stages:
        command += f"  (stopped after {sum(done.values())} steps)"
    seconds = sum(records[-1].seconds for records in maker.records.values())
    card = ModelCard(
        command=command,
        seed=seed,
        hardware=hardware(),
        hours=round(seconds / 3600, 2),
        data=f"{len(learned.smiles):,} molecules of {plan.data.upper()}, lifted by ETKDG",
        metrics=metrics,
    )
    weights = folder / f"syco_{plan.data}.safetensors"
    maker.save(weights, card, float16=True)
    return Trained(weights, sum(done.values()), sum(stages.values()), metrics)


# %% tags=["promote"]
def load_syco(path: str | Path = "qm9") -> SyCo:
    """A generator of the course, by its data, "qm9" or "nci", or one that `save` wrote to a path.

    Raises FileNotFoundError where there is no such file, and ValueError for one that is none.
    """
    if str(path) in ("qm9", "nci"):
        path = data_path("checkpoints", f"syco_{path}.safetensors")
    return SyCo.load(path)


# %%
for name, recipe in RECIPES.items():
    stages = " + ".join(f"{n:,}" for n in recipe[1:4])
    print(f"{name:6} {recipe.data:3}  {stages} steps of {recipe.batch} molecules")

# %% [markdown]
# ## On real input
#
# The weights that come with the course. From here on you can put your own molecules at the top of a cell.
#
# ### New molecules

# %%
maker = load_syco("qm9")
new = maker.generate(18, seed=4, progress=False)
show(
    molecule_grid(new, [text or "" for text in new], columns=6, width=7.6),
    alt="Eighteen generated molecules of up to nine atoms: rings of three to six, oxygen, nitrogen",
)

# %% [markdown]
# Many have small rings, as the molecules of QM9 do: a program enumerated them, and nobody asked whether they can be made.
#
# ### The path
#
# `watch` is called after each stride, with the time, the clouds, and the graphs that are read off them. That makes a film:

# %%
film = {}
maker.generate(
    8,
    atoms=9,
    seed=2,
    progress=False,
    watch=lambda t, cloud, codes: film.__setitem__(t, (cloud, codes)),
)


def texts_of(codes):
    return graphs_to_smiles(codes, maker.vocabulary)


def draw_film(films, rows, times):
    """A walk in each row: what stands there, and at the end the molecule."""
    figure, grid = canvas(len(rows), len(times) + 1, 7.8, 1.45 * len(rows) + 0.15, squeeze=False)
    for line, (seen, row) in zip(grid, zip(films, rows, strict=True), strict=True):
        last = seen[0.0][0]
        end = last.x[row][last.mask[row]].cpu().numpy()
        broad = np.linalg.svd(end.T @ end)[0]  # turns the end's broad side to the viewer
        broad = broad * [1, 1, np.linalg.det(broad)]
        for axes, t in zip(line, times, strict=False):
            cloud, codes = seen[min(seen, key=lambda s: abs(s - t))]
            points = cloud.x[row][cloud.mask[row]].cpu().numpy() @ broad
            atoms = [maker.vocabulary.atoms[c] for c in codes.atoms[row] if c >= 0]
            bonds = codes.bonds[row][: len(atoms), : len(atoms)].int()
            draw_cloud(axes, points, atoms, bonds, angle=(-20, 15), size=1.1, span=7.0)
            axes.set_title(f"t = {t:g}" if t else "t = 0: cloud", size=8)
        draw_molecule(line[-1], texts_of(seen[0.0][1])[row])
        line[-1].set_title("molecule", size=8)
        line[-1].set_anchor("N")
    return figure


# %% tags=["figure"]
show(
    draw_film([film, film], [0, 3], [1.0, 0.6, 0.4, 0.2, 0.1, 0.0]),
    alt="Two rows: a random cloud of nine points with bonds between any of them settles, until at "
    "time 0 it is a molecule, drawn as a formula on the right",
)

# %% [markdown]
# Atoms and bonds are what the decoder reads off the cloud as it stands. Early on it reads noise. In the last tenth of the way little changes.
#
# ### Around a scaffold of your choice
#
# Put any molecule of up to eight atoms of C, N, O and F here. What has lost it is returned as None; the rest holds it.

# %%
SCAFFOLD = "N#CC1CC1"
around = maker.generate(12, scaffold=SCAFFOLD, steps=50, seed=0, progress=False)
kept = [text for text in around if text]
part = read_molecule("scaffold", SCAFFOLD, maker.vocabulary)
assert all(holds(text, part) for text in kept)
print(f"{len(kept)} of 12 hold {SCAFFOLD}")


# %% tags=["figure"]
def draw_kept(texts, scaffold, columns=6):
    """Molecules in a grid, with the atoms and bonds of the scaffold coloured."""
    rows = -(-len(texts) // columns)
    figure, grid = canvas(rows, columns, 7.6, 1.15 * rows, squeeze=False)
    query = Chem.MolFromSmiles(Chem.MolToSmiles(scaffold))
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, text in zip(grid.flat, texts, strict=False):
        molecule = Chem.MolFromSmiles(text)
        atoms = set(molecule.GetSubstructMatch(query))
        bonds = [
            b.GetIdx()
            for b in molecule.GetBonds()
            if {b.GetBeginAtomIdx(), b.GetEndAtomIdx()} <= atoms
        ]
        drawer = rdMolDraw2D.MolDraw2DCairo(300, 225)
        drawer.drawOptions().bondLineWidth = 3
        drawer.drawOptions().setHighlightColour((1.0, 0.82, 0.5))
        drawer.DrawMolecule(molecule, highlightAtoms=list(atoms), highlightBonds=bonds)
        drawer.FinishDrawing()
        axes.imshow(Image.open(io.BytesIO(drawer.GetDrawingText())), interpolation="lanczos")
    return figure


show(
    draw_kept(kept, part),
    alt="Generated molecules, each with a ring of three carbons and a nitrile on it marked in orange and other atoms around it",
)

# %% [markdown]
# Orange is the scaffold, which stood in the cloud from the first stride to the last. The model chose what is beside it, and where it is attached. A ring of three with a nitrile is common in QM9. A furan is harder: its flat ring has two double bonds, and what grows beside it must leave them alone. There each stride can be walked more often. Does it help? (Of 24, a difference of a few is chance.)

# %%
for repeats in (1, 4):
    tries = maker.generate(
        24, scaffold="c1ccoc1", steps=50, repeats=repeats, mode="none", seed=0, progress=False
    )
    print(f"repeats={repeats}: {sum(text is not None for text in tries)} of 24 hold furan")

# %% [markdown]
# The strides back and forth let the new atoms see the scaffold and settle with it, as [lesson 6](6_control.ipynb) explains; each costs as much time as the first.
#
# ### A better version of a molecule
#
# Isoamyl alcohol, a part of the fusel oil in spirits, has a QED of about one half. Is there something that looks more like a drug and is similar to at least $\delta = 0.3$?

# %%
START, SIMILARITY = "CC(C)CCO", 0.3
path = {}
better = maker.optimise(
    START,
    improve="QED",
    similarity=SIMILARITY,
    progress=False,
    watch=lambda t, cloud, codes: path.__setitem__(t, (cloud, codes)),
)
assert all(tau >= SIMILARITY for tau in better.similarity)
print(f"{len(better.smiles)} better molecules; the QED of {START} is {better.start:.2f}")

# %% tags=["figure"]
found = list(zip(better.smiles, better.value, better.similarity, strict=True))[:5]
show(
    molecule_grid(
        [START, *(text for text, _, _ in found)],
        [
            f"start: QED {better.start:.2f}\nat least δ = {SIMILARITY}",
            *(f"QED {c:.2f}\nsimilar {tau:.2f}" for _, c, tau in found),
        ],
        columns=6,
        width=7.6,
    ),
    alt="Isoamyl alcohol, and beside it similar molecules with a larger QED, a carbon longer or "
    "branched elsewhere",
)

# %%
last = texts_of(path[min(path)][1])
row = next((r for r, text in enumerate(last) if text in better.smiles), 0)
print(f"try {row} ends at {last[row]}")

# %% tags=["figure"]
show(
    draw_film([path], [row], [0.4, 0.3, 0.2, 0.1, 0.0]),
    alt="A row: the blurred cloud of the molecule is walked back, and another molecule stands at "
    "its end",
)

# %% [markdown]
# The walk begins at $t = 0.4$, where the cloud still knows roughly what it was, and not at noise.
#
# ### Your molecule here
#
# Any molecule of up to nine atoms of C, N, O and F, and one of the properties QED, logP or TPSA. Leave `progress=False` away to see a bar.

# %%
YOURS, IMPROVE, SIMILAR = "NCCc1c[nH]cn1", "QED", 0.4  # histamine
yours = maker.optimise(YOURS, improve=IMPROVE, similarity=SIMILAR, progress=False)
print(f"{YOURS}: {IMPROVE} {yours.start:.2f}")
for text, c, tau in zip(yours.smiles, yours.value, yours.similarity, strict=True):
    print(f"  {text}: {c:.2f}, similar {tau:.2f}")

# %% [markdown]
# ### Asked and reached
#
# The guide pulls towards a logP. A row of targets, three strengths:

# %%
asked = np.linspace(-2, 2.5, at_scale(cpu=32, gpu=400))
reached = {
    g: logp(maker.generate(target={"logP": asked}, guidance=g, steps=50, seed=1, progress=False))
    for g in (0.0, 1.0, 3.0)
}


# %% tags=["figure"]
def draw_asked():
    """Reached against asked logP, for three strengths of guidance."""
    figure, axes = canvas(1, 3, 7.4, 2.5, sharey=True)
    for each, (guidance, values) in zip(axes, reached.items(), strict=True):
        each.plot(asked, values, ".", color=COLOURS["first"], markersize=4)
        each.axline((0, 0), slope=1, color=COLOURS["muted"], linewidth=0.8)
        error = property_error(asked, values).value
        each.set(title=f"guidance {guidance:g}: mean error {error:.2f}", xlabel="asked logP")
    axes[0].set(ylabel="reached logP")
    return figure


show(
    draw_asked(),
    alt="Three scatter plots of reached against asked logP: level without guidance, rising with "
    "guidance 1, near the diagonal with guidance 3",
)

# %% [markdown]
# Without guidance the points lie level. With guidance 1 they rise, less than they should; with 3 they come near the line. The diffusion itself was never told what logP is.
#
# ### The five scores

# %%
count = at_scale(cpu=200, gpu=400)
sampled = in_one_piece(maker.generate(count, mode="none", steps=50, seed=9, progress=False))
lists = {
    "student": tried[:count],
    "course's weights": sampled,
    "held-out molecules": one_half[:count],
}
scores = {
    name: guacamol_scores(texts, table["smiles"], other_half[:count])
    for name, texts in lists.items()
}
print(pd.DataFrame(scores).round(2).to_string())


# %% tags=["figure"]
def draw_scores():
    """The five scores of the student, the course's weights, and the data against itself."""
    figure, axes = canvas(1, 1, 7.2, 2.5)
    inks = (COLOURS["muted"], COLOURS["first"], COLOURS["second"])
    for k, ((name, values), ink) in enumerate(zip(scores.items(), inks, strict=True)):
        axes.bar(np.arange(5) + (k - 1) * 0.26, list(values.values()), 0.24, color=ink, label=name)
    labels = ["validity", "uniqueness", "novelty", "S_KL", "S_FCD = exp(−0.2 D)"]
    axes.set_xticks(range(5), labels)
    axes.set(ylabel="score", ylim=(0, 1.05))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    return figure


show(
    draw_scores(),
    alt="Five groups of three bars: the student far behind in validity and in the last score, the "
    "course's weights nearer to the data",
)

# %% [markdown]
# Orange is what a sample of the data scores against another sample of it, and the mark to reach. With so few molecules the distance of ChemNet is overestimated for all three, so the last bar of an ideal generator is well below 1.
#
# ### The card

# %%
card = read_card(data_path("checkpoints", "syco_qm9.safetensors"))
print(card.command, card.hardware, f"{card.hours} hours", card.data, sep="\n")
measured = pd.Series(card.metrics, dtype=float).round(3)
print(measured.to_string() if len(measured) else "no metrics on this card")

# %% [markdown]
# Where the card has metrics, `evaluate_syco` has measured them: shares of valid molecules as [chapter 2](../2_graph_dit/6_molecules.ipynb) counts them, GuacaMol's scores of what is valid in one piece, and the mean error of each property for targets that held-out molecules have, with guidance 1 and without. "exact reconstruction" is the share of held-out molecules that the autoencoder gives back.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `count_divergence` | 10 | ●●○ |
# | `fcd_score` | 2 | ●○○ |
# | `TensorRows` | 8 | ●●○ |
# | `holds` | 5 | ●○○ |
#
# **Predict.** A generator returns held-out molecules, each of them twice. Which of the first four scores change against one that returns each once?
#
# <details><summary>Hint</summary>
#
# Nine descriptors see a molecule alone. The tenth looks at its neighbours.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Validity and novelty stay. Uniqueness halves. The nine descriptors have the same distributions, but the nearest neighbour of every molecule is now its own copy, at similarity 1. A list of ones has no spread, so its density is no density, and the tenth descriptor's divergence counts as infinite: a tenth of the KL score is lost. The cell below computes it.
#
# </details>

# %%
twice = one_half[:200] * 2
for name, texts in (("once", one_half), ("twice", twice)):
    print(
        f"{name:>5}: uniqueness {uniqueness(texts):.2f}, KL score {kl_score(texts, other_half):.2f}"
    )

# %% [markdown]
# **Measure.** How many molecules does a KL score need? Take two disjoint lists of held-out molecules, of 25, 100, 400 and 1,000, and score one against the other.
#
# <details><summary>Hint</summary>
#
# An ideal generator would score 1. What is missing to 1 is what the number of molecules costs.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The cell below: the score of the data itself rises with the number, so scores of different numbers of molecules must not be compared. GuacaMol fixes 10,000.
#
# </details>

# %%
for n in (25, 100, 400, 1000):
    print(f"{n:5,} molecules: {kl_score(held_out[:n], held_out[-n:]):.3f}")

# %% [markdown]
# **Find the bug.** A colleague calls `kl_score(reference, made)`. "A divergence is a kind of distance, so the order cannot matter." What does the student's score become, and why?
#
# <details><summary>Hint</summary>
#
# Equation 1 weighs by $p_b$. Which of the two lists does then decide where it hurts?
#
# </details>
#
# <details><summary>Answer</summary>
#
# A divergence is not symmetric. In the right order, a kind of molecule that the data has and the generator never makes costs a lot: a small $q_b$ under a large $p_b$. In the wrong order, what is never made has no weight, and the generator is asked only whether what it makes exists in the data. The bins come from the wrong list, too. The cell below prints both.
#
# </details>

# %%
print(f"right order {kl_score(made, other_half):.3f}, wrong order {kl_score(other_half, made):.3f}")

# %% [markdown]
# ## What breaks
#
# ### Guidance that is too strong
#
# The guide's slope is added to the guessed noise. Where it is as long as the noise itself ([lesson 6](6_control.ipynb) cuts it there), the walk leaves the places that the network has learned:

# %%
for guidance in (0.0, 3.0, 8.0, 16.0):
    texts = maker.generate(
        24, target={"logP": 2.0}, guidance=guidance, steps=50, mode="none", seed=0, progress=False
    )
    good = [text for text in texts if text and "." not in text]
    mean = np.mean(logp(good)) if good else float("nan")
    print(f"guidance {guidance:4g}: {len(good)} of 24 in one piece, their mean logP {mean:.2f}")

# %% [markdown]
# More is more, up to a point. Beyond it ever fewer clouds become molecules: a walk that has left its places finds no way back. Where nothing is left, there is no mean.
#
# ### A scaffold that leaves no room

# %%
with shows_error(ValueError):
    maker.generate(4, scaffold="O=C1CCCCCCC1", progress=False)
with shows_error(ValueError):
    maker.generate(4, scaffold="c1ccc2[nH]ccc2c1", atoms=9, progress=False)
with shows_error(ValueError):
    maker.generate(4, scaffold="C1CCSC1", progress=False)

# %% [markdown]
# The first has nine atoms, the most that there are, and nothing could be added. Larger ones are more than the model has ever seen: a model of QM9 knows molecules of up to nine atoms of four elements, and no training makes it forget that. Another set of data does: `fourfold train syco --recipe nci`.
#
# ### Nothing similar is better
#
# An empty answer may mean that the walk found nothing, or that there is next to nothing to find. For furan, the molecules that come with the course tell which it is:

# %%
like = tanimoto_matrix(table["smiles"], ["c1ccoc1"])[:, 0]
rare = maker.optimise("c1ccoc1", similarity=0.3, tries=32, progress=False)
print(f"found {rare.smiles}; of QM9's {len(like):,}, {(like >= 0.3).sum()} are that similar")
print(f"the most similar: {table['smiles'][like.argmax()]}, {like.max():.2f}")

# %% [markdown]
# A fingerprint of five atoms has few bits, and one new atom changes most of them. For small molecules a similarity of 0.3 is a strict demand, and an empty answer says little about the generator.
#
# ### What the code says to bad input

# %%
with shows_error(ValueError):
    maker.optimise("CCO", similarity=1.5)
with shows_error(ValueError):
    maker.optimise("CCO", improve="smell")
with shows_error(ValueError):
    maker.generate(2, target={"logD": 1.0})
with shows_error(ValueError):
    SyCo(["boiling point"])
with shows_error(RuntimeError):
    SyCo().generate(3)
with shows_error(ValueError):
    SyCo().fit(["CCO", "CCC"], coordinates=x[:3], progress=False)
with shows_error(FileNotFoundError):
    load_syco("zinc.safetensors")

# %% [markdown]
# ## Recap
#
# - Three stages, each with a loss of its own, each frozen before the next: the clouds must stay where they are while the diffusion learns them, and so they are computed once.
# - GuacaMol's five scores ask whether molecules are valid, different, new, and spread like the data, by ten descriptors and by a network. Each alone can be had cheaply; a sample of the data itself is the mark.
# - One object generates, freely, towards a property, around a scaffold, and optimises under a similarity. What it returns has been checked: scaffold, property and similarity are computed from the molecule, not believed.
#
# The line goes on in lesson 8, the experiments: other data, chapter 2's model beside this one, and what each part is good for.
