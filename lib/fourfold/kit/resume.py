"""How a training run is stopped and resumed to the same bits: position, random states, folder.

What a next step depends on is the weights, the optimiser's moments, the number of the step, the
place in the data, and the states of the random number generators. All of it is on disk without
pickle: tensors as safetensors, the rest as JSON.
"""

import json
import os
import random
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.course.files import write_whole
from fourfold.kit.checkpoints import check_keys, load_tensors, read_json, save_tensors
from fourfold.kit.scale import seed_everything

__all__ = ["StepRecord", "Store", "Stream", "random_state", "set_random_state"]


class StepRecord(NamedTuple):
    """One line of the log: the step, counted from 1, and what was measured in it.

    `gradient_norm` is taken before clipping; `seconds` is the time in training so far.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    seconds: float


class Stream:
    """Batches for ever, pass after pass, with a position to come back to.

    The batches draw from random numbers of their own. A loader reads ahead of the step that it
    serves, so numbers shared with the loss would depend on how far ahead it has read.
    """

    def __init__(self, batches: Iterable):
        self.batches = batches
        self.passes = 0
        self.used = 0
        self.random_at_pass = None
        self.iterator = None
        self.random = _another_random_state()

    def next(self) -> Any:
        with self._own_random():
            return self._next()

    def _next(self) -> Any:
        if self.iterator is None:
            self._begin_pass()
        for batch in self.iterator:
            self.used += 1
            return batch
        if self.used == 0:
            raise ValueError(
                f"batches gave nothing in pass {self.passes + 1}; "
                "expected an iterable that can be gone through again, such as a DataLoader"
            )
        self.passes, self.used, self.iterator = self.passes + 1, 0, None
        return self._next()

    def position(self) -> dict:
        return {"passes": self.passes, "used": self.used, "random_at_pass": self.random_at_pass}

    def go_to(self, passes: int, used: int, random_at_pass: dict) -> None:
        """Begin the pass again with its random numbers and drop what was used of it."""
        self.passes, self.used = passes, used
        if hasattr(self.batches, "iteration"):  # accelerate shuffles by this count of passes
            self.batches.iteration = passes
        self.random = random_at_pass
        with self._own_random():
            self._begin_pass()
            found = sum(1 for _ in islice(self.iterator, used))
        if found < used:
            raise ValueError(
                f"batches gave {found} in pass {passes + 1}, of which the checkpoint has used "
                f"{used}; expected the same batches as in the run that wrote it"
            )

    def _begin_pass(self) -> None:
        self.random_at_pass = random_state()
        self.iterator = iter(self.batches)

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        outside = random_state()
        set_random_state(self.random)
        try:
            yield
        finally:
            self.random = random_state()
            set_random_state(outside)


class Store:
    """The folder of a run: log.csv, and one folder step_N with the last checkpoint.

    A checkpoint is written under another name and renamed when it is whole, so that a run
    killed at any moment finds a whole one. Tensors are safetensors, all else JSON.
    """

    def __init__(self, folder: Path, accelerator, settings: dict):
        self.folder, self.accelerator, self.settings = folder, accelerator, settings
        self.file = None
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        accelerator.wait_for_everyone()

    def last(self) -> Path | None:
        return max(self._folders("step_"), key=lambda path: path.name, default=None)

    def _folders(self, prefix: str) -> list[Path]:
        """Those that `save` has made: what else is called step_… is the user's own."""
        name = re.compile(re.escape(prefix) + r"\d{9}")
        return [p for p in self.folder.iterdir() if name.fullmatch(p.name) and p.is_dir()]

    def resume(self, model: nn.Module, optimizer, stream: Stream) -> list[StepRecord]:
        """Put the last checkpoint back, if there is one, and return the log up to it."""
        last = self.last()
        records = [] if last is None else self._restore(last, model, optimizer, stream)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            lines = [StepRecord._fields, *records]
            text = "".join(",".join(map(str, line)) + "\n" for line in lines)
            write_whole(self.folder / "log.csv", text)
            # Line by line on disk: a killed run keeps its log up to the last checkpoint.
            self.file = open(self.folder / "log.csv", "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        return records

    def log(self, record: StepRecord) -> None:
        if self.file:
            self.file.write(",".join(map(str, record)) + "\n")

    def close(self) -> None:
        if self.file:
            self.file.close()

    def save(self, step: int, model: nn.Module, optimizer, stream: Stream) -> None:
        whole = self.folder / f"step_{step:09d}"
        partial = self.folder / f".partial_{step:09d}"
        rank = self.accelerator.process_index
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            save_tensors(partial / "model.safetensors", model.state_dict())
            save_tensors(partial / "optimizer.safetensors", _optimizer_tensors(optimizer))
            scaler = self.accelerator.scaler
            state = {
                "step": step,
                "settings": self.settings,
                "scaler": scaler.state_dict() if scaler else None,
            }
            write_whole(partial / "state.json", json.dumps(state, indent=2, default=float))
            if self.file:  # A checkpoint without its part of the log could not be resumed from.
                os.fsync(self.file.fileno())
        self.accelerator.wait_for_everyone()
        own = {"random": random_state(), "position": stream.position()}
        write_whole(partial / f"process_{rank}.json", json.dumps(own))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            os.replace(partial, whole)
            for path in [*self._folders("step_"), *self._folders(".partial_")]:
                if path != whole:
                    shutil.rmtree(path)

    def _restore(self, last: Path, model: nn.Module, optimizer, stream: Stream) -> list:
        state = read_json(last / "state.json", ("step", "settings", "scaler"))
        self._check_same(last, state["settings"])
        own = read_json(
            last / f"process_{self.accelerator.process_index}.json", ("random", "position")
        )
        records = _read_log(self.folder / "log.csv", state["step"])
        weights = load_tensors(last / "model.safetensors")
        check_keys(f"the model of {last.name}", weights, model.state_dict())
        model.load_state_dict(weights)
        _set_optimizer_tensors(optimizer, load_tensors(last / "optimizer.safetensors"))
        if state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        stream.go_to(**own["position"])
        set_random_state(own["random"])
        return records

    def _check_same(self, last: Path, saved: dict) -> None:
        differing = [
            f"{name} was {saved.get(name)} and is {self.settings.get(name)}"
            for name in self.settings | saved
            if saved.get(name) != self.settings.get(name)
        ]
        if differing:
            raise ValueError(
                f"folder holds {last.name} of a run with other settings: {', '.join(differing)}; "
                "expected the same settings, or another folder"
            )


def random_state() -> dict:
    """The states of Python's, NumPy's and torch's generators, as JSON can hold them."""
    numpy_state = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
        "torch": _hex(torch.get_rng_state()),
        "cuda": [_hex(state) for state in cuda],
    }


