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
# # Denoiser: a Transformer that listens to properties
#
# **After this lesson you can** write the denoiser with its condition encoders and AdaLN.
#
# *Before this:* nothing.

# %% [markdown]
# ## Code

# %%
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fourfold.graph_dit.graphs import BONDS
from fourfold.kit.arguments import whole_number
from fourfold.kit.checkpoints import check_keys

# %% tags=["promote"]
Condition = tuple[str, int]  # ("numeric", how many numbers) or ("categorical", how many classes)


# %% tags=["promote"]
def time_waves(time: Float[Tensor, "B"], width: int = 256) -> Float[Tensor, "B W"]:
    """Cosines and sines of the time in [0, 1], periods from 2π to 20,000 π."""
    pace = torch.exp(
        -math.log(10_000) * torch.arange(width // 2, device=time.device) / (width // 2)
    )
    angle = time[:, None].float() * pace
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


# %% tags=["promote"]
class TimeEncoder(nn.Module):
    """The time as a vector: waves, then two linear layers with SiLU between."""

    def __init__(self, width: int, waves: int = 256):
        super().__init__()
        self.waves = waves
        self.mlp = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Float[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.mlp(time_waves(time, self.waves))


# %% tags=["promote"]
class ClusterEncoder(nn.Module):
    """Numbers as a vector: soft assignment to D clusters, `Linear(Softmax(Linear(c)))` (Section 3.2).

    A dropped property has a learned vector of its own in place of the clusters'.
    """

    def __init__(self, numbers: int, width: int):
        super().__init__()
        self.dropped = nn.Parameter(torch.randn(1, width))
        self.assign = nn.Linear(numbers, width)
        self.represent = nn.Linear(width, width, bias=False)

    def forward(self, y: Float[Tensor, "B n"], drop: Bool[Tensor, "B"]) -> Float[Tensor, "B D"]:
        clusters = self.assign(torch.nan_to_num(y)).softmax(dim=-1)
        return torch.where(drop[:, None], self.dropped, self.represent(clusters))


# %% tags=["promote"]
class CategoryEncoder(nn.Module):
    """A class as a vector: one-hot times a matrix; the last row stands for a dropped class."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, width)

    def forward(self, y: Float[Tensor, "B 1"], drop: Bool[Tensor, "B"]) -> Float[Tensor, "B D"]:
        index = torch.nan_to_num(y[:, 0]).long().clamp(0, self.classes - 1)
        return self.table(torch.where(drop, self.classes, index))


# %% tags=["promote"]
class ConditionEncoder(nn.Module):
    """All properties as one vector, the sum of their codes (Section 3.2).

    conditions   groups in the order of y's columns
    drop         in training, the chance that a property of a graph is dropped, each for itself
    noise        in training, the standard deviation of noise added to each code; 1 as released
    missing      what a NaN drops: "row", as released, or the "property" alone
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        width: int,
        *,
        drop: float = 0.01,
        noise: float = 1.0,
        missing: str = "row",
    ):
        super().__init__()
        if missing not in ("row", "property"):
            raise ValueError(f"missing is {missing!r}; expected 'row' or 'property'")
        self.conditions, self.drop, self.noise, self.missing = (
            list(conditions),
            drop,
            noise,
            missing,
        )
        self.encoders = nn.ModuleList(_encoder(kind, size, width) for kind, size in conditions)
        self.columns = [size if kind == "numeric" else 1 for kind, size in conditions]

    def forward(self, y: Float[Tensor, "B P"], unconditional: bool = False) -> Float[Tensor, "B D"]:
        if y.shape[-1] != sum(self.columns):
            raise ValueError(
                f"y has {y.shape[-1]} columns; expected {sum(self.columns)}, "
                f"for the conditions {self.conditions}"
            )
        absent = y.isnan().any(dim=1)
        total = 0
        for encoder, part in zip(self.encoders, y.split(self.columns, dim=1), strict=True):
            drop = absent if self.missing == "row" else part.isnan().any(dim=1)
            if unconditional:
                drop = torch.ones_like(drop)
            elif self.training and self.drop > 0:
                drop = drop | (torch.rand(len(y), device=y.device) < self.drop)
            code = encoder(part, drop)
            if self.training and self.noise > 0:
                code = code + self.noise * torch.randn_like(code)
            total = total + code
        return total


# %% tags=["promote"]
def _encoder(kind: str, size: int, width: int) -> nn.Module:
    if kind not in ("numeric", "categorical"):
        raise ValueError(f"conditions holds {kind!r}; expected 'numeric' or 'categorical'")
    least = 1 if kind == "numeric" else 2
    size = whole_number(f"the size of a {kind} condition", size, least=least)
    return ClusterEncoder(size, width) if kind == "numeric" else CategoryEncoder(size, width)


# %% tags=["promote"]
class Attention(nn.Module):
    """Attention of every atom to every atom, queries and keys normalised per head."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads)
        self.k_norm = nn.LayerNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(
        self, H: Float[Tensor, "B N D"], pairs: Bool[Tensor, "B 1 N N"]
    ) -> Float[Tensor, "B N D"]:
        q, k, v = self.qkv(H).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask=pairs)
        return self.proj(mixed.transpose(1, 2).flatten(2))


# %% tags=["promote"]
def modulate(
    H: Float[Tensor, "B N D"], shift: Float[Tensor, "B D"], scale: Float[Tensor, "B D"]
) -> Float[Tensor, "B N D"]:
    """The statistics of the condition in place of the layer's own (equation 8)."""
    return H * (1 + scale[:, None]) + shift[:, None]


# %% tags=["promote"]
class AdaLN(nn.Module):
    """`chunks` vectors of a condition, all 0 at the start of training."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, out)

    def forward(self, c: Float[Tensor, "B D"]) -> Float[Tensor, "B O"]:
        return self.second(F.silu(self.first(c)))


# %% tags=["promote"]
class Block(nn.Module):
    """A Transformer layer whose branches end in AdaLN (equations 8 and 9).

    The normalisation stands behind the branch, as released, and not before it as in DiT.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int = 4):
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width)
        )
        self.adaln = AdaLN(width, 6 * width)

    def forward(
        self,
        H: Float[Tensor, "B N D"],
        c: Float[Tensor, "B D"],
        pairs: Bool[Tensor, "B 1 N N"],
    ) -> Float[Tensor, "B N D"]:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaln(c).chunk(6, dim=-1)
        H = H + gate_1[:, None] * modulate(self.norm(self.attention(H, pairs)), shift_1, scale_1)
        return H + gate_2[:, None] * modulate(self.norm(self.mlp(H)), shift_2, scale_2)


