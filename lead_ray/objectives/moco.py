"""MoCo (He et al., 2020) as Contrastive Landmarks trains it (CL, Cheng et al., 2021): the stage 1 that LEAD's replaces.

Find an image's other view among thousands of earlier images. Keys come from a moving average of the network and wait
in a queue; both are part of the learner's state, so that a run resumes as if nothing had happened.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from lead_ray.models.trunk import Trunk, pooled


@dataclass(frozen=True, kw_only=True)
class MocoSettings:
    """Head, queue and moving average; defaults are CL's, which trains with SGD .03/.9/1e-4, 256 images, 800 epochs."""

    dim: int = 128
    """Channels of queries and keys."""
    hidden: int = 0
    """Width of a hidden layer with ReLU before them (MoCo v2: 2048); 0 is one linear layer, CL's and MoCo's first."""
    queue: int = 4096
    """Keys of earlier images; a multiple of the batch size, so that whole batches leave it."""
    temperature: float = 0.07
    momentum: float = 0.999
    """Share of the key network kept at every step."""
    groups: int = 4
    """Parts of a step's images, of all workers together, whose statistics BatchNorm takes apart, so that those of a
    query do not give its key away (shuffling BN); CL trained on four GPUs. A multiple of the workers; where these are
    more, each is a group."""

    def __post_init__(self):
        for name in ("dim", "queue", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"objective.{name} must be >= 1, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"objective.temperature must be > 0, got {self.temperature}")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"objective.momentum must lie in [0, 1], got {self.momentum}")


def queue_logits(
    queries: Float[Tensor, "b d"], keys: Float[Tensor, "b d"], queue: Float[Tensor, "k d"], *, temperature: float
) -> Float[Tensor, "b 1+k"]:
    """Similarity of each query to its own key, then to every key of the queue.

    Vectors are taken as they are: L2-normalised. No gradient reaches keys and queue.
    Range: [-1, 1] / temperature. The loss is the cross-entropy of finding entry 0, in nats: InfoNCE.
    Source: CL, NCE/NCEAverage.py (MemoryMoCo).
    """
    own = (queries * keys.detach()).sum(dim=1, keepdim=True)
    return torch.cat([own, queries @ queue.detach().T], dim=1) / temperature


def enqueue(queue: Float[Tensor, "k d"], pointer: Int64[Tensor, ""], keys: Float[Tensor, "n d"]) -> None:
    """Write keys over the oldest ones, in place, and move the pointer on; both go round at the end."""
    queue.index_copy_(0, (pointer + torch.arange(len(keys), device=keys.device)) % len(queue), keys)
    pointer.add_(len(keys)).remainder_(len(queue))


def gathered(values: Float[Tensor, "n ..."]) -> Float[Tensor, "world n ..."]:
    """The values of all workers, who have as many each; without gradients."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values[None]
    values = values.contiguous()
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.stack(parts)


class Moco(nn.Module):
    """Trunk and head that make queries, their moving average that makes keys, and the queue."""

    def __init__(self, trunk: Trunk, settings: MocoSettings):
        super().__init__()
        self.settings = settings
        self.trunk = trunk
        channels = trunk.channels[-1]
        self.head: nn.Module = nn.Linear(channels, settings.dim)
        if settings.hidden:
            hidden, output = nn.Linear(channels, settings.hidden), nn.Linear(settings.hidden, settings.dim)
            self.head = nn.Sequential(hidden, nn.ReLU(inplace=True), output)
        self.key = nn.ModuleList([copy.deepcopy(trunk), copy.deepcopy(self.head)]).requires_grad_(False)
        bound = math.sqrt(3 / settings.dim)  # unit length on average
        self.queue: Tensor
        self.pointer: Tensor
        self.register_buffer("queue", torch.empty(settings.queue, settings.dim).uniform_(-bound, bound))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def forward(self, view_a: Float[Tensor, "b 3 h w"], view_b: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """The loss of view a's queries, and how many of them are nearer to their own key than to any of the queue's.

        The keys of all workers join the queue, which is thus the same for all of them.
        """
        queries = F.normalize(self.head(pooled(self.trunk(view_a, self.own_groups))).float(), dim=1)
        keys, every_key = self.keys(view_b)
        with torch.autocast(view_a.device.type, enabled=False):
            # A copy: the backward pass needs the queue as it was before this step's keys.
            logits = queue_logits(queries, keys, self.queue.clone(), temperature=self.settings.temperature)
            loss = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))
        enqueue(self.queue, self.pointer, every_key)
        return {"loss": loss, "own_key_nearest": (logits.argmax(dim=1) == 0).float().mean()}

    @torch.no_grad()
    def keys(
        self, views: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b {self.settings.dim}"], Float[Tensor, "n {self.settings.dim}"]]:
        """Keys of this worker's views, and those of all workers' views in order of rank.

        Queries see BatchNorm in groups of images that lie one after another, keys in groups to which the images of all
        workers are dealt like cards: were query and key computed in the same batch, its statistics would give the key
        away. Dealing a batch that is random already is as good as shuffling it, and needs no random numbers. One
        worker with four groups makes the keys that four workers make; its running statistics see all groups, where
        each of theirs sees its own.
        """
        trunk, head = self.key
        rank = dist.get_rank() if dist.is_initialized() else 0
        every_view, own = gathered(views), self.own_groups
        groups = len(every_view) * own
        mine = [every_view.flatten(0, 1)[group::groups] for group in range(rank * own, (rank + 1) * own)]
        dealt = torch.cat(mine).contiguous(memory_format=torch.channels_last)
        keys = gathered(F.normalize(head(pooled(trunk(dealt, own))).float(), dim=1))
        # Image i lies in group i % groups's row i // groups.
        every_key = keys.view(groups, -1, keys.shape[-1]).transpose(0, 1).flatten(0, 1)
        return every_key[rank * len(views) : (rank + 1) * len(views)], every_key

    @property
    def own_groups(self) -> int:
        """Of this worker's images."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        return max(1, self.settings.groups // world)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the key network's parameters towards the trained ones; its buffers are its own."""
        trained = [*self.trunk.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(list(self.key.parameters()), trained, 1 - self.settings.momentum)

    def encoder(self) -> nn.Module:
        """What the stage hands on: the trained trunk."""
        return self.trunk
