from typing import NamedTuple
from torch import Tensor
class Tracks(NamedTuple):
    points: Tensor
    visibility: Tensor
    confidence: Tensor | None = None
