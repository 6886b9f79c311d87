"""The codebook: nearest entries, running means, straight-through gradients, and its place in the model."""

from dataclasses import replace

import pytest
import torch

from ashnets.codebook import Codebook
from ashnets.config import LossConfig
from ashnets.model import AshNet
from ashnets.objectives import OBJECTIVES
from hw.errors import UserError
from tests.ashnets.batches import inputs
from tests.conftest import micro_config
from train.stages import new_run, qat_config, quantized_run, train_run


def test_each_vector_becomes_its_nearest_entry_and_keeps_its_gradient():
    book = Codebook(7, 3).eval()
    x = torch.randn(4, 5, 3, requires_grad=True)
    chosen, q = book(x)
    assert torch.equal(chosen, torch.cdist(x, book.entries[None].expand(4, -1, -1)).argmin(2))
    torch.testing.assert_close(q, book.entries[chosen])
    weight = torch.randn(4, 5, 3)
    (q * weight).sum().backward()
    assert torch.equal(x.grad, weight)


def test_entries_move_to_the_mean_of_what_chooses_them_and_unused_ones_stay():
    book = Codebook(2, 2).train()
    book.entries.copy_(torch.tensor([[0.0, 0.0], [50.0, 50.0]]))
    book.sums.copy_(book.entries)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    book(x)  # g = 0.4: n = 0.4 + 0.6 * 2, m = 0.6 * (4, 6)
    torch.testing.assert_close(book.entries[0], torch.tensor([2.4, 3.6]) / 1.6)
    for _ in range(3000):
        book(x)
    torch.testing.assert_close(book.entries[0], torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(book.entries[1], torch.tensor([50.0, 50.0]))
    held = book.entries.clone()
    book.eval()(x + 1)
    assert torch.equal(book.entries, held)


def test_the_codebook_stands_where_the_spikes_stand(micro):
    model = AshNet(replace(micro, abstract=replace(micro.abstract, codebook=9)), 5)
    batch = inputs(micro)
    vision = model.vision(batch.images)
    assert vision.s_out.shape == (1, 6, 9, *model.concrete.grid)
    assert torch.equal(vision.s_out.sum(2), torch.ones(1, 6, *model.concrete.grid))
    assert vision.v.shape == vision.f.shape
    loss, _ = OBJECTIVES["vqa"](micro, LossConfig())(model, batch, vision, model.text(batch.tokens))
    loss.backward()
    assert model.abstract.project.weight.grad.abs().sum() > 0


def test_a_run_with_a_codebook_trains_and_is_not_quantized(tmp_path, few_records):
    config = micro_config(steps=2)
    config = replace(config, model=replace(config.model, abstract=replace(config.model.abstract, codebook=9)))
    run = train_run(new_run(tmp_path / "run", config), torch.device("cpu"))
    with pytest.raises(UserError, match="holds a codebook where spikes would be"):
        quantized_run(run, tmp_path / "int8", qat_config(run))
    spiking = replace(config, train=replace(config.train, objectives={"vqa": 1.0, "scl": 1.0}))
    with pytest.raises(UserError, match="objective 'scl' is about spikes"):
        train_run(new_run(tmp_path / "scl", spiking), torch.device("cpu"))
