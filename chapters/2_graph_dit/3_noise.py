# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: advanced
#     minutes: 60
#     needs:
#     - 2_graph_dit/2_graphs
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Noise: atoms and bonds that forget together
#
# **After this lesson you can** write discrete noise for molecular graphs, and its posterior, as matrices and in a form that needs none, and check a noise model against what its paper says of it.
#
# *Before this:* [Graphs](2_graphs.ipynb) (`2_graphs`), whose tensors X and E and whose rows of X_G are used from the first cell on. *Time:* 60 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# A diffusion model learns to undo noise. The noise of Graph DiT is discrete: an atom never becomes three quarters of a carbon, it stays what it is or is **redrawn**, that is, drawn anew from a fixed distribution. The share of atoms that have not been redrawn falls with time $t$ from nearly 1 to 0 at $T$. A **transition matrix** (转移矩阵) holds, for each type that an atom may have, the chances of each type that it may become.
#
# Earlier models such as DiGress redraw atoms and bonds apart (对原子和键分别加噪), each from its **marginal** (边缘分布), the share of that type in the data. Graph DiT redraws a whole row of the graph, an atom with its bonds to all others. What an atom becomes depends on its bonds, through the **co-occurrence** (共同出现概率) of atoms and bonds in the data, and what a bond becomes depends on its atom. To sample, a network guesses the clean graph, and the **posterior** (后验) combines this guess with the noisy graph into the chances of a graph that is one step cleaner.
#
# The formulas of this noise and the words about it do not agree everywhere. This lesson writes both, computes what the formulas do, and finds three differences. None of them needs a trained network to be seen.

# %% [markdown]
# ## Figure
#
# ### One molecule, three kinds of noise
#
# The data are molecules of QM9, up to nine atoms of carbon, nitrogen, oxygen and fluorine. `GraphNoise`, which this lesson builds, makes three kinds of noise from their statistics: the paper's ("graph"), DiGress's ("independent"), and one of the course's own ("corrected").

# %%
import math
import time
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from rdkit.Chem import AllChem
from torch import Tensor

from fourfold.graph_dit.diffusion import draw_graph
from fourfold.graph_dit.graphs import (
    BONDS,
    Codes,
    Graphs,
    Vocabulary,
    decode_graphs,
    encode_smiles,
    find_vocabulary,
    graph_tokens,
    one_hot,
    parse_smiles,
    to_codes,
)
from fourfold.graph_dit.noise import KINDS, GraphNoise, graph_statistics
from fourfold.kit.arguments import whole_number
from fourfold.kit.drawing import COLOURS, canvas, draw_pixels, show
from fourfold.kit.molecules import nci_smiles, qm9_table
from fourfold.kit.notebook import shows_error

# %%
smiles = qm9_table("train")["smiles"][::4].tolist()
vocabulary = find_vocabulary(smiles)
codes, _, problems = encode_smiles(smiles, vocabulary)
statistics = graph_statistics(codes, vocabulary)
clean = one_hot(codes, vocabulary)
text = "NC(=O)c1ccon1"  # held out
example = one_hot(encode_smiles([text], vocabulary)[0], vocabulary)
print(f"{len(codes.atoms)} molecules, {len(problems)} problems, atoms {vocabulary.atoms}")


# %%
def places_of(text):
    """Where RDKit draws the atoms of a molecule, (n, 2)."""
    molecule = parse_smiles(text)
    AllChem.Compute2DCoords(molecule)
    return torch.tensor(molecule.GetConformer().GetPositions())[:, :2]


def draw_molecule_at(axes, graph, truth, places):
    """A molecule with its atoms at given places; what is not as in `truth` is orange."""
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    axes.margins(0.14)
    (symbols, bonds), (old_symbols, old_bonds) = (
        next(decode_graphs(to_codes(each), vocabulary)) for each in (graph, truth)
    )
    for i, j in ((old_bonds > 0) & (bonds == 0)).triu(1).nonzero().tolist():
        axes.plot(*places[[i, j]].T, ":", color=COLOURS["muted"], lw=0.7, zorder=0)
    for i, j in bonds.triu(1).nonzero().tolist():
        kind, along = int(bonds[i, j]), places[j] - places[i]
        across = 0.13 * torch.stack([-along[1], along[0]]) / along.norm()
        ink = COLOURS["first" if bonds[i, j] == old_bonds[i, j] else "bad"]
        for line in {1: [0], 2: [-1, 1], 3: [-1.6, 0, 1.6], 4: [-1, 1]}[kind]:
            ends = torch.stack([places[i], places[j]]) + line * across
            dotted = ":" if kind == 4 and line == 1 else "-"
            axes.plot(*ends.T, dotted, color=ink, lw=0.9, zorder=1)
    for symbol, old, (x, y) in zip(symbols, old_symbols, places.tolist(), strict=True):
        ink = COLOURS["first" if symbol == old else "bad"]
        axes.plot(x, y, "o", color="white", ms=8, zorder=2)
        axes.text(x, y, symbol, ha="center", va="center", size=8, weight="bold", color=ink)


# %% tags=["figure"]
INKS = {"graph": "second", "independent": "first", "corrected": "good"}
noises = {kind: GraphNoise(statistics, kind=kind) for kind in KINDS}
T = noises["graph"].steps


def unchanged(noise, t):
    """The chances that an atom, and that a bond, of the example is drawn as it was (in %)."""
    pX, pE = noise.q(example, t)
    bonded = example.E[..., 1:].sum(-1) > 0
    atoms, bonds = (pX * example.X).sum(-1)[example.mask], (pE * example.E).sum(-1)[bonded]
    return f"atoms {100 * atoms.mean():.0f}, bonds {100 * bonds.mean():.0f}"


def draw_forgetting(shares=(0.1, 0.2, 0.3, 0.5, 0.7, 1.0)):
    figure, axes = canvas(len(KINDS), len(shares), 7.6, 3.6)
    places, alpha_bar = places_of(text), noises["graph"].alpha_bar
    for row, (kind, noise) in zip(axes, noises.items(), strict=True):
        for each, share in zip(row, shares, strict=True):
            t = torch.tensor([round(share * T)])
            noisy = draw_graph(*noise.q(example, t), example.mask, torch.manual_seed(3))
            draw_molecule_at(each, noisy, example, places)
            each.set_xlabel(unchanged(noise, t), fontsize=7)
            if kind == KINDS[0]:
                each.set_title(f"t / T = {share:g}\nnominal ᾱ {alpha_bar[t].item():.2f}")
        row[0].set_ylabel(kind)
    return figure


show(
    draw_forgetting(),
    alt="A small ring molecule under three kinds of noise at six times; with the paper's noise most "
    "of its atoms and bonds have changed early, with the two others only late",
)

# %% [markdown]
# What is orange has changed: an atom that was redrawn as another, or a bond that is new or of another type. A lost bond is dotted. Below each drawing stands how probable it is, in percent, that an atom of this molecule and that one of its bonds is drawn as it was. The number $\bar\alpha$ above each column is the share that, by the schedule, has not been redrawn. In the lower two rows no chance is below it, as it should be: what is redrawn may come out as it was. In the first row, the paper's noise, they are below it from the start.

