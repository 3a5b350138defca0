"""Handing runs to engines: the protocol of launchers, work units, and how a sweep trains what is missing."""

from slicedice.launching.loading import load_launcher
from slicedice.launching.protocol import Attended, Job, Launcher, LaunchError, LeftoverError, Phase, WorkUnit

__all__ = ["Attended", "Job", "LaunchError", "Launcher", "LeftoverError", "Phase", "WorkUnit", "load_launcher"]
