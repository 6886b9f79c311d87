"""Simulators of a `SpikingProgram`. All of them give the same spikes; `reference` is the one to read."""

from hw.simulate.base import BACKENDS, Backend, Result, check_backend, open_backend

__all__ = ["BACKENDS", "Backend", "Result", "check_backend", "open_backend"]
