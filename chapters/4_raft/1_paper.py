# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: beginner
#     minutes: 50
#     needs:
#     - 6_bilinear_sampling/3_window
#     promotes: false
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The paper: one flow field, corrected again and again
#
# **After this lesson you can** answer the four questions for RAFT, draw its pipeline with the shape of every array, and show with runs of your own where the classical way, an energy minimised from coarse to fine, loses what moves.
#
# *Before this:* [Windows: one fraction for a whole neighbourhood](../6_bilinear_sampling/3_window.ipynb) (`3_window`). [Reading cards](../1_paper_writing/3_reading_cards.ipynb) explains the four questions; the lesson can be read without it. *Time:* 50 minutes, and 25 for the exercises.

# %% [markdown]
# ## Words
#
# **Optical flow** (光流) says for every pixel of a first image how far it has moved in a second one: an arrow $(u, v)$ a pixel, to the right and down. Together the arrows are the **flow** $f$. Teed and Deng's paper of 2020 names what limits the best systems: objects that move fast (快速移动的物体), **occlusion** (遮挡: a part of the scene is hidden behind another), motion blur (运动模糊) and surfaces without texture (无纹理表面).
#
# The classical view is older than networks (Horn and Schunck, 1981): flow is the field of least **energy** $E$, a sum of two terms that pull in different directions. The **data term** (数据项) asks that a pixel and the place to which its arrow leads look alike. The **regularisation term** (正则化项) asks for a plausible motion: neighbours should have similar arrows. A weight $\alpha$ trades one off against the other. Such an energy sees a small step at a time, so it is minimised on small images first and refined on larger ones, a **cascade** from coarse to fine. What the coarse image does not show, or shows wrongly, the cascade seldom finds again.
#
# RAFT keeps the loop and replaces the rest. Similarity is that of learned features, computed **once for all pairs of pixels**. There is **one field**, at a single resolution. And the step is no longer derived from an energy: a small recurrent network looks up similarities around the place where the flow leads now, and says how to change it, again and again with the same weights.
#
# The paper's **key question** follows from there: which architecture performs better, trains more easily and generalises to scenes it has not seen? That is the first of the **four questions** of the notes. The second, what is new and where it is introduced, is answered under *Figure*; the third and the fourth, which experiments there are and what the form of their results lets one see, *On real input*.

# %% [markdown]
# ## Figure
#
# ### The pipeline, measured
#
# A real run of the model that this chapter builds: two photographs of a motorcycle, side by side as two eyes see it, through RAFT with weights that are still random. Shapes do not depend on the weights.

# %%
import torch
import torch.nn.functional as F
from matplotlib.colors import PowerNorm
from matplotlib.patches import Circle, FancyBboxPatch

from fourfold.bilinear_sampling.warps import flow_grid, inside, pixel_grid, warp
from fourfold.kit.data import data_path
from fourfold.kit.drawing import COLOURS, canvas, draw_pixels, flow_to_image, show, to_picture
from fourfold.kit.images import credit, photograph, stereo_pair
from fourfold.kit.notebook import shows_error
from fourfold.paper_writing.one_line import Pipeline
from fourfold.paper_writing.reading_cards import (
    Comparison,
    headline_results,
    open_questions,
    read_card,
)
from fourfold.raft.correlation import CorrelationVolume
from fourfold.raft.raft import RAFT

# %%
torch.manual_seed(0)
model = RAFT("full").eval()
stereo = stereo_pair(shrink=2)
left, right = stereo.left[..., :248, :368], stereo.right[..., :248, :368]

measured = {}


def keeper(name):
    """A hook that keeps what a part of the model takes and gives."""

    def keep(part, inputs, output):
        measured[name] = inputs, output

    return keep


hooks = [part.register_forward_hook(keeper(name)) for name, part in model.named_modules()]
with torch.no_grad():
    flows = model(left, right, iterations=4)
    volume = CorrelationVolume(*measured["fnet"][1].chunk(2), model.levels, model.radius)
for hook in hooks:
    hook.remove()


# %%
def box(axes, x, y, name, shape, colour="muted", width=1.5):
    """A box with a name in it and a measured shape, without the batch axis, below."""
    patch = FancyBboxPatch((x - width / 2, y - 0.24), width, 0.48, boxstyle="round,pad=0.03")
    patch.set(facecolor="white", edgecolor=COLOURS[colour], linewidth=1.6)
    axes.add_patch(patch)
    axes.text(x, y, name, ha="center", va="center", fontsize=8)
    text = " × ".join(map(str, shape))
    axes.text(x, y - 0.31, text, ha="center", va="top", fontsize=7)


def photo_box(axes, x, y, name, image, colour):
    """A small photograph in a coloured frame, its name above and its shape below."""
    height = 1.5 * image.shape[2] / image.shape[3]
    small = axes.inset_axes([x - 0.75, y - height / 2, 1.5, height], transform=axes.transData)
    small.imshow(to_picture(image))
    small.set(xticks=[], yticks=[])
    small.spines[:].set(visible=True, color=COLOURS[colour], linewidth=1.6)
    axes.text(x, y + height / 2 + 0.05, name, ha="center", va="bottom", fontsize=8)
    text = " × ".join(map(str, image.shape[1:]))
    axes.text(x, y - height / 2 - 0.06, text, ha="center", va="top", fontsize=7)


def arrow(axes, start, end, colour="black"):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour})


# %%
def shape_of(name):
    """The shape that a part of the model gave, without the batch axis."""
    return tuple(measured[name][1].shape[1:])


ARROWS = [
    ((0.8, 3.2), (1.15, 2.7)),  # image 2 to the feature encoder
    ((0.8, 1.6), (1.15, 2.35)),
    ((0.8, 1.2), (1.15, 0.75)),  # image 1 to the context network
    ((2.85, 2.5), (3.25, 2.5)),
    ((5.05, 2.5), (5.5, 2.5)),
    ((2.85, 0.6), (5.5, 0.6)),
    ((6.3, 2.0), (6.3, 0.9)),
    ((7.1, 0.6), (7.6, 0.6)),
    ((8.4, 2.78), (8.4, 3.1)),
]


# %% tags=["figure"]
def draw_pipeline():
    figure, axes = canvas(1, 1, 7.4, 3.7)
    looked_up = measured["update_block.encoder"][0][1]
    photo_box(axes, 0, 3.2, "image I2", right, "second")
    photo_box(axes, 0, 1.4, "image I1", left, "first")
    box(axes, 2, 2.5, "feature encoder", shape_of("fnet"), width=1.6)
    box(axes, 2, 0.6, "context network", shape_of("cnet"), width=1.6)
    for k, level in enumerate(volume.levels):
        sizes = (*shape_of("fnet")[1:], *level.shape[1:])
        box(axes, 4.15, 3.5 - 0.75 * k, f"all pairs, level {k}", sizes, width=1.65)
    box(axes, 6.3, 2.5, "look-up", looked_up.shape[1:], "query")
    box(axes, 6.3, 0.6, "recurrent unit", shape_of("update_block.gru"))
    box(axes, 8.4, 0.6, "change Δ", shape_of("update_block.flow_head"), "flow")
    box(axes, 8.4, 2.5, "flow f", flows[-1].coarse.shape[1:], "flow")
    box(axes, 8.4, 3.6, "flow, full size", flows[-1].full.shape[1:], "flow")
    for start, end in ARROWS:
        arrow(axes, start, end)
    arrow(axes, (8.4, 0.9), (8.4, 1.98), COLOURS["flow"])
    arrow(axes, (7.6, 2.5), (7.1, 2.5), COLOURS["flow"])
    note = "iteration n:\nsame weights,\nround and round"
    axes.text(7.35, 1.5, note, ha="center", va="center", fontsize=8)
    axes.set(xlim=(-0.85, 9.25), ylim=(0, 4.0))
    axes.set_axis_off()
    return figure


