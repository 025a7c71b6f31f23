"""Pruning visual tokens inside a stock transformers model, from outside, with hooks."""
