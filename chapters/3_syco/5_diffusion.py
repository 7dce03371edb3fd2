# ---
# jupyter:
#   fourfold:
#     accelerator: helpful
#     level: advanced
#     minutes: 60
#     needs:
#     - 3_syco/3_egnn
#     - 3_syco/4_autoencoder
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Diffusion: molecules out of a cloud of noise
#
# **After this lesson you can** destroy a cloud of points with noise that has no centre, train a network to guess that noise, walk back from pure noise to a cloud and from the cloud to a molecule, and put a bound on the likelihood of a molecule.
#
# *Before this:* [EGNN](3_egnn.ipynb) (`3_egnn`), the network, and [Autoencoder](4_autoencoder.ipynb) (`4_autoencoder`), which turns a graph into a cloud and back. The chapter before this one walks from noise to a graph too, [with lots drawn for atoms and bonds](../2_graph_dit/5_diffusion.ipynb); here everything is a number. *Time:* 60 minutes, and 35 for the blanks.

# %% [markdown]
# ## Words
#
# A latent cloud (隐点云) is a handful of points with a few numbers on each. Shake it with Gaussian noise, a little more at every step, and after $T$ steps it is noise and nothing else. **Diffusion** (扩散) learns the way back. A network looks at the shaken cloud $z_t$ at time $t$ and guesses the noise in it. Take a little of that noise away, add a little fresh noise, and guess again. At time 0 a cloud stands there that nobody has put there, and the decoder of lesson 4 reads a molecule off it.
#
# Where a cloud lies and how it is turned means nothing. So the noise is kept **without a centre of mass** (零质心): it moves points against each other, never the cloud as a whole. The network's guess is a movement, the one that the [EGNN](3_egnn.ipynb) makes, and turns along with its input. Then the whole walk turns along: a molecule and the same molecule turned are equally likely.
#
# This is **EDM**, equivariant diffusion (Hoogeboom et al. 2022), which SyCo runs on the clouds of its autoencoder.

# %% [markdown]
# ## Figure
#
# ### Two small models
#
# The figure needs trained models: an autoencoder, and a diffusion on its clouds. They are trained here, on the molecules of QM9 with at most seven heavy atoms, which are five hundred. `LatentDiffusion` and what is in it are what this lesson builds.

# %%
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from rdkit import Chem
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fourfold.graph_dit.graphs import Graphs, Vocabulary, encode_smiles, one_hot, to_codes
from fourfold.graph_dit.molecules import graphs_to_smiles
from fourfold.kit.arguments import whole_number
from fourfold.kit.checkpoints import check_keys
from fourfold.kit.cloud_picture import draw_cloud
from fourfold.kit.drawing import COLOURS, canvas, show
from fourfold.kit.molecules import molecule_grid, qm9_coordinates, qm9_table
from fourfold.kit.notebook import progress_bar, shows_error
from fourfold.kit.scale import at_scale, device
from fourfold.kit.training import train
from fourfold.syco.autoencoder import Cloud, MoleculeAutoencoder, exact
from fourfold.syco.diffusion import EDM, LatentDiffusion, cloud_noise, sizes_to_mask
from fourfold.syco.egnn import EGNN
from fourfold.syco.lifting import center

ATOMS, STRIDES = 7, 100
vocabulary = Vocabulary(("C", "N", "O", "F"), ATOMS, kekulize=True)


def seeded(seed):
    return torch.Generator(device()).manual_seed(seed)


def small_molecules(split):
    """The molecules of QM9 with at most seven heavy atoms: SMILES, graphs, coordinates in Å."""
    table, x = qm9_table(split), torch.from_numpy(qm9_coordinates(split))
    few = (table["smiles"].str.count("[A-GI-Za-z]") <= ATOMS).to_numpy()
    few = few & x.isfinite().flatten(1).all(dim=1).numpy()  # ETKDG found a conformer
    texts = table["smiles"][few].tolist()
    codes, _, problems = encode_smiles(texts, vocabulary)
    assert not problems
    return texts, one_hot(codes, vocabulary).to(device()), x[few, :ATOMS].to(device())


smiles, graphs, x = small_molecules("train")
held_smiles, held_graphs, held_x = small_molecules("held_out")
print(f"{len(smiles)} molecules to learn from, {len(held_smiles)} held out")


# %%
def batches(*parts, size=64):
    return DataLoader(TensorDataset(*parts), batch_size=size, shuffle=True, drop_last=True)


def autoencoder_loss(model, batch):
    X, E, mask, x = batch
    return model.loss(Graphs(X, E, mask), x).total


def new_autoencoder():
    torch.manual_seed(0)
    return MoleculeAutoencoder(4, latent=4, width=32, sigma=0.1)


autoencoder = new_autoencoder()
how = {"learning_rate": 4e-3, "progress": False}
train(autoencoder, autoencoder_loss, batches(*graphs, x), steps=at_scale(cpu=200, gpu=2000), **how)
autoencoder.eval()
with torch.no_grad():
    clouds = autoencoder.encode(graphs, x)
    held_clouds = autoencoder.encode(held_graphs, held_x)
    back = [to_codes(autoencoder.decode(cloud)) for cloud in (clouds, held_clouds)]
for name, found, real in (("trained on", back[0], graphs), ("held out", back[1], held_graphs)):
    print(f"{name:>10}: {exact(found, to_codes(real)).float().mean():.3f} come back exactly")


# %%
def latent_loss(model, batch):
    return diffusion.loss(*batch)


def new_diffusion():
    torch.manual_seed(0)
    model = LatentDiffusion(autoencoder, width=48, depth=3).to(device())
    model.measure(clouds)
    return model


diffusion = new_diffusion()
latents = diffusion.to_latent(clouds)
records = train(
    diffusion.edm,
    latent_loss,
    batches(latents, clouds.mask),
    steps=at_scale(cpu=500, gpu=6000),
    **how,
)
edm = diffusion.edm.eval()
losses = [record.loss for record in records]
print(
    f"loss {np.mean(losses[:20]):.3f} in the first 20 steps, {np.mean(losses[-20:]):.3f} in the last"
)

# %% [markdown]
# ### Down and up
#
# Let the cloud of a molecule from the data dissolve, and walk from noise to a molecule, keeping what the walk passes.


# %%
def drawn_sizes(count, generator):
    """Numbers of atoms, drawn from the training data."""
    sizes = clouds.mask.sum(dim=1)
    return sizes[torch.randint(len(sizes), (count,), generator=generator, device=device())]


def read(codes):
    """The SMILES of each graph, without repair; None where it is no molecule in one piece."""
    texts = graphs_to_smiles(codes, vocabulary, mode="none")
    return [None if text is None or "." in text else text for text in texts]


seen = {}
walkers = sizes_to_mask(torch.full((24,), ATOMS, device=device()), ATOMS)
final = diffusion.sample(walkers, steps=STRIDES, generator=seeded(1), watch=seen.__setitem__)
whole = read(to_codes(final))
chosen = max(range(24), key=lambda i: (len(set(whole[i] or "")), len(whole[i] or "")))
print(
    f"{sum(text is not None for text in whole)} of 24 walks end at a molecule; walk {chosen} at {whole[chosen]}"
)

# %% tags=["figure"]
TIMES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
real = next(
    i for i, text in enumerate(smiles) if clouds.mask[i].all() and {"N", "=", "O"} <= set(text)
)
one, one_mask = latents[real : real + 1], clouds.mask[real : real + 1]


def turned(z, like):
    """Coordinates of a cloud, turned so that another shows its broad side."""
    axes = torch.linalg.svd(like.T @ like)[0]
    return z @ torch.cat([axes[:, :2], axes[:, 2:] * torch.linalg.det(axes)], dim=1)


def draw_latent(axes, z, mask, like, span=5.2):
    """A latent cloud, with the atoms and bonds that the decoder reads off it as it stands."""
    with torch.no_grad():
        atoms, bonds = to_codes(diffusion.decode(z, mask))
    symbols = [vocabulary.atoms[code] for code in atoms[0].tolist()]
    draw_cloud(
        axes, turned(z[0, :, :3], like), symbols, bonds[0], angle=(-25, 20), size=0.75, span=span
    )


def draw_walks():
    figure, rows = canvas(2, len(TIMES), 7.6, 3.5)
    figure.set_layout_engine("none")
    for (row, column), axes in np.ndenumerate(rows):
        axes.set_position([column / len(TIMES), 0.5 * (1 - row), 0.97 / len(TIMES), 0.36])
    noise, end = edm.noise(one_mask, seeded(4)), seen[0.0][chosen, :, :3]
    for axes, t in zip(rows[0], TIMES, strict=True):
        z = edm.diffuse(one, torch.tensor([t], device=device()), noise)
        draw_latent(axes, z, one_mask, one[0, :, :3])
        axes.set_title(f"time t = {t:g}" if t else "t = 0: cloud z_0")
    for axes, t in zip(rows[1], reversed(TIMES), strict=True):
        draw_latent(axes, seen[t][chosen : chosen + 1], walkers[:1], end)
        axes.set_title("t = 1: noise ε" if t == 1 else f"time t = {t:g}")
    style = {"size": 9, "weight": "bold"}
    figure.text(0.01, 0.955, "forward: cloud z_t = α_t z_0 + σ_t ε", **style)
    text = f"backward: {STRIDES} strides, each from a time t to a time s (T = {edm.steps})"
    figure.text(0.01, 0.455, text, **style)
    return figure


show(
    draw_walks(),
    alt="Above, the latent cloud of a molecule with the bonds that the decoder reads off it, which "
    "come apart as the time grows; below, a random cloud of seven points that settles to a molecule",
)

# %% [markdown]
# Atoms and bonds are what the decoder reads off each cloud as it stands. Above, all pictures share one draw of noise: the cloud can jump to any time at once. Below, each picture comes from the one before it, step by step. The unit of length is the deviation of all coordinates in the data; a latent cloud is no molecule in Å, though the encoder leaves much of the molecule's shape in it.

