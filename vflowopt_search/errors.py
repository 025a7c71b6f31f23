"""What can go wrong, as one tree; every message gives the value, the rule and the way out.

VFlowOptError
├── StrategyError       a strategy file or value is wrong, or belongs to another model
├── BudgetError         no keep ratios meet the asked budget with these stages
├── SearchSpaceError    a search-space or study-recipe file is wrong
├── ModelError          a model cannot be loaded, or is not one that can be pruned
│   ├── UnsupportedError    the model is known, but not what is asked of it
│   │   └── ProcessorNeededError    nothing can be asked of the model without its processor
│   └── OutOfMemoryError    a single sample does not fit in memory
├── CalibrationError    the calibration set cannot be read or is unusable
│   └── NothingLeftError    no usable row is left behind those that were passed over
├── CacheError          what was stored for a model cannot be written or read
├── EvaluationError     answers cannot be scored, kept or read again
├── DivergenceError     a comparison gave a number that is not finite
├── StudyError          the study cannot be created, resumed or exported
└── BenchmarkError      a benchmark cannot be run, or its file cannot be read
"""

from __future__ import annotations


class VFlowOptError(Exception):
    """Base of every error that this package raises on purpose."""


class StrategyError(VFlowOptError, ValueError):
    """A strategy file or value is wrong, or belongs to another model."""


class BudgetError(VFlowOptError, ValueError):
    """No keep ratios meet the asked budget with these stages."""


class SearchSpaceError(VFlowOptError, ValueError):
    """A search-space or study-recipe file is wrong."""


class ModelError(VFlowOptError):
    """A model cannot be loaded, or is not one that can be pruned."""


class UnsupportedError(ModelError):
    """The model is known, but not what is asked of it."""


class ProcessorNeededError(UnsupportedError):
    """Nothing can be asked of the model without its processor."""


class OutOfMemoryError(ModelError):
    """A single sample does not fit in memory."""


class CalibrationError(VFlowOptError):
    """The calibration set cannot be read or is unusable."""


class CacheError(VFlowOptError):
    """What was stored for a model cannot be written or read."""


class EvaluationError(VFlowOptError):
    """Answers cannot be scored, kept or read again."""


class NothingLeftError(CalibrationError):
    """The rows behind those that were passed over hold no usable sample."""


class DivergenceError(VFlowOptError, ArithmeticError):
    """A comparison gave a number that is not finite."""


class StudyError(VFlowOptError):
    """The study cannot be created, resumed or exported."""


class BenchmarkError(VFlowOptError):
    """A benchmark cannot be run, or its file cannot be read."""


def first_line(error: BaseException) -> str:
    """What an exception of another package says, without the lines that follow; else its name."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
