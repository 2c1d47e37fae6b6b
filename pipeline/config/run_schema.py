"""Blocks of the YAML that all stages of a run share: model, prompts, sampling, generation, evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.alarm_config import STRICT, Positive, Share


@dataclass(slots=True)
class Tiny:
    """A randomly initialised model for trying things out: Qwen2 architecture and a character tokenizer."""

    __pydantic_config__: ClassVar = STRICT
    hidden_size: Positive = 64
    """Width of the residual stream; divisible by num_attention_heads."""
    intermediate_size: Positive = 192
    """Width of each MLP."""
    num_hidden_layers: Positive = 2
    """Number of transformer layers."""
    num_attention_heads: Positive = 2
    """Attention heads per layer."""
    max_position_embeddings: Positive = 128
    """Longest sequence in tokens, prompt and completion together."""
    characters: str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;<>=+-*/()[]?!'\"\n"
    """Characters of the vocabulary, one token each."""

    @property
    def parameters(self) -> int:
        """Approximate number of weights: attention's four matrices and the MLP's three per layer, and the embedding."""
        layer = 4 * self.hidden_size**2 + 3 * self.hidden_size * self.intermediate_size
        return self.num_hidden_layers * layer + len(self.characters) * self.hidden_size


@dataclass(slots=True)
class Model:
    """The base model: a local path or Hub id, or a tiny one made by the stage `base`."""

    __pydantic_config__: ClassVar = STRICT
    path: str | None = None
    """Local directory or Hub id of the base model; give this or tiny."""
    tiny: Tiny | None = None
    """A small random model made by the stage base; give this or path."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Precision the model is loaded and sampled in; trained weights are kept in float32."""
    float32_head: bool = False
    """Whether training multiplies the output head in float32 where dtype is lower; several times as slow."""
    attn: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""
    chat_template: str | None = None
    """Chat template in place of the tokenizer's: a .jinja, .j2 or .txt file, or the template's text."""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""
    quantization: Literal["nf4", "fp4"] | None = None
    """4-bit quantization (QLoRA) of the frozen base in stages with peft; needs bitsandbytes."""

    @property
    def template_file(self) -> Path | None:
        """The file that chat_template names; None where it is the template itself or is not set."""
        try:
            return Path(self.chat_template) if self.chat_template and Path(self.chat_template).is_file() else None
        except OSError:  # a template in one line is longer than a file's name may be
            return None


@dataclass(slots=True)
class Prime:
    """An environment of Prime Intellect's `verifiers` package, which runs in an interpreter of its own."""

    __pydantic_config__: ClassVar = STRICT
    python: str
    """Interpreter that has the package and the environment, such as prime/bin/python."""
    taskset: str
    """Name that the package imports the environment by."""
    dirs: list[str] = field(default_factory=list)
    """Directories that hold the environment, where it is not installed."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the package's environment config, such as {taskset: {split: train}, agent: {max_turns: 4}}."""
    forward_env: list[str] = field(default_factory=list)
    """Environment variables that the environment gets, such as the key of a judge."""


@dataclass(slots=True)
class OpenEnv:
    """An environment that an OpenEnv server plays."""

    __pydantic_config__: ClassVar = STRICT
    url: str
    """Address of the server, such as http://127.0.0.1:8000."""
    action: str = ""
    """Field of the action that takes the text of a turn; "" offers the environment's tools, or one tool, step."""
    observation: str = ""
    """Field of the observation that the policy reads; "" for all of them, as JSON."""


@dataclass(slots=True)
class PromptSource:
    """One of several sources: a file, a Hub data set or a procedural task, with its own columns and rewards."""

    __pydantic_config__: ClassVar = STRICT
    path: str | None = None
    """JSONL or Parquet file, directory of such files, or Hub id of a data set."""
    procedural: str | None = None
    """Name of a verifier that generates its own tasks; give this or path."""
    ratio: Annotated[float, Field(gt=0)] = 1.0
    """Share of the prompts that policy optimisation samples from this source, relative to the others."""
    rewards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rewards of this source's rows, parts as in `rewards`, besides those parts of `rewards` that judge every row."""
    name: str | None = None
    """Configuration of a Hub data set."""
    split: str = "train"
    """Split to read."""
    rows: Positive | None = None
    """Number of rows to generate or to read; null reads all of them."""
    format: str | None = None
    """Whose columns the rows have, such as verl or alpaca; null recognises them; plain reads them as they are."""
    prompt: str = "prompt"
    """Column with the prompt."""
    completion: str = "completion"
    """Column with the demonstration."""
    template: str | None = None
    """Text around the prompt, with columns in braces, such as "Question: {question}"."""
    task: dict[str, str] | None = None
    """Verifier field -> column; null takes the column `task`, or all columns."""


