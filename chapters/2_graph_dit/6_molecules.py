# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 50
#     needs:
#     - 2_graph_dit/2_graphs
#     - 2_graph_dit/3_noise
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Molecules: a graph is not yet a molecule
#
# **After this lesson you can** turn a generated graph into a molecule, repair one that breaks chemistry's rules and say what the repair changed, and tell apart five numbers that all pass as "validity".
#
# *Before this:* [Graphs](2_graphs.ipynb) (`2_graphs`) and [Noise](3_noise.ipynb) (`3_noise`), which makes the broken graphs. *Time:* 50 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# A model of graphs draws every atom $a_i$ and every bond $e_{ij}$ by itself. Nothing in it knows that carbon has four bonds, or that a molecule is one piece. So what it draws is a graph, and may be no molecule: an atom has more bonds than its element allows, its **valence** (化合价) $v_i$ is beyond its limit $V_i$; the graph falls into $k$ **components** (连通分量), pieces that no bond connects; or a ring is marked aromatic that cannot be.
#
# Programs therefore repair. A **charge** $c_i = +1$ gives nitrogen and oxygen one bond more, as in ammonium. **Valency correction** (化合价修正) lowers bonds of an atom that still has too many, one order at a time. For the pieces there are two ways. *Graph DiT-LCC* keeps the **largest connected component** (最大连通分量) and throws the rest away. *Graph DiT* connects all pieces by new bonds, wherever two atoms have a hydrogen (氢), counted as $h_i$, to give. The paper prefers the second way, because it changes the structure least; this lesson measures the change as an **edit distance** $d$, the atoms lost and the bonds changed.
#
# A repaired graph says less about the model than one that needed no repair. **Validity** (有效性), the share $\rho$ of graphs that are molecules, comes in at least five kinds that differ in what is repaired before the count. A number without its kind says little.

# %% [markdown]
# ## Figure
#
# ### Graphs that fail for real
#
# Take molecules of QM9 that no model was trained on, and let the noise of lesson 3 change a few atoms and bonds, as if a model had made these mistakes. The noise is the independent one: each atom and bond is drawn anew with a small chance, whatever is next to it, and that is how broken graphs arise.

# %%
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from matplotlib.patches import Circle
from rdkit import Chem, DataStructs, rdBase
from rdkit.Chem import rdDepictor, rdFingerprintGenerator
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
    one_hot,
    to_codes,
    to_smiles,
)
from fourfold.graph_dit.molecules import (
    build_molecule,
    edit_distance,
    graph_to_molecule,
    largest_fragment,
)
from fourfold.graph_dit.noise import GraphNoise, graph_statistics
from fourfold.kit.drawing import COLOURS, canvas, show
from fourfold.kit.molecules import molecule_grid, qm9_table
from fourfold.kit.notebook import shows_error

# %%
T = 100
smiles = qm9_table("held_out")["smiles"][::10].tolist()[:400]


def noised(texts, kekulize=False):
    """The vocabulary of SMILES, their clean codes, and a function that noises them to a time."""
    vocabulary = find_vocabulary(texts, kekulize=kekulize)
    codes, _, _ = encode_smiles(texts, vocabulary)
    graph = one_hot(codes, vocabulary)
    noise = GraphNoise(graph_statistics(codes, vocabulary), T, kind="independent")

    def at(t, seed=0):
        if t == 0:
            return codes
        times = torch.full((len(codes.atoms),), t)
        generator = torch.Generator().manual_seed(seed)
        return to_codes(draw_graph(*noise.q(graph, times), graph.mask, generator))

    return vocabulary, codes, at


vocabulary, clean, noised_at = noised(smiles)
graphs = list(decode_graphs(noised_at(20), vocabulary))
symbols, bonds = graphs[0]
print(len(graphs), "graphs, the first:", *symbols)
bonds

# %% [markdown]
# A chemical drawing program refuses a graph that is no molecule. So draw the graph itself, each atom where the repaired molecule would have it, each bond as lines.

# %%
INKS = {"C": "#444444", "N": COLOURS["first"], "O": COLOURS["bad"], "F": COLOURS["good"]}


def places_of(graph):
    """(n, 2): where the atoms of a graph stand in a chemical drawing of its repair."""
    joined = graph_to_molecule(*graph)
    molecule = joined.molecule or graph_to_molecule(*graph, connect=False).molecule
    rdDepictor.Compute2DCoords(molecule)
    return molecule.GetConformer().GetPositions()[:, :2]


def draw_bond(axes, one, two, code, ink, width):
    """One line, two, three; aromatic is one and a dashed one."""
    along = (two - one) / max(((two - one) ** 2).sum() ** 0.5, 1e-6)
    across = 0.13 * along[[1, 0]] * [-1, 1]
    for shift in {1: [0], 2: [-0.6, 0.6], 3: [-1, 0, 1], 4: [-0.6, 0.6]}[code]:
        style = ":" if code == 4 and shift > 0 else "-"
        (x, y), (u, v) = one + shift * across, two + shift * across
        axes.plot([x, u], [y, v], style, color=ink, lw=width, zorder=1)


def draw_atoms(axes, graph, places, before=None, marks=None, kept=None, charges=None):
    """A graph; bonds that `before` had otherwise in colour, what is not `kept` pale."""
    symbols, bonds = graph
    before, marks = bonds if before is None else before, marks or {}
    kept = set(range(len(symbols)) if kept is None else kept)
    for i in range(len(symbols)):
        for j in range(i):
            code, old = int(bonds[i, j]), int(before[i, j])
            ink = COLOURS["muted"] if code == old else COLOURS["good" if old == 0 else "second"]
            if code != old and code == 0:
                axes.plot(*places[[i, j]].T, ":", color=COLOURS["bad"], lw=1.2, zorder=0)
            if code and {i, j} <= kept:
                draw_bond(axes, places[i], places[j], code, ink, 1.4 if code == old else 2.6)
    for i, symbol in enumerate(symbols):
        pale = 1 if i in kept else 0.25
        edge = COLOURS["query"] if i in marks else "white"
        ink = INKS[symbol]
        axes.add_patch(
            Circle(places[i], 0.36, fc=ink, ec=edge, lw=2.5 if i in marks else 1, alpha=pale)
        )
        charge = "+" if charges and charges[i] else ""
        size = 6.5 if charge else 8
        axes.text(*places[i], symbol + charge, color="white", ha="center", va="center", size=size)
    low, high = places.min(axis=0), places.max(axis=0)
    (x, y), wide = (low + high) / 2, max(3.6, (high - low).max() / 2 + 0.5)
    axes.set(xlim=(x - wide, x + wide), ylim=(y - 0.75 * wide, y + 0.75 * wide), aspect="equal")
    axes.set_axis_off()


# %% [markdown]
# Look for three troubles, each alone: an atom that a charge helps, an atom that it does not help, and a graph in pieces. Of all graphs that have one, take one of few bonds and many atoms, which is easy to look at.


# %%
def troubles(graph):
    """Whether a charge was given, whether bonds have to be lowered, and how many pieces there are.

    None where no repair helps.
    """
    built, lowered = build_molecule(*graph), graph_to_molecule(*graph, connect=False)
    if lowered.smiles is None:
        return None
    charged = any(atom.GetFormalCharge() for atom in built.GetAtoms())
    return charged, not torch.equal(lowered.bonds, graph[1]), len(Chem.GetMolFrags(built))


def easiest(wanted):
    """The number of a graph with these troubles, without aromatic bonds."""
    fits = [n for n, g in enumerate(graphs) if troubles(g) == wanted and not (g[1] == 4).any()]
    return min(fits, key=lambda n: graphs[n][1].count_nonzero() / 2 - 2 * len(graphs[n][0]))


charged, overfull = easiest((True, False, 1)), easiest((False, True, 1))
split = next(
    n
    for n, g in enumerate(graphs)
    if troubles(g) == (False, False, 2)
    and min(map(len, Chem.GetMolFrags(build_molecule(*g)))) == 3
    and graph_to_molecule(*g).smiles
)
print("graphs", charged, overfull, split)


# %% tags=["figure"]
def valences(graph):
    orders = torch.tensor([0, 1, 2, 3, 1.5])
    return orders[graph[1].long()].sum(dim=1)


LIMITS = {"C": 4, "N": 3, "O": 2, "F": 1}


