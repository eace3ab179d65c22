"""The loading example for Android, compiled by Kotlin's own compiler against the interfaces that it uses.

The compiler is a package of the npm registry and runs on Java; it is kept in the cache folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from edge.proof import CannotRunError, command, proof

PACKAGE = "kotlin-compiler"
STUBS = Path(__file__).with_name("kotlin")
TIMEOUT_S = 240


def compiled(examples: Sequence[Path], cache: Path) -> None:
    """Compile every example, each in a package of its own.

    Raises:
        CannotRunError: no compiler can be had here.
        NotProvenError: what it says about an example.
    """
    library = _installed(cache) / "node_modules" / PACKAGE
    with tempfile.TemporaryDirectory() as folder:
        sources = []
        for number, example in enumerate(examples):
            source = Path(folder) / f"Example{number}.kt"
            text = example.read_text(encoding="utf-8")
            source.write_text(f"package example{number}\n{text}", encoding="utf-8")
            sources.append(source)
        proof(
            *("java", "-cp", library / "lib" / "*", "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"),
            *("-no-reflect", "-nowarn", "-kotlin-home", library, "-d", Path(folder) / "classes"),
            *sorted(STUBS.glob("*.kt")),
            *sources,
            timeout=TIMEOUT_S,
        )


def _installed(cache: Path) -> Path:
    folder = cache / "kotlin"
    compiler = folder / "node_modules" / PACKAGE / "lib" / "kotlin-compiler.jar"
    if not compiler.is_file():
        folder.mkdir(exist_ok=True)
        quiet = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
        command("npm", "install", *quiet, PACKAGE, cwd=folder, timeout=240)
    if not compiler.is_file():
        raise CannotRunError(f"npm installed no {PACKAGE}")
    command("java", "-version")
    return folder
