"""What does a run's language model write?

In a few lines of Python:

    from mach.generate import Writer
    from mach.inference import Run

    writer = Writer(Run("runs/mine"), 0, 3)
    print("".join(writer.write("To be, or", tokens=100)))
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn

from mach.config import GenerateConfig, SequenceConfig
from mach.config.window import Name
from mach.data.tokenizers import Tokenizer
from mach.errors import ConfigError, InputError, MachError
from mach.inference import Run, open_model
from mach.rank import device_named

# T tokens, V vocabulary

_HALF = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer makes of the first bytes of a character whose last have not come yet."""


class Writer:
    """A chain or a window of a language model, with the tokenizer it was trained with."""

    def __init__(
        self, run: Run, first: int = 0, last: int | None = None, *, consolidated: bool = False
    ) -> None:
        """
        Args:
            run: of a language model.
            first: component the window begins at; 0 is the chain.
            last: component it ends at; None is the top.
            consolidated: as `mach consolidate` has made it.

        Raises:
            MachError: there is no such window, it has no checkpoint, or it is no language model.
        """
        data = run.config.data
        if not isinstance(data, SequenceConfig):
            raise ConfigError(
                f"run={run.run_dir}: expected a language model; got a run on data={data.name}. "
                "Train one with data=text data.path=FILE model=gpt."
            )
        self.context = data.context
        last = run.config.components - 1 if last is None else last
        self.model = run.model(Name(first, last, consolidated))
        if run.tokenizer is None:
            raise ConfigError(
                f"run={run.run_dir}: expected a run that knows its tokenizer; its data is "
                f"data={data.name}, numbers whose text nobody knows. Use mach.generate.sample."
            )
        self.tokenizer = run.tokenizer
        self._takes_fewer = run.assembly.family.takes_fewer_tokens
        self._name = run.config.model.name

    def write(
        self,
        prompt: str,
        *,
        tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """The text that follows `prompt`, piece by piece. Each argument is as in `GenerateConfig`.

        Raises:
            MachError: a prompt the tokenizer or the model cannot read.
        """
        prompt_T = torch.tensor(self._encode(prompt))
        follow = sample(
            self.model,
            prompt_T,
            context=self.context,
            tokens=tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
        )
        return spell(follow, self.tokenizer)

    def _encode(self, prompt: str) -> list[int]:
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"prompt: expected text in UTF-8; got {prompt!r}") from error
        encoded: list[int] = self.tokenizer.encode(prompt).tolist()
        if not encoded:
            raise ConfigError("prompt: expected some text to go on from; got none")
        if not self._takes_fewer and len(encoded) < self.context:
            raise ConfigError(
                f"prompt: expected at least data.context={self.context} tokens, as model="
                f"{self._name} takes no fewer; got {len(encoded)}. Give a longer prompt, or train "
                "model=gpt."
            )
        return encoded


def sample(
    model: nn.Module,
    prompt_T: Tensor,
    *,
    context: int,
    tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> Iterator[int]:
    """Tokens that follow a prompt, one by one; the model sees the last `context` before each.

    Args:
        model: from tokens [1, T] to logits [N, V], of which the last are of the token that follows.
        prompt_T: int64 [T].

    Raises:
        InputError: the model answers in numbers that are not finite.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)  # on the CPU: a GPU draws other numbers
    seen_T = prompt_T.to(device)
    for _ in range(tokens):
        seen_T = seen_T[-context:]
        with torch.no_grad():
            logits_V = model(seen_T[None])[-1].float().cpu()
        if not logits_V.max().isfinite():  # a token that cannot follow may have -inf
            raise InputError(
                "prompt: expected an answer in finite numbers; the model has none to this text. "
                "Look for the step at which the run diverged, or choose another window."
            )
        token = _choose(logits_V, temperature, top_k, generator)
        yield token
        seen_T = torch.cat((seen_T, seen_T.new_tensor([token])))


def _choose(
    logits_V: Tensor, temperature: float, top_k: int | None, generator: torch.Generator
) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if top_k is not None and top_k < len(logits_V):
        least = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, float("-inf"))
    # The largest becomes 0 first, in float64: a small temperature must neither make it infinite nor
    # be 0 itself.
    weights_V = ((logits_V - logits_V.max()).double() / temperature).exp().float()
    return int(torch.multinomial(weights_V, 1, generator=generator))


def spell(tokens: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of tokens as they come; half a character waits for its other half."""
    waiting: list[int] = []
    told = 0
    for token in tokens:
        waiting.append(token)
        text = tokenizer.decode(waiting)
        whole = text.rstrip(_HALF)
        yield whole[told:]
        told = len(whole)
        if whole == text:
            waiting, told = [], 0
    yield tokenizer.decode(waiting)[told:]


# --- mach generate ---------------------------------------------------------------------------


def generate(config: GenerateConfig) -> int:
    """Write to the terminal, each piece as it comes. Returns the exit code.

    Raises:
        MachError: what was asked for cannot be had.
    """
    run, name = open_model(config.run, config.window, device_named(config.device))
    writer = Writer(run, name.first, name.last, consolidated=name.consolidated)
    pieces = writer.write(
        config.prompt,
        tokens=config.tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        seed=config.seed,
    )
    try:
        for piece in chain([config.prompt], pieces):
            print(piece, end="", flush=True)
        print()
    except (KeyboardInterrupt, MachError):
        print()  # what is said of it gets a line of its own
        raise
    return 0
