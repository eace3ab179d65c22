"""Tiny models that write sequences, with random weights, in the files and names of optimum."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from matrix.architecture import VOCABULARY
from matrix.architectures import BART, FFN, GPT2, HEADS, HIDDEN, LAYERS, T5, WHISPER, WIDTH
from onnx import helper, numpy_helper
from transformers import DynamicCache, EncoderDecoderCache

from graphcompress.data.sequences import Written
from graphcompress.files.parts import PartValue, read_parts
from graphcompress.graph.model import Model

_BART: dict[str, Any] = {**BART, "forced_eos_token_id": None}
_WHISPER: dict[str, Any] = {**WHISPER, "forced_eos_token_id": None}
_WHISPER |= {"suppress_tokens": None, "begin_suppress_tokens": None}
_LLAMA: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2 * HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": WIDTH,
    "intermediate_size": FFN,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
}
CONFIGURATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "marian": ("marian", "AutoModelForSeq2SeqLM", _BART),
    "bart": ("bart", "AutoModelForSeq2SeqLM", _BART),
    "t5": ("t5", "AutoModelForSeq2SeqLM", T5),
    "whisper": ("whisper", "AutoModelForSpeechSeq2Seq", _WHISPER),
    "gpt2": ("gpt2", "AutoModelForCausalLM", GPT2),
    "llama": ("llama", "AutoModelForCausalLM", _LLAMA),
}
"""Name → kind of configuration, class and options."""


SEQ2SEQ = ("bart", "marian", "t5", "whisper")
CAUSAL = ("gpt2", "llama")
NAMES = (*SEQ2SEQ, *CAUSAL, "t5, merged", "whisper, merged")
"""Folders of the fixture ``sequence_folders``."""

TOKENS = 12
"""Tokens that a text of a test has."""


class Folders(Mapping[str, Path]):
    """Each of ``NAMES`` → its folder below ``root``, written when it is first asked for.

    Processes share them; merged ones have the layout of transformers.js.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(exist_ok=True)

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)

    def __getitem__(self, name: str) -> Path:
        if name not in NAMES:
            raise KeyError(name)
        folder = self._root / name
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=self._root) as made, torch.random.fork_rng():
                self._write(name, Path(made) / name)
                with contextlib.suppress(OSError):  # another process was faster
                    (Path(made) / name).rename(folder)
        return folder

    def _write(self, name: str, folder: Path) -> None:
        alone = name.partition(",")[0]
        if alone == name:
            written(name, folder)
            return
        files = folder / "onnx"
        shutil.copytree(self[alone], files)
        merge(files)
        for file in files.glob("*.json"):
            file.replace(files.parent / file.name)


def text(name: str, folder: Path) -> np.ndarray:
    """What the files in ``folder`` write, [2, tokens]."""
    given, first = prompt(name.partition(",")[0])
    return Writer(folder).greedy(given, first, TOKENS)


def saved(model: Model, folder: Path) -> Path:
    """``folder`` with the files of ``model``."""
    folder.mkdir(exist_ok=True)
    model.save(folder if model.parts[0].prefix else folder / model.parts[0].path.name)
    return folder


def prompt(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the encoder of the model ``name`` reads, and the first tokens [2, length] of its decoder."""
    rng = np.random.default_rng(0)
    if name in CAUSAL:
        return {}, rng.integers(5, VOCABULARY, (2, 5))
    first = np.full((2, 1), CONFIGURATIONS[name][2]["decoder_start_token_id"])
    if name == "whisper":
        return {"input_features": rng.standard_normal((2, 8, 40)).astype(np.float32)}, first
    mask = np.ones((2, 7), np.int64)
    mask[1, 5:] = 0
    return {"input_ids": rng.integers(5, VOCABULARY, (2, 7)), "attention_mask": mask}, first


def random_texts(name: str, count: int) -> list[Written]:
    """Texts of several lengths for the model ``name``."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        tokens = rng.integers(5, VOCABULARY, rng.integers(3, 9))
        if name in CAUSAL:
            found.append(Written({}, tokens))
            continue
        length = rng.integers(3, 8)
        source = {
            "input_ids": rng.integers(5, VOCABULARY, length),
            "attention_mask": np.ones(length, np.int64),
        }
        if name == "whisper":
            source = {"input_features": rng.standard_normal((8, 40)).astype(np.float32)}
        start = CONFIGURATIONS[name][2]["decoder_start_token_id"]
        found.append(Written(source, np.array([start, *tokens])))
    return found


def made(name: str) -> Any:
    """The model in evaluation mode; every parameter has numbers of its own."""
    kind, head, options = CONFIGURATIONS[name]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **options)
    model = getattr(transformers, head).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += (0.05 if parameter.dim() < 2 else 0.1) * torch.randn(parameter.shape)
    return model.eval()


