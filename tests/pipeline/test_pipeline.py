"""Pipeline: order, checks after every pass, coverage, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from texts import model_of

from graphcompress.analysis.linears import linears
from graphcompress.analysis.parameters import NORMALISATION, VECTOR
from graphcompress.errors import ContractError, CoverageError, UsageError
from graphcompress.graph.model import Model
from graphcompress.pipeline import contract_check
from graphcompress.pipeline.account import UNNAMED
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.base import Pass
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Contract, Exact, Lossy
from graphcompress.plugin.options import option
from graphcompress.plugin.record import Record
from graphcompress.plugin.schemes import UINT8, integer_products
from graphcompress.rewrite.rewriter import Rewriter


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply weights by a factor: as wrong as one likes."""

    name: ClassVar[str] = "scale"
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=20)
    layers: str = option("*", "which")
    factor: float = option(1.0, "by how much")

    def run(self, model: Model, ctx: Context) -> Record:
        """Scale, and say so."""
        with Rewriter(model, ctx) as rw:
            asked = {linear.name for linear in linears(model, self.layers)}
            for linear in linears(model):
                if linear.name not in asked:
                    rw.skip(linear, "not asked for")
                    continue
                rw.touch(linear)
                weight = (linear.dense() * self.factor).astype(np.float32)
                rw.set_weight(linear, rw.constant(weight, f"{linear.name}.scaled"))
        return rw.record


@dataclass(frozen=True)
class Claim(Scale):
    """The same, but it says that nothing changes."""

    name: ClassVar[str] = "claim"
    contract: ClassVar[Contract] = Exact()


@dataclass(frozen=True)
class Break(Pass):
    """Give the output another name."""

    name: ClassVar[str] = "break"
    contract: ClassVar[Contract] = Exact()

    def run(self, model: Model, ctx: Context) -> Record:
        """Rename it."""
        model.graph.outputs[0].name = "other"
        return Record()


@dataclass(frozen=True)
class Silent(Pass):
    """Say nothing about what was done."""

    name: ClassVar[str] = "silent"
    contract: ClassVar[Contract] = Exact()

    def run(self, model: Model, ctx: Context) -> Record:
        """Forget the record."""
        return None  # type: ignore[return-value]


def test_a_pass_without_a_record_is_named(tiny_bert) -> None:
    with pytest.raises(UsageError, match="silent returned no record"):
        Pipeline([Silent()]).run(tiny_bert, Context())


def test_records_tell_what_was_done(tiny_bert, tiny_samples) -> None:
    steps = [Scale(layers="*query*", factor=1.001), Claim()]
    seen = []
    records = Pipeline(steps).run(tiny_bert, Context(samples=tiny_samples), on_record=seen.append)
    assert seen == records
    first, second = records
    assert first.text == "scale{layers=*query* factor=1.001}"
    assert len(first.touched) == 2
    assert [item.reason for item in first.skipped[:10]] == ["not asked for"] * 10
    assert {item.reason for item in first.skipped[10:]} == {UNNAMED, NORMALISATION, VECTOR}
    assert first.step.sqnr_db == first.total.sqnr_db < 200
    assert second.step.max_error <= 1e-6
    assert second.total.sqnr_db == pytest.approx(first.total.sqnr_db, abs=0.5)
    assert 0 < first.coverage < second.coverage <= 1
    assert first.broken is None


def test_a_broken_contract_stops_with_pass_and_figure(tiny_bert, tiny_samples) -> None:
    with pytest.raises(ContractError, match=r"scale\{factor=3.0\} broke .* SQNR .* --allow scale"):
        Pipeline([Scale(factor=3.0)]).run(tiny_bert, Context(samples=tiny_samples))


def test_an_exact_pass_is_held_to_it(tiny_bert) -> None:
    with pytest.raises(ContractError, match="largest error"):
        Pipeline([Claim(factor=1.01)]).run(tiny_bert, Context())


def test_a_broken_contract_can_be_allowed_and_is_recorded(tiny_bert) -> None:
    (record,) = Pipeline([Scale(factor=3.0)]).run(tiny_bert, Context(), allow=["scale"])
    assert record.broken
    assert "SQNR" in record.broken


def test_a_changed_interface_cannot_be_allowed(tiny_bert) -> None:
    with pytest.raises(ContractError, match="outputs changed"):
        Pipeline([Break()]).run(tiny_bert, Context(), allow=["break"])


def test_coverage_fails_closed_with_the_reasons(tiny_bert) -> None:
    with pytest.raises(CoverageError, match=r"90.0% are required; it left alone: 10 × not asked for"):
        Pipeline([Scale(layers="*query*")]).run(tiny_bert, Context(), require_coverage=0.9)


def test_a_lossy_pass_that_touches_nothing_covers_nothing(tiny_bert) -> None:
    with pytest.raises(CoverageError):
        Pipeline([Scale(layers="nothing")]).run(tiny_bert, Context(), require_coverage=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"allow": ["skale"]}, "did you mean 'scale'"), ({"require_coverage": 1.5}, "between 0 and 1")],
)
def test_a_request_without_sense_is_refused(options, words, tiny_bert) -> None:
    with pytest.raises(UsageError, match=words):
        Pipeline([Scale()]).run(tiny_bert, Context(), **options)


def test_text_and_objects_are_the_same() -> None:
    pipeline = Pipeline.parse("simplify , kron{rank=2},int8")
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert hash(Pipeline.parse(str(pipeline))) == hash(pipeline)
    assert pipeline != Pipeline.parse("simplify")
    with pytest.raises(UsageError, match="no passes are given"):
        Pipeline.parse(" ")


@pytest.mark.parametrize(("bits", "fused"), [(7, True), (8, False)])
def test_where_weights_use_8_bits_outputs_are_judged_unfused(monkeypatch, tiny_bert, bits, fused):
    seen = []

    class Watched(contract_check.Runner):
        def __init__(self, model, *, optimize=True):
            seen.append(optimize)
            super().__init__(model, optimize=optimize)

    monkeypatch.setattr(contract_check, "Runner", Watched)
    Pipeline([Scale()]).run(
        tiny_bert,
        Context(capabilities=Capabilities(integer_products(UINT8, weight_bits=bits))),
    )
    assert seen[-1] is fused


def test_a_model_that_returns_nan_itself_is_told_apart_from_a_loss() -> None:
    text = """g (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y) <float[16, 16] weight>
    { product = MatMul(x, weight)  floor = Relu(product)  log = Log(floor)  y = Sub(log, log) }"""
    match = "The model that came in returns NaN in 'y' there itself"
    with pytest.raises(ContractError, match=match):
        Pipeline.parse("int8{max_model_error=none max_divergence=none}").run(model_of(text), Context())
