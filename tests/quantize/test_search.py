"""The scan ranks layers, the search finds the cheapest assignment under its budget."""

import pytest

from hw.errors import UserError
from quantize.quantizers import quantizers_of
from quantize.search import LADDER, scan, search, size_of

WEIGHTS = {"small": 100, "large": 1000, "tender": 400}
COST = {"small": 0.1, "large": 0.2, "tender": 3.0}  # points lost for a bit below eight


def score(quantizer: str) -> float:
    found = quantizers_of(quantizer, list(WEIGHTS))
    return 90 - sum(COST[layer] * (8 - q.holds.bits) for layer, q in found.items())


def test_the_layer_that_loses_most_stands_first_and_drops_are_against_int8():
    found = scan(WEIGHTS, score)
    assert list(dict.fromkeys(s.layer for s in found)) == ["tender", "large", "small"]
    by_key = {(s.layer, s.format): s for s in found}
    assert by_key["large", "int4"].drop == pytest.approx(0.8)
    assert by_key["large", "int4"].saved == 500
    assert len(found) == 3 * 4


def test_a_memory_budget_takes_bits_where_they_cost_least_for_a_byte():
    best, path = search(WEIGHTS, score, memory=0.5)
    assert best.bytes <= 0.5 * size_of(WEIGHTS, dict.fromkeys(WEIGHTS, "int8"))
    assert "tender=int8" in best.quantizer
    assert "large=int2" in best.quantizer
    assert [t.bytes for t in path] == sorted((t.bytes for t in path), reverse=True)
    assert best.drop == pytest.approx(path[0].score - best.score)


def test_a_score_budget_is_kept_and_used_up():
    best, _ = search(WEIGHTS, score, drop=1.0)
    assert best.drop <= 1.0
    for layer, q in quantizers_of(best.quantizer, list(WEIGHTS)).items():
        lower = LADDER[LADDER.index(q.format) + 1 :][:1]
        for format in lower:
            assert 90 - score(best.quantizer.replace(f"{layer}={q.format}", f"{layer}={format}")) > 1.0


def test_every_score_is_asked_of_a_real_assignment_and_budgets_are_exclusive():
    with pytest.raises(UserError, match="a search needs one budget"):
        search(WEIGHTS, score)
    with pytest.raises(UserError, match="a search needs one budget"):
        search(WEIGHTS, score, memory=0.5, drop=1.0)
    with pytest.raises(UserError, match=r"int2 in every layer still takes 0\.25"):
        search(WEIGHTS, score, memory=0.2)
    best, path = search(WEIGHTS, score, drop=1e9)
    assert best.quantizer == "small=int2,large=int2,tender=int2"
    assert len(path) == 1 + 3 * (len(LADDER) - 1)


def test_layers_of_a_few_weights_take_fewer_bits_too_and_a_drop_is_a_number():
    _, path = search({"one": 1, "three": 3}, lambda quantizer: 90.0 - len(quantizer), drop=1e9)
    assert path[-1].quantizer == "one=int2,three=int2"
    for drop in (-1.0, float("nan")):
        with pytest.raises(UserError, match=r"--drop is .*; give 0 or more"):
            search(WEIGHTS, score, drop=drop)