def written(name: str, folder: Path) -> Any:
    """Write the files of the model ``name`` into ``folder``; the model itself."""
    model = made(name)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    if model.config.is_encoder_decoder:
        _encoder(model, folder / "encoder_model.onnx")
        _decoder(model, folder / "decoder_model.onnx", past=False)
        _decoder(model, folder / "decoder_with_past_model.onnx", past=True)
    else:
        _causal(model, folder / "model.onnx")
    return model


Axes = Mapping[int, str]


class _Named(torch.nn.Module):
    """A function of tensors as a module, so that its weights keep their names."""

    def __init__(self, model: torch.nn.Module, call: Callable[..., Sequence[torch.Tensor]]) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.call(*tensors))


def _export(
    model: torch.nn.Module,
    call: Callable[..., Sequence[torch.Tensor]],
    inputs: Mapping[str, tuple[torch.Tensor, Axes]],
    outputs: Mapping[str, Axes],
    path: Path,
) -> None:
    axes = {name: dict(axes) for name, (_, axes) in inputs.items()} | {
        name: dict(axes) for name, axes in outputs.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Named(model, call).eval(),
            tuple(tensor for tensor, _ in inputs.values()),
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
            do_constant_folding=True,
        )


def _is_whisper(model: Any) -> bool:
    return model.config.model_type == "whisper"


