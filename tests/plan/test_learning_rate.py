"""Advice on learning rates: the source's own examples, and the lines that a plan prints."""

from pathlib import Path

import pytest

from pipeline.config.load import load
from pipeline.plan.learning_rate import advice, advised

QWEN = {"model_type": "qwen2", "hidden_size": 896}
LLAMA = {"model_type": "llama", "hidden_size": 4096}


def test_the_rates_are_those_that_the_source_gives_for_two_models() -> None:
    """Llama 3.1 8B (4096): 2.86e-4 under LoRA. Qwen3 4B (2560): 4.9e-4."""
    assert advised(LLAMA, lora=True) == pytest.approx(2.86e-4, rel=0.01)
    assert advised({"model_type": "qwen3", "hidden_size": 2560}, lora=True) == pytest.approx(4.9e-4, rel=0.01)
    full = advised(LLAMA, lora=False)
    assert full is not None and advised(LLAMA, lora=True) == pytest.approx(10 * full)
    assert advised({"model_type": "gemma3_text", "hidden_size": 640}, lora=True) is None
    assert advised({"model_type": "llama"}, lora=True) is None


def config(place: Path, sft: str, grpo: str):
    path = place / "c.yaml"
    path.write_text(
        "run: r\nmodel: {path: somewhere/qwen}\nprompts: {procedural: gridworld}\nrewards: {gridworld: {}}\n"
        f"stages: [sft, grpo]\nsft: {sft}\ngrpo: {grpo}\n"
    )
    return load(path)


def test_a_rate_far_from_the_advice_and_an_adapter_at_the_rate_of_all_weights_are_named(tmp_path: Path) -> None:
    peft = "peft: {r: 16, target_modules: all-linear}"
    lines = advice(config(tmp_path, "{trainer: {learning_rate: 1.0e-6}, " + peft + "}", "{" + peft + "}"), QWEN)
    assert len(lines) == 2
    assert "sft: trainer.learning_rate 1e-06 is far from 5.3e-04" in lines[0]
    assert "grpo: an adapter learns at about 10 times" in lines[1] and "consider 1e-05" in lines[1]


def test_a_rate_near_the_advice_says_nothing(tmp_path: Path) -> None:
    sft, grpo = "{trainer: {learning_rate: 2.0e-5}}", "{optimizer: {learning_rate: 1.0e-6}}"
    assert advice(config(tmp_path, sft, grpo), QWEN) == []
