"""Compares runs: python compare.py runs='runs/**' out=report, see --help."""

from typing import Any

from omegaconf import DictConfig

from triptych import cli, conf, refusal


def compare(config: DictConfig) -> None:
    import os

    from omegaconf import OmegaConf
    from rich.console import Console
    from rich.progress import track

    from triptych import report

    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # pyright: ignore[reportAssignmentType]
    console = Console(stderr=True)
    with refusal.refusals():
        out = report.check(settings)
        if settings["wandb"]:
            from triptych.report.remote import fetch
            from triptych.tracking import logged_in

            if not logged_in():
                raise ConnectionError("Reading runs from W&B needs a key: wandb login, or runs=<folders> on this disk.")
            runs = fetch(settings["wandb"], lambda found, n: track(found, "reading from W&B", n, console=console))
        else:
            folders = report.find(settings["runs"])
            named = list(zip(folders, report.names(folders), strict=True))
            runs = [report.read(*one) for one in track(named, "reading runs", console=console, disable=len(named) < 20)]
    table = report.build(runs)
    out.mkdir(parents=True, exist_ok=True)
    figures = report.write(out / "index.html", table, settings["title"], settings["pictures"])
    (out / "table.csv").write_text(report.to_csv(table))
    markdown = report.to_markdown(table, report.TEST)
    (out / "table.md").write_text(markdown)
    print(markdown)
    print(f"{report.summary(table)}")
    print(f"  {os.path.relpath(out)}: index.html, table.csv, table.md")
    if settings["summary"]:
        from triptych import tracking
        from triptych.report.remote import log

        cli.quiet()
        logger = tracking.connect(
            settings["summary"], out, conf.run_id(), {"runs": settings["runs"] or settings["wandb"]}
        )
        if logger is not None:
            log(logger.experiment, table, figures)
        print(f"  W&B       {tracking.how_to_look(logger, out)}" if logger else "  W&B is disabled: no summary there.")
        tracking.finish(logger)


if __name__ == "__main__":
    cli.command("compare", compare)
