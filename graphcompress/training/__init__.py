"""What every pass that trains shares: batches, losses, the loop, checkpoints, processes."""
