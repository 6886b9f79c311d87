from collections import Counter

import numpy as np
import pytest

from train.data import answer_vocabulary, load

easy_vqa = pytest.importorskip("easy_vqa")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("easy_vqa")


@pytest.fixture(scope="session")
def splits(cache):
    return {split: load("easy_vqa", split, 64, cache) for split in ("train", "val", "test")}


def questions(data) -> Counter:
    return Counter(
        (int(data.image_id(i).split("/")[1]), question, answer)
        for i in range(len(data))
        for question, answer in zip(data.texts(i), data.answers(i), strict=True)
    )


def test_the_test_split_is_the_whole_test_set_of_the_package(splits):
    test = splits["test"]
    assert len(test) == 1000
    assert sum(len(test.texts(i)) for i in range(len(test))) == 9673
    texts, answers, numbers = easy_vqa.get_test_questions()
    assert questions(test) == Counter(zip(numbers, texts, answers, strict=True))


def test_train_and_val_are_the_training_set_cut_in_two(splits):
    train, val = splits["train"], splits["val"]
    assert (len(train), len(val)) == (3600, 400)
    assert not set(train.image_ids) & set(val.image_ids)
    texts, answers, numbers = easy_vqa.get_train_questions()
    assert questions(train) + questions(val) == Counter(zip(numbers, texts, answers, strict=True))


def test_no_picture_is_in_two_splits(splits):
    seen = [splits[split].image(i).tobytes() for split in splits for i in range(len(splits[split]))]
    assert len(set(seen)) == len(seen) == 5000


def test_the_validation_images_are_always_the_same(splits):
    assert splits["val"].image_ids[:3] == ("train/2", "train/14", "train/20")


def test_pixels_are_those_of_the_files(splits):
    from PIL import Image

    paths = easy_vqa.get_test_image_paths()
    for i in (0, 499, 999):
        with Image.open(paths[int(splits["test"].image_id(i).split("/")[1])]) as image:
            assert np.array_equal(splits["test"].image(i), np.array(image.convert("RGB")))


def test_every_question_has_one_of_the_thirteen_answers(splits):
    for data in splits.values():
        assert answer_vocabulary(data) == sorted(easy_vqa.get_answers())
        assert all(len(data.texts(i)) == len(data.answers(i)) > 0 for i in range(len(data)))


def test_another_size_averages_areas_of_the_original(splits, cache):
    small = load("easy_vqa", "test", 32, cache)
    assert small.image_ids == splits["test"].image_ids
    expected = splits["test"].image(7).astype(float).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(small.image(7) - expected).max() <= 1  # Pillow rounds after each of the two directions
    assert small.fingerprint != splits["test"].fingerprint


def test_loading_again_gives_the_same_records(splits, cache):
    assert load("easy_vqa", "val", 64, cache).fingerprint == splits["val"].fingerprint
    assert len({data.fingerprint for data in splits.values()}) == 3


def test_each_question_tells_what_kind_of_answer_it_asks_for(splits):
    test = splits["test"]
    kinds: dict[str, set[str]] = {}
    for i in range(len(test)):
        for kind, answer in zip(test.kinds(i), test.answers(i), strict=True):
            kinds.setdefault(kind, set()).add(answer)
    assert kinds["yes/no"] == {"yes", "no"}
    assert kinds["shape"] == {"circle", "rectangle", "triangle"}
    assert kinds["color"] == {"black", "gray", "teal", "green", "yellow", "red", "blue", "brown"}
    assert len(kinds) == 3
