"""A plain CoTracker of the released structure, for `bench_cotracker.py` to measure beside ours."""

import math

import torch
import torch.nn.functional as F
from plain_norms import with_instance_norms
from torch import Tensor, nn

from fourfold.cotracker.cotracker import CoTracker
from fourfold.cotracker.features import FeatureEncoder
from fourfold.cotracker.transformer import MLP, CrossBlock, SelfBlock, Transformer

__all__ = ["PlainCoTracker"]

STRIDE, RADIUS, LEVELS = 4, 3, 4


def grid_sample(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps (B, C, *sizes) at points (B, *N, 2 or 3), x first, in pixels; the border goes on.

    In five dimensions the third coordinate is the frame.
    """
    last = points.new_tensor([max(size - 1, 1) for size in reversed(maps.shape[2:])])
    points = 2 * points / last - 1
    return F.grid_sample(maps, points, align_corners=True, padding_mode="border")


def window_offsets() -> Tensor:
    """(7, 7, 2): the offset in x is the same along a row."""
    step = torch.arange(-RADIUS, RADIUS + 1.0)
    return torch.stack(torch.meshgrid(step, step, indexing="ij"), dim=-1)


def sincos(count: int, width: int) -> Tensor:
    """(count, width): sines, then cosines."""
    frequencies = 10_000 ** (-torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = torch.arange(count, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sincos_map(H: int, W: int, width: int) -> Tensor:
    """(1, width, H, W): one half for x, one for y."""
    x = sincos(W, width // 2).T[:, None].expand(-1, H, -1)
    y = sincos(H, width // 2).T[:, :, None].expand(-1, -1, W)
    return torch.cat([x, y])[None].contiguous()


class PlainEncoder(nn.Module):
    """The weights of a FeatureEncoder: resize, stack, convolve; norms by way of batch norm."""

    def __init__(self, encoder: FeatureEncoder) -> None:
        super().__init__()
        self.encoder = with_instance_norms(encoder)

    def forward(self, frames: Tensor) -> Tensor:
        encoder, stages = self.encoder, []
        x = encoder.norm1(encoder.conv1(frames)).relu_()
        size = [side // STRIDE for side in frames.shape[2:]]
        for layer in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            x = layer(x)
            stages.append(F.interpolate(x, size, mode="bilinear", align_corners=True))
        x = encoder.norm2(encoder.conv2(torch.cat(stages, dim=1))).relu_()
        return encoder.conv3(x)


class PlainCoTracker:
    """The weights of a CoTracker in the order of work that the release takes.

    It encodes all frames at once, those too that fill the last window up, and brings all maps of
    the encoder to their size before it convolves the stack of them. Version 2 multiplies each
    feature with every pixel of its frame and reads the window with grid_sample; version 3 reads
    windows of vectors with grid_sample and multiplies them with einsum. Attention is written out,
    and the virtual tracks are joined to the points before each layer along time.

    model  a CoTracker of four levels and radius 3, as released
    """

    def __init__(self, model: CoTracker) -> None:
        assert (model.sizes.levels, model.sizes.radius) == (LEVELS, RADIUS)
        self.model, self.update = model, model.update
        self.fnet = PlainEncoder(model.fnet)
        inputs, (H, W) = self.update.inputs, (side // STRIDE for side in model.sizes.resolution)
        self.time_emb = sincos(model.window, inputs)[None]
        self.map_size = H, W
        if model.version == "2":
            self.pos_emb = sincos_map(H, W, inputs)
        self.offsets = window_offsets()

    @torch.no_grad()
    def __call__(self, video: Tensor, queries: Tensor, iterations: int = 6):
        """Points (B, T, N, 2) in pixels of the video, and the visibility (B, T, N)."""
        T, S = video.shape[1], self.model.window
        if not self.model.whole_clip and T % S:
            video = torch.cat([video, video[:, -1:].expand(-1, S - T % S, -1, -1, -1)], dim=1)
        B, padded = video.shape[:2]
        maps = self.fnet((2 * (video / 255) - 1).flatten(0, 1))
        if self.model.version == "3":
            maps = maps / maps.square().sum(dim=1, keepdim=True).clamp(min=1e-12).sqrt()
        maps = maps.unflatten(0, (B, padded))
        places = torch.cat([queries[..., 1:] / STRIDE, queries[..., :1]], dim=-1)
        frames, count = queries[..., 0], queries.shape[1]
        pyramid = self.pyramid(maps) if self.model.version == "3" else [maps]
        anchors = self.anchors(pyramid, places)
        if self.model.whole_clip:
            S, starts = T, [0]
        else:
            starts = [S // 2 * i for i in range((T - S + S // 2 - 1) // (S // 2) + 1)]
        step = S // 2
        points = torch.zeros(B, padded, count, 2)
        logits = [torch.zeros(B, padded, count) for _ in range(1 + (self.model.version == "3"))]
        for first in starts:
            begin = places[:, None, :, :2].expand(-1, S, -1, -1)
            told = [torch.full_like(begin[..., 0], self.update.first_visibility) for _ in logits]
            if first:
                on = (frames < first + step)[:, None]
                begin = torch.where(on[..., None], self.carried(points, first, step), begin)
                told = [
                    torch.where(on, self.carried(old, first, step), new)
                    for old, new in zip(logits, told, strict=True)
                ]
            here = slice(first, first + S)
            window = [level[:, here] for level in pyramid]
            run = self.window2 if self.model.version == "2" else self.window3
            found, *told = run(window, anchors, frames, first, begin, told, iterations)
            points[:, here] = found
            for kept, new in zip(logits, told, strict=True):
                kept[:, here] = new
        return STRIDE * points[:, :T], logits[0][:, :T].sigmoid()

    @staticmethod
    def carried(values: Tensor, first: int, step: int) -> Tensor:
        old = values[:, first : first + step]
        return torch.cat([old, old[:, -1:].repeat_interleave(step, dim=1)], dim=1)

    @staticmethod
    def pyramid(maps: Tensor) -> list[Tensor]:
        levels = [maps]
        for _ in range(LEVELS - 1):
            smaller = F.avg_pool2d(levels[-1].flatten(0, 1), 2, stride=2)
            levels.append(smaller.unflatten(0, maps.shape[:2]))
        return levels

    def anchors(self, pyramid: list[Tensor], places: Tensor):
        """Version 2: a feature for each query; version 3: a window of them at each level."""
        read = []
        for i, level in enumerate(pyramid):
            points = places / places.new_tensor([2**i, 2**i, 1])
            points = points[:, :, None, None]
            if self.model.version == "3":
                points = points + F.pad(self.offsets, (0, 1))
            read.append(grid_sample(level.transpose(1, 2), points))
        return read[0][..., 0, 0].transpose(1, 2) if self.model.version == "2" else read

    # ---- version 2

    def window2(self, maps, anchors, frames, first, points, told, iterations):
        (B, S, N, _), (visibility,) = points.shape, told
        pyramid = self.pyramid(maps[0])
        active = frames < first + S
        t = torch.arange(S)[:, None]
        known = frames[:, None] <= first + t
        if first:
            known = known & (t >= S // 2)
        mask = active[:, None].expand(-1, S, -1).flatten(0, 1)
        place = grid_sample(self.pos_emb.expand(B, -1, -1, -1), points[:, 0, None])
        added = place[:, :, 0].permute(0, 2, 1)[:, :, None] + self.time_emb[:, None]
        features = (anchors * active[..., None])[:, None].repeat(1, S, 1, 1)
        for _ in range(iterations):
            corr = self.correlate(pyramid, features, points)
            flow = self.flow_embedding(points - points[:, :1])
            mask_and_sight = torch.stack([known.float(), visibility], dim=-1)
            tokens = torch.cat([flow, corr, features, mask_and_sight], dim=-1)
            tokens = tokens.permute(0, 2, 1, 3) + added
            delta = self.transform(tokens, mask).permute(0, 2, 1, 3)
            points = points + delta[..., :2]
            normed = self.update.norm(delta[..., 2:].reshape(B * S * N, -1))
            change = F.gelu(self.update.track_feat_updater(normed))
            features = features + change.view(B, S, N, -1)
        return points, self.update.vis_predictor(features)[..., 0]

    def correlate(self, pyramid, features, points):
        """Products with every pixel of the frame, then the windows of them."""
        B, S, N, C = features.shape
        found, centres = [], points.reshape(B * S * N, 1, 1, 2)
        for i, level in enumerate(pyramid):
            corr = torch.matmul(features, level.flatten(3)) / C**0.5
            corr = corr.view(B * S * N, 1, *level.shape[3:])
            read = grid_sample(corr, centres / 2**i + self.offsets)
            found.append(read.view(B, S, N, -1))
        return torch.cat(found, dim=-1)

    @staticmethod
    def flow_embedding(flow):
        frequencies = torch.arange(0, 64, 2) * (1000 / 64)
        parts = [flow]
        for coordinate in flow.split(1, dim=-1):
            waves = torch.zeros(*coordinate.shape[:-1], 64)
            waves[..., 0::2] = torch.sin(coordinate * frequencies)
            waves[..., 1::2] = torch.cos(coordinate * frequencies)
            parts.append(waves)
        return torch.cat(parts, dim=-1)

    # ---- version 3

    def window3(self, pyramid, anchors, frames, first, points, told, iterations):
        S, (visibility, confidence) = points.shape[1], told
        active = (frames < first + S)[:, None, :, None, None]
        anchors = [level * active for level in anchors]
        H, W = self.map_size
        size = points.new_tensor([W, H])
        for _ in range(iterations):
            corr = self.compare(pyramid, anchors, points)
            step = (points[:, :-1] - points[:, 1:]) / size
            motion = torch.cat(
                [F.pad(step, (0, 0, 0, 0, 0, 1)), F.pad(-step, (0, 0, 0, 0, 1, 0))], dim=-1
            )
            certainty = torch.stack([visibility, confidence], dim=-1)
            tokens = torch.cat([certainty, corr, self.position_code(motion)], dim=-1)
            tokens = tokens.permute(0, 2, 1, 3) + self.stretched_time(S)
            delta = self.transform(tokens, None).permute(0, 2, 1, 3)
            points = points + delta[..., :2]
            visibility, confidence = visibility + delta[..., 2], confidence + delta[..., 3]
        return points, visibility, confidence

    def compare(self, pyramid, anchors, points):
        """Windows of vectors from the frames, all products with those of the query, the MLP."""
        (B, S, N, _), found = points.shape, []
        for i, (level, anchor) in enumerate(zip(pyramid, anchors, strict=True)):
            centres = points.reshape(B * S, N, 1, 2) / 2**i
            around = centres + self.offsets.flatten(0, 1)
            read = grid_sample(level.flatten(0, 1), around).view(B, S, -1, N, 7, 7)
            products = torch.einsum("bscnhw,bcnij->bsnhwij", read, anchor)
            found.append(self.update.corr_mlp(products.reshape(B * S * N, -1)))
        return torch.cat(found, dim=-1).view(B, S, N, -1)

    def stretched_time(self, frames):
        if frames == self.time_emb.shape[1]:
            return self.time_emb[:, None]
        stretched = F.interpolate(self.time_emb.transpose(1, 2), size=frames, mode="linear")
        return stretched.transpose(1, 2)[:, None]

    @staticmethod
    def position_code(x):
        scales = 2.0 ** torch.arange(10)
        angles = (x[..., None, :] * scales[:, None]).flatten(-2)
        waves = torch.sin(torch.cat([angles, angles + math.pi / 2], dim=-1))
        return torch.cat([x, waves], dim=-1)

    # ---- the transformer of both

    def transform(self, tokens: Tensor, active: Tensor | None) -> Tensor:
        """Tokens (B, N, S, inputs) to (B, N, S, outputs); active is (B·S, N)."""
        former: Transformer = self.update.transformer
        (B, N, S, _), V = tokens.shape, former.virtual_tracks.shape[1]
        x = former.input_transform(tokens)
        x = torch.cat([x, former.virtual_tracks.repeat(B, 1, S, 1)], dim=1)
        D = x.shape[-1]
        for time_block, *space_blocks in former._layers():
            x = self_block(time_block, x.reshape(B * (N + V), S, D)).view(B, N + V, S, D)
            frames = x.permute(0, 2, 1, 3).reshape(B * S, N + V, D)
            points, virtual = frames[:, :N], frames[:, N:]
            virtual2point, virtual2virtual, point2virtual = space_blocks
            over_keys = None if active is None else added_mask(active)[:, None, None]
            virtual = cross_block(virtual2point, virtual, points, over_keys)
            virtual = self_block(virtual2virtual, virtual)
            over_queries = None if active is None else added_mask(active)[:, None, :, None]
            points = cross_block(point2virtual, points, virtual, over_queries)
            x = torch.cat([points, virtual], dim=1).view(B, S, N + V, D).permute(0, 2, 1, 3)
        x = x[:, :N]
        return torch.cat([head(x) for head in former._heads()], dim=-1)


def added_mask(active: Tensor) -> Tensor:
    return ~active * -torch.finfo(torch.float32).max


def attention(layer: nn.Module, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of all scores, written out."""
    (B, Q, D), h = x.shape, layer.heads
    q = layer.to_q(x).view(B, Q, h, D // h).permute(0, 2, 1, 3)
    k, v = (
        part.reshape(B, -1, h, D // h).permute(0, 2, 1, 3)
        for part in layer.to_kv(context).chunk(2, dim=-1)
    )
    scores = (q @ k.transpose(-2, -1)) * (D // h) ** -0.5
    if mask is not None:
        scores = scores + mask
    mixed = scores.softmax(dim=-1) @ v
    return layer.to_out(mixed.transpose(1, 2).reshape(B, Q, D))


def self_block(block: SelfBlock, x: Tensor) -> Tensor:
    normed = block.norm1(x)
    x = x + attention(block.attn, normed, normed, None)
    return x + mlp(block.mlp, block.norm2(x))


def cross_block(block: CrossBlock, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    context = block.norm_context(context)
    x = x + attention(block.cross_attn, block.norm1(x), context, mask)
    return x + mlp(block.mlp, block.norm2(x))


def mlp(layers: MLP, x: Tensor) -> Tensor:
    return layers.fc2(F.gelu(layers.fc1(x), approximate="tanh"))
