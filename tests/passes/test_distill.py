"""distill: a student that was made smaller learns its teacher's answers, the same way in every run."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from bert import Bert
from conftest import random_samples
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from graphcompress.cli import app  # noqa: E402
from graphcompress.data.samples import Samples  # noqa: E402
from graphcompress.errors import (  # noqa: E402
    ContractError,
    DataError,
    TrainingError,
    UnsupportedModelError,
    UsageError,
)
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.graph.runtime import Runner  # noqa: E402
from graphcompress.measure.metrics import metric  # noqa: E402
from graphcompress.passes.distill import Distill  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.base import Context, Training  # noqa: E402
from graphcompress.training import checkpoints, loop  # noqa: E402
from graphcompress.training.batches import Batches, parts  # noqa: E402
from graphcompress.training.evaluation import Evaluation  # noqa: E402
from graphcompress.training.losses import Answer, Counts, Losses, divergence, mask_of  # noqa: E402
from graphcompress.training.prepare import prepare, run  # noqa: E402

QUICK = "distill{steps=12 lr=0.003 batch=8 evaluations=3}"
ENOUGH = "distill{steps=60 lr=0.005 batch=16 evaluations=3}"
ALLOWED = ("prune", "distill", "int8")


def trained(model: Model, passes: str, training: Training, **context: object) -> list[object]:
    ctx = Context(samples=random_samples(16, seed=3), training=training, **context)  # type: ignore[arg-type]
    return list(Pipeline.parse(passes).run(model, ctx, allow=[name for name in ALLOWED if name in passes]))


def weights(model: Model) -> dict[str, np.ndarray]:
    return {value.name: value.const_value.numpy().copy() for value in model.initializers()}


def classifier(rows: int = 20, classes: int = 3, width: int = 8) -> Model:
    """Logits [batch, classes] from the mean of embedded tokens."""
    rng = np.random.default_rng(0)
    tensors = {
        "table": rng.standard_normal((rows, width)),
        "weight": rng.standard_normal((width, classes)),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("ReduceMean", ["embedded", "axis"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [
            *(numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return Model(ir.from_proto(proto))


def labelled(labels: list[object]) -> Samples:
    rng = np.random.default_rng(1)
    return Samples([{"input_ids": rng.integers(0, 20, 6)} for _ in labels], {"label": labels})


def sentences(count: int, seed: int = 1) -> Samples:
    """Random token ids, 4 to 19 long."""
    rng = np.random.default_rng(seed)
    return Samples(
        [
            {
                "input_ids": rng.integers(1, 100, length),
                "attention_mask": np.ones(length, np.int64),
                "token_type_ids": np.zeros(length, np.int64),
            }
            for length in rng.integers(4, 20, count)
        ]
    )


def other_bert() -> Model:
    """The same architecture with other weights."""
    return Model(ir.from_proto(Bert(seed=1).model()))


# ---- it learns


def test_a_pruned_student_comes_closer_to_its_teacher_without_labels(tiny_bert: Model) -> None:
    records = trained(tiny_bert, f"prune{{ffn=0.5 heads=0.5}},{ENOUGH}", Training(sentences(400)))
    assert records[-1].total.sqnr_db > records[0].total.sqnr_db + 1
    assert len(records[-1].touched) > 10
    assert not [item for item in records[-1].skipped if "no hidden loss" in item.reason]
    assert "loss on held-out samples" in records[-1].notes[0]


@pytest.mark.parametrize("passes", ["kron{rank=1 max_error=1}", "prune{layers=1}"])
def test_factors_and_fewer_layers_learn_too(tiny_bert: Model, passes: str) -> None:
    terms = "hidden=1 ffn=1 scores=1 embedding=1"
    step = f"distill{{steps=6 lr=0.003 batch=8 evaluations=1 {terms}}}"
    ctx = Context(samples=random_samples(16, seed=3), training=Training(random_samples(32)))
    before, after = Pipeline.parse(f"{passes},{step}").run(
        tiny_bert, ctx, allow=[passes.partition("{")[0], "distill"]
    )
    assert after.total.sqnr_db > before.total.sqnr_db


def test_after_int8_it_is_quantisation_aware(tiny_bert: Model) -> None:
    training = Training(sentences(400))
    step = "distill{steps=40 lr=0.001 batch=16 evaluations=4}"
    quantised, after = trained(tiny_bert, f"int8,{step}", training)
    assert after.total.sqnr_db > quantised.total.sqnr_db
    kinds = {value.dtype.name for value in tiny_bert.initializers()}
    assert "INT8" in kinds


def test_a_trained_graph_is_quantised_afterwards(tiny_bert: Model) -> None:
    names = [record.text for record in trained(tiny_bert, f"{QUICK},int8", Training(random_samples(24)))]
    assert names[1].startswith("int8")


def test_labels_are_learned_where_the_data_have_them() -> None:
    model = classifier()
    samples = labelled([0, 1, 2, 1] * 8)
    training = Training(samples, held_out=samples, metric=metric("accuracy"))
    step = "distill{steps=60 lr=0.1 batch=16 outputs=0 hidden=0 labels=1}"
    ctx = Context(samples=training.samples, training=training)
    (record,) = Pipeline.parse(step).run(model, ctx, allow=("distill",))
    with Runner(model) as runner:
        answers = runner(training.samples.batch(range(32)))["logits"].argmax(-1)
    assert np.mean(answers == training.samples.columns["label"]) > 0.8
    assert "accuracy" in record.notes[0]


def test_only_the_chosen_weights_move() -> None:
    model = classifier()
    before = weights(model)
    Pipeline.parse("distill{steps=2 lr=0.1 hidden=0 only=weight}").run(
        model, Context(training=Training(labelled([0, 1] * 8))), allow=("distill",)
    )
    after = weights(model)
    assert np.array_equal(before["table"], after["table"])
    assert not np.array_equal(before["weight"], after["weight"])


def test_weights_that_stood_still_are_not_counted_as_trained(tiny_bert: Model) -> None:
    step = "distill{steps=60 lr=0.005 batch=16 evaluations=3 only=*dense*}"
    record = trained(tiny_bert, f"prune{{ffn=0.5 heads=0.5}},{step}", Training(sentences(400)))[-1]
    assert record.touched
    assert all("dense" in item.name for item in record.touched)
    assert {item.reason for item in record.skipped} == {"not one of those to train"}
    assert record.coverage < 0.6


def test_scales_are_learned_on_request(tiny_bert: Model) -> None:
    step = "distill{steps=20 lr=0.01 batch=16 evaluations=2 learn_scales=true only=*scale}"
    given = Training(sentences(100), teacher=other_bert())
    before = tiny_bert.clone()
    trained(before, "int8", given)
    trained(tiny_bert, f"int8,{step}", given)
    old, new = weights(before), weights(tiny_bert)
    scales = [name for name in new if name.endswith(".scale")]
    moved = [name for name in scales if not np.array_equal(new[name], old[name])]
    assert len(moved) > 10
    assert all(np.all(np.abs(new[name] / old[name] - 1) < 0.3) for name in moved)


def test_training_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="trains nothing; leave the pass out"):
        Distill(epochs=0)


def test_whatever_has_a_score_is_better_than_no_number(tiny_bert: Model) -> None:
    evaluation = object.__new__(Evaluation)
    error = type("Error", (type(metric("spearman")),), {"higher_is_better": False})()
    for chosen in (None, metric("spearman"), error):
        evaluation._metric = chosen
        assert evaluation.is_better(0.3, math.nan)
        assert not evaluation.is_better(math.nan, 0.3)
        assert not evaluation.is_better(math.nan, math.nan)
        assert evaluation.is_better(0.5, 0.3) == (chosen is not None and chosen.higher_is_better)


def test_bfloat16_comes_close(tiny_bert: Model) -> None:
    found = []
    for bf16 in ("false", "true"):
        copy = tiny_bert.clone()
        step = f"prune{{ffn=0.5}},distill{{steps=3 lr=0.001 batch=8 evaluations=1 bf16={bf16}}}"
        found.append(trained(copy, step, Training(sentences(24)))[-1].total.sqnr_db)
    assert found[1] == pytest.approx(found[0], abs=1.0)
    assert found[1] != found[0]


def test_another_teacher_is_matched_by_depth_and_what_has_no_counterpart_is_named(tiny_bert: Model) -> None:
    teacher = Model(ir.from_proto(Bert(layers=4, ffn=96, seed=5).model()))
    step = "distill{steps=4 lr=0.003 batch=8 evaluations=1 ffn=1 scores=1 embedding=1}"
    (record,) = trained(tiny_bert, step, Training(sentences(24), teacher=teacher))
    assert not record.skipped
    wide = Model(ir.from_proto(Bert(heads=8, seed=5).model()))
    (record,) = trained(tiny_bert.clone(), step, Training(sentences(24), teacher=wide))
    assert {item.reason for item in record.skipped} == {
        "no scores loss: 4 wide at axis 1, the teacher's is 8"
    }


def test_the_command_line_trains_and_its_recipe_knows(tiny_bert_path: Path, tmp_path: Path) -> None:
    data = tmp_path / "train.npz"
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 100, (24, 9))
    np.savez(data, input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    command = ["optimize", str(tiny_bert_path), "--passes", "prune{ffn=0.25},distill{steps=3 batch=8}"]
    command += ["--train", str(data), "--data", str(data), "--no-bench", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--target", "cpu{measure=false}"])
    assert done.exit_code == 0, done.output
    assert "loss on held-out samples" in done.output
    assert f'train = "{data.as_posix()}"' in (tmp_path / "out" / "recipe.toml").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name != "train.npz"] == ["out"]
    refused = CliRunner().invoke(app, [*command[:2], "--passes", "kron", "--train", str(data)])
    assert "has none" in str(refused.exception)


# ---- the same result every time


def test_an_interrupted_run_goes_on_to_the_same_result(
    tiny_bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    training = Training(random_samples(40), folder=tmp_path / "training")
    whole, halves = tiny_bert.clone(), tiny_bert.clone()
    trained(whole, QUICK, dataclasses.replace(training, folder=None))

    def interrupt(text: str, done: int, total: int, detail: str = "") -> None:
        if text == "distill" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(halves.clone(), QUICK, training, progress=interrupt)
    assert len(list((tmp_path / "training").glob("*.pt"))) == 1
    seen: list[int] = []
    trained(halves, QUICK, training, progress=lambda text, done, total, detail="": seen.append(done))
    assert all(np.array_equal(array, weights(whole)[name]) for name, array in weights(halves).items())
    assert seen.count(12) == 1
    trained(tiny_bert, QUICK, training)
    assert all(np.array_equal(array, weights(whole)[name]) for name, array in weights(tiny_bert).items())


def test_another_run_does_not_take_up_the_checkpoint(
    tiny_bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    step, samples = Distill(steps=2, batch=8), random_samples(16)
    given = prepare(tiny_bert, tiny_bert, Training(samples), step.settings())
    arrays = [array for feed in samples.feeds for array in feed.values()]
    tensors = list(given.student.state_dict().values())
    one = checkpoints.identity((step.settings(), 0), tensors, arrays)
    assert one == checkpoints.identity((step.settings(), 0), tensors, arrays)
    others = [
        checkpoints.identity((dataclasses.replace(step.settings(), lr=1.0), 0), tensors, arrays),
        checkpoints.identity((step.settings(), 1), tensors, arrays),
        checkpoints.identity((step.settings(), 0), tensors, arrays[:-1]),
        checkpoints.identity((step.settings(), 0), tensors[:-1], arrays),
    ]
    assert len({one, *others}) == 5


SCRIPT = """
import os
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from bert import Bert
from conftest import random_samples
from graphcompress.plugin.base import Context, Training
from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline
import torch
torch.set_num_threads(1)
model = Model.load({path!r})
ctx = Context(samples=random_samples(4), training=Training(random_samples(24)))
Pipeline.parse({passes!r}).run(model, ctx, allow=("prune", "distill"))
name = sys.argv[1] + os.environ["RANK"] if sys.argv[1] == "r" else sys.argv[1]
model.save(Path({out!r}) / (name + ".onnx"))
"""


def test_two_processes_reach_the_weights_of_one(tiny_bert_path: Path, tmp_path: Path) -> None:
    script = worker(tiny_bert_path, tmp_path)
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    runs = [("one", {})] + [(f"r{rank}", {"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in (0, 1)]
    started = [
        subprocess.Popen(
            [sys.executable, script, name], env={**shared, **extra}, stderr=subprocess.PIPE, text=True
        )
        for name, extra in runs
    ]
    for process in started:
        _, problem = process.communicate(timeout=240)
        assert process.returncode == 0, problem[-2000:]
    same_weights(tiny_bert_path, tmp_path, [name for name, _ in runs])


@pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")
def test_accelerate_launches_two_processes(tiny_bert_path: Path, tmp_path: Path) -> None:
    script = worker(tiny_bert_path, tmp_path)
    shared = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]  # CPUs will do
    options = {
        "num_processes": 2,
        "num_machines": 1,
        "machine_rank": 0,
        "mixed_precision": "no",
        "dynamo_backend": "no",
        "main_process_ip": "127.0.0.1",
        "main_process_port": free_port(),
    }
    launch += [f"--{name}={value}" for name, value in options.items()]
    for command in ([sys.executable, script, "one"], [*launch, script, "r"]):
        done = subprocess.run(command, env=shared, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    same_weights(tiny_bert_path, tmp_path, ["one", "r0", "r1"])


def worker(model: Path, folder: Path) -> Path:
    """A script that trains ``model`` and saves it under its argument; ``r`` gets the rank of the process."""
    passes = "prune{ffn=0.5},distill{steps=5 lr=0.001 batch=6 evaluations=1 scores=1}"
    tests = str(Path(__file__).parents[1])
    script = folder / "run.py"
    script.write_text(SCRIPT.format(tests=tests, path=str(model), passes=passes, out=str(folder)))
    return script


def same_weights(start: Path, folder: Path, names: list[str]) -> None:
    """What one process trained is what both of the others trained together."""
    one, first, second = (weights(Model.load(folder / f"{name}.onnx")) for name in names)
    before = weights(Model.load(start))
    assert any(name in before and not np.array_equal(before[name], array) for name, array in one.items())
    for name, array in one.items():
        assert np.array_equal(first[name], second[name]), name
        assert np.allclose(array, first[name], atol=1e-5), name


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_accumulated_parts_are_the_whole_batch(tiny_bert: Model) -> None:
    found = []
    for batch, accumulate in ((8, 1), (2, 4)):
        copy = tiny_bert.clone()
        step = f"prune{{ffn=0.5}},distill{{steps=3 lr=0.001 batch={batch} accumulate={accumulate}}}"
        trained(copy, step, Training(random_samples(24)))
        found.append(weights(copy))
    assert all(np.allclose(array, found[1][name], atol=1e-5) for name, array in found[0].items())


def test_checkpointing_leads_to_the_same_weights(tiny_bert: Model) -> None:
    found = []
    for options in ("", "checkpointing=true"):
        model = tiny_bert.clone()
        training = Training(random_samples(32))
        trained(model, f"prune{{heads=0.5}},distill{{steps=4 batch=8 lr=0.001 {options}}}", training)
        found.append(weights(model))
    assert all(np.allclose(array, found[1][name], atol=1e-6) for name, array in found[0].items())


def test_checkpointing_keeps_fewer_values_for_the_gradient(tiny_bert: Model) -> None:
    kept = []
    for options in ("", "checkpointing=true"):
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        step = f"distill{{steps=1 batch=8 evaluations=1 {options}}}"
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trained(tiny_bert.clone(), step, Training(random_samples(8), teacher=other_bert()))
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


def test_checkpointing_wants_layers() -> None:
    ctx = Context(training=Training(labelled([0, 1, 2, 1] * 8)), original=classifier())
    with pytest.raises(UsageError, match="no transformer blocks are found; leave it out"):
        Distill(steps=1, checkpointing=True).run(classifier(), ctx)


def test_every_epoch_shows_every_sample_once_in_an_order_of_its_own() -> None:
    batches = Batches(random_samples(23), 4, seed=0)
    epochs = [[batches(step) for step in range(6 * epoch, 6 * epoch + 6)] for epoch in range(2)]
    assert all(sorted(itertools.chain(*epoch)) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert Batches(random_samples(23), 4, seed=0)(9) == epochs[1][3]
    assert Batches(random_samples(23), 4, seed=1)(9) != epochs[1][3]
    assert parts([1, 2, 3], 2) == [[1, 2], [3]]


def test_the_learning_rate_rises_and_falls() -> None:
    settings = Distill(lr=1.0, warmup=0.2, decay="linear").settings()
    rates = [settings.rate_at(step, 10, settings.lr) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert dataclasses.replace(settings, decay="none").rate_at(9, 10, 1.0) == 1.0
    assert 0 < dataclasses.replace(settings, decay="cosine").rate_at(9, 10, 1.0) < 0.1
    assert sum(settings.is_evaluated(step, 100) for step in range(1, 101)) == 8
    assert settings.is_evaluated(3, 3)


# ---- losses


def test_padding_does_not_count_and_parts_add_up(tiny_bert: Model) -> None:
    samples = random_samples(12)
    step = Distill(hidden=1, ffn=1, scores=1, embedding=1)
    pruned = tiny_bert.clone()
    cut = Context(samples=random_samples(16, seed=3))
    Pipeline.parse("prune{ffn=0.5 heads=0.5}").run(pruned, cut, allow=("prune",))
    given = prepare(pruned, tiny_bert, Training(samples, held_out=samples), step.settings())
    assert {place.kind for place in given.losses.places} == {"embedding", "hidden", "ffn", "scores"}
    counts = Counts.of(samples.feeds)

    def terms(indices: list[int]) -> dict[str, float]:
        feed = samples.batch(indices)
        student, teacher = (run(module, feed, given.device) for module in (given.student, given.teacher))
        found = given.losses(student, teacher, mask_of(feed), counts)
        return {name: float(value) for name, value in found.items()}

    with torch.no_grad():
        whole = terms(list(range(12)))
        singles = [terms([index]) for index in range(12)]
    for name, value in whole.items():
        assert value == pytest.approx(sum(single[name] for single in singles), rel=1e-4)
        assert value > 0 or name == "embedding"


def test_a_squared_error_as_large_as_the_signal_is_one() -> None:
    losses = Losses(Distill(hidden=0).settings(), [], [Answer("x", "mse")], by_token=())
    teacher = {"x": torch.randn(4, 5)}
    counts = Counts(4, 4, 4)
    losses.measure([(teacher, None)], counts)
    found = losses({"x": torch.zeros(4, 5)}, teacher, None, counts)
    assert float(found["outputs"]) == pytest.approx(1.0)


@pytest.mark.parametrize(("loss", "error"), [("mse", 4.0), ("kl", 9.0)])
def test_as_many_tokens_as_classes_are_still_classes(loss: str, error: float) -> None:
    losses = Losses(Distill(hidden=0, temperature=1).settings(), [], [Answer("x", loss)], by_token=())
    teacher = {"x": torch.tensor([[0.0, 0, 0, 9], [0, 0, 9, 0]])}
    student = {"x": torch.tensor([[0.0, 0, 0, 9], [0, 0, 0, 9]])}
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    counts = Counts(2, 6, 20)
    losses.measure([(teacher, mask)], counts)
    alone = losses(student, teacher, mask, counts)["outputs"]
    assert float(alone) == pytest.approx(float(losses(student, teacher, None, counts)["outputs"]))
    assert float(alone) > error / 10


def test_the_divergence_is_torchs() -> None:
    student, teacher = torch.randn(6, 3), torch.randn(6, 3)
    expected = 4 * torch.nn.functional.kl_div(
        (student / 2).log_softmax(-1), (teacher / 2).log_softmax(-1), reduction="sum", log_target=True
    )
    assert torch.allclose(divergence(student, teacher, None, 2.0)[0], expected)


def test_a_span_is_a_distribution_over_real_tokens() -> None:
    teacher, mask = torch.randn(2, 5), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    student = torch.where(mask, teacher, torch.randn(2, 5) * 9)
    assert float(divergence(student, teacher, mask, 1.0)[0]) == pytest.approx(0.0, abs=1e-6)


# ---- what goes wrong


def test_a_loss_that_is_no_number_ends_with_advice_and_the_last_good_weights(tiny_bert: Model) -> None:
    ctx = Context(training=Training(random_samples(24)), original=other_bert())
    with pytest.raises(TrainingError, match=r"no longer a number at step \d+ of 40.*Try lr="):
        Distill(steps=40, lr=1e30, batch=8, warmup=0.0).run(tiny_bert, ctx)
    assert all(np.isfinite(array).all() for array in weights(tiny_bert).values())


def test_memory_that_runs_out_ends_with_advice(tiny_bert: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(loop, "terms_of", refuse)
    ctx = Context(training=Training(random_samples(24)), original=tiny_bert.clone())
    with pytest.raises(TrainingError, match=r"memory ran out on 8 samples.*batch=4 accumulate=2, or checkp"):
        Distill(steps=4, batch=8).run(tiny_bert, ctx)


def test_patience_ends_a_run_that_does_not_get_better(tiny_bert: Model) -> None:
    step = "distill{steps=30 lr=0.0 batch=8 evaluations=30 patience=2}"
    (record,) = trained(tiny_bert, step, Training(random_samples(24)))
    assert "the best after step 0 of 2" in record.notes[0]


@pytest.mark.parametrize("wrong", [3, -1, "yes", 0.5, True])
def test_a_label_outside_the_classes_stops_before_any_work(wrong: object) -> None:
    training = Training(labelled([0, 1, wrong]))
    problem = r"column 'label' row 3 is .*, .* the classes 0 to 2"
    with pytest.raises(DataError, match=problem):
        Distill().run(classifier(), Context(training=training, original=classifier()))
    with pytest.raises(DataError, match=problem):
        Pipeline.parse("kron,distill").run(classifier(), Context(training=training))


def test_samples_without_the_column_of_the_metric() -> None:
    samples = labelled([0, 1, 2])
    bare = dataclasses.replace(samples, columns={})
    training = Training(samples, held_out=bare, metric=metric("accuracy"))
    with pytest.raises(DataError, match="needs a column label"):
        Pipeline.parse("kron,distill").run(classifier(), Context(training=training))


def test_a_teacher_for_another_task(tiny_bert: Model) -> None:
    for teacher, problem in (
        (classifier(classes=4), "of the teacher has shape"),
        (tiny_bert, "the teacher has no output 'logits'"),
    ):
        samples = random_samples(4, vocabulary=20)
        ctx = Context(training=Training(samples, teacher=teacher), original=classifier())
        with pytest.raises(UsageError, match=problem):
            Distill().run(classifier(), ctx)


def test_no_loss_is_left() -> None:
    ctx = Context(training=Training(labelled([0, 1, 2])), original=classifier())
    with pytest.raises(UsageError, match="no loss is left"):
        Distill(outputs=0, labels=0).run(classifier(), ctx)


def test_an_operator_without_a_counterpart_is_named() -> None:
    model = classifier()
    node = next(iter(model.graph))
    node.domain, node.op_type = "com.example", "Mystery"
    ctx = Context(training=Training(labelled([0, 1])), original=model.clone())
    with pytest.raises(UnsupportedModelError, match=r"com\.example"):
        Distill().run(model, ctx)


def test_without_samples_to_train_on(tiny_bert: Model) -> None:
    with pytest.raises(UsageError, match="give samples to train on with --train"):
        Pipeline.parse("distill").run(tiny_bert, Context())
    record = Distill().run(tiny_bert, Context())
    assert record.notes == ("nothing to learn from; give samples with --train",)


def test_a_lossy_pass_is_judged_after_the_training(tiny_bert: Model) -> None:
    """A cut that breaks its contract stops the run, with a distill behind it only if it mends too little."""
    with pytest.raises(ContractError, match="prune"):
        Pipeline.parse("prune{ffn=0.9}").run(tiny_bert.clone(), Context())
    still = "prune{ffn=0.9},distill{steps=1 lr=0 batch=4}"
    with pytest.raises(ContractError, match=r"prune.*after distill"):
        Pipeline.parse(still).run(tiny_bert.clone(), Context(training=Training(random_samples(8))))
    mended = "prune{ffn=0.9},distill{steps=120 lr=0.01 batch=16 warmup=0.05 outputs=4}"
    mended = mended.replace(",", ",simplify,")  # an exact pass between them is judged by itself
    records = Pipeline.parse(mended).run(
        tiny_bert, Context(samples=random_samples(16, seed=3), training=Training(random_samples(48)))
    )
    assert records[1].step.max_relative_error < 1e-4
    assert records[2].step.sqnr_db >= 10
    assert records[2].broken is None


def test_its_text_makes_it_again() -> None:
    text = "distill{steps=100 lr=0.0003 scores=1.0 bf16=true}"
    assert str(Pipeline.parse(text)) == str(Pipeline.parse(str(Pipeline.parse(text))))
    assert Pipeline.parse(text).passes == (Distill(steps=100, lr=3e-4, scores=1.0, bf16=True),)
