# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 55
#     needs:
#     - 3_syco/2_lifting
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # EGNN: a network that does not care where north is
#
# **After this lesson you can** build a network on points in space whose answer turns, mirrors and moves with its input, prove that it does, and write it so that no long tensor of pairs is ever built.
#
# *Before this:* [Lifting](2_lifting.ipynb) (`2_lifting`), which makes the clouds of points. *Time:* 55 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# A molecule has no north. Turn it, mirror it, carry it across the room, list its atoms in another order: it has the same bonds and the same energy. A list of coordinates changes with each of these. A number that stays as it is when the points are turned is **invariant** (不变); this property is **invariance** (不变性). An arrow on each atom cannot stay as it is: it has to turn along. An answer that turns as its input turns is **equivariant** (等变), and this is **equivariance** (等变性).
#
# A network can be asked to learn this from many turned examples. Or it can be built so that nothing else is possible, and two rules do it. Atoms hear of each other through their **distances** alone, which no turn changes. And they move along the **vectors** to the other atoms alone, which turn with the cloud. The network says how far to go on each vector. This is the **E(n)-equivariant graph network** (EGNN) of Satorras, Hoogeboom and Welling (ICML 2021); E(n) is the group of all turns, mirrors and shifts of a space of n dimensions. EDM (Hoogeboom et al., ICML 2022) made a generator of molecules from it, and SyCo uses it twice: as encoder, and inside its diffusion.

# %% [markdown]
# ## Figure
#
# ### Two networks, one molecule
#
# The first network is naive: each pair of atoms feeds its features and its raw coordinates to a small network, whose answers are added up and move the atom. The second is the `EGNN` that this lesson builds. Neither is trained. The molecule is caffeine, with coordinates that [lesson 2](2_lifting.ipynb) made up.

# %%
import copy
import math
import time

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fourfold.graph_dit.graphs import Vocabulary, encode_smiles
from fourfold.kit.arguments import whole_number
from fourfold.kit.cloud_picture import draw_cloud, face
from fourfold.kit.drawing import COLOURS, canvas, show
from fourfold.kit.molecules import qm9_coordinates, qm9_table
from fourfold.kit.notebook import shows_error
from fourfold.kit.scale import at_scale, device
from fourfold.kit.training import train
from fourfold.syco.egnn import EGNN
from fourfold.syco.lifting import pair_mask, squared_distances, synthetic_coordinates


class RawNet(nn.Module):
    """Naive: atom i moves by the mean of a network's answers to [h_i, x_i, h_j, x_j]."""

    def __init__(self, features, width=64):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2 * features + 6, width), nn.SiLU(), nn.Linear(width, features + 3)
        )

    def forward(self, h, x, mask):
        both, N = torch.cat([h, x], dim=-1), x.shape[1]
        ours, theirs = both[:, :, None].expand(-1, -1, N, -1), both[:, None].expand(-1, N, -1, -1)
        answer = self.net(torch.cat([ours, theirs], dim=-1)) * pair_mask(mask)[..., None]
        step = answer.sum(dim=2) / (mask.sum(dim=1)[:, None, None] - 1)
        return h + step[..., 3:], x + step[..., :3]


# %%
caffeine = Chem.MolFromSmiles("Cn1c(=O)c2c(ncn2C)n(C)c1=O")
symbols = [atom.GetSymbol() for atom in caffeine.GetAtoms()]
bonds = torch.from_numpy(Chem.GetAdjacencyMatrix(caffeine))
x = torch.tensor(face(synthetic_coordinates(caffeine)), dtype=torch.float32)[None]
h = torch.tensor([[[float(s == kind) for kind in "CNO"] for s in symbols]])
mask = torch.ones(h.shape[:2], dtype=torch.bool)
print(f"x {tuple(x.shape)} in Å, h {tuple(h.shape)}, mask {tuple(mask.shape)}")


def awake(model, size=0.3):
    """A fresh network hardly moves its points; larger last weights make it move them."""
    with torch.no_grad():
        for block in model.blocks:
            block.coordinates.mlp[-1].weight.normal_(std=size)
    return model.eval()


torch.manual_seed(5)
raw, egnn = RawNet(3).eval(), awake(EGNN(3, width=32, depth=2, divisor=len(symbols)), 0.1)
cloud = h, x, mask

# %% tags=["figure"]
turn = math.radians(50)
TURNED = torch.tensor(
    [[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]]
)
MIRRORED = torch.diag(torch.tensor([-1.0, 1, 1]))
VIEWS = {
    "as given: x, h": (torch.eye(3), 0.0),
    "turned": (TURNED, 0.0),
    "mirrored": (MIRRORED, 0.0),
    "moved by (2, −2, 1) Å": (torch.eye(3), torch.tensor([2.0, -2.0, 1.0])),
}


ARROW = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "dots", "zorder": 5}
HEAD = {"headwidth": 3.2, "headlength": 3.5, "headaxislength": 3.2}
WIDE = {"color": "#c9c9c9", "width": 5, "headwidth": 2, "headlength": 1.6, "headaxislength": 1.6}


@torch.no_grad()
def arrows(model, x):
    """How far each point moves, drawn so long that the first picture's mean is 1.3 Å."""
    size = (model(*cloud)[1] - cloud[1]).norm(dim=-1).mean()
    return (model(h, x, mask)[1] - x)[0] * 1.3 / size


def draw_views():
    figure, rows = canvas(2, 4, 7.6, 3.9)
    for axes_row, (name, model) in zip(rows, {"raw": raw, "EGNN": egnn}.items(), strict=True):
        for axes, (title, (R, t)) in zip(axes_row, VIEWS.items(), strict=True):
            look = {"angle": (0, 0), "letters": False, "span": 10, "size": 0.7}
            seen = draw_cloud(axes, (x @ R.T)[0], symbols, bonds, **look)[:, :2]
            along, own = arrows(model, x) @ R.T, arrows(model, x @ R.T + t)
            axes.quiver(*seen.T, *along[:, :2].T, **ARROW, **WIDE)
            axes.quiver(*seen.T, *own[:, :2].T, color=COLOURS["query"], width=1.4, **ARROW, **HEAD)
            axes.set_title(title if name == "raw" else "")
        where = {"rotation": 90, "va": "center", "transform": axes_row[0].transAxes}
        axes_row[0].text(-0.1, 0.5, f"{name}: x' − x", size=9, weight="bold", **where)
    return figure


show(
    draw_views(),
    alt="Caffeine as given, turned, mirrored and moved, with an arrow on each atom. In the upper "
    "row, a network on raw coordinates, the arrows of the four pictures disagree; in the lower "
    "row, the EGNN, they turn and mirror with the molecule",
)

# %% [markdown]
# Red arrows are what the network says about the cloud it is given; grey ones are the arrows of the first picture, turned and mirrored with the cloud. Above, the raw network says something else each time. Below, red covers grey. Nobody has taught the second network anything.

