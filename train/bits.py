"""What bits cost a run: the score of its task on validation images under any assignment of quantizers to layers."""

from copy import deepcopy

import torch

from quantize.ptq import calibrated
from quantize.search import Score
from train.evaluate import evaluate
from train.run import Run, float_stack, load_model
from train.stages import calibration_spikes, check_quantizable, load_split, ranking_of


def layer_weights(run: Run, device: torch.device) -> dict[str, int]:
    """Number of weights of each layer of the float run's stack, by name."""
    check_quantizable(run)
    stack = float_stack(load_model(run, "float", device))
    return {name: layer.synapse.weight.numel() for name, layer in stack.neural_layers.items()}


def scorer(run: Run, ptq: str, samples: int | None, device: torch.device) -> Score:
    """score(quantizer): the stack of the float run quantized after training, its task evaluated on the first `samples`
    images of the validation split. Percent."""
    check_quantizable(run)
    model = load_model(run, "float", device)
    floats, spikes = float_stack(model), calibration_spikes(run, model)
    data, ranking = load_split(run, "val"), ranking_of(run)

    def score(quantizer: str) -> float:
        other = deepcopy(model)
        other.abstract.stack = calibrated(floats, spikes, quantizer, ptq)
        task = run.config.train.task
        return evaluate(task, other, data, run.codec, run.answers, samples=samples, ranking=ranking).score

    return score
