"""Pictures and films of tracks: the points of each frame and the paths that led to them."""

import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from fourfold.course.files import write_whole
from fourfold.kit.arguments import check_tensor, whole_number
from fourfold.kit.drawing import STYLE, canvas, to_picture
from fourfold.kit.video import save_film

__all__ = [
    "draw_trails",
    "save_track_picture",
    "track_colours",
    "track_film_frames",
    "track_picture",
]

_WIDTH = 6.5  # inches, of a picture
_FILM = 480  # pixels, about the longer side that a film of a smaller video gets
_FINE = 2  # a film is drawn so many times finer and averaged, which smooths its edges
_FAINT = 0.45  # how much of its strength a trail keeps where its point is hidden


def track_colours(
    points: Float[Tensor, "T N 2"], visible: Bool[Tensor, "T N"]
) -> Float[Tensor, "N 3"]:
    """A colour for each track, by where it is first visible; neighbours get similar ones.

    The hue runs through the rainbow from the leftmost track, red, to the rightmost, violet; tracks
    further down are paler. A track that is never visible goes by its first frame. Colours are red,
    green and blue in [0, 1]. Raises what `track_picture` raises.

    Convention: a point is (x, y) in pixels, x to the right, y down.
    """
    _check_tracks(points, visible)
    N = points.shape[1]
    # `argmax` finds the first of equal values: the first True.
    first = visible.cpu().int().argmax(dim=0)
    starts = points.detach().cpu().float()[first, torch.arange(N)].nan_to_num(0, 0, 0).numpy()
    low, high = starts.min(axis=0, initial=np.inf), starts.max(axis=0, initial=-np.inf)
    across, down = ((starts - low) / np.maximum(high - low, 1e-6)).T
    hsv = np.stack([0.8 * across, 1 - 0.5 * down, np.ones(N)], axis=1)
    rgb = matplotlib.colors.hsv_to_rgb(hsv)
    # Pure blue is nearly as dark as black: white is mixed in until it stands out on a photograph.
    light = rgb @ [0.3, 0.59, 0.11]
    white = np.maximum(0, 0.35 - light) / (1 - np.minimum(light, 0.9))
    return torch.from_numpy(rgb + white[:, None] * (1 - rgb)).float()


def draw_trails(
    axes: Axes,
    image: Shaped[Tensor, "3 H W"] | Shaped[Tensor, "1 3 H W"],
    points: Float[Tensor, "T N 2"],
    visible: Bool[Tensor, "T N"],
    frame: int,
    tail: int = 8,
    colours: Float[Tensor, "N 3"] | None = None,
    size: float | None = None,
) -> None:
    """Draw a video's frame, the tracks' points on it, and the path of the last `tail` frames.

    image    frame number `frame`, in [0, 255]
    colours  of the tracks, in [0, 1]; those of `track_colours` if left out
    size     diameter of a dot in points, 1/72 inch; smaller for more tracks if left out

    A trail fades into the past and is faint where its point is hidden; a hidden point is a ring.
    Points that are not finite are left out. Raises ValueError for shapes that do not fit, a frame
    that is none of the T, a negative tail, and TypeError for what is no tensor and for a `visible`
    that is not True or False.

    Convention: a point is (x, y) in pixels, x to the right, y down, pixel centres on whole numbers.
    """
    _check_tracks(points, visible)
    T, N = visible.shape
    frame, tail = whole_number("frame", frame, 0, T - 1), whole_number("tail", tail, least=0)
    colours = _rgb(points, visible, colours)
    picture = to_picture(image)
    axes.imshow(picture)
    axes.set_axis_off()
    # Fixed limits: a point outside the frame must not shrink the picture.
    axes.autoscale(False)
    size = _dot(N) if size is None else size
    trail = _trails(points, visible, frame, tail)
    lines = np.stack([trail.starts, trail.ends], axis=1)
    shades = np.column_stack([colours[trail.track], trail.strength])
    # Without caps no piece covers the end of the next, where two faded colours would add up.
    pieces = LineCollection(lines, colors=shades, linewidths=0.4 * size, capstyle="butt")
    axes.add_collection(pieces, autolim=False)
    for here, filled in _heads(points, visible, frame):
        axes.scatter(
            *points[frame].detach().cpu().float().numpy()[here].T,
            s=(size if filled else 1.1 * size) ** 2,
            c=colours[here] if filled else "none",
            edgecolors="white" if filled else colours[here],
            linewidths=(0.08 if filled else 0.2) * size,
            zorder=3,
        )


