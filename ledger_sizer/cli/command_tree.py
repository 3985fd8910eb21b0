"""A tree of commands that builds a command only when it is called or helped: building all of them takes 10 ms."""

import inspect
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class Place(NamedTuple):
    """A command's name, its help, and what builds it."""

    name: str
    help: str
    build: Callable[[], Any]

    @classmethod
    def of(cls, function: Callable[..., Any], epilog: str) -> "Place":
        """Return the place of a function."""
        return cls(function.__name__.replace("_", "-"), inspect.getdoc(function) or "", lambda: built(function, epilog))

    @classmethod
    def of_group(cls, app: typer.Typer, name: str) -> "Place":
        """Return the place of a group, whose callback says what it does."""
        assert app.registered_callback is not None, f"{name} has a callback"
        return cls(name, inspect.getdoc(app.registered_callback.callback) or "", lambda: typer.main.get_group(app))


def built(function: Callable[..., Any], epilog: str) -> Any:
    """Build the command of a function."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command(epilog=epilog)(function)
    return typer.main.get_command(app)


class LazyCommands(MutableMapping[str, Any]):
    """Commands by name, built when they are read."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._places = {place.name: place for place in places}
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = self._places[name].build()
            self._built[name].name = name
        return self._built[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        del self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def unbuilt(self) -> list[TyperCommand]:
        """Return a command of each name that has its help and nothing else."""
        return [TyperCommand(name=place.name, help=place.help) for place in self._places.values()]


class CommandTree(TyperGroup):
    """The root of the tree. It lists its commands without building them."""

    commands: LazyCommands

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the names and the first line of each help."""
        TyperGroup(commands=self.commands.unbuilt()).format_commands(ctx, formatter)
