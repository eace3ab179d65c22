"""Node counts of simplify against onnxslim, onnxsim and onnxscript's optimizer, with the outputs compared.

    python benchmarks/node_counts.py --zoo FOLDER [model.onnx …]

``--zoo`` exports small models with random weights of several architectures into FOLDER once (needs
torch and transformers); files named on the command line are measured too. A tool that raises or
changes an output is shown with its error.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from graphcompress.passes.simplify import Simplify

import graphcompress as gc
from graphcompress.base import Context
from graphcompress.runtime import session_of

if TYPE_CHECKING:
    import onnxruntime
    import torch

Exported = tuple["torch.nn.Module", tuple[str, ...]]
"""A model and the names of its inputs."""

TOLERANCE = 1e-4
"""Of the largest output, as the Exact contract has it."""

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}


def main() -> None:
    """Print one line per model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--zoo", type=Path)
    arguments = parser.parse_args()
    tools = {"onnxslim": slim, "onnxsim": sim, "onnxscript": onnxscript_optimizer, "simplify": simplify}
    print(f"{'model':28}{'nodes':>7}" + "".join(f"{name:>12}" for name in tools))
    for path in itertools.chain(arguments.models, export_zoo(arguments.zoo) if arguments.zoo else ()):
        proto = onnx.load(path)
        reference = session_of(proto.SerializeToString())
        feeds = [feed_for(reference, batch, length) for batch, length in ((2, 7), (1, 12), (3, 5))]
        expected = [reference.run(None, feed) for feed in feeds]
        cells = [count(tool, proto, feeds, expected) for tool in tools.values()]
        print(
            f"{path.stem:28}{len(proto.graph.node):>7}" + "".join(f"{cell:>12}" for cell in cells), flush=True
        )


def count(
    tool: Callable[[onnx.ModelProto], onnx.ModelProto],
    proto: onnx.ModelProto,
    feeds: list[dict[str, np.ndarray]],
    expected: list[list[np.ndarray]],
) -> str:
    """Number of nodes after ``tool``, or what went wrong."""
    try:
        result = tool(copy.deepcopy(proto))
        session = session_of(result.SerializeToString())
        actual = [session.run(None, feed) for feed in feeds]
    except Exception as error:  # whatever a foreign tool raises is its result
        return type(error).__name__[:11]
    same = all(close(a, b) for x, y in zip(actual, expected, strict=True) for a, b in zip(x, y, strict=True))
    return f"{len(result.graph.node)}" if same else f"{len(result.graph.node)} WRONG"


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to :data:`TOLERANCE` of the largest output, NaN where NaN was."""
    return a.shape == b.shape and np.allclose(
        a, b, rtol=0, atol=TOLERANCE * np.nanmax(np.abs(b)), equal_nan=True
    )


def slim(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(proto)


def sim(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    return onnxsim.simplify(proto)[0]


def onnxscript_optimizer(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxscript.optimizer

    return onnxscript.optimizer.optimize(proto)


def simplify(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx_ir as ir

    model = gc.Model(ir.from_proto(proto))
    Simplify().run(model, Context())
    return ir.to_proto(model.ir)


def feed_for(session: onnxruntime.InferenceSession, batch: int, length: int) -> dict[str, np.ndarray]:
    """Random inputs; a mask has padding in its last row."""
    rng = np.random.default_rng(batch * 100 + length)
    feed = {}
    for value in session.get_inputs():
        shape = [
            size if isinstance(size, int) else batch if axis == 0 else length
            for axis, size in enumerate(value.shape)
        ]
        if value.type == "tensor(float)":
            feed[value.name] = rng.standard_normal(shape).astype(np.float32)
        elif "mask" in value.name:
            feed[value.name] = np.ones(shape, np.int64)
            feed[value.name][-1, length - 2 :] = 0
        else:
            feed[value.name] = rng.integers(0, 2 if "type" in value.name else 99, shape)
    return feed


def export_zoo(folder: Path) -> Iterator[Path]:
    """Small models with random weights, exported by torch at opset 18; files that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in ZOO.items():
        path = folder / f"{name}.onnx"
        if not path.exists():
            export(make, path)
        yield path


def export(make: Callable[[], Exported], path: Path) -> None:
    """Export one model with dynamic batch and length."""
    import torch

    torch.manual_seed(0)
    model, inputs = make()
    arguments = tuple(example(name) for name in inputs)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("sequence")
    dynamic = tuple({0: batch} if name == "pixel_values" else {0: batch, 1: length} for name in inputs)
    wrapped = first_output(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            wrapped.eval(),
            arguments,
            dynamo=True,
            opset_version=18,
            dynamic_shapes={"arguments": dynamic},
            input_names=list(inputs),
            verbose=False,
        )
    program.save(path)


def example(name: str) -> torch.Tensor:
    """An example input of batch 2, length 9."""
    import torch

    if name == "pixel_values":
        return torch.randn(2, 3, 32, 32)
    return torch.ones(2, 9, dtype=torch.long)


def first_output(model: torch.nn.Module, inputs: tuple[str, ...]) -> torch.nn.Module:
    """A module that calls ``model`` by keyword and returns the first output."""
    import torch

    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(inputs, arguments, strict=True)), return_dict=True)[0]

    return First()


def _transformer(kind: str, attention: str = "sdpa", **sizes: int) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.for_model(kind, **sizes)
        config._attn_implementation = attention
        config.use_cache = False
        model = AutoModel.from_config(config, attn_implementation=attention)
        return model.get_encoder() if kind == "t5" else model

    return make


def _text(kind: str, attention: str = "sdpa", **sizes: int) -> Callable[[], Exported]:
    make = _transformer(kind, attention, **{**SIZES, **sizes})
    return lambda: (make(), ("input_ids", "attention_mask"))


def _image(kind: str, **sizes: int) -> Callable[[], Exported]:
    make = _transformer(kind, **{**SIZES, "image_size": 32, "patch_size": 8, **sizes})
    return lambda: (make(), ("pixel_values",))


ZOO: dict[str, Callable[[], Exported]] = {
    "bert": _text("bert"),
    "bert_eager": _text("bert", "eager"),
    "roberta": _text("roberta"),
    "distilbert": _text("distilbert", dim=64, n_layers=2, n_heads=4, hidden_dim=128),
    "electra": _text("electra", embedding_size=32),
    "mpnet": _text("mpnet", "eager"),
    "deberta_v2": _text("deberta-v2", "eager"),
    "modernbert": _text(
        "modernbert", pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    ),
    "gpt2": _text("gpt2", n_embd=64, n_layer=2, n_head=4, n_positions=64),
    "llama": _text("llama", num_key_value_heads=2),
    "qwen2": _text("qwen2", num_key_value_heads=2),
    "t5_encoder": _text("t5", "eager", d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4),
    "vit": _image("vit"),
    "deit": _image("deit"),
}
"""Name → a function that makes the model and names its inputs."""


if __name__ == "__main__":
    main()