def track_picture(
    video: Shaped[Tensor, "T 3 H W"] | Iterable[Shaped[Tensor, "3 H W"]],
    points: Float[Tensor, "T N 2"],
    visible: Bool[Tensor, "T N"],
    panels: int = 6,
) -> Figure:
    """Frames of a video from the first to the last, each with the tracks that led there.

    video    T frames in [0, 255], a tensor or anything that yields them one after the other
    points   (x, y) in pixels of the video
    visible  True where a point is seen; a hidden point is drawn as a ring
    panels   how many frames to show, at equal distances, at most T

    Each trail reaches back to the frame before. Raises ValueError for shapes that do not fit, a
    video of another length, and fewer than 1 panel; TypeError for what is no tensor and for a
    `visible` that is not True or False.

    Convention: x to the right, y down, pixel centres on whole numbers.
    """
    _check_tracks(points, visible)
    T, N = visible.shape
    panels = min(T, whole_number("panels", panels, least=1))
    times = [round(t) for t in np.linspace(0, T - 1, panels)]
    frames = {t: frame for t, frame in enumerate(_frames(video, T)) if t in times}
    colours = track_colours(points, visible)
    H, W = frames[0].shape[-2:]
    columns = min(panels, 3 if W < 1.8 * H else 2)
    rows = math.ceil(panels / columns)
    panel = _WIDTH / columns
    figure, grid = canvas(rows, columns, _WIDTH, rows * (panel * H / W + 0.24), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    tail = max(1, math.ceil((T - 1) / max(1, panels - 1)))
    for axes, t in zip(grid.flat, times, strict=False):
        draw_trails(axes, frames[t], points, visible, t, tail, colours, _dot(N) * panel / 3.3)
        axes.set_title(f"frame {t}", fontsize=9)
    return figure


def track_film_frames(
    video: Shaped[Tensor, "T 3 H W"] | Iterable[Shaped[Tensor, "3 H W"]],
    points: Float[Tensor, "T N 2"],
    visible: Bool[Tensor, "T N"],
    tail: int = 8,
) -> UInt8[Tensor, "T 3 h w"]:
    """Each frame of a video with its points and their trails, uint8 in [0, 255].

    The arguments are those of `track_picture`, the drawing is that of `draw_trails`. Small
    frames are enlarged by the whole factor that brings their longer side closest to 480 pixels.
    All T frames are in memory at once; `save_track_picture` holds one at a time. Raises what
    `track_picture` raises, and ValueError for a negative tail.
    """
    return torch.stack(list(_film(video, points, visible, tail)))


def save_track_picture(
    path: str | Path,
    video: Shaped[Tensor, "T 3 H W"] | Iterable[Shaped[Tensor, "3 H W"]],
    points: Float[Tensor, "T N 2"],
    visible: Bool[Tensor, "T N"],
    fps: float = 12,
    tail: int = 8,
) -> None:
    """Write the tracks to `path`, whole or not at all: a picture, .png or .jpg, or a film.

    A picture is that of `track_picture`. A film, .mp4 or .gif, has the frames of
    `track_film_frames`, `fps` a second; one is held at a time, so a `video` that yields its frames
    (`kit.video.video_frames`) can be of any length. Raises ValueError for another ending and what
    `track_picture` and `kit.video.save_film` raise.
    """
    path = Path(path)
    kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}.get(path.suffix.lower())
    if kind is None and path.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(
            f"path is {str(path)!r}; expected a name that ends in .png, .jpg, .gif or .mp4"
        )
    if kind is None:
        save_film(path, _film(video, points, visible, tail), fps)
        return
    figure, buffer = track_picture(video, points, visible), io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=200, bbox_inches="tight", pad_inches=0.05)
    write_whole(path, buffer.getvalue())


class _Trails(NamedTuple):
    """S pieces of trails, the oldest first: where each leads, of which track, how strong it is."""

    starts: Float[np.ndarray, "S 2"]
    ends: Float[np.ndarray, "S 2"]
    track: Shaped[np.ndarray, "S"]
    strength: Float[np.ndarray, "S"]


def _trails(points: Tensor, visible: Tensor, frame: int, tail: int) -> _Trails:
    """The pieces from each of the last `tail` frames to the next, up to `frame`."""
    first = max(0, frame - tail)
    path = points[first : frame + 1].detach().cpu().float().numpy()
    seen = visible[first : frame + 1].cpu().numpy()
    finite = np.isfinite(path).all(axis=-1)
    step, track = np.nonzero(finite[:-1] & finite[1:])
    age = len(path) - 2 - step
    both = seen[step, track] & seen[step + 1, track]
    strength = 0.9 * (1 - age / max(1, tail)) * np.where(both, 1, _FAINT)
    return _Trails(path[step, track], path[step + 1, track], track, strength)


def _heads(points: Tensor, visible: Tensor, frame: int) -> list[tuple[np.ndarray, bool]]:
    """Which points of a frame are drawn as rings and which as dots, the dots on top."""
    finite = points[frame].detach().cpu().isfinite().all(dim=-1).numpy()
    seen = visible[frame].cpu().numpy()
    return [(finite & ~seen, False), (finite & seen, True)]


def _film(
    video: Iterable[Tensor], points: Tensor, visible: Tensor, tail: int
) -> Iterator[UInt8[Tensor, "3 h w"]]:
    _check_tracks(points, visible)
    tail = whole_number("tail", tail, least=0)
    colours = np.rint(255 * _rgb(points, visible, None)).astype(int)
    frames = _frames(video, len(visible))
    return (_film_frame(frame, points, visible, t, tail, colours) for t, frame in enumerate(frames))


