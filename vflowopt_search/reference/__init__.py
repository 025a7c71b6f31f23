"""What does not depend on a strategy, computed once: the unpruned model and its vision features."""
