# ---
# jupyter:
#   fourfold:
#     accelerator: helpful
#     level: intermediate
#     minutes: 60
#     needs:
#     - 6_bilinear_sampling/3_window
#     - 4_raft/6_raft
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learning: flow from made motion
#
# **After this lesson you can** make pairs of images whose flow you know exactly, train RAFT on them from nothing, stop and resume the training, and say in pixels how far it got on photographs that it never saw.
#
# *Before this:* [Windows: one fraction for a whole neighbourhood](../6_bilinear_sampling/3_window.ipynb) (`3_window`), and [RAFT](6_raft.ipynb) of this chapter for the model. *Time:* 60 minutes, and 45 for the blanks.

# %% [markdown]
# ## Words
#
# To learn flow (光流) a network needs pairs of images with the true flow of every pixel, and no camera records it: a laser measures some points of a street and misses the rest, and nobody can draw arrows exact to a fraction of a pixel. So the pairs are **made**. A **scene** is a stack of layers. Each **layer** $l$ is a cut-out of a photograph $P$, and moves from image 1 to image 2 by a **motion** $M$ of its own that we choose: a turn about a **centre** $c$, a zoom, a shift. How much of a pixel a layer hides is its **cover** $\alpha$, which falls from 1 to 0 at the outline; the outline is a **radius** $r$ that varies with direction. Painting the layers from back to front gives $I_1$, the first image; painting them moved gives $I_2$, the second. The **front** layer $t$ of a pixel says how the pixel moves, so the **flow** $f$ is known to the last digit, and so is whether the pixel is still **visible** $V$ afterwards.
#
# RAFT estimates the flow $n$ times, and the **loss** $\mathcal{L}$ counts every estimate: the last one fully, each earlier one less by a factor, the **weight** $\gamma$. At first training seems to do nothing. The network is no better than the answer "nothing moves", called **zero flow**: this is the **plateau**, and it ends.

# %% [markdown]
# ## Figure
#
# From chapter 6 come positions of pixels, sampling and warps, from this chapter the model and the end-point error. The photographs come with scikit-image and scikit-learn. Twelve are for training; four others are **held out**, so that no error in this lesson is measured on a photograph that trained the network.

# %%
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import flow_grid, inside, pixel_grid, warp
from fourfold.kit.arguments import listed, whole_number
from fourfold.kit.checkpoints import ModelCard, load_tensors, save_checkpoint
from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, draw_arrows, flow_to_image, show, to_picture
from fourfold.kit.images import credit, photograph
from fourfold.kit.scale import at_scale, hardware, seed_everything
from fourfold.kit.training import StepRecord, Trained, train
from fourfold.raft.encoders import freeze_batch_norm
from fourfold.raft.fields import classical_flow, end_point_error
from fourfold.raft.learning import (
    TRAIN_PHOTOGRAPHS,
    coverage,
    load_photographs,
    paint,
    random_scene,
    render,
)
from fourfold.raft.raft import RAFT, Flow, load_raft

photographs = load_photographs(TRAIN_PHOTOGRAPHS)
scene = random_scene(photographs, (128, 160), torch.Generator().manual_seed(24), reach=24)
pair = render(scene, (128, 160))


# %% tags=["figure"]
def draw_scene():
    """Above, each layer of the scene alone; below, what all of them make."""
    H, W = pair.flow.shape[1:]
    points = pixel_grid(H, W).expand(len(scene.textures), H, W, 2)
    cover = coverage(scene, points)
    figure, (top, bottom) = canvas(2, len(cover), 7.2, 3.6, sharex=True, sharey=True)
    for layer, each in enumerate(top):
        only = torch.eye(len(cover))[layer][:, None, None].expand_as(cover)
        faded = torch.lerp(
            torch.tensor(255.0), paint(scene, points, only), 0.2 + 0.8 * cover[layer]
        )
        each.imshow(to_picture(faded))
        each.set(title=f"layer l = {layer}")
    note = {"size": 8, "ha": "center", "bbox": {"facecolor": "white", "pad": 1.5, "linewidth": 0}}
    top[0].text(80, 70, "photograph P", **note)
    top[1].text(105, 100, "cover α = 1", **note)
    top[1].text(70, 35, "cover α = 0", **note)
    pictures = (
        pair.image1,
        pair.image2,
        flow_to_image(pair.flow[None])[0],
        255.0 * pair.visible[None],
    )
    names = ("image I₁", "image I₂", "flow f: motion M\nof the front t", "visible V")
    for each, name, picture in zip(bottom, names, pictures, strict=True):
        each.imshow(to_picture(picture), cmap="gray")
        each.set(title=name, xlabel="x (px)")
    draw_arrows(bottom[2], pair.flow, step=24, colour="black")
    for each in (top[0], bottom[0]):
        each.set(ylabel="y (px)")
    return figure


show(
    draw_scene(),
    alt="Four photographs, each with one shape in full colour and the rest pale; below them image 1 "
    "and image 2 made of these shapes, the flow as colours with arrows, and the pixels of image 1 "
    "that are still visible in image 2",
    photo=True,
)
print(*(credit(name) for name in ("retina", "gravel", "grass", "brick")), sep="\n")

# %% [markdown]
# Above, every layer's photograph, pale where its cover is 0; layer 0 is the background and covers everything. Below, the layers painted over each other, before and after the motion. In the flow every layer has colours of its own, because it moves in a way of its own. In the last picture, black pixels of image 1 cannot be seen in image 2: they left the picture, or another layer slid over them (遮挡, occlusion).


# %% tags=["figure"]
def draw_outline(layer=1):
    """The outline of one layer over the direction, and as it lies in image 1."""
    waves = torch.complex(*scene.waves[layer])
    phi = torch.linspace(-math.pi, math.pi, 361)
    orders = torch.arange(1, len(waves) + 1)
    radius = 1 + (waves * torch.exp(1j * phi[:, None] * orders)).real.sum(dim=1)
    ring = torch.stack([radius * phi.cos(), radius * phi.sin(), torch.ones_like(phi)])
    x, y = (torch.linalg.inv(scene.outline[layer]) @ ring)[:2]
    centre = torch.linalg.inv(scene.outline[layer])[:2, 2]
    figure, (left, right) = canvas(1, 2, 6.0, 2.1)
    left.plot(phi, radius, color=COLOURS["query"])
    left.set(title="radius r over direction φ", xlabel="direction φ (radians)")
    left.set(ylabel="radius r (mean 1)", ylim=(0, None))
    right.imshow(to_picture(pair.image1))
    right.plot(x, y, color=COLOURS["query"])
    right.plot(*centre, "o", color=COLOURS["query"], markeredgecolor="white")
    right.annotate(
        "centre c", centre, (8, 14), color="white", arrowprops={"arrowstyle": "-", "color": "white"}
    )
    right.set(title="image I₁", xlabel="x (px)", ylabel="y (px)")
    right.set(xlim=(-0.5, pair.flow.shape[2] - 0.5), ylim=(pair.flow.shape[1] - 0.5, -0.5))
    return figure


show(
    draw_outline(),
    alt="A wavy curve, the radius over the direction, and the closed outline that it draws on image 1",
    photo=True,
)

# %% [markdown]
# The outline of a layer is one wavy line (left), wound around the centre, turned and stretched (right).

# %% [markdown]
# ## Formula
#
# Everything is a map on positions $x$ of image 1, in pixels. A motion turns by an angle $\theta$ (matrix $R$), zooms by $z$, both about the centre $c$, and shifts by $s$. A photograph is laid into the scene by a second matrix of the same kind, $T$, which says where on the photograph each pixel is read:
#
# $$ M\,x = c + s + z\,R_\theta\,(x - c) \tag{1} $$
#
# A shape has a frame of its own, with $c$ as the origin, in which its mean radius is 1. There, a point is a length $|q|$ in a direction $\varphi$, and the outline's radius is a sum of waves with complex amplitudes $w_k$ (a Fourier series):
#
# $$ r(\varphi) = 1 + \sum_{k=1}^{K} \operatorname{Re}\left(w_k\, e^{i k \varphi}\right) \tag{2} $$
#
# The cover is 1 inside, 0 outside, and falls over about a pixel in between, so that edges are smooth as a camera's are; $\rho$ is the mean radius in pixels:
#
# $$ \alpha_l(x) = \min\left(1, \max\left(0,\; \rho\,(r(\varphi) - |q|) + \tfrac12\right)\right) \tag{3} $$
#
# Layer after layer is painted over what is there already, for image 1 where it stands, and for image 2 where it came from:
#
# $$ I_1 \leftarrow (1 - \alpha_l(x))\, I_1 + \alpha_l(x)\, P_l(T_l\,x), \qquad l = 0, 1, \dots \tag{4} $$
#
# $$ I_2 \leftarrow (1 - \alpha_l(M_l^{-1} x))\, I_2 + \alpha_l(M_l^{-1} x)\, P_l(T_l\,M_l^{-1} x) \tag{5} $$
#
# The front layer of a pixel is the last one that covers half of it or more. It carries the pixel along:
#
# $$ t(x) = \max\{\, l : \alpha_l(x) \ge \tfrac12 \,\}, \qquad f(x) = M_{t(x)}\,x - x \tag{6} $$
#
# A pixel stays visible if its target $y = x + f(x)$ lies inside image 2 and no layer further in front covers it there:
#
# $$ V(x) = 1 \ \text{ if } y \text{ is inside and } \max\{\, l : \alpha_l(M_l^{-1} y) \ge \tfrac12 \,\} \le t(x), \ \text{ else } 0 \tag{7} $$
#
# The loss compares each of the $n$ estimates $\hat f_1, \dots, \hat f_n$ with the true flow, as a mean of absolute differences over both components and all pixels. A pixel that does not count, because its flow is unknown, adds 0 to that mean:
#
# $$ \mathcal{L} = \sum_{i=1}^{n} \gamma^{\,n-i}\; \operatorname{mean}\left|\hat f_i - f\right| \tag{8} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $l$ | layer, 0 the background, the last in front | 0 … L − 1 | `layer` | layer l |
# | $c$ | centre of a motion and of a shape | (L, 2), px | `centre` | centre c |
# | $M$ | motion of a layer, image 1 to image 2 | (L, 3, 3) | `motion` | motion M |
# | $P$ | photograph that a layer is cut from | (3, h, w), 0 to 255 | `textures` | photograph P |
# | $r$ | radius of the outline in one direction | mean 1 | `edge` | radius r |
# | $\alpha$ | cover: how much of a pixel a layer hides | (L, H, W), 0 to 1 | `cover` | cover α |
# | $I_1$ | first image | (3, H, W), 0 to 255 | `image1` | image I₁ |
# | $I_2$ | second image | (3, H, W), 0 to 255 | `image2` | image I₂ |
# | $t$ | front layer of a pixel | (H, W), 0 … L − 1 | `front` | front t |
# | $f$ | flow from image 1 to image 2 | (2, H, W), px | `flow` | flow f |
# | $V$ | visible: whether the pixel is seen in image 2 | (H, W), 0 or 1 | `visible` | visible V |
# | $n$ | number of estimates, one an iteration | whole number | `n` | estimate i of n |
# | $\gamma$ | weight of an estimate against the next | 0.8 or 0.85 | `gamma` | weight γ |
# | $\mathcal{L}$ | loss of one batch | px | `loss` | loss L |
#
# Not in the table, since they serve an equation or two: $\theta$ (`angle`), $z$ (`zoom`), $s$ (`shift`), $T$ (`texture`), $\varphi$ and $|q|$ (`direction`, `length`), $w_k$ (`waves`), $\rho$ (`rho`), $y$ (`target`).
#
# Letters of shapes: $B$ pairs of a batch, $L$ layers, $K$ waves, $H$ and $W$ the size of an image, $h$ and $w$ that of a photograph.


