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
# # RAFT: the whole model
#
# **After this lesson you can** run RAFT on two photographs of your own.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb). *Time:* 50 minutes.

# %%
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple
import torch
from jaxtyping import Float
from torch import Tensor, nn
from fourfold.bilinear_sampling.sampling import _check_floating
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.kit.arguments import whole_number
from fourfold.kit.checkpoints import check_keys
from fourfold.raft.correlation import CorrelationVolume, OnDemandCorrelation
from fourfold.raft.encoders import BottleneckBlock, Encoder, ResidualBlock
from fourfold.raft.fields import pad, unpad
from fourfold.raft.update import UpdateBlock


# %% tags=["promote"]
class Flow(NamedTuple):
    """A flow field at two sizes, each in pixels of its own grid.

    Convention: (u, v), u to the right, v down, from image 1 to image 2.
    """

    full: Float[Tensor, "B 2 H W"]
    coarse: Float[Tensor, "B 2 H/8 W/8"]


# %% tags=["promote"]
class Variant(NamedTuple):
    """The sizes of one published model."""

    features: int
    hidden: int
    context: int
    radius: int
    widths: tuple[int, int, int]
    block: type[nn.Module]
    context_norm: str


# %% tags=["promote"]
VARIANTS = {
    "full": Variant(256, 128, 128, 4, (64, 96, 128), ResidualBlock, "batch"),
    "small": Variant(128, 96, 64, 3, (32, 64, 96), BottleneckBlock, "none"),
}


# %% tags=["promote"]
_CORRELATIONS = {"all-pairs": CorrelationVolume, "on-demand": OnDemandCorrelation}


# %% tags=["promote"]
class RAFT(nn.Module):
    """Recurrent all-pairs field transforms (Teed and Deng 2020, arXiv 2003.12039).

    variant      "full" (5.3 million parameters) or "small" (1.0 million)
    levels       L, of the correlation pyramid
    radius       r, of the look-up; the published 4 (full) or 3 (small) when left out
    correlation  "all-pairs" holds the volume, "on-demand" makes what it reads: slower, and the
                 way for large images

    Raises ValueError for another variant, correlation, levels or radius.
    """

    def __init__(
        self,
        variant: str = "full",
        *,
        levels: int = 4,
        radius: int | None = None,
        correlation: str = "all-pairs",
    ) -> None:
        super().__init__()
        sizes = _chosen("variant", variant, VARIANTS)
        _chosen("correlation", correlation, _CORRELATIONS)
        self.variant, self.correlation = variant, correlation
        self.levels = whole_number("levels", levels, least=1)
        self.radius = whole_number("radius", sizes.radius if radius is None else radius, least=0)
        self.hidden, self.context = sizes.hidden, sizes.context
        layers = {"block": sizes.block, "widths": sizes.widths}
        self.fnet = Encoder(sizes.features, "instance", **layers)
        self.cnet = Encoder(sizes.hidden + sizes.context, sizes.context_norm, **layers)
        channels = self.levels * (2 * self.radius + 1) ** 2
        self.update_block = UpdateBlock(channels, self.hidden, self.context, variant == "small")

    def forward(
        self,
        image1: Float[Tensor, "B 3 H W"],
        image2: Float[Tensor, "B 3 H W"],
        iterations: int = 12,
        initial_flow: Float[Tensor, "B 2 H/8 W/8"] | None = None,
    ) -> list[Flow]:
        """Estimate the flow from image 1 to image 2, better at every iteration.

        image1, image2  (B, 3, H, W) in [0, 255], H and W multiples of 8
        initial_flow    where to begin, in pixels of the coarse grid; 0 when left out
        returns         one Flow for each iteration, as the loss of training wants them

        Raises TypeError for images of whole numbers, ValueError for images of different, too small
        or odd sizes, with a value that is not finite or outside [0, 255], or seemingly in [0, 1].

        Convention: (x, y) order, x to the right, y down; the flow maps image 1 to image 2.
        """
        steps = self._iterate(image1, image2, iterations, initial_flow)
        return [Flow(self.update_block.upsample(flow, h), flow) for flow, h in steps]

    @torch.no_grad()
    def estimate(
        self,
        image1: Float[Tensor, "*B 3 H W"],
        image2: Float[Tensor, "*B 3 H W"],
        iterations: int = 20,
        initial_flow: Float[Tensor, "*B 2 h w"] | None = None,
    ) -> Flow:
        """The last flow between images of any size, without gradients, in evaluation mode.

        One pair or a batch, (3, H, W) or (B, 3, H, W); the flow has a batch axis where they do. Images
        are padded with their border to a multiple of 8; `coarse` and `initial_flow` cover the padded
        size. Raises as `forward`.
        """
        one = image1.ndim == 3
        if one:
            image1, image2 = image1[None], image2[None]
            initial_flow = None if initial_flow is None else initial_flow[None]
        _check_images(image1, image2)
        padded1, padding = pad(image1)
        padded2, _ = pad(image2)
        training = self.training
        self.eval()
        try:
            for flow, h in self._iterate(padded1, padded2, iterations, initial_flow):  # noqa: B007
                pass
            full = unpad(self.update_block.upsample(flow, h), padding)
        finally:
            self.train(training)
        return Flow(full[0], flow[0]) if one else Flow(full, flow)

    def _iterate(self, image1, image2, iterations, initial_flow) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the coarse flow and the hidden state after each iteration."""
        _check_images(image1, image2)
        _check_size(image1, self.levels)
        whole_number("iterations", iterations, least=1)
        B, _, H, W = image1.shape
        _check_initial_flow(initial_flow, (B, 2, H // 8, W // 8))
        image1, image2 = (2 * (image / 255) - 1 for image in (image1, image2))
        correlation, h, share = self._prepare(image1, image2)
        start = pixel_grid(H // 8, W // 8, device=image1.device).permute(2, 0, 1)
        positions = start.expand(B, -1, -1, -1)
        if initial_flow is not None:
            positions = positions + initial_flow
        for _ in range(iterations):
            # The gradient flows through the hidden state alone, not through where it looks.
            positions = positions.detach()
            flow = positions - start
            h, change = self.update_block(h, share, correlation(positions), flow)
            positions = positions + change
            yield positions - start, h

    def _prepare(self, image1: Tensor, image2: Tensor):
        """What is computed once for a pair: correlation, first hidden state, the context's share."""
        features1, features2 = self.fnet(torch.cat([image1, image2])).chunk(2)
        how = _CORRELATIONS[self.correlation]
        correlation = how(features1, features2, self.levels, self.radius)
        h, context = self.cnet(image1).split([self.hidden, self.context], dim=1)
        return correlation, h.tanh(), self.update_block.gru.share(context.relu())

    @classmethod
    def from_official(
        cls, state_dict: Mapping[str, Tensor], *, correlation: str = "all-pairs"
    ) -> "RAFT":
        """The model with published weights, in evaluation mode; variant and levels by the shapes.

        state_dict  with the names of the RAFT release, with or without "module.", of torchvision, or
                    of this model

        Raises ValueError for tensors that make no RAFT, naming every key that is missing,
        unexpected, or of another shape.
        """
        tensors = from_published_names(state_dict)
        variant, levels, radius = _sizes_of(tensors)
        model = cls(variant, levels=levels, radius=radius, correlation=correlation)
        check_keys("state_dict", tensors, model.state_dict())
        model.load_state_dict(tensors)
        return model.eval()


