"""Learning: tracks from made motion.

The data half: clips of photographs cut into layers that move along smooth paths, so that the
track of every point, and the frames in which something covers it, are known exactly.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import inside, pixel_grid
from fourfold.cotracker.cotracker import CoTracker, Estimate
from fourfold.cotracker.features import STRIDE
from fourfold.kit.arguments import whole_number
from fourfold.kit.scale import seed_everything
from fourfold.kit.training import StepRecord, train
from fourfold.raft.learning import (
    HELD_OUT_PHOTOGRAPHS,
    TRAIN_PHOTOGRAPHS,
    Scene,
    _checked_size,
    color_jitter,
    coverage,
    erase,
    front_layer,
    load_photographs,
    move,
    random_scene,
    similarity,
    uniform,
)

__all__ = [
    "Clip",
    "ClipScene",
    "SyntheticClips",
    "augment_clip",
    "choose_queries",
    "draw_tracks",
    "erase_frames",
    "follow",
    "held_out_clips",
    "hidden_between",
    "paint_clip",
    "random_clip_scene",
    "render_clip",
    "smooth_paths",
]


class ClipScene(NamedTuple):
    """L layers from back to front that move for T frames; layer 0 covers every image.

    scene    the layers as they lie in frame 0; its own `motion` is not read
    motion   (T, L, 3, 3) from frame 0 to frame t; the identity for t = 0

    Convention: (x, y) in pixels, x to the right, y down, the top-left pixel's centre at (0, 0).
    """

    scene: Scene
    motion: Float[Tensor, "T L 3 3"]


class Clip(NamedTuple):
    """A video, the tracks of N of its points, and where to ask for them; a batch has an axis more.

    video    (T, 3, H, W) in [0, 255]
    points   (T, N, 2) where each point is in each frame as (x, y), in pixels, hidden ones too
    visible  (T, N) whether the frame shows the point
    queries  (N, 3) as (frame, x, y): one frame that shows the point, and where

    Convention: (x, y) in pixels, x to the right, y down, the top-left pixel's centre at (0, 0).
    """

    video: Float[Tensor, "*B T 3 H W"]
    points: Float[Tensor, "*B T N 2"]
    visible: Bool[Tensor, "*B T N"]
    queries: Float[Tensor, "*B N 3"]


def smooth_paths(
    frames: int, count: int, generator: torch.Generator, *, reach: float, waves: int = 2
) -> Float[Tensor, "T K"]:
    """Draw numbers that begin at 0 and change smoothly from frame to frame, by at most 1.

    frames   T of the clip
    count    K paths, each for itself
    reach    no path gets farther from 0; those that would are slower
    waves    sinusoids on top of a steady part, with periods of 10 to 40 frames
    returns  (T, K) without unit: the caller gives it one by a factor
    """
    t = torch.arange(frames)[:, None]
    period = torch.exp(uniform(math.log(10), math.log(40), waves, 1, count, generator=generator))
    phase = uniform(-math.pi, math.pi, waves, 1, count, generator=generator)
    share = torch.randn(waves + 1, 1, count, generator=generator)
    pace = 2 * math.pi / period
    # Divided by its pace, each sinusoid has slopes of at most 1.
    swing = ((pace * t + phase).sin() - phase.sin()) / pace
    path = 0.5 * share[0] * t + (share[1:] * swing).sum(dim=0)
    fastest = torch.cat([path[:1], path.diff(dim=0)]).abs().amax(dim=0)
    farthest = path.abs().amax(dim=0) / reach
    return path / torch.maximum(fastest, farthest).clamp(min=1e-6)


def _random_motions(
    centre: Float[Tensor, "L 2"],
    frames: int,
    generator: torch.Generator,
    *,
    speed: Float[Tensor, "L"],
    turning: float,
    reach: float,
) -> Float[Tensor, "T L 3 3"]:
    """Similarities along smooth paths: shifts in steps of up to `speed` px, turns in radians."""
    L = len(centre)
    x, y, angle, zoom = smooth_paths(frames, 4 * L, generator, reach=reach).chunk(4, dim=1)
    swing = turning * torch.rand(2, L, generator=generator)
    shift = torch.stack([x, y], dim=-1) * speed[:, None] / math.sqrt(2)
    matrices = similarity(
        (swing[0] * angle).flatten(),
        (0.3 * swing[1] * zoom).exp().flatten(),
        shift.flatten(0, 1),
        centre.repeat(frames, 1),
    )
    return matrices.unflatten(0, (frames, L))


def random_clip_scene(
    photographs: Sequence[Tensor],
    size: tuple[int, int],
    frames: int,
    generator: torch.Generator,
    *,
    speed: float = 6.0,
    layers: int = 5,
    grow: float = 1.4,
) -> ClipScene:
    """Draw a background and one to `layers` layers in front, and a smooth path for each.

    A camera moves all of them alike; each front layer moves by itself on top of that.

    photographs  (3, h, w) each, in [0, 255], to cut the layers from
    size         (H, W) of the frames in pixels
    frames       T of the clip
    generator    of the random numbers: the same state gives the same scene
    speed        the longest step of a layer against the camera, in pixels per frame; the camera's
                 own is about a third of it at most, and turns and zooms add a little
    grow         how much larger the layers are than those of `random_scene`

    Raises ValueError for no photographs and for a size, frames, speed or layers out of range.
    """
    if not speed >= 0:
        raise ValueError(f"speed is {speed}; expected 0 pixels per frame or more")
    T = whole_number("frames", frames, least=1)
    scene = random_scene(photographs, size, generator, reach=0.0, layers=layers)
    scene.outline[1:, :2] /= grow
    L, (H, W) = len(scene.textures), size
    reach = 0.5 * min(H, W) / max(speed, 1e-6)
    # What lies at 0 of the shape's own frame is the layer's middle.
    middle = -torch.linalg.solve(scene.outline[:, :2, :2], scene.outline[:, :2, 2])
    pace = speed * uniform(0.4, 1.0, L, generator=generator)
    pace[0] = 0.0
    own = _random_motions(middle, T, generator, speed=pace, turning=0.03, reach=reach)
    own[:, 0] = torch.eye(3)
    pace = speed * uniform(0.05, 0.35, 1, generator=generator)
    centre = torch.tensor([[W / 2, H / 2]])
    camera = _random_motions(centre, T, generator, speed=pace, turning=0.01, reach=reach)
    return ClipScene(scene, camera @ own)


def _layer(scene: Scene, number: int) -> Scene:
    """A scene of one layer of the scene."""
    chosen = slice(number, number + 1)
    return Scene(scene.textures[chosen], *(part[chosen] for part in scene[1:]))


def _near_outline(
    layer: Scene, back: Float[Tensor, "T 3 3"], here: Float[Tensor, "T H W 2"]
) -> tuple[Int[Tensor, "K"], Float[Tensor, "1 1 K 2"]]:
    """The pixels of all frames that the layer may touch, and where they lie in frame 0.

    back     (T, 3, 3) from frame t to frame 0
    here     (T, H, W, 2) the pixels of the frames
    chosen   (K,) their numbers in the order of T × H × W
    origin   (1, 1, K, 2) as (x, y), in pixels
    """
    local = move(layer.outline @ back, here)
    # No radius is longer than 1 and all amplitudes together; the edge is soft over a pixel.
    soft = layer.outline[0, :2, :2].det().abs().sqrt()
    farthest = 1 + layer.waves.norm(dim=1).sum() + soft
    x, y = local.unbind(-1)  # summing over an axis of two takes far longer
    chosen = (x * x + y * y <= farthest**2).flatten().nonzero()[:, 0]
    near = local.flatten(0, 2)[chosen]
    return chosen, move(torch.linalg.inv(layer.outline), near[None, None])


def _read(photo: Float[Tensor, "3 h w"], places: Float[Tensor, "*N 2"]) -> Float[Tensor, "3 K"]:
    return sample(photo[None], places.reshape(1, -1, 2), padding="reflection")[0]


def paint_clip(
    clip_scene: ClipScene, size: tuple[int, int]
) -> tuple[Float[Tensor, "T 3 H W"], Int[Tensor, "T H W"]]:
    """Paint all frames, layer over layer, each layer near its outline alone.

    size     (H, W) in pixels
    video    (T, 3, H, W) in [0, 255], as `fourfold.raft.learning.paint` paints each frame
    front    (T, H, W) the number of the layer in front at each pixel, as `front_layer` gives it
    """
    scene, motion = clip_scene
    T, (H, W) = len(motion), _checked_size(size)
    here = pixel_grid(H, W).expand(T, H, W, 2)
    back = torch.linalg.inv(motion)
    video = _read(scene.textures[0], move(scene.texture[0] @ back[:, 0], here))
    front = torch.zeros(T * H * W, dtype=torch.long)
    for number, photo in enumerate(scene.textures[1:], start=1):
        layer = _layer(scene, number)
        chosen, origin = _near_outline(layer, back[:, number], here)
        cover = coverage(layer, origin)[0, 0]
        pixels = _read(photo, move(layer.texture, origin))
        video[:, chosen] = torch.lerp(video[:, chosen], pixels, cover)
        front[chosen[cover >= 0.5]] = number
    return video.view(3, T, H, W).transpose(0, 1).contiguous(), front.view(T, H, W)


def follow(
    clip_scene: ClipScene,
    size: tuple[int, int],
    start: Float[Tensor, "N 3"],
    layer: Int[Tensor, "N"],
) -> tuple[Float[Tensor, "T N 2"], Bool[Tensor, "T N"]]:
    """Move points with their layers through the whole clip, and say which frames show them.

    size     (H, W) in pixels
    start    (N, 3) as (frame, x, y), in pixels
    layer    (N,) the number of the layer that each point lies on
    points   (T, N, 2) as (x, y), in pixels
    visible  (T, N) inside the image, with no nearer layer that covers half of the place or more

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    scene, motion = clip_scene
    (T, L), N, (H, W) = motion.shape[:2], len(layer), size
    back = torch.linalg.inv(motion)
    frame = start[:, 0].long()
    there = start[:, None, None, 1:]
    rest = move(back[frame, layer], there)  # where the points are in frame 0
    matrices = motion[:, layer].flatten(0, 1)
    points = move(matrices, rest.repeat(T, 1, 1, 1)).view(T, N, 2)
    points[frame, torch.arange(N)] = start[:, 1:]  # there and back again rounds
    everywhere = points[:, None, None].expand(T, L, 1, N, 2).flatten(0, 1)
    origin = move(back.flatten(0, 1), everywhere).view(T, L, N, 2).transpose(0, 1)
    nearest = front_layer(coverage(scene, origin))
    return points, inside(points[None], H, W)[0] & (nearest <= layer)


