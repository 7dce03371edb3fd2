"""A small training run for the tests that need processes of their own.

python training_script.py FOLDER [--pause SECONDS] [--stop-and-go], also under torchrun.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fourfold.kit.checkpoints import save_tensors
from fourfold.kit.scale import seed_everything
from fourfold.kit.training import train

STEPS = 24


def model_and_batches(dropout: float):
    seed_everything(3)
    layers = [nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 1)]
    model = nn.Sequential(*layers).double()
    x = torch.randn(40, 5, dtype=torch.float64)
    y = x.prod(1, keepdim=True)
    index = torch.arange(40)
    batches = DataLoader(TensorDataset(x, y, index), batch_size=8, shuffle=True)
    return model, batches


def run(folder=None, dropout=0.25, pause=0.0, seen=None, **options):
    model, batches = model_and_batches(dropout)

    def loss(model, batch):
        x, y, index = batch
        if seen is not None:
            seen.append(index.tolist())
        time.sleep(pause)
        return (model(x) - y).square().mean()

    options = {"steps": STEPS, "save_every": 5, "progress": False, **options}
    return model, train(model, loss, batches, folder=folder, **options)


def main():
    from accelerate import PartialState

    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--stop-and-go", action="store_true")
    options = parser.parse_args()
    seen = []
    dropout = 0.0 if options.stop_and_go else 0.25
    if options.stop_and_go:
        run(options.folder, dropout, seen=seen, minutes=0.0)
    model, _ = run(options.folder, dropout, options.pause, seen)
    state = PartialState()
    about = {"processes": state.num_processes, "seen": seen}
    (options.folder / f"seen_{state.process_index}.json").write_text(json.dumps(about))
    if state.is_main_process:
        save_tensors(options.folder / "final.safetensors", model.state_dict())
    if state.num_processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
