"""Tokenizer: any script, cut and padded, and saved without loss."""

import torch
from tokenizers import Tokenizer

from ashnets.text import CLS, PAD, encode, train_tokenizer

TEXTS = ["a red circle", "what colour is the circle?", "Größe", "Αθήνα", "東京の塔"]


def test_any_script_survives_the_round_trip(tmp_path):
    tokenizer = train_tokenizer(TEXTS[:2], 400, 60)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        ids = again.encode(text).ids
        assert ids == tokenizer.encode(text).ids
        assert again.decode(ids).strip() == text.lower()


def test_texts_start_with_cls_and_are_padded_to_the_longest_of_the_batch():
    tokenizer = train_tokenizer(TEXTS, 400, 60)
    ids, padding = encode(tokenizer, ["red", "what colour is the circle?"])
    assert (ids[:, 0] == tokenizer.token_to_id(CLS)).all()
    assert torch.equal(padding, ids == tokenizer.token_to_id(PAD))
    assert padding[0].any()
    assert not padding[1].any()


def test_long_texts_are_cut():
    tokenizer = train_tokenizer(TEXTS, 400, 8)
    ids, padding = encode(tokenizer, ["circle " * 50])
    assert ids.shape == (1, 8)
    assert not padding.any()
