"""Figures of the course: pictures, pixel squares, arrows, the flow wheel, film strips.

The style, `canvas` and `show` come from `kit.canvas` and are handed on.
"""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from jaxtyping import Bool, Float, Num, Shaped, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fourfold.kit.arguments import check_tensor, whole_number
from fourfold.kit.canvas import COLOURS, STYLE, canvas, figure_texts, show

__all__ = [
    "COLOURS",
    "STYLE",
    "canvas",
    "draw_arrows",
    "draw_pixels",
    "figure_texts",
    "film_strip",
    "flow_to_image",
    "flow_wheel",
    "image_grid",
    "show",
    "to_picture",
]


def to_picture(
    image: Shaped[Tensor, "1 C H W"] | Shaped[Tensor, "C H W"],
) -> UInt8[np.ndarray, "H W 3"] | UInt8[np.ndarray, "H W"]:
    """The uint8 array that `imshow` takes: (H, W, 3) from three channels, (H, W) from one.

    Values are rounded and clipped to [0, 255]; a NaN is drawn black. Raises ValueError for any
    other shape and TypeError for anything but a tensor.
    """
    check_tensor("image", image)
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"image has shape {tuple(image.shape)}; expected (C, H, W) or (1, C, H, W), C 1 or 3"
        )
    values = image.detach().cpu().double().nan_to_num(nan=0).round().clamp(0, 255)
    picture = values.to(torch.uint8).permute(1, 2, 0).numpy()
    return picture if picture.shape[2] == 3 else picture[..., 0]


