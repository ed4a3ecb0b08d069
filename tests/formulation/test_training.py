"""The plumbing that every formulation shares: what training draws, how it is weighted, warmed up and dropped."""

import functools
import types

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from networks import ROWS
from oracles import two_modes
from torch import nn
from torch.utils.data import DataLoader

from triptych.formulation import DDPM, EDM, NCSN, FlowMatching, ScoreSDE
from triptych.formulation.tally import Tally
from triptych.formulation.times import LossSecondMoment, Uniform
from triptych.schedule import EDM as EDMSchedule
from triptych.schedule import VE, VP, Geometric, Learned, LinearBeta, Rectified


class Network(nn.Module):
    """Two numbers and a dropout; notes the labels."""

    in_channels = 2

    def __init__(self, out_channels=2):
        super().__init__()
        self.out_channels = out_channels
        self.weight = nn.Parameter(torch.tensor([0.5, 0.1]))
        self.dropout = nn.Dropout(0.3)
        self.labels = None

    def forward(self, x, c_noise, cond=None):
        self.labels = cond
        output = self.dropout(self.weight[0] * x + self.weight[1])
        return output.repeat(1, self.out_channels // 2)


class Place(types.SimpleNamespace):
    """What training asks of a Trainer."""

    __hash__ = object.__hash__


def placed(formulation, step=0, rank=0, world=1):
    formulation._place = Place(global_step=step, global_rank=rank, world_size=world, _results=None)
    formulation.trainer = formulation._place
    return formulation


def ddpm(**options):
    return DDPM(model=Network(), schedule=LinearBeta(T=100), **options)


X_0 = torch.randn(16, 2, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)


def losses(steps, rank=0, seed=0, between=None, start=0):
    formulation = placed(ddpm(seed=seed), rank=rank, world=2)
    formulation.on_train_start()
    found = []
    for step in range(start, start + steps):
        formulation._place.global_step = step
        found.append(formulation.training_step((X_0, None), 0).item())
        if between is not None:
            between(formulation)
    return found


def test_randomness_is_a_function_of_seed_rank_and_step():
    """T-D2, T-D5: no stored generator, nothing else draws from it; a resumed run draws what the other would have."""

    def disturb(formulation):
        torch.randn(100), torch.manual_seed(1)
        formulation.eval().validation_step((X_0, None), 3)
        formulation.train()

    whole = losses(6)
    assert losses(6, between=disturb) == whole
    assert losses(3, start=3) == whole[3:]
    assert losses(6, rank=1) != whole and losses(6, seed=1) != whole and len(set(whole)) == 6


def test_micro_batches_of_one_step_differ():
    formulation = placed(ddpm(), step=4)
    formulation.on_train_start()
    first, second = (formulation.training_step((X_0, None), i).item() for i in range(2))
    assert first != second
    formulation.on_train_start()
    assert [formulation.training_step((X_0, None), i).item() for i in range(2)] == [first, second]


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1), ("sum", 2), ("half_sum", 1)])
def test_the_reduction_scales_what_is_differentiated_not_what_is_logged(reduction, factor):
    """T-K15: D = 2 here. Clipping at a norm of 1 means something else for a sum."""

    def step(**options):
        formulation = placed(ddpm(**options))
        formulation.on_train_start()
        return formulation.training_step((X_0, None), 0).item(), formulation.train_losses.read()[""]

    (found, logged), (mean, mean_logged) = step(reduction=reduction), step()
    assert found == pytest.approx(factor * mean) and logged == mean_logged


@pytest.mark.filterwarnings("ignore")  # Lightning's own
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_gradients_are_clipped_at_their_norm_in_every_precision_with_fused_and_plain_optimizers(precision, tmp_path):
    """Lightning refuses to clip for fused optimizers in mixed precision; in float16 they are to be unscaled first."""

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if precision == "16-mixed" else None
    after = []
    for fused in (True, False):
        torch.manual_seed(0)
        sgd = functools.partial(torch.optim.SGD, lr=1.0, fused=fused)
        formulation = ddpm(optimizer=sgd)
        trainer = lightning.Trainer(
            max_steps=1,
            accelerator="cpu",
            plugins=[] if precision == "32-true" else [MixedPrecision(precision, "cpu", scaler)],
            gradient_clip_val=0.25,
            limit_val_batches=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        )
        before = formulation.model.weight.detach().clone()
        trainer.fit(formulation, DataLoader([0], collate_fn=lambda _: (100 * X_0, None)))
        moved = formulation.model.weight.detach() - before
        assert moved.norm() == pytest.approx(0.25, rel=1e-3)
        after.append(moved)
    torch.testing.assert_close(*after)


