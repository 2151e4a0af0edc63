"""Print a Markdown table of runs: the last row of each metrics.csv, grouped by configuration, over seeds.

usage: python scripts/table.py FOLDER [FOLDER ...]
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

COLUMNS = {
    "running_loss": "running loss",
    "train_loss": "train loss",
    "validation_accuracy": "validation accuracy",
    "test_accuracy": "test accuracy",
    "train_seconds": "training s",
    "step_ms": "ms/step",
    "summary_share": "summary share",
}


def read_run(folder: Path) -> dict[str, object] | None:
    """What one run folder says, or None if the run has no finished epoch."""
    metrics = pd.read_csv(folder / "metrics.csv")
    result = folder / "result.json"
    if metrics.empty:
        return None
    config = OmegaConf.load(folder / "config.yaml")
    seedless = {key: value for key, value in config.items() if key not in ("seed", "output_root")}
    digest = hashlib.sha256(
        json.dumps(OmegaConf.to_container(OmegaConf.create(seedless)), sort_keys=True).encode()
    )
    row = metrics.iloc[-1].to_dict()
    run = {name: row.get(name) for name in COLUMNS}
    run["step_ms"] = 1000 * row["train_seconds"] / row["step"]
    rates = folder / "rates.csv"
    if rates.exists():
        seconds = (
            pd.read_csv(rates).drop_duplicates("update")[["summary_seconds", "solve_seconds"]].sum().sum()
        )
        run["summary_share"] = seconds / row["train_seconds"]
    status = json.loads(result.read_text())["status"] if result.exists() else "unfinished"
    return {
        "run": config.name,
        "optimizer": config.optimizer.name,
        "config": digest.hexdigest()[:6],
        "epochs": row["epoch"],
        "status": status,
        "seed": config.seed,
        **run,
    }


def main() -> None:
    """Collect, group and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="+", type=Path)
    folders = sorted(
        {path.parent for root in parser.parse_args().folders for path in root.rglob("metrics.csv")}
    )
    runs = pd.DataFrame([run for run in map(read_run, folders) if run is not None])
    if runs.empty:
        print("no finished epochs found")
        return
    keys = ["run", "optimizer", "config", "epochs", "status"]
    grouped = runs.groupby(keys, dropna=False)
    print("| " + " | ".join([*keys, "runs", *COLUMNS.values()]) + " |")
    print("|" + "---|" * (len(keys) + 1 + len(COLUMNS)))
    for key, group in grouped:
        cells = []
        for name in COLUMNS:
            values = group[name].astype(float).dropna()
            spread = f" ({values.min():.4g}…{values.max():.4g})" if len(values) > 1 else ""
            cells.append(f"{values.median():.4g}{spread}" if len(values) else "–")
        print("| " + " | ".join([*map(str, key), str(len(group)), *cells]) + " |")


if __name__ == "__main__":
    main()
