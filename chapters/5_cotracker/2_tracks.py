# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 50
#     needs:
#     - 6_bilinear_sampling/1_sampling
#     - 4_raft/2_fields
#     - 4_raft/6_raft
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tracks: points, visibility, and how to score them
#
# **After this lesson you can** store the tracks of points through a video, score them as TAP-Vid does, and say what any tracker has to beat.
#
# *Before this:* [sampling](../6_bilinear_sampling/1_sampling.ipynb) (`1_sampling`), and of chapter 4 the [flow fields](../4_raft/2_fields.ipynb) and [RAFT](../4_raft/6_raft.ipynb).

# %%
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fourfold.bilinear_sampling.sampling import _check_floating, sample
from fourfold.bilinear_sampling.warps import inside
from fourfold.kit.arguments import whole_number


# %% tags=["promote"]
class Tracks(NamedTuple):
    """Where N points are in each of T frames, and whether each is seen there.

    points      (B, T, N, 2) as (x, y) in pixels of the video
    visibility  (B, T, N) the probability that the point is seen; 0 or 1 where it is known
    confidence  (B, T, N) the probability that the position is close to the true one, or None

    Convention: x to the right, y down, the centre of the top-left pixel at (0, 0). A hidden point
    has a position too: where it is behind what hides it.
    Source: Karaev et al. 2023, CoTracker (arXiv 2307.07635), section 3.
    """

    points: Float[Tensor, "B T N 2"]
    visibility: Float[Tensor, "B T N"]
    confidence: Float[Tensor, "B T N"] | None = None

    def visible(
        self, threshold: float = 0.9, with_confidence: bool = False
    ) -> Bool[Tensor, "B T N"]:
        """Decide which points are seen: visibility over the threshold, strictly.

        With `with_confidence`, visibility times confidence must exceed it (version 3 of CoTracker,
        0.6). Raises ValueError for a threshold outside [0, 1) and where there is no confidence.
        """
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold is {threshold}; expected a probability from 0, below 1")
        if not with_confidence:
            return self.visibility > threshold
        if self.confidence is None:
            raise ValueError("confidence is None; expected (B, T, N), or with_confidence=False")
        return self.visibility * self.confidence > threshold

    def at(self, frame: int) -> "Tracks":
        """Give the tracks of one frame, with T = 1. Raises ValueError for a frame there is not."""
        t = whole_number("frame", frame, least=0, most=self.points.shape[1] - 1)
        return Tracks(*(None if values is None else values[:, t : t + 1] for values in self))


# %% tags=["promote"]
def _check_video(video: Tensor) -> None:
    _check_floating("video", video)
    if video.ndim != 5 or video.shape[2] != 3 or 0 in video.shape:
        raise ValueError(
            f"video has shape {tuple(video.shape)}; expected (B, T, 3, H, W), none of them 0"
        )


def _check_queries(queries: Tensor, batch: int, frames: int, size: tuple[int, int]) -> None:
    """Raise for queries that are not (batch, N, 3) with N ≥ 1, or outside the video."""
    _check_floating("queries", queries)
    shape = tuple(queries.shape)
    if queries.ndim != 3 or shape[0] != batch or shape[2] != 3:
        raise ValueError(f"queries has shape {shape}; expected ({batch}, N, 3) as (frame, x, y)")
    if shape[1] == 0:
        raise ValueError(f"queries is empty, of shape {shape}; expected one point or more")
    frame, x, y = queries.unbind(-1)
    H, W = size
    # Written as "not good", so that a NaN counts as bad.
    for name, bad, good in (
        (
            "frame",
            ~((frame >= 0) & (frame < frames) & (frame == frame.floor())),
            f"a whole number from 0 to {frames - 1}",
        ),
        ("x", ~((x >= -0.5) & (x <= W - 0.5)), f"-0.5 to {W - 0.5}"),
        ("y", ~((y >= -0.5) & (y <= H - 0.5)), f"-0.5 to {H - 0.5}"),
    ):
        if bad.any():
            b, n = (index.item() for index in bad.nonzero()[0])
            value = queries[b, n, "fxy".index(name[0])].item()
            raise ValueError(f"queries[{b}, {n}] has {name} {value:g}; expected {good}")