def image_grid(
    images: Sequence[Tensor] | Shaped[Tensor, "B C H W"],
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    width: float = 6.5,
    ticks: bool = False,
) -> Figure:
    """A figure of images side by side, each with its title above; `width` is in inches.

    `columns` defaults to all images in one row; `ticks` shows pixel coordinates. Raises
    ValueError for no image, for titles that do not match the images in number, or for less than
    one column.
    """
    pictures = [to_picture(image) for image in images]
    if not pictures:
        raise ValueError("images has length 0; expected one image or more")
    titles = [""] * len(pictures) if titles is None else titles
    if len(titles) != len(pictures):
        raise ValueError(f"images and titles are {len(pictures)} and {len(titles)}; expected pairs")
    columns = len(pictures) if columns is None else whole_number("columns", columns, least=1)
    rows = math.ceil(len(pictures) / columns)
    tallest = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    title_lines = max(title.count("\n") + 1 if title else 0 for title in titles)
    above = 0.18 * title_lines + (0.35 if ticks else 0.06)
    beside = 0.55 if ticks else 0.05
    height = rows * ((width / columns - beside) * tallest + above)
    figure, grid = canvas(rows, columns, width, height, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, picture, title in zip(grid.flat, pictures, titles, strict=False):
        _draw_picture(axes, picture, title, ticks)
    return figure


def draw_arrows(
    axes: Axes,
    flow: Float[Tensor, "1 2 H W"] | Float[Tensor, "2 H W"],
    step: int = 16,
    colour: str = COLOURS["flow"],
    **options,
) -> None:
    """Draw a flow field as arrows, one every `step` pixels, each from a pixel to where it goes.

    Convention: (u, v) in pixels, x to the right, y down, pixel centres on whole numbers, on axes
    whose y already points down (as `imshow` sets them). Vectors that are not finite are left
    out. `options` go to `Axes.quiver`. Raises ValueError for any other shape or a step that is no
    whole number of 1 or more, and TypeError for a flow that is no tensor.
    """
    u, v = _flow_2hw(flow)
    step = whole_number("step", step, least=1)
    y, x = np.mgrid[step // 2 : u.shape[0] : step, step // 2 : u.shape[1] : step]
    u, v = u[y, x], v[y, x]
    finite = np.isfinite(u) & np.isfinite(v)
    axes.quiver(
        x[finite],
        y[finite],
        u[finite],
        v[finite],
        angles="xy",
        scale_units="xy",
        scale=1,
        units="inches",
        **{"width": 0.02, "color": colour, "edgecolor": "white", "linewidth": 0.3, **options},
    )


def flow_to_image(
    flow: Float[Tensor, "B 2 H W"], max_norm: float | None = None
) -> UInt8[Tensor, "B 3 H W"]:
    """Colours of a flow field: the hue is its direction, the saturation its length.

    `max_norm` is the length in pixels that gets the full colour; it defaults to the longest
    vector of the batch. Longer vectors are darkened, vectors that are not finite are black.
    Raises ValueError for any other shape, no vector at all or a max_norm that is not positive, and
    TypeError for a flow that is no tensor. Source: Baker et al., A Database and Evaluation
    Methodology for Optical Flow, IJCV 2011 (the 55 colours).

    Convention: (u, v) in pixels, u to the right, v down.
    """
    check_tensor("flow", flow)
    if flow.ndim != 4 or flow.shape[1] != 2 or flow.numel() == 0:
        raise ValueError(
            f"flow has shape {tuple(flow.shape)}; expected (B, 2, H, W), none of B, H and W 0"
        )
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}; expected a positive length in pixels")
    vectors = _array(flow)
    u, v = vectors[:, 0], vectors[:, 1]
    finite = np.isfinite(u) & np.isfinite(v)
    u, v = np.where(finite, u, 0), np.where(finite, v, 0)
    if max_norm is None:
        # The constant keeps a field of zeros from dividing by zero; the wheel's release adds it.
        max_norm = np.hypot(u, v).max() + 1e-5
    colours = _wheel_colours(u / max_norm, v / max_norm)
    colours[~finite] = 0
    return torch.from_numpy(np.floor(255 * colours).astype(np.uint8)).permute(0, 3, 1, 2)


def flow_wheel(size: int = 121) -> UInt8[Tensor, "1 3 S S"]:
    """The key to `flow_to_image`: the colour of every vector no longer than 1, drawn at its tip.

    The image is `size` pixels wide, white outside the circle. Raises ValueError for a size
    that is no whole number of 3 or more.

    Convention: u to the right, v down, zero flow at the centre.
    """
    size = whole_number("size", size, least=3)
    line = (2 * torch.arange(size) - (size - 1)) / (size - 1)
    v, u = torch.meshgrid(line, line, indexing="ij")
    wheel = flow_to_image(torch.stack([u, v])[None], max_norm=1.0)
    wheel[:, :, u**2 + v**2 > 1] = 255
    return wheel


def film_strip(
    frames: Sequence[Tensor] | Shaped[Tensor, "T C H W"],
    tracks: Float[Tensor, "T N 2"] | None = None,
    visible: Bool[Tensor, "T N"] | None = None,
    titles: Sequence[str] | None = None,
    width: float = 6.5,
) -> Figure:
    """T frames in a row, with the points of `tracks` on each and the path that led there.

    A point that is not `visible` in a frame is drawn as a ring. `titles` default to the frame
    numbers; `width` is in inches. Raises ValueError when tracks, visible or titles are not of
    the frames' length, or tracks or visible of another shape.

    Convention: a track is (x, y) in pixels, x to the right, y down, pixel centres on whole numbers.
    """
    count = len(frames)
    if titles is None:
        titles = [f"frame {t}" for t in range(count)]
    for name, values in (("tracks", tracks), ("visible", visible), ("titles", titles)):
        if values is not None and len(values) != count:
            raise ValueError(f"{name} has length {len(values)}; expected {count}, one per frame")
    if tracks is not None and (tracks.ndim != 3 or tracks.shape[2] != 2):
        raise ValueError(f"tracks has shape {tuple(tracks.shape)}; expected (T, N, 2)")
    if visible is not None:
        points = "N" if tracks is None else tracks.shape[1]
        if visible.ndim != 2 or points not in ("N", visible.shape[1]):
            shape = tuple(visible.shape)
            raise ValueError(f"visible has shape {shape}; expected (T, N), ({count}, {points})")
    figure = image_grid(frames, titles, width=width)
    if tracks is not None:
        for t, axes in enumerate(figure.axes):
            shown = None if visible is None else visible[t]
            _draw_tracks(axes, tracks[: t + 1], shown)
    return figure


def draw_pixels(
    axes: Axes,
    values: Num[Tensor, "H W"] | Num[np.ndarray, "H W"],
    number: str | None = "{:g}",
    limits: tuple[float, float] | None = None,
    cmap: str = "gray",
    fontsize: float = 9,
) -> None:
    """Draw a small array as squares of grey with each value written in its square.

    `number` formats the value, None writes none; `limits` are the values drawn black and white.
    Without them the smallest value is dark grey and the largest light grey, so that lines and
    dots on top stay visible. Raises ValueError for any other shape and for an empty array.

    Convention: `values[y, x]` is centred on (x, y), x to the right, y down.
    """
    array = _array(values) if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"values have shape {array.shape}; expected (H, W), neither of them 0")
    low, high = limits or _padded_limits(array)
    picture = axes.imshow(array, cmap=cmap, vmin=low, vmax=high)
    _outline_squares(axes, *array.shape)
    if number is None:
        return
    for (y, x), value in np.ndenumerate(array):
        red, green, blue, _ = picture.to_rgba(value)
        ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
        text = number.format(value).replace("-", "−")
        axes.text(x, y, text, ha="center", va="center", color=ink, size=fontsize)


