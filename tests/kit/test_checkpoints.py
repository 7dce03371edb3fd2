import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fourfold.kit.checkpoints import (
    ModelCard,
    file_sha256,
    load_checkpoint,
    load_tensors,
    read_card,
    read_settings,
    save_checkpoint,
    save_tensors,
)

CARD = ModelCard(
    command="fourfold train 4_raft --steps 10",
    seed=3,
    hardware="2 CPU cores",
    hours=0.25,
    data="motorcycle, left half",
    metrics={"EPE (px)": 1.5},
)


def _model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def _same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


def test_a_checkpoint_comes_back_with_its_card(tmp_path):
    path = tmp_path / "small.safetensors"
    model, other = _model(0), _model(1)
    digest = save_checkpoint(path, model, CARD)
    assert digest == file_sha256(path)
    load_checkpoint(path, other)
    assert _same(model.state_dict(), other.state_dict())
    assert read_card(path) == CARD
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["sha256"] == digest and about["bytes"] == path.stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.json", "small.safetensors"]


def test_settings_lie_in_the_header_and_come_back(tmp_path):
    path = tmp_path / "small.safetensors"
    about = {"width": 4, "atoms": ["C", "N"], "名": [0.5, None]}
    save_checkpoint(path, _model(), CARD, settings=about)
    assert read_settings(path) == about
    load_checkpoint(path, _model(1))  # the header does not disturb the weights


def test_a_file_without_settings_says_so(tmp_path):
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, _model(), CARD)
    with pytest.raises(ValueError, match=r"small\.safetensors has no settings in its header"):
        read_settings(path)
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        read_settings(path)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_settings(tmp_path / "none.safetensors")


def test_float16_halves_the_file_and_comes_back_in_the_model_s_dtype(tmp_path):
    model = nn.Linear(100, 100)
    save_checkpoint(tmp_path / "full.safetensors", model, CARD)
    save_checkpoint(tmp_path / "half.safetensors", model, CARD, float16=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.51 * sizes[0]
    other = nn.Linear(100, 100)
    load_checkpoint(tmp_path / "half.safetensors", other)
    assert other.weight.dtype == torch.float32
    # float16 keeps 11 bits; weights of a Linear(100, ·) are at most 0.1.
    assert torch.allclose(other.weight, model.weight, rtol=2**-11, atol=1e-7)
    assert not torch.equal(other.weight, model.weight)


def test_float16_leaves_whole_numbers_alone(tmp_path):
    model = _model()
    model[1].num_batches_tracked.fill_(70_000)
    save_checkpoint(tmp_path / "half.safetensors", model, CARD, float16=True)
    assert load_tensors(tmp_path / "half.safetensors")["1.num_batches_tracked"] == 70_000


def test_a_value_too_large_for_float16_is_named(tmp_path):
    model = _model()
    with torch.no_grad():
        model[2].bias[:] = torch.tensor([float("inf"), -70_000.0])
    with pytest.raises(ValueError, match=r"2\.bias has a value of 70000; expected at most 65504"):
        save_checkpoint(tmp_path / "half.safetensors", model, CARD, float16=True)
    assert not list(tmp_path.iterdir())


def test_tied_weights_come_back(tmp_path):
    first = nn.Linear(2, 2)
    save_checkpoint(tmp_path / "tied.safetensors", nn.Sequential(first, first), CARD)
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    load_checkpoint(tmp_path / "tied.safetensors", other)
    assert torch.equal(other[0].weight, first.weight)
    assert torch.equal(other[1].weight, first.weight)


def test_every_key_that_does_not_fit_is_named_and_the_model_stays(tmp_path):
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, _model(), CARD)
    other = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(4), nn.Identity(), nn.Linear(2, 2))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path, other)
    message = str(caught.value)
    assert message == (
        "small.safetensors does not fit the model: "
        "missing 3.bias, missing 3.weight, "
        "unexpected 2.bias, unexpected 2.weight, "
        "0.bias has shape (4,); expected (5,), "
        "0.weight has shape (4, 3, 3, 3); expected (5, 3, 3, 3)"
    )
    assert _same(before, other.state_dict())


def test_another_hash_is_refused(tmp_path):
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, _model(), CARD)
    with pytest.raises(ValueError, match="expected 00ff"):
        load_checkpoint(path, _model(), sha256="00ff")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"small\.safetensors has sha256 .*; expected"):
        load_checkpoint(path, _model())


def test_a_hash_may_be_written_in_capitals(tmp_path):
    path = tmp_path / "small.safetensors"
    digest = save_checkpoint(path, _model(), CARD)
    load_checkpoint(path, _model(), sha256=digest.upper())


def test_a_card_that_cannot_be_written_leaves_the_old_checkpoint_whole(
    tmp_path, without_shape_checks
):
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, _model(0), CARD)
    with pytest.raises((TypeError, ValueError, RuntimeError), match="ensor"):
        save_checkpoint(path, _model(1), replace(CARD, metrics={"EPE (px)": torch.ones(2)}))
    other = _model(1)
    load_checkpoint(path, other)
    assert _same(other.state_dict(), _model(0).state_dict())
    assert read_card(path) == CARD


def test_metrics_may_be_numbers_of_numpy_or_torch(tmp_path, without_shape_checks):
    path = tmp_path / "small.safetensors"
    metrics = {"EPE (px)": np.float32(1.5), "outliers": torch.tensor(0.25)}
    save_checkpoint(path, _model(), replace(CARD, metrics=metrics))
    assert read_card(path).metrics == {"EPE (px)": 1.5, "outliers": 0.25}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"is damaged \(.*\); expected JSON"),
        ("[1]", "lacks .*sha256|lacks command"),
        ('{"seed": 1}', "lacks .*; expected a JSON object"),
    ],
)
def test_a_broken_card_is_named(tmp_path, text, message):
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, _model(), CARD)
    path.with_suffix(".json").write_text(text)
    for read in (lambda: read_card(path), lambda: load_checkpoint(path, _model())):
        with pytest.raises(ValueError, match=rf"small\.json ({message})"):
            read()


def test_a_damaged_file_is_no_checkpoint(tmp_path):
    path = tmp_path / "small.safetensors"
    save_tensors(path, {"x": torch.ones(3)})
    whole = path.read_bytes()
    for data in (b"", whole[:-1], struct.pack("<Q", 2**40) + whole[8:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"small\.safetensors is not a whole safetensors"):
            load_tensors(path)


def test_a_file_over_the_limit_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"would have 4\.0 MB; expected at most .*, 3\.5"):
        save_checkpoint(
            tmp_path / "large.safetensors", nn.Linear(1000, 1000), CARD, max_megabytes=3.5
        )
    assert not list(tmp_path.iterdir())


def test_wrong_paths_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected a name that ends in \.safetensors"):
        save_checkpoint(tmp_path / "weights.pt", _model(), CARD)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_checkpoint(tmp_path / "none.safetensors", _model())
    with pytest.raises(FileNotFoundError, match="there is no model card"):
        read_card(tmp_path / "none.safetensors")


_DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda key: key != "__metadata__"),
        st.tuples(st.sampled_from(_DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=4,
    )
)
def test_any_tensors_come_back(tmp_path_factory, kinds):
    path = tmp_path_factory.mktemp("tensors") / "any.safetensors"
    tensors = {key: (torch.randn(shape) * 3).to(dtype) for key, (dtype, shape) in kinds.items()}
    save_tensors(path, tensors)
    back = load_tensors(path)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)
    assert all(back[key].dtype == tensors[key].dtype for key in tensors)
