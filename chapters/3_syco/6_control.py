# ---
# jupyter:
#   fourfold:
#     accelerator: helpful
#     level: advanced
#     minutes: 60
#     needs:
#     - 3_syco/4_autoencoder
#     - 3_syco/5_diffusion
#     - 2_graph_dit/7_metrics
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Control: asking the cloud for something
#
# **After this lesson you can** steer a generator that was never told of properties towards one, keep a part of a molecule and let the rest be made anew, and change a molecule for the better without losing sight of it.
#
# *Before this:* [Autoencoder](4_autoencoder.ipynb) (`4_autoencoder`), which reads a molecule off a cloud; [Diffusion](5_diffusion.ipynb) (`5_diffusion`), which walks from noise to a cloud; and [Metrics](../2_graph_dit/7_metrics.ipynb) (`7_metrics`), for logP and for the similarity of molecules. *Time:* 60 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# The diffusion of lesson 5 makes molecules, but none that anybody asked for. It walks from noise to a cloud in many small steps, and each step can be bent a little. That is enough for three kinds of control, and none of them trains the diffusion again.
#
# **Guidance** (引导). A second, small network, the **regressor** (回归器), looks at a noisy cloud and guesses a property of the molecule that it will become. At each step the cloud is pushed to where the guess comes nearer to what is asked.
#
# **Inpainting** (补全). A part of the molecule is given, its **scaffold** (骨架). At each step the points of the given part are put back in place, as noisy as the rest is at that time, so the rest is made around them.
#
# **Optimisation under a similarity constraint** (相似性约束优化). Both together, from a molecule that exists: blur it halfway, keep some of its atoms, lay a few new points beside them, and walk back with guidance. What comes out resembles what went in, and is better.

# %% [markdown]
# ## Figure
#
# ### Two molecules, named
#
# These two lines are for you to change: a scaffold to build on, and a molecule to improve. They may have carbon, nitrogen, oxygen and fluorine, and up to nine heavy atoms, as the molecules of QM9 that the course's model has learned.

# %%
SCAFFOLD = "OC1CCC1"  # cyclobutanol
MOLECULE = "COC(=O)CCO"  # methyl 3-hydroxypropanoate

# %% [markdown]
# The trained parts come with the course; how they are trained is the matter of lesson 7. `diffusion` has the autoencoder and the walk, `guide` is a regressor for three properties.

# %%
import io
import itertools
import sys
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr

import numpy as np
import torch
from jaxtyping import Bool, Float
from rdkit import Chem
from rdkit.Chem.rdMolDescriptors import CalcNumRings
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fourfold.graph_dit.graphs import encode_smiles, one_hot, to_codes
from fourfold.graph_dit.metrics import logp, tanimoto_matrix
from fourfold.graph_dit.molecules import graphs_to_smiles
from fourfold.kit.arguments import whole_number
from fourfold.kit.cloud_picture import draw_cloud
from fourfold.kit.drawing import COLOURS, canvas, show
from fourfold.kit.molecules import draw_molecule, molecule_grid, qm9_coordinates, qm9_table
from fourfold.kit.notebook import progress_bar, shows_error
from fourfold.kit.scale import at_scale, device
from fourfold.kit.training import train
from fourfold.paper_writing.experiments import mean_interval
from fourfold.syco.control import (
    NoisyRegressor,
    inpaint,
    merge_known,
    property_guide,
    regressor_loss,
    renoise,
)
from fourfold.syco.diffusion import EDM, sizes_to_mask
from fourfold.syco.egnn import EGNN
from fourfold.syco.learning import load_syco
from fourfold.syco.lifting import center, lift

maker = load_syco("qm9")
diffusion, guide, vocabulary = maker.parts["diffusion"], maker.parts["guide"], maker.vocabulary
edm, ATOMS, STRIDES = diffusion.edm, vocabulary.max_atoms, 40
COUNT = at_scale(cpu=48, gpu=512)
print(f"properties of the guide: {', '.join(maker.properties.names)}; T = {edm.steps}")
print(f"mean of logP in the data: {maker.properties.properties[0].mean:.2f}")


# %%
def seeded(seed):
    return torch.Generator(device()).manual_seed(seed)


def asked(count, **properties):
    """Targets for so many molecules, as the guide sees them: standardised, NaN where free."""
    return maker.properties.targets(properties, count).to(device())


@torch.no_grad()
def latent_of(smiles):
    """A molecule's clean latent cloud, and where it has points."""
    lifted = lift([smiles], vocabulary)
    graphs = one_hot(lifted.codes, vocabulary).to(device())
    cloud = diffusion.autoencoder.encode(graphs, lifted.x.to(device()))
    return diffusion.to_latent(cloud), cloud.mask


@torch.no_grad()
def read(z, mask, mode="none"):
    """The SMILES of each cloud, None where it is no molecule in one piece."""
    made = graphs_to_smiles(to_codes(diffusion.decode(z, mask)), vocabulary, mode=mode)
    return [text if text and "." not in text else None for text in made]


def full(count):
    """Where the points of large molecules are: everywhere."""
    return torch.ones(count, ATOMS, dtype=torch.bool, device=device())


def said(value):
    """A value as a text of one digit after the point."""
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "−")


def like(texts, molecule):
    """How similar molecules are to one."""
    return tanimoto_matrix(texts, [molecule])[:, 0] if texts else np.zeros(0)


# %% [markdown]
# ### Three walks
#
# Each walk below is what the rest of the lesson builds. The first asks for a logP of 2 (a molecule prefers oil to water a hundredfold; the mean of the data is 0.3). The second keeps the scaffold. The third starts from the molecule, blurred to time 0.5, and asks for a logP as high as hardly any in the data.


# %%
def film():
    """An empty film, and a `watch` that fills it with the clouds at each time."""
    frames = {}
    return frames, lambda t, z: frames.__setitem__(round(t, 4), z)


def room(there, tries, added, generator):
    """Where each try has points, and which it keeps: some, most or none of those that are there."""
    n, draw = int(there.sum()), {"generator": generator, "device": device()}
    extra = torch.randint(0, min(added, ATOMS - n) + 1, (tries,), **draw)
    share = torch.rand(tries, 1, **draw)
    return sizes_to_mask(n + extra, ATOMS), there & (torch.rand(tries, ATOMS, **draw) < share)


def improve(molecule, tries=32, start=0.5, scale=2.0, **options):
    """A molecule changed for a higher logP: clouds, masks, and the points that were kept."""
    own, there = latent_of(molecule)
    mask, keep = room(there, tries, 2, seeded(0))
    far = property_guide(guide, asked(tries, logP=3.0), scale)
    how = {"start": start, "steps": STRIDES, "change": far, "generator": seeded(0), **options}
    return inpaint(edm, own.expand(tries, -1, -1), keep, mask, **how), mask, keep


pull = property_guide(guide, asked(COUNT, logP=2.0), 2.0)
guided_film, watch = film()
guided = edm.sample(full(COUNT), steps=STRIDES, change=pull, generator=seeded(1), watch=watch)

scaffold, scaffold_mask = latent_of(SCAFFOLD)
known, keep = scaffold.expand(24, -1, -1), scaffold_mask.expand(24, -1)
filled_film, watch = film()
how = {"steps": STRIDES, "repeats": 2, "generator": seeded(0)}
filled = inpaint(edm, known, keep, full(24), watch=watch, **how)

changed_film, watch = film()
changed, changed_mask, changed_keep = improve(MOLECULE, watch=watch)


# %% tags=["figure"]
GIVEN, NEW, GROWN = COLOURS["query"], COLOURS["muted"], COLOURS["n01"]


def best_of(z, mask, score):
    """The place and the SMILES of the molecule with the largest score."""
    texts = read(z, mask)
    places = [k for k, text in enumerate(texts) if text]
    place = max(places, key=lambda k: score(texts[k], int(mask[k].sum())))
    return place, texts[place]


