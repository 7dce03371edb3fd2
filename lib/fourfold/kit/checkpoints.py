"""Weights on disk: safetensors, a model card beside them, a sha256, and no half-written file.

Nothing here uses pickle, which runs whatever code a file contains.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load as _parse
from safetensors.torch import save as _serialise
from torch import Tensor, nn

from fourfold.course.files import write_whole

__all__ = [
    "ModelCard",
    "check_keys",
    "file_sha256",
    "load_checkpoint",
    "load_tensors",
    "read_card",
    "read_json",
    "read_settings",
    "save_checkpoint",
    "save_tensors",
    "write_whole",
]


@dataclass(frozen=True)
class ModelCard:
    """Where weights come from: enough to train them again and to know what to expect of them.

    `hours` is wall-clock time on `hardware`; `metrics` are measured on held-out data; `limits`
    says where the model falls short of what it is compared with, and why.
    """

    command: str
    seed: int
    hardware: str
    hours: float
    data: str
    metrics: dict[str, float] = field(default_factory=dict)
    limits: str = ""


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    card: ModelCard,
    *,
    float16: bool = False,
    max_megabytes: float = 6.0,
    settings: dict[str, Any] | None = None,
) -> str:
    """Write the model's parameters and buffers to `path`, its card beside it; return the sha256.

    The card lies at `path` with the ending `.json`. `float16` halves the file. `settings` are what
    it takes to build the model again; they lie as JSON in the file's header, so that one file
    holds all, and `read_settings` reads them. Raises ValueError for a path that does not end in
    `.safetensors`, a file over `max_megabytes` (of 10⁶ bytes), and a value too large for float16;
    nothing is written then.
    """
    path = _safetensors_path(path)
    tensors = model.state_dict()
    if float16:
        tensors = {key: _halved(key, value) for key, value in tensors.items()}
    data = _bytes(tensors, settings)
    if len(data) > max_megabytes * 1e6:
        raise ValueError(
            f"the checkpoint would have {len(data) / 1e6:.1f} MB; "
            f"expected at most max_megabytes, {max_megabytes:g}"
        )
    digest = hashlib.sha256(data).hexdigest()
    about = {**asdict(card), "sha256": digest, "bytes": len(data), "float16": float16}
    # Before the first write; and `float` for metrics that are numbers of NumPy or torch.
    text = json.dumps(about, indent=2, ensure_ascii=False, default=float)
    write_whole(path, data)
    write_whole(path.with_suffix(".json"), text)
    return digest


def load_checkpoint(path: str | Path, model: nn.Module, sha256: str | None = None) -> None:
    """Copy the tensors at `path` into `model`, each in the model's own dtype and on its device.

    The file must match `sha256` where one is given, else the one on its card where there is one.
    Raises ValueError for another hash, for a card that is damaged, and for keys or shapes that
    differ, naming all of them; the model is unchanged then.
    """
    path = Path(path)
    if sha256 is None and path.with_suffix(".json").is_file():
        sha256 = str(read_json(path.with_suffix(".json"), ("sha256",))["sha256"])
    tensors = load_tensors(path, sha256)
    check_keys(path.name, tensors, model.state_dict())
    model.load_state_dict(tensors)  # copies into the model's own tensors, which keep their dtype


def read_card(path: str | Path) -> ModelCard:
    """The model card of the checkpoint at `path`.

    Raises FileNotFoundError where there is none and ValueError for one that is damaged.
    """
    path = Path(path).with_suffix(".json")
    if not path.is_file():
        raise FileNotFoundError(f"path is {str(path)!r}; there is no model card there")
    names = [name for name in ModelCard.__dataclass_fields__ if name != "limits"]
    about = read_json(path, names)
    return ModelCard(**{name: about[name] for name in names}, limits=about.get("limits", ""))


def read_json(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """The JSON object at `path`. Raises ValueError unless it is there, whole, and has `keys`."""
    if not path.is_file():
        raise ValueError(f"{path} is not there; expected a JSON file")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); expected JSON") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; expected a JSON object with them")
    return content


def save_tensors(path: str | Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors to `path` as safetensors, whole or not at all."""
    write_whole(_safetensors_path(path), _bytes(tensors))


def load_tensors(path: str | Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read named tensors from a safetensors file, in the order of their names.

    Raises FileNotFoundError for a path without a file, and ValueError for a file that is damaged
    or does not match `sha256`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path is {str(path)!r}; there is no such file")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise ValueError(f"{path.name} has sha256 {found}; expected {sha256}")
    try:
        tensors = _parse(data)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file ({error})") from error
    return dict(sorted(tensors.items()))  # safetensors hands them out in any order


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that `save_checkpoint` wrote into the header of the file at `path`.

    Raises FileNotFoundError for a path without a file, and ValueError for a file that is damaged
    or has no settings.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path is {str(path)!r}; there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file ({error})") from error
    if "settings" not in header:
        raise ValueError(f"{path.name} has no settings in its header; expected a file with them")
    return json.loads(header["settings"])


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _safetensors_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path is {str(path)!r}; expected a name that ends in .safetensors")
    return path


def _bytes(tensors: dict[str, Tensor], settings: dict[str, Any] | None = None) -> bytes:
    header = None if settings is None else {"settings": json.dumps(settings, ensure_ascii=False)}
    # Clones, because safetensors refuses two names for one memory, as tied weights have.
    return _serialise(
        {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()},
        metadata=header,
    )


def _halved(key: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    half = value.half()
    too_large = value.isfinite() & ~half.isfinite()
    if too_large.any():
        largest = value[too_large].abs().max().item()
        raise ValueError(
            f"{key} has a value of {largest:g}; expected at most 65504, float16's limit"
        )
    return half


def check_keys(name: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises ValueError for names or shapes in `found` that differ from `expected`, naming all."""
    wrong = [f"missing {key}" for key in sorted(expected) if key not in found]
    wrong += [f"unexpected {key}" for key in found if key not in expected]
    wrong += [
        f"{key} has shape {tuple(found[key].shape)}; expected {tuple(expected[key].shape)}"
        for key in sorted(expected)
        if key in found and found[key].shape != expected[key].shape
    ]
    if wrong:
        raise ValueError(f"{name} does not fit the model: {', '.join(wrong)}")
