"""Curves of a run."""

import json

import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from gancompress.report import save_curves, save_rows


def drawn(tmp_path, monkeypatch, *entries):
    """{title: {label of a curve: its points}} and the scale of each panel of the picture that a log gives."""
    found = {}

    def close(figure):
        for axis in figure.axes:
            legend = axis.get_legend()
            found[axis.get_title()] = (
                {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.lines},
                axis.get_yscale(),
                [] if legend is None else [t.get_text() for t in legend.get_texts()],
            )

    monkeypatch.setattr(pyplot, "close", close)
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    save_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    return found


def test_scores_share_a_panel_with_a_legend_and_each_term_has_its_own(tmp_path, monkeypatch):
    first = {"step": 1, "kimg": 1.0, "adv": 0.5, "guide": 0.0, "score_d": 2.0, "images_per_s": 9.0}
    second = {"step": 2, "kimg": 2.0, "adv": 0.25, "guide": 0.1, "score_d": 3.0, "score_t": 1.0, "images_per_s": 9.0}
    panels = drawn(tmp_path, monkeypatch, first, second, {"step": 2, "kimg": 2.0, "event": "rolled back", "non_finite_at_step": 3})
    assert list(panels) == ["adv", "guide", "scores"]
    assert panels["scores"] == ({"score d": [(1.0, 2.0), (2.0, 3.0)], "score t": [(2.0, 1.0)]}, "linear", ["score d", "score t"])
    assert panels["adv"] == ({"adv": [(1.0, 0.5), (2.0, 0.25)]}, "log", [])
    assert panels["guide"][1:] == ("linear", [])  # it has a zero
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("entries", [[], [{"step": 2, "kimg": 2.0, "event": "rolled back", "non_finite_at_step": 3}]])
def test_a_log_without_terms_has_no_curves(entries, tmp_path, monkeypatch):
    assert drawn(tmp_path, monkeypatch, *entries) == {}
    assert not (tmp_path / "curves.png").exists()


def test_a_term_of_the_way_back_is_drawn_with_that_of_the_way_there(tmp_path, monkeypatch):
    panels = drawn(tmp_path, monkeypatch, {"step": 1, "kimg": 1.0, "cycle": 4.0, "cycle_back": 3.0})
    assert {name: panel[0] for name, panel in panels.items()} == {"cycle": {"cycle": [(1.0, 4.0)], "cycle back": [(1.0, 3.0)]}}


def test_a_long_label_does_not_cover_the_pictures(tmp_path):
    white, black = torch.ones(1, 3, 64, 64), -torch.ones(1, 3, 64, 64)
    save_rows(tmp_path / "rows.png", [("a label of many words", white), ("b", white)])
    with Image.open(tmp_path / "rows.png") as picture:
        assert picture.crop((picture.width - 64, 0, picture.width, 128)).getextrema() == ((255, 255),) * 3
    save_rows(tmp_path / "short.png", [("b", black)])
    with Image.open(tmp_path / "short.png") as picture:
        assert picture.width == 58 + 64
