"""Instance norms as the releases compute them, for the benchmarks' peers."""

import copy

from torch import nn

__all__ = ["with_instance_norms"]


def with_instance_norms(encoder: nn.Module) -> nn.Module:
    """A copy of an encoder with InstanceNorm2d for each group norm of one channel a group."""
    plain = copy.deepcopy(encoder)
    for module in plain.modules():
        for name, layer in module.named_children():
            if isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels:
                setattr(module, name, nn.InstanceNorm2d(layer.num_channels, eps=layer.eps))
    return plain
