"""The process of a trial: started as soon as the config is read, so that it imports while the data is tokenized."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import IO, Any

from pipeline.config.load import Config, ConfigError
from pipeline.plan.trial import Inputs, Trial

TRIAL_S = 600.0  # limit for imports, the generator, some completions and some updates
BODY = "import sys; from pipeline.plan.trial import main; sys.exit(main(sys.stdin.buffer))"


class TrialProcess:
    """Context of a trial; leaving it ends the process. `measure` is called when nothing else runs."""

    def __init__(self, cfg: Config) -> None:
        self.cfg, self.started = cfg, time.monotonic()
        # files, not pipes: nobody reads them until the process ends
        self.output, self.errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", BODY], stdin=subprocess.PIPE, stdout=self.output, stderr=self.errors
        )
        self.trial: Trial | None = None
        self._send(cfg)

    def __enter__(self) -> TrialProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self._send(None)  # closes the pipe
        self.process.wait()
        self.output.close()
        self.errors.close()

    def measure(self, inputs: Inputs) -> Trial:
        """The trial with these inputs; that of the first call, if there are several.

        Raises ConfigError with the last line of its errors if it fails, or if it takes longer than TRIAL_S.
        """
        if self.trial is None:
            self._send(inputs)
            try:
                self.process.wait(max(TRIAL_S - (time.monotonic() - self.started), 0.0))
            except subprocess.TimeoutExpired:
                late = f"the model could not be tried out within {TRIAL_S:.0f} s; plan a smaller one here, or on a GPU"
                raise ConfigError([f"{self.cfg.path}: {late}"]) from None
            if self.process.returncode:
                reason = (lines_of(self.errors) or ["no output"])[-1]
                raise ConfigError([f"{self.cfg.path}: the model could not be tried out: {reason}"])
            self.trial = Trial(**json.loads(lines_of(self.output)[-1]))
        return self.trial

    def _send(self, message: Any) -> None:
        """None closes the pipe. A process that has ended already is reported by `measure`."""
        assert self.process.stdin is not None
        try:
            if message is None:
                self.process.stdin.close()
            else:
                pickle.dump(message, self.process.stdin)
                self.process.stdin.flush()
        except BrokenPipeError:
            pass


def lines_of(file: IO[bytes]) -> list[str]:
    """The lines written into a file."""
    file.seek(0)
    return file.read().decode(errors="replace").strip().splitlines()