# %% tags=["promote"]
class OutputLayer(nn.Module):
    """`AdaLN(MLP(H), c)` (equation 10): scores of each atom and slot, added to the noisy ones."""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))
        self.norm = nn.LayerNorm(out, elementwise_affine=False)
        self.adaln = AdaLN(width, 2 * out)

    def forward(self, H: Float[Tensor, "B N D"], c: Float[Tensor, "B D"]) -> Float[Tensor, "B N F"]:
        shift, scale = self.adaln(c).chunk(2, dim=-1)
        return modulate(self.norm(self.mlp(H)), shift, scale)


# %% tags=["promote"]
class GraphDiT(nn.Module):
    """Graph DiT's denoiser: a noisy graph, its time and properties → scores of the clean graph.

    atom_types   A, the size of the vocabulary
    max_atoms    N
    conditions   groups of properties, ("numeric", width) or ("categorical", classes)
    width        D; depth and heads of the Transformer
    """

    def __init__(
        self,
        atom_types: int,
        max_atoms: int,
        conditions: Sequence[Condition] = (("numeric", 1),),
        *,
        width: int = 1152,
        depth: int = 6,
        heads: int = 16,
        mlp_ratio: int = 4,
        drop_condition: float = 0.01,
        condition_noise: float = 1.0,
        missing: str = "row",
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width}; expected a multiple of heads, {heads}")
        self.atom_types, self.max_atoms = atom_types, max_atoms
        tokens = atom_types + len(BONDS) * max_atoms
        self.embed = nn.Linear(tokens, width, bias=False)
        self.time = TimeEncoder(width)
        self.condition = ConditionEncoder(
            conditions, width, drop=drop_condition, noise=condition_noise, missing=missing
        )
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.output = OutputLayer(width, tokens)
        self.apply(_initialise)

    def forward(
        self,
        X: Float[Tensor, "B N A"],
        E: Float[Tensor, "B N N K"],
        mask: Bool[Tensor, "B N"],
        time: Float[Tensor, "B"],
        y: Float[Tensor, "B P"],
        unconditional: bool = False,
    ) -> tuple[Float[Tensor, "B N A"], Float[Tensor, "B N N K"]]:
        """Scores (logits) of the clean atoms and bonds; E's are symmetric with a zero diagonal.

        time  t / T in [0, 1]; y as the data set holds it, NaN where a property is not known
        """
        H = self.embed(torch.cat([X, E.flatten(2)], dim=-1))
        c = self.time(time.view(-1)) + self.condition(y, unconditional)
        pairs = mask[:, None, :, None] & mask[:, None, None, :]
        pairs = pairs | ~pairs.any(dim=-1, keepdim=True)  # a missing atom attends anywhere
        for block in self.blocks:
            H = block(H, c, pairs)
        scores = self.output(H, c)
        atoms = X + scores[..., : self.atom_types]
        bonds = E + scores[..., self.atom_types :].unflatten(-1, E.shape[2:])
        return atoms * mask[..., None], _symmetric(bonds, mask)

    @classmethod
    def from_official(
        cls, state_dict: dict[str, Tensor], *, heads: int, max_atoms: int, **options
    ) -> "GraphDiT":
        """A model with the weights of the release; the other sizes follow from the shapes.

        Keys may carry the checkpoint's prefix `model.`; the noise schedule's buffer and the states
        of metrics are left. No shape tells heads, nor A and N apart in a row of A + 5 N numbers.
        Raises ValueError for keys or shapes that do not fit.
        """
        weights = _renamed(state_dict)
        model = cls(**_sizes(weights, max_atoms), heads=heads, **options)
        check_keys("state_dict", weights, model.state_dict())
        model.load_state_dict(weights)
        return model


