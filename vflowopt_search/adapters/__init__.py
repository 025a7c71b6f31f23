"""One file per model family, and how models and processors are loaded."""
