"""Command of the page: serve."""

import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ashnets.cli.common import Device
from hw.errors import UserError


def serve(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN]")],
    /,
    data: str | None = None,
    split: Literal["train", "val", "test"] = "test",
    host: str = "127.0.0.1",
    port: int = 7860,
    login: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    device: Device = "auto",
) -> int:
    """A page to look at runs with, until Ctrl-C: type a text and see pictures, give a picture and see captions and
    answers, with the spikes behind them. It needs gradio: pip install gradio.

    RUN: one that retrieves, one that answers questions or judges hypotheses, or both. A quantized run also has a switch
    between the float stack, its program and Lava.

    data: pictures to search, a folder in an official format or a data set; by default the run's own.

    host: another than this machine's own needs --login, a file that holds NAME:PASSWORD, and --certificate and --key,
    files for https.
    """
    from train.run import choose_device
    from train.serve.looks import open_looks
    from train.serve.page import free_port, served

    if not runs:
        raise UserError("there is nothing to serve; give a run, for example: ashnets serve runs/demo/pretrain")
    if not _own(host) and (login is None or certificate is None or key is None):
        raise UserError(
            f"--host {host} is open to the network; give --login, --certificate and --key too, or leave --host out and "
            "reach the page by 'ssh -L'"
        )
    if (certificate is None) != (key is None):
        raise UserError("--certificate and --key belong together; give both or neither")
    for path in (login, certificate, key):
        if path is not None and not path.is_file():
            raise UserError(f"{path}: there is no such file; check the path")
    if certificate and key:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
        except OSError as error:  # ssl's too
            raise UserError(
                f"{certificate} and {key}: no certificate and its key ({error.strerror or error}); give PEM files"
            ) from error
    port = free_port(host, port)
    visitor = _login(login) if login else None
    search, answers = open_looks(runs, data, split, choose_device(device))
    if search is not None:
        print(f"looking at {len(search.data)} pictures of {search.data.name} ...", flush=True)
        search.index("float")
    keys = (certificate, key) if certificate and key else None
    with served(search, answers, host=host, port=port, login=visitor, certificate=keys) as (address, wait):
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        wait()
    return 0


def _own(host: str) -> bool:
    """Whether only this machine can reach a host's name."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _login(path: Path) -> tuple[str, str]:
    try:
        name, colon, password = path.read_text(encoding="utf-8").strip().partition(":")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    if not (name and colon and len(password) >= 8):
        raise UserError(f"{path}: expected one line NAME:PASSWORD with 8 characters or more to the password")
    return name, password