def draw_state(axes, z, mask, like, inks=None, span=5.4):
    """One latent cloud with the atoms and bonds that are read off it, seen from where `like` is."""
    with torch.no_grad():
        atoms, bonds = to_codes(diffusion.decode(z[None], mask[None]))
    n, view = int(mask.sum()), like[mask, :3]
    axes3 = torch.linalg.svd(view.T @ view)[0]
    axes3 = torch.cat([axes3[:, :2], axes3[:, 2:] * torch.linalg.det(axes3)], dim=1)
    symbols = [vocabulary.atoms[code] for code in atoms[0, :n].tolist()]
    colours = None if inks is None else inks[:n]
    x, bonds = (z[mask, :3] @ axes3).cpu(), bonds[0, :n, :n].cpu()
    look = {"angle": (-25, 20), "size": 0.9, "span": span, "colours": colours}
    draw_cloud(axes, x, symbols, bonds, **look)


def inks_of(keep, there):
    return [GIVEN if kept else NEW if old else GROWN for kept, old in zip(keep, there, strict=True)]


def draw_row(row, frames, times, place, mask, inks=None):
    end = frames[0.0][place]
    for axes, t in zip(row, times, strict=True):
        draw_state(axes, frames[t][place], mask, end, inks)
        axes.set_title(f"time t = {t:g}", size=8)


def draw_controls():
    figure, rows = canvas(3, 7, 8.4, 4.6)
    figure.set_layout_engine("none")
    for (r, c), axes in np.ndenumerate(rows):
        axes.set_position([c / 7, 0.67 - 0.335 * r, 0.96 / 7, 0.22])
        axes.set_axis_off()
    nearest = lambda text, n: -abs(logp([text])[0] - 2) + 0.1 * len(set(text))  # noqa: E731
    place, text = best_of(guided, full(COUNT), nearest)
    draw_row(rows[0, 1:6], guided_film, (1.0, 0.7, 0.4, 0.2, 0.0), place, full(1)[0])
    ends = {0: (None, text)}
    plain = lambda text, n: -CalcNumRings(Chem.MolFromSmiles(text))  # noqa: E731
    place, text = best_of(filled, full(24), plain)
    inks = inks_of(keep[place], scaffold_mask[0])
    inks = [GIVEN if ink == GIVEN else GROWN for ink in inks]
    draw_row(rows[1, 1:6], filled_film, (0.975, 0.7, 0.4, 0.2, 0.0), place, full(1)[0], inks)
    ends[1] = (SCAFFOLD, text)
    own, there = logp([MOLECULE])[0], latent_of(MOLECULE)[1][0]
    near = lambda text: like([text], MOLECULE)[0] >= 0.3  # noqa: E731
    score = lambda text, n: (near(text), n > there.sum(), logp([text])[0])  # noqa: E731
    place, text = best_of(changed, changed_mask, score)
    inks = inks_of(changed_keep[place], there)
    times = (0.475, 0.3, 0.2, 0.1, 0.0)
    draw_row(rows[2, 1:6], changed_film, times, place, changed_mask[place], inks)
    ends[2] = (MOLECULE, text)
    for r, (before, after) in ends.items():
        if before:
            draw_molecule(rows[r, 0], before)
        else:
            style = {"ha": "center", "va": "center", "transform": rows[0, 0].transAxes}
            rows[0, 0].text(0.5, 0.5, "target y:\nlogP 2", **style)
        draw_molecule(rows[r, 6], after)
        rows[r, 6].set_title(f"logP {said(logp([after])[0])}", size=8)
    rows[1, 0].set_title("known z*", size=8)
    rows[2, 0].set_title(f"logP {said(own)}", size=8)
    for r, words in enumerate(
        (
            "guidance: the cloud z_t is pushed towards a target",
            "inpainting: known points (red) are put back at every step, the others are new (green)",
            "optimisation: kept points (red), free ones (grey), and new ones beside them (green)",
        )
    ):
        figure.text(0.01, 0.965 - 0.335 * r, words, size=9, weight="bold")
    return figure


show(
    draw_controls(),
    alt="Three rows of clouds that settle from noise to a molecule: one pushed to a logP of 2, one "
    "with the red points of a given ring in it from the start, and one from a blurred molecule",
)

# %% [markdown]
# Read each row from left to right: what is given, five clouds on the way with the atoms and bonds that the decoder reads off them as they stand, and the molecule at the end. The red points of the second row keep their places to each other while the time falls. Their noise is fresh at each step, and less each time.
#
# ## Formula
#
# **A regressor on noisy clouds.** It guesses properties $f(z_t, t)$ from the cloud and the time. With the values $y$ that are true, or asked, its miss is
#
# $$ J(z_t) = \tfrac{1}{2} \sum_p \big( f_p(z_t, t) - y_p \big)^2 \tag{1} $$
#
# and it learns by the mean of $2 J$ over molecules, properties, random times $t$ and noise. Properties are standardised: mean 0 and deviation 1 in the data. A regressor that always answers 0 then has $2 J = 1$ for each property.
#
# **Bayes on a slope.** We want clouds from $p(z_t \mid y)$, and have a diffusion for $p(z_t)$. Bayes's rule, in logarithms, and the slope of it:
#
# $$ \nabla \log p(z_t \mid y) = \nabla \log p(z_t) + \nabla \log p(y \mid z_t), \qquad \log p(y \mid z_t) = -w\, J(z_t) + \text{const} \tag{2} $$
#
# The slope of a log-probability is the **score** (得分). The right half of equation 2 says that $y$ is normal around the regressor's guess, with the variance $1 / w$. So $w$, the strength of the guidance, is how far the regressor is trusted. The other ingredient is what a guess of noise means. A noisy cloud $z_t = \alpha_t z_0 + \sigma_t \epsilon$ is normal around $\alpha_t z_0$. The score of that normal distribution is $-(z_t - \alpha_t z_0) / \sigma_t^2 = -\epsilon / \sigma_t$, and the mean of it over all $z_0$ that may have led to $z_t$ is the score of $p(z_t)$. The best guess of the noise, $\hat\epsilon$, is the mean of $\epsilon$ over the same $z_0$. Hence $\hat\epsilon = -\sigma_t \nabla \log p(z_t)$, and equation 2 times $-\sigma_t$ is a recipe: add a push $g$ to the guess, before the step of [lesson 5](5_diffusion.ipynb).
#
# $$ \hat\epsilon \;\to\; \hat\epsilon + g, \qquad g = w\, \sigma_t \nabla J(z_t) \tag{3} $$
#
# The step takes the noise away, so it goes down the slope of $J$: the mean of $z_s$ is moved by $-w\, \sigma_{t \mid s}^2 \nabla J / \alpha_{t \mid s}$, in the letters of lesson 5.
#
# **Forward again.** From time $s$ back up to a later $t$, with fresh noise:
#
# $$ z_t = \frac{\alpha_t}{\alpha_s}\, z_s + \sqrt{\sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2}\, \sigma_s^2}\;\; \epsilon \tag{4} $$
#
# **One cloud out of two.** Let $m$ be 1 for the points that are given and 0 for the others. A cloud $a$ with the right places between its given points and a cloud $b$ with the right surroundings are merged. The given points come from $a$, moved to where the given points of $b$ have their centre; features need no moving. A bar is the mean over the points with $m = 1$, and the whole is centred at last:
#
# $$ \mathrm{merge}(a, b)_i = \mathrm{center} \begin{cases} a_i - \bar a + \bar b & m_i = 1 \\ b_i & m_i = 0 \end{cases} \tag{5} $$
#
# **Inpainting.** Let $z^\star$ be the clean cloud of what is given. Begin at the start time $\tau$, which is 1 for a scaffold, and walk back. Each stride is walked $R$ times, with equation 4 to come back up in between:
#
# $$ z_\tau = \alpha_\tau z^\star + \sigma_\tau \epsilon, \qquad z_s = \mathrm{merge}\big(\alpha_s z^\star + \sigma_s \epsilon,\; \mathrm{step}(z_t)\big) \;\; (R \text{ times}), \qquad z_0 = \mathrm{merge}(z^\star, z_0) \tag{6} $$
#
# **Optimisation.** Equation 6 with $\tau$ below 1, with the push $g$ in its steps, and with points added for which $z^\star$ is 0, so that they begin as noise.
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $z_t$ | noisy cloud at time t | (B, N, 3 + F) | `z` | cloud z_t |
# | $t$ | time, 0 clean, 1 noise | (B) | `t` | time t |
# | $s$ | an earlier time | (B) | `s` | from s |
# | $y$ | properties asked for, standardised | (B, P) | `target` | target y |
# | $f$ | the regressor | network | `regressor` | regressor f |
# | $J$ | its miss | (B) | `miss` | miss J |
# | $w$ | strength of the guidance | number | `scale` | guidance w |
# | $g$ | what guidance adds to the guess | (B, N, 3 + F) | `change` | push g |
# | $m$ | which points are given | (B, N) | `keep` | given m |
# | $z^\star$ | clean cloud of what is given | (B, N, 3 + F) | `known` | known z* |
# | $\tau$ | time to start from | number | `start` | start τ |
# | $R$ | how often each stride is walked | whole number | `repeats` | repeats R |
#
# Letters of shapes: $B$ clouds, $N$ points that there is room for, $F$ features of a point, $P$ properties.
#
# > **Where the code leaves the paper.** SyCo's abstract and its reviews say: guidance by a regressor on the latent diffusion, inpainting of scaffolds, and optimisation under a similarity constraint as both together, where nodes are added during inpainting. No code is released. So these are our choices: the regressor's shape, a variance of $1 / w$ for all properties and times, the longest push, strides walked back and forth ($R$, which is RePaint's idea, Lugmayr et al. 2022), how kept atoms and added points are drawn, and every number.

