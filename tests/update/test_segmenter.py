"""Where segments end in sampled text, on two real tokenizers; and what a truncated segment's last value includes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.config.schema import Segments
from pipeline.update.experience import _earned_in_last
from pipeline.update.forward import Row
from pipeline.update.segmenter import Segmenter, starts_of

TEXT = 'First add. Then 3.5 is left!\nIs it so? "Yes." Done</step> and more'


def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2 and Qwen: a piece may hold half a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def metaspace() -> PreTrainedTokenizerFast:
    """Unigram with a mark for spaces, as of SentencePiece: a token alone loses its leading space."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.train_from_iterator(
        [TEXT] * 3, trainers.UnigramTrainer(vocab_size=60, show_progress=False, unk_token="?u")
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def parts(tokenizer: PreTrainedTokenizerFast, **settings: Any) -> list[str]:
    """The text of each segment of TEXT."""
    ids: Any = tuple(tokenizer(TEXT, add_special_tokens=False).input_ids)
    row = Row((0,), ids, (True,) * len(ids))
    (numbers,) = Segmenter(Segments(**settings), tokenizer).numbers([row], [torch.zeros(len(ids))])
    starts = [0, *starts_of(numbers), len(ids)]
    bounds = [len(tokenizer.decode(ids[:at])) for at in starts]
    text = str(tokenizer.decode(ids))
    return [text[a:b] for a, b in pairwise(bounds)]


@pytest.mark.parametrize("tokenizer", [byte_level(), metaspace()], ids=["byte level", "metaspace"])
def test_marks_end_segments_with_the_token_that_completes_them(tokenizer: PreTrainedTokenizerFast) -> None:
    by_marker = parts(tokenizer, by="marker", marker="</step>")
    assert len(by_marker) == 2 and "</step>" in by_marker[0] and by_marker[1].strip() == "and more"
    sentences = [s.strip() for s in parts(tokenizer, by="sentence")]
    assert sentences == ["First add.", "Then 3.5 is left!", "Is it so?", '"Yes."', "Done</step> and more"]
    lines = parts(tokenizer, by="newline")
    assert len(lines) == 2 and lines[1].strip().startswith("Is it")


def test_a_character_of_several_tokens_is_found_too() -> None:
    tokenizer = byte_level()
    ids: Any = tuple(tokenizer("aéb→c", add_special_tokens=False).input_ids)
    row = Row((0,), ids, (True,) * len(ids))
    (numbers,) = Segmenter(Segments(by="marker", marker="→"), tokenizer).numbers([row], [torch.zeros(len(ids))])
    (start,) = starts_of(numbers)
    assert tokenizer.decode(ids[start:]) == "c"


def test_tokens_that_were_not_sampled_belong_to_no_segment() -> None:
    row = Row((0,), (5, 6, 7, 8, 9), (True, True, False, True, True))
    (numbers,) = Segmenter(Segments(by="tokens", tokens=2), None).numbers([row], [torch.zeros(5)])
    assert numbers.tolist() == [0, 0, -1, 1, 1]
    masked = Row((0,), (5, 6), (False, False))
    assert Segmenter(Segments(by="tokens"), None).numbers([masked], [torch.zeros(2)])[0].tolist() == [-1, -1]


def test_what_a_truncated_segment_has_earned_is_taken_off_its_last_value() -> None:
    """The critic's value after the end includes 3 + 4 of the last segment, which its reward holds as well."""
    rewards = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0])]
    segments = [torch.tensor([0, 0, 1, 1]), torch.tensor([0])]
    assert _earned_in_last(rewards, segments, [0, 1]).tolist() == [7.0, 5.0]
