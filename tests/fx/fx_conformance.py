"""The ONNX project's own tests of single operators, run through the op table; writes ``docs/fx.md``.

``python tests/fx/fx_conformance.py docs/fx.md``; ``make docs`` does it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from graphcompress.errors import UnsupportedModelError
from graphcompress.fx.convert import to_fx
from graphcompress.fx.ops.table import table
from graphcompress.graph.model import Model

PASSED, REFUSED, DIFFERS = "passed", "refused", "differs"


@dataclass(frozen=True)
class Verdict:
    """What became of one test: ``verdict`` is passed, refused (said so before anything ran) or differs."""

    operator: str
    test: str
    verdict: str
    detail: str = ""


def outcomes() -> list[Verdict]:
    """Every node test of the installed onnx package that is one node of an operator in the table."""
    return [_run(case, node) for case, node in _cases()]


def _cases() -> Iterator[tuple[TestCase, onnx.NodeProto]]:
    known = table()
    for case in load_model_tests(kind="node"):
        nodes = [] if case.model is None else list(case.model.graph.node)
        if len(nodes) == 1 and (nodes[0].domain, nodes[0].op_type) in known:
            yield case, nodes[0]


def _run(case: TestCase, node: onnx.NodeProto) -> Verdict:
    try:
        detail = _difference(case)
    except UnsupportedModelError as error:
        return Verdict(node.op_type, case.name, REFUSED, str(error))
    except (RuntimeError, IndexError, TypeError, NotImplementedError) as error:
        return Verdict(node.op_type, case.name, DIFFERS, f"{type(error).__name__}: {error}")
    return Verdict(node.op_type, case.name, DIFFERS if detail else PASSED, detail)


def _difference(case: TestCase) -> str:
    """What is wrong with the outputs of one test; empty, when nothing is."""
    model = Model(ir.from_proto(case.model))  # type: ignore[arg-type]
    module = to_fx(model)
    for inputs, outputs in case.data_sets or ():
        feed = dict(zip(module.meta["inputs"], map(_tensor, inputs), strict=False))
        with torch.no_grad():
            made = module(**feed)
        for value, wanted in zip(model.graph.outputs, outputs, strict=True):
            problem = _compare(made[value.name], _array(wanted), case)
            if problem:
                return f"{value.name}: {problem}"
    return ""


def _compare(made: torch.Tensor, wanted: np.ndarray, case: TestCase) -> str:
    got = _array(made.float().numpy() if made.dtype == torch.bfloat16 else made.numpy())
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return f"{got.dtype}{list(got.shape)} instead of {wanted.dtype}{list(wanted.shape)}"
    if np.allclose(got, wanted, rtol=case.rtol, atol=case.atol, equal_nan=True):
        return ""
    error = np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max()
    return f"largest error {error:.1e}"


_WIDER = {"bfloat16": np.float32, "int2": np.int8, "int4": np.int8, "uint2": np.uint8, "uint4": np.uint8}


def _array(value: Any) -> np.ndarray:
    array = onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    return array.astype(_WIDER.get(array.dtype.name, array.dtype))


def _tensor(value: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(_array(value)))


# ---- the page


_HEAD = """\
<!-- written by `make docs`; do not edit -->
# Training the deployed graph: the operators of `to_fx`

`graphcompress.fx.to_fx(model)` makes a `torch.fx.GraphModule`; `write_back(module, model)` puts what was
trained into the ONNX graph again:

```python
import graphcompress
from graphcompress.fx import to_fx, write_back

model = graphcompress.load("model.onnx")
module = to_fx(model)  # parameters carry the names of the initializers
outputs = module(**feed)  # tensors by input name → tensors by output name
...  # train it as any PyTorch module
write_back(module, model)
model.save("trained.onnx")
```

The parts of a model that writes (a folder with an encoder and decoders) are one module: it reads an answer at
once and gives the scores of every next token, and what is trained is written to all parts ([Models that
write](sequences.md)).

The table counts the node tests that the ONNX project ships in its package (`onnx.backend.test`), one row per
operator of the op table. *refused* is an UnsupportedModelError that names the node before anything runs:
types that PyTorch does not compute with (float8, float4, uint64, strings), operators in training mode.
"""


def markdown(found: Sequence[Verdict]) -> str:
    """The page: a row per operator, and every test that gives something else."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {PASSED: 0, REFUSED: 0, DIFFERS: 0})
    for outcome in found:
        counts[outcome.operator][outcome.verdict] += 1
    total = {verdict: sum(row[verdict] for row in counts.values()) for verdict in (PASSED, REFUSED, DIFFERS)}
    lines = [_HEAD, f"onnx {onnx.__version__}: {len(counts)} operators, {len(found)} tests.", ""]
    lines += ["| operator | passed | refused | differs |", "|---|---|---|---|"]
    lines += [_row(name, counts[name]) for name in sorted(counts)]
    lines += [_row("**all**", total), "", "Tests that differ:", ""]
    lines += [f"- `{item.test}`: {_why(item)}" for item in found if item.verdict == DIFFERS]
    others = sorted(f"`{domain}.{name}`" for domain, name in table() if domain)
    lines += ["", f"Of other domains, without tests of their own: {', '.join(others)}."]
    return "\n".join(lines) + "\n"


def _row(name: str, row: dict[str, int]) -> str:
    return f"| {name} | {row[PASSED]} | {row[REFUSED]} | {row[DIFFERS]} |"


def _why(outcome: Verdict) -> str:
    text = " ".join(outcome.detail.split())
    return f"{text} (half precision is computed in float32)" if "bf16" in outcome.test else text


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else "docs/fx.md").write_text(
        markdown(outcomes()), encoding="utf-8"
    )
