"""Targets as the user types them, what several of them have in common, and where their artifacts go."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from graphcompress.errors import UsageError
from graphcompress.plugin.base import Target
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.options import build, split_calls
from graphcompress.plugin.registry import TARGETS
from graphcompress.plugin.schemes import described


def parse_targets(text: str) -> tuple[Target, ...]:
    """Read ``cpu`` or ``cpu{option=value},mobile``.

    Raises:
        UsageError: an unknown target or option, none at all, or one of them twice.
    """
    calls = split_calls(text)
    if not calls:
        raise UsageError(f"no target is given; known: {', '.join(TARGETS.names())}")
    return distinct([build(TARGETS.find(name), name, options) for name, options in calls])


def parse_target(text: str) -> Target:
    """Read ``cpu`` or ``cpu{option=value}``.

    Raises:
        UsageError: an unknown target or option, or not exactly one target.
    """
    targets = parse_targets(text)
    if len(targets) != 1:
        raise UsageError(f"expected one target, got {text!r}; known: {', '.join(TARGETS.names())}")
    return targets[0]


def distinct(targets: Sequence[Target]) -> tuple[Target, ...]:
    """``targets``, no two of which have one name: the name is the folder of the artifact.

    Raises:
        UsageError: two have.
    """
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"target {name} is named twice; build it twice, into two folders")
    return tuple(targets)


def common_capabilities(targets: Sequence[Target]) -> Capabilities:
    """What all ``targets`` can run, so that one compressed model suits them all.

    Raises:
        UsageError: each runs quantised products, but none that runs on all of them.
    """
    common = functools.reduce(Capabilities.common, (target.capabilities for target in targets))
    if not common.schemes and all(target.capabilities.schemes for target in targets):
        kinds = "; ".join(f"{target.name}: {described(target.capabilities.schemes)}" for target in targets)
        raise UsageError(f"no quantised products run on all targets ({kinds}); build them one at a time")
    return common


def artifact_folders(output: Path, targets: Sequence[Target]) -> dict[str, Path]:
    """Target name → folder of its artifact: ``output``, or a folder in it for each of several."""
    if len(targets) == 1:
        return {targets[0].name: output}
    return {target.name: output / target.name for target in targets}