# %% tags=["promote"]
def _symmetric(bonds: Float[Tensor, "B N N K"], mask: Bool[Tensor, "B N"]) -> Tensor:
    real = mask[:, :, None] & mask[:, None, :]
    real = real & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return 0.5 * (bonds + bonds.transpose(1, 2)) * real[..., None]


# %% tags=["promote"]
def _initialise(module: nn.Module) -> None:
    """Xavier for every linear layer, zero biases; AdaLN starts as the identity."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, AdaLN):  # after its two linear layers
        nn.init.zeros_(module.first.weight)


# %% tags=["promote"]
_OFFICIAL_NAMES = (
    (r"^x_embedder\.", "embed."),
    (r"^t_embedder\.", "time."),
    (r"^y_embedding_list\.", "condition.encoders."),
    (r"\.embedding_drop\.weight$", ".dropped"),
    (r"\.embedding_table\.", ".table."),
    (r"^(condition\.encoders\.\d+)\.mlp\.0\.", r"\1.assign."),
    (r"^(condition\.encoders\.\d+)\.mlp\.2\.", r"\1.represent."),
    (r"^encoders\.", "blocks."),
    (r"^out_layer\.xedecoder\.", "output.mlp."),
    (r"^out_layer\.", "output."),
    (r"\.attn\.", ".attention."),
    (r"\.fc1\.", ".0."),
    (r"\.fc2\.", ".2."),
    (r"\.adaLN_modulation\.0\.", ".adaln.first."),
    (r"\.adaLN_modulation\.2\.", ".adaln.second."),
)

# %% tags=["promote"]
_OFFICIAL_PARTS = ("x_embedder", "t_embedder", "y_embedding_list", "encoders", "out_layer")


# %% tags=["promote"]
def _renamed(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The release's parameters under this module's names; a missing dropped vector is 0."""
    weights = {}
    for key, value in state_dict.items():
        name = key.removeprefix("model.")
        if name.split(".")[0] not in _OFFICIAL_PARTS:
            continue
        for pattern, new in _OFFICIAL_NAMES:
            name = re.sub(pattern, new, name)
        weights[name] = value
    # Trained without condition dropout, the release has no vector for a dropped number.
    for name in [name for name in weights if name.endswith(".assign.weight")]:
        width = weights[name].shape[0]
        weights.setdefault(name.replace("assign.weight", "dropped"), torch.zeros(1, width))
    return weights


# %% tags=["promote"]
def _sizes(weights: dict[str, Tensor], max_atoms: int) -> dict[str, Any]:
    """The arguments of `GraphDiT` that renamed weights tell."""
    if "embed.weight" not in weights:
        raise ValueError("state_dict has no x_embedder.weight; expected the weights of Graph DiT")
    width, tokens = weights["embed.weight"].shape
    count = 1 + max(
        (int(name.split(".")[2]) for name in weights if "encoders." in name), default=-1
    )
    depth = 1 + max((int(name.split(".")[1]) for name in weights if "blocks." in name), default=-1)
    atom_types = tokens - len(BONDS) * max_atoms
    if atom_types < 1:
        raise ValueError(
            f"max_atoms is {max_atoms}; expected at most {(tokens - 1) // len(BONDS)}, since a row "
            f"of the model has {tokens} numbers"
        )
    conditions = []
    for index in range(count):
        start = f"condition.encoders.{index}."
        if start + "table.weight" in weights:
            conditions.append(("categorical", len(weights[start + "table.weight"]) - 1))
        elif start + "assign.weight" in weights:
            conditions.append(("numeric", weights[start + "assign.weight"].shape[1]))
        else:
            raise ValueError(
                f"state_dict has no y_embedding_list.{index}; expected {count} of them"
            )
    return {
        "atom_types": atom_types,
        "max_atoms": max_atoms,
        "conditions": conditions,
        "width": width,
        "depth": depth,
    }
