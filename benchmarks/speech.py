"""Sentences spoken by espeak-ng, as .wav files of 16 kHz with what was said.

It needs the package ``espeakng-loader``, which brings the library::

    python benchmarks/speech.py SENTENCES.txt --output clips

SENTENCES has one sentence a line. The folder gets ``clips.jsonl`` with the columns file and sentence.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import wave
from pathlib import Path

import espeakng_loader
import numpy as np
import scipy.signal

SAMPLE_RATE = 16000
"""Samples a second that Whisper reads."""

SYNCHRONOUS = 2
"""espeak-ng calls back with the samples before it returns."""

UTF8 = 1


class Voice:
    """A voice of espeak-ng: sentences become samples."""

    def __init__(self, name: str = "en-us") -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        folder = espeakng_loader.get_data_path().encode()
        self._rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, folder, 0)
        if self._rate <= 0 or self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {name!r} in {folder.decode()}")
        self._said: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: int | None) -> int:
        if samples and count:
            self._said.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, sentence: str) -> np.ndarray:
        """The samples [time] of ``sentence``, int16 at 16 kHz, with a quarter of a second around it."""
        self._said.clear()
        text = sentence.encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, 0, 0, UTF8, None, None)
        samples = np.concatenate(self._said).astype(np.float64)
        samples = scipy.signal.resample_poly(samples, SAMPLE_RATE, self._rate)
        around = np.zeros(SAMPLE_RATE // 4)
        return np.concatenate([around, samples, around]).round().clip(-(2**15), 2**15 - 1).astype(np.int16)


def write_clips(sentences: list[str], output: Path) -> None:
    """Write a clip for each of ``sentences`` and ``clips.jsonl`` into ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    voice, rows = Voice(), []
    for number, sentence in enumerate(sentences):
        file = output / f"clip-{number:03}.wav"
        with wave.open(str(file), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(SAMPLE_RATE)
            out.writeframes(voice.say(sentence).tobytes())
        rows.append({"file": str(file.resolve()), "sentence": sentence})
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (output / "clips.jsonl").write_text(lines, encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    write_clips(given.sentences.read_text(encoding="utf-8").splitlines(), given.output)


if __name__ == "__main__":
    main()
