# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 55
#     needs:
#     - 6_bilinear_sampling/3_window
#     - 4_raft/3_encoders
#     - 4_raft/4_correlation
#     - 5_cotracker/2_tracks
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Features: what a track compares
#
# **After this lesson you can** turn the frames of a video into feature vectors at a quarter of their size, read the feature of a query between pixels, and compare it with windows around a guess at four scales, without computing the products that nobody reads.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb) (`3_window`), of chapter 4 the [encoders](../4_raft/3_encoders.ipynb) (`3_encoders`) and the [correlation](../4_raft/4_correlation.ipynb) (`4_correlation`), and [tracks](2_tracks.ipynb) (`2_tracks`). *Time:* 55 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# A tracker asks of every frame: where in it is the point that the query marks? It needs a description of the point that can be compared with places. An **encoder** $\varphi$ (编码器), a convolutional network, gives every 4 × 4 pixels of each frame a **feature vector** (特征向量) of $d$ numbers. The map of these vectors, at a quarter of the frame's size, holds the **features** $F$. What the map of the query's frame says at the query's place is the **track feature** $Q$ (轨迹特征), read between pixels by bilinear sampling.
#
# The tracker also has a guess where the point is in each other frame. It compares $Q$ with the features in a small **window** (窗口) around the guess: one **inner product** (内积) for each place. These stacked products are the **correlation features** $C$ (相关特征). They are made at several **levels** (层) of a pyramid of averaged maps, so that a window of 7 × 7 places sees 24 pixels of detail and, more coarsely, 192 pixels of surroundings.
#
# RAFT compares all pixels with all pixels. A tracker follows a few points through many frames, and looks at a few places for each. So it pays to compute only what the windows read, and to make the products before the values between pixels are blended. A point may also leave the picture: outside, the features of the nearest border pixel go on.

# %% [markdown]
# ## Figure
#
# ### Frames, and a trained encoder
#
# The frames are three of a film, half a second apart: a walker passes a bicycle while the camera pans to the right. The encoder is that of the course's small tracker, which [lesson 8](8_learning.ipynb) trains; it is built as the released one is, with fewer channels. What its training is worth, *On real input* measures against an encoder of random weights.

# %%
import math
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from fourfold.bilinear_sampling.sampling import _check_floating, sample
from fourfold.bilinear_sampling.window import blend_patch, sample_window
from fourfold.cotracker.cotracker import load_cotracker
from fourfold.cotracker.features import (
    STRIDE,
    FeatureEncoder,
    correlate,
    enlarge_and_convolve,
    feature_pyramid,
    unit_length,
    vector_patches,
    vector_windows,
)
from fourfold.kit.arguments import whole_number
from fourfold.kit.drawing import COLOURS, canvas, draw_pixels, show, to_picture
from fourfold.kit.images import credit, stereo_pair
from fourfold.kit.notebook import shows_error
from fourfold.kit.video import bundled_clip, clip_credit, read_video
from fourfold.raft.encoders import ResidualBlock, _initialise, normalisation

# %%
encoder = load_cotracker().fnet
clip = read_video(bundled_clip("bikes"), start=187, frames=3, step=12)[..., 16:, 160:608]
frames = 2 * (clip.float() / 255) - 1
tuple(frames.shape)


# %% [markdown]
# The encoder has four stages. Each makes a map $Z_1$ to $Z_4$ at a half, a quarter, an eighth and a sixteenth of the size. All four are resized to a quarter and mixed.


# %%
@torch.no_grad()
def stages_of(encoder, image):
    """The maps of the four stages, before they are resized."""
    maps = [encoder.norm1(encoder.conv1(image)).relu()]
    for layer in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        maps.append(layer(maps[-1]))
    return maps[1:]


def as_colours(vectors):
    """Three colours (3, h, w) for vectors (C, h, w): their first three principal components."""
    flat = vectors.flatten(1) - vectors.flatten(1).mean(dim=1, keepdim=True)
    _, axes = torch.linalg.eigh(flat @ flat.T)  # the last columns have the largest variance
    parts = axes[:, -3:].T @ flat
    parts = parts / (2.5 * parts.std(dim=1, keepdim=True))
    return (127.5 * (1 + parts)).unflatten(1, vectors.shape[1:])


with torch.no_grad():
    features = encoder(frames)
stages = stages_of(encoder, frames[:1])
for n, stage in enumerate(stages, start=1):
    print(f"stage {n}: {tuple(stage.shape[1:])}")
print("features:", tuple(features.shape))


# %% tags=["figure"]
def draw_stages():
    figure, axes = canvas(2, 3, 6.6, 3.1)
    axes = axes.flat
    axes[0].imshow(to_picture(clip[0]))
    axes[0].set_title(f"frames I: one of {len(frames)}, {clip.shape[2]} × {clip.shape[3]}")
    for n, (each, stage) in enumerate(zip(axes[1:5], stages, strict=False), start=1):
        one = stage[0, stage[0].flatten(1).std(dim=1).argmax()]
        each.imshow(one, cmap="gray", vmax=one.quantile(0.99))
        _, channels, h, w = stage.shape
        each.set_title(f"stage Z{n}: one of {channels} channels, {h} × {w}")
    axes[5].imshow(to_picture(as_colours(features[0])))
    _, d, h, w = features.shape
    axes[5].set_title(f"features F of encoder φ: d = {d}, {h} × {w}")
    for each in axes:
        each.set(xticks=[], yticks=[])
        each.title.set_fontsize(7.5)
    return figure


show(
    draw_stages(),
    alt="A frame with a walker and a bicycle; one channel of each of the four stages of the encoder, "
    "coarser from stage to stage; and the features as three colours",
    photo=True,
)
print(clip_credit("bikes"))

# %% [markdown]
# Early stages see edges and fine texture, late ones patches of light and dark. The colours of the features are the three directions in which the vectors differ most: where two places have different colours, their vectors tell them apart.
#
# ### A feature, and windows at four levels
#
# The query marks the chain wheel in the first frame. The same place in the other frames was marked by eye. In the last frame the guess of a tracker is a little off.

# %%
query = torch.tensor([240.0, 166.0])  # in the first frame, px of the frames
seen_at = torch.tensor([[240.0, 166.0], [233.0, 166.0], [224.0, 166.0]])  # by eye
guess = seen_at[2] + torch.tensor([5.0, -3.0])
pyramid = feature_pyramid(unit_length(features), levels=4)
L = len(pyramid)
Q = vector_windows(pyramid[0], torch.tensor([0]), query[None] / STRIDE, radius=0)[0, :, 0, 0]
print(*(tuple(level.shape) for level in pyramid), "→ Q", tuple(Q.shape))


# %%
def products_around(place, frame, radius=3):
    """Products of Q with the windows around a place, one window for each level."""
    centres = place[None] / STRIDE
    there = torch.tensor([frame])
    return [
        correlate(level, there, centres / 2**k, Q[None, None], radius)[0, 0]
        for k, level in enumerate(pyramid)
    ]


windows = products_around(guess, frame=2)


# %% tags=["figure"]
def square(axes, centre, reach, colour):
    """Draw the square that lies `reach` around a centre."""
    x, y = centre
    box = Rectangle((x - reach, y - reach), 2 * reach, 2 * reach, fill=False)
    box.set(edgecolor=COLOURS[colour], linewidth=1.5)
    axes.add_patch(box)


LEVEL_COLOURS = ("n11", "second", "query", "n10")


def draw_look(radius=3):
    figure, (top, below) = canvas(2, 4, 7.2, 4.0, gridspec_kw={"height_ratios": [1.25, 1]})
    wide = [figure.add_subplot(top[0].get_gridspec()[0, s]) for s in (slice(0, 2), slice(2, 4))]
    for each in top:
        each.remove()
    for each, t in zip(wide, (0, 2), strict=True):
        each.imshow(to_picture(clip[t]))
        each.set(xticks=[], yticks=[])
        each.autoscale(False)
    note = {"size": 8, "color": "white", "bbox": {"facecolor": "black", "alpha": 0.7, "pad": 1.5}}
    wide[0].plot(*query, "o", color=COLOURS["query"], markeredgecolor="white", markersize=6)
    wide[0].annotate("track feature Q", query, (285, 220), arrowprops={"arrowstyle": "-"}, **note)
    wide[0].set_title("first frame, t = 0")
    for k, colour in enumerate(LEVEL_COLOURS):
        square(wide[1], guess.tolist(), STRIDE * 2**k * (radius + 0.5), colour)
    wide[1].annotate("point p", guess, (290, 200), arrowprops={"arrowstyle": "-"}, **note)
    wide[1].set_title(f"last frame: windows of side S = {2 * radius + 1}, radius r = {radius}")
    for k, (each, window) in enumerate(zip(below, windows, strict=True)):
        draw_pixels(each, window, number=None)
        best = divmod(window.argmax().item(), 2 * radius + 1)
        each.plot(best[1], best[0], "+", color=COLOURS["query"], markersize=9, mew=2)
        each.set_title(f"level l = {k} of L = {L}", color=COLOURS[LEVEL_COLOURS[k]])
        ticks = range(-radius, radius + 1)
        each.set(xticklabels=ticks, yticklabels=ticks, xlabel="column a − r", ylabel="")
    below[0].set_ylabel("correlations C\nrow b − r")
    return figure


