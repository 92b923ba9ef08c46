"""Every kernel that the package can launch, compiled for GPUs that need not be there, and its machine code looked at.

Triton's wheel brings the compilers and disassemblers; no driver is needed. The compiler runs in a process of its own,
apart from TensorFlow. ``TRITON_AT`` names the folder of another Triton than the one that is installed. As a script,
this file prints what it finds as a table.
"""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "gradclip" / "backends" / "triton_kernels.py"
ELSEWHERE = os.environ.get("TRITON_AT", "")
NVIDIA = (75, 80, 86, 89, 90, 100, 103, 120)
AMD = {"gfx90a": 64, "gfx942": 64, "gfx1100": 32}  # and the threads of their warps
CHIPS = (*(f"sm_{chip}" for chip in NVIDIA), *AMD)
# Registers of a thread that leave room for four programs of 256 threads: of 65536 on a multiprocessor of NVIDIA's. On
# AMD's data-centre chips four programs are 16 warps on four units of 512 registers for each lane; on gfx1100 they are
# 32 warps on two units of 1536.
REGISTERS = 64
AMD_REGISTERS = {64: 128, 32: 96}
NUMBERS = 64  # of 4 bytes, that each thread has of a chunk


# In a process of its own ----------------------------------------------------------------------------------------------


def compile_all(jobs):
    """What the machine code has, for each job: a file with kernels, a chip, and the name of one kernel or None."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    for path, chip, wanted in jobs:
        spec = importlib.util.spec_from_file_location("kernels", path)
        kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernels)
        warp = AMD.get(chip, 32)
        target = GPUTarget("hip", chip, warp) if chip in AMD else GPUTarget("cuda", int(chip[3:]), 32)
        for name, kernel, types, constants in variants(kernels):
            if wanted not in (name, None):
                continue
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
            facts = amd_facts(compiled.asm["amdgcn"]) if chip in AMD else nvidia_facts(compiled.asm, tools)
            yield {"triton": triton.__version__, "chip": chip, "kernel": name, **facts}


def variants(kernels):
    """The name of each variant of a kernel, with the types of its arguments and its constants."""
    table = {"rows": "*i64", "chunks": "i32", "programs": "i32"}
    for wide in (False, True):
        size = "wide" if wide else "narrow"
        norm = {"value": "*fp64" if wide else "*fp32", "mantissa": "*fp64", "scale": "*fp64"}
        steps = {"WIDE": wide, "STEP": kernels.STEP}
        clip = {**table, **norm, "max_norm": "fp64", "policy": "i32"}
        yield (
            f"sum_squares {size}",
            kernels.sum_squares,
            {**table, "partials": "*fp64"},
            {**steps, "LANES": kernels.LANES},
        )
        yield (
            f"join {size}",
            kernels.join,
            {"partials": "*fp64", "programs": "i32", **norm},
            {"WIDE": wide, "BLOCK": 1024},
        )
        yield f"multiply {size}", kernels.multiply, clip, {**steps, "threshold": None}
        yield f"multiply {size} threshold on the device", kernels.multiply, {**clip, "threshold": "*fp64"}, steps


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


def as_table(found):
    yield "| Triton | chip | kernel | registers | spilled | loads, bytes | float64 and conversions for each number |"
    yield "|---|---|---|---|---|---|---|"
    for its in found:
        narrow = "sum_squares narrow" in its["kernel"]
        each = f"{its['longest']['float64'] / NUMBERS:.3f} and {its['longest']['conversions'] / NUMBERS:.3f}"
        loads = 16 if any(loop["loads of 16"] for loop in its["loops"]) else "" if "join" in its["kernel"] else "less"
        cells = (its["triton"], its["chip"], its["kernel"], its["registers"], its["spilled"], loads)
        yield f"| {' | '.join(map(str, cells))} | {each if narrow else ''} |"


if __name__ == "__main__":
    if sys.argv[1:]:
        for row in compile_all(json.loads(sys.argv[1])):
            print(json.dumps(row), flush=True)
    else:
        print("\n".join(as_table(compile_all([(SOURCE, chip, None) for chip in CHIPS]))))


# What the machine code must be ----------------------------------------------------------------------------------------


@pytest.fixture
def compiled(pytestconfig, tmp_path):
    """Does jobs in a process of its own. What it finds is kept until Triton, the kernels or this file change."""
    triton = next(iter(distributions(name="triton", path=[ELSEWHERE] if ELSEWHERE else sys.path)), None)
    if not triton:
        pytest.skip("needs Triton")

    def run(jobs):
        known = pytestconfig.cache.get(f"kernels/{len(jobs)} jobs", {})
        files = [Path(__file__), *(Path(path) for path, _, _ in jobs)]
        key = triton.version + hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        if known.get("key") != key:
            path = os.pathsep.join(filter(None, [ELSEWHERE, str(ROOT)]))
            env = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path)}
            env.pop("TRITON_INTERPRET", None)
            arguments = [sys.executable, __file__, json.dumps(jobs, default=str)]
            done = subprocess.run(arguments, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            known = {"key": key, "found": [json.loads(line) for line in done.stdout.splitlines()]}
            pytestconfig.cache.set(f"kernels/{len(jobs)} jobs", known)
        return known["found"]

    return run


KERNELS = {
    f"{kernel} {size}{where}"
    for kernel in ("sum_squares", "join", "multiply")
    for size in ("narrow", "wide")
    for where in ("", " threshold on the device")
    if kernel == "multiply" or not where
}


def wrong(its):
    """What is not as it must be in a kernel's machine code."""
    size = its["kernel"].split()[1]
    registers = AMD_REGISTERS[AMD[its["chip"]]] if its["chip"] in AMD else REGISTERS
    main = [loop for loop in its["loops"] if loop["loads of 16"]]  # the others are for what is no whole step
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
        if not 0 < its["longest"]["conversions"] <= NUMBERS / 8 or not 0 < its["longest"]["float64"] <= NUMBERS / 8:
            yield "too much float64 in a chunk"
    if "multiply" in its["kernel"]:
        early = its["before exit"]  # AMD's loads of single numbers are scalar, and not told from those of the arguments
        loads = 0 if its["chip"] in AMD else 2 if "threshold" in its["kernel"] else 1
        if early["loads"] != loads or early["stores"]:
            yield "reads more than the norm and the threshold before it returns"


