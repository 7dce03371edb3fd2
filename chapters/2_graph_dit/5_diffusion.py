# ---
# jupyter:
#   fourfold:
#     accelerator: none
#     level: intermediate
#     minutes: 50
#     needs: []
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Diffusion: from noise to a graph
#
# **After this lesson you can** write the loss, guidance and sampling.
#
# *Before this:* nothing.

# %% [markdown]
# ## Code

# %%
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fourfold.graph_dit.denoiser import GraphDiT
from fourfold.graph_dit.graphs import Graphs
from fourfold.graph_dit.noise import GraphNoise, _pairs
from fourfold.kit.notebook import progress_bar


# %% tags=["promote"]
def draw_graph(
    pX: Float[Tensor, "B N A"],
    pE: Float[Tensor, "B N N K"],
    mask: Tensor,
    generator: torch.Generator | None = None,
) -> Graphs:
    """Draw every atom and bond from its distribution: a noised graph, one-hot.

    Only the slots above E's diagonal are used and then mirrored, as released; the diagonal is
    class 0, and all is zero where there is no atom.
    """
    atoms = _draw(pX, generator)
    bonds = _draw(pE, generator).triu(1)
    bonds = bonds + bonds.transpose(1, 2)
    real = mask[:, :, None] & mask[:, None, :]
    X = F.one_hot(atoms, pX.shape[-1]).to(pX.dtype) * mask[..., None]
    E = F.one_hot(bonds, pE.shape[-1]).to(pE.dtype) * real[..., None]
    return Graphs(X, E, mask)


# %% tags=["promote"]
def _draw(p: Tensor, generator: torch.Generator | None) -> Int[Tensor, "..."]:
    """One index from each distribution of the last axis, by inverting its running sum."""
    total = p.cumsum(dim=-1)
    u = torch.rand(p.shape[:-1], generator=generator, device=p.device, dtype=p.dtype)
    return (total < u[..., None] * total[..., -1:]).sum(dim=-1).clamp(max=p.shape[-1] - 1)


# %% tags=["promote"]
def graph_loss(
    scores: tuple[Tensor, Tensor], graph: Graphs, weights: tuple[float, float] = (1.0, 10.0)
) -> Float[Tensor, ""]:
    """Cross-entropy of the clean atoms plus ten times that of the clean bonds (equation 4).

    Means over real atoms, and over ordered pairs of different real atoms.
    """
    X, E = scores
    pairs = _pairs(graph.mask)
    atoms = F.cross_entropy(X[graph.mask], graph.X[graph.mask].argmax(-1))
    if not pairs.any():  # lone atoms only
        return weights[0] * atoms
    bonds = F.cross_entropy(E[pairs], graph.E[pairs].argmax(-1))
    return weights[0] * atoms + weights[1] * bonds


# %% tags=["promote"]
def diffusion_loss(
    model: GraphDiT, noise: GraphNoise, graph: Graphs, y: Float[Tensor, "B P"]
) -> Float[Tensor, ""]:
    """The loss of one batch: noise each graph to a random time, and ask for the clean one."""
    t = torch.randint(0, noise.steps + 1, (len(y),), device=y.device)
    noised = draw_graph(*noise.q(graph, t), graph.mask)
    return graph_loss(model(*noised, t / noise.steps, y), graph)


# %% tags=["promote"]
def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Guidance without a predictor: `p ∝ p_u (p_c / p_u)^s`, normalised (equation 3).

    1 gives the conditional distribution, 0 the unconditional one.
    """
    ratio = conditional / unconditional.clamp(min=1e-10)
    p = (unconditional * ratio**guidance).clamp(min=1e-10)
    return p / p.sum(dim=-1, keepdim=True)


# %% tags=["promote"]
def reverse_step(
    model: GraphDiT,
    noise: GraphNoise,
    graph: Graphs,
    y: Float[Tensor, "B P"],
    s: int,
    t: int,
    guidance: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The distribution of the graph at s, given the one at t and the properties."""
    B = len(y)
    if guidance == 1:
        return _step(model, noise, graph, y, s, t)
    # Both halves in one batch; a row without a property is the unconditional model's.
    twice = Graphs(*(torch.cat([part, part]) for part in graph))
    both = _step(model, noise, twice, torch.cat([y, torch.full_like(y, torch.nan)]), s, t)
    return tuple(guide(p[:B], p[B:], guidance) for p in both)


# %% tags=["promote"]
def _step(model, noise, graph, y, s, t) -> tuple[Tensor, Tensor]:
    times = torch.full((len(y),), t, device=y.device)
    X, E = model(*graph, times / noise.steps, y)
    return noise.reverse(graph, X.softmax(-1), E.softmax(-1), torch.full_like(times, s), times)


# %% tags=["promote"]
def starting_graph(
    noise: GraphNoise,
    sizes: Int[Tensor, "B"],
    generator: torch.Generator | None = None,
    max_atoms: int | None = None,
) -> Graphs:
    """Graphs of pure noise with so many atoms, from the noise's limit."""
    N = max_atoms or len(noise.statistics.sizes) - 1
    mask = torch.arange(N, device=sizes.device) < sizes[:, None]
    m_X, m_E = (m.to(sizes.device) for m in noise.limit())
    B = len(sizes)
    return draw_graph(m_X.expand(B, N, -1), m_E.expand(B, N, N, -1), mask, generator)


# %% tags=["promote"]
@torch.no_grad()
def sample(
    model: GraphDiT,
    noise: GraphNoise,
    sizes: Int[Tensor, "B"],
    y: Float[Tensor, "B P"],
    *,
    guidance: float = 2.0,
    generator: torch.Generator | None = None,
    progress: bool = False,
    watch: Callable[[int, Graphs], None] | None = None,
) -> Graphs:
    """Generate graphs from noise, one step of time after the other (ancestral sampling).

    sizes     numbers of atoms
    y         the properties asked for; NaN for one that does not matter
    guidance  1 follows the properties as learned, more follows them more closely
    watch     is called with t and the graph, at T and after each step

    Raises ValueError for sizes the model has no room for.
    """
    if len(sizes) != len(y) or not ((sizes >= 1) & (sizes <= model.max_atoms)).all():
        raise ValueError(
            f"sizes is {sizes.tolist()}; expected {len(y)} numbers from 1 to {model.max_atoms}"
        )
    was_training = model.training
    model.eval()
    try:
        graph = starting_graph(noise, sizes, generator, model.max_atoms)
        if watch:
            watch(noise.steps, graph)
        with progress_bar(noise.steps, 0, unit="step", shown=progress) as bar:
            for t in range(noise.steps, 0, -1):
                pX, pE = reverse_step(model, noise, graph, y, t - 1, t, guidance)
                graph = draw_graph(pX, pE, graph.mask, generator)
                if watch:
                    watch(t - 1, graph)
                bar.update()
    finally:
        model.train(was_training)
    return graph
