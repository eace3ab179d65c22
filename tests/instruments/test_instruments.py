"""Instruments: what they add to a training, and that the loop knows none of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from conftest import random_samples
from plugins import installed

torch = pytest.importorskip("torch")

from graphcompress.errors import UsageError  # noqa: E402
from graphcompress.fx import to_fx  # noqa: E402
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.instruments.learned_scales import LearnedScales  # noqa: E402
from graphcompress.instruments.pair_limits import PairLimits  # noqa: E402
from graphcompress.measure.metrics import metric  # noqa: E402
from graphcompress.passes.distill import Distill  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.context import Context, Training  # noqa: E402
from graphcompress.plugin.instrument import Attached, Instrument, Rates, Step  # noqa: E402
from graphcompress.plugin.options import option  # noqa: E402
from graphcompress.rewrite.rewriter import Rewriter  # noqa: E402
from graphcompress.training import checkpoints, loop  # noqa: E402
from graphcompress.training.parameters import RATES, optimizer, set_rate  # noqa: E402


@dataclass(frozen=True)
class Gate(Instrument):
    """A gate on the first output, as score masks and interpolations are: learned, scheduled, taken out."""

    name: ClassVar[str] = "gate"
    lr: float = option(0.05, "highest learning rate of the gate")

    def attach(self, student):
        return _Gate(self, student)


class _Gate(Attached):
    def __init__(self, gate: Gate, student: torch.fx.GraphModule) -> None:
        self.lr, self.seen, self.calls = gate.lr, [], 0
        student.register_parameter("gate", torch.nn.Parameter(torch.tensor(1.0)))
        self.gate = student.get_parameter("gate")
        student.register_buffer("openness", torch.tensor(1.0))
        self.openness = student.get_buffer("openness")
        (end,) = student.graph.find_nodes(op="output")
        name, value = next(iter(end.args[0].items()))
        with student.graph.inserting_before(end):
            factor = student.graph.call_function(
                torch.mul, (student.graph.get_attr("gate"), student.graph.get_attr("openness"))
            )
            gated = student.graph.call_function(torch.mul, (value, factor))
        end.args = ({**end.args[0], name: gated},)
        student.recompile()

    def rates(self):
        return [Rates([self.gate], lr=self.lr)]

    def before_step(self, step: Step) -> None:
        self.openness.fill_(1 - 0.5 * min(1.0, step.number / (step.steps / 2)))

    def loss(self, step: Step):
        return 0.1 * (self.gate - 1.5).square()

    def after_step(self, step: Step) -> None:
        self.calls += 1
        self.seen.append((step.number, step.evaluated))

    def may_end(self, step: Step) -> bool:
        return step.number > step.steps // 2

    def state(self):
        return {"calls": self.calls}

    def restore(self, state) -> None:
        self.calls = state["calls"]

    def finish(self, rw: Rewriter) -> None:
        rw.note(f"gate {self.gate.detach():.6f} after {self.calls} steps, open to {self.openness:.3f}")


STEP = 'distill{steps=12 lr=0.003 batch=8 evaluations=3 instruments="gate{lr=0.1}"}'


@pytest.fixture(autouse=True)
def _gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, tmp_path / "site", "gates", instruments={"gate": "test_instruments:Gate"})


def train(model: Model, step: str, training: Training, **context: object) -> list[str]:
    ctx = Context(samples=random_samples(8, seed=3), training=training, **context)
    return list(Pipeline.parse(step).run(model, ctx, allow=["distill"])[-1].notes)


def test_it_has_parameters_a_term_a_schedule_and_a_finish(
    tiny_bert: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = []
    whole = loop.Trainer.run
    monkeypatch.setattr(loop.Trainer, "run", lambda self: trainers.append(self) or whole(self))
    notes = train(tiny_bert, STEP, Training(random_samples(40)))
    (trainer,) = trainers
    attached = trainer.instruments["gate"]
    assert attached.seen == [(number, number in (4, 8, 12)) for number in range(1, 13)]
    assert "gate" in trainer.terms
    (group,) = [group for group in trainer.optimizer.param_groups if RATES in group]
    assert group["params"] == [attached.gate]
    assert trainer.best["step"] in (8, 12)  # not before its schedule is at its end
    assert trainer.best["instruments"] == {"gate": {"calls": trainer.best["step"]}}
    assert notes[0].startswith(f"gate {attached.gate.detach():.6f} after {trainer.best['step']} steps")
    assert notes[0].endswith("open to 0.500")
    assert attached.gate.detach() > 1.01


def test_its_rates_follow_the_run(tiny_bert: Model) -> None:
    settings = dataclasses.replace(Distill(lr=0.1, warmup=0.0).settings(), decay="linear")
    weight, own, shared = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    rates = [Rates([own], lr=5.0, weight_decay=0.3), Rates([shared], factor=0.5)]
    made = optimizer([weight, own, shared], rates, settings)
    set_rate(made, settings, 5, 10)
    found = [(group["params"], group["lr"], group["weight_decay"]) for group in made.param_groups]
    assert found == [([weight], 0.05, settings.weight_decay), ([own], 2.5, 0.3), ([shared], 0.025, 0.0)]


def test_an_interrupted_run_goes_on_with_the_state_of_its_instruments(
    tiny_bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    training = Training(random_samples(40), folder=tmp_path / "training")
    whole, halves = tiny_bert.clone(), tiny_bert.clone()
    wanted = train(whole, STEP, dataclasses.replace(training, folder=None))

    def interrupt(text: str, done: int, total: int, detail: str = "") -> None:
        if text == "distill" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(halves.clone(), STEP, training, progress=interrupt)
    found = train(halves, STEP, training)
    assert found[0] == wanted[0]
    for mine, other in zip(halves.initializers(), whole.initializers(), strict=True):
        assert np.array_equal(mine.const_value.numpy(), other.const_value.numpy())


def test_an_unknown_instrument_stops_before_any_work(tiny_bert: Model) -> None:
    with pytest.raises(UsageError, match="unknown instrument 'gates': did you mean 'gate'"):
        train(tiny_bert, "kron,distill{instruments=gates}", Training(random_samples(8)))


def test_the_best_step_is_the_lowest_of_a_metric_where_lower_is_better(tiny_bert: Model) -> None:
    def away(answers, rows):
        return float(np.abs(answers - rows.original).mean())

    away.higher_is_better, away.task = False, "feature-extraction"
    step = "prune{ffn=0.5},distill{steps=30 lr=0.003 batch=8 evaluations=3}"
    training = Training(random_samples(48), metric=metric(away))
    ctx = Context(samples=random_samples(8, seed=3), training=training)
    note = Pipeline.parse(step).run(tiny_bert, ctx, allow=["prune", "distill"])[-1].notes[0]
    first, last = (float(text) for text in note.partition("away ")[2].partition(",")[0].split(" → "))
    assert last < 0.8 * first


# ---- those that are shipped


def test_a_scale_moves_by_shares_of_itself_and_never_reaches_zero(tiny_bert: Model) -> None:
    Pipeline.parse("int8").run(tiny_bert, Context(samples=random_samples(24)), allow=["int8"])
    module = to_fx(tiny_bert, learn_scales=LearnedScales.learns_scales)
    scales = {path: module.get_parameter(path) for path in module.meta["scales"]}
    first = {path: scale.detach().clone() for path, scale in scales.items()}
    attached = LearnedScales().attach(module)
    settings = Distill(clip=0, lr=0.1, warmup=0.0, decay="none").settings()
    steps = optimizer(list(module.parameters()), attached.rates(), settings)
    for number in range(30):
        set_rate(steps, settings, number, 30)
        for scale in scales.values():
            scale.grad = torch.ones_like(scale)
        steps.step()
        attached.after_step(Step(number + 1, 30))
        if number == 0:
            assert all(torch.all(scale < first[path]) for path, scale in scales.items())
            assert all(scale.mean() > 0.8 * first[path].mean() for path, scale in scales.items())
    assert all(torch.all(scale > 0) for scale in scales.values())


def test_pairs_are_limited_where_the_graph_keeps_to_their_limit(tiny_bert: Model) -> None:
    module = to_fx(tiny_bert)
    assert not PairLimits().concerns(module)
    path, form = next(iter(module.meta["forms"].items()))
    module.meta["forms"][path] = dataclasses.replace(form, kind="integer", pairs=0)
    assert PairLimits().concerns(module)


def test_the_loop_names_no_instrument() -> None:
    folder = Path(loop.__file__).parent
    places = (folder.parent / "instruments").iterdir()
    names = [path.stem for path in places if not path.stem.startswith("__")]
    assert sorted(names) == [
        "learned_scales",
        "pair_limits",
        "plain_operators",
        "score_masks",
    ]
    for path in folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not [name for name in names if name in text or name.replace("_", "-") in text], path
        assert "graphcompress.instruments" not in text, path