# %% tags=["promote", "exercise"]
def evaluated_frames(queries: Float[Tensor, "B N 3"], T: int, mode: str) -> Bool[Tensor, "B T N"]:
    """Mark the frames of each point that count (equation 2 of the lesson).

    queries  (B, N, 3) as (frame, x, y)
    T        the number of frames
    mode     "first": the frames after the query; "strided": all frames but the query's
    returns  (B, T, N)

    Raises ValueError for another mode. Source: Doersch et al. 2022, TAP-Vid (arXiv 2211.03726).
    """
    if mode not in ("first", "strided"):
        raise ValueError(f"mode is {mode!r}; expected first or strided")
    t = torch.arange(T, device=queries.device)[None, :, None]
    start = queries[:, None, :, 0]
    return t > start if mode == "first" else t != start


# %% tags=["check"]
assert evaluated_frames(torch.tensor([[[1.0, 0, 0]]]), 3, "first").flatten().tolist() == [
    False,
    False,
    True,
]


# %% tags=["promote", "exercise"]
def share_within(
    errors: Float[Tensor, "B T N"], visible: Bool[Tensor, "B T N"], threshold: float
) -> Float[Tensor, "B"]:
    """Give the share of truly visible points that are closer than a threshold (equation 3).

    errors     (B, T, N) distances from the truth
    visible    (B, T, N) the points that count: visible in truth, in a frame that is evaluated
    threshold  in the unit of errors; a distance equal to it is too far
    returns    (B,) δ of each video; NaN for a video without a point that counts
    """
    hits = (errors < threshold) & visible
    return hits.sum(dim=(1, 2)).to(errors) / visible.sum(dim=(1, 2))


# %% tags=["check"]
assert share_within(torch.tensor([[[1.0, 0.5]]]), torch.ones(1, 1, 2).bool(), 1) == 0.5


# %% tags=["promote", "exercise"]
def jaccard(
    errors: Float[Tensor, "B T N"],
    visible: Bool[Tensor, "B T N"],
    predicted: Bool[Tensor, "B T N"],
    threshold: float,
) -> Float[Tensor, "B"]:
    """Give true positives over true positives, misses and false alarms (equation 5).

    errors     (B, T, N) distances from the truth
    visible    (B, T, N) visible in truth, in a frame that is evaluated
    predicted  (B, T, N) predicted visible, in a frame that is evaluated
    threshold  in the unit of errors; a distance equal to it is too far
    returns    (B,) J of each video; NaN for a video where nothing is visible or predicted so

    A visible point that is predicted too far away counts twice below the line: it is missed at its
    place, and a false alarm at another.
    """
    close = visible & (errors < threshold)
    hits = (close & predicted).sum(dim=(1, 2))
    alarms = (predicted & ~close).sum(dim=(1, 2))
    return hits.to(errors) / (visible.sum(dim=(1, 2)) + alarms)


# %% tags=["check"]
assert jaccard(*torch.tensor([[[[1.0, 0.5]]]]), *[torch.ones(1, 1, 2).bool()] * 2, 1) == 1 / 3


# %% tags=["promote"]
THRESHOLDS = (1, 2, 4, 8, 16)  # pixels of a frame scaled to 256 × 256


class Score(NamedTuple):
    """The measures of TAP-Vid, each from 0 to 1, larger is better.

    average_jaccard     AJ, the mean of `jaccard`
    average_within      δ_avg, the mean of `within`
    occlusion_accuracy  OA, the share of frames whose visibility is right
    within              δ for each threshold in pixels, 1, 2, 4, 8 and 16
    jaccard             J for each threshold
    """

    average_jaccard: float
    average_within: float
    occlusion_accuracy: float
    within: dict[int, float]
    jaccard: dict[int, float]


def _check_tracks(predicted: Tracks, truth: Tracks) -> None:
    for name, tracks in (("predicted", predicted), ("truth", truth)):
        _check_floating(f"{name}.points", tracks.points)
        _check_floating(f"{name}.visibility", tracks.visibility)
        shape = tuple(tracks.points.shape)
        if len(shape) != 4 or shape[3] != 2:
            raise ValueError(f"{name}.points has shape {shape}; expected (B, T, N, 2)")
        if tuple(tracks.visibility.shape) != shape[:3]:
            raise ValueError(
                f"{name}.visibility has shape {tuple(tracks.visibility.shape)}; "
                f"expected {shape[:3]}, as {name}.points"
            )
    if predicted.points.shape != truth.points.shape:
        raise ValueError(
            f"predicted.points has shape {tuple(predicted.points.shape)}; "
            f"expected {tuple(truth.points.shape)}, as truth.points"
        )
    if not predicted.points.isfinite().all():
        raise ValueError("predicted.points has numbers that are not finite; expected pixels")


def _check_counts(visible: Tensor) -> None:
    for b, count in enumerate(visible.sum(dim=(1, 2)).tolist()):
        if count == 0:
            raise ValueError(
                f"truth.visibility has no visible point in the evaluated frames of video {b}; "
                "expected one or more, without which δ is not defined"
            )


