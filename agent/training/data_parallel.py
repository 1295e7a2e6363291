"""Several processes, one model: gradients are averaged after each backward pass. One process works the same way."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """This process among its peers, as torchrun started them (RANK, WORLD_SIZE)."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.count > 1:
            dist.init_process_group("gloo")

    def average_gradients(self, params: Iterable[Tensor]) -> None:
        """A parameter without a gradient counts as zero, so that all ranks reduce the same tensors."""
        if self.count == 1:
            return
        params = list(params)
        for param in params:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        gradients = [param.grad for param in params if param.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient) / self.count)

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all ranks."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def close(self) -> None:
        if self.count > 1:
            dist.destroy_process_group()
