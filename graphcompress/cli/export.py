"""``graphcompress export``: a Hugging Face checkpoint becomes an ONNX file, or those of one that writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphcompress.cli.terminal import Json, print_json, progress_bars, tell

if TYPE_CHECKING:
    from graphcompress.graph.model import Model


def export(
    source: Annotated[str, typer.Argument(help="Hugging Face folder, or a name on its hub.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="ONNX file, or a folder: there a model that writes is an encoder and decoders with past.",
            show_default="<source>.onnx, or the folder <source>-onnx for a model that writes",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="text-generation, text2text-generation, automatic-speech-recognition, image-to-text, "
            "features, classification, token-classification, question-answering, masked-lm, …",
            show_default="as the checkpoint says",
        ),
    ] = None,
    opset: Annotated[int, typer.Option(min=18, max=25, help="ONNX operator set.")] = 18,
    outputs: Annotated[
        str | None,
        typer.Option(help="Outputs to keep, by comma.", show_default="the logits, or the last hidden state"),
    ] = None,
    past: Annotated[
        bool,
        typer.Option("--past/--no-past", help="Read and return keys and values, where the model has them."),
    ] = True,
    merged: Annotated[
        bool, typer.Option("--merged", help="Write both decoders as one file with an If, as optimum does.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    json: Json = False,
) -> None:
    """Write a checkpoint as ONNX, batch and length dynamic, its outputs checked against PyTorch.

    Example: graphcompress export ./my-bert -o model.onnx --task classification
    """
    from graphcompress.capturing.checkpoint import export as write
    from graphcompress.graph.model import Model
    from graphcompress.reporting.text import count, size

    chosen = [name.strip() for name in outputs.split(",")] if outputs else None
    with progress_bars() as progress:
        progress("export", 0, 1)
        path = write(
            source,
            output,
            task=task,
            opset=opset,
            outputs=chosen,
            past=past,
            merged=merged,
            overwrite=overwrite,
        )
        files = [path] if path.is_file() else sorted(path.glob("*.onnx"))
        # Read again, so that what is told is what lies on the disk.
        models = {file: Model.load(file) for file in files}
        progress("export", 1, 1)
    if json:
        described = [{"output": str(file), **_described(model)} for file, model in models.items()]
        print_json(described[0] if path.is_file() else {"output": str(path), "parts": described})
        return
    for file, model in models.items():
        told = _described(model)
        tell(
            f"written to {file}: opset {model.opset}, {count(model.parameters)} parameters, "
            f"{size(model.weight_bytes)} of weights\n"
            f"  in  {'; '.join(told['inputs'])}\n  out {'; '.join(told['outputs'])}"
        )
    tell("outputs as PyTorch's at several sizes")


def _described(model: Model) -> dict[str, Any]:
    inputs, outputs = (
        [f"{value.name}: {value.dtype} {value.shape}" for value in values]
        for values in (model.graph.inputs, model.graph.outputs)
    )
    return {"opset": model.opset, "parameters": model.parameters, "inputs": inputs, "outputs": outputs}
