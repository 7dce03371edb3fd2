"""Learning: tracks from made motion.

The data half: clips of photographs cut into layers that move along smooth paths, so that the
track of every point, and the frames in which something covers it, are known exactly.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import inside, pixel_grid
from fourfold.kit.arguments import whole_number
from fourfold.raft.learning import (
    HELD_OUT_PHOTOGRAPHS,
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