def limits(graph):
    return torch.tensor([LIMITS[symbol] for symbol in graph[0]])


def draw_repairs():
    figure, axes = canvas(2, 4, 7.4, 3.7)
    for column, number in ((0, charged), (2, overfull)):
        graph = graphs[number]
        over = (valences(graph) > limits(graph)).nonzero()[:, 0].tolist()
        i = over[0]
        v, limit = valences(graph)[i].item(), limits(graph)[i].item()
        result = graph_to_molecule(*graph, connect=False)
        charges = [atom.GetFormalCharge() for atom in result.molecule.GetAtoms()]
        draw_atoms(axes[0, column], graph, places_of(graph), marks=set(over))
        axes[0, column].set_title(f"atom a_i = {graph[0][i]}\nv_i = {v:g} > V_i = {limit}")
        after = axes[0, column + 1]
        draw_atoms(after, (graph[0], result.bonds), places_of(graph), graph[1], charges=charges)
        edits = edit_distance(graph[1], result.bonds)
        title = "charge rule\nc_i = +1" if charges[i] else "valency correction\nbond e_ij lower"
        after.set_title(f"{title}, d = {edits}")
    graph, result = graphs[split], graph_to_molecule(*graphs[split])
    hydrogens = [atom.GetTotalNumHs() for atom in build_filled(graph).GetAtoms()]
    pieces = Chem.GetMolFrags(build_molecule(*graph))
    largest = max(pieces, key=len)
    joined = ((result.bonds != graph[1]).nonzero()).flatten().tolist()
    draw_atoms(axes[1, 0], graph, places_of(graph))
    axes[1, 0].set_title(f"a graph in pieces\nk = {len(pieces)}")
    draw_atoms(axes[1, 1], (graph[0], result.bonds), places_of(graph), graph[1], marks=set(joined))
    two = " and ".join(str(hydrogens[i]) for i in sorted(set(joined)))
    edits = edit_distance(graph[1], result.bonds)
    axes[1, 1].set_title(f"connected: h_i = {two}\nd = {edits}")
    draw_atoms(axes[1, 2], graph, places_of(graph), kept=largest)
    edits = edit_distance(graph[1], graph[1], kept=largest)
    axes[1, 2].set_title(f"largest component\nd = {edits}")
    axes[1, 3].plot(0.07, 0.8, "o", ms=9, mfc="white", mec=COLOURS["query"], mew=2.5)
    axes[1, 3].text(0.22, 0.8, "atom in question", va="center", size=8)
    for ink, text, y in (
        ("second", "bond lowered", 0.6),
        ("good", "bond added", 0.4),
    ):
        axes[1, 3].plot([0, 0.15], [y, y], color=COLOURS[ink], lw=2.6)
        axes[1, 3].text(0.22, y, text, va="center", size=8)
    axes[1, 3].set(xlim=(0, 1), ylim=(0, 1))
    axes[1, 3].set_axis_off()
    return figure


def build_filled(graph):
    molecule = build_molecule(*graph)
    molecule.UpdatePropertyCache()
    return molecule


show(
    draw_repairs(),
    alt="Above: a graph with an atom of too many bonds that gets a charge, and one whose bond is "
    "lowered. Below: a graph in two pieces, connected by a new bond, and with its smaller piece "
    "thrown away",
)

# %% [markdown]
# Above, atoms with more bonds than their element has: a charge repairs the first, and a bond of the second is lowered. Below, a graph in two pieces: one new bond connects them, at the cost of one change; keeping the largest piece costs each atom and each bond of the other.

# %% [markdown]
# ## Formula
#
# A single bond counts one, a double bond two, a triple bond three, an aromatic bond one and a half: this is the order $b$ of a bond. The valence of an atom is the sum over its bonds,
#
# $$ v_i = \sum_j b(e_{ij}), \qquad b = 0,\ 1,\ 2,\ 3,\ \tfrac32 \quad \text{for none, single, double, triple, aromatic} \tag{1} $$
#
# Hydrogens are no atoms of the graph. They fill up what is left, so their number is
#
# $$ h_i = V_i + c_i - v_i \ge 0 \tag{2} $$
#
# where $V_i$ is the valence of the element: 4 for C, 3 for N, 2 for O and 1 for F. Sulphur and phosphorus have several, and the next one that is large enough counts; the attachment point `*` has no limit, and no hydrogens. An atom with $h_i < 0$ is overfull.
#
# The charge rule, checked after each bond that is added:
#
# $$ c_i = \begin{cases} +1 & \text{if } a_i \in \{\mathrm N, \mathrm O, \mathrm S\} \text{ is overfull and } v_i = V_i + 1 \\ 0 & \text{else} \end{cases} \tag{3} $$
#
# Valency correction, for the first atom $i$ that is overfull even so, until there is none:
#
# $$ e_{ij} \leftarrow e_{ij} - 1 \quad \text{for the bond of the highest order that is not aromatic} \tag{4} $$
#
# Connecting, until the number $k$ of components is one, for two atoms of two components:
#
# $$ e_{ij} \leftarrow \text{single} \quad \text{where } h_i > 0 \text{ and } h_j > 0 \tag{5} $$
#
# The edit distance from a graph to its repair counts the atoms that are lost and the pairs whose bond is another one:
#
# $$ d = \#\{\, i \text{ lost} \,\} + \#\{\, i < j : e_{ij} \text{ changed} \,\} \tag{6} $$
#
# Connecting costs one bond for each component but the first. Throwing component $f$ away costs its $n_f \ge 1$ atoms and all its bonds, $m_f$ of them. So on a graph without overfull atoms the paper's claim is a theorem:
#
# $$ d_{\text{connect}} = k - 1 \;\le\; \sum_{f \ne \text{largest}} (n_f + m_f) = d_{\text{largest}} \tag{7} $$
#
# Last, the share of $M$ graphs that are molecules, where $\mathrm{repair}$ may be nothing, and $\mathrm{ok}$ may ask for one piece or not:
#
# $$ \rho = \frac{1}{M} \sum_{G} \big[\, \mathrm{ok}(\mathrm{repair}(G)) \,\big] \tag{8} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $a_i$ | element of an atom, or `*` | symbol | `symbols` | a_i |
# | $e_{ij}$ | bond of two atoms | code of `BONDS` | `bonds` | e_ij |
# | $b$ | order of a bond | 0, 1, 1.5, 2, 3 | `GetBondTypeAsDouble` | order b |
# | $v_i$ | valence of an atom | sum of orders | `valence` | v_i |
# | $V_i$ | valence of its element | whole number | `_VALENCE` | V_i |
# | $c_i$ | charge of an atom | 0 or +1 | `SetFormalCharge` | c_i |
# | $h_i$ | hydrogens of an atom | whole number | `GetNumImplicitHs` | h_i |
# | $k$ | components of a graph | whole number | `pieces` | k = |
# | $d$ | edit distance of a repair | atoms and bonds | `edit_distance` | d = |
# | $\rho$ | share of graphs that are molecules | 0 … 1 | `Validity` | validity ρ |
#
# > **Where the code leaves the paper.** The paper connects components "by randomly selecting atoms". The release takes the **first** pair of atoms that fits, which depends on the order of the atoms, and so does this lesson; `generator=` asks for the paper's random way. The release connects before it corrects valences, and gives up where both troubles meet. It reads an atom's hydrogens from a memory that a new bond clears, so that a joined atom takes no second bond. Its *LCC* connects first too, and keeps the largest component where that fails. Its text must be longer than one letter: methane is no molecule there. All of this is kept, so that numbers agree.

# %% [markdown]
# ## Code
#
# ### An atom with too many bonds: a table, and RDKit
#
# Equations 1 and 2 with a table of four elements:

# %%
ORDERS = (0, 1, 2, 3, 1.5)


def overfull_by_table(symbols, bonds):
    """The atoms whose bonds add up to more than their element has."""
    sums = [sum(ORDERS[code] for code in row) for row in bonds.tolist()]
    return [i for i, symbol in enumerate(symbols) if sums[i] > LIMITS[symbol]]


overfull_by_table(["C", "F", "F"], torch.tensor([[0, 1, 2], [1, 0, 0], [2, 0, 0]]))

