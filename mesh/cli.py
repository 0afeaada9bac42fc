"""The `mandate` command: arguments in, exit code out (0 done, 1 failed, 2 wrong usage, 3 not running)."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
from typing import TYPE_CHECKING

from mesh import background, console, status
from mesh.home import Home, HomeError
from mesh.services import REPLICAS_MAX, SERVICES
from mesh.settings import Runtime, SettingsError, load, readings
from mesh.sockets import PortError
from mesh.supervisor import StartError

if TYPE_CHECKING:
    from collections.abc import Callable

DONE, FAILED, NOT_RUNNING = 0, 1, 3
NAMES = tuple(service.name for service in SERVICES)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; a fault of the set-up is one line on standard error."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(given)
    options.given = given
    try:
        return options.command(options)
    except (HomeError, PortError, SettingsError, StartError) as error:
        console.complain(f"mandate: {error}")
        return FAILED
    except KeyboardInterrupt:  # before the supervisor listens to signals: nothing runs yet
        return FAILED


def _up(options: argparse.Namespace) -> int:
    from mesh import up  # noqa: PLC0415  # brings gRPC and the database driver, which `status` need not wait for

    home = Home.open(load(Runtime).home)
    if options.detach:
        again = [argument for argument in options.given if argument not in {"-d", "--detach"}]
        say = console.terminal()
        mesh = background.detach(home, [*again, "--into-log"])
        say("", up.greeting(mesh))
        say("", asyncio.run(up.invitation(mesh)))
        return DONE
    say = console.log(home.logs) if options.into_log else console.terminal()
    asyncio.run(up.up(up.replicas_of(options.replicas, options.only), say, inviting=not options.into_log))
    return DONE


def _down(options: argparse.Namespace) -> int:
    home = Home.existing(load(Runtime).home)
    if home is None:
        console.complain("mandate: not running")
        return NOT_RUNNING
    stopped = background.stop(home)
    if options.wipe:
        with home.lock():
            home.wipe()
        return DONE
    if not stopped:
        console.complain("mandate: not running")
    return DONE if stopped else NOT_RUNNING


def _status(options: argparse.Namespace) -> int:
    home = Home.existing(load(Runtime).home)
    found = status.recorded(home) if home and home.holder() is not None else None
    if found is None:
        console.complain("mandate: not running")
        return NOT_RUNNING
    console.terminal()("", found.to_json() if options.json else found.table())
    return DONE


def _migrate(_options: argparse.Namespace) -> int:
    from mesh import up  # noqa: PLC0415  # as for `up`

    asyncio.run(up.migrate_once(console.terminal()))
    return DONE


def _settings(options: argparse.Namespace) -> int:
    found = readings()
    say = console.terminal()
    if options.json:
        rows = [{"name": r.spec.name, "value": r.shown, "source": r.origin, "doc": r.spec.doc} for r in found]
        say("", json.dumps(rows, indent=2))
        return DONE
    widths = [max(len(row) for row in column) for column in zip(*((r.spec.name, r.shown) for r in found), strict=True)]
    for reading in found:
        say("", f"{reading.spec.name:<{widths[0]}}  {reading.shown:<{widths[1]}}  {reading.origin}")
    return DONE


def _module(name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command that a module of its own carries out: `main(arguments)` of it is given what follows its name."""

    def run(options: argparse.Namespace) -> int:
        return importlib.import_module(name).main(options.given[1:])

    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mandate", description="Run the mesh on this machine.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(command=command)
        return made

    up = add("up", _up, "Start everything and stay; Ctrl-C drains and stops.")
    up.add_argument("-d", "--detach", action="store_true", help="return once it is ready")
    up.add_argument("--replicas", type=_replicas, default={}, metavar="NAME=N,…", help="how many of a service (1)")
    up.add_argument("--only", type=_names, default=(), metavar="NAME,…", help="these services and what they need")
    up.add_argument("--into-log", action="store_true", help=argparse.SUPPRESS)
    down = add("down", _down, "Stop a running mesh and wait until it is gone.")
    down.add_argument("--wipe", action="store_true", help="remove the state folder with all its data")
    shown = add("status", _status, "Show what runs.")
    shown.add_argument("--json", action="store_true", help="for programs")
    add("migrate", _migrate, "Bring the database to this version.")
    init = add("init", _module("mesh.handout"), "Prepare the database and a folder for each service that runs apart.")
    init.add_argument("--into", metavar="FOLDER", required=True, help="where the services' folders are")
    settings = add("settings", _settings, "List every setting, its value and where that came from.")
    settings.add_argument("--json", action="store_true", help="for programs")
    demo = add("demo", _module("mesh.demo"), "Do the main story once and print what happened.")
    demo.add_argument("--json", action="store_true", help="one JSON object; a running mesh is left running")
    verify = add("verify", _module("mesh.verify"), "Verify an exported audit trail without a database.")
    verify.add_argument("file", nargs="?", metavar="FILE", help="the export")
    verify.add_argument("--head", metavar="FILE", help="a line of an export, such as a signed head, that you trust")
    verify.add_argument("--key", metavar="FILE", help="the public key of the signer, or of one before, that you trust")
    verify.add_argument("--proof", metavar="FILE", help="a proof of one entry, in place of an export")
    keys = add("keys", _module("mesh.audit_keys"), "Show or replace the key that signs audit trails.")
    keys.add_argument("action", choices=("rotate", "show"))
    keys.add_argument("which", choices=("audit",))
    keys.add_argument("--file", metavar="FILE", help="the key file; $MANDATE_HOME/keys/audit.json")
    return parser


def _replicas(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, count = part.partition("=")
        if name not in NAMES or not count.isdecimal() or not 1 <= int(count) <= REPLICAS_MAX:
            message = f"{part!r} is not NAME=N with N from 1 to {REPLICAS_MAX} and NAME of {', '.join(NAMES)}"
            raise argparse.ArgumentTypeError(message)
        found[name] = int(count)
    return found


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in NAMES:
            message = f"{name!r} is not one of {', '.join(NAMES)}"
            raise argparse.ArgumentTypeError(message)
    return names