# %% tags=["figure"]
def draw_weights(n=12):
    figure, axes = canvas(1, 1, 4.6, 1.7)
    for gamma, colour, marker in ((0.8, "first", "o"), (0.85, "second", "s")):
        weights = [gamma ** (n - i) for i in range(1, n + 1)]
        style = {"marker": marker, "markersize": 4, "color": COLOURS[colour]}
        axes.plot(range(1, n + 1), weights, label=f"γ = {gamma}", **style)
    axes.set(xlabel="estimate i of n", ylabel="weight γ to the n − i", ylim=(0, 1.05))
    axes.set(title="share in the loss L", xticks=range(1, n + 1))
    axes.legend()
    return figure


show(draw_weights(), alt="Two rising curves: the last estimate counts fully, each earlier one less")

# %% [markdown]
# At the twelve estimates of the release's training, the last counts fully and the first hardly. No estimate counts for nothing, so the early iterations are trained too.
#
# > **Where the code leaves the paper.** RAFT was trained on published sets of rendered and measured pairs, which do not come with this course. The generator here takes their place. The release's recipes stand below as data (`STANDARD`, `MIXED`), for whoever has the sets. The mean of equation 8 is the release's: the pixels that do not count stay in the number that it divides by.

# %% [markdown]
# ## Code
#
# ### A motion is a matrix
#
# Equation 1 for one point, with complex numbers as the plane: a multiplication turns and zooms.


# %%
def similarity_of_one(x, centre, angle, zoom, shift):
    x, centre, shift = complex(*x), complex(*centre), complex(*shift)
    turned = centre + shift + zoom * complex(math.cos(angle), math.sin(angle)) * (x - centre)
    return turned.real, turned.imag


similarity_of_one((3.0, 2.0), centre=(2.0, 2.0), angle=math.pi / 2, zoom=2.0, shift=(10.0, 0.0))

# %% [markdown]
# The point lies one pixel right of the centre. A quarter turn takes it one pixel below (y points down, so a positive angle turns clockwise on the screen), the zoom to two pixels below, the shift ten to the right.
#
# As a 3 × 3 matrix on $(x, y, 1)$, a motion can be inverted and chained by one call, for all layers at once. Its last column is what remains of equation 1 at $x = 0$.


# %% tags=["promote", "exercise"]
def similarity(
    angle: Float[Tensor, "N"],
    zoom: Float[Tensor, "N"],
    shift: Float[Tensor, "N 2"],
    centre: Float[Tensor, "N 2"],
) -> Float[Tensor, "N 3 3"]:
    """Turn and zoom about a centre, then shift (equation 1 of the lesson).

    angle    (N,) in radians, positive from x to y, which is clockwise on the screen
    zoom     (N,) factors
    shift    (N, 2) in pixels, as (x, y)
    centre   (N, 2) in pixels, as (x, y): the point that turn and zoom leave where it is
    returns  (N, 3, 3) matrices on (x, y, 1)

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    linear = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
    offset = centre + shift - (linear @ centre[..., None])[..., 0]
    top = torch.cat([linear, offset[..., None]], dim=-1)
    bottom = top.new_tensor([0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 3)
    return torch.cat([top, bottom], dim=-2)


# %% tags=["check"]
one = similarity(
    torch.tensor([math.pi / 2, 0.3]),
    torch.tensor([2.0, 0.7]),
    torch.tensor([[10.0, 0.0], [1.0, -2.0]]),
    torch.tensor([[2.0, 2.0], [5.0, 4.0]]),
)
assert one.shape == (2, 3, 3), "one matrix for each angle"
assert one[:, 2].tolist() == [[0, 0, 1]] * 2, "the last row is 0, 0, 1"
# float32 at values near 10 has steps of 1e-6, and a turn adds a few of them.
moved = one @ torch.tensor([3.0, 2.0, 1.0])
first = f"(3, 2) goes to (12, 4) by the first, not {moved[0, :2].tolist()}"
assert torch.allclose(moved[0, :2], torch.tensor([12.0, 4.0]), atol=1e-5), first
expected = similarity_of_one((3.0, 2.0), (5.0, 4.0), 0.3, 0.7, (1.0, -2.0))
second = f"(3, 2) goes to {expected} by the second, not {moved[1, :2].tolist()}"
assert torch.allclose(moved[1, :2], torch.tensor(expected), atol=1e-5), second


# %% tags=["promote"]
def move(
    matrix: Float[Tensor, "N 3 3"], points: Float[Tensor, "N H W 2"]
) -> Float[Tensor, "N H W 2"]:
    """Send points through affine matrices, one matrix for each map of points.

    matrix   (N, 3, 3) with the last row (0, 0, 1)
    points   (N, H, W, 2) as (x, y), in pixels
    returns  (N, H, W, 2) where they go

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    """
    x, y = points[..., :1], points[..., 1:]
    right, down, shift = matrix[:, None, None, :2].unbind(-1)
    return torch.addcmul(torch.addcmul(shift, x, right), y, down)


# %%
corner = move(one, torch.tensor([3.0, 2.0]).expand(2, 1, 1, 2))[:, 0, 0]
assert torch.allclose(corner, moved[:, :2], atol=1e-5)  # the same sums in another order

# %% [markdown]
# ### A shape is a radius over direction
#
# Equations 2 and 3 for one point of a layer that stands at the origin with mean radius $\rho$: an angle from `atan2`, a sum of sines and cosines.


# %%
def cover_of_one(x, y, waves, rho):
    phi, length = math.atan2(y, x), math.hypot(x, y) / rho
    edge = 1.0
    for k, (a, b) in enumerate(waves, start=1):
        edge += a * math.cos(k * phi) - b * math.sin(k * phi)
    return min(1.0, max(0.0, rho * (edge - length) + 0.5))


circle = [(0.0, 0.0)]
[cover_of_one(x, 0.0, circle, rho=4.0) for x in (0.0, 3.0, 3.75, 4.0, 4.25, 5.0)]

# %% [markdown]
# A disc of radius 4: covered inside, half covered on the outline, free outside.
#
# For whole images, angles cost too much. With the point as a complex number, $d = e^{i\varphi}$ is the point divided by its length, $e^{ik\varphi}$ is $d^k$, and the sum of equation 2 is a polynomial in $d$: one multiplication and one addition for each wave. A **scene** holds what the layers are made of.


# %% tags=["promote"]
class Scene(NamedTuple):
    """L layers from back to front; layer 0 covers the whole image.

    textures  L photographs (3, h, w) in [0, 255]
    texture   (L, 3, 3) from image 1 to the photograph
    motion    (L, 3, 3) from image 1 to image 2
    outline   (L, 3, 3) from image 1 to the frame of the shape, where its mean radius is 1
    waves     (L, 2, K) real and imaginary parts of the amplitudes w of the radius

    Convention: (x, y) in pixels, x to the right, y down, the top-left pixel's centre at (0, 0).
    """

    textures: list[Tensor]
    texture: Float[Tensor, "L 3 3"]
    motion: Float[Tensor, "L 3 3"]
    outline: Float[Tensor, "L 3 3"]
    waves: Float[Tensor, "L 2 K"]


# %% tags=["promote"]
def coverage(scene: Scene, points: Float[Tensor, "L H W 2"]) -> Float[Tensor, "L H W"]:
    """How much of each point each layer covers, 0 to 1 (equations 2 and 3 of the lesson).

    points   (L, H, W, 2) positions in image 1, for each layer its own, in pixels
    returns  (L, H, W), falling from 1 to 0 over about a pixel at the outline

    Convention: points as (x, y), x to the right, y down.
    """
    local = torch.view_as_complex(move(scene.outline, points))
    length = local.abs().clamp(min=1e-6)
    direction = local / length
    edge = torch.zeros_like(direction)
    amplitudes = torch.view_as_complex(scene.waves.transpose(1, 2).contiguous())
    for wave in amplitudes.unbind(1)[::-1]:  # Horner's rule, from the highest wave down
        edge = (edge + wave[:, None, None]) * direction
    # The frame's matrix shrinks areas by the square of the mean radius in pixels.
    rho = scene.outline[:, :2, :2].det().abs().rsqrt()[:, None, None]
    return (rho * (1 + edge.real - length) + 0.5).clamp(0, 1)


# %%
rho, waves = 4.0, torch.tensor([[[0.3, 0.1], [-0.2, 0.15]]])
frame = torch.diag(torch.tensor([1 / rho, 1 / rho, 1.0]))[None]
blob = Scene([], frame, frame, frame, waves)
points = pixel_grid(12, 12)[None] - 6.0
expected = [[cover_of_one(*q, waves[0].T.tolist(), rho) for q in row] for row in points[0].tolist()]
# float32 rounds a radius near 1 to 1e-7, eight pixels of length and six waves to a little more.
assert torch.allclose(coverage(blob, points)[0], torch.tensor(expected), atol=1e-5)

# %% [markdown]
# ### A random scene
#
# Every number of a scene is drawn from a generator that is handed in: the same seed gives the same scene. Zooms and radii are drawn evenly on a logarithmic scale, since twice as large and half as large are equally far from 1.


# %% tags=["promote"]
def uniform(low: float, high: float, *shape: int, generator: torch.Generator) -> Tensor:
    """Random numbers spread evenly from low to high, in a tensor of the given shape."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def _log_uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    return torch.exp(uniform(math.log(low), math.log(high), count, generator=generator))


# %% [markdown]
# Where a layer's photograph is read: around a random spot that keeps away from the border, at 0.6 to 1.6 photograph pixels for each pixel. Six of ten layers stand nearly upright, as pictures mostly do.


