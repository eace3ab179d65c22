"""The command line: parses, calls the library, prints; every error becomes one sentence and its exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from graphcompress.cli import bench, export, generate, inspect, listing, optimize, report, tune, verify
from graphcompress.cli.usage import BadUsage, sentence

EXIT_CODES = """\
Exit codes: 0 done · 1 unexpected error · 2 usage · 3 contract, coverage, goal or speed missed ·
4 model not supported · 5 invalid model file · 6 data · 7 output · 8 training ·
9 a metric of your own · 130 interrupted · 143 terminated
"""
USAGE, INTERRUPTED, TERMINATED = 2, 130, 143
STOPPED: Mapping[object, str] = {INTERRUPTED: "interrupted", TERMINATED: "terminated"}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog=EXIT_CODES,
)
# Each imports what it needs when it runs, so that help and a slip of the keys do not wait for onnx.
for command in (
    optimize.optimize,
    export.export,
    generate.generate,
    inspect.inspect,
    bench.bench,
    verify.verify,
    report.report,
    tune.tune,
    listing.passes,
    listing.targets,
    listing.tasks,
    listing.metrics,
    listing.instruments,
):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from graphcompress import __version__

    typer.echo(f"graphcompress {__version__}")
    raise typer.Exit


@app.callback()
def root(
    # Declared for the help alone: main() reads it, wherever it stands.
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (before or after the command).")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Make Transformers in ONNX small and fast, and prove that they still answer the same."""


def main() -> NoReturn:
    """Run the command line with ``sys.argv`` and exit."""
    # Typer knows an option of the program in front of the command only; this one is typed behind it, mostly.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) != len(sys.argv) - 1
    asked = _Stop()
    _prepare_streams()
    try:
        # In its own mode typer prints errors itself, and leaves with codes of its own.
        code = app(arguments, prog_name="graphcompress", standalone_mode=False)
    except SystemExit as leave:
        if leave.code in STOPPED:
            _say(_stopped(leave, STOPPED[leave.code]))
        raise
    except KeyboardInterrupt as interruption:
        _fail(_stopped(interruption, STOPPED[INTERRUPTED]), INTERRUPTED)
    except BadUsage as error:
        if not arguments:  # typer's way to show the help
            error.show()  # type: ignore[attr-defined]
            sys.exit(USAGE)
        _fail(f"error: {sentence(error, arguments)}", USAGE)
    except Exception as error:
        if asked.code is not None:
            _fail(_stopped(error, STOPPED[asked.code]), asked.code)
        if debug:
            raise
        _fail(*_explain(error))
    # Typer turns a KeyboardInterrupt into the value 130 and returns that.
    if code in STOPPED:
        _fail(_stopped(KeyboardInterrupt(), STOPPED[code]), code)
    # Typer returns what the command returned where that did not leave by itself: nothing.
    sys.exit(code if isinstance(code, int) else 0)


def _stopped(by: BaseException, how: str) -> str:
    """What a stopped command says: what is kept and how to go on, where the command noted that."""
    return "; ".join([how, *getattr(by, "__notes__", ["nothing half-done is left behind"])])


def _prepare_streams() -> None:
    """Print whatever the place can show: a closed stream takes all, a narrow encoding gets ? for an arrow."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # So Python says that it was started with the stream closed (>&-).
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - to the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _explain(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code for an error."""
    from graphcompress.errors import GraphCompressError, OutputError, UnsupportedModelError

    if isinstance(error, GraphCompressError):
        return f"error: {error}", error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"error: the disk is full ({error.filename or 'while writing'}); free some space",
            OutputError.exit_code,
        )
    if isinstance(error, FileNotFoundError) and _working_folder_is_gone():
        return (
            "error: the working folder is gone; change to a folder that exists (cd), and run it again",
            OutputError.exit_code,
        )
    if isinstance(error, MemoryError):
        return (
            f"error: out of memory ({error}); take a smaller model, fewer samples or smaller batches",
            UnsupportedModelError.exit_code,
        )
    # Some libraries say a page; a script reads one line.
    what = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    return f"error: unexpected {what} (run it again with --debug to see where, and report it)", 1


def _working_folder_is_gone() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


class _Stop:
    """Ends the program when a signal asks for it, through the ``finally`` blocks, so that nothing is left.

    C code that is just running may turn what is raised here into an error of its own: where a class is made,
    Python 3.11 says "RuntimeError: Error calling __set_name__". So what was asked for is noted as well.

    Attributes:
        code: the exit code that was asked for, or None.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        signal.signal(signal.SIGTERM, self._terminate)
        # What runs in the background of a shell ignores it, and shall go on doing so.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def _terminate(self, number: int, frame: object) -> NoReturn:
        self.code = TERMINATED
        sys.exit(TERMINATED)

    def _interrupt(self, number: int, frame: object) -> NoReturn:
        self.code = INTERRUPTED
        raise KeyboardInterrupt


def _fail(sentence: str, code: int) -> NoReturn:
    _say(sentence)
    try:
        sys.stdout.flush()
    except OSError:
        # Python flushes once more at its end: where that fails it leaves with 120, whatever the code was.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _say(sentence: str) -> None:
    from graphcompress.plugin.legible import legible

    sys.stderr.write(legible(sentence).replace("\n", " ") + "\n")


if __name__ == "__main__":
    main()
