# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 55
#     needs:
#     - 6_bilinear_sampling/3_window
#     - 4_raft/4_correlation
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Update: one step towards the flow
#
# **After this lesson you can** write the step that RAFT repeats: what it reads, what it keeps, how far it moves the flow, and how the coarse flow becomes a full-size one.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb) (`3_window`) and the [correlation](4_correlation.ipynb) (`4_correlation`). *Time:* 55 minutes, and 55 for the blanks.

# %% [markdown]
# ## Words
#
# Classical methods find flow by **descent**: an energy says how bad a field is, and each step moves the field a little way down its slope. RAFT keeps the shape of that loop and learns the step. One **flow** field $f$ (光流) starts at zero. In each iteration RAFT looks up the **correlations** $c$ around the places where $f$ points, turns correlations and flow into **motion features** $m$, lets these change a **hidden state** $h$ (隐状态), its memory, and reads a **change** $\Delta f$ of the flow off that state. The paper (section 3.3) builds this **update operator** (更新算子) after the steps of an optimiser: all iterations use the same weights, and the activations are bounded, both to help the sequence of flows settle.
#
# The memory is a **gated recurrent unit** (GRU, 门控循环单元) whose matrices are convolutions. It also reads the **context** $x$, features of the first image alone, which can tell where objects end. At the end, **convex upsampling** makes each vector of the full-size flow a weighted mean of nine coarse ones, with weights that the network chooses, so that an edge of motion can stay an edge.
#
# ### Why one field, and why a light step
#
# Most networks before RAFT went from coarse to fine: a flow at, say, 1/64 of the size, then a refinement with weights of its own at 1/32, and so on; each stage warps the second image, or its features, by the flow so far. The paper names three weaknesses of such a cascade (级联): an error of a coarse stage is hard to recover from, a small object that moves fast is easily missed, and training many stages takes very many iterations.
#
# How small is small? At 1/64 an object of 16 × 16 pixels covers $(16/64)^2 = 1/16$ of one pixel, and its motion drowns in that of its surroundings. At 1/8 it covers $(16/8)^2 = 4$ pixels. RAFT works at 1/8 from the first iteration to the last. It finds large motions through the coarse levels of the correlation pyramid: the look-up is coarse, the field stays fine. Without warping, and with one set of weights, the step is light; the paper repeats it more than 100 times without divergence. These are the three things that the notes call new: one field at one resolution, a light step, and a convolutional GRU fed by look-ups.

# %% [markdown]
# ## Figure
#
# ### One iteration of a real pair
#
# The pair is the motorcycle at a quarter of its size, padded to multiples of 8; the weights are the course's own RAFT-small. First what is computed once: the correlation volume, the first state and the context. One network, the context encoder, makes the last two from the first image: its channels are split, the first part goes through tanh and becomes the state, the second through a ReLU and becomes the context.

# %%
import timeit
from copy import deepcopy
from itertools import pairwise, product
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn

from fourfold.bilinear_sampling.sampling import _check_floating, sample
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.kit.checkpoints import load_tensors
from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, draw_pixels, flow_to_image, show, to_picture
from fourfold.kit.images import credit, stereo_pair
from fourfold.kit.notebook import shows_error
from fourfold.raft.correlation import CorrelationVolume
from fourfold.raft.fields import pad
from fourfold.raft.raft import RAFT

# %%
model = RAFT.from_official(load_tensors(data_path("checkpoints", "raft_small.safetensors")))
model.requires_grad_(False)
pair = stereo_pair(shrink=4)
images = [2 * (pad(image)[0] / 255) - 1 for image in (pair.left, pair.right)]
volume = CorrelationVolume(*map(model.fnet, images), model.levels, model.radius)
first, context = model.cnet(images[0]).split([model.hidden, model.context], dim=1)
first, context = first.tanh(), context.relu()
assert first.abs().max() <= 1 and context.min() == 0


# %% [markdown]
# Then the iterations. This loop runs the finished block part by part, so that every tensor can be kept and drawn; the section *Code* builds the parts.


# %%
def trace(update, iterations):
    """Repeat an update block on the pair; keep what each iteration reads and makes."""
    h, share, kept = first, update.gru.share(context), []
    H, W = h.shape[2:]
    grid, f = pixel_grid(H, W).permute(2, 0, 1), torch.zeros(1, 2, H, W)
    for _ in range(iterations):
        c = volume(grid + f)
        m = update.encoder(f, c)
        z, r, q = update.gru.gates(h, m, share)
        new = update.gru(h, m, share)
        change = update.flow_head(new)
        names = {"c": c, "f": f, "m": m, "s": share, "h": h, "z": z, "r": r, "q": q}
        kept.append(SimpleNamespace(**names, new=new, change=change))
        h, f = new, f + change
    return kept


steps = trace(model.update_block, 100)


# %%
def draw_map(axes, values, name, x, y, longest=None, width=10.5):
    """A flow, or the channel of a map that varies most, its name and measured shape above it."""
    height = width * values.shape[2] / values.shape[3]
    if values.shape[1] == 2:
        picture = to_picture(flow_to_image(values, longest))
    else:
        picture = values[0, values[0].flatten(1).std(dim=1).argmax()]
    axes.imshow(picture, extent=(x, x + width, y + height, y), cmap="gray")
    shape = " × ".join(map(str, values.shape[1:]))
    axes.text(x + width / 2, y - 0.5, f"{name}\n{shape}", ha="center", va="bottom", size=8)


def draw_box(axes, name, x, y, width, height):
    style = {"boxstyle": "round,pad=0,rounding_size=1", "facecolor": "0.92", "edgecolor": "0.4"}
    axes.add_patch(FancyBboxPatch((x, y), width, height, **style))
    axes.text(x + width / 2, y + height / 2, name, ha="center", va="center", size=8)


def draw_arrow(axes, path, colour="0.25"):
    """A line through the points of a path, with a head at its end."""
    for a, b in pairwise(path[:-1]):
        axes.plot(*zip(a, b, strict=True), color=colour, linewidth=1)
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", path[-1], path[-2], arrowprops=style)


# %% tags=["figure"]
def draw_iteration(step):
    figure, axes = canvas(1, 1, 7.4, 4.2)
    moved = step.f + step.change
    longest = moved.norm(dim=1).max().item()
    draw_map(axes, context, "context x", 0, 4)
    draw_map(axes, step.c, "correlations c", 0, 18)
    draw_map(axes, step.f, "flow f", 0, 32, longest)
    draw_map(axes, step.s, "share s", 27, 4)
    draw_map(axes, step.m, "motion m", 27, 18)
    draw_map(axes, step.h, "state h", 27, 32)
    draw_map(axes, step.new, "new state h", 51, 18)
    draw_map(axes, step.change, "change Δf", 75.5, 18)
    draw_map(axes, moved, "flow f + Δf", 75.5, 34, longest)
    draw_box(axes, "Conv,\nonce a pair", 14, 4, 9, 7)
    draw_box(axes, "motion\nencoder", 14, 18, 9, 7)
    draw_box(axes, "GRU\nz, r, q", 41, 14, 7, 15)
    draw_box(axes, "flow\nhead", 65, 18, 7, 7)
    for x, y in ((10.7, 7.5), (23.2, 7.5), (10.7, 21.5), (23.2, 21.5), (37.7, 21.5)):
        draw_arrow(axes, [(x, y), (x + 3.1, y)])
    for x in (48.2, 61.7, 72.2):
        draw_arrow(axes, [(x, 21.5), (x + 3, 21.5)])
    draw_arrow(axes, [(10.7, 35.5), (12.2, 35.5), (12.2, 23.5), (13.8, 23.5)])
    draw_arrow(axes, [(37.7, 7.5), (44.5, 7.5), (44.5, 13.8)])
    draw_arrow(axes, [(37.7, 35.5), (44.5, 35.5), (44.5, 29.2)])
    draw_arrow(axes, [(80.7, 25.2), (80.7, 29.2)])
    draw_arrow(axes, [(56.2, 25.2), (56.2, 42), (32.2, 42), (32.2, 39.3)])
    axes.text(55.5, 41, "to the next iteration", size=8, color="0.25", ha="right")
    draw_arrow(axes, [(5.2, 39.2), (5.2, 45), (80.7, 45), (80.7, 41.3)], COLOURS["flow"])
    axes.set(xlim=(-0.5, 86.5), ylim=(46, -1.5))
    axes.set_axis_off()
    return figure