def hidden_between(visible: Bool[Tensor, "T N"]) -> Bool[Tensor, "T N"]:
    """Where a point is hidden that was seen before and will be seen again."""
    before = visible.cumsum(dim=0) > 0
    after = visible.flip(0).cumsum(dim=0).flip(0) > 0
    return ~visible & before & after


def draw_tracks(
    clip_scene: ClipScene,
    front: Int[Tensor, "T H W"],
    hidden: Bool[Tensor, "T H W"],
    count: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "T N 2"], Bool[Tensor, "T N"]]:
    """Draw points at pixels of random frames and follow them.

    Half of them are spread evenly over the clip; the other half prefers points on front layers,
    and more so points that are hidden for a while and come back.

    front    (T, H, W) the layer in front, from `paint_clip`
    hidden   (T, H, W) what is painted over after all layers: no point is drawn or visible there
    count    N
    returns  points (T, N, 2) as (x, y) in pixels, and visible (T, N), as `follow`; every point is
             visible in one frame or more

    Raises ValueError where all pixels are hidden.
    """
    H, W = front.shape[1:]
    free = (~hidden).flatten().nonzero()[:, 0]
    if len(free) == 0:
        raise ValueError("hidden is True everywhere; expected pixels to draw points at")
    even = count // 2
    drawn = free[torch.randint(len(free), (even + 6 * count,), generator=generator)]
    layer = front.flatten()[drawn]
    frame, y, x = drawn // (H * W), drawn // W % H, drawn % W
    start = torch.stack([frame, x, y], dim=-1).float()
    points, visible = follow(clip_scene, (H, W), start, layer)
    visible[frame, torch.arange(len(drawn))] = True  # `front` says so; rounding might not
    x, y = points.round().long().unbind(-1)
    times = torch.arange(len(front))[:, None]
    visible &= ~hidden[times, y.clamp(0, H - 1), x.clamp(0, W - 1)]
    weight = 1.0 + 2.0 * (layer > 0) + 8.0 * hidden_between(visible).any(dim=0)
    preferred = torch.multinomial(weight[even:], count - even, generator=generator) + even
    chosen = torch.cat([torch.arange(even), preferred])
    return points[:, chosen], visible[:, chosen]


