"""The house rules, read from the source: what may know what, and how long a thing may be."""

import ast
import graphlib

import pytest
from conftest import ROOT

from attacks import ATTACKS
from explain import EXPLAINERS
from models import MODELS

MAX_COLUMNS = 100
MAX_LINES = 400  # of a file
MAX_FUNCTION = 45  # lines
PACKAGES = ("defences", "studies")

# Usable from a notebook: they raise ValueError, and know nothing of a command line.
LIBRARY = (
    *("hooks", "explain", "shapley", "shapley_estimators", "deepshap", "losses", "metrics"),
    *("tasks", "attacks", "triggers", "findings", "fonts", "terminal", "strangers", "shares"),
    "mean_gradients",
    *("selection", "models", "edited", "shapes", "dataset", "figure", "viering"),
)


def module_name(path):
    """The name under which a file of the project is imported: `losses`, `defences.prune`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = sorted([*ROOT.glob("*.py"), *(p for name in PACKAGES for p in (ROOT / name).glob("*.py"))])
TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
TESTS = sorted((ROOT / "tests").glob("*.py"))


def found(tree, *kinds):
    """The nodes of these kinds in a tree."""
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def functions(tree):
    """All functions and methods of a tree."""
    return found(tree, ast.FunctionDef, ast.AsyncFunctionDef)


def places(modules, offences):
    """["MODULE:LINE", ...] of the nodes that offences(tree) gives for these modules."""
    return [f"{name}:{node.lineno}" for name in modules for node in offences(TREES[name])]


def test_the_project_has_the_files_these_rules_are_about():
    assert {"explain", "losses", "train", "defences", "defences.prune", "studies"} <= set(TREES)


# ---------------------------------------------------------------- who knows what

NAMES = {*EXPLAINERS, *ATTACKS, *MODELS}


def comparisons_with(names, tree):
    """Comparisons in which one of the names stands, in a list or alone, and cases of a match."""
    result = []
    for node in found(tree, ast.Compare, ast.MatchValue):
        words = {part.value for part in found(node, ast.Constant) if isinstance(part.value, str)}
        if words & names:
            result.append(node)
    return result


def test_no_explainer_attack_or_network_is_compared_by_its_name():
    """What is special about one is a field of its row, in its own table."""
    modules = [name for name in TREES if not name.startswith("studies")]
    assert places(modules, lambda tree: comparisons_with(NAMES, tree)) == []


@pytest.mark.parametrize(
    "code",
    [
        'if name == "kernelshap": pass',
        'x = args.attack in ("none", "badnets")',
        'if "resnet18" != model: pass',
        'match name:\n    case "gradcam": pass',
    ],
)
def test_a_comparison_with_a_name_would_be_found(code):
    assert len(comparisons_with(NAMES, ast.parse(code))) == 1


def imported_by(name):
    """The project's modules that a module imports; of `from a.b import c`, a, a.b and a.b.c."""
    names = []
    for node in found(TREES[name], ast.Import):
        names += [alias.name for alias in node.names]
    for node in found(TREES[name], ast.ImportFrom):
        names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    names += [module.split(".")[0] for module in (*names, name)]  # Python runs the package first
    return {other for other in names if other in TREES and other != name}


def circle_among(imports):
    """A circle of imports, each module importing the one before; [] if there is none.

    imports: {module: the modules it imports}.
    """
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_by_way_of_others():
    assert circle_among({name: imported_by(name) for name in TREES}) == []


def test_a_circle_of_imports_would_be_found():
    imports = {"train": {"defences.prune"}, "defences.prune": {"train", "hooks"}}
    assert set(circle_among(imports)) == {"train", "defences.prune"}


def test_every_import_is_at_the_top_of_its_file():
    """But for bench.py, which measures packages that need not be there."""
    modules = [name for name in TREES if name != "bench"]
    inner = lambda tree: [
        node for part in functions(tree) for node in found(part, ast.Import, ast.ImportFrom)
    ]
    assert places(modules, inner) == []


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_does_not_know_the_command_line(name):
    assert "cli" not in imported_by(name)
    assert not [node for node in found(TREES[name], ast.Name) if node.id == "UserError"]