show(
    draw_pipeline(),
    alt="RAFT as boxes: two images go through one feature encoder, all pairs of features make a"
    " pyramid of four levels, the first image alone goes through the context network; a loop of"
    " look-up, recurrent unit, change and flow runs round, and the flow leaves at full size.",
    photo=True,
)

# %% [markdown]
# Channels first, then height and width. Everything left of the look-up runs once; the loop of four boxes on the right runs as often as one likes. See the level sizes: the first two numbers stay, since each pixel of image 1 keeps its own map; only the side of image 2 is pooled. The look-up reads a window of 9 × 9 on each of four levels:

# %%
window = (2 * model.radius + 1) ** 2
assert measured["update_block.encoder"][0][1].shape[1] == model.levels * window
model.levels * window

# %% [markdown]
# The parts, in the order of the notes:
#
# - The **feature encoder** (特征编码器) gives each place of both images a vector of 256 numbers, at an eighth of the size. Six residual blocks do it, two at a half, two at a quarter, two at an eighth.
# - The **correlation layer** multiplies all vectors of image 1 with all of image 2: the 4-D **correlation volume** (相关体积), pooled over the side of image 2 to a pyramid of four levels.
# - The **context network** (上下文网络) sees image 1 alone. Half of its channels start the memory of the recurrent unit; the other half are told to it in each iteration, so that it knows where an object ends.
# - The **update operator** starts from zero flow. It looks up (查找) similarities around the place to which the flow leads, and a **GRU** (gated recurrent unit, a small network with a memory) turns them into a change of the flow.
# - At the end, each coarse arrow becomes 8 × 8 fine ones.
#
# The loop adds: the flow after an iteration is the flow before plus the change that the flow head gave.

# %%
change = measured["update_block.flow_head"][1]
# The sum is kept as a position, up to 46; float32 rounds it to about 4e-6.
assert torch.allclose(flows[-1].coarse, flows[-2].coarse + change, atol=2e-5)

# %% [markdown]
# The same run as a table, made by the tracer of [chapter 1](../1_paper_writing/1_one_line.ipynb), which sees the parts that hold weights. What learns is two encoders and one update block.

# %%
traced = Pipeline.trace(model, left, right, keywords={"iterations": 2})
traced

# %% [markdown]
# ### What is new, and in which part of the paper it is introduced
#
# The card of the paper answers the second question (创新点). *Against* says which earlier habit the thing replaces.

# %%
card = read_card(data_path("cards", "raft.yaml"))


def as_table(parts, *fields):
    """Chosen fields of the parts of a card, as a table."""
    rows = [[getattr(part, field) for field in fields] for part in parts]
    rows = [tuple(", ".join(v) if isinstance(v, tuple) else v for v in row) for row in rows]
    return Comparison(tuple(field.replace("_", " ") for field in fields), tuple(rows))


print(card.question)
as_table(card.innovations, "name", "where_introduced", "against")

# %% [markdown]
# The first row holds three complaints about cascades: errors at coarse resolution stay, small fast objects are missed, and a cascade of stages takes many training iterations. The section *Code* tests the first two. It also helps to know what is *not* new, so that nobody praises the paper for it:

# %%
print(*card.not_new, sep="\n")

# %% [markdown]
# ## Formula
#
# ### An energy
#
# Write $x$ for the position of a pixel, $I_1(x)$ and $I_2(x)$ for the brightness of the two images there. If the flow were right and the light the same, a pixel would keep its brightness: $I_2(x + f(x)) = I_1(x)$. This is not linear in $f$, so it is made linear around a start $f_0$ that one has already. Two numbers of each pixel enter: how much the brightness has changed at the start, $d$, and the gradient $g$ of the brightness, its slope to the right and down:
#
# $$ d = I_2(x + f_0) - I_1(x), \qquad g = \tfrac12\, \nabla \left( I_1(x) + I_2(x + f_0) \right) \tag{1} $$
#
# The **residual** $\rho$ is the change of brightness that a flow leaves unexplained:
#
# $$ \rho = d + g \cdot (f - f_0) \tag{2} $$
#
# One number $\rho$ cannot give the two numbers $u$ and $v$ of an arrow: every arrow whose part along the gradient is right explains the brightness equally well. (Look at a moving edge through a small hole, and you cannot tell whether it slides along itself: the aperture problem, 孔径问题.) So a second wish is needed. Horn and Schunck (1981) add the squares of $\rho$ up and add a price for neighbours that differ. Here $x \sim y$ means each pair of pixels side by side or one above the other, once:
#
# $$ E(f) = \underbrace{\sum_x \rho(x)^2}_{\text{data}} + \frac{\alpha^2}{4} \underbrace{\sum_{x \sim y} \left| f(x) - f(y) \right|^2}_{\text{regularisation}} \tag{3} $$
#
# ### Its minimum
#
# Where $E$ is least its derivative with respect to the arrow of each pixel is zero. The data term gives $2 \rho\, g$. A pixel stands in four pairs, which give $\tfrac{\alpha^2}{4} \cdot 2 \cdot 4\, (f - \bar f)$. With the mean $\bar f$ of the four neighbours (beyond the border a pixel counts as its own neighbour) half of the sum reads, for each pixel,
#
# $$ \rho\, g + \alpha^2 \left( f - \bar f \right) = 0 \tag{4} $$
#
# Hold $\bar f$ fixed and solve for $f$. It moves away from the mean along the gradient, never across it:
#
# $$ f \leftarrow \bar f - g\, \frac{d + g \cdot (\bar f - f_0)}{\alpha^2 + |g|^2} \tag{5} $$
#
# Repeat for all pixels until nothing changes. Where the gradient is zero, the surface has no texture and the pixel takes the mean of its neighbours: a flow seeps from the edges inwards, one pixel a round. A steep edge, $|g|$ far above $\alpha$, believes the brightness; a flat place, $|g|$ far below, believes its neighbours. That is the trade-off in one fraction.
#
# ### A cascade
#
# The linear formula holds for about a pixel: further away the slope at a pixel says nothing about the brightness there. So both images are averaged to level $k$, where a motion is $2^k$ times shorter, and the flow of a level, enlarged, is the start of the next finer one:
#
# $$ f_0^{(k)} = 2 \cdot \mathrm{enlarge}\!\left( f^{(k+1)} \right) \tag{6} $$
#
# ### RAFT
#
# RAFT keeps one resolution and one field. In iteration $n$ it adds a change $\Delta$ that a network reads off the look-up; the change knows no energy, and it is not small by construction, since the coarsest level of the look-up reaches far:
#
# $$ f_{n+1} = f_n + \Delta(\text{look-up at } x + f_n,\ \text{context},\ \text{hidden state}) \tag{7} $$
#
# Equation 5 and equation 7 have the same shape, an old flow and a correction. In the first the correction is derived from a formula that someone wrote down; in the second it is learned from pairs whose true flow is known. How wrong a flow is, is measured by the **end-point error** $e$, its distance from the true flow $f^\star$:
#
# $$ e = \left| f - f^\star \right| \tag{8} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $x$ | position of a pixel, (x, y) | (H, W, 2), px | `grid` | x (px) |
# | $I_1$ | first image, its brightness | (B, 1, H, W), 0 to 255 | `image1` | image I1 |
# | $I_2$ | second image, its brightness | (B, 1, H, W), 0 to 255 | `image2` | image I2 |
# | $f$ | flow from image 1 to image 2, (u, v) | (B, 2, H, W), px | `flow` | flow f |
# | $f_0$ | start, the flow that one has already | (B, 2, H, W), px | `start` | start f0 |
# | $d$ | change of brightness at the start | (B, 1, H, W) | `difference` | difference d |
# | $g$ | gradient of the brightness | (B, 2, H, W), per px | `gradient` | gradient g |
# | $\rho$ | residual: change of brightness unexplained | (B, 1, H, W) | `residual` | residual ρ |
# | $\bar f$ | mean flow of the four neighbours | (B, 2, H, W), px | `mean` | mean of four |
# | $\alpha$ | weight of the regularisation | brightness per px | `alpha` | weight α |
# | $E$ | energy of a flow | brightness squared | `energy` | energy E |
# | $k$ | level of the cascade, 0 the finest | whole number | `k` | level k |
# | $n$ | number of the iteration | whole number | `n` | iteration n |
# | $\Delta$ | change of the flow by the network | (B, 2, H/8, W/8), px of 1/8 | `change` | change Δ |
# | $f^\star$ | true flow | (B, 2, H, W), px | `truth` | truth f* |
# | $e$ | end-point error of a pixel | (B, H, W), px | `errors` | error e |
#
# Letters of shapes: $B$ pairs of images, $H$ and $W$ height and width.

