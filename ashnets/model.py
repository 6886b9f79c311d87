"""The whole ASH-Net, and what one forward pass hands to the objectives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ashnets.abstract import SemanticAbstractEncoder
from ashnets.codebook import CodebookEncoder
from ashnets.concrete import VisualConcreteEncoder
from ashnets.config import ModelConfig
from ashnets.fusion import CrossModalEncoder, Fusion
from ashnets.heads import AnswerHead, EmbeddingHead, SpellingEmbeddingHead, TokenEmbeddingHead
from ashnets.text import TextEncoder, Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """One batch on its device. Texts are captions or questions; several may belong to one image.

    images [B, 3, H, W], normalised; view the same images augmented anew, or None; tokens of M texts; text_image [M]
    the index of each text's image; image_ids [B], equal for images that are the same; picture_ids, the same for each
    image of a pair by itself, or None where no objective asks; answers [M], -1 for one that the
    model cannot give, or None; scores [M, A], what each answer that it can give is worth, 0 to 1, or None. Where
    texts are about pairs, the two images of one follow each other, B counts pairs and the first axis is 2 B.
    """

    images: Float[Tensor, "B 3 H W"]
    tokens: Tokens
    text_image: Int[Tensor, " M"]
    image_ids: Int[Tensor, " B"]
    picture_ids: Int[Tensor, " P"] | None = None
    view: Float[Tensor, "B 3 H W"] | None = None
    answers: Int[Tensor, " M"] | None = None
    scores: Float[Tensor, "M A"] | None = None


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

    def answer(self, w: Tensor, padding: Tensor, v: Tensor) -> Float[Tensor, "M A"]:
        """Answer logits of texts W [M, N, D] about visual tokens V' [M, L, D], one row for each text."""
        if self.answer_head is None:
            raise ValueError("this model has no answers to choose from; build it with the size of an answer vocabulary")
        return self.answer_head(*self._read(w, padding, v))

    def match(self, w: Tensor, padding: Tensor, v: Tensor) -> Float[Tensor, "M 2"]:
        """Logits of whether each text W [M, N, D] does not, or does, fit its visual tokens V' [M, L, D]."""
        if self.match_head is None:
            raise ValueError("this model cannot match texts and images; build it with fusion.match")
        return self.match_head(*self._read(w, padding, v))

    def _read(self, w: Tensor, padding: Tensor, v: Tensor) -> tuple[Float[Tensor, "M K D"], Float[Tensor, "M K D"]]:
        """[CLS] of each text after it has looked at each of its K images by itself, and those images' mean tokens."""
        images = self.config.fusion.images
        if images > 1:
            w, padding = w.repeat_interleave(images, 0), padding.repeat_interleave(images, 0)
            v = v.unflatten(1, (images, -1)).flatten(0, 1)
        h = self.cross(w, padding, v)[:, 0]
        return h.unflatten(0, (-1, images)), v.mean(1).unflatten(0, (-1, images))


def parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def normalise(images: Tensor) -> Float[Tensor, "B 3 H W"]:
    """uint8 [B, 3, H, W] -> float in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1
