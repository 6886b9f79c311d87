"""The codec of a bundle: numpy makes the very tokens that torch's does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ashnets.text import TextCodec, train_lexicon, train_tokenizer
from hw import bundle
from hw.artifact import write_json
from train.data import load

ODD = [
    "",
    " ",
    "a",
    "Größe ΑΘΉΝΑ 東京の塔",
    "é e\u0301 ﬀ İ ß",
    "🙂🏽 \x00 \t\n",
    "circle " * 50,
    "[PAD] [CLS] <red>",
    "e" * 3000,
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    data = [load(name, "test", 32) for name in ("openmoji", "easy_vqa")]
    return [text for part in data for i in range(len(part)) for text in part.texts(i)]


@pytest.fixture(scope="module")
def codecs(texts, tmp_path_factory) -> tuple[TextCodec, bundle.TextCodec]:
    ours = TextCodec(train_tokenizer(texts, 1024, 24), train_lexicon(texts[:2000], 3000))
    folder = tmp_path_factory.mktemp("codec")
    ours.tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "lexicon.json", ours.lexicon)
    return ours, bundle.read_codec(folder)


def assert_equal(codecs: tuple[TextCodec, bundle.TextCodec], batch: list[str]) -> None:
    torchs, numpys = (codec.encode(batch) for codec in codecs)
    for a, b in zip(torchs, numpys, strict=True):
        np.testing.assert_array_equal(b, a.numpy())
        assert b.dtype == a.numpy().dtype


def test_every_text_of_two_data_sets_gets_the_same_tokens_and_spellings(codecs, texts):
    assert len(texts) > 9_000
    for start in range(0, len(texts), 500):
        assert_equal(codecs, texts[start : start + 500])
    for text in dict.fromkeys(texts[::97]):  # alone, cut to its own length
        assert_equal(codecs, [text])
    assert codecs[1].encode(texts[:500]).bags.max() > 500


def test_odd_texts_get_the_same_tokens_alone_and_together(codecs):
    assert_equal(codecs, ODD)
    for text in ODD:
        assert_equal(codecs, [text])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_any_text_gets_the_same_tokens(codecs, batch):
    assert_equal(codecs, batch)
