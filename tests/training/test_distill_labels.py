"""Labels: which loss belongs to which column and output, and what is refused before the first step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")

from graphcompress.capturing.source import open_model  # noqa: E402
from graphcompress.data.samples import Samples  # noqa: E402
from graphcompress.errors import DataError, UsageError  # noqa: E402
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.graph.runner import Runner  # noqa: E402
from graphcompress.measure import metrics  # noqa: E402
from graphcompress.passes.distill import Distill  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.context import Context, Training  # noqa: E402
from graphcompress.training.evaluation import terms_of  # noqa: E402
from graphcompress.training.labels import CLASS, MULTIPLE, NUMBER, TOKEN_CLASSES  # noqa: E402
from graphcompress.training.losses import MSE  # noqa: E402
from graphcompress.training.prepare import prepare, run  # noqa: E402
from graphcompress.training.tokens import WHOLE, Counts  # noqa: E402

LENGTHS = (3, 6, 4, 5, 6, 2)


def head(outputs: int, *, per_token: bool = False, name: str = "logits") -> Model:
    """[batch, outputs] from the mean of embedded tokens, or [batch, sequence, outputs]."""
    rng = np.random.default_rng(0)
    tensors = {"table": rng.standard_normal((20, 8)), "weight": rng.standard_normal((8, outputs))}
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["embedded"])]
    if not per_token:
        nodes.append(helper.make_node("ReduceMean", ["embedded", "axis"], ["pooled"], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["embedded" if per_token else "pooled", "weight"], [name]))
    size = ["batch", "sequence", outputs] if per_token else ["batch", outputs]
    graph = helper.make_graph(
        nodes,
        "head",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "sequence"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, size)],
        [
            *(numpy_helper.from_array(array.astype(np.float32), key) for key, array in tensors.items()),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return Model(ir.from_proto(proto))


def samples(labels: list[object], column: str = "label", lengths: tuple[int, ...] = LENGTHS) -> Samples:
    rng = np.random.default_rng(1)
    feeds = [
        {"input_ids": rng.integers(0, 20, size), "attention_mask": np.ones(size, np.int64)}
        for size in lengths[: len(labels)]
    ]
    return Samples(feeds, {column: labels})


CASES = {
    "classes": (head(3), [0, 1, 2, 1, 0, 2], CLASS),
    "classes of a CSV file": (head(3), ["0", "1", "2", "1", "0", "2"], CLASS),
    "classes of tokens": (
        head(3, per_token=True),
        [[i % 3] * (n - 1) + [-100] for i, n in enumerate(LENGTHS)],
        TOKEN_CLASSES,
    ),
    "several classes": (
        head(3),
        [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0.0, 1.0, 0.5], [1, 0, 0]],
        MULTIPLE,
    ),
    "numbers": (head(1), [0.5, 1, 2.5, -1, "3", [2.0]], NUMBER),
    "numbers of an output by another name": (head(1, name="score"), [0.5, 1, 2, -1, 3, 2], NUMBER),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_label_has_its_loss_and_parts_add_up(case: str) -> None:
    model, labels, kind = CASES[case]
    data, settings = samples(labels), Distill(hidden=0, labels=1).settings()
    given = prepare(model, model, Training(data, held_out=data), settings)
    assert given.labels is not None
    assert given.labels.kind == kind
    counts = Counts.of(data.feeds)

    def loss(indices: list[int]) -> float:
        return float(terms_of(given, settings, indices, counts, data, given.labels)["labels"])

    with torch.no_grad():
        parts = sum(loss([index]) for index in range(6))
        whole = loss(list(range(6)))
    assert 0.8 < whole < 6
    if kind == TOKEN_CLASSES:  # the others average over padding, which this graph does not mask
        assert whole == pytest.approx(parts, rel=1e-5)


def test_the_losses_are_torchs() -> None:
    settings = Distill(hidden=0).settings()
    for case, reference in (
        ("classes", torch.nn.functional.cross_entropy),
        ("several classes", torch.nn.functional.binary_cross_entropy_with_logits),
    ):
        model, labels, _ = CASES[case]
        data = samples(labels, lengths=(4,) * 6)
        given = prepare(model, model, Training(data, held_out=data), settings)
        whole = list(range(6))
        with torch.no_grad():
            logits = run(given.student, data.batch(whole), given.device)["logits"]
            found = terms_of(given, settings, whole, Counts.of(data.feeds), data, given.labels)["labels"]
        assert float(found) == pytest.approx(float(reference(logits, torch.tensor(labels))), rel=1e-5)


def test_one_logit_of_two_classes_is_driven_away_from_the_boundary() -> None:
    given = prepare(head(1), head(1), Training(samples([0, 1, 0, 1, 1, 0])), Distill(hidden=0).settings())
    assert given.labels is not None
    assert given.labels.kind == MULTIPLE
    for answer, expected in ((-4.0, 0.018), (0.0, 0.693), (4.0, 4.018)):
        loss = given.labels.loss(torch.full((1, 1), answer), [0], Counts(1, {WHOLE: [1]}))
        flat = given.labels.loss(torch.full((1,), answer), [0], Counts(1, {WHOLE: [1]}))
        if given.labels.values[0] == 0:
            assert float(loss) == float(flat) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("learned", "held_out", "kind"),
    [([0, 1, 0, 1, 1, 0], [0.5, 1.0], MULTIPLE), ([0.0, 2.5, 1.0, 4.0, 3.0, 1.0], [0.0, 1.0], NUMBER)],
)
def test_held_out_labels_mean_what_is_learned(
    learned: list[object], held_out: list[object], kind: str
) -> None:
    training = Training(samples(learned), held_out=samples(held_out))
    given = prepare(head(1), head(1), training, Distill(hidden=0).settings())
    assert given.labels is not None
    assert given.held_out_labels is not None
    assert given.labels.kind == given.held_out_labels.kind == kind
    assert given.labels.spread == given.held_out_labels.spread


def test_guessing_the_mean_of_numbers_costs_one() -> None:
    model, numbers = head(1), [1.0, 2.0, 4.0, 9.0, 3.0, 5.0]
    data, settings = samples(list(numbers)), Distill(hidden=0).settings()
    labels = prepare(model, model, Training(data, held_out=data), settings).labels
    assert labels is not None
    guess = torch.full((6, 1), float(np.mean(numbers)))
    assert float(labels.loss(guess, range(6), Counts.of(data.feeds))) == pytest.approx(1.0)


def test_several_classes_at_once_are_not_compared_as_one_distribution() -> None:
    model, labels, _ = CASES["several classes"]
    given = prepare(model, model, Training(samples(labels)), Distill(hidden=0).settings())
    assert [answer.loss for answer in given.losses.answers] == [MSE]


@pytest.mark.parametrize(
    ("model", "labels", "problem"),
    [
        (head(3, per_token=True), [[0, 1, 2], [0, 1]], "row 2 is .* answers 6 tokens of that row"),
        (head(3, per_token=True), [[0, 1, 3]], "row 1 is .* the classes 0 to 2"),
        (head(3, per_token=True), [1], "row 1 is 1, .* give a list of as many"),
        (head(3), [[1, 0, 1], [1, 0]], "row 2 is .* 3 classes: give a list"),
        (head(3), [[1, 0, 7]], "row 1 is .* numbers 0 or 1"),
        (head(3), ["2", "many"], "row 2 is 'many'"),
        (head(1), [0.5, "good"], "row 2 is 'good', .* is one number"),
        (head(1), [0.5, float("nan")], "row 2 is nan"),
    ],
)
def test_labels_that_do_not_fit_stop_before_any_work(
    model: Model, labels: list[object], problem: str
) -> None:
    training = Training(samples(labels))
    with pytest.raises(DataError, match=problem):
        Pipeline.parse("kron,distill").run(model.clone(), Context(training=training))


def test_classes_of_tokens_are_learned_and_their_accuracy_counts_labelled_tokens() -> None:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 20, size) for size in rng.integers(3, 9, 48)]
    feeds = [{"input_ids": row, "attention_mask": np.ones(len(row), np.int64)} for row in ids]
    data = Samples(feeds, {"labels": [[-100, *(row[1:] % 3).tolist()] for row in ids]})
    model = head(3, per_token=True)
    training = Training(data, held_out=data, metric=metrics.metric("accuracy"))
    (record,) = Pipeline.parse("distill{steps=80 lr=0.1 outputs=0 hidden=0}").run(
        model, Context(training=training), allow=["distill"]
    )
    assert "accuracy" in record.notes[0]
    chosen = metrics.metric("accuracy")
    with Runner(model) as runner:
        answers = metrics.answers(chosen, runner, data)
    assert metrics.score(chosen, answers, answers, data).value > 0.9
    uneven = dataclasses.replace(data, columns={"labels": [[0]] * 48})
    with pytest.raises(DataError, match="a class for each of the"):
        metrics.score(chosen, answers, answers, uneven)


def test_a_task_is_for_checkpoints(tiny_bert_path: Path) -> None:
    with pytest.raises(UsageError, match="--task features is for checkpoints"):
        open_model(tiny_bert_path, task="features")
