"""``graphcompress export``: a Hugging Face checkpoint becomes an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphcompress.cli.terminal import Json, out, print_json, progress_bars


def export(
    source: Annotated[str, typer.Argument(help="Hugging Face folder, or a name on its hub.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="ONNX file.", show_default="<source>.onnx")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="features, classification, token-classification, question-answering, masked-lm, causal-lm, "
            "seq2seq-lm, …",
            show_default="as the checkpoint says",
        ),
    ] = None,
    opset: Annotated[int, typer.Option(min=18, max=25, help="ONNX operator set.")] = 18,
    outputs: Annotated[
        str | None,
        typer.Option(help="Outputs to keep, by comma.", show_default="the logits, or the last hidden state"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    json: Json = False,
) -> None:
    """Write a checkpoint as ONNX, batch and length dynamic, its outputs checked against PyTorch.

    Example: graphcompress export ./my-bert -o model.onnx --task classification
    """
    from graphcompress.build.report import count, size
    from graphcompress.capturing.checkpoint import export as write
    from graphcompress.graph.model import Model

    path = output or Path(f"{Path(source).name}.onnx")
    chosen = [name.strip() for name in outputs.split(",")] if outputs else None
    with progress_bars() as progress:
        progress("export", 0, 1)
        model = Model.load(write(source, path, task=task, opset=opset, outputs=chosen, overwrite=overwrite))
        progress("export", 1, 1)
    inputs, outputs_of = (
        [f"{value.name}: {value.dtype} {value.shape}" for value in values]
        for values in (model.graph.inputs, model.graph.outputs)
    )
    if json:
        print_json(
            {
                "output": str(path),
                "opset": model.opset,
                "parameters": model.parameters,
                "inputs": inputs,
                "outputs": outputs_of,
            }
        )
        return
    out().print(
        f"written to {path}: opset {model.opset}, {count(model.parameters)} parameters, "
        f"{size(model.weight_bytes)} of weights; outputs as PyTorch's at three sizes\n"
        f"  in  {'; '.join(inputs)}\n  out {'; '.join(outputs_of)}"
    )
