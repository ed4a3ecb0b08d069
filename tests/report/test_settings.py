import synthetic

from triptych.report import settings


def config(choices="formulation=ddpm", **changes):
    return synthetic.changed(choices, **changes)


def compared(*configs):
    found, constant = settings.compare(configs, [settings.flatten(c) for c in configs])
    return {s.label: s.values for s in found}, constant


def identities(*configs):
    return [settings.identity(settings.flatten(c)) for c in configs]


def test_a_copy_of_a_group_is_no_setting_of_its_own():
    flat = settings.flatten(config())
    assert "model.channels" in flat and "formulation.prediction" in flat
    assert not [
        k for k in flat if k.startswith(("formulation.model.", "formulation.schedule.", "callback.evaluate.sampler"))
    ]


def test_a_copy_that_was_changed_is_a_setting():
    changed = config()
    changed["formulation"]["model"] = {**changed["model"], "channels": 99}
    assert settings.flatten(changed)["formulation.model.channels"] == 99


def test_runs_that_differ_by_seed_name_or_place_are_one_group_and_others_are_not():
    one = config(seed=0)
    other = config(seed=1, name="else", run_id="x", dataset__seed=1, formulation__seed=1, resume="there")
    watched = config(callback__samples__count=4, callback__evaluate__num_samples=0, trainer__log_every_n_steps=7)
    assert len({*identities(one, other, watched)}) == 1
    for change in ({"optimizer__lr": 0.5}, {"callback__ema__half_life": 7}, {"trainer__max_steps": 3}):
        assert len({*identities(one, config(**change))}) == 2


def test_what_differs_has_the_shortest_name_that_tells_it_apart():
    one, other = config(), config(optimizer__lr=0.5, model__channels=8, dataset__channels=3)
    found, constant = compared(one, other)
    assert found == {
        "lr": [one["optimizer"]["lr"], 0.5],
        "model.channels": [32, 8],
        "dataset.channels": [1, 3],
    }
    assert constant["model.blocks"] == "1" and "seed" not in constant and "optimizer.lr" not in constant


def test_what_follows_from_a_choice_is_no_column_but_what_differs_within_it_is():
    """DDPM has a gamma and EDM a P_mean: the formulation is the difference."""
    found, constant = compared(config("formulation=ddpm"), config("formulation=edm"))
    assert found == {
        "formulation": ["ddpm", "edm"],
        "schedule": ["linear_beta", "edm"],
        "sampler": ["ancestral", "heun"],
    }
    assert constant["formulation.times.P_mean"] == "-1.2 with log_normal"
    other = config("formulation=edm", formulation__times__P_mean=-0.4)
    found, _ = compared(config("formulation=ddpm"), config("formulation=edm"), other)
    assert found["P_mean"] == [settings.ABSENT, -1.2, -0.4]


def test_settings_that_are_equal_in_every_run_share_a_column():
    one, other = config(), config(model__resolution=16, dataset__resolution=16)
    found, _ = settings.compare([one, other], [settings.flatten(c) for c in (one, other)])
    assert [(s.key, s.same) for s in found] == [("model.resolution", ["dataset.resolution"])] or [
        (s.key, s.same) for s in found
    ] == [("dataset.resolution", ["model.resolution"])]


def test_an_older_config_that_lacks_a_setting_is_told_from_one_that_has_it():
    older = config()
    del older["formulation"]["gamma"]
    found, _ = compared(config(), older)
    assert found == {"gamma": [None, settings.ABSENT]}


def test_an_older_config_that_does_not_name_its_options_makes_no_column():
    older = config()
    del older["choices"]
    found, constant = compared(config(), older)
    assert not found and constant["model"] == "unet_small" and constant["trainer"] == "auto"
    found, _ = compared(config("formulation=edm"), config(), older)
    assert found["formulation"] == ["edm", "ddpm", "ddpm"] and "model" not in found


def test_a_run_whose_config_is_lost_makes_no_column():
    found, _ = compared(config(), config(), {})
    assert not found