# %% tags=["promote"]
def _random_places(textures: list[Tensor], frame: Tensor, generator: torch.Generator) -> Tensor:
    """Lay each layer's photograph into the image: matrices from image 1 to the photograph."""
    L = len(textures)
    sizes = torch.tensor([[photo.shape[2], photo.shape[1]] for photo in textures])
    spot = uniform(0.15, 0.85, L, 2, generator=generator) * sizes
    zoom = _log_uniform(0.6, 1.6, L, generator)
    angle = uniform(-math.pi, math.pi, L, generator=generator)
    upright = torch.rand(L, generator=generator) < 0.6
    angle = torch.where(upright, 0.15 * angle, angle)
    return similarity(angle, zoom, spot - frame, frame.expand(L, 2))


# %% [markdown]
# A shape's frame is a turn and a stretch that keeps the area: one axis is divided by the factor that the other is multiplied by. Amplitudes fall as $1/k$, so that outlines are wavy and not jagged. The background is a disc so large that its outline is out of sight.


# %% tags=["promote"]
def _random_shapes(
    centre: Tensor, side: int, generator: torch.Generator, waves: int = 6
) -> tuple[Tensor, Tensor]:
    """Draw the outlines of the layers around their centres: frames (L, 3, 3) and amplitudes."""
    L = len(centre)
    radius = side * _log_uniform(0.08, 0.35, L, generator)
    radius[0] = 1e6
    stretch = torch.exp(uniform(-1.1, 1.1, L, generator=generator))
    turn = uniform(-math.pi, math.pi, L, generator=generator)
    along = torch.stack([turn.cos(), turn.sin()], dim=-1) * (stretch / radius)[:, None]
    across = torch.stack([-turn.sin(), turn.cos()], dim=-1) / (stretch * radius)[:, None]
    outline = torch.eye(3).repeat(L, 1, 1)
    outline[:, :2, :2] = torch.stack([along, across], dim=-2)
    outline[:, :2, 2] = -(outline[:, :2, :2] @ centre[..., None])[..., 0]
    rough = uniform(0.0, 0.35, L, generator=generator)[:, None, None]
    amplitudes = torch.randn(L, 2, waves, generator=generator) * rough / torch.arange(1, waves + 1)
    amplitudes[0] = 0
    return outline, amplitudes


# %% [markdown]
# Small motions are more common than large ones (the power 1.5). In six scenes of ten every layer goes its own way. In the others a camera passes by: all layers go in one direction, nearer ones further, and in half of these the direction is horizontal, as between the two eyes. Seven layers of ten also turn a little, and grow or shrink.


