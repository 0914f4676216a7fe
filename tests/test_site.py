"""The site in a browser: it opens without errors, shows its figures, is found through its search,
and can be read on a phone and in the dark. Skipped where there is no Chromium.
"""

import functools
import http.server
import json
import shutil
import threading
from urllib.parse import urlsplit

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 390, "height": 844}
MATHS = (
    "cdn.jsdelivr.net",
    "cdnjs.cloudflare.com",
)  # formulas are drawn by a script that the renderer links to; nothing else may come from elsewhere


ALONE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost"


def chromium(start):
    """A headless Chromium: the one of this machine, or Playwright's own; the test is skipped
    where there is neither.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    try:
        return start.chromium.launch(executable_path=found, args=["--no-sandbox", ALONE])
    except playwright.Error as e:
        pytest.skip(f"no Chromium: {str(e).splitlines()[0]}")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as start:
        opened = chromium(start)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(site):
    "The site, served: its address."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # one connection for many files

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def opened(browser, address, size=WIDE, scheme="light"):
    """A tab, and a list that fills with what goes wrong in it. Nothing is fetched from elsewhere:
    formulas stay text, anything else is an error.
    """
    tab = browser.new_context(viewport=size, color_scheme=scheme).new_page()
    wrong = []
    home = urlsplit(address).netloc

    def asked(request):
        if urlsplit(request.url).netloc not in (home, *MATHS, ""):
            wrong.append(f"{request.url} is fetched from another site")

    def said(message):
        where = urlsplit(message.location["url"])
        expected = where.netloc in MATHS or where.path == "/favicon.ico"  # browsers ask for it
        if message.type == "error" and not expected:
            wrong.append(f"{tab.url}: {message.text} ({where.path})")

    tab.on("request", asked)
    tab.on("console", said)
    tab.on(
        "pageerror",
        lambda e: (
            wrong.append(f"{tab.url}: {e}")
            if not any(w in str(e) for w in ("katex", "MathJax", "renderMathInElement"))
            else None
        ),
    )
    tab.on("response", lambda r: wrong.append(f"{r.url}: {r.status}") if r.status >= 400 else None)
    return tab, wrong


LOOK = """() => ({
  unseen: [...document.querySelectorAll('main img')]
    .filter(i => !i.complete || i.naturalWidth < 20 || i.getBoundingClientRect().width < 20)
    .map(i => i.src.slice(0, 80)),
  pictures: document.querySelectorAll('main img').length,
  over: Math.round(Math.max(document.documentElement.scrollWidth, ...[
    ...document.querySelectorAll('main :is(p, pre, table, img, div, ul, h1, h2, h3)')
  ].filter(e => {  // what scrolls in a box of its own does not count
    for (let b = e.parentElement; b && b.tagName != 'MAIN'; b = b.parentElement) {
      if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(b).overflowX)) return false;
    }
    return true;
  }).map(e => e.getBoundingClientRect().right)) - document.documentElement.clientWidth),
  title: document.querySelector('h1')?.innerText,
})"""


@pytest.mark.parametrize(
    "size, scheme",
    [pytest.param(WIDE, "light", marks=pytest.mark.slow), (NARROW, "dark")],
    ids=["wide and light", "narrow and dark"],
)
def test_every_page_opens_with_its_figures(browser, address, site, size, scheme):
    pages = sorted(p.relative_to(site).as_posix() for p in site.rglob("*.html"))
    (tab, wrong) = opened(browser, address, size, scheme)
    bad = []
    pictures = 0
    for page in pages:
        tab.goto(address + page)
        seen = tab.evaluate(LOOK)
        pictures += seen["pictures"]
        if not seen["title"]:
            bad.append(f"{page} has no heading")
        if seen["unseen"]:
            bad.append(f"{page} does not show {seen['unseen']}")
        if seen["over"] > 0:
            bad.append(f"{page} is {seen['over']} pixels wider than the window")
    assert not bad + wrong, "\n".join(bad + wrong)
    assert len(pages) > 40 and pictures > 40


def test_search_finds_the_lstm_and_opens_it(browser, address):
    tab, wrong = opened(browser, address)
    tab.goto(address)
    tab.fill("#quarto-search input", "LSTM")
    tab.wait_for_selector(".search-result")
    hits = tab.eval_on_selector_all(".search-result", "all => all.map(a => a.getAttribute('href'))")
    assert any("lstm.html" in h for h in hits), hits
    tab.click(".search-result[href*='lstm.html']")
    tab.wait_for_url("**/*lstm.html*")
    assert "lstm" in tab.inner_text("h1").lower() and not wrong, wrong


def test_search_of_quarto_is_on(top):
    "The box above is the test renderer's; Quarto makes one where the navbar asks for it."
    import yaml

    assert yaml.safe_load((top / "_quarto.yml").read_text())["website"]["navbar"]["search"] is True


COLOURS = """() => {
  const text = document.querySelector('main p');
  let box = text;
  while (box && getComputedStyle(box).backgroundColor === 'rgba(0, 0, 0, 0)') {
    box = box.parentElement;
  }
  return [getComputedStyle(box || document.body).backgroundColor, getComputedStyle(text).color];
}"""


def contrast(colours):
    "The contrast ratio of a text and its background, as WCAG 2 defines it; their luminances."

    def luminance(text):
        rgb = [float(v) / 255 for v in text[text.index("(") + 1 : -1].split(",")[:3]]
        return sum(
            w * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)
            for w, v in zip((0.2126, 0.7152, 0.0722), rgb)
        )

    back, front = map(luminance, colours)
    return (max(back, front) + 0.05) / (min(back, front) + 0.05), back, front


def test_contrast_is_measured():
    assert (
        round(contrast(["rgb(255, 255, 255)", "rgb(0, 0, 0)"])[0]) == 21
        and contrast(["rgb(9, 9, 9)", "rgb(9, 9, 9)"])[0] == 1
    )


def test_both_themes_can_be_read_and_the_switch_works(browser, address):
    tab, wrong = opened(browser, address)
    seen = {}
    tab.goto(address)
    for name in ("light", "dark"):
        if name == "dark":
            tab.click(".quarto-color-scheme-toggle")
        tab.wait_for_timeout(300)
        seen[name] = contrast(tab.evaluate(COLOURS))
    assert all(ratio >= 4.5 for ratio, _, _ in seen.values()), seen
    assert seen["light"][1] > 0.8 and seen["dark"][1] < 0.1, seen
    tab.goto(address + "benchmarks.html")
    assert contrast(tab.evaluate(COLOURS))[1] < 0.1 and not wrong, wrong  # the choice is kept


def test_a_phone_reaches_the_sidebar(browser, address):
    tab, wrong = opened(browser, address, NARROW)
    tab.goto(address)
    link = tab.locator("#quarto-sidebar a[href*='which_model_should_i_believe']").first

    def place():
        return link.bounding_box()["x"]

    assert place() < 0  # out of sight, to the left
    tab.click(".quarto-btn-toggle")
    tab.wait_for_timeout(600)
    assert place() >= 0
    link.click()
    tab.wait_for_url("**/which_model_should_i_believe.html")
    assert not wrong, wrong


def test_what_is_wrong_in_a_browser_is_seen(browser, address, site):
    page = site / "index.html"
    text = page.read_text()
    broken = site / "broken.html"
    broken.write_text(
        text.replace(
            "</main>",
            '<img src="nowhere.png"><div style="width:3000px">x</div></main>'
            '<script>console.error("seen")</script>'
            '<script src="https://example.org/x.js"></script>',
        )
    )
    try:
        tab, wrong = opened(browser, address)
        tab.goto(address + "broken.html")
        look = tab.evaluate(LOOK)
    finally:
        broken.unlink()
    assert look["unseen"] and look["over"] > 0, json.dumps(look)
    assert {"seen", "404", "another site"} <= {
        w for w in ("seen", "404", "another site") if any(w in x for x in wrong)
    }, wrong
