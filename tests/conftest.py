"""Fixtures that all tests share: a small BERT as a file and as a Model, and samples for it."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import onnx
import pytest
from bert import Bert
from hypothesis import HealthCheck, settings

from graphcompress.build import measuring
from graphcompress.data.load import Samples
from graphcompress.graph.model import Model
from graphcompress.targets.common import form_choice

ROOT = Path(__file__).parents[1]


def pytest_configure() -> None:
    """Say so when this checkout is installed as it was: what was added since would just not be found."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    for group, entries in declared.items():
        found = {entry.name: entry.value for entry in entry_points(group=group)}
        if not entries.items() <= found.items():
            raise pytest.UsageError(
                f"the entry points of {group} are not those of pyproject.toml; "
                f"install the package again: {sys.executable} -m pip install --no-deps -e {ROOT}"
            )


@pytest.fixture(scope="session")
def sequence_folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Name → folder of a tiny model that writes sequences, of ``sequence_models.NAMES``; do not change it."""
    from sequence_models import Folders

    return Folders(shared_by_workers(tmp_path_factory) / "sequences")


def shared_by_workers(factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run, the same in all of its processes."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _short_measurements() -> Iterator[None]:
    """What a build reports is measured as for a user, for no longer than it takes to have figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "BENCH_SECONDS", 0.5)
        patch.setattr(measuring, "STEP_SECONDS", 0.3)
        patch.setattr(measuring, "WRITING_ROUNDS", 3)
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measurements that are kept between runs are kept for one test run only, away from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_bert_proto() -> onnx.ModelProto:
    """2 layers, hidden 32, 4 heads, FFN 64, vocabulary 100, dynamic batch and sequence; do not change it."""
    return Bert().model()


@pytest.fixture(scope="session")
def tiny_bert_path(tiny_bert_proto: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_bert`` as a file; do not change it."""
    path = tmp_path_factory.mktemp("tiny_bert") / "model.onnx"
    onnx.save(tiny_bert_proto, path)
    return path


@pytest.fixture
def tiny_bert(tiny_bert_path: Path) -> Model:
    """A Model of its own for every test: edit it freely."""
    return Model.load(tiny_bert_path)


@pytest.fixture
def tiny_path_twin(tiny_bert_path: Path) -> Model:
    """A second ``tiny_bert``, to hold an edited one against."""
    return Model.load(tiny_bert_path)


@pytest.fixture(scope="session")
def tiny_samples() -> Samples:
    """24 random sentences of 4 to 27 tokens for ``tiny_bert``."""
    return random_samples(24)


def random_samples(count: int, *, vocabulary: int = 100, seed: int = 0) -> Samples:
    """Random token ids of varying length, as a tokenizer would feed them."""
    rng = np.random.default_rng(seed)
    lengths = 4 + rng.permutation(count)
    feeds = [
        {
            "input_ids": rng.integers(1, vocabulary, length),
            "attention_mask": np.ones(length, np.int64),
            "token_type_ids": np.zeros(length, np.int64),
        }
        for length in lengths
    ]
    return Samples(feeds)


@pytest.fixture
def quick_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms are measured in one short round, and kept for this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(form_choice, "FORM_ROUNDS", 1)
    monkeypatch.setattr(form_choice, "FORM_TURN_SECONDS", 0.0)
