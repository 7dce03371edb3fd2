"""The parameters that the frozen numbers of the official RAFT were made with.

Every value is a pure function of its name and shape: see tests/reference/README.md.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

REFERENCE = Path(__file__).parents[1] / "reference"


def reference(name: str) -> dict[str, torch.Tensor]:
    """The arrays of a frozen file, as tensors where torch has their type."""
    with np.load(REFERENCE / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return {
        key: array if array.dtype.kind == "U" else torch.from_numpy(np.array(array))
        for key, array in arrays.items()
    }


def official_state_dict(variant: str) -> dict[str, torch.Tensor]:
    """All tensors of the official model by their names, filled as for the frozen numbers."""
    keys = json.loads((REFERENCE / "raft_keys.json").read_text())[f"raft_{variant}"]
    return {name: filled(name, tuple(shape)) for name, shape in shapes(keys).items()}


def shapes(keys) -> dict[str, list[int]]:
    pairs = keys.items() if isinstance(keys, dict) else keys
    return {name: about["shape"] if isinstance(about, dict) else about for name, about in pairs}


def filled(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    u = _uniform(name.replace(".downsample.1.", ".norm3."), shape)
    if name.endswith("running_var"):
        values = 1 + 0.5 * u
    elif name.endswith("weight") and len(shape) == 1:
        values = 1 + 0.1 * u
    elif name.endswith("weight"):
        values = u * math.sqrt(3 / math.prod(shape[1:]))
    else:
        values = 0.1 * u
    return torch.from_numpy(values).float()


def _uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [−1, 1), from NumPy's legacy generator, whose stream never changes."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return (2 * random.random_sample(math.prod(shape)) - 1).reshape(shape)


def close(ours: torch.Tensor, theirs: torch.Tensor, relative: float = 0, absolute: float = 0):
    """Whether all numbers lie within `relative` times the largest of theirs, plus `absolute`."""
    limit = relative * theirs.abs().max().item() + absolute
    return ours.shape == theirs.shape and (ours - theirs).abs().max().item() <= limit
