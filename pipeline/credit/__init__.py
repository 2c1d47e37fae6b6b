"""Scored rollouts -> advantages, selection or condition labels. Pure: torch and the standard library only.

Axis suffixes, in credit/ and update/ alike. `rewards_PG` is a tensor of shape (P, G).

P  prompts                          B  rows (completions) of a batch, prompt-major
G  samples per prompt               T  completion tokens; S = T + 1 positions (one more after the last token)
E  episodes (one row, or one per turn)   K  steps or turns of an episode
M  continuations per branch         L  tokens of prompt and completion
N  tokens of a packed batch         H  hidden size
V  vocabulary                       C  tokens of one chunk
J  tokens of one attention bucket   1  an axis of size one

A mask is named for what True keeps: mask_BT is True on tokens the policy sampled.
"""
