"""One of several processes that train together; rank, count, meeting file, model and result are arguments."""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.distributed as dist

from graphcompress.fx import to_fx
from graphcompress.graph.model import Model


def batch() -> dict[str, torch.Tensor]:
    """Four rows of eight tokens."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(1, 100, (4, 8)))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def train(module: torch.nn.Module, feed: dict[str, torch.Tensor]) -> None:
    """Three steps of plain gradient descent."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        module(**feed)["last_hidden_state"].sin().mean().backward()
        optimizer.step()


def main() -> None:
    rank, count, meeting, path, result = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    module = to_fx(Model.load(path))
    rows = slice(rank * 4 // count, (rank + 1) * 4 // count)
    part = {name: tensor[rows] for name, tensor in batch().items()}
    train(torch.nn.parallel.DistributedDataParallel(module), part)
    if rank == 0:
        torch.save(module.state_dict(), result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