# %% [markdown]
# RDKit knows all elements, their charges, and aromatic rings. Its *sanitisation*, the check that makes a graph a molecule, has several parts; the one named `SANITIZE_PROPERTIES` counts bonds, and fills in hydrogens. It stops at the first atom that is overfull, by an exception, with a line on the error stream (which `BlockLogs` holds back).


# %% tags=["promote"]
def overloaded_atom(molecule: Chem.Mol) -> int | None:
    """The first atom with more bonds than it may have (h_i < 0, equation 2), None where none has.

    Counts the hydrogens of all atoms before it on the way, in place.
    """
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(molecule, Chem.SanitizeFlags.SANITIZE_PROPERTIES)
        except Chem.AtomValenceException as error:
            return error.cause.GetAtomIdx()
    return None


# %% [markdown]
# For that, a graph has to become an RDKit molecule, whose atoms and bonds are added one by one:


# %% tags=["promote"]
_BOND_TYPES = (None, *(Chem.BondType.names[name.upper()] for name in BONDS[1:]))  # of each code


def _bond_list(symbols: Sequence[str], bonds: Tensor) -> list[tuple[int, int, int]]:
    """`(i, j, code)` of each bond, i < j, row by row. Raises ValueError for what is no graph."""
    n, rows = len(symbols), bonds.tolist()
    if tuple(bonds.shape) != (n, n):
        raise ValueError(
            f"bonds has shape {tuple(bonds.shape)}; expected {(n, n)}, a row for each symbol"
        )
    found = []
    for i in range(n):
        for j in range(i + 1, n):
            if rows[i][j] != rows[j][i]:
                raise ValueError(
                    f"bonds[{i}, {j}] is {rows[i][j]} and bonds[{j}, {i}] is {rows[j][i]}; "
                    "expected the same, as a bond has no direction"
                )
            if not 0 <= rows[i][j] < len(BONDS):
                raise ValueError(
                    f"bonds[{i}, {j}] is {rows[i][j]}; expected 0 to {len(BONDS) - 1}, for "
                    f"{', '.join(BONDS)}"
                )
            if rows[i][j]:
                found.append((i, j, rows[i][j]))
    return found


def _lone_atoms(symbols: Sequence[str]) -> Chem.RWMol:
    molecule = Chem.RWMol()
    for symbol in symbols:
        try:
            with rdBase.BlockLogs():
                molecule.AddAtom(Chem.Atom(symbol))
        except RuntimeError:
            raise ValueError(
                f"symbols holds {symbol!r}; expected elements, such as 'C', or '*'"
            ) from None
    overloaded_atom(molecule)  # counts the hydrogens of atoms that get no bond
    return molecule


def _add_bond(molecule: Chem.RWMol, i: int, j: int, code: int) -> None:
    molecule.AddBond(i, j, _BOND_TYPES[code])
    if BONDS[code] == "aromatic":
        for end in (i, j):
            molecule.GetAtomWithIdx(end).SetIsAromatic(True)


# %%
def assembled(symbols, bonds):
    """A molecule with these atoms and bonds, nothing checked: equation 3 left out."""
    molecule = _lone_atoms(symbols)
    for bond in _bond_list(symbols, bonds):
        _add_bond(molecule, *bond)
    return molecule


agree, differ = 0, []
for number, graph in enumerate(graphs):
    table, checked = overfull_by_table(*graph), overloaded_atom(assembled(*graph))
    if (table[0] if table else None) == checked:
        agree += 1
    else:
        differ.append((number, table, checked))
print(f"table and RDKit agree on {agree} of {len(graphs)} noised graphs")
for number, table, checked in differ[:3]:
    i = (table or [checked])[0]
    kinds = Counter(BONDS[code] for code in graphs[number][1][i].tolist() if code)
    print(f"graph {number}: atom {i}, {graphs[number][0][i]}, with {dict(kinds)}: RDKit {checked}")

# %% [markdown]
# They part where aromatic bonds meet. A sum of halves is only a rule of thumb there: the oxygen of furan has two aromatic bonds, 3 by the table, and the carbons between the rings of naphthalene have three, $4\tfrac12$. Both molecules exist. RDKit rounds in the atom's favour, and leaves it to a later part of its check whether the ring can be written with alternating single and double bonds.

# %%
naphthalene = "c1ccc2ccccc2c1"
ring_vocabulary = find_vocabulary([naphthalene])
codes, _, _ = encode_smiles([naphthalene], ring_vocabulary)
graph = next(decode_graphs(codes, ring_vocabulary))
print("table:", overfull_by_table(*graph), " RDKit:", overloaded_atom(assembled(*graph)))
assert overloaded_atom(assembled(*graph)) is None

# %% [markdown]
# ### The charge rule
#
# A model draws no charges. But nitro groups and ammonium have them, and in a graph without charges their nitrogen has four bonds. So add the bonds one by one, row by row, and look after each: where the atom that RDKit names is N, O or S with one bond too many, it gets a charge. The sum of its bonds, rounded as RDKit does:


# %% tags=["promote"]
_VALENCE = {"N": 3, "O": 2, "S": 2}  # of the elements that may take a charge


def _valence(atom: Chem.Atom) -> int:
    """The orders of an atom's bonds, added up and rounded, a half upwards (equation 1)."""
    return int(sum(bond.GetBondTypeAsDouble() for bond in atom.GetBonds()) + 0.6)


# %%
def star(centre, others, codes):
    """One atom in the middle, with bonds to the others."""
    bonds = torch.zeros(len(others) + 1, len(others) + 1, dtype=torch.int8)
    bonds[0, 1:] = bonds[1:, 0] = torch.tensor(codes)
    return [centre, *others], bonds


star("O", "CC", [2, 1])


# %% tags=["promote", "exercise"]
def build_molecule(symbols: Sequence[str], bonds: Int[Tensor, "n n"]) -> Chem.RWMol:
    """A molecule with these atoms and bonds, charges by the rule of equation 3, nothing repaired.

    symbols  elements, or `*`
    bonds    (n, n) codes of `BONDS`, symmetric; the diagonal does not count

    Bonds are added one by one, row by row; whenever the first overloaded atom is N, O or S with
    one bond more than its valence, it gets the charge +1. What is overloaded otherwise stays so.

    Raises ValueError for an unknown symbol, or bonds of another shape, not symmetric, or unknown.
    Source: the release of Graph DiT (arXiv 2401.13858).
    """
    molecule = _lone_atoms(symbols)
    for bond in _bond_list(symbols, bonds):
        _add_bond(molecule, *bond)
        index = overloaded_atom(molecule)
        if index is not None:
            atom = molecule.GetAtomWithIdx(index)
            valence = _valence(atom)
            if valence - 1 == _VALENCE.get(atom.GetSymbol()):
                atom.SetFormalCharge(1)
    return molecule


# %% tags=["check"]
def charge_of(*graph):
    return [atom.GetFormalCharge() for atom in build_molecule(*graph).GetAtoms()]


assert charge_of(*star("N", "CCCC", [1, 1, 1, 1])) == [1, 0, 0, 0, 0], "ammonium"
assert charge_of(*star("O", "CCC", [1, 1, 1])) == [1, 0, 0, 0], "oxonium"
assert charge_of(*star("N", "CC", [3, 2])) == [0, 0, 0], "two bonds too many"
assert charge_of(*star("C", "CCCCC", [1, 1, 1, 1, 1])) == [0] * 6, "carbon takes no charge"
assert charge_of(*star("S", "CCCC", [1, 1, 1, 1])) == [0] * 5, "sulphur may have four bonds"
assert to_smiles(build_molecule(*star("N", "CCCC", [1, 1, 1, 1]))) == "C[N+](C)(C)C"

# %% [markdown]
# How often does it help?

# %%
bare = [to_smiles(assembled(*graph)) for graph in graphs]
direct = [to_smiles(build_molecule(*graph)) for graph in graphs]
print(
    f"valid without the charge rule {sum(s is not None for s in bare)}, "
    f"with it {sum(s is not None for s in direct)} of {len(graphs)}"
)
assert all(b is None or b == d for b, d in zip(bare, direct, strict=True)), "it changes no other"

# %% [markdown]
# ### Valency correction
#
# An atom that is still overfull loses bond orders, the strongest bond first: a triple bond becomes double, a double one single, a single one goes. An aromatic bond belongs to a ring, and lowering it alone has no meaning; such bonds are passed over.


