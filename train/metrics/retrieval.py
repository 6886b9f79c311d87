"""Recall at K for image-text retrieval, with ties counted against the model."""

from collections.abc import Sequence

import numpy as np


def ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Rank (0 is first) of each query's best relevant item: scores [Q, I], relevant bool [Q, I] -> int64 [Q].

    An irrelevant item with an equal score ranks before it, so that a constant score finds nothing. Every query needs
    a relevant item.
    """
    best = np.where(relevant, scores, -np.inf).max(1, keepdims=True)
    return ((scores >= best) & ~relevant).sum(1)


def recalls(
    scores: np.ndarray, image_ids: Sequence[str], text_image: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """'tr@K' (texts for an image: any of its captions in the first K) and 'ir@K' (images for a text), in percent.

    scores: similarity [images, texts]; text_image: int64 [texts]. Images with one id count as the same.
    """
    ids = np.asarray(image_ids)
    relevant = ids[:, None] == ids[text_image][None, :]
    found = {"tr": ranks(scores, relevant), "ir": ranks(scores.T, relevant.T)}
    return {f"{way}@{k}": float(100 * np.mean(found[way] < k)) for way in found for k in ks}


def without_hubs(scores: np.ndarray, image_hub: np.ndarray, text_hub: np.ndarray) -> np.ndarray:
    """CSLS: 2 s(i, t) - r(i) - r(t), so that a caption that is near to all pictures ranks no higher than others.

    scores: similarity [images, texts]; image_hub [images] and text_hub [texts]: `hubness` (Conneau et al. 2018, "Word
    Translation Without Parallel Data"; for retrieval Bogolin et al. 2022).
    """
    return 2 * scores - image_hub[:, None] - text_hub[None, :]


def hubness(similarities: np.ndarray, neighbours: int) -> np.ndarray:
    """Mean of each item's `neighbours` largest similarities to the other side's training items: [items, training] ->
    [items]."""
    k = min(neighbours, similarities.shape[1])
    return np.partition(similarities, -k, axis=1)[:, -k:].mean(1)
