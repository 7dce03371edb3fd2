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
# # Encoders: a vector for every block of an image
#
# **After this lesson you can** build the feature encoder and the context encoder of RAFT so that the published weights fit, say what each layer sees and what it costs, and tell why the two encoders normalise differently.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb) (`3_window`), and a little PyTorch: what a module and a gradient are. *Time:* 55 minutes, and 40 for the blanks.

# %% [markdown]
# ## Words
#
# To find where a piece of one photograph went in another, compare descriptions instead of colours. An **encoder** (编码器) turns an image $I$ into a map of **features** $F$: for every block of 8 × 8 pixels one **feature vector** (特征向量), a list of $D$ numbers. None of these numbers has a meaning of its own. They serve if they are alike for the same thing in both images, in whatever light, and unlike for different things; the training of lesson 7 brings that about.
#
# RAFT has two encoders of the same build. The **feature encoder** (特征编码器, $g_\theta$ in the paper) reads both images, each by itself, and its vectors are compared. The **context encoder** (上下文网络, $h_\theta$) reads image 1 alone and says what is there: where an object ends, where motion may jump. Both run once for a pair of images; what RAFT repeats, many times, comes after them.

# %% [markdown]
# ## Figure
#
# ### Three vectors
#
# The photographs are the stereo pair of [Windows](../6_bilinear_sampling/3_window.ipynb), and the encoder is the feature encoder of RAFT-small with the weights that lesson 7 trains. Images go in as numbers from −1 to 1. Most of this lesson works on photographs of half the size; the large ones serve for pictures of features.

# %%
import time
from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.patches import ConnectionPatch, Rectangle
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fourfold.bilinear_sampling.sampling import _check_floating
from fourfold.kit.checkpoints import load_tensors
from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, show, to_picture
from fourfold.kit.images import credit, stereo_pair
from fourfold.kit.notebook import shows_error
from fourfold.kit.scale import seed_everything
from fourfold.raft.encoders import BottleneckBlock, Encoder, ResidualBlock, receptive_field
from fourfold.raft.raft import RAFT


