"""What a model is, as frozen dataclasses; `tiny()`, `small()` and `base()` return full configurations."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ConcreteConfig:
    """Visual concrete encoder. backbone 'conv_stem' is a small ViT of timm behind a convolutional stem; any other
    name is timm's."""

    image_size: int = 64
    backbone: str = "conv_stem"
    depth: int = 2
    heads: int = 4
    dropout: float = 0.0
    stem: tuple[int, ...] = (24, 48)
    """Channels of the stem's stages in front of the last one, which has the model's width; each halves the grid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AbstractConfig:
    """Semantic abstract encoder: spike coding on the host, the spiking stack on the chip, a readout on the host."""

    reads: Literal["stem", "concrete"] = "stem"
    """Which tokens are coded: F0, what the stem sees, or F, what the whole concrete encoder makes of it."""
    steps: int = 4
    """T, time steps per sample."""
    channels: int = 32
    """Channels of the spike code s_in."""
    grid: int = 0
    """Side of the grid that is coded; 0: the tokens' own. Tokens of larger pictures are fitted to it, so that the stack
    stays as it is."""
    convs: tuple[tuple[int, int], ...] = ((64, 2), (64, 1))
    """(channels, stride) of each 3x3 convolution."""
    dense: tuple[int, ...] = (128,)
    """Neurons of each dense layer behind a flatten; empty for a purely convolutional stack."""
    decay_u: float = 0.5
    decay_v: float = 0.25
    decays_per_channel: bool = False
    surrogate: Literal["rectangle", "arctan", "fast_sigmoid"] = "arctan"
    codebook: int = 0
    """Entries of a learned codebook that stands where the spikes stand, for comparison; 0: spikes. Its vectors have
    `channels` numbers; what is said of the stack does not apply."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Text encoder: 'transformer' is our own small one, 'bert' is transformers' BertModel."""

    kind: Literal["transformer", "bert"] = "transformer"
    vocabulary: int = 2048
    length: int = 16
    """N, the most tokens of a text; longer texts are cut."""
    depth: int = 2
    heads: int = 4
    dropout: float = 0.0
    special: tuple[int, int, int, int] = (0, 1, 2, 3)
    """Token ids of padding, start, end and mask; in BERT's own vocabulary (0, 101, 102, 103)."""
    lexicon: int = 0
    """Most words and character n-grams that retrieval compares texts by; 0: by their tokens' features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionConfig:
    """Cross-modal encoder: text tokens attend to each other, then to the fused visual tokens."""

    depth: int = 2
    heads: int = 4
    dropout: float = 0.0
    spikes_alone: float = 0.0
    """Probability in training that an image is seen by its spikes alone, V' = r E; 1: always, in evaluation too."""
    r: float | None = None
    """The weight of E where it is not learned; 0: the artificial network alone."""
    images: int = 1
    """Images that a text is about: 2 for pairs (NLVR2)."""
    match: bool = False
    """Whether there is a head that tells if a text fits an image (`itm`), by which retrieval can rank again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Values of the objectives, see `ashnets.objectives`. ALBEF's: temperature 0.07 within 0.001 and 0.5, soft 0.4,
    queue 65536, momentum 0.995, masked 0.15."""

    temperature: float = 0.1
    temperature_least: float = 0.1
    """Contrastive losses learn their temperature from this start on, between this and 0.5; where it starts at the least
    it stays there. A lower one learns small data by heart. A run that starts from another goes on from what that one
    has learned."""
    soft: float = 0.5
    """itc, itc_queue: share of soft targets."""
    queue: int = 4096
    """itc_queue: how many images and texts of earlier batches are further negatives."""
    momentum: float = 0.995
    """itc_queue: decay of the averaged encoders that fill the queue and give the soft targets."""
    masked: float = 0.15
    """mlm: share of a text's tokens that are to be told."""
    hardness: float = 0.0
    """scl: beta, by which negatives weigh exp(beta cos); 0: all alike."""
    mixed: int = 0
    """scl: negatives for each image that are mixed of its hardest ones."""
    rate_target: float = 0.1
    rate_weight: float = 1.0
    """scl: the firing rate that spikes are drawn to, and the weight of the distance from it."""
    stua: Literal["spike_to_text", "text_spike"] = "spike_to_text"
    """stua: whether the spikes of images are to find their texts, or the spikes of texts themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A whole ASH-Net. width is D, embedding the size of the space in which images and texts are compared."""

    width: int = 96
    embedding: int = 64
    concrete: ConcreteConfig = field(default_factory=ConcreteConfig)
    abstract: AbstractConfig = field(default_factory=AbstractConfig)
    text: TextConfig = field(default_factory=TextConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)


def tiny() -> ModelConfig:
    """About a million parameters at 64 px: trains on two CPU cores in minutes."""
    return ModelConfig(
        concrete=ConcreteConfig(depth=1, dropout=0.1),
        text=TextConfig(vocabulary=1024, length=24, depth=1, lexicon=4300),
    )


def small() -> ModelConfig:
    """About 30 million parameters at 128 px: one GPU, hours."""
    return ModelConfig(
        width=384,
        embedding=256,
        concrete=ConcreteConfig(image_size=128, depth=6, heads=6, stem=(48, 96, 192)),
        abstract=AbstractConfig(channels=64, convs=((128, 1), (128, 2), (256, 1)), dense=(512,)),
        text=TextConfig(vocabulary=8192, length=32, depth=4, heads=6, dropout=0.1),
        fusion=FusionConfig(depth=4, heads=6, dropout=0.1),
    )


def base() -> ModelConfig:
    """ViT-B/16 by timm and BERT-base by transformers, 224 px: the setting of the published anchors."""
    return ModelConfig(
        width=768,
        embedding=256,
        concrete=ConcreteConfig(image_size=224, backbone="vit_base_patch16_224", depth=12, heads=12),
        abstract=AbstractConfig(channels=128, convs=((128, 1), (256, 2), (256, 1)), dense=(1024,)),
        text=TextConfig(
            kind="bert", vocabulary=30522, length=40, depth=12, heads=12, dropout=0.1, special=(0, 101, 102, 103)
        ),
        fusion=FusionConfig(depth=6, heads=12, dropout=0.1),
    )


PRESETS = {"tiny": tiny, "small": small, "base": base}
