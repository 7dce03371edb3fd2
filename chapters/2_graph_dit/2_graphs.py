# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 50
#     needs: []
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Graphs: molecules as tensors
#
# **After this lesson you can** write a molecule as one-hot tensors, read it back, and say which molecules do not survive the way there and back, and why.
#
# *Before this:* Python and tensors. No chemistry is needed: each of its words is explained where it first appears. *Time:* 50 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# A molecule is a **graph** (图). Its nodes are **atoms** (原子): carbon C, nitrogen N, oxygen O and so on. Its edges are **bonds** (化学键), which hold two atoms together and come in a few types. Graph DiT draws molecules as an image model draws pixels, so it needs tensors of one size. Two of them hold a molecule: $X$ says of each atom what it is, $E$ says of each pair of atoms how they are bonded, and "not at all" is a type of bond too. Both are **one-hot** (独热编码): a row of zeros with a single 1. Smaller molecules are **padded** (填充) with rows that hold nothing, and a **mask** $m_i$ (掩码) says which rows are atoms.
#
# One atom together with its bonds to all atoms is a **graph token** $x_i$ (图令牌). All tokens stacked are the matrix $X_G$ that the transformer reads.
#
# Two things are left out: hydrogen atoms and electric charges. A reader of the graph has to guess them. That guess is nearly always right, and where it is wrong the molecule is lost.

# %% [markdown]
# ## Figure
#
# ### A molecule and its two tensors
#
# The molecule comes from **QM9**, a list of small molecules with up to nine atoms (Ramakrishnan et al. 2014, Scientific Data 1, 140022). The course carries a part of it; this lesson uses the fifth of that which is held out for tests.

# %%
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle
from rdkit import Chem, rdBase
from torch import Tensor

from fourfold.graph_dit.graphs import (
    BONDS,
    decode_graphs,
    encode_smiles,
    find_vocabulary,
    graph_tokens,
    one_hot,
    parse_smiles,
    permute_atoms,
    to_molecule,
    to_smiles,
    token_width,
)
from fourfold.kit.arguments import listed, whole_number
from fourfold.kit.drawing import canvas, show
from fourfold.kit.molecules import (
    ATOM_COLOURS,
    BOND_COLOURS,
    draw_molecule,
    molecule_grid,
    nci_smiles,
    qm9_table,
)
from fourfold.kit.notebook import shows_error

# %%
qm9 = qm9_table("held_out")["smiles"].tolist()
vocabulary = find_vocabulary(qm9)
example = "C#Cc1ncon1"
assert example in qm9
codes, _, _ = encode_smiles([example], vocabulary)
graphs = one_hot(codes, vocabulary)
{name: tuple(part.shape) for name, part in graphs._asdict().items()}


# %% tags=["figure"]
SIGNS = {"none": "", "single": "1", "double": "2", "triple": "3", "aromatic": "a"}


def paint_atoms(axes, graphs, symbols, b=0):
    """X of graph b: a row for each atom, its square in the colour of its type."""
    rows, n = graphs.mask.shape[1], int(graphs.mask[b].sum())
    picture = np.ones((rows, len(symbols), 3))
    for i, a in graphs.X[b].nonzero().tolist():
        picture[i, a] = to_rgb(ATOM_COLOURS.get(symbols[a], "#888888"))
    axes.imshow(picture)
    names = [symbols[a] for a in graphs.X[b, :n].argmax(dim=-1).tolist()]
    axes.set_xticks(range(len(symbols)), symbols)
    axes.set_yticks(
        range(rows), [f"{i} {name}" for i, name in enumerate(names)] + ["–"] * (rows - n)
    )
    draw_squares(axes, rows, len(symbols))
    hatch(axes, -0.5, n - 0.5, len(symbols), rows - n)


def paint_bonds(axes, graphs, b=0, labels=None):
    """E of graph b: a square for each pair, in the colour of its bond; white is the zero vector."""
    there = graphs.mask[b].tolist()
    rows = len(there)
    picture = np.ones((rows, rows, 3))
    for i, j, kind in graphs.E[b].nonzero().tolist():
        picture[i, j] = to_rgb(BOND_COLOURS[BONDS[kind]])
        style = {"ha": "center", "va": "center", "color": "white", "size": 7}
        axes.text(j, i, SIGNS[BONDS[kind]], **style)
    axes.imshow(picture)
    axes.set_xticks(range(rows) if labels else [], labels)
    axes.set_yticks(range(rows) if labels else [], labels)
    draw_squares(axes, rows, rows)
    for i in range(rows):
        if not there[i]:
            hatch(axes, i - 0.5, -0.5, 1, rows)
            hatch(axes, -0.5, i - 0.5, rows, 1)


def draw_squares(axes, height, width):
    axes.hlines(np.arange(height + 1) - 0.5, -0.5, width - 0.5, color="#bbbbbb", lw=0.5)
    axes.vlines(np.arange(width + 1) - 0.5, -0.5, height - 0.5, color="#bbbbbb", lw=0.5)
    axes.set(xlim=(-0.6, width - 0.4), ylim=(height - 0.4, -0.6))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def hatch(axes, x, y, width, height):
    if width and height:
        style = {"fc": "white", "ec": "#bbbbbb", "hatch": "/////", "lw": 0.5}
        axes.add_patch(Rectangle((x, y), width, height, **style))


def numbered(molecule):
    """A copy whose picture shows the number of each atom."""
    copy = Chem.Mol(molecule)
    for atom in copy.GetAtoms():
        atom.SetProp("atomNote", str(atom.GetIdx()))
    return copy


def bond_legend(figure):
    keys = [Patch(fc=BOND_COLOURS[bond], label=f"{bond} {SIGNS[bond]}") for bond in BONDS]
    style = {"ncols": len(BONDS), "fontsize": 8, "frameon": False}
    figure.legend(handles=keys, loc="outside lower center", **style)


def draw_example():
    A, n = len(vocabulary.atoms), int(graphs.mask.sum())
    figure, axes = canvas(1, 3, 7.4, 3.5, width_ratios=[3.2, 1.7, 3.2])
    draw_molecule(axes[0], numbered(parse_smiles(example)), pixels=420)
    axes[0].set_title(f"{example}\nn = {n} atoms a_i, bonds b_ij")
    paint_atoms(axes[1], graphs, vocabulary.atoms)
    axes[1].set_title(f"X: A = {A} atom types")
    axes[1].set_ylabel("row i; hatched: mask m_i = 0")
    paint_bonds(axes[2], graphs, labels=list(range(vocabulary.max_atoms)))
    axes[2].set_title(f"E: N = {vocabulary.max_atoms}, K = {graphs.E.shape[-1]} bond types")
    bond_legend(figure)
    return figure


show(
    draw_example(),
    alt="A molecule with numbered atoms; beside it X, one coloured square a row, and E, a symmetric "
    "matrix of squares coloured by bond type, with hatched rows and columns of padding",
)

# %% [markdown]
# Follow one bond: the triple bond between atoms 0 and 1 of the drawing is the same colour in row 0, column 1 and in row 1, column 0. The picture of $E$ is symmetric, its diagonal is white since no atom is bonded to itself, and most pairs are grey: no bond. The hatched rows and columns are padding. In a drawing a carbon atom has no letter: it stands at each corner and end of a line.
#
# ### One row of X_G
#
# The token of one atom is its row of $X$, then its row of $E$ with all pairs side by side.


