"""A plan as text: what goes of every block, so that a recipe makes the same model again on any machine."""

from __future__ import annotations

import json

import numpy as np

from graphcompress.errors import DataError
from graphcompress.passes.prune.goal_planner import GoalPlanner
from graphcompress.passes.prune.goals import Reached
from graphcompress.passes.prune.removal import Removal


def plan_text(reached: Reached) -> str:
    """What goes, and what was told of it; of every block the units that stay, as the digits of one number."""
    stays = {each.block.name: np.packbits(each.keep).tobytes().hex() for each in reached.removals}
    return json.dumps({"notes": list(reached.notes), "stays": stays}, ensure_ascii=False, sort_keys=True)


def as_planned(planner: GoalPlanner, text: str) -> Reached:
    """What :func:`plan_text` wrote, carried over to the blocks of ``planner`` and refitted here.

    Raises:
        DataError: the text is of another version, or of another model.
    """
    try:
        plan = json.loads(text)
        removals = [_removal(planner, name, digits) for name, digits in plan["stays"].items()]
        notes = [str(note) for note in plan["notes"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"prune: [pinned] in the recipe is of another version or of another model ({error}); "
            "remove [pinned] from the recipe to choose anew"
        ) from error
    planner.fitted(removals)
    return Reached(removals, notes)


def _removal(planner: GoalPlanner, name: str, digits: str) -> Removal:
    block = {block.name: block for block in planner.blocks}[name]
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))
    if len(bits) != -(-block.size // 8) * 8:
        raise ValueError(f"{name} has {block.size} units")
    return Removal(block, np.flatnonzero(bits[: block.size] == 0))