# %% tags=["promote"]
def tap_vid_metrics(
    predicted: Tracks,
    truth: Tracks,
    queries: Float[Tensor, "B N 3"],
    size: tuple[int, int],
    mode: str = "first",
    threshold: float = 0.9,
    with_confidence: bool = False,
) -> Score:
    """Score tracks as TAP-Vid does (equations 1 to 6 of the lesson).

    predicted        the tracker's answer to queries
    truth            the true tracks, visibility 0 or 1
    queries          (B, N, 3) as (frame, x, y)
    size             (H, W) of the video that the coordinates of both belong to
    mode             "first" counts the frames after the query, "strided" all but the query's
    threshold, with_confidence  decide which predicted points are visible, as `Tracks.visible`
    returns          Score, of each video and averaged over the batch

    Distances are scaled by 256 / W in x and 256 / H in y, and compared in float64. Raises TypeError
    for tensors of whole numbers, ValueError for tracks whose shapes are wrong or differ, queries
    that are none or outside, another mode, and a video with no visible point to count.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    Source: Doersch et al. 2022, TAP-Vid (arXiv 2211.03726), section 3.
    """
    _check_tracks(predicted, truth)
    B, T, N, _ = truth.points.shape
    H, W = (whole_number(f"size[{i}]", side, least=1) for i, side in enumerate(size))
    _check_queries(queries, B, T, (H, W))
    if queries.shape[1] != N:
        raise ValueError(f"queries has {queries.shape[1]} points; expected {N}, as truth.points")
    counted = evaluated_frames(queries, T, mode)
    scale = truth.points.new_tensor([256 / W, 256 / H], dtype=torch.float64)
    errors = ((predicted.points.double() - truth.points.double()) * scale).norm(dim=-1)
    visible = truth.visible(0.5)
    shown = predicted.visible(threshold, with_confidence)
    right = ((shown == visible) & counted).sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).double()
    visible, shown = visible & counted, shown & counted
    _check_counts(visible)
    within = {x: share_within(errors, visible, x).mean().item() for x in THRESHOLDS}
    overlap = {x: jaccard(errors, visible, shown, x).mean().item() for x in THRESHOLDS}
    averages = (sum(values.values()) / len(THRESHOLDS) for values in (overlap, within))
    return Score(*averages, right.mean().item(), within, overlap)


# %% tags=["promote"]
def stay_put(video: Float[Tensor, "B T 3 H W"], queries: Float[Tensor, "B N 3"]) -> Tracks:
    """Say of every point that it stays where it was asked for, and is always seen.

    video    (B, T, 3, H, W)
    queries  (B, N, 3) as (frame, x, y), in pixels of the video
    returns  Tracks of T frames

    Raises TypeError for tensors of whole numbers, ValueError for a video or queries of another
    shape, no queries, and queries outside the video.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    _check_video(video)
    B, T, _, H, W = video.shape
    _check_queries(queries, B, T, (H, W))
    points = queries[:, None, :, 1:].repeat(1, T, 1, 1)
    return Tracks(points, torch.ones_like(points[..., 0]))


# %% tags=["promote", "exercise"]
def follow(
    points: Float[Tensor, "B N 2"], flow: Float[Tensor, "B 2 H W"]
) -> Float[Tensor, "B N 2"]:
    """Move each point by the flow that is read at it (equation 7 of the lesson).

    points   (B, N, 2) as (x, y) in pixels of the first image; outside it the border is read
    flow     (B, 2, H, W) as (u, v) in pixels, from the first image to the second
    returns  (B, N, 2) in pixels of the second image

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    return points + sample(flow, points, padding="border").transpose(1, 2).to(points)


# %% tags=["check"]
assert follow(torch.ones(1, 1, 2), 2 * torch.ones(1, 2, 3, 3)).tolist() == [[[3, 3]]]


# %% tags=["promote"]
def _returns(start: Tensor, end: Tensor, back: Tensor) -> Bool[Tensor, "B N"]:
    """Tell whether the flow back leads home from `end`, and `end` is inside (equation 8)."""
    home = follow(end, back)
    miss = (home - start).square().sum(dim=-1)
    lengths = (end - start).square().sum(dim=-1) + (home - end).square().sum(dim=-1)
    there = inside(end[:, None], *back.shape[2:])[:, 0]
    return there & (miss <= 0.01 * lengths + 0.5)


