"""Networks as a user brings them along: each function returns blocks, some of them mistaken."""

import functools
import random
import sys

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        return x + F.relu(self.linear(self.norm(x)))


def vectors(width=12, depth=4):
    """[10] -> [width], residual."""
    return [nn.Linear(10, width), *(Residual(width) for _ in range(depth - 1))]


def uneven(width=12):
    """Six blocks, of which the second is as large as all others together."""
    large = nn.Sequential(nn.Linear(width, 8 * width), nn.ReLU(), nn.Linear(8 * width, width))
    return nn.Sequential(nn.Linear(10, width), large, *(Residual(width) for _ in range(4)))


def with_logits():
    """The last block makes the logits of four classes."""
    return [nn.Linear(10, 12), Residual(12), nn.Sequential(nn.ReLU(), nn.Linear(12, 4))]


def flat(width=8, depth=4):
    """[8, 8] -> [width]."""
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, width))
    return [first, *(Residual(width) for _ in range(depth - 1))]


def flat_of_12():
    return flat(12)


def twice(width=8):
    """[8, 8] -> [width]; the second block has its layers, and the buffers of one, twice."""
    linear, norm, act = nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, width))
    return [first, nn.Sequential(linear, norm, act, linear, norm, act)]


def picture(norm=True):
    """Images [8, 8], with a batch norm."""
    return [
        nn.Sequential(
            nn.Unflatten(1, (1, 8)),
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
        ),
        nn.Sequential(nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1)),
        nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
    ]


class Causal(nn.Module):
    """Each position gets the mean of those up to itself, through a linear layer."""

    def __init__(self, width, peeks=False):
        super().__init__()
        self.norm, self.linear, self.peeks = nn.LayerNorm(width), nn.Linear(width, width), peeks

    def forward(self, x):
        h = self.linear(self.norm(x))
        if self.peeks:
            return x + h.mean(1, keepdim=True)
        return x + h.cumsum(1) / torch.arange(1, h.shape[1] + 1, device=h.device).unsqueeze(-1)


def writer(width=16, peeks=False):
    return [nn.Embedding(256, width), Causal(width), Causal(width, peeks)]


def late_peeker(width=16):
    """What it sees of later tokens begins at nothing, as attention does whose way out is zero."""
    blocks = writer(width, peeks=True)
    for parameter in blocks[-1].linear.parameters():
        nn.init.zeros_(parameter)
    return blocks


def writer_with_logits(width=16):
    return [*writer(width), nn.Linear(width, 256)]


class Reads(nn.Module):
    """Cannot run on meta: it looks at its numbers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 12)
        self.scale = float(self.linear.weight.detach().abs().max())  # nor be built there

    def forward(self, x):
        return self.linear(x) / self.scale if x.abs().sum() >= 0 else x


def not_for_meta():
    return [nn.Linear(10, 12), Reads(), Residual(12)]


class Tied(Reads):
    """Has its weight twice, as no module has that `Module.to` moved from the CPU to meta."""

    def __init__(self):
        super().__init__()
        self.again = nn.Linear(12, 12)
        self.again.weight = self.linear.weight

    def forward(self, x):
        return self.again(F.relu(self.linear(x))) / self.scale


def tied():
    """[8, 8] -> [12]."""
    return [nn.Sequential(nn.Flatten(), nn.Linear(64, 12)), Tied(), Tied()]


def in_place():
    """[10] -> [12]; two blocks change what the one below has made."""
    later = [nn.Sequential(nn.ReLU(inplace=True), nn.Linear(12, 12)) for _ in range(2)]
    return [nn.Linear(10, 12), later[0], nn.Linear(12, 12), later[1]]


def small_table(tokens=99, width=16):
    """For a text of which no byte is as large as `tokens`."""
    return [nn.Embedding(tokens, width), Causal(width)]


def normed():
    return [nn.Linear(10, 12), nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12))]


class ReadingHead(Reads):
    def __init__(self, classes):
        super().__init__()
        self.out = nn.Linear(12, classes)

    def forward(self, x):
        return self.out(super().forward(x))


def reading_head(activation, task):
    return ReadingHead(task.classes)


def own_head(activation, task):
    return nn.Linear(activation.shape[0], task.classes, bias=False)


def drawing_head(activation, task):
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(activation.shape[0], task.classes))


def own_student(activation, task, config):
    return nn.Linear(task.sample.shape[0], activation.shape[0])


def overwriting_head(activation, task):
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(activation.shape[0], task.classes))


def overwriting_student(activation, task, config):
    linear = nn.Linear(task.sample.shape[0], activation.shape[0])
    return nn.Sequential(nn.Dropout(0.5, inplace=True), linear)


def lazy_head(activation, task):
    return nn.LazyLinear(task.classes)


def narrow_head(activation, task):
    return nn.Linear(activation.shape[0] - 1, task.classes)


def wide_head(activation, task):
    return nn.Linear(activation.shape[0], task.classes + 1)


# --- mistakes ----------------------------------------------------------------------------------

not_a_function = 3


def raises():
    raise RuntimeError("no such luck")


def exits():
    sys.exit(0)


def nothing():
    pass


def empty():
    return []


def one_module():
    return Residual(10)


def functions():
    return [nn.Linear(10, 12), F.relu]


def shapes_that_do_not_meet():
    return [nn.Linear(10, 12), Residual(12), nn.Sequential(nn.ReLU(), nn.Linear(16, 4))]


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def returns_a_tuple():
    return [nn.Linear(10, 12), Pair()]


def folds_the_batch():
    return [nn.Linear(10, 12), nn.Flatten(0)]


def dropout():
    return [nn.Linear(10, 12), nn.Sequential(Residual(12), nn.Dropout(0.01)), Residual(12)]


def no_dropout():
    return [nn.Linear(10, 12), nn.Sequential(Residual(12), nn.Dropout(0.0)), Residual(12)]


def lazy():
    return [nn.Linear(10, 12), nn.Sequential(nn.ReLU(), nn.LazyLinear(12))]


class Picky(nn.Module):
    """Takes zeros, and not what the first block makes of samples."""

    def forward(self, x):
        assert not x.any(), "only zeros\nplease"
        return x


def picky():
    return [nn.Linear(10, 12), Picky(), Residual(12)]


class Noisy(nn.Module):
    def forward(self, x):
        return x + 1e-3 * torch.randn_like(x)


def noise():
    return [nn.Linear(10, 12), Residual(12), Noisy()]


class Counts(nn.Module):
    calls: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


def counts():
    return [nn.Linear(10, 12), nn.Sequential(nn.Linear(12, 12), Counts())]


def shared():
    linear = nn.Linear(12, 12)
    return [nn.Linear(10, 12), linear, nn.Sequential(nn.ReLU(), linear)]


def nothing_to_train():
    return [nn.Linear(10, 12), nn.Sequential(nn.ReLU())]


class Unused(nn.Module):
    """Has parameters that its output does not depend on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return 2 * x


