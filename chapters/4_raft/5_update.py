# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 55
#     needs:
#     - 6_bilinear_sampling/3_window
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
# *Before this:* [Windows: one fraction for a whole neighbourhood](../6_bilinear_sampling/3_window.ipynb) (`3_window`). *Time:* 55 minutes, and 55 for the blanks.

# %% [markdown]
# ## Words
#
# Classical methods find flow by **descent**: an energy says how bad a field is, and each step moves the field a little way down its slope. RAFT keeps the shape of that loop and learns the step. One **flow** field $f$ (光流) starts at zero. In each iteration RAFT looks up the **correlations** $c$ around the places where $f$ points, turns both into **motion features** $m$, lets them change a **hidden state** $h$ (隐状态), its memory, and reads a **change** $\Delta f$ off that state. The same weights serve every iteration. The paper says so in section 3.3: the update operator (更新算子) is built to behave like the steps of a first-order optimiser, so its weights are tied, and its activations bounded, which helps the sequence to settle.
#
# The memory is a **gated recurrent unit** (GRU, 门控循环单元) whose matrices are convolutions. It also reads the **context** $x$, features of the first image alone, which say where objects end. At the end, **convex upsampling** makes each vector of the full-size flow a weighted mean of nine coarse ones, with weights that the network chooses, so that an edge of motion can stay an edge.
#
# ### Why one field, and why a light step
#
# Networks before RAFT went from coarse to fine: flow at 1/64 of the size, then a refinement with weights of its own at 1/32, and so on, each stage warping the second image by the flow so far. The paper names three weaknesses of such a cascade (级联): an error of a coarse stage is hard to recover from, a small object that moves fast is easily missed, and training many stages takes very many iterations. How small is small? An object 16 pixels wide, seen at each size:

# %%
for shrink in (64, 32, 16, 8):
    print(f"at 1/{shrink}: {(16 / shrink) ** 2:.2f} pixels")

# %% [markdown]
# At 1/64 the object is a sixteenth of one pixel, and its motion drowns in that of its surroundings. RAFT works at 1/8 from the first iteration to the last, where the object has four pixels, and finds large motions through the coarse levels of the correlation pyramid instead: the field stays fine, only the look-up is coarse. That fixed resolution, with no warping and one set of weights, makes the step light enough to repeat; the paper repeats it more than 100 times without divergence. These are points 1 to 3 of what the notes call new: one field at one resolution, a light step, a convolutional GRU fed by look-ups.

# %% [markdown]
# ## Figure
#
# ### One iteration of a real pair
#
# The pair is the motorcycle at a quarter of its size, 185 × 125 pixels; the weights are the course's own RAFT-small. First what is computed once: the correlation volume, the first state and the context. One convolutional network, the context encoder, makes both from the first image: its channels are split in two, the first part goes through tanh and becomes the state, the second through a ReLU and becomes the context.

# %%
import math
import time
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
print("state", tuple(first.shape), "context", tuple(context.shape))


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
        kept.append(
            SimpleNamespace(c=c, f=f, m=m, h=h, z=z, r=r, q=q, new=new, change=change, s=share)
        )
        h, f = new, f + change
    return kept


steps = trace(model.update_block, 100)


# %% [markdown]
# Each map has many channels, and a picture shows one: the channel that varies most. Flow is drawn in the colours of the wheel of chapter 6: the hue is the direction, the strength the length.


# %%
def thumbnail(values, largest=2.5):
    """A picture of a flow, or of the channel of a map that varies most."""
    if values.shape[1] == 2:
        return to_picture(flow_to_image(values, max_norm=largest))
    channel = values[0, values[0].flatten(1).std(dim=1).argmax()]
    low, high = channel.min(), channel.max()
    return to_picture(255 * (channel - low)[None] / (high - low).clamp(min=1e-6))