# %% [markdown]
# ## Formula
#
# ### One atom
#
# An atom of type $x_0$, a one-hot row, is at time $t$ still the same with probability $\bar\alpha_t$, and else drawn from a distribution $m$. Here $\mathbf 1$ is a column of ones and a prime transposes, so that every row of $\mathbf 1 m'$ is $m$:
#
# $$ q(x_t \mid x_0) = x_0\, \bar Q_t, \qquad \bar Q_t = \bar\alpha_t I + (1 - \bar\alpha_t)\, \mathbf 1 m' \tag{1} $$
#
# It gets there in steps, each of which redraws a share $\beta_t$. Since $m$ sums to 1, $\mathbf 1 m' \mathbf 1 m' = \mathbf 1 m'$ (it is *idempotent*, 幂等), and so the steps multiply to the whole:
#
# $$ Q_t = (1 - \beta_t) I + \beta_t\, \mathbf 1 m', \qquad \bar Q_t = \bar Q_{t-1} Q_t, \qquad \bar\alpha_t = \prod_{\tau \le t} (1 - \beta_\tau) \tag{2} $$
#
# The schedule is a cosine, cut into $T + 1$ steps:
#
# $$ \beta_t = 1 - \frac{f(t + 1)}{f(t)}, \qquad f(t) = \cos^2\!\Big( \frac{\pi}{2} \cdot \frac{t / (T + 1) + 0.008}{1.008} \Big) \tag{3} $$
#
# What was the atom at a time $s < t$, if it is $x_t$ now and was $x_0$? Bayes' rule gives the first formula. Where $x_0$ is not known, a network's guess $\hat p$ weights the types $a$ that it may have been:
#
# $$ p(x_s \mid x_t, x_0) = \frac{(x_t Q_{s \to t}')_{x_s}\, (x_0 \bar Q_s)_{x_s}}{x_0 \bar Q_t\, x_t'}, \qquad p(x_s \mid x_t) = \sum_a \hat p_a\; p(x_s \mid x_t, x_0 = a) \tag{4} $$
#
# ### A row of the graph
#
# The data give the marginals $m_X$ of the $A$ atom types and $m_E$ of the $K = 5$ bond types (no bond is the first), and the co-occurrences. Let $P(k \mid a, b)$ be the share of bond $k$ among pairs of atoms of types $a$ and $b$. The release averages over the partner's type $b$, as if all types were equally frequent, and turns the result around in the same way:
#
# $$ C_{XE}[a, k] = \frac1A \sum_b P(k \mid a, b), \qquad C_{EX}[k, a] = \frac{C_{XE}[a, k]}{\sum_{a'} C_{XE}[a', k]} \tag{5} $$
#
# The first says which bond goes with an atom, the second which atom goes with a bond. A row of X_G, an atom and its $N$ slots, has width $F = A + K N$. In place of $\mathbf 1 m'$ stands the matrix $u$ of all four parts, and the transition matrices are made from it as before:
#
# $$ u = \begin{pmatrix} \mathbf 1 m_X' & C_{XE} \cdots C_{XE} \\ \begin{matrix} C_{EX} \\ \vdots \\ C_{EX} \end{matrix} & \begin{matrix} \mathbf 1 m_E' & \cdots & \mathbf 1 m_E' \\ \vdots & & \vdots \\ \mathbf 1 m_E' & \cdots & \mathbf 1 m_E' \end{matrix} \end{pmatrix}, \qquad \bar Q_t = \bar\alpha_t I + (1 - \bar\alpha_t)\, u, \qquad F = A + K N \tag{6} $$
#
# Written out for an atom $x$ with slots $e_j$, whose sum is $\sigma = \sum_j e_j$ with $|\sigma|$ entries:
#
# $$ x\, u = \big( |x|\, m_X + \sigma\, C_{EX} \;\big|\; x\, C_{XE} + |\sigma|\, m_E \big), \qquad x\, u' = \big( x \cdot m_X + \sigma\, C_{XE}' \;\big|\; x\, C_{EX}' + \sigma \cdot m_E \big) \tag{7} $$
#
# The part behind the bar is the same for all slots. So no product with $u$ needs the matrix. The posterior of a row $x_t$ sums over all $F$ entries that the clean row may have had, and it takes three products:
#
# $$ D = \bar\alpha_t\, x_t + (1 - \bar\alpha_t)\, x_t u', \qquad w = \hat p / D, \qquad L = (1 - \beta)\, x_t + \beta\, x_t u', \qquad p(x_s) \propto L \odot \big( \bar\alpha_s w + (1 - \bar\alpha_s)\, w\, u \big) \tag{8} $$
#
# with $1 - \beta = \bar\alpha_t / \bar\alpha_s$ for one step or several. Atoms and each slot are normalised by themselves.
#
# ### What the formulas say
#
# A molecule of $n$ atoms has $|\sigma| = n - 1$. Put this into equations 6 and 7 and normalise: of the whole row, the share that keeps its type is not $\bar\alpha_t$ but
#
# $$ \kappa_t = \frac{\bar\alpha_t}{\bar\alpha_t + (1 - \bar\alpha_t)\, n} \tag{9} $$
#
# and an atom that is redrawn comes from $(m_X + \sigma\, C_{EX}) / n$, in which the marginal has one voice among $n$.
#
# The course's own kind goes back to equation 1. Each atom $i$ and each bond $ij$ has its own $m$, of the clean graph: by a share $\lambda$ what the neighbours say on average, else the marginal.
#
# $$ m_i = (1 - \lambda)\, m_X + \lambda\, \frac{\sigma_i}{n - 1} \tilde C_{EX}, \qquad m_{ij} = (1 - \lambda)\, m_E + \lambda\, \tfrac12 (x_i + x_j)\, \tilde C_{XE} \tag{10} $$
#
# $\tilde C$ counts pairs of atoms as often as they occur. With $\lambda = 0$ this is DiGress's noise.
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $\bar\alpha_t$ | share not redrawn up to t | 0 … 1 | `alpha_bar` | nominal ᾱ |
# | $\beta_t$ | share redrawn in step t | 0 … 1 | `beta` | step β |
# | $T$ | last time | steps | `steps` | t / T |
# | $m_X$ | marginal of atoms | (A,) | `m_X` | marginal m_X |
# | $m_E$ | marginal of bonds | (K,) | `m_E` | marginal m_E |
# | $C_{XE}$ | bond given atom | (A, K) | `bond_given_atom` | C_XE |
# | $C_{EX}$ | atom given bond | (K, A) | `atom_given_bond` | C_EX |
# | $u$ | where a row goes when nothing survives | (F, F) | `limit_matrix` | matrix u |
# | $\sigma$ | sum of the slots of a row | (B, N, K) | `slots` | sum of slots σ |
# | $\hat p$ | guess of the clean row | (B, N, F) | `pX0` | guess p̂ |
# | $D$ | chance of the row now, for each clean entry | (B, N, F) | `behind` | denominator D |
# | $w$ | guess over chance | (B, N, F) | `weight` | weight w |
# | $L$ | chance of the row now, for each entry at s | (B, N, F) | `likely` | likelihood L |
# | $\kappa_t$ | share that keeps its type | 0 … 1 | `kept_share` | effective κ |
# | $\lambda$ | what the neighbours decide in "corrected" | 0 … 1 | `share` | share λ |
#
# Letters of shapes: $B$ graphs, $N$ atoms with padding, $A$ atom types, $K$ bond types, $F$ the width of a row.
#
# > **Where the code leaves the paper.** The paper gives $\bar Q_t$ in blocks (its equations 5 and 6; the off-diagonal blocks are its $Q_{VE}$ and $Q_{EV}$) and does not say how the co-occurrences are weighted, nor that rows are normalised after the product, nor which of the two slots of a pair counts. Equations 5, 7 and 8 are read from what the release computes: equal weights, each part normalised, and the slot of the lower-numbered atom. Equation 9 is this course's, and follows from them. Kind "corrected" is this course's too, and is in neither.

# %% [markdown]
# ## Code
#
# ### One atom
#
# Equation 1 for an atom of four types, in plain code:

# %%
m = statistics.atoms
identity = torch.eye(len(m))


def whole_matrix(kept, m):
    return kept * identity + (1 - kept) * m.expand(len(m), len(m))


carbon = identity[vocabulary.index("C")]
for kept in (1.0, 0.5, 0.0):
    print(kept, [f"{p:.3f}" for p in (carbon @ whole_matrix(kept, m)).tolist()])

# %% [markdown]
# Two steps make one, since $\mathbf 1 m'$ times itself is itself (equation 2):

# %%
assert torch.allclose(m.expand(4, 4) @ m.expand(4, 4), m.expand(4, 4), atol=1e-6)
assert torch.allclose(whole_matrix(0.8, m) @ whole_matrix(0.5, m), whole_matrix(0.4, m), atol=1e-6)

# %% [markdown]
# Is equation 4 right? Do the experiment: send 400,000 atoms through two steps, look at those that begin as carbon and end as oxygen, and count what they were in between.

# %%
chance = torch.manual_seed(0)


def redraw(atoms, kept):
    """Each atom stays with probability `kept`, else it is drawn from m."""
    new = torch.multinomial(m, len(atoms), replacement=True, generator=chance)
    return torch.where(torch.rand(len(atoms), generator=chance) < kept, atoms, new)


first, oxygen = torch.zeros(400_000, dtype=torch.long), vocabulary.index("O")
middle = redraw(first, 0.8)
last = redraw(middle, 0.5)
counted = torch.bincount(middle[last == oxygen], minlength=4) / (last == oxygen).sum()
counted

# %%
ahead, step, whole = whole_matrix(0.8, m), whole_matrix(0.5, m), whole_matrix(0.4, m)
posterior = step[:, oxygen] * ahead[0] / whole[0, oxygen]
print(
    [f"{p:.3f}" for p in posterior.tolist()], "off by", f"{(posterior - counted).abs().max():.3f}"
)
assert (posterior - counted).abs().max() < 0.01  # four standard errors of the count
assert torch.isclose(posterior.sum(), torch.tensor(1.0))

# %% [markdown]
# ### The schedule
#
# How much is redrawn at each step (equation 3). The last step redraws everything, whatever was left.


# %% tags=["promote", "exercise"]
def cosine_schedule(steps: int, offset: float = 0.008) -> tuple[Tensor, Tensor]:
    """What each step redraws and what has survived, for t = 0 … T (equations 2 and 3).

    steps    T, a whole number of 1 or more
    offset   keeps the first steps from being too small
    returns  `(beta, alpha_bar)`, each (T + 1,) float32, computed in float64; `alpha_bar` counts
             step 0 too, so that it begins below 1, and ends at 0

    Raises ValueError for steps that are no whole number of 1 or more.
    Source: Nichol and Dhariwal 2021 (arXiv 2102.09672), equation 17; the release's indexing.
    """
    T = whole_number("steps", steps, least=1)
    x = torch.linspace(0, 1, T + 2, dtype=torch.float64)
    survived = torch.cos(0.5 * math.pi * (x + offset) / (1 + offset)) ** 2
    beta = (1 - survived[1:] / survived[:-1]).clamp(0, 1)
    return beta.float(), (1 - beta).log().cumsum(0).exp().float()


# %% tags=["check"]
beta, alpha_bar = cosine_schedule(500)
assert beta.shape == alpha_bar.shape == (501,), "times 0 … T"
assert torch.allclose(alpha_bar, (1 - beta).cumprod(0), atol=1e-5), "equation 2"
assert beta[-1] == 1 and alpha_bar[-1] == 0, "the last step redraws everything"
assert 0.4 < alpha_bar[250] < 0.6, "half is left in the middle"
middle = math.cos(math.pi / 2 * (2 / 6 + 0.008) / 1.008) ** 2
start = math.cos(math.pi / 2 * 0.008 / 1.008) ** 2
assert abs(cosine_schedule(5)[1][1] - middle / start) < 1e-6, "t / (T + 1) in equation 3"


# %% tags=["figure"]
def draw_schedule():
    figure, axes = canvas(1, 2, 6.4, 2.1)
    for steps, ink in ((500, "first"), (50, "second")):
        beta, alpha_bar = cosine_schedule(steps)
        t = torch.arange(steps + 1) / steps
        axes[0].plot(t, alpha_bar, color=COLOURS[ink], label=f"T = {steps}")
        axes[1].semilogy(t, beta, color=COLOURS[ink])
    axes[0].set(xlabel="t / T", title="nominal ᾱ: not redrawn up to t")
    axes[1].set(xlabel="t / T", title="step β: redrawn at t")
    axes[0].legend()
    return figure


show(
    draw_schedule(),
    alt="The share not redrawn falls from 1 to 0 along a cosine, for 500 and for 50 steps; the share "
    "redrawn in one step rises over three decades and ends at 1",
)

# %% [markdown]
# ### What the data say
#
# The marginals and the co-occurrences come from the data. First in loops over molecules, atoms and their partners, for the first hundred molecules:

# %%
A, K, N = len(vocabulary.atoms), len(BONDS), vocabulary.max_atoms
few = Codes(codes.atoms[:100], codes.bonds[:100])
atom_counts, pair_counts = torch.zeros(A), torch.zeros(A, A, K)
for symbols, bonds in decode_graphs(few, vocabulary):
    types = [vocabulary.index(symbol) for symbol in symbols]
    for i, a in enumerate(types):
        atom_counts[a] += 1
        for j, b in enumerate(types):
            if i != j:
                pair_counts[a, b, int(bonds[i, j])] += 1