show(
    draw_iteration(steps[1]),
    alt="One iteration as a diagram of small pictures: correlations and flow enter the motion encoder; "
    "its output, the state and the context's share enter the GRU, whose new state gives the change of "
    "the flow",
)
print(credit("motorcycle"))

# %% [markdown]
# The second iteration, from left to right: the look-up and the flow make motion features; the GRU weighs them against its state and the share of the context, which is computed once; the flow head reads the change off the new state. Two lines lead on: the state goes to the next iteration, and the change is added to the flow. A map has many channels, and its picture shows the one that varies most. Flow is drawn in the colours of [lesson 2](2_fields.ipynb): the hue is the direction, the strength of the colour the length; the change has a scale of its own.

# %% [markdown]
# ## Formula
#
# $\mathrm{Conv}[a, b]$ is a convolution, biases included, over the channels of $a$ and $b$ stacked on each other. The **motion encoder** turns correlations $c$ and flow $f$ into motion features $m$, with a ReLU after each convolution, and appends the flow as it is:
#
# $$ m = \big[\,\mathrm{Conv}\,[\,\mathrm{Conv}\,c,\; \mathrm{Conv}\,f\,],\; f\,\big] \tag{1} $$
#
# The **update gate** $z$ and the **reset gate** $r$ are numbers between 0 and 1 for every pixel and channel; $\sigma$ is the logistic function. (The letter $r$ also names the look-up's radius in this chapter; here it is the gate, as in the paper.)
#
# $$ z = \sigma(\mathrm{Conv}_z\,[h, x, m]) \tag{2} $$
#
# $$ r = \sigma(\mathrm{Conv}_r\,[h, x, m]) \tag{3} $$
#
# The **candidate** $q$ is what the state would become if nothing were kept; the reset gate says how much of the old state it may see:
#
# $$ q = \tanh(\mathrm{Conv}_q\,[r \odot h, x, m]) \tag{4} $$
#
# The new state lies between the old one and the candidate, as far from the old one as the update gate says:
#
# $$ h \leftarrow (1 - z) \odot h + z \odot q \tag{5} $$
#
# The **flow head** reads the change off the new state, and the flow moves by it:
#
# $$ \Delta f = \mathrm{Conv}\,\mathrm{ReLU}(\mathrm{Conv}\,h), \qquad f \leftarrow f + \Delta f \tag{6} $$
#
# A convolution is a sum over its input channels, so it comes apart into a sum over the channels of $h$ and $m$, which change, and one over those of $x$, which do not. The second sum, biases included, is the **share** $s$ of the context:
#
# $$ \mathrm{Conv}\,[h, x, m] = \mathrm{Conv}^{hm}[h, m] + s, \qquad s = \mathrm{Conv}^{x}\,x \tag{7} $$
#
# **Convex upsampling** reads a **mask** $M$ of 576 channels off the state. A coarse pixel holds 8 × 8 sub-pixels. For sub-pixel $(u, v)$, its row and column, softmax turns nine of them into **weights** $a$, one for each neighbour $k$, counted row by row from the top left:
#
# $$ a_k(u, v) = \frac{\exp M_{64k + 8u + v}}{\sum_{l=0}^{8} \exp M_{64l + 8u + v}} \tag{8} $$
#
# The **fine flow** $F$ is the weighted mean of the neighbours' vectors, 8 times as long because they are counted in pixels an eighth as large. Coarse pixel $(i, j)$, row and column:
#
# $$ F_{8i+u,\,8j+v} = \sum_{k=0}^{8} a_k(u, v)\; 8\, f_{\,i + \lfloor k/3 \rfloor - 1,\; j + (k \bmod 3) - 1} \tag{9} $$
#
# RAFT-small has no mask and reads the coarse flow bilinearly instead, corner on corner; $(i', j')$ is a fine pixel, $H \times W$ the coarse size:
#
# $$ F_{i',\,j'} = 8\, f\!\left(\frac{H - 1}{8H - 1}\, i',\; \frac{W - 1}{8W - 1}\, j'\right) \tag{10} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $c$ | correlations looked up where the flow points | (B, C, H, W) | `correlations` | correlations c |
# | $f$ | flow so far | (B, 2, H, W), px of the coarse grid | `flow` | flow f |
# | $m$ | motion features | (B, E, H, W) | `motion` | motion m |
# | $x$ | context features of image 1 | (B, X, H, W), 0 or more | `context` | context x |
# | $h$ | hidden state | (B, D, H, W), −1 … 1 | `h` | state h |
# | $s$ | share of the context in the three sums | (B, 3D, H, W) | `share` | share s |
# | $z$ | update gate | (B, D, H, W), 0 … 1 | `z` | update gate z |
# | $r$ | reset gate | (B, D, H, W), 0 … 1 | `r` | reset gate r |
# | $q$ | candidate for the state | (B, D, H, W), −1 … 1 | `q` | candidate q |
# | $\Delta f$ | change of the flow | (B, 2, H, W), px of the coarse grid | `flow_head` | change Δf |
# | $M$ | mask, from which softmax makes weights | (B, 576, H, W) | `mask` | mask M |
# | $a$ | weights of nine neighbours | (B, 1, 9, 64, H, W), sum 1 | `weights` | weights a |
# | $k$ | number of a neighbour, row by row | 0 … 8 | `neighbours` | neighbour k |
# | $u, v$ | row and column of a sub-pixel (not of the flow) | 0 … 7 | `fine` | sub-pixel column v |
# | $F$ | fine flow | (B, 2, 8H, 8W), px of the image | `fine` | fine flow F |
#
# Letters of shapes: $B$ pairs, $C$ correlations, $D$ channels of the state, $E$ of the motion features, $X$ of the context, $S$ of the share, $H$ and $W$ the coarse size, an eighth of the image's.

# %% [markdown]
# ## Code
#
# Every part checks what it is handed with one small function, so that a map of wrong channels or size is named before a convolution stumbles over it.


# %% tags=["promote"]
def _check_map(name: str, value: Tensor, channels: int, like: Tensor | None = None) -> None:
    """Raise for what is no floating-point map of these channels, and of the size of `like`."""
    _check_floating(name, value)
    fits = value.ndim == 4 and value.shape[1] == channels
    if like is None:
        expected = f"(B, {channels}, H, W)"
    else:
        B, _, H, W = like.shape
        expected = f"({B}, {channels}, {H}, {W})"
        fits = fits and value.shape == (B, channels, H, W)
    if not fits:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {expected}")


# %% [markdown]
# ### The motion encoder
#
# Equation 1 has two branches. The correlations of one pixel cover its surroundings already, so their first convolution is 1 × 1 and looks at each pixel alone. The flow of one pixel says little; what counts is how it changes over the neighbourhood, so its first convolution is 7 × 7. A last convolution mixes both. The last two channels are the flow itself, which no convolution has touched, so the GRU can read it as it is.


