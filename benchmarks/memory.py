"""Peak memory of a whole int8 build; the bound is 1.5 times the model's file and 500 MB.

The models have the sizes of published ones and random weights; samples are random tokens, since memory
does not depend on what is in them. Each build runs in a process of its own; fewer layers take less time.

    python benchmarks/memory.py --models smollm2 mpnet --samples 300 [--layers 4]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

LONGEST = {"smollm2": 64, "mpnet": 48}
"""Tokens of the longest sample; the shortest has an eighth of them."""

VOCABULARY = {"smollm2": 49152, "mpnet": 30527}
BOUND_TIMES, BOUND_BYTES = 1.5, 500e6


def _smollm2(layers: int) -> torch.nn.Module:
    """A language model of 135M parameters: 30 layers, width 576, a tied head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=layers or 30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=VOCABULARY["smollm2"], max_position_embeddings=2048,
        tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def _mpnet(layers: int) -> torch.nn.Module:
    """A sentence encoder of 109M parameters: 12 layers, width 768."""
    from transformers import MPNetConfig, MPNetModel

    config = MPNetConfig(vocab_size=VOCABULARY["mpnet"], num_hidden_layers=layers or 12)
    config._attn_implementation = "eager"
    return MPNetModel(config, add_pooling_layer=False)


MODELS: dict[str, Callable[[int], torch.nn.Module]] = {"smollm2": _smollm2, "mpnet": _mpnet}


def export(name: str, layers: int, path: Path) -> None:
    """Write the model, batch and length variable, to ``path``."""
    import torch

    class Plain(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]

    torch.manual_seed(0)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", min=2, max=512)}
    ids = torch.ones(2, 7, dtype=torch.int64)
    torch.onnx.export(
        Plain(MODELS[name](layers)).eval(),
        (ids, torch.ones_like(ids)),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits" if name == "smollm2" else "last_hidden_state"],
        dynamic_shapes=(axes, axes),
        dynamo=True,
        opset_version=18,
        external_data=False,
        verbose=False,
    )


def rows(name: str, count: int, path: Path) -> None:
    """Write ``count`` samples of different lengths to ``path``."""
    rng, longest = np.random.default_rng(0), LONGEST[name]
    with path.open("w", encoding="utf-8") as file:
        for length in rng.integers(longest // 8, longest + 1, count):
            ids = rng.integers(5, VOCABULARY[name], length).tolist()
            file.write(json.dumps({"input_ids": ids, "attention_mask": [1] * int(length)}) + "\n")


def build(model: Path, data: Path, passes: str) -> str:
    """What a whole build costs in this process: time, that of all cores, peak, and the bound."""
    import graphcompress

    start, worked = time.perf_counter(), time.process_time()
    names = [step.split("{")[0] for step in passes.split(",") if step.split("{")[0] != "simplify"]
    graphcompress.optimize(
        model, passes, target="cpu{measure=false}", data=data, output=data.with_name("out"), overwrite=True,
        allow=names,
    )  # fmt: skip
    seconds, cores = time.perf_counter() - start, time.process_time() - worked
    # The figure of getrusage begins with what the process that started this one held.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1e6
    bound = (BOUND_TIMES * model.stat().st_size + BOUND_BYTES) / 1e9
    times = f"{seconds:.0f} s | {cores:.0f} s"
    return f"{model.stat().st_size / 1e6:.0f} MB | {times} | {peak:.2f} GB | {bound:.2f} GB"


def main() -> None:
    """Build each model once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--layers", type=int, default=0, help="all of them where 0")
    parser.add_argument("--passes", default="int8")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(build(*given.child, given.passes))
        return
    print("| model | file | time | of all cores | peak | bound |\n|---|---|---|---|---|---|")
    for name in given.models:
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / "model.onnx", Path(folder) / "rows.jsonl"]
            export(name, given.layers, files[0])
            rows(name, given.samples, files[1])
            command = [sys.executable, __file__, "--passes", given.passes, "--child", *map(str, files)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            told = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1]
            print(f"| {name} | {told} |", flush=True)


if __name__ == "__main__":
    main()
