"""Made-up inputs of a checkpoint: token ids, speech or images, at the sizes that its files name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from graphcompress.capturing.traceable import BATCH_AXIS, Axes, default_axes
from graphcompress.errors import UnsupportedModelError

ROWS, LENGTH, DECODER_LENGTH = 2, 10, 7
SECONDS_OF_SOUND = 1.0
"""Length of raw sound, where nothing says how long it must be."""

_EXTRACTORS = ("preprocessor_config.json", "processor_config.json")


def example(
    module: Any,  # noqa: ANN401 - a model of transformers
    tokenized: Sequence[str] | None,
    extractor: Mapping[str, Any],
) -> dict[str, torch.Tensor]:
    """Inputs that ``module`` (a model, or the encoder of one) takes.

    ``tokenized`` are the names of what its tokenizer makes, ``extractor`` the settings of its feature
    extractor or image processor.

    Raises:
        UnsupportedModelError: inputs that cannot be made up.
    """
    main, takes = module.main_input_name, inspect.signature(module.forward).parameters
    if main == "input_ids":
        names = tokenized or ("input_ids", "attention_mask", *_segments(module.config))
        return {name: tokens(name, module.config, LENGTH) for name in names if name in takes}
    shape = _shape_of(main, module.config, extractor)
    if shape is None:
        raise UnsupportedModelError(
            f"the model takes {main!r}, for which no example can be made up: neither its config.json nor a "
            f"{_EXTRACTORS[0]} says its sizes; use graphcompress.capture(module, example_inputs) from Python"
        )
    return {main: torch.randn((ROWS, *shape), generator=torch.Generator().manual_seed(0))}


def example_axes(
    feed: Mapping[str, torch.Tensor], call: Callable[[dict[str, torch.Tensor]], Any]
) -> dict[str, Axes]:
    """The axes of ``feed`` that may vary; of features and sound those at whose other sizes ``call`` works."""
    axes = default_axes(feed)
    for name, tensor in feed.items():
        if tensor.is_floating_point():
            found = [
                axis for axis in range(1, tensor.ndim) if tensor.ndim < 4 and _varies(feed, name, axis, call)
            ]
            axes[name] = {0: BATCH_AXIS, **{axis: f"{name}_{axis}" for axis in found}}
    return axes


def _varies(feed: Mapping[str, torch.Tensor], name: str, axis: int, call: Callable[..., Any]) -> bool:
    shorter = feed[name].narrow(axis, 0, max(2, int(feed[name].shape[axis] * 0.6)))
    try:
        with torch.no_grad():
            call({**feed, name: shorter})
    except (ValueError, RuntimeError, IndexError):  # how modules say that a size does not fit
        return False
    return True


def extractor_of(source: str | Path) -> dict[str, Any]:
    """Settings of the feature extractor or image processor in a folder; empty without one."""
    for name in _EXTRACTORS:
        file = Path(source) / name
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found.get("feature_extractor") or found.get("image_processor") or found
    return {}


def tokens(name: str, config: Any, length: int) -> torch.Tensor:  # noqa: ANN401
    """Token ids, a mask whose second row is padded, or segment numbers: [rows, length]."""
    if name.endswith("input_ids"):
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, config.get_text_config().vocab_size, (ROWS, length), generator=generator)
    if "mask" not in name:
        return torch.zeros(ROWS, length, dtype=torch.int64)
    mask = torch.ones(ROWS, length, dtype=torch.int64)
    mask[1, length // 2 :] = 0
    return mask


def _segments(config: Any) -> tuple[str, ...]:  # noqa: ANN401 - a configuration of transformers
    return ("token_type_ids",) if getattr(config, "type_vocab_size", 0) > 1 else ()


# ---- sizes of speech and images


def _shape_of(main: str, config: Any, extractor: Mapping[str, Any]) -> tuple[int, ...] | None:  # noqa: ANN401
    """Axes of one sample of the main input; None where nothing says them."""
    if main == "pixel_values":
        sides = _sides(extractor.get("crop_size")) or _sides(extractor.get("size"))
        sides = _sides(getattr(config, "image_size", None)) or sides
        return None if sides is None else (getattr(config, "num_channels", 3), *sides)
    if main == "input_values":
        return (int(SECONDS_OF_SOUND * extractor.get("sampling_rate", 16_000)),)
    if main != "input_features":
        return None
    bands = extractor.get("feature_size") or getattr(config, "num_mel_bins", None)
    positions = getattr(config, "max_source_positions", None)
    frames = extractor.get("nb_max_frames") or (2 * positions if positions else None)
    return (bands, frames) if bands and frames else None


def _sides(size: Any) -> tuple[int, int] | None:  # noqa: ANN401 - as configurations write it
    """Height and width of an image: a number, a pair, or a mapping."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return size[0], size[1]
    if isinstance(size, Mapping) and "height" in size:
        return size["height"], size["width"]
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    return None
