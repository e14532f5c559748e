#!/usr/bin/env python3
"""Compares the vectors of `tritrain cluster` with scikit-learn's on the very same passages.

  python3 bench/peers/clusters.py CORPUS            # a folder of .jsonl.zst files; each is a domain
  python3 bench/peers/clusters.py CORPUS --record

Each embedding is clustered by scikit-learn's KMeans with several seeds, and agreement with the domains is
measured (NMI, arithmetic mean). The first call makes a virtual environment in bench/peers/.venv-clusters
with scikit-learn and zstandard from PyPI. --record writes bench/record/clusters-DATE.json.
"""
import argparse, datetime, io, json, os, subprocess, sys, tempfile, time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
VENV = HERE / ".venv-clusters"
PYTHON = VENV / "bin" / "python"
PACKAGES = ["scikit-learn==1.9.1", "zstandard==0.25.0"]


def install():
    """Runs this file again in a virtual environment that has the peers."""
    if Path(sys.prefix) == VENV:
        return
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    os.execv(PYTHON, [str(PYTHON), *sys.argv])


def ours(tritrain, files, k, seed, out, embedding="tfidf"):
    command = [tritrain, "cluster", *files, "-k", str(k), "--seed", str(seed), "--out", out, "--json"]
    command += ["--embedding", embedding]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def passages(files, out):
    """Texts and domains of passages.jsonl, cut from the documents again."""
    import zstandard

    documents = []
    for file in files:
        with open(file, "rb") as raw:
            for line in io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw)):
                try:
                    documents.append(json.loads(line)["text"].encode())
                except (ValueError, KeyError):  # tritrain leaves the same lines out
                    pass
    documents = [document for document in documents if document]
    places = [json.loads(line) for line in open(out / "passages.jsonl", encoding="utf8")]
    text = lambda p: documents[p["document"]][p["start"] : p["start"] + p["bytes"]].decode()
    return [text(place) for place in places], [place["domain"] for place in places]


def agreement(name, vectors, domains, k, seeds, seconds):
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score as nmi

    found = [nmi(domains, KMeans(k, n_init=1, random_state=seed).fit_predict(vectors)) for seed in range(seeds)]
    row = dict(name=name, mean=sum(found) / seeds, lowest=min(found), highest=max(found), embed_seconds=seconds)
    print(json.dumps(row), flush=True)
    return row


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("corpus", type=Path)
    p.add_argument("-k", type=int, default=15)
    p.add_argument("--seeds", type=int, default=10, help="of KMeans, for each embedding")
    p.add_argument("--ours", type=int, default=3, help="seeds of our embedding")
    p.add_argument("--proxies", type=int, default=1, help="seeds of a proxy: each trains for a minute, not counted")
    p.add_argument("--tritrain", type=Path, default=ROOT / "target" / "release" / "tritrain")
    p.add_argument("--record", action="store_true", help="write bench/record/clusters-DATE.json")
    a = p.parse_args()
    if not a.tritrain.exists():
        sys.exit(f"{a.tritrain} is missing: cargo build --release")
    install()
    import numpy, sklearn
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    files = sorted(a.corpus.glob("*.jsonl.zst"))
    rows = []
    with tempfile.TemporaryDirectory() as temp:
        for seed in range(a.ours):
            result = ours(a.tritrain, files, a.k, seed, temp)
            seconds = result["seconds"]["count"] + result["seconds"]["embed"]
            texts, domains = passages(files, Path(temp))
            vectors = numpy.load(Path(temp) / "vectors.npy")
            row = agreement(f"tritrain, seed {seed}", vectors, domains, a.k, a.seeds, seconds)
            rows.append(dict(row, own_clusters_nmi=result["nmi"]))
        for seed in range(a.proxies):
            result = ours(a.tritrain, files, a.k, seed, Path(temp) / f"proxy-{seed}", "proxy")
            seconds = result["seconds"]["count"] + result["seconds"]["embed"]
            vectors = numpy.load(Path(temp) / f"proxy-{seed}" / "vectors.npy")
            row = agreement(f"tritrain, proxy, seed {seed}", vectors, domains, a.k, a.seeds, seconds)
            rows.append(dict(row, own_clusters_nmi=result["nmi"]))
    for options in [{}, dict(sublinear_tf=True)]:
        begin = time.monotonic()
        words = TfidfVectorizer(**options).fit_transform(texts)
        vectors = TruncatedSVD(64, random_state=0).fit_transform(words)
        seconds = time.monotonic() - begin
        name = f"scikit-learn, TfidfVectorizer({', '.join(options)}) + TruncatedSVD(64)"
        rows.append(agreement(name, vectors, domains, a.k, a.seeds, seconds))
        rows.append(agreement(name + " + normalize", normalize(vectors), domains, a.k, a.seeds, seconds))
    record = dict(
        date=datetime.date.today().isoformat(), cores=os.cpu_count(), scikit_learn=sklearn.__version__,
        k=a.k, seeds=a.seeds, passages=len(texts), bytes=sum(len(text.encode()) for text in texts), rows=rows,
    )
    if a.record:
        path = ROOT / "bench" / "record" / f"clusters-{record['date']}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"recorded in {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
