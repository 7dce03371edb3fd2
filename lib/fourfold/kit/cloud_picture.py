"""Clouds of points as pictures: atoms in the course's colours, near ones large, far ones pale.

The projection is orthographic, so a length on the page means the same near and far; depth is told
by size and lightness alone, and a frame of axes is not drawn.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from torch import Tensor

from fourfold.kit.arguments import whole_number
from fourfold.kit.canvas import COLOURS, canvas
from fourfold.kit.molecules import ATOM_COLOURS, BOND_COLOURS

__all__ = ["cloud_strip", "draw_cloud", "face", "look"]

_Bonds = Int[Tensor, "n n"] | Int[np.ndarray, "n n"] | Bool[Tensor, "n n"] | Bool[np.ndarray, "n n"]
_OWN_VIEW = (-30.0, 25.0)  # degrees, so that a flat molecule shows its depth too
_RADIUS = 0.36  # Å, of the nearest atom
_HYDROGEN = 0.7  # its size, in parts of the others
_FAR = 0.6  # the size of the farthest atom, in parts of the nearest
_PALE = 0.55  # how far the farthest atom is faded to white
_LINES = {1: (0,), 2: (-1, 1), 3: (-1.6, 0, 1.6), 4: (-1, 1)}  # shifts of a bond's lines
_GAP = 0.09  # Å, one shift


def face(x: Num[Tensor, "n 3"] | Num[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """The cloud centred and turned to its broadest side: longest axis to the right, thinnest away.

    It is turned and not mirrored, so a left-handed molecule stays left-handed. Two clouds of the
    same shape may still come out turned by half a circle. Raises ValueError for another shape,
    for no points, and for coordinates that are not finite.
    """
    x = _points(x)
    x = x - x.mean(axis=0)
    axes = np.linalg.svd(x.T @ x)[0]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[largest, range(3)] < 0, -1, 1)
    axes[:, 2] *= np.sign(np.linalg.det(axes))
    return x @ axes


def look(
    x: Num[Tensor, "n 3"] | Num[np.ndarray, "n 3"], turn: float = 0.0, tilt: float = 0.0
) -> Float[np.ndarray, "n 3"]:
    """The points as a viewer sees them: x to the right, y up, z towards the viewer.

    turn  degrees about the upright axis; what is in front moves to the right
    tilt  degrees about the level axis, after the turn; what is in front moves down

    Raises ValueError for another shape, for no points, and for coordinates that are not finite.
    """
    a, b = np.radians([turn, tilt])
    around = [[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]]
    down = [[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]]
    return _points(x) @ np.array(around) @ np.array(down)


def draw_cloud(
    axes: Axes,
    x: Num[Tensor, "n 3"] | Num[np.ndarray, "n 3"],
    symbols: Sequence[str] | None = None,
    bonds: _Bonds | None = None,
    *,
    angle: tuple[float, float] | None = None,
    colours: Sequence[str] | None = None,
    bond_colours: bool = False,
    letters: bool = True,
    size: float = 1.0,
    span: float | None = None,
) -> Float[np.ndarray, "n 3"]:
    """Draw a cloud of n points into axes, and return where they are on the page.

    axes          its frame and ticks are switched off, its scale is equal
    x             (n, 3) coordinates, in Å for a molecule
    symbols       of the atoms, which choose the colours and letters; None is a cloud without types
    bonds         (n, n) classes, 0 none, then single, double, triple, aromatic; True is single
    angle         (turn, tilt) of `look`, on the cloud as it stands; left out, `face` turns it first
    colours       of the points, in place of those of their symbols
    bond_colours  whether each bond has the colour of its class; else all are grey
    letters       whether symbols other than C and H stand on their points
    size          of the points, 1 for a radius of 0.36 Å in front
    span          width and height of the view in Å, the same for clouds to be compared; the
                  cloud decides where it is left out

    returns       (n, 3) to the right, up, and towards the viewer, centred

    Raises ValueError for no points, coordinates that are not finite, and for symbols, colours or
    bonds that do not match the points in number.
    """
    x = _points(x)
    n = len(x)
    for name, values in (("symbols", symbols), ("colours", colours)):
        if values is not None and len(values) != n:
            raise ValueError(f"{name} has length {len(values)}; expected {n}, one for each point")
    bonds = _classes(bonds, n)
    seen = look(x - x.mean(axis=0), *angle) if angle else look(face(x), *_OWN_VIEW)
    depth = seen[:, 2]
    near = (depth - depth.min()) / max(np.ptp(depth), 1.5)  # a flat cloud has hardly any depth
    near = near + (1 - near.max())
    symbols = [""] * n if symbols is None else symbols
    radius = size * _RADIUS * (_FAR + (1 - _FAR) * near)
    radius = radius * [_HYDROGEN if symbol == "H" else 1 for symbol in symbols]
    _draw_bonds(axes, seen, near, radius, bonds, bond_colours)
    inks = [ATOM_COLOURS.get(symbol, COLOURS["muted"]) for symbol in symbols]
    for i, ink in enumerate(inks if colours is None else colours):
        style = {"facecolor": _faded(ink, near[i]), "edgecolor": "white", "linewidth": 0.6}
        zorder = 2 + depth[i] * 1e-3
        axes.add_patch(Circle(seen[i, :2], radius[i], zorder=zorder, **style))
        if letters and symbols[i] not in ("C", "H", ""):
            _write(axes, symbols[i], seen[i, :2], radius[i], zorder)
    middle = (seen[:, :2].max(axis=0) + seen[:, :2].min(axis=0)) / 2
    half = (np.ptp(seen[:, :2], axis=0).max() / 2 + 1.5 * _RADIUS) if span is None else span / 2
    axes.set(xlim=middle[0] + [-half, half], ylim=middle[1] + [-half, half], aspect="equal")
    axes.set_axis_off()
    return seen


def cloud_strip(
    frames: Sequence[tuple[float, Tensor | np.ndarray, Sequence[str], _Bonds]],
    columns: int = 8,
    width: float = 8.0,
) -> Figure:
    """A walk of a cloud from left to right, all in one view, that of the last frame's broad side.

    frames   (t, x, symbols, bonds) for each moment: the time, (n, 3) coordinates, and what is read
             off them; as many as `columns`, equally far apart, are drawn
    width    in inches

    Raises ValueError for no frames, and for clouds that `draw_cloud` refuses.
    """
    frames = list(frames)
    if not frames:
        raise ValueError("frames is empty; expected one or more")
    columns = min(whole_number("columns", columns, least=1), len(frames))
    chosen = [frames[round(k)] for k in np.linspace(0, len(frames) - 1, columns)]
    clouds = [_points(x) - _points(x).mean(axis=0) for _, x, _, _ in chosen]
    axes_of = np.linalg.svd(clouds[-1].T @ clouds[-1])[0]
    clouds = [x @ axes_of for x in clouds]
    span = 2.2 * max(float(np.abs(x[:, :2]).max()) for x in clouds) + 3 * _RADIUS
    figure, grid = canvas(1, columns, width, width / columns + 0.3, squeeze=False)
    for axes, x, (t, _, symbols, bonds) in zip(grid.flat, clouds, chosen, strict=True):
        draw_cloud(axes, x, symbols, bonds, angle=_OWN_VIEW, span=span)
        axes.set_title(f"t = {t:.2f}", size=8)
    return figure


def _points(x: Tensor | np.ndarray) -> np.ndarray:
    x = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if x.ndim != 2 or x.shape[1] != 3 or len(x) == 0:
        raise ValueError(f"x has shape {x.shape}; expected (n, 3), n 1 or more")
    if not np.isfinite(x).all():
        raise ValueError("x has coordinates that are not finite; expected a cloud without NaN")
    return x.astype(np.float64)


def _classes(bonds: Tensor | np.ndarray | None, n: int) -> np.ndarray:
    if bonds is None:
        return np.zeros((n, n), int)
    bonds = bonds.detach().cpu().numpy() if isinstance(bonds, Tensor) else np.asarray(bonds)
    if bonds.shape != (n, n):
        raise ValueError(f"bonds has shape {bonds.shape}; expected ({n}, {n})")
    bonds = bonds.astype(int)
    if bonds.min() < 0 or bonds.max() >= len(BOND_COLOURS):
        worst = bonds.min() if bonds.min() < 0 else bonds.max()
        raise ValueError(f"bonds has class {worst}; expected 0 to {len(BOND_COLOURS) - 1}")
    return bonds


def _draw_bonds(
    axes: Axes,
    seen: np.ndarray,
    near: np.ndarray,
    radius: np.ndarray,
    bonds: np.ndarray,
    own_colours: bool,
) -> None:
    """Lines from rim to rim, so that none crosses the letter of a far point."""
    kinds = list(BOND_COLOURS)
    for i, j in zip(*np.triu(bonds, 1).nonzero(), strict=True):
        start, end = seen[i, :2], seen[j, :2]
        length = np.hypot(*(end - start))
        if length <= 0.8 * (radius[i] + radius[j]):
            continue  # one point hides the bond
        along = (end - start) / length
        across = np.array([-along[1], along[0]])
        start, end = start + 0.8 * radius[i] * along, end - 0.8 * radius[j] * along
        ink = BOND_COLOURS[kinds[bonds[i, j]]] if own_colours else "#5a5a5a"
        style = {
            "color": _faded(ink, (near[i] + near[j]) / 2),
            "linewidth": 1.6 if own_colours else 1.1,
            "zorder": 2 + (seen[i, 2] + seen[j, 2]) / 2 * 1e-3,
            "solid_capstyle": "butt",
        }
        for k, shift in enumerate(_LINES[bonds[i, j]]):
            dash = (0, (1.5, 1.2)) if bonds[i, j] == 4 and k == 1 else "-"
            ends = np.array([start, end]) + _GAP * shift * across
            axes.plot(*ends.T, linestyle=dash, **style)


def _faded(ink: str, near: float) -> tuple[float, float, float]:
    """The colour, the paler the farther."""
    rgb = np.array(to_rgb(ink))
    return tuple(rgb + _PALE * (1 - near) * (1 - rgb))


def _write(axes: Axes, text: str, where: np.ndarray, radius: float, zorder: float) -> None:
    """A letter that grows and shrinks with its point."""
    path = TextPath((0, 0), text, size=1.35 * radius)
    box = path.get_extents()
    shift = where - [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]
    path = path.transformed(Affine2D().translate(*shift))
    axes.add_patch(PathPatch(path, facecolor="white", linewidth=0, zorder=zorder))
