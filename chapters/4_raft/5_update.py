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
# # Update: one step towards the flow
#
# **After this lesson you can** say what one iteration does.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb). *Time:* 50 minutes.

# %%
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


# %% tags=["promote"]
class MotionEncoder(nn.Module):
    """Turn looked-up correlations and the current flow into motion features (equation 1).

    correlations  channels of the look-up, L·(2r+1)²
    small         the widths of RAFT-small, which has one convolution fewer on the correlations

    The flow itself makes the last two channels, so that the GRU sees it as it is.
    """

    def __init__(self, correlations: int, small: bool = False) -> None:
        super().__init__()
        c1, c2, f1, f2, out = (96, 96, 64, 32, 80) if small else (256, 192, 128, 64, 126)
        self.convc1 = nn.Conv2d(correlations, c1, 1)
        self.convc2 = None if small else nn.Conv2d(c1, c2, 3, padding=1)
        self.convf1 = nn.Conv2d(2, f1, 7, padding=3)
        self.convf2 = nn.Conv2d(f1, f2, 3, padding=1)
        self.conv = nn.Conv2d(c2 + f2, out, 3, padding=1)
        self.outputs = out + 2

    def forward(
        self, flow: Float[Tensor, "B 2 H W"], correlations: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B M H W"]:
        c = self.convc1(correlations).relu()
        if self.convc2 is not None:
            c = self.convc2(c).relu()
        f = self.convf2(self.convf1(flow).relu()).relu()
        motion = self.conv(torch.cat([c, f], dim=1)).relu()
        return torch.cat([motion, flow], dim=1)


# %% tags=["promote"]
class ConvGRU(nn.Module):
    """A gated recurrent unit whose matrices are convolutions (equations 2 to 5 of the lesson).

    hidden, context, motion  channels of the state and of the two parts of the input
    kernel                   (height, width) of all three convolutions

    A convolution is a sum over its input channels. The context is the same at every iteration, so
    its part of the three sums is made once, by `share`, and handed to every call.

    Source: Teed and Deng 2020, RAFT (arXiv 2003.12039), equations 3 to 6.
    """

    def __init__(
        self, hidden: int, context: int, motion: int, kernel: tuple[int, int] = (3, 3)
    ) -> None:
        super().__init__()
        self.hidden, self.context = hidden, context
        self.padding = (kernel[0] // 2, kernel[1] // 2)
        inputs = hidden + context + motion
        self.convz = nn.Conv2d(inputs, hidden, kernel, padding=self.padding)
        self.convr = nn.Conv2d(inputs, hidden, kernel, padding=self.padding)
        self.convq = nn.Conv2d(inputs, hidden, kernel, padding=self.padding)

    def share(self, context: Float[Tensor, "B X H W"]) -> Float[Tensor, "B S H W"]:
        """What the context adds to z, r and q, biases included: once for all iterations."""
        convs = (self.convz, self.convr, self.convq)
        columns = slice(self.hidden, self.hidden + self.context)
        weight = torch.cat([conv.weight[:, columns] for conv in convs])
        bias = torch.cat([conv.bias for conv in convs])
        return F.conv2d(context, weight, bias, padding=self.padding)

    def forward(
        self,
        h: Float[Tensor, "B D H W"],
        motion: Float[Tensor, "B M H W"],
        share: Float[Tensor, "B S H W"],
    ) -> Float[Tensor, "B D H W"]:
        share_zr, share_q = share.split([2 * self.hidden, self.hidden], dim=1)
        zr = self._convolve(torch.cat([h, motion], dim=1), self.convz, self.convr) + share_zr
        z, r = zr.sigmoid().chunk(2, dim=1)
        q = self._convolve(torch.cat([r * h, motion], dim=1), self.convq) + share_q
        return torch.lerp(h, q.tanh(), z)

    def _convolve(self, x: Tensor, *convs: nn.Conv2d) -> Tensor:
        """The channels of state and motion, through several convolutions at once."""
        weight = torch.cat([conv.weight for conv in convs])
        start, end = self.hidden, self.hidden + self.context
        weight = torch.cat([weight[:, :start], weight[:, end:]], dim=1)
        return F.conv2d(x, weight, padding=self.padding)


# %% tags=["promote"]
class SeparableConvGRU(nn.Module):
    """Two gated updates, along rows and then along columns: five pixels each way.

    Arguments and calls as in `ConvGRU`. Two times five weights reach as far as 5 × 5 do.
    Source: RAFT, section 3.3, SepConvGRU in the release.
    """

    def __init__(self, hidden: int, context: int, motion: int) -> None:
        super().__init__()
        self.horizontal = ConvGRU(hidden, context, motion, kernel=(1, 5))
        self.vertical = ConvGRU(hidden, context, motion, kernel=(5, 1))

    def share(self, context: Float[Tensor, "B X H W"]) -> Float[Tensor, "B S H W"]:
        """The shares of both updates, one after the other."""
        return torch.cat([self.horizontal.share(context), self.vertical.share(context)], dim=1)

    def forward(
        self,
        h: Float[Tensor, "B D H W"],
        motion: Float[Tensor, "B M H W"],
        share: Float[Tensor, "B S H W"],
    ) -> Float[Tensor, "B D H W"]:
        across, down = share.chunk(2, dim=1)
        return self.vertical(self.horizontal(h, motion, across), motion, down)


# %% tags=["promote"]
class FlowHead(nn.Module):
    """Read the change of the flow off the hidden state (equation 6): two 3 × 3 convolutions."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, h: Float[Tensor, "B D H W"]) -> Float[Tensor, "B 2 H W"]:
        return self.conv2(self.conv1(h).relu())


# %% tags=["promote"]
class MaskHead(nn.Module):
    """Read the weights of convex upsampling, 9 for each of 8 × 8 sub-pixels, off the state.

    The factor ¼ keeps the weights of an untrained network near each other (an author of the paper
    calls it a matter of initialisation); published weights need it.
    """

    def __init__(self, hidden: int, width: int = 256) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 9 * 8 * 8, 1)

    def forward(self, h: Float[Tensor, "B D H W"]) -> Float[Tensor, "B 576 H W"]:
        return 0.25 * self.conv2(self.conv1(h).relu())


# %% tags=["promote"]
def convex_upsample(
    flow: Float[Tensor, "B 2 H W"], mask: Float[Tensor, "B 576 H W"]
) -> Float[Tensor, "B 2 8*H 8*W"]:
    """Make each fine vector a weighted mean of nine coarse ones (equation 7 of the lesson).

    flow     (B, 2, H, W) in pixels of its own grid
    mask     (B, 576, H, W): channel 64·k + 8·u + v belongs to neighbour k of 3 × 3, row by row,
             and to the sub-pixel in row u and column v; softmax over k makes the weights
    returns  (B, 2, 8H, 8W) in pixels of the fine grid

    Beyond the border the flow counts as 0. Source: RAFT, section 3.3.
    """
    B, _, H, W = flow.shape
    weights = mask.view(B, 1, 9, 64, H, W).softmax(dim=2)
    neighbours = F.unfold(8 * flow, 3, padding=1).view(B, 2, 9, 1, H, W)
    fine = (weights * neighbours).sum(dim=2)
    return F.pixel_shuffle(fine.flatten(1, 2), 8)


# %% tags=["promote"]
def bilinear_upsample(flow: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B 2 8*H 8*W"]:
    """Enlarge a flow eight times, its vectors with it, corner on corner (RAFT-small)."""
    return 8 * F.interpolate(flow, scale_factor=8, mode="bilinear", align_corners=True)


# %% tags=["promote"]
class UpdateBlock(nn.Module):
    """One iteration: motion features, gated update, change of the flow (equations 1 to 6).

    correlations  channels of the look-up
    hidden        channels of the state, context those of the context features
    small         widths and GRU of RAFT-small, which has no mask head either
    """

    def __init__(self, correlations: int, hidden: int, context: int, small: bool = False) -> None:
        super().__init__()
        self.encoder = MotionEncoder(correlations, small)
        gru = ConvGRU if small else SeparableConvGRU
        self.gru = gru(hidden, context, self.encoder.outputs)
        self.flow_head = FlowHead(hidden, 128 if small else 256)
        self.mask = None if small else MaskHead(hidden)

    def forward(
        self,
        h: Float[Tensor, "B D H W"],
        share: Float[Tensor, "B S H W"],
        correlations: Float[Tensor, "B C H W"],
        flow: Float[Tensor, "B 2 H W"],
    ) -> tuple[Float[Tensor, "B D H W"], Float[Tensor, "B 2 H W"]]:
        """Return the new state and the change of the flow; `share` is that of the GRU."""
        h = self.gru(h, self.encoder(flow, correlations), share)
        return h, self.flow_head(h)

    def upsample(
        self, flow: Float[Tensor, "B 2 H W"], h: Float[Tensor, "B D H W"]
    ) -> Float[Tensor, "B 2 8*H 8*W"]:
        """Bring a flow to full size, by the weights that the state gives where there are some."""
        return bilinear_upsample(flow) if self.mask is None else convex_upsample(flow, self.mask(h))
