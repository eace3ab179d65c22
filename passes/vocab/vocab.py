"""vocab: rows of the word embedding that the data never look up are dropped, and their tokens with them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Embedding, embeddings
from graphcompress.data.samples import Samples
from graphcompress.data.vocabulary import Vocabulary
from graphcompress.errors import DataError, UsageError
from graphcompress.files.generation_config import read_generation_config
from graphcompress.graph.match import operand, producer
from graphcompress.graph.model import Model
from graphcompress.passes.vocab.heads import Head, cut_head, heads_of
from graphcompress.plugin.base import Pass
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Contract, Lossy
from graphcompress.plugin.options import option
from graphcompress.plugin.record import Record
from graphcompress.rewrite.rewriter import Rewriter

HELD_OUT = 10
"""Every so many-th row is looked at as text that the others were not chosen on."""

RUN, REPEATED = 4, 0.5
"""Where more than this share of the runs of so many tokens occur elsewhere, rows are parts of each other (as
the phrases of SST-2 are), and a row that is held out says little about other text."""

_MISSING = "no tokenizer.json of a kind that is known lies beside the model"

_SAME = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True)
class Vocab(Pass):
    """Drop the rows of the word embedding that the data never look up, and their tokens from the tokenizer.

    Where the model writes, the rows of its head are dropped alike, whether it is tied to the embedding or has
    a table of its own; so it is with the tables of all parts, which share one tokenizer.

    Ids stay what they were: a small table in the graph finds the row of each, so that samples, labels and
    configurations go on as before. Logits keep their size, too: a dropped token has a score that never wins.
    In ``tokenizer.json`` (WordPiece, BPE, Unigram, WordLevel) the dropped tokens are gone, and text that had
    them falls into smaller pieces, or becomes unknown where there are none. Special tokens and those that the
    configuration names, bytes, the merges that build a kept token, and the characters of ASCII and of kept
    tokens (of BPE all characters) are kept. An id that is dropped looks up the row of the unknown token, or
    the first one where the tokenizer has no such token.

    Texts whose tokens are all kept get equal tokens and equal answers, as far as those are made of kept
    tokens, too.

    Left alone: tables that anything else reads, or that ids look up which are computed; tables that have lost
    rows already; tables in 8 bits, so that ``vocab`` comes before ``int8``.
    """

    name: ClassVar[str] = "vocab"
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=10)
    keep: str = option("data", "data: the tokens of --data; or a file with a token on each line")

    @property
    def files_read(self) -> tuple[str, ...]:
        """The list of tokens."""
        return () if self.keep == "data" else (self.keep,)

    def check_given(self, *, calibrated: bool) -> None:
        """Refuse to choose tokens without text.

        Raises:
            UsageError: there is none, or no such file.
        """
        if self.keep == "data" and not calibrated:
            raise UsageError(f"{self}: the tokens that are kept are those of the data; give some with --data")
        if self.keep != "data" and not Path(self.keep).is_file():
            raise UsageError(f"{self}: there is no file {self.keep!r}; give keep=data, or a list of tokens")

    def run(self, model: Model, ctx: Context) -> Record:
        """Cut one table after the other, and the heads; they keep the same tokens."""
        with Rewriter(model, ctx) as rw:
            heads = heads_of(model)
            taken = {item: self._takes(rw, item, heads, ctx) for item in embeddings(model)}
            # A table that something looks up in by other ids stays whole for all.
            whole = {item.weight for item, takes in taken.items() if not takes}
            found = [item for item in taken if item.weight not in whole]
            vocabulary = None if model.source is None else Vocabulary.beside(_folder(model.source))
            if found and (vocabulary is None or vocabulary.unknown is None):
                why = _MISSING if vocabulary is None else "the tokenizer has no unknown token"
                rw.note(f"{why}: dropped ids look up the first row")
            kept = self._kept(rw, found, vocabulary) | _named(model) if found else frozenset()
            for item in found:
                if kept.issuperset(range(item.rows)):
                    rw.skip(item, f"all of its {item.rows:,} tokens occur")
            found = [item for item in found if not kept.issuperset(range(item.rows))]
            if found:
                _cut(rw, found, heads, kept, None if vocabulary is None else vocabulary.unknown)
                model.tokens = kept
                self._tell_unseen(rw, found, vocabulary, kept, ctx)
        return rw.record

    def _takes(self, rw: Rewriter, item: Embedding, heads: Iterable[Head], ctx: Context) -> bool:
        """Whether ``item`` looks up ids that are given, in a table that at most heads read besides."""
        source = _input_behind(item.indices)
        tied = {node for head in heads for node in head.readers}
        if source is None or not (source.name or "").endswith("input_ids"):
            read = "computed indices" if source is None else source.name
            rw.skip(item, f"it is looked up by {read}, and tokens come in by input_ids")
        elif item.weight.const_value is None:
            rw.skip(item, "the table is an expression")
        elif _are_integers_read(rw.model, source):
            rw.skip(item, "tokens are looked up in a table of integers as well; put vocab before int8")
        elif any(use.node.op_type != "Gather" and use.node not in tied for use in item.weight.uses()):
            rw.skip(item, "something else than a head that writes tokens reads it, too")
        elif self.keep == "data" and not _given(ctx):
            rw.skip(item, "without samples nothing says which tokens occur; give them with --data")
        else:
            return True
        return False

    def _kept(
        self, rw: Rewriter, found: Iterable[Embedding], vocabulary: Vocabulary | None
    ) -> frozenset[int]:
        """The ids that stay."""
        if self.keep != "data":
            return self._listed(rw, vocabulary)
        names = {_input_behind(item.indices).name or "" for item in found}  # type: ignore[union-attr]
        used: set[int] = set()
        for samples in _given(rw.ctx):
            for sample in samples.feeds:
                used.update(int(index) for name in names & sample.keys() for index in np.unique(sample[name]))
        return frozenset(used) if vocabulary is None else vocabulary.closed(used)

    def _listed(self, rw: Rewriter, vocabulary: Vocabulary | None) -> frozenset[int]:
        if vocabulary is None:
            raise DataError(f"{self}: {_MISSING}, in which tokens could be looked up")
        try:
            text = Path(self.keep).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.keep}: a list of tokens is text in UTF-8 ({error})") from error
        # A token may hold what else ends a line, such as a line separator.
        tokens = [token for token in text.split("\n") if token]
        others = [token for token in tokens if token not in vocabulary.ids]
        if len(others) == len(tokens):
            raise DataError(f"{self.keep}: none of its {len(tokens)} lines is a token of the tokenizer")
        if others:
            count = f"{len(others):,} of {len(tokens):,} lines of {self.keep}"
            rw.note(f"{count} are no tokens, such as {others[0]!r}")
        return vocabulary.closed({vocabulary.ids[token] for token in tokens if token in vocabulary.ids})

    def _tell_unseen(
        self,
        rw: Rewriter,
        found: Iterable[Embedding],
        vocabulary: Vocabulary | None,
        kept: frozenset[int],
        ctx: Context,
    ) -> None:
        """How much of other text would be dropped: of every tenth row, when the others alone had chosen.

        Of a list that chooses, how much of the data it drops.
        """
        names = {_input_behind(item.indices).name or "" for item in found}  # type: ignore[union-attr]
        rows = [
            np.concatenate([np.ravel(sample[name]) for name in sorted(names & sample.keys())])
            for samples in _given(ctx)
            for sample in samples.feeds
            if names & sample.keys()
        ]
        if rows and self.keep != "data":
            every = np.concatenate(rows)
            dropped = np.mean(~np.isin(every, sorted(kept)))
            rw.note(f"{dropped:.2%} of {every.size:,} tokens of the data are dropped")
        if len(rows) < 2 * HELD_OUT or self.keep != "data":
            return
        seen = {int(i) for number, row in enumerate(rows) if number % HELD_OUT for i in np.unique(row)}
        seen |= vocabulary.closed(seen) if vocabulary is not None else set()
        other = np.concatenate(rows[::HELD_OUT])
        lost = np.mean(~np.isin(other, sorted(seen)))
        repeated = _repeated(rows[::HELD_OUT], [row for n, row in enumerate(rows) if n % HELD_OUT])
        expected = (
            "so much is to be expected of other text like this"
            if repeated <= REPEATED
            else f"but {repeated:.0%} of their runs of {RUN} tokens occur in the other rows as well, so that "
            "other text loses more"
        )
        rw.note(
            f"of every {HELD_OUT}th row {lost:.2%} of {other.size:,} tokens are dropped when the other rows "
            f"choose: {expected}"
        )


def _repeated(rows: Iterable[np.ndarray], others: Iterable[np.ndarray]) -> float:
    """The share of the runs of tokens in ``rows`` that ``others`` contain too: 0 to 1."""
    known = {run for row in others for run in _runs(row)}
    runs = [run for row in rows for run in _runs(row)]
    return sum(run in known for run in runs) / max(len(runs), 1)


def _runs(row: np.ndarray) -> Iterator[bytes]:
    return (row[start : start + RUN].tobytes() for start in range(len(row) - RUN + 1))


def _given(ctx: Context) -> list[Samples]:
    training = () if ctx.training is None else (ctx.training.samples,)
    return [samples for samples in (ctx.samples, *training) if samples is not None]


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _input_behind(value: ir.Value | None) -> ir.Value | None:
    """The input of the model that ``value`` is, in another shape or type."""
    while node := producer(value, *_SAME):
        value = node.inputs[0]
    return value if value is not None and value.is_graph_input() else None


def _are_integers_read(model: Model, ids: ir.Value) -> bool:
    """Whether ``ids`` look up rows of stored integers, as int8 leaves them: floats beside them are scales."""
    tables = (node.inputs[0] for node in model.graph if node.op_type == "Gather" and node.inputs[0])
    return any(
        table.const_value is not None
        and len(table.const_value.shape) > 1
        and table.const_value.dtype.is_integer()
        and any(use.idx == 0 and _input_behind(operand(use.node, 1)) is ids for use in table.uses())
        for table in tables
    )


def _named(model: Model) -> frozenset[int]:
    """Ids that the configuration beside the model gives a meaning: of begin and end, of languages."""
    if model.source is None:
        return frozenset()
    found: set[int] = set()
    for said in read_generation_config(_folder(model.source)):
        for key, value in said.items():
            if key.endswith(("token_id", "_to_id")) or key.startswith("forced"):
                found.update(_integers(value))
    return frozenset(found)


def _integers(value: object) -> Iterator[int]:
    """The whole numbers in a setting: one, a list of them, pairs of place and id, names of ids."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        yield from (number for item in value for number in _integers(item))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


