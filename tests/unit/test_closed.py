"""Nothing in the package turns bytes or text into code: the rules, each seen to fail, and the package under them."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "fedloom"
MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "jsonpickle",
    "marshal",
    "shelve",
    "torch.serialization",
}
BUILT_IN = {"eval", "exec", "compile", "__import__", "execfile"}
CALLS = {
    "torch.load", "torch.save", "torch.package", "torch.hub.load", "pandas.read_pickle", "os.system", "os.popen",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "types.FunctionType", "types.CodeType", "code.interact",
}  # fmt: skip
TRUE = {"trust_remote_code", "allow_pickle", "shell"}
SAFE = {"SafeLoader", "CSafeLoader", "safe", "rt"}


def breaches(text):
    """The lines of a module that break a rule, `line: what`."""
    tree = ast.parse(text)
    names = imported(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += [(node, f"import {name}") for name in modules(node) if closed(name)]
        elif isinstance(node, ast.Name | ast.Attribute):
            name = dotted(node, names)
            if name in CALLS or closed(name) or name.removeprefix("builtins.") in BUILT_IN:
                found.append((node, name))
        elif isinstance(node, ast.Call):
            found += [(node, f"{k.arg}={ast.unparse(k.value)}") for k in node.keywords if unsafe(k)]
            called = dotted(node.func, names)
            if called in ("getattr", "importlib.import_module") and closed(literal(node)):
                found.append((node, f"{called} of {literal(node)}"))
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found += [
                (node, f"{k.value}: True")
                for k, v in pairs
                if isinstance(k, ast.Constant) and k.value in TRUE and not off(v)
            ]
    return sorted({f"{node.lineno}: {what}" for node, what in found})


def imported(tree):
    """What the names of a module's imports stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def modules(node):
    if isinstance(node, ast.Import):
        return [a.name for a in node.names]
    return [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]


def closed(name):
    """Whether a dotted name is a module of the closed ones, or lies in it."""
    return any(name == own or name.startswith(f"{own}.") for own in MODULES)


def dotted(node, names):
    """The full name of `a.b.c`, a's import followed; empty where it is no name."""
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, names)
        return f"{inner}.{node.attr}" if inner else ""
    own = names.get(node.id, node.id) if isinstance(node, ast.Name) else ""
    return {"np": "numpy", "pd": "pandas"}.get(own, own)


def off(value):
    return isinstance(value, ast.Constant) and not value.value


def unsafe(keyword):
    """`shell=True`, and the like, or a value that is not known; a loader of YAML, or a type of it, that makes objects."""
    if keyword.arg in TRUE:
        return not off(keyword.value)
    if keyword.arg == "Loader":
        return ast.unparse(keyword.value).rpartition(".")[2] not in SAFE
    return keyword.arg == "typ" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value in SAFE)


def literal(node):
    values = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return values[0] if values else ""


FILES = sorted(PACKAGE.rglob("*.py"))
REFUSES = {"import pickle", "pickle", "pickle.Unpickler", "pickle.UnpicklingError"}
"""What reads FedScale's pickles takes of that module: an unpickler that refuses whatever it is asked to import."""


def test_there_is_a_package_to_look_at():
    assert len(FILES) > 100 and PACKAGE / "codec" / "wire.py" in FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_in_a_message_or_a_file_can_execute(file):
    allowed = REFUSES if file == PACKAGE / "devices" / "fedscale.py" else set()
    assert [found for found in breaches(file.read_text()) if found.partition(": ")[2] not in allowed] == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import pickle", "import pickle"),
        ("import marshal as m", "import marshal"),
        ("def f():\n    import shelve", "import shelve"),
        ("from dill import loads", "import dill"),
        ("import cloudpickle.fast", "import cloudpickle.fast"),
        ("from torch.serialization import load", "import torch.serialization"),
        ("import importlib\nimportlib.import_module('pickle')", "importlib.import_module of pickle"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("import torch as t\nload = t.load", "torch.load"),
        ("from torch import load\nload('x', weights_only=True)", "torch.load"),
        ("import torch\ntorch.save({}, 'x')", "torch.save"),
        ("import torch\ntorch.serialization.load('x')", "torch.serialization"),
        ("import torch\ntorch.hub.load('x', 'y')", "torch.hub.load"),
        ("import pandas as pd\npd.read_pickle('x')", "pandas.read_pickle"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle=True"),
        ("import numpy as np\nnp.load('x', allow_pickle=flag)", "allow_pickle=flag"),
        ("eval('1')", "eval"),
        ("import builtins\nbuiltins.eval('1')", "builtins.eval"),
        ("list(map(exec, texts))", "exec"),
        ("compile(text, 'x', 'exec')", "compile"),
        ("__import__(name)", "__import__"),
        ("import yaml\nyaml.load(text, Loader=yaml.SafeLoader)", "yaml.load"),
        ("import yaml\nyaml.unsafe_load(text)", "yaml.unsafe_load"),
        ("import yaml\nread(text, Loader=yaml.Loader)", "Loader=yaml.Loader"),
        ("from ruamel.yaml import YAML\nYAML(typ='unsafe')", "typ='unsafe'"),
        ("AutoModel.from_pretrained(path, trust_remote_code=True)", "trust_remote_code=True"),
        ("options = {'trust_remote_code': flag}", "trust_remote_code: True"),
        ("import subprocess\nsubprocess.run(text, shell=True)", "shell=True"),
        ("import os\nos.system(text)", "os.system"),
        ("from os import popen\npopen(text)", "os.popen"),
    ],
)
def test_every_rule_can_fail(text, what):
    assert any(what in found for found in breaches(text)), breaches(text)


@pytest.mark.parametrize(
    "text",
    [
        "import re\nre.compile('x')",
        "model.eval()",
        "import safetensors.torch\nsafetensors.torch.load(data)",
        "import json\njson.load(file)",
        "AutoModel.from_pretrained(path, trust_remote_code=False)",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "from ruamel.yaml import YAML\nYAML(typ='safe')",
        "torch.compile(model)",
        "import subprocess\nsubprocess.run(['ls'])",
    ],
)
def test_what_is_harmless_passes(text):
    assert breaches(text) == []
