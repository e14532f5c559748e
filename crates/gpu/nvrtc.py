#!/usr/bin/env python3
"""Compiles CUDA sources with NVRTC for several architectures, without a GPU or a driver.

  pip install nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-runtime-cu12==12.9.79
  TRITRAIN_CUDA_SOURCES=DIR cargo test --release -p tritrain-gpu --features emit
  python3 crates/gpu/nvrtc.py DIR

Fails where a source does not compile, or where a kernel of a product or of attention spills registers to memory.
"""
import collections, ctypes, glob, os, re, site, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ARCHITECTURES = ("sm_80", "sm_90")
# Kernels that must keep everything in registers and shared memory.
NO_SPILLS = ("product_kernel", "matmul_kernel", "forward_kernel", "query_kernel", "key_kernel", "attend_kernel")


def load():
    for folder in site.getsitepackages():
        found = sorted(glob.glob(f"{folder}/nvidia/*/lib/libnvrtc.so.*"))
        if found:
            return ctypes.CDLL(found[-1]), glob.glob(f"{folder}/nvidia/*/include")
    sys.exit("nvrtc.py: no NVRTC: pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12")


def compile_source(lib, includes, path, architecture):
    """The status and the log."""
    program = ctypes.c_void_p()
    source, name = path.read_bytes(), path.name.encode()
    if lib.nvrtcCreateProgram(ctypes.byref(program), source, name, 0, None, None):
        return 1, "nvrtcCreateProgram failed"
    options = [f"--gpu-architecture={architecture}", "-std=c++17", "--ptxas-options=-v"]
    options = [o.encode() for o in options + [f"--include-path={d}" for d in includes]]
    status = lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetProgramLog(program, log)
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    return status, log.value.decode(errors="replace")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    lib, includes = load()
    paths = sorted(Path(sys.argv[1]).glob("*.cu"))
    if not paths:
        sys.exit(f"nvrtc.py: no sources in {sys.argv[1]}")
    failed, most = [], collections.defaultdict(lambda: [0, 0, 0])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = [(architecture, path) for architecture in ARCHITECTURES for path in paths]
        compiled = pool.map(lambda pair: compile_source(lib, includes, pair[1], pair[0]), pairs)
        for (architecture, path), (status, log) in zip(pairs, compiled):
            if status:
                failed.append(f"{architecture} {path.name}: {log[:2000]}")
                continue
            kernel = path.stem.rsplit("-", 1)[0]
            spills = max((int(n) for n in re.findall(r"(\d+) bytes spill stores", log)), default=None)
            registers = max((int(n) for n in re.findall(r"Used (\d+) registers", log)), default=0)
            if spills is None:
                failed.append(f"{architecture} {path.name}: the compiler did not say what it spills: {log[:500]}")
                continue
            row = most[kernel]
            row[0] += 1
            row[1] = max(row[1], registers)
            row[2] = max(row[2], spills)
            if spills and kernel in NO_SPILLS:
                failed.append(f"{architecture} {path.name}: {spills} bytes spilled")
    print(f"{'kernel':24} {'compiled':>9} {'registers':>10} {'spilled bytes':>14}")
    for kernel, (count, registers, spills) in sorted(most.items()):
        print(f"{kernel:24} {count:9} {registers:10} {spills:14}")
    for failure in failed:
        print(f"FAILED {failure}", file=sys.stderr)
    print(f"{len(paths)} sources for {' and '.join(ARCHITECTURES)}, {len(failed)} failures")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