# %% [markdown]
# ## Formula
#
# **Signal and noise.** A cloud $z = [x \mid h]$ has coordinates $x$ and features $h$ on each of its $n$ points. At time $t$ its signal has the factor $\alpha_t$ and its noise the deviation $\sigma_t$. Their squares add up to 1, so clouds of deviation 1 keep deviation 1. The ratio $\alpha_t^2 / \sigma_t^2$ is the signal-to-noise ratio (SNR, 信噪比), and $\gamma_t$ is minus its logarithm:
#
# $$ \alpha_t^2 + \sigma_t^2 = 1, \qquad \gamma_t = \log \frac{\sigma_t^2}{\alpha_t^2}, \qquad \text{so}\quad \alpha_t^2 = \frac{1}{1 + e^{\gamma_t}}, \quad \sigma_t^2 = \frac{1}{1 + e^{-\gamma_t}} \tag{1} $$
#
# **Schedule.** How the signal falls from $t = 0$ to $t = 1$ is a choice. EDM's is a polynomial, with $p = 10^{-5}$ to stay away from 0 and 1:
#
# $$ \alpha_t^2 = (1 - 2 p)\,(1 - t^2)^2 + p, \qquad t = 0, \tfrac{1}{T}, \tfrac{2}{T}, \dots, 1 \tag{2} $$
#
# **Noise without a centre.** Draw standard normal numbers $\xi$, and take from each coordinate its mean over the points. What is left, with the features beside it, is the noise $\epsilon$. Its coordinates fill a space of $d$ dimensions, and look the same from all sides in it:
#
# $$ \epsilon = [\,\xi_x - \bar\xi_x \mid \xi_h\,], \qquad d = 3\,(n - 1) \tag{3} $$
#
# **Forward.**
#
# $$ z_t = \alpha_t\, z_0 + \sigma_t\, \epsilon \tag{4} $$
#
# **The guess is a movement.** The network takes the points to new places $x'$ and features $h'$. The guess $\hat\epsilon$ of the noise is how far each point was moved, without the mean, and the features as they come out:
#
# $$ \hat\epsilon = [\,(x' - x) - \overline{(x' - x)} \mid h'\,], \qquad (x', h') = \mathrm{EGNN}(z_t, t) \tag{5} $$
#
# **Loss.** At a random time, half the squared error of the guess, as a mean over the $3 + F$ numbers of $N$ points. At $t = 0$ the surprise $S$ stands in the place of the features' error: how improbable the true types and charges are, given their noisy values. Latent numbers have no $S$; their squared error stays. The divergence of the last cloud from pure noise comes on top, though there is nothing in it to learn:
#
# $$ L = \frac{\lVert \epsilon - \hat\epsilon \rVert^2}{2\, (3 + F)\, N} + \mathrm{KL} \;\;\text{for } t > 0, \qquad L = \frac{\lVert \epsilon_x - \hat\epsilon_x \rVert^2}{2\, (3 + F)\, N} + S + \mathrm{KL} \;\;\text{for } t = 0 \tag{6} $$
#
# **One step back**, from $t$ to an earlier $s$. With the part of the signal that survives from $s$ to $t$, $\alpha_{t \mid s} = \alpha_t / \alpha_s$, and the noise that comes in between, $\sigma_{t \mid s}^2 = \sigma_t^2 - \alpha_{t \mid s}^2\, \sigma_s^2$:
#
# $$ z_s = \underbrace{\frac{1}{\alpha_{t \mid s}}}_{\text{grow the signal}} \Big( z_t - \underbrace{\frac{\sigma_{t \mid s}^2}{\sigma_t}\, \hat\epsilon}_{\text{take noise away}} \Big) + \underbrace{\frac{\sigma_{t \mid s}\, \sigma_s}{\sigma_t}\, \epsilon}_{\text{add fresh noise}} \tag{7} $$
#
# **The bound.** An upper bound $U$ of $-\log p(z_0)$, in nats: the divergence of the last cloud from the noise that sampling starts from, one term for each step, and the surprise at the clean cloud given the one at time 0. That one is normal in each of the $d$ free coordinates, with deviation $\sigma_0 / \alpha_0$:
#
# $$ U = \mathrm{KL}\big(q(z_1 \mid z_0) \,\|\, \mathcal{N}\big) + \sum_{t} \frac{e^{\gamma_t - \gamma_s} - 1}{2}\, \lVert \epsilon - \hat\epsilon \rVert^2 + \frac{\lVert \epsilon_x - \hat\epsilon_x \rVert^2}{2} + \frac{d}{2} (\gamma_0 + \log 2\pi) + S \tag{8} $$
#
# with $s = t - 1/T$ in the sum. Latent numbers count as coordinates do in the last terms, and $d$ grows by $F n$.
#
# **Latent clouds.** Clouds of the autoencoder are brought to deviation 1: coordinates $x$ by one length $\ell$ for all three axes, each feature by its own mean and deviation. A new cloud goes the other way, and through the decoder:
#
# $$ z_0 = \Big[ \frac{x}{\ell} \;\Big|\; \frac{h - \mathrm{mean}}{\mathrm{deviation}} \Big], \qquad \text{graph} = \mathrm{decode}(x, h) \tag{9} $$
#
# ### The ledger
#
# | symbol | meaning | shape or unit | name in code | on the figure |
# | --- | --- | --- | --- | --- |
# | $z_t$ | cloud at time t, coordinates and features | (B, N, 3 + F) | `z` | cloud z_t |
# | $t$ | time, 0 clean, 1 noise | (B) | `t` | time t |
# | $s$ | an earlier time | (B) | `s` | time s |
# | $T$ | steps between 0 and 1 | whole number | `steps` | T |
# | $\alpha_t$ | factor of the signal | (B) | `alpha` | signal α_t |
# | $\sigma_t$ | deviation of the noise | (B) | `sigma` | noise σ_t |
# | $\gamma_t$ | minus the logarithm of the SNR | (B) | `gamma` | γ_t |
# | $\epsilon$ | noise without a centre | (B, N, 3 + F) | `noise` | noise ε |
# | $\hat\epsilon$ | guess of the noise | (B, N, 3 + F) | `guess` | guess ε̂ |
# | $n$ | points of a cloud | whole number | `points` | n points |
# | $d$ | free coordinates of a centred cloud | whole number | `free` | d = 3(n − 1) |
# | $L$ | training loss | (B) | `loss` | loss L |
# | $U$ | bound of −log p | (B), nats | `bound` | bound U |
#
# Letters of shapes: $B$ clouds, $N$ points that there is room for, $F$ features of a point.
#
# > **Where the code leaves the paper.** That SyCo trains EDM on the clouds of its autoencoder, in a second stage, and decodes all atoms and bonds at once is said in its abstract. Its authors have released no code, so what follows is ours: latent clouds brought to deviation 1 by equation 9, and every size. EDM has a release (MIT licence), and this module gives its numbers: schedules, guesses, losses, bound, step and samples are tested against them. From EDM's paper both differ in two places: the mean of equation 6 is over the padded $N$ points and not over the $n$ real ones, and the schedule of equation 2 is read at $t\,T / (T + 1)$, so that the last time is not quite its end. From the release ours differs in one: the clean cloud is the guess at time 0 as it is, where the release adds a last noise of deviation $\sigma_0 / \alpha_0$.

# %% [markdown]
# ## Code
#
# ### How much is left
#
# Equation 2 as it stands, for $T = 4$:

# %%
T, p = 4, 1e-5
[round((1 - 2 * p) * (1 - (i / T) ** 2) ** 2 + p, 5) for i in range(T + 1)]

# %% [markdown]
# The release reads the polynomial a little earlier, at $t\,T / (T + 1)$, and lets no step keep less than a thousandth of $\alpha_t^2$. With $T = 1000$ both hardly matter; with few steps they do.


# %% tags=["promote"]
def polynomial_signal(
    steps: int, power: float = 2.0, precision: float = 1e-5
) -> Float[Tensor, "T1"]:
    """α² at the times 0, 1, … T: how much of the squared signal is left (equation 2).

    steps      T
    precision  p, what is missing at time 0 and left at T
    returns    (T + 1,) float64, falling

    Raises ValueError for steps below 1, and for a precision that is not between 0 and 0.5.
    """
    count = whole_number("steps", steps, least=1) + 1
    if not 0 < precision < 0.5:
        raise ValueError(f"precision is {precision}; expected a number above 0 and below 0.5")
    # As released, the last time is not quite the end of the polynomial.
    times = torch.linspace(0, count, count, dtype=torch.float64)
    left = (1 - (times / count) ** power) ** 2
    ratios = torch.cat([left[:1], (left[1:] / left[:-1]).clamp(min=0.001)])
    return (1 - 2 * precision) * ratios.cumprod(dim=0) + precision


# %%
exact_times = torch.arange(1001, dtype=torch.float64) / 1000
as_written = (1 - 2e-5) * (1 - exact_times**2) ** 2 + 1e-5
print("T = 4:", [round(each, 5) for each in polynomial_signal(4).tolist()])
print(f"T = 1000: at most {(polynomial_signal(1000) - as_written).abs().max():.1e} from equation 2")

# %% [markdown]
# The other schedule of the release is a quarter of a cosine, of Nichol and Dhariwal (2021).


# %% tags=["promote"]
def cosine_signal(steps: int, offset: float = 0.008) -> Float[Tensor, "T1"]:
    """α² at the times 0, 1, … T as a quarter of a cosine (Nichol and Dhariwal 2021); float64.

    Raises ValueError for steps below 1.
    """
    count = whole_number("steps", steps, least=1) + 2
    times = torch.linspace(0, count, count, dtype=torch.float64) / count
    left = torch.cos((times + offset) / (1 + offset) * math.pi / 2) ** 2
    return (left[1:] / left[:-1]).clamp(min=0.001).cumprod(dim=0)


# %% [markdown]
# What the rest of the lesson reads is $\gamma_t$ alone: equation 1 gives $\alpha_t$ and $\sigma_t$ back from it. Naively, for one value of $\alpha_t^2$:

# %%
left = 0.2
gamma = math.log((1 - left) / left)
print(
    f"γ = {gamma:.4f}; back: α² = {1 / (1 + math.exp(gamma)):.4f}, σ² = {1 / (1 + math.exp(-gamma)):.4f}"
)


