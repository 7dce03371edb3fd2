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
# **After this lesson you can** answer the four questions for RAFT, draw its pipeline with the shape of every array, and show with runs of your own what the classical way, an energy minimised from coarse to fine, loses.
#
# *Before this:* [Windows: one fraction for a whole neighbourhood](../6_bilinear_sampling/3_window.ipynb) (`3_window`). [Reading cards](../1_paper_writing/3_reading_cards.ipynb) explains the four questions; the lesson can be read without it. *Time:* 50 minutes, and 25 for the exercises.

# %% [markdown]
# ## Words
#
# **Optical flow** (光流) gives every pixel of a first image an arrow $(u, v)$, in pixels to the right and down. It leads to the place where a second image shows the same point. All arrows together are the **flow** $f$. Four things limit the best systems, say Teed and Deng in their paper of 2020: objects that move fast (快速移动的物体), **occlusion** (遮挡: a part of the scene is hidden behind another), motion blur (运动模糊) and surfaces without texture (无纹理表面).
#
# The classical view (Horn and Schunck, 1981) makes flow the field of least **energy** $E$, a sum of two terms. The **data term** (数据项) asks that a pixel and the place to which its arrow leads look alike. The **regularisation term** (正则化项) asks for a plausible motion: neighbours should have similar arrows. A weight $\alpha$ trades one off against the other. Such an energy can judge small steps only, so it is minimised on small images first and refined on larger ones: a **cascade** from coarse to fine. What the coarse image does not show, the cascade seldom finds later.
#
# RAFT also corrects a flow again and again, and replaces the rest. Learned features judge what looks alike, once, for **all pairs of pixels**. There is **one field**, at one resolution. And no energy gives the step: a small recurrent network looks up how much a pixel resembles the places around its arrow's end, and says how to change the arrow. It does so in every iteration with the same weights.
#
# The notes ask **four questions** of a paper. The first is its **key question**: which architecture estimates flow better, trains more easily and generalises to scenes that it has not seen? The second, what is new and where the paper introduces it, is answered under *Figure*; the third, which experiments it has, and the fourth, what their form lets a reader see, under *On real input*.

# %% [markdown]
# ## Figure
#
# ### The pipeline, measured
#
# A real run of the model that this chapter builds, on two photographs of a motorcycle that two cameras took side by side. The weights are still random; shapes do not depend on them.

# %%
import torch
import torch.nn.functional as F
from matplotlib.colors import PowerNorm
from matplotlib.patches import Circle, Rectangle

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

# %% [markdown]
# A hook on each part of the model keeps what the part takes and gives. The volume of all pairs is no part of its own, so it is built again from the features of both images.

# %%
torch.manual_seed(0)
model = RAFT("full").eval()
stereo = stereo_pair(shrink=2)
left, right = stereo.left[..., :248, :368], stereo.right[..., :248, :368]
taken, given = {}, {}


def keep(name):
    def hook(part, inputs, output):
        taken[name], given[name] = inputs, output

    return hook


hooks = [part.register_forward_hook(keep(name)) for name, part in model.named_modules()]
with torch.no_grad():
    flows = model(left, right, iterations=4)
for hook in hooks:
    hook.remove()
with torch.no_grad():
    features = [model.fnet(2 * (image / 255) - 1) for image in (left, right)]
    volume = CorrelationVolume(*features, model.levels, model.radius)


# %%
def size(array):
    """The measured shape, without the batch axis."""
    return " × ".join(map(str, array.shape[1:]))


def place(axes, x, y, name, shape, colour="muted", picture=None, height=0.55):
    """A part of the pipeline: a box or a picture, with its name and its measured shape."""
    box = axes.inset_axes([x - 0.8, y - height / 2, 1.6, height], transform=axes.transData)
    box.set(xticks=[], yticks=[])
    box.spines[:].set(visible=True, color=COLOURS[colour], linewidth=1.6)
    if picture is not None:
        box.imshow(picture, cmap="gray", aspect="auto")
    middle = y if picture is None else y + height / 2 + 0.13
    axes.text(x, middle, name, ha="center", va="center", fontsize=8, zorder=9)
    axes.text(x, y - height / 2 - 0.06, shape, ha="center", va="top", fontsize=7)


def arrows(axes, ends, colour="black"):
    for *start, x, y in ends:
        axes.annotate("", (x, y), start, arrowprops={"arrowstyle": "-|>", "color": colour})


