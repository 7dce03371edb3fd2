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
# # Correlation: all pairs of pixels
#
# **After this lesson you can** build and read the correlation volume.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb). *Time:* 50 minutes.

# %%
import math
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from fourfold.bilinear_sampling.window import sample_pyramid, sample_window


# %% tags=["promote"]
def correlation(
    features1: Float[Tensor, "B D H1 W1"], features2: Float[Tensor, "B D H2 W2"]
) -> Float[Tensor, "B H1 W1 H2 W2"]:
    """Multiply the features of all pairs of pixels (equation 1 of the lesson).

    features1, features2  (B, D, H, W), one vector of width D for each pixel
    returns               (B, H1, W1, H2, W2) inner products over √D

    Source: Teed and Deng 2020, RAFT (arXiv 2003.12039), equation 1; the √D is the release's.
    """
    first, second = features1.flatten(2), features2.flatten(2)
    # The division on the smaller factor costs less than on the product.
    products = (first / math.sqrt(first.shape[1])).transpose(1, 2) @ second
    return products.unflatten(1, features1.shape[2:]).unflatten(3, features2.shape[2:])


# %% tags=["promote"]
def pyramid(maps: Float[Tensor, "N C H W"], levels: int) -> list[Tensor]:
    """Average maps over 2 × 2 squares, again and again (equation 3 of the lesson).

    returns  `levels` maps; level k is (N, C, H // 2ᵏ, W // 2ᵏ), a last odd row or column is dropped
    """
    result = [maps]
    for _ in range(levels - 1):
        result.append(F.avg_pool2d(result[-1], 2))
    return result


# %% tags=["promote"]
def _as_channels(windows: list[Tensor], shape: tuple[int, int, int]) -> Tensor:
    """Windows (B·H·W, S, S) of each level as one map (B, levels·S², H, W), x slow and y fast."""
    B, H, W = shape
    # RAFT numbers the places of a window down its columns; ours lie along its rows.
    columns = [window.transpose(1, 2).reshape(B, H, W, -1) for window in windows]
    return torch.cat(columns, dim=3).permute(0, 3, 1, 2).contiguous()


# %% tags=["promote"]
class CorrelationVolume:
    """All pairs, computed once and pooled; a look-up reads windows (equations 1, 3 and 4).

    features1, features2  (B, D, H, W) of the two images
    levels                L, of the pyramid
    radius                r, of the window

    It holds B · (HW)² · 4/3 numbers. Source: RAFT, section 3.2.
    """

    def __init__(
        self,
        features1: Float[Tensor, "B D H W"],
        features2: Float[Tensor, "B D H2 W2"],
        levels: int = 4,
        radius: int = 4,
    ) -> None:
        volume = correlation(features1.float(), features2.float())
        self.radius = radius
        self.levels = [level.squeeze(1) for level in pyramid(volume.flatten(0, 2)[:, None], levels)]

    def __call__(self, positions: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B C H W"]:
        """Read the windows around positions of image 2, one for each pixel of image 1.

        positions  (B, 2, H, W) as (x, y), in pixels of the features
        returns    (B, L·(2r+1)², H, W): channel i·(2r+1)² + a·(2r+1) + b is level i, offset
                   a − r in x and b − r in y

        Convention: (x, y) order, x to the right, y down, the centre of the top-left pixel at (0, 0).
        """
        B, _, H, W = positions.shape
        centres = positions.permute(0, 2, 3, 1).reshape(-1, 2)
        windows = sample_pyramid(self.levels, centres, self.radius)
        return _as_channels(windows, (B, H, W))


# %% tags=["promote"]
class OnDemandCorrelation:
    """The same numbers with no volume: features are pooled, products made where they are read.

    Arguments and call as in `CorrelationVolume`. Pooling is linear, so the product with pooled
    features is the pooled product (equation 5). It holds B · HW · D · 4/3 numbers; a call makes
    the products of one tile of pixels at a time, with the rectangle of image 2 that all of the
    tile's windows lie in. Smooth flow keeps the rectangles small, and the time proportional to HW.
    """

    def __init__(
        self,
        features1: Float[Tensor, "B D H W"],
        features2: Float[Tensor, "B D H2 W2"],
        levels: int = 4,
        radius: int = 4,
    ) -> None:
        self.radius = radius
        self.features1 = features1.float() / math.sqrt(features1.shape[1])
        self.levels = pyramid(features2.float(), levels)

    def __call__(self, positions: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B C H W"]:
        """As the call of `CorrelationVolume`."""
        B, _, H, W = positions.shape
        centres = positions.permute(0, 2, 3, 1)
        windows = []
        for k, features2 in enumerate(self.levels):
            side = 2 * self.radius + 1
            level = positions.new_empty(B, H, W, side, side)
            size = 8 * 2**k  # a tile of level k covers 8 × 8 of that level's pixels
            for b in range(B):
                for top in range(0, H, size):
                    for left in range(0, W, size):
                        tile = (slice(b, b + 1), slice(top, top + size), slice(left, left + size))
                        level[tile] = self._tile(features2[b], centres[tile] / 2**k, tile)
            windows.append(level.flatten(0, 2))
        return _as_channels(windows, (B, H, W))

    def _tile(self, features2: Tensor, centres: Tensor, tile: tuple) -> Tensor:
        b, rows, columns = tile
        first = self.features1[b, :, rows, columns].flatten(2)[0]
        points = centres.reshape(-1, 2)
        H, W = features2.shape[1:]
        low = points.amin(0).floor() - self.radius
        high = points.amax(0).floor() + self.radius + 2
        x0, y0 = low.clamp(min=0).long().tolist()
        x1, y1 = high.long().tolist()
        x0, y0 = min(x0, W - 1), min(y0, H - 1)
        x1, y1 = max(min(x1, W), x0 + 1), max(min(y1, H), y0 + 1)
        box = features2[:, y0:y1, x0:x1]
        maps = (first.T @ box.flatten(1)).view(-1, *box.shape[1:])
        window = sample_window(maps, points - points.new_tensor([x0, y0]), self.radius)
        return window.view(*centres.shape[:3], *window.shape[1:])
