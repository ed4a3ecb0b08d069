"""Searches for good settings: python sweep.py sweep=<space> [key=value] [any setting of train.py], see --help."""

from omegaconf import DictConfig

from triptych import cli, refusal


def sweep(config: DictConfig) -> None:
    from triptych.sweep.arguments import check

    with refusal.refusals():
        check(config)
    try:
        import optuna  # noqa: F401
    except ImportError:
        refusal.refuse("Searching needs Optuna: pip install -e '.[sweep]'.")
    from triptych.sweep.search import search

    search(config)


def arguments(given: list[str]) -> list[str]:
    from triptych.sweep.arguments import sort

    return sort(given)


if __name__ == "__main__":
    cli.command("sweep", sweep, prepare=arguments)
