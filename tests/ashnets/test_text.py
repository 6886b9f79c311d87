"""Texts: any script, cut and padded, saved without loss; spellings that unseen words share with seen ones."""

import torch
from tokenizers import Tokenizer

from ashnets.heads import SpellingEmbeddingHead
from ashnets.text import CLS, PAD, TextCodec, train_lexicon, train_tokenizer
from hw.spellings import spellings

TEXTS = ["a red circle", "what colour is the circle?", "Größe", "Αθήνα", "東京の塔"]


def codec(length: int = 60) -> TextCodec:
    return TextCodec(train_tokenizer(TEXTS, 400, length), train_lexicon(TEXTS, 100, least=1))


def test_any_script_survives_the_round_trip(tmp_path):
    tokenizer = train_tokenizer(TEXTS[:2], 400, 60)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        ids = again.encode(text).ids
        assert ids == tokenizer.encode(text).ids
        assert again.decode(ids).strip() == text.lower()


def test_texts_start_with_cls_and_are_padded_to_the_longest_of_the_batch():
    ours = codec()
    tokens = ours.encode(["red", "what colour is the circle?"])
    assert (tokens.ids[:, 0] == ours.tokenizer.token_to_id(CLS)).all()
    assert torch.equal(tokens.padding, tokens.ids == ours.tokenizer.token_to_id(PAD))
    assert tokens.padding[0].any()
    assert not tokens.padding[1].any()


def test_long_texts_are_cut():
    tokens = codec(length=8).encode(["circle " * 50])
    assert tokens.ids.shape == (1, 8)
    assert not tokens.padding.any()


def test_a_lexicon_keeps_what_enough_texts_share_and_weighs_rare_spellings_more():
    lexicon = train_lexicon(["red ball", "blue ball", "green ball", "red car", "red bus"], 100, least=3)
    assert {"ball", "<bal", "red"} <= set(lexicon)
    assert not {"blue", "car", "bus", "green"} & set(lexicon)
    rarer = train_lexicon(["ball a", "ball b", "ball c", "cat", "cat"], 100, least=2)
    assert rarer["cat"] > rarer["ball"]
    assert len(train_lexicon(TEXTS, 7, least=1)) == 7


def test_an_unseen_word_shares_spellings_with_a_seen_one():
    ours = TextCodec(train_tokenizer(TEXTS, 400, 60), train_lexicon(["basketball", "circle"], 300, least=1))
    bags = ours.encode(["baseball", "xyz", "basketball"]).bags
    assert (bags[0] > 0).sum() >= 5
    assert (bags[1] > 0).sum() == 0
    assert set(bags[0].tolist()) - {0} < set(bags[2].tolist())
    grams = "<b ba al ll l> <ba bal all ll> <bal ball all> <ball ball> <ball>"
    assert spellings("Ball") == set(grams.split())


def test_words_keep_the_marks_that_they_are_written_with_and_one_form():
    words = "हिन्दी", "שָׁלוֹם", "grösse"
    assert set(words) <= spellings(" ".join(words))
    assert spellings("gro\u0308ße") == spellings("größe")
    assert not spellings("\u0308 \ufe0f 🙂🏽")


def test_the_embedding_hears_the_spellings_and_ignores_their_padding(micro):
    head, ours = SpellingEmbeddingHead(micro).eval(), codec()
    head.learn_lexicon(ours.lexicon)
    tokens = ours.encode(["a red circle", "red"])
    w = torch.zeros(2, tokens.ids.shape[1], micro.width)
    both = head(w, tokens)
    assert not torch.allclose(both[0], both[1])
    alone = ours.encode(["red"])
    assert torch.allclose(head(w[:1, : alone.ids.shape[1]], alone)[0], both[1], atol=1e-6)
