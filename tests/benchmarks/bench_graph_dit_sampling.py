"""Graph DiT's sampling beside the released structure, written plainly: time and peak memory.

Run by hand: `python tests/benchmarks/bench_graph_dit_sampling.py [--threads 2] [--repeats 3]`.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time

import torch
from plain_graph_dit import guided, plain_sample

from fourfold.graph_dit.denoiser import GraphDiT
from fourfold.graph_dit.diffusion import reverse_step, sample, starting_graph
from fourfold.graph_dit.graphs import Vocabulary, encode_smiles
from fourfold.graph_dit.noise import GraphNoise, graph_statistics
from fourfold.kit.molecules import nci_smiles

BAR_TIME, BAR_MEMORY = 0.4, 1 / 3

MEMORY = """
import sys
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads({threads})
from bench_graph_dit_sampling import setting, plain_sample, sample
held = lambda kind: 1024 * int(open("/proc/self/status").read().split(kind + ":")[1].split()[0])
model, noise, sizes, y = setting({N}, {width}, {depth}, 2, {count})
sample(model, noise, sizes[:1], y[:1])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = held("VmRSS")
{way}(model, noise, sizes, y, guidance=2.0)
print(held("VmHWM") - before)
"""


def setting(N: int, width: int, depth: int, steps: int, count: int, kind: str = "graph"):
    """A model of random weights, noise with statistics of real molecules, sizes and properties."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(("C", "N", "O", "F", "P", "S", "Cl", "Br"), N)
    codes, *_ = encode_smiles(nci_smiles()[:1500], vocabulary)
    noise = GraphNoise(graph_statistics(codes, vocabulary), steps, kind)
    heads = 8
    model = GraphDiT(8, N, [("numeric", 1), ("numeric", 1)], width=width, depth=depth, heads=heads)
    with torch.no_grad():
        for parameter in model.parameters():  # AdaLN starts at 0, where no property matters
            parameter.add_(0.02 * torch.randn_like(parameter))
    sizes = torch.multinomial(noise.statistics.sizes, count, True)
    return model.eval(), noise, sizes, torch.randn(count, 2)


def seconds(way, repeats: int) -> float:
    way()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        way()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def agreement(model, noise, sizes, y) -> float:
    """The largest difference of the guided probabilities that the plain code and ours give."""
    graph = starting_graph(noise, sizes, torch.Generator().manual_seed(0))
    worst = 0.0
    for t in (1, noise.steps // 2, noise.steps - 1):
        with torch.no_grad():
            ours = reverse_step(model, noise, graph, y, t - 1, t, 2.0)
            theirs = guided(model, noise, *graph, y, t, 2.0)
        mask = graph.mask
        pairs = mask[:, :, None] & mask[:, None, :] & ~torch.eye(mask.shape[1], dtype=torch.bool)
        for a, b, where in zip(ours, theirs, (mask, pairs), strict=True):
            worst = max(worst, (a - b)[where].abs().max().item())
    return worst


def torch_molecule_seconds(N: int, steps: int, count: int, repeats: int) -> float | None:
    """torch-molecule's sampling at the same sizes, where it is installed."""
    if importlib.util.find_spec("torch_molecule") is None:
        return None
    from torch_molecule import GraphDITMolecularGenerator

    sizes = {"num_layer": 4, "hidden_size": 128, "num_head": 8, "drop_condition": 0.1}
    generator = GraphDITMolecularGenerator(
        **sizes, timesteps=steps, epochs=1, batch_size=64, task_type=["regression"], device="cpu"
    )
    smiles = [s for s in nci_smiles() if len(s) < N][:64]
    generator.fit(smiles, torch.randn(len(smiles), 1).numpy())
    labels, nodes = torch.zeros(count, 1), torch.full((count, 1), N)
    return seconds(
        lambda: generator.generate(labels=labels, num_nodes=nodes, batch_size=count), repeats
    )


def memory(way: str, threads: int, **values) -> int:
    folder = str(__import__("pathlib").Path(__file__).parent)
    code = MEMORY.format(way=way, threads=threads, folder=folder, **values)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(told.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--count", type=int, default=32, help="molecules")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    model, noise, sizes, y = setting(20, 128, 4, 50, chosen.count)
    worst = agreement(model, noise, sizes, y)
    print(f"guided probabilities differ from the plain code's by up to {worst:.1e}")
    assert worst < 1e-5
    print(
        f"\n{chosen.count} molecules, N = 20, width 128, depth 4, T = 50, guidance 2: CPU seconds"
    )
    plain = seconds(lambda: plain_sample(model, noise, sizes, y), chosen.repeats)
    ours = seconds(lambda: sample(model, noise, sizes, y), chosen.repeats)
    print(f"  released structure {plain:6.2f}\n  ours               {ours:6.2f}")
    print(f"  ratio              {ours / plain:6.2f}, bar {BAR_TIME}")
    other = torch_molecule_seconds(20, 50, chosen.count, chosen.repeats)
    print("  torch-molecule     " + ("not installed" if other is None else f"{other:6.2f}"))
    wide = {"N": 50, "width": 256, "depth": 6, "count": chosen.count}
    print("\npeak memory beyond the model, N = 50, width 256, depth 6, two steps")
    plain, ours = (memory(way, chosen.threads, **wide) for way in ("plain_sample", "sample"))
    print(f"  released structure {plain / 1e6:6.0f} MB\n  ours               {ours / 1e6:6.0f} MB")
    print(f"  ratio              {ours / plain:6.2f}, bar {BAR_MEMORY:.2f}")


if __name__ == "__main__":
    main()