# %% tags=["promote", "exercise"]
def gamma_table(signal: Float[Tensor, "T1"]) -> Float[Tensor, "T1"]:
    """γ = log(σ² / α²) at each time, from α² there, with σ² = 1 − α² (equation 1); float32."""
    return ((1 - signal).log() - signal.log()).float()


# %% tags=["check"]
some_signal = torch.tensor([0.99, 0.5, 0.2, 1e-5], dtype=torch.float64)
some_gamma = gamma_table(some_signal)
assert some_gamma.dtype == torch.float32, "the network computes in float32"
# float32 holds seven digits; the logarithm of 1e5 is 11.5.
assert torch.allclose((-some_gamma.double()).sigmoid(), some_signal, rtol=1e-5), "α² comes back"
assert some_gamma[1] == 0 and some_gamma.diff().min() > 0, "0 where both are alike; more later"


# %% tags=["figure"]
def draw_schedules():
    figure, axes = canvas(1, 2, 7.2, 2.5)
    times = np.linspace(0, 1, 1001)
    for name, signal, line in (
        ("polynomial", polynomial_signal(1000), "-"),
        ("cosine", cosine_signal(1000), "--"),
    ):
        axes[0].plot(
            times, signal.sqrt(), line, color=COLOURS["first"], label=f"signal α_t, {name}"
        )
        axes[0].plot(
            times, (1 - signal).sqrt(), line, color=COLOURS["second"], label=f"noise σ_t, {name}"
        )
        axes[1].plot(times, gamma_table(signal), line, color=COLOURS["flow"], label=name)
    axes[0].set(xlabel="time t", title="what is left, and what has come", ylim=(0, 1.75))
    axes[0].legend(loc="upper center", ncols=2, fontsize=7)
    axes[1].axhline(0, color=COLOURS["muted"], lw=0.8)
    axes[1].set(
        xlabel="time t", ylabel="γ_t = −log SNR", title="one number for both", ylim=(-15, 15)
    )
    axes[1].text(0.02, 0.6, "as much noise as signal", size=7, color="#606060")
    axes[1].legend(loc="lower right")
    return figure


show(
    draw_schedules(),
    alt="Left, the signal falls from 1 to 0 and the noise rises from 0 to 1 over time, for the "
    "polynomial and the cosine; right, gamma rises from about minus 11 to 11",
)

# %% [markdown]
# The two schedules differ little in the middle. At the ends they do: the polynomial begins and ends at $\gamma_t = \mp 11.5$, which is its $p$ of $10^{-5}$.
#
# ### Noise without a centre
#
# A network that does not care where a cloud lies cannot say how likely a place is. Nor can a probability be the same at all places of an endless space: it would not add up to 1. The way out is to keep clouds centred, all of them and at all times: data, noise, and every step between. Naively, one cloud at a time:


# %%
def noise_loop(sizes, features, generator):
    """Noise of each cloud, as (n, 3 + F): centred coordinates and features."""
    for n in sizes:
        xi = torch.randn(n, 3 + features, generator=generator)
        mean = xi[:, :3].sum(dim=0) / n
        yield torch.cat([xi[:, :3] - mean, xi[:, 3:]], dim=1)


two = list(noise_loop([4, 2], 1, torch.Generator().manual_seed(0)))
print([[round(value, 3) for value in row] for row in two[1].tolist()])


# %% [markdown]
# Of a cloud with two points the second coordinates are minus the first: three numbers are free, and six are written. For a batch with padding `center` of [lesson 2](2_lifting.ipynb) takes the mean over the real points only.


# %% tags=["promote", "exercise"]
def cloud_noise(
    mask: Bool[Tensor, "B N"], features: int, generator: torch.Generator | None = None
) -> Float[Tensor, "B N V"]:
    """Standard normal noise [x | h], that of the coordinates without a centre (equation 3).

    mask      which points each cloud has; noise is 0 where there is none
    features  F, numbers of each point beside its coordinates
    """
    shape = (*mask.shape, 3 + features)
    noise = torch.randn(shape, generator=generator, device=mask.device) * mask[..., None]
    return torch.cat([center(noise[..., :3], mask), noise[..., 3:]], dim=-1)


# %% tags=["check"]
three_masks = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
many = cloud_noise(three_masks.repeat(4000, 1), 2, torch.Generator().manual_seed(0))
# Sums of four float32 numbers of about 1.
assert many[..., :3].sum(dim=1).abs().max() < 1e-5, "the coordinates have their centre at 0"
assert (many[~three_masks.repeat(4000, 1)] == 0).all(), "no noise where there is no point"
assert (many[2::3, 0, :3] == 0).all(), "a single point stays at the centre"
features_of_four = many[::3, :, 3:]
# 32,000 normal numbers: their mean has a standard error of 0.006, their variance of 0.008.
assert features_of_four.mean().abs() < 0.03, "features keep their mean of 0"
assert (features_of_four.var() - 1).abs() < 0.04, "features keep their variance"
# A coordinate without a centre has the variance 1 − 1/n; here the standard error is 0.005.
assert (many[::3, :, :3].var() - 0.75).abs() < 0.03, "coordinates of four points lose a quarter"

# %% [markdown]
# How many dimensions has the noise? Draw a hundred thousand clouds of four points, look at their coordinates as 12 numbers each, and take the covariance of these. Its eigenvalues are the variances in twelve perpendicular directions.

# %%
four = torch.ones(100_000, 4, dtype=torch.bool)
flat = cloud_noise(four, 1, torch.Generator().manual_seed(0))[..., :3].flatten(1)
variances = torch.linalg.eigvalsh(flat.T @ flat / len(flat)).flip(0)
print([round(each, 3) for each in variances.tolist()])

# %% [markdown]
# Nine directions of variance 1, and three of variance 0: the shifts along the three axes. So $d = 3\,(n - 1) = 9$ for $n = 4$. In its nine directions the noise is a standard normal one, so its density depends on its length and on nothing else, and a rotation of space changes no length. The squared length has the mean $d$:

# %%
lengths = {
    n: torch.cat(list(noise_loop([n] * 2000, 0, seeded(n)))).square().sum().item() / 2000
    for n in (1, 2, 3, 5, 7, 9)
}
print({n: round(value, 2) for n, value in lengths.items()})


# %% tags=["figure"]
def draw_dimensions():
    figure, axes = canvas(1, 2, 7.2, 2.3)
    axes[0].bar(range(1, 13), variances, color=COLOURS["first"], width=0.7)
    axes[0].set(xlabel="direction", ylabel="variance", title="centred noise on n = 4 points")
    axes[0].set_xticks(range(1, 13))
    n = np.array([1, 9])
    axes[1].plot(n, 3 * n, ":", color=COLOURS["muted"], label="3n, with a centre")
    axes[1].plot(n, 3 * (n - 1), color=COLOURS["second"], label="d = 3(n − 1)")
    axes[1].plot(lengths.keys(), lengths.values(), "o", color=COLOURS["first"], label="measured")
    axes[1].set(xlabel="n points", ylabel="mean squared length", title="what is left to move")
    axes[1].legend(loc="upper left")
    return figure


show(
    draw_dimensions(),
    alt="Left, twelve bars: nine of height 1 and three of height 0; right, the mean squared length "
    "of the noise lies on the line 3 (n - 1)",
)

# %% [markdown]
# ### The forward process
#
# The first class knows everything that is not learned: what a clean cloud is made of, the schedule, and equation 4. The features $h$ may be of three kinds. EDM's own models have one-hot types and a charge, and divide them by 4 and by 10; SyCo's clouds have latent numbers. We come back to the first two [below](#Types-and-charges).


