"""Forbidden in the source: executing text as code, unpickling, starting a shell, unsafe yaml loading."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("graph_train", "kernels", "models", "pipelines", "benchmarks")

FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "execfile", "builtins.eval", "builtins.exec"),
    *("os.system", "os.popen", "os.execv", "os.execve", "os.execvp", "os.execl", "os.spawnl", "os.spawnv"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput", "pty.spawn"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("dill.load", "joblib.load", "cloudpickle.load", "cloudpickle.loads", "torch.load", "flow.load", "oneflow.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader", "yaml.UnsafeLoader"),
    *("yaml.FullLoader", "yaml.safe_load", "yaml.safe_load_all", "yaml.compose", "yaml.parse"),
    *("shutil.unpack_archive", "tempfile.mktemp", "urllib.request.urlopen", "urllib.request.urlretrieve"),
}
"""Forbidden functions; the safe alternatives are kernels.host.safe_yaml, pipelines.data.fetching and unpack,
models.pickle_reader."""
FORBIDDEN_METHODS = {"extractall", "extract", "read_pickle"}
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "xmlrpc", "telnetlib", "ftplib"}
ONLY_USERS = {
    # module -> purpose
    "yaml.SafeLoader": {"kernels/host/safe_yaml.py"},
    "urllib.request": {"pipelines/data/fetching.py"},
    "tarfile": {"pipelines/data/unpack.py"},
    "zipfile": {
        "pipelines/data/unpack.py",
        "models/pytorch_file.py",
        "models/pytorch_writer.py",
        "kernels/build/cuda_build.py",
    },
    "pickletools": {"models/pickle_reader.py"},
}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def dotted(node: ast.AST) -> str:
    """Return "a.b.c" of an attribute chain, "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def findings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and reason of everything forbidden."""
    for node in ast.walk(tree):
        name = dotted(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        if name in FORBIDDEN_CALLS:
            yield node.lineno, name  # type: ignore[attr-defined]
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, module) for module in modules if module.split(".")[0] in FORBIDDEN_MODULES)
            if isinstance(node, ast.ImportFrom):
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from ((node.lineno, name) for name in names if name in FORBIDDEN_CALLS)
        if isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_call(call: ast.Call) -> Iterator[tuple[int, str]]:
    if isinstance(call.func, ast.Attribute) and call.func.attr in FORBIDDEN_METHODS:
        yield call.lineno, f".{call.func.attr}()"
    for keyword in call.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if keyword.arg == "shell" and value is not False:
            yield call.lineno, "shell="
        if keyword.arg == "allow_pickle" and value is not False:
            yield call.lineno, "allow_pickle="
    if dotted(call.func) in ("np.load", "numpy.load") and not any(k.arg == "allow_pickle" for k in call.keywords):
        yield call.lineno, "np.load without allow_pickle=False"


def test_source_has_no_forbidden_call() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sources()
        for line, what in findings(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def _uses(tree: ast.AST, name: str) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and dotted(node) == name:
            return True
        if isinstance(node, ast.Import) and any(alias.name == name for alias in node.names):
            return True
        if isinstance(node, ast.ImportFrom) and node.module:
            full = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            if name in full:
                return True
    return False


@pytest.mark.parametrize("name", ONLY_USERS)
def test_dangerous_function_has_single_caller(name: str) -> None:
    users = {str(path.relative_to(ROOT)) for path in sources() if _uses(ast.parse(path.read_text("utf-8")), name)}
    assert users == ONLY_USERS[name]


def test_libraries_are_loaded_by_path_only_after_verification() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        # `kernels` loads libraries from its cache, verified by digest, and from installed packages.
        if path.relative_to(ROOT).parts[0] != "kernels"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and dotted(node.func) in ("ctypes.CDLL", "CDLL", "ctypes.cdll.LoadLibrary")
        # This process itself, or a library of the system by its bare name.
        if not (isinstance(node.args[0], ast.Constant) and "/" not in str(node.args[0].value))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("eval('1')", "eval"),
        ("import os\nos.system('ls')", "os.system"),
        ("import subprocess\nsubprocess.run('ls', shell=True)", "shell="),
        ("subprocess.run('ls', shell=flag)", "shell="),
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("from yaml import unsafe_load", "yaml.unsafe_load"),
        ("yaml.load(text, Loader=yaml.FullLoader)", "yaml.load"),
        ("yaml.safe_load(text)", "yaml.safe_load"),
        ("np.load(file)", "np.load without allow_pickle=False"),
        ("np.load(file, allow_pickle=True)", "allow_pickle="),
        ("archive.extractall(folder)", ".extractall()"),
        ("run = exec", "exec"),
        ("from os import system", "os.system"),
    ],
)
def test_search_detects_forbidden_code(code: str, what: str) -> None:
    assert what in {found for _, found in findings(ast.parse(code))}


def test_search_ignores_harmless_code() -> None:
    code = "re.compile('x')\nsubprocess.run(['ls'], shell=False)\nnp.load(f, allow_pickle=False)\nmodel.eval()"
    assert list(findings(ast.parse(code))) == []
