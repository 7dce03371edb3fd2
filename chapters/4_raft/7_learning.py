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
# # Learning: flow from made motion
#
# **After this lesson you can** train RAFT.
#
# *Before this:* [Windows](../6_bilinear_sampling/3_window.ipynb). *Time:* 50 minutes.

# %%
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.kit.images import photograph


# %% tags=["promote"]
TRAIN_PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "china",
    "clock",
    "coins",
    "grass",
    "gravel",
    "hubble",
    "immunohistochemistry",
    "retina",
)


# %% tags=["promote"]
HELD_OUT_PHOTOGRAPHS = ("coffee", "flower", "motorcycle", "rocket")


# %% tags=["promote"]
class FlowPair(NamedTuple):
    """Two images and what moved between them, exactly."""

    image1: Float[Tensor, "B 3 H W"]
    image2: Float[Tensor, "B 3 H W"]
    flow: Float[Tensor, "B 2 H W"]
    visible: Bool[Tensor, "B H W"]


# %% tags=["promote"]
def similarity(angle: Tensor, zoom: Tensor, shift: Tensor, centre: Tensor) -> Tensor:
    """Rotate and zoom about a centre, then shift: (N, 3, 3) matrices on (x, y, 1)."""
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    linear = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
    offset = centre + shift - (linear @ centre[..., None])[..., 0]
    top = torch.cat([linear, offset[..., None]], dim=-1)
    bottom = top.new_tensor([0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 3)
    return torch.cat([top, bottom], dim=-2)


# %% tags=["promote"]
def move(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply (N, 3, 3) matrices to points (N, H, W, 2)."""
    x, y = points[..., :1], points[..., 1:]
    right, down, shift = matrix[:, None, None, :2].unbind(-1)
    return torch.addcmul(torch.addcmul(shift, x, right), y, down)


# %% tags=["promote"]
class Scene(NamedTuple):
    """L layers, the last in front. All matrices (L, 3, 3)."""

    textures: list[Tensor]  # photographs (3, h, w)
    texture: Tensor  # image 1 → photograph
    motion: Tensor  # image 1 → image 2
    outline: Tensor  # image 1 → the shape's own frame, where its mean radius is 1
    waves: Tensor  # (L, 2, K) cosine and sine amplitudes of the radius


# %% tags=["promote"]
def uniform(low, high, *shape, generator):
    return low + (high - low) * torch.rand(shape, generator=generator)


# %% tags=["promote"]
def random_scene(photographs, size, generator, *, reach=16.0, layers=4):
    H, W = size
    L = 1 + int(torch.randint(1, layers + 1, (), generator=generator))
    choice = torch.randint(len(photographs), (L,), generator=generator)
    textures = [photographs[i] for i in choice]
    frame = torch.tensor([W / 2, H / 2])
    # Where each layer's photograph lies: a random turn and zoom.
    spot = torch.stack(
        [
            torch.stack(
                [
                    uniform(0.15, 0.85, generator=generator) * t.shape[2],
                    uniform(0.15, 0.85, generator=generator) * t.shape[1],
                ]
            )
            for t in textures
        ]
    )
    zoom = torch.exp(uniform(math.log(0.6), math.log(1.6), L, generator=generator))
    angle = uniform(-math.pi, math.pi, L, generator=generator)
    angle = torch.where(torch.rand(L, generator=generator) < 0.6, 0.15 * angle, angle)
    texture = similarity(angle, zoom, spot - frame, frame.expand(L, 2))
    # Places and shapes of the layers in front.
    centre = torch.rand(L, 2, generator=generator) * torch.tensor([W, H])
    radius = torch.exp(uniform(math.log(0.08), math.log(0.35), L, generator=generator)) * min(H, W)
    radius[0] = 1e6
    stretch = torch.exp(uniform(-1.1, 1.1, L, generator=generator))
    turn = uniform(-math.pi, math.pi, L, generator=generator)
    c, s = turn.cos(), turn.sin()
    rows = torch.stack(
        [
            torch.stack([c, s], -1) * (stretch / radius)[:, None],
            torch.stack([-s, c], -1) / (stretch * radius)[:, None],
        ],
        -2,
    )
    outline = torch.zeros(L, 3, 3)
    outline[:, :2, :2] = rows
    outline[:, :2, 2] = -(rows @ centre[..., None])[..., 0]
    outline[:, 2, 2] = 1
    K = 6
    rough = uniform(0.0, 0.35, L, generator=generator)
    waves = (
        torch.randn(L, 2, K, generator=generator) * rough[:, None, None] / torch.arange(1, K + 1)
    )
    waves[0] = 0
    # Motions: of each layer alone, or of a camera that passes by.
    length = reach * torch.rand(L, generator=generator) ** 1.5
    heading = uniform(-math.pi, math.pi, L, generator=generator)
    if torch.rand((), generator=generator) < 0.4:
        heading = heading[:1].expand(L) + 0.05 * torch.randn(L, generator=generator)
        if torch.rand((), generator=generator) < 0.5:  # as two eyes see it
            heading = torch.round(heading / math.pi) * math.pi
        length = length.sort().values
    shift = length[:, None] * torch.stack([heading.cos(), heading.sin()], -1)
    calm = (torch.rand(L, generator=generator) < 0.7).float()
    spin = 0.12 * torch.randn(L, generator=generator) * calm
    grow = torch.exp(0.08 * torch.randn(L, generator=generator) * calm)
    pivot = centre.clone()
    pivot[0] = frame
    motion = similarity(spin, grow, shift, pivot)
    return Scene(textures, texture, motion, outline, waves)


# %% tags=["promote"]
def _alpha(points, outline, waves):
    """How much of each point (L, H, W, 2) lies on each layer: 0 to 1, soft over one pixel."""
    local = torch.view_as_complex(move(outline, points))
    radius = local.abs().clamp(min=1e-6)
    direction = local / radius
    edge = torch.zeros_like(direction)
    for wave in torch.view_as_complex(waves.transpose(1, 2).contiguous()).unbind(1)[::-1]:
        edge = (edge + wave[:, None, None]) * direction  # Horner's rule
    # The scale of the shape turns the gap into pixels.
    scale = outline[:, :2, :2].det().abs().rsqrt()
    return ((1 + edge.real - radius) * scale[:, None, None] + 0.5).clamp(0, 1)


# %% tags=["promote"]
def render(scene, size):
    H, W = size
    grid = pixel_grid(H, W)
    L = len(scene.textures)
    points = grid.expand(L, H, W, 2)
    back = move(torch.linalg.inv(scene.motion), points)  # where image 2's pixels are in image 1
    alpha1 = _alpha(points, scene.outline, scene.waves)
    alpha2 = _alpha(back, scene.outline, scene.waves)
    image1, image2 = torch.zeros(3, H, W), torch.zeros(3, H, W)
    for layer in range(L):
        both = torch.stack([points[layer], back[layer]])
        where = move(scene.texture[layer].expand(2, 3, 3), both)
        pixels = sample(scene.textures[layer].expand(2, -1, -1, -1), where, padding="reflection")
        image1 = torch.lerp(image1, pixels[0], alpha1[layer])
        image2 = torch.lerp(image2, pixels[1], alpha2[layer])
    index = torch.arange(1, L + 1)[:, None, None]
    front = ((alpha1 >= 0.5) * index).amax(0) - 1
    moved = move(scene.motion, points)
    target = moved.gather(0, front[None, ..., None].expand(1, H, W, 2))[0]
    flow = (target - grid).permute(2, 0, 1)
    # Hidden: out of the picture, or another layer is in front where it went.
    origin = move(torch.linalg.inv(scene.motion), target.expand(L, H, W, 2))
    there = ((_alpha(origin, scene.outline, scene.waves) >= 0.5) * index).amax(0) - 1
    x, y = target.unbind(-1)
    inside = (x >= 0) & (x <= W - 1) & (y >= 0) & (y <= H - 1)
    return FlowPair(image1, image2, flow, inside & (there <= front))


# %% tags=["promote"]
def load_photographs(names, height=384):
    result = []
    for n in names:
        p = photograph(n)
        if p.shape[2] > height:
            p = photograph(n, height=height)
        result.append(p[0])
    return result


# %% tags=["promote"]
def _grey(image):
    """Brightness as the eye weighs it, (..., 1, H, W)."""
    return (image * image.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(-3, keepdim=True)


# %% tags=["promote"]
def shift_hue(image, turns):
    """Turn the hue of (..., 3, H, W) images in [0, 255] by a share of the colour circle (HSV)."""
    value, where = image.max(-3)
    chroma = value - image.amin(-3)
    red, green, blue = image.unbind(-3)
    safe = chroma.clamp(min=1e-6)
    sector = torch.where(
        where == 0,
        (green - blue) / safe,
        torch.where(where == 1, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = sector + 6 * turns
    steps = hue.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    k = (steps + hue[..., None, :, :]) % 6
    return value[..., None, :, :] - chroma[..., None, :, :] * torch.minimum(k, 4 - k).clamp(0, 1)


# %% tags=["promote"]
def color_jitter(
    images, generator, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.5 / math.pi
):
    """Change brightness, contrast, saturation and hue of a stack of images (N, 3, H, W) by one draw."""
    factors = {}
    for name, spread in (
        ("brightness", brightness),
        ("contrast", contrast),
        ("saturation", saturation),
    ):
        factors[name] = float(uniform(1 - spread, 1 + spread, generator=generator))
    turns = float(uniform(-hue, hue, generator=generator))
    for k in torch.randperm(4, generator=generator).tolist():
        if k == 0:
            images = images * factors["brightness"]
        elif k == 1:
            mean = _grey(images).mean()
            images = torch.lerp(mean, images, factors["contrast"])
        elif k == 2:
            images = torch.lerp(_grey(images).expand_as(images), images, factors["saturation"])
        else:
            images = shift_hue(images, turns)
        images = images.clamp(0, 255)
    return images


# %% tags=["promote"]
def erase(image, generator, sizes=(50, 100), probability=0.5):
    """Cover one or two rectangles of an image (3, H, W) with its mean colour."""
    if torch.rand((), generator=generator) >= probability:
        return image
    H, W = image.shape[-2:]
    image, mean = image.clone(), image.mean((-2, -1), keepdim=True)
    for _ in range(int(torch.randint(1, 3, (), generator=generator))):
        x = int(torch.randint(W, (), generator=generator))
        y = int(torch.randint(H, (), generator=generator))
        w, h = torch.randint(sizes[0], sizes[1] + 1, (2,), generator=generator).tolist()
        image[:, y : y + h, x : x + w] = mean
    return image


# %% tags=["promote"]
def augment_colours(image1, image2, generator, *, asymmetric=0.2, sizes=(50, 100), noise=5.0):
    if torch.rand((), generator=generator) < asymmetric:
        image1, image2 = (color_jitter(x[None], generator)[0] for x in (image1, image2))
    else:
        image1, image2 = color_jitter(torch.stack([image1, image2]), generator)
    image2 = erase(image2, generator, sizes)
    sigma = uniform(0, noise, generator=generator)
    images = torch.stack([image1, image2])
    images = images + sigma * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 255)


# %% tags=["promote"]
class SyntheticPairs(torch.utils.data.Dataset):
    """Pairs with exact flow, new ones at every pass."""

    def __init__(
        self, photographs, size=(96, 96), *, length=1200, reach=24.0, augment=True, seed=None
    ):
        self.photographs, self.size, self.length = photographs, size, length
        self.reach, self.augment, self.seed = reach, augment, seed

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        draw = int(torch.randint(2**48, ())) if self.seed is None else self.seed << 24
        generator = torch.Generator().manual_seed(draw + index)
        scene = random_scene(self.photographs, self.size, generator, reach=self.reach)
        pair = render(scene, self.size)
        if self.augment:
            sizes = (self.size[0] // 8, self.size[0] // 4)
            image1, image2 = augment_colours(pair.image1, pair.image2, generator, sizes=sizes)
            pair = pair._replace(image1=image1, image2=image2)
        return pair


# %% tags=["promote"]
def sequence_loss(flows, target, valid=None, gamma=0.8, max_flow=400.0):
    ok = target.norm(dim=1) < max_flow
    if valid is not None:
        ok = ok & (valid >= 0.5)
    n = len(flows)
    total = 0.0
    for i, f in enumerate(flows):
        full = f.full if hasattr(f, "full") else f
        total = total + gamma ** (n - 1 - i) * (ok[:, None] * (full - target).abs()).mean()
    return total
