# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 55
#     needs:
#     - 5_cotracker/4_tokens
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Transformer: along time and across tracks
#
# **After this lesson you can** build CoTracker's transformer, say which tokens each token reads, and show by measured curves why a few virtual tracks let tens of thousands of points be tracked together.
#
# *Before this:* [Tokens](4_tokens.ipynb) (`4_tokens`). *Time:* 55 minutes, and 35 for the blanks.

# %% [markdown]
# ## Words
#
# The tokens of a window form a grid: $N$ tracks (轨迹), each over $S$ frames. Each token $x$ is a vector of width $D$ that describes one point in one frame: where it is thought to be, and how well the video agrees. A point that is hidden in one frame can be told from its other frames and from other points; so the transformer lets tokens read each other, and what a token has read tells how its point should move. It does so by **attention** (注意力): a token sends out a query $q$ (查询), every token that may be read holds a key $k$ (键) and a value $v$ (值), and the reader receives the mean of the values, weighted by how well key and query match. This happens in several heads $h$ (头) at once, each with its own share of the width.
#
# Who may read whom is the whole design. **Along time**, a token reads the tokens of its own track: a row of the grid. **Across tracks**, it would read the tokens of its own frame: a column. Points of one body move together, so a hidden point can learn from its visible neighbours; that is why the paper tracks jointly. But if each of the $N$ points reads all $N$, the work grows with $N^2$. So CoTracker adds $V$ **virtual tracks** (虚拟轨迹), learned and not in the video. Their virtual tokens $u$ gather from the points as their context $c$ (上下文), talk among themselves, and hand out to the points what they found. The work then grows with $N \cdot V$. A mask $M$ (掩码) keeps points that have not appeared yet from being read.

# %% [markdown]
# ## Figure
#
# ### Two pictures of one grid
#
# Six tracks over five frames make a grid of thirty tokens. Which of them does one token read? That can be measured: a token of the input had a part in an output if the gradient of the output with respect to it is not zero. The blocks are those of this lesson, with random weights.

# %%
import math
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fourfold.bilinear_sampling.sampling import _check_floating
from fourfold.cotracker import transformer as transformer_module
from fourfold.cotracker.cotracker import load_cotracker
from fourfold.cotracker.learning import held_out_clips
from fourfold.cotracker.transformer import (
    Attention,
    CrossBlock,
    SelfBlock,
    Transformer,
    across_tracks,
    additive_mask,
    along_time,
)
from fourfold.kit.arguments import whole_number
from fourfold.kit.drawing import COLOURS, canvas, draw_pixels, show
from fourfold.kit.notebook import shows_error
from fourfold.kit.track_picture import draw_trails


