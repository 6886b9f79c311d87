"""How much faster is the fused CUBA-LIF than the plain loop, and what does exactness cost? Ratios, side by side.

    python -m benchmarks.lif [--json]

Rounds alternate between the rivals, so that a drift of the machine's speed meets both; quoted are medians over rounds.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from ashnets.neurons import LIFParams, cuba_lif, cuba_lif_loop
from ashnets.surrogate import arctan
from quantize.integer_lif import integer_cuba_lif

ROUNDS = 9
BATCH, NEURONS = 32, 4096
SCALE = torch.tensor(2.0**-7)


def step(function: Callable[..., torch.Tensor], x: torch.Tensor) -> float:
    """Seconds of one forward and backward pass."""
    p = LIFParams(*(torch.tensor(v, requires_grad=True) for v in (0.5, 0.25, 1.0, 0.0)))
    x = x.clone().requires_grad_()
    start = time.perf_counter()
    function(x, p).sum().backward()
    return time.perf_counter() - start


RIVALS: dict[str, Callable[..., torch.Tensor]] = {
    "fused": lambda x, p: cuba_lif(x, p, "arctan"),
    "loop": lambda x, p: cuba_lif_loop(x, p, arctan),
    "integer": lambda x, p: integer_cuba_lif(x / SCALE, SCALE, p, "arctan"),
}


def main() -> None:
    rows = []
    for steps in (4, 8, 32):
        x = (torch.randn(steps, BATCH, NEURONS) * 64).round() * SCALE  # on the integer grid, so that all three agree
        seconds: dict[str, list[float]] = {name: [] for name in RIVALS}
        for round_ in range(ROUNDS + 1):
            for name, function in RIVALS.items():
                taken = step(function, x)
                if round_:  # the first warms up
                    seconds[name].append(taken)
        ratio = {
            name: statistics.median(a / b for a, b in zip(seconds[name], seconds["fused"], strict=True))
            for name in RIVALS
        }
        rows.append(
            {
                "T": steps,
                "shape": [steps, BATCH, NEURONS],
                **{f"{n}_over_fused": r for n, r in ratio.items() if n != "fused"},
            }
        )
        print(f"T={steps:<3} over the fused form's time: loop {ratio['loop']:.2f}, integer {ratio['integer']:.2f}")
    if "--json" in sys.argv:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