def test_the_weight_of_a_time_counts():
    class Fixed(Uniform):
        def forward(self, schedule, u):
            return torch.linspace(0.1, 0.9, len(u)), torch.arange(len(u)).float()

    formulation = placed(ScoreSDE(model=Network(), schedule=VP(), times=Fixed())).eval()
    kept = {}
    original = formulation.loss
    formulation.loss = lambda *a, **k: kept.setdefault("loss", original(*a, **k))
    total = formulation.training_step((X_0, None), 0).detach()
    torch.testing.assert_close(total, (torch.arange(16) * kept["loss"].detach()).mean())
    assert formulation.train_losses.read()[""] == pytest.approx(float(total), rel=1e-5)


def test_label_dropout():
    """A label becomes -1 with the given chance, another one each step; a dict keeps its other conditions."""
    formulation = placed(ddpm(label_dropout=0.3))
    label, augment = torch.arange(20_000) % 10, torch.ones(20_000, 9)
    x_0 = torch.zeros(20_000, 2)
    formulation.training_step((x_0, {"label": label, "augment": augment}), 0)
    seen = formulation.model.labels
    dropped = seen["label"] == -1
    assert abs(float(dropped.float().mean()) - 0.3) < 0.015 and seen["augment"] is augment
    assert torch.equal(seen["label"][~dropped], label[~dropped]) and label.min() == 0
    formulation._place.global_step = 1
    formulation.training_step((x_0, label), 0)
    assert not torch.equal(formulation.model.labels == -1, dropped)


def test_warm_up_is_linear():
    formulation = ddpm(optimizer=lambda p: torch.optim.SGD(p, lr=0.8), warmup_steps=4)
    parts = formulation.configure_optimizers()
    rates = []
    for _ in range(6):
        rates.append(parts["optimizer"].param_groups[0]["lr"])
        parts["optimizer"].step()
        parts["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    assert parts["lr_scheduler"]["interval"] == "step"


@pytest.mark.parametrize("row", ROWS)
def test_validation_agrees_on_the_error_of_eps(row):
    """The oracle's error of eps at a log-SNR is a property of the data: bin by bin the same in every formulation."""
    formulation = placed(ROWS[row]()).eval()
    x_0 = formulation.model.denoiser.sample(4000).float()
    with torch.no_grad():
        formulation.validation_step((x_0, None), 0)
    assert set(formulation.validation_losses.read()) - {""}
    found = formulation.validation_errors.read()
    expected, vp = {}, VP()
    source = torch.Generator().manual_seed(5)
    for name in ("-4_to_-2", "-2_to_0", "0_to_2", "2_to_4"):  # E|eps - E[eps | x_t]|^2, uniformly over the bin, on VP
        low, high = (float(v) for v in name.split("_to_"))
        t = vp.time(low + (high - low) * torch.rand(4000, generator=source, dtype=torch.float64))
        alpha, sigma = vp.alpha(t)[:, None], vp.sigma(t)[:, None]
        z = torch.randn(4000, 2, generator=source, dtype=torch.float64)
        x = two_modes(vp).sample(4000, seed=7)
        error = (two_modes(vp)(alpha * x + sigma * z, t) - x) * alpha / sigma
        expected[name] = float(error.square().mean())
    shared = [name for name in expected if name in found]
    assert shared
    for name in shared:
        assert found[name] == pytest.approx(expected[name], abs=0.12), (name, found, expected)


def test_tally_bins():
    tally = Tally()
    tally.add(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.5, 1.5, 100.0]), torch.tensor([1.0, 1.0, 2.0]))
    tally.add(torch.tensor([7.0]), torch.tensor([float("inf")]), torch.ones(1))
    assert tally.read() == {"": pytest.approx((1 + 3 + 10 + 7) / 4), "0_to_2": 2.0, "above_10": 6.0}
    assert tally.read() == {}


