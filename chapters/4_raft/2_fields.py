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
# # Fields: motion as data
#
# **After this lesson you can** say how good an estimated flow field is.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb). *Time:* 50 minutes.

# %%
from collections.abc import Callable
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


# %% tags=["promote"]
def end_point_errors(
    flow: Float[Tensor, "B 2 H W"], target: Float[Tensor, "B 2 H W"]
) -> Float[Tensor, "B H W"]:
    """The distance in pixels between the ends of estimated and true vectors (equation 1)."""
    return (flow - target).norm(dim=1)


# %% tags=["promote"]
def end_point_error(
    flow: Float[Tensor, "B 2 H W"],
    target: Float[Tensor, "B 2 H W"],
    valid: Bool[Tensor, "B H W"] | None = None,
) -> Float[Tensor, ""]:
    """The mean of `end_point_errors` over all valid pixels of a batch, in pixels (equation 2)."""
    errors = end_point_errors(flow, target)
    return errors.mean() if valid is None else errors[valid].mean()


# %% tags=["promote"]
def outlier_rate(
    flow: Float[Tensor, "B 2 H W"],
    target: Float[Tensor, "B 2 H W"],
    valid: Bool[Tensor, "B H W"] | None = None,
) -> Float[Tensor, ""]:
    """The share of pixels wrong by over 3 pixels and over 5 % of the motion: KITTI's F1-all, 0 to 1."""
    errors = end_point_errors(flow, target)
    outlier = (errors > 3) & (errors > 0.05 * target.norm(dim=1))
    return (outlier if valid is None else outlier[valid]).float().mean()


# %% tags=["promote"]
def pad(
    image: Float[Tensor, "B C H W"], mode: str = "sintel", multiple: int = 8
) -> tuple[Float[Tensor, "B C h w"], tuple[int, int, int, int]]:
    """Repeat the border until height and width are multiples of 8."""
    H, W = image.shape[-2:]
    below, right = -H % multiple, -W % multiple
    left, top = right // 2, below // 2 if mode == "sintel" else 0
    padding = (left, right - left, top, below - top)
    return F.pad(image, padding, mode="replicate"), padding


# %% tags=["promote"]
def unpad(
    image: Float[Tensor, "B C h w"], padding: tuple[int, int, int, int]
) -> Float[Tensor, "B C H W"]:
    """Cut off what `pad` has added."""
    left, right, top, bottom = padding
    return image[..., top : image.shape[-2] - bottom, left : image.shape[-1] - right]


# %% tags=["promote"]
def classical_flow(
    method: str, image1: Float[Tensor, "B 3 H W"], image2: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, "B 2 H W"]:
    """Estimate flow without learning: "zero", "tv-l1" or "ilk" of scikit-image, at its defaults."""
    from skimage.registration import optical_flow_ilk, optical_flow_tvl1

    if method == "zero":
        return torch.zeros_like(image1[:, :2])
    function: Callable = {"tv-l1": optical_flow_tvl1, "ilk": optical_flow_ilk}[method]
    weights = image1.new_tensor([0.2125, 0.7154, 0.0721])[:, None, None]
    flows = []
    for first, second in zip(image1, image2, strict=True):
        grey = [(image * weights).sum(0).div(255).cpu().numpy() for image in (first, second)]
        v, u = function(*grey)
        flows.append(torch.from_numpy(np.stack([u, v])).to(image1))
    return torch.stack(flows)
