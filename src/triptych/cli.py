"""The command line: Hydra composes, help is short, and bad input gets one sentence. Imports nothing heavy.

Every script is `cli.command("train", task)`; torch and Lightning are imported by the task, after Hydra has composed.
"""

import contextlib
import difflib
import functools
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

from omegaconf import DictConfig, OmegaConf

from triptych.check import check
from triptych.layout import config_beside

CONF = Path(__file__).parents[2] / "conf"
Built = TypeVar("Built")
BAD_INPUT, INTERRUPTED = 2, 130  # exit codes
VALUED_OPTIONS = (  # Hydra's, each followed by a value
    *("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
    *("--experimental-rerun", "-i", "--info"),  # the last two may go without
)
MODES = ("-r", "--run", "-m", "--multirun", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")  # one of them
NO_DEFAULT = "Say {}=…, it has no default; see --help."
NO_NAME = re.compile(r"(?i:null|true|false)|[-+.\d]*")  # of an option: Hydra gives a traceback for it
OPTIONS = (*MODES, "-h", "--help", "--hydra-help", "--version", "--resolve")


def command(
    name: str, task: Callable[[DictConfig], object], prepare: Callable[[list[str]], list[str]] | None = None
) -> None:
    """Runs `task` on the composed `conf/<name>.yaml`, after a look for what was mistyped.

    Args:
        prepare: rewrites the command line's arguments before Hydra reads them, e.g. to take a run's own settings.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    @functools.wraps(task)
    def job(config: DictConfig) -> object:
        try:
            with _environment(HYDRA_FULL_ERROR=full_error):  # as the user has it, for processes that the task starts
                with refusals():
                    check(config, choices(), CONF)
                return task(config)
        except SystemExit as stop:
            return _ended(stop)
        finally:
            _remove_if_empty(Path(HydraConfig.get().runtime.output_dir))  # made by Hydra, and not needed after all

    register_resolvers()
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    try:
        with refusals():
            _check_form(sys.argv[1:])
            if prepare is not None:
                sys.argv[1:] = prepare(sys.argv[1:])
            sys.argv[1:] = _settings_first(sys.argv[1:])
        with _environment(HYDRA_FULL_ERROR="1"):  # lets errors through to us
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        if full_error:
            raise
        refuse(explain(error, name))
    except BrokenPipeError:  # of `--help | head`; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


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
        if NO_NAME.fullmatch(option) and (CONF / group).is_dir():
            raise ValueError(f"There is no {setting}: leave it out, or choose {', '.join(options(group))}.")


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


def refuse(sentence: str) -> NoReturn:
    """Prints why nothing was started, and exits."""
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    raise SystemExit(BAD_INPUT)


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


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Around the building of a task, before any work: turns what our constructors refuse into one sentence."""
    try:
        yield
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        refuse(said)


def sentence(error: Exception) -> str | None:
    """What an error says about the settings, in one sentence; None if it is not about them."""
    from hydra.errors import InstantiationException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, InstantiationException):
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__  # what a constructor raised, which may have causes of its own
        if isinstance(cause, (ValueError, OSError, ImportError)) or type(cause).__name__ == "MisconfigurationException":
            return " ".join(str(cause).split())
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(cause))
        if isinstance(cause, TypeError) and unexpected:
            where = str(error).partition("full_key: ")[2] or "the config"
            return f"There is no setting {unexpected[1]!r} in {where}."
        if "HYDRA_FULL_ERROR" in os.environ:
            return None
        what = re.search(r"'([\w.]+)'", str(error))
        return f"{what[1] if what else 'Something'} cannot be built of these settings ({cause})."
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, (OmegaConfBaseException, YAMLError, ValueError, OSError)):
        return " ".join(str(error).split())
    return None


def attempt(build: Callable[[], Built], name: str) -> tuple[Built | None, str]:
    """What `build` gives; or None and the sentence by which a config called `name` would be refused."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), refusals():
            return build(), ""
    except (HydraException, OmegaConfBaseException) as error:
        return None, explain(error, name)
    except SystemExit:
        return None, said.getvalue().strip().partition(": ")[2]


def need(config: DictConfig, key: str) -> None:
    """Refuses a config in which a setting without default has been left out."""
    if OmegaConf.is_missing(config, key):
        raise ValueError(NO_DEFAULT.format(key))


def explain(error: Exception, *names: str) -> str:
    """One sentence out of Hydra's several lines. `names` are the configs whose keys may have been meant."""
    text = str(error)
    if missing := re.search(r"Could not find '([^']+)'", text):
        group, _, option = missing[1].rpartition("/")
        group = re.sub(r"@.*", "", group)
        choices = options(group)
        return f"There is no {group}={option}" + (f": choose {', '.join(choices)}." if choices else ".")
    if no_group := re.search(r"Could not override '([^']*)'\.\s*No match in the defaults list", text):
        return f"There is no group {no_group[1]!r}: choose {', '.join(_groups_of(names))}, or see --help."
    if key := re.search(r"Could not override '([^']+)'", text):
        wanted = key[1]
        known = [key for name in names for key in _keys(name)]
        if wanted in known:  # by default, but not with the options on this command line
            return f"There is no setting {wanted!r} beside the options given here."
        near = difflib.get_close_matches(wanted, known, 3, 0.6)
        near = near or [k for k in known if k.rpartition(".")[2] == wanted.rpartition(".")[2]][:3]
        hint = f"did you mean {' or '.join(near)}?" if near else "see --help, or --cfg job for every key."
        return f"There is no setting {wanted!r}: {hint}"
    if mandatory := re.search(r"Missing mandatory value: (\S+)", text):
        return NO_DEFAULT.format(mandatory[1])
    if written := getattr(error, "override", None):  # what Hydra's parser does not understand
        return f"{written!r} cannot be read: write key=value, with brackets and quotes closed."
    first = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(first[:2]) or repr(error)