def test_the_machine_code_is_as_it_must_be(compiled):
    from benchmarks.expected import OPERATIONS  # not where this file is a script

    matrix = compiled([(SOURCE, chip, None) for chip in CHIPS])
    assert {(its["chip"], its["kernel"]) for its in matrix} == {(chip, its) for chip in CHIPS for its in KERNELS}
    found = [(its["chip"], its["kernel"], its["registers"], what) for its in matrix for what in wrong(its)]
    assert not found, "\n".join(map(str, found))
    counted = [its["longest"] for its in matrix if its["kernel"] == "sum_squares narrow"]
    expected = NUMBERS * OPERATIONS["now"]["float32"]
    assert max(its["float64"] for its in counted) == max(its["conversions"] for its in counted) == expected


def test_the_notes_show_the_times_that_are_computed():
    from benchmarks.expected import rows

    notes = (ROOT / "benchmarks" / "NOTES.md").read_text()
    for row in rows():
        assert f"| {' | '.join(row)} |" in notes


# Changes to the kernels that leave nearly every result as it is, and what is wrong with the machine code then.
WORSE = {
    "a conversion and a float64 operation for each number, as in the first version": (
        "sum_squares narrow",
        {
            "tl.zeros([ROW], tl.float32)": "tl.zeros([ROW], tl.float64)",
            ".to(tl.float32) * scale": ".to(tl.float64) * scale",
            "tl.reshape(sums,": "tl.reshape(sums.to(tl.float32),",
        },
        {"float64 for each number", "too much float64 in a chunk"},
    ),
    "two float64 operations for each sum": (
        "sum_squares narrow",
        {"            medium += squares": "            medium = 0.5 * medium + squares"},
        {"too much float64 in a chunk"},
    ),
    "steps too long for the registers": (
        "multiply narrow",
        {"STEP = 16384": "STEP = 262144"},
        {"spills", "too many registers"},
    ),
    "loads and stores of single numbers": (
        "multiply narrow",
        {"tl.multiple_of(start + begin, 16)": "start + begin"},
        {"a kind of number has no loop that reads 16 bytes at once"},
    ),
    "stores of single numbers": (
        "multiply narrow",
        {"tl.store(place,": "tl.store(start + begin + step,"},
        {"reads or writes less than 16 bytes at once"},
    ),
    "a gradient read before there is anything to clip": (
        "multiply narrow",
        {"n = tl.load(value)": "n = tl.load(value) + tl.load(tl.load(rows).to(tl.pointer_type(tl.float32)))"},
        {"reads more than the norm and the threshold before it returns"},
    ),
    "an operation that takes subnormal numbers for zeros": (
        "multiply narrow",
        {"tl.load(place).to(WIDE)": "tl.exp2(tl.load(place).to(WIDE))"},
        {"takes subnormal numbers for zeros"},
    ),
}


def test_each_check_can_fail(compiled, tmp_path):
    jobs = []
    for kernel, changes, _ in WORSE.values():
        source = SOURCE.read_text()
        for old, new in changes.items():
            assert old in source
            source = source.replace(old, new)
        path = tmp_path / f"{len(jobs)}.py"
        path.write_text(source)
        jobs.append((path, "sm_89", kernel))
    for its, (name, (_, _, faults)) in zip(compiled(jobs), WORSE.items(), strict=True):
        assert faults <= set(wrong(its)), name
