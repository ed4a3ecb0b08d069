"""The bar of training."""

import io

import pytest
from rich.console import Console

from triptych.callback.progress import progress


@pytest.mark.parametrize("steps", [1_700, 800_000])
def test_every_number_can_be_read_on_80_columns(steps):
    page = io.StringIO()
    bar = progress(Console(file=page, width=80, force_terminal=True, color_system=None))
    numbers = "loss 0.0987  val 0.0912  1234 images/s"
    bar.add_task("training", total=steps, completed=steps // 3, numbers=numbers)
    bar.console.print(bar.get_renderable())
    assert numbers in page.getvalue() and f"{steps // 3}/{steps}" in page.getvalue()
    assert "…" not in page.getvalue()
