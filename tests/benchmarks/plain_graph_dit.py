"""The released structure of Graph DiT's sampling, written plainly, for the benchmark.

Full transition matrices over rows of F = A + 5 N numbers, the posterior of every possible clean
row, an F × F matrix for each atom, and two passes of the network, with and without the properties.
The network is the course's; only what stands around it differs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def matrices(noise, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, F, F) each: Q of one step to t, Q̄ to t − 1 and Q̄ to t."""
    u = noise.matrix(noise.steps)
    eye = torch.eye(len(u))

    def blend(kept):
        kept = kept.view(-1, 1, 1)
        return kept * eye + (1 - kept) * u

    return blend(1 - noise.beta[t]), blend(noise.alpha_bar[t - 1]), blend(noise.alpha_bar[t])


def posterior(rows: Tensor, Q: Tensor, Qs: Tensor, Qt: Tensor) -> Tensor:
    """(B, N, F, F): for every clean entry 0, the distribution of the entries s at t − 1."""
    left = (rows @ Q.transpose(1, 2))[:, :, None, :]
    product = left * Qs[:, None]
    below = (Qt @ rows.transpose(1, 2)).transpose(1, 2)[..., None]
    return product / torch.where(below == 0, 1.0, below)


def one_side(model, noise, X, E, mask, y, t, unconditional) -> tuple[Tensor, Tensor]:
    """The distributions of atoms and slots at t − 1, from one pass of the network."""
    B, N, A = X.shape
    times = torch.full((B,), t)
    pX, pE = model(X, E, mask, times / noise.steps, y, unconditional)
    guess = torch.cat([pX.softmax(-1), pE.softmax(-1).flatten(2)], dim=-1)
    rows = torch.cat([X, E.flatten(2)], dim=-1)
    each = posterior(rows, *matrices(noise, times))
    weighted = guess[..., None] * each
    p = weighted.sum(dim=2)
    probX, probE = p[..., :A], p[..., A:].reshape(B, N, N, -1)
    probX[probX.sum(-1) == 0] = 1e-5
    probE[probE.sum(-1) == 0] = 1e-5
    return probX / probX.sum(-1, keepdim=True), probE / probE.sum(-1, keepdim=True)


def guided(model, noise, X, E, mask, y, t, guidance) -> tuple[Tensor, Tensor]:
    conditional = one_side(model, noise, X, E, mask, y, t, False)
    if guidance == 1:
        return conditional
    unconditional = one_side(model, noise, X, E, mask, y, t, True)
    answers = []
    for c, u in zip(conditional, unconditional, strict=True):
        p = (u * (c / u.clamp(min=1e-10)) ** guidance).clamp(min=1e-10)
        answers.append(p / p.sum(-1, keepdim=True))
    return tuple(answers)


def drawn(pX: Tensor, pE: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A graph from the distributions: uniform where there is no atom, drawn, mirrored, masked."""
    B, N, A = pX.shape
    K = pE.shape[-1]
    pX, pE = pX.clone(), pE.clone()
    pX[~mask] = 1 / A
    pE[~(mask[:, :, None] & mask[:, None, :])] = 1 / K
    pE[torch.eye(N, dtype=torch.bool).expand(B, N, N)] = 1 / K
    atoms = pX.reshape(B * N, A).multinomial(1).view(B, N)
    bonds = pE.reshape(B * N * N, K).multinomial(1).view(B, N, N).triu(1)
    bonds = bonds + bonds.transpose(1, 2)
    both = mask[:, :, None] & mask[:, None, :]
    return F.one_hot(atoms, A) * mask[..., None].float(), F.one_hot(bonds, K) * both[
        ..., None
    ].float()


@torch.no_grad()
def plain_sample(model, noise, sizes: Tensor, y: Tensor, guidance: float = 2.0):
    """As many graphs as there are sizes, always padded to the model's N."""
    B, N = len(sizes), model.max_atoms
    mask = torch.arange(N) < sizes[:, None]
    m_X, m_E = noise.limit()
    X, E = drawn(m_X.expand(B, N, -1), m_E.expand(B, N, N, -1), mask)
    for t in range(noise.steps, 0, -1):
        X, E = drawn(*guided(model, noise, X, E, mask, y, t, guidance), mask)
    return X, E, mask
