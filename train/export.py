"""Export what is around the chip: the host side of a quantized run as ONNX models, alone or in a bundle that answers
without torch (`hw.bundle`).

Every model is run in onnxruntime against torch before the folder is kept. Spikes are counted, one by one; of real
numbers the largest difference is held against `TOLERANCE`, and no answer may change.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from ashnets.heads import SpellingEmbeddingHead
from ashnets.model import AshNet, normalise
from ashnets.text import TextCodec, Tokens
from hw.artifact import staged_artifact, write_json
from hw.bundle import KIND, HostModels, OpenBundle, read_codec
from hw.errors import BackendError
from hw.program_file import save_program
from hw.simulate import open_backend
from train.evaluate import image_batches, pixels_of
from train.run import Run, load_model, run_program
from train.stages import load_split

HOST = "host"
OPSET = 18
TOLERANCE = 1e-4
"""Most that a real number may differ from torch's, as a share of the largest of its tensor."""
MOST_FLIPS = 1e-6
"""Most input spikes that may flip, as a share of all. The encoder compares float32 sums with thresholds, and no two
libraries add in the same order: a membrane within a rounding error of its threshold can fall on the other side."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One ONNX model. call: what it computes. inputs: an example of each, by name; axes: which of theirs are free."""

    call: Callable[..., Any]
    inputs: dict[str, Tensor]
    axes: tuple[dict[int, Any], ...]
    outputs: tuple[str, ...]


def export_run(run: Run, folder: Path, *, bundle: bool, samples: int | None = None) -> dict[str, Any]:
    """Write `folder`: the ONNX models of a quantized run, its tokenizer and lexicon and, in a bundle, its program.
    Returns the manifest's meta.

    samples: test images that are compared, all by default. `BackendError` where a model cannot be exported or gives
    something else than torch; nothing is left of the folder then.
    """
    program, model = run_program(run), load_model(run, "qat", torch.device("cpu"))
    size, shown = run.config.model.concrete.image_size, run.config.model.fusion.images
    meta: dict[str, Any] = {"answers": run.answers, "image_size": size, "images": shown, "opset": OPSET}
    with staged_artifact(folder, KIND if bundle else HOST, meta) as temporary:
        for name, part in host_parts(model, run.codec).items():
            write_part(model, part, temporary / f"{name}.onnx")
        run.codec.tokenizer.save(str(temporary / "tokenizer.json"))
        write_json(temporary / "lexicon.json", run.codec.lexicon)
        if bundle:
            save_program(program, temporary / "program")
        opened = OpenBundle(
            models=HostModels(temporary),
            chip=open_backend("events", program),
            codec=read_codec(temporary),
            answers=run.answers,
            image_size=size,
            images=shown,
        )
        meta["checked"] = check(run, model, opened, samples)
        meta["bytes"] = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
    return meta


@torch.no_grad()
def host_parts(model: AshNet, codec: TextCodec) -> dict[str, Part]:
    """The parts around the spiking stack, by file name. Each calls the model's own modules."""
    size = model.config.concrete.image_size
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    vision = model.vision(normalise(images))
    tokens = codec.encode(["is there a red shape?", "what is it?"])
    w = model.text(tokens)
    b, m, n = Dim("B"), Dim("M"), Dim("N", max=model.config.text.length)
    texts = {"ids": tokens.ids, "padding": tokens.padding}
    text_axes: tuple[dict[int, Any], ...] = ({0: m, 1: n}, {0: m, 1: n})
    if isinstance(model.text_head, SpellingEmbeddingHead):
        texts["bags"] = tokens.bags.new_ones(2, 3)
        text_axes += ({0: m, 1: Dim("G")},)
    parts = {
        "encode": Part(call=_encoder(model), inputs={"images": images}, axes=({0: b},), outputs=("f", "spikes")),
        "readout": Part(
            call=lambda spikes, f: model.fusion(f, model.abstract.readout(spikes)),
            inputs={"spikes": vision.s_out, "f": vision.f},
            axes=({1: b}, {0: b}),
            outputs=("v",),
        ),
        "text": Part(call=_texts(model), inputs=texts, axes=text_axes, outputs=("w", "z")),
        "image": Part(call=model.embed_images, inputs={"v": vision.v}, axes=({0: b},), outputs=("z",)),
    }
    if model.answer_head is not None:
        parts["answer"] = Part(
            call=model.answer,
            inputs={"w": w, "padding": tokens.padding, "v": vision.v},
            axes=({0: m, 1: n}, {0: m, 1: n}, {0: m}),
            outputs=("logits",),
        )
    return parts


def _encoder(model: AshNet) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """uint8 images -> (F, s_in). The neuron's equations step by step, each sum in the order of `ashnets.neurons`' fast
    form, and its decays as the numbers that torch makes of their logits: from equal currents come equal spikes."""
    encoder = model.abstract.encoder
    p = encoder.neuron.params(4)
    keep_u, keep_v, v_th, bias = (x.clone() for x in (1 - p.decay_u, 1 - p.decay_v, p.v_th, p.bias))

    def call(images: Tensor) -> tuple[Tensor, Tensor]:
        f0, f = model.concrete(normalise(images))
        x = encoder.drive(model.read_by_spikes(f0, f))
        u, v, spikes = torch.zeros_like(x), torch.zeros_like(x), []
        for _ in range(encoder.steps):
            u = x + u * keep_u
            v = (u + bias) + v * keep_v
            spikes.append((v > v_th).to(x.dtype))
            v = v * (v <= v_th)
        return f, torch.stack(spikes)

    return call


