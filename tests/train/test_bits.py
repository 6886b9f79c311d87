"""A run of few bits: calibrated before it is trained, taught by the float stack, and what bits cost it."""

from dataclasses import replace

import pytest
import torch

from hw.errors import UserError
from quantize.ptq import calibrated, settled
from quantize.quantizers import quantizers_of
from tests.conftest import micro_config
from train.bits import layer_weights, scorer
from train.loop import Trainer
from train.run import float_stack, load_model, open_run, quantized_stack
from train.stages import calibration_spikes, load_split, new_run, qat_config, quantized_run, starting_weights, train_run

CPU = torch.device("cpu")


@pytest.fixture
def source(tmp_path, few_records):
    return train_run(new_run(tmp_path / "float", micro_config(steps=3)), CPU)


def test_ptq_alone_is_a_finished_run_that_holds_the_calibrated_stack(source, tmp_path):
    made = quantized_run(source, tmp_path / "ptq", qat_config(source, 0, "int3", "best"))
    train_run(made, CPU, init=source)
    made = open_run(tmp_path / "ptq")
    assert made.config.ptq == "best"
    assert (made.folder / "program").exists()
    found = quantized_stack(load_model(made, "qat", CPU)).state_dict()
    model = load_model(source, "float", CPU)
    spikes = calibration_spikes(source, model)
    assert spikes.shape[:2] == (3, 40)
    for name, value in calibrated(float_stack(model), spikes, "int3", "best").state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_a_scale_that_follows_moving_weights_is_settled_in_the_runs_config(source, tmp_path):
    made = quantized_run(source, tmp_path / "ptq", qat_config(source, 0, "int8", "gptq"))
    names = list(layer_weights(source, CPU))
    assert {q.scale for q in quantizers_of(made.config.quantizer or "", names).values()} == {"mse"}
    assert settled("int8", names, "bias") == "int8"
    assert settled("int4", names, "gptq") == "int4"


def test_an_unknown_method_is_refused_before_anything_is_written(source, tmp_path):
    with pytest.raises(UserError, match="PTQ method 'gtpq' is not known"):
        quantized_run(source, tmp_path / "ptq", qat_config(source, 0, "int8", "gtpq"))
    assert not (tmp_path / "ptq").exists()


def test_the_teacher_draws_the_firing_rates_to_the_float_stacks(source, tmp_path):
    """The task's loss switched off, what is left is the distance to the teacher, which fires by itself here."""

    def distance(weight: float) -> float:
        config = qat_config(source, 30, "int2", distill=weight)
        config = replace(config, train=replace(config.train, objectives={"vqa": 0.0}, lr=0.05, weight_decay=0.0))
        made = quantized_run(source, tmp_path / f"distill{weight}", config)
        trainer = Trainer(made, load_split(made, "train"), load_split(made, "val"), CPU)
        trainer.load_weights(starting_weights(made, source))
        trainer.start()
        assert trainer.teacher is not None
        with torch.no_grad():
            for layer in trainer.teacher.neural_layers.values():
                layer.neuron.bias.add_(0.8)
        for step in range(30):
            trainer.step = step
            trainer.train_step(trainer.batches[step].to(CPU))
        stack, teacher = trainer.bundle.model.abstract.stack, trainer.teacher
        with torch.no_grad():
            s_in = calibration_spikes(source, load_model(source, "float", CPU))
            return float((stack(s_in).mean(0) - teacher(s_in).mean(0)).square().mean())

    assert distance(1.0) < 0.8 * distance(1e-9)


def test_the_score_is_of_the_float_run_under_the_assignment_asked_for(source, tmp_path):
    score = scorer(source, "plain", 10, CPU)
    assert score("int8") == score("conv1=int8,conv2=int8,dense1=int8")
    made = train_run(quantized_run(source, tmp_path / "q", qat_config(source, 0)), CPU, init=source)
    with pytest.raises(UserError, match="is quantized already"):
        scorer(made, "plain", 10, CPU)