# %% [markdown]
# ## Formula
#
# A cloud has coordinates $x$, with $x_i$ in Å, and features $h$. For every turn or mirror $R$ (a matrix with $R^\top R = 1$), every shift $\tau$ and every order of the points, the network $\phi$ has to obey
#
# $$ (x', h') = \phi(x, h) \quad\Rightarrow\quad (R x' + \tau,\; h') = \phi(R x + \tau,\; h) \tag{1} $$
#
# **Messages.** What a pair knows of itself, $a_{ij}$, is its squared distance now and at the start, and given attributes $e_{ij}$ such as its bond. A small network $\phi_e$ makes the message $m_{ij}$ of it, and a gate $g_{ij}$ between 0 and 1 says how much it counts (attention 注意力 in EDM's words):
#
# $$ m_{ij} = \phi_e(h_i, h_j, a_{ij}), \qquad a_{ij} = \big[\, d_{ij}^2,\; d_{ij,0}^2,\; e_{ij} \,\big], \qquad g_{ij} = \mathrm{sigmoid}(w \cdot m_{ij} + b) \tag{2} $$
#
# $$ h_i \leftarrow h_i + \phi_h\Big(h_i,\; \frac{1}{c} \sum_{j \neq i} g_{ij}\, m_{ij}\Big) \tag{3} $$
#
# **Coordinates.** Then each point goes along the vectors $v_{ij}$ from the others to it, by steps $s_{ij}$ that a second small network reads off the new features; $c$ is a divisor, $r$ the reach of a step, and $k$ keeps near points calm:
#
# $$ x_i \leftarrow x_i + \frac{1}{c} \sum_{j \neq i} v_{ij}\, s_{ij}, \qquad v_{ij} = \frac{x_i - x_j}{d_{ij} + k}, \qquad s_{ij} = r \tanh \phi_x(h_i, h_j, a_{ij}) \tag{4} $$
#
# **Proof of equation 1**, in two lines. Distances do not change, and vectors turn:
#
# $$ \begin{aligned} d_{ij} &= \lVert x_i - x_j \rVert = \lVert R (x_i - x_j) \rVert = \lVert (R x_i + \tau) - (R x_j + \tau) \rVert \\ (R x_i + \tau) + \tfrac{1}{c} \textstyle\sum_j (R v_{ij})\, s_{ij} &= R \big( x_i + \tfrac{1}{c} \textstyle\sum_j v_{ij}\, s_{ij} \big) + \tau \end{aligned} \tag{5} $$
#
# By the first line $a_{ij}$ is invariant, so by equations 2 to 4 all of $m_{ij}$, $g_{ij}$, $h_i$, $s_{ij}$ are. By the second the coordinates are equivariant. What holds for one block holds for a stack of them. The order of the points does not matter since sums have none.
#
# **The split.** The first layer of $\phi_e$ and of $\phi_x$ is linear, on the long vector $[h_i \mid h_j \mid a_{ij}]$. Cut its weight into three, for the point itself $W_1$, for the other $W_2$ and for the pair $W_3$:
#
# $$ W \begin{bmatrix} h_i \\ h_j \\ a_{ij} \end{bmatrix} + b = (W_1 h_i + b) + W_2 h_j + W_3\, a_{ij} \tag{6} $$
#
# The first two terms exist once for each point, not once for each pair.
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $x$ | coordinates of the points | (B, N, 3), Å | `x` | x |
# | $h$ | features of the points | (B, N, D) | `h` | h |
# | $d_{ij}$ | distance of two points | (B, N, N), Å | `length` | d_ij |
# | $a_{ij}$ | what a pair knows of itself | (B, N, N, A) | `a` | a_ij |
# | $m_{ij}$ | message from j to i | (B, N, N, D) | `messages` | m_ij |
# | $g_{ij}$ | gate of the message | (B, N, N), 0 to 1 | `gate` | g_ij |
# | $v_{ij}$ | vector from j to i, shortened | (B, N, N, 3) | `vectors` | v_ij |
# | $s_{ij}$ | step along it | (B, N, N), Å | `steps` | s_ij |
# | $c$ | divisor of the sums | number | `divisor` | c |
# | $r$ | reach of a step | Å | `reach` | reach r |
# | $k$ | constant in the vectors | Å | `norm_constant` | k |
# | $W_1$ | part of the first weight on the point itself | (D, D) | `ours` | W_1 |
# | $W_2$ | on the other point | (D, D) | `theirs` | W_2 |
# | $W_3$ | on the pair | (D, A) | `pair` | W_3 |
#
# Letters of shapes: $B$ clouds, $N$ points that there is room for, $D$ width of the features, $A$ numbers of a pair.
#
# > **Where the code leaves the paper.** EGNN's paper uses $x_i - x_j$ as it is, and messages without the distance at the start; EDM's release adds $k$, the second distance and tanh, and this lesson follows the release. That release computes a reach of 15 divided by the number of blocks, and then never uses it: every block reaches 15. Ours does too, so that its weights can be read. It lists all pairs, self-pairs among them, as edges, and multiplies by a mask; ours is dense, and gives the same numbers (a test compares them with frozen outputs of the release). SyCo's authors have released no code. That their encoder is an EGNN on the molecular graph in 3D and that the second stage is EDM stands in the paper; widths, depths and how bonds enter are this course's choices.

# %% [markdown]
# ## Code
#
# ### A test before a network
#
# Equation 1 is a test, for any network that takes features, coordinates and a mask. Turn, mirror, move and shuffle at random, and compare. Only points that are there count.


# %%
def random_turn(count=1, seed=0):
    """Turns, uniform over all; a mirror is one with the sign of an axis changed."""
    generator = torch.Generator().manual_seed(seed)
    Q, upper = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))
    Q = Q * upper.diagonal(dim1=1, dim2=2).sign()[:, None]
    Q[Q.det() < 0, :, 0] *= -1
    return Q


def symmetry_errors(model, h, x, mask):
    """How far from equation 1 the network is: the largest difference over the largest answer."""
    R, N = random_turn()[0].to(x), x.shape[1]
    M, same, still = R * torch.tensor([-1.0, 1, 1]).to(x), torch.arange(N), torch.eye(3).to(x)
    shuffled = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([2.0, -2.0, 1.0]).to(x)
    h1, x1 = model(h, x, mask)
    errors = {}
    for name, A, t, order in (
        ("rotation", R, 0, same),
        ("reflection", M, 0, same),
        ("translation", still, shift, same),
        ("permutation", still, 0, shuffled),
    ):
        h2, x2 = model(h[:, order], (x @ A.T + t)[:, order], mask[:, order])
        real = mask[:, order]
        off_x, off_h = x2 - (x1 @ A.T + t)[:, order], h2 - h1[:, order]
        errors[name] = max(
            (off[real].abs().max() / of[mask].abs().max()).item()
            for off, of in ((off_x, x1), (off_h, h1))
        )
    return errors


def told(errors):
    return ", ".join(f"{name} {error:.0e}" for name, error in errors.items())


# %%
with torch.no_grad():
    print("raw: ", told(symmetry_errors(raw, h, x, mask)))
    print("EGNN:", told(symmetry_errors(egnn, h, x, mask)))

# %% [markdown]
# The raw network fails three of four: only the order of the atoms does not matter to it, since it adds up. The EGNN is as exact as 32 bits allow.
#
# ### Distances only
#
# The first rule by itself, equations 2 and 3 without a gate, in loops over the pairs:

# %%
torch.manual_seed(0)
phi_e = nn.Sequential(nn.Linear(3 + 3 + 1, 8), nn.SiLU(), nn.Linear(8, 8))
phi_h = nn.Linear(3 + 8, 3)


def hear_loop(h, x):
    new = []
    for i in range(len(x)):
        total = torch.zeros(8, dtype=x.dtype)
        for j in range(len(x)):
            if j != i:
                square = (x[i] - x[j]).square().sum()
                total = total + phi_e(torch.cat([h[i], h[j], square[None]]))
        new.append(h[i] + phi_h(torch.cat([h[i], total])))
    return torch.stack(new)


