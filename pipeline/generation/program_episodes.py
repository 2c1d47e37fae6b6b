"""Episodes of the user's own agent: a rollout is one run of a program whose chat calls the policy answers.

The program runs as it is, with OPENAI_BASE_URL and OPENAI_API_KEY of its own session and the row on stdin. All programs
take their turns together: a batch is sampled when each of them waits for an answer or has ended. So what a batch holds
does not depend on how fast they are, and a deterministic program gives the same bytes again.

How an episode ends (`ended_by`): `answer`, the program ended by itself; `max_turns`, `max_tokens`, `context`, a limit
refused a call, and the program ended or was ended after that. `program_failed` (another exit code than 0, or no call at
all) and `program_timeout` are faults: the episode has no score, unless program.score_failures.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.schema import Program, Prompts, Sampling
from pipeline.data import chat_template
from pipeline.distributed import ranks
from pipeline.generation.episode_rows import EpisodeRow, rollouts_of
from pipeline.generation.generator import Generator, Request, Sample
from pipeline.generation.openai_api import ApiError
from pipeline.generation.policy_calls import CallLimits, CallPlayer, Prepared, Recorded
from pipeline.generation.program_runs import Guard, ProgramRun, printed, program_path
from pipeline.generation.proxy import Proxy, ProxySession, Waiting
from pipeline.records import Prompt, Rollout
from pipeline.seeds import derive
from verifiers._secrets import hidden

MAX_REFUSED = 8  # calls after a limit; then the program is ended


@dataclass(slots=True)
class _ProgramEpisode:
    start: Prompt
    number: int  # among all episodes of the call
    sample: int
    key: tuple[int | str, ...]
    seconds_left: float  # of its own work
    recorded: Recorded = field(default_factory=Recorded)
    session: ProxySession | None = None
    run: ProgramRun | None = None
    working_since: float = 0.0
    refused: int = 0
    late: bool = False

    @property
    def killed(self) -> bool:
        return self.late or self.refused > MAX_REFUSED

    @property
    def ended(self) -> bool:
        return self.killed or (self.run is not None and self.run.ended is not None)


@dataclass(frozen=True, slots=True)
class _Turn:
    one: _ProgramEpisode
    waiting: Waiting
    prepared: Prepared


class ProgramPlayer:
    """Plays episodes with the user's program, on one tokenizer and its chat template."""

    def __init__(
        self, settings: Program, source: Prompts, tokenizer: Any, stop_token_ids: frozenset[int], *, context: int
    ) -> None:
        """source: the run's prompts. context: of the engine, in tokens. Raises ConfigError without a chat template."""
        if tokenizer.chat_template is None:
            raise ConfigError(["program: the model has no chat template, which renders a program's calls; set "
                               "model.chat_template"])  # fmt: skip
        self.settings, self.tokenizer, self.stop_token_ids = settings, tokenizer, stop_token_ids
        self.source, self.context = source, context

    def play(
        self, generator: Generator, prompts: Sequence[Prompt], sampling: Sampling, *, samples: int,
        key: tuple[int | str, ...], on_done: Callable[[int, Rollout], None] | None = None,
    ) -> list[Rollout]:  # fmt: skip
        """`samples` episodes of each prompt, prompt-major, the rows of an episode adjacent.

        The seed of a turn is a function of (key, prompt index, sample, turn), whatever else is played with it.
        on_done: gets (number of the episode, its last row) when all are played.
        """
        episodes = [
            _ProgramEpisode(prompt, n * samples + sample, sample, (*key, n, sample), self.settings.timeout_s)
            for n, prompt in enumerate(prompts) for sample in range(samples)
        ]  # fmt: skip
        mine = [episodes[i] for i in ranks.share(len(episodes))]
        limits = CallLimits(self.settings.max_turns, self.settings.max_tokens, self.context)
        calls = CallPlayer(self.tokenizer, self.source, sampling, self.stop_token_ids, limits,
                           format_name=self.settings.format)  # fmt: skip
        guard = Guard()
        try:
            with Proxy() as proxy:
                self._run_all(generator, sampling, calls, proxy, guard, mine)
        finally:
            for one in mine:
                if one.run is not None:
                    one.run.kill()
            guard.close()
        by_number = dict(ranks.gather([(one.number, self._rollouts(one)) for one in mine]))
        played = [by_number[number] for number in range(len(episodes))]
        if on_done is not None:
            for number, rows in enumerate(played):
                on_done(number, rows[-1])
        return [row for rows in played for row in rows]

    # --- rounds ---------------------------------------------------------------------------------------------------

    def _run_all(
        self, generator: Generator, sampling: Sampling, calls: CallPlayer, proxy: Proxy, guard: Guard,
        mine: Sequence[_ProgramEpisode],
    ) -> None:  # fmt: skip
        """Rounds, on every rank equally many, until every program has ended."""
        waiting, live = deque(mine), list[_ProgramEpisode]()
        while True:
            while waiting and len(live) < self.settings.concurrency:
                live.append(self._start(waiting.popleft(), proxy, guard))
            _settle(live, proxy)
            for one in live:
                if one.ended:
                    self._finish(one, proxy)
            live = [one for one in live if not one.ended]
            turns = [turn for one in live for turn in self._prepared(one, calls, proxy)]
            requests = [request for turn in turns for request in turn.prepared.requests]
            numbered = ranks.gather([(ranks.rank(), request) for request in requests])
            if not any(ranks.gather([bool(live or waiting)])):
                return
            drawn = _sampled(generator, sampling, self.stop_token_ids, numbered)
            self._answer(turns, iter(drawn), calls)

    def _start(self, one: _ProgramEpisode, proxy: Proxy, guard: Guard) -> _ProgramEpisode:
        one.session = proxy.open()

        def wake() -> None:
            with proxy.changed:
                proxy.changed.notify_all()

        environment = program_environment(proxy.url, one.session.key, seed=derive(*one.key))
        row = {"prompt": one.start.text, "task": dict(one.start.task), **one.start.row}
        one.run = ProgramRun(self.settings.command, environment, row, guard, wake)
        one.working_since = time.monotonic()
        return one

    def _finish(self, one: _ProgramEpisode, proxy: Proxy) -> None:
        assert one.run is not None and one.session is not None
        one.run.kill()
        proxy.close(one.session)

    def _prepared(self, one: _ProgramEpisode, calls: CallPlayer, proxy: Proxy) -> Iterator[_Turn]:
        """The call that waits, if it can be sampled; one that cannot is refused. Further ones wait for their turn."""
        assert one.session is not None
        with proxy.changed:
            waiting = one.session.queue.popleft() if one.session.queue else None
        if waiting is None:
            return
        one.seconds_left -= max(0.0, waiting.arrived - one.working_since)
        try:
            prepared = calls.prepare(one.recorded, waiting.call, one.key)
        except ApiError as exc:
            one.refused += bool(one.recorded.limit)
            one.working_since = time.monotonic()
            waiting.refuse(exc)
            return
        yield _Turn(one, waiting, prepared)

    def _answer(self, turns: Sequence[_Turn], drawn: Iterator[Sample], calls: CallPlayer) -> None:
        answers = []
        for turn in turns:
            samples = list(islice(drawn, len(turn.prepared.requests)))
            answers.append(calls.record(turn.one.recorded, turn.prepared, samples, str(turn.one.number)))
        for turn, body in zip(turns, answers, strict=True):
            turn.one.working_since = time.monotonic()
            turn.waiting.answer(body)

    # --- the end --------------------------------------------------------------------------------------------------

    def _rollouts(self, one: _ProgramEpisode) -> list[Rollout]:
        """The rows of an episode; the last one has its record."""
        recorded = one.recorded
        return rollouts_of(
            recorded.rows or [EpisodeRow(one.start.ids)], one.start, sample=one.sample, tokenizer=self.tokenizer,
            text=chat_template.text_of(recorded.messages), record=self._record(one),
        )  # fmt: skip

    def _record(self, one: _ProgramEpisode) -> dict[str, Any]:
        assert one.run is not None
        recorded = one.recorded
        ended = None if one.killed else one.run.ended  # what a killed one printed depends on when it was killed
        answer, reward, fault = None, None, ""
        try:
            answer, reward = printed(ended.stdout) if ended is not None else (None, None)
        except ValueError as exc:
            fault = str(exc)
        how = recorded.limit or "answer"
        if one.late:
            how, fault = "program_timeout", f"the program worked longer than {self.settings.timeout_s:g} s"
        elif recorded.turns == 0 and not recorded.limit:
            no_call = "the program made no call"
            how, fault = "program_failed", no_call if ended is None or ended.exit_code == 0 else ended.reason
        elif fault or (not recorded.limit and ended is not None and ended.exit_code != 0):
            how, fault = "program_failed", fault or (ended.reason if ended is not None else "")
        if self.settings.score_failures and recorded.turns:
            fault = ""
        return {
            "answer": recorded.answer if answer is None else answer, "ended_by": how, "fault": hidden(fault),
            "turns": recorded.turns, "calls": recorded.calls, "tool_errors": 0,
            "malformed_calls": recorded.malformed_calls, "reward": reward, "messages": recorded.messages,
        }  # fmt: skip