def _all_flows(video: Tensor, estimate_flow: Callable) -> list[tuple[Tensor, Tensor]]:
    """The flow from each frame (T, 3, H, W) to the next, and back."""
    flows = []
    for first, second in zip(video[:-1, None], video[1:, None], strict=True):
        both = (estimate_flow(first, second), estimate_flow(second, first))
        # RAFT's own answer is a pair of sizes, of which the full one is wanted.
        both = tuple(getattr(flow, "full", flow) for flow in both)
        for flow in both:
            if tuple(flow.shape) != (1, 2, *video.shape[2:]):
                raise ValueError(
                    f"estimate_flow returned the shape {tuple(flow.shape)}; "
                    f"expected {(1, 2, *video.shape[2:])}"
                )
        flows.append(both)
    return flows


def _chain(points: Tensor, visible: Tensor, frame: Tensor, flows: list) -> None:
    """Follow the flows from each point's frame on; fills points (T, N, 2) in place."""
    for t, (there, back) in enumerate(flows):
        moving = frame <= t
        end = follow(points[None, t], there)
        trusted = _returns(points[None, t], end, back)
        points[t + 1] = torch.where(moving[:, None], end[0], points[t + 1])
        visible[t + 1] = torch.where(moving, visible[t] & trusted[0], visible[t + 1])


# %% tags=["promote"]
def chained_flow(
    video: Float[Tensor, "B T 3 H W"],
    queries: Float[Tensor, "B N 3"],
    estimate_flow: Callable[[Tensor, Tensor], Tensor],
) -> Tracks:
    """Track points by adding up the flow from frame to frame (equations 7 and 8 of the lesson).

    video          (B, T, 3, H, W) in [0, 255]
    queries        (B, N, 3) as (frame, x, y), in pixels of the video
    estimate_flow  takes two images (1, 3, H, W), returns the flow from the first to the second,
                   (1, 2, H, W) in pixels, or RAFT's pair of flows
    returns        Tracks of T frames, forward from each query's frame and backward before it

    The visibility is 1 until the flow there and back does not return or the point leaves the frame,
    and 0 from then on: a chain that is broken has lost its point. Calls estimate_flow 2 (T − 1)
    times for each video. Raises TypeError for tensors of whole numbers, ValueError for a video or
    queries of another shape, no queries, queries outside the video, and a flow of another shape.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    Source of the rule: Sundaram, Brox and Keutzer, ECCV 2010.
    """
    points, visibility = stay_put(video, queries)[:2]
    visible = visibility > 0
    T = video.shape[1]
    for b, frames in enumerate(video):
        flows = _all_flows(frames, estimate_flow)
        frame = queries[b, :, 0]
        _chain(points[b], visible[b], frame, flows)
        # Backward in time is forward in the reversed video, with the two flows exchanged.
        turned = [(back, there) for there, back in reversed(flows)]
        way, seen = points[b].flip(0), visible[b].flip(0)
        _chain(way, seen, T - 1 - frame, turned)
        before = torch.arange(T, device=frame.device)[:, None] < frame
        points[b] = torch.where(before[..., None], way.flip(0), points[b])
        visible[b] = torch.where(before, seen.flip(0), visible[b])
    return Tracks(points, visible.to(points))


# %% tags=["promote"]
def palindrome_error(
    tracker: Callable[[Tensor, Tensor], Tracks],
    video: Float[Tensor, "B T 3 H W"],
    queries: Float[Tensor, "B N 3"],
) -> Float[Tensor, "B N"]:
    """Track through the video and back, and measure how far each point ends from its start.

    tracker  takes a video and queries, returns Tracks
    video    (B, T, 3, H, W); the tracker sees it with its reverse behind it, 2 T − 1 frames
    queries  (B, N, 3) as (frame, x, y), in pixels of the video
    returns  (B, N) distances in pixels, in the frame that mirrors the query's (equation 9)

    No truth is needed, and a small error is necessary, not sufficient: `stay_put` has 0. Raises
    TypeError for tensors of whole numbers, ValueError for a video or queries of another shape, no
    queries, queries outside the video, and tracks of another shape.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    _check_video(video)
    B, T, _, H, W = video.shape
    _check_queries(queries, B, T, (H, W))
    points = tracker(torch.cat([video, video[:, :-1].flip(1)], dim=1), queries).points
    expected = (B, 2 * T - 1, queries.shape[1], 2)
    if tuple(points.shape) != expected:
        raise ValueError(f"tracker returned points {tuple(points.shape)}; expected {expected}")
    mirrored = (2 * (T - 1) - queries[..., 0]).long()
    end = points.gather(1, mirrored[:, None, :, None].expand(-1, 1, -1, 2))[:, 0]
    return (end - queries[..., 1:]).norm(dim=-1)