def _texts(model: AshNet) -> Callable[..., tuple[Tensor, Tensor]]:
    """Tokens -> (W, embedding). ONNX has no bag of embeddings; the sum is written out, and padding weighs 0 in it."""

    def call(ids: Tensor, padding: Tensor, bags: Tensor | None = None) -> tuple[Tensor, Tensor]:
        head = model.text_head
        if not isinstance(head, SpellingEmbeddingHead):
            tokens = Tokens(ids, padding, ids)
            w = model.text(tokens)
            return w, head(w, tokens)
        assert bags is not None
        z = (head.rarity[bags].unsqueeze(2) * head.spellings.weight[bags]).sum(1)
        return model.text(Tokens(ids, padding, bags)), F.normalize(z, dim=-1)

    return call


class _Call(nn.Module):
    """What torch.export takes: a module that holds the parameters and whose `forward` is the part's."""

    def __init__(self, model: AshNet, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(*inputs)


def write_part(model: AshNet, part: Part, path: Path) -> None:
    """Export one part. `BackendError` where torch.onnx cannot."""
    module = _Call(model, part.call).eval()
    names = list(part.inputs)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # tells which nodes it did not fold
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # axes of one name, and what is deprecated within torch
            made = torch.onnx.export(
                module,
                tuple(part.inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=list(part.outputs),
                dynamic_shapes=(part.axes,),
                verbose=False,
            )
        assert made is not None
        proto = made.model_proto
        for node in proto.graph.node:  # the lines of source on this machine that it came from
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
        onnx.checker.check_model(proto)
    except Exception as error:  # torch.export and onnxscript let any through
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise BackendError(f"{path.stem}.onnx: torch.onnx cannot export this part ({reason.strip()[:300]})") from error
    onnx.save(proto, path)


@dataclass
class _Tally:
    """What differs, added up. real: the largest difference by tensor, as a share of the tensor's largest value."""

    flips: int = 0
    spikes: int = 0
    images: int = 0
    questions: int = 0
    real: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, found: np.ndarray, expected: Tensor) -> None:
        """`BackendError` beyond the tolerance."""
        truth = expected.numpy()
        if found.shape != truth.shape:
            raise BackendError(f"{name}: onnxruntime gives shape {found.shape}, torch {truth.shape}")
        share = float(np.abs(found - truth).max() / np.abs(truth).max().clip(1e-30))
        if not share <= TOLERANCE:
            raise BackendError(
                f"{name}: onnxruntime differs from torch by {share:.1e} of the largest value, the limit is {TOLERANCE}"
            )
        self.real[name] = max(self.real.get(name, 0.0), share)


@torch.no_grad()
def check(run: Run, model: AshNet, opened: OpenBundle, samples: int | None) -> dict[str, Any]:
    """Run the test images and their texts through torch and `opened`, part by part on torch's inputs and as a whole.

    Input spikes that differ are counted and refused beyond `MOST_FLIPS`; spikes behind the program, tokens and answers
    must be the same.
    """
    data, tally = load_split(run, "test"), _Tally()
    host = opened.models.run
    for indices in image_batches(data, samples):
        pixels = pixels_of(data, indices)
        vision = model.vision(normalise(pixels))
        f, spikes = host("encode", images=pixels.numpy())
        tally.add("F", f, vision.f)
        tally.flips += int(np.count_nonzero(spikes != vision.s_in.numpy()))
        tally.spikes += spikes.size
        s_out = opened.chip.run(vision.s_in.numpy().astype(np.uint8)).output
        if wrong := int(np.count_nonzero(s_out != vision.s_out.numpy())):
            raise BackendError(f"the program gives {wrong} of {s_out.size} spikes otherwise than the quantized stack")
        v = host("readout", spikes=vision.s_out.numpy(), f=vision.f.numpy())[0]
        tally.add("V'", v.reshape(vision.v.shape), vision.v)
        tally.add("image embedding", host("image", v=vision.v.numpy())[0], model.embed_images(vision.v))
        texts = [text for i in indices for text in data.texts(i)]
        tokens = run.codec.encode(texts)
        if any(not np.array_equal(a, b.numpy()) for a, b in zip(opened.codec.encode(texts), tokens, strict=True)):
            raise BackendError(f"{opened.models.folder}: its tokenizer and lexicon give other tokens than the run's")
        w, z = host("text", **{name: value.numpy() for name, value in tokens._asdict().items()})
        w_torch = model.text(tokens)
        tally.add("W", w, w_torch)
        tally.add("text embedding", z, model.embed_texts(w_torch, tokens))
        tally.images += len(pixels)
        tally.questions += len(texts)
        if run.answers:
            rows = torch.tensor([k for k, i in enumerate(indices) for _ in data.texts(i)])
            logits = model.answer(w_torch, tokens.padding, vision.v, rows)
            part = host("answer", w=w_torch.numpy(), padding=tokens.padding.numpy(), v=vision.v[rows].numpy())[0]
            tally.add("logits", part, logits)
            given = opened.logits(opened.see(pixels.numpy())[rows], texts).argmax(1)
            if wrong := int(np.count_nonzero(given != logits.numpy().argmax(1))):
                raise BackendError(f"{wrong} of {len(texts)} answers differ from torch's")
    if tally.flips > MOST_FLIPS * tally.spikes:
        raise BackendError(
            f"encode.onnx: {tally.flips} of {tally.spikes} input spikes differ from torch's; rounding explains one in "
            f"{1 / MOST_FLIPS:,.0f}"
        )
    return {
        "images": tally.images,
        "texts": tally.questions,
        "input_spikes": tally.spikes,
        "mismatching_input_spikes": tally.flips,
        "mismatching_program_spikes": 0,
        "differing_answers": 0,
        "tolerance": TOLERANCE,
        "largest_differences": tally.real,
    }