def choose_queries(
    points: Float[Tensor, "T N 2"],
    visible: Bool[Tensor, "T N"],
    generator: torch.Generator,
    anywhere: float = 0.25,
) -> Float[Tensor, "N 3"]:
    """Ask for each point in the first frame that shows it, or in any that does.

    anywhere  how often the frame is drawn from all that show the point
    returns   (N, 3) as (frame, x, y), in pixels

    Raises ValueError for a point that no frame shows.

    Source: CoTracker, training; the share is that of the released settings.
    """
    if not visible.any(dim=0).all():
        raise ValueError("visible has a point that no frame shows; expected one frame or more")
    first = visible.byte().argmax(dim=0)
    other = torch.multinomial(visible.T.float(), 1, generator=generator)[:, 0]
    frame = torch.where(torch.rand(len(first), generator=generator) < anywhere, other, first)
    places = points[frame, torch.arange(len(frame))]
    return torch.cat([frame[:, None].to(places), places], dim=-1)


def erase_frames(
    video: Float[Tensor, "T 3 H W"], generator: torch.Generator, sizes: tuple[int, int]
) -> tuple[Float[Tensor, "T 3 H W"], Bool[Tensor, "T H W"]]:
    """Cover rectangles of half of the frames after the first with the frame's mean colour.

    sizes    smallest and largest side in pixels, both inclusive
    returns  the video, and (T, H, W) where it was covered

    Source: CoTracker's augmentation, with `fourfold.raft.learning.erase`'s one or two rectangles.
    """
    first, *later = video.unbind(0)
    erased = torch.stack([first, *(erase(frame, generator, sizes) for frame in later)])
    return erased, (erased != video).any(dim=1)