# %%
HEIGHTS = (3.75, 2.93, 2.11, 1.29)  # of the levels on the figure
TO_ENCODERS = [(0.85, 3.0, 1.15, 2.7), (0.85, 1.6, 1.15, 2.3), (0.85, 0.9, 1.15, 0.65)]
TO_LOOP = [(2.85, 2.5, 3.4, 2.5), (2.85, 0.5, 5.85, 0.5)]
TO_LOOP += [(5.15, y, 5.85, 2.5) for y in HEIGHTS]
LOOP = [
    (6.7, 2.0, 6.7, 0.85),
    (7.55, 0.5, 8.05, 0.5),
    (8.9, 0.85, 8.9, 2.0),
    (8.05, 2.5, 7.55, 2.5),
]


# %% tags=["figure"]
def draw_pipeline(pixel=15 * 46 + 23):
    figure, axes = canvas(1, 1, 7.6, 3.7)
    axes.add_patch(Rectangle((5.72, -0.05), 4.16, 3.2, color="0.94"))
    place(axes, 0, 3.05, "image I2", size(right), "second", to_picture(right), height=1.08)
    place(axes, 0, 1.2, "image I1", size(left), "first", to_picture(left), height=1.08)
    place(axes, 2, 2.5, "feature encoder", "twice " + size(given["fnet"]))
    place(axes, 2, 0.5, "context network", size(given["cnet"]))
    sides = " × ".join(map(str, given["fnet"].shape[2:]))
    for k, (level, y) in enumerate(zip(volume.levels, HEIGHTS, strict=True)):
        shape = f"level {k}: {sides} × {size(level)}"
        place(axes, 4.3, y, "" if k else "all pairs", shape, picture=level[pixel])
    place(axes, 6.7, 2.5, "look-up", size(taken["update_block.encoder"][1]), "query")
    place(axes, 6.7, 0.5, "recurrent unit", size(given["update_block.gru"]))
    place(axes, 8.9, 0.5, "change Δ", size(given["update_block.flow_head"]), "flow")
    place(axes, 8.9, 2.5, "flow f", size(flows[-1].coarse), "flow")
    place(axes, 8.9, 3.9, "flow, full size", size(flows[-1].full), "flow")
    note = "iteration n:\nsame weights,\nround and round"
    axes.text(7.8, 1.5, note, ha="center", va="center", fontsize=8)
    arrows(axes, [*TO_ENCODERS, *TO_LOOP])
    arrows(axes, [*LOOP, (8.9, 2.85, 8.9, 3.3)], COLOURS["flow"])
    axes.set(xlim=(-0.95, 9.95), ylim=(-0.1, 4.4))
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
# Shapes are channels, height, width. What stands on white runs once, the grey loop as often as one likes. A picture in the column *all pairs* shows how alike one pixel of image 1 and every place of image 2 are. From level to level the first two of its four numbers stay, since every pixel of image 1 keeps a picture of its own; only the side of image 2 is pooled. The look-up reads a window of 9 × 9 on each of the four levels, and gets this many channels:

# %%
window = (2 * model.radius + 1) ** 2
assert taken["update_block.encoder"][1].shape[1] == model.levels * window
model.levels * window

# %% [markdown]
# The parts, in the order of the notes:
#
# - The **feature encoder** (特征编码器) gives each place of both images a vector of 256 numbers, at an eighth of the size. Six residual blocks do it, two at a half, two at a quarter, two at an eighth.
# - The **correlation layer** multiplies all vectors of image 1 with all of image 2. The products are the 4-D **correlation volume** (相关体积), whose side of image 2 is pooled to a pyramid of four levels.
# - The **context network** (上下文网络) sees image 1 alone. Half of its channels start the memory of the recurrent unit; the other half enter the unit in each iteration.
# - The **update operator** starts from zero flow. It looks up (查找) the products around the place to which the flow leads, and a **GRU** (gated recurrent unit, a small network with a memory) turns them into a change of the flow.
# - At the end, each coarse arrow becomes 8 × 8 fine ones.
#
# The flow after an iteration is the flow before, plus the change:

# %%
change = given["update_block.flow_head"]
# The sum is kept as a position, up to 46; float32 rounds it to about 4e-6.
assert torch.allclose(flows[-1].coarse, flows[-2].coarse + change, atol=2e-5)

# %% [markdown]
# The same run as a table, made by the tracer of [chapter 1](../1_paper_writing/1_one_line.ipynb), which sees the parts that hold weights: two encoders and one update block. All that RAFT learns is in these three.

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
# The first row holds three complaints about cascades: errors at coarse resolution stay, small fast objects are missed, and a cascade of stages takes many training iterations. The section *Code* tests the first two. What is *not* new:

