"""What can be named: policies, routers, each with its class and the static settings that a fair comparison tries."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slo_opt.domain.errors import InvalidInputError
from slo_opt.policies.settings import check_setting, defaults_of
from slo_opt.traces.nearest import did_you_mean

Setting = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that can be named.

    Parameters
    ----------
    name, summary : str
        What users type, and one line about it.
    factory : str
        ``module:Class``; the class takes a context and the keywords of one setting.
    settings : tuple of mapping
        Static settings to try, the default first.
    compiles : bool
        Whether it plans with the DP, whose kernels are compiled once a machine: see `Catalogue.prepare`.
    """

    name: str
    summary: str
    factory: str
    settings: tuple[Setting, ...] = field(default=({},))
    compiles: bool = False


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Entries by name, and any class of one's own as ``module:Class``.

    Parameters
    ----------
    kind : str
        What they are, for messages.
    entries : dict of str to Entry
        The known ones.
    """

    kind: str
    entries: dict[str, Entry]

    def entry(self, name: str) -> Entry:
        """The entry of that name.

        Raises
        ------
        InvalidInputError
            There is none; the message suggests the nearest.
        """
        if ":" in name:
            return Entry(name, f"a {self.kind} of one's own", name, compiles=True)
        if name not in self.entries:
            hint = did_you_mean(name, self.entries)
            raise InvalidInputError(
                f"unknown {self.kind} {name!r}. {hint}Known: {', '.join(self.entries)}, or module:Class"
            )
        return self.entries[name]

    def prepare(self, names: Iterable[str], announce: Callable[[str, None], None] | None = None) -> None:
        """Compile what these need before their decisions are timed; quick where that has been done.

        Parameters
        ----------
        names : iterable of str
            Of entries.
        announce : callable or None
            Told what happens, before it does.

        Raises
        ------
        InvalidInputError
            An unknown name.
        """
        entries = [self.entry(name) for name in names]
        if not any(entry.compiles for entry in entries):
            return
        if announce is not None:
            announce("compiling the admission planner, once a machine", None)
        from slo_opt.policies.admission import compile_planner

        compile_planner()

    def full_setting(self, name: str, setting: Setting | None = None) -> dict[str, Any]:
        """Every keyword that it runs with: its constructor's defaults, its default setting, then `setting`."""
        entry = self.entry(name)
        return {**defaults_of(self._factory(entry)), **entry.settings[0], **(setting or {})}

    def make(self, name: str, context: Any, setting: Setting | None = None) -> Any:
        """A fresh object of the class; `setting` overrides its default one.

        Raises
        ------
        InvalidInputError
            Unknown name, or a setting that it does not have or refuses.
        """
        entry = self.entry(name)
        factory = self._factory(entry)
        keywords = {**entry.settings[0], **(setting or {})}
        check_setting(name, factory, keywords)
        return factory(context, **keywords)

    def _factory(self, entry: Entry) -> Any:
        module, _, attribute = entry.factory.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            if entry.name in self.entries:
                raise
            raise InvalidInputError(
                f"{self.kind} {entry.name!r} cannot be loaded: {error}; expected module:Class, with the module on "
                "Python's path"
            ) from error
