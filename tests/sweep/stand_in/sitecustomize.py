"""Put on PYTHONPATH: lets `python -m gnewton train` misbehave as a test asks, in every process that runs it.

GNEWTON_STAND_IN: run the stand-in beside this file, which needs no torch, instead of the real one.
GNEWTON_FAULTS: in the real one, what happens when training begins, by override: raise or kill.
"""

import json
import os
import signal
import sys
from pathlib import Path

if sys.orig_argv[1:4] == ["-m", "gnewton", "train"]:
    if "GNEWTON_STAND_IN" in os.environ:
        sys.path.insert(0, str(Path(__file__).parent / "package"))
    for override, fault in json.loads(os.environ.get("GNEWTON_FAULTS", "{}")).items():
        if override in sys.orig_argv:
            from gnewton.training.trainer import Trainer

            def fit(self, fault=fault):
                if fault == "raise":
                    raise RuntimeError("a defect")
                os.kill(os.getpid(), signal.SIGKILL)

            Trainer.fit = fit