@dataclass(slots=True)
class Prompts:
    """Dataset rows: a JSONL or Parquet path or a Hub id (`path`), a verifier that makes its tasks (`procedural`), or
    the tasks of a Prime environment (`prime`)."""

    __pydantic_config__: ClassVar = STRICT
    path: str | None = None
    """JSONL or Parquet file, directory of such files, or Hub id of a data set."""
    procedural: str | None = None
    """Name of a verifier that generates its own tasks; give this or path."""
    prime: Prime | None = None
    """Environment of Prime Intellect's package whose tasks are the rows."""
    name: str | None = None
    """Configuration of a Hub data set."""
    split: str = "train"
    """Split to train on."""
    rows: Positive | None = None
    """Number of rows to generate or to read; null reads all of them."""
    heldout: Share = 0.1
    """Share of distinct prompts held out for evaluation, by a hash of their text; by default 0 beside heldout_path or
    heldout_split."""
    heldout_path: str | None = None
    """File or data set to evaluate on, in place of a share of the rows."""
    heldout_split: str | None = None
    """Split of the same data set to evaluate on, in place of a share of the rows."""
    validation: Share = 0.0
    """Share of distinct prompts that are neither trained on nor held out: keep: best and early stopping use them."""
    format: str | None = None
    """Whose columns the rows have, such as verl or alpaca; null recognises them; plain reads them as they are."""
    decontaminate: Positive | None = None
    """Drop training rows that share this many consecutive words with a held-out row."""
    prompt: str = "prompt"
    """Column with the prompt."""
    completion: str = "completion"
    """Column with the demonstration."""
    train_on: Literal["all", "last"] = "all"
    """What SFT imitates of a conversation: every assistant turn, or the last."""
    template: str | None = None
    """Text around the prompt, with columns in braces, such as "Question: {question}"."""
    task: dict[str, str] | None = None
    """Verifier field -> column; null takes the column `task`, or all columns."""
    system: str | None = None
    """System message in front of every prompt."""
    chat: bool = False
    """Whether a plain-text prompt goes into the chat template as the user's turn."""
    chat_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments for the chat template, such as {enable_thinking: false}."""
    max_prompt_tokens: Positive | None = None
    """Drop prompts longer than this many tokens."""
    sources: dict[str, PromptSource] = field(default_factory=dict)
    """Several sources in place of path or procedural, by name, mixed by ratio, each with its own rewards."""

    @model_validator(mode="before")
    @classmethod
    def _no_share_besides_named_rows(cls, given: Any) -> Any:
        named = isinstance(given, dict) and (given.get("heldout_path") or given.get("heldout_split"))
        return {"heldout": 0.0, **given} if named else given

    def of_source(self, name: str) -> Prompts:
        """One of the sources as a block of its own; what all of them share is that of this block."""
        source = self.sources[name]
        own = {f.name: getattr(source, f.name) for f in fields(source) if f.name not in ("ratio", "rewards")}
        return replace(self, sources={}, **own)

    @property
    def label(self) -> str | None:
        """What the rows come from, in words for a person; None if the block names nothing."""
        return self.path or self.procedural or (self.prime.taskset if self.prime else None)


@dataclass(slots=True)
class Sampling:
    """How completions are sampled. Every field is always sent: a model's generation_config.json never decides."""

    __pydantic_config__: ClassVar = STRICT
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature; log-probs of the loss are taken at the same temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: smallest set of tokens with this probability mass; 1 keeps all."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Number of most likely tokens to sample from; 0 keeps all."""
    min_p: Share = 0.0
    """Drop tokens less likely than this share of the most likely token's probability."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Penalty on tokens that occurred before; 1 is none."""
    max_tokens: Positive = 256
    """Most tokens of one completion."""
    stop: list[Annotated[str, Field(min_length=1)]] = field(default_factory=list)
    """Strings that end a completion, such as </answer>; the tokens up to and including one are kept and trained on."""