def _film_frame(
    frame: Tensor, points: Tensor, visible: Tensor, t: int, tail: int, colours: np.ndarray
) -> UInt8[Tensor, "3 h w"]:
    """One frame of a film, drawn finer and averaged; what no mark covers stays as it is."""
    image = Image.fromarray(to_picture(frame))
    times = max(1, round(_FILM / max(image.size)))
    image = image.resize([times * side for side in image.size], Image.Resampling.BICUBIC)
    radius = _FINE * max(image.size) * _dot(points.shape[1]) / 650
    image = image.resize([_FINE * side for side in image.size], Image.Resampling.NEAREST)
    scale = times * _FINE
    pen = ImageDraw.Draw(image, "RGBA")  # blends with what is there
    trail = _trails(points, visible, t, tail)
    lines = np.concatenate([trail.starts, trail.ends], axis=1)
    lines = np.rint(_fine(lines, scale)).astype(int).tolist()
    shades = np.column_stack([colours[trail.track], np.rint(255 * trail.strength).astype(int)])
    width = max(1, round(0.8 * radius))
    for line, shade in zip(lines, shades.tolist(), strict=True):
        pen.line(line, fill=tuple(shade), width=width)
    centres = _fine(points[t].detach().cpu().float().numpy(), scale)
    for here, filled in _heads(points, visible, t):
        for (x, y), colour in zip(centres[here].tolist(), colours[here].tolist(), strict=True):
            _draw_head(pen, x, y, radius, tuple(colour), filled)
    pixels = np.asarray(image.reduce(_FINE))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _draw_head(
    pen: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: tuple, filled: bool
) -> None:
    if filled:
        pen.ellipse(_box(x, y, 1.25 * radius), fill=(255, 255, 255, 255))
        pen.ellipse(_box(x, y, radius), fill=colour)
    else:
        pen.ellipse(_box(x, y, 1.1 * radius), outline=colour, width=max(1, round(0.4 * radius)))


def _box(x: float, y: float, radius: float) -> tuple[int, int, int, int]:
    """The first and last pixels within the radius; Pillow would cut fractions off, off centre."""
    left, top = math.ceil(x - radius), math.ceil(y - radius)
    return left, top, max(left, math.floor(x + radius)), max(top, math.floor(y + radius))


def _fine(coordinates: np.ndarray, scale: int) -> np.ndarray:
    """Pixel coordinates on a grid that is `scale` times finer; pixel centres on whole numbers."""
    # Far outside, the exact place cannot be seen, and Pillow's own numbers would overflow.
    return np.clip(scale * (coordinates + 0.5) - 0.5, -1e5, 1e5)


def _dot(count: int) -> float:
    """The diameter of a dot, in 1/72 inch on a picture 3.3 inches wide: smaller for more tracks."""
    return min(max(12 / max(1, count) ** 0.25, 1.5), 6)


def _rgb(points: Tensor, visible: Tensor, colours: Tensor | None) -> Float[np.ndarray, "N 3"]:
    if colours is None:
        colours = track_colours(points, visible)
    check_tensor("colours", colours)
    if tuple(colours.shape) != (points.shape[1], 3):
        raise ValueError(
            f"colours has shape {tuple(colours.shape)}; expected ({points.shape[1]}, 3), "
            "red, green and blue of each track"
        )
    return colours.detach().cpu().float().clamp(0, 1).numpy()


def _frames(video: Iterable[Tensor], count: int) -> Iterator[Shaped[Tensor, "3 H W"]]:
    """The frames of a video, whose number must be `count`."""
    if isinstance(video, Tensor) and (video.ndim != 4 or video.shape[1] != 3):
        raise ValueError(f"video has shape {tuple(video.shape)}; expected (T, 3, H, W)")
    if isinstance(video, Tensor) and len(video) != count:
        raise ValueError(f"video has {len(video)} frames; expected {count}, as points has")
    return _counted(video, count)


def _counted(video: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    found = 0
    for found, frame in enumerate(video, 1):
        if found > count:
            raise ValueError(f"video has more than {count} frames; expected as many as points has")
        yield frame
    if found < count:
        raise ValueError(f"video has {found} frames; expected {count}, as points has")


def _check_tracks(points: Tensor, visible: Tensor) -> None:
    check_tensor("points", points)
    check_tensor("visible", visible)
    if points.ndim != 3 or points.shape[2] != 2 or len(points) == 0:
        raise ValueError(
            f"points has shape {tuple(points.shape)}; expected (T, N, 2), one frame or more"
        )
    if visible.shape != points.shape[:2]:
        raise ValueError(
            f"visible has shape {tuple(visible.shape)}; expected {tuple(points.shape[:2])}, "
            "(T, N) of points"
        )
    if visible.dtype != torch.bool:
        raise TypeError(f"visible holds {visible.dtype}; expected torch.bool (visible > 0.9)")
