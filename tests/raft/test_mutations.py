"""Classic mistakes, made on purpose: each changes the flow as much as it changed the release's.

A mistake in the order of channels is made by giving the next layer's weights that order. The
changes of the release are in tests/reference/raft_mutations.json; meeting them shows that the
frozen numbers would catch each mistake, and that it is the same mistake.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from official import REFERENCE, official_state_dict, reference
from torch import nn

from fourfold.bilinear_sampling.sampling import sample
from fourfold.bilinear_sampling.warps import pixel_grid
from fourfold.raft import raft as raft_module
from fourfold.raft import update as update_module
from fourfold.raft.correlation import CorrelationVolume
from fourfold.raft.raft import RAFT

CHANGES = json.loads((REFERENCE / "raft_mutations.json").read_text())


def row_major_windows(model, monkeypatch):
    weight = model.update_block.encoder.convc1.weight
    side = 2 * model.radius + 1
    windows = weight.data.unflatten(1, (model.levels, side, side))
    weight.data = windows.transpose(2, 3).flatten(1, 3).contiguous()


class BorderVolume(CorrelationVolume):
    def __call__(self, positions):
        B, _, H, W = positions.shape
        centres = positions.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
        side = 2 * self.radius + 1
        offsets = pixel_grid(side, side).transpose(0, 1) - self.radius
        found = [
            sample(level[:, None], centres / 2**k + offsets, padding="border").view(B, H, W, -1)
            for k, level in enumerate(self.levels)
        ]
        return torch.cat(found, dim=-1).permute(0, 3, 1, 2)


def border_padding(model, monkeypatch):
    monkeypatch.setitem(raft_module._CORRELATIONS, "all-pairs", BorderVolume)


def no_root_of_the_width(model, monkeypatch):
    model.update_block.encoder.convc1.weight.data *= model.fnet.conv2.out_channels**0.5


def fnet_sees_0_to_1(model, monkeypatch):
    model.fnet.register_forward_pre_hook(lambda _, inputs: ((inputs[0] + 1) / 2,))


def context_split_swapped(model, monkeypatch):
    for values in (model.cnet.conv2.weight, model.cnet.conv2.bias):
        values.data = values.data.roll(-model.context, dims=0)


def instance_norm_of_other_eps(model, monkeypatch):
    for layer in model.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.eps = 1e-3


def vertical_before_horizontal(model, monkeypatch):
    gru = model.update_block.gru
    gru.horizontal, gru.vertical = gru.vertical, gru.horizontal


def flow_before_the_features(model, monkeypatch):
    gru = model.update_block.gru
    for unit in [gru] if model.variant == "small" else [gru.horizontal, gru.vertical]:
        for conv in (unit.convz, unit.convr, unit.convq):
            weight, start = conv.weight.data, model.hidden + model.context
            weight[:, start:] = weight[:, start:].roll(-2, dims=1)


def mask_without_a_quarter(model, monkeypatch):
    for values in model.update_block.mask.conv2.parameters():
        values.data *= 4


def mask_of_other_order(model, monkeypatch):
    for values in model.update_block.mask.conv2.parameters():
        values.data = values.data.unflatten(0, (64, 9)).transpose(0, 1).flatten(0, 1).contiguous()


def context_norm_in_training(model, monkeypatch):
    monkeypatch.setattr(model.cnet, "train", lambda mode: nn.Module.train(model.cnet, True))


def gates_swapped(model, monkeypatch):
    for values in model.update_block.gru.convz.parameters():
        values.data *= -1


def corners_not_aligned(model, monkeypatch):
    def enlarge(flow):
        return 8 * F.interpolate(flow, scale_factor=8, mode="bilinear", align_corners=False)

    monkeypatch.setattr(update_module, "bilinear_upsample", enlarge)


MISTAKES = {
    "window channels row-major (dy outer)": row_major_windows,
    "lookup border padding": border_padding,
    "no division by sqrt(D)": no_root_of_the_width,
    "fnet input in [0,1] instead of [-1,1] (InstanceNorm hides most of it)": fnet_sees_0_to_1,
    "context split order swapped": context_split_swapped,
    "InstanceNorm eps 1e-3 instead of 1e-5": instance_norm_of_other_eps,
    "SepConvGRU vertical before horizontal": vertical_before_horizontal,
    "flow put before the 126/80 motion features": flow_before_the_features,
    "mask without the 0.25": mask_without_a_quarter,
    "mask channels read as (8,8,9) instead of (9,8,8)": mask_of_other_order,
    "context BatchNorm in train mode": context_norm_in_training,
    "GRU z and 1-z swapped": gates_swapped,
    "upflow8 align_corners=False": corners_not_aligned,
}
CASES = [(v, m) for v in ("full", "small") for m in CHANGES[v] if m in MISTAKES]


def test_every_mistake_is_made():
    made = {name for _, name in CASES}
    # The others change nothing: they are other ways to the same numbers.
    assert all(
        change < 1e-4 for v in CHANGES for name, change in CHANGES[v].items() if name not in made
    )


@pytest.mark.parametrize(("variant", "mistake"), CASES)
def test_a_mistake_changes_the_flow_as_in_the_release(variant, mistake, monkeypatch):
    model, official = RAFT.from_official(official_state_dict(variant)), reference(f"raft_{variant}")
    MISTAKES[mistake](model, monkeypatch)
    images = [official[f"image{k}"][None].float() for k in (1, 2)]
    flow = model.estimate(*images, int(official["iters"])).full
    change = (flow - official["flow_up_final"]).abs().max().item()
    # Wrong networks amplify rounding; the smallest change, 0.12 px, is 600 tolerances of parity.
    assert change == pytest.approx(CHANGES[variant][mistake], rel=1e-3, abs=2e-3)
