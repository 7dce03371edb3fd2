# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 50
#     needs:
#     - 2_graph_dit/2_graphs
#     - 3_syco/1_paper
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lifting: a molecule as a cloud of points
#
# **After this lesson you can** lift a molecule's graph into space with coordinates that no one measured, count the molecules for which that fails, and say how much of the graph the distances alone give back.
#
# *Before this:* [Graphs](../2_graph_dit/2_graphs.ipynb) (`2_graphs`), whose codes and vocabulary are used here as they are, and [The paper](1_paper.ipynb) (`1_paper`), which says what the clouds are for. *Time:* 50 minutes, and 30 for the blanks.

# %% [markdown]
# ## Words
#
# A graph $G$ says which atoms a molecule has and which of them are bonded. It has no places. Yet chemistry knows the length of a bond between two given atoms to a few hundredths of an ångström (Å, $10^{-10}$ metres), and the angle between two bonds to a few degrees. So a graph fixes a range for the distance of each pair of atoms, and a computer can look for points that keep to all ranges at once. This is **distance geometry** (距离几何). A solution is a **conformer** (构象): one of the shapes that the molecule can take. **ETKDG** is the method of RDKit that does it, with what crystals teach about turning bonds. It is a fixed algorithm that starts from random numbers. Nothing is learned and nothing is measured for the molecule at hand, hence **synthetic coordinates** (合成坐标).
#
# Lifting turns a list of $n$ atoms into a **point cloud** (点云) $x$: a place in space for each atom. A cloud can be noised and denoised like an image, one number after the other, and that is why SyCo wants it. The bonds are drawn nowhere in a cloud. Are they still there, in the distances? That is the question of the second half of this lesson.

# %% [markdown]
# ## Figure
#
# ### Two molecules and a cage
#
# Caffeine and aspirin are lifted with `synthetic_coordinates`, which this lesson builds. The third molecule is a cage of nine carbon atoms from QM9, the list of small molecules of chapter 2.

# %%
import itertools
import time
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom
from torch import Tensor

from fourfold.graph_dit.graphs import (
    BONDS,
    Codes,
    Problem,
    Vocabulary,
    encode_smiles,
    parse_smiles,
)
from fourfold.kit.arguments import listed, whole_number
from fourfold.kit.cloud_picture import draw_cloud, face
from fourfold.kit.drawing import COLOURS, canvas, show
from fourfold.kit.molecules import (
    BOND_COLOURS,
    draw_molecule,
    molecule_grid,
    qm9_coordinates,
    qm9_table,
)
from fourfold.kit.notebook import shows_error
from fourfold.syco.lifting import _plans, align, squared_distances, synthetic_coordinates

KNOWN = {
    "caffeine": "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "aspirin": "CC(=O)OC1=CC=CC=C1C(=O)O",
    "a cage of nine carbons": "C1=C2C3C4C1C1C2C3C41",
}


# %%
def lifted_alone(smiles, seed=0):
    """Coordinates, symbols and bonds of one molecule; the coordinates are None where it fails."""
    molecule = Chem.MolFromSmiles(smiles)
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    Chem.Kekulize(molecule)
    bonds = Chem.GetAdjacencyMatrix(molecule, useBO=True).astype(int)
    try:
        return synthetic_coordinates(molecule, seed), symbols, bonds
    except ValueError:
        return None, symbols, bonds


clouds = {name: lifted_alone(smiles) for name, smiles in KNOWN.items()}
{name: x if x is None else tuple(x.shape) for name, (x, *_) in clouds.items()}

# %% [markdown]
# The cage has no coordinates. ETKDG tries 40 times for each molecule here, and after each try it checks what it made. It can count which check refused a try:

# %%
REASONS = {
    "CHECK_TETRAHEDRAL_CENTERS": "corner squashed",
    "ETK_MINIMIZATION": "flat part bent",
    "INITIAL_COORDS": "no start",
    "FIRST_MINIMIZATION": "ranges broken",
}


def refusals(smiles, seed=0):
    """How often each check of ETKDG refused a try, for a molecule without a conformer."""
    molecule, counts = Chem.AddHs(Chem.MolFromSmiles(smiles)), Counter()
    for plan in _plans(seed):
        plan.trackFailures = True
        assert rdDistGeom.EmbedMolecule(molecule, plan) == -1
        names = rdDistGeom.EmbedFailureCauses.names
        counts += Counter(dict(zip(names, plan.GetFailureCounts(), strict=False)))
    return Counter({REASONS.get(name, name): count for name, count in counts.items()})


refused = refusals(KNOWN["a cage of nine carbons"])
refused


# %% tags=["figure"]
def draw_distances(axes, x):
    picture = axes.imshow(squared_distances(x[None])[0].sqrt(), cmap="magma", vmin=0, vmax=8)
    axes.set(xticks=[], yticks=[], xlabel="atom j", ylabel="atom i")
    return picture


def draw_cross(axes):
    axes.set_axis_off()
    style = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.5, "✗", size=34, color=COLOURS["bad"], **style)


def draw_lifting():
    figure, grid = canvas(3, 4, 7.6, 5.4)
    figure.set_layout_engine("none")
    titles = ("graph G", "cloud x, seed s = 0", "the same from its side", "distance d_ij (Å)")
    for column, title in enumerate(titles):
        figure.text(0.12 + 0.245 * column, 0.98, title, ha="center", size=9)
        for row in range(3):
            grid[row, column].set_position([0.245 * column, 0.68 - 0.33 * row, 0.24, 0.29])
    for row, (name, (x, symbols, bonds)) in zip(grid, clouds.items(), strict=True):
        draw_molecule(row[0], KNOWN[name], pixels=420)
        row[0].text(0.5, -0.06, name, ha="center", va="top", size=8, transform=row[0].transAxes)
        place = row[3].get_position()
        if x is None:
            draw_cross(row[1])
            draw_cross(row[2])
            names, counts = zip(*reversed(refused.most_common()), strict=True)
            row[3].barh(names, counts, color=COLOURS["bad"], height=0.6)
            row[3].set(xlabel="tries refused")
            row[3].set_position([place.x0 + 0.07, place.y0 + 0.06, 0.15, 0.17])
            continue
        draw_cloud(row[1], x, symbols, bonds, span=7.8)
        draw_cloud(row[2], face(x), symbols, bonds, angle=(-75, 12), span=7.8)
        row[3].set_position([place.x0 + 0.02, place.y0 + 0.03, 0.16, 0.23])
        picture = draw_distances(row[3], x)
        bar = figure.add_axes([place.x0 + 0.19, place.y0 + 0.04, 0.01, 0.21])
        figure.colorbar(picture, cax=bar)
    return figure


show(
    draw_lifting(),
    alt="Three rows. Caffeine and aspirin: the drawing of the graph, the cloud from two sides with "
    "near atoms large and far ones pale, and the matrix of distances. The cage: its graph, two "
    "crosses, and bars that say which check refused the tries",
)

# %% [markdown]
# Caffeine is flat, as its side shows; aspirin is not. Near atoms are large and dark, far ones small and pale. The matrix of distances is the cloud without its pose: turn the cloud and the matrix stays.

