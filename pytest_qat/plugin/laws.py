"""`--qat-ops` and `--qat-replay` as collectors and items: one item per implementation and law, one per saved file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_qat.core import progress
from pytest_qat.errors import CheckFailed, DataError, QATError
from pytest_qat.plugin.items import CommandLineItem

if TYPE_CHECKING:
    from pytest_qat.plugin.session import QATSession
    from pytest_qat.properties.law import Law
    from pytest_qat.properties.runner import Failure

__all__ = ["LawItem", "OpsCollector", "ReplayCollector", "ReplayItem"]

_CACHE = "qat-laws"
_MOST_S = 300.0
"""Time after which a law counts as hanging on a user's implementation; most laws take less than a second."""


class OpsCollector(pytest.Collector):
    """One `--qat-ops` reference; collecting it loads the implementations and makes an item per law."""

    def __init__(self, *, qat: QATSession, reference: str, **kwargs: Any) -> None:
        super().__init__(nodeid=f"qat-ops:{reference}", **kwargs)
        self.qat = qat
        self.reference = reference

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        """Yield an item per law, below a collector per implementation where there are several.

        Raises:
            CollectError: the reference, or what it gives, is bad.
        """
        try:
            found = self.qat.implementations(self.reference)
        except QATError as error:
            raise self.CollectError(f"--qat-ops={self.reference}: {error}") from None
        if len(found) == 1:
            yield from _items(self, found[0])
            return
        for ops in found:
            yield _OneOfSeveral.from_parent(self, name=f"{self.name}[{ops.name}]", ops=ops)


class _OneOfSeveral(pytest.Collector):
    """One of the implementations that a reference gives, where it gives several."""

    parent: OpsCollector

    def __init__(self, *, ops: Any, parent: OpsCollector, **kwargs: Any) -> None:
        super().__init__(nodeid=f"{parent.nodeid}[{ops.name}]", parent=parent, **kwargs)
        self.qat = parent.qat
        self.reference = parent.reference
        self._ops = ops

    def collect(self) -> Iterator[pytest.Item]:
        """Yield an item per law."""
        yield from _items(self, self._ops)


def _items(parent: OpsCollector | _OneOfSeveral, ops: Any) -> Iterator[LawItem]:
    from pytest_qat.properties.known_issues import known_issue
    from pytest_qat.properties.laws import laws_for
    from pytest_qat.properties.targets import TORCH

    for law in laws_for(ops):
        item = LawItem.from_parent(parent, name=law.name, law=law, ops=ops)
        issue = known_issue(ops.name, law.name) if parent.reference == TORCH else None
        if issue is not None:
            strict = parent.qat.options.fuzz_s is None  # random examples may miss it
            item.add_marker(pytest.mark.xfail(reason=str(issue), raises=CheckFailed, strict=strict))
        yield item


class LawItem(CommandLineItem):
    """One law of one implementation."""

    parent: OpsCollector | _OneOfSeveral

    def __init__(self, *, law: Law, ops: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.law = law
        self.ops = ops

    def runtest(self) -> None:
        """Try the law: on a fixed number of examples, or for this item's share of the fuzzing time.

        Raises:
            CheckFailed: the law does not hold; the smallest examples are printed and saved.
        """
        from pytest_qat.properties.runner import check_law, fuzz_law

        qat = self.parent.qat
        share_s = qat.fuzz_share_s
        seed = qat.options.seed if share_s is None else qat.fuzz_seed

        def check(law: Law) -> list[Failure]:
            if share_s is not None:
                return fuzz_law(law, self.ops, seconds=share_s, seed=seed)
            failure = check_law(law, self.ops, seed=seed)
            return [] if failure is None else [failure]

        with progress.step("", subject=self.nodeid, budget_s=share_s):
            failures = _failures(check, self.law, self.ops, reference=self.parent.reference,
                                 timeout_s=_MOST_S + (share_s or 0.0))
        if failures:
            raise CheckFailed([self.law.summary,
                               *(line for failure in failures for line in self._lines(failure, seed))])

    def _lines(self, failure: Failure, seed: int) -> list[str]:
        from pytest_qat.properties.replay import write_saved

        reference = self.parent.reference
        cache = getattr(self.config, "cache", None)
        again = f"pytest --qat-ops={reference} -k {self.law.name}"
        if cache is not None and failure.example is not None:
            with contextlib.suppress(OSError, QATError):  # the failure is reported even if the cache is read-only
                path = write_saved(failure, Path(cache.mkdir(_CACHE)), reference=reference, seed=seed)
                again = f"pytest --qat-replay={_short(path, self.config)}"
        return [*failure.lines, f"to run it again: {again}"]


class ReplayCollector(pytest.Collector):
    """One `--qat-replay` path: a saved example, or a folder of them."""

    def __init__(self, *, qat: QATSession, path: Path, **kwargs: Any) -> None:
        super().__init__(nodeid=f"qat-replay:{kwargs['name']}", **kwargs)
        self.qat = qat
        self._path = path

    def collect(self) -> Iterator[pytest.Item]:
        """Yield an item per file.

        Raises:
            CollectError: there is no such file, or no saved example in the folder.
        """
        from pytest_qat.properties.replay import saved_files

        try:
            files = saved_files(self._path)
        except QATError as error:
            raise self.CollectError(f"--qat-replay={self.name}: {error}") from None
        for file in files:
            yield ReplayItem.from_parent(self, name=file.stem, file=file)


class ReplayItem(CommandLineItem):
    """One saved example; it passes if its law holds now."""

    parent: ReplayCollector

    def __init__(self, *, file: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.file = file

    def runtest(self) -> None:
        """Try the law on the saved example again.

        Raises:
            CheckFailed: the law still does not hold.
            QATError: the file or its implementation cannot be used.
        """
        from pytest_qat.properties.replay import read_saved
        from pytest_qat.properties.runner import check_example

        saved = read_saved(self.file)
        found = {ops.name: ops for ops in self.parent.qat.implementations(saved.reference)}
        if saved.ops not in found:
            raise DataError(f"{self.file.name} is about the implementation {saved.ops!r}, but {saved.reference} gives "
                            f"only {', '.join(found)}.", hint="Delete the file, or restore the implementation.")
        if not saved.law.applies(found[saved.ops]):
            raise DataError(f"{self.file.name} is about the law {saved.law.name}, but {saved.ops!r} no longer has the "
                            "functions that this law tests.", hint="Delete the file, or restore the functions.")
        ops = found[saved.ops]

        def check(law: Law) -> list[Failure]:
            failure = check_example(law, ops, saved.example)
            return [] if failure is None else [failure]

        for failure in _failures(check, saved.law, ops, reference=saved.reference, timeout_s=_MOST_S):
            then = ", ".join(f"{package} {version}" for package, version in saved.versions.items())
            raise CheckFailed(["the law still does not hold.", saved.law.summary, *failure.lines,
                               f"first seen with {then}"])


def _failures(check: Callable[[Law], list[Failure]], law: Law, ops: Any, *, reference: str,
              timeout_s: float) -> list[Failure]:
    """Return the failures that a check finds; it runs in a child process, which a user's kernel may crash.

    PyTorch's own operators are checked in this process: they do not crash it, and their laws share built modules.
    """
    from pytest_qat.properties.forked import check_in_child
    from pytest_qat.properties.targets import TORCH

    return check(law) if reference == TORCH else check_in_child(check, law, ops, timeout_s=timeout_s)


def _short(path: Path, config: pytest.Config) -> str:
    """Return a path relative to the folder that pytest was started in, where it is below it."""
    here = config.invocation_params.dir
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
