"""In place of `gnewton train` where only its files, signals and exit codes matter: no torch, no time.

The loss is (log10 r + 2)² for the learning rate or step_size r, 1 / (1 + loss) is the accuracy; rates above
0.5 diverge. There is a row for each of trainer.epochs, with losses that fall to it, and a run ends at
trainer.early_stop.bounds.

GNEWTON_STAND_IN says in JSON what becomes of the run with a seed: done (default), raise, kill, exit, exit0,
bad_input, diverge, flaky (fails unless it is resumed), wait (until there is a file called go) or stubborn
(wait, deaf to SIGTERM). Each start appends a line of JSON to starts.jsonl in the working directory.
"""

import json
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

overrides = dict(word.split("=", 1) for word in sys.argv[2:] if "=" in word)
resumed = "resume" in overrides
if resumed:
    run = Path(overrides["resume"].strip("'"))
    config = json.loads((run / "config.yaml").read_text())
else:
    rate = overrides.get("optimizer.lr", overrides.get("optimizer.step_size", 0.01))
    config = {"seed": int(overrides.get("seed", "0")), "rate": float(rate)}
    run = Path(overrides["output_root"].strip("'")) / "run" / f"{time.time_ns()}_00000000"
    run.mkdir(parents=True)
    (run / "environment.json").write_text("{}")
    (run / "config.yaml").write_text(json.dumps(config))
seed, rate = str(config["seed"]), config["rate"]
behaviour = json.loads(os.environ["GNEWTON_STAND_IN"]).get(seed, "done")


def result(**content):
    (run / "aside").write_text(json.dumps(content))
    (run / "aside").rename(run / "result.json")


def stop(number, frame):
    result(status="interrupted", message="interrupted by SIGTERM")
    sys.exit(143)


signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else stop)
line = {
    "seed": seed,
    "resumed": resumed,
    "pid": os.getpid(),
    "threads": os.environ.get("OMP_NUM_THREADS"),
    "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
    "time": time.time(),
}
with Path("starts.jsonl").open("a") as file:
    file.write(json.dumps(line) + "\n")
print("started", seed, flush=True)
while behaviour in ("wait", "stubborn") and not Path("go").exists():
    time.sleep(0.02)
if behaviour == "raise" or (behaviour == "flaky" and not resumed):
    result(status="failed", message="a defect")
    raise RuntimeError("a defect")
if behaviour == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "exit":
    os._exit(7)
if behaviour == "exit0":
    sys.exit(0)
if behaviour == "bad_input":
    print("gnewton: seed: not today", file=sys.stderr)
    sys.exit(2)
if behaviour == "diverge" or rate > 0.5:
    result(status="diverged", message="the loss is nan at step 3")
    sys.exit(3)
loss = (math.log10(rate) + 2) ** 2
accuracy = 1 / (1 + loss)
columns = "epoch,step,train_seconds,train_loss,validation_loss,test_loss,validation_accuracy,test_accuracy"
bounds = [float(bound) for bound in re.findall(r"[\d.e+-]+", overrides.get("trainer.early_stop.bounds", ""))]
epochs, status, rows = int(overrides.get("trainer.epochs", "1")), "done", []
for epoch in range(1, epochs + 1):
    value = loss * epochs / epoch
    rows.append(f"{epoch}.0,{10 * epoch},0.5,{value},{value},{value},{accuracy},{accuracy}")
    if epoch < epochs and epoch <= len(bounds) and value > bounds[epoch - 1]:
        status = "stopped"
        break
(run / "metrics.csv").write_text("\n".join([columns, *rows, ""]))
result(status=status, metrics={"validation_accuracy": 0.5})
