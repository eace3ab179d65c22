"""Speed of writing: every model writes the same number of tokens, and each part's time is its own."""

from __future__ import annotations

import itertools
from collections import Counter

import bigram
import numpy as np
import pytest

from graphcompress.errors import DataError, UsageError
from graphcompress.files.runtime import runner_of, session_of
from graphcompress.generation.generator import open_generator
from graphcompress.measure import writing_speed
from graphcompress.measure.writing_speed import bench_writing


def counted(folder, counter):
    """A model whose runs are counted: file and size of the batch."""

    def run_of(path):
        run = runner_of(session_of(path))

        def called(feed):
            counter[path.name, len(next(iter(feed.values())))] += 1
            return run(feed)

        return called

    return open_generator(folder, run_of=run_of)


def test_all_write_so_many_tokens_in_one_batch_and_end_no_earlier(tmp_path):
    counter = Counter()
    generator = counted(bigram.encoder_decoder(tmp_path), counter)
    (result,) = bench_writing({"a": generator}, ["3x9"], rounds=1)
    assert result.shape == "3×9"
    batches = counter["encoder_model.onnx", 3]
    assert batches >= 2
    assert counter == {("encoder_model.onnx", 3): batches, ("decoder_model.onnx", 3): 9 * batches}
    assert set(result.speeds["a"].parts_ms) == {"encoder", "decoder"}


def test_times_are_told_apart(tmp_path, monkeypatch):
    """A clock that advances by 1 s at every look: a run takes one step, and so does what lies between."""
    looks = itertools.count()
    generator = open_generator(bigram.encoder_decoder(tmp_path))
    clock = writing_speed.Stopwatch(generator, 4)
    monkeypatch.setattr(writing_speed.time, "perf_counter", lambda: float(next(looks)))
    clock.write([{"input_ids": np.array([8, 9, 1])}] * 2)
    speed = clock.speed(writing_speed.Timing(500.0, 400.0, 600.0), batch=2)
    assert speed.parts_ms == {"encoder": 1000.0, "decoder": 4000.0}
    assert speed.first_token_ms == 4000.0  # two looks around the encoder, two around the first decoder
    assert speed.tokens_per_second == 16.0


def test_contenders_are_compared_with_the_first(tmp_path):
    generator = open_generator(bigram.decoder_alone(tmp_path))
    results = bench_writing({"a": generator, "b": generator}, ["1x2", "2x3"], rounds=2)
    assert [(result.shape, list(result.ratios), result.first) for result in results] == [
        ("1×2", ["b"], "a"),
        ("2×3", ["b"], "a"),
    ]


@pytest.mark.parametrize("shape", ["8", "0x3", "3x0", "1xnatural"])
def test_a_shape_that_does_not_read_is_refused(tmp_path, shape):
    generator = open_generator(bigram.decoder_alone(tmp_path))
    with pytest.raises(UsageError, match="expected <batch>x<new tokens>"):
        bench_writing({"a": generator}, [shape])


def test_a_prompt_longer_than_the_positions_is_refused(tmp_path):
    generator = open_generator(bigram.encoder_decoder(tmp_path, positions=4))
    with pytest.raises(DataError, match="positions for 4"):
        bench_writing({"a": generator}, ["1x2"], rounds=1)