show(
    draw_look(),
    alt="The first frame with the query on the chain wheel, the last frame with four nested squares "
    "around the guess, and the four windows of seven by seven products, lightest where alike",
    photo=True,
)

# %% [markdown]
# Each square on the right-hand frame is read as 7 × 7 products, light where the features are like $Q$; the cross marks the largest. An offset of one at level $l$ is $4 \cdot 2^l$ pixels of the frame. The guess is 5 pixels too far right and 3 too high, about one place of level 0, whose cross points back; for coarser levels such an error is less than a place.

# %% [markdown]
# ## Formula
#
# Let $I_t$ be frame $t$. The stages of the encoder $\varphi$ make maps $Z_1, \dots, Z_4$; $\rho$ resizes each to $H/4 \times W/4$; two convolutions, written $\mu$, mix the stack into vectors of width $d$:
#
# $$ F_t = \varphi(I_t) = \mu\bigl(\rho Z_1,\, \rho Z_2,\, \rho Z_3,\, \rho Z_4\bigr), \qquad F_t[:, y, x] \in \mathbb{R}^d \tag{1} $$
#
# The resizing lays the corners of a map of $h' \times w'$ pixels on the corners of one of $h \times w$ (`align_corners=True`) and samples between:
#
# $$ (\rho Z)[:, y, x] = Z\!\left(x\, \frac{w' - 1}{w - 1},\; y\, \frac{h' - 1}{h - 1}\right) \tag{2} $$
#
# Version 3 gives each vector length 1, so that a product is the cosine of an angle:
#
# $$ F_t[:, y, x] \leftarrow F_t[:, y, x] \,/\, \sqrt{\max\bigl(\lVert F_t[:, y, x] \rVert^2,\, 10^{-12}\bigr)} \tag{3} $$
#
# The pyramid has $L$ levels, $F^0 = F$ first; each next one averages squares of 2 × 2 vectors:
#
# $$ F^{l+1}_t[:, y, x] = \frac14 \sum_{i, j \in \{0, 1\}} F^l_t[:, 2y + j, 2x + i], \qquad 0 \le l < L - 1 \tag{4} $$
#
# A point $p$, in pixels of the frame, lies at $p/4$ on the features and at $c = p / (4 \cdot 2^l)$ on level $F^l$. Split it into whole pixels and a fraction $f$. The patch $P$ holds the vectors around it, in column $a$ and row $b$ from 0 to $2r + 1$. Its indices are clamped to the map, so that the border goes on outside:
#
# $$ P[b, a] = F^l_t\bigl[:,\; \mathrm{clamp}(\lfloor c_y \rfloor - r + b,\; 0,\; h - 1),\; \mathrm{clamp}(\lfloor c_x \rfloor - r + a,\; 0,\; w - 1)\bigr], \quad f = c - \lfloor c \rfloor \tag{5} $$
#
# The blend $\beta_f$ of chapter 6 mixes each vector with the next, down and across, by the fraction $f$. It makes the window $V$ of side $S$, one vector for each place. A window of radius 0 at the query's place $q$ and in its frame $t_q$ is the track feature:
#
# $$ V = \beta_f(P), \quad S = 2r + 1, \qquad Q = V \ \text{ with } r = 0,\; p = q,\; t = t_q,\; l = 0 \tag{6} $$
#
# Version 2 stacks the products of the one vector $Q$ with the window around the current estimate $p$ of every level. Version 3 reads a window $V^q$ around the query as well, at every level, and takes the products of all pairs of places:
#
# $$ C[b, a] = \frac{1}{\sqrt{d}} \bigl\langle Q,\, V[b, a] \bigr\rangle, \qquad C[b', a', b, a] = \bigl\langle V^q[b', a'],\, V[b, a] \bigr\rangle \tag{7} $$
#
# The blend is a sum with weights, and so is the product, so they change places:
#
# $$ \bigl\langle Q,\, \beta_f(P) \bigr\rangle = \beta_f\bigl(\langle Q,\, P \rangle\bigr) \tag{8} $$
#
# On the left, the blend works on vectors of $d$ numbers; on the right, on one number for each place. The released code takes the products with the whole map of the frame and reads its windows there. For one point in one frame that is, at a level of $h \times w$ places,
#
# $$ h\, w\, d \quad \text{multiplications, against} \quad (2r + 2)^2\, d \tag{9} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $I_t$ | frames | (F, 3, H, W), in [−1, 1] | `frames` | frames I |
# | $t$ | number of a frame | whole number | `frames` | frame, t = |
# | $\varphi$ | encoder | I → F | `FeatureEncoder` | encoder φ |
# | $Z$ | map of a stage of the encoder | (F, channels, h', w') | `stages` | stage Z1 |
# | $\rho$ | resizing of a stage's map | Z → (…, H/4, W/4) | `interpolate` | resized ρ Z4 |
# | $F$ | features | (F, C, H/4, W/4) | `features` | features F |
# | $d$ | width of a feature vector | whole number | `outputs` | d = |
# | $F^l$ | level of the pyramid | (F, h, w, C), h = H / (4 · 2ˡ) | `level` | level l = |
# | $L$ | number of levels | whole number | `levels` | L = 4 |
# | $p$ | point: the current estimate, (x, y) | (K, 2), px | `centres` | point p |
# | $r$ | radius of a window | whole number, px of the level | `radius` | radius r |
# | $a$ | column of a patch or window | whole number, from 0 | `x` | column a |
# | $b$ | row of a patch or window | whole number, from 0 | `y` | row b |
# | $f$ | fraction between whole pixels | (K, 2), in [0, 1) | `fraction` | fraction f |
# | $P$ | patch of whole vectors | (K, 2r+2, 2r+2, C) | `vector_patches` | patch P |
# | $\beta_f$ | blend of neighbours | (2r+2)² → (2r+1)² places | `blend_patch` | blend β |
# | $V$ | window of vectors | (K, C, S, S) | `vector_windows` | window V |
# | $S$ | side of a window | 2r + 1 | `radius` | side S |
# | $Q$ | track feature of the query | (C,) | `vectors` | track feature Q |
# | $C$ | correlation features, products | (K, P, S, S) | `correlate` | correlations C |
#
# Letters of shapes: $F$ frames of all videos in one line, $K$ windows, each in a frame of its own, $P$ vectors compared with one window (1 in version 2, $S^2$ in version 3), $C$ channels of a feature, which the formulas call $d$, $h$ and $w$ the size of a level.

# %% [markdown]
# ## Code
#
# ### The encoder
#
# It is built from the residual blocks of [chapter 4](../4_raft/3_encoders.ipynb), two for each stage, with **instance norm** (实例归一化): each channel of each frame is brought to mean 0 and variance 1 over its pixels, with nothing to learn and $10^{-5}$ added to the variance before the root. A frame with half the contrast gets nearly the same features, and no frame depends on its neighbours. Weights begin as RAFT's do, drawn so that gradients keep their size.
#
# RAFT divides the size by 8 and takes the last stage alone. A tracker must tell places apart that are two pixels from each other, so this encoder stays at a quarter. A fourth stage sees further, and all four are heard: fine ones for place, coarse ones for what the place belongs to.


# %% tags=["promote"]
STRIDE = 4  # pixels of the video for one pixel of the features


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(inputs, outputs, stride)
    return nn.Sequential(first, ResidualBlock(outputs, outputs))


def _check_frames(frames: Tensor) -> None:
    _check_floating("frames", frames)
    shape = tuple(frames.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"frames has shape {shape}; expected (F, 3, H, W)")
    if shape[2] % STRIDE or shape[3] % STRIDE or 0 in shape:
        raise ValueError(f"frames has shape {shape}; expected H and W to be multiples of {STRIDE}")


# %% [markdown]
# The mixing $\mu$ begins with a 3 × 3 convolution of the stack, and most of the stack, 256 of the release's 416 channels, are coarse maps made large. It is cheaper to mix before enlarging. Both steps are sums with fixed weights: the resizing (equation 2) goes along rows and along columns and leaves channels apart; the convolution mixes channels and reads 3 × 3 neighbours. Such sums may change places, as in equation 8. So take a coarse map to its full width only; mix its channels by the three rows of the kernel, which makes three maps that are still low; and bring those to the full height, each shifted by its row, with one small matrix. The sum of what all stages give is the convolution of the stack.


