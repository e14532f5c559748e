#!/usr/bin/env python3
"""Measures single operations beside NumPy: same arrays, same number of threads, alternating, medians of pairs.

  python3 bench/peers/backends.py            # quantising 1M numbers, k-means of 10,000 × 128, products
  python3 bench/peers/backends.py --record   # and write bench/record/backends-DATE.json

The first call makes a virtual environment in bench/peers/.venv with NumPy from PyPI. Arrays are kept in
target/backends. The engine simd is compared with NumPy on one thread, parallel with NumPy on --threads. NumPy
quantises to f32 and does not pack, dequantises from int8, and multiplies ternary weights as f32. `cargo xtask record`
renews the table in docs/speed.md. Under other work, `chrt -r 1` in front keeps both sides from being interrupted.
"""
import argparse, datetime, json, os, statistics, subprocess, sys, time
from pathlib import Path

from kmeans import environment, last_json, processor, ratios

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = ROOT / "target" / "backends"
PYTHON = HERE / ".venv" / "bin" / "python"
NUMBERS, ROWS, DIM, CLUSTERS, SIDE = 1_000_000, 10_000, 128, 10, 512


def make():
    """The arrays, unless they are there."""
    import numpy as np
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)
    arrays = dict(numbers=normal(NUMBERS, 1), rows=normal(ROWS, DIM), a=normal(SIDE, SIDE), b=normal(SIDE, SIDE))
    arrays["centroids"] = arrays["rows"][np.sort(random.choice(ROWS, CLUSTERS, replace=False))]
    DATA.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        if not (DATA / f"{name}.npy").exists():
            np.save(DATA / f"{name}.npy", array)


def lloyd(x, centroids, iterations=300, tolerance=1e-4):
    """Squared distances by expanding the square, and the mean of each label in a loop."""
    import numpy as np
    squares, limit = (x * x).sum(1)[:, None], tolerance * x.var(0).mean()
    nearest = lambda: (squares - 2 * (x @ centroids.T) + (centroids * centroids).sum(1)).argmin(1)
    for done in range(1, iterations + 1):
        labels = nearest()
        means = np.stack([x[labels == j].mean(0) if (labels == j).any() else centroids[j] for j in range(len(centroids))])
        shift, centroids = ((means - centroids) ** 2).sum(), means
        if shift <= limit:
            break
    labels = nearest()
    return done, float(((x.astype(np.float64) - centroids[labels]) ** 2).sum())


def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def peer(runs):
    """Every operation in NumPy; prints what each took."""
    import numpy as np
    numbers, rows, centroids, a, b = (np.load(DATA / f"{name}.npy") for name in ["numbers", "rows", "centroids", "a", "b"])
    x = numbers.ravel()
    scale = np.float32(np.float16(np.abs(x).mean()))
    codes = np.clip(np.round(x / scale), -1, 1).astype(np.int8)
    weights = np.clip(np.round(b / np.abs(b).mean()), -1, 1)
    work = dict(
        quantize=lambda: np.clip(np.round(x / np.abs(x).mean()), -1, 1),
        dequantize=lambda: codes.astype(np.float32) * scale,
        kmeans=lambda: lloyd(rows, centroids),
        matmul=lambda: a @ b.T,
        ternary_matmul=lambda: a @ weights.T,
    )
    found = dict(version=np.__version__)
    for name, once in work.items():
        seconds, memory = [], None
        for run in range(runs + 1):
            if run == 0 and Path("/proc/self/clear_refs").exists():
                Path("/proc/self/clear_refs").write_text("5")
                before = status("VmRSS")
            start = time.perf_counter()
            result = once()
            took = time.perf_counter() - start
            if run == 0 and Path("/proc/self/clear_refs").exists():
                memory = (status("VmHWM") - before - getattr(result, "nbytes", 0)) / 1e6
            # The first one warms up.
            seconds += [took] if run else []
        found[name] = dict(ms=statistics.median(seconds) * 1e3, memory_mb=memory)
        if name == "kmeans":
            found[name] |= dict(iterations=result[0], inertia=result[1])
    print(json.dumps(found))


def install():
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", HERE / ".venv"], check=True)
    if subprocess.run([PYTHON, "-c", "import numpy"], stderr=subprocess.DEVNULL).returncode:
        subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "numpy"], check=True)
    return PYTHON


def measure(a):
    ours, theirs = [], {1: [], a.threads: []}
    command = [a.tritrain, "bench", "backends", "--arrays", DATA, "--runs", a.runs, "--threads", a.threads, "--json"]
    for _ in range(a.pairs):
        ours.append(last_json(command, environment(a.threads, None))["backends"])
        for threads, runs in theirs.items():
            runs.append(last_json([a.python, Path(__file__).resolve(), "peer", a.runs], environment(threads, None)))
    rows = []
    for at, first in enumerate(ours[0]):
        mine, name = [run[at] for run in ours], first["operation"]
        threads = a.threads if first["engine"] == "parallel" else 1
        peers = [run[name] for run in theirs[threads]]
        ms = lambda runs: [run["ms"] for run in runs]
        row = dict(
            operation=name, task=first["task"], engine=first["engine"], runs_on=first["runs_on"],
            ms=statistics.median(ms(mine)), giga_per_s=statistics.median(run["giga_per_s"] for run in mine),
            over_scalar=statistics.median(run["over_scalar"] for run in mine),
            memory_mb=first["memory_mb"], peer=f"numpy {theirs[threads][0]['version']}, {threads} thread(s)",
            peer_ms=statistics.median(ms(peers)), peer_memory_mb=peers[0]["memory_mb"], speed=ratios(ms(mine), ms(peers)),
        )
        if name == "kmeans":
            row |= dict(inertia=first["inertia"], peer_inertia=peers[0]["inertia"], peer_iterations=peers[0]["iterations"])
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def main():
    if len(sys.argv) > 1 and sys.argv[1] in ("peer", "make"):
        return make() if sys.argv[1] == "make" else peer(int(sys.argv[2]))
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", type=int, default=5)
    p.add_argument("--runs", type=int, default=5, help="measurements behind each median of a pair")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--python", type=Path, help="a Python that has NumPy, instead of a virtual environment")
    p.add_argument("--tritrain", type=Path, default=ROOT / "target" / "release" / "tritrain")
    p.add_argument("--record", action="store_true", help="write bench/record/backends-DATE.json")
    a = p.parse_args()
    if not a.tritrain.exists():
        sys.exit(f"{a.tritrain} is missing: cargo build --release")
    a.python = a.python or install()
    subprocess.run([a.python, Path(__file__).resolve(), "make"], check=True)
    rows = measure(a)
    if a.record:
        record = dict(date=datetime.date.today().isoformat(), processor=processor(), cores=os.cpu_count(), pairs=a.pairs)
        dispatcher = last_json([a.tritrain, "bench", "dispatcher", "--json"], environment(a.threads, None))
        dispatcher["count"] = len(dispatcher.pop("choices"))
        path = ROOT / "bench" / "record" / f"backends-{record['date']}.json"
        path.write_text(json.dumps(dict(record, backends=rows, dispatcher=dispatcher), indent=1) + "\n")
        print(f"recorded in {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
