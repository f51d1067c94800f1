from __future__ import annotations

import doctest
import inspect
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import pytest

import bnmonitor.rules
from bnmonitor import Finding, Rule, Severity, all_rules, default_rules
from bnmonitor.rules import CATALOGUE, FAMILIES, MONITOR_FAULTS, NEEDS, choose, find
from bnmonitor.window import Window

RULES = [pytest.param(rule, id=rule.name) for rule in CATALOGUE]
HEADINGS = ("What it does", "Why is this bad?", "Example", "What to do")
MORE_HEADINGS = ("Thresholds", "Look-alikes", "References")


@dataclass(frozen=True, kw_only=True)
class Mine(Rule):
    """A rule of the user's."""

    code: ClassVar[str] = "XY123"
    name: ClassVar[str] = "my-own"
    severity: ClassVar[Severity] = Severity.INFO

    limit: float = 3.0

    def check(self, window: Window) -> list[Finding]:
        return []


@dataclass(frozen=True, kw_only=True)
class Replacement(Mine):
    """Replaces a rule of the catalogue."""

    code: ClassVar[str] = "BN201"


def codes(rules: tuple[Rule, ...]) -> list[str]:
    return [rule.code for rule in rules]


def family(rule: type[Rule]) -> str:
    return Path(inspect.getfile(rule)).parent.name


def headings(rule: type[Rule]) -> dict[str, str]:
    parts = re.split(r"^\s*## (.+)$", inspect.getdoc(rule) or "", flags=re.MULTILINE)
    return dict(zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True))


# -- what the catalogue is ---------------------------------------------------------------------------------------------


def test_codes_and_names_are_unique() -> None:
    assert len({rule.code for rule in CATALOGUE}) == len(CATALOGUE)
    assert len({rule.name for rule in CATALOGUE}) == len(CATALOGUE)
    assert not {rule.code.lower() for rule in CATALOGUE} & {rule.name for rule in CATALOGUE}


def test_catalogue_is_in_the_order_of_its_codes() -> None:
    assert [rule.code for rule in CATALOGUE] == sorted(rule.code for rule in CATALOGUE)


def test_every_rule_file_in_the_folder_is_in_the_catalogue() -> None:
    home = Path(bnmonitor.rules.__file__).parent
    files = {path for path in home.glob("*/*.py") if path.name != "__init__.py"}
    assert files == {Path(inspect.getfile(rule)) for rule in CATALOGUE}


def test_rules_of_a_family_share_the_folder_and_no_other_family_has_it() -> None:
    folders = {(rule.code[:3], family(rule)) for rule in CATALOGUE}
    assert len(folders) == len({prefix for prefix, _ in folders}) == len({folder for _, folder in folders})
    assert {prefix for prefix, _ in folders} == set(FAMILIES)


@pytest.mark.parametrize("rule", RULES)
def test_rule_has_a_code_and_a_kebab_case_name(rule: type[Rule]) -> None:
    assert re.fullmatch(r"BN\d{3}", rule.code)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", rule.name)
    assert isinstance(rule.severity, Severity)
    assert rule.needs <= {need.word for need in NEEDS}
    assert rule.confirm >= 0


def test_faults_of_the_monitor_are_the_family_of_the_monitor() -> None:
    own = {rule.code for rule in CATALOGUE if rule.code.startswith("BN0")}
    assert own == MONITOR_FAULTS == {"BN001", "BN002", "BN003"}


@pytest.mark.parametrize("rule", RULES)
def test_rule_has_the_same_name_in_its_file_and_its_class(rule: type[Rule]) -> None:
    assert Path(inspect.getfile(rule)).name == rule.name.replace("-", "_") + ".py"
    assert rule.__name__ == "".join(part.capitalize() for part in rule.name.split("-"))


@pytest.mark.parametrize("rule", RULES)
def test_rule_file_begins_with_its_code(rule: type[Rule]) -> None:
    assert (sys.modules[rule.__module__].__doc__ or "").startswith(f"{rule.code}: ")


@pytest.mark.parametrize("rule", RULES)
def test_rule_is_documented_under_the_fixed_headings(rule: type[Rule]) -> None:
    found = headings(rule)
    expected = HEADINGS if rule.code.startswith("BN0") else HEADINGS + MORE_HEADINGS
    assert tuple(title for title in found if title != "Code") == expected
    assert all(found.values()), f"{rule.code} has an empty section"


@pytest.mark.parametrize("rule", RULES)
def test_every_threshold_is_a_number_with_a_documented_meaning(rule: type[Rule]) -> None:
    for threshold in fields(rule):
        assert isinstance(threshold.default, int | float)
        assert not isinstance(threshold.default, bool)
    judged = [f.name for f in fields(rule) if f.name.startswith(("warn", "error", "limit", "growth"))]
    text = headings(rule).get("Thresholds", "")
    assert all(name in text for name in judged), f"{rule.code} does not explain all of {judged}"


@pytest.mark.parametrize("rule", RULES)
def test_doctest_shows_the_rule_firing_and_staying_quiet(rule: type[Rule]) -> None:
    module = sys.modules[rule.__module__]
    tests = doctest.DocTestFinder().find(rule, rule.__name__, module=module)
    examples = [example for test in tests for example in test.examples]
    fired = [e for e in examples if e.source.startswith("[finding] =") or ".report(" in e.source]
    quiet = [e for e in examples if ".check(" in e.source and e.want == "[]\n"]
    assert fired, f"{rule.code} is never shown firing"
    assert quiet, f"{rule.code} is never shown staying quiet"
    for test in tests:
        assert doctest.DocTestRunner(verbose=False).run(test, out=lambda _: None).failed == 0


