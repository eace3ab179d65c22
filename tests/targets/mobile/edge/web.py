"""onnxruntime-web from the npm registry, kept in the cache folder."""

from __future__ import annotations

from pathlib import Path

from edge.proof import CannotRunError, command

PACKAGE = "onnxruntime-web"


def installed_web(cache: Path) -> Path:
    """The folder that holds ``node_modules``; installs the package when it is not there.

    Raises:
        CannotRunError: no Node.js, or the registry is out of reach.
    """
    folder = cache / "web"
    if not (folder / "node_modules" / PACKAGE / "dist").is_dir():
        folder.mkdir(exist_ok=True)
        quiet = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
        command("npm", "install", *quiet, PACKAGE, cwd=folder, timeout=240)
    if not (folder / "node_modules" / PACKAGE / "dist").is_dir():
        raise CannotRunError(f"npm installed no {PACKAGE}")
    return folder
