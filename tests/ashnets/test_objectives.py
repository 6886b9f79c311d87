"""Every objective of the registry, and what each one promises."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ashnets.config import LossConfig
from ashnets.model import AshNet
from ashnets.momentum import MomentumEncoders, Queue
from ashnets.objectives import OBJECTIVES
from ashnets.objectives.base import Temperature, info_nce
from ashnets.objectives.itm import drawn
from ashnets.objectives.scl import hard_negatives
from ashnets.stack import layer_spikes
from tests.ashnets.batches import inputs, tokens


def with_every_head(config) -> AshNet:
    """A model that also matches, with a lexicon."""
    model = AshNet(replace(config, fusion=replace(config.fusion, match=True)), 5)
    model.text_head.learn_lexicon({str(i): 1.0 for i in range(9)})
    return model


@pytest.fixture
def matching(micro):
    return with_every_head(micro)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_finite_and_teaches_the_spiking_stack(name, micro):
    model, objective = with_every_head(micro), OBJECTIVES[name](micro, LossConfig(hardness=1.0, mixed=4))
    batch = inputs(micro)
    objective.begin(model)
    vision = model.vision(batch.images)
    loss, logs = objective(model, batch, vision, model.text(batch.tokens))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(value) for value in logs.values())
    gradient = model.abstract.stack.layers.conv1.synapse.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert objective.needs_view == (name == "scl")


@pytest.mark.parametrize("mode", ["spike_to_text", "text_spike"])
def test_stua_teaches_the_stack_and_the_text_nothing(micro, mode):
    model, objective = AshNet(micro, 5), OBJECTIVES["stua"](micro, LossConfig(stua=mode))
    model.text_head.learn_lexicon({str(i): 1.0 for i in range(9)})
    batch = inputs(micro)
    vision = model.vision(batch.images)
    norms = {name: b.clone() for name, b in model.abstract.named_buffers() if "mean_square" in name}
    loss, _ = objective(model, batch, vision, model.text(batch.tokens))
    loss.backward()
    assert norms
    for name, of_images in norms.items():  # which evaluation goes by
        assert torch.equal(model.abstract.get_buffer(name), of_images)
    assert all(p.grad is None for p in (*model.text.parameters(), *model.text_head.parameters()))
    assert model.abstract.readout.project.weight.grad.abs().sum() > 0
    seen = model.concrete.vit.patch_embed.blocks[0].weight.grad
    assert (seen is None) == (mode == "text_spike")  # which looks at no picture


def test_the_spiking_contrast_draws_the_code_and_every_layer_to_the_target_rate(micro):
    model, batch = AshNet(micro, 5).eval(), inputs(micro)
    vision, stack = model.vision(batch.images), model.abstract.stack
    objective = OBJECTIVES["scl"](micro, LossConfig(rate_target=0.3, rate_weight=2.0))
    loss, logs = objective(model, batch, vision, model.text(batch.tokens))
    s_in = model.code(batch.view)
    rates = torch.stack([s_in.mean(), *(s.mean() for s in layer_spikes(stack, s_in).values())])
    assert len(rates) == 1 + len(stack.neural_layers) > 2
    torch.testing.assert_close(loss, logs["contrast"] + 2 * (rates - 0.3).abs().mean())
    assert not any(layer._forward_hooks for layer in stack.neural_layers.values())


def test_pairs_of_the_same_image_are_never_negatives():
    positive = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    logits = torch.zeros(3, 3)
    raised = logits.clone()
    raised[0, 1] = raised[1, 0] = 50.0  # the other picture of the same thing looks alike: that must cost nothing
    assert info_nce(raised, positive) <= info_nce(logits, positive)
    confused = logits.clone()
    confused[0, 2] = 50.0
    assert info_nce(confused, positive) > info_nce(logits, positive) + 10


def test_itc_without_soft_targets_is_the_contrastive_loss_and_with_them_forgives_texts_alike(micro):
    model = AshNet(micro, 5).eval()
    model.text_head.learn_lexicon({str(i): 1.0 for i in range(9)})
    batch = inputs(micro)
    args = (model, batch, model.vision(batch.images), model.text(batch.tokens))
    loss, logs = OBJECTIVES["itc"](micro, LossConfig(soft=0.5))(*args)
    assert loss != logs["contrast"]
    assert torch.equal(OBJECTIVES["itc"](micro, LossConfig(soft=0.0))(*args)[0], logs["contrast"])


def test_contrast_of_single_positives_is_cross_entropy():
    logits = torch.randn(5, 5)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(5))
    assert torch.allclose(info_nce(logits, torch.eye(5, dtype=torch.bool)), expected, atol=1e-6)


def test_the_averaged_encoders_start_as_a_copy_and_follow_by_their_momentum(micro):
    model, averaged = AshNet(micro, 5), MomentumEncoders(micro, 0.9).train()
    averaged.follow(model)
    name = "concrete.vit.norm.weight"
    before = model.get_parameter(name).detach().clone()
    assert torch.equal(averaged.model.get_parameter(name), before)
    with torch.no_grad():
        model.get_parameter(name).add_(1)
    averaged.follow(model)
    torch.testing.assert_close(averaged.model.get_parameter(name), before + 0.1)
    assert not averaged.model.training
    batch = inputs(micro)
    assert torch.equal(averaged(batch)[1], averaged(batch)[1])  # no dropout
    assert not any(value.requires_grad for value in averaged(batch))


def test_the_queue_holds_the_newest_and_lets_the_oldest_go():
    queue, new = Queue(5, 1), torch.zeros(1, 1)
    for start in (0, 2, 4):
        queue.put(torch.arange(start, start + 2.0)[:, None], torch.arange(start, start + 2))
        values, ids = queue.with_new(new, torch.tensor([-1]))
        assert sorted(ids[1:].tolist()) == list(range(max(0, start - 3), start + 2))
        assert torch.equal(values[1:, 0], ids[1:].float())
    queue.put(torch.arange(10.0, 22)[:, None], torch.arange(10, 22))
    assert sorted(queue.with_new(new, torch.tensor([-1]))[1][1:].tolist()) == [17, 18, 19, 20, 21]


def queued(model, config, batch, **losses):
    objective = OBJECTIVES["itc_queue"](config, LossConfig(queue=64, **losses)).train()
    objective.begin(model)
    return objective, lambda: objective(model, batch, model.vision(batch.images), model.text(batch.tokens))


def test_what_waits_in_the_queue_is_a_negative_unless_it_is_of_the_same_image(micro, matching):
    batch = replace(inputs(micro), image_ids=torch.zeros(6, dtype=torch.int64))
    objective, loss = queued(matching.eval(), micro, batch, soft=0.0)
    assert loss()[0] == loss()[0] == 0
    objective.texts.ids += 1
    one_sided = loss()[0]
    assert one_sided > 0.1
    objective.images.ids += 1
    assert loss()[0] > one_sided


def test_soft_targets_of_the_queue_come_from_the_averaged_encoders(micro, matching):
    """Soft targets alone are least where they are met; here they are the model's own, so that what is left is their
    entropy."""
    batch = inputs(micro)
    objective, loss = queued(matching.eval(), micro, batch, soft=1.0)
    found = loss()[0]
    images, texts = objective.momentum(batch)
    logits = images @ texts.T / objective.temperature()
    entropy = [torch.distributions.Categorical(logits=side).entropy().mean() for side in (logits, logits.T)]
    torch.testing.assert_close(found, sum(entropy) / 2)


def test_a_queue_that_is_not_trained_stays_as_it_is(micro, matching):
    objective, loss = queued(matching.eval(), micro, inputs(micro))
    loss()
    objective.eval()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    loss()
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_a_near_miss_is_never_of_the_same_image_and_the_nearer_the_likelier():
    same = torch.tensor([[True, False, False], [True, True, True], [False, False, True]])
    logits = torch.tensor([[9.0, 0.0, math.log(3)], [9.0, 9.0, 9.0], [0.0, math.log(4), 9.0]])
    counts = torch.zeros(3)
    for _ in range(2000):
        image_of, text_of = drawn(logits.T, same.T), drawn(logits, same)
        assert image_of.tolist()[0] == 2
        assert image_of.tolist()[1] in (0, 2)
        assert image_of.tolist()[2] == 0
        assert text_of.tolist()[1] == -1  # every text is of image 1
        counts[text_of[0]] += 1
    assert counts[0] == 0
    assert 0.70 < counts[2] / 2000 < 0.80


def test_a_batch_of_one_image_has_no_near_misses_and_matches_all_the_same(micro, matching):
    batch = replace(inputs(micro), image_ids=torch.zeros(6, dtype=torch.int64))
    loss, _ = OBJECTIVES["itm"](micro, LossConfig())(
        matching, batch, matching.vision(batch.images), matching.text(batch.tokens)
    )
    assert torch.isfinite(loss)


def test_matching_leaves_the_embeddings_alone(micro, matching):
    matching.zero_grad()
    batch = inputs(micro)
    args = (matching, batch, matching.vision(batch.images), matching.text(batch.tokens))
    OBJECTIVES["itm"](micro, LossConfig())(*args)[0].backward()
    assert all(p.grad is None for p in (*matching.image_head.parameters(), *matching.text_head.parameters()))
    assert matching.match_head.from_text.weight.grad.abs().sum() > 0


def test_a_model_without_the_head_says_what_matching_needs(micro):
    model, batch = AshNet(micro, 5), inputs(micro)
    with pytest.raises(ValueError, match=r"build it with fusion.match"):
        OBJECTIVES["itm"](micro, LossConfig())(model, batch, model.vision(batch.images), model.text(batch.tokens))


def test_words_are_hidden_at_their_share_and_what_frames_a_text_never_is(micro):
    objective = OBJECTIVES["mlm"](micro, LossConfig(masked=0.3))
    ids = torch.randint(4, 400, (400, 10))
    ids[:, 0], ids[:, 8], ids[:, 9] = 1, 2, 0
    shown, hidden = objective.hide(tokens(ids, ids == 0))
    assert not hidden[:, [0, 8, 9]].any()
    assert torch.equal(shown.ids[~hidden], ids[~hidden])
    assert 0.27 < hidden[:, 1:8].float().mean() < 0.33
    masked, kept = (shown.ids == 3)[hidden].float().mean(), (shown.ids == ids)[hidden].float().mean()
    assert 0.75 < masked < 0.85
    assert 0.06 < kept < 0.14


def test_hidden_words_are_told_from_the_picture(micro):
    """Texts of one word that only the picture tells: the loss falls below that of guessing."""
    torch.manual_seed(0)
    model, objective = AshNet(micro, 5), OBJECTIVES["mlm"](micro, LossConfig(masked=1.0))
    ids = torch.tensor([[1, 10 + k % 2, 2] for k in range(6)])
    batch = replace(
        inputs(micro, texts=6),
        images=torch.stack([torch.full((3, 32, 32), float(k % 2 * 2 - 1)) for k in range(6)]),
        tokens=tokens(ids, ids == 0),
    )
    optimiser = torch.optim.Adam([*model.parameters(), *objective.parameters()], lr=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        loss, logs = objective(model, batch, model.vision(batch.images), model.text(batch.tokens))
        loss.backward()
        optimiser.step()
    assert loss < 0.5 * math.log(2)
    assert logs["accuracy"] == 1


def test_hard_negatives_weigh_as_robinson_says_and_all_alike_without_hardness():
    z, keys = F.normalize(torch.randn(5, 4), dim=1), F.normalize(torch.randn(5, 4), dim=1)
    same, temperature = torch.eye(5, dtype=torch.bool), torch.tensor(0.2)
    logits = hard_negatives(z, keys, same, temperature, LossConfig(hardness=2.0))
    for i in range(5):
        negatives = [j for j in range(5) if j != i]
        cosine = torch.stack([z[i] @ keys[j] for j in negatives])
        weight = (2 * cosine).exp()
        wanted = (weight / weight.mean() * (cosine / 0.2).exp()).sum()
        torch.testing.assert_close(logits[i].logsumexp(0).exp(), wanted)
    tiny = hard_negatives(z, keys, same, temperature, LossConfig(hardness=1e-9))
    torch.testing.assert_close(tiny, (z @ keys.T / 0.2).masked_fill(same, -torch.inf))
    assert hard_negatives(z, keys, same, temperature, LossConfig()) is None


def test_mixed_negatives_lie_between_the_hardest_and_never_hold_the_same_image():
    torch.manual_seed(1)
    z = F.normalize(torch.rand(6, 4), dim=1).requires_grad_()
    same = torch.eye(6, dtype=torch.bool) | (torch.arange(6)[:, None] // 3 == torch.arange(6) // 3)
    same[0] = True  # an image that has no negatives at all
    keys = z.detach().clone()
    logits = hard_negatives(z, keys, same, torch.tensor(1.0), LossConfig(mixed=40))[:, 6:]
    assert logits.shape == (6, 40)
    assert (logits[0] == -torch.inf).all()
    for i in range(1, 6):
        usable = logits[i][logits[i] > -torch.inf]
        cosine = (z[i] @ keys.T)[~same[i]]
        assert len(usable) > 0
        assert usable.min() >= cosine.min() - 1e-6  # a mean of two unit vectors, made longer, is no further off
    temperature = torch.tensor(0.5, requires_grad=True)
    found = hard_negatives(z, keys, same, temperature, LossConfig(mixed=4, hardness=1.0))
    info_nce(z @ keys.T / temperature, same, found).backward()
    assert torch.isfinite(z.grad).all()
    assert torch.isfinite(temperature.grad)


def test_a_temperature_at_its_limit_is_led_back_and_no_further():
    for start, wish, moved in ((0.1, 0.3, True), (0.1, 0.01, False), (0.5, 0.3, True), (0.5, 0.9, False)):
        one = Temperature(LossConfig(temperature=0.2, temperature_least=0.1))
        with torch.no_grad():
            one.value.fill_(start)
        (one() - wish).square().backward()
        assert bool(one.value.grad) == moved


def test_a_temperature_that_starts_at_its_least_stays_there():
    one = Temperature(LossConfig(temperature=0.1, temperature_least=0.1))
    for wish in (0.01, 0.3):
        one.value.grad = None
        (one() - wish).square().backward()
        with torch.no_grad():
            one.value -= 0.1 * one.value.grad
        assert one().item() == pytest.approx(0.1)
