import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from fourfold.kit.scale import at_scale, device, scale, seed_everything


@pytest.mark.parametrize(("value", "expected"), [("", "cpu"), ("cpu", "cpu"), ("gpu", "gpu")])
def test_scale_reads_the_environment(monkeypatch, value, expected):
    monkeypatch.setenv("FOURFOLD_SCALE", value)
    assert scale() == expected
    assert at_scale(cpu="cpu", gpu="gpu") == expected


def test_scale_is_cpu_when_the_variable_is_unset(monkeypatch):
    monkeypatch.delenv("FOURFOLD_SCALE", raising=False)
    assert scale() == "cpu"


def test_scale_refuses_another_word(monkeypatch):
    monkeypatch.setenv("FOURFOLD_SCALE", "huge")
    with pytest.raises(ValueError, match="FOURFOLD_SCALE is 'huge'; expected 'cpu' or 'gpu'"):
        at_scale(cpu=1, gpu=2)


def test_device_at_scale_cpu_is_the_cpu_even_beside_a_gpu(monkeypatch):
    monkeypatch.setenv("FOURFOLD_SCALE", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device() == torch.device("cpu")


def test_device_at_scale_gpu_needs_a_gpu(monkeypatch):
    monkeypatch.setenv("FOURFOLD_SCALE", "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="torch sees no CUDA device"):
        device()


def _draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_one_seed_repeats_all_three_generators():
    seed_everything(7)
    first = _draw()
    second = _draw()
    seed_everything(7)
    assert _draw() == first
    assert all(a != b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "7", None])
def test_a_seed_out_of_range_is_named(without_shape_checks, seed):
    message = f"seed is {seed!r}; expected a whole number from 0 to 4294967295"
    with pytest.raises(ValueError, match=message):
        seed_everything(seed)


@pytest.mark.parametrize("seed", [np.int64(7), np.uint8(7), torch.tensor(7)])
def test_any_type_of_whole_numbers_seeds(without_shape_checks, seed):
    seed_everything(7)
    first = _draw()
    seed_everything(seed)
    assert _draw() == first


def test_light_modules_do_not_import_what_only_training_and_figures_need():
    code = (
        "import sys, fourfold.kit.scale, fourfold.kit.images, fourfold.kit.notebook\n"
        "print([name for name in ('accelerate', 'matplotlib', 'skimage', 'sklearn')"
        " if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert run.stdout.strip() == "[]"
