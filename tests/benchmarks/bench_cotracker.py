"""CoTracker's memory and time, measured in processes of their own.

Run by hand: `python tests/benchmarks/bench_cotracker.py --virtual [--threads 2]`, or with
--points or --online.
"""

import argparse
import os
import subprocess
import sys

import torch

DENSE = 265 * 265  # the points of the paper's abstract, as a square grid
LIMIT = 8e9  # bytes

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads that PyTorch uses")
    parser.add_argument("--virtual", action="store_true", help="memory and time against points")
    parser.add_argument("--points", action="store_true", help="memory of a point, and its bound")
    parser.add_argument("--online", action="store_true", help="memory against a video's length")
    parser.add_argument("--depth", type=int, default=6, help="layers of the transformer")
    parser.add_argument("--most", type=int, default=DENSE, help="points at most")
    options = parser.parse_args()
    if min(options.threads, options.depth, options.most) < 1:
        parser.error("expected at least one thread, one layer and one point")
    print(f"torch {torch.__version__}, {options.threads} threads, float32")
    if options.virtual:
        virtual(options.threads, options.depth, options.most)
    if options.points:
        points(options.threads)
    if options.online:
        online(options.threads)


if __name__ == "__main__":
    main()