# %% tags=["promote", "exercise"]
def lower_bond(molecule: Chem.RWMol, atom: int) -> tuple[int, int] | None:
    """Lower the strongest bond of an atom by one order, in place (equation 4).

    Returns the two ends, or None where every bond of the atom is aromatic and nothing can be
    lowered. Of equally strong bonds the first in the atom's own list is lowered; a lowered bond
    goes to the end of that list, as in the release, which removes it and adds another.
    """
    bonds = [
        bond
        for bond in molecule.GetAtomWithIdx(atom).GetBonds()
        if bond.GetBondType() != Chem.BondType.AROMATIC
    ]
    if not bonds:
        return None
    strongest = max(bonds, key=lambda bond: bond.GetBondTypeAsDouble())
    ends = strongest.GetBeginAtomIdx(), strongest.GetEndAtomIdx()
    lower = _BOND_TYPES[_BOND_TYPES.index(strongest.GetBondType()) - 1]
    molecule.RemoveBond(*ends)
    if lower is not None:
        molecule.AddBond(*ends, lower)
    return ends


# %% tags=["check"]
def kinds(molecule):
    return {
        tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))): b.GetBondType().name
        for b in molecule.GetBonds()
    }


crowded = build_molecule(*star("C", "CNO", [1, 3, 2]))
assert lower_bond(crowded, 0) in ((0, 2), (2, 0)), "the strongest bond is the triple one"
assert kinds(crowded) == {(0, 1): "SINGLE", (0, 2): "DOUBLE", (0, 3): "DOUBLE"}, "by one order"
fluorine = build_molecule(*star("F", "CC", [1, 1]))
assert lower_bond(fluorine, 0) in ((0, 1), (1, 0)), "of two alike, the first"
assert kinds(fluorine) == {(0, 2): "SINGLE"}, "a single bond goes"
aromatic = build_molecule(*star("F", "CC", [4, 4]))
assert lower_bond(aromatic, 0) is None, "aromatic bonds are passed over"
assert len(kinds(aromatic)) == 2, "and left as they are"
fluorine = build_molecule(*star("F", "CC", [1, 4]))
assert lower_bond(fluorine, 0) in ((0, 1), (1, 0)), "a single bond before an aromatic one"

# %% [markdown]
# Again and again, until no atom is overfull. Watch the second graph of the figure on the way:

# %%
molecule, lowered = build_molecule(*graphs[overfull]), []
while (atom := overloaded_atom(molecule)) is not None:
    v = _valence(molecule.GetAtomWithIdx(atom))
    ends = lower_bond(molecule, atom)
    print(f"atom {atom} {molecule.GetAtomWithIdx(atom).GetSymbol()} has valence {v}: lower {ends}")
print(to_smiles(molecule))

# %% [markdown]
# ### Connecting
#
# A bond between two atoms takes one hydrogen from each. So look for an atom with a hydrogen in what is connected so far, and for one in the next component. RDKit forgets an atom's hydrogens when a bond of it changes, and the release takes "forgotten" for "none". With a `generator` the course counts again after each bond, and draws the pair.


# %% tags=["promote"]
def _with_hydrogen(molecule: Chem.Mol) -> set[int]:
    """The atoms that have a hydrogen; one that RDKit has not counted since a change has none."""
    return {
        atom.GetIdx()
        for atom in molecule.GetAtoms()
        if not atom.NeedsUpdatePropertyCache() and atom.GetNumImplicitHs() > 0
    }


def _fits(molecule: Chem.RWMol, pair: tuple[int, int]) -> bool:
    """Whether no atom is overloaded once the two are joined."""
    trial = Chem.RWMol(molecule)
    trial.AddBond(*pair, Chem.BondType.SINGLE)
    return overloaded_atom(trial) is None


# %% tags=["promote", "exercise"]
def connect_fragments(
    molecule: Chem.RWMol, generator: torch.Generator | None = None
) -> Chem.RWMol | None:
    """One molecule of all pieces, by single bonds between atoms that have a hydrogen (equation 5).

    The hydrogens have to be counted (`overloaded_atom` does that). Each piece in turn is joined to
    those before it by the first pair of atoms that fits, as released: the atoms in the order of
    the pieces, and none of them joined twice. With a generator the pair is drawn, as the paper
    says, and hydrogens are counted again after each bond.

    Returns the molecule itself where it is one piece, None where a piece cannot be joined.
    """
    pieces = Chem.GetMolFrags(molecule)
    if len(pieces) <= 1:
        return molecule
    joined, free, grown = Chem.RWMol(molecule), _with_hydrogen(molecule), [*pieces[0]]
    for piece in pieces[1:]:
        pairs = [(i, j) for i in grown if i in free for j in piece if j in free]
        if generator is not None:
            order = torch.randperm(len(pairs), generator=generator).tolist()
            pairs = [pairs[place] for place in order]
        pair = next((pair for pair in pairs if _fits(joined, pair)), None)
        if pair is None:
            return None
        joined.AddBond(*pair, Chem.BondType.SINGLE)
        free -= set(pair)
        if generator is not None:
            overloaded_atom(joined)
            free = _with_hydrogen(joined)
        grown += piece
    return joined


# %% tags=["check"]
def counted(text):
    """The molecule of a SMILES, in pieces or not, with its hydrogens counted."""
    molecule = Chem.RWMol(Chem.MolFromSmiles(text))
    assert overloaded_atom(molecule) is None
    return molecule