# %% tags=["promote"]
def _rows_read(stage: Float[Tensor, "F C h w"], H: int) -> Float[Tensor, "H 3*h"]:
    """What each row of a kernel reads at each row of the enlarged map, in rows of the stage."""
    dtype = torch.promote_types(stage.dtype, torch.float32)
    each = torch.eye(stage.shape[2], dtype=dtype, device=stage.device)
    enlarged = F.interpolate(each[:, None], H, mode="linear", align_corners=True)[:, 0]
    padded = F.pad(enlarged, (1, 1))  # zeros above and below, as the convolution has them
    return torch.cat([padded[:, i : i + H] for i in range(3)]).T


def enlarge_and_convolve(
    stage: Float[Tensor, "F C h w"], weight: Float[Tensor, "D C 3 3"], size: tuple[int, int]
) -> Float[Tensor, "F D H W"]:
    """Resize a map as in equation 2 of the lesson, then convolve it, in an order that costs less.

    stage    (F, C, h, w) a map, lower than it is to be
    weight   (D, C, 3, 3) of a convolution with zeros for padding, one on each side
    size     (H, W) in pixels
    returns  (F, D, H, W), without a bias

    About 9·C·D·h·W + 3h·D·H·W multiplications in place of 9·C·D·H·W. Raises ValueError for a weight
    of another shape. Source: equation 1; the order is ours, and changes nothing but rounding.
    """
    (H, W), (_, C, h, _) = size, stage.shape
    if tuple(weight.shape[1:]) != (C, 3, 3):
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected (D, {C}, 3, 3)")
    wide = F.interpolate(stage, (h, W), mode="bilinear", align_corners=True)
    rows = weight.transpose(1, 2).reshape(-1, C, 1, 3)  # D · 3 kernels of one row each
    mixed = F.conv2d(wide, rows, padding=(0, 1)).view(len(stage), -1, 3 * h, W)
    return _rows_read(stage, H).to(mixed) @ mixed


# %% tags=["check"]
torch.manual_seed(0)
coarse_map, kernel = torch.randn(2, 5, 4, 6).double(), torch.randn(7, 5, 3, 3).double()
made_large = F.interpolate(coarse_map, (12, 16), mode="bilinear", align_corners=True)
expected = F.conv2d(made_large, kernel, padding=1)
# float64: the same sums in another order.
assert torch.allclose(enlarge_and_convolve(coarse_map, kernel, (12, 16)), expected, atol=1e-12)

# %% [markdown]
# Counted for the release's sizes, a frame of 384 × 512 pixels and 256 channels out of this convolution:

# %% tags=["nbval-check-output"]
C, D, H, W = 128, 256, 96, 128  # channels in and out, rows and columns
early = 9 * C * D * H * W
for name, h in (("an eighth", H // 2), ("a sixteenth", H // 4)):
    late = 9 * C * D * h * W + 3 * h * D * H * W
    print(
        f"stage at {name}: {early / 1e9:.1f} · 10⁹ multiplications; enlarged late {late / early:.0%}"
    )


# %% tags=["promote"]
class FeatureEncoder(nn.Module):
    """Turn frames into maps of vectors at a quarter of their size (equation 1 of the lesson).

    outputs  C, the width of a vector
    widths   channels of the four stages, at 1/2, 1/4, 1/8 and 1/16 of the size

    Called with frames (F, 3, H, W) in [−1, 1], H and W multiples of 4, it returns (F, C, H/4, W/4).
    The maps of all four stages are brought to a quarter of the size (equation 2) and mixed, so
    that a vector knows its detail and its surroundings. Raises TypeError for frames of whole
    numbers, ValueError for another shape or for other than four widths.

    Convention: the vector at (x, y) describes the surroundings of pixel (4x, 4y), x to the right,
    y down. Source: Karaev et al. 2023, CoTracker (arXiv 2307.07635), section 3.1; the widths and
    the mixing are the release's.

    >>> import torch
    >>> FeatureEncoder(16, widths=(8, 12, 16, 16))(torch.zeros(2, 3, 64, 96)).shape
    torch.Size([2, 16, 16, 24])
    """

    def __init__(self, outputs: int = 128, widths: Sequence[int] = (64, 96, 128, 128)) -> None:
        super().__init__()
        if len(widths) != 4:
            raise ValueError(f"widths is {widths}; expected four numbers, one for each stage")
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3)
        self.norm1 = normalisation("instance", widths[0])
        self.layer1 = _stage(widths[0], widths[0], 1)
        self.layer2 = _stage(widths[0], widths[1], 2)
        self.layer3 = _stage(widths[1], widths[2], 2)
        self.layer4 = _stage(widths[2], widths[3], 2)
        self.conv2 = nn.Conv2d(sum(widths), 2 * outputs, 3, padding=1)
        self.norm2 = normalisation("instance", 2 * outputs)
        self.conv3 = nn.Conv2d(2 * outputs, outputs, 1)
        self.apply(_initialise)

    def forward(self, frames: Float[Tensor, "F 3 H W"]) -> Float[Tensor, "F C H/4 W/4"]:
        _check_frames(frames)
        x, stages = self.norm1(self.conv1(frames)).relu_(), []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            stages.append(x)
        size = tuple(side // STRIDE for side in frames.shape[2:])
        return self.conv3(self.norm2(self._mixed(stages, size)).relu_())

    def _mixed(self, stages: list[Tensor], size: tuple[int, int]) -> Float[Tensor, "F D H W"]:
        """The convolution conv2 of the stack of all stages, each resized."""
        half, quarter, *coarse = stages
        half = F.interpolate(half, size, mode="bilinear", align_corners=True)
        fine = torch.cat([half, quarter], dim=1)
        channels = [fine.shape[1], *(stage.shape[1] for stage in coarse)]
        weight, *weights = self.conv2.weight.split(channels, dim=1)
        x = F.conv2d(fine, weight, self.conv2.bias, padding=1)
        for stage, weight in zip(coarse, weights, strict=True):
            x += enlarge_and_convolve(stage, weight, size)
        return x


# %% tags=["check"]
tiny = FeatureEncoder(16, widths=(8, 12, 16, 16)).eval()
some = torch.rand(2, 3, 48, 64) * 2 - 1
with torch.no_grad():
    assert tiny(some).shape == (2, 16, 12, 16)
    # Instance norm looks at one frame: alone or beside another, up to rounding of float32.
    assert torch.allclose(tiny(some)[:1], tiny(some[:1]), atol=1e-5)
    stack = [
        F.interpolate(stage, (12, 16), mode="bilinear", align_corners=True)
        for stage in stages_of(tiny, some)
    ]
    mixed = tiny.norm2(tiny.conv2(torch.cat(stack, dim=1))).relu()
    assert torch.allclose(tiny(some), tiny.conv3(mixed), atol=1e-5), "equation 1, word by word"
norms = [layer for layer in FeatureEncoder().modules() if isinstance(layer, nn.GroupNorm)]
assert all(norm.eps == 1e-5 and not norm.affine for norm in norms)
for name, each in (("course", encoder), ("release", FeatureEncoder())):
    count, entering = sum(w.numel() for w in each.parameters()), each.conv2.in_channels
    print(f"{name:>7}: {count:9,} weights, {entering} channels mixed")

# %% [markdown]
# ### Where a resized pixel looks
#
# Equation 2 is worth a picture. Pixel $x$ of the features stands for pixel $4x$ of the frame. The pixels of stage 4 are 16 pixels of the frame apart, so the exact place to read for it is $x / 4$. The resizing reads at another place. Two ways are common, and neither is exact:

# %%
width, coarse = frames.shape[3] // STRIDE, frames.shape[3] // 16
x = torch.arange(width).double()
ruler = torch.arange(coarse).double().view(1, 1, 1, -1)  # each pixel of the stage says where it is
reads = {
    aligned: F.interpolate(ruler, (1, width), mode="bilinear", align_corners=aligned)[0, 0, 0]
    for aligned in (True, False)
}
expected = x * (coarse - 1) / (width - 1)
# Equation 2 in float64, to a few roundings.
assert torch.allclose(reads[True], expected, atol=1e-9)


# %% tags=["figure"]
def draw_resizing():
    figure, axes = canvas(1, 1, 5.6, 2.2)
    for aligned, key, style in ((True, "second", "-"), (False, "muted", "--")):
        miss = 16 * reads[aligned] - STRIDE * x
        axes.plot(x, miss, style, color=COLOURS[key], label=f"align_corners={aligned}")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel="x (px of the features)", ylabel="read too far right\n(px of the frame)")
    axes.set_title("resized ρ Z4: where it reads, against the exact place")
    axes.legend(loc="lower left")
    return figure


show(
    draw_resizing(),
    alt="Two lines over the width of the features: with aligned corners the error falls from 0 to "
    "minus 12 pixels, without them it is minus 6 pixels nearly everywhere",
)

# %% [markdown]
# With aligned corners the coarse maps are exact at the left and more and more stretched to the right, here by 12 pixels of the frame. Nobody would choose it with a ruler in hand, but weights are learned with it, and code that uses the weights must do the same. The stage at a quarter, $Z_2$, is not moved at all.
#
# ### Length one
#
# Equation 3. The floor of $10^{-12}$ keeps a vector of zeros from becoming NaN. The released version 2 leaves vectors as long as they come; the course's small model of version 2 scales all of them to one length, too, which is 12 ([lesson 6](6_cotracker.ipynb) calls it `feature_length`).


# %% tags=["promote"]
def unit_length(features: Float[Tensor, "F C H W"]) -> Float[Tensor, "F C H W"]:
    """Scale each vector to length 1, as version 3 does (equation 3 of the lesson).

    A vector of zeros stays one: the square of a length counts as 1e-12 at least.
    """
    squares = features.square().sum(dim=1, keepdim=True)
    return features * squares.clamp(min=1e-12).rsqrt()


# %% tags=["check"]
lengths = unit_length(features).norm(dim=1)
assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-5)
assert not unit_length(torch.zeros(1, 3, 2, 2)).any(), "zeros stay zeros"
print(f"lengths before: {features.norm(dim=1).min():.1f} to {features.norm(dim=1).max():.1f}")

