"""The parts of a model that writes: an encoder, and a decoder that reads and returns keys and values.

What a cache consists of is found by running the model, and which of its axes vary by running it at other
sizes. Names of files, inputs and outputs are those of optimum (huggingface.co/docs/optimum-onnx).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from graphcompress.capturing.nested import has_window, leaves, rebuilt
from graphcompress.capturing.traceable import (
    BATCH_AXIS,
    ENCODER_AXIS,
    LENGTH_AXIS,
    PAST,
    PAST_AXIS,
    PRESENT,
    Axes,
    Traceable,
    resized,
    sizes_of,
)
from graphcompress.errors import UnsupportedModelError

MODEL, ENCODER, DECODER = "model.onnx", "encoder_model.onnx", "decoder_model.onnx"
DECODER_WITH_PAST, DECODER_MERGED = "decoder_with_past_model.onnx", "decoder_model_merged.onnx"

STATES, MASK, ENCODER_MASK = "encoder_hidden_states", "attention_mask", "encoder_attention_mask"

ROWS, LENGTH, PAST_LENGTH = 2, 3, 5
"""Sizes of the example; the source of an encoder is longer than both lengths."""


def writes(module: Any) -> bool:  # noqa: ANN401 - a model of transformers
    """Whether ``module`` is of a class that transformers' ``generate`` runs."""
    return hasattr(module, "can_generate") and bool(module.can_generate())


def parts_of(what: Traceable, *, past: bool) -> dict[str, Traceable]:
    """File name → what is translated into it, of a model of transformers that writes.

    The feed of ``what`` is what the encoder reads; a decoder without one has no feed. Without ``past``, or
    where the model returns nothing for a next step, a decoder is one graph for whole texts.

    Raises:
        UnsupportedModelError: what the model returns for a next step has no axis for the rows of a batch.
    """
    module: Any = what.module
    if getattr(module.config, "is_encoder_decoder", False):
        return _encoder_and_decoder(what, past=past)
    return {MODEL: _decoder_alone(what, past=past)}


