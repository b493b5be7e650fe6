"""The commands, and what becomes of errors: a line on standard error, and an exit status."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from camlib import __version__
from camlib.cli.doctor import doctor
from camlib.cli.failures import FAILED
from camlib.cli.judging import compare, evaluate
from camlib.cli.listing import layers, methods
from camlib.cli.pictures import explain
from camlib.errors import CamlibError, CamlibRuntimeError

USAGE = 2
"""The exit status of wrong arguments. After Ctrl-C it is 130."""

app = typer.Typer(
    name="camlib",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for command in (explain, layers, methods, compare, evaluate, doctor):
    app.command()(command)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"camlib {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Where did the network look? Explain pictures from the command line.

    \b
    camlib explain photos/ --model torchvision:resnet50 --out heatmaps/ --report
    camlib compare cat.jpg --model timm:convnext_tiny --methods grad_cam,layer_cam --out methods.png
    camlib layers timm:vit_tiny_patch16_224 --weights none
    camlib doctor

    Exit status: 0 if all went well, 1 if some images failed or the run could not go on, 2 for wrong arguments, 130
    after Ctrl-C. COMMAND --help shows the options of a command with examples.
    """


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        app()
    except CamlibError as error:
        typer.echo(f"camlib: {error}", err=True)
        sys.exit(FAILED if isinstance(error, CamlibRuntimeError) else USAGE)
    sys.exit(0)