def options(group: str) -> list[str]:
    """The names of a config group's yaml files."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def groups() -> list[str]:
    """The config groups of the command line."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")


def _groups_of(names: Iterable[str]) -> list[str]:
    """The groups that these configs choose from."""
    defaults = [entry for name in names for entry in OmegaConf.load(CONF / f"{name}.yaml").get("defaults", [])]
    return sorted({key for entry in defaults if not isinstance(entry, str) for key in entry} & set(groups()))


def _keys(name: str) -> list[str]:
    """Every key of the default config, dotted."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    def walk(node: object, prefix: str) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                yield f"{prefix}{key}"
                yield from walk(value, f"{prefix}{key}.")

    GlobalHydra.instance().clear()
    with contextlib.suppress(Exception), initialize_config_dir(str(CONF), version_base="1.3"):
        return [k for k in walk(OmegaConf.to_container(compose(name)), "") if "_target_" not in k]
    return []


def register_resolvers() -> None:
    """The few functions that our yamls may call."""
    OmegaConf.register_new_resolver("out_channels", _out_channels, replace=True)
    OmegaConf.register_new_resolver("run_id", run_id, replace=True)
    OmegaConf.register_new_resolver("choice", _choice, replace=True)
    OmegaConf.register_new_resolver("launched", launched, replace=True)
    OmegaConf.register_new_resolver("options_of", _options_of, replace=True)


def _options_of(*names: str) -> str:
    """A paragraph for each config group, as a script's help shows those that are its business."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    return "".join(
        textwrap.fill(f"{name}: {', '.join(options(name))}", width, subsequent_indent="    ", break_on_hyphens=False)
        + "\n"
        for name in names
    )


def _out_channels(_root_: DictConfig) -> int:
    """What a network gives back for each channel it gets: twice as much if it also tells the variance."""
    learned = OmegaConf.select(_root_, "formulation.variance") == "learned"
    return _root_.dataset.channels * (2 if learned else 1)


def launched(what: str, default: int | str) -> int | str:
    """ "devices" (processes a node) or "nodes" of the launcher that started this process, torchrun or srun."""
    world = os.environ
    if "TORCHELASTIC_RUN_ID" in world:
        return int(world["LOCAL_WORLD_SIZE"] if what == "devices" else world["GROUP_WORLD_SIZE"])
    if "SLURM_STEP_NUM_TASKS" in world and "SLURM_PROCID" in world:
        nodes = int(world.get("SLURM_STEP_NUM_NODES", 1))
        return int(world["SLURM_STEP_NUM_TASKS"]) // nodes if what == "devices" else nodes
    return default


def run_id() -> str:
    """A short random name, the same throughout a job of this process."""
    from hydra.core.hydra_config import HydraConfig

    job = OmegaConf.select(HydraConfig.get(), "job.num") if HydraConfig.initialized() else None
    return _random_name(job)


@functools.cache
def _random_name(job: int | None) -> str:
    import secrets

    return secrets.token_hex(4)


