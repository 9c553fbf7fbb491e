"""The command line: parses, calls one function, prints. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lengthen import __version__

app = typer.Typer(
    name="lengthen",
    help="Teach a language model to read longer and to write longer: data, training, evaluation and a report from one "
    "recipe file.\n\n\b\nStart here:\n"
    "  lengthen run quickstart      see a small model learn to read four times longer, on a laptop\n"
    "  lengthen show                the list of recipes\n"
    "  lengthen COMMAND --help      examples of each command",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
synthesize = typer.Typer(help="Write training data by program or by a model.", no_args_is_help=True)
app.add_typer(synthesize, name="synthesize")

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A preset's name (see `lengthen show`) or a YAML file.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Start model: a folder, a Hub name, or 'default' (the embedded SmolLM2-135M)."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a setting, e.g. --set train.steps=50. Repeatable."),
]
StageChanges = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a setting of the stage, e.g. --set max_tokens=16k."),
]
Reader = Annotated[
    str | None, typer.Option("--model", "-m", help="Model whose tokenizer decodes the rows. Default: as the data say.")
]
Checked = Annotated[
    str | None, typer.Option("--model", "-m", help="Model to check: a folder, a Hub name, or 'default'.")
]
Measuring = Annotated[
    str | None, typer.Option("--model", "-m", help="Model whose tokenizer measures lengths. Default: the embedded one.")
]
_debug = {"on": False}


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    _debug["on"] = debug
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def run(
    recipe: RecipeName,
    model: Model = None,
    set_: Changes = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder. Default: runs/<recipe>.")] = None,
    redo: Annotated[list[str] | None, typer.Option("--redo", help="Run this stage anew although it is done.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the stages and what remains; run nothing.")] = False,
) -> None:
    """Run a recipe: every stage in order, skipping what is done.

    Stop it at any moment and run the same command again: it goes on from the last checkpoint and the last sample.
    Under torchrun, accelerate launch or srun the training stages use all ranks.

    \b
    Examples:
      lengthen run quickstart
      lengthen run quickstart --dry-run
      lengthen run quickstart --model ./my-model --set train.steps=50 --out runs/mine
      lengthen run quickstart --redo train
    """
    from lengthen.commands import dry_run_text, run_and_tell
    from lengthen.recipe.load import load_recipe

    loaded = load_recipe(recipe, model=model, changes=set_ or ())
    folder = out or Path("runs") / loaded.name
    if dry_run:
        typer.echo(dry_run_text(loaded, folder, redo or []))
    else:
        run_and_tell(loaded, folder, redo or [], _command_line())


@app.command()
def show(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A preset's name or a YAML file.")] = None,
    model: Model = None,
    set_: Changes = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipe files, for editors.")
    ] = False,
) -> None:
    """Print a recipe with every setting and its reason. Without a name: the list of recipes.

    Beside a setting stands where its number comes from (a paper's table, or lengthen's own choice); numbers that follow
    from others come with their reason. Nothing is run, and no weights are downloaded.

    \b
    Examples:
      lengthen show
      lengthen show prolong
      lengthen show quickstart --set train.length=64k
      lengthen show --schema > recipe.schema.json
    """
    from lengthen.commands import presets_text, schema_text, show_text

    if schema:
        typer.echo(schema_text())
    elif recipe is None:
        typer.echo(presets_text())
    else:
        from lengthen.recipe.load import load_recipe

        typer.echo(show_text(load_recipe(recipe, model=model, changes=set_ or ())))


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(help="Training rows, chat.jsonl, a stage folder, a run folder, or a state file.")
    ],
    rows: Annotated[int, typer.Option("--rows", "-n", help="How many rows to show decoded.")] = 3,
    model: Reader = None,
) -> None:
    """Look at data before you train on it. Rows decoded with visible borders and masks, lengths, shares, drops.

    Of a run folder it tells each stage's time, memory and counts; of a state file, how far the work is.

    \b
    Examples:
      lengthen inspect runs/quickstart
      lengthen inspect runs/quickstart/stages/prepare --rows 5
      lengthen inspect my-chats.jsonl --model ./my-model
    """
    from lengthen.commands import inspect_text

    typer.echo(inspect_text(path, rows, model))


@app.command()
def doctor(model: Checked = None) -> None:
    """What this machine can run, and what to install for the rest.

    With --model it also checks that the model's attention keeps the documents of one row apart (a document leak falls
    silently: the loss still goes down).

    \b
    Examples:
      lengthen doctor
      lengthen doctor --model default
    """
    from lengthen.commands import doctor_text

    text, good = doctor_text(model)
    typer.echo(text)
    if not good:
        raise typer.Exit(1)


@app.command()
def plan(
    recipe: RecipeName,
    model: Model = None,
    set_: Changes = None,
    devices: Annotated[
        str | None,
        typer.Option(
            "--devices", "-d", help="Count and type, e.g. 8xH100-80GB, 4xA100-80GB, cpu. Default: this machine."
        ),
    ] = None,
) -> None:
    """What a recipe will cost before it runs. Memory of each device by part, tokens per second, hours.

    Where it does not fit, it says what to change, the largest saving first. Only the model's config is read.

    \b
    Examples:
      lengthen plan quickstart
      lengthen plan prolong --devices 8xH100-80GB
      lengthen plan prolong --devices 64xH100-80GB --set train-512k.sequence_parallel=16
    """
    from lengthen.commands import lacking_text, plan_text
    from lengthen.recipe.load import load_recipe

    loaded = load_recipe(recipe, model=model, changes=set_ or ())
    typer.echo(plan_text(loaded, devices))
    if warning := lacking_text(loaded):
        typer.echo(warning)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, a Hub name, 'default', or http://host:port/v1#model-name.")],
    suite: Annotated[str, typer.Option("--suite", help="Suites or single tasks, separated by commas.")] = "needle",
    lengths: Annotated[str, typer.Option("--lengths", help="Lengths in tokens, separated by commas.")] = "4k,8k,16k",
    samples: Annotated[int | None, typer.Option("--samples", help="Samples per task and length.")] = None,
    arm: Annotated[
        str | None, typer.Option("--arm", help="The model's name in tables. Default: from its path.")
    ] = None,
    set_: StageChanges = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder. Default: runs/evaluate-<model>.")] = None,
) -> None:
    """How long a model really reads and writes. Scores with intervals, heat maps, a report.

    Stop it and run it again at any moment: no sample is asked twice. Suites: needle, ruler, helmet, own, longform,
    perplexity, short.

    \b
    Examples:
      lengthen evaluate default
      lengthen evaluate ./my-model --suite ruler --lengths 8k,32k,128k --samples 20
      lengthen evaluate http://localhost:8000/v1#name --suite needle --set tokenizer=./my-model
    """
    from lengthen.commands import evaluation_recipe, run_and_tell

    recipe = evaluation_recipe(model, suite, lengths, samples, arm, set_ or ())
    run_and_tell(recipe, out or Path("runs") / recipe.name, [], _command_line())


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or evaluate stages, the earlier one first.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the report.")] = Path("report"),
) -> None:
    """Compare runs on the same samples. Paired differences with intervals, curves, heat maps.

    The earliest run comes first; the last one is compared with each of the others. Writes report.html, report.md and
    summary.json with every number.

    \b
    Examples:
      lengthen report runs/evaluate-before runs/evaluate-after
      lengthen report runs/bakeoff-as-is runs/bakeoff-plain runs/bakeoff-prolong --out results/bakeoff
    """
    from lengthen.commands import compare

    typer.echo(compare(runs, out))


def _synthesis(kind: str, model: str | None, count: int | None, out: Path | None, changes: list[str] | None) -> None:
    from lengthen.commands import run_and_tell, synthesis_recipe

    recipe = synthesis_recipe(kind, model, count, changes or ())
    run_and_tell(recipe, out or Path("runs") / recipe.name, [], _command_line())


Count = Annotated[int | None, typer.Option("--count", "-n", help="Number of conversations.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder. Default: runs/<kind>.")]


@synthesize.command()
def tables(model: Measuring = None, count: Count = None, set_: StageChanges = None, out: Out = None) -> None:
    """Long random tables with computed answers. LongSkywork's SynL; every answer is checked from the text.

    \b
    Examples:
      lengthen synthesize tables --count 200
      lengthen synthesize tables --count 200 --set min_tokens=2k --set max_tokens=16k --set "languages=[en]"
    """
    _synthesis("tables", model, count, out, set_)


@synthesize.command()
def questions(model: Measuring = None, count: Count = None, set_: StageChanges = None, out: Out = None) -> None:
    """Facts planted in real long documents, and asked for. Without documents of yours: Shakespeare's plays.

    \b
    Examples:
      lengthen synthesize questions --count 200
      lengthen synthesize questions --count 200 --set "documents=[./books]" --set max_tokens=16k
    """
    _synthesis("questions", model, count, out, set_)


def _command_line() -> str:
    import shlex

    return shlex.join(["lengthen", *sys.argv[1:]])


def main() -> None:
    """Entry point: user errors print without a traceback, exit code 1; Ctrl-C says how to go on, exit code 130."""
    from lengthen.common.errors import LengthenError

    try:
        # Typer gives back the code of an Exit, and 130 for Ctrl-C, instead of raising.
        code = app(standalone_mode=False)
        if code == 130:
            raise KeyboardInterrupt
        if code:
            raise SystemExit(code)
    except LengthenError as error:
        _fail(f"Error: {error}", 1)
    except KeyboardInterrupt:
        _fail("Stopped. Nothing is lost: run the same command again and it goes on.", 130)
    except (typer.Abort, EOFError):
        _fail("Stopped.", 130)
    except MemoryError:
        _fail(
            "Error: this machine's memory is full.\n-> use a smaller batch or a shorter row (`lengthen plan RECIPE`)", 1
        )
    except Exception as error:
        _other(error)


def _other(error: Exception) -> None:
    usage = getattr(error, "format_message", None)
    if usage is not None:  # click's usage errors: an unknown option, a missing argument
        context: Any = getattr(error, "ctx", None)
        help_hint = f"\n-> {context.command_path} --help" if context is not None else ""
        _fail(f"Error: {usage()}{help_hint}", 2)
    if _debug["on"]:
        raise error
    text = str(error).strip().splitlines()
    _fail(
        f"Error: something unexpected went wrong: {type(error).__name__}: {text[0] if text else ''}\n"
        "-> run it again with `lengthen --debug ...` for the details; what is done is kept",
        1,
    )


def _fail(text: str, code: int) -> None:
    if _debug["on"] and sys.exc_info()[1] is not None:
        import traceback

        traceback.print_exc()
    sys.stderr.write(f"\n{text}\n")
    raise SystemExit(code)
