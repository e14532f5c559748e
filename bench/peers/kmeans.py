#!/usr/bin/env python3
"""Measures k-means beside scikit-learn and faiss: same rows, same first centroids, same number of threads,
alternating, medians of pairs. Times are those of the fit alone, without reading files.

  python3 bench/peers/kmeans.py --corpus DIR                 # all sets; DIR holds *.jsonl.zst with a field text
  python3 bench/peers/kmeans.py noise small blobs --record   # without documents
  python3 bench/peers/kmeans.py noise --tier avx2            # everyone held to AVX2

The first call makes a virtual environment in bench/peers/.venv with what it needs from PyPI. Rows are kept in
target/kmeans. --record writes bench/record/kmeans-DATE.json.
"""
import argparse, datetime, json, os, statistics, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATA = ROOT / "target" / "kmeans"
PACKAGES = ["numpy", "scikit-learn", "faiss-cpu", "zstandard"]
SETS = {
    "noise": dict(rows=100_000, dim=64, k=256, iterations=20, tolerance=0.0, peers=["sklearn", "faiss"]),
    "documents": dict(rows=100_000, dim=64, k=256, iterations=20, tolerance=0.0, peers=["sklearn", "faiss"]),
    "small": dict(rows=10_000, dim=128, k=10, iterations=300, tolerance=1e-4, peers=["sklearn"]),
    "blobs": dict(rows=10_000, dim=128, k=10, iterations=300, tolerance=1e-4, peers=["sklearn"]),
}
# Characters of a passage.
PASSAGE = 1000


def make(name, corpus):
    """Rows and first centroids as .npy, unless they are there."""
    import numpy as np
    of, x, c = SETS[name], DATA / f"{name}.npy", DATA / f"{name}-init.npy"
    if x.exists() and c.exists():
        return
    DATA.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    if name == "documents":
        rows = documents(of, corpus)
    elif name == "blobs":
        # As many as clusters, which a start at any rows does not find at once.
        centers = random.uniform(-10, 10, (of["k"], of["dim"]))
        rows = (centers[random.integers(of["k"], size=of["rows"])] + random.standard_normal((of["rows"], of["dim"]))).astype(np.float32)
    else:
        rows = random.standard_normal((of["rows"], of["dim"])).astype(np.float32)
    np.save(x, rows)
    np.save(c, rows[np.sort(random.choice(len(rows), of["k"], replace=False))])


def documents(of, corpus):
    """LSA of passages, rows of length 1."""
    import io
    import numpy as np, zstandard
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize
    passages = []
    for path in sorted(Path(corpus).glob("*.jsonl.zst")):
        with path.open("rb") as file:
            for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8", newline="\n"):
                try:
                    text = json.loads(line)["text"]
                except ValueError:
                    print(f"{path.name}: a line is no JSON", file=sys.stderr)
                    continue
                passages += [text[at : at + PASSAGE] for at in range(0, len(text), PASSAGE)]
    chosen = np.random.default_rng(1).permutation(len(passages))[: of["rows"]]
    words = TfidfVectorizer(max_features=50_000, sublinear_tf=True).fit_transform(passages[i] for i in chosen)
    return normalize(TruncatedSVD(of["dim"], random_state=0).fit_transform(words)).astype(np.float32)


def peer(name, which, threads):
    """One fit by a peer, in a process of its own; prints what it took."""
    import warnings
    import numpy as np
    warnings.filterwarnings("ignore")
    of = SETS[name]
    x, init = np.load(DATA / f"{name}.npy"), np.load(DATA / f"{name}-init.npy")
    if which == "sklearn":
        import sklearn
        from sklearn.cluster import KMeans
        version = sklearn.__version__
        fit = lambda n: KMeans(of["k"], init=init, n_init=1, max_iter=n, tol=of["tolerance"], algorithm="lloyd").fit(x)
        fit(1)
        start = time.perf_counter()
        model = fit(of["iterations"])
        seconds = time.perf_counter() - start
        labels, inertia, iterations = model.labels_, float(model.inertia_), model.n_iter_
    else:
        import faiss
        version = faiss.__version__
        faiss.omp_set_num_threads(threads)
        def fit(n):
            # Every row counts, and labels are made at the end, as the others do.
            model = faiss.Kmeans(x.shape[1], of["k"], niter=n, max_points_per_centroid=len(x), min_points_per_centroid=1)
            model.train(x, init_centroids=init)
            return model.index.search(x, 1)
        fit(1)
        start = time.perf_counter()
        distances, labels = fit(of["iterations"])
        seconds = time.perf_counter() - start
        labels, inertia, iterations = labels[:, 0], float(distances.sum(dtype=np.float64)), of["iterations"]
    np.save(DATA / f"{name}-{which}-labels.npy", labels.astype(np.uint32))
    print(json.dumps(dict(version=version, seconds=seconds, inertia=inertia, iterations=int(iterations))))