# %% tags=["figure"]
def draw_token(i=2):
    token = graph_tokens(graphs)[0, i]
    types, most = len(vocabulary.atoms), vocabulary.max_atoms
    figure, axes = canvas(1, 1, 7.4, 1.35)
    for f, value in enumerate(token.tolist()):
        kind = BONDS[(f - types) % len(BONDS)]
        ink = ATOM_COLOURS[vocabulary.atoms[f]] if f < types else BOND_COLOURS[kind]
        ink = "#b5b5b5" if ink == BOND_COLOURS["none"] else ink
        style = {"fc": ink if value else "white", "ec": "#cccccc", "lw": 0.5}
        axes.add_patch(Rectangle((f, 0), 1, 1, **style))
    ends = [0, *range(types, len(token) + 1, len(BONDS))]
    kinds = ["itself" if j == i else "" if graphs.mask[0, j] else "padding" for j in range(most)]
    names = ["X row\n", *(f"to {j}\n{kind}" for j, kind in enumerate(kinds))]
    for name, left, right in zip(names, ends, ends[1:], strict=False):
        axes.text((left + right) / 2, 1.15, name, ha="center", va="bottom", size=8)
        axes.plot([left, left], [-0.15, 1.15], color="black", lw=1)
    axes.set(xlim=(-0.2, len(token) + 0.2), ylim=(-0.2, 2.3), yticks=[])
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(f"a row of X_G: token x_i of atom i = {i}, width F = A + K N = {len(token)}")
    return figure


show(
    draw_token(),
    alt="A strip of 49 squares: four of the atom's type, then nine blocks of five, one for each "
    "other atom; one square of a block is filled, none in the atom's own block and in padding",
)

# %% [markdown]
# Each block of five has one filled square, the bond to that atom. Two kinds of block are empty: the atom's own, and those of padding.
#
# ## Formula
#
# Let a molecule have $n$ atoms, and let $N \ge n$ be the most that any molecule of the data has. It is stored as **codes**, small whole numbers. The code $a_i$ is the place of atom $i$ in a list of $A$ atom types, and −1 where there is no atom. The code $b_{ij}$ is the type of the bond between atoms $i$ and $j$, one of $K$; type 0 is no bond. With brackets that are 1 where the statement in them is true and 0 elsewhere, mask and atoms are
#
# $$ m_i = [\, a_i \ge 0 \,], \qquad X_{i,a} = [\, a_i = a \,], \qquad n = \sum_{i} m_i, \qquad i = 0, \dots, N - 1, \quad a = 0, \dots, A - 1 \tag{1} $$
#
# A row of $X$ without an atom is zero, as no $a$ is −1. A pair has a bond type only where both atoms are there and differ:
#
# $$ E_{i,j,k} = m_i\, m_j\, [\, i \ne j \,]\, [\, b_{ij} = k \,], \qquad b_{ij} = b_{ji}, \qquad k = 0, \dots, K - 1 \tag{2} $$
#
# The way back takes the largest entry, so that it reads scores as well as one-hot rows:
#
# $$ a_i = \begin{cases} \arg\max_a X_{i,a} & m_i = 1 \\ -1 & m_i = 0 \end{cases} \qquad b_{ij} = \arg\max_k E_{i,j,k} \ \text{ where } m_i m_j = 1,\ i \ne j, \ \text{ else } 0 \tag{3} $$
#
# The token $x_i$ of atom $i$ joins its row of $X$ and its $N$ rows of $E$; the tokens are the rows of $X_G$, of width $F$ (Section 3.1 of the paper):
#
# $$ x_i = \big[\, X_i \;\big|\; E_{i,0} \;\big|\; \dots \;\big|\; E_{i,N-1} \,\big], \qquad X_G = \begin{bmatrix} x_0 \\ \vdots \\ x_{N-1} \end{bmatrix}, \qquad F = A + K N \tag{4} $$
#
# Which atom is number 0 is a matter of chance. With the atoms in another order $\pi$ the molecule is the same, and its codes move along:
#
# $$ a'_i = a_{\pi(i)}, \qquad b'_{ij} = b_{\pi(i)\,\pi(j)} \tag{5} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $N$ | rows, the most atoms of a molecule | whole number | `max_atoms` | N = |
# | $n$ | atoms of this molecule | whole number | `n` | n = |
# | $A$ | atom types of the vocabulary | whole number | `atoms` | A = |
# | $K$ | bond types, "none" among them | whole number | `BONDS` | K = |
# | $a_i$ | code of an atom, −1 for none | (N,) | `atoms` | atoms a_i |
# | $b_{ij}$ | code of a bond, 0 for none | (N, N) | `bonds` | bonds b_ij |
# | $m_i$ | mask: is there an atom | (N,) | `mask` | mask m_i |
# | $X$ | atoms, one-hot | (N, A) | `X` | X: |
# | $E$ | bonds, one-hot | (N, N, K) | `E` | E: |
# | $x_i$ | token of an atom | (F,) | `graph_tokens` | token x_i |
# | $X_G$ | all tokens | (N, F) | `graph_tokens` | X_G |
# | $F$ | width of a token | whole number | `token_width` | F = |
# | $\pi$ | another order of the atoms | (N,) | `order` | order π |
#
# In code a batch of $B$ molecules has a first axis more, and a data set of $M$ molecules too. Atoms count from 0.
#
# > **Where the code leaves the paper.** The paper gives the tokens; the mask, the padding and the diagonal of equations 1 and 2 are what the release does. The release counts the atoms of a molecule with an RDKit function that ignores the end marks `*` of polymers; the course counts them (see *What the release's count loses*). The release keeps aromatic bonds as they are written; so does the course, and `kekulize=True` writes them as single and double bonds, which loses fewer molecules.

# %% [markdown]
# ## Code
#
# ### A text for a molecule
#
# Chemists write molecules as texts, in a language called **SMILES** (Weininger 1988). A letter is an atom, and atoms that stand side by side are bonded. `=` is a double bond, `#` a triple one. Brackets `( )` hold a branch. Two equal digits are the two ends of a bond that closes a ring. Four molecules and an end mark:

# %%
texts = {
    "CCO": "ethanol",
    "CC(=O)O": "acetic acid: a branch",
    "CC#N": "acetonitrile: triple bond",
    "C1CC1": "cyclopropane: a ring",
}
show(
    molecule_grid(list(texts), [f"{text}\n{name}" for text, name in texts.items()]),
    alt="Drawings of ethanol, acetic acid, acetonitrile and cyclopropane with their SMILES",
)

# %% [markdown]
# **RDKit** is a library that reads these texts. It numbers the atoms from left to right.

# %%
ethanol = Chem.MolFromSmiles("CCO")
[(atom.GetIdx(), atom.GetSymbol(), atom.GetTotalNumHs()) for atom in ethanol.GetAtoms()]

# %% [markdown]
# The last number of each atom is how many hydrogen atoms (H) are bonded to it. The text has none: they are **implicit** (隐式氢). Carbon makes four bonds, nitrogen three, oxygen two: an atom's **valence** (化合价). What is missing to the valence is filled with hydrogen. All other atoms are called **heavy** (重原子). Graphs hold heavy atoms only, which makes them three times smaller here and loses nothing, as long as the valence tells the rest.

# %%
[
    (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), bond.GetBondType().name)
    for bond in ethanol.GetBonds()
]

# %% [markdown]
# ### Rings: two ways to write one molecule
#
# Benzene is a ring of six carbon atoms in which all six bonds are alike, something between single and double: **aromatic** (芳香键). SMILES has a way to write that: small letters. An older way alternates double and single bonds, the **Kekulé form** (凯库勒式), and there are two such forms for each ring.

# %%
for text in ("c1ccccc1", "C1=CC=CC=C1"):
    ring = Chem.MolFromSmiles(text, sanitize=False)
    print(f"{text:>12}", Counter(bond.GetBondType().name for bond in ring.GetBonds()))