# %% [markdown]
# ## Code
#
# ### Equation by equation
#
# Equation 1. The slope at a pixel is half the difference of its two neighbours; at the border the pixel itself stands in for the one that is missing. Where the start leads out of image 2 nothing is known, so the data term is switched off there.


# %%
def neighbours(values):
    """The values to the left, to the right, above and below, each (B, C, H, W)."""
    padded = F.pad(values, (1, 1, 1, 1), mode="replicate")
    middle = slice(1, -1)
    left, right = padded[..., middle, :-2], padded[..., middle, 2:]
    return left, right, padded[..., :-2, middle], padded[..., 2:, middle]


def slope(image):
    left, right, above, below = neighbours(image)
    return torch.cat([right - left, below - above], dim=1) / 2


# %%
def linearise(image1, image2, start):
    """The difference d and the gradient g of the brightness at the start (equation 1)."""
    grid = flow_grid(start)
    moved = warp(image2, grid, padding="border")
    seen = inside(grid, *image2.shape[2:])[:, None]
    return (moved - image1) * seen, (slope(image1) + slope(moved)) / 2 * seen


# %% [markdown]
# Equations 2 and 3. The energy is not needed to find the flow; it is here to check that what is found is its minimum.


# %%
def energy(flow, start, difference, gradient, alpha):
    residual = difference + (gradient * (flow - start)).sum(1, keepdim=True)
    across, down = flow.diff(dim=3).square().sum(), flow.diff(dim=2).square().sum()
    return residual.square().sum() + alpha**2 / 4 * (across + down)


# %% [markdown]
# The naive version of equation 5: two loops over the pixels, for one small image and a start of zero.


# %%
def at(values, y, x):
    """The value at a pixel, of the nearest one outside."""
    return values[min(max(y, 0), len(values) - 1)][min(max(x, 0), len(values[0]) - 1)]


def step_loop(u, v, difference, gradient, alpha):
    """One round of equation 5 over lists of lists; returns the new u and v."""
    new_u, new_v = [row[:] for row in u], [row[:] for row in v]
    for y in range(len(u)):
        for x in range(len(u[0])):
            around = [(y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x)]
            mean_u = sum(at(u, *p) for p in around) / 4
            mean_v = sum(at(v, *p) for p in around) / 4
            gx, gy = gradient[0][y][x], gradient[1][y][x]
            left_over = difference[y][x] + gx * mean_u + gy * mean_v
            share = left_over / (alpha**2 + gx**2 + gy**2)
            new_u[y][x], new_v[y][x] = mean_u - gx * share, mean_v - gy * share
    return new_u, new_v


# %% [markdown]
# The same for all pixels at once, and for any start:


# %%
def one_round(flow, start, difference, gradient, alpha):
    """Equation 5 for every pixel."""
    mean = sum(neighbours(flow)) / 4
    residual = difference + (gradient * (mean - start)).sum(1, keepdim=True)
    return mean - gradient * residual / (alpha**2 + gradient.square().sum(1, keepdim=True))


# %% [markdown]
# Repeated, it is the method of Horn and Schunck:


# %%
def horn_schunck(image1, image2, alpha=30.0, iterations=100, start=None):
    """The flow of least energy around a start, after Horn and Schunck (equation 5).

    image1, image2  (B, 1, H, W) brightness in [0, 255]
    start           (B, 2, H, W) in pixels; zero when left out
    returns         (B, 2, H, W) in pixels

    Convention: (u, v), u to the right, v down, from image 1 to image 2.
    """
    if image1.shape != image2.shape or image1.shape[1] != 1:
        shapes = f"{tuple(image1.shape)} and {tuple(image2.shape)}"
        raise ValueError(f"image1 and image2 have shapes {shapes}; expected (B, 1, H, W) twice")
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}; expected a weight above 0")
    if start is None:
        start = image1.new_zeros(len(image1), 2, *image1.shape[2:])
    difference, gradient = linearise(image1, image2, start)
    flow = start
    for _ in range(iterations):
        flow = one_round(flow, start, difference, gradient, alpha)
    return flow


# %% [markdown]
# ### Three checks
#
# A formula with this many signs is easy to get wrong, and a wrong one still gives smooth pictures. So the method is checked three times: against loops, against the energy, and against a motion that is known. A picture whose exact motion is known: a sum of waves, which can be evaluated anywhere, so nothing is rounded by reading between pixels. It moves by half a pixel to the right and a quarter up.


# %%
def waves(H, W, motion=(0.0, 0.0)):
    """A smooth picture (1, 1, H, W) in [0, 255], moved by `motion` in pixels."""
    x, y = (pixel_grid(H, W) - torch.tensor(motion)).unbind(-1)
    return (128 + 50 * (0.3 * x + 0.2 * y).sin() + 50 * (0.25 * y - 0.1 * x).cos())[None, None]


motion = (0.5, -0.25)
image1, image2 = waves(48, 64), waves(48, 64, motion)
truth = torch.tensor(motion).view(1, 2, 1, 1).expand(1, 2, 48, 64)

# %% [markdown]
# First, the loops and the arrays agree:

# %%
small1, small2, nothing = image1[..., :9, :12], image2[..., :9, :12], torch.zeros(1, 2, 9, 12)
difference, gradient = linearise(small1, small2, nothing)
u = v = [[0.0] * 12 for _ in range(9)]
for _ in range(5):
    u, v = step_loop(u, v, difference[0, 0].tolist(), gradient[0].tolist(), alpha=30.0)
by_loop = torch.tensor([u, v])
by_array = horn_schunck(small1, small2, iterations=5)[0]
# The loop computes in float64, the arrays in float32: a few roundings of 1e-7 of under a pixel.
assert torch.allclose(by_loop, by_array, atol=1e-5)

# %% [markdown]
# Second, equation 5 leads to the minimum of equation 3. PyTorch differentiates the energy for us; equation 4 says that the derivative vanishes:

