"""Optional packages: what is missing, for what, and how to install it."""

from __future__ import annotations

import importlib.util

from graphcompress.errors import MissingExtraError


def needs_torch(what: str, *packages: str) -> None:
    """Fail when PyTorch (or one of the other ``packages`` of the extra) is not installed.

    Raises:
        MissingExtraError: it names what is missing and the extra that brings it.
    """
    needs(what, "torch", "torch", *packages)


def needs(what: str, extra: str, *packages: str) -> None:
    """Fail when one of ``packages`` of the extra ``extra`` is not installed.

    Raises:
        MissingExtraError: it names what is missing and the extra that brings it.
    """
    # Looked for, not imported: torch alone takes seconds to load.
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{what} needs {' and '.join(missing)}, not installed here: pip install 'graphcompress[{extra}]'"
        )
