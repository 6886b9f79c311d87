"""The whole ASH-Net, and what one forward pass hands to the objectives."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from ashnets.abstract import SemanticAbstractEncoder
from ashnets.codebook import CodebookEncoder
from ashnets.concrete import VisualConcreteEncoder
from ashnets.config import ModelConfig
from ashnets.fusion import CrossModalEncoder, Fusion, groups_of
from ashnets.heads import AnswerHead, EmbeddingHead, SpellingEmbeddingHead, TokenEmbeddingHead
from ashnets.ranks import Split
from ashnets.text import TextEncoder, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """One batch. Texts are captions or questions; several may belong to one image.

    images [B, 3, H, W], normalised, or uint8 until `to` has brought them to their device; view the same images
    augmented anew, or None; tokens of M texts; text_image [M] the index of each text's image; image_ids [B], equal for
    images that are the same; picture_ids, the same for each image of a pair by itself, or None where no objective asks;
    answers [M], -1 for one that the model cannot give, or None; scores [M, A], what each answer that it can give is
    worth, 0 to 1, or None. Where texts are about pairs, the two images of one follow each other, B counts pairs and the
    first axis is 2 B. split: where this is a rank's part of a batch, how that is split; its texts are then as long as
    the longest of the batch.
    """

    images: Float[Tensor, "B 3 H W"] | UInt8[Tensor, "B 3 H W"]
    tokens: Tokens
    text_image: Int[Tensor, " M"]
    image_ids: Int[Tensor, " B"]
    picture_ids: Int[Tensor, " P"] | None = None
    view: Float[Tensor, "B 3 H W"] | UInt8[Tensor, "B 3 H W"] | None = None
    answers: Int[Tensor, " M"] | None = None
    scores: Float[Tensor, "M A"] | None = None
    split: Split | None = None

    def to(self, device: torch.device) -> "Inputs":
        """The same on a device, where uint8 images are normalised."""

        def moved(value: Tensor) -> Tensor:
            there = value.to(device, non_blocking=True)
            return normalise(there) if there.dtype == torch.uint8 else there

        return self._each(moved)

    def pin_memory(self) -> "Inputs":
        """The same in memory that a GPU reads by itself."""
        return self._each(lambda value: value.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        changed: dict[str, Any] = {name: change(value) for name, value in tensors.items()}
        return replace(self, tokens=Tokens(*map(change, self.tokens)), **changed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Vision:
    """F0 and F [B, L, D], spikes s_in [T, B, C, h, w] and s_out [T, B, ...], E [B, L', D], V' = F + r E [B, L, D]; of
    pairs of images V' [B / 2, 2 L, D]."""

    f0: Tensor
    f: Tensor
    s_in: Tensor
    s_out: Tensor
    e: Tensor
    v: Tensor


class AshNet(nn.Module):
    """Concrete (ANN) and abstract (SNN) visual encoders, text encoder, cross-modal encoder, heads for retrieval and
    VQA.

    answers: size of the answer vocabulary; 0 for a model that only retrieves. `model.abstract.stack` may be replaced
    by a quantized stack or a `SpikeBridge` of the same shapes.
    """

    def __init__(self, config: ModelConfig, answers: int) -> None:
        super().__init__()
        self.config = config
        self.concrete = VisualConcreteEncoder(config)
        abstract = CodebookEncoder if config.abstract.codebook else SemanticAbstractEncoder
        # A codebook has no encoder and no stack of its own, and nothing quantizes it.
        self.abstract = cast(SemanticAbstractEncoder, abstract(config, self.concrete.grid))
        self.fusion = Fusion(self.concrete.grid, self.abstract.output_grid, config.fusion.spikes_alone, config.fusion.r)
        self.text = TextEncoder(config)
        self.cross = CrossModalEncoder(config)
        self.image_head = EmbeddingHead(config)
        self.text_head = SpellingEmbeddingHead(config) if config.text.lexicon else TokenEmbeddingHead(config)
        self.answer_head = AnswerHead(config, answers) if answers else None
        self.match_head = AnswerHead(config, 2) if config.fusion.match else None

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformers' blocks: they hold most activations and most weights, and nothing in them counts how often
        it was run."""
        text = self.text.bert.encoder.layer if self.text.kind == "bert" else self.text.blocks.layers
        return [*self.concrete.vit.blocks, *text, *(self.cross.layers if hasattr(self, "cross") else ())]

    def vision(self, images: Float[Tensor, "B 3 H W"]) -> Vision:
        return self.begin_vision(images)()

    def begin_vision(self, images: Float[Tensor, "B 3 H W"]) -> Callable[[], Vision]:
        """What gives `vision`'s result. A chip behind a bridge is at work until then."""
        f0, f = self.concrete(images)
        pending = self.abstract.begin(self.read_by_spikes(f0, f))

        def finish() -> Vision:
            s_in, s_out, e = pending()
            v = self.fusion(f, e)
            if self.config.fusion.images > 1:
                v = v.unflatten(0, (-1, self.config.fusion.images)).flatten(1, 2)
            return Vision(f0=f0, f=f, s_in=s_in, s_out=s_out, e=e, v=v)

        return finish

    def read_by_spikes(self, f0: Tensor, f: Tensor) -> Float[Tensor, "B L D"]:
        """Which of F0 and F the abstract encoder codes."""
        return f if self.config.abstract.reads == "concrete" else f0

    def code(self, images: Float[Tensor, "B 3 H W"]) -> Tensor:
        """s_in alone: what the spiking stack is given."""
        concrete = self.config.abstract.reads == "concrete"
        return self.abstract.encoder(self.concrete(images)[1] if concrete else self.concrete.stem(images))

    def embed_images(self, v: Float[Tensor, "B L D"]) -> Float[Tensor, "B K"]:
        return self.image_head(v.mean(1))

    def embed_texts(self, w: Float[Tensor, "M N D"], tokens: Tokens) -> Float[Tensor, "M K"]:
        return self.text_head(w, tokens)

    def answer(self, w: Tensor, padding: Tensor, v: Tensor, text_image: Tensor | None = None) -> Float[Tensor, "M A"]:
        """Answer logits of texts W [M, N, D] about visual tokens V', one row for each text: [M, L, D], or [B, L, D] of
        the images that `text_image` [M] names, which costs less where several texts are about one image."""
        if self.answer_head is None:
            raise ValueError("this model has no answers to choose from; build it with the size of an answer vocabulary")
        return self.answer_head(*self._read(w, padding, v, text_image))

    def match(self, w: Tensor, padding: Tensor, v: Tensor, text_image: Tensor | None = None) -> Float[Tensor, "M 2"]:
        """Logits of whether each text W [M, N, D] does not, or does, fit its visual tokens V', as in `answer`."""
        if self.match_head is None:
            raise ValueError("this model cannot match texts and images; build it with fusion.match")
        return self.match_head(*self._read(w, padding, v, text_image))

    def _read(
        self, w: Tensor, padding: Tensor, v: Tensor, text_image: Tensor | None
    ) -> tuple[Float[Tensor, "M K D"], Float[Tensor, "M K D"]]:
        """[CLS] of each text after it has looked at each of its K images by itself, and those images' mean tokens."""
        images = self.config.fusion.images
        if images > 1:
            w, padding = w.repeat_interleave(images, 0), padding.repeat_interleave(images, 0)
            v = v.unflatten(1, (images, -1)).flatten(0, 1)
            if text_image is not None:
                text_image = (images * text_image[:, None] + torch.arange(images, device=w.device)).flatten()
        groups = None if text_image is None else groups_of(text_image, len(v))
        h, mean = self.cross(w, padding, v, groups)[:, 0], v.mean(1)
        mean = mean if text_image is None else mean[text_image]
        return h.unflatten(0, (-1, images)), mean.unflatten(0, (-1, images))


def parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def normalise(images: Tensor) -> Float[Tensor, "B 3 H W"]:
    """uint8 [B, 3, H, W] -> float in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1