# %% tags=["promote"]
def _random_motions(centre: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Draw how each layer moves from image 1 to image 2, by shifts of up to `reach` pixels."""
    L = len(centre)
    length = reach * torch.rand(L, generator=generator) ** 1.5
    heading = uniform(-math.pi, math.pi, L, generator=generator)
    if torch.rand((), generator=generator) < 0.4:  # a camera passes by: nearer layers go further
        heading = heading[:1].expand(L) + 0.05 * torch.randn(L, generator=generator)
        if torch.rand((), generator=generator) < 0.5:  # as two eyes see it
            heading = torch.round(heading / math.pi) * math.pi
        length = length.sort().values
    shift = length[:, None] * torch.stack([heading.cos(), heading.sin()], dim=-1)
    turning = (torch.rand(L, generator=generator) < 0.7).float()
    angle = 0.12 * torch.randn(L, generator=generator) * turning
    zoom = torch.exp(0.08 * torch.randn(L, generator=generator) * turning)
    return similarity(angle, zoom, shift, centre)


# %% tags=["promote"]
def random_scene(
    photographs: Sequence[Tensor],
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    reach: float = 16.0,
    layers: int = 4,
) -> Scene:
    """Draw a background and one to `layers` layers in front of it.

    photographs  (3, h, w) each, in [0, 255], to cut the layers from
    size         (H, W) of the images in pixels
    generator    of the random numbers: the same state gives the same scene
    reach        the longest shift of a layer, in pixels; turn and zoom add a little

    Raises ValueError for no photographs and for a size, reach or layers out of range.
    """
    H, W = _checked_size(size)
    photographs = listed("photographs", photographs, "load_photographs(TRAIN_PHOTOGRAPHS)")
    if not reach >= 0:
        raise ValueError(f"reach is {reach}; expected 0 pixels or more")
    most = whole_number("layers", layers, least=1)
    L = 1 + int(torch.randint(1, most + 1, (), generator=generator))
    choice = torch.randint(len(photographs), (L,), generator=generator)
    textures = [photographs[i] for i in choice]
    frame = torch.tensor([W / 2, H / 2])
    texture = _random_places(textures, frame, generator)
    centre = torch.rand(L, 2, generator=generator) * torch.tensor([W, H])
    centre[0] = frame
    outline, waves = _random_shapes(centre, min(H, W), generator)
    motion = _random_motions(centre, reach, generator)
    return Scene(textures, texture, motion, outline, waves)


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    if len(size) != 2:
        raise ValueError(f"size is {size}; expected two whole numbers, (H, W)")
    H, W = size
    return whole_number("H", H, least=1), whole_number("W", W, least=1)


# %%
again = random_scene(photographs, (128, 160), torch.Generator().manual_seed(24), reach=24)
assert torch.equal(again.motion, scene.motion) and torch.equal(again.waves, scene.waves)
print(f"{len(scene.textures)} layers; matrices of the motions of the first two:")
print(scene.motion[:2])

# %% [markdown]
# ### Painting
#
# Equation 4, layer after layer. `torch.lerp(a, b, α)` is $(1 - \alpha)\,a + \alpha\,b$, and `sample` of chapter 6 reads the photograph; beyond its border it reads a mirror image, so no layer has holes.


# %% tags=["promote"]
def paint(
    scene: Scene, points: Float[Tensor, "L H W 2"], cover: Float[Tensor, "L H W"]
) -> Float[Tensor, "3 H W"]:
    """Paint the layers over each other, from back to front (equations 4 and 5 of the lesson).

    points   (L, H, W, 2) where in image 1 each pixel of each layer is read, in pixels
    cover    (L, H, W) in [0, 1], from `coverage`
    returns  (3, H, W) in [0, 255]; photographs are mirrored at their borders

    Convention: points as (x, y), x to the right, y down.
    """
    image = cover.new_zeros(3, *cover.shape[1:])
    for layer, photo in enumerate(scene.textures):
        places = move(scene.texture[layer : layer + 1], points[layer : layer + 1])
        pixels = sample(photo[None], places, padding="reflection")[0]
        image = torch.lerp(image, pixels, cover[layer])
    return image


# %% [markdown]
# A black and a white sheet of paper, the white one covering half of the first pixel and none of the second:

# %%
sheets = [torch.zeros(3, 4, 4), torch.full((3, 4, 4), 255.0)]
plain = Scene(sheets, *(torch.eye(3).expand(2, 3, 3),) * 3, torch.zeros(2, 2, 1))
cover = torch.tensor([[[1.0, 1.0]], [[0.5, 0.0]]])
assert paint(plain, pixel_grid(1, 2).expand(2, 1, 2, 2), cover)[0].tolist() == [[127.5, 0]]

# %% [markdown]
# ### Flow and visibility
#
# The front layer of equation 6 is a maximum over the numbers of the layers; where a layer covers less than half, its number does not take part. Images, flow and visibility travel together, so one tuple holds them.


# %% tags=["promote"]
class FlowPair(NamedTuple):
    """Two images and what moved between them, exactly; one pair, or a batch with an axis in front.

    Convention: flow (u, v) in pixels from image 1 to image 2, u to the right, v down;
    `visible` says of each pixel of image 1 whether image 2 shows it.
    """

    image1: Float[Tensor, "*B 3 H W"]
    image2: Float[Tensor, "*B 3 H W"]
    flow: Float[Tensor, "*B 2 H W"]
    visible: Bool[Tensor, "*B H W"]


# %% tags=["promote"]
def front_layer(cover: Float[Tensor, "L H W"]) -> Int[Tensor, "H W"]:
    """The number of the last layer that covers half of a pixel or more (equation 6)."""
    number = torch.arange(1, len(cover) + 1)[:, None, None]
    return ((cover >= 0.5) * number).amax(dim=0) - 1


# %%
assert front_layer(cover)[0].tolist() == [1, 0]


# %% tags=["promote"]
def render(scene: Scene, size: tuple[int, int]) -> FlowPair:
    """Paint both images of a scene, with the exact flow (equations 4 to 7 of the lesson).

    size     (H, W) in pixels
    returns  images (3, H, W) in [0, 255], flow (2, H, W) in pixels, visible (H, W)

    Convention: (u, v), u to the right, v down, from image 1 to image 2.
    """
    grid = pixel_grid(*_checked_size(size))
    H, W, L = *grid.shape[:2], len(scene.textures)
    here = grid.expand(L, H, W, 2)
    back = torch.linalg.inv(scene.motion)
    origin = move(back, here)  # where in image 1 the pixels of image 2 come from
    cover1, cover2 = coverage(scene, here), coverage(scene, origin)
    front = front_layer(cover1)
    target = move(scene.motion, here).gather(0, front[None, ..., None].expand(1, H, W, 2))
    in_front_there = front_layer(coverage(scene, move(back, target.expand(L, H, W, 2))))
    return FlowPair(
        image1=paint(scene, here, cover1),
        image2=paint(scene, origin, cover2),
        flow=(target[0] - grid).permute(2, 0, 1),
        visible=inside(target, H, W)[0] & (in_front_there <= front),
    )


# %% [markdown]
# Is the flow right? Read image 2 where the flow points, and image 1 must come back: on visible pixels up to what two interpolations blur, on hidden ones not at all.


# %%
def gap(pair):
    """How far image 2, read along the flow, is from image 1: grey levels, for each pixel."""
    return (warp(pair.image2[None], flow_grid(pair.flow[None]))[0] - pair.image1).abs().mean(dim=0)


pair = render(scene, (128, 160))
unmoved = gap(pair._replace(flow=0 * pair.flow))
for name, where in (("visible", pair.visible), ("hidden", ~pair.visible)):
    print(
        f"{name:>7}: {gap(pair)[where].mean():5.1f} grey levels apart, unwarped {unmoved[where].mean():5.1f}"
    )
assert gap(pair)[pair.visible].mean() < 0.25 * unmoved[pair.visible].mean()


# %%
def draw_residual():
    figure, axes = canvas(1, 3, 6.6, 1.9, sharey=True)
    pictures = (unmoved, gap(pair), gap(pair) * pair.visible)
    titles = ("|I₂ − I₁|", "|I₂ read at x + f − I₁|", "the same, visible pixels")
    for each, values, title in zip(axes, pictures, titles, strict=True):
        each.imshow(values, vmin=0, vmax=80, cmap="gray")
        each.set(title=title, xlabel="x (px)")
    axes[0].set(ylabel="y (px)")
    return figure


show(
    draw_residual(),
    alt="Differences between the images: large before warping, small after, and smallest on visible pixels",
    photo=True,
)

# %% [markdown]
# White is a difference of 80 grey levels or more. What is left in the third picture are edges: there one pixel mixes two layers that go different ways, and no single arrow is right.
#
# ### Photographs and an endless set
#
# Photographs are read at most 384 pixels high: in a small image, a layer cut from a larger one would show little but a smooth patch.


# %% tags=["promote"]
TRAIN_PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "china",
    "clock",
    "coins",
    "grass",
    "gravel",
    "hubble",
    "immunohistochemistry",
    "retina",
)

HELD_OUT_PHOTOGRAPHS = ("coffee", "flower", "motorcycle", "rocket")


def load_photographs(names: Sequence[str], height: int = 384) -> list[Float[Tensor, "3 h w"]]:
    """Read photographs of the course by name, averaged down to `height` where they are higher.

    returns  one (3, h, w) each, in [0, 255]

    Raises what `fourfold.kit.images.photograph` raises for a name.
    """
    found = []
    for name in names:
        photo = photograph(name)
        if photo.shape[2] > height:
            photo = photograph(name, height=height)
        found.append(photo[0])
    return found


# %% [markdown]
# No pair is stored. The set makes pair number `index` when it is asked for, from a fresh seed, so no pass over it repeats an earlier one; with a seed of its own it always makes the same pairs, for measuring. With `augment` it also changes the colours, by `augment_colours`, which comes next.


# %% tags=["promote"]
class SyntheticPairs(Dataset):
    """Pairs with exact flow, new ones at every pass; always the same ones where a seed is given.

    photographs  (3, h, w) each, in [0, 255]
    size         (H, W) of the images in pixels
    length       pairs in one pass
    reach        the longest shift of a layer, in pixels
    augment      change the colours, cover parts of image 2, add noise
    seed         None draws from torch's own random numbers

    Item `index` is a FlowPair without a batch axis. Raises what `random_scene` raises.
    """

    def __init__(
        self,
        photographs: Sequence[Tensor],
        size: tuple[int, int] = (96, 96),
        *,
        length: int = 1200,
        reach: float = 24.0,
        augment: bool = True,
        seed: int | None = None,
    ) -> None:
        self.photographs, self.size = photographs, _checked_size(size)
        self.length = whole_number("length", length, least=1)
        self.reach, self.augment, self.seed = reach, augment, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> FlowPair:
        if not 0 <= index < self.length:
            raise IndexError(f"index is {index}; expected 0 to {self.length - 1}")
        draw = int(torch.randint(2**48, ())) if self.seed is None else self.seed << 24
        generator = torch.Generator().manual_seed(draw + index)
        scene = random_scene(self.photographs, self.size, generator, reach=self.reach)
        pair = render(scene, self.size)
        if not self.augment:
            return pair
        sides = (self.size[0] // 8, self.size[0] // 4)
        image1, image2 = augment_colours(pair.image1, pair.image2, generator, sizes=sides)
        return pair._replace(image1=image1, image2=image2)


# %% [markdown]
# ### Augmentation of colours
#
# Between two frames the light changes, a cloud passes, the camera corrects itself. A network that has only seen equal colours may rely on them. So the release changes brightness, contrast, saturation and **hue** (色相) at random, mostly the same way in both images, sometimes in each image separately.
#
# The hue is the angle of a colour on the colour circle. The textbook goes to hue, saturation and value (HSV), adds to the hue, and goes back. The **value** is the largest of the three channels, the **chroma** its distance to the smallest. The way back fits in one formula: a channel is the value minus the chroma times a trapezoid over the hue, shifted by 5, 3 and 1 sixths of the circle for red, green and blue.


# %% tags=["promote"]
def _grey(image: Tensor) -> Tensor:
    """Brightness as the eye weighs the channels, (*, 1, H, W)."""
    return (image * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(-3, keepdim=True)


def shift_hue(image: Float[Tensor, "*B 3 H W"], turns: float) -> Float[Tensor, "*B 3 H W"]:
    """Turn the hue of an image by a share of the colour circle.

    image    (*, 3, H, W) red, green and blue in any unit, none below 0
    turns    1 goes once around; 1/3 turns red into green
    returns  the same value and chroma with another hue

    >>> shift_hue(torch.tensor([255.0, 0.0, 0.0]).view(3, 1, 1), 1 / 3).flatten().round().tolist()
    [0.0, 255.0, 0.0]
    """
    value, where = image.max(-3)
    chroma = value - image.amin(-3)
    red, green, blue = image.unbind(-3)
    safe = chroma.clamp(min=1e-6)
    sector = torch.where(
        where == 0,
        (green - blue) / safe,
        torch.where(where == 1, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    steps = image.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    k = (steps + (sector + 6 * turns)[..., None, :, :]) % 6
    fall = torch.minimum(k, 4 - k).clamp(0, 1)
    return value[..., None, :, :] - chroma[..., None, :, :] * fall


# %% [markdown]
# scikit-image's own conversion is the oracle:

# %%
from skimage.color import hsv2rgb, rgb2hsv

hsv = rgb2hsv(photographs[3].permute(1, 2, 0).numpy() / 255)
hsv[..., 0] = (hsv[..., 0] + 0.2) % 1
theirs = 255 * torch.from_numpy(hsv2rgb(hsv)).permute(2, 0, 1).float()
# Both compute in float32 with values up to 255, whose steps are 2e-5; hues divide by the chroma.
assert torch.allclose(shift_hue(photographs[3], 0.2), theirs, atol=1e-2)


# %% tags=["promote"]
def color_jitter(
    images: Float[Tensor, "N 3 H W"],
    generator: torch.Generator,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.5 / math.pi,
) -> Float[Tensor, "N 3 H W"]:
    """Change brightness, contrast, saturation and hue of all images by one draw, in random order.

    images      (N, 3, H, W) in [0, 255]
    brightness  the factor lies in [1 − brightness, 1 + brightness]; contrast (against the mean grey
                of all images) and saturation (against each pixel's grey) alike
    hue         at most this share of the colour circle, either way

    Source: the RAFT release's settings of torchvision's ColorJitter.
    """
    factors = [
        float(uniform(1 - spread, 1 + spread, generator=generator))
        for spread in (brightness, contrast, saturation)
    ]
    turns = float(uniform(-hue, hue, generator=generator))
    changes = (
        lambda x: x * factors[0],
        lambda x: torch.lerp(_grey(x).mean(), x, factors[1]),
        lambda x: torch.lerp(_grey(x).expand_as(x), x, factors[2]),
        lambda x: shift_hue(x, turns),
    )
    for k in torch.randperm(len(changes), generator=generator).tolist():
        images = changes[k](images).clamp(0, 255)
    return images


# %% [markdown]
# Real pairs have hidden pixels of a kind that the layers do not make. The **eraser** covers one or two rectangles of image 2 with its mean colour, and the loss still asks for the true flow there, so the network has to carry flow in from around.


# %% tags=["promote"]
def erase(
    image: Float[Tensor, "3 H W"],
    generator: torch.Generator,
    sizes: tuple[int, int] = (50, 100),
    probability: float = 0.5,
) -> Float[Tensor, "3 H W"]:
    """Cover one or two rectangles of an image with its mean colour, with a probability.

    sizes    smallest and largest side in pixels, both inclusive; what leaves the image is cut off
    returns  a new image, or the image itself where nothing is covered
    """
    if torch.rand((), generator=generator) >= probability:
        return image
    H, W = image.shape[-2:]
    image, mean = image.clone(), image.mean((-2, -1), keepdim=True)
    for _ in range(int(torch.randint(1, 3, (), generator=generator))):
        x = int(torch.randint(W, (), generator=generator))
        y = int(torch.randint(H, (), generator=generator))
        w, h = torch.randint(sizes[0], sizes[1] + 1, (2,), generator=generator).tolist()
        image[:, y : y + h, x : x + w] = mean
    return image


# %% tags=["promote"]
def augment_colours(
    image1: Float[Tensor, "3 H W"],
    image2: Float[Tensor, "3 H W"],
    generator: torch.Generator,
    *,
    asymmetric: float = 0.2,
    sizes: tuple[int, int] = (50, 100),
    noise: float = 5.0,
    strength: float = 0.4,
    hue: float = 0.5 / math.pi,
) -> Float[Tensor, "2 3 H W"]:
    """Change what the images look like and not what moves: colours, covered parts, noise.

    asymmetric  how often each image gets a change of its own
    sizes       sides of the rectangles of `erase`, on image 2 alone
    noise       the strongest noise, a standard deviation in grey levels
    strength    of brightness, contrast and saturation in `color_jitter`
    returns     both images, (2, 3, H, W) in [0, 255]
    """
    jitter = {"brightness": strength, "contrast": strength, "saturation": strength, "hue": hue}
    if torch.rand((), generator=generator) < asymmetric:
        image1, image2 = (color_jitter(x[None], generator, **jitter)[0] for x in (image1, image2))
    else:
        image1, image2 = color_jitter(torch.stack([image1, image2]), generator, **jitter)
    images = torch.stack([image1, erase(image2, generator, sizes)])
    sigma = uniform(0, noise, generator=generator)
    return (images + sigma * torch.randn(images.shape, generator=generator)).clamp(0, 255)


# %%
def draw_examples(examples):
    figure, axes = canvas(3, len(examples), 5.2, 4.0, sharex=True, sharey=True)
    for column, example in zip(axes.T, examples, strict=True):
        flow = flow_to_image(example.flow[None], max_norm=24)
        for each, picture in zip(column, (example.image1, example.image2, flow), strict=True):
            each.imshow(to_picture(picture))
        column[2].set(xlabel="x (px)")
    for each, name in zip(axes[:, 0], ("image 1", "image 2", "flow"), strict=True):
        each.set(ylabel=f"{name}\ny (px)")
    return figure


recoloured = SyntheticPairs(photographs, (96, 96), seed=22)
show(
    draw_examples([recoloured[i] for i in range(4)]),
    alt="Four training pairs with changed colours, covered rectangles and noise, and their flows",
    photo=True,
)

# %% [markdown]
# Four pairs as the network will see them. The full colour of a flow is a motion of 24 pixels; plain rectangles on the second images are the eraser's, here an eighth to a quarter of the image's height on each side.
#
# ### Augmentation of places
#
# Published sets are finite, so the release also zooms, flips and crops their pairs. Here the flow must change with the images. Stretched by a factor in x, every motion becomes as many times longer in x; mirrored, it turns around. That is the whole difficulty, and forgetting it is the classic mistake.


# %% tags=["promote", "exercise"]
def stretch_pair(pair: FlowPair, height: int, width: int) -> FlowPair:
    """Bring a pair to another size; vectors are scaled as the images are.

    height, width  of the result, in pixels
    returns        images and flow read between pixels (bilinear, areas on areas), visible where
                   at least half of what was read is

    Convention: pixel x of the result lies at (x + ½) / scale − ½ of the pair.
    """
    H, W = pair.flow.shape[-2:]

    def resized(x: Tensor) -> Tensor:
        maps = x.reshape(-1, 1, H, W)  # a batch of maps, whatever axes stand in front
        maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
        return maps.reshape(*x.shape[:-2], height, width)

    scale = pair.flow.new_tensor([width / W, height / H])[:, None, None]
    return FlowPair(
        image1=resized(pair.image1),
        image2=resized(pair.image2),
        flow=scale * resized(pair.flow),
        visible=resized(pair.visible.float()) >= 0.5,
    )


# %% tags=["check"]
ramp = torch.arange(6.0).expand(3, 8, 6)
still = FlowPair(ramp, 2 * ramp, torch.ones(2, 8, 6), ramp[0] < 3)
doubled = stretch_pair(still, 8, 12)
assert doubled.image1.shape == doubled.image2.shape == (3, 8, 12), "images get the new size"
assert doubled.flow[0].eq(2).all(), "twice as wide, so motions in x are twice as long"
assert doubled.flow[1].eq(1).all(), "as high as before, so motions in y stay"
assert stretch_pair(still, 4, 6).flow[1].eq(0.5).all(), "half as high: half as long in y"
where = (torch.arange(12) + 0.5) / 2 - 0.5  # of each new column in the old image
for name, image, factor in (("image1", doubled.image1, 1), ("image2", doubled.image2, 2)):
    expected = factor * where.clamp(0, 5)
    assert image[0, 0].allclose(expected), f"{name}: areas on areas, align_corners=False"
assert torch.equal(doubled.visible[0], where < 2.5), "visible where at least half of it is"
batch = FlowPair(*(torch.stack([x, x]) for x in still))
assert stretch_pair(batch, 4, 6).flow.shape == (2, 2, 4, 6), "a batch axis stays in front"


# %% tags=["promote", "exercise"]
def flip_pair(pair: FlowPair, axis: str) -> FlowPair:
    """Mirror a pair, "x" left to right or "y" top to bottom, with the flow turned around.

    Raises ValueError for another axis.
    """
    if axis not in ("x", "y"):
        raise ValueError(f"axis is {axis!r}; expected 'x' or 'y'")
    dim, signs = (-1, [-1.0, 1.0]) if axis == "x" else (-2, [1.0, -1.0])
    image1, image2, flow, visible = (x.flip(dim) for x in pair)
    return FlowPair(image1, image2, flow * flow.new_tensor(signs)[:, None, None], visible)


# %% tags=["check"]
right = FlowPair(
    torch.rand(3, 8, 6), torch.rand(3, 8, 6), torch.randn(2, 8, 6), torch.rand(8, 6) < 0.5
)
for axis, dim, u, v in (("x", -1, -1, 1), ("y", -2, 1, -1)):
    mirrored, flow = flip_pair(right, axis), right.flow.flip(dim)
    for name in ("image1", "image2", "visible"):
        expected = getattr(right, name).flip(dim)
        assert torch.equal(getattr(mirrored, name), expected), f"{axis}: mirror {name} too"
    assert torch.equal(mirrored.flow[0], u * flow[0]), f"{axis}: u times {u}, each at its new place"
    assert torch.equal(mirrored.flow[1], v * flow[1]), f"{axis}: v times {v}, each at its new place"


# %% tags=["promote"]
def crop_pair(pair: FlowPair, left: int, top: int, size: tuple[int, int]) -> FlowPair:
    """Cut a window of size (H, W) out of a pair; motions stay as they are.

    Raises ValueError for a window that is not inside the pair.
    """
    H, W = pair.flow.shape[-2:]
    h, w = size
    if not (0 <= left <= W - w and 0 <= top <= H - h):
        raise ValueError(
            f"a window of {h} × {w} at left {left} and top {top} is not inside {H} × {W} pixels; "
            "expected one that is"
        )
    return FlowPair(*(x[..., top : top + h, left : left + w] for x in pair))


# %% [markdown]
# Do they commute with the flow? Stretch, mirror and crop the scene's pair, and read image 2 along the changed flow again. The **residual**, the mean gap on visible pixels, says that each flow is still right.


# %%
def residual(pair):
    """The mean gap in grey levels, on visible pixels whose target the images still hold."""
    kept = pair.visible & inside(flow_grid(pair.flow[None]), *pair.flow.shape[1:])[0]
    return gap(pair)[kept].mean().item()


changes = {
    "as it was": pair,
    "stretched": stretch_pair(pair, 160, 176),
    "mirrored": flip_pair(pair, "x"),
    "cropped": crop_pair(pair, 30, 10, (96, 96)),
}
for name, changed in changes.items():
    print(f"{name:>10}: {residual(changed):.1f} grey levels apart")
    assert residual(changed) < 6

# %% [markdown]
# KITTI's flow is **sparse** (稀疏): a laser measured some pixels, and the rest is unknown. Interpolating between known and unknown pixels would make numbers up, so each known vector is moved by itself to the nearest pixel of the new size; some pixels get none, and where two meet the last one stays.


# %% tags=["promote"]
def stretch_sparse(pair: FlowPair, height: int, width: int) -> FlowPair:
    """As `stretch_pair`, for flow known at some pixels, those of `visible`: no vector is blended.

    returns  flow 0 where no known vector lands; `visible` is True where one does

    Takes one pair, without a batch axis.
    """
    H, W = pair.flow.shape[-2:]
    scale = pair.flow.new_tensor([width / W, height / H])
    y, x = pair.visible.nonzero(as_tuple=True)
    # The release rounds x · scale, without the half pixel of areas; so do published weights.
    to_x, to_y = (torch.stack([x, y], dim=-1) * scale).round().long().unbind(-1)
    lands = (to_x < width) & (to_y < height)
    flow, known = pair.flow.new_zeros(2, height, width), pair.visible.new_zeros(height, width)
    vectors = (scale[:, None] * pair.flow[:, y, x])[:, lands]
    flow[:, to_y[lands], to_x[lands]] = vectors
    known[to_y[lands], to_x[lands]] = True
    return stretch_pair(pair, height, width)._replace(flow=flow, visible=known)


# %%
dots = torch.zeros(8, 6, dtype=torch.bool)
dots[2, 1] = dots[5, 3] = True
larger = stretch_sparse(right._replace(visible=dots), 16, 12)
assert larger.visible.nonzero().tolist() == [[4, 2], [10, 6]]  # as many dots as before
assert torch.equal(larger.flow[:, 4, 2], 2 * right.flow[:, 2, 1])
assert larger.flow[:, 4, 3].tolist() == [0, 0]  # unknown: no vector landed here

# %% [markdown]
# All of it together, with the release's probabilities: first the size and the place of the crop, then `augment`. A zoom never goes below the crop plus 8 pixels. Crops of sparse pairs are drawn from a range that reaches 50 pixels past the left and right border and 20 below, and pushed back inside, so that crops at the borders come up more often.


# %% tags=["promote"]
def _random_size(
    size: tuple[int, int],
    crop: tuple[int, int],
    scales: tuple[float, float],
    sparse: bool,
    generator: torch.Generator,
) -> tuple[int, int]:
    """The size after a random zoom, and for dense pairs a random stretch of each axis."""
    factor = 2 ** float(uniform(*scales, generator=generator))
    stretched = not sparse and torch.rand((), generator=generator) < 0.8
    each = uniform(-0.2, 0.2, 2, generator=generator) if stretched else torch.zeros(2)
    if torch.rand((), generator=generator) >= 0.8:
        return size
    margin = 1 if sparse else 8
    least = max((c + margin) / s for c, s in zip(crop, size, strict=True))
    height, width = (
        round(s * max(factor * 2**e, least)) for s, e in zip(size, each.tolist(), strict=True)
    )
    return height, width


def _random_start(room: int, before: int, after: int, generator: torch.Generator) -> int:
    start = int(torch.randint(-before, room + after + 1, (), generator=generator))
    return min(max(start, 0), room)


# %% tags=["promote"]
def augment(
    pair: FlowPair,
    generator: torch.Generator,
    crop: tuple[int, int],
    *,
    scales: tuple[float, float] = (-0.2, 0.5),
    flips: tuple[float, float] = (0.5, 0.1),
    sparse: bool = False,
    noise: float = 0.0,
) -> FlowPair:
    """Change a pair of a published set at random, as the RAFT release does.

    crop     (H, W) of the result, in pixels
    scales   exponents of 2 between which the zoom is drawn
    flips    how often left and right change places, and top and bottom
    sparse   the flow is known at the pixels of `visible` alone: gentler colours, the same in both
             images, one zoom for both axes, no flip from top to bottom
    noise    as in `augment_colours`

    Raises ValueError for a pair smaller than the crop.
    """
    h, w = _checked_size(crop)
    H, W = pair.flow.shape[-2:]
    if h > H or w > W:
        raise ValueError(f"pair has {H} × {W} pixels; expected the crop's {h} × {w}, or more")
    gentle = {"strength": 0.3, "hue": 0.3 / math.pi, "asymmetric": 0.0} if sparse else {}
    image1, image2 = augment_colours(pair.image1, pair.image2, generator, noise=noise, **gentle)
    pair = pair._replace(image1=image1, image2=image2)
    height, width = _random_size((H, W), (h, w), scales, sparse, generator)
    if (height, width) != (H, W):
        pair = (stretch_sparse if sparse else stretch_pair)(pair, height, width)
    for axis, often in zip("xy", flips, strict=True):
        if not (sparse and axis == "y") and torch.rand((), generator=generator) < often:
            pair = flip_pair(pair, axis)
    left = _random_start(width - w, 50 if sparse else 0, 50 if sparse else 0, generator)
    top = _random_start(height - h, 0, 20 if sparse else 0, generator)
    return crop_pair(pair, left, top, (h, w))


# %%
random_numbers = torch.Generator().manual_seed(3)
examples = [augment(pair, random_numbers, (96, 96)) for _ in range(4)]
assert all(example.flow.shape == (2, 96, 96) for example in examples)
show(
    draw_examples(examples),
    alt="The same scene four times with other colours, zooms, flips and crops, and the flows",
    photo=True,
)

# %% [markdown]
# One pair, four draws: the colours of the flow change with every mirror and zoom, and the outlines of image 1 lie on the steps of the flow as before.
#
# The course's own pairs are drawn anew at every step, at many zooms and in all directions, so `SyntheticPairs` changes their colours only.
#
# ### The loss
#
# Equation 8 entry by entry, for one pair of two estimates:


# %%
def sequence_loss_loop(flows, target, valid, gamma):
    total, n = 0.0, len(flows)
    for i, flow in enumerate(flows, start=1):
        differences = []
        for estimated, true in zip(flow, target, strict=True):  # u, then v
            entries = zip(estimated.flatten(), true.flatten(), valid.flatten(), strict=True)
            differences += [abs(a - b).item() if counts else 0.0 for a, b, counts in entries]
        total += gamma ** (n - i) * sum(differences) / len(differences)
    return total


guesses = [torch.zeros(2, 1, 2), torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])]
truth = torch.tensor([[[4.0, 4.0]], [[0.0, 0.0]]])
sequence_loss_loop(guesses, truth, torch.ones(1, 2), gamma=0.8)

# %% [markdown]
# The first estimate is wrong by 4 in two entries of four, a mean of 2, and counts 0.8; the second by 1 in one entry of four, a mean of ¼, and counts fully: $0.8 \cdot 2 + 0.25 = 1.85$.
#
# Motions of 400 pixels and more do not count either, as in the release. Where no pixel counts, the loss would be 0 and train nothing, and an error averaged over no pixel is NaN; so an empty mask is refused.


# %% tags=["promote"]
def _check_loss_arguments(flows: Sequence, target: Tensor, counts: Tensor) -> None:
    if len(flows) == 0:
        raise ValueError("flows is empty; expected one estimate or more")
    for estimate in flows:
        shape = tuple(getattr(estimate, "full", estimate).shape)
        if shape != tuple(target.shape):
            raise ValueError(f"flows holds one of shape {shape}; expected {tuple(target.shape)}")
    if not counts.any():
        raise ValueError(
            f"valid has no pixel of {counts.numel()} that counts; expected one or more (a flow of "
            "400 px and more, or NaN, does not count either)"
        )


# %% tags=["promote", "exercise"]
def sequence_loss(
    flows: Sequence,
    target: Float[Tensor, "B 2 H W"],
    valid: Tensor | None = None,
    gamma: float = 0.8,
    max_flow: float = 400.0,
) -> Float[Tensor, ""]:
    """Compare every estimate with the true flow, later ones with more weight (equation 8).

    flows     n estimates, each (B, 2, H, W) in pixels or a `Flow`, whose `full` is taken
    target    (B, 2, H, W) the true flow
    valid     (B, H, W), True or at least ½ where the flow is known; everywhere when left out
    gamma     weight of an estimate against the next
    max_flow  longer true vectors do not count
    returns   a scalar in pixels, the mean being over all entries, with 0 where one does not count

    Raises ValueError for no estimates, for shapes that differ, and where no pixel counts.
    """
    u, v = target.unbind(dim=1)
    counts = torch.hypot(u, v) < max_flow  # `norm` over an axis of two takes far longer
    if valid is not None:
        counts = counts & (valid >= 0.5)
    _check_loss_arguments(flows, target, counts)
    n = len(flows)
    loss = target.new_zeros(())
    for i, estimate in enumerate(flows, start=1):
        flow = getattr(estimate, "full", estimate)
        # A choice, not a product with 0: an unknown target may be NaN.
        wrong = torch.where(counts[:, None], (flow - target).abs(), 0)
        loss = loss + gamma ** (n - i) * wrong.mean()
    return loss


# %% tags=["check"]
two, true = [guess[None] for guess in guesses], truth[None]
loss = sequence_loss(two, true).item()
assert math.isclose(loss, 1.85, abs_tol=1e-6), f"the worked example gives 1.85, not {loss:.3f}"
wrapped = sequence_loss([Flow(guess, guess) for guess in two], true).item()
assert wrapped == loss, "of a Flow, `full` is compared"
target, estimates = torch.randn(1, 2, 4, 5), [torch.randn(1, 2, 4, 5) for _ in range(3)]
valid = torch.rand(1, 4, 5)
expected = sequence_loss_loop([e[0] for e in estimates], target[0], valid[0] >= 0.5, 0.85)
loss = sequence_loss(estimates, target, valid, 0.85).item()
# A mean of 40 float32 numbers near 1 is right to 1e-6.
assert math.isclose(loss, expected, abs_tol=1e-5), "valid ≥ ½ counts; divide by all entries"
for odd in (500.0, math.nan):  # in one pixel of two; the other is wrong by 4, twice
    far = torch.tensor([[[[odd, 1.0]], [[0.0, 0.0]]]])
    assert sequence_loss([far.nan_to_num() + 4], far).item() == 2, f"a flow of {odd} does not count"
try:
    sequence_loss(estimates, target, torch.zeros(1, 4, 5))
except ValueError:
    pass
else:
    raise AssertionError("a mask without a pixel is a ValueError")


# %% [markdown]
# ### Recipes
#
# A training, written down as data: the release's four stages, one after the other, each beginning with the weights of the last. `STANDARD` is the release's script for two GPUs, `MIXED` the one for a single GPU in half precision. The learning rate rises over the first 5 % of the steps and falls in a straight line, but the line is drawn 100 steps too long (`overrun`), so the last step still moves. The context encoder's batch norm is frozen in all stages but the first (`freeze`).


# %% tags=["promote"]
class Recipe(NamedTuple):
    """The settings of one training of RAFT.

    data           what it trains on, in words
    steps, batch   steps of AdamW, and pairs in each
    learning_rate  the highest; see `fourfold.kit.training.one_cycle`
    crop           (H, W) in pixels
    weight_decay, gamma, iterations  of the optimiser, the loss and the model
    scales         exponents of 2 for the zoom of `augment`, None where nothing is zoomed
    overrun        steps by which the rate's schedule is longer than the training
    freeze         batch norm keeps its mean and variance
    masked         the loss counts the pixels of `visible` alone, for flow known in places
    variant, levels  of the model
    augment, reach  of pairs that are made here: change colours, and the longest shift in pixels
    """

    data: str
    steps: int
    batch: int
    learning_rate: float
    crop: tuple[int, int]
    weight_decay: float = 1e-4
    gamma: float = 0.8
    scales: tuple[float, float] | None = None
    iterations: int = 12
    overrun: int = 100
    freeze: bool = True
    masked: bool = True
    variant: str = "full"
    levels: int = 4
    augment: bool = True
    reach: float = 24.0


# %% tags=["promote"]
_SINTEL = "100 × Sintel clean + 100 × Sintel final + 200 × KITTI + 5 × HD1K + FlyingThings3D clean"

STANDARD = {
    "chairs": Recipe(
        "FlyingChairs", 100_000, 10, 4e-4, (368, 496), scales=(-0.1, 1.0), freeze=False
    ),
    "things": Recipe(
        "FlyingThings3D, clean and final, left camera, both directions",
        *(100_000, 6, 1.25e-4, (400, 720)),
        scales=(-0.4, 0.8),
    ),
    "sintel": Recipe(
        _SINTEL, 100_000, 6, 1.25e-4, (368, 768), 1e-5, gamma=0.85, scales=(-0.2, 0.6)
    ),
    "kitti": Recipe("KITTI", 50_000, 6, 1e-4, (288, 960), 1e-5, gamma=0.85, scales=(-0.2, 0.4)),
}

MIXED = {
    "chairs": STANDARD["chairs"]._replace(steps=120_000, batch=8, learning_rate=2.5e-4),
    "things": STANDARD["things"]._replace(steps=120_000, batch=5, learning_rate=1e-4),
    "sintel": STANDARD["sintel"]._replace(steps=120_000, batch=5, learning_rate=1e-4),
    "kitti": STANDARD["kitti"]._replace(batch=5),
}

# %% [markdown]
# The course's own recipes: a RAFT-small with two levels. A crop of 96 pixels gives maps of 12 × 12, which halve to 6 × 6. On a third level, of 3 × 3, every window of 7 × 7 would hang over the border, and the network would learn that most of it is always 0. On a larger photograph it is not, and a network that never saw this goes astray ([lesson 8](8_experiments.ipynb) shows by how much). As in the release, one stage follows the other: `COURSE` learns short motion on small crops, `LONG` goes on with longer motion on larger ones, and `STEADY` with twelve iterations in place of five, for a network that was never asked to stand still drifts when it is asked more often. `QUICK` is for ten minutes on a laptop: motion of a few pixels, three iterations, and the colours left alone. On two cores it took 9 minutes, and left an end-point error of 0.47 of zero flow's on 64 held-out pairs, over all pixels, and of 0.43 over the visible ones. (With 12 iterations, four times as many as it learned, 0.51 and 0.47.)

# %% tags=["promote"]
_MADE = "pairs of SyntheticPairs from twelve photographs of scikit-image and scikit-learn"

COURSE = Recipe(
    _MADE,
    *(8_000, 6, 8e-4, (96, 96), 1e-5),
    iterations=5,
    overrun=0,
    freeze=False,
    masked=False,
    variant="small",
    levels=2,
)

LONG = COURSE._replace(steps=3_600, batch=2, learning_rate=4e-4, crop=(192, 192), reach=36.0)

STEADY = LONG._replace(steps=5_500, learning_rate=2e-4, iterations=12)

QUICK = COURSE._replace(steps=3_600, learning_rate=1e-3, iterations=3, augment=False, reach=8.0)


# %%
for stage, recipe in STANDARD.items():
    print(
        f"{stage:>7}: {recipe.steps:7,} steps of {recipe.batch} crops of {recipe.crop}, rate {recipe.learning_rate}"
    )
print(f"    all: {sum(recipe.steps for recipe in STANDARD.values()):7,} steps")

# %% [markdown]
# ### One function that trains
#
# `fourfold.kit.training.train` has the loop: AdamW, the rate, gradient clipping, a log and checkpoints to resume from. It runs on accelerate, so the same call serves a laptop and a GPU. What is left for us is the model, the pairs and the loss. Pairs of a published set are augmented by the data set that reads them: it calls `augment` with the recipe's `crop` and `scales`.


# %% tags=["promote"]
def train_raft(
    recipe: Recipe,
    pairs: Dataset | None = None,
    *,
    model: RAFT | None = None,
    steps: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    minutes: float | None = None,
    save_every: int = 500,
    progress: bool = True,
) -> tuple[RAFT, list[StepRecord]]:
    """Train a RAFT by a recipe, and return it, in evaluation mode, with the log.

    pairs    a data set of FlowPair without a batch axis; SyntheticPairs of the training photographs
             at the recipe's crop when left out
    model    to go on with, such as that of the stage before; a new one when left out
    steps    the recipe's when left out; the learning rate's schedule ends with them
    seed     of the first weights and of the pairs
    folder, minutes, save_every, progress  as in `fourfold.kit.training.train`: a call with the same
             folder and settings goes on where the last one stopped

    Raises what `train` raises.
    """
    seed_everything(seed)
    model = RAFT(recipe.variant, levels=recipe.levels) if model is None else model
    model.train()
    if recipe.freeze:
        freeze_batch_norm(model)
    endless = pairs is None or isinstance(pairs, SyntheticPairs)
    if pairs is None:
        photographs = load_photographs(TRAIN_PHOTOGRAPHS)
        pairs = SyntheticPairs(photographs, recipe.crop, reach=recipe.reach, augment=recipe.augment)
    batches = DataLoader(pairs, batch_size=recipe.batch, shuffle=not endless, drop_last=True)

    def loss(model: nn.Module, batch: FlowPair) -> Tensor:
        flows = model(batch.image1, batch.image2, recipe.iterations)
        return sequence_loss(
            flows, batch.flow, batch.visible if recipe.masked else None, recipe.gamma
        )

    steps = recipe.steps if steps is None else whole_number("steps", steps, least=1)
    records = train(
        model,
        loss,
        batches,
        steps=steps,
        folder=folder,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        schedule_steps=steps + recipe.overrun if recipe.overrun else None,
        seed=seed,
        save_every=save_every,
        minutes=minutes,
        progress=progress,
    )
    return model.eval(), records


# %% [markdown]
# ### Measuring
#
# Held-out pairs are made once, from photographs that no training pair shows, with a fixed seed and untouched colours. The **end-point error** (EPE, 端点误差) is the mean distance in pixels between the tips of estimated and true vectors, from lesson 2: over all pixels, and over those still visible, where there is something to match.


# %% tags=["promote"]
def held_out_pairs(
    count: int = 64, size: tuple[int, int] = (128, 128), reach: float = 24.0
) -> FlowPair:
    """Pairs for measuring, one batch, the same in every call, from HELD_OUT_PHOTOGRAPHS.

    count    B of the batch; the first pairs do not depend on it
    size     (H, W) in pixels
    reach    the longest shift of a layer, in pixels
    """
    photographs = load_photographs(HELD_OUT_PHOTOGRAPHS)
    pairs = SyntheticPairs(photographs, size, length=count, reach=reach, augment=False, seed=7)
    return FlowPair(*map(torch.stack, zip(*(pairs[i] for i in range(count)), strict=True)))


class Errors(NamedTuple):
    """Mean end-point errors in pixels: over all pixels, and over the visible ones."""

    everywhere: float
    visible: float


def flow_errors(flow: Float[Tensor, "B 2 H W"], pairs: FlowPair) -> Errors:
    """How far estimated flow is from that of the pairs."""
    return Errors(
        end_point_error(flow, pairs.flow).item(),
        end_point_error(flow, pairs.flow, pairs.visible).item(),
    )


def evaluate(model: RAFT, pairs: FlowPair, iterations: int = 12, batch: int = 16) -> Errors:
    """The errors of a model on pairs, such as those of `held_out_pairs`.

    batch  how many pairs are estimated at once; it changes memory, not the result
    """
    device = next(model.parameters()).device
    flows = [
        model.estimate(image1.to(device), image2.to(device), iterations).full.cpu()
        for image1, image2 in zip(pairs.image1.split(batch), pairs.image2.split(batch), strict=True)
    ]
    return flow_errors(torch.cat(flows), pairs)


# %%
held_out = held_out_pairs(at_scale(cpu=16, gpu=64))
zero = flow_errors(torch.zeros_like(held_out.flow), held_out)
print(
    f"{len(held_out.flow)} pairs; zero flow is wrong by {zero.everywhere:.2f} px, {zero.visible:.2f} on visible pixels"
)

# %% [markdown]
# Zero flow is wrong by the mean length of the motions: the first bar that a trained network has to get over.
#
# ### The command
#
# `fourfold train raft` calls the next function: it trains, or goes on training, in `runs/raft`, and at the end writes the weights with a card that says how they came about. `--minutes 10` stops after ten minutes; the same command goes on from there.


# %% tags=["promote"]
RECIPES = {"course": COURSE, "long": LONG, "steady": STEADY, "quick": QUICK}


def train_course(
    folder: str | Path,
    *,
    recipe: str = "course",
    steps: int | None = None,
    minutes: float | None = None,
    seed: int = 0,
    start: str | Path | None = None,
    progress: bool = True,
) -> Trained:
    """Train RAFT-small, measure it, and write its weights: what `fourfold train raft` calls.

    folder   of the run; the weights lie there as raft_small.safetensors, with their model card
    recipe   one of RECIPES
    start    a file of weights to begin with; new ones when left out

    Raises ValueError for another recipe, and what `train_raft` and `load_tensors` raise.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe is {recipe!r}; expected one of {', '.join(RECIPES)}")
    chosen = RECIPES[recipe]
    chosen = (
        chosen if steps is None else chosen._replace(steps=whole_number("steps", steps, least=1))
    )
    model = None if start is None else RAFT.from_official(load_tensors(start))
    model, records = train_raft(
        chosen, model=model, seed=seed, folder=folder, minutes=minutes, progress=progress
    )
    held_out = held_out_pairs(reach=chosen.reach)
    errors = evaluate(model, held_out, chosen.iterations)
    zero = flow_errors(torch.zeros_like(held_out.flow), held_out)
    metrics = {
        "held-out EPE (px)": errors.everywhere,
        "held-out EPE, visible pixels (px)": errors.visible,
        "zero flow's EPE (px)": zero.everywhere,
        "zero flow's EPE, visible pixels (px)": zero.visible,
    }
    command = f"fourfold train raft --recipe {recipe} --steps {chosen.steps} --seed {seed}"
    if start is not None:
        command += f" --start {Path(start).name}"
    if len(records) < chosen.steps:
        command += f"  (stopped after {len(records)} steps)"
    hours = records[-1].seconds / 3600
    # Errors of another reach or number of iterations are no comparison, so the card says which.
    data = (
        f"{chosen.data}; shifts of up to {chosen.reach:g} px and {chosen.iterations} iterations, "
        "for the held-out pairs too"
    )
    card = ModelCard(command, seed, hardware(), hours, data, metrics)
    path = Path(folder) / "raft_small.safetensors"
    save_checkpoint(path, model, card)
    return Trained(path, len(records), chosen.steps, metrics)


# %% [markdown]
# ## On real input
#
# ### From nothing, in a minute
#
# Train a RAFT-small from random weights, on motion of up to 24 pixels. Where there is a GPU, `at_scale` takes the whole recipe, `QUICK`. Batches differ in how much moves, and so does their loss; so each is compared with the loss of zero flow on the very same pairs. With a seed the set makes every pair again, and every pair is used once.


# %%
def weight_sum(recipe):
    return sum(recipe.gamma**i for i in range(recipe.iterations))


recipe = at_scale(cpu=QUICK._replace(steps=260, batch=4, reach=24.0), gpu=QUICK)
count = recipe.steps * recipe.batch
options = {"length": count, "reach": recipe.reach, "augment": False}
made = SyntheticPairs(photographs, recipe.crop, seed=2, **options)
learned, records = train_raft(recipe, made, progress=False)
still = torch.tensor([made[i].flow.abs().mean() for i in range(count)])
idle = weight_sum(recipe) * still.view(recipe.steps, recipe.batch).mean(dim=1)
against_zero = torch.tensor([record.loss for record in records]) / idle

near = held_out_pairs(at_scale(cpu=16, gpu=64), reach=recipe.reach)
before = flow_errors(torch.zeros_like(near.flow), near)
after = evaluate(learned, near, recipe.iterations)
for name, errors in (("zero flow", before), ("trained", after)):
    print(f"{name:>9}: EPE {errors.everywhere:5.2f} px, visible pixels {errors.visible:5.2f} px")
assert after.visible < before.visible

# %% [markdown]
# The photographs of the held-out pairs took no part in the training, so what helps there is not a memory of pictures. It is a beginning. The loss says how it came about.


# %%
def draw_loss(steps, losses, idle, width, label):
    figure, axes = canvas(1, 1, 5.2, 2.0)
    smooth = torch.as_tensor(losses).unfold(0, width, 1).mean(dim=1)
    axes.plot(steps, losses, ".", color=COLOURS["muted"], markersize=3)
    axes.plot(steps[width - 1 :], smooth, color=COLOURS["first"], label=f"mean of {width} dots")
    axes.axhline(idle, color=COLOURS["bad"], linestyle="--", label="zero flow")
    axes.set(xlabel="step", ylabel=label, ylim=(0, 1.6 * idle))
    axes.legend(loc="upper right", ncols=2)
    return figure


show(
    draw_loss([r.step for r in records], against_zero, 1.0, 20, "loss over that of zero flow"),
    alt="The loss divided by that of zero flow, over the steps: at first near 1, then below",
)
begin, end = against_zero[:20].mean(), against_zero[-20:].mean()
print(f"first 20 steps {begin:.2f} of the loss of zero flow, last 20 steps {end:.2f}")

# %% [markdown]
# A dot is one step. At first the curve stays near the dashed line or above it, the loss of zero flow on the same pairs: the plateau. One way to read it: the features are random, so the correlations say nothing, and the best answer without them is no motion. Only when features begin to match can the loss fall.
#
# ### The long run
#
# The weights that come with the course were made by the same function in three stages, `COURSE`, `LONG` and `STEADY`. (The first ran with a third level, which the others no longer read.) Their logs lie in the course's data, as means over 25 steps. The pairs are not made again; the loss of zero flow is the mean over a hundred others.

# %%
import csv

with open(data_path("results", "raft_training.csv"), encoding="utf-8") as file:
    log = list(csv.DictReader(file))


def loss_of_zero(recipe, count=100):
    """What zero flow costs on average under a recipe."""
    pairs = SyntheticPairs(photographs, recipe.crop, reach=recipe.reach, augment=False, seed=1)
    return weight_sum(recipe) * sum(pairs[i].flow.abs().mean().item() for i in range(count)) / count


stages = {"course": COURSE, "long": LONG, "steady": STEADY}
zero_losses = {name: loss_of_zero(recipe) for name, recipe in stages.items()}
ratios = [float(row["loss"]) / zero_losses[row["recipe"]] for row in log]
steps = [25 * (i + 1) for i in range(len(log))]
smooth = torch.tensor(ratios).unfold(0, 4, 1).mean(dim=1).tolist()
left = next(s for s, mean in zip(steps[3:], smooth, strict=True) if mean < 0.9)
print({name: round(loss, 1) for name, loss in zero_losses.items()}, "px: the loss of zero flow")
print(f"the mean of 100 steps falls below 90 % of it at step {left}")

# %%
figure = draw_loss(steps, ratios, 1.0, 4, "loss over that of zero flow")
changes = {"long": "longer motion,\nlarger crops", "steady": "twelve\niterations"}
for name, change in changes.items():
    border = next(s for s, row in zip(steps, log, strict=True) if row["recipe"] == name)
    figure.axes[0].axvline(border, color=COLOURS["muted"], linewidth=1)
    figure.axes[0].text(border + 100, 0.62, change, fontsize=7)
show(
    figure,
    alt="The loss of the long run: a short plateau at the level of zero flow, then a long fall, "
    "and two later stages, with longer motion and with more iterations",
)

# %% [markdown]
# The printed step is one run's, yet it tells what to expect from these settings. A loss that still stands at the dashed line after several times as many steps is a sign to stop and look: at the learning rate, at the order of x and y, or at motions so small that they hardly change a map an eighth of the size.
#
# ### Against methods that learn nothing
#
# The course's weights beside zero flow and two classical methods of scikit-image, TV-L1 and iterative Lucas–Kanade (iLK), on the held-out pairs.

# %%
shipped = load_raft()
estimates = {
    "zero": torch.zeros_like(held_out.flow),
    "TV-L1": classical_flow("tv-l1", held_out.image1, held_out.image2),
    "iLK": classical_flow("ilk", held_out.image1, held_out.image2),
    "RAFT-small": shipped.estimate(held_out.image1, held_out.image2, 12).full,
}
results = {name: flow_errors(flow, held_out) for name, flow in estimates.items()}
for name, errors in results.items():
    print(f"{name:>10}: EPE {errors.everywhere:5.2f} px, visible pixels {errors.visible:5.2f} px")
assert results["RAFT-small"].visible < results["zero"].visible


# %%
def draw_estimates(indices):
    fields = {"true flow": held_out.flow} | {n: f for n, f in estimates.items() if n != "zero"}
    figure, axes = canvas(len(indices), 5, 6.8, 3.1, sharex=True, sharey=True)
    for row, index in zip(axes, indices, strict=True):
        row[0].imshow(to_picture(held_out.image1[index]))
        row[0].set(ylabel="y (px)")
        longest = held_out.flow[index].norm(dim=0).max().item()
        for each, flow in zip(row[1:], fields.values(), strict=True):
            each.imshow(to_picture(flow_to_image(flow[index : index + 1], max_norm=longest)))
    for each, below, name in zip(axes[0], axes[-1], ["image 1", *fields], strict=True):
        each.set(title=name)
        below.set(xlabel="x (px)")
    return figure


show(
    draw_estimates([0, 5]),
    alt="Two held-out images, each with its true flow and the flows of TV-L1, iLK and RAFT-small in "
    "the same colours",
    photo=True,
)

# %% [markdown]
# The colours mean the same in all pictures of a row; dark patches are vectors longer than the longest true one. Look at the small shapes that move far, which a method may lose or smear, and at the edges: RAFT-small's field is smooth, with edges as coarse as its maps, an eighth of the image's size.
#
# ### Stopped and resumed
#
# Long trainings get interrupted. With a folder, the same call goes on from the last checkpoint. Here `minutes=0` stops after one step, twice, and the result equals that of an uninterrupted run in every bit (on a CPU, with the number of threads unchanged).

# %%
import tempfile

short = recipe._replace(steps=3, batch=2)
straight, _ = train_raft(short, made, progress=False)
with tempfile.TemporaryDirectory() as folder:
    for minutes in (0, 0, None):
        resumed, log = train_raft(short, made, folder=folder, minutes=minutes, progress=False)
        print(f"after this call: {len(log)} steps")
pairs_of_tensors = zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
assert all(torch.equal(a, b) for a, b in pairs_of_tensors)

# %% [markdown]
# On the command line that is `fourfold train raft --minutes 10`, as often as you like.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `similarity` | 15 | ●●○ |
# | `stretch_pair` | 15 | ●●○ |
# | `flip_pair` | 5 | ●○○ |
# | `sequence_loss` | 10 | ●●○ |
#
# <details><summary>Hint for <code>similarity</code></summary>
#
# Multiply out equation 1: the part on $x$ is $z\,R_\theta$, with rows (cos, −sin) and (sin, cos). What is left, $c + s - z\,R_\theta\,c$, is the last column.
#
# </details>
#
# <details><summary>Hint for <code>stretch_pair</code></summary>
#
# `F.interpolate` wants four axes: reshape to (−1, 1, H, W) and back. The factors are new size over old size, in the order of the flow's channels: width first.
#
# </details>
#
# <details><summary>Hint for <code>flip_pair</code></summary>
#
# All four tensors flip along one axis; then one channel of the flow changes its sign.
#
# </details>
#
# <details><summary>Hint for <code>sequence_loss</code></summary>
#
# With `enumerate(flows, start=1)` the weight is `gamma ** (n - i)`. `torch.where(mask, differences, 0).mean()` divides by all entries, as the release does.
#
# </details>
#
# **Predict.** Which share of the loss is the last estimate's at $\gamma = 0.8$ and $n = 12$, if all estimates are equally wrong? And if $\gamma$ were 1?
#
# <details><summary>Hint</summary>
#
# The weights are a geometric series.
#
# </details>


# %%
shares = {gamma: 1 / sum(gamma ** (12 - i) for i in range(1, 13)) for gamma in (0.8, 0.85, 1.0)}
print({gamma: f"{share:.1%}" for gamma, share in shares.items()})

# %% [markdown]
# <details><summary>Answer</summary>
#
# $1 / \sum_i \gamma^{n-i} = (1 - \gamma)/(1 - \gamma^n)$, as the cell above prints: about a fifth at 0.8, a twelfth at 1. A larger $\gamma$ spends more of the gradient on early estimates.
#
# </details>
#
# **Find the bug.** This flip gives every tensor its right shape, and both images look right. What is wrong, and which number of this lesson shows it?


# %%
def flip_wrong(pair):
    return FlowPair(*(x.flip(-1) for x in pair))


print(
    f"flip_pair {residual(flip_pair(pair, 'x')):.1f}, flip_wrong {residual(flip_wrong(pair)):.1f} grey levels"
)
assert residual(flip_wrong(pair)) > 3 * residual(flip_pair(pair, "x"))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Read image 2 along the flow and compare with image 1.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The horizontal component keeps its sign, so the arrows point the wrong way. The residual shows it, as the grey levels above say. The loss of a training hardly would: it could still fall, on the pairs that were not flipped.
#
# </details>
#
# **Measure.** Which takes longer, making a batch or training on it? Time the pairs of one batch of `COURSE` against one of its steps, which contains them.
#
# <details><summary>Hint</summary>
#
# `train_raft` with `steps=3` and its records' `seconds`; `time.perf_counter` around `[pairs[i] for i in range(COURSE.batch)]`.
#
# </details>


# %%
import time

endless = SyntheticPairs(photographs, COURSE.crop)
begin = time.perf_counter()
batch = [endless[i] for i in range(COURSE.batch)]
making = time.perf_counter() - begin
_, timed = train_raft(COURSE, endless, steps=3, progress=False)
per_step = (timed[-1].seconds - timed[0].seconds) / 2
print(f"making a batch {making:.3f} s, one step with its batch {per_step:.2f} s on {hardware()}")

# %% [markdown]
# <details><summary>Answer</summary>
#
# The cell above prints both times for the machine that ran the lesson. Where the network takes most of the step, as on a CPU, nothing is gained by faster pairs. Where a GPU makes the network quick, the pairs may be what is waited for; then the DataLoader's workers should make them.
#
# </details>
#
# **Vary.** Train as above with `reach=8`, the reach of `QUICK`, in `recipe`, for as long as you have time. What happens to the plateau?
#
# <details><summary>Hint</summary>
#
# How long is a motion of 8 pixels on the maps that the correlation compares?
#
# </details>
#
# <details><summary>Answer</summary>
#
# At an eighth of the size, motions of 8 pixels are one pixel of the map or less, so the peaks of all look-ups lie near the middle and differ by fractions. Motions of several pixels of the map are easier to tell apart, so expect a longer plateau here: 140 steps may end on it. Give it more, and more than one seed, and draw two curves over `against_zero`.
#
# </details>

# %% [markdown]
# ## What breaks
#
# ### A flow that was not stretched
#
# The images are enlarged, the vectors are left as they were. Every shape is right.

# %%
enlarged = stretch_pair(pair, 192, 240)
forgotten = enlarged._replace(flow=enlarged.flow / 1.5)
print(f"stretched {residual(enlarged):.1f}, forgotten {residual(forgotten):.1f} grey levels")
assert residual(forgotten) > 2 * residual(enlarged)

# %% [markdown]
# ### A learning rate that is too high
#
# A hundred times the rate, for twelve steps:

# %%
hasty = short._replace(steps=12, learning_rate=100 * short.learning_rate)
_, wild_log = train_raft(hasty, made, progress=False)
print("losses:", " ".join(f"{r.loss:.0f}" for r in wild_log))
assert max(r.loss for r in wild_log) > 10 * wild_log[0].loss

# %% [markdown]
# AdamW divides each gradient by an average of its own size, so every weight moves by about the rate, and clipping the gradient does not help. The warm-up, the first 5 % of the steps, keeps the rate low while these averages still come from few steps.
#
# ### What the code says to bad input

# %%
from fourfold.kit.notebook import shows_error

nothing = torch.zeros(1, 4, 5, dtype=torch.bool)
with shows_error(ValueError):
    sequence_loss([torch.zeros(1, 2, 4, 5)], torch.zeros(1, 2, 4, 5), nothing)
with shows_error(ValueError):
    train_raft(QUICK._replace(levels=4), made, steps=1, progress=False)
with shows_error(ValueError):
    augment(pair, torch.Generator(), (256, 256))
with shows_error(ValueError):
    flip_pair(pair, "z")
with shows_error(ValueError):
    train_course("runs/raft", recipe="slow")

# %% [markdown]
# The second is the one that users of the release meet as NaN: at four levels, such a crop leaves a coarsest map of a single pixel.

# %% [markdown]
# ## Recap
#
# - A scene is layers of photographs with outlines and motions that we choose, so its flow and its hidden pixels are exact.
# - Every estimate enters the loss, later ones with more weight; augmentation changes images and flow together, or not at all.
# - Training begins with a plateau at zero flow; how far it got is said in pixels, on photographs that were held out, beside methods that learn nothing.
#
# The line goes on in the last lesson of this chapter, which takes the trained model apart: iterations, levels, radius, failures, memory and time.