def render_clip(
    clip_scene: ClipScene,
    size: tuple[int, int],
    points: int,
    generator: torch.Generator,
    *,
    boxes: tuple[int, int] | None = None,
) -> Clip:
    """Paint a clip and draw points to follow in it, with their exact tracks.

    size     (H, W) in pixels
    points   N
    boxes    smallest and largest side in pixels of what `erase_frames` covers; None for nothing
    returns  a Clip without a batch axis; `visible` is True at every query

    Raises ValueError for a size or points out of range.
    """
    N = whole_number("points", points, least=1)
    video, front = paint_clip(clip_scene, size)
    hidden = torch.zeros_like(front, dtype=torch.bool)
    if boxes is not None:
        video, hidden = erase_frames(video, generator, boxes)
    tracks, visible = draw_tracks(clip_scene, front, hidden, N, generator)
    return Clip(video, tracks, visible, choose_queries(tracks, visible, generator))


def augment_clip(clip: Clip, generator: torch.Generator, noise: float = 2.0) -> Clip:
    """Change the colours of a clip by one draw, the brightness of each frame a little, add noise.

    noise    the largest standard deviation of the noise, in grey levels; each clip draws its own
    """
    video = color_jitter(clip.video, generator, 0.3, 0.3, 0.3, 0.1)
    light = 1 + 0.03 * torch.randn(len(video), 1, 1, 1, generator=generator)
    amount = noise * torch.rand((), generator=generator)
    grain = torch.randn(video.shape, generator=generator)
    return clip._replace(video=(light * video).add_(amount * grain).clamp_(0, 255))


