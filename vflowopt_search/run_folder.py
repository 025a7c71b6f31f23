"""What a search leaves in its folder, by file name."""

from __future__ import annotations

JOURNAL = "study.journal"
"""The Optuna study."""
STRATEGY = "strategy.json"
"""The best strategy."""
TRIALS = "trials.parquet"
"""All trials as a table."""
BASELINES = "baselines.json"
"""Name of each plain strategy to its mean divergence at the same budget."""
REPORT = "report.html"
"""The page of figures."""
