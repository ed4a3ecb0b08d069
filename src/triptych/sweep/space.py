"""A search space, from yaml: settings of train.py, each with a range or a list of choices."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from triptych.recall import quoted

KEYS = ("low", "high", "log", "step")


def distributions(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """{setting: range or choices}; a range of whole numbers gives whole numbers.

    Raises:
        ValueError: with the setting, what it says and what it may say.
    """
    if not space:
        raise ValueError("sweep.space is empty: name a setting of train.py, with {low: …, high: …} or [choices].")
    return {setting: _distribution(setting, values) for setting, values in space.items()}


def _distribution(setting: str, values: Any) -> BaseDistribution:
    if isinstance(values, list):
        if len(values) < 2:
            raise ValueError(f"sweep.space: {setting} needs two choices or more, got {values}.")
        return CategoricalDistribution([v if _plain(v) else quoted(v) for v in values])
    if not isinstance(values, Mapping) or not {"low", "high"} <= set(values) <= set(KEYS):
        raise ValueError(
            f"sweep.space: {setting} must be a list of choices, or {{low: …, high: …}} with log: true or step: … "
            f"if wanted; got {values}."
        )
    low, high, log, step = (values.get(key) for key in KEYS)
    assert low is not None and high is not None
    if not all(_number(v) for v in (low, high)) or (step is not None and not _number(step)):
        raise ValueError(f"sweep.space: {setting} needs numbers, got {dict(values)}.")
    try:
        if all(isinstance(v, int) for v in (low, high, step if step is not None else 1)):
            return IntDistribution(low, high, log=bool(log), step=step or 1)
        return FloatDistribution(low, high, log=bool(log), step=step)
    except ValueError as error:
        raise ValueError(f"sweep.space: {setting}: {' '.join(str(error).split())}") from error


def overrides(parameters: Mapping[str, Any]) -> list[str]:
    """A trial's parameters as train.py reads them."""
    return [f"{setting}={_written(value)}" for setting, value in parameters.items()]


def _written(value: Any) -> str:
    """Choices are yaml names, or values that were written in Hydra's grammar when the space was read."""
    return value if isinstance(value, str) else quoted(value)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
