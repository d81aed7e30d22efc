"""The code of each instruction set, compiled here for processors that have it: what runs in the inner loops."""

import os
import re
import subprocess
import sys

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from memcodec.lm import amx, instructions, tiles

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
_I64 = ir.IntType(64)


def assembly_of(name: str, processor: str, unsigned_rows: bool) -> str:
    """What LLVM makes of the products of an instruction set on a processor of x86-64."""
    module, chosen = ir.Module(), instructions.ALL[name]
    module.triple = "x86_64-unknown-linux-gnu"
    parameters = [_I64] * (7 if chosen.amx else 8)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), parameters), "products")
    builder = ir.IRBuilder(function.append_basic_block())
    if chosen.amx:
        amx.emit_products(builder, chosen.amx, unsigned_rows, function.args)
    else:
        tiles.emit_rows(builder, chosen, unsigned_rows, function.args)
    builder.ret_void()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(cpu=processor, opt=3)
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return str(machine.emit_assembly(parsed))


def loops_with(instruction: str, assembly: str) -> list[str]:
    """The blocks between labels that have an instruction and end with a jump back to their beginning."""
    blocks = re.split(r"^(\.L\w+):", assembly, flags=re.MULTILINE)
    pairs = zip(blocks[1::2], blocks[2::2], strict=True)
    return [text for label, text in pairs if instruction in text and re.search(rf"\tj\w+\t{re.escape(label)}\n", text)]


@pytest.mark.parametrize("unsigned_rows", [False, True])
@pytest.mark.parametrize(
    ("name", "processor", "instruction"),
    [
        ("avx512-vnni", "icelake-server", "vpdpbusd"),
        ("avx-vnni", "alderlake", "vpdpbusd"),
        ("vectors-64", "skylake-avx512", "vpmaddwd"),
        ("vectors-32", "znver3", "vpmaddwd"),
        ("vectors-32", "haswell", "vpmaddwd"),
    ],
)
def test_inner_loops_keep_their_sums_in_registers(
    name: str, processor: str, instruction: str, unsigned_rows: bool
) -> None:
    chosen = instructions.ALL[name]
    loops = loops_with(instruction, assembly_of(name, processor, unsigned_rows))
    products = chosen.sums * (2 if isinstance(chosen, instructions.Extended) else 1)
    counts = {loop.count(f"\t{instruction}\t") for loop in loops}
    assert max(counts) == chosen.rows[0] * products
    assert not any("rsp" in loop for loop in loops)


@pytest.mark.parametrize("unsigned_rows", [False, True])
def test_amx_multiplies_with_tiles(unsigned_rows: bool) -> None:
    assembly = assembly_of("amx", "sapphirerapids", unsigned_rows)
    (loop,) = loops_with("tileloadd", assembly)
    dot = "tdpbusd" if unsigned_rows else "tdpbsud"
    assert re.findall(rf"{dot}\t(.*)", loop) == [
        f"%tmm{columns}, %tmm{rows}, %tmm{2 * rows + columns - 14}" for rows in (4, 5) for columns in (6, 7)
    ]
    assert "rsp" not in loop and "call" not in assembly
    order = re.findall(r"\t(ldtilecfg|tileloadd|tdp\w+|tilestored|tilerelease)\b", assembly)
    assert order == ["ldtilecfg", *["tileloadd"] * 8, *[dot] * 4, *["tilestored"] * 4, "tilerelease"]


# Of these, a processor has one at most.
FOREIGN = next(name for name in ("neon-sdot", "avx512-vnni") if name not in instructions.available())


@pytest.mark.parametrize("name", [FOREIGN, "nonsense", "", "vectors-16"])
def test_instructions_that_the_processor_lacks_are_ignored(name: str) -> None:
    code = "from memcodec.lm import instructions; print(instructions.CHOSEN.name)"
    environment = os.environ | {"MEMCODEC_INSTRUCTIONS": name}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    expected = name if name == "vectors-16" else instructions.available()[0]
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")
