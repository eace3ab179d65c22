"""Time of a training step of the deployed graph, against the Hugging Face module of the same shape.

    python benchmarks/fx_step.py minilm.onnx --checkpoint minilm/ [--shapes 8x32,8x128] [--precision bf16]

Both compute forward, a mean-square loss on the hidden states against fixed targets, backward and an AdamW
step, in one process, taking turns; the ratio is taken round by round, and its median is printed with the
middle half. The module has dropout off, as a graph has none. ``--precision bf16`` runs both under autocast,
the attentions of the graph in float32, as in training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModel

from graphcompress.fx import to_fx
from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.training.attention_on_cpu import attend_in_float32

Step = Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="ONNX file of the checkpoint, last_hidden_state as output")
    parser.add_argument("--checkpoint", required=True, help="folder or hub name of the same model")
    parser.add_argument("--passes", default="simplify", help="passes before the training; empty: none")
    parser.add_argument("--shapes", default="8x32,8x128", help="batch x length")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    model = Model.load(arguments.model)
    if arguments.passes:
        Pipeline.parse(arguments.passes).run(model, Context())
    ours = to_fx(model)
    if arguments.precision == "bf16":
        attend_in_float32(ours)
    theirs = AutoModel.from_pretrained(arguments.checkpoint, attn_implementation="sdpa").eval()
    for shape in arguments.shapes.split(","):
        batch, length = (int(size) for size in shape.split("x"))
        feed = _feed(batch, length)
        steps = (_step(ours, feed, arguments.precision), _step(theirs, feed, arguments.precision))
        _report(shape, *_timed(steps, arguments.rounds))


def _feed(batch: int, length: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, length // 2 :] = 0
    ids = torch.randint(5, 1000, (batch, length))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def _step(module: torch.nn.Module, feed: dict[str, torch.Tensor], precision: str) -> Step:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)
    target = torch.randn(*feed["input_ids"].shape, 384)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            hidden = module(**feed)["last_hidden_state"]
        torch.nn.functional.mse_loss(hidden.float(), target).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def _timed(steps: tuple[Step, Step], rounds: int) -> tuple[list[float], list[float]]:
    for step in steps:
        step()
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            times[which].append(steps[which]())
    return times


def _report(shape: str, ours: list[float], theirs: list[float]) -> None:
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    times = " and ".join(f"{statistics.median(row) * 1e3:.0f} ms" for row in (ours, theirs))
    print(f"{shape}: {times}, ratio {statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})", flush=True)


if __name__ == "__main__":
    main()
