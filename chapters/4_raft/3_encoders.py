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
# # Encoders: a vector for every pixel
#
# **After this lesson you can** say what each layer of the encoders does.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb). *Time:* 50 minutes.

# %%
from collections.abc import Callable
import torch
from jaxtyping import Float
from torch import Tensor, nn


# %% tags=["promote"]
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": nn.InstanceNorm2d,
    "batch": nn.BatchNorm2d,
    "none": lambda channels: nn.Identity(),
}


# %% tags=["promote"]
def normalisation(kind: str, channels: int) -> nn.Module:
    """Make the layer that brings each channel to mean 0 and variance 1 (equations 1 and 2).

    kind      "instance" (over the pixels of one image), "batch" (over those of all images of a
              batch, and at evaluation with the running mean and variance) or "none"
    channels  of the map to normalise

    Raises ValueError for another kind.
    """
    if kind not in _NORMS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(_NORMS)}")
    return _NORMS[kind](channels)


# %% tags=["promote"]
def _projection(inputs: int, outputs: int, stride: int, norm: str) -> nn.Module:
    """The short cut of a block: the map as it is, or at the block's size where that differs."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride), normalisation(norm, outputs))


# %% tags=["promote"]
class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions and a short cut around them (equation 3 of the lesson).

    inputs, outputs  channels
    stride           1, or 2 to halve the size
    norm             see `normalisation`

    The sum of short cut and branch goes through a ReLU, and the branch through one of its own
    before, unlike He et al. 2016. Source: the RAFT release; the paper's figure in its appendix.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, norm: str = "instance") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm1 = normalisation(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = normalisation(norm, outputs)
        self.downsample = _projection(inputs, outputs, stride, norm)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        return (self.downsample(x) + y).relu()


# %% tags=["promote"]
class BottleneckBlock(nn.Module):
    """A 3 × 3 convolution on a quarter of the channels, between two 1 × 1 ones (equation 4).

    Arguments as in `ResidualBlock`. It costs a sixth of the multiplications and parameters.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, norm: str = "instance") -> None:
        super().__init__()
        narrow = outputs // 4
        self.conv1 = nn.Conv2d(inputs, narrow, 1)
        self.norm1 = normalisation(norm, narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=stride, padding=1)
        self.norm2 = normalisation(norm, narrow)
        self.conv3 = nn.Conv2d(narrow, outputs, 1)
        self.norm3 = normalisation(norm, outputs)
        self.downsample = _projection(inputs, outputs, stride, norm)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        y = self.norm3(self.conv3(y)).relu()
        return (self.downsample(x) + y).relu()


# %% tags=["promote"]
class Encoder(nn.Module):
    """Turn an image into a map of vectors at an eighth of its size (equation 5 of the lesson).

    outputs  D, the width of a vector
    norm     see `normalisation`
    block    `ResidualBlock` or `BottleneckBlock`
    widths   channels at 1/2, 1/4 and 1/8 of the size, two blocks each

    Source: Teed and Deng 2020, RAFT (arXiv 2003.12039), section 3.1 and appendix.

    >>> Encoder(256)(torch.zeros(1, 3, 64, 96)).shape
    torch.Size([1, 256, 8, 12])
    """

    def __init__(
        self,
        outputs: int,
        norm: str = "instance",
        block: type[ResidualBlock] | type[BottleneckBlock] = ResidualBlock,
        widths: tuple[int, int, int] = (64, 96, 128),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3)
        self.norm1 = normalisation(norm, widths[0])
        self.layer1 = _pair(block, widths[0], widths[0], 1, norm)
        self.layer2 = _pair(block, widths[0], widths[1], 2, norm)
        self.layer3 = _pair(block, widths[1], widths[2], 2, norm)
        self.conv2 = nn.Conv2d(widths[2], outputs, 1)
        self.apply(_initialise)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D H/8 W/8"]:
        x = self.norm1(self.conv1(image)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.conv2(x)


# %% tags=["promote"]
def _pair(block, inputs: int, outputs: int, stride: int, norm: str) -> nn.Sequential:
    first = block(inputs, outputs, stride, norm)
    return nn.Sequential(first, block(outputs, outputs, 1, norm))


# %% tags=["promote"]
def _initialise(layer: nn.Module) -> None:
    """Keep the variance of what flows through the ReLUs (He et al. 2015)."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
