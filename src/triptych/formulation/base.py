"""What every formulation is: a LightningModule that trains one network as one paper says, and is then a Denoiser.

The concrete file holds the paper's training box (`loss`) and its reading of the network (`forward`). This base owns the
rest: times and noise drawn from (seed, rank, step) alone, label dropout, optimizer and warm-up, loss per noise level.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypedDict

import torch
from lightning import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from triptych import shard
from triptych.denoiser import Cond, expand
from triptych.formulation.tally import Tally
from triptych.formulation.times import TimeSampler
from triptych.noise import Noise, Step, from_generator
from triptych.schedule import Schedule

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
REDUCTIONS = {"mean": 0.0, "sum": 1.0, "half_sum": 0.5}  # times the number of dimensions, if not 0
EACH_STEP = "_current_fx_name", "_step", "drawn", "gradient_norm"  # attributes that every step sets
GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, fill [0, 1) evenly


class Plumbing(TypedDict, total=False):
    """The keywords of `Formulation` that every paper passes on."""

    times: TimeSampler | None
    optimizer: OptimizerFactory | None
    warmup_steps: int
    label_dropout: float
    reduction: str
    seed: int


class Formulation(LightningModule, ABC):
    """One paper: how its network is trained, and how the network becomes E[x_0 | x_t].

    Args:
        model: the network, model(x [B, C, H, W], c_noise [B], cond) -> [B, C', H, W].
        schedule: one of the class's `schedules`.
        times: the distribution of training times; None takes the paper's.
        optimizer: parameters -> optimizer; needed for training only.
        warmup_steps: optimizer steps over which the learning rate rises linearly from 0.
        label_dropout: share of labels replaced by the null label -1 in training, for classifier-free guidance.
        reduction: of the squared error over an image's dimensions, before gradients are clipped: "mean"; "sum" or
            "half_sum", D or D / 2 times as much, as some papers' code clips it (T-K15). Losses are logged as means.
        seed: of all random numbers of training.

    Attributes:
        schedules: the schedules that this paper works with.
        levels: the only times that the network knows; None if it knows all.
        noise_range: the smallest and the largest c_noise, by which shared networks scale it (T-L7).
        outputs: what the network says of each channel; 2 where it learns a variance.
    """

    schedules: tuple[type[Schedule], ...] = ()
    levels: Tensor | None = None
    noise_range: tuple[float, float] | None = None
    outputs: int = 1

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        *,
        times: TimeSampler | None = None,
        optimizer: OptimizerFactory | None = None,
        warmup_steps: int = 0,
        label_dropout: float = 0.0,
        reduction: str = "mean",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(schedule, self.schedules):
            classes = [c for abstract in self.schedules for c in abstract.__subclasses__() or [abstract]]
            raise ValueError(
                f"{type(self).__name__} does not work with schedule={_snake(type(schedule).__name__)}: "
                f"choose {', '.join(_snake(c.__name__) for c in classes)}."
            )
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {warmup_steps}.")
        if not 0 <= label_dropout <= 1:
            raise ValueError(f"label_dropout must be between 0 and 1, got {label_dropout}.")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}.")
        self._check_model(model)
        self.model = model
        self.schedule = schedule
        self.times = times if times is not None else self.default_times()
        self.make_optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.label_dropout = label_dropout
        self.reduction = reduction
        self.seed = seed
        self.train_losses, self.validation_losses, self.validation_errors = Tally(), Tally(), Tally()
        self.drawn: tuple[Tensor, Tensor] | None = None  # t and loss [B] of the last micro-batch
        self.gradient_norm: Tensor | None = None  # of the last step, before clipping
        self.on_gradients: Callable[[torch.optim.Optimizer, Tensor], None] | None = None  # called with it
        self._step = (-1, 0)
        if getattr(model, "noise_range", 0) is None:
            model.noise_range = self.noise_range  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    # The paper.

    @abstractmethod
    def loss(self, x_0: Tensor, t: Tensor, cond: Cond = None, noise: Noise = torch.randn_like) -> Tensor:
        """The paper's training box at given times. x_0 [B, C, H, W] in [-1, 1], t [B] -> [B]."""

    @abstractmethod
    def forward(self, x_t: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """E[x_0 | x_t]. x_t [B, C, H, W], t [B] -> [B, C, H, W]."""

    @abstractmethod
    def default_times(self) -> TimeSampler:
        """The paper's distribution of training times."""

    # What the formulations share.

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning notes here which hook is running, forty times a step; a module would look through all its parts."""
        if name in EACH_STEP:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t), sigma(t) in x's dtype, shaped to broadcast against x."""
        alpha, sigma, _ = self.schedule.marginal(t)
        return expand(alpha.to(x.dtype), x), expand(sigma.to(x.dtype), x)

    def network(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        """The network's output in x's dtype: only the network runs below float32 (T-D3)."""
        return self.model(x, c_noise.to(x.dtype), cond).to(x.dtype)

    # Training.

    def training_step(self, batch: tuple[Tensor, Cond], batch_idx: int) -> Tensor:
        x_0, cond = batch
        step = self._next_step()
        step.seed_dropout()
        t, weight = self.times.draw(self.schedule, len(x_0), step)
        cond = self._drop_labels(cond, step)
        loss = self.loss(x_0, t, cond, from_generator(step.local("noise")))
        self.times.update(self.schedule, t, loss.detach())
        self.drawn = t, loss.detach()
        self.train_losses.add(loss, self.schedule.log_snr(t), weight)
        factor = REDUCTIONS[self.reduction] * x_0[0].numel() or 1.0
        total = factor * (weight * loss).mean()
        return total * (1 + 0 * total.detach())  # not finite, even if overflown alone: then its gradients are NaN

    training_step.__signature__ = inspect.signature(training_step)  # else Lightning finds it out anew at each step

    def validation_step(self, batch: tuple[Tensor, Cond], batch_idx: int) -> None:
        """The loss, and the error of eps, which is the same quantity in every formulation, at times spread evenly."""
        x_0, cond = batch
        number = batch_idx * self.trainer.world_size + self.global_rank
        u = (torch.arange(len(x_0), device=x_0.device) + 0.5) / len(x_0)
        t, weight = (v.float() for v in self.times(self.schedule, (u + GOLDEN * number) % 1))
        t = t.clamp(min=self.schedule.t_min)
        source = Step(self.seed, (number, 0), device=x_0.device).local("validation")
        eps = torch.randn(x_0.shape, generator=source, device=x_0.device)
        log_snr = self.schedule.log_snr(t)
        self.validation_losses.add(self.loss(x_0, t, cond, lambda like: eps), log_snr, weight)
        alpha, sigma = self.coefficients(t, x_0)
        error = (self(alpha * x_0 + sigma * eps, t, cond) - x_0) * (alpha / sigma)
        self.validation_errors.add(error.square().flatten(1).mean(1), log_snr, weight)

    def configure_optimizers(self) -> dict[str, Any]:
        if self.make_optimizer is None:
            raise ValueError(f"{type(self).__name__} was built without an optimizer: give optimizer=… to train it.")
        optimizer = self.make_optimizer(p for p in self.parameters() if p.requires_grad)
        optimizer.register_load_state_dict_post_hook(_lay_out)
        warmup = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's, with the norm kept for whoever watches it, and for fused optimizers in mixed precision, too."""
        plugin = self.trainer.precision_plugin
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if fused and isinstance(plugin, MixedPrecision) and plugin.scaler is not None:  # 16-mixed; bf16 is not scaled
            plugin.scaler.unscale_(optimizer)  # the optimizer's step then knows that it need not
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.gradient_norm = whole
        if gradient_clip_val and (gradient_clip_algorithm or "norm") == "norm":
            torch.nn.utils.clip_grads_with_norm_(trained, gradient_clip_val, norm)
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_value_(trained, gradient_clip_val)
        if self.on_gradients is not None:
            self.on_gradients(optimizer, whole)

    def _next_step(self) -> Step:
        """(optimizer step, micro-batch within it) of this call: resumed training counts on where it stopped."""
        step, micro = self._step
        self._step = (step, micro + 1) if step == self.global_step else (self.global_step, 0)
        return Step(self.seed, self._step, self.global_rank, self.trainer.world_size, self.device)

    def on_train_start(self) -> None:
        self._step = (-1, 0)

    def configure_model(self) -> None:
        """Called by Lightning once its processes run; `trainer=fsdp` has a mesh of devices."""
        if self.device_mesh is not None:
            shard.shard(self.model, self.device_mesh)

    def on_validation_epoch_start(self) -> None:
        shard.gather(self)

    def on_validation_epoch_end(self) -> None:
        shard.scatter(self)

    def _drop_labels(self, cond: Cond, step: Step) -> Cond:
        if cond is None or self.label_dropout == 0:
            return cond
        label = cond["label"] if isinstance(cond, dict) else cond
        drop = torch.rand(len(label), generator=step.local("label"), device=label.device) < self.label_dropout
        label = torch.where(drop, -1, label)
        return {**cond, "label": label} if isinstance(cond, dict) else label

    def _check_model(self, model: nn.Module) -> None:
        """Refuses a network that cannot say, or cannot be told, what this formulation asks of it."""
        name = type(self).__name__
        says, sees = getattr(model, "out_channels", None), getattr(model, "in_channels", None)
        if isinstance(says, int) and isinstance(sees, int) and says != self.outputs * sees:
            raise ValueError(
                f"{name} needs a network with {self.outputs} x {sees} output channels "
                f"({'a variance beside each' if self.outputs == 2 else 'one for each input channel'}), "
                f"got {says}: set model.out_channels={self.outputs * sees}."
            )
        embedded = getattr(model, "levels", None)  # of a network that embeds the index of a level
        known = None if self.levels is None else len(self.levels)
        if isinstance(embedded, int) and embedded != known:
            raise ValueError(
                f"This network has one embedding for each of {embedded} noise levels, but {name} here has "
                f"{'a continuous noise level' if known is None else f'{known} levels'}: choose another model, "
                f"or formulation=ncsn formulation.version=1 with schedule.L={embedded}."
            )


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Gives what was loaded the strides of its parameters, which fused optimizers walk through side by side.

    A network compiled for a GPU is channels_last; tensors of a checkpoint are contiguous.
    """
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape and value.stride() != p.stride():
                state[name] = torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)


def _snake(name: str) -> str:
    """The yaml name of a class: SubVP -> sub_vp."""
    snake = "".join(
        f"_{c.lower()}" if c.isupper() and i and not name[i - 1].isupper() else c.lower() for i, c in enumerate(name)
    )
    return snake.replace("subvp", "sub_vp")
