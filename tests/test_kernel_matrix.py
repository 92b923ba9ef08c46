"""Every kernel that the package can launch, compiled for GPUs that need not be there, and its machine code looked at.

Triton's wheel brings the compilers and disassemblers; no driver is needed. It runs in a process of its own, apart from
TensorFlow. ``TRITON_AT`` names the folder of another Triton than the one that is installed. As a
script, this file compiles in its own process, and prints a line of JSON for each kernel; ``table`` makes a table.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = os.environ.get("TRITON_AT", "")
NVIDIA = (75, 80, 86, 89, 90, 100, 103, 120)
AMD = {"gfx90a": 64, "gfx942": 64, "gfx1100": 32}  # and the threads of their warps
CHIPS = (*(f"sm_{chip}" for chip in NVIDIA), *AMD)
# Registers of a thread that leave room for four programs of 256 threads: of 65536 on a multiprocessor of NVIDIA's. With
# float64 numbers, three must fit. On AMD's data-centre chips four programs are 16 warps on four units of 512 registers
# for each lane; on gfx1100 they are 32 warps on two units of 1536.
REGISTERS = {"narrow": 64, "wide": 80}
AMD_REGISTERS = {64: 128, 32: 96}


# In a process of its own ----------------------------------------------------------------------------------------------


def compile_all(chips):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gradclip.backends import triton_kernels as kernels

    table = {"rows": "*i64", "chunks": "i32", "programs": "i32"}
    norm = {"value": "*fp32", "mantissa": "*fp64", "scale": "*fp64"}
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def variants():
        for wide in (False, True):
            steps = {"WIDE": wide, "LANES": kernels.LANES, "STEP": kernels.STEP}
            its_norm = {**norm, "value": "*fp64" if wide else "*fp32"}
            yield wide, kernels.sum_squares, {**table, "partials": "*fp64"}, steps
            yield (
                wide,
                kernels.join,
                {"partials": "*fp64", "programs": "i32", **its_norm},
                {"WIDE": wide, "BLOCK": 1024},
            )
            for on_device in (False, True):
                types = {**table, **its_norm, "max_norm": "fp64", "policy": "i32"}
                yield (
                    wide,
                    kernels.multiply,
                    types | ({"threshold": "*fp64"} if on_device else {}),
                    steps | ({} if on_device else {"threshold": None}),
                )

    for chip in chips:
        warp = AMD.get(chip, 32)
        target = GPUTarget("hip", chip, warp) if chip in AMD else GPUTarget("cuda", int(chip[3:]), 32)
        for wide, kernel, types, constants in variants():
            names = kernel.arg_names
            source = ASTSource(
                fn=kernel,
                signature={name: types.get(name, "constexpr") for name in names},
                constexprs={(names.index(name),): value for name, value in constants.items()},
                # The rows and the partial sums are arrays of their own, which begin at a multiple of 16 bytes.
                attrs={(names.index(n),): [["tt.divisibility", 16]] for n in ("rows", "partials") if n in types},
            )
            options = {"num_warps": kernels.THREADS // warp, "enable_fp_fusion": True}
            compiled = triton.compile(source, target=target, options=options)
            name = f"{kernel.__name__} {'wide' if wide else 'narrow'}"
            name += " threshold on the device" if "threshold" in types else ""
            facts = amd_facts(compiled.asm["amdgcn"]) if chip in AMD else nvidia_facts(compiled.asm, tools)
            print(json.dumps({"triton": triton.__version__, "chip": chip, "kernel": name, **facts}), flush=True)


def nvidia_facts(asm, tools):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(asm["cubin"])
        cubin.flush()
        sass, usage = (
            subprocess.run([tools / tool[0], *tool[1:], cubin.name], capture_output=True, text=True, check=True).stdout
            for tool in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        )
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.+?) ;", sass)
    before_exit = next((code[:i] for i, line in enumerate(code) if re.match(r"@!?U?P\d+ EXIT", line)), code)
    loops = loops_of(sass, r"\s*(\.L_x_\d+):", r"\bBRA(?:\.\S+)?\b.*?(\.L_x_\d+)")
    return {
        "registers": registers,
        "spilled": stack + local + sum(bool(re.search(r"\b(STL|LDL)\b", line)) for line in code),
        "loops": [mix(loop, NVIDIA_OPERATIONS) for loop in innermost(loops)],
        "longest": mix(max(loops, key=len), NVIDIA_OPERATIONS),
        "before exit": mix(before_exit, NVIDIA_OPERATIONS),
        "flushes": ".ftz" in asm["ptx"],
    }


NVIDIA_OPERATIONS = {
    "loads": r"\bLDG\.",
    "loads of 16": r"\bLDG\.E\.128",
    "stores": r"\bSTG\.",
    "stores of 16": r"\bSTG\.E\.128",
    "conversions": r"\bF2F\.(F64\.F32|F32\.F64)|\b(I2F|F2I)\.\S*F64",
    "float64": r"\b(DADD|DFMA|DMUL|DSETP)\b",
}
AMD_OPERATIONS = {
    "loads": r"\b(global|flat|buffer)_load_",
    "loads of 16": r"\b(global|flat|buffer)_load_(dwordx4|b128)",
    "stores": r"\b(global|flat|buffer)_store_",
    "stores of 16": r"\b(global|flat|buffer)_store_(dwordx4|b128)",
    "conversions": r"\bv_cvt_(f64_f32|f32_f64)",
    "float64": r"\bv_(pk_)?(add|fma|mul|fmac)_f64",
}


def mix(code, operations):
    return {name: sum(bool(re.search(pattern, line)) for line in code) for name, pattern in operations.items()}


def loops_of(text, label, branch):
    """What lies between a label and a branch back to it."""
    lines = text.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(label, line))}
    ends = [(m[1], i) for i, line in enumerate(lines) if (m := re.search(branch, line))]
    return [lines[labels[name] : i + 1] for name, i in ends if labels.get(name, i) < i] or [[]]


def innermost(loops):
    return [loop for loop in loops if not any(other is not loop and other[0] in loop for other in loops if other)]


def amd_facts(text):
    def number(key):
        return int(re.search(rf"\.{key}:\s*(\d+)", text)[1])

    loops = loops_of(text, r"(\.LBB\d+_\d+):", r"s_c?branch\S*\s+(\.LBB\d+_\d+)")
    lines = text.splitlines()
    end = next((i for i, line in enumerate(lines) if "s_cbranch" in line), len(lines))
    return {
        "registers": number("vgpr_count"),
        "spilled": number("vgpr_spill_count") + number("sgpr_spill_count") + number("private_segment_fixed_size"),
        "loops": [mix(loop, AMD_OPERATIONS) for loop in innermost(loops)],
        "longest": mix(max(loops, key=len), AMD_OPERATIONS),
        "before exit": mix(lines[:end], AMD_OPERATIONS),
        "flushes": bool(re.search(r"FloatDenorm: (0|1)\b", text)),
    }


if __name__ == "__main__":
    compile_all(sys.argv[1:] or CHIPS)


# What the machine code must be ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def matrix():
    if not (ELSEWHERE or importlib.util.find_spec("triton")):
        pytest.skip("needs Triton")
    with tempfile.TemporaryDirectory() as cache:
        path = os.pathsep.join(filter(None, [ELSEWHERE, str(ROOT)]))
        env = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": cache}
        env.pop("TRITON_INTERPRET", None)
        run = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


KERNELS = {
    f"{kernel} {size}{where}"
    for kernel in ("sum_squares", "join", "multiply")
    for size in REGISTERS
    for where in ("", " threshold on the device")
    if kernel == "multiply" or not where
}


def wrong(its):
    """What is not as it must be in a kernel's machine code."""
    size = its["kernel"].split()[1]
    registers = AMD_REGISTERS[AMD[its["chip"]]] if its["chip"] in AMD else REGISTERS[size]
    main = [loop for loop in its["loops"] if loop["loads of 16"]]  # the others are for what is no whole step
    numbers = 64  # of 4 bytes, that each thread has of a chunk
    if its["spilled"]:
        yield "spills"
    if its["registers"] > registers:
        yield "too many registers"
    if its["flushes"]:
        yield "takes subnormal numbers for zeros"
    if "join" in its["kernel"]:
        return
    if len(main) < (3 if size == "narrow" else 4):
        yield "a kind of number has no loop that reads 16 bytes at once"
    if any(loop["loads"] > loop["loads of 16"] or loop["stores"] > loop["stores of 16"] for loop in main):
        yield "reads or writes less than 16 bytes at once"
    if "sum_squares" in its["kernel"] and size == "narrow":
        if any(loop["float64"] or loop["conversions"] for loop in its["loops"]):
            yield "float64 for each number"
        if not 0 < its["longest"]["conversions"] <= numbers / 8 or not 0 < its["longest"]["float64"] <= numbers / 8:
            yield "too much float64 in a chunk"
    early = its["before exit"]  # AMD's loads of single numbers are scalar, and among those of the arguments
    least = 0 if its["chip"] in AMD else 1
    if "multiply" in its["kernel"] and not (
        least <= early["loads"] <= 2 and not early["loads of 16"] + early["stores"]
    ):
        yield "reads more than the norm and the threshold before it returns"


def test_every_kernel_is_compiled_for_every_chip(matrix):
    assert {(its["chip"], its["kernel"]) for its in matrix} == {(chip, its) for chip in CHIPS for its in KERNELS}


def test_the_machine_code_is_as_it_must_be(matrix):
    found = [(its["chip"], its["kernel"], its["registers"], what) for its in matrix for what in wrong(its)]
    assert not found, "\n".join(map(str, found))
