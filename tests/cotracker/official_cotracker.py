"""The parameters and inputs that the frozen numbers of the official CoTracker were made with.

Every value is a pure function of its name and shape: see tests/reference/README.md.
"""

import json
import math
import zlib

import numpy as np
import torch
from official import REFERENCE, close, reference
from torch import Tensor

__all__ = [
    "REFERENCE",
    "close",
    "official_queries",
    "official_state_dict",
    "reference",
    "texture",
    "texture_video",
]

COMPUTED = ("time_emb", "pos_emb")  # buffers of the release's files, no parameters
DAMPED = ("updateformer.flow_head.weight", "vis_conf_head.weight")

# Amplitude, cycles per pixel in x and in y, phase: the plane waves of the texture.
WAVES = (
    (0.35, 0.031, 0.017, 0.3),
    (0.25, -0.013, 0.043, 1.1),
    (0.20, 0.083, 0.059, 2.0),
    (0.12, 0.147, -0.111, 0.7),
    (0.08, 0.211, 0.173, 2.9),
)


def official_state_dict(variant: str) -> dict[str, Tensor]:
    """All tensors of an official model by their names, filled as for the frozen numbers.

    variant  cotracker2, cotracker2v1, cotracker3_offline or cotracker3_online

    `pos_emb` is left out; `time_emb` is computed, as in the release.
    """
    shapes = json.loads((REFERENCE / "cotracker_keys.json").read_text())[variant]
    state = {
        name: _parameter(name, shape) for name, shape in shapes.items() if name not in COMPUTED
    }
    return {"time_emb": _time_table(*shapes["time_emb"][1:]), **state}


def _time_table(length: int, width: int) -> Tensor:
    angles = np.outer(np.arange(length), 10_000 ** (-np.arange(width // 2) / (width / 2)))
    return torch.from_numpy(np.hstack([np.sin(angles), np.cos(angles)]))[None].float()


def _parameter(name: str, shape: list[int]) -> Tensor:
    random = np.random.RandomState(zlib.crc32(name.encode()))
    values = (2 * random.random_sample(math.prod(shape)) - 1).reshape(shape)
    if name.endswith("bias"):
        values *= 0.1
    elif name.endswith("weight") and len(shape) == 1:
        values = 1 + 0.1 * values
    elif name.endswith("weight"):
        values *= math.sqrt(3 / math.prod(shape[1:]))
    if name.endswith(DAMPED):
        values *= 0.05
    if name.endswith("updateformer.input_transform.weight") and shape[1] == 456:
        values[:, 2:130] *= 0.01
    return torch.from_numpy(values).float()


def texture(height: int, width: int, dx: float = 0, dy: float = 0) -> Tensor:
    """An image (3, H, W) of whole numbers, moved by (dx, dy) pixels."""
    y = torch.arange(height, dtype=torch.float64)[:, None] - dy
    x = torch.arange(width, dtype=torch.float64) - dx
    channels = [
        sum(
            a * torch.sin(2 * math.pi * (fx * x + fy * y) + phase + 0.9 * channel)
            for a, fx, fy, phase in WAVES
        )
        for channel in range(3)
    ]
    return (127.5 + 110 * torch.stack(channels)).round().clamp(0, 255).float()


def texture_video(frames: int, height: int = 96, width: int = 128) -> Tensor:
    """(1, T, 3, H, W): the texture moves by (1.25, −0.75) pixels a frame."""
    return torch.stack([texture(height, width, 1.25 * t, -0.75 * t) for t in range(frames)])[None]


def official_queries(variant: str) -> Tensor:
    """(1, N, 3) as (frame, x, y)."""
    return reference(variant)["queries"][None]