def place(axes, values, name, x, y, width=10.5):
    """Draw a map with its name and its measured shape above it."""
    height = width * values.shape[2] / values.shape[3]
    axes.imshow(thumbnail(values), extent=(x, x + width, y + height, y), cmap="gray")
    shape = " × ".join(map(str, values.shape[1:]))
    axes.text(x + width / 2, y - 0.6, f"{name}\n{shape}", ha="center", va="bottom", size=8)


# %%
def module_box(axes, name, x, y, width, height):
    style = {"boxstyle": "round,pad=0,rounding_size=1", "facecolor": "0.92", "edgecolor": "0.4"}
    axes.add_patch(FancyBboxPatch((x, y), width, height, **style))
    axes.text(x + width / 2, y + height / 2, name, ha="center", va="center", size=8)


def arrow(axes, path, colour="0.25"):
    """A line through the points of a path, with a head at its end."""
    for a, b in pairwise(path[:-1]):
        axes.plot(*zip(a, b, strict=True), color=colour, linewidth=1)
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", path[-1], path[-2], arrowprops=style)


# %% tags=["figure"]
def draw_iteration(step):
    figure, axes = canvas(1, 1, 7.4, 4.1)
    for name, values, x, y in (
        ("correlations c", step.c, 0, 12),
        ("flow f", step.f, 0, 29),
        ("state h", step.h, 27, 5),
        ("motion m", step.m, 27, 18),
        ("context x", context, 27, 32),
        ("new state h", step.new, 51, 18),
        ("change Δf", step.change, 75.5, 18),
        ("flow f + Δf", step.f + step.change, 75.5, 34),
    ):
        place(axes, values, name, x, y)
    module_box(axes, "motion\nencoder", 14, 18, 9, 7)
    module_box(axes, "GRU\nz, r, q", 41, 15, 7, 13)
    module_box(axes, "flow\nhead", 65, 18, 7, 7)
    straight = [((11, 16), (13.8, 20)), ((11, 31), (13.8, 23)), ((23, 21.5), (26.8, 21.5))]
    straight += [((38, 9), (40.8, 17)), ((38, 21.5), (40.8, 21.5)), ((38, 35), (40.8, 26))]
    straight += [((48, 21.5), (50.8, 21.5)), ((61.7, 21.5), (64.8, 21.5))]
    straight += [((72, 21.5), (75.3, 21.5)), ((80.7, 25.4), (80.7, 29.2))]
    for path in straight:
        arrow(axes, path)
    arrow(axes, [(58, 14), (58, -0.5), (24.5, -0.5), (24.5, 8.5), (26.7, 8.5)])
    axes.text(59, 1, "to the next iteration", size=8, color="0.25", va="center")
    arrow(axes, [(5, 36.2), (5, 43), (70, 43), (70, 37.5), (75.2, 37.5)], COLOURS["flow"])
    axes.set(xlim=(-0.5, 87), ylim=(44, -1.5))
    axes.set_axis_off()
    return figure


show(
    draw_iteration(steps[2]),
    alt="One iteration as a diagram of small pictures: correlations and flow enter the motion encoder, "
    "its output, the state and the context enter the GRU, whose new state gives the change of the flow",
)
print(credit("motorcycle"))

