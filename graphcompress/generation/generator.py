"""A folder with the parts of a model as one thing that is given prompts and writes texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tokenizers

from graphcompress.data.lengths import longest_sample
from graphcompress.data.texts import find_tokenizer
from graphcompress.errors import DataError, UnsupportedModelError
from graphcompress.files.parts import Part, model_files, part_in, read_parts
from graphcompress.files.runtime import Feed, runner_of, session_of
from graphcompress.generation.search import search
from graphcompress.generation.settings import GenerationSettings, read_settings
from graphcompress.generation.steps import Runs, Steps, follows_mask
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Progress, no_progress

BATCH = 8
"""Prompts run together, where nothing else is asked for."""

Prompt = Mapping[str, np.ndarray]
"""Inputs of the encoder (or the ids of a decoder alone), without the batch."""


@dataclass(frozen=True)
class Generator:
    """A model that writes: its parts, the functions that run them, how it generates, and its tokenizer.

    Attributes:
        parts: in the order in which they run.
        runs: role of a part → the function that runs it.
        settings: how to generate.
        tokenizer: None where it has none: then prompts and answers are ids.
        longest: tokens for which the encoder and the decoder have positions; None without such a limit.
    """

    parts: tuple[Part, ...]
    runs: Runs
    settings: GenerationSettings
    tokenizer: tokenizers.Tokenizer | None = None
    longest: tuple[int | None, int | None] = (None, None)

    def texts(
        self, texts: Sequence[str], *, batch: int = BATCH, progress: Progress = no_progress
    ) -> list[str]:
        """What the model writes after (or, with an encoder, as its answer to) each of ``texts``.

        Raises:
            DataError: no tokenizer, one of another vocabulary, a text without a token or of too many, or the
                model writes nothing at all.
        """
        return self.decoded(self.ids(self.prompts(texts), batch=batch, progress=progress))

    def ids(
        self,
        prompts: Sequence[Prompt],
        *,
        batch: int = BATCH,
        progress: Progress = no_progress,
        text: str = "generate",
    ) -> list[list[int]]:
        """New tokens after each of ``prompts``, which run in batches of similar length.

        ``text`` is what the progress calls it.

        Raises:
            DataError: a prompt is longer than the positions.
        """
        self._check_lengths(prompts)
        found: list[list[int]] = [[] for _ in prompts]
        done = 0
        for rows in self._batches([_length(prompt) for prompt in prompts], batch):
            progress(text, done, len(prompts))
            for row, answer in zip(rows, self._answers([prompts[row] for row in rows]), strict=True):
                found[row] = answer
            done += len(rows)
        progress(text, done, len(prompts))
        return found

    def prompts(self, texts: Sequence[str]) -> list[Prompt]:
        """Ids of ``texts``.

        Raises:
            DataError: as :meth:`texts`.
        """
        tokenizer = self._tokenizer()
        name = self.parts[0].input("ids")
        if name is None:
            raise DataError(
                f"{self.parts[0].path}: reads no text but "
                f"{', '.join(port.name for port in self.parts[0].inputs)}; give data with such columns"
            )
        tokenizer.no_padding()
        # A tokenizer.json may cut texts off in silence; what is too long is refused with its number.
        tokenizer.no_truncation()
        found = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        for number, ids in enumerate(found, 1):
            if not ids:
                raise DataError(f"text {number} of {len(texts)} has no token; give one that is not empty")
        return [{name: np.asarray(ids, np.int64)} for ids in found]

    def decoded(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Texts of ``answers``, without special tokens.

        Raises:
            DataError: all of them are empty.
        """
        texts = [text.strip() for text in self._tokenizer().decode_batch([list(ids) for ids in answers])]
        if texts and not any(texts):
            raise DataError(
                f"the model wrote nothing for any of {len(texts):,} texts: its first token was always the "
                "end; check that the tokenizer is its own, and how strongly it was compressed"
            )
        return texts

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Logits [batch, length, vocabulary] of a decoder alone, of the token after each of ``ids``.

        Raises:
            DataError: it has fewer positions, an encoder, or returns the logits of the last token only.
        """
        most = self.longest[1]
        if most is not None and ids.shape[1] > most:
            raise DataError(
                f"{ids.shape[1]} tokens are more than the {most} positions of the model; take fewer"
            )
        if self.parts[0].role == "encoder":
            raise DataError(
                f"{self.parts[0].path}: a model with an encoder does not foresee a text by itself"
            )
        found = Steps(self.parts, self.runs).all(ids, np.ones_like(ids))
        if found.shape[1] != ids.shape[1]:
            raise DataError(
                f"{self.parts[0].path}: returns the logits of the last token only; export it with "
                "those of all"
            )
        return found

    def with_settings(self, settings: GenerationSettings) -> Generator:
        """The same model, which generates in another way."""
        return replace(self, settings=settings)

    # ---- how

    def _tokenizer(self) -> tokenizers.Tokenizer:
        if self.tokenizer is None:
            raise DataError(
                f"{self.parts[0].path.parent}: texts need a tokenizer; put tokenizer.json beside the model "
                "or give --tokenizer"
            )
        return self.tokenizer

    def _batches(self, lengths: Sequence[int], size: int) -> Iterator[list[int]]:
        """Rows that run together: of similar length, or of one length where padding would be seen."""
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        padded = self.parts[0].role == "encoder" or follows_mask(self.parts)
        rows: list[int] = []
        for row in order:
            if rows and (len(rows) == size or not (padded or lengths[row] == lengths[rows[0]])):
                yield rows
                rows = []
            rows.append(row)
        if rows:
            yield rows

    def _answers(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        steps = Steps(self.parts, self.runs)
        if self.parts[0].role != "encoder":
            ids, mask = _padded(
                [next(iter(prompt.values())) for prompt in prompts], self.settings, front=True
            )
            return search(steps, ids, mask, self.settings)
        steps.encode(self._encoder_feed(prompts))
        start = np.tile(np.asarray(self.settings.start, np.int64), (len(prompts), 1))
        return search(steps, start, np.ones_like(start), self.settings)

    def _encoder_feed(self, prompts: Sequence[Prompt]) -> Feed:
        encoder = self.parts[0]
        feed: dict[str, np.ndarray] = {}
        for port in encoder.inputs:
            if port.kind == "ids":
                feed[port.name], mask = _padded([prompt[port.name] for prompt in prompts], self.settings)
                feed |= {other.name: mask.astype(other.dtype) for other in encoder.reads("mask")}
            elif port.name in prompts[0]:
                # Nothing is padded: a feature extractor gives all recordings and pictures one size.
                feed[port.name] = np.stack([prompt[port.name] for prompt in prompts])
            elif port.kind != "mask":
                raise DataError(f"{encoder.path}: the prompts lack its input {port.name!r}")
        dtypes = {port.name: port.dtype for port in encoder.inputs}
        return {name: array.astype(dtypes[name], copy=False) for name, array in feed.items()}

    def _check_lengths(self, prompts: Sequence[Prompt]) -> None:
        source, target = self.longest
        alone = self.parts[0].role != "encoder"
        for number, prompt in enumerate(prompts, 1):
            length = _length(prompt)
            written = self.settings.limit(length if alone else len(self.settings.start))
            most = target if alone else source
            if alone and most is not None and written > most:
                raise DataError(
                    f"text {number}: {length} tokens and {written - length} new ones are more than the "
                    f"{most} positions of the model; shorten it, or ask for fewer with --max-new-tokens"
                )
            if not alone and most is not None and self.parts[0].input("ids") and length > most:
                raise DataError(
                    f"text {number} has {length} tokens, the model has positions for {most}; shorten it"
                )
            if not alone and target is not None and written > target:
                raise DataError(
                    f"an answer of {written} tokens is longer than the {target} positions of the decoder; "
                    "ask for fewer with --max-new-tokens"
                )


def open_generator(
    folder: Path,
    *,
    tokenizer: Path | None = None,
    run_of: Callable[[Path], Callable[[Feed], Mapping[str, np.ndarray]]] | None = None,
) -> Generator:
    """The model in ``folder`` (or in one file), ready to write.

    ``run_of`` makes the function that runs a file; by default it is ONNX Runtime on the CPU.

    Raises:
        InvalidModelError: the files are no model together.
        UnsupportedModelError: the model does not write.
        DataError: the tokenizer is of another vocabulary.
    """
    parts = writing_parts(folder)
    beside = folder if folder.is_dir() else folder.parent
    found = find_tokenizer(tokenizer, beside)
    if found is not None:
        _check_vocabulary(found, parts)
    run_of = run_of or (lambda path: runner_of(session_of(path)))
    settings = read_settings(beside)
    check_start(folder, settings, encodes=parts[0].role == "encoder")
    limits = _positions(parts)
    return Generator(parts, {part.role: run_of(part.path) for part in parts}, settings, found, limits)


def writing_parts(path: Path) -> tuple[Part, ...]:
    """The parts in ``path``; a decoder without past keys and values counts, too.

    Raises:
        InvalidModelError: the files are no model together.
        UnsupportedModelError: there is one model, and it does not write.
    """
    parts = read_parts(path)
    if parts:
        return parts
    file = model_files(path)[0] if path.is_dir() else path
    part = part_in(file)
    if part.role != "decoder" or part.input("ids") is None:
        seen = ", ".join(port.name for port in part.outputs)
        raise UnsupportedModelError(
            f"{file}: does not write: its outputs are {seen}, not the logits of a next token; give a model "
            "that was exported for text-generation or text2text-generation"
        )
    return (part,)


def _length(prompt: Prompt) -> int:
    return len(next(iter(prompt.values())))


def _padded(
    rows: Sequence[np.ndarray], settings: GenerationSettings, *, front: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Ids [rows, longest] and their mask; padding comes last, or in front where the end is gone on from."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), settings.pad_token_id, np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if front else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return ids, mask


def _check_vocabulary(tokenizer: tokenizers.Tokenizer, parts: Sequence[Part]) -> None:
    """A tokenizer with more tokens than the model has logits for is another model's."""
    size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    for part in parts:
        for port in part.returns("logits"):
            rows = port.shape[-1] if port.shape else None
            if isinstance(rows, int) and size > rows:
                raise DataError(
                    f"the tokenizer has {size:,} tokens, {part.path} only {rows:,} logits, so it is another "
                    "model's; give the right one with --tokenizer"
                )


def check_start(folder: Path, settings: GenerationSettings, *, encodes: bool) -> None:
    """Hold that a decoder beside an encoder is told where to begin.

    Raises:
        UnsupportedModelError: the files of ``folder`` do not say so.
    """
    if encodes and not settings.start:
        raise UnsupportedModelError(
            f"{folder}: nothing says with which token its decoder begins; put generation_config.json with a "
            "decoder_start_token_id there"
        )


def _positions(parts: Sequence[Part]) -> tuple[int | None, int | None]:
    """Tokens for which the encoder and the decoders have positions."""
    encoder: int | None = None
    decoder: int | None = None
    for part in parts:
        limit = longest_sample(Model.load(part.path))
        if part.role == "encoder":
            encoder = limit
        elif limit is not None:
            decoder = limit if decoder is None else min(limit, decoder)
    return encoder, decoder
