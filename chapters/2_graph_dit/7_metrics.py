# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 55
#     needs:
#     - 2_graph_dit/2_graphs
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Measures: what a set of generated molecules is worth
#
# **After this lesson you can** compute the nine measures by which Graph DiT is judged on any list of SMILES, say for each which answer is the best that can be had, and name a bad generator that it does not notice.
#
# *Before this:* [Graphs](2_graphs.ipynb) (`2_graphs`), for SMILES and what makes one readable. *Time:* 55 minutes, and 35 for the blanks.

# %% [markdown]
# ## Words
#
# A generator hands over a list $G$ of molecules. Are they good? No single number says. The paper uses nine **measures** (指标), and each asks one question:
#
# 1. **validity** (有效性): how many of them are molecules at all?
# 2. **coverage** (覆盖率), $\kappa$: which atom types of the data occur among them?
# 3. **diversity** (多样性), $\delta$: how unlike each other are they?
# 4. **similarity** (相似度), $s$: are they built of the same fragments as the reference set $R$, in the same shares?
# 5. **distance** (距离), $D$: does a network that has read many molecules see the same cloud of points in $G$ as in $R$?
# 6. **synthetic accessibility** (合成分数): how hard would they be to make?
# 7. to 9. the **error** $\epsilon$ of each property: how far is the value $z$ that was reached from the value $y$ that was asked for? For a class the question is how often it was met, the accuracy.
#
# The first question is about single molecules, the next four about the set, the last about keeping a promise. Every measure is blind to something. A list of copies of the training set $K$ does well on the first six; its **novelty** $\nu$, the share that is not in $K$, is 0. The paper puts novelty and **uniqueness** $u$, the share that is not a repetition, in its appendix. Here they stand beside the rest.
#
# The reference set $R$ is a part of the data that was held out from training.

# %% [markdown]
# ## Figure
#
# ### A generator that needs no training
#
# To have something to measure, here is the crudest generator there is. It takes a molecule of the training set and makes one atom, at random, a C, N, O or F, which may be what it was. The logP of the molecule that it began with is what was asked for. Where chemistry forbids the change, the generator has failed, and the entry of its list is `None`.

# %%
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence, Sized
from functools import lru_cache
from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from rdkit import Chem, rdBase
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Crippen import MolLogP
from rdkit.Chem.rdMolDescriptors import CalcTPSA
from rdkit.Chem.Scaffolds import MurckoScaffold
from torch import nn

from fourfold.graph_dit.graphs import Problem, to_smiles
from fourfold.graph_dit.metrics import (
    chemnet_activations,
    coverage,
    fragment_counts,
    fragment_similarity,
    frechet_distance,
    internal_diversity,
    logp,
    property_error,
    tanimoto_matrix,
)
from fourfold.kit.arguments import listed, whole_number
from fourfold.kit.canvas import COLOURS, canvas, show
from fourfold.kit.molecules import molecule_grid, nci_smiles, qm9_table
from fourfold.kit.notebook import shows_error

# %%
training, held_out = qm9_table("train"), qm9_table("held_out")


def tinker(text, rng):
    """The molecule with one atom changed at random, or None where that is no molecule."""
    molecule = Chem.RWMol(Chem.MolFromSmiles(text))
    atom = molecule.GetAtomWithIdx(int(rng.integers(molecule.GetNumAtoms())))
    atom.SetAtomicNum(int(rng.choice([6, 7, 8, 9])))
    return to_smiles(molecule)


rng = np.random.default_rng(0)
known = training.sample(300, random_state=0)  # what the generator has seen
source = known.iloc[:140]
tinkered = [tinker(text, rng) for text in source["smiles"]]
pool = held_out.sample(300, random_state=0)["smiles"].tolist()
reference = pool[:140]
len(tinkered), tinkered.count(None), len(reference)


# %% tags=["figure"]
def draw_sets():
    names = [f"reference R_{i}" for i in range(4)] + [f"generated G_{i}" for i in range(4)]
    return molecule_grid(reference[:4] + tinkered[:4], names, columns=4, width=6.8)


show(
    draw_sets(),
    alt="A row of four small molecules of the reference set and a row of four made by the "
    "generator, some of which failed and are drawn as crosses",
)

# %% [markdown]
# ### Four measures of one set
#
# A cross is a failure. Now the two lists, as four of the measures see them:

# %%
made = [text for text in tinkered if text is not None]
alike = tanimoto_matrix(made[:14])
counts = fragment_counts(tinkered), fragment_counts(reference)
clouds = chemnet_activations(tinkered), chemnet_activations(reference)
asked, reached = source["logP"].tolist(), logp(tinkered)
error = property_error(asked, reached)
alike.shape, clouds[0].shape, error


# %% tags=["figure"]
def gaussian(x, values):
    spread = values.std(ddof=1)
    return np.exp(-((x - values.mean()) ** 2) / (2 * spread**2)) / (spread * (2 * np.pi) ** 0.5)


def draw_measures():
    figure, ((one, two), (three, four)) = canvas(2, 2, 7.2, 5.2)
    one.imshow(alike, cmap="cividis", vmin=0, vmax=1)
    one.set(title=f"Tanimoto T: diversity δ = {internal_diversity(tinkered):.2f}")
    one.set(xlabel="generated molecule", ylabel="generated molecule")
    common = [f for f, _ in (counts[0] + counts[1]).most_common(7)][::-1]
    for side, (name, ink) in enumerate(
        (("generated: counts g_f", "second"), ("reference: counts r_f", "first"))
    ):
        heights = np.arange(len(common)) + (0.2 if side == 0 else -0.2)
        values = [counts[side][f] for f in common]
        two.barh(heights, values, 0.38, color=COLOURS[ink], label=name)
    two.set_yticks(range(len(common)), common, fontsize=7)
    two.set(title=f"fragments: similarity s = {fragment_similarity(tinkered, reference):.2f}")
    two.set(xlabel="times in the set", xlim=(0, 15))
    two.legend(loc="lower right", fontsize=7, frameon=False)
    line = clouds[0].mean(axis=0) - clouds[1].mean(axis=0)
    for cloud, name, ink in zip(
        clouds, ("generated G", "reference R"), ("second", "first"), strict=True
    ):
        values = cloud @ line / np.linalg.norm(line)
        x = np.linspace(-3.5, 3.5, 200) * values.std() + values.mean()
        three.plot(x, gaussian(x, values), color=COLOURS[ink], label=name)
        three.plot(values, np.full(len(values), -0.03), "|", color=COLOURS[ink], ms=6, alpha=0.5)
        three.axvline(values.mean(), color=COLOURS[ink], lw=0.8, ls=":")
    three.set(title=f"means μ, covariances C: distance D = {frechet_distance(*clouds):.1f}")
    three.set(xlabel="ChemNet activation along one direction", ylabel="density")
    three.legend(loc="upper right", fontsize=7, frameon=False)
    four.plot(asked, reached, ".", color=COLOURS["second"], ms=4)
    four.axline((0, 0), slope=1, color=COLOURS["muted"], lw=0.8)
    four.set(title=f"logP: mean error ε = {error.value:.2f}")
    four.set(xlabel="asked y", ylabel="reached z")
    return figure


show(
    draw_measures(),
    alt="Four panels: a matrix of Tanimoto similarities with a bright diagonal; bars of fragment "
    "counts of two sets; two bell curves side by side; reached against asked logP near a diagonal",
)

# %% [markdown]
# Top left, bright is alike: only the diagonal is, so the set is diverse. Top right, both sets are built of the same fragments, but not in the same shares. Bottom left, the network sees two clouds whose means differ a little; this is one direction of 512. Bottom right, each dot is a molecule: one changed atom moves the logP off the diagonal.
#
# A good number in one panel says nothing about the others.

