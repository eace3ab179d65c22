"""Sequence-level distillation: what is learned is what transformers' beam search would write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from sequence_models import CAUSAL, random_texts

torch = pytest.importorskip("torch")

from graphcompress.data.rows import UNLABELLED  # noqa: E402
from graphcompress.data.samples import Samples  # noqa: E402
from graphcompress.data.teacher_forced import NEXT, forced_samples  # noqa: E402
from graphcompress.errors import UsageError  # noqa: E402
from graphcompress.generation.generator import Generator, open_generator  # noqa: E402
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.passes.distill import Distill  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.context import Context, Training, no_progress  # noqa: E402
from graphcompress.training.group import ProcessGroup  # noqa: E402
from graphcompress.training.teacher_answers import answered_by  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def prompted(model: Model, name: str, count: int = 6) -> Samples:
    """Rows with a prompt of three tokens where there is no encoder."""
    texts = random_texts(name, count)
    return forced_samples(
        model, [dataclasses.replace(text, prompt=3) if name in CAUSAL else text for text in texts]
    )


def learned(feed: dict[str, np.ndarray]) -> list[int]:
    after = next(array for name, array in feed.items() if name.endswith(NEXT))
    return after[after != UNLABELLED].tolist()


@pytest.mark.parametrize(("name", "beams"), [("marian", 1), ("marian", 3), ("whisper", 3), ("gpt2", 3)])
def test_what_is_learned_is_what_the_teacher_writes(
    name: str, beams: int, sequence_folders: Mapping[str, Path]
) -> None:
    model = Model.load(sequence_folders[name])
    samples = prompted(model, name)
    found = answered_by(model, model, samples, beams, ProcessGroup(), no_progress)
    generator = open_generator(sequence_folders[name])
    generator = generator.with_settings(dataclasses.replace(generator.settings, num_beams=beams))
    port = generator.parts[0].input("ids") or generator.parts[0].inputs[0].name
    prefix = "encoder/" if generator.parts[0].role == "encoder" else ""
    for before, after in zip(samples.feeds, found.feeds, strict=True):
        given = next(array for key, array in before.items() if key.removeprefix(prefix).endswith(port))
        prompt = given[:3] if name in CAUSAL else given
        assert learned(after) == generator.ids([{port: prompt}])[0]


def test_answers_are_written_once_and_a_part_of_them_goes_on(
    sequence_folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.load(sequence_folders["marian"])
    samples, asked = prompted(model, "marian"), []
    write = Generator.ids

    def counted(self: Generator, prompts: list[object], **how: object) -> list[list[int]]:
        asked.append(len(prompts))
        return write(self, prompts, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(Generator, "ids", counted)

    def answers() -> list[list[int]]:
        found = answered_by(model, model, samples, 2, ProcessGroup(), no_progress)
        return [learned(feed) for feed in found.feeds]

    first = answers()
    assert answers() == first
    assert asked == [6]
    (file,) = (tmp_path / "cache" / "graphcompress" / "answers").iterdir()
    lines = file.read_text().strip().splitlines()
    file.write_text("\n".join([*lines[:2], lines[2][:-3]]))  # as a kill leaves it
    assert answers() == first
    assert asked == [6, 4]


def test_a_student_learns_the_answers_of_its_teacher(sequence_folders: Mapping[str, Path]) -> None:
    """Without a loss between the logits, only the answers can tell it anything."""
    model = Model.load(sequence_folders["marian"])
    samples = prompted(model, "marian", 16)
    teacher = Model.load(sequence_folders["marian"])
    student = model.clone()
    options = "distill{steps=30 lr=0.003 batch=8 evaluations=1 hidden=0 outputs=0 answers=teacher beams=2}"
    held_out = answered_by(teacher, model, samples, 2, ProcessGroup(), no_progress)
    (record,) = Pipeline.parse(options).run(
        student, Context(training=Training(samples, teacher, held_out)), allow=["distill"]
    )[-1:]
    (curve,) = record.curves.values()
    assert curve[-1][1] < 0.8 * curve[0][1]


def test_what_cannot_write_is_refused_before_the_work(
    sequence_folders: Mapping[str, Path], tiny_bert: Model, tiny_samples: Samples
) -> None:
    with pytest.raises(UsageError, match="for models that write"):
        Distill(answers="teacher").check(tiny_bert, Context(training=Training(tiny_samples)))
    with pytest.raises(UsageError, match="are those of the data"):
        Distill(beams=2)
    gpt = Model.load(sequence_folders["gpt2"])
    plain = forced_samples(gpt, random_texts("gpt2", 4))
    with pytest.raises(UsageError, match="no prompts with answers"):
        answered_by(gpt, gpt, plain, 2, ProcessGroup(), no_progress)
