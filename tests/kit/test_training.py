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
from torch.utils.data import DataLoader, Dataset

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


def test_the_rate_s_schedule_may_be_longer_than_the_run():
    _, records = run(schedule_steps=STEPS + 100, learning_rate=0.1)
    expected = [0.1 * one_cycle(step, STEPS + 100) for step in range(STEPS)]
    assert [record.learning_rate for record in records] == pytest.approx(expected)
    _, plain = run(schedule_steps=STEPS, learning_rate=0.1)
    assert _without_time(plain) == _without_time(run(learning_rate=0.1)[1])


def test_a_schedule_is_kept_with_the_run_only_where_one_is_given(tmp_path):
    run(tmp_path / "without")
    state = json.loads((tmp_path / "without" / f"step_{STEPS:09d}" / "state.json").read_text())
    assert "schedule_steps" not in state["settings"]
    run(tmp_path / "with", schedule_steps=STEPS + 9)
    for name, options, message in (
        ("without", {"schedule_steps": 99}, "schedule_steps was None and is 99"),
        ("with", {}, f"schedule_steps was {STEPS + 9} and is None"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / name, **options)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 2.5),
        ("steps", "5"),
        ("save_every", 0),
        ("seed", None),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("clip", -1.0),
        ("clip", None),
        ("weight_decay", -0.1),
        ("warmup", 1.0),
        ("schedule_steps", 0),
        ("schedule_steps", 2.5),
        ("minutes", "5"),
    ],
)
def test_settings_out_of_range_are_named(without_shape_checks, name, value):
    options = {"steps": 1, name: value}
    with pytest.raises(ValueError, match=f"{name} is {value!r}; expected"):
        train(nn.Linear(1, 1), lambda model, x: model(x).mean(), [torch.ones(1, 1)], **options)


@pytest.mark.parametrize(
    ("loss", "came"),
    [
        (lambda model, x: model(x), r"a tensor of shape \(2, 1\)"),
        (lambda model, x: model(x).mean().reshape(1), r"a tensor of shape \(1,\)"),
        (lambda model, x: model(x).mean().detach(), "a scalar without a gradient"),
        (lambda model, x: model(x).mean().item(), "a float"),
        (lambda model, x: None, "a NoneType"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_named(without_shape_checks, loss, came):
    with pytest.raises(ValueError, match=f"loss gave {came}; expected a scalar tensor with a"):
        train(nn.Linear(1, 1), loss, [torch.ones(2, 1)], steps=1, progress=False)


@pytest.mark.parametrize(
    ("model", "count"), [(nn.Identity(), 0), (nn.Linear(1, 1).requires_grad_(False), 2)]
)
def test_a_model_with_nothing_to_train_is_named(model, count):
    with pytest.raises(ValueError, match=f"model has {count} parameters, none of which requires"):
        train(model, lambda model, x: model(x).mean(), [torch.ones(1, 1)], steps=1)


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

    _stopped_after_every_step_is_the_same(start, tmp_path)


def _stopped_after_every_step_is_the_same(start, folder):
    """Whether eight steps, one a call, end where one call of eight ends, to the same bits."""
    whole, records = start(None)
    for _ in range(7):
        start(folder, minutes=0.0)
    model, parts = start(folder)
    assert _same_bits(model, whole.state_dict())
    assert _without_time(parts) == _without_time(records)


class _Noisy(Dataset):
    """Each item is drawn anew, from all three generators."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.randn(4) + index * random.random() * np.random.rand()


def test_noise_in_the_data_and_in_the_loss_resume_together(tmp_path, without_shape_checks):
    """The loader reads one batch ahead of the loss; stopped after every step all the same."""

    def start(folder, **options):
        seed_everything(5)
        model = nn.Linear(4, 1)
        batches = DataLoader(_Noisy(), batch_size=8, shuffle=True)
        options = {"steps": 8, "progress": False, **options}

        def loss(model, x):
            return model(x + torch.randn_like(x)).square().mean()

        return model, train(model, loss, batches, folder=folder, **options)

    _stopped_after_every_step_is_the_same(start, tmp_path)


def test_the_data_draws_other_numbers_than_the_loss():
    drawn = []

    class Batches:
        def __iter__(self):
            drawn.append(torch.rand(()).item())
            yield torch.ones(1, 1)

    def loss(model, x):
        drawn.append(torch.rand(()).item())
        return model(x).mean()

    train(nn.Linear(1, 1), loss, Batches(), steps=4, progress=False)
    assert len(set(drawn)) == len(drawn) == 8


def _stopped_at_step_5(folder):
    with pytest.raises(_Stopped):
        _run_until_stopped(folder, 7, save_every=5)
    return folder / f"step_{5:09d}"


def _changed(path, change):
    path.unlink() if change is None else path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is not there; expected the log of the checkpoint's 5 steps"),
        (lambda text: "", "has 0 steps; expected the checkpoint's 5"),
        (lambda text: "".join(text.splitlines(True)[:4]), "has 3 steps; expected the .* 5"),
        (lambda text: text.replace("\n3,", "\n4,"), "has '4,.*' where step 3 belongs; expected"),
        (lambda text: text.replace("\n3,", "\nx,"), "has 'x,.*' where step 3 belongs; expected"),
        (lambda text: text.replace("\n3,", "\n3\n"), "has '3' where step 3 belongs; expected"),
    ],
)
def test_a_log_that_does_not_reach_the_checkpoint_is_named(tmp_path, change, message):
    _stopped_at_step_5(tmp_path)
    _changed(tmp_path / "log.csv", change)
    with pytest.raises(ValueError, match=rf"log\.csv {message}"):
        run(tmp_path)


@pytest.mark.parametrize("name", ["state.json", "process_0.json"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is not there"),
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: "", "is damaged"),
        (lambda text: "{}", "lacks"),
        (lambda text: "[1]", "lacks"),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path, name, change, message):
    checkpoint = _stopped_at_step_5(tmp_path)
    _changed(checkpoint / name, change)
    with pytest.raises(ValueError, match=f"{name} {message}.*expected"):
        run(tmp_path)


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    _stopped_at_step_5(tmp_path)
    _, batches = model_and_batches(dropout=0.25)
    model = nn.Sequential(nn.Linear(5, 1)).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"model of step_000000005 does not fit.*unexpected 3\.b"):
        train(
            model,
            lambda model, batch: model(batch[0]).mean(),
            batches,
            steps=STEPS,
            folder=tmp_path,
            progress=False,
        )
    assert _same_bits(model, before)


def test_fewer_batches_than_the_checkpoint_has_used_are_named(tmp_path):
    def start(count, **options):
        batches = [torch.ones(2, 1)] * count
        options = {"steps": 6, "progress": False, **options}
        train(nn.Linear(1, 1), lambda model, x: model(x).mean(), batches, **options)

    for _ in range(3):
        start(5, folder=tmp_path, minutes=0.0)
    with pytest.raises(ValueError, match="gave 2 in pass 1, of which the checkpoint has used 3"):
        start(2, folder=tmp_path)


def test_what_a_user_calls_step_stays(tmp_path):
    (tmp_path / "step_notes").mkdir()
    (tmp_path / "step_notes.txt").write_text("mine")
    (tmp_path / "step_1234567890").mkdir()
    run(tmp_path, steps=6)
    names = {path.name for path in tmp_path.iterdir()} - {"log.csv"}
    assert names == {"step_notes", "step_notes.txt", "step_1234567890", f"step_{6:09d}"}


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