# %%
def read_by(block, x, frame, track):
    """Which tokens of x, (1, S, N, D), have a part in what comes out at one frame and track."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(block(x)[0, frame, track].square().sum(), x)
    return gradient[0].abs().sum(dim=-1) > 0


# %%
torch.manual_seed(0)
N, S, V, D = 6, 5, 2, 16
toy = torch.randn(1, S, N, D)
time_block, space_block = SelfBlock(D, heads=2), SelfBlock(D, heads=2)
to_virtual, among_virtual, to_points = (
    kind(D, heads=2) for kind in (CrossBlock, SelfBlock, CrossBlock)
)
virtual = torch.randn(1, V, D).expand(S, -1, -1)


# %%
def one_layer(x):
    """A block along time, then one through virtual tracks."""
    x = along_time(time_block, x)[0]
    return across_tracks(to_virtual, among_virtual, to_points, x, virtual)[0][None]


pictures = {
    "along time": read_by(partial(along_time, time_block), toy, frame=1, track=3),
    "across tracks": read_by(lambda x: space_block(x[0])[None], toy, frame=1, track=3),
    "both, one after the other": read_by(one_layer, toy, frame=1, track=3),
}


# %% tags=["figure"]
def draw_grid(axes, read, title):
    draw_pixels(axes, read.T.float(), number=None, limits=(-0.6, 1.7))
    axes.add_patch(Rectangle((0.5, 2.5), 1, 1, fill=False, ec=COLOURS["query"], lw=2.5))
    axes.set(title=f"{title}\n{int(read.sum())} of {read.numel()} read", xlabel="", ylabel="")


def draw_reads():
    figure, axes = canvas(1, 3, 7.0, 2.9, sharey=True)
    for each, (title, read) in zip(axes, pictures.items(), strict=True):
        draw_grid(each, read, title)
        each.set_xlabel(f"S = {read.shape[0]} frames")
    axes[0].set_ylabel(f"N = {read.shape[1]} tracks")
    axes[0].annotate(
        "token x",
        (1, 3),
        (2.4, 4.6),
        arrowprops={"arrowstyle": "-"},
        bbox={"fc": "white", "pad": 2},
    )
    return figure


show(
    draw_reads(),
    alt="Three copies of a grid of six tracks and five frames: the marked token reads its row, then "
    "its column, then the whole grid",
)

# %% [markdown]
# Light squares are the tokens that the marked one reads. Along time it is its row, across tracks its column; these are two pictures of the same grid. One after the other they reach every token: a track learns from another track's past in one layer, by way of that track's token in the shared frame.
#
# ### Through virtual tracks
#
# Across tracks, let the two virtual tracks stand between the points. Three steps, in each frame by itself; the pictures again are measured, now as matrices, a row for each reader.


# %%
def who_reads(block, x, context=None):
    """Readers by what they read: which tokens of the context have a part in each token of x."""
    rows = []
    for n in range(x.shape[1]):
        leaf = (x if context is None else context).detach().requires_grad_()
        out = block(leaf) if context is None else block(x, leaf)
        (gradient,) = torch.autograd.grad(out[0, n].square().sum(), leaf)
        rows.append(gradient[0].abs().sum(dim=-1) > 0)
    return torch.stack(rows)


points = toy[:, 0]
steps = {
    "1  virtual tokens u\nread context c": who_reads(to_virtual, virtual[:1], points),
    "2  they read\neach other": who_reads(among_virtual, virtual[:1]),
    "3  points\nread them": who_reads(to_points, points, virtual[:1]),
    "in place of:\npoints read each other": who_reads(space_block, points),
}


# %% tags=["figure"]
def draw_steps():
    figure, axes = canvas(1, 4, 7.2, 2.7, width_ratios=[6, 2.6, 2.6, 6])
    for each, (title, read) in zip(axes, steps.items(), strict=True):
        draw_pixels(each, read.float(), number=None, limits=(-0.6, 1.7))
        each.set(title=title, xlabel=f"{read.shape[1]} read", ylabel=f"{read.shape[0]} readers")
        each.set(xticks=[], yticks=[], anchor="N")
    axes[0].set_xlabel(f"N = {N} points")
    axes[0].set_ylabel(f"V = {V} virtual tracks")
    return figure


show(
    draw_steps(),
    alt="A flat, a small square and a tall matrix, beside a large square one with a row and a column "
    "for every point",
)

# %% [markdown]
# All squares are light: every allowed pair is used. What differs is how many there are. Each further point adds a column to the first matrix and a row to the third, $2V$ pairs; to the large one it adds a row **and** a column, and those grow longer with every point that is there.

# %% [markdown]
# ## Formula
#
# A token $x$ reads a context $c$. Three linear layers make queries of the one, keys and values of the other:
#
# $$ q = \operatorname{linear}_q(x), \qquad k = \operatorname{linear}_k(c), \qquad v = \operatorname{linear}_v(c) \tag{1} $$
#
# Their $D$ numbers are cut into $h$ heads, and each head takes a mean of values. Softmax makes weights of the scores, positive and of sum 1; the root keeps the spread of the scores the same at every width, as in chapter 4's correlation:
#
# $$ \operatorname{attention}(x, c) = \operatorname{linear}_o\!\left( \operatorname{softmax}\!\left( \frac{q\, k^\top}{\sqrt{D / h}} + M \right) v \right) \tag{2} $$
#
# A point that has not appeared must not be read: the mask $M$ pushes its score below all others. Where it has, $M$ adds nothing.
#
# $$ M = \begin{cases} 0 & \text{the point is there} \\ -3.4 \cdot 10^{38} & \text{it is not: the lowest finite number} \end{cases} \tag{3} $$
#
# After reading, each token works for itself, in a network of two layers with the **GELU** between, here in its tanh form:
#
# $$ \operatorname{mlp}(x) = \operatorname{linear}_2(g(\operatorname{linear}_1(x))), \qquad g(a) = \tfrac{a}{2} \left( 1 + \tanh\!\left( \sqrt{2 / \pi}\, (a + 0.044715\, a^3) \right) \right) \tag{4} $$
#
# Both are added to what was there, and both see the token brought to mean 0 and variance 1 before (a pre-norm block). The small $\varepsilon$ keeps a token of equal numbers from a division by zero:
#
# $$ \operatorname{norm}(x) = \frac{x - \operatorname{mean}(x)}{\sqrt{\operatorname{var}(x) + \varepsilon}} \tag{5} $$
#
# A block is one of each. In a self block (自注意力) the context is the tokens themselves, $c = x$; in a cross block (交叉注意力) it is others:
#
# $$ \operatorname{block}(x, c) = y + \operatorname{mlp}(\operatorname{norm}(y)), \qquad y = x + \operatorname{attention}(\operatorname{norm}(x), \operatorname{norm}(c)) \tag{6} $$
#
# One layer of the transformer is a block along time, on the $S$ tokens of each track, and then three across tracks, on the tokens of each frame: $N$ of points, $x$, and $V$ virtual ones, $u$.
#
# $$ u \leftarrow \operatorname{block}(u, x), \qquad u \leftarrow \operatorname{block}(u, u), \qquad x \leftarrow \operatorname{block}(x, u) \tag{7} $$
#
# The first and the last of them use the mask. The scores to compute, and with them the work of attention, are
#
# $$ \underbrace{N S^2 + V S^2}_{\text{along time}}, \qquad \underbrace{S\,(2 N V + V^2)}_{\text{across, through virtual tracks}}, \qquad \underbrace{S\, N^2}_{\text{across, all pairs}} \tag{8} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $x$ | token of a point in a frame, what reads | (B, Q, D) | `x` | token x |
# | $c$ | context, what is read | (B, K, D) | `context` | context c |
# | $q$ | query of a reader | (B, Q, D) | `q` | query q |
# | $k$ | key of what is read | (B, K, D) | `k` | key k |
# | $v$ | value of what is read | (B, K, D) | `v` | value v |
# | $h$ | heads, each a share of the width | whole number | `heads` | h = 8 heads |
# | $D$ | width of a token | whole number | `width` | width D = 384 |
# | $M$ | mask, added to the scores | (B, 1, Q, K), 0 or lowest | `mask` | mask M |
# | $g$ | GELU in its tanh form | a number for a number | `gelu` | GELU g |
# | $\varepsilon$ | added to the variance in a norm | 1e-6; 1e-5 for a context | `EPS` | ε = 1e-06 |
# | $N$ | tracks of points | whole number | `N` | N = 6 tracks |
# | $S$ | frames of a window | whole number | `S` | S = 5 frames |
# | $V$ | virtual tracks | whole number | `virtual_tracks` | V = 2 virtual tracks |
# | $u$ | virtual tokens | (B, V, D) | `virtual` | virtual tokens u |
#
# Letters of shapes: $B$ sequences side by side, $Q$ tokens that read, $K$ tokens that are read.

# %% [markdown]
# ## Code
#
# ### Attention, written out
#
# Equation 2 for one sequence, one head after the other and one reader after the other. Each reader scores all keys, turns the scores into weights and takes the mean of the values.


# %%
def attend_loop(q, k, v, heads):
    """q (Q, D), k and v (K, D)."""
    each = q.shape[1] // heads
    result = torch.zeros_like(q)
    for head in range(heads):
        share = slice(head * each, (head + 1) * each)
        for n in range(len(q)):
            scores = torch.stack([q[n, share] @ key / each**0.5 for key in k[:, share]])
            weights = scores.exp() / scores.exp().sum()
            result[n, share] = weights @ v[:, share]
    return result


# %%
q, k, v = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5, 8)
by_hand = attend_loop(q, k, v, heads=2)
tuple(by_hand.shape)

# %% [markdown]
# One reader per row, and in each row a mean of five values. As matrices the same is three lines. We keep this version, too, because it holds the weights in hand, where they can be looked at:


# %%
def weights_of(q, k, heads, mask=None):
    """How much each reader takes of each value: (B, h, Q, K), rows of sum 1."""
    q, k = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (scores if mask is None else scores + mask).softmax(dim=-1)


def attend_written(q, k, v, heads, mask=None):
    weights = weights_of(q, k, heads, mask)
    mixed = weights @ v.unflatten(-1, (heads, -1)).transpose(1, 2)
    return mixed.transpose(1, 2).flatten(2)


# %%
written = attend_written(q[None], k[None], v[None], heads=2)[0]
assert torch.allclose(written, by_hand, atol=1e-6)  # float32, sums of five


# %% tags=["figure"]
def draw_attention():
    figure, axes = canvas(1, 3, 7.0, 1.9, width_ratios=[5, 4, 4])
    panels = (
        ("weights of head 1\nquery q by key k", weights_of(q[None], k[None], 2)[0, 0], "{:.2f}"),
        ("value v of each key,\nthe share of head 1", v[:, :4], "{:.1f}"),
        ("their means,\none for each query", written[:, :4], "{:.1f}"),
    )
    for each, (title, values, number) in zip(axes, panels, strict=True):
        draw_pixels(each, values, number=number, fontsize=7)
        each.set(title=title, xlabel="", ylabel="", xticks=[], yticks=[])
    axes[0].set(xlabel="5 keys", ylabel="3 queries")
    return figure


show(
    draw_attention(),
    alt="A matrix of weights whose rows add up to one, a matrix of values, and their product",
)

# %% [markdown]
# Each row of the left matrix adds up to 1; left times middle is right.
#
# ### Attention, fused
#
# PyTorch's `scaled_dot_product_attention` does softmax and both products in one kernel. The fused kernel works through the keys in blocks and never holds all weights; the costs below will show it. There is one trap: where all of a row is masked, its result is right and its gradient is not, as *What breaks* measures. So with a mask and gradients we write the weights out.


# %% tags=["promote"]
def _mean_values(
    q: Float[Tensor, "B h Q d"],
    k: Float[Tensor, "B h K d"],
    v: Float[Tensor, "B h K d"],
    mask: Tensor | None,
) -> Float[Tensor, "B h Q d"]:
    """Softmax of the scores, times the values, in each head (equation 2 of the lesson)."""
    if mask is None or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # The fused kernel's gradient is K times too large where the mask covers all of a row.
    weights = (q @ k.mT / math.sqrt(q.shape[-1]) + mask).softmax(dim=-1)
    return weights @ v


# %% tags=["promote", "exercise"]
def attend(
    q: Float[Tensor, "B Q D"],
    k: Float[Tensor, "B K D"],
    v: Float[Tensor, "B K D"],
    heads: int,
    mask: Tensor | None = None,
) -> Float[Tensor, "B Q D"]:
    """Take for each query a mean of values, in each head by itself (equation 2 of the lesson).

    q        (B, Q, D), of B sequences that do not meet
    k, v     (B, K, D)
    heads    h, each with D / h numbers side by side
    mask     added to the scores: (B, 1, Q, K), or 1 in place of any of these sizes
    returns  (B, Q, D), before the last linear layer

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.
    """
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    mixed = _mean_values(q, k, v, mask)
    return mixed.transpose(1, 2).flatten(2)


# %% tags=["check"]
torch.manual_seed(0)
some_q, some_k, some_v = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
some_mask = torch.randn(2, 1, 3, 5)
assert attend(some_q, some_k, some_v, 2).shape == (2, 3, 8), "the shape is (B, Q, D), as of q"
for heads in (1, 2, 4):
    for b in range(2):
        expected = attend_loop(some_q[b], some_k[b], some_v[b], heads)
        found = attend(some_q, some_k, some_v, heads)[b]
        # float32, sums of five numbers of order 1
        assert torch.allclose(found, expected, atol=1e-6), f"differs from equation 2, {heads} heads"
masked = attend_written(some_q, some_k, some_v, 2, some_mask)
assert torch.allclose(attend(some_q, some_k, some_v, 2, some_mask), masked, atol=1e-6), "the mask"

# %% [markdown]
# With the linear layers around it, this is the module. The names of the layers are those of the release, so that its weights can be loaded; keys and values come from one layer.


# %% tags=["promote"]
class Attention(nn.Module):
    """Let tokens read a context (equations 1 and 2 of the lesson).

    width   D, of a token
    heads   h, each with D / h numbers of it

    Called with x (B, Q, D), a context (B, K, D), x itself when left out, and a mask that `attend`
    takes, it returns (B, Q, D).

    Raises ValueError for a width that the heads do not divide.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % whole_number("heads", heads, least=1):
            raise ValueError(f"width is {width}; expected a multiple of heads, {heads}")
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None):
        k, v = self.to_kv(x if context is None else context).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(x), k, v, self.heads, mask))