# %% [markdown]
# `sanitize=False` asks RDKit to read the text as it stands. Otherwise it **sanitizes**: it checks that no atom has too many bonds, and it finds out which rings are aromatic, however they were written. The release reads texts as they stand, so a ring is aromatic in its graphs where the text has small letters, and only there. That matters below.
#
# ### Polymers
#
# A **polymer** (聚合物) is a long chain in which one piece, the **repeat unit** (重复单元), comes again and again. It is written as that piece, with `*` for each end at which the chain goes on. The paper's first data set is polymers, of which membranes for gases are made.

# %%
unit = "*CC(*)C"
chain = "*CC(C)CC(C)CC(*)C"
show(
    molecule_grid(
        [unit, chain], [f"{unit}: one unit", f"{chain}: three units"], columns=2, width=5
    ),
    alt="The repeat unit of polypropylene with two end marks, and a chain of three of them",
)

# %% [markdown]
# `*` is no atom. It has the atomic number 0, the place of an element in the periodic table, which begins with 1 for hydrogen. But a model that draws polymers has to draw the ends too, so `*` is a node like any other.
#
# ### The naive version
#
# Equations 1 and 2 in loops, for one molecule:


# %%
def encode_loop(smiles, symbols, N):
    molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    X, E, n = torch.zeros(N, len(symbols)), torch.zeros(N, N, 5), molecule.GetNumAtoms()
    types = ("NONE", "SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
    for i in range(n):
        X[i, symbols.index(molecule.GetAtomWithIdx(i).GetSymbol())] = 1
        for j in range(n):
            bond = molecule.GetBondBetweenAtoms(i, j)
            if i != j:
                E[i, j, types.index(bond.GetBondType().name if bond else "NONE")] = 1
    return X, E


X, E = encode_loop("CCO", ["C", "O"], N=4)
X

# %%
E.argmax(dim=-1)

# %% [markdown]
# Rows and columns 0 to 2 say that the bonds 0–1 and 1–2 are single, class 1. The argmax hides a difference: pairs without a bond have class 0, and padding and the diagonal have no class at all.

# %%
E.sum(dim=-1)

# %%
A, N = len(vocabulary.atoms), vocabulary.max_atoms
X, E = encode_loop(example, vocabulary.atoms, N)
assert torch.equal(X, graphs.X[0]) and torch.equal(E, graphs.E[0]), "the loop and the figure agree"

# %% [markdown]
# This version is slow, its zeros and ones take a lot of room, and one bad text in a list of thousands stops it. The version of the library parts the work: read a text, find the vocabulary, store codes, and make one-hot tensors of the few molecules in a batch.
#
# ### Nouns first
#
# Five types of bond, in the order of their classes, and what RDKit calls them:

# %% tags=["promote"]
BONDS = ("none", "single", "double", "triple", "aromatic")

# %% tags=["promote"]
_BOND_TYPES = (
    None,
    Chem.BondType.SINGLE,
    Chem.BondType.DOUBLE,
    Chem.BondType.TRIPLE,
    Chem.BondType.AROMATIC,
)

# %% [markdown]
# A batch of dense graphs, as a model reads it:


# %% tags=["promote"]
class Graphs(NamedTuple):
    """B molecules as dense one-hot tensors, padded to N atoms (equations 1 and 2 of the lesson).

    X     (B, N, A) atom types, one-hot; zero where there is no atom
    E     (B, N, N, K) bond types of `BONDS`, one-hot and symmetric; class 0 where two atoms have
          no bond; zero where either atom is missing
    mask  (B, N) whether there is an atom

    In a clean graph the diagonal of E is zero; in a noised one it is class 0, as released.
    """

    X: Float[Tensor, "B N A"]
    E: Float[Tensor, "B N N K"]
    mask: Bool[Tensor, "B N"]

    def to(self, device: torch.device | str) -> "Graphs":
        """The same graphs on another device."""
        return Graphs(*(part.to(device) for part in self))


# %% [markdown]
# The codes of a whole data set, a byte for each number:


# %% tags=["promote"]
class Codes(NamedTuple):
    """M molecules as small whole numbers: what a data set keeps in memory.

    atoms  (M, N) index into the vocabulary's atoms, −1 where there is none
    bonds  (M, N, N) index into `BONDS`, symmetric
    """

    atoms: Int[Tensor, "M N"]
    bonds: Int[Tensor, "M N N"]


# %% [markdown]
# What a model knows of chemistry before it learns: which atoms there are, and how many at most.


# %% tags=["promote"]
@dataclass(frozen=True)
class Vocabulary:
    """The atom types that a model knows, and the most atoms that a graph may have.

    atoms      symbols by rising atomic number, `*` last
    max_atoms  N, to which every graph is padded
    kekulize   write aromatic rings as alternating single and double bonds; the release does not

    Raises ValueError for no atoms or the same twice, and for a `max_atoms` below 1.
    """

    atoms: tuple[str, ...]
    max_atoms: int
    kekulize: bool = False

    def __post_init__(self):
        whole_number("max_atoms", self.max_atoms, least=1)
        if not self.atoms or len(set(self.atoms)) < len(self.atoms):
            raise ValueError(f"atoms is {self.atoms!r}; expected one symbol or more, each once")

    def index(self, symbol: str) -> int:
        """The place of an atom's symbol. Raises ValueError for one that is not among `atoms`."""
        if symbol not in self.atoms:
            raise ValueError(
                f"atom {symbol!r} is not in the vocabulary; expected one of {', '.join(self.atoms)}"
            )
        return self.atoms.index(symbol)


# %%
Vocabulary(("C", "N", "O", "*"), max_atoms=20).index("*")

# %% [markdown]
# A text that cannot be used is not an error: in a list of thousands some always are. It is a problem, and keeps its row.


# %% tags=["promote"]
class Problem(NamedTuple):
    """A SMILES that could not be used: its row in the list, its text, and why."""

    row: int
    smiles: str
    reason: str


# %% [markdown]
# ### Reading a text
#
# RDKit prints its complaints; `BlockLogs` keeps them back, and an error sentence takes their place. A hydrogen atom that the text does write, `[H]`, is removed: the valence brings it back.


# %% tags=["promote"]
def parse_smiles(smiles: str, kekulize: bool = False) -> Chem.Mol:
    """The molecule of a SMILES as a graph: heavy atoms and `*`, without explicit hydrogens.

    Aromatic bonds stay aromatic, and nothing is checked chemically, as released, unless
    `kekulize` asks for alternating bonds, which only a chemically valid molecule has. What stands
    behind a space is a name to RDKit, and is not read.
    Raises ValueError for what is no text, a text that RDKit cannot read, and hydrogen alone.
    """
    if not isinstance(smiles, str):
        raise ValueError(f"it is a {type(smiles).__name__}; expected a text")
    with rdBase.BlockLogs():
        molecule = Chem.RWMol(_read(smiles, kekulize))
        hydrogens = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 1]
        for index in reversed(hydrogens):
            molecule.RemoveAtom(index)
    if molecule.GetNumAtoms() == 0:
        raise ValueError("it has no atom but hydrogen; expected one or more")
    return molecule


def _read(smiles: str, kekulize: bool) -> Chem.Mol:
    try:
        molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    except UnicodeError:  # half a character of a broken file
        molecule = None
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise ValueError("it is not a SMILES that RDKit can read")
    if kekulize:
        try:
            Chem.SanitizeMol(molecule)
            Chem.Kekulize(molecule, clearAromaticFlags=True)
        except (Chem.MolSanitizeException, Chem.KekulizeException) as error:
            raise ValueError(f"it is not chemically valid ({error})") from None
    return molecule


# %%
for text in ("CCO", "[H]OCC", "*CC*"):
    print(f"{text:>7}", [atom.GetSymbol() for atom in parse_smiles(text).GetAtoms()])
with shows_error(ValueError):
    parse_smiles("c1ccccc")

# %% [markdown]
# ### A vocabulary from data
#
# The atoms that occur, in the order of their atomic numbers. `*` has number 0 and still comes last, as in the release: a model's weights depend on this order.


