import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import train.data
from train.data import ArrayData, Batch, MissingPackageError, answer_vocabulary, batches, collate, load
from train.data.base import require

SIZES = st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


def tiny(**changes) -> ArrayData:
    """Three images of 2 x 2 pixels with 1, 3 and 0 questions, in rows 2, 0 and 1."""
    fields = {
        "name": "tiny",
        "split": "train",
        "image_size": 2,
        "pixels": np.arange(36, dtype=np.uint8).reshape(3, 2, 2, 3),
        "rows": (2, 0, 1),
        "image_ids": ("c", "a", "b"),
        "all_texts": (("q0",), ("q1", "q2", "q3"), ()),
        "all_answers": (("yes",), ("no", "red", "no"), ()),
    }
    return ArrayData(**(fields | changes))


@given(SIZES, st.integers(0, 2**40), st.integers(0, 50))
def test_one_epoch_shows_no_image_twice_and_drops_only_the_remainder(sizes, seed, epoch):
    n, batch_size = sizes
    per_epoch = n // batch_size
    shown = np.concatenate([batches(n, batch_size, seed, epoch * per_epoch + k) for k in range(per_epoch)])
    assert len(set(shown.tolist())) == len(shown) == per_epoch * batch_size
    assert shown.min() >= 0
    assert shown.max() < n
    if n % batch_size == 0:
        assert sorted(shown.tolist()) == list(range(n))


@given(SIZES, st.integers(0, 1000), st.lists(st.integers(0, 300), min_size=1, max_size=8))
def test_a_batch_depends_on_its_step_alone_and_not_on_the_steps_before(sizes, seed, steps):
    n, batch_size = sizes
    in_order = {step: batches(n, batch_size, seed, step).tolist() for step in range(max(steps) + 1)}
    train.data.base._permutation.cache_clear()
    assert [batches(n, batch_size, seed, step).tolist() for step in steps] == [in_order[step] for step in steps]


def test_epochs_and_seeds_shuffle_differently():
    first = batches(100, 100, seed=0, step=0)
    assert not np.array_equal(first, np.arange(100))
    assert not np.array_equal(first, batches(100, 100, seed=0, step=1))
    assert not np.array_equal(first, batches(100, 100, seed=1, step=0))


def test_the_order_of_the_data_is_the_same_on_every_machine():
    assert batches(10, 5, seed=3, step=0).tolist() == [9, 6, 0, 2, 1]


def test_writing_into_a_batch_does_not_change_the_next_one_that_is_asked_for():
    batches(6, 3, seed=0, step=0)[:] = -1
    assert (batches(6, 3, seed=0, step=0) >= 0).all()


@pytest.mark.parametrize("batch_size", [0, 6])
def test_a_batch_that_the_data_cannot_fill_is_refused_with_the_limit(batch_size):
    with pytest.raises(
        ValueError, match=rf"batch_size is {batch_size}, but the data holds 5 images; choose from 1 to 5"
    ):
        batches(5, batch_size, seed=0, step=0)


@pytest.mark.parametrize(("seed", "step"), [(-1, 0), (0, -1)])
def test_negative_seeds_and_steps_are_refused(seed, step):
    with pytest.raises(ValueError, match="must be 0 or more"):
        batches(5, 2, seed, step)


def test_collate_takes_all_texts_in_order_and_links_them_to_their_images():
    batch = collate(tiny(), [1, 2, 0], np.random.default_rng(0), texts_per_image=None)
    assert batch.texts == ["q1", "q2", "q3", "q0"]
    assert batch.answers == ["no", "red", "no", "yes"]
    assert batch.text_image.tolist() == [0, 0, 0, 2]
    assert batch.text_image.dtype == np.int64
    assert batch.image_ids == ["a", "b", "c"]
    assert batch.images.shape == (3, 3, 2, 2)
    assert np.array_equal(batch.images[0], np.arange(12, dtype=np.uint8).reshape(2, 2, 3).transpose(2, 0, 1))


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_collate_draws_texts_without_replacement_and_keeps_each_with_its_answer(seed, texts_per_image):
    data = tiny()
    batch = collate(data, np.array([0, 1, 2]), np.random.default_rng(seed), texts_per_image)
    assert np.bincount(batch.text_image, minlength=3).tolist() == [1, min(3, texts_per_image), 0]
    assert len(set(batch.texts)) == len(batch.texts)
    for text, answer, image in zip(batch.texts, batch.answers, batch.text_image, strict=True):
        assert data.answers(image)[data.texts(image).index(text)] == answer


