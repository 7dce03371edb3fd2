# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 50
#     needs:
#     - 5_cotracker/2_tracks
#     - 6_bilinear_sampling/1_sampling
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tokens: what the transformer reads
#
# **After this lesson you can** name every number of a CoTracker token, write the embeddings of time, place and motion that it holds, and say which of its frequencies are a hazard for arithmetic.
#
# *Before this:* [Tracks](2_tracks.ipynb) (`2_tracks`), and [Sampling](../6_bilinear_sampling/1_sampling.ipynb) (`1_sampling`) of chapter 6, whose bilinear reading the place uses. The features and correlations inside a token are those of lesson 3. *Time:* 50 minutes, and 35 for the blanks.

# %% [markdown]
# ## Words
#
# CoTracker refines a guess. For every point and every frame it writes down all that is known of the current track $p$, as one vector of width $D$: a **token** (令牌). A transformer reads all tokens and says how each should change. Some pieces of a token are measured in the video: the feature of the point, and how alike it is to what is around the current guess. The other pieces say where the guess is, and when.
#
# Where and when are few numbers, and a network reads many numbers better than few. So each is spread out as sines and cosines of several frequencies, an **embedding** (嵌入). **Sinusoids** $\psi$ (正弦编码) of slow and slower frequency $\omega_k$ say which frame it is, the time $\tau$, and where the point is at the start, the place $\rho$; these two vectors are added to the whole token. How far the point has gone since then is its motion $m$, and its embedding $\mu$ is a piece of the token. Version 3 writes the step $d$ to the neighbouring frames in place of $m$, as Fourier features $\phi$.
#
# A frequency also says how much a small change matters. Those of version 2's motion are so high that a millionth of a pixel changes numbers of a token in the third decimal; version 3 does without such frequencies.

# %% [markdown]
# ## Figure
#
# ### A clip with exact tracks
#
# The clip comes from [lesson 8](8_learning.ipynb), which paints layers of photographs that move, so that every track is known; how it does that is not needed here. Three of its points matter below: two neighbours that are always visible, and one that is hidden for a while. Nine more are there to make a crowd.

# %%
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from matplotlib.patches import Rectangle
from torch import Tensor

from fourfold.bilinear_sampling.sampling import _check_floating, sample
from fourfold.cotracker.cotracker import CoTracker
from fourfold.cotracker.features import STRIDE
from fourfold.cotracker.learning import held_out_clips, hidden_between
from fourfold.cotracker.tokens import (
    fourier_features,
    motion_embedding,
    place_embedding,
    sinusoids,
    step_motion,
    time_embedding,
)
from fourfold.kit.arguments import whole_number
from fourfold.kit.drawing import COLOURS, canvas, draw_pixels, film_strip, show
from fourfold.kit.images import credit
from fourfold.kit.notebook import shows_error
from fourfold.raft.learning import HELD_OUT_PHOTOGRAPHS

# %%
clip = held_out_clips(2, size=(96, 128), frames=16, points=128)
video, points, visible = clip.video[1:], clip.points[1], clip.visible[1]
apart = torch.cdist(points, points)
steady = visible.all(dim=0) & (
    apart.amax(dim=0) - apart.amin(dim=0) < 1
)  # always beside each other
near = (steady & steady.T & (apart[0] > 1.5)) * 1 / apart[0].clamp(min=1.5)
one, neighbour = divmod(near.argmax().item(), len(near))
hidden = (hidden_between(visible).sum(dim=0) * visible[0]).argmax().item()
crowd = [n for n in visible[0].nonzero()[:, 0].tolist() if n not in (one, neighbour, hidden)][:9]
chosen = [one, neighbour, hidden, *crowd]
points, visible = points[:, chosen], visible[:, chosen]
queries = torch.cat([torch.zeros(len(chosen), 1), points[0]], dim=1)[None]
names = {0: "one point", 1: "its neighbour", 2: "a hidden point"}
tuple(video.shape), tuple(points.shape)


# %% tags=["figure"]
def draw_tracks():
    times = [0, 5, 10, 15]
    titles = [f"frame {t}" for t in times]
    titles[0] = "frame 0: tracks p"
    return film_strip(video[0, times], points[times, :3], visible[times, :3], titles, width=7.2)


show(
    draw_tracks(),
    alt="Four frames of a clip of layered photographs, two dots beside each other on a layer that "
    "moves, and a ring where a third point is hidden",
    photo=True,
)
print(*(credit(name) for name in HELD_OUT_PHOTOGRAPHS), sep=" · ")

# %%
for n, name in names.items():
    moved = (points[-1, n] - points[0, n]).norm()
    count = (~visible[:, n]).sum()
    print(
        f"{name:>14}: moves {moved:4.1f} px of the video, hidden in {count} of {len(video[0])} frames"
    )

# %% [markdown]
# ### One token, drawn to scale
#
# Now look inside the model of [lesson 6](6_cotracker.ipynb) while it works. It has the sizes of the released one, but for the depth of its transformer, on which no token depends. Its weights have not learned, so its own guesses would be worth nothing; it is given the true tracks as its guess. These are the tokens at the moment when the points are found. Two hooks (钩子), functions that PyTorch calls with a module's inputs, put the guess in and take the tokens out.


# %%
def look_inside(model, video):
    """The feature of each query, the guess that went in, and the tokens of one update."""
    seen = {}

    def begin(update, inputs):
        window, anchors, start, _ = inputs
        guess = points[None, : start.points.shape[1]] / STRIDE
        seen.update(anchors=anchors, start=start._replace(points=guess))
        return window, anchors, seen["start"], 1

    def read(transformer, inputs):
        seen["tokens"] = inputs[0]

    model.update.register_forward_pre_hook(begin)
    model.update.transformer.register_forward_pre_hook(read)
    with torch.no_grad():
        model(video, queries, 1)
    return seen


torch.manual_seed(0)
model2, model3 = CoTracker("2", depth=1).eval(), CoTracker("3", depth=1).eval()
seen2, seen3 = look_inside(model2, video[:, :8]), look_inside(model3, video)
tokens2, tokens3 = seen2["tokens"][0], seen3["tokens"][0]
tuple(tokens2.shape), tuple(tokens3.shape)

# %% [markdown]
# Both are (N, S, D): one token for each point and each frame of the window. Take the first point in the last frame. The functions of this lesson give the vectors of place and time that were added; without them, the token falls into its pieces. The correlation is as wide as the other pieces leave room for.


# %%
def cut(token, widths):
    """The pieces of a token; the one of width None takes what the others leave."""
    left = len(token) - sum(width or 0 for width in widths.values())
    sizes = [left if width is None else width for width in widths.values()]
    return dict(zip(widths, token.split(sizes), strict=True))