# %% tags=["promote"]
class ForwardProcess(nn.Module):
    """Clouds z = [x | h], and how they turn to noise (equations 1 to 4).

    The features h are, in this order, one-hot atom types, whole numbers such as charges, and
    latent numbers; of each kind there may be none. Time t runs from 0, clean, to 1, in T steps.

    classes, integers, latent  how many features of each kind
    steps                      T
    schedule                   "polynomial" or "cosine"
    precision                  of the polynomial schedule
    scales                     what coordinates, one-hot types and whole numbers are divided by

    Raises ValueError for no features at all, for numbers below 0 and for another schedule.
    """

    def __init__(
        self,
        classes: int = 0,
        integers: int = 0,
        latent: int = 0,
        *,
        steps: int = 1000,
        schedule: str = "polynomial",
        precision: float = 1e-5,
        scales: tuple[float, float, float] = (1.0, 4.0, 10.0),
    ):
        super().__init__()
        kinds = {"classes": classes, "integers": integers, "latent": latent}
        self.kinds = tuple(whole_number(*kind, least=0) for kind in kinds.items())
        self.features = sum(self.kinds)
        if self.features < 1:
            raise ValueError("classes, integers and latent are 0; expected one feature or more")
        if schedule not in ("polynomial", "cosine"):
            raise ValueError(f"schedule is {schedule!r}; expected 'polynomial' or 'cosine'")
        self.steps, self.scales = whole_number("steps", steps, least=1), scales
        signal = cosine_signal(steps)
        if schedule == "polynomial":
            signal = polynomial_signal(steps, precision=precision)
        self.register_buffer("table", gamma_table(signal), persistent=False)

    def gamma(self, t: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """γ at times from 0 to 1, read off the table at the nearest step (equation 1).

        Raises ValueError for a time outside.
        """
        step = (t * self.steps).round()
        if not ((step >= 0) & (step <= self.steps)).all():
            low, high = t.min().item(), t.max().item()
            raise ValueError(f"times go from {low:g} to {high:g}; expected 0, clean, to 1, noise")
        return self.table[step.long()]

    def signal(self, t: Float[Tensor, "*B"]) -> tuple[Float[Tensor, "*B"], Float[Tensor, "*B"]]:
        """α and σ at times from 0 to 1 (equation 1)."""
        gamma = self.gamma(t)
        return (-gamma).sigmoid().sqrt(), gamma.sigmoid().sqrt()

    def noise(
        self, mask: Bool[Tensor, "B N"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "B N V"]:
        """Noise of the shape of a cloud (equation 3)."""
        return cloud_noise(mask, self.features, generator)

    def diffuse(
        self, clean: Float[Tensor, "B N V"], t: Float[Tensor, "B"], noise: Float[Tensor, "B N V"]
    ) -> Float[Tensor, "B N V"]:
        """z_t = α z_0 + σ ε (equation 4)."""
        alpha, sigma = (part[:, None, None] for part in self.signal(t))
        return alpha * clean + sigma * noise

    def normalize(
        self, x: Float[Tensor, "B N 3"], h: Float[Tensor, "B N F"]
    ) -> Float[Tensor, "B N V"]:
        """The clean cloud z_0 = [x | h], every kind over its scale."""
        return torch.cat([x / self.scales[0], h / self.feature_scales()], dim=-1)

    def denormalize(
        self, z: Float[Tensor, "B N V"], mask: Bool[Tensor, "B N"]
    ) -> tuple[Float[Tensor, "B N 3"], Float[Tensor, "B N F"]]:
        """x and h of a clean cloud: the largest type is it, and whole numbers are rounded."""
        x, h = z[..., :3] * self.scales[0], z[..., 3:] * self.feature_scales()
        types, whole, latent = h.split(self.kinds, dim=-1)
        if self.kinds[0]:
            types = nn.functional.one_hot(types.argmax(dim=-1), self.kinds[0]).to(z.dtype)
        h = torch.cat([types, whole.round(), latent], dim=-1)
        return x * mask[..., None], h * mask[..., None]

    def feature_scales(self) -> Float[Tensor, "F"]:
        """What each feature is divided by: types and whole numbers have a scale, latents have 1."""
        pairs = zip((*self.scales[1:], 1.0), self.kinds, strict=True)
        return self.table.new_tensor([scale for scale, count in pairs for _ in range(count)])


# %%
forward = ForwardProcess(latent=4, steps=100)
generator = torch.Generator().manual_seed(0)
some = cloud_noise(torch.ones(500, 7, dtype=torch.bool), 4, generator)
for t in (0.0, 0.5, 1.0):
    z = forward.diffuse(
        some, torch.full((500,), t), forward.noise(torch.ones(500, 7, dtype=torch.bool), generator)
    )
    print(
        f"t = {t}: α = {forward.signal(torch.tensor(t))[0]:.4f}, deviation of h {z[..., 3:].std():.3f}, of x {z[..., :3].std():.3f}"
    )

# %% [markdown]
# The deviation stays where it was at all times, which keeps the network's input in one range. That of $x$ is $\sqrt{1 - 1/n}$, 0.926 for seven points.
#
# ### One step back
#
# Equation 7 in its pieces, for a single number, with plain $\alpha_t$ and $\sigma_t$:


# %%
def step_by_hand(z, guess, fresh, s, t):
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (
        map(float, forward.signal(torch.tensor(each))) for each in (s, t)
    )
    kept = alpha_t / alpha_s
    added = math.sqrt(sigma_t**2 - kept**2 * sigma_s**2)
    mean = (z - added**2 / sigma_t * guess) / kept
    return mean, mean + added * sigma_s / sigma_t * fresh


print(step_by_hand(z=0.7, guess=0.5, fresh=-1.0, s=0.49, t=0.5))

# %% [markdown]
# Where do the factors come from? If the clean value is $z_0$, then $z_s$ given $z_t$ is normal, by Bayes's rule for two normal distributions, with the mean $\alpha_{t \mid s} \sigma_s^2 / \sigma_t^2 \cdot z_t + \alpha_s \sigma_{t \mid s}^2 / \sigma_t^2 \cdot z_0$. The network does not know $z_0$, but it has a guess of the noise, and equation 4 turns one into the other: $z_0 = (z_t - \sigma_t \hat\epsilon) / \alpha_t$. The two forms agree:


# %%
def posterior_mean(z, clean, s, t):
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (
        map(float, forward.signal(torch.tensor(each))) for each in (s, t)
    )
    kept = alpha_t / alpha_s
    added = sigma_t**2 - kept**2 * sigma_s**2
    return (kept * sigma_s**2 * z + alpha_s * added * clean) / sigma_t**2


alpha, sigma = map(float, forward.signal(torch.tensor(0.5)))
clean_guess = (0.7 - sigma * 0.5) / alpha
print(posterior_mean(0.7, clean_guess, 0.49, 0.5), "=", step_by_hand(0.7, 0.5, 0.0, 0.49, 0.5)[0])

# %% [markdown]
# The promoted version reads $\gamma_s$ and $\gamma_t$ alone, as the release does, and goes by logarithms. For that it needs $\sigma_{t \mid s}^2$ in another form, $1 - \alpha_t^2 / \alpha_s^2$:

# %%
(alpha_s, sigma_s), (alpha_t, sigma_t) = (
    forward.signal(torch.tensor(each)) for each in (0.49, 0.5)
)
print(
    f"{sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2:.6f} = {1 - (alpha_t / alpha_s) ** 2:.6f}"
)


# %% tags=["promote", "exercise"]
def reverse_step(
    z: Float[Tensor, "B N V"],
    guess: Float[Tensor, "B N V"],
    gamma_s: Float[Tensor, "B"],
    gamma_t: Float[Tensor, "B"],
) -> tuple[Float[Tensor, "B N V"], Float[Tensor, "B"]]:
    """Mean and deviation of z_s, given z_t and a guess of the noise in it (equation 7).

    gamma_s, gamma_t  γ at the earlier and the later time of each cloud
    """
    log_s, log_t = nn.functional.logsigmoid(-gamma_s), nn.functional.logsigmoid(-gamma_t)
    kept = (0.5 * (log_t - log_s)).exp()  # α_{t|s}
    added = -torch.expm1(log_t - log_s)  # σ²_{t|s}
    sigma_s, sigma_t = gamma_s.sigmoid().sqrt(), gamma_t.sigmoid().sqrt()
    noise = (added / sigma_t)[:, None, None] * guess
    return (z - noise) / kept[:, None, None], added.sqrt() * sigma_s / sigma_t


# %% tags=["check"]
gammas_of_two = torch.tensor([[-4.0, 1.0], [-3.9, 3.0]])
noisy, its_guess = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0))
mean, deviation = reverse_step(noisy, its_guess, *gammas_of_two)
for b, (gamma_s, gamma_t) in enumerate(gammas_of_two.T.double()):
    a_s, a_t, v_s, v_t = (
        (-gamma_s).sigmoid(),
        (-gamma_t).sigmoid(),
        gamma_s.sigmoid(),
        gamma_t.sigmoid(),
    )
    added = v_t - a_t / a_s * v_s
    first = (noisy[b] - added / v_t.sqrt() * its_guess[b].double()) / (a_t / a_s).sqrt()
    # float32 against float64.
    assert torch.allclose(mean[b], first.float(), atol=1e-5), "the mean of equation 7"
    assert torch.allclose(deviation[b].double(), (added * v_s / v_t).sqrt(), atol=1e-6), "the noise"
assert deviation.shape == (2,), "one deviation for each cloud"

# %% [markdown]
# ### The network and the walk
#
# The second class adds the network. It reads a cloud as it is, with the time as one more feature of each point, and answers with its guess of the noise: for coordinates how far it moves the points, for features what it makes of them (equation 5).
#
# `sample` is **ancestral sampling** (祖先采样): start from noise at $t = 1$, take a step of equation 7 to the next earlier time, and so on to 0. Where the signal is nearly whole, the last noise is taken off at once: $(z_0 - \sigma_0 \hat\epsilon) / \alpha_0$. With `steps` below $T$ the walk takes strides over several times; equation 7 holds for any $s$ before $t$. A notebook shows a bar with `progress=True`.


# %% tags=["promote"]
class ReverseProcess(ForwardProcess):
    """A network that guesses the noise in a cloud, and the walk back (equations 5 and 7).

    classes, integers, latent            how many features of each kind
    steps, schedule, precision, scales   see `ForwardProcess`
    width, depth, **egnn                 of the network, see `EGNN`
    context                              features of each point that are given, such as an
                                         asked property
    """

    def __init__(
        self,
        classes: int = 0,
        integers: int = 0,
        latent: int = 0,
        *,
        width: int = 64,
        depth: int = 4,
        steps: int = 1000,
        schedule: str = "polynomial",
        precision: float = 1e-5,
        context: int = 0,
        scales: tuple[float, float, float] = (1.0, 4.0, 10.0),
        **egnn: Any,
    ):
        forward = {"schedule": schedule, "precision": precision, "scales": scales}
        super().__init__(classes, integers, latent, steps=steps, **forward)
        self.egnn = EGNN(self.features + 1 + context, width, depth, **egnn)

    def predict_noise(
        self,
        z: Float[Tensor, "B N V"],
        t: Float[Tensor, "B"],
        mask: Bool[Tensor, "B N"],
        context: Float[Tensor, "B N C"] | None = None,
    ) -> Float[Tensor, "B N V"]:
        """The network's guess of ε in z_t (equation 5): how far it moves the points, and features.

        A network that has not learned can overflow; as released, its whole answer for the
        coordinates is then 0.
        """
        real, x = mask[..., None], z[..., :3] * mask[..., None]
        parts = [z[..., 3:], t[:, None, None].expand(*mask.shape, 1)]
        h = torch.cat(parts if context is None else [*parts, context], dim=-1) * real
        h, moved = self.egnn(h, x, mask)
        velocity = moved - x
        velocity = torch.zeros_like(velocity) if velocity.isnan().any() else velocity
        return torch.cat([center(velocity, mask), h[..., : self.features]], dim=-1)

    def step(
        self,
        z: Float[Tensor, "B N V"],
        s: Float[Tensor, "B"],
        t: Float[Tensor, "B"],
        noise: Float[Tensor, "B N V"],
        mask: Bool[Tensor, "B N"],
        context: Float[Tensor, "B N C"] | None = None,
        change: Callable[..., Float[Tensor, "B N V"]] | None = None,
    ) -> Float[Tensor, "B N V"]:
        """One draw of z_s given z_t (equation 7), centred again against rounding.

        change  called with z, t, σ and mask, adds to the guessed noise: how guidance comes in

        Raises ValueError where s is not before t, and for times outside of 0 to 1.
        """
        if not (s < t).all():
            raise ValueError(
                f"s is {s.tolist()} and t is {t.tolist()}; expected each s before its t"
            )
        guess = self.predict_noise(z, t, mask, context)
        if change is not None:
            guess = guess + change(z, t, self.signal(t)[1], mask)
        mean, deviation = reverse_step(z, guess, self.gamma(s), self.gamma(t))
        z = mean + deviation[:, None, None] * noise
        return torch.cat([center(z[..., :3], mask), z[..., 3:]], dim=-1)

    def clean(
        self,
        z: Float[Tensor, "B N V"],
        mask: Bool[Tensor, "B N"],
        context: Float[Tensor, "B N C"] | None = None,
    ) -> Float[Tensor, "B N V"]:
        """The clean cloud that z at time 0 points at: (z − σ ε̂) / α."""
        zero = torch.zeros(len(z), device=z.device)
        alpha, sigma = (part[:, None, None] for part in self.signal(zero))
        return (z - sigma * self.predict_noise(z, zero, mask, context)) / alpha

    @torch.no_grad()
    def sample(
        self,
        mask: Bool[Tensor, "B N"],
        *,
        steps: int | None = None,
        context: Float[Tensor, "B N C"] | None = None,
        change: Callable[..., Float[Tensor, "B N V"]] | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
        watch: Callable[[float, Tensor], None] | None = None,
    ) -> Float[Tensor, "B N V"]:
        """Clouds from noise: all strides from t = 1 to 0, then the clean cloud as guessed there.

        mask    which points each cloud has
        steps   fewer strides than T, each over several times; all when left out
        change  see `step`
        watch   is called with t and the cloud, at 1 and after each stride

        Raises ValueError for steps that are not from 1 to T.
        """
        steps = self.steps if steps is None else steps
        strides = whole_number("steps", steps, least=1, most=self.steps)
        watch = watch or (lambda t, z: None)
        z = self.noise(mask, generator)
        with progress_bar(strides, 0, unit="step", shown=progress) as bar:
            watch(1.0, z)
            for k in range(strides, 0, -1):
                s, t = (torch.full_like(z[:, 0, 0], i / strides) for i in (k - 1, k))
                z = self.step(z, s, t, self.noise(mask, generator), mask, context, change)
                watch((k - 1) / strides, z)
                bar.update()
        return self.clean(z, mask, context)


