"""The command line's table: every command once, with what it takes, its own keys and an example. Imports no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.config import schema  # noqa: F401  fills the registry
from pipeline.config.mistakes import ConfigError, nearest
from pipeline.config.registry import KINDS

YAML_KEYS = "keys of the YAML, such as seed=2 grpo.steps=10"
SERVER_KEYS = "options of vLLM's server: key=value becomes --key value"
HARNESS_KEYS = "options of lm-eval: key=value becomes --key value"
DEMO, RUN = "configs/demo/pipeline.yaml", "runs/demo"
ASKED = {
    "stage": "policy stage to ask; default: the best of `evaluate`, else the last that finished",
    "label": "condition label: best, a bin's number, or correct=1 length=0 for several attributes",
    "guidance": "weight of labelled over unlabelled logits; 1 is none",
    "temperature": "sampling temperature; default: the one the run was evaluated at; 0 is greedy",
    "max_tokens": "most tokens of one answer",
    "seed": "seed of sampling; default 0",
}


@dataclass(frozen=True, slots=True)
class Command:
    """takes: what its first word names. keys: its own key=value words. more: what other words mean; "" refuses them."""

    name: str
    takes: str
    summary: str
    example: str
    keys: Mapping[str, str] = field(default_factory=dict)
    more: str = ""
    group: str = "other"


def _of_stages() -> list[Command]:
    return [
        Command(kind.name, "CONFIG", kind.summary, f"{kind.name} {DEMO}", more=YAML_KEYS, group="stages")
        for kind in sorted(KINDS.values(), key=lambda kind: kind.order)
        if kind.summary
    ]


def _of_a_yaml() -> list[Command]:
    return [
        Command("run", "CONFIG", "all stages the YAML names; what is complete and unchanged is skipped", f"run {DEMO}",
                {"seeds": "several, as 1,2,3: a run each in runs/NAME/seed-N, and a table of means and intervals",
                 "workers": "stages at once, of this run or of all seeds, each in a process; default 1"},
                YAML_KEYS, "pipelines"),
        Command("plan", "CONFIG", "what a YAML would run, what it would cost, and every mistake in it; starts nothing",
                f"plan {DEMO} trial=false",
                {"seeds": "as in `run`: also what all seeds cost", "workers": "as in `run`",
                 "trial": "true or false: measure this machine for some seconds, which memory and time need",
                 "json": "true or false: print JSON for programs"}, YAML_KEYS, "pipelines"),
        Command("new", "MODEL FILE", "look at your rows and write a commented YAML for them that plans clean",
                "new Qwen/Qwen2.5-0.5B-Instruct rows.jsonl to=mine.yaml",
                {"to": "YAML to write; default: named after the file", "run": "name of the run"},
                "the model (directory or Hub id) and the file of rows; asked for where absent", "pipelines"),
        Command("recipe", "NAME", "a historical lineage on the demo task: davinci-002 or davinci-003",
                "recipe davinci-002", more=YAML_KEYS, group="pipelines"),
        Command("sbatch", "CONFIG", "a Slurm script for a YAML, to stdout", f"sbatch {DEMO} nodes=2 gpus=8",
                {"nodes": "machines", "gpus": "GPUs per machine", "cpus": "CPU cores per machine",
                 "hours": "time limit", "mode": "ddp, fsdp2, zero2 or zero3", "stage": "command to run; default run",
                 "partition": "Slurm partition", "account": "Slurm account",
                 "warn_s": "seconds between the signal to save and the time limit", "port": "port where ranks meet",
                 "venv": "virtual environment"}, YAML_KEYS, "pipelines"),
    ]  # fmt: skip


def _of_a_run() -> list[Command]:
    return [
        Command("report", "RUN_DIR", "write the HTML report of a run", f"report {RUN}", group="runs"),
        Command("watch", "RUN_DIR", "a run in the terminal, live: curves, distance to each alarm, newest samples",
                f"watch {RUN}", {"stage": "stage to show; default: the one under way", "every": "seconds; default 2",
                                 "samples": "newest samples to show; default 4", "once": "true: print once and end"},
                group="runs"),
        Command("ui", "RUNS_DIR", "a local page: runs as they go, their reports, samples to rate", "ui runs/",
                {"port": "port on 127.0.0.1; default 8760"}, group="runs"),
        Command("lineage", "RUN_DIR", "draw a run's tree from base model to final", f"lineage {RUN}", group="runs"),
        Command("diff", "RUN_DIR", "what differs between two runs", f"diff {RUN} runs/demo2", more="the other RUN_DIR",
                group="runs"),
        Command("export", "RUN_DIR", "write RUN_DIR/export: merged weights, tokenizer, template, model card",
                f"export {RUN}", {"stage": ASKED["stage"],
                "to": "directory; default RUN_DIR/export. gguf: RUN_DIR/gguf, for llama.cpp and Ollama. "
                "lora: RUN_DIR/lora, the adapter alone",
                "dtype": "of a GGUF: f32, f16, bf16 or q8_0; default f16",
                "label": "of a GGUF: condition label that every prompt gets; default best, none for no label"},
                group="runs"),
        Command("push", "RUN_DIR", "upload RUN_DIR/export to the Hub", f"push {RUN} repo=me/model",
                {"repo": "owner/name on the Hub", "private": "true or false; default true"}, group="runs"),
        Command("generate", "RUN_DIR", "answers of a run's model as JSON lines", f'generate {RUN} prompt="a1>d4:"',
                {"prompt": "one prompt", "prompts": "JSONL file with a column prompt", "samples": "answers per prompt",
                 "to": "file to write; default: the terminal", **ASKED}, group="runs"),
        Command("chat", "RUN_DIR", "talk to a run's model", f"chat {RUN} label=best", ASKED, group="runs"),
        Command("serve", "RUN_DIR", "serve a run's model through vLLM's OpenAI-compatible server", f"serve {RUN}",
                {"stage": ASKED["stage"], "host": "interface to listen on; default 127.0.0.1, this machine only",
                 "rollouts": "true: a server that a training run sends its weights to"}, SERVER_KEYS, "runs"),
        Command("proxy", "RUN_DIR", "an endpoint for agents, as OpenAI's chat completions, that records token ids",
                f"proxy {RUN} port=8770 to=sessions.jsonl",
                {"port": "port on 127.0.0.1; default 8770", "to": "JSONL file to which every answer is appended",
                 **{key: ASKED[key] for key in ("stage", "temperature", "max_tokens", "seed")}}, group="runs"),
        Command("lm-eval", "RUN_DIR", "EleutherAI's harness on a run's model", f"lm-eval {RUN} tasks=gsm8k",
                {"tasks": "tasks, separated by commas"}, HARNESS_KEYS, "runs"),
    ]  # fmt: skip


def _of_the_machine() -> list[Command]:
    return [
        Command("gpu-check", "", "every stage for a few steps on a random or a given model, on a machine with a GPU",
                "gpu-check", {"to": "directory; default runs/gpu-check", "size": "mid or small", "dtype": "precision",
                              "model": "directory or Hub id; default: a random model of 180M weights"},
                group="machine"),
        Command("check", "", "hold graders of other tools, or verifiers, against the conformance kit",
                "check --grader grader.json",
                {"--grader": "file of a grader: OpenAI's JSON, or Python for TRL, verl or open-instruct",
                 "kind": "openai_grader, trl_reward, verl_score or open_instruct; default: by the file",
                 "function": "name of the function or class in a Python file",
                 "isolation": "sandbox, or process for code you trust", "timeout_s": "CPU seconds of one call",
                 "examples": "JSONL rows of kind, completion and task; default: guessed",
                 "pass_at": "lowest grade that passes", "url": "endpoint of a model grader",
                 "model": "model of a model grader", "dir": "directory with verifiers of your own"},
                "names of verifiers", "machine"),
        Command("chaos", "CONFIG", "kill every stage at seeded instants, resume, compare the hashes",
                "chaos configs/demo/chaos.yaml kills=20",
                {"kills": "kills per stage", "instants_seed": "seed of the instants", "ending": "kill, term or int"},
                YAML_KEYS, "machine"),
        Command("config", "", "the keys of the YAML with types, defaults and meanings", "config grpo.loss",
                more="a stage, a block or a key; or --method NAME", group="help"),
        Command("schema", "", "the JSON Schema of the YAML, for editors", "schema > schema.json", group="help"),
        Command("help", "", "this list, or the help of one command", "help serve", more="a command", group="help"),
    ]  # fmt: skip


COMMANDS = {command.name: command for command in (*_of_stages(), *_of_a_yaml(), *_of_a_run(), *_of_the_machine())}
GROUPS = {"pipelines": "a YAML", "stages": "one stage of a YAML", "runs": "a finished run",
          "machine": "this machine", "help": "help"}  # fmt: skip


def own_and_rest(command: str, words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """A command's own key=value words, and the others. Raises ConfigError for others where it takes none."""
    table = COMMANDS[command]
    own: dict[str, str] = {}
    rest: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in table.keys:
            own[key] = value
        elif not table.more:
            wrong = f"expected key=value{nearest(key, table.keys)}" if table.keys else "it takes no further words"
            raise ConfigError([f"{command}: {word!r} on the command line: {wrong}"])
        else:
            rest.append(word)
    return own, rest


