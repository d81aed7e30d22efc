"""`memcodec models`: the built-in models and the cache."""

import shutil

import click

from memcodec.models import registry
from memcodec_cli.names import print_line, result_name
from memcodec_cli.options import QuietOptions, takes_options
from memcodec_cli.progress import ProgressBar


@click.group()
def models() -> None:
    """List, download, locate and remove the built-in models."""


@models.command("list")
def list_models() -> None:
    """List the built-in models, and whether each is in the cache."""
    for name, model in registry.BUILT_IN.items():
        state = "cached" if registry.cached(name) else "not cached"
        default = ", default" if name == registry.DEFAULT_MODEL else ""
        click.echo(f"{name}  {state}{default}  {model.about}")


@models.command()
@click.argument("name", metavar="NAME")
@takes_options
def pull(name: str, progress: QuietOptions) -> None:
    """Download the built-in model NAME into the cache, if it is not there.

    Other commands download the model that they need by themselves.

    \b
    Example:
      memcodec models pull smollm2-135m
    """
    with ProgressBar(progress.quiet) as bar:
        registry.pull(name, bar.download)


@models.command("rm")
@click.argument("name", metavar="NAME")
def remove(name: str) -> None:
    """Remove the built-in model NAME from the cache, and print the size freed in MB."""
    folder = registry.place_of(name)  # also what another version has left there
    if not folder.is_dir():
        raise click.ClickException(f"{name} is not in the cache")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    click.echo(f"{name}: removed, {size / 1e6:.0f} MB")


@models.command()
@click.argument("name", metavar="NAME")
def path(name: str) -> None:
    """Print the directory of the built-in model NAME in the cache."""
    folder = registry.cached(name)
    if folder is None:
        raise click.ClickException(f"{name} is not in the cache: download it with memcodec models pull {name}")
    print_line(result_name(str(folder)))
