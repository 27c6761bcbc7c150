"""Text from a run: from the chain, from any window, the same for the same seed."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kept import save
from mach import cli, runfolder
from mach.config import Config, GenerateConfig
from mach.configfile import from_arguments, load
from mach.data.tokenizers import ByteTokenizer
from mach.errors import CheckpointError, ConfigError, InputError
from mach.generate import Writer, sample, spell
from mach.inference import Run, Window
from spawn import MACH, run
from texts import make, train, write_text

GENERATE = [*MACH, "generate"]
PROMPT = "The quick brown "


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A run of two components, trained in this process and saved as processes do it."""
    folder = tmp_path_factory.mktemp("chain")
    config = make(write_text(folder), student={"enabled": True}, head={"weight": 0.1})
    oracle, _ = train(config)
    save(oracle, config, folder / "run")
    return folder / "run", oracle


def network(oracle, first, last):
    """The same window, put together from the oracle's own modules."""
    components = [trainer.worker.component for trainer in oracle.trainers]
    student = [components[first].student.network] if first else []
    bodies = [component.body for component in components[first : last + 1]]
    return nn.Sequential(*student, *bodies, components[last].head)


def greedy(model, prompt, tokens, context):
    """The likeliest byte after the last `context`, again and again."""
    text = list(prompt.encode())
    for _ in range(tokens):
        with torch.no_grad():
            logits = model(torch.tensor([text[-context:]]))
        text.append(int(logits[-1].argmax()))
    return bytes(text[len(prompt.encode()) :]).decode(errors="replace")


# --- models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(0, 0), (0, 1), (1, 1)])
def test_a_window_is_one_module_with_the_weights_of_the_run(chain, window):
    run_dir, oracle = chain
    model = Run(run_dir).window(*window)
    x = torch.randint(256, (3, 12))
    assert not model.training
    assert torch.equal(model(x), network(oracle, *window)(x))


def test_the_text_it_was_trained_on_is_not_needed(chain, tmp_path):
    run_dir, oracle = chain
    shutil.copytree(run_dir, tmp_path / "run")
    config = load(run_dir / "config.yaml")
    runfolder.claim(tmp_path / "run", replace(config, data=replace(config.data, path="gone")))
    written = "".join(Writer(Run(tmp_path / "run")).write(PROMPT, tokens=20, temperature=0))
    assert written == greedy(network(oracle, 0, 1), PROMPT, 20, context=12)


def test_of_a_free_run_each_component_is_taken_as_it_saved_itself(tmp_path):
    config = make(write_text(tmp_path), schedule="free", student={"enabled": True})
    oracle, _ = train(replace(config, schedule="delayed"))
    save(oracle, config, tmp_path / "run", steps=[3, 4])
    model = Run(tmp_path / "run").window(0, 1)
    x = torch.randint(256, (3, 12))
    assert torch.equal(model(x), network(oracle, 0, 1)(x))


def test_a_free_run_whose_top_has_saved_nothing_has_the_chain_below_it(tmp_path):
    config = make(write_text(tmp_path), schedule="free", student={"enabled": True})
    oracle, _ = train(replace(config, schedule="delayed"))
    save(oracle, config, tmp_path / "run", steps=[3, None])
    x = torch.randint(256, (3, 12))
    assert torch.equal(Run(tmp_path / "run").window(0, 0)(x), network(oracle, 0, 0)(x))
    with pytest.raises(CheckpointError, match="a checkpoint; component 1 has saved none"):
        Run(tmp_path / "run").window(0, 1)


# --- sampling -------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(0, 1), (1, 1)])
@pytest.mark.parametrize("prompt", ["T", PROMPT, PROMPT * 3], ids=["short", "full", "long"])
def test_greedy_text_is_an_explicit_loop(chain, window, prompt):
    """A prompt may be shorter than the context of 12, or longer: then its end is seen."""
    run_dir, oracle = chain
    written = "".join(Writer(Run(run_dir), *window).write(prompt, tokens=20, temperature=0))
    assert written == greedy(network(oracle, *window), prompt, 20, context=12)