def connected(text, seed=None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    result = connect_fragments(counted(text), generator)
    return result and to_smiles(result)


assert connected("CCO") == "CCO", "one piece stays as it is"

assert connected("CN.OO") == "NCOO", "the first atom of each"
assert connected("C.C.C") is None, "as released, a joined atom takes no second bond"
assert connected("CC.CC.CC") == "CCCCCC", "the next atom takes it"
assert connected("FC(F)(F)F.C") is None, "nothing to take a hydrogen from"
assert connected("C.C.C", seed=0) == "CCC", "counted again, there are hydrogens left"
drawn = {connected("CCO.N", seed) for seed in range(20)}
assert drawn == {"CCON", "CC(N)O", "NCCO"}, "drawn, each atom with a hydrogen gets its turn"

# %% [markdown]
# ### The largest component
#
# Of equally large pieces the first of the canonical text counts, so that the order of the atoms does not matter.


# %% tags=["promote"]
def largest_fragment(smiles: str) -> str | None:
    """The component of a SMILES with the most atoms, None where it is no molecule."""
    if "." not in smiles:
        return smiles
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            return None
        pieces = Chem.GetMolFrags(molecule, asMols=True)
        return Chem.MolToSmiles(max(pieces, key=lambda piece: piece.GetNumAtoms()))


# %%
assert largest_fragment("C.CCO.N") == "CCO"
assert largest_fragment("CCO") == "CCO"
assert largest_fragment("CSO.FC=S") == "CSO", "the first of two alike"

# %% [markdown]
# ### From a graph to a molecule
#
# The repairs together, in the order of the release: connect where that is asked for, look for an overfull atom, lower one of its bonds, and from the start again, because lowering can cut a molecule in two.


# %% tags=["promote"]
class Result(NamedTuple):
    """What became of a graph; all three are None where it could not be made a molecule.

    molecule  RDKit's, sanitised, its atoms in the order of the graph
    smiles    its canonical SMILES
    bonds     (n, n) codes of `BONDS` after the repairs, before RDKit looks for aromatic rings
    """

    molecule: Chem.Mol | None
    smiles: str | None
    bonds: Int[Tensor, "n n"] | None


def graph_to_molecule(
    symbols: Sequence[str],
    bonds: Int[Tensor, "n n"],
    *,
    connect: bool = True,
    generator: torch.Generator | None = None,
) -> Result:
    """Build a molecule and repair it: too many bonds, and several pieces (Section 3.3; equation 4).

    symbols    elements, or `*`
    bonds      (n, n) codes of `BONDS`, symmetric
    connect    join the pieces, and give up where that fails (Graph DiT); without it they stay
               pieces, for `largest_fragment` to choose from (Graph DiT-LCC)
    generator  draws the atoms that are joined, as in the paper; the first pair that fits if None

    Raises ValueError as `build_molecule` does.
    """
    return _result(_repaired(build_molecule(symbols, bonds), connect, generator))


def _repaired(
    built: Chem.RWMol, connect: bool, generator: torch.Generator | None = None
) -> Chem.RWMol | None:
    """A repaired copy, None where a repair fails; aromatic rings are not looked at."""
    molecule = Chem.RWMol(built)
    while True:
        if connect:
            molecule = connect_fragments(molecule, generator)
            if molecule is None:
                return None
        atom = overloaded_atom(molecule)
        if atom is None:
            return molecule
        if lower_bond(molecule, atom) is None:
            return None


def _result(molecule: Chem.RWMol | None) -> Result:
    smiles = None if molecule is None else to_smiles(molecule)
    if not smiles:
        return Result(None, None, None)
    n = molecule.GetNumAtoms()
    bonds = torch.zeros(n, n, dtype=torch.int8)
    for bond in molecule.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bonds[i, j] = bonds[j, i] = _BOND_TYPES.index(bond.GetBondType())
    with rdBase.BlockLogs():
        Chem.SanitizeMol(molecule)
    return Result(molecule, smiles, bonds)


# %%
for number in (charged, overfull, split):
    graph = graphs[number]
    both = [graph_to_molecule(*graph, connect=connect).smiles for connect in (True, False)]
    print(f"graph {number:2d}: valid as is {direct[number]}, connected {both[0]}, not {both[1]}")

# %% [markdown]
# Lists of graphs, by mode. "none" repairs nothing. "connect" is Graph DiT. "largest" is the release's LCC.


# %% tags=["promote"]
MODES = ("connect", "largest", "none")


def graphs_to_smiles(
    graphs: Codes | Graphs,
    vocabulary: Vocabulary,
    *,
    mode: str = "connect",
    generator: torch.Generator | None = None,
) -> list[str | None]:
    """The SMILES of each graph, None where it is no molecule.

    mode  "connect": valency corrected and all pieces connected, None where that fails
          "largest": the same, and where it fails, corrected without connecting, the largest piece
          "none": no repair but the charge rule; may be several pieces

    As released, the repairing modes do not accept a SMILES of one letter, such as methane's.
    Raises TypeError for what are no graphs, ValueError for another mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
    return [
        _smiles(build_molecule(*graph), mode, generator)
        for graph in decode_graphs(_as_codes(graphs), vocabulary)
    ]


def _as_codes(graphs: Codes | Graphs) -> Codes:
    if isinstance(graphs, Graphs):
        graphs = to_codes(graphs)
    if not isinstance(graphs, Codes):
        raise TypeError(f"graphs is a {type(graphs).__name__}; expected Codes or Graphs")
    return Codes(graphs.atoms.cpu(), graphs.bonds.cpu())


def _smiles(built: Chem.RWMol, mode: str, generator: torch.Generator | None = None) -> str | None:
    if mode == "none":
        return to_smiles(built) or None
    smiles = _result(_repaired(built, True, generator)).smiles
    if smiles is None and mode == "largest":
        smiles = _result(_repaired(built, False)).smiles
        smiles = smiles and largest_fragment(smiles)
    return smiles if smiles and len(smiles) > 1 else None


# %%
some = Codes(*(part[:6] for part in noised_at(20)))
for mode in MODES:
    print(f"{mode:>7}:", *graphs_to_smiles(some, vocabulary, mode=mode))

# %% [markdown]
# ### How much a repair changes
#
# Equation 6:


# %% tags=["promote"]
def edit_distance(
    before: Int[Tensor, "n n"], after: Int[Tensor, "n n"], kept: Iterable[int] | None = None
) -> int:
    """Atoms lost and bonds changed from one graph to another over the same atoms (equation 6).

    before, after  codes of `BONDS`, symmetric
    kept           the atoms that are left after; all of them if None

    A bond of a lost atom counts as changed. Raises ValueError where the shapes differ.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"after has shape {tuple(after.shape)}; expected {tuple(before.shape)}, as before"
        )
    there = torch.ones(len(before), dtype=torch.bool)
    if kept is not None:
        there[:] = False
        there[list(kept)] = True
    left = torch.where(there[:, None] & there, after, 0)
    changed = (before != left).float().fill_diagonal_(0)
    return int((~there).sum() + changed.sum() / 2)


# %%
pair = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]])
chain = torch.tensor([[0, 1, 0], [1, 0, 2], [0, 2, 0]])
assert edit_distance(pair, pair) == 0
assert edit_distance(pair, chain) == 1, "one bond, whatever its order"
assert edit_distance(pair, pair, kept=[0, 1]) == 1, "one atom"
assert edit_distance(chain, chain, kept=[0, 1]) == 2, "an atom and its bond"

# %% [markdown]
# ### Five numbers
#
# All of them count molecules among graphs, and none is wrong. They answer five questions:
#
# | name | counts a graph if | asks for one piece |
# | --- | --- | --- |
# | `direct` | RDKit sanitises it as it is | no |
# | `released` | its longest component *as text* can be read again; the release's "validity without correction" | no |
# | `connected` | RDKit sanitises it as it is, and it is one piece | yes |
# | `corrected_largest` | something is left after correction; the release's validity of Graph DiT-LCC | no |
# | `corrected_connect` | it can be corrected and connected; the release's validity of Graph DiT | yes |


# %% tags=["promote"]
class Validity(NamedTuple):
    """Five shares of graphs that are molecules (equation 8), and of how many graphs.

    direct             valid as is, the charge rule apart; several pieces are allowed
    released           the longest component of the text can be read again: the release's
                       "validity without correction"
    connected          valid as is, and one piece: the strictest
    corrected_largest  a molecule after repair, mode "largest" (Graph DiT-LCC)
    corrected_connect  a molecule after repair, mode "connect" (Graph DiT)
    graphs             how many graphs
    """

    direct: float
    released: float
    connected: float
    corrected_largest: float
    corrected_connect: float
    graphs: int

    @property
    def counts(self) -> dict[str, int]:
        """The same as numbers of graphs."""
        return {name: round(self.graphs * getattr(self, name)) for name in self._fields[:5]}


def validity(graphs: Codes | Graphs, vocabulary: Vocabulary) -> Validity:
    """Count molecules among graphs in five ways.

    Raises TypeError for what are no graphs, ValueError where there is none.
    """
    graphs = _as_codes(graphs)
    M = len(graphs.atoms)
    if M == 0:
        raise ValueError("graphs holds no graph; expected one or more")
    rows = [_judged(build_molecule(*graph)) for graph in decode_graphs(graphs, vocabulary)]
    return Validity(*(sum(column) / M for column in zip(*rows, strict=True)), M)


def _judged(built: Chem.RWMol) -> tuple[bool, ...]:
    """Whether a graph counts, in the order of `Validity`."""
    direct = to_smiles(built)
    whole = bool(direct) and len(Chem.GetMolFrags(built)) == 1
    if whole:  # nothing to repair
        largest = connect = len(direct) > 1
    else:
        largest, connect = (_smiles(built, mode) is not None for mode in ("largest", "connect"))
    return bool(direct), _text_is_valid(built), whole, largest, connect


def _text_is_valid(molecule: Chem.RWMol) -> bool:
    """Whether the longest component of the text of an unchecked molecule can be read again."""
    with rdBase.BlockLogs():
        longest = max(Chem.MolToSmiles(molecule).split("."), key=len)
        return bool(longest) and Chem.MolFromSmiles(longest) is not None


# %%
five = validity(noised_at(20), vocabulary)
five, five.counts

# %% [markdown]
# Two orders always hold: what is valid and in one piece is valid, and what can be connected counts in both repairing modes.

# %%
assert five.connected <= five.direct <= five.released
assert five.corrected_connect <= five.corrected_largest

# %% [markdown]
# ### A polymer's repeat unit
#
# A polymer (聚合物) is written as the unit that repeats, with two attachment points `*` where it goes on: `*CC*` is polyethylene. To RDKit `*` is an atom without a limit of valence. So validity cannot tell a repeat unit from a fragment with five `*`, or with one in the middle of a ring. A check of its own:


# %% tags=["promote", "exercise"]
def attachment_points(smiles: str) -> list[int]:
    """For each attachment point `*` of a SMILES, how many neighbours it has.

    Raises ValueError for a SMILES that is no molecule.
    """
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise ValueError(f"smiles is {smiles!r}; expected the SMILES of a molecule")
    return [atom.GetDegree() for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 0]


