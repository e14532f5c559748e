#!/usr/bin/env python3
"""Measures generation beside llama.cpp: the same GGUF file and prompt, alternating, medians of pairs.

  python3 bench/peers/llama.py DATA             # models of 20 and 110 million parameters, TQ2_0 and TQ1_0
  python3 bench/peers/llama.py DATA --record    # and write bench/record/llama-DATE.json

The models are made by one step of training on DATA (their weights are as good as random, which changes no speed), once,
in target/llama. A prompt of about 600 tokens is read, then 128 tokens are made, each time by a new process on
--threads threads: `tritrain generate FILE`, and llama.cpp's server inside of xllamacpp, which reports its own times. The
first call makes a virtual environment in bench/peers/.venv with xllamacpp from PyPI.
`cargo xtask record` renews the table in docs/speed.md.
"""
import argparse, datetime, json, os, statistics, subprocess, sys, time, urllib.request
from pathlib import Path

from run import environment, processor, ratios

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHON = HERE / ".venv" / "bin" / "python"
FILES = ROOT / "target" / "llama"
SIZES = {
    "20M": dict(dim=512, layers=5, heads=8, kv_heads=8, ffn=1536, vocab=8192),
    "110M": dict(dim=768, layers=14, heads=12, kv_heads=12, ffn=2048, vocab=16384),
}
TYPES, MADE, CONTEXT = ["tq2_0", "tq1_0"], 128, 1024
PROMPT = "the river runs after the old town and " * 57


def make(tritrain, data, name, shape):
    """Files of a model, unless they are there."""
    run = FILES / name
    if not run.exists():
        sets = {("data" if key == "vocab" else "model") + f".{key}": value for key, value in shape.items()}
        sets |= {"model.context": CONTEXT, "data.plan": "shuffle", "run.steps": 1, "run.tokens": 0, "run.batch": 1}
        sets |= {"run.eval_tokens": 64, "run.sample_every": 0}
        command = [tritrain, "train", "--data", *data, "--out", run]
        for key, value in sets.items():
            command += ["--set", f"{key}={value}"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    for kind in TYPES:
        path = FILES / f"{name}-{kind}.gguf"
        if not path.exists():
            command = [tritrain, "export", run, "--to", "gguf", "--type", kind, "--out", path]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def peer(path, threads):
    """One prompt and its continuation by llama.cpp; prints what each took."""
    import xllamacpp

    started, params = time.time(), xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.port = CONTEXT, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.ui, params.verbosity = False, -1
    server = xllamacpp.Server(params)
    load = time.time() - started
    body = dict(prompt=PROMPT, n_predict=MADE, temperature=0, ignore_eos=True, cache_prompt=False)
    url, kind = f"{server.listening_address}/completion", {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), kind)) as answer:
        took = json.load(answer)["timings"]
    print(json.dumps(dict(
        load_seconds=load, tokens_per_s=took["predicted_per_second"], prompt_tokens_per_s=took["prompt_per_second"],
        prompt_tokens=took["prompt_n"], tokens=took["predicted_n"])), flush=True)
    # The server's threads do not end by themselves.
    os._exit(0)


def measured(command):
    """What a process printed last, and the most memory that it had."""
    child = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    out = child.stdout.read()
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed")
    return json.loads(out.strip().splitlines()[-1]) | dict(peak_mib=used.ru_maxrss / 1024)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", nargs="*")
    p.add_argument("--pairs", type=int, default=7)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--tritrain", type=Path, default=ROOT / "target" / "release" / "tritrain")
    p.add_argument("--record", action="store_true")
    p.add_argument("--peer", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.peer:
        return peer(a.peer, a.threads)
    if not a.data:
        p.error("DATA: what a tokenizer is trained on")
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", PYTHON.parent.parent], check=True)
    if subprocess.run([PYTHON, "-c", "import xllamacpp"], stderr=subprocess.DEVNULL).returncode:
        subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "xllamacpp"], check=True)
    FILES.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, shape in SIZES.items():
        make(a.tritrain, a.data, name, shape)
        for kind in TYPES:
            path, ours, theirs = FILES / f"{name}-{kind}.gguf", [], []
            generate = [a.tritrain, "generate", path, "--prompt", PROMPT, "--max-tokens", str(MADE)]
            generate += ["--temperature", "0", "--threads", str(a.threads), "--json"]
            for _ in range(a.pairs):
                ours.append(measured(generate))
                theirs.append(measured([PYTHON, __file__, "--peer", path, "--threads", str(a.threads)]))
            row = dict(size=name, type=kind, bytes=path.stat().st_size, threads=a.threads)
            for key, runs in dict(ours=ours, llama=theirs).items():
                row[key] = {of: statistics.median(run[of] for run in runs) for of in theirs[0]}
            for key in ["tokens_per_s", "prompt_tokens_per_s"]:
                row[f"{key}_ratio"] = ratios([run[key] for run in ours], [run[key] for run in theirs])
            rows.append(row)
            print(json.dumps(row), flush=True)
    if a.record:
        day = datetime.date.today().isoformat()
        record = dict(date=day, processor=processor(), cores=os.cpu_count(), pairs=a.pairs, rows=rows)
        path = ROOT / "bench" / "record" / f"llama-{day}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"recorded in {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
