"""RAFT's time and memory beside a plain model of the released structure, as ratios in one run.

Run by hand: `python tests/benchmarks/bench_raft.py [--threads 2] [--turns 5] [--large] [--train]`.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from plain_norms import with_instance_norms
from torch import nn

from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.raft.learning import train_course
from fourfold.raft.raft import RAFT
from fourfold.raft.update import bilinear_upsample, convex_upsample


class Plain(nn.Module):
    """The same weights in the order of work that the release takes.

    Its instance norms go by way of batch norm. It reads every point of every window with
    grid_sample, convolves the context anew for each of the gates at every iteration, and makes the
    mask and the full-size flow at every iteration.
    """

    def __init__(self, raft: RAFT, on_demand: bool = False) -> None:
        super().__init__()
        self.raft, self.on_demand = raft, on_demand
        self.fnet = with_instance_norms(raft.fnet)

    @torch.no_grad()
    def forward(self, image1, image2, iterations=12):
        raft, (B, _, H, W) = self.raft, image1.shape
        image1, image2 = 2 * (image1 / 255) - 1, 2 * (image2 / 255) - 1
        first, second = self.fnet(torch.cat([image1, image2])).float().chunk(2)
        look_up = (self.features if self.on_demand else self.volume)(first, second)
        net, inp = raft.cnet(image1).split([raft.hidden, raft.context], dim=1)
        net, inp = net.tanh(), inp.relu()
        start = pixel_grid(H // 8, W // 8).permute(2, 0, 1).expand(B, -1, -1, -1)
        coords = start.clone()
        for _ in range(iterations):
            net, mask, delta = self.update(net, inp, look_up(coords), coords - start)
            coords = coords + delta
            flow = coords - start
            full = bilinear_upsample(flow) if mask is None else convex_upsample(flow, mask)
        return full

    def offsets(self):
        step = torch.arange(-self.raft.radius, self.raft.radius + 1.0)
        return torch.stack(torch.meshgrid(step, step, indexing="ij"), dim=-1)

    def volume(self, first, second):
        (B, D, H, W), levels = first.shape, []
        corr = first.flatten(2).transpose(1, 2) @ second.flatten(2) / D**0.5
        corr = corr.view(B * H * W, 1, *second.shape[2:])
        for _ in range(self.raft.levels):
            levels.append(corr)
            corr = F.avg_pool2d(corr, 2, stride=2)

        def look_up(coords):
            centres = coords.permute(0, 2, 3, 1).reshape(B * H * W, 1, 1, 2)
            found = []
            for i, level in enumerate(levels):
                points = centres / 2**i + self.offsets()
                found.append(self.grid_sample(level, points).view(B, H, W, -1))
            return torch.cat(found, dim=-1).permute(0, 3, 1, 2).contiguous()

        return look_up

    def features(self, first, second):
        levels, width = [second], first.shape[1]
        for _ in range(self.raft.levels - 1):
            levels.append(F.avg_pool2d(levels[-1], 2, stride=2))

        def look_up(coords):
            found, centres = [], coords.permute(0, 2, 3, 1)
            for i, level in enumerate(levels):
                for offset in self.offsets().flatten(0, 1):
                    read = self.grid_sample(level, centres / 2**i + offset)
                    found.append((first * read).sum(1) / width**0.5)
            return torch.stack(found, dim=1)

        return look_up

    @staticmethod
    def grid_sample(maps, points):
        H, W = maps.shape[-2:]
        points = 2 * points / points.new_tensor([W - 1, H - 1]) - 1
        return F.grid_sample(maps, points, align_corners=True)

    def update(self, net, inp, corr, flow):
        block = self.raft.update_block
        x = torch.cat([inp, block.encoder(flow, corr)], dim=1)
        small = block.mask is None
        for gru in [block.gru] if small else [block.gru.horizontal, block.gru.vertical]:
            hx = torch.cat([net, x], dim=1)
            z, r = gru.convz(hx).sigmoid(), gru.convr(hx).sigmoid()
            q = gru.convq(torch.cat([r * net, x], dim=1)).tanh()
            net = (1 - z) * net + z * q
        return net, None if small else block.mask(net), block.flow_head(net)


def torchvision_model(variant: str):
    """torchvision's model without weights, or None where torchvision is not installed."""
    try:
        from torchvision.models import optical_flow
    except Exception:  # It fails in many ways beside another build of PyTorch.
        return None
    name = {"full": "raft_large", "small": "raft_small"}[variant]
    return getattr(optical_flow, name)(weights=None).eval()