# %% tags=["promote", "exercise"]
class MotionEncoder(nn.Module):
    """Turn looked-up correlations and the current flow into motion features (equation 1).

    correlations  channels of the look-up, levels · (2 · radius + 1)²
    small         the widths of RAFT-small, which has one convolution fewer on the correlations

    Called with flow (B, 2, H, W), in pixels of its own grid, and correlations (B, C, H, W), it
    returns (B, E, H, W), E = `outputs`: 128, or 82 when small. The flow as it is makes the last
    two channels.

    Raises TypeError or ValueError for a map of another type, number of channels or size.
    Source: Teed and Deng 2020, RAFT (arXiv 2003.12039), section 3.3; the widths are the release's.
    """

    def __init__(self, correlations: int, small: bool = False) -> None:
        super().__init__()
        c1, c2, f1, f2, out = (96, 96, 64, 32, 80) if small else (256, 192, 128, 64, 126)
        self.convc1 = nn.Conv2d(correlations, c1, 1)
        self.convc2 = None if small else nn.Conv2d(c1, c2, 3, padding=1)
        self.convf1 = nn.Conv2d(2, f1, 7, padding=3)
        self.convf2 = nn.Conv2d(f1, f2, 3, padding=1)
        self.conv = nn.Conv2d(c2 + f2, out, 3, padding=1)
        self.outputs = out + 2

    def forward(
        self, flow: Float[Tensor, "B 2 H W"], correlations: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B E H W"]:
        """Return the motion features."""
        _check_map("flow", flow, 2)
        _check_map("correlations", correlations, self.convc1.in_channels, like=flow)
        c = self.convc1(correlations).relu()
        if self.convc2 is not None:
            c = self.convc2(c).relu()
        f = self.convf2(self.convf1(flow).relu()).relu()
        motion = self.conv(torch.cat([c, f], dim=1)).relu()
        return torch.cat([motion, flow], dim=1)


# %% tags=["check"]
torch.manual_seed(0)
for small in (True, False):
    encoder = MotionEncoder(50, small)
    some_flow, some_correlations = torch.randn(2, 2, 5, 7), torch.randn(2, 50, 5, 7)
    features = encoder(some_flow, some_correlations)
    assert features.shape == (2, encoder.outputs, 5, 7), "the features have another shape"
    assert torch.equal(features[:, -2:], some_flow), "the last two channels are the flow as it is"
    assert features[:, :-2].min() == 0, "a ReLU follows the last convolution"
    branches = []
    for v, names in ((some_correlations, ("convc1", "convc2")), (some_flow, ("convf1", "convf2"))):
        for layer in filter(None, (getattr(encoder, name) for name in names)):
            v = layer(v).clamp(min=0)
        branches.append(v)
    expected = encoder.conv(torch.cat(branches, dim=1)).clamp(min=0)
    # The same convolutions: equal up to the rounding of float32 sums of some thousand terms.
    same = torch.allclose(features[:, :-2], expected, atol=1e-5)
    assert same, "not equation 1: a ReLU after each convolution, correlations first in the join"

# %% [markdown]
# Both published sizes, layer by layer: the shape of each weight is (outputs, inputs, height, width).

# %%
for small in (False, True):
    encoder = MotionEncoder(324 if not small else 196, small)
    print("small" if small else "full", "→", encoder.outputs, "channels")
    for name, layer in encoder.named_children():
        print(f"  {name:7}", tuple(layer.weight.shape))

# %% [markdown]
# ### The gated unit, as in the textbook
#
# Equations 2 to 5, line by line: three convolutions over state, context and motion features stacked on each other.


# %%
class TextbookGRU(nn.Module):
    def __init__(self, hidden, context, motion, kernel=(3, 3)):
        super().__init__()
        inputs, padding = hidden + context + motion, (kernel[0] // 2, kernel[1] // 2)
        self.convz = nn.Conv2d(inputs, hidden, kernel, padding=padding)
        self.convr = nn.Conv2d(inputs, hidden, kernel, padding=padding)
        self.convq = nn.Conv2d(inputs, hidden, kernel, padding=padding)

    def forward(self, h, x, m):
        hxm = torch.cat([h, x, m], dim=1)
        z = torch.sigmoid(self.convz(hxm))
        r = torch.sigmoid(self.convr(hxm))
        q = torch.tanh(self.convq(torch.cat([r * h, x, m], dim=1)))
        return (1 - z) * h + z * q


# %% [markdown]
# What do the gates do? With all weights zero, the biases alone set each gate, to the same number everywhere. A closed update gate ($z = 0$) keeps the state; an open one ($z = 1$) replaces it by the candidate.

# %%
tiny = TextbookGRU(hidden=1, context=1, motion=1)
for parameter in tiny.parameters():
    nn.init.zeros_(parameter)
before, nothing = torch.full((1, 1, 1, 1), 0.8), torch.zeros(1, 1, 1, 1)
for bias_z, bias_q in product((-10.0, 0.0, 10.0), (-1.0, 1.0)):
    nn.init.constant_(tiny.convz.bias, bias_z)
    nn.init.constant_(tiny.convq.bias, bias_q)
    z, q = torch.tensor(bias_z).sigmoid(), torch.tensor(bias_q).tanh()
    after = tiny(before, nothing, nothing).item()
    print(f"h = 0.8, q = {q:5.2f}, z = {z:.2f}  →  h = {after:5.2f}")

# %% [markdown]
# Whatever the inputs, the new number lies between the old one and $q$, and $q$ lies between −1 and 1. So a state that begins inside that range, as tanh sees to, never leaves it: the state is one of the paper's bounded activations. It bounds what one iteration can do, however many went before.
#
# ### What is the same at every iteration
#
# Equation 7 as arithmetic, before any layer: a convolution over five channels, two of them "context", is the sum of a convolution over the other three and one over these two.

# %%
stacked, kernel = torch.randn(1, 5, 6, 6), torch.randn(4, 5, 3, 3)
context_columns, other_columns = [1, 2], [0, 3, 4]
share_of_context = F.conv2d(stacked[:, context_columns], kernel[:, context_columns], padding=1)
rest = F.conv2d(stacked[:, other_columns], kernel[:, other_columns], padding=1)
# Sums of 45 terms of order 1 in float32, in another order.
assert torch.allclose(F.conv2d(stacked, kernel, padding=1), rest + share_of_context, atol=1e-4)

# %% [markdown]
# The context is the same at every iteration, so `share` makes its sums once. A second saving: $z$ and $r$ read the same input, so their weights are stacked and one convolution makes both; the candidate has to wait for $r$. `gates` returns all three, which the pictures below use. `torch.lerp(h, q, z)` is equation 5 with one multiplication, $h + z\,(q - h)$.


# %% tags=["promote", "exercise"]
class ConvGRU(nn.Module):
    """A gated recurrent unit whose matrices are convolutions (equations 2 to 5 of the lesson).

    hidden, context, motion  channels of the state and of the two parts of the input
    kernel                   (height, width) of all three convolutions, odd

    A convolution is a sum over its input channels. The context is the same at every iteration, so
    its part of the three sums is made once, by `share`, and handed to every call (equation 7).

    >>> gru = ConvGRU(hidden=8, context=4, motion=6)
    >>> share = gru.share(torch.zeros(1, 4, 5, 7))
    >>> gru(torch.zeros(1, 8, 5, 7), torch.zeros(1, 6, 5, 7), share).shape
    torch.Size([1, 8, 5, 7])

    Raises TypeError or ValueError for a map of another type, number of channels or size.
    Source: Teed and Deng 2020, RAFT (arXiv 2003.12039), equations 3 to 6.
    """

    def __init__(
        self, hidden: int, context: int, motion: int, kernel: tuple[int, int] = (3, 3)
    ) -> None:
        super().__init__()
        if not all(size % 2 for size in kernel):
            raise ValueError(f"kernel is {kernel}; expected odd sizes, which keep a map's size")
        self.hidden, self.context, self.motion = hidden, context, motion
        self.padding = (kernel[0] // 2, kernel[1] // 2)
        inputs = hidden + context + motion
        self.convz = nn.Conv2d(inputs, hidden, kernel, padding=self.padding)
        self.convr = nn.Conv2d(inputs, hidden, kernel, padding=self.padding)
        self.convq = nn.Conv2d(inputs, hidden, kernel, padding=self.padding)

    def share(self, context: Float[Tensor, "B X H W"]) -> Float[Tensor, "B S H W"]:
        """What the context adds to z, r and q, biases included: (B, 3D, H, W), once for a pair."""
        _check_map("context", context, self.context)
        convs = (self.convz, self.convr, self.convq)
        columns = slice(self.hidden, self.hidden + self.context)
        weight = torch.cat([conv.weight[:, columns] for conv in convs])
        bias = torch.cat([conv.bias for conv in convs])
        return F.conv2d(context, weight, bias, padding=self.padding)

    def gates(
        self,
        h: Float[Tensor, "B D H W"],
        motion: Float[Tensor, "B E H W"],
        share: Float[Tensor, "B S H W"],
    ) -> tuple[Float[Tensor, "B D H W"], Float[Tensor, "B D H W"], Float[Tensor, "B D H W"]]:
        """Return update gate z, reset gate r and candidate q (equations 2 to 4)."""
        _check_map("h", h, self.hidden)
        _check_map("motion", motion, self.motion, like=h)
        _check_map("share", share, 3 * self.hidden, like=h)
        share_zr, share_q = share.split([2 * self.hidden, self.hidden], dim=1)
        zr = self._convolve(torch.cat([h, motion], dim=1), self.convz, self.convr) + share_zr
        z, r = zr.sigmoid().chunk(2, dim=1)
        q = self._convolve(torch.cat([r * h, motion], dim=1), self.convq) + share_q
        return z, r, q.tanh()

    def forward(
        self,
        h: Float[Tensor, "B D H W"],
        motion: Float[Tensor, "B E H W"],
        share: Float[Tensor, "B S H W"],
    ) -> Float[Tensor, "B D H W"]:
        """Return the new state (equation 5)."""
        z, _, q = self.gates(h, motion, share)
        return torch.lerp(h, q, z)

    def _convolve(self, x: Tensor, *convs: nn.Conv2d) -> Tensor:
        """Convolve state and motion features as several layers would, in one convolution."""
        weight = torch.cat([conv.weight for conv in convs])
        start, end = self.hidden, self.hidden + self.context
        weight = torch.cat([weight[:, :start], weight[:, end:]], dim=1)
        return F.conv2d(x, weight, padding=self.padding)


# %% tags=["check"]
torch.manual_seed(1)
for kernel in ((3, 3), (1, 5), (5, 1)):
    gru, textbook = ConvGRU(6, 4, 5, kernel), TextbookGRU(6, 4, 5, kernel)
    textbook.load_state_dict(gru.state_dict())
    h, x, m = (torch.randn(2, channels, 7, 9) for channels in (6, 4, 5))
    assert gru.share(x).shape == (2, 18, 7, 9), "the share has three times the state's channels"
    z, r, q = gru.gates(h, m, gru.share(x))
    hxm, rhxm = torch.cat([h, x, m], 1), torch.cat([r * h, x, m], 1)
    # Sums of at most 135 products of order 1 in float32, taken in another order.
    close = {"atol": 1e-5, "rtol": 0}
    assert torch.allclose(z, textbook.convz(hxm).sigmoid(), **close), "z differs from equation 2"
    assert torch.allclose(r, textbook.convr(hxm).sigmoid(), **close), "r differs from equation 3"
    assert torch.allclose(q, textbook.convq(rhxm).tanh(), **close), "q differs from equation 4"
    state = gru(h, m, gru.share(x))
    assert torch.allclose(state, textbook(h, x, m), **close), "the state differs from equation 5"

# %% [markdown]
# ### Counted and measured
#
# For each pixel, output channel and input channel a kernel multiplies once for each of its weights. Over $n$ iterations the textbook does this for all inputs every time, the promoted unit for the context once:

# %%
n = 12
for name, (D, X, E, taps) in {"small": (96, 64, 82, 9), "full": (128, 128, 128, 10)}.items():
    textbook, shared = n * (D + X + E), n * (D + E) + X
    millions = 3 * D * taps * textbook / 1e6
    print(
        f"{name:>5}: {millions:.1f} million a pixel, with the share {shared / textbook:.0%} of it"
    )

# %%
gru, textbook = (kind(96, 64, 82).requires_grad_(False) for kind in (ConvGRU, TextbookGRU))
h, x, m = (torch.randn(1, channels, 16, 32) for channels in (96, 64, 82))


def with_share():
    share = gru.share(x)
    return [gru(h, m, share) for _ in range(n)]


def as_textbook():
    return [textbook(h, x, m) for _ in range(n)]


fastest = [min(timeit.repeat(way, number=1, repeat=5)) for way in (with_share, as_textbook)]
print(f"small: {fastest[0] / fastest[1]:.0%} of the textbook's time")

# %% [markdown]
# The second print is this machine's clock on one run: how near it comes to the count depends on the machine. The results are the same numbers, up to rounding.
#
# ### Five pixels each way: the separable unit
#
# The full model looks further than 3 × 3. A 5 × 5 kernel would cost 25 weights for each pair of channels; two units in a row, one with kernels of 1 × 5 that looks along rows and one with 5 × 1 that looks along columns, cost 5 + 5. (The separable filter of image processing is one 5 × 5 kernel written as a product. Here two whole GRUs follow each other, each with gates of its own, so no single 5 × 5 unit equals them.)


# %% tags=["promote"]
class SeparableConvGRU(nn.Module):
    """Two gated updates, along rows and then along columns: five pixels each way.

    Arguments and calls as in `ConvGRU`; the share has (B, 6D, H, W). Two times five weights reach
    as far as 5 × 5 do. Source: RAFT, section 3.3; horizontal first, as the release has it.
    """

    def __init__(self, hidden: int, context: int, motion: int) -> None:
        super().__init__()
        self.horizontal = ConvGRU(hidden, context, motion, kernel=(1, 5))
        self.vertical = ConvGRU(hidden, context, motion, kernel=(5, 1))

    def share(self, context: Float[Tensor, "B X H W"]) -> Float[Tensor, "B S H W"]:
        """The shares of both updates, one after the other."""
        return torch.cat([self.horizontal.share(context), self.vertical.share(context)], dim=1)

    def forward(
        self,
        h: Float[Tensor, "B D H W"],
        motion: Float[Tensor, "B E H W"],
        share: Float[Tensor, "B S H W"],
    ) -> Float[Tensor, "B D H W"]:
        """Return the new state."""
        _check_map("share", share, 6 * self.horizontal.hidden, like=h)
        across, down = share.chunk(2, dim=1)
        return self.vertical(self.horizontal(h, motion, across), motion, down)


# %%
torch.manual_seed(2)
separable = SeparableConvGRU(16, 4, 16).requires_grad_(False)
h, x, m = (torch.randn(1, channels, 15, 15) for channels in (16, 4, 16))
h = h.tanh()
rows_first = separable(h, m, separable.share(x))
textbooks = []
for half in (separable.horizontal, separable.vertical):
    textbooks.append(TextbookGRU(16, 4, 16, half.convz.kernel_size))
    textbooks[-1].load_state_dict(half.state_dict())
in_turn = textbooks[1](textbooks[0](h, x, m), x, m)
# Two units of sums of 180 products of order 1 in float32.
assert torch.allclose(rows_first, in_turn, atol=1e-5)

# %% [markdown]
# Does the order matter? Run the same two halves the other way round:

# %%
share_across, share_down = separable.share(x).chunk(2, dim=1)
columns_first = separable.horizontal(separable.vertical(h, m, share_down), m, share_across)
swapped = (columns_first - rows_first).abs().mean()
print(
    f"mean change by the swap: {swapped:.3f}; mean size of the state: {rows_first.abs().mean():.3f}"
)

# %% [markdown]
# It does: the second half starts from the first half's result. Published weights need rows first.
#
# How far does one unit see? Follow the gradient of the middle pixel of the new state back to the motion features: a pixel that counts has a slope other than zero. The titles count the weights and the pixels that are seen.


# %%
def reach(unit, side=15):
    """How much each pixel of the motion features counts for the middle of the new state."""
    torch.manual_seed(3)
    h, x, m = (torch.randn(8, channels, side, side) for channels in (16, 4, 16))
    m.requires_grad_()
    middle = unit(h.tanh(), m, unit.share(x))[..., side // 2, side // 2]
    (slope,) = torch.autograd.grad(middle.square().sum(), m)
    return slope.abs().sum(dim=(0, 1))


units = {
    "3 × 3": ConvGRU(16, 4, 16),
    "1 × 5, then 5 × 1": SeparableConvGRU(16, 4, 16),
    "5 × 5": ConvGRU(16, 4, 16, kernel=(5, 5)),
}
reaches = {name: reach(unit) for name, unit in units.items()}


# %%
def draw_reach():
    figure, axes = canvas(1, 3, 7.2, 2.7, sharey=True)
    for each, (name, slope) in zip(axes, reaches.items(), strict=True):
        weights = sum(p.numel() for p in units[name].parameters() if p.ndim == 4)
        logarithm = (slope / slope.max()).clamp(min=1e-6).log10()
        picture = each.imshow(
            logarithm, extent=(-7.5, 7.5, 7.5, -7.5), cmap="gray", vmin=-5, vmax=0
        )
        rows, columns = (int((slope.sum(dim=d) > 0).sum()) for d in (1, 0))
        each.set(title=f"{name}\n{weights:,} weights, sees {rows} × {columns}")
        each.set(xlabel="offset x (px)", xticks=range(-6, 7, 3), yticks=range(-6, 7, 3))
    axes[0].set(ylabel="offset y (px)")
    figure.colorbar(picture, ax=axes, label="slope, power of ten", shrink=0.8)
    return figure


show(
    draw_reach(),
    alt="Three squares of grey: the 3 by 3 unit sees a small square around the middle, the separable "
    "unit and the 5 by 5 unit a larger one",
)

# %% [markdown]
# Light pixels count much, black ones not at all. Each unit sees further than its kernel, since the candidate reads $r \odot h$, and each $r$ has read its own surroundings before. The separable unit sees as far as 5 × 5 kernels do, with weights close in number to those of 3 × 3.

# %% [markdown]
# ### Two heads
#
# Two small networks read the state: one gives the change of the flow, one the mask for upsampling. The flow head's two numbers a pixel pass no tanh, so any length is possible; only the state that it reads is bounded.


# %% tags=["promote"]
class FlowHead(nn.Module):
    """Read the change of the flow off the hidden state (equation 6): two 3 × 3 convolutions.

    hidden  channels of the state
    width   channels in between
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, h: Float[Tensor, "B D H W"]) -> Float[Tensor, "B 2 H W"]:
        """Return the change (B, 2, H, W), in pixels of the coarse grid."""
        return self.conv2(self.conv1(h).relu())


class MaskHead(nn.Module):
    """Read the mask of convex upsampling, 9 numbers for each of 8 × 8 sub-pixels, off the state.

    hidden  channels of the state
    width   channels in between

    The factor ¼ keeps the weights of an untrained network near each other (an author of the paper
    calls it a matter of initialisation); published weights need it.
    """

    def __init__(self, hidden: int, width: int = 256) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 9 * 8 * 8, 1)

    def forward(self, h: Float[Tensor, "B D H W"]) -> Float[Tensor, "B 576 H W"]:
        """Return the mask (B, 576, H, W), in the channel order of `convex_upsample`."""
        return 0.25 * self.conv2(self.conv1(h).relu())


# %% [markdown]
# > **Where the code leaves the paper.** The paper has no factor of ¼; the released code multiplies the mask by it. Asked why ([issue 24](https://github.com/princeton-vl/RAFT/issues/24)), an author answers that it was for the initialisation, has nothing to do with the factor 8 of the upsampling, and can probably go if the model is trained without it. The published weights were trained with it and need it. The paper also writes the mask's shape as 8 × 8 × 9; the code's channels come as 9 × 8 × 8, and an exercise below shows what the other order does.
#
# A mask of zeros makes all nine weights 1/9. The factor brings an untrained head nearer to that:

# %%
torch.manual_seed(4)
head = MaskHead(128).requires_grad_(False)
fresh_mask = head(torch.randn(1, 128, 6, 6).tanh())
for factor, values in (("with ¼", fresh_mask), ("without", 4 * fresh_mask)):
    spread = values.view(9, 64, -1).softmax(dim=0).std(dim=0).mean()
    print(f"{factor:8} weights differ by {spread:.4f} around {1 / 9:.4f}")

# %% [markdown]
# ### Convex upsampling, pixel by pixel
#
# Equations 8 and 9 as loops over coarse pixels, sub-pixels and neighbours. The flow beyond the border counts as zero, with its weight.


# %%
def convex_upsample_loop(flow, mask):
    H, W = flow.shape[1:]
    fine = torch.zeros(2, 8 * H, 8 * W)
    for i, j, u, v in product(range(H), range(W), range(8), range(8)):
        channels = [64 * k + 8 * u + v for k in range(9)]
        a = mask[channels, i, j].softmax(dim=0)
        for k in range(9):
            y, x = i + k // 3 - 1, j + k % 3 - 1
            if 0 <= y < H and 0 <= x < W:
                fine[:, 8 * i + u, 8 * j + v] += a[k] * 8 * flow[:, y, x]
    return fine


# %% [markdown]
# Three steps do the same at once. Splitting the 576 channels into 9 × 64 puts the neighbours on an axis of their own, for softmax. `F.unfold` copies the 3 × 3 neighbourhood of every pixel, zeros beyond the border, channel by channel. And `F.pixel_shuffle` lays 64 numbers of one pixel out as a block of 8 × 8:

# %%
F.pixel_shuffle(torch.arange(4.0).view(1, 4, 1, 1), 2)[0, 0]


# %% tags=["promote", "exercise"]
def convex_upsample(
    flow: Float[Tensor, "B 2 H W"], mask: Float[Tensor, "B 576 H W"]
) -> Float[Tensor, "B 2 8*H 8*W"]:
    """Make each fine vector a weighted mean of nine coarse ones (equations 8 and 9 of the lesson).

    flow     (B, 2, H, W) in pixels of its own grid
    mask     (B, 576, H, W): channel 64·k + 8·u + v belongs to neighbour k of 3 × 3, row by row,
             and to the sub-pixel in row u and column v; softmax over k makes the weights
    returns  (B, 2, 8H, 8W) in pixels of the fine grid

    Beyond the border the flow counts as 0. Raises TypeError for maps of whole numbers, ValueError
    for a shape that does not fit. Source: Teed and Deng 2020, RAFT (arXiv 2003.12039), section 3.3.
    """
    _check_map("flow", flow, 2)
    _check_map("mask", mask, 9 * 8 * 8, like=flow)
    B, _, H, W = flow.shape
    weights = mask.view(B, 1, 9, 64, H, W).softmax(dim=2)
    neighbours = F.unfold(8 * flow, 3, padding=1).view(B, 2, 9, 1, H, W)
    fine = (weights * neighbours).sum(dim=2)
    return F.pixel_shuffle(fine.flatten(1, 2), 8)


# %% tags=["check"]
torch.manual_seed(5)
some_flow, some_mask = torch.randn(2, 2, 3, 4), 2 * torch.randn(2, 576, 3, 4)
fine = convex_upsample(some_flow, some_mask)
assert fine.shape == (2, 2, 24, 32), "eight times as high and as wide"
inside = convex_upsample(torch.ones(1, 2, 3, 4), some_mask[:1])[..., 8:16, 8:24]
# Nine weights that sum to 1, in float32.
assert torch.allclose(inside, torch.tensor(8.0)), "a flow of 1 coarse pixel is 8 fine ones inside"
one_hot = torch.full((1, 9, 64, 3, 4), -100.0)
one_hot[:, 5] = 100
right = convex_upsample(some_flow[:1], one_hot.flatten(1, 2))[..., 8:16, 8:16]
expected = (8 * some_flow[:1, :, 1:2, 2:3]).expand_as(right)
assert torch.allclose(right, expected), "channels 64·5 to 64·5 + 63 belong to the neighbour right"
for b in range(2):
    expected = convex_upsample_loop(some_flow[b], some_mask[b])
    # Nine products of numbers up to about 25 in float32.
    assert torch.allclose(fine[b], expected, atol=1e-5), "sub-pixels or borders are not the loop's"

# %% [markdown]
# ### What a good mask can do
#
# RAFT-small has no mask head. To see what convex upsampling can do, take the true flow of the pair at half its size, average it down to 1/8, and search by gradient descent for a mask that gives the true flow back. A trained head does not know the truth; the picture shows what the form allows.

# %%
larger = stereo_pair(shrink=2)
known = larger.valid[..., :248, :368].float()
true_flow = F.pad(-larger.disparity[..., :248, :368], (0, 0, 0, 0, 0, 1)) * known
coarse = F.avg_pool2d(true_flow, 8) / F.avg_pool2d(known, 8).clamp(min=1 / 64) / 8
print("coarse", tuple(coarse.shape), "fine", tuple(true_flow.shape))


# %%
def fit_mask(coarse, target, known, turns=30):
    """A mask with which convex upsampling comes near a known fine flow."""
    mask = torch.zeros(1, 576, *coarse.shape[2:], requires_grad=True)
    optimiser = torch.optim.Adam([mask], lr=0.5)
    for _ in range(turns):
        optimiser.zero_grad()
        error = ((convex_upsample(coarse, mask) - target).abs() * known).mean()
        error.backward()
        optimiser.step()
    return mask.detach()


mask = fit_mask(coarse, true_flow, known)


# %% [markdown]
# ### Bilinear upsampling, corner on corner
#
# RAFT-small's upsampling has no weights to learn: equation 10 stretches the coarse grid so that its corner pixels lie on the fine ones, and reads it with `sample` of chapter 6.


# %%
def bilinear_upsample_loop(flow):
    H, W = flow.shape[1:]
    fine = torch.zeros(2, 8 * H, 8 * W)
    for y, x in product(range(8 * H), range(8 * W)):
        point = torch.tensor([[x * (W - 1) / (8 * W - 1), y * (H - 1) / (8 * H - 1)]])
        fine[:, y, x] = 8 * sample(flow[None], point)[0]
    return fine


# %% tags=["promote", "exercise"]
def bilinear_upsample(flow: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B 2 8*H 8*W"]:
    """Enlarge a flow eight times, its vectors with it, corner on corner (equation 10).

    flow     (B, 2, H, W) in pixels of its own grid
    returns  (B, 2, 8H, 8W) in pixels of the fine grid

    Raises TypeError for a flow of whole numbers, ValueError for another shape.
    Convention: `align_corners=True`, as the weights of RAFT-small were trained.
    """
    _check_map("flow", flow, 2)
    return 8 * F.interpolate(flow, scale_factor=8, mode="bilinear", align_corners=True)


# %% tags=["check"]
some_flow = torch.randn(1, 2, 3, 4)
fine = bilinear_upsample(some_flow)
assert fine.shape == (1, 2, 24, 32), "eight times as high and as wide"
same = torch.allclose(fine[..., 0, 0], 8 * some_flow[..., 0, 0])
assert same, "at the corner the vector is the coarse one, 8 times as long"
# Four products of numbers up to about 25; the positions are rounded to float32.
same = torch.allclose(fine[0], bilinear_upsample_loop(some_flow[0]), atol=1e-4)
assert same, "places between differ from equation 10 (corner on corner?)"

# %% [markdown]
# The coarse flow, both ways to enlarge it, and the true flow:

# %%
enlarged = {"bilinear": bilinear_upsample(coarse), "convex": convex_upsample(coarse, mask)}
for name, flow in enlarged.items():
    error = (flow - true_flow).norm(dim=1)[known[:, 0] == 1].mean()
    print(f"{name:>8}: mean error {error:.2f} px")


# %% tags=["figure"]
def draw_enlarged():
    blocks = 8 * coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
    fields = {"8 · coarse flow f": blocks, "bilinear": enlarged["bilinear"]}
    fields |= {"fine flow F, convex": enlarged["convex"], "true flow": true_flow}
    figure, axes = canvas(2, 4, 7.4, 2.7)
    for (top, below), (name, flow) in zip(axes.T, fields.items(), strict=True):
        picture = to_picture(flow_to_image(flow * known, max_norm=36))
        top.imshow(picture)
        top.set(title=name, xticks=[], yticks=[])
        top.add_patch(FancyBboxPatch((200, 112), 56, 40, "square,pad=0", fill=False, linewidth=1))
        below.imshow(picture)
        below.set(xlim=(199.5, 255.5), ylim=(151.5, 111.5), xlabel="x (px)")
    axes[1, 0].set(ylabel="y (px)")
    return figure


show(
    draw_enlarged(),
    alt="Flow of the motorcycle: coarse, in blocks; enlarged bilinearly, blurred; by convex "
    "upsampling, with sharp edges; and the true flow; below, the same from close by",
    photo=True,
)

# %% [markdown]
# The second and third picture come from the first, one vector for each 8 × 8 pixels. Bilinear reading mixes foreground and background along every edge into motions that nothing in the scene has; nine chosen weights can leave an edge where it is. (White: no disparity known.)
#
# ### Nine pictures of 8 × 8 weights
#
# Look at the coarse pixel whose neighbours differ most. Each of its 64 sub-pixels has nine weights, so the weights are nine pictures of 8 × 8, drawn here where the neighbours lie.

# %%
spread = F.max_pool2d(coarse[:, 0], 3, 1) + F.max_pool2d(-coarse[:, 0], 3, 1)
row, column = (int(n) + 1 for n in divmod(spread.argmax().item(), spread.shape[-1]))
around = coarse[0, 0, row - 1 : row + 2, column - 1 : column + 2]
one_pixel = mask[0, :, row, column].view(9, 8, 8)


# %% tags=["figure"]
def draw_weights():
    figure = canvas(1, 1, 7.4, 3.4)[0]
    figure.clear()
    left, right = figure.subfigures(1, 2, width_ratios=[3.2, 4])
    ours, theirs = left.subplots(2, 1)
    limits = (8 * around.min().item() - 12, 8 * around.max().item() + 4)
    draw_pixels(ours, 8 * around, number="{:.1f}", limits=limits, fontsize=8)
    ours.set(title="8 · flow f of nine neighbours (px)", xlabel="", ylabel="")
    ours.set(xticks=range(3), xticklabels=[column - 1, column, column + 1])
    ours.set(yticks=range(3), yticklabels=[row - 1, row, row + 1])
    block = (slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
    draw_pixels(theirs, convex_upsample(coarse, mask)[0, 0][block], None, limits)
    theirs.set(title="fine flow F", xlabel="sub-pixel column v", ylabel="sub-pixel row u")
    for k, axes in enumerate(right.subplots(3, 3).flat):
        axes.imshow(one_pixel.softmax(dim=0)[k], vmin=0, vmax=1, cmap="gray")
        axes.set(title=f"neighbour k = {k}", xticks=[], yticks=[])
    right.suptitle("weights a = softmax of mask M  (black 0, white 1)", size=9)
    return figure


show(
    draw_weights(),
    alt="The nine coarse vectors around one pixel, the 8 by 8 fine ones made of them, and nine small "
    "pictures of weights, white where a neighbour is chosen",
)
assert torch.allclose(one_pixel.softmax(dim=0).sum(dim=0), torch.ones(8, 8))  # the nine sum to 1

# %% [markdown]
# Where a small picture is white, that neighbour's vector is copied; grey sub-pixels mix. The white parts of the nine pictures fit together like pieces of a puzzle, since the weights of a sub-pixel add up to 1.
#
# Since the weights are 0 or more, a fine vector stays between those it mixes, whatever the mask, and is never longer than 8 times the longest of them:

# %%
torch.manual_seed(6)
random_flow, random_mask = torch.randn(1, 2, 5, 6), 3 * torch.randn(1, 576, 5, 6)
fine = convex_upsample(random_flow, random_mask)
assert fine.norm(dim=1).max() <= 8 * random_flow.norm(dim=1).max() * (1 + 1e-5)  # float32

# %% [markdown]
# ### Corner on corner, or edge on edge?
#
# The other reading of "eight times larger", `align_corners=False`, lays the outer edges of the two grids on each other instead of the centres of their corner pixels. Let each coarse pixel hold its own number, and read which place each fine pixel looks at:

# %%
numbers = torch.arange(10.0).expand(1, 1, 2, -1)
for choice in (True, False):
    read = F.interpolate(numbers, scale_factor=8, mode="bilinear", align_corners=choice)[0, 0, 0]
    print(f"{choice!s:>5}:", *(f"{place:.2f}" for place in read[::13].tolist()))

# %% [markdown]
# The two agree in the middle and drift apart towards the borders; at the border itself, `False` has nothing left to read and repeats the last pixel. Where the flow is smooth little changes; at an edge of motion the difference is large. The weights of RAFT-small were trained with corner on corner and need it.
#
# ### The block
#
# All parts in one module. The two published models differ in widths, in the unit and in the mask head; the forward pass is the same.


# %% tags=["promote"]
class UpdateBlock(nn.Module):
    """One iteration: motion features, gated update, change of the flow (equations 1 to 6).

    correlations     channels of the look-up
    hidden, context  channels of the state and of the context features
    small            widths and GRU of RAFT-small, which has no mask head either

    >>> block = UpdateBlock(correlations=196, hidden=96, context=64, small=True)
    >>> h, context = torch.zeros(1, 96, 16, 20), torch.zeros(1, 64, 16, 20)
    >>> correlations, flow = torch.zeros(1, 196, 16, 20), torch.zeros(1, 2, 16, 20)
    >>> h, change = block(h, block.gru.share(context), correlations, flow)
    >>> block.upsample(flow + change, h).shape
    torch.Size([1, 2, 128, 160])

    Source: Teed and Deng 2020, RAFT (arXiv 2003.12039), section 3.3.
    """

    def __init__(self, correlations: int, hidden: int, context: int, small: bool = False) -> None:
        super().__init__()
        self.encoder = MotionEncoder(correlations, small)
        gru = ConvGRU if small else SeparableConvGRU
        self.gru = gru(hidden, context, self.encoder.outputs)
        self.flow_head = FlowHead(hidden, 128 if small else 256)
        self.mask = None if small else MaskHead(hidden)

    def forward(
        self,
        h: Float[Tensor, "B D H W"],
        share: Float[Tensor, "B S H W"],
        correlations: Float[Tensor, "B C H W"],
        flow: Float[Tensor, "B 2 H W"],
    ) -> tuple[Float[Tensor, "B D H W"], Float[Tensor, "B 2 H W"]]:
        """Return the new state and the change of the flow, in pixels of the coarse grid.

        share  what `gru.share` makes of the context, once for a pair

        Raises TypeError or ValueError for a map of another type, number of channels or size.
        """
        h = self.gru(h, self.encoder(flow, correlations), share)
        return h, self.flow_head(h)

    def upsample(
        self, flow: Float[Tensor, "B 2 H W"], h: Float[Tensor, "B D H W"]
    ) -> Float[Tensor, "B 2 8*H 8*W"]:
        """Bring a flow to full size, by the weights that the state gives where there are some."""
        return bilinear_upsample(flow) if self.mask is None else convex_upsample(flow, self.mask(h))


# %% [markdown]
# With the trained weights loaded it takes the same steps as the run at the top:

# %%
block = UpdateBlock(len(volume.levels) * (2 * volume.radius + 1) ** 2, 96, 64, small=True)
block.load_state_dict(model.update_block.state_dict())
again = trace(block.requires_grad_(False), 3)
assert torch.equal(again[2].change, steps[2].change)

# %% [markdown]
# Upsampling stands outside `forward`: training wants the full-size flow of every iteration, but a user wants the last one only, and then the mask head runs once. Where do the parameters sit?

# %%
blocks = {"full": UpdateBlock(324, 128, 128), "small": UpdateBlock(196, 96, 64, small=True)}
for name, block in blocks.items():
    parts = {part: sum(p.numel() for p in m.parameters()) for part, m in block.named_children()}
    print(f"{name:>5}:", ", ".join(f"{part} {count:,}" for part, count in parts.items()))

# %% [markdown]
#
# ## On real input
#
# ### The flow settles
#
# The coarse flow of the motorcycle pair after some iterations, and the true flow. Two pixels are marked: one on the motorcycle, near the camera, and one on the wall behind.

# %%
share_known = F.avg_pool2d(pad(pair.valid.float())[0], 8)
truth = F.avg_pool2d(pad(-pair.disparity)[0], 8) / share_known.clamp(min=1 / 64) / 8
truth, seen = torch.cat([truth, torch.zeros_like(truth)], dim=1), share_known[0, 0] > 0.5
flows = [step.f for step in steps]
pixels = {"motorcycle": (10, 14), "wall": (3, 3)}


# %% tags=["figure"]
def draw_flows(shown=(1, 2, 4, 12)):
    figure, axes = canvas(1, len(shown) + 1, 7.4, 1.5)
    fields = {f"flow f after {n}": flows[n] for n in shown}
    fields["true flow"] = truth * seen
    for each, (name, field) in zip(axes, fields.items(), strict=True):
        each.imshow(to_picture(flow_to_image(field, max_norm=3)))
        each.set(title=name, xlabel="x (coarse px)")
        for (y, x), marker in zip(pixels.values(), "os", strict=True):
            each.plot(x, y, marker, color=COLOURS["query"], markeredgecolor="white", markersize=5)
    axes[0].set(ylabel="y (coarse px)")
    return figure


show(
    draw_flows(),
    alt="Five small flow fields: after 1, 2, 4 and 12 iterations, and the true one, each with two "
    "marked pixels",
)

# %% [markdown]
# The first iterations find most of the motion; the later ones sharpen it. What stays wrong is up to the weights: [lesson 8](8_experiments.ipynb) measures it.
#
# ### Gates of two pixels
#
# For both pixels, every number of the two gates, the candidate and the state, iteration by iteration. Channels are sorted by the first pixel's last update gate, the same order in all pictures.


# %% tags=["figure"]
def draw_gates(count=12):
    figure, axes = canvas(2, 5, 7.4, 3.0, width_ratios=[1.3, 1, 1, 1, 1])
    y, x = pixels["motorcycle"]
    order = steps[count - 1].z[0, :, y, x].argsort()
    names = {"z": "update gate z", "r": "reset gate r", "q": "candidate q", "h": "state h"}
    for line, (name, (y, x)), marker in zip(axes, pixels.items(), "os", strict=True):
        moved = [field[0, 0, y, x].item() for field in flows[: count + 1]]
        line[0].plot(moved, color=COLOURS["flow"], marker=marker, markersize=3)
        line[0].axhline(truth[0, 0, y, x], color=COLOURS["muted"], linestyle="--", linewidth=1)
        line[0].set(title=f"flow f, {name}", ylabel="u (coarse px)")
        for each, (key, title) in zip(line[1:], names.items(), strict=True):
            history = torch.stack([getattr(s, key)[0, order, y, x] for s in steps[:count]], dim=1)
            low = 0 if key in "zr" else -1
            each.imshow(history, vmin=low, vmax=1, cmap="gray", aspect="auto")
            each.set(title=title, yticks=[] if key != "z" else [0, 50, 95])
        line[1].set(ylabel="channel, sorted")
    for each in axes[1]:
        each.set(xlabel="iteration")
    return figure


show(
    draw_gates(),
    alt="For two pixels the flow against the iteration, and grey pictures of update gate, reset gate, "
    "candidate and state: channels against iterations, changing at first and then in stripes",
    photo=True,
)

# %% [markdown]
# The dashed line is the true flow. Black is 0 for the gates and −1 for candidate and state; white is 1. At first the pictures change from column to column; then they turn into horizontal stripes: gates, candidate and state come nearly to rest. Channels with a dark update gate keep what they hold; light ones follow the candidate at once.
#
# Which of the three inputs moves the update gate most? The spread of each one's part of the sum, over all pixels and channels:

# %%
gru, last = model.update_block.gru, steps[11]
inputs = {"state h": last.h, "context x": context, "motion m": last.m}
weights = gru.convz.weight.split([gru.hidden, gru.context, gru.motion], dim=1)
for (name, values), weight in zip(inputs.items(), weights, strict=True):
    print(f"{name:>9}: {F.conv2d(values, weight, padding=1).std():.2f}")
print(f"{(context > 0).float().mean():.0%} of the context's numbers are above 0")

# %% [markdown]
# The last line says how much of the context is in use. Where the ReLU lets nothing through, the share is its bias alone: a model whose context is nearly all 0 has not learned to use it.
#
# ### Does it converge?
#
# A sequence of steps has settled when they change nothing any more: $\Delta f = 0$. Watch a hundred iterations, many more than training used.

# %%
lengths = torch.stack([step.change.norm(dim=1).flatten() for step in steps])
errors = torch.cat([(f - truth).norm(dim=1) for f in flows])
size = max(step.new.abs().max() for step in steps)
assert size < 1 + 1e-6  # the blend of two numbers in [−1, 1], rounded
error_of = errors[:, seen].mean(dim=1)
print(f"mean length of the changes: first {lengths[0].mean():.3f}, last {lengths[-1].mean():.3f}")
print(f"mean error: before {error_of[0]:.2f},", end=" ")
print(
    f"least {error_of.min():.2f} after {error_of.argmin()}, after 99 {error_of[-1]:.2f} coarse px"
)


# %% [markdown]
# A small enough step of gradient descent never raises the energy. A learned step promises nothing of the kind; for how many pixels does it shorten the way to the truth?

# %%
for n in (1, 2, 4, 12, 50):
    nearer = (errors[n] < errors[n - 1])[seen].float().mean()
    print(f"iteration {n:2d} brings {nearer:4.0%} of the pixels nearer")


# %%
def draw_convergence():
    figure, (left, right) = canvas(1, 2, 6.6, 2.2)
    ways = {"largest": (lengths.amax(dim=1), "--"), "mean": (lengths.mean(dim=1), "-")}
    for name, (values, style) in ways.items():
        left.semilogy(range(1, 101), values, style, color=COLOURS["flow"], label=name)
    left.set(xlabel="iteration", ylabel="length of Δf (coarse px)")
    left.legend(frameon=False, fontsize=8)
    right.plot(range(100), error_of, color=COLOURS["flow"])
    right.set(xlabel="iterations done", ylabel="error of f (coarse px)", ylim=(0, None))
    return figure


show(
    draw_convergence(),
    alt="The length of the change against the iteration, on a logarithmic scale, and the error against "
    "the number of iterations",
)

# %% [markdown]
# The first changes are the longest, and most of what the iterations give they give early. What follows is up to the weights. The state is bounded, so every single change is; but nothing in the equations makes a hundred small changes cancel, and in one direction they add up. The error on the right says how far these weights let the flow drift. That the flow settles near the truth is learned: the loss of [lesson 7](7_learning.ipynb) asks every iteration of training for it. The paper reports more than 100 iterations without divergence for its weights. Short changes do not prove a small error, so measure both.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `MotionEncoder` | 10 | ●○○ |
# | `ConvGRU` | 25 | ●●● |
# | `convex_upsample` | 15 | ●●○ |
# | `bilinear_upsample` | 5 | ●○○ |
#
# Begin each by handing its maps to `_check_map`, with the channels they should have: *What breaks* shows the sentences that come of it.
#
# <details><summary>Hint for <code>MotionEncoder</code></summary>
#
# Two branches and a join: `convc1`, and `convc2` where there is one, on the correlations; `convf1` and `convf2` on the flow; `conv` on both stacked, correlations first. A ReLU follows each of the five. The flow is appended last, untouched.
#
# </details>
#
# <details><summary>Hint for <code>ConvGRU</code></summary>
#
# Write it with three plain convolutions first: stack the weights' columns for h and m with `torch.cat([weight[:, :start], weight[:, end:]], dim=1)` and use `F.conv2d` without bias, since the share holds the biases. The share itself is one convolution with the columns from `hidden` to `hidden + context` of all three weights, one below the other in the order z, r, q. `_convolve` is a helper; leave it blank if yours needs none.
#
# </details>
#
# <details><summary>Hint for <code>convex_upsample</code></summary>
#
# View the mask as (B, 1, 9, 64, H, W) and take softmax over the 9. `F.unfold(8 * flow, 3, padding=1)` has the shape (B, 2·9, H·W). Multiply, add over the nine, and `F.pixel_shuffle` the rest.
#
# </details>
#
# <details><summary>Hint for <code>bilinear_upsample</code></summary>
#
# `F.interpolate` does the reading; the vectors need a factor of their own.
#
# </details>
#
# **Predict.** A constant flow of 9 fine pixels, a mask of zeros: what is the fine flow inside, at an edge and in a corner?
#
# <details><summary>Hint</summary>
#
# All nine weights are 1/9. How many of the nine neighbours lie outside?
#
# </details>

# %%
ninth = convex_upsample(torch.full((1, 2, 4, 5), 9 / 8), torch.zeros(1, 576, 4, 5))[0, 0]
corner, edge, inside = (round(ninth[y, x].item(), 3) for y, x in ((0, 0), (0, 16), (16, 16)))

# %% [markdown]
# <details><summary>Answer</summary>
#
# `print(inside, edge, corner)`. Inside all nine neighbours count, and the flow is 9. At an edge three of them are zeros, which leaves six ninths, 6; in a corner five are, which leaves 4.
#
# </details>
#
# **Find the bug.** This version reads the mask in the order in which the paper writes its shape, 8 × 8 × 9. It has the right shape, keeps a constant flow, and stays between its neighbours. Which test notices?


# %%
def convex_upsample_wrong(flow, mask):
    B, _, H, W = flow.shape
    weights = mask.view(B, 1, 64, 9, H, W).softmax(dim=3).transpose(2, 3)
    neighbours = F.unfold(8 * flow, 3, padding=1).view(B, 2, 9, 1, H, W)
    return F.pixel_shuffle((weights * neighbours).sum(dim=2).flatten(1, 2), 8)


# %%
wrong = convex_upsample_wrong(coarse, mask)
assert wrong.shape == true_flow.shape
error = (wrong - true_flow).norm(dim=1)[known[:, 0] == 1].mean()
print(f"mean error with the mask read as 8 × 8 × 9: {error:.2f} px")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which neighbour does channel 64·5 belong to in each version? Make a mask of which you know the answer.
#
# </details>
#
# <details><summary>Answer</summary>
#
# A mask that chooses one neighbour: with neighbour 5 for all sub-pixels, every block must copy the vector on its right. Read wrongly, the channels of that mask are spread over sub-pixels and neighbours. Where the flow is constant nothing shows, so a test on constant flow passes. The check of `convex_upsample` has such a mask.
#
# </details>

# %% [markdown]
# ## What breaks
#
# ### Zero flow beyond the border
#
# A camera that turns moves the whole picture by one vector. Convex upsampling pads that flow with zeros, so a mask that looks outside pulls the border towards no motion:

# %%
turning = torch.full((1, 2, 6, 8), 2.0)
even = convex_upsample(turning, torch.zeros(1, 576, 6, 8))[0, 0]
print("along the middle row, one number for each coarse pixel:")
print([round(value, 1) for value in even[24, 4::8].tolist()])
replicated = F.pad(turning, (1, 1, 1, 1), mode="replicate")
kept = convex_upsample(replicated, torch.zeros(1, 576, 8, 10))[..., 8:-8, 8:-8]
assert torch.allclose(kept, torch.tensor(16.0))

# %% [markdown]
# Repeating the border would keep the flow. The released code pads with zeros, and the weights published for it expect zeros; a mask can give the outside no weight, if training teaches it to.
#
# ### Faults that nobody reports
#
# Three faults leave every shape as it is. Two run here for twelve iterations with the trained weights, the third is in the upsampling alone; how far is the flow from the right one?

# %%
swapped, flow_first = (deepcopy(model.update_block) for _ in range(2))
for parameter in swapped.gru.convz.parameters():
    parameter.neg_()  # z becomes 1 − z, since σ(−a) = 1 − σ(a)
# The hook moves the flow from the last two channels to the first two.
flow_first.encoder.register_forward_hook(lambda part, takes, gives: gives.roll(2, dims=1))

for name, faulty in {"z and 1 − z swapped": swapped, "flow first": flow_first}.items():
    last = trace(faulty, 12)[-1]
    distance = 8 * (last.f + last.change - flows[12]).norm(dim=1).mean()
    print(f"{name:>19}: {distance:5.2f} px away")
edges = 8 * F.interpolate(flows[12], scale_factor=8, mode="bilinear", align_corners=False)
distance = (bilinear_upsample(flows[12]) - edges).norm(dim=1)
print(f"align_corners=False: {distance.mean():5.2f} px away, at most {distance.max():.2f}")
print(f"{8 * flows[12].norm(dim=1).mean():.2f} px: the mean length of the right flow")

# %% [markdown]
# A network trained with one of these faults learns around it, and nothing shows. With published weights, only a comparison with known numbers shows the fault: the tests of this module compare one update and both upsamplings with frozen outputs of the released code, and make sure that each of these faults would fail.
#
# ### What the code says to bad input

# %%
with shows_error(ValueError):
    convex_upsample(torch.zeros(1, 2, 4, 5), torch.zeros(1, 64, 4, 5))
with shows_error(ValueError):
    convex_upsample(torch.zeros(1, 2, 4, 5), torch.zeros(1, 576, 4, 6))
with shows_error(TypeError):
    bilinear_upsample(torch.zeros(1, 2, 4, 5, dtype=torch.int64))
with shows_error(ValueError):
    ConvGRU(6, 4, 5, kernel=(2, 2))

# %%
gru = ConvGRU(6, 4, 5)
with shows_error(ValueError):
    gru.share(torch.zeros(1, 5, 7, 9))
with shows_error(ValueError):
    gru(torch.zeros(1, 6, 7, 9), torch.zeros(1, 5, 7, 9), torch.zeros(1, 6, 7, 9))
with shows_error(ValueError):
    UpdateBlock(196, 96, 64, small=True)(
        torch.zeros(1, 96, 8, 8),
        torch.zeros(1, 288, 8, 8),
        torch.zeros(1, 324, 8, 8),
        torch.zeros(1, 2, 8, 8),
    )

# %% [markdown]
# ## Recap
#
# - One iteration reads correlations where the flow points, blends a candidate into a bounded state, and adds the change that the state gives: a learned step of descent, with the same weights every time.
# - A convolution is a sum over channels, so the context's share is made once; a unit along rows and one along columns see as far as 5 × 5, for about the weights of 3 × 3.
# - Every fine vector is a mean of nine coarse ones, with weights that the state chooses: channel $64k + 8u + v$, zeros beyond the border, vectors 8 times as long.
#
# The line goes on in [lesson 6](6_raft.ipynb), where encoders, correlation and this block become the whole model.