# %% [markdown]
# Read it from left to right: the look-up and the flow make motion features; the GRU weighs them against its state, with the context beside it; the flow head reads the change off the new state. Two lines lead on: the state to the next iteration, and the flow, to which the change is added.

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
# Equation 1 has two branches. Correlations describe the surroundings of one point, so their first convolution is 1 × 1 and looks at each pixel alone. The flow of one pixel says little; what counts is how it changes over the neighbourhood, so its first convolution is 7 × 7. A third part mixes both. The last two channels are the flow itself, which no convolution has touched: the GRU can read where it is.


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
    assert torch.allclose(features[:, :-2], expected, atol=1e-5), "not equation 1"

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
# What do the gates do? Set all weights to zero and choose the biases, and each gate is the same number everywhere. A closed update gate keeps the state; an open one replaces it by the candidate.

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
# Whatever the inputs, the new number lies between the old one and $q$, and $q$ lies between −1 and 1. So a state that begins inside that range, as tanh sees to, never leaves it: these are the bounded activations of the paper. They bound what one iteration can do, however many went before.
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
# The context is the same at every iteration, so its sum is made once. A second saving: $z$ and $r$ read the same input, so their weights are stacked and one convolution makes both. The candidate has to wait for $r$. The method `gates` hands out all three, which the pictures below use; `torch.lerp(h, q, z)` is equation 5 with one multiplication, $h + z\,(q - h)$.


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
    difference = gru(h, m, gru.share(x)) - textbook(h, x, m)
    # Sums of at most 135 products of order 1 in float32, taken in another order.
    assert difference.abs().max() < 1e-5, f"kernel {kernel} differs from the textbook"
    z, r, q = gru.gates(h, m, gru.share(x))
    assert torch.allclose((1 - z) * h + z * q, textbook(h, x, m), atol=1e-5), "gates: z, r, q"
    assert torch.allclose(r, textbook.convr(torch.cat([h, x, m], 1)).sigmoid(), atol=1e-5), "gate r"

# %% [markdown]
# ### Counted and measured
#
# For each pixel, output channel and input channel a 3 × 3 kernel multiplies nine times. Over $n$ iterations the textbook does this for all inputs every time, the promoted unit for the context once:


# %%
def multiplications(n, hidden, context, motion, taps, shared):
    """Multiplications for each pixel of the three convolutions in n iterations."""
    repeated = hidden + motion + (0 if shared else context)
    return 3 * hidden * taps * (n * repeated + (context if shared else 0))


for name, sizes in {"small": (96, 64, 82, 9), "full": (128, 128, 128, 10)}.items():
    textbook, shared = (multiplications(12, *sizes, shared=choice) for choice in (False, True))
    print(
        f"{name:>5}, 12 iterations: {textbook / 1e6:5.1f} → {shared / 1e6:5.1f} million per pixel"
    )


# %%
def best_seconds(calls, turns=5):
    """The fastest turn of each call, the calls taking turns."""
    best = dict.fromkeys(calls, math.inf)
    for _ in range(turns):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


# %%
def gru_seconds(hidden, context, motion, kernel, n=12):
    """Seconds for n iterations of both units, the share's own time included."""
    gru, textbook = (
        kind(hidden, context, motion, kernel).requires_grad_(False)
        for kind in (ConvGRU, TextbookGRU)
    )
    h, x, m = (torch.randn(1, channels, 16, 32) for channels in (hidden, context, motion))

    def with_share():
        share = gru.share(x)
        return [gru(h, m, share) for _ in range(n)]

    def as_textbook():
        return [textbook(h, x, m) for _ in range(n)]

    return best_seconds({"textbook": as_textbook, "share": with_share}, turns=4)


for name, sizes in {"small": (96, 64, 82, (3, 3)), "full": (128, 128, 128, (1, 5))}.items():
    seconds = gru_seconds(*sizes)
    print(f"{name:>5}: share / textbook = {seconds['share'] / seconds['textbook']:.2f} of the time")

