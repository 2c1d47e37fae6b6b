"""Which characters a tiny model's tokenizer drops, against the tokenizer itself."""

from pipeline.config.schema import Model, Tiny
from pipeline.models import models
from pipeline.models.tiny_text import unknown_characters


def test_unknown_characters_are_those_that_the_tokenizer_drops_wholly_or_in_part(tmp_path):
    characters = "ab\u00e4\u2192"
    models.make_tiny(Tiny(hidden_size=4, intermediate_size=4, num_hidden_layers=1, characters=characters), tmp_path,
                     seed=1)  # fmt: skip
    tokenizer = models.load_tokenizer(str(tmp_path), Model())
    for character in "abcz \n\u00e4\u00c4\u2192\u2191":
        kept = tokenizer.decode(tokenizer(character).input_ids) == character
        assert unknown_characters(character, characters) == ("" if kept else character)
    assert unknown_characters("<eos>ab<pad>", characters) == "" and unknown_characters("xaxy", characters) == "xy"
