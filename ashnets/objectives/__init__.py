"""Training objectives, one file each, chosen and weighted by config. The registry names them; `tests` cover every
entry.

An objective is a module with parameters of its own: `objective(model, inputs, vision, w) -> (loss, logs)`.
"""

from ashnets.objectives.base import Objective
from ashnets.objectives.itc import ImageTextContrast
from ashnets.objectives.itc_queue import QueuedContrast
from ashnets.objectives.itm import ImageTextMatching
from ashnets.objectives.mlm import MaskedLanguage
from ashnets.objectives.scl import SpikingContrast
from ashnets.objectives.stua import SpikeToText
from ashnets.objectives.vqa import AnswerCrossEntropy, SoftAnswers

OBJECTIVES: dict[str, type[Objective]] = {
    "itc": ImageTextContrast,
    "itc_queue": QueuedContrast,
    "itm": ImageTextMatching,
    "mlm": MaskedLanguage,
    "scl": SpikingContrast,
    "stua": SpikeToText,
    "vqa": AnswerCrossEntropy,
    "vqa_soft": SoftAnswers,
}

__all__ = ["OBJECTIVES", "Objective"]
