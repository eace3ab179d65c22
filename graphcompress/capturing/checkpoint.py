"""Hugging Face checkpoints: a folder or a hub name becomes a module with example inputs."""

from __future__ import annotations

import contextlib
import filecmp
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphcompress.capturing.module import DEFAULT_OPSET, translate
from graphcompress.capturing.traceable import Traceable, default_axes
from graphcompress.data.tokenizer_files import TOKENIZER_FILES, copy_tokenizer
from graphcompress.errors import InvalidModelError, UnsupportedModelError, UsageError, nearest
from graphcompress.graph.temporary import Temporary
from graphcompress.plugin.extras import needs_torch

if TYPE_CHECKING:
    import torch

EXAMPLE_ROWS, EXAMPLE_LENGTH, DECODER_LENGTH = 2, 10, 7
SHORT_TASKS = {"features": "feature-extraction", "classification": "sequence-classification"}
"""Names of tasks beside those of transformers' own classes and pipelines."""
_WEIGHT_FILES = ("*.safetensors", "*.bin")


def is_checkpoint(path: str | Path) -> bool:
    """Whether ``path`` is a Hugging Face folder: a configuration and weights."""
    path = Path(path)
    return (path / "config.json").is_file() and any(any(path.glob(kind)) for kind in _WEIGHT_FILES)