def unused():
    return [Unused(), nn.Linear(10, 12)]


def overwrites():
    return [nn.Linear(10, 12), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(12, 12))]


def overwrites_with_the_same():
    """No number changes, and autograd refuses it all the same."""
    positive = nn.Sequential(nn.Linear(10, 12), nn.ReLU())
    return [positive, nn.Sequential(nn.ReLU(inplace=True), nn.Linear(12, 12))]


def overwrites_through_a_view():
    second = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(10, 12))
    return [nn.Flatten(), second, Residual(12), Residual(12)]


def own_random_numbers():
    linear = nn.Linear(10, 12)
    nn.init.constant_(linear.bias, random.random())
    return [linear, Residual(12)]


class Bessel(nn.Module):
    """Has an operator that ONNX does not."""

    def forward(self, x):
        return torch.special.i0e(x)


def no_onnx(width=8):
    first = nn.Sequential(nn.Flatten(), nn.Linear(16, width))
    return [first, *(nn.Sequential(nn.Linear(width, width), Bessel()) for _ in range(3))]


class Complex(nn.Module):
    """Complex weights of two and of three dimensions, as of layers that work on frequencies."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Parameter(torch.randn(width, width, dtype=torch.cfloat) / width)
        self.heads = nn.Parameter(torch.randn(1, width, width, dtype=torch.cfloat) / width)

    def forward(self, x):
        return x + (x.to(torch.cfloat) @ self.mix @ self.heads[0]).abs()


def complex_weights(width=12):
    return [nn.Linear(10, width), Complex(width), Complex(width)]


SHIFT = torch.linspace(-1, 1, 12)
"""Made when the module is imported."""


@functools.cache
def table(width, dtype=torch.float32):
    """Made once, by whoever asks first."""
    return torch.linspace(0.5, 1.5, width, dtype=dtype)


class Keeps(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("scale", table(width) + SHIFT)
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        h = self.linear(x * self.scale)
        return x + h * table(h.shape[-1], h.dtype)


def keeps_tables(width=12):
    return [nn.Linear(10, width), Keeps(width), Keeps(width)]


def orthogonal(width=12):
    """Computes while it is built, what autocast has no kernels for."""
    turn = nn.utils.parametrizations.orthogonal
    return [nn.Linear(10, width), *(turn(nn.Linear(width, width)) for _ in range(2))]


class Skips(nn.Module):
    """Is left out now and then, as Python's own generator says."""

    def forward(self, x):
        return x if random.random() < 0.5 else 2 * x


def skips(width=12):
    return [nn.Linear(10, width), Residual(width), Skips()]


def turns(width=12):
    """Its forward turns a vector that it keeps, so its output changes as well."""
    turned = nn.utils.parametrizations.spectral_norm(nn.Linear(width, width))
    return [nn.Linear(10, width), Residual(width), turned]


def slice_as_head(activation, task):
    """Nothing to learn."""

    class Slice(nn.Module):
        def forward(self, h):
            return h[:, : task.classes]

    return Slice()


def half_frozen_student(activation, task, config):
    first, last = nn.Linear(task.sample.shape[0], 8), nn.Linear(8, activation.shape[0])
    return nn.Sequential(first.requires_grad_(False), last)


def frozen_student(activation, task, config):
    return nn.Linear(task.sample.shape[0], activation.shape[0]).requires_grad_(False)


def flat_of_keys(hf_token=None):
    return flat()
