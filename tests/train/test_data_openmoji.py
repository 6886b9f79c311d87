import sys
from collections import Counter

import numpy as np
import pytest

from train.data import MissingPackageError, answer_vocabulary, load
from train.data.openmoji import _PACKAGES, _base, _caption_key, _code, _merge, _names, _records

for _package in _PACKAGES:
    pytest.importorskip(_package)

SIZE = 32


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("openmoji")


@pytest.fixture(scope="session")
def splits(cache):
    return {split: load("openmoji", split, SIZE, cache) for split in ("train", "val", "test")}


@pytest.fixture(scope="session")
def records():
    return {record.code.replace("-FE0F", ""): record for record in _records()}


def ids(data) -> set[str]:
    return {data.image_id(i) for i in range(len(data))}


def test_val_and_test_hold_100_and_200_concepts_with_one_image_each(splits):
    for split, concepts in (("val", 100), ("test", 200)):
        assert len(splits[split]) == len(ids(splits[split])) == concepts


def test_train_holds_every_variant_of_the_other_concepts(splits):
    train = splits["train"]
    assert len(train) > 2500
    assert len(ids(train)) > 1000
    assert Counter(train.image_ids).most_common(1)[0][1] > 50


def test_no_concept_is_in_two_splits(splits):
    train, val, test = (ids(splits[split]) for split in ("train", "val", "test"))
    assert not train & val
    assert not train & test
    assert not val & test


def test_no_caption_and_so_no_set_of_captions_is_in_two_splits(splits):
    def captions(data) -> set[str]:
        return {_caption_key(text) for i in range(len(data)) for text in data.texts(i)}

    train, val, test = (captions(splits[split]) for split in ("train", "val", "test"))
    assert not train & val
    assert not train & test
    assert not val & test


def test_no_two_concepts_look_exactly_alike(splits):
    """Also where OpenMoji draws two emoji with the same file, such as the flags of Norway and of Svalbard."""
    concept_of: dict[bytes, str] = {}
    for data in splits.values():
        for i in range(len(data)):
            assert concept_of.setdefault(data.image(i).tobytes(), data.image_id(i)) == data.image_id(i)


def test_val_and_test_show_the_plain_drawing(splits):
    for split in ("val", "test"):
        data = splits[split]
        assert not [data.texts(i) for i in range(len(data)) if "skin tone" in " ".join(data.texts(i))]


def test_every_image_has_captions_without_repetitions(splits):
    for data in splits.values():
        for i in range(len(data)):
            keys = [_caption_key(text) for text in data.texts(i)]
            assert keys
            assert all(keys)
            assert len(set(keys)) == len(keys)
            assert not any(":" in text or "_" in text for text in data.texts(i))
        assert data.answers(0) == ()
        assert answer_vocabulary(data) == []


