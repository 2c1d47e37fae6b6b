"""What a run stops with beside ConfigError (pipeline.config.load): the command line turns each into its exit code."""

from __future__ import annotations


class LineageError(ValueError):
    """Exit 2: a stage on disk is missing, incomplete, in use, or not what its manifest says."""


class Alarm(RuntimeError):
    """Exit 3: a run stopped by one of its own checks. The message names the fault and what to check."""
