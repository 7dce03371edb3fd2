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
# # Noise: atoms and bonds that forget together
#
# **After this lesson you can** write the graph-dependent noise and its posterior, in matrix form and factored.
#
# *Before this:* nothing.

# %% [markdown]
# ## Code

# %%
import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fourfold.graph_dit.graphs import BONDS, Codes, Graphs, Vocabulary
from fourfold.kit.arguments import whole_number

# %% tags=["promote"]
KINDS = ("graph", "independent", "corrected")


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
    """Marginals and co-occurrences of a data set (Section 3.1; `compute_meta` of the release).

    `released` leaves the attachment points `*` of a polymer out where the release does: in the
    number of atoms that bonds and sizes are counted with.
    Raises ValueError for codes without a molecule.
    """
    if len(codes.atoms) == 0:
        raise ValueError("codes holds no molecule; expected one or more")
    atoms, A, N = codes.atoms.long(), len(vocabulary.atoms), vocabulary.max_atoms
    there = atoms >= 0
    counted = (
        there & (atoms != vocabulary.index("*")) if released and "*" in vocabulary.atoms else there
    )
    sizes = counted.sum(dim=1)
    pairs = _count_pairs(codes, A)
    bonds = pairs.sum(dim=(0, 1))
    bonds[0] = (sizes * (sizes - 1)).sum() - bonds[1:].sum()
    xe, ex = _released_conditionals(pairs)
    parts = (
        torch.bincount(atoms[there], minlength=A) / there.sum(),
        bonds / bonds.sum(),
        xe,
        ex,
        pairs.sum(dim=1),
        torch.bincount(sizes, minlength=N + 1) / len(sizes),
    )
    return GraphStatistics(*(part.float() for part in parts))


# %% tags=["promote"]
def _count_pairs(codes: Codes, A: int) -> Float[Tensor, "A A K"]:
    """How many ordered pairs of atoms (a, b) have a bond k."""
    atoms, bonds, K = codes.atoms.long(), codes.bonds.long(), len(BONDS)
    a, b = atoms[:, :, None].expand_as(bonds), atoms[:, None, :].expand_as(bonds)
    real = (a >= 0) & (b >= 0) & ~torch.eye(atoms.shape[1], dtype=torch.bool)
    index = ((a * A + b) * K + bonds)[real]
    return torch.bincount(index, minlength=A * A * K).view(A, A, K).double()


# %% tags=["promote"]
def _released_conditionals(pairs: Float[Tensor, "A A K"]) -> tuple[Tensor, Tensor]:
    """P(bond | atom) and P(atom | bond), with equal weight for rare and common atom types."""
    filled = pairs.clone()
    filled[..., 0] += pairs.sum(dim=-1) == 0  # a pair of types that never meets has no bond
    given = (filled / filled.sum(dim=-1, keepdim=True)).sum(dim=1)
    # A bond type that never occurs has no atom distribution; its row stays zero.
    return given / given.sum(dim=1, keepdim=True), given.T / given.T.sum(dim=1, keepdim=True).clamp(
        min=1e-12
    )


# %% tags=["promote"]
def cosine_schedule(steps: int, offset: float = 0.008) -> tuple[Tensor, Tensor]:
    """`(beta, alpha_bar)` for t = 0 … T: how much each step replaces, and what has survived.

    The cosine of Nichol and Dhariwal (2021), in the release's indexing.
    """
    T = whole_number("steps", steps, least=1)
    x = torch.linspace(0, T + 2, T + 2, dtype=torch.float64)
    survived = torch.cos(0.5 * math.pi * (x / (T + 2) + offset) / (1 + offset)) ** 2
    beta = (1 - survived[1:] / survived[:-1]).clamp(0, 1)
    return beta.float(), (1 - beta).log().cumsum(0).exp().float()


