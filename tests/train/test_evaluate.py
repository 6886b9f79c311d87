"""Evaluation: only the spiking stack is swapped, and answers do not depend on how it was run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ashnets.model import AshNet, normalise
from ashnets.stack import FoldableNorm
from hw.errors import UserError
from quantize import QuantizedStack
from tests.conftest import MICRO, micro_config
from train.evaluate import Ranking, evaluate_answers, evaluate_retrieval, image_batches, pixels_of
from train.joints import simulate_run, verify_run
from train.run import Bundle, load_model, quantized_stack
from train.stages import load_split, new_run, qat_config, quantized_run, train_run
from train.views import VIEWS, views

CPU = torch.device("cpu")


@pytest.fixture
def runs(tmp_path, few_records):
    source = train_run(new_run(tmp_path / "float", micro_config(steps=3)), CPU)
    return source, train_run(quantized_run(source, tmp_path / "int8", qat_config(source, 2)), CPU, init=source)


def test_the_program_through_the_bridge_answers_as_the_quantized_stack_on_every_question(runs):
    _, quantized = runs
    data = load_split(quantized, "test")
    found = [
        evaluate_answers(
            "vqa", load_model(quantized, backend, CPU), data, quantized.codec, quantized.answers, keep_scores=True
        )
        for backend in ("qat", "reference")
    ]
    assert np.array_equal(found[0].scores, found[1].scores)
    assert found[0].metrics["questions"] == sum(len(data.texts(i)) for i in range(len(data)))


def test_a_quantized_run_still_holds_the_float_model_that_it_came_from(runs):
    source, quantized = runs
    a, b = load_model(source, "float", CPU).state_dict(), load_model(quantized, "float", CPU).state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_quantized_run_starts_with_the_float_stacks_norms_folded_into_its_weights(runs, tmp_path):
    source, _ = runs
    config = qat_config(source, 1)
    still = quantized_run(source, tmp_path / "still", replace(config, train=replace(config.train, lr=0.0)))
    train_run(still, CPU, init=source)
    found = quantized_stack(load_model(still, "qat", CPU)).state_dict()
    stack = load_model(source, "float", CPU).abstract.stack
    scales = torch.cat([module.scale() for module in stack.modules() if isinstance(module, FoldableNorm)])
    assert (scales - 1).abs().max() > 0.05
    for name, value in QuantizedStack(stack).state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_only_the_stack_is_trained_and_of_its_scales_those_that_are_to_be():
    config = replace(micro_config(steps=1), quantizer="conv1=int4:mse,conv2=int4:trained,*=int8")
    trained = {name for name, p in Bundle(config, 3).named_parameters() if p.requires_grad}
    assert all(name.startswith("model.abstract.stack.layers.") for name in trained)
    assert [name.split(".")[4] for name in sorted(trained) if "scaling_impl" in name] == ["conv2"]
    assert {name.split(".")[4] for name in trained if name.endswith("synapse.weight")} == {"conv1", "conv2", "dense1"}


def test_every_layer_of_the_qat_forward_equals_the_reference(runs):
    (joint,) = verify_run(runs[1], {"qat": None}, CPU)
    assert joint.total == 0
    assert joint.samples == 40
    assert list(joint.mismatches) == ["conv1", "conv2", "dense1"]


def test_simulation_reports_the_rate_of_every_layer(runs):
    rates, _ = simulate_run(runs[1], "reference", 10, CPU)
    assert list(rates) == ["input", "conv1", "conv2", "dense1"]
    assert all(0 <= rate <= 1 for rate in rates.values())
    assert rates["input"] > 0


def test_shuffled_images_give_each_question_another_picture(runs):
    source, _ = runs
    data, model = load_split(source, "test"), load_model(source, "float", CPU)
    right = evaluate_answers("vqa", model, data, source.codec, source.answers, keep_scores=True)
    wrong = evaluate_answers("vqa", model, data, source.codec, source.answers, shuffle_images=True, keep_scores=True)
    assert not np.array_equal(right.scores, wrong.scores)
    with torch.no_grad():
        model.fusion.r.zero_()
        for p in model.concrete.parameters():
            p.zero_()  # blind: then the picture cannot matter
    args = "vqa", model, data, source.codec, source.answers
    blind = [evaluate_answers(*args, shuffle_images=s, keep_scores=True).scores for s in (False, True)]
    assert np.allclose(*blind)


def test_hubs_are_discounted_by_what_pictures_and_captions_are_near_to_in_training(tmp_path, few_records):
    run = train_run(new_run(tmp_path / "r", micro_config("retrieval", steps=1)), CPU)
    model, data = load_model(run, "float", CPU), load_split(run, "test")
    ranking = Ranking(data=load_split(run, "train"), neighbours=3)
    plain = evaluate_retrieval(model, data, run.codec).similarities.matrix()
    fair = evaluate_retrieval(model, data, run.codec, ranking=ranking).similarities.matrix()
    taken = 2 * plain - fair  # r(i) + r(t)
    np.testing.assert_allclose(taken, taken[:, :1] + taken[:1] - taken[0, 0], atol=1e-4)
    assert np.ptp(taken[0]) > 1e-3


def test_many_views_of_a_picture_give_the_mean_of_their_embeddings(tmp_path, few_records):
    run = train_run(new_run(tmp_path / "r", micro_config("retrieval", steps=1)), CPU)
    model, data = load_model(run, "float", CPU), load_split(run, "test")
    many = Ranking(data=load_split(run, "train"), neighbours=0, views=True)
    found = evaluate_retrieval(model, data, run.codec, ranking=many)
    pixels = pixels_of(data, range(len(data)))
    with torch.no_grad():
        seen = [model.embed_images(model.vision(normalise(view)).v) for view in views(pixels)]
        tokens = run.codec.encode([text for i in range(len(data)) for text in data.texts(i)])
        texts = model.embed_texts(model.text(tokens), tokens)
    assert len(seen) == VIEWS
    expected = torch.nn.functional.normalize(torch.stack(seen).mean(0), dim=-1) @ texts.T
    np.testing.assert_allclose(found.similarities.matrix(), expected.numpy(), atol=1e-5)
    plain = evaluate_retrieval(model, data, run.codec)
    assert np.abs(found.similarities.images - plain.similarities.images).max() > 1e-3
    assert found.metrics["firing_rate"] == plain.metrics["firing_rate"]  # of the whole pictures


def test_views_are_what_they_say():
    ramp = torch.arange(64, dtype=torch.uint8).expand(1, 3, 64, 64)
    whole, mirrored, zoomed, *_ = found = list(views(ramp))
    assert all(view.shape == ramp.shape and view.dtype == torch.uint8 for view in found)
    assert torch.equal(whole, ramp)
    assert torch.equal(mirrored, ramp.flip(-1))
    assert (zoomed[..., 0].float() - 5).abs().max() <= 1  # the middle 54 of 64 columns
    black = list(views(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)))
    assert black[4].max() == 255  # white behind what is turned
    assert black[2].max() == black[8].max() == 0


def test_retrieval_on_untrained_weights_is_about_chance(tmp_path, few_records):
    run = train_run(new_run(tmp_path / "r", micro_config("retrieval", steps=1)), CPU)
    found = evaluate_retrieval(load_model(run, "float", CPU), load_split(run, "test"), run.codec)
    assert found.metrics["tr@1"] < 30
    assert 0 <= found.metrics["mean_recall"] <= 100


@pytest.mark.parametrize("backend", ["qat", "reference", "lava"])
def test_a_float_run_has_nothing_to_run_on_a_chip(runs, backend):
    with pytest.raises(UserError, match=r"no quantized stack.*ashnets quantize"):
        load_model(runs[0], backend, CPU)


def test_an_unknown_backend_is_refused_with_the_known_ones(runs):
    with pytest.raises(UserError, match="backend 'brain' is not known; choose one of float, qat, auto, reference"):
        load_model(runs[1], "brain", CPU)


def test_batches_cover_every_image_once(few_records):
    data = load_split_of_forty()
    assert [i for indices in image_batches(data) for i in indices] == list(range(40))
    assert [i for indices in image_batches(data, 7) for i in indices] == list(range(7))
    with pytest.raises(UserError, match="--samples is 0"):
        list(image_batches(data, 0))


def load_split_of_forty():
    from train.data import load

    return load("few_vqa", "test", 32)


def test_the_matching_head_ranks_the_first_again_as_it_judges_each_pair_alone(tmp_path, few_records):
    config = micro_config("retrieval", steps=1, objectives={"itc": 1.0, "itm": 1.0})
    run = train_run(new_run(tmp_path / "r", config), CPU)
    model, data = load_model(run, "float", CPU), load_split(run, "test")
    again = Ranking(data=load_split(run, "train"), neighbours=0, again=len(data))
    found = evaluate_retrieval(model, data, run.codec, ranking=again)
    plain = evaluate_retrieval(model, data, run.codec)
    assert {k: v for k, v in found.metrics.items() if k.startswith("itc_")} == {
        f"itc_{k}": v for k, v in plain.metrics.items() if "@" in k
    }
    with torch.no_grad():
        seen = model.vision(normalise(pixels_of(data, range(len(data))))).v
        tokens = run.codec.encode([data.texts(i)[0] for i in range(len(data))])
        w = model.text(tokens)
        judged = torch.stack(
            [model.match(w, tokens.padding, v.expand(len(w), *v.shape)).diff(dim=1)[:, 0] for v in seen]
        )
    right = judged.diag()[:, None]
    ranks = ((judged >= right).sum(1) - 1).numpy()
    assert found.metrics["tr@1"] == pytest.approx(100 * np.mean(ranks < 1))
    assert found.metrics["tr@5"] == pytest.approx(100 * np.mean(ranks < 5))
    with pytest.raises(UserError, match="no matching head to rank again with"):
        evaluate_retrieval(AshNet(replace(MICRO, text=run.config.model.text), 0), data, run.codec, ranking=again)
