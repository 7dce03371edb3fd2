"""Time and memory of the bilinear sampler and of the window, as ratios in one run.

Run by hand: `python tests/benchmarks/bench_bilinear_sampling.py [--threads 2] [--seconds 1]`.
"""

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from torch.profiler import ProfilerActivity, profile

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.bilinear_sampling.window import sample_window

Calls = dict[str, Callable[[], object]]


def best_seconds(calls: Calls, seconds: float) -> dict[str, float]:
    """The fastest turn of each call.

    The calls take turns, so that all meet the same weather, and each turn begins with another one:
    the call after a slow one finds cold caches and sleeping threads.
    """
    for call in calls.values():
        call()
    turns: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end or len(next(iter(turns.values()))) < 5:
        order = order[1:] + order[:1]
        for name in order:
            start = time.perf_counter()
            calls[name]()
            turns[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in turns.items()}


def peak_mebibytes(call: Callable[[], object]) -> float:
    """The most memory that PyTorch holds during the call beyond what it held before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        result = call()
    del result
    held = peak = 0
    for event in recording.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def growth(sizes: list[float], times: list[float]) -> float:
    """The exponent p of time ~ size^p: the slope of a straight line through the logarithms."""
    slope, _ = np.polyfit(np.log(sizes), np.log(times), 1)
    return float(slope)


def row(label: str, cells: list[str]) -> None:
    print(f"  {label:<30}" + "".join(f"{cell:>16}" for cell in cells))


def forward_and_backward(
    function: Callable[..., torch.Tensor], image: torch.Tensor, *arguments
) -> Callable[[], object]:
    """A call that also computes the gradient with respect to the image."""
    leaf = image.clone().requires_grad_()

    def call():
        result = function(leaf, *arguments)
        return torch.autograd.grad(result, leaf, torch.ones_like(result))

    return call


# Reading a whole picture


def by_grid_sample(image, points):
    """Normalise and call grid_sample, as one writes it without the course."""
    size = points.new_tensor([image.shape[3], image.shape[2]])
    return F.grid_sample(image, (2 * points + 1) / size - 1, align_corners=False)


def by_scipy(image, points):
    places = points.flip(-1).movedim(-1, 0)
    return np.stack([map_coordinates(channel, places, order=1) for channel in image])


def warp_points(height: int, width: int) -> torch.Tensor:
    """A smooth warp that moves every pixel by up to 8 pixels, (1, H, W, 2)."""
    grid = pixel_grid(height, width)
    return (grid + 8 * torch.sin(grid.flip(-1) / 40))[None]


def picture(seconds: float) -> None:
    print("\nA warp of every pixel: sample, normalising and grid_sample, scipy's map_coordinates")
    print("forward, time per pixel and relative to sample\n")
    sizes, times = [], []
    row("image", ["sample ns/px", "grid_sample", "scipy"])
    for shrink in (8, 4, 2, 1):
        height, width = 1080 // shrink, 1920 // shrink
        image, points = 255 * torch.rand(1, 3, height, width), warp_points(height, width)
        array, places = image[0].numpy(), points[0].clone()
        calls = {
            "sample": lambda i=image, p=points: sample(i, p),
            "grid_sample": lambda i=image, p=points: by_grid_sample(i, p),
            "scipy": lambda a=array, p=places: by_scipy(a, p),
        }
        best = best_seconds(calls, seconds / 3)
        sizes.append(height * width)
        times.append(best["sample"])
        cells = [f"{best['sample'] / sizes[-1] * 1e9:.1f}"]
        cells += [f"{best[name] / best['sample']:.2f}" for name in ("grid_sample", "scipy")]
        row(f"1 × 3 × {height} × {width}", cells)
    print(f"\n  sample grows as pixels^{growth(sizes, times):.2f}")

    back = {
        "sample": forward_and_backward(sample, image, points),
        "grid_sample": forward_and_backward(by_grid_sample, image, points),
    }
    best = best_seconds(back, seconds)
    print(
        f"  forward and backward, full size: grid_sample takes"
        f" {best['grid_sample'] / best['sample']:.2f} of sample's time"
    )
    for name in ("sample", "grid_sample"):
        print(f"  peak memory of {name}, forward: {peak_mebibytes(calls[name]):.0f} MiB")


# Reading windows


def window_by_points(maps, centres, radius):
    """Sample each of the (2r + 1)² points: maps (N, 1, h, w), centres (N, 2)."""
    offsets = pixel_grid(2 * radius + 1, 2 * radius + 1) - radius
    return sample(maps, centres[:, None, None] + offsets)


def look_up(height: int, width: int, level: int) -> tuple[torch.Tensor, torch.Tensor]:
    """RAFT's shapes: a map for each pixel at that level, and centres a few pixels from it."""
    centres = pixel_grid(height, width).flatten(0, 1) / 2**level
    centres = centres + 5 / 2**level * torch.randn(centres.shape)
    return torch.randn(height * width, 1, height >> level, width >> level), centres


