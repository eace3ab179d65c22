"""``graphcompress verify``: are the outputs of B those of A, and does an answer depend on batch mates?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphcompress.cli.terminal import (
    Data,
    Json,
    Seed,
    Tokenizer,
    origin,
    out,
    print_json,
    progress_bars,
    samples_for,
)

if TYPE_CHECKING:
    from graphcompress.data.load import Samples
    from graphcompress.measure.verify import Difference, Invariance

BATCH = 8
"""Models are compared on batches of this many samples."""


def verify(
    a: Annotated[Path, typer.Argument(help="The reference: an ONNX file or an artifact.")],
    b: Annotated[Path, typer.Argument(help="What is compared with it.")],
    data: Data = None,
    tokenizer: Tokenizer = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows of the data that are used.")] = 64,
    max_error: Annotated[
        float | None,
        typer.Option(min=0.0, help="Exit with 3 when the relative error is larger.", show_default="none"),
    ] = None,
    min_sqnr_db: Annotated[
        float | None, typer.Option(hidden=True, help="The same limit in dB, under its former name.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare the outputs of two models on samples, and each model alone with itself in a padded batch.

    Before that the files of an artifact are compared with the hashes that its build wrote: exit with 3, and
    the name of the file, when one was changed or is missing.

    Example: graphcompress verify model.onnx small --data sentences.jsonl --max-error 0.2
    """
    from graphcompress.build.folder import check_hashes
    from graphcompress.build.manifest import plain
    from graphcompress.build.opening import described, is_artifact
    from graphcompress.build.report import difference_line, invariance_line, output_lines
    from graphcompress.errors import ContractError
    from graphcompress.numerics.metrics import error_at

    with progress_bars() as progress:
        progress("verify", 0, 3)
        for path in filter(is_artifact, (a, b)):
            check_hashes(path)
        _refuse_other_inputs(a, b)
        samples = samples_for(described(a), data, tokenizer, seed).first(limit)
        difference = _difference(a, b, samples)
        invariances: dict[str, Invariance] = {}
        for number, (name, path) in enumerate((("a", a), ("b", b)), 1):
            progress("verify", number, 3)
            invariances[name] = _invariance(path, samples)
        progress("verify", 3, 3)
    if json:
        document = {
            "difference": plain(difference),
            "batch_invariance": plain(invariances),
            "synthetic_samples": samples.synthetic,
        }
        print_json(document)
    else:
        console = out()
        console.print(f"{b} against {a}: {difference_line(difference)}")
        for line in output_lines(difference, most=len(difference.outputs)):
            console.print(f"    {line}", markup=False)
        for name, path in (("a", a), ("b", b)):
            console.print(f"{path}: {invariance_line(invariances[name])}")
        console.print(f"on {origin(samples)}")
    allowed = error_at(min_sqnr_db) if max_error is None and min_sqnr_db is not None else max_error
    error = error_at(difference.sqnr_db)
    if allowed is not None and error > allowed:
        raise ContractError(
            f"{b}: relative error {error:.3g} against {a} (SQNR {difference.sqnr_db:.1f} dB), "
            f"at most {allowed:.3g} is allowed"
        )


def _refuse_other_inputs(a: Path, b: Path) -> None:
    """Raise where ``b`` cannot be fed like ``a``.

    Raises:
        UsageError: their inputs differ.
    """
    from graphcompress.build.opening import described
    from graphcompress.data.inputs import inputs_of
    from graphcompress.errors import UsageError

    takes = [sorted(inputs_of(described(path))) for path in (a, b)]
    if takes[0] != takes[1]:
        first, second = (", ".join(names) for names in takes)
        raise UsageError(
            f"{a} takes {first}, {b} takes {second}: they are not two forms of one model; "
            "give one and what was made of it"
        )


def _difference(a: Path, b: Path, samples: Samples) -> Difference:
    from graphcompress.build.opening import model_file, session
    from graphcompress.graph.model import Model
    from graphcompress.measure.tokens import token_values
    from graphcompress.measure.verify import compare

    feeds = list(samples.batches(BATCH))
    run = session(a)
    reference = [run(feed) for feed in feeds]
    return compare(reference, session(b), feeds, token_values(Model.load(model_file(a))), samples=samples)


def _invariance(path: Path, samples: Samples) -> Invariance:
    from graphcompress.build.opening import session
    from graphcompress.measure.verify import batch_invariance

    return batch_invariance(session(path), samples)