# %% tags=["promote"]
class GraphNoise:
    """Discrete noise on molecular graphs: forward distribution and posterior, in factored form.

    kind "graph" is the paper's Q_G (equations 5 and 6): atoms and bonds of a row mix.
    kind "independent" is DiGress's: every atom and bond goes to its own marginal.
    kind "corrected" is this course's: an atom or bond goes to a mixture of the marginal and what
    its neighbours in the clean graph suggest, with conditionals weighted by frequency.

    statistics  of the data set
    steps       T; times are whole numbers 0 … T
    share       in "corrected": how much of the limit the neighbours decide
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
        self.statistics, self.steps, self.kind, self.share = statistics, steps, kind, share
        self.beta, self.alpha_bar = cosine_schedule(steps)
        xe, ex = statistics.bond_given_atom, statistics.atom_given_bond
        if kind == "corrected":
            counts = statistics.counts
            xe = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
            ex = counts.T / counts.T.sum(dim=1, keepdim=True).clamp(min=1)
        self.bond_given_atom, self.atom_given_bond = xe, ex

    def q(self, graph: Graphs, t: Int[Tensor, "B"]) -> tuple[Tensor, Tensor]:
        """The distribution of the noised graph at time t (equation 6): `(pX, pE)`.

        Normalised for every atom and every slot; uniform where there is no atom and on the
        diagonal, as released.
        """
        survived = self._at(self.alpha_bar, t, graph)
        pX, pE = self._blend(survived, graph.X, graph.E, self._context(graph))
        return _normalised(pX, pE, graph.mask)

    def reverse(
        self,
        graph: Graphs,
        pX0: Float[Tensor, "B N A"],
        pE0: Float[Tensor, "B N N K"],
        s: Int[Tensor, "B"],
        t: Int[Tensor, "B"],
    ) -> tuple[Tensor, Tensor]:
        """The distribution of the graph at time s < t, given it at t and a guess of the clean one.

        `pX0` and `pE0` are probabilities for each atom and slot. The release's sum over all
        possible clean rows, of F = A + K N entries, in time and memory O(N) for a row.
        """
        kept_s, kept_t = self._at(self.alpha_bar, s, graph), self._at(self.alpha_bar, t, graph)
        context = self._context(Graphs(pX0, pE0, graph.mask))
        back_X, back_E = self._mix_back(graph.X, graph.E, context)
        step = kept_t / kept_s  # 1 − β, of one step or of several at once
        guess_X = pX0 / _nonzero(_between(kept_t, graph.X, back_X))
        guess_E = pE0 / _nonzero(_between(kept_t, graph.E, back_E))
        ahead_X, ahead_E = self._blend(kept_s, guess_X, guess_E, context)
        pX = _between(step, graph.X, back_X) * ahead_X
        pE = _between(step, graph.E, back_E) * ahead_E
        return _normalised(pX, pE, graph.mask)

    def limit(self) -> tuple[Float[Tensor, "A"], Float[Tensor, "K"]]:
        """The distributions of an atom and of a bond that sampling starts from."""
        return self.statistics.atoms, self.statistics.bonds

    def matrix(self, t: int, s: int = 0) -> Float[Tensor, "F F"]:
        """The whole transition matrix from s to t over rows of X_G, F = A + K N: the naive form.

        `matrix(t)` is Q̄_t. Raises ValueError for kind "corrected", whose limit depends on the
        graph, so that it has no one matrix.
        """
        kept = self.alpha_bar[t] / self.alpha_bar[s] if s else self.alpha_bar[t]
        u = self._limit_matrix()
        return kept * torch.eye(len(u)) + (1 - kept) * u

    def _limit_matrix(self) -> Float[Tensor, "F F"]:
        """u of equation 5: what every row turns into when nothing survives."""
        m_X, m_E = self.limit()
        N, A, K = len(self.statistics.sizes) - 1, len(m_X), len(m_E)
        if self.kind == "corrected":
            raise ValueError("kind is 'corrected'; expected 'graph' or 'independent' for a matrix")
        if self.kind == "independent":
            return torch.block_diag(m_X.expand(A, A), *[m_E.expand(K, K)] * N)
        top = torch.cat([m_X.expand(A, A), self.bond_given_atom.tile(1, N)], dim=1)
        below = torch.cat([self.atom_given_bond.tile(N, 1), m_E.tile(K * N, N)], dim=1)
        return torch.cat([top, below])

    def _blend(self, kept: Tensor, X: Tensor, E: Tensor, context) -> tuple[Tensor, Tensor]:
        """The rows times Q̄: the share `kept` stays, the rest goes where `_mix` says."""
        mixed_X, mixed_E = self._mix(X, E, context)
        return _between(kept, X, mixed_X), _between(kept, E, mixed_E)

    def _mix(self, X: Tensor, E: Tensor, context) -> tuple[Tensor, Tensor]:
        """The rows times u; in kind "graph" the E part is the same for all slots of a row."""
        if context is not None:
            limit_X, limit_E = context
            return X.sum(-1, keepdim=True) * limit_X, E.sum(-1, keepdim=True) * limit_E
        m_X, m_E = self.limit()
        slots = E.sum(dim=2)
        mixed_X = X.sum(-1, keepdim=True) * m_X + slots @ self.atom_given_bond
        mixed_E = X @ self.bond_given_atom + slots.sum(-1, keepdim=True) * m_E
        return mixed_X, mixed_E[:, :, None]

    def _mix_back(self, X: Tensor, E: Tensor, context) -> tuple[Tensor, Tensor]:
        """The rows times the transpose of u."""
        if context is not None:
            limit_X, limit_E = context
            return (X * limit_X).sum(-1, keepdim=True), (E * limit_E).sum(-1, keepdim=True)
        m_X, m_E = self.limit()
        slots = E.sum(dim=2)
        back_X = (X @ m_X)[..., None] + slots @ self.bond_given_atom.T
        back_E = X @ self.atom_given_bond.T + (slots @ m_E)[..., None]
        return back_X, back_E[:, :, None]

    def _context(self, graph: Graphs) -> tuple[Tensor, Tensor] | None:
        """Where each atom and bond goes when nothing survives; None in kind "graph"."""
        m_X, m_E = self.limit()
        if self.kind == "graph":
            return None
        if self.kind == "independent":
            return m_X, m_E
        real = _pairs(graph.mask)[..., None]
        near = (graph.E * real).sum(dim=2) / real.sum(dim=2).clamp(min=1)
        hint = graph.X @ self.bond_given_atom
        both = (hint[:, :, None] + hint[:, None, :]) / 2
        # A lone atom has no neighbour to follow.
        share = self.share * (near.sum(dim=-1, keepdim=True) > 0)
        limit_X = (1 - share) * m_X + share * (near @ self.atom_given_bond)
        return limit_X, (1 - self.share) * m_E + self.share * both

    def _at(self, table: Tensor, t: Tensor, graph: Graphs) -> Float[Tensor, "B 1 1"]:
        return table.to(graph.X.device)[t.to(graph.X.device)].view(-1, 1, 1)


# %% tags=["promote"]
def _between(kept: Float[Tensor, "B 1 1"], first: Tensor, second: Tensor) -> Tensor:
    """The share `kept` of the first and the rest of the second."""
    kept = kept.view(-1, *[1] * (first.ndim - 1))
    return kept * first + (1 - kept) * second


# %% tags=["promote"]
def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x == 0, 1, x)


# %% tags=["promote"]
def _pairs(mask: Tensor) -> Tensor:
    """(B, N, N) the ordered pairs of two different atoms."""
    off = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return mask[:, :, None] & mask[:, None, :] & off


# %% tags=["promote"]
def _normalised(pX: Tensor, pE: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Distributions of atoms and of slots: uniform where there is no atom and on the diagonal."""
    pX = torch.where(mask[..., None], pX, 1) + 1e-12
    pE = torch.where(_pairs(mask)[..., None], pE, 1) + 1e-12
    return pX / pX.sum(-1, keepdim=True), pE / pE.sum(-1, keepdim=True)
