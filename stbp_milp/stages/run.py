"""Runs stages one after the other, within limits, and turns whatever happens into an outcome or a known error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from stbp_milp.attack import Judge
from stbp_milp.devices import exact_products
from stbp_milp.errors import InternalError, OutOfTimeError, StbpError
from stbp_milp.memory import is_exhaustion, limited
from stbp_milp.query import Configuration, Query
from stbp_milp.search import Deadline, SearchEnd
from stbp_milp.stages.checks import compare
from stbp_milp.stages.context import Context, OnProgress, State
from stbp_milp.stages.ending import interrupted
from stbp_milp.strategy import Strategy
from stbp_milp.verdict import Progress

Stage = Callable[[Context, State], None]


def run(context: Context, state: State, stages: Sequence[Stage]) -> None:
    """Runs the stages in order, until one ends the run, a counterexample is found, or time runs out.

    Raises:
        SoundnessError: a proved bound contradicts an observed margin.
    """
    try:
        with limited(context.memory_limit):
            for stage in stages:
                if state.end is not None or state.judge.found:
                    return
                if context.deadline.expired() and stage is not stages[0]:
                    state.end = SearchEnd.EXPIRED
                    return
                stage(context, state)
                compare(context, state)
    except OutOfTimeError:
        state.end = SearchEnd.EXPIRED
    except (MemoryError, RuntimeError) as error:  # raised where no batch could be halved
        if not is_exhaustion(error):
            raise
        state.short_of_memory, state.end = True, SearchEnd.GIVEN_UP
    finally:
        state.search = state.expander = None  # frees their memory for what follows


@contextmanager
def started(
    query: Query,
    configuration: Configuration,
    strategy: Strategy,
    on_progress: OnProgress | None,
    deadline: Deadline | None,
) -> Iterator[tuple[Context, State]]:
    """Yields the context of a run and an empty state; faults leave the block as errors of this package.

    An exception that is not an `StbpError` was not foreseen, so its type cannot be named here. It is not swallowed: an
    `InternalError` is raised with what was known and with the exception as its cause, so that tests still fail on it.
    Errors of the caller's `on_progress` belong to the caller and pass through.
    """
    caller, known = _Caller(on_progress), None
    try:
        query.check()
        with _computing(configuration):
            context = Context.of(query, configuration, strategy, caller, deadline)
            known = context, State(judge=Judge(context.query, context.set))
            yield known
    except StbpError:
        raise
    except Exception as error:
        if error is caller.error:
            raise
        if is_exhaustion(error):
            raise MemoryError(f"out of memory: {error}") from error
        raise _internal_error(error, known) from error


class _Caller:
    """The caller's `on_progress`, and the error that it raised, if any."""

    def __init__(self, report: OnProgress | None) -> None:
        self.report = report
        self.error: Exception | None = None

    def __call__(self, progress: Progress) -> None:
        if self.report is not None:
            try:
                self.report(progress)
            except Exception as error:
                self.error = error
                raise


def _internal_error(error: Exception, known: tuple[Context, State] | None) -> InternalError:
    what = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    report = "this is a fault of stbp-milp; please report it with the model, the clip and the options"
    if known is None:
        return InternalError(f"{what}; {report}")
    outcome = interrupted(*known, what)
    return InternalError(
        f"{what}; {report}. By then the margin was proved to be at least {outcome.lower:g}, and "
        f"{outcome.upper:g} was the smallest observed",
        outcome,
    )


@contextmanager
def _computing(configuration: Configuration) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(configuration.threads)
    try:
        with exact_products():
            yield
    finally:
        torch.set_num_threads(threads)
