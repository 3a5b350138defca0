"""slicedice: sweeps of Mixture-of-Experts language models, from one command to tables and figures.

Doors: `python -m slicedice.sweep` (a grid of runs), `slicedice.train` (one run) and `slicedice.work` (what
a launcher starts). Importing the package itself imports nothing heavy, so that the parent of a sweep never
touches a device.
"""

__version__ = "0.1.0"