def choices() -> dict[str, str]:
    """The option that was chosen from each config group, whatever package it was put in."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {}
    chosen = HydraConfig.get().runtime.choices.items()
    return {k.split("@")[0]: str(v) for k, v in chosen if not k.startswith("hydra") and v is not None}


def _choice(group: str) -> str:
    return choices().get(group, group)


def resume_arguments(arguments: list[str]) -> list[str]:
    """`resume=<run folder>` becomes the run's own overrides, then the new ones, written in that folder.

    `resume=auto hydra.run.dir=<folder>` does so if there is a run to continue, and else begins one there.
    """
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    folder = given.get("resume")
    many = bool({"-m", "--multirun"} & {*arguments})
    if many and folder is None and given.get("hydra/launcher", "processes") != "processes":
        return [*arguments, "resume=auto"]  # a job that is submitted again goes on
    if not folder or folder == "null":
        return arguments
    if many:
        if folder == "auto":
            return arguments  # every trial looks in its own folder
        return _sweep_arguments(Path(folder), [a for a in arguments if not a.startswith("resume=")])
    auto = folder == "auto"
    if auto:
        folder = given.get("hydra.run.dir", "").strip("'\"")
        if not folder:
            raise ValueError("resume=auto needs a folder to look in, the same each time: give hydra.run.dir=….")
        if not (Path(folder) / "overrides.yaml").exists():
            return arguments  # there is nothing yet
    stored = Path(folder) / "overrides.yaml"
    if not stored.exists():
        raise FileNotFoundError(f"There is no run to resume at {folder}: it has no overrides.yaml.")
    before = [str(a) for a in OmegaConf.load(stored) if not str(a).startswith(("resume=", "hydra.run.dir="))]
    check_stored(before, stored, "hydra")
    before = [override for override in before if override not in arguments]  # a resubmission says them again
    return [*before, *arguments, *([] if auto else [f"hydra.run.dir={quoted(str(Path(folder)))}"])]


def _sweep_arguments(folder: Path, arguments: list[str]) -> list[str]:
    """`-m resume=<sweep folder>` becomes the sweep's own arguments, where the command line does not say otherwise."""
    stored = folder / "multirun.yaml"
    if not stored.exists():
        raise FileNotFoundError(f"There is no sweep to resume at {folder}: it has no multirun.yaml.")
    overrides = OmegaConf.load(stored).hydra.overrides
    given = {a.split("=", 1)[0] for a in arguments} | {"hydra.mode", "hydra.sweep.dir"}
    before = [str(a) for a in (*overrides.hydra, *overrides.task) if str(a).split("=", 1)[0] not in given]
    check_stored(before, stored, "hydra.searchpath")
    return [*before, *arguments, f"hydra.sweep.dir={quoted(str(folder))}"]


def check_stored(overrides: list[str], file: Path, forbidden: str) -> None:
    """Refuses overrides from a file that would call what they like."""
    for override in overrides:
        if "_target_" in override or override.lstrip("+~").startswith(forbidden):
            raise ValueError(f"{file} says {override!r}, which a file may not ask for: remove that line.")


def run_arguments(arguments: list[str], nodes: tuple[str, ...], instead: tuple[str, ...] = ()) -> list[str]:
    """`run=<folder or checkpoint>` brings the run's own choices of these nodes, which the command line may override.

    A node that is not chosen anew by `node=option` comes as the run's option, with the values that the run gave it.
    With -m, what is brought has one value each, the same in every job; a grid over a node (`-m sampler=ddim,heun`) is
    a choice of it, so nothing of the run's is brought there.

    Args:
        instead: settings with which no run is needed.
    """
    given = dict(a.split("=", 1) for a in arguments if "=" in a and not a.startswith("-"))
    run = given.get("run")
    asks = any(a.startswith("-") and a not in ("-m", "--multirun", "-r", "--run") for a in arguments)  # for a page
    if not run and not asks and not {key.lstrip("+") for key in given} & {"run", *instead}:
        raise ValueError(NO_DEFAULT.format("run"))
    if not run or any(a in ("--help", "-h", "--hydra-help") for a in arguments):
        return arguments
    config = _stored_config(Path(run))
    brought: list[str] = []
    for node in nodes:
        values = config.get(node)
        if node in given or not isinstance(values, dict) or "_target_" not in values:
            continue
        option = config.get("choices", {}).get(node)
        if option in options(node):
            brought.append(f"{node}={option}")
            brought += [f"++{key}={value}" for key, value in _leaves(values, node)]
    # checkpoints are called step=100.ckpt, which Hydra reads in quotes only
    return [*brought, *(f"run={quoted(run)}" if a == f"run={run}" and "=" in run else a for a in arguments)]


def _stored_config(path: Path) -> dict:
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}: give run=<a run folder or a .ckpt file>.")
    stored = config_beside(path)
    if stored is None:  # a lone checkpoint: its config is inside
        from triptych.run import read_checkpoint

        stored = dict(read_checkpoint(path).get("hyper_parameters", {}))
    return stored


def _leaves(values: dict, prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if isinstance(value, dict) and value and not any("." in str(k) for k in value):  # dots part keys, in Hydra
            yield from _leaves(value, name)
        else:
            yield name, quoted(value)


def quoted(value: object) -> str:
    """A value as Hydra's override grammar reads it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(quoted(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{quoted(v)}" for k, v in value.items()) + "}"
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + m[2].replace("'", "\\'"), str(value))
    return f"'{escaped}'"  # backslashes are special before a quote only


register_resolvers()  # here, for jobs that a launcher has pickled: they import this, and call nothing
