"""The rate of a large matrix product in each precision: what the rates of the other tables are held against.

python scripts/gpu/products.py [--device cuda] [--size 8192] [--out FILE.csv]
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch


def rate(size: int, dtype: torch.dtype, device: torch.device, *, tf32: bool) -> float:
    """Tflop/s of the fastest of ten products of two square matrices."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = tf32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    least = float("inf")
    for _ in range(11):  # the first is slow
        _wait(device)
        start = time.perf_counter()
        left @ right
        _wait(device)
        least = min(least, time.perf_counter() - start)
    return 2 * size**3 / least / 1e12


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=0, help="rows of a matrix; 0: 8192 on CUDA, else 512")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu/products.csv"))
    options = parser.parse_args()
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    size = options.size or (8192 if cuda else 512)
    kinds = [("float32", torch.float32, False)]
    if cuda:
        kinds += [("tf32", torch.float32, True), ("bfloat16", torch.bfloat16, False)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["precision", "size", "tflops_per_s", "device", "torch"])
        for name, dtype, tf32 in kinds:
            tflops = rate(size, dtype, device, tf32=tf32)
            where = torch.cuda.get_device_name(device) if cuda else "cpu"
            writer.writerow([name, size, f"{tflops:.4g}", where, torch.__version__])
            print(f"{name}: {tflops:.4g} Tflop/s")


if __name__ == "__main__":
    main()