# %% [markdown]
# ## Formula
#
# **Lifting.** ETKDG takes a graph $G$ and a seed $s$, from which its random numbers come. It adds the hydrogen atoms, makes a conformer, and only the places of the other $n$ atoms, the **heavy atoms**, are kept:
#
# $$ x = \mathrm{ETKDG}(G, s), \qquad x \in \mathbb{R}^{n \times 3} \tag{1} $$
#
# **Centring.** Where a cloud lies says nothing about the molecule. Its centre moves to the origin. Clouds of a batch are padded to one size, and a mask $m_i$ is 1 where there is an atom and 0 where there is none:
#
# $$ x_i \;\leftarrow\; m_i \Big( x_i - \frac{1}{n} \sum_j m_j\, x_j \Big), \qquad n = \sum_j m_j \tag{2} $$
#
# **Distances.** The distance $d_{ij}$ of two atoms does not change when the cloud is moved, turned or mirrored:
#
# $$ d_{ij}^2 = \| x_i - x_j \|^2 \tag{3} $$
#
# **And back.** The squared distances give the cloud back, but for its pose. Let $D$ hold $d_{ij}^2$ and $J = I - 1/n$ take the mean away. The **Gram matrix** $Q$ (格拉姆矩阵) holds the inner products of the centred points, its eigenvalues $\lambda_k$ belong to eigenvectors $v_k$, and the three largest make the points:
#
# $$ Q = -\tfrac{1}{2} J D J = \sum_k \lambda_k\, v_k v_k^\top, \qquad x_{ik} = \sqrt{\lambda_k}\; v_{ik}, \quad k = 1, 2, 3 \tag{4} $$
#
# **Bonds by a threshold.** The plainest inverse of lifting: call a pair bonded, $b_{ij} = 1$, where it is nearer than a length $\ell$:
#
# $$ b_{ij} = m_i\, m_j\, [\, i \ne j \,]\, [\, d_{ij} < \ell \,] \tag{5} $$
#
# **Two clouds of one molecule.** To compare a cloud $x$ with another cloud $y$, turn it first: the rotation $R$ that brings it nearest (Kabsch 1976, Acta Crystallographica A32, 922)
#
# $$ R = \arg\min_{R} \sum_i \| R\, x_i - y_i \|^2, \qquad R^\top R = I, \quad \det R = 1 \tag{6} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $G$ | molecular graph | molecule of RDKit, or codes | `molecule` | graph G |
# | $s$ | seed of the random numbers | whole number, 0 or more | `seed` | seed s |
# | $x$ | cloud: coordinates of the atoms | (n, 3) or (B, N, 3), Å | `x` | cloud x |
# | $n$ | number of heavy atoms | whole number | `atoms` | n atoms |
# | $m_i$ | mask: whether there is an atom | (B, N) | `mask` | mask m_i |
# | $d_{ij}$ | distance of two atoms | (B, N, N), Å | `squared_distances` | distance d_ij |
# | $Q$ | Gram matrix of the centred points | (n, n), Å² | `gram` | Gram matrix Q |
# | $\lambda_k$ | eigenvalue of the Gram matrix | Å² | `values` | eigenvalue λ_k |
# | $\ell$ | longest distance that counts as a bond | Å | `longest` | longest ℓ |
# | $b_{ij}$ | guess that two atoms are bonded | (B, N, N) | `bonds_by_distance` | bonded, b_ij |
# | $y$ | another cloud of the same atoms | (n, 3), Å | `onto` | cloud y |
# | $R$ | rotation | (3, 3) | `rotation` | rotation R |
#
# Letters of shapes: $B$ molecules, $N$ atoms that there is room for.
#
# > **Where the code leaves the paper.** The paper says that coordinates come from ETKDG, that no part of it is learned, and that an autoencoder undoes it. The authors announce code and have released none. All the rest of lifting is our choice, modelled on what is usual: version 3 of ETKDG, with hydrogens added before and left out after; one conformer a molecule, from seed 0; 20 tries, and 20 more from random places; molecules that fail, and those in several pieces, are kept apart and counted.

# %% [markdown]
# ## Code
#
# ### What a graph says about distances
#
# A naive version first, for isobutanal: five heavy atoms, few enough to read. Each element has a **covalent radius**, and a bond is about as long as two radii together; a double bond is 0.2 Å shorter, a triple bond 0.3 Å.

# %%
small = Chem.MolFromSmiles("CC(C)C=O")
radius = Chem.GetPeriodicTable().GetRcovalent
SHORTER = {1: 0.0, 1.5: 0.12, 2: 0.2, 3: 0.3}


def bond_length(bond):
    """The length that is usual for a bond of this type between these elements, in Å."""
    ends = bond.GetBeginAtom(), bond.GetEndAtom()
    return sum(radius(a.GetSymbol()) for a in ends) - SHORTER[bond.GetBondTypeAsDouble()]


{f"{b.GetBeginAtomIdx()}-{b.GetEndAtomIdx()}": round(bond_length(b), 2) for b in small.GetBonds()}

# %% [markdown]
# Two bonds at one atom span an angle: 109.5° where the atom has four neighbours (hydrogens count), 120° where it has three, 180° where it has two. Two sides and the angle give the third side, by the law of cosines. All other pairs get a wide range: no nearer than 2.4 Å, no farther than the bonds between them laid out in a line.

# %%
ANGLE = {"SP3": 109.5, "SP2": 120.0, "SP": 180.0}


def ranges(molecule):
    """The least and the largest distance of each pair, in Å."""
    n = molecule.GetNumAtoms()
    low = torch.full((n, n), 2.4).fill_diagonal_(0)
    high = torch.full((n, n), torch.inf).fill_diagonal_(0)
    for b in molecule.GetBonds():
        i, j = b.GetBeginAtomIdx(), b.GetEndAtomIdx()
        low[i, j] = low[j, i] = high[i, j] = high[j, i] = bond_length(b)
    bonded = low.clone()
    for atom in molecule.GetAtoms():
        k, around = atom.GetIdx(), [a.GetIdx() for a in atom.GetNeighbors()]
        cosine = np.cos(np.radians(ANGLE[atom.GetHybridization().name]))
        for i, j in itertools.combinations(around, 2):
            a, b = bonded[i, k], bonded[j, k]
            side = (a**2 + b**2 - 2 * a * b * cosine).sqrt()
            low[i, j] = low[j, i] = high[i, j] = high[j, i] = side
    for k in range(n):  # no way is longer than the way through k
        high = torch.minimum(high, high[:, k, None] + high[None, k])
    return low, high


low, high = ranges(small)
high


# %%
def rounded(values):
    return [round(v, 2) for v in values.tolist()]


free = (high - low).triu(1) > 0
print("pairs with a range and not a number:", free.nonzero().tolist())
print("from", rounded(low[free]), "to", rounded(high[free]), "Å")

# %% [markdown]
# Bonds and angles leave two distances free: those from the oxygen to the two ends. They say how the C–C bond in the middle is turned. All shapes of this molecule differ in them alone.
#
# RDKit's own table of ranges does the same with finer numbers:

# %%
with_hydrogens = Chem.AddHs(small)
table = torch.tensor(rdDistGeom.GetMoleculeBoundsMatrix(with_hydrogens)[:5, :5])
print("from", rounded(table.T[free]), "to", rounded(table[free]), "Å")
fixed = ~free & (high.triu(1) > 0)
print(f"largest difference of the others: {(table.float() - high)[fixed].abs().max():.2f} Å")

# %% [markdown]
# ### From distances to points
#
# Draw a distance from each range. Then equation 4 makes points of them. With true distances of points in space it gives these points back:


