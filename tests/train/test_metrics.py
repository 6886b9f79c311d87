"""Recall at K, by hand and against a slow definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.metrics import retrieval
from train.metrics.retrieval import Similarities, hubness, rank, rank_again, ranks


def of(scores: np.ndarray) -> Similarities:
    """Any scores [images, texts], as products of embeddings."""
    return Similarities(images=scores, texts=np.eye(scores.shape[1]))


def recalls(scores, image_ids, text_image, ks=(1, 5, 10)) -> dict[str, float]:
    return rank(of(scores), image_ids, text_image).recalls(ks)


def test_recall_by_hand():
    scores = np.array([[0.9, 0.1, 0.5], [0.8, 0.2, 0.1], [0.3, 0.4, 0.6]])
    found = recalls(scores, ["a", "b", "c"], np.array([0, 1, 2]), ks=(1, 2))
    assert found["tr@1"] == pytest.approx(200 / 3)  # b's own text is second
    assert found["tr@2"] == 100.0
    assert found["ir@1"] == pytest.approx(200 / 3)  # text 1 likes image c best
    assert found["ir@2"] == 100.0


def test_constant_scores_find_nothing():
    found = recalls(np.zeros((20, 20)), [str(i) for i in range(20)], np.arange(20))
    assert set(found.values()) == {0.0}


def test_scores_that_are_no_numbers_find_nothing():
    nothing = Similarities(images=np.full((20, 4), np.nan), texts=np.full((20, 4), np.nan))
    found = rank(nothing, [str(i) for i in range(20)], np.arange(20))
    assert set(found.recalls().values()) == {0.0}


def test_any_caption_of_the_image_counts_and_so_does_an_image_with_the_same_id():
    scores = np.array([[0.1, 0.9, 0.5], [0.0, 0.2, 0.3]])
    found = recalls(scores, ["a", "b"], np.array([0, 0, 1]), ks=(1,))
    assert found["tr@1"] == 100.0
    same = recalls(np.array([[0.1, 0.9], [0.9, 0.1]]), ["a", "a"], np.array([0, 1]), ks=(1,))
    assert same == {"tr@1": 100.0, "ir@1": 100.0}


@given(st.integers(0, 2**31), st.integers(2, 8), st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_rank_is_the_number_of_irrelevant_items_that_score_at_least_as_high(seed, queries, items):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (queries, items)).astype(float)
    relevant = rng.random((queries, items)) < 0.4
    relevant[:, 0] = True
    for q in range(queries):
        best = max(scores[q, i] for i in range(items) if relevant[q, i])
        expected = sum(scores[q, i] >= best and not relevant[q, i] for i in range(items))
        assert ranks(scores, relevant)[q] == expected


def test_hubness_is_the_mean_of_the_nearest():
    similarities = np.array([[0.1, 0.9, 0.5], [0.2, 0.2, 0.2]])
    assert hubness(similarities, np.eye(3), 2).tolist() == pytest.approx([0.7, 0.2])
    assert hubness(similarities, np.eye(3), 99).tolist() == pytest.approx([0.5, 0.2])


def test_a_caption_that_is_near_to_all_pictures_no_longer_wins_by_that():
    scores = np.array([[0.6, 0.5], [0.6, 0.3]])  # text 0 is everyone's; text 1 is liked by its picture alone
    fair = Similarities(images=scores, texts=np.eye(2), image_hub=np.array([0.5, 0.5]), text_hub=np.array([0.6, 0.1]))
    ids, owner = ["b", "a"], np.array([1, 0])
    assert rank(of(scores), ids, owner).recalls((1,))["tr@1"] == 50.0
    assert rank(fair, ids, owner).recalls((1,))["tr@1"] == 100.0
    np.testing.assert_allclose(fair.matrix(), [[0.1, 0.4], [0.1, 0.0]], atol=1e-12)


def data(seed: int, images: int, texts: int):
    """Few different scores, so that ties are common; every image has a text, and ids may be shared."""
    rng = np.random.default_rng(seed)
    owner = np.concatenate([np.arange(images), rng.integers(0, images, texts - images)])
    ids = [str(i) for i in rng.integers(0, images, images)]
    return rng.integers(0, 5, (images, texts)).astype(float), ids, rng.permutation(owner), rng


@given(st.integers(0, 2**31), st.integers(1, 7), st.integers(0, 9), st.integers(1, 40))
@settings(max_examples=80, deadline=None)
def test_blocks_change_nothing(seed, images, more, block):
    scores, ids, owner, _ = data(seed, images, images + more)
    codes = np.array([int(i) for i in ids])
    relevant = codes[:, None] == codes[owner]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "BLOCK", block)
        found = rank(of(scores), ids, owner)
        near = hubness(scores, np.eye(scores.shape[1]), 3)
    assert found.tr.tolist() == ranks(scores, relevant).tolist()
    assert found.ir.tolist() == ranks(scores.T, relevant.T).tolist()
    assert np.take_along_axis(scores, found.first, 1).tolist() == (-np.sort(-scores, 1))[:, :10].tolist()
    assert near.tolist() == pytest.approx(np.sort(scores, 1)[:, -3:].mean(1).tolist())


@given(st.integers(0, 2**31), st.integers(2, 7), st.integers(0, 9), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_only_the_first_are_ranked_again_and_the_rest_stays_behind_them(seed, images, more, k):
    scores, ids, owner, rng = data(seed, images, images + more)
    scores += rng.random(scores.shape)  # without ties, so that the first k are told
    again = rng.integers(0, 4, scores.shape).astype(float)
    codes = np.array([int(i) for i in ids])
    relevant = codes[:, None] == codes[owner]
    asked = []

    def match(pair_images, pair_texts):
        assert (np.diff(pair_images) >= 0).all()
        asked.extend(zip(pair_images.tolist(), pair_texts.tolist(), strict=True))
        return again[pair_images, pair_texts]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "BLOCK", 11)
        plain, found = rank_again(of(scores), ids, owner, k, match)
    assert plain.tr.tolist() == ranks(scores, relevant).tolist()

    def whole(old, new):
        """What the peers do: everything behind the first k gets a score below all."""
        place = np.argsort(np.argsort(-old, 1), 1)
        return np.where(place < k, 1000 + new, old)

    assert found.tr.tolist() == ranks(whole(scores, again), relevant).tolist()
    assert found.ir.tolist() == ranks(whole(scores.T, again.T), relevant.T).tolist()
    assert len(asked) == len(set(asked)) <= k * (images + scores.shape[1])