def wrong(name, out):
    """Rows whose label is not that of a nearest centroid, in f64, by more than f32 can tell; rows that peers label
    otherwise after the same number of iterations."""
    import numpy as np
    x = np.load(DATA / f"{name}.npy").astype(np.float64)
    centroids, labels = np.load(out / "centroids.npy").astype(np.float64), np.load(out / "labels.npy")
    count = 0
    for at in range(0, len(x), 1000):
        part, own = x[at : at + 1000], labels[at : at + 1000]
        distances = ((part[:, None, :] - centroids[None]) ** 2).sum(2)
        chosen = distances[np.arange(len(part)), own]
        count += int((chosen > distances.min(1) * (1 + 1e-6)).sum())
    others = {which: int((np.load(DATA / f"{name}-{which}-labels.npy") != labels).sum()) for which in SETS[name]["peers"]}
    print(json.dumps(dict(wrong_labels=count, labels_that_differ=others)))


def environment(threads, tier):
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS", "OMP_", "MKL_"))}
    keep |= {k: str(threads) for k in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]}
    if tier:
        keep["TRITRAIN_TIER"] = tier
    if tier == "avx2":
        keep |= {"OPENBLAS_CORETYPE": "Haswell", "FAISS_OPT_LEVEL": "avx2"}
    return keep


def last_json(command, env):
    done = subprocess.run([str(part) for part in command], env=env, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def ratios(ours, theirs):
    """Median, lowest and highest ratio of the pairs."""
    pairs = [b / a for a, b in zip(ours, theirs)]
    return dict(ratio=statistics.median(pairs), lowest=min(pairs), highest=max(pairs))


def measure(name, a):
    of, env, rows = SETS[name], environment(a.threads, a.tier), []
    python = [a.python, Path(__file__).resolve()]
    out = DATA / f"{name}-out"
    ours = [
        a.tritrain, "cluster", DATA / f"{name}.npy", "-k", of["k"], "--init", DATA / f"{name}-init.npy", "--json",
        "--iterations", of["iterations"], "--tolerance", of["tolerance"], "--threads", a.threads, "--out", out,
    ]
    for which in of["peers"]:
        pairs = [
            (last_json(ours, env), last_json(python + ["peer", name, which, "--threads", a.threads], env))
            for _ in range(a.pairs)
        ]
        mine, theirs = [[run[side] for run in pairs] for side in (0, 1)]
        seconds = lambda runs: [run["seconds"] for run in runs]
        rows.append(dict(
            set=name, rows=of["rows"], dim=of["dim"], k=of["k"], threads=a.threads, tier=mine[0]["tier"],
            peer=f"{which} {theirs[0]['version']}", seconds=statistics.median(seconds(mine)),
            peer_seconds=statistics.median(seconds(theirs)), speed=ratios(seconds(mine), seconds(theirs)),
            iterations=mine[0]["iterations"], peer_iterations=theirs[0]["iterations"],
            inertia=mine[0]["inertia"], peer_inertia=theirs[0]["inertia"], skipped=mine[0]["skipped"],
        ))
        print(json.dumps(rows[-1]), flush=True)
    check = last_json(python + ["wrong", name, out], env)
    print(json.dumps(dict(set=name, **check)), flush=True)
    return [dict(row, **check) for row in rows]


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def install():
    python = HERE / ".venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", HERE / ".venv"], check=True)
    if subprocess.run([python, "-c", "import numpy, sklearn, faiss, zstandard"], stderr=subprocess.DEVNULL).returncode:
        subprocess.run([python, "-m", "pip", "install", "--quiet"] + PACKAGES, check=True)
    return python


def main():
    if len(sys.argv) > 1 and sys.argv[1] in ("peer", "wrong", "make"):
        what, name, last = sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None
        if what == "peer":
            return peer(name, last, int(sys.argv[5]))
        return wrong(name, Path(last)) if what == "wrong" else make(name, last)
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("sets", nargs="*", choices=[*SETS, []], default=[])
    p.add_argument("--corpus", type=Path, help="folder of *.jsonl.zst, for documents")
    p.add_argument("--pairs", type=int, default=5)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--tier", help="TRITRAIN_TIER; avx2 holds the peers to AVX2 as well")
    p.add_argument("--python", type=Path, help="a Python that has the packages, instead of a virtual environment")
    p.add_argument("--tritrain", type=Path, default=ROOT / "target" / "release" / "tritrain")
    p.add_argument("--record", action="store_true", help="write bench/record/kmeans-DATE.json")
    a = p.parse_args()
    sets = a.sets or list(SETS)
    if not a.tritrain.exists():
        sys.exit(f"{a.tritrain} is missing: cargo build --release")
    if "documents" in sets and not (a.corpus or (DATA / "documents.npy").exists()):
        sys.exit("documents need --corpus")
    a.python = a.python or install()
    for name in sets:
        subprocess.run([a.python, Path(__file__).resolve(), "make", name] + ([a.corpus] if a.corpus else []), check=True)
    results = [row for name in sets for row in measure(name, a)]
    if a.record:
        record = dict(date=datetime.date.today().isoformat(), processor=processor(), cores=os.cpu_count(), pairs=a.pairs)
        suffix = f"-{a.tier}" if a.tier else ""
        path = ROOT / "bench" / "record" / f"kmeans-{record['date']}{suffix}.json"
        # Sets that were not measured now keep what the same day recorded of them.
        before = json.loads(path.read_text())["kmeans"] if path.exists() else []
        measured = {result["set"] for result in results}
        results = [result for result in before if result["set"] not in measured] + results
        path.write_text(json.dumps(dict(record, kmeans=results), indent=1) + "\n")
        print(f"recorded in {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
