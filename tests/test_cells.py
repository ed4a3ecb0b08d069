import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from triptych import cells


def grid(*arguments):
    """What `collect` makes of a command line: the cells, and the rest."""
    found = cells.collect(list(arguments))
    (override,) = OverridesParser.create().parse_overrides([a for a in found if a.startswith("grid=")])
    return override.value(), [a for a in found if not a.startswith("grid=")]


def test_lists_are_multiplied_out_and_what_is_said_of_samplers_comes_along():
    found, rest = grid("run=a", "-m", "sampler=ddim,heun", "sampler.steps=10,20", "sampler.clip=null", "seed=3")
    assert rest == ["run=a", "seed=3"]
    assert found == [
        ["sampler=ddim", "sampler.steps=10", "sampler.clip=null"],
        ["sampler=ddim", "sampler.steps=20", "sampler.clip=null"],
        ["sampler=heun", "sampler.steps=10", "sampler.clip=null"],
        ["sampler=heun", "sampler.steps=20", "sampler.clip=null"],
    ]
    assert cells.varied(found) == ["sampler", "sampler.steps"]


def test_ranges_globs_and_what_a_run_brought():
    found, _ = grid("--multirun", "run=a", "sampler=ddim", "++sampler.grid='a b'", "sampler.steps=range(2,6,2)")
    assert found == [["sampler=ddim", "++sampler.grid='a b'", f"sampler.steps={n}"] for n in (2, 4)]
    assert cells.settings(found[0]) == {"sampler": "ddim", "sampler.grid": "'a b'", "sampler.steps": "2"}
    assert cells.settings(["sampler=ddim", "sampler.steps=2", "sampler.steps=3"])["sampler.steps"] == "3"  # typed last
    lengths, rest = grid("-m", "run=a", "ema=0.05,0.10", "sampler=ddim")
    assert rest == ["run=a"] and lengths == [[f"ema={length}", "sampler=ddim"] for length in ("0.05", "0.1")]
    every, _ = grid("-m", "sampler=glob(*heun)")
    assert every == [["sampler=heun"], ["sampler=stochastic_heun"]]


def test_without_m_nothing_changes():
    assert cells.collect(["run=a", "sampler=ddim"]) == ["run=a", "sampler=ddim"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["metric=fid,kid"], "only sampler, guidance, ema, weights"),
        (["run=a,b"], "only sampler, guidance, ema, weights"),
        (["sampler=ddim"], "needs a list"),
        ([], "needs a list"),
    ],
)
def test_what_a_grid_cannot_be(arguments, said):
    with pytest.raises(ValueError, match=said):
        cells.collect(["run=x", "-m", *arguments])