def distances_only(h, x, mask):
    return torch.stack([hear_loop(*each) for each in zip(h, x, strict=True)]), x


with torch.no_grad():
    print(told(symmetry_errors(distances_only, h, x, mask)))

# %% [markdown]
# All four hold. But this network can only say numbers. Where should an atom go? For that an answer needs a direction, and the only directions at hand that turn along are those to the other atoms. The second rule, equation 4, in loops again, with a step for each pair:

# %%
phi_x = nn.Sequential(nn.Linear(3 + 3 + 1, 8), nn.SiLU(), nn.Linear(8, 1))


def move_loop(h, x, k=1.0):
    new = []
    for i in range(len(x)):
        total = torch.zeros(3, dtype=x.dtype)
        for j in range(len(x)):
            if j != i:
                distance = (x[i] - x[j]).norm()
                step = phi_x(torch.cat([h[i], h[j], distance[None] ** 2]))
                total = total + (x[i] - x[j]) / (distance + k) * step
        new.append(x[i] + total)
    return torch.stack(new)


def hear_and_move(h, x, mask):
    h, _ = distances_only(h, x, mask)
    return h, torch.stack([move_loop(*each) for each in zip(h, x, strict=True)])


with torch.no_grad():
    print(told(symmetry_errors(hear_and_move, h, x, mask)))

# %% [markdown]
# That is a whole EGNN. What follows is the same for batches, with padding, and fast.
#
# ### Vectors of all pairs
#
# A batch has clouds of different sizes, padded to $N$ points. All pairs of a cloud stand in one dense tensor. The root of the squared distance needs care: at 0, its slope is infinite, and each point has distance 0 to itself. A small number under the root gives it a slope; the vector is 0 there anyhow.


# %% tags=["promote", "exercise"]
def pair_vectors(
    x: Float[Tensor, "B N 3"], norm_constant: float = 1.0
) -> tuple[Float[Tensor, "B N N"], Float[Tensor, "B N N 3"]]:
    """Squared distances, and the vectors from j to i over their length plus a constant (eq. 4).

    With a constant of 1 Å the vectors are shorter than 1, and two near points do not shake each
    other; with 0 they have length 1. 1e-8 Å² under the root gives it a slope at 0.
    """
    vectors = x[:, :, None] - x[:, None]
    square = vectors.square().sum(dim=-1)
    length = (square + 1e-8).sqrt()
    return square, vectors / (length + norm_constant)[..., None]


# %% tags=["check"]
three = torch.tensor([[[0.0, 0, 0], [3, 4, 0], [0, 0, 0]]], requires_grad=True)
square, vectors = pair_vectors(three, norm_constant=0.0)
assert square[0, 0, 1] == 25 and square[0, 0, 2] == 0, "squared distances"
# 1e-8 under the root shortens them a little.
assert torch.allclose(vectors[0, 1, 0], torch.tensor([0.6, 0.8, 0.0]), atol=1e-6), "from j to i"
assert torch.allclose(vectors, -vectors.transpose(1, 2)), "there and back are opposite"
assert torch.allclose(pair_vectors(three, 5.0)[1][0, 1, 0], torch.tensor([0.3, 0.4, 0]), atol=1e-6)
vectors.sum().backward()
assert three.grad.isfinite().all(), "the first and the last point coincide"

# %% [markdown]
# What does $k$ do? The length of $v_{ij}$ over the distance $d_{ij}$, and beside it what tanh and the reach $r$ do to a step $s_{ij}$:


# %% tags=["figure"]
def draw_limits():
    figure, axes = canvas(1, 2, 7.4, 2.4)
    distance = torch.linspace(0, 4, 400)
    line = torch.stack([distance, 0 * distance, 0 * distance], dim=-1)[:, None]
    pairs_of_two = torch.cat([line, 0 * line], dim=1)
    for k, ink in ((0.0, "second"), (1.0, "first")):
        length = pair_vectors(pairs_of_two, k)[1][:, 0, 1].norm(dim=-1)
        axes[0].plot(distance, length, color=COLOURS[ink], label=f"k = {k:.0f} Å")
    axes[0].set(xlabel="d_ij (Å)", ylabel="length of v_ij", title="vectors")
    axes[0].legend(frameon=False, fontsize=8)
    value = torch.linspace(-40, 40, 400)
    axes[1].plot(value, value, color=COLOURS["second"], label="without tanh")
    axes[1].plot(value, 15 * value.div(15).tanh(), color="#c4c4c4", lw=1, label="15 tanh(φ_x / 15)")
    axes[1].plot(value, 15 * value.tanh(), color=COLOURS["first"], label="r tanh φ_x")
    axes[1].annotate(
        "reach r", (25, 15), (25, 24), size=8, ha="center", arrowprops={"arrowstyle": "-"}
    )
    axes[1].set(xlabel="φ_x", ylabel="s_ij (Å)", title="steps", ylim=(-32, 32))
    axes[1].legend(loc="lower right", frameon=False, fontsize=8)
    return figure


show(
    draw_limits(),
    alt="Left: with k = 0 the vectors have length 1 at any distance and jump at 0, with k = 1 they "
    "grow slowly from 0. Right: a step without tanh grows without limit, with tanh it ends at 15",
)

# %% [markdown]
# With $k = 0$ two atoms that pass through each other see their vectors jump from one direction to the opposite one; with $k = 1$ Å the vectors vanish there. tanh does the same for large steps: it bounds each to the reach $r$ of 15 Å. Near 0 it multiplies by 15, so the release lets $\phi_x$ begin with very small last weights. The grey line, of slope 1, is what one might expect in its place.
#
# ### Counting
#
# Where does the time go? A cloud of $N$ points has $N^2$ pairs. Written as in equation 2, the first layer takes a vector of $2D + A$ numbers for each pair:


# %%
def concatenated(layers, h, a):
    """Equation 2 as it stands: build [h_i | h_j | a_ij] for all pairs, and ask the network."""
    N = h.shape[1]
    ours, theirs = h[:, :, None].expand(-1, -1, N, -1), h[:, None].expand(-1, N, -1, -1)
    return nn.Sequential(*layers)(torch.cat([ours, theirs, a], dim=-1))


def multiplications(N, D, A):
    """Of the first layer for one cloud: as it stands, and split as in equation 6."""
    return N**2 * (2 * D + A) * D, 2 * N * D**2 + N**2 * A * D


for N in (9, 38, 100):
    long, split = multiplications(N, 64, 2)
    numbers = N**2 * (2 * 64 + 2)
    print(
        f"N = {N:3d}: {long / 1e6:6.2f} million multiplications or {split / 1e6:5.2f}, "
        f"{4 * numbers / 1e6:5.2f} MB of long vectors or {4 * N**2 * 2 / 1e6:.2f}"
    )

# %% [markdown]
# The split saves the more the larger the cloud. It is a rearrangement, not an approximation: equation 6 is an identity.
#
# ### What the way back remembers
#
# Training needs a second look. To compute gradients, PyTorch keeps the inputs of each operation until the way back. An activation keeps what it was given, and the linear layer after it keeps what it was given, which is the activation's answer: two tensors over all pairs, where the second follows from the first. A function that keeps the first alone and computes the second again:


