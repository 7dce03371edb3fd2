"""CoTracker's time beside a plain model of the released structure, and its memory.

Run by hand: `python tests/benchmarks/bench_cotracker.py [--threads 2] [--repeats 3]` for the time;
with --virtual, --points or --online for what each measures in processes of its own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch
from plain_cotracker import PlainCoTracker
from torch import nn

from fourfold.cotracker.cotracker import CoTracker

DENSE = 265 * 265  # the points of the paper's abstract, as a square grid
LIMIT = 8e9  # bytes
BAR = 0.7  # of the released structure's time

ACROSS = """
import time, torch
from fourfold.cotracker import transformer as t
torch.manual_seed(0)
torch.set_num_threads({threads})
torch.set_grad_enabled(False)
# Not getrusage: its peak would begin with that of the process which started this one.
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
S, D, h = 8, 384, 8
layer = t.Transformer(456, 130, D, h, depth=1)
pairs = t.SelfBlock(D, h)

def written_out(x):
    normed = pairs.norm1(x)
    k, v = pairs.attn.to_kv(normed).chunk(2, dim=-1)
    q, k, v = (y.unflatten(-1, (h, -1)).transpose(1, 2) for y in (pairs.attn.to_q(normed), k, v))
    mixed = ((q @ k.mT / (D // h) ** 0.5).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    x = x + pairs.attn.to_out(mixed)
    return x + pairs.mlp(pairs.norm2(x))

def through_virtual(x):
    virtual = layer.virtual_tracks.transpose(1, 2).expand(1, S, -1, -1)
    blocks = next(iter(layer._layers()))[1:]
    return t._all_frames(blocks, x[None], virtual, None, False)

way = {{"written": written_out, "fused": pairs, "virtual": through_virtual}}["{way}"]
way(torch.randn(S, 16, D))
before = peak()
x = torch.randn(S, {points}, D)
begin = time.perf_counter()
way(x)
print(peak() - before, time.perf_counter() - begin)
"""

WHOLE = """
import time, torch
from fourfold.cotracker.transformer import Transformer
torch.manual_seed(0)
torch.set_num_threads({threads})
torch.set_grad_enabled(False)
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
model = Transformer(456, 130, depth={depth})
model(torch.randn(1, 16, 8, 456))
tokens = torch.randn(1, {points}, 8, 456)
before = peak()
begin = time.perf_counter()
model(tokens)
print(peak() - before, time.perf_counter() - begin)
"""


def measured(program: str, **values) -> tuple[float, float]:
    """The bytes and the seconds that a program of its own says it took."""
    code = program.format(**values)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, seconds = map(float, told.stdout.split())
    return size, seconds


def virtual(threads: int, depth: int, most: int) -> None:
    """One step across tracks, all pairs and through 64 virtual tracks; then the transformer."""
    print("\none step across tracks: 8 frames, width 384, 8 heads, float32, no gradients")
    print(f"  {'points':>7}  {'way':<8}  {'MB':>8}  {'s':>8}")
    rows = {}
    for way, end in (("written", 2048), ("fused", 8192), ("virtual", most)):
        sizes = [n for n in (128, 512, 2048, 8192, 32_768, DENSE) if n <= end]
        for points in sizes:
            rows[way, points] = measured(ACROSS, threads=threads, way=way, points=points)
            size, seconds = rows[way, points]
            print(f"  {points:>7,}  {way:<8}  {size / 1e6:>8.0f}  {seconds:>8.2f}", flush=True)
    full = 2048 * (LIMIT / rows["written", 2048][0]) ** 0.5
    print(f"  written out, all pairs pass 8 GB near {full:,.0f} points, by the square of N")
    print(f"\nthe transformer, {depth} layers, window of 8: bytes beyond model and input")
    for points in [n for n in (2048, 8192, DENSE) if n <= most]:
        size, seconds = measured(WHOLE, threads=threads, depth=depth, points=points)
        each = f"{size / points:8,.0f} a point"
        print(f"  {points:>7,} points  {size / 1e9:5.2f} GB  {each}  {seconds:8.1f} s", flush=True)


START = """
import torch
from fourfold.cotracker.cotracker import CoTracker
from fourfold.cotracker.predictor import OnlinePredictor, Predictor, bytes_per_point

torch.set_num_threads({threads})
torch.manual_seed(0)

def held(kind="VmHWM"):
    return 1024 * int(open("/proc/self/status").read().split(kind + ":")[1].split()[0])
"""

POINTS = """
model = CoTracker({version!r}, mode={mode!r}, depth=1, widths=(8, 8, 8, 8), resolution=(96, 128))
predictor, peaks = Predictor(model.eval(), iterations=1), []
video = predictor.encode(255 * torch.rand(1, 24, 3, 96, 128))
for count in {counts}:
    queries = torch.rand(1, count, 3) * torch.tensor([0.0, 127.0, 95.0])
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = held("VmRSS")
    predictor(video, queries, support=0)
    peaks.append(held() - before)
slope = (peaks[1] - peaks[0]) / ({counts}[1] - {counts}[0])
bound = bytes_per_point(model, 24)
print(f"{{slope / 1e3:7.1f}} kB, the bound is {{bound / 1e3:.1f}} kB, {{bound / slope:.2f}} times")
"""

ARRIVING = """
sizes = dict(window=8, width=128, depth=3, heads=4, virtual_tracks=16, features=64, levels=2)
model = CoTracker("2", **sizes, widths=(24, 32, 48, 64), resolution=(96, 128)).eval()
shown = 255 * torch.rand(8, 3, 96, 128)
kind, frames = {kind!r}, {frames}
before = held()
if kind == "online":
    online = OnlinePredictor(model, grid=6, iterations=4)
    for _ in range(0, frames, 8):
        online.push(shown)
    online.finish()
else:
    Predictor(model, iterations=4)((shown[t % 8] for t in range(frames)), grid=6)
print(f"{{(held() - before) / 1e6:7.1f}} MB more than before the first frame")
"""

SIZES = {
    "version 2": ("2", "offline", (2000, 4000)),
    "version 3, online": ("3", "online", (500, 900)),
    "version 3, offline": ("3", "offline", (400, 700)),
}


def told(program: str, threads: int) -> str:
    """What a program prints. Freed memory goes back at once, so that peaks are those of tensors."""
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", START.format(threads=threads) + program]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    return run.stdout.rstrip()


def points(threads: int) -> None:
    print("a point of the released sizes, 24 frames:")
    for name, (version, mode, counts) in SIZES.items():
        program = POINTS.format(version=version, mode=mode, counts=counts)
        print(f"  {name:<20}", told(program, threads), flush=True)


def online(threads: int) -> None:
    print("36 points, frames of 96 × 128, a small model:")
    for kind in ("online", "offline"):
        for frames in (200, 1000):
            said = told(ARRIVING.format(kind=kind, frames=frames), threads)
            print(f"  {kind:<8} {frames:>5} frames {said}", flush=True)


def random_model(version: str, mode: str) -> CoTracker:
    """A model of the released sizes, whose points move by some pixels at every iteration."""
    torch.manual_seed(0)
    model = CoTracker(version, mode=mode).eval()
    nn.init.normal_(model.update.transformer.flow_head.weight, std=0.002)
    if version == "2":
        # The waves of the motion turn rounding of 1e-6 into 1e-3; weights that let all of them
        # through would make two right orders of work differ by pixels.
        model.update.transformer.input_transform.weight.data[:, 2:130] *= 0.001
    return model


def made_up(frames: int, size: tuple[int, int], points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A video of noise that drifts, and queries, a quarter of which begin late."""
    H, W = size
    torch.manual_seed(1)
    coarse = torch.rand(1, 3, H // 8 + frames, W // 8 + frames)
    coarse = nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(0, 1)
    video = torch.stack([coarse[..., 3 * t :, 2 * t :][..., :H, :W] for t in range(frames)], dim=1)
    queries = torch.rand(1, points, 3) * torch.tensor([frames / 2, W - 1.0, H - 1.0])
    queries[..., 0] = queries[..., 0].floor()
    queries[:, : 3 * points // 4, 0] = 0
    return 255 * video, queries


class Stopwatch:
    """The seconds of a call, and those of them that encoders took."""

    def __init__(self, *encoders: nn.Module) -> None:
        self.encoding = 0.0
        for encoder in encoders:
            encoder.register_forward_pre_hook(self._begin)
            encoder.register_forward_hook(self._end)

    def _begin(self, *_) -> None:
        self.begun = time.perf_counter()

    def _end(self, *_) -> None:
        self.encoding += time.perf_counter() - self.begun

    def __call__(self, call, *arguments) -> tuple[float, float, float]:
        """Seconds of the encoder, of all else, and of the whole."""
        self.encoding, begun = 0.0, time.perf_counter()
        call(*arguments)
        whole = time.perf_counter() - begun
        return self.encoding, whole - self.encoding, whole


@torch.no_grad()
def compare(name: str, model: CoTracker, frames: int, size, points: int, repeats: int) -> None:
    """Ours and the plain model in turns, with the same weights and input."""
    video, queries = made_up(frames, size, points)
    plain = PlainCoTracker(model)
    watch = Stopwatch(model.fnet, plain.fnet)
    tracks, (theirs, sight) = model(video, queries), plain(video, queries)
    gap = (tracks.points - theirs).abs().max().item()
    moved = (theirs - queries[:, None, :, 1:]).abs().mean().item()
    # The same numbers up to rounding, or the times would compare different things; and numbers
    # that the queries do not tell already.
    assert gap <= 1e-3, f"{name}: points differ by {gap:.2g} px"
    assert (tracks.visibility - sight).abs().max() <= 1e-3
    assert moved > 1, f"{name}: points move by {moved:.2g} px, too little to compare"
    times = {"released structure": [], "course": []}
    for _ in range(repeats):
        for way, call in zip(times, (plain, model), strict=True):
            times[way].append(watch(call, video, queries))
    print(f"\n{name}: points differ by at most {gap:.1g} px, {moved:.0f} px from their queries")
    print(f"  {'seconds':<20} {'encoder':>8} {'update':>8} {'whole':>8}")
    medians = {}
    for way, turns in times.items():
        medians[way] = [statistics.median(part) for part in zip(*turns, strict=True)]
        print(f"  {way:<20} " + " ".join(f"{value:8.2f}" for value in medians[way]))
    ratios = [ours / other for other, ours in zip(*medians.values(), strict=True)]
    said = "holds" if ratios[-1] <= BAR else "is missed"
    row = " ".join(f"{value:8.2f}" for value in ratios)
    print(f"  {'ratio':<20} {row}   the bar of {BAR} {said}", flush=True)


def beside_plain(frames: int, size: tuple[int, int], points: int, repeats: int) -> None:
    print(
        f"{frames} frames of {size[0]} × {size[1]}, {points} points, 6 iterations, "
        f"median of {repeats} turns"
    )
    for name, version, mode in (
        ("version 2", "2", "offline"),
        ("version 3, offline", "3", "offline"),
        ("version 3, online", "3", "online"),
    ):
        model = random_model(version, mode)
        if not model.whole_clip and frames <= model.window // 2:
            print(f"\n{name}: left out, since it needs more than {model.window // 2} frames")
            continue
        compare(name, model, frames, size, points, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads that PyTorch uses")
    parser.add_argument("--virtual", action="store_true", help="memory and time against points")
    parser.add_argument("--points", action="store_true", help="memory of a point, and its bound")
    parser.add_argument("--online", action="store_true", help="memory against a video's length")
    parser.add_argument("--depth", type=int, default=6, help="layers of the transformer")
    parser.add_argument("--most", type=int, default=DENSE, help="points at most, with --virtual")
    parser.add_argument("--repeats", type=int, default=3, help="turns of the time")
    parser.add_argument("--frames", type=int, default=24, help="of the video, for the time")
    parser.add_argument("--size", type=int, nargs=2, default=(384, 512), help="height and width")
    parser.add_argument("--queries", type=int, default=100, help="points, for the time")
    options = parser.parse_args()
    counts = options.threads, options.depth, options.most, options.repeats, options.queries
    if min(*counts, options.frames) < 1:
        parser.error("expected at least one thread, layer, point, turn, query and frame")
    print(f"torch {torch.__version__}, {options.threads} threads, float32")
    if not (options.virtual or options.points or options.online):
        torch.set_num_threads(options.threads)
        beside_plain(options.frames, tuple(options.size), options.queries, options.repeats)
    if options.virtual:
        virtual(options.threads, options.depth, options.most)
    if options.points:
        points(options.threads)
    if options.online:
        online(options.threads)


if __name__ == "__main__":
    main()
