"""Weights & Biases: online when the user is logged in, offline otherwise or when the network fails."""

import contextlib
import netrc
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from triptych.record import Record
from triptych.scalars import AXIS
from triptych.tracking.thread import PATIENCE, aside

INIT_TIMEOUT = 30  # seconds W&B may take to answer before the run goes on offline
FINISH_TIMEOUT = 120  # seconds it may take to upload what is left when the run ends


class Wandb(WandbLogger):
    """W&B's logger, no failure of which stops a run: it is said once, and every number is in metrics.csv anyway."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        with _forgiving_wandb():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_picture(self, name: str, picture: torch.Tensor, step: int, images_seen: int) -> None:
        """A uint8 [C, H, W] picture."""
        import wandb

        from triptych.image import to_numpy

        with _forgiving_wandb():
            shown = {name: wandb.Image(to_numpy(picture)), AXIS: images_seen, "trainer/global_step": step}
            self.experiment.log(shown)


_wandb_failures: set[str] = set()


@contextlib.contextmanager
def _forgiving_wandb() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever happens to W&B
        kind = type(error).__name__
        if kind not in _wandb_failures:
            reason = str(error).splitlines()[0] if str(error) else kind
            print(f"W&B has a problem ({reason}); the run goes on, and metrics.csv has every number.", flush=True)
        _wandb_failures.add(kind)


def logged_in() -> bool:
    """Whether W&B would find a key without asking: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def connect(settings: dict[str, Any], folder: Path, run_id: str, config: dict[str, Any]) -> Wandb | None:
    """A started W&B logger that writes under `folder`, or None where W&B is disabled.

    Args:
        settings: keyword arguments of WandbLogger (project, group, tags, name, ...).
        run_id: so that a resumed run continues the same W&B run.
        config: the composed config, shown by W&B.
    """
    mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    if mode == "disabled":
        return None
    os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")  # where payloads are staged until they are synced
    os.environ.setdefault("WANDB_SILENT", "true")
    if rank_zero_only.rank == 0:  # another process may have been started with a folder of its own
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
    patience = threading.Timer(5, print, [f"Waiting for W&B, {INIT_TIMEOUT:.0f} s at most …"], {"flush": True})
    patience.daemon = True
    if mode == "online" and rank_zero_only.rank == 0:
        patience.start()
    try:
        return _start(settings, folder, run_id, config, offline=mode != "online")
    except Exception as error:  # a missing key, no network, a server that says no: the run matters more
        if mode != "online":
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"W&B cannot be reached ({reason}); this run goes on offline.")
        os.environ["WANDB_MODE"] = "offline"
        with contextlib.suppress(Exception):
            import wandb

            wandb.teardown()  # its process takes the id for one that is in use
        return _start(settings, folder, run_id, config, offline=True)
    finally:
        patience.cancel()


def _start(settings: dict[str, Any], folder: Path, run_id: str, config: dict[str, Any], offline: bool) -> Wandb:
    """W&B's run is started here, and not by Lightning, whose x-axis would be its global step."""
    if rank_zero_only.rank != 0:
        return Wandb(save_dir=folder, offline=True, id=run_id)
    import wandb

    run = wandb.init(
        dir=folder,
        mode="offline" if offline else "online",
        id=run_id,
        resume="allow",
        config=config,
        allow_val_change=True,
        settings=wandb.Settings(
            init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, finish_timeout_raises=True, console="off"
        ),
        **{k: v for k, v in settings.items() if k != "_target_"},
    )
    run.define_metric(AXIS)
    run.define_metric("*", step_metric=AXIS)
    return Wandb(save_dir=folder, experiment=run)


def how_to_look(logger: Wandb | None, folder: Path) -> str:
    """The address of the run; or of an offline one, on two lines, the commands that show it and that bring it there."""
    if logger is None:
        return "W&B is disabled; every number is in metrics.csv"
    run = logger.experiment
    if not run.settings._offline and run.url:
        return run.url
    where = _short(Path(run.dir).parent)
    return f"offline; to look:   wandb leet {where}\n{'':12}to bring it there:  {_sync(folder, where)}"


