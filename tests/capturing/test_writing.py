"""Models that write become the files that optimum would make of them."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import cutting
import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from capturing.writers import WRITERS, checkpoint, model  # noqa: E402

from graphcompress.capturing import checkpoint as checkpoints  # noqa: E402
from graphcompress.capturing.checkpoint import export  # noqa: E402
from graphcompress.capturing.examples import example, example_axes, extractor_of  # noqa: E402
from graphcompress.capturing.generating import check_generation, written_by  # noqa: E402
from graphcompress.capturing.traceable import Traceable  # noqa: E402
from graphcompress.capturing.writing import (  # noqa: E402
    DECODER,
    DECODER_WITH_PAST,
    ENCODER,
    MODEL,
    parts_of,
    prompts_of,
)
from graphcompress.coupling.couplings import FFN, HEAD, couplings  # noqa: E402
from graphcompress.errors import ContractError  # noqa: E402
from graphcompress.generation.generator import open_generator  # noqa: E402
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.graph.runner import Runner  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.context import Context  # noqa: E402

SWEEP = "GRAPHCOMPRESS_WRITERS"
"""Variable that asks for the export of every architecture, which takes minutes (``make writers``)."""

KINDS: dict[str, dict[str, bool]] = {"apart": {}, "merged": {"merged": True}, "no past": {"past": False}}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def gpt2_files(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(gpt2, tmp_path_factory.mktemp("files") / "gpt2")


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("marian", tmp_path_factory.mktemp("marian"))


def interface(path: Path) -> tuple[list[str], list[str]]:
    """Names of inputs and of outputs."""
    graph = onnx.load(path, load_external_data=False).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


def cache(prefix: str, parts: tuple[str, ...] = ("",), layers: int = 2) -> list[str]:
    return [
        f"{prefix}.{n}.{part}{kind}" for n in range(layers) for part in parts for kind in ("key", "value")
    ]


def test_a_decoder_alone_is_one_file_with_past(gpt2_files: Path) -> None:
    inputs, outputs = interface(gpt2_files / "model.onnx")
    assert inputs == ["input_ids", "attention_mask", "position_ids", *cache("past_key_values")]
    assert outputs == ["logits", *cache("present")]
    assert {file.name for file in gpt2_files.iterdir()} == {
        "model.onnx",
        "config.json",
        "generation_config.json",
    }


def test_a_weight_that_is_tied_is_stored_once_under_its_name(gpt2_files: Path) -> None:
    stored = {
        tensor.name: list(tensor.dims) for tensor in onnx.load(gpt2_files / "model.onnx").graph.initializer
    }
    assert stored["transformer.wte.weight"] == [101, 48]
    assert [101, 48] not in [dims for name, dims in stored.items() if name != "transformer.wte.weight"]
    assert [48, 101] not in stored.values()


def test_files_that_write_otherwise_are_an_error(gpt2: Path, gpt2_files: Path) -> None:
    module = transformers.AutoModelForCausalLM.from_pretrained(gpt2).eval()
    check_generation(written_by(module, prompts_of(module), gpt2_files), gpt2_files, "the model")
    with torch.no_grad():
        module.lm_head.weight.neg_()
    with pytest.raises(ContractError, match=r"beam\(s\) the files write \[.*\] after row \d .*PyTorch \["):
        check_generation(written_by(module, prompts_of(module), gpt2_files), gpt2_files, "the model")


def test_pytorchs_weights_are_gone_when_the_files_are_run(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []

    def runner(model: Model) -> Runner:
        left.append(sum(type(found) is torch.nn.Parameter for found in gc.get_objects()))
        return Runner(model)

    gc.collect()
    others = sum(type(found) is torch.nn.Parameter for found in gc.get_objects())
    monkeypatch.setattr(checkpoints, "Runner", runner)
    export(gpt2, tmp_path / "out")
    assert left == [others]


def test_without_past_a_decoder_is_for_whole_texts(gpt2: Path, tmp_path: Path) -> None:
    export(gpt2, tmp_path / "out", past=False)
    assert interface(tmp_path / "out/model.onnx")[1] == ["logits"]


def test_an_encoder_and_decoders_store_their_weights_once(marian: Path, tmp_path: Path) -> None:
    out = export(marian, tmp_path / "out")
    both = ("decoder.", "encoder.")
    assert interface(out / "encoder_model.onnx") == (["input_ids", "attention_mask"], ["last_hidden_state"])
    assert interface(out / "decoder_model.onnx") == (
        ["encoder_attention_mask", "input_ids", "encoder_hidden_states"],
        ["logits", *cache("present", both)],
    )
    assert interface(out / "decoder_with_past_model.onnx") == (
        ["encoder_attention_mask", "input_ids", *cache("past_key_values", both)],
        ["logits", *cache("present", ("decoder.",))],
    )
    large = {}
    for file in out.glob("*.onnx"):
        for tensor in onnx.load(file).graph.initializer:
            if len(tensor.raw_data) >= 1024:
                large[tensor.raw_data] = file
    inline = sum(len(data) for data, file in large.items() if file.name == "encoder_model.onnx")
    assert inline < sum(map(len, large)) < (marian / "model.safetensors").stat().st_size


def test_merged_decoders_are_one_file_with_a_switch(marian: Path, tmp_path: Path) -> None:
    out = export(marian, tmp_path / "out", merged=True)
    both = ("decoder.", "encoder.")
    inputs, outputs = interface(out / "decoder_model_merged.onnx")
    assert inputs == [
        "encoder_attention_mask",
        "input_ids",
        "encoder_hidden_states",
        *cache("past_key_values", both),
        "use_cache_branch",
    ]
    assert outputs == ["logits", *cache("present", both)]
    assert sorted(file.name for file in out.glob("*.onnx")) == [
        "decoder_model_merged.onnx",
        "encoder_model.onnx",
    ]
    assert [part.role for part in open_generator(out).parts] == ["encoder", "decoder_merged"]


def test_one_file_is_for_whole_texts(marian: Path, tmp_path: Path) -> None:
    file = export(marian, tmp_path / "model.onnx")
    assert interface(file) == (["input_ids", "attention_mask", "decoder_input_ids"], ["logits"])


# ---- every architecture, in PyTorch


def parts(name: str, extractor: Mapping[str, object] = {}) -> dict[str, Traceable]:
    module = model(name)
    what = Traceable(module, {}, {}, None, 24, name)
    if module.config.is_encoder_decoder:
        encoder = module.get_encoder()
        feed = example(encoder, None, extractor)
        axes = example_axes(feed, lambda given: encoder(**given))
        what = Traceable(module, feed, axes, None, 24, name)
    return parts_of(what, past=True)


@pytest.mark.parametrize("name", [*WRITERS, "trocr"])
def test_steps_with_past_answer_as_one_pass_does(name: str) -> None:
    made = parts(name)
    first, step = made.get(DECODER) or made[MODEL], made.get(DECODER_WITH_PAST) or made[MODEL]
    vocabulary = first.module.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(0, vocabulary, (3, 9), generator=torch.Generator().manual_seed(1))
    given = {"input_ids": ids}
    if ENCODER in made:
        states = made[ENCODER].run()["last_hidden_state"][:1].repeat(3, 1, 1)
        given["encoder_hidden_states"] = states
        given["encoder_attention_mask"] = torch.ones(states.shape[:2], dtype=torch.int64)

    def fed(
        part: Traceable, start: int, end: int, past: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        feed = {**given, **past, "input_ids": ids[:, start:end]}
        feed["attention_mask"] = torch.ones(3, end, dtype=torch.int64)
        feed["position_ids"] = torch.arange(start, end).repeat(3, 1)
        empty = {
            key: tensor[:1, :, :0].repeat(3, 1, 1, 1) for key, tensor in part.feed.items() if tensor.ndim == 4
        }
        return part.run({key: {**empty, **feed}[key] for key in part.feed})

    whole = fed(first, 0, 9, {})["logits"]
    found = fed(first, 0, 6, {})
    for at in range(6, 9):
        past = {key.replace("present", "past_key_values"): found[key] for key in found if key != "logits"}
        following = fed(step, at, at + 1, past)
        assert torch.allclose(following["logits"][:, -1], whole[:, at], atol=1e-5)
        found |= following


def test_speech_and_images_have_the_sizes_that_the_extractor_says(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"feature_size": 8, "nb_max_frames": 40}')
    whisper = parts("whisper", extractor_of(tmp_path))[ENCODER]
    assert {name: (tuple(tensor.shape), whisper.axes[name]) for name, tensor in whisper.feed.items()} == {
        "input_features": ((2, 8, 40), {0: "batch"})
    }
    image = parts("trocr", {"size": {"height": 32, "width": 32}})[ENCODER]
    assert [tuple(tensor.shape) for tensor in image.feed.values()] == [(2, 3, 32, 32)]


@pytest.mark.skipif(SWEEP not in os.environ, reason=f"minutes; {SWEEP}=1 or make writers")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*WRITERS, "trocr"])
def test_every_architecture_is_exported_and_writes_32_tokens_again(
    name: str, kind: str, tmp_path: Path
) -> None:
    """After simplify, and after prune of heads and FFN nodes that nothing listens to."""
    out = export(checkpoint(name, tmp_path / "in"), tmp_path / "out", **KINDS[kind])
    file = out / "model.onnx"
    given = Model.load(file if file.exists() else out)
    assert tokens(changed(given, "simplify", out, tmp_path / "simple")) == tokens(out)
    groups = [group for group in couplings(given) if group.kind in (FFN, HEAD)]
    silent = cutting.silenced(given, cutting.some_of(groups), "readers")
    expected = tokens(changed(silent, "simplify", out, tmp_path / "silent"))
    pruned = silent.clone()
    assert tokens(changed(pruned, "simplify,prune{round_to=1}", out, tmp_path / "pruned")) == expected
    assert pruned.parameters < silent.parameters


def changed(given: Model, passes: str, beside: Path, folder: Path) -> Path:
    """``folder`` with the files of ``given`` after ``passes``, and what lies ``beside`` the original."""
    Pipeline.parse(passes).run(given, Context())
    shutil.copytree(beside, folder)
    for file in folder.glob("*.onnx*"):
        file.unlink()
    given.save(folder if len(given.parts) > 1 else folder / "model.onnx")
    return folder


def tokens(folder: Path) -> list[list[int]]:
    """32 tokens after each of two prompts, greedy; an end token ends nothing."""
    generator = open_generator(folder)
    settings = replace(generator.settings, num_beams=1, max_new_tokens=32, max_length=None, eos_token_id=())
    port = generator.parts[0].inputs[0]
    rng = np.random.default_rng(4)
    prompts = [
        {port.name: rng.integers(3, 60, 5 + row)}
        if port.kind == "ids"
        else {port.name: rng.standard_normal(port.shape[1:]).astype(np.float32)}
        for row in range(2)
    ]
    found = generator.with_settings(settings).ids(prompts)
    assert [len(answer) for answer in found] == [32, 32]
    return [list(answer) for answer in found]