# %% tags=["promote"]
class _LeanLinear(torch.autograd.Function):
    """`F.linear(F.silu(z), weight, bias)`, which remembers z alone for the way back.

    It has a first derivative; a second one raises RuntimeError.
    """

    @staticmethod
    def forward(ctx, z, weight, bias):
        ctx.save_for_backward(z, weight)
        return F.linear(F.silu(z), weight, bias)

    @staticmethod
    def backward(ctx, grad):
        z, weight = ctx.saved_tensors
        rows, again = grad.flatten(0, -2), F.silu(z)
        grad_weight = rows.T @ again.flatten(0, -2)
        torch.matmul(grad, weight.to(grad.dtype), out=again)  # in its memory, used up by now
        grad_z = torch.ops.aten.silu_backward(again, z)
        return grad_z, grad_weight, rows.sum(dim=0)


# %%
torch.manual_seed(0)
z = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
# Slopes by small differences, in float64.
assert torch.autograd.gradcheck(_LeanLinear.apply, (z, weight, bias))

# %% [markdown]
# Both savings together, for $\phi_e$ and $\phi_x$. The layers are those of the naive version, so that a released checkpoint fits. Computing again costs time, so only the activation between the two wide layers does it. For the checks, two small clouds of five and three points, with random features and attributes:

# %%
torch.manual_seed(0)
some_h, some_x, some_a = torch.randn(2, 5, 8), torch.randn(2, 5, 3), torch.randn(2, 5, 5, 2)
some_pairs = pair_mask(torch.tensor([[True] * 5, [True] * 3 + [False] * 2]))
some_pairs.sum(dim=(1, 2)).tolist()