# %% [markdown]
# Does the whole walk turn along? A walk is a function of its draws of noise. Turn the start and every later draw by the same rotation, and the sample should be the same one, turned. In the cell below the class gets its noise from a list.


# %%
class Scripted(ReverseProcess):
    """A walk whose draws of noise are given."""

    def noise(self, mask, generator=None):
        return next(self.script)


def walk(script, mask):
    scripted.script = iter(script)
    return scripted.sample(mask)


torch.manual_seed(0)
scripted = Scripted(latent=4, width=48, depth=3, steps=20).to(device())
scripted.egnn.load_state_dict(edm.egnn.state_dict())
mask = sizes_to_mask(torch.tensor([7, 5, 1], device=device()), ATOMS)
script = [cloud_noise(mask, 4, seeded(k)) for k in range(21)]


# %%
turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))[0].to(
    device()
)
order = torch.tensor([2, 0, 1, 3, 4, 5, 6], device=device())


def turn_cloud(z, by):
    return torch.cat([z[..., :3] @ by, z[..., 3:]], dim=-1)


straight = walk(script, mask)
changed = {
    "turned": (
        walk([turn_cloud(noise, turn) for noise in script], mask),
        turn_cloud(straight, turn),
    ),
    "mirrored": (
        walk([turn_cloud(noise, -turn) for noise in script], mask),
        turn_cloud(straight, -turn),
    ),
    "renumbered": (walk([noise[:, order] for noise in script], mask[:, order]), straight[:, order]),
}
for name, (found, expected) in changed.items():
    gap = (found - expected).abs().max() / straight.abs().max()
    print(
        f"{name:>10}: off by {gap:.1e} of the largest number, which is {straight.abs().max():.1f}"
    )

# %% [markdown]
# Rounding in float32 is all that is left after 21 passes of the network. Start and fresh noise are as likely turned as they were, so a sample is as likely turned as it was. That is what the noise without a centre and the equivariant network buy together.
#
# ### The loss
#
# Half of the squared error of the guess, at a random time. Two more pieces belong to it. The first is the divergence of the cloud at $t = 1$ from pure noise. For a normal distribution of mean $m$ and deviation $\sigma$, from one of mean 0 and deviation 1, it is $\tfrac{1}{2} (m^2 + \sigma^2 - 1) - \log \sigma$ in each dimension; there are $d + F n$ dimensions.


# %% tags=["promote"]
def prior_divergence(
    mean: Float[Tensor, "B N V"], sigma: Float[Tensor, "B"], mask: Bool[Tensor, "B N"]
) -> Float[Tensor, "B"]:
    """KL of centred normal clouds from the noise that sampling starts from (equation 8), in nats.

    mean, sigma  of the clouds at t = 1, which are α z_0 and σ
    """
    points = mask.sum(dim=1)
    entries = 3 * (points - 1) + (mean.shape[-1] - 3) * points
    moved = mean.square().sum(dim=(1, 2))
    return 0.5 * (moved + entries * (sigma.square() - 1)) - entries * sigma.log()


# %%
alpha, sigma = edm.signal(torch.ones(len(latents), device=device()))
start_gap = prior_divergence(alpha[:, None, None] * latents, sigma, clouds.mask)
print(f"divergence at t = 1: {start_gap.mean():.1e} nats, α there {alpha[0]:.4f}")

# %% [markdown]
# Hardly anything: at $t = 1$ a cloud has forgotten where it came from, and it is right to start from noise.
#
# ### Types and charges
#
# The second piece is for clouds with types and charges. EDM has no autoencoder: it makes atoms directly, with a one-hot type over 4 and a charge (the atomic number) over 10 beside the coordinates. Small numbers drown in noise sooner. So on the way back the places of the atoms settle first, and the types follow. How much sooner? Below are the molecules of our data with their coordinates in Å, in EDM's form. The share of atoms whose largest noisy entry is their type falls with the time, for a scale of 4 and for one of 1. Beside it is what the decoder makes of noisy latent clouds.

# %%
NUMBERS = torch.tensor([[6.0], [7.0], [8.0], [9.0]], device=device())  # of C, N, O, F
with_types = torch.cat([graphs.X, graphs.X @ NUMBERS], dim=-1)


@torch.no_grad()
def types_at(t, scale):
    """The share of right types among noisy ones, at time t."""
    process = ForwardProcess(4, 1, steps=100, scales=(1.0, scale, 10.0)).to(device())
    time = torch.full((len(x),), t, device=device())
    z = process.diffuse(
        process.normalize(x, with_types), time, process.noise(graphs.mask, seeded(0))
    )
    found = process.denormalize(z, graphs.mask)[1]
    return (found[..., :4] == graphs.X).all(dim=-1)[graphs.mask].float().mean().item()


@torch.no_grad()
def decoded_at(t):
    """The shares of right types, and of molecules that are right as a whole, at time t."""
    z = edm.diffuse(
        latents, torch.full((len(x),), t, device=device()), edm.noise(clouds.mask, seeded(0))
    )
    found, real = to_codes(diffusion.decode(z, clouds.mask)), to_codes(graphs)
    types = (found.atoms == real.atoms)[clouds.mask].float().mean().item()
    return types, exact(found, real).float().mean().item()


grid = [i / 20 for i in range(21)]
drowned = {
    "one-hot / 4": [types_at(t, 4.0) for t in grid],
    "one-hot / 1": [types_at(t, 1.0) for t in grid],
    "latent, decoded": [decoded_at(t)[0] for t in grid],
}
whole_molecules = [decoded_at(t)[1] for t in grid]


# %% tags=["figure"]
def draw_drowning():
    figure, axes = canvas(1, 2, 7.2, 2.4, sharey=True)
    for (name, shares), ink in zip(drowned.items(), ("second", "first", "query"), strict=True):
        axes[0].plot(grid, shares, color=COLOURS[ink], label=name)
    axes[0].set(xlabel="time t", ylabel="share", title="types that are still right", ylim=(0, 1.03))
    axes[0].legend(loc="lower left", fontsize=7)
    axes[1].plot(grid, whole_molecules, color=COLOURS["query"])
    axes[1].set(xlabel="time t", title="whole molecules that the decoder reads")
    return figure


show(
    draw_drowning(),
    alt="Left, the share of right atom types against time: one-hot over 4 falls first, one-hot over "
    "1 later, decoded latents between or later; right, whole molecules are lost early",
)

# %%
for name, shares in drowned.items():
    print(f"{name:>15}: {shares[5]:.2f} at t = {grid[5]}, {shares[10]:.2f} at t = {grid[10]}")
print(
    f"whole molecules: {whole_molecules[1]:.2f} at t = {grid[1]}, {whole_molecules[3]:.2f} at t = {grid[3]}"
)

# %% [markdown]
# Types over 4 drown first: EDM's network decides late what an atom is, when its place is nearly known. Latent clouds keep types longer, since the autoencoder was trained to be read through noise. Bonds go first: a whole molecule needs every one of them to be right.
#
# At $t = 0$ the squared error is the wrong question for a type or a charge: they are not near something, they are right or wrong. The surprise $S$ asks how probable the true value is after rounding. A noisy charge is normal around the value at hand, with $\sigma_0$ times its scale. The chance that it rounds to a whole number is the area within half of that number:


# %% tags=["promote"]
def _rounding_chance(off: Tensor, sigma: Tensor) -> Tensor:
    """The chance that normal noise of deviation σ around `off` is within half of 0."""
    upper, lower = (torch.special.ndtr((off + half) / sigma) for half in (0.5, -0.5))
    return upper - lower + 1e-10