height, breadth = (side // STRIDE for side in model2.sizes.resolution)
track2, track3 = seen2["start"].points[0], seen3["start"].points[0]  # (S, N, 2), px of the features
motion = motion_embedding(track2 - track2[:1])[-1, 0]
feature = seen2["anchors"][0, 0]
place = place_embedding(track2[0, 0], tokens2.shape[-1], (height, breadth))
time2 = time_embedding(len(track2), tokens2.shape[-1])[-1]
widths = {"motion μ": len(motion), "correlation": None, "feature": len(feature)}
pieces2 = cut(tokens2[0, -1] - place - time2, {**widths, "mask": 1, "visibility": 1})
# Numbers of up to 10, added and subtracted again in float32.
assert torch.allclose(pieces2["motion μ"], motion, atol=1e-5)
assert torch.allclose(pieces2["feature"], feature, atol=1e-5)

# %%
shares = step_motion(track3[None])[0] / torch.tensor([breadth, height]).repeat(2)
steps = fourier_features(shares)[-1, 0]
time3 = time_embedding(len(track3), tokens3.shape[-1], model3.window)[-1]
widths = {"visibility": 1, "confidence": 1, "correlation": None, "motion φ": len(steps)}
pieces3 = cut(tokens3[0, -1] - time3, widths)
assert torch.allclose(pieces3["motion φ"], steps, atol=1e-5)
for name, pieces in (("version 2", pieces2), ("version 3", pieces3)):
    parts = " | ".join(f"{piece} {len(values)}" for piece, values in pieces.items())
    print(f"{name}: {sum(map(len, pieces.values()))} = {parts}")


# %% tags=["figure"]
INKS = {"motion": "flow", "correlation": "first", "feature": "good"}


def draw_token(axes, pieces, added, title):
    """A bar to scale; below it the values that are summed, and their sum."""
    start, narrow = 0, []
    for name, values in pieces.items():
        ink = COLOURS[INKS.get(name.split()[0], "query")]
        axes.add_patch(Rectangle((start, -0.45), len(values), 0.9, fc=ink))
        label = f"{name} {len(values)}"
        if len(values) > 1:
            wide = len(values) > 150
            style = {"ha": "center", "va": "center", "color": "white", "size": 8 if wide else 6}
            text = label if wide else f"{name}\n{len(values)}"
            axes.text(start + len(values) / 2, 0, text, **style)
        else:
            narrow.append(label)
        start += len(values)
    right = next(iter(pieces)) != "visibility"
    where = (
        {"x": start + 8, "y": 0, "va": "center"} if right else {"x": 0, "y": -0.6, "va": "bottom"}
    )
    axes.text(s=", ".join(narrow), size=8, color=COLOURS["query"], **where)
    rows = {"pieces": torch.cat(list(pieces.values())), **added}
    rows["= token"] = sum(rows.values())
    for y, values in enumerate(rows.values(), start=1):
        extent = (0, start, y + 0.45, y - 0.45)
        axes.imshow(values[None], cmap="cividis", vmin=-1, vmax=1, extent=extent, aspect="auto")
    axes.set(xlim=(-2, 1112), ylim=(len(rows) + 0.5, -0.7))
    axes.set_title(title, loc="left" if right else "right", fontsize=9)
    axes.set_yticks(range(len(rows) + 1), ["", *rows])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelbottom=False)


def draw_tokens():
    figure, axes = canvas(2, 1, 7.4, 3.9, gridspec_kw={"height_ratios": [6, 5]})
    title = "version {}: width D = {}"
    added = {"+ place ρ": place, "+ time τ": time2}
    draw_token(axes[0], pieces2, added, title.format(2, len(time2)))
    draw_token(axes[1], pieces3, {"+ time τ": time3}, title.format(3, len(time3)))
    return figure


show(
    draw_tokens(),
    alt="Two bars of 456 and 1110 numbers at the same scale, cut into the pieces of a token, and "
    "below each the values of the pieces, the vectors that are added, and the sum as strips",
)

# %% [markdown]
# The bars are at one scale: a number is as wide above as below. Dark is −1 and less, light 1 and more. Version 2 gives more than a quarter of its token to the motion; version 3 gives nearly all of its token to correlations, since it has no feature of the point that it could refine. Place and time are not pieces: they are added to all numbers, and the first layer that reads the sum has to tell them apart.

# %% [markdown]
# ## Formula
#
# The sinusoids $\psi$ of a position $a$ in $D$ numbers are the sines of all its angles, and then the cosines. The frequency falls from 1 radian for a step of one position to almost a ten-thousandth of that:
#
# $$ \psi(a) = \big[\, \sin(\omega_0 a), \dots, \sin(\omega_{D/2-1}\, a) \;\big|\; \cos(\omega_0 a), \dots, \cos(\omega_{D/2-1}\, a) \,\big], \qquad \omega_k = 10000^{-k/(D/2)} \tag{1} $$
#
# A position between two whole ones gets the blend $\beta$ of their vectors, as bilinear sampling does along one axis, with the fraction $f$ of the way to the next; a position beyond the first or last one counts as that one:
#
# $$ \beta(a) = (1 - f)\, \psi(\lfloor a \rfloor) + f\, \psi(\lfloor a \rfloor + 1), \qquad f = a - \lfloor a \rfloor \tag{2} $$
#
# The vectors of time $\tau$ were made for a clip of length $L$. For $S$ frames they are stretched. Think of a clip as a strip and of its frames as cells: $S$ cells are laid over a strip of $L$, and each takes the vector at its middle. With $S = L$ nothing changes, $\tau_t = \psi(t)$:
#
# $$ \tau_t = \beta\big((t + \tfrac12)\, L / S - \tfrac12\big), \qquad t = 0, \dots, S - 1 \tag{3} $$
#
# The place $\rho$ is two vectors of half the width side by side, one for $x$ and one for $y$ of the track $p$ in the first frame of the window, in pixels of the features:
#
# $$ \rho = \big[\, \beta(p_x) \;\big|\; \beta(p_y) \,\big] \tag{4} $$
#
# Version 2's motion $m$ is measured from there. Its embedding $\mu$ holds $m$ as it is, then $E$ waves for each of its two parts: $E/2$ frequencies in steps of the spacing $\nu$, from 0 to one step below the highest, $h$, sine and cosine in turn ($j$ runs from 0 to $E/2 - 1$):
#
# $$ m = p_t - p_0, \qquad \mu = \big[\, m \;\big|\; \dots, \sin(j \nu m_x), \cos(j \nu m_x), \dots \;\big|\; \dots, \sin(j \nu m_y), \cos(j \nu m_y), \dots \,\big], \qquad \nu = \frac{2 h}{E} \tag{5} $$
#
# Version 3 takes the steps $d$ to the next frame and from the last, both pointing at frame $t$, and 0 where there is no such frame:
#
# $$ d_t = \big[\, p_t - p_{t+1} \;\big|\; p_t - p_{t-1} \,\big] \tag{6} $$
#
# Divided by the width and height of the feature map that the model was made for (128 and 96 in the release, whatever the size of the video), these are four values $z$, and each gets $K$ octaves of Fourier features $\phi$, frequencies that double. All four sines of a frequency stand side by side, then those of the next; then the cosines in the same way:
#
# $$ \phi = \big[\, z \;\big|\; \sin(2^0 z), \sin(2^1 z), \dots, \sin(2^{K-1} z) \;\big|\; \cos(2^0 z), \dots, \cos(2^{K-1} z) \,\big] \tag{7} $$
#
# The tokens of a point in frame $t$, first version 2's and then version 3's:
#
# $$ [\, \mu \,|\, \text{correlation} \,|\, \text{feature} \,|\, \text{mask} \,|\, \text{visibility} \,] + \rho + \tau_t, \qquad [\, \text{visibility} \,|\, \text{confidence} \,|\, \text{correlation} \,|\, \phi \,] + \tau_t \tag{8} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $D$ | width of a token, or of sinusoids | whole number | `width` | width D |
# | $p$ | track: places of a point | (…, 2), px of the features | `points` | tracks p |
# | $\psi$ | sinusoids of a position | (…, D) | `sinusoids` | sinusoids ψ |
# | $\omega_k$ | frequency of a sine and a cosine | rad per frame or px | `frequencies` | frequency ω_k |
# | $\beta$ | blend of two neighbouring vectors | (…, D) | `_blend_rows` | blend β |
# | $f$ | fraction of the way to the next vector | 0 … 1 | `fraction` | fraction f |
# | $\tau$ | time: vectors of the frames | (S, D) | `time_embedding` | time τ |
# | $L$ | length that they were made for | frames | `length` | length L |
# | $S$ | frames that there are | whole number | `frames` | S frames |
# | $\rho$ | place in the first frame, as a vector | (…, D) | `place_embedding` | place ρ |
# | $m$ | motion since the first frame | (…, 2), px of the features | `motion` | motion m |
# | $\mu$ | embedding of a motion | (…, 2 + 2E) | `motion_embedding` | motion μ |
# | $E$ | waves of one part of a motion | whole number | `width` | E waves |
# | $\nu$ | spacing of the frequencies of a motion | rad per px of the features | `spacing` | spacing ν |
# | $h$ | highest frequency of a motion | rad per px of the features | `highest` | highest h |
# | $d$ | steps to the next frame and from the last | (…, 4), px of the features | `step_motion` | steps d |
# | $z$ | values: steps as shares of the map | (…, P) | `values` | values z |
# | $K$ | octaves of frequencies | whole number | `octaves` | K octaves |
# | $\phi$ | Fourier features of values | (…, P (1 + 2K)) | `fourier_features` | motion φ |
#
# Letters of shapes: $B$ videos, $N$ points, $P$ values side by side, $H$ and $W$ the size of the features, a quarter of the video's. Places are (x, y), x to the right, y down. Correlation and feature are made in [lesson 3](3_features.ipynb); mask, visibility and confidence are one number each, from [lesson 6](6_cotracker.ipynb).
#
# > **Where the code leaves the paper.** The paper says what a token holds: the motion since the window's first frame and an embedding of it, visibility, feature and correlation, and, added, embeddings of place and time. Which frequencies these have and in which order the numbers stand is read from the release; equations 1 to 8 are the release's. Its three embeddings use three orders: blocks of sines and cosines for time and place, sines and cosines in turn for version 2's motion, frequency by frequency for version 3's. None is better. Weights that have learned one are wrong with another.