# %% tags=["promote"]
def find_vocabulary(
    smiles: Iterable[str], *, max_atoms: int | None = None, kekulize: bool = False
) -> Vocabulary:
    """The vocabulary of a list of SMILES: the atoms that occur, by rising atomic number.

    `max_atoms` is N; the largest molecule decides where it is not given, and larger molecules do
    not count where it is. SMILES that cannot be read do not count.
    Raises ValueError where no molecule is left, for a text in place of a list, and for a
    `max_atoms` below 1.
    """
    if max_atoms is not None:
        max_atoms = whole_number("max_atoms", max_atoms, least=1)
    found, largest = {}, 0
    for text in listed("smiles", smiles, "['CCO', 'c1ccccc1']"):
        try:
            molecule = parse_smiles(text, kekulize)
        except ValueError:
            continue
        if max_atoms is not None and molecule.GetNumAtoms() > max_atoms:
            continue
        largest = max(largest, molecule.GetNumAtoms())
        # An attachment point has atomic number 0 and comes last, as in the release.
        found |= {a.GetSymbol(): a.GetAtomicNum() or 1000 for a in molecule.GetAtoms()}
    if not found:
        raise ValueError("smiles holds no molecule that can be used; expected one or more")
    symbols = sorted(found, key=found.get)
    return Vocabulary(tuple(symbols), max_atoms or largest, kekulize)


# %%
find_vocabulary(["*CC*", "CCO", "ClCCl", "not a molecule"])

# %% [markdown]
# ### Codes
#
# Two lists for one molecule, the codes of its atoms and its bonds as $(i, j, b_{ij})$. Then a whole list of texts. Nothing is dropped in silence: each row ends in `rows` or in `problems`.


