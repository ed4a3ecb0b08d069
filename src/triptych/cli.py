"""The command line: Hydra composes, help is short, and bad input gets one sentence. Imports nothing heavy.

Every script is `cli.command("train", task)`; torch and Lightning are imported by the task, after Hydra has composed.
"""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import DictConfig

from triptych import conf
from triptych.check import check
from triptych.refusal import explain, refusals, refuse

INTERRUPTED = 130  # exit code, beside refusal's
VALUED_OPTIONS = (  # Hydra's, each followed by a value
    *("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
    *("--experimental-rerun", "-i", "--info"),  # the last two may go without
)
MODES = ("-r", "--run", "-m", "--multirun", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")  # one of them
OPTIONS = (*MODES, "-h", "--help", "--hydra-help", "--version", "--resolve")
NO_NAME = re.compile(r"(?i:null|true|false)|[-+.\d]*")  # of an option: Hydra gives a traceback for it


def command(
    name: str, task: Callable[[DictConfig], object], prepare: Callable[[list[str]], list[str]] | None = None
) -> None:
    """Runs `task` on the composed `conf/<name>.yaml`, after a look for what was mistyped.

    Args:
        prepare: rewrites the command line's arguments before Hydra reads them, e.g. to take a run's own settings.
    """
    try:
        _run(name, task, prepare)
    except BrokenPipeError:  # of `--help | head`; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # while something is imported, too
        print(f"{Path(sys.argv[0]).name}: interrupted.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def _run(name: str, task: Callable[[DictConfig], object], prepare: Callable[[list[str]], list[str]] | None) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    @functools.wraps(task)
    def job(config: DictConfig) -> object:
        try:
            with _environment(HYDRA_FULL_ERROR=full_error):  # as the user has it, for processes that the task starts
                with refusals():
                    check(config, conf.choices(), conf.FOLDER)
                return task(config)
        except SystemExit as stop:
            return _ended(stop)
        finally:
            _remove_if_empty(Path(HydraConfig.get().runtime.output_dir))  # made by Hydra, and not needed after all

    conf.register_resolvers()
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    try:
        with refusals():
            _check_form(sys.argv[1:])
            if prepare is not None:
                sys.argv[1:] = prepare(sys.argv[1:])
            sys.argv[1:] = _settings_first(sys.argv[1:])
        with _environment(HYDRA_FULL_ERROR="1"):  # lets errors through to us
            hydra.main(version_base="1.3", config_path=str(conf.FOLDER), config_name=name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        if full_error:
            raise
        refuse(explain(error, name))


def _ended(stop: SystemExit) -> None:
    """In a job of submitit, which would take SystemExit for a crash, an exit code means what it means at a prompt."""
    if "SUBMITIT_EXECUTOR" not in os.environ or stop.code == -1:  # the latter is submitit's own: put back in the queue
        raise stop
    if stop.code:
        raise RuntimeError(f"ended with exit code {stop.code}") from None


def _check_form(arguments: list[str]) -> None:
    """Settings are written key=value: what looks like another program's options is refused before Hydra sees it."""
    settings, flags = _sorted(arguments)
    for flag in flags:
        name = flag.split("=")[0]
        if name.startswith("-") and name not in (*VALUED_OPTIONS, *OPTIONS):
            plain = name.lstrip("-").replace("-", "_")
            raise ValueError(f"There is no option {name}: write settings as {plain}=…, without dashes; see --help.")
    modes = [flag for flag in flags if flag.split("=")[0] in MODES]
    if len(modes) > 1:
        raise ValueError(f"{' and '.join(modes)} do not go together: choose one.")
    for setting in settings:
        group, _, option = setting.partition("=")
        if ("=" not in setting and not setting.startswith("~")) or not group:
            raise ValueError(f"{setting!r} is not a setting: write key=value, and quotes around what has spaces.")
        if NO_NAME.fullmatch(option) and (conf.FOLDER / group).is_dir():
            raise ValueError(f"There is no {setting}: leave it out, or choose {', '.join(conf.options(group))}.")


def _settings_first(arguments: list[str]) -> list[str]:
    """The same command, in the one order that Hydra's parser reads: it knows settings on one side of an option only."""
    settings, options = _sorted(arguments)
    return settings + options


def _sorted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The settings, and Hydra's own options with their values, each in the order they were given."""
    settings, options = [], []
    value_follows = False
    for argument in arguments:
        is_option = argument.startswith("-") or (value_follows and "=" not in argument)
        (options if is_option else settings).append(argument)
        value_follows = argument in VALUED_OPTIONS
    return settings, options


def quiet() -> None:
    """Silences what Lightning and W&B say that is of no use to our users."""
    import logging
    import warnings

    for name in ("lightning.pytorch", "lightning.fabric", "wandb"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*srun",
        ".*LeafSpec",
        ".*have many workers",
        ".*weights_only",
        ".*IterableDataset",
        ".*Grad strides",
        ".*AMP with fp16 is not supported on CPU",  # it would go on in another; we refuse
        ".*supported for historical reasons",
    ):
        warnings.filterwarnings("ignore", message)


@contextlib.contextmanager
def _environment(**variables: str | None) -> Iterator[None]:
    """Sets environment variables (None: unset) for a while."""
    before = {name: os.environ.get(name) for name in variables}
    try:
        _set(variables)
        yield
    finally:
        _set(before)


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _remove_if_empty(folder: Path) -> None:
    """Removes a folder that holds nothing, then its parents that hold nothing, below the current folder."""
    while folder.is_dir() and not any(folder.iterdir()) and folder not in (Path.cwd(), *Path.cwd().parents):
        folder.rmdir()
        folder = folder.parent if folder.parent.is_relative_to(Path.cwd()) else Path.cwd()