# -- looking one up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_find_returns_the_rule_by_code_and_by_name(rule: type[Rule]) -> None:
    for word in (rule.code, rule.code.lower(), rule.name, rule.name.upper()):
        assert find(word) == rule()


def test_find_names_the_nearest_word_when_nothing_fits() -> None:
    with pytest.raises(ValueError, match="did you mean 'stale-statistics'"):
        find("stale-statistic")
    with pytest.raises(ValueError, match="did you mean 'BN30"):
        find("BN30")


def test_find_looks_in_given_rules_only() -> None:
    assert find("my-own", [Mine()]) == Mine()
    with pytest.raises(ValueError, match="no rule is called 'BN201'"):
        find("BN201", [Mine()])


def test_all_rules_are_instances_of_the_catalogue_and_default_rules_are_among_them() -> None:
    assert [type(rule) for rule in all_rules()] == list(CATALOGUE)
    assert default_rules() == tuple(rule for rule in all_rules() if rule.default)
    assert default_rules()


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_nothing_selected_means_the_default_rules() -> None:
    assert choose() == default_rules()
    assert choose(("default",)) == default_rules()
    assert choose(("all",)) == all_rules()
    assert choose(()) == ()


@pytest.mark.parametrize("word", ["BN304", "bn304", "stale-statistics"])
def test_select_takes_a_code_or_a_name(word: str) -> None:
    assert codes(choose((word,))) == ["BN304"]


def test_select_takes_a_prefix_of_codes() -> None:
    assert codes(choose(("BN3",))) == [rule.code for rule in CATALOGUE if rule.code.startswith("BN3")]
    assert codes(choose(("BN",))) == codes(all_rules())


def test_chosen_rules_come_once_and_by_code_however_they_were_selected() -> None:
    assert codes(choose(("stale-statistics", "BN1", "BN304", "BN101"))) == [
        *[rule.code for rule in CATALOGUE if rule.code.startswith("BN1")],
        "BN304",
    ]


def test_ignore_leaves_out_by_code_prefix_or_name() -> None:
    left = codes(choose(("all",), ignore=("BN1", "small-batch", "BN402")))
    assert left == [c for c in codes(all_rules()) if not c.startswith("BN1") and c not in ("BN201", "BN402")]
    assert choose(("all",), ignore=("all",)) == ()


@pytest.mark.parametrize("argument", ["select", "ignore"])
def test_word_that_matches_no_rule_is_refused_with_the_nearest(argument: str) -> None:
    with pytest.raises(ValueError, match=rf"{argument}='smal-batch' matches no rule; did you mean 'small-batch'\?"):
        choose(**{argument: ("smal-batch",)})
    with pytest.raises(ValueError, match=f"{argument}='BN9' matches no rule"):
        choose(**{argument: ("BN9",)})


@pytest.mark.parametrize("argument", ["select", "ignore"])
def test_empty_word_is_refused_and_does_not_mean_all(argument: str) -> None:
    with pytest.raises(ValueError, match="matches no rule"):
        choose(**{argument: ("",)})


# -- thresholds and own rules ------------------------------------------------------------------------------------------


def test_thresholds_are_set_by_name_or_code_and_keep_the_others() -> None:
    for word in ("small-batch", "BN201"):
        chosen = choose(rules={word: {"warn_below": 8}})
        assert codes(chosen) == codes(default_rules())
        changed = find("BN201", chosen)
        assert changed == type(changed)(warn_below=8)
        assert [r for r in chosen if r.code != "BN201"] == [r for r in default_rules() if r.code != "BN201"]
    assert find("BN201") == type(find("BN201"))(), "the catalogue itself must not change"


def test_threshold_does_not_select_a_rule() -> None:
    assert codes(choose(("BN3",), rules={"small-batch": {"warn_below": 8}})) == codes(choose(("BN3",)))


def test_unknown_threshold_is_refused_with_the_nearest_and_the_list() -> None:
    with pytest.raises(
        ValueError, match=r"no threshold 'warn_bellow'; did you mean 'warn_below'\?; it has warn_below, "
    ):
        choose(rules={"small-batch": {"warn_bellow": 8}})
    with pytest.raises(ValueError, match="'eval-mode-in-training' has no threshold 'limit'; it has none"):
        choose(rules={"BN401": {"limit": 8}})
    with pytest.raises(ValueError, match="no rule is called 'smal-batch'; did you mean 'small-batch'"):
        choose(rules={"smal-batch": {"warn_below": 8}})


@pytest.mark.parametrize("value", ["8", True, None, [8]])
def test_threshold_that_is_not_a_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"'warn_below' of rule 'small-batch' must be a number, got "):
        choose(rules={"small-batch": {"warn_below": value}})  # type: ignore[dict-item]


def test_own_rule_joins_and_runs_whatever_is_selected() -> None:
    assert codes(choose(rules=[Mine()])) == [*codes(default_rules()), "XY123"]
    assert choose((), rules=[Mine(limit=5)]) == (Mine(limit=5),)
    assert codes(choose(("XY1",), rules=[Mine()])) == ["XY123"]


def test_own_rule_replaces_the_rule_with_the_same_code() -> None:
    chosen = choose(rules=[Replacement()])
    assert codes(chosen) == codes(default_rules())
    assert find("BN201", chosen) == Replacement()


def test_own_rule_is_left_out_if_ignored() -> None:
    assert choose((), ignore=("my-own",), rules=[Mine()]) == ()


def test_class_instead_of_an_instance_is_refused_with_a_hint() -> None:
    with pytest.raises(TypeError, match=r"must hold Rule instances .* pass an instance$"):
        choose(rules=[Mine])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"got 5; derive it from bnmonitor\.rules\.Rule"):
        choose(rules=[5])  # type: ignore[list-item]