# %% tags=["promote"]
def _encode(
    molecule: Chem.Mol, vocabulary: Vocabulary
) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Atom codes, and bonds as (i, j, code). Raises ValueError where the molecule does not fit."""
    n = molecule.GetNumAtoms()
    if n > vocabulary.max_atoms:
        raise ValueError(f"it has {n} atoms; expected at most {vocabulary.max_atoms}")
    atoms = [vocabulary.index(atom.GetSymbol()) for atom in molecule.GetAtoms()]
    bonds = []
    for bond in molecule.GetBonds():
        kind = bond.GetBondType()
        if kind not in _BOND_TYPES:
            raise ValueError(f"a bond is {kind.name}; expected {', '.join(BONDS)}")
        bonds.append((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), _BOND_TYPES.index(kind)))
    return atoms, bonds


def encode_smiles(
    smiles: Iterable[str], vocabulary: Vocabulary
) -> tuple[Codes, list[int], list[Problem]]:
    """SMILES as codes: `(codes, rows, problems)`.

    codes     of M molecules, padded to the vocabulary's N atoms, int8
    rows      the places in the list of those molecules
    problems  every other place with its text and the reason, so that nothing is lost

    Raises ValueError for a text in place of a list, and for an empty list.
    """
    smiles, N = listed("smiles", smiles, "['CCO', 'c1ccccc1']"), vocabulary.max_atoms
    atoms = np.full((len(smiles), N), -1, dtype=np.int8)
    bonds = np.zeros((len(smiles), N, N), dtype=np.int8)
    rows, problems = [], []
    for row, text in enumerate(smiles):
        try:
            ours, pairs = _encode(parse_smiles(text, vocabulary.kekulize), vocabulary)
        except ValueError as error:
            problems.append(Problem(row, str(text), str(error)))
            continue
        m = len(rows)
        atoms[m, : len(ours)] = ours
        for i, j, kind in pairs:
            bonds[m, i, j] = bonds[m, j, i] = kind
        rows.append(row)
    M = len(rows)
    return Codes(torch.from_numpy(atoms[:M]), torch.from_numpy(bonds[:M])), rows, problems


# %%
codes, rows, problems = encode_smiles(["CCO", "not a molecule", "CC=O"], vocabulary)
rows, problems

# %%
codes.atoms

# %% [markdown]
# ### From codes to one-hot tensors
#
# Equations 1 and 2 for a batch. `F.one_hot` does not take −1, so padding is clamped to 0 first and masked away after. In code `F` is PyTorch's module of functions; the width $F$ of a token has the name `token_width` there.


# %% tags=["promote", "exercise"]
def one_hot(codes: Codes, vocabulary: Vocabulary) -> Graphs:
    """Clean graphs of the codes (equations 1 and 2 of the lesson).

    codes    (B, N) atoms and (B, N, N) bonds
    returns  X (B, N, A), E (B, N, N, K), mask (B, N): float32 one-hot, zero where there is no
             atom; the diagonal of E is zero

    Raises ValueError for a code beyond the atoms of the vocabulary.
    """
    atoms, bonds, A = codes.atoms.long(), codes.bonds.long(), len(vocabulary.atoms)
    if (atoms >= A).any():
        raise ValueError(
            f"codes has atom {int(atoms.max())}; expected at most {A - 1}, of {A} types"
        )
    mask = atoms >= 0
    X = F.one_hot(atoms.clamp(min=0), A).float() * mask[..., None]
    pairs = mask[:, :, None] & mask[:, None, :]
    pairs = pairs & ~torch.eye(atoms.shape[1], dtype=torch.bool, device=pairs.device)
    E = F.one_hot(bonds, len(BONDS)).float() * pairs[..., None]
    return Graphs(X, E, mask)


# %% tags=["check"]
tried = [example, "C", "CC(=O)OC"]
ours = one_hot(encode_smiles(tried, vocabulary)[0], vocabulary)
assert ours.mask.sum(dim=1).tolist() == [7, 1, 5], "the mask counts the atoms"
for b, text in enumerate(tried):
    X, E = encode_loop(text, vocabulary.atoms, vocabulary.max_atoms)
    assert torch.equal(ours.X[b], X), f"X of {text} is not the loop's"
    assert torch.equal(ours.E[b], E), (
        f"E of {text} is not the loop's: think of diagonal and padding"
    )
with shows_error(ValueError):
    one_hot(encode_smiles(["CF"], vocabulary)[0], Vocabulary(("C", "N"), 9))

# %% [markdown]
# The naive loop and the library on 600 molecules of QM9, and the time that each takes:

# %%
some = qm9[:600]
start = time.perf_counter()
loops = [encode_loop(text, vocabulary.atoms, N) for text in some]
middle = time.perf_counter()
batch = one_hot(encode_smiles(some, vocabulary)[0], vocabulary)
end = time.perf_counter()
assert torch.equal(torch.stack([X for X, _ in loops]), batch.X)
assert torch.equal(torch.stack([E for _, E in loops]), batch.E)
print(
    f"{len(some)} molecules equal; the loop takes {(middle - start) / (end - middle):.0f} times as long"
)

# %% [markdown]
# And the room that codes and dense graphs of the whole list need:

# %%
all_codes, _, _ = encode_smiles(qm9, vocabulary)
small = sum(part.nbytes for part in all_codes)
dense = len(qm9) * sum(part[0].nbytes for part in batch)
print(f"{len(qm9):,} molecules: codes {small / 1e6:.1f} MB, dense graphs {dense / 1e6:.1f} MB")

# %% [markdown]
# A data set stays in memory as codes; `one_hot` makes dense graphs of a batch when a model asks for them.
#
# ### And back
#
# Equation 3. The largest entry is what it takes, so it reads a model's scores too.


# %% tags=["promote", "exercise"]
def to_codes(graphs: Graphs) -> Codes:
    """The codes of graphs, one-hot or of scores (equation 3 of the lesson).

    graphs   X (B, N, A), E (B, N, N, K), mask (B, N)
    returns  int8 codes of the largest entries: atoms −1 without an atom; bonds 0 on the diagonal
             and where either atom is missing
    """
    atoms = torch.where(graphs.mask, graphs.X.argmax(-1), -1)
    pairs = graphs.mask[:, :, None] & graphs.mask[:, None, :]
    bonds = torch.where(pairs, graphs.E.argmax(-1), 0)
    bonds.diagonal(dim1=1, dim2=2).zero_()
    return Codes(atoms.to(torch.int8), bonds.to(torch.int8))


# %% tags=["check"]
few = Codes(*(part[:50] for part in all_codes))
again = to_codes(one_hot(few, vocabulary))
assert torch.equal(again.atoms, few.atoms) and torch.equal(again.bonds, few.bonds), (
    "not the inverse"
)
assert again.atoms.dtype == torch.int8, "a byte for each code"
noisy = one_hot(few, vocabulary)
everywhere = noisy._replace(X=noisy.X + 0.1, E=noisy.E + torch.tensor([0.0, 0.2, 0, 0, 0]))
scores = to_codes(everywhere)
assert torch.equal(scores.atoms, few.atoms), "padding is −1, whatever X holds there"
assert torch.equal(scores.bonds, few.bonds), "no bonds on the diagonal and to padding"

# %% [markdown]
# ### Tokens
#
# Equation 4, and its width. A model's first layer has $F$ inputs, which ties it to one vocabulary and one $N$.


# %% tags=["promote", "exercise"]
def graph_tokens(graphs: Graphs) -> Float[Tensor, "B N F"]:
    """The rows of X_G: each atom with its bonds to all N atoms (equation 4 of the lesson).

    graphs   X (B, N, A), E (B, N, N, K)
    returns  (B, N, A + K N); Section 3.1 of the paper
    """
    return torch.cat([graphs.X, graphs.E.flatten(2)], dim=-1)


# %% tags=["check"]
tokens = graph_tokens(batch)
assert tokens.shape == (600, 9, 4 + 5 * 9), "(B, N, A + K N)"
assert torch.equal(tokens[..., :4], batch.X), "the atom comes first"
for j in (0, 3, 8):
    assert torch.equal(tokens[:, :, 4 + 5 * j : 9 + 5 * j], batch.E[:, :, j]), f"block {j} is E_ij"


# %% tags=["promote"]
def token_width(vocabulary: Vocabulary) -> int:
    """F = A + K N, the width of a graph token (equation 4 of the lesson)."""
    return len(vocabulary.atoms) + len(BONDS) * vocabulary.max_atoms


# %%
assert token_width(vocabulary) == tokens.shape[-1]
print(
    f"QM9: F = {token_width(vocabulary)}; {tokens.count_nonzero() / tokens.numel():.0%} of the numbers are 1"
)

# %% [markdown]
# ### From codes to a molecule
#
# First padding is cut off; what is left are the symbols and the bonds of one molecule after the other. RDKit builds the molecule atom by atom and bond by bond.


# %% tags=["promote"]
def decode_graphs(codes: Codes, vocabulary: Vocabulary) -> Iterator[tuple[list[str], Tensor]]:
    """The symbols and the (n, n) bond codes of each molecule, without the padding."""
    for atoms, bonds in zip(codes.atoms, codes.bonds, strict=True):
        there = atoms >= 0
        symbols = [vocabulary.atoms[index] for index in atoms[there].tolist()]
        yield symbols, bonds[there][:, there]


def _atom(symbol: str) -> Chem.Atom:
    with rdBase.BlockLogs():
        try:
            return Chem.Atom(symbol)
        except RuntimeError:
            raise ValueError(f"symbols has {symbol!r}; expected an element or '*'") from None


# %% tags=["promote", "exercise"]
def to_molecule(symbols: Sequence[str], bonds: Int[Tensor, "n n"]) -> Chem.RWMol:
    """A molecule with these atoms and bonds, nothing checked and nothing corrected.

    symbols  of n atoms, such as ["C", "C", "O"]
    bonds    (n, n) index into `BONDS`; the part above the diagonal is read

    Raises ValueError for a symbol that is no element, a bond that is none, and another shape.
    """
    n = len(symbols)
    if tuple(bonds.shape) != (n, n):
        raise ValueError(
            f"bonds has shape {tuple(bonds.shape)}; expected ({n}, {n}), of the symbols"
        )
    molecule = Chem.RWMol()
    for symbol in symbols:
        molecule.AddAtom(_atom(symbol))
    kinds = bonds.tolist()
    for i, j in bonds.triu(1).nonzero().tolist():
        if not 0 <= kinds[i][j] < len(BONDS):
            raise ValueError(f"bonds has {kinds[i][j]}; expected a whole number from 0 to 4")
        molecule.AddBond(i, j, _BOND_TYPES[kinds[i][j]])
        if BONDS[kinds[i][j]] == "aromatic":
            for end in (i, j):
                molecule.GetAtomWithIdx(end).SetIsAromatic(True)
    return molecule


# %% tags=["check"]
built = to_molecule(
    ["C", "C", "O", "N"], torch.tensor([[0, 1, 0, 1], [1, 0, 2, 0], [0, 2, 0, 0], [1, 0, 0, 0]])
)
assert built.GetNumAtoms() == 4 and built.GetNumBonds() == 3, "a bond is one bond, not two"
assert Chem.CanonSmiles(Chem.MolToSmiles(built)) == "NCC=O", "read back"
ring = to_molecule(["C"] * 6, 4 * sum(torch.eye(6).roll(s, 0) for s in (1, 5)).int())
assert all(atom.GetIsAromatic() for atom in ring.GetAtoms()), "ends of aromatic bonds are aromatic"
with shows_error(ValueError):
    to_molecule(["C", "C"], torch.zeros(3, 3, dtype=torch.int8))

# %% [markdown]
# One molecule has many texts, as one can begin at any atom: `CCO` and `OCC` are both ethanol. RDKit picks one of them by rules that look at the graph alone, the **canonical** SMILES (规范SMILES). Two molecules are the same where their canonical SMILES are. To write it RDKit has to sanitize, and a molecule that is not chemically **valid** has none.


# %% tags=["promote"]
def to_smiles(molecule: Chem.Mol) -> str | None:
    """The canonical SMILES of a molecule, or None where it is not chemically valid."""
    with rdBase.BlockLogs():
        try:
            copy = Chem.Mol(molecule)
            Chem.SanitizeMol(copy)
            return Chem.MolToSmiles(copy)
        except (Chem.MolSanitizeException, RuntimeError):
            return None


# %%
for text in ("CCO", "OCC", "C1=CC=CC=C1", "CN(C)(C)C"):
    print(f"{text:>12} → {to_smiles(parse_smiles(text))}")

# %% [markdown]
# The last is `None`: that nitrogen has four bonds, one more than its valence allows. What a generator can do about such a molecule is the matter of lesson 6.
#
# Now the whole way, there and back:


# %%
def round_trip(smiles, vocabulary):
    """The canonical SMILES after the way through codes; None where it is lost on the way."""
    codes, rows, _ = encode_smiles(smiles, vocabulary)
    back = [None] * len(smiles)
    for row, graph in zip(rows, decode_graphs(codes, vocabulary), strict=True):
        back[row] = to_smiles(to_molecule(*graph))
    return back


round_trip(["OCC", example, "CC(=O)OC"], vocabulary)

# %% [markdown]
# ### Another order of the atoms
#
# Equation 5: the rows of the atoms, the rows and the columns of the bonds.


# %% tags=["promote"]
def permute_atoms(codes: Codes, order: Int[Tensor, "N"]) -> Codes:
    """The same molecules with their rows in another order (equation 5 of the lesson).

    order    (N,) π: row i of the result is row order[i]; padding moves along
    returns  codes of the same molecules

    Raises ValueError for an order that does not hold each of 0 … N − 1 once.
    """
    N = codes.atoms.shape[1]
    if sorted(order.tolist()) != list(range(N)):
        raise ValueError(f"order is {order.tolist()}; expected each of 0 … {N - 1} once")
    return Codes(codes.atoms[:, order], codes.bonds[:, order][:, :, order])


# %%
order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
one = encode_smiles([example], vocabulary)[0]
shuffled = permute_atoms(one, order)
here, there = (
    [to_smiles(to_molecule(*g)) for g in decode_graphs(c, vocabulary)] for c in (one, shuffled)
)
assert here == there == [to_smiles(parse_smiles(example))]
here, shuffled.atoms.tolist()


# %% tags=["figure"]
def draw_orders():
    figure, axes = canvas(1, 3, 7.4, 2.9, width_ratios=[3, 3, 2.6])
    moved = one_hot(shuffled, vocabulary)
    paint_bonds(axes[0], graphs, labels=list(range(N)))
    axes[0].set_title("E, as the text has it")
    paint_bonds(axes[1], moved, labels=order.tolist())
    axes[1].set_title("E in another order π")
    draw_molecule(axes[2], to_molecule(*next(decode_graphs(shuffled, vocabulary))))
    axes[2].set_title("the molecule of both")
    bond_legend(figure)
    return figure


show(
    draw_orders(),
    alt="The matrix E of the example, the same with rows and columns shuffled so that the "
    "hatched padding stands in the middle, and the molecule that both of them are",
)

# %% [markdown]
# The labels of the second matrix are the old numbers of its rows. How many orders of nine rows are there?

# %%
math.factorial(N)

# %% [markdown]
# Each is another pair of tensors, and nearly all of them look different, for one molecule. A model of graphs should not care. Graph DiT's transformer has no position embedding, so that it treats rows alike; but it reads each row's bonds from left to right, in $K N$ inputs of their own. [Lesson 4](4_denoiser.ipynb) builds that layer.
#
# ## On real input
#
# ### Two lists of molecules
#
# QM9's molecules are drawn up by a program: all small molecules of C, N, O and F that are likely stable. The other list holds compounds that were sent to the American **National Cancer Institute** to be tested, and comes with RDKit; every second of its texts is read here. How many of their texts can be read, and how many molecules are valid?

# %%
nci = nci_smiles()[::2]
lists = {"QM9": qm9, "NCI": nci}


def read_all(smiles):
    molecules = [parse_smiles(text) for text in smiles]
    valid = [to_smiles(molecule) for molecule in molecules]
    return [molecule.GetNumAtoms() for molecule in molecules], valid


sizes, canonical = {}, {}
for name, smiles in lists.items():
    sizes[name], canonical[name] = read_all(smiles)
    valid = sum(text is not None for text in canonical[name])
    few, many = min(sizes[name]), max(sizes[name])
    print(f"{name}: {len(smiles):,} texts, all read, {valid:,} valid, {few} to {many} atoms")

# %% [markdown]
# Reading is no proof of chemistry: a few texts of the NCI are graphs that no molecule has. The shortest of them, each with an atom that has too many bonds:

# %%
bad = [text for text, valid in zip(nci, canonical["NCI"], strict=True) if valid is None]
bad = sorted(bad, key=len)[:4]
show(
    molecule_grid(list(map(parse_smiles, bad)), [f"NCI row {2 * nci.index(text)}" for text in bad]),
    alt="Molecules of the NCI list in which an atom has more bonds than it can have",
)


# %% tags=["figure"]
def draw_sizes():
    figure, axes = canvas(1, 2, 7.4, 2.3)
    for each, name in zip(axes, lists, strict=True):
        each.hist(sizes[name], bins=np.arange(0.5, max(sizes[name]) + 1.5), color=ATOM_COLOURS["N"])
        each.set(title=f"{name}: {len(sizes[name]):,} molecules", xlabel="heavy atoms n")
    axes[0].set_ylabel("molecules")
    axes[1].axvline(CUT, color=ATOM_COLOURS["*"], lw=1)
    axes[1].text(CUT + 1.5, axes[1].get_ylim()[1] * 0.8, f"cut at N = {CUT}", size=8)
    return figure


CUT = 38
show(
    draw_sizes(),
    alt="Histograms of the sizes: QM9 piles up at nine atoms; the NCI has a hump near 15 atoms and "
    "a long tail of large molecules, cut by a line at 38",
)

# %% [markdown]
# QM9 stops at nine, where it has most. The NCI has a long tail, and $N$ pays for it: all graphs are as large as the largest one. A cut loses few molecules and saves most of the room.

# %%
nci_vocabulary = find_vocabulary(nci, max_atoms=CUT)
nci_codes, rows, problems = encode_smiles(nci, nci_vocabulary)
print(
    f"{len(rows):,} of {len(nci):,} encoded, {len(problems)} too large; {len(nci_vocabulary.atoms)} atom types"
)
for limit in (CUT, max(sizes["NCI"])):
    floats = limit * token_width(Vocabulary(nci_vocabulary.atoms, limit))
    print(f"N = {limit}: {4 * floats / 1e3:.0f} kB for a dense graph")

# %%
print(" ".join(nci_vocabulary.atoms))

# %% [markdown]
# Most of these atoms occur a few times in the list. A model has to give each a column all the same.
#
# ### A batch
#
# Four molecules of different sizes, as they stand in a batch:

# %%
four = ["CC#N", "CC(=O)C=O", "c1ccoc1", "OC1CC2CCC1O2"]
four_graphs = one_hot(encode_smiles(four, vocabulary)[0], vocabulary)
four_graphs.mask.sum(dim=1)


# %% tags=["figure"]
def draw_batch():
    figure, axes = canvas(2, len(four), 7.4, 4.1, height_ratios=[2, 3])
    for b, text in enumerate(four):
        draw_molecule(axes[0, b], text)
        axes[0, b].set_title(text)
        paint_bonds(axes[1, b], four_graphs, b)
        axes[1, b].set_xlabel(f"n = {four_graphs.mask[b].sum()} of N = {N}")
    axes[1, 0].set_ylabel("E")
    bond_legend(figure)
    return figure


show(
    draw_batch(),
    alt="Four molecules and their matrices E, in which the hatched padding takes the more room the "
    "smaller the molecule is",
)

# %% [markdown]
# Look for the furan, the third: the five bonds of its ring are aromatic, and they make a band beside the diagonal with two corners where the ring closes. Its oxygen atom is no carbon, but $E$ does not say so; $X$ does.
#
# ### There and back
#
# Which share of the molecules is the same after the way to codes and back, first with aromatic bonds as they are written, as released, then in Kekulé form? For each molecule that is lost, its canonical text says what it holds that a graph does not: a charge, written `+]` or `-]`, or a hydrogen atom that the text has to write, `[nH]`.


# %%
def fate(before, after, n):
    """What became of a molecule on the way there and back."""
    if before is None:
        return "not valid"
    if n > CUT:
        return "too large"
    if before == after:
        return "the same"
    if "+]" in before or "-]" in before:
        return "lost, charge"
    return "lost, [nH]" if "[nH]" in before else "lost, other"


vocabularies, fates = {"QM9": vocabulary, "NCI": nci_vocabulary}, {}
for name, smiles in lists.items():
    for form, kekulize in (("as written", False), ("Kekulé", True)):
        words = Vocabulary(vocabularies[name].atoms, vocabularies[name].max_atoms, kekulize)
        after = round_trip(smiles, words)
        fates[name, form] = list(map(fate, canonical[name], after, sizes[name]))
        counts = Counter(fates[name, form])
        print(f"{name} {form}: {counts['the same'] / len(smiles):.1%} the same;", dict(counts))


# %% tags=["figure"]
def draw_fates():
    figure, axes = canvas(1, 1, 7.4, 2.2)
    inks = {
        "lost, [nH]": ATOM_COLOURS["N"],
        "lost, charge": ATOM_COLOURS["O"],
        "lost, other": ATOM_COLOURS["S"],
        "too large": "#9a9a9a",
        "not valid": "#4a4a4a",
    }
    for y, each in enumerate(fates.values()):
        counts, left = Counter(each), 0
        for kind, ink in inks.items():
            share = 100 * counts[kind] / len(each)
            axes.barh(y, share, left=left, color=ink, height=0.6, label=kind if y == 0 else None)
            left += share
        axes.text(left + 0.2, y, f"{100 - left:.1f} % the same", va="center", size=8)
    axes.set_yticks(range(len(fates)), [f"{name}, {form}" for name, form in fates])
    axes.set(xlabel="molecules that are not the same afterwards (%)", xlim=(0, 20))
    axes.invert_yaxis()
    axes.legend(loc="upper right", fontsize=8, frameon=False)
    return figure


show(
    draw_fates(),
    alt="Four bars: of QM9 as written 6 % are lost, most of them for a missing hydrogen; in Kekulé "
    "form few; of the NCI a seventh is lost in either form, most for a missing charge",
)

# %% [markdown]
# Two things are lost, and each has its own cause.
#
# **The hydrogen of an aromatic nitrogen.** In an aromatic ring a nitrogen atom may have two neighbours and no hydrogen, or two neighbours and one, and its valence is met both times. The text tells them apart, `n` and `[nH]`; the graph does not. RDKit reads the graph with no hydrogen, and finds no way to place the double bonds. In Kekulé form the bonds of such a nitrogen are single, and the valence brings its hydrogen back.
#
# **Charges.** A nitro group is written with a charge at the nitrogen and another at the oxygen. Without them the nitrogen has one bond too many. Kekulé forms do not help. QM9 has few charges and the NCI many.
#
# Why does the Kekulé form change nothing for the NCI? Its texts are in Kekulé form already. "As written" depends on who wrote:

# %%
for name, smiles in lists.items():
    bonds = Counter(b.GetBondType().name for text in smiles for b in parse_smiles(text).GetBonds())
    print(f"{name}: {bonds['AROMATIC']:,} aromatic bonds of {bonds.total():,}")

# %%
signs = {
    "an [nH]": "[nH]",
    "a nitro group": "[N+](=O)[O-]",
    "two charges": "[NH3+]",
    "four bonds": "[N+](C)(C)",
}
lost = [
    before
    for name in lists
    for before, kind in zip(canonical[name], fates[name, "as written"], strict=True)
    if kind.startswith("lost")
]
shown = {}
for what, sign in signs.items():
    shown[what] = min((text for text in lost if sign in text), key=len)
shown

# %%
words = find_vocabulary(shown.values())
graphs_of = list(decode_graphs(encode_smiles(shown.values(), words)[0], words))
molecules = [to_molecule(*graph) for graph in graphs_of]
what_is_left = [to_smiles(molecule) or "not valid" for molecule in molecules]
show(
    molecule_grid([*shown.values(), *molecules], [*shown, *what_is_left]),
    alt="Above four molecules with their hydrogen atoms and charges, below what their graphs say, "
    "in which both are missing",
)

# %% [markdown]
# The upper row is the molecules, the lower row what their graphs say. Not all losses are noticed: the third is valid afterwards, and is another molecule.
#
# ### What the release's count loses
#
# Eight polymers, with the number of nodes of their graphs, and with what RDKit's `GetNumHeavyAtoms` counts, which is what the release takes for $n$:

# %%
polymers = {
    "*CC*": "polyethylene",
    "*CC(*)C": "polypropylene",
    "*CC(*)Cl": "PVC",
    "*OCC*": "poly(ethylene oxide)",
    "*C(F)(F)C(*)(F)F": "Teflon",
    "*CC(*)(C)C(=O)OC": "acrylic glass",
    "*CC(*)c1ccccc1": "polystyrene",
    "*NCCCCCC(*)=O": "nylon 6",
}
units = [parse_smiles(text) for text in polymers]
nodes = [unit.GetNumAtoms() for unit in units]
heavy = [unit.GetNumHeavyAtoms() for unit in units]
labels = [
    f"{name}\nn = {n}, heavy {h}"
    for name, n, h in zip(polymers.values(), nodes, heavy, strict=True)
]
show(
    molecule_grid(units, labels),
    alt="The repeat units of eight polymers, each with two end marks; the count of heavy atoms is "
    "two below the number of nodes",
)

# %% [markdown]
# The atomic number of `*` is 0, so it is not heavy to RDKit, and each polymer is two nodes short. Three things follow. The largest graph of the data does not fit in $N$; the release cuts what is too much, and the course says so:

# %%
short = Vocabulary(find_vocabulary(polymers).atoms, max_atoms=max(heavy))
[(problem.row, problem.reason) for problem in encode_smiles(polymers, short)[2]]

# %% [markdown]
# New molecules are drawn with a number of atoms that comes from these counts, so they are two too small. And the share of each bond type, $m_E$, is off. It is counted over ordered pairs of atoms, $n(n - 1)$ for each molecule, and the pairs without a bond are what is left of them when the bonds, in both directions, are taken out:


# %%
def bond_shares(molecules, counts):
    """The share of each bond type among ordered pairs, for these numbers of atoms."""
    found = Counter(b.GetBondType().name for molecule in molecules for b in molecule.GetBonds())
    with_bond = {name: 2 * found[name.upper()] for name in BONDS[1:]}
    pairs = sum(n * (n - 1) for n in counts)
    none = pairs - sum(with_bond.values())
    return {name: count / pairs for name, count in {"none": none, **with_bond}.items()}


counted, released = bond_shares(units, nodes), bond_shares(units, heavy)
for name in BONDS:
    print(f"{name:>9}: {counted[name]:6.1%} with *, {released[name]:6.1%} as the release counts")

# %% [markdown]
# The bonds to `*` are counted, the pairs that they belong to are not. For polyethylene alone the result is no probability:

# %%
bond_shares(units[:1], heavy[:1])

# %% [markdown]
# The first column is the course's count. [Lesson 3](3_noise.ipynb) counts in this way, and has a flag `released` for the other one.
#
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `one_hot` | 12 | ●●○ |
# | `to_codes` | 10 | ●●○ |
# | `graph_tokens` | 4 | ●○○ |
# | `to_molecule` | 14 | ●●○ |
#
# <details><summary>Hint for <code>one_hot</code></summary>
#
# `F.one_hot(atoms.clamp(min=0), A)` takes padding for type 0; multiply by `mask[..., None]`. For the pairs, `mask[:, :, None] & mask[:, None, :]`, without `torch.eye`.
#
# </details>
#
# <details><summary>Hint for <code>to_codes</code></summary>
#
# `torch.where(mask, largest, -1)`. The diagonal of a batch of matrices is `bonds.diagonal(dim1=1, dim2=2)`, and `zero_()` writes into it.
#
# </details>
#
# <details><summary>Hint for <code>graph_tokens</code></summary>
#
# `E.flatten(2)` is (B, N, N K).
#
# </details>
#
# <details><summary>Hint for <code>to_molecule</code></summary>
#
# `bonds.triu(1).nonzero()` are the pairs (i, j) with a bond and i < j. An RDKit molecule wants the aromatic flag at both ends of an aromatic bond as well: `GetAtomWithIdx(i).SetIsAromatic(True)`.
#
# </details>
#
# **Predict.** The paper's polymers have 11 atom types, and at most 50 atoms with `*` (measured on its data set). How wide is a token? How many numbers of it does a wrong $N$ of 48 lose, and could weights trained with the one be used with the other?
#
# <details><summary>Hint</summary>
#
# Equation 4.
#
# </details>
#
# <details><summary>Answer</summary>
#
# $F = 11 + 5 \cdot 50 = 261$, against 251. The first and the last layer have $F$ inputs and outputs, so their weights do not fit.
#
# </details>

# %% tags=["nbval-check-output"]
types = ("C", "N", "O", "F", "Si", "P", "S", "Cl", "Ge", "Br", "*")
[token_width(Vocabulary(types, limit)) for limit in (50, 48)]

# %% [markdown]
# **Find the bug.** A colleague writes the bonds of a molecule in a line less. Chains come back as they should. What is wrong, which molecules show it, and what would be wrong even where the way back succeeds?


# %%
def bonds_colleague(smiles):
    molecule = parse_smiles(smiles)
    bonds = torch.zeros(molecule.GetNumAtoms(), molecule.GetNumAtoms(), dtype=torch.int8)
    for bond in molecule.GetBonds():
        bonds[bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()] = BONDS.index(
            bond.GetBondType().name.lower()
        )
    return [atom.GetSymbol() for atom in molecule.GetAtoms()], bonds


assert to_smiles(to_molecule(*bonds_colleague("CC(=O)OC"))) == to_smiles(parse_smiles("CC(=O)OC"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which of the two ends of a bond does RDKit name first? Print them for `C1CC1`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Each bond is written in one direction. The way back reads the part above the diagonal, and finds the bonds of a chain there. The bond that closes a ring begins at its later atom, stands below the diagonal, and is lost: the ring opens. And even in a chain one of the two atoms has a token that knows nothing of the bond.
#
# </details>

# %% tags=["nbval-check-output"]
print(
    to_smiles(parse_smiles("C1CC1")), "becomes", to_smiles(to_molecule(*bonds_colleague("C1CC1")))
)
wrong = [
    to_smiles(to_molecule(*bonds_colleague(text))) != to_smiles(parse_smiles(text)) for text in some
]
print(f"{sum(wrong)} of {len(some)} molecules change")

# %% [markdown]
# **Measure.** Which $N$ keeps 99 % of the NCI's molecules, and how much smaller is a dense graph than with the largest $N$?
#
# <details><summary>Hint</summary>
#
# `np.quantile` of the sizes; a dense graph has $N F$ numbers.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The cell below. The room grows with $N^2$, so the largest hundredth of the molecules costs most of it.
#
# </details>

# %% tags=["nbval-check-output"]
limit = int(np.quantile(sizes["NCI"], 0.99))
room = [N * token_width(Vocabulary(nci_vocabulary.atoms, N)) for N in (limit, max(sizes["NCI"]))]
print(f"N = {limit}: a dense graph is {room[1] / room[0]:.1f} times smaller")

# %% [markdown]
# ## What breaks
#
# ### Texts that cannot be used
#
# A list as it comes from a file: a name that is no SMILES, an atom that the model does not know, a molecule that is too large, a missing value, a kind of bond that is not among the five, hydrogen alone. `encode_smiles` returns what can be used, and says of each other row why not:

# %%
mixed = ["CCO", "aspirin", "C[Si](C)C", "CCCCCCCCCC", float("nan"), "C$C", "[H][H]", "CC=O"]
codes, rows, problems = encode_smiles(mixed, vocabulary)
print("used:", rows)
for problem in problems:
    print(f"row {problem.row}, {problem.smiles}: {problem.reason}")

# %% [markdown]
# Chemistry is not checked here, unless Kekulé forms are asked for, as only valid molecules have one:

# %%
too_many = "CC(C)(C)(C)C"
for kekulize in (False, True):
    words = Vocabulary(vocabulary.atoms, vocabulary.max_atoms, kekulize)
    print(kekulize, [problem.reason for problem in encode_smiles([too_many], words)[2]])

# %% [markdown]
# ### One molecule, three graphs
#
# The same ring with two CH₃ groups, written in three ways:

# %%
writings = ["Cc1ccccc1C", "CC1=C(C)C=CC=C1", "CC1=CC=CC=C1C"]
assert len({to_smiles(parse_smiles(text)) for text in writings}) == 1
for kekulize in (False, True):
    graphs_of = {Chem.MolToSmiles(parse_smiles(text, kekulize)) for text in writings}
    print(f"kekulize={kekulize}: {len(graphs_of)} different graphs", sorted(graphs_of))

# %%
words = Vocabulary(("C",), 8)
three = one_hot(encode_smiles(writings, words)[0], words)


# %% tags=["figure"]
def draw_writings():
    figure, axes = canvas(1, 3, 7.4, 2.9)
    for b, text in enumerate(writings):
        paint_bonds(axes[b], three, b)
        axes[b].set_title(text)
    bond_legend(figure)
    return figure


show(
    draw_writings(),
    alt="Three different matrices E of one molecule: aromatic bonds in the first, single and double "
    "bonds in two arrangements in the others",
)

# %% [markdown]
# With texts from different sources a model would have to learn three graphs for one molecule. A list whose texts were all written by one program has one way of writing, and the QM9 of the course has: RDKit's canonical one. `kekulize=True` first finds the aromatic rings, then chooses one of the two forms by itself, and gives one graph for all three.

# %%
assert canonical["QM9"] == qm9

# %% [markdown]
# ### Without the mask
#
# The largest entry of a row of zeros is its first. So a reader that forgets the mask finds atoms of type 0 in the padding, and type 0 is carbon:

# %%
unmasked = graphs._replace(mask=torch.ones_like(graphs.mask))
((symbols, bonds),) = decode_graphs(to_codes(unmasked), vocabulary)
to_smiles(to_molecule(symbols, bonds))

# %% [markdown]
# A dot in a SMILES parts two molecules: two of methane have appeared. No error is raised, and the result is valid. Most wrong tensors make a valid molecule of some kind, so validity is a weak test.
#
# ### Two conventions for the diagonal
#
# In a clean graph the diagonal of $E$ is zero. In a noised one, in the release, it is class 0, "no bond", as a side effect of an argmax over zeros. A model sees noised graphs when it learns and when it draws, never clean ones; the clean ones are what the loss compares with. `to_codes` reads both alike, and the tokens differ in one number for each atom:

# %%
released_E = graphs.E.clone()
released_E.diagonal(dim1=1, dim2=2)[:, 0] = 1
like_noised = graphs._replace(
    E=released_E * (graphs.mask[:, :, None] & graphs.mask[:, None, :])[..., None]
)
assert torch.equal(to_codes(like_noised).bonds, to_codes(graphs).bonds)
[graph_tokens(each).sum(dim=-1)[0].int().tolist() for each in (graphs, like_noised)]

# %% [markdown]
# ### What the code says to bad input

# %%
with shows_error(ValueError):
    encode_smiles("CCO", vocabulary)
with shows_error(ValueError):
    find_vocabulary([])
with shows_error(ValueError):
    find_vocabulary(["aspirin", "caffeine"])
with shows_error(ValueError):
    vocabulary.index("Si")
with shows_error(ValueError):
    Vocabulary(("C", "C"), 9)
with shows_error(ValueError):
    to_molecule(["C", "Q"], torch.zeros(2, 2, dtype=torch.int8))
with shows_error(ValueError):
    permute_atoms(one, torch.zeros(N, dtype=torch.long))

# %% [markdown]
# ## Recap
#
# - A molecule is a graph: atoms $X$, bonds $E$, a mask; one-hot, padded to $N$. Codes store it in a byte a number, tokens $[\, X_i \,|\, E_i \,]$ of width $A + K N$ are what the transformer reads.
# - Hydrogen and charges are left out, and the valence has to bring them back. It fails for `[nH]` in aromatic rings, which the Kekulé form repairs, and for charges, which it does not.
# - `*` is a node. The release's count leaves it out, and sizes and bond shares are off.
#
# The line goes on in [lesson 3](3_noise.ipynb), where these graphs are taken apart by noise.