# What cannot work is refused by a sentence, in the constructor.

REFUSED = [
    (lambda: DDPM(model=Network(), schedule=VP()), "linear_beta, quadratic_beta, cosine"),
    (lambda: NCSN(model=Network(), schedule=VE()), "schedule=ve: choose geometric"),
    (lambda: ScoreSDE(model=Network(), schedule=EDMSchedule()), "choose vp, sub_vp, ve, learned"),
    (lambda: EDM(model=Network(), schedule=VP()), "choose edm"),
    (lambda: FlowMatching(model=Network(), schedule=LinearBeta()), "schedule=linear_beta: choose rectified"),
    (lambda: ddpm(prediction="noise"), "prediction must be one of eps, x_0, v, got 'noise'"),
    (lambda: ddpm(variance="fixed"), "variance must be one of fixed_small, fixed_large, learned"),
    (lambda: ddpm(objective="l2"), "objective must be one of simple, vlb, hybrid"),
    (lambda: ddpm(variance="learned"), "2 x 2 output channels .* got 2: set model.out_channels=4"),
    (lambda: DDPM(model=Network(4), schedule=LinearBeta()), "1 x 2 output channels .* got 4: set model.out_channels=2"),
    (lambda: ddpm(objective="hybrid"), "choose variance=learned, or objective=simple"),
    (lambda: ddpm(variance="learned", objective="simple"), "choose hybrid or vlb"),
    (lambda: ddpm(gamma=-1.0), "gamma must be a positive number"),
    (lambda: ddpm(objective="vlb", gamma=5.0), "gamma must be a positive number, of objective simple"),
    (lambda: ddpm(label_dropout=1.5), "label_dropout must be between 0 and 1"),
    (lambda: ddpm(warmup_steps=-1), "warmup_steps must be 0 or more"),
    (lambda: NCSN(model=Network(), schedule=Geometric(), version=3), "version must be 1 or 2"),
    (lambda: ScoreSDE(model=Network(), schedule=VP(), weighting="g2"), "weighting must be one of sigma_sq, likelihood"),
    (lambda: ScoreSDE(model=Network(), schedule=Learned()), "weighting=likelihood"),
    (lambda: EDM(model=Network(), schedule=EDMSchedule(), sigma_data=0), "sigma_data must be a positive number"),
    (lambda: ddpm().configure_optimizers(), "without an optimizer"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refusals(number):
    build, sentence = REFUSED[number]
    with pytest.raises(ValueError, match=sentence) as refusal:
        build()
    assert "\n" not in str(refusal.value)


def test_networks_that_know_levels_only():
    """NCSN's own network embeds indices: only NCSN version 1, with as many levels, may use it; and vice versa."""

    class Embedding(Network):
        levels = 10

    class Shared(Network):
        noise_range = None

    assert NCSN(model=Embedding(), schedule=Geometric(L=10), version=1).levels is not None
    for build in (
        lambda: NCSN(model=Embedding(), schedule=Geometric(L=12), version=1),
        lambda: NCSN(model=Embedding(), schedule=Geometric(L=10)),
        lambda: DDPM(model=Embedding(), schedule=LinearBeta(T=10, beta_max=0.005)),
    ):
        with pytest.raises(ValueError, match="one embedding for each of 10 noise levels"):
            build()
    with pytest.raises(ValueError, match="choose model=ncsn"):
        NCSN(model=Shared(), schedule=Geometric(), version=1)


def test_shared_networks_learn_the_range():
    class Shared(Network):
        noise_range = None

    for build, expected in (
        (lambda m: DDPM(model=m, schedule=LinearBeta(T=250)), (0, 250)),
        (lambda m: ScoreSDE(model=m, schedule=VP()), (0, 999)),
        (lambda m: FlowMatching(model=m, schedule=Rectified()), (0, 1)),
    ):
        assert build(Shared()).model.noise_range == expected


def test_vlb_samples_by_second_moments():
    assert isinstance(ddpm(objective="vlb").times, LossSecondMoment)
    assert isinstance(ddpm(objective="vlb", times=Uniform()).times, Uniform)
