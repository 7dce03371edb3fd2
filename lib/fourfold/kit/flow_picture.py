"""One picture of a flow that someone would want to look at: the photograph, the motion, the key."""

import io
from pathlib import Path

import matplotlib
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fourfold.course.files import write_whole
from fourfold.kit.arguments import check_tensor
from fourfold.kit.drawing import STYLE, canvas, draw_arrows, flow_to_image, flow_wheel, to_picture

__all__ = ["flow_picture", "full_colour", "save_flow_picture"]

_PANEL = 3.6  # inches, the longer side of a photograph
_KEY = 1.0  # inches, the wheel


def full_colour(flow: Float[Tensor, "B 2 H W"]) -> float:
    """The length in pixels that gets the full colour: the longest, unless it is a rare outlier.

    It is at most 1.5 times what 99 of 100 vectors stay below, so that a single wild vector leaves
    the colours of the others as they are, and at least 1, so that a still scene stays pale.
    """
    lengths = flow.detach().float().norm(dim=1).flatten()
    lengths = lengths[lengths.isfinite()]
    if len(lengths) == 0:
        return 1.0
    # Sorting takes any number of pixels; `torch.quantile` refuses more than 16 million.
    lengths = lengths.sort().values
    common = lengths[int(0.99 * (len(lengths) - 1))].item()
    return max(1.0, min(lengths[-1].item(), 1.5 * common))


def flow_picture(image1: Float[Tensor, "1 3 H W"], flow: Float[Tensor, "1 2 H W"]) -> Figure:
    """Image 1 with arrows, the colours of the flow beside or below it, and the wheel as their key.

    image1  (1, 3, H, W) in [0, 255]
    flow    (1, 2, H, W) in pixels

    Rare vectors beyond the key's rim are darkened. Raises ValueError for sizes that differ,
    TypeError for what is no tensor.

    Convention: (u, v), u to the right, v down, from image 1 to image 2.
    """
    for name, value in (("image1", image1), ("flow", flow)):
        check_tensor(name, value)
    H, W = flow.shape[-2:]
    if tuple(image1.shape[-2:]) != (H, W):
        raise ValueError(
            f"image1 has size {tuple(image1.shape[-2:])}; expected {H, W}, that of the flow"
        )
    scale = _PANEL / max(H, W)
    width, height = W * scale + 0.7, H * scale + 0.55
    if W < 1.6 * H:
        layout = {"width_ratios": [width, width, _KEY]}
        figure, (picture, colours, key) = canvas(1, 3, 2 * width + _KEY, height, **layout)
    else:
        layout = {"width_ratios": [width, _KEY]}
        figure, grid = canvas(2, 2, width + _KEY, 2 * height, **layout)
        (picture, key), (colours, unused) = grid
        unused.remove()
    _draw_motion(picture, image1, flow)
    longest = full_colour(flow)
    colours.imshow(to_picture(flow_to_image(flow, max_norm=longest)))
    colours.set_title("flow", fontsize=9)
    for panel in (picture, colours):
        panel.set(xlabel="x (px)", ylabel="y (px)", xlim=(-0.5, W - 0.5), ylim=(H - 0.5, -0.5))
    key.imshow(to_picture(flow_wheel()))
    key.set_title(f"the key\nrim: {longest:.2g} px", fontsize=9)
    key.set_axis_off()
    return figure


def _draw_motion(axes: Axes, image1: Tensor, flow: Tensor) -> None:
    """Image 1 with arrows; those of small motions are enlarged, by a whole number, to be seen."""
    axes.imshow(to_picture(image1))
    step = max(4, max(flow.shape[-2:]) // 18)
    times = max(1, round(step / full_colour(flow)))
    draw_arrows(axes, times * flow, step)
    enlarged = f", arrows × {times}" if times > 1 else ""
    axes.set_title(f"image 1 and its motion{enlarged}", fontsize=9)


def save_flow_picture(
    path: str | Path, image1: Float[Tensor, "1 3 H W"], flow: Float[Tensor, "1 2 H W"]
) -> None:
    """Write `flow_picture` to `path`, .png or .jpg, whole or not at all.

    It is drawn with about as many dots as the photograph has, at least 120 and at most 400 an inch.
    Raises ValueError for another ending, and what `flow_picture` raises.
    """
    path = Path(path)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"path is {str(path)!r}; expected a name that ends in .png or .jpg")
    figure, buffer = flow_picture(image1, flow), io.BytesIO()
    dots = min(max(120, max(flow.shape[-2:]) / _PANEL), 400)
    kind = "png" if path.suffix.lower() == ".png" else "jpeg"
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=dots, bbox_inches="tight", pad_inches=0.1)
    write_whole(path, buffer.getvalue())