# %% tags=["promote", "exercise"]
class PairMLP(nn.Sequential):
    """A network on [h_i | h_j | a_ij] for all pairs, which never builds that long vector.

    The first layer is linear, so its part on h_i and that on h_j are computed once for each atom
    and added for each pair (equation 6 of the lesson).

    scalar  end with one number for each pair, near 0 at the start, in place of `width`
    """

    def __init__(self, width: int, attributes: int, scalar: bool = False):
        super().__init__(
            nn.Linear(2 * width + attributes, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        if scalar:
            self.append(nn.Linear(width, 1, bias=False))
            nn.init.xavier_uniform_(self[-1].weight, gain=0.001)

    def forward(
        self, h: Float[Tensor, "B N D"], a: Float[Tensor, "B N N A"]
    ) -> Float[Tensor, "B N N Out"]:
        first, _, second, _, *last = self
        ours, theirs, pair = first.weight.split([h.shape[-1], h.shape[-1], a.shape[-1]], dim=1)
        z = F.linear(a, pair)
        z += F.linear(h, ours, first.bias)[:, :, None]
        z += F.linear(h, theirs)[:, None]
        z = _LeanLinear.apply(z, second.weight, second.bias)
        return last[0](F.silu(z)) if last else F.silu(z)


# %% tags=["check"]
torch.manual_seed(0)
for scalar in (False, True):
    mlp = PairMLP(8, 2, scalar)
    ours, naive = mlp(some_h, some_a), concatenated(mlp, some_h, some_a)
    # Sums of 18 numbers in float32, in another order.
    assert torch.allclose(ours, naive, atol=1e-6), f"scalar = {scalar}: another network"
    gradients = [torch.autograd.grad(out.square().sum(), mlp.parameters()) for out in (ours, naive)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5), "another gradient"

# %% [markdown]
# How much does each version remember, and how long does it take, there and back? A batch of 64 clouds of nine points, width 64:


# %%
def remembered(call):
    """Bytes that PyTorch keeps for the way back of a call, each tensor once."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = call()
    return sum(kept.values()), answer


def seconds(call, turns=15):
    """The fastest of some turns, in seconds of the processor."""
    times = []
    for _ in range(turns):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)


class Concatenating(PairMLP):
    """The naive version under the same name and with the same layers."""

    def forward(self, h, a):
        return concatenated(self, h, a)


# %%
torch.manual_seed(0)
lean = PairMLP(64, 2)
long = copy.deepcopy(lean)
long.__class__ = Concatenating
batch_h, batch_a = torch.randn(64, 9, 64, requires_grad=True), torch.randn(64, 9, 9, 2)
bytes_kept, times = {}, {}
for name, mlp in (("as it stands", long), ("split and lean", lean)):
    bytes_kept[name] = remembered(lambda mlp=mlp: mlp(batch_h, batch_a))[0]
    times[name] = seconds(lambda mlp=mlp: mlp(batch_h, batch_a).sum().backward())
    print(f"{name:>14}: {bytes_kept[name] / 1e6:.1f} MB, {1e3 * times[name]:.1f} ms")
print(f"ratios: {min(bytes_kept.values()) / max(bytes_kept.values()):.2f} of the memory,", end=" ")
print(f"{times['split and lean'] / times['as it stands']:.2f} of the time")

# %% [markdown]
# ### Messages
#
# Equations 2 and 3. The gate multiplies the message, the mask of pairs drops self-pairs and padding. Multiplying and adding up is one product of matrices: a row of weights for each atom, times its messages.


# %% tags=["promote", "exercise"]
class MessageLayer(nn.Module):
    """Atoms hear the messages of all others: invariant features (equations 2 and 3).

    attention  weigh each message by a gate between 0 and 1
    divisor    of the sum of messages
    """

    def __init__(self, width: int, attributes: int, attention: bool = True, divisor: float = 1.0):
        super().__init__()
        self.divisor = divisor
        self.edge_mlp = PairMLP(width, attributes)
        self.gate = nn.Linear(width, 1) if attention else None
        self.node_mlp = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(
        self, h: Float[Tensor, "B N D"], a: Float[Tensor, "B N N A"], pairs: Bool[Tensor, "B N N"]
    ) -> Float[Tensor, "B N D"]:
        messages = self.edge_mlp(h, a)
        weights = pairs.to(messages.dtype)
        if self.gate is not None:
            weights = weights * self.gate(messages).squeeze(-1).sigmoid()
        total = (weights[:, :, None] @ messages).squeeze(2) / self.divisor
        return h + self.node_mlp(torch.cat([h, total], dim=-1))


# %% tags=["check"]
torch.manual_seed(0)
layer = MessageLayer(8, 2, divisor=3.0)
heard = layer(some_h, some_a, some_pairs)
for b, i in ((0, 0), (1, 2)):
    total = torch.zeros(8)
    for j in some_pairs[b, i].nonzero()[:, 0]:
        m = layer.edge_mlp(some_h[b : b + 1], some_a[b : b + 1])[0, i, j]
        total = total + layer.gate(m).sigmoid() * m / 3
    expected = some_h[b, i] + layer.node_mlp(torch.cat([some_h[b, i], total]))
    assert torch.allclose(heard[b, i], expected, atol=1e-6), "equation 3, for one atom"
bare = MessageLayer(8, 2, attention=False)
assert bare.gate is None and bare(some_h, some_a, some_pairs).shape == some_h.shape

# %% [markdown]
# ### Coordinates
#
# Equation 4, the same product of matrices with vectors in place of messages.


# %% tags=["promote", "exercise"]
class CoordinateLayer(nn.Module):
    """Atoms move along the vectors to all others: equivariant coordinates (equation 4).

    tanh   bound the length of a pair's step, by `reach`; without it a step may be any number
    """

    def __init__(
        self,
        width: int,
        attributes: int,
        tanh: bool = True,
        divisor: float = 1.0,
        reach: float = 15.0,
    ):
        super().__init__()
        self.mlp = PairMLP(width, attributes, scalar=True)
        self.tanh, self.divisor, self.reach = tanh, divisor, reach

    def forward(
        self,
        h: Float[Tensor, "B N D"],
        x: Float[Tensor, "B N 3"],
        vectors: Float[Tensor, "B N N 3"],
        a: Float[Tensor, "B N N A"],
        pairs: Bool[Tensor, "B N N"],
    ) -> Float[Tensor, "B N 3"]:
        steps = self.mlp(h, a).squeeze(-1)
        steps = (steps.tanh() * self.reach if self.tanh else steps) * pairs
        return x + (steps[:, :, None] @ vectors).squeeze(2) / self.divisor


# %% tags=["check"]
torch.manual_seed(0)
layer = CoordinateLayer(8, 2, divisor=3.0)
with torch.no_grad():
    layer.mlp[-1].weight.normal_()
some_vectors = pair_vectors(some_x)[1]
went = layer(some_h, some_x, some_vectors, some_a, some_pairs)
each_step = 15 * layer.mlp(some_h, some_a)[..., 0].tanh()
for b, i in ((0, 0), (1, 2)):
    others = some_pairs[b, i].nonzero()[:, 0].tolist()
    expected = some_x[b, i] + sum(some_vectors[b, i, j] * each_step[b, i, j] for j in others) / 3
    assert torch.allclose(went[b, i], expected, atol=1e-5), "equation 4, for one atom"
assert torch.equal(went[1, 3:], some_x[1, 3:]), "what is not there does not move"
layer.tanh = False
free = layer(some_h, some_x, some_vectors, some_a, some_pairs)
assert not torch.allclose(free, went), "without tanh a step is any number"

# %% [markdown]
# ### A block
#
# One or more message layers, then one step. EDM calls the number of message layers `inv_sublayers`; one is its choice for QM9, and two of them hear of neighbours of neighbours before the points move. The step reads the features that the messages have changed, and the distances from before the step.


# %% tags=["promote"]
class EGNNBlock(nn.Module):
    """Some message layers, then one step of the coordinates, which reads the new features."""

    def __init__(
        self,
        width: int,
        attributes: int,
        inner: int = 1,
        attention: bool = True,
        tanh: bool = True,
        divisor: float = 1.0,
    ):
        super().__init__()
        self.messages = nn.ModuleList(
            MessageLayer(width, attributes, attention, divisor) for _ in range(inner)
        )
        self.coordinates = CoordinateLayer(width, attributes, tanh, divisor)

    def forward(
        self,
        h: Float[Tensor, "B N D"],
        x: Float[Tensor, "B N 3"],
        vectors: Float[Tensor, "B N N 3"],
        a: Float[Tensor, "B N N A"],
        pairs: Bool[Tensor, "B N N"],
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B N 3"]]:
        for layer in self.messages:
            h = layer(h, a, pairs)
        return h, self.coordinates(h, x, vectors, a, pairs)


# %% [markdown]
# ### Waves
#
# A squared distance is one number, and a network of few layers reads fine differences off it with difficulty. EDM can replace it by sines and cosines of the distance at six wavelengths, as clocks with hands of different speed. The release cuts the gradient there.


# %% tags=["promote"]
def distance_waves(square: Float[Tensor, "B N N"]) -> Float[Tensor, "B N N 12"]:
    """Sines and cosines of each distance, at wavelengths of 15 Å over 1, 4, 16, … 1024.

    As released they carry no gradient.
    """
    frequencies = 2 * math.pi * 4.0 ** torch.arange(6, device=square.device) / 15
    angles = (square + 1e-8).sqrt()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).detach()


# %%
print("wavelengths", [round(15 / 4**n, 3) for n in range(6)], "Å")
some_squares = torch.rand(1, 100, 100, generator=torch.Generator().manual_seed(0)) * 100
off = distance_waves(some_squares) - distance_waves(some_squares.double())
print("errors of float32, longest to shortest wave:")
print("  sines  ", [f"{e:.0e}" for e in off.abs().amax(dim=(0, 1, 2))[:6].tolist()])
print("  cosines", [f"{e:.0e}" for e in off.abs().amax(dim=(0, 1, 2))[6:].tolist()])

# %% [markdown]
# A price: at a wavelength of a hundredth of an Å, the rounding of a distance in float32 is a visible part of a turn. Each hand is four times as fast as the one before, and each has an error about four times as large.
#
# ### The whole network


# %% tags=["promote"]
class EGNN(nn.Module):
    """An E(n)-equivariant network on clouds of points with features (equations 1 to 5).

    features       F, of each point that comes in
    width, depth   of the features inside, and the number of blocks
    out            features that come out; as many as come in when left out
    edges          attributes of each pair that are given from outside
    inner          message layers in a block
    attention, tanh, divisor   see `MessageLayer` and `CoordinateLayer`
    norm_constant  see `pair_vectors`
    waves          read distances as `distance_waves` in place of squares

    Raises ValueError for sizes that are no whole numbers of 1 or more (edges: 0 or more), a
    divisor that is not positive and a negative norm_constant.
    """

    def __init__(
        self,
        features: int,
        width: int = 64,
        depth: int = 4,
        *,
        out: int | None = None,
        edges: int = 0,
        inner: int = 1,
        attention: bool = True,
        tanh: bool = True,
        norm_constant: float = 1.0,
        divisor: float = 1.0,
        waves: bool = False,
    ):
        super().__init__()
        out = features if out is None else out
        sizes = {"features": features, "width": width, "depth": depth, "out": out, "inner": inner}
        for name, size in sizes.items():
            whole_number(name, size, least=1)
        self.edges = whole_number("edges", edges, least=0)
        if not divisor > 0:
            raise ValueError(f"divisor is {divisor}; expected a number above 0")
        if not norm_constant >= 0:
            raise ValueError(f"norm_constant is {norm_constant}; expected a length of 0 Å or more")
        self.norm_constant, self.waves = norm_constant, waves
        attributes = edges + (24 if waves else 2)
        self.embed = nn.Linear(features, width)
        self.blocks = nn.ModuleList(
            EGNNBlock(width, attributes, inner, attention, tanh, divisor) for _ in range(depth)
        )
        self.out = nn.Linear(width, out)

    def forward(
        self,
        h: Float[Tensor, "B N F"],
        x: Float[Tensor, "B N 3"],
        mask: Bool[Tensor, "B N"],
        edges: Float[Tensor, "B N N K"] | None = None,
    ) -> tuple[Float[Tensor, "B N Out"], Float[Tensor, "B N 3"]]:
        """Features that stay the same, and coordinates that turn along, when x is turned.

        mask   whether there is a point; 0 comes out where there is none
        edges  symmetric attributes of the pairs, such as bonds

        Raises ValueError for another number of features or attributes than the network has.
        """
        self._check(h, edges)
        pairs, real = pair_mask(mask), mask[..., None]
        given = [self._lengths(squared_distances(x)), *([] if edges is None else [edges])]
        h = self.embed(h)
        for block in self.blocks:
            square, vectors = pair_vectors(x, self.norm_constant)
            h, x = block(h, x, vectors, torch.cat([self._lengths(square), *given], dim=-1), pairs)
        return self.out(h) * real, x * real

    def _lengths(self, square: Float[Tensor, "B N N"]) -> Float[Tensor, "B N N L"]:
        return distance_waves(square) if self.waves else square[..., None]

    def _check(self, h: Tensor, edges: Tensor | None) -> None:
        if h.shape[-1] != self.embed.in_features:
            raise ValueError(
                f"h has {h.shape[-1]} features; expected {self.embed.in_features}, as the network"
            )
        found = 0 if edges is None else edges.shape[-1]
        if found != self.edges:
            raise ValueError(
                f"edges has {found} attributes; expected {self.edges}, as the network; "
                "None counts as 0"
            )


# %% [markdown]
# The loops from above agree with one block of it, when its parts are put to the loops' order: no gate, no tanh, $c = 1$.

# %%
torch.manual_seed(0)
one = awake(EGNN(3, width=3, depth=1, attention=False, tanh=False), 1.0)
block = one.blocks[0]
start = squared_distances(x)[0]


@torch.no_grad()
def block_loop(h, x):
    """Equations 2 to 4 for one cloud, pair by pair."""
    h, n, new_h, new_x = one.embed(h), len(x), [], []

    def pair(mlp, i, j, h):
        return nn.Sequential(*mlp)(torch.cat([h[i], h[j], start[i, j].repeat(2)]))

    for i in range(n):
        total = sum(pair(block.messages[0].edge_mlp, i, j, h) for j in range(n) if j != i)
        new_h.append(h[i] + block.messages[0].node_mlp(torch.cat([h[i], total])))
    for i in range(n):
        steps = [(j, pair(block.coordinates.mlp, i, j, new_h)) for j in range(n) if j != i]
        moves = [step * (x[i] - x[j]) / ((x[i] - x[j]).norm() + 1) for j, step in steps]
        new_x.append(x[i] + sum(moves))
    return one.out(torch.stack(new_h)), torch.stack(new_x)


# %%
with torch.no_grad():
    dense = one(h, x, mask)
for slow, fast in zip(block_loop(h[0], x[0]), dense, strict=True):
    print(f"largest difference {(slow - fast[0]).abs().max():.0e} of {fast.abs().max():.1f}")
    # Sums over 13 pairs in float32, in another order.
    assert torch.allclose(slow, fast[0], rtol=1e-4, atol=1e-4)

# %% [markdown]
# ### Inside
#
# A look into the first block of the figure's network, on caffeine: what the pairs see, what the gate lets through, and where they push.


# %% tags=["figure"]
@torch.no_grad()
def inside(model):
    """What the first block makes of caffeine, all pairs."""
    first, pairs = model.blocks[0], pair_mask(mask)
    square, vectors = pair_vectors(x, model.norm_constant)
    a = torch.stack([square, square], dim=-1)
    messages = first.messages[0].edge_mlp(model.embed(h), a)
    gates = first.messages[0].gate(messages).squeeze(-1).sigmoid()
    heard = first.messages[0](model.embed(h), a, pairs)
    steps = 15 * first.coordinates.mlp(heard, a).squeeze(-1).tanh()
    return [
        ("distance d_ij (Å)", square.sqrt(), "viridis"),
        ("size of the message m_ij", messages.norm(dim=-1), "viridis"),
        ("gate g_ij", gates, "viridis"),
        ("step s_ij (Å)", steps, "RdBu"),
    ], f"a_ij: {tuple(a.shape)}   m_ij: {tuple(messages.shape)}   v_ij: {tuple(vectors.shape)}"


def draw_inside():
    figure, axes = canvas(1, 4, 7.6, 2.5)
    panels, shapes = inside(egnn)
    off_diagonal = ~torch.eye(len(symbols), dtype=torch.bool)
    for each, (title, values, cmap) in zip(axes, panels, strict=True):
        shown = torch.where(off_diagonal, values[0], torch.nan)
        most = shown.nan_to_num().abs().max().item()
        limits = {"vmin": -most, "vmax": most} if cmap == "RdBu" else {}
        picture = each.imshow(shown, cmap=cmap, **limits)
        each.set_title(title)
        each.set_xticks(range(len(symbols)), symbols, size=6)
        each.set_yticks(range(len(symbols)), symbols, size=6)
        each.set_xlabel("atom j", size=8)
        each.tick_params(length=0)
        figure.colorbar(picture, ax=each, location="bottom", shrink=0.9).ax.tick_params(labelsize=6)
    axes[0].set_ylabel("atom i", size=8)
    c = egnn.blocks[0].coordinates.divisor
    figure.suptitle(f"{shapes}   sums over j are divided by c = {c}", size=8)
    return figure


show(
    draw_inside(),
    alt="Four squares of atom i against atom j of caffeine: distances, sizes of messages, gates, "
    "steps. Only the distances are symmetric",
)

# %% [markdown]
# Distances are symmetric. Messages are not: what i hears from j depends on who i is, and the two parts $W_1$ and $W_2$ of the weight differ. So forces need not be opposite, and the centre of the cloud may move; EDM subtracts the mean where it must not.
#
# ### How exact is it?
#
# Equation 1 holds for real numbers. On a computer it holds up to rounding, which grows from block to block. All kinds of networks, in 32 and in 64 bits:

# %%
KINDS = {
    "as EDM on QM9": {},
    "two inner layers": {"inner": 2},
    "no gate, no tanh": {"attention": False, "tanh": False},
    "waves": {"waves": True},
}
for name, options in KINDS.items():
    torch.manual_seed(0)
    model = awake(EGNN(3, width=32, depth=4, divisor=14.0, **options), 0.03)
    with torch.no_grad():
        single = max(symmetry_errors(model, h, x, mask).values())
        double = max(symmetry_errors(model.double(), h.double(), x.double(), mask).values())
    print(f"{name:>16}: {single:.0e} in float32, {double:.0e} in float64")

# %% [markdown]
# An error that shrinks with the precision, by eight or nine powers of ten, is rounding and not a broken symmetry. The waves lose more than the others, at both precisions, as their errors above say. So does the release with them: in the outputs that this course has frozen (`tests/reference/edm_info.json`), it is off by 4e-5 with waves and by 4e-6 without. So the course leaves the waves off.
#
# ### Padding
#
# Does a point that is not there matter? Put caffeine into room for 20 atoms, with rubbish in the places of the others:

# %%
room = 20


def more(values):
    """The values of 14 atoms, and rubbish for six that are not there."""
    return torch.cat([values, 7 + torch.randn(1, room - 14, values.shape[-1])], dim=1)


wider = torch.arange(room)[None] < len(symbols)
with torch.no_grad():
    alone, padded = egnn(h, x, mask), egnn(more(h), more(x), wider)
for name, one_cloud, in_room in zip("hx", alone, padded, strict=True):
    off = (one_cloud - in_room[:, :14]).abs().max()
    print(
        f"{name}: differs by {off:.0e}; what comes out for no atom: {in_room[:, 14:].abs().max()}"
    )

# %% [markdown]
# ### The whole of it
#
# A step of training, there and back, of the whole network: with long vectors, and as it is now.

# %%
torch.manual_seed(0)
ours = EGNN(4, width=64, depth=4)
naive = copy.deepcopy(ours)
for module in naive.modules():
    if isinstance(module, PairMLP):
        module.__class__ = Concatenating
clouds = torch.randn(64, 9, 4), torch.randn(64, 9, 3), torch.ones(64, 9, dtype=torch.bool)


def there_and_back(model):
    after_h, after_x = model(*clouds)
    (after_h.square().mean() + after_x.square().mean()).backward()


# %% tags=["figure"]
def compare():
    rows = []
    for name, model in (("[h_i | h_j | a_ij]", naive), ("W_1, W_2, W_3, lean", ours)):
        kept, _ = remembered(lambda model=model: model(*clouds))
        rows.append((name, kept / 1e6, 1e3 * seconds(lambda model=model: there_and_back(model), 5)))
        print(f"{name:>20}: {rows[-1][1]:.0f} MB remembered, {rows[-1][2]:.0f} ms")
    return rows


def draw_comparison(rows):
    figure, axes = canvas(1, 2, 7.0, 1.5, sharey=True)
    names = [name for name, *_ in rows]
    for k, (each, unit) in enumerate(
        zip(axes, ("MB remembered", "ms there and back"), strict=True)
    ):
        each.barh(names, [row[1 + k] for row in rows], color=[COLOURS["second"], COLOURS["first"]])
        each.set_xlabel(unit)
    axes[0].invert_yaxis()
    return figure


show(
    draw_comparison(compare()),
    alt="Bars of memory and time of a training step: the split and lean network needs clearly less "
    "of both than the one that builds long vectors",
)

# %% [markdown]
# The rest is in the second layers, whose products of matrices both have to do, and in the activations. Against the release's own form, with lists of edges, the script `tests/benchmarks/bench_edm.py` measures time and peak memory of a whole step.
#
# ## On real input
#
# ### How many rings?
#
# Something to learn: the number of rings of a molecule of QM9, from its cloud of atoms alone, without its bonds. The answer is invariant, and it is no simple function of the coordinates. The clouds come out of RDKit in a certain pose: the longest axis of a molecule lies nearly along the first axis of the coordinates.

# %%
vocabulary = Vocabulary(("C", "N", "O", "F"), 9, kekulize=True)


def ring_data(split, count):
    """Features, coordinates, mask and number of rings of the first molecules with a cloud."""
    smiles = qm9_table(split)["smiles"][:count].tolist()
    codes, rows, _ = encode_smiles(smiles, vocabulary)
    x = torch.from_numpy(qm9_coordinates(split)[:count])[rows]
    rings = [rdMolDescriptors.CalcNumRings(Chem.MolFromSmiles(smiles[row])) for row in rows]
    there, made = codes.atoms >= 0, ~x.isnan().any(dim=2).any(dim=1)
    h = F.one_hot(codes.atoms.long().clamp(min=0), 4) * there[..., None]
    return [part[made] for part in (h.float(), x, there, torch.tensor(rings).float())]


known = ring_data("train", at_scale(cpu=3000, gpu=16032))
unseen = ring_data("held_out", at_scale(cpu=1000, gpu=4008))
print(f"{len(known[0])} molecules to learn from, {len(unseen[0])} to be asked about")
print(
    "spread along the three axes:",
    [round(s, 2) for s in known[1][known[2]].std(dim=0).tolist()],
    "Å",
)
print(
    "share with 0, 1, 2 … rings:",
    [round(s, 2) for s in (torch.bincount(known[3].long()) / len(known[3])).tolist()],
)

# %% [markdown]
# Two networks: an EGNN whose one feature is added up over the atoms, and a plain one with three layers that reads all coordinates and features as one long vector, with more parameters. The plain one is trained twice, once on the clouds as they are, and once on clouds that are turned at random each time.


# %%
class RingEGNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = EGNN(4, width=24, depth=2, out=1)

    def forward(self, h, x, mask):
        return self.net(h, x, mask)[0].sum(dim=(1, 2))


class RingMLP(nn.Module):
    def __init__(self, width=256):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(9 * 7, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, h, x, mask):
        return self.net(torch.cat([h, x], dim=-1).flatten(1))[:, 0]


def turned(x, seed):
    return x @ random_turn(len(x), seed).to(x)


# %%
def taught(model, steps, turning=False):
    """Train it to guess the number of rings, and say how large it is."""

    def loss(model, batch):
        h, x, mask, rings = batch
        x = turned(x, int(torch.randint(2**31, ()))) if turning else x
        return (model(h, x, mask) - rings).square().mean()

    batches = DataLoader(TensorDataset(*known), batch_size=32, shuffle=True, drop_last=True)
    train(model.to(device()), loss, batches, steps=steps, learning_rate=4e-3, progress=False)
    return model.eval()


models = {}
for name, make, steps, turning in (
    ("EGNN", RingEGNN, at_scale(cpu=400, gpu=4000), False),
    ("plain", RingMLP, at_scale(cpu=1000, gpu=10000), False),
    ("plain, taught on turned", RingMLP, at_scale(cpu=1000, gpu=10000), True),
):
    torch.manual_seed(0)
    models[name] = taught(make(), steps, turning)
    print(f"{name}: {sum(p.numel() for p in models[name].parameters()):,} parameters")


# %%
@torch.no_grad()
def guesses(model, data, turning):
    h, x, there, _ = (part.to(device()) for part in data)
    return model(h, turned(x, 7) if turning else x, there).cpu()


print(f"mean error of a constant: {(unseen[3] - known[3].mean()).abs().mean():.2f} rings")
results = {}
for name, model in models.items():
    for pose in ("as they are", "turned"):
        results[name, pose] = guesses(model, unseen, pose == "turned")
    errors = [(results[name, pose] - unseen[3]).abs().mean() for pose in ("as they are", "turned")]
    learned = (guesses(model, known, False) - known[3]).abs().mean()
    print(
        f"{name:>23}: unseen {errors[0]:.2f}, unseen and turned {errors[1]:.2f}; learned {learned:.2f}"
    )


# %% tags=["figure"]
def draw_guesses():
    figure, axes = canvas(1, 3, 7.6, 2.7, sharey=True)
    wiggle = 0.12 * torch.randn(len(unseen[3]), generator=torch.Generator().manual_seed(0))
    for each, name in zip(axes, models, strict=True):
        for pose, ink, side in (("as they are", "first", -0.2), ("turned", "second", 0.2)):
            style = {"s": 3, "alpha": 0.35, "lw": 0, "color": COLOURS[ink]}
            each.scatter(unseen[3] + side + 0.5 * wiggle, results[name, pose], **style)
            each.scatter([], [], color=COLOURS[ink], s=14, label=pose)
        each.plot([-0.5, 5.5], [-0.5, 5.5], color="#777777", lw=0.8)
        each.set(title=name, xlabel="rings", xlim=(-0.6, 5.6), ylim=(-1.5, 6.5))
    axes[0].set_ylabel("guessed")
    axes[0].legend(loc="upper left", handletextpad=0.2, frameon=False, fontsize=8)
    return figure


show(
    draw_guesses(),
    alt="Guessed against true numbers of rings for three networks. The EGNN's guesses are the same "
    "for turned clouds and near the diagonal; the plain network's scatter more when the clouds are "
    "turned; taught on turned clouds it scatters the same for both, more than the EGNN",
)

# %% [markdown]
# The EGNN, with the fewest parameters, is best on clouds as they are, and a turn changes nothing. The plain network has learned the pose along with the molecules: turned, its error grows. Taught on turned clouds it no longer minds, but it has to learn each molecule in all poses, knows those it has seen less well than before, and stays far behind the EGNN. Symmetry that is built in does not have to be paid for with examples.
#
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `pair_vectors` | 6 | ●○○ |
# | `PairMLP` | 14 | ●●○ |
# | `MessageLayer` | 10 | ●●○ |
# | `CoordinateLayer` | 8 | ●○○ |
#
# <details><summary>Hint for <code>pair_vectors</code></summary>
#
# `x[:, :, None] - x[:, None]` has the vector from j to i in place i, j. Put 1e-8 under the root.
#
# </details>
#
# <details><summary>Hint for <code>PairMLP</code></summary>
#
# `first.weight.split([D, D, A], dim=1)` cuts the columns. $W_1 h_i$ is added along the second axis of atoms (`[:, :, None]`), $W_2 h_j$ along the first (`[:, None]`); the bias counts once. `_LeanLinear.apply(z, weight, bias)` is the activation and the layer after it.
#
# </details>
#
# <details><summary>Hint for <code>MessageLayer</code></summary>
#
# A tensor of weights (B, N, N), which is the mask times the gates, and one product of matrices: (1, N) times (N, D) for each atom.
#
# </details>
#
# <details><summary>Hint for <code>CoordinateLayer</code></summary>
#
# As before, with `vectors` in place of messages. The mask comes after tanh.
#
# </details>
#
# **Predict.** A cloud has one point. Where does an EGNN move it? Two points: in which directions can they go?
#
# <details><summary>Hint</summary>
#
# Which vectors are there in equation 4?
#
# </details>
#
# <details><summary>Answer</summary>
#
# One point stays: its sum is empty. It has to, since every direction would have to turn with a cloud that does not change when it is turned. Two points stay on their line. The cell below shows both.
#
# </details>

# %%
with torch.no_grad():
    alone = torch.tensor([[[1.0, 2.0, 3.0]]])
    one_atom = h[:, :1]
    print("one point:", (egnn(one_atom, alone, mask[:, :1])[1] - alone).tolist())
    moves = (egnn(h[:, :2], x[:, :2], mask[:, :2])[1] - x[:, :2])[0]
    print(
        "two points, off their line:",
        torch.linalg.cross(moves, x[:, 1] - x[:, 0]).abs().max().item(),
    )

# %% [markdown]
# **Find the bug.** A colleague adds the distance of each atom to the origin to its features, "since it is invariant and tells what is inside". The test with turned clouds passes. What is wrong?


# %%
class Colleague(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = awake(EGNN(4, width=32, depth=2, divisor=14.0), 0.1)

    def forward(self, h, x, mask):
        return self.net(torch.cat([h, x.norm(dim=-1, keepdim=True)], dim=-1), x, mask)


torch.manual_seed(0)
colleague = Colleague()
with torch.no_grad():
    errors = symmetry_errors(colleague, h, x, mask)
print(told(errors))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which of the four did the colleague test?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The origin is a place in the room. Rotation, reflection and permutation pass; translation fails. Take the distance to the mean of the cloud in place of the origin, over the points that are there, and all four pass.
#
# </details>
#
# **Measure.** How does the error of equation 1 grow with the number of blocks?
#
# <details><summary>Hint</summary>
#
# `symmetry_errors` for `depth` of 1, 2, 4, 8 and 16.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The cell below: it grows with depth, since each block rounds what the last one has rounded, and its distances are squared.
#
# </details>

# %%
for depth in (1, 2, 4, 8, 16):
    torch.manual_seed(0)
    deep = awake(EGNN(3, width=32, depth=depth), 0.01)
    with torch.no_grad():
        print(f"{depth:2d} blocks: {max(symmetry_errors(deep, h, x, mask).values()):.0e}")

# %% [markdown]
# ## What breaks
#
# ### The root of zero
#
# The slope of a root at 0 is infinite, and the slope of a square is 0. Their product is not a number, and one such pair spoils the gradients of all weights. Each point is such a pair with itself:

# %%
points = torch.randn(1, 3, 3, requires_grad=True)
squared_distances(points).sqrt().sum().backward()
print("gradient without a small number under the root:", points.grad[0, 0].tolist())

# %% [markdown]
# `pair_vectors` adds 1e-8 Å² there, as the release does. Even two atoms at the same place give finite gradients:

# %%
torch.manual_seed(0)
twins = torch.zeros(1, 4, 3, requires_grad=True)
model = awake(EGNN(2, width=16, depth=2), 0.1)
outputs = model(torch.randn(1, 4, 2), twins, torch.ones(1, 4, dtype=torch.bool))
sum(out.square().sum() for out in outputs).backward()
print("all four points at one place:", twins.grad.isfinite().all().item())

# %% [markdown]
# ### Left and right hands
#
# Equation 1 holds for mirrors too. That is one symmetry more than chemistry has: a molecule and its mirror image can be two drugs. No network of this kind tells them apart, by its construction. The two forms of alanine, in their own coordinates:

# %%
hands = [Chem.MolFromSmiles(text) for text in ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O")]
left = synthetic_coordinates(hands[0])[None]
right = left @ MIRRORED.T
kinds = torch.tensor(
    [[[float(a.GetSymbol() == kind) for kind in "CNO"] for a in hands[0].GetAtoms()]]
)
with torch.no_grad():
    answers = [egnn(kinds, hand, mask[:, :6])[0] for hand in (left, right)]
print(f"features of the two hands differ by {(answers[0] - answers[1]).abs().max():.0e}")

# %% [markdown]
# ### Nothing leaves a plane
#
# If all points lie in one plane, so do all vectors between them, and so do all sums of these. A flat cloud stays flat, whatever the network has learned. For a generator this means that its noise must not be flat.

# %%
flat = x * torch.tensor([1.0, 1.0, 0.0])
with torch.no_grad():
    print(
        "height over the plane afterwards:", egnn(h, flat, mask)[1][..., 2].abs().max().item(), "Å"
    )

# %% [markdown]
# ### Waves without a slope
#
# As released, the waves carry no gradient. So nothing that is read off the features of the last block tells the coordinates how to change:

# %%
for waves in (False, True):
    torch.manual_seed(0)
    model, place = EGNN(3, width=16, depth=1, waves=waves), x.clone().requires_grad_()
    model(h, place, mask)[0].sum().backward()
    size = 0.0 if place.grad is None else place.grad.abs().max().item()
    print(f"waves {waves!s:>5}: largest gradient of a feature by a coordinate {size:.1e}")

# %% [markdown]
# Guidance, which pulls a cloud along the gradient of a predicted property, would not work with such a predictor of one block, and badly with more.
#
# ### What the code says to bad input

# %%
with shows_error(ValueError):
    egnn(h[..., :2], x, mask)
with shows_error(ValueError):
    egnn(h, x, mask, edges=torch.zeros(1, 14, 14, 5))
with shows_error(ValueError):
    EGNN(3, depth=0)
with shows_error(ValueError):
    EGNN(3, divisor=0)
with shows_error(ValueError):
    EGNN(3, norm_constant=-1.0)

# %% [markdown]
# ## Recap
#
# - Distances are invariant, vectors between points are equivariant, and a vector times an invariant number is equivariant. A network that uses nothing else obeys equation 1 before it has learned anything.
# - The first layer on a pair splits into a part for each point and one for the pair; activations are computed again in place of remembered. The numbers stay the same.
# - What is built in is also what is given up: mirror images look alike, and a flat cloud stays flat.
#
# The line goes on in [lesson 4](4_autoencoder.ipynb), where an EGNN writes bonds into a cloud.
