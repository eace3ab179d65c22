"""The parts of a model that writes as one module, which answers as the files do, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from sequence_models import CAUSAL, NAMES, VOCABULARY, prompt, saved

torch = pytest.importorskip("torch")

from graphcompress.errors import UnsupportedModelError  # noqa: E402
from graphcompress.files.parts import read_parts  # noqa: E402
from graphcompress.files.runtime import runner_of, session_of  # noqa: E402
from graphcompress.fx import to_fx, write_back  # noqa: E402
from graphcompress.generation.steps import Steps  # noqa: E402
from graphcompress.graph.model import Model  # noqa: E402
from graphcompress.graph.teacher_forced import teacher_forced  # noqa: E402
from graphcompress.pipeline.pipeline import Pipeline  # noqa: E402
from graphcompress.plugin.context import Context  # noqa: E402
from graphcompress.rewrite.rewriter import Rewriter  # noqa: E402

LENGTH = 6


def source_of(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What the encoder reads, and the tokens [2, LENGTH] that the decoder is given."""
    given, first = prompt(name.partition(",")[0])
    rest = np.random.default_rng(1).integers(5, VOCABULARY, (2, LENGTH - first.shape[1]))
    return given, np.concatenate([first, rest], 1)


def stepwise(name: str, folder: Path) -> np.ndarray:
    """Logits [2, LENGTH, vocabulary] of the files in ``folder``, token by token with a cache."""
    given, tokens = source_of(name)
    parts = read_parts(folder)
    steps = Steps(parts, {part.role: runner_of(session_of(part.path)) for part in parts})
    if given:
        steps.encode(given)
    found = [steps.first(tokens[:, :1], np.ones((2, 1), np.int64))]
    found += [steps.next(tokens[:, index]) for index in range(1, LENGTH)]
    return np.stack(found, 1)


def at_once(module: torch.fx.GraphModule, name: str) -> torch.Tensor:
    """Logits of the module on all tokens at once."""
    given, tokens = source_of(name)
    feed = {f"encoder/{key}": array for key, array in given.items()}
    feed |= dict.fromkeys(("input_ids", "prefill/input_ids"), tokens)
    feed["attention_mask"] = np.ones_like(tokens)
    feed["position_ids"] = np.tile(np.arange(LENGTH), (2, 1))
    outputs = module(**{key: torch.from_numpy(feed[path]) for key, path in module.meta["inputs"].items()})
    return next(value for key, value in outputs.items() if key.endswith("logits"))


@pytest.mark.parametrize("passes", ["none", "simplify,prune{ffn=0.25 heads=0.25}", "simplify,kron{rank=2}"])
@pytest.mark.parametrize("name", NAMES)
def test_all_tokens_at_once_are_steps_with_a_cache(
    name: str, passes: str, sequence_folders: Mapping[str, Path], tmp_path: Path
) -> None:
    model, folder = Model.load(sequence_folders[name]), sequence_folders[name]
    if passes != "none":
        step = Pipeline.parse(passes)
        step.run(model, Context(), allow=[each.name for each in step.passes if each.name != "simplify"])
        folder = saved(model, tmp_path / "small")
    wanted = stepwise(name, folder)
    found = at_once(to_fx(teacher_forced(model)), name).detach().numpy()
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["llama", "marian"])
def test_a_cache_in_int8_is_rounded_where_steps_read_their_own(
    name: str, sequence_folders: Mapping[str, Path], tmp_path: Path
) -> None:
    model = Model.load(sequence_folders[name])
    Pipeline.parse("simplify,kvcache{measure=false}").run(model, Context())
    # A first pass of a part without past reads what it has before it is rounded.
    rounds = name in CAUSAL
    wanted = stepwise(name, saved(model, tmp_path / "made") if rounds else sequence_folders[name])
    found = at_once(to_fx(teacher_forced(model)), name).detach().numpy()
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_in_all_parts(
    name: str, sequence_folders: Mapping[str, Path], tmp_path: Path
) -> None:
    model = Model.load(sequence_folders[name])
    module = to_fx(teacher_forced(model))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    logits = at_once(module, name)
    logits.log_softmax(-1)[..., 0].mean().neg().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    optimizer.step()
    trained = at_once(module, name).detach().numpy()
    assert np.abs(trained - logits.detach().numpy()).max() > 1e-2
    write_back(module, model)
    again = stepwise(name, saved(model, tmp_path / "trained"))
    assert np.abs(again - trained).max() <= 1e-4 * np.abs(trained).max()


def test_the_parts_of_several_files_are_one_module(sequence_folders: Mapping[str, Path]) -> None:
    module = to_fx(Model.load(sequence_folders["bart"]))
    assert list(module.meta["inputs"].values()) == [
        "encoder/input_ids",
        "encoder/attention_mask",
        "prefill/input_ids",
    ]
    assert "past_key_values.0.key" in to_fx(Model.load(sequence_folders["gpt2"])).meta["inputs"].values()


def test_an_ordinary_model_is_as_it_was(tiny_bert: Model) -> None:
    assert teacher_forced(tiny_bert) is tiny_bert


def test_steps_with_weights_of_their_own_are_refused(sequence_folders: Mapping[str, Path]) -> None:
    model = Model.load(sequence_folders["marian"])
    with Rewriter(model, Context()) as rw:
        node = next(
            node for node in model.graph if (node.name or "").startswith("step/") and node.op_type == "MatMul"
        )
        weight = next(value for value in node.inputs if value.is_initializer())
        other = rw.constant(weight.const_value.numpy() + 1, "another")
        node.replace_input_with(list(node.inputs).index(weight), other)
    with pytest.raises(UnsupportedModelError, match="'another' is read by steps with past alone"):
        teacher_forced(model)


def test_a_decoder_of_single_tokens_is_refused(sequence_folders: Mapping[str, Path]) -> None:
    model = Model.load(sequence_folders[CAUSAL[0]])
    model.fix_sizes({"sequence_length": 1})
    with pytest.raises(UnsupportedModelError, match="reads one token at a time"):
        teacher_forced(model)
