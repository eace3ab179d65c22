"""The wheel: what is in it, and that it works where only it is installed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from graphcompress.plugin.registry import KINDS

ROOT = Path(__file__).parents[1]


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the sources with the tools of this environment."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "graphcompress", "passes", "targets"):
        if (ROOT / name).exists():
            subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    done = python(code, source)
    assert done.returncode == 0, done.stderr[-2000:]
    return zipfile.ZipFile(next(out.glob("graphcompress-*.whl")))


def test_the_only_top_level_name_is_the_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"graphcompress"}


def test_every_module_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "graphcompress").rglob("*.py")}
    for package in ("passes", "targets"):
        wanted |= {
            f"graphcompress/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / package).rglob("*.py")
        }
    assert wanted <= set(wheel.namelist())


def test_types_and_licence_are_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "graphcompress/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_works_from_another_folder(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    wanted = {kind.plural: sorted(entries[f"graphcompress.{kind.plural}"]) for kind in KINDS}
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import graphcompress\n"
        f"assert graphcompress.__file__.startswith({str(tmp_path)!r}), graphcompress.__file__\n"
        "from graphcompress.plugin.registry import KINDS\n"
        "for kind in KINDS: [kind.find(name) for name in kind.names()]\n"
        "print({kind.plural: kind.names() for kind in KINDS})"
    )
    done = python(code, tmp_path)
    assert done.stdout.strip() == str(wanted), done.stderr


def test_the_command_is_an_entry_point(wheel: zipfile.ZipFile) -> None:
    text = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "graphcompress = graphcompress.cli:main" in text
