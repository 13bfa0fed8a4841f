"""The ``labctl`` command and what its subcommands share."""

import sys

import click

from labctl import __version__, settings
from labctl.cli.check import check
from labctl.cli.db import db
from labctl.cli.demo import demo
from labctl.cli.token import token
from labctl.cli.up import up
from labctl.cli.user import user
from labctl.cli.worker import worker
from labctl.errors import LabError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="labctl")
def cli() -> None:
    """Run a test lab's control plane.

    Settings come from the environment (LABCTL_<NAME>) and from the file named by LABCTL_CONFIG; config.py.in lists
    them all.
    """


for command in (up, worker, check, db, user, token, demo):
    cli.add_command(command)


def main() -> None:
    """Run the command; what is wrong is one line on standard error and exit code 1."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except LabError as error:
        message = error.message if error.field is None else f"{error.field}: {error.message}"
        sys.exit(f"labctl: {message}")
    except settings.SettingsError as error:
        sys.exit("labctl: the settings are not valid:\n  " + str(error).replace("\n", "\n  "))


if __name__ == "__main__":
    main()
