"""`memcodec models`: the built-in models and the cache."""

import shutil

import click

from memcodec.models import registry
from memcodec_cli import options
from memcodec_cli.progress import Bars


@click.group()
def models() -> None:
    """List, fetch and find the built-in models."""


@models.command("list")
def list_models() -> None:
    """List the built-in models and whether they are in the cache."""
    for name, model in registry.BUILT_IN.items():
        state = "cached" if registry.cached(name) else "not cached"
        default = ", default" if name == registry.DEFAULT_MODEL else ""
        click.echo(f"{name}  {state}{default}  {model.about}")


@models.command()
@click.argument("name", metavar="NAME")
@options.quiet
def pull(name: str, quiet: bool) -> None:
    """Fetch the built-in model NAME into the cache, unless it is there."""
    with Bars(quiet) as bars:
        registry.pull(name, bars.model)


@models.command("rm")
@click.argument("name", metavar="NAME")
def remove(name: str) -> None:
    """Remove the built-in model NAME from the cache."""
    folder = registry.cached(name)
    if folder is None:
        raise click.ClickException(f"{name} is not in the cache")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    click.echo(f"{name}: removed, {size / 1e6:.0f} MB")


@models.command()
@click.argument("name", metavar="NAME")
def path(name: str) -> None:
    """Print the folder of the built-in model NAME in the cache."""
    folder = registry.cached(name)
    if folder is None:
        raise click.ClickException(f"{name} is not in the cache: fetch it with memcodec models pull {name}")
    click.echo(click.format_filename(folder))
