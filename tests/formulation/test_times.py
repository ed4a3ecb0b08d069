"""Distributions of training times: what they draw, that their weights undo it, and what ranks share."""

import math

import pytest
import torch
from processes import in_two

from triptych.formulation.times import (
    Levels,
    LogitNormal,
    LogNormal,
    LossSecondMoment,
    Uniform,
    UniformLogSNR,
)
from triptych.noise import Step
from triptych.schedule import EDM, VE, VP, Cosine, Geometric, LinearBeta, Rectified, SubVP

ALL = [
    (Levels(stratified=True), LinearBeta(T=50)),
    (LossSecondMoment(T=50, stratified=True), LinearBeta(T=50)),
    (Uniform(stratified=True), VP()),
    (UniformLogSNR(stratified=True), VP()),
    (LogNormal(stratified=True), EDM()),
    (LogitNormal(stratified=True), Rectified()),
]


def name(value):
    return type(value).__name__


@pytest.mark.parametrize(("times", "schedule"), ALL, ids=name)
def test_stratified_over_the_global_batch(times, schedule):
    """T-D11: image i of the global batch has the same time on 1, 2 and 4 ranks, one in each of G equal slices of u."""
    G = 64
    whole = times.draw(schedule, G, Step(3, (7, 0)))
    for world in (2, 4):
        parts = [times.draw(schedule, G // world, Step(3, (7, 0), rank, world)) for rank in range(world)]
        for found, expected in zip(zip(*parts, strict=True), whole, strict=True):
            torch.testing.assert_close(torch.cat(found), expected, rtol=1e-6, atol=1e-7)
    assert not torch.equal(times.draw(schedule, G, Step(3, (8, 0)))[0], whole[0])


def test_one_in_every_stratum():
    u, _ = Uniform(0.0, 1.0, stratified=True).draw(VP(), 128, Step(0, (0, 0)))
    assert torch.equal((u.double() * 128 + 1e-4).floor().sort().values, torch.arange(128).double())


def test_ranks_and_steps_draw_differently():
    """T-D2: without strata, another rank, step, micro-batch or seed has other times; the same has the same."""
    here = Uniform().draw(VP(), 32, Step(0, (5, 1), 0, 2))[0]
    assert torch.equal(here, Uniform().draw(VP(), 32, Step(0, (5, 1), 0, 2))[0])
    for step in (Step(0, (5, 1), 1, 2), Step(0, (6, 1), 0, 2), Step(0, (5, 0), 0, 2), Step(1, (5, 1), 0, 2)):
        assert not torch.equal(here, Uniform().draw(VP(), 32, step)[0])


def test_levels_are_uniform_and_exact():
    """DDPM's t ~ U{1, ..., T} / T, and NCSN's L levels: each equally often, none between."""
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    for schedule in (LinearBeta(T=50), Geometric(L=10)):
        t, weight = Levels()(schedule, u)
        found, counts = t.unique(return_counts=True)
        assert torch.equal(found, schedule.levels) and (counts == 1000 // len(schedule.levels)).all()
        assert (weight == 1).all()


def test_log_normal_is_karras():
    """ln sigma ~ N(-1.2, 1.2^2); the time 1 may be passed: training is not cut at the sampler's sigma_max."""
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log_sigma = EDM(sigma_max=10.0).sigma(LogNormal()(EDM(sigma_max=10.0), u)[0]).log()
    assert abs(float(log_sigma.mean()) + 1.2) < 1e-3 and abs(float(log_sigma.std()) - 1.2) < 1e-3
    assert log_sigma.max() > math.log(10.0)


def test_logit_normal():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    logit = torch.logit(LogitNormal(0.5, 0.8)(Rectified(), u)[0])
    assert abs(float(logit.mean()) - 0.5) < 1e-3 and abs(float(logit.std()) - 0.8) < 1e-3


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(), EDM(), Rectified(), Cosine()], ids=name)
def test_importance_weights_are_unbiased(schedule):
    """T-K13: weighted means under uniform log-SNR are means under uniform t, and likelihood weights are flat."""
    n = 400_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    t, weight = UniformLogSNR()(schedule, u)
    uniform, _ = Uniform()(schedule, u)
    assert t.min() >= schedule.t_min - 1e-12 and t.max() <= schedule.t_max + 1e-12
    for h in (torch.ones_like, lambda t: t, lambda t: torch.sin(7 * t) + t**2):
        assert abs(float((weight * h(t)).mean() - h(uniform).mean())) < 2e-3
    flat = weight * schedule.diffusion_sq(t) / schedule.sigma(t).square()
    torch.testing.assert_close(flat, flat[:1].expand_as(flat), rtol=1e-6, atol=0)


def trained(schedule, scale, history=10):
    times = LossSecondMoment(schedule.T, history)
    source = torch.Generator().manual_seed(0)
    for _ in range(history):
        losses = scale * (0.5 + torch.rand(schedule.T, generator=source))
        times.update(schedule, schedule.levels.float(), losses)
    return times


def test_second_moment_weights_are_unbiased():
    """Nichol & Dhariwal, Eq. 18: p_t ~ sqrt(E[L_t^2]), weights 1 / (T p_t), so that a mean stays what it is."""
    schedule = LinearBeta(T=40)
    scale = torch.linspace(0.1, 5.0, 40)
    times = trained(schedule, scale)
    n = 200_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    t, weight = times(schedule, u)
    counts = torch.bincount((t * 40).round().long() - 1, minlength=40)
    root = times.losses.double().square().mean(1).sqrt()
    expected = 0.999 * root / root.sum() + 0.001 / 40
    torch.testing.assert_close(counts.double() / n, expected, rtol=0, atol=1e-5)
    h = torch.cos(3 * schedule.levels) / schedule.levels
    assert abs(float((weight * torch.cos(3 * t) / t).mean() - h.mean())) < 1e-3 * float(h.abs().mean())
    # and a loss in proportion to sqrt(E[L^2]) loses almost all of its variance
    plain, weighted = scale.double(), scale[(t * 40).round().long() - 1] * weight
    assert weighted.std() < 0.2 * plain.std()


def test_second_moment_is_uniform_until_it_knows():
    schedule, times = Cosine(T=8), LossSecondMoment(T=8, history=3)
    for level, n in ((range(8), 2), (range(7), 1)):  # the last level has two losses only
        for _ in range(n):
            times.update(schedule, schedule.levels[list(level)].float(), torch.full((len(level),), 3.0))
    u = (torch.arange(80) + 0.5) / 80
    t, weight = times(schedule, u)
    assert torch.equal(t, schedule.levels.repeat_interleave(10)) and torch.allclose(weight, torch.ones(80).double())


def test_second_moment_keeps_the_latest():
    """Against a list for each level, with batches that hold one level more often than the history is long."""
    schedule, history = Cosine(T=5), 4
    times, lists = LossSecondMoment(T=5, history=history), [[] for _ in range(5)]
    source = torch.Generator().manual_seed(0)
    for _ in range(20):
        k = torch.randint(0, 5, (11,), generator=source)
        loss = torch.rand(11, generator=source)
        times.update(schedule, schedule.levels[k].float(), loss)
        for level, value in zip(k.tolist(), loss.tolist(), strict=True):
            lists[level].append(value)
    assert times.counts.tolist() == [len(values) for values in lists]
    for row, values in zip(times.losses.tolist(), lists, strict=True):
        assert sorted(row) == pytest.approx(sorted(values[-history:]))


def test_second_moment_is_in_the_checkpoint(tmp_path):
    """T-K5, T-D5: the state is buffers, so it survives a round trip under weights_only."""
    schedule = Cosine(T=6)
    times = trained(schedule, torch.linspace(1, 4, 6), history=3)
    torch.save(times.state_dict(), tmp_path / "times.pt")
    again = LossSecondMoment(T=6, history=3)
    again.load_state_dict(torch.load(tmp_path / "times.pt", weights_only=True))
    step = Step(0, (9, 0))
    for found, expected in zip(again.draw(schedule, 64, step), times.draw(schedule, 64, step), strict=True):
        assert torch.equal(found, expected)


def _rank(rank, folder):
    schedule, times = Cosine(T=6), LossSecondMoment(T=6, history=3)
    for i in range(4):
        k = torch.randint(0, 6, (8,), generator=torch.Generator().manual_seed(10 * i + rank))
        times.update(schedule, schedule.levels[k].float(), k.float() + rank)
    torch.save(times.state_dict(), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_second_moment_is_the_same_on_every_rank(tmp_path):
    """T-K5: every rank has seen the losses of all, in the same order."""
    in_two(_rank, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert int(first["counts"].sum()) == 4 * 8 * 2
    assert all(torch.equal(first[key], second[key]) for key in first)
    one, schedule = LossSecondMoment(T=6, history=3), Cosine(T=6)
    for i in range(4):
        ks = [torch.randint(0, 6, (8,), generator=torch.Generator().manual_seed(10 * i + rank)) for rank in range(2)]
        one.update(schedule, schedule.levels[torch.cat(ks)].float(), torch.cat([ks[0].float(), ks[1].float() + 1]))
    assert torch.equal(one.losses, first["losses"])