def median_seconds(calls: dict, turns: int) -> dict[str, float]:
    """The median time of each call, the calls taking turns after one round to warm up."""
    times = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(variant: str, turns: int, height: int = 440, width: int = 1024) -> None:
    torch.manual_seed(0)
    raft = RAFT(variant).eval()
    images = [255 * F.avg_pool2d(torch.rand(1, 3, height + 2, width + 2), 3, 1) for _ in range(2)]
    demand = RAFT(variant, correlation="on-demand").eval()
    demand.load_state_dict(raft.state_dict())
    plain = Plain(raft)
    # The same numbers up to rounding, or the times would compare different things.
    assert (plain(*images, 4) - raft.estimate(*images, 4).full).abs().max() < 1e-2
    calls = {
        "released structure": lambda: plain(*images),
        "course, all pairs": lambda: raft.estimate(*images, 12),
        "course, on demand": lambda: demand.estimate(*images, 12),
    }
    if model := torchvision_model(variant):
        scaled = [image / 127.5 - 1 for image in images]

        def torchvision():
            with torch.no_grad():
                return model(*scaled, num_flow_updates=12)[-1]

        calls["torchvision"] = torchvision
    seconds = median_seconds(calls, turns)
    base = seconds["released structure"]
    print(f"\n{variant}, 1 × 3 × {height} × {width}, 12 iterations, median of {turns} turns")
    for name, value in seconds.items():
        print(f"  {name:<20} {value:7.2f} s   {value / base:5.2f} of the released structure's")
    ratio = seconds["course, on demand"] / seconds["course, all pairs"]
    print(f"  on demand takes {ratio:.2f} times as long as all pairs")


LARGE = """
import torch
from fourfold.raft.raft import RAFT
torch.manual_seed(0)
torch.set_num_threads({threads})
raft = RAFT("{variant}", correlation="on-demand").eval()
images = [255 * torch.rand(1, 3, 1080, 1920) for _ in range(2)]
# Not getrusage: its peak would begin with that of the process which started this one.
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 2**20
before = peak()
import time
begin = time.perf_counter()
raft.estimate(*images, {iterations})
print(f"{{peak() - before:.2f}} GiB more than before, {{time.perf_counter() - begin:.0f}} s")
"""


def large(threads: int, iterations: int = 12) -> None:
    pixels = (1080 // 8) * (1920 // 8)
    print(
        f"\n1080 × 1920 on demand; the volume alone would hold {pixels**2 * 16 / 3 / 2**30:.1f} GiB"
    )
    for variant in ("small", "full"):
        code = LARGE.format(variant=variant, threads=threads, iterations=iterations)
        told = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        print(f"  {variant}, {iterations} iterations: {told.stdout.strip()}")


def train() -> None:
    """The recipe for ten minutes, from nothing: its error beside that of zero flow."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        trained = train_course(folder, recipe="quick", progress=False)
        minutes = (time.perf_counter() - begin) / 60
    print(f"\nthe quick recipe, {trained.steps:,} steps in {minutes:.1f} minutes, measured too")
    ours, seen, zero, zero_seen = trained.metrics.values()
    print(f"  held-out end-point error {ours:.2f} px, {ours / zero:.2f} of zero flow's")
    print(f"  on visible pixels        {seen:.2f} px, {seen / zero_seen:.2f} of zero flow's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads that PyTorch uses")
    parser.add_argument("--turns", type=int, default=5, help="times that each call is measured")
    parser.add_argument("--large", action="store_true", help="memory at 1080 × 1920 as well")
    parser.add_argument("--train", action="store_true", help="the training of ten minutes as well")
    options = parser.parse_args()
    if options.threads < 1 or options.turns < 1:
        parser.error("expected at least one thread and one turn")
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, float32")
    for variant in ("small", "full"):
        compare(variant, options.turns)
    if options.large:
        large(options.threads)
    if options.train:
        train()


if __name__ == "__main__":
    main()
