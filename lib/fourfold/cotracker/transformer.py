"""Transformer: attention along time and across tracks (draft of lesson 5)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention: each query takes a mean of values (equation 1 of the lesson).

    width   D, of a token
    heads   h, each with D / h numbers of it

    Called with x (B, Q, D), a context (B, K, D), x itself when left out, and a mask (B, 1, Q, K) or
    (B, 1, 1, K) that is added to the scores, it returns (B, Q, D).

    Raises ValueError for a width that the heads do not divide.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width}; expected a multiple of heads, {heads}")
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None):
        q = self.to_q(x)
        k, v = self.to_kv(x if context is None else context).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, in its tanh form (equation 2 of the lesson)."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class SelfBlock(nn.Module):
    """Tokens of one sequence read each other, then each for itself (equation 3 of the lesson)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width), _norm(width)
        self.attn = Attention(width, heads)
        self.mlp = MLP(width)

    def forward(self, x: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """Tokens read those of a context, then each for itself (equation 4 of the lesson).

    The norm of the context has a learned weight and bias, and PyTorch's ε of 1e-5; the other norms
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


def additive_mask(active: Bool[Tensor, "B *S N"], dtype: torch.dtype) -> Float[Tensor, "B *S N"]:
    """0 for tokens that count, the lowest finite number for others (equation 5 of the lesson).

    Added to scores it leaves others no weight; and where none counts all weigh the same, while
    −∞ would give NaN.
    """
    lowest = torch.finfo(dtype).min
    return torch.zeros(active.shape, dtype=dtype, device=active.device).masked_fill(~active, lowest)


class Transformer(nn.Module):
    """Attention along time and, through virtual tracks, across points (section 3.2 of the paper).

    inputs, outputs  widths of a token that comes in, and of what comes out for it
    width, heads     D and h inside
    depth            blocks along time, each followed by three across tracks
    virtual_tracks   V, tokens of each frame that all points of the frame share
    certainty        two more outputs, from a head of their own, as in version 3
    by_size          read the mask as the release does, which takes that of points for one of
                     virtual tracks where there are as many of them; for comparison only

    Called with tokens (B, N, S, inputs) and, where some points are not there yet, active (B, S, N),
    it returns (B, N, S, outputs). `space = False` leaves the blocks across tracks out.

    Time costs O(N·S²) scores, space O(N·V·S) instead of O(N²·S) (equation 6 of the lesson). Without
    gradients the points are worked on in parts, so that memory grows by 3 · D · S numbers a point.
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
        self.input_transform = nn.Linear(inputs, width)
        self.virtual_tracks = nn.Parameter(torch.randn(1, virtual_tracks, 1, width))
        self.time_blocks = _blocks(SelfBlock, depth, width, heads)
        self.space_virtual2point_blocks = _blocks(CrossBlock, depth, width, heads)
        self.space_virtual_blocks = _blocks(SelfBlock, depth, width, heads)
        self.space_point2virtual_blocks = _blocks(CrossBlock, depth, width, heads)
        self.flow_head = nn.Linear(width, outputs)
        self.vis_conf_head = nn.Linear(width, 2) if certainty else None
        self.apply(_initialise)
        for head in (self.flow_head, self.vis_conf_head):
            if head is not None:  # At first the points stay nearly where they are.
                nn.init.trunc_normal_(head.weight, std=0.001)

    def forward(
        self, tokens: Float[Tensor, "B N S I"], active: Bool[Tensor, "B S N"] | None = None
    ) -> Float[Tensor, "B N S O"]:
        B, _, S, _ = tokens.shape
        points = self.input_transform(tokens)
        virtual = self.virtual_tracks.expand(B, -1, S, -1)
        masks = (None, None) if active is None else self._masks(active, points.dtype)
        for along_time, *across in zip(
            self.time_blocks,
            self.space_virtual2point_blocks,
            self.space_virtual_blocks,
            self.space_point2virtual_blocks,
            strict=True,
        ):
            points, virtual = (_along_time(along_time, x) for x in (points, virtual))
            if self.space:
                points, virtual = _across_tracks(*across, points, virtual, *masks)
        change = self.flow_head(points)
        if self.vis_conf_head is None:
            return change
        return torch.cat([change, self.vis_conf_head(points)], dim=-1)

    def _masks(self, active: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What is added to the scores of virtual tracks for points, and of points for them."""
        mask = additive_mask(active.flatten(0, 1), dtype)
        over_keys, over_queries = mask[:, None, None, :], mask[:, None, :, None]
        V = self.virtual_tracks.shape[1]
        confused = self.by_size and mask.shape[1] == V
        return over_queries.expand(-1, -1, -1, V) if confused else over_keys, over_queries


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)


def _blocks(block: type[nn.Module], depth: int, width: int, heads: int) -> nn.ModuleList:
    return nn.ModuleList(block(width, heads) for _ in range(depth))


def _along_time(block: SelfBlock, x: Float[Tensor, "B N S D"]) -> Float[Tensor, "B N S D"]:
    return _in_parts(block, x.flatten(0, 1)).view_as(x)


def _across_tracks(
    virtual2point: CrossBlock,
    virtual2virtual: SelfBlock,
    point2virtual: CrossBlock,
    points: Float[Tensor, "B N S D"],
    virtual: Float[Tensor, "B V S D"],
    over_keys: Tensor | None,
    over_queries: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Virtual tracks read the points of their frame, each other, and are read by the points."""
    B = len(points)
    points, virtual = (x.transpose(1, 2).flatten(0, 1) for x in (points, virtual))
    virtual = virtual2virtual(virtual2point(virtual, points, over_keys))
    points = point2virtual(points, virtual, over_queries)
    return tuple(x.unflatten(0, (B, -1)).transpose(1, 2) for x in (points, virtual))


_ROWS = 4096  # of tokens at once: their 1536 numbers each in the MLP stay below 32 MB


def _in_parts(block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a block to sequences that do not meet; a part at a time where no gradient is asked."""
    step = max(1, _ROWS // x.shape[1])
    if torch.is_grad_enabled() or len(x) <= step:
        return block(x)
    return torch.cat([block(part) for part in x.split(step)])
