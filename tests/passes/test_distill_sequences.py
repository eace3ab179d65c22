"""Models that write learn as one: an answer at once, without padding, and all parts hold what was learned."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from distilled_models import weights
from sequence_models import CAUSAL, CONFIGURATIONS, VOCABULARY, random_texts, saved

torch = pytest.importorskip("torch")

from several_processes import two_processes  # noqa: E402

from graphcompress.data.load import load_samples  # noqa: E402
from graphcompress.data.samples import Samples  # noqa: E402
from graphcompress.data.sequences import Written  # noqa: E402
from graphcompress.data.teacher_forced import NEXT, forced, forced_samples, unrolled  # noqa: E402
from graphcompress.errors import DataError, UsageError  # noqa: E402
from graphcompress.files.parts import read_parts  # noqa: E402
from graphcompress.files.runtime import runner_of, session_of  # noqa: E402
from graphcompress.fx import to_fx  # noqa: E402
from graphcompress.generation.steps import Steps  # noqa: E402
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.graph.teacher_forced import teacher_forced  # noqa: E402
from graphcompress.passes.distill import Distill  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.context import Context, Training  # noqa: E402
from graphcompress.training import checkpoints  # noqa: E402
from graphcompress.training.evaluation import terms_of  # noqa: E402
from graphcompress.training.prepare import prepare, run  # noqa: E402
from graphcompress.training.tokens import Counts  # noqa: E402

STEPS = "distill{steps=6 lr=0.003 batch=8 evaluations=1}"


def samples_of(model: Model, name: str, count: int = 16) -> Samples:
    return forced_samples(model, random_texts(name.partition(",")[0], count))


def trained(model: Model, passes: str, training: Training, **context: object) -> None:
    pipeline = Pipeline.parse(passes)
    ctx = Context(training=training, **context)  # type: ignore[arg-type]
    pipeline.run(model, ctx, allow=[step.name for step in pipeline.passes])


@pytest.mark.parametrize("name", ["marian", "whisper, merged", "gpt2"])
def test_steps_with_a_cache_answer_as_what_was_trained(
    name: str, sequence_folders: Mapping[str, Path], tmp_path: Path
) -> None:
    model = Model.load(sequence_folders[name])
    samples = samples_of(model, name)
    before = weights(model)
    trained(
        model, STEPS.replace("evaluations=1", "evaluations=1 hidden=0"), Training(samples, held_out=samples)
    )
    assert any(not np.array_equal(array, before[key]) for key, array in weights(model).items())
    feed = samples.batch([0])
    with torch.no_grad():
        outputs = run(to_fx(teacher_forced(model)), feed, torch.device("cpu"))
    wanted = next(value for key, value in outputs.items() if key.endswith("logits")).numpy()
    parts = read_parts(saved(model, tmp_path / "trained"))
    steps = Steps(parts, {part.role: runner_of(session_of(part.path)) for part in parts})
    source = {
        key.removeprefix("encoder/"): array for key, array in feed.items() if key.startswith("encoder/")
    }
    if source:
        steps.encode(source)
    ids = next(array for key, array in feed.items() if key in ("input_ids", "prefill/input_ids"))
    found = [steps.first(ids[:, :1], np.ones((1, 1), np.int64))]
    found += [steps.next(ids[:, index]) for index in range(1, ids.shape[1])]
    assert np.abs(np.stack(found, 1) - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["bart", "whisper", "llama"])
def test_padding_does_not_count_and_parts_add_up(name: str, sequence_folders: Mapping[str, Path]) -> None:
    model = Model.load(sequence_folders[name])
    samples = samples_of(model, name, 6)
    Pipeline.parse("simplify").run(model, Context())
    student = model.clone()
    Pipeline.parse("prune{ffn=0.5 heads=0.34}").run(student, Context(), allow=["prune"])
    settings = Distill(hidden=1, ffn=1, scores=1, embedding=1).settings()
    given = prepare(student, model, Training(samples, held_out=samples), settings)
    kinds = [place.kind for place in given.losses.places]
    if name not in CAUSAL:  # two layers of the encoder, and of the decoder with two attentions each
        assert (kinds.count("hidden"), kinds.count("scores")) == (4, 6)
    counts = Counts.of(samples.feeds)

    def terms(indices: list[int]) -> dict[str, float]:
        found = terms_of(given, settings, indices, counts, samples, given.labels)
        return {key: float(value) for key, value in found.items()}

    with torch.no_grad():
        whole, singles = terms(list(range(6))), [terms([index]) for index in range(6)]
    assert {"outputs", "labels", "hidden", "scores"} <= set(whole)
    for key, value in whole.items():
        assert value == pytest.approx(sum(single[key] for single in singles), rel=1e-4), key


def test_the_labels_are_the_tokens_that_come_next(sequence_folders: Mapping[str, Path]) -> None:
    model = Model.load(sequence_folders["bart"])
    samples, texts = samples_of(model, "bart", 3), random_texts("bart", 3)
    settings = Distill(hidden=0).settings()
    given = prepare(model, model, Training(samples, held_out=samples), settings)
    with torch.no_grad():
        found = terms_of(given, settings, [0, 1, 2], Counts.of(samples.feeds), samples, given.labels)
        logits = [
            run(given.student, samples.batch([row]), given.device)["prefill/logits"][0] for row in range(3)
        ]
    after = torch.from_numpy(np.concatenate([text.tokens[1:] for text in texts]))
    wanted = torch.nn.functional.cross_entropy(torch.cat(logits), after)
    assert float(found["labels"]) == pytest.approx(float(wanted), rel=1e-5)
    assert float(found["outputs"]) == pytest.approx(0.0, abs=1e-6)


def test_a_prompt_is_read_and_not_learned(sequence_folders: Mapping[str, Path]) -> None:
    model = Model.load(sequence_folders["gpt2"])
    samples = forced_samples(model, [Written({}, np.array([7, 8, 9, 10]), prompt=2)])
    assert samples.feeds[0]["input_ids"].tolist() == [7, 8, 9]
    assert samples.feeds[0][NEXT].tolist() == [-100, 9, 10]


@pytest.mark.parametrize("name", ["t5", "t5, merged", "llama"])
def test_samples_of_steps_are_the_same_texts(name: str, sequence_folders: Mapping[str, Path]) -> None:
    model = Model.load(sequence_folders[name])
    samples = samples_of(model, name, 3)
    again = forced(model, unrolled(model, samples))
    for one, other in zip(samples.feeds, again.feeds, strict=True):
        assert {key: array.tolist() for key, array in one.items()} == {
            key: array.tolist() for key, array in other.items()
        }


def test_two_processes_reach_the_weights_of_one(
    sequence_folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = "forced_samples(model, random_texts('bart', 24))"
    passes = "prune{ffn=0.5},distill{steps=3 lr=0.001 batch=6 evaluations=1 scores=1 answers=teacher beams=2}"
    two_processes(sequence_folders["bart"], tmp_path, passes, texts)


def test_an_interrupted_run_goes_on_to_the_same_result(
    sequence_folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)
    model = Model.load(sequence_folders["marian"])
    samples = samples_of(model, "marian")
    training = Training(samples, held_out=samples, folder=tmp_path / "training")
    whole, halves = model.clone(), model.clone()
    trained(whole, STEPS, dataclasses.replace(training, folder=None))

    def interrupt(text: str, done: int, total: int, detail: str = "") -> None:
        if text == "distill" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(halves.clone(), STEPS, training, progress=interrupt)
    trained(halves, STEPS, training)
    assert all(np.array_equal(array, weights(whole)[key]) for key, array in weights(halves).items())
    assert any(not np.array_equal(array, weights(model)[key]) for key, array in weights(halves).items())


@pytest.mark.parametrize("name", ["bart", "gpt2"])
def test_block_pruning_cuts_all_parts_alike(
    name: str, sequence_folders: Mapping[str, Path], tmp_path: Path
) -> None:
    model = Model.load(sequence_folders[name])
    samples = samples_of(model, name)
    before = model.parameters
    options = "preset=struct density=0.5 steps=8 batch=8 evaluations=1"
    trained(model, f"blockprune{{{options}}}", Training(samples, held_out=samples))
    assert model.parameters < before
    teacher_forced(model)  # no part has weights of its own
    assert read_parts(saved(model, tmp_path / "small"))


def test_what_cannot_be_learned_is_refused_before_the_work(sequence_folders: Mapping[str, Path]) -> None:
    model = Model.load(sequence_folders["bart"])
    start = CONFIGURATIONS["bart"][2]["decoder_start_token_id"]
    bare = [Written(text.source, np.array([start])) for text in random_texts("bart", 4)]
    with pytest.raises(DataError, match="row 1 of 4 has no answer that could be learned"):
        Distill(steps=1).check(
            model,
            Context(training=Training(forced_samples(model, bare), held_out=forced_samples(model, bare))),
        )
    other = Model.load(sequence_folders["gpt2"])
    samples = samples_of(model, "bart", 4)
    with pytest.raises(UsageError, match="the teacher reads attention_mask, input_ids, position_ids"):
        Distill(steps=1).check(model, Context(training=Training(samples, teacher=other, held_out=samples)))


def test_texts_are_read_for_training_without_running_anything(
    sequence_folders: Mapping[str, Path], tmp_path: Path
) -> None:
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "w3"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    rows = [{"source": "w5 w6 w7", "target": "w8 w9"}, {"source": "w5", "target": "w9 w8 w7"}]
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    model = Model.load(sequence_folders["bart"])
    samples = load_samples(data, model, tokenizer=tmp_path / "tokenizer.json", at_once=True)
    start = CONFIGURATIONS["bart"][2]["decoder_start_token_id"]
    assert samples.feeds[0]["prefill/input_ids"].tolist() == [start, 8]
    assert samples.feeds[1][f"prefill/{NEXT}"].tolist() == [9, 8, 7]
    batch = samples.batch([0, 1])
    assert batch[f"prefill/{NEXT}"].tolist() == [[8, 9, -100], [9, 8, 7]]
    assert batch["encoder/attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
