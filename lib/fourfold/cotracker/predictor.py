"""Predictor: points of a user's video (draft of lesson 7)."""

import math
from collections.abc import Sequence

import psutil
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fourfold.bilinear_sampling.sampling import _check_floating
from fourfold.cotracker.cotracker import CoTracker, Estimate, as_tracks, check_queries, check_video
from fourfold.cotracker.features import STRIDE
from fourfold.cotracker.tracks import Tracks
from fourfold.kit.arguments import whole_number


def grid_points(
    count: int, size: tuple[int, int], centre: tuple[float, float] | None = None
) -> Float[Tensor, "N 2"]:
    """A square number of points, spread evenly over an image (equation 1 of the lesson).

    count    points a side; one is put in the middle
    size     (H, W) in pixels of what they cover; W / 64 pixels stay free on every side
    centre   (x, y) of what they cover; of the image itself when left out
    returns  (count², 2) as (x, y), row by row

    Source: the CoTracker release.
    """
    whole_number("count", count, least=1)
    H, W = size
    x, y = (W / 2, H / 2) if centre is None else centre
    if count == 1:
        return torch.tensor([[x, y]])
    margin = W / 64
    across = torch.linspace(margin - W / 2 + x, W / 2 - margin + x, count)
    down = torch.linspace(margin - H / 2 + y, H / 2 - margin + y, count)
    rows, columns = torch.meshgrid(down, across, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)


def at_frame(frame: float, points: Float[Tensor, "N 2"]) -> Float[Tensor, "N 3"]:
    """Queries (frame, x, y) for points of one frame."""
    return torch.cat([torch.full_like(points[:, :1], frame), points], dim=1)


def resize_video(video: Float[Tensor, "B T 3 H W"], size: tuple[int, int]) -> Tensor:
    """Frames of another size; the centres of the corner pixels stay in the corners."""
    if tuple(video.shape[3:]) == tuple(size):
        return video
    frames = [
        F.interpolate(clip, size, mode="bilinear", align_corners=True) for clip in video.unbind(1)
    ]
    return torch.stack(frames, dim=1)


def _scale(old: Sequence[int], new: Sequence[int], like: Tensor) -> Float[Tensor, "2"]:
    """The factors (x, y) from coordinates in frames of the old size (H, W) to the new size."""
    sides = zip(old, new, strict=True)
    return like.new_tensor([(b - 1) / max(a - 1, 1) for a, b in sides]).flip(0)


def bytes_per_point(model: CoTracker, frames: int) -> int:
    """Memory that one more point takes at most while it is tracked (equation 2 of the lesson)."""
    S = frames if model.whole_clip else model.window
    update = model.update
    return 4 * S * (3 * update.inputs + 8 * model.sizes.width) + 24 * frames


