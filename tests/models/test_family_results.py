"""Every family does what docs/models.md says of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.models import families
from tests import family_runs
from tests.family_twins import FAMILIES

RESULTS = json.loads(family_runs.RESULTS.read_text())
TRIED = list(RESULTS["families"])


def test_at_least_thirty_families_are_tried_and_the_page_is_made_of_their_results():
    assert len(TRIED) >= 30 and set(TRIED) | set(RESULTS["refused"]) <= set(FAMILIES)
    assert family_runs.TABLE.read_text() == family_runs.render(RESULTS), "run python -m tests.family_runs table"


def test_the_results_hold_what_plan_says_of_each_family():
    for name, result in RESULTS["families"].items():
        assert families.mistakes(family_runs.config_of(name)) == [], name
        assert result["config"] == family_runs.facts_of(family_runs.config_of(name)), name
        assert "not vLLM" in families.line(result["config"], dtype="float32", attn="sdpa", gpu=False) or (
            families.why_not_vllm_on_cpu(result["config"], "float32") is None
        )
    for name, why in RESULTS["refused"].items():
        assert families.mistakes(family_runs.config_of(name))[0] == why


def reproduced(name: str, *parts: str) -> dict[str, Any]:
    """Results of these parts, run again; those that the page shows must be what it shows."""
    expected, result = RESULTS["families"][name], family_runs.try_family(name, backend="transformers", parts=parts)
    for part in set(parts) & {"sft", "grpo", "lora", "qlora", "packed"}:
        assert result[part] == expected[part], part
    return result


@pytest.mark.long
@pytest.mark.stages
@pytest.mark.parametrize("name", TRIED)
def test_a_family_is_trained_as_the_page_says(name):
    result = reproduced(name, "sft", "grpo", "every_weight")
    if result["grpo"] is True:
        assert result["canary_max_abs"] < 1e-3 and result["mismatch_mean_abs"] < 1e-3
        # only chooses experts, which has no gradient: nothing that trains by gradients moves it
        left = [name for name in result["every_weight"] if not name.endswith("e_score_correction_bias")]
        assert left == [], "a weight that training leaves alone could be stale and not be seen"


@pytest.mark.long
@pytest.mark.stages
@pytest.mark.parametrize("name", TRIED)
def test_an_adapter_of_a_family_is_trained_and_exported_as_the_page_says(name):
    result = reproduced(name, "lora", "export")
    if result["lora"] is True:
        assert result["export"] <= 1e-5


@pytest.mark.long
@pytest.mark.parametrize("name", TRIED)
def test_a_family_is_packed_and_kept_in_4_bits_as_the_page_says(name):
    reproduced(name, "packed", "qlora")


@pytest.mark.long
@pytest.mark.parametrize("name", TRIED)
def test_the_canary_sees_a_stale_tensor_of_each_kind_in_a_family(name):
    result = family_runs.try_family(name, backend="transformers", parts=["stale"])
    assert result["stale"] == RESULTS["families"][name].get("stale", []), "kinds of tensors that the canary misses"


@pytest.mark.long
@pytest.mark.stages
@pytest.mark.parametrize("name", [name for name in TRIED if "vllm" in RESULTS["families"][name]])
def test_a_family_is_sampled_by_vllm_as_the_page_says(name):
    pytest.importorskip("vllm")
    result = family_runs.try_vllm(name)
    assert result["vllm"] == RESULTS["families"][name]["vllm"]
    if result["vllm"] is True:
        assert result["vllm_canary_max_abs"] < (1e-3 if result["vllm_dtype"] == "float32" else 0.25)
