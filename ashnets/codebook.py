"""A learned codebook in the place of the spikes: the other way to discrete latents, to compare with (SOHO's visual
dictionary, Huang et al. 2021, arXiv 2104.03135; VQ-VAE, van den Oord et al. 2017)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ashnets.config import ModelConfig
from ashnets.ranks import summed

_STEADY = 0.99
_LEAST = 1e-5


class Codebook(nn.Module):
    """x [..., C] -> (k [...], q [..., C]): k = argmin_j |x - e_j|^2, q = e_k, the gradient of q being that of x.

    Entries are running means of what chose them, and learn without gradient: n_j <- g n_j + (1 - g) count_j,
    m_j <- g m_j + (1 - g) sum of x, e_j = m_j / n_j, with g = min(0.4 updates, 0.99) as in SOHO. An entry that nothing
    chooses stays where it is.
    """

    entries: Tensor
    counts: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.register_buffer("entries", torch.randn(entries, width))
        self.register_buffer("counts", torch.ones(entries))
        self.register_buffer("sums", self.entries.clone())
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Float[Tensor, "*n C"]) -> tuple[Tensor, Float[Tensor, "*n C"]]:
        flat = x.detach().flatten(0, -2)
        with torch.autocast(flat.device.type, enabled=False):  # or training would choose others than evaluation does
            distance = self.entries.square().sum(1) - 2 * flat.float() @ self.entries.T
            chosen = distance.argmin(1)
            q = self.entries[chosen].view_as(x)
            if self.training:
                self._learn(flat.float(), F.one_hot(chosen, len(self.entries)).float())
        return chosen.view(x.shape[:-1]), x + (q - x).detach()

    @torch.no_grad()
    def _learn(self, x: Float[Tensor, "n C"], chose: Float[Tensor, "n K"]) -> None:
        self.updates += 1
        share = 1 - min(0.4 * int(self.updates), _STEADY)
        self.counts.lerp_(summed(chose.sum(0)), share)
        self.sums.lerp_(summed(chose.T @ x), share)
        used = self.counts[:, None] > _LEAST
        self.entries.copy_(torch.where(used, self.sums / self.counts[:, None], self.entries))


class CodebookEncoder(nn.Module):
    """What `SemanticAbstractEncoder` is, with codes for spikes: E = W_d q(norm(W_c x)) of each token x that is read.

    Its s_in and s_out are the codes, one-hot [1, B, K, h, w]; no gradient flows through them.
    """

    def __init__(self, config: ModelConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        a = config.abstract
        self.output_grid = grid
        self.project = nn.Linear(config.width, a.channels)
        self.norm = nn.LayerNorm(a.channels)
        self.codebook = Codebook(a.codebook, a.channels)
        self.readout = nn.Linear(a.channels, config.width)

    def forward(self, f0: Float[Tensor, "B L D"]) -> tuple[Tensor, Tensor, Float[Tensor, "B L D"]]:
        """(codes, codes, E)."""
        chosen, q = self.codebook(self.norm(self.project(f0)))
        codes = F.one_hot(chosen, len(self.codebook.entries)).to(q.dtype)
        codes = codes.transpose(1, 2).unflatten(2, self.output_grid)[None]
        return codes, codes, self.readout(q)

    def begin(self, f0: Float[Tensor, "B L D"]) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
        found = self(f0)
        return lambda: found