class Fixed(nn.Module):
    """Says the same of every token: its logits are given."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.expand(x.numel(), -1)


def draw(logits, tokens=2000, **how):
    arguments = {"temperature": 1.0, "top_k": None, "seed": 0, **how}
    drawn = sample(Fixed(logits), torch.tensor([0]), context=1, tokens=tokens, **arguments)
    return torch.tensor(list(drawn)).bincount(minlength=len(logits)) / tokens


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_at_this_temperature_says(temperature):
    """2,000 draws: a share is off by 0.011 in one standard deviation, here by at most four."""
    logits = [0.0, 1.0, 2.0, -1.0]
    expected = (torch.tensor(logits) / temperature).softmax(-1)
    torch.testing.assert_close(draw(logits, temperature=temperature), expected, atol=0.045, rtol=0)


def test_top_k_leaves_the_k_likeliest():
    shares = draw([0.0, 1.0, 2.0, -1.0], top_k=2)
    expected = torch.tensor([0.0, *torch.tensor([1.0, 2.0]).softmax(-1), 0.0])
    torch.testing.assert_close(shares, expected, atol=0.045, rtol=0)
    assert shares[0] == shares[3] == 0
    assert torch.equal(draw([0.0, 1.0], top_k=99), draw([0.0, 1.0]))


def test_the_least_temperature_is_greedy():
    """In float32 1e-50 is 0, and what is divided by it no number."""
    for temperature in (1e-40, 1e-50, 5e-324):
        assert draw([0.0, 30.0, 29.0], temperature=temperature, tokens=50)[1] == 1


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_token_is_drawn_from_what_is_no_number(bad, temperature):
    """torch refused to draw, in a traceback; at temperature 0 the first of them was written."""
    with pytest.raises(InputError, match="expected an answer in finite numbers"):
        draw([0.0, bad, 1.0], temperature=temperature)
    assert draw([0.0, float("-inf"), 1.0], temperature=temperature)[1] == 0


@pytest.mark.parametrize(
    "content",
    [b"plain", "\N{EURO SIGN}uro \N{GRINNING FACE}".encode(), b"\x80\x80\xe2A\xff", b"\xe2\x82"],
)
def test_text_that_comes_byte_by_byte_is_spelt_like_the_whole(content):
    """Half a character waits for the rest; what never becomes one is marked in the end."""
    tokenizer = ByteTokenizer()
    pieces = list(spell(iter(content), tokenizer))
    assert "".join(pieces) == tokenizer.decode(content)


def test_what_is_sure_is_spelt_at_once():
    assert list(spell(iter("a\N{EURO SIGN}b".encode()), ByteTokenizer())) == [
        *["a", "", "", "\N{EURO SIGN}", "b"],
        "",
    ]


# --- the command ----------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("window", ["0..1", "1..1"])
def test_the_command_writes_what_the_window_says(language_run, tmp_path, window):
    run_dir, _ = language_run
    arguments = [f"run={run_dir}", f"prompt={PROMPT}", "tokens=30", "seed=3"]
    done = run([*GENERATE, *arguments, f"window={window}"], tmp_path)
    assert done.code == 0, done
    first, last = map(int, window.split(".."))
    writer = Writer(Run(run_dir), first, last)
    expected = "".join(writer.write(PROMPT, tokens=30, temperature=0.8, seed=3))
    assert done.stdout == f"{PROMPT}{expected}\n", done
    assert "".join(writer.write(PROMPT, tokens=30, seed=4)) != expected


def test_a_terminal_without_a_character_is_given_its_number(chain, tmp_path):
    """It ended in a traceback, at the first such character."""
    command = [
        *GENERATE,
        str(chain[0]),
        "prompt=caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        "tokens=1",
    ]
    done = run(command, tmp_path, PYTHONIOENCODING="ascii")
    assert done.code == 0, done
    assert done.stdout.startswith(r"caf\xe9"), done


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "prompt: expected a value; got none"),
        ("prompt=x", "run: expected a value; got none"),
        ("run=nowhere prompt=x", "run=nowhere: expected a run folder.*; got no such folder"),
        ("run=. prompt=x", "run=.: expected a run folder, .*config.yaml; got a folder without one"),
        ("run=RUN prompt=", "prompt: expected some text to go on from; got none"),
        ("run=RUN promt=x", "argument: expected one of run, prompt, window, .*; got 'promt'"),
        ("run=RUN prompt", "prompt: expected key=value; got no ="),
        ("run=RUN prompt=x tokens=many", "tokens: expected a whole number; got 'many'"),
        ("run=RUN prompt=x tokens=0", "tokens: expected 1 or more; got 0"),
        ("run=RUN prompt=x temperature=-1", "temperature: expected a number from 0 on"),
        ("run=RUN prompt=x temperature=inf", "temperature: expected a number .*; got inf"),
        ("run=RUN prompt=x seed=99999999999999999999", "seed: expected 0 to .*; got 9999"),
        ("run=RUN prompt=x top_k=0", "top_k: expected 1 or more; got 0"),
        ("run=RUN prompt=x device=tpu", "device: expected one of auto, cpu, cuda"),
        ("run=RUN prompt=x window=1", r"window: expected j\.\.i, .*; got '1'"),
        ("run=RUN prompt=x window=0..2", r"window=0\.\.2: expected j\.\.i with 0 <= j <= i <= 1"),
        ("run=RUN prompt=x window=1..0", r"window=1\.\.0: expected j\.\.i with 0 <= j <= i <= 1"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(chain, capsys, words, says):
    run_dir, _ = chain
    refused(words.replace("RUN", str(run_dir)).split(), capsys, says)


def refused(words, capsys, says):
    """`mach generate` says why in one line and ends with 2."""
    assert cli.answer("generate", words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mach: ")
    assert printed.err.count("\n") == 1
    assert re.search(says, printed.err), printed.err


def test_a_model_that_has_diverged_says_so_on_a_line_of_its_own(chain, capsys, monkeypatch):
    monkeypatch.setattr(Window, "forward", lambda model, x: torch.full((x.numel(), 256), torch.nan))
    assert cli.answer("generate", [str(chain[0]), f"prompt={PROMPT}"]) == 2
    printed = capsys.readouterr()
    assert printed.out == f"{PROMPT}\n"
    assert re.fullmatch("mach: prompt: expected an answer in finite numbers; .*\n", printed.err)


@pytest.fixture
def copy(chain, tmp_path) -> Path:
    """A run that may be changed."""
    shutil.copytree(chain[0], tmp_path / "copy")
    return tmp_path / "copy"


def no_checkpoint(run_dir, config):
    shutil.rmtree(run_dir / "checkpoints")
    return "expected a checkpoint; the run has saved none yet"


def damaged(run_dir, config):
    file = next(run_dir.glob("checkpoints/*/component-1/__0_0.distcp"))
    file.write_bytes(file.read_bytes()[:-1])
    return "__0_0.distcp: damaged"


def no_students(run_dir, config):
    runfolder.claim(run_dir, replace(config, student=replace(config.student, enabled=False)))
    return r"window=1\.\.1: expected a chain, 0\.\.0 to 0\.\.1: .*student.enabled=false"


def another_network(run_dir, config):
    runfolder.claim(run_dir, replace(config, model=replace(config.model, width=24)))
    return "component-1: body.*: expected .*24.*, got .*16.*another network"


def another_cut(run_dir, config):
    runfolder.claim(run_dir, replace(config, components=3))
    return "expected components=3, .*; got a checkpoint of 2"


@pytest.mark.parametrize(
    "change", [no_checkpoint, damaged, no_students, another_network, another_cut]
)
def test_a_run_that_cannot_write_is_refused(copy, capsys, change):
    says = change(copy, load(copy / "config.yaml"))
    refused([f"run={copy}", f"prompt={PROMPT}", "window=1..1"], capsys, says)


def test_a_run_that_knows_no_language_is_refused(tmp_path, capsys):
    run_dir = tmp_path / "run"
    runfolder.claim(run_dir, Config())
    says = "expected a language model; got a run on data=digits.*data=text"
    refused([f"run={run_dir}", "prompt=x"], capsys, says)


def test_a_model_that_reads_whole_contexts_only_refuses_a_short_prompt(tmp_path, capsys):
    path = write_text(tmp_path)
    config = make(path, model={"name": "mlp", "width": 16, "blocks": 1, "heads": None})
    oracle, _ = train(config)
    save(oracle, config, tmp_path / "run")
    says = "prompt: expected at least data.context=12 tokens, as model=mlp takes no fewer; got 5"
    refused([f"run={tmp_path / 'run'}", "prompt=short"], capsys, says)
    written = Writer(Run(tmp_path / "run")).write(PROMPT, tokens=5, temperature=0)
    assert "".join(written) == greedy(network(oracle, 0, 1), PROMPT, 5, context=12)


def test_no_sign_in_a_prompt_is_special():
    for prompt in ("ROMEO:", "1e3", "${seed}", "a=b, [c]", "null", "'", " "):
        config = from_arguments(GenerateConfig, ["run=x", f"prompt={prompt}", "top_k=null"])
        assert config.prompt == prompt
        assert config.top_k is None


def test_a_prompt_that_is_no_text_is_refused(chain):
    with pytest.raises(ConfigError, match="prompt: expected text in UTF-8"):
        Writer(Run(chain[0])).write("\udcff")