def most_points(model: CoTracker, frames: int, memory: float | None = None) -> int:
    """How many points fit into memory, in bytes; that which is free when left out."""
    free = psutil.virtual_memory().available if memory is None else memory
    return int(free // bytes_per_point(model, frames))


class Predictor:
    """Track points of a video of any size and length (section 4 of the paper).

    model       a CoTracker
    resolution  (H, W) to which videos are resized; that of the model when left out
    iterations  M, of the model's updates

    Source: the predictors of the CoTracker release.
    """

    def __init__(
        self,
        model: CoTracker,
        *,
        resolution: tuple[int, int] | None = None,
        iterations: int = 6,
    ) -> None:
        self.model = model
        self.resolution = tuple(model.sizes.resolution if resolution is None else resolution)
        self.iterations = whole_number("iterations", iterations, least=1)

    @torch.no_grad()
    def __call__(
        self,
        video: Float[Tensor, "B T 3 H W"],
        queries: Float[Tensor, "B N 3"] | None = None,
        grid: int | None = None,
        *,
        frame: int = 0,
        mask: Bool[Tensor, "H W"] | None = None,
        backward: bool = False,
        support: int | None = None,
        local: int = 0,
        together: int | None = None,
    ) -> Tracks:
        """Track queries, or a grid of points.

        queries   (frame, x, y) in pixels of the video
        grid      points a side instead of queries, on `frame`; where a mask is given, those in it
        backward  track what comes before the query too, through the reversed video
        support   points a side of a grid at frame 0 that is tracked along and dropped; 6 for
                  queries and none for a whole grid, when left out
        local     points a side of a grid of 50 pixels around the query, where queries are tracked
                  one by one
        together  most queries tracked jointly; all when left out, 1 for each by itself
        returns   Tracks in pixels of the video; at its query's frame each point is where it was
                  asked for, and visible
        """
        H, W = video.shape[3:]
        if (queries is None) == (grid is None):
            raise ValueError("queries and grid: expected one of them")
        if queries is None:
            queries = self._grid_queries(video, grid, frame, mask)
            support = (0 if mask is None else 6) if support is None else support
        check_queries(queries, video)
        support = 6 if support is None else support
        scale = _scale((H, W), self.resolution, video)
        small = resize_video(video, self.resolution)
        inside = torch.cat([queries[..., :1], queries[..., 1:] * scale], dim=-1)
        parts = self._parts(inside, video.shape[1], together)
        tracks = _join(
            [self._track(small, part, backward, support, local) for part in parts], inside.shape[1]
        )
        tracks = tracks._replace(points=tracks.points / scale)
        return _with_queries(tracks, queries)

    def _grid_queries(self, video, grid, frame, mask) -> Tensor:
        points = grid_points(grid, self.resolution).to(video.device)
        if mask is not None:
            small = F.interpolate(mask[None, None].float(), self.resolution, mode="nearest")[0, 0]
            x, y = points.round().long().unbind(-1)
            points = points[small[y, x] > 0]
        points = points * _scale(self.resolution, video.shape[3:], points)
        return at_frame(float(frame), points).expand(len(video), -1, -1)

    def _parts(self, queries: Tensor, frames: int, together: int | None) -> list[Tensor]:
        """Deal the queries out, so that each part is spread over the image like the whole."""
        N = queries.shape[1]
        if together is None:
            fits = most_points(self.model, frames)
            if fits < N * len(queries):
                raise ValueError(
                    f"queries has {N * len(queries)} points; about {fits} fit into memory "
                    f"(together={max(1, fits // len(queries))} tracks so many at once)"
                )
            return [queries]
        count = math.ceil(N / whole_number("together", together, least=1))
        return [queries[:, first::count] for first in range(count)]

    def _track(self, video, queries, backward, support, local) -> Tracks:
        """Tracks of queries, helped by the points of the support grids."""
        B, N, _ = queries.shape
        helpers = []
        if local:
            if N > 1:
                raise ValueError("local is for together=1; expected 0")
            at, *centre = queries[0, 0].tolist()
            around = at_frame(at, grid_points(local, (50, 50), centre))
            helpers.append(around)
        if support:
            helpers.append(at_frame(0.0, grid_points(support, self.resolution)))
        extra = [points.to(queries).expand(B, -1, -1) for points in helpers]
        asked = torch.cat([queries, *extra], dim=1)
        tracks = self.model(video, asked, self.iterations)
        if backward:
            tracks = self._before(video, asked, tracks)
        return Tracks(*(None if x is None else x[:, :, :N] for x in tracks))

    def _before(self, video: Tensor, queries: Tensor, tracks: Tracks) -> Tracks:
        """Take what lies before each query from the reversed video."""
        T = video.shape[1]
        reverse = torch.cat([T - 1 - queries[..., :1], queries[..., 1:]], dim=-1)
        other = self.model(video.flip(1), reverse, self.iterations)
        earlier = torch.arange(T, device=video.device)[:, None] < queries[:, None, :, 0]
        return Tracks(*(
            None
            if x is None
            else torch.where(earlier[..., None] if x.ndim == 4 else earlier, y.flip(1), x)
            for x, y in zip(tracks, other, strict=True)
        ))


def _join(parts: list[Tracks], count: int) -> Tracks:
    """Put tracks that were dealt out back into the order of their queries."""
    if len(parts) == 1:
        return parts[0]
    joined = []
    for pieces in zip(*parts, strict=True):
        if pieces[0] is None:
            joined.append(None)
            continue
        shape = list(pieces[0].shape)
        shape[2] = count
        whole = pieces[0].new_empty(shape)
        for first, piece in enumerate(pieces):
            whole[:, :, first :: len(parts)] = piece
        joined.append(whole)
    return Tracks(*joined)


def _with_queries(tracks: Tracks, queries: Float[Tensor, "B N 3"]) -> Tracks:
    """At its own frame a point is where it was asked for, and certain."""
    batch = torch.arange(len(queries), device=queries.device)[:, None]
    point = torch.arange(queries.shape[1], device=queries.device)
    frame = queries[..., 0].long()
    points, *certainty = (None if x is None else x.clone() for x in tracks)
    points[batch, frame, point] = queries[..., 1:]
    for values in certainty:
        if values is not None:
            values[batch, frame, point] = 1.0
    return Tracks(points, *certainty)


class OnlinePredictor:
    """Track points while a video arrives, in memory that does not grow with its length."""

    def __init__(
        self,
        model: CoTracker,
        queries: Float[Tensor, "N 3"] | None = None,
        grid: int | None = None,
        *,
        support: int | None = None,
        resolution: tuple[int, int] | None = None,
        iterations: int = 6,
    ) -> None:
        if model.whole_clip:
            raise ValueError(
                "model is of version 3 in its offline mode, which reads the whole clip at once; "
                "expected mode='online', or version 2"
            )
        if (queries is None) == (grid is None):
            raise ValueError("queries and grid: expected one of them")
        self.model, self.iterations = model, whole_number("iterations", iterations, least=1)
        self.resolution = tuple(model.sizes.resolution if resolution is None else resolution)
        self.asked, self.grid = queries, grid
        self.support = (6 if grid is None else 0) if support is None else support
        self.reset()

    def reset(self) -> None:
        """Forget the video: the next frame pushed is frame 0 of a new one."""
        self.size = None  # (H, W) of the video
        self.seen = 0  # frames pushed
        self.first = 0  # of the next window
        self.told = 0  # frames whose tracks were returned
        self.levels: list[Tensor] | None = None  # of the frames from `first` on
        self.anchors: Tensor | None = None
        self.last: Estimate | None = None

    @torch.no_grad()
    def push(self, frames: Float[Tensor, "n 3 H W"]) -> Tracks | None:
        """Take frames in; return the tracks of those that have become final, if any did."""
        self._begin(frames)
        done = []
        for part in frames.split(self.model.window // 2):
            self._take(part)
            while self.seen - self.first >= self.model.window:
                done.append(self._window(final=self.model.window // 2))
        return _after_each_other(done)

    @torch.no_grad()
    def finish(self) -> Tracks | None:
        """The tracks of the frames that wait for more: call it when the video has ended."""
        step = self.model.window // 2
        if self.seen <= step:
            raise ValueError(f"the video has {self.seen} frames; expected more than {step}")
        waiting = self.seen - self.told
        if self.last is not None and self.seen - self.first <= step:
            estimate = Estimate(*(None if x is None else x[:, step:] for x in self.last))
            return self._tracks(estimate, waiting)
        return self._window(final=waiting)

    def _begin(self, frames: Tensor) -> None:
        _check_floating("frames", frames)
        if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
            raise ValueError(f"frames has shape {tuple(frames.shape)}; expected (n, 3, H, W)")
        size = tuple(frames.shape[2:])
        if self.size is not None:
            if size != self.size:
                raise ValueError(f"frames has size {size}; expected {self.size}, as before")
            return
        self.size, self.scale = size, _scale(size, self.resolution, frames)
        if self.asked is None:
            points = at_frame(0.0, grid_points(self.grid, self.resolution))
            self.count = len(points)
        else:
            asked = self.asked.to(frames)
            points = torch.cat([asked[:, :1], asked[:, 1:] * self.scale], dim=1)
            self.count = len(points)
        if self.support:
            points = torch.cat([points, at_frame(0.0, grid_points(self.support, self.resolution))])
        self.queries = points.to(frames)[None]

    def _take(self, frames: Tensor) -> None:
        """Encode new frames, and read the features of the queries in them."""
        new = self.model.pyramid(resize_video(frames[None], self.resolution))
        inside = self.queries[..., 0] - self.seen
        here = (inside >= 0) & (inside < len(frames))
        rows = inside.long().clamp(0, len(frames) - 1)
        anchors = self.model.update.anchor(new, rows, self.queries[..., 1:] / STRIDE)
        if self.anchors is None:
            self.anchors = torch.zeros_like(anchors)
        self.anchors[here] = anchors[here]
        kept = self.levels or [level[:0] for level in new]
        self.levels = [torch.cat(pair) for pair in zip(kept, new, strict=True)]
        self.seen += len(frames)

    def _window(self, final: int) -> Tracks:
        """Track the next window, and return its first frames, which no later one changes."""
        S, step = self.model.window, self.model.window // 2
        rows = torch.arange(S, device=self.queries.device).clamp(max=self.seen - self.first - 1)
        estimates = self.model.track_window(
            self.levels, rows[None], self.first, self.queries, self.anchors, self.last,
            self.iterations,
        )
        self.last = estimates[-1]
        self.first += step
        self.levels = [level[step:] for level in self.levels]
        return self._tracks(self.last, final)

    def _tracks(self, estimate: Estimate, frames: int) -> Tracks:
        tracks = as_tracks(estimate, frames)
        tracks = Tracks(*(None if x is None else x[:, :, : self.count] for x in tracks))
        self.told += frames
        return tracks._replace(points=tracks.points / self.scale)


def _after_each_other(parts: list[Tracks]) -> Tracks | None:
    if not parts:
        return None
    return Tracks(*(
        None if x[0] is None else torch.cat(x, dim=1) for x in zip(*parts, strict=True)
    ))
