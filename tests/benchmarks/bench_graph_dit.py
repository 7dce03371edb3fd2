"""Graph DiT's parts beside what they replace: times and memory as ratios in one run.

Run by hand: `python tests/benchmarks/bench_graph_dit.py [posterior] [--threads 1] [--turns 20]`.
"""

import argparse
import gc
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fourfold.graph_dit.graphs import BONDS, Graphs, graph_tokens
from fourfold.graph_dit.noise import GraphNoise, GraphStatistics, _normalised

BAR = 50  # times as fast as a table for each row, at N = 50 and B = 32


def seconds(call: Callable[[], object], turns: int) -> float:
    """The fastest turn, in processor time: other programs do not count."""
    call()
    times = []
    for _ in range(turns):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def peak_megabytes(call: Callable[[], object]) -> float:
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
    return peak / 1e6


# The posterior: a table for each row, products of matrices, factored


def random_case(N: int, B: int, A: int = 8) -> tuple[GraphNoise, Graphs, list[Tensor]]:
    torch.manual_seed(0)
    K = len(BONDS)
    tables = (torch.rand(*shape).softmax(-1) for shape in ((A,), (K,), (A, K), (K, A)))
    noise = GraphNoise(GraphStatistics(*tables, torch.rand(A, K), torch.zeros(N + 1)))
    mask = torch.arange(N) < torch.randint(N // 3, N + 1, (B, 1))
    pairs = mask[:, :, None] & mask[:, None, :]
    X = torch.eye(A)[torch.randint(A, (B, N))] * mask[..., None]
    E = torch.eye(K)[torch.randint(K, (B, N, N))] * pairs[..., None]
    return noise, Graphs(X, E, mask), [torch.randn_like(part).softmax(-1) for part in (X, E)]


def by_matrix(noise: GraphNoise, graph: Graphs, guess: list[Tensor], t: int, table: bool):
    """Equation 4 for rows: with the table of all clean by all earlier entries, or without it."""
    step, ahead, whole = noise.matrix(t, t - 1), noise.matrix(t - 1), noise.matrix(t)
    x_t, p = graph_tokens(graph), graph_tokens(Graphs(*guess, graph.mask))
    likely, chance = x_t @ step.T, x_t @ whole.T
    chance = torch.where(chance == 0, 1, chance)
    if table:  # one graph at a time: for the whole batch it would take gigabytes
        rows = torch.stack(
            [
                (w[..., None] * (one[:, None] * ahead / d[..., None])).sum(dim=1)
                for w, one, d in zip(p, likely, chance, strict=True)
            ]
        )
    else:
        rows = likely * ((p / chance) @ ahead)
    A, K = graph.X.shape[-1], graph.E.shape[-1]
    return _normalised(rows[..., :A], rows[..., A:].unflatten(-1, (-1, K)), graph.mask)


def posterior(turns: int) -> None:
    """The posterior of a batch of 32: times relative to the factored form, and memory."""
    print("\nposterior of 32 graphs, 8 atom types, float32, no gradients")
    print(f"  {'N':>3}  {'form':<22}  {'ms':>8}  {'times':>6}  {'MB':>7}  {'off by':>7}")
    for N in (9, 20, 50):
        noise, graph, guess = random_case(N, 32)
        s, t = torch.full((32,), 99), torch.full((32,), 100)
        forms = {
            "factored": (
                lambda a=(noise, graph, guess, s, t): a[0].reverse(a[1], *a[2], *a[3:]),
                turns,
            ),
            "products of matrices": (
                lambda a=(noise, graph, guess, 100): by_matrix(*a, False),
                turns,
            ),
            "a table for each row": (lambda a=(noise, graph, guess, 100): by_matrix(*a, True), 3),
        }
        best, exact = None, None
        for name, (call, many) in forms.items():
            took, result = seconds(call, many), call()
            best, exact = best or took, exact or result
            off = max((a - b).abs().max().item() for a, b in zip(exact, result, strict=True))
            memory = peak_megabytes(call)
            print(
                f"  {N:>3}  {name:<22}  {1e3 * took:>8.2f}  {took / best:>6.1f}  {memory:>7.1f}"
                f"  {off:>7.0e}",
                flush=True,
            )
    verdict = "met" if took / best >= BAR else "missed"
    print(f"  the bar, {BAR} times at N = 50, is {verdict}")


SECTIONS = {"posterior": posterior}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    for name in options.sections or SECTIONS:
        SECTIONS[name](options.turns)


if __name__ == "__main__":
    main()
