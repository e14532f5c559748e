#!/usr/bin/env python3
"""f32 products in PyTorch: what `tritrain bench gemm` is compared with. Prints one JSON line."""
import argparse, json, statistics, time
import torch

p = argparse.ArgumentParser()
for name in "mnk":
    p.add_argument(f"--{name}", type=int, default=1024)
p.add_argument("--threads", type=int, default=1)
p.add_argument("--runs", type=int, default=30)
a = p.parse_args()
torch.set_num_threads(a.threads)
x, w, out = torch.randn(a.m, a.k), torch.randn(a.n, a.k), torch.empty(a.m, a.n)
times = []
for run in range(a.runs + 3):
    started = time.perf_counter()
    torch.mm(x, w.T, out=out)
    if run >= 3:
        times.append(time.perf_counter() - started)
macs = a.m * a.n * a.k
print(json.dumps(dict(gmacs=macs / statistics.median(times) / 1e9, version=torch.__version__)))