# %% [markdown]
# ## Code
#
# ### A guess from noise
#
# First the clouds that this lesson's experiments need: some molecules of QM9, encoded, and their logP, standardised.


# %%
def encoded(split, count):
    """Latent clouds of molecules, their masks, and their standardised logP."""
    table, x = qm9_table(split), torch.from_numpy(qm9_coordinates(split))
    found = x.isfinite().flatten(1).all(dim=1).numpy()  # ETKDG found a conformer
    rows = np.linspace(0, found.sum() - 1, count).astype(int)  # the table goes from small to large
    table, x = table[found].iloc[rows], x[found][rows]
    graphs = one_hot(encode_smiles(table["smiles"].tolist(), vocabulary)[0], vocabulary)
    with torch.no_grad():
        cloud = diffusion.autoencoder.encode(graphs.to(device()), x.to(device()))
    logp_of = maker.properties.properties[0]
    y = (table["logP"].to_numpy() - logp_of.mean) / logp_of.deviation
    y = torch.tensor(y, dtype=torch.float32, device=device())[:, None]
    return diffusion.to_latent(cloud), cloud.mask, y


learned = encoded("train", at_scale(cpu=1024, gpu=8192))
held = encoded("held_out", 256)
print(f"{len(learned[0])} molecules to learn from, {len(held[0])} held out")

# %% [markdown]
# A property belongs to the whole molecule, and turning or renumbering it changes nothing. The naive way to get a number from a cloud, a linear layer on all coordinates, knows nothing of this:

# %%
torch.manual_seed(0)
naive = nn.Sequential(nn.Flatten(), nn.Linear(ATOMS * 7, 1)).to(device())
turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))[0]
turn = turn.to(device())


def turned(z, by):
    return torch.cat([z[..., :3] @ by, z[..., 3:]], dim=-1)


one = held[0][held[1].all(dim=1)][:1]
with torch.no_grad():
    print([round(naive(z).item(), 3) for z in (one, turned(one, turn), one.flip(1))])

# %% [markdown]
# The [EGNN](3_egnn.ipynb) gives features that do not turn, one row a point; their mean over the points does not depend on the order either. The time is one more feature, as for the diffusion: the regressor should know how far to trust what it sees.


