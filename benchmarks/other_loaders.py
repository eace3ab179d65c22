"""Whether other libraries load an artifact unchanged and answer as this package does.

optimum-onnx pins an older transformers, so that it gets an environment of its own; transformers.js runs in
Node.js, and in headless Chromium where that is installed. Environment and folder are made once::

    python benchmarks/other_loaders.py small --environment ~/optimum --text "A man sits on a bench."
    python benchmarks/other_loaders.py small --node ~/transformers-js --text "A man sits on a bench."

It ends with 0 where all write the same tokens as ``graphcompress generate``: optimum greedily and with 4
beams, transformers.js, which has no beam search, greedily, and after reading the text with its own tokenizer.
Of a model that does not write, outputs are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from graphcompress import session
from graphcompress.artifact.opening import described
from graphcompress.data.inputs import inputs_of
from graphcompress.files.part_files import SHARED_FILE
from graphcompress.files.parts import SUBFOLDER, read_parts
from graphcompress.generation.generator import Generator, open_generator

OPTIMUM, NODE = ("optimum-onnx==0.1.0", "onnxruntime"), "@huggingface/transformers@4.3.2"
BEAMS = (1, 4)
NEW_TOKENS = 32
TOLERANCE = 1e-3
"""Largest difference of an output, as a share of its largest entry: runtimes add in different orders."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_TIMEOUT_S = 240

IN_PYTHON = """
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

SCRIPT = Path(__file__).with_name("transformers_js.mjs")

IN_NODE = f"""
import * as library from "@huggingface/transformers";
import {{ answers }} from {json.dumps(SCRIPT.as_uri())};
console.log(JSON.stringify(await answers(library, JSON.parse(process.argv[1]))));
"""

IN_BROWSER = """<!doctype html><script type="module">
const send = (kind, content) => fetch(`/${kind}`, { method: "POST", body: JSON.stringify(content) });
try {
  const library = await import("/node_modules/@huggingface/transformers/dist/transformers.js");
  const { answers } = await import("/transformers_js.mjs");
  library.env.backends.onnx.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
  await send("answers", await answers(library, await (await fetch("/given.json")).json()));
} catch (error) {
  await send("error", String(error));
}
</script>"""


# ---- optimum


def optimum(environment: Path, asked: Mapping[str, Any]) -> list[list[int]]:
    """What optimum's classes write, in an environment that is made where it is not there."""
    python = environment / "bin" / "python"
    if not python.is_file():
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *OPTIMUM], check=True)
    found: list[list[int]] = _last_line([str(python), "-c", IN_PYTHON, json.dumps(asked)])
    return found


def compare_optimum(model: Generator, artifact: Path, environment: Path, texts: Sequence[str]) -> int:
    """Number of answers that differ, each told."""
    name = model.parts[0].input("ids") or ""
    prompts = model.prompts(texts)
    own = [
        _own_tokens(model, prompt, beams)  # in the order in which the other environment goes
        for beams in BEAMS
        for prompt in prompts
    ]
    asked = {
        "folder": str(artifact.resolve()),
        "encodes": model.parts[0].role == "encoder",
        "prompts": [prompt[name].tolist() for prompt in prompts],
        "beams": BEAMS,
        "tokens": NEW_TOKENS,
    }
    others = optimum(environment, asked)
    return sum(
        _tell("optimum", _bare(model, mine), _bare(model, other[len(model.settings.start) :]))
        for mine, other in zip(own, others, strict=True)
    )


# ---- transformers.js


def installed(node: Path) -> Path:
    """``node``, a folder with transformers.js in it, which npm installs where it is not there."""
    if not (node / "node_modules" / "@huggingface" / "transformers").is_dir():
        node.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--prefix", node, NODE], check=True)
    return node


def in_node(node: Path, artifact: Path, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What transformers.js answers in Node.js."""
    given = json.dumps({**asked, "folder": f"{artifact.parent}/"})
    found: list[dict[str, Any]] = _last_line(["node", "--input-type=module", "-e", IN_NODE, given], node)
    return found


def in_browser(browser: str, node: Path, artifact: Path, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What transformers.js answers in a browser without a window.

    Raises:
        RuntimeError: the page shows an error.
    """
    shared = {"shared": [SHARED_FILE]} if (artifact / SHARED_FILE).is_file() else {}
    given = json.dumps({**asked, **shared, "folder": "/models/"})
    with _served(node, artifact, given) as (address, said), tempfile.TemporaryDirectory() as profile:
        flags = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            f"--user-data-dir={profile}",
        )
        process = subprocess.Popen([browser, *flags, address], stderr=subprocess.DEVNULL)
        try:
            kind, content = said.get(timeout=BROWSER_TIMEOUT_S)
        finally:
            process.terminate()
            process.wait(timeout=20)
    if kind != "answers":
        raise RuntimeError(f"transformers.js in {browser}: {content}")
    found: list[dict[str, Any]] = content
    return found


Said = queue.Queue[tuple[str, Any]]