# %% [markdown]
# The count promises a quarter less for RAFT-small and a third less for the full model, whose context is a third of its input; the clock follows it more or less, depending on the machine. The results are the same numbers, up to rounding.
#
# ### Five pixels each way: the separable unit
#
# The full model wants to see further than 3 × 3, and 5 × 5 kernels would cost 25 weights for each pair of channels. Two units in a row, one with kernels of 1 × 5 that looks along rows and one with 5 × 1 that looks along columns, cost 5 + 5. (A separable filter of image processing is one 5 × 5 kernel written as a product; here two whole GRUs follow each other, each with gates of its own, so no single 5 × 5 unit equals them.)


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
# It does: the second half blends over the first half's result, so the same numbers come from different places. Published weights need rows first.
#
# How far does one unit see? Follow the gradient of the middle pixel of the new state back to the motion features: a pixel that counts has a slope other than zero. The titles count the weights, and the pixels that are seen.


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
# Two small networks read the state: one the change of the flow, one the mask for upsampling. The flow head ends in two plain numbers a pixel, without any bound of its own; the state it reads is bounded.


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
# > **Where the code leaves the paper.** The paper has no factor of ¼; the released code multiplies the mask by it. Asked why ([issue 24](https://github.com/princeton-vl/RAFT/issues/24)), an author answers that it matters for the initialisation only, not for the factor 8 of the upsampling, and that a model trained without it can do without. Its published weights were trained with it, so whoever loads them needs it. The paper also writes the mask's shape as 8 × 8 × 9; the code's channels come as 9 × 8 × 8, and an exercise below shows what the other order does.
#
# What the factor does to an untrained head: a mask of zeros makes all nine weights 1/9, and the factor brings a fresh head nearer to that.

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
for b in range(2):
    expected = convex_upsample_loop(some_flow[b], some_mask[b])
    # Nine products of numbers up to about 25 in float32.
    assert torch.allclose(fine[b], expected, atol=1e-5), "differs from the loop"
one_hot = torch.full((1, 9, 64, 3, 4), -100.0)
one_hot[:, 5] = 100
right = convex_upsample(some_flow[:1], one_hot.flatten(1, 2))
assert torch.allclose(right[..., 8:16, 8:16], 8 * some_flow[:1, :, 1:2, 2:3]), "5 is the right one"

# %% [markdown]
# ### What a good mask can do
#
# RAFT-small has no mask head, so take the best mask there is: the true flow of the pair at half its size, averaged down to 1/8, and a mask found by gradient descent so that convex upsampling gives the true flow back. A trained head cannot know the truth and does less well; the picture shows what the form allows.

# %%
larger = stereo_pair(shrink=2)
known = larger.valid[..., :248, :368].float()
true_flow = F.pad(-larger.disparity[..., :248, :368], (0, 0, 0, 0, 0, 1)) * known
coarse = F.avg_pool2d(true_flow, 8) / F.avg_pool2d(known, 8).clamp(min=1 / 64) / 8
print("fine", tuple(true_flow.shape), "coarse", tuple(coarse.shape))


# %%
def fit_mask(coarse, target, known, turns=30):
    """The mask with which convex upsampling comes nearest to a known fine flow."""
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
assert torch.allclose(fine[..., -1, -1], 8 * some_flow[..., -1, -1]), (
    "corner does not lie on corner"
)
# Four products of numbers up to about 25; the positions are rounded to float32.
assert torch.allclose(fine[0], bilinear_upsample_loop(some_flow[0]), atol=1e-4), "not the loop"

# %% [markdown]
# The true flow, and the coarse flow enlarged both ways:


# %% tags=["figure"]
def draw_upsampled():
    fine = {"true flow": true_flow, "bilinear": bilinear_upsample(coarse)}
    fine["fine flow F, best mask"] = convex_upsample(coarse, mask)
    figure, axes = canvas(2, 3, 7.4, 3.7)
    for (top, below), (name, flow) in zip(axes.T, fine.items(), strict=True):
        picture = to_picture(flow_to_image(flow * known, max_norm=36))
        top.imshow(picture)
        top.set(title=name, xticks=[], yticks=[])
        top.add_patch(FancyBboxPatch((200, 112), 56, 40, "square,pad=0", fill=False, linewidth=1))
        below.imshow(picture)
        below.set(xlim=(199.5, 255.5), ylim=(151.5, 111.5), xlabel="x (px)")
    axes[1, 0].set(ylabel="y (px)")
    return figure


show(
    draw_upsampled(),
    alt="True flow of the motorcycle, and the coarse flow enlarged bilinearly, blurred, and by convex "
    "upsampling, with sharp edges; below, the same from close by",
    photo=True,
)
errors = {"bilinear": bilinear_upsample(coarse), "convex": convex_upsample(coarse, mask)}
for name, flow in errors.items():
    error = (flow - true_flow).norm(dim=1)[known[:, 0] == 1].mean()
    print(f"{name:>8}: mean error {error:.2f} px")

