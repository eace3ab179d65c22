"""The worked example of CONTRIBUTING.md does what the page says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from plugins import installed

from graphcompress import optimize, session
from graphcompress.build.report import target_lines
from graphcompress.data.load import Samples
from graphcompress.errors import UsageError
from graphcompress.plugin.reference import describe
from graphcompress.plugin.registry import TARGETS

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
PASS, TESTS, TARGET = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(ENTRY,) = re.findall(r"^```toml\n(\w+) = \"(.*?)\"\n```$", PAGE, re.MULTILINE)
(TARGET_ENTRY,) = re.findall(
    r"^\[project.*\"graphcompress.targets\"\]\n(\w+) = \"(.*?)\"", PAGE, re.MULTILINE
)
NAMES = re.findall(r"^def (test_\w+)", TESTS, re.MULTILINE)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Names of the example's tests, with its pass imported and registered as the page says."""
    name, target = ENTRY
    module_name = target.partition(":")[0]
    path = tmp_path / f"{name}.py"
    path.write_text(PASS, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module_name, module)
    spec.loader.exec_module(module)
    installed(monkeypatch, tmp_path, "example", passes={name: target})
    names: dict[str, object] = {}
    exec(compile(TESTS, "CONTRIBUTING.md", "exec"), names)
    return names


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_the_page(
    name: str, example: dict[str, object], request: pytest.FixtureRequest
) -> None:
    test = example[name]
    assert callable(test)
    arguments = test.__code__.co_varnames[: test.__code__.co_argcount]
    test(*(request.getfixturevalue(argument) for argument in arguments))


def test_the_target_of_the_page(
    tiny_bert_path: Path, tmp_path: Path, tiny_samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, place = TARGET_ENTRY
    module, _, _ = place.partition(":")
    installed(monkeypatch, tmp_path / "site", module, TARGET, targets={name: place})
    targets = "cpu{measure=false},plain{file=m.onnx}"
    build = optimize(
        tiny_bert_path, "int8", target=targets, data=tiny_samples, output=tmp_path / "out", allow=["int8"]
    )
    assert ("plain", "written as it is") in target_lines(build)
    assert session(tmp_path / "out" / "plain")(tiny_samples.batch([0]))
    assert describe(TARGETS.find("plain")).options[0].help == "name of the file"
    for asked, words in (("plain{file=m.ort}", "change file"), ("plain", "change activations")):
        with pytest.raises(UsageError, match=words):
            optimize("missing.onnx", "int8{activations=uint8}", target=asked, data=tiny_samples)


def test_the_map_names_what_exists() -> None:
    root = Path(__file__).parents[1]
    for cell in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE):
        base = root
        for place in re.findall(r"`(.*?)`", cell):
            path = base / place if (base / place).exists() else root / place
            assert path.exists(), place
            base = path.parent
