"""How commands read their options and end: bad input is one sentence and status 2, whoever refuses it. Imports no torch."""

import errno
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import fields
from typing import Annotated, Any, NoReturn, TypeVar, get_origin, get_type_hints

import tyro

O = TypeVar("O")  # noqa: E741 (options)
USAGE_ERROR = 2
INTERRUPTED = 128 + 2  # as shells say of SIGINT
BROKEN_PIPE = 128 + 13
NO_HINT = tyro.conf.arg(help_behavior_hint="")  # "(default: None)" says nothing: the help text says what happens then
UNUSABLE_PATH = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


def parse(options: type[O], arguments: Sequence[str] | None = None) -> O:
    """Parse the command line into the dataclass `options`; bad input is one sentence on stderr and exit status 2.

    tyro would draw boxes around what the dataclass refuses; so it fills a twin that refuses nothing.
    """
    hints = get_type_hints(options, include_extras=True)
    unsaid = {item.name: Annotated[hints[item.name], NO_HINT] for item in fields(options) if item.default in (None, (), "")}  # type: ignore[arg-type]
    body = {"__post_init__": lambda _: None, "__doc__": options.__doc__, "__module__": options.__module__, "__annotations__": unsaid}
    twin = type(options.__name__, (options,), body)
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            given: Any = tyro.cli(twin, args=arguments, config=(tyro.conf.SuppressFixed,))
    except SystemExit as end:
        if end.code:
            lists = {f"--{name.replace('_', '-')}" for name, hint in hints.items() if get_origin(hint) is tuple}
            refuse(_sentence(box.getvalue(), lists))
        raise
    try:
        return options(**{item.name: getattr(given, item.name) for item in fields(options)})  # type: ignore[arg-type]
    except (ValueError, KeyError) as error:
        refuse(str(error.args[0]) if error.args else str(error))
    except OSError as error:
        refuse_path(error)


def _sentence(box: str, lists: set[str]) -> str:
    """Return in one line what tyro says in a box, above its rule; of a number that is none and of a choice, in our words.

    `lists` are the options of several values: whoever separates them otherwise than by blanks is told so.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()  # it has colours where stdout is a terminal
    drawn = [line for line in plain if line.startswith("│")] or plain[2:]  # below title and rule, where it isn't drawn, as in ASCII
    lines = [line.strip("│ ") for line in drawn]
    rule = next((index for index, line in enumerate(lines) if set(line) in ({"─"}, {"-"})), len(lines))
    text = " ".join(filter(None, lines[:rule])) or box.strip()
    if choice := re.match(r"invalid choice '(.*)' for argument '(.+)'\. Expected one of \((.*)\)\.$", text):
        value, name, known = choice.groups()
        return f"{name} is {value}; accepted{', separated by blanks' if name in lists else ''}: {known.replace(chr(39), '').rstrip(',')}"
    if values := re.match(r"Error parsing (--\S+): Could not find valid parse for arguments: \[(.*)\]", text):
        return f"{values[1]} is {values[2].replace(chr(39), '')}; accepted: numbers, separated by blanks"
    number = re.match(r"Error parsing (--\S+): .*?\b(int|float)\b.*?'([^']*)'", text, re.IGNORECASE)
    if number is None:
        return f"{text} (see --help)"
    name, kind, value = number.groups()
    return f"{name} is {value}; accepted: a {'whole ' if kind.lower() == 'int' else ''}number"


def refuse(sentence: str) -> NoReturn:
    """End the command: bad input."""
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(USAGE_ERROR)


def refuse_path(error: OSError) -> NoReturn:
    """End the command where a path that was given can't be used; raises what is no fault of a path's."""
    if error.errno not in UNUSABLE_PATH or error.filename is None:
        raise error
    refuse(f"{error.filename} can't be used ({error.strerror}); accepted: a path that can be read")


def run_command(main: Callable[[], int]) -> NoReturn:
    """End the process with the command's status: 130 after Ctrl-C, 141, as shells say of SIGPIPE, once nobody reads it (`| head`)."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = INTERRUPTED
    except OSError as error:
        refuse_path(error)
    raise SystemExit(status)
