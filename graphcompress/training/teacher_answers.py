"""What a teacher writes, learned in place of the answers of the data: sequence-level distillation."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from graphcompress.data.samples import Samples
from graphcompress.data.sequences import Written
from graphcompress.data.teacher_forced import forced, forced_samples, prompts_of
from graphcompress.errors import UsageError
from graphcompress.files.reading.hashes import sha256
from graphcompress.files.scratch import Renamed
from graphcompress.generation.generator import Generator, Prompt, open_generator
from graphcompress.graph.model import Model
from graphcompress.graph.teacher_forced import encoder_of, writer_of
from graphcompress.measure.cache import cache_folder
from graphcompress.plugin.context import Progress
from graphcompress.training.group import ProcessGroup

TOGETHER, KEPT_AFTER = 32, 256
"""So many prompts run at once, and answers are kept on disk after so many: more is not lost by a kill."""

_LOG = logging.getLogger(__name__)


def check_writes(teacher: Model, model: Model) -> Path:
    """The folder or file with which ``teacher`` writes.

    Raises:
        UsageError: it does not write, or is no file.
    """
    if writer_of(model.parts) is None:
        raise UsageError("answers=teacher is for models that write; leave it out")
    if teacher.source is None or writer_of(teacher.parts) is None:
        raise UsageError(
            "answers=teacher: the teacher is no folder of files that write; give one with --teacher, as "
            "graphcompress export makes it"
        )
    return teacher.source


def answered_by(
    teacher: Model, model: Model, samples: Samples, beams: int, group: ProcessGroup, progress: Progress
) -> Samples:
    """``samples`` as ``model`` learns them, with the answers that ``teacher`` writes with ``beams`` beams.

    Kim and Rush, Sequence-Level Knowledge Distillation (arXiv:1606.07947). Every process writes its share.
    Answers are kept in the cache folder, so that the same prompts are answered once by the same teacher.

    Raises:
        UsageError: the teacher does not write, or a text has no prompt.
        DataError: a prompt is longer than the teacher's positions.
    """
    generator = open_generator(check_writes(teacher, model))
    generator = generator.with_settings(dataclasses.replace(generator.settings, num_beams=beams))
    learnt = forced(model, samples)
    begun = prompts_of(model, learnt)
    if encoder_of(model.parts) is None and all(len(each.tokens) < 2 for each in begun):
        raise UsageError(
            "answers=teacher: the texts are no prompts with answers; give rows with a prompt and an answer"
        )
    prompts = [_prompt(each, generator) for each in begun]
    answers = _answers(generator, prompts, _Kept(_identity(generator, prompts), group.rank), group, progress)
    written = [
        dataclasses.replace(each, tokens=np.concatenate([each.tokens, np.asarray(answer, np.int64)]))
        for each, answer in zip(begun, answers, strict=True)
    ]
    made = forced_samples(model, written)
    return dataclasses.replace(made, columns=learnt.columns, names=learnt.names)


def _prompt(begun: Written, generator: Generator) -> Prompt:
    """What ``generator`` is given; the mask of a batch it makes itself."""
    first = generator.parts[0]
    masks = {port.name for port in first.reads("mask")}
    source = Renamed(begun.source, {name: name for name in begun.source if name not in masks})
    return source or {first.input("ids") or "": begun.tokens}


def _answers(
    generator: Generator,
    prompts: Sequence[Prompt],
    kept: _Kept,
    group: ProcessGroup,
    progress: Progress,
) -> list[list[int]]:
    """New tokens after each of ``prompts``; those that are kept are not written again."""
    known = group.from_first(kept.read())
    # Of similar length together, so that little is padded.
    missing = sorted(set(range(len(prompts))) - known.keys(), key=lambda row: _length(prompts[row]))
    own = missing[group.rank :: group.size]
    found: dict[int, list[int]] = {}
    for start in range(0, len(own), KEPT_AFTER):
        rows = own[start : start + KEPT_AFTER]

        def shown(text: str, done: int, total: int, detail: str = "", start: int = start) -> None:
            progress(text, start + done, len(own), detail)

        new = generator.ids(
            [prompts[row] for row in rows], batch=TOGETHER, progress=shown, text="the teacher writes"
        )
        found |= dict(zip(rows, new, strict=True))
        kept.add(dict(zip(rows, new, strict=True)))
    for each in (known, *group.of_all(found)):
        found |= each
    return [found[row] for row in range(len(prompts))]


def _length(prompt: Prompt) -> int:
    return max(int(array.shape[-1]) for array in prompt.values())


def _identity(generator: Generator, prompts: Iterable[Prompt]) -> str:
    """Of all that decides what is written: the weights, how they generate, the prompts."""
    digest = hashlib.sha256(repr(generator.settings).encode())
    for part in generator.parts:
        for file in (part.path, *_beside(part.path)):
            digest.update(sha256(file).encode())
    for prompt in prompts:
        for name, array in sorted(prompt.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]


def _beside(file: Path) -> list[Path]:
    """Files with weights of ``file``."""
    return sorted(
        path
        for path in file.parent.iterdir()
        if path.is_file() and path.name.startswith(f"{file.name}") and path != file
    )


class _Kept:
    """Answers on disk, a line each: the number of the prompt and the tokens after it."""

    def __init__(self, identity: str, rank: int) -> None:
        self._folder, self._identity = cache_folder() / "answers", identity
        self._own = self._folder / f"{identity}-{rank}.jsonl"

    def read(self) -> dict[int, list[int]]:
        """What earlier runs wrote, whole lines of it."""
        found: dict[int, list[int]] = {}
        for file in sorted(self._folder.glob(f"{self._identity}-*.jsonl")):
            with contextlib.suppress(OSError):
                for line in file.read_text(encoding="utf-8").splitlines():
                    # The last line of a run that was killed may be a part of one.
                    with contextlib.suppress(ValueError, TypeError):
                        row, tokens = json.loads(line)
                        found[int(row)] = [int(token) for token in tokens]
        return found

    def add(self, answers: Mapping[int, Sequence[int]]) -> None:
        """Keep ``answers``; a folder that cannot be written is only a warning."""
        lines = "".join(f"\n{json.dumps([row, list(tokens)])}" for row, tokens in answers.items())
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._own.open("a", encoding="utf-8") as file:
                file.write(lines + "\n")
        except OSError as error:
            _LOG.warning("answers could not be kept in %s (%s)", self._folder, error.strerror)
