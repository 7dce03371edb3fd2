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
# **After this lesson you can** write a molecule as one-hot tensors and read it back.
#
# *Before this:* nothing.

# %% [markdown]
# ## Code

# %%
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from rdkit import Chem, rdBase
from torch import Tensor

from fourfold.kit.arguments import listed

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


# %% tags=["promote"]
class Graphs(NamedTuple):
    """B molecules as dense one-hot tensors, padded to N atoms.

    X     (B, N, A) atom types, one-hot; zero where there is no atom
    E     (B, N, N, 5) bond types of `BONDS`, one-hot and symmetric; class 0 where two atoms have
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


# %% tags=["promote"]
class Codes(NamedTuple):
    """M molecules as small whole numbers: what a data set keeps in memory.

    atoms  (M, N) index into the vocabulary's atoms, −1 where there is none
    bonds  (M, N, N) index into `BONDS`
    """

    atoms: Int[Tensor, "M N"]
    bonds: Int[Tensor, "M N N"]


# %% tags=["promote"]
@dataclass(frozen=True)
class Vocabulary:
    """The atom types that a model knows, and the most atoms that a graph may have.

    atoms      symbols by rising atomic number, `*` last
    max_atoms  N, to which every graph is padded
    kekulize   write aromatic rings as alternating single and double bonds; the release does not
    """

    atoms: tuple[str, ...]
    max_atoms: int
    kekulize: bool = False

    def index(self, symbol: str) -> int:
        """The place of an atom's symbol. Raises ValueError for one that is not among `atoms`."""
        if symbol not in self.atoms:
            raise ValueError(
                f"atom {symbol!r} is not in the vocabulary; expected one of {', '.join(self.atoms)}"
            )
        return self.atoms.index(symbol)


# %% tags=["promote"]
class Problem(NamedTuple):
    """A SMILES that could not be used: its row in the list, its text, and why."""

    row: int
    smiles: str
    reason: str


# %% tags=["promote"]
def parse_smiles(smiles: str, kekulize: bool = False) -> Chem.Mol:
    """The molecule of a SMILES as a graph: heavy atoms and `*`, without explicit hydrogens.

    Aromatic bonds stay aromatic, and nothing is checked chemically, as released, unless
    `kekulize` asks for alternating bonds, which only a chemically valid molecule has.
    Raises ValueError for a text that RDKit cannot read.
    """
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles, sanitize=False) if isinstance(smiles, str) else None
        if molecule is None or molecule.GetNumAtoms() == 0:
            raise ValueError("it is not a SMILES that RDKit can read")
        if kekulize:
            try:
                Chem.SanitizeMol(molecule)
                Chem.Kekulize(molecule, clearAromaticFlags=True)
            except (Chem.MolSanitizeException, Chem.KekulizeException) as error:
                raise ValueError(f"it is not chemically valid ({error})") from None
    hydrogens = [atom.GetIdx() for atom in molecule.GetAtoms() if atom.GetAtomicNum() == 1]
    if hydrogens:
        molecule = Chem.RWMol(molecule)
        for index in reversed(hydrogens):
            molecule.RemoveAtom(index)
    return molecule


# %% tags=["promote"]
def find_vocabulary(
    smiles: Iterable[str], *, max_atoms: int | None = None, kekulize: bool = False
) -> Vocabulary:
    """The vocabulary of a list of SMILES: the atoms that occur, by rising atomic number.

    `max_atoms` is N; the largest molecule decides where it is not given, and larger molecules do
    not count where it is. SMILES that cannot be read do not count.
    Raises ValueError where no molecule is left.
    """
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


# %% tags=["promote"]
def encode_smiles(
    smiles: Iterable[str], vocabulary: Vocabulary
) -> tuple[Codes, list[int], list[Problem]]:
    """SMILES as codes: `(codes, rows, problems)`.

    `rows` are the places in the list of the molecules in `codes`; every other one is in
    `problems` with its reason, so that nothing is lost.
    """
    atoms, bonds, rows, problems = [], [], [], []
    for row, text in enumerate(listed("smiles", smiles, "['CCO', 'c1ccccc1']")):
        try:
            one, two = _encode(parse_smiles(text, vocabulary.kekulize), vocabulary)
        except ValueError as error:
            problems.append(Problem(row, str(text), str(error)))
            continue
        atoms.append(one)
        bonds.append(two)
        rows.append(row)
    N = vocabulary.max_atoms
    empty = Codes(torch.zeros(0, N, dtype=torch.int8), torch.zeros(0, N, N, dtype=torch.int8))
    codes = Codes(torch.stack(atoms), torch.stack(bonds)) if atoms else empty
    return codes, rows, problems