# %% [markdown]
# ## Formula
#
# Let $G$ be the list with $n$ molecules that exist, and $\{G\}$ its set of different ones. The coverage $\kappa$ is the share of the atom types $A$ of the data that occur in $G$, the uniqueness $u$ the share of molecules that are different, and the novelty $\nu$ the share of these that do not occur in the training set $K$:
#
# $$ \kappa = \frac{|A \cap \mathrm{atoms}(G)|}{|A|}, \qquad u = \frac{|\{G\}|}{n}, \qquad \nu = \frac{|\{G\} \setminus K|}{|\{G\}|} \tag{1} $$
#
# A **fingerprint** (分子指纹) is the set of circular neighbourhoods in a molecule, hashed to bits. The Tanimoto similarity $T$ of two molecules is the share of their bits that they have in common:
#
# $$ T_{ij} = \frac{|\mathrm{bits}_i \cap \mathrm{bits}_j|}{|\mathrm{bits}_i \cup \mathrm{bits}_j|} \tag{2} $$
#
# The diversity $\delta$ is one less the mean of it over all pairs, each molecule with itself among them; $p = 1$ in the paper, and $p = 2$ weighs close pairs more:
#
# $$ \delta = 1 - \frac{1}{n} \sum_{i=1}^{n} \Big( \frac{1}{n} \sum_{j=1}^{n} T_{ij}^{\,p} \Big)^{1/p} \tag{3} $$
#
# The similarity $s$ compares how often each fragment $f$ occurs: counts $g_f$ in $G$ and $r_f$ in $R$, as two long vectors, and the cosine of their angle:
#
# $$ s = \frac{\sum_f g_f\, r_f}{\sqrt{\sum_f g_f^2}\ \sqrt{\sum_f r_f^2}} \tag{4} $$
#
# The distance $D$ describes each cloud of activations by its mean $\mu$ and its covariance $C$ (协方差), as if it were Gaussian. It is the Fréchet distance of the two Gaussians, squared:
#
# $$ D = \lVert \mu_G - \mu_R \rVert^2 + \mathrm{tr}\big( C_G + C_R - 2\, (C_G\, C_R)^{1/2} \big) \tag{5} $$
#
# The error $\epsilon$ is the mean of what is between the value asked, $y$, and the value reached, $z$, over the molecules for which both are known. It needs something to compare it with: the error $\epsilon_0$ by chance, when targets and results are paired at random:
#
# $$ \epsilon = \frac{1}{n} \sum_{i=1}^{n} | y_i - z_i |, \qquad \epsilon_0 = \frac{1}{n^2} \sum_{i=1}^{n} \sum_{j=1}^{n} | y_i - y_j | \tag{6} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $G$ | generated list of molecules | n SMILES or `None` | `smiles` | generated G |
# | $R$ | reference set, held out | SMILES | `reference` | reference R |
# | $K$ | training set, known to the generator | SMILES | `training` | copies of training K |
# | $\kappa$ | coverage of atom types | 0 … 1 | `coverage` | coverage κ |
# | $u$ | uniqueness | 0 … 1 | `uniqueness` | uniqueness u |
# | $\nu$ | novelty | 0 … 1 | `novelty` | novelty ν |
# | $T$ | Tanimoto similarity of two molecules | 0 … 1 | `tanimoto_matrix` | Tanimoto T |
# | $\delta$ | diversity inside the list | 0 … 1 | `internal_diversity` | diversity δ |
# | $g_f$ | counts of a fragment, generated | whole number | `fragment_counts` | counts g_f |
# | $r_f$ | counts of a fragment, reference | whole number | `fragment_counts` | counts r_f |
# | $s$ | similarity of the fragments | 0 … 1 | `fragment_similarity` | similarity s |
# | $\mu$ | mean of the activations | (512,) | `mean` | means μ |
# | $C$ | covariance of the activations | (512, 512) | `_covariance_factor` | covariances C |
# | $D$ | Fréchet distance, squared | 0 … | `frechet_distance` | distance D |
# | $y$ | value asked for | unit of the property | `asked` | asked y |
# | $z$ | value reached | unit of the property | `reached` | reached z |
# | $\epsilon$ | error of a property | unit of the property | `property_error` | error ε |
#
# $\epsilon_0$ is `random_pairing_error` in the code. The similarity and the distance compare the list with $R$; coverage, diversity and uniqueness need no more than the list.
#
# > **Where the code leaves the paper.** The paper names its measures and refers to others for their definitions; bits, radius and counting here are those of its release, which takes them from MOSES (arXiv 1811.12823), and the numbers agree with it. The release computes them over the molecules that it could make; here failures stay in the list as `None` and are counted. It computes equation 5 with a square root of a 512 × 512 matrix that is nearly singular; here the trace is a sum of singular values, which needs no such root. It counts the atom types of the largest fragment of a molecule; here those of all fragments. The paper speaks of permeabilities on a log scale; that holds for the error, which is computed of base-10 logarithms (`log10=True`).

# %% [markdown]
# ## Code
#
# ### A list with failures
#
# Which entries are molecules? There are three kinds: a SMILES that RDKit reads and finds chemically valid; `None`, where the generator knows that it failed; and a text that is no molecule, which is either a failure that nobody has noticed or a mistake. `read_smiles` settles the third kind: it makes such a text `None` and says which row it was and why. Every other function refuses it, since a text left out in silence would make all measures look better.


# %% tags=["promote"]
def _molecule(text: object) -> Chem.Mol:
    """The molecule of a SMILES, chemically checked. Raises ValueError, in one line, for others."""
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(text) if isinstance(text, str) else None
        if molecule is not None and molecule.GetNumAtoms() > 0:
            return molecule
        raw = Chem.MolFromSmiles(text, sanitize=False) if isinstance(text, str) else None
        problems = () if raw is None else Chem.DetectChemistryProblems(raw)
    if problems:
        raise ValueError(f"it is not chemically valid ({problems[0].Message()})")
    raise ValueError("it is not a SMILES that RDKit can read")


def _failed(entry: object) -> bool:
    """Whether an entry stands for a molecule that does not exist: None, or pandas' NaN."""
    return entry is None or (isinstance(entry, float) and entry != entry)


# %% tags=["promote"]
def read_smiles(smiles: Iterable[str | None]) -> tuple[list[str | None], list[Problem]]:
    """A list as all measures take it: canonical SMILES, and None for what is no molecule.

    smiles   texts, good or bad; None or NaN stands for a molecule that failed already
    returns  the list, as long as `smiles`, and row, text and reason of each text turned to None

    Raises ValueError for no list or an empty one.
    """
    texts, problems = [], []
    for row, text in enumerate(listed("smiles", smiles, "['CCO', None]")):
        texts.append(None)
        if _failed(text):
            continue
        try:
            texts[-1] = Chem.MolToSmiles(_molecule(text))
        except ValueError as error:
            problems.append(Problem(row, str(text), str(error)))
    return texts, problems


# %%
texts, problems = read_smiles(["OCC", None, "C1CC", "c1ccccc1", "CN(C)(C)C"])
print(texts)
for problem in problems:
    print(problem)

# %% [markdown]
# `OCC` comes back as `CCO`, the **canonical** (规范) SMILES: one text for each molecule, whichever way it was written. Inside this module two helpers read a list: one keeps the places, the other gives the molecules that exist.


# %% tags=["promote"]
def _entries(name: str, smiles: Iterable[str | None]) -> list[Chem.Mol | None]:
    """The molecules of a list, None where one failed. Raises ValueError for unreadable texts."""
    molecules, wrong = [], []
    for row, text in enumerate(listed(name, smiles, "['CCO', None]")):
        try:
            molecules.append(None if _failed(text) else _molecule(text))
        except ValueError as error:
            wrong.append(f"row {row} ({text!r}): {error}")
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{name} has {len(wrong)} texts that are no molecule: {'; '.join(wrong[:3])}{more}; "
            "expected SMILES, or None for a failure (read_smiles makes such a list)"
        )
    return molecules


def _existing(name: str, smiles: Iterable[str | None]) -> list[Chem.Mol]:
    """The molecules of a list that exist. Raises ValueError where none does."""
    entries = _entries(name, smiles)
    molecules = [molecule for molecule in entries if molecule is not None]
    if not molecules:
        raise ValueError(f"{name} holds {len(entries)} failures and no molecule; expected one")
    return molecules


# %% tags=["promote"]
def valid_share(smiles: Iterable[str | None]) -> float:
    """The share of the entries that are molecules, 0 … 1; None counts as a failure.

    Raises ValueError for an empty list and for texts that are no molecule, with their rows.
    """
    entries = _entries("smiles", smiles)
    return sum(entry is not None for entry in entries) / len(entries)


# %%
print(
    f"{valid_share(texts):.2f} of the hand-made list, {valid_share(tinkered):.2f} of the tinkered one"
)
assert valid_share(texts) == 2 / 5

# %% [markdown]
# What a model has to do before a list of `None` and SMILES exists, and why there are four different "validities" on the way, is the subject of lesson 6. From here on `None` stays in the list and is counted; each measure says what it does with it.
#
# **Blind to:** everything but the rules of valence. A list of methane, a hundred times, is valid.
#
# ### Coverage, uniqueness, novelty
#
# Equation 1, word for word. Two molecules are the same if their canonical SMILES are:


# %% tags=["promote"]
def coverage(smiles: Iterable[str | None], atoms: Iterable[str]) -> float:
    """The share of the atom types that occur in the list (equation 1 of the lesson).

    smiles  SMILES, None for a failure; hydrogen does not count, an attachment point is `*`
    atoms   symbols of the data, such as a vocabulary's; others do not count

    Raises ValueError for no molecule, no atom type, and texts that are no molecule.
    """
    wanted = set(listed("atoms", atoms, "['C', 'N', 'O']"))
    return len(wanted & _symbols(_existing("smiles", smiles))) / len(wanted)


