"""Generation: a model that writes is run step by step, greedy or with beams, as transformers runs it."""
