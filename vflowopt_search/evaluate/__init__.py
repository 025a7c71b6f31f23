"""Accuracy kept, on labelled data, with intervals; and whether a divergence predicts it."""