def _symbols(molecules: Iterable[Chem.Mol]) -> set[str]:
    """The symbols of all atoms but hydrogen."""
    return {a.GetSymbol() for m in molecules for a in m.GetAtoms() if a.GetAtomicNum() != 1}


# %% tags=["promote"]
def uniqueness(smiles: Iterable[str | None]) -> float:
    """The share of the existing molecules that are different (equation 1 of the lesson).

    Raises ValueError for no molecule and for texts that are no molecule.
    """
    molecules = _existing("smiles", smiles)
    return len(_texts(molecules)) / len(molecules)


def novelty(smiles: Iterable[str | None], training: Iterable[str | None]) -> float:
    """The share of the different molecules that training does not hold (equation 1 of the lesson).

    Raises ValueError where either holds no molecule, and for texts that are no molecule.
    """
    different = _texts(_existing("smiles", smiles))
    return len(different - _texts(_existing("training", training))) / len(different)


def _texts(molecules: Iterable[Chem.Mol]) -> set[str]:
    """The set of canonical SMILES."""
    return {Chem.MolToSmiles(molecule) for molecule in molecules}


# %%
four = ["CCO", "OCC", "c1ccccc1", None]  # ethanol twice, benzene, a failure
assert coverage(four, ["C", "N", "O", "F"]) == 2 / 4
assert uniqueness(four) == 2 / 3, "of three molecules that exist, two are different"
assert novelty(four, ["C(C)O"]) == 1 / 2, "ethanol is known, in whatever spelling"
assert novelty(four, four) == 0

# %% [markdown]
# **Blind to:** numbers. One fluorine among ten thousand molecules covers fluorine. A generator that adds a carbon to each training molecule is perfectly novel.
#
# ### Diversity
#
# A fingerprint is a set. Here are those of two alcohols and a ring, as the places of their bits:


# %% tags=["promote"]
def fingerprints(smiles: Iterable[str | None], bits: int = 1024) -> UInt8[np.ndarray, "n bits"]:
    """Morgan fingerprints of radius 2, one row of 0 and 1 for each molecule that exists.

    With 2048 bits they are what chemists call ECFP4.
    Raises ValueError for no molecule, texts that are no molecule and a bad number of bits.
    """
    return _bits(_existing("smiles", smiles), whole_number("bits", bits, least=1))


def _bits(molecules: Sequence[Chem.Mol], bits: int) -> UInt8[np.ndarray, "n bits"]:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=bits)
    return np.stack([generator.GetFingerprintAsNumPy(molecule) for molecule in molecules])


# %%
some = ["CCO", "CCCO", "c1ccccc1"]
for text, row in zip(some, fingerprints(some), strict=True):
    print(f"{text:>9}:", row.nonzero()[0].tolist())

# %% [markdown]
# Equations 2 and 3 with sets and loops:


# %%
def tanimoto(one, two):
    return len(one & two) / len(one | two)


def diversity_loop(smiles):
    sets = [set(row.nonzero()[0].tolist()) for row in fingerprints(smiles)]
    pairs = [tanimoto(one, two) for one in sets for two in sets]
    return 1 - sum(pairs) / len(pairs)


f"{diversity_loop(some):.4f}"

# %% [markdown]
# A product of two rows of 0 and 1 counts the bits that they share, so one matrix product does all pairs. Ten thousand molecules have a hundred million pairs; blocks of rows keep that out of memory.


# %% tags=["promote"]
def _tanimoto(
    one: UInt8[np.ndarray, "n bits"], two: UInt8[np.ndarray, "m bits"]
) -> Float[np.ndarray, "n m"]:
    # Sums of up to 1024 ones are exact in float32, whose matrix product is the fastest.
    shared = (one.astype(np.float32) @ two.T.astype(np.float32)).astype(np.float64)
    either = one.sum(axis=1, dtype=np.float64)[:, None] + two.sum(axis=1, dtype=np.float64) - shared
    # Two empty sets are the same set.
    return np.divide(shared, either, out=np.ones_like(shared), where=either > 0)


def tanimoto_matrix(
    smiles: Iterable[str | None], others: Iterable[str | None] | None = None
) -> Float[np.ndarray, "n m"]:
    """Tanimoto similarity of every pair (equation 2 of the lesson), of 1024-bit fingerprints.

    A row for each molecule of `smiles` that exists, a column for each of `others`, or of `smiles`
    itself. Raises ValueError for no molecule and for texts that are no molecule.
    """
    rows = fingerprints(smiles)
    columns = rows if others is None else _bits(_existing("others", others), 1024)
    return _tanimoto(rows, columns)


# %% tags=["promote", "exercise"]
def internal_diversity(smiles: Iterable[str | None], p: int = 1) -> float:
    """How unlike each other the molecules of a list are, 0 … 1 (equation 3 of the lesson).

    smiles  SMILES, None for a failure; all ordered pairs count, each molecule with itself too
    p       the power of the mean over the partners of one molecule

    Raises ValueError for no molecule, texts that are no molecule, and a p below 1.
    Source: Polykovskiy et al. 2020, MOSES (arXiv 1811.12823); 1024 bits as in its release.
    """
    p = whole_number("p", p, least=1)
    rows = fingerprints(smiles)
    blocks = (_tanimoto(rows[start : start + 1000], rows) for start in range(0, len(rows), 1000))
    means = np.concatenate([(block**p).mean(axis=1) ** (1 / p) for block in blocks])
    return float(1 - means.mean())


# %% tags=["check"]
assert abs(internal_diversity(some) - diversity_loop(some)) < 1e-12, "the loop says otherwise"
assert internal_diversity(["CCO"] * 5) == 0, "one molecule repeated has no diversity"
assert internal_diversity(["CCO", None]) == 0, "a failure is no partner"
two = internal_diversity(["C", "N"])  # no bit in common: each is alike to itself alone
assert two == 0.5, "half of the ordered pairs are a molecule with itself"
assert internal_diversity(some, p=2) < internal_diversity(some), "p = 2 weighs close pairs more"

# %% [markdown]
# The pairs of a molecule with itself put a ceiling on the diversity: $n$ molecules without a common bit reach $1 - 1/n$. In a set of thousands that is nothing, in a set of ten it is a tenth.
#
# A hand-made family, with the similarity of each pair:

# %%
family = {"ethanol": "CCO", "propanol": "CCCO", "butanol": "CCCCO", "phenol": "Oc1ccccc1"}
family |= {"toluene": "Cc1ccccc1", "methane": "C"}
pairs = tanimoto_matrix(family.values())


# %% tags=["figure"]
def draw_family():
    figure, axes = canvas(1, 1, 4.4, 3.6)
    axes.imshow(pairs, cmap="cividis", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(pairs):
        ink = "black" if value > 0.5 else "white"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, size=8)
    axes.set_xticks(range(len(family)), family, rotation=30, ha="right")
    axes.set_yticks(range(len(family)), family)
    axes.set_title(f"Tanimoto T: diversity δ = {internal_diversity(family.values()):.2f}")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


show(
    draw_family(),
    alt="A matrix of Tanimoto similarities of six small molecules: the alcohols are alike, the "
    "two rings are alike, methane has nothing in common with any",
)

# %% [markdown]
# The alcohols form one block, the rings another. Methane shares no bit with anything, and adds the most diversity of all.
#
# **Blind to:** sense. Nonsense is diverse: in the paper's table DiGress has a higher diversity than Graph DiT, and the lowest similarity but two.
#
# The nearest molecule of the reference is a measure of MOSES that comes at no cost; it is not among the nine.


# %% tags=["promote"]
def nearest_similarity(smiles: Iterable[str | None], reference: Iterable[str | None]) -> float:
    """Mean Tanimoto similarity of each molecule to the nearest of the reference, 0 … 1.

    Raises ValueError where either holds no molecule, and for texts that are no molecule.
    Source: MOSES (arXiv 1811.12823), where it is called SNN.
    """
    rows, others = fingerprints(smiles), _bits(_existing("reference", reference), 1024)
    blocks = (_tanimoto(rows[start : start + 1000], others) for start in range(0, len(rows), 1000))
    return float(np.concatenate([block.max(axis=1) for block in blocks]).mean())


# %%
assert nearest_similarity(some, some) == 1
print(f"tinkered to reference: {nearest_similarity(tinkered, reference):.2f}")
print(f"tinkered to what it began with: {nearest_similarity(tinkered, source['smiles']):.2f}")

# %% [markdown]
# ### Similarity of fragments
#
# BRICS is a list of sixteen kinds of bond ends at which chemists take molecules apart (Degen et al. 2008). Cut at all bonds of the list, a molecule falls into fragments; the numbers in brackets say which kind of end was cut. Aspirin:

# %%
aspirin = Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O")
Chem.MolToSmiles(Chem.FragmentOnBRICSBonds(aspirin)).split(".")