# %% tags=["promote"]
class NoisyRegressor(nn.Module):
    """Properties of a molecule, guessed from its noisy latent cloud and the time (equation 1).

    Invariant: an `EGNN` whose features are averaged over the points.

    latent        F, features of a point
    properties    P, how many, each standardised
    width, depth  of the network

    >>> regressor = NoisyRegressor(latent=4, properties=2, width=8, depth=1)
    >>> mask = torch.ones(5, 9, dtype=torch.bool)
    >>> regressor(torch.zeros(5, 9, 7), torch.zeros(5), mask).shape
    torch.Size([5, 2])
    """

    def __init__(self, latent: int, properties: int, width: int = 64, depth: int = 3):
        super().__init__()
        self.egnn = EGNN(latent + 1, width, depth, out=width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, properties))

    def forward(
        self, z: Float[Tensor, "B N V"], t: Float[Tensor, "B"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B P"]:
        """The guesses of all properties, from clouds at their times."""
        time = t[:, None, None].expand(*mask.shape, 1)
        h = torch.cat([z[..., 3:], time], dim=-1) * mask[..., None]
        h, _ = self.egnn(h, z[..., :3] * mask[..., None], mask)
        return self.head(h.sum(dim=1) / mask.sum(dim=1, keepdim=True))


# %%
fresh = NoisyRegressor(4, 1, width=16, depth=2).to(device())
moved = one + torch.tensor([3.0, -1, 2, 0, 0, 0, 0], device=device())
views = {"as it is": one, "turned": turned(one, turn), "mirrored": turned(one, -turn)}
views |= {"moved": moved, "renumbered": one.flip(1)}
with torch.no_grad():
    for name, z in views.items():
        guess = fresh(z, torch.zeros(1, device=device()), full(1))
        print(f"{name:>10}: {guess.item():.6f}")

# %% [markdown]
# It learns on clouds at all times. In a table of properties some values may be unknown; they are NaN, and are left out of the loss.


# %% tags=["promote"]
def regressor_loss(
    regressor: nn.Module,
    edm: EDM,
    clean: Float[Tensor, "B N V"],
    mask: Bool[Tensor, "B N"],
    y: Float[Tensor, "B P"],
) -> Float[Tensor, ""]:
    """Mean squared error of properties guessed at random times, 2J (equation 1).

    clean  latent clouds of molecules
    y      their properties, standardised; NaN is left out, and counts as no error
    """
    t = torch.randint(0, edm.steps + 1, (len(clean),), device=clean.device) / edm.steps
    guess = regressor(edm.diffuse(clean, t, edm.noise(mask)), t, mask)
    return torch.where(y.isnan(), 0, guess - y.nan_to_num()).square().mean()


# %% [markdown]
# Why noisy? The obvious regressor learns on the molecules as they are. Train one of each kind, of the same size, with the same number of steps. What does each say of noisy held-out clouds?


# %%
def clean_loss(model, batch):
    clean, mask, y = batch
    return (model(clean, torch.zeros_like(clean[:, 0, 0]), mask) - y).square().mean()


def noisy_loss(model, batch):
    return regressor_loss(model, edm, *batch)


def small_regressor(loss, seed=0):
    torch.manual_seed(seed)
    model = NoisyRegressor(4, 1, width=24, depth=2).to(device())
    loader = DataLoader(TensorDataset(*learned), 64, shuffle=True, drop_last=True)
    steps = at_scale(cpu=150, gpu=2000)
    train(model, loss, loader, steps=steps, learning_rate=4e-3, progress=False)
    return model.eval().requires_grad_(False)


by_clean, by_noisy = small_regressor(clean_loss), small_regressor(noisy_loss)


# %%
@torch.no_grad()
def miss_at(model, t):
    """The mean of J over held-out molecules at a time, logP alone."""
    clean, mask, y = held
    time = torch.full((len(y),), t, device=device())
    guess = model(edm.diffuse(clean, time, edm.noise(mask, seeded(0))), time, mask)
    return 0.5 * (guess[:, :1] - y).square().mean().item()


grid = [k / 10 for k in range(11)]
models = {"clean clouds": by_clean, "noisy clouds": by_noisy, "noisy, the course's": guide}
misses = {name: [miss_at(model, t) for t in grid] for name, model in models.items()}


# %% tags=["figure"]
def draw_misses():
    figure, axes = canvas(1, 1, 5.6, 2.6)
    for (name, values), ink in zip(misses.items(), ("second", "first", "query"), strict=True):
        axes.plot(grid, values, "o-", ms=3, color=COLOURS[ink], label=f"trained on {name}")
    mean = 0.5 * held[2].square().mean().item()
    axes.axhline(mean, color=COLOURS["muted"], ls="--", lw=1)
    axes.text(0.01, mean + 0.03, "always the mean", size=7, color="#606060")
    axes.set(xlabel="time t", ylabel="miss J of logP", title="regressor f on held-out clouds")
    axes.set_ylim(0, 1.75)
    axes.legend(loc="upper left", fontsize=8)
    return figure


show(
    draw_misses(),
    alt="The miss against time: regressors trained on noisy clouds rise from near 0 to the miss of "
    "the mean, the one trained on clean clouds rises far above it",
)

# %% [markdown]
# All three know logP near $t = 0$. Near $t = 1$ hardly anything can be known, and the regressors of noisy clouds come to about what the mean gives, the dashed line. The one of clean clouds does not know that it does not know: it is far worse than the mean from the middle of the way on. Its slope leads anywhere, where the walk needs it most. The course's regressor has had more molecules, steps and width.
#
# ### A push
#
# Equation 3 needs the slope of $J$ at the cloud. Naively, by differences: move one number of the cloud a little, and see how the miss changes.


# %%
def slope_by_differences(regressor, z, t, mask, y, by=1e-3):
    slope = torch.zeros_like(z)
    for i, v in np.ndindex(*z.shape[1:]):
        step = torch.zeros_like(z)
        step[0, i, v] = by
        up, down = (regressor(each, t, mask) - y for each in (z + step, z - step))
        slope[0, i, v] = (up.square() - down.square()).sum() / (4 * by)
    return slope


half, all_there = torch.full((1,), 0.5, device=device()), full(1)
z = edm.diffuse(filled[:1], half, edm.noise(all_there, seeded(0)))
slow = slope_by_differences(by_noisy, z, half, all_there, torch.full((1, 1), 1.7, device=device()))
print(f"{2 * z[0].numel()} passes of the network; the slope has the length {slow.norm():.3f}")
print("its mean over the points:", [round(v, 5) for v in slow[0, :, :3].mean(dim=0).tolist()])

# %% [markdown]
# Automatic differentiation gives the same in one pass. And the slope has no centre: moving the whole cloud changes no guess. The promoted version centres it all the same, against rounding.
#
# One more thing is needed for strong guidance. Early on the way a step multiplies: by $1 / \alpha_{t \mid s}$, which is large near $t = 1$. A cloud with a steep slope is thrown far out, the slope is steeper still out there, and in a few steps its numbers overflow. So no push is longer than noise is: a cloud's noise of $(3 + F)\, n$ numbers has about the length $\sqrt{(3 + F)\, n}$.


# %% tags=["promote"]
def _shortened(push: Float[Tensor, "B N V"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N V"]:
    """Each cloud's push, cut to the length that noise has; 0 where it is not finite."""
    push = push.nan_to_num(0, 0, 0)
    longest = (push.shape[-1] * mask.sum(dim=1)).sqrt()
    length = push.flatten(1).norm(dim=1)
    return push * (longest / length.maximum(longest))[:, None, None]


# %%
for factor in (0.1, 1.0, 100.0):
    push = factor * edm.noise(full(1), seeded(0))
    print(f"length {push.norm():8.2f} becomes {_shortened(push, full(1)).norm():.2f}")


# %% tags=["promote", "exercise"]
def property_guide(
    regressor: Callable[..., Float[Tensor, "B P"]],
    target: Float[Tensor, "B P"],
    scale: float = 1.0,
) -> Callable[..., Float[Tensor, "B N V"]]:
    """What guidance adds to the guessed noise (equation 3): `change` of `EDM.step`.

    It leads down the slope of half the squared error of the properties that are asked. A push is
    never longer than noise.

    regressor  called with z, t and mask, as a `NoisyRegressor`
    target     standardised, a row for each cloud; NaN for a property that does not matter
    scale      w, how strongly it pulls
    returns    a function of z, t, σ and mask

    The function raises ValueError where the regressor guesses another number of properties.
    """

    def change(z, t, sigma, mask):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            guess = regressor(z, t, mask)
            if guess.shape[-1] != target.shape[-1]:
                raise ValueError(
                    f"target has {target.shape[-1]} properties; expected {guess.shape[-1]}, "
                    "as the regressor"
                )
            miss = torch.where(target.isnan(), 0, guess - target.nan_to_num())
            (slope,) = torch.autograd.grad(0.5 * miss.square().sum(), z)
        slope = torch.cat([center(slope[..., :3], mask), slope[..., 3:] * mask[..., None]], dim=-1)
        return _shortened(scale * sigma[:, None, None] * slope, mask)

    return change


# %% tags=["check"]
def weigh(z, t, mask):
    """A regressor whose slope is known: the sums of the first feature and of squared places."""
    real = mask[..., None]
    x = center(z[..., :3], mask)
    return torch.stack([(z[..., 3:4] * real).sum(dim=(1, 2)), x.square().sum(dim=(1, 2))], dim=1)


two_points = torch.tensor([[[1.0, 0, 0, 0.1, 0], [-1, 0, 0, 0.2, 0], [9, 9, 9, 9, 9]]])
two_there = torch.tensor([[True, True, False]])
at_half = torch.tensor([0.5])
push = property_guide(weigh, torch.tensor([[1.3, float("nan")]]), 2.0)
push = push(two_points, at_half, torch.tensor([0.5]), two_there)
# The sum is 0.3, so it misses by −1; w σ is 1; the slope of the sum is 1 at each point.
assert torch.allclose(push[0, :2, 3], torch.tensor([-1.0, -1.0])), "w σ (f − y) ∇f"
assert (push[0, :2, :3] == 0).all(), "a property that is NaN does not push"
assert (push[0, 2] == 0).all(), "nothing where there is no point"
push = property_guide(weigh, torch.tensor([[float("nan"), 1.0]]), 2.0)
push = push(two_points, at_half, torch.tensor([0.5]), two_there)
assert torch.allclose(push[0, :2, 0], torch.tensor([2.0, -2.0])), "outside points are pulled in"
assert not push.requires_grad, "the push is a number, not a part of a graph"

# %%
target = torch.full((1, 1), 1.7, device=device())
fast = property_guide(by_noisy, target)(z, half, torch.ones(1, device=device()), all_there)
print(f"off from the differences by at most {(fast - slow).abs().max():.1e}")

# %% [markdown]
# What does a push do to a cloud? Below is one push on a cloud at $t = 0.5$ towards a logP of 2, its arrows against $g$, since the step takes the noise away. After the push alone, without any step, the regressor's guess has moved:


# %% tags=["figure"]
def draw_push():
    figure, axes = canvas(1, 1, 3.6, 2.8)
    push = property_guide(guide, asked(1, logP=2.0), 4.0)(z, half, edm.signal(half)[1], all_there)
    seen = draw_cloud(
        axes, z[0, :, :3].cpu(), angle=(0, 0), colours=[NEW] * ATOMS, size=0.7, span=7
    )
    way = -push[0, :, :2].cpu().numpy()
    style = {"angles": "xy", "scale_units": "xy", "scale": 0.25, "color": COLOURS["query"]}
    axes.quiver(seen[:, 0], seen[:, 1], *way.T, width=0.012, zorder=5, **style)
    axes.set_title("push g on a cloud z_t, drawn as −4 g")
    return figure, push


figure, push = draw_push()
show(figure, alt="Nine points of a noisy cloud, each with an arrow of its own direction and length")

# %%
with torch.no_grad():
    for name, cloud in (("before", z), ("after", z - push)):
        logp_of = maker.properties.properties[0]
        guess = guide(cloud, half, all_there)[0, 0] * logp_of.deviation + logp_of.mean
        print(f"{name:>7} the push, the guide says logP {guess:.2f}")

# %% [markdown]
# ### Up again
#
# Equation 4 for single numbers, by what is kept and what is added:


# %%
def renoise_by_hand(z, s, t, fresh):
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (
        map(float, edm.signal(torch.tensor(each, device=device()))) for each in (s, t)
    )
    kept = alpha_t / alpha_s
    return kept * z + (sigma_t**2 - kept**2 * sigma_s**2) ** 0.5 * fresh


print(renoise_by_hand(0.7, s=0.4, t=0.5, fresh=-1.0))


# %% tags=["promote", "exercise"]
def renoise(
    edm: EDM,
    z: Float[Tensor, "B N V"],
    s: Float[Tensor, "B"],
    t: Float[Tensor, "B"],
    noise: Float[Tensor, "B N V"],
) -> Float[Tensor, "B N V"]:
    """Forward from time s to a later t: z_t = (α_t / α_s) z_s + σ_{t|s} ε (equation 4).

    Raises ValueError where t is before s, and for times outside of 0 to 1.
    """
    if not (s <= t).all():
        raise ValueError(f"s is {s.tolist()} and t is {t.tolist()}; expected no t before its s")
    (alpha_s, sigma_s), (alpha_t, sigma_t) = edm.signal(s), edm.signal(t)
    kept = alpha_t / alpha_s
    added = (sigma_t.square() - (kept * sigma_s).square()).clamp(min=0).sqrt()
    return kept[:, None, None] * z + added[:, None, None] * noise


# %% tags=["check"]
small_edm = EDM(latent=1, width=4, depth=1, steps=10)
first_noise, second_noise = torch.randn(2, 20_000, 1, 4, generator=torch.Generator().manual_seed(0))
early, late = torch.full((20_000,), 0.3), torch.full((20_000,), 0.7)
from_two = torch.full((20_000, 1, 4), 2.0)  # the clean value is 2 everywhere
up = renoise(small_edm, small_edm.diffuse(from_two, early, first_noise), early, late, second_noise)
alpha, sigma = (float(each[0]) for each in small_edm.signal(late))
# 80,000 normal numbers: their mean has a standard error of 0.0035 σ, their deviation of 0.0025 σ.
assert abs(up.mean() - 2 * alpha) < 0.02, "the signal is that of the later time"
assert abs(up.std() - sigma) < 0.02, "and so is the noise"
nothing = renoise(small_edm, from_two, late, late, second_noise)
assert torch.allclose(nothing, from_two, atol=1e-6), "from a time to itself nothing is added"

# %% [markdown]
# ### A ring in a cloud
#
# Now the scaffold. Two naive ways. The first lets the walk run freely and overwrites the given points at the end, when the others have settled around something else. The second overwrites them at every step, with the given cloud at the noise of that time, and centres the whole, since a cloud must have no centre of mass. How often is the result a molecule in one piece that holds the scaffold?


# %%
@torch.no_grad()
def overwritten(every_step, count=24):
    """Points overwritten in a free walk: clouds, and how far the ring jumps at each step."""
    z, jumps, generator = edm.noise(full(count), seeded(0)), [], seeded(0)
    for k in range(STRIDES, 0, -1):
        s, t = (torch.full_like(z[:, 0, 0], i / STRIDES) for i in (k - 1, k))
        z = edm.step(z, s, t, edm.noise(full(count), generator), full(count))
        if every_step:
            ring = edm.diffuse(known, s, edm.noise(keep, generator))
            jumps.append((ring - z)[..., :3][keep].view(count, -1, 3).mean(dim=1).norm(dim=1))
            z = torch.where(keep[..., None], ring, z)
            z = torch.cat([center(z[..., :3], full(count)), z[..., 3:]], dim=-1)
    return torch.where(keep[..., None], known, edm.clean(z, full(count))), jumps


PART = Chem.MolFromSmiles(SCAFFOLD)


def holds(text):
    return text is not None and Chem.MolFromSmiles(text).HasSubstructMatch(PART)


def share_of(z):
    """The share of clouds that are a molecule in one piece and hold the scaffold."""
    return np.mean([holds(text) for text in read(z, full(len(z)))])


at_the_end, _ = overwritten(every_step=False)
at_each_step, jumps = overwritten(every_step=True)
print(
    f"overwritten at the end: {share_of(at_the_end):.0%}; at each step: {share_of(at_each_step):.0%}"
)
print(f"the ring jumps by {torch.stack(jumps).mean():.2f} at a step, of a cloud of deviation 1")

# %% [markdown]
# Overwriting at each step is better, and it has a flaw. The given cloud lies around the origin, since it is centred. In the molecule the ring may lie to one side. So at each step the ring is torn back to the middle, away from what grew beside it; then the whole is centred, and the ring is off the middle again. The ring as a whole has no right place of its own. Where it lies is for the walk to say: equation 5 moves it to where the walk has put those points. Naively, for one cloud:


# %%
def merge_by_hand(z, known, keep):
    kept = [i for i, given in enumerate(keep.tolist()) if given]
    shift = sum(z[i, :3] - known[i, :3] for i in kept) / len(kept)
    merged = z.clone()
    for i in kept:
        merged[i] = known[i]
        merged[i, :3] += shift
    merged[:, :3] -= merged[:, :3].mean(dim=0)
    return merged


by_hand = merge_by_hand(at_the_end[0], known[0], keep[0])
print(f"centre: {by_hand[:, :3].mean(dim=0).norm():.1e}")


# %% tags=["promote", "exercise"]
def merge_known(
    z: Float[Tensor, "B N V"],
    known: Float[Tensor, "B N V"],
    keep: Bool[Tensor, "B N"],
    mask: Bool[Tensor, "B N"],
) -> Float[Tensor, "B N V"]:
    """The known points in place of the generated ones, both with one centre (equation 5).

    The known points, centred on their own, are moved to where the kept points of z have their
    centre; then the whole is centred.

    z      generated clouds
    known  clouds with the points that are given; what stands elsewhere in them does not matter
    keep   m, which points are given; none in a cloud leaves it as it is
    mask   which points each cloud has
    """
    kept = keep[..., None]
    count = keep.sum(dim=1).clamp(min=1)[:, None, None]
    place = (z[..., :3] * kept).sum(dim=1, keepdim=True) / count
    own = (known[..., :3] * kept).sum(dim=1, keepdim=True) / count
    x = torch.where(kept, known[..., :3] - own + place, z[..., :3])
    return torch.cat([center(x, mask), torch.where(kept, known[..., 3:], z[..., 3:])], dim=-1)


# %% tags=["check"]
made, given = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0))
some = torch.tensor([[True, True, False, False, False], [False] * 5])
there = torch.tensor([[True] * 4 + [False], [True] * 5])
merged = merge_known(made, given, some, there)
# Sums and differences of float32 numbers of about 1.
apart = lambda z, i, j: (z[0, i, :3] - z[0, j, :3]).norm()  # noqa: E731
assert torch.allclose(apart(merged, 0, 1), apart(given, 0, 1), atol=1e-5), "given distances"
assert torch.allclose(apart(merged, 2, 3), apart(made, 2, 3), atol=1e-5), "generated distances"
assert torch.equal(merged[0, :2, 3:], given[0, :2, 3:]), "given features"
assert merged[..., :3].sum(dim=1).abs().max() < 1e-5, "centred, over the points that are there"
before, after = (z[0, :2, :3].mean(dim=0) - z[0, 2, :3] for z in (made, merged))
assert torch.allclose(before, after, atol=1e-5), "the given part lies where the walk has put it"
middle = center(made[1:, :, :3], there[1:])
assert torch.allclose(merged[1:, :, :3], middle, atol=1e-5), "nothing given, nothing changed"

# %%
promoted = merge_known(at_the_end[:1], known[:1], keep[:1], full(1))
print(f"off from the version by hand by at most {(promoted[0] - by_hand).abs().max():.1e}")

# %% [markdown]
# The walk of equation 6 puts a merged cloud in after each step. There is one more flaw to mend. The step to $s$ was taken before the points were put back; what is new was made for a ring that is no longer there. So go back up by equation 4 and take the step again, now from a cloud where both parts have met. With $R$ repeats each stride is walked $R$ times.


# %% tags=["promote"]
@torch.no_grad()
def inpaint(
    edm: EDM,
    known: Float[Tensor, "B N V"],
    keep: Bool[Tensor, "B N"],
    mask: Bool[Tensor, "B N"],
    *,
    start: float = 1.0,
    steps: int = 100,
    repeats: int = 1,
    change: Callable[..., Float[Tensor, "B N V"]] | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    watch: Callable[[float, Tensor], None] | None = None,
) -> Float[Tensor, "B N V"]:
    """Generate the points of `mask` that are not kept, around those that are (equation 6).

    known     clean latent points; what stands where nothing is kept is where the walk begins when
              `start` is below 1; a new point is 0 there, and begins as noise
    keep      m, which points stay as they are
    mask      which points each cloud has
    start     τ, the time from which to walk back: 1 is from pure noise
    steps     strides from time 1; `start` of them are taken
    repeats   R, how often each stride is walked, back and forth, so that both parts agree
    change    guidance, see `EDM.step`
    progress  show a bar
    watch     is called with the time and the clouds after each stride
    returns   clean latent points, the kept ones exactly the known ones up to their place

    Raises ValueError for a start that is not above 0 and at most 1, for steps beyond T, for
    repeats below 1, and where a kept point is not in the mask.
    """
    if not 0 < start <= 1:
        raise ValueError(f"start is {start}; expected more than 0 and at most 1")
    steps = whole_number("steps", steps, least=1, most=edm.steps)
    repeats = whole_number("repeats", repeats, least=1)
    if (keep & ~mask).any():
        raise ValueError("keep holds points that mask has not; expected a part of mask")
    strides = max(1, round(start * steps))
    times = [start * i / strides for i in range(strides, -1, -1)]
    at = lambda t: torch.full((len(known),), t, device=known.device)  # noqa: E731
    z = edm.diffuse(known, at(start), edm.noise(mask, generator)) * mask[..., None]
    z = torch.cat([center(z[..., :3], mask), z[..., 3:]], dim=-1)
    with progress_bar(strides, 0, unit="step", shown=progress) as bar:
        for t, s in itertools.pairwise(times):
            for again in range(repeats):
                z = edm.step(z, at(s), at(t), edm.noise(mask, generator), mask, change=change)
                noisy = edm.diffuse(known, at(s), edm.noise(keep, generator))
                z = merge_known(z, noisy, keep, mask)
                if again < repeats - 1:
                    z = renoise(edm, z, at(s), at(t), edm.noise(mask, generator))
            if watch:
                watch(s, z)
            bar.update()
    return merge_known(edm.clean(z, mask), known, keep, mask)


# %% [markdown]
# The way that the time takes, measured from the calls of a short walk with $R = 1$ and $R = 3$:


# %%
class Diary:
    """An EDM that notes the times of its steps."""

    def __init__(self):
        self.times = []

    def __getattr__(self, name):
        return getattr(edm, name)

    def step(self, z, s, t, *rest, **options):
        self.times += [t[0].item(), s[0].item()]
        return edm.step(z, s, t, *rest, **options)


diaries = {R: Diary() for R in (1, 3)}
for R, diary in diaries.items():
    inpaint(diary, known[:1], keep[:1], full(1), steps=5, repeats=R)


# %% tags=["figure"]
def draw_times():
    figure, axes = canvas(1, 1, 5.4, 2.2)
    for (R, diary), ink in zip(diaries.items(), ("second", "first"), strict=True):
        axes.plot(diary.times, "o-", ms=3, color=COLOURS[ink], label=f"repeats R = {R}")
    place = diaries[3].times
    style = {"size": 8, "color": "#606060", "arrowprops": {"arrowstyle": "->", "color": "#909090"}}
    axes.annotate("from s up to t", (1.5, (place[1] + place[2]) / 2), (5.5, 1.05), **style)
    axes.set(xlabel="calls of a step: where it begins, where it ends", ylabel="time t")
    axes.set_ylim(-0.05, 1.25)
    axes.legend(loc="upper right", fontsize=8)
    return figure


show(
    draw_times(),
    alt="Time against calls: a staircase straight down with one repeat; with three repeats a saw "
    "that goes down, up and down again on each stride",
)

# %% [markdown]
# ### A bar to watch
#
# A walk of minutes needs a bar. `progress=True` shows one; it is printed where errors are, and the small helper below brings it into the cell's own output, and leaves its last state there.


# %%
class Live(io.StringIO):
    """What is written, kept and shown at once."""

    def write(self, text):
        sys.stdout.write(text)
        return super().write(text)


@contextmanager
def bar_in_cell():
    """Show a progress bar as output of the cell."""
    from IPython.display import clear_output

    with redirect_stderr(Live()) as live:
        yield
    clear_output(wait=True)
    print(live.getvalue().split("\r")[-1].strip())


# %%
by_repeats = {2: filled}
with bar_in_cell():
    how = {"steps": STRIDES, "generator": seeded(0), "progress": True}
    by_repeats[3] = inpaint(edm, known, keep, full(24), repeats=3, **how)

# %%
by_repeats[1] = inpaint(edm, known, keep, full(24), steps=STRIDES, generator=seeded(0))
shares = {
    "overwritten\nat the end": share_of(at_the_end),
    "at each step,\nown centres": share_of(at_each_step),
    **{f"merged,\nrepeats R = {R}": share_of(by_repeats[R]) for R in (1, 2, 3)},
}


# %% tags=["figure"]
def draw_shares():
    figure, axes = canvas(1, 4, 8.2, 2.4, gridspec_kw={"width_ratios": [1, 1, 1, 2.6]})
    pictures = (at_the_end, "at the end"), (at_each_step, "at each step")
    for column, (z, title) in zip(
        axes, (*pictures, (by_repeats[3], "merged, R = 3")), strict=False
    ):
        place = max(range(24), key=lambda k: holds(read(z[k : k + 1], full(1))[0]))
        inks = [GIVEN if kept else GROWN for kept in keep[place]]
        draw_state(column, z[place], full(1)[0], z[place], inks, span=6.0)
        column.set_title(title, size=8)
    axes[0].text(
        0.5, -0.05, "given m (red)", size=8, color=GIVEN, ha="center", transform=axes[0].transAxes
    )
    error = [np.sqrt(p * (1 - p) / 24) for p in shares.values()]
    colours = [NEW, NEW, *3 * [COLOURS["first"]]]
    axes[3].bar(
        range(5),
        shares.values(),
        yerr=error,
        color=colours,
        width=0.6,
        error_kw={"lw": 0.8, "ecolor": "#404040"},
    )
    axes[3].set_xticks(range(5), list(shares), size=6)
    axes[3].set(ylabel="share of 24", title="in one piece, with the scaffold", ylim=(0, 1))
    return figure


show(
    draw_shares(),
    alt="Three clouds with the given points in red, and bars: the share of molecules in one piece "
    "that hold the scaffold grows from overwriting to merging and with the repeats",
)

# %% [markdown]
# The thin lines are one standard error of a share of 24. Overwriting at the end hardly ever fits. Merging with one centre and going back and forth bring the share up, and each repeat costs a pass of the network. Nothing is repaired here, and all nine points are used, so four new atoms have to close up with the five given ones.
#
# ### What is kept, and what can be lost
#
# The kept points are the known ones. Does that keep the atoms and bonds? The decoder of [lesson 4](4_autoencoder.ipynb) reads an atom off its point alone, and a bond off its two points alone. So whatever stands around them, the given points give the given atoms and bonds:

# %%
n, mended = int(scaffold_mask.sum()), []
with torch.no_grad():
    own = to_codes(diffusion.decode(scaffold, scaffold_mask))
    for R in (1, 2, 3):
        codes = to_codes(diffusion.decode(by_repeats[R], full(24)))
        same = (codes.bonds[:, :n, :n] == own.bonds[:, :n, :n]).flatten(1).all(dim=1)
        same &= (codes.atoms[:, :n] == own.atoms[:, :n]).all(dim=1)
        free = by_repeats[R] - merge_known(by_repeats[R], known, keep, full(24))
        mended += [text for text in read(by_repeats[R], full(24), mode="connect") if text]
        print(
            f"R = {R}: {same.float().mean():.0%} of the graphs have the scaffold, as atoms and bonds;"
            f" points off by {free.abs().max():.0e}"
        )

# %% [markdown]
# All of them, before a molecule is made of them. Two things can go wrong then. An atom of the scaffold may get one bond too many from what is new, or the new part may not be joined to it. The [repair of chapter 2](../2_graph_dit/6_molecules.ipynb) mends both, and it may mend the wrong bond. So each repaired molecule is asked whether it still holds the scaffold, and is left out if not:

# %%
lost = [text for text in mended if not holds(text)]
print(f"{len(mended)} molecules after repair, {len(lost)} of them have lost the scaffold")
if lost:
    texts = lost[:5]
    show(molecule_grid(texts, columns=5), alt="Molecules whose repair has opened the given ring")

# %% [markdown]
# ## On real input
#
# ### Molecules of a logP
#
# The same noise three times: without guidance, asked for a logP of −1, and of 2. Only molecules in one piece are counted, without repair. Intervals are those of [chapter 1](../1_paper_writing/4_experiments.ipynb), at 95 %.


# %%
def walk_towards(value, scale=2.0, count=COUNT, model=guide):
    """Molecules asked for a logP: those in one piece."""
    target = asked(count, logP=value)
    target = target if model is guide else target[:, :1]
    pull = property_guide(model, target, scale)
    z = edm.sample(full(count), steps=STRIDES, change=pull, generator=seeded(1))
    return [text for text in read(z, full(count)) if text]


free = edm.sample(full(COUNT), steps=STRIDES, generator=seeded(1))
molecules = {
    "asked for logP −1": walk_towards(-1.0),
    "without guidance": [text for text in read(free, full(COUNT)) if text],
    "asked for logP 2": [text for text in read(guided, full(COUNT)) if text],
}
for name, texts in molecules.items():
    print(f"{name:>17}: logP {mean_interval(logp(texts))}, {len(texts)} of {COUNT} in one piece")

# %%
low, middle, high = (mean_interval(logp(texts)) for texts in molecules.values())
assert low.high < middle.low and middle.high < high.low, "guidance moves more than its interval"

# %% [markdown]
# The three intervals do not touch, so guidance moves the property in the direction that is asked. It does not bring each molecule to the value: below is how they scatter, beside what the strength $w$ does for a target of 2.

# %%
strengths = {0: molecules["without guidance"][:], 2: molecules["asked for logP 2"]}
counts = {0: COUNT, 2: COUNT}
for scale in (1, 4, 8, 16):
    strengths[scale], counts[scale] = walk_towards(2.0, scale, count=24), 24
strengths = dict(sorted(strengths.items()))
for scale, texts in strengths.items():
    reached = f"logP {mean_interval(logp(texts))}" if len(texts) > 1 else "no logP"
    print(f"w = {scale:4}: {len(texts) / counts[scale]:.0%} in one piece, {reached}")


# %% tags=["figure"]
def draw_guided():
    figure, axes = canvas(1, 3, 8.4, 2.5)
    bins = np.arange(-4, 4.01, 0.5)
    for (name, texts), ink in zip(molecules.items(), ("first", "muted", "second"), strict=True):
        style = {"histtype": "stepfilled", "alpha": 0.35, "color": COLOURS[ink]}
        axes[0].hist(logp(texts), bins, **style)
        axes[0].hist(logp(texts), bins, histtype="step", color=COLOURS[ink], label=name)
    axes[0].set(xlabel="logP", ylabel="molecules", title="what was asked, what came")
    axes[0].set_ylim(0, axes[0].get_ylim()[1] * 1.45)
    axes[0].legend(loc="upper left", fontsize=7)
    w = [scale for scale, texts in strengths.items() if len(texts) > 1]
    rows = [mean_interval(logp(strengths[scale])) for scale in w]
    places = [list(strengths).index(scale) for scale in w]
    ends = {"fmt": "o-", "ms": 4, "color": COLOURS["first"], "capsize": 2}
    axes[1].errorbar(places, [r.mean for r in rows], [r.half for r in rows], **ends)
    axes[1].axhline(2, color=COLOURS["muted"], ls="--", lw=1)
    axes[1].text(0, 2.05, "target", size=7, color="#606060")
    axes[1].set(ylabel="logP", title="the property follows")
    share = [len(texts) / counts[scale] for scale, texts in strengths.items()]
    axes[2].plot(range(len(share)), share, "o-", ms=4, color=COLOURS["second"])
    axes[2].set(ylabel="share in one piece", title="validity pays", ylim=(0, 1.05))
    for each in axes[1:]:
        each.set_xticks(range(len(strengths)), [f"{scale:g}" for scale in strengths])
        each.set_xlabel("guidance w")
    return figure


show(
    draw_guided(),
    alt="Histograms of logP for three targets; the mean logP against the strength of guidance, which "
    "comes near 2; the share in one piece against strength, which falls when guidance is strong",
)

# %% [markdown]
# The property comes near the target with a $w$ of a few. A little guidance costs nothing here: molecules with a high logP are mostly rings and chains of carbon, which are easy to make. Strong guidance takes the walk to clouds that the diffusion has never seen, and there are no molecules there. Where it ends depends on the target and on the regressor, so look at both curves before choosing.
#
# ### Molecules around a scaffold
#
# Molecules of the longest walk above, $R = 3$, without repair, and each of them with the scaffold in it. Cages of small rings are no accident of inpainting: the cell after the picture counts how many rings QM9 has where it has such a ring.

# %%
found = sorted({text for text in read(by_repeats[3], full(24)) if holds(text)})[:10]
assert all(holds(text) for text in found)
notes = [f"logP {said(value)}" for value in logp(found)]
show(
    molecule_grid([SCAFFOLD, *found[:9]], ["the scaffold", *notes[:9]], columns=5, width=7.2),
    alt="The scaffold, and different molecules that all hold it",
)

# %%
of_data = [text for text in qm9_table("held_out")["smiles"] if holds(text)]
rings = [CalcNumRings(Chem.MolFromSmiles(text)) for text in of_data]
print(
    f"{len(rings)} held-out molecules hold it, {np.mean(np.array(rings) >= 3):.0%} with three rings or more"
)

# %% [markdown]
# ### A molecule, improved
#
# The third row of the figure, in full. Each of 32 tries keeps a random share of the molecule's points, gets up to two new ones, starts at $\tau = 0.5$ and is pushed towards a logP that hardly any molecule has. What is no better than the molecule is left out, and so are ions and what resembles it less than 0.3, by the Tanimoto similarity of [chapter 2](../2_graph_dit/7_metrics.ipynb). The others are shown, best first.


# %%
def judged(z, mask, molecule):
    """Different molecules, with logP and similarity: all, and those that are good, best first."""
    texts = {text for text in read(z, mask) if text and "+" not in text}  # no ions
    texts = sorted(texts - {Chem.CanonSmiles(molecule)})
    rows = list(zip(texts, logp(texts), like(texts, molecule), strict=True)) if texts else []
    own = logp([molecule])[0]
    good = [row for row in rows if row[1] > own and row[2] >= 0.3]
    return rows, sorted(good, key=lambda row: -row[1])


rows, good = judged(changed, changed_mask, MOLECULE)
own = logp([MOLECULE])[0]
print(f"{len(rows)} different molecules from 32 tries, {len(good)} better and similar")
notes = [f"logP {said(value)}\nsimilarity {near:.2f}" for _, value, near in good]
pictures = [MOLECULE, *(text for text, _, _ in good[:9])]
show(
    molecule_grid(pictures, [f"given\nlogP {said(own)}", *notes[:9]], columns=5),
    alt="The molecule that was given, and better ones that resemble it, each with its logP and "
    "similarity",
)

# %% [markdown]
# How far may it go? The start time $\tau$ is the leash. The earlier the walk starts, the more of the molecule is lost in noise before, even where no point is kept.

# %%
by_start = {0.5: rows}
for start in (0.2, 0.35, 0.75):
    z, mask, _ = improve(MOLECULE, start=start)
    by_start[start] = judged(z, mask, MOLECULE)[0]
by_start = dict(sorted(by_start.items()))


# %% tags=["figure"]
def draw_leash():
    figure, axes = canvas(1, 2, 7.2, 2.3)
    starts = [start for start, found in by_start.items() if len(found) > 1]
    for column, k, ink in ((axes[0], 2, "first"), (axes[1], 1, "second")):
        spread = [mean_interval(row[k] for row in by_start[start]) for start in starts]
        ends = {"fmt": "o-", "ms": 4, "color": COLOURS[ink], "capsize": 2}
        column.errorbar(starts, [s.mean for s in spread], [s.half for s in spread], **ends)
        column.set(xlabel="start τ", xlim=(0.1, 1))
    axes[0].set(
        ylabel="Tanimoto similarity", title="to the molecule that was given", ylim=(0, None)
    )
    axes[1].axhline(own, color=COLOURS["muted"], ls="--", lw=1)
    axes[1].text(0.98, own + 0.05, "given", size=7, color="#606060", ha="right")
    axes[1].set(ylabel="logP", title="asked to be high")
    return figure


show(
    draw_leash(),
    alt="Against the start time: the similarity falls, and the logP rises from that of the given "
    "molecule",
)

# %% [markdown]
# The two curves are the bargain. With a small $\tau$ the results resemble the molecule and gain little; with a large one they gain much and are other molecules. `SyCo.optimise` of lesson 7 is this section as one call, and returns nothing below the similarity that is asked; `SyCo.generate(scaffold=…)` is the one before it, with the filter.
#
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `property_guide` | 20 | ●●● |
# | `renoise` | 8 | ●○○ |
# | `merge_known` | 12 | ●●○ |
#
# <details><summary>Hint for <code>property_guide</code></summary>
#
# The walk runs under `torch.no_grad()`, so open `with torch.enable_grad():` inside, and begin with `z.detach().requires_grad_()`. Sum half of the squares over the whole batch: clouds do not hear of each other, so each gets its own slope. `torch.where(target.isnan(), 0, …)` drops a property, and `target.nan_to_num()` keeps NaN out of its gradient. Then `center` for the coordinates, the mask for the features, and `_shortened` at last.
#
# </details>
#
# <details><summary>Hint for <code>renoise</code></summary>
#
# `edm.signal(s)` gives $\alpha_s$ and $\sigma_s$ of each cloud. Give a factor two axes of length 1, `[:, None, None]`, to multiply clouds with it. Where $s = t$ rounding can make the number under the root slightly negative: `clamp(min=0)`.
#
# </details>
#
# <details><summary>Hint for <code>merge_known</code></summary>
#
# Two means over the kept points, one of `z` and one of `known`; divide by `keep.sum(dim=1).clamp(min=1)`. Then `torch.where` with the mask `keep[..., None]`, and `center` for the coordinates at last.
#
# </details>
#
# **Predict.** What does `inpaint` return where all points of a molecule are kept, from $\tau = 1$, with guidance towards a logP far away?
#
# <details><summary>Hint</summary>
#
# What does the last line of `inpaint` leave of the walk?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The molecule, exactly. The last merge puts all known points back, and the walk was for nothing. The cell below compares.
#
# </details>

# %%
everything = {
    "steps": 10,
    "generator": seeded(0),
    "change": property_guide(guide, asked(1, logP=3)),
}
same = inpaint(edm, filled[:1], full(1), full(1), **everything)
print(f"off by at most {(same - filled[:1]).abs().max():.1e}")

# %% [markdown]
# **Vary.** Ask for two properties at once: a logP of 0 and a polar surface (TPSA) of 60 Å². Does the guide reach both?
#
# <details><summary>Hint</summary>
#
# `asked(24, logP=0.0, TPSA=60.0)` makes the targets; the rest is as in `walk_towards`. `fourfold.graph_dit.metrics.tpsa` measures.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The misses of both properties add up in $J$, so one slope serves both. In the cell below TPSA comes up to near what was asked. LogP comes down, and may go below 0: atoms that make a surface polar lower logP, so in real molecules the two are not free of each other.
#
# </details>

# %%
from fourfold.graph_dit.metrics import tpsa

pull = property_guide(guide, asked(24, logP=0.0, TPSA=60.0), 2.0)
z = edm.sample(full(24), steps=STRIDES, change=pull, generator=seeded(1))
both = [text for text in read(z, full(24)) if text]
free_texts = molecules["without guidance"]
for name, texts in (("without guidance", free_texts), ("asked for both", both)):
    print(f"{name:>16}: logP {mean_interval(logp(texts))}, TPSA {mean_interval(tpsa(texts))} Å²")

# %% [markdown]
# **Find the bug.** A colleague takes the mean of the squared misses in place of half their sum, "to be independent of the batch size". With one molecule at a time all is well. In batches of 64 the guidance hardly works. What depends on the batch size?


# %%
def colleagues_guide(regressor, target, scale):
    def change(z, t, sigma, mask):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            miss = regressor(z, t, mask) - target
            (slope,) = torch.autograd.grad(0.5 * miss.square().mean(), z)
        return scale * sigma[:, None, None] * slope

    return change


for count in (1, 64):
    z, t = edm.noise(full(count), seeded(0)), torch.full((count,), 0.5, device=device())
    where = z, t, edm.signal(t)[1], full(count)
    target = torch.full((count, 1), 1.7, device=device())
    pushes = [make(by_noisy, target, 1.0)(*where) for make in (property_guide, colleagues_guide)]
    ours, theirs = (push[0].norm().item() for push in pushes)
    print(
        f"batch of {count:2d}: the first cloud is pushed by {ours:.3f}, the colleague's by {theirs:.3f}"
    )

# %% [markdown]
# <details><summary>Hint</summary>
#
# How large is the slope of a mean over 64 clouds, at one of them?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The push itself. A cloud's own miss counts for one part in 64 of the mean, so its slope is 64 times smaller. A sum over the batch gives every cloud the slope of its own miss. What is right for training, where all clouds share the weights, is wrong here, where they share nothing.
#
# </details>
#
# ## What breaks
#
# ### A guide that has never seen noise
#
# The regressor of clean clouds as a guide, beside the one of noisy clouds. Both have the same size and the same number of steps behind them, and the first one is the better of the two at $t = 0$.

# %%
print(
    f"J at t = 0: {misses['clean clouds'][0]:.2f} (clean), {misses['noisy clouds'][0]:.2f} (noisy)"
)
for name, model in (("clean clouds", by_clean), ("noisy clouds", by_noisy)):
    texts = walk_towards(2.0, scale=1.0, count=24, model=model)
    print(
        f"guide of {name}: {len(texts)} of 24 in one piece, logP {mean_interval(logp(texts) if texts else [])}"
    )

# %% [markdown]
# It breaks the molecules. Its slopes are steep where nothing can be known yet, and they point anywhere; early steps magnify them. A good score on clean data says nothing of how a guide behaves on the way.
#
# ### A scaffold without room
#
# A scaffold that fills all nine places leaves nothing to make, and one with few hydrogens leaves little to grow from. The first molecule below has nine atoms. The second has room for two more, and only one of its carbons has hydrogens to give away:

# %%
for smiles in ("FC1(F)C(F)(F)C1(F)F", "FC1(F)CC1(F)F"):
    z0, there = latent_of(smiles)
    room_left = full(8) & ~there
    z = inpaint(
        edm, z0.expand(8, -1, -1), there.expand(8, -1), full(8), steps=25, generator=seeded(0)
    )
    texts = [text for text in read(z, full(8)) if text]
    print(
        f"{smiles}: {int(room_left[0].sum())} new atoms, {len(set(texts))} different molecules: {sorted(set(texts))}"
    )

# %% [markdown]
# ### Bad input
#
# A start of 0 has nothing to walk, each stride is walked at least once, a point to keep has to be there, and a guide of three properties wants three targets:

# %%
with shows_error(ValueError):
    inpaint(edm, known, keep, full(24), start=0.0)
with shows_error(ValueError):
    inpaint(edm, known, keep, full(24), repeats=0)
with shows_error(ValueError):
    inpaint(edm, known, keep, keep & ~keep)
with shows_error(ValueError):
    edm.sample(full(2), steps=2, change=property_guide(guide, torch.zeros(2, 1, device=device())))

# %% [markdown]
# ## Recap
#
# - Guidance adds the slope of a regressor's miss, times $w\, \sigma_t$, to the guessed noise. The regressor has to be trained on noisy clouds, and too strong a pull costs validity.
# - Inpainting puts the known points back at every step, at the noise of the time and with one centre for both parts, and walks each stride more than once. Kept points keep their atoms and bonds; a repair may not, so results are filtered.
# - Optimisation is both, from a molecule blurred to $\tau$, with points added; $\tau$ is the bargain between similarity and gain. [Lesson 7](7_learning.ipynb) trains all parts and puts one face on them.