# %% [markdown]
# Both rows come from the same coarse flow, one vector for each 8 × 8 pixels. Bilinear reading mixes foreground and background along every edge into motions that nothing in the scene has; nine chosen weights leave an edge where it is, to the pixel. (White: no disparity known.)
#
# ### Nine pictures of 8 × 8 weights
#
# Look at the one coarse pixel whose neighbours differ most. Each of its 64 sub-pixels has nine weights, so the weights are nine pictures of 8 × 8, drawn here where the neighbours lie.

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
# Where a small picture is white, that neighbour's vector is copied; grey sub-pixels mix. The white parts of the nine pictures fit together like pieces of one puzzle, since the weights of a sub-pixel add up to 1.
#
# ### Three properties
#
# A weighted mean with weights of 0 or more stays between the smallest and the largest of what it mixes: no fine vector is longer than 8 times the longest coarse one. A constant flow is kept inside. And one weight of 1 copies a neighbour.

# %%
torch.manual_seed(6)
random_flow, random_mask = torch.randn(1, 2, 5, 6), 3 * torch.randn(1, 576, 5, 6)
fine = convex_upsample(random_flow, random_mask)
padded = F.pad(random_flow, (1, 1, 1, 1))
highest, lowest = F.max_pool2d(padded, 3, 1), -F.max_pool2d(-padded, 3, 1)
inside_hull = (fine <= 8 * highest.repeat_interleave(8, 2).repeat_interleave(8, 3) + 1e-4) & (
    fine >= 8 * lowest.repeat_interleave(8, 2).repeat_interleave(8, 3) - 1e-4
)
assert inside_hull.all()  # 1e-4: rounding of weights that sum to 1 up to 1e-7, times 8 and 9 terms

# %%
still = convex_upsample(torch.full((1, 2, 5, 6), 2.0), random_mask)
assert torch.allclose(still[..., 8:-8, 8:-8], torch.tensor(16.0))
assert (still[..., 0, :] < 16).all()
print(f"a constant flow of 16 px: inside {still[0, 0, 20, 20]:.1f},", end=" ")
print(f"in the top row {still[0, 0, 0].mean():.1f} on average")

# %% [markdown]
# ### By how much does `align_corners` matter?
#
# The other reading of "eight times larger", `align_corners=False`, lays the outer edges of the grids on each other instead of the centres of their corner pixels. Where does each read the coarse grid?

# %%
both = {
    choice: 8 * F.interpolate(coarse, scale_factor=8, mode="bilinear", align_corners=choice)
    for choice in (True, False)
}
ramp = torch.arange(float(coarse.shape[3])).expand(1, 1, 2, -1)
places = {
    choice: F.interpolate(ramp, scale_factor=8, mode="bilinear", align_corners=choice)[0, 0, 0]
    for choice in (True, False)
}
gap = (both[True] - both[False]).norm(dim=1)
shift = 8 * (places[True] - places[False])
print(f"places differ by up to {shift.abs().max():.1f} px in x", end="; ")
print(f"flow by up to {gap.max():.1f} px, {gap.mean():.2f} px on average")


# %%
def draw_align():
    figure, (left, right) = canvas(1, 2, 7.2, 2.5)
    x = torch.arange(places[True].numel())
    left.axhline(0, color=COLOURS["muted"], linewidth=0.8)
    left.plot(x, shift, color=COLOURS["flow"])
    left.set(xlabel="x in the fine grid (px)", ylabel="shift (px)")
    left.set(title="place read: True minus False")
    line, window = 8 * row + 4, slice(8 * column - 24, 8 * column + 32)
    for choice, style in ((True, "-"), (False, "--")):
        values = both[choice][0, 0, line, window]
        right.plot(x[window], values, style, color=COLOURS["flow"], label=str(choice))
    right.set(
        xlabel="x in the fine grid (px)",
        ylabel="flow to the right (px)",
        title=f"row {line} at an edge",
    )
    right.legend(title="align_corners", frameon=False, fontsize=8)
    return figure