# %% tags=["promote"]
def fragment_counts(smiles: Iterable[str | None]) -> Counter[str]:
    """How often each BRICS fragment occurs in a list, by its SMILES: g_f of the lesson.

    A molecule without a bond to cut is one fragment.
    Raises ValueError for no molecule and for texts that are no molecule.
    """
    return _fragments(_existing("smiles", smiles))


def _fragments(molecules: Iterable[Chem.Mol]) -> Counter[str]:
    counts = Counter()
    for molecule in molecules:
        counts.update(Chem.MolToSmiles(Chem.FragmentOnBRICSBonds(molecule)).split("."))
    return counts


# %%
counted = fragment_counts(["CCOCC", "CCOC", "CCO"])
counted

# %% [markdown]
# Diethyl ether is cut on both sides of its oxygen: two ethyls and an oxygen. Ethanol is not cut. Equation 4 for two lists of counts; where a count is empty there is no angle, and the answer is NaN.


# %% tags=["promote", "exercise"]
def cosine_of_counts(one: Counter[str], two: Counter[str]) -> float:
    """The cosine of two vectors of counts; NaN where either is empty (equation 4 of the lesson)."""
    if not one or not two:
        return float("nan")
    product = sum(count * two[key] for key, count in one.items())
    lengths = [sum(count**2 for count in counts.values()) for counts in (one, two)]
    return product / (lengths[0] * lengths[1]) ** 0.5


# %% tags=["check"]
assert abs(cosine_of_counts(counted, counted) - 1) < 1e-12, (
    "the same counts have no angle between them"
)
assert cosine_of_counts(Counter("aab"), Counter("cc")) == 0, "no fragment in common"
assert abs(cosine_of_counts(Counter("a"), Counter("ab")) - 0.5**0.5) < 1e-12, "45 degrees"
assert abs(cosine_of_counts(Counter("aab"), Counter("aab" * 9)) - 1) < 1e-12, (
    "shares count, not numbers"
)
assert np.isnan(cosine_of_counts(Counter(), counted)), "nothing has no direction"


# %% tags=["promote"]
def fragment_similarity(smiles: Iterable[str | None], reference: Iterable[str | None]) -> float:
    """How alike two lists are in their BRICS fragments, 0 … 1 (equation 4 of the lesson).

    Raises ValueError where either holds no molecule, and for texts that are no molecule.
    Source: MOSES (arXiv 1811.12823).
    """
    return cosine_of_counts(fragment_counts(smiles), _fragments(_existing("reference", reference)))


# %%
assert fragment_similarity(some, some) == 1
assert fragment_similarity(["CCO"], ["c1ccccc1", "CCN"]) == 0, "no fragment in common"
print(f"tinkered to reference: {fragment_similarity(tinkered, reference):.2f}")

# %% [markdown]
# The counts of common fragments are squared, so they decide:

# %%
for name, molecules in (("tinkered", tinkered), ("reference", reference)):
    counts_ = fragment_counts(molecules)
    squares = sum(count**2 for count in counts_.values())
    (first, count), *_ = counts_.most_common()
    print(f"{name:>9}: {len(counts_)} fragments; {first} alone makes {count**2 / squares:.0%}")

# %% [markdown]
# **Blind to:** rare fragments, and how the fragments are joined.
#
# The **scaffold** (骨架) of a molecule is its rings and what links them. MOSES compares counts of scaffolds in the same way, and counts those of two rings and more.


# %% tags=["promote"]
def scaffold_similarity(
    smiles: Iterable[str | None], reference: Iterable[str | None], rings: int = 2
) -> float:
    """How alike two lists are in their Murcko scaffolds of `rings` rings or more, 0 … 1.

    NaN where either list has no such scaffold.
    Raises ValueError where either holds no molecule, and for texts that are no molecule.
    Source: Bemis and Murcko 1996; counted as in MOSES (arXiv 1811.12823).
    """
    least = whole_number("rings", rings, least=1)
    names = {"smiles": smiles, "reference": reference}
    return cosine_of_counts(
        *(_scaffolds(_existing(name, texts), least) for name, texts in names.items())
    )


def _scaffolds(molecules: Iterable[Chem.Mol], rings: int) -> Counter[str]:
    scaffolds = (MurckoScaffold.GetScaffoldForMol(molecule) for molecule in molecules)
    return Counter(Chem.MolToSmiles(s) for s in scaffolds if s.GetRingInfo().NumRings() >= rings)


# %%
assert scaffold_similarity(["Cc1ccc2ccccc2c1"], ["Oc1cccc2ccccc12"]) == 1, "naphthalene, both"
assert np.isnan(scaffold_similarity(["CCO"], ["CCO"])), "no rings, no angle"
print(f"tinkered to reference: {scaffold_similarity(tinkered, reference):.2f}")

# %% [markdown]
# ### Distance: two Gaussians
#
# In one dimension a Gaussian is a mean and a spread $\sigma$. The covariance is $\sigma^2$, a single number, so equation 5 becomes short:
#
# $$ D = (\mu_G - \mu_R)^2 + \sigma_G^2 + \sigma_R^2 - 2\, \sigma_G\, \sigma_R = (\mu_G - \mu_R)^2 + (\sigma_G - \sigma_R)^2 $$


# %%
def frechet_line(one, two):
    """Equation 5 in one dimension."""
    return (one.mean() - two.mean()) ** 2 + (one.std(ddof=1) - two.std(ddof=1)) ** 2


# %%
rng = np.random.default_rng(1)
normal = rng.normal(size=400)
normal = (normal - normal.mean()) / normal.std(ddof=1)  # mean 0 and spread 1, exactly
lines = {"shifted by 2": normal + 2, "three times as wide": 3 * normal, "both": 3 * normal + 2}


# %% tags=["figure"]
def draw_gaussians():
    figure, axes = canvas(1, 3, 7.2, 1.9, sharey=True)
    x = np.linspace(-9, 11, 300)
    for each, (name, moved) in zip(axes, lines.items(), strict=True):
        each.plot(x, gaussian(x, normal), color=COLOURS["first"], label="reference R")
        each.plot(x, gaussian(x, moved), color=COLOURS["second"], label="generated G")
        each.set_title(f"{name}: D = {frechet_line(normal, moved):.1f}")
        each.set_xlabel("activation")
    axes[0].set_ylabel("density")
    axes[0].legend(loc="upper right", fontsize=7, frameon=False)
    axes[0].set_ylim(0, 0.7)
    return figure


show(
    draw_gaussians(),
    alt="Three pairs of bell curves: one shifted, one three times as wide, one both; the squared "
    "distances of the first two add up to that of the third",
)

# %% [markdown]
# A shift of 2 costs $2^2$, a spread that is larger by 2 costs $2^2$ too, and the two add up. In many dimensions the naive way to equation 5 takes the root of a matrix:

# %%
from scipy.linalg import sqrtm


def frechet_root(one, two):
    covariances = np.cov(one.T), np.cov(two.T)
    root = sqrtm(covariances[0] @ covariances[1]).real
    difference = one.mean(axis=0) - two.mean(axis=0)
    return difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root)


wide = rng.normal(size=(50, 4)), rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)) + 1
f"{frechet_root(*wide):.6f}"

# %% [markdown]
# ChemNet gives 512 numbers for each molecule. A set of 140 molecules spans at most 139 dimensions; its covariance is singular, and the root of a singular matrix is bad to compute. There is a way around it. Write a covariance as $C = L^\top L$, with the centred activations, divided by $\sqrt{n-1}$, as $L$. Then
#
# $$ \mathrm{tr}\,(C_G\, C_R)^{1/2} = \text{the sum of the singular values of } L_G\, L_R^\top, $$
#
# for the eigenvalues of $L_G^\top L_G L_R^\top L_R$ that are not 0 are those of $M^\top M$ with $M = L_G L_R^\top$, and their roots are the singular values of $M$. No root of a matrix is left. A set larger than 512 is first brought to 512 rows by a QR decomposition, which leaves $L^\top L$ as it is.


# %% tags=["promote"]
def _covariance_factor(activations: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "k D"]:
    """L with Lᵀ L the covariance C, of no more rows than columns."""
    centred = activations - activations.mean(axis=0)
    factor = centred / (len(centred) - 1) ** 0.5
    return np.linalg.qr(factor, mode="r") if len(factor) > factor.shape[1] else factor


