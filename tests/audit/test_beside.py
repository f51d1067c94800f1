"""What is judged beside a file: a reference, images, and the model; and what is handed on: a card and a badge."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from bnmonitor.audit import Audit, Question, UnreadableError, audit, estimate, examine
from bnmonitor.audit.images import estimate_alerts
from bnmonitor.cli import main
from bnmonitor.results import Severity
from tests.audit.files import State, batch, keras, lightning, network, plain, put, reset, state_of, train, trained

MAKE = "tests.audit.files:Net"


def compared(state: State, reference: State, path: Path) -> Audit:
    (path / "old").mkdir(exist_ok=True)
    asked = Question(reference=str(plain(reference, path / "old")))
    ((_, found),) = examine(str(lightning(state, path)), asked)
    return found


def serious(found: Audit) -> list[tuple[str, str | None]]:
    return [(a.code, (a.layer or "").removeprefix("model.")) for a in found.alerts if a.severity > Severity.INFO]


# -- a reference -------------------------------------------------------------------------------------------------------


def test_a_training_that_goes_on_is_no_fault(tmp_path: Path) -> None:
    later = train(network(trained(0)), 1, steps=10).state_dict()
    found = compared(later, trained(0), tmp_path)
    assert serious(found) == []
    assert {m.layer for m in found.moved} == {f"model.{n}" for n in ("stem.1", "block.bn1", "block.bn2", "head.0")}
    assert found.moved[0].far > 0


def test_statistics_that_leaked_out_of_a_freeze_are_named(tmp_path: Path) -> None:
    model = network(trained(0))
    for p in (*model.stem[1].parameters(), *model.block.bn1.parameters()):
        p.requires_grad_(False)
    train(model, 0, steps=10, scale=2.0)
    found = compared(model.state_dict(), trained(0), tmp_path)
    (leak,) = [a for a in found.alerts if a.code == "BN402"]
    assert leak.layers == ("model.stem.1",)  # the layer behind it sees what that one has normalized
    assert "frozen without their statistics" in leak.message


def test_statistics_that_were_estimated_again_are_a_note(tmp_path: Path) -> None:
    moved = {n: t + 1 if n.endswith("running_mean") else t for n, t in trained(0).items()}
    found = compared(moved, trained(0), tmp_path)
    assert serious(found) == []
    assert "estimated again" in next(a.message for a in found.alerts if a.code == "BN402")


def test_one_layer_that_differs_where_no_weight_does_was_written(tmp_path: Path) -> None:
    moved = state_of(0)
    moved["block.bn2.running_mean"] += 2
    assert serious(compared(moved, trained(0), tmp_path)) == [("BN306", "block.bn2")]


def test_a_layer_that_went_far_alone_is_named(tmp_path: Path) -> None:
    later = train(network(trained(0)), 1, steps=5).state_dict()
    later["block.bn1.running_var"] *= 3000
    assert serious(compared(later, trained(0), tmp_path)) == [("BN304", "block.bn1")]


def test_layers_that_cannot_be_compared_are_listed(tmp_path: Path) -> None:
    fewer = {n: t for n, t in trained(0).items() if not n.startswith("head.0")}
    assert (
        compared(trained(0), fewer, tmp_path).skipped["comparison of model.head.0"] == "the reference has no such layer"
    )


def test_a_reference_of_a_wrapped_model_and_one_of_another_are_told_apart(tmp_path: Path) -> None:
    asked = Question(reference=str(lightning(trained(0), tmp_path)))
    ((_, found),) = examine(str(plain(trained(1), tmp_path)), asked)
    assert {m.layer for m in found.moved} == {"stem.1", "block.bn1", "block.bn2", "head.0"}
    other = {n.replace("stem", "body"): t for n, t in trained(0).items()}
    ((_, found),) = examine(str(plain(other, tmp_path)), asked)
    assert not found.moved
    assert found.skipped["comparison of body.1"] == "the reference has no such layer"
    assert found.skipped["comparison of model.stem.1"] == "only the reference has it"


def test_layers_of_another_width_and_two_alone_are_not_compared(tmp_path: Path) -> None:
    wider = {n: t.repeat(2) if n.startswith("head.0") and t.dim() else t for n, t in trained(0).items()}
    few = {n: t for n, t in trained(0).items() if n.startswith(("stem.1", "head.0"))}
    found = compared({n: t * 3000 if n == "stem.1.running_var" else t for n, t in wider.items()}, few, tmp_path)
    assert found.skipped["comparison of model.head.0"] == "the reference has 16 channels there, not 32"
    assert [m.layer for m in found.moved] == ["model.stem.1"]
    assert "BN304" not in {a.code for a in found.alerts}, "far from what the other layers do, of which there are none"


# -- images ------------------------------------------------------------------------------------------------------------


def images(amount: int, path: Path) -> Path:
    path.mkdir()
    for i, pixels in enumerate((batch(7, amount)[0] * 32 + 128).clamp(0, 255).byte()):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path / f"{i}.png")
    return path


def seen(state: State, amount: int = 48) -> list[tuple[str, str | None]]:
    model = network(state)
    return serious(audit(model, inputs=batch(0)[0], estimates=estimate(model, batch(7, amount)[0])))


def test_sound_statistics_fit_the_images() -> None:
    assert seen(trained(0)) == []
    assert seen(trained(1)) == []


def test_a_layer_that_does_not_fit_is_named_and_no_other() -> None:
    for layer in ("stem.1", "block.bn1", "head.0"):
        state = state_of(0)
        state[f"{layer}.running_mean"] += 1.5 * state[f"{layer}.running_var"].sqrt()
        assert seen(state) == [("BN304", layer)]
        assert seen(state, 4) == []  # too few to judge


def test_estimates_change_nothing_and_say_how_few_they_are() -> None:
    model = network(trained(0))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = estimate(model, batch(7, 4)[0])
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.training
    assert "4 images" in found.sentence()
    assert "8 or more are needed" in found.sentence()
    with pytest.raises(UnreadableError, match="2 images or more"):
        estimate(model, batch(7, 1)[0])


def test_estimates_are_the_moments_of_what_a_layer_is_given() -> None:
    layer = nn.BatchNorm2d(3)
    layer.running_var = torch.full((3,), 4.0)
    x = torch.randn(32, 3, 5, 5) + 1
    (found,) = estimate(layer, x).layers
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    assert found.mean == pytest.approx(float((mean / (4 + 1e-5) ** 0.5).abs().median()), rel=1e-5)
    assert found.deviation == pytest.approx(float((0.5 * (var / 4).log()).abs().median()), rel=1e-3)
    error = x.mean((2, 3)).std(0) / 32**0.5 / 2
    assert found.mean_error == pytest.approx(float(error.median()), rel=1e-3)


def test_a_directory_of_images_goes_through_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, there = plain(trained(0), tmp_path), images(32, tmp_path / "images")
    command = ["audit", str(checkpoint), "--model", MAKE, "--images", str(there), "--input", "2,3,8,8"]
    assert main([*command, "--pixels", "raw"]) == 1
    said = capsys.readouterr().out
    assert "32 images, as they are, 0 to 255" in said
    assert "the layers behind it fit" in said.replace("\n  ", " ")
    assert main(command) == 0  # nobody said how the images are to be prepared
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    (plain_types,) = json.loads(capsys.readouterr().out)["audits"]
    assert plain_types["images"]["images"] == 32
    assert [row["layer"] for row in plain_types["images"]["layers"]] == ["stem.1", "block.bn1", "block.bn2", "head.0"]
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("no pixels")
    for arguments, why in (
        (["audit", str(checkpoint), "--images", str(there)], "takes the model"),
        ([*command[:4], "--images", str(tmp_path / "none")], "not a directory of images"),
        ([*command[:4], "--images", str(checkpoint.parent / "empty")], "no image in"),
        ([*command[:4], "--images", str(checkpoint.parent / "text")], "is not an image that can be read"),
        ([*command[:4], "--images", str(there), "--input", "2,3,2,2"], "does not take images of shape [32, 3, 2, 2]"),
        ([*command[:3], "tests.audit.files:Block"], "could not be called"),
        ([*command[:3], "no_such_model"], "timm"),
        ([*command[:3], "no such:model"], "must be package.module:factory"),
        ([*command[:2], "--reference", str(tmp_path / "other.pt")], "holds no normalization layer"),
    ):
        assert main(arguments) == 2
        failed = capsys.readouterr().err
        assert why in failed
        assert failed.count("\n") == 1


def test_layers_that_images_do_not_reach_or_that_all_are_off_are_said() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.fresh = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.fresh(x)
            return y

    found = estimate(Split(), batch(0)[0])
    assert found.layers == ()
    assert found.sentence() == "16 images: no layer ran on them"
    assert "unused" in found.not_run
    stale = {n: t + 5 if n.endswith("running_mean") else t for n, t in trained(0).items()}
    (alert,) = estimate_alerts(estimate(network(stale), batch(7, 48)[0]))
    assert "4 of 4 layers are off: all are stale" in alert.message


def test_a_checkpoint_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    fewer = {n: t for n, t in trained(0).items() if n != "stem.0.weight"}
    with pytest.raises(UnreadableError, match=r"stem\.0\.weight, which is missing"):
        examine(str(lightning(fewer, tmp_path)), Question(model=MAKE))


def test_a_model_with_its_checkpoint_is_judged_whole(tmp_path: Path) -> None:
    ((_, found),) = examine(str(lightning(reset("block.bn2")(0), tmp_path)), Question(model=MAKE, shape=(2, 3, 8, 8)))
    assert ("BN404", "block.bn2") in serious(found)
    assert found.kinds[0] == "BatchNorm2d"
    assert not any("needs the model" in why for why in found.skipped.values())


# -- a card and a badge ------------------------------------------------------------------------------------------------


def handed_on(state: State, path: Path) -> tuple[str, ElementTree.Element]:
    main(["audit", str(plain(state, path)), "--card", str(path / "CARD.md"), "--badge", str(path / "badge.svg")])
    return (path / "CARD.md").read_text(), ElementTree.fromstring((path / "badge.svg").read_text())


def test_a_card_and_a_badge_of_a_sound_file_do_not_call_it_healthy(tmp_path: Path) -> None:
    card, badge = handed_on(trained(0), tmp_path)
    assert "**✓ 4 layers, 64 channels: nothing wrong found in what a file can show**" in card
    assert "| updates counted | 40 |" in card
    assert "## What is wrong" not in card
    assert "nothing is said of modes, data, loss or accuracy" in card
    assert badge.attrib["aria-label"] == "BatchNorm: ✓ 4 layers · nothing wrong found"
    assert "healthy" not in card


def test_a_card_and_a_badge_name_the_worst(tmp_path: Path) -> None:
    card, badge = handed_on(put("block.bn1.running_var", -1.0, 2)(0), tmp_path)
    assert "✗ **[BN101](" in card
    assert badge.attrib["aria-label"] == "BatchNorm: ✗ non finite statistics"
    assert {"#b3261e"} < {each.attrib.get("fill") for each in badge.iter()}


def test_a_card_says_what_was_asked_besides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = train(network(trained(0)), 1, steps=10).state_dict()
    later["head.0.num_batches_tracked"] -= 7
    (tmp_path / "old").mkdir()
    command = ["audit", str(lightning(later, tmp_path)), "--reference", str(plain(trained(0), tmp_path / "old"))]
    command += ["--model", MAKE, "--images", str(images(32, tmp_path / "images")), "--pixels", "raw"]
    main([*command, "--input", "2,3,8,8", "--card", str(tmp_path / "CARD.md")])
    card = (tmp_path / "CARD.md").read_text()
    assert "| updates counted | 43 to 50 |" in card
    assert "| against the reference | means moved by" in card
    assert "| on images | 32 images, as they are, 0 to 255" in card
    assert "The layers were judged as they are, without training" in card
    assert main([*command[:4], "--rows", "1"]) == 0
    said = capsys.readouterr().out
    assert "3 more layers" in said
    assert "since the reference, means have moved by" in said


def test_a_card_and_a_badge_of_what_has_nothing_to_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare, worth, badge = tmp_path / "bare.md", tmp_path / "worth.md", tmp_path / "badge.svg"
    main(["audit", "torch.nn:Identity", "--card", str(bare), "--badge", str(badge)])
    assert "| layers | 0 with 0 channels |" in bare.read_text()
    assert "## Layers" not in bare.read_text()
    assert "no layer to judge" in badge.read_text()
    main(["audit", "tests.audit.files:unnormalized", "--card", str(bare)])  # its only layer has no statistics
    capsys.readouterr()
    assert bare.read_text().startswith("# BatchNorm card: tests.audit.files:unnormalized")
    assert "SHA-256" not in bare.read_text()
    assert "furthest mean" not in bare.read_text()
    notes = {n: t + 1 if n.endswith("running_mean") else t for n, t in trained(0).items()}
    (tmp_path / "old").mkdir()
    reference = ["--reference", str(plain(trained(0), tmp_path / "old"))]
    assert main(["audit", str(plain(notes, tmp_path)), *reference, "--card", str(worth)]) == 0
    assert "## Worth knowing" in worth.read_text()


def test_names_of_a_file_do_not_break_a_card(tmp_path: Path) -> None:
    odd = {f"<b>|`{n}": t for n, t in put("stem.1.running_mean", torch.nan, 0)(0).items()}
    card, _ = handed_on(odd, tmp_path)
    assert "<b>" not in card
    assert "&lt;b&gt;\\|\\`stem" in card


def test_several_files_share_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    files = [str(plain(trained(0), tmp_path)), str(keras(trained(0), tmp_path / "a"))]
    assert main(["audit", *files, "--card", str(tmp_path / "CARD.md")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert (tmp_path / "CARD.md").read_text().count("# BatchNorm card: ") == 2


def test_a_card_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(plain(trained(0), tmp_path)), "--card", str(tmp_path / "none" / "CARD.md")]) == 2
    assert "cannot write" in capsys.readouterr().err