class SyntheticClips(Dataset):
    """Clips with exact tracks, new ones at every pass; always the same ones with a seed.

    photographs  (3, h, w) each, in [0, 255]
    size         (H, W) of the frames in pixels
    frames       T of each clip
    points       N of each clip
    length       clips in one pass
    speed        the longest step of a layer against the camera, in pixels per frame
    augment      change the colours, cover parts of the frames after the first, add noise
    seed         None draws from torch's own random numbers

    Item `index` is a Clip without a batch axis. Raises what `random_clip_scene` raises.
    """

    def __init__(
        self,
        photographs: Sequence[Tensor],
        size: tuple[int, int] = (96, 128),
        *,
        frames: int = 24,
        points: int = 64,
        length: int = 1200,
        speed: float = 6.0,
        augment: bool = True,
        seed: int | None = None,
    ) -> None:
        self.photographs, self.size = photographs, _checked_size(size)
        self.frames = whole_number("frames", frames, least=1)
        self.points = whole_number("points", points, least=1)
        self.length = whole_number("length", length, least=1)
        self.speed, self.augment, self.seed = speed, augment, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Clip:
        if not 0 <= index < self.length:
            raise IndexError(f"index is {index}; expected 0 to {self.length - 1}")
        draw = int(torch.randint(2**48, ())) if self.seed is None else self.seed << 24
        generator = torch.Generator().manual_seed(draw + index)
        scene = random_clip_scene(
            self.photographs, self.size, self.frames, generator, speed=self.speed
        )
        boxes = (2, max(2, self.size[0] // 4)) if self.augment else None
        clip = render_clip(scene, self.size, self.points, generator, boxes=boxes)
        return augment_clip(clip, generator) if self.augment else clip


def held_out_clips(
    count: int = 16,
    size: tuple[int, int] = (96, 128),
    frames: int = 24,
    points: int = 64,
    speed: float = 6.0,
) -> Clip:
    """Clips for measuring, one batch, the same in every call, from HELD_OUT_PHOTOGRAPHS.

    count    B of the batch; the first clips do not depend on it
    size     (H, W) in pixels
    frames, points, speed  as in `SyntheticClips`
    """
    clips = SyntheticClips(
        load_photographs(HELD_OUT_PHOTOGRAPHS),
        size,
        frames=frames,
        points=points,
        length=count,
        speed=speed,
        augment=False,
        seed=7,
    )
    return Clip(*map(torch.stack, zip(*(clips[i] for i in range(count)), strict=True)))


def mean_where(
    values: Float[Tensor, "B S N"], counts: Shaped[Tensor, "B S N"]
) -> Float[Tensor, ""]:
    """The mean of the values that count; 0 where none does.

    counts   (B, S, N) True, or a weight, where a value counts
    """
    counts = counts.to(values)
    return (values * counts).sum() / (counts.sum() + 1e-6)


def track_loss(
    points: Sequence[Float[Tensor, "B S N 2"]],
    target: Float[Tensor, "B S N 2"],
    counts: Shaped[Tensor, "B S N"],
    *,
    gamma: float = 0.8,
    huber: float | None = None,
) -> Float[Tensor, ""]:
    """Compare every iteration's points with the true ones, later ones with more weight.

    points   M estimates, in pixels
    counts   (B, S, N) True, or a weight, where an error counts
    gamma    weight of an iteration against the next
    huber    length in pixels from which an error counts linearly; absolute errors when left out
    returns  a scalar in pixels, the mean over the iterations and over x and y
    """
    M, loss = len(points), target.new_zeros(())
    for i, estimate in enumerate(points, start=1):
        if huber is None:
            error = (estimate - target).abs()
        else:
            error = F.huber_loss(estimate, target, reduction="none", delta=huber)
        loss = loss + gamma ** (M - i) * mean_where(error.mean(dim=-1), counts)
    return loss / M


def balanced_loss(
    scores: Float[Tensor, "B S N"], visible: Bool[Tensor, "B S N"], counts: Bool[Tensor, "B S N"]
) -> Float[Tensor, ""]:
    """Cross-entropy in which all visible places weigh as much as all hidden ones.

    scores   (B, S, N) logits of being visible
    counts   (B, S, N) where the answer counts
    """
    wrong = F.softplus(torch.where(visible, -scores, scores))
    return mean_where(wrong, visible & counts) + mean_where(wrong, ~visible & counts)


class Target(NamedTuple):
    """The part of a clip that one window covers.

    points   (B, S, N, 2) in pixels
    visible  (B, S, N)
    asked    (B, S, N) the frame is not before the point's query
    """

    points: Float[Tensor, "B S N 2"]
    visible: Bool[Tensor, "B S N"]
    asked: Bool[Tensor, "B S N"]


def window_target(clip: Clip, first: int, frames: int) -> Target:
    """What a window of so many frames from `first` on should find, where the clip has frames."""
    here = slice(first, first + frames)
    times = torch.arange(clip.points.shape[1], device=clip.points.device)[here, None]
    asked = times >= clip.queries[:, None, :, 0]
    return Target(clip.points[:, here], clip.visible[:, here], asked)


def _in_pixels(estimates: Sequence[Estimate], target: Target) -> list[Tensor]:
    return [STRIDE * estimate.points[:, : target.points.shape[1]] for estimate in estimates]


Windows = Iterable[tuple[int, list[Estimate]]]


def version2_loss(windows: Windows, clip: Clip) -> dict[str, Tensor]:
    """The loss that version 2 was trained with: absolute errors and a balanced cross-entropy.

    windows  from `CoTracker.windows`
    returns  "points" and "visibility", to be added up

    The release feeds probabilities where the cross-entropy takes logits, so that its loss of
    visibility never comes near 0; these are its numbers.
    """
    losses = {"points": 0.0, "visibility": 0.0}
    N = clip.points.shape[2]
    for first, estimates in windows:
        target = window_target(clip, first, estimates[0].points.shape[1])
        told = estimates[-1].visibility[:, : target.visible.shape[1]].sigmoid()
        points = track_loss(_in_pixels(estimates, target), target.points, target.asked)
        losses["points"] = losses["points"] + points / N
        visibility = balanced_loss(told, target.visible, target.asked)
        losses["visibility"] = losses["visibility"] + 10 * visibility / N
    return losses


def version3_loss(windows: Windows, clip: Clip, *, near: float = 12.0, before: bool = False):
    """The loss that version 3 was trained with on synthetic clips.

    near     in pixels: where a point is so near, its confidence should be 1
    before   frames before the query count too, as in the offline model

    Visible points have Huber errors, hidden ones absolute errors; visibility and confidence
    have a cross-entropy at every iteration.
    """
    parts: list[dict[str, Tensor]] = []
    for first, estimates in windows:
        target = window_target(clip, first, estimates[0].points.shape[1])
        asked = torch.ones_like(target.asked) if before else target.asked
        seen, S = target.visible.to(target.points), target.points.shape[1]
        points = _in_pixels(estimates, target)
        told = torch.stack([estimate.visibility[:, :S] for estimate in estimates])
        sure = torch.stack([estimate.confidence[:, :S] for estimate in estimates])
        error = (torch.stack(points).detach() - target.points).norm(dim=-1)
        right = F.binary_cross_entropy_with_logits(
            sure, (error <= near).to(sure), reduction="none"
        )
        parts.append({
            "points": 0.05 * track_loss(points, target.points, asked & target.visible, huber=6.0),
            "hidden points": 0.01 * track_loss(points, target.points, asked & ~target.visible),
            "visibility": F.binary_cross_entropy_with_logits(told, seen.expand_as(told)),
            "confidence": (right * seen).mean(),
        })
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def course_loss(windows: Windows, clip: Clip, *, hidden: float = 0.2) -> dict[str, Tensor]:
    """The loss of this course's training: as version 2's, of logits, and the mean over windows.

    hidden   weight of the error of a point that its frame does not show
    """
    parts: list[dict[str, Tensor]] = []
    for first, estimates in windows:
        target = window_target(clip, first, estimates[0].points.shape[1])
        weight = target.asked * torch.where(target.visible, 1.0, hidden)
        told = estimates[-1].visibility[:, : target.visible.shape[1]]
        wrong = F.softplus(torch.where(target.visible, -told, told))
        parts.append({
            "points": track_loss(_in_pixels(estimates, target), target.points, weight),
            "visibility": mean_where(wrong, target.asked),
        })
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def matching_loss(model: CoTracker, clip: Clip) -> Float[Tensor, ""]:
    """Ask the features alone where a point is: the encoder's first lesson.

    The feature of each query is compared with all places of every frame that shows the point; the
    products, as logits, should single out the true place, whose four neighbours share it.

    returns  a cross-entropy, the mean over visible points and frames
    """
    B, T = clip.video.shape[:2]
    level = model.pyramid(clip.video)[0]
    _, h, w, C = level.shape
    rows = T * torch.arange(B, device=level.device)[:, None] + clip.queries[..., 0].long()
    anchors = model.update.anchor([level], rows, clip.queries[..., 1:] / STRIDE)
    scores = torch.einsum("bnc,btpc->btnp", anchors, level.view(B, T, h * w, C)) / math.sqrt(C)
    points = clip.points / STRIDE
    counts = clip.visible & inside(points, h, w)
    wrong = -_read_places(scores.log_softmax(dim=-1), points, h, w)
    return (wrong * counts).sum() / (counts.sum() + 1e-6)


def _read_places(
    maps: Float[Tensor, "B T N P"], points: Float[Tensor, "B T N 2"], h: int, w: int
) -> Float[Tensor, "B T N"]:
    """Read each point's own map, of h × w values in one line, at its place."""
    x, y = points.unbind(-1)
    x, y = x.clamp(0, w - 1), y.clamp(0, h - 1)
    left, top = x.floor().clamp(max=w - 2), y.floor().clamp(max=h - 2)
    value = torch.zeros_like(x)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        share = (1 - (x - left - dx).abs()) * (1 - (y - top - dy).abs())
        place = ((top + dy) * w + left + dx).long()
        value = value + share * maps.gather(-1, place[..., None])[..., 0]
    return value


class Recipe(NamedTuple):
    """The settings of one training of a CoTracker.

    trains         "features": the encoder alone, by `matching_loss`; "update": all but the encoder;
                   "all" of it
    steps, batch   of AdamW, and clips in each
    learning_rate  the highest; see `fourfold.kit.training.one_cycle`
    size, frames, points, speed  of `SyntheticClips`
    iterations     M, of the model's updates
    clip           norm that gradients are cut to
    """

    trains: str
    steps: int
    batch: int
    learning_rate: float
    size: tuple[int, int] = (96, 128)
    frames: int = 8
    points: int = 32
    speed: float = 8.0
    iterations: int = 3
    clip: float = 1.0
    weight_decay: float = 1e-5


FEATURES = Recipe("features", 500, 2, 1e-3, points=64)

UPDATE = Recipe("update", 2_400, 4, 1e-3)

ALL = Recipe("all", 400, 1, 3e-4, frames=24, points=64)

RECIPES = {"features": FEATURES, "update": UPDATE, "all": ALL}

SMALL = {
    "window": 8,
    "width": 128,
    "depth": 2,
    "heads": 4,
    "virtual_tracks": 16,
    "features": 64,
    "widths": (24, 32, 48, 64),
    "levels": 2,
    "resolution": (192, 256),
    "highest": 16.0,
}


def train_cotracker(
    recipe: Recipe,
    clips: Dataset | None = None,
    *,
    model: CoTracker | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    minutes: float | None = None,
    save_every: int = 250,
    progress: bool = True,
) -> tuple[CoTracker, list[StepRecord]]:
    """Train a CoTracker by a recipe, and return it, in evaluation mode, with the log.

    clips    a data set of Clip without a batch axis; SyntheticClips of the training photographs
             when left out
    model    to go on with; a new one of the course's small size when left out
    seed     of the first weights and of the clips
    folder, minutes, save_every, progress  as in `fourfold.kit.training.train`: a call with the same
             folder and settings goes on where the last one stopped

    Raises what `train` raises.
    """
    seed_everything(seed)
    model = CoTracker("2", **SMALL) if model is None else model
    model.train()
    if clips is None:
        clips = SyntheticClips(
            load_photographs(TRAIN_PHOTOGRAPHS),
            recipe.size,
            frames=recipe.frames,
            points=recipe.points,
            speed=recipe.speed,
        )

    def loss(model: CoTracker, clip: Clip) -> Tensor:
        if recipe.trains == "features":
            return matching_loss(model, clip)
        windows = model.windows(clip.video, clip.queries, recipe.iterations)
        return sum(course_loss(windows, clip).values())

    parts = {"features": model.fnet, "update": model.update, "all": model}
    model.requires_grad_(False)
    parts[recipe.trains].requires_grad_(True)
    records = train(
        model,
        loss,
        DataLoader(clips, batch_size=recipe.batch, drop_last=True),
        steps=recipe.steps,
        folder=folder,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        clip=recipe.clip,
        seed=seed,
        save_every=save_every,
        minutes=minutes,
        progress=progress,
    )
    return model.requires_grad_(True).eval(), records
