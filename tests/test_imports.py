"""The imports of the package: no circles, and an order of its packages. Sources are parsed, not imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "memcodec"

# Each may import those before it in this list, and itself.
ORDER = [
    "errors", "wording", "progress", "levels", "settings", "cache", "lm", "models", "document", "coding", "memory",
    "passes", "prediction",
    "groups", "container", "engines", "storage", "primer", "embedding", "frames", "bound", "estimate", "decoding",
    "verification", "refusals", "codec", "files", "view", "integrations", "bench",
]  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports: at the top, in functions, and for the type checker."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    yield whole
                elif node.module in known:
                    yield node.module


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """The imports of each module, except those of the package itself and its program."""
    known = modules()
    outside = {"memcodec", "memcodec.__main__"}
    return {
        name: set(imports_of(path, known)) - {name} - outside for name, path in known.items() if name not in outside
    }


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Sets of two or more modules, each of which imports all others of its set, directly or indirectly."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for name in graph[waiting.pop()] - found:
                found.add(name)
                waiting.append(name)
        return found

    reach = {name: reached(name) for name in graph}
    sets = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]}
    return sorted((set(one) for one in sets), key=sorted)


def test_no_modules_import_each_other_in_a_circle(graph: dict[str, set[str]]) -> None:
    assert circles(graph) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


# The packages of memcodec that the packages below the codec may import, in addition to themselves.
ALLOWED = {
    "lm": {"errors", "settings", "cache"},
    "models": {"errors", "cache", "progress", "settings", "lm"},
    "coding": {"errors", "lm", "progress"},
    "memory": {"errors", "settings", "progress", "lm", "models", "coding"},
}
# The modules of the exact LM in order: each may import those before it.
LM_ORDER = [
    "instructions", "amx", "tiles", "compiled", "team", "ahead", "transfer", "architecture", "arithmetic", "seeded",
    "rotation", "weights", "sequences", "selftest", "exp2", "product", "quantize", "layout", "weight_cache",
    "attention", "kernels", "cpu", "operations", "device", "gpu_kernels", "gpu_attention", "gpu_sizes", "gpu", "choice",
    "model",
]  # fmt: skip


def package(module: str) -> str:
    return module.split(".")[1]


def test_packages_import_what_is_below_them(graph: dict[str, set[str]]) -> None:
    assert {package(name) for name in graph} == set(ORDER)
    upwards = {
        (package(name), package(other))
        for name, others in graph.items()
        for other in others
        if ORDER.index(package(other)) > ORDER.index(package(name))
    }
    assert upwards == set()


@pytest.mark.parametrize("name", ALLOWED)
def test_packages_below_the_codec_need_little(graph: dict[str, set[str]], name: str) -> None:
    imported = {package(other) for module, others in graph.items() if package(module) == name for other in others}
    assert imported - {name} <= ALLOWED[name]


def test_modules_of_the_lm_import_those_before_them(graph: dict[str, set[str]]) -> None:
    modules_ = {name: others for name, others in graph.items() if name.startswith("memcodec.lm.")}
    assert {name.split(".")[-1] for name in modules_} == set(LM_ORDER)
    for name, others in modules_.items():
        allowed = LM_ORDER[: LM_ORDER.index(name.split(".")[-1])]
        assert {other.split(".")[-1] for other in others if package(other) == "lm"} <= set(allowed), name


MAX_LINES = 420  # of a module
MAX_PARAMETERS = 8  # of a function that is not a kernel


def test_modules_and_functions_are_small() -> None:
    for path in [*ROOT.rglob("*.py"), *(ROOT.parent / "cli").glob("*.py")]:
        source = path.read_text(encoding="utf-8")
        assert source.count("\n") <= MAX_LINES, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
                decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
                count = len([name for name in names if name not in ("self", "cls")])
                is_kernel = decorators & {"kernel", "subkernel", "allocating", "intrinsic"}
                is_kernel = is_kernel or any(one.startswith("triton.jit") for one in decorators)
                assert count <= MAX_PARAMETERS or is_kernel, f"{path}: {node.name}"
    assert (ROOT / "codec.py").read_text(encoding="utf-8").count("\n") <= 400
