"""graphcompress: makes Transformers in ONNX small and fast, and proves that they still answer the same.

The names below are imported when first used, so that ``import graphcompress`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphcompress.artifact.opening import session
    from graphcompress.base import Capabilities, Context, Exact, Lossy, Pass, Target
    from graphcompress.build import Build, optimize
    from graphcompress.capturing.checkpoint import export
    from graphcompress.capturing.module import capture
    from graphcompress.data.load import Samples, load_samples
    from graphcompress.model import Model
    from graphcompress.options import option
    from graphcompress.pipeline import Pipeline
    from graphcompress.rewrite import Rewriter

__version__ = "0.1.0"

_HOME = {
    "Build": "build",
    "Capabilities": "base",
    "Context": "base",
    "Exact": "base",
    "Lossy": "base",
    "Model": "model",
    "Pass": "base",
    "Pipeline": "pipeline",
    "Rewriter": "rewrite",
    "Samples": "data.samples",
    "Target": "base",
    "capture": "capturing.module",
    "export": "capturing.checkpoint",
    "load_samples": "data.load",
    "optimize": "build",
    "option": "options",
    "session": "artifact.opening",
}

__all__ = [  # noqa: RUF022 - the two verbs first
    "load",
    "optimize",
    "Build",
    "Capabilities",
    "Context",
    "Exact",
    "Lossy",
    "Model",
    "Pass",
    "Pipeline",
    "Rewriter",
    "Samples",
    "Target",
    "capture",
    "export",
    "load_samples",
    "option",
    "session",
]


def load(path: str) -> Model:
    """Read an ONNX file; see :meth:`graphcompress.model.Model.load`."""
    from graphcompress.model import Model

    return Model.load(path)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module or a name of one
    if name not in _HOME:
        raise AttributeError(f"module 'graphcompress' has no attribute {name!r}")
    return getattr(importlib.import_module(f"graphcompress.{_HOME[name]}"), name)
