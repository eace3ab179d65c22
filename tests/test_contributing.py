"""The worked examples of CONTRIBUTING.md do what the page says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from plugins import installed

from graphcompress import optimize, session
from graphcompress.analysis.linears import linears
from graphcompress.data.load import Samples
from graphcompress.errors import UsageError
from graphcompress.graph.model import Model
from graphcompress.measure import metrics
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context, Training
from graphcompress.plugin.reference import describe
from graphcompress.plugin.registry import METRICS, TARGETS
from graphcompress.reporting.text import target_lines

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
PASS, TESTS, TARGET, METRIC, INSTRUMENT = re.findall(
    r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
)
(ENTRY,) = re.findall(r"^```toml\n(\w+) = \"(.*?)\"\n```$", PAGE, re.MULTILINE)
ENTRIES = {
    kind: (name, place)
    for kind, name, place in re.findall(
        r"^\[project\.entry-points\.\"graphcompress\.(\w+)\"\]\n(\S+) = \"(.*?)\"", PAGE, re.MULTILINE
    )
}
"""End of a group of entry points → name and place of the example."""
NAMES = re.findall(r"^def (test_\w+)", TESTS, re.MULTILINE)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Names of the example's tests, with its pass imported and registered as the page says."""
    name, target = ENTRY
    module_name = target.partition(":")[0]
    path = tmp_path / f"{name}.py"
    path.write_text(PASS, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module_name, module)
    spec.loader.exec_module(module)
    installed(monkeypatch, tmp_path, "example", passes={name: target})
    names: dict[str, object] = {}
    exec(compile(TESTS, "CONTRIBUTING.md", "exec"), names)
    return names


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_the_page(
    name: str, example: dict[str, object], request: pytest.FixtureRequest
) -> None:
    test = example[name]
    assert callable(test)
    arguments = test.__code__.co_varnames[: test.__code__.co_argcount]
    test(*(request.getfixturevalue(argument) for argument in arguments))


