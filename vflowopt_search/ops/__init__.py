"""What pruning computes on tensors, in plain torch; import each from the module that defines it."""
