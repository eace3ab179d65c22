"""Options of the command line that are short for options of a target: ``--shapes`` for ``cpu{shapes=…}``."""

from __future__ import annotations

import dataclasses


def with_options(targets: str, *, override: bool = False, **values: str | None) -> str:
    """The text of ``targets`` with ``values`` as options of every target that has them.

    Values that are None are left out; with ``override`` they win over what the text says.

    Raises:
        UsageError: none of the targets has such an option, or one of them has it already.
    """
    from graphcompress.errors import UsageError
    from graphcompress.plugin.options import build, split_calls
    from graphcompress.plugin.registry import TARGETS

    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        return targets
    calls = split_calls(targets)
    known = {name: {entry.name for entry in dataclasses.fields(TARGETS.find(name))} for name, _ in calls}
    for option, value in given.items():
        takers = [options for name, options in calls if option in known[name]]
        if not takers:
            raise UsageError(f"--{option} is for targets that measure; {targets} has no option {option!r}")
        for options in takers:
            # A recipe's target may say the same option: what is typed now wins over it, but not over what is
            # typed beside it.
            if override:
                options[option] = value
            elif options.setdefault(option, value) != value:
                raise UsageError(f"--{option} {value} and {targets} say different things; give one of them")
    return ",".join(str(build(TARGETS.find(name), name, options)) for name, options in calls)
