"""report.html of a run, charts, and that a page is inert and shows names as they are."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, make_gan, small_gan

from gancompress import charts, htmlreport, running
from gancompress.checkpoint import save_networks
from gancompress.collecting import collect
from gancompress.console import Silent
from gancompress.loading import load_gan
from gancompress.planning import make_plan
from gancompress.report import strip_png
from gancompress.request import Request
from gancompress.running import run_plan

pytestmark = pytest.mark.usefixtures("no_curves")

BRIEF = [("schedule.batch_size", 4), ("schedule.teacher_pool", 0), ("output.log_kimg", 0.004), ("output.pictures_kimg", 0.008), ("output.save_kimg", 0.008)]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = '<script>document.title="run"</script>"&amp;\' onload=alert(1) x='


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def check_inert(page):
    """Nothing runs, nothing is fetched, every picture says what it shows."""
    elements = Elements(page)
    for tag, attributes in elements.found:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "background", "xlink:href"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:image/png;base64,")
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["aria-label"]
    assert "url(" not in page
    assert "@import" not in page
    metas = [a for t, a in elements.found if t == "meta"]
    assert any(a.get("name") == "viewport" and "width=device-width" in a["content"] for a in metas)
    assert any(a.get("http-equiv") == "Content-Security-Policy" and a["content"].startswith("default-src 'none'") for a in metas)
    return elements


def look(path, width, folder):
    """(pixels by which the page is wider than a frame of this width, what it fetched, height, pictures not shown,
    elements that stick out, title), as Chromium lays the page out."""
    frame = folder / "frame.html"
    page = Path(path).read_text().replace("&", "&amp;").replace('"', "&quot;")
    frame.write_text(
        f'<!doctype html><body><iframe id="f" style="border:0;width:{width}px;height:600px" srcdoc="{page}"></iframe><script>'
        "onload = () => { const f = document.getElementById('f'), d = f.contentDocument, r = d.documentElement;"
        "const bad = [...d.images].filter(i => !i.complete || !i.naturalWidth).length;"
        "const wide = [...d.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > r.clientWidth + 1 && !e.closest('.scroll,pre')).length;"
        "const got = f.contentWindow.performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'));"
        "const answer = [r.scrollWidth - r.clientWidth, got, r.scrollHeight, bad, wide, d.title];"
        "document.body.innerHTML = '<pre id=answer>' + JSON.stringify(answer) + '</pre>'; }</script>"
    )
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = re.search("<pre id=.?answer.?>(.*?)</pre>", done.stdout, re.S)
    assert found, done.stderr[-2000:]
    return json.loads(found.group(1).replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


def distilled(out, teacher, recipe="mse", steps=4, reporter=None, more=(), **options):
    plan = make_plan(Request(None if teacher is None else str(teacher), recipe, out=out, device="cpu", steps=steps, overrides=[*BRIEF, *more], **options))
    run_plan(plan, reporter or Silent())
    return out


# ------------------------------------------------------------------------------------------------------------------------- runs


def test_a_report_tells_what_was_compressed_by_how_much_and_how_to_go_on(tiny_teacher, tmp_path):
    folder = distilled(tmp_path / "run", tiny_teacher, more=[("student.ch_mul", 0.5)], reader_options={"nc": 1})
    elements = check_inert((folder / "report.html").read_text())
    text = elements.text
    teacher, student = (sum(p.numel() for p in load_gan(str(p)).generator.parameters()) for p in (tiny_teacher, folder))
    assert f"{teacher / student:.3g}x" in text
    assert f"distilled from {tiny_teacher.resolve()} with recipe mse (Aguinaldo" in text
    assert "Teacher and student on the same latents" in text
    assert "In 8 equal steps" in text
    assert json.loads((folder / "run.json").read_text())["identity"]["teacher"]["sha256"] in text
    assert (folder / "recipe.yaml").read_text() in text
    assert f"gancompress compare {tiny_teacher.resolve()} . --reader nc=1 --out compare.html" in text
    assert len([a for t, a in elements.found if t == "img"]) == 6  # two rows of eight of each, and one row of each between latents
    assert [a["aria-label"].split(":")[0] for t, a in elements.found if t == "svg"] == [f"{name} over training" for name in ("mse", "diversity", "paired mse")]
    assert len((folder / "report.html").read_bytes()) < 100_000


def test_the_python_lines_of_a_report_run(tiny_teacher, tmp_path, monkeypatch):
    folder = distilled(tmp_path / "run", tiny_teacher)
    lines = re.search(r"import gancompress, torch.*?in \[-1, 1\]", Elements((folder / "report.html").read_text()).text, re.S).group()
    monkeypatch.chdir(folder)
    names = {}
    exec(lines, names)
    assert names["images"].shape == (16, 1, 8, 8)


def test_the_same_run_gives_the_same_report(tiny_teacher, tmp_path):
    one, other = (distilled(tmp_path / name, tiny_teacher) / "report.html" for name in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()


def test_a_missing_report_is_written_when_the_command_is_repeated(tiny_teacher, tmp_path):
    path = distilled(tmp_path / "run", tiny_teacher) / "report.html"
    before = path.read_bytes()
    path.unlink()
    distilled(path.parent, tiny_teacher)
    assert path.read_bytes() == before
    assert b"rolled back" not in before
    with (path.parent / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 3, "kimg": 0.012, "event": "rolled back", "non_finite_at_step": 4}) + "\n")
    path.unlink()
    distilled(path.parent, tiny_teacher)
    assert "Step 3: rolled back." in path.read_text()


def test_a_report_that_cannot_be_written_is_noted_and_the_run_is_whole(tiny_teacher, tmp_path, monkeypatch):
    said = []

    class Notes(Silent):
        def note(self, text):
            said.append(text)

    monkeypatch.setattr(running, "write_report", lambda *_: 1 / 0)
    folder = distilled(tmp_path / "run", tiny_teacher, reporter=Notes())
    assert (folder / "student.safetensors").is_file()
    assert not (folder / "report.html").exists()
    assert said[-1] == f"{folder / 'report.html'} could not be written: division by zero"


def test_a_run_without_a_teacher_shows_the_student_alone(tiny_data, tmp_path):
    folder = distilled(
        tmp_path / "run", None, "scratch", data=str(tiny_data), more=[("student.family", "dcgan"), ("student.arch", {"resolution": 8, "g_widths": [4]})]
    )
    text = check_inert((folder / "report.html").read_text()).text
    assert "trained without a teacher" in text
    assert "The student's images" in text
    assert "smaller by" not in text


def test_a_recorded_teacher_is_shown_as_recorded(tiny_teacher, tmp_path):
    collect(str(tiny_teacher), tmp_path / "pairs", num=20, device="cpu")
    folder = distilled(tmp_path / "run", None, recorded=tmp_path / "pairs")
    elements = check_inert((folder / "report.html").read_text())
    assert "The recorded teacher and the student" in elements.text
    assert [a["alt"] for t, a in elements.found if t == "img"][-1] == "student: images 1 to 8"  # between latents: the student's row alone


def test_a_translator_is_shown_with_its_inputs_and_no_latents(tmp_path):
    gan = small_gan("unet", SMALL["unet"][0])
    save_networks(tmp_path / "teacher.safetensors", gan.family, gan.arch, gan.networks, {})
    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
    folder = distilled(tmp_path / "run", tmp_path / "teacher.safetensors", data=str(tmp_path / "data.npz"), steps=2)
    elements = check_inert((folder / "report.html").read_text())
    assert [a["alt"] for t, a in elements.found if t == "img"][:3] == [f"{name}: images 1 to 8" for name in ("input", "teacher", "student")]
    assert "From one latent" not in elements.text
    assert "G(inputs)" in elements.text


def test_between_latents_the_class_stays_and_is_named(tmp_path):
    gan = small_gan("dcgan", SMALL["dcgan"][1])
    save_networks(tmp_path / "teacher.safetensors", gan.family, gan.arch, gan.networks, {})
    text = check_inert((distilled(tmp_path / "run", tmp_path / "teacher.safetensors", steps=2) / "report.html").read_text()).text
    assert re.search(r"between two latents, class [012]\.", text)
    assert "G(torch.randn(16, 4), torch.randint(3, (16,)))" in text


def test_other_latents_than_the_teachers_are_said(tiny_data, tmp_path):
    teacher = make_gan(nz=6)
    save_networks(tmp_path / "teacher.safetensors", teacher.family, teacher.arch, teacher.networks, {})
    folder = distilled(tmp_path / "run", tmp_path / "teacher.safetensors", "scratch", data=str(tiny_data), more=[("student.arch", {"nz": 4})])
    assert "share no latents" in check_inert((folder / "report.html").read_text()).text


# ------------------------------------------------------------------------------------------------------------------- the page


def test_hostile_names_are_shown_and_not_run():
    made = htmlreport.Table(HOSTILE, [HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]])
    parts = [
        htmlreport.section(HOSTILE, htmlreport.paragraph(HOSTILE), htmlreport.table(made), htmlreport.code(HOSTILE)),
        htmlreport.picture(strip_png(torch.zeros(1, 1, 4, 4)), HOSTILE, HOSTILE),
        htmlreport.folded(HOSTILE, htmlreport.facts([(HOSTILE, HOSTILE)])),
        htmlreport.figures([(HOSTILE, HOSTILE)]),
        charts.curves(HOSTILE, {HOSTILE: [(0, 1), (1, 2)], "b": [(0, 1)]}),
        charts.front(HOSTILE, HOSTILE, HOSTILE, [(HOSTILE, 1, 2), ("b", 2, 1)]),
    ]
    elements = check_inert(htmlreport.page(HOSTILE, parts).decode())
    assert elements.text.count(HOSTILE) == 22
    assert "<script" not in htmlreport.markdown(made)
    assert htmlreport.markdown(htmlreport.Table("t", ["a|b"], [["[x](javascript:y)\n`z`"]])).splitlines()[2:] == [
        "| a\\|b |",
        "| --- |",
        "| \\[x\\](javascript:y) \\`z\\` |",
    ]


def test_large_images_are_reduced_and_small_ones_enlarged():
    sizes = [np.frombuffer(strip_png(torch.zeros(3, 3, n, n))[16:24], ">u4").tolist() for n in (8, 64, 512)]
    assert sizes == [[192, 64], [192, 64], [384, 128]]


# ---------------------------------------------------------------------------------------------------------------------- charts


def test_a_curve_is_drawn_where_its_values_are():
    drawn = charts.curves("t", {"a": [(0, 0.0), (1, 1.0), (2, float("nan")), (2, 2.0)]})
    points = re.search(r'class="l c0" d="M([^"]+)"', drawn).group(1)
    xy = [tuple(map(float, p.split())) for p in points.split("L")]
    assert [x for x, _ in xy] == [charts.LEFT, (charts.LEFT + charts.WIDTH - charts.RIGHT) / 2, charts.WIDTH - charts.RIGHT]
    assert xy[0][1] - xy[1][1] == pytest.approx(xy[1][1] - xy[2][1])
    assert xy[0][1] > xy[2][1]
    assert charts.curves("t", {"a": [(0, float("inf"))]}) == ""
    assert len(re.findall("L", re.search(r'd="(M[^"]+)"', charts.curves("t", {"a": [(i, i) for i in range(10000)]})[:]).group(1))) <= charts.MOST


@pytest.mark.parametrize(
    ("values", "log", "expected"),
    [
        ([0, 10], False, [0, 2, 4, 6, 8, 10]),
        ([0.1, 0.2], False, [0.1, 0.12, 0.14, 0.16, 0.18, 0.2]),
        ([1, 1000], True, [1, 10, 100, 1000]),
        ([2, 30], True, [2, 5, 10, 20]),
        ([5, 5], False, [4.6, 4.8, 5.0, 5.2, 5.4]),
    ],
)
def test_ticks_are_round_and_within(values, log, expected):
    axis = charts.Axis(values, 0, 100, log)
    found = axis.ticks()
    assert found == pytest.approx(expected)
    assert all(-1e-6 <= axis(t) <= 100 + 1e-6 for t in found)


def test_the_front_is_of_what_nothing_beats():
    points = [("a", 1.0, 9.0), ("b", 2.0, 4.0), ("c", 3.0, 5.0), ("d", 4.0, 1.0), ("e", 4.0, 2.0)]
    assert [p[0] for p in charts.best_of(points)] == ["a", "b", "d"]
    drawn = charts.front("t", "x", "y", [*points, ("f", 4.0, 1.02)])
    assert re.findall('class="b"[^>]*>([^<]+)', drawn) == ["a", "b", "c", "d, f", "e"]  # two so near that their labels would cover each other
    assert re.findall('<circle class="c(.)"', drawn) == list("001011")
    assert charts.front("t", "x", "y", points[:1]) == charts.front("t", "x", "y", [points[0], ("b", 1.0, float("nan"))]) == ""
    assert charts.short(369600) == "369.6k"
    assert charts.short(1.2e9) == "1.2G"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_report_renders_on_a_phone_without_overflow_and_fetches_nothing(tiny_teacher, tmp_path):
    path = distilled(tmp_path / "run", tiny_teacher) / "report.html"
    over, fetched, height, not_shown, beyond, title = look(path, 390, tmp_path)
    assert (over, fetched, not_shown, beyond) == (0, [], 0, 0)
    assert height > 1500
    assert title.startswith("mse: dcgan")
    assert look(path, 1100, tmp_path)[2] < height