# %%
double1, double2 = image1.double(), image2.double()
start = torch.zeros(1, 2, 48, 64, dtype=torch.float64)
difference, gradient = linearise(double1, double2, start)
sizes = []
for iterations in (0, 3000):
    flow = horn_schunck(double1, double2, 30.0, iterations).requires_grad_()
    energy(flow, start, difference, gradient, 30.0).backward()
    sizes.append(flow.grad.abs().max().item())
print("largest derivative at the start and at the end:", sizes)
# In float64 the rounds stop moving at about 1e-12 of where they began.
assert sizes[1] < 1e-6 * sizes[0]

# %% [markdown]
# Third, the flow found is the one that was put in. Near the border the waves are seen from one side only, so the middle is measured:


# %%
def errors_of(flow, truth):
    """The end-point error of every pixel, (B, H, W) in pixels (equation 8)."""
    return (flow - truth).norm(dim=1)


flow = horn_schunck(image1, image2, alpha=30.0, iterations=500)
errors = errors_of(flow, truth)[0, 8:-8, 8:-8]
print(f"mean error {errors.mean():.3f} px of a motion of {truth[0, :, 0, 0].norm():.3f} px")
assert errors.mean() < 0.05  # a tenth of the motion; the linear formula itself errs by less


# %% tags=["figure"]
def draw_energy():
    figure, (first, second, third) = canvas(1, 3, 7.4, 2.7, width_ratios=(1, 1, 1.3))
    start = torch.zeros_like(truth)
    difference, gradient = linearise(image1, image2, start)
    first.imshow(gradient[0].norm(dim=0), cmap="gray")
    first.set(title="gradient g, its length", xlabel="x (px)", ylabel="y (px)")
    early = horn_schunck(image1, image2, iterations=20)
    u = early[0, 0, 23:26, 31:34]
    mean = (u[0, 1] + u[2, 1] + u[1, 0] + u[1, 2]) / 4
    draw_pixels(second, u, number="{:.3f}", fontsize=8)
    second.set_title(f"u of 3 × 3 pixels\nmean of four: {mean:.3f} px")
    for alpha, style in ((3.0, ":"), (30.0, "-"), (300.0, "--")):
        flow, heights = start, torch.zeros(40)
        for n in range(40):
            heights[n] = energy(flow, start, difference, gradient, alpha)
            flow = one_round(flow, start, difference, gradient, alpha)
        label = f"weight α = {alpha:g}"
        third.semilogy(heights, style, color="black", label=label)
    third.set(title="energy E falls", xlabel="iteration n", ylabel="energy E")
    third.legend(fontsize=7, loc="center right", bbox_to_anchor=(1.0, 0.35))
    return figure


show(
    draw_energy(),
    alt="Left: the length of the gradient of a wavy picture. Middle: nine values of u with the mean of"
    " four of them. Right: three curves of the energy that fall over forty iterations and flatten.",
)

# %% [markdown]
# Left: light where the picture is steep, the only places where the data term speaks. Middle, in the units of the flow: a pixel and its neighbours after twenty rounds; the next round starts from the mean. Right, for three weights on a logarithmic axis: the energy falls in each round. A large weight costs more at the end, since it pays for every difference between neighbours.
#
# ### What the energy sees of a photograph
#
# A photograph, cut twice from a larger one, the second time one pixel further: the motion is exact and nothing is invented at the border.


# %%
def grey(image):
    return image.mean(dim=1, keepdim=True)


def cut(image, margin=24, width=256):
    return image[..., margin:-margin, margin : margin + width]


def constant_flow(motion, H, W):
    return torch.tensor(motion, dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, H, W)


def moved_photograph(name, motion):
    """Two cuts of a photograph that differ by a motion in pixels, and the true flow."""
    whole = photograph(name, height=240)
    flow = constant_flow(motion, *whole.shape[2:])
    # What is at q in image 2 was at q − motion in image 1: the picture is read backwards.
    moved = warp(whole, flow_grid(-flow), padding="border")
    return cut(whole), cut(moved), cut(flow)


cat1, cat2, cat_truth = moved_photograph("chelsea", (1, -0.5))
one_level = horn_schunck(grey(cat1), grey(cat2), iterations=300)


# %% tags=["figure"]
def draw_terms():
    image1, image2 = grey(cat1), grey(cat2)
    start = torch.zeros_like(cat_truth)
    difference, gradient = linearise(image1, image2, start)
    flow = one_level
    residual = difference + (gradient * (flow - start)).sum(1, keepdim=True)
    figure, axes = canvas(2, 3, 7.2, 4.0, sharex=True, sharey=True)
    signed = {"cmap": "gray", "vmin": -25, "vmax": 25}
    panels = [
        ("image I1", image1[0, 0], {"cmap": "gray"}, "first"),
        ("image I2", image2[0, 0], {"cmap": "gray"}, "second"),
        ("gradient g, its length", gradient[0].norm(dim=0), {"cmap": "gray", "vmax": 40}, None),
        ("difference d at the start f0 = 0", difference[0, 0], signed, None),
        ("residual ρ of the flow found", residual[0, 0], signed, None),
        ("flow f, its part u (px)", flow[0, 0], {"cmap": "gray", "vmin": 0, "vmax": 1.5}, "flow"),
    ]
    for each, (title, values, look, colour) in zip(axes.flat, panels, strict=True):
        picture = each.imshow(values, **look)
        each.set_title(title, color=COLOURS[colour] if colour else "black")
    figure.colorbar(picture, ax=axes[1, 2], shrink=0.8)
    axes[1, 0].set(xlabel="x (px)", ylabel="y (px)")
    return figure


show(
    draw_terms(),
    alt="Six pictures of a cat: image 1, image 2, the length of the gradient with light edges, the"
    " difference with black and white edges, the residual which is nearly grey all over, and the flow,"
    " whose part u is uneven: lighter at the edges, darker in between.",
    photo=True,
)
print(credit("chelsea"))

# %% [markdown]
# Grey is 0 in the lower left two pictures, white and black are ± 25 steps of brightness. The flow found explains nearly all of the difference (the residual is flat), and yet its part u is not the even 1 that it should be. The energy is low; the flow is still partly wrong. That is the classical weakness: **the energy is a guess at what one wants**, and a low value of it proves little.

# %%
errors = errors_of(one_level, cat_truth)
print(f"mean error {errors.mean():.2f} px of a motion of {cat_truth[0, :, 0, 0].norm():.2f} px")
assert 0.1 < errors.mean() < 0.6

# %% [markdown]
# ### From coarse to fine
#
# Equation 6, a loop around `horn_schunck`. Averaging 2 × 2 pixels makes the next coarser image. On each level the data term is made linear afresh around the flow so far, three times.


# %%
def enlarge(flow, size):
    """A flow on a grid of twice the size, its vectors twice as long (equation 6)."""
    return 2 * F.interpolate(flow, size=size, mode="bilinear", align_corners=False)


def cascade(image1, image2, levels=4, alpha=30.0, repeats=3):
    """The flow on every level, from the coarsest to the finest, each in its own pixels."""
    pyramid = [(image1, image2)]
    for _ in range(levels - 1):
        pyramid.append(tuple(F.avg_pool2d(image, 2) for image in pyramid[-1]))
    flows, start = [], None
    for first, second in reversed(pyramid):
        start = None if not flows else enlarge(flows[-1], first.shape[2:])
        for _ in range(repeats):
            start = horn_schunck(first, second, alpha, start=start)
        flows.append(start)
    return flows


