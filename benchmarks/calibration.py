"""Time and peak memory of an int8 build that calibrates a speech encoder, by the number of clips.

The encoder has the sizes of Whisper tiny (8.2M parameters, 1,500 frames a clip) and random weights; clips are
noise, since neither time nor memory depends on what is in them. Each build runs in a process of its own.

    python benchmarks/calibration.py --clips 24 100 300
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MELS, STEPS = 80, 3000


def export(path: Path) -> None:
    """Write the encoder, its batch variable, to ``path``."""
    import torch
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536, num_mel_bins=MELS
    )
    config._attn_implementation = "eager"
    encoder = WhisperEncoder(config).eval()
    torch.onnx.export(
        encoder,
        (torch.zeros(2, MELS, STEPS),),
        path,
        input_names=["input_features"],
        output_names=["last_hidden_state"],
        dynamic_shapes={"input_features": {0: torch.export.Dim("batch")}},
        dynamo=True,
        opset_version=18,
        external_data=False,
    )


def clips(path: Path, count: int) -> None:
    """Write ``count`` clips of noise to ``path``."""
    rng = np.random.default_rng(0)
    np.savez(path, input_features=rng.standard_normal((count, MELS, STEPS), np.float32))


def calibrate(model: Path, data: Path) -> str:
    """What statistics of all inputs of linears cost in this process: seconds, of all cores, peak."""
    from graphcompress.analysis.linears import linears
    from graphcompress.data.load import load_samples
    from graphcompress.graph.model import Model
    from graphcompress.measure.calibrate import observe
    from graphcompress.numerics.observers import Activation

    loaded = Model.load(model)
    samples = load_samples(data, loaded)
    start, worked = time.perf_counter(), time.process_time()
    observe(loaded, {linear.input: Activation() for linear in linears(loaded)}, samples)
    return costs(time.perf_counter() - start, time.process_time() - worked)


def build(model: Path, data: Path) -> str:
    """What a whole int8 build costs in this process, and the SQNR of the artifact."""
    import graphcompress

    start, worked = time.perf_counter(), time.process_time()
    built = graphcompress.optimize(
        model, "int8", target="cpu{measure=false}", data=data, output=data.with_name("out"), overwrite=True
    )
    line = costs(time.perf_counter() - start, time.process_time() - worked)
    return f"{line} | {built.lowered[0].difference.sqnr_db:.1f} dB"


def costs(seconds: float, worked: float) -> str:
    """Seconds, seconds of all cores, and the peak memory of this process."""
    # The figure of getrusage begins with what the process that started this one held.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1e6
    return f"{seconds:.0f} s | {worked:.0f} s | {peak:.2f} GB"


def main() -> None:
    """Calibrate, or build, once for each number of clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[24, 100, 300])
    parser.add_argument("--whole", action="store_true", help="time the whole build, not calibration alone")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print((build if given.whole else calibrate)(*given.child))
        return
    print("| clips | time | of all cores | peak |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        files = [Path(name) / "encoder.onnx", Path(name) / "clips.npz"]
        export(files[0])
        for count in given.clips:
            clips(files[1], count)
            command = [sys.executable, __file__, "--child", *map(str, files), *["--whole"] * given.whole]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"| {count} | {done.stdout.strip().splitlines()[-1]} |", flush=True)


if __name__ == "__main__":
    main()