# %%
for value in (6.0, 6.3, 6.5):
    chances = [_rounding_chance(torch.tensor(value - k), torch.tensor(0.2)).item() for k in (6, 7)]
    print(
        f"at hand {value}, σ = 0.2: the charge 6 has {chances[0]:.3f}, the charge 7 has {chances[1]:.3f}"
    )

# %% [markdown]
# For one-hot types each entry is asked how near it is to 1, and the chances of all types are brought to a sum of 1. The bound also wants the surprise at coordinates and latent numbers, which are normal: half of the squared error, and constants that we add later.


# %% tags=["promote"]
def clean_surprise(
    process: ForwardProcess,
    clean: Float[Tensor, "B N V"],
    z: Float[Tensor, "B N V"],
    error: Float[Tensor, "B N V"],
    mask: Bool[Tensor, "B N"],
) -> Float[Tensor, "B"]:
    """−log p of clean clouds given z at time 0, without constants (equations 6 and 8), in nats.

    error  (ε − ε̂)² of each number; those of types and whole numbers are not read
    """
    x, _, _, latent = error.split([3, *process.kinds], dim=-1)
    total = 0.5 * (x.sum(dim=(1, 2)) + latent.sum(dim=(1, 2)))
    sigma = process.signal(torch.zeros_like(total))[1][:, None, None]
    scaled = (part[..., 3:] * process.feature_scales() for part in (clean, z))
    true, near = (part.split(process.kinds, dim=-1) for part in scaled)
    if process.kinds[0]:
        chance = _rounding_chance(near[0] - 1, sigma * process.scales[1]).log()
        chance = chance - chance.logsumexp(dim=-1, keepdim=True)
        total = total - (chance * true[0]).sum(dim=(1, 2))
    chance = _rounding_chance(true[1].round() - near[1], sigma * process.scales[2]).log()
    return total - (chance * mask[..., None]).sum(dim=(1, 2))


# %%
process = ForwardProcess(4, 1, steps=100).to(device())
clean = process.normalize(x, with_types)
for t in (0.0, 0.1, 0.3):
    z = process.diffuse(
        clean, torch.full((len(x),), t, device=device()), process.noise(graphs.mask, seeded(0))
    )
    surprise = clean_surprise(process, clean, z, torch.zeros_like(z), graphs.mask)
    print(f"values from t = {t}, read as if from t = 0: S = {surprise.mean():.2e} nats a molecule")

# %% [markdown]
# At $t = 0$ the noise is far too small to change a type, and $S$ is 0. Values from later times are not to be rounded yet.
#
# ### EDM
#
# The last class adds the loss of equation 6, the bound of equation 8, and a door for the release's checkpoints. To estimate the sum in the bound one random time is enough: its term, $T$ times, has the sum as its expected value.


# %% tags=["promote"]
class EDM(ReverseProcess):
    """Equivariant diffusion on clouds z = [x | h] (equations 1 to 8; Hoogeboom et al. 2022).

    Arguments are those of `ReverseProcess`: classes, integers and latent numbers of a point, width
    and depth of the network, the T steps, and the scales of what is no latent number.

    >>> edm = EDM(latent=4, steps=100)
    >>> mask = torch.ones(2, 7, dtype=torch.bool)
    >>> edm.sample(mask, steps=10).shape
    torch.Size([2, 7, 7])
    """

    def loss(
        self,
        clean: Float[Tensor, "B N V"],
        mask: Bool[Tensor, "B N"],
        t: Float[Tensor, "B"],
        noise: Float[Tensor, "B N V"],
        context: Float[Tensor, "B N C"] | None = None,
    ) -> Float[Tensor, "B"]:
        """The training loss of each cloud: half the mean squared error of ε (equation 6).

        As released, the mean is over the padded N points; at t = 0 the surprise at types and whole
        numbers stands in place of their error, and the prior's term, which nothing can learn, is
        added.
        """
        z = self.diffuse(clean, t, noise)
        error = (noise - self.predict_noise(z, t, mask, context)).square()
        error = error / (clean.shape[-1] * mask.shape[1])
        first = clean_surprise(self, clean, z, error, mask)
        return torch.where(t == 0, first, 0.5 * error.sum(dim=(1, 2))) + self._prior(clean, mask)

    def bound(
        self,
        clean: Float[Tensor, "B N V"],
        mask: Bool[Tensor, "B N"],
        t: Float[Tensor, "B"],
        noise: Float[Tensor, "B N V"],
        last_noise: Float[Tensor, "B N V"],
        context: Float[Tensor, "B N C"] | None = None,
    ) -> Float[Tensor, "B"]:
        """An estimate, in nats, of a bound of −log p of each clean cloud (equation 8).

        It is the density of coordinates and latent numbers as they are in z_0, over their scales,
        and the probability of types and whole numbers. The number of points is given.

        t           a step drawn from 1/T, 2/T, … 1, for the sum over all steps
        noise       for the cloud at t
        last_noise  for the cloud at 0
        """
        z = self.diffuse(clean, t, noise)
        error = (noise - self.predict_noise(z, t, mask, context)).square().sum(dim=(1, 2))
        ratio = (self.gamma(t) - self.gamma(t - 1 / self.steps)).exp() - 1
        later = 0.5 * self.steps * ratio * error
        zero = torch.zeros_like(t)
        z = self.diffuse(clean, zero, last_noise)
        error = (last_noise - self.predict_noise(z, zero, mask, context)).square()
        first = clean_surprise(self, clean, z, error, mask)
        points = mask.sum(dim=1)
        free = 3 * (points - 1) + self.kinds[2] * points  # numbers that may be chosen
        constant = 0.5 * free * (self.gamma(zero) + math.log(2 * math.pi))
        return self._prior(clean, mask) + later + first + constant

    def _prior(
        self, clean: Float[Tensor, "B N V"], mask: Bool[Tensor, "B N"]
    ) -> Float[Tensor, "B"]:
        alpha, sigma = self.signal(torch.ones_like(clean[:, 0, 0]))
        return prior_divergence(alpha[:, None, None] * clean, sigma, mask)

    @classmethod
    def from_official(
        cls,
        state_dict: dict[str, Tensor],
        *,
        integers: int = 1,
        context: int = 0,
        **options: Any,
    ) -> "EDM":
        """The model of a released EDM checkpoint, a `state_dict` of its diffusion.

        Sizes are read off the weights; `integers`, `context` and in `options` tanh, norm_constant,
        divisor and scales are not in them. The noise schedule is the checkpoint's own table.

        Raises ValueError for what is no such state_dict, and names keys that lack or do not fit.
        """
        weights, sizes = _read_official(state_dict)
        classes = weights["embed.weight"].shape[1] - 1 - context - integers
        table = state_dict["gamma.gamma"].detach().float()
        options = {"context": context, "steps": len(table) - 1, **sizes, **options}
        model = cls(classes, integers, **options)
        check_keys("state_dict", weights, model.egnn.state_dict())
        model.egnn.load_state_dict(weights)
        model.table.copy_(table)
        return model


# %% [markdown]
# The release calls its weights by other names. A few replacements turn them into ours, and the shapes tell the sizes.


# %% tags=["promote"]
_OFFICIAL_NAMES = (
    (r"^dynamics\.egnn\.", ""),
    (r"embedding_out\.", "out."),
    (r"embedding\.", "embed."),
    (r"e_block_(\d+)\.", r"blocks.\1."),
    (r"gcl_equiv\.coord_mlp\.", "coordinates.mlp."),
    (r"gcl_(\d+)\.", r"messages.\1."),
    (r"att_mlp\.0\.", "gate."),
)