# %% tags=["promote"]
def _encode(molecule: Chem.Mol, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Atom and bond codes of one molecule, padded. Raises ValueError where it does not fit."""
    N, n = vocabulary.max_atoms, molecule.GetNumAtoms()
    if n > N:
        raise ValueError(f"it has {n} atoms; expected at most {N}")
    atoms = torch.full((N,), -1, dtype=torch.int8)
    bonds = torch.zeros(N, N, dtype=torch.int8)
    symbols = [vocabulary.index(atom.GetSymbol()) for atom in molecule.GetAtoms()]
    atoms[:n] = torch.tensor(symbols, dtype=torch.int8)
    for bond in molecule.GetBonds():
        if bond.GetBondType() not in _BOND_TYPES:
            raise ValueError(f"a bond is {bond.GetBondType().name}; expected {', '.join(BONDS)}")
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bonds[i, j] = bonds[j, i] = _BOND_TYPES.index(bond.GetBondType())
    return atoms, bonds


# %% tags=["promote"]
def one_hot(codes: Codes, vocabulary: Vocabulary) -> Graphs:
    """Clean graphs of the codes: one-hot, the diagonal of E zero, zero where there is no atom."""
    atoms, bonds = codes.atoms.long(), codes.bonds.long()
    mask = atoms >= 0
    X = F.one_hot(atoms.clamp(min=0), len(vocabulary.atoms)).float() * mask[..., None]
    pairs = mask[:, :, None] & mask[:, None, :]
    pairs = pairs & ~torch.eye(atoms.shape[1], dtype=torch.bool, device=pairs.device)
    E = F.one_hot(bonds, len(BONDS)).float() * pairs[..., None]
    return Graphs(X, E, mask)


# %% tags=["promote"]
def to_codes(graphs: Graphs) -> Codes:
    """The codes of graphs, one-hot or of scores: the largest entry of each atom and pair."""
    atoms = torch.where(graphs.mask, graphs.X.argmax(-1), -1)
    pairs = graphs.mask[:, :, None] & graphs.mask[:, None, :]
    bonds = torch.where(pairs, graphs.E.argmax(-1), 0)
    bonds.diagonal(dim1=1, dim2=2).zero_()
    return Codes(atoms.to(torch.int8), bonds.to(torch.int8))


# %% tags=["promote"]
def graph_tokens(graphs: Graphs) -> Float[Tensor, "B N F"]:
    """The rows of X_G: each atom with its bonds to all N atoms, `F = A + 5N` (Section 3.1)."""
    return torch.cat([graphs.X, graphs.E.flatten(2)], dim=-1)


# %% tags=["promote"]
def decode_graphs(codes: Codes, vocabulary: Vocabulary) -> Iterator[tuple[list[str], Tensor]]:
    """The symbols and the (n, n) bond codes of each molecule, without the padding."""
    for atoms, bonds in zip(codes.atoms, codes.bonds, strict=True):
        there = atoms >= 0
        symbols = [vocabulary.atoms[index] for index in atoms[there].tolist()]
        yield symbols, bonds[there][:, there]


# %% tags=["promote"]
def to_molecule(symbols: Sequence[str], bonds: Int[Tensor, "n n"]) -> Chem.RWMol:
    """A molecule with these atoms and bonds, nothing checked and nothing corrected."""
    molecule = Chem.RWMol()
    for symbol in symbols:
        molecule.AddAtom(Chem.Atom(symbol))
    for i, j in bonds.triu(1).nonzero().tolist():
        molecule.AddBond(i, j, _BOND_TYPES[int(bonds[i, j])])
        if bonds[i, j] == BONDS.index("aromatic"):
            for end in (i, j):
                molecule.GetAtomWithIdx(end).SetIsAromatic(True)
    return molecule


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
