"""Processes that train one model together: gradients are summed, one process decides for all."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
import torch.distributed as dist

from graphcompress.errors import GraphCompressError
from graphcompress.training.processes import processes, rank

T = TypeVar("T")


class ProcessGroup:
    """The processes of this run; with one process everything is as it is.

    A launcher (``torchrun``, ``accelerate launch``) says who takes part through environment variables; a
    process group that exists already is used; one that is made here stays until the process ends.
    """

    def __init__(self) -> None:
        if processes() > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            # Another training may follow, and a group that is left and made anew at the same place hangs
            # where one process arrives before another has left.
            atexit.register(dist.destroy_process_group)
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else rank()
        self.size = dist.get_world_size() if together else 1

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace every tensor by its sum over the processes."""
        if self.size == 1:
            return
        for tensor in tensors:
            dist.all_reduce(tensor)

    def from_first(self, value: T) -> T:
        """What the first process has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def of_all(self, value: T) -> list[T]:
        """What every process has, the first one's first."""
        if self.size == 1:
            return [value]
        found: list[T] = [value] * self.size
        dist.all_gather_object(found, value)
        return found


def of_first_process(decide: Callable[[], str]) -> str:
    """What ``decide`` says in the first process: others measure other times, and would train another model.

    Raises:
        GraphCompressError: the first process could not decide; all say why.
    """
    group, mine, refused = ProcessGroup(), "", None
    try:
        mine = decide() if group.rank == 0 else ""
    except GraphCompressError as error:
        refused = error
    decided, why = group.from_first((mine, refused))
    if why is not None:
        raise why
    return decided