def is_repeat_unit(smiles: str | None) -> bool:
    """Whether a SMILES is one piece with two attachment points `*`, each with one neighbour.

    What is no molecule, None included, is no repeat unit.
    """
    try:
        return smiles is not None and "." not in smiles and attachment_points(smiles) == [1, 1]
    except ValueError:
        return False


# %% tags=["check"]
assert attachment_points("*CC*") == [1, 1]
assert attachment_points("CC") == []
assert attachment_points("C*C") == [2], "in the middle of a chain"
assert is_repeat_unit("*CC(*)c1ccccc1"), "polystyrene"
for wrong in ("*CC", "*CC(*)*", "C*C*", "*C.*C", "CC", None, "no SMILES"):
    assert not is_repeat_unit(wrong), wrong
with shows_error(ValueError):
    attachment_points("C(")

# %% [markdown]
# ## On real input
#
# ### Four that fail
#
# Two graphs with an overfull atom that no charge helps, and two in pieces, the smaller of which is more than an atom; all four can be repaired both ways.

# %%
wrong_atom, wrong_pieces = [], []
for number, graph in enumerate(graphs):
    built, both = build_molecule(*graph), graph_to_molecule(*graph).smiles
    if both is None or number in (charged, overfull, split):
        continue
    if direct[number] is None:
        wrong_atom.append(number)
    elif min(map(len, Chem.GetMolFrags(built))) in (2, 3, 4) and "." in direct[number]:
        wrong_pieces.append(number)
shown = wrong_atom[:2] + wrong_pieces[:2]


# %%
def kept_atoms(result):
    """The atoms of the largest component of a repaired molecule, of equal ones the canonical."""
    pieces = Chem.GetMolFrags(result.molecule)
    texts = [Chem.MolFragmentToSmiles(result.molecule, piece) for piece in pieces]
    largest = largest_fragment(result.smiles)
    n = max(map(len, pieces))
    return next(
        (p for p, s in zip(pieces, texts, strict=True) if len(p) == n and s == largest),
        max(pieces, key=len),
    )


# %% tags=["figure"]
def draw_four():
    figure, axes = canvas(3, 4, 7.4, 5.4)
    for column, number in enumerate(shown):
        graph, spots = graphs[number], places_of(graphs[number])
        pieces = Chem.GetMolFrags(build_molecule(*graph))
        over = {overloaded_atom(assembled(*graph))}
        joined, loose = (graph_to_molecule(*graph, connect=c) for c in (True, False))
        kept = kept_atoms(loose)
        draw_atoms(axes[0, column], graph, spots, marks=over)
        axes[0, column].set_title(f"graph {number}: k = {len(pieces)}")
        for row, (result, keep) in enumerate(((joined, None), (loose, kept)), start=1):
            charges = [atom.GetFormalCharge() for atom in result.molecule.GetAtoms()]
            now = (graph[0], result.bonds)
            draw_atoms(axes[row, column], now, spots, graph[1], kept=keep, charges=charges)
            edits = edit_distance(graph[1], result.bonds, keep)
            axes[row, column].set_title(f"{('connected', 'largest')[row - 1]}: d = {edits}")
    return figure


show(
    draw_four(),
    alt="Four noised graphs, below each its connected repair and its largest component, with the "
    "bonds that were changed in colour and the edit distance above",
)

# %%
show(
    molecule_grid(
        [text for n in shown for text in (smiles[n], graph_to_molecule(*graphs[n]).smiles)],
        [text for n in shown for text in (f"molecule {n}", "noised and repaired")],
    ),
    alt="The four molecules of QM9, each beside what came out after noise and repair",
)
print("restored:", [graph_to_molecule(*graphs[n]).smiles == smiles[n] for n in shown])

# %% [markdown]
# All eight are molecules. The last repair happens to put back the bond that the noise had cut; the other three made molecules that nobody meant.
#
# ### What each repair changes
#
# The claim, measured on hundreds: all noised graphs of three seeds that are in pieces and whose valences are right, so that equation 7 applies.

# %%
in_pieces = []
for seed in range(3):
    for number, graph in enumerate(decode_graphs(noised_at(30, seed), vocabulary)):
        built = build_molecule(*graph)
        text = to_smiles(built)
        if text and "." in text:
            in_pieces.append((number, graph, len(Chem.GetMolFrags(built))))
print(
    len(in_pieces), "graphs;", dict(sorted(Counter(k for _, _, k in in_pieces).items())), "pieces"
)

# %%
changes = []
for number, graph, k in in_pieces:
    joined, loose = (graph_to_molecule(*graph, connect=c) for c in (True, False))
    cut = edit_distance(graph[1], loose.bonds, kept_atoms(loose))
    if joined.smiles is not None:
        d = edit_distance(graph[1], joined.bonds)
        assert d == k - 1 <= cut, "equation 7"
        changes.append((d, cut, number, joined.smiles, largest_fragment(loose.smiles)))
by_connecting, by_cutting = (sum(c[i] for c in changes) / len(changes) for i in (0, 1))
print(f"{len(changes)} of {len(in_pieces)} can be connected")
print(f"mean d: connecting {by_connecting:.2f}, largest component {by_cutting:.2f}")
print(f"of those, equal: {sum(c[0] == c[1] for c in changes)}")

# %% [markdown]
# The claim holds, for every graph and not only in the mean. The two are equal where each piece that is thrown away is one atom. But edit distance is one measure among several, and one that charges for atoms. How similar is each repaired molecule to the one that was noised? The Tanimoto similarity (谷本相似度) of two molecules is the share of their small substructures that both have:

# %%
fingerprints = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)


def similarity(one, two):
    prints = [fingerprints.GetFingerprint(Chem.MolFromSmiles(text)) for text in (one, two)]
    return DataStructs.TanimotoSimilarity(*prints)


alike = torch.tensor(
    [[similarity(smiles[n], text) for text in (both, cut)] for _, _, n, both, cut in changes]
)
sizes = torch.tensor(
    [
        [Chem.MolFromSmiles(text).GetNumAtoms() for text in (smiles[n], both, cut)]
        for _, _, n, both, cut in changes
    ]
).float()
print(
    "mean similarity to the clean molecule: connected {:.3f}, largest {:.3f}".format(*alike.mean(0))
)
better = (alike[:, 0] - alike[:, 1]).sign()
counts = [int((better == sign).sum()) for sign in (1, -1, 0)]
off = alike[:, 0] - alike[:, 1]
print(f"mean difference {off.mean():.3f} ± {off.std() / len(off) ** 0.5:.3f}, ", end="")
print(f"{int((alike[:, 0] == 1).sum())} restored exactly by connecting")
print("more similar: connected {}, largest {}, equal {}".format(*counts))
print("mean atoms: clean {:.2f}, connected {:.2f}, largest {:.2f}".format(*sizes.mean(0)))