# %% tags=["promote"]
def _chosen(name: str, value: str, among: Mapping[str, object]) -> object:
    if value not in among:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(among)}")
    return among[value]


# %% tags=["promote"]
def _check_images(image1: Tensor, image2: Tensor) -> None:
    for name, image in (("image1", image1), ("image2", image2)):
        _check_floating(name, image)
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(f"{name} has shape {tuple(image.shape)}; expected (B, 3, H, W)")
        _check_values(name, image)
    if image1.shape != image2.shape:
        raise ValueError(
            f"image2 has shape {tuple(image2.shape)}; expected {tuple(image1.shape)}, that of image1"
        )


# %% tags=["promote"]
def _check_values(name: str, image: Tensor) -> None:
    low, high = (value.item() for value in image.detach().aminmax())
    # Interpolation may overshoot a little; a NaN fails both comparisons.
    if not (low >= -1 and high <= 256):
        raise ValueError(f"{name} has values from {low:g} to {high:g}; expected [0, 255]")
    if 0 < high <= 1:
        raise ValueError(f"{name} has no value over {high:g}; expected [0, 255], not [0, 1]")


# %% tags=["promote"]
def _check_size(image: Tensor, levels: int) -> None:
    H, W = image.shape[2:]
    if H % 8 or W % 8:
        raise ValueError(
            f"image1 has size {H} × {W}; expected multiples of 8 (`estimate` and `pad` see to that)"
        )
    least = 16 * 2 ** (levels - 1)
    if min(H, W) < least:
        fitting = max((min(H, W) // 16).bit_length(), 0)
        other = f", or levels={fitting}" if fitting else ""
        raise ValueError(
            f"image1 has size {H} × {W}; expected at least {least} × {least} for {levels} levels, "
            f"the coarsest of which has 2 × 2 pixels then{other}"
        )


# %% tags=["promote"]
def _check_initial_flow(flow: Tensor | None, shape: tuple[int, ...]) -> None:
    if flow is None:
        return
    _check_floating("initial_flow", flow)
    if tuple(flow.shape) != shape:
        raise ValueError(f"initial_flow has shape {tuple(flow.shape)}; expected {shape}")
    if not flow.isfinite().all():
        raise ValueError("initial_flow has values that are not finite; expected pixels")


# %% tags=["promote"]
# Published names (pattern) and ours, tried in this order: the release's first, then torchvision's.
_RENAMES = (
    (r"^module\.", ""),
    (r"gru\.conv([zrq])1\.", r"gru.horizontal.conv\1."),
    (r"gru\.conv([zrq])2\.", r"gru.vertical.conv\1."),
    (r"^update_block\.mask\.0\.", "update_block.mask.conv1."),
    (r"^update_block\.mask\.2\.", "update_block.mask.conv2."),
    (r"^feature_encoder\.", "fnet."),
    (r"^context_encoder\.", "cnet."),
    (r"net\.convnormrelu\.0\.", "net.conv1."),
    (r"net\.convnormrelu\.1\.", "net.norm1."),
    (r"net\.conv\.", "net.conv2."),
    (r"\.convnormrelu(\d)\.0\.", r".conv\1."),
    (r"\.convnormrelu(\d)\.1\.", r".norm\1."),
    (r"\.motion_encoder\.conv\.0\.", ".encoder.conv."),
    (r"\.motion_encoder\.convcorr(\d)\.0\.", r".encoder.convc\1."),
    (r"\.motion_encoder\.convflow(\d)\.0\.", r".encoder.convf\1."),
    (r"\.recurrent_block\.convgru1\.", ".gru.horizontal."),
    (r"\.recurrent_block\.convgru2\.", ".gru.vertical."),
    (r"^mask_predictor\.convrelu\.0\.", "update_block.mask.conv1."),
    (r"^mask_predictor\.conv\.", "update_block.mask.conv2."),
)


# %% tags=["promote"]
def from_published_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the RAFT release or of torchvision to the names of this model.

    Names that are known to neither stay as they are. The release registers the norm of a context
    encoder's short cut twice, as norm3 and downsample.1; both become one. Raises ValueError where
    two such names hold different values, and for what is no mapping of names to tensors.
    """
    if not isinstance(state_dict, Mapping) or not all(
        isinstance(value, Tensor) for value in state_dict.values()
    ):
        raise ValueError("state_dict is no mapping of names to tensors; expected a state_dict")
    names = {name: _renamed(name) for name in state_dict}
    if not any(".gru.vertical." in name for name in names.values()):
        names = {old: new.replace(".gru.horizontal.", ".gru.") for old, new in names.items()}
    else:  # In RAFT-small norm3 is a norm of its own.
        twice = re.compile(r"^(cnet\.layer\d\.0\.)norm3\.")
        names = {old: twice.sub(r"\1downsample.1.", new) for old, new in names.items()}
    result: dict[str, Tensor] = {}
    for old, new in names.items():
        if new in result and not torch.equal(result[new], state_dict[old]):
            raise ValueError(f"state_dict has two values for {new}, one of them {old}")
        result[new] = state_dict[old]
    return result


# %% tags=["promote"]
def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


# %% tags=["promote"]
def _sizes_of(tensors: Mapping[str, Tensor]) -> tuple[str, int, int]:
    """Variant, levels and radius of the model that the tensors were made for."""
    for name in ("fnet.conv1.weight", "update_block.encoder.convc1.weight"):
        if name not in tensors or tensors[name].ndim != 4:
            raise ValueError(
                f"state_dict has no {name} of four axes; expected the tensors of a RAFT"
            )
    width = len(tensors["fnet.conv1.weight"])
    variant = next((v for v, sizes in VARIANTS.items() if sizes.widths[0] == width), None)
    if variant is None:
        raise ValueError(
            f"fnet.conv1.weight has {width} output channels; expected 64 (full) or 32 (small)"
        )
    channels = tensors["update_block.encoder.convc1.weight"].shape[1]
    radii = sorted(range(9), key=lambda r: abs(r - VARIANTS[variant].radius))
    # The radius nearest to the published one that leaves a plausible number of levels.
    for radius in radii:
        levels, rest = divmod(channels, (2 * radius + 1) ** 2)
        if rest == 0 and 1 <= levels <= 8:
            return variant, levels, radius
    raise ValueError(
        f"update_block.encoder.convc1.weight reads {channels} correlations; "
        "expected a number of levels times (2 · radius + 1)²"
    )
