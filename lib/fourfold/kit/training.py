"""The training loop of the course: one function for a laptop, a GPU, or many machines.

`accelerate` does the devices, the processes and the mixed precision. What is added here: a
one-cycle learning rate, a log, checkpoints to resume from, and a stop at the first loss that is
not a finite number.

References: Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019 (AdamW);
Smith and Topin, Super-Convergence, 2018 (one cycle); Pascanu et al., On the Difficulty of
Training Recurrent Neural Networks, ICML 2013 (clipping).
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fourfold.kit.arguments import whole_number
from fourfold.kit.notebook import progress_bar
from fourfold.kit.resume import StepRecord, Store, Stream
from fourfold.kit.scale import device

__all__ = ["StepRecord", "Trained", "fingerprint", "one_cycle", "train"]


class Trained(NamedTuple):
    """What a chapter's `train_course` returns, for `fourfold train` to say.

    weights  the file that was written
    done     steps so far, of `steps` in all
    metrics  what was measured on held-out data, each named with its unit
    """

    weights: Path
    done: int
    steps: int
    metrics: dict[str, float]


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable,
    *,
    steps: int,
    folder: str | Path | None = None,
    learning_rate: float = 4e-4,
    weight_decay: float = 1e-4,
    clip: float = 1.0,
    warmup: float = 0.05,
    schedule_steps: int | None = None,
    seed: int = 0,
    save_every: int = 500,
    minutes: float | None = None,
    progress: bool = True,
) -> list[StepRecord]:
    """Train `model` in place for `steps` steps of AdamW, and return one record per step.

    `loss(model, batch)` is the mean loss of one batch, a scalar. `batches` is a DataLoader, or
    in a single process any iterable that can be gone through again; it is repeated as long as
    needed, and `seed` orders a DataLoader's shuffling. The learning rate follows `one_cycle` up to
    `learning_rate`, over `schedule_steps` where they are given, so that it ends above 0 where they
    are more than `steps`; gradients are clipped to the norm `clip`. The model keeps its mode,
    train or eval.

    With a `folder`, `log.csv` and a checkpoint every `save_every` steps lie there, and a later
    call with the same settings goes on where the last checkpoint stands, on a CPU to the same
    bits as if it had never stopped. `minutes` ends a call early, with a checkpoint. Under
    `torchrun` each process takes its share of every batch.

    Batches draw from random numbers of their own, apart from those of the loss and the model.

    Raises ValueError for a setting out of range, a model without a trainable parameter, a loss
    that is no scalar with a gradient, and a checkpoint that is damaged or of another model, other
    settings or other batches. Raises FloatingPointError for a loss or gradient that is not finite,
    with the step, the batch's fingerprint and the last good checkpoint.
    """
    settings = {
        "steps": steps,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "clip": clip,
        "warmup": warmup,
        "seed": seed,
    }
    if schedule_steps is not None:  # a run without them resumes one that knew no such setting
        settings["schedule_steps"] = schedule_steps
    _check_settings(settings, save_every, minutes)
    _check_model(model)
    accelerator = _accelerator(seed)
    settings["processes"] = accelerator.num_processes
    settings["precision"] = accelerator.mixed_precision
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=weight_decay)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    stream = Stream(_share(accelerator, batches))
    store = None if folder is None else Store(Path(folder), accelerator, settings)
    records = store.resume(model, optimizer, stream) if store else []
    shown = progress and accelerator.is_main_process
    bar = progress_bar(steps, len(records), unit="step", shown=shown)
    begin = time.perf_counter() - (records[-1].seconds if records else 0)
    called = time.perf_counter()
    try:
        for step in range(len(records) + 1, steps + 1):
            rate = learning_rate * one_cycle(step - 1, schedule_steps or steps, warmup)
            batch = _to_device(stream.next(), accelerator.device)
            check = partial(_check_finite, step=step, batch=batch, store=store)
            value, spent, norm = _take_step(
                accelerator, wrapped, optimizer, loss, batch, rate, clip, called, check
            )
            records.append(StepRecord(step, value, rate, norm, time.perf_counter() - begin))
            bar.update()
            bar.set_postfix(loss=f"{_running_mean(records):.4g}")
            stop = step == steps or (minutes is not None and spent >= minutes)
            if store:
                store.log(records[-1])
                if stop or step % save_every == 0:
                    store.save(step, model, optimizer, stream)
            if stop:
                break
    finally:
        bar.close()
        if store:
            store.close()
        # Takes off what mixed precision wrapped around the model's forward.
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    return records


def _take_step(
    accelerator, model, optimizer, loss, batch, rate, clip, called, check
) -> tuple[float, float, float]:
    """One step of the optimiser; returns the loss, the minutes since `called`, the gradient norm.

    Loss and minutes are means over the processes, so that all of them stop at the same step.
    """
    value = loss(model, batch)
    _check_loss(value)
    measured = torch.stack([value.detach().float(), _minutes_since(called, value)])
    mean_loss, mean_minutes = accelerator.reduce(measured, "mean").tolist()
    check("loss", mean_loss)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    accelerator.backward(value)
    norm = float(accelerator.clip_grad_norm_(model.parameters(), clip))
    if accelerator.scaler is None:  # float16's loss scaling skips such a step by itself
        check("gradient norm", norm)
    optimizer.step()
    return mean_loss, mean_minutes, norm


def one_cycle(step: int, steps: int, warmup: float = 0.05) -> float:
    """The factor on the learning rate at `step` of `steps`, counted from 0.

    It rises linearly from 1/25 to 1 over the first `warmup` share of the steps and falls
    linearly to 0 over the rest.

    >>> [round(one_cycle(step, 8, warmup=0.5), 2) for step in range(8)]
    [0.04, 0.28, 0.52, 0.76, 1.0, 0.75, 0.5, 0.25]
    """
    top = warmup * steps
    if step < top:
        return 0.04 + 0.96 * step / top
    return (steps - step) / (steps - top)


def fingerprint(batch: Any) -> str:
    """Twelve hexadecimal digits that tell one batch from another, the same in every run.

    `batch` is a tensor, or tuples, lists and dictionaries of them.
    """
    digest = hashlib.sha256()
    for tensor in _tensors(batch):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _check_settings(settings: dict, save_every: int, minutes: float | None) -> None:
    steps = whole_number("steps", settings["steps"], least=1)
    if "schedule_steps" in settings:
        whole_number("schedule_steps", settings["schedule_steps"], least=steps)
    whole_number("save_every", save_every, least=1)
    whole_number("seed", settings["seed"], least=0)
    for name in ("learning_rate", "clip", "weight_decay", "warmup"):
        _check_number(name, settings[name])
    for name in ("learning_rate", "clip"):
        if not settings[name] > 0:
            raise ValueError(f"{name} is {settings[name]}; expected more than 0")
    if not settings["weight_decay"] >= 0:
        raise ValueError(f"weight_decay is {settings['weight_decay']}; expected 0 or more")
    if not 0 <= settings["warmup"] < 1:
        raise ValueError(f"warmup is {settings['warmup']}; expected a share from 0 to below 1")
    if minutes is not None:
        _check_number("minutes", minutes)


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}; expected a number")


def _check_model(model: nn.Module) -> None:
    parameters = list(model.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            f"model has {len(parameters)} parameters, none of which requires a gradient; "
            "expected one to train, or more"
        )


def _check_loss(value: Any) -> None:
    if not isinstance(value, Tensor):
        came = f"a {type(value).__name__}"
    elif value.ndim > 0:
        came = f"a tensor of shape {tuple(value.shape)}"
    elif not value.requires_grad:
        came = "a scalar without a gradient"
    else:
        return
    raise ValueError(f"loss gave {came}; expected a scalar tensor with a gradient")


def _accelerator(seed: int):
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    on_gpu = device().type == "cuda"
    half = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp16"
    return Accelerator(
        cpu=not on_gpu,
        mixed_precision=half if on_gpu else "no",
        # Each process takes its part of the same batch, in an order that the seed and the number
        # of the pass decide alone.
        dataloader_config=DataLoaderConfiguration(
            split_batches=True, use_seedable_sampler=True, data_seed=seed
        ),
    )


def _share(accelerator, batches: Iterable) -> Iterable:
    if isinstance(batches, DataLoader):
        return accelerator.prepare(batches)
    if accelerator.num_processes > 1:
        raise ValueError(
            f"batches is a {type(batches).__name__}; expected a DataLoader, since "
            f"{accelerator.num_processes} processes would each train on all of it"
        )
    return batches


def _to_device(batch: Any, where: torch.device) -> Any:
    from accelerate.utils import send_to_device

    return send_to_device(batch, where)


def _minutes_since(moment: float, like: Tensor) -> Tensor:
    return torch.tensor((time.perf_counter() - moment) / 60, device=like.device)


def _running_mean(records: list[StepRecord], last: int = 50) -> float:
    losses = [record.loss for record in records[-last:]]
    return sum(losses) / len(losses)


def _check_finite(name: str, value: float, step: int, batch: Any, store: Store | None) -> None:
    if math.isfinite(value):
        return
    last = store.last() if store else None
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in _tensors(batch))
    raise FloatingPointError(
        f"the {name} is {value} at step {step}, on the batch with fingerprint "
        f"{fingerprint(batch)} and shapes {shapes}; "
        f"the last good checkpoint is {last if last else 'not there'}"
    )


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, dict):
        batch = batch.values()
    if isinstance(batch, (str, bytes)) or not isinstance(batch, Iterable):
        return []
    return [tensor for part in batch for tensor in _tensors(part)]
