"""What cannot be done is said in one sentence, before any work."""

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

from omegaconf import DictConfig, OmegaConf

from triptych import conf

Built = TypeVar("Built")
BAD_INPUT = 2  # exit code
LIGHTNINGS = "No supported gpu backend found"  # which does not say what to do
NO_GPU = "PyTorch finds no GPU here: type trainer=cpu, or look at `nvidia-smi` and for PyTorch's CUDA build."
NO_DEFAULT = "Say {}=…, it has no default; see --help."


def refuse(sentence: str) -> NoReturn:
    """Prints why nothing was started, and exits."""
    print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
    raise SystemExit(BAD_INPUT)


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

    cause: BaseException = error
    while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
        cause = cause.__cause__  # what a constructor raised, which may have causes of its own
    if str(cause).startswith(LIGHTNINGS):  # the Trainer's or Fabric's, each of another class
        return NO_GPU
    if isinstance(error, InstantiationException):
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
        choices = conf.options(group)
        return f"There is no {group}={option}" + (f": choose {', '.join(choices)}." if choices else ".")
    if no_group := re.search(r"Could not override '([^']*)'\.\s*No match in the defaults list", text):
        return f"There is no group {no_group[1]!r}: choose {', '.join(conf.groups_of(names))}, or see --help."
    if key := re.search(r"Could not override '([^']+)'", text):
        wanted = key[1]
        known = [key for name in names for key in conf.keys(name)]
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