def test_collate_draws_every_text_sooner_or_later_and_repeats_itself_for_one_seed():
    draws = [collate(tiny(), [1], np.random.default_rng(seed), 1).texts for seed in range(30)]
    assert {text for texts in draws for text in texts} == {"q1", "q2", "q3"}
    assert draws == [collate(tiny(), [1], np.random.default_rng(seed), 1).texts for seed in range(30)]


def test_collate_of_captions_has_no_answers():
    assert collate(tiny(all_answers=()), [0, 1], np.random.default_rng(0), None).answers == []


def test_collate_refuses_to_draw_no_text():
    with pytest.raises(ValueError, match="texts_per_image is 0"):
        collate(tiny(), [0], np.random.default_rng(0), 0)


def test_images_are_copies_that_may_be_written():
    data = tiny()
    data.image(0)[:] = 255
    assert data.image(0).max() == 35


@pytest.mark.parametrize(
    "changes",
    [
        {"image_ids": ("c", "a", "x")},
        {"all_texts": (("q0",), ("q1", "q2", "other"), ())},
        {"all_answers": (("yes",), ("no", "blue", "no"), ())},
        {"pixels": np.arange(1, 37, dtype=np.uint8).reshape(3, 2, 2, 3)},
        {"rows": (0, 2, 1)},
        # The same words, cut differently, must not look the same.
        {"all_texts": (("q0",), ("q1", "q2", "q3", ""), ()), "all_answers": (("yes",), ("no", "red", "no", ""), ())},
    ],
)
def test_the_fingerprint_changes_with_every_part_of_the_records(changes):
    assert tiny(**changes).fingerprint != tiny().fingerprint


def test_equal_records_have_equal_fingerprints_wherever_their_pixels_lie():
    moved = tiny(pixels=tiny().pixels[::-1].copy(), rows=(0, 2, 1))
    assert moved.fingerprint == tiny().fingerprint
    assert len(moved.fingerprint) == 64


def test_the_answer_vocabulary_is_sorted_without_repetitions_and_holds_what_is_given_often_enough():
    given = [answer for i in range(len(tiny())) for answer in tiny().answers(i)]
    assert answer_vocabulary(tiny()) == ["no", "red", "yes"]
    assert answer_vocabulary(tiny(), tiny(), least=3) == [a for a in ("no", "red", "yes") if given.count(a) > 1]
    assert answer_vocabulary(tiny(all_answers=())) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 3}, r"expected uint8 \[M, 3, 3, 3\]"),
        ({"image_ids": ("a",)}, "1 image ids"),
        ({"all_answers": (("yes",), ("no",), ())}, "every question needs one answer"),
    ],
)
def test_records_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((1, 2, 2, 3), np.uint8)}, r"expected uint8 \[B, 3, H, W\]"),
        ({"image_ids": []}, "1 images, but 0 image ids"),
        ({"text_image": np.zeros(1, np.int32)}, r"expected int64 \[1\]"),
        ({"answers": ["a", "b"]}, "1 texts, but 2 answers"),
    ],
)
def test_a_batch_whose_parts_do_not_fit_is_refused(changes, message):
    fields = {
        "images": np.zeros((1, 3, 2, 2), np.uint8),
        "texts": ["a"],
        "text_image": np.zeros(1, np.int64),
        "image_ids": ["a"],
        "answers": [],
    }
    Batch(**fields)
    with pytest.raises(ValueError, match=message):
        Batch(**(fields | changes))


def test_an_unknown_data_set_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="no data set 'coco'; choose one of easy_nlvr2, easy_snli_ve, easy_vqa,"):
        load("coco", "train", 64)


@pytest.mark.parametrize("name", train.data.DATASETS)
def test_every_data_set_refuses_unknown_splits_and_sizes(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}: there is no split 'dev'; choose one of train, val, test"):
        load(name, "dev", 64, tmp_path)
    with pytest.raises(ValueError, match=f"{name}: image_size is 0 px"):
        load(name, "train", 0, tmp_path)


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(MissingPackageError, match=r"'no-such-thing' is not installed; .*: pip install no-such-thing$"):
        require("no_such_thing", "no-such-thing")