@dataclass(frozen=True)
class Decoder:
    """Calls a decoder with its head; its cache is tensors by name.

    Attributes:
        module: of transformers.
        argument: name of the cache in what the module takes and returns; empty to use none.
        cache: one that it has returned; None in the first pass.
    """

    module: Any
    argument: str = ""
    cache: Any = None

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Logits, and what the next step reads."""
        result = self.result(tensors, use_cache=bool(self.argument))
        present = leaves(PRESENT, result[self.argument]) if self.argument else {}
        return {"logits": result["logits"], **self.returned(present)}

    def result(self, tensors: Mapping[str, torch.Tensor], *, use_cache: bool = True) -> Any:  # noqa: ANN401
        """What the module itself returns."""
        given = self.given(tensors)
        if self.cache is not None:
            given[self.argument] = rebuilt(PAST, self.cache, tensors)
        # A configuration may ask for tuples, in which nothing has a name.
        return self.module(**given, use_cache=use_cache, return_dict=True)

    def given(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Arguments of the module but the cache."""
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{PAST}.")}

    def returned(self, present: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those of the tensors of the cache that are outputs."""
        return present


@dataclass(frozen=True)
class CrossDecoder(Decoder):
    """Calls a decoder that reads an encoder's states: in the first pass, and later keys and values of them.

    Attributes:
        stand_in: a key of the states in the cache with its axes, and the width of the states: a step is
            given zeros of their shape in their place.
    """

    stand_in: tuple[str, Axes, int] | None = None

    def given(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Arguments of the module but the cache."""
        from transformers.modeling_outputs import BaseModelOutput

        states = tensors[STATES] if self.stand_in is None else _zeros(tensors, *self.stand_in)
        masked = {MASK: tensors[ENCODER_MASK]} if ENCODER_MASK in tensors else {}
        return {
            "decoder_input_ids": tensors["input_ids"],
            "encoder_outputs": BaseModelOutput(last_hidden_state=states),
            **masked,
        }

    def returned(self, present: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All in the first pass; later keys and values of the decoder's own tokens alone, the others stay."""
        return {
            name: tensor for name, tensor in present.items() if not self.stand_in or ".encoder." not in name
        }


def _zeros(tensors: Mapping[str, torch.Tensor], key: str, axes: Axes, width: int) -> torch.Tensor:
    sizes = {label: tensors[key].shape[axis] for axis, label in axes.items()}
    return tensors[key].new_zeros(()).expand(sizes[BATCH_AXIS], sizes[ENCODER_AXIS], width)


@dataclass(frozen=True)
class Encoder:
    """Calls the encoder of an encoder–decoder."""

    module: Any

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The last hidden state."""
        return {"last_hidden_state": self.module.get_encoder()(**tensors, return_dict=True)[0]}


# ---- the parts


def _decoder_alone(what: Traceable, *, past: bool) -> Traceable:
    """One graph for the first pass, in which the past is empty, and for every step after it."""
    takes = inspect.signature(what.module.forward).parameters
    ids = _tokens(what.module, LENGTH + PAST_LENGTH)
    mask = torch.ones_like(ids)
    mask[1, LENGTH:] = 0
    feed = {"input_ids": ids, MASK: mask, "position_ids": torch.arange(ids.shape[1]).repeat(ROWS, 1)}
    feed = {name: tensor for name, tensor in feed.items() if name in takes}
    axes: dict[str, Axes] = {name: {0: BATCH_AXIS, 1: LENGTH_AXIS} for name in feed}
    whole = replace(what, feed=feed, axes=axes, call=Decoder(what.module))
    cache = _Cache.of(whole) if past else None
    if cache is None:
        return whole
    cached, cached_axes = cache.at({LENGTH_AXIS: PAST_LENGTH})
    step = {name: tensor[:, PAST_LENGTH:] for name, tensor in feed.items()}
    if MASK in feed:
        step[MASK] = mask.flip(1)  # past keys are padded in front
        axes = {**axes, MASK: {0: BATCH_AXIS, 1: f"{PAST_AXIS} + {LENGTH_AXIS}"}}
    return replace(
        what,
        feed={**step, **leaves(PAST, cached)},
        axes={**axes, **cached_axes},
        call=Decoder(what.module, cache.argument, cached),
    )


def _encoder_and_decoder(what: Traceable, *, past: bool) -> dict[str, Traceable]:
    labels = {
        name: {axis: ENCODER_AXIS if label == LENGTH_AXIS else label for axis, label in found.items()}
        for name, found in what.axes.items()
    }
    encoder = replace(what, axes=labels, call=Encoder(what.module), name=f"{what.name} (encoder)")
    states = encoder.run()["last_hidden_state"]
    ids = _tokens(what.module, LENGTH + PAST_LENGTH)
    of_source: Axes = {0: BATCH_AXIS, 1: ENCODER_AXIS}
    feed, axes = {"input_ids": ids[:, :LENGTH], STATES: states}, {STATES: of_source}
    axes["input_ids"] = {0: BATCH_AXIS, 1: LENGTH_AXIS}
    if MASK in what.feed and what.feed[MASK].shape == states.shape[:2]:
        feed, axes = {ENCODER_MASK: what.feed[MASK], **feed}, {ENCODER_MASK: of_source, **axes}
    first = replace(what, feed=feed, axes=axes, call=CrossDecoder(what.module), name=f"{what.name} (decoder)")
    cache = _Cache.of(first) if past else None
    if cache is None:
        return {ENCODER: encoder, DECODER: first}
    decoder = replace(first, call=CrossDecoder(what.module, cache.argument))
    # Two tokens, for torch.export takes a size of 1 as fixed.
    return {ENCODER: encoder, DECODER: decoder, DECODER_WITH_PAST: _step(cache, ids[:, LENGTH : LENGTH + 2])}


def _step(cache: _Cache, ids: torch.Tensor) -> Traceable:
    """The decoder after the first pass; it is given the encoder's states where their keys do not suffice."""
    first = cache.first
    cached, axes = cache.at({LENGTH_AXIS: PAST_LENGTH})
    call = CrossDecoder(first.module, cache.argument, cached)
    step = replace(
        first,
        feed={**first.feed, "input_ids": ids, **leaves(PAST, cached)},
        axes={**first.axes, **axes},
        call=call,
        name=f"{first.name} with past",
    )
    key = next((name for name, found in axes.items() if ENCODER_AXIS in found.values()), None)
    if key is None:
        return step
    without = replace(
        step,
        feed={name: tensor for name, tensor in step.feed.items() if name != STATES},
        axes={name: found for name, found in step.axes.items() if name != STATES},
        call=replace(call, stand_in=(key, axes[key], first.feed[STATES].shape[2])),
    )
    expected, answered = step.run(), without.run()
    # Equal to the bit: states that are not read change nothing at all.
    return without if all(torch.equal(expected[name], answered[name]) for name in answered) else step


def prompts_of(module: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - a model of transformers
    """Two prompts for a decoder alone, of different lengths where it can tell them apart."""
    ids = _tokens(module, LENGTH + PAST_LENGTH)
    mask = torch.ones_like(ids)
    mask[1, LENGTH:] = 0
    return {"input_ids": ids, MASK: mask}


def _tokens(module: Any, length: int) -> torch.Tensor:  # noqa: ANN401 - a model of transformers
    """Token ids [rows, length] of the decoder's vocabulary."""
    vocabulary = module.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (ROWS, length), generator=generator)


# ---- what is kept from step to step


@dataclass(frozen=True)
class _Cache:
    """What a decoder keeps from step to step, as its first pass returns it.

    Attributes:
        first: the first pass.
        argument: its name among what the module returns and takes.
    """

    first: Traceable
    argument: str

    @classmethod
    def of(cls, first: Traceable) -> _Cache | None:
        """The cache of a decoder; None where it returns nothing that it also takes."""
        call: Any = first.call
        takes = inspect.signature(first.module.forward).parameters
        with torch.no_grad():
            result = call.result(first.feed)
        for name, value in result.items():
            if name in takes and not isinstance(value, torch.Tensor) and leaves(PAST, value):
                return cls(first, name)
        return None

    def at(self, sizes: Mapping[str, int]) -> tuple[Any, dict[str, Axes]]:
        """The cache after a first pass at other ``sizes``, and the axes of its tensors that vary.

        Raises:
            UnsupportedModelError: a tensor of it has no axis for the rows of a batch.
        """
        base = {**sizes_of(self.first), **sizes}
        cache = self._returned(base)
        axes: dict[str, dict[int, str]] = {name: {} for name in leaves(PAST, cache)}
        for label, size in base.items():
            other = leaves(PAST, self._returned({**base, label: size + 1}))
            for name, tensor in leaves(PAST, cache).items():
                for axis, (one, two) in enumerate(zip(tensor.shape, other[name].shape, strict=True)):
                    if one != two:
                        axes[name][axis] = PAST_AXIS if label == LENGTH_AXIS else label
        for name, found in axes.items():
            if BATCH_AXIS not in found.values():
                raise UnsupportedModelError(
                    f"{self.first.name}: {name}, which it keeps for the next step, has no axis for the rows "
                    "of a batch; export it with --no-past, or wrap it in a module of your own and use capture"
                )
        return cache, {name: dict(sorted(found.items())) for name, found in axes.items()}

    def _returned(self, sizes: Mapping[str, int]) -> Any:  # noqa: ANN401
        call: Any = self.first.call
        feed = resized(self.first, sizes)
        with torch.no_grad():
            found = call.result(feed)[self.argument]
            if not has_window(found):
                return found
            # What a window has cut off is missing: the first pass again, on an empty past without windows.
            empty = {name: tensor[:, :, :0] for name, tensor in leaves(PAST, found).items()}
            whole = replace(call, argument=self.argument, cache=found)
            return whole.result({**feed, **empty})[self.argument]
