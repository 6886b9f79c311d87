"""A whole network without torch: the host side as ONNX models, the chip's side as a program on any backend.

    images ─► encode ─► F, s_in ─► program ─► s_out ─► readout ─► V' ─► image ─► z
    texts ─► text ─► W, z         (W, V') ─► answer ─► logits

    BUNDLE/ {manifest.json, encode.onnx, readout.onnx, text.onnx, image.onnx, [answer.onnx], program/,
             tokenizer.json, lexicon.json}

`train.export` writes it. B images, M texts, N tokens, T steps, L visual tokens, D width, K embedding, A answers. Where
texts are about pairs, the images of one follow each other and so do their tokens: V' is [B / 2, 2 L, D] there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hw.artifact import open_artifact, read_json
from hw.errors import UserError
from hw.exchange.session import session_of
from hw.images import decode_image
from hw.program_file import load_program
from hw.simulate import Backend, check_backend, open_backend
from hw.spellings import spellings

KIND = "bundle"


class Tokens(NamedTuple):
    """ids int64 [M, N]; padding bool [M, N], True where no token is; bags int64 [M, G], spellings padded with 0."""

    ids: np.ndarray
    padding: np.ndarray
    bags: np.ndarray


class TextCodec:
    """`ashnets.text.TextCodec` in numpy: the same tokens, every one."""

    def __init__(self, tokenizer: Any, lexicon: dict[str, float]) -> None:
        """tokenizer: a `tokenizers.Tokenizer`."""
        self.tokenizer = tokenizer
        self._index = {spelling: i for i, spelling in enumerate(sorted(lexicon), 1)}

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Tokens cut to the longest text of the batch."""
        encodings = self.tokenizer.encode_batch(list(texts))
        ids = np.array([e.ids for e in encodings], np.int64)
        padding = np.array([e.attention_mask for e in encodings]) == 0
        used = max(1, int((~padding).sum(1).max()))
        bags = [sorted(self._index[s] for s in spellings(text) if s in self._index) for text in texts]
        most = max(1, *map(len, bags))
        padded = np.array([bag + [0] * (most - len(bag)) for bag in bags], np.int64)
        return Tokens(ids[:, :used], padding[:, :used], padded)


class HostModels:
    """The ONNX models of a folder, each opened when it is first run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sessions: dict[str, Any] = {}

    def run(self, name: str, **inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs of model `name` in its order. An input that it does not have (bags, without a lexicon) is left
        out."""
        if name not in self._sessions:
            self._sessions[name] = _session(self.folder / f"{name}.onnx")
        session = self._sessions[name]
        return session.run(None, {i.name: inputs[i.name] for i in session.get_inputs()})


def _session(path: Path) -> Any:
    try:
        return session_of(str(path))
    except Exception as error:  # its classes have no common base but this
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: onnxruntime does not load it ({reason}); export the bundle anew") from error


@dataclass(frozen=True, kw_only=True)
class OpenBundle:
    """A bundle that is ready to be asked. answers: in the order of the logits; none for a network that compares texts
    with images. image_size: height and width of the images, in pixels. images: how many of them a text is about."""

    models: HostModels
    chip: Backend
    codec: TextCodec
    answers: list[str]
    image_size: int
    images: int = 1

    def see(self, images: np.ndarray) -> np.ndarray:
        """uint8 [B, 3, H, W], RGB -> V' [B, L, D], of pairs [B / 2, 2 L, D]."""
        f, spikes = self.models.run("encode", images=images)
        s_out = self.chip.run(spikes.astype(np.uint8)).output
        v = self.models.run("readout", spikes=s_out.astype(np.float32), f=f)[0]
        return v.reshape(-1, self.images * v.shape[1], v.shape[2])

    def logits(self, v: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Answer logits [M, A] of questions about V' [M, L, D], one row for each."""
        tokens = self.codec.encode(texts)
        w = self.models.run("text", **tokens._asdict())[0]
        return self.models.run("answer", w=w, padding=tokens.padding, v=v)[0]

    def similarities(self, v: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Cosines [B, M] of images V' [B, L, D] and texts."""
        z = self.models.run("text", **self.codec.encode(texts)._asdict())[1]
        return self.models.run("image", v=v)[0] @ z.T

    def ask(self, images: Sequence[Path], texts: Sequence[str], top: int) -> list[dict[str, Any]]:
        """What the network says of a picture, or of a pair. With answers, for each text {"text", "answers": the `top`
        likeliest as {"answer", "probability"}}; without, the `top` texts nearest to the picture as {"text",
        "similarity"}."""
        _check_question(texts, top)
        if len(images) != self.images:
            raise UserError(
                f"--image has {len(images)} pictures; give {self.images}, which a text of this bundle is about"
            )
        pixels = np.stack([decode_image(image, self.image_size).transpose(2, 0, 1) for image in images])
        if not self.answers:
            scores = self.similarities(self.see(pixels), texts)[0]
            return [{"text": texts[i], "similarity": float(scores[i])} for i in np.argsort(-scores)[:top]]
        found = []
        for text, row in zip(texts, _softmax(self.logits(self.see(pixels).repeat(len(texts), 0), texts)), strict=True):
            best = [{"answer": self.answers[i], "probability": float(row[i])} for i in np.argsort(-row)[:top]]
            found.append({"text": text, "answers": best})
        return found


def _check_question(texts: Sequence[str], top: int) -> None:
    if top < 1:
        raise UserError(f"--top is {top}; ask for at least the 1 best")
    if not texts:
        raise UserError("there is no text; give --text TEXT")
    for text in texts:
        if not text.strip():
            raise UserError(f"the text {text!r} is empty; ask or describe something")
        if any("\ud800" <= c <= "\udfff" for c in text):  # what Python makes of bytes that are no UTF-8
            raise UserError(f"the text {text!r} is not Unicode; give it in UTF-8")


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def open_bundle(folder: Path, backend: str = "reference", keys: Path | None = None) -> OpenBundle:
    """Check a bundle's folder, every file against its hash, and open it. backend: what runs the program. keys: the
    folder of keys for remote workers."""
    check_backend(backend)
    meta = open_artifact(folder, KIND).meta
    answers, size, images = meta.get("answers"), meta.get("image_size"), meta.get("images", 1)
    if not isinstance(answers, list) or type(size) is not int or size < 1 or images not in (1, 2):
        raise UserError(
            f"{folder / 'manifest.json'}: says no answers, image_size and images (1 or 2); export the bundle anew"
        )
    return OpenBundle(
        models=HostModels(folder),
        chip=open_backend(backend, load_program(folder / "program"), keys),
        codec=read_codec(folder),
        answers=answers,
        image_size=size,
        images=images,
    )


def read_codec(folder: Path) -> TextCodec:
    """The codec of a folder with tokenizer.json and lexicon.json."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no other
        raise UserError(f"{path}: not a tokenizer ({error}); export the bundle anew") from error
    return TextCodec(tokenizer, read_json(folder / "lexicon.json"))
