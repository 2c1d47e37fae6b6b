"""The rewards of `prompts.sources` as parts of the run's rewards, each with the sources that it judges."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.load import Config


def with_source_rewards(config: Config) -> list[str]:
    """Add each source's rewards to `config.rewards`, under the key `sources`. Returns the mistakes, one line each."""
    prompts, out = config.prompts, []
    if not prompts.sources:
        return [f"rewards.{name}.sources: there are no prompts.sources to choose from"
                for name, fields in config.rewards.items() if "sources" in (fields or {})]  # fmt: skip
    if prompts.path or prompts.procedural or prompts.prime:
        out.append("prompts: give sources, or path or procedural, not both")
    for key in ("heldout_path", "heldout_split", "format", "template", "task"):
        if getattr(prompts, key) is not None:
            out.append(f"prompts.{key}: with sources, rows are read by the keys of their own source; leave it out")
    everywhere = [name for name, fields in config.rewards.items() if "sources" not in (fields or {})]
    for name, source in prompts.sources.items():
        at = f"prompts.sources.{name}"
        if (source.path is None) == (source.procedural is None):
            out.append(f"{at}: give path (a file or Hub id) or procedural (a verifier that makes tasks)")
        if not source.rewards and not everywhere:
            out.append(f"{at}.rewards: nothing judges its rows; name a part, as rewards: {{math_answer: {{}}}}")
        for part, given in source.rewards.items():
            fields = {key: value for key, value in (given or {}).items() if key != "sources"}
            present = config.rewards.get(part)
            if present is None:
                config.rewards[part] = {**fields, "sources": [name]}
            elif {key: value for key, value in present.items() if key != "sources"} == fields and "sources" in present:
                present["sources"] = [*present["sources"], name]
            else:
                out.append(f"{at}.rewards.{part}: a part of this name has other settings, or judges every row; give it "
                           f"a name of its own, as {name}_{part}: {{kind: verifier, verifier: {part}}}")  # fmt: skip
    return out
