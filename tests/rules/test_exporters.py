"""Files of another exporter and of ONNX Runtime's own optimisers: understood and compressed alike."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from graphcompress.analysis.attentions import attentions
from graphcompress.analysis.linears import linears
from graphcompress.build.unsupported import refuse_unsupported
from graphcompress.coupling.couplings import couplings
from graphcompress.data.load import Samples
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context

HEADS, HIDDEN, LAYERS = 4, 32, 2
FUSED = ("fused", "session")


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small BERT by torch's TorchScript exporter, as it is, fused by both of ONNX Runtime's optimisers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("exports")
    made = {}
    for attention in ("eager", "sdpa"):
        config = transformers.BertConfig(
            vocab_size=100,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=64,
            max_position_embeddings=64,
            attn_implementation=attention,
        )
        path = folder / f"{attention}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter is deprecated and says so in many ways
            _export(torch, transformers.BertModel(config).eval(), path)
        made[attention] = path
        made[f"{attention} fused"] = _fuse(path)
        made[f"{attention} session"] = _optimised_by_session(path)
    return made


def _export(torch, model, path: Path) -> None:
    class LastState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids, names = torch.randint(1, 100, (2, 7)), ["input_ids", "attention_mask"]
    torch.onnx.export(
        LastState(),
        (ids, torch.ones_like(ids)),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=names,
        output_names=["y"],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in [*names, "y"]},
    )


def _fuse(path: Path) -> Path:
    from onnxruntime.transformers.optimizer import optimize_model

    fused = path.with_name(f"{path.stem}_fused.onnx")
    optimize_model(str(path), model_type="bert", num_heads=HEADS, hidden_size=HIDDEN).save_model_to_file(
        str(fused)
    )
    return fused


def _optimised_by_session(path: Path) -> Path:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path.with_name(f"{path.stem}_session.onnx"))
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Path(options.optimized_model_filepath)


@pytest.fixture(scope="session")
def samples() -> Samples:
    rng = np.random.default_rng(0)
    return Samples(
        [
            {"input_ids": rng.integers(1, 100, length), "attention_mask": np.ones(length, np.int64)}
            for length in 4 + rng.permutation(12)
        ]
    )


def padded(batch: int, length: int) -> dict[str, np.ndarray]:
    mask = np.ones((batch, length), np.int64)
    mask[-1, length - 2 :] = 0 if batch > 1 else 1
    return {"input_ids": np.random.default_rng(1).integers(1, 100, (batch, length)), "attention_mask": mask}


def kinds(model: Model) -> Counter[str]:
    return Counter(group.kind for group in couplings(model) if group.kind in ("ffn", "head"))


ALL = [f"{attention}{how}" for attention in ("eager", "sdpa") for how in ("", " fused", " session")]


@pytest.mark.parametrize("name", ALL)
def test_simplify_keeps_the_outputs_and_leaves_standard_operators(name, files) -> None:
    model = Model.load(files[name])
    refuse_unsupported(model, [Simplify()])
    Simplify().run(model, Context())
    assert {node.domain for node in model.graph} == {""}
    session = session_of(files[name])
    with Runner(model) as runner:
        for feed in (padded(1, 5), padded(3, 9), padded(2, 16)):
            want = session.run(None, feed)[0]
            np.testing.assert_allclose(runner(feed)["y"], want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", ALL)
def test_the_same_is_found_in_every_form(name, files) -> None:
    model = Model.load(files[name])
    Simplify().run(model, Context())
    assert kinds(model) == {"ffn": LAYERS, "head": LAYERS}
    assert len(linears(model)) == 6 * LAYERS
    assert [(found.num_heads, found.head_dim) for found in attentions(model)] == [
        (HEADS, HIDDEN // HEADS)
    ] * LAYERS


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_groups_are_found_before_simplify_too(attention, files) -> None:
    assert kinds(Model.load(files[attention])) == {"ffn": LAYERS, "head": LAYERS}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_no_arithmetic_of_sizes_is_left_in_the_layers(attention, files) -> None:
    model = Model.load(files[attention])
    Simplify().run(model, Context())
    inputs = set(model.graph.inputs)
    assert {node.inputs[0] for node in model.graph if node.op_type == "Shape"} <= inputs
    assert not {"Expand", "Equal", "ConstantOfShape"} & {
        node.op_type for node in model.graph if "layer" in node.outputs[0].name
    }


PRUNE, KRON = "prune{ffn=0.25 heads=0.25}", "kron{ratio=0.5}"
PASSES = [PRUNE, KRON, "int8", f"{PRUNE},int8"]


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_passes_do_the_same_in_every_form(attention, passes, files, samples) -> None:
    results = []
    for how in ("", " fused", " session"):
        model = Model.load(files[attention + how])
        steps = Pipeline.parse(f"simplify,{passes}")
        # on samples, near ties between shapes of factors are broken by rounding
        ctx = Context(samples=None if passes == KRON else samples)
        records = steps.run(model, ctx, allow={step.name for step in steps.passes[1:]})
        with Runner(model) as runner:
            feed = {"input_ids": padded(3, 11)["input_ids"], "attention_mask": np.ones((3, 11), np.int64)}
            results.append((len(records[-1].touched), runner(feed)["y"]))
    (touched, plain), *others = results
    assert touched >= 2 * LAYERS
    for count, outputs in others:
        assert count == touched
        assert np.abs(outputs - plain).max() <= 0.02 * np.abs(plain).max()
