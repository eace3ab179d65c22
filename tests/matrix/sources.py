"""What a cell depends on: the code that its check can reach, so that other changes leave the cell valid."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType

import test_imports

from matrix import subject, tools

SIMPLIFY = "graphcompress.passes.simplify.simplify"
INT8, PRUNE = "graphcompress.passes.quantize.int8", "graphcompress.passes.prune.prune"
PIPELINE, BUILD = "graphcompress.pipeline.pipeline", "graphcompress.build.optimize"
CPU = "graphcompress.targets.cpu.cpu"
MASKS = "graphcompress.instruments.score_masks.attached"
COUPLINGS, CUT = "graphcompress.coupling.couplings", "graphcompress.cutting.cut"

ROOTS: dict[str, tuple[str, ...]] = {
    "attentions": ("graphcompress.analysis.attention",),
    "groups": (COUPLINGS,),
    "cut = masked": (COUPLINGS, CUT),
    "every group": (COUPLINGS, CUT),
    "dead units": (PRUNE,),
    "25 % pruned": (PRUNE,),
    "goals": (PRUNE, "graphcompress.measure.verify"),
    "blocks = cut": ("graphcompress.passes.blockprune.compact", MASKS, "graphcompress.fx"),
    "kron = dense": ("graphcompress.rewrite.kronecker", "graphcompress.numerics.kronecker"),
    "int8": (INT8, "graphcompress.measure.verify"),
    "to_fx": ("graphcompress.fx",),
    "interface": (PIPELINE, "graphcompress.passes.kron.kron", PRUNE, INT8, CPU),
    "twice": (PIPELINE, "graphcompress.passes.kron.kron", PRUNE, INT8, CPU),
    "again": (BUILD, INT8, CPU),
}
"""Column → modules that its check uses besides those that load, simplify and run a model."""

HELPERS = ("matrix", "cutting", "masked_models")
"""Packages and modules of the tests that checks are made of."""

ALWAYS = (
    SIMPLIFY,
    "graphcompress.graph.model",
    "graphcompress.files.runtime",
    "graphcompress.build.unsupported",
)


def fingerprint(column: str, check: Callable[..., object], expected: object) -> str:
    """Hash of the code behind one column, and of what the source model is ``expected`` to hold."""
    return hashlib.sha256(f"{expected!r}{_code(column, check)}".encode()).hexdigest()[:16]


@functools.cache
def _code(column: str, check: Callable[..., object]) -> str:
    digest = hashlib.sha256()
    for module in _modules(column):
        digest.update(_bytes(module))
    for part in (*_functions(check), subject, *([tools] if column == "nodes" else [])):
        digest.update(inspect.getsource(part).encode())
    return digest.hexdigest()


@functools.cache
def _modules(column: str) -> tuple[str, ...]:
    roots = (*ALWAYS, *ROOTS.get(column, ()))
    return tuple(sorted({*roots}.union(*(test_imports.reached(root) for root in roots))))


@functools.cache
def _bytes(module: str) -> bytes:
    return Path(test_imports.modules()[module]).read_bytes()


def _functions(check: Callable[..., object]) -> list[FunctionType]:
    """A check and the functions of the matrix that it calls."""
    found: dict[FunctionType, None] = {}
    pending = [check]
    while pending:
        function = pending.pop()
        if not isinstance(function, FunctionType) or function in found:
            continue
        found[function] = None
        module = sys.modules[function.__module__]
        pending.extend(getattr(module, name, None) for name in _names(function.__code__))
    return [function for function in found if function.__module__.partition(".")[0] in HELPERS]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
