"""The user's mistakes: the error that carries them, and what a user who typed a name probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

MOST_NAMES = 5
NEAR_NAME = 0.55  # likeness from which a name is worth listing
NEAR_FILE = 0.7  # likeness of two file names, without their common suffix, from which one may be a typo of the other


class ConfigError(ValueError):
    """The user's mistakes, one line each. The command line prints them and exits 2."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("\n".join(self.mistakes))


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error line: the nearest known name, else the names there are, at most five; of more only those
    that are somewhat alike, "" if none is."""
    known = sorted(set(map(str, known)) - {name})
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    if len(known) <= MOST_NAMES:
        return f"; have: {', '.join(known)}" if known else ""
    likeness = {k: difflib.SequenceMatcher(None, name.lower(), k.lower()).ratio() for k in known}
    alike = [k for k in known if likeness[k] >= NEAR_NAME or (name and k.lower().startswith(name.lower()))]
    alike = sorted(alike, key=lambda k: -likeness[k])[:MOST_NAMES]
    return f"; nearest of {len(known)}: {', '.join(sorted(alike))}" if alike else ""


def found(value: object) -> str:
    """A value of a YAML as its user knows it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return f"the date {value}" if isinstance(value, date) else repr(value)


def no_text(value: object) -> str:
    """The end of a line about a value that must be text."""
    quotes = isinstance(value, date | int | float)
    number = "the number " if quotes and not isinstance(value, date | bool) else ""
    return f"expected text, found {number}{found(value)}{'; put it in quotes' if quotes else ''}"


def no_block(where: str, value: object) -> str:
    """The line about a value in place of a block of keys, with the block that was probably meant."""
    line = f"{where}: expected a block of keys, found {found(value)}"
    top, _, part = where.partition(".")
    names = value if isinstance(value, list) and all(isinstance(name, str) for name in value) else [value]
    if where in ("model", "prompts") and isinstance(value, str):
        return f"{line}; write {where}: {{path: {value}}}"
    if where == "rewards" and names and isinstance(names[0], str):
        return f"{line}; write rewards: {{{', '.join(f'{name}: {{weight: 1.0}}' for name in names)}}}"
    if top == "rewards" and part and (value is None or isinstance(value, int | float)):
        weight = 1.0 if value is None or isinstance(value, bool) else value
        return f"{line}; write rewards: {{{part}: {{weight: {weight}}}}}"
    return line


def without_followups(later: Iterable[str], first: Sequence[str]) -> list[str]:
    """The later lines, less those that say of a key that it is empty where an earlier line has refused its value."""
    refused = {line.partition(":")[0] for line in first if line.startswith("stages: ") or ": expected a block" in line}
    refused |= {key.rpartition(".")[0] for key in refused}
    empty = re.compile(r"([\w.]+): (give|name at least) ")
    return [line for line in later if not ((match := empty.match(line)) and match[1] in refused)]


def near_path(path: str | Path, *, suffixes: Sequence[str] = ()) -> str:
    """The end of a line about a path that does not exist: the nearest name in its directory; "" if no name is near.

    suffixes: only files that end so are offered; empty offers everything there.
    """
    path = Path(path)
    try:
        names = [p.name for p in path.parent.iterdir() if not suffixes or p.name.endswith(tuple(suffixes))]
    except OSError:  # no such directory, or closed
        return ""
    likeness = {name: _likeness(path.name, name) for name in sorted(names) if not name.startswith(".")}
    best = max(likeness, key=lambda name: likeness[name], default="")
    return f"; did you mean '{path.parent / best}'?" if likeness.get(best, 0.0) >= NEAR_FILE else ""


def _likeness(wanted: str, name: str) -> float:
    """From 0 to 1. A common suffix does not count: all YAML files end alike."""
    one, two = Path(wanted), Path(name)
    if one.suffix == two.suffix:
        wanted, name = one.stem, two.stem
    return difflib.SequenceMatcher(None, wanted.lower(), name.lower()).ratio()


def beside_yaml(yaml: str | Path, path: str | Path) -> str:
    """The end of a line about a relative path that does not exist from here: the same file beside the YAML, or ""."""
    there = Path(yaml).parent / path
    if Path(path).is_absolute() or not there.exists():
        return ""
    return f"; it is beside the YAML: paths are relative to the directory of the command, so write {there}"


