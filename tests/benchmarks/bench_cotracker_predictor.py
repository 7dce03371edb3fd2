"""CoTracker's memory: of a point, and of a video that arrives.

Run by hand: `python tests/benchmarks/bench_cotracker_predictor.py [--points] [--online]`. Peaks are
those that Linux keeps for a process (VmHWM), each in a process of its own.
"""

import argparse
import os
import subprocess
import sys

START = """
import torch
from fourfold.cotracker.cotracker import CoTracker
from fourfold.cotracker.predictor import OnlinePredictor, Predictor, bytes_per_point

torch.set_num_threads(1)
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


def told(program: str) -> str:
    """What a program prints. Freed memory goes back at once, so that peaks are those of tensors."""
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", START + program]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    return run.stdout.rstrip()


def points() -> None:
    print("a point of the released sizes, 24 frames:")
    for name, (version, mode, counts) in SIZES.items():
        print(f"  {name:<20}", told(POINTS.format(version=version, mode=mode, counts=counts)))


def online() -> None:
    print("36 points, frames of 96 × 128, a small model:")
    for kind in ("online", "offline"):
        for frames in (200, 1000):
            said = told(ARRIVING.format(kind=kind, frames=frames))
            print(f"  {kind:<8} {frames:>5} frames {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", action="store_true", help="the memory of a point")
    parser.add_argument("--online", action="store_true", help="memory against a video's length")
    options = parser.parse_args()
    if not (options.points or options.online):
        parser.error("expected --points, --online or both")
    if options.points:
        points()
    if options.online:
        online()


if __name__ == "__main__":
    main()
