"""What may run code from a file or from a text is nowhere in the tree, but in the one audited place of its kind.

    torch.load      ssmvdm/data/torch_files.py, with weights_only=True; tests may load their own files so
    torch.jit.load  ssmvdm/evaluation/i3d.py
"""

import re

import pytest

from tests.packaging.conftest import ROOT

FOLDERS = ("ssmvdm", "ssmvdm_kernels", "benchmarks", "tests", "csrc", "docs", "torch-ext", ".ci")
KINDS = (".py", ".md", ".toml", ".cfg", ".sh", ".ipynb", ".nix", ".yml", "")
TORCH_LOAD, JIT_LOAD = "ssmvdm/data/torch_files.py", "ssmvdm/evaluation/i3d.py"
PRODUCT = ("ssmvdm/", "ssmvdm_kernels/", "benchmarks/")
OF_OUR_MAKING = {  # tests that need it, on nothing but what the tree itself holds or the test has just written
    ("pickle", "tests/evaluation/test_i3d.py"),  # that a trap would have sprung
    ("allow_pickle", "tests/evaluation/test_compare.py"),  # to write one
    ("exec", "tests/docs/markdown.py"),  # the examples of the documentation
    ("exec", "tests/docs/test_code_blocks.py"),
}

BANNED = {
    "pickle": r"\b(c?[pP]ickle|dill|joblib|cloudpickle|marshal)\.(load|loads|Unpickler)\b",
    "pickle by another name": r"\bfrom\s+(c?[pP]ickle|dill|joblib|cloudpickle|marshal)\s+import",
    "shelve": r"\bshelve\.open\b",
    "weights_only": r"\bweights_only\s*[=:]\s*False\b",
    "hub": r"\bhub\.load\b|\bload_state_dict_from_url\b",
    "jit": r"\bjit\.load\b",
    "allow_pickle": r"\ballow_pickle\s*[=:]\s*True\b",
    "eval": r"(?<![\w.])eval\((?!\))",
    "exec": r"(?<![\w.])exec\((?!\))",
    "shell": r"\bshell\s*=\s*True\b|\bos\.(system|popen)\(",
    "torch.load": r"\btorch\.load\b",
    "unsafe yaml": r"\byaml\.(load|unsafe_load)\b",
    "remote code": r"\btrust_remote_code\s*=\s*True\b",
}
SAMPLES = {
    "pickle": "pickle.load(file)",
    "pickle by another name": "from pickle import load",
    "shelve": "shelve.open(path)",
    "weights_only": "load(path, weights_only=False)",
    "hub": "torch.hub.load(repository)",
    "jit": "torch.jit.load(path)",
    "allow_pickle": "np.load(path, allow_pickle=True)",
    "eval": "eval(text)",
    "exec": "exec(text)",
    "shell": "run(text, shell=True)",
    "torch.load": "torch.load(path)",
    "unsafe yaml": "yaml.load(text)",
    "remote code": "load(name, trust_remote_code=True)",
}


def findings(name: str, text: str) -> list[str]:
    """What is banned in a file of this name, as `name:line: kind`."""
    found = []
    for kind, pattern in BANNED.items():
        for match in re.finditer(pattern, text):
            line_number = text.count("\n", 0, match.start()) + 1
            line = text.splitlines()[line_number - 1]
            if not _is_allowed(kind, name, line):
                found.append(f"{name}:{line_number}: {kind}")
    return found


def _is_allowed(kind: str, name: str, line: str) -> bool:
    if kind == "jit":
        return name == JIT_LOAD
    if kind == "torch.load":
        return (name == TORCH_LOAD or not name.startswith(PRODUCT)) and "weights_only=True" in line
    if kind == "pickle" and name.startswith("tests/") and "pickle.loads(pickle.dumps(" in line:
        return True  # of our making whatever it is
    return (kind, name) in OF_OUR_MAKING


def test_nothing_banned_is_in_the_tree():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    paths += [path for path in ROOT.iterdir() if path.name != ".git"]
    texts = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8", errors="replace")
        for path in paths
        if path.is_file() and path.suffix in KINDS and "__pycache__" not in path.parts
    }
    del texts["tests/packaging/test_security.py"]  # it holds all of them
    assert {"setup.py", "Makefile", TORCH_LOAD, "ssmvdm_kernels/scan.py"} <= texts.keys()
    assert {name for _, name in OF_OUR_MAKING} <= texts.keys()
    assert [finding for name, text in texts.items() for finding in findings(name, text)] == []


@pytest.mark.parametrize("kind", BANNED)
def test_each_of_them_would_be_found(kind):
    text = "import torch\n\n    found = " + SAMPLES[kind] + "\n"
    assert findings("ssmvdm/anything.py", text) == [f"ssmvdm/anything.py:3: {kind}"]
    if kind != "torch.load":
        assert findings("ssmvdm/" + ("unet3d.py" if kind == "jit" else "evaluation/i3d.py"), text)


def test_the_audited_places_are_what_they_are_for():
    plain, safe = "torch.load(path)", "torch.load(path, weights_only=True)"
    assert findings(TORCH_LOAD, plain)
    assert not findings(TORCH_LOAD, safe)
    assert findings("ssmvdm/checkpoint.py", safe)
    assert not findings("tests/anything.py", safe)
    assert not findings(JIT_LOAD, "torch.jit.load(path)")


def test_methods_called_eval_are_not_meant():
    assert not findings("ssmvdm/anything.py", "network.eval()\nnetwork.eval(mode)\nre" + "_eval(1)\n")
