"""Recall at K, by hand and against a slow definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.metrics.retrieval import hubness, ranks, recalls, without_hubs


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
    assert hubness(similarities, 2).tolist() == pytest.approx([0.7, 0.2])
    assert hubness(similarities, 99).tolist() == pytest.approx([0.5, 0.2])


def test_a_caption_that_is_near_to_all_pictures_no_longer_wins_by_that():
    scores = np.array([[0.6, 0.5], [0.6, 0.3]])  # text 0 is everyone's; text 1 is liked by its picture alone
    plain = recalls(scores, ["b", "a"], np.array([1, 0]), ks=(1,))
    fair = without_hubs(scores, np.array([0.5, 0.5]), np.array([0.6, 0.1]))
    assert plain["tr@1"] == 50.0
    assert recalls(fair, ["b", "a"], np.array([1, 0]), ks=(1,))["tr@1"] == 100.0
    np.testing.assert_allclose(fair, [[0.1, 0.4], [0.1, 0.0]], atol=1e-12)
