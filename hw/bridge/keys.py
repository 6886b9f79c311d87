"""Who may talk to whom: CURVE keys (CurveZMQ: Curve25519, as NaCl uses it), and addresses that do without.

A folder of keys holds `worker.json` and `client.json`, each with a public and a secret key, readable by their owner
alone. A worker needs its own and the client's public key; a client needs its own and the worker's public key: hand the
other side `worker.public.json` or `client.public.json`, never a secret one.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from hw.artifact import read_json
from hw.errors import UserError

SIDES = ("worker", "client")
PORT_MAX = 65535
_LOOPBACK = re.compile(r"tcp://(127(\.\d{1,3}){3}|localhost|\[::1\]):(\d+|\*)")
_TCP = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(\d{1,5}|\*)")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """public and secret are one's own, peer is the other side's public key; all in Z85, 40 characters."""

    public: bytes
    secret: bytes
    peer: bytes

    def __repr__(self) -> str:
        return f"Keys(public={self.public!r})"


def make_keys(folder: Path) -> list[Path]:
    """New keys for one worker and one client in `folder`, which holds none yet."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another place") from error
    if found := sorted(path.name for path in folder.glob("*.json")):
        raise UserError(f"{folder}: holds {found[0]} already; choose a new folder, so that no key in use is lost")
    written = []
    for side in SIDES:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        for name, mode, values in (
            (f"{side}.json", 0o600, {"public": public, "secret": secret}),
            (f"{side}.public.json", 0o644, {"public": public}),
        ):
            handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with open(handle, "w", encoding="ascii") as file:
                json.dump(values, file)
            written.append(folder / name)
    return written


def load_keys(folder: Path, side: str) -> Keys:
    """The keys that `side` ("worker" or "client") needs. `UserError` names the file that is missing, wrong, or
    readable by others."""
    (other,) = (name for name in SIDES if name != side)
    own = folder / f"{side}.json"
    public, secret = _key(own, "public"), _key(own, "secret")
    if own.stat().st_mode & 0o077:
        raise UserError(f"{own}: others may read this secret key; run 'chmod 600 {own}'")
    peer = folder / f"{other}.public.json"
    return Keys(public=public, secret=secret, peer=_key(peer, "public"))


def _key(path: Path, field: str) -> bytes:
    values = read_json(path)
    value = values.get(field) if isinstance(values, dict) else None
    try:
        if not isinstance(value, str) or len(value) != 40 or len(z85.decode(value)) != 32:
            raise ValueError
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: '{field}' is no key of 40 characters; make keys with 'ashnets keys new'") from error
    return value.encode()


def check_address(address: str, keys: Keys | None) -> str:
    """The address itself if it may be used; `UserError` for one that is none, or that leaves this machine without
    keys."""
    if address.startswith("ipc://") and 6 < len(address) <= 100:
        return address
    found = _TCP.fullmatch(address)
    if not found:
        raise UserError(f"address '{address}' is not tcp://HOST:PORT or ipc://PATH (of at most 94 characters)")
    if found[2] != "*" and int(found[2]) > PORT_MAX:
        raise UserError(f"address '{address}': port {found[2]}, ports end at {PORT_MAX}; choose another")
    if keys is None and not _LOOPBACK.fullmatch(address):
        raise UserError(
            f"address '{address}' leaves this machine; give --keys FOLDER (make them with 'ashnets keys new FOLDER'), "
            "or use tcp://127.0.0.1:PORT"
        )
    return address
