"""A plan as text: what goes of every block, so that a recipe makes the same model again on any machine."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from graphcompress.errors import DataError
from graphcompress.passes.prune.goal_planner import GoalPlanner
from graphcompress.passes.prune.goals import Reached
from graphcompress.passes.prune.removal import Removal
from graphcompress.passes.prune.widths import Planned, Wide


def plan_text(plan: Planned) -> str:
    """What goes, and what was told of it; of every block the units that stay, as the digits of one number."""
    reached = plan.reached
    stays = {each.block.name: np.packbits(each.keep).tobytes().hex() for each in reached.removals}
    found = {"hidden": plan.at.hidden, "outcome": reached.outcome, "notes": list(reached.notes)}
    found["stays"] = stays
    return json.dumps(found, ensure_ascii=False, sort_keys=True)


def as_planned(full: Wide, text: str, narrowed: Callable[[Wide, float], Wide | None]) -> Planned:
    """What :func:`plan_text` wrote, carried over to a model of the full width, narrowed and refitted here.

    Raises:
        DataError: the text is of another version, or of another model.
    """
    try:
        plan = json.loads(text)
        hidden = float(plan.get("hidden", 0.0))
        at = narrowed(full, hidden) if hidden else full
        planner = (at or full).planner
        removals = [_removal(planner, name, digits) for name, digits in plan["stays"].items()]
        outcome = str(plan.get("outcome", ""))
        notes = [str(note) for note in plan["notes"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"prune: [pinned] in the recipe is of another version or of another model ({error}); "
            "remove [pinned] from the recipe to choose anew"
        ) from error
    planner.fitted(removals)
    return Planned(at or full, Reached(removals, outcome, notes))


def _removal(planner: GoalPlanner, name: str, digits: str) -> Removal:
    block = {block.name: block for block in planner.blocks}[name]
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))
    if len(bits) != -(-block.size // 8) * 8:
        raise ValueError(f"{name} has {block.size} units")
    return Removal(block, np.flatnonzero(bits[: block.size] == 0))