m_X = atom_counts / atom_counts.sum()
m_E = pair_counts.sum(dim=(0, 1)) / pair_counts.sum()
print("m_X", dict(zip(vocabulary.atoms, [f"{x:.3f}" for x in m_X.tolist()], strict=True)))
print("m_E", dict(zip(BONDS, [f"{x:.3f}" for x in m_E.tolist()], strict=True)))

# %% [markdown]
# And equation 5, with the release's choice for two types that never meet: they have no bond.

# %%
xe_loop = torch.zeros(A, K)
for a in range(A):
    for b in range(A):
        total = pair_counts[a, b].sum()
        meets = pair_counts[a, b] / total if total > 0 else torch.eye(K)[0]
        xe_loop[a] += meets / A
ex_loop = torch.zeros(K, A)
for k in range(K):
    if xe_loop[:, k].sum() > 0:
        ex_loop[k] = xe_loop[:, k] / xe_loop[:, k].sum()
xe_loop


# %% [markdown]
# A loop over all pairs is slow for a whole data set. With one number for each pair, $(a A + b) K + k$, `bincount` counts them at once.


# %% tags=["promote"]
def _count_pairs(codes: Codes, A: int) -> Float[Tensor, "A A K"]:
    """How many ordered pairs of different atoms have types a and b and bond k."""
    N, K = codes.atoms.shape[1], len(BONDS)
    apart = ~torch.eye(N, dtype=torch.bool)
    counts = torch.zeros(A * A * K, dtype=torch.float64)
    for atoms, bonds in zip(codes.atoms.split(1024), codes.bonds.split(1024), strict=True):
        atoms, bonds = atoms.long(), bonds.long()  # in parts, for numbers of eight times the size
        a, b = atoms[:, :, None].expand_as(bonds), atoms[:, None, :].expand_as(bonds)
        index = ((a * A + b) * K + bonds)[(a >= 0) & (b >= 0) & apart]
        counts += torch.bincount(index, minlength=len(counts))
    return counts.view(A, A, K)


# %%
assert torch.equal(_count_pairs(few, A).float(), pair_counts)


# %% tags=["promote", "exercise"]
def co_occurrences(pairs: Float[Tensor, "A A K"]) -> tuple[Tensor, Tensor]:
    """Which bond goes with an atom and which atom with a bond, as released (equation 5).

    pairs    how many ordered pairs of atoms have types a and b and bond k; k = 0 is no bond
    returns  C_XE = P(bond | atom) (A, K) and C_EX = P(atom | bond) (K, A); rows sum to 1, but
             that of a bond that never occurs is 0

    A rare atom type has the same weight as a common one. Types that never meet count as unbonded.
    """
    filled = pairs.clone()
    filled[..., 0] += pairs.sum(dim=-1) == 0
    bond_given_atom = (filled / filled.sum(dim=-1, keepdim=True)).mean(dim=1)
    across = bond_given_atom.T
    return bond_given_atom, across / across.sum(dim=1, keepdim=True).clamp(min=1e-12)


# %% tags=["check"]
bond_given_atom, atom_given_bond = co_occurrences(pair_counts)
assert torch.allclose(bond_given_atom, xe_loop, atol=1e-6), "equal weight for each partner's type"
assert torch.allclose(atom_given_bond, ex_loop, atol=1e-6), "equal weight for each atom's type"
never = torch.zeros(2, 2, 3)
never[0, 0] = torch.tensor([6.0, 2.0, 0.0])
xe_never, ex_never = co_occurrences(never)
assert xe_never[1].tolist() == [1, 0, 0], "a type that meets nobody has no bond"
assert ex_never[2].tolist() == [0, 0], "a bond that never occurs has no atom"


# %% [markdown]
# All that the noise knows of the data, in one record. A polymer has attachment points, written `*`. They are atoms of the graph, but RDKit does not count them as heavy atoms, and so the release leaves them out of the number of atoms while it counts their bonds. `released=True` does the same.


# %% tags=["promote"]
class GraphStatistics(NamedTuple):
    """What the noise knows of a data set with A atom types and K bond types.

    atoms            m_X (A,), the share of each atom type
    bonds            m_E (K,), the share of each bond type among ordered pairs of atoms
    bond_given_atom  P(bond | atom) (A, K), the mean over partner types, as released
    atom_given_bond  P(atom | bond) (K, A), all atom types with equal weight, as released
    counts           (A, K) ordered pairs of an atom of this type with a bond of that type
    sizes            (N + 1,) the share of molecules with 0, 1, … N atoms
    """

    atoms: Float[Tensor, "A"]
    bonds: Float[Tensor, "K"]
    bond_given_atom: Float[Tensor, "A K"]
    atom_given_bond: Float[Tensor, "K A"]
    counts: Float[Tensor, "A K"]
    sizes: Float[Tensor, "N1"]


# %% tags=["promote"]
def graph_statistics(
    codes: Codes, vocabulary: Vocabulary, *, released: bool = False
) -> GraphStatistics:
    """Marginals and co-occurrences of a data set (equation 5; Section 3.1 of the paper).

    codes       of M molecules
    vocabulary  that they were encoded with
    released    leave the attachment points `*` of polymers out where the release does: in the
                number of atoms that absent bonds and sizes are counted with

    Raises ValueError for codes without a molecule, and for an atom beyond the vocabulary.
    """
    if len(codes.atoms) == 0:
        raise ValueError("codes holds no molecule; expected one or more")
    atoms, A, N = codes.atoms.long(), len(vocabulary.atoms), vocabulary.max_atoms
    if atoms.shape[1] > N or atoms.max() >= A:
        raise ValueError(
            f"codes has molecules of up to {atoms.shape[1]} atoms of {int(atoms.max()) + 1} types; "
            f"expected those of its vocabulary, {N} atoms of {A} types"
        )
    there = atoms >= 0
    star = vocabulary.atoms.index("*") if released and "*" in vocabulary.atoms else -1
    sizes = (there & (atoms != star)).sum(dim=1)
    pairs = _count_pairs(codes, A)
    bonds = pairs.sum(dim=(0, 1))
    bonds[0] = (sizes * (sizes - 1)).sum() - bonds[1:].sum()
    parts = (
        torch.bincount(atoms[there], minlength=A) / there.sum(),
        bonds / bonds.sum().clamp(min=1),
        *co_occurrences(pairs),
        pairs.sum(dim=1),
        torch.bincount(sizes, minlength=N + 1) / len(sizes),
    )
    return GraphStatistics(*(part.float() for part in parts))


# %%
of_few = graph_statistics(few, vocabulary)
assert torch.allclose(of_few.atoms, m_X) and torch.allclose(of_few.bonds, m_E, atol=1e-6)
assert torch.allclose(of_few.bond_given_atom, xe_loop, atol=1e-6)
begin = time.perf_counter()
statistics = graph_statistics(codes, vocabulary)
print(f"{len(codes.atoms)} molecules in {time.perf_counter() - begin:.2f} s")

# %% [markdown]
# The weights matter. Fluorine is rare in QM9. With equal weights an absent bond, which says next to nothing about the two atoms, would be as good a reason for fluorine as for carbon. Weighted by frequency, $\tilde C_{EX}$, it is not:

# %%
weighted = statistics.counts.T / statistics.counts.T.sum(dim=1, keepdim=True)
for name, row in (
    ("marginal m_X", statistics.atoms),
    ("no bond, equal weights", statistics.atom_given_bond[0]),
    ("no bond, by frequency", weighted[0]),
):
    print(
        f"{name:>23}", {s: f"{p:.3f}" for s, p in zip(vocabulary.atoms, row.tolist(), strict=True)}
    )


# %% tags=["figure"]
def draw_co_occurrences():
    figure, axes = canvas(1, 3, 7.6, 2.3, width_ratios=[6, 4, 4])
    tables = (
        (statistics.bond_given_atom, "C_XE: bond given atom"),
        (statistics.atom_given_bond, "C_EX: atom given bond,\nequal weights"),
        (weighted, "atom given bond,\nby frequency"),
    )
    for each, (table, title) in zip(axes, tables, strict=True):
        draw_pixels(each, table, "{:.2f}", limits=(0, 1.1), fontsize=7)
        across, down = (BONDS, vocabulary.atoms) if each is axes[0] else (vocabulary.atoms, BONDS)
        each.set_xticks(range(len(across)), across, fontsize=7)
        each.set_yticks(range(len(down)), down)
        each.set(title=title, xlabel="", ylabel="", aspect="auto")
    return figure


show(
    draw_co_occurrences(),
    alt="Three tables of probabilities: the bond given the atom; the atom given the bond with equal "
    "weights, where four types without a bond have about a quarter each; and the same by "
    "frequency, where carbon has two thirds",
)

# %% [markdown]
# The first line of the middle table is where the second finding below begins: given that there is no bond, every type is about as likely.
#
# ### The matrix u
#
# Equation 6, entry by entry. Entry $f$ of a row of X_G is an atom type, or bond type $(f - A) \bmod K$ of some slot; with $C_{XE}$, $C_{EX}$ and the marginals at hand:


# %%
def u_loop(m_X, m_E, bond_given_atom, atom_given_bond, N):
    A, K = bond_given_atom.shape
    u = torch.zeros(A + K * N, A + K * N)
    for f in range(len(u)):
        for g in range(len(u)):
            from_atom, to_atom = f < A, g < A
            k_from, k_to = (f - A) % K, (g - A) % K
            if from_atom:
                u[f, g] = m_X[g] if to_atom else bond_given_atom[f, k_to]
            else:
                u[f, g] = atom_given_bond[k_from, g] if to_atom else m_E[k_to]
    return u


four = statistics[:4]
tuple(u_loop(*four, N).shape)


# %% tags=["promote", "exercise"]
def limit_matrix(
    m_X: Float[Tensor, "A"],
    m_E: Float[Tensor, "K"],
    bond_given_atom: Float[Tensor, "A K"],
    atom_given_bond: Float[Tensor, "K A"],
    N: int,
) -> Float[Tensor, "F F"]:
    """The matrix u: where a row of X_G goes when nothing survives (equation 6).

    m_X, m_E         marginals of atoms (A,) and bonds (K,)
    bond_given_atom  C_XE (A, K)
    atom_given_bond  C_EX (K, A)
    N                slots of a row
    returns          (F, F), F = A + K N; its rows sum to 1 + N
    """
    A, K = bond_given_atom.shape
    top = torch.cat([m_X.expand(A, A), bond_given_atom.tile(1, N)], dim=1)
    below = torch.cat([atom_given_bond.tile(N, 1), m_E.tile(K * N, N)], dim=1)
    return torch.cat([top, below])