def set_random_state(state: dict) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(_from_hex(state["torch"]))
    if state["cuda"]:
        torch.cuda.set_rng_state_all([_from_hex(text) for text in state["cuda"]])


def _another_random_state() -> dict:
    """Random states that follow from the present ones and draw other numbers."""
    before = random_state()
    seed_everything(int(torch.randint(2**32, ())))
    another = random_state()
    set_random_state(before)
    return another


def _read_log(path: Path, steps: int) -> list[StepRecord]:
    if not path.is_file():
        raise ValueError(f"{path} is not there; expected the log of the checkpoint's {steps} steps")
    lines = path.read_text("utf-8", errors="replace").splitlines()[1 : steps + 1]
    if len(lines) < steps:
        raise ValueError(f"{path} has {len(lines)} steps; expected the checkpoint's {steps}")
    return [_record(path, step, line) for step, line in enumerate(lines, start=1)]


def _record(path: Path, step: int, line: str) -> StepRecord:
    try:
        numbers = [float(text) for text in line.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != len(StepRecord._fields) or numbers[0] != step:
        raise ValueError(
            f"{path} has {line!r} where step {step} belongs; "
            f"expected the numbers {', '.join(StepRecord._fields)}"
        )
    return StepRecord(step, *numbers[1:])


def _optimizer_tensors(optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value for index, part in state.items() for name, value in part.items()
    }


def _set_optimizer_tensors(optimizer, tensors: dict[str, Tensor]) -> None:
    state = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