# %%
coarse_to_fine = cascade(grey(cat1), grey(cat2))[-1]
errors = errors_of(coarse_to_fine, cat_truth)
print(f"mean error {errors.mean():.2f} px")
assert errors.mean() < errors_of(one_level, cat_truth).mean() / 2

# %% [markdown]
# Better even for this small motion: a coarse level carries a motion across the flat places in fewer rounds, and making the formula linear three times repairs what one slope gets wrong. Now let the motion grow:

# %%
lengths = (0.5, 1, 2, 4, 8, 16)
mean_errors = {"one level": [], "four levels": []}
for length in lengths:
    first, second, truth = moved_photograph("chelsea", (length, 0))
    found = horn_schunck(grey(first), grey(second)), cascade(grey(first), grey(second))[-1]
    for name, flow in zip(mean_errors, found, strict=True):
        mean_errors[name].append(errors_of(flow, truth).mean().item())
for name, values in mean_errors.items():
    print(f"{name:>11}:", *(f"{value:6.2f}" for value in values))
# From four pixels on one level finds less than half of the motion, four levels nearly all.
assert mean_errors["one level"][3] > 2 and mean_errors["four levels"][3] < 0.4

# %% [markdown]
# So the cascade was a great invention: on a photograph that moves as a whole it finds what one level cannot see. Its weaknesses show when something moves *inside* the picture.
#
# ### Two weaknesses in one scene
#
# A made scene: gravel that rests, and discs of the same photograph of coins that all move 16 pixels to the right. Only the radius differs.

# %%
H, W, MOTION = 192, 256, (16.0, 0.0)
CENTRE = torch.tensor([96.0, 96.0])
gravel = photograph("gravel", height=300)[..., :H, :W]
coins = photograph("coins", height=300)[..., 40 : 40 + H, 20 : 20 + W]
grid = pixel_grid(H, W)


def disc(radius, centre):
    return ((grid - centre).norm(dim=-1) <= radius)[None, None].float()


def disc_scene(radius, motion=MOTION, back=gravel, front=coins):
    """A disc of one photograph moves over another: two images, the true flow, the two discs."""
    here, there = disc(radius, CENTRE), disc(radius, CENTRE + torch.tensor(motion))
    flow = constant_flow(motion, H, W)
    moved = warp(front, flow_grid(-flow), padding="border")
    image1 = torch.lerp(back, front, here)
    return image1, torch.lerp(back, moved, there), flow * here, here, there


# %%
def errors_by_level(radius, motion=MOTION):
    """The median error on the disc after each level, coarse to fine, in pixels of the full size."""
    first, second, truth, here, _ = disc_scene(radius, motion)
    medians = []
    for flow in cascade(grey(first), grey(second), levels=5):
        while flow.shape[2] < H:
            flow = enlarge(flow, [2 * size for size in flow.shape[2:]])
        errors = errors_of(flow, truth)
        medians.append(errors[here[:, 0] == 1].median().item())
    return medians, errors[0]


by_radius = {radius: errors_by_level(radius) for radius in (4, 8, 12, 16, 24, 32)}
for radius, (medians, _) in by_radius.items():
    print(f"radius {radius:2}:", *(f"{median:5.1f}" for median in medians))


# %%
def draw_circles(axes, radius):
    """Outline the disc where it is in image 1 and where it has gone."""
    for centre, colour in ((CENTRE, "first"), (CENTRE + torch.tensor(MOTION), "second")):
        circle = Circle(centre.tolist(), radius, fill=False, linewidth=1.3, color=COLOURS[colour])
        axes.add_patch(circle)
    axes.set(xlim=(48, 160), ylim=(144, 48), xlabel="x (px)")


# %% tags=["figure"]
def draw_scene():
    figure, axes = canvas(1, 4, 7.8, 2.5, width_ratios=(1, 1, 1, 1.5))
    axes[0].imshow(to_picture(disc_scene(8)[0]))
    axes[0].set(title=f"image 1, radius 8 px\ntruth f*: {MOTION[0]:g} px", ylabel="y (px)")
    for each, radius in zip(axes[1:3], (8, 24), strict=True):
        picture = each.imshow(by_radius[radius][1], cmap="inferno", vmin=0, vmax=20)
        each.set_title(f"error e,\nradius {radius} px")
    for each, radius in zip(axes[:3], (8, 8, 24), strict=True):
        draw_circles(each, radius)
    options = {"location": "bottom", "shrink": 0.8}
    figure.colorbar(
        picture, ax=axes[1:3], label="error e (px)", ticks=(0, 5, 10, 15, 20), **options
    )
    for radius, style in ((8, "o-"), (12, "s--"), (24, "^:")):
        medians, _ = by_radius[radius]
        axes[3].plot(medians, style, color="black", markersize=4)
        axes[3].text(4.2, medians[-1], f"radius {radius}", va="center", fontsize=7)
    axes[3].plot([-0.5, 4.1], MOTION[:1] * 2, color=COLOURS["muted"], linewidth=0.8)
    axes[3].text(4.2, MOTION[0], "zero flow", va="center", fontsize=7)
    axes[3].set_xticks(range(5), [4, 3, 2, 1, 0])
    axes[3].set(xlabel="level k", ylabel="median error (px)", xlim=(-0.5, 6.2), ylim=(0, 24))
    return figure


show(
    draw_scene(),
    alt="Image 1 with a small disc of coins on gravel. An error map with one bright disc of radius 8,"
    " error 20 pixels. One of radius 24, dark inside with a bright rim. The median error after each"
    " level: for radius 8 it stays about that of zero flow, for 12 and 24 it falls.",
    photo=True,
)
print(credit("gravel"), credit("coins"), sep="\n")

# %% [markdown]
# Blue is where a disc is in image 1, orange where it has gone. The large disc is found; the small one is lost, though both are equally sharp and move equally far. On the right the small disc's error is as large as the motion on the coarsest level, and **no finer level brings it down**: what the coarse level has missed, stays missed.

# %%
small, large = by_radius[8][0], by_radius[24][0]
assert min(small) > 0.8 * MOTION[0] and large[-1] < 0.25 * MOTION[0]

# %% [markdown]
# Does the fine level lack the power, or does it lack the start? Give it the true flow as a start:

# %%
first, second, truth, here, _ = disc_scene(8)
kept = horn_schunck(grey(first), grey(second), start=truth)
on_disc = errors_of(kept, truth)[here[:, 0] == 1].median().item()
print(f"median error on the disc of radius 8: {on_disc:.1f} px from the true start,")
print(f"{small[-1]:.1f} px at the end of the cascade")
assert on_disc < small[-1] / 4

# %% [markdown]
# It holds on to a good start, so the start is to blame: on the coarse image the small disc has melted into the gravel, and the brightness of the gravel says "nothing moves". The third weakness, the many training iterations that a cascade of networks takes, cannot be shown by an energy that learns nothing; the paper states it, and its remedy is in equation 7: the same small network at each iteration, so that there is one stage to train.
#
# ### All pairs, no cascade
#
# RAFT's answer needs no start. Compare the middle of the small disc with **every** place of image 2, at one resolution. Here the features are the raw patterns of 9 × 9 blocks, as in [chapter 6](../6_bilinear_sampling/3_window.ipynb); RAFT learns better ones.