# %% tags=["promote", "exercise"]
def embed_distances(d: Float[Tensor, "n n"]) -> Float[Tensor, "n 3"]:
    """Centred points with these distances, as near as three dimensions allow (equation 4).

    d        (n, n) distances, symmetric, 0 on the diagonal
    returns  (n, 3), the broadest direction first; which of two mirror images comes is chance

    Where no points have these distances, negative eigenvalues of the Gram matrix count as 0.
    """
    n = len(d)
    away = torch.eye(n, dtype=d.dtype, device=d.device) - 1 / n
    gram = -0.5 * away @ d.square() @ away
    values, vectors = torch.linalg.eigh(gram)  # from the smallest to the largest
    values, vectors = values.flip(0)[:3].clamp(min=0), vectors.flip(1)[:, :3]
    return F.pad(vectors * values.sqrt(), (0, max(0, 3 - n)))


# %% tags=["check"]
generator = torch.Generator().manual_seed(0)
points = torch.randn(7, 3, generator=generator, dtype=torch.float64)
found = embed_distances(torch.cdist(points, points))
assert found.shape == (7, 3) and found.mean(0).abs().max() < 1e-9, "centred"
assert torch.allclose(torch.cdist(found, found), torch.cdist(points, points)), "the same distances"
assert (found.var(0).diff() < 0).all(), "the broadest direction first"
two = embed_distances(torch.tensor([[0.0, 3.0], [3.0, 0.0]]))
assert torch.allclose((two[0] - two[1]).norm(), torch.tensor(3.0)), "two points lie on a line"

# %% [markdown]
# The check uses points that exist. Distances drawn by lot from ranges need not fit together. Then the Gram matrix has more than three eigenvalues that are not 0, or negative ones. What is cut off is an error:


# %%
def drawn_distances(low, high, generator):
    share = torch.rand(low.shape, generator=generator).triu(1)
    return low + (share + share.T) * (high - low)


def gram_values(d):
    away = torch.eye(len(d)) - 1 / len(d)
    gram = -0.5 * away @ d.square() @ away
    return gram, torch.linalg.eigvalsh(gram).flip(0)


rough_d = drawn_distances(low, high, torch.Generator().manual_seed(2))
gram, values = gram_values(rough_d)
rough = embed_distances(rough_d)
print("eigenvalues", [round(v, 2) for v in values.tolist()], "Å²")


# %%
def violation(x, low, high):
    """How far the distances lie outside of their ranges: a sum of squares, in Å²."""
    d = (squared_distances(x[None])[0] + 1e-9).sqrt()
    return ((low - d).clamp(min=0).square() + (d - high).clamp(min=0).square()).sum()


def settle(x, low, high, steps=300):
    """Walk downhill on the violation, so that the points keep to their ranges."""
    for _ in range(steps):
        x = x.clone().requires_grad_()
        x = (x - 0.05 * torch.autograd.grad(violation(x, low, high), x)[0]).detach()
    return x


settled = settle(rough, low, high)
for name, x in (("embedded", rough), ("settled", settled)):
    print(f"{name:>8}: violation {violation(x, low, high):.4f} Å²")


# %% tags=["figure"]
def draw_naive():
    figure, axes = canvas(1, 5, 7.6, 1.9, width_ratios=[1, 1, 1, 1, 1])
    axes[0].imshow(gram, cmap="RdBu_r", vmin=-4, vmax=4)
    axes[0].set(xticks=[], yticks=[], title="Gram matrix Q (Å²)")
    axes[1].bar(range(1, 6), values, color=[COLOURS["first"]] * 3 + [COLOURS["muted"]] * 2)
    axes[1].set(xlabel="k", xticks=range(1, 6), title="eigenvalue λ_k (Å²)")
    axes[1].axhline(0, color="#222222", lw=0.6)
    symbols = [atom.GetSymbol() for atom in small.GetAtoms()]
    bonds = Chem.GetAdjacencyMatrix(small, useBO=True).astype(int)
    made = face(synthetic_coordinates(small))
    three = {"embedded": rough, "settled": settled, "ETKDG": torch.tensor(made)}
    for panel, (name, x) in zip(axes[2:], three.items(), strict=True):
        x = align(x.float(), torch.tensor(made).float(), mirror=True)
        draw_cloud(panel, x, symbols, bonds, angle=(10, 10), span=4.8)
        panel.set_title(name)
    return figure


show(
    draw_naive(),
    alt="The Gram matrix of five atoms, its eigenvalues of which three are large, and three "
    "clouds of the same molecule: embedded, settled, and from ETKDG",
)

# %% [markdown]
# That is distance geometry: ranges, a draw, eigenvectors, and a walk downhill. ETKDG has finer ranges. Where a molecule has a hand, RDKit begins in four dimensions, where there is room to pass by, and presses the fourth flat. After the walk ETKDG turns bonds to angles that are frequent in crystals (ET, experimental torsions) and keeps rings flat or bent as basic knowledge has it (K). Riniker and Landrum describe it (2015, Journal of Chemical Information and Modeling 55, 2562).
#
# ### Synthetic coordinates
#
# From here on RDKit does the work. The naive call:


# %%
def naive_coordinates(smiles):
    molecule = Chem.MolFromSmiles(smiles)
    with rdBase.BlockLogs():  # a warning about hydrogens, to which we come
        rdDistGeom.EmbedMolecule(molecule, rdDistGeom.ETKDGv3())
    return torch.tensor(molecule.GetConformer().GetPositions())


first, second = naive_coordinates("CC(C)C=O"), naive_coordinates("CC(C)C=O")
print(f"two calls differ by up to {(first - second).abs().max():.1f} Å")

# %% [markdown]
# Three things are missing. Without a seed every call gives another cloud. A failure is a return value of −1 that nobody reads here; the next line then stops with "Bad Conformer Id". And hydrogens are missing, so nothing keeps two carbons apart whose hydrogens would touch.

# %% tags=["promote"]
_TRIES = 20  # more hardly ever help, and a strained cage would take minutes
_LARGEST_SEED = 2**31 - 1  # RDKit keeps it in 32 bits


# %% tags=["promote"]
def _plans(seed: int) -> Iterable[rdDistGeom.EmbedParameters]:
    for random_start in (False, True):
        plan = rdDistGeom.ETKDGv3()
        plan.randomSeed, plan.useRandomCoords = seed, random_start
        plan.maxIterations = _TRIES
        yield plan


# %% tags=["promote"]
def synthetic_coordinates(molecule: Chem.Mol, seed: int = 0) -> Float[Tensor, "n 3"]:
    """Coordinates of a molecule's heavy atoms, made up by ETKDG (equation 1; Riniker and Landrum).

    Distance geometry with torsion preferences draws one conformer with hydrogens; theirs are left
    out, and the rest is centred. The same seed gives the same coordinates for the same order of
    atoms; to RDKit, seeds 0 and 1 are the same. Where 20 tries fail, 20 more start from random
    coordinates.

    molecule  of n heavy atoms in one piece, not changed
    returns   (n, 3) in Å, mean 0, float32, in the order of the molecule's atoms

    Raises ValueError where all tries fail, for a molecule without atoms, in several pieces or not
    chemically valid, and for a seed outside of 0 to 2³¹ − 1; TypeError for what is no molecule.
    """
    if not isinstance(molecule, Chem.Mol):
        kind = type(molecule).__name__
        raise TypeError(f"molecule is a {kind}; expected a molecule of RDKit")
    seed = whole_number("seed", seed, least=0, most=_LARGEST_SEED)
    pieces = len(Chem.GetMolFrags(molecule))
    if pieces != 1:
        raise ValueError(f"it has {pieces} pieces; expected a molecule in one piece")
    with rdBase.BlockLogs():
        full = Chem.Mol(molecule)
        Chem.SanitizeMol(full)
        full = Chem.AddHs(full)
        for plan in _plans(seed):
            if rdDistGeom.EmbedMolecule(full, plan) == 0:
                x = full.GetConformer().GetPositions()[: molecule.GetNumAtoms()]
                x = torch.tensor(x, dtype=torch.float32)
                return x - x.mean(dim=0)
    raise ValueError(f"ETKDG finds no conformer for {Chem.MolToSmiles(molecule)}")


