"""ppo: critic, GAE, KL to the reference in the reward, usually against the learned reward (RLHF).

The last step of text-davinci-003's lineage (InstructGPT, arXiv:2203.02155). What makes it PPO is its settings,
`pipeline.config.load.PPO_DEFAULTS`; the loop is the one every policy-gradient method runs.
"""

from pipeline.stages.policy import run

__all__ = ["run"]