def test_the_target_of_the_page(
    tiny_bert_path: Path, tmp_path: Path, tiny_samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, place = ENTRIES["targets"]
    module, _, _ = place.partition(":")
    installed(monkeypatch, tmp_path / "site", module, TARGET, targets={name: place})
    targets = "cpu{measure=false},plain{file=m.onnx}"
    build = optimize(
        tiny_bert_path, "int8", target=targets, data=tiny_samples, output=tmp_path / "out", allow=["int8"]
    )
    assert ("plain", "written as it is") in target_lines(build)
    assert session(tmp_path / "out" / "plain")(tiny_samples.batch([0]))
    assert describe(TARGETS.find("plain")).options[0].help == "name of the file"
    for asked, words in (("plain{file=m.ort}", "change file"), ("plain", "change activations")):
        with pytest.raises(UsageError, match=words):
            optimize("missing.onnx", "int8{activations=uint8}", target=asked, data=tiny_samples)


def test_the_metric_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, place = ENTRIES["metrics"]
    installed(monkeypatch, tmp_path, place.partition(":")[0], METRIC, metrics={name: place})
    labels, given = [0, 0, 0, 1, 1, 2], np.array([0, 0, 1, 1, 2, 1])
    samples = Samples([{"x": np.zeros(1)}] * 6, {"label": labels})
    score = metrics.score(metrics.metric("macro-f1"), given, given, samples)
    assert score.value == pytest.approx((4 / 5 + 2 / 5 + 0) / 3)
    assert str(score) == "macro F1 0.4000 on 6 rows"
    least = metrics.score(metrics.metric("macro-f1{least=2}"), given, given, samples)
    assert least.value == pytest.approx((4 / 5 + 2 / 5) / 2)
    assert describe(METRICS.find(name)).about["better"] == "higher"


def test_the_instrument_of_the_page(
    tiny_bert: Model, tmp_path: Path, tiny_samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    name, place = ENTRIES["instruments"]
    installed(monkeypatch, tmp_path, place.partition(":")[0], INSTRUMENT, instruments={name: place})
    step = 'distill{steps=4 batch=8 evaluations=4 instruments="fade{ratio=0.6}"}'
    ctx = Context(samples=tiny_samples, training=Training(tiny_samples))
    (record,) = Pipeline.parse(step).run(tiny_bert, ctx, allow=["distill"])
    assert "60% of the entries of 15 matrices are zero" in record.notes
    shares = [np.mean(linear.dense() == 0) for linear in linears(tiny_bert)]
    assert shares == pytest.approx([0.6] * len(shares), abs=0.01)


LOWRANK = '''
"""lowrank: weights become the product of two thin matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphcompress.analysis.linears import linears
from graphcompress.graph.model import Model
from graphcompress.plugin.base import Pass
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Contract, Lossy
from graphcompress.plugin.record import Record
from graphcompress.plugin.options import option
from graphcompress.rewrite.rewriter import Rewriter


@dataclass(frozen=True)
class LowRank(Pass):
    """Replace every W [in, out] by its best approximation U [in, rank] · V [rank, out] (truncated SVD).

    Left alone: weights that are expressions already, and those that would not get smaller.
    """

    name: ClassVar[str] = "lowrank"
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=5)
    rank: int = option(24, "columns of U", minimum=1)

    def run(self, model: Model, ctx: Context) -> Record:
        """Rewrite one weight at a time."""
        done = {}
        with Rewriter(model, ctx) as rw:
            for linear in linears(model):
                if linear.weight.const_value is None:
                    rw.skip(linear, "the weight is an expression already")
                    continue
                weight = linear.dense()
                if self.rank * sum(weight.shape) >= weight.size:
                    rw.skip(linear, "the factors are not smaller than the weight")
                    continue
                rw.touch(linear, f"rank {self.rank} of {min(weight.shape)}")
                key = (linear.weight, linear.transposed)
                if key not in done:
                    u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
                    left, right = (u * s)[:, : self.rank], v[: self.rank]
                    factors = [
                        rw.constant(array.astype(weight.dtype), f"{linear.name}.{name}")
                        for name, array in (("u", left), ("v", right))
                    ]
                    done[key] = rw.at(linear.node).op("MatMul", *factors)
                rw.set_weight(linear, done[key])
        return rw.record
'''


def test_a_pass_takes_one_file_and_one_line(
    tiny_bert_path: Path, tmp_path: Path, tiny_samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by the text of the page alone: it works in a build like those that are shipped."""
    installed(monkeypatch, tmp_path / "site", "lowrank", LOWRANK, passes={"lowrank": "lowrank:LowRank"})
    assert len(list((tmp_path / "site").glob("*.py"))) == 1
    dense = {linear.name: linear.dense() for linear in linears(Model.load(tiny_bert_path))}
    built = optimize(
        tiny_bert_path,
        "lowrank{rank=20},int8",
        target="cpu{measure=false}",
        data=tiny_samples,
        output=tmp_path / "out",
        allow=["lowrank", "int8"],
    )
    record = next(record for record in built.records if record.text == "lowrank{rank=20}")
    small = {name for name, weight in dense.items() if 20 * sum(weight.shape) < weight.size}
    assert {item.name for item in record.touched} == small
    reasons = {item.reason for item in record.skipped if item.name in dense}
    assert reasons == {"the factors are not smaller than the weight"}
    assert built.lowered[0].difference.sqnr_db > 5
    alone = Model.load(tiny_bert_path)
    Pipeline.parse("lowrank{rank=20}").run(alone, Context(samples=tiny_samples), allow=["lowrank"])
    for linear in linears(alone):
        if linear.name in small:
            values = np.linalg.svd(dense[linear.name].astype(np.float64), compute_uv=False)
            lost = np.linalg.norm(linear.dense() - dense[linear.name])
            assert lost == pytest.approx(np.linalg.norm(values[20:]), rel=1e-4)  # Eckart and Young


def test_the_map_names_what_exists() -> None:
    root = Path(__file__).parents[1]
    for cell in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE):
        base = root
        for place in re.findall(r"`(.*?)`", cell):
            path = base / place if (base / place).exists() else root / place
            assert path.exists(), place
            base = path.parent
