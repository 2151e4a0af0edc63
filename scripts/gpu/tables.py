"""The tables of a GPU check as one page of Markdown, from its CSV files.

python scripts/gpu/tables.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

TITLES = {
    "products": "Rate of a large matrix product",
    "summary": "What a summary costs, float32",
    "summary_tf32": "What a summary costs, TF32",
    "summary_bfloat16": "What a summary costs, bfloat16",
    "step": "What a training step costs",
}
COLUMNS = {
    "summary": [
        "network", "groups", "batch", "gradient_ms", "summary_ms", "reference_ms", "gradients", "floor",
        "speedup", "relative_difference", "summary_gflops_per_s", "share_of_product_rate", "summary_mib",
        "reference_mib",
    ],
    "step": [
        "network", "batch", "optimizer", "step_ms", "times_sgd", "summary_share", "plain_ms", "update_ms",
    ],
}  # fmt: skip


def table(folder: Path, name: str) -> str | None:
    """One table; None if its CSV file is not there."""
    path = folder / f"{name}.csv"
    if not path.exists():
        return None
    rows = pd.read_csv(path)
    products = folder / "products.csv"
    if "summary_gflops_per_s" in rows and products.exists():
        rates = pd.read_csv(products).set_index("precision")["tflops_per_s"]
        precision = name.partition("_")[2] or "float32"
        if precision in rates:
            rows["share_of_product_rate"] = rows["summary_gflops_per_s"] / (rates[precision] * 1e3)
    kind = name.partition("_")[0]
    shown = [
        column for column in COLUMNS.get(kind, rows.columns) if column in rows and rows[column].notna().any()
    ]
    header = ["| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    body = [
        "| " + " | ".join(_cell(value) for value in row) + " |" for row in rows[shown].to_numpy().tolist()
    ]
    return "\n".join([f"## {TITLES[name]}", "", *header, *body])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:.3g}"
    return str(value)


def main() -> None:
    """Write tables.md into the folder."""
    folder = Path(sys.argv[1])
    parts = [part for name in TITLES if (part := table(folder, name)) is not None]
    products = folder / "products.csv"
    if products.exists():
        first = pd.read_csv(products).iloc[0]
        parts.insert(0, f"# {first['device']}, torch {first['torch']}")
    (folder / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
