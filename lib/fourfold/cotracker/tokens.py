"""Tokens: what the transformer reads (draft of lesson 4)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def sinusoids(positions: Float[Tensor, "*N"], width: int) -> Float[Tensor, "*N {width}"]:
    """Sines, then cosines, of positions at falling frequencies (equation 1 of the lesson).

    positions  (*N,) in any unit, made float64, since high frequencies magnify rounding
    width      D, an even number

    Raises ValueError for an odd width. Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5,
    in blocks as the CoTracker release lays them out.
    """
    if width % 2:
        raise ValueError(f"width is {width}; expected an even number")
    k = torch.arange(width // 2, dtype=torch.float64, device=positions.device)
    angles = positions.double()[..., None] * 10_000 ** (-k / (width / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(positions.dtype)


def time_embedding(frames: int, width: int, length: int | None = None) -> Float[Tensor, "S D"]:
    """One vector for each frame of a window (equation 2 of the lesson).

    length   frames that the vectors were made for; where they are not `frames`, the vectors are
             stretched by linear interpolation, as version 3 does
    """
    length = frames if length is None else length
    even = width + width % 2
    vectors = sinusoids(torch.arange(length, dtype=torch.float32), even)[:, :width]
    if length == frames:
        return vectors
    return F.interpolate(vectors.T[None], size=frames, mode="linear")[0].T


def place_embedding(
    points: Float[Tensor, "*N 2"], width: int, size: tuple[int, int]
) -> Float[Tensor, "*N {width}"]:
    """A vector for a place on the map: half of it for x, half for y (equation 3 of the lesson).

    points   (*N, 2) as (x, y), in pixels of the features
    width    D
    size     (H, W) of the map; places beyond its border count as on it

    Between pixels the vectors of the neighbours are blended. Each half depends on one coordinate,
    so no map of H × W vectors is needed: two tables of H and W rows hold the same numbers.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    half = 2 * math.ceil(width / 4)  # the last numbers of a width that 4 does not divide fall off
    halves = [
        _blend_rows(sinusoids(torch.arange(length).to(points), half), coordinate)
        for coordinate, length in zip(points.unbind(-1), reversed(size), strict=True)
    ]
    return torch.cat(halves, dim=-1)[..., :width]


def _blend_rows(table: Float[Tensor, "P D"], position: Float[Tensor, "*N"]) -> Tensor:
    position = position.clamp(0, len(table) - 1)
    low = position.detach().floor().long()
    high = (low + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[low], table[high], (position - low)[..., None])


def motion_embedding(
    motion: Float[Tensor, "*N 2"], width: int = 64, highest: float = 1000.0
) -> Float[Tensor, "*N {2*width+2}"]:
    """A motion as it is, with sines and cosines of both parts (equation 4 of the lesson).

    motion   (*N, 2) as (x, y), in pixels of the features
    width    E, an even number, of the sinusoids of one part
    highest  the frequencies are 0 to just below this, in radians a pixel of the features
    returns  (*N, 2 + 2 · width): x, y, then sine and cosine in turn, those of x first

    Source: the CoTracker release.
    """
    frequencies = torch.arange(0, width, 2).to(motion) * (highest / width)
    angles = motion[..., None] * frequencies
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1)
    return torch.cat([motion, waves.flatten(-3)], dim=-1)


def fourier_features(values: Float[Tensor, "*N P"], octaves: int = 10) -> Float[Tensor, "*N Q"]:
    """Values with their sines and cosines at doubling frequencies (equation 5 of the lesson).

    values   (*N, P)
    returns  (*N, P · (1 + 2 · octaves)): the values; all sines, frequency by frequency; all cosines

    Source: the release of CoTracker 3 (arXiv 2410.11831).
    """
    frequencies = 2.0 ** torch.arange(octaves, device=values.device, dtype=values.dtype)
    angles = (values[..., None, :] * frequencies[:, None]).flatten(-2)
    # The release shifts the sine by a quarter turn where a cosine would do.
    return torch.cat([values, angles.sin(), (angles + math.pi / 2).sin()], dim=-1)


def step_motion(points: Float[Tensor, "B S N 2"]) -> Float[Tensor, "B S N 4"]:
    """How a track goes on to the next frame and came from the last (equation 6 of the lesson).

    returns  (B, S, N, 4): (x, y) of p_t − p_{t+1}, 0 at the last frame; then of p_t − p_{t−1}, 0 at
             the first
    """
    step = points[:, 1:] - points[:, :-1]
    forward = F.pad(-step, (0, 0, 0, 0, 0, 1))
    backward = F.pad(step, (0, 0, 0, 0, 1, 0))
    return torch.cat([forward, backward], dim=-1)
