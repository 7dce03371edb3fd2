"""How large a run is: small enough for a laptop's CPU by default, larger where there is a GPU."""

import os
import random

import numpy as np
import torch

from fourfold.kit.arguments import whole_number

__all__ = ["at_scale", "device", "hardware", "scale", "seed_everything"]

SCALES = ("cpu", "gpu")


def scale() -> str:
    """The scale of this run, `"cpu"` or `"gpu"`, from the environment variable `FOURFOLD_SCALE`.

    An unset or empty variable means `"cpu"`. Raises ValueError for any other word.
    """
    value = os.environ.get("FOURFOLD_SCALE") or "cpu"
    if value not in SCALES:
        raise ValueError(f"FOURFOLD_SCALE is {value!r}; expected 'cpu' or 'gpu'")
    return value


def at_scale(*, cpu, gpu):
    """The value for this run's scale: `cpu` at scale cpu, `gpu` at scale gpu.

    >>> steps = at_scale(cpu=100, gpu=20_000)
    """
    return {"cpu": cpu, "gpu": gpu}[scale()]


def hardware() -> str:
    """What this run computes on, in words: the GPU's name, or the CPU with its threads."""
    if scale() == "gpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()}-thread CPU"


def device() -> torch.device:
    """Where tensors live in this run: the CPU at scale cpu, the current CUDA device at scale gpu.

    Raises RuntimeError at scale gpu when torch sees no GPU: the larger sizes would take days
    on a CPU, so nothing falls back silently.
    """
    if scale() == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            "FOURFOLD_SCALE is 'gpu', but torch sees no CUDA device; "
            "set FOURFOLD_SCALE=cpu, or install a torch that matches this machine's driver"
        )
    return torch.device("cuda")


def seed_everything(seed: int = 0) -> None:
    """Seed Python's, NumPy's and torch's random number generators (torch's on every device).

    Raises ValueError for a seed that is no whole number in [0, 2³² − 1], the range that NumPy
    accepts.
    """
    seed = whole_number("seed", seed, least=0, most=2**32 - 1)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