# %% [markdown]
# ### Each token for itself
#
# Attention mixes tokens but treats all of them alike; the network after it gives each token work of its own, four times as wide inside. Its GELU $g$ is a soft step: large numbers pass, very negative ones do not. The exact form uses the error function; the release uses the tanh form (equation 4), and weights learned with one form expect it. Since $(1 + \tanh z) / 2$ is the sigmoid of $2z$, the tanh form is also $a$ times a sigmoid; on a CPU PyTorch has a fast sigmoid and a slow tanh form, so where no gradient is asked for the code takes the sigmoid.


# %% tags=["promote"]
_GELU = 2 * math.sqrt(2 / math.pi)
_NUMBERS = 1 << 18  # 1 MB of float32, which stays in a cache


def _gelu(x: Tensor) -> Tensor:
    """Equation 4's g; on a CPU without gradients it overwrites x, a part at a time.

    There PyTorch's own tanh form takes several times as long as its exact form. As
    (1 + tanh z) / 2 is the sigmoid of 2z, g(a) = a · sigmoid(2 √(2/π) (a + 0.044715 a³)).
    """
    if torch.is_grad_enabled() or not x.is_cpu or x.dtype.itemsize < 4:
        return F.gelu(x, approximate="tanh")
    x, scale = x.contiguous(), x.new_tensor(_GELU)
    for a in x.view(-1).split(_NUMBERS):
        a.mul_(torch.addcmul(scale, a, a, value=0.044715 * _GELU).mul_(a).sigmoid_())
    return x


