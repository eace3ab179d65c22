"""How near another machine's answers have to be."""

import json
import sys

import numpy as np
import pytest

from edge.proof import FLOAT_DB, HALF_A_STEP, CannotRunError, Case, NotProvenError, agreement, command, proof
from graphcompress.artifact.folder import MANIFEST
from graphcompress.targets.mobile.ort_format import OPERATORS_FILE

RNG = np.random.default_rng(0)
HERE = RNG.standard_normal((1, 50, 64)).astype(np.float32)
OWN_DB = 30.0


@pytest.fixture(params=["MatMul,Softmax", "MatMul,QuantizeLinear"], ids=["float", "int8"])
def artifact(request, tmp_path):
    """As much of an artifact as is read: its operators, and the noise that quantising it made."""
    (tmp_path / OPERATORS_FILE).write_text(f"# made\nai.onnx;19;{request.param}\n")
    record = {"verification": {"artifact": {"sqnr_db": OWN_DB}}}
    (tmp_path / MANIFEST).write_text(json.dumps(record))
    return tmp_path, "QuantizeLinear" in request.param


def compared(folder, seen):
    return agreement(folder, [Case({}, {"y": HERE})], [{"y": seen}])


def test_the_same_answers_pass(artifact):
    folder, _ = artifact
    found = compared(folder, HERE)
    assert found.passes
    assert (found.median, found.largest) == (0.0, 0.0)


def test_noise_near_that_of_quantisation_does_not(artifact):
    folder, rounds = artifact
    assert compared(folder, HERE).wanted_db == (OWN_DB + 6 if rounds else FLOAT_DB)
    for below, passes in ((OWN_DB + 12, rounds), (OWN_DB + 3, False)):
        noise = RNG.standard_normal(HERE.shape) * 10 ** (-below / 20)
        assert compared(folder, HERE + noise.astype(np.float32)).passes == passes


def test_a_shift_of_every_entry_is_seen_by_the_median(artifact):
    folder, _ = artifact
    shifted = HERE + np.ptp(HERE) * HALF_A_STEP * 1.1
    assert compared(folder, shifted).median > HALF_A_STEP
    assert not compared(folder, shifted).passes


@pytest.mark.parametrize("seen", [{}, {"y": HERE[:, :-1]}, {"y": np.full_like(HERE, np.nan)}])
def test_what_is_missing_or_no_number_does_not_pass(artifact, seen):
    found = agreement(artifact[0], [Case({}, {"y": HERE})], [seen])
    assert not found.passes


def test_a_program_that_fails_is_no_reason_to_skip_what_it_proves():
    words = (sys.executable, "-c", "import sys; sys.exit('Error: the model does not load')")
    with pytest.raises(NotProvenError, match="failed: Error: the model does not load"):
        proof(*words)
    with pytest.raises(NotProvenError, match="took longer"):
        proof(sys.executable, "-c", "import time; time.sleep(9)", timeout=0.2)
    with pytest.raises(CannotRunError, match="failed: Error"):
        command(*words)
    with pytest.raises(CannotRunError, match="not installed"):
        proof("no-such-program-anywhere")