def _encoder(model: Any, path: Path) -> None:
    encoder = model.get_encoder()
    if _is_whisper(model):
        features = torch.randn(2, model.config.num_mel_bins, 2 * model.config.max_source_positions)
        given = {"input_features": (features, {0: "batch_size"})}
        axes = {0: "batch_size"}
    else:
        ids, mask = _ids(2, 7), torch.ones(2, 7, dtype=torch.int64)
        axes = {0: "batch_size", 1: "encoder_sequence_length"}
        given = {"input_ids": (ids, axes), "attention_mask": (mask, axes)}

    def call(*tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        return (encoder(*tensors).last_hidden_state,)

    _export(encoder, call, given, {"last_hidden_state": axes}, path)


def _decoder(model: Any, path: Path, *, past: bool) -> None:
    config, whisper = model.config, _is_whisper(model)
    heads, width = (config.num_heads, config.d_kv) if config.model_type == "t5" else (HEADS, WIDTH)
    length = model.config.max_source_positions if whisper else 7
    source = {0: "batch_size"} if whisper else {0: "batch_size", 1: "encoder_sequence_length"}
    states = torch.randn(2, length, HIDDEN)
    given: dict[str, tuple[torch.Tensor, Axes]] = {}
    if not whisper:
        given["encoder_attention_mask"] = (torch.ones(2, length, dtype=torch.int64), source)
    tokens = {0: "batch_size"} if past else {0: "batch_size", 1: "decoder_sequence_length"}
    given["input_ids"] = (_ids(2, 1 if past else 3), tokens)
    if not past:
        given["encoder_hidden_states"] = (states, source)
    kinds = [(part, kind) for part in ("decoder", "encoder") for kind in ("key", "value")]
    cached = [(layer, part, kind) for layer in range(LAYERS) for part, kind in kinds]
    own = {0: "batch_size", 2: "past_decoder_sequence_length"}
    cross = {0: "batch_size"} if whisper else {0: "batch_size", 2: "encoder_sequence_length_out"}
    if past:
        for layer, part, kind in cached:
            size = 4 if part == "decoder" else length
            tensor = torch.randn(2, heads, size, width)
            given[f"past_key_values.{layer}.{part}.{kind}"] = (tensor, own if part == "decoder" else cross)
    names = list(given)

    def call(*tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        feed = dict(zip(names, tensors, strict=True))
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        hidden = feed.get("encoder_hidden_states")
        if past:
            cache = _cross_cache({name: feed[name] for name in names if name.startswith("past")})
            hidden = torch.zeros(feed["input_ids"].shape[0], feed[names[-1]].shape[2], HIDDEN)
        answer = model(
            attention_mask=feed.get("encoder_attention_mask"),
            encoder_outputs=(hidden,),
            decoder_input_ids=feed["input_ids"],
            past_key_values=cache,
            use_cache=True,
        )
        both = answer.past_key_values
        found = {"decoder": both.self_attention_cache, "encoder": both.cross_attention_cache}
        kept = [item for item in cached if not (past and item[1] == "encoder")]
        return [
            answer.logits,
            *(getattr(found[part].layers[layer], f"{kind}s") for layer, part, kind in kept),
        ]

    length_after = "past_decoder_sequence_length + 1" if past else "decoder_sequence_length"
    present = {0: "batch_size", 2: length_after}
    outputs: dict[str, Axes] = {"logits": tokens}
    for layer, part, kind in cached:
        if not (past and part == "encoder"):
            outputs[f"present.{layer}.{part}.{kind}"] = present if part == "decoder" else cross
    _export(model, call, given, outputs, path)


def _cross_cache(given: Mapping[str, torch.Tensor]) -> EncoderDecoderCache:
    caches = []
    for part in ("decoder", "encoder"):
        layers = [
            (given[f"past_key_values.{n}.{part}.key"], given[f"past_key_values.{n}.{part}.value"])
            for n in range(LAYERS)
        ]
        caches.append(DynamicCache(layers))
    for layer in caches[1].layers:
        layer.is_initialized = True
    cache = EncoderDecoderCache(*caches)
    cache.is_updated = dict.fromkeys(range(LAYERS), True)
    return cache


def _causal(model: Any, path: Path) -> None:
    heads = getattr(model.config, "num_key_value_heads", HEADS)
    tokens = {0: "batch_size", 1: "sequence_length"}
    given: dict[str, tuple[torch.Tensor, Axes]] = {
        "input_ids": (_ids(2, 3), tokens),
        "attention_mask": (torch.ones(2, 7, dtype=torch.int64), {0: "batch_size", 1: "total_length"}),
        "position_ids": (torch.arange(4, 7).repeat(2, 1), tokens),
    }
    for layer in range(LAYERS):
        for kind in ("key", "value"):
            axes = {0: "batch_size", 2: "past_sequence_length"}
            given[f"past_key_values.{layer}.{kind}"] = (torch.randn(2, heads, 4, WIDTH), axes)
    names = list(given)

    def call(*tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        feed = dict(zip(names, tensors, strict=True))
        cache = DynamicCache(
            [(feed[f"past_key_values.{n}.key"], feed[f"past_key_values.{n}.value"]) for n in range(LAYERS)]
        )
        answer = model(
            input_ids=feed["input_ids"],
            attention_mask=feed["attention_mask"],
            position_ids=feed["position_ids"],
            past_key_values=cache,
            use_cache=True,
        )
        layers = answer.past_key_values.layers
        return [answer.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values))]

    outputs: dict[str, Axes] = {"logits": tokens}
    for layer in range(LAYERS):
        for kind in ("key", "value"):
            axes = {0: "batch_size", 2: "past_sequence_length + sequence_length"}
            outputs[f"present.{layer}.{kind}"] = axes
    _export(model, call, given, outputs, path)


# ---- merged, and generation by hand


def merge(folder: Path) -> None:
    """Join the two decoders of ``folder`` as optimum does: an If over ``use_cache_branch``."""
    names = ("decoder_model.onnx", "decoder_with_past_model.onnx")
    first, step = (onnx.load(folder / name).graph for name in names)
    inputs = {value.name: value for graph in (step, first) for value in graph.input}
    outputs = list(first.output)
    branches = []
    stored: dict[str, onnx.TensorProto] = {}
    for number, graph in enumerate((first, step)):
        renamed = {tensor.name: f"{number}:{tensor.name}" for tensor in graph.initializer}
        renamed |= {name: f"{number}:{name}" for node in graph.node for name in node.output}
        nodes = []
        for node in graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed[name] for name in node.output]
            nodes.append(node)
        for tensor in graph.initializer:
            tensor.name = renamed[tensor.name]
            stored[tensor.name] = tensor
        returned = {value.name for value in graph.output}
        made = []
        for value in outputs:
            name = f"{number}:{value.name}"
            if value.name not in returned:
                empty = np.zeros([0, HEADS, 1, WIDTH], np.float32)
                nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(empty)))
            made.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        branches.append(helper.make_graph(nodes, f"branch{number}", [], made))
    node = helper.make_node(
        "If",
        ["use_cache_branch"],
        [value.name for value in outputs],
        else_branch=branches[0],
        then_branch=branches[1],
    )
    switch = helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    whole = helper.make_graph([node], "merged", [*inputs.values(), switch], outputs, list(stored.values()))
    proto = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, folder / "decoder_model_merged.onnx")
    for name in names:
        (folder / name).unlink()


