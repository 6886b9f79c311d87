"""The command line. Commands import what they need when they run, so that `ashnets --help` answers at once.

Exit codes: 0 done, 1 a failed check (mismatching spikes, something missing), 2 a user error in one line, 130
interrupted, 143 stopped by SIGTERM, with what was done saved.
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tyro

from ashnets.cli.ablation import ablate
from ashnets.cli.bench import bench
from ashnets.cli.bits import search, sensitivity
from ashnets.cli.chip import doctor, keys, report, simulate, worker
from ashnets.cli.common import ARGUMENTS
from ashnets.cli.data import data
from ashnets.cli.evaluation import evaluate
from ashnets.cli.exchange import export, run, verify
from ashnets.cli.models import demo, finetune, quantize, train, tune
from ashnets.cli.recipes import recipe
from ashnets.cli.serve import serve
from hw.errors import BackendError, Stopped, UserError

DESCRIPTION = (
    "Train artificial-spiking vision-language models and take their spiking encoder to the chip, every spike equal."
)
COMMANDS = {
    "demo": demo,
    "data": data,
    "recipe": recipe,
    "train": train,
    "finetune": finetune,
    "quantize": quantize,
    "sensitivity": sensitivity,
    "search": search,
    "tune": tune,
    "evaluate": evaluate,
    "export": export,
    "run": run,
    "verify": verify,
    "simulate": simulate,
    "ablate": ablate,
    "report": report,
    "serve": serve,
    "worker": worker,
    "keys": keys,
    "bench": bench,
    "doctor": doctor,
}


SHARED = ("train", "finetune", "quantize", "tune", "evaluate", "simulate", "sensitivity", "search", "ablate")
"""What several ranks do together, where torchrun starts them."""


@contextmanager
def _met(many: bool, command: str) -> Iterator[None]:
    """Within the block the ranks that torchrun has started, if there are many, have met."""
    if not many:
        yield
        return
    if command not in SHARED:
        raise UserError(f"'{command}' is not for several ranks ({', '.join(SHARED)} are); run it without torchrun")
    from train.ranks import joined

    with joined():
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; every error that a user can mend is one line on standard error."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # speaks of CUDA_HOME where there is no GPU
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    name = f"ashnets: rank {os.environ['RANK']}" if many else "ashnets"
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _met(many, given[0] if given else ""):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="ashnets",
                description=DESCRIPTION,
                args=given,
                config=(tyro.conf.FlagCreatePairsOff,),
                registry=ARGUMENTS,
            )
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except Stopped as end:  # on all ranks at once; the first says so
        if os.environ.get("RANK", "0") == "0":
            print(f"{name}: {end}; go on with --resume", file=sys.stderr)
        return 143
    except BackendError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"{name}: {error.filename or 'file system'}: {error.strerror or error}; nothing was half written",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("ashnets: interrupted; a run goes on from its last checkpoint with --resume", file=sys.stderr)
        return 130