# %%
def patterns(image, size=9):
    """The grey pattern around every pixel, without its mean and of length 1: (81, H, W)."""
    blocks = F.unfold(grey(image), size, padding=size // 2)[0]
    return F.normalize(blocks - blocks.mean(dim=0), dim=0).view(-1, *image.shape[2:])


x, y = CENTRE.long().tolist()
pattern = patterns(first)[:, y, x]
similarity = torch.einsum("d,dhw->hw", pattern, patterns(second))
peak = divmod(similarity.argmax().item(), W)
print(f"most alike: ({peak[1] - x}, {peak[0] - y}) px away, similarity {similarity.max():.2f}")
assert (peak[1] - x, peak[0] - y) == MOTION

# %% [markdown]
# The small disc is found at once, because nobody had to see it in a small image first. The price is memory: one number for each pair of pixels. That is why RAFT works at an eighth of the size, and why [lesson 4](4_correlation.ipynb) has a second way to compute what is looked up.

# %% [markdown]
# ## On real input
#
# ### The four problems
#
# Each problem of the paper's first paragraph, on a pair of photographs whose motion is known exactly, and each beside a control, so that it is the problem that is measured and not the photograph.
#
# *Fast*: the cat moves 12 pixels to the right and 6 up; the control moves a twelfth of that. *Hidden*: a disc cut from a photograph of a cup glides 4 pixels over a temple and covers a crescent of it; the control is the rest of the picture.

# %%
pairs = {"fast": moved_photograph("chelsea", (12, -6)), "slow": (cat1, cat2, cat_truth)}

china, coffee = (cut(photograph(name, height=240)) for name in ("china", "coffee"))
*pairs["hidden"], here, there = disc_scene(50, (4.0, 0.0), back=china, front=coffee)
crescent = (there > here)[:, 0]

# %% [markdown]
# *Blurred*: while the shutter of the second photograph is open, the camera swings 12 pixels up and down, so the second image is a mean of many. *Textureless*: the sky behind a rocket, that is the quarter of the pixels with the smallest gradient, against the quarter with the largest.


# %%
def with_blur(name, motion, swing, samples=13):
    """A moved pair whose second image is the mean over a swing of `swing` pixels in y."""
    whole = photograph(name, height=240)
    flow = constant_flow(motion, *whole.shape[2:])
    open_shutter = [
        warp(whole, flow_grid(-flow - constant_flow((0, at * swing), *whole.shape[2:])))
        for at in torch.linspace(-0.5, 0.5, samples).tolist()
    ]
    return cut(whole), cut(torch.stack(open_shutter).mean(dim=0)), cut(flow)


pairs["blurred"] = with_blur("coffee", (3, -1.5), swing=12)
pairs["sharp"] = with_blur("coffee", (3, -1.5), swing=0)

# %%
pairs["textureless"] = moved_photograph("rocket", (2, 1))
sky = F.avg_pool2d(grey(pairs["textureless"][0]), 7, stride=1, padding=3)
texture = slope(sky).norm(dim=1)
smooth, rough = texture <= texture.quantile(0.25), texture >= texture.quantile(0.75)

# %% [markdown]
# Both methods on all pairs, then the mean error of the pixels in trouble beside that of their control:

# %%
methods = {
    "one level": lambda a, b: horn_schunck(grey(a), grey(b)),
    "cascade": lambda a, b: cascade(grey(a), grey(b))[-1],
}
errors = {
    (name, method): errors_of(estimate(first, second), truth)
    for name, (first, second, truth) in pairs.items()
    for method, estimate in methods.items()
}

# %%
everywhere = torch.ones(1, H, W, dtype=torch.bool)
trouble = {
    "fast": (("fast", everywhere), ("slow", everywhere)),
    "hidden": (("hidden", crescent), ("hidden", ~crescent)),
    "blurred": (("blurred", everywhere), ("sharp", everywhere)),
    "textureless": (("textureless", smooth), ("textureless", rough)),
}
table = {
    (name, method): [errors[pair, method][where].mean().item() for pair, where in both]
    for name, both in trouble.items()
    for method in methods
}
rows = [(*key, *(f"{value:.2f}" for value in values)) for key, values in table.items()]
Comparison(("problem", "method", "error in trouble (px)", "error of the control (px)"), tuple(rows))


# %%
def draw_problems():
    figure, axes = canvas(3, 4, 7.6, 4.3, sharex=True, sharey=True)
    look = {"cmap": "inferno", "norm": PowerNorm(0.5, vmin=0, vmax=8)}
    for column, name in zip(axes.T, trouble, strict=True):
        column[0].imshow(to_picture(pairs[name][0]))
        column[0].set_title(name)
        for each, method in zip(column[1:], methods, strict=True):
            picture = each.imshow(errors[name, method][0], **look)
    axes[0, 1].contour(crescent[0], [0.5], colors="white", linewidths=0.8)
    for each, label in zip(axes[:, 0], ("image 1", *methods), strict=True):
        each.set_ylabel(f"{label}\ny (px)")
    axes[2, 0].set_xlabel("x (px)")
    figure.colorbar(picture, ax=axes[1:], shrink=0.8, label="error e (px), root scale")
    return figure


show(
    draw_problems(),
    alt="Four columns: cat, disc on a temple, coffee cup, rocket. Rows: image 1, error of one level,"
    " error of the cascade. The cat is bright with one level and black with the cascade; at the disc"
    " a bright crescent stays with both; the cup stays grey with the cascade; the sky of the rocket is"
    " brighter than the rocket.",
    photo=True,
)
print(*(credit(name) for name in ("chelsea", "china", "coffee", "rocket")), sep="\n")

# %% [markdown]
# *Fast*: the linear formula is lost, and the cascade finds the motion, since the picture moves as a whole. *Hidden*: both fail in the crescent that is outlined in the top picture; there is nothing in image 2 to find, and only a guess from what lies around can help. *Blurred*: brightness is no longer kept, and the cascade, which does well without the blur, loses most of what it had won. *Textureless*: the sky has nothing to say; its flow seeps in from the edges and has not arrived when the rounds end.

# %%
assert table["fast", "one level"][0] > 10 * table["fast", "cascade"][0]
assert table["hidden", "cascade"][0] > 3 * table["hidden", "cascade"][1]
assert table["blurred", "cascade"][0] > 2 * table["blurred", "cascade"][1]
for method in methods:
    in_trouble, control = table["textureless", method]
    assert in_trouble > control

# %% [markdown]
# ### All four at once: the motorcycle
#
# A stereo pair is a real pair: two cameras, no warp. Its true flow is the measured disparity, to the left. A pixel is **hidden** in the right image when another one, nearer to the camera, lands on the same place, or when it lands outside.

# %%
pair = stereo_pair(shrink=4)
truth = torch.cat([-pair.disparity, torch.zeros_like(pair.disparity)], dim=1)
known = pair.valid[:, 0]


def hidden_in_right(disparity):
    """Which pixels of a (H, W) disparity land outside, or where a nearer one lands as well."""
    landing = (torch.arange(disparity.shape[1]) - disparity).round().long()
    place = landing.clamp(min=0)
    nearest = torch.zeros_like(disparity).scatter_reduce(1, place, disparity, "amax")
    return (landing < 0) | (nearest.gather(1, place) > disparity + 1)


# %%
covered = hidden_in_right(pair.disparity[0, 0])[None]
left_texture = slope(F.avg_pool2d(grey(pair.left), 5, stride=1, padding=2)).norm(dim=1)
kinds = {
    "all": known,
    "hidden": known & covered,
    "seen, little texture": known & ~covered & (left_texture < left_texture.quantile(0.25)),
    "seen, much texture": known & ~covered & (left_texture > left_texture.quantile(0.75)),
}
found = {name: method(pair.left, pair.right) for name, method in methods.items()}
found = {"zero flow": torch.zeros_like(truth), **found}
rows = []
for kind, where in kinds.items():
    row = [f"{errors_of(flow, truth)[where].mean():.2f}" for flow in found.values()]
    rows.append((kind, f"{where.float().mean():.0%}", *row))
Comparison(("pixels", "share", *found), tuple(rows))


# %%
def draw_forms():
    figure, axes = canvas(2, 3, 7.6, 3.9)
    (photo, flows, guess), (single, errors, curve) = axes
    longest = truth.norm(dim=1).max().item()
    photo.imshow(to_picture(pair.left))
    photo.set(title="image 1", ylabel="y (px)")
    for each, flow, title in ((flows, truth, "true flow"), (guess, found["cascade"], "cascade")):
        colours = flow_to_image(flow * known[:, None], max_norm=longest)
        each.imshow(to_picture(colours))
        each.set_title(f"{title}, as colours")
    look = {"cmap": "inferno", "norm": PowerNorm(0.5, vmin=0, vmax=16)}
    for each, name in ((single, "one level"), (errors, "cascade")):
        picture = each.imshow((errors_of(found[name], truth) * known)[0], **look)
        each.set(title=f"error e (px), {name}", xlabel="x (px)")
    single.set_ylabel("y (px)")
    figure.colorbar(picture, ax=errors, shrink=0.9)
    for (name, flow), style in zip(found.items(), ("k:", "k--", "k-"), strict=True):
        sizes = errors_of(flow, truth)[known].sort().values
        curve.plot(sizes, torch.linspace(0, 100, len(sizes)), style, label=name)
    curve.set(xlim=(0, 16), xlabel="error below … (px)", ylabel="pixels (%)")
    curve.legend(loc="lower right", fontsize=7)
    return figure


show(
    draw_forms(),
    alt="The motorcycle; its true flow and that of the cascade as colours; the error maps of one level,"
    " bright all over, and of the cascade, bright along the left edges of the motorcycle; and curves of"
    " the share of pixels below an error.",
    photo=True,
)
print(credit("motorcycle"))

# %% [markdown]
# The same two results in several forms. (Black in the maps and white in the colours: no disparity is known.) The flow as colours shows *what* came out and that its edges are soft; the error map shows *where* it is wrong, along the edges where something is hidden; the curve shows *how many* pixels are good, which a mean cannot, since a few large errors make up much of it:

# %%
sizes = errors_of(found["cascade"], truth)[known].sort(descending=True).values
worst = sizes[: len(sizes) // 10].sum() / sizes.sum()
print(f"the worst tenth of the pixels makes {worst:.0%} of the mean error")
assert worst > 0.3

# %% [markdown]
# ### Which experiments, and in which form the results are shown
#
# The third question, from the card. Two measures recur: the **end-point error**, the mean of $e$ over pixels, and **F1-all**, the share of pixels that are wrong by more than 3 pixels and by more than 5 % of the motion (an outlier rate; [lesson 2](2_fields.ipynb) builds both).

# %%
as_table(card.experiments, "question", "data", "measures")

# %% [markdown]
# And the fourth, with what each form lets one see; you have made two of the three forms above.

# %%
as_table(card.presentation, "form", "shows", "lets_see")

# %% [markdown]
# ### The headline table
#
# Numbers that others have published, each with its source. *Test* sets are judged by the benchmarks' servers; *train* here means the part of Sintel and KITTI with public truth, on which a network trained on synthetic chairs and things (FlyingChairs, FlyingThings3D) has never been trained. Sintel *final* has motion blur and haze, *clean* has not.

# %%
results = headline_results("raft")
scores = results[results["data"] != ""]
columns = ["data", "method", "measure", "printed", "unit", "source"]
Comparison(tuple(columns), tuple(scores[columns].itertuples(index=False, name=None)))

# %% [markdown]
# The notes name three strengths of RAFT: accuracy (准确度), generalisation (强泛化性) and efficiency (高效率). The card says how the paper supports them:

# %%
print(*card.strengths, sep="\n")

# %% [markdown]
# The two percentages, computed from the numbers of the table:


# %%
def published(data, method):
    row = results.query("data == @data and method == @method")
    return row["value"].item()


for data in ("KITTI-2015 test", "Sintel final test"):
    before = published(data, "best published before")
    print(f"{data}: {1 - published(data, 'RAFT') / before:.0%} less")

# %% [markdown]
# Three readings need care. Two rows of the table are called RAFT on Sintel final test and differ: one starts from the flow of the frame before (a warm start; [lesson 6](6_raft.ipynb)), the other knows two frames only. Numbers on *train* and on *test* cannot be compared. And the small network has a fifth of the parameters and larger errors, so "accurate" and "small" are not claims about the same model:

# %%
size = {m: published("", m) for m in ("RAFT", "RAFT small")}
share = size["RAFT small"] / size["RAFT"]
two_frames = published("Sintel final test", "RAFT, two frames")
print(f"with and without a warm start: {published('Sintel final test', 'RAFT')}, {two_frames}")
print(f"parameters: {size['RAFT']:,.0f} and {size['RAFT small']:,.0f}, that is {share:.0%}")
assert sum(p.numel() for p in model.parameters()) == size["RAFT"]

# %% [markdown]
# The last line counts the parameters of our model: as many as the official release has.
#
# > **Where the code leaves the paper.** The paper writes the window of the look-up as all offsets of at most $r$ in the L1 norm, a diamond; the notes repeat it. The released code reads the whole square, its author calls the text a slip (issue 122 of its repository), and this course reads the square. Our energy, too, leaves its paper in two places: Horn and Schunck's mean includes the diagonal neighbours, and they did not average the gradients of two images.

# %% [markdown]
# ## Exercises
#
# Nothing of this lesson goes into the library, so there are no blanks to fill. The exercises are to think, to vary and to find a mistake; each answer is computed in the cells below the list.
#
# | exercise | minutes | difficulty |
# | --- | --- | --- |
# | Predict: twice the brightness | 5 | ●○○ |
# | Vary: half the motion | 5 | ●○○ |
# | Find the bug: a cascade that falls short | 10 | ●●○ |
# | Measure: the weight | 5 | ●●○ |
# | Write: who is hidden? | 10 | ●●● |
#
# **Predict.** Both images are made twice as bright (leave aside that 255 ends the scale). With the same weight $\alpha$, does the flow become smoother, rougher or neither? Which $\alpha$ gives the old flow back?
#
# <details><summary>Hint</summary>
#
# By what factor do $d$, $g$ and both terms of equation 3 grow?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Rougher. $d$ and $g$ double, so the data term counts four times as much, and the regularisation, which knows only the flow, counts as before. Doubling $\alpha$ multiplies $\alpha^2$ by four, and equation 5 is the old one. So a weight has a unit, brightness per pixel, and one that was tuned on images in [0, 255] is far off for images in [0, 1].
#
# </details>
#
# **Vary.** The discs move 8 pixels instead of 16. Which radii are lost now?
#
# <details><summary>Hint</summary>
#
# `errors_by_level(radius, (8.0, 0.0))` gives the medians first. A level on which the motion is about one pixel must still show the disc.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Fewer: half the motion needs one level less, on which a disc of half the radius can still be seen. What counts is not how small an object is or how fast, but how far it moves measured in its own size. The cell below prints the medians.
#
# </details>
#
# **Find the bug.** The colleague's cascade passes a test on a picture that moves by half a pixel, and falls short on a larger motion. Where is the mistake?


# %%
def enlarge_wrong(flow, size):
    return F.interpolate(flow, size=size, mode="bilinear", align_corners=False)


def cascade_wrong(image1, image2, levels=4):
    pyramid = [(image1, image2)]
    for _ in range(levels - 1):
        pyramid.append(tuple(F.avg_pool2d(image, 2) for image in pyramid[-1]))
    start = torch.zeros_like(pyramid[-1][0]).repeat(1, 2, 1, 1)
    for first, second in reversed(pyramid):
        start = enlarge_wrong(start, first.shape[2:])
        start = horn_schunck(first, second, start=start)
    return start


# %% [markdown]
# <details><summary>Hint</summary>
#
# A motion of one pixel on level 1: how many pixels is it on level 0?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The grid gets twice as large, so the vectors must become twice as long (the 2 of equation 6). Without it each level starts from half of what the coarser one has found. A short motion is found by the finest level alone, so the test passes. A test with a motion that one level cannot find tells the two apart.
#
# </details>
#
# **Measure.** On the motorcycle, with the cascade: which weight of 10, 30, 100 and 300 has the smallest error on pixels that are seen? What do you expect at both ends?
#
# <details><summary>Hint</summary>
#
# With $\alpha$ near zero each pixel follows its own noise; with a huge one the whole picture moves as one.
#
# </details>
#
# <details><summary>Answer</summary>
#
# One in the middle. Too small a weight is the worse mistake here: coarse levels then invent motions, and finer ones start from them. The good weight depends on the pair: that is the tuning by hand (手工) which the paper wants to leave behind.
#
# </details>
#
# **Write.** With real photographs nobody tells which pixels are hidden. Write `disagree(forward, backward)`, which marks them from two flows, left to right and right to left: follow the arrow of a pixel, then the arrow that starts where you arrive. Who is seen in both images comes home. What share of the hidden pixels does it mark, and what share of the others?
#
# <details><summary>Hint</summary>
#
# `warp(backward, flow_grid(forward))` reads the backward flow where the forward arrows end. Home means that the two arrows add up to zero, within a pixel.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The last cell below has a solution of three lines; a pixel whose arrow leaves the image is hidden too. It marks hidden pixels more often than others, and still far from all: where both flows make the same smooth guess, they agree on a wrong answer. It also marks pixels where one of the flows is wrong for another reason. So it tells where a flow should not be trusted, and not why.
#
# </details>

# %%
double = horn_schunck(2 * grey(cat1), 2 * grey(cat2), alpha=30.0)
plain, doubled_weight = (
    horn_schunck(scale * grey(cat1), scale * grey(cat2), alpha=30.0 * scale) for scale in (1, 2)
)
for name, flow in (
    ("plain", plain),
    ("twice as bright", double),
    ("and α doubled", doubled_weight),
):
    print(f"{name:>15}: mean step between neighbours {flow.diff(dim=3).abs().mean():.4f} px")
# Doubling is exact in floating point, so the two agree to the last bit or nearly.
assert torch.allclose(plain, doubled_weight, atol=1e-5)
assert double.diff(dim=3).abs().mean() > plain.diff(dim=3).abs().mean()

# %%
for radius in (4, 8, 12, 16):
    half = errors_by_level(radius, (8.0, 0.0))[0][-1]
    print(f"radius {radius:2}: {half:4.1f} px of 8, {by_radius[radius][0][-1]:4.1f} px of 16")

# %%
for length in (0.5, 8):
    first, second, truth8 = moved_photograph("chelsea", (length, 0))
    wrong = errors_of(cascade_wrong(grey(first), grey(second)), truth8).mean()
    good = errors_of(cascade(grey(first), grey(second), repeats=1)[-1], truth8).mean()
    print(f"motion {length} px: error {wrong:.2f} px with the mistake, {good:.2f} px without")

# %%
seen = known & ~covered
for alpha in (10.0, 30.0, 100.0, 300.0):
    flow = cascade(grey(pair.left), grey(pair.right), alpha=alpha)[-1]
    print(f"α = {alpha:3g}: error {errors_of(flow, truth)[seen].mean():.2f} px")


# %%
def disagree(forward, backward):
    arrive = flow_grid(forward)
    there_and_back = forward + warp(backward, arrive, padding="border")
    return (there_and_back.norm(dim=1) > 1) | ~inside(arrive, *forward.shape[2:])


marked = disagree(found["cascade"], cascade(grey(pair.right), grey(pair.left))[-1])
share_hidden, share_seen = (marked[where].float().mean() for where in (known & covered, seen))
print(f"marked: {share_hidden:.0%} of the hidden pixels, {share_seen:.0%} of the others")
assert share_hidden > 2 * share_seen

# %% [markdown]
# ## What breaks
#
# ### The light changes
#
# Equation 1 takes brightness for the identity of a pixel. Darken the second image by a tenth, as a cloud does, and nothing moves differently, but the energy sees motion everywhere:

# %%
darker = errors_of(cascade(grey(cat1), 0.9 * grey(cat2))[-1], cat_truth).mean()
same_light = errors_of(cascade(grey(cat1), grey(cat2))[-1], cat_truth).mean()
print(f"error {same_light:.2f} px in the same light, {darker:.2f} px a tenth darker")
assert darker > 3 * same_light

# %% [markdown]
# RAFT compares learned features instead, and is trained on pairs whose colours differ ([lesson 7](7_learning.ipynb)).
#
# ### A flow read backwards
#
# A flow belongs to the pixels of image 1 and points into image 2. To lay the images on top of each other one therefore reads **image 2** at $x + f$. Users of the released code ask about this often; reading image 1 doubles the motion instead of undoing it:

# %%
first, second, flow = pairs["fast"]
read = {"image 2": warp(second, flow_grid(flow)), "image 1": warp(first, flow_grid(flow))}
inner = (..., slice(16, -16), slice(16, -16))
right_gap = (read["image 2"] - first)[inner].abs().mean()
wrong_gap = (read["image 1"] - second)[inner].abs().mean()
print(f"mean difference: {right_gap:.2f} for image 2 read at x + f, {wrong_gap:.2f} for image 1")
assert right_gap < 0.5 < wrong_gap

# %% [markdown]
# ### An image too small for four levels
#
# The card lists this limitation. In the released code a coarsest level of one pixel divides by zero and the whole flow is NaN, without a word; ours says what is needed:

# %%
with shows_error(ValueError):
    model(left[..., :96, :96], right[..., :96, :96])

# %% [markdown]
# ### What the code of this lesson says to bad input

# %%
with shows_error(ValueError):
    horn_schunck(left, right)
with shows_error(ValueError):
    horn_schunck(grey(left), grey(right)[..., :-1])
with shows_error(ValueError):
    horn_schunck(grey(left), grey(right), alpha=0)
with shows_error(FileNotFoundError):
    headline_results("raff")

# %% [markdown]
# ### What the card does not know
#
# The card says of itself where its answers come from, and what it has only from memory. Such a line is to be checked against the paper before you build on it:

# %%
print(*card.sources, sep="\n")
print("open questions:", open_questions(card) or "none")
print("parts read:", *card.parts_read)

# %% [markdown]
# ## Recap
#
# - The classical view is an energy: a data term and a regularisation term, traded off by $\alpha$. It is minimised by rounds that each move a pixel from the mean of its neighbours along the gradient.
# - A cascade reaches far, and loses what is small and fast; no finer level repairs that, though it could have kept a good start.
# - RAFT's three new things answer this: all pairs of learned features, computed once; one field at one resolution; one small recurrent network that changes it, again and again.
#
# Next: [2 Fields](2_fields.ipynb) makes a flow field an object one can draw, measure, store and read.
