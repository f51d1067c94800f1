from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest

from bnmonitor.diagnosis import CAUSES
from bnmonitor.rules import all_rules
from bnmonitor.symptoms import (
    Symptom,
    all_symptoms,
    described_symptom,
    plain_symptom,
    search_symptoms,
    symptom_index,
    symptom_page,
)
from bnmonitor.symptoms.pages import ORDER, TEXTS, parse

ROOT = Path(__file__).parents[2]
GOOD = """# It fails

<!-- words: fails -->

It fails.

## Something

Incident: [momentum](../causes/momentum.md). Because.

Wrong:

```python
a = 1
```

Right, or so:

```python
a = 2
```
"""

ASKED = {
    "nan after hours": "nan-after-hours",
    "loss becomes NaN with amp": "nan-after-hours",
    "my val loss is huge but train is fine": "validation-explodes",
    "exploding validaton": "validation-explodes",
    "the loss does not decrease": "loss-stuck",
    "accuracy 10% in eval": "eval-at-chance",
    "eval score fluctuates": "eval-jumps",
    "works only with model.train()": "train-mode-only",
    "finetuning made it worse": "fine-tuning-got-worse",
    "different result on 8 gpus": "ddp-differs",
    "batch size 1": "batch-of-one-or-two",
    "EMA is worse": "ema-worse-than-raw",
    "swa": "ema-worse-than-raw",
    "onnx output differs": "export-differs",
    "wgan-gp does not train": "gan",
    "ppo policy collapses": "reinforcement-learning",
    "fixmatch pseudo labels": "semi-supervised",
}


@pytest.mark.parametrize("asked", ASKED)
def test_words_find_the_page(asked: str) -> None:
    assert search_symptoms(asked)[0].name == ASKED[asked]


def test_words_that_no_page_has_find_nothing() -> None:
    assert search_symptoms("zzz") == search_symptoms("") == search_symptoms("why is it") == ()


def test_the_name_of_a_page_finds_that_page_alone() -> None:
    for symptom in all_symptoms():
        assert search_symptoms(symptom.name) == (symptom,)
        assert search_symptoms(symptom.title)[0] == symptom


def test_every_text_is_a_page() -> None:
    assert {path.stem for path in TEXTS.glob("*.md")} == {*ORDER, "index", "setup"}


@pytest.mark.parametrize("symptom", all_symptoms(), ids=lambda symptom: symptom.name)
def test_a_page_names_causes_that_exist(symptom: Symptom) -> None:
    rules, causes = {rule.name: rule.code for rule in all_rules()}, {cause.name for cause in CAUSES}
    for name, target in re.findall(r"Incident: \[([\w-]+)\]\(([^)]+)\)", symptom.source):
        known = f"../causes/{name}.md" if name in causes else f"../rules/{rules[name]}.md"
        assert target == known
    assert len(symptom.reasons) == symptom.source.count("Incident: [")
    assert all(reason.says for reason in symptom.reasons)


@pytest.mark.parametrize("symptom", all_symptoms(), ids=lambda symptom: symptom.name)
def test_the_terminal_shows_the_text_of_the_page(symptom: Symptom) -> None:
    short, full = plain_symptom(symptom), plain_symptom(symptom, code=True)
    assert max(map(len, short.splitlines()[:-2])) <= 80
    assert not re.search(r"\]\(|`|<!--|\*\*", short)
    for reason in symptom.reasons:
        assert f"bnmonitor explain {reason.cause}" in short
        assert reason.wrong.splitlines()[-1] in full
        assert reason.wrong.splitlines()[-1] not in short
    assert described_symptom(symptom)["causes"][0]["wrong"] == symptom.reasons[0].wrong


def test_the_index_leads_to_every_page_twice() -> None:
    for symptom in all_symptoms():
        assert symptom_index().count(f"(symptoms/{symptom.name}.md)") == 2
        assert "words:" not in symptom_page(symptom)


@pytest.mark.parametrize(
    "broken",
    [
        GOOD.replace("<!-- words: fails -->\n\n", ""),
        GOOD.replace("Incident: ", ""),
        GOOD.replace("```python\na = 2\n```\n", ""),
        GOOD.replace("Right", "Better"),
        GOOD.replace("Wrong:", "Like this:"),
    ],
)
def test_a_page_of_another_shape_is_refused(broken: str) -> None:
    [reason] = parse("it", GOOD).reasons
    assert (reason.cause, reason.text, reason.says, reason.note) == ("momentum", "Because.", "", ", or so")
    with pytest.raises(ValueError, match=r"^it\b"):
        parse("it", broken)


def test_the_pages_of_the_documentation_are_what_the_texts_say(tmp_path: Path) -> None:
    stale = run_path(str(ROOT / "docs" / "gen_symptoms.py"))["stale"]
    assert not stale(), "run `python docs/gen_symptoms.py`"
    shutil.copytree(ROOT / "docs" / "symptoms", tmp_path / "symptoms")
    (tmp_path / "symptoms/gone.md").write_text("")
    assert stale(tmp_path) == [Path("symptoms.md"), Path("symptoms/gone.md")]


def test_the_map_of_each_program_that_trains_is_shown_in_light_and_dark() -> None:
    shown = set()
    for symptom in all_symptoms():
        page = (ROOT / "docs" / "symptoms" / f"{symptom.name}.md").read_text(encoding="utf-8")
        maps = dict(re.findall(r"^!\[Map: (.*)\]\(\.\./(\S+)-light\.svg\)$", page, re.MULTILINE))
        only_evaluates = "with Monitor(model) as monitor:\n    evaluate(monitor, model)\n"
        trains = [reason.title for reason in symptom.reasons if not reason.wrong.endswith(only_evaluates)]
        assert list(maps) == trains, "run `python docs/gen_symptoms.py --run`"
        shown |= {ROOT / "docs" / f"{path}-{mode}.svg" for path in maps.values() for mode in ("light", "dark")}
    assert shown == set((ROOT / "docs" / "pictures" / "symptoms").iterdir())


def test_symptoms_are_found_without_torch() -> None:
    code = "import sys; from bnmonitor.symptoms import search_symptoms; search_symptoms('nan'); "
    command = [sys.executable, "-c", code + "print('torch' in sys.modules)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
