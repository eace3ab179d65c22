"""A translator whose decoder keeps one vector for each layer, from Marian's file to a small artifact."""

from __future__ import annotations

import importlib.machinery
import struct
from pathlib import Path
from types import ModuleType

import bigram
import numpy as np
import pytest

from graphcompress import optimize
from graphcompress.data.sequences import Unroller, Written, pasts, sequence_samples
from graphcompress.generation.generator import open_generator
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner

torch = pytest.importorskip("torch")

READER = Path(__file__).parents[1] / "benchmarks" / "readers" / "ssru_student.py"
WORDS = ("</s>", "<pad>", *(f"word{number}" for number in range(2, 30)))
WIDTH, FFN, HEADS, ENCODER, DECODER = 16, 24, 2, 2, 2
YAML = f"dec-depth: {DECODER}\nenc-depth: {ENCODER}\ntransformer-heads: {HEADS}\n"


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("ssru_student", str(READER))
    module = ModuleType(loader.name)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """Random weights by Marian's names; matrices are numbers of int8 over 64."""
    rng = np.random.default_rng(3)
    shapes = {"Wemb": (len(WORDS), WIDTH), "decoder_ff_logit_out_b": (1, len(WORDS))}
    layers = [(f"encoder_l{n}_", ["self"]) for n in range(1, ENCODER + 1)]
    layers += [(f"decoder_l{n}_", ["context", "rnn"]) for n in range(1, DECODER + 1)]
    for prefix, kinds in layers:
        for kind in kinds:
            letters = ("", "f") if kind == "rnn" else "qkvo"
            shapes |= {f"{prefix}{kind}_W{letter}": (WIDTH, WIDTH) for letter in letters}
            shapes |= {f"{prefix}{kind}_b{letter}": (1, WIDTH) for letter in letters if letter}
            norm = f"{prefix}{'rnn_ffn' if kind == 'rnn' else f'{kind}_Wo'}_ln_"
            shapes |= {norm + part: (1, WIDTH) for part in ("scale", "bias")}
        shapes |= {f"{prefix}ffn_W1": (WIDTH, FFN), f"{prefix}ffn_W2": (FFN, WIDTH)}
        shapes |= {f"{prefix}ffn_b1": (1, FFN), f"{prefix}ffn_b2": (1, WIDTH)}
        shapes |= {f"{prefix}ffn_ffn_ln_{part}": (1, WIDTH) for part in ("scale", "bias")}
    found = {name: rng.integers(-40, 40, shape) / 64 for name, shape in shapes.items()}
    return {name: array.astype(np.float32) for name, array in found.items()}


@pytest.fixture(scope="module")
def folder(
    reader: ModuleType, weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder that the reader makes of a file in Marian's format."""
    source = tmp_path_factory.mktemp("student")
    write_marian(source / "model.intgemm.bin", weights)
    bigram.tokenizer(WORDS).save(str(source / "tokenizer.json"))
    reader.convert(source, source / "out")
    return source / "out"


def write_marian(path: Path, weights: dict[str, np.ndarray]) -> None:
    items = []
    for name, array in weights.items():
        if name == "Wemb" or ("_W" in name and not name.endswith(("scale", "bias"))):
            stored = array if name == "Wemb" else array.T
            content = np.round(stored * 64).astype(np.int8).tobytes() + struct.pack("<f", 64.0)
            items.append((name, 0x4101, array.shape, content))
        else:
            items.append((name, 0x404, array.shape, array.tobytes()))
    items.append(("special:model.yml", 0x101, (len(YAML) + 1,), YAML.encode() + b"\0"))
    parts = [struct.pack("<QQ", 1, len(items))]
    parts += [
        struct.pack("<QQQQ", len(name) + 1, kind, len(shape), len(content))
        for name, kind, shape, content in items
    ]
    parts += [name.encode() + b"\0" for name, *_ in items]
    parts += [struct.pack(f"<{len(shape)}i", *shape) for _, _, shape, _ in items]
    parts += [struct.pack("<Q", 3), bytes(3), *(content for *_, content in items)]
    path.write_bytes(b"".join(parts))


def test_the_file_is_read_as_it_was_written(
    reader: ModuleType, weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    write_marian(tmp_path / "model.bin", weights)
    found, configuration = reader.read(tmp_path / "model.bin")
    assert configuration == {"dec-depth": DECODER, "enc-depth": ENCODER, "transformer-heads": HEADS}
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name].numpy(), array) for name, array in weights.items())


def test_all_positions_at_once_are_one_after_the_other(
    reader: ModuleType, weights: dict[str, np.ndarray]
) -> None:
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    _, first, _ = reader.modules(tensors, {"transformer-heads": HEADS, "enc-depth": 2, "dec-depth": 2})
    layer, x, state = first.layers[0], torch.randn(3, 9, WIDTH) * 9, torch.randn(3, WIDTH)
    with torch.no_grad():
        last, seen = first.recurred(layer, x, state)
        for position in range(9):
            kept = layer.affine(x[:, position], "rnn_Wf", "rnn_bf").sigmoid()
            state = kept * state + (1 - kept) * (x[:, position] @ layer.rnn_W)
            assert torch.allclose(seen[:, position], state.relu(), atol=1e-5)
    assert torch.allclose(last, state, atol=1e-5)


def test_steps_write_what_one_pass_over_everything_finds_likeliest(folder: Path) -> None:
    generator = open_generator(folder)
    texts = ["word5 word6 word7", "word9", "word4 word4 word3 word8"]
    found = generator.ids(generator.prompts(texts))
    encoder, first = (Model.load(folder / f"{name}_model.onnx") for name in ("encoder", "decoder"))
    with Runner(encoder) as encode, Runner(first) as decode:
        for text, answer in zip(texts, found, strict=True):
            ids = generator.prompts([text])[0]["input_ids"][None]
            assert ids[0, -1] == 0  # the end of the text, which the tokenizer adds
            mask = np.ones_like(ids)
            states = encode({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
            tokens = [len(WORDS), *answer]
            scores = decode(
                {
                    "input_ids": np.array([tokens[:-1]]),
                    "encoder_attention_mask": mask,
                    "encoder_hidden_states": states,
                }
            )
            assert scores["logits"][0].argmax(-1).tolist() == answer


def test_a_state_is_no_past_that_is_padded(folder: Path) -> None:
    model = Model.load(folder)
    assert pasts(model.parts) == ()
    texts = [
        Written({"input_ids": np.arange(2, 2 + length), "attention_mask": np.ones(length, int)}, tokens)
        for length, tokens in ((3, np.array([30, 5, 6, 7])), (6, np.array([30, 8])))
    ]
    samples = sequence_samples(model, texts)
    with Unroller(model) as alone, Runner(model) as run:
        together = run(next(samples.batches(2)))["step/logits"]
        for row, text in enumerate(texts):
            (feed,) = alone.feeds(text)
            single = run({name: array[None] for name, array in feed.items()})["step/logits"]
            assert np.allclose(single[0], together[row], atol=1e-5)


def test_the_artifact_writes_nearly_the_same(folder: Path, tmp_path: Path) -> None:
    optimize(folder, "int8", target="cpu{measure=false}", allow=("int8",), output=tmp_path / "out")
    a, b = (open_generator(path) for path in (folder, tmp_path / "out"))
    texts = [f"word{number} word{number + 1}" for number in range(3, 20)]
    answers = [generator.ids(generator.prompts(texts)) for generator in (a, b)]
    first = [[answer[0] for answer in found] for found in answers]
    assert sum(x == y for x, y in zip(*first, strict=True)) >= 15
