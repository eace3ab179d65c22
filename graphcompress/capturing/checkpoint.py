"""Hugging Face checkpoints are written as ONNX: one file, or the parts of a model that writes."""

from __future__ import annotations

import filecmp
import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphcompress.capturing.comparison import Answers, answers_of, check
from graphcompress.capturing.loading import (
    Loaded,
    load,
    task_of_sentences,
    transformer_of,
    transformers_quiet,
)
from graphcompress.capturing.module import DEFAULT_OPSET, output_names, translated
from graphcompress.capturing.traceable import Traceable, default_axes
from graphcompress.data.tokenizer_files import TOKENIZER_FILES, copy_tokenizer
from graphcompress.errors import InvalidModelError, UnsupportedModelError, UsageError
from graphcompress.files.joining import part_of_model
from graphcompress.files.part_files import merged_part, save_parts
from graphcompress.files.parts import Part
from graphcompress.files.temporary import Temporary
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.plugin.extras import needs_torch

if TYPE_CHECKING:
    from graphcompress.capturing.generating import Continuations

logger = logging.getLogger(__name__)


def export(
    source: str | Path,
    path: str | Path | None = None,
    *,
    task: str | None = None,
    opset: int = DEFAULT_OPSET,
    outputs: Sequence[str] | None = None,
    past: bool = True,
    merged: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the checkpoint ``source`` (a folder, or a name on the hub) to ``path`` as ONNX, checked.

    ``path`` is an ONNX file (its name ends in ``.onnx``) or a folder; by default the folder
    ``<source>-onnx`` for a model that writes, and the file ``<source>.onnx`` for any other.

    In a folder a model that writes has the parts that optimum gives it: ``encoder_model.onnx``,
    ``decoder_model.onnx`` and ``decoder_with_past_model.onnx``, or ``model.onnx`` for a decoder alone;
    weights that several of them read are stored once. ``merged`` makes the two decoders one file with an If,
    ``decoder_model_merged.onnx``. Without ``past`` no keys and values are read or
    returned. One file for both an encoder and a decoder has none either: it is for whole texts. Any other
    model is the file, or ``model.onnx`` in the folder.

    Batch and length are dynamic; weights keep the checkpoint's names; the configuration and the files of the
    tokenizer and the feature extractor are copied. ``task`` names the class to load: a pipeline of
    transformers (``text-generation``, ``text2text-generation``, ``automatic-speech-recognition``, …), or
    ``features``, ``classification``, ``causal-lm``, ``seq2seq-lm``, …; by default it is what the checkpoint
    says. Kept are the logits, without any the last hidden state, unless ``outputs`` names others. Files that
    are there already and differ are replaced with ``overwrite`` only.

    Raises:
        MissingExtraError: torch or transformers are not installed.
        UsageError: an unknown task or output, or a file that would be replaced.
        InvalidModelError: no such checkpoint, or it lacks weights that the outputs need.
        UnsupportedModelError: inputs that cannot be made up, or torch cannot translate the model.
        ContractError: the ONNX model answers other than PyTorch's.
    """
    needs_torch(f"export of {source}", "transformers")
    if path is not None:
        _refuse_taken(Path(path), overwrite=overwrite)
    name = Path(source).name
    task, source = task or task_of_sentences(source), transformer_of(source)
    with transformers_quiet():
        loaded = load(source, task)
        # Whether the default is a file or a folder is known now that the model is; only then it can be
        # refused.
        path = _default_path(name, loaded) if path is None else Path(path)
        _refuse_taken(path, overwrite=overwrite)
        single = path.suffix == ".onnx"
        parts = _parts(loaded, source, outputs, single=single, past=past)
        _refuse_random(source, loaded, parts)
        (path.parent if single else path).mkdir(parents=True, exist_ok=True)
        # Beside its place, on one file system with it: a file is moved there in one step.
        with Temporary(path.parent) as folder:
            named = dict(zip([path.name], parts.values(), strict=True)) if single else parts
            known = _write(named, folder, opset, merged=merged)
            _copy_files(source, loaded, folder)
            written = None if single else _written(loaded.module, parts, folder, str(source))
            # What PyTorch answers is known: its weights go before ONNX Runtime maps those of the files.
            del loaded, parts, named
            gc.collect()  # what was traced refers to itself in circles
            for part, answers, switch in known:
                with Runner(Model.load(part.path)) as run:
                    check(answers, part, run, switch=switch)
            if written is not None:
                from graphcompress.capturing.generating import check_generation

                check_generation(written, folder, str(source))
            last = path.name if single else sorted(folder.glob("*.onnx"))[0].name
            _put(folder, path.parent if single else path, last=last, overwrite=overwrite)
    return path


def _default_path(name: str, loaded: Loaded) -> Path:
    from graphcompress.capturing.writing import writes

    return Path(f"{name}-onnx" if writes(loaded.module) else f"{name}.onnx")


def _refuse_taken(path: Path, *, overwrite: bool) -> None:
    if path.suffix == ".onnx" and path.exists() and not overwrite:
        raise UsageError(f"{path} exists; choose another name with -o, or replace it with --overwrite")


def _write(
    parts: Mapping[str, Traceable], folder: Path, opset: int, *, merged: bool
) -> list[tuple[Part, Answers, bool]]:
    """Translate every part and write them together; what each must answer, and what a switch is then."""
    from graphcompress.capturing.writing import DECODER, DECODER_MERGED, DECODER_WITH_PAST

    models = {name: _translated(part, opset) for name, part in parts.items()}
    found = {name: part_of_model(Path(name), model) for name, model in models.items()}
    files = {name: replace(part, path=folder / name) for name, part in found.items()}
    if merged and DECODER_WITH_PAST in parts:
        whole = merged_part(Path(DECODER_MERGED), found[DECODER], found[DECODER_WITH_PAST])
        for name in (DECODER, DECODER_WITH_PAST):
            found[name] = replace(found[name], path=whole.path, whole=whole)
            files[name] = replace(whole, path=folder / whole.path)
    save_parts([(found[name], model) for name, model in models.items()], folder)
    return [
        (files[name], answers_of(part, output_names(part)), name == DECODER_WITH_PAST)
        for name, part in parts.items()
    ]


def _written(module: Any, parts: Mapping[str, Traceable], folder: Path, name: str) -> Continuations | None:  # noqa: ANN401
    """What the module writes; None where it does not, or where the files here would write otherwise."""
    from graphcompress.capturing.generating import written_by
    from graphcompress.capturing.writing import ENCODER, prompts_of, writes

    if not writes(module):
        return None
    feed = parts[ENCODER].feed if ENCODER in parts else prompts_of(module)
    try:
        return written_by(module, feed, folder)
    except UnsupportedModelError as error:
        logger.warning("%s: its parts are checked, but not what it writes as a whole: %s", name, error)
        return None


def _translated(what: Traceable, opset: int) -> Any:  # noqa: ANN401 - an onnx_ir model
    """Translate; where torch cannot take its fused attention apart (T5's), the written-out one."""
    try:
        return translated(what, opset)
    except UnsupportedModelError:
        module: Any = what.module
        if module.config._attn_implementation == "eager":
            raise
        module.set_attn_implementation("eager")
        return translated(what, opset)


# ---- what is written


def _parts(
    loaded: Loaded, source: str | Path, outputs: Sequence[str] | None, *, single: bool, past: bool
) -> dict[str, Traceable]:
    """File name → what is translated into it."""
    from graphcompress.capturing.examples import (
        DECODER_LENGTH,
        example,
        example_axes,
        extractor_of,
        tokens,
    )
    from graphcompress.capturing.writing import MODEL, parts_of, writes

    module, tokenized, extractor = loaded.module, _tokenizer_inputs(source), extractor_of(source)
    what = Traceable(module, {}, {}, outputs, _positions(module.config), str(source))
    encodes = bool(getattr(module.config, "is_encoder_decoder", False))
    # One file for an encoder and a decoder, or without past, is for whole texts: there it is like any other
    # model.
    if writes(module) and outputs is None and not (single and (encodes or not past)):
        if encodes:
            encoder = module.get_encoder()
            feed = example(encoder, tokenized, extractor)
            what = replace(what, feed=feed, axes=example_axes(feed, lambda given: encoder(**given)))
        return parts_of(what, past=past)
    feed = example(module, tokenized, extractor)
    if encodes:
        feed["decoder_input_ids"] = tokens("decoder_input_ids", module.config, DECODER_LENGTH)
    what = replace(what, feed=feed, axes=default_axes(feed))
    return {MODEL: replace(what, outputs=outputs or _main_outputs(what))}


def _main_outputs(what: Traceable) -> list[str] | None:
    """The logits; without any the last hidden state; without that everything."""
    found = what.run()
    logits = [name for name in found if "logits" in name]
    return logits or [name for name in found if name == "last_hidden_state"] or None


def _refuse_random(source: str | Path, loaded: Loaded, parts: Mapping[str, Traceable]) -> None:
    """Weights that the checkpoint lacks are random numbers: no output may depend on one.

    Which do shows when they are no numbers at all.
    """
    import torch

    # Of a tied weight any of its names may be the one that is missing.
    named = dict(loaded.module.named_parameters(remove_duplicate=False))
    used = []
    for name in loaded.missing:
        if name not in named:
            continue
        weight = named[name]
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(torch.nan)
            if any(_has_nan(part) for part in parts.values()):
                used.append(name)
            weight.copy_(kept)
    if used:
        raise InvalidModelError(
            f"{source}: the checkpoint has no weights for {', '.join(used[:3])} that this task needs; "
            "choose the task that it was trained for with --task"
        )


def _has_nan(part: Traceable) -> bool:
    found = part.run()
    return any(bool(found[name].isnan().any()) for name in part.outputs or found)


def _positions(config: Any) -> int:  # noqa: ANN401 - a configuration of transformers
    """Positions that the model has a weight for, less those that some models reserve; many without one."""
    # RoBERTa counts positions from 2, so that two rows of its table are for no token.
    reserved = 2
    return int(getattr(config, "max_position_embeddings", None) or 1024) - reserved


# ---- files


def _put(stage: Path, folder: Path, *, last: str, overwrite: bool) -> None:
    """Move the files of ``stage`` to ``folder``, the file ``last`` at the end: where it is, everything is."""
    files = sorted(stage.iterdir(), key=lambda file: file.name == last)
    # By content: sizes and times say nothing of files that were written just now.
    taken = [
        file.name
        for file in files
        if (there := folder / file.name).exists() and not filecmp.cmp(there, file, shallow=False)
    ]
    if taken and not overwrite:
        raise UsageError(
            f"{folder} has other files named {', '.join(taken)}; choose another folder with -o, or "
            "replace them with --overwrite"
        )
    for file in files:
        file.replace(folder / file.name)


def _copy_files(source: str | Path, loaded: Loaded, folder: Path) -> None:
    """Copy the configuration and the files of the tokenizer and the feature extractor into ``folder``."""
    if Path(source).is_dir():
        copy_tokenizer(Path(source) / "config.json", folder)
    elif (tokenizer := _tokenizer(source)) is not None:
        tokenizer.save_pretrained(folder)
    settings = getattr(loaded.module, "generation_config", None)
    if settings is not None and not (folder / "generation_config.json").is_file():
        settings.save_pretrained(folder)


def _tokenizer_inputs(source: str | Path) -> Sequence[str] | None:
    """What the checkpoint's tokenizer makes; None without one."""
    tokenizer = _tokenizer(source)
    return None if tokenizer is None else list(tokenizer.model_input_names)


def _tokenizer(source: str | Path) -> Any | None:  # noqa: ANN401 - a tokenizer of transformers
    """The checkpoint's tokenizer, or None: it has none."""
    import transformers

    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in TOKENIZER_FILES[:2]):
        return None
    try:
        return transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, KeyError, ValueError):  # how transformers says that a name on the hub has none
        if Path(source).is_dir():
            raise
        return None