def _padded_limits(array: np.ndarray) -> tuple[float, float]:
    low, high = float(np.nanmin(array)), float(np.nanmax(array))
    span = high - low or 1.0
    return low - 0.5 * span, high + 0.1 * span


def _outline_squares(axes: Axes, height: int, width: int) -> None:
    axes.set_xticks(range(width))
    axes.set_yticks(range(height))
    axes.set_xticks(np.arange(width + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(height + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("x (px)")
    axes.set_ylabel("y (px)")


def _draw_picture(axes: Axes, picture: np.ndarray, title: str, ticks: bool) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title)
    if ticks:
        axes.set_axis_on()
        axes.set_xlabel("x (px)")
        axes.set_ylabel("y (px)")


def _draw_tracks(axes: Axes, path: Tensor, visible: Tensor | None) -> None:
    """Draw N paths of shape (t, N, 2) and a dot at the last position of each."""
    points = _array(path)
    count = points.shape[1]
    shown = np.ones(count, bool) if visible is None else visible.detach().cpu().numpy()
    # Fixed limits: a point outside the frame must not shrink the picture.
    axes.autoscale(False)
    for n in range(count):
        colour = matplotlib.colormaps["viridis"](0.15 + 0.8 * n / max(1, count - 1))
        axes.plot(points[:, n, 0], points[:, n, 1], color=colour, linewidth=1.2)
        axes.plot(
            *points[-1, n],
            marker="o",
            markersize=4,
            markeredgecolor=colour if not shown[n] else "white",
            markeredgewidth=1 if not shown[n] else 0.5,
            markerfacecolor=colour if shown[n] else "none",
        )


def _array(values: Tensor) -> np.ndarray:
    """The values as NumPy holds them; formats of 8 and 16 bits as float32.

    NumPy has no bfloat16, and float16 overflows where a flow is squared.
    """
    values = values.detach().cpu()
    narrow = values.is_floating_point() and values.itemsize < 4
    return (values.float() if narrow else values).numpy()


def _flow_2hw(flow: Tensor) -> np.ndarray:
    check_tensor("flow", flow)
    if flow.ndim == 4 and flow.shape[0] == 1:
        flow = flow[0]
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"flow has shape {tuple(flow.shape)}; expected (2, H, W) or (1, 2, H, W)")
    return _array(flow)


def _colour_wheel() -> np.ndarray:
    """The 55 colours of the Middlebury wheel, shape (55, 3), in [0, 255].

    Six arcs lead from one pure colour to the next: one channel stays full, one stays empty, and
    one rises or falls in equal steps.
    """
    arcs = [  # steps, full channel, moving channel, rising
        (15, 0, 1, True),  # red to yellow
        (6, 1, 0, False),  # yellow to green
        (4, 1, 2, True),  # green to cyan
        (11, 2, 1, False),  # cyan to blue
        (13, 2, 0, True),  # blue to magenta
        (6, 0, 2, False),  # magenta to red
    ]
    colours = []
    for steps, full, moving, rising in arcs:
        arc = np.zeros((steps, 3))
        ramp = np.floor(255 * np.arange(steps) / steps)
        arc[:, full] = 255
        arc[:, moving] = ramp if rising else 255 - ramp
        colours.append(arc)
    return np.concatenate(colours)


def _wheel_colours(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Colours in [0, 1], channels last, of vectors of which length 1 gets the full colour."""
    wheel = _colour_wheel() / 255
    length = np.hypot(u, v)[..., None]
    position = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(wheel) - 1)
    before = np.floor(position).astype(int)
    part = (position - before)[..., None]
    hue = (1 - part) * wheel[before] + part * wheel[(before + 1) % len(wheel)]
    return np.where(length <= 1, 1 - length * (1 - hue), 0.75 * hue)
