import json
import math
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from fourfold.kit import resume
from fourfold.kit.checkpoints import load_tensors
from fourfold.kit.scale import seed_everything
from fourfold.kit.training import fingerprint, one_cycle, train

SCRIPT = str(Path(__file__).with_name("training_script.py"))
_SHARED = runpy.run_path(SCRIPT)
STEPS, model_and_batches, run = (_SHARED[name] for name in ("STEPS", "model_and_batches", "run"))


def _environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "FOURFOLD_SCALE": "cpu"}


@pytest.fixture(autouse=True)
def on_one_cpu_thread(monkeypatch):
    """The number of threads decides the order of sums, and so the last bit."""
    monkeypatch.setenv("FOURFOLD_SCALE", "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _same_bits(model, tensors):
    return all(torch.equal(value, tensors[key]) for key, value in model.state_dict().items())


def _without_time(records):
    return [record._replace(seconds=0) for record in records]


def test_training_learns():
    model, records = run(steps=300, dropout=0.0, learning_rate=0.03)
    first, last = records[:20], records[-20:]
    assert sum(r.loss for r in last) < 0.7 * sum(r.loss for r in first)
    assert [record.step for record in records] == list(range(1, 301))
    assert model.training


def test_one_step_is_adamw_with_clipping():
    """AdamW's first step by hand: decay, then the clipped gradient over its own size."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(3.0)
    (record,) = train(
        model,
        lambda model, x: 100 * model(x).mean(),
        [torch.ones(2, 1, dtype=torch.float64)],
        steps=1,
        learning_rate=0.5,
        weight_decay=0.1,
        clip=1.0,
        warmup=0.0,
        progress=False,
    )
    assert (record.loss, record.learning_rate, record.gradient_norm) == (300, 0.5, 100)
    expected = 3 * (1 - 0.5 * 0.1) - 0.5 * 1 / (1 + 1e-8)
    # The clipping divides by norm + 1e-6, which changes the ratio by far less than 1e-7.
    assert model.weight.item() == pytest.approx(expected, abs=1e-7)


@given(st.integers(1, 500), st.floats(0, 0.99))
def test_one_cycle_rises_once_and_falls_once(steps, warmup):
    factors = [one_cycle(step, steps, warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert top <= math.ceil(warmup * steps)


def test_one_cycle_s_corners():
    assert one_cycle(0, 100, 0.1) == 0.04
    assert one_cycle(10, 100, 0.1) == 1
    assert one_cycle(99, 100, 0.1) == pytest.approx(1 / 90)
    assert one_cycle(0, 1) == 0.04


class _Stopped(Exception):
    pass


def _run_until_stopped(folder, calls, **options):
    """Train on, and stop like a killed run after so many more batches."""
    model, batches = model_and_batches(dropout=0.25)
    count = 0

    def loss(model, batch):
        nonlocal count
        count += 1
        if count > calls:
            raise _Stopped
        return (model(batch[0]) - batch[1]).square().mean()

    options = {"steps": STEPS, "progress": False, **options}
    train(model, loss, batches, folder=folder, **options)


@pytest.mark.parametrize("every", [1, 4, 5, 7])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, every):
    """Stopped after each checkpoint: within a pass of 5 batches and at its end, with dropout."""
    whole, records = run()
    # Every second time, one step beyond the checkpoint: its log line must not count twice.
    for beyond, done in enumerate(range(0, STEPS - every, every)):
        calls = every if every == 1 or done + every + 1 == STEPS else every + beyond % 2
        with pytest.raises(_Stopped):
            _run_until_stopped(tmp_path, calls, save_every=every)
        assert (tmp_path / f"step_{done + every:09d}").is_dir()
    model, parts = run(tmp_path)
    assert _same_bits(model, whole.state_dict())
    assert _without_time(parts) == _without_time(records)


def test_the_log_says_what_the_call_returns(tmp_path):
    _, records = run(tmp_path)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "step,loss,learning_rate,gradient_norm,seconds"
    assert [tuple(map(float, line.split(","))) for line in lines[1:]] == records


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, records = run(tmp_path)
    seen = []
    again, same = run(tmp_path, seen=seen)
    assert same == records and seen == []
    assert _same_bits(again, first.state_dict())


def test_minutes_end_a_call_early_with_a_checkpoint(tmp_path):
    whole, records = run()
    _, part = run(tmp_path, minutes=0.0)
    assert len(part) == 1
    model, parts = run(tmp_path)
    assert _same_bits(model, whole.state_dict())
    assert _without_time(parts) == _without_time(records)


def test_only_the_last_checkpoint_stays(tmp_path):
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", f"step_{STEPS:09d}"]


def test_a_run_stopped_while_it_writes_goes_on_from_the_checkpoint_before(tmp_path, monkeypatch):
    whole, _ = run()
    rename = resume.os.replace

    def stop_at_step_10(source, target):
        if Path(target).name == f"step_{10:09d}":
            raise _Stopped
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(resume.os, "replace", stop_at_step_10)
        with pytest.raises(_Stopped):
            run(tmp_path)
    assert (tmp_path / f"step_{5:09d}").is_dir() and (tmp_path / f".partial_{10:09d}").is_dir()
    model, _ = run(tmp_path)
    assert _same_bits(model, whole.state_dict())
    assert not list(tmp_path.glob(".partial_*"))


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    whole, _ = run()
    command = [sys.executable, SCRIPT, str(tmp_path)]
    process = subprocess.Popen([*command, "--pause", "0.05"], env=_environment())
    try:
        _wait_for_step(tmp_path / "log.csv", 12, process)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "final.safetensors").exists()
    subprocess.run(command, env=_environment(), check=True)
    assert _same_bits(whole, load_tensors(tmp_path / "final.safetensors"))


def _wait_for_step(log, step, process, seconds=120):
    end = time.monotonic() + seconds
    while not log.exists() or len(log.read_text().splitlines()) <= step:
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < end, f"the run did not reach step {step} in {seconds} s"
        time.sleep(0.01)


def test_two_processes_train_as_one_on_the_whole_batch(tmp_path):
    whole_seen = []
    whole, records = run(dropout=0.0, seen=whole_seen)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    subprocess.run(
        [*launch, SCRIPT, str(tmp_path), "--stop-and-go"],
        env=_environment(),
        check=True,
        timeout=120,
    )
    halves = [json.loads((tmp_path / f"seen_{rank}.json").read_text()) for rank in (0, 1)]
    assert [half["processes"] for half in halves] == [2, 2]
    for first, second, both in zip(halves[0]["seen"], halves[1]["seen"], whole_seen, strict=True):
        assert len(first) == len(second) == 4
        assert sorted(first + second) == sorted(both)
    final = load_tensors(tmp_path / "final.safetensors")
    for key, value in whole.state_dict().items():
        # The same sums in another order: float64 rounding, which AdamW's division by the
        # gradient's size can enlarge where a gradient is nearly 0.
        assert torch.allclose(final[key], value, rtol=1e-9, atol=1e-9), key
    logged = resume._read_log(tmp_path / "log.csv", STEPS)
    # The processes' mean loss passes through float32.
    assert [r.loss for r in logged] == pytest.approx([r.loss for r in records], rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, bad):
    model = nn.Linear(2, 1)
    batches = [torch.full((3, 2), float(i)) for i in range(5)]
    batches[3] = torch.full((3, 2), bad)
    options = {"steps": 5, "save_every": 2, "folder": tmp_path, "progress": False}
    with pytest.raises(FloatingPointError) as caught:
        train(model, lambda model, x: model(x).square().mean(), batches, **options)
    message = str(caught.value)
    assert "the loss is" in message and "at step 4" in message
    assert fingerprint(batches[3]) in message and "(3, 2)" in message
    assert str(tmp_path / f"step_{2:09d}") in message
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_a_gradient_that_is_not_finite_stops_the_run():
    model = nn.Linear(1, 1, bias=False)

    def loss(model, x):
        return (model(x) * 0).sqrt().sum()  # 0, with the gradient 0 · ∞

    with pytest.raises(FloatingPointError, match=r"gradient norm is nan at step 1.*not there"):
        train(model, loss, [torch.ones(1, 1)], steps=1, progress=False)
    assert model.weight.isfinite().all()


def test_other_settings_than_the_checkpoint_s_are_named(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=f"steps was {STEPS} and is 30, clip was 1.0 and is 2.0"):
        run(tmp_path, steps=30, clip=2.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("learning_rate", 0.0), ("clip", -1.0), ("save_every", 0), ("warmup", 1.0)],
)
def test_settings_out_of_range_are_named(name, value):
    options = {"steps": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} is {value}; expected"):
        train(nn.Linear(1, 1), lambda model, x: model(x).mean(), [torch.ones(1, 1)], **options)


def test_batches_that_can_be_gone_through_once_only_are_named():
    once = (torch.ones(2, 1) for _ in range(3))
    with pytest.raises(ValueError, match="batches gave nothing in pass 2; expected an iterable"):
        train(nn.Linear(1, 1), lambda model, x: model(x).mean(), once, steps=4, progress=False)


def test_any_iterable_of_batches_resumes(tmp_path, without_shape_checks):
    """Batches in an order drawn for each pass, made on the fly from all three generators.

    Without the shape checks of the tests, because they draw from Python's generator themselves.
    """

    class Made:
        def __iter__(self):
            for index in torch.randperm(3).tolist():
                yield torch.tensor([[random.random(), np.random.rand(), index + torch.rand(())]])

    def start(folder, **options):
        seed_everything(5)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        options = {"steps": 8, "progress": False, **options}
        records = train(model, lambda m, x: m(x).square().mean(), Made(), folder=folder, **options)
        return model, records

    whole, records = start(None)
    for _ in range(7):
        start(tmp_path, minutes=0.0)
    model, parts = start(tmp_path)
    assert _same_bits(model, whole.state_dict())
    assert _without_time(parts) == _without_time(records)


def test_the_seed_orders_the_batches():
    orders = []
    for seed in (0, 0, 1):
        seen = []
        run(seen=seen, steps=5, seed=seed)
        orders.append(seen)
        assert sorted(index for batch in seen for index in batch) == list(range(40))
    assert orders[0] == orders[1] != orders[2]


def test_workers_leave_the_batches_as_they_are():
    def order(workers):
        seen = []
        batches = DataLoader(range(12), batch_size=4, shuffle=True, num_workers=workers)
        model = nn.Linear(1, 1)

        def loss(model, index):
            seen.append(index.tolist())
            return model(index[:, None].float()).square().mean()

        train(model, loss, batches, steps=4, progress=False)
        return seen

    assert order(0) == order(1)


def test_fingerprints_tell_batches_apart():
    x = torch.arange(6.0)
    assert fingerprint(x) == fingerprint((x.clone(),)) == fingerprint({"x": x})
    others = [x + 1, x.double(), x.reshape(2, 3), (x, x)]
    assert len({fingerprint(other) for other in [x, *others]}) == 5
    assert len(fingerprint(x)) == 12
