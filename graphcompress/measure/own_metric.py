"""A metric that a user wrote: a function of (answers, rows) or (run, rows), in a file or as an object.

A function says more about itself through attributes: ``wer.higher_is_better = False`` and
``wer.task = "text-classification"``, where the outputs of the model do not say the task.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal

from graphcompress.data.rows import Rows
from graphcompress.errors import GraphCompressError, MetricError, UsageError
from graphcompress.plugin.task import Figure, Metric, own_metric

Function = Callable[[Any, Rows], float | Figure]


def read(text: str) -> Metric:
    """The metric ``my_file.py:function``; it may be a class that extends :class:`Metric`, too.

    Raises:
        UsageError: no such file or function, or its first parameter is neither ``answers`` nor ``run``.
        MetricError: the file itself fails.
    """
    file, name = own_metric(text)
    spec = importlib.util.spec_from_file_location(str(Path(file).resolve()), file)  # no other module's name
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise UsageError(f"metric {text}: no such file; give the path of a Python file and a function in it")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file does
        raise MetricError(f"metric {text}: the file fails with {_sentence(error)}") from error
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, Metric):
        return _of_class(found, text, (file,))
    if not callable(found):
        raise UsageError(f"metric {text}: the file has no function {name!r}")
    return _of_function(found, text, (file,))


def of_object(function: Function) -> Metric:
    """The metric of a function; where it lies in a file by its own name, a recipe can name it.

    Raises:
        UsageError: its first parameter is neither ``answers`` nor ``run``.
    """
    name: str = getattr(function, "__qualname__", type(function).__name__)
    file = inspect.getsourcefile(function) if inspect.isfunction(function) else None
    if file is None or not name.isidentifier() or not Path(file).is_file():
        return _of_function(function, name, ())
    path = Path(file)
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return _of_function(function, f"{path.as_posix()}:{name}", (os.fspath(path),))


@dataclass(frozen=True)
class _Own(Metric):
    """A function of a user, whose errors name it."""

    function: ClassVar[Function]

    def figure(self, given: Any, rows: Rows) -> Figure:  # noqa: ANN401 - as the function wants it
        """What the function finds.

        Raises:
            MetricError: it fails, or finds no number.
        """
        try:
            found = type(self).function(given, rows)
        except (GraphCompressError, MemoryError):
            raise
        except Exception as error:  # whatever the function does
            raise MetricError(f"metric {self.name} fails with {_sentence(error)}") from error
        if isinstance(found, Figure):
            return found
        if not isinstance(found, Real):
            raise MetricError(f"metric {self.name} returned {found!r:.60}, not a number")
        return Figure(float(found), len(rows))


def _of_function(function: Callable[..., Any], text: str, files: tuple[str, ...]) -> Metric:
    task = getattr(function, "task", None)
    given = _given(function, text)
    attributes: dict[str, object] = {
        "__doc__": inspect.getdoc(function) or "A metric of the user's own.",
        "name": text,
        "label": text.rpartition(":")[2].rpartition(".")[2],
        "tasks": (task,) if task else (),
        "higher_is_better": bool(getattr(function, "higher_is_better", True)),
        "needs_original": given == "answers",
        "given": given,
        "files_read": files,
        "function": staticmethod(function),
    }
    return _made(_Own, attributes)


def _of_class(cls: type[Metric], text: str, files: tuple[str, ...]) -> Metric:
    return _made(cls, {"name": text, "files_read": files})


def _made(base: type[Metric], attributes: dict[str, object]) -> Metric:
    metric: Metric = type(base.__name__, (base,), attributes)()
    return metric


def _given(function: Callable[..., Any], text: str) -> Literal["answers", "run"]:
    """What the function is given, by the name of its first parameter."""
    try:
        first = next(iter(inspect.signature(function).parameters), "")
    except (TypeError, ValueError):  # built in, without a signature
        first = ""
    if first == "answers":
        return "answers"
    if first == "run":
        return "run"
    raise UsageError(
        f"metric {text}: write it as a function of (answers, rows) or (run, rows); its first parameter is "
        f"{first!r}"
    )


def _sentence(error: Exception) -> str:
    """Kind and text of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
