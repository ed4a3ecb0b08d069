import itertools

import pytest
import torch

from triptych.noise import SampleNoise, Step, from_generator, generator, labels, seed_of


def drawn(seed, indices, shape, times):
    """What a block of samples draws, call after call: [times, B, ...]."""
    noise = SampleNoise(seed, indices)
    like = torch.empty(len(indices), *shape)
    return torch.stack([noise(like) for _ in range(times)])


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 64, 64)], ids=str)  # many, some, less than one step a chunk
def test_a_sample_draws_the_same_in_any_block(shape):
    times = SampleNoise.chunk_values // torch.Size(shape).numel() + 2  # beyond the first chunk
    times = min(times, 200)
    together = drawn(0, range(7), shape, times)
    apart = torch.cat([drawn(0, block, shape, times) for block in (range(0, 1), range(1, 4), [5, 4], [6])], dim=1)
    assert torch.equal(together[:, [0, 1, 2, 3, 5, 4, 6]], apart)  # T-F11


def test_samples_steps_and_seeds_all_differ():
    draws = [drawn(seed, [index], (1, 8, 8), 4)[:, 0] for seed in (0, 1) for index in (0, 1, 1000)]
    for a, b in itertools.combinations(torch.cat(draws), 2):
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert correlation.abs() < 5 / 64**0.5  # not only unequal: unrelated


def test_the_noise_is_standard_normal_over_samples_and_over_steps():
    z = drawn(3, range(400), (1, 8, 8), 10).double()  # [10, 400, 1, 8, 8]
    n = z.numel()
    assert abs(z.mean()) < 5 / n**0.5
    assert abs(z.square().mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs(z.pow(4).mean() - 3) < 5 * (96 / n) ** 0.5
    over_samples = z[0, :, 0, 0, 0]  # one pixel of one step, a stream a value
    assert abs(over_samples.mean()) < 5 / 20 and abs(over_samples.var() - 1) < 5 * (2 / 400) ** 0.5


def test_noise_comes_in_the_dtype_asked_for_and_for_its_own_block_only():
    noise = SampleNoise(0, range(3))
    assert noise(torch.empty(3, 2, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(ValueError, match="block of 3 samples, asked for 4"):
        noise(torch.empty(4, 2))


def test_labels_belong_to_the_index_and_are_uniform():
    many = labels(0, range(4000), 10)
    assert torch.equal(many[100:200], labels(0, range(100, 200), 10))
    assert not torch.equal(many, labels(1, range(4000), 10))
    counts = torch.bincount(many, minlength=10)
    assert many.dtype == torch.int64 and (counts - 400).abs().max() < 5 * (4000 * 0.1 * 0.9) ** 0.5


def test_training_draws_depend_on_seed_rank_step_and_purpose_alone():
    def first(step, purpose="noise"):
        return torch.randn(4, generator=step.local(purpose)).tolist()

    step = Step(seed=1, index=(7, 0), rank=0, world=2)
    assert first(step) == first(Step(seed=1, index=(7, 0), rank=0, world=2))
    others = [
        first(Step(seed=2, index=(7, 0))),
        first(Step(seed=1, index=(8, 0))),
        first(Step(seed=1, index=(7, 1))),
        first(Step(seed=1, index=(7, 0), rank=1)),  # T-D2
        first(step, "dropout"),
    ]
    assert first(step) not in others and len({tuple(o) for o in others}) == len(others)
    rank_0, rank_1 = (Step(seed=1, index=(7, 0), rank=r, world=2).shared() for r in (0, 1))
    assert torch.equal(torch.rand(4, generator=rank_0), torch.rand(4, generator=rank_1))


def test_seeds_are_well_mixed_and_the_same_in_every_process():
    seeds = [seed_of("sample", seed, index) for seed in range(30) for index in range(30)]
    assert len(set(seeds)) == 900 and all(0 <= s < 2**63 for s in seeds)
    high = sum(s >> 62 for s in seeds)
    assert abs(high - 450) < 5 * 15  # the top bit is a fair coin
    assert seed_of(1, 11) != seed_of(11, 1) != seed_of("1", "11")


def test_from_generator_is_randn_like_of_that_generator():
    like = torch.empty(2, 3, dtype=torch.float64)
    z = from_generator(generator("cpu", "x"))(like)
    assert z.dtype == torch.float64 and torch.equal(
        z, torch.randn(2, 3, generator=generator("cpu", "x"), dtype=like.dtype)
    )
