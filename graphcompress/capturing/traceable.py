"""What is captured: a module, an example, the sizes that may differ, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphcompress.errors import UnsupportedModelError

if TYPE_CHECKING:
    import torch

Axes = Mapping[int, str]
"""Axis → name of its size, for the axes whose size may differ from call to call; ``past + sequence`` is the
sum of two."""


@dataclass(frozen=True)
class Traceable:
    """A module, and all that tracing it takes.

    Attributes:
        module: in evaluation mode.
        feed: example inputs by name.
        axes: input name → its dynamic axes.
        outputs: names of the outputs to keep; None for all.
        longest: largest size of a dynamic axis other than the batch; 0 for that of the example.
        name: for messages.
        call: what is computed from the inputs with the module; None to call it with them by name.
    """

    module: torch.nn.Module
    feed: Mapping[str, torch.Tensor]
    axes: Mapping[str, Axes]
    outputs: Sequence[str] | None = None
    longest: int = 0
    name: str = "the module"
    call: Callable[[Mapping[str, torch.Tensor]], Any] | None = None

    def run(self, feed: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Outputs by name on ``feed``, or on the example."""
        import torch

        with torch.no_grad():
            return self.outputs_on(self.feed if feed is None else feed)

    def outputs_on(self, feed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs by name, as a trace records them."""
        return tensors_of(self.module(**feed) if self.call is None else self.call(feed))


BATCH_AXIS, LENGTH_AXIS, PAST_AXIS, ENCODER_AXIS = "batch", "sequence", "past", "encoder_sequence"
PAST, PRESENT = "past_key_values", "present"
"""What the names of inputs and of outputs of a cache begin with."""


def default_axes(feed: Mapping[str, torch.Tensor]) -> dict[str, Axes]:
    """Axis 0 is the batch; axis 1 of token ids and of [batch, sequence, features] is the length.

    Inputs of one length in the example share a name for it; another length gets a name of its own. Keys and
    values of a cache, [batch, heads, length, features], have their length on axis 2; a mask as long as they
    and another input together is over both.
    """
    axes: dict[str, Axes] = {}
    past = next((tensor.shape[2] for name, tensor in feed.items() if _is_key(name, tensor)), None)
    lengths: dict[int, str] = {}
    for name, tensor in feed.items():
        axes[name] = {0: BATCH_AXIS} if tensor.ndim else {}
        if _is_key(name, tensor):
            axes[name] = {0: BATCH_AXIS, 2: ENCODER_AXIS if ".encoder." in name else PAST_AXIS}
        elif _has_length(tensor):
            label = LENGTH_AXIS if not lengths else f"{name}_{LENGTH_AXIS}"
            if past is not None and tensor.shape[1] - past in lengths:
                label = f"{PAST_AXIS} + {lengths[tensor.shape[1] - past]}"
            axes[name] = {0: BATCH_AXIS, 1: lengths.setdefault(tensor.shape[1], label)}
    return axes


def _has_length(tensor: torch.Tensor) -> bool:
    """Whether axis 1 is a length; a size of 1 is fixed to torch.export, and the state of one step."""
    ids = tensor.ndim == 2 and not tensor.is_floating_point()
    return (ids or tensor.ndim == 3) and tensor.shape[1] > 1


def _is_key(name: str, tensor: torch.Tensor) -> bool:
    return tensor.ndim == 4 and name.endswith((".key", ".value"))


def terms(label: str) -> list[str]:
    """The sizes that a label adds up: one, or those of a sum."""
    return label.split(" + ")


def sizes_of(what: Traceable) -> dict[str, int]:
    """Size in the example by label; a sum is the sum of its terms, and is left out."""
    return {
        label: what.feed[name].shape[axis]
        for name, axes in what.axes.items()
        for axis, label in axes.items()
        if len(terms(label)) == 1
    }


def resized(what: Traceable, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """The example cut or repeated to ``sizes`` (by label): every entry is one that the example has."""
    import torch

    feed = {}
    for name, tensor in what.feed.items():
        for axis, label in what.axes.get(name, {}).items():
            size = sum(sizes[term] for term in terms(label))
            # A past of no length has no entry to repeat.
            tensor = tensor.index_select(axis, torch.arange(size) % max(1, tensor.shape[axis]))
        feed[name] = tensor
    return feed


def tensors_of(result: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - whatever a module returns
    """The tensors that a module returned, by name; those of caches and tuples in it, too."""
    import torch

    from graphcompress.capturing.nested import leaves

    if isinstance(result, torch.Tensor):
        return {"output": result}
    if not isinstance(result, (Mapping, Sequence)):
        raise UnsupportedModelError(
            f"the module returns {type(result).__name__}; it must return a tensor, a sequence or a mapping"
        )
    items = result.items() if isinstance(result, Mapping) else enumerate(result)
    prefix = "" if isinstance(result, Mapping) else "output_"
    found: dict[str, torch.Tensor] = {}
    for key, value in items:
        found.update(leaves(PRESENT if key == PAST else f"{prefix}{key}", value))
    return found