# What other libraries and papers call our keys. Candidates are tried in turn: dotted below the stage's block, or from
# the top of the YAML after a slash; the first that the stage has is offered.
SYNONYMS: dict[str, tuple[str, ...]] = {}
for _names, _ours in (
    ("lr learning_rate actor_lr", ("optimizer.learning_rate", "trainer.learning_rate")),
    ("num_generations group_size rollouts_per_prompt num_return_sequences num_rollouts n_samples n_samples_per_prompt "
     "num_samples samples_per_prompt generations rollout_n n", ("samples",)),
    ("beta kl_beta kl_coef kl_coeff kl_penalty init_kl_coef kl_loss_coef kl_ctl kl_weight", ("kl.coef", "kl_coef")),
    ("target_kl kl_target", ("kl.target",)),
    ("batch_size train_batch_size rollout_batch_size prompts_per_step prompt_batch_size per_device_train_batch_size",
     ("trainer.per_device_train_batch_size", "prompts")),
    ("micro_batch_size per_device_batch_size microbatch_size ppo_micro_batch_size gradient_accumulation_steps",
     ("trainer.gradient_accumulation_steps", "tokens_per_microbatch")),
    ("mini_batch_size ppo_mini_batch_size num_minibatches num_mini_batches mini_batches", ("minibatches",)),
    ("max_new_tokens max_completion_length max_completion_tokens max_response_length response_length max_tokens "
     "max_gen_len generate_max_len", ("/sampling.max_tokens",)),
    ("max_prompt_length prompt_max_len max_prompt_len", ("/prompts.max_prompt_tokens",)),
    ("max_length max_seq_length max_seq_len", ("trainer.max_length", "/sampling.max_tokens")),
    ("epsilon eps_clip clip_eps clip_range cliprange clip_ratio clip_epsilon clip epsilon_low clip_ratio_low",
     ("loss.clip_low",)),
    ("epsilon_high clip_ratio_high eps_clip_high", ("loss.clip_high",)),
    ("cliprange_value value_clip vf_clip", ("critic.clip",)),
    ("vf_coef value_loss_coef", ("critic.coef",)),
    ("critic_lr critic_learning_rate", ("critic.learning_rate",)),
    ("lora lora_config peft_config use_peft use_lora rank lora_rank lora_r r lora_alpha alpha target_modules "
     "lora_target_modules lora_dropout", ("peft",)),
    ("num_epochs num_train_epochs ppo_epochs num_ppo_epochs num_iterations mu inner_epochs",
     ("trainer.num_train_epochs", "epochs")),
    ("max_steps num_steps total_steps iterations training_steps num_updates total_training_steps",
     ("trainer.max_steps", "steps")),
    ("scale_rewards norm_adv_by_std", ("credit.scale",)),
    ("advantage advantage_estimator adv_estimator baseline", ("credit.kind",)),
    ("lambda lambda_ gae_lambda lmbda", ("credit.lam",)),
    ("discount discount_factor", ("credit.gamma", "gamma")),
    ("whiten_rewards whiten_advantages normalize_advantages", ("credit.whiten",)),
    ("loss_type algorithm algo", ("method", "loss.kind")),
    ("loss_agg_mode aggregation reduction loss_reduction", ("loss.aggregate",)),
    ("entropy_coeff entropy_loss_coef entropy_weight", ("loss.entropy_coef",)),
    ("tis importance_sampling vllm_importance_sampling_correction importance_sampling_correction",
     ("loss.importance",)),
    ("importance_sampling_level", ("loss.importance_level",)),
    ("dynamic_sampling filter_groups", ("groups.dynamic",)),
    ("mask_truncated_completions overlong_filtering", ("groups.overlong",)),
    ("soft_punish_cache overlong_penalty", ("groups.overlong_buffer",)),
    ("lr_scheduler lr_scheduler_type scheduler", ("optimizer.schedule", "trainer.lr_scheduler_type")),
    ("num_warmup_steps warmup warmup_ratio", ("optimizer.warmup_steps", "trainer.warmup_steps")),
    ("grad_clip gradient_clipping max_norm clip_grad", ("optimizer.max_grad_norm", "trainer.max_grad_norm")),
    ("adam_beta1", ("optimizer.beta1",)),
    ("adam_beta2", ("optimizer.beta2",)),
    ("adam_epsilon", ("optimizer.eps",)),
    ("save_steps save_every save_freq save_interval checkpoint_steps", ("checkpoint_every",)),
    ("eval_steps eval_every test_freq eval_interval", ("evaluate_every",)),
    ("reward_funcs reward_fn reward_function reward_functions rewards verifier verifiers", ("reward", "/rewards")),
    ("dataset dataset_name dataset_path train_file train_files train_dataset data_path data_files", ("/prompts.path",)),
    ("dataset_config", ("/prompts.name",)),
    ("prompt_column", ("/prompts.prompt",)),
    ("model_name model_name_or_path base_model pretrained model_path checkpoint", ("/model.path",)),
    ("torch_dtype precision bf16 fp16", ("/model.dtype",)),
    ("load_in_4bit qlora bits", ("/model.quantization",)),
    ("attn_implementation", ("/model.attn",)),
    ("use_vllm engine generator", ("/generate.backend",)),
    ("gpu_memory_utilization vllm_gpu_memory_utilization", ("/generate.vllm",)),
    ("temp", ("/sampling.temperature",)),
    ("report_to logger loggers logging wandb tracker", ("/trackers",)),
    ("output_dir save_dir out_dir runs", ("/runs_dir",)),
    ("run_name name experiment experiment_name exp_name", ("/run",)),
    ("random_seed", ("/seed",)),
    ("ref_model reference_model", ("kl.reference",)),
    ("sync_ref_model", ("kl.reference",)),
    ("init_model start_from parent", ("policy",)),
    ("num_rounds n_rounds", ("rounds",)),
    ("num_bins n_bins", ("count",)),
):  # fmt: skip
    for _name in _names.split():
        SYNONYMS[_name] = _ours

# (their name, our key) -> what differs, said after the key
REMARKS: dict[tuple[str, str], str] = {
    **{(name, "loss.clip_low"): ", and {block}loss.clip_high for the upper side: a symmetric range needs both"
       for name in "epsilon eps_clip clip_eps clip_range cliprange clip_ratio clip_epsilon clip".split()},
    ("per_device_train_batch_size", "prompts"): ", which counts prompts per step over all devices, each with "
    "{block}samples completions; TRL's per_device_train_batch_size counts completions on one device",
}  # fmt: skip

# the same for blocks that pass to TRL and PEFT
LIBRARY_SYNONYMS = {
    "lr": "learning_rate", "batch_size": "per_device_train_batch_size", "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs", "steps": "max_steps", "max_seq_length": "max_length", "warmup": "warmup_steps",
    "rank": "r", "lora_r": "r", "lora_rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout",
    "modules": "target_modules", "grad_clip": "max_grad_norm",
}  # fmt: skip
