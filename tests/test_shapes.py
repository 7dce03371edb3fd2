"""Shapes in annotations are enforced here, in the tests, and cost a reader nothing."""

import subprocess
import sys

import jaxtyping
import pytest
import torch

from fourfold.bilinear_sampling.sampling import bilinear_weights


def test_a_wrong_shape_is_caught_in_the_tests():
    with pytest.raises(jaxtyping.TypeCheckError):
        bilinear_weights(torch.zeros(4, 3))


def test_the_checks_can_be_switched_off_for_a_test(without_shape_checks):
    with pytest.raises(ValueError, match="too many values"):
        bilinear_weights(torch.zeros(4, 3))


def test_at_run_time_nothing_is_wrapped():
    code = """
import sys
from fourfold.bilinear_sampling.sampling import sample
sys.exit(hasattr(sample, "__wrapped__") or "beartype" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