def _cut(
    rw: Rewriter,
    found: Iterable[Embedding],
    heads: Iterable[Head],
    kept: Collection[int],
    unknown: int | None,
) -> None:
    """Keep the rows ``kept`` of every table and head; look up where they are, and put scores back there."""
    tables: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
    for item in found:
        if item.weight not in tables:
            rows = np.array(sorted(index for index in kept if index < item.rows))
            rw.touch(item, f"{len(rows):,} of {item.rows:,} rows ({1 - len(rows) / item.rows:.1%} fewer)")
            instead = 0 if unknown is None else int(np.searchsorted(rows, unknown)) % len(rows)
            place = np.full(item.rows, instead, np.int32)
            place[rows] = np.arange(len(rows))
            table = rw.constant(item.dense()[rows], f"{item.name}.kept", item.weight.dtype)
            rw.model.kept[table.name or ""] = {0: rows}
            tables[item.weight] = table, rw.constant(place, f"{item.name}.rows")
        table, places = tables[item.weight]
        looked_up = rw.at(item.node).op("Gather", places, item.indices, name="row", axis=0)
        rw.set_input(item.node, 1, looked_up)
        rw.set_weight(item, table)
    for head in heads:
        if head.table is None or head.table in tables:
            cut_head(rw, head, kept, None if head.table is None else tables[head.table][0])
