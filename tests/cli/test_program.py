"""The program `stbp-milp` and the scripts: one set of subcommands, called in two ways.

By hand: `stbp-milp verify --help` begins with "Usage: stbp-milp verify", `verify_complete.py --help` with
"Usage: verify_complete.py", and each names other commands the way it was called itself.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from stbp_milp.cli import main, program, shared
from stbp_milp.errors import InputError, SoundnessError, StbpError
from stbp_milp.versions import VERSION

ROOT = Path(__file__).parents[2]


def started(*words: str) -> subprocess.CompletedProcess[str]:
    """Python with `words`, in the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def subcommand(name: str) -> click.Command:
    found = program.command.get_command(click.Context(program.command), name)
    assert found is not None
    return found


def test_help_lists_every_subcommand_with_a_whole_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"], program="stbp-milp") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("Usage: stbp-milp ")
    assert "'stbp-milp COMMAND --help'" in printed.out
    for name in shared.SCRIPTS:
        assert re.search(rf"\n  {name} +[A-Z]", printed.out)
    assert "..." not in printed.out.partition("Commands:")[2]


def test_bare_program_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Its exit code is not 0, which would mean "verified" to who forgot the subcommand."""
    assert main([], program="stbp-milp") == 2
    bare = capsys.readouterr().out
    main(["--help"], program="stbp-milp")
    assert bare == capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], *([name, "--version"] for name in shared.SCRIPTS)):
        assert main(arguments) == 0
        assert capsys.readouterr().out == f"stbp-milp {VERSION}\n"


@pytest.mark.parametrize("name", shared.SCRIPTS)
def test_help_shows_how_a_command_was_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"], program="stbp-milp") == 0
    of_program = capsys.readouterr().out
    of_script = started(f"scripts/{shared.SCRIPTS[name]}", "--help").stdout
    assert of_program.startswith(f"Usage: stbp-milp {name} [OPTIONS]")
    assert of_script.startswith(f"Usage: {shared.SCRIPTS[name]} [OPTIONS]")
    assert f"\n    stbp-milp {name}" in of_program
    assert f"\n    python scripts/{shared.SCRIPTS[name]}" in of_script
    assert ".py" not in of_program
    assert "stbp-milp " not in of_script


@pytest.mark.parametrize("name", shared.SCRIPTS)
def test_every_option_and_every_exit_code_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in subcommand(name).params:
        if isinstance(option, click.Option):
            assert option.help
            assert re.match(r"[A-Z].*\.$", option.help.partition("  [")[0]), option.name
    main([name, "-h"])
    codes = capsys.readouterr().out.partition("Exit codes:\n")[2]
    assert {"0", "2", "4", "70", "130", "141"} <= set(re.findall(r"^  (\d+) +[A-Z]", codes, re.MULTILINE))


def test_an_option_of_several_commands_means_the_same_in_each() -> None:
    """Those which `shared` defines are the same objects of one definition; none is defined beside it."""
    for name in ("solver", "verbose", "version", "help"):
        helps = {
            o.help
            for s in shared.SCRIPTS
            for o in subcommand(s).params
            if isinstance(o, click.Option)
            if o.name == name
        }
        assert len(helps) == 1


def test_help_and_mistyped_options_need_no_torch() -> None:
    code = (
        "import sys; from stbp_milp.cli import main;"
        "codes = [main(words) for words in (['--help'], ['--colour'], ['verfy'], [])];"
        "codes += [main([name, option]) for name in ('verify', 'batch', 'report', 'bench', 'tightness')"
        " for option in ('--help', '--colour')];"
        "sys.exit('torch' in sys.modules or codes != [0, 2, 2, 2] + [0, 2] * 5)"
    )
    assert started("-c", code).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"), [(["verfy"], "'verfy'"), (["--colour"], "--colour"), (["verify", "--modle", "a"], "--modle")]
)
def test_mistakes_are_told_in_one_sentence(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert says in printed.err
    assert printed.err.count("\n") == 1


def test_module_and_program_are_the_same() -> None:
    module = started("-m", "stbp_milp", "report", "nowhere")
    assert (module.returncode, module.stdout) == (2, "")
    assert module.stderr == "error: there is no folder 'nowhere'; give the folder that a run wrote its results to\n"
    assert started("-m", "stbp_milp", "--help").stdout.startswith("Usage: python -m stbp_milp [OPTIONS]")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (InputError("no clip"), 2, "error: no clip\n"),
        (SoundnessError("0.5 exceeds 0.2"), 4, "error: internal contradiction: 0.5 exceeds 0.2; "),
        (StbpError("lost"), 70, "error: lost\n"),
        (ZeroDivisionError("oops"), 70, "unexpected ZeroDivisionError: oops; this is a bug"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_every_command_ends_in_the_same_ways(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command
    def failing() -> None:
        raise error

    assert shared.run(failing, []) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("words", [["report", "--help"], ["--help"]])
def test_a_closed_output_is_no_verdict(words: list[str]) -> None:
    """Python's own exit code for it is 1, which means "falsified"."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "stbp_milp", *words]
    with os.fdopen(writer, "w") as stdout:
        ended = subprocess.run(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == shared.Exit.BROKEN_PIPE
    assert ended.stderr == b""


def test_the_command_line_is_kept_as_it_was_called() -> None:
    words: list[str] = []

    @click.command("verify", cls=shared.Subcommand, exit_codes={})
    @click.option("--set")
    def verify(**_: object) -> None:
        words.append(shared.command_line())

    group = click.Group("stbp-milp", commands=[verify])
    assert shared.run(group, ["verify", "--set", "a b"], "stbp-milp") == 0
    assert words == ["stbp-milp verify --set 'a b'"]
