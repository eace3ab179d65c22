"""The loading code for the browser, run by Node.js with a runtime that gives back what it is fed."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import graphcompress.targets.mobile

NODE = shutil.which("node")
MAIN = Path(graphcompress.targets.mobile.__file__).parent / "templates" / "main.js"
PROGRAM = """
import { load } from %(main)s;
class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
const echo = ({ dims, data }) => ({ y: { dims: [...dims, 1], data: Float32Array.from(data, Number) } });
const session = { run: async ({ x }) => echo(x) };
const ort = { Tensor, InferenceSession: { create: async () => session } };
const model = await load(ort, %(description)s, null);
try {
  const { y } = await model.run(%(inputs)s);
  console.log(JSON.stringify({ dims: y.dims, data: Array.from(y.data) }));
} catch (error) {
  console.log(JSON.stringify({ error: error.message }));
}
"""

pytestmark = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")


def answer(inputs, fixed, sizes=("batch", "length")):
    """What a model of one input [batch, length] gives back: [batch, length, 1] of the same numbers."""
    description = {
        "inputs": [{"name": "x", "type": "int64", "sizes": sizes, "fixed": fixed}],
        "outputs": [{"name": "y", "type": "float32", "sizes": [*sizes, 1], "fixed": fixed and [*fixed, 1]}],
    }
    words = {"main": MAIN.as_uri(), "description": description, "inputs": inputs}
    program = PROGRAM % {name: json.dumps(word) for name, word in words.items()}
    command = [NODE, "--input-type=module", "--no-warnings", "-e", program]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def numbers(*dims):
    count = dims[0] * dims[1]
    return {"dims": dims, "data": list(range(1, count + 1))}


@pytest.mark.parametrize("fixed", [None, [2, 4], [3, 5]])
def test_what_was_filled_up_is_cut_off_again(fixed):
    assert answer({"x": numbers(2, 3)}, fixed) == {"dims": [2, 3, 1], "data": [1, 2, 3, 4, 5, 6]}


@pytest.mark.parametrize("dims", [(3, 4), (2, 5)], ids=["batch", "length"])
def test_what_is_larger_than_the_model_is_refused(dims):
    (said,) = answer({"x": numbers(*dims)}, [2, 4]).values()
    assert said.startswith(f"input x is [{dims[0]},{dims[1]}] with ")
    assert said.endswith("the model is made for [2,4]")


def test_numbers_that_do_not_fill_the_sizes_are_refused():
    assert "such a tensor has 4" in answer({"x": {"dims": [2, 2], "data": [1, 2, 3]}}, None)["error"]
    assert "the model has 2 axes" in answer({"x": {"dims": [2], "data": [1, 2]}}, [2, 4])["error"]
    assert answer({}, None) == {"error": "input x is missing"}
