"""The canvas of every figure: one style, the colours of the course, and `show`, without torch.

Importing this module changes no matplotlib setting: the style holds inside `canvas` and `show`.
"""

import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

__all__ = ["COLOURS", "STYLE", "canvas", "figure_texts", "show"]

# The four neighbours, and each pair that meets in one figure, differ in lightness as well as in
# hue, so that they stay apart in print.
COLOURS = {
    "first": "#1f4e8c",
    "second": "#e08a1e",
    "flow": "#7b3fb5",
    "query": "#d81e5b",
    "good": "#0f6b4a",
    "bad": "#e4572e",
    "muted": "#9a9a9a",
    "n00": "#23305e",
    "n10": "#a23b72",
    "n01": "#2e9e8f",
    "n11": "#f2b134",
}

STYLE = {
    "axes.grid": False,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "image.cmap": "gray",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "mathtext.fontset": "dejavusans",
    "savefig.facecolor": "white",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}

_DEFAULT_TITLE_SIZE = 12  # points, matplotlib's own


def canvas(
    rows: int = 1, columns: int = 1, width: float = 6.5, height: float = 2.6, **options
) -> tuple[Figure, Axes | np.ndarray]:
    """A figure in the course's style and its axes, as `plt.subplots` returns them.

    `width` and `height` are in inches; `options` go to `Figure.subplots`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


def show(figure: Figure, alt: str, photo: bool = False) -> None:
    """Display a figure below the cell as PNG, or as JPEG where a photograph fills it, and close it.

    `alt` says in words what the figure shows, for readers who do not see it; it is stored with
    the picture. 100 dots per inch. Outside IPython the figure is drawn, not displayed. Raises
    ValueError when `alt` is blank and TypeError when it is no str.
    """
    if not isinstance(alt, str):
        raise TypeError(f"alt is {alt!r}; expected a sentence that says what the figure shows")
    if not alt.strip():
        raise ValueError("alt is blank; expected a sentence that says what the figure shows")
    kind = "jpeg" if photo else "png"
    data, labels = _encoded(figure, kind), figure_texts(figure)
    _close(figure)
    if _inside_ipython():
        from IPython.display import Image, display

        class Picture(Image):
            """A picture whose text form, for a reader without pictures, is its description."""

            def __repr__(self):
                return alt

        display(Picture(data=data, format=kind, alt=alt, metadata={"labels": labels}))


def figure_texts(figure: Figure) -> list[str]:
    """The texts that a figure shows: titles, labels, numbers of the axes, notes.

    `show` stores them with the picture, so that a check can read what stands on it.
    """
    texts = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
    return list(dict.fromkeys(text for text in texts if text.strip()))


def _encoded(figure: Figure, kind: str) -> bytes:
    for axes in figure.axes:
        # `set_title` takes its size from the settings of its moment, outside the style.
        if axes.title.get_fontsize() == _DEFAULT_TITLE_SIZE:
            axes.title.set_fontsize(STYLE["axes.titlesize"])
    buffer = io.BytesIO()
    # Without the version of matplotlib in the file, the same figure gives the same bytes.
    options = (
        {"pil_kwargs": {"quality": 85}} if kind == "jpeg" else {"metadata": {"Software": None}}
    )
    with matplotlib.rc_context(STYLE):
        figure.savefig(
            buffer, format=kind, dpi=100, bbox_inches="tight", pad_inches=0.05, **options
        )
    return buffer.getvalue()


def _close(figure: Figure) -> None:
    from matplotlib import pyplot

    pyplot.close(figure)


def _inside_ipython() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return get_ipython() is not None