def _sync(folder: Path, where: str) -> str:
    """The command for a run that has been started once, or more often: W&B gives up at a segment of a run that was
    killed, which ends in the middle of a row, so each is brought there by itself."""
    more = len(list((folder / "wandb").glob("offline-run-*"))) > 1
    segments = f"{_short(folder)}/wandb/offline-run-*"
    return f"for run in {segments}; do wandb sync $run; done" if more else f"wandb sync {where}"


def name_of(record: Record, settings: Mapping[str, str]) -> str:
    """What W&B calls the number of a later evaluation, e.g. evaluation/fd_digits_1k/DDIM steps 20."""
    sampler = record.sampler or {}
    said = [f"{key.rpartition('.')[2]} {value}" for key, value in settings.items() if key != "sampler"]
    said = said or ([f"steps {sampler['steps']}"] if "steps" in sampler else [])
    about = (record.reference or {}).get("split")
    rest = [record.weights] * (not record.weights.startswith("ema(half")) + [str(about)] * (about != "train")
    how = " ".join([str(sampler.get("name", "")), *said]).strip()  # nothing, of a metric of the denoiser
    return "/".join(filter(None, ["evaluation", record.metric, how, *rest]))


def log_evaluation(
    folder: Path, stored: Mapping[str, Any], records: Mapping[str, Record], pictures: Mapping[str, Path]
) -> str | None:
    """Adds the numbers of an evaluation after training to the run's own W&B run; tells where to look.

    Online the run is resumed. Offline a second segment with the same id comes to lie beside the first; `wandb sync`
    brings them there in the order of their start, as one run. A number that has been logged is not logged again. Never
    raises: the records are written already, and matter more.

    Args:
        stored: the run's config: `run_id`, and `logger` with its project.
        records: by the name that W&B shows. pictures: files, likewise.
    """
    settings, run_id, told = stored.get("logger"), stored.get("run_id"), folder / "wandb" / "evaluations.txt"
    if not settings or not run_id or not (folder / "wandb").is_dir() or os.environ.get("WANDB_MODE") == "disabled":
        return None
    done = set(told.read_text().splitlines()) if told.exists() else set()
    lines = {name: f"{name} {record.key} {record.values}" for name, record in records.items()}
    new = {name: record for name, record in records.items() if lines[name] not in done}
    if not new:
        return "has these numbers already"
    before = {name: os.environ.get(name) for name in ("WANDB_DATA_DIR", "WANDB_MODE", "WANDB_SILENT")}
    try:
        where = {key: settings[key] for key in ("project", "entity") if settings.get(key)}
        logger = connect(where, folder, str(run_id), {})
        if logger is None:
            return None
        try:
            _add(logger, new, pictures)
            look = how_to_look(logger, folder)
            if logger.experiment.settings._offline:
                look = f"offline, another segment of the same run; `{_sync(folder, _short(folder))}`"
        finally:
            finish(logger)
        with told.open("a") as file:
            file.writelines(f"{lines[name]}\n" for name in new)
        return look
    except Exception as error:  # whatever W&B does, the records are there
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return f"failed ({reason}); the records are written"
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _add(logger: WandbLogger, records: Mapping[str, Record], pictures: Mapping[str, Path]) -> None:
    import wandb

    seen = max(record.images_seen or 0 for record in records.values())
    shown: dict[str, Any] = {name: record.value for name, record in records.items()}
    shown |= {f"evaluation/{name}": wandb.Image(str(path)) for name, path in pictures.items()}
    logger.experiment.log({**shown, AXIS: seen})


def finish(logger: Wandb | None) -> None:
    """Writes what W&B still holds; without it, another run in the same process would go on in this one."""
    if logger is None or rank_zero_only.rank != 0:
        return
    if not aside.wait():
        print(f"W&B has not taken everything in {PATIENCE} s and is left alone; every number is in metrics.csv.")
        return
    with _forgiving_wandb():
        where = _short(Path(logger.experiment.dir).parent)
        try:
            logger.experiment.finish()
        except TimeoutError:  # a server that is gone; W&B has tried again all the time
            print(
                f"W&B did not take everything in {FINISH_TIMEOUT} s. Nothing is lost: bring it there with "
                f"`wandb sync --include-online {where}`.",
                flush=True,
            )


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