# %%
print(*card.not_new, sep="\n")

# %% [markdown]
# ## Formula
#
# ### An energy
#
# Write $x$ for the position of a pixel, $I_1(x)$ and $I_2(x)$ for the brightness of the two images there. If the flow is right and the light stays the same, a pixel keeps its brightness: $I_2(x + f(x)) = I_1(x)$. This equation is not linear in $f$, so it is made linear around a start $f_0$ that one has already. Two quantities of each pixel enter: the change $d$ of the brightness at the start, and the gradient $g$ of the brightness, its slope to the right and down:
#
# $$ d = I_2(x + f_0) - I_1(x), \qquad g = \tfrac12\, \nabla \left( I_1(x) + I_2(x + f_0) \right) \tag{1} $$
#
# The **residual** $\rho$ is the change of brightness that a flow leaves unexplained:
#
# $$ \rho = d + g \cdot (f - f_0) \tag{2} $$
#
# One number $\rho$ cannot give the two numbers $u$ and $v$ of an arrow: every arrow whose part along the gradient is right explains the brightness equally well. (Through a small hole one cannot tell whether a moving edge also slides along itself: the aperture problem, 孔径问题.) So a second demand is needed. Horn and Schunck (1981) add up the squares of $\rho$, and then a price for neighbours that differ. Here $x \sim y$ stands for two pixels side by side or one above the other, each pair once:
#
# $$ E(f) = \underbrace{\sum_x \rho(x)^2}_{\text{data}} + \frac{\alpha^2}{4} \underbrace{\sum_{x \sim y} \left| f(x) - f(y) \right|^2}_{\text{regularisation}} \tag{3} $$
#
# ### Its minimum
#
# Where $E$ is least, its derivative with respect to the arrow of each pixel is zero. The data term gives $2 \rho\, g$. A pixel stands in four pairs; with the mean $\bar f$ of its four neighbours these give $\tfrac{\alpha^2}{4} \cdot 2 \cdot 4\, (f - \bar f)$. (At the border a pixel counts as its own missing neighbour.) Half of the sum of both is
#
# $$ \rho\, g + \alpha^2 \left( f - \bar f \right) = 0 \tag{4} $$
#
# Hold $\bar f$ fixed and solve for $f$. Equation 4 says that $f - \bar f$ points along $g$, so write $f = \bar f - c\, g$. Then $\rho = d + g \cdot (\bar f - f_0) - c\, |g|^2$, and equation 4 reads $\rho = \alpha^2 c$. Both together give $c$:
#
# $$ f \leftarrow \bar f - g\, \frac{d + g \cdot (\bar f - f_0)}{\alpha^2 + |g|^2} \tag{5} $$
#
# Repeat for all pixels until nothing changes. Where the gradient is zero the surface has no texture, and the pixel takes the mean of its neighbours: flow seeps in from the edges, one pixel a round. At a steep edge, $|g|$ far above $\alpha$, the brightness decides; at a flat place, $|g|$ far below $\alpha$, the neighbours do. The fraction holds the whole trade-off.
#
# ### A cascade
#
# The linear formula holds for about a pixel: the slope here says little about the brightness further away. So both images are averaged to level $k$, where a motion is $2^k$ times shorter. The flow of a level, enlarged, is the start of the next finer one:
#
# $$ f_0^{(k)} = 2 \cdot \mathrm{enlarge}\!\left( f^{(k+1)} \right) \tag{6} $$
#
# ### RAFT
#
# RAFT keeps one resolution and one field. In iteration $n$ it adds a change $\Delta$ that a network makes from the look-up. No energy is behind it, and it need not be small, since the coarsest level of the look-up reaches far:
#
# $$ f_{n+1} = f_n + \Delta(\text{look-up at } x + f_n,\ \text{context},\ \text{hidden state}) \tag{7} $$
#
# Equations 5 and 7 have the same shape, a flow and a correction. In the first the correction is derived from an energy that someone wrote down; in the second it is learned from pairs whose true flow is known. The **end-point error** $e$ measures how wrong a flow is, by its distance from the true flow $f^\star$:
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
# Equation 1. The slope at a pixel is half the difference of its two neighbours; at the border the pixel itself stands in for the missing one. Where the start leads out of image 2 nothing is known, so both $d$ and $g$ are set to 0 there, and with them the data term.


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
# Equations 2 and 3. Finding the flow does not need the energy; it is here to check that what is found is its minimum.


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
# A formula with this many signs is easy to get wrong, and a wrong one still gives smooth pictures. So the method is checked three times: against loops, against the energy, and against a known motion. The picture for it is a sum of waves. They can be evaluated anywhere, so no reading between pixels makes the motion inexact: half a pixel to the right and a quarter up.


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
# Second, equation 5 leads to the minimum of equation 3. There the derivative is zero (equation 4); PyTorch computes it from the energy:

# %%
double1, double2 = image1.double(), image2.double()
start = torch.zeros(1, 2, 48, 64, dtype=torch.float64)
difference, gradient = linearise(double1, double2, start)
sizes = []
for iterations in (0, 3000):
    flow = horn_schunck(double1, double2, 30.0, iterations).requires_grad_()
    energy(flow, start, difference, gradient, 30.0).backward()
    sizes.append(flow.grad.abs().max().item())
print(f"largest derivative: {sizes[0]:.0f} at the start, {sizes[1]:.0e} at the end")
assert sizes[1] < 1e-6 * sizes[0]

# %% [markdown]
# Third, the flow found is the one that was put in. Near the border a pixel has neighbours on one side only, so the middle is measured:


# %%
def errors_of(flow, truth):
    """The end-point error of every pixel, (B, H, W) in pixels (equation 8)."""
    return (flow - truth).norm(dim=1)


flow = horn_schunck(image1, image2, alpha=30.0, iterations=500)
errors = errors_of(flow, truth)[0, 8:-8, 8:-8]
print(f"mean error {errors.mean():.3f} px of a motion of {truth[0, :, 0, 0].norm():.3f} px")
assert errors.mean() < 0.05  # under a tenth of the motion


# %% tags=["figure"]
def draw_energy():
    figure, (first, second, third) = canvas(1, 3, 7.2, 2.4, width_ratios=(1, 1, 1.3))
    start = torch.zeros_like(truth)
    difference, gradient = linearise(image1, image2, start)
    first.imshow(gradient[0].norm(dim=0), cmap="gray")
    first.set(title="gradient g, its length", xlabel="x (px)", ylabel="y (px)")
    u = horn_schunck(image1, image2, iterations=20)[0, 0, 23:26, 31:34]
    mean = (u[0, 1] + u[2, 1] + u[1, 0] + u[1, 2]) / 4
    draw_pixels(second, u, number="{:.3f}", fontsize=7)
    second.set_title(f"u of 3 × 3 pixels\nmean of four: {mean:.3f} px")
    for alpha, style in ((3.0, ":"), (30.0, "-"), (300.0, "--")):
        flow, heights = start, torch.zeros(40)
        for n in range(40):
            heights[n] = energy(flow, start, difference, gradient, alpha)
            flow = one_round(flow, start, difference, gradient, alpha)
        third.semilogy(heights, style, color="black", label=f"weight α = {alpha:g}")
    third.set(title="energy E falls", xlabel="iteration n", ylabel="energy E")
    third.legend(fontsize=7, loc="center right", bbox_to_anchor=(1.0, 0.35))
    return figure


show(
    draw_energy(),
    alt="Left: the length of the gradient of a wavy picture. Middle: nine values of u with the mean of"
    " four of them. Right: three curves of the energy that fall over forty iterations.",
    photo=True,
)

# %% [markdown]
# Left: light where the picture is steep, the only places where the data term speaks. Middle: a pixel and its neighbours after twenty rounds; the next round starts from the mean of the four. Right, on a logarithmic axis, for three weights: the energy falls in each round. It falls slowly under a large weight, which stands in the denominator of equation 5 and so makes the steps short. (The three curves end at different heights for another reason too: a different weight makes it a different sum.)
#
# ### What the energy sees of a photograph
#
# A photograph is read a second time from places that lie one pixel to the left and half a pixel down; what it shows has then moved by $(1, -0.5)$. A rim of the photograph is cut off both, so that nothing is invented at the border.


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
    # What image 2 shows at x stood at x − motion in image 1.
    moved = warp(whole, flow_grid(-flow), padding="border")
    return cut(whole), cut(moved), cut(flow)


cat1, cat2, cat_truth = moved_photograph("chelsea", (1, -0.5))
one_level = horn_schunck(grey(cat1), grey(cat2), iterations=300)