class MLP(nn.Module):
    """Two linear layers with a GELU between them, in its tanh form (equation 4 of the lesson)."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(_gelu(self.fc1(x)))


# %%
a = torch.linspace(-4, 4, 401, dtype=torch.float64)
by_formula = a / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (a + 0.044715 * a**3)))
assert torch.allclose(F.gelu(a, approximate="tanh"), by_formula, atol=1e-12)  # float64
with torch.no_grad():
    assert torch.allclose(_gelu(a.clone()), by_formula, atol=1e-12)  # as a sigmoid, in place
gap = F.gelu(a) - by_formula
print(f"largest difference of the two forms: {gap.abs().max():.1e}")


# %% [markdown]
# ### Norms, and three small numbers
#
# The blocks bring each token to mean 0 and variance 1 before it is used. The $\varepsilon$ of those norms is 1e-6 and they have no learned scale; the norm of a context has a learned scale and shift, and PyTorch's own 1e-5. Does it matter? Of a token whose numbers spread by far more than $\sqrt{\varepsilon}$ nobody will notice. A quiet token tells:

# %% tags=["promote"]
EPS = 1e-6  # of the norms without a learned scale, as in the release


def _norm(width: int) -> nn.LayerNorm:
    """Equation 5 of the lesson."""
    return nn.LayerNorm(width, eps=EPS, elementwise_affine=False)


# %%
torch.manual_seed(0)
pattern = torch.randn(384, dtype=torch.float64)
spreads = torch.logspace(-5, 0, 26, dtype=torch.float64)


def spread_after(eps):
    return F.layer_norm(spreads[:, None] * pattern, (384,), eps=eps).std(dim=1)


# %% tags=["figure"]
def draw_small():
    figure, axes = canvas(1, 3, 7.2, 2.4)
    axes[0].plot(a, F.gelu(a, approximate="tanh"), color=COLOURS["first"], label="GELU g")
    axes[0].plot(a, a.relu(), "--", color=COLOURS["muted"], lw=1, label="ReLU")
    axes[0].set(xlabel="number in", ylabel="number out")
    axes[1].plot(a, 1e3 * gap, color=COLOURS["bad"])
    axes[1].set(title="exact form − tanh form", xlabel="number in", ylabel="thousandths")
    for eps, ink in ((EPS, "first"), (1e-5, "second")):
        label = f"ε = {eps:.0e}"
        axes[2].loglog(spreads, spread_after(eps), color=COLOURS[ink], label=label)
    axes[2].set(title="a norm of a quiet token", xlabel="spread in", ylabel="spread out")
    for each in axes[::2]:
        each.legend()
    return figure


show(
    draw_small(),
    alt="The GELU beside the ReLU; the difference of its two forms, below a thousandth; and the "
    "spread after a norm, which falls off for quiet tokens, earlier for the larger epsilon",
)

# %% [markdown]
# The two forms of the GELU differ by less than a thousandth, and on the frozen numbers of the release the wrong form moves tracks by about as much, in pixels. The wrong $\varepsilon$ moves them by less than rounding does, so the tests ask the modules for it.
#
# ### Blocks
#
# Equation 6, once with the tokens as their own context and once with others. In a cross block it is the first argument that reads.


# %% tags=["promote"]
class SelfBlock(nn.Module):
    """Tokens of one sequence read each other, then each works for itself (equation 6, c = x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.attn = Attention(width, heads)
        self.mlp = MLP(width)

    def forward(self, x: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """Tokens read those of a context, then each works for itself (equation 6 of the lesson).

    The norm of the context has a learned scale and shift, and PyTorch's ε of 1e-5; the other norms
    have neither, and 1e-6, as in the release.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.norm_context = nn.LayerNorm(width)
        self.cross_attn = Attention(width, heads)
        self.mlp = MLP(width)

    def forward(
        self,
        x: Float[Tensor, "B Q D"],
        context: Float[Tensor, "B K D"],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "B Q D"]:
        x = x + self.cross_attn(self.norm1(x), self.norm_context(context), mask)
        return x + self.mlp(self.norm2(x))


# %% [markdown]
# Neither block knows in which order its tokens stand: nothing in equation 2 depends on a position. Exchange the tokens, and the results are exchanged. (That is why lesson 4 adds time and place to the tokens.) What reads a context does not see its order at all.

# %%
x, context, order = torch.randn(2, 7, 16), torch.randn(2, 9, 16), torch.randperm(7)
other_order = torch.randperm(9)
self_block, cross_block = SelfBlock(16, 4), CrossBlock(16, 4)
with torch.no_grad():
    # float32: the same sums in another order
    assert torch.allclose(self_block(x[:, order]), self_block(x)[:, order], atol=1e-5)
    shuffled = cross_block(x, context[:, other_order])
    assert torch.allclose(shuffled, cross_block(x, context), atol=1e-5)

# %% [markdown]
# ### Along time
#
# The grid has four axes, (B, S, N, D): clips, frames, tracks, numbers. A block takes sequences, (B, Q, D). Along time every track of every clip is a sequence of its own; a loop says it best:


# %%
def along_time_loop(block, x):
    result = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for n in range(x.shape[2]):
            result[b, :, n] = block(x[b, :, n][None])[0]
    return result


# %% [markdown]
# All tracks at once: bring the frames next to the numbers, and count clips and tracks as one axis.


# %% tags=["promote", "exercise"]
def along_time(
    block: Callable[[Tensor], Tensor], x: Float[Tensor, "B S N D"]
) -> Float[Tensor, "B S N D"]:
    """Let the tokens of each track read each other (the first block of a layer).

    block    takes sequences (B, Q, D) that do not meet, and returns as many
    x        (B, S, N, D)
    returns  (B, S, N, D)
    """
    tracks = x.transpose(1, 2)
    return block(tracks.flatten(0, 1)).unflatten(0, tracks.shape[:2]).transpose(1, 2)


# %% tags=["check"]
torch.manual_seed(0)
grid, block = torch.randn(2, 3, 4, 16), SelfBlock(16, 4)
with torch.no_grad():
    found = along_time(block, grid)
    assert found.shape == grid.shape, "the shape stays (B, S, N, D)"
    # float32: the same sums, in batches of another size
    assert torch.allclose(found, along_time_loop(block, grid), atol=1e-5), "not track by track"
    changed = grid.clone()
    changed[:, :, 2] += 1
    others = along_time(block, changed)[:, :, [0, 1, 3]]
    assert torch.allclose(others, found[:, :, [0, 1, 3]], atol=1e-6), "tracks must not meet here"

# %% [markdown]
# ### Across tracks, all pairs
#
# The naive way across tracks is a self block on the tokens of each frame. It is what the first version of the paper did, and it works for a few hundred points.


# %%
def across_all_pairs(block, x):
    return block(x.flatten(0, 1)).view(x.shape)


with torch.no_grad():
    print(tuple(across_all_pairs(block, grid).shape), "from", grid.shape[2] ** 2, "pairs a frame")

# %% [markdown]
# ### Across tracks, through virtual ones
#
# Equation 7: gather, talk, hand out. Frames are sequences side by side here, so the first axis counts the frames of all clips. The two masks come in a moment.


# %% tags=["promote", "exercise"]
def across_tracks(
    virtual2point: Callable,
    virtual2virtual: Callable,
    point2virtual: Callable,
    points: Float[Tensor, "F N D"],
    virtual: Float[Tensor, "F V D"],
    over_keys: Tensor | None = None,
    over_queries: Tensor | None = None,
) -> tuple[Float[Tensor, "F N D"], Float[Tensor, "F V D"]]:
    """Let the points of each frame exchange through virtual tracks (equation 7 of the lesson).

    virtual2point    CrossBlock by which virtual tokens read points, with the mask over_keys
    virtual2virtual  SelfBlock of virtual tokens
    point2virtual    CrossBlock by which points read virtual tokens, with the mask over_queries
    points           (F, N, D), F frames that do not meet
    virtual          (F, V, D)
    returns          the new points and the new virtual tokens, in the same shapes

    The names are those of the release: who reads comes first. Source: Karaev et al. 2023
    (arXiv 2307.07635), section 3, virtual tracks.
    """
    virtual = virtual2point(virtual, points, over_keys)
    virtual = virtual2virtual(virtual)
    points = point2virtual(points, virtual, over_queries)
    return points, virtual


# %% tags=["check"]
def logged(name):
    def block(x, context=None, mask=None):
        log.append((name, x, context, mask))
        return x + 1

    return block


log, names = [], ("gather", "talk", "hand out")
some_points, some_virtual = torch.zeros(2, 5, 4), torch.zeros(2, 3, 4)
new_points, new_virtual = across_tracks(*map(logged, names), some_points, some_virtual, "K", "Q")
assert [entry[0] for entry in log] == list(names), "virtual2point, then virtual2virtual, then back"
assert log[0][1] is some_virtual and log[0][2] is some_points, "virtual tokens read the points"
assert torch.equal(log[1][1], some_virtual + 1), "then each other, with what they have read"
assert log[2][1] is some_points and log[2][2] is new_virtual, "points read the new virtual tokens"
assert (log[0][3], log[2][3]) == ("K", "Q"), "the first and the last block take a mask"
assert torch.equal(new_points, some_points + 1) and torch.equal(new_virtual, some_virtual + 2)

# %% [markdown]
# How much less is it? Count the scores of equation 8 for the release's numbers. One layer, a window of 8 frames, 64 virtual tracks:

# %% tags=["nbval-check-output"]
for N in (64, 128, 1000, 10_000, 265 * 265):
    pairs, through = 8 * N**2, 8 * (2 * N * 64 + 64**2)
    ratio = pairs / through
    print(f"N = {N:6,}: all pairs {pairs:14,}, through virtual {through:11,}, ratio {ratio:6.1f}")

# %% [markdown]
# All pairs are cheaper until there are some 2.4 times as many points as virtual tracks: $N^2 = 2NV + V^2$ gives $N = (1 + \sqrt 2)\, V$. The last line is the 70 thousand points of the paper's abstract, as a square grid.
#
# ### The mask
#
# A window holds points whose query comes later; their tokens describe nothing yet. They must not be read by virtual tracks, and they are not to read either. The release adds the lowest finite number to their scores. Why not $-\infty$?

# %%
scores = torch.tensor([[1.0, 0, 2], [1, 0, 2], [1, 0, 2]])
there = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
masks = {
    "−∞": torch.zeros(3, 3).masked_fill(~there, -math.inf),
    "lowest finite": torch.zeros(3, 3).masked_fill(~there, torch.finfo(torch.float32).min),
}
weights = {name: (scores + mask).softmax(dim=-1) for name, mask in masks.items()}


# %% tags=["figure"]
def draw_masks():
    figure, axes = canvas(1, 3, 6.6, 2.1)
    draw_pixels(axes[0], there.float(), number=None, limits=(-0.6, 1.7))
    axes[0].set(title="mask M\ndark: not there")
    for each, (name, values) in zip(axes[1:], weights.items(), strict=True):
        draw_pixels(each, values, number="{:.2f}", limits=(-0.5, 1.1))
        each.set_title(f"weights, M of\n{name}")
    for n in range(3):
        axes[1].text(n, 2, "NaN", ha="center", va="center", color=COLOURS["bad"], size=9)
    for each in axes:
        each.set(xlabel="what is read", ylabel="", xticks=[], yticks=[])
    axes[0].set_ylabel("readers")
    return figure


show(
    draw_masks(),
    alt="Three rows of weights: without a mask, with one of three masked, and with all masked, where "
    "minus infinity gives NaN and the lowest number gives thirds",
)

# %% [markdown]
# In the middle row both do what is wanted. In the last row all are masked, as in a window that begins before the first query. Softmax subtracts the largest score first: $-\infty - (-\infty)$ is not a number, and a NaN that enters a virtual track reaches every point. With the lowest finite number the scores vanish beside it, all three become the same number, and the weights become equal. Nothing useful is read then, but nothing breaks.


# %% tags=["promote", "exercise"]
def additive_mask(
    active: Bool[Tensor, "*B N"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*B N"]:
    """Make the number that is added to the scores of each token (equation 3 of the lesson).

    active   True for tokens that count
    dtype    of the scores
    returns  0 for tokens that count, the lowest finite number of the dtype for others

    It leaves others no weight; where none counts all weigh the same, while −∞ would give NaN.
    """
    mask = torch.zeros(active.shape, dtype=dtype, device=active.device)
    lowest = torch.finfo(dtype).min
    return mask.masked_fill(~active, lowest)


# %% tags=["check"]
some = torch.tensor([[True, False, True], [False, False, False]])
mask = additive_mask(some)
assert mask.shape == some.shape and mask.dtype == torch.float32, "same shape, float32 by default"
assert mask[0].tolist() == [0, torch.finfo(torch.float32).min, 0], "0 or the lowest finite number"
thirds = (torch.randn(3) + mask[1]).softmax(dim=-1)
assert torch.allclose(thirds, torch.full((3,), 1 / 3)), "a row fully masked becomes uniform"
assert additive_mask(some, torch.float16).dtype == torch.float16, "the dtype that is asked for"
assert additive_mask(some, torch.float16).isfinite().all(), "finite in half precision too"

# %% [markdown]
# The mask is a row per frame, one number for each point. Where virtual tokens read points, it belongs to the **keys**: (F, 1, 1, N). Where points read virtual tokens, it belongs to the **queries**, (F, 1, N, 1): all scores of a point that is not there fall together, so its weights become equal. Which axis is meant is said by the call, never guessed from a size; *What breaks* shows why.


# %% tags=["promote"]
def _masks(
    active: Bool[Tensor, "F N"] | None, dtype: torch.dtype, confused: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The masks over_keys and over_queries of `across_tracks`; confused, as the release's are."""
    if active is None:
        return None, None
    mask = additive_mask(active, dtype)
    over_keys, over_queries = mask[:, None, None, :], mask[:, None, :, None]
    return over_queries if confused else over_keys, over_queries


# %% [markdown]
# ### In parts
#
# With gradients, all that a block computes is kept, and memory grows with it. Without, nothing need be kept: the network between has four times the width, and it can work on a few thousand tokens at a time. Along time, tracks do not meet; where points read virtual tokens, points do not meet; and frames never meet across tracks. Only where virtual tokens read points are the keys and values of all points of a frame needed at once. So the parts below hold whole tracks, or points, or frames, and each writes its new tokens where the old ones were.


# %% tags=["promote"]
_TOKENS = {"cpu": 2048}  # worked on at once: their 1536 numbers each in the MLP are 12 MB
_TOKENS_ELSEWHERE = 65_536


def _together(x: Tensor, axis: int) -> int:
    """How many slices along an axis are worked on at once: all of them where gradients are kept."""
    if torch.is_grad_enabled():
        return x.shape[axis]
    each = math.prod(x.shape[:-1]) // x.shape[axis]
    return max(1, _TOKENS.get(x.device.type, _TOKENS_ELSEWHERE) // each)


def _all_tracks(block: nn.Module, x: Float[Tensor, "B S N D"]) -> Float[Tensor, "B S N D"]:
    """`along_time`; without gradients a few tracks at a time, and in the memory of x."""
    if torch.is_grad_enabled():
        return along_time(block, x)
    for part in x.split(_together(x, 2), dim=2):
        part.copy_(along_time(block, part))
    return x


def _hand_out(
    block: nn.Module,
    points: Float[Tensor, "F N D"],
    virtual: Float[Tensor, "F V D"],
    mask: Tensor | None,
) -> Float[Tensor, "F N D"]:
    """The block point2virtual; without gradients a few points at a time."""
    parts = points.split(_together(points, 1), dim=1)
    if len(parts) == 1:
        return block(points, virtual, mask)
    masks = [None] * len(parts) if mask is None else mask.split(parts[0].shape[1], dim=2)
    return torch.cat([block(x, virtual, m) for x, m in zip(parts, masks, strict=True)], dim=1)


# %% tags=["promote"]
def _all_frames(
    blocks: Sequence[nn.Module],
    points: Float[Tensor, "B S N D"],
    virtual: Float[Tensor, "B S V D"],
    active: Bool[Tensor, "B S N"] | None,
    confused: bool,
) -> tuple[Float[Tensor, "B S N D"], Float[Tensor, "B S V D"]]:
    """`across_tracks`; without gradients a few frames at a time, and in the memory of points."""
    virtual2point, virtual2virtual, point2virtual = blocks
    blocks = virtual2point, virtual2virtual, partial(_hand_out, point2virtual)

    def across(frames: slice) -> tuple[Tensor, Tensor]:
        here = None if active is None else active[:, frames].flatten(0, 1)
        x, u = (tokens[:, frames].flatten(0, 1) for tokens in (points, virtual))
        new = across_tracks(*blocks, x, u, *_masks(here, x.dtype, confused))
        return tuple(tokens.unflatten(0, (len(points), -1)) for tokens in new)

    if torch.is_grad_enabled():
        return across(slice(None))
    told, step = [], _together(points, 1)
    for first in range(0, points.shape[1], step):
        frames = slice(first, first + step)
        points[:, frames], new = across(frames)
        told.append(new)
    return points, torch.cat(told, dim=1)


# %% [markdown]
# ### The transformer
#
# A linear layer brings the tokens to width $D$, layers alternate as in equation 7, and a last linear layer, the head, says for each token how its point and its features should change. The virtual tracks begin as learned numbers, the same in each frame. So the first block along time would see, in each virtual track, $S$ equal tokens, whose mean is that token again: one of them is enough, and it is copied to all frames when the points come in.
#
# Version 3 asks for two more numbers, visibility and confidence, from a head of their own.


# %% tags=["promote"]
def _check_input(inputs: int, tokens: Tensor, active: Tensor | None) -> None:
    _check_floating("tokens", tokens)
    shape = tuple(tokens.shape)
    if len(shape) != 4 or shape[3] != inputs or 0 in shape:
        raise ValueError(f"tokens has shape {shape}; expected (B, N, S, {inputs}), none of them 0")
    if active is None:
        return
    B, N, S, _ = shape
    if active.dtype != torch.bool:
        raise TypeError(f"active is of {active.dtype}; expected torch.bool")
    if tuple(active.shape) != (B, S, N):
        raise ValueError(f"active has shape {tuple(active.shape)}; expected (B, S, N), {(B, S, N)}")


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)


def _blocks(block: type[nn.Module], depth: int, width: int, heads: int) -> nn.ModuleList:
    return nn.ModuleList(block(width, heads) for _ in range(depth))


# %% tags=["promote"]
class Transformer(nn.Module):
    """Attention along time and, through virtual tracks, across points (equation 7 of the lesson).

    inputs, outputs  widths of a token that comes in, and of what comes out for it
    width, heads     D and h inside
    depth            layers, each a block along time and three across tracks
    virtual_tracks   V, tokens of each frame that all points of the frame share
    certainty        two more outputs, from a head of their own, as in version 3
    by_size          an attribute, False: read the mask as the release does, which takes that of
                     points for one of virtual tracks where there are as many; for comparison only

    Called with tokens (B, N, S, inputs) and, where some points are not there yet, active (B, S, N),
    it returns (B, N, S, outputs). `space = False` leaves the blocks across tracks out.

    Time costs O(N·S²) scores, space O(N·V·S) instead of O(N²·S) (equation 8). Without gradients the
    points are worked on in parts, in place: memory grows by 4·D·S bytes a point for its tokens, and
    by about 20·D for the keys and values of one frame (float32), beside input and output.

    Raises ValueError for sizes that are no whole numbers of 1 or more, a width that the heads do
    not divide, and tokens or a mask of another shape; TypeError for those of another type.
    Source: Karaev et al. 2023, CoTracker (arXiv 2307.07635), section 3, and its release.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 384,
        heads: int = 8,
        depth: int = 6,
        virtual_tracks: int = 64,
        certainty: bool = False,
    ) -> None:
        super().__init__()
        self.space, self.by_size = True, False
        depth = whole_number("depth", depth, least=1)
        V = whole_number("virtual_tracks", virtual_tracks, least=1)
        self.input_transform = nn.Linear(inputs, width)
        self.virtual_tracks = nn.Parameter(torch.randn(1, V, 1, width))
        self.time_blocks = _blocks(SelfBlock, depth, width, heads)
        self.space_virtual2point_blocks = _blocks(CrossBlock, depth, width, heads)
        self.space_virtual_blocks = _blocks(SelfBlock, depth, width, heads)
        self.space_point2virtual_blocks = _blocks(CrossBlock, depth, width, heads)
        self.flow_head = nn.Linear(width, outputs)
        self.vis_conf_head = nn.Linear(width, 2) if certainty else None
        self.apply(_initialise)
        for head in self._heads():  # At first the points stay nearly where they are.
            nn.init.trunc_normal_(head.weight, std=0.001)

    def forward(
        self, tokens: Float[Tensor, "B N S I"], active: Bool[Tensor, "B S N"] | None = None
    ) -> Float[Tensor, "B N S O"]:
        _check_input(self.input_transform.in_features, tokens, active)
        (B, N, S, _), V = tokens.shape, self.virtual_tracks.shape[1]
        points = self.input_transform(tokens).transpose(1, 2)
        virtual = self.virtual_tracks.transpose(1, 2)  # one frame, as long as all are alike
        for time_block, *space_blocks in self._layers():
            points = _all_tracks(time_block, points)
            if self.space:
                virtual = along_time(time_block, virtual).expand(B, S, -1, -1)
                confused = self.by_size and N == V
                points, virtual = _all_frames(space_blocks, points, virtual, active, confused)
        points = points.transpose(1, 2)
        change = [head(points) for head in self._heads()]
        return change[0] if len(change) == 1 else torch.cat(change, dim=-1)

    def _layers(self):
        across = self.space_virtual2point_blocks, self.space_virtual_blocks
        return zip(self.time_blocks, *across, self.space_point2virtual_blocks, strict=True)

    def _heads(self) -> list[nn.Linear]:
        return [head for head in (self.flow_head, self.vis_conf_head) if head is not None]


# %% [markdown]
# Check it against equation 7 without any of that: blocks on slices, virtual tracks in all frames from the start, all points at once.


# %%
def transformer_plain(model, tokens, active):
    x = model.input_transform(tokens).transpose(1, 2)
    u = model.virtual_tracks.transpose(1, 2).expand(len(x), x.shape[1], -1, -1)
    mask = additive_mask(active)
    for time_block, *space_blocks in model._layers():
        x, u = along_time_loop(time_block, x), along_time_loop(time_block, u)
        frames = [
            across_tracks(
                *space_blocks, x[:, s], u[:, s], mask[:, s, None, None], mask[:, s, None, :, None]
            )
            for s in range(x.shape[1])
        ]
        x, u = (torch.stack(both, dim=1) for both in zip(*frames, strict=True))
    return model.flow_head(x.transpose(1, 2))


# %%
torch.manual_seed(0)
small = Transformer(inputs=20, outputs=7, width=32, heads=4, depth=2, virtual_tracks=5)
nn.init.normal_(small.flow_head.weight)
tokens, active = torch.randn(2, 9, 4, 20), torch.rand(2, 4, 9) > 0.3
with_gradients = small(tokens, active)
with torch.no_grad():
    plain, in_parts = transformer_plain(small, tokens, active), small(tokens, active)
for found in (with_gradients, in_parts):
    # float32 through eight blocks
    assert (found - plain).abs().max() < 1e-5 * plain.abs().max(), "differs from equation 7"
tuple(in_parts.shape)

# %% [markdown]
# Exchange the points and the results are exchanged. And with `space` off, each track is alone: change one and no other moves.

# %%
order = torch.randperm(9)
with torch.no_grad():
    moved = small(tokens[:, order], active[:, :, order])
    assert (moved - in_parts[:, order]).abs().max() < 1e-5 * plain.abs().max()
    changed = tokens.clone()
    changed[:, 0] += 1
    for small.space in (True, False):
        change = (small(changed) - small(tokens))[:, 1:].abs().max() / plain.abs().max()
        print(f"space {small.space!s:>5}: the other tracks change by {change:.1e} of the largest")
small.space = True

# %% [markdown]
# ### Cost, counted and measured
#
# A layer across tracks at the size of the release. First count: which scores does it compute? A hook on each attention writes down how many read how many, in how many heads.


# %%
def scores_of(call, *modules):
    """The heads, readers and read tokens of each attention, in one frame."""
    seen = []

    def note(module, arguments):
        x, context = arguments[0], arguments[1] if len(arguments) > 1 else arguments[0]
        seen.append((module.heads, x.shape[1], context.shape[1]))

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    call()
    for hook in hooks:
        hook.remove()
    return seen


# %%
torch.manual_seed(0)
width, heads, frames, V = 384, 8, 8, 64
gather, talk, hand_out = (kind(width, heads) for kind in (CrossBlock, SelfBlock, CrossBlock))
pairs_block = SelfBlock(width, heads)
with torch.no_grad():
    x, u = torch.randn(1, 400, width), torch.randn(1, V, width)
    modules = gather.cross_attn, talk.attn, hand_out.cross_attn
    through = scores_of(lambda: across_tracks(gather, talk, hand_out, x, u), *modules)
    all_pairs = scores_of(lambda: pairs_block(x), pairs_block.attn)


# %% tags=["figure"]
def draw_scores():
    figure, axes = canvas(1, 1, 6.6, 3.0)
    left = 0
    names = ("u read x", "u read u", "x read u", "x read x: all pairs")
    inks = ("first", "first", "first", "bad")
    for name, (_, readers, read), ink in zip(names, through + all_pairs, inks, strict=True):
        axes.add_patch(Rectangle((left, 0), read, readers, fc=COLOURS[ink], alpha=0.75))
        label = f"{name}\n{readers} × {read}"
        axes.text(left + read / 2, -15, label, ha="center", va="bottom", size=8)
        left += read + 90
    axes.set(xlim=(-10, left - 80), ylim=(410, -70), aspect="equal")
    axes.set_axis_off()
    axes.set_title(f"scores of one frame, to scale: h = {heads} heads, width D = {width}")
    return figure


show(
    draw_scores(),
    alt="A flat rectangle, a small square and a tall rectangle beside a large square, all drawn to "
    "scale for four hundred points and sixty-four virtual tracks",
)

# %% [markdown]
# Now measure. Time is the clock's. Memory is that of all tensors alive at once, at its peak; a mode of PyTorch sees each new tensor and is told when its memory is freed.


# %%
class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside a `with`, while they live."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.note(value.untyped_storage())
        return result

    def note(self, storage):
        address, size = storage.data_ptr(), storage.nbytes()
        if address and address not in self.known:
            self.known.add(address)
            self.now, self.peak = self.now + size, max(self.peak, self.now + size)
            weakref.finalize(storage, self.free, address, size)

    def free(self, address, size):
        self.known.discard(address)
        self.now -= size


# %% [markdown]
# Four ways across tracks, all with the same layers around the scores: all pairs with the weights written out, as in equation 2; all pairs fused; through virtual tracks; the same in parts, as the module does it. Points stand in 8 frames.


# %%
def written_out(block, x):
    """A self block whose attention holds all weights."""
    normed = block.norm1(x)
    k, v = block.attn.to_kv(normed).chunk(2, dim=-1)
    x = x + block.attn.to_out(attend_written(block.attn.to_q(normed), k, v, block.attn.heads))
    return x + block.mlp(block.norm2(x))


def through_virtual(x):
    return across_tracks(gather, talk, hand_out, x[0], torch.ones(len(x[0]), V, width))


def module_in_parts(x):
    virtual = torch.ones(1, x.shape[1], V, width)
    return transformer_module._all_frames((gather, talk, hand_out), x, virtual, None, False)


ways = {
    "all pairs, written out": lambda x: written_out(pairs_block, x[0]),
    "all pairs, fused": lambda x: pairs_block(x[0]),
    "through virtual tracks": through_virtual,
    "virtual, in parts": module_in_parts,
}


# %%
@torch.no_grad()
def cost_of(way, N):
    """Peak bytes and seconds of one step across tracks for N points in 8 frames."""
    with PeakMemory() as memory:
        x = torch.randn(1, frames, N, width)
        begin = time.perf_counter()
        way(x)
        return memory.peak, time.perf_counter() - begin


# %%
SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
most = {"all pairs, written out": 5, "virtual, in parts": 7}  # how many of the sizes
measured = {}
for name, way in ways.items():
    cost_of(way, 32)  # to warm up
    measured[name] = [(N, *cost_of(way, N)) for N in SIZES[: most.get(name, 6)]]
    N, peak, seconds = measured[name][-1]
    print(f"{name:>22}: {N:5} points, {peak / 1e6:5.0f} MB, {seconds:.2f} s")

# %% [markdown]
# Larger numbers are read off a fit. What grows with all pairs is $aN^2 + bN$, what goes through virtual tracks is $bN + c$. Each fit minimises the relative errors of the last three measurements, since with few points other parts of the step decide.


# %%
def fitted(name, column):
    """A function that gives the cost for any N: quadratic for all pairs, else linear."""
    rows = np.array(measured[name][-3:], dtype=float)
    N, cost = rows[:, 0], rows[:, column]
    powers = (1, 2) if "pairs" in name else (0, 1)
    terms = np.stack([N**power for power in powers], axis=1)
    factors = np.linalg.lstsq(terms / cost[:, None], np.ones(len(N)), rcond=None)[0].clip(min=0)
    return lambda n: sum(
        f * np.asarray(n, float) ** p for f, p in zip(factors, powers, strict=True)
    )


DENSE, LIMIT = 265 * 265, 8e9  # points, bytes
grid = np.unique(np.geomspace(64, 1e5, 400).round())
memory = {name: fitted(name, 1) for name in ways}
seconds = {name: fitted(name, 2) for name in ways}
full = grid[np.argmax(memory["all pairs, written out"](grid) > LIMIT)]
for name in ways:
    gigabytes, wait = memory[name](DENSE) / 1e9, seconds[name](DENSE)
    print(f"{name:>22}: {DENSE:,} points would take {gigabytes:9,.1f} GB and {wait:7,.0f} s here")


# %% tags=["figure"]
def draw_curves():
    figure, axes = canvas(1, 2, 7.4, 3.3)
    styles = ("bad", "o"), ("second", "s"), ("first", "^"), ("good", "v")
    for each, column, fits, unit in zip(axes, (1, 2), (memory, seconds), (1e9, 1), strict=True):
        for (name, rows), (ink, mark) in zip(measured.items(), styles, strict=True):
            N, cost = np.array(rows)[:, 0], np.array(rows)[:, column] / unit
            each.loglog(N, cost, mark, color=COLOURS[ink], ms=4, label=name)
            each.loglog(grid, fits[name](grid) / unit, "--", color=COLOURS[ink], lw=0.9)
        each.axvline(DENSE, color=COLOURS["muted"], lw=0.8)
        each.set_xlabel("points N")
    axes[0].axhline(LIMIT / 1e9, color=COLOURS["muted"], lw=0.8)
    axes[0].plot(full, LIMIT / 1e9, "*", color=COLOURS["query"], ms=11)
    axes[0].annotate(
        f"8 GB at N = {full:,.0f}", (full, 8), (80, 60), color=COLOURS["query"], size=8
    )
    axes[0].text(DENSE * 0.85, 0.012, f"{DENSE:,} = 265 × 265", size=8, rotation=90, ha="right")
    axes[0].set(ylabel="memory at the peak (GB)")
    axes[1].set(ylabel="seconds")
    axes[1].legend(loc="upper left", fontsize=7)
    return figure


show(
    draw_curves(),
    alt="Memory and time against the number of points, both axes logarithmic: all pairs written out "
    "rise twice as steeply and pass eight gigabytes at a few thousand points; virtual tracks rise "
    "in proportion",
)

# %% [markdown]
# Marks are measured, dashes are the fit. Written out, all pairs pass 8 GB at the star, at a few thousand points, and at 70 thousand they would need terabytes. The fused kernel holds no weights, so its memory rises in proportion too; but its time still turns upwards, since all pairs are computed. Through virtual tracks both rise in proportion, and in parts the memory is that of the tokens and little more.
#
# > **What the square costs today.** Where attention is written out, as in the release, its weights fill the memory, and the square is a wall. Fused kernels move the wall from memory to time. For a few hundred points, the layers around the scores cost more than the scores, and virtual tracks are no faster. What they add at any number is a short way for all points to meet.

# %% [markdown]
# ## On real input
#
# ### What virtual tracks gather
#
# Tokens of a real clip: layers cut from photographs move for eight frames, and a CoTracker makes tokens of 64 points on them. We look at the first layer, where virtual tokens read the points, and draw how much each point weighs.
#
# The weights are those of the small model that [lesson 8](8_learning.ipynb) trains.

# %%
clip = held_out_clips(count=1, frames=8, points=64)
tracker = load_cotracker()
caught = []
hooks = [
    tracker.update.transformer.register_forward_pre_hook(lambda _, given: caught.append(given)),
    tracker.update.transformer.space_virtual2point_blocks[0].cross_attn.register_forward_pre_hook(
        lambda _, given: caught.append(given)
    ),
]
with torch.no_grad():
    tracker(clip.video, clip.queries, iterations=1)
for hook in hooks:
    hook.remove()
real_tokens, real_active = caught[0]
print("tokens", tuple(real_tokens.shape), "active", f"{real_active.float().mean():.0%}")


# %%
reading = tracker.update.transformer.space_virtual2point_blocks[0].cross_attn
asks, told, mask = caught[1]
with torch.no_grad():
    found = weights_of(reading.to_q(asks), reading.to_kv(told).chunk(2, -1)[0], reading.heads, mask)
gathered = found.mean(dim=1)  # (frames, V, N), over the heads
entropy = -(gathered * gathered.clamp(min=1e-30).log()).sum(dim=-1)
effective = entropy.exp()
print(f"read by a virtual token: {gathered.shape[2]} points, {effective.mean():.1f} in effect")


# %% tags=["figure"]
def draw_gathered(frame=7):
    figure, axes = canvas(1, 3, 7.2, 2.2)
    chosen = effective[frame].argsort()[:3]
    points, visible = clip.points[0], clip.visible[0]
    for each, n in zip(axes, chosen.tolist(), strict=True):
        draw_trails(each, clip.video[0, frame], points, visible, frame, tail=4, size=0.6)
        share = gathered[frame, n] * gathered.shape[2]
        each.scatter(
            *points[frame].T, s=22 * share, fc="none", ec=COLOURS["n11"], lw=1.3, clip_on=True
        )
        each.set_title(f"virtual track {n}: {effective[frame, n]:.0f} points in effect")
    return figure


show(
    draw_gathered(),
    alt="A frame with circles on its points, once for each of three virtual tracks; the area of a "
    "circle is the weight of the point",
    photo=True,
)

# %% [markdown]
# The area of a circle is the weight of its point; an equal share for all would be circles of one size. The number of points *in effect* is the exponential of the weights' entropy: how many points an equal share would be spread over. The three choosiest virtual tracks are shown. Each has learned to listen to some of the points more than to others; where the circles of two panels are alike, two virtual tracks have learned nearly the same. Before training, a virtual track takes nearly the mean of all points; what to gather is learned. The model is small and its training was short, so the picture says that virtual tracks come to choose, and not yet by what.
#
# ### Together or alone
#
# What does one point change for the others? Take its track away, and see how the outputs of the other 63 move. Only whether an output moves is counted, not by how much.

# %%
transformer = tracker.update.transformer
with torch.no_grad():
    for transformer.space in (True, False):
        whole = transformer(real_tokens, real_active)
        without = transformer(real_tokens[:, 1:], real_active[:, :, 1:])
        change = (whole[:, 1:] - without).abs().amax(dim=(0, 2, 3)) / whole.abs().max()
        touched = (change > 1e-6).float().mean()
        print(f"space {transformer.space!s:>5}: {touched:.0%} of the other tracks change")
transformer.space = True

# %% [markdown]
# With attention across tracks, one pass of the transformer is enough for each point to hear of every other.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `attend` | 10 | ●●○ |
# | `along_time` | 10 | ●●○ |
# | `across_tracks` | 5 | ●○○ |
# | `additive_mask` | 10 | ●○○ |
#
# <details><summary>Hint for <code>attend</code></summary>
#
# `unflatten(-1, (heads, -1))` cuts the last axis into heads; `_mean_values` wants (B, heads, tokens, numbers). Afterwards bring the heads back beside their numbers and `flatten(2)`.
#
# </details>
#
# <details><summary>Hint for <code>along_time</code></summary>
#
# A block sees (sequences, tokens, numbers). Exchange frames and tracks, `flatten(0, 1)` clips and tracks into one axis, call the block, and undo both with `unflatten` and `transpose`.
#
# </details>
#
# <details><summary>Hint for <code>across_tracks</code></summary>
#
# Three calls, and each but the second has a context. Who reads is the first argument, and the name of a block begins with who reads.
#
# </details>
#
# <details><summary>Hint for <code>additive_mask</code></summary>
#
# `torch.zeros` of the shape, dtype and device; `torch.finfo(dtype).min`; `masked_fill` with `~active`.
#
# </details>
#
# **Predict.** The points of a 265 × 265 grid are tracked in a window of $S = 8$ frames with $D = 384$. How many bytes do the tokens inside the transformer take in float32? And the keys and values that virtual tokens read, in one frame?
#
# <details><summary>Hint</summary>
#
# A number takes 4 bytes. Keys and values have $D$ numbers each.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The cell below computes both. That is why the module works on few frames at a time: keys and values of all frames would double the memory.
#
# </details>

# %% tags=["nbval-check-output"]
print(
    f"tokens: {4 * 8 * 384 * 265**2 / 1e9:.2f} GB, keys and values: {4 * 2 * 384 * 265**2 / 1e9:.2f} GB"
)

# %% [markdown]
# **Find the bug.** To save a transposition, a colleague keeps tokens as (B, N, S, D) and writes the block along time like this. Shapes are right, and a test with one frame passes. What does it do?


# %%
def along_time_colleague(block, x):
    B, S, N, D = x.shape
    return block(x.reshape(B * N, S, D)).view(x.shape)


one_frame = torch.randn(2, 1, 4, 16)
with torch.no_grad():
    assert torch.allclose(along_time_colleague(block, one_frame), along_time(block, one_frame))

# %% [markdown]
# <details><summary>Hint</summary>
#
# `reshape` keeps the order in memory. Which token follows the first one there?
#
# </details>
#
# <details><summary>Answer</summary>
#
# In memory, tracks follow each other within a frame, so a "track" of the colleague is a piece of a frame: points of different tracks read each other, and no error is raised. The cell shows which tokens the one at frame 1 and track 3 reads. A permutation test finds it: exchange two tracks, and the outputs must be exchanged.
#
# </details>

# %% tags=["nbval-check-output"]
wrong = read_by(partial(along_time_colleague, time_block), toy, frame=1, track=3)
print("frame, track:", [tuple(place) for place in wrong.nonzero().tolist()])

# %% [markdown]
# **Vary.** How does the time of the step through virtual tracks change with their number? Measure $V$ = 16, 64 and 256 for 1000 points.
#
# <details><summary>Hint</summary>
#
# `across_tracks` takes any number; make the virtual tokens with `torch.ones(frames, V, width)`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Far less than in proportion: the linear layers of the points cost the same for every $V$, and the virtual tokens' own layers join in only when $V$ comes near to $N$.
#
# </details>

# %%
with torch.no_grad():
    for V in (16, 64, 256):
        x, u = torch.randn(frames, 1000, width), torch.ones(frames, V, width)
        begin = time.perf_counter()
        across_tracks(gather, talk, hand_out, x, u)
        print(f"V = {V:3}: {time.perf_counter() - begin:.2f} s")

# %% [markdown]
# ## What breaks
#
# ### 64 points
#
# The released version 2 has one cross block for both directions. It takes the mask (F, n) and asks: is n the number of readers? Then the mask is over queries; else it is over keys. With 64 virtual tracks and 64 points both are true, and where virtual tokens read points the mask falls on the wrong axis: some virtual tokens are silenced, and points that are not there are read. 64 is no rare number: the release's predictor adds a grid of 6 × 6 support points, so 28 points of yours are enough. It shows only where some query starts after the first window. Our module says which axis it means; its attribute `by_size` follows the release, for comparison.

# %%
torch.manual_seed(0)
quirk = Transformer(inputs=20, outputs=2, width=32, heads=4, depth=2, virtual_tracks=64)
nn.init.normal_(quirk.flow_head.weight)
for N in (63, 28 + 36, 65):
    some_tokens, late = torch.randn(1, N, 4, 20), torch.rand(1, 4, N) > 0.3
    results = []
    with torch.no_grad():
        for quirk.by_size in (False, True):
            results.append(quirk(some_tokens, late))
    difference = (results[0] - results[1]).abs().max() / results[0].abs().max()
    print(f"{N} points: the release's reading differs by {difference:.1%} of the largest")
quirk.by_size = False

# %% [markdown]
# > **Where the code leaves the paper.** The paper draws one mask, of points that are not yet there, and no reader of it could expect an exception for 64. On the frozen input of our tests the wrong axis moves tracks by up to 0.2 px; with 63 and 65 points the two readings are equal to the last bit. We keep the right reading. Whoever must reproduce the released numbers for 64 points sets `by_size = True`.
#
# ### Minus infinity
#
# Put $-\infty$ into the mask, and the first frame without any point that is there spoils everything:


# %%
def infinite(active, dtype=torch.float32):
    return torch.zeros(active.shape, dtype=dtype).masked_fill(~active, -math.inf)


nobody = torch.zeros(1, 4, 9, dtype=torch.bool)
for name, mask in (("−∞", infinite(nobody)), ("lowest finite", additive_mask(nobody))):
    frames_of = mask.flatten(0, 1)
    read = attend_written(*[torch.randn(4, n, 32) for n in (5, 9, 9)], 4, frames_of[:, None, None])
    print(f"{name:>13}: {read.isnan().float().mean():.0%} of what virtual tokens read is NaN")

# %% [markdown]
# ### A gradient that is five times too large
#
# In the fused kernel the result for a fully masked row is right: the mean of all values. Its gradient is not. Going backward, the kernel makes the weights anew, as $e^{s - \ell}$ from a score $s$ and the logarithm $\ell$ of the row's sum. But in a fully masked row $\ell$ is the lowest number plus $\log 5$, which in floating point is the lowest number again, so each of five weights comes out as 1 in place of a fifth.

# %%
torch.manual_seed(0)
leaves = [torch.randn(1, 1, n, 8, requires_grad=True) for n in (2, 5, 5)]
half_masked = additive_mask(torch.tensor([[True], [False]])).expand(2, 5)
fused = F.scaled_dot_product_attention(*leaves, attn_mask=half_masked)
q, k, v = leaves
plain = (q @ k.mT / 8**0.5 + half_masked).softmax(dim=-1) @ v
for row, name in enumerate(("a row that is read", "a row fully masked")):
    same = torch.allclose(fused[0, 0, row], plain[0, 0, row], atol=1e-6)
    sizes = [
        torch.autograd.grad(y[0, 0, row].sum(), v, retain_graph=True)[0].norm()
        for y in (fused, plain)
    ]
    print(
        f"{name}: results equal: {same}; gradient to v, fused over written: {sizes[0] / sizes[1]:.2f}"
    )

# %% [markdown]
# A ratio of 1 in both lines would mean that your PyTorch is cured of it. In CoTracker such a row belongs to a point that has not appeared, whose output no loss looks at, so training is rarely harmed; but 64 virtual tracks would make it a factor of 64.
#
# ### One bad token
#
# A NaN in one token, from a division somewhere before, reaches all points within one layer; with `space` off it stays in its track.

# %%
spoiled = tokens.clone()
spoiled[0, 3, 1, 0] = math.nan
with torch.no_grad():
    for small.space in (True, False):
        hit = small(spoiled)[0].isnan().any(dim=-1).any(dim=-1)
        print(f"space {small.space!s:>5}: {int(hit.sum())} of {len(hit)} tracks are NaN")
small.space = True

# %% [markdown]
# ### What the code says to bad input

# %%
with shows_error(ValueError):
    Attention(width=384, heads=10)
with shows_error(ValueError):
    Transformer(20, 7, virtual_tracks=0)
with shows_error(ValueError):
    small(tokens[..., :19])
with shows_error(ValueError):
    small(tokens, active.transpose(1, 2))
with shows_error(TypeError):
    small(tokens, active.float())

# %% [markdown]
# ## Recap
#
# - The tokens are a grid of $N$ tracks and $S$ frames: along time a token reads its row, across tracks its column, and one layer of both reaches all.
# - Through $V$ virtual tracks the points exchange in $2NV$ scores in place of $N^2$; memory and time rise in proportion to $N$, and in parts the memory is little more than the tokens.
# - A mask adds the lowest finite number to what must not be read, on an axis that the call names; infinity would give NaN, and guessing the axis by size gives wrong tracks for 64 points.
#
# The line goes on in [lesson 6](6_cotracker.ipynb), where this transformer refines the tracks of a window, again and again, and windows follow each other through a video.
