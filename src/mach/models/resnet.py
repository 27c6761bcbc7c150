"""Residual convolutional networks with pre-activation, for images.

He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks" (ECCV 2016), in the CIFAR form
of their "Deep Residual Learning" (CVPR 2016, section 4.2): three stages of n blocks, the second
and third beginning with a stride of 2 and twice the channels, and shortcuts without parameters.

    stem     conv, norm, relu           the first block is given what is activated already
    block    x + conv(relu(norm(conv(relu(norm(x))))))
    head     norm, relu, mean over the pixels, linear
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from torch import Tensor, nn
from torch.nn import functional as F

from mach.config import ResNetConfig, StudentConfig
from mach.errors import ConfigError
from mach.metrics import Task
from mach.models.family import Family
from mach.shapes import TensorSpec, image_axes

# B batch, C channels in, O channels out, H height, W width, h and w the same after a stride

STAGES = 3


def conv(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    """3 x 3, no bias because a norm follows; drawn as He et al. (ICCV 2015) do for ReLU."""
    layer = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class PreActivationBlock(nn.Module):
    """The shortcut plus two convolutions, each after norm and ReLU. [B, C, H, W] -> [B, O, h, w].

    The shortcut is x itself; where the block strides, every second pixel of it, and zeros for the
    channels that x does not have.
    """

    def __init__(self, norms: tuple[nn.Module, nn.Module], channels: int, out: int) -> None:
        """
        Args:
            norms: of x and of what is between the convolutions. `nn.Identity` for the first where
                x has been normalised and activated already.
            channels: of x.
            out: of the output; more than `channels` where the block strides.
        """
        super().__init__()
        self.norm1, self.norm2 = norms
        self.stride = 1 if out == channels else 2
        self.more = out - channels
        self.conv1 = conv(channels, out, self.stride)
        self.conv2 = conv(out, out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        hidden_BOhw = self.conv1(F.relu(self.norm1(x_BCHW)))
        out_BOhw: Tensor = self.conv2(F.relu(self.norm2(hidden_BOhw)))
        if self.more:
            x_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
            x_BCHW = F.pad(x_BCHW, (0, 0, 0, 0, 0, self.more))
        return x_BCHW + out_BOhw


class Convolve(nn.Module):
    """The raw image, through convolutions with norm and ReLU. [B, H, W] or [B, C, H, W] -> 4-D."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x_BCHW = x.unsqueeze(1) if x.ndim == 3 else x
        out: Tensor = self.layers(x_BCHW)
        return out


class ResNet(Family):
    """Stem, 3 n blocks, head. Every activation is [B, C, H, W], whatever the cut."""

    def __init__(self, config: ResNetConfig, task: Task, microbatch_size: int) -> None:
        """
        Args:
            config: layers, width, norm.
            task: float images [H, W] or [C, H, W].
            microbatch_size: B in training; a batch norm needs more than one value of a channel.

        Raises:
            ConfigError: the data are no images, or too small for a batch norm.
        """
        super().__init__(task)
        self._config = config
        self._image = image_axes("model=resnet", task.sample)
        self._per_stage = config.total(1) // STAGES
        _, height, width = self._shape(STAGES - 1)
        if config.norm == "batch" and microbatch_size * height * width == 1:
            raise ConfigError(
                "model.norm=batch: expected more than one value of a channel in a microbatch; got "
                f"microbatch_size=1 and images that shrink to one pixel, {task.sample}. Set "
                "model.norm=group or a larger microbatch_size."
            )

    def stem(self) -> nn.Module:
        width = self._config.width
        return Convolve([conv(self._image[0], width), self._norm(width), nn.ReLU()])

    def block(self, index: int) -> nn.Module:
        stage, place = divmod(index, self._per_stage)
        out = self._channels(stage)
        channels = self._channels(stage - 1) if place == 0 and stage > 0 else out
        norms = (nn.Identity() if index == 0 else self._norm(channels), self._norm(out))
        return PreActivationBlock(norms, channels, out)

    def activations(self, ends: Sequence[int]) -> list[TensorSpec]:
        return [TensorSpec(self._shape((end - 1) // self._per_stage)) for end in ends]

    def head(self, activation: TensorSpec) -> nn.Module:
        channels = activation.shape[0]
        return nn.Sequential(
            self._norm(channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, self.task.classes),
        )

    def student(self, activation: TensorSpec, config: StudentConfig) -> nn.Module:
        """Strides to the child's stage at once, then `depth` blocks there, then its channels.

        As in the network itself, `config.width` channels are doubled with every stride.
        """
        channels = activation.shape[0]
        stage = channels.bit_length() - self._config.width.bit_length()
        widths = [config.width << s for s in range(stage + 1)]
        layers: list[nn.Module] = []
        inside = self._image[0]
        for width in widths[1:] or widths:
            stride = 2 if stage > 0 else 1
            layers += [conv(inside, width, stride), self._norm(width), nn.ReLU()]
            inside = width
        for _ in range(config.depth):
            norms = (self._norm(inside), self._norm(inside))
            layers.append(PreActivationBlock(norms, inside, inside))
        layers += [self._norm(inside), nn.ReLU(), nn.Conv2d(inside, channels, 1)]
        return Convolve(layers)

    def targets(self, y: Tensor) -> Tensor:
        return y

    def _norm(self, channels: int) -> nn.Module:
        if self._config.norm == "batch":
            return nn.BatchNorm2d(channels)
        # The body's channels are a multiple of the groups; a student's need not be.
        return nn.GroupNorm(gcd(self._config.groups, channels), channels)

    def _channels(self, stage: int) -> int:
        return self._config.width << stage

    def _shape(self, stage: int) -> tuple[int, int, int]:
        """[C, H, W] in a stage: a 3 x 3 convolution of stride 2 rounds halves up."""
        _, height, width = self._image
        shrink = 1 << stage
        return self._channels(stage), -(-height // shrink), -(-width // shrink)
