"""The arithmetic: one folder per operation; `reference.py` is plain differentiable PyTorch, the oracle of the rest."""
