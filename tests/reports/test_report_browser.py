"""The report opened in a real browser, without a network."""

from pathlib import Path

import pytest
import synthetic_cells
import synthetic_scorecards as made

from expunge.reports import compare, write_reports
from expunge.reports.leaderboard import write_page

pytestmark = pytest.mark.browser
CHROMIUM = Path("/usr/bin/chromium")
SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip("no chromium at /usr/bin/chromium (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=str(CHROMIUM), args=SWITCHES)
        yield running
        running.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Open a file offline; afterwards nothing may have been logged or asked for from elsewhere."""
    problems: list[str] = []

    def opened(path: Path, **options):
        page = browser.new_context(offline=True, **options).new_page()
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: problems.append("a dialog opened"))
        page.on("request", lambda r: None if r.url == path.as_uri() else problems.append(f"request: {r.url}"))
        page.goto(path.as_uri())
        return page

    yield opened
    assert problems == []


def shown(page) -> list[str]:
    return page.locator("#record-table tbody:visible > tr:first-child > th").all_text_contents()


def column(page, index: int) -> list[float]:
    cells = page.locator(f"#record-table tbody:visible > tr:first-child > td:nth-child({index})")
    return [float(v) for v in cells.evaluate_all("cells => cells.map(c => c.dataset.v)") if v]


def test_record_table_sorts_and_filters(open_page, tmp_path):
    card = made.good(records=60)
    page = open_page(write_reports(card, tmp_path)["report.html"])
    assert len(shown(page)) == 60
    head = page.locator("#record-table thead tr:last-child th").nth(4)
    head.locator("button").click()
    first = column(page, 5)
    assert first == sorted(first)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    assert column(page, 5) == sorted(first, reverse=True)

    page.select_option("select[name=split]", "forget_hard")
    assert len(shown(page)) == sum(row.split == "forget_hard" for row in card.records)
    page.select_option("select[name=split]", "")
    page.check("input[name=leaks]")
    assert set(shown(page)) == {row.id for row in card.records if row.leaks}
    page.uncheck("input[name=leaks]")
    page.fill("input[name=text]", card.records[7].entity.upper())
    assert shown(page) == [card.records[7].id]
    assert page.locator("form.filter output").text_content() == "1 of 60 records"


def test_hostile_page_runs_nothing(open_page, tmp_path):
    page = open_page(write_reports(made.hostile(), tmp_path)["report.html"])
    assert page.locator("img").count() == 0
    assert page.locator("h1").text_content() == made.HOSTILE
    assert page.locator("svg.plot").count() > 5


@pytest.mark.parametrize("width", [390, 1200])
def test_page_fits_its_window(open_page, tmp_path, width):
    files = write_reports(made.good(shows_text=True), tmp_path)
    files |= compare([made.good("a"), made.good("b")], tmp_path)
    for name in ("report.html", "compare.html"):
        page = open_page(files[name], viewport={"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_paper_shows_what_was_folded(open_page, tmp_path):
    page = open_page(write_reports(made.good(records=60), tmp_path)["report.html"])
    hidden = page.get_by_text("exact memorization").first
    assert not hidden.is_visible()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert hidden.is_visible()
    assert page.locator("#record-table tbody:visible").count() == 40
    assert not page.locator("form.filter").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert not hidden.is_visible()


@pytest.fixture(scope="module")
def leaderboard(tmp_path_factory):
    cells = [synthetic_cells.cell(name, seed) for name in ("ga", "npo", "idk") for seed in (0, 1)]
    cells.append(synthetic_cells.failed("ga", 2, made.HOSTILE))
    return write_page(cells, tmp_path_factory.mktemp("leaderboard"))["index.html"]


def test_leaderboard_sorts_methods_and_keeps_their_rows_together(open_page, leaderboard):
    page = open_page(leaderboard, viewport={"width": 1400, "height": 900})
    plots = page.locator("svg.plot")
    assert plots.count() == 3 + 2 + 3  # trade-off, τ-curves, α-curves
    assert all(plots.nth(i).bounding_box()["height"] > 100 for i in range(plots.count()))
    assert page.locator("img").count() == 0
    bodies = page.locator("table.sortable tbody")
    names = lambda: bodies.locator("th.method").all_text_contents()  # noqa: E731
    assert [name.split()[-1] for name in names()] == ["npo", "idk", "ga"]
    head = page.locator("table.sortable thead th", has_text="forget").first
    head.locator("button").click()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert [name.split()[-1] for name in names()] == ["ga", "idk", "npo"]
    assert "original" in bodies.first.text_content()
    first = bodies.nth(1).locator("tr")
    assert first.count() == 5
    assert made.HOSTILE in first.last.text_content()
    assert page.locator("table.sortable thead button").count() == 10


@pytest.mark.parametrize("width", [390, 1200])
def test_leaderboard_fits_its_window(open_page, leaderboard, width):
    page = open_page(leaderboard, viewport={"width": width, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1009, "height": 680})  # A4 across, within its margins
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1009
    assert page.get_by_text("epochs 5").first.is_visible()