# %% tags=["figure"]
def draw_changes():
    figure, axes = canvas(1, 2, 7.4, 2.6)
    most = max(c[1] for c in changes)
    for shift, column, ink, name in (
        (-0.2, 0, "first", "connected"),
        (0.2, 1, "second", "largest"),
    ):
        counts = Counter(c[column] for c in changes)
        spots = range(1, most + 1)
        axes[0].bar(
            [x + shift for x in spots],
            [counts[x] for x in spots],
            0.4,
            color=COLOURS[ink],
            label=name,
        )
    axes[0].set(xlabel="atoms lost and bonds changed: d = …", ylabel="graphs")
    axes[0].legend(frameon=False)
    axes[1].plot(*alike.T, ".", color=COLOURS["muted"], ms=4, clip_on=False)
    axes[1].plot([0, 1], [0, 1], color=COLOURS["query"], lw=0.8)
    axes[1].set(
        xlabel="connected: similarity to the clean one",
        ylabel="largest: similarity",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    return figure


show(
    draw_changes(),
    alt="Left: how many graphs have which edit distance by the two repairs; connecting stays at 1 "
    "to 3, cutting reaches further. Right: similarity to the clean molecule by the two repairs, "
    "a cloud about the diagonal",
)

# %% [markdown]
# By similarity neither repair wins: connecting is ahead in the mean by about two standard errors, helped by the few graphs that it restores exactly, and the largest component is ahead on slightly more graphs. A new bond is a substructure that was not there, a lost piece is one that is missing. What cutting changes for sure is the size, by two atoms of nine here, and properties that grow with size go with it. So "changes the structure least" is a theorem for the count of edits, and not a fact about every way to compare.
#
# ### The order of the pairs
#
# First-fit joins early atoms. Does drawing the pair, the paper's way, change more?

# %%
generator = torch.Generator().manual_seed(0)
first, random = Counter(), Counter()
for _, graph, _ in in_pieces:
    for counter, source in ((first, None), (random, generator)):
        result = graph_to_molecule(*graph, generator=source)
        counter["None" if result.smiles is None else edit_distance(graph[1], result.bonds)] += 1
print("first fit:", dict(first))
print("drawn:    ", dict(random))

# %% [markdown]
# The distance is the same, $k - 1$, whichever pair is joined. Drawn pairs fail less often, because hydrogens are counted again: what the release cannot connect has more pieces than atoms that are free.
#
# ### The five numbers
#
# At more and more noise, five answers to the same question:

# %%
times = (0, 5, 10, 20, 30, 40)
measured = {t: validity(noised_at(t), vocabulary) for t in times}
print(f"{'t':>3}  " + "  ".join(f"{name:>17}" for name in measured[0]._fields[:5]))
for t, numbers in measured.items():
    print(f"{t:3d}  " + "  ".join(f"{share:17.3f}" for share in numbers[:5]))


# %% tags=["figure"]
def draw_five(measured):
    figure, axes = canvas(1, 1, 7.4, 2.8)
    inks = ("first", "n01", "flow", "second", "bad")
    for place, (name, ink) in enumerate(zip(measured[0]._fields, inks, strict=False)):
        spots = [x + 0.16 * (place - 2) for x in range(len(measured))]
        heights = [numbers[place] for numbers in measured.values()]
        axes.bar(spots, heights, 0.15, color=COLOURS[ink], label=name)
    axes.set_xticks(range(len(measured)), [f"t = {t}" for t in measured])
    axes.set(ylabel="validity ρ", ylim=(0, 1))
    axes.legend(ncols=5, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8)
    return figure


show(
    draw_five(measured),
    alt="Groups of five bars for six times of noise: the corrected ones stay high, the connected "
    "one falls fastest, and the released one stays above the direct one",
)

# %% [markdown]
# At $t = 0$ there is no noise, and the bars say what the encoding itself loses; "What breaks" comes back to that. Then they part. At $t = 40$ fewer than a fifth of the graphs are molecules in one piece, and two thirds count after correction: that number measures the repair. The release's "without correction" goes with the direct one, and is above it where the longest component is whole and another is broken; neither asks for one piece. In the paper's table Graph DiT has the validity .825 after correction and .844 without, as if correcting did harm. The second number does not ask for one piece, and the first one does.
#
# ### Where these graphs fail
#
# At $t = 20$:

# %%
trouble = Counter()
for graph, text in zip(graphs, direct, strict=True):
    if text is not None:
        trouble["valid"] += 1
    elif overloaded_atom(build_molecule(*graph)) is not None:
        trouble["an overfull atom"] += 1
    else:
        trouble["aromatic bonds that are no ring"] += 1
dict(trouble)


# %% tags=["figure"]
def draw_orders():
    figure, axes = canvas(1, 1, 5.0, 2.4)
    for shift, ink, name, codes in (
        (-0.2, "muted", "clean", clean),
        (0.2, "first", "at t = 20", noised_at(20)),
    ):
        bonds = torch.bincount(codes.bonds.long().flatten(), minlength=5)[1:] / 2 / len(smiles)
        axes.bar([x + shift for x in range(4)], bonds, 0.4, color=COLOURS[ink], label=name)
    labels = [f"{name}\norder b = {b:g}" for name, b in zip(BONDS[1:], ORDERS[1:], strict=True)]
    axes.set_xticks(range(4), labels)
    axes.set(ylabel="bonds per graph")
    axes.legend(frameon=False)
    return figure


show(
    draw_orders(),
    alt="Bonds per graph by order, clean and noised: nearly the same numbers of each kind",
)

# %% [markdown]
# The independent noise moves bonds and keeps, in the mean, how many there are of each order $b$. So a histogram of bond types cannot see that a third of these graphs are broken. Validity can.
#
# ### Polymers: what validity does not see
#
# Repeat units of nine common polymers, each twenty times, noised:

# %%
POLYMERS = {
    "polyethylene": "*CC*",
    "polypropylene": "*CC(*)C",
    "polystyrene": "*CC(*)c1ccccc1",
    "PMMA": "*CC(*)(C)C(=O)OC",
    "polylactide": "*OC(C)C(*)=O",
    "PET": "*OCCOC(=O)c1ccc(cc1)C(*)=O",
    "nylon 6": "*NCCCCCC(*)=O",
    "polyacrylonitrile": "*CC(*)C#N",
    "poly(phenylene oxide)": "*Oc1c(C)cc(*)cc1C",
}
polymer_vocabulary, _, polymers_at = noised([*POLYMERS.values()] * 20)
print(polymer_vocabulary)
for t in (0, 3, 6, 10):
    codes = polymers_at(t)
    numbers = validity(codes, polymer_vocabulary)
    texts = graphs_to_smiles(codes, polymer_vocabulary)
    units = sum(map(is_repeat_unit, texts)) / len(texts)
    repaired = f"after repair {numbers.corrected_connect:.2f}, of them "
    share = units / max(numbers.corrected_connect, 1e-9)
    print(f"t = {t:2d}: direct {numbers.direct:.2f}, {repaired}repeat units {share:.0%}")

# %%
wrong = [text for text in texts if text and not is_repeat_unit(text)]
wrong = sorted(set(wrong), key=lambda text: (len(text), text))[:8]
show(
    molecule_grid(wrong, [f"neighbours of *: {attachment_points(text)}" for text in wrong]),
    alt="Eight valid molecules whose attachment points are too few, too many, or inside a chain",
)

# %% [markdown]
# Valid, and no repeat units: one attachment point or three, or a point inside the chain. At little noise the two shares are close; they part as the noise grows. A model of polymers should report both.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `build_molecule` | 10 | ●●○ |
# | `lower_bond` | 10 | ●●○ |
# | `connect_fragments` | 15 | ●●● |
# | `attachment_points`, `is_repeat_unit` | 5 | ●○○ |
#
# <details><summary>Hint for <code>build_molecule</code></summary>
#
# `overloaded_atom` after each bond. It gives an index or None; index 0 is an atom too, so compare with None. `_VALENCE.get(symbol)` is None for an element that takes no charge.
#
# </details>
#
# <details><summary>Hint for <code>lower_bond</code></summary>
#
# `max` gives the first of equal ones. Keep the two ends before the bond is removed: the Python object points into the molecule. `_BOND_TYPES` is in the order of rising codes, and its first entry, None, stands for no bond.
#
# </details>
#
# <details><summary>Hint for <code>connect_fragments</code></summary>
#
# `Chem.GetMolFrags` gives tuples of indices. Keep three things: the growing molecule, the indices connected so far in the order of the pieces, and the set of atoms with a hydrogen, from which both ends of each new bond are taken.
#
# </details>
#
# <details><summary>Hint for <code>attachment_points</code> and <code>is_repeat_unit</code></summary>
#
# `*` has atomic number 0. `atom.GetDegree()` counts neighbours.
#
# </details>
#
# **Predict.** What does each of the five numbers say of a batch of 100 graphs, each of nine lone carbon atoms without any bond? And of 100 graphs of one carbon and one fluorine without a bond?
#
# <details><summary>Hint</summary>
#
# Lone atoms are filled up with hydrogens. Which texts have more than one letter? Who can be joined to whom?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Nine methanes are valid as they are, so `direct` and `released` are 1, and `connected` is 0. They cannot be connected, as released, because after two are joined both count as having no hydrogen. The largest component is `C`, a text of one letter, and does not count: both corrected numbers are 0. A perfect score and a zero, of the same graphs. Methane and hydrogen fluoride can be joined, to `CF`: all but `connected` are 1. The cell below computes both.
#
# </details>

# %% tags=["nbval-check-output"]
tiny = Vocabulary(("C", "F"), 9)
lone = Codes(torch.zeros(100, 9, dtype=torch.int8), torch.zeros(100, 9, 9, dtype=torch.int8))
two = Codes(torch.full((100, 9), -1, dtype=torch.int8), lone.bonds)
two.atoms[:, :2] = torch.tensor([0, 1], dtype=torch.int8)
print(*validity(lone, tiny)[:5])
print(*validity(two, tiny)[:5])

# %% [markdown]
# **Vary.** The release connects first and corrects afterwards, and gives up on a graph that is in pieces *and* has an overfull atom. Correct first, connect afterwards: how many graphs at $t = 20$ does that save?
#
# <details><summary>Hint</summary>
#
# `_repaired(built, connect=False)`, then `connect_fragments`. Hydrogens are counted by the last `overloaded_atom`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# More graphs become molecules, as the cell below counts; most of what is left are aromatic bonds that are no ring. The release's validity of Graph DiT is lower than that of LCC in part because of the order of two steps.
#
# </details>


# %%
def correct_then_connect(graph):
    molecule = _repaired(build_molecule(*graph), connect=False)
    molecule = molecule and connect_fragments(molecule)
    return molecule and to_smiles(molecule)


released = sum(graph_to_molecule(*graph).smiles is not None for graph in graphs)
turned = sum(correct_then_connect(graph) is not None for graph in graphs)
print(f"connect first: {released} of {len(graphs)}; correct first: {turned}")

# %% [markdown]
# **Measure.** How much of what fails at each $t$ is due to aromatic bonds? Noise graphs that are written with alternating single and double bonds instead (`kekulize=True`), and draw the five numbers again.
#
# <details><summary>Hint</summary>
#
# `noised(smiles, kekulize=True)` and `draw_five`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Without the fifth class every failure is an overfull atom, and every overfull atom can be corrected. What is left fails only by the rule of more than one letter: the corrected share of LCC is 1 at every $t$ here. A number that an encoding can push to 1 says nothing about a model.
#
# </details>

# %%
kekule_vocabulary, _, kekule_at = noised(smiles, kekulize=True)
kekule = {t: validity(kekule_at(t), kekule_vocabulary) for t in times[::2]}
for t, numbers in kekule.items():
    print(f"{t:3d}  " + "  ".join(f"{share:17.3f}" for share in numbers[:5]))

# %% [markdown]
# **Find the bug.** A colleague measures validity with one line, `Chem.MolFromSmiles(Chem.MolToSmiles(molecule)) is not None`, on molecules that were built and not sanitised. It counts this graph, a ring of a carbon and two sulphurs with an aromatic bond from the carbon to an attachment point, as valid. Is it?

# %%
oddity = star("C", "*SS", [4, 1, 1])
oddity[1][2, 3] = oddity[1][3, 2] = 1
built = build_molecule(*oddity)
with rdBase.BlockLogs():
    text = Chem.MolToSmiles(built)
    print(text, "is read again as", Chem.MolToSmiles(Chem.MolFromSmiles(text)))
print("sanitised as it is:", to_smiles(built))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which bond does the text write between the two atoms?
#
# </details>
#
# <details><summary>Answer</summary>
#
# It is not. The text does not write what kind of bond joins `*` to the small letter `c`, and on reading RDKit decides: here on a single one. Writing and reading is a repair, one that nobody asked for. Sanitise the molecule itself.
#
# </details>

# %% [markdown]
# ## What breaks
#
# ### An aromatic ring that cannot be
#
# Pyrrole, `c1cc[nH]c1`, has a hydrogen on its nitrogen that the ring needs: without it the five atoms cannot be written with alternating bonds (凯库勒式, a Kekulé structure). A graph of heavy atoms has no place for that hydrogen, and RDKit does not guess it. No atom is overfull, so no correction begins:

# %%
pyrrole = find_vocabulary(["c1cc[nH]c1"])
codes, _, _ = encode_smiles(["c1cc[nH]c1"], pyrrole)
graph = next(decode_graphs(codes, pyrrole))
print("overfull:", overloaded_atom(build_molecule(*graph)), " repaired:", graph_to_molecule(*graph))
with shows_error(Chem.KekulizeException), rdBase.BlockLogs():
    Chem.SanitizeMol(build_molecule(*graph))

# %% [markdown]
# So a model that learns the data perfectly, in the release's encoding, has less than full validity. Every second of the held-out molecules of QM9, without noise:

# %%
everything = qm9_table("held_out")["smiles"][::2].tolist()
for kekulize in (False, True):
    whole = find_vocabulary(everything, kekulize=kekulize)
    codes, _, problems = encode_smiles(everything, whole)
    texts = graphs_to_smiles(codes, whole, mode="none")
    others = [(a, b) for a, b in zip(everything, texts, strict=True) if b and a != b]
    lost = sum(text is None for text in texts)
    name = "alternating bonds" if kekulize else "aromatic bonds"
    print(
        f"{len(texts)} with {name}: {len(problems)} not encoded, {lost} invalid, {len(others)} another molecule"
    )
print("such as", *(" → ".join(each) for each in others[:2]))

# %% [markdown]
# With alternating bonds all are valid. But a few come back as another molecule: the charge rule gives no negative charge, so an amino acid that was written with its two charges comes back without them. Validity does not see that either.
#
# ### The order of the atoms
#
# A graph has no first atom. Is the repair the same for another order?

# %%
differs = Counter()
generator = torch.Generator().manual_seed(0)
for graph in graphs:
    order = torch.randperm(len(graph[0]), generator=generator)
    other = [graph[0][i] for i in order.tolist()], graph[1][order][:, order]
    differs["as is"] += to_smiles(build_molecule(*graph)) != to_smiles(build_molecule(*other))
    for connect in (True, False):
        one, two = (graph_to_molecule(*g, connect=connect).smiles for g in (graph, other))
        name = "connect" if connect else "largest"
        differs[f"{name}: molecule"] += one != two
        differs[f"{name}: validity"] += (one is None) != (two is None)
print(dict(differs), "of", len(graphs))
assert differs["as is"] == 0

# %% [markdown]
# What is valid as it is stays the same molecule. A repair depends on the order of the atoms: which one is looked at first, which bond of two alike is lowered, which pair is joined. The counts of validity differ little, the molecules differ often. A denoiser that treats all orders alike is followed by a step that does not.
#
# ### One letter
#
# The release asks for a text longer than one letter. Methane, water and ammonia are molecules of QM9, and do not count; hydrogen chloride, written `Cl`, has two letters and does.

# %% tags=["nbval-check-output"]
lone_vocabulary = Vocabulary(("C", "O", "Cl"), 1)
lone = Codes(torch.arange(3, dtype=torch.int8)[:, None], torch.zeros(3, 1, 1, dtype=torch.int8))
for mode in MODES:
    print(f"{mode:>7}:", graphs_to_smiles(lone, lone_vocabulary, mode=mode))

# %% [markdown]
# ### What the code says to bad input

# %%
with shows_error(ValueError):
    build_molecule(["C", "Xx"], torch.zeros(2, 2, dtype=torch.int8))
with shows_error(ValueError):
    build_molecule(["C", "C", "O"], torch.zeros(2, 2, dtype=torch.int8))
with shows_error(ValueError):
    build_molecule(["C", "O"], torch.tensor([[0, 1], [2, 0]]))
with shows_error(ValueError):
    build_molecule(["C", "O"], torch.tensor([[0, 7], [7, 0]]))
with shows_error(ValueError):
    graphs_to_smiles(clean, vocabulary, mode="lcc")
with shows_error(ValueError):
    validity(Codes(clean.atoms[:0], clean.bonds[:0]), vocabulary)
with shows_error(ValueError):
    edit_distance(pair, pair[:2, :2])

# %% [markdown]
# ## Recap
#
# - A graph becomes a molecule in three repairs: a charge for N, O or S with one bond too many, bonds lowered on other overfull atoms, pieces connected or cut to the largest. Aromatic bonds that make no ring have no repair.
# - Connecting costs $k - 1$ edits and never more than cutting, by a one-line proof. By similarity to the molecule that was meant, neither repair wins.
# - Validity is five numbers. The strictest, valid as is and in one piece, is about the model; those after correction are about the repair. None of them sees a wrong number of attachment points.
#
# The line goes on in [lesson 7](7_metrics.ipynb), which asks of the valid ones whether they are good.