# %% [markdown]
# ### The pyramid
#
# Equation 4, level by level. The vectors go last, (F, h, w, C): a window reads whole vectors, and so each of them is one run of memory.


# %% tags=["promote", "exercise"]
def feature_pyramid(
    features: Float[Tensor, "F C H W"], levels: int = 4
) -> list[Float[Tensor, "F h w C"]]:
    """Average the maps again and again, and put the vectors last (equation 4 of the lesson).

    levels   L, the features themselves included
    returns  L maps; level l is (F, H // 2ˡ, W // 2ˡ, C), a last odd row or column is dropped

    The averages of unit vectors are shorter than 1, and stay so.

    Raises ValueError for a map too small for so many levels.
    Source: CoTracker, section 3.1.
    """
    whole_number("levels", levels, least=1)
    if min(features.shape[2:]) < 2 ** (levels - 1):
        raise ValueError(
            f"features have size {tuple(features.shape[2:])}; expected at least "
            f"{2 ** (levels - 1)} × {2 ** (levels - 1)} for {levels} levels"
        )
    pyramid = [features]
    for _ in range(levels - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return [level.permute(0, 2, 3, 1).contiguous() for level in pyramid]


# %% tags=["check"]
maps = torch.randn(2, 5, 9, 14)
three = feature_pyramid(maps, 3)
assert [tuple(level.shape) for level in three] == [(2, 9, 14, 5), (2, 4, 7, 5), (2, 2, 3, 5)]
assert torch.equal(three[0], maps.permute(0, 2, 3, 1)), "level 0 holds the features themselves"
mean = maps[1, :, 2:4, 6:8].mean(dim=(1, 2))
# The mean of four numbers, to a rounding of float32.
assert torch.allclose(three[1][1, 1, 3], mean, atol=1e-6), "level 1 averages 2 × 2 vectors"
assert all(level.is_contiguous() for level in three), "each vector is one run of memory"
with shows_error(ValueError):
    feature_pyramid(maps, 5)

# %% [markdown]
# ### One window, by loops
#
# Equations 5 to 7 word by word: go to each place of the window, read the vector there with `sample` of chapter 6, multiply. This version is the yardstick for all that follows.


# %%
def correlate_loop(level, frame, centre, vector, radius):
    """One window (S, S) of products, place by place."""
    maps = level[frame].permute(2, 0, 1)[None]  # (1, C, h, w)
    window = torch.zeros(2 * radius + 1, 2 * radius + 1, dtype=level.dtype)
    for b in range(2 * radius + 1):
        for a in range(2 * radius + 1):
            place = centre + torch.tensor([a - radius, b - radius])
            window[b, a] = vector @ sample(maps, place[None, None], padding="border")[0, :, 0]
    return window


# %%
by_loop = correlate_loop(pyramid[1], 2, guess / 8, Q, 3)
# Products of unit vectors: float32 leaves 1e-6 or so.
assert torch.allclose(by_loop, windows[1], atol=1e-5)
print(f"largest product {by_loop.max():.2f}, at offset", end=" ")
print(tuple(n - 3 for n in divmod(by_loop.argmax().item(), 7)[::-1]))

# %% [markdown]
# ### The whole frame, as released
#
# The released code of version 2 multiplies the track feature with every place of the frame, at every level, and reads the window on that map of products: what RAFT does with its volume, for $N$ points in place of all pixels.


# %%
def correlate_whole(level, frames, centres, vectors, radius):
    """Products with all places of a frame, and windows read on those maps: (K, P, S, S)."""
    maps = level.new_empty(*vectors.shape[:2], *level.shape[1:3])
    for t in frames.unique().tolist():
        products = vectors[frames == t] @ level[t].flatten(0, 1).T
        maps[frames == t] = products.unflatten(2, level.shape[1:3])
    points = centres.repeat_interleave(maps.shape[1], dim=0)
    windows = sample_window(maps.flatten(0, 1), points, radius, padding="border")
    return windows.unflatten(0, maps.shape[:2])


# %%
here, there = torch.tensor([2]), guess[None] / 8
by_frame = correlate_whole(pyramid[1], here, there, Q[None, None], 3)[0, 0]
assert torch.allclose(by_frame, by_loop, atol=1e-5)

# %% [markdown]
# Of each map, a window reads 64 numbers. The rest was computed to be thrown away.
#
# ### A patch of vectors
#
# So read first. Lay all vectors of all frames out as the rows of one table; vector $(x, y)$ of frame $t$ is row $(t\,h + y)\,w + x$, and `F.embedding` copies the rows that an index names. Equation 5 is a clamp of `x` and `y`, each before the index is made.


# %% tags=["promote", "exercise"]
def vector_patches(
    level: Float[Tensor, "F h w C"], frames: Int[Tensor, "K"], corner: Int[Tensor, "K 2"], size: int
) -> Float[Tensor, "K {size} {size} C"]:
    """Copy squares of whole vectors out of frames (equation 5 of the lesson).

    level    (F, h, w, C) vectors last, so that each copy is one run of memory
    frames   (K,) the frame of each patch
    corner   (K, 2) its top-left place (x, y), which may lie outside: the border goes on there
    size     the side of a patch in pixels of the level
    returns  (K, size, size, C)

    Convention: (x, y) order, x to the right, y down; first patch axis y, second x.
    """
    _, h, w, _ = level.shape
    step = torch.arange(size, device=corner.device)
    x, y = (first[:, None] + step for first in corner.unbind(-1))
    row = frames[:, None] * h + y.clamp(0, h - 1)
    index = row[:, :, None] * w + x.clamp(0, w - 1)[:, None, :]
    return F.embedding(index, level.flatten(0, 2))


# %% tags=["check"]
numbered = torch.arange(2 * 3 * 4.0).view(2, 3, 4, 1) + torch.tensor([0.0, 100.0])
patches = vector_patches(
    numbered, torch.tensor([0, 1, 1]), torch.tensor([[1, 0], [2, 1], [-5, 7]]), 2
)
assert patches.shape == (3, 2, 2, 2), "a patch has the shape (K, size, size, C)"
assert patches[0, ..., 0].tolist() == [[1, 2], [5, 6]], "rows go down, columns to the right"
assert patches[1, ..., 1].tolist() == [[118, 119], [122, 123]], "the second frame, second channel"
assert patches[2, ..., 0].tolist() == [[20, 20], [20, 20]], "the corner goes on outside"

# %% [markdown]
# ### A window of vectors
#
# What fits, first: the functions below ask all of this of their arguments. A frame that is not there would read a vector of another video; on a CPU the check costs nothing to speak of, on a GPU it would have to wait for an answer, and is left out.


# %% tags=["promote"]
def _check_windows(level: Tensor, frames: Tensor, centres: Tensor, radius: int) -> None:
    _check_floating("level", level)
    _check_floating("centres", centres)
    whole_number("radius", radius, least=0)
    if level.ndim != 4 or 0 in level.shape:
        raise ValueError(
            f"level has shape {tuple(level.shape)}; expected (F, h, w, C), none of them 0"
        )
    if centres.ndim != 2 or centres.shape[1] != 2:
        raise ValueError(f"centres has shape {tuple(centres.shape)}; expected (K, 2), (x, y) each")
    if frames.shape != centres.shape[:1] or frames.is_floating_point():
        raise ValueError(
            f"frames has shape {tuple(frames.shape)} and dtype {frames.dtype}; "
            f"expected ({len(centres)},) whole numbers, one for each of centres"
        )
    if frames.device.type == "cpu" and len(frames):
        wrong = frames[(frames < 0) | (frames >= len(level))]
        if len(wrong):
            raise ValueError(
                f"frames has a number of {wrong[0]}; expected 0 to {len(level) - 1}, rows of level"
            )


def _corners(centres: Tensor, radius: int, level: Tensor) -> tuple[Tensor, Tensor]:
    """The top-left whole pixels of windows (K, 2), and how far the points lie past them."""
    centres = centres.float() if centres.dtype.itemsize < 4 else centres
    floor = centres.floor()
    # Beyond its border a map goes on for ever, so a far centre may as well be a near one.
    size = floor.new_tensor([level.shape[2], level.shape[1]])
    near = torch.minimum(floor.clamp(min=-2 * radius - 2), size + radius + 1)
    return (near - radius).long(), (centres - floor).to(level.dtype)


# %% tags=["promote"]
def vector_windows(
    level: Float[Tensor, "F h w C"],
    frames: Int[Tensor, "K"],
    centres: Float[Tensor, "K 2"],
    radius: int,
) -> Float[Tensor, "K C S S"]:
    """Read windows of vectors between the pixels (equation 6 of the lesson).

    level    (F, h, w, C) a level of `feature_pyramid`
    frames   (K,) the frame of each window, a row of level
    centres  (K, 2) as (x, y), in pixels of the level; outside the map its border goes on
    radius   r, in pixels of the level; 0 reads one vector
    returns  (K, C, S, S), S = 2r + 1

    The same numbers as `sample_window` with padding "border" on the frame of each window. A centre
    that is not finite gives NaN. Raises TypeError for a level or centres of whole numbers,
    ValueError for a shape, a frame or a radius that does not fit.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0);
    first window axis y, second x.
    """
    _check_windows(level, frames, centres, radius)
    corner, fraction = _corners(centres, radius, level)
    patches = vector_patches(level, frames, corner, 2 * radius + 2)
    return blend_patch(patches.permute(0, 3, 1, 2), fraction[:, None])


# %%
torch.manual_seed(0)
level = torch.randn(3, 7, 9, 5, dtype=torch.float64)
which = torch.randint(3, (40,))
centres = torch.rand(40, 2, dtype=torch.float64) * 24 - 8  # many of them outside
some_vectors = torch.randn(40, 3, 5, dtype=torch.float64)

# %% tags=["check"]
for radius in range(4):
    expected = sample_window(level[which].permute(0, 3, 1, 2), centres, radius, padding="border")
    read = vector_windows(level, which, centres, radius)
    # float64: a few roundings at values of order 1.
    assert torch.allclose(read, expected, rtol=0, atol=1e-12), f"radius {radius} differs"

# %% [markdown]
# With radius 0 this reads the track feature at the query's own frame and place. The paper calls it $Q^i_t$, in $\mathbb{R}^d$, for point $i$ and frame $t$. It begins as the same vector in all frames; version 2 then changes it, frame by frame, at each iteration, while version 3 leaves it as it is.

# %%
queries = torch.tensor([[0, 240, 166], [1, 60, 40], [2, 8, 100]]).float()  # (frame, x, y)
track_features = vector_windows(pyramid[0], queries[:, 0].long(), queries[:, 1:] / STRIDE, 0)
assert torch.allclose(track_features[0, :, 0, 0], Q)
tuple(track_features.flatten(1).shape)

# %% [markdown]
# ### Products first
#
# Equation 8 by hand, at radius 1 on one channel pair: vectors of two numbers on a patch of 4 × 4.

# %%
torch.manual_seed(3)
patch = torch.randint(0, 4, (4, 4, 2)).float()
vector, fraction = torch.tensor([2.0, 1.0]), torch.tensor([0.25, 0.5])
blended_first = torch.stack([blend_patch(patch[..., n], fraction) for n in range(2)], dim=2)
products = patch @ vector
assert torch.equal(blended_first @ vector, blend_patch(products, fraction))  # quarters are exact


# %% tags=["figure"]
def draw_products():
    figure, axes = canvas(1, 4, 7.4, 2.2, width_ratios=[4, 3, 4, 3])
    draw_pixels(axes[0], torch.ones(4, 4), number=None, limits=(0, 1.2))
    for b in range(4):
        for a in range(4):
            text = ", ".join(f"{n:.0f}" for n in patch[b, a])
            axes[0].text(a, b, text, ha="center", va="center", size=8)
    axes[0].set_title("patch P\nof vectors")
    draw_pixels(axes[1], blended_first[..., 0], number="{:.3g}", fontsize=8)
    axes[1].set_title("window V: blend β,\nfirst number of each")
    draw_pixels(axes[2], products, number="{:g}", fontsize=8)
    axes[2].set_title("products with Q = (2, 1)")
    draw_pixels(axes[3], blend_patch(products, fraction), number="{:.3g}", fontsize=8)
    axes[3].set_title("blend β of them,\nfraction f = (¼, ½)")
    for each in axes:
        each.set(xlabel="column a", ylabel="", xticks=[], yticks=[])
    axes[0].set_ylabel("row b")
    return figure


show(
    draw_products(),
    alt="A patch of four by four vectors of two numbers; the window blended from it; the products of "
    "the patch with a vector; and the three by three numbers blended from the products",
)

# %% [markdown]
# On the left the way of blending first: every number of the vectors is blended, then multiplied. On the right the products come first, and one number for each place is blended. The results are equal. In the code, the products of all $P$ vectors with a patch are one matrix product:


# %% tags=["promote"]
_MOST = 1 << 22  # numbers copied at once; more take longer, since their memory is new every time


def _parts(count: int, each: int) -> list[slice]:
    """Slices of `count` things that hold `each` numbers; one empty slice of none."""
    step = max(1, _MOST // each)
    return [slice(first, first + step) for first in range(0, max(count, 1), step)]


def _check_vectors(vectors: Tensor, level: Tensor, centres: Tensor) -> None:
    _check_floating("vectors", vectors)
    if vectors.ndim != 3 or vectors.shape[::2] != (len(centres), level.shape[3]):
        raise ValueError(
            f"vectors has shape {tuple(vectors.shape)}; expected ({len(centres)}, P, "
            f"{level.shape[3]}), for each of centres P vectors as wide as those of level"
        )


# %% tags=["promote", "exercise"]
def correlate(
    level: Float[Tensor, "F h w C"],
    frames: Int[Tensor, "K"],
    centres: Float[Tensor, "K 2"],
    vectors: Float[Tensor, "K P C"],
    radius: int,
) -> Float[Tensor, "K P S S"]:
    """Compare vectors with the window around a centre (equations 7 and 8 of the lesson).

    level    (F, h, w, C) a level of `feature_pyramid`
    frames   (K,) the frame of each window, a row of level
    centres  (K, 2) as (x, y), in pixels of the level; outside the map its border goes on
    vectors  (K, P, C) what is compared with each window
    radius   r, in pixels of the level
    returns  (K, P, S, S) inner products, not divided by √C, S = 2r + 1

    Products come first and the blend of neighbours after: both are linear, so that the order does
    not matter, and where P is less than C there are fewer products to blend than numbers in the
    vectors. A centre that is not finite gives NaN. Raises TypeError for a level, centres or vectors
    of whole numbers, ValueError for a shape, a frame or a radius that does not fit.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0);
    first window axis y, second x.
    Source: CoTracker, section 3.1, correlation features.
    """
    _check_windows(level, frames, centres, radius)
    _check_vectors(vectors, level, centres)
    corner, fraction = _corners(centres, radius, level)
    size = 2 * radius + 2
    products = [
        vectors[part] @ vector_patches(level, frames[part], corner[part], size).flatten(1, 2).mT
        for part in _parts(len(frames), size * size * level.shape[3])
    ]
    products = torch.cat(products) if len(products) > 1 else products[0]
    return blend_patch(products.unflatten(2, (size, size)), fraction[:, None])


# %% tags=["check"]
for radius in range(4):
    by_frame = correlate_whole(level, which, centres, some_vectors, radius)
    by_window = correlate(level, which, centres, some_vectors, radius)
    assert by_window.shape == by_frame.shape, "the shape is (K, P, S, S)"
    # float64: sums of five products, in another order.
    assert torch.allclose(by_window, by_frame, rtol=0, atol=1e-12), f"radius {radius} differs"
one = correlate_loop(level, which[5].item(), centres[5], some_vectors[5, 1], 2)
assert torch.allclose(correlate(level, which, centres, some_vectors, 2)[5, 1], one, atol=1e-12)
assert correlate(level, which[:0], centres[:0], some_vectors[:0], 2).shape == (0, 3, 5, 5)

# %% [markdown]
# ### Why the border goes on
#
# RAFT reads zeros outside. A zero is a number like others: it says "neither alike nor opposite". Where the features inside are less alike than that, the zeros outside are the best match of the whole window: a match that is no match, behind an edge that is not in the scene. A tracker that follows a point out of the picture meets this at every iteration.
#
# A point on the wall, near the left edge of the first frame, leaves the picture as the camera pans: by the last frame it is about 12 pixels further left.

# %%
leaver = torch.tensor([[4.0, 60.0]])
gone = leaver + torch.tensor([[-12.0, 0.0]])
first, last = torch.tensor([0]), torch.tensor([2])
leaver_Q = vector_windows(pyramid[0], first, leaver / STRIDE, 0).flatten(1)


def look(padding):
    """Products around the point that is gone, for each level."""
    windows = []
    for k, level in enumerate(pyramid):
        products = torch.einsum("c,hwc->hw", leaver_Q[0], level[2])
        centre = gone / STRIDE / 2**k
        windows.append(sample_window(products[None], centre, 3, padding=padding)[0])
    return windows


looks = {padding: look(padding) for padding in ("zeros", "border")}
for k, window in enumerate(looks["border"]):
    read = correlate(pyramid[k], last, gone / STRIDE / 2**k, leaver_Q[None], 3)[0, 0]
    assert torch.allclose(read, window, atol=1e-5), "`correlate` lets the border go on"


# %% tags=["figure"]
def draw_border():
    figure, axes = canvas(2, 5, 7.6, 3.2, width_ratios=[1.25, 1, 1, 1, 1])
    for each, t, place, title in (
        (axes[0, 0], 0, leaver, "first frame"),
        (axes[1, 0], 2, gone, "last frame"),
    ):
        each.imshow(to_picture(clip[t]))
        each.plot(*place[0], "o", color=COLOURS["query"], markeredgecolor="white", clip_on=False)
        each.set(title=title, xlim=(-30, 90), ylim=(120, 0), xticks=[], yticks=[])
    limit = max(window.abs().max().item() for window in looks["border"])
    for row, (padding, windows) in zip(axes[:, 1:], looks.items(), strict=True):
        for k, (each, window) in enumerate(zip(row, windows, strict=True)):
            draw_pixels(each, window, number=None, limits=(-limit, limit))
            best = divmod(window.argmax().item(), 7)
            each.plot(best[1], best[0], "+", color=COLOURS["query"], markersize=9, mew=2)
            each.axvline(3 - gone[0, 0].item() / STRIDE / 2**k, color=COLOURS["second"], lw=1)
            each.set(xticks=[], yticks=[], xlabel="", ylabel="", title=f"{padding}, level l = {k}")
    return figure


show(
    draw_border(),
    alt="A point at the left edge of the first frame, outside the last one; windows of products at "
    "four levels, with zeros and with the border going on left of a line that marks the edge",
    photo=True,
)

# %% [markdown]
# The vertical line is the centre of the first column of the map: what lies left of it is made up. Mid-grey is 0. With zeros, a flat grey stripe stands there, and an edge at the line; with the border, each row goes on with what it has. The border invents nothing that is not in the picture, and says nothing about which way the point went.
#
# Here most windows still hold some of the wall, which is alike. A guess is often wrong, though, or the point is hidden; then nothing in the window is like it. Compare 500 places of the first frame with guesses at the left edge of the last one, and count the windows in which no product inside is above 0, so that the largest number is a zero from outside.

# %%
torch.manual_seed(2)
h, w = pyramid[0].shape[1:3]
anywhere = torch.rand(500, 2) * torch.tensor([w - 1, h - 1])
any_Q = vector_windows(pyramid[0], torch.zeros(500, dtype=torch.long), anywhere, 0).flatten(1)
at_edge = torch.stack([torch.zeros(500), torch.rand(500) * (h - 1)], dim=1)
for k, level in enumerate(pyramid):
    maps = torch.einsum("kc,hwc->khw", any_Q, level[2])
    zeros = sample_window(maps, at_edge / 2**k, 3).flatten(1)
    made_up = (zeros.max(dim=1).values <= 0).float().mean()
    print(f"level {k}: in {made_up:.0%} of the windows the best match is a zero from outside")

# %% [markdown]
# With the border, the largest number of a window is always a product with something in the picture, or a blend of such products.
#
# The choice is part of the weights, as the order of a window is: the released models are learned with the border. Their authors' sampler has it as its default, where RAFT's has zeros. With zeros in its place, the released version 2 moves its tracks by up to 7.4 pixels on the small clip of our reference numbers (`tests/reference/cotracker_mutations.json`); [lesson 6](6_cotracker.ipynb) builds the model.
#
# ### The cost, counted and measured
#
# Equation 9 for frames of 384 × 512 pixels, all levels, for one point in one frame; and what is held at once for 8 frames, in float32.

# %% tags=["nbval-check-output"]
sizes = [(96 >> k, 128 >> k) for k in range(4)]
whole, read = sum(h * w for h, w in sizes), 4 * 8**2
print(f"products for a point and a frame: {whole} with the whole frame, {read} with the windows")
for N in (100, 1000, 70225):
    print(
        f"{N:6d} points, 8 frames: {4e-9 * 8 * N * whole:7.3f} GB and {4e-9 * 8 * N * read:6.3f} GB"
    )

# %% [markdown]
# 70,225 points are the 265 × 265 grid that the authors track jointly. Now the clock, on the features of this lesson: $N$ points, each in all three frames. The windows have two ways, and both take their turn: vectors blended first, and products first. A turn of another program can only slow a measurement down, so the fastest of a few turns counts.


# %%
def best_seconds(calls, turns=4):
    """The fastest turn of each call, the calls taking turns."""
    best = dict.fromkeys(calls, math.inf)
    for _ in range(turns):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def vectors_first(level, frames, centres, vectors, radius):
    return vectors @ vector_windows(level, frames, centres, radius).flatten(2)


# %%
@torch.no_grad()
def costs(N, P):
    """Seconds for N points in each frame, P vectors for each, at all levels."""
    torch.manual_seed(0)
    K = len(frames) * N
    which = torch.arange(len(frames)).repeat_interleave(N)
    places = torch.rand(K, 2) * torch.tensor([frames.shape[3], frames.shape[2]]) / STRIDE
    vectors = torch.randn(K, P, features.shape[1])

    def all_levels(how):
        return lambda: [how(v, which, places / 2**k, vectors, 3) for k, v in enumerate(pyramid)]

    ways = {"vectors first": vectors_first, "products first": correlate}
    ways = {"whole frame": correlate_whole, **ways} if P == 1 else ways
    return best_seconds({name: all_levels(how) for name, how in ways.items()})


numbers = (10, 30, 100, 300)
seconds = {N: costs(N, P=1) for N in numbers}


# %%
def draw_costs():
    figure, (left, right) = canvas(1, 2, 7.0, 2.4)
    ways = (("whole frame", "bad", "o"), ("vectors first", "muted", "^"))
    for name, key, marker in (*ways, ("products first", "good", "s")):
        times = [1000 * seconds[N][name] for N in numbers]
        left.plot(numbers, times, color=COLOURS[key], marker=marker, label=name)
    left.set(xlabel="points N", ylabel="time (ms)", xscale="log", yscale="log")
    held = sum(level[0, ..., 0].numel() for level in pyramid)
    for name, key, count in (("whole frame", "bad", held), ("windows", "good", read)):
        megabytes = [4e-6 * count * len(frames) * N for N in numbers]
        right.plot(numbers, megabytes, color=COLOURS[key], marker="o", label=name)
    right.set(xlabel="points N", ylabel="products held (MB)", xscale="log", yscale="log")
    for each in (left, right):
        each.legend()
    return figure


show(
    draw_costs(),
    alt="Time and memory against the number of points, both on logarithmic scales: the whole frame "
    "takes most of both for few points; in time it comes close to the windows for many",
)
for N in numbers:
    others = {n: s / seconds[N]["products first"] for n, s in seconds[N].items()}
    print(f"{N:3d} points: ", ", ".join(f"{n} {ratio:.1f}" for n, ratio in others.items()))

# %% [markdown]
# Memory falls by the ratio of equation 9. Time does not: for few points the windows are ahead, for many the whole frame comes closer, and here, on small frames, it may draw level or pass. All points of a frame times all its places are one large matrix product, which a processor computes at its full speed, while patches are fetched from many places and memory is slow. Maps grow with the frame and windows do not, so that at 384 × 512 pixels the windows keep their lead longer; and what does not fit into memory has no speed at all.
#
# Products first does not always mean fewer multiplications. With $P$ vectors for a window, it makes $(2r+2)^2\,P\,d$ products and blends $P$ numbers a place; vectors first makes $(2r+1)^2\,P\,d$ and blends $d$ numbers a place. Version 3 has $P = 49$:

# %%
d = features.shape[1]
for P in (1, 49):
    products_way = P * 64 * d + P * 105  # a blend costs 56 + 49 multiplications a number
    vectors_way = P * 49 * d + d * 105
    print(
        f"P = {P:2d}: {products_way:7,d} multiplications products first, {vectors_way:7,d} not",
        end="",
    )
    measured = costs(50, P)
    print(f"; time {measured['vectors first'] / measured['products first']:.1f} to 1 here")

# %% [markdown]
# At $P = 49$ products first makes more multiplications and still does not lose: blending vectors writes and reads large arrays of intermediate values, and moving numbers costs more than multiplying them.
#
# ### Vector against window, window against window
#
# Version 2 compares one vector with a window: 49 products a level, 196 in all. A single vector between repeated things is easily mistaken. Version 3 takes the 49 vectors around the query as well, at the same level, and compares each with each: a 4-D correlation of 2401 numbers.

# %%
patch_of_query = vector_windows(pyramid[0], torch.tensor([0]), query[None] / STRIDE, 3)
four_d = correlate(
    pyramid[0], torch.tensor([2]), seen_at[2:] / STRIDE, patch_of_query.flatten(2).mT, radius=3
)
four_d = four_d.view(7, 7, 7, 7)  # row and column around the query, row and column around p
by_one = products_around(seen_at[2], frame=2)[0]
assert torch.allclose(four_d[3, 3], by_one, atol=1e-5), "its middle is the window of one vector"
print(by_one.numel(), "and", four_d.numel(), "numbers at one level")


# %% tags=["figure"]
def draw_four_d():
    figure, (left, right) = canvas(1, 2, 6.6, 3.4, width_ratios=[1, 2])
    limits = {"limits": (four_d.min().item(), four_d.max().item())}
    draw_pixels(left, by_one, number=None, **limits)
    left.set(title="version 2: correlations C\nof Q with window V", xticks=[], yticks=[])
    left.set(xlabel="column a", ylabel="row b")
    right.imshow(four_d.permute(0, 2, 1, 3).reshape(49, 49), cmap="gray")
    for n in range(1, 7):
        right.axhline(7 * n - 0.5, color="white", linewidth=1)
        right.axvline(7 * n - 0.5, color="white", linewidth=1)
    square(right, (24, 24), 3.5, "query")
    right.set(title="version 3: a window V for each place\naround the query", xticks=[], yticks=[])
    right.set(xlabel="column a' of the tile, column a in it")
    return figure


show(
    draw_four_d(),
    alt="A window of seven by seven products, and seven by seven such windows as tiles; a light spot "
    "moves from tile to tile with the place around the query",
)

# %% [markdown]
# The framed tile in the middle is the window on the left. From tile to tile the light spot moves as the place around the query moves: one column further, one column further. Where all tiles agree on that motion, the match is sure; one spot alone may be chance. Version 3 hands all 2401 numbers to a small network that learns to see this ([lesson 6](6_cotracker.ipynb)), and in exchange stops changing the features.
#
# > **Where the code leaves the paper.** The paper's equation for the correlation features has inner products, the released version 2 divides them by $\sqrt{d}$, and version 3, whose vectors have length 1, does not. `correlate` returns the plain products, and the model divides. Weights also expect the numbers of a window column by column, as RAFT's do (the box of [its lesson](../4_raft/4_correlation.ipynb)); here windows are indexed [row, column], and the model lays them out.

# %% [markdown]
# ## On real input
#
# ### One point, all places, all levels
#
# What does the window not see? The products of $Q$ with every place of the two later frames, at each level, with the windows around the place that was marked by eye. This is the naive way, good for a picture.

# %%
maps = [torch.einsum("c,fhwc->fhw", Q, level) for level in pyramid]


# %% tags=["figure"]
def draw_maps():
    figure, axes = canvas(2, 5, 7.8, 2.5)
    extent = (-0.5, clip.shape[3] - 0.5, clip.shape[2] - 0.5, -0.5)
    for row, t in zip(axes, (1, 2), strict=True):
        row[0].imshow(to_picture(clip[t]))
        row[0].plot(*seen_at[t], "o", color=COLOURS["query"], markeredgecolor="white", markersize=4)
        row[0].set_ylabel(f"frame, t = {t}")
        for k, each in enumerate(row[1:]):
            each.imshow(maps[k][t], cmap="gray", extent=extent)
            square(each, seen_at[t].tolist(), STRIDE * 2**k * 3.5, LEVEL_COLOURS[k])
        for each in row:
            each.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
    for k, each in enumerate(axes[0, 1:]):
        each.set_title(f"level l = {k}")
    return figure


show(
    draw_maps(),
    alt="Two frames of the walker, and beside each the maps of products at four levels, lighter "
    "where alike, each with the square of its window",
    photo=True,
)
for t in (1, 2):
    place = (seen_at[t] / STRIDE).round().long()
    share = (maps[0][t] > maps[0][t][place[1], place[0]]).float().mean()
    print(f"frame {t}: {share:.2%} of all places are more alike than the marked one")

# %% [markdown]
# The fine level is light at the chain wheel, and at other places too: an encoder describes what a place looks like, and much of a bicycle looks alike. A window rules out all rivals that are further off than the guess can be.
#
# ### How often is the peak right?
#
# For a number, a true answer is needed: the stereo pair of chapter 4, whose disparity is known. Take 1000 places of the left photograph, guess their match in the right one with an error of up to 2 pixels of the features in x and y, and look where the window of level 0 is largest. Right is a peak within one pixel of the truth. There are three ways to score the places of the window: products of vectors as they are, products of unit vectors, and window against window, where a place scores the mean of all pairs that lie at the same offset from each other.
#
# Two encoders take the test, the trained one and one of **random** weights. The second is less senseless than it sounds: random filters respond to edges, colours and textures like any others, and the same texture gets the same vector in both photographs. It has one flaw that is easily mended. Its vectors share a large common part, because the numbers that enter the last layer are positive; the bias of that layer can take the common part away.


# %%
@torch.no_grad()
def random_encoder(example):
    """Random weights, with a last bias for which the vectors of an example have mean 0."""
    torch.manual_seed(0)
    untrained = FeatureEncoder().eval()
    vectors = untrained(example)
    common = vectors.mean(dim=(0, 2, 3))
    print(f"length of a vector {vectors.norm(dim=1).mean():.1f}, of the common part ", end="")
    print(f"{common.norm():.1f}")
    untrained.conv3.bias -= common
    return untrained


pair = stereo_pair(shrink=2)
H, W = (side // STRIDE * STRIDE for side in pair.left.shape[2:])
both = 2 * (torch.cat([pair.left, pair.right])[..., :H, :W] / 255) - 1
encoders = {"random": random_encoder(both[:1]), "trained": encoder}
with torch.no_grad():
    stereo = {name: each(both) for name, each in encoders.items()}
disparity = pair.disparity[0, 0, :H:STRIDE, :W:STRIDE] / STRIDE

# %%
y, x = pair.valid[0, 0, :H:STRIDE, :W:STRIDE].nonzero().unbind(1)
inside = (x - disparity[y, x] > 3) & (x < W // STRIDE - 4) & (y > 3) & (y < H // STRIDE - 4)
torch.manual_seed(1)
chosen = inside.nonzero()[:, 0][torch.randperm(inside.sum())[:1000]]
places = torch.stack([x[chosen], y[chosen]], dim=1).float()
matches = places - torch.stack([disparity[y, x][chosen], torch.zeros(len(chosen))], dim=1)
miss = torch.randint(-2, 3, places.shape).float()


# %%
def along_offsets(four_d, radius=3):
    """The mean over pairs of places at each offset: (K, 7, 7, 7, 7) → (K, 7, 7).

    A smaller radius leaves out what lies further from the middle around the query.
    """
    scores = torch.zeros(len(four_d), 7, 7)
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            rows = range(max(3 - radius, -dy), min(4 + radius, 7 - dy))
            columns = range(max(3 - radius, -dx), min(4 + radius, 7 - dx))
            pairs = [four_d[:, j, i, j + dy, i + dx] for j in rows for i in columns]
            scores[:, dy + 3, dx + 3] = torch.stack(pairs).mean(dim=0)
    return scores


def share_right(scores):
    """How many windows have their largest score within one pixel of the true match."""
    best = scores.flatten(1).argmax(dim=1)
    offset = torch.stack([best % 7, best // 7], dim=1) - 3
    return ((offset + miss).norm(dim=1) <= 1).float().mean().item()


# %%
def scores(features, radius):
    """Products of a window around each place with the window around the guess of its match."""
    level = feature_pyramid(features, 1)[0]
    left = torch.zeros(len(places), dtype=torch.long)
    around = vector_windows(level, left, places, radius).flatten(2).mT
    return correlate(level, left + 1, matches + miss, around, 3)


def shares(features):
    """How often the peak is right, for each way to score the places of a window."""
    unit = unit_length(features)
    return {
        "one vector": share_right(scores(features, 0)[:, 0]),
        "one unit vector": share_right(scores(unit, 0)[:, 0]),
        "window against window": share_right(along_offsets(scores(unit, 3).view(-1, 7, 7, 7, 7))),
    }


found = {name: shares(features) for name, features in stereo.items()}
unseen = share_right(torch.eye(49)[24].expand(len(miss), -1).view(-1, 7, 7))
print(f"the guess itself, without a look: {unseen:.0%} right")
print(f"{'':>21}", *(f"{name:>8}" for name in found))
for way in found["random"]:
    print(f"{way:>21}", *(f"{each[way]:8.0%}" for each in found.values()))
assert found["trained"]["one unit vector"] > found["random"]["one unit vector"]
print(credit("motorcycle"))

# %% [markdown]
# Read the first column downward. Each step that version 3 takes raises the share, even with an encoder that has learned nothing: unit length, since a product rewards long vectors, and the 4-D correlation, since a window has more to recognise than a vector. Then read across. Training helps the single vector most: to tell places apart by one vector is what it practises. What the window adds to a trained vector is far less than what it adds to a random one, and with windows to compare, random filters do about as well as trained ones. The test is kind, with two sharp photographs taken at one moment; where a frame is blurred, or a texture repeats, there is more left to add.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `feature_pyramid` | 8 | ●○○ |
# | `vector_patches` | 15 | ●●○ |
# | `correlate` | 15 | ●●● |
#
# <details><summary>Hint for <code>feature_pyramid</code></summary>
#
# Keep a list that begins with the features and append `F.avg_pool2d(last, 2)`. At the end, `permute(0, 2, 3, 1).contiguous()` moves the vectors last, in memory too. `whole_number` sees to a bad number of levels; the size needs a sentence of its own.
#
# </details>
#
# <details><summary>Hint for <code>vector_patches</code></summary>
#
# `x` and `y` have the shape (K, size): a first place plus `torch.arange(size)`. Clamp both before you combine them into the number of a row of the table, $(t\,h + y)\,w + x$, of shape (K, size, size). The table is `level.flatten(0, 2)`.
#
# </details>
#
# <details><summary>Hint for <code>correlate</code></summary>
#
# Without parts first: `_corners` gives corner and fraction, `vector_patches` the patches (K, size, size, C). Flatten the places of a patch, multiply `vectors @ patches.mT`, give the places their two axes back, and blend. The fraction needs an axis for P. The two `_check_…` functions see to bad arguments.
#
# </details>
#
# **Predict.** How many numbers does a point bring along in each frame, at four levels of radius 3, in version 2 and in version 3? How many weights has a linear layer that takes in version 3's numbers at once and makes 256 of them?
#
# <details><summary>Hint</summary>
#
# $S^2$ a level, and $S^4$.
#
# </details>
#
# <details><summary>Answer</summary>
#
# 196 and 9604. A linear layer from 9604 to 256 numbers would have 2.5 million weights. Version 3 sends the 2401 numbers of each level through one small network shared by the levels, which makes 256 numbers of each. The cell below counts.
#
# </details>

# %% tags=["nbval-check-output"]
print("version 2:", 4 * 7**2, "numbers, version 3:", 4 * 7**4, "numbers,", end=" ")
print(f"{4 * 7**4 * 256 / 1e6:.1f} million weights")

# %% [markdown]
# **Find the bug.** A colleague clamps once in place of twice: the number of the row in the table. All tests inside the map pass. What does a patch at the right edge read? And one below the last row?


# %%
def patches_of_colleague(level, frames, corner, size):
    _, h, w, _ = level.shape
    step = torch.arange(size)
    x, y = (first[:, None] + step for first in corner.unbind(-1))
    index = ((frames[:, None] * h + y) * w)[:, :, None] + x[:, None, :]
    return F.embedding(index.clamp(0, level[..., 0].numel() - 1), level.flatten(0, 2))


# %%
inside_corner = torch.tensor([[1, 0]])
assert torch.equal(
    patches_of_colleague(numbered, torch.tensor([0]), inside_corner, 2),
    vector_patches(numbered, torch.tensor([0]), inside_corner, 2),
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# In the table, what comes after the last vector of a row, and after the last row of a frame?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The first vector of the next row, and the first row of the next frame. At the right edge a patch goes on at the left edge, one row lower; below the frame it goes on in the future. No shape is wrong and no error is raised. The cell below shows both.
#
# </details>

# %% tags=["nbval-check-output"]
for corner in ([3, 0], [0, 2]):
    patches = [
        how(numbered, torch.tensor([0]), torch.tensor([corner]), 2)[0, ..., 0].tolist()
        for how in (patches_of_colleague, vector_patches)
    ]
    print(f"corner {corner}: colleague {patches[0]}, library {patches[1]}")

# %% [markdown]
# **Vary.** How large must the window around the query be? Give `along_offsets` a radius of 0, 1, 2 and 3, with the random encoder, which needs the window most. What should radius 0 give?
#
# <details><summary>Hint</summary>
#
# `every_pair` below holds the products once; radius 0 keeps the vector in the middle alone.
#
# </details>
#
# <details><summary>Answer</summary>
#
# At radius 0 the share is that of one unit vector, since nothing else is compared. The first ring of neighbours brings most of the gain.
#
# </details>

# %%
every_pair = scores(unit_length(stereo["random"]), 3).view(-1, 7, 7, 7, 7)
for radius in range(4):
    print(f"radius {radius}: {share_right(along_offsets(every_pair, radius)):.0%} right")

# %% [markdown]
# ## What breaks
#
# ### A point that is far outside
#
# Beyond the border everything repeats. A window that has left the picture by more than its reach holds the same number in every place of a row, or in all of them, and its slope is 0: nothing says which way leads back. The coarser levels hold out longer.

# %%
for distance in (0, 16, 64, 400):
    far = torch.tensor([[-float(distance), 100.0]])
    spread = [
        correlate(level, last, far / STRIDE / 2**k, Q[None, None], 3)[0, 0].std(dim=1).max().item()
        for k, level in enumerate(pyramid)
    ]
    alive = [k for k, each in enumerate(spread) if each > 1e-6]
    print(f"{distance:3d} px outside: levels whose rows still differ from left to right {alive}")

# %% [markdown]
# ### A crop has other features
#
# Instance norm takes its mean and variance over the frame. Cut the frame, and every vector changes, those far from the cut too. So features of a crop are not the crop of the features, and a tracker sees a resized or cut video as another one.

# %%
with torch.no_grad():
    cut = encoder(frames[:1, :, :, 128:])
whole_part = features[:1, :, :, 32:]
inner = (slice(None), slice(None), slice(20, 44), slice(40, 60))  # far from all edges
alike = F.cosine_similarity(cut[inner], whole_part[inner])
print(f"cosine of the two vectors of a place, far from the cut: {alike.mean():.2f} on average")

# %% [markdown]
# ### What the code says to bad input

# %%
with shows_error(TypeError):
    encoder(clip)
with shows_error(ValueError):
    encoder(frames[..., :255, :])
with shows_error(ValueError):
    vector_windows(pyramid[0], torch.tensor([3]), query[None] / STRIDE, 0)
with shows_error(ValueError):
    vector_windows(pyramid[0], torch.tensor([0, 1]), query[None] / STRIDE, 0)
with shows_error(ValueError):
    correlate(pyramid[0], torch.tensor([0]), query[None] / STRIDE, Q[None], 3)
with shows_error(ValueError):
    correlate(pyramid[0], torch.tensor([0]), query[None] / STRIDE, Q[None, None], -1)

# %% [markdown]
# ## Recap
#
# - The encoder makes vectors at a quarter of the size from four stages, resized with aligned corners and mixed; the query's vector $Q$ is read between pixels in its own frame.
# - Correlations are products with a window around the estimate at $L$ levels: one vector against it in version 2, a window against it in version 3; outside, the border goes on.
# - Products and blends are linear: read whole vectors, multiply, blend last, and no map of the whole frame is ever made.
#
# The line goes on in [lesson 4](4_tokens.ipynb), where the correlations become part of a token.
