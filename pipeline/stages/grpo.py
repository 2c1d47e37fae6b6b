"""grpo: samples of a prompt are each other's baseline; usually against verifiers (RLVR). arXiv:2402.03300."""

from pipeline.stages.policy import run

__all__ = ["run"]
