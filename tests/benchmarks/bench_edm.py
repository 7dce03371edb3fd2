"""A training step of the EGNN beside the released structure, written plainly: time and memory.

Run by hand: `python tests/benchmarks/bench_edm.py [--threads 2] [--repeats 30] [--count 64]`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from plain_edm import PlainEGNN

from fourfold.syco.egnn import EGNN
from fourfold.syco.lifting import center

BAR = 0.6
FEATURES = 7  # four types, a charge, the time, one latent number

MEMORY = """
import sys
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads({threads})
from bench_edm import setting, training_step
held = lambda kind: 1024 * int(open("/proc/self/status").read().split(kind + ":")[1].split()[0])
models, batch = setting({count}, {N}, {width}, {depth})
step = training_step(models[{which}])
step(*batch)  # loads code, and makes AdamW's moments
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = held("VmRSS")
step(*batch)
print(held("VmHWM") - before)
"""


def setting(count: int, N: int, width: int, depth: int):
    """The plain network and ours with the same weights, and a batch of clouds of 7 to 9 points."""
    torch.manual_seed(0)
    ours = EGNN(FEATURES, width, depth)
    plain = PlainEGNN(FEATURES, width, depth)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():  # steps of the coordinates start near 0
            if name.endswith("coordinates.mlp.4.weight"):
                parameter.mul_(100)
    plain.load_state_dict(ours.state_dict())
    sizes = torch.randint(max(1, N - 2), N + 1, (count,))
    mask = torch.arange(N) < sizes[:, None]
    real = mask[..., None]
    x, noise = (center(torch.randn(count, N, 3), mask) for _ in range(2))
    h, target = (torch.randn(count, N, FEATURES) * real for _ in range(2))
    return (plain, ours), (h, x, mask, target, noise)


def loss_of(model, h, x, mask, target, noise):
    """The mean squared error of guessed noise, of the features and of the coordinates."""
    features, moved = model(h, x, mask)
    velocity = center(moved - x, mask)
    return (features - target).square().mean() + (velocity - noise).square().mean()


def training_step(model):
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, amsgrad=True, weight_decay=1e-12)

    def step(*batch):
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(model, *batch)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def disagreement(models, batch) -> tuple[float, float]:
    """The largest relative difference of the two losses' values and gradients."""
    losses = [loss_of(model, *batch) for model in models]
    gradients = [
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for loss, model in zip(losses, models, strict=True)
    ]
    worst = max(
        ((ours - plain).abs().max() / plain.abs().max().clamp(min=1e-3)).item()
        for plain, ours in zip(*gradients, strict=True)
        if plain is not None
    )
    return abs(losses[1] / losses[0] - 1).item(), worst


def seconds(steps, batch, repeats: int) -> list[float]:
    """The median CPU time of a step of each model, taken in turns."""
    times = [[] for _ in steps]
    for turn in range(repeats + 3):
        for step, own in zip(steps, times, strict=True):
            begin = time.process_time()
            step(*batch)
            if turn >= 3:
                own.append(time.process_time() - begin)
    return [statistics.median(own) for own in times]


def memory(which: int, threads: int, **sizes) -> int:
    """The peak beyond what is held before the step, in bytes, in a process of its own."""
    code = MEMORY.format(which=which, threads=threads, folder=str(Path(__file__).parent), **sizes)
    # Every larger tensor is then given back to the system as soon as it is freed.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    return int(told.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--count", type=int, default=64, help="clouds of a batch")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    sizes = {"count": chosen.count, "N": 9, "width": 64, "depth": 4}
    models, batch = setting(**sizes)
    value, gradient = disagreement(models, batch)
    print(f"losses differ by {value:.1e}, gradients by {gradient:.1e} of the largest entry")
    assert value < 1e-5 and gradient < 1e-4
    print(f"\n{sizes}, attention, tanh: one training step, CPU milliseconds")
    plain, ours = seconds([training_step(model) for model in models], batch, chosen.repeats)
    print(f"  released structure {1e3 * plain:6.1f}\n  ours               {1e3 * ours:6.1f}")
    print(f"  ratio              {ours / plain:6.2f}, bar {BAR}")
    print("\npeak memory of the step beyond model, optimiser and batch")
    plain, ours = (memory(which, chosen.threads, **sizes) for which in (0, 1))
    print(f"  released structure {plain / 1e6:6.0f} MB\n  ours               {ours / 1e6:6.0f} MB")
    print(f"  ratio              {ours / plain:6.2f}, bar {BAR}")


if __name__ == "__main__":
    main()
