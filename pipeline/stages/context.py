"""The context of a stage: its config block, directory, data, policies, generator and scorer.

Everything a stage reads is registered here, so that its manifest can list it: parents with the hash of their outputs,
inputs with the hash of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import rewards
from pipeline.config.load import Config, ConfigError
from pipeline.config.stage_graph import reward_dirs
from pipeline.data import prompts
from pipeline.data.tool_schemas import ToolSet, with_tools
from pipeline.distributed import ranks
from pipeline.generation import engine_trial, engines, restarting
from pipeline.generation.generator import Generator, rollouts
from pipeline.generation.program_episodes import ProgramPlayer
from pipeline.generation.tool_episodes import ToolPlayer
from pipeline.models import models
from pipeline.records import (
    Prompt,
    Scored,
    as_json,
    groups,
    load_scored,
    merged_episodes,
    same_when_loaded,
    save_scored,
)
from pipeline.run.files import dump_json, sha256_file
from pipeline.run.manifest import manifest_sha, verified_manifest
from pipeline.run.stage_dir import StageDir
from pipeline.score import OnDrawn, score_while
from pipeline.seeds import derive
from pipeline.stats import describe_groups, episode_figures


@dataclass
class Context:
    cfg: Config
    name: str
    dir: StageDir
    parents: dict[str, str] = field(default_factory=dict)  # stage -> sha256 of its outputs
    inputs: dict[str, str] = field(default_factory=dict)  # path -> sha256
    trained: dict[Path, list[str]] = field(default_factory=dict)  # directory -> trainings whose model was saved there
    scorers: dict[str, rewards.Composite] = field(default_factory=dict)  # rewards block as JSON -> its scorer
    pools: dict[str, list[Scored]] = field(default_factory=dict)  # config key -> its pool of scored samples
    frozen: dict[str, Any] = field(default_factory=dict)  # model directory -> the model that the KL is measured from

    @property
    def block(self) -> Any:
        return self.cfg.block(self.name)

    def seed(self, *parts: int | str) -> int:
        """A seed that is a function of (seed, stage, parts)."""
        return derive(self.cfg.seed, self.name, *parts)

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens sampled so far; saved with every checkpoint, so that a resumed stage continues the count."""
        return self.dir.logs.tokens

    @tokens.setter
    def tokens(self, value: dict[str, int]) -> None:
        self.dir.logs.tokens = dict(value)

    def depend_on(self, *files: Path) -> None:
        """Register inputs by path and hash."""
        found = {str(path): sha256_file(path) for path in files}
        self.inputs |= found
        self.dir.begun.depends("inputs", found)

    # --- parents ------------------------------------------------------------------------------------------------

    def model_path(self, reference: str, key: str) -> str:
        """A stage of this run (its model directory), else a local path or Hub id. Registers the dependency.

        Raises ConfigError for a path without a model, LineageError for a stage that does not match its manifest.
        """
        if reference == "model" and self.cfg.model.path:
            reference = self.cfg.model.path
        if reference in self.cfg.blocks:
            parent = StageDir(self.cfg.run_dir, reference)
            self.parents[reference] = manifest_sha(verified_manifest(parent.path))
            self.dir.begun.depends("parents", {reference: self.parents[reference]})
            return str(parent.model_dir)
        models.check_model_dir(reference, f"{self.cfg.path}: {key}")
        path = Path(reference)
        if path.is_dir():
            self.depend_on(*sorted(p for p in path.rglob("*") if p.is_file()))
        elif "/" not in reference:
            raise ConfigError([f"{self.cfg.path}: {key}: {reference!r} is neither a stage of this run nor a model; "
                               f"stages: {', '.join(self.cfg.blocks)}"])  # fmt: skip
        return reference

    @cached_property
    def policy_path(self) -> str:
        return self.model_path(self.block.policy, f"{self.name}.policy")

    def switch_policy(self, policy_path: str) -> None:
        """Switch to another model, with its own tokenizer, stop tokens and prompt ids."""
        self.policy_path = policy_path
        for name in ("tokenizer", "stop_token_ids", "player", "train_prompts", "heldout_prompts", "validation_prompts"):
            self.__dict__.pop(name, None)

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Switch to a tokenizer with more tokens; prompts keep their ids."""
        self.tokenizer = tokenizer
        self.__dict__.pop("player", None)

    @cached_property
    def tokenizer(self) -> Any:
        return models.load_tokenizer(self.policy_path, self.cfg.model)

    @cached_property
    def stop_token_ids(self) -> frozenset[int]:
        """Ids that end a completion: those of the tokenizer and of the model's generation config."""
        from transformers import GenerationConfig

        try:
            config = GenerationConfig.from_pretrained(self.policy_path)
        except OSError:
            config = None
        return models.end_ids(self.tokenizer, _Holder(config))

    # --- data ---------------------------------------------------------------------------------------------------

    @cached_property
    def split(self) -> prompts.Split:
        return self._split_of(self.cfg.prompts, "prompts")

    @cached_property
    def barred(self) -> prompts.TextSet:
        """Texts of the run's held-out and validation prompts: never trained on, even if another file contains them."""
        source = self.cfg.prompts
        if source.label is None:
            return prompts.TextSet.of(())
        return prompts.barred_texts(self.split, source)

    def rows_of(self, source: Any, where: str) -> prompts.Split:
        """Rows of the stage's own data source, split, without the run's held-out prompts. Raises ConfigError."""
        return self._some_left(prompts.without(self._split_of(source, where), self.barred, source), where)

    def _split_of(self, source: Any, where: str) -> prompts.Split:
        dirs = self.cfg.verifier_dirs
        rows = prompts.load_rows(source, seed=self.cfg.seed, where=f"{self.cfg.path}: {where}", dirs=dirs)
        files = [one.path for one in source.sources.values()]
        for path in (source.path, source.heldout_path, *files):
            if path and Path(path).exists():
                file = Path(path)
                self.depend_on(*([file] if file.is_file() else sorted(p for p in file.rglob("*") if p.is_file())))
        named = f"{self.cfg.path}: prompts"
        heldout = prompts.named_heldout(source, seed=self.cfg.seed, where=named, dirs=dirs)
        if self.tools is not None:
            rows, heldout = with_tools(rows, self.tools.schemas), with_tools(heldout, self.tools.schemas)
        return self._some_left(prompts.split(rows, source, where=where, heldout=heldout), where)

    @cached_property
    def tools(self) -> ToolSet | None:
        """The tools of the run. Raises ConfigError where one is unknown or cannot run here."""
        return ToolSet(self.cfg.tools, path=self.cfg.path) if self.cfg.tools is not None else None

    @cached_property
    def player(self) -> ToolPlayer | ProgramPlayer:
        """Plays the run's episodes: with its tools, or by its program."""
        if self.cfg.program is not None:
            return ProgramPlayer(self.cfg.program, self.cfg.prompts, self.tokenizer, self.stop_token_ids,
                                 context=self.context_tokens())  # fmt: skip
        assert self.tools is not None and self.cfg.tools is not None
        return ToolPlayer(self.tools, self.cfg.tools, self.cfg.prompts, self.tokenizer, self.stop_token_ids,
                          context=self.context_tokens())  # fmt: skip

    def _some_left(self, parts: prompts.Split, where: str) -> prompts.Split:
        if not parts.train:
            raise ConfigError([f"{self.cfg.path}: {where}: no row left to train on; all are held out"])
        return parts

    @cached_property
    def train_prompts(self) -> prompts.LazyPrompts:
        return self._prompts(self.split.train)

    @cached_property
    def heldout_prompts(self) -> Sequence[Prompt]:
        found = self._prompts(self.split.heldout)
        if not found:
            raise ConfigError([f"{self.cfg.path}: prompts.heldout: no held-out prompt; raise the share or give a file"])
        return self._evaluated(found)

    @cached_property
    def validation_prompts(self) -> Sequence[Prompt]:
        """Prompts by which a stage chooses what it saves; empty without prompts.validation."""
        found = self._prompts(self.split.validation)
        if not found and self.cfg.prompts.validation:
            raise ConfigError([f"{self.cfg.path}: prompts.validation: no prompt is in this share; raise it"])
        return self._evaluated(found)

    def _evaluated(self, found: prompts.LazyPrompts) -> Sequence[Prompt]:
        """As many as evaluation.prompts says, from each source alike."""
        count = self.cfg.evaluation.prompts
        if not count:
            return found
        return prompts.spread_over_sources(found, count) if self.cfg.prompts.sources else found[:count]

    def _prompts(self, rows: Sequence[prompts.Row]) -> prompts.LazyPrompts:
        check = prompts.TaskCheck({
            source: rewards.fields_needed(rewards.parts_for(self.cfg.rewards, source), self.cfg.verifier_dirs,
                                          reward_dirs(self.cfg))
            for source in self.cfg.prompts.sources or [None]
        })  # fmt: skip
        out = prompts.LazyPrompts(rows, self.cfg.prompts, self.tokenizer, check=check)
        check.finish()
        return out

    # --- sampling and scoring -----------------------------------------------------------------------------------

    def generator(self, model_dir: str | None = None) -> restarting.Reliable:
        path = model_dir or self.policy_path
        length = self.context_tokens(path)
        generate = engine_trial.faster_backend(
            path, self.cfg.model, self.cfg.generate, max_model_len=length, record=self.cfg.run_dir / "engine.json"
        )
        return restarting.Reliable(
            path, self.cfg.model, generate, max_model_len=length, on_open=self.dir.begun.drawn_by
        )

    def context_tokens(self, model_dir: str | None = None) -> int:
        """Context length of the engine in tokens: a prompt, its label and its answer, or an episode of them."""
        longest = prompts.longest(self.train_prompts, self.heldout_prompts, self.validation_prompts)
        if self.cfg.tools is not None:
            return engines.model_len(model_dir or self.policy_path, longest + self.cfg.sampling.max_tokens,
                                     wanted=longest + self.cfg.tools.max_tokens)  # fmt: skip
        if self.cfg.program is not None:
            return engines.model_len(model_dir or self.policy_path, self.cfg.sampling.max_tokens + 1,
                                     wanted=self.cfg.program.context)  # fmt: skip
        settings = getattr(self.block, "episodes", None)
        turns = settings.max_turns if settings is not None and settings.memory == "history" else 1
        needed = (longest + self.cfg.sampling.max_tokens) * turns + 16  # room for a condition label
        wanted = needed + turns * settings.max_observation_tokens if settings is not None else 0
        return engines.model_len(model_dir or self.policy_path, needed, wanted=wanted)

    @cached_property
    def scorer(self) -> rewards.Composite:
        """The run's own rewards, with which every policy is evaluated."""
        return self.scorer_of(self.cfg.rewards)

    def scorer_of(self, block: Mapping[str, Mapping[str, Any]]) -> rewards.Composite:
        """The scorer of a rewards block, built once because it owns threads and, for learned parts, models."""
        key = dump_json(block)
        if key not in self.scorers:
            try:
                self.scorers[key] = rewards.build(block, verifier_dirs=self.cfg.verifier_dirs,
                                                  reward_dirs=reward_dirs(self.cfg), learned=self._learned)  # fmt: skip
            except ValueError as exc:
                raise ConfigError([f"{self.cfg.path}: {exc}"]) from exc
        return self.scorers[key]

    def _learned(self, reference: str) -> models.LearnedReward:
        path = self.model_path(reference, f"rewards.{reference}.model")
        return models.LearnedReward(path, self.cfg.model)

    def sample(
        self,
        generator: Generator,
        requests: Sequence[Prompt],
        samples: int,
        *key: int | str,
        sampling: Any = None,
        on_done: OnDrawn | None = None,
    ) -> list[Any]:
        """Rollouts, prompt-major, seeded by (seed, stage, key); their tokens are counted. on_done: called for each
        rollout as soon as it is sampled."""
        sampling = sampling or self.cfg.sampling
        seeds = (self.cfg.seed, self.name, *key)
        if self.cfg.tools is not None or self.cfg.program is not None:
            drawn = self.player.play(generator, requests, sampling, samples=samples, key=seeds, on_done=on_done)
        else:
            drawn = rollouts(
                generator, requests, sampling, samples=samples, key=seeds, tokenizer=self.tokenizer,
                stop_token_ids=self.stop_token_ids, on_done=on_done,
            )  # fmt: skip
        self.tokens["prompt"] += sum(len(r.prompt.ids) for r in drawn)
        self.tokens["completion"] += sum(sum(r.mask) for r in drawn)
        return drawn

    def scored(
        self,
        generator: Generator,
        requests: Sequence[Prompt],
        samples: int,
        *key: int | str,
        scorer: rewards.Composite | None = None,
        piece: str = "",
        check_all: bool = True,
    ) -> list[Scored]:
        """Samples and their scores, saved when finished; a resumed stage reads the saved ones instead.

        Scores are saved too, so that a checker that timed out or was unavailable the first time changes nothing.
        piece: the name to save under if several calls share a key, and therefore their seeds.
        check_all: whether surrogate parts check every row, as for an evaluation, or their share of the rows.
        """

        def draw() -> list[Scored]:
            return score_while(
                scorer or self.scorer,
                requests,
                lambda on_done: self.sample(generator, requests, samples, *key, on_done=on_done),
                key=None if check_all else (self.cfg.seed, self.name, "check", *key),
            )

        return self.kept(requests, draw, *key, *([piece] if piece else []))

    def kept(self, requests: Sequence[Prompt], draw: Callable[[], list[Scored]], *name: int | str) -> list[Scored]:
        """The samples and scores of `draw`, computed once per name. requests: the prompts that they belong to."""
        drawn: list[Scored] = []

        def make(directory: Path) -> None:
            drawn.extend(draw())
            save_scored(directory / "scored.jsonl", drawn, requests)

        path = self.dir.checkpoints.once("-".join(map(str, name)), make) / "scored.jsonl"
        # read back where that may differ from what was drawn: a resumed stage must continue with equal records
        unchanged = bool(drawn) and ranks.world() == 1 and same_when_loaded(drawn, requests)
        return drawn if unchanged else load_scored(path, requests)

    def evaluate(
        self,
        generator: Generator,
        *key: int | str,
        requests: Sequence[Prompt] | None = None,
        piece: str = "",
    ) -> Judged:
        """A policy's metrics on the held-out prompts, scored by the run's own rewards."""
        settings = self.cfg.evaluation
        before = dict(self.tokens)
        scored = self.scored(
            generator, requests or self.heldout_prompts, settings.samples, "heldout", *key, piece=piece
        )
        self.tokens = before  # evaluation is not part of a method's budget
        played = merged_episodes(scored)
        figures = describe_groups(groups(played), k=settings.k) | episode_figures(scored)
        if not self.scorer.judges:
            figures["heldout_judged"] = False
        for source in self.cfg.prompts.sources:
            own = [s for s in played if s.rollout.prompt.task.get("source") == source]
            of_source = describe_groups(groups(own), k=settings.k)
            names = ("heldout_accuracy", "heldout_accuracy_ci95", "heldout_reward", "heldout_prompts")
            figures |= {f"{name}/{source}": of_source[name] for name in names}
        return Judged(figures, scored)

    def validate(self, generator: Generator, *key: int | str) -> Judged:
        """A policy's metrics on the validation prompts. Their names begin with `validation_`."""
        judged = self.evaluate(generator, "validation", *key, requests=self.validation_prompts)
        return Judged(of_validation(judged.figures), judged.scored)

    def record(self, scored: Sequence[Scored], *, each: Sequence[Mapping[str, Any]] = (), **where: Any) -> None:
        """Append to rollouts.jsonl. each: additional fields per row, such as its advantage."""
        own = each or [{}] * len(scored)
        rows = [as_json(s, stage=self.name, **where, **more) for s, more in zip(scored, own, strict=True)]
        self.dir.logs.append("rollouts.jsonl", rows)


def of_validation(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of held-out samples under the names of the validation prompts: heldout_accuracy, validation_accuracy."""
    return {f"validation_{name.removeprefix('heldout_')}": value for name, value in figures.items()}


@dataclass(frozen=True, slots=True)
class Judged:
    """scored: all rows, of which an episode may have several."""

    figures: dict[str, Any]
    scored: list[Scored]


@dataclass(frozen=True, slots=True)
class _Holder:
    generation_config: Any