def _settle(live: Sequence[_ProgramEpisode], proxy: Proxy) -> None:
    """Wait until each program waits for an answer or has ended; one that works too long has ended."""
    with proxy.changed:
        while True:
            now, wait = time.monotonic(), math.inf
            for one in live:
                assert one.session is not None
                if one.ended or one.session.queue:
                    continue
                left = one.seconds_left - (now - one.working_since)
                one.late = left <= 0
                wait = wait if one.late else min(wait, left)
            if math.isinf(wait):
                return
            proxy.changed.wait(wait)


def _sampled(
    generator: Generator, sampling: Sampling, stop_token_ids: frozenset[int], numbered: Sequence[tuple[int, Request]]
) -> list[Sample]:
    """This rank's samples of the requests of all ranks, in order."""
    drawn = generator.sample([request for _, request in numbered], sampling, stop_token_ids) if numbered else []
    return [sample for (rank, _), sample in zip(numbered, drawn, strict=True) if rank == ranks.rank()]


def program_environment(url: str, key: str, *, seed: int) -> dict[str, str]:
    """The environment of a program: this process's own, with the endpoint. `python` is this interpreter."""
    own = os.environ
    local = ",".join(filter(None, ["127.0.0.1,localhost", own.get("NO_PROXY") or own.get("no_proxy")]))
    return {
        "PYTHONHASHSEED": "0",  # else the order of a set differs between two runs of a program
        **own,
        "PATH": program_path(),
        "OPENAI_BASE_URL": url, "OPENAI_API_KEY": key, "OPENAI_MODEL": "policy",
        "NO_PROXY": local, "no_proxy": local,  # a proxy of the machine cannot reach the endpoint
        "WHETSTONE_SEED": str(seed),
    }  # fmt: skip


__all__ = ["ProgramPlayer", "program_environment"]
