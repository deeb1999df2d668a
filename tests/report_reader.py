"""What a report says, for tests: its elements and text, and how it looks in a browser."""

from html.parser import HTMLParser

# A script for `browser.evaluate`.
LOOK = """(() => {
    const all = (names) => [...document.querySelectorAll(names)];
    const box = (element) => element.getBoundingClientRect();
    return {
        hacked: window.hacked ?? "safe",
        sections: all("section").map((section) => section.id),
        heights: all("section").map((section) => section.offsetHeight),
        charts: all("svg").map((svg) => [box(svg).width, box(svg).height]),
        outside: all("svg text").filter((text) => {
            const [inner, outer] = [box(text), box(text.closest("figure"))];
            return inner.left < outer.left || inner.right > outer.right;
        }).map((text) => text.textContent),
        letters: Math.min(...all("svg text").map((text) => box(text).height)),
        sizes: [document.documentElement.scrollWidth, document.documentElement.clientWidth],
        colors: [document.body, all("svg path[style*='var(--blue)']")[0]].map((element, index) =>
            getComputedStyle(element)[["backgroundColor", "stroke"][index]]),
    };
})()"""


class Page(HTMLParser):
    """The elements of a page with their attributes, its sections, and its text, of all and by section."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.sections, self.text, self.by_section = [], [], "", {}
        self.texts, self.inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "section":
            self.sections.append(attributes["id"])
        if attributes.get("class") == "text":
            self.texts.append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "p"

    def handle_data(self, data):
        self.text += data
        if self.sections:
            self.by_section[self.sections[-1]] = self.by_section.get(self.sections[-1], "") + data
        if self.inside:
            self.texts[-1] += data


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))