def export(
    source: str | Path,
    path: str | Path,
    *,
    task: str | None = None,
    opset: int = DEFAULT_OPSET,
    outputs: Sequence[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the checkpoint ``source`` (a folder, or a name on the hub) to ``path`` as ONNX, checked.

    Batch and length are dynamic; weights keep the checkpoint's names; the tokenizer's files are copied beside
    it. ``task`` names the class to load (``features``, ``classification``, ``token-classification``,
    ``question-answering``, ``masked-lm``, ``causal-lm``, ``seq2seq-lm``, …); by default it is what the
    checkpoint says. Kept are the logits, without any the last hidden state, unless ``outputs`` names others.
    Files that are there already and differ are replaced with ``overwrite`` only.

    Raises:
        MissingExtraError: torch or transformers are not installed.
        UsageError: an unknown task or output, or a file that would be replaced.
        InvalidModelError: no such checkpoint, or it lacks weights that the outputs need.
        UnsupportedModelError: inputs that cannot be made up, or torch cannot translate the model.
        ContractError: the ONNX model answers other than PyTorch's.
    """
    needs_torch(f"export of {source}", "transformers")
    path = Path(path)
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists; choose another name with -o, or replace it with --overwrite")
    with _transformers_quiet():
        module, missing = _load(source, task)
        feed = _example(module, _tokenizer_inputs(source))
        what = Traceable(
            module,
            feed,
            default_axes(feed),
            _main_outputs(module, feed) if outputs is None else outputs,
            _positions(module.config),
            str(source),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with Temporary(path.parent) as folder:
            unchecked = folder / path.name
            _translated(what, unchecked, opset)
            _refuse_random(source, missing, unchecked)
            _copy_tokenizer(source, folder)
            _put(folder, path, overwrite=overwrite)
    return path


def _translated(what: Traceable, path: Path, opset: int) -> None:
    """Translate; where torch cannot take its fused attention apart (T5's), the written-out one."""
    try:
        translate(what, path, opset)
    except UnsupportedModelError:
        module: Any = what.module
        if module.config._attn_implementation == "eager":
            raise
        module.set_attn_implementation("eager")
        translate(what, path, opset)


# ---- the module


def _load(source: str | Path, task: str | None) -> tuple[Any, list[str]]:
    """The module in evaluation mode and float32, and the weights that the checkpoint lacks."""
    import safetensors
    import torch
    import transformers

    folder = Path(source)
    if folder.exists() and not is_checkpoint(folder):
        lacks = "weights (*.safetensors)" if (folder / "config.json").is_file() else "config.json"
        raise InvalidModelError(f"{source}: no Hugging Face checkpoint, {lacks} is not there")
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        auto = _class_of(config, task)
        module, info = auto.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except (OSError, KeyError, EOFError, RuntimeError, safetensors.SafetensorError) as error:
        problem = str(error).strip().splitlines()[0][:300]
        raise InvalidModelError(f"{source}: cannot be loaded as a checkpoint ({problem})") from error
    except ValueError as error:  # transformers' way to say that a class does not know a configuration
        problem = str(error).strip().splitlines()[0][:300]
        raise UsageError(
            f"{source}: task {task or 'of the checkpoint'} does not fit it ({problem})"
        ) from error
    module.config.use_cache = False
    return module.eval(), sorted(info["missing_keys"])


def _class_of(config: Any, task: str | None) -> Any:  # noqa: ANN401 - classes of transformers
    """The class to load: of the task, or the one that the checkpoint was saved from."""
    import transformers

    if task is None:
        named = (config.architectures or ["AutoModel"])[0]
        if not hasattr(transformers, named):
            raise UnsupportedModelError(
                f"the checkpoint is a {named}, which transformers does not have; name its task with --task, "
                "or use graphcompress.capture(module, example_inputs) from Python"
            )
        return getattr(transformers, named)
    known = _tasks()
    wanted = SHORT_TASKS.get(task, task)
    if wanted not in known:
        raise UsageError(f"unknown task {task!r}; {nearest(task, [*SHORT_TASKS, *known])}")
    return getattr(transformers, known[wanted])


def _tasks() -> dict[str, str]:
    """Task → transformers' class: ``AutoModelForMaskedLM`` is ``masked-lm``; its pipelines' names, too."""
    from transformers.models.auto import modeling_auto
    from transformers.pipelines import SUPPORTED_TASKS

    found = {_kebab(name): name for name in dir(modeling_auto) if name.startswith("AutoModelFor")}
    for task, entry in SUPPORTED_TASKS.items():
        if entry.get("pt"):
            found.setdefault(task, entry["pt"][0].__name__)
    return found


def _kebab(name: str) -> str:
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+(?:\d[A-Z][a-z]+)?", name.removeprefix("AutoModelFor"))
    return "-".join(word.lower() for word in words)


def _refuse_random(source: str | Path, missing: Sequence[str], path: Path) -> None:
    """Weights that the checkpoint lacks are random numbers: no output may depend on one."""
    import onnx_ir as ir

    used = ir.load(path).graph.initializers
    random = [name for name in missing if name in used]
    if random:
        raise InvalidModelError(
            f"{source}: the checkpoint has no weights for {', '.join(random[:3])} that this task needs; "
            "choose the task that it was trained for with --task"
        )


# ---- inputs and outputs


def _tokenizer_inputs(source: str | Path) -> Sequence[str] | None:
    """What the checkpoint's tokenizer makes; None without one."""
    tokenizer = _tokenizer(source)
    return None if tokenizer is None else list(tokenizer.model_input_names)


def _example(module: Any, tokenized: Sequence[str] | None) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """Made-up inputs: token ids with a padded row and what belongs to them, or an image."""
    import inspect

    import torch

    config, takes = module.config, inspect.signature(module.forward).parameters
    if module.main_input_name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
        generator = torch.Generator().manual_seed(0)
        shape = (EXAMPLE_ROWS, getattr(config, "num_channels", 3), *size)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    if module.main_input_name != "input_ids":
        raise UnsupportedModelError(
            f"the model takes {module.main_input_name!r}, for which no example can be made up; "
            "use graphcompress.capture(module, example_inputs) from Python"
        )
    names = tokenized or ("input_ids", "attention_mask", *_segments(config))
    feed = {name: _tokens(name, config, EXAMPLE_LENGTH) for name in names if name in takes}
    if getattr(config, "is_encoder_decoder", False):
        feed["decoder_input_ids"] = _tokens("decoder_input_ids", config, DECODER_LENGTH)
    return feed


def _segments(config: Any) -> tuple[str, ...]:  # noqa: ANN401 - a configuration of transformers
    return ("token_type_ids",) if getattr(config, "type_vocab_size", 0) > 1 else ()


def _tokens(name: str, config: Any, length: int) -> torch.Tensor:  # noqa: ANN401
    """Token ids, a mask whose second row is padded, or segment numbers: [rows, length]."""
    import torch

    if name.endswith("input_ids"):
        generator = torch.Generator().manual_seed(0)
        return torch.randint(
            0, config.get_text_config().vocab_size, (EXAMPLE_ROWS, length), generator=generator
        )
    if "mask" not in name:
        return torch.zeros(EXAMPLE_ROWS, length, dtype=torch.int64)
    mask = torch.ones(EXAMPLE_ROWS, length, dtype=torch.int64)
    mask[1, length // 2 :] = 0
    return mask


def _main_outputs(module: Any, feed: dict[str, torch.Tensor]) -> list[str] | None:  # noqa: ANN401
    """The logits; without any the last hidden state; without that everything."""
    import torch

    with torch.no_grad():
        found = module(**feed)
    logits = [name for name in found if "logits" in name]
    return logits or [name for name in found if name == "last_hidden_state"] or None


def _positions(config: Any) -> int:  # noqa: ANN401 - a configuration of transformers
    """Positions that the model has a weight for, less those that some models reserve; many without one."""
    reserved = 2
    return int(getattr(config, "max_position_embeddings", None) or 1024) - reserved


# ---- files


def _put(stage: Path, path: Path, *, overwrite: bool) -> None:
    """Move the files of ``stage`` beside ``path``, the model last: where it is, everything is."""
    files = sorted(stage.iterdir(), key=lambda file: file.name == path.name)
    taken = [
        file.name
        for file in files
        if (there := path.parent / file.name).exists() and not filecmp.cmp(there, file, shallow=False)
    ]
    if taken and not overwrite:
        raise UsageError(
            f"{path.parent} has other files named {', '.join(taken)}; choose another folder with -o, or "
            "replace them with --overwrite"
        )
    for file in files:
        file.replace(path.parent / file.name)


def _copy_tokenizer(source: str | Path, folder: Path) -> None:
    """Copy the tokenizer's files, where there are any, and the configuration into ``folder``."""
    if Path(source).is_dir():
        copy_tokenizer(Path(source) / "config.json", folder)
    elif (tokenizer := _tokenizer(source)) is not None:
        tokenizer.save_pretrained(folder)


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


@contextlib.contextmanager
def _transformers_quiet() -> Iterator[None]:
    """No progress bars and no advice of transformers on the terminal."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
