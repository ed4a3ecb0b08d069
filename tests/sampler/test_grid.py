"""Time grids: exact length, the right ends, and the spacing that their papers say."""

import pytest
import torch
from oracles import two_modes

from triptych.sampler import (
    DDIM,
    AnnealedLangevin,
    DPMSolver,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    grid,
)
from triptych.sampler.base import snap
from triptych.schedule import EDM, VE, VP, Cosine, Geometric, LinearBeta, QuadraticBeta, Rectified, SubVP

SCHEDULES = [LinearBeta(), QuadraticBeta(), Cosine(), VP(), SubVP(), VE(), Geometric(1000), EDM(), Rectified()]
STEPS = [1, 2, 3, 7, 18, 100, 150, 300, 400, 600, 999]


def name(schedule):
    return type(schedule).__name__


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
@pytest.mark.parametrize("key", [key for key in grid.NAMED if key != "levels"])
def test_exact_length_and_ends(key, schedule):
    """T-L9: as many intervals as asked for, strictly falling, from the start to the end."""
    for steps in STEPS:
        for start, end in [(1.0, 0.0), (0.55, 0.0), (schedule.t_max, schedule.t_min), (0.003, 0.0)]:
            times = grid.NAMED[key](schedule, steps, start, end)
            assert times.dtype == torch.float64 and len(times) == steps + 1
            assert times[0] == start and times[-1] == end and (times.diff() < 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_log_snr_is_uniform_between_the_finite_ends(schedule):
    times = grid.log_snr(schedule, 20)
    inner = times[1:-1] if name(schedule) == "Rectified" else times[:-1]
    gaps = schedule.log_snr(inner).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-6, atol=0)
    low, _ = schedule.grid_ends
    assert times[-2 if schedule.sigma(torch.zeros(1)) == 0 else -1] == pytest.approx(low, rel=1e-9)


def test_sub_vp_has_the_log_snr_grid_of_vp():
    """From its own t_min, sigma = 1e-6, half of the steps would be lost; in x / alpha both are then the same flow."""
    grids = [schedule.log_snr(grid.log_snr(schedule, 10)[:-1]) for schedule in (VP(), SubVP())]
    torch.testing.assert_close(*grids, rtol=0, atol=1e-4)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = [DPMSolver(steps=10)(two_modes(schedule), x) for schedule in (VP(), SubVP())]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-3)


def test_karras_is_the_papers_equation_5():
    i = torch.arange(18, dtype=torch.float64)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    times = grid.karras(EDM(), 18)
    torch.testing.assert_close(times[:-1] * 80, sigma, rtol=1e-9, atol=0)
    for schedule in (VP(), LinearBeta(), Rectified()):  # elsewhere the same in sigma / alpha
        inner = grid.karras(schedule, 18)[1:-1]
        root = (schedule.sigma(inner) / schedule.alpha(inner)) ** (1 / 7)
        torch.testing.assert_close(root.diff(), root.diff().mean().expand(16), rtol=1e-6, atol=0)


def test_uniform_and_quadratic():
    torch.testing.assert_close(grid.uniform(LinearBeta(), 50)[:-1] * 1000, torch.arange(1000, 0, -20).double())
    times = grid.quadratic(LinearBeta(), 20)  # T-L12
    torch.testing.assert_close(times[1:].sqrt().diff(), torch.full((19,), -(0.8**0.5) / 20, dtype=torch.float64))
    assert times[0] == 1


def test_levels_are_native():
    schedule = LinearBeta(T=100)
    for steps in (1, 2, 7, 33, 99, 100):
        times = grid.levels(schedule, steps)
        assert len(times) == steps + 1 and times[0] == 1 and times[-1] == 0
        assert all((schedule.levels == t).any() for t in times[:-1])
    assert torch.equal(grid.levels(schedule, 100), torch.cat([schedule.levels.flip(0), torch.zeros(1)]))
    assert len(grid.levels(Geometric(10), 9)) == 10  # its cleanest level is t = 0 itself
    with pytest.raises(ValueError, match="too many"):
        grid.levels(schedule, 101)
    with pytest.raises(ValueError, match="continuous"):
        grid.levels(VP(), 3)