def compare_windows(maps, centres, radius, seconds) -> tuple[list[str], dict[str, float]]:
    """One line of the table, and the times forward."""
    forward = best_seconds(
        {
            "points": lambda: window_by_points(maps, centres, radius),
            "patch": lambda: sample_window(maps, centres, radius),
        },
        seconds / 2,
    )
    back = best_seconds(
        {
            "points": forward_and_backward(window_by_points, maps, centres, radius),
            "patch": forward_and_backward(sample_window, maps, centres, radius),
        },
        seconds / 2,
    )
    memory = [
        peak_mebibytes(lambda f=function: f(maps, centres, radius))
        for function in (window_by_points, sample_window)
    ]
    cells = [
        f"{1000 * forward['patch']:.2f}",
        f"{forward['points'] / forward['patch']:.2f}",
        f"{back['points'] / back['patch']:.2f}",
        f"{memory[0]:.1f} / {memory[1]:.1f}",
    ]
    return cells, forward


HEADER = ["patch ms", "points/patch", "with backward", "peak MiB"]


def windows(seconds: float) -> None:
    print("\nWindows of RAFT's look-up, 440 × 1024 at 1/8: sampling each point against the patch")
    print("time of the patch; its speed-up forward, and with the gradient to the maps; peak memory")
    print("of points / patch, forward\n")
    row("radius 4", HEADER)
    ratios, total = [], {"points": 0.0, "patch": 0.0}
    for level in range(4):
        maps, centres = look_up(55, 128, level)
        cells, forward = compare_windows(maps, centres, 4, seconds)
        ratios.append(forward["points"] / forward["patch"])
        total = {name: total[name] + forward[name] for name in total}
        row(f"level {level}: 7040 × 1 × {55 >> level} × {128 >> level}", cells)
    print(
        f"\n  median speed-up {statistics.median(ratios):.2f},"
        f" of all four levels together {total['points'] / total['patch']:.2f}\n"
    )

    row("level 0", HEADER)
    maps, centres = look_up(55, 128, 0)
    by_radius = {}
    for radius in range(1, 5):
        cells, by_radius[radius] = compare_windows(maps, centres, radius, seconds)
        row(f"radius {radius}", cells)
    print_growth("points of a window", [(2 * r + 1) ** 2 for r in by_radius], by_radius.values())

    row("level 1, radius 4", HEADER)
    by_count = {}
    for height, width in ((14, 32), (28, 64), (55, 128), (68, 160)):
        maps, centres = look_up(height, width, 1)
        cells, by_count[height * width] = compare_windows(maps, centres, 4, seconds)
        row(f"{height * width} maps of {height // 2} × {width // 2}", cells)
    print_growth("maps", list(by_count), by_count.values())


def print_growth(what: str, sizes: list[int], times) -> None:
    points, patch = (growth(sizes, [each[name] for each in times]) for name in ("points", "patch"))
    print(f"\n  grows with the number of {what}: points ^{points:.2f}, patch ^{patch:.2f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="threads that PyTorch uses")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each call measured")
    options = parser.parse_args()
    if options.threads < 1 or not 0 < options.seconds < math.inf:
        parser.error("expected at least one thread and a positive number of seconds")
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, best of many turns, float32")
    picture(options.seconds)
    windows(options.seconds)


if __name__ == "__main__":
    main()
