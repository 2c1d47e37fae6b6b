import json

import pytest
import torch
from torch import nn

from pipeline.config.load import ConfigError
from pipeline.config.schema import Model, Tiny
from pipeline.generation.vllm_engine import once_where_tied
from pipeline.models import models, weights
from pipeline.run.files import sha256_tree
from tests.family_twins import FAMILIES, save


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    models.make_tiny(Tiny(), path, seed=1)
    return path


def test_the_tiny_model_is_a_function_of_its_seed(place, tmp_path):
    for name, seed in (("again", 1), ("other", 2)):
        models.make_tiny(Tiny(), tmp_path / name, seed=seed)
    same, again, other = (
        sha256_tree(p, p)["model.safetensors"] for p in (place, tmp_path / "again", tmp_path / "other")
    )
    assert same == again != other


def test_the_tiny_tokenizer_gives_back_every_text_of_its_characters(place):
    tokenizer = models.load_tokenizer(str(place), Model())
    text = Tiny().characters
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text and len(ids) == len(text)


def test_a_chat_template_comes_from_its_file_or_stands_in_the_yaml_however_long(place, tmp_path):
    (tmp_path / "chat.jinja").write_text("of a file")
    given = {"of a file": str(tmp_path / "chat.jinja"), "x" * 300: "x" * 300}
    for template, value in given.items():
        assert models.load_tokenizer(str(place), Model(chat_template=value)).chat_template == template


def test_a_directory_without_a_tokenizer_or_model_is_refused_by_name(place, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.path: .*empty has no config\.json"):
        (tmp_path / "empty").mkdir()
        models.check_model_dir(str(tmp_path / "empty"), "model.path")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((place / "config.json").read_text())
    with pytest.raises(ConfigError, match="has no tokenizer"):
        models.check_model_dir(str(tmp_path / "bare"), "model.path")


def test_weights_for_a_generator_name_the_tied_head(place):
    model = models.load_policy(str(place), Model())
    named = dict(models.named_weights(model))
    assert named["lm_head.weight"] is named["model.embed_tokens.weight"]
    assert set(named) == set(model.state_dict())


def test_an_engine_serves_a_model_saved_in_another_precision_where_the_yaml_names_its_own(place, tmp_path):
    config = json.loads((place / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    keys = [[models.architecture_key(str(p), Model(dtype=d)) for p in (place, tmp_path)] for d in ("auto", "bfloat16")]
    assert keys[0][0] != keys[0][1] and keys[1][0] == keys[1][1]


def test_a_tied_head_is_reported_by_its_tensor_also_where_each_is_gathered_again(place, monkeypatch):
    monkeypatch.setattr(weights.ranks, "full_tensor", lambda tensor: tensor.detach().clone())
    model = models.load_policy(str(place), Model())
    names = [name for name, _ in models.named_weights(model)]
    assert names.count("lm_head.weight") == 1
    assert {name for name, _ in once_where_tied(models.named_weights(model), ())} == {*names} - {"lm_head.weight"}


def test_adapters_are_merged_for_a_generator_and_left_as_they_were(place):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = models.load_policy(str(place), Model())
    before = {k: v.clone() for k, v in base.state_dict().items()}
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    merged = dict(models.named_weights(adapted))
    assert set(merged) == set(before)
    plain = models.load_policy(str(place), Model())
    plain.load_state_dict(merged)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.allclose(plain(ids).logits, adapted(ids).logits, atol=1e-5)
        with adapted.disable_adapter():
            assert not torch.allclose(plain(ids).logits, adapted(ids).logits, atol=1e-3)


def test_every_end_id_of_the_generation_config_ends_a_completion(place):
    tokenizer = models.load_tokenizer(str(place), Model())
    model = models.load_policy(str(place), Model())
    model.generation_config.eos_token_id = [2, 7, 9]
    assert models.end_ids(tokenizer, model) == {2, 7, 9}


def test_dropout_is_off_everywhere_in_a_policy(place, tmp_path):
    config = json.loads((place / "config.json").read_text()) | {"attention_dropout": 0.5}
    for path in place.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = models.load_policy(str(tmp_path), Model()).train()
    ids = torch.arange(12)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert all(m.p == 0 for m in model.modules() if isinstance(m, nn.Dropout))


@pytest.mark.parametrize("name", ["phimoe", "mixtral"])
def test_experts_are_not_chosen_at_random_while_a_policy_trains(name, tmp_path):
    """PhiMoE draws an expert from its scores in training, Mixtral multiplies by noise: log-probs would be another
    policy's than the one that sampled, by 0.004 nats per token on average."""
    save(FAMILIES[name], tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "router_jitter_noise": 0.3}))
    model = models.load_policy(str(tmp_path), Model())
    ids = torch.arange(12, 40)[None]
    expected = model.eval()(ids).logits
    assert torch.equal(model.train()(ids).logits, expected) and model.training
    model(ids).logits.sum().backward()
    router = next(p for n, p in model.named_parameters() if "router" in n or n.endswith("gate.weight"))
    assert router.grad is not None and float(router.grad.abs().max()) > 0


def test_a_reward_is_read_at_the_last_token_also_where_the_end_is_the_padding(place):
    """The library's own pooling looks for the last id that is not padding; ours goes by length."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=1, dtype=torch.float32).eval()
    sequences = [[5, 6, 7, 2], [5, 6, 2], [8, 2]]
    got = models.reward_scores(model, sequences)
    model.config.pad_token_id = 0
    with torch.no_grad():
        alone = [model(torch.tensor([s])).logits.item() for s in sequences]
    assert got == pytest.approx(alone, abs=1e-5)
    model.config.pad_token_id = 2
    assert models.reward_scores(model, sequences) == pytest.approx(got)


def test_batches_by_tokens_hold_every_row_once_and_keep_the_budget():
    lengths = [3, 50, 7, 7, 120, 1, 30, 9]
    batches = models.batches_by_tokens(lengths, 60)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 60
