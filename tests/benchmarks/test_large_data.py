import pytest

from benchmarks import large_data


@pytest.mark.long
def test_stages_on_a_file_of_200_mb_need_little_more_memory_than_on_a_small_one(monkeypatch):
    monkeypatch.setenv("WHETSTONE_DATA_GB", "0.2")
    found = large_data.run()
    assert set(found["growth_mib"]) == {"plan", "base", "sft", "grpo"}
    assert max(found["growth_mib"].values()) < 120, found  # the file itself is 191 MiB