# %% tags=["figure"]
def draw_terms():
    image1, start = grey(cat1), torch.zeros_like(cat_truth)
    difference, gradient = linearise(image1, grey(cat2), start)
    residual = difference + (gradient * (one_level - start)).sum(1, keepdim=True)
    figure, axes = canvas(2, 2, 5.2, 4.0, sharex=True, sharey=True)
    signed = {"vmin": -25, "vmax": 25}
    panels = [
        ("gradient g, its length", gradient[0].norm(dim=0), {"vmax": 40}),
        ("difference d at the start f0 = 0", difference[0, 0], signed),
        ("residual ρ of the flow found", residual[0, 0], signed),
        ("flow f, its part u (px)", one_level[0, 0], {"vmin": 0, "vmax": 1.5}),
    ]
    for each, (title, values, limits) in zip(axes.flat, panels, strict=True):
        picture = each.imshow(values, cmap="gray", **limits)
        each.set_title(title)
    figure.colorbar(picture, ax=axes[1, 1], shrink=0.8)
    axes[1, 0].set(xlabel="x (px)", ylabel="y (px)")
    return figure


show(
    draw_terms(),
    alt="Four pictures of a cat: the length of the gradient with light edges, the difference with"
    " black and white edges, the residual which is nearly grey all over, and the flow, whose part u is"
    " uneven: lighter at the edges, darker in between.",
    photo=True,
)
print(credit("chelsea"))

# %% [markdown]
# In the difference and the residual grey is 0, and black and white are 25 steps of brightness. The flow found explains nearly all of the difference: the residual is flat. Yet its part u is not the even 1 that it should be. A low energy does not make a flow right: **the energy is a guess at what one wants**.

# %%
errors = errors_of(one_level, cat_truth)
print(f"mean error {errors.mean():.2f} px of a motion of {cat_truth[0, :, 0, 0].norm():.2f} px")
assert 0.1 < errors.mean() < 0.6

# %% [markdown]
# ### From coarse to fine
#
# Equation 6 is a loop around `horn_schunck`. The mean of 2 × 2 pixels makes the next coarser image. On each level the data term is made linear three times, each time around the flow so far.


# %%
def enlarge(flow, size):
    """A flow on a grid of twice the size, its vectors twice as long (equation 6)."""
    return 2 * F.interpolate(flow, size=size, mode="bilinear", align_corners=False)


def cascade(image1, image2, levels=4, alpha=30.0, repeats=3):
    """The flow on every level, from the coarsest to the finest, each in its own pixels."""
    pyramid = [(image1, image2)]
    for _ in range(levels - 1):
        pyramid.append(tuple(F.avg_pool2d(image, 2) for image in pyramid[-1]))
    flows = []
    for first, second in reversed(pyramid):
        start = enlarge(flows[-1], first.shape[2:]) if flows else None
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
# Better even for this small motion: on a coarse level fewer rounds carry a flow across a flat place, and the repetition repairs what the slope at the start got wrong. Now let the motion grow. The mean error in pixels for motions of 0.5 to 16 pixels:

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
# On a photograph that moves as a whole the cascade finds what one level cannot. Its weaknesses show when something moves *inside* the picture.
#
# ### Two weaknesses in one scene
#
# A scene made for the purpose: gravel rests, and a disc cut from a photograph of coins moves 16 pixels to the right. From run to run only the radius of the disc differs.

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


# %% [markdown]
# Five levels, so that 16 pixels are one pixel on the coarsest. Printed: the median error on the disc after each level, from the coarsest to the finest.


# %%
def errors_by_level(radius, motion=MOTION):
    """The median error on the disc after each level, in pixels of the full size; the last errors."""
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
# Blue is where a disc is in image 1, orange where it has gone. The middle of the large disc is found; the small disc is lost, though both are equally sharp and move equally far. Right: on the coarsest level the small disc's error is about as large as the motion, and **no finer level brings it down**: what the coarse level has missed stays missed.

# %%
small, large = by_radius[8][0], by_radius[24][0]
assert min(small) > 0.8 * MOTION[0] and large[-1] < 0.25 * MOTION[0]

# %% [markdown]
# Can the finest level not represent the motion of the small disc, or does it lack a good start? Give it the true flow as a start:

# %%
first, second, truth, here, _ = disc_scene(8)
kept = horn_schunck(grey(first), grey(second), start=truth)
on_disc = errors_of(kept, truth)[here[:, 0] == 1].median().item()
print(f"median error on the disc of radius 8: {on_disc:.1f} px from the true start,")
print(f"{small[-1]:.1f} px at the end of the cascade")
assert on_disc < small[-1] / 4

