"""A model as a torch.fx.GraphModule, and back: the graph that is deployed is the graph that is trained."""

from __future__ import annotations

from graphcompress.errors import MissingExtraError

try:
    import torch  # noqa: F401 - the extra that this package needs, asked for before anything else
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "graphcompress.fx needs PyTorch, which is not installed; pip install 'graphcompress[torch]'"
    ) from error

from graphcompress.fx.convert import to_fx
from graphcompress.fx.taps import taps
from graphcompress.fx.writing import write_back

__all__ = ["taps", "to_fx", "write_back"]
