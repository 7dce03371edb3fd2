"""CoTracker: windows of a video, refined together (draft of lesson 6)."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fourfold.bilinear_sampling.sampling import _check_floating
from fourfold.cotracker.features import (
    STRIDE,
    FeatureEncoder,
    correlate,
    feature_pyramid,
    unit_length,
    vector_windows,
)
from fourfold.cotracker.tokens import (
    fourier_features,
    motion_embedding,
    place_embedding,
    step_motion,
    time_embedding,
)
from fourfold.cotracker.tracks import Tracks
from fourfold.cotracker.transformer import Transformer
from fourfold.kit.arguments import whole_number
from fourfold.kit.checkpoints import check_keys


class Estimate(NamedTuple):
    """What is known of the tracks in one window.

    points      (B, S, N, 2) as (x, y), in pixels of the features
    visibility  (B, S, N) logits
    confidence  (B, S, N) logits; None in version 2
    """

    points: Float[Tensor, "B S N 2"]
    visibility: Float[Tensor, "B S N"]
    confidence: Float[Tensor, "B S N"] | None = None


class Sizes(NamedTuple):
    """What a CoTracker is made of; the defaults are those of the releases.

    width, heads, virtual_tracks  of the transformer; depth too: 6 in version 2, 3 in version 3
    features, widths              of the encoder
    levels, radius                of the correlation
    resolution                    (H, W) in pixels of the videos that the model is meant for
    highest                       frequency of the motion embedding; see `motion_embedding`
    """

    width: int = 384
    depth: int = 6
    heads: int = 8
    virtual_tracks: int = 64
    features: int = 128
    widths: tuple[int, ...] = (64, 96, 128, 128)
    levels: int = 4
    radius: int = 3
    resolution: tuple[int, int] = (384, 512)
    highest: float = 1000.0


class Window(NamedTuple):
    """A part of the video, for one call of an update.

    levels   L levels (B·T, h, w, C) of features
    frames   (B, S) rows of the levels, one for each frame of the window
    active   (B, N) the point's query lies in this window or before it
    known    (B, S, N) the frame is not before the query, and no earlier window settled it
    """

    levels: list[Float[Tensor, "F h w C"]]
    frames: Int[Tensor, "B S"]
    active: Bool[Tensor, "B N"]
    known: Bool[Tensor, "B S N"]


def _each(frames: Int[Tensor, "B S"], points: Tensor) -> Int[Tensor, "K"]:
    """The frame of every point of a window, in one line."""
    return frames[:, :, None].expand(points.shape[:3]).flatten()


def _x_slow(windows: Float[Tensor, "*N S S"]) -> Float[Tensor, "*N P"]:
    """Windows in one line as in RAFT: offset in x first, offset in y for each of them."""
    return windows.mT.flatten(-2)


class Update2(nn.Module):
    """Version 2's update: move the points, change their features (equations 2 to 6)."""

    depth = 6

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes, C = sizes, sizes.features
        inputs = 130 + sizes.levels * (2 * sizes.radius + 1) ** 2 + C + 2
        self.transformer = Transformer(
            inputs, 2 + C, sizes.width, sizes.heads, sizes.depth, sizes.virtual_tracks
        )
        self.inputs = inputs
        with torch.no_grad():
            # A new model hears the correlations first: the waves of the motion would drown them.
            self.transformer.input_transform.weight[:, :130] *= 0.1
        self.norm = nn.GroupNorm(1, C)
        self.track_feat_updater = nn.Linear(C, C)
        self.vis_predictor = nn.Linear(C, 1)

    first_visibility = 10.0  # a logit: as good as certain

    def anchor(self, levels, frames: Int[Tensor, "B N"], points: Float[Tensor, "B N 2"]):
        """The feature of each query, (B, N, C), read at its frame and place."""
        read = vector_windows(levels[0], frames.flatten(), points.flatten(0, 1), radius=0)
        return read.view(*points.shape[:2], -1)

    def correlations(self, window: Window, points: Tensor, features: Tensor) -> Tensor:
        """Products of each feature with the windows around its point, (B, S, N, L·(2r+1)²)."""
        frames, vectors = _each(window.frames, points), features.flatten(0, 2)[:, None]
        scale = self.sizes.features**-0.5
        centres = points.flatten(0, 2)
        read = [
            _x_slow(correlate(level, frames, centres / 2**k, vectors, self.sizes.radius)[:, 0])
            for k, level in enumerate(window.levels)
        ]
        return torch.cat(read, dim=1).mul_(scale).view(*points.shape[:3], -1)

    def forward(
        self,
        window: Window,
        anchors: Float[Tensor, "B N C"],
        start: Estimate,
        iterations: int,
    ) -> list[Estimate]:
        """Refine an estimate; visibility is told once, at the end, from the refined features."""
        points, visibility, _ = start
        B, S, N, _ = points.shape
        grid = [side // STRIDE for side in self.sizes.resolution]
        place = place_embedding(points[:, 0], self.inputs, grid)[:, None]
        time = time_embedding(S, self.inputs).to(points)[:, None]
        features = (anchors * window.active[..., None])[:, None].expand(B, S, N, -1)
        active = window.active[:, None].expand(B, S, N)
        seen = torch.stack([window.known.to(points), visibility], dim=-1)
        estimates = []
        for _ in range(iterations):
            points = points.detach()
            motion = motion_embedding(points - points[:, :1], highest=self.sizes.highest)
            correlations = self.correlations(window, points, features)
            tokens = torch.cat([motion, correlations, features, seen], dim=-1)
            tokens = (tokens + place + time).transpose(1, 2)
            change = self.transformer(tokens, active).transpose(1, 2)
            points = points + change[..., :2]
            normed = self.norm(change[..., 2:].flatten(0, 2)).view_as(features)
            features = features + F.gelu(self.track_feat_updater(normed))
            estimates.append(Estimate(points, visibility))
        told = self.vis_predictor(features)[..., 0]
        return [*estimates[:-1], Estimate(points, told)]


class CorrelationMLP(nn.Module):
    """Two linear layers that shorten the products of two windows; GELU in its exact form."""

    def __init__(self, inputs: int, hidden: int = 384, outputs: int = 256) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Update3(nn.Module):
    """Version 3's update: windows against windows, no change of features (equations 7 to 9)."""

    depth = 3

    def __init__(self, sizes: Sizes, length: int = 60) -> None:
        super().__init__()
        self.sizes, self.length = sizes, length
        side = 2 * sizes.radius + 1
        self.corr_mlp = CorrelationMLP(side**4)
        self.inputs = 2 + 256 * sizes.levels + 84
        self.transformer = Transformer(
            self.inputs, 2, sizes.width, sizes.heads, sizes.depth, sizes.virtual_tracks, True
        )

    first_visibility = 0.0

    def anchor(self, levels, frames: Int[Tensor, "B N"], points: Float[Tensor, "B N 2"]):
        """The window around each query at every level, (B, N, L, (2r+1)², C)."""
        places = points.flatten(0, 1)
        read = [
            _x_slow(vector_windows(level, frames.flatten(), places / 2**k, self.sizes.radius))
            for k, level in enumerate(levels)
        ]
        return torch.stack(read, dim=1).mT.unflatten(0, points.shape[:2])

    def correlations(self, window: Window, points: Tensor, anchors: Tensor) -> Tensor:
        """All products of two windows, shortened by the MLP, (B, S, N, L·256)."""
        B, S, N, _ = points.shape
        frames, centres = _each(window.frames, points), points.flatten(0, 2)
        row = torch.arange(B * N, device=points.device).view(B, 1, N).expand(B, S, N).flatten()
        patches = (anchors * window.active[:, :, None, None, None]).flatten(0, 1)
        read = [
            torch.cat([
                self._shortened(level, frames[part], centres[part] / 2**k, patches[row[part], k])
                for part in torch.arange(len(row), device=row.device).split(512)
            ])
            for k, level in enumerate(window.levels)
        ]
        return torch.cat(read, dim=1).view(B, S, N, -1)

    def _shortened(self, level, frames, centres, patches) -> Float[Tensor, "K 256"]:
        products = correlate(level, frames, centres, patches, self.sizes.radius)
        return self.corr_mlp(products.permute(0, 3, 2, 1).flatten(1))

    def forward(
        self, window: Window, anchors: Tensor, start: Estimate, iterations: int
    ) -> list[Estimate]:
        """Refine an estimate; visibility and confidence are refined with the points."""
        estimate, S = start, start.points.shape[1]
        time = time_embedding(S, self.inputs, self.length).to(start.points)[:, None]
        size = start.points.new_tensor([side / STRIDE for side in self.sizes.resolution[::-1]])
        estimates = []
        for _ in range(iterations):
            points, visibility, confidence = estimate
            points = points.detach()
            motion = fourier_features(step_motion(points) / size.repeat(2))
            correlations = self.correlations(window, points, anchors)
            certainty = torch.stack([visibility, confidence], dim=-1)
            tokens = torch.cat([certainty, correlations, motion], dim=-1) + time
            change = self.transformer(tokens.transpose(1, 2)).transpose(1, 2)
            estimate = Estimate(
                points + change[..., :2], visibility + change[..., 2], confidence + change[..., 3]
            )
            estimates.append(estimate)
        return estimates


def window_starts(frames: int, window: int) -> range:
    """First frames of the windows of a clip: one every half window (equation 1 of the lesson).

    Raises ValueError for a clip of half a window or less, for which there is no window.
    """
    step = window // 2
    if frames <= step:
        raise ValueError(
            f"video has {frames} frames; expected more than {step}, half a window of {window}"
        )
    return range(0, step * ((frames - window + step - 1) // step + 1), step)


def carried(last: Estimate | None, first: Estimate, goes_on: Bool[Tensor, "B N"]) -> Estimate:
    """Begin a window where the last one ended (equation 1 of the lesson).

    last     the estimate of the window before; None for the first window
    first    what a point begins with that was not there yet
    goes_on  points whose query lies before the frames that only this window has

    The second half of the last window becomes the first half of this one; its last frame stands in
    for the frames that nobody has seen.
    """
    if last is None:
        return first
    return Estimate(*(
        None if new is None else torch.where(_like(goes_on, new), _second_half(old), new)
        for old, new in zip(last, first, strict=True)
    ))


def _like(goes_on: Tensor, values: Tensor) -> Tensor:
    return goes_on[:, None].view(len(goes_on), 1, -1, *(1,) * (values.ndim - 3))


def _second_half(values: Tensor) -> Tensor:
    step = values.shape[1] // 2
    half = values[:, step:]
    return torch.cat([half, half[:, -1:].expand_as(half)], dim=1)


_MOST_PIXELS = 1 << 17  # of the frames that are encoded at once


class CoTracker(nn.Module):
    """Track points jointly, window by window (Karaev et al. 2023, arXiv 2307.07635)."""

    def __init__(
        self,
        version: str = "2",
        *,
        mode: str = "offline",
        window: int | None = None,
        **sizes,
    ) -> None:
        super().__init__()
        if version not in ("2", "3"):
            raise ValueError(f"version is {version!r}; expected '2' or '3'")
        if mode not in ("offline", "online"):
            raise ValueError(f"mode is {mode!r}; expected 'offline' or 'online'")
        self.version, self.mode = version, mode
        default = 8 if version == "2" else 16 if mode == "online" else 60
        self.window = whole_number("window", default if window is None else window, least=2)
        rule = Update2 if version == "2" else Update3
        self.sizes = Sizes(**{"depth": rule.depth, **sizes})
        self.fnet = FeatureEncoder(self.sizes.features, self.sizes.widths)
        self.update = rule(self.sizes) if version == "2" else rule(self.sizes, self.window)

    @property
    def whole_clip(self) -> bool:
        """All frames make one window: version 3, offline."""
        return self.version == "3" and self.mode == "offline"

    def pyramid(self, video: Float[Tensor, "B T 3 H W"]) -> list[Tensor]:
        """Features of all frames, (B·T, h, w, C) at each level (section 3.1 of the paper)."""
        frames = video.flatten(0, 1)
        # Maps that are much larger than the processor's caches take longer, as new memory does.
        together = max(1, _MOST_PIXELS // frames[0, 0].numel())
        maps = (self._features(part) for part in frames.split(together))
        levels = [feature_pyramid(features, self.sizes.levels) for features in maps]
        return [torch.cat(level) for level in zip(*levels, strict=True)]

    def _features(self, frame: Tensor) -> Tensor:
        features = self.fnet(2 * (frame / 255) - 1)
        return unit_length(features) if self.version == "3" else features

    def track_window(
        self,
        levels: list[Tensor],
        frames: Int[Tensor, "B S"],
        first: int,
        queries: Float[Tensor, "B N 3"],
        anchors: Tensor,
        last: Estimate | None,
        iterations: int,
    ) -> list[Estimate]:
        """Refine one window, which begins at frame `first` of the video and goes on from `last`."""
        S, step = frames.shape[1], frames.shape[1] // 2
        queried = queries[..., 0]
        points = (queries[:, None, :, 1:] / STRIDE).expand(-1, S, -1, -1)
        told = torch.full_like(points[..., 0], self.update.first_visibility)
        begin = Estimate(points, told, told if self.version == "3" else None)
        begin = carried(last, begin, queried < first + step)
        known = queried[:, None] <= first + torch.arange(S, device=queries.device)[:, None]
        if last is not None:
            known = known & (torch.arange(S, device=queries.device) >= step)[:, None]
        window = Window(levels, frames, queried < first + S, known)
        return self.update(window, anchors, begin, iterations)

    def windows(
        self, video: Float[Tensor, "B T 3 H W"], queries: Float[Tensor, "B N 3"], iterations: int
    ) -> Iterator[tuple[int, list[Estimate]]]:
        """Each window's first frame and its estimates, one for every iteration."""
        check_video(video, self.sizes.levels)
        check_queries(queries, video)
        whole_number("iterations", iterations, least=1)
        B, T = video.shape[:2]
        levels = self.pyramid(video)
        rows = T * torch.arange(B, device=video.device)[:, None]
        anchors = self.update.anchor(levels, rows + queries[..., 0].long(), queries[..., 1:] / STRIDE)
        S, starts = (T, [0]) if self.whole_clip else (self.window, window_starts(T, self.window))
        last = None
        for first in starts:
            # The last frame stands in for those that the clip does not have.
            here = (first + torch.arange(S, device=video.device)).clamp(max=T - 1)
            estimates = self.track_window(
                levels, rows + here, first, queries, anchors, last, iterations
            )
            last = estimates[-1]
            yield first, estimates

    def forward(
        self,
        video: Float[Tensor, "B T 3 H W"],
        queries: Float[Tensor, "B N 3"],
        iterations: int = 6,
    ) -> Tracks:
        """Track all queries through the whole video."""
        T = video.shape[1]
        kept: list[Estimate] = []
        for first, estimates in self.windows(video, queries, iterations):
            kept = [*kept, estimates[-1]] if first == 0 else [_until(kept[0], first, estimates[-1])]
        return as_tracks(kept[0], T)


def _until(before: Estimate, first: int, window: Estimate) -> Estimate:
    """Put a window behind the frames before it; it overwrites what it shares with them."""
    return Estimate(*(
        None if new is None else torch.cat([old[:, :first], new], dim=1)
        for old, new in zip(before, window, strict=True)
    ))


def as_tracks(estimate: Estimate, frames: int) -> Tracks:
    """An estimate in pixels of the video and probabilities, cut to the frames that there are."""
    points, *logits = (None if x is None else x[:, :frames] for x in estimate)
    return Tracks(STRIDE * points, *(None if x is None else x.sigmoid() for x in logits))


def check_video(video: Tensor, levels: int) -> None:
    _check_floating("video", video)
    shape = tuple(video.shape)
    if len(shape) != 5 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"video has shape {shape}; expected (B, T, 3, H, W), none of them 0")
    if shape[3] % STRIDE or shape[4] % STRIDE:
        raise ValueError(
            f"video has frames of {shape[3]} × {shape[4]}; expected multiples of {STRIDE}"
        )


def check_queries(queries: Tensor, video: Tensor) -> None:
    _check_floating("queries", queries)
    B, T, _, H, W = video.shape
    shape = tuple(queries.shape)
    if len(shape) != 3 or shape[2] != 3 or shape[0] != B:
        raise ValueError(f"queries has shape {shape}; expected ({B}, N, 3), each (frame, x, y)")
    if shape[1] == 0:
        raise ValueError("queries is empty; expected one point or more")
    frame, x, y = queries.unbind(-1)
    for name, values, most in (("frame", frame, T - 1), ("x", x, W - 1), ("y", y, H - 1)):
        wrong = ~((values >= 0) & (values <= most))
        if wrong.any():
            raise ValueError(
                f"queries has a {name} of {values[wrong][0]:g}; expected 0 to {most}, "
                "(frame, x, y) with x and y in pixels of the video"
            )
    if (frame != frame.round()).any():
        raise ValueError("queries has a frame that is no whole number; expected (frame, x, y)")


RENAMES = (
    (r"^module\.", ""),
    (r"^updateformer\.virual_tracks$", "update.transformer.virtual_tracks"),
    (r"^updateformer\.", "update.transformer."),
    (r"^track_feat_updater\.0\.", "update.track_feat_updater."),
    (r"^vis_predictor\.0\.", "update.vis_predictor."),
    (r"^(norm|corr_mlp)\.", r"update.\1."),
)


def our_name(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def from_official(state_dict: Mapping, mode: str = "offline") -> CoTracker:
    tensors = state_dict.get("model", state_dict)
    tensors = {our_name(name): value for name, value in tensors.items()}
    time = tensors.pop("time_emb", None)
    tensors.pop("pos_emb", None)
    version = "3" if any(name.startswith("update.corr_mlp") for name in tensors) else "2"
    window = None if time is None else time.shape[1]
    model = CoTracker(version, mode=mode, window=window)
    check_keys("state_dict", tensors, model.state_dict())
    model.load_state_dict(tensors)
    return model.eval()