def test_a_list_of_times_is_a_grid():
    denoiser = two_modes(VP())
    sampler = DDIM(steps=50, grid=[1.0, 0.4, 0.1, 0.0])
    sampler(denoiser, torch.zeros(2, 2))
    assert [float(t[0]) for t in denoiser.times] == pytest.approx([1.0, 0.4, 0.1])
    assert (sampler.steps, sampler.t_start) == (3, 1.0)  # the list says both, and a record says what was done
    assert DDIM(steps=1, grid=[0.5, 0.1, 0.0]).t_start == 0.5
    assert ProbabilityFlow(grid=[1.0, 0.4, 0.0]).method == "heun"
    assert AnnealedLangevin(grid=[1.0, 0.4, 0.0]).steps == 3  # levels: here every time is visited
    for bad in ([1.0], [0.5, 0.5], [0.1, 1.0], [0, 1], [1.0, -0.1], [1.5, 0.0], [1.0, "a", 0.0], [True, False]):
        with pytest.raises(ValueError, match="fall strictly"):
            DDIM(steps=1, grid=bad)
    with pytest.raises(ValueError, match=r"starts at 1, but t_start=0.5"):
        DDIM(steps=3, grid=[1.0, 0.0], t_start=0.5)
    with pytest.raises(ValueError, match="choose log_snr, karras"):
        DDIM(steps=1, grid="linear")


@pytest.mark.parametrize("schedule", [VP(), Rectified(), EDM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("sampler", [EulerMaruyama, ReverseDiffusion, PredictorCorrector, Heun])
def test_a_list_from_1_to_0_stays_where_a_sampler_works(sampler, schedule):
    """f and g^2 are infinite at an end of some schedules (T-K12): the list then ends at t_max and t_min."""
    x = schedule.prior_std * torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    y = sampler(steps=4, grid=[1.0, 0.7, 0.4, 0.1, 0.0])(two_modes(schedule), x)
    assert y.isfinite().all()


def test_a_network_of_levels_is_only_asked_at_its_levels():
    """Design 4.3: the grid is snapped, duplicates are dropped, and the calls that are made are fewer."""
    schedule = Geometric(10, 0.02, 2.0)
    denoiser = two_modes(schedule, levels=schedule.levels)
    DDIM(steps=40)(denoiser, torch.zeros(2, 2))
    asked = [float(t[0]) for t in denoiser.times]
    assert asked == pytest.approx([i / 9 for i in range(9, 0, -1)])
    table = LinearBeta(T=50)
    denoiser = two_modes(table, levels=table.levels)
    DDIM(steps=12)(denoiser, torch.zeros(2, 2))
    assert denoiser.calls <= 12 and denoiser.times[0][0] == 1


def test_snap_takes_the_nearest_level_in_log_snr():
    schedule, known = VE(0.01, 100.0), torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64)
    times = torch.tensor([1.0, 0.62, 0.58, 0.2, 0.1, 0.0], dtype=torch.float64)
    assert snap(times, known, schedule).tolist() == [0.9, 0.3, 0.0]  # log-SNR is linear in t; 0.62 is nearer to 0.9
    vp = VP()
    middle = vp.time((vp.log_snr(torch.tensor([0.1]).double()) + vp.log_snr(torch.tensor([0.5]).double())) / 2)
    known = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    assert snap(torch.stack([middle[0] + 1e-3, torch.zeros(()).double()]), known, vp).tolist() == [0.5, 0.0]
    assert snap(torch.stack([middle[0] - 1e-3, torch.zeros(()).double()]), known, vp).tolist() == [0.1, 0.0]
    start = snap(torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.2, 0.9]).double(), Rectified())
    assert start.tolist() == pytest.approx([0.9, 0.0])  # alpha(1) = 0: infinite, yet the noisiest level is meant