Arrays = Mapping[str, np.ndarray]


class Writer:
    """Writes the likeliest token again and again, from the files of a folder, as optimum does it."""

    def __init__(self, folder: Path) -> None:
        self.parts = {part.role: part for part in read_parts(folder)}
        self.sessions = {
            role: onnxruntime.InferenceSession(part.path, providers=["CPUExecutionProvider"])
            for role, part in self.parts.items()
        }

    def greedy(self, given: Arrays, first: np.ndarray, count: int) -> np.ndarray:
        """[batch, count] token ids after ``first`` [batch, length]; ``given`` is what an encoder reads."""
        fixed = self._encoded(given)
        past: dict[str, np.ndarray] = {}
        ids, written = first, []
        for _ in range(count):
            outputs = self._step(ids, fixed, past)
            for name, array in outputs.items():
                if name.startswith("present") and array.shape[0] == len(first):
                    past[name.replace("present", "past_key_values")] = array
            ids = outputs["logits"][:, -1:].argmax(-1)
            written.append(ids)
        return np.concatenate(written, axis=1)

    def _encoded(self, given: Arrays) -> dict[str, np.ndarray]:
        if "encoder" not in self.parts:
            return {}
        fixed = {"encoder_hidden_states": self.sessions["encoder"].run(None, dict(given))[0]}
        if "attention_mask" in given:
            fixed["encoder_attention_mask"] = given["attention_mask"]
        return fixed

    def _step(self, ids: np.ndarray, fixed: Arrays, past: Arrays) -> dict[str, np.ndarray]:
        role = "decoder_with_past" if past and "decoder_with_past" in self.parts else "decoder"
        role = role if role in self.parts else next(role for role in self.parts if role != "encoder")
        part = self.parts[role]
        done = next((array.shape[2] for array in past.values()), 0)
        total = done + ids.shape[1]
        known: dict[str, np.ndarray] = {
            **fixed,
            **past,
            "input_ids": ids,
            "attention_mask": np.ones((len(ids), total), np.int64),
            "position_ids": np.tile(np.arange(done, total), (len(ids), 1)),
            "use_cache_branch": np.array([bool(past)]),
        }
        feed = {}
        for value in part.inputs:
            found = known.get(value.name)
            feed[value.name] = _nothing(value, len(ids)) if found is None else found
        outputs = [value.name for value in part.outputs]
        return dict(zip(outputs, self.sessions[role].run(outputs, feed), strict=True))


def _nothing(value: PartValue, batch: int) -> np.ndarray:
    """Past of no length; where a merged decoder does not look, anything will do."""
    length = value.shape[2] if isinstance(value.shape[2], int) else 0
    return np.zeros([batch, value.shape[1], length, value.shape[3]], value.dtype)


def _ids(batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(5, VOCABULARY, (batch, length), generator=generator)
