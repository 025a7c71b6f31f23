"""Whether a model is pruned correctly on this machine, measured on the model itself."""
