"""The released EDM's parameters and outputs, see tests/reference/README.md."""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

REFERENCE = Path(__file__).parents[1] / "reference"
CONFIGURATIONS = {
    "base": {},
    "ctx": {"context": 1},
    "sin": {},
    "inv2": {"tanh": False, "divisor": 100.0},
}


def filled(name: str, shape: list[int]) -> Tensor:
    """The value of a parameter: a function of its name and shape."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) >= 2:
        noise = 0.35 * noise / np.sqrt(shape[1])
    elif name.endswith(".weight"):
        noise = 1 + 0.1 * noise
    else:
        noise = 0.1 * noise
    return torch.from_numpy(noise.astype(np.float32))


@functools.cache
def info() -> dict:
    return json.loads((REFERENCE / "edm_info.json").read_text(encoding="utf-8"))


@functools.cache
def outputs(name: str = "edm") -> dict[str, Tensor]:
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def state_dict(configuration: str) -> dict[str, Tensor]:
    """The state_dict of a released EDM: `base`, `ctx`, `sin` or `inv2`."""
    tables = outputs("edm_schedule")
    return {
        name: tables["gamma_polynomial_2_T50_p0.0001"]
        if name == "gamma.gamma"
        else filled(name, shape)
        for name, shape in info()[f"keys_{configuration}"].items()
    }