# %% [markdown]
# It keeps a good start, so the start is to blame. On the coarse image the small disc has melted into the gravel, and the gravel says that nothing moves.
#
# The third weakness, the many training iterations of a cascade of networks, cannot be shown by an energy that learns nothing. The paper states it. Equation 7 answers it: the same small network in every iteration, so there is one stage to train.
#
# ### All pairs, no cascade
#
# RAFT computes how alike **every** two pixels of the two images are, at one resolution, before it has any flow. Do the same for one pixel, the middle of the small disc. The features here are the raw patterns of 9 × 9 blocks, as in [chapter 6](../6_bilinear_sampling/3_window.ipynb); RAFT learns better ones.


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
# The small disc is found at once, because no small image had to show it first. Two prices are paid. Memory: one number for each pair of pixels, so RAFT works at an eighth of the size, and [lesson 4](4_correlation.ipynb) computes what is looked up in a second way. And RAFT does not search all places for the best, as the last cell did: an iteration reads the windows around the end of its arrow. The widest of them, on the coarsest level, reaches this far in pixels of the image:

# %%
8 * 2 ** (len(volume.levels) - 1) * model.radius

# %% [markdown]
# ## On real input
#
# ### The four problems
#
# Each problem that the paper's first paragraph names, on a pair of photographs whose motion is known exactly. Beside it stands a control, so that the problem is measured and not the photograph.
#
# *Fast*: the cat moves 12 pixels to the right and 6 up; the control moves a twelfth of that. *Hidden*: a disc cut from a photograph of a cup glides 4 pixels over a temple and covers a crescent of it; the control is the rest of the picture.

# %%
pairs = {"fast": moved_photograph("chelsea", (12, -6)), "slow": (cat1, cat2, cat_truth)}

china, coffee = (cut(photograph(name, height=240)) for name in ("china", "coffee"))
*pairs["hidden"], here, there = disc_scene(50, (4.0, 0.0), back=china, front=coffee)
crescent = (there > here)[:, 0]

# %% [markdown]
# *Blurred*: while the shutter of the second photograph is open the camera sweeps over 12 pixels, up and down, so the second image is a mean of many. The control is the same motion without the sweep. *Textureless*: the quarter of the pixels around which the picture is flattest, the evening sky behind a rocket; the control is the steepest quarter.


# %%
def with_blur(name, motion, swing, samples=13):
    """A moved pair whose second image is the mean over a sweep of `swing` pixels in y."""
    whole = photograph(name, height=240)
    flow = constant_flow(motion, *whole.shape[2:])
    open_shutter = [
        warp(whole, flow_grid(-flow - constant_flow((0, at), *whole.shape[2:])))
        for at in torch.linspace(-swing / 2, swing / 2, samples).tolist()
    ]
    return cut(whole), cut(torch.stack(open_shutter).mean(dim=0)), cut(flow)


pairs["blurred"] = with_blur("coffee", (3, -1.5), swing=12)
pairs["sharp"] = with_blur("coffee", (3, -1.5), swing=0)

# %%
pairs["textureless"] = moved_photograph("rocket", (2, 1))
soft = F.avg_pool2d(grey(pairs["textureless"][0]), 7, stride=1, padding=3)
texture = slope(soft).norm(dim=1)
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
# *Fast*: the linear formula is lost; the cascade finds the motion, since the picture moves as a whole. (It does even better than on the control, whose half pixel had to be read between pixels and is a little soft.) *Hidden*: both fail in the crescent, outlined in the top picture. Image 2 has nothing there to be found, and only a guess from the surroundings can help. *Blurred*: brightness is no longer kept, and the cascade's error is several times that of the control. One level is lost either way, as the motion is too long for it. *Textureless*: the sky tells nothing; its flow seeps in from the edges.

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
# A stereo pair is a real pair: two cameras, and nothing warped. Its true flow is the measured disparity (视差), to the left. A pixel is hidden in the right image when another one, nearer to the camera, lands on the same place, or when it lands outside.

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
    figure, ((flows, errors), (guess, curve)) = canvas(2, 2, 5.8, 4.0)
    longest = truth.norm(dim=1).max().item()
    for each, flow, title in ((flows, truth, "true flow"), (guess, found["cascade"], "cascade")):
        colours = flow_to_image(flow * known[:, None], max_norm=longest)
        each.imshow(to_picture(colours))
        each.set(title=f"{title}, as colours", ylabel="y (px)")
    guess.set_xlabel("x (px)")
    look = {"cmap": "inferno", "norm": PowerNorm(0.5, vmin=0, vmax=16)}
    picture = errors.imshow((errors_of(found["cascade"], truth) * known)[0], **look)
    errors.set_title("cascade, error e (px)")
    figure.colorbar(picture, ax=errors, shrink=0.9, ticks=(0, 1, 4, 8, 16))
    for (name, flow), style in zip(found.items(), ("k:", "k--", "k-"), strict=True):
        sizes = errors_of(flow, truth)[known].sort().values
        curve.plot(sizes, torch.linspace(0, 100, len(sizes)), style, label=name)
    curve.set(xlim=(0, 16), xlabel="error below … (px)", ylabel="pixels (%)")
    curve.legend(loc="lower right", fontsize=7)
    return figure