def options(command: str, words: Sequence[str]) -> dict[str, str]:
    """The key=value words of a command that takes no others. Raises ConfigError for another."""
    return own_and_rest(command, words)[0]


def overview() -> str:
    lines = ["usage: whetstone COMMAND [CONFIG or RUN_DIR] [key=value ...] [--verbose]", "",
             "Post-train small language models with RL, one stage or the whole chain at once.",
             "`python -m pipeline` is the same. `whetstone help COMMAND` shows a command's keys.", ""]  # fmt: skip
    for group, title in GROUPS.items():
        lines += [f"{title}:"]
        lines += [f"  {c.name:14} {c.summary}" for c in COMMANDS.values() if c.group == group]
    codes = "Exit codes: 0 done, 2 your mistake, 3 stopped by an alarm, 130 and 143 interrupted."
    return "\n".join([*lines, "", "A stage with a name of its own in the YAML is run by that name.", codes])


def usage(name: str) -> str:
    """One command's help. Raises ConfigError for a name that is none."""
    if name not in COMMANDS:
        raise ConfigError([f"no command {name!r}{nearest(name, COMMANDS)}"])
    command = COMMANDS[name]
    words = " ".join(filter(None, [name, command.takes, "[key=value ...]" if command.keys or command.more else ""]))
    lines = [
        f"usage: whetstone {words}",
        "",
        *textwrap.wrap(command.summary[0].upper() + command.summary[1:] + ".", 100),
    ]
    if command.keys:
        width = max(map(len, command.keys)) + 2
        lines += ["", "keys:"]
        for key, meaning in command.keys.items():
            lines += textwrap.wrap(meaning, 100, initial_indent=f"  {key:{width}}", subsequent_indent=" " * (width + 2))
    if command.more:
        lines += ["", f"other words: {command.more}"]
    if command.group == "stages":
        lines += [f"`whetstone config {name}` lists the keys of this stage."]
    return "\n".join([*lines, "", f"example: whetstone {command.example}"])


__all__ = ["COMMANDS", "Command", "options", "overview", "own_and_rest", "usage"]
