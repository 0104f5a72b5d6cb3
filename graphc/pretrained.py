"""What models with published weights share: configurations read from ``config.json``, presets, names of activations,
and the older names that some weight files still carry."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import graphc as gc
from graphc import nn
from graphc.errors import error

__all__ = ["ACTIVATIONS", "Pretrained", "PretrainedConfig", "by_preset", "quick_gelu"]


def quick_gelu(x: gc.Tensor) -> gc.Tensor:
    """x * sigmoid(1.702 x), the approximation of GELU that CLIP was trained with (arXiv 1606.08415, section 2)."""
    return x * gc.sigmoid(1.702 * x)


# The names that transformers gives to activations.
ACTIVATIONS: dict[str, Callable[[gc.Tensor], gc.Tensor]] = {
    "gelu": gc.gelu,
    "gelu_new": lambda x: gc.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: gc.gelu(x, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": gc.relu,
    "silu": gc.silu,
}


def by_preset() -> Any:
    """A key whose default depends on ``preset``."""
    return dataclasses.field(default=None)


class PretrainedConfig:
    """Base of dataclasses whose keys are those of a `transformers` configuration."""

    def fill(self, presets: Mapping[str, Mapping[str, Any]], common: Mapping[str, Any]) -> None:
        """Give each key that is still None its value in the preset, or else in ``common``. Raises ValueError."""
        name = getattr(self, "preset", "")
        if name not in presets:
            raise ValueError(f"preset is one of {', '.join(presets)}, not {name!r}")
        for key, value in {**common, **presets[name]}.items():
            if getattr(self, key) is None:
                setattr(self, key, value)

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any], **overrides: Any) -> Self:
        """From a published ``config.json`` (its path or its content), with some values replaced.

        Keys that this configuration does not have are ignored: they speak of generation, files and other heads. The
        number of labels comes from ``id2label``, where such files keep it. Raises GC0603 and GC0604.
        """
        found = dict(source) if isinstance(source, Mapping) else _read_json(source)
        if "id2label" in found:
            found.setdefault("num_labels", len(found["id2label"]))
        known = {f.name for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
        return cls(**{key: value for key, value in (found | overrides).items() if key in known})


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        hint = "give the path of a model's config.json"
        raise error("GC0603", f"cannot read the configuration {path}: {e.strerror}", hint=hint) from e
    except ValueError as e:
        raise error("GC0604", f"{path} is no JSON text: {e}", hint="download it again") from e
    if not isinstance(values, dict):
        raise error("GC0604", f"{path} holds no JSON object", hint="give the path of a model's config.json")
    return values


class Pretrained(nn.Module):
    """A model that takes its published weight files as they are.

    ``published``: pairs (pattern, replacement) that turn other names found in such files into the model's own; an empty
    result drops the tensor. They are tried in order, all of them.
    """

    published: ClassVar[tuple[tuple[str, str], ...]] = ()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> tuple[list[str], list[str]]:
        """As `Module.load_state_dict`, after the names are those of this model."""
        return super().load_state_dict(self.own_names(state_dict), strict)

    def own_names(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """``state_dict`` under this model's names."""
        renamed: dict[str, Any] = {}
        for name, array in state_dict.items():
            own = name
            for pattern, replacement in self.published:
                own = re.sub(pattern, replacement, own)
            if own:
                renamed[own] = array
        return renamed