show(
    draw_forms(),
    alt="The true flow of the motorcycle and that of the cascade as colours; the error of the cascade,"
    " bright along the left edges of the motorcycle; and for zero flow, one level and the cascade"
    " curves of the share of pixels below an error.",
    photo=True,
)
print(credit("motorcycle"))

# %% [markdown]
# One result in three forms. (White in the colours and black in the map: no disparity is known.) The colours show *what* came out, and that its edges are soft. The map shows *where* it is wrong: along the edges where something is hidden. The curve shows *how many* pixels are good. A mean cannot, since a few large errors make up much of it:

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
# And the fourth, with what each form lets a reader see. You have made all three forms above; what the row *table* says of the order and the row *curve* of its axes is from memory, as the card admits (see *What breaks*).

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
# The notes name three strengths of RAFT: accuracy (准确度), generalisation (强泛化性) and efficiency (高效率). So does the paper's abstract, and the card says with which numbers:

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
# Three readings need care. Two rows of the table hold RAFT on Sintel final test and differ: one starts from the flow of the frame before (a warm start; [lesson 6](6_raft.ipynb)), the other knows two frames only. Numbers on *train* and on *test* cannot be compared. And the small network has a fifth of the parameters and larger errors, so "accurate" and "small" are not claims about the same network:

# %%
size = {m: published("", m) for m in ("RAFT", "RAFT small")}
share = size["RAFT small"] / size["RAFT"]
two_frames = published("Sintel final test", "RAFT, two frames")
print(f"with and without a warm start: {published('Sintel final test', 'RAFT')}, {two_frames}")
print(f"parameters: {size['RAFT']:,.0f} and {size['RAFT small']:,.0f}, that is {share:.0%}")
assert sum(p.numel() for p in model.parameters()) == size["RAFT"]

# %% [markdown]
# The assertion counts the parameters of our model: as many as the official release has.
#
# > **Where the code leaves the paper.** The paper writes the window of the look-up as all offsets of at most $r$ in the L1 norm, a diamond; the notes repeat it. The released code reads the whole square, its author calls the text a slip (issue 122 of its repository), and this course reads the square. Our energy leaves its paper in two places: Horn and Schunck's mean gives the diagonal neighbours a share too, and they measure the slopes as differences within cubes of 2 × 2 × 2 pixels of both images.

# %% [markdown]
# ## Exercises
#
# Nothing of this lesson goes into the library, so there are no blanks to fill. The exercises are to think, to vary, to find a mistake and to measure. The cell below each one computes its answer.
#
# | exercise | minutes | difficulty |
# | --- | --- | --- |
# | Predict: twice the brightness | 5 | ●○○ |
# | Vary: half the motion | 5 | ●○○ |
# | Find the bug: a cascade that falls short | 10 | ●●○ |
# | Measure: the weight | 5 | ●●○ |
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

# %%
roughness = []
for scale, alpha in ((1, 30.0), (2, 30.0), (2, 60.0)):
    flow = horn_schunck(scale * grey(cat1), scale * grey(cat2), alpha)
    roughness.append(flow.diff(dim=3).abs().mean().item())
    print(f"{scale} × brightness, α = {alpha:g}: neighbours differ by {roughness[-1]:.4f} px")
assert roughness[1] > roughness[0]
# Doubling is exact in floating point, so the two agree to the last bit or nearly.
assert abs(roughness[2] - roughness[0]) < 1e-6

# %% [markdown]
# **Vary.** The disc moves 8 pixels instead of 16. Which radii are lost now?
#
# <details><summary>Hint</summary>
#
# `errors_by_level(radius, (8.0, 0.0))` gives the medians first. A level on which the motion is about one pixel must still show the disc.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Fewer: half the motion needs one level less, and on that level a disc of half the radius can still be seen. What counts is neither how small an object is nor how fast, but how far it moves measured in its own size.
#
# </details>

# %%
for radius in (4, 8, 12, 16):
    half = errors_by_level(radius, (8.0, 0.0))[0][-1]
    print(f"radius {radius:2}: {half:4.1f} px of 8, {by_radius[radius][0][-1]:4.1f} px of 16")

# %% [markdown]
# **Find the bug.** A colleague's cascade passes a test on a picture that moves by half a pixel, and falls short on a larger motion. Where is the mistake?