# %%
aspirin = Chem.MolFromSmiles(KNOWN["aspirin"])
x = synthetic_coordinates(aspirin)
assert torch.equal(x, synthetic_coordinates(aspirin)), "one seed, one cloud"
assert x.shape == (13, 3) and x.mean(0).abs().max() < 1e-6  # a few Å, in float32
x[:3]

# %% [markdown]
# ### Hydrogens in and out
#
# What do the hydrogens change that are left out again? They take room. Without them, atoms that are four bonds or more apart come closer than they could:


# %%
def positions(smiles, hydrogens):
    """The first plan's conformer, and the molecule that it belongs to."""
    full = Chem.AddHs(Chem.MolFromSmiles(smiles)) if hydrogens else Chem.MolFromSmiles(smiles)
    with rdBase.BlockLogs():
        made = rdDistGeom.EmbedMolecule(full, next(iter(_plans(0)))) == 0
    return torch.tensor(full.GetConformer().GetPositions()) if made else None, full


def closest_far_pair(smiles, hydrogens):
    """The shortest distance of two heavy atoms that are four bonds or more apart, in Å."""
    x, _ = positions(smiles, hydrogens)
    far = torch.tensor(Chem.GetDistanceMatrix(Chem.MolFromSmiles(smiles))) >= 4
    if x is None or not far.any():
        return torch.nan
    n = len(far)
    return torch.cdist(x[:n], x[:n])[far].min().item()


held_out = qm9_table("held_out")["smiles"].tolist()
for hydrogens in (True, False):
    closest = torch.tensor([closest_far_pair(text, hydrogens) for text in held_out[:60]])
    print(f"hydrogens {hydrogens!s:>5}: closest far pair, median {closest.nanmedian():.2f} Å")


# %% tags=["figure"]
def draw_hydrogens():
    figure, axes = canvas(1, 3, 6.6, 2.3)
    x, full = positions(KNOWN["aspirin"], True)
    symbols = [atom.GetSymbol() for atom in full.GetAtoms()]
    Chem.Kekulize(full)
    bonds, n = Chem.GetAdjacencyMatrix(full, useBO=True).astype(int), aspirin.GetNumAtoms()
    bare = align(positions(KNOWN["aspirin"], False)[0].float(), x[:n].float(), mirror=True)
    shown = {"with hydrogens": x, "hydrogens left out after": x[:n], "never added": bare}
    for panel, (title, points) in zip(axes, shown.items(), strict=True):
        m, moved = len(points), points - x[:n].mean(0)
        draw_cloud(panel, moved, symbols[:m], bonds[:m, :m], angle=(-20, 20), span=9.5)
        panel.set_title(f"{title}: {m} atoms")
    return figure


show(
    draw_hydrogens(),
    alt="Aspirin three times: with its hydrogens, the same without them, and a cloud that never "
    "had any and has its arms turned otherwise",
)

# %% [markdown]
# SyCo's decoder names heavy atoms only, so hydrogens have no point in the cloud. RDKit puts them back from the valences once the graph is there. They need not be in the cloud; they need to have been there when it was made.
#
# ### Centring
#
# The clouds of a batch have different sizes. Padding fills them up, and a mask says what is padding. For one cloud the centre is a mean, and the naive version loops:


# %%
def center_loop(x, mask):
    out = torch.zeros_like(x)
    for b in range(len(x)):
        out[b, mask[b]] = x[b, mask[b]] - x[b, mask[b]].mean(dim=0)
    return out