# ---------------------------------------------------------------- nothing is patched


def module_aliases(tree):
    """The names under which a file knows other modules of the project."""
    aliases = set()
    for node in found(tree, ast.Import):
        aliases |= {a.asname or a.name for a in node.names if a.name in TREES}
    for node in found(tree, ast.ImportFrom):
        inner = {a.asname or a.name for a in node.names if f"{node.module}.{a.name}" in TREES}
        aliases |= inner
    return aliases


def targets(tree):
    """What is assigned to in a tree, by = and its kin, or by del."""
    result = []
    for node in found(tree, ast.Assign, ast.Delete):
        result += node.targets
    for node in found(tree, ast.AugAssign, ast.AnnAssign):
        result.append(node.target)
    return [part for target in result for part in single_targets(target)]


def single_targets(target):
    """The targets in a tuple of them; of an item of something, the thing itself."""
    if isinstance(target, (ast.Tuple, ast.List)):
        return [part for element in target.elts for part in single_targets(element)]
    if isinstance(target, (ast.Subscript, ast.Starred)):
        return single_targets(target.value)
    return [target]


def patches(tree):
    """Assignments to another module's global, or to an item of one, and setattr on a module."""
    aliases = module_aliases(tree)

    def is_module(node):
        return ast.unparse(node) in aliases

    assigned = [node for node in targets(tree) if isinstance(node, ast.Attribute)]
    result = [node for node in assigned if is_module(node.value)]
    for call in found(tree, ast.Call):
        if ast.unparse(call.func) in ("setattr", "delattr") and is_module(call.args[0]):
            result.append(call)
    return result


def test_no_modules_global_is_assigned_from_another_module():
    assert places(TREES, patches) == []


@pytest.mark.parametrize(
    "code",
    [
        "import losses\nlosses.DEFAULT_FLOOR = 1",
        "import explain\nexplain.EXPLAINERS['mine'] = row",
        "import defences.prune\ndefences.prune.HELP += ''",
        "from defences import prune\nprune.HELP, x = 1, 2",
        "import hooks as h\nsetattr(h, 'CHUNK', 1)",
    ],
)
def test_an_assignment_to_another_modules_global_would_be_found(code):
    assert len(patches(ast.parse(code))) == 1


def test_no_module_is_written_behind_its_back():
    """An attribute of an nn.Module is set as any other: object.__setattr__ hides a module."""
    hidden = lambda tree: [n for n in found(tree, ast.Attribute) if n.attr == "__setattr__"]
    assert places(TREES, hidden) == []
    assert not [p.name for p in TESTS if hidden(ast.parse(p.read_text(encoding="utf-8")))]


# ---------------------------------------------------------------- how long a thing may be


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_line_is_over_100_columns(path):
    long = [n for n, line in enumerate(lines_of(path), 1) if len(line) > MAX_COLUMNS]
    assert long == []


def test_no_file_is_over_400_lines():
    assert [path.name for path in FILES if len(lines_of(path)) > MAX_LINES] == []


def test_no_function_is_over_45_lines():
    long = lambda tree: [
        node for node in functions(tree) if node.end_lineno - node.lineno + 1 > MAX_FUNCTION
    ]
    assert places(TREES, long) == []


def unclear_first_line(node):
    """Whether a docstring does not begin with one sentence on a line of its own."""
    docstring = ast.get_docstring(node)
    if docstring is None:
        return False
    first, *others = docstring.splitlines()
    return len(first) >= MAX_COLUMNS or first[-1] not in ".:?" or any(others[:1])


def test_the_first_line_of_a_docstring_is_one_short_sentence():
    unclear = lambda tree: [
        node for node in [*functions(tree), *found(tree, ast.ClassDef)] if unclear_first_line(node)
    ]
    assert places(TREES, unclear) == []


def test_every_module_says_what_it_is_for():
    without = [name for name, tree in TREES.items() if not ast.get_docstring(tree)]
    assert without == []