# %% tags=["check"]
whole_u = limit_matrix(*four, N)
assert whole_u.shape == (A + K * N, A + K * N), "F = A + K N"
assert torch.equal(whole_u, u_loop(*four, N)), "the four blocks of equation 6"
assert torch.equal(limit_matrix(*four, 2), u_loop(*four, 2)), "N slots, not that of the data"

# %%
u = limit_matrix(*four, N)
print(f"{len(u)} rows, of which {len(u.unique(dim=0))} differ")


# %% tags=["figure"]
def draw_u():
    figure, (axes, bars) = canvas(1, 2, 6.2, 4.4, width_ratios=[5, 1], sharey=True)
    F = len(u)
    axes.imshow(u, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for edge in [A + K * j - 0.5 for j in range(N)]:
        axes.axhline(edge, color="white", lw=1.6 if edge < A else 0.4)
        axes.axvline(edge, color="white", lw=1.6 if edge < A else 0.4)
    style = {"ha": "center", "va": "center", "size": 9, "color": "white"}
    box = {"bbox": {"fc": COLOURS["n00"], "ec": "none", "pad": 2}}
    middle = A + K * N / 2
    axes.text(middle, middle, "each row the marginal m_E, N times", **style, **box)
    axes.text(middle, 1.5, "C_XE, N times", **style, **box)
    axes.text(1.5, middle, "C_EX, N times", rotation=90, **style, **box)
    arrow = {"arrowstyle": "-", "color": COLOURS["query"]}
    axes.annotate("marginal m_X", (1.5, 1), (6, -3), size=8, arrowprops=arrow)
    axes.set_xticks([1.5, *range(A + 2, F, K)], ["atom", *(f"{j}" for j in range(N))])
    axes.set_yticks([1.5, *range(A + 2, F, K)], ["atom", *(f"{j}" for j in range(N))])
    axes.set(xlabel="goes to: atom, slots 0 … N − 1", ylabel="comes from: atom, slots 0 … N − 1")
    axes.set_title(f"matrix u: F = {F}", fontsize=9)
    bars.barh(range(F), u.sum(dim=1), color=COLOURS["bad"], height=1)
    bars.axvline(1, color="white", lw=1)
    bars.set(title="sum of a row", xlim=(0, 1 + N), xticks=[1, 1 + N])
    return figure


show(
    draw_u(),
    alt="The matrix u as a heat map with its four blocks: a small square of the marginal of atoms, a "
    "strip of C_XE to the right, a strip of C_EX below, and the marginal of bonds in all the rest; "
    "bars at the right show that every row sums to ten",
)

# %% [markdown]
# In equation 1 every row of $\mathbf 1 m'$ sums to 1. Here the bars at the right say $1 + N$. Keep that in mind.
#
# ### From a matrix to distributions
#
# A row of X_G times $\bar Q_t$ is no distribution yet. Each atom and each slot is normalised by itself. Slots that have no meaning, on the diagonal and of missing atoms, are made uniform, so that one may draw from all.


# %% tags=["promote"]
def _pairs(mask: Tensor) -> Tensor:
    """(B, N, N) the ordered pairs of two different atoms."""
    off = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return mask[:, :, None] & mask[:, None, :] & off


# %% tags=["promote"]
def _normalised(pX: Tensor, pE: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Distributions of atoms and of slots: uniform where there is no atom and on the diagonal."""
    real = ((pX, mask[..., None]), (pE, _pairs(mask)[..., None]))
    # A mask that is written out is faster than one that is broadcast to few types.
    pX, pE = (torch.where(r.expand_as(p).contiguous(), p, 1).add_(1e-12) for p, r in real)
    return pX / pX.sum(-1, keepdim=True), pE / pE.sum(-1, keepdim=True)


# %% [markdown]
# With these, the naive form of both directions. The posterior is written as the release computes it: for each row a table of all clean entries by all entries at $s$, which is then weighted and summed.


# %%
def split_rows(rows, mask):
    A = rows.shape[-1] - K * mask.shape[1]
    return _normalised(rows[..., :A], rows[..., A:].unflatten(-1, (-1, K)), mask)


def transition(kept, u):
    return kept * torch.eye(len(u)) + (1 - kept) * u


def q_matrix(u, kept, graph):
    return split_rows(graph_tokens(graph) @ transition(kept, u), graph.mask)


def reverse_matrix(u, kept_s, kept_t, graph, pX0, pE0):
    step, ahead, whole = (transition(kept, u) for kept in (kept_t / kept_s, kept_s, kept_t))
    posteriors = []
    for x_t, guess in zip(graph_tokens(graph), graph_tokens(Graphs(pX0, pE0, None)), strict=True):
        likelihood, chance = x_t @ step.T, x_t @ whole.T  # (N, F) over s, (N, F) over 0
        chance = torch.where(chance == 0, 1, chance)
        table = likelihood[:, None, :] * ahead / chance[:, :, None]  # (N, F, F): 0, then s
        posteriors.append((guess[:, :, None] * table).sum(dim=1))
    return split_rows(torch.stack(posteriors), graph.mask)


# %%
some = Graphs(*(part[:16] for part in clean))
s, t = torch.full((16,), 99), torch.full((16,), 100)
kept_s, kept_t = (noises["graph"].alpha_bar[at][0] for at in (s, t))
pX, pE = q_matrix(u, kept_t, some)
noisy = draw_graph(pX, pE, some.mask, torch.manual_seed(0))
guess_X = 0.7 * some.X + 0.3 * statistics.atoms
guess_E = 0.7 * some.E + 0.3 * statistics.bonds
slow = reverse_matrix(u, kept_s, kept_t, noisy, guess_X, guess_E)
print([tuple(part.shape) for part in slow], "sums to", slow[0].sum(-1).mean().item())

# %% [markdown]
# ### Without the matrix
#
# The matrix has $F^2$ entries and each row's table as many: for $N = 50$ a batch of 32 graphs has 1,600 tables. Equation 7 needs none of them, since $u$ repeats itself. What it needs of a row are its atom part and $\sigma$, the sum of its slots. A row may be a clean graph's, a noisy one's, or the weights $w$ of equation 8.


# %% tags=["promote", "exercise"]
class RowLimit(NamedTuple):
    """u by its blocks: products of rows of X_G with u and its transpose (equation 7).

    m_X, m_E         marginals (A,) and (K,)
    bond_given_atom  C_XE (A, K)
    atom_given_bond  C_EX (K, A)
    """

    m_X: Float[Tensor, "A"]
    m_E: Float[Tensor, "K"]
    bond_given_atom: Float[Tensor, "A K"]
    atom_given_bond: Float[Tensor, "K A"]

    def times(
        self, X: Float[Tensor, "B N A"], E: Float[Tensor, "B N N K"]
    ) -> tuple[Tensor, Tensor]:
        """The rows times u: (B, N, A), and (B, N, 1, K), the same for all slots of a row."""
        slots = E.sum(dim=2)
        mixed_X = X.sum(-1, keepdim=True) * self.m_X + slots @ self.atom_given_bond
        mixed_E = X @ self.bond_given_atom + slots.sum(-1, keepdim=True) * self.m_E
        return mixed_X, mixed_E[:, :, None]

    def back(self, X: Float[Tensor, "B N A"], E: Float[Tensor, "B N N K"]) -> tuple[Tensor, Tensor]:
        """The rows times the transpose of u: (B, N, A), and (B, N, 1, K)."""
        slots = E.sum(dim=2)
        back_X = (X @ self.m_X)[..., None] + slots @ self.bond_given_atom.T
        back_E = X @ self.atom_given_bond.T + (slots @ self.m_E)[..., None]
        return back_X, back_E[:, :, None]


# %% tags=["check"]
torch.manual_seed(0)
rows = Graphs(torch.rand(2, N, A), torch.rand(2, N, N, K), torch.ones(2, N, dtype=torch.bool))
for product, matrix in ((RowLimit(*four).times, u), (RowLimit(*four).back, u.T)):
    part_X, part_E = product(rows.X, rows.E)
    assert part_X.shape == (2, N, A) and part_E.shape == (2, N, 1, K), "the slots share one part"
    both = torch.cat([part_X, part_E.expand(2, N, N, K).flatten(2)], dim=-1)
    # Sums of some fifty products of numbers up to 1, in float32.
    assert torch.allclose(both, graph_tokens(rows) @ matrix, rtol=1e-5), product.__name__

# %% [markdown]
# For the other two kinds, the limit is a distribution for each atom and each slot, as in equation 1, and its products are shorter.


# %% tags=["promote"]
class OwnLimit(NamedTuple):
    """A limit 1 m' for each atom and each slot by itself, or one for all (equations 1 and 10).

    atoms  (…, A) distributions of atoms
    bonds  (…, K) distributions of bonds
    """

    atoms: Float[Tensor, "*BN A"]
    bonds: Float[Tensor, "*BNN K"]

    def times(
        self, X: Float[Tensor, "B N A"], E: Float[Tensor, "B N N K"]
    ) -> tuple[Tensor, Tensor]:
        """The atoms and slots times 1 m'."""
        return X.sum(-1, keepdim=True) * self.atoms, E.sum(-1, keepdim=True) * self.bonds

    def back(self, X: Float[Tensor, "B N A"], E: Float[Tensor, "B N N K"]) -> tuple[Tensor, Tensor]:
        """The atoms and slots times the transpose of 1 m': one number for each."""
        back_X, back_E = (X * self.atoms).sum(-1), (E * self.bonds).sum(-1)
        return back_X[..., None], back_E[..., None]


# %% [markdown]
# For "corrected", each atom asks its neighbours and each bond its two atoms (equation 10). Written in a loop for the example first; then for a batch. Conditionals weighted by frequency have two good properties. Averaged over the data they give back the marginals, so that the limit stays near the start of sampling. And a bond asks both of its ends, so that its distribution is the same from either side.


# %%
def own_limit_loop(graph, statistics, share):
    by_atom = statistics.counts / statistics.counts.sum(dim=1, keepdim=True)
    by_bond = statistics.counts.T / statistics.counts.T.sum(dim=1, keepdim=True)
    n = int(graph.mask.sum())
    atoms, bonds = torch.zeros(n, A), torch.zeros(n, n, K)
    for i in range(n):
        told = sum(graph.E[0, i, j] @ by_bond for j in range(n) if j != i) / (n - 1)
        atoms[i] = (1 - share) * statistics.atoms + share * told
        for j in range(n):
            told = (graph.X[0, i] + graph.X[0, j]) / 2 @ by_atom
            bonds[i, j] = (1 - share) * statistics.bonds + share * told
    return atoms, bonds


# %% tags=["promote"]
def _neighbour_limit(graph: Graphs, marginals: RowLimit, share: float) -> OwnLimit:
    """Where each atom and bond goes in kind "corrected" (equation 10).

    graph      clean, or the probabilities of a guess
    marginals  with conditionals that are weighted by frequency
    share      λ; a lone atom has no neighbour to ask and goes to the marginal
    """
    m_X, m_E, bond_given_atom, atom_given_bond = marginals
    real = _pairs(graph.mask)[..., None]
    slots = (graph.E * real).sum(dim=2)
    others = real.sum(dim=2)
    told = slots / others.clamp(min=1) @ atom_given_bond
    hint = graph.X @ bond_given_atom
    return OwnLimit(
        torch.lerp(m_X.expand_as(told), told, share * (others > 0).to(told)),
        (1 - share) * m_E + share / 2 * (hint[:, :, None] + hint[:, None, :]),
    )


# %%
by_frequency = RowLimit(*statistics[:2], statistics.counts, statistics.counts.T)
by_frequency = by_frequency._replace(
    bond_given_atom=statistics.counts / statistics.counts.sum(dim=1, keepdim=True),
    atom_given_bond=statistics.counts.T / statistics.counts.T.sum(dim=1, keepdim=True),
)
n = int(example.mask.sum())
for ours, loop in zip(
    _neighbour_limit(example, by_frequency, 0.5),
    own_limit_loop(example, statistics, 0.5),
    strict=True,
):
    ours = ours[0, :n, :n] if ours.ndim == 4 else ours[0, :n]
    assert torch.allclose(ours, loop, atol=1e-6)

# %% [markdown]
# Now the noise as a whole. `q` is equation 1 or 6 for a batch of graphs at their own times; `reverse` is equation 8. Both ask a limit for its products and know nothing else of the kind. In "corrected" the limit needs the clean graph; `reverse` takes it from the guess.


# %% tags=["promote"]
KINDS = ("graph", "independent", "corrected")


# %% tags=["promote"]
def _blend(kept: Float[Tensor, "B"], first, second) -> tuple[Tensor, Tensor]:
    """The share `kept` of the first (X, E), and the rest of the second."""
    (X, E), (other_X, other_E) = first, _written_out(second, first)
    return (
        torch.lerp(other_X, X, kept.view(-1, 1, 1)),
        torch.lerp(other_E, E, kept.view(-1, 1, 1, 1)),
    )


# %% tags=["promote"]
def _written_out(parts, like) -> list[Tensor]:
    """(X, E) in the shapes of others: to broadcast over slots goes five numbers at a time."""
    return [part.expand_as(x).contiguous() for part, x in zip(parts, like, strict=True)]


# %% tags=["promote"]
class GraphNoise:
    """Discrete noise on molecular graphs: forward distribution and posterior, in factored form.

    kind "graph" is the paper's (equation 6): the atom and the bonds of a row mix.
    kind "independent" is DiGress's (equation 1): every atom and bond goes to its own marginal.
    kind "corrected" is this course's (equation 10): an atom or bond goes to a mixture of the
    marginal and what its neighbours in the clean graph suggest.

    statistics  of the data set
    steps       T; times are whole numbers 0 … T
    share       λ in "corrected": how much of the limit the neighbours decide

    Graphs may be on any device and of any floating type. Raises ValueError for another kind, for
    steps below 1 and for a share outside 0 … 1.
    """

    def __init__(
        self,
        statistics: GraphStatistics,
        steps: int = 500,
        kind: str = "graph",
        share: float = 0.5,
    ):
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; expected a number from 0 to 1")
        self.statistics, self.steps, self.kind, self.share = statistics, steps, kind, share
        self.beta, self.alpha_bar = cosine_schedule(steps)
        xe, ex = statistics.bond_given_atom, statistics.atom_given_bond
        if kind == "corrected":
            counts = statistics.counts
            xe = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
            ex = counts.T / counts.T.sum(dim=1, keepdim=True).clamp(min=1)
        self.bond_given_atom, self.atom_given_bond = xe, ex

    def q(self, graph: Graphs, t: Int[Tensor, "B"]) -> tuple[Tensor, Tensor]:
        """The distribution of the noised graph at time t (equations 1 and 6): `(pX, pE)`.

        Normalised for every atom and every slot; uniform where there is no atom and on the
        diagonal, as released. Raises ValueError for graphs of another number of types, and for
        times that are no whole numbers 0 … T, one for each graph.
        """
        self._check(graph)
        kept = self._kept("t", t, graph)
        clean = (graph.X, graph.E)
        mixed = self._limit_for(graph).times(*clean)
        return _normalised(*_blend(kept, clean, mixed), graph.mask)

    def reverse(
        self,
        graph: Graphs,
        pX0: Float[Tensor, "B N A"],
        pE0: Float[Tensor, "B N N K"],
        s: Int[Tensor, "B"],
        t: Int[Tensor, "B"],
    ) -> tuple[Tensor, Tensor]:
        """The distribution of the graph at time s < t, given it at t and a guess (equation 8).

        `pX0` and `pE0` are the guess's probabilities for each atom and slot. In kind "graph" this
        is the release's sum over all F = A + K N entries that a clean row may have, those of the
        diagonal and of missing atoms among them, in time and memory O(N) for a row.
        Raises ValueError as `q` does, and where s is not below t.
        """
        self._check(graph)
        kept_s, kept_t = self._kept("s", s, graph), self._kept("t", t, graph)
        if not (s < t).all():
            raise ValueError(
                f"s is {s.tolist()} and t is {t.tolist()}; expected each s below its t"
            )
        now, guess = (graph.X, graph.E), (pX0.to(graph.X), pE0.to(graph.E))
        limit = self._limit_for(Graphs(*guess, graph.mask))
        # The row of a missing atom is uniform in the end, whatever stands here.
        rows = (graph.mask[..., None], graph.mask[..., None, None])
        small = [torch.where(r, b, 1) for r, b in zip(rows, limit.back(*now), strict=True)]
        back = _written_out(small, now)
        behind = _blend(kept_t, now, back)
        if not all((b > 0).all() for b in small):
            behind = [d.masked_fill(d == 0, 1) for d in behind]
        weight = [p / d for p, d in zip(guess, behind, strict=True)]
        likely = _blend(kept_t / kept_s, now, back)
        before = _blend(kept_s, weight, limit.times(*weight))
        return _normalised(likely[0] * before[0], likely[1] * before[1], graph.mask)

    def limit(self) -> tuple[Float[Tensor, "A"], Float[Tensor, "K"]]:
        """The distributions of an atom and of a bond that sampling starts from."""
        return self.statistics.atoms, self.statistics.bonds

    def kept_share(self, t: Int[Tensor, "..."], atoms: Int[Tensor, "..."]) -> Tensor:
        """κ, the share of a clean graph of so many atoms that is not redrawn at t (equation 9).

        In kinds "independent" and "corrected" it is ᾱ. The two arguments may broadcast.
        """
        nominal = self.alpha_bar.to(t.device)[t]
        if self.kind != "graph":
            return nominal
        return nominal / (nominal + (1 - nominal) * atoms)

    def matrix(self, t: int, s: int | None = None) -> Float[Tensor, "F F"]:
        """The whole transition matrix over rows of X_G, F = A + K N, for small N: the naive form.

        `matrix(t)` is Q̄_t, from the clean graph; `matrix(t, s)` leads from time s to time t.
        Raises ValueError for times outside 0 … T or s not below t, and for kind "corrected", whose
        limit depends on the graph, so that it has no one matrix.
        """
        kept = self.alpha_bar[whole_number("t", t, least=0, most=self.steps)]
        if s is not None:
            kept = kept / self.alpha_bar[whole_number("s", s, least=0, most=t - 1)]
        u = self._limit_matrix()
        return kept * torch.eye(len(u)) + (1 - kept) * u

    def _limit_matrix(self) -> Float[Tensor, "F F"]:
        m_X, m_E = self.limit()
        N, A, K = len(self.statistics.sizes) - 1, len(m_X), len(m_E)
        if self.kind == "corrected":
            raise ValueError("kind is 'corrected'; expected 'graph' or 'independent' for a matrix")
        if self.kind == "independent":
            return torch.block_diag(m_X.expand(A, A), *[m_E.expand(K, K)] * N)
        return limit_matrix(m_X, m_E, self.bond_given_atom, self.atom_given_bond, N)

    def _limit_for(self, graph: Graphs) -> RowLimit | OwnLimit:
        """Where the atoms and bonds of these graphs go, in their type and on their device."""
        parts = (*self.limit(), self.bond_given_atom, self.atom_given_bond)
        limit = RowLimit(*(part.to(graph.X) for part in parts))
        if self.kind == "graph":
            return limit
        if self.kind == "independent":
            return OwnLimit(limit.m_X, limit.m_E)
        return _neighbour_limit(graph, limit, self.share)

    def _kept(self, name: str, t: Tensor, graph: Graphs) -> Float[Tensor, "B"]:
        whole = not (t.is_floating_point() or t.dtype == torch.bool)
        if t.shape != (len(graph.X),) or not (whole and ((t >= 0) & (t <= self.steps)).all()):
            raise ValueError(
                f"{name} is {t.tolist()}; expected {len(graph.X)} whole numbers from 0 to "
                f"{self.steps}, one for each graph"
            )
        return self.alpha_bar.to(graph.X)[t.to(graph.X.device)]

    def _check(self, graph: Graphs) -> None:
        A, K = self.bond_given_atom.shape
        if graph.X.shape[-1] != A or graph.E.shape[-1] != K or not graph.X.is_floating_point():
            raise ValueError(
                f"graph has X {tuple(graph.X.shape)} of {graph.X.dtype} and E "
                f"{tuple(graph.E.shape)}; expected floats of {A} atom types and {K} bond types"
            )


# %% [markdown]
# Both directions against the matrices, for the graphs from above:

# %%
paper = GraphNoise(statistics)
fast = paper.reverse(noisy, guess_X, guess_E, s, t)
ahead = paper.q(some, t)
for name, ours, matrices in (("q", ahead, (pX, pE)), ("reverse", fast, slow)):
    off = max((a - b).abs().max().item() for a, b in zip(ours, matrices, strict=True))
    print(f"{name}: factored and matrix form differ by at most {off:.0e}")
    assert off < 1e-6
assert torch.equal(paper.matrix(100), transition(kept_t, u))

# %% [markdown]
# ### One row, step by step
#
# The atom of nitrogen at the left end of the example, with its slots, at $t / T = 0.2$. Each strip is a quantity of equation 8 over the $F$ entries of the row, from 0 (dark) to its largest value (light).

# %%
now = torch.tensor([100])
state = draw_graph(*paper.q(example, now), example.mask, torch.manual_seed(3))
hat = (0.7 * example.X + 0.3 * statistics.atoms, 0.7 * example.E + 0.3 * statistics.bonds)
blocks = RowLimit(*four)
(back_X, back_E), kept = blocks.back(state.X, state.E), paper.alpha_bar[now]
D = _blend(kept, (state.X, state.E), (back_X, back_E))
L = _blend(kept / paper.alpha_bar[now - 1], (state.X, state.E), (back_X, back_E))
w = [p / d for p, d in zip(hat, D, strict=True)]
p_s = paper.reverse(state, *hat, now - 1, now)


# %% tags=["figure"]
def draw_row():
    strips = {
        "row now x_t": (state.X, state.E),
        "guess p̂": hat,
        "denominator D": D,
        "weight w": w,
        "likelihood L": L,
        "posterior p(x_s)": p_s,
    }
    figure, axes = canvas(len(strips) + 1, 1, 7.4, 3.2, sharex=True)
    for each, (name, (X, E)) in zip(axes, strips.items(), strict=False):
        values = torch.cat([X[0, 0], E[0, 0, :n].flatten()])
        each.imshow(values[None] / values.max(), cmap="cividis", vmin=0, vmax=1, aspect="auto")
        each.set_ylabel(name, rotation=0, ha="right", va="center")
    sums = torch.full((1, A + K * n), math.nan)
    sums[0, A : A + K] = state.E[0, 0].sum(dim=0) / state.E[0, 0].sum(dim=0).max()
    axes[-1].imshow(sums, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes[-1].set_ylabel("sum of slots σ", rotation=0, ha="right", va="center")
    for each in axes:
        each.set_yticks([])
        for j in range(n):
            each.axvline(A + K * j - 0.5, color="white", lw=1.5)
    names = next(decode_graphs(to_codes(example), vocabulary))[0]
    axes[-1].set_xticks([1.5, *range(A + 2, A + K * n, K)], ["atom", *names])
    axes[-1].set_xlabel(
        "the atom, and its slot to each atom: none, single, double, triple, aromatic"
    )
    return figure


show(
    draw_row(),
    alt="Seven strips over the entries of one row: the noisy row, the guess, the denominator, the "
    "weight, the likelihood, the posterior, and the sum of the slots below its five entries",
)

# %% [markdown]
# The slots of $D$ and $L$ repeat one pattern, plus what is there now: that is equation 7. Where $D$ is small, $w$ is large, and through $w\, u$ it counts in every part of the row. One step of 500 changes little: the posterior is near the row as it is. The slot of the atom with itself, the first, has no meaning and is left uniform.
#
# ### How much faster
#
# Molecules of the National Cancer Institute's collection with up to 50 atoms, 32 at once. Besides the two forms there is one in between: the sum over the clean entries is itself a product, $w \bar Q_s$, so that the table of each row need not be written down.


# %%
def reverse_product(u, kept_s, kept_t, graph, pX0, pE0):
    step, ahead, whole = (transition(kept, u) for kept in (kept_t / kept_s, kept_s, kept_t))
    x_t, guess = graph_tokens(graph), graph_tokens(Graphs(pX0, pE0, graph.mask))
    chance = x_t @ whole.T
    weight = guess / torch.where(chance == 0, 1, chance)
    return split_rows((x_t @ step.T) * (weight @ ahead), graph.mask)


def best_time(run, turns):
    seconds = []
    for _ in range(turns):
        begin = time.process_time()  # of this program alone, whatever else the machine does
        result = run()
        seconds.append(time.process_time() - begin)
    return min(seconds), result


# %%
large_vocabulary = Vocabulary(("C", "N", "O", "F", "P", "S", "Cl", "Br"), 50)
large_codes, _, left_out = encode_smiles(nci_smiles()[:1000], large_vocabulary)
large_statistics = graph_statistics(large_codes, large_vocabulary)
large_noise, large_u = GraphNoise(large_statistics), limit_matrix(*large_statistics[:4], 50)
large = one_hot(Codes(*(part[:32] for part in large_codes)), large_vocabulary)
s, t = torch.full((32,), 99), torch.full((32,), 100)
noisy_large = draw_graph(*large_noise.q(large, t), large.mask, torch.manual_seed(0))
torch.manual_seed(0)
random_guess = [torch.randn_like(part).softmax(-1) for part in large[:2]]
print(f"{len(large_codes.atoms)} molecules of up to 50 atoms, {len(left_out)} left out")

# %%
arguments = (large_u, kept_s, kept_t, noisy_large, *random_guess)
runs = {
    "a table for each row": (lambda: reverse_matrix(*arguments), 2),
    "products of matrices": (lambda: reverse_product(*arguments), 5),
    "factored": (lambda: large_noise.reverse(noisy_large, *random_guess, s, t), 30),
}
times = {name: best_time(run, turns) for name, (run, turns) in runs.items()}
quickest, ours = times["factored"]
for name, (seconds, theirs) in times.items():
    off = max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))
    print(f"{name:>21}: {1e3 * seconds:7.1f} ms, {seconds / quickest:4.0f} times, off by {off:.0e}")
    assert off < 1e-6

# %%
F_large = len(large_u)
print(f"F = {F_large}: the tables of a batch hold {32 * 50 * F_large**2 * 4 / 1e6:.0f} MB,")
print(f"the rows themselves {32 * 50 * F_large * 4 / 1e6:.1f} MB")

# %% [markdown]
# The table is out of the question. Between the two others it depends on the size: for the small molecules of QM9, a product with a matrix of 49 rows is as quick as the many small steps of the factored form. It needs one time for all graphs, though, or a matrix for each.

# %%
s, t = torch.full((16,), 99), torch.full((16,), 100)
by_products, _ = best_time(lambda: reverse_product(u, kept_s, kept_t, noisy, guess_X, guess_E), 30)
by_parts, _ = best_time(lambda: paper.reverse(noisy, guess_X, guess_E, s, t), 30)
print(f"N = 9: products {1e3 * by_products:.2f} ms, factored {1e3 * by_parts:.2f} ms")

# %% [markdown]
# ## On real input
#
# A careful reader lays figure, words, formula and code side by side and asks of each sentence which formula says it, and of each formula what it gives for a molecule. Three sentences that one would say of this noise do not survive that.
#
# ### First: "a share ᾱ has not been redrawn"
#
# The words say that a share $\bar\alpha_t$ of the row survives. The formula gives the row sums of $u$ in the figure: the part that is redrawn has $n$ times the weight before each part is normalised. For all molecules of the data, each distribution should be $\kappa_t$ of equation 9 times the clean atom, and the rest $(m_X + \sigma C_{EX}) / n$:

# %%
t = torch.full((len(clean.X),), 100)
sizes = clean.mask.sum(dim=1)
kappa = paper.kept_share(t, sizes)[:, None, None]
forward_limit = (statistics.atoms + clean.E.sum(dim=2) @ statistics.atom_given_bond) / sizes[
    :, None, None
]
predicted = kappa * clean.X + (1 - kappa) * forward_limit
pX, pE = paper.q(clean, t)
assert torch.allclose(pX[clean.mask], predicted[clean.mask], atol=1e-6)
print(f"at t / T = 0.2, nominal {paper.alpha_bar[100]:.3f}")
for n in (2, 5, 9, 27, 50):
    print(
        f"  {n:2d} atoms keep {paper.kept_share(torch.tensor([100]), torch.tensor([n])).item():.3f}"
    )

# %% [markdown]
# What a reader of a molecule would ask: how probable is it that a carbon is a carbon still, and that a single bond is one? This counts those that were redrawn as what they were.


# %%
def survival(noise, graph, times):
    """The chance that a carbon keeps its type, and that a single bond is kept, at each time."""
    carbons, singles = graph.X[..., 0] > 0, graph.E[..., BONDS.index("single")] > 0
    rows = []
    for t in times:
        pX, pE = noise.q(graph, torch.full((len(graph.X),), t))
        rows.append((pX[carbons][:, 0].mean(), pE[singles][:, BONDS.index("single")].mean()))
    return torch.tensor(rows)


sample = Graphs(*(part[::8] for part in clean))
moments = list(range(0, T + 1, 10))
curves = {kind: survival(noise, sample, moments) for kind, noise in noises.items()}
for share in (0.2, 0.5):
    at = moments.index(round(share * T))
    print(
        f"t / T = {share}: nominal {paper.alpha_bar[moments[at]]:.2f}; carbon, single bond:", end=""
    )
    print(*(f"{kind} {c[at, 0]:.2f}, {c[at, 1]:.2f}" for kind, c in curves.items()), sep="; ")


# %% tags=["figure"]
def draw_survival():
    figure, axes = canvas(1, 3, 7.6, 2.6, sharey=True)
    x = torch.tensor(moments) / T
    nominal = paper.alpha_bar[moments]
    for each, part, title in zip(
        axes[:2], (0, 1), ("carbon is carbon", "single bond is single"), strict=True
    ):
        for kind, curve in curves.items():
            style = "--" if kind == "corrected" else "-"
            each.plot(x, curve[:, part], style, color=COLOURS[INKS[kind]], label=kind)
        each.set_title(f"chance that a\n{title}")
    axes[0].legend(loc="lower left", fontsize=7)
    for n, ink in ((2, "n01"), (9, "n10"), (27, "n00")):
        kappa = paper.kept_share(torch.tensor(moments), torch.tensor(n))
        axes[2].plot(x, kappa, color=COLOURS[ink], label=f"effective κ, n = {n}")
    for each in axes:
        each.plot(x, nominal, ":", color=COLOURS["muted"], label="nominal ᾱ", lw=2)
        each.set(xlabel="t / T", ylim=(0, 1.02))
    axes[2].set_title("share of the row that\nis not redrawn")
    axes[2].legend(fontsize=7)
    return figure


show(
    draw_survival(),
    alt="Three panels over time: carbons and single bonds change early under the paper's noise and "
    "late under the two others; and the effective share falls the faster the more atoms there are",
)

# %% [markdown]
# Left and middle: the curves of "independent" and "corrected" lie on each other. Right: the larger the molecule, the earlier it is gone. When a fifth of the time is over, a molecule of 27 atoms has kept a quarter of its row where the schedule says nine tenths. The remaining steps are spent where almost nothing is left to undo. A network can learn that, since it is told $t$; but the schedule is not the one that was written down, and it differs from molecule to molecule.
#
# ### Second: "in the end atoms follow the marginal"
#
# Sampling starts with atoms from $m_X$ and bonds from $m_E$. Does the forward process end there? At $T$ nothing survives, so `q` gives the limit. The **total variation** (全变差) of two distributions, half the sum of their absolute differences, is 0 for equal ones and 1 for disjoint ones.


# %%
def total_variation(p, q):
    return (p - q).abs().sum(dim=-1) / 2


carbons = clean.X[..., 0] > 0
limits = {}
for kind, noise in noises.items():
    ends = noise.q(clean, torch.full((len(clean.X),), T))[0]
    limits[kind] = ends[carbons].mean(dim=0)
    each = total_variation(ends[clean.mask], statistics.atoms).mean()
    apart = total_variation(limits[kind], statistics.atoms)
    print(f"{kind:>11}: a carbon's mean limit is {apart:.3f} from m_X, a single atom's {each:.3f}")

# %%
large_all = one_hot(large_codes, large_vocabulary)
reach = {}
for kind in ("graph", "corrected"):
    noise = GraphNoise(large_statistics, kind=kind)
    ends = noise.q(large_all, torch.full((len(large_all.X),), T))[0]
    distance = total_variation(ends, large_statistics.atoms) * large_all.mask
    reach[kind] = distance.sum(dim=1) / large_all.mask.sum(dim=1)
    print(f"{kind}: {reach[kind].mean():.2f} in molecules of up to 50 atoms and eight types")


# %% tags=["figure"]
def draw_limit():
    figure, axes = canvas(1, 2, 7.4, 2.6, width_ratios=[3, 2])
    bars = {"marginal m_X, the start": (statistics.atoms, "muted")}
    for kind, ends in limits.items():
        name = f"{kind}, share λ = {noises[kind].share}" if kind == "corrected" else kind
        bars[name] = (ends, INKS[kind])
    for k, (name, (values, ink)) in enumerate(bars.items()):
        x = torch.arange(A) + 0.2 * (k - 1.5)
        axes[0].bar(x, values, 0.18, color=COLOURS[ink], label=name)
    axes[0].set_xticks(range(A), vocabulary.atoms)
    axes[0].set(title="what becomes of a carbon at T", ylabel="probability")
    axes[0].legend(fontsize=7)
    atoms = large_all.mask.sum(dim=1)
    for kind, values in reach.items():
        axes[1].plot(atoms, values, ".", ms=2, color=COLOURS[INKS[kind]], label=kind)
    axes[1].set(title="distance of the limit from m_X,\nlarger molecules", ylim=(0, 0.8))
    axes[1].set(xlabel="atoms", ylabel="total variation")
    axes[1].legend(fontsize=7, loc="center right")
    return figure


show(
    draw_limit(),
    alt="Bars: under the paper's noise a carbon ends as each of four types with similar probability, "
    "under the others as the marginal says; points: the total variation is near 0.6 for larger "
    "molecules, and near zero for the corrected noise",
)

# %% [markdown]
# Two causes meet. $C_{EX}$ weights all atom types equally, and of the $n$ voices in $(m_X + \sigma C_{EX}) / n$ only one is the marginal's. So a rare type is drawn almost as often as a common one, and most so in large molecules, where nearly all slots say "no bond". Sampling starts from a state that training has not shown at $T$; whether the molecules suffer from that is a question for an experiment. "corrected" has neither cause.
#
# ### Third: "Q̄ is the product of the Q"
#
# Equation 2 needs $\mathbf 1 m' \mathbf 1 m' = \mathbf 1 m'$. For $u$ there is no such rule. Multiply:

# %%
u = limit_matrix(*statistics[:4], N)
print(f"rows of u sum to {u.sum(dim=1).mean():.1f}, of u u to {(u @ u).sum(dim=1).mean():.1f}")
short = GraphNoise(statistics, steps=50)
product = torch.eye(len(u), dtype=torch.float64)
for step in range(11):
    kept = 1 - short.beta[step].double()
    product = product @ (kept * torch.eye(len(u)) + (1 - kept) * u.double())
whole = short.matrix(10)
print(
    f"Q̄_10 of T = 50: rows sum to {whole.sum(dim=1)[0]:.2f}, of the product {product.sum(dim=1)[0]:.2f}"
)
carbon_row = graph_tokens(example)[0, 1]  # the second atom, a carbon
for name, matrix in (("definition", whole), ("product", product.float())):
    out = (carbon_row @ matrix)[:A]
    print(f"{name:>10}: the carbon stays one with {out[0] / out.sum():.3f}")

# %% [markdown]
# So there are two processes: the one that jumps from the clean graph to $t$, which training uses, and the one that takes a step at a time. A step at a time, by drawing 1,000 copies of the example:


# %%
def walk(noise, graph, copies=1000):
    """The share of carbons among those that were carbons, after each step."""
    state = Graphs(*(part.expand(copies, *part.shape[1:]) for part in graph))
    carbons, shares = state.X[..., 0] > 0, []
    generator = torch.manual_seed(0)
    limit = noise._limit_for(state)
    for beta in noise.beta:
        kept, now = (1 - beta).expand(copies), (state.X, state.E)
        p = _normalised(*_blend(kept, now, limit.times(*now)), state.mask)
        state = draw_graph(*p, state.mask, generator)
        shares.append(state.X[carbons][:, 0].mean().item())
    return shares


walks = {kind: walk(GraphNoise(statistics, 50, kind), example) for kind in KINDS}
jumps = {
    kind: survival(GraphNoise(statistics, 50, kind), example, range(51))[:, 0] for kind in KINDS
}
for kind in KINDS:
    worst = (torch.tensor(walks[kind]) - jumps[kind]).abs().max()
    print(f"{kind:>11}: steps and jump differ by up to {worst:.3f}")


# %% tags=["figure"]
def draw_walks():
    figure, axes = canvas(1, 3, 7.4, 2.3, sharey=True)
    x = torch.arange(51) / 50
    for each, kind in zip(axes, KINDS, strict=True):
        each.plot(x, jumps[kind], color=COLOURS[INKS[kind]], label="one jump, q(x_t | x_0)")
        each.plot(x, walks[kind], ".", ms=4, color=COLOURS["query"], label="step by step")
        each.set(title=kind, xlabel="t / T", ylim=(0, 1.02))
    axes[0].set_ylabel("a carbon is a carbon")
    axes[0].legend(fontsize=7)
    return figure


show(
    draw_walks(),
    alt="Three panels with a curve for the jump and dots for the steps: for the paper's noise the "
    "dots lie far below the curve at first, for the two others on it",
)

# %% [markdown]
# The posterior assumes that the two agree. Then it undoes the noise: average $p(x_s \mid x_t, x_0)$ over all $x_t$ that `q` may draw, and you have $q(x_s \mid x_0)$ again. With the clean graph as the guess, from $t = T / 2$:


# %%
def undone(kind, s, t, copies=4000):
    """How far the averaged posterior of an atom is from q, given the true clean graph."""
    noise = GraphNoise(statistics, 50, kind)
    truth = Graphs(*(part.expand(copies, *part.shape[1:]) for part in example))
    at_s, at_t = torch.full((copies,), s), torch.full((copies,), t)
    state = draw_graph(*noise.q(truth, at_t), truth.mask, torch.manual_seed(0))
    back = noise.reverse(state, truth.X, truth.E, at_s, at_t)[0].mean(dim=0)
    return total_variation(back, noise.q(example, at_s[:1])[0][0])[example.mask[0]].mean().item()


for s in (24, 15, 5):
    print(f"from 25 to {s:2d}:", {kind: f"{undone(kind, s, 25):.3f}" for kind in KINDS})

# %% [markdown]
# For "independent" and "corrected" what is left is the scatter of 4,000 draws. For "graph" it is not: its "posterior" is a way of weighting, a heuristic, and not the posterior of a process. That does not make it useless. A network that is trained with it gives molecules, as [lesson 5](5_diffusion.ipynb) and the experiments of [lesson 9](9_experiments.ipynb) show. It means that what theory promises for a posterior is not promised here.
#
# ### The order of atoms
#
# Two more things follow from the formulas. Slot $ij$ of the row of atom $i$ is redrawn by what $x_i$ says, slot $ji$ by what $x_j$ says, and only the one above the diagonal is drawn. So the numbering decides:

# %%
t = torch.full((len(clean.X),), 250)
unlike = _pairs(clean.mask) & (clean.X.argmax(-1)[:, :, None] != clean.X.argmax(-1)[:, None, :])
for kind, noise in noises.items():
    pE = noise.q(clean, t)[1]
    distance = total_variation(pE, pE.transpose(1, 2))[unlike]
    print(f"{kind:>11}: the two slots of unlike atoms are {distance.mean():.3f} apart", end="")
    print(f", at most {distance.max():.3f}")

# %% [markdown]
# A mean of some hundredths is small. But a graph has no first atom, and a model whose every part is permutation equivariant (置换等变) still has, through this, a training set that is not.
#
# ### A shortcut, measured
#
# The library torch-molecule computes the reverse step faster than the release, because it sums over the clean entries first and divides afterwards, by the chance $D$ of the entry at $s$ in place of the clean entry: $p(x_s) \propto L \odot (\hat p\, \bar Q_s) / D$. Is that the posterior?


# %%
def reverse_shortcut(noise, graph, pX0, pE0, s, t):
    limit, guess, now = noise._limit_for(graph), (pX0, pE0), (graph.X, graph.E)
    kept_s, kept_t = noise.alpha_bar[s], noise.alpha_bar[t]
    back = limit.back(*now)
    D, L = _blend(kept_t, now, back), _blend(kept_t / kept_s, now, back)
    sums = _blend(kept_s, guess, limit.times(*guess))
    return _normalised(
        *(a * p / _nonzero(d) for a, p, d in zip(L, sums, D, strict=True)), graph.mask
    )


def _nonzero(d):
    return torch.where(d == 0, 1, d)


real = _pairs(clean.mask)
guesses = {
    "near the truth": [
        0.7 * clean.X + 0.3 * statistics.atoms,
        0.7 * clean.E + 0.3 * statistics.bonds,
    ],
    "random": [torch.randn_like(part).softmax(-1) for part in clean[:2]],
}
for share in (0.2, 0.5, 0.8):
    t = torch.full((len(clean.X),), round(share * T))
    state = draw_graph(*paper.q(clean, t), clean.mask, torch.manual_seed(0))
    for name, guess in guesses.items():
        exact = paper.reverse(state, *guess, t - 1, t)
        quick = reverse_shortcut(paper, state, *guess, t - 1, t)
        in_X = total_variation(exact[0], quick[0])[clean.mask].mean()
        in_E = total_variation(exact[1], quick[1])[real].mean()
        print(f"t / T = {share}, guess {name:>14}: atoms {in_X:.3f}, bonds {in_E:.3f} apart")

# %% [markdown]
# It is not; the two differ in every step, and a generation has hundreds of steps. The factored form has the shortcut's speed without it.
#
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `cosine_schedule` | 8 | ●○○ |
# | `co_occurrences` | 10 | ●●○ |
# | `limit_matrix` | 8 | ●●○ |
# | `RowLimit` | 14 | ●●● |
#
# <details><summary>Hint for <code>cosine_schedule</code></summary>
#
# $f$ is needed at $T + 2$ places, from 0 to 1 of its argument $t / (T + 1)$; the quotient of neighbours has $T + 1$.
#
# </details>
#
# <details><summary>Hint for <code>co_occurrences</code></summary>
#
# Divide by the sum over the last axis first, then average over the partner's type, axis 1. What is 0 / 0 must become "no bond".
#
# </details>
#
# <details><summary>Hint for <code>limit_matrix</code></summary>
#
# `tile(1, N)` repeats a block to the right, `tile(N, 1)` downwards; `expand` and `tile` also make rows of a vector.
#
# </details>
#
# <details><summary>Hint for <code>RowLimit</code></summary>
#
# Equation 7 has four terms on each side of the equality. Sum the slots first. What is the same for all slots has a slot axis of length 1.
#
# </details>
#
# **Predict.** At which nominal $\bar\alpha$ has half of the row of a molecule of $n$ atoms been redrawn, and at which $t / T$ is that for 27 atoms?
#
# <details><summary>Hint</summary>
#
# Set $\kappa_t = 1/2$ in equation 9.
#
# </details>
#
# <details><summary>Answer</summary>
#
# $\bar\alpha = n / (n + 1)$: 0.964 for 27 atoms, which is reached after little more than a tenth of the time. The cell below finds it.
#
# </details>

# %%
half = (paper.kept_share(torch.arange(T + 1), torch.tensor(27)) < 0.5).nonzero()[0].item()
print(
    f"27 / 28 = {27 / 28:.3f}; t / T = {half / T:.2f}, where nominal ᾱ is {paper.alpha_bar[half]:.3f}"
)

# %% [markdown]
# **Vary.** Set `share` of the corrected noise to 0, 0.5 and 1. How far is the limit of an atom from $m_X$, on average over atoms and for the mean over all atoms? What does that say about how much a row of slots knows of its atom?
#
# <details><summary>Hint</summary>
#
# `q` at $T$ gives the limits. Take the total variation before the mean and after it.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The mean over all atoms stays near the marginal at any share, as it should. A single atom's limit moves a few hundredths at most: in QM9 a slot is mostly "no bond", and the slots say little of their atom. So "corrected" is close to "independent" on this data. Whether the difference matters for what is generated is a question for an experiment, in [lesson 9](9_experiments.ipynb).
#
# </details>

# %%
for share in (0.0, 0.5, 1.0):
    noise = GraphNoise(statistics, kind="corrected", share=share)
    ends = noise.q(clean, torch.full((len(clean.X),), T))[0][clean.mask]
    one, mean = (total_variation(p, statistics.atoms).mean() for p in (ends, ends.mean(dim=0)))
    print(f"share {share}: an atom's limit {one:.3f} from m_X, the mean limit {mean:.3f}")

# %% [markdown]
# **Find the bug.** A colleague writes the posterior for kind "independent". Shapes and sums are right. What is wrong, and which test of this lesson sees it?


# %%
def reverse_colleague(noise, graph, pX0, pE0, s, t):
    limit, guess, now = noise._limit_for(graph), (pX0, pE0), (graph.X, graph.E)
    kept_s, kept_t = noise.alpha_bar[s], noise.alpha_bar[t]
    D = _blend(kept_t, now, limit.back(*now))
    weight = [p / d for p, d in zip(guess, D, strict=True)]
    before = _blend(kept_s, weight, limit.times(*weight))
    return _normalised(*(d * b for d, b in zip(D, before, strict=True)), graph.mask)


apart = noises["independent"]
t = torch.full((len(clean.X),), 250)
state = draw_graph(*apart.q(clean, t), clean.mask, torch.manual_seed(0))
theirs = reverse_colleague(apart, state, clean.X, clean.E, t - 50, t)[0]
print("sums:", theirs.sum(-1).mean().item())

# %% [markdown]
# <details><summary>Hint</summary>
#
# Compare with equation 8, factor by factor. From where to where does each transition matrix lead?
#
# </details>
#
# <details><summary>Answer</summary>
#
# In place of the likelihood $L$, whose matrix leads from $s$ to $t$, stands $D$, whose matrix leads from the clean graph to $t$. It is blurred too much, so that the present state counts too little. Averaged over the states that `q` draws, with the true clean graph as the guess, the posterior must give back `q` at $s$: that test sees it.
#
# </details>

# %%
carbons = clean.X[..., 0] > 0
expected = apart.q(clean, t - 50)[0][carbons].mean(dim=0)
right = apart.reverse(state, clean.X, clean.E, t - 50, t)[0][carbons].mean(dim=0)
print(f"ours {total_variation(right, expected):.4f} from q at s,", end=" ")
print(f"the colleague's {total_variation(theirs[carbons].mean(dim=0), expected):.4f}")

# %% [markdown]
# ## What breaks
#
# ### Padding that speaks
#
# The sum of equation 8 runs over all slots of a row, and a graph that is padded has slots for atoms that are not there. A network's guess for them is uniform, the softmax of zeros, and so they have a weight $w$ like any other. The same molecule, with the same guess, in rows of different length:


# %%
def padded(part, N, axes, value=0.0):
    for axis in axes:
        shape = list(part.shape)
        shape[axis] = N - shape[axis]
        part = torch.cat([part, torch.full(shape, value, dtype=part.dtype)], dim=axis)
    return part


def at_length(kind, N):
    """The posterior of the example's atoms when it is padded to N."""
    noise, s, t = noises[kind], torch.tensor([99]), torch.tensor([100])
    graph, hat_X, hat_E = state_alone, hat[0][:, :n_atoms], hat[1][:, :n_atoms, :n_atoms]
    graph = Graphs(
        padded(graph.X, N, [1]), padded(graph.E, N, [1, 2]), padded(graph.mask, N, [1], False)
    )
    guess = padded(hat_X, N, [1], 1 / A), padded(hat_E, N, [1, 2], 1 / K)
    return noise.reverse(graph, *guess, s, t)[0][0, :n_atoms]


n_atoms = int(example.mask.sum())
noisy_one = draw_graph(*paper.q(example, now), example.mask, torch.manual_seed(3))
state_alone = Graphs(
    noisy_one.X[:, :n_atoms], noisy_one.E[:, :n_atoms, :n_atoms], noisy_one.mask[:, :n_atoms]
)
for kind in KINDS:
    distances = [
        total_variation(at_length(kind, N), at_length(kind, n_atoms)).mean() for N in (9, 20, 50)
    ]
    print(f"{kind:>11}: padded to 9, 20, 50:", [f"{d.item():.4f}" for d in distances])

# %% [markdown]
# With the paper's noise the answer depends on how long the longest molecule of the data set is. That is as released, and published weights expect it, so `reverse` does the same. A network that learns its guess on one padding and generates with another has a different sampler. The other kinds do not look at missing slots.
#
# ### A wrong time
#
# Times are whole numbers, not shares of $T$. In torch-molecule 0.1.7 the network sees times from 0 to $T$ in training and from 0 to 1 in sampling, and nothing says so. `q` and `reverse` say what they expect.

# %%
with shows_error(ValueError):
    paper.q(example, torch.tensor([0.2]))
with shows_error(ValueError):
    paper.q(example, torch.tensor([501]))
with shows_error(ValueError):
    paper.reverse(example, example.X, example.E, torch.tensor([100]), torch.tensor([100]))
with shows_error(ValueError):
    paper.q(large, torch.full((32,), 5))
with shows_error(ValueError):
    GraphNoise(statistics, kind="digress")
with shows_error(ValueError):
    GraphNoise(statistics, kind="corrected", share=1.5)
with shows_error(ValueError):
    noises["corrected"].matrix(100)
with shows_error(ValueError):
    graph_statistics(Codes(codes.atoms[:0], codes.bonds[:0]), vocabulary)

# %% [markdown]
# ## Recap
#
# - Discrete noise keeps a type with probability $\bar\alpha_t$ and else redraws it. When the limit is idempotent, steps multiply to jumps and Bayes' rule gives a true posterior.
# - Graph DiT redraws a whole row by a matrix $u$ that repeats its blocks. So neither direction needs the matrix: the factored form gives the same numbers in a small fraction of the time.
# - Rows of $u$ sum to $1 + N$. Therefore the noise is faster than its schedule, its limit is not where sampling starts, and its $\bar Q_t$ is no product. The course's "corrected" kind looks at the neighbours too, and has none of the three.
#
# The line goes on in [lesson 4](4_denoiser.ipynb), with the network that makes the guess.