# %% [markdown]
# ## Code
#
# ### A position in many numbers
#
# Equation 1 in loops:


# %%
def sinusoids_loop(position, width):
    half = width // 2
    angles = [position * 10_000 ** (-k / half) for k in range(half)]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])


sinusoids_loop(0, 6), sinusoids_loop(3, 6)

# %% [markdown]
# The release computes the angles in double precision and rounds the result, and so do we. A width that is not even would leave a sine without its cosine.


# %% tags=["promote", "exercise"]
def sinusoids(positions: Float[Tensor, "*N"], width: int) -> Float[Tensor, "*N {width}"]:
    """Sines, then cosines, of positions at falling frequencies (equation 1 of the lesson).

    positions  (*N,) in any unit
    width      D, an even number
    returns    (*N, D) in the dtype of the positions; the angles are computed in float64

    Raises TypeError for positions of whole numbers, ValueError for a width that is odd or below 2.
    Source: Vaswani et al. 2017, Attention is all you need (arXiv 1706.03762), section 3.5; sines
    and cosines in two blocks as in the CoTracker release.
    """
    _check_floating("positions", positions)
    if whole_number("width", width, least=2) % 2:
        raise ValueError(f"width is {width}; expected an even number, as each sine has a cosine")
    k = torch.arange(width // 2, dtype=torch.float64, device=positions.device)
    frequencies = 10_000 ** (-k / (width / 2))
    angles = positions.double()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(positions.dtype)


# %% tags=["check"]
some = torch.tensor([[0.0, 1.0, 2.5], [7.0, 100.0, -3.0]])
waves = sinusoids(some, 6)
assert waves.shape == (2, 3, 6), "the width is a new last axis"
expected = torch.stack([sinusoids_loop(a, 6) for a in some.flatten().tolist()]).view(2, 3, 6)
assert torch.allclose(waves, expected, atol=1e-6), "float32 rounds numbers up to 1 by 1e-7"
assert sinusoids(some.double(), 4).dtype == torch.float64, "the dtype is that of the positions"
with shows_error(ValueError):
    sinusoids(some, 5)

# %% [markdown]
# ### Time
#
# Version 2 has windows of 8 or 16 frames, and a vector for each. How many of the numbers tell the first frame from the last?

# %%
window = sinusoids(torch.arange(8.0), tokens2.shape[-1])
for least in (0.5, 0.1, 0.01):
    telling = ((window[-1] - window[0]).abs() > least).sum()
    print(f"{telling:3d} of {window.shape[1]} numbers differ by more than {least}")

# %% [markdown]
# The slow half was made for sentences of thousands of words. In a window of 8 frames its sines stay near 0 and its cosines near 1, in every token: it costs nothing but room.
#
# Version 3 sees clips of any number of frames, and its vectors were made for 60. In other clips it stretches them. Equation 3 in a loop, with the position in each frame:


# %%
def stretched_positions(frames, length):
    centres = [(t + 0.5) * length / frames - 0.5 for t in range(frames)]
    return [min(max(a, 0), length - 1) for a in centres]


for frames in (4, 8, 12):
    places = ", ".join(f"{a:.2f}" for a in stretched_positions(frames, 8))
    print(f"{frames:2d} frames of vectors made for 8: {places}")

# %% [markdown]
# `F.interpolate` in its linear mode stretches in this way. A width that is odd is cut from the next even one.


# %% tags=["promote"]
def time_embedding(frames: int, width: int, length: int | None = None) -> Float[Tensor, "S D"]:
    """One vector for each frame of a window (equation 3 of the lesson).

    frames   S
    width    D; of an odd number, the last cosine is left out
    length   L, the frames that the vectors were made for, `frames` when left out; where the two
             differ the vectors are stretched by linear interpolation, as in version 3
    returns  (S, D) float32, to be added to the tokens

    Raises ValueError for frames, width or length that are no whole numbers of 1 or more.
    Source: the release of CoTracker 3 (arXiv 2410.11831) for the stretch.
    """
    frames = whole_number("frames", frames, least=1)
    length = frames if length is None else whole_number("length", length, least=1)
    width = whole_number("width", width, least=1)
    vectors = sinusoids(torch.arange(length, dtype=torch.float32), width + width % 2)[:, :width]
    if length == frames:
        return vectors
    return F.interpolate(vectors.T[None], size=frames, mode="linear")[0].T


# %%
made = sinusoids(torch.arange(8.0), 10)
for frames in (4, 8, 12):
    positions = torch.tensor(stretched_positions(frames, 8))
    low = positions.floor().long()
    high, fraction = (low + 1).clamp(max=7), (positions - low)[:, None]
    by_hand = (1 - fraction) * made[low] + fraction * made[high]
    assert torch.allclose(time_embedding(frames, 10, 8), by_hand, atol=1e-6)
assert time_embedding(5, 7).shape == (5, 7)


# %% tags=["figure"]
def draw_time(width=64):
    figure, axes = canvas(1, 3, 7.4, 2.3, width_ratios=[3, 3, 4], sharey=False)
    length, frames = model3.window, len(track3)
    titles = (f"sinusoids ψ\nlength L = {length}", f"time τ: stretched\nto S frames, S = {frames}")
    style = {"cmap": "cividis", "vmin": -1, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    for each, count, title in zip(axes, (length, frames), titles, strict=False):
        each.imshow(time_embedding(count, width, length), **style)
        each.set(title=title, xlabel="frequency ω_k: sines | cosines", ylabel="frame")
        each.set_xticks([0, width // 2, width - 1], ["ω_0", "ω_0", f"ω_{width // 2 - 1}"])
    t = torch.linspace(0, length - 1, 600)
    at = torch.tensor(stretched_positions(frames, length))
    for k, ink in ((0, "first"), (6, "second")):
        axes[2].plot(t, sinusoids(t, width)[:, k], color=COLOURS[ink], lw=0.8)
        marks = time_embedding(frames, width, length)[:, k]
        axes[2].plot(at, marks, "o-", color=COLOURS[ink], ms=3, lw=0.4, label=f"sine of ω_{k}")
    axes[2].set(title="where the stretched\nvectors come from", xlabel=f"frame of {length}")
    axes[2].set_ylim(-1.1, 1.7)
    axes[2].legend(loc="upper right", ncols=2, fontsize=7)
    return figure


show(
    draw_time(),
    alt="Two pictures of sinusoids, for 60 frames and stretched to 16, and two of the waves with "
    "dots where the stretched ones are read: the fast wave is cut to a jagged line",
)

# %% [markdown]
# A stretch keeps the slow waves and spoils the fast ones: where frames are read more than half a period apart, a sine looks like another one (混叠, aliasing). The vectors still differ from frame to frame, which is what the transformer needs, but a clip of another length has other ones.
#
# ### Place: a map that is two lines
#
# The release makes a map of $D$ numbers for each pixel of the features, half of them for x and half for y, and samples it bilinearly where the point is in the window's first frame. Its files hold that map as a tensor. Naively:


# %%
def place_map(width, size):
    """(1, D, H, W): the vector of every pixel."""
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij")
    return torch.cat([sinusoids(x, width // 2), sinusoids(y, width // 2)], dim=-1).permute(2, 0, 1)[
        None
    ]


def place_by_map(points, width, size):
    read = sample(place_map(width, size), points.view(1, -1, 2), padding="border")
    return read[0].T.view(*points.shape[:-1], width)


whole_map = place_map(tokens2.shape[-1], (height, breadth))
tuple(whole_map.shape)

# %% [markdown]
# Every row of the first half is the same row, and every column of the second half is the same column: the map is **separable** (可分离). Bilinear weights are products of a weight in x and one in y; where the numbers do not depend on y, the weights in y add up to 1, and what is left is a blend of two neighbours in x. So two tables with a row for each column and each line of the map are enough.

# %%
half = whole_map.shape[1] // 2
assert (whole_map[0, :half] == whole_map[0, :half, :1]).all(), "x's half is the same in every row"
assert (whole_map[0, half:] == whole_map[0, half:, :, :1]).all(), "y's half in every column"
tables = half * (height + breadth) * whole_map.element_size()
print(f"map {whole_map.nbytes / 1e6:.1f} MB, two tables {tables / 1e6:.2f} MB")

# %% [markdown]
# The blend of equation 2, on a table of vectors:


# %% tags=["promote"]
def _blend_rows(table: Float[Tensor, "P D"], position: Float[Tensor, "*N"]) -> Tensor:
    """Rows of a table between whole positions; beyond the ends it goes on as its last row."""
    position = position.clamp(0, len(table) - 1)
    # A place that is not a number must not become an index; its fraction keeps it in the result.
    low = position.detach().nan_to_num(nan=0).floor().long()
    high = (low + 1).clamp(max=len(table) - 1)
    fraction = (position - low)[..., None]
    return torch.lerp(table[low], table[high], fraction)


def _check_pairs(name: str, values: Tensor) -> None:
    _check_floating(name, values)
    if values.ndim == 0 or values.shape[-1] != 2:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}; expected (..., 2), (x, y) in the last axis"
        )


# %% [markdown]
# Both halves have the same even width; a token whose width 4 does not divide gets the first numbers of a wider place.


# %% tags=["promote", "exercise"]
def place_embedding(
    points: Float[Tensor, "*N 2"], width: int, size: tuple[int, int]
) -> Float[Tensor, "*N {width}"]:
    """A vector for a place on the map: half of it for x, half for y (equation 4 of the lesson).

    points   (*N, 2) as (x, y), in pixels of the features
    width    D; where 4 does not divide it, the last numbers of the next larger one fall off
    size     (H, W) of the map; a place beyond its border counts as on the border
    returns  (*N, D), to be added to the tokens

    The vectors of neighbouring pixels are blended. Each half depends on one coordinate alone, so
    that two tables of H and W rows hold the numbers of a map of H × W vectors. A place that is not
    a number gives a vector that is not.

    Raises TypeError for points of whole numbers, ValueError for points without (x, y), and a width
    or size that is no whole number of 1 or more.

    Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
    Source: the CoTracker release.
    """
    _check_pairs("points", points)
    half = 2 * math.ceil(whole_number("width", width, least=1) / 4)
    halves = []
    for name, coordinate, length in zip("WH", points.unbind(-1), reversed(size), strict=True):
        rows = torch.arange(whole_number(name, length, least=1), dtype=torch.float64)
        table = sinusoids(rows, half).to(points)
        halves.append(_blend_rows(table, coordinate))
    return torch.cat(halves, dim=-1)[..., :width]


# %% tags=["check"]
torch.manual_seed(0)
anywhere = torch.rand(5, 7, 2) * torch.tensor([60.0, 40.0]) - 10  # inside the map and outside
looked_up = place_embedding(anywhere, 24, (20, 40))
assert looked_up.shape == (5, 7, 24), "the width takes the place of (x, y)"
# `sample` scales a coordinate and scales it back, which rounds places up to 50 by 4e-6.
assert torch.allclose(looked_up, place_by_map(anywhere, 24, (20, 40)), atol=2e-5), "not the map"
assert torch.equal(place_embedding(anywhere, 22, (20, 40)), looked_up[..., :22]), "22 of 24"
on_pixel = place_embedding(torch.tensor([3.0, 5.0]), 24, (20, 40))
assert torch.allclose(on_pixel[:12], sinusoids(torch.tensor(3.0), 12)), "x comes first"

# %% [markdown]
# The same at the size of the release, for the places of our points:

# %%
start = track2[0]
difference = place_embedding(start, 456, (96, 128)) - place_by_map(start, 456, (96, 128))
print(f"{len(start)} places, largest difference {difference.abs().max():.0e}")
assert difference.abs().max() < 1e-5


# %% tags=["figure"]
def draw_place():
    figure, axes = canvas(1, 3, 7.4, 2.35, width_ratios=[4, 4, 3.4])
    k = 20
    middle = torch.tensor([breadth / 2, height / 2])
    here = place_embedding(middle, 456, (height, breadth))
    distances = (whole_map[0] - here[:, None, None]).norm(dim=0)
    panels = (
        (sum(whole_map[0, [k, half + k]]), f"place ρ: number {k}\nplus number {half + k}"),
        (distances, "distance of place ρ\nfrom the middle's"),
    )
    for each, (values, title) in zip(axes, panels, strict=False):
        each.imshow(values, cmap="gray")
        each.set(title=title, xlabel="x (px of the features)", ylabel="y (px of the features)")
    axes[1].contour(distances, levels=6, colors=COLOURS["second"], linewidths=0.8)
    x = torch.linspace(0, 6, 200)
    axes[2].plot(x, x.sin(), color=COLOURS["muted"], label="sine of ω_0")
    blend = place_embedding(torch.stack([x, x], dim=-1), 456, (height, breadth))[:, 0]
    axes[2].plot(x, blend, color=COLOURS["first"], label="blend β")
    axes[2].plot([1, 1.7], [-1.3, -1.3], "|-", color=COLOURS["query"], lw=1)
    axes[2].text(1.9, -1.38, "fraction f = 0.7", size=8, color=COLOURS["query"])
    axes[2].set(title="between the pixels", xlabel="x (px of the features)", ylim=(-1.6, 1.9))
    axes[2].legend(loc="upper right", ncols=2, fontsize=7)
    return figure


show(
    draw_place(),
    alt="The sum of a wave along x and one along y over the map; the distance of each pixel's "
    "vector from the middle's, with contours like a star; and a sine with the "
    "straight lines that blend it between whole pixels",
    photo=True,
)

# %% [markdown]
# The distance grows fast at first and then slowly: a vector says exactly what is near, and roughly what is far. It reaches far along the two axes, where only one half of the vector changes. Between pixels the fastest waves are a little lower than the true sine. The release blends, so published weights expect the blend.
#
# ### Motion, as version 2 writes it
#
# Equation 5 in loops, for one motion:


# %%
def motion_loop(x, y, width=64, highest=1000):
    numbers = [x, y]
    for part in (x, y):
        for k in range(0, width, 2):
            angle = part * k * highest / width
            numbers += [math.sin(angle), math.cos(angle)]
    return torch.tensor(numbers)


motion_loop(0.01, 0, width=6)


# %% tags=["promote", "exercise"]
def motion_embedding(
    motion: Float[Tensor, "*N 2"], width: int = 64, highest: float = 1000.0
) -> Float[Tensor, "*N {2*width+2}"]:
    """A motion as it is, with sines and cosines of both parts (equation 5 of the lesson).

    motion   (*N, 2) as (x, y), in pixels of the features
    width    E, an even number, of the waves of one part
    highest  h, radians per pixel of the features, one step above the highest frequency there is
    returns  (*N, 2 + 2E): x, y, then sine and cosine in turn, those of x before those of y

    The numbers are computed in the dtype of the motion. With the release's 1000 a motion that
    differs by 1e-6 gives waves that differ by up to 1e-3.

    Raises TypeError for a motion of whole numbers, ValueError for one without (x, y), a width that
    is odd or below 2, and a highest that is not positive.

    Convention: x to the right, y down.
    Source: the CoTracker release.
    """
    _check_pairs("motion", motion)
    if whole_number("width", width, least=2) % 2:
        raise ValueError(f"width is {width}; expected an even number, as each sine has a cosine")
    if not 0 < highest < math.inf:
        raise ValueError(f"highest is {highest}; expected a positive number of radians per pixel")
    spacing = 2 * highest / width
    frequencies = spacing * torch.arange(width // 2).to(motion)
    angles = motion[..., None] * frequencies
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1)
    return torch.cat([motion, waves.flatten(-3)], dim=-1)


# %% tags=["check"]
moves = torch.tensor([[0.0, 0.0], [0.01, -0.02], [0.3, 2.0]], dtype=torch.float64)
embedded = motion_embedding(moves)
assert embedded.shape == (3, 130), "two numbers and 64 for each part"
expected = torch.stack([motion_loop(*move) for move in moves.tolist()])
assert torch.allclose(embedded.float(), expected, atol=1e-6), "not equation 5"
assert motion_embedding(moves, width=8, highest=10).shape == (3, 18)
assert embedded[1, 4:6].tolist() == [math.sin(0.3125), math.cos(0.3125)], "sine, cosine, in turn"

# %% [markdown]
# Four of the 130 numbers say nothing at all: frequency 0 has the sine 0 and the cosine 1, whatever the motion.

# %%
E, h = 64, 1000.0
waves_of = motion_embedding(torch.rand(1000, 2))
print("numbers that never change:", (waves_of.std(dim=0) == 0).nonzero()[:, 0].tolist())
nu = 2 * h / E
top = (E // 2 - 1) * nu
print(f"spacing ν = {nu:g}, highest frequency in use {top:g} rad per px of the features")
print(
    f"its period: {2 * math.pi / top:.4f} px of the features, {STRIDE * 2 * math.pi / top:.3f} px of the video"
)
print(f"all waves together return after {2 * math.pi / nu:.3f} px of the features")

# %% [markdown]
# So the fastest wave repeats some forty times in one pixel of the video, and a tracker is right to a tenth of a pixel at its best. And since all frequencies are multiples of one spacing, all waves together return after a fifth of a pixel of the features. What the waves say about a motion, they say about many others; only the two plain numbers tell these apart.
#
# ### The hazard, measured
#
# A frequency multiplies the motion, and so it magnifies errors of the motion. Three questions: How much does $\mu$ change when the motion changes by $\varepsilon$? How much does the arithmetic of float32 change it? And how far are the waves of two motions from each other?


# %%
def change(embed, epsilon):
    """The largest change of any wave, over motions up to 20 px, when they change by epsilon."""
    torch.manual_seed(1)
    motion = 40 * torch.rand(4000, 2, dtype=torch.float64) - 20
    return (embed(motion + epsilon) - embed(motion))[:, 2:].abs().max().item()


def fourier_of(motion):
    """Version 3's numbers for such a motion, if it were a step."""
    return fourier_features(motion / torch.tensor([breadth, height]).to(motion))


# %%
epsilons = [10.0**k for k in range(-9, 0)]
changes = {
    "version 2, motion μ": [change(motion_embedding, epsilon) for epsilon in epsilons],
    "version 3, motion φ": [change(fourier_of, epsilon) for epsilon in epsilons],
}
for name, values in changes.items():
    print(f"{name}: a change of 1e-6 px becomes {values[3]:.1e}, one of 0.1 px {values[-1]:.1e}")

# %% [markdown]
# Float32 has 24 binary digits. An angle of thousands of radians spends half of them on whole turns, and the sine is made of what is left. The true motions of our clip, with the angles in float32 and in float64:

# %%
all_motion = (clip.points[1] / STRIDE - clip.points[1][:1] / STRIDE).flatten(0, 1)
errors = {
    name: (embed(all_motion).double() - embed(all_motion.double()))[:, 2:].abs().amax(dim=-1)
    for name, embed in (("motion μ", motion_embedding), ("motion φ", fourier_of))
}
for name, values in errors.items():
    print(
        f"{name}: float32 is wrong by up to {values.max():.1e}, {values.median():.1e} in the middle"
    )


# %% tags=["figure"]
def draw_hazard():
    figure, axes = canvas(1, 3, 7.6, 2.6)
    m = torch.linspace(0, 0.05, 2000)
    wave = motion_embedding(torch.stack([m, m], dim=-1))[:, 2 + E - 2]
    axes[0].plot(m, wave, color=COLOURS["flow"], lw=0.8)
    at = torch.arange(0, 0.05, 0.006)
    read = motion_embedding(torch.stack([at, at], dim=-1))[:, 2 + E - 2]
    axes[0].plot(at, read, "o-", color=COLOURS["bad"], ms=3, lw=1)
    axes[0].set(title=f"one of E waves, just below\nthe highest h = {h:g}", ylim=(-1.3, 1.3))
    m = torch.linspace(0, 0.5, 1500, dtype=torch.float64)
    waves = motion_embedding(torch.stack([m, 0 * m], dim=-1))[:, 2:]
    axes[1].plot(m, (waves - waves[0]).norm(dim=-1), color=COLOURS["flow"], lw=0.8)
    axes[1].annotate("", (0, 0.4), (2 * math.pi / nu, 0.4), arrowprops={"arrowstyle": "<->"})
    axes[1].text(0.012, 0.9, "2π / spacing ν", size=8)
    axes[1].set(title="distance of the waves\nfrom those of no motion", ylim=(0, 9))
    for each in axes[:2]:
        each.set_xlabel("motion m (px of the features)")
    inks = {"version 2, motion μ": "flow", "version 3, motion φ": "good"}
    for name, values in changes.items():
        axes[2].loglog(epsilons, values, "o-", color=COLOURS[inks[name]], ms=3, label=name)
    axes[2].axvline(1e-6, color=COLOURS["muted"], lw=0.8)
    axes[2].set(title="largest change of a wave", xlabel="change of m (px of the features)")
    axes[2].legend(loc="lower right", fontsize=7)
    return figure


show(
    draw_hazard(),
    alt="A fast wave and dots that read it too seldom and see a slow one; the distance of all "
    "waves from those of no motion, which jumps up at once and is 0 again after a fifth of a "
    "pixel; and the change of both embeddings against the change of the motion, a factor of 200 apart",
)

# %% [markdown]
# Left: a motion that is known to 0.006 pixels only (dots) sees a slow wave that is not there. Middle: a motion of a hundredth of a pixel is as far from no motion as any other is, and after a fifth of a pixel the waves are back. Right: the slope is 1, so in version 2 a change of $\varepsilon$ becomes one of almost $1000\,\varepsilon$, until a wave cannot change any more.
#
# What follows? Let two computers add in another order, and differ by $10^{-6}$ pixels after one iteration: the tokens of the next differ by $10^{-3}$. A few iterations can make pixels of that, as *What breaks* shows. Trained weights can learn to give such numbers little weight; whether a version-2 tracker on another machine says the same to the fourth digit is a question of its weights. `highest` is an argument for that reason: a model that is trained anew can do with less, and the course's own takes 16.

# %% [markdown]
# ### Motion, as version 3 writes it
#
# Version 3 does not look back to the first frame, which may be far away. It takes the steps to the next frame and from the last (equation 6):


# %% tags=["promote"]
def step_motion(points: Float[Tensor, "B S N 2"]) -> Float[Tensor, "B S N 4"]:
    """How a track goes on to the next frame and came from the last (equation 6 of the lesson).

    points   (B, S, N, 2) as (x, y)
    returns  (B, S, N, 4), in the same unit: (x, y) of p_t − p_{t+1}, 0 in the last frame; then of
             p_t − p_{t−1}, 0 in the first

    Raises TypeError for points of whole numbers, ValueError for another shape or no frame.

    Convention: x to the right, y down; both vectors end at frame t.
    Source: the release of CoTracker 3 (arXiv 2410.11831).
    """
    _check_pairs("points", points)
    if points.ndim != 4 or points.shape[1] == 0:
        raise ValueError(
            f"points has shape {tuple(points.shape)}; expected (B, S, N, 2), one frame or more"
        )
    step = points[:, 1:] - points[:, :-1]
    forward = F.pad(-step, (0, 0, 0, 0, 0, 1))
    backward = F.pad(step, (0, 0, 0, 0, 1, 0))
    return torch.cat([forward, backward], dim=-1)


# %%
walk = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]])[None, :, None]
assert step_motion(walk)[0, :, 0].tolist() == [[-1, 0, 0, 0], [0, -3, 1, 0], [0, 0, 0, 3]]
step_motion(walk)[0, :, 0]


# %% [markdown]
# Then equation 7. The release writes a cosine as the sine of a quarter turn more, which is the same up to rounding.


# %% tags=["promote", "exercise"]
def fourier_features(values: Float[Tensor, "*N P"], octaves: int = 10) -> Float[Tensor, "*N Q"]:
    """Values with their sines and cosines at doubling frequencies (equation 7 of the lesson).

    values   (*N, P), for version 3 the steps as shares of the map's width and height
    octaves  K
    returns  (*N, P · (1 + 2K)): the values; all sines, those of one frequency side by side, lowest
             first; all cosines likewise

    Raises TypeError for values of whole numbers, ValueError for a single number and for octaves
    that are no whole number of 0 or more.
    Source: the release of CoTracker 3 (arXiv 2410.11831).
    """
    _check_floating("values", values)
    if values.ndim == 0:
        raise ValueError("values has shape (); expected (..., P), numbers side by side")
    doubling = torch.arange(whole_number("octaves", octaves, least=0)).to(values)
    angles = (values[..., None, :] * 2.0 ** doubling[:, None]).flatten(-2)
    # The release adds a quarter turn to the sine's angle where a cosine would do.
    return torch.cat([values, angles.sin(), (angles + math.pi / 2).sin()], dim=-1)


# %% tags=["check"]
two = torch.tensor([[0.1, 0.5]], dtype=torch.float64)
features = fourier_features(two, octaves=3)
assert features.shape == (1, 14), "P (1 + 2K) numbers"
angles = [0.1, 0.5, 0.2, 1.0, 0.4, 2.0]  # both values times 1, then times 2, then times 4
expected = torch.tensor([0.1, 0.5, *map(math.sin, angles), *map(math.cos, angles)]).double()
assert torch.allclose(features[0], expected, atol=1e-7), "frequency by frequency, sines first"
assert fourier_features(torch.zeros(2, 3, 4)).shape == (2, 3, 84), "ten octaves by default"

# %% [markdown]
# The order again, as numbers: in which place of $\phi$ is the sine of each of the four values at each frequency? Set one value at a time, and see which sines move.


# %%
def place_of_sines(P=4, octaves=10):
    """The number of the sine of each value (row) at each frequency (column)."""
    found = []
    for value in torch.eye(P).double() * 1e-3:  # so small that a larger angle has a larger sine
        sines = fourier_features(value, octaves)[P : P * (1 + octaves)]
        found.append(P + sines.argsort()[-octaves:])
    return torch.stack(found)


# %% tags=["figure"]
def draw_order():
    figure, axes = canvas(1, 2, 7.4, 2.1)
    ours = place_of_sines()
    other = len(ours) + torch.arange(ours.numel()).view_as(ours)
    titles = ("motion φ: frequency by frequency", "value by value: wrong for version 3")
    for each, order, title in zip(axes, (ours, other), titles, strict=True):
        draw_pixels(each, order, limits=(-20, 50), fontsize=7)
        each.set(title=title, xlabel=f"K octaves, K = {order.shape[1]}: frequency 2^k", ylabel="")
        each.set_yticklabels([])
    axes[0].set_yticklabels(["x to next", "y to next", "x from last", "y from last"])
    axes[0].set_ylabel("values z of the steps d")
    return figure


show(
    draw_order(),
    alt="Two tables of four values by ten octaves with the number of each sine in the Fourier "
    "features: in the first the numbers run down the columns, in the second along the rows",
)

# %% [markdown]
# ### Why these frequencies are harmless
#
# The highest frequency is $2^{9}$ radians for the whole map, and the map has a hundred pixels. What is left for one pixel:

# %% tags=["nbval-check-output"]
for axis, side in (("x", breadth), ("y", height)):
    rate = 2**9 / side
    print(f"{axis}: 512 rad / {side} px = {rate:.2f} rad per px of the features, ", end="")
    print(f"a period of {STRIDE * 2 * math.pi / rate:.1f} px of the video")
print(f"version 2's highest frequency is {top / (2**9 / breadth):.0f} times as high")

# %% [markdown]
# A wave that repeats after a few pixels of the video still tells tenths of a pixel apart, and no more. A change of $10^{-6}$ px becomes one of about $5 \cdot 10^{-6}$: the embedding magnifies little. Its lowest frequency, 1 radian for the whole map, is a plain number in all but name, and each octave between doubles the detail.
#
# ## On real input
#
# ### Two neighbours and a hidden point
#
# The true tracks of the three points, as the two versions write them. A row is a frame.

# %%
first_three = points[:, :3] / STRIDE
as_version2 = motion_embedding(first_three - first_three[:1])
shares = step_motion(first_three[None])[0] / torch.tensor([breadth, height]).repeat(2)
as_version3 = fourier_features(shares)
tuple(as_version2.shape), tuple(as_version3.shape)


# %% tags=["figure"]
def draw_embeddings():
    figure, axes = canvas(2, 3, 7.4, 3.1, sharey=True)
    style = {"cmap": "cividis", "vmin": -1, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    for row, (values, label) in zip(
        axes, ((as_version2, "motion μ"), (as_version3, "motion φ")), strict=True
    ):
        for n, each in enumerate(row):
            each.imshow(values[:, n], **style)
            each.autoscale(False)
            for t in (~visible[:, n]).nonzero()[:, 0].tolist():
                each.plot(values.shape[2] + 1, t, "s", color=COLOURS["query"], ms=3, clip_on=False)
            each.set_title(f"{label} of {names[n]}")
        row[0].set_ylabel("frame")
    axes[0, 0].set_xlabel("x, y, then E waves of x and of y")
    axes[1, 0].set_xlabel("z, then sines, then cosines")
    return figure


show(
    draw_embeddings(),
    alt="Six pictures: version 2's motion embedding of three points looks like noise and differs "
    "between neighbours; version 3's is smooth and alike for the two neighbours",
)

# %% [markdown]
# A square beside a frame marks that the point is hidden there; its motion goes on, and neither embedding shows that. The two neighbours lie on the same layer and move nearly alike. Version 3's pictures of them can hardly be told apart. Version 2's look like noise, and agree at most in the slow waves at the left of each half:

# %%
unlike = (first_three[:, 0] - first_three[:1, 0] - first_three[:, 1] + first_three[:1, 1]).norm(
    dim=-1
)
print(f"the motions of the neighbours differ by up to {unlike.max():.3f} px of the features")
waves = as_version2[1:, :, 2:].unflatten(
    -1, (2, E // 2, 2)
)  # frames, points, parts, frequencies, sine and cosine
differences = (waves[:, 0] - waves[:, 1]).abs().mean(dim=(0, 1, 3))
print(
    "mean difference of the waves, slow to fast:", [f"{x:.2f}" for x in differences[1::6].tolist()]
)
for name, values in (("μ", as_version2[..., 2:]), ("φ", as_version3[..., 4:])):
    close, far = ((values[1:, 0] - values[1:, n]).norm(dim=-1).mean() for n in (1, 2))
    print(f"waves of {name}: the neighbour is {close:.2f} away, the hidden point {far:.2f}")

# %% [markdown]
# ### Distances
#
# A network is helped when points that move alike also look alike to it. Do they? All pairs of the 128 points of the clip, in one frame: the distance of their places or motions in pixels, and that of their embeddings.

# %%
every = clip.points[1] / STRIDE
ways = {
    "place ρ": (every[0], place_embedding(every[0], 456, (height, breadth))),
    "motion μ, waves": (every[6] - every[0], motion_embedding(every[6] - every[0])[:, 2:]),
    "motion φ, waves": (
        step_motion(every[None])[0, 6, :, 2:],
        fourier_features(step_motion(every[None])[0, 6, :, 2:] / torch.tensor([breadth, height]))[
            :, 2:
        ],
    ),
}


# %% tags=["figure"]
def draw_distances():
    figure, axes = canvas(1, 3, 7.4, 2.4)
    pairs = torch.triu_indices(len(every[0]), len(every[0]), offset=1)
    for each, (name, (values, vectors)) in zip(axes, ways.items(), strict=True):
        pixels, distance = (torch.cdist(v, v)[*pairs].clamp(min=1e-3) for v in (values, vectors))
        each.plot(
            pixels, distance, ".", ms=1.5, color=COLOURS["first"], alpha=0.25, rasterized=True
        )
        each.set(title=name, xlabel="apart (px of the features)", xscale="log", ylim=(0, None))
        each.set_xlim(1e-3, 100)
    axes[0].set_ylabel("apart as embedded")
    return figure


show(
    draw_distances(),
    alt="Distance as embedded against distance in pixels, for all pairs of points: a rising curve "
    "for the place, a cloud at one height for version 2's motion, a rising curve for version 3's",
)

# %% [markdown]
# The place and version 3's steps keep the order of distances: what is nearer in pixels is, by and large, nearer as embedded. Version 2's waves say "the same" or "not the same", and little more: beyond a hundredth of a pixel all pairs are about equally far apart. How far two motions differ, the transformer reads from the two plain numbers, and from the feature and the correlation. That the released version 2 tracks well all the same suggests that a transformer can do without some of its inputs; version 3 has replaced this one.

# %% [markdown]
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `sinusoids` | 8 | ●○○ |
# | `place_embedding` | 12 | ●●○ |
# | `motion_embedding` | 10 | ●●○ |
# | `fourier_features` | 8 | ●●○ |
#
# <details><summary>Hint for <code>sinusoids</code></summary>
#
# Give the positions a new last axis with `[..., None]` and multiply by the vector of frequencies; broadcasting does the rest. `positions.double()` before, `.to(positions.dtype)` after.
#
# </details>
#
# <details><summary>Hint for <code>place_embedding</code></summary>
#
# `points.unbind(-1)` gives x and y. The table for x has a row for each column of the map, `size[1]` of them; it is `sinusoids` of 0, 1, 2, …. `_blend_rows`, in the cell above, reads it.
#
# </details>
#
# <details><summary>Hint for <code>motion_embedding</code></summary>
#
# The angles have the shape (…, 2, E/2). Stack their sines and cosines along a new **last** axis, so that flattening the last three axes takes them in turn.
#
# </details>
#
# <details><summary>Hint for <code>fourier_features</code></summary>
#
# Which index should run slowly? `values[..., None, :]` puts the new axis, the frequencies, before the values.
#
# </details>
#
# **Predict.** Set `highest` to 50 in `motion_embedding`. After how many pixels of the video do all waves return together, and what does a change of $10^{-6}$ px become?
#
# <details><summary>Hint</summary>
#
# The spacing is $\nu = 2h/E$, and all frequencies are multiples of it.
#
# </details>
#
# <details><summary>Answer</summary>
#
# After $2\pi/\nu = 4.0$ px of the features, 16 px of the video, and $5 \cdot 10^{-5}$: twenty times less than with 1000. The cell below computes both.
#
# </details>

# %% tags=["nbval-check-output"]
softer = 2 * 50 / E
print(f"returns after {STRIDE * 2 * math.pi / softer:.1f} px of the video")
print(f"1e-6 px becomes {change(lambda m: motion_embedding(m, highest=50.0), 1e-6):.1e}")

# %% [markdown]
# **Find the bug.** A colleague writes the place embedding from scratch. It gives the right shape and passes the first test. With published weights the tracks are off by pixels. What is wrong, and which input shows it?


# %%
def place_colleague(points, width, size):
    y, x = points.unbind(-1)
    return torch.cat([sinusoids(x, width // 2), sinusoids(y, width // 2)], dim=-1)


first_test = torch.tensor([[0.0, 0.0], [5.0, 5.0], [17.0, 17.0]])
assert torch.allclose(
    place_colleague(first_test, 24, (20, 40)), place_embedding(first_test, 24, (20, 40)), atol=1e-6
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# What do all points of the first test have in common? And what is special about whole numbers?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Two bugs. The halves are swapped: points are (x, y), and `y, x = …` takes them for (y, x), which no point of the diagonal notices. And the sinusoids of a fraction are not the blend of its neighbours, which no whole number notices; places beyond the border are not clamped either. A test needs points off the diagonal, between pixels, and outside.
#
# </details>

# %%
for point in ([3.0, 7.0], [5.5, 5.5], [50.0, 50.0]):
    at = torch.tensor(point)
    off = place_colleague(at, 24, (20, 40)) - place_embedding(at, 24, (20, 40))
    print(f"{point}: off by {off.abs().max():.2f}")

# %% [markdown]
# **Measure.** How much of a token is about when and where? Compare the lengths of the pieces of `pieces2`, of `place` and of `time2`, and those of version 3.
#
# <details><summary>Hint</summary>
#
# `.norm()` of each; for a fair comparison divide by the square root of the width.
#
# </details>
#
# <details><summary>Answer</summary>
#
# A sine and its cosine have length 1 together, so sinusoids of width $D$ have length $\sqrt{D/2}$ at every position. The visibility of version 2 begins at 10 and outweighs its neighbours. Nothing normalises the token before the transformer's first layer, so its weights have to balance the pieces.
#
# </details>

# %%
for name, values in {**pieces2, "place ρ": place, "time τ": time2}.items():
    print(
        f"{name:>12}: length {values.norm():5.1f}, {values.norm() / len(values) ** 0.5:5.2f} per number"
    )

# %% [markdown]
# ## What breaks
#
# ### Another order
#
# Blocks in place of turns, x and y exchanged, value by value in place of frequency by frequency: each is the same set of numbers in another order. Shapes agree, no error is raised, and each number meets a weight that was learned for another one. The first layer's answer to one token, in the right order and in three others:


# %%
def answer_change(model, token, order):
    """How far the first layer's answer moves when numbers change places, against its length."""
    layer = model.update.transformer.input_transform
    with torch.no_grad():
        right, wrong = layer(token), layer(token[order])
    return ((wrong - right).norm() / right.norm()).item()


everything = torch.arange(tokens2.shape[-1])
in_blocks = everything.clone()
in_blocks[2:130] = everything[2:130].view(2, 32, 2).transpose(1, 2).flatten()
swapped_place = tokens2[0, -1] - place + place.roll(len(place) // 2)
by_value = torch.arange(tokens3.shape[-1])
by_value[-80:] = by_value[-80:].view(2, 10, 4).transpose(1, 2).flatten()
with torch.no_grad():
    layer = model2.update.transformer.input_transform
    right, wrong = layer(tokens2[0, -1]), layer(swapped_place)
print(f"version 2, motion in blocks:   {answer_change(model2, tokens2[0, -1], in_blocks):.0%}")
print(f"version 2, place y before x:   {(wrong - right).norm() / right.norm():.0%}")
print(f"version 3, motion value by value: {answer_change(model3, tokens3[0, -1], by_value):.0%}")

# %% [markdown]
# ### Rounding becomes motion
#
# Each iteration feeds the points back. A small version 2 that has not learned tracks the clip, once in float32 and once in float64. Its head is five times as large as at the start of a training, so that the points move. The same with a lower `highest`:


# %%
def rounding(highest):
    """How far the points move, and how far float32 leads them from float64 (px of the video)."""
    torch.manual_seed(0)
    sizes = {"width": 96, "heads": 4, "depth": 1, "features": 32, "widths": (16, 16, 16, 16)}
    small = CoTracker("2", highest=highest, **sizes).eval()
    with torch.no_grad():
        small.update.transformer.flow_head.weight *= 5
        single = small(video[:, :8], queries, 6).points
        double = small.double()(video[:, :8].double(), queries.double(), 6).points
    return (single - queries[:, None, :, 1:]).abs().max(), (single - double).abs().max()


for highest in (1000.0, 100.0, 16.0):
    moved, led = rounding(highest)
    print(
        f"highest {highest:4.0f}: points move {moved:4.1f} px, float32 leads them {led:.0e} px away"
    )

# %% [markdown]
# Seven digits of arithmetic, and with the release's frequencies few of them reach the result: two correct programs can disagree. So compare implementations piece by piece, on the same input, and choose the tolerance of a whole run with this in mind. The frozen numbers that test this course were made with weights that are small for these columns.
#
# ### Half precision
#
# Half precision halves memory, and the numbers of a token are no larger than 10. But it rounds the motion before any frequency sees it. The largest error of a wave, for the motions of the clip:

# %%
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    for name, embed in (("motion μ", motion_embedding), ("motion φ", fourier_of)):
        off = (embed(all_motion.to(dtype)).double() - embed(all_motion.double())).abs()
        print(f"{str(dtype)[6:]:>8}, {name}: off by up to {off.max():.0e}")

# %% [markdown]
# A wave lies between −1 and 1, so an error of 2 means that nothing is left of it. Keep the tracks and their embeddings in float32, and let autocast have the layers behind them.
#
# ### Off the map
#
# The map of places has the size that the model was made for. In a larger video every point beyond it has the vector of the border, as if all stood there in a line:

# %% tags=["nbval-check-output"]
far = torch.tensor([[127.0, 50.0], [130.0, 50.0], [400.0, 50.0]])
vectors = place_embedding(far, 456, (96, 128))
print("distances from the first:", (vectors - vectors[0]).norm(dim=-1).tolist())

# %% [markdown]
# The released model therefore resizes each video to 384 × 512 pixels, which is this map times four.
#
# ### A bad number
#
# A place that is not a number spoils its own token, and no other:

# %% tags=["nbval-check-output"]
spoiled = torch.tensor([[3.0, 4.0], [math.nan, 4.0], [5.0, math.inf]])
print(place_embedding(spoiled, 8, (20, 40)).isnan().sum(dim=-1).tolist(), "numbers of 8 are NaN")

# %% [markdown]
# An infinite place counts as one on the border. NaN in x leaves the half of y whole.
#
# ### What the code says to bad input

# %%
with shows_error(ValueError):
    sinusoids(torch.zeros(3), 7)
with shows_error(TypeError):
    sinusoids(torch.arange(8), 6)
with shows_error(ValueError):
    time_embedding(0, 456)
with shows_error(ValueError):
    motion_embedding(torch.zeros(2, 5, 3))
with shows_error(ValueError):
    motion_embedding(torch.zeros(5, 2), highest=-1.0)
with shows_error(ValueError):
    place_embedding(torch.zeros(5, 2), 456, (0, 128))
with shows_error(ValueError):
    step_motion(torch.zeros(16, 12, 2))
with shows_error(ValueError):
    fourier_features(torch.zeros(4), octaves=-1)

# %% [markdown]
# ## Recap
#
# - A token is one point in one frame: 456 numbers in version 2, 1110 in version 3. Motion, correlation, feature, mask and visibility are its pieces; place and time are added to all of it.
# - Sinusoids spread a position over many numbers. A map of places is separable: two tables hold it, in a hundredth of the memory.
# - A frequency magnifies. Version 2's motion goes up to 969 rad per pixel of the features, so that $10^{-6}$ px become $10^{-3}$; version 3 stays at 4 to 5 and magnifies little. The order of the numbers is part of the weights.
#
# The line goes on in [lesson 5](5_transformer.ipynb), where the tokens read each other.
