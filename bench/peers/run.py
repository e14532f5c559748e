#!/usr/bin/env python3
"""Measures tritrain beside PyTorch: the same work in the same run, alternating, medians of pairs.

  python3 bench/peers/run.py                # everything; about half an hour
  python3 bench/peers/run.py gemm           # products alone
  python3 bench/peers/run.py step --pairs 5 --record

The first call makes a virtual environment in bench/peers/.venv with torch from PyPI. --record writes
bench/record/DATE.json; `cargo xtask record` then renews the table in docs/speed.md.
"""
import argparse, datetime, json, os, platform, statistics, subprocess, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHON = HERE / ".venv" / "bin" / "python"
STEPS = [
    dict(dim=512, layers=8, heads=8, ffn=1536, vocab=8192, ctx=256, batch=8),
    dict(dim=768, layers=12, heads=12, ffn=2048, vocab=16384, ctx=512, batch=4),
]
GEMMS = [dict(m=1024, n=1024, k=1024), dict(m=1024, n=768, k=2048), dict(m=1024, n=2048, k=768)]
MODES = ["fp32", "compile", "bitnet", "bf16"]


def environment():
    """The peers see every core's best instructions, and no limit set for someone else."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS", "OMP_", "MKL_"))}


def last_json(command):
    done = subprocess.run(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def options(shape):
    return [part for key, value in shape.items() for part in (f"--{key}", str(value))]


def install(torch):
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", HERE / ".venv"], check=True)
    if subprocess.run([PYTHON, "-c", "import torch"], stderr=subprocess.DEVNULL).returncode:
        subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", torch], check=True)


def ratios(ours, theirs):
    """Median, lowest and highest ratio of the pairs."""
    pairs = [a / b for a, b in zip(ours, theirs)]
    return dict(ratio=statistics.median(pairs), lowest=min(pairs), highest=max(pairs))


def gemm(tritrain, pairs):
    rows = []
    for shape in GEMMS:
        ours, theirs = [], []
        for _ in range(pairs):
            ours.append(last_json([tritrain, "bench", "gemm", "--json", "--threads", "1", "--pairs", "5"] + options(shape)))
            theirs.append(last_json([PYTHON, HERE / "torch_gemm.py", "--threads", "1"] + options(shape)))
        row = dict(shape=shape, threads=1)
        for key in ["ternary_gmacs", "f32_gmacs", "ternary_over_f32", "dx_over_f32", "dw_over_f32"]:
            row[key] = statistics.median(one[key] for one in ours)
        row["torch_gmacs"] = statistics.median(one["gmacs"] for one in theirs)
        row["ternary_over_torch"] = ratios([o["ternary_gmacs"] for o in ours], [t["gmacs"] for t in theirs])
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def step(tritrain, pairs, threads, modes, steps):
    rows = []
    for shape in STEPS:
        for mode in modes:
            ours, theirs = [], []
            for _ in range(pairs):
                common = options(shape) + ["--threads", str(threads), "--steps", str(steps)]
                ours.append(last_json([tritrain, "bench", "step", "--json"] + common))
                theirs.append(last_json([PYTHON, HERE / "torch_step.py", "--mode", mode] + common))
            speed = lambda runs: [run["tokens_per_s"] for run in runs]
            memory = lambda runs: [run["peak_rss_mb"] for run in runs]
            row = dict(
                shape=shape, threads=threads, peer=f"torch {theirs[0]['version']} {mode}",
                tokens_per_s=statistics.median(speed(ours)), peer_tokens_per_s=statistics.median(speed(theirs)),
                speed=ratios(speed(ours), speed(theirs)), memory=ratios(memory(ours), memory(theirs)),
                parameters=ours[0]["parameters"], peer_parameters=theirs[0]["params"], tier=ours[0]["tier"],
            )
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def threads(tritrain, pairs, steps):
    """Two threads against one."""
    rows = []
    for shape in STEPS:
        one, two = [], []
        for _ in range(pairs):
            for count, runs in [(1, one), (2, two)]:
                common = options(shape) + ["--threads", str(count), "--steps", str(steps)]
                runs.append(last_json([tritrain, "bench", "step", "--json"] + common)["tokens_per_s"])
        rows.append(dict(shape=shape, two_over_one=ratios(two, one)))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def generate(tritrain, pairs, threads):
    """Tokens one by one, beside reading the same bytes and doing nothing else."""
    shape = {k: v for k, v in STEPS[-1].items() if k != "batch"}
    runs = [
        last_json([tritrain, "bench", "generate", "--json", "--threads", str(threads)] + options(shape))
        for _ in range(pairs)
    ]
    keys = ["tokens_per_s", "prefill_tokens_per_s", "weights_gb_per_s", "read_gb_per_s", "share_of_bandwidth"]
    row = dict(shape=shape, threads=threads, **{key: statistics.median(run[key] for run in runs) for key in keys})
    print(json.dumps(row), flush=True)
    return [row]


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", nargs="*", choices=["gemm", "step", "threads", "generate", []], default=[])
    p.add_argument("--pairs", type=int, default=5)
    p.add_argument("--steps", type=int, default=4)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    p.add_argument("--torch", default="torch", help="what pip installs")
    p.add_argument("--tritrain", type=Path, default=ROOT / "target" / "release" / "tritrain")
    p.add_argument("--record", action="store_true", help="write bench/record/DATE.json")
    a = p.parse_args()
    what = a.what or ["gemm", "step", "threads", "generate"]
    if not a.tritrain.exists():
        sys.exit(f"{a.tritrain} is missing: cargo build --release")
    if {"gemm", "step"} & set(what):
        install(a.torch)
    record = dict(date=datetime.date.today().isoformat(), processor=processor(), cores=os.cpu_count(), pairs=a.pairs)
    if "gemm" in what:
        record["gemm"] = gemm(a.tritrain, a.pairs)
    if "step" in what:
        record["step"] = step(a.tritrain, a.pairs, a.threads, a.modes, a.steps)
    if "threads" in what:
        record["threads"] = threads(a.tritrain, a.pairs, a.steps)
    if "generate" in what:
        record["generate"] = generate(a.tritrain, a.pairs, a.threads)
    if a.record:
        path = ROOT / "bench" / "record" / f"{record['date']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"recorded in {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