# %%
def cascade_of_a_colleague(image1, image2, levels=4):
    pyramid = [(image1, image2)]
    for _ in range(levels - 1):
        pyramid.append(tuple(F.avg_pool2d(image, 2) for image in pyramid[-1]))
    flow = torch.zeros_like(pyramid[-1][0]).repeat(1, 2, 1, 1)
    for first, second in reversed(pyramid):
        start = F.interpolate(flow, first.shape[2:], mode="bilinear", align_corners=False)
        flow = horn_schunck(first, second, start=start)
    return flow


# %% [markdown]
# <details><summary>Hint</summary>
#
# A motion of one pixel on level 1: how many pixels is it on level 0?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The grid gets twice as large, so the vectors must become twice as long (the 2 of equation 6). Without it each level starts from half of what the coarser one has found. The finest level alone finds a short motion, so the test passes. A test must use a motion that one level cannot find.
#
# </details>

# %%
for length in (0.5, 8):
    first, second, moved = moved_photograph("chelsea", (length, 0))
    wrong = errors_of(cascade_of_a_colleague(grey(first), grey(second)), moved).mean()
    good = errors_of(cascade(grey(first), grey(second), repeats=1)[-1], moved).mean()
    print(f"motion {length} px: error {wrong:.2f} px with the mistake, {good:.2f} px without")

# %% [markdown]
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
# One in the middle. Both ends are bad: with too small a weight coarse levels invent motions, and finer levels start from them; with too large a weight the motorcycle and the wall behind it get one motion. The good weight depends on the pair. The paper calls this making of an energy by hand (手工) hard, and wants to leave it behind.
#
# </details>

# %%
seen = known & ~covered
for alpha in (10.0, 30.0, 100.0, 300.0):
    flow = cascade(grey(pair.left), grey(pair.right), alpha=alpha)[-1]
    print(f"α = {alpha:3g}: error {errors_of(flow, truth)[seen].mean():.2f} px")

# %% [markdown]
# ## What breaks
#
# ### The light changes
#
# Equation 1 recognises a pixel by its brightness. Darken the second image by a tenth, as a cloud does: nothing moves differently, and the energy sees other motions all the same:

# %%
darker = errors_of(cascade(grey(cat1), 0.9 * grey(cat2))[-1], cat_truth).mean()
same_light = errors_of(cascade(grey(cat1), grey(cat2))[-1], cat_truth).mean()
print(f"error {same_light:.2f} px in the same light, {darker:.2f} px a tenth darker")
assert darker > 3 * same_light

# %% [markdown]
# RAFT compares learned features instead, and some of its training pairs differ in colour and brightness ([lesson 7](7_learning.ipynb)).
#
# ### A flow read backwards
#
# A flow belongs to the pixels of image 1 and points into image 2. To lay image 2 on image 1 one therefore reads **image 2** at $x + f$. Users of the released code ask about this (issue 158 of its repository). Reading image 1 there gives neither image:

# %%
first, second, flow = pairs["fast"]
read = {"image 2": warp(second, flow_grid(flow)), "image 1": warp(first, flow_grid(flow))}
inner = (..., slice(16, -16), slice(16, -16))
gap = {name: (image - first)[inner].abs().mean() for name, image in read.items()}
for name, difference in gap.items():
    print(f"{name} read at x + f differs from image 1 by {difference:.2f} steps of brightness")
no_flow = (second - first)[inner].abs().mean()
print(f"image 2 as it is differs by {no_flow:.2f}")
assert gap["image 2"] < 0.5 < no_flow

# %% [markdown]
# ### An image too small for four levels
#
# In the released code a coarsest level of one pixel leads to a division by zero, and the whole flow is NaN without a word. Ours says what is needed:

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
# The card says where its answers come from, and which it has only from memory. Check those against the paper before you build on them:

# %%
print(*card.sources, sep="\n")
print("open questions:", open_questions(card) or "none")
print("parts read:", *card.parts_read)

# %% [markdown]
# ## Recap
#
# - The classical view is an energy: a data term and a regularisation term, traded off by $\alpha$. Its minimum is found in rounds that each take a pixel from the mean of its neighbours along the gradient.
# - A cascade reaches far, and loses what is small and fast: no finer level finds it again, though it could have kept a good start.
# - RAFT answers with all pairs of learned features, computed once; with one field at one resolution; and with one small recurrent network that changes it again and again.
#
# Next: [2 Fields](2_fields.ipynb) makes a flow field an object one can draw, measure, store and read.