show(
    draw_align(),
    alt="The shift between the two ways falls from left to right through zero in the middle; at an edge "
    "the two flows run side by side",
)

# %% [markdown]
# The two agree in the middle and drift apart towards the borders, by nearly half a coarse pixel; in the last half pixel itself, `False` has nothing left to read and repeats the border. On a smooth flow little happens; at an edge of motion the difference is large. The weights of RAFT-small learned with corner on corner.
#
# ### The block
#
# All parts in one module. The sizes of the two published models differ in widths, in the unit and in the mask head; the forward pass is the same three lines.


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
for name, small in (("full", False), ("small", True)):
    one = UpdateBlock(196, 96, 64, True) if small else UpdateBlock(324, 128, 128)
    parts = {key: sum(p.numel() for p in part.parameters()) for key, part in one.named_children()}
    print(f"{name:>5}:", ", ".join(f"{key} {count:,}" for key, count in parts.items()))

# %% [markdown]
# Upsampling stands outside `forward` on purpose: training wants the full-size flow of every iteration, but a user wants the last one only, and then the mask head runs once instead of at each iteration.
#
# ## On real input
#
# ### The flow settles
#
# The coarse flow of the motorcycle pair after some iterations, and the truth. Follow two pixels: one on the motorcycle, near the camera, and one on the wall behind.

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
# The first iterations change most of the picture, the later ones details. How near the result comes to the truth depends on how long the weights were trained; lesson 8 measures that.
#
# ### Gates of two pixels
#
# For both pixels, every number of the two gates, the candidate and the state, iteration by iteration. Channels are sorted by the first pixel's last update gate, the same order in all pictures.


# %% tags=["figure"]
def draw_gates(count=12):
    figure, axes = canvas(2, 5, 7.6, 3.6, width_ratios=[1.3, 1, 1, 1, 1])
    y, x = pixels["motorcycle"]
    order = steps[count - 1].z[0, :, y, x].argsort()
    names = {"z": "update gate z", "r": "reset gate r", "q": "candidate q", "h": "state h"}
    for line, (name, (y, x)), marker in zip(axes, pixels.items(), "os", strict=True):
        moved = [field[0, 0, y, x].item() for field in flows[: count + 1]]
        line[0].plot(moved, color=COLOURS["flow"], marker=marker, markersize=3)
        line[0].axhline(truth[0, 0, y, x], color=COLOURS["muted"], linestyle="--", linewidth=1)
        line[0].set(title=f"flow f, {name}", ylabel="to the right (coarse px)")
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
# Black is 0 for the gates and −1 for candidate and state, white 1; the dashed line is the true flow. The pictures change from column to column at first and turn into horizontal stripes: gates, candidate and state come nearly to rest together. Channels with a dark update gate keep what they hold; light ones follow the candidate at once.
#
# Which of the three parts of the input moves the update gate most? The spread of each part's sum, over all pixels and channels:

# %%
gru, last = model.update_block.gru, steps[11]
kinds = {"state h": (last.h, slice(0, 96)), "context x": (context, slice(96, 160))}
kinds["motion m"] = (last.m, slice(160, None))
for name, (values, columns) in kinds.items():
    part = F.conv2d(values, gru.convz.weight[:, columns], padding=1)
    print(f"{name:>9}: {part.std():.2f}")
print(f"{(context > 0).float().mean():.0%} of the context's numbers are above 0")


# %% tags=["figure"]
def draw_share():
    share = last.s[0].view(3, 96, *last.s.shape[2:])
    figure, axes = canvas(1, 4, 7.4, 1.55)
    axes[0].imshow(to_picture(pad(pair.left)[0]))
    axes[0].set(title="image 1", xlabel="x (px)", ylabel="y (px)")
    for each, values, name in zip(axes[1:], share, "zrq", strict=True):
        each.imshow(values[values.flatten(1).std(dim=1).argmax()], cmap="gray")
        each.set(title=f"share s, for {name}", xlabel="x (coarse px)")
    return figure