# %% tags=["promote", "exercise"]
def center(x: Float[Tensor, "B N 3"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N 3"]:
    """The same clouds with their centres at the origin, and padding at 0 (equation 2).

    x     (B, N, 3) coordinates; what stands where there is no atom does not matter, if finite
    mask  (B, N) whether there is an atom
    """
    atoms = mask.sum(dim=1).clamp(min=1)[:, None, None]
    x = x * mask[..., None]
    return (x - x.sum(dim=1, keepdim=True) / atoms) * mask[..., None]


# %% tags=["check"]
generator = torch.Generator().manual_seed(0)
some = 5 + torch.randn(3, 6, 3, generator=generator)
there = torch.arange(6) < torch.tensor([[6], [4], [0]])
centred = center(some, there)
# Coordinates near 10 in float32.
assert torch.allclose(centred, center_loop(some, there), atol=1e-5), "as the loop"
assert (centred[~there] == 0).all(), "padding is 0"
assert torch.allclose(center(centred, there), centred, atol=1e-5), "twice is once"
assert torch.allclose(center(some + 3, there), centred, atol=1e-5), "no matter where it was"

# %% [markdown]
# ### Pairs and distances
#
# A pair counts where two different atoms are there. Equation 3 needs three nested loops, or one subtraction of the cloud from itself:


# %% tags=["promote"]
def pair_mask(mask: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N N"]:
    """Whether two different atoms are there: True for the pairs that count."""
    others = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return mask[:, :, None] & mask[:, None] & others


# %%
pair_mask(torch.tensor([[True, True, False]])).int()


# %% tags=["promote", "exercise"]
def squared_distances(x: Float[Tensor, "B N 3"]) -> Float[Tensor, "B N N"]:
    """The squared distance of each pair of points, in Å² for coordinates in Å (equation 3)."""
    return (x[:, :, None] - x[:, None]).square().sum(dim=-1)


# %% tags=["check"]
three = torch.tensor([[[0.0, 0, 0], [3, 4, 0], [0, 0, 1]]])
assert squared_distances(three)[0].tolist() == [[0, 25, 1], [25, 0, 26], [1, 26, 0]]
turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
posed = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
# Squares of a few tens of Å² in float32.
assert torch.allclose(squared_distances(posed @ turn + 2), squared_distances(posed), atol=1e-3)
assert torch.allclose(squared_distances(-posed), squared_distances(posed)), "the hand is lost"

# %% [markdown]
# The subtraction holds $3 B N^2$ numbers for a moment. Written out, $|x_i|^2 + |x_j|^2 - 2\, x_i^\top x_j$ holds $B N^2$ and uses a matrix product. But it subtracts large numbers from each other. A cloud that lies far from the origin shows what that costs:

# %%
far = some + 1000
inner = far @ far.mT
own = inner.diagonal(dim1=1, dim2=2)
expanded = own[:, :, None] + own[:, None] - 2 * inner
for name, result in (("subtracted", squared_distances(far)), ("expanded", expanded)):
    error = (result.double() - squared_distances(far.double())).abs().max()
    print(f"{name:>10}: largest error {error:.4f} Å²; smallest value {result.min():.2f}")

# %% [markdown]
# ### Whole lists, in one order
#
# `Lifted` holds graphs beside their clouds. Row by row, the point of an atom stands at the same place as its code. What cannot be read or lifted goes to `problems` with its reason, as in chapter 2:


# %% tags=["promote"]
class Lifted(NamedTuple):
    """M molecules as graphs with coordinates.

    codes     their graphs, as in chapter 2
    x         (M, N, 3) coordinates in Å, centred, 0 where there is no atom
    rows      their places in the list of SMILES
    problems  every other place with its text and the reason
    """

    codes: Codes
    x: Float[Tensor, "M N 3"]
    rows: list[int]
    problems: list[Problem]


# %% tags=["promote"]
def lift(smiles: Iterable[str], vocabulary: Vocabulary, seed: int = 0) -> Lifted:
    """Molecules as graphs with synthetic coordinates; what fails is kept apart, not lost.

    Raises ValueError for a text in place of a list, for an empty list, and for a seed outside of
    0 to 2³¹ − 1.
    """
    smiles = listed("smiles", smiles, "['CCO', 'c1ccccc1']")
    seed = whole_number("seed", seed, least=0, most=_LARGEST_SEED)
    codes, rows, problems = encode_smiles(smiles, vocabulary)
    x, kept = torch.zeros(len(rows), vocabulary.max_atoms, 3), []
    for m, row in enumerate(rows):
        try:
            own = synthetic_coordinates(parse_smiles(smiles[row], vocabulary.kekulize), seed)
        except ValueError as error:
            problems.append(Problem(row, smiles[row], str(error)))
            continue
        x[m, : len(own)] = own
        kept.append(m)
    codes = Codes(codes.atoms[kept], codes.bonds[kept])
    return Lifted(codes, x[kept], [rows[m] for m in kept], sorted(problems))


# %%
vocabulary = Vocabulary(("C", "N", "O", "F"), 9, kekulize=True)
asked = ["CC(C)C=O", "c1ccoc1", KNOWN["a cage of nine carbons"], "CCO", "[H][H]", "CNC(=O)CF"]
lifted = lift(asked, vocabulary)
print(tuple(lifted.x.shape), "rows", lifted.rows)
for problem in lifted.problems:
    print(problem)


# %% tags=["figure"]
def draw_batch():
    mask = lifted.codes.atoms >= 0
    figure, axes = canvas(1, 2, 7.4, 1.9, width_ratios=[1, 2])
    axes[0].imshow(mask, cmap="gray_r", vmin=0, vmax=1.6)
    for m, atoms in enumerate(lifted.codes.atoms.tolist()):
        for i, code in enumerate(atoms):
            if code >= 0:
                symbol = vocabulary.atoms[code]
                style = {"ha": "center", "va": "center", "size": 7, "color": "white"}
                axes[0].text(i, m, symbol, **style)
    counts = mask.sum(1).tolist()
    axes[0].set(title="mask m_i", xlabel="place i", yticks=range(len(mask)), xticks=[0, 4, 8])
    axes[0].set_yticklabels([f"n = {n}" for n in counts])
    axes[1].axis("off")
    axes[1].set_title("cloud x of n atoms each")
    for m, n in enumerate(counts):
        panel = axes[1].inset_axes([m / len(counts), 0, 1 / len(counts), 1])
        symbols = [vocabulary.atoms[c] for c in lifted.codes.atoms[m, :n].tolist()]
        draw_cloud(panel, lifted.x[m, :n], symbols, lifted.codes.bonds[m, :n, :n], span=5.2)
    return figure


show(
    draw_batch(),
    alt="Four molecules of a batch: their rows of the mask, dark where there is an atom, and their "
    "clouds, all to one scale",
)

# %% [markdown]
# The order of the atoms is that of the SMILES. It matters more than it should: ETKDG gives its random numbers to the atoms in turn, so the same molecule and seed with another order is another draw.

# %%
order = torch.randperm(13, generator=torch.Generator().manual_seed(0))
shuffled = synthetic_coordinates(Chem.RenumberAtoms(aspirin, order.tolist()))
before = squared_distances(synthetic_coordinates(aspirin)[order][None]).sqrt()
change = (squared_distances(shuffled[None]).sqrt() - before).abs().max()
print(f"aspirin, the same seed, another order: distances change by up to {change:.2f} Å")

# %%
canonical = sum(Chem.CanonSmiles(text) == text for text in held_out[:300])
print(f"{canonical} of 300 SMILES of QM9 are in RDKit's canonical order")

# %% [markdown]
# So a data set wants one order. The SMILES of the course's QM9 stand in the canonical one. For SMILES from elsewhere, `Chem.CanonSmiles` makes it.
#
# ### Two clouds of one molecule
#
# Equation 6 has a closed solution. The singular value decomposition $x^\top y = U \Sigma V^\top$ gives $R = V U^\top$; where that mirrors, the direction that matters least is turned back.


# %% tags=["promote"]
def align(
    x: Float[Tensor, "n 3"], onto: Float[Tensor, "n 3"], mirror: bool = False
) -> Float[Tensor, "n 3"]:
    """The cloud x, moved and turned to lie as near to another as it can (equation 6; Kabsch).

    onto    (n, 3) the same atoms in the same order; the result has its centre
    mirror  whether x may be mirrored too
    """
    middle = onto.mean(dim=0)
    x, onto = x - x.mean(dim=0), onto - middle
    u, _, v = torch.linalg.svd(x.T @ onto)
    signs = torch.ones_like(x[0])
    if not mirror:
        signs[2] = torch.linalg.det(u @ v).sign()  # the smallest singular value comes last
    rotation = u * signs @ v
    return x @ rotation + middle


# %%
y = synthetic_coordinates(aspirin)
pose = turn * torch.linalg.det(turn)  # a rotation, not a reflection
# A few Å in float32.
assert torch.allclose(align(y @ pose + 4, y), y, atol=1e-5), "a pose is undone"
assert torch.allclose(align(-y, y, mirror=True), y, atol=1e-5), "so is a reflection, if allowed"
assert not torch.allclose(align(-y, y), y, atol=0.1), "and only then"


# %%
def deviation(x, onto, mirror=False):
    """Root mean square distance of the atoms of two clouds after alignment, in Å."""
    return (align(x, onto, mirror) - onto).square().sum(dim=1).mean().sqrt().item()


def compare_seeds(smiles, seeds=range(7)):
    """For each seed: how far its cloud and its distances are from those of seed 0, in Å."""
    molecule = Chem.MolFromSmiles(smiles)
    many = [synthetic_coordinates(molecule, seed) for seed in seeds]
    d = torch.stack([squared_distances(x[None])[0].sqrt() for x in many])
    bonded = torch.tensor(Chem.GetAdjacencyMatrix(molecule)) > 0
    change = (d - d[0]).abs()
    return [deviation(x, many[0]) for x in many], change[:, bonded].max(1)[0], change.amax((1, 2))


for name in ("caffeine", "aspirin"):
    for title, numbers in zip(
        ("cloud", "bonds", "distances"), compare_seeds(KNOWN[name]), strict=True
    ):
        print(f"{name:>8} {title:>9}", " ".join(f"{float(v):.2f}" for v in numbers))

# %% [markdown]
# Each column is a seed, 0 to 6. Bonds hardly stretch from seed to seed, and rigid caffeine comes out the same each time. Aspirin has bonds to turn about, and some of its conformers are more than an ångström apart after the best rotation; single distances change by two. Seeds 0 and 1 agree exactly: to RDKit they are the same.


# %% tags=["figure"]
def draw_conformers():
    figure, axes = canvas(1, 4, 7.6, 2.1)
    symbols, bonds = clouds["aspirin"][1:]
    y = torch.tensor(face(synthetic_coordinates(aspirin))).float()
    x = synthetic_coordinates(aspirin, 2)
    turned = align(x, y)
    for panel, points, title in zip(
        axes,
        (y, x, turned),
        ("cloud y, seed s = 0", "cloud x, seed s = 2", "x after rotation R"),
        strict=False,
    ):
        draw_cloud(panel, points, symbols, bonds, angle=(-20, 20), span=8)
        panel.set_title(title)
    change = squared_distances(turned[None]).sqrt() - squared_distances(y[None]).sqrt()
    picture = axes[3].imshow(change[0], cmap="RdBu_r", vmin=-2.5, vmax=2.5)
    axes[3].set(xticks=[], yticks=[], title="change of d_ij (Å)")
    figure.colorbar(picture, ax=axes[3], shrink=0.8)
    return figure


show(
    draw_conformers(),
    alt="Aspirin from two seeds, the second also turned onto the first, and the matrix of how far "
    "their distances differ: not at all within the ring, by two ångström between its arms",
)

# %% [markdown]
# An autoencoder that saw both would have to learn that they are one graph. One fixed seed spares it that: a graph has one cloud. The price is that a cloud from another seed, or from a laboratory, is something it has not seen; the last lesson of the chapter measures one against many.
#
# ### The hand
#
# Two molecules that are mirror images of each other, like hands, have the same graph, and the same distances. L- and D-alanine are such a pair (the `@` in a SMILES says which):

# %%
left, right = (
    synthetic_coordinates(Chem.MolFromSmiles(text))
    for text in ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O")
)
print(
    f"apart after the best rotation: {deviation(left, right):.2f} Å; "
    f"with a reflection: {deviation(left, right, mirror=True):.2f} Å"
)

# %% [markdown]
# ETKDG respects the hand. The graph of chapter 2 does not hold it, and a model that gives the same answer for mirrored clouds, as all of SyCo does, cannot either. Chirality (手性) is lost here on purpose.
#
# ### Bonds by a threshold
#
# Last, equation 5, the inverse that needs no learning:


# %% tags=["promote", "exercise"]
def bonds_by_distance(
    x: Float[Tensor, "B N 3"], mask: Bool[Tensor, "B N"], longest: float
) -> Bool[Tensor, "B N N"]:
    """What a threshold alone sees of the bonds (equation 5).

    x        (B, N, 3) coordinates in Å
    mask     (B, N) whether there is an atom
    longest  ℓ, in Å
    returns  (B, N, N) whether a pair of different atoms is nearer than that
    """
    return (squared_distances(x) < longest**2) & pair_mask(mask)


# %% tags=["check"]
line = torch.tensor([[[0.0, 0, 0], [1.5, 0, 0], [4.0, 0, 0], [0, 0, 0]]])
seen = bonds_by_distance(line, torch.tensor([[True, True, True, False]]), 1.7)
assert seen.dtype == torch.bool and seen.sum() == 2 and seen[0, 0, 1] and seen[0, 1, 0]
longer = bonds_by_distance(line, torch.tensor([[True, True, True, False]]), 2.6)
assert longer.sum() == 4 and longer[0, 1, 2], "a longer threshold sees more"
assert not bonds_by_distance(line, torch.zeros(1, 4, dtype=torch.bool), 9.0).any(), "no atoms"

# %% [markdown]
# ## On real input
#
# ### 312 of 20,040
#
# The course ships the coordinates of its QM9, made by `lift` with seed 0. A few are made again here, to see that they are the same:

# %%
table, shipped = qm9_table(), torch.tensor(qm9_coordinates())
failed = shipped.isnan().any(dim=(1, 2))
print(f"{failed.sum()} of {len(table)} have no coordinates ({failed.double().mean():.1%})")

# %%
began = time.perf_counter()
again = lift(table["smiles"][:40], vocabulary)
seconds = (time.perf_counter() - began) / 40
difference = (again.x - shipped[again.rows]).abs().max()
print(f"largest difference {difference:.4f} Å; {1000 * seconds:.0f} ms for a molecule")

# %% [markdown]
# Shipped coordinates are rounded to 0.001 Å. Which molecules fail? Count rings. A pair of digits in a SMILES closes one:

# %%
rings = torch.tensor(table["smiles"].str.count(r"\d").to_numpy()) // 2
molecules = [Chem.MolFromSmiles(text) for text in table["smiles"][:300]]
assert rings[:300].tolist() == [m.GetNumBonds() - m.GetNumAtoms() + 1 for m in molecules]
for k in range(int(rings.max()) + 1):
    here = rings == k
    print(
        f"{k} rings: {int(failed[here].sum()):3d} of {int(here.sum()):5d} fail "
        f"({failed[here].double().mean():.1%})"
    )
print(f"with three rings or more: {int(failed[rings >= 3].sum())} of {int(failed.sum())}")

# %%
failing = table["smiles"][failed.numpy()].tolist()
ring_count = rings[failed].tolist()
chosen = [next(i for i, c in enumerate(ring_count) if c == k) for k in sorted(set(ring_count))]
chosen += [i for i in range(3, len(failing), 37) if i not in chosen][: 10 - len(chosen)]
legends = [f"{ring_count[i]} ring{'s' * (ring_count[i] > 1)}" for i in chosen]
show(
    molecule_grid([failing[i] for i in chosen], legends, 5),
    alt="Ten molecules without a conformer: a large ring with a triple bond, and cages of three "
    "to seven fused rings",
)

# %% [markdown]
# They are **strained cages**: small rings that share atoms, so that the angles ETKDG expects cannot all be kept. QM9 lists graphs that a program enumerated, and many have never been made in a flask. (A ring that holds a triple bond fails too: the four atoms about it want to lie on a line.) What refuses them:

# %%
reasons = sum((refusals(text) for text in failing[::26]), Counter())
print({name: f"{count / reasons.total():.0%}" for name, count in reasons.most_common()})

# %% [markdown]
# "Corner squashed" is RDKit's check that the four neighbours of an atom surround it; "flat part bent" the one that atoms with a double bond lie in a plane. Losing 1.6 % of the molecules is a bias, and it has a direction: a model that never sees a cage will not draw one.
#
# ### What is left of the bonds
#
# Now the inverse, on all held-out molecules that have coordinates. First the distances themselves, sorted by what the graph says of the pair:

# %%
aromatic = Vocabulary(("C", "N", "O", "F"), 9)  # keeps aromatic bonds as their own class
codes, rows, _ = encode_smiles(held_out, aromatic)
clouds_x = torch.tensor(qm9_coordinates("held_out"))[rows]
made = ~clouds_x.isnan().any(dim=(1, 2))
codes, clouds_x = Codes(codes.atoms[made], codes.bonds[made]), clouds_x[made]
mask = codes.atoms >= 0
d, pairs = squared_distances(clouds_x).sqrt(), pair_mask(mask)
truth = codes.bonds > 0
for k, kind in enumerate(BONDS):
    own = d[pairs.triu(1) & (codes.bonds == k)]
    low, high = own.quantile(0.01), own.quantile(0.99)
    print(
        f"{kind:>8}: {len(own):6d} pairs, 98 % of them from {low:.2f} to {high:.2f} Å, "
        f"all from {own.min():.2f} to {own.max():.2f}"
    )


# %%
def recovery(x, longest):
    """Precision and recall of the bonds, and the share of molecules without any error."""
    guess = bonds_by_distance(x, mask, longest)
    right = (guess & truth).sum() / guess.sum().clamp(min=1)
    found = (guess & truth).sum() / truth.sum()
    whole = ((guess == truth) | ~pairs).all(dim=(1, 2)).double().mean()
    return right.item(), found.item(), whole.item()


lengths = [round(1.3 + 0.05 * i, 2) for i in range(19)]
curves = {longest: recovery(clouds_x, longest) for longest in lengths}
for longest in (1.4, 1.5, 1.55, 1.65, 1.8, 2.0, 2.2):
    print(
        "ℓ = {:.2f} Å: precision {:.4f}, recall {:.4f}, exact {:.4f}".format(
            longest, *curves[longest]
        )
    )


# %% tags=["figure"]
def draw_recovery():
    figure, axes = canvas(2, 1, 7.0, 4.4, sharex=True, height_ratios=[3, 2])
    bins = np.arange(1.0, 2.9, 0.02)
    for k in (0, 1, 4, 2, 3):
        own = d[pairs.triu(1) & (codes.bonds == k)]
        colour = "#bdbdbd" if k == 0 else BOND_COLOURS[BONDS[k]]
        style = {"alpha": 0.45 if k else 0.6, "color": colour}
        axes[0].hist(own, bins, histtype="stepfilled", label=BONDS[k], **style)
        axes[0].hist(own, bins, histtype="step", color=colour, lw=1.2)
    axes[0].set(yscale="log", ylabel="pairs of atoms", title="pairs by what the graph says of them")
    axes[0].legend(ncols=5, loc="upper center", frameon=False)
    axes[0].set_ylim(0.7, 60000)
    for k, (name, mark) in enumerate((("precision", ":"), ("recall", "--"), ("exact", "-"))):
        ink = (COLOURS["second"], COLOURS["first"], "#222222")[k]
        axes[1].plot(lengths, [curves[v][k] for v in lengths], mark, color=ink, label=name)
    axes[1].set(xlabel="distance d_ij, or longest ℓ (Å)", ylabel="share", ylim=(0, 1.05))
    for panel in axes:
        panel.axvline(1.65, color=COLOURS["muted"], lw=0.8, zorder=0)
    axes[1].set_title("pairs nearer than ℓ called bonded, b_ij = 1")
    axes[1].legend(loc="lower right", frameon=False)
    return figure


show(
    draw_recovery(),
    alt="Above, histograms of distances on a logarithmic scale: triple, double, aromatic and single "
    "bonds overlap between 1.1 and 1.6 ångström, pairs without a bond begin near 2 with a few "
    "below. Below, precision, recall and the share of exact molecules over the threshold, with a "
    "plateau from 1.6 to 1.7",
)

# %% [markdown]
# Whether two atoms are bonded is written in the distances: with $\ell = 1.65$ Å, 99.9 % of the molecules come back with every bond in its place. That is no wonder. ETKDG put the bonds there by their lengths, and the gap between nearly all bonds and nearly all next neighbours is more than 0.4 Å wide. The few grey pairs inside of it come from small strained rings, where next neighbours are pressed together.
#
# Two things the threshold cannot do. It does not say which type a bond has: the coloured hills overlap. And it needs distances as exact as these.
#
# ### Which type?
#
# Give the distances their best chance. Take the first half of the molecules, cut the distances into slices of 0.01 Å, and note the most frequent class of each slice. Judge the other half by this table, then by one that also knows the two atoms:


# %%
def type_table(codes, d, pairs, with_atoms, slices=1000):
    """Class counts of each slice of distance (and each pair of atoms), for molecules one by one."""
    key = (d / 0.01).long().clamp(max=slices - 1)
    if with_atoms:
        ours, theirs = codes.atoms.long()[:, :, None], codes.atoms.long()[:, None]
        both = torch.minimum(ours, theirs) * 4 + torch.maximum(ours, theirs)
        key = key * 16 + both.clamp(min=0)
    return torch.where(pairs, key, 0)


def exact_by_table(codes, d, pairs, with_atoms):
    """The share of bonds with the right type, and of molecules with all of them right."""
    key, half = type_table(codes, d, pairs, with_atoms), len(d) // 2
    counts = torch.zeros(int(key.max()) + 1, len(BONDS))
    learn = pairs[:half]
    one = torch.ones(int(learn.sum()))
    counts.index_put_((key[:half][learn], codes.bonds[:half][learn].long()), one, accumulate=True)
    right = counts.argmax(1)[key[half:]] == codes.bonds[half:]
    bonded = codes.bonds[half:] > 0
    whole = (right | ~pairs[half:]).all(dim=(1, 2))
    return right[bonded].double().mean().item(), whole.double().mean().item()


kekule = encode_smiles([held_out[row] for row in rows], vocabulary)[0]
kekule = Codes(kekule.atoms[made], kekule.bonds[made])
by_table = {}
for name, graphs in (("aromatic", codes), ("Kekulé", kekule)):
    for with_atoms in (False, True):
        by_table[name, with_atoms] = exact_by_table(graphs, d, pairs, with_atoms)
        bonds_right, whole = by_table[name, with_atoms]
        print(
            f"{name:>8} form, atoms {'known' if with_atoms else 'hidden'}: "
            f"{bonds_right:.1%} of the bonds, {whole:.1%} of the molecules"
        )

# %% [markdown]
# In Kekulé form, where aromatic rings are written with alternating single and double bonds, the bonds of a ring have equal lengths and different types. No table of single distances can tell them apart: the type of one bond depends on those beside it. This is why SyCo's encoder writes what an atom knows of its neighbours into its features, and why the inverse is learned. (In aromatic form the table does better. But then [chapter 2](../2_graph_dit/2_graphs.ipynb) loses the hydrogens of nitrogen atoms in rings, so the course trains on Kekulé form.)
#
# ### Distances that are not exact
#
# A diffusion model does not give back exact clouds. Move each coordinate by a normal random number, and take the best threshold for each amount:

# %%
generator = torch.Generator().manual_seed(0)
for sigma in (0.0, 0.02, 0.05, 0.1, 0.2):
    noisy = clouds_x + sigma * torch.randn(clouds_x.shape, generator=generator)
    exact, longest = max((recovery(noisy, v)[2], v) for v in lengths[5:15])
    print(f"noise {sigma:.2f} Å: {exact:.1%} of the molecules exact, with ℓ = {longest:.2f} Å")

# %% [markdown]
# A tenth of an ångström, a fifteenth of a bond, costs one molecule in six. And this is the easy half, without types. The next lessons build the network that does better.
#
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `embed_distances` | 12 | ●●○ |
# | `center` | 8 | ●○○ |
# | `squared_distances` | 5 | ●○○ |
# | `bonds_by_distance` | 5 | ●○○ |
#
# <details><summary>Hint for <code>embed_distances</code></summary>
#
# `torch.linalg.eigh` returns eigenvalues from the smallest to the largest, and eigenvectors as columns. Clamp at 0 before the root. For fewer than three points, `F.pad` adds columns of zeros.
#
# </details>
#
# <details><summary>Hint for <code>center</code></summary>
#
# Multiply by the mask before the sum and again at the end. A cloud without atoms must not divide by 0.
#
# </details>
#
# <details><summary>Hint for <code>squared_distances</code></summary>
#
# `x[:, :, None]` has shape (B, N, 1, 3), `x[:, None]` has (B, 1, N, 3).
#
# </details>
#
# <details><summary>Hint for <code>bonds_by_distance</code></summary>
#
# Compare squares, so that no root is needed, and let `pair_mask` take out padding and the diagonal.
#
# </details>
#
# **Predict.** `align(-y, y)` turns the mirror image of caffeine, which is flat, onto caffeine. And that of aspirin onto aspirin? Which deviation is small?
#
# <details><summary>Hint</summary>
#
# Lay your left hand's print on paper, and turn the paper over.
#
# </details>
#
# <details><summary>Answer</summary>
#
# That of caffeine. A flat thing is its own mirror image, after half a turn through space. Aspirin's arms stand out of the plane of its ring, and no rotation brings them to the other side.
#
# </details>

# %%
for name in ("caffeine", "aspirin"):
    y = clouds[name][0]
    print(f"{name}: {deviation(-y, y):.2f} Å")

# %% [markdown]
# **Measure.** "No conformer" depends on the seed. How many of seven failing molecules get one from seed 2 or 3?
#
# <details><summary>Hint</summary>
#
# `lift(failing[::45], vocabulary, seed)` and the length of `rows`; it takes a few seconds.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Few: see below. Most failures come from the molecule and not from bad luck. A method that tried many seeds would lose fewer molecules, and its clouds would no longer come from one seed.
#
# </details>

# %%
sample = failing[::45]
for seed in (2, 3):
    print(f"seed {seed}: {len(lift(sample, vocabulary, seed).rows)} of {len(sample)} lifted")


# %% [markdown]
# **Find the bug.** A colleague's centring passes on molecules of nine atoms. What is wrong with it?


# %%
def center_colleague(x, mask):
    return x - x.mean(dim=1, keepdim=True)


real = lifted.codes.atoms >= 0
moved = (lifted.x + 1) * real[..., None]
for function in (center_colleague, center):
    offsets = [float(x[m].mean(0).norm()) for x, m in zip(function(moved, real), real, strict=True)]
    print(f"{function.__name__:>16}: centres off by", " ".join(f"{v:.2f}" for v in offsets), "Å")

# %% [markdown]
# <details><summary>Hint</summary>
#
# What does the mean of a padded cloud count?
#
# </details>
#
# <details><summary>Answer</summary>
#
# It counts the padding: the sum is divided by 9 and not by $n$, and the padding's coordinates are in it. So small molecules keep an offset, and their padding moves away from 0, where a later layer that sums over places finds it. On a batch of full rows both versions agree.
#
# </details>
#
# ## What breaks
#
# ### A conformer that no one would believe
#
# ETKDG's checks refuse much, and not all. The shortest "bond" of the held-out set:

# %%
bond_d = torch.where(truth, d, torch.inf)
worst = int(bond_d.amin(dim=(1, 2)).argmin())
odd = held_out[torch.tensor(rows)[made][worst]]
print(
    f"{odd}: a bond of {bond_d[worst].min():.2f} Å, "
    f"and two atoms without a bond {d[worst][pairs[worst] & ~truth[worst]].min():.2f} Å apart"
)

# %%
figure, axes = canvas(1, 2, 4.6, 2.0)
draw_molecule(axes[0], odd)
n = int(mask[worst].sum())
symbols = [aromatic.atoms[c] for c in codes.atoms[worst, :n].tolist()]
seen = draw_cloud(axes[1], clouds_x[worst, :n], symbols, codes.bonds[worst, :n, :n], span=5.5)
ends = seen[list(divmod(int(bond_d[worst].argmin()), bond_d.shape[-1]))]
axes[1].plot(*ends[:, :2].T, color=COLOURS["query"], lw=2.5, zorder=3)
show(
    figure,
    alt="The drawing of a strained cage and its cloud, with the short bond in red",
)

# %% [markdown]
# A bond between carbon atoms is 1.5 Å long. Synthetic coordinates carry a graph into space; they are no claim about a real molecule. Nothing in SyCo reads an energy or a force from them.
#
# ### The wrong order of atoms
#
# A cloud and a graph belong together by the order of their rows and by nothing else. Read the coordinates of one SMILES beside the bonds of another SMILES of the same molecule:

# %%
other = Chem.MolToSmiles(aspirin, rootedAtAtom=12, canonical=False)
x = synthetic_coordinates(Chem.MolFromSmiles(other))
there = torch.ones(1, 13, dtype=torch.bool)
for name, text in (
    ("its own graph", other),
    ("the graph of " + KNOWN["aspirin"], KNOWN["aspirin"]),
):
    bonds = torch.tensor(Chem.GetAdjacencyMatrix(Chem.MolFromSmiles(text))) > 0
    agree = (bonds_by_distance(x[None], there, 1.65)[0] & bonds).sum() // 2
    print(f"beside {name}: {agree} of {bonds.sum() // 2} bonds are near")

# %%
figure, axes = canvas(1, 2, 5.0, 2.2)
for panel, text in zip(axes, (other, KNOWN["aspirin"]), strict=True):
    molecule = Chem.MolFromSmiles(text)
    symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    draw_cloud(panel, x, symbols, Chem.GetAdjacencyMatrix(molecule), span=9)
    panel.set_title("right order" if text == other else "wrong order")
show(
    figure,
    alt="The same points twice: with the bonds of their own graph, a molecule; with the bonds in "
    "another order, a tangle",
)

# %% [markdown]
# No shape is wrong and nothing is raised. `lift` makes codes and coordinates from one reading of one text, so that they cannot part.
#
# ### Several pieces
#
# RDKit embeds the pieces of a salt or a mixture one by one, each about the origin, on top of each other:

# %%
pieces = Chem.AddHs(Chem.MolFromSmiles("CCO.c1ccccc1"))
rdDistGeom.EmbedMolecule(pieces, next(iter(_plans(0))))
x = torch.tensor(pieces.GetConformer().GetPositions())[:9]
print(f"ethanol and benzene, nearest atoms: {torch.cdist(x[:3], x[3:]).min():.2f} Å apart")

# %% [markdown]
# A threshold would bond the two, and a network could learn it. So pieces are refused:

# %%
with shows_error(ValueError):
    synthetic_coordinates(Chem.MolFromSmiles("CCO.c1ccccc1"))

# %% [markdown]
# ### What else the code says to bad input

# %%
with shows_error(ValueError):
    synthetic_coordinates(Chem.MolFromSmiles(KNOWN["a cage of nine carbons"]))
with shows_error(ValueError):
    synthetic_coordinates(aspirin, seed=-1)
with shows_error(ValueError):
    synthetic_coordinates(aspirin, seed=2**31)
with shows_error(ValueError):
    lift("CCO", vocabulary)
with shows_error(TypeError):
    synthetic_coordinates("CCO")

# %%
for problem in lift(["CCO", "[H][H]", "CCS", "CC(C)(C)(C)C", "C.C"], vocabulary).problems:
    print(f"{problem.smiles}: {problem.reason}")

# %% [markdown]
# ## Recap
#
# - Lifting makes points of a graph with ETKDG: ranges from bond lengths and angles, eigenvectors, a walk downhill. Nothing is learned; one seed and one order of atoms give one cloud.
# - Some molecules have no conformer: 312 of 20,040, nearly all of them cages of three rings or more. They are kept apart and counted.
# - The distances say whether two atoms are bonded, as long as they are exact. They do not say how. The types of the bonds, and clouds with noise, are why the inverse is learned.
#
# The line goes on in [lesson 3](3_egnn.ipynb), with a network that reads clouds and does not care how they are turned.