def _check_cloud(name: str, values: np.ndarray) -> Float[np.ndarray, "n D"]:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(
            f"{name} has shape {values.shape}; expected (n, D) with n of 2 or more, as one "
            "molecule has no covariance"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds numbers that are not finite; expected finite ones")
    return values


# %% tags=["promote", "exercise"]
def frechet_distance(
    generated: Float[np.ndarray, "n D"], reference: Float[np.ndarray, "m D"]
) -> float:
    """Squared Fréchet distance of two clouds, taken as Gaussians (equation 5 of the lesson).

    generated, reference  (n, D) and (m, D): a row for each sample, two or more of each

    Computed in float64. The trace of the root is the sum of the singular values of the product of
    two factors, which holds for singular covariances too.
    Raises ValueError for fewer than two samples, unequal D and numbers that are not finite.
    Source: Dowson and Landau 1982, The Fréchet distance between multivariate normal distributions.
    """
    clouds = [_check_cloud("generated", generated), _check_cloud("reference", reference)]
    if clouds[0].shape[1] != clouds[1].shape[1]:
        widths = " and ".join(str(cloud.shape[1]) for cloud in clouds)
        raise ValueError(f"generated and reference have {widths} columns; expected equally many")
    mean = clouds[0].mean(axis=0) - clouds[1].mean(axis=0)
    factors = [_covariance_factor(cloud) for cloud in clouds]
    traces = sum((factor**2).sum() for factor in factors)
    roots = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    return max(0.0, float(mean @ mean + traces - 2 * roots))  # rounding may pass below 0


# %% tags=["check"]
assert abs(frechet_distance(*wide) - frechet_root(*wide)) < 1e-8, "the root of the matrix disagrees"
for moved in lines.values():
    in_columns = frechet_distance(moved[:, None], normal[:, None])
    assert abs(in_columns - frechet_line(moved, normal)) < 1e-9, "one dimension, by hand"
assert frechet_distance(wide[0], wide[0]) < 1e-12, "a cloud is at distance 0 from itself"
with shows_error(ValueError):
    frechet_distance(wide[0][:1], wide[1])

# %% [markdown]
# ### Distance: ChemNet
#
# ChemNet (Mayr et al. 2018) is a network that was trained to predict the outcomes of thousands of biological tests from SMILES. What its last layer but one sees is 512 numbers; the distance of two sets in them is the Fréchet ChemNet distance, FCD (Preuer et al. 2018). The network and its weights come from the package `fcd_torch`, which is an extra of this course; it is loaded when it is first asked for, and kept.


# %% tags=["promote"]
CHEMNET_LENGTH = 350


@lru_cache(maxsize=1)
def _chemnet() -> tuple[nn.Module, Callable]:
    """ChemNet up to its last layer but one, and the function that makes a SMILES one-hot."""
    try:
        from fcd_torch import FCD
        from fcd_torch.utils import get_one_hot
    except ImportError:
        raise ImportError(
            'ChemNet needs the package fcd_torch: pip install "fourfold[molecules]" brings it'
        ) from None
    # Layers draw random weights before the trained ones replace them; no caller should notice.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FCD().model.eval(), get_one_hot


@lru_cache(maxsize=1)
def _memory(device: str) -> dict[str, Float[np.ndarray, "512"]]:
    """Activations by canonical SMILES, as read on this device."""
    return {}


def _read_with_chemnet(texts: Sequence[str], device: str) -> Float[np.ndarray, "n 512"]:
    """The activations of canonical SMILES; those read before are remembered."""
    network, one_hot = _chemnet()
    memory = _memory(device)
    if len(memory) > 20_000:  # some 40 MB
        memory.clear()
    new = sorted(set(texts) - set(memory))
    for start in range(0, len(new), 64):
        batch = new[start : start + 64]
        symbols = np.stack([one_hot(text, CHEMNET_LENGTH) for text in batch])
        # The trained network expects the one-hot divided by the number of symbols.
        scaled = torch.tensor(symbols / symbols.shape[2], dtype=torch.float32, device=device)
        with torch.no_grad():
            activations = network.to(device)(scaled.transpose(1, 2)).cpu().numpy()
        memory.update(zip(batch, activations, strict=True))
    return np.stack([memory[text] for text in texts])


# %% tags=["promote"]
def chemnet_activations(
    smiles: Iterable[str | None], device: str = "cpu"
) -> Float[np.ndarray, "n 512"]:
    """What ChemNet sees in each molecule of a list that exists: 512 numbers, float32.

    smiles  SMILES, None for a failure; the network reads their canonical form
    device  where PyTorch runs the network

    Each different molecule is read once, and some 20,000 are remembered. The network reads the
    text up to its first dot and no more than 349 symbols; all symbols that it does not know, such
    as `*`, are one and the same to it.
    Raises ImportError where fcd_torch is missing, ValueError for no molecule and for texts that
    are no molecule. Source: Preuer et al. 2018, Fréchet ChemNet Distance (arXiv 1803.09518).
    """
    texts = [Chem.MolToSmiles(molecule) for molecule in _existing("smiles", smiles)]
    return _read_with_chemnet(texts, device)


def chemnet_distance(
    smiles: Iterable[str | None], reference: Iterable[str | None], device: str = "cpu"
) -> float:
    """Fréchet ChemNet distance of two lists (equation 5 of the lesson); 0 is the best.

    It depends on how many molecules the lists hold: compare only distances of equal numbers.
    Raises ValueError for fewer than two molecules, and what `chemnet_activations` raises.
    """
    clouds = {}
    for name, texts in (("smiles", smiles), ("reference", reference)):
        molecules = _existing(name, texts)
        if len(molecules) < 2:
            raise ValueError(
                f"{name} holds one molecule; expected two or more, as one has no covariance"
            )
        clouds[name] = chemnet_activations(map(Chem.MolToSmiles, molecules), device)
    return frechet_distance(*clouds.values())


# %%
assert chemnet_distance(some, some) < 1e-6, "float32 activations, equal up to order"
assert np.allclose(chemnet_activations(["OCC"]), chemnet_activations(["CCO"])), "canonical first"
print(f"tinkered to reference: {chemnet_distance(tinkered, reference):.2f}")

# %% [markdown]
# The network reads text, not a graph. Another spelling of the same molecule is another text to it, and gives other numbers. So the text is made canonical first. How much would it matter?

# %%
network, one_hot = _chemnet()


def raw_activations(texts):
    symbols = torch.tensor(np.stack([one_hot(text, CHEMNET_LENGTH) for text in texts])).float()
    with torch.no_grad():
        return network(symbols.transpose(1, 2) / symbols.shape[2]).numpy()


spellings = ["CCO", "OCC", "C(C)O", "C(O)C"]
numbers = raw_activations([*spellings, "CCN"])
for text, row in zip([*spellings[1:], "CCN"], numbers[1:], strict=True):
    print(f"CCO to {text:>5}: {np.linalg.norm(numbers[0] - row):.2f} apart")

# %% [markdown]
# To the network, another spelling of ethanol lies up to half as far away as another molecule. A distance between a list of canonical and one of raw SMILES measures the spelling.
#
# ### Distance and the number of molecules
#
# What would a perfect generator score? Its molecules would be drawn from the same source as the reference: like the two parts of QM9, training and held out. Take $n$ molecules from each:

# %%
halves = [chemnet_activations(texts) for texts in (known["smiles"], pool)]
sizes = (10, 20, 40, 80, 160, 300)


def halves_distance(n, seed):
    rng = np.random.default_rng(seed)
    return frechet_distance(*(half[rng.permutation(len(half))[:n]] for half in halves))


curve = {n: [halves_distance(n, seed) for seed in range(8)] for n in sizes}
for n, values in curve.items():
    print(f"n = {n:3d}: D = {np.mean(values):5.2f} ± {np.std(values):.2f}")


# %% tags=["figure"]
def draw_curve():
    figure, axes = canvas(1, 1, 5.0, 2.6)
    for n, values in curve.items():
        axes.plot([n] * len(values), values, ".", color=COLOURS["first"], ms=4, alpha=0.5)
    means = [np.mean(values) for values in curve.values()]
    axes.plot(sizes, means, color=COLOURS["first"], label="two parts of QM9")
    axes.axhline(0, color=COLOURS["good"], ls="--", lw=1, label="the same distribution: 0")
    axes.set_xscale("log")
    axes.set_xticks(sizes, sizes)
    axes.minorticks_off()
    axes.set(xlabel="molecules n in each list", ylabel="distance D", ylim=(-0.8, None))
    axes.legend(frameon=False)
    return figure


show(
    draw_curve(),
    alt="The distance between two random parts of QM9 falls from about 20 with 10 molecules to "
    "about 2 with 300, and is always above zero",
)

# %% [markdown]
# Each dot is another draw; with 300 every draw is the whole part. The true distance is 0, and no list of this length comes near. A covariance of 512 × 512 numbers from a few dozen points is mostly chance, and chance never agrees with chance: the distance is **biased upward** (有偏), the more so the fewer molecules there are. So a distance is a number for one $n$. Two generators are compared with equally many molecules, and both with the floor: the distance of held-out data at that $n$. The paper compares generators on 10,000 molecules with a reference of about a hundred.
#
# **Blind to:** whether the molecules are new; anything behind the first dot of a SMILES; and the difference between clouds that share mean and covariance.
#
# ### Synthetic accessibility
#
# The score of Ertl and Schuffenhauer (2009) is 1 for easy and 10 for hard. It counts how common the circular fragments of a molecule are among a million molecules that somebody has made, and subtracts penalties for size, stereocentres, spiro atoms, bridges and large rings. Its table comes with RDKit.


# %% tags=["promote"]
def _each(smiles: Iterable[str | None], measure: Callable) -> Float[np.ndarray, "n"]:
    """A number for each entry of a list, NaN for a failure."""
    entries = _entries("smiles", smiles)
    return np.array([np.nan if m is None else measure(m) for m in entries], dtype=np.float64)


def synthetic_accessibility(smiles: Iterable[str | None]) -> Float[np.ndarray, "n"]:
    """How hard each molecule is to make, from 1 (easy) to 10; NaN for a failure.

    Raises ValueError for an empty list and for texts that are no molecule.
    Source: Ertl and Schuffenhauer 2009 (J. Cheminformatics 1:8); the table is RDKit's.
    """
    from rdkit.Contrib.SA_Score import sascorer  # reads a table of 4 MB when first used

    return _each(smiles, sascorer.calculateScore)


# %%
series = {"ethanol": "CCO", "aspirin": "CC(=O)Oc1ccccc1C(=O)O", "glucose": "OCC1OC(O)C(O)C(O)C1O"}
series |= {"camphor": "CC1(C)C2CCC1(C)C(=O)C2", "cubane": "C12C3C4C1C5C2C3C45", "failure": None}
for name, value in zip(series, synthetic_accessibility(series.values()), strict=True):
    print(f"{name:>8}: {value:.2f}")

# %% [markdown]
# The lowest and the highest among 600 molecules of QM9's held-out part:

# %%
candidates = held_out["smiles"].iloc[:600].tolist()
difficulty = synthetic_accessibility(candidates)
order = difficulty.argsort()
extremes = [*order[:4], *order[-4:]]


# %% tags=["figure"]
def draw_extremes():
    legends = [f"SA {difficulty[i]:.2f}" for i in extremes]
    return molecule_grid([candidates[i] for i in extremes], legends, columns=4, width=6.8)


show(
    draw_extremes(),
    alt="Four simple molecules with a synthetic accessibility below two, and below them four cages "
    "of fused small rings with scores above six",
)

# %% [markdown]
# Chains and single rings above; cages of small rings below, which a computer lists and few chemists have made. Cubane, in the list before, a cage of strained bonds, is scored as easier than camphor: its few fragments repeat, and the score counts symmetry as ease.
#
# **Blind to:** chemistry that its million molecules did not contain, and whether a route exists at all. A polymer's `*` is to it a strange atom.
#
# ### Properties: asked and reached
#
# Two properties have an exact **oracle**, a function that gives the true value: logP after Crippen, without unit, and the polar surface TPSA in Å², both from RDKit.


# %% tags=["promote"]
def logp(smiles: Iterable[str | None]) -> Float[np.ndarray, "n"]:
    """Crippen's octanol-water coefficient of each molecule, without unit; NaN for a failure.

    Raises ValueError for an empty list and for texts that are no molecule.
    """
    return _each(smiles, MolLogP)


def tpsa(smiles: Iterable[str | None]) -> Float[np.ndarray, "n"]:
    """Topological polar surface area of each molecule in Å²; NaN for a failure.

    Raises ValueError for an empty list and for texts that are no molecule.
    """
    return _each(smiles, CalcTPSA)


# %%
print(logp(["CCO", None]).round(2).tolist(), tpsa(["CCO", None]).round(1).tolist())
table_says = held_out.set_index("smiles")["logP"][reference[:9]]
assert np.allclose(logp(reference[:9]), table_says, atol=1e-3), "the table rounds"

# %% [markdown]
# An error without the number of molecules behind it says little: a generator that fails on every hard target is compared on the easy ones. So the error comes with how many were compared, of how many.


# %% tags=["promote"]
class Compared(NamedTuple):
    """A mean over the pairs that could be compared.

    value     the mean; NaN where nothing could be compared
    compared  how many pairs have both values
    total     how many pairs there are
    """

    value: float
    compared: int
    total: int


def _numbers(name: str, values: Iterable[float | None]) -> Float[np.ndarray, "n"]:
    """The values as float64, None as NaN. Raises ValueError for bad ones."""
    values = listed(name, values, "[1.5, None]")
    for row, value in enumerate(values):
        if not (value is None or isinstance(value, Real)):
            raise ValueError(f"{name} holds {value!r} in row {row}; expected numbers or None")
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    if np.isinf(numbers).any():
        row = np.isinf(numbers).argmax()
        raise ValueError(f"{name} is {numbers[row]} in row {row}; expected finite numbers or None")
    return numbers


def _check_pairs(asked: Sized, reached: Sized) -> None:
    if len(asked) != len(reached):
        raise ValueError(
            f"asked and reached have {len(asked)} and {len(reached)} values; expected pairs"
        )


# %% tags=["promote"]
def property_error(
    asked: Iterable[float | None], reached: Iterable[float | None], log10: bool = False
) -> Compared:
    """Mean absolute error of a property (equation 6 of the lesson).

    asked, reached  values in the unit of the property; a pair with None or NaN is not compared
    log10           compare the base-10 logarithms, as the paper does with permeabilities

    Raises ValueError for lists of unequal length, infinite values, and with `log10` for values
    that are not positive.
    """
    values = {"asked": _numbers("asked", asked), "reached": _numbers("reached", reached)}
    _check_pairs(*values.values())
    if log10:
        for name, numbers in values.items():
            if (numbers <= 0).any():
                row = (numbers <= 0).argmax()
                raise ValueError(
                    f"{name} is {numbers[row]} in row {row}; expected positive values for log10"
                )
        values = {name: np.log10(numbers) for name, numbers in values.items()}
    gaps = np.abs(values["asked"] - values["reached"])
    there = gaps[~np.isnan(gaps)]
    return Compared(float(there.mean()) if len(there) else float("nan"), len(there), len(gaps))


def accuracy(asked: Iterable[Hashable], reached: Iterable[Hashable]) -> Compared:
    """The share of classes that were met; a pair with None or NaN is not compared.

    Raises ValueError for lists of unequal length or without a value.
    """
    asked = listed("asked", asked, "['yes', 'no']")
    reached = listed("reached", reached, "['yes', None]")
    _check_pairs(asked, reached)
    pairs = zip(asked, reached, strict=True)
    met = [one == two for one, two in pairs if not (_failed(one) or _failed(two))]
    return Compared(sum(met) / len(met) if met else float("nan"), len(met), len(asked))


# %%
assert property_error([1.0, 2.0, 3.0, None], [1.5, 2.0, None, 7.0]) == (0.25, 2, 4)
assert property_error([1.0, 100.0], [10.0, 1000.0], log10=True).value == 1, "a factor of ten"
assert accuracy(["yes", "no", "no"], ["yes", "yes", None]) == (0.5, 2, 3)
print("tinkered, logP:", property_error(asked, logp(tinkered)))

# %% [markdown]
# ### The level of chance
#
# Is an error of 0.5 good? Compare it with a generator that does not listen: the same molecules, dealt to the targets at random. On average over all ways to deal, that is $\epsilon_0$ in equation 6. In a loop over pairs:


# %%
def random_pairing_loop(values):
    return sum(abs(one - two) for one in values for two in values) / len(values) ** 2


random_pairing_loop([0.0, 1.0, 5.0])

# %% [markdown]
# Sorted, the double sum becomes a single one. The value in place $i$, counted from 0, is the larger one in $i$ pairs and the smaller one in $n - 1 - i$; each pair occurs twice.


# %% tags=["promote", "exercise"]
def random_pairing_error(values: Iterable[float | None]) -> float:
    """The error to expect when targets and results are paired at random (equation 6 of the lesson).

    values  of the property, in its unit; None and NaN do not count

    Raises ValueError where no value is left or one is infinite.
    """
    numbers = _numbers("values", values)
    numbers = np.sort(numbers[~np.isnan(numbers)])
    n = len(numbers)
    if n == 0:
        raise ValueError("values holds no number; expected one or more")
    return float(2 * (numbers * (2 * np.arange(n) - n + 1)).sum() / n**2)


# %% tags=["check"]
assert random_pairing_error([0.0, 1.0, 5.0]) == 20 / 9, "by hand: 2 · (1 + 4 + 5) / 9"
drawn = np.random.default_rng(2).normal(size=60)
assert abs(random_pairing_error(drawn) - random_pairing_loop(drawn)) < 1e-12
assert random_pairing_error([3.0, None, 3.0]) == 0, "equal values cannot be paired wrongly"
dealt = [
    property_error(drawn, np.random.default_rng(k).permutation(drawn)).value for k in range(400)
]
assert abs(np.mean(dealt) - random_pairing_error(drawn)) < 0.05, "the mean over random deals"

# %%
for column, unit in (("logP", ""), ("TPSA", " Å²")):
    print(f"{column}: {random_pairing_error(held_out[column]):.2f}{unit} by chance on held-out QM9")

# %% [markdown]
# ### An oracle that errs
#
# For the permeability of a polymer there is no exact function. The paper trains a **random forest** (随机森林) on fingerprints with all labelled data, and lets it judge. A judge has an error of its own, and the training error hides it: most trees have seen each molecule. But every tree grows on a random draw, its **bag**, which leaves out about a third. The **out-of-bag error** (袋外误差) asks, for each molecule, only the trees that have not seen it.


# %% tags=["promote"]
class RandomForestOracle:
    """A judge of properties learned from data: a random forest on fingerprints of 2048 bits.

    classes      values are classes, predicted by vote; numbers otherwise
    trees        50 or more, so that each molecule is out of some bag
    training     after `fit`: error (or accuracy) on the molecules that it has seen
    out_of_bag   after `fit`: the same, each molecule judged by the trees that have not seen it

    Source: the paper's evaluation (ECFP4, `random_state=0`); the out-of-bag error is added here.
    """

    def __init__(self, classes: bool = False, trees: int = 100) -> None:
        self.classes, self.trees = classes, whole_number("trees", trees, least=50)
        self.training: Compared | None = None
        self.out_of_bag: Compared | None = None
        self._forest = None

    def fit(
        self, smiles: Iterable[str | None], values: Iterable[float | Hashable | None]
    ) -> "RandomForestOracle":
        """Learn from pairs of molecule and value; a pair that lacks either is left out.

        Raises ValueError for lists of unequal length, fewer than two pairs, a single class, and
        texts that are no molecule.
        """
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        entries = _entries("smiles", smiles)
        values = listed("values", values, "[0.3, None]")
        if len(entries) != len(values):
            raise ValueError(
                f"smiles and values have {len(entries)} and {len(values)} entries; expected pairs"
            )
        pairs = zip(entries, values, strict=True)
        pairs = [(m, value) for m, value in pairs if m is not None and not _failed(value)]
        if len(pairs) < 2:
            raise ValueError(f"{len(pairs)} molecules have a value; expected two or more")
        known = [value for _, value in pairs]
        if self.classes and len(set(known)) < 2:
            raise ValueError(f"values holds the one class {known[0]!r}; expected two or more")
        kind = RandomForestClassifier if self.classes else RandomForestRegressor
        forest = kind(n_estimators=self.trees, random_state=0, oob_score=True)
        bits = _bits([molecule for molecule, _ in pairs], 2048)
        self._forest = forest.fit(bits, known if self.classes else _numbers("values", known))
        if self.classes:
            unseen = forest.classes_[forest.oob_decision_function_.argmax(axis=1)]
        else:
            unseen = forest.oob_prediction_
        compare = accuracy if self.classes else property_error
        self.training = compare(known, forest.predict(bits).tolist())
        self.out_of_bag = compare(known, unseen.tolist())
        return self

    def predict(self, smiles: Iterable[str | None]) -> list:
        """The value of each molecule, in order; None for a failure.

        Raises ValueError before `fit`, for an empty list, and for texts that are no molecule.
        """
        if self._forest is None:
            raise ValueError("the oracle has learned nothing yet; call fit first")
        entries = _entries("smiles", smiles)
        there = [molecule for molecule in entries if molecule is not None]
        judged = iter(self._forest.predict(_bits(there, 2048)).tolist() if there else ())
        return [None if molecule is None else next(judged) for molecule in entries]


# %% [markdown]
# A forest learns logP, for which the truth is known, so that the judge can be judged:

# %%
learned = training.sample(300, random_state=1)
oracle = RandomForestOracle().fit(learned["smiles"], learned["logP"])
unseen = held_out.iloc[:600]
judged = property_error(unseen["logP"], oracle.predict(unseen["smiles"]))
print(f"on what it has seen: {oracle.training.value:.2f}")
print(f"out of bag:          {oracle.out_of_bag.value:.2f}")
print(f"on held-out data:    {judged.value:.2f}")
print(f"by chance:           {random_pairing_error(unseen['logP']):.2f}")

# %% [markdown]
# The out-of-bag error foretells the error on new molecules; the training error is far too good. Whoever judges generators by such an oracle should say its out-of-bag error beside theirs: part of each error is the judge's own.
#
# **Blind to:** what its data did not show. A generated molecule may be unlike all that the forest has seen, and the forest answers all the same.
#
# ### All in one


# %% tags=["promote"]
def report(
    smiles: Iterable[str | None],
    reference: Iterable[str | None],
    training: Iterable[str | None] | None = None,
    distance: bool = True,
) -> dict[str, float]:
    """Every measure of a list that needs no property, by name.

    smiles     what a generator made, None for a failure
    reference  molecules of the data that it has not seen
    training   those that it has seen, for novelty and the atom types; without it there is no
               novelty, and the atom types are those of the reference
    distance   whether to run ChemNet, which takes most of the time

    `count` entries, of which `failed` are None; `validity` is over all entries, every other
    measure over the molecules that exist, NaN where there are none (or, for the distance, one).
    Raises ValueError for empty lists and for texts that are no molecule.
    """
    entries = _entries("smiles", smiles)
    made = [Chem.MolToSmiles(molecule) for molecule in entries if molecule is not None]
    reference = list(reference)
    known = _existing("reference", reference)
    if training is not None:
        known = _existing("training", training)
    atoms, before = _symbols(known), _texts(known)
    measures = {
        "coverage": lambda: coverage(made, atoms),
        "uniqueness": lambda: uniqueness(made),
        "novelty": lambda: len(set(made) - before) / len(set(made)),
        "diversity": lambda: internal_diversity(made),
        "similarity": lambda: fragment_similarity(made, reference),
        "scaffold_similarity": lambda: scaffold_similarity(made, reference),
        "nearest_similarity": lambda: nearest_similarity(made, reference),
        "distance": lambda: chemnet_distance(made, reference),
        "synthetic_accessibility": lambda: float(synthetic_accessibility(made).mean()),
    }
    left_out = {"novelty"} if training is None else set()
    left_out |= set() if distance else {"distance"}
    values = {"count": len(entries), "failed": len(entries) - len(made)}
    values["validity"] = len(made) / len(entries)
    for name, measure in measures.items():
        if name in left_out:
            continue
        least = 2 if name == "distance" else 1
        values[name] = measure() if len(made) >= least else float("nan")
    return values


# %%
whole = report(tinkered, reference, known["smiles"])
for name, value in whole.items():
    print(f"{name:>24}: {value:.3f}" if isinstance(value, float) else f"{name:>24}: {value}")

# %% [markdown]
# ## On real input
#
# ### Six generators, good and bad
#
# The reference $R$ is 140 molecules that were held out. Six lists of 140 stand for six generators:
#
# - **perfect**: other held-out molecules. No generator can do better than that in earnest; what they score is the floor.
# - **copies of training $K$**: molecules of the training set.
# - **tinkered**: the generator of this lesson.
# - **carbon only**: molecules of the training set with every atom made carbon, where chemistry allows it.
# - **one molecule**: the first molecule of the training set, again and again.
# - **NCI**: molecules of another collection, larger and with other atoms.


# %%
def all_carbon(text):
    molecule = Chem.RWMol(Chem.MolFromSmiles(text))
    for atom in molecule.GetAtoms():
        atom.SetAtomicNum(6)
        atom.SetFormalCharge(0)
    return to_smiles(molecule)


far, unreadable = read_smiles(nci_smiles())
far = [text for text in far if text is not None]
copies = known["smiles"].iloc[140:280].tolist()
generators = {
    "perfect": pool[140:280],
    "copies of training K": copies,
    "tinkered": tinkered,
    "carbon only": [all_carbon(text) for text in copies],
    "one molecule": [known["smiles"].iloc[0]] * 140,
    "NCI": np.random.default_rng(0).choice(far, 140, replace=False).tolist(),
}
print(f"{len(unreadable)} of NCI's texts are no molecule; the first is row {unreadable[0].row}")

# %%
results = {name: report(made, reference, known["smiles"]) for name, made in generators.items()}
shown = {
    "validity": "validity",
    "coverage": "coverage κ",
    "uniqueness": "uniqueness u",
    "novelty": "novelty ν",
    "diversity": "diversity δ",
    "similarity": "similarity s",
    "distance": "distance D",
    "synthetic_accessibility": "SA",
}
table = np.array([[result[key] for key in shown] for result in results.values()])
floor = table[0]


# %% tags=["figure"]
def draw_generators():
    figure, axes = canvas(1, 1, 7.2, 2.9)
    spread = np.array([1, 1, 1, 1, 0.3, 1, 20, 1.5])  # what counts as far off, for each measure
    off = np.clip(np.abs(table - floor) / spread, 0, 1)
    axes.imshow(off, cmap="Oranges", vmin=0, vmax=1.4, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        ink = "white" if off[row, column] > 0.8 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, size=8)
    axes.set_xticks(
        range(len(shown)), shown.values(), rotation=20, ha="left", rotation_mode="anchor"
    )
    axes.set_yticks(range(len(results)), results)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


show(
    draw_generators(),
    alt="A table of six generators and eight measures, darker where a value is far from the "
    "perfect one: copies of the training set differ in novelty alone",
)

# %% [markdown]
# The darker a field, the farther it is from the perfect list. Read it by columns: no column sees every bad generator. Read it by rows:
#
# - **copies** differ from perfect in one field, the novelty. Validity, diversity, similarity, distance and score see nothing.
# - **one molecule** is perfectly valid. Uniqueness, diversity, similarity and distance see it.
# - **carbon only** is caught by coverage and distance, and its diversity is still 0.9.
# - **NCI** is valid, diverse and novel: these are good molecules, of another kind, and easier to make. The distance says how far they are.
# - **tinkered** fails on validity, since a valence forbids many of the changes. Its distance is above the floor, but it has fewer molecules, too.
#
# The perfect list reaches a novelty of 1 because QM9 holds no molecule twice. The floor of each list's distance, for as many molecules as it has:

# %%
for name, result in results.items():
    n = result["count"] - result["failed"]
    least = chemnet_distance(generators["perfect"][:n], reference)
    print(f"{name:>20}: {n} molecules, D = {result['distance']:5.2f}, floor {least:.2f}")

# %% [markdown]
# The floor of the similarity is low as well: 0.6, not 1, for molecules of the very same source. A fragment that one list has once and the other never counts as a difference, and most fragments occur once. The floor rises with the number of molecules:

# %%
for n in (140, 500, 2000):
    parts = [part.sample(n, random_state=1)["smiles"] for part in (training, held_out)]
    often = list(fragment_counts(parts[1]).values())
    once = f"{often.count(1) / len(often):.0%} of the fragments occur once"
    print(f"{n:4d} molecules in each: similarity {fragment_similarity(*parts):.2f}; {once}")

# %% [markdown]
# ### The same numbers at another size
#
# The paper generates 10,000 molecules and compares them with a small test set. Does a longer list help?

# %%
for n in (50, 100, 200, 300):
    equal = frechet_distance(halves[0][:n], halves[1][:n])
    longer = frechet_distance(halves[0], halves[1][:n])
    print(f"reference of {n:3d}: D = {equal:.2f} to as many, {longer:.2f} to 300")

# %% [markdown]
# It helps, but the smaller of the two lists sets the floor. A distance of 6.64, the paper's best, means something only beside the distance that real polymers have at the same numbers, which the paper does not give.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `internal_diversity` | 10 | ●●○ |
# | `cosine_of_counts` | 6 | ●○○ |
# | `frechet_distance` | 12 | ●●● |
# | `random_pairing_error` | 8 | ●●○ |
#
# <details><summary>Hint for <code>internal_diversity</code></summary>
#
# Without blocks: `_tanimoto(rows, rows)` is the whole matrix. Raise it to the power, take the mean of each row, take the root, and then the mean of these.
#
# </details>
#
# <details><summary>Hint for <code>cosine_of_counts</code></summary>
#
# A `Counter` gives 0 for a key that it does not hold. Only keys that both hold add to the product.
#
# </details>
#
# <details><summary>Hint for <code>frechet_distance</code></summary>
#
# The trace of $L^\top L$ is the sum of the squares of all numbers in $L$. `np.linalg.svd(M, compute_uv=False)` gives the singular values.
#
# </details>
#
# <details><summary>Hint for <code>random_pairing_error</code></summary>
#
# The value in place $i$ is added $i$ times and subtracted $n - 1 - i$ times: its factor is $2i - n + 1$.
#
# </details>
#
# **Predict.** Write each molecule of a list twice. What happens to validity, uniqueness, diversity, similarity and distance to a reference?
#
# <details><summary>Hint</summary>
#
# Which of the equations change when every sum has each term twice, and $n$ is twice as large? Mind the $n - 1$ in the covariance.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Uniqueness halves. Validity, diversity (each mean stays as it is) and similarity (shares) stay the same. The distance changes very little: the covariance has $2(n-1)$ where it had $2n - 1$.
#
# </details>

# %%
once, twice = report(tinkered, reference), report(tinkered * 2, reference)
for name in ("validity", "uniqueness", "diversity", "similarity", "distance"):
    print(f"{name:>10}: {once[name]:.4f} → {twice[name]:.4f}")

# %% [markdown]
# **Find the bug.** A colleague reports that the tinkering generator does not listen: its error in logP is that of chance. The colleague's code first drops the failures from the list. What is wrong, and what would have shown it?


# %%
def error_colleague(asked, smiles):
    made = [text for text in smiles if text is not None]
    return np.mean([abs(one - two) for one, two in zip(asked, logp(made), strict=False)])


print(f"{error_colleague(asked, tinkered):.2f}, {property_error(asked, logp(tinkered)).value:.2f}")

# %% [markdown]
# <details><summary>Hint</summary>
#
# After the first failure, which target is compared with which molecule?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Dropping moves every molecule behind a failure to another molecule's target, so nearly all pairs are random ones, and the error is near the level of chance. `zip(…, strict=True)` would have raised an error. Keep the list in order, with `None`.
#
# </details>

# %%
print(f"by chance: {random_pairing_error(asked):.2f}")

# %% [markdown]
# **Measure.** How many fluorines does the list need so that coverage notices that the generator makes far too few of them? And the similarity?
#
# <details><summary>Hint</summary>
#
# Take 139 molecules of the training set without fluorine, add one that has it, and compare.
#
# </details>
#
# <details><summary>Answer</summary>
#
# One is enough for coverage, which asks whether, not how many. The similarity hardly moves either, for fluorine is rare in QM9. Neither measure can tell whether a rare atom is as frequent as it should be.
#
# </details>

# %%
without = [text for text in known["smiles"] if "F" not in text][:139]
with_one = [*without, "FC(F)(F)C"]
for name, made in (("without", without), ("with one", with_one)):
    kappa, alike = coverage(made, list("CNOF")), fragment_similarity(made, reference)
    print(f"{name:>8}: coverage {kappa:.2f}, similarity {alike:.3f}")

# %% [markdown]
# ## What breaks
#
# ### The second piece of a molecule
#
# ChemNet's reader stops at the first dot. A molecule that fell into two pieces is, to the distance, its first piece:

# %%
pieces = raw_activations(["CCO", "CCO.c1ccccc1", "CCO.FC(F)(F)C(F)(F)F"])
print("apart from ethanol:", np.abs(pieces[1:] - pieces[0]).max(axis=1).tolist())
fallen = [f"{text}.FC(F)(F)C(F)(F)F" for text in generators["perfect"]]
print(f"similarity: {fragment_similarity(fallen, reference):.2f}")

# %% [markdown]
# A generator may put anything behind the dot, and the distance of this network does not see it; the fragments do. The canonical form decides which piece comes first. Take one piece of each molecule, or join the pieces, before you measure: lesson 6 does both.
#
# ### Few molecules
#
# Two molecules have a covariance, so the distance has a value. It means nothing:

# %%
for n in (2, 5):
    values = [halves_distance(n, seed) for seed in range(8)]
    print(f"n = {n}: D from {min(values):.1f} to {max(values):.1f}")
with shows_error(ValueError):
    chemnet_distance(["CCO", None], reference)

# %% [markdown]
# ### A judge trained on what it judges
#
# The paper's forest is trained on all labelled molecules, those of the test set too. For a generator that copies, such a judge is perfect praise: its error on the copies is the training error, which above is less than half of the error on new molecules.
#
# ### What the code says to bad input

# %%
with shows_error(ValueError):
    internal_diversity(["CCO", "C1CC", "CN(C)(C)C"])
with shows_error(ValueError):
    uniqueness([])
with shows_error(ValueError):
    uniqueness([None, None])
with shows_error(ValueError):
    novelty("CCO", ["CCO"])
with shows_error(ValueError):
    property_error([1.0, 2.0], [1.0])
with shows_error(ValueError):
    property_error([1.0, -2.0], [1.0, 3.0], log10=True)
with shows_error(ValueError):
    RandomForestOracle(classes=True).fit(["CCO", "CCN"], ["yes", "yes"])
with shows_error(ValueError):
    RandomForestOracle().predict(["CCO"])

# %% [markdown]
# ## Recap
#
# - Validity, coverage and uniqueness count; diversity compares a list with itself, similarity and distance with a reference, the error with what was asked. Failures stay in the list as `None`.
# - A number needs its scale: the distance that of held-out data at the same $n$, the error that of random pairing, an oracle its own out-of-bag error.
# - Each measure is blind to something. Copies of the training set pass all but novelty.
#
# The line goes on in lesson 8, where a generator is trained; these measures say what it has learned.