class _Site(http.server.SimpleHTTPRequestHandler):
    """The page, the library and the artifact; what the page sends is put into ``said``."""

    extensions_map = {  # noqa: RUF012 - as the base class has it
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401 - what the base class takes
        node: Path,
        artifact: Path,
        given: str,
        said: Said,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self._folders = {"node_modules": node / "node_modules", "models": artifact.parent}
        self._given, self._said = given, said
        super().__init__(*arguments, **options)

    def translate_path(self, path: str) -> str:
        first, _, rest = path.partition("?")[0].lstrip("/").partition("/")
        return str(self._folders[first] / rest if first in self._folders else SCRIPT)

    def do_GET(self) -> None:
        """Answer with the page or what it is told, or with a file."""
        own = {"/": ("text/html", IN_BROWSER), "/given.json": ("application/json", self._given)}
        if self.path not in own:
            super().do_GET()
            return
        kind, text = own[self.path]
        self._answer(kind, text.encode())

    def do_POST(self) -> None:
        """Take what the page found."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self._said.put((self.path.strip("/"), json.loads(content)))
        self._answer("text/plain", b"")

    def _answer(self, kind: str, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def _served(node: Path, artifact: Path, given: str) -> Iterator[tuple[str, Said]]:
    said: Said = queue.Queue()
    handler = functools.partial(_Site, node=node, artifact=artifact, given=given, said=said)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/", said
        finally:
            server.shutdown()
            thread.join()


def compare_transformers_js(artifact: Path, node: Path, texts: Sequence[str]) -> int:
    """Number of answers that differ in Node.js and in a browser, each told."""
    artifact = artifact.resolve()
    parts = read_parts(artifact)
    encodes = any(part.role == "encoder" for part in parts)
    kind = "encodes" if encodes else "continues" if parts else "answers"
    asked = {
        "name": artifact.name,
        "subfolder": SUBFOLDER if (artifact / SUBFOLDER).is_dir() else "",
        "kind": kind,
        "texts": texts,
        "tokens": NEW_TOKENS,
    }
    found = {"Node.js": in_node(installed(node), artifact, asked)}
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("no browser is installed: Node.js alone")
    else:
        found[Path(browser).name] = in_browser(browser, node, artifact, asked)
    compare = _differing_outputs if kind == "answers" else _differing_tokens
    return sum(
        compare(artifact, texts, f"transformers.js, {where}", others) for where, others in found.items()
    )


def _differing_tokens(artifact: Path, texts: Sequence[str], where: str, others: list[dict[str, Any]]) -> int:
    model = open_generator(artifact)
    name, different = model.parts[0].input("ids") or "", 0
    for prompt, other in zip(model.prompts(texts), others, strict=True):
        different += _tell(f"{where}: reads", prompt[name].tolist(), other["ids"])
        mine, theirs = _own_tokens(model, prompt, 1), other["written"][len(model.settings.start) :]
        different += _tell(f"{where}: writes", _bare(model, mine), _bare(model, theirs))
    return different


def _differing_outputs(artifact: Path, texts: Sequence[str], where: str, others: list[dict[str, Any]]) -> int:
    """Outputs that differ; the ids are those that transformers.js reads."""
    run, names, different = session(artifact), inputs_of(described(artifact)), 0
    for text, other in zip(texts, others, strict=True):
        ids = np.array([other["ids"]])
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        for name, expected in run({name: known[name] for name in names}).items():
            actual = np.array(other["outputs"][name]).reshape(expected.shape)
            error = float(np.abs(actual - expected).max() / np.abs(expected).max())
            print(f"{where}: {name} after {text!r} differs by {error:.1e} of its range")
            different += not error <= TOLERANCE
    return different


# ---- both


def _last_line(command: Sequence[str], folder: Path | None = None) -> Any:  # noqa: ANN401 - JSON
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
    return json.loads(done.stdout.splitlines()[-1])


def _own_tokens(model: Generator, prompt: Mapping[str, np.ndarray], beams: int) -> list[int]:
    settings = replace(model.settings, num_beams=beams, max_new_tokens=NEW_TOKENS)
    return list(model.with_settings(settings).ids([prompt], batch=1)[0])


def _bare(model: Generator, tokens: Sequence[int]) -> list[int]:
    """``tokens`` without the end."""
    return [token for token in tokens if token not in model.settings.eos_token_id]


def _tell(what: str, mine: list[int], other: list[int]) -> bool:
    print(f"{what}: {'the same' if mine == other else f'{mine} here and {other} there'}")
    return mine != other


def main() -> None:
    """Read the command line, answer with each library, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--environment", type=Path, help="environment with optimum-onnx")
    parser.add_argument("--node", type=Path, help="folder with transformers.js")
    parser.add_argument("--text", action="append", required=True)
    given = parser.parse_args()
    if given.environment is None and given.node is None:
        parser.error("give --environment, --node or both")
    different = 0
    if given.environment is not None:
        writer = open_generator(given.artifact)
        different += compare_optimum(writer, given.artifact, given.environment, given.text)
    if given.node is not None:
        different += compare_transformers_js(given.artifact, given.node, given.text)
    sys.exit(int(different > 0))


if __name__ == "__main__":
    main()
