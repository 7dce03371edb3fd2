"""The released structure of EDM's network, written plainly, for the benchmark.

Edge lists over all pairs of all clouds, self-loops among them, whose messages a mask takes away;
every pair's [h_i | h_j | attributes] stands in memory; sums over pairs are scattered. Parameters
have the course's names, so that the same weights fit.
"""

import functools

import torch
from torch import Tensor, nn


@functools.cache
def edge_lists(B: int, N: int) -> tuple[Tensor, Tensor]:
    """The rows i and columns j of all pairs of each cloud, self-loops among them."""
    cloud, i, j = torch.meshgrid(torch.arange(B), torch.arange(N), torch.arange(N), indexing="ij")
    return (cloud * N + i).flatten(), (cloud * N + j).flatten()


def edge_masks(mask: Tensor) -> Tensor:
    """(B · N · N, 1): 1 for two different points that are there."""
    both = mask[:, :, None] & mask[:, None] & ~torch.eye(mask.shape[1], dtype=torch.bool)
    return both.reshape(-1, 1).float()


def segment_sum(values: Tensor, segment: Tensor, count: int, divisor: float) -> Tensor:
    result = values.new_zeros(count, values.shape[1])
    index = segment[:, None].expand(-1, values.shape[1])
    return result.scatter_add(0, index, values) / divisor


def distances(x: Tensor, edges: tuple[Tensor, Tensor], norm_constant: float):
    rows, columns = edges
    difference = x[rows] - x[columns]
    square = (difference**2).sum(dim=1, keepdim=True)
    return square, difference / ((square + 1e-8).sqrt() + norm_constant)


def two_layers(inputs: int, width: int) -> list[nn.Module]:
    return [nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]


class PlainMessages(nn.Module):
    def __init__(self, width: int, attributes: int, attention: bool, divisor: float):
        super().__init__()
        self.divisor = divisor
        self.edge_mlp = nn.Sequential(*two_layers(2 * width + attributes, width))
        self.gate = nn.Linear(width, 1) if attention else None
        self.node_mlp = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, h, edges, attributes, edge_mask):
        rows, columns = edges
        messages = self.edge_mlp(torch.cat([h[rows], h[columns], attributes], dim=1))
        if self.gate is not None:
            messages = messages * self.gate(messages).sigmoid()
        messages = messages * edge_mask
        total = segment_sum(messages, rows, len(h), self.divisor)
        return h + self.node_mlp(torch.cat([h, total], dim=1))


class PlainCoordinates(nn.Module):
    def __init__(self, width: int, attributes: int, tanh: bool, divisor: float):
        super().__init__()
        self.tanh, self.divisor = tanh, divisor
        self.mlp = nn.Sequential(
            *two_layers(2 * width + attributes, width), nn.Linear(width, 1, bias=False)
        )

    def forward(self, h, x, edges, vectors, attributes, edge_mask):
        rows, columns = edges
        steps = self.mlp(torch.cat([h[rows], h[columns], attributes], dim=1))
        steps = steps.tanh() * 15 if self.tanh else steps
        return x + segment_sum(vectors * steps * edge_mask, rows, len(x), self.divisor)


class PlainBlock(nn.Module):
    def __init__(self, width, attributes, inner, attention, tanh, divisor):
        super().__init__()
        self.messages = nn.ModuleList(
            PlainMessages(width, attributes, attention, divisor) for _ in range(inner)
        )
        self.coordinates = PlainCoordinates(width, attributes, tanh, divisor)


class PlainEGNN(nn.Module):
    """As `EGNN` of the course, without attributes from outside and without waves."""

    def __init__(
        self, features, width, depth, inner=1, attention=True, tanh=True, norm=1.0, divisor=1.0
    ):
        super().__init__()
        self.norm_constant = norm
        self.embed = nn.Linear(features, width)
        self.blocks = nn.ModuleList(
            PlainBlock(width, 2, inner, attention, tanh, divisor) for _ in range(depth)
        )
        self.out = nn.Linear(width, features)

    def forward(self, h: Tensor, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        B, N = mask.shape
        edges, edge_mask, node_mask = edge_lists(B, N), edge_masks(mask), mask.reshape(-1, 1)
        h, x = h.reshape(B * N, -1), x.reshape(B * N, 3)
        first, _ = distances(x, edges, self.norm_constant)
        h = self.embed(h)
        for block in self.blocks:
            square, vectors = distances(x, edges, self.norm_constant)
            attributes = torch.cat([square, first], dim=1)
            for layer in block.messages:
                h = layer(h, edges, attributes, edge_mask) * node_mask
            x = block.coordinates(h, x, edges, vectors, attributes, edge_mask) * node_mask
            h = h * node_mask
        h = self.out(h) * node_mask
        return h.reshape(B, N, -1), x.reshape(B, N, 3)