def _read_official(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The network's weights under our names, and the sizes that they tell."""
    weights = {}
    for name, value in state_dict.items():
        if name.startswith("dynamics.egnn."):
            for pattern, ours in _OFFICIAL_NAMES:
                name = re.sub(pattern, ours, name)
            weights[name] = value.detach().float()
    first = weights.get("blocks.0.messages.0.edge_mlp.0.weight")
    if "embed.weight" not in weights or first is None or "gamma.gamma" not in state_dict:
        raise ValueError(
            f"state_dict has {len(state_dict)} keys, not those of EDM; expected gamma.gamma, "
            "dynamics.egnn.embedding.weight and more, as in a released generative_model.npy"
        )
    width = len(weights["embed.weight"])
    found = [re.match(r"blocks\.(\d+)\.messages\.(\d+)\.", name) for name in weights]
    places = [(int(each[1]), int(each[2])) for each in found if each]
    return weights, {
        "width": width,
        "depth": 1 + max(block for block, _ in places),
        "inner": 1 + max(layer for _, layer in places),
        "attention": any(".gate." in name for name in weights),
        "waves": first.shape[1] - 2 * width == 24,
    }


# %% [markdown]
# A state_dict of a small model under the release's names, in and out:

# %%
THEIRS = {
    "embed.": "embedding.",
    "out.": "embedding_out.",
    "blocks.": "e_block_",
    "messages.": "gcl_",
    "coordinates.mlp": "gcl_equiv.coord_mlp",
    "gate.": "att_mlp.0.",
}
small = EDM(4, 1, width=16, depth=1, steps=50)
official = {"gamma.gamma": small.table}
for name, value in small.egnn.state_dict().items():
    for ours, theirs in THEIRS.items():
        name = name.replace(ours, theirs)
    official["dynamics.egnn." + name] = value
print(*list(official)[:5], sep="\n")

# %%
loaded = EDM.from_official(official)
z = loaded.noise(torch.ones(1, 3, dtype=torch.bool), torch.Generator().manual_seed(0))
where = torch.ones(1), torch.ones(1, 3, dtype=torch.bool)
print(
    "the same guess:", torch.equal(loaded.predict_noise(z, *where), small.predict_noise(z, *where))
)

# %% [markdown]
# The tests do this with the four configurations of the release that the course has numbers of, and compare schedules, guesses, losses, gradients, the bound, a step and a whole seeded walk.
#
# ### Where the loss and the bound come from
#
# The trained model of the figure, asked at each time about molecules of its data. `records` above is the training loss; here is what it is made of.


# %%
@torch.no_grad()
def errors_at(step, count=128):
    """The squared errors of x and of h of each cloud at a step."""
    z0, mask = latents[:count], clouds.mask[:count]
    t, noise = (
        torch.full((count,), step / edm.steps, device=device()),
        edm.noise(mask, seeded(step)),
    )
    error = (noise - edm.predict_noise(edm.diffuse(z0, t, noise), t, mask)).square()
    return error[..., :3].sum(dim=(1, 2)).mean().item(), error[..., 3:].sum(
        dim=(1, 2)
    ).mean().item()


steps_shown = [1, 2, 5, 10, 20, 40, 60, 80, 100, 150, *range(200, 1001, 100)]
errors = np.array([errors_at(step) for step in steps_shown])
gammas = edm.table.cpu().numpy()
weights = np.array([np.exp(gammas[step] - gammas[step - 1]) - 1 for step in steps_shown]) / 2


# %% tags=["figure"]
def draw_terms():
    figure, axes = canvas(1, 2, 7.2, 2.4)
    times = np.array(steps_shown) / edm.steps
    for k, (name, ink) in enumerate((("coordinates", "first"), ("features", "second"))):
        entries = 2 * 7 * ATOMS
        axes[0].plot(times, errors[:, k] / entries, color=COLOURS[ink], label=name)
        axes[1].plot(times, weights * errors[:, k], color=COLOURS[ink], label=name)
    axes[0].set(xlabel="time t", title="loss L: half the error of the guess ε̂", ylim=(0, None))
    axes[1].set(
        xlabel="time t", ylabel="nats", title="terms of the bound U, one a step", yscale="log"
    )
    axes[0].legend()
    return figure


show(
    draw_terms(),
    alt="Left, the loss of coordinates and features against time, highest near 0 and falling; right, "
    "the terms of the bound on a logarithmic axis, highest near 0 and falling over orders of magnitude",
)

# %% [markdown]
# Noise is hard to guess where there is little of it, and easy where there is little else. The loss counts all times alike. The bound counts the early ones most: near $t = 0$ a step changes the SNR by a large factor. A model trained by $L$ is made for samples, and not for the best $U$.
#
# ### What the bound means
#
# A bound is a number for one cloud. To have something to compare with, ask for molecules of the training, for held-out ones, and for damaged ones: in each held-out cloud, the features of two points are swapped.


# %%
@torch.no_grad()
def mean_bound(z0, mask, draws=20):
    """The mean bound of each cloud over one random time in each part of the way, in nats."""
    generator, total = seeded(0), 0
    for k in range(draws):
        u = torch.rand(1, generator=generator, device=device())
        t = ((k + u) / draws * edm.steps).ceil() / edm.steps
        draw = (edm.noise(mask, generator) for _ in range(2))
        total = total + edm.bound(z0, mask, t.expand(len(z0)), *draw)
    return total / draws


held = diffusion.to_latent(held_clouds)
full = held_clouds.mask.all(dim=1)  # seven atoms each, so that all bounds have the same dimension
swapped = held[full].clone()
swapped[:, :2, 3:] = held[full][:, [1, 0], 3:]
seven = held_clouds.mask[full]
kinds = {
    "trained on": mean_bound(latents[clouds.mask.all(dim=1)][: len(seven)], seven),
    "held out": mean_bound(held[full], seven),
    "two atoms swapped": mean_bound(swapped, seven),
}
for name, bound in kinds.items():
    error = bound.std() / len(bound) ** 0.5
    print(f"{name:>17}: U = {bound.mean():6.1f} ± {error:.1f} nats")
more = kinds["two atoms swapped"] - kinds["held out"]
print(f"the swap costs {more.mean():.1f} ± {more.std() / len(more) ** 0.5:.1f} nats")

# %% [markdown]
# A molecule that the model has not seen costs about as much as one that it has; a damaged one costs much more. One nat is a factor of $e$ in probability. Three cautions. The bound is of a density, so it may be negative, and it depends on the units of $z_0$: with coordinates twice as long it grows by $d \log 2$. So compare clouds of the same size under one scale. It is a bound of the latent cloud, not of the molecule: the encoder's and the decoder's part is not in it. And a good bound does not make valid molecules: that is measured below.
#
# ### From cloud to molecule
#
# What is left is the way between latent clouds and the rest (equation 9). One length for all three axes: a scale for each axis would make north different from east.


# %% tags=["promote"]
class LatentDiffusion(nn.Module):
    """EDM on the latent clouds of an autoencoder (equation 9): a generator of graphs.

    Latent clouds are brought to deviation 1: one scale for all coordinates, since a scale for each
    axis would break the symmetry, and mean and deviation for each feature.

    autoencoder  trained; it stays as it is
    **edm        sizes of `EDM`
    """

    def __init__(self, autoencoder: MoleculeAutoencoder, **edm: Any):
        super().__init__()
        self.autoencoder = autoencoder.requires_grad_(False)
        self.edm = EDM(latent=autoencoder.latent, **edm)
        self.register_buffer("length", torch.ones(()))
        self.register_buffer("mean", torch.zeros(autoencoder.latent))
        self.register_buffer("deviation", torch.ones(autoencoder.latent))

    @torch.no_grad()
    def measure(self, cloud: Cloud) -> None:
        """Take the scales from clouds of the training data."""
        h = cloud.h[cloud.mask]
        self.length.copy_(cloud.x[cloud.mask].square().mean().sqrt().clamp(min=1e-6))
        self.mean.copy_(h.mean(dim=0))
        self.deviation.copy_(h.std(dim=0, correction=0).clamp(min=1e-6))

    def to_latent(self, cloud: Cloud) -> Float[Tensor, "B N V"]:
        """z_0 = [x | h] of clouds, at deviation 1."""
        h = (cloud.h - self.mean) / self.deviation * cloud.mask[..., None]
        return torch.cat([cloud.x / self.length, h], dim=-1)

    def to_cloud(self, z: Float[Tensor, "B N V"], mask: Bool[Tensor, "B N"]) -> Cloud:
        """The clouds of z_0: the inverse of `to_latent`."""
        h = (z[..., 3:] * self.deviation + self.mean) * mask[..., None]
        return Cloud(z[..., :3] * self.length, h, mask)

    def decode(self, z: Float[Tensor, "B N V"], mask: Bool[Tensor, "B N"]) -> Graphs:
        """Scores of the graphs of z_0."""
        return self.autoencoder.decode(self.to_cloud(z, mask))

    def loss(self, clean: Float[Tensor, "B N V"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, ""]:
        """The mean loss of latent clouds at random times with random noise (equation 6)."""
        steps = self.edm.steps
        t = torch.randint(0, steps + 1, (len(clean),), device=clean.device) / steps
        return self.edm.loss(clean, mask, t, self.edm.noise(mask)).mean()

    def sample(self, mask: Bool[Tensor, "B N"], **options: Any) -> Graphs:
        """Scores of new graphs; `to_codes` takes the largest. Options as of `EDM.sample`."""
        return self.decode(self.edm.sample(mask, **options), mask)


# %%
print(
    f"length {diffusion.length:.2f}; deviations of the features {[round(d, 2) for d in diffusion.deviation.tolist()]}"
)
there = latents[clouds.mask]
print(f"z_0: deviation of x {there[:, :3].std():.3f}, of h {there[:, 3:].std():.3f}")
again = diffusion.to_cloud(latents, clouds.mask)
print(
    f"and back: off by at most {max((a - b).abs().max().item() for a, b in zip(again[:2], clouds[:2], strict=True)):.1e}"
)


# %% tags=["promote"]
def sizes_to_mask(sizes: Int[Tensor, "B"], most: int) -> Bool[Tensor, "B N"]:
    """The mask of graphs with so many atoms. Raises ValueError for one with none or too many."""
    if len(sizes) and (sizes.min() < 1 or sizes.max() > most):
        raise ValueError(
            f"sizes has {int(sizes.min())} to {int(sizes.max())} atoms; expected 1 to {most}"
        )
    return torch.arange(most, device=sizes.device) < sizes[:, None]


# %%
sizes_to_mask(torch.tensor([3, 1]), 4)

# %% [markdown]
# ## On real input
#
# ### New molecules
#
# How many of two hundred samples are molecules? RDKit accepts graphs in several pieces too, so both shares are counted: valid, and valid in one piece. Nothing is repaired. Two yardsticks: a network of the same size that has not learned, and the data, sent through the autoencoder and back.


# %%
def judged(codes):
    """Shares of valid graphs and of those in one piece; of the latter, different and new ones."""
    texts = graphs_to_smiles(codes, vocabulary, mode="none")
    valid, one_piece = [text for text in texts if text], [text for text in read(codes) if text]
    different = set(one_piece)
    return (
        len(valid) / len(texts),
        len(one_piece) / len(texts),
        len(different) / max(1, len(one_piece)),
        len(different - known) / max(1, len(different)),
    )


def told(result):
    return "valid {:.0%}, in one piece {:.0%}; of these {:.0%} different, and of those {:.0%} new".format(
        *result
    )


COUNT = at_scale(cpu=200, gpu=2000)


def generated(model, count=COUNT, seed=0, **options):
    generator = seeded(seed)
    mask = sizes_to_mask(drawn_sizes(count, generator), ATOMS)
    return to_codes(model.sample(mask, generator=generator, **{"steps": STRIDES, **options}))


known = {Chem.CanonSmiles(text) for text in smiles}
unlearned = new_diffusion()
samples = generated(diffusion)
print("       trained:", told(judged(samples)))
print("not trained at all:", told(judged(generated(unlearned))))
print("data, and back:", told(judged(back[0])))

# %%
drawn = [text for text in read(samples) if text]
shown = sorted(set(drawn), key=drawn.index)[:10]
show(
    molecule_grid(
        shown, ["in the data" if text in known else "new" for text in shown], columns=5, width=6.8
    ),
    alt="Ten molecules that the model has made, each marked as new or as one of the training data",
)

# %% [markdown]
# A training of seconds on five hundred molecules brings about half of the samples to a molecule in one piece, from next to none. The rest is mostly in pieces: a single wrong bond of six tears a molecule apart, and all bonds are read at once. No chemistry is in the model; where a valency is right, it has been learned. More molecules and a longer training are the matter of [lesson 7](7_learning.ipynb).
#
# ### Fewer strides
#
# All $T = 1000$ steps cost 1001 passes of the network; the samples above took 100 strides. What do larger strides lose?

# %%
by_strides = {}
for strides in (1, 2, 5, 10, 25, 50, STRIDES):
    by_strides[strides] = judged(
        samples if strides == STRIDES else generated(diffusion, steps=strides)
    )
    print(f"{strides:3d} strides:", told(by_strides[strides]))


# %% tags=["figure"]
def draw_strides():
    figure, axes = canvas(1, 1, 4.2, 2.4)
    for k, (name, ink) in enumerate((("valid", "second"), ("in one piece", "first"))):
        axes.plot(
            by_strides.keys(),
            [r[k] for r in by_strides.values()],
            "o-",
            ms=4,
            color=COLOURS[ink],
            label=name,
        )
    axes.set(
        xscale="log", xlabel="strides from t = 1 to 0", ylabel="share of samples", ylim=(0, 1.05)
    )
    axes.set_xticks(list(by_strides), [str(s) for s in by_strides])
    axes.minorticks_off()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


show(
    draw_strides(),
    alt="The share of samples in one piece grows with the number of strides; the share that RDKit "
    "accepts does not fall to 0 with few strides, since loose atoms count as valid",
)

# %% [markdown]
# The share that is valid says little alone: a graph without any bond is valid, and few strides make such graphs. In one piece, it is the number of strides that counts.
#
# ## Exercises
#
# | write | minutes | difficulty |
# | --- | --- | --- |
# | `gamma_table` | 5 | ●○○ |
# | `cloud_noise` | 10 | ●●○ |
# | `reverse_step` | 15 | ●●● |
#
# <details><summary>Hint for <code>gamma_table</code></summary>
#
# The logarithm of a ratio is a difference of logarithms. Take them in float64, as the signal comes, and go to float32 at the very end.
#
# </details>
#
# <details><summary>Hint for <code>cloud_noise</code></summary>
#
# One draw of shape (B, N, 3 + F), with `generator` and on the mask's device; then `center(…, mask)` on the first three numbers, and the mask on the others.
#
# </details>
#
# <details><summary>Hint for <code>reverse_step</code></summary>
#
# `nn.functional.logsigmoid(-gamma)` is $\log \alpha^2$, so half of a difference of two of them is $\log \alpha_{t \mid s}$; and $\sigma_{t \mid s}^2 = 1 - \alpha_{t \mid s}^2$ times nothing else: `-torch.expm1` of the whole difference. Give the factors of each cloud two axes of length 1.
#
# </details>
#
# **Predict.** Let a walk start from noise that is moved by 5 to one side as a whole, with all later draws as they were. What happens to the sample?
#
# <details><summary>Hint</summary>
#
# What does the network see of the shift, and what does `step` do at its end?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Nothing, to rounding. The network sees distances and differences, which a shift leaves as they are, and the first step centres the cloud. The cell below compares the two samples.
#
# </details>

# %%
shift = torch.tensor([5.0, 0, 0, 0, 0, 0, 0], device=device()) * mask[..., None]
moved_sample = walk([script[0] + shift, *script[1:]], mask)
print(f"off by {(moved_sample - straight).abs().max():.1e}, of {straight.abs().max():.1f}")

# %% [markdown]
# **Measure.** How many passes of the network does a walk need, if its strides are not all alike? The SNR changes most near $t = 0$. Write a walk over given times with `edm.step`, and compare ten strides of equal length with ten that get shorter towards 0, at times $(k / 10)^2$, and with ten that get longer, at $(k / 10)^{0.7}$.
#
# <details><summary>Hint</summary>
#
# `itertools.pairwise(times)` gives the pairs of times. The table knows multiples of $1 / T$ only: round the times to them.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The cell below: strides that get shorter towards 0 make no molecule in one piece, and those that get longer make the most. What cannot be hurried is the noisy end of the way, where the points find their places; near $t = 0$ little is left to decide. With two hundred samples a share has a standard error of up to 3.5 percent points.
#
# </details>


# %%
@torch.no_grad()
def walk_over(times, count=200):
    generator = seeded(0)
    mask = sizes_to_mask(drawn_sizes(count, generator), ATOMS)
    z = edm.noise(mask, generator)
    for t, s in itertools.pairwise(times):
        both = (torch.full((count,), each, device=device()) for each in (s, t))
        z = edm.step(z, *both, edm.noise(mask, generator), mask)
    return to_codes(diffusion.decode(edm.clean(z, mask), mask))


for name, power in (("shorter towards 0", 2), ("equal", 1), ("longer towards 0", 0.7)):
    times = [round((k / 10) ** power * edm.steps) / edm.steps for k in range(10, -1, -1)]
    print(f"{name:>17}:", told(judged(walk_over(times))))

# %% [markdown]
# **Find the bug.** A colleague brings latent coordinates to deviation 1 on each axis by itself, "as one always does". Training goes well, and so do the tests of shapes. What is lost?


# %%
class Colleague(LatentDiffusion):
    def measure(self, cloud):
        super().measure(cloud)
        self.length = cloud.x[cloud.mask].std(dim=0)  # one for each axis


colleague = Colleague(autoencoder, width=48, depth=3).to(device())
colleague.measure(clouds)
for name, model in (("ours", diffusion), ("colleague's", colleague)):
    round_trip = []
    for by in (torch.eye(3, device=device()), turn):
        z = model.to_latent(clouds._replace(x=clouds.x @ by))
        length = (z[:, :1, :3] - z[:, 1:2, :3]).norm(dim=-1)
        round_trip.append(length[clouds.mask[:, 1:2]])
    print(
        f"{name:>11}: a distance changes by up to {((round_trip[1] / round_trip[0]) - 1).abs().max():.0%} when the molecule is turned"
    )

# %% [markdown]
# <details><summary>Hint</summary>
#
# Turn a molecule before it is scaled, and compare distances after.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The symmetry. With three lengths the latent cloud of a turned molecule is not the turned latent cloud: its distances differ, and the network sees another cloud. The model then has to learn each molecule in every direction. How the molecules of the data happen to lie decides how different the three lengths are, and so how large the damage is.
#
# </details>
#
# ## What breaks
#
# ### Noise with a centre
#
# Leave `center` out, in the start, in the fresh noise and at the end of a step. Everything runs. The network guesses noise without a centre, so the centre of the cloud is signal to the walk: it is never taken away, and each step grows it by $1 / \alpha_{t \mid s}$.


# %%
@torch.no_grad()
def drifting(count=200):
    """A walk with a centre: the distance of the clouds' centres from 0, after each step."""
    mask = sizes_to_mask(torch.full((count,), ATOMS, device=device()), ATOMS)
    generator, way = seeded(0), []

    def noise():
        return torch.randn((count, ATOMS, 7), generator=generator, device=device())

    z = noise()
    for k in range(STRIDES, 0, -1):
        s, t = (torch.full((count,), i / STRIDES, device=device()) for i in (k - 1, k))
        mean, deviation = reverse_step(z, edm.predict_noise(z, t, mask), edm.gamma(s), edm.gamma(t))
        z = mean + deviation[:, None, None] * noise()
        way.append(z[..., :3].mean(dim=1).norm(dim=-1).mean().item())
    return way, to_codes(diffusion.decode(edm.clean(z, mask), mask))


way, adrift = drifting()
for step in (1, 50, 90, 100):
    print(f"after {step:3d} strides: centres are {way[step - 1]:6.1f} from 0")
print(told(judged(adrift)))

# %% [markdown]
# The centres fly off by the factor $1 / \alpha_1$, which is about 300; the molecules themselves are hardly harmed, since network and decoder see differences only. What is harmed is the probability. The shift is uniform noise in a space without an end, and no number $p(z_0)$ can be right for it. And in training three numbers of each cloud's noise can never be guessed: the squared error has a floor of 3 for each cloud.

# %%
centred = edm.noise(clouds.mask, seeded(0))
with_centre = (
    centred
    + torch.cat(
        [
            torch.randn(len(x), 1, 3, generator=seeded(1), device=device())
            / clouds.mask.sum(1)[:, None, None].sqrt(),
            torch.zeros(len(x), 1, 4, device=device()),
        ],
        dim=-1,
    )
    * clouds.mask[..., None]
)
half_time = torch.full((len(x),), 0.5, device=device())
with torch.no_grad():
    for name, noise in (("without", centred), ("with", with_centre)):
        guess = edm.predict_noise(edm.diffuse(latents, half_time, noise), half_time, clouds.mask)
        error = (noise - guess)[..., :3].square().sum(dim=(1, 2))
        print(f"noise {name:>7} a centre: squared error of the coordinates {error.mean():.2f}")

# %% [markdown]
# ### What the code says to bad input

# %%
some_mask = torch.ones(2, 7, dtype=torch.bool, device=device())
with shows_error(ValueError):
    edm.sample(some_mask, steps=1001)
with shows_error(ValueError):
    edm.diffuse(latents[:2], torch.tensor([0.5, 1.5], device=device()), edm.noise(some_mask))
with shows_error(ValueError):
    half = torch.full((2,), 0.5, device=device())
    edm.step(edm.noise(some_mask), half, half, edm.noise(some_mask), some_mask)
with shows_error(ValueError):
    EDM.from_official(autoencoder.state_dict())
with shows_error(ValueError):
    EDM.from_official(
        {name: value for name, value in official.items() if "att_mlp.0.weight" not in name}
    )
with shows_error(ValueError):
    sizes_to_mask(torch.tensor([3, 8]), 7)
with shows_error(ValueError):
    EDM(latent=0)

# %% [markdown]
# ## Recap
#
# - Noise without a centre of mass fills $3\,(n - 1)$ dimensions and looks the same from all sides. With an equivariant network the whole walk turns along, to rounding.
# - The network guesses the noise as a movement. Training is a squared error at a random time; a step back grows the signal, takes guessed noise away and adds fresh noise.
# - The bound adds up one term for each step. It is a density of clouds: good to compare models on the same clouds, and no measure of valid molecules.
#
# The line goes on in [lesson 6](6_control.ipynb), where the walk is asked for something: a property, a scaffold, a better molecule.
