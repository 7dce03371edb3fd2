"""The graphs and parameters that the frozen numbers of the official Graph DiT were made with.

Every parameter is a pure function of its name and shape: see tests/reference/README.md.
"""

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourfold.graph_dit.graphs import Codes, Graphs, Vocabulary, encode_smiles
from fourfold.graph_dit.noise import GraphStatistics

__all__ = [
    "REFERENCE",
    "clean_graphs",
    "information",
    "noised_graphs",
    "off",
    "official_codes",
    "official_state_dict",
    "official_statistics",
    "reference",
    "times",
    "value",
]

REFERENCE = Path(__file__).parents[1] / "reference"


@cache
def reference(name: str) -> dict[str, Tensor]:
    """The arrays of a frozen file as tensors: `denoiser`, `noise` or `nll`."""
    with np.load(REFERENCE / f"graphdit_{name}.npz") as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


@cache
def information(name: str) -> dict[str, Any]:
    """A frozen JSON file: `info` (key shapes, gradient norms) or `meta` (SMILES, vocabulary)."""
    return json.loads((REFERENCE / f"graphdit_{name}.json").read_text(encoding="utf-8"))


def off(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to max(1, |theirs|); both must have one shape."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    if not ours.numel():
        return 0.0
    difference = (ours.double() - theirs.double()).abs() / theirs.double().abs().clamp(min=1)
    return difference.max().item()


def value(name: str, shape: tuple[int, ...] | list[int]) -> Tensor:
    """An official parameter: of NumPy's legacy generator, whose stream never changes."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    values = random.standard_normal(tuple(shape))
    if len(shape) >= 2:
        values = values / np.sqrt(shape[1])
    elif name.endswith(".weight"):
        values = 1 + 0.1 * values
    else:
        values = 0.1 * values
    return torch.from_numpy(values.astype(np.float32))


def official_state_dict(kind: str) -> dict[str, Tensor]:
    """All tensors of the official denoiser by their names: `reg` or `cls`."""
    return {name: value(name, shape) for name, shape in information("info")[f"keys_{kind}"].items()}


def clean_graphs() -> Graphs:
    """Six molecules of 5, 6, 4, 2, 9 and 3 atoms, padded to 9."""
    file = reference("denoiser")
    return Graphs(file["X0"].float(), file["E0"].float(), file["mask"].bool())


def noised_graphs(name: str = "denoiser") -> Graphs:
    """The same at the times of `times`, as the release drew them; `nll` holds another draw."""
    file = reference(name)
    return Graphs(file["X_t"].float(), file["E_t"].float(), reference("denoiser")["mask"].bool())


def times(name: str = "denoiser", steps: int = 50) -> Tensor:
    """The whole-number times of the noised graphs."""
    file = reference(name)
    t = file["t_int"] if "t_int" in file else file["t"] * steps
    return t.round().long().view(-1)


def official_codes() -> tuple[Codes, Vocabulary]:
    """The 26 molecules of the statistics. `*` counts as an atom here, so that N is 10 at least."""
    meta = information("meta")
    vocabulary = Vocabulary(tuple(meta["active_atoms"]), 12)
    codes, _, problems = encode_smiles(meta["smiles"], vocabulary)
    assert not problems
    return codes, vocabulary


def official_statistics() -> GraphStatistics:
    """The release's statistics for N = 9; it has neither counts nor sizes of this kind."""
    file = reference("noise")
    parts = (file[key].float() for key in ("x_marginals", "e_marginals", "xe", "ex"))
    return GraphStatistics(*parts, torch.zeros(8, 5), torch.zeros(10))
