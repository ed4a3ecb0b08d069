"""Triptych: DDPM, NCSN and score SDE, three panels of one picture."""

__version__ = "0.1.0"
