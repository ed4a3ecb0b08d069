"""Loss per noise level: sums of a loss in bins of log-SNR, kept on the device until someone asks."""

import torch
import torch.distributed
from torch import Tensor

EDGES = tuple(range(-10, 11, 2))  # of log-SNR; the first and the last bin are open
NAMES = (f"below_{EDGES[0]}", *(f"{a}_to_{a + 2}" for a in EDGES[:-1]), f"above_{EDGES[-1]}")


class Tally:
    """Adds up [B] losses by the bin of their log-SNR, without a scalar read; `read` sums over ranks and starts anew."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # per bin: losses, losses times weights, count
        self._edges: Tensor | None = None

    @torch.no_grad()
    def add(self, loss: Tensor, log_snr: Tensor, weight: Tensor) -> None:
        """loss, log_snr, weight: [B]."""
        if self._sums is None or self._sums.device != loss.device:
            self._sums = torch.zeros(3, len(NAMES), device=loss.device)
        if self._edges is None or self._edges.device != loss.device:  # kept, for a copy waits for the device
            self._edges = torch.tensor(EDGES, dtype=torch.float32, device=loss.device)
        loss = loss.float()
        index = torch.bucketize(log_snr.float(), self._edges)
        self._sums.index_add_(1, index, torch.stack([loss, weight * loss, torch.ones_like(loss)]))

    def state(self, device: torch.device) -> Tensor:
        """What has been added so far on each rank, [ranks, 3, bins], for a checkpoint; called on every rank.

        device: where losses are added; NCCL gathers from nowhere else, even where nothing has been added yet.
        """
        sums = torch.zeros(3, len(NAMES), device=device) if self._sums is None else self._sums
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return sums[None].clone()
        parts = [torch.empty_like(sums) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, sums.contiguous())
        return torch.stack(parts)

    def restore(self, state: Tensor, rank: int, world: int, device: torch.device) -> None:
        """Goes on from a `state`; of another number of ranks, the first takes it all."""
        own = state[rank] if len(state) == world else state.sum(0) if rank == 0 else torch.zeros_like(state[0])
        self._sums = own.to(device).clone()
        self._edges = torch.tensor(EDGES, dtype=torch.float32, device=device)

    def read(self) -> dict[str, float]:
        """{"": weighted mean over all, bin name: mean in that bin, ...}, over all ranks; empty if nothing was added."""
        if self._sums is None:
            return {}
        sums = self._sums
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        totals, weighted, counts = sums.tolist()
        self._sums = None
        means = {"": sum(weighted) / max(1.0, sum(counts))}
        return means | {name: total / count for name, total, count in zip(NAMES, totals, counts, strict=True) if count}
