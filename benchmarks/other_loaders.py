"""Whether optimum's classes load an artifact unchanged and write what this package writes.

optimum-onnx pins an older transformers, so that it gets an environment of its own, which is made once::

    python benchmarks/other_loaders.py small --environment ~/optimum --text "A man sits on a bench."

It ends with 0 where greedy and beam search (4 beams) give the same tokens as ``graphcompress generate``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path

from graphcompress.generation.generator import open_generator

PACKAGES = ("optimum-onnx==0.1.0", "onnxruntime")
BEAMS = (1, 4)
NEW_TOKENS = 32

INSIDE = """
import json, sys
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM
import torch
given = json.loads(sys.argv[1])
kind = ORTModelForSeq2SeqLM if given["encodes"] else ORTModelForCausalLM
model = kind.from_pretrained(given["folder"], use_io_binding=False)
found = []
for beams in given["beams"]:
    for ids in given["prompts"]:
        answer = model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            num_beams=beams, max_new_tokens=given["tokens"], do_sample=False,
        )[0].tolist()
        found.append(answer if given["encodes"] else answer[len(ids):])
print(json.dumps(found))
"""
"""What the other environment runs: this package is not in it."""


def interpreter(environment: Path) -> Path:
    """The interpreter of the environment with optimum, which is made where it is not there."""
    python = environment / "bin" / "python"
    if not python.is_file():
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def main() -> None:
    """Read the command line, generate with both, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--environment", type=Path, required=True)
    parser.add_argument("--text", action="append", required=True)
    given = parser.parse_args()
    model = open_generator(given.artifact)
    encodes = model.parts[0].role == "encoder"
    name = model.parts[0].input("ids") or ""
    prompts = model.prompts(given.text)
    own = []
    for beams in BEAMS:
        settings = replace(model.settings, num_beams=beams, max_new_tokens=NEW_TOKENS)
        own += [model.with_settings(settings).ids([prompt], batch=1)[0] for prompt in prompts]
    asked = {
        "folder": str(given.artifact.resolve()),
        "encodes": encodes,
        "prompts": [prompt[name].tolist() for prompt in prompts],
        "beams": BEAMS,
        "tokens": NEW_TOKENS,
    }
    done = subprocess.run(
        [interpreter(given.environment), "-c", INSIDE, json.dumps(asked)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    others = json.loads(done.stdout.splitlines()[-1])
    start, ends = list(model.settings.start), set(model.settings.eos_token_id)
    different = 0
    for mine, other in zip(own, others, strict=True):
        bare = [[token for token in tokens if token not in ends] for tokens in (mine, other[len(start) :])]
        different += bare[0] != bare[1]
        print("same" if bare[0] == bare[1] else f"different: {bare[0]} and {bare[1]}")
    sys.exit(int(different > 0))


if __name__ == "__main__":
    main()
