"""Pruned models inside other programs: lmms-eval, and whoever serves them."""
