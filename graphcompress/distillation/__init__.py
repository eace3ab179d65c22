"""Distillation: a rewritten model learns what its teacher answers; torch is imported inside only."""
