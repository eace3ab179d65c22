"""Says in an artifact's ``config.json`` what loading code reads there of sizes that were cut."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from graphcompress.analysis.attentions import attentions
from graphcompress.coupling.couplings import FFN, couplings
from graphcompress.files.parts import is_past
from graphcompress.graph.model import Model

HEADS, CACHED, WIDTH, NODES = "heads", "key/value heads", "head size", "FFN nodes"

_KEYS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "encoder": {
        HEADS: ("encoder_attention_heads", "num_heads", "num_attention_heads"),
        WIDTH: ("d_kv", "head_dim"),
        NODES: ("encoder_ffn_dim", "d_ff", "intermediate_size"),
    },
    "decoder": {
        HEADS: ("decoder_attention_heads", "num_heads", "num_attention_heads", "n_head"),
        CACHED: ("num_key_value_heads",),
        WIDTH: ("d_kv", "head_dim"),
        NODES: ("decoder_ffn_dim", "d_ff", "n_inner", "intermediate_size"),
    },
}
"""Names that configurations of transformers have for a size, those of one side of a model first."""


def write_configuration(model: Model, folder: Path) -> tuple[str, ...]:
    """Bring ``config.json`` in ``folder`` up to date; notes on what it cannot say.

    Nothing is written where no size was cut, or where there is no such file.
    """
    path = folder / "config.json"
    if not model.parts or not model.kept or not path.is_file():
        return ()
    config = json.loads(path.read_text(encoding="utf-8"))
    notes: dict[str, None] = {}
    said: dict[str, int] = {}
    for part, one in model.separate():
        side = "encoder" if part.role == "encoder" else "decoder"
        for what, sizes in _sizes(one).items():
            notes.update(dict.fromkeys(_say(config, said, side, what, sizes)))
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return tuple(notes)


def _sizes(model: Model) -> dict[str, set[int]]:
    found = attentions(model)
    # A layer that is gone leaves its cache, of as many heads as it had.
    shapes = [value.shape for value in model.graph.inputs if is_past(value.name or "") and value.shape]
    cached = {shape[1] for shape in shapes if len(shape) == 4 and not isinstance(shape[2], int)}
    heads = {size for size in cached if isinstance(size, int)}
    alike = all(attention.num_heads == attention.kv_heads for attention in found)
    return {
        HEADS: {attention.num_heads for attention in found} | (heads if alike else set()),
        CACHED: {attention.kv_heads for attention in found} | heads,
        WIDTH: {attention.head_dim for attention in found},
        NODES: {group.size for group in couplings(model) if group.kind == FFN},
    }


def _say(
    config: dict[str, Any], said: dict[str, int], side: str, what: str, sizes: set[int]
) -> Iterable[str]:
    """Write one size, or a note why it cannot be said."""
    key = next((name for name in _KEYS[side].get(what, ()) if name in config), None)
    if key is None:
        if what == WIDTH and sizes and not _follows(config, side, sizes):
            yield (
                f"config.json has no name for the head size {_text(sizes)}: loading code that divides the "
                "hidden size by the number of heads makes an empty cache of another shape"
            )
        return
    if not sizes or (config[key] in sizes and len(sizes) == 1):
        return
    # Encoder and decoder may share a name such as num_heads: what one has said the other may not contradict.
    if len(sizes) > 1 or said.get(key, min(sizes)) not in sizes:
        yield f"config.json has one {key!r}, and the {side} has {_text(sizes)} {what} in its layers"
        return
    config[key] = said[key] = min(sizes)


def _follows(config: Mapping[str, Any], side: str, sizes: set[int]) -> bool:
    """Whether every head is as large as the hidden size divided by the number of heads that is said."""
    hidden = next((config[name] for name in ("hidden_size", "d_model", "n_embd") if name in config), None)
    heads = next((config[name] for name in _KEYS[side][HEADS] if name in config), None)
    return hidden is None or heads is None or all(size * heads == hidden for size in sizes)


def _text(sizes: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(sizes)))
