"""Handing runs to engines: the protocol of launchers, work units, and how a sweep trains what is missing."""

from slicedice.launching.loading import load_launcher
from slicedice.launching.protocol import Attended, Job, Launcher, LaunchError, Phase, WorkUnit

__all__ = ["Attended", "Job", "LaunchError", "Launcher", "Phase", "WorkUnit", "load_launcher"]
