"""The artifact of a model of several files: every part is lowered for itself, and they run as one."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphcompress.errors import UnsupportedModelError, UsageError
from graphcompress.files.joining import prefixes
from graphcompress.files.part_files import part_place, save_parts
from graphcompress.files.parts import SHARED_KEY, Part, model_files, read_parts
from graphcompress.files.reading.model_file import read_model
from graphcompress.files.runtime import Feed, runner_of, session_of
from graphcompress.files.temporary import Temporary
from graphcompress.graph.float_cache import float_cache_of
from graphcompress.graph.model import Model
from graphcompress.measure.verify import Run
from graphcompress.plugin.base import Lowering, Target
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.raising import raise_opset

PARTS = "parts"
"""Name in the record of a lowering: prefix of a part → where it lies, and what was recorded of it."""


def lower_parts(target: Target, model: Model, folder: Path, ctx: Context) -> Lowering:
    """Lower every part of ``model`` as ``target`` lowers any model, and write all into ``folder``.

    Where the artifact of a part is one ONNX file, the parts have the names that they came in with and share
    weights; else every part has a subfolder. What was pinned of an earlier build holds part by part.

    Raises:
        UnsupportedModelError: one part needs an opset in which another means something else.
    """
    pinned = ctx.pinned.get(str(target))
    known = json.loads(pinned)[PARTS] if pinned is not None else {}
    made: list[tuple[Part, Lowering]] = []
    with Temporary(folder) as scratch:
        places = {part.prefix: scratch / part.role for part in model.parts}
        separate = model.separate()
        mark_shared([one for _, one in separate])
        for part, one in separate:
            places[part.prefix].mkdir()
            own = {str(target): json.dumps(known[part.prefix])} if part.prefix in known else {}
            # Samples feed all parts together, by names with prefixes that a part alone does not have.
            given = dataclasses.replace(ctx, samples=None, pinned=own)
            made.append((part, target.lower(one, places[part.prefix], given)))
        side_by_side = all(_is_one_file(target, place) for place in places.values())
        if side_by_side:
            files = {part: places[part.prefix] / target.model_file for part, _ in made}
            _write_in_one_opset(target, files.values(), ctx)
            lowered = [(part, read_model(file)[0]) for part, file in files.items()]
            for value in (value for _, one in lowered for value in one.graph.initializers.values()):
                value.metadata_props.pop(SHARED_KEY, None)
            save_parts(lowered, folder)
        else:
            for part, _ in made:
                places[part.prefix].replace(folder / part.role)
    found = [
        (part, part_place(part).as_posix() if side_by_side else part.role, found) for part, found in made
    ]
    return _together(found)


def mark_shared(parts: Sequence[Model]) -> None:
    """Note on every weight that several of ``parts`` read that it is theirs together."""
    count = Counter(value.name for one in parts for value in one.initializers())
    for value in (value for one in parts for value in one.initializers()):
        if count[value.name] > 1:
            value.metadata_props[SHARED_KEY] = str(count[value.name])


def _is_one_file(target: Target, folder: Path) -> bool:
    """Whether the artifact in ``folder`` is one ONNX file, with nothing beside it but its weights."""
    beside = {target.model_file, f"{target.model_file}.data"}
    return target.model_file.endswith(".onnx") and {file.name for file in folder.iterdir()} <= beside


def _write_in_one_opset(target: Target, files: Iterable[Path], ctx: Context) -> None:
    """Write all parts in the newest opset that one of them needs: attention as an operator, for example.

    Files that are read as one model, or merged to one decoder, have one opset.
    """
    opsets = {file: read_model(file)[0].graph.opset_imports[""] for file in files}
    newest = max(opsets.values())
    for file in (file for file, opset in opsets.items() if opset < newest):
        model = Model.load(file)
        with Rewriter(model, ctx) as rw:
            reason = raise_opset(rw, newest)
        if reason is not None:
            raise UnsupportedModelError(
                f"{target}: another part needs opset {newest}, and {reason} in the {file.parent.name}; "
                "choose options that need no newer opset, such as cpu{newest_opset=21}"
            )
        model.save(file)


def _together(made: Sequence[tuple[Part, str, Lowering]]) -> Lowering:
    """What was done with all parts."""
    notes: dict[str, list[str]] = {}
    for part, _, found in made:
        for note in found.notes:
            notes.setdefault(note, []).append(_name(part))
    texts = [
        note if len(names) == len(made) else f"{', '.join(names)}: {note}" for note, names in notes.items()
    ]
    forms = [f"{_name(part)}: {found.forms}" for part, _, found in made if found.forms]
    sizes = [found.deployed_bytes for _, _, found in made]
    record = {part.prefix: {**found.record, "place": place} for part, place, found in made}
    return Lowering(
        tuple(texts),
        proof=made[0][2].proof,
        forms="; ".join(forms) or None,
        # A part that says nothing is all its files, so that all files of the artifact count.
        deployed_bytes=None if None in sizes else sum(size or 0 for size in sizes),
        details={PARTS: record},
        measured=any(found.measured for _, _, found in made),
    )


def _name(part: Part) -> str:
    return part.prefix.rstrip("/") or part.path.name


# ---- run as one


def artifact_run(target: Target, folder: Path, record: Mapping[str, Any]) -> Run:
    """The artifact in ``folder`` on its runtime, caches in floats; ``record`` is that of its lowering."""
    if PARTS not in record:
        return float_cache_of(target.session(folder), folder / target.model_file)
    return parts_run(target, folder, {prefix: own["place"] for prefix, own in record[PARTS].items()})


def source_run(folder: Path) -> Run:
    """The files of a model that writes sequences, each in a session of ONNX Runtime.

    Raises:
        UsageError: the folder holds no such files.
    """
    parts = read_parts(folder) if model_files(folder) else ()
    if not parts:
        raise UsageError(f"{folder} is neither an artifact nor the files of a model that writes sequences")
    places = {prefix: part.path.relative_to(folder).as_posix() for part in parts for prefix in prefixes(part)}
    files = {place: folder / place for place in places.values()}
    opened = {place: float_cache_of(runner_of(session_of(file)), file) for place, file in files.items()}
    if len(places) == 1:
        return opened[next(iter(places.values()))]
    return _together_run(folder, places, opened)


def fitted_run(model: Model, run: Run) -> Run:
    """``run`` of what became of ``model``, for feeds of the model as it came in."""
    return lambda feed: run(model.fitted(feed))


def parts_run(target: Target, folder: Path, places: Mapping[str, str]) -> Run:
    """A function of a feed for all parts: ``places`` says where each lies in ``folder``, by its prefix."""
    opened: dict[str, Run] = {}
    for place in dict.fromkeys(places.values()):
        at = folder / place
        run = target.session(at) if at.is_dir() else target.named(at.name).session(at.parent)
        opened[place] = float_cache_of(run, at)
    return _together_run(folder, places, opened)


def _together_run(folder: Path, places: Mapping[str, str], opened: Mapping[str, Run]) -> Run:
    """One function of what several parts read: each gets the inputs that begin with its prefix."""
    runs = {prefix: opened[place] for prefix, place in places.items()}
    for prefix, part in _merged(folder, places).items():
        runs[prefix] = _branch_run(part, runs[prefix], cached=prefix.startswith("step"))

    def run(feed: Feed) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for prefix, one in runs.items():
            own = {
                name.removeprefix(prefix): array for name, array in feed.items() if name.startswith(prefix)
            }
            found.update({prefix + name: array for name, array in one(own).items()})
        return found

    return run


def _merged(folder: Path, places: Mapping[str, str]) -> dict[str, Part]:
    """The merged decoders, by the prefix of each of their two parts."""
    if not any((folder / place).is_file() for place in places.values()):
        return {}
    merged = {part.path: part for part in read_parts(folder) if part.role == "decoder_merged"}
    return {prefix: merged[folder / place] for prefix, place in places.items() if folder / place in merged}


def _branch_run(part: Part, run: Run, *, cached: bool) -> Run:
    """One branch of a merged decoder: inputs that it does not read are made up, outputs that it lacks go."""

    def branch(feed: Feed) -> dict[str, np.ndarray]:
        batch = len(next(iter(feed.values())))
        whole = dict(feed)
        for value in part.inputs:
            if value.kind == "switch":
                whole[value.name] = np.array([cached])
            elif value.name not in whole:
                sizes = [size if isinstance(size, int) else 1 for size in value.shape[1:]]
                whole[value.name] = np.zeros([batch, *sizes], value.dtype)
        # A branch returns an empty array where only the other one has something to return.
        return {name: array for name, array in run(whole).items() if array.size}

    return branch
