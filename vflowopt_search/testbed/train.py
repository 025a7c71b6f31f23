"""Train the testbed from nothing: `python -m vflowopt_search.testbed.train [--resume]`.

Steps, not minutes, end each phase, and every row of data is a function of (seed, step, row): a run
that is killed and resumed gives the weights of one that was not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from vflowopt_search.testbed.batches import make_batch
from vflowopt_search.testbed.curriculum import DEFAULT_STEPS, Curriculum, Phase, make_curriculum
from vflowopt_search.testbed.export import export_weights
from vflowopt_search.testbed.losses import DenseHead, LlavaModel, StepLosses, step_losses
from vflowopt_search.testbed.model import make_model
from vflowopt_search.testbed.muon import Muon

CHECKPOINT_EVERY = 100
REPORT_EVERY = 20
VALIDATE_EVERY = 100
_VALIDATION_STEP = 10_000_000  # validation rows never share a seed with a training step


@dataclass
class Learner:
    """All that changes during training."""

    model: LlavaModel
    head: DenseHead
    optimizers: tuple[torch.optim.Optimizer, ...]
    step: int = 0

    @classmethod
    def new(cls, curriculum: Curriculum) -> Learner:
        """Untrained, from the curriculum's seed."""
        model = make_model(curriculum.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(curriculum.seed)
            head = DenseHead()
        matrices, others = _split_parameters(model)
        others += list(head.parameters())
        rate = curriculum.peak_rate
        adamw = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
        return cls(model, head, (Muon(matrices, lr=rate), adamw))

    def save(self, path: Path) -> None:
        """Write everything to one file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def _split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices for Muon; embeddings, patch projection, norms and biases for AdamW."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if is_matrix else others).append(parameter)
    return matrices, others


def train(
    curriculum: Curriculum, checkpoint: Path, out: Path | None = None, resume: bool = False
) -> LlavaModel:
    """Run all phases; export to `out` at every checkpoint of the last phase and at the end."""
    learner = Learner.new(curriculum)
    if resume and checkpoint.exists():
        learner.load(checkpoint)
    for losses in _steps(learner, curriculum):
        phase = curriculum.phase_at(learner.step - 1)
        if learner.step % REPORT_EVERY == 0:
            _report(learner.step, phase, losses)
        if learner.step % VALIDATE_EVERY == 0 and phase.kind != "tower":
            _report(learner.step, phase, validate(learner, curriculum, phase), "validation")
        if learner.step % CHECKPOINT_EVERY == 0 or learner.step == curriculum.num_steps:
            learner.save(checkpoint)
            if out is not None and phase.kind == "full":
                export_weights(learner.model, out)
    return learner.model


def _steps(learner: Learner, curriculum: Curriculum) -> Iterator[StepLosses]:
    while learner.step < curriculum.num_steps:
        phase = curriculum.phase_at(learner.step)
        losses = train_step(learner, curriculum, phase)
        learner.step += 1
        yield losses


def train_step(learner: Learner, curriculum: Curriculum, phase: Phase) -> StepLosses:
    """One update of every parameter that the phase reaches."""
    batch = make_batch(phase, curriculum.seed, learner.step)
    learner.model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = step_losses(learner.model, learner.head, batch, phase.dense_weight)
    losses.total.backward()  # type: ignore[no-untyped-call]
    parameters = [*learner.model.parameters(), *learner.head.parameters()]
    nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
    for optimizer in learner.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = curriculum.peak_rate * phase.rate_at(learner.step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses


@torch.no_grad()
def validate(
    learner: Learner, curriculum: Curriculum, phase: Phase, num_batches: int = 4
) -> StepLosses:
    """Mean losses on scenes with digits of the validation split, all kinds of questions."""
    learner.model.train(False)
    found = []
    for index in range(num_batches):
        batch = make_batch(phase, curriculum.seed, _VALIDATION_STEP + index, "validation")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(step_losses(learner.model, learner.head, batch, phase.dense_weight))
    return StepLosses(
        torch.stack([f.total for f in found]).mean(),
        sum(f.dense for f in found) / num_batches,
        sum(f.answer for f in found) / num_batches,
        sum(f.accuracy for f in found) / num_batches,
    )


def _report(step: int, phase: Phase, losses: StepLosses, split: str = "train") -> None:
    print(
        f"{time.strftime('%H:%M:%S')} step {step} {phase.kind} {split} "
        f"dense {losses.dense:.4f} answer {losses.answer:.4f} accuracy {losses.accuracy:.3f}",
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/testbed/checkpoint.pt"))
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=DEFAULT_STEPS,
        help="of each phase of the recipe",
    )
    args = parser.parse_args()
    curriculum = make_curriculum(tuple(args.steps), args.seed)
    train(curriculum, args.checkpoint, args.out, args.resume)


if __name__ == "__main__":
    main()