show(
    draw_share(),
    alt="The left photograph and one channel of the context's share for each of the three sums",
    photo=True,
)

# %% [markdown]
# One channel each of the share $s$ for both gates and the candidate. It does not depend on the flow: whatever it draws of image 1 biases the unit in the same way at every iteration. The print above says how much of the context is alive: where a ReLU has let nothing through, nothing but the biases and the rim of the zero padding is left to see, and a training that ends there has not learned to use its context.
#
# ### Does it converge?
#
# A step of an optimiser has settled when it changes nothing any more: $\Delta f = 0$. Count on it for a hundred iterations, many more than training used.

# %%
lengths = torch.stack([step.change.norm(dim=1).flatten() for step in steps])
errors = torch.cat([(f - truth).norm(dim=1) for f in flows])
size = max(step.new.abs().max() for step in steps)
print(
    f"mean length of the first change {lengths[0].mean():.3f}, of the last {lengths[-1].mean():.3f}"
)
error_of = errors[:, seen].mean(dim=1)
print(f"error of zero flow {error_of[0]:.2f} coarse px;", end=" ")
print(
    f"least after {error_of.argmin()} iterations, {error_of.min():.2f}; after 99, {error_of[-1]:.2f}"
)
assert size < 1 + 1e-6  # the blend of two numbers in [−1, 1], rounded


# %% [markdown]
# A small enough step of gradient descent lowers the energy each time. A learned step promises nothing of the kind; for how many pixels does it shorten the way to the truth?

# %%
for n in (1, 2, 4, 12, 50):
    nearer = (errors[n] < errors[n - 1])[seen].float().mean()
    print(f"iteration {n:2d} brings {nearer:4.0%} of the pixels nearer")


# %%
def draw_convergence():
    figure, (left, right) = canvas(1, 2, 7.2, 2.5)
    for values, style, name in (
        (lengths.amax(dim=1), "--", "largest"),
        (lengths.mean(dim=1), "-", "mean"),
    ):
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
# The first changes are by far the longest, and most of what the iterations give they give early. What follows is up to the weights. The state is bounded, so a single change is, but nothing in the equations makes a hundred small ones cancel: repeated in one direction, they carry the flow away, and the error on the right says by how much these weights let them. That a sequence settles at the truth is learned, since the loss of lesson 7 asks every iteration of training for it; the paper's weights, trained for much longer than the course's, stay put for more than 100. A length that shrinks and an error that shrinks are two things, so measure both.

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
# Inside all nine count, and the flow is 9. At an edge three neighbours are zeros, which leaves six ninths, 6; in a corner five are, which leaves 4. The cell above computes the three; print them.
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


# %%
def draw_misread():
    figure, axes = canvas(1, 2, 5.2, 2.2)
    pictures = {"9 × 8 × 8, as it was made": convex_upsample(coarse, mask), "8 × 8 × 9": wrong}
    for each, (name, flow) in zip(axes, pictures.items(), strict=True):
        each.imshow(to_picture(flow_to_image(flow * known, max_norm=36)))
        each.set(xlim=(149.5, 289.5), ylim=(190.5, 90.5), title=name, xlabel="x (px)")
    axes[0].set(ylabel="y (px)")
    return figure


