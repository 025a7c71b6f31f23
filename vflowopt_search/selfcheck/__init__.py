"""Whether a model is pruned right on this machine, measured on the model itself."""
