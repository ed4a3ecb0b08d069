"""Trains a diffusion model: python train.py [group=option] [key=value], see --help."""

from omegaconf import DictConfig

from triptych import cli, recall


def train(config: DictConfig) -> None:
    from triptych import signals

    try:
        with signals.listening() as asked:
            try:
                if config.find_batch:
                    from triptych import find_batch

                    return find_batch.find(config, asked)
                from triptych import training

                training.train(config, asked)
            except signals.Interrupted:
                print("\nInterrupted before the first step: nothing was trained.")
                raise SystemExit(asked.exit_code) from None
    except SystemExit as stop:
        if stop.code == signals.REQUEUE:
            signals.resubmit()
        raise


if __name__ == "__main__":
    cli.command("train", train, prepare=recall.resume_arguments)
