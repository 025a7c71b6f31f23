"""How important is each visual token: signals of a model, scores over them, a registry by name."""