def test_images_are_colour_drawings_on_white(splits):
    train = splits["train"]
    pixels = np.stack([train.image(i) for i in range(len(train))])
    assert pixels.shape == (len(train), SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    assert (pixels[:, 0, 0] == 255).all(axis=1).mean() > 0.99
    assert (pixels.reshape(len(train), -1).std(axis=1) > 1).all(), "an empty drawing"
    hearts = [
        data.image(i)
        for data in splits.values()
        for i in range(len(data))
        if data.texts(i)[0].startswith("red heart, ")
    ]
    red, green, blue = hearts[0][SIZE // 2, SIZE // 2].astype(int)
    assert red > 180
    assert max(green, blue) < 100


def test_rendering_anew_gives_the_same_records(splits, cache, tmp_path):
    assert load("openmoji", "test", SIZE, cache).fingerprint == splits["test"].fingerprint
    anew = load("openmoji", "test", SIZE, tmp_path)
    assert anew.fingerprint == splits["test"].fingerprint
    assert anew.image_ids == splits["test"].image_ids


@pytest.mark.parametrize(
    ("variant", "plain"),
    [
        ("👍🏽", "👍"),
        ("👩🏻‍🚒", "🧑‍🚒"),
        ("👨‍🚒", "🧑‍🚒"),
        ("🏃🏿‍♀️‍➡️", "🏃"),
        ("👨🏿‍🦰", "🧑"),
        ("👱‍♀️", "🧑"),
        ("👨‍👩‍👧‍👦", "👪"),
        ("👩‍👦", "👪"),
        ("🧑‍🧑‍🧒", "👪"),
        ("👩🏻‍❤️‍👨🏿", "💑"),
        ("👨‍❤️‍💋‍👨", "💏"),
        ("👫🏽", "🧑‍🤝‍🧑"),
        ("🫱🏻‍🫲🏿", "🤝"),
        ("👸🏾", "🫅"),
        ("🤶", "🧑‍🎄"),
        ("❤️", "❤"),
    ],
)
def test_variants_of_one_thing_are_one_concept(variant, plain):
    assert _base(variant) == _base(plain) == "-".join(f"{ord(character):04X}" for character in plain)


def test_different_things_stay_different_concepts():
    different = ["🧑", "👪", "💑", "💏", "🧒", "🐶", "❤", "💛", "🇫🇷", "🇩🇪", "🧑‍🚒", "🧑‍🍳", "🏳️‍🌈", "🐻‍❄️", "🐻"]
    assert len({_base(emoji) for emoji in different}) == len(different)


def test_emoji_that_share_a_caption_or_a_drawing_become_one_concept_also_over_a_third():
    merged = _merge([("cat", ["x", "1"]), ("dog", ["y"]), ("bear", ["1", "2"]), ("ant", ["2"]), ("dog", ["z"])])
    assert merged == {"cat": "ant", "bear": "ant", "ant": "ant", "dog": "dog"}


@pytest.mark.parametrize(
    ("sequence", "name", "aliases", "names"),
    [
        ("😂", ":face_with_tears_of_joy:", [":joy:"], ("face with tears of joy", "joy")),
        ("🇫🇷", ":France:", [":flag_for_France:", ":fr:"], ("flag for France", "France")),
        ("👍", ":thumbs_up:", [":+1:", ":thumbsup:"], ("thumbs up", "thumbsup")),
        ("🕖", ":seven_o’clock:", [":clock7:", ":seven_oclock:"], ("seven o’clock", "clock7")),
        ("🅾", ":OK:", [], ("OK",)),
        ("😼", ":Cat_Face:", [":cat_face:"], ("Cat Face",)),
    ],
)
def test_names_are_plain_words_none_twice(sequence, name, aliases, names):
    assert _names(sequence, name, aliases) == names


@pytest.mark.parametrize(
    ("emoji", "caption"),
    [
        ("🌺", "hibiscus, plant flower, Animals & Nature"),
        ("🇰🇪", "flag for Kenya, country flag, Flags"),
        ("👨🏽‍🚒", "man firefighter medium skin tone, person role, People & Body"),
        ("🫱🏻‍🫲🏿", "handshake light skin tone dark skin tone, hands, People & Body"),  # in the charts as 🤝
        ("❤️", "red heart, Smileys & Emotion"),  # "heart" says nothing new
        ("\U0001fadc", "root vegetable"),  # newer than the charts
    ],
)
def test_captions_are_names_and_kinds(records, emoji, caption):
    assert records[_code(emoji.replace("\ufe0f", ""))].caption == caption


def test_nearly_every_emoji_has_a_kind(records):
    assert len({record.kinds[1] for record in records.values() if record.kinds}) == 9
    assert sum(not record.kinds for record in records.values()) < 30


def test_punctuation_tells_keycaps_apart():
    assert _caption_key("keycap #") != _caption_key("keycap *")


@pytest.mark.parametrize(("module", "package"), _PACKAGES.items())
def test_a_missing_package_is_named(monkeypatch, tmp_path, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=f"'{package}' is not installed; .*pip install {package}"):
        load("openmoji", "test", SIZE, tmp_path)