# %%
def prepared(image):
    """Numbers in [−1, 1], cut to a multiple of 8 pixels."""
    H, W = (size // 8 * 8 for size in image.shape[2:])
    return 2 * image[..., :H, :W] / 255 - 1


pair, full_pair = stereo_pair(shrink=2), stereo_pair()
large = [prepared(image) for image in (full_pair.left, full_pair.right)]
left, right = prepared(pair.left), prepared(pair.right)
H, W = left.shape[2:]
trained = RAFT.from_official(load_tensors(data_path("checkpoints", "raft_small.safetensors"))).fnet
with torch.no_grad():
    features = trained(torch.cat([left, right]))


# %%
def photo(image):
    """The picture of an image in [−1, 1]."""
    return to_picture((image + 1) * 127.5)


def block_of(pixel, colour, width=1.8):
    """The outline, in the photograph, of the 8 × 8 block that one vector stands for."""
    x, y = pixel
    return Rectangle((8 * x - 0.5, 8 * y - 0.5), 8, 8, fill=False, edgecolor=colour, lw=width)


# The dataset knows where a block of the left photograph lies in the right one.
disparity = F.avg_pool2d(pair.disparity[..., :H, :W], 8)[0, 0] / 8
query = (15, 15)
match = (query[0] - round(disparity[query[1], query[0]].item()), query[1])
other = (33, 10)
chosen = {"query": (0, query), "second": (1, match), "muted": (1, other)}
vectors = {colour: features[b, :, y, x] for colour, (b, (x, y)) in chosen.items()}


# %% tags=["figure"]
def draw_vectors():
    figure, axes = canvas(2, 2, 6.2, 3.2, height_ratios=[3, 1.2])
    for each, image, number in zip(axes[0], (left, right), (1, 2), strict=True):
        each.imshow(photo(image))
        each.set(title=f"image I, number {number}: {tuple(image.shape)}", xlabel="x (px)")
    axes[0, 0].set_ylabel("y (px)")
    for colour, (b, pixel) in chosen.items():
        axes[0, b].add_patch(block_of(pixel, "white", 4.5))
        axes[0, b].add_patch(block_of(pixel, COLOURS[colour], 2.2))
    for each in axes[1]:
        each.remove()
    strips = figure.add_subplot(axes[1, 0].get_gridspec()[1, :])
    lines = torch.stack([F.normalize(vector, dim=0) for vector in vectors.values()])
    strips.imshow(lines, aspect="auto", cmap="gray", interpolation="nearest")
    strips.set_yticks(range(3), ("chosen block", "its match", "another block"))
    for row, (label, colour) in enumerate(zip(strips.get_yticklabels(), chosen, strict=True)):
        label.set(color=COLOURS[colour], fontweight="bold")
        text = f"cosine {lines[row] @ lines[0]:.2f}".replace("-", "−")
        strips.text(1.01, row, text, transform=strips.get_yaxis_transform(), va="center", size=8)
    strips.tick_params(length=0, labelsize=8)
    strips.set(xlabel="number of the channel", title=f"three vectors of width D = {lines.shape[1]}")
    return figure


show(
    draw_vectors(),
    alt="Two photographs of a motorcycle with one block marked on the left, its match and another "
    "block on the right; below, the vectors of the three blocks as strips of grey",
    photo=True,
)
print(credit("motorcycle"))

# %% [markdown]
# Each strip is the vector of one marked block, scaled to length 1: the first two show the same thing from two cameras and are much alike; the third belongs to something else. The **cosine** (余弦) beside a strip is its inner product with the first strip: 1 for the same direction.
#
# ### The path through the encoder
#
# Three times on its way a layer halves the size. To see a map of many channels, reduce each pixel's vector to three numbers and draw them as red, green and blue: its coordinates along the three directions in which the vectors differ most (principal component analysis, PCA, 主成分分析).


# %%
def principal_colours(*maps):
    """Draw maps (1, C, H, W) in the colours of their three common principal directions."""
    vectors = torch.cat([F.normalize(each[0].flatten(1), dim=0).T for each in maps])
    vectors = vectors - vectors.mean(dim=0)
    directions = torch.linalg.eigh(vectors.T @ vectors).eigenvectors[:, -3:].flip(1)
    # A direction has no sign; fix it so that every run gives the same colours.
    directions = directions * directions.sum(dim=0).sign()
    colours = vectors @ directions
    colours = (127.5 + 60 * colours / colours.std(dim=0)).clamp(0, 255)
    parts = colours.split([each[0, 0].numel() for each in maps])
    return [part.T.reshape(1, 3, *each.shape[2:]) for part, each in zip(parts, maps, strict=True)]


# %%
def watch(model, image, names):
    """Run a model without gradients and keep what the layers of these names give."""
    kept = {}

    def keep(name):
        return lambda layer, arguments, result: kept.update({name: result})

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        kept["result"] = model(image)
    for handle in handles:
        handle.remove()
    return kept


# %% tags=["figure"]
def draw_path(image):
    maps = watch(trained, image, ["layer1", "layer2", "layer3"])
    titles = ("layer1, channels C", "layer2", "layer3", "features F")
    figure, axes = canvas(1, 5, 7.6, 1.75)
    axes[0].imshow(photo(image))
    axes[0].set(title="image I\n3 × {} × {}".format(*image.shape[2:]), xlabel="step S = 1")
    for each, title, values in zip(axes[1:], titles, maps.values(), strict=True):
        shape = values.shape[1:]
        each.imshow(to_picture(*principal_colours(values)))
        each.set(title=f"{title}\n{' × '.join(map(str, shape))}")
        each.set_xlabel(f"step S = {image.shape[3] // shape[2]}")
    for each in axes:
        each.set(xticks=[], yticks=[])
    return figure


show(
    draw_path(large[0]),
    alt="The left photograph and four maps in false colours, at a half, a quarter, an eighth and an "
    "eighth of its size, with their shapes",
    photo=True,
)

# %% [markdown]
# From left to right the maps have more channels and fewer pixels; the **step** is the distance, in pixels of the image, between neighbouring pixels of the map. Equal colours are similar vectors; which colour it is means nothing.
#
# ### One block from inside
#
# Between the first and the last convolution stand six **residual blocks** (残差块), two each at a half, a quarter and an eighth of the image's size. Here is what one of them does with its map: the first block of `layer2` of an untrained encoder, one channel of each map drawn. The **ReLU** (线性整流) between its steps replaces every negative number by 0.


# %%
seed_everything(0)
untrained = Encoder(256)
block = untrained.layer2[0]
names = ["layer1", "layer2.0.norm1", "layer2.0.norm2", "layer2.0.downsample", "layer2.0"]
inside = watch(untrained, left, names)


# %%
def spread(values):
    """The values below and above which one in fifty lies: limits for black and white."""
    return torch.quantile(values.flatten(), torch.tensor([0.02, 0.98])).tolist()


def arrow(start, end, tail=(1.0, 0.5), head=(0.0, 0.5)):
    """An arrow from the edge of one picture to the edge of another."""
    style = {"arrowstyle": "-|>", "color": COLOURS["query"], "lw": 1.6, "mutation_scale": 12}
    places = {"coordsA": "axes fraction", "axesA": start, "axesB": end}
    return ConnectionPatch(tail, head, **places, **style)


# %% tags=["figure"]
def draw_block(channel=5):
    conv = block.conv1
    kernel = f"kernel k = {conv.kernel_size[0]}, stride s = {conv.stride[0]}"
    steps = {
        (0, 0): ("map x", inside["layer1"]),
        (0, 1): (f"weights w, norm, ReLU\n{kernel}", inside["layer2.0.norm1"].relu()),
        (0, 2): ("branch y", inside["layer2.0.norm2"].relu()),
        (1, 1): ("short cut P", inside["layer2.0.downsample"]),
        (1, 2): ("ReLU of P + y", inside["layer2.0"]),
    }
    figure, axes = canvas(2, 3, 5.8, 3.0)
    axes[1, 0].set_axis_off()
    for place, (name, values) in steps.items():
        low, high = spread(values[0, channel])
        axes[place].imshow(values[0, channel], cmap="gray", vmin=low, vmax=high)
        shape = " × ".join(map(str, values.shape[1:]))
        axes[place].set(title=f"{name}\n{shape}", xticks=[], yticks=[])
    for start, end in (((0, 0), (0, 1)), ((0, 1), (0, 2)), ((0, 0), (1, 1)), ((1, 1), (1, 2))):
        figure.add_artist(arrow(axes[start], axes[end]))
    figure.add_artist(arrow(axes[0, 2], axes[1, 2], (0.93, 0.0), (0.93, 1.0)))
    return figure


show(
    draw_block(),
    alt="Five maps of one residual block: what comes in, two steps of the branch on top, the short "
    "cut below, and their rectified sum, with arrows between them",
    photo=True,
)

# %% [markdown]
# Under each name stand channels, rows and columns; the lightest and darkest two in a hundred pixels are clipped. The branch runs on top. Below it, the **short cut** brings the map itself to the branch's size, and the sum of the two passes a last ReLU. So the block has to learn only what to add to its map.

# %% [markdown]
# ## Formula
#
# A **convolution** (卷积) with a kernel of $k \times k$ pixels and **stride** (步幅) $s$ multiplies every window of the map $x$ with its weights $w$ and moves on by $s$ pixels. With the bias $b$ and a border of $m = (k-1)/2$ zeros, channel $d$ of the result at row $j$ and column $i$ is
#
# $$ x'_d[j, i] = b_d + \sum_{c}\sum_{q=0}^{k-1}\sum_{p=0}^{k-1} w_{d,c}[q, p]\; x_c[s\,j + q - m,\; s\,i + p - m] \tag{1} $$
#
# One number of the result depends on a square of the image, its **receptive field** (感受野) of $R$ pixels a side. Let $S$ be the step of a map, the distance between its neighbouring pixels in pixels of the image. Layer by layer, with $n$ counting the layers and $k_n$, $s_n$ those of the layer,
#
# $$ R_n = R_{n-1} + (k_n - 1)\,S_{n-1}, \qquad S_n = s_n\,S_{n-1}, \qquad R_0 = S_0 = 1 \tag{2} $$
#
# A **normalisation** (归一化) gives each channel $c$ mean 0 and variance 1 over a set $A$ of pixels. Its kind says which: **instance norm** takes the pixels of one image, **batch norm** those of all images of the batch. The small number $\epsilon$, or eps, keeps a flat channel from a division by 0:
#
# $$ \hat{x}_c = \frac{x_c - \operatorname{mean}_A x_c}{\sqrt{\operatorname{var}_A x_c + \epsilon}} \tag{3} $$
#
# Batch norm then multiplies each channel by a learned weight and adds a learned bias. In training it also keeps running values of both statistics, with **momentum** $\alpha$, and uses those instead when the model is only evaluated:
#
# $$ \text{running mean} \leftarrow (1 - \alpha)\,\text{running mean} + \alpha\,\operatorname{mean}_A x_c \tag{4} $$
#
# A residual block adds a branch $y$ to its map. The short cut $P$ is a 1 × 1 convolution with a norm where the size changes, and leaves $x$ as it is where it does not:
#
# $$ \text{block}(x) = \operatorname{relu}(P(x) + y), \qquad y = \operatorname{relu}(\text{norm}(\text{conv}(\operatorname{relu}(\text{norm}(\text{conv}(x)))))) \tag{5} $$
#
# A **bottleneck block** (瓶颈块) has a branch of three convolutions: 1 × 1 to a quarter of the channels, 3 × 3 there, 1 × 1 back. With $C$ channels in and out it takes, for each pixel, far fewer multiplications than the residual block:
#
# $$ \tfrac14 C^2 + \tfrac{9}{16} C^2 + \tfrac14 C^2 = \tfrac{17}{16} C^2 \quad\text{against}\quad 9\,C^2 + 9\,C^2 = 18\,C^2 \tag{6} $$
#
# The encoder is a 7 × 7 convolution of stride 2 with norm and ReLU, the six blocks with strides 1, 1, 2, 1, 2, 1, and a 1 × 1 convolution to $D$ channels, the width of a vector (256 in the published model, 128 in its small variant). It takes an image $I$ to its features $F$:
#
# $$ F = \text{encoder}(I), \qquad I \in \mathbb{R}^{3 \times H \times W}, \quad F \in \mathbb{R}^{D \times H/8 \times W/8} \tag{7} $$
#
# Before training, the weights $w$ are random numbers around 0. With this variance a gradient keeps its size on the way back through many layers (He et al. 2015); $C_\text{out}$ is the number of channels that come out:
#
# $$ \operatorname{var} w = \frac{2}{k^2\,C_\text{out}} \tag{8} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $I$ | image, each pixel in [−1, 1] | (B, 3, H, W) | `image` | image I |
# | $F$ | features: a vector for every 8 × 8 block | (B, D, H/8, W/8) | `features` | features F |
# | $D$ | width of a feature vector | whole number | `outputs` | width D |
# | $x$ | map that enters a layer or block | (B, C, H, W) | `x` | map x |
# | $C$ | channels of a map | whole number | `inputs` | channels C |
# | $k$ | side of a kernel | px of the map | `kernel` | kernel k |
# | $s$ | stride of a convolution | px of the map | `stride` | stride s |
# | $w$ | weights of a convolution | (C_out, C, k, k) | `weight` | weights w |
# | $R$ | side of the receptive field | px of the image | `size` | receptive field R |
# | $S$ | step from one pixel of a map to the next | px of the image | `step` | step S |
# | $A$ | pixels that share one mean and variance | a kind of norm | `kind` | pixels A |
# | $\epsilon$ | eps, added to a variance | number | `eps` | eps ε |
# | $\alpha$ | momentum of the running mean and variance | in (0, 1] | `momentum` | momentum α |
# | $y$ | branch of a block | (B, C, H, W) | `y` | branch y |
# | $P$ | short cut around the branch | module | `downsample` | short cut P |
#
# Letters of shapes: $B$ images, $H$ and $W$ the size of an image or map; in annotations $h$ and $w$ are the size after a block.

# %% [markdown]
# ## Code
#
# ### Convolution, number by number
#
# Equation 1 as three loops over the result, for one image. PyTorch's `conv2d` must give the same numbers.


# %%
def convolve_loop(x, weight, bias, stride):
    channels, _, kernel, _ = weight.shape
    x = F.pad(x, [(kernel - 1) // 2] * 4)
    height, width = ((size - kernel) // stride + 1 for size in x.shape[1:])
    result = torch.empty(channels, height, width)
    for d in range(channels):
        for j in range(height):
            for i in range(width):
                window = x[:, stride * j : stride * j + kernel, stride * i : stride * i + kernel]
                result[d, j, i] = bias[d] + (weight[d] * window).sum()
    return result


# %%
seed_everything(0)
for kernel, stride in ((7, 2), (3, 1), (3, 2), (1, 2)):
    x, weight, bias = torch.randn(3, 8, 12), torch.randn(4, 3, kernel, kernel), torch.randn(4)
    expected = F.conv2d(x[None], weight, bias, stride=stride, padding=kernel // 2)[0]
    # The same products in another order: float32 rounds sums of up to 147 of them at 1e-5.
    assert torch.allclose(convolve_loop(x, weight, bias, stride), expected, atol=1e-4)
    print(f"kernel {kernel}, stride {stride}: {tuple(x.shape)} -> {tuple(expected.shape)}")

# %% [markdown]
# Stride 2 halves the size; the width of the kernel does not change it, thanks to the border of zeros. The last line of the list is the short cut of a block.
#
# ### How far one vector sees
#
# Equation 2 in words: a kernel of $k$ pixels adds $k - 1$ of them, each as far apart as the step says, and a stride stretches the step of everything that follows.


# %% tags=["promote", "exercise"]
def receptive_field(layers: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Side of what one number sees, and the distance of neighbours (equation 2 of the lesson).

    layers   kernel and stride of each convolution, in order
    returns  (R, S) in pixels of the image: the side of the square that one number of the last map
             depends on, and the step from it to the next

    >>> receptive_field([(7, 2), (3, 1)])
    (11, 2)
    """
    size, step = 1, 1
    for kernel, stride in layers:
        size += (kernel - 1) * step
        step *= stride
    return size, step


# %% tags=["check"]
assert receptive_field([]) == (1, 1), "without a layer, a pixel sees itself"
assert receptive_field([(3, 1)]) == (3, 1), "one kernel of 3 sees 3 pixels"
assert receptive_field([(3, 2)]) == (3, 2), "the stride of a layer does not widen its own kernel"
assert receptive_field([(3, 2), (3, 1)]) == (7, 2), "after stride 2, kernels reach twice as far"
assert receptive_field([(1, 2), (1, 2), (5, 1)]) == (17, 4), "strides multiply"


# %%
def branch_layers(encoder):
    """Kernel and stride of the convolutions from the image to the features, short cuts left out."""
    return [
        (layer.kernel_size[0], layer.stride[0])
        for name, layer in encoder.named_modules()
        if isinstance(layer, nn.Conv2d) and "downsample" not in name
    ]


encoders = {"full": Encoder(256), "small": Encoder(128, block=BottleneckBlock, widths=(32, 64, 96))}
for name, encoder in encoders.items():
    R, S = receptive_field(branch_layers(encoder))
    print(f"{name}: R = {R} px, S = {S} px, {len(branch_layers(encoder))} convolutions")

# %% [markdown]
# The same square, measured. Take one vector of $F$ and ask for the gradient of its numbers with respect to the image: a pixel without gradient has no influence. To treat all $D$ numbers at once, multiply them by random signs, sum, and differentiate; the root mean square over several draws is the influence of each pixel.


# %%
def influence(encoder, image, pixel, draws=8):
    """Root mean square gradient of one feature vector at each pixel of the image, (H, W)."""
    x, y = pixel
    image = image.clone().requires_grad_()
    vector = encoder(image)[0, :, y, x]
    squares = torch.zeros(image.shape[2:])
    for _ in range(draws):
        signs = torch.randn_like(vector).sign()
        (gradient,) = torch.autograd.grad((vector * signs).sum(), image, retain_graph=True)
        squares += gradient[0].square().sum(dim=0)
    return (squares / draws).sqrt()


# %% [markdown]
# First an encoder without norms, where equation 2 should be exact, at column 22 and row 15 of the features.

# %%
seed_everything(1)
centre = (22, 15)
bare = Encoder(128, "none", BottleneckBlock, (32, 64, 96))
seen = influence(bare, left, centre) > 0
rows, columns = seen.any(dim=1).nonzero(), seen.any(dim=0).nonzero()
y0, y1, x0, x1 = (int(v) for v in (rows.min(), rows.max(), columns.min(), columns.max()))
print(f"columns {x0} to {x1}, rows {y0} to {y1}, middle ({(x0 + x1) / 2:g}, {(y0 + y1) / 2:g})")
assert x1 - x0 + 1 == y1 - y0 + 1 == receptive_field(branch_layers(bare))[0]

# %% [markdown]
# The square has the side that equation 2 says. Its middle lies at 8 times the position of the vector: on the first pixel of its 8 × 8 block, not in the middle of it. That comes from the strides: the first window of every layer is centred on its map's first pixel. The rest of RAFT learns with it.
#
# Now the trained feature encoder, with its instance norms.

# %%
weights_of_pixels = influence(trained, left, centre)
R, S = receptive_field(branch_layers(trained))


# %%
def share_within(side):
    """Share of the squared influence inside a square of this side around the vector."""
    x, y = (S * p for p in centre)
    reach = side // 2
    inside_square = weights_of_pixels[y - reach : y + reach + 1, x - reach : x + reach + 1]
    return (inside_square.square().sum() / weights_of_pixels.square().sum()).item()


narrow = next(side for side in range(1, R + 1, 2) if share_within(side) > 0.5)
print(f"half of the influence: {narrow} px a side; {R} px: {share_within(R):.1%}")


# %% tags=["figure"]
def draw_field(zoom=64):
    figure, axes = canvas(1, 2, 6.6, 2.5, width_ratios=[1.25, 1])
    x, y = (S * p for p in centre)
    axes[0].imshow(photo(left))
    drawn = axes[1].imshow(weights_of_pixels.clamp(min=1e-6).log10(), cmap="gray")
    figure.colorbar(drawn, ax=axes[1], label="log₁₀ of the influence").ax.tick_params(labelsize=8)
    for each in axes:
        for side, colour, line in ((R, "second", "-"), (narrow, "query", "--")):
            square = Rectangle((x - side / 2, y - side / 2), side, side, fill=False)
            square.set(edgecolor=COLOURS[colour], lw=1.8, ls=line)
            each.add_patch(square)
        each.set(xlabel="x (px)")
    axes[0].set(ylabel="y (px)", title=f"receptive field R = {R}, step S = {S}")
    axes[1].set(
        title="influence on one vector", xlim=(x - zoom, x + zoom), ylim=(y + zoom, y - zoom)
    )
    return figure


show(
    draw_field(),
    alt="The photograph with two nested squares around one place, and beside it the influence of the "
    "pixels around: bright in the small square, falling off in the large one, faint outside",
    photo=True,
)

# %% [markdown]
# The large square is the receptive field of the convolutions, enlarged on the right. Influence falls off quickly in it: half of the squared influence comes from the small dashed square. Luo et al. (2016, *Understanding the effective receptive field in deep convolutional neural networks*) found the same of deep networks in general. Outside the large square influence is small but not 0: every instance norm takes its mean and variance from the whole image, so through them each vector sees a little of everything.
#
# ### Normalisations
#
# Equation 3 is three lines, and the set $A$ is a choice of axes: rows and columns for instance norm; the images of the batch too for batch norm. **Group norm** (组归一化) takes the pixels of one image and of several channels, a group; with one channel in a group it is instance norm.


# %%
def normalise(x, axes, eps=1e-5):
    mean = x.mean(axes, keepdim=True)
    variance = x.var(axes, correction=0, keepdim=True)
    return (x - mean) / (variance + eps).sqrt()


# %% tags=["promote"]
def normalisation(kind: str, channels: int) -> nn.Module:
    """Make the layer that brings each channel to mean 0 and variance 1 (equation 3 of the lesson).

    kind      "instance": over the pixels of one image, nothing to learn; "batch": over those of
              all images of a batch, with a learned weight and bias for each channel, and at
              evaluation with running values of both statistics (equation 4); "none": no change
    channels  of the map to normalise

    Raises ValueError for another kind.
    """
    if kind == "instance":
        # A group for each channel. InstanceNorm2d is the same and takes several times as long on a
        # CPU, since it goes through batch norm.
        return nn.GroupNorm(channels, channels, eps=1e-5, affine=False)
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"kind is {kind!r}; expected one of instance, batch, none")


# %%
x = torch.randn(2, 4, 6, 8) * 3 + 1
# Both compute in float32, with the sums in another order.
assert torch.allclose(normalisation("instance", 4)(x), normalise(x, (2, 3)), atol=1e-5)
assert torch.allclose(normalisation("instance", 4)(x), F.instance_norm(x), atol=1e-5)
assert torch.allclose(normalisation("batch", 4).train()(x), normalise(x, (0, 2, 3)), atol=1e-5)
assert normalisation("none", 4)(x) is x

# %% [markdown]
# Take the photograph and a copy in bad light, with less contrast and more brightness, through one convolution and each of the norms.

# %%
dim = 0.5 * left + 0.25
both = torch.cat([left, dim])
with torch.no_grad():
    first_maps = untrained.conv1(both)
    normed = {kind: normalisation(kind, 64).train()(first_maps) for kind in ("instance", "batch")}


# %% tags=["figure"]
def draw_norms(channel=5):
    columns = {
        "map x\nafter one convolution": first_maps,
        "instance norm\npixels A of one image": normed["instance"],
        "batch norm\npixels A of both images": normed["batch"],
    }
    frames = {1: ("first", "n10"), 2: ("good", "good")}
    figure, axes = canvas(2, 4, 7.2, 2.6)
    for row, name in enumerate(("as it is", "in bad light")):
        axes[row, 0].imshow(photo(both[row : row + 1]))
        axes[row, 0].set_ylabel(name)
        for column, (title, maps) in enumerate(columns.items()):
            each, (low, high) = axes[row, column + 1], spread(maps[:, channel])
            each.imshow(maps[row, channel], cmap="gray", vmin=low, vmax=high)
            axes[0, column + 1].set_title(title)
            if column in frames:
                each.spines[:].set(visible=True, color=COLOURS[frames[column][row]], linewidth=2.5)
    axes[0, 0].set_title("image I")
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
    return figure


show(
    draw_norms(),
    alt="Two rows, the photograph and a dimmed copy; after instance norm both rows look the same, "
    "after batch norm the dimmed one stays flat",
    photo=True,
)

# %% [markdown]
# Grey means the same in both rows of a column; frames of one colour share one mean and variance. After instance norm the dimmed copy looks like the original; under batch norm it stays flat and shifted.
#
# This is what instance norm does for the feature encoder: its vectors are to be alike for the same thing, and two photographs of one scene rarely have the same light. Multiply an image by a positive factor, which changes its contrast, and its features stay the same, apart from eps. An added brightness is subtracted with the mean, but the border of zeros around a map does not brighten with it, so near the border something remains.


# %%
@torch.no_grad()
def change(encoder, image, other):
    """How far the features of another image are from those of the first, relative to their size."""
    before, after = encoder(image), encoder(other)
    return ((after - before).norm() / before.norm()).item()


# %% [markdown]
# Three encoders with the same random weights and different norms; the batch norms see the photograph a few times in training mode first, to have running values.

# %%
seed_everything(0)
kinds = ("instance", "batch", "none")
same_weights = {kind: Encoder(128, kind, BottleneckBlock, (32, 64, 96)) for kind in kinds}
for kind, encoder in same_weights.items():
    encoder.load_state_dict(same_weights["none"].state_dict(), strict=False)
    with torch.no_grad():
        for _ in range(20 if kind == "batch" else 0):
            encoder(left)
    encoder.eval()
    contrast, brightness = change(encoder, left, 0.5 * left), change(encoder, left, left + 0.25)
    print(f"{kind:>8}: half the contrast {contrast:.4f}, more brightness {brightness:.4f}")

# %% [markdown]
# 0 means the same features, 0.5 half of their size away. In the trained encoder, with the brightness measured also on features cut off four from each border:

# %%
rest = change(trained, left, 0.5 * left)
brighter = change(trained, left, left + 0.25)
inside_alone = change(lambda image: trained(image)[..., 4:-4, 4:-4], left, left + 0.25)
print(f"half the contrast {rest:.5f}, more brightness {brighter:.3f}, inside {inside_alone:.3f}")
assert rest < 0.01  # what is left is eps, beside a variance that became four times smaller
assert inside_alone < brighter

# %% [markdown]
# Both images can share one call: instance norm keeps the images of a batch apart, so a batch of two gives what two calls give.

# %%
with torch.no_grad():
    apart = torch.cat([trained(left), trained(right)])
# Another batch size may take another path through the convolution library: rounding only.
assert (features - apart).abs().max() < 1e-4 * apart.abs().max()

# %% [markdown]
# > **Why batch norm in the context encoder, and no norm in the small one?** The choice is the release's, and its code gives no reason. A plausible one: the context is compared with nothing, so it needs no invariance to light. Batch norm at evaluation is a fixed factor and offset for each channel, so a dark region stays dark, and nothing depends on the rest of the image. The small model leaves even that out.
#
# ### The two modes of batch norm
#
# In training mode the statistics come from the batch, and equation 4 follows them; in evaluation mode the running values stand still. Give the first norm of a context encoder batches of two photographs in changing light, and watch the running mean of the channel whose mean is largest.

# %%
seed_everything(0)
first_conv = Encoder(160, "batch", BottleneckBlock, (32, 64, 96)).conv1
with torch.no_grad():
    channel = int(first_conv(left).mean((0, 2, 3)).abs().argmax())
paths = {}
for momentum in (0.1, 0.01):
    norm = nn.BatchNorm2d(32, momentum=momentum)
    paths[momentum] = []
    for _ in range(60):
        light = torch.rand(2, 1, 1, 1) + 0.5
        with torch.no_grad():
            batch = first_conv(light * both)
            norm(batch)
        paths[momentum].append((batch[:, channel].mean().item(), norm.running_mean[channel].item()))


# %% tags=["figure"]
def draw_running_mean():
    figure, axes = canvas(1, 1, 5.6, 2.3)
    batches = [mean for mean, _ in paths[0.1]]
    axes.plot(batches, ".", color=COLOURS["muted"], label="mean of the batch, pixels A")
    for momentum, style in ((0.1, "-"), (0.01, "--")):
        running = [mean for _, mean in paths[momentum]]
        axes.plot(running, style, color=COLOURS["first"], label=f"running, momentum α = {momentum}")
    axes.set(xlabel="batches seen", ylabel="mean of one channel")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    return figure


show(
    draw_running_mean(),
    alt="Dots scatter around one level; a running mean reaches them within about twenty batches, "
    "another with a tenth of the momentum only part of the way",
)

# %% [markdown]
# The running mean starts at 0 and follows the batches, by a tenth of the way each time in PyTorch's default. A model that has seen few batches evaluates with wrong statistics.
#
# In all stages of training but the first, the release **freezes** the batch norms: they stay in evaluation mode while all else trains, their weight and bias too. Its authors have not said why ([princeton-vl/RAFT#141](https://github.com/princeton-vl/RAFT/issues/141) asks, without an answer). A plausible reason is the figure above: the statistics of small batches scatter. `model.train()` puts every layer back to training mode, so freeze after each call of it.


# %% tags=["promote", "exercise"]
def freeze_batch_norm(model: nn.Module) -> None:
    """Keep the running values of all batch norms as they are; weights and biases still train.

    Call it after each `model.train()`, which takes it back. Source: `freeze_bn` of the RAFT
    release, used in all stages of training but the first.
    """
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()


# %% tags=["check"]
two_norms = nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()))
two_norms.train()
freeze_batch_norm(two_norms)
two_norms(torch.randn(2, 3, 4, 4) + 5)
for frozen in (two_norms[0], two_norms[1][0]):
    assert frozen.running_mean.tolist() == [0, 0, 0], "a frozen norm keeps its running mean"
    # With the running values of the start, mean 0 and variance 1, a map passes almost unchanged.
    x = torch.randn(2, 3, 4, 4) + 5
    assert torch.allclose(frozen(x), x, atol=1e-3), "a frozen norm uses its running values"
assert two_norms.training and two_norms[1][1].training, "all other layers stay in training mode"
assert all(p.requires_grad for p in two_norms.parameters()), "weight and bias still train"

# %% [markdown]
# ### The residual block
#
# Equation 5 with functions, for a block of instance norms. This is the version to check against.


# %%
def convolve(layer, x):
    padding = layer.kernel_size[0] // 2
    return F.conv2d(x, layer.weight, layer.bias, stride=layer.stride, padding=padding)


def residual_naive(block, x):
    inside = normalise(convolve(block.conv1, x), (2, 3)).clamp(min=0)
    y = normalise(convolve(block.conv2, inside), (2, 3)).clamp(min=0)
    if len(list(block.downsample.children())):
        x = normalise(convolve(block.downsample[0], x), (2, 3))
    return (x + y).clamp(min=0)


# %% tags=["promote"]
def _short_cut(inputs: int, outputs: int, stride: int, norm: str) -> nn.Module:
    """The map as it is where a block keeps its shape; else a 1 × 1 convolution and a norm."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride), normalisation(norm, outputs))


# %% [markdown]
# Nothing else reads a map before its ReLU, so `relu_`, with an underscore, writes the result over it. On large maps new memory costs more time than the ReLU itself: on 2 × 64 × 220 × 512 numbers, the first maps of a pair of 440 × 1024 pixels, `relu` takes 16 ms on two cores and `relu_` 2 ms.


# %% tags=["promote", "exercise"]
class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions and a short cut around them (equation 5 of the lesson).

    inputs, outputs  channels
    stride           1, or 2 to halve the size
    norm             a kind of `normalisation`

    The branch passes a ReLU of its own before the sum, unlike that of He et al. 2016
    (arXiv 1512.03385). Source: the RAFT release.

    >>> import torch
    >>> ResidualBlock(64, 96, stride=2)(torch.zeros(1, 64, 32, 48)).shape
    torch.Size([1, 96, 16, 24])
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, norm: str = "instance") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm1 = normalisation(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = normalisation(norm, outputs)
        self.downsample = _short_cut(inputs, outputs, stride, norm)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y)).relu_()
        return (self.downsample(x) + y).relu_()


# %% tags=["check"]
seed_everything(0)
incoming = torch.randn(2, 6, 12, 16)
for width_out, by in ((6, 1), (8, 2)):
    one_block = ResidualBlock(6, width_out, by)
    told, computed = residual_naive(one_block, incoming), one_block(incoming)
    assert computed.shape == (2, width_out, 12 // by, 16 // by), "the shape of the result"
    assert computed.min() == 0, "the sum passes a ReLU"
    if by == 1:
        assert (computed >= incoming).all(), "the branch passes a ReLU too, so it lowers nothing"
    # Two float32 convolutions and norms, summed in another order.
    assert torch.allclose(computed, told, atol=1e-4), (
        f"not equation 5 at stride {by}: convolution, norm, ReLU, twice; then the sum"
    )

# %% [markdown]
# > **Where the code leaves the paper.** In He et al. (2016), who introduced residual blocks, the branch is added as its norm leaves it, and the sum alone passes a ReLU. RAFT's released code has one ReLU more, before the addition: its branch can raise a value and never lower it. Published weights were trained with it, so ours has it. The release also registers the norm of a short cut twice, as `norm3` and as `downsample.1` (`norm4` in the small model), and offers dropout, 0 by default; ours has one name and no dropout.

# %%
block = untrained.layer2[1]
x = inside["layer2.0"]
with torch.no_grad():
    branch = block.norm2(block.conv2(block.norm1(block.conv1(x)).relu()))
    lowered = ((x + branch).relu() < x).float().mean()
    assert (block(x) >= x).all()
print(f"He et al. would lower {lowered:.0%} of the values here, RAFT none")

# %% [markdown]
# ### The bottleneck block
#
# RAFT-small keeps the rule and changes the branch: three thin convolutions for two thick ones.


# %% tags=["promote"]
class BottleneckBlock(nn.Module):
    """A 3 × 3 convolution on a quarter of the channels, between two 1 × 1 ones (equation 5).

    Arguments as in `ResidualBlock`; `outputs` is a multiple of 4. With as many channels in as out
    it takes 17/16 · C² multiplications a pixel, where `ResidualBlock` takes 18 · C² (equation 6).

    Raises ValueError for other outputs.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, norm: str = "instance") -> None:
        super().__init__()
        if outputs % 4:
            raise ValueError(f"outputs is {outputs}; expected a multiple of 4")
        narrow = outputs // 4
        self.conv1 = nn.Conv2d(inputs, narrow, 1)
        self.norm1 = normalisation(norm, narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=stride, padding=1)
        self.norm2 = normalisation(norm, narrow)
        self.conv3 = nn.Conv2d(narrow, outputs, 1)
        self.norm3 = normalisation(norm, outputs)
        self.downsample = _short_cut(inputs, outputs, stride, norm)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y)).relu_()
        y = self.norm3(self.conv3(y)).relu_()
        return (self.downsample(x) + y).relu_()


# %%
def bottleneck_naive(block, x):
    y = x
    for name in ("conv1", "conv2", "conv3"):
        y = normalise(convolve(getattr(block, name), y), (2, 3)).clamp(min=0)
    if len(list(block.downsample.children())):
        x = normalise(convolve(block.downsample[0], x), (2, 3))
    return (x + y).clamp(min=0)


for outputs, stride in ((8, 1), (12, 2)):
    block = BottleneckBlock(8, outputs, stride)
    x = torch.randn(2, 8, 12, 16)
    assert torch.allclose(block(x), bottleneck_naive(block, x), atol=1e-4)  # as above


# %% [markdown]
# What does it save? By equation 1 each number of a result is a sum of `weight[0].numel()` products. Count them all, and let PyTorch count too; it counts a multiplication and an addition as two.


# %%
def multiplications(model, image):
    """Products in all convolutions of a model for one image."""
    convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    results = watch(model, image, convs)
    return sum(results[n].numel() * model.get_submodule(n).weight[0].numel() for n in convs)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


# %%
channels, small_map = 96, torch.randn(1, 96, 32, 48)
for kind in (ResidualBlock, BottleneckBlock):
    block = kind(channels, channels)
    count = multiplications(block, small_map)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(small_map)
    assert 2 * count == counter.get_total_flops()
    share = count / (32 * 48 * channels**2)
    print(f"{kind.__name__:>15}: {share:g} C² a pixel, {parameters(block):,} parameters")
print("ratio by equation 6:", 18 / (17 / 16))


# %% [markdown]
# ### The encoder
#
# Layer by layer, with functions, on top of `residual_naive`.


# %%
def encode_naive(encoder, image):
    x = normalise(convolve(encoder.conv1, image), (2, 3)).clamp(min=0)
    for layer in (encoder.layer1, encoder.layer2, encoder.layer3):
        for block in layer:
            x = residual_naive(block, x)
    return convolve(encoder.conv2, x)


# %% tags=["promote"]
def _pair(
    block: type[nn.Module], inputs: int, outputs: int, stride: int, norm: str
) -> nn.Sequential:
    first = block(inputs, outputs, stride, norm)
    return nn.Sequential(first, block(outputs, outputs, 1, norm))


# %% tags=["promote"]
def _initialise(layer: nn.Module) -> None:
    """Draw the weights of a convolution so that gradients keep their size (equation 8)."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


# %% tags=["promote"]
def _check_image(image: Tensor) -> None:
    _check_floating("image", image)
    shape = tuple(image.shape)
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"image has shape {shape}; expected (B, 3, H, W)")
    if shape[2] % 8 or shape[3] % 8 or 0 in shape:
        raise ValueError(f"image has shape {shape}; expected H and W to be multiples of 8")


# %% tags=["promote", "exercise"]
class Encoder(nn.Module):
    """Turn an image into a map of vectors at an eighth of its size (equation 7 of the lesson).

    outputs  D, the width of a vector
    norm     a kind of `normalisation`
    block    `ResidualBlock` or `BottleneckBlock`
    widths   channels at 1/2, 1/4 and 1/8 of the size, two blocks each

    Called with an image (B, 3, H, W) in [−1, 1], H and W multiples of 8, it returns features
    (B, D, H/8, W/8). Raises TypeError for an image of whole numbers and ValueError for another
    shape.

    Convention: the vector at (x, y) sees a square of the image centred on pixel (8x, 8y), x to the
    right, y down. Source: Teed and Deng 2020, RAFT (arXiv 2003.12039), section 3.1.

    >>> import torch
    >>> Encoder(256)(torch.zeros(1, 3, 64, 96)).shape
    torch.Size([1, 256, 8, 12])
    """

    def __init__(
        self,
        outputs: int,
        norm: str = "instance",
        block: type[ResidualBlock] | type[BottleneckBlock] = ResidualBlock,
        widths: tuple[int, int, int] = (64, 96, 128),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3)
        self.norm1 = normalisation(norm, widths[0])
        self.layer1 = _pair(block, widths[0], widths[0], 1, norm)
        self.layer2 = _pair(block, widths[0], widths[1], 2, norm)
        self.layer3 = _pair(block, widths[1], widths[2], 2, norm)
        self.conv2 = nn.Conv2d(widths[2], outputs, 1)
        self.apply(_initialise)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D H/8 W/8"]:
        _check_image(image)
        x = self.norm1(self.conv1(image)).relu_()
        features = self.conv2(self.layer3(self.layer2(self.layer1(x))))
        return features


# %% tags=["check"]
seed_everything(0)
tiny = Encoder(10, widths=(8, 12, 16))
two_images = torch.rand(2, 3, 48, 64) * 2 - 1
told, computed = encode_naive(tiny, two_images), tiny(two_images)
assert computed.shape == (2, 10, 6, 8), "one vector of width 10 for every 8 × 8 block"
assert computed.min() < 0, "nothing comes after the last convolution: features may be negative"
# Both sum in float32, in another order, through all layers.
assert torch.allclose(computed, told, atol=1e-3), "differs from the layers one by one"
with shows_error(ValueError):  # `_check_image` says what does not fit
    tiny(two_images[:, :, :44])

# %% [markdown]
# The names of the layers are those of the release, so that its weights fit without a table; lesson 6 loads them. All four encoders of RAFT are this one class. Their sizes, and what they multiply for one photograph of the size used here:

# %%
small = {"block": BottleneckBlock, "widths": (32, 64, 96)}
family = {
    "full, features": Encoder(256, "instance"),
    "full, context": Encoder(256, "batch"),
    "small, features": Encoder(128, "instance", **small),
    "small, context": Encoder(160, "none", **small),
}
for name, encoder in family.items():
    count = multiplications(encoder.eval(), left)
    start = time.perf_counter()
    with torch.no_grad():
        encoder(left)
    seconds = time.perf_counter() - start
    print(
        f"{name:>15}: {parameters(encoder):>9,} parameters, {count / 1e9:4.1f} billion products, "
        f"{count / (H * W):>6,.0f} a pixel, {seconds:.2f} s here"
    )

# %% [markdown]
# The context encoder's vectors are two vectors in one: its first 128 channels (96 in the small model) begin the hidden state that RAFT updates, after a $\tanh$; the rest goes into every update as it is, after a ReLU. Lesson 5 takes them from there.
#
# ### Weights before training
#
# Multiply by random weights layer after layer, and numbers grow or fade. A sum of $k^2 C$ independent products has $k^2 C$ times the variance of one, and a ReLU halves the mean square; so $\operatorname{var} w = 2 / (k^2 C)$, with the channels that come in, keeps the size of the *map*. The gradient runs backwards, from $C_\text{out}$ channels to $C$, so equation 8 keeps the size of the *gradient*. PyTorch's own default is smaller, $1 / (3 k^2 C)$. Send noise through eighteen 3 × 3 convolutions with ReLU, whose channels double twice, and measure both ends.


# %%
def through_layers(initialise, widths=(32,) * 7 + (64,) * 6 + (128,) * 6):
    """Root mean square of the map after a plain stack, and of its gradient before it."""
    seed_everything(0)
    noise = torch.randn(1, widths[0], 48, 48, requires_grad=True)
    x = noise
    for inputs, outputs in pairwise(widths):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        initialise(conv)
        x = conv(x).relu()
    x.backward(torch.randn_like(x))
    return [values.square().mean().sqrt().item() for values in (x, noise.grad)]


def kaiming(mode):
    return lambda conv: nn.init.kaiming_normal_(conv.weight, mode=mode, nonlinearity="relu")


# %%
starts = {
    "PyTorch's default": lambda conv: None,
    "by channels in": kaiming("fan_in"),
    "by channels out, equation 8": kaiming("fan_out"),
}
arriving = {name: through_layers(initialise) for name, initialise in starts.items()}
for name, (map_size, gradient_size) in arriving.items():
    print(f"{name:>27}: map {map_size:.2g}, gradient {gradient_size:.2g} of 1")
assert 1 / 3 < arriving["by channels out, equation 8"][1] < 3
assert arriving["PyTorch's default"][1] < 1e-3

# %% [markdown]
# With the default, next to nothing of the gradient arrives at the first layer. Both other rules keep map and gradient at the order of 1; the release takes the one that counts channels out.

# %% [markdown]
# ## On real input
#
# ### What features see
#
# The trained feature encoder of RAFT-small beside one of the same build with the random weights of equation 8, for both large photographs. The two maps of a column share their colours:

# %%
seed_everything(0)
random_weights = Encoder(128, block=BottleneckBlock, widths=(32, 64, 96))
maps, large_maps = {}, {}
with torch.no_grad():
    for name, encoder in {"trained": trained, "untrained": random_weights}.items():
        maps[name] = encoder(torch.cat([left, right]))
        large_maps[name] = encoder(torch.cat(large))


# %%
def draw_colours():
    figure, axes = canvas(2, 3, 5.4, 2.45)
    for row, name in enumerate(("image 1", "image 2")):
        axes[row, 0].imshow(photo(large[row]))
        axes[row, 0].set_ylabel(name)
    for column, (name, both_maps) in enumerate(large_maps.items(), start=1):
        pictures = principal_colours(both_maps[:1], both_maps[1:])
        for each, picture in zip(axes[:, column], pictures, strict=True):
            each.imshow(to_picture(picture), interpolation="nearest")
        axes[0, column].set_title(f"{name} weights")
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
    return figure


show(
    draw_colours(),
    alt="Both photographs, and their features in false colours: the parts of the motorcycle have "
    "colours of their own, the same in both photographs",
    photo=True,
)

# %% [markdown]
# Equal colours are similar vectors. In either column a part of the scene has the same colours above and below: even random weights answer to light, dark and edges alike in both photographs. What training adds is seen better in numbers:


# %%
def likeness(both_maps, cosine=True):
    """Every vector of image 1 with every vector of image 2: (H·W, H, W)."""
    first, second = (each.flatten(1) for each in both_maps)
    if cosine:
        first, second = F.normalize(first, dim=0), F.normalize(second, dim=0)
    return (first.T @ second).unflatten(1, both_maps.shape[2:])


# %%
rows, columns = torch.meshgrid(*(torch.arange(n) for n in features.shape[2:]), indexing="ij")
target = columns - disparity
known = (F.avg_pool2d(pair.valid[..., :H, :W].float(), 8)[0, 0] == 1) & (target >= 0)
# Whole blocks on whole blocks: a vector of a place between two blocks is another one.
whole = known & ((target - target.round()).abs() < 0.25)
for name, both_maps in maps.items():
    cosines = likeness(both_maps)
    own = cosines.unflatten(0, known.shape)[whole]
    at_match = own[torch.arange(len(own)), rows[whole], target.round().long()[whole]]
    print(f"{name:>9}: cosine {at_match.median():.2f} at the match, {own.median():z.2f} anywhere")

# %% [markdown]
# With random weights any two blocks have much in common. Training keeps the likeness of the same thing and takes away that of different things.
#
# ### Find one block again
#
# Take the vector of the block marked in the first figure, and compare it with all vectors of the right photograph, by cosine and by inner product (内积), which is the cosine times both lengths.


# %%
def draw_match():
    figure, axes = canvas(2, 2, 5.4, 3.0, sharex=True, sharey=True)
    for row, (name, both_maps) in enumerate(maps.items()):
        width = both_maps.shape[3]
        for each, measure in zip(axes[row], ("cosine", "inner product"), strict=True):
            values = likeness(both_maps, measure == "cosine")[query[1] * width + query[0]]
            each.imshow(values, cmap="gray")
            best = divmod(values.argmax().item(), width)[::-1]
            each.plot(*best, "s", color=COLOURS["second"], fillstyle="none", ms=9, label="largest")
            each.plot(*match, "+", color=COLOURS["query"], ms=9, mew=2, label="true match")
            each.set_title(f"{name}, {measure}")
        axes[row, 0].set_ylabel("y (map px)")
        axes[1, row].set_xlabel("x (map px)")
    axes[0, 1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


show(
    draw_match(),
    alt="Four maps of likeness to the chosen block, by cosine and inner product, with trained and "
    "untrained weights; a cross marks the true match and a square the largest value",
    photo=True,
)

# %% [markdown]
# Light means alike. The cross is the truth; where the square sits on it, the nearest vector is the right one. One block proves little, so take all whose motion is known:


# %%
def share_found(both_maps, cosine):
    """Share of blocks whose best lies within 1.5 map px of the match; number of different bests."""
    values = likeness(both_maps, cosine)
    height, width = known.shape
    best = values.flatten(1).argmax(dim=1).view(height, width)
    miss = torch.hypot(best % width - target, (best // width - rows).float())
    return (miss[known] < 1.5).float().mean().item(), len(best.unique())


found = {(name, c): share_found(both, c) for name, both in maps.items() for c in (True, False)}
for (name, cosine), (share, bests) in found.items():
    measure = "cosine" if cosine else "inner product"
    print(
        f"{name:>9}, {measure:>13}: {share:.0%} found, {bests} different blocks of {known.numel()}"
    )
for cosine in (True, False):
    assert found["trained", cosine] > found["untrained", cosine]

# %% [markdown]
# Training helps by either measure. The inner product favours long vectors; with random weights, a few long ones are the best match of everything. RAFT takes the inner product all the same. Its training shapes the lengths of the vectors too, and where here the largest number alone counts, a network weighs a whole window of them. [Correlation](4_correlation.ipynb), the next lesson, computes all of these likenesses.
#
# ### Move the image, and the features move
#
# A convolution does the same at every place. Move an image by 8 pixels, and its features move by one: the encoder is **equivariant** (等变) to steps of 8. To test it, cut two images out of one photograph, 8 pixels apart, and leave out vectors that see the border of zeros, which does not move along. The context encoder of RAFT-small, which has no norm, should pass exactly.

# %%
wide = 2 * pair.left[..., :H, :] / 255 - 1
context = RAFT.from_official(load_tensors(data_path("checkpoints", "raft_small.safetensors"))).cnet
margin = -(-(receptive_field(branch_layers(context))[0] // 2) // 8)  # in map px, rounded up


@torch.no_grad()
def change_after(encoder, shift, steps):
    """How far features of a moved image are from the features moved by `steps`, inside."""
    width = W - 16
    before, after = encoder(wide[..., :width]), encoder(wide[..., shift : shift + width])
    inner = slice(margin, -margin)
    before = before[:, :, inner, margin + steps : before.shape[3] - margin]
    after = after[:, :, inner, margin : after.shape[3] - margin - steps]
    return ((after - before).norm() / before.norm()).item()


# %%
for name, encoder in (("no norm", context), ("instance norm", trained)):
    exact = change_after(encoder, 8, 1)
    between = min(change_after(encoder, 3, 0), change_after(encoder, 3, 1))
    print(f"{name:>13}: moved by 8 px {exact:.1e}, by 3 px {between:.2f}")
assert change_after(context, 8, 1) < 1e-5  # float32, and the same products

# %% [markdown]
# Without a norm the features are the same numbers one place further on. With instance norm a little is left: the two cuts do not hold the same pixels, so their means and variances differ. After 3 pixels no whole step fits, and no shift of the old map gives the new one. RAFT has to find motions of a fraction of a block all the same: it learns to read them from how likenesses change between neighbouring blocks.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `receptive_field` | 10 | ●○○ |
# | `freeze_batch_norm` | 5 | ●○○ |
# | `ResidualBlock` | 10 | ●●○ |
# | `Encoder` | 15 | ●●○ |
#
# <details><summary>Hint for <code>receptive_field</code></summary>
#
# Keep two numbers, both 1 at the start. Which of the two has to be updated first, so that a layer's stride does not count for its own kernel?
#
# </details>
#
# <details><summary>Hint for <code>freeze_batch_norm</code></summary>
#
# `model.modules()` goes through all layers, however deep. Evaluation mode is a property of each layer by itself: `layer.eval()`. It is not the same as `requires_grad`.
#
# </details>
#
# <details><summary>Hint for <code>ResidualBlock</code></summary>
#
# `__init__` is given. Three lines: the branch's first half, its second half, the sum. Count the ReLUs of equation 5: there are three. `self.downsample` may be applied to every map; where the shape stays it does nothing.
#
# </details>
#
# <details><summary>Hint for <code>Encoder</code></summary>
#
# `__init__` is given, and `_check_image` sees to bad arguments. Follow the figure of the path: `conv1`, `norm1`, ReLU, three layers, `conv2`. Nothing comes after `conv2`: a ReLU there would leave no negative numbers, and no product of two vectors would be negative.
#
# </details>
#
# **Predict.** Add 5 to all biases of the feature encoder but those of the last convolution. How do the features change? What does it mean for training?


# %%
@torch.no_grad()
def features_with_raised_biases():
    raised = Encoder(128, block=BottleneckBlock, widths=(32, 64, 96))
    raised.load_state_dict(trained.state_dict())
    for name, parameter in raised.named_parameters():
        if name.endswith("bias") and name != "conv2.bias":
            parameter += 5
    return raised(left)


# %% [markdown]
# <details><summary>Hint</summary>
#
# What does equation 3 do with a number that is added to all pixels of a channel?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Not at all, up to rounding, as the next cell says: a bias is part of the mean, and instance norm subtracts the mean. The release has these biases all the same. Their true gradient is 0, and what an optimiser sees of it is rounding noise.
#
# </details>

# %%
difference = (features_with_raised_biases() - features[:1]).norm() / features[:1].norm()
print(f"relative difference with raised biases: {difference:.1e}")
assert difference < 1e-3

# %% [markdown]
# **Find the bug.** A reader writes instance norm like this and checks it on one image. The check passes. What is wrong, and which check would notice?


# %%
def instance_norm_wrong(x, eps=1e-5):
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance + eps).sqrt()


one, two = torch.randn(1, 4, 6, 8), torch.randn(2, 4, 6, 8)
agrees = [torch.allclose(instance_norm_wrong(x), F.instance_norm(x), atol=1e-5) for x in (one, two)]
print("one image:", agrees[0], " two images:", agrees[1])

# %% [markdown]
# <details><summary>Hint</summary>
#
# Which axis of (B, C, H, W) should not be averaged over? When does it make no difference?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Axis 0 is among the averaged: this is batch norm in training mode. With one image in the batch the two are the same, so test a norm with two images that differ.
#
# </details>
#
# **Vary.** What do $R$ and $S$ become when the first convolution has the whole stride, 8, and all others have stride 1? And with no stride at all? What does each of the two lose?
#
# <details><summary>Hint</summary>
#
# `receptive_field` takes any list. Multiplications grow with the number of pixels of a map: how many more pixels has a map without stride?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The next cell prints them. With all strides in front, every 3 × 3 kernel adds two steps of 8 pixels: a wide view, but the first layer throws detail away before any other has looked at it. Without stride a vector sees little, and the last layers work on 8 · 8 times as many pixels. Halving step by step lies between.
#
# </details>

# %%
path = branch_layers(encoders["full"])
kernels = [kernel for kernel, _ in path]
print("as it is:         R, S =", receptive_field(path))
print(
    "strides in front: R, S =", receptive_field([(kernels[0], 8), *((k, 1) for k in kernels[1:])])
)
print("no stride:        R, S =", receptive_field([(k, 1) for k in kernels]))

# %% [markdown]
# ## What breaks
#
# ### Evaluating in training mode
#
# Ask an encoder that was left in training mode for the context of a photograph, alone and beside a dark one. With batch norm the answer depends on the neighbour, and worse: each call changes the model.

# %%
seed_everything(0)
context = Encoder(128, "batch", BottleneckBlock, (32, 64, 96))
with torch.no_grad():
    for _ in range(20):
        context.train()(both)
    kept = context.norm1.running_mean.clone()
    for mode in (True, False):
        context.train(mode)
        alone, beside = context(left), context(torch.cat([left, 0.2 * left - 0.7]))[:1]
        print(
            f"training mode {mode!s:>5}: relative change {(alone - beside).norm() / alone.norm():.1e}"
        )
moved = not torch.equal(kept, context.norm1.running_mean)
print("running means changed, although no gradient was asked for:", moved)
assert moved

# %% [markdown]
# `torch.no_grad()` does not help: the running values are no gradients. `model.eval()` does, and `RAFT.estimate` calls it.
#
# ### A flat wall
#
# Where an image has no texture, a channel's variance is next to nothing, and instance norm divides by its root. To see what eps does, send noise of different strengths through the norm.

# %%
strengths = torch.logspace(-5, 0, 31)
noise = torch.randn(31, 1, 64, 64) * strengths[:, None, None, None]
strengths_after = normalisation("instance", 1)(noise).std(dim=(1, 2, 3))


# %% tags=["figure"]
def draw_eps():
    figure, axes = canvas(1, 1, 5.0, 2.3)
    axes.semilogx(strengths, strengths_after, ".-", color=COLOURS["first"])
    eps = normalisation("instance", 1).eps
    axes.axvline(eps**0.5, color=COLOURS["query"], ls="--")
    axes.text(eps**0.5 * 1.15, 0.1, f"root of eps ε = {eps:g}", color=COLOURS["query"])
    axes.set(xlabel="standard deviation of a channel before", ylabel="after")
    return figure


show(
    draw_eps(),
    alt="A curve that rises from 0 to 1 around the root of eps: weaker channels stay weak, all "
    "stronger ones come out with standard deviation 1",
)

# %% [markdown]
# Left of the dashed line a channel counts as flat and stays so. Right of it everything comes out with the same strength, the grain of a grey wall as much as a face. So the features of a photograph that shows only a wall are features of its noise. Compare two photographs of one wall, with a different noise in each:

# %%
seed_everything(0)
walls = [0.2 + 0.02 * torch.randn(1, 3, H, W) for _ in range(2)]
with torch.no_grad():
    a, b = (trained(wall) for wall in walls)
own = F.cosine_similarity(a, b).median()
elsewhere = F.cosine_similarity(a, b.roll(7, dims=3)).median()
print(f"median cosine at the same place {own:.2f}, seven blocks away {elsewhere:.2f}")

# %% [markdown]
# The same place of the wall is hardly more alike than another piece of it: there is nothing to match. RAFT has to take the motion of such a region from what lies around it.
#
# ### What the code says to bad input

# %%
with shows_error(TypeError):
    Encoder(8)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
with shows_error(ValueError):
    Encoder(8)(torch.zeros(1, 1, 64, 64))
with shows_error(ValueError):
    Encoder(8)(torch.zeros(1, 3, 60, 64))
with shows_error(ValueError):
    Encoder(8, norm="layer")
with shows_error(ValueError):
    BottleneckBlock(8, 10)

# %% [markdown]
# ## Recap
#
# - An encoder gives every 8 × 8 block a vector: one 7 × 7 convolution, six residual blocks, three halvings, a 1 × 1 convolution. The vector sees a square whose side the recurrence of equation 2 gives, and mostly its middle.
# - Instance norm makes features all but blind to the light of their image; batch norm has two modes, and the wrong one goes unnoticed until results differ.
# - Bottleneck blocks save most of the multiplications; the extra ReLU and the names of the layers are the release's, so that its weights fit.
#
# The line goes on in [Correlation](4_correlation.ipynb), which multiplies all vectors of image 1 with all of image 2. Chapter 5 builds CoTracker's encoder from the same residual blocks.
