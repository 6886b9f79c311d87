"""The chip: integer spiking programs, their limits, simulators, files and the bridge to torch.

Nothing here imports torch or Lava at module level, so that a worker without either can import it.
"""

from hw.errors import BackendError, UserError
from hw.program import Conv, Dense, Flatten, Input, Recurrent, SpikingProgram

__all__ = ["BackendError", "Conv", "Dense", "Flatten", "Input", "Recurrent", "SpikingProgram", "UserError"]
