"""Exported files, run by ONNX Runtime, write what the module writes by transformers.generate."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import sequence_models  # noqa: E402

from graphcompress.generation.generator import Generator, open_generator  # noqa: E402


@pytest.fixture(scope="module", params=[*sequence_models.SEQ2SEQ, *sequence_models.CAUSAL])
def written(request, tmp_path_factory) -> tuple[str, Any, Any]:
    """Name, module and folder of a tiny model."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    module = sequence_models.written(request.param, folder)
    module.generation_config.save_pretrained(folder)
    return request.param, module, folder


def ours(folder: Any, name: str, beams: int) -> list[list[int]]:
    given, first = sequence_models.prompt(name)
    generator = open_generator(folder)
    end = () if name == "llama" else generator.settings.eos_token_id
    settings = dataclasses.replace(
        generator.settings,
        num_beams=beams,
        max_new_tokens=12,
        no_repeat_ngram_size=2,
        eos_token_id=end,
        start=tuple(first[0]) if given else (),
    )
    generator = generator.with_settings(settings)
    return generator.ids(prompts(generator, given, first))


def prompts(
    generator: Generator, given: dict[str, np.ndarray], first: np.ndarray
) -> list[dict[str, np.ndarray]]:
    """One for each row, without what the mask leaves out."""
    if not given:
        return [{"input_ids": row} for row in first]
    if "input_features" in given:
        return [{"input_features": row} for row in given["input_features"]]
    return [
        {"input_ids": ids[mask != 0]}
        for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True)
    ]


def theirs(module: Any, name: str, beams: int) -> list[list[int]]:
    from transformers import GenerationMixin

    given, first = sequence_models.prompt(name)
    tensors = {key: torch.from_numpy(array) for key, array in given.items()}
    if not given:
        tensors = {
            "input_ids": torch.from_numpy(first),
            "attention_mask": torch.ones_like(torch.from_numpy(first)),
        }
    end = module.generation_config.eos_token_id
    module.generation_config.eos_token_id = None if name == "llama" else end
    found = GenerationMixin.generate(
        module, **tensors, num_beams=beams, max_new_tokens=12, no_repeat_ngram_size=2, do_sample=False
    )
    module.generation_config.eos_token_id = end
    rows = [row[1 if given else first.shape[1] :] for row in found.tolist()]
    return [row[: row.index(end) + 1] if name != "llama" and end in row else row for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 3])
def test_the_parts_write_the_same_tokens(written, beams):
    name, module, folder = written
    assert ours(folder, name, beams) == theirs(module, name, beams)


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 3])
def test_a_merged_decoder_writes_the_same_tokens(written, beams, tmp_path):
    import shutil

    name, module, folder = written
    if name in sequence_models.CAUSAL:
        pytest.skip("one file takes any past, none included; there is nothing to merge")
    merged = tmp_path / "merged"
    shutil.copytree(folder, merged)
    sequence_models.merge(merged)
    assert ours(merged, name, beams) == theirs(module, name, beams)
