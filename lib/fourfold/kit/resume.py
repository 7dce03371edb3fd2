"""How a training run is stopped and resumed to the same bits: position, random states, folder.

What a next step depends on is the weights, the optimiser's moments, the number of the step, the
place in the data, and the states of the random number generators. All of it is on disk without
pickle: tensors as safetensors, the rest as JSON.
"""

import csv
import json
import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.course.files import write_whole
from fourfold.kit.checkpoints import load_tensors, save_tensors

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
    """Batches for ever, pass after pass, with a position to come back to."""

    def __init__(self, batches: Iterable):
        self.batches = batches
        self.passes = 0
        self.used = 0
        self.random_at_pass = None
        self.iterator = None

    def next(self) -> Any:
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
        return self.next()

    def position(self) -> dict:
        return {"passes": self.passes, "used": self.used, "random_at_pass": self.random_at_pass}

    def go_to(self, passes: int, used: int, random_at_pass: dict) -> None:
        """Begin the pass again with its random numbers and drop what was used of it."""
        self.passes, self.used = passes, used
        if hasattr(self.batches, "iteration"):  # accelerate shuffles by this count of passes
            self.batches.iteration = passes
        set_random_state(random_at_pass)
        self._begin_pass()
        for _ in range(used):
            next(self.iterator)

    def _begin_pass(self) -> None:
        self.random_at_pass = random_state()
        self.iterator = iter(self.batches)


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
        return max(self.folder.glob("step_*"), key=lambda path: path.name, default=None)

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
            write_whole(partial / "state.json", json.dumps(state, indent=2))
        self.accelerator.wait_for_everyone()
        own = {"random": random_state(), "position": stream.position()}
        write_whole(partial / f"process_{rank}.json", json.dumps(own))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            os.replace(partial, whole)
            for path in [*self.folder.glob("step_*"), *self.folder.glob(".partial_*")]:
                if path != whole:
                    shutil.rmtree(path)

    def _restore(self, last: Path, model: nn.Module, optimizer, stream: Stream) -> list:
        state = json.loads((last / "state.json").read_text("utf-8"))
        self._check_same(last, state["settings"])
        model.load_state_dict(load_tensors(last / "model.safetensors"))
        _set_optimizer_tensors(optimizer, load_tensors(last / "optimizer.safetensors"))
        if state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        own = last / f"process_{self.accelerator.process_index}.json"
        own = json.loads(own.read_text("utf-8"))
        stream.go_to(**own["position"])
        set_random_state(own["random"])
        return _read_log(self.folder / "log.csv", state["step"])

    def _check_same(self, last: Path, saved: dict) -> None:
        differing = [
            f"{name} was {saved.get(name)} and is {value}"
            for name, value in self.settings.items()
            if saved.get(name) != value
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


def _read_log(path: Path, steps: int) -> list[StepRecord]:
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))[1 : steps + 1]
    return [StepRecord(int(line[0]), *map(float, line[1:])) for line in lines]


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
