import pytest
import torch
from omegaconf import OmegaConf
from oracles import finite
from torch import nn

from triptych import conf
from triptych.generate import Counted, Job, evaluating, storable
from triptych.sampler import DDIM, Ancestral, Heun, PredictorCorrector
from triptych.schedule import VE, VP, LinearBeta


def job(count=10, sampler=None, schedule=None, **arguments):
    return Job(finite(schedule or VP()), sampler or Ancestral(steps=5), (2,), count, **arguments)


@pytest.mark.parametrize("count", [1, 5, 6, 64])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_share_every_index_out_exactly_once(count, world):  # T-F11, T-F12
    j = job(count, block=5, first=3)
    shares = [j.blocks(rank, world) for rank in range(world)]
    assert sorted(i for share in shares for block in share for i in block) == list(range(3, 3 + count))
    assert {block for share in shares for block in share} == set(j.blocks())  # whole blocks: same batches, same bits


def test_samples_do_not_depend_on_ranks_blocks_or_who_else_is_drawn():
    together = job(10).collect()
    by_rank = [list(job(10, block=3).run(rank=rank, world=2)) for rank in range(2)]
    parts = sorted((pair for share in by_rank for pair in share), key=lambda pair: pair[0].start)
    assert torch.allclose(torch.cat([x for _, x in parts]), together, atol=1e-6)
    assert torch.allclose(job(4, first=6).collect(), together[6:], atol=1e-6)
    assert torch.equal(job(10).collect(), together)
    assert (job(10, seed=1).collect() - together).abs().max() > 0.1


@pytest.mark.parametrize(
    ("sampler", "schedule", "calls"),
    [
        (DDIM(steps=6), VP(), 6),
        (Heun(steps=6), VP(), 2 * 6 - 1),
        (PredictorCorrector(steps=6), VE(sigma_min=0.02, sigma_max=10.0), 2 * 6),
    ],
    ids=["ddim", "heun", "predictor_corrector"],
)
def test_network_calls_are_counted_not_calculated(sampler, schedule, calls):  # T-S2
    j = job(7, sampler, schedule, block=3)
    list(j.run())
    assert abs(j.nfe - calls) <= 1 and j.nfe * 3 == j.denoiser.calls  # the oracle counts too; three blocks
    assert j.images_per_second > 0


class Network(nn.Module):
    """A denoiser with dropout, that can also fail."""

    def __init__(self, fails=False):
        super().__init__()
        self.schedule, self.drop, self.fails, self.modes = LinearBeta(), nn.Dropout(0.5), fails, []

    def forward(self, x_t, t, cond=None):
        self.modes.append(self.drop.training)
        if self.fails:
            raise RuntimeError("out of memory")
        return self.drop(x_t) * 0


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_sampling_and_the_mode_comes_back(training):  # T-S19
    network = Network().train(training)
    list(Job(network, DDIM(steps=2), (2,), 3).run())
    assert network.modes == [False, False] and network.training == network.drop.training == training


def test_the_mode_comes_back_after_an_exception():
    network = Network(fails=True).train()
    with pytest.raises(RuntimeError, match="out of memory"):
        list(Job(network, DDIM(steps=2), (2,), 3).run())
    assert network.training and network.drop.training
    with evaluating(finite(VP())):  # what is no module has no mode
        pass


def test_counting_changes_nothing_else():
    oracle = finite(VP())
    counted = Counted(oracle)
    x, t = torch.randn(3, 2), torch.tensor([0.1, 0.5, 0.9])
    assert torch.equal(counted(x, t), oracle(x, t)) and counted.calls == 1
    assert counted.schedule is oracle.schedule and counted.levels is None and not hasattr(counted, "moments")


def test_labels_are_a_function_of_the_index():
    def drawn(**arguments):
        return job(6, num_classes=10, **arguments).cond(range(3, 6)).tolist()

    assert drawn(labels=4) == [4, 4, 4] and drawn(labels=[1, 2]) == [2, 1, 2] and drawn(labels=-1) == [-1, -1, -1]
    assert drawn(labels="random") == job(1, labels="random", num_classes=10).cond(range(6)).tolist()[3:]
    assert job(6, num_classes=10).cond(range(3)) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"count": 0}, "num_samples must be a whole number of at least 1, got 0"),
        ({"block": -1}, "batch_size must be a whole number of at least 1, got -1"),
        ({"labels": 3}, "trained without them"),
        ({"labels": 10, "num_classes": 10}, "labels must be 0 to 9"),
        ({"labels": "some", "num_classes": 10}, "labels must be 0 to 9"),
        ({"sampler": DDIM(steps=2, t_start=0.5)}, "begins with given images"),
        ({"init": torch.zeros(1, 2)}, "nothing is left of the given images"),
    ],
)
def test_a_job_that_cannot_work_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        job(**arguments)


def test_images_are_kept_as_bytes_and_points_as_they_are():
    assert storable(torch.zeros(2, 1, 4, 4)).dtype == torch.uint8
    points = torch.randn(3, 2, dtype=torch.float64)
    assert storable(points).dtype == torch.float32 and torch.equal(storable(points), points.float())


def test_sample_i_begins_with_image_i_modulo_their_number():
    x_0 = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    sampler = DDIM(steps=5, t_start=1e-3)  # so early that what comes out is what went in
    out = Job(IDENTITY, sampler, (2,), 8, init=x_0, block=3, first=1).collect()
    torch.testing.assert_close(out, x_0[torch.arange(1, 9) % 3], rtol=0, atol=0.1)
    assert torch.equal(Job(IDENTITY, sampler, (2,), 2, init=x_0, first=5).collect(), out[4:6])  # T-F11


class Returns:
    """A denoiser that believes what it sees."""

    schedule = VP()

    def __call__(self, x_t, t, cond=None):
        return x_t / self.schedule.alpha(t)[:, None].to(x_t)


IDENTITY = Returns()


@pytest.fixture(scope="module")
def pairs():
    """Every formulation's yaml with a tiny network, and every sampler's yaml."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.utils import instantiate

    GlobalHydra.instance().clear()
    conf.register_resolvers()
    small = ["model.channels=8", "model.multipliers=[1]", "model.blocks=1"]
    with initialize_config_dir(str(conf.FOLDER), version_base="1.3"):
        formulations = {
            name: instantiate(compose("train", [f"formulation={name}", *small]).formulation).eval()
            for name in conf.options("formulation")
        }
    yamls = {name: OmegaConf.load(conf.FOLDER / "sampler" / f"{name}.yaml") for name in conf.options("sampler")}
    samplers = {name: instantiate(yaml, steps=3) for name, yaml in yamls.items()}
    return formulations, samplers


NEEDS_ALPHA_1 = "annealed_langevin"  # the only sampler that refuses, by design 4.4


@pytest.mark.parametrize("sampler", conf.options("sampler"))
@pytest.mark.parametrize("formulation", conf.options("formulation"))
def test_any_sampler_runs_with_any_formulation(formulation, sampler, pairs):
    denoiser, steps = pairs[0][formulation], pairs[1][sampler]
    fits = sampler != NEEDS_ALPHA_1 or formulation in ("ncsn", "edm")
    if not fits:
        with pytest.raises(ValueError, match="alpha = 1"):
            Job(denoiser, steps, (1, 8, 8), 2)
        return
    j = Job(denoiser, steps, (1, 8, 8), 2)
    x = j.collect()
    assert x.shape == (2, 1, 8, 8) and x.dtype == torch.uint8 and j.nfe >= 3
