"""The report: its numbers as JSON, the clips that it shows, and one page that holds everything."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from ivideogpt.evaluation.evaluate import evaluate
from ivideogpt.evaluation.held_out import read_clips
from ivideogpt.evaluation.intervals import Estimate
from ivideogpt.evaluation.protocols import PROTOCOLS, settle
from ivideogpt.evaluation.video_distances import VideoDistances
from ivideogpt.reports.charts import estimate_line, line_chart, nice_ticks, tick_text
from ivideogpt.reports.evaluation_page import report_page
from ivideogpt.reports.evaluation_report import About, chosen_clips, perplexity, results, summary, table_rows

NASTY = "</script><img src=https://example.com/x onerror=alert(1)> {{script}} & \"'"
ABOUT = About(model=NASTY, checkpoint=NASTY, data=NASTY, facts={"frames": NASTY}, left_out=(NASTY,))


class Colours:
    name = "distance of colours"

    def __call__(self, videos: torch.Tensor) -> torch.Tensor:
        return videos.double().mean(dim=(1, 3, 4)).cpu()


@pytest.fixture(scope="module")
def done():
    """What was measured before; tests leave it as it is."""
    return {}


@pytest.fixture
def measured(model_of, store_of, done):
    """``measured(kind, samples, lengths)``: an evaluation and what it was made on."""

    def make(kind="conditional", samples=1, lengths=(14, 13, 12, 12, 12, 12, 12)):
        if (kind, samples, lengths) not in done:
            model = model_of(kind)
            protocol = settle(PROTOCOLS["single"], model, horizon=10, samples=samples)
            held_out = read_clips(model, store_of(lengths, dim=model.action_dim), protocol)
            found = evaluate(model, held_out.clips, protocol, video=VideoDistances(Colours()))
            done[kind, samples, lengths] = found, held_out
        return done[kind, samples, lengths]

    return make


class Page(HTMLParser):
    """The tags of a page with their attributes."""

    VOID = {"meta", "img", "input", "path", "polyline", "polygon", "line", "circle"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_a_page_fetches_nothing_and_runs_no_script_but_its_own(measured) -> None:
    text = report_page(*measured(samples=2), ABOUT)
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs), f"<{tag}> runs a script"
        assert tag not in ("link", "iframe", "object", "embed", "base", "a", "form")
        for name in ("src", "href", "srcset", "poster", "data"):
            assert attrs.get(name, "data:").startswith("data:"), f"<{tag}> fetches {attrs[name][:60]}"
    assert "url(" not in text and "@import" not in text
    (policy,) = (attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "{{" not in text.replace("{{script}}", "", text.count("{{script}} &amp;")), "a value was not filled in"


def test_a_page_shows_truth_beside_what_was_imagined(measured) -> None:
    found, held_out = measured(samples=2)
    page = Page(report_page(found, held_out, About(model="m", checkpoint="c", data="d")))
    figures = [attrs["class"] for tag, attrs in page.tags if tag == "figure"]
    assert figures == ["true", "imagined", "imagined", "varied"] * 7, "no clip is shown twice"
    text = " ".join(" ".join(page.words).split())
    for words in ("best of 2", "copy of the last frame", "distance of colours", "following score", "rank correlation"):
        assert words in text
    assert "Not comparable" not in text and "Left out" not in text


def test_an_action_free_model_of_one_clip_has_a_page_too(measured) -> None:
    found, held_out = measured("action_free", lengths=(12,))
    page = Page(report_page(found, held_out, ABOUT))
    assert [attrs["class"] for tag, attrs in page.tags if tag == "figure"] == ["true", "imagined"]
    text = " ".join(page.words)
    assert "Too few clips" in text and "follow the actions" not in text and not re.search(r"\bnan\b", text.lower())


@pytest.mark.parametrize(("count", "tiles"), [(9, 0), (10, 3)])
def test_fewer_than_ten_clips_give_no_headline_figure(measured, count, tiles) -> None:
    evaluation, held_out = measured("action_free", samples=2, lengths=(12,) * count)
    page = Page(report_page(evaluation, held_out, About(model="m", checkpoint="c", data="d")))
    text = " ".join(" ".join(page.words).split())
    assert ("Too few clips for headline figures" in text) == (tiles == 0)
    headlines = [attrs for tag, attrs in page.tags if tag == "div" and attrs.get("class") == "tile"]
    assert len(headlines) == (tiles + 1 if tiles else 0), "video distance is one more"
    assert "imagined, best of 2" in text and f"{evaluation.estimate('copy_last', 'psnr').value:.2f}" in text


def test_what_makes_numbers_incomparable_is_said_on_the_page(model_of, store_of) -> None:
    model = model_of("conditional")
    protocol = settle(PROTOCOLS["bair"], model, horizon=4, samples=1)
    held_out = read_clips(model, store_of((12, 12, 3)), protocol, allow_mismatch=True)
    text = report_page(evaluate(model, held_out.clips, protocol), held_out, About(model="m", checkpoint="c", data="d"))
    for words in ("Not comparable with published", "samples: 1 instead of 100", "1 context frames", "1 episode was"):
        assert words in text


def test_results_are_plain_json_of_every_clip_and_frame(measured) -> None:
    found, held_out = measured(samples=2)
    text = json.dumps(results(found, held_out, ABOUT), allow_nan=False)
    values = json.loads(text)
    assert len(values["future_of_each_clip"]) == 7 and values["clips"] == 7
    assert values["future_of_each_clip"][0]["episode"] == "e0"
    mean = sum(clip["psnr_best"] for clip in values["future_of_each_clip"]) / 7
    assert values["future"]["psnr"]["best"]["value"] == pytest.approx(mean, rel=1e-5)
    assert len(values["future_curves"]["ssim"]["copy_last"]) == 10
    rows = {"best", "mean", "first", "reconstruction", "copy_last"}
    assert set(values["whole_clip"]["psnr"]) == set(values["future"]["mse"]) == rows
    for row in values["whole_clip"]["psnr"].values():
        assert row["low"] <= row["value"] <= row["high"]
    assert {"repetition", "accuracy", "loss", "perplexity", "frames"} == set(values["tokens"])
    assert set(values["trust"]) == {"entropy", "disagreement"} and "score" in values["following"]
    assert values["video"]["name"] == "distance of colours"


def test_one_future_has_no_best(measured) -> None:
    found, held_out = measured(lengths=(12,))
    assert [row.key for row in table_rows(found, whole=True)] == ["first", "reconstruction", "copy_last"]
    figures = summary(found, held_out, ABOUT)["future"]["psnr"]["first"]
    assert figures["value"] > 0 and figures["low"] is None and figures["high"] is None


def test_worst_and_best_clips_are_those_by_psnr_and_others_are_spread(measured) -> None:
    found, _ = measured()
    ratios = found.clip_values("imagined", "psnr")
    chosen = chosen_clips(found, each=2)
    assert chosen["Not chosen by result"] == [0, 6]
    rest = sorted(range(1, 6), key=lambda index: float(ratios[index]))
    assert chosen["Worst"] == rest[:2] and chosen["Best"] == rest[:-3:-1]
    assert sum(map(len, chosen_clips(found, each=5).values())) == 7


def test_perplexity_is_exp_of_the_loss() -> None:
    assert perplexity(Estimate(0.0, 0.0, 0.0)) == Estimate(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (21.3, 38.9, ["20", "25", "30", "35", "40"]),
        (0.0, 0.0034, ["0.000", "0.001", "0.002", "0.003", "0.004"]),
        (5.0, 5.0, ["4", "6"]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, texts) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert [tick_text(tick, ticks) for tick in ticks] == texts


def test_a_chart_leaves_out_what_is_no_number() -> None:
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    lines = [estimate_line("imagined", [Estimate(1, 0.5, 2), nothing]), estimate_line("copy", [nothing, nothing])]
    drawn = line_chart(lines, "x")
    assert "nan" not in drawn and drawn.count("<polyline") == 2
