"""One file of a checkpoint that several processes have written into a folder (trainer=fsdp), to be given away or kept.

    python tools/consolidate.py run=<run folder, or a .ckpt folder in it> out=<file.ckpt>

Every script reads the folder as well; this needs host memory for the whole checkpoint, and no other process.
"""

import os
import sys
from pathlib import Path

from triptych.callback.checkpoint import write
from triptych.layout import checkpoint_of
from triptych.run import read_checkpoint


def main(arguments: list[str]) -> str:
    """What was done, in a sentence."""
    given = {name: value for name, _, value in (argument.partition("=") for argument in arguments)}
    if set(given) != {"run", "out"}:
        raise ValueError((__doc__ or "").strip())
    source, target = checkpoint_of(given["run"]), Path(given["out"])
    if source.is_file():
        raise ValueError(f"{source} is one file already.")
    if target.exists() or target.suffix != ".ckpt":
        raise ValueError(f"out={target} must be a file that is not there yet, called something.ckpt.")
    checkpoint = read_checkpoint(source)
    write(checkpoint, target)
    size = target.stat().st_size / 2**20
    return f"{os.path.relpath(target)}: {size:,.1f} MiB, step {checkpoint['global_step']} of {os.path.relpath(source)}"


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"consolidate.py: {error}")
