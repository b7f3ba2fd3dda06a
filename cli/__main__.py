"""`script/punctual`: the command line."""

import click

from cli.audit import audit
from cli.console import Console
from cli.forecast import forecast
from cli.keys import keys
from cli.overview import cluster, incidents, preview, stats
from cli.runs import runs
from cli.tasks import tasks
from cli.transfer import export, import_

DEFAULT_URL = "http://127.0.0.1:8000"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", envvar="PUNCTUAL_URL", default=DEFAULT_URL, show_default=True, help="Or PUNCTUAL_URL.")
@click.pass_context
def main(ctx: click.Context, url: str) -> None:
    """Punctual over its REST API. The key comes from PUNCTUAL_KEY, or from the file that PUNCTUAL_KEY_FILE names.

    Exit code 1: it was refused, or makes no sense. 2: nobody answers, or the command is called wrongly.
    """
    ctx.obj = Console(url=url)
    ctx.call_on_close(ctx.obj.close)


for command in (tasks, runs, keys, preview, audit, export, import_, incidents, stats, forecast, cluster):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="punctual")
