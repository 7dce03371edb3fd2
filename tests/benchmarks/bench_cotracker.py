"""CoTracker's memory and time, measured in processes of their own.

Run by hand: `python tests/benchmarks/bench_cotracker.py --virtual [--threads 2] [--depth 6]`.
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads that PyTorch uses")
    parser.add_argument("--virtual", action="store_true", help="memory and time against points")
    parser.add_argument("--depth", type=int, default=6, help="layers of the transformer")
    parser.add_argument("--most", type=int, default=DENSE, help="points at most")
    options = parser.parse_args()
    if min(options.threads, options.depth, options.most) < 1:
        parser.error("expected at least one thread, one layer and one point")
    print(f"torch {torch.__version__}, {options.threads} threads, float32")
    if options.virtual:
        virtual(options.threads, options.depth, options.most)


if __name__ == "__main__":
    main()
