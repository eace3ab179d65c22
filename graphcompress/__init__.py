"""graphcompress: makes Transformers in ONNX small and fast, and proves that they still answer the same.

The names below are imported when first used, so that ``import graphcompress`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from graphcompress.artifact.opening import session
    from graphcompress.build.optimize import optimize
    from graphcompress.build.questions import Benchmark, Report, Verification, bench, inspect, report, verify
    from graphcompress.build.request import Request
    from graphcompress.build.result import Build
    from graphcompress.capturing.checkpoint import export
    from graphcompress.capturing.module import capture
    from graphcompress.cli.progress import progress
    from graphcompress.data.load import Samples, load_samples
    from graphcompress.graph.model import Model
    from graphcompress.pipeline.pipeline import Pipeline
    from graphcompress.plugin.base import Pass, Target
    from graphcompress.plugin.capabilities import Capabilities
    from graphcompress.plugin.context import Context
    from graphcompress.plugin.contract import Exact, Lossy
    from graphcompress.plugin.instrument import Instrument
    from graphcompress.plugin.options import option
    from graphcompress.plugin.task import Figure, Metric, Task
    from graphcompress.rewrite.rewriter import Rewriter

__version__ = "0.1.0"

_HOME = {
    "Benchmark": "build.questions",
    "Build": "build.result",
    "Capabilities": "plugin.capabilities",
    "Context": "plugin.context",
    "Exact": "plugin.contract",
    "Figure": "plugin.task",
    "Instrument": "plugin.instrument",
    "Lossy": "plugin.contract",
    "Metric": "plugin.task",
    "Model": "graph.model",
    "Pass": "plugin.base",
    "Pipeline": "pipeline.pipeline",
    "Report": "build.questions",
    "Request": "build.request",
    "Rewriter": "rewrite.rewriter",
    "Samples": "data.samples",
    "Target": "plugin.base",
    "Task": "plugin.task",
    "Verification": "build.questions",
    "bench": "build.questions",
    "capture": "capturing.module",
    "export": "capturing.checkpoint",
    "inspect": "build.questions",
    "load_samples": "data.load",
    "optimize": "build.optimize",
    "option": "plugin.options",
    "progress": "cli.progress",
    "report": "build.questions",
    "session": "artifact.opening",
    "verify": "build.questions",
}

__all__ = [  # noqa: RUF022 - the two verbs first
    "load",
    "optimize",
    "Benchmark",
    "Build",
    "Capabilities",
    "Context",
    "Exact",
    "Figure",
    "Instrument",
    "Lossy",
    "Metric",
    "Model",
    "Pass",
    "Pipeline",
    "Report",
    "Request",
    "Rewriter",
    "Samples",
    "Target",
    "Task",
    "Verification",
    "bench",
    "capture",
    "export",
    "inspect",
    "load_samples",
    "option",
    "progress",
    "report",
    "session",
    "verify",
]


def load(path: str | Path) -> Model:
    """Read an ONNX file; see :meth:`graphcompress.graph.model.Model.load`."""
    from graphcompress.graph.model import Model

    return Model.load(path)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module or a name of one
    if name not in _HOME:
        raise AttributeError(f"module 'graphcompress' has no attribute {name!r}")
    return getattr(importlib.import_module(f"graphcompress.{_HOME[name]}"), name)