show(
    draw_misread(),
    alt="Close view of the motorcycle's flow with sharp edges, and the same with stripes where the "
    "mask was read in the wrong order",
    photo=True,
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which neighbour does channel 64·5 belong to in each version? Make a mask of which you know the answer.
#
# </details>
#
# <details><summary>Answer</summary>
#
# One hot: a mask that chooses neighbour 5 for all sub-pixels must copy the vector on the right. Read wrongly, its channels are spread over sub-pixels and neighbours, and a pattern shows at every edge; where the flow is constant nothing does, so a test on smooth flow passes. The check of `convex_upsample` has such a mask.
#
# </details>
#
# **Measure.** How much of the gain of `ConvGRU` comes from making $z$ and $r$ in one convolution, how much from the share? Time the unit with two calls of `_convolve` in place of the one.
#
# <details><summary>Hint</summary>
#
# `gru._convolve(x, gru.convz)` makes one gate's sum. Give both ways to `best_seconds`.
#
# </details>

# %%
timed = ConvGRU(96, 64, 82).requires_grad_(False)
hm = torch.randn(1, 96 + 82, 32, 64)
turns = {
    "together": lambda: timed._convolve(hm, timed.convz, timed.convr),
    "apart": lambda: [timed._convolve(hm, conv) for conv in (timed.convz, timed.convr)],
}
seconds = best_seconds(turns, turns=9)
print(f"both gates together: {seconds['together'] / seconds['apart']:.2f} of the time apart")

# %% [markdown]
# <details><summary>Answer</summary>
#
# The ratio printed above, for one run: take it several times. The multiplications are the same, so what is saved is a second reading of the input and the overhead of a call. On a CPU that is little, and the ratio scatters around 1 when other programs run; on a GPU that waits for its next call it is more. The share saves multiplications, and its gain stays.
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
# Repeating the border would keep the flow. The released code pads with zeros; a trained mask learns to give the outside no weight, and weights published for this code expect it.
#
# ### Faults that nobody reports
#
# Three changes leave every shape as it is. Two run here for twelve iterations with the trained weights, and the last column says how far the final flow is from the right one; the third changes the upsampling alone.


# %%
class SwappedGates(nn.Module):
    """The unit with z and 1 − z confused: what should be kept is replaced."""

    def __init__(self, gru):
        super().__init__()
        self.gates, self.share, self.gru = gru.gates, gru.share, gru

    def forward(self, h, m, share):
        z, _, q = self.gates(h, m, share)
        return torch.lerp(q, h, z)


class FlowFirst(nn.Module):
    """The motion encoder with the flow before the features instead of behind them."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, flow, correlations):
        return self.encoder(flow, correlations).roll(2, dims=1)


# %%
def final_flow(encoder=None, gru=None):
    whole = model.update_block
    parts = SimpleNamespace(encoder=encoder or whole.encoder, gru=gru or whole.gru)
    parts.flow_head = whole.flow_head
    last = trace(parts, 12)[-1]
    return last.f + last.change


right_flow = flows[12]
print(f"mean length of the right flow: {8 * right_flow.norm(dim=1).mean():5.2f} px")
for name, faulty in {
    "z and 1 − z swapped": final_flow(gru=SwappedGates(model.update_block.gru)),
    "flow before the features": final_flow(encoder=FlowFirst(model.update_block.encoder)),
}.items():
    change = 8 * (faulty - right_flow).norm(dim=1).mean()
    print(f"{name:>24}: differs by {change:5.2f} px on average")

# %%
closed = bilinear_upsample(right_flow)
open_edges = 8 * F.interpolate(right_flow, scale_factor=8, mode="bilinear", align_corners=False)
print(f"align_corners=False: differs by up to {(closed - open_edges).abs().max():.2f} px")

# %% [markdown]
# A network trained with one of these would learn around it and do well; with published weights only a comparison with known numbers shows the fault. The tests of this module compare one update, both upsamplings and each of these faults with frozen outputs of the released code.
#
# ### What the code says to bad input

# %%
from fourfold.kit.notebook import shows_error

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
# - A convolution is a sum over channels, so the part of the context is made once; rows then columns see as far as 5 × 5 for the weights of 3 × 3.
# - Every fine vector is a mean of nine coarse ones, with weights that the state chooses; channel $64k + 8u + v$, zeros beyond the border, vectors 8 times as long.
#
# The line goes on in [lesson 6](6_raft.ipynb), where encoders, correlation and this block become the whole model.
