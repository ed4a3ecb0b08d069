"""Numerical safety: a step whose loss or gradient is not finite changes nothing, and a run of them is not endured."""

import json
from collections import deque
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from triptych import disk
from triptych.callback.clock import Steps, images_seen

FOLDER = "guard"
ENDURED_WHILE_SCALING = 32  # a gradient scaler overflows on purpose, and halves its scale each time
FLAT = 1e-2  # standard deviation of a grid in [-1, 1] below which there is no picture


class NotFinite(ArithmeticError):
    """Steps in a row with a loss or a gradient that is not finite.

    Attributes:
        first: the first such optimizer step of the row. evidence: the file that tells more.
    """

    def __init__(self, message: str, first: int, evidence: Path) -> None:
        super().__init__(message)
        self.first, self.evidence = first, evidence


class Guard(Callback):
    """Skips a step with a non-finite loss or gradient, counts it, and ends training after some in a row.

    Nothing waits for the device at a step: a non-finite loss makes its gradients so (see the end of
    `Formulation.training_step`), hence the norm of all processes' average; with fused optimizers the step itself is
    told on the device to change nothing, with others the gradient is zeroed there (momentum goes on). The norms are
    read every `every_n_steps`. They are the same on every process, hence what follows from them is.

    Under 16-mixed the gradient scaler skips; there a longer row is endured, since it overflows to find its scale.

    Args:
        in_a_row: skipped steps in a row after which the run goes back to its last checkpoint, or stops.
        every_n_steps: optimizer steps between two looks.
    """

    def __init__(self, in_a_row: int = 5, every_n_steps: int = 50) -> None:
        if in_a_row < 1 or every_n_steps < 1:
            raise ValueError(f"callback.guard: in_a_row ({in_a_row}) and every_n_steps must be at least 1.")
        self.in_a_row, self.every_n_steps = in_a_row, every_n_steps
        self.skipped = 0  # steps, of the whole run
        self.steps = Steps()
        self._norms = torch.empty(0)  # of the last steps, on the device; step k (from 0) is in row k mod their number
        self._looked = 0  # the step up to which norms have been judged
        self._row = 0  # bad steps in a row, up to there
        self._window: list[float] = []
        self._draws: deque[tuple[int, Tensor, Tensor]] = deque()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.start(trainer)
        self._looked = trainer.global_step
        self._norms = torch.zeros(2 * self.every_n_steps, device=pl_module.device)
        self._draws = deque(maxlen=2 * self.every_n_steps * trainer.accumulate_grad_batches)
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        pl_module.on_gradients = lambda optimizer, norm: self.judge(trainer.global_step, optimizer, norm)  # pyright: ignore

    @torch.no_grad()
    def judge(self, step: int, optimizer: torch.optim.Optimizer, norm: Tensor) -> None:
        """Called with the gradient's norm before clipping, before each optimizer step."""
        self._norms[step % len(self._norms)].copy_(norm)
        if self._scaler is not None:
            return
        bad = (norm * 0).nan_to_num_(nan=1.0)  # 1 or 0, as the optimizers want it; in two kernels
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf, optimizer.grad_scale = bad, None  # pyright: ignore[reportAttributeAccessIssue]
            return
        bad = bad > 0
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.masked_fill_(bad, 0.0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        draw = getattr(pl_module, "drawn", None)
        stepped = self.steps.advanced(trainer)
        if draw is not None:
            self._draws.append((trainer.global_step - stepped, *draw))
        if stepped and trainer.global_step % self.every_n_steps == 0:
            self.look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.look(trainer, pl_module)
        pl_module.on_gradients = None  # pyright: ignore

    def look(self, trainer: Trainer, pl_module: LightningModule) -> list[float]:
        """Reads the norms since the last look and judges them; returns those since the last log, see `take`."""
        begin, end = self._looked, trainer.global_step
        if begin == end:
            return self._window
        norms = self._norms.tolist()  # waits for the device
        endured = self.in_a_row if self._scaler is None else max(self.in_a_row, ENDURED_WHILE_SCALING)
        for step in range(begin, end):
            norm = norms[step % len(norms)]
            bad = not -float("inf") < norm < float("inf")
            self._row = self._row + 1 if bad else 0
            self.skipped += bad
            self._window.append(norm)
            if self._row >= endured:
                self._looked = end
                self._give_up(trainer, pl_module, step + 1 - self._row, norms)
        self._looked = end
        return self._window

    def in_bad_row(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether the last step was skipped; waits for the device."""
        self.look(trainer, pl_module)
        return self._row > 0

    def take(self, trainer: Trainer, pl_module: LightningModule) -> list[float]:
        """The norms of the steps since it was called last."""
        window, self._window = self.look(trainer, pl_module), []
        return window

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        window = self.look(trainer, pl_module)
        checkpoint["guard"] = {"skipped": self.skipped, "row": self._row, "window": list(window)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint.get("guard", {})
        self.skipped, self._row = stored.get("skipped", 0), stored.get("row", 0)
        self._window = list(stored.get("window", []))

    def _give_up(self, trainer: Trainer, pl_module: LightningModule, first: int, norms: list[float]) -> None:
        step, rank = trainer.global_step, trainer.global_rank
        path = Path(trainer.default_root_dir) / FOLDER / f"step={first}-rank={rank}.json"
        evidence = {
            "step": step,
            "rank": rank,
            "images_seen": images_seen(trainer),
            "first_bad_step": first,
            "not_finite_weights": [n for n, p in pl_module.named_parameters() if not bool(p.detach().isfinite().all())],
            "steps": [
                {"step": k, "gradient_norm": str(norms[k % len(norms)]), "micro_batches": self._micro(trainer, k)}
                for k in range(max(first - 5, step - len(norms), 0), step)
            ],
        }
        with disk.forgiving("The evidence of the guard cannot be written"), disk.replacing(path) as file:
            file.write(json.dumps(evidence, indent=1) + "\n")
        raise NotFinite(
            f"The loss or the gradient was not finite in {self._row} steps in a row, from step {first} on "
            f"(images, times and norms: {path}).",
            first,
            path,
        )

    def _micro(self, trainer: Trainer, step: int) -> list[dict[str, Any]]:
        """What this process trained on in a step: indices of images, times, losses."""
        batches: Any = trainer.train_dataloader
        start = images_seen(trainer) - (trainer.global_step - step) * trainer.datamodule.global_batch_size  # pyright: ignore
        found = []
        for micro, (_, t, loss) in enumerate(draw for draw in self._draws if draw[0] == step):
            told: dict[str, Any] = {"t": t.tolist(), "loss": [str(value) for value in loss.tolist()]}
            if hasattr(batches, "order"):
                begin = start + (micro * batches.world_size + batches.rank) * batches.batch
                told["images"] = (batches.order(begin, begin + batches.batch) % batches.store.size).tolist()
            found.append(told)
        return found


def guard_of(trainer: Trainer) -> Guard | None:
    return next((c for c in trainer.callbacks if isinstance(c, Guard)), None)  # pyright: ignore


def alarm(samples: Tensor) -> str:
    """Why samples [N, ...] in [-1, 1] are no samples, in words; empty if nothing is wrong with them."""
    if not bool(samples.isfinite().all()):
        return "samples are not finite"
    if samples.ndim == 4 and float(samples.float().std()) < FLAT:
        return f"samples are flat (their standard deviation is {float(samples.float().std()):.1e})"
    if len(samples) > 1 and float(samples.float().std(0).mean()) < FLAT:
        return f"samples are all the same (they differ by {float(samples.float().std(0).mean()):.1e})"
    return ""