@dataclass(slots=True)
class Generate:
    """The generator: which engine samples, and its settings."""

    __pydantic_config__: ClassVar = STRICT
    backend: Literal["auto", "vllm", "transformers", "vllm_server", "ray"] = "auto"
    """Engine that samples; auto is vLLM where installed, for large models on a CPU the faster of two (a trial)."""
    url: str | list[str] | None = None
    """Address of a vllm_server, or several, one per rank in turn."""
    weights_dir: str = "runs/.weights"
    """Directory through which vllm_server and ray receive new weights; every machine must see it."""
    batch: Positive = 256
    """Sequences sampled at once by the transformers engine."""
    canary_tolerance: Annotated[float, Field(gt=0)] | None = None
    """Largest mean log-prob difference to the trainer after a sync; null: measured at the start of the run."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """Arguments passed to vLLM's EngineArgs, such as {gpu_memory_utilization: 0.5}."""
    ray: dict[str, Any] = field(default_factory=dict)
    """Fields of Ray Data's vLLM processor, such as {concurrency: 8}."""


TOOL_FORMATS = ("harmony", "gemma", "qwen_xml", "mistral", "pythonic", "llama_json", "hermes")


@dataclass(slots=True)
class Tools:
    """Tools that the policy may call: every sample is then an episode of turns, calls and their results."""

    __pydantic_config__: ClassVar = STRICT
    use: dict[str, dict[str, Any]] | list[str] = field(default_factory=dict)
    """Tools by name, with their settings, such as {calculator: {}, python: {timeout_s: 5}}."""
    environment: str | None = None
    """Class whose methods are tools, by TRL's environment_factory contract: file.py:Class or package.module:Class."""
    mcp: dict[str, list[str]] = field(default_factory=dict)
    """MCP servers over stdio, name -> command, such as {time: [python, server.py]}; needs the extra mcp."""
    prime: Prime | None = None
    """Environment of Prime Intellect's package that plays the episodes; the only tool of a run."""
    openenv: OpenEnv | None = None
    """OpenEnv server that plays the episodes; needs the extra openenv."""
    dirs: list[str] = field(default_factory=list)
    """Directories with tools of your own."""
    format: Literal[TOOL_FORMATS] | None = None  # type: ignore[valid-type]
    """How the model writes a call; null recognises it from the chat template."""
    max_turns: Positive = 8
    """Most turns of the policy in one episode."""
    max_tokens: Positive = 4096
    """Most tokens of one episode after its first prompt, tool output included; sampling.max_tokens bounds one turn."""
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds after which a call that has not returned ends its episode without a score."""
    max_output_chars: Positive = 10_000
    """Characters of a tool's output that the policy reads; the rest is cut off."""


@dataclass(slots=True)
class Program:
    """An agent's own program: every sample is then one run of it, and the policy answers its calls to an endpoint that
    speaks OpenAI's chat completions."""

    __pydantic_config__: ClassVar = STRICT
    command: Annotated[list[str], Field(min_length=1)]
    """The program and its arguments, such as [python, agent.py]; it gets the row on stdin and prints its answer."""
    format: Literal[TOOL_FORMATS] | None = None  # type: ignore[valid-type]
    """How the model writes a tool call; null recognises it from the chat template."""
    max_turns: Positive = 16
    """Most calls of one episode; a further one is refused."""
    max_tokens: Positive = 4096
    """Most tokens that the policy samples in one episode; sampling.max_tokens bounds one call."""
    context: Positive = 8192
    """Tokens of the engine's context, for a call's prompt and its answer; cut to what the model has."""
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds that a program may work, without those in which it waits for the policy; then it is killed."""
    concurrency: Positive = 16
    """Programs that run at once, in each process."""
    score_failures: bool = False
    """Whether an episode whose program fails is scored all the same, by the policy's last turn or what was printed."""


@dataclass(slots=True)
class Evaluation:
    """How every policy is evaluated on the held-out prompts."""

    __pydantic_config__: ClassVar = STRICT
    samples: Positive = 16
    """Completions per held-out prompt."""
    prompts: Positive | None = None
    """Number of held-out prompts to use; null uses all of them."""
    k: Positive = 4
    """k of pass@k; at most samples."""
