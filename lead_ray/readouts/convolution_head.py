"""A block of convolutions in place of DVE's and CL's single one: SCE-MAE's kind of read-out.

3x3 convolution, BatchNorm, ReLU, 1x1 convolution to the response maps; then soft-argmax and one linear layer per
landmark, as in regressor.py. SCE-MAE says "a convolution block" and no more, so this is one of its kind, and not its
own. It sees neighbouring cells and learns far more numbers than one 1x1 convolution: errors under it say less about the
features, and belong in no table with those of the other.

Nothing of it commutes with upsampling. Blocks are resized to the finest one, convolved there, and the maps resized to
the grid. Meant for compact maps: the products of the first convolution grow with the channels, sixty times at 3840.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lead_ray.machine import quick_products
from lead_ray.optimisers import never_compiled
from lead_ray.readouts.descent import Annotated, course_of, shuffled, stop_if_not_finite
from lead_ray.readouts.regressor import CHUNK, Blocks, Regressor, loss, soft_argmax, upsample
from lead_ray.readouts.settings import RegressionSettings


class ConvolutionHead(nn.Module):
    """A read-out that is used as a Regressor is: predict(), to()."""

    def __init__(self, channels: list[int], marks: int, settings: RegressionSettings, generator: torch.Generator):
        """PyTorch's own random start, from the generator. Channels: of every block."""
        super().__init__()
        self.channels, self.marks = channels, marks
        self.temperature, self.grid = settings.temperature, settings.grid
        self.first = nn.Conv2d(sum(channels), settings.width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(settings.width)
        self.second = nn.Conv2d(settings.width, marks * settings.points, 1, bias=False)
        self.linear = nn.Parameter(torch.empty(marks, 2 * settings.points, 2))
        for weight in (self.first.weight, self.second.weight):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        bound = 1 / math.sqrt(2 * settings.points)
        nn.init.uniform_(self.linear, -bound, bound, generator=generator)

    def forward(self, blocks: Blocks) -> Float[Tensor, "b k 2"]:
        """Normalised landmarks of one batch; carries gradients."""
        size = blocks[0].shape[2:]
        finest, *coarser = [block.float() for block in blocks]
        resized = [functional.interpolate(block, size=size, mode="bilinear") for block in coarser]
        features = torch.cat([finest, *resized], dim=1).contiguous(memory_format=torch.channels_last)
        maps = self.second(functional.relu(self.norm(self.first(features))))
        responses = upsample([self.temperature * maps.flatten(0, 1)], grid=self.grid)
        points = soft_argmax(responses).view(len(finest), self.marks, -1, 2)
        return (points.flatten(2).transpose(0, 1) @ self.linear).transpose(0, 1)

    @torch.no_grad()
    def predict(self, blocks: Blocks) -> Float[Tensor, "n k 2"]:
        """Normalised landmarks of any number of images.

        Raises: ValueError if the blocks' channels are not those that it was fitted on.
        """
        if (given := [block.shape[1] for block in blocks]) != self.channels:
            raise ValueError(f"blocks must have {self.channels} channels, as in fit(), got {given}")
        self.eval()
        return torch.cat([self(part) for part in zip(*(block.split(CHUNK) for block in blocks), strict=True)])


Fitted = Regressor | ConvolutionHead


def train_head(blocks: Blocks, given: Annotated, settings: RegressionSettings) -> ConvolutionHead:
    """Adam on one head, by the settings' schedule.

    Raises: ValueError if the loss stops being finite.
    """
    images, landmarks, visible, generator, _ = given
    channels = [block.shape[1] for block in blocks]
    device = landmarks.device
    head = ConvolutionHead(channels, landmarks.shape[1], settings, torch.Generator().manual_seed(seed_of(generator)))
    head = head.to(device, memory_format=torch.channels_last).train()
    betas = (0.5, 0.999)
    adam = never_compiled(torch.optim.Adam)
    optimizer = adam(head.parameters(), settings.lr, betas, weight_decay=settings.weight_decay, fused=True)
    course = course_of(len(images), settings)
    batches = shuffled(len(images), settings.batch_size, generator)
    with quick_products(device.type, settings.precision == "bf16"):
        for step, batch in zip(range(course.steps), batches, strict=False):
            chosen = batch.to(device)
            optimizer.param_groups[0]["lr"] = course.rate(step, settings)
            predicted = head([block[images[chosen]] for block in blocks])
            value = loss(predicted, landmarks[chosen], visible=visible[chosen])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if step % 100 == 0 or step == course.steps - 1:
                stop_if_not_finite(value.detach().reshape(1), step, settings)
    return head.eval()


def seed_of(generator: torch.Generator) -> int:
    """A seed for weights that are drawn on the CPU, whatever device the generator is of."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
